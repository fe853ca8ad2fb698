//! Pods that cannot be protected: each reason says what must change.

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, PodSpec, Volume};

use super::{
    Injection,
    containers::{self, EMPTY_VOLUME, PRESENTED_VOLUME, SERVER_CERTIFICATE_VOLUME, STATE_VOLUME, TOKEN_VOLUME},
};
use crate::{
    brief::TOKEN_AUDIENCE,
    sidecar::{ADMIN_PORT, DNS_PORT, HEALTH_PORT, INBOUND_PORT, INIT_CONTAINER, OUTBOUND_PORT, PROXY_CONTAINER, UID},
};

/// Capabilities with which a container could change the rules, send past them, or read the sidecar.
const FORBIDDEN_CAPABILITIES: [&str; 6] = ["ALL", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "BPF"];

/// Why a pod cannot have a sidecar, and what must change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotInjectable {
    /// `hostNetwork`, `hostPID` or `hostIPC`.
    #[error("spec.{0} must not be true: the pod of a declared server needs namespaces of its own")]
    HostNamespace(&'static str),
    /// `shareProcessNamespace`.
    #[error("spec.shareProcessNamespace must not be true: the application could read the sidecar's key")]
    SharedProcesses,
    /// A privileged container.
    #[error("container {0}: securityContext.privileged must not be true: it could change the interception rules")]
    Privileged(String),
    /// An added capability that goes round the rules.
    #[error(
        "container {container}: securityContext.capabilities.add must not contain {capability}: it could go round the interception rules"
    )]
    Capability {
        /// Name of the container.
        container: String,
        /// The capability, as it was written.
        capability: String,
    },
    /// The sidecar's user or group.
    #[error("{place}: securityContext.{field} must not be {UID}, which is the sidecar's own; choose another number")]
    ReservedId {
        /// `pod`, or the container.
        place: String,
        /// The field.
        field: &'static str,
    },
    /// A container or volume with a name of ours that is not ours.
    #[error("{kind} {name} must have another name: this one is the sidecar's")]
    ReservedName {
        /// `container` or `volume`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A container that listens, or is probed, on a port of the sidecar.
    #[error(
        "container {container}: port {port} must be another one: the sidecar uses 15000, 15001, 15006, 15020 and 15053"
    )]
    ReservedPort {
        /// Name of the container.
        container: String,
        /// The port.
        port: i32,
    },
    /// A container that mounts a volume of the sidecar.
    #[error("container {container} must not mount volume {volume}: it is the sidecar's")]
    SidecarVolume {
        /// Name of the container.
        container: String,
        /// Name of the volume.
        volume: String,
    },
    /// A projected token with our audience.
    #[error(
        "volume {0}: a projected service account token must not have audience {TOKEN_AUDIENCE}, which proves the sidecar"
    )]
    TokenAudience(String),
    /// A probe or hook of another host.
    #[error("container {container}: {kind} must not set host: the sidecar performs it against this pod only")]
    ProbeHost {
        /// Name of the container.
        container: String,
        /// Which probe or hook.
        kind: &'static str,
    },
    /// A probe or hook of a port that does not exist.
    #[error(
        "container {container}: {kind} names port {port}, which must be a number or the name of one of this container's ports"
    )]
    UnknownPort {
        /// Name of the container.
        container: String,
        /// Which probe or hook.
        kind: &'static str,
        /// The port, as it was written.
        port: String,
    },
    /// The patch could not be written.
    #[error("the pod cannot be written as JSON: {0}")]
    Unwritable(String),
}

/// Whether a port is the sidecar's.
pub(super) fn is_reserved(port: i32) -> bool {
    [ADMIN_PORT, OUTBOUND_PORT, INBOUND_PORT, HEALTH_PORT, DNS_PORT].map(i32::from).contains(&port)
}

/// The first thing that makes a pod impossible to protect.
pub(super) fn check(pod: &Pod, injection: &Injection<'_>) -> Result<(), NotInjectable> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let hosts = [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)];
    if let Some((field, _)) = hosts.into_iter().find(|(_, set)| *set == Some(true)) {
        return Err(NotInjectable::HostNamespace(field));
    }
    if spec.share_process_namespace == Some(true) {
        return Err(NotInjectable::SharedProcesses);
    }
    if let Some(context) = &spec.security_context {
        check_pod_ids(context)?;
    }
    for container in application(spec)? {
        check_container(container)?;
    }
    spec.volumes.iter().flatten().try_for_each(|volume| check_volume(volume, injection))
}

/// The containers that are not ours. A name of ours is not enough to be: it must be what runs our program as we run it.
fn application(spec: &PodSpec) -> Result<Vec<&Container>, NotInjectable> {
    let mut others = vec![];
    let init = spec.init_containers.iter().flatten().map(|container| (container, true));
    for (container, may_be_ours) in init.chain(spec.containers.iter().map(|container| (container, false))) {
        let args = match container.name.as_str() {
            INIT_CONTAINER => containers::INTERCEPTION_ARGS,
            PROXY_CONTAINER => containers::PROXY_ARGS,
            _ => {
                others.push(container);
                continue;
            }
        };
        let same = container.args.iter().flatten().eq(&args) && container.command.is_none();
        if !(may_be_ours && same) {
            return Err(NotInjectable::ReservedName { kind: "container", name: container.name.clone() });
        }
    }
    Ok(others)
}

fn check_pod_ids(context: &PodSecurityContext) -> Result<(), NotInjectable> {
    let mine = Some(i64::from(UID));
    let groups = context.supplemental_groups.iter().flatten();
    let fields = [
        ("runAsUser", context.run_as_user == mine),
        ("runAsGroup", context.run_as_group == mine),
        ("fsGroup", context.fs_group == mine),
        ("supplementalGroups", groups.into_iter().any(|group| Some(*group) == mine)),
    ];
    match fields.into_iter().find(|(_, taken)| *taken) {
        Some((field, _)) => Err(NotInjectable::ReservedId { place: "pod".to_owned(), field }),
        None => Ok(()),
    }
}

fn check_container(container: &Container) -> Result<(), NotInjectable> {
    let name = || container.name.clone();
    if let Some(port) = container.ports.iter().flatten().find(|port| is_reserved(port.container_port)) {
        return Err(NotInjectable::ReservedPort { container: name(), port: port.container_port });
    }
    let mounted = container.volume_mounts.iter().flatten().find(|mount| is_our_volume(&mount.name));
    if let Some(mount) = mounted {
        return Err(NotInjectable::SidecarVolume { container: name(), volume: mount.name.clone() });
    }
    let Some(context) = &container.security_context else { return Ok(()) };
    if context.privileged == Some(true) {
        return Err(NotInjectable::Privileged(name()));
    }
    let added = context.capabilities.iter().flat_map(|capabilities| capabilities.add.iter().flatten());
    let forbidden =
        |capability: &&String| FORBIDDEN_CAPABILITIES.contains(&containers::capability(capability).as_str());
    if let Some(capability) = added.into_iter().find(forbidden) {
        return Err(NotInjectable::Capability { container: name(), capability: capability.clone() });
    }
    let mine = Some(i64::from(UID));
    let ids = [("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group)];
    match ids.into_iter().find(|(_, id)| *id == mine) {
        Some((field, _)) => Err(NotInjectable::ReservedId { place: format!("container {}", container.name), field }),
        None => Ok(()),
    }
}

fn is_our_volume(name: &str) -> bool {
    [STATE_VOLUME, TOKEN_VOLUME, EMPTY_VOLUME, SERVER_CERTIFICATE_VOLUME, PRESENTED_VOLUME].contains(&name)
}

fn check_volume(volume: &Volume, injection: &Injection<'_>) -> Result<(), NotInjectable> {
    if is_our_volume(&volume.name) {
        let ours = containers::volumes(injection).contains(volume);
        let stranger = || NotInjectable::ReservedName { kind: "volume", name: volume.name.clone() };
        return if ours { Ok(()) } else { Err(stranger()) };
    }
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    let mut tokens = sources.filter_map(|source| source.service_account_token.as_ref());
    if tokens.any(|token| token.audience.as_deref() == Some(TOKEN_AUDIENCE)) {
        return Err(NotInjectable::TokenAudience(volume.name.clone()));
    }
    Ok(())
}
