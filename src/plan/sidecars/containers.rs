//! The two containers and the volumes that we add, and what we take from the application's containers.
//!
//! Kubernetes' defaults are written out, so that a pod read back equals the pod that we wrote.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction, KeyToPath,
        ObjectFieldSelector, Probe, ProjectedVolumeSource, ResourceRequirements, SeccompProfile, SecretProjection,
        SecretVolumeSource, SecurityContext, ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};

use super::Injection;
use crate::{
    api::ProxyResources,
    brief::TOKEN_AUDIENCE,
    sidecar::{
        ENV_CONTROL_ADDRESS, ENV_CONTROL_CA, ENV_POD_IPS, ENV_POD_UID, ENV_PROBES, ENV_UDP_PORTS, HEALTH_PORT,
        INIT_CONTAINER, PRESENTED_CERTIFICATES_DIR, PROXY_CONTAINER, Probes, SERVER_CERTIFICATE_DIR, STATE_DIR,
        TOKEN_FILE, UID,
    },
};

/// Holds key, chain and last brief; in memory.
pub(super) const STATE_VOLUME: &str = "entente-state";
/// Holds the pod-bound token of our audience.
pub(super) const TOKEN_VOLUME: &str = "entente-token";
/// Stays empty. Mounted where Kubernetes would put the application's token for the API server, which is not ours to have.
pub(super) const EMPTY_VOLUME: &str = "entente-empty";
/// Holds the certificate that ServerTLS ports show.
pub(super) const SERVER_CERTIFICATE_VOLUME: &str = "entente-server-certificate";
/// Holds the certificates that are presented to partners.
pub(super) const PRESENTED_VOLUME: &str = "entente-presented";
const API_TOKEN_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The pod's name (downward API), for logs.
const ENV_POD_NAME: &str = "ENTENTE_POD_NAME";
/// The pod's namespace (downward API), for logs.
const ENV_POD_NAMESPACE: &str = "ENTENTE_POD_NAMESPACE";
/// Arguments of the init container; with the name they make a container ours.
pub(super) const INTERCEPTION_ARGS: [&str; 1] = ["intercept"];
/// Arguments of the sidecar.
pub(super) const PROXY_ARGS: [&str; 1] = ["proxy"];
/// A pod may exist long before its server does, and waits unready. A restart in between would only add back-off.
const STARTUP_SECONDS: i32 = 86_400;
/// Seconds that the pod-bound token lives; the kubelet renews it.
const TOKEN_SECONDS: i64 = 600;

/// The init container that loads the interception rules. An added capability needs uid 0 to have an effect.
pub(super) fn interception(injection: &Injection<'_>, before: Option<&Container>) -> Container {
    let ports: Vec<String> = injection.udp_ports.iter().map(u16::to_string).collect();
    let mut security = restricted(0);
    security.run_as_non_root = Some(false);
    security.capabilities.get_or_insert_default().add = Some(vec!["NET_ADMIN".to_owned()]);
    Container {
        env: Some(vec![EnvVar {
            name: ENV_UDP_PORTS.to_owned(),
            value: (!ports.is_empty()).then(|| ports.join(",")),
            ..EnvVar::default()
        }]),
        resources: Some(kept(before, || {
            let (requests, limits) = ([("cpu", "10m"), ("memory", "16Mi")], [("memory", "64Mi")]);
            ResourceRequirements {
                requests: Some(requests.into_iter().map(quantity).collect()),
                limits: Some(limits.into_iter().map(quantity).collect()),
                claims: None,
            }
        })),
        security_context: Some(security),
        volume_mounts: Some(vec![mount(EMPTY_VOLUME, API_TOKEN_DIR, true)]),
        ..base(INIT_CONTAINER, &INTERCEPTION_ARGS, injection)
    }
}

/// The sidecar.
pub(super) fn proxy(injection: &Injection<'_>, probes: &Probes, before: Option<&Container>) -> Container {
    let token_dir = TOKEN_FILE.rsplit_once('/').map_or(TOKEN_FILE, |(directory, _)| directory);
    let mut mounts = vec![
        mount(STATE_VOLUME, STATE_DIR, false),
        mount(TOKEN_VOLUME, token_dir, true),
        mount(EMPTY_VOLUME, API_TOKEN_DIR, true),
    ];
    if injection.server_certificate.is_some() {
        mounts.push(mount(SERVER_CERTIFICATE_VOLUME, SERVER_CERTIFICATE_DIR, true));
    }
    if !injection.presented.is_empty() {
        mounts.push(mount(PRESENTED_VOLUME, PRESENTED_CERTIFICATES_DIR, true));
    }
    // Keys and values are strings and numbers: serde_json has no reason to refuse them.
    let probes = serde_json::to_string(probes).unwrap_or_default();
    Container {
        env: Some(vec![
            value(ENV_CONTROL_ADDRESS, injection.control_address),
            value(ENV_CONTROL_CA, injection.control_ca),
            field(ENV_POD_IPS, "status.podIPs"),
            field(ENV_POD_UID, "metadata.uid"),
            field(ENV_POD_NAME, "metadata.name"),
            field(ENV_POD_NAMESPACE, "metadata.namespace"),
            value(ENV_PROBES, &probes),
        ]),
        ports: Some(vec![ContainerPort {
            name: Some("entente-health".to_owned()),
            container_port: HEALTH_PORT.into(),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        restart_policy: Some("Always".to_owned()),
        startup_probe: Some(ready_probe(1, STARTUP_SECONDS)),
        readiness_probe: Some(ready_probe(2, 3)),
        resources: Some(kept(before, || resources(injection.resources))),
        security_context: Some(restricted(UID.into())),
        volume_mounts: Some(mounts),
        ..base(PROXY_CONTAINER, &PROXY_ARGS, injection)
    }
}

/// The volumes of both.
pub(super) fn volumes(injection: &Injection<'_>) -> Vec<Volume> {
    let memory = |name: &str, size: &str| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".to_owned()),
            size_limit: Some(Quantity(size.to_owned())),
        }),
        ..Volume::default()
    };
    let token = ServiceAccountTokenProjection {
        audience: Some(TOKEN_AUDIENCE.to_owned()),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: TOKEN_FILE.rsplit('/').next().unwrap_or(TOKEN_FILE).to_owned(),
    };
    let token = Volume {
        name: TOKEN_VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource {
            // The containers of the pod do not share one user, so the kubelet keeps this mode, and uid 5061 can read.
            default_mode: Some(0o644),
            sources: Some(vec![VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() }]),
        }),
        ..Volume::default()
    };
    let certificate = injection.server_certificate.map(|name| Volume {
        name: SERVER_CERTIFICATE_VOLUME.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(name.to_owned()),
            // As for the token: uid 5061 must be able to read.
            default_mode: Some(0o644),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    });
    let own = [memory(STATE_VOLUME, "4Mi"), token, memory(EMPTY_VOLUME, "4Ki")];
    own.into_iter().chain(certificate).chain(presented(injection)).collect()
}

/// One volume for all partners, a folder for each. A Secret that is not there costs its partner alone: the pod starts.
fn presented(injection: &Injection<'_>) -> Option<Volume> {
    let one = |(partner, secret): (&String, &String)| {
        let item = |key: &str| KeyToPath { key: key.to_owned(), mode: None, path: format!("{partner}/{key}") };
        let secret = SecretProjection {
            name: secret.clone(),
            items: Some(vec![item("tls.crt"), item("tls.key")]),
            optional: Some(true),
        };
        VolumeProjection { secret: Some(secret), ..VolumeProjection::default() }
    };
    let sources: Vec<VolumeProjection> = injection.presented.iter().map(one).collect();
    (!sources.is_empty()).then(|| Volume {
        name: PRESENTED_VOLUME.to_owned(),
        // As for the token: uid 5061 must be able to read.
        projected: Some(ProjectedVolumeSource { default_mode: Some(0o644), sources: Some(sources) }),
        ..Volume::default()
    })
}

/// Takes from a container of the application what would let it go round the rules.
pub(super) fn confine(container: &mut Container) {
    let capabilities = container.security_context.get_or_insert_default().capabilities.get_or_insert_default();
    let dropped = capabilities.drop.get_or_insert_default();
    for name in ["NET_ADMIN", "NET_RAW"] {
        if !dropped.iter().map(|have| capability(have)).any(|have| have == "ALL" || have == name) {
            dropped.push(name.to_owned());
        }
    }
}

/// A capability's name as Kubernetes writes it.
pub(super) fn capability(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    name.strip_prefix("CAP_").unwrap_or(&name).to_owned()
}

/// The probes that an earlier injection took over; none where they cannot be read.
pub(super) fn probes_of(proxy: &Container) -> Probes {
    let written = proxy.env.iter().flatten().find(|variable| variable.name == ENV_PROBES);
    written.and_then(|variable| serde_json::from_str(variable.value.as_deref()?).ok()).unwrap_or_default()
}

fn base(name: &str, args: &[&str], injection: &Injection<'_>) -> Container {
    Container {
        name: name.to_owned(),
        image: Some(injection.image.to_owned()),
        image_pull_policy: Some(injection.pull_policy.to_owned()),
        args: Some(args.iter().map(|&argument| argument.to_owned()).collect()),
        termination_message_path: Some("/dev/termination-log".to_owned()),
        termination_message_policy: Some("File".to_owned()),
        ..Container::default()
    }
}

/// What the profile `restricted` of Pod Security asks for.
fn restricted(id: i64) -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        read_only_root_filesystem: Some(true),
        run_as_group: Some(id),
        run_as_non_root: Some(true),
        run_as_user: Some(id),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..SecurityContext::default()
    }
}

fn ready_probe(period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some("/ready".to_owned()),
            port: IntOrString::Int(HEALTH_PORT.into()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(1),
        success_threshold: Some(1),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

/// Requests and limits that the pod has already may come from a LimitRange: they stay.
fn kept(before: Option<&Container>, fresh: impl FnOnce() -> ResourceRequirements) -> ResourceRequirements {
    before.and_then(|container| container.resources.clone()).unwrap_or_else(fresh)
}

/// Our defaults, but for resources that the server names: a default beside them could contradict.
fn resources(wanted: &ProxyResources) -> ResourceRequirements {
    let ProxyResources { requests, limits } = wanted;
    let merged = |wanted: &BTreeMap<String, String>, defaults: &[(&str, &str)]| {
        let free = |name: &str| !requests.contains_key(name) && !limits.contains_key(name);
        let defaults = defaults.iter().copied().filter(|(name, _)| free(name)).map(quantity);
        let wanted = wanted.iter().map(|(name, amount)| quantity((name, amount)));
        Some(wanted.chain(defaults).collect())
    };
    ResourceRequirements {
        requests: merged(requests, &[("cpu", "10m"), ("memory", "16Mi")]),
        limits: merged(limits, &[("memory", "128Mi")]),
        claims: None,
    }
}

fn quantity((name, amount): (&str, &str)) -> (String, Quantity) {
    (name.to_owned(), Quantity(amount.to_owned()))
}

fn value(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None }
}

fn field(name: &str, path: &str) -> EnvVar {
    let field = ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: path.to_owned() };
    let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    EnvVar { name: name.to_owned(), value: None, value_from: Some(source) }
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}
