//! What one proxy is told.

use sha2::{Digest, Sha256};

use crate::{
    brief::{Brief, Cursor, Egress, INTERNAL, Port, Scope, Standing, VERSION},
    identity::Identity,
    pki,
    topology::{Server, ServerPort, Topology, facts::PodFacts},
};

/// The brief of `pod`, one of `server`'s, `at` a published revision.
pub fn brief_of(topology: &Topology, server: &Server, pod: &PodFacts, anchors: &[String], at: Cursor) -> Brief {
    let lifetime = topology.domain(&server.domain).map_or(86_400, |domain| domain.lifetime_seconds);
    sealed(
        Brief {
            version: VERSION,
            cursor: Cursor::default(),
            identity: server.id.clone(),
            standing: Standing::Active,
            names: topology.names_of(server, pod).into_iter().collect(),
            lifetime_seconds: lifetime,
            ports: server.ports.iter().filter_map(port).collect(),
            egress: Egress { unrestricted: server.unrestricted, networks: server.egress.clone() },
            scopes: vec![Scope { id: INTERNAL.to_owned(), anchors: anchors.to_vec() }],
            drain_seconds: server.drain_seconds,
        },
        at,
    )
}

/// The brief of a pod whose server is no longer declared: refuse everything, end what is open. It keeps the names and
/// the anchors that the pod has, so that nothing is asked for anew and the pod can come back.
pub fn withdrawn(identity: &Identity, anchors: &[String], at: Cursor) -> Brief {
    sealed(
        Brief {
            version: VERSION,
            cursor: Cursor::default(),
            identity: identity.id.clone(),
            standing: Standing::Withdrawn,
            names: identity.dns_names.iter().cloned().collect(),
            lifetime_seconds: 86_400,
            ports: vec![],
            egress: Egress::default(),
            scopes: vec![Scope { id: INTERNAL.to_owned(), anchors: anchors.to_vec() }],
            drain_seconds: 0,
        },
        at,
    )
}

/// UDP ports travel with the pod's interception rules, not with the brief.
fn port(port: &ServerPort) -> Option<Port> {
    let ServerPort { name, port, target_port, mode, allow } = port;
    let (name, allow) = (name.clone(), allow.clone());
    Some(Port { name, port: *port, target_port: *target_port, mode: (*mode)?, allow })
}

/// Gives the brief its cursor: the revision, and the hash of everything else.
fn sealed(brief: Brief, at: Cursor) -> Brief {
    // A brief is made of strings, numbers and lists: serde_json has no reason to refuse it.
    let bytes = serde_json::to_vec(&brief).unwrap_or_default();
    let hash = pki::hex(&Sha256::digest(bytes)[..16]);
    Brief { cursor: Cursor { hash, ..at }, ..brief }
}
