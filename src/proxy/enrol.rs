//! Keeps our certificate fresh: asks for the first one, renews in time by the wall clock, with a new key each time.

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{
    channel::{Call, Channel, ChannelError, Control},
    credentials::{Candidate, CredentialError, Leaf},
    shared::Shared,
};
use crate::{
    brief::{Brief, CertificateResponse, MAX_CERTIFICATE_REQUEST},
    pki::renewal,
    telemetry,
};

/// Deadline of an issuance.
const DEADLINE: Duration = Duration::from_secs(20);
/// Bound of an answer with a chain and roots.
const MAX_RESPONSE: usize = 1024 * 1024;
/// The wall clock is consulted at least this often: it may jump.
const LOOK: Duration = Duration::from_secs(1);
/// Lifetime assumed for the back-off before the first certificate.
const FIRST_LIFETIME: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
enum EnrolError {
    #[error("cannot read the token {path}")]
    Token {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the certificate request is larger than the contract allows")]
    TooLarge,
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

/// Whether a certificate must be asked for now.
fn is_due(leaf: Option<&Leaf>, brief: Option<&Brief>, now: Timestamp) -> bool {
    leaf.is_none_or(|leaf| leaf.renew_at <= now || brief.is_some_and(|brief| leaf.differs_from(brief)))
}

/// Runs for the proxy's whole life.
pub(super) async fn run(shared: Arc<Shared>, control: Control, token_file: PathBuf) {
    let mut attempt = 0;
    // What the brief asked for when a renewal did not bring it: not asked for again in a hurry.
    let mut unmet = 0_u32;
    loop {
        let asked = wait(&shared, unmet).await;
        match enrol(&shared, &control, &token_file).await {
            Ok(leaf) => {
                attempt = 0;
                let brief = shared.in_force();
                let differs = brief.is_some_and(|generation| leaf.differs_from(generation.brief()));
                unmet = if differs { unmet + 1 } else { 0 };
                shared.adopt_leaf(leaf);
                // One rejected certificate brings one new one, then the normal pace returns.
                if asked {
                    pause(&shared, 2).await;
                }
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, attempt, "certificate not obtained");
                pause(&shared, attempt).await;
                attempt = attempt.saturating_add(1);
            }
        }
    }
}

/// Waits until a certificate is due; `true` = somebody asked for it before its time.
async fn wait(shared: &Shared, unmet: u32) -> bool {
    let asked = shared.renew.notified();
    let due = async {
        if unmet > 0 {
            pause(shared, unmet + 2).await;
        }
        loop {
            let leaf = shared.leaf().borrow().clone();
            let generation = shared.in_force();
            if is_due(leaf.as_deref(), generation.as_ref().map(|generation| generation.brief()), telemetry::now()) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    either(asked, due).await
}

async fn either(first: impl Future<Output = ()>, second: impl Future<Output = ()>) -> bool {
    tokio::select! {
        () = first => true,
        () = second => false,
    }
}

async fn pause(shared: &Shared, attempt: u32) {
    let life = shared.leaf().borrow().as_ref().map_or(FIRST_LIFETIME, |leaf| {
        let seconds = leaf.identity.not_after.as_second() - leaf.began.as_second();
        Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
    });
    tokio::time::sleep(renewal::retry_after(attempt, telemetry::jitter(), life)).await;
}

async fn enrol(shared: &Shared, control: &Control, token_file: &PathBuf) -> Result<Leaf, EnrolError> {
    // Read anew each time: the kubelet rotates it.
    let token = tokio::fs::read_to_string(token_file)
        .await
        .map_err(|source| EnrolError::Token { path: token_file.display().to_string(), source })?;
    let candidate = Candidate::new()?;
    let request = candidate.request()?;
    if request.csr.len() > MAX_CERTIFICATE_REQUEST / 2 {
        return Err(EnrolError::TooLarge);
    }
    let lifetime = shared.in_force().map(|generation| generation.brief().lifetime_seconds);
    let call = Call { path: "/v1/certificate", bearer: Some(token.trim()), deadline: DEADLINE, at_most: MAX_RESPONSE };
    // A connection of its own, once a renewal: nothing of an old certificate clings to it.
    let answer: CertificateResponse = Channel::new(control, None)?.post(&call, &request).await?;
    let leaf = candidate.join(&answer, &shared.place.pod_uid, lifetime, (telemetry::now(), telemetry::jitter()))?;
    if let Err(error) = leaf.store(&shared.place.state_dir) {
        tracing::warn!(%error, "certificate is not kept for a restart");
    }
    Ok(leaf)
}
