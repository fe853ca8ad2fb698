//! What Prometheus sees. Labels come from closed lists only.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::{
    brief::{Direction, Mode},
    refusal::Refusal,
};

/// Upper bounds of the handshake histogram, seconds.
const HANDSHAKE_BUCKETS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabels {
    direction: &'static str,
    mode: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    direction: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    direction: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BytesLabels {
    direction: &'static str,
    flow: &'static str,
}

type HandshakeFamily = Family<DirectionLabel, Histogram, fn() -> Histogram>;

/// The proxy's metrics.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    connections: Family<ModeLabels, Counter>,
    refusals: Family<ReasonLabels, Counter>,
    resumed: Family<DirectionLabel, Counter>,
    open: Family<DirectionLabel, Gauge>,
    bytes: Family<BytesLabels, Counter>,
    handshakes: HandshakeFamily,
    leaf_not_after: Gauge,
    brief_revision: Gauge<i64>,
    rejected: Counter,
    cut: Counter<u64, AtomicU64>,
    cut_by_reason: Family<ReasonLabels, Counter>,
    reproofs: Family<OutcomeLabels, Counter>,
    own_revoked: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let handshakes: fn() -> Histogram = || Histogram::new(HANDSHAKE_BUCKETS);
        let mut metrics = Self {
            registry: Registry::default(),
            connections: Family::default(),
            refusals: Family::default(),
            resumed: Family::default(),
            open: Family::default(),
            bytes: Family::default(),
            handshakes: Family::new_with_constructor(handshakes),
            leaf_not_after: Gauge::default(),
            brief_revision: Gauge::default(),
            rejected: Counter::default(),
            cut: Counter::default(),
            cut_by_reason: Family::default(),
            reproofs: Family::default(),
            own_revoked: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register("entente_connections", "Connections relayed", self.connections.clone());
        registry.register("entente_refusals", "Connections refused or ended by a rule", self.refusals.clone());
        registry.register("entente_resumed", "Connections relayed without a handshake", self.resumed.clone());
        registry.register("entente_open_connections", "Open connections", self.open.clone());
        registry.register("entente_bytes", "Payload bytes relayed", self.bytes.clone());
        registry.register("entente_handshake_seconds", "Accept to verdict", self.handshakes.clone());
        registry.register("entente_leaf_not_after_seconds", "End of our certificate", self.leaf_not_after.clone());
        registry.register("entente_brief_revision", "Revision of the brief in force", self.brief_revision.clone());
        registry.register("entente_briefs_rejected", "Briefs not put in force", self.rejected.clone());
        registry.register("entente_cut", "Open connections that a rule ended", self.cut.clone());
        registry.register("entente_cut_by_reason", "The same, by reason", self.cut_by_reason.clone());
        registry.register("entente_reproofs", "Pods that proved themselves anew, or failed to", self.reproofs.clone());
        registry.register("entente_own_revoked", "Whether our certificate is revoked", self.own_revoked.clone());
    }

    /// A connection passed its checks.
    pub(super) fn connected(&self, direction: Direction, mode: &'static str) {
        self.connections.get_or_create(&ModeLabels { direction: word(direction), mode }).inc();
    }

    /// A connection came by the handshake of another.
    pub(super) fn resumed(&self, direction: Direction) {
        self.resumed.get_or_create(&DirectionLabel { direction: word(direction) }).inc();
    }

    /// A connection was refused or ended.
    pub(super) fn refused(&self, direction: Direction, reason: Refusal) {
        self.refusals.get_or_create(&ReasonLabels { direction: word(direction), reason: reason.code() }).inc();
    }

    /// An open connection was ended by a rule.
    pub(super) fn cut(&self, direction: Direction, reason: Refusal) {
        self.cut.inc();
        self.cut_by_reason.get_or_create(&ReasonLabels { direction: word(direction), reason: reason.code() }).inc();
    }

    /// A pod proved itself anew (inbound), or we did to one (outbound); or it failed.
    pub(super) fn reproof(&self, direction: Direction, proved: bool) {
        let outcome = if proved { "reproved" } else { "failed" };
        self.reproofs.get_or_create(&OutcomeLabels { direction: word(direction), outcome }).inc();
    }

    /// Whether our own certificate was taken back.
    pub(super) fn own_revoked(&self, revoked: bool) {
        self.own_revoked.set(i64::from(revoked));
    }

    /// A relay ended.
    pub(super) fn moved(&self, direction: Direction, sent: u64, received: u64) {
        let direction = word(direction);
        self.bytes.get_or_create(&BytesLabels { direction, flow: "sent" }).inc_by(sent);
        self.bytes.get_or_create(&BytesLabels { direction, flow: "received" }).inc_by(received);
    }

    /// A handshake succeeded.
    pub(super) fn handshake(&self, direction: Direction, seconds: f64) {
        self.handshakes.get_or_create(&DirectionLabel { direction: word(direction) }).observe(seconds);
    }

    /// Our certificate's end, Unix seconds.
    pub(super) fn leaf(&self, not_after: i64) {
        self.leaf_not_after.set(not_after);
    }

    /// A brief came in force.
    pub(super) fn brief(&self, revision: u64) {
        self.brief_revision.set(i64::try_from(revision).unwrap_or(i64::MAX));
    }

    /// A brief was not put in force.
    pub(super) fn rejected(&self) {
        self.rejected.inc();
    }

    /// The text that a scrape reads.
    pub(super) fn render(&self, [inbound, outbound]: [usize; 2]) -> String {
        let open = |direction, count: usize| {
            let label = DirectionLabel { direction: word(direction) };
            self.open.get_or_create(&label).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        open(Direction::Inbound, inbound);
        open(Direction::Outbound, outbound);
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// The label of a direction.
pub(super) const fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    }
}

/// The label of a port's mode.
pub(super) const fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::MutualTls => "MutualTLS",
        Mode::ServerTls => "ServerTLS",
        Mode::Plaintext => "Plaintext",
    }
}
