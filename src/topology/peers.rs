//! Who is named in `allowFrom`: servers of the same domain, and partners of the same namespace.

use std::collections::BTreeMap;

use super::{PartnerKey, Problem, Server, ServerKey, Topology};
use crate::{
    api::{AllowedPeer, PortMode, PortSpec, Role, TrustedServer},
    brief::{Allow, AllowedPartner, AllowedServer},
    identity::SpiffeId,
};

/// Who may call the ports of `object` that say so, by the name of the port. Only what is in order is admitted.
pub(super) fn named(
    object: &TrustedServer,
    server: &Server,
    topology: &Topology,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, Allow> {
    let ports = &object.spec.ports;
    let lists = ports.iter().filter_map(|port| Some((port, port.allow_from.as_ref()?)));
    lists.map(|(port, listed)| (port.name.clone(), allow((port, ports), listed, server, topology, problems))).collect()
}

fn allow(
    (port, ports): (&PortSpec, &[PortSpec]),
    listed: &[AllowedPeer],
    server: &Server,
    topology: &Topology,
    problems: &mut Vec<Problem>,
) -> Allow {
    let mut servers = BTreeMap::<SpiffeId, Option<u16>>::new();
    let mut partners = BTreeMap::<String, Option<u16>>::new();
    for entry in listed {
        let target_port = match target(entry, port, ports) {
            Ok(number) => number,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        match caller(entry, port, server, topology) {
            Ok(Caller::Server(id)) => drop(servers.entry(id).or_insert(target_port)),
            Ok(Caller::Partner(name)) => drop(partners.entry(name).or_insert(target_port)),
            Err(problem) => problems.extend(problem),
        }
    }
    if !listed.is_empty() {
        servers.entry(server.id.clone()).or_insert(None);
    }
    Allow {
        all_declared: false,
        servers: servers.into_iter().map(|(id, target_port)| AllowedServer { id, target_port }).collect(),
        partners: partners.into_iter().map(|(name, target_port)| AllowedPartner { name, target_port }).collect(),
    }
}

enum Caller {
    Server(SpiffeId),
    Partner(String),
}

/// Whom an entry names; one that names nobody is nobody's problem but the API server's.
fn caller(
    entry: &AllowedPeer,
    port: &PortSpec,
    server: &Server,
    topology: &Topology,
) -> Result<Caller, Option<Problem>> {
    let port = port.name.clone();
    let AllowedPeer { server: peer, partner, target_port: _ } = entry;
    if let Some(peer) = peer {
        let namespace = peer.namespace.clone().unwrap_or_else(|| server.key.namespace.clone());
        let key = ServerKey { namespace, name: peer.name.clone() };
        return match topology.server(&key).filter(|peer| peer.domain == server.domain) {
            Some(peer) => Ok(Caller::Server(peer.id.clone())),
            None => Err(Some(Problem::UnknownPeer { port, peer: key.to_string() })),
        };
    }
    let Some(partner) = partner else { return Err(None) };
    let key = PartnerKey { namespace: server.key.namespace.clone(), name: partner.name.clone() };
    match topology.partner(&key).filter(|_| server.role == Role::Edge) {
        Some(_) => Ok(Caller::Partner(key.name)),
        None => Err(Some(Problem::UnknownPartner { port, partner: key.name })),
    }
}

/// The local port that an entry asks for: none that means another port of the server.
fn target(entry: &AllowedPeer, own: &PortSpec, ports: &[PortSpec]) -> Result<Option<u16>, Problem> {
    let Some(wanted) = entry.target_port.filter(|_| own.mode == PortMode::MutualTLS) else { return Ok(None) };
    let Ok(number) = u16::try_from(wanted) else { return Ok(None) };
    let taken = |port: &&PortSpec| {
        port.name != own.name && (port.port == wanted || port.target_port.unwrap_or(port.port) == wanted)
    };
    match ports.iter().find(taken) {
        Some(other) => Err(Problem::TargetPortConflict { port: own.name.clone(), number, other: other.name.clone() }),
        None => Ok(Some(number)),
    }
}
