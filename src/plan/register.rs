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
    ledgers: impl IntoIterator<Item = &'a Ledger>,
    step: &Move,
    known: &BTreeSet<String>,
    now: Timestamp,
) -> bool {
    let mut live = ledgers.into_iter().flat_map(|ledger| ledger.records()).filter(|record| record.is_live(now));
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
