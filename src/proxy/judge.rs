//! Who may talk with us, by the chain that it shows: the one judgement of handshakes and of every later look.

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;

use super::basis::Shown;
use crate::{
    brief::Brief,
    identity::{Peer, SpiffeId},
    pki::{
        revocation::View,
        verify::{self, Anchors, Partners, Proven, Role, Scopes},
    },
    refusal::Refusal,
};

/// A refusal, and who was proven before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The one reason.
    pub(super) reason: Refusal,
    /// Whom the verified certificate names; `None` where none was verified.
    pub(super) proven: Option<Box<Peer>>,
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
    /// The partners that may call.
    pub(super) partners: Partners,
}

impl Judge {
    /// Judges whoever dialled `port`: chain, names, revocation, topology, in this order.
    pub(super) fn caller(&self, chain: &[CertificateDer<'_>], port: u16, now: Timestamp) -> Result<Proven, Refused> {
        let proven = self.proves(chain, port, now)?;
        let current = match &proven.peer {
            Peer::Server(server) => self.view.judge(server, now),
            Peer::Partner(partner) => match self.partners.get(&partner.partner) {
                Some(scope) => scope.view().judge_partner(partner, now),
                None => Err(Refusal::NameOutOfScope),
            },
        };
        match current.and_then(|()| self.brief.admit(&proven.peer, port)) {
            Ok(_) => Ok(proven),
            Err(reason) => Err(Refused { reason, proven: Some(Box::new(proven.peer)) }),
        }
    }

    /// What is kept of the chain that `peer` showed: of partners alone.
    pub(super) fn shown(&self, peer: &Peer, chain: &[CertificateDer<'_>]) -> Option<Shown> {
        let Peer::Partner(partner) = peer else { return None };
        let chain = chain.iter().map(|one| one.clone().into_owned()).collect();
        Some(Shown { chain, scope: self.partners.get(&partner.partner)?.clone() })
    }

    /// Whom a caller's chain proves, in the one scope that `port` and its names choose.
    pub(super) fn proves(&self, chain: &[CertificateDer<'_>], port: u16, now: Timestamp) -> Result<Proven, Refusal> {
        let ours = self.brief.identity.trust_domain();
        let scopes = Scopes { ours, internal: &self.anchors, partners: &self.partners };
        scopes.caller(chain, &self.brief.port(port)?.allow, now)
    }

    /// Judges whoever answered where `expected` was dialled: chain, names, revocation. Topology chose `expected`.
    pub(super) fn callee(
        &self,
        chain: &[CertificateDer<'_>],
        expected: &SpiffeId,
        now: Timestamp,
    ) -> Result<Proven, Refused> {
        let verdict = verify::verdict(chain, Role::Server, &self.anchors, now)?;
        let expected = verify::expect_server(&verdict.identity, expected);
        match expected.and_then(|()| self.view.judge(&verdict.identity, now)) {
            Ok(()) => Ok(verdict.into()),
            Err(reason) => Err(Refused { reason, proven: Some(Box::new(Peer::Server(verdict.identity))) }),
        }
    }
}
