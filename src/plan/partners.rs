//! What is told of partners: a scope of its own for each, in the briefs of the Edge servers that list it and nowhere
//! else, and a ConfigMap for applications there.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{Plan, Step, World};
use crate::{
    api::Role,
    brief::{Mode, PartnerNames, Scope, ScopeNames, partner_scope},
    pki::bundle::Bundle,
    topology::{Domain, Partner, PartnerKey, Server, Topology},
};

/// Name of the ConfigMap with the roots of a namespace's partners.
pub const NAME: &str = "entente-partners";

/// Bytes up to which lists are passed on in it.
const MOST_LISTS: usize = 768 * 1024;

/// The scopes of the partners that ports of `server` list, as far as they are trusted now.
pub fn scopes(topology: &Topology, server: &Server, now: Timestamp) -> Vec<Scope> {
    if server.role != Role::Edge {
        return vec![];
    }
    // A port of another mode knows no caller, and a sidecar refuses a scope that serves nobody.
    let ports = server.ports.iter().filter(|port| port.mode == Some(Mode::MutualTls));
    let entries = ports.flat_map(|port| &port.allow.partners);
    let listed: BTreeSet<&str> = entries.map(|entry| entry.name.as_str()).collect();
    let key = |name: &str| PartnerKey { namespace: server.key.namespace.clone(), name: name.to_owned() };
    listed.into_iter().filter_map(|name| scope(topology.partner(&key(name))?, now)).collect()
}

fn scope(partner: &Partner, now: Timestamp) -> Option<Scope> {
    let anchors: Vec<String> = partner.anchors(now).map(|root| root.pem.clone()).collect();
    let trusted = partner.is_trusted(now) && (partner.names.web || !anchors.is_empty());
    trusted.then(|| Scope {
        id: partner_scope(&partner.key.name),
        names: ScopeNames::Partner(partner.names.clone()),
        anchors,
        issuers: vec![],
        revocation: partner.revocation.clone(),
    })
}

/// What two answers of [`scopes`] both say: while a change waits to be published, what it takes away is taken away at
/// once, and what it adds is not there yet.
pub fn common(published: Vec<Scope>, now: &[Scope]) -> Vec<Scope> {
    let both = |scope: Scope| {
        let other = now.iter().find(|other| other.id == scope.id)?;
        let (ScopeNames::Partner(names), ScopeNames::Partner(also)) = (&scope.names, &other.names) else { return None };
        let names = PartnerNames {
            domains: shared(&names.domains, &also.domains)?,
            server_names: narrower(&names.server_names, &also.server_names)?,
            public_key_pins: narrower(&names.public_key_pins, &also.public_key_pins)?,
            trust_domain: names.trust_domain.clone().filter(|own| also.trust_domain.as_ref() == Some(own)),
            web: names.web && also.web,
        };
        // What was taken back meanwhile is taken back at once.
        let revocation = other.revocation.clone().or_else(|| scope.revocation.clone());
        // Anchors of the web PKI stand elsewhere; roots and those never stand in for each other.
        let anchors = if names.web { vec![] } else { shared(&scope.anchors, &other.anchors)? };
        Some(Scope { names: ScopeNames::Partner(names), anchors, revocation, ..scope })
    };
    published.into_iter().filter_map(both).collect()
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

/// What ConfigMap `entente-partners` of a namespace holds; nothing = there is none.
fn data<'a>(topology: &'a Topology, namespace: &str, now: Timestamp) -> BTreeMap<String, String> {
    let here = topology.partners().filter(|partner| partner.key.namespace == namespace);
    let one = |partner: &'a Partner| {
        let scope = scope(partner, now)?;
        let roots = Bundle::of(scope.anchors.iter().map(String::as_str)).render();
        Some((partner.key.name.as_str(), roots, partner.crl_pem.as_str()))
    };
    let mut data = BTreeMap::new();
    let mut bytes = 0;
    for (name, roots, lists) in here.filter_map(one) {
        bytes += roots.len() + lists.len();
        // Everybody's lists together must fit into one object; those that do not are told to sidecars alone.
        if !lists.is_empty() && bytes <= MOST_LISTS {
            data.insert(format!("{name}.crl.pem"), lists.to_owned());
        }
        if !roots.is_empty() {
            data.insert(format!("{name}.crt"), roots);
        }
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
        let wanted = match topology.domain_of_namespace(namespace) {
            Some(domain) => domain.edge_namespaces.contains(namespace) && !data(topology, namespace, now).is_empty(),
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
