//! The DNS names of a server: declared ones, the topology name, and the cluster names of its Services.

use std::collections::BTreeSet;

use super::{Server, Topology, facts::PodFacts};
use crate::identity::DnsName;

/// Cluster names in one leaf, at most.
const MAX_CLUSTER_NAMES: usize = 64;

pub(super) fn of_server(topology: &Topology, server: &Server) -> BTreeSet<DnsName> {
    let Some(domain) = topology.domain(&server.domain) else { return server.names.clone() };
    let services = topology.services.get(&server.key).into_iter().flatten();
    let cluster = services.flat_map(|(service, _)| {
        let short = format!("{}.{}.svc", service.name, service.namespace);
        [format!("{short}.{}", domain.cluster_domain), short]
    });
    let parsed = cluster.take(MAX_CLUSTER_NAMES).filter_map(|name| DnsName::parse(&name).ok());
    server.names.iter().cloned().chain(parsed).collect()
}

/// Also `pod.service.namespace.svc.…` for a member of a StatefulSet, where the Service is this server's.
pub(super) fn of_pod(topology: &Topology, server: &Server, pod: &PodFacts) -> BTreeSet<DnsName> {
    let mut names = of_server(topology, server);
    let Some((hostname, subdomain)) = &pod.member else { return names };
    let own = topology.services.get(&server.key).map(Vec::as_slice).unwrap_or_default();
    let governed = own.iter().any(|(service, _)| service.name == *subdomain);
    if let (true, Some(domain)) = (governed, topology.domain(&server.domain)) {
        let short = format!("{hostname}.{subdomain}.{}.svc", pod.namespace);
        let long = format!("{short}.{}", domain.cluster_domain);
        names.extend([short, long].iter().filter_map(|name| DnsName::parse(name).ok()));
    }
    names
}
