//! Probes and lifecycle hooks: what the kubelet would ask of the application it asks of the sidecar, which asks the
//! application exactly that and nothing else.

use k8s_openapi::{
    api::core::v1::{Container, ContainerPort, HTTPGetAction, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::NotInjectable;
use crate::sidecar::{self, HEALTH_PORT, ProbeAction, Probes};

/// Rewrites the probes and hooks of one container and records them in `taken`. Those that an earlier injection
/// rewrote are found in `known`. `grace` is what a hook may take, in seconds.
pub(super) fn take_over(
    container: &mut Container,
    known: &Probes,
    grace: i64,
    taken: &mut Probes,
) -> Result<(), NotInjectable> {
    let name = container.name.clone();
    let ports = container.ports.clone().unwrap_or_default();
    let mut rewrite = Rewrite { container: &name, ports: &ports, known, taken };
    let probes = [
        ("liveness", &mut container.liveness_probe),
        ("readiness", &mut container.readiness_probe),
        ("startup", &mut container.startup_probe),
    ];
    for (kind, probe) in probes {
        if let Some(probe) = probe {
            rewrite.probe(kind, probe)?;
        }
    }
    let Some(lifecycle) = &mut container.lifecycle else { return Ok(()) };
    let grace = u32::try_from(grace).unwrap_or(u32::MAX);
    for (kind, hook) in [("postStart", &mut lifecycle.post_start), ("preStop", &mut lifecycle.pre_stop)] {
        if let Some(http) = hook.as_mut().and_then(|hook| hook.http_get.as_mut()) {
            rewrite.hook(kind, http, grace)?;
        }
    }
    Ok(())
}

struct Rewrite<'a> {
    container: &'a str,
    ports: &'a [ContainerPort],
    known: &'a Probes,
    taken: &'a mut Probes,
}

impl Rewrite<'_> {
    fn probe(&mut self, kind: &'static str, probe: &mut Probe) -> Result<(), NotInjectable> {
        let path = format!("/probe/{}/{kind}", self.container);
        if self.recall(&path, probe.http_get.as_ref()) {
            return Ok(());
        }
        let action = if let Some(http) = &probe.http_get {
            self.http(kind, http)?
        } else if let Some(tcp) = &probe.tcp_socket {
            ProbeAction::Tcp { port: self.target(kind, tcp.host.as_deref(), &tcp.port)? }
        } else if let Some(grpc) = &probe.grpc {
            let port = self.target(kind, None, &IntOrString::Int(grpc.port))?;
            ProbeAction::Grpc { port, service: grpc.service.clone().unwrap_or_default() }
        } else {
            return Ok(());
        };
        match &action {
            ProbeAction::Http { .. } => {}
            ProbeAction::Tcp { .. } => probe.tcp_socket = None,
            ProbeAction::Grpc { .. } => probe.grpc = None,
        }
        probe.http_get = Some(ask_sidecar(&path));
        let timeout_seconds = probe.timeout_seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(1).max(1);
        self.taken.insert(path, sidecar::Probe { action, timeout_seconds });
        Ok(())
    }

    fn hook(
        &mut self,
        kind: &'static str,
        http: &mut HTTPGetAction,
        timeout_seconds: u32,
    ) -> Result<(), NotInjectable> {
        let path = format!("/hook/{}/{kind}", self.container);
        if self.recall(&path, Some(&*http)) {
            return Ok(());
        }
        let action = self.http(kind, http)?;
        *http = ask_sidecar(&path);
        self.taken.insert(path, sidecar::Probe { action, timeout_seconds });
        Ok(())
    }

    /// Whether an earlier injection rewrote this one; then what it recorded is kept.
    fn recall(&mut self, path: &str, http: Option<&HTTPGetAction>) -> bool {
        let Some(known) = self.known.get(path) else { return false };
        let ours = http.is_some_and(|http| {
            http.path.as_deref() == Some(path) && http.port == IntOrString::Int(HEALTH_PORT.into())
        });
        if ours {
            self.taken.insert(path.to_owned(), known.clone());
        }
        ours
    }

    fn http(&self, kind: &'static str, http: &HTTPGetAction) -> Result<ProbeAction, NotInjectable> {
        let port = self.target(kind, http.host.as_deref(), &http.port)?;
        let path = http.path.as_deref().unwrap_or_default();
        let headers = http.http_headers.iter().flatten();
        Ok(ProbeAction::Http {
            port,
            path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
            https: http.scheme.as_deref() == Some("HTTPS"),
            headers: headers.map(|header| (header.name.clone(), header.value.clone())).collect(),
        })
    }

    /// The port's number. Named ports are those of the same container; a number in quotes is one too, as for the kubelet.
    fn target(&self, kind: &'static str, host: Option<&str>, port: &IntOrString) -> Result<u16, NotInjectable> {
        let container = || self.container.to_owned();
        if host.is_some_and(|host| !host.is_empty()) {
            return Err(NotInjectable::ProbeHost { container: container(), kind });
        }
        let number = match port {
            IntOrString::Int(number) => u16::try_from(*number).ok(),
            IntOrString::String(name) => {
                let named = self.ports.iter().find(|port| port.name.as_ref() == Some(name));
                named.map_or_else(|| name.parse().ok(), |port| u16::try_from(port.container_port).ok())
            }
        };
        match number {
            Some(port) if super::refused::is_reserved(port.into()) => {
                Err(NotInjectable::ReservedPort { container: container(), port: port.into() })
            }
            Some(port) if port > 0 => Ok(port),
            _ => {
                let port = match port {
                    IntOrString::Int(number) => number.to_string(),
                    IntOrString::String(name) => name.clone(),
                };
                Err(NotInjectable::UnknownPort { container: container(), kind, port })
            }
        }
    }
}

fn ask_sidecar(path: &str) -> HTTPGetAction {
    HTTPGetAction {
        path: Some(path.to_owned()),
        port: IntOrString::Int(HEALTH_PORT.into()),
        scheme: Some("HTTP".to_owned()),
        ..HTTPGetAction::default()
    }
}
