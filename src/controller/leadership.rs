//! Who leads: the replica that holds the lease. One whose clock is suspect gives it back, so that another one leads, and
//! so that no lease ends hours ahead, which nobody could take over before.

use std::time::Duration;

use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use tokio::sync::watch;
use tracing::warn;

use super::{apply::DEADLINE, clock::Clock};

const LEASE: &str = "entente-leader";
/// Seconds that a lease holds unless it is renewed.
const HOLDS: u64 = 15;
/// It is renewed so many seconds before.
const BEFORE: u64 = 5;
/// The pause after the lease could not be watched.
const AGAIN: Duration = Duration::from_secs(1);

/// Seeks the lease as `identity`, and tells `leads` whether we have it, for as long as anybody listens.
pub(super) async fn seek(
    client: Client,
    (namespace, identity): (String, String),
    clock: Clock,
    leads: watch::Sender<bool>,
) {
    while !leads.is_closed() {
        tokio::select! {
            () = leads.closed() => return,
            () = clock.becomes(true) => {}
        }
        let lease = LeaseManagerBuilder::new(client.clone(), LEASE)
            .with_namespace(&namespace)
            .with_identity(&identity)
            .with_duration(HOLDS)
            .with_grace(BEFORE);
        match tokio::time::timeout(DEADLINE, lease.build()).await {
            Ok(Ok(lease)) => hold(lease, &clock, &leads).await,
            Ok(Err(error)) => warn!(%error, "the lease cannot be sought"),
            Err(_) => warn!("the lease cannot be sought: the API server does not answer"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Follows the lease until nobody listens or our clock is suspect; then gives it back.
async fn hold(lease: LeaseManager, clock: &Clock, leads: &watch::Sender<bool>) {
    let (mut held, giving_back) = lease.watch().await;
    let follow = async {
        loop {
            leads.send_replace(*held.borrow_and_update());
            if held.changed().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = leads.closed() => {}
        () = clock.becomes(false) => {}
        () = follow => {}
    }
    leads.send_replace(false);
    drop(held);
    match tokio::time::timeout(DEADLINE, giving_back).await {
        Ok(Ok(Ok(_))) => {}
        Ok(Ok(Err(error))) => warn!(%error, "the lease could not be given back"),
        Ok(Err(error)) => warn!(%error, "the lease could not be given back"),
        Err(_) => warn!("the lease could not be given back: the API server does not answer"),
    }
}
