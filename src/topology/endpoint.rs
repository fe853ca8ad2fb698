//! Our own bundle endpoints: a server of each domain that nobody declares. Its software is the operator's, so it has
//! neither pods nor ports, and no sidecar ever meets it; all that it has is a certificate in a Secret.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::{Declared, Domain, Problem, Selector, Server, ServerKey};
use crate::{
    api::{ProxyResources, Role, TrustedServer},
    brief::{Egress, Standing},
    identity::SpiffeId,
};

/// Prefix of the Secret with the certificate of a domain's endpoint.
pub const SECRET: &str = "entente-bundle-";

/// What the endpoint of `domain` is called, in the operator's `namespace`.
pub fn key(namespace: &str, domain: &str) -> ServerKey {
    ServerKey { namespace: namespace.to_owned(), name: format!("bundle-{domain}") }
}

/// The endpoint of `domain`; `None` = it is not asked for.
pub(super) fn of(declared: &Declared, domain: &Domain) -> Option<Result<Server, Problem>> {
    let namespace = declared.bundle_endpoint.as_deref()?;
    let secret = format!("{SECRET}{}", domain.name);
    let key = key(namespace, &domain.name);
    // Whoever has its name or its Secret, it is never shared: a ledger has one owner.
    let taken = |object: &&TrustedServer| {
        let own = ServerKey::of(object);
        own == key || (own.namespace == key.namespace && object.spec.certificate.secret_name == secret)
    };
    Some(match declared.servers.iter().find(taken) {
        Some(other) => {
            Err(Problem::EndpointTaken { endpoint: key.to_string(), other: ServerKey::of(other).to_string() })
        }
        None => server(declared, domain, key, secret),
    })
}

fn server(declared: &Declared, domain: &Domain, key: ServerKey, secret: String) -> Result<Server, Problem> {
    let id = SpiffeId::new(&domain.trust_domain, &key.namespace, &key.name)
        .map_err(|error| Problem::InvalidName(error.to_string()))?;
    let name = id.topology_name().ok_or_else(|| {
        Problem::InvalidName(format!("{}.{}.{} must be a DNS name", key.name, key.namespace, domain.trust_domain))
    })?;
    let meta = declared.domain(&domain.name).map(|object| &object.metadata);
    let created = meta.and_then(|meta| meta.creation_timestamp.as_ref());
    Ok(Server {
        key,
        uid: meta.and_then(|meta| meta.uid.clone()).unwrap_or_default(),
        created: created.map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        domain: domain.name.clone(),
        id,
        built_in: true,
        role: Role::Internal,
        standing: Standing::Active,
        revoke_issued_before: None,
        secret_name: Some(secret),
        server_secret_name: None,
        selector: Selector::nothing(),
        service_account: String::new(),
        names: BTreeSet::from([name]),
        ports: vec![],
        egress: Egress::default(),
        drain_seconds: 0,
        resources: ProxyResources::default(),
    })
}
