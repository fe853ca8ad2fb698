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
    let trusted = partner.is_trusted(now) && !anchors.is_empty();
    trusted.then(|| Scope {
        id: partner_scope(&partner.key.name),
        names: ScopeNames::Partner(partner.names.clone()),
        anchors,
        issuers: vec![],
        revocation: None,
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
        Some(Scope { names: ScopeNames::Partner(names), anchors: shared(&scope.anchors, &other.anchors)?, ..scope })
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
fn data(topology: &Topology, namespace: &str, now: Timestamp) -> BTreeMap<String, String> {
    let here = topology.partners().filter(|partner| partner.key.namespace == namespace);
    let one = |partner: &Partner| {
        let scope = scope(partner, now)?;
        let roots = Bundle::of(scope.anchors.iter().map(String::as_str)).render();
        Some((format!("{}.crt", partner.key.name), roots))
    };
    here.filter_map(one).collect()
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
