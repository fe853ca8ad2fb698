//! The injection patch: what a pod of a declared server becomes.
//!
//! Our two containers come first, the rules before the proxy and both before anything of the application: no packet of
//! the application leaves or enters the pod without them. What the kubelet would ask of the application's ports it
//! asks of the sidecar instead, since the application's ports admit only declared peers. Injecting twice changes
//! nothing: the API server asks again when another webhook changed the pod after us.

mod containers;
mod probes;
mod refused;

use std::collections::BTreeMap;

use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, jsonptr::PointerBuf};
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::Value;

pub use refused::NotInjectable;

use crate::{
    api::ProxyResources,
    sidecar::{INIT_CONTAINER, PROXY_CONTAINER, Probes, SERVER_LABEL},
};

/// Says which version injected the sidecar.
pub const INJECTED_ANNOTATION: &str = "entente.dev/injected";
/// Seconds a pod has to end in when it does not say: Kubernetes' default.
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// Seconds beyond the drain that the sidecar's own end may take.
const AFTER_DRAIN_SECONDS: i64 = 10;

/// What the operator puts into a pod, beside what the pod itself says.
#[derive(Clone, Copy, Debug)]
pub struct Injection<'a> {
    /// The image of both containers.
    pub image: &'a str,
    /// Their `imagePullPolicy`.
    pub pull_policy: &'a str,
    /// `host:port` of the controller's channel.
    pub control_address: &'a str,
    /// The authority of the control plane, PEM.
    pub control_ca: &'a str,
    /// Name of the server, for the label `entente.dev/server`.
    pub server: &'a str,
    /// The Secret with the certificate that ServerTLS ports show.
    pub server_certificate: Option<&'a str>,
    /// The Secrets with certificates that are presented to partners, by the partner's name.
    pub presented: &'a BTreeMap<String, String>,
    /// UDP ports that the server declares.
    pub udp_ports: &'a [u16],
    /// Seconds that open connections are given when the pod ends.
    pub drain_seconds: u32,
    /// What the sidecar may use.
    pub resources: &'a ProxyResources,
}

/// The pod with our sidecar in it.
pub fn inject(pod: &Pod, injection: &Injection<'_>) -> Result<Pod, NotInjectable> {
    refused::check(pod, injection)?;
    let mut pod = pod.clone();
    let spec = pod.spec.get_or_insert_default();
    let drained = i64::from(injection.drain_seconds) + AFTER_DRAIN_SECONDS;
    let grace = spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS).max(drained);
    spec.termination_grace_period_seconds = Some(grace);
    let (before, mut init) = split(std::mem::take(&mut spec.init_containers).unwrap_or_default());
    let known = before.proxy.as_ref().map(containers::probes_of).unwrap_or_default();
    let mut probes = Probes::new();
    for container in init.iter_mut().chain(&mut spec.containers) {
        containers::confine(container);
        probes::take_over(container, &known, grace, &mut probes)?;
    }
    let ours = [
        containers::interception(injection, before.interception.as_ref()),
        containers::proxy(injection, &probes, before.proxy.as_ref()),
    ];
    spec.init_containers = Some(ours.into_iter().chain(init).collect());
    let volumes = spec.volumes.get_or_insert_default();
    for volume in containers::volumes(injection) {
        if !volumes.contains(&volume) {
            volumes.push(volume);
        }
    }
    let labels = pod.metadata.labels.get_or_insert_with(BTreeMap::new);
    labels.entry(SERVER_LABEL.to_owned()).or_insert_with(|| injection.server.to_owned());
    let annotations = pod.metadata.annotations.get_or_insert_with(BTreeMap::new);
    annotations.insert(INJECTED_ANNOTATION.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    Ok(pod)
}

/// What must change in a pod so that it is injected as wanted; empty where it is already.
pub fn patch(pod: &Pod, injection: &Injection<'_>) -> Result<Patch, NotInjectable> {
    difference(pod, &inject(pod, injection)?).map_err(|error| NotInjectable::Unwritable(error.to_string()))
}

/// Only whole containers of ours are taken out and put in. A comparison by position would write the application's
/// containers anew, and lose the fields that our version of Kubernetes' types does not know.
fn difference(before: &Pod, after: &Pod) -> serde_json::Result<Patch> {
    if names(before).take(2).eq([INIT_CONTAINER, PROXY_CONTAINER]) {
        return Ok(json_patch::diff(&serde_json::to_value(before)?, &serde_json::to_value(after)?));
    }
    let at = |path: &[&str]| PointerBuf::from_tokens(path.iter().copied());
    let list = ["spec", "initContainers"];
    let ours: Vec<usize> =
        names(before).enumerate().filter(|(_, name)| is_ours(name)).map(|(index, _)| index).collect();
    let mut operations: Vec<PatchOperation> = vec![];
    for index in ours.into_iter().rev() {
        let path = at(&[list[0], list[1], &index.to_string()]);
        operations.push(PatchOperation::Remove(RemoveOperation { path }));
    }
    let (rest_before, rest_after) = (without_ours(before), without_ours(after));
    operations.extend(json_patch::diff(&serde_json::to_value(&rest_before)?, &serde_json::to_value(&rest_after)?).0);
    let put = |path: PointerBuf, value: Value| PatchOperation::Add(AddOperation { path, value });
    let init = after.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
    if names(&rest_after).next().is_none() {
        operations.push(put(at(&list), serde_json::to_value(init)?));
    } else {
        for (index, container) in init.iter().take(2).enumerate() {
            operations.push(put(at(&[list[0], list[1], &index.to_string()]), serde_json::to_value(container)?));
        }
    }
    Ok(Patch(operations))
}

fn is_ours(name: &str) -> bool {
    matches!(name, INIT_CONTAINER | PROXY_CONTAINER)
}

/// Names of the init containers, in order.
fn names(pod: &Pod) -> impl Iterator<Item = &str> {
    let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    init.map(|container| container.name.as_str())
}

fn without_ours(pod: &Pod) -> Pod {
    let mut pod = pod.clone();
    if let Some(spec) = &mut pod.spec {
        let rest = split(std::mem::take(&mut spec.init_containers).unwrap_or_default()).1;
        spec.init_containers = (!rest.is_empty()).then_some(rest);
    }
    pod
}

/// Our two containers, as an earlier injection left them.
#[derive(Default)]
struct Before {
    interception: Option<Container>,
    proxy: Option<Container>,
}

/// Takes ours out of the init containers; the others keep their order.
fn split(init: Vec<Container>) -> (Before, Vec<Container>) {
    let mut before = Before::default();
    let mut rest = vec![];
    for container in init {
        match container.name.as_str() {
            INIT_CONTAINER => before.interception = Some(container),
            PROXY_CONTAINER => before.proxy = Some(container),
            _ => rest.push(container),
        }
    }
    (before, rest)
}

#[cfg(test)]
mod tests;
