//! What a server may call beside the topology: networks, Services that are no part of it, and names.

use core::net::IpAddr;

use ipnet::IpNet;

use super::{Declared, Problem, ServerKey, Topology};
use crate::{
    api::{EgressRule, ObjectName, OutboundPolicy, TrustedServer},
    brief::{Egress, EgressHost, EgressNetwork},
    identity::DnsName,
};

/// What `object` may call; only what is in order is allowed.
pub(super) fn named(
    declared: &Declared,
    object: &TrustedServer,
    key: &ServerKey,
    topology: &Topology,
    problems: &mut Vec<Problem>,
) -> Egress {
    let unrestricted = object.spec.outbound.policy == OutboundPolicy::Unrestricted;
    let mut egress = Egress { unrestricted, ..Egress::default() };
    for EgressRule { cidr, service, host, ports } in &object.spec.outbound.extra {
        let ports: Vec<u16> = ports.iter().filter_map(|port| u16::try_from(*port).ok()).collect();
        if let Some(text) = cidr {
            match text.parse() {
                Ok(cidr) => egress.networks.push(EgressNetwork { cidr, ports }),
                Err(_) => problems.push(Problem::InvalidNetwork(text.clone())),
            }
        } else if let Some(name) = service {
            match addresses(declared, name, key) {
                Ok(found) => {
                    let network = |address| EgressNetwork { cidr: IpNet::from(address), ports: ports.clone() };
                    egress.networks.extend(found.map(network));
                }
                Err(problem) => problems.push(problem),
            }
        } else if let Some(text) = host {
            match outside(text, topology) {
                Ok(host) => egress.hosts.push(EgressHost { host, ports }),
                Err(problem) => problems.push(problem),
            }
        }
    }
    egress
}

fn addresses<'a>(
    declared: &'a Declared,
    name: &ObjectName,
    key: &ServerKey,
) -> Result<impl Iterator<Item = IpAddr> + use<'a>, Problem> {
    let namespace = name.namespace.as_deref().unwrap_or(&key.namespace);
    let found = declared.services.iter().find(|one| one.namespace == namespace && one.name == name.name);
    let found = found.ok_or_else(|| Problem::UnknownService(format!("{namespace}/{}", name.name)))?;
    Ok(found.addresses.iter().copied())
}

/// A name that no declared server has: those are called by what the topology says of them.
fn outside(text: &str, topology: &Topology) -> Result<DnsName, Problem> {
    let name = DnsName::parse(text).map_err(|error| Problem::InvalidName(error.to_string()))?;
    match topology.servers().find(|server| server.names.contains(&name)) {
        Some(server) => Err(Problem::HostIsDeclared { name, server: server.key.to_string() }),
        None => Ok(name),
    }
}
