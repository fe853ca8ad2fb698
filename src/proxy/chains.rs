//! Chains that were proven under one judge already: a peer that calls again shows the same one, and the roots still
//! vouch for it as long as it is in date. What may change in between (revocation, topology) is not kept here.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use crate::{
    pki::verify::{Proven, Role},
    refusal::Refusal,
};

/// Chains that are remembered.
const MOST: usize = 1024;

/// What is remembered. The roots must stay the same as long as it lives.
#[derive(Debug, Default)]
pub(super) struct Chains(Mutex<HashMap<[u8; 32], Known>>);

#[derive(Debug)]
struct Known {
    proven: Proven,
    /// Whoever sets the clock back is not told what was true later.
    since: Timestamp,
}

impl Chains {
    /// Whom `chain` proves in `role`, by what is remembered or else by `verify`.
    pub(super) fn proven(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: Timestamp,
        verify: impl FnOnce() -> Result<Proven, Refusal>,
    ) -> Result<Proven, Refusal> {
        let digest = digest(chain, role);
        let known = |known: &&Known| known.since <= now && now <= known.proven.valid_until;
        if let Some(known) = self.lock().get(&digest).filter(known) {
            return Ok(known.proven.clone());
        }
        // Not under the lock: others need not wait for signatures that are none of theirs.
        let proven = verify()?;
        let mut all = self.lock();
        if all.len() >= MOST
            && let Some(any) = all.keys().next().copied()
        {
            all.remove(&any);
        }
        all.insert(digest, Known { proven: proven.clone(), since: now });
        Ok(proven)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of the whole chain: a path is found through all that was shown.
fn digest(chain: &[CertificateDer<'_>], role: Role) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update([role as u8]);
    for certificate in chain {
        hash.update(certificate.len().to_be_bytes());
        hash.update(certificate);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::Arc};

    use super::*;
    use crate::{
        identity::{Identity, Peer, SpiffeId},
        refusal::RootDetail,
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn proven() -> Proven {
        let identity = Identity {
            id: SpiffeId::parse("spiffe://contoso.example/ns/shop/server/web").unwrap(),
            pod_uid: None,
            dns_names: std::collections::BTreeSet::new(),
            serial: vec![1],
            issuer: None,
            not_before: at(0),
            not_after: at(100),
        };
        Proven { peer: Arc::new(Peer::Server(identity)), valid_until: at(100) }
    }

    /// How often was verified, when `chains` was asked for each of these chains, roles and seconds.
    fn verified(chains: &Chains, asked: &[(&[&[u8]], Role, i64)]) -> usize {
        let count = Cell::new(0);
        for (chain, role, second) in asked {
            let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(*der)).collect();
            let verify = || {
                count.set(count.get() + 1);
                Ok(proven())
            };
            assert_eq!(chains.proven(&chain, *role, at(*second), verify), Ok(proven()));
        }
        count.get()
    }

    #[test]
    fn a_chain_is_verified_once_as_long_as_it_is_in_date() {
        let chain: &[&[u8]] = &[b"leaf", b"authority"];
        let seconds = [10, 10, 50, 100];
        assert_eq!(verified(&Chains::default(), &seconds.map(|second| (chain, Role::Client, second))), 1);
        let over = [10, 101, 102];
        assert_eq!(verified(&Chains::default(), &over.map(|second| (chain, Role::Client, second))), 3);
    }

    #[test]
    fn a_clock_that_was_set_back_is_told_nothing_that_was_true_later() {
        let chain: &[&[u8]] = &[b"leaf"];
        assert_eq!(verified(&Chains::default(), &[(chain, Role::Client, 50), (chain, Role::Client, 49)]), 2);
    }

    #[test]
    fn another_chain_another_cut_of_the_same_bytes_or_another_role_is_verified_anew() {
        let asked: &[(&[&[u8]], Role, i64)] = &[
            (&[b"leaf", b"authority"], Role::Client, 10),
            (&[b"leaf", b"authority"], Role::Server, 10),
            (&[b"leafa", b"uthority"], Role::Client, 10),
            (&[b"leaf"], Role::Client, 10),
        ];
        assert_eq!(verified(&Chains::default(), asked), asked.len());
    }

    #[test]
    fn a_refusal_is_not_remembered() {
        let chains = Chains::default();
        let refusal = Refusal::UntrustedRoot(RootDetail::NoPath);
        assert_eq!(chains.proven(&[], Role::Client, at(10), || Err(refusal)), Err(refusal));
        assert_eq!(chains.proven(&[], Role::Client, at(10), || Ok(proven())), Ok(proven()));
    }

    #[test]
    fn no_more_chains_are_remembered_than_the_bound() {
        let chains = Chains::default();
        for index in 0..MOST + 10 {
            verified(&chains, &[(&[&index.to_be_bytes()], Role::Client, 10)]);
        }
        assert_eq!(chains.lock().len(), MOST);
    }
}
