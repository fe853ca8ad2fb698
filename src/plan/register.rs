//! The register of a domain after a step: what the leader writes, and what a simulation writes.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rcgen::KeyPair;

use super::{Coming, Lists, Step};
use crate::pki::{
    authority::{self, Material, Serial},
    crl::Window,
    ledger::{Holder, Ledger},
    register::{Register, RegisterError},
    rotation::{Move, State},
};

/// Keys and serials for whatever a step makes.
pub struct Fresh {
    /// Of a root and of an issuing certificate.
    pub keys: [KeyPair; 2],
    /// Of the same.
    pub serials: [Serial; 2],
}

/// The register after `step`, which was planned on an earlier look at `held`; `None` = it does not fit any more.
///
/// # Errors
/// What is held, or what comes, cannot be used.
pub fn after(
    step: &Step,
    held: Option<Register>,
    fresh: Fresh,
    now: Timestamp,
) -> Result<Option<Register>, RegisterError> {
    match (step, held) {
        (Step::CreateAuthority { coming, lists, .. }, None) => {
            let material = made(coming, None, fresh, now)?;
            Register::create(material, window(lists, now), now).map(Some)
        }
        (Step::PrepareAuthority { coming, lists, .. }, Some(mut register)) => {
            if register.is_rotating() {
                return Ok(None);
            }
            let material = made(coming, Some(&register), fresh, now)?;
            register.add(material, State::Prepared, now)?;
            register.publish(&lists.listed, window(lists, now), now)?;
            Ok(Some(register))
        }
        (Step::MoveAuthority { step, lists, .. }, Some(mut register)) => {
            if !register.take(step, now) {
                return Ok(None);
            }
            register.publish(&lists.listed, window(lists, now), now)?;
            Ok(Some(register))
        }
        (Step::PublishLists { lists, .. }, Some(mut register)) => {
            register.publish(&lists.listed, window(lists, now), now)?;
            Ok(Some(register))
        }
        _ => Ok(None),
    }
}

/// Whether what the ledgers say *now* stands in the way of a move: a plan rests on what was seen a moment ago.
pub fn stands_in_the_way<'a>(
    register: &Register,
    ledgers: impl IntoIterator<Item = &'a Ledger>,
    step: &Move,
    known: &BTreeSet<String>,
    now: Timestamp,
) -> bool {
    let records = ledgers.into_iter().flat_map(|ledger| ledger.records());
    // Other domains' certificates are no business of this one.
    let mut live = records.filter(|record| record.is_live(now) && register.holds(&record.issuer));
    live.any(|record| match step {
        // Nobody may hold what it signed.
        Move::Remove(key_id) => record.issuer == *key_id,
        // Whoever got a certificate since may not know the one that will sign.
        Move::Trust(_) | Move::Activate(_) => match &record.holder {
            Holder::Pod(uid) => !known.contains(uid),
            Holder::Secret(_) => false,
        },
    })
}

fn window(lists: &Lists, now: Timestamp) -> Window {
    Window::of(lists.floor + 1, lists.lifetime_seconds, lists.skew_seconds, now)
}

fn made(
    coming: &Coming,
    held: Option<&Register>,
    Fresh { keys, serials }: Fresh,
    now: Timestamp,
) -> Result<Material, RegisterError> {
    Ok(match coming {
        Coming::Root(terms) => authority::create(terms, keys, serials, now)?,
        Coming::Issuer(terms) => {
            let active = held.and_then(Register::active).ok_or(RegisterError::NoneActive)?;
            let [_, key] = keys;
            authority::renew_issuer(active, terms, &key, serials[1], now)?
        }
        Coming::Supplied(material) => {
            // It may have been replaced since it was looked at; what cannot sign is not taken in.
            authority::Authority::load(material, now)?;
            (**material).clone()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::{DnsName, SpiffeId},
        pki::{
            authority::{Terms, Validity},
            ledger::{Owner, Record},
            register::Listed,
        },
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn fresh(number: u8) -> Fresh {
        let serial = |more| Serial::from_random([number + more; 16]);
        Fresh { keys: [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()], serials: [serial(0), serial(1)] }
    }

    fn coming() -> (Coming, Lists) {
        let name = DnsName::parse("contoso.example").unwrap();
        let terms = Terms { trust_domain: name.clone(), permitted: vec![name], root_days: 100, issuer_days: 10 };
        let lists = Lists { listed: Listed::new(), lifetime_seconds: 3_600, skew_seconds: 300, floor: 7 };
        (Coming::Root(terms), lists)
    }

    fn created() -> Register {
        let (coming, lists) = coming();
        let step = Step::CreateAuthority { domain: "contoso".into(), coming, lists };
        after(&step, None, fresh(1), at(0)).unwrap().unwrap()
    }

    fn key_id(register: &Register) -> String {
        register.load(at(0)).unwrap().active.key_id().to_owned()
    }

    fn ledger(issuer: &str, pod: &str) -> Ledger {
        let id = SpiffeId::parse("spiffe://contoso.example/ns/sip/server/front-end").unwrap();
        let record = Record {
            serial: Serial::from_random([9; 16]),
            holder: Holder::Pod(pod.into()),
            key: "k".into(),
            names: "n".into(),
            issuer: issuer.into(),
            validity: Validity { not_before: at(0), not_after: at(100) },
            recorded: at(0),
            revoked: None,
        };
        let mut ledger = Ledger::default();
        ledger.append(&Owner { id, uid: "u".into(), created: at(0) }, record, at(0)).unwrap();
        ledger
    }

    #[test]
    fn what_stands_in_the_way_is_a_live_certificate_of_this_domain_and_no_other() {
        let register = created();
        let own = key_id(&register);
        let known = BTreeSet::from(["known".to_owned()]);
        let (activate, remove) = (Move::Activate("next".into()), Move::Remove(own.clone()));
        for (issuer, pod, step, second, expected) in [
            (own.as_str(), "known", &activate, 50, false),
            (own.as_str(), "new", &activate, 50, true),
            (own.as_str(), "new", &activate, 100, false),
            (own.as_str(), "known", &remove, 50, true),
            ("foreign", "new", &activate, 50, false),
        ] {
            let found = stands_in_the_way(&register, [&ledger(issuer, pod)], step, &known, at(second));
            assert_eq!(found, expected, "{issuer} {pod} {step:?} at {second}");
        }
    }

    #[test]
    fn a_step_that_was_done_before_does_not_fit_any_more() {
        let register = created();
        let (coming, lists) = coming();
        let create = Step::CreateAuthority { domain: "contoso".into(), coming: coming.clone(), lists: lists.clone() };
        assert!(after(&create, Some(register.clone()), fresh(3), at(1)).unwrap().is_none(), "never made anew");
        let prepare = Step::PrepareAuthority { domain: "contoso".into(), coming, lists: lists.clone() };
        let prepared = after(&prepare, Some(register), fresh(5), at(1)).unwrap().unwrap();
        assert!(after(&prepare, Some(prepared.clone()), fresh(7), at(2)).unwrap().is_none());
        assert_eq!(prepared.published().issuers.len(), 2, "the lists speak for the new key at once");
        let wrong = Step::MoveAuthority {
            domain: "contoso".into(),
            step: Move::Activate("nobody".into()),
            known: BTreeSet::new(),
            lists,
        };
        assert!(after(&wrong, Some(prepared), fresh(9), at(3)).unwrap().is_none());
    }

    #[test]
    fn numbers_go_on_from_the_highest_that_anybody_has_seen() {
        let register = created();
        assert_eq!(register.published().number, 8);
        let (_, lists) = coming();
        let publish = |floor| Step::PublishLists { domain: "contoso".into(), lists: Lists { floor, ..lists.clone() } };
        let again = after(&publish(0), Some(register.clone()), fresh(3), at(1)).unwrap().unwrap();
        assert_eq!(again.published().number, 9);
        let restored = after(&publish(40), Some(register), fresh(3), at(1)).unwrap().unwrap();
        assert_eq!(restored.published().number, 41, "an older copy was restored");
    }
}
