//! What a round knows of one domain: found out once, at the start of the domain's turn, for everything that is planned
//! and said of it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{
    AuthorityFacts, Plan, World,
    authorities::{Supplied, records, supplied},
    bundles, secrets,
    survey::{Survey, survey},
    usable,
    withdrawals::{Withdrawals, withdrawals},
};
use crate::{
    pki::{
        ledger::Holder,
        register::{Listed, digest, fitting},
        rotation::{Facts, State},
    },
    topology::{Domain, Topology},
};

/// One domain in one round.
pub(super) struct Turn<'a> {
    pub(super) domain: &'a Domain,
    /// Its authorities, if they can be used.
    pub(super) facts: Option<&'a AuthorityFacts>,
    /// What its owner gave.
    pub(super) given: Supplied,
    pub(super) withdrawals: Withdrawals,
    pub(super) listing: Listing,
    pub(super) survey: Survey<'a>,
    /// UIDs of pods that have acknowledged what is known now.
    pub(super) acknowledged: BTreeSet<&'a str>,
    /// UIDs of those that have not, and hold a certificate in use: by the ledgers, since what a sidecar says is forgotten
    /// with the replica that heard it. Some may be gone.
    pub(super) unacknowledged: BTreeSet<&'a str>,
    /// What the bundle of its namespaces must hold, and the namespaces where it does not.
    pub(super) bundle: BTreeMap<String, String>,
    pub(super) unbundled: Vec<&'a str>,
    /// What must be true before an authority moves on; `None` = there is none.
    pub(super) gates: Option<Facts>,
}

/// What published lists must say.
pub(super) struct Listing {
    pub(super) listed: Listed,
    /// Whether all fits.
    pub(super) is_whole: bool,
    pub(super) digest: String,
}

impl<'a> Turn<'a> {
    pub(super) fn of(
        topology: &'a Topology,
        world: &'a World,
        domain: &'a Domain,
        now: Timestamp,
        plan: &mut Plan,
    ) -> Self {
        let facts = usable(world, &domain.name);
        let withdrawals = withdrawals(topology, world, domain, now);
        let survey = survey(topology, world, domain, &withdrawals, now, plan);
        let acknowledged = survey.values().flat_map(|pods| &pods.acknowledged).copied().collect();
        let bundle = facts.map(|facts| bundles::data(domain, facts));
        let unbundled = bundle.as_ref().map(|bundle| bundles::without(domain, world, bundle));
        let (listed, is_whole) = fitting(withdrawals.listed());
        let mut turn = Self {
            domain,
            facts,
            given: supplied(domain, world, now),
            listing: Listing { digest: digest(&listed), listed, is_whole },
            withdrawals,
            survey,
            unacknowledged: holders(world, domain, now).filter(|uid| !BTreeSet::contains(&acknowledged, uid)).collect(),
            acknowledged,
            bundle: bundle.unwrap_or_default(),
            unbundled: unbundled.unwrap_or_default(),
            gates: None,
        };
        turn.gates = facts.map(|facts| turn.gates(topology, world, facts, now));
        turn
    }

    fn gates(&self, topology: &Topology, world: &World, facts: &AuthorityFacts, now: Timestamp) -> Facts {
        let mut live = BTreeMap::new();
        for record in records(world, self.domain).filter(|record| record.is_live(now)) {
            *live.entry(record.issuer.clone()).or_default() += 1;
        }
        // An owner that gives an authority again which is retiring wants it back.
        let retiring = |key_id: &String| {
            facts.members.iter().any(|one| one.member.key_id == *key_id && one.member.state == State::Retiring)
        };
        let again = match &self.given {
            Supplied::Sound(key_id, ..) => Some(key_id.clone()).filter(retiring),
            Supplied::Managed | Supplied::Broken(_) => None,
        };
        let rotation = &self.domain.rotation;
        Facts {
            acknowledged: self.unacknowledged.is_empty()
                && self.unbundled.is_empty()
                && secrets::outdated(topology, world, self.domain).is_empty(),
            min_trusted_seconds: u32::try_from(rotation.min_trusted_seconds).unwrap_or_default(),
            live,
            roll_back_to: rotation.roll_back_to.clone().or(again),
        }
    }

    /// Those who have not acknowledged what is known now, by name.
    pub(super) fn lagging(&self, world: &World) -> Vec<String> {
        let name = |uid: &&str| {
            let pod = world.declared.pods.iter().find(|pod| pod.uid == **uid);
            pod.map_or_else(|| format!("a pod that is gone ({uid})"), |pod| format!("{}/{}", pod.namespace, pod.name))
        };
        let names: BTreeSet<String> = self.unacknowledged.iter().map(name).collect();
        names.into_iter().collect()
    }
}

/// UIDs of pods that hold a certificate in use.
fn holders<'a>(world: &'a World, domain: &'a Domain, now: Timestamp) -> impl Iterator<Item = &'a str> {
    records(world, domain).filter(move |record| record.is_live(now)).filter_map(|record| match &record.holder {
        Holder::Pod(uid) => Some(uid.as_str()),
        Holder::Secret(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::tests::{at, follow, ledger, pod, record, server, settle, world},
        topology::ServerKey,
    };

    #[test]
    fn whoever_holds_a_certificate_in_use_is_waited_for_until_it_has_acknowledged_and_also_when_it_is_gone() {
        let mut world = world(vec![server("web", "[]"), server("api", "[]")], vec![pod("web"), pod("api")]);
        for (number, name) in [(1, "web"), (2, "api")] {
            let key = ServerKey { namespace: "shop".into(), name: name.into() };
            let gone = record(number + 10, &format!("gone-{name}"), 500);
            let records = [record(number, &format!("pod-{name}"), 10_000), gone];
            world.ledgers.insert(format!("ledger-{name}"), ledger(&key, &records));
        }
        let waited_for = |world: &World, second| {
            let (topology, _) = Topology::resolve(&world.declared);
            let domain = topology.domain("contoso").unwrap();
            let turn = Turn::of(&topology, world, domain, at(second), &mut Plan::default());
            assert_eq!(turn.unacknowledged.is_empty(), turn.lagging(world).is_empty());
            turn.unacknowledged.iter().map(|uid| (*uid).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(waited_for(&world, 400), ["gone-api", "gone-web", "pod-api", "pod-web"]);
        assert_eq!(waited_for(&world, 500), ["pod-api", "pod-web"], "a certificate that has ended is nobody's");
        settle(&mut world, at(600));
        follow(&mut world, "web", at(600));
        assert_eq!(waited_for(&world, 600), ["pod-api"]);
    }
}
