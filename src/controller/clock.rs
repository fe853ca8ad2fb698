//! Whether our own clock is right: every answer of the API server says what time it is there. By a clock that is wrong
//! nothing is signed, nothing is planned, and nobody leads.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderMap, Response, header::DATE};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp, fmt::rfc2822::DateTimeParser};
use kube::{
    Client, Config,
    client::{ClientBuilder, DynBody},
};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tower::{BoxError, util::MapFutureLayer};
use tracing::{debug, info, warn};

use super::apply::within;
use crate::telemetry;

/// A clock may be so far away from the API server's.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(60);
/// An exchange that took longer does not show that a clock is right.
const SLOW: SignedDuration = SignedDuration::from_secs(10);

/// What an answer with the time `date` says of our clock: how far it is ahead of the API server's (negative: behind),
/// at least. `None` = nothing, since the exchange took too long: a server that hangs makes no sound clock suspect, and
/// no wrong one sound.
fn offset(sent: Timestamp, answered: Timestamp, date: Timestamp) -> Option<SignedDuration> {
    // Where our clock was set back meanwhile, what it said before counts no more.
    let sent = sent.min(answered);
    let found = if date < sent { sent.duration_since(date) } else { date.min(answered).duration_since(date) };
    (found.abs() > TOLERANCE || answered.duration_since(sent) <= SLOW).then_some(found)
}

/// Our clock is too far away from the API server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this controller's clock is {} s {} the API server's, so nothing is signed: set the time of the controller's node \
     right (NTP), or that of the API server's",
    .0.as_secs().unsigned_abs(),
    if .0.is_negative() { "behind" } else { "ahead of" }
)]
pub(super) struct Suspect(SignedDuration);

/// What the API server last said of our clock.
#[derive(Clone, Debug)]
pub(super) struct Clock(Arc<Known>);

#[derive(Debug)]
struct Known {
    suspect: watch::Sender<Option<Suspect>>,
    heard: watch::Sender<()>,
    gauge: Gauge,
}

impl Clock {
    /// A clock that nobody has complained of.
    pub(super) fn new() -> Self {
        let (suspect, heard) = (watch::Sender::new(None), watch::Sender::new(()));
        Self(Arc::new(Known { suspect, heard, gauge: Gauge::default() }))
    }

    /// A client whose every answer tells this clock the time.
    pub(super) fn client(&self, config: Config) -> kube::Result<Client> {
        let clock = self.clone();
        let listen =
            MapFutureLayer::new(move |answer: BoxFuture<'static, Result<Response<Box<DynBody>>, BoxError>>| {
                let (clock, sent) = (clock.clone(), telemetry::now());
                async move {
                    let answer = answer.await?;
                    clock.heard(sent, telemetry::now(), answer.headers());
                    Ok::<_, BoxError>(answer)
                }
            });
        Ok(ClientBuilder::try_from(config)?.with_layer(&listen).build())
    }

    /// Asks the API server where nothing is heard of it for so long; for the replica's whole life.
    pub(super) async fn keep(self, client: Client, quiet: Duration) {
        let mut heard = self.0.heard.subscribe();
        loop {
            if tokio::time::timeout(quiet, heard.changed()).await.is_err() {
                self.ask(&client).await;
            }
        }
    }

    /// Asks the API server for the time now: what follows does not rest on what it said before a step.
    pub(super) async fn ask(&self, client: &Client) {
        // Whatever it answers: its time comes with it.
        if let Err(error) = within(client.apiserver_version()).await {
            debug!(%error, "the API server does not tell its time");
        }
    }

    fn heard(&self, sent: Timestamp, answered: Timestamp, headers: &HeaderMap) {
        self.0.heard.send_replace(());
        let date = headers.get(DATE).and_then(|date| DateTimeParser::new().parse_timestamp(date.as_bytes()).ok());
        let Some(found) = date.and_then(|date| offset(sent, answered, date)) else { return };
        self.0.gauge.set(found.as_secs());
        let suspect = Some(Suspect(found)).filter(|_| found.abs() > TOLERANCE);
        let before = self.0.suspect.send_replace(suspect);
        match (before, suspect) {
            (None, Some(suspect)) => warn!(offset_seconds = found.as_secs(), "{suspect}"),
            (Some(_), None) => info!(offset_seconds = found.as_secs(), "this controller's clock is right again"),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    /// Whether anything may be signed or decided by this clock.
    pub(super) fn check(&self) -> Result<(), Suspect> {
        self.0.suspect.borrow().map_or(Ok(()), Err)
    }

    /// The best that is known of the time: by the API server's clock while ours is suspect.
    pub(super) fn now(&self) -> Timestamp {
        let now = telemetry::now();
        self.0.suspect.borrow().and_then(|Suspect(ahead)| now.checked_sub(ahead).ok()).unwrap_or(now)
    }

    /// Waits until it is sound, or until it is not.
    pub(super) async fn becomes(&self, sound: bool) {
        // Its sender lives as long as we do.
        let _ = self.0.suspect.subscribe().wait_for(|suspect| suspect.is_none() == sound).await;
    }

    /// The gauge of its offset.
    pub(super) fn gauge(&self) -> Gauge {
        self.0.gauge.clone()
    }
}

#[cfg(test)]
mod tests;
