//! What every replica serves from: the topology as it stands, swapped whole after every change.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    brief::Cursor,
    identity::DnsName,
    pki::{authority::Authority, verify::Anchors},
    plan::{
        World, anchors, published,
        routes::{RouteTable, routes_of},
    },
    topology::{Topology, facts::PodFacts},
};

/// One consistent picture.
#[derive(Default)]
pub(super) struct View {
    /// What is declared.
    pub(super) topology: Topology,
    /// The domains, by the name of their object.
    pub(super) domains: BTreeMap<String, DomainView>,
    /// UIDs of all pods that this replica knows of, selected or not.
    pub(super) known_pods: BTreeSet<String>,
    /// Pods of our own namespace: the other replicas are among them.
    pub(super) neighbours: Vec<PodFacts>,
}

/// One domain.
pub(super) struct DomainView {
    /// Its SPIFFE trust domain.
    pub(super) trust_domain: DnsName,
    /// Its authority, if it is sound.
    pub(super) authority: Option<Arc<Authority>>,
    /// Its roots, PEM.
    pub(super) roots: Vec<String>,
    /// Its roots, parsed.
    pub(super) anchors: Anchors,
    /// Where briefs stand; `None` while this replica sees another topology than was published.
    pub(super) published: Option<Cursor>,
    /// Where its servers are.
    pub(super) routes: RouteTable,
}

impl View {
    /// The next picture; tables of routes go on from `before`, others start with `epoch`.
    pub(super) fn next(
        before: &Self,
        topology: Topology,
        world: &World,
        authorities: &BTreeMap<String, Result<Arc<Authority>, String>>,
        neighbours: Vec<PodFacts>,
        epoch: u64,
    ) -> Self {
        let one = |name: &String| {
            let domain = topology.domain(name)?;
            let roots = anchors(world, name);
            let mut routes = before.domains.get(name).map_or_else(|| RouteTable::new(epoch), |old| old.routes.clone());
            routes.update(routes_of(&topology, name));
            let view = DomainView {
                trust_domain: domain.trust_domain.clone(),
                authority: authorities.get(name).and_then(|loaded| loaded.as_ref().ok()).cloned(),
                anchors: Anchors::parse(&roots).unwrap_or_default(),
                roots,
                published: published(&topology, world, name),
                routes,
            };
            Some((name.clone(), view))
        };
        let names: Vec<String> = topology.domains().map(|domain| domain.name.clone()).collect();
        let known_pods = world.declared.pods.iter().map(|pod| pod.uid.clone()).collect();
        Self { domains: names.iter().filter_map(one).collect(), known_pods, neighbours, topology }
    }

    /// The domain with this SPIFFE trust domain.
    pub(super) fn trusting(&self, trust_domain: &DnsName) -> Option<&DomainView> {
        self.domains.values().find(|domain| domain.trust_domain == *trust_domain)
    }
}
