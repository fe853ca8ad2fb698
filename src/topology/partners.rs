//! Partners: other organisations, each resolved for itself. One loses only what is wrong about it; what nothing is left
//! of is not there.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine};

use super::{
    Declared, Key, Partner, PartnerKey, Problem, Topology,
    resolve::{Problems, not_joined, seniority},
    trust,
};
use crate::{
    api::{self, FederationPartner, MinTlsVersion},
    brief::{PartnerEdge, PartnerNames},
    identity::DnsName,
};

/// Partners of one namespace: a brief tells of all of them where a port lists all.
const MAX_PARTNERS: usize = crate::pki::verify::MAX_PARTNERS;
/// Bytes of their roots and lists, in all: they must fit into one answer to a sidecar, with everything else.
const MAX_TRUST: usize = 2 * 1024 * 1024;

/// Adds every partner that is accepted, oldest first: what two claim, the older one keeps.
pub(super) fn partners(declared: &Declared, topology: &mut Topology, problems: &mut Problems) {
    let here = declared.partners.iter().filter(|partner| partner.metadata.deletion_timestamp.is_none());
    let mut sorted: Vec<&FederationPartner> = here.collect();
    sorted.sort_by_key(|partner| {
        seniority(&partner.metadata, partner.status.as_ref().map(|status| status.conditions.as_slice()))
    });
    let mut taken = BTreeMap::<String, (usize, usize)>::new();
    for object in sorted {
        let key = PartnerKey::of(object);
        let mut own = vec![];
        if let Some(partner) = partner(object, &key, declared, topology, &mut own) {
            let (count, bytes) = taken.entry(key.namespace.clone()).or_default();
            let size = size(&partner);
            if *count < MAX_PARTNERS && *bytes + size <= MAX_TRUST {
                (*count, *bytes) = (*count + 1, *bytes + size);
                topology.partners.insert(key.clone(), partner);
            } else {
                own.push(Problem::TooManyPartners { most: MAX_PARTNERS, bytes: MAX_TRUST });
            }
        }
        problems.extend(own.into_iter().map(|problem| (Key::Partner(key.clone()), problem)));
    }
}

/// Bytes that sidecars are told of a partner's trust.
fn size(partner: &Partner) -> usize {
    let lists = partner.revocation.iter().flat_map(|revocation| revocation.serials.values().flatten());
    let serials: usize = lists.map(|serial| serial.len() + 3).sum();
    serials + partner.roots.iter().map(|root| root.pem.len()).sum::<usize>()
}

fn partner(
    object: &FederationPartner,
    key: &PartnerKey,
    declared: &Declared,
    topology: &Topology,
    problems: &mut Vec<Problem>,
) -> Option<Partner> {
    let spec = &object.spec;
    let Some(domain) = topology.domain_of_namespace(&key.namespace) else {
        problems.push(not_joined(declared, &key.namespace));
        return None;
    };
    if !domain.edge_namespaces.contains(&key.namespace) {
        problems.push(Problem::NotEdgeNamespace { namespace: key.namespace.clone(), domain: domain.name.clone() });
        return None;
    }
    let mut domains = vec![];
    for text in &spec.domains {
        match claim(text, key, topology) {
            Ok(name) => domains.push(name),
            Err(problem) => problems.push(problem),
        }
    }
    // One that does not parse is none that a certificate can have; it must not make the list empty, which means all.
    let server_names: Result<Vec<_>, _> = spec.server_names.iter().map(|text| DnsName::parse(text)).collect();
    let server_names = server_names.map_err(|error| problems.push(Problem::InvalidName(error.to_string()))).ok()?;
    // One bad pin would make sidecars refuse their whole brief, and a list without it might admit every key.
    if let Some(pin) = spec.public_key_pins.iter().find(|pin| !is_pin(pin)) {
        problems.push(Problem::InvalidPin(pin.chars().take(80).collect()));
        return None;
    }
    let trust = trust::trust(object, key, declared, problems)?;
    if let Some(problem) = trust.trust_domain.as_ref().and_then(|name| identities(name, key, topology)) {
        problems.push(problem);
        return None;
    }
    if domains.is_empty() || !trust.is_there() {
        return None;
    }
    let edge = |edge: &api::PartnerEdge| {
        let host = DnsName::parse(&edge.host).ok()?;
        let within = domains.iter().any(|domain| host.is_within(domain));
        Some(PartnerEdge { host, port: u16::try_from(edge.port).ok()? }).filter(|_| within)
    };
    let edges = spec.edges.iter().filter_map(edge).collect();
    Some(Partner {
        key: key.clone(),
        uid: object.metadata.uid.clone().unwrap_or_default(),
        domain: domain.name.clone(),
        state: spec.state,
        names: PartnerNames {
            domains,
            server_names,
            public_key_pins: spec.public_key_pins.clone(),
            trust_domain: trust.trust_domain,
            web: trust.web,
        },
        edges,
        tls12: spec.min_tls_version == MinTlsVersion::Tls12,
        present_secret: Some(spec.present_secret_name.clone()).filter(|name| !name.is_empty()),
        limits: spec.limits.clone(),
        roots: trust.roots,
        revocation: trust.revocation,
        crl_pem: trust.crl_pem,
        valid_until: spec.valid_until.as_ref().map(|time| time.0),
    })
}

/// A name that the partner may speak for: neither ours, nor an older partner's, nor around one of these.
fn claim(text: &str, key: &PartnerKey, topology: &Topology) -> Result<DnsName, Problem> {
    let name = DnsName::parse(text).map_err(|error| Problem::InvalidName(error.to_string()))?;
    let overlaps = |other: &DnsName| name.is_within(other) || other.is_within(&name);
    let ours = topology.domains().find(|domain| domain.permitted().iter().any(overlaps));
    if let Some(domain) = ours {
        return Err(Problem::DomainOverlap { name, other: format!("TrustDomain {}", domain.name) });
    }
    // Partners of other namespaces never meet this one in a sidecar: nobody there can take a name away here.
    let neighbours = topology.partners_in(&key.namespace);
    match neighbours.into_iter().find(|other| other.names.domains.iter().any(overlaps)) {
        Some(older) => {
            Err(Problem::DomainOverlap { name, other: format!("the older FederationPartner {}", older.key.name) })
        }
        None => Ok(name),
    }
}

/// Whose identities those of the SPIFFE trust domain `name` are already.
fn identities(name: &DnsName, key: &PartnerKey, topology: &Topology) -> Option<Problem> {
    let ours = topology.domains().find(|domain| domain.trust_domain == *name);
    if let Some(domain) = ours {
        return Some(Problem::DomainOverlap { name: name.clone(), other: format!("TrustDomain {}", domain.name) });
    }
    let mut neighbours = topology.partners_in(&key.namespace);
    let older = neighbours.find(|other| other.names.trust_domain.as_ref() == Some(name))?;
    let other = format!("the older FederationPartner {}", older.key.name);
    Some(Problem::DomainOverlap { name: name.clone(), other })
}

/// Whether it is the base64 of a SHA-256 digest.
fn is_pin(text: &str) -> bool {
    BASE64_STANDARD.decode(text).is_ok_and(|digest| digest.len() == 32)
}

#[cfg(test)]
mod tests;
