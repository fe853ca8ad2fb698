//! The cluster that is a map: it loses, repeats and refuses writes, answers with old reads, and holds what must hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use entente::{
    controller::apply::{ApplyError, Cluster},
    pki::{
        authority::Serial,
        ledger::Holder,
        register::Register,
        rotation::{Move, State},
    },
    plan::{
        AuthorityFacts, AuthoritySeen, Step, World, own_keys,
        register::{self, Fresh},
    },
    topology::{Declared, Key, Topology, kept::KeptSeen},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rcgen::KeyPair;

use super::{
    key_of,
    partners::{asked, partner_key},
};

/// SplitMix64: a seed is a history.
pub(super) struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// Writes an object's finalizers; answers whether it is gone then.
fn hold(
    meta: &mut ObjectMeta,
    planned: Option<&String>,
    finalizers: &[String],
    version: String,
) -> Result<bool, ApplyError> {
    if meta.resource_version.as_ref() != planned {
        return Err(ApplyError::Conflict);
    }
    meta.finalizers = Some(finalizers.to_vec());
    meta.resource_version = Some(version);
    Ok(finalizers.is_empty() && meta.deletion_timestamp.is_some())
}

/// What the API server would hold.
#[derive(Clone, Default)]
pub(super) struct Held {
    pub(super) world: World,
    pub(super) registers: BTreeMap<String, Register>,
    /// The issuers that each sidecar knows, by its last brief.
    pub(super) acknowledged: BTreeMap<String, Vec<String>>,
    pub(super) version: u64,
}

pub(super) struct Map {
    pub(super) held: Mutex<Held>,
    /// Earlier states, for reads from a cache that lags.
    past: Mutex<Vec<World>>,
    pub(super) dice: Mutex<Dice>,
    pub(super) faults: Mutex<bool>,
    now: Mutex<Timestamp>,
    /// Roots that ever were, by domain: an authority is never replaced.
    pub(super) roots: Mutex<BTreeMap<String, BTreeSet<String>>>,
    pub(super) written: Mutex<u64>,
}

impl Map {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            held: Mutex::default(),
            past: Mutex::default(),
            dice: Mutex::new(Dice(seed)),
            faults: Mutex::new(true),
            now: Mutex::new(Timestamp::from_second(1_800_000_000).unwrap()),
            roots: Mutex::default(),
            written: Mutex::default(),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        *self.now.lock().unwrap()
    }

    pub(super) fn advance(&self, seconds: i64) {
        let mut now = self.now.lock().unwrap();
        *now = Timestamp::from_second(now.as_second() + seconds).unwrap();
    }

    pub(super) fn fault(&self, one_in: u64) -> bool {
        *self.faults.lock().unwrap() && self.dice.lock().unwrap().one_in(one_in)
    }

    /// Somebody edits the world.
    pub(super) fn edit(&self, act: impl FnOnce(&mut Held)) {
        let mut held = self.held.lock().unwrap();
        act(&mut held);
        self.past.lock().unwrap().push(self.seen(&held));
    }

    pub(super) fn seen(&self, held: &Held) -> World {
        let mut world = held.world.clone();
        for (domain, register) in &held.registers {
            let seen = match register.load(self.now()) {
                Ok(loaded) => {
                    world.declared.own_keys.extend(own_keys(&loaded));
                    AuthoritySeen::Sound(AuthorityFacts::of(register, &loaded))
                }
                Err(error) => AuthoritySeen::Broken(error.to_string()),
            };
            world.authorities.insert(domain.clone(), seen);
        }
        world
    }

    fn take(&self, held: &mut Held, step: &Step) -> Result<(), ApplyError> {
        held.version += 1;
        let version = held.version.to_string();
        *self.written.lock().unwrap() += 1;
        match step {
            Step::CreateDomain(domain) => {
                if held.world.declared.domains.iter().any(|one| one.metadata.name == domain.metadata.name) {
                    return Err(ApplyError::Conflict);
                }
                let mut domain = (**domain).clone();
                domain.metadata.uid = Some(format!("uid-{version}"));
                domain.metadata.generation = Some(1);
                domain.metadata.resource_version = Some(version);
                held.world.declared.domains.push(domain);
            }
            Step::CreateAuthority { domain, .. }
            | Step::PrepareAuthority { domain, .. }
            | Step::MoveAuthority { domain, .. }
            | Step::PublishLists { domain, .. } => self.write_register(held, domain, step)?,
            Step::Revoke { ledger, marks, .. } => {
                let seen = held.world.ledgers.get_mut(ledger).ok_or(ApplyError::Conflict)?;
                let mut record = (**seen.ledger.as_ref().unwrap()).clone();
                if record.revoke(marks, self.now()).is_empty() {
                    return Err(ApplyError::Conflict);
                }
                seen.ledger = Some(Arc::new(record));
            }
            Step::WriteSecret { .. } => {}
            Step::Hold { key, version: planned, finalizers } => {
                let Declared { servers, partners, .. } = &mut held.world.declared;
                let gone = match key {
                    Key::Server(key) => {
                        let one = servers.iter_mut().find(|one| key_of(one) == *key).ok_or(ApplyError::Conflict)?;
                        hold(&mut one.metadata, planned.as_ref(), finalizers, version)?
                    }
                    Key::Partner(key) => {
                        let one = partners.iter_mut().find(|one| partner_key(one) == *key);
                        hold(&mut one.ok_or(ApplyError::Conflict)?.metadata, planned.as_ref(), finalizers, version)?
                    }
                    Key::Domain(_) => false,
                };
                if gone {
                    servers.retain(|one| Key::Server(key_of(one)) != *key);
                    partners.retain(|one| Key::Partner(partner_key(one)) != *key);
                }
            }
            Step::WriteBundle { namespace, domain: _, data } => {
                held.world.bundles.insert(namespace.clone(), data.clone());
            }
            Step::DeleteBundle { namespace } => {
                held.world.bundles.remove(namespace).ok_or(ApplyError::Conflict)?;
            }
            Step::WritePartners { namespace, domain: _, data } => {
                held.world.partner_bundles.insert(namespace.clone(), data.clone());
            }
            Step::DeletePartners { namespace } => {
                held.world.partner_bundles.remove(namespace).ok_or(ApplyError::Conflict)?;
            }
            Step::KeepTrust { key, version: planned, record } => {
                let held_now = held.world.declared.kept.get(key);
                if held_now.and_then(|seen| seen.version.clone()) != *planned {
                    return Err(ApplyError::Conflict);
                }
                let name = format!("of {key}");
                let seen = KeptSeen { name, version: Some(version), record: Some(Arc::clone(record)) };
                held.world.declared.kept.insert(key.clone(), seen);
            }
            Step::ForgetTrust { key, .. } => {
                held.world.declared.kept.remove(key).ok_or(ApplyError::Conflict)?;
            }
            Step::DeleteLedger { name } => {
                held.world.ledgers.remove(name).ok_or(ApplyError::Conflict)?;
            }
            Step::DomainStatus { name, version: planned, status } => {
                let found = held.world.declared.domains.iter_mut().find(|one| one.metadata.name.as_ref() == Some(name));
                let domain =
                    found.filter(|one| one.metadata.resource_version == *planned).ok_or(ApplyError::Conflict)?;
                let before = domain.status.as_ref().map_or(0, |status| status.topology_revision);
                assert!(status.topology_revision >= before, "a revision never goes back");
                domain.status = Some((**status).clone());
                domain.metadata.resource_version = Some(version);
            }
            Step::ServerStatus { key, version: planned, status } => {
                let found = held.world.declared.servers.iter_mut().find(|one| key_of(one) == *key);
                let server =
                    found.filter(|one| one.metadata.resource_version == *planned).ok_or(ApplyError::Conflict)?;
                server.status = Some((**status).clone());
                server.metadata.resource_version = Some(version);
            }
            Step::PartnerStatus { key, version: planned, status } => {
                let found = held.world.declared.partners.iter_mut().find(|one| partner_key(one) == *key);
                let partner =
                    found.filter(|one| one.metadata.resource_version == *planned).ok_or(ApplyError::Conflict)?;
                partner.status = Some((**status).clone());
                partner.metadata.resource_version = Some(version);
            }
        }
        Ok(())
    }
}

impl Map {
    /// What must hold at a move, whatever the leader saw: nobody is left behind, nothing in use is dropped.
    fn may_move(&self, held: &Held, step: &Move, known: &BTreeSet<String>) -> Result<(), ApplyError> {
        let ledgers = || held.world.ledgers.values().filter_map(|seen| seen.ledger.as_deref());
        if register::stands_in_the_way(&held.registers["contoso"], ledgers(), step, known, self.now()) {
            return Err(ApplyError::Conflict);
        }
        let live = || ledgers().flat_map(|ledger| ledger.records()).filter(|record| record.is_live(self.now()));
        match step {
            Move::Remove(key_id) => assert!(live().all(|one| one.issuer != *key_id), "{key_id} is still in use"),
            Move::Activate(key_id) => {
                let (topology, _) = Topology::resolve(&held.world.declared);
                for (uid, issuers) in held.acknowledged.iter().filter(|(uid, _)| topology.pod(uid).is_some()) {
                    let holds = live().any(|one| one.holder == Holder::Pod(uid.clone()));
                    assert!(!holds || issuers.contains(key_id), "{key_id} signs before {uid} knows it");
                }
            }
            Move::Trust(_) => {}
        }
        Ok(())
    }

    fn write_register(&self, held: &mut Held, domain: &str, step: &Step) -> Result<(), ApplyError> {
        let version = held.version;
        let fresh = Fresh {
            keys: [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()],
            serials: [serial(version, 1), serial(version, 2)],
        };
        let before = held.registers.get(domain).cloned();
        let number = before.as_ref().map_or(0, |register| register.published().number);
        if let Step::MoveAuthority { step, known, .. } = step {
            self.may_move(held, step, known)?;
        }
        let after = register::after(step, before, fresh, self.now())
            .map_err(|error| ApplyError::Register(error.to_string()))?;
        let after = after.ok_or(ApplyError::Conflict)?;
        assert!(after.published().number > number, "numbers of lists strictly increase");
        let signing = after.load(self.now()).map_err(|error| ApplyError::Register(error.to_string()))?;
        assert_eq!(signing.members.iter().filter(|(one, _)| one.state == State::Active).count(), 1);
        if let Step::CreateAuthority { .. } = step {
            let root = after.active().unwrap().root_certificate.clone();
            self.roots.lock().unwrap().entry(domain.to_owned()).or_default().insert(root);
        }
        held.registers.insert(domain.to_owned(), after);
        Ok(())
    }
}

pub(super) fn serial(version: u64, number: u8) -> Serial {
    let mut bytes = [number; 16];
    bytes[8..].copy_from_slice(&version.to_be_bytes());
    Serial::from_random(bytes)
}

impl Cluster for Map {
    async fn observe(&self) -> Result<World, ApplyError> {
        if self.fault(20) {
            return Err(ApplyError::Deadline);
        }
        let lag = if self.fault(3) { self.dice.lock().unwrap().below(6) } else { 0 };
        let held = self.held.lock().unwrap();
        let past = self.past.lock().unwrap();
        let index = past.len().checked_sub(1 + usize::try_from(lag).unwrap());
        let seen =
            if lag > 0 { index.map_or_else(World::default, |index| past[index].clone()) } else { self.seen(&held) };
        Ok(World { asked: asked(&seen, self.now()), ..seen })
    }

    async fn apply(&self, step: &Step) -> Result<(), ApplyError> {
        // Killed, or refused, before the write.
        if self.fault(6) {
            return Err(ApplyError::Deadline);
        }
        let mut held = self.held.lock().unwrap();
        let answer = self.take(&mut held, step);
        let seen = self.seen(&held);
        self.past.lock().unwrap().push(seen);
        // Killed after it, or the answer was lost.
        if self.fault(6) { Err(ApplyError::Deadline) } else { answer }
    }
}
