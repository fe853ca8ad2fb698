//! The pod's end. A native sidecar is told only after the application's containers have ended.

use std::time::Duration;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::shared::Shared;
use crate::refusal::Refusal;

/// Given when there is no brief to say otherwise.
const NO_BRIEF: Duration = Duration::from_secs(5);
/// How long the last connections may take to end in order.
const GOODBYE: Duration = Duration::from_secs(1);

/// Readiness off; outbound stays open; inbound closes after `grace`; open connections get the brief's time to end.
pub(super) async fn drain(shared: &Shared, tasks: &TaskTracker, inbound: &CancellationToken, grace: Duration) {
    shared.start_draining();
    let generation = shared.in_force();
    let limit = generation.map_or(NO_BRIEF, |generation| Duration::from_secs(generation.brief().drain_seconds.into()));
    tracing::info!(open = ?shared.registry.count(), seconds = limit.as_secs(), "draining");
    tokio::time::sleep(grace.min(limit)).await;
    inbound.cancel();
    tasks.close();
    if tokio::time::timeout(limit.saturating_sub(grace), tasks.wait()).await.is_err() {
        let ended = shared.registry.end_all(Refusal::Drained);
        tracing::info!(ended, "drain time is over");
        let _ = tokio::time::timeout(GOODBYE, tasks.wait()).await;
    }
}
