//! One record per connection, at its end, and the counts of refusals that the next sync reports.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::watch;

use super::{
    metrics::{Metrics, word},
    named::Called,
};
use crate::{
    brief::{Direction, MAX_REPORTED_REFUSALS, RefusedConnections},
    identity::{DnsName, Peer, SpiffeId},
    refusal::{AlertDetail, Refusal},
};

/// Names of one certificate that a record holds.
const MAX_NAMES: usize = 8;

/// What a relay moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// From the application to the network.
    pub(super) sent: u64,
    /// From the network to the application.
    pub(super) received: u64,
}

/// What is known of one connection; grows while it is judged, is written at its end.
#[derive(Debug)]
pub(super) struct Record {
    direction: Direction,
    started: Instant,
    /// Who: the verified identity, else the address.
    pub(super) peer: String,
    /// The names in a partner's certificate.
    names: Option<String>,
    /// Who else was proven, where that is not the peer: an impostor.
    pub(super) presented: Option<String>,
    /// The address where we were dialled or dial.
    pub(super) destination: Option<SocketAddr>,
    /// What the wire carries.
    pub(super) mode: &'static str,
    /// The partner that was called.
    pub(super) partner: Option<Called>,
    /// What the relay moved.
    pub(super) moved: Moved,
    /// Whether it was open and a rule ended it.
    pub(super) cut: bool,
}

impl Record {
    /// Begins the record of a connection from or to `peer`.
    pub(super) fn begin(direction: Direction, peer: SocketAddr) -> Self {
        let peer = peer.ip().to_canonical().to_string();
        Self {
            direction,
            started: Instant::now(),
            peer,
            names: None,
            presented: None,
            destination: None,
            mode: "none",
            partner: None,
            moved: Moved::default(),
            cut: false,
        }
    }

    /// Says who was proven: a server by its identity, a partner by its name, with the names in its certificate.
    pub(super) fn proven(&mut self, peer: &Peer) {
        self.peer = peer.to_string();
        self.names = match peer {
            Peer::Server(_) => None,
            Peer::Partner(partner) => {
                let names: Vec<&str> = partner.names().take(MAX_NAMES).collect();
                Some(names.join(" "))
            }
        };
    }

    /// Says whom a resolver misled about: the server, else its name; and where to.
    pub(super) fn misled(&mut self, name: Option<&DnsName>, server: Option<&SpiffeId>, to: IpAddr) {
        let name = name.map(ToString::to_string);
        self.peer = server.map(ToString::to_string).or_else(|| name.clone()).unwrap_or_else(|| to.to_string());
        self.names = name;
        self.presented = Some(to.to_string());
    }

    /// Seconds since the connection was accepted.
    pub(super) fn age(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Writes the record and counts it.
    pub(super) fn end(self, outcome: Result<(), Refusal>, metrics: &Metrics, refusals: &Refusals) {
        let Self { direction, started, peer, names, presented, destination, mode, partner: _, moved, cut } = self;
        metrics.moved(direction, moved.sent, moved.received);
        let destination = destination.map(|address| address.to_string()).unwrap_or_default();
        let port = destination.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0);
        let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let direction_word = word(direction);
        let Err(refusal) = outcome else {
            tracing::info!(
                target: "access", direction = direction_word, %peer, names, %destination, mode, sent = moved.sent,
                received = moved.received, milliseconds, reason = "ok", "connection ended"
            );
            return;
        };
        if cut {
            metrics.cut(direction, refusal);
        }
        metrics.refused(direction, refusal);
        let (reason, detail) = (refusal.code(), refusal.detail());
        if refusal.is_routine() {
            tracing::info!(
                target: "access", direction = direction_word, %peer, names, %destination, mode, sent = moved.sent,
                received = moved.received, milliseconds, reason, detail, "connection ended"
            );
            return;
        }
        // The subscriber wants constant messages, so each of the three has its own line.
        if cut {
            tracing::warn!(
                target: "access", direction = direction_word, %peer, names, presented, %destination, mode, sent = moved.sent,
                received = moved.received, milliseconds, reason, detail, "connection cut"
            );
        } else if matches!(refusal, Refusal::PeerRefused(AlertDetail::Revoked | AlertDetail::Expired)) {
            tracing::warn!(
                target: "access", direction = direction_word, %peer, names, presented, %destination, mode, sent = moved.sent,
                received = moved.received, milliseconds, reason, detail, "the peer refused our own certificate"
            );
        } else {
            tracing::warn!(
                target: "access", direction = direction_word, %peer, names, presented, %destination, mode, sent = moved.sent,
                received = moved.received, milliseconds, reason, detail, "connection refused"
            );
        }
        refusals.count(direction, refusal, peer, port, cut);
    }
}

type Kind = (Direction, Refusal, String, u16, bool);

/// Refusals since the last report that was answered, equal ones counted together.
#[derive(Debug)]
pub(super) struct Refusals {
    counts: Mutex<BTreeMap<Kind, u64>>,
    news: watch::Sender<()>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { counts: Mutex::default(), news: watch::Sender::new(()) }
    }
}

impl Refusals {
    fn count(&self, direction: Direction, reason: Refusal, peer: String, port: u16, cut: bool) {
        self.add((direction, reason, peer, port, cut), 1);
        self.news.send_replace(());
    }

    fn add(&self, kind: Kind, count: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let full = counts.len() >= MAX_REPORTED_REFUSALS - 1 && !counts.contains_key(&kind);
        // Beyond the bound the peers are lumped together; the last kind takes them all.
        let kind = if full { (kind.0, kind.1, "others".to_owned(), 0, kind.4) } else { kind };
        if counts.len() < MAX_REPORTED_REFUSALS || counts.contains_key(&kind) {
            *counts.entry(kind).or_default() += count;
        }
    }

    /// Takes what is to be reported, at most so many kinds; the others wait for the next report.
    pub(super) fn take(&self, at_most: usize) -> Vec<RefusedConnections> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = |((direction, reason, peer, port, cut), count)| RefusedConnections {
            direction,
            reason,
            peer,
            port,
            cut,
            count,
        };
        std::iter::from_fn(|| counts.pop_first()).take(at_most).map(entry).collect()
    }

    /// Takes back a report that nobody answered.
    pub(super) fn put_back(&self, refusals: Vec<RefusedConnections>) {
        for RefusedConnections { direction, reason, peer, port, cut, count } in refusals {
            self.add((direction, reason, peer, port, cut), count);
        }
    }

    /// A listener for new refusals.
    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Whether there is nothing to report.
    pub(super) fn is_empty(&self) -> bool {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{DnsName, PartnerIdentity};

    #[test]
    fn equal_refusals_are_counted_and_the_report_is_bounded() {
        let refusals = Refusals::default();
        for index in 0..2_000 {
            refusals.count(Direction::Inbound, Refusal::NotTls, format!("10.0.0.{index}"), 5061, false);
            refusals.count(Direction::Inbound, Refusal::NotTls, "10.0.0.1".into(), 5061, false);
        }
        let report = refusals.take(usize::MAX);
        assert!(report.len() <= MAX_REPORTED_REFUSALS);
        assert_eq!(report.iter().map(|entry| entry.count).sum::<u64>(), 4_000);
        assert!(refusals.is_empty());
    }

    #[test]
    fn an_unanswered_report_is_taken_back_and_added_up() {
        let refusals = Refusals::default();
        refusals.count(Direction::Outbound, Refusal::DestinationNotDeclared, "10.0.0.1".into(), 80, false);
        let report = refusals.take(usize::MAX);
        refusals.count(Direction::Outbound, Refusal::DestinationNotDeclared, "10.0.0.1".into(), 80, false);
        refusals.put_back(report);
        assert_eq!(refusals.take(1)[0].count, 2);
    }

    #[test]
    fn a_partner_is_recorded_by_its_name_beside_the_names_that_it_proved() {
        let proven = |names: &[String]| {
            let mut record = Record::begin(Direction::Inbound, "10.0.0.1:40000".parse().unwrap());
            let validity = jiff::Timestamp::UNIX_EPOCH;
            record.proven(&Peer::Partner(PartnerIdentity {
                partner: "fabrikam".to_owned(),
                dns_names: names.iter().map(|name| DnsName::parse(name).unwrap()).collect(),
                serial: vec![1],
                issuer: None,
                spiffe_id: None,
                through: vec![],
                not_before: validity,
                not_after: validity,
            }));
            assert_eq!(record.peer, "partner/fabrikam");
            record.names.unwrap()
        };
        let two = ["fabrikam.example", "sip.fabrikam.example"].map(str::to_owned);
        assert_eq!(proven(&two), "fabrikam.example sip.fabrikam.example");
        let many: Vec<_> = (0..100).map(|number| format!("n{number}.fabrikam.example")).collect();
        assert_eq!(proven(&many).split(' ').count(), MAX_NAMES);
    }

    #[test]
    fn what_was_cut_is_told_apart_from_what_was_refused() {
        let refusals = Refusals::default();
        refusals.count(Direction::Inbound, Refusal::Revoked, "a".into(), 80, false);
        refusals.count(Direction::Inbound, Refusal::Revoked, "a".into(), 80, true);
        let report = refusals.take(usize::MAX);
        assert_eq!(report.iter().map(|entry| (entry.cut, entry.count)).collect::<Vec<_>>(), [(false, 1), (true, 1)]);
        refusals.put_back(report.clone());
        assert_eq!(refusals.take(usize::MAX), report);
    }
}
