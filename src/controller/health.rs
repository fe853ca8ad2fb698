//! `/live`, `/ready` and `/metrics` of the controller, and `/proxies` for `entente audit`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{Json, Router, http::StatusCode, routing::get};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{clock::Clock, proxies::Proxies};
use crate::{
    brief::{Direction, RefusedConnections},
    plan::World,
    telemetry,
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Result {
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reported {
    direction: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Expiry {
    domain: String,
    what: &'static str,
}

/// What is counted.
pub(super) struct Metrics {
    registry: Registry,
    certificates: Family<Result, Counter>,
    refusals: Family<Reported, Counter>,
    proxies: Gauge,
    leader: Gauge,
    rounds: Counter,
    expiry: Family<Expiry, Gauge>,
}

impl Metrics {
    pub(super) fn new(clock: &Clock) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("entente_controller"),
            certificates: Family::default(),
            refusals: Family::default(),
            proxies: Gauge::default(),
            leader: Gauge::default(),
            rounds: Counter::default(),
            expiry: Family::default(),
        };
        let Self { registry, certificates, refusals, proxies, leader, rounds, expiry } = &mut metrics;
        registry.register("certificate_requests", "Certificate requests by result", certificates.clone());
        registry.register("reported_refusals", "Connections that sidecars refused, as reported", refusals.clone());
        registry.register("proxies_connected", "Sidecars that hold a poll at any replica", proxies.clone());
        registry.register("leader", "1 on the replica that leads", leader.clone());
        registry.register("rounds", "Rounds of the loop", rounds.clone());
        let offset = "Seconds that our clock is ahead of the API server's (behind: negative), at least";
        registry.register("clock_offset_seconds", offset, clock.gauge());
        registry.register("not_after_seconds", "End of validity of our certificates, Unix seconds", expiry.clone());
        metrics
    }

    pub(super) fn issued(&self, code: &str) {
        self.certificates.get_or_create(&Result { code: code.to_owned() }).inc();
    }

    pub(super) fn reported(&self, refused: &RefusedConnections) {
        let direction = match refused.direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        };
        self.refusals.get_or_create(&Reported { direction, reason: refused.reason.code() }).inc_by(refused.count);
    }

    pub(super) fn round(&self, world: &World, leads: bool) {
        let connected = world.proxies.values().filter(|proxy| proxy.connected).count();
        self.proxies.set(i64::try_from(connected).unwrap_or(i64::MAX));
        self.leader.set(i64::from(leads));
        self.rounds.inc();
        for (domain, seen) in &world.authorities {
            if let crate::plan::AuthoritySeen::Sound(facts) = seen {
                let active = facts.active();
                let ends = [
                    ("root", active.map(|one| one.root.not_after.as_second())),
                    ("issuer", active.map(|one| one.issuer.not_after.as_second())),
                    ("crl", Some(facts.crl.next_update)),
                ];
                for (what, end) in ends {
                    let Some(end) = end else { continue };
                    self.expiry.get_or_create(&Expiry { domain: domain.clone(), what }).set(end);
                }
            }
        }
    }

    fn render(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// The endpoints; ready once every table has its first list and the loop has looked at it.
pub(super) fn router(metrics: Arc<Metrics>, ready: Arc<AtomicBool>, proxies: Arc<Proxies>) -> Router {
    let is_ready = move || {
        let status = if ready.load(Ordering::Acquire) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        async move { status }
    };
    let known = Arc::clone(&proxies);
    let in_use = move || async move { Json(known.in_use(telemetry::now())) };
    let state = move || {
        let seen = proxies.seen(telemetry::now());
        async move { format!("{} sidecars known\n", seen.len()) }
    };
    Router::new()
        .route("/live", get(|| async { StatusCode::OK }))
        .route("/ready", get(is_ready))
        .route("/metrics", get(move || async move { metrics.render() }))
        // Public facts: every peer of a sidecar sees its certificate.
        .route("/proxies", get(in_use))
        .route("/", get(state))
}
