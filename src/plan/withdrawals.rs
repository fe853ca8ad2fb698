//! What is taken back, straight from objects and ledgers: every replica comes to the same answer, with or without a
//! leader. The leader then writes it down, in ledgers and lists.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::World;
use crate::{
    api::Role,
    brief::{Standing, Withdrawal},
    identity::SpiffeId,
    pki::{
        authority::Serial,
        crl::{Reason, Revoked},
        ledger::{Holder, Ledger, Record},
        register::Listed,
        revocation::{MAX_SERIALS, MAX_WITHDRAWN},
    },
    refusal::WithdrawnDetail,
    topology::{Domain, Key, Server, ServerKey, Topology},
};

/// A pod must have been gone so long before its certificates are taken back, in seconds: such ends are gathered, and a
/// list that lags behind is no proof.
pub const GONE_SECONDS: i64 = 60;
/// And so long where others are taken back now, in seconds.
const LAG_SECONDS: i64 = 10;
/// The end of all times that a brief can name: the last second that a timestamp of ours can say.
const FOR_EVER: i64 = 253_402_207_200;

/// What of one server's certificates is taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Which server.
    pub server: ServerKey,
    /// Its identity.
    pub id: SpiffeId,
    /// All that it held until some moment.
    pub withdrawal: Option<Withdrawal>,
    /// Single certificates with their issuer, those in the withdrawal included.
    pub revoked: Vec<(String, Revoked)>,
    /// Those of them that the ledger does not say yet.
    pub marks: Vec<(Serial, Reason)>,
}

/// What is taken back in one domain, by the name of the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Withdrawals {
    /// By ledger.
    pub taken: BTreeMap<String, Taken>,
    /// Listed serials that are in no ledger, with every issuer they may be of.
    stray: Vec<(String, Revoked)>,
}

/// Pods that ledgers know and that are not there.
pub fn gone(world: &World) -> BTreeSet<String> {
    let alive: BTreeSet<&str> = world.declared.pods.iter().map(|pod| pod.uid.as_str()).collect();
    let ledgers = world.ledgers.values().filter_map(|seen| seen.ledger.as_ref());
    let holders = ledgers.flat_map(|ledger| ledger.records()).filter(|record| record.revoked.is_none());
    let uids = holders.filter_map(|record| match &record.holder {
        Holder::Pod(uid) => Some(uid),
        Holder::Secret(_) => None,
    });
    uids.filter(|uid| !alive.contains(uid.as_str())).cloned().collect()
}

/// All that is taken back in `domain` now.
pub fn withdrawals(topology: &Topology, world: &World, domain: &Domain, now: Timestamp) -> Withdrawals {
    let mut found = Withdrawals::default();
    let mut known = BTreeSet::new();
    let alive: BTreeSet<&str> = world.declared.pods.iter().map(|pod| pod.uid.as_str()).collect();
    for (name, seen) in &world.ledgers {
        let Some(ledger) = &seen.ledger else { continue };
        let Some(owner) = ledger.owner().filter(|owner| *owner.id.trust_domain() == domain.trust_domain) else {
            continue;
        };
        known.extend(ledger.records().iter().map(|record| record.serial));
        let context = Context { topology, world, domain, alive: &alive, now };
        let server = topology.holder(&seen.server);
        let fate = context.fate(&seen.server, server, ledger);
        let mut taken = Taken {
            server: seen.server.clone(),
            id: owner.id.clone(),
            withdrawal: None,
            revoked: vec![],
            marks: vec![],
        };
        for record in ledger.records().iter().filter(|record| record.listed_until() >= now) {
            let revoked = match record.revoked {
                Some((at, reason)) => Revoked { serial: record.serial, at, reason },
                None => {
                    let Some(reason) = context.why(record, server, &fate) else { continue };
                    taken.marks.push((record.serial, reason));
                    Revoked { serial: record.serial, at: now, reason }
                }
            };
            taken.revoked.push((record.issuer.clone(), revoked));
        }
        taken.withdrawal = fate.withdrawal(&owner.id, ledger, domain);
        if taken.withdrawal.is_some() || !taken.revoked.is_empty() {
            found.taken.insert(name.clone(), taken);
        }
    }
    found.stray = strays(world, domain, &known);
    found
}

/// Listed serials that nobody has a record of count against every issuer.
fn strays(world: &World, domain: &Domain, known: &BTreeSet<Serial>) -> Vec<(String, Revoked)> {
    let Some(super::AuthoritySeen::Sound(facts)) = world.authorities.get(&domain.name) else { return vec![] };
    let at = facts.rotated_at;
    let unknown = domain.revoked_serials.iter().filter(|serial| !known.contains(serial));
    let entry = |serial: &Serial| Revoked { serial: *serial, at, reason: Reason::KeyCompromise };
    unknown.flat_map(|serial| facts.members.iter().map(move |one| (one.member.key_id.clone(), entry(serial)))).collect()
}

/// What befell a whole server.
enum Fate {
    /// Nothing.
    Stands,
    /// It is suspended.
    Suspended,
    /// It is no longer declared.
    Deleted,
    /// Its ledger is that of an earlier object with its name.
    CreatedAnew,
    /// What was issued before the moment is taken back.
    IssuedBefore(Timestamp),
}

struct Context<'a> {
    topology: &'a Topology,
    world: &'a World,
    domain: &'a Domain,
    alive: &'a BTreeSet<&'a str>,
    now: Timestamp,
}

impl Context<'_> {
    fn fate(&self, key: &ServerKey, server: Option<&Server>, ledger: &Ledger) -> Fate {
        if self.lags(key, server, ledger) {
            return Fate::Stands;
        }
        let Some(server) = server else {
            return if self.left(key) { Fate::Deleted } else { Fate::Stands };
        };
        let Server { uid, standing, revoke_issued_before, .. } = server;
        if *standing != Standing::Active {
            return Fate::Suspended;
        }
        if ledger.owner().is_some_and(|owner| owner.uid != *uid) {
            return Fate::CreatedAnew;
        }
        // A moment that has not come yet takes nothing back yet.
        match revoke_issued_before.filter(|moment| *moment <= self.now) {
            Some(moment) => Fate::IssuedBefore(moment),
            None => Fate::Stands,
        }
    }

    /// Whether the ledger is already of a server that was created after the one that we still see.
    fn lags(&self, key: &ServerKey, server: Option<&Server>, ledger: &Ledger) -> bool {
        let Some(owner) = ledger.owner() else { return false };
        if let Some(server) = server {
            return owner.follows(&server.uid, server.created);
        }
        self.world.declared.server(key).is_some_and(|object| {
            let created = object.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
            owner.follows(object.metadata.uid.as_deref().unwrap_or_default(), created)
        })
    }

    /// Whether a server that does not resolve is gone on purpose. One that is only broken keeps what it has.
    fn left(&self, key: &ServerKey) -> bool {
        let label = self.world.declared.namespaces.get(&key.namespace).and_then(Option::as_deref);
        let unreadable = self.world.unreadable.iter().any(|(owner, _)| *owner == Key::Server(key.clone()));
        let object = self.world.declared.server(key);
        let declared = unreadable || object.is_some_and(|object| object.metadata.deletion_timestamp.is_none());
        !declared || (label != Some(&self.domain.name) && self.topology.domain(&self.domain.name).is_some())
    }

    fn why(&self, record: &Record, server: Option<&Server>, fate: &Fate) -> Option<Reason> {
        if self.domain.revoked_serials.contains(&record.serial) {
            return Some(Reason::KeyCompromise);
        }
        match fate {
            Fate::Suspended => return Some(Reason::Suspended),
            Fate::Deleted | Fate::CreatedAnew => return Some(Reason::ServerDeleted),
            Fate::IssuedBefore(moment) if record.recorded < *moment => return Some(Reason::IssuedBefore),
            Fate::IssuedBefore(_) | Fate::Stands => {}
        }
        let gone = match &record.holder {
            Holder::Pod(uid) => {
                let since = self.world.gone_since.get(uid).filter(|_| !self.alive.contains(uid.as_str()));
                let least = if self.gathered() { LAG_SECONDS } else { GONE_SECONDS };
                since.is_some_and(|since| self.now.as_second() - since.as_second() >= least)
            }
            // Another Secret's name, or none any more: what the old one holds is nobody's.
            Holder::Secret(name) => server.is_some_and(|server| server.secret_name.as_ref() != Some(name)),
        };
        gone.then_some(Reason::PodGone)
    }

    /// Once one pod has been gone long enough, all that are gone leave with it.
    fn gathered(&self) -> bool {
        let long = |since: &Timestamp| self.now.as_second() - since.as_second() >= GONE_SECONDS;
        self.world.gone_since.values().any(long)
    }
}

impl Fate {
    fn withdrawal(&self, id: &SpiffeId, ledger: &Ledger, domain: &Domain) -> Option<Withdrawal> {
        let (starting_before, reason) = match self {
            Self::Stands => return None,
            Self::Suspended => (FOR_EVER, WithdrawnDetail::Suspended),
            Self::Deleted => (FOR_EVER, WithdrawnDetail::Deleted),
            Self::CreatedAnew => {
                let last = ledger.records().iter().map(|record| record.validity.not_before.as_second()).max();
                (last? + 1, WithdrawnDetail::Deleted)
            }
            // Certificates are dated back for clocks that lag.
            Self::IssuedBefore(moment) => {
                let skew = i64::from(domain.skew_seconds);
                let older = ledger.records().iter().any(|record| record.recorded < *moment);
                older.then_some((moment.as_second() - skew, WithdrawnDetail::IssuedBefore))?
            }
        };
        Some(Withdrawal { id: id.clone(), starting_before, reason })
    }
}

impl Withdrawals {
    /// What published lists say.
    pub fn listed(&self) -> Listed {
        let mut listed = Listed::new();
        // What the ledgers do not say yet has no time yet.
        let written = self.taken.values().flat_map(|taken| {
            let marked = |serial: Serial| taken.marks.iter().any(|(mark, _)| *mark == serial);
            taken.revoked.iter().filter(move |(_, revoked)| !marked(revoked.serial))
        });
        for (issuer, revoked) in written.chain(&self.stray) {
            listed.entry(issuer.clone()).or_default().insert(*revoked);
        }
        listed
    }

    /// Whether anything of `server` is taken back.
    pub fn of(&self, server: &ServerKey) -> Option<&Taken> {
        self.taken.values().find(|taken| taken.server == *server)
    }

    /// What the sidecars of `server` are told: whole withdrawals of everybody, single certificates of those that they
    /// may meet. Without a server: all. Beyond what a view holds, what somebody decided goes first, then the latest.
    pub fn told(
        &self,
        topology: &Topology,
        server: Option<&Server>,
    ) -> (BTreeMap<String, BTreeSet<Serial>>, Vec<Withdrawal>) {
        let mut single: Vec<&(String, Revoked)> = self.stray.iter().collect();
        let mut withdrawn = vec![];
        for taken in self.taken.values() {
            withdrawn.extend(taken.withdrawal.clone());
            let whole = taken.withdrawal.as_ref().is_some_and(|all| all.starting_before == FOR_EVER);
            let meets = server.is_none_or(|server| {
                server.key == taken.server || topology.server(&taken.server).is_none_or(|other| may_meet(server, other))
            });
            if meets && !whole {
                single.extend(&taken.revoked);
            }
        }
        if single.len() > MAX_SERIALS {
            single.sort_by_key(|(_, one)| (!one.reason.is_explicit(), std::cmp::Reverse(one.at), one.serial));
            single.truncate(MAX_SERIALS);
        }
        let mut serials = BTreeMap::<String, BTreeSet<Serial>>::new();
        for (issuer, revoked) in single {
            serials.entry(issuer.clone()).or_default().insert(revoked.serial);
        }
        withdrawn.sort();
        withdrawn.truncate(MAX_WITHDRAWN);
        (serials, withdrawn)
    }
}

/// Whether a connection between the two may exist, in either direction.
pub(super) fn may_meet(one: &Server, other: &Server) -> bool {
    let admits = |callee: &Server, caller: &Server| {
        callee.ports.iter().any(|port| {
            let all = port.allow.all_declared && caller.role == Role::Internal;
            all || port.allow.server(&caller.id).is_some()
        })
    };
    admits(one, other) || admits(other, one)
}

#[cfg(test)]
mod tests;
