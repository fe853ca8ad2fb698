//! The long-poll: acknowledges the brief in force, reports what was seen, waits for what is new.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{
    channel::{Call, Channel, ChannelError, Control},
    credentials::Leaf,
    generation::GenerationError,
    shared::Shared,
};
use crate::{
    brief::{Brief, MAX_SYNC_RESPONSE, POLL_HOLD_SECONDS, Report, SyncRequest, SyncResponse, VERSION},
    pki::renewal,
    telemetry,
};

/// The controller holds a poll for `POLL_HOLD_SECONDS`; so much later we give up.
const DEADLINE: Duration = Duration::from_secs(POLL_HOLD_SECONDS + 10);
/// New refusals are gathered so long before they interrupt a held poll.
const GATHER: Duration = Duration::from_millis(500);
/// Fewest time between two polls that brought nothing, whatever the other side does.
const PACE: Duration = Duration::from_secs(1);
/// Lifetime assumed for the back-off; the cap is then 30 s.
const BACK_OFF: Duration = Duration::from_secs(86_400);

#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Brief(#[from] GenerationError),
}

/// How a poll ended.
enum Polled {
    /// With something new.
    News,
    /// With nothing new.
    Nothing,
    /// Before its end: our certificate changed, or something cannot wait.
    Interrupted,
}

/// Runs for the proxy's whole life.
pub(super) async fn run(shared: Arc<Shared>, control: Control) {
    let mut leaf = shared.leaf();
    loop {
        let current = leaf.borrow_and_update().clone();
        match current {
            None => {
                if leaf.changed().await.is_err() {
                    return;
                }
            }
            Some(current) => follow(&shared, &control, &current, &mut leaf).await,
        }
    }
}

/// Polls with one certificate until there is another.
async fn follow(shared: &Shared, control: &Control, leaf: &Leaf, changed: &mut watch::Receiver<Option<Arc<Leaf>>>) {
    let mut channel = match Channel::new(control, Some(leaf)) {
        Ok(channel) => channel,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the control channel cannot be set up");
            let _ = changed.changed().await;
            return;
        }
    };
    let mut attempt = 0;
    while !superseded(leaf, &changed.borrow_and_update()) {
        let begun = Instant::now();
        let pause = match poll(shared, &mut channel, leaf, changed).await {
            Ok(Polled::News | Polled::Interrupted) => {
                attempt = 0;
                Duration::ZERO
            }
            Ok(Polled::Nothing) => {
                attempt = 0;
                PACE.saturating_sub(begun.elapsed())
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, attempt, "sync failed");
                if matches!(&error, SyncError::Channel(error) if error.is_unauthorised()) {
                    shared.renew.notify_one();
                }
                if let SyncError::Brief(error) = &error {
                    shared.metrics.rejected();
                    if matches!(error, GenerationError::Identity { .. }) {
                        shared.renew.notify_one();
                    }
                }
                attempt += 1;
                renewal::retry_after(attempt, telemetry::jitter(), BACK_OFF)
            }
        };
        tokio::select! {
            _ = changed.wait_for(|now| superseded(leaf, now)) => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn superseded(leaf: &Leaf, now: &Option<Arc<Leaf>>) -> bool {
    now.as_ref().is_none_or(|now| now.identity.serial != leaf.identity.serial)
}

async fn poll(
    shared: &Shared,
    channel: &mut Channel,
    leaf: &Leaf,
    changed: &mut watch::Receiver<Option<Arc<Leaf>>>,
) -> Result<Polled, SyncError> {
    let wanted = shared.routes.wanted();
    let mut refused = shared.refusals.news();
    refused.mark_unchanged();
    let request = request(shared, leaf);
    // What asks or reports is answered at once; only a poll without either is held, and may be interrupted.
    let held = request.ask.is_empty() && request.report.refusals.is_empty();
    let call = Call { path: "/v1/sync", bearer: None, deadline: DEADLINE, at_most: MAX_SYNC_RESPONSE };
    let answer = tokio::select! {
        biased;
        answer = channel.post::<SyncResponse>(&call, &request) => answer,
        _ = changed.wait_for(|now| superseded(leaf, now)) => {
            shared.refusals.put_back(request.report.refusals);
            return Ok(Polled::Interrupted);
        }
        () = interruption(shared, wanted, refused), if held => return Ok(Polled::Interrupted),
    };
    match answer {
        Ok(answer) => {
            shared.routes.answered(&request.ask);
            let polled = apply(shared, answer)?;
            // What was answered at once for our sake says nothing about the other side's pace.
            Ok(if held { polled } else { Polled::News })
        }
        Err(error) => {
            shared.refusals.put_back(request.report.refusals);
            Err(error.into())
        }
    }
}

fn request(shared: &Shared, leaf: &Leaf) -> SyncRequest {
    let generation = shared.in_force();
    let open: usize = shared.registry.count().iter().sum();
    SyncRequest {
        brief_version: VERSION,
        after: generation.map(|generation| generation.cursor().clone()),
        routes: shared.routes.cursor(),
        keep: shared.routes.keep(),
        ask: shared.routes.ask(),
        report: Report {
            refusals: shared.refusals.take(),
            open: open as u64,
            leaf_not_after: leaf.identity.not_after.as_second(),
            leaf_serial: leaf.serial(),
        },
    }
}

/// Ends when an address is waited for, or when refusals have been gathered.
async fn interruption(shared: &Shared, mut wanted: watch::Receiver<()>, mut refused: watch::Receiver<()>) {
    let gathered = async {
        if shared.refusals.is_empty() {
            let _ = refused.changed().await;
        }
        tokio::time::sleep(GATHER).await;
    };
    let asked = async {
        if shared.routes.ask().is_empty() {
            let _ = wanted.changed().await;
        }
    };
    tokio::select! {
        () = gathered => {}
        () = asked => {}
    }
}

fn apply(shared: &Shared, answer: SyncResponse) -> Result<Polled, SyncError> {
    let in_force = shared.in_force();
    let known = |brief: &Brief| in_force.is_some_and(|generation| *generation.cursor() == brief.cursor);
    let brief = answer.brief.filter(|brief| !known(brief));
    let news = brief.is_some() || answer.routes.is_some();
    // Routes first: a proxy that becomes ready by its first brief then knows where its peers are.
    if let Some(delta) = answer.routes {
        shared.routes.apply(delta);
        shared.routes_changed();
    }
    if let Some(brief) = brief {
        shared.adopt_brief(brief)?;
    }
    Ok(if news { Polled::News } else { Polled::Nothing })
}
