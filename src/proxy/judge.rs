//! Who may talk with us, by the chain that it shows: the one judgement of handshakes and of every later look.

use std::sync::Arc;

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;

use super::{
    basis::{Proof, Shown},
    chains::Chains,
};
use crate::{
    brief::Brief,
    identity::{DnsName, Peer, SpiffeId},
    pki::{
        revocation::View,
        verify::{self, Anchors, Chosen, Partner, Partners, Proven, Role, Scopes},
    },
    refusal::{HandshakeDetail, Refusal, ServerDetail},
};

/// A refusal, and who was proven before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The one reason.
    pub(super) reason: Refusal,
    /// Whom the verified certificate names; `None` where none was verified.
    pub(super) proven: Option<Arc<Peer>>,
}

impl From<Refusal> for Refused {
    fn from(reason: Refusal) -> Self {
        Self { reason, proven: None }
    }
}

/// What judges peers: the brief; anchors and revocations of our own trust domain; and partners, each in its own scope.
#[derive(Debug)]
pub(super) struct Judge {
    /// The brief in force.
    pub(super) brief: Brief,
    /// Who may vouch for servers of ours.
    pub(super) anchors: Anchors,
    /// What they have taken back.
    pub(super) view: View,
    /// The partners that may call, or be called.
    pub(super) partners: Partners,
    /// What the anchors vouched for already.
    pub(super) chains: Chains,
}

impl Judge {
    /// Judges whoever dialled `port`: chain, names, revocation, topology, in this order. `before` has a say when the
    /// names have chosen a partner's scope, and no signature has been looked at.
    pub(super) fn caller(
        &self,
        chain: &[CertificateDer<'_>],
        port: u16,
        now: Timestamp,
        before: impl FnOnce(&Partner) -> Result<(), Refusal>,
    ) -> Result<Proven, Refused> {
        let scopes = self.scopes();
        let chosen = scopes.choose(chain, &self.brief.port(port)?.allow)?;
        if let Chosen::Partner(partner) = chosen {
            before(partner)?;
        }
        let proven = self.verdict(chosen, chain, now)?;
        let current = match (&*proven.peer, chosen) {
            (Peer::Server(server), _) => self.view.judge(server, now),
            (Peer::Partner(partner), Chosen::Partner(scope)) => scope.view().judge_partner(partner, now),
            (Peer::Partner(_), Chosen::Internal) => Err(Refusal::NameOutOfScope),
        };
        match current.and_then(|()| self.brief.admit(&proven.peer, port)) {
            Ok(_) => Ok(proven),
            Err(reason) => Err(Refused { reason, proven: Some(proven.peer) }),
        }
    }

    /// Judges whoever showed a certificate where it need not: a server of ours, or nobody.
    pub(super) fn known(&self, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<Proven, Refused> {
        let proven = self.verdict(Chosen::Internal, chain, now)?;
        match proven.peer.server().map(|server| self.view.judge(server, now)) {
            Some(Ok(())) => Ok(proven),
            Some(Err(reason)) => Err(Refused { reason, proven: Some(proven.peer) }),
            None => Err(Refusal::NameOutOfScope.into()),
        }
    }

    /// Whether what a server of ours has proven of itself still lets it begin anew: its chain under the anchors of this
    /// same judge, and revocation as it is now.
    pub(super) fn stands(&self, proof: &Proof, now: Timestamp) -> Result<(), Refusal> {
        if now < proof.proven {
            return Err(Refusal::NotYetValid);
        }
        if proof.until < now {
            return Err(Refusal::Expired);
        }
        for peer in [&proof.original, &proof.latest] {
            self.view.judge(peer.server().ok_or(Refusal::NameOutOfScope)?, now)?;
        }
        Ok(())
    }

    /// What is kept of the chain that `peer` showed: of partners alone.
    pub(super) fn shown(&self, peer: &Peer, chain: &[CertificateDer<'_>], tls12: bool) -> Option<Shown> {
        let Peer::Partner(partner) = peer else { return None };
        let chain = chain.iter().map(|one| one.clone().into_owned()).collect();
        Some(Shown { chain, scope: self.partners.get(&partner.partner)?.clone(), tls12 })
    }

    /// Whom a caller's chain proves, in the one scope that `port` and its names choose.
    pub(super) fn proves(&self, chain: &[CertificateDer<'_>], port: u16, now: Timestamp) -> Result<Proven, Refusal> {
        self.verdict(self.scopes().choose(chain, &self.brief.port(port)?.allow)?, chain, now)
    }

    /// Whom a caller's chain proves in the scope that was chosen.
    fn verdict(&self, chosen: Chosen<'_>, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<Proven, Refusal> {
        let verify = || self.scopes().verdict(chosen, chain, now);
        match chosen {
            Chosen::Internal => self.chains.proven(chain, Role::Client, now, verify),
            Chosen::Partner(_) => verify(),
        }
    }

    fn scopes(&self) -> Scopes<'_> {
        let ours = self.brief.identity.trust_domain();
        Scopes { ours, internal: &self.anchors, partners: &self.partners }
    }

    /// Judges whoever answered where `expected` was dialled: chain, names, revocation. Topology chose `expected`.
    pub(super) fn callee(
        &self,
        chain: &[CertificateDer<'_>],
        expected: &SpiffeId,
        now: Timestamp,
    ) -> Result<Proven, Refused> {
        let verify = || verify::verdict(chain, Role::Server, &self.anchors, now).map(Proven::from);
        let proven = self.chains.proven(chain, Role::Server, now, verify)?;
        let server = proven.peer.server().ok_or(Refusal::NameOutOfScope)?;
        let expected = verify::expect_server(server, expected);
        match expected.and_then(|()| self.view.judge(server, now)) {
            Ok(()) => Ok(proven),
            Err(reason) => Err(Refused { reason, proven: Some(proven.peer) }),
        }
    }

    /// Judges whoever answered where the edge `host` of `partner` was dialled: chain, names, revocation.
    pub(super) fn edge(
        &self,
        chain: &[CertificateDer<'_>],
        partner: &str,
        host: &DnsName,
        now: Timestamp,
    ) -> Result<Proven, Refused> {
        let proven = self.proves_edge(chain, partner, host, now)?;
        let judged = match (&*proven.peer, self.partners.get(partner)) {
            (Peer::Partner(identity), Some(scope)) => scope.view().judge_partner(identity, now),
            (Peer::Partner(_) | Peer::Server(_), _) => Err(Refusal::NameOutOfScope),
        };
        match judged {
            Ok(()) => Ok(proven),
            Err(reason) => Err(Refused { reason, proven: Some(proven.peer) }),
        }
    }

    /// Whom the chain of an edge proves: `partner`, under the name `host`.
    pub(super) fn proves_edge(
        &self,
        chain: &[CertificateDer<'_>],
        partner: &str,
        host: &DnsName,
        now: Timestamp,
    ) -> Result<Proven, Refused> {
        let scope = self.partners.get(partner).ok_or(Refusal::DestinationNotDeclared)?;
        let proven = scope.callee(chain, now)?;
        match &*proven.peer {
            Peer::Partner(partner) if partner.dns_names.contains(host) => Ok(proven),
            Peer::Partner(_) | Peer::Server(_) => {
                let reason = Refusal::WrongServer(ServerDetail::DnsName);
                Err(Refused { reason, proven: Some(proven.peer) })
            }
        }
    }

    /// Whether TLS 1.2 is spoken with `partner`: with those that cannot do better.
    pub(super) fn may_speak_tls12(&self, partner: &str) -> Result<(), Refusal> {
        match self.brief.link(partner) {
            Some(link) if link.tls12 => Ok(()),
            _ => Err(Refusal::HandshakeFailed(HandshakeDetail::Version)),
        }
    }
}
