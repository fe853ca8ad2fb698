//! Keeping what the sources of partners' trust said last that was good.

use std::collections::{BTreeMap, BTreeSet};

use super::{Plan, Step, World};
use crate::{
    api::FederationPartner,
    topology::{Key, PartnerKey},
};

/// Records that one plan writes; the others wait for the next one.
const AT_ONCE: usize = 64;

/// Writes the records that sources have moved on, and removes those of partners that are gone.
pub(super) fn keep(world: &World, plan: &mut Plan) {
    let objects: BTreeMap<PartnerKey, &FederationPartner> =
        world.declared.partners.iter().map(|object| (PartnerKey::of(object), object)).collect();
    let moved = world.asked.iter().filter_map(|(key, asked)| {
        let is_of = objects.get(key).is_some_and(|object| asked.record.is_of(object));
        let held = world.declared.kept.get(key);
        let on = held.and_then(|held| held.version.clone());
        let same = held.and_then(|held| held.record.as_ref()) == Some(&asked.record);
        // What rests on an older record is asked for anew: somebody else may have got further.
        let next = is_of && on == asked.on && !same;
        next.then(|| Step::KeepTrust { key: key.clone(), version: on, record: asked.record.clone() })
    });
    plan.steps.extend(moved.take(AT_ONCE));
    let unreadable: BTreeSet<&PartnerKey> = world.unreadable.iter().filter_map(|(key, _)| partner(key)).collect();
    let gone = world.declared.kept.iter().filter(|(key, _)| !objects.contains_key(*key) && !unreadable.contains(*key));
    plan.steps.extend(gone.map(|(key, held)| Step::ForgetTrust { key: key.clone(), name: held.name.clone() }));
}

const fn partner(key: &Key) -> Option<&PartnerKey> {
    match key {
        Key::Partner(key) => Some(key),
        Key::Domain(_) | Key::Server(_) => None,
    }
}
