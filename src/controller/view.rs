//! What every replica serves from: the topology as it stands, swapped whole after every change.
//!
//! What widens waits until the leader has published it; what narrows acts at once: while this replica sees another
//! topology than was published, it serves the last published one, less what was withdrawn since.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use jiff::Timestamp;

use super::stores::Authorities;
use crate::{
    brief::{Brief, Cursor},
    identity::{DnsName, Identity},
    pki::{authority::Authority, revocation, verify::Anchors},
    plan::{
        World,
        briefs::{self, Trust},
        bundles, partners, published,
        routes::{RouteTable, routes_of},
        usable,
        withdrawals::withdrawals,
    },
    topology::{ServerKey, Topology, facts::PodFacts},
};

/// One consistent picture.
#[derive(Default)]
pub(super) struct View {
    /// What is declared.
    pub(super) topology: Arc<Topology>,
    /// The domains, by the name of their object.
    pub(super) domains: BTreeMap<String, DomainView>,
    /// UIDs of all pods that this replica knows of, selected or not.
    pub(super) known_pods: BTreeSet<String>,
    /// The namespace of each pod by its addresses.
    pub(super) namespaces: BTreeMap<IpAddr, String>,
    /// When it was taken: partners and their roots end.
    now: Timestamp,
    /// Pods of our own namespace: the other replicas are among them.
    pub(super) neighbours: Vec<PodFacts>,
}

/// One domain.
pub(super) struct DomainView {
    /// Its SPIFFE trust domain.
    pub(super) trust_domain: DnsName,
    /// Its authority, if it is sound.
    pub(super) authority: Option<Arc<Authority>>,
    /// What its briefs say of the authority, and who may vouch to us.
    pub(super) trust: Arc<Trusted>,
    /// What anybody may know: the files of the public trust bundle.
    pub(super) public: Arc<BTreeMap<String, String>>,
    /// What briefs are made of; `None` = nothing was published yet.
    served: Option<(Arc<Topology>, Cursor)>,
    /// Where its servers are.
    pub(super) routes: RouteTable,
}

/// What is trusted in a domain, and what was taken back.
#[derive(Default)]
pub(super) struct Trusted {
    /// The same for everybody.
    pub(super) everybody: Trust,
    /// For the sidecars of each server.
    servers: BTreeMap<ServerKey, Trust>,
    /// The roots, parsed.
    pub(super) anchors: Anchors,
    /// What was taken back, compiled.
    pub(super) revoked: revocation::View,
}

impl View {
    /// The next picture; tables of routes go on from `before`, others start with `epoch`.
    pub(super) fn next(
        before: &Self,
        topology: Topology,
        world: &World,
        authorities: &Authorities,
        (neighbours, epoch): (Vec<PodFacts>, u64),
        now: Timestamp,
    ) -> Self {
        let topology = Arc::new(topology);
        let one = |name: &String| {
            let domain = topology.domain(name)?;
            let old = before.domains.get(name);
            let mut routes = old.map_or_else(|| RouteTable::new(epoch), |old| old.routes.clone());
            routes.update(routes_of(&topology, name));
            let sound = usable(world, name).is_some();
            let authority = authorities.get(name).and_then(|loaded| loaded.as_ref().ok());
            let at = published(&topology, world, name).filter(|_| sound);
            let view = DomainView {
                trust_domain: domain.trust_domain.clone(),
                authority: authority.filter(|_| sound).map(|(_, loaded)| Arc::clone(&loaded.active)),
                // A broken authority signs nothing; what it said last stays.
                trust: if sound {
                    Arc::new(Trusted::of(&topology, world, name, now))
                } else {
                    old.map(|old| Arc::clone(&old.trust)).unwrap_or_default()
                },
                public: match usable(world, name) {
                    Some(facts) => Arc::new(bundles::data(domain, facts)),
                    None => old.map(|old| Arc::clone(&old.public)).unwrap_or_default(),
                },
                served: at.map(|at| (Arc::clone(&topology), at)).or_else(|| old?.served.clone()),
                routes,
            };
            Some((name.clone(), view))
        };
        let names: Vec<String> = topology.domains().map(|domain| domain.name.clone()).collect();
        let pods = world.declared.pods.iter().filter(|pod| !pod.ending);
        let namespaces = pods.flat_map(|pod| pod.addresses.iter().map(|address| (*address, pod.namespace.clone())));
        let known_pods = world.declared.pods.iter().map(|pod| pod.uid.clone()).collect();
        let domains = names.iter().filter_map(one).collect();
        Self { domains, known_pods, namespaces: namespaces.collect(), now, neighbours, topology }
    }

    /// The domain with this SPIFFE trust domain.
    pub(super) fn trusting(&self, trust_domain: &DnsName) -> Option<&DomainView> {
        self.domains.values().find(|domain| domain.trust_domain == *trust_domain)
    }

    /// A file of the public trust bundle of a SPIFFE trust domain of ours.
    pub(super) fn public(&self, trust_domain: &str, file: &str) -> Option<String> {
        let domain = self.domains.values().find(|domain| domain.trust_domain.as_str() == trust_domain)?;
        domain.public.get(file).cloned()
    }

    /// The brief of the pod that `identity` names, as far as `domain` has published one. A pod that nobody knows is told
    /// that it is withdrawn where `patience_over` says that it is not merely new.
    pub(super) fn brief(
        &self,
        domain: &DomainView,
        identity: &Identity,
        uid: &str,
        patience_over: bool,
    ) -> Result<Option<Brief>, String> {
        let Some((topology, at)) = &domain.served else { return Ok(None) };
        let now = self.topology.pod(uid);
        if let Some((server, _)) = now.filter(|(server, _)| server.id != identity.id) {
            return Err(format!("this pod is {} now: ask for a certificate of that server", server.id));
        }
        let trust = |key: &ServerKey| domain.trust.servers.get(key).unwrap_or(&domain.trust.everybody);
        Ok(match topology.pod(uid).filter(|(server, _)| server.id == identity.id) {
            Some((server, pod)) if Arc::ptr_eq(topology, &self.topology) => {
                let partners = partners::told(topology, server, self.now);
                Some(briefs::brief_of(topology, server, pod, (trust(&server.key), &partners), at.clone()))
            }
            Some((server, pod)) => {
                let narrowed = briefs::narrowed(server, &self.topology);
                let known = partners::told(&self.topology, &narrowed, self.now);
                let partners = partners::common(partners::told(topology, &narrowed, self.now), &known, &narrowed);
                Some(briefs::brief_of(topology, &narrowed, pod, (trust(&server.key), &partners), at.clone()))
            }
            // Its server is on its way to be published.
            None if now.is_some() => None,
            None if self.known_pods.contains(uid) || patience_over => {
                Some(briefs::withdrawn(identity, &domain.trust.everybody, at.clone()))
            }
            None => None,
        })
    }
}

impl DomainView {
    /// Where briefs stand.
    pub(super) fn at(&self) -> Option<&Cursor> {
        self.served.as_ref().map(|(_, at)| at)
    }
}

impl Trusted {
    fn of(topology: &Topology, world: &World, name: &str, now: Timestamp) -> Self {
        let Some(domain) = topology.domain(name) else { return Self::default() };
        let facts = usable(world, name);
        let taken = withdrawals(topology, world, domain, now);
        let everybody = Trust::of(facts, &taken, topology, None);
        let own = topology.servers().filter(|server| server.domain == name);
        let servers = own.map(|server| (server.key.clone(), Trust::of(facts, &taken, topology, Some(server))));
        Self {
            servers: servers.collect(),
            anchors: Anchors::parse(&everybody.scope().anchors).unwrap_or_default(),
            // What cannot be compiled knows nobody: everybody is refused.
            revoked: revocation::View::of(everybody.scope()).unwrap_or_default(),
            everybody,
        }
    }
}
