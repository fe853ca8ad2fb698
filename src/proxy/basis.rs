//! What an open connection rests on, and whether it still holds.

use std::{net::SocketAddr, sync::Arc};

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;

use super::{dns::is_virtual, judge::Judge, routes::Table};
use crate::{
    brief::{Direction, Mode, Named},
    identity::{DnsName, PartnerIdentity, Peer, SpiffeId},
    pki::verify::{Partner, Proven},
    refusal::{Refusal, ServerDetail},
};

/// What an open connection rests on.
#[derive(Clone, Debug)]
pub(super) enum Basis {
    /// A verified caller of one of our `MutualTls` ports.
    Caller {
        /// Who it is.
        proof: Proof,
        /// The port it dialled.
        port: u16,
        /// Where the application listens for it alone, where it was delivered there.
        own_port: Option<u16>,
        /// Of a partner: what it showed, and to whom.
        shown: Option<Shown>,
    },
    /// Anybody, on a port that asks for no identity.
    Anybody {
        /// The port dialled.
        port: u16,
        /// The port's mode then.
        mode: Mode,
        /// Who it is, where it said so all the same.
        known: Option<Proof>,
    },
    /// A declared server that our application dialled.
    Server {
        /// Where.
        address: SocketAddr,
        /// Who answered, or is declared to.
        server: SpiffeId,
        /// The port's mode then.
        mode: Mode,
        /// UID of the pod whose own address that was then; `None` = a Service's.
        pod: Option<String>,
        /// What it proved; only `MutualTls` asks for it.
        proof: Option<Proof>,
    },
    /// An edge of a partner that our application dialled by its name.
    Edge {
        /// The partner.
        partner: String,
        /// The edge's name.
        host: DnsName,
        /// Its port.
        port: u16,
        /// Who it is.
        proof: Proof,
        /// What it showed, and to whom.
        shown: Shown,
    },
    /// A host that our application dialled by its name, and may call as it is.
    Host {
        /// The name.
        host: DnsName,
        /// Where that was.
        address: SocketAddr,
    },
    /// An undeclared destination that our application may call as it is.
    Egress {
        /// Where.
        address: SocketAddr,
    },
}

/// The chain of a partner, kept because its scope may change under an open connection: our own anchors move by a
/// rotation that waits for everybody, a partner's change when its owner says so.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    /// Leaf first.
    pub(super) chain: Arc<[CertificateDer<'static>]>,
    /// The scope that vouched for it.
    pub(super) scope: Arc<Partner>,
    /// Whether it came by TLS 1.2.
    pub(super) tls12: bool,
}

/// What the peer of a connection has proven of itself, and until when that counts.
#[derive(Clone, Debug)]
pub(super) struct Proof {
    /// At the handshake. As long as the connection lives this must not be taken back.
    pub(super) original: Arc<Peer>,
    /// Last: the same identity and pod, with a later certificate where it proved itself anew.
    pub(super) latest: Arc<Peer>,
    /// When that was, by the wall clock.
    pub(super) proven: Timestamp,
    /// End of what it showed, chain and anchor included.
    pub(super) until: Timestamp,
    /// End of what we showed it.
    pub(super) ours_until: Timestamp,
}

impl Proof {
    /// What a handshake at `now` proved, in which we showed what ends at `ours_until`.
    pub(super) fn new(proven: Proven, ours_until: Timestamp, now: Timestamp) -> Self {
        let original = proven.peer;
        Self { latest: original.clone(), original, proven: now, until: proven.valid_until, ours_until }
    }

    /// Whether `other` speaks of the same pod of the same server. Software without a pod has nothing to compare.
    pub(super) fn is_same_pod(&self, other: &Self) -> bool {
        let (Peer::Server(own), Peer::Server(other)) = (&*self.original, &*other.original) else { return false };
        own.pod_uid.is_some() && own.pod_uid == other.pod_uid && own.id == other.id
    }

    /// Takes over a newer proof of the same pod. It never shortens what was shown before.
    pub(super) fn renew(&mut self, newer: &Self) {
        if newer.until > self.until {
            self.latest = newer.latest.clone();
            self.until = newer.until;
        }
        self.ours_until = self.ours_until.max(newer.ours_until);
        self.proven = newer.proven;
    }

    /// The nearer of both ends' deadlines.
    pub(super) fn deadline(&self) -> Timestamp {
        self.until.min(self.ours_until)
    }
}

impl Basis {
    /// Which side of the proxy it arrived at.
    pub(super) const fn direction(&self) -> Direction {
        match self {
            Self::Caller { .. } | Self::Anybody { .. } => Direction::Inbound,
            Self::Server { .. } | Self::Edge { .. } | Self::Host { .. } | Self::Egress { .. } => Direction::Outbound,
        }
    }

    /// What the peer has proven, where it had to.
    pub(super) const fn proof(&self) -> Option<&Proof> {
        match self {
            Self::Caller { proof, .. } | Self::Edge { proof, .. } => Some(proof),
            Self::Server { proof, .. } | Self::Anybody { known: proof, .. } => proof.as_ref(),
            Self::Host { .. } | Self::Egress { .. } => None,
        }
    }

    /// The same, to be renewed.
    pub(super) const fn proof_mut(&mut self) -> Option<&mut Proof> {
        match self {
            Self::Caller { proof, .. } | Self::Edge { proof, .. } => Some(proof),
            Self::Server { proof, .. } | Self::Anybody { known: proof, .. } => proof.as_mut(),
            Self::Host { .. } | Self::Egress { .. } => None,
        }
    }
}

/// Whether `basis` still holds by `judge` and `routes`: our own standing, revocation, topology.
///
/// An address that left the table is no reason to cut: pods end gracefully, and the callee's own proxy cuts where
/// trust was withdrawn.
pub(super) fn still_admitted(basis: &Basis, judge: &Judge, routes: &Table, now: Timestamp) -> Result<(), Refusal> {
    judge.brief.stands()?;
    if let Some(proof) = basis.proof() {
        not_taken_back(proof, judge, now)?;
    }
    match basis {
        Basis::Caller { proof, port, own_port, shown } => {
            if let Peer::Partner(partner) = &*proof.original {
                still_proven(partner, shown.as_ref(), judge, |chain| Ok(judge.proves(chain, *port, now)?.peer))?;
            }
            let admission = judge.brief.admit(&proof.original, *port)?;
            // The application knows by its local port who calls: nobody stays at one that is not its own any more.
            let moved = own_port.is_some() && admission.own_port != *own_port;
            if admission.port.mode == Mode::MutualTls && !moved { Ok(()) } else { Err(Refusal::PortNotAllowed) }
        }
        Basis::Anybody { port, mode, known: _ } => {
            if judge.brief.port(*port)?.mode == *mode {
                Ok(())
            } else {
                Err(Refusal::PortNotAllowed)
            }
        }
        Basis::Server { address, server, mode, .. } => match routes.at(address.ip()) {
            None => Ok(()),
            Some(route) if route.server != *server => Err(Refusal::WrongServer(ServerDetail::Uri)),
            Some(route) if route.ports.get(&address.port()) != Some(mode) => Err(Refusal::PortNotAllowed),
            Some(_) => Ok(()),
        },
        Basis::Edge { partner, host, port, proof, shown } => {
            match judge.brief.named(host, *port)? {
                Named::Edge(link) if link.name == *partner => {}
                Named::Edge(_) | Named::Host => return Err(Refusal::DestinationNotDeclared),
            }
            let Peer::Partner(identity) = &*proof.original else { return Err(Refusal::NameOutOfScope) };
            still_proven(identity, Some(shown), judge, |chain| {
                let judged = judge.proves_edge(chain, partner, host, now);
                judged.map(|proven| proven.peer).map_err(|refused| refused.reason)
            })
        }
        Basis::Host { host, address } => match judge.brief.named(host, address.port()) {
            Ok(Named::Host) => Ok(()),
            // What may be called anyhow needs no name.
            Err(_) if judge.brief.may_leave(address.ip(), address.port()) => Ok(()),
            Ok(Named::Edge(_)) => Err(Refusal::DestinationNotDeclared),
            Err(refusal) => Err(refusal),
        },
        Basis::Egress { address } => {
            // Behind an address of the guard's own is a name, and nothing on the network.
            if !is_virtual(address.ip()) && judge.brief.may_leave(address.ip(), address.port()) {
                Ok(())
            } else {
                Err(Refusal::DestinationNotDeclared)
            }
        }
    }
}

fn not_taken_back(proof: &Proof, judge: &Judge, now: Timestamp) -> Result<(), Refusal> {
    // A partner's list is looked at in its own scope.
    let (Peer::Server(original), Peer::Server(latest)) = (&*proof.original, &*proof.latest) else { return Ok(()) };
    judge.view.taken_back(original)?;
    if !Arc::ptr_eq(&proof.original, &proof.latest) {
        judge.view.taken_back(latest)?;
    }
    // An issuer goes when nothing that it signed is valid any more; a connection that is kept may outlive that.
    if now <= latest.not_after { judge.view.issuer_is_current(latest) } else { Ok(()) }
}

/// Whether `partner`'s scope, as it is now, still vouches for what was shown. Without a change there is nothing to
/// verify anew: the end of its certificate is `Registry::expire`'s business.
fn still_proven(
    partner: &PartnerIdentity,
    shown: Option<&Shown>,
    judge: &Judge,
    again: impl FnOnce(&[CertificateDer<'_>]) -> Result<Arc<Peer>, Refusal>,
) -> Result<(), Refusal> {
    let scope = judge.partners.get(&partner.partner).ok_or(Refusal::NameOutOfScope)?;
    let shown = shown.ok_or(Refusal::NameOutOfScope)?;
    if !Arc::ptr_eq(scope, &shown.scope) {
        match &*again(&shown.chain)? {
            Peer::Partner(now) if now.partner == partner.partner => {}
            // Its names are another's now.
            Peer::Partner(_) | Peer::Server(_) => return Err(Refusal::NameOutOfScope),
        }
    }
    scope.view().partner_taken_back(partner)?;
    if shown.tls12 { judge.may_speak_tls12(&partner.partner) } else { Ok(()) }
}
