//! The long-poll: acknowledges the brief in force, reports what was seen, waits for what is new.

use std::{future::Future, sync::Arc, time::Duration};

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
    refusal::Refusal,
    telemetry,
};

/// The controller holds a poll for `POLL_HOLD_SECONDS`; so much later we give up.
const DEADLINE: Duration = Duration::from_secs(POLL_HOLD_SECONDS + 10);
/// New refusals are gathered so long before they interrupt a held poll.
const GATHER: Duration = Duration::from_millis(500);
/// And so far apart.
const EVERY: Duration = Duration::from_secs(5);
/// Kinds of refusals in one report: with the addresses in use they stay below the bound of a request.
const REPORTED: usize = 64;
/// By then a request that is not answered has at least arrived.
const ARRIVED: Duration = Duration::from_secs(1);
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
#[derive(Clone, Copy, PartialEq, Eq)]
enum Polled {
    /// With something new.
    News,
    /// With nothing new.
    Nothing,
    /// Before its end: something cannot wait.
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
    let channel = match Channel::new(&shared.guard, control, Some(leaf)) {
        Ok(channel) => channel,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the control channel cannot be set up");
            let _ = changed.changed().await;
            return;
        }
    };
    let mut polls = Polls { shared, leaf, channel, reported: None };
    let polling = async {
        let mut attempt = 0;
        loop {
            let begun = Instant::now();
            let pause = match polls.poll().await {
                Ok(polled) => {
                    attempt = 0;
                    if polled == Polled::Nothing { PACE.saturating_sub(begun.elapsed()) } else { Duration::ZERO }
                }
                Err(error) => {
                    failed(shared, leaf, &error, attempt);
                    attempt += 1;
                    renewal::retry_after(attempt, telemetry::jitter(), BACK_OFF)
                }
            };
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        biased;
        _ = changed.wait_for(|now| superseded(leaf, now.as_deref())) => {}
        () = polling => {}
    }
}

fn superseded(leaf: &Leaf, now: Option<&Leaf>) -> bool {
    now.is_none_or(|now| now.identity.serial != leaf.identity.serial)
}

fn failed(shared: &Shared, leaf: &Leaf, error: &SyncError, attempt: u32) {
    tracing::warn!(error = error as &dyn std::error::Error, attempt, "sync failed");
    match error {
        SyncError::Channel(ChannelError::Denied { code, .. }) if code == Refusal::Revoked.code() => {
            shared.own_revoked(leaf, Refusal::Revoked);
            shared.rejected(leaf);
        }
        SyncError::Channel(error) if error.is_unauthorised() => shared.rejected(leaf),
        SyncError::Channel(_) => {}
        SyncError::Brief(error) => {
            shared.metrics.rejected();
            if matches!(error, GenerationError::Identity { .. }) {
                shared.rejected(leaf);
            }
        }
    }
}

/// The polls of one certificate, one at a time.
struct Polls<'a> {
    shared: &'a Shared,
    leaf: &'a Leaf,
    channel: Channel<'a>,
    /// When what was seen last interrupted a held poll.
    reported: Option<Instant>,
}

impl Polls<'_> {
    async fn poll(&mut self) -> Result<Polled, SyncError> {
        let Self { shared, leaf, channel, reported } = self;
        let news = interruption(shared, *reported);
        let mut sent = Sent { shared, request: request(shared, leaf), delivered: false };
        let SyncRequest { ask, ask_names, report, .. } = &sent.request;
        let prompt = !ask.is_empty() || !ask_names.is_empty() || !report.refusals.is_empty();
        let call = Call { path: "/v1/sync", bearer: None, deadline: DEADLINE, at_most: MAX_SYNC_RESPONSE };
        let answer = {
            let answer = channel.post::<SyncResponse>(&call, &sent.request);
            tokio::pin!(answer);
            // What asks or reports should be answered at once. Where it is held all the same it has at least arrived.
            let early = if prompt { tokio::time::timeout(ARRIVED, &mut answer).await.ok() } else { None };
            match early {
                Some(answer) => answer,
                None => {
                    sent.delivered = true;
                    tokio::select! {
                        biased;
                        answer = &mut answer => answer,
                        because = news => {
                            if because == Because::Events {
                                *reported = Some(Instant::now());
                            }
                            return Ok(Polled::Interrupted);
                        }
                    }
                }
            }
        };
        let answer = answer.inspect_err(|_| sent.delivered = false)?;
        sent.delivered = true;
        let applied = apply(shared, answer);
        // Only now: who waits for an answer must find in the table what came with it.
        shared.routes.answered(&sent.request.ask, &sent.request.ask_names);
        let polled = applied?;
        // What was answered at once for our sake says nothing about the other side's pace.
        Ok(if prompt { Polled::News } else { polled })
    }
}

/// A request under way: unless it was delivered, its report is taken back, also when the poll is dropped.
struct Sent<'a> {
    shared: &'a Shared,
    request: SyncRequest,
    delivered: bool,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        if !self.delivered {
            self.shared.refusals.put_back(std::mem::take(&mut self.request.report.refusals));
        }
    }
}

fn request(shared: &Shared, leaf: &Leaf) -> SyncRequest {
    let generation = shared.in_force();
    let open: usize = shared.registry.count().iter().sum();
    let contacts = shared.contacts.report(generation.as_ref().map(|generation| generation.brief()));
    SyncRequest {
        brief_version: VERSION,
        after: generation.map(|generation| generation.cursor().clone()),
        routes: shared.routes.cursor(),
        keep: shared.routes.keep(),
        pods: shared.routes.unknown(shared.registry.pods()),
        ask: shared.routes.ask(),
        ask_names: shared.routes.ask_names(),
        report: Report {
            refusals: shared.refusals.take(REPORTED),
            open: open as u64,
            leaf_not_after: leaf.identity.not_after.as_second(),
            leaf_serial: leaf.serial(),
            contacts,
        },
    }
}

/// Why a held poll is interrupted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Because {
    /// An address or a name is waited for.
    Address,
    /// Refusals were gathered, or what came of dealing with a partner changed.
    Events,
}

/// Ends when an address or a name is waited for, or when refusals and changes have been gathered; listens from the call on.
fn interruption(shared: &Shared, reported: Option<Instant>) -> impl Future<Output = Because> {
    let (mut wanted, mut refused) = (shared.routes.wanted(), shared.refusals.news());
    let mut met = shared.contacts.news();
    async move {
        let gathered = async {
            if shared.refusals.is_empty() && !shared.contacts.is_changed() {
                tokio::select! {
                    _ = refused.changed() => {}
                    _ = met.changed() => {}
                }
            }
            // The first one tells soon; a stream of them costs the controller one connection every few seconds.
            let next = reported.map_or_else(Instant::now, |reported| reported + EVERY);
            tokio::time::sleep_until(next.max(Instant::now() + GATHER)).await;
        };
        let asked = async {
            if shared.routes.ask().is_empty() && shared.routes.ask_names().is_empty() {
                let _ = wanted.changed().await;
            }
        };
        tokio::select! {
            () = gathered => Because::Events,
            () = asked => Because::Address,
        }
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
