//! What an injected pod and its sidecar agree on: fixed numbers, paths, environment names, and the probes that the
//! sidecar performs in the kubelet's place. The injection patch writes them, the proxy reads them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// UID and GID of the proxy; the interception rules exempt exactly this pair.
pub const UID: u32 = 5061;
/// Outbound connections of the application are redirected here (loopback only).
pub const OUTBOUND_PORT: u16 = 15001;
/// Inbound connections are redirected here.
pub const INBOUND_PORT: u16 = 15006;
/// Readiness, metrics and the application's rewritten probes.
pub const HEALTH_PORT: u16 = 15020;
/// The DNS guard: what the application asks of its resolvers is redirected here (loopback only, UDP and TCP).
pub const DNS_PORT: u16 = 15053;
/// Read-only administration, loopback only.
pub const ADMIN_PORT: u16 = 15000;

/// Name of the init container that loads the interception rules.
pub const INIT_CONTAINER: &str = "entente-init";
/// Name of the sidecar.
pub const PROXY_CONTAINER: &str = "entente-proxy";
/// The program that is the sidecar and nothing else: as it `entente proxy` goes on where it lies beside it.
pub const PROXY_PROGRAM: &str = "entente-proxy";
/// Label with the server's name, on every injected pod.
pub const SERVER_LABEL: &str = "entente.dev/server";
/// Label of a namespace that joins a domain.
pub const DOMAIN_LABEL: &str = "entente.dev/trust-domain";

/// Where the memory-backed volume with key, chain and last brief is mounted, in the sidecar only.
pub const STATE_DIR: &str = "/run/entente/state";
/// Where the certificate that ServerTLS ports show is mounted, in the sidecar only, where the server names one.
pub const SERVER_CERTIFICATE_DIR: &str = "/run/entente/server-certificate";
/// Below it are the certificates that are presented to partners instead of our own, in a folder of each partner's name;
/// mounted in the sidecar only, where a partner names one.
pub const PRESENTED_CERTIFICATES_DIR: &str = "/run/entente/presented";
/// Where the projected pod-bound token is mounted, in the sidecar only.
pub const TOKEN_FILE: &str = "/run/entente/token/token";

/// `host:port` of the controller's channel.
pub const ENV_CONTROL_ADDRESS: &str = "ENTENTE_CONTROL_ADDRESS";
/// PEM of the control-plane CA that the channel must chain to.
pub const ENV_CONTROL_CA: &str = "ENTENTE_CONTROL_CA";
/// The pod's addresses, comma-separated (downward API).
pub const ENV_POD_IPS: &str = "ENTENTE_POD_IPS";
/// The pod's UID (downward API).
pub const ENV_POD_UID: &str = "ENTENTE_POD_UID";
/// JSON of [`Probes`].
pub const ENV_PROBES: &str = "ENTENTE_PROBES";
/// Comma-separated UDP ports that the server declares, for the init container.
pub const ENV_UDP_PORTS: &str = "ENTENTE_UDP_PORTS";

/// The probes and lifecycle hooks of the application, by the path under which the sidecar performs them:
/// `/probe/<container>/<liveness|readiness|startup>` and `/hook/<container>/<postStart|preStop>`.
pub type Probes = BTreeMap<String, Probe>;

/// One fixed request that the sidecar performs against the application, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// What to do.
    pub action: ProbeAction,
    /// Deadline in seconds.
    pub timeout_seconds: u32,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum ProbeAction {
    /// `GET`; 200..=399 is success. HTTPS does not check the certificate, as the kubelet does not.
    #[serde(rename_all = "camelCase")]
    Http {
        /// TCP port of the application.
        port: u16,
        /// Path and query.
        path: String,
        /// `https` instead of `http`.
        https: bool,
        /// Extra headers, in order.
        headers: Vec<(String, String)>,
    },
    /// Connect and close.
    Tcp {
        /// TCP port of the application.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check` over HTTP/2 without TLS.
    Grpc {
        /// TCP port of the application.
        port: u16,
        /// Service asked for, empty = the server as a whole.
        service: String,
    },
}
