//! What the topology needs to know of Kubernetes' own objects: projections, not whole objects.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{Pod, Service},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::sidecar;

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The ServiceAccount it runs under.
    pub service_account: String,
    /// Its addresses; empty on the host's network.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether our sidecar is in it.
    pub injected: bool,
    /// Whether it has ended or is about to.
    pub ending: bool,
    /// `hostname.subdomain`, for members of a StatefulSet and the like.
    pub member: Option<(String, String)>,
    /// Numbers of its named container ports.
    pub named_ports: BTreeMap<String, u16>,
}

impl PodFacts {
    /// Reads a pod.
    pub fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let host_network = spec.and_then(|spec| spec.host_network).unwrap_or(false);
        let addresses = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
        let containers = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let named = containers.iter().flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            Some((port.name.clone()?, number))
        });
        let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            service_account: spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default(),
            addresses: addresses.filter(|_| !host_network).filter_map(|ip| ip.ip.parse().ok()).collect(),
            injected: init.into_iter().any(|container| container.name == sidecar::PROXY_CONTAINER),
            ending: pod.metadata.deletion_timestamp.is_some() || matches!(phase, "Succeeded" | "Failed"),
            member: spec.and_then(|spec| Some((spec.hostname.clone()?, spec.subdomain.clone()?))),
            named_ports: named.collect(),
        }
    }
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its selector; empty = none.
    pub selector: BTreeMap<String, String>,
    /// Its cluster addresses; none for a headless one.
    pub addresses: BTreeSet<IpAddr>,
    /// Its TCP ports: number and where it leads.
    pub ports: Vec<(u16, TargetPort)>,
}

/// Where a Service port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// A named container port.
    Named(String),
}

impl ServiceFacts {
    /// Reads a Service.
    pub fn of(service: &Service) -> Self {
        let spec = service.spec.as_ref();
        let addresses = spec.and_then(|spec| spec.cluster_ips.as_ref()).into_iter().flatten();
        let ports = spec.and_then(|spec| spec.ports.as_ref()).into_iter().flatten();
        let tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
        Self {
            namespace: service.metadata.namespace.clone().unwrap_or_default(),
            name: service.metadata.name.clone().unwrap_or_default(),
            selector: spec.and_then(|spec| spec.selector.clone()).unwrap_or_default(),
            addresses: addresses.filter_map(|ip| ip.parse().ok()).collect(),
            ports: tcp
                .filter_map(|port| {
                    let number = u16::try_from(port.port).ok()?;
                    let target = match &port.target_port {
                        None => TargetPort::Number(number),
                        Some(IntOrString::Int(target)) => TargetPort::Number(u16::try_from(*target).ok()?),
                        Some(IntOrString::String(name)) => TargetPort::Named(name.clone()),
                    };
                    Some((number, target))
                })
                .collect(),
        }
    }
}
