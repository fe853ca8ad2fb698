//! What is told of partners: a scope of its own for each, in the briefs of the Edge servers that list it and nowhere
//! else, and a ConfigMap for applications there.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{Plan, Step, Turn, World};
use crate::{
    api::Role,
    brief::{Mode, PartnerLink, PartnerNames, PartnerStanding, Scope, ScopeNames, partner_scope},
    pki::{self, bundle::Bundle},
    topology::{Domain, Partner, PartnerKey, Server, Topology},
};

/// Name of the ConfigMap with the roots of a namespace's partners.
pub const NAME: &str = "entente-partners";

/// Bytes up to which lists are passed on in it.
const MOST_LISTS: usize = 768 * 1024;

/// All that the sidecars of one server are told of partners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Federation {
    /// Whom they trust, for what.
    pub scopes: Vec<Scope>,
    /// How they deal with them: a link for each scope.
    pub links: Vec<PartnerLink>,
    /// Roots of the web PKI, where a scope rests on them.
    pub web_roots: Vec<String>,
    /// Digest of all this, made once for every sidecar of a server: revocations may be long. Empty = there is nothing.
    digest: String,
}

impl Federation {
    fn of((scopes, links): (Vec<Scope>, Vec<PartnerLink>), web_roots: &[String]) -> Self {
        if scopes.is_empty() {
            return Self::default();
        }
        let web = scopes.iter().any(|scope| matches!(&scope.names, ScopeNames::Partner(names) if names.web));
        let web_roots = if web { web_roots.to_vec() } else { vec![] };
        // It is made of strings, numbers and lists: serde_json has no reason to refuse it.
        let text = serde_json::to_vec(&(&scopes, &links, &web_roots)).unwrap_or_default();
        Self { scopes, links, web_roots, digest: pki::sha256_hex(&text) }
    }

    /// Changes with everything in it.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

/// What the sidecars of `server` are told of partners: an Edge server of those that a port of it lists, and of those
/// that it may call; every other server of none. One that is not trusted now has no anchors.
pub fn told(topology: &Topology, server: &Server, now: Timestamp) -> Federation {
    let both = met(topology, server).map(|partner| (scope(partner, now), link(partner, now))).unzip();
    Federation::of(both, topology.web_roots())
}

fn met<'a>(topology: &'a Topology, server: &'a Server) -> impl Iterator<Item = &'a Partner> {
    // A port of another mode knows no caller, and a sidecar refuses a scope that serves nobody.
    let ports = server.ports.iter().filter(|port| port.mode == Some(Mode::MutualTls));
    let entries = ports.flat_map(|port| &port.allow.partners);
    let listed: BTreeSet<&str> = entries.map(|entry| entry.name.as_str()).collect();
    let here = topology.partners_in(&server.key.namespace);
    here.filter(move |partner| {
        server.role == Role::Edge && (listed.contains(partner.key.name.as_str()) || !partner.edges.is_empty())
    })
}

/// The Secrets with certificates that sidecars of `server` present to partners, by the partner's name.
pub fn presented(topology: &Topology, server: &Server) -> BTreeMap<String, String> {
    let secret = |partner: &Partner| Some((partner.key.name.clone(), partner.present_secret.clone()?));
    met(topology, server).filter_map(secret).collect()
}

fn scope(partner: &Partner, now: Timestamp) -> Scope {
    let trusted = partner.standing(now) == PartnerStanding::Active;
    // Nobody vouches for one that is not trusted, the web PKI neither.
    let names = PartnerNames { web: partner.names.web && trusted, ..partner.names.clone() };
    Scope {
        id: partner_scope(&partner.key.name),
        names: ScopeNames::Partner(names),
        anchors: partner.anchors(now).filter(|_| trusted).map(|root| root.pem.clone()).collect(),
        issuers: vec![],
        revocation: partner.revocation.clone().filter(|_| trusted),
    }
}

fn link(partner: &Partner, now: Timestamp) -> PartnerLink {
    PartnerLink {
        name: partner.key.name.clone(),
        standing: partner.standing(now),
        edges: partner.edges.clone(),
        tls12: partner.tls12,
        presents: partner.present_secret.is_some(),
        max_connections: u32::try_from(partner.limits.max_connections).unwrap_or_default(),
        handshakes_per_second: u32::try_from(partner.limits.handshakes_per_second).unwrap_or_default(),
    }
}

/// What two answers of [`told`] both say: while a change waits to be published, what it takes away is taken away at
/// once, and what it adds is not there yet. `listed` are the partners that ports still list.
pub fn common(published: Federation, now: &Federation, server: &Server) -> Federation {
    let mut both = (vec![], vec![]);
    for (scope, link) in published.scopes.into_iter().zip(published.links) {
        let then = now.scopes.iter().zip(&now.links).find(|(other, _)| other.id == scope.id);
        let Some((other, also)) = then else { continue };
        let link = narrower_link(link, also);
        let listed = server.ports.iter().any(|port| port.allow.partner(&link.name).is_some());
        // A sidecar refuses a scope that serves nobody.
        let scope = narrower_scope(scope, other).filter(|_| listed || !link.edges.is_empty());
        if let Some(scope) = scope {
            both.0.push(scope);
            both.1.push(link);
        }
    }
    Federation::of(both, &published.web_roots)
}

fn narrower_scope(scope: Scope, other: &Scope) -> Option<Scope> {
    let (ScopeNames::Partner(names), ScopeNames::Partner(also)) = (&scope.names, &other.names) else { return None };
    let names = PartnerNames {
        domains: shared(&names.domains, &also.domains)?,
        server_names: narrower(&names.server_names, &also.server_names)?,
        public_key_pins: narrower(&names.public_key_pins, &also.public_key_pins)?,
        trust_domain: names.trust_domain.clone().filter(|own| also.trust_domain.as_ref() == Some(own)),
        web: names.web && also.web,
    };
    // Roots and those of the web PKI, which stand elsewhere, never stand in for each other.
    let anchors = shared(&scope.anchors, &other.anchors).unwrap_or_default();
    // What was taken back meanwhile is taken back at once.
    let revocation = other.revocation.clone().or(scope.revocation);
    Some(Scope { names: ScopeNames::Partner(names), anchors, revocation, ..scope })
}

fn narrower_link(link: PartnerLink, also: &PartnerLink) -> PartnerLink {
    PartnerLink {
        standing: if also.standing == PartnerStanding::Active { link.standing } else { also.standing },
        edges: shared(&link.edges, &also.edges).unwrap_or_default(),
        tls12: link.tls12 && also.tls12,
        max_connections: link.max_connections.min(also.max_connections),
        handshakes_per_second: link.handshakes_per_second.min(also.handshakes_per_second),
        ..link
    }
}

/// What is in both; `None` = nothing.
fn shared<T: Clone + PartialEq>(one: &[T], other: &[T]) -> Option<Vec<T>> {
    let both: Vec<T> = one.iter().filter(|item| other.contains(item)).cloned().collect();
    (!both.is_empty()).then_some(both)
}

/// The same where an empty list stands for everything.
fn narrower<T: Clone + PartialEq>(one: &[T], other: &[T]) -> Option<Vec<T>> {
    match (one, other) {
        ([], all) | (all, []) => Some(all.to_vec()),
        (one, other) => shared(one, other),
    }
}

/// Whether a partner that is being deleted may go: no sidecar that can be reached has it in force any more. Nobody waits
/// for one that cannot be reached, so that no deletion hangs; it cuts the partner as soon as it hears of it.
pub(super) fn may_go(key: &PartnerKey, topology: &Topology, turn: Option<&Turn<'_>>) -> bool {
    let Some(turn) = turn else { return true };
    let here = topology.servers().filter(|server| server.key.namespace == key.namespace && server.role == Role::Edge);
    here.filter_map(|server| turn.survey.get(&server.key)).all(|pods| {
        let waiting = pods.all.len() - pods.bare.len() - pods.foreign_account.len() - pods.disconnected.len();
        pods.current >= waiting
    })
}

/// Whether the ConfigMap tells of a partner: of those that are trusted now by roots of their own.
fn is_told_of(partner: &Partner, now: Timestamp) -> bool {
    partner.standing(now) == PartnerStanding::Active && partner.anchors(now).next().is_some()
}

/// What ConfigMap `entente-partners` of a namespace holds; nothing = there is none.
fn data(topology: &Topology, namespace: &str, now: Timestamp) -> BTreeMap<String, String> {
    let mut data = BTreeMap::new();
    let mut bytes = 0;
    for partner in topology.partners_in(namespace).filter(|partner| is_told_of(partner, now)) {
        let (name, lists) = (&partner.key.name, &partner.crl_pem);
        let roots = Bundle::of(partner.anchors(now).map(|root| root.pem.as_str())).render();
        bytes += roots.len() + lists.len();
        // Everybody's lists together must fit into one object; those that do not are told to sidecars alone.
        if !lists.is_empty() && bytes <= MOST_LISTS {
            data.insert(format!("{name}.crl.pem"), lists.clone());
        }
        data.insert(format!("{name}.crt"), roots);
    }
    data
}

/// Writes the ConfigMaps of a domain's edge namespaces; one that has no partner to tell of has none.
pub(super) fn write(topology: &Topology, world: &World, domain: &Domain, now: Timestamp, plan: &mut Plan) {
    for namespace in domain.edge_namespaces.iter().filter(|one| !world.ending_namespaces.contains(*one)) {
        let data = data(topology, namespace, now);
        let held = world.partner_bundles.get(namespace);
        if !data.is_empty() && held != Some(&data) {
            let (namespace, domain) = (namespace.clone(), domain.name.clone());
            plan.steps.push(Step::WritePartners { namespace, domain, data });
        }
    }
    for partner in topology.partners().filter(|partner| partner.domain == domain.name) {
        let ends = partner.roots.iter().map(|root| root.validity.not_after.as_second() + 1);
        let stale = partner.revocation.iter().flat_map(|lists| lists.next_updates.values().map(|end| end + 1));
        let ends = ends.chain(stale);
        let ends = ends.filter_map(|second| Timestamp::from_second(second).ok()).chain(partner.valid_until);
        ends.filter(|end| *end > now).for_each(|end| plan.wake(end));
    }
}

/// Removes the ConfigMaps that have nothing to say any more.
pub(super) fn leftovers(topology: &Topology, world: &World, now: Timestamp, plan: &mut Plan) {
    for namespace in world.partner_bundles.keys() {
        let told_of = || topology.partners_in(namespace).any(|partner| is_told_of(partner, now));
        let wanted = match topology.domain_of_namespace(namespace) {
            Some(domain) => domain.edge_namespaces.contains(namespace) && told_of(),
            // One whose domain is only broken or gone for a moment keeps what it has.
            None => world.declared.namespaces.get(namespace).is_some_and(Option::is_some),
        };
        if !wanted {
            plan.steps.push(Step::DeletePartners { namespace: namespace.clone() });
        }
    }
}

#[cfg(test)]
mod tests;
