//! Partners: other organisations, each resolved for itself. One loses only what is wrong about it; what nothing is left
//! of is not there.

use base64::prelude::{BASE64_STANDARD, Engine};

use super::{
    Declared, Key, Partner, PartnerKey, Problem, Topology,
    resolve::{Problems, not_joined, seniority},
    trust,
};
use crate::{api::FederationPartner, brief::PartnerNames, identity::DnsName};

/// Adds every partner that is accepted, oldest first: what two claim, the older one keeps.
pub(super) fn partners(declared: &Declared, topology: &mut Topology, problems: &mut Problems) {
    let here = declared.partners.iter().filter(|partner| partner.metadata.deletion_timestamp.is_none());
    let mut sorted: Vec<&FederationPartner> = here.collect();
    sorted.sort_by_key(|partner| {
        seniority(&partner.metadata, partner.status.as_ref().map(|status| status.conditions.as_slice()))
    });
    for object in sorted {
        let key = PartnerKey::of(object);
        let mut own = vec![];
        if let Some(partner) = partner(object, &key, declared, topology, &mut own) {
            topology.partners.insert(key.clone(), partner);
        }
        problems.extend(own.into_iter().map(|problem| (Key::Partner(key.clone()), problem)));
    }
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
    let neighbours = topology.partners().filter(|other| other.key.namespace == key.namespace);
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
    let mut neighbours = topology.partners().filter(|other| other.key.namespace == key.namespace);
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
