//! The rotation of authorities as a state machine: Prepared → Trusted → Active → Retiring → Removed.
//!
//! One rule for roots and for issuing certificates: the next one is known to everybody before it signs, and the old one
//! stays known until nothing that it signed is in use. Each move is one write; what must be true before it is an
//! argument, never a guess by time alone.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::shift;

/// A retiring authority stays at least this long, in seconds: a replica that has not seen the move yet may still sign
/// with it.
const LINGER: i64 = 60;

/// What an authority is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// Made, and on its way to everybody.
    Prepared,
    /// Everybody trusts it; it does not sign yet.
    Trusted,
    /// It signs.
    Active,
    /// It signed; what it signed is still in use.
    Retiring,
}

/// One authority of a domain, as far as rotation is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Key identifier of its issuing certificate.
    pub key_id: String,
    /// SHA-256 of its root.
    pub root_sha256: String,
    /// Its state.
    pub state: State,
    /// Since when.
    pub since: Timestamp,
}

/// What the world says.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Everybody who holds a live certificate has acknowledged what is known now, and every bundle is written.
    pub acknowledged: bool,
    /// A new root is trusted at least this long before it signs, in seconds.
    pub min_trusted_seconds: u32,
    /// Live certificates by the key identifier of their issuer.
    pub live: BTreeMap<String, usize>,
    /// Key identifier of the authority that must sign again.
    pub roll_back_to: Option<String>,
}

/// The next write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// Prepared → Trusted.
    Trust(String),
    /// Trusted (or, rolled back, Retiring) → Active; what was Active → Retiring.
    Activate(String),
    /// Retiring → Removed; or a prepared one that is no longer wanted.
    Remove(String),
}

/// What stands in the way of the next move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Acknowledgements and bundles.
    Acknowledgement,
    /// The time that a new root must be trusted.
    TrustedTime(Timestamp),
    /// Certificates that the retiring authority signed.
    LiveLeaves,
    /// Replicas that may not have seen the last move.
    Linger(Timestamp),
}

/// The next move, or what it waits for; `None` = nothing is under way.
pub fn next(members: &[Member], facts: &Facts, now: Timestamp) -> Option<Result<Move, Waiting>> {
    let one = |state| members.iter().find(|member| member.state == state);
    let active = one(State::Active);
    let back = facts.roll_back_to.as_ref().and_then(|wanted| members.iter().find(|member| member.key_id == *wanted));
    if let Some(wanted) = back.filter(|member| member.state == State::Retiring) {
        // Everybody still trusts it: that is what Retiring means.
        return Some(Ok(Move::Activate(wanted.key_id.clone())));
    }
    if let Some(coming) = members.iter().find(|member| matches!(member.state, State::Prepared | State::Trusted)) {
        if back.is_some_and(|wanted| wanted.state == State::Active) {
            return Some(Ok(Move::Remove(coming.key_id.clone())));
        }
        return Some(coming_up(coming, active, facts, now));
    }
    let retiring = one(State::Retiring)?;
    let gone = shift(retiring.since, LINGER);
    Some(if facts.live.get(&retiring.key_id).copied().unwrap_or_default() > 0 {
        Err(Waiting::LiveLeaves)
    } else if now < gone {
        Err(Waiting::Linger(gone))
    } else {
        Ok(Move::Remove(retiring.key_id.clone()))
    })
}

fn coming_up(coming: &Member, active: Option<&Member>, facts: &Facts, now: Timestamp) -> Result<Move, Waiting> {
    if !facts.acknowledged {
        return Err(Waiting::Acknowledgement);
    }
    if coming.state == State::Prepared {
        return Ok(Move::Trust(coming.key_id.clone()));
    }
    // Under a root that everybody trusts already there is nobody to wait for.
    let new_root = active.is_some_and(|active| active.root_sha256 != coming.root_sha256);
    let until = shift(coming.since, if new_root { i64::from(facts.min_trusted_seconds) } else { 0 });
    if now < until { Err(Waiting::TrustedTime(until)) } else { Ok(Move::Activate(coming.key_id.clone())) }
}

/// Takes a move: the states after it. A move that does not fit changes nothing: somebody else took it before.
pub fn take(members: &mut Vec<Member>, step: &Move, now: Timestamp) -> bool {
    let at = |key_id: &String, members: &[Member]| members.iter().position(|member| member.key_id == *key_id);
    match step {
        Move::Trust(key_id) => {
            let Some(index) = at(key_id, members).filter(|index| members[*index].state == State::Prepared) else {
                return false;
            };
            members[index].state = State::Trusted;
            members[index].since = now;
        }
        Move::Activate(key_id) => {
            let fits = |index: &usize| matches!(members[*index].state, State::Trusted | State::Retiring);
            let Some(index) = at(key_id, members).filter(fits) else { return false };
            for member in members.iter_mut().filter(|member| member.state == State::Active) {
                member.state = State::Retiring;
                member.since = now;
            }
            members[index].state = State::Active;
            members[index].since = now;
        }
        Move::Remove(key_id) => {
            let fits = |index: &usize| members[*index].state != State::Active;
            let Some(index) = at(key_id, members).filter(fits) else { return false };
            members.remove(index);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn member(key_id: &str, root: &str, state: State) -> Member {
        Member { key_id: key_id.into(), root_sha256: root.into(), state, since: at(0) }
    }

    fn facts(acknowledged: bool, live: &[(&str, usize)]) -> Facts {
        let live = live.iter().map(|(key, count)| ((*key).to_owned(), *count)).collect();
        Facts { acknowledged, min_trusted_seconds: 600, live, roll_back_to: None }
    }

    #[test]
    fn each_move_waits_for_what_must_be_true_before_it() {
        use State::{Active, Prepared, Retiring, Trusted};
        let (old, same) = (member("old", "r1", Active), |state| member("new", "r1", state));
        let other = |state| member("new", "r2", state);
        let activate = Some(Ok(Move::Activate("new".into())));
        for (coming, facts, second, expected) in [
            (same(Prepared), facts(false, &[]), 9, Some(Err(Waiting::Acknowledgement))),
            (same(Prepared), facts(true, &[]), 9, Some(Ok(Move::Trust("new".into())))),
            (same(Trusted), facts(false, &[]), 9, Some(Err(Waiting::Acknowledgement))),
            (same(Trusted), facts(true, &[]), 9, activate.clone()),
            (other(Trusted), facts(true, &[]), 599, Some(Err(Waiting::TrustedTime(at(600))))),
            (other(Trusted), facts(true, &[]), 600, activate),
            (other(Retiring), facts(true, &[("new", 1)]), 900, Some(Err(Waiting::LiveLeaves))),
            (other(Retiring), facts(true, &[("old", 1)]), 59, Some(Err(Waiting::Linger(at(60))))),
            (other(Retiring), facts(false, &[("old", 1)]), 60, Some(Ok(Move::Remove("new".into())))),
        ] {
            assert_eq!(next(&[old.clone(), coming.clone()], &facts, at(second)), expected, "{coming:?} {facts:?}");
        }
        assert_eq!(next(&[old], &facts(true, &[]), at(9)), None);
    }

    #[test]
    fn a_rotation_is_rolled_back_from_retiring_and_stopped_before_it() {
        let back = Facts { roll_back_to: Some("old".into()), ..facts(true, &[]) };
        let mut members = vec![member("old", "r1", State::Retiring), member("new", "r2", State::Active)];
        let step = next(&members, &back, at(5)).unwrap().unwrap();
        assert_eq!(step, Move::Activate("old".into()));
        assert!(take(&mut members, &step, at(5)));
        assert_eq!(members.iter().map(|one| one.state).collect::<Vec<_>>(), [State::Active, State::Retiring]);
        let stopped = [member("old", "r1", State::Active), member("new", "r2", State::Trusted)];
        assert_eq!(next(&stopped, &back, at(5)), Some(Ok(Move::Remove("new".into()))));
    }

    #[test]
    fn a_move_that_was_taken_before_changes_nothing() {
        let mut members = vec![member("old", "r1", State::Active)];
        for step in [
            Move::Trust("old".into()),
            Move::Activate("old".into()),
            Move::Remove("old".into()),
            Move::Trust("x".into()),
        ] {
            assert!(!take(&mut members, &step, at(1)), "{step:?}");
        }
    }

    proptest! {
        #[test]
        fn at_every_moment_exactly_one_authority_signs_and_whoever_signs_was_trusted_before(
            history in proptest::collection::vec((any::<bool>(), 0_usize..3, 0_i64..400, any::<bool>()), 1..60),
        ) {
            let mut members = vec![member("k0", "r0", State::Active)];
            let (mut made, mut now) = (0, 0);
            for (acknowledged, live, seconds, rotate) in history {
                now += seconds;
                if rotate && members.len() == 1 {
                    made += 1;
                    let root = format!("r{}", made / 2);
                    members.push(Member { since: at(now), ..member(&format!("k{made}"), &root, State::Prepared) });
                }
                let retiring = members.iter().find(|one| one.state == State::Retiring);
                let live: Vec<(String, usize)> = retiring.map(|one| (one.key_id.clone(), live)).into_iter().collect();
                let facts = Facts { acknowledged, min_trusted_seconds: 600, live: live.into_iter().collect(), roll_back_to: None };
                let before = members.clone();
                if let Some(Ok(step)) = next(&members, &facts, at(now)) {
                    prop_assert!(take(&mut members, &step, at(now)));
                    if let Move::Activate(key_id) = &step {
                        let was = before.iter().find(|one| one.key_id == *key_id).unwrap();
                        prop_assert_eq!(was.state, State::Trusted);
                        prop_assert!(acknowledged);
                    }
                }
                prop_assert_eq!(members.iter().filter(|one| one.state == State::Active).count(), 1);
            }
        }
    }
}
