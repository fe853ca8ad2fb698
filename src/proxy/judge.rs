//! Who may talk with us, by the chain that it shows: the one judgement of handshakes and of every later look.

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;

use crate::{
    brief::Brief,
    identity::SpiffeId,
    pki::{
        revocation::View,
        verify::{self, Anchors, Role, Verdict},
    },
    refusal::Refusal,
};

/// A refusal, and who was proven before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The one reason.
    pub(super) reason: Refusal,
    /// Whom the verified certificate names; `None` where none was verified.
    pub(super) proven: Option<SpiffeId>,
}

impl From<Refusal> for Refused {
    fn from(reason: Refusal) -> Self {
        Self { reason, proven: None }
    }
}

/// What judges peers: the brief, and anchors and revocations of its one scope.
#[derive(Debug)]
pub(super) struct Judge {
    /// The brief in force.
    pub(super) brief: Brief,
    /// Who may vouch for peers.
    pub(super) anchors: Anchors,
    /// What they have taken back.
    pub(super) view: View,
}

impl Judge {
    /// Judges whoever dialled `port`: chain, names, revocation, topology, in this order.
    pub(super) fn caller(&self, chain: &[CertificateDer<'_>], port: u16, now: Timestamp) -> Result<Verdict, Refused> {
        let verdict = verify::verdict(chain, Role::Client, &self.anchors, now)?;
        let admitted = self.view.judge(&verdict.identity, now).and_then(|()| self.brief.admit(&verdict.identity, port));
        match admitted {
            Ok(_) => Ok(verdict),
            Err(reason) => Err(Refused { reason, proven: Some(verdict.identity.id) }),
        }
    }

    /// Judges whoever answered where `expected` was dialled: chain, names, revocation. Topology chose `expected`.
    pub(super) fn callee(
        &self,
        chain: &[CertificateDer<'_>],
        expected: &SpiffeId,
        now: Timestamp,
    ) -> Result<Verdict, Refused> {
        let verdict = verify::verdict(chain, Role::Server, &self.anchors, now)?;
        let expected = verify::expect_server(&verdict.identity, expected);
        match expected.and_then(|()| self.view.judge(&verdict.identity, now)) {
            Ok(()) => Ok(verdict),
            Err(reason) => Err(Refused { reason, proven: Some(verdict.identity.id) }),
        }
    }
}
