//! `TrustedServer`: "these pods are this server: its names, its ports, who may call it".

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One server of the topology: a name, N pods.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "entente.dev",
    version = "v1alpha1",
    kind = "TrustedServer",
    plural = "trustedservers",
    shortname = "ts",
    category = "trust",
    namespaced,
    status = "TrustedServerStatus",
    derive = "PartialEq",
    selectable = ".spec.role",
    doc = "A declared server: which pods it is, its names, its ports, and who may call it. Only what is declared is trusted.",
    printcolumn(name = "Role", type_ = "string", json_path = ".spec.role", priority = 1),
    printcolumn(name = "Name", type_ = "string", json_path = ".status.dnsNames[0]"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Proxies", type_ = "string", json_path = ".status.proxies.summary"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.certificates.earliestNotAfter"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be a DNS label of at most 63 characters"),
    validation = Rule::new("self.spec.role == 'Edge' || self.spec.ports.all(port, !has(port.allowFrom) || port.allowFrom.all(entry, !has(entry.partner)))")
        .message("allowFrom must not name a partner unless role is Edge: only Edge servers meet other organisations")
)]
#[serde(rename_all = "camelCase")]
pub struct TrustedServerSpec {
    /// Place in the topology. Immutable.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("role must not change; create another TrustedServer instead"))]
    pub role: Role,

    /// Whether the server is trusted. Suspended = withdrawn: its certificates are revoked, its connections cut, new ones
    /// refused, while it stays declared.
    #[serde(default)]
    pub state: ServerState,

    /// The pods of this namespace that are this server. Must not be empty.
    #[x_kube(validation = Rule::new("self.matchLabels.size() > 0 || self.matchExpressions.size() > 0")
        .message("selector must name at least one label: an empty selector would make every pod this server"))]
    pub selector: PodSelector,

    /// The ServiceAccount that those pods must run under: labels alone can be forged by whoever creates pods.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub service_account_name: String,

    /// DNS names that the certificate carries beside the topology name and the cluster names of the server's Services.
    /// Inside the domain's `dnsSuffixes`, no wildcards, unique in the domain.
    #[serde(default)]
    #[schemars(
        length(max = 16),
        inner(
            length(min = 1, max = 253),
            regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub dns_names: Vec<String>,

    /// What the server listens on. None = it only calls out.
    #[serde(default)]
    #[schemars(length(max = 32))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into()]),
        validation = Rule::new("self.all(a, self.all(b, a.name == b.name || (a.port != b.port && a.port != (has(b.targetPort) ? b.targetPort : b.port) && (has(a.targetPort) ? a.targetPort : a.port) != (has(b.targetPort) ? b.targetPort : b.port))))")
            .message("every port and targetPort must be a number that no other port of this server uses")
    )]
    pub ports: Vec<PortSpec>,

    /// What the server may call beside declared servers.
    #[serde(default)]
    pub outbound: OutboundSpec,

    /// Keys outside the sidecar.
    #[serde(default)]
    pub certificate: CertificateSpec,

    /// Every certificate issued earlier than this is revoked and issued anew. A later moment is needed for each time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoke_issued_before: Option<Time>,

    /// The sidecar.
    #[serde(default)]
    pub proxy: ProxySpec,
}

/// Whether a server is trusted.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum ServerState {
    /// It is.
    #[default]
    Active,
    /// Not for the time being.
    Suspended,
}

/// Keys outside the sidecar. Each is named in status and audit.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateSpec {
    /// For software that must hold the key itself: a Secret of type kubernetes.io/tls that the operator writes and
    /// renews here (`tls.crt`, `tls.key`, `ca.crt`). The server's pods then run without a sidecar and speak mutual TLS
    /// themselves. A Secret that the operator did not write is never touched.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253), regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"))]
    pub secret_name: String,
    /// A Secret of type kubernetes.io/tls with the certificate, of a public CA for instance, that ports of mode
    /// ServerTLS show. It is mounted into the sidecar of pods created from now on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253), regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"))]
    pub server_secret_name: String,
}

/// Place in the topology.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Role {
    /// A server inside.
    #[default]
    Internal,
    /// A server where other organisations come in; only in one of the domain's `edgeNamespaces`. It calls and is called
    /// by servers of ours only where a port names it: `AllDeclared` does not mean it.
    Edge,
}

/// Selects pods by their labels.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSelector {
    /// Labels that a pod must have.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 16))]
    pub match_labels: BTreeMap<String, String>,
    /// Labels that must have one of several values.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub match_expressions: Vec<Requirement>,
}

/// A label that must have one of several values.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Requirement {
    /// The label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// The comparison: `In`. Absence proves nothing, so there is no `NotIn` and no `DoesNotExist`.
    pub operator: SelectorOperator,
    /// The values.
    #[schemars(length(min = 1, max = 16), inner(length(max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub values: Vec<String>,
}

/// Comparisons of a selector.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum SelectorOperator {
    /// The label is there with one of the values.
    In,
}

/// One port.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[x_kube(
    validation = Rule::new("self.protocol != 'UDP' || self.mode == 'Plaintext'")
        .message("protocol UDP must have mode Plaintext: UDP is not protected"),
    validation = Rule::new("!has(self.allowFrom) || self.mode == 'MutualTLS'")
        .message("allowFrom must not be set unless mode is MutualTLS: other modes do not know their callers"),
    validation = Rule::new("self.mode == 'ServerTLS' || (self.alpn.size() == 0 && self.minTLSVersion == '1.3' && self.clientCertificate == 'None')")
        .message("alpn, minTLSVersion and clientCertificate must not be set unless mode is ServerTLS"),
    validation = Rule::new("self.protocol != 'UDP' || !has(self.targetPort) || self.targetPort == self.port")
        .message("targetPort must equal port for protocol UDP"),
    validation = Rule::new("!(self.port in [15000, 15001, 15006, 15020, 15053]) && (!has(self.targetPort) || !(self.targetPort in [15000, 15001, 15006, 15020, 15053]))")
        .message("port and targetPort must not be one of the sidecar's own: 15000, 15001, 15006, 15020, 15053")
)]
#[serde(rename_all = "camelCase")]
pub struct PortSpec {
    /// Name of the port, unique within the server.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// What peers dial.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// What the application listens on. Default: `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub target_port: Option<i32>,
    /// TCP, or UDP (only with mode Plaintext; undeclared UDP is dropped, DNS excepted).
    #[serde(default)]
    pub protocol: Protocol,
    /// What the wire carries.
    #[serde(default)]
    pub mode: PortMode,
    /// ServerTLS: application protocols to offer, `h2`, `http/1.1`, `sip/2`; empty = none is spoken of.
    #[serde(default)]
    #[schemars(length(max = 8), inner(length(min = 1, max = 64), regex(pattern = r"^[!-~]+$")))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub alpn: Vec<String>,
    /// ServerTLS: the oldest TLS version that clients may speak; always without tickets.
    #[serde(default, rename = "minTLSVersion")]
    pub min_tls_version: MinTlsVersion,
    /// ServerTLS: whether clients may present a certificate. Optional = a declared server that presents one is known by
    /// it in records and metrics, and its connection ends with its trust; one that proves nothing is refused.
    #[serde(default)]
    pub client_certificate: ClientCertificate,
    /// Who may call. Absent = the domain's default (an Edge server: itself alone); empty = nobody, this server included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub allow_from: Option<Vec<AllowedPeer>>,
}

/// The oldest TLS version that is spoken.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum MinTlsVersion {
    /// TLS 1.3 alone.
    #[default]
    #[serde(rename = "1.3")]
    Tls13,
    /// TLS 1.2 as well.
    #[serde(rename = "1.2")]
    Tls12,
}

/// Whether clients of a ServerTLS port may present a certificate.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum ClientCertificate {
    /// None is asked for.
    #[default]
    None,
    /// One is asked for and may be left out.
    Optional,
}

/// Transport protocols.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Protocol {
    /// TCP.
    #[default]
    TCP,
    /// UDP.
    UDP,
}

/// What the wire of a port carries.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum PortMode {
    /// TLS in which both ends prove themselves.
    #[default]
    MutualTLS,
    /// TLS in which the server alone proves itself: for clients outside the topology.
    ServerTLS,
    /// As the application speaks; declared and shown, not protected.
    Plaintext,
}

/// One entry of `allowFrom`: exactly one of `server` and `partner`.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[x_kube(
    validation = Rule::new("has(self.server) != has(self.partner)").message("exactly one of server and partner must be set"),
    validation = Rule::new("!has(self.targetPort) || !(self.targetPort in [15000, 15001, 15006, 15020, 15053])")
        .message("targetPort must not be one of the sidecar's own: 15000, 15001, 15006, 15020, 15053")
)]
#[serde(rename_all = "camelCase")]
pub struct AllowedPeer {
    /// A server of the same trust domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ObjectName>,
    /// A FederationPartner of this namespace; only on servers of role Edge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partner: Option<PartnerName>,
    /// Where the application listens for this caller, so that unmodified software knows who calls. Default: the port's
    /// own `targetPort`. No other port of this server may use the number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub target_port: Option<i32>,
}

/// A FederationPartner of the same namespace by its name.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartnerName {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// A namespaced object by its name.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectName {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Its namespace. Default: this object's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
}

/// What the server may call beside declared servers.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutboundSpec {
    /// Calls to what is not declared. Declared peers always get mutual TLS.
    #[serde(default)]
    pub policy: OutboundPolicy,
    /// Destinations that may be called as they are. The resolvers of the pod's resolv.conf are always allowed.
    #[serde(default)]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub extra: Vec<EgressRule>,
}

/// Calls to what is not declared.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum OutboundPolicy {
    /// Refused, unless `extra` names it.
    #[default]
    DeclaredOnly,
    /// Passed as they are.
    Unrestricted,
}

/// A destination that may be called as it is: exactly one of `cidr`, `service` and `host`.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[x_kube(
    validation = Rule::new("[has(self.cidr), has(self.service), has(self.host)].filter(one, one).size() == 1")
        .message("exactly one of cidr, service and host must be set"),
    validation = Rule::new("!has(self.host) || self.ports.size() > 0")
        .message("ports must not be empty with host")
)]
#[serde(rename_all = "camelCase")]
pub struct EgressRule {
    /// A network, `192.0.2.0/24` or `2001:db8::/32`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 43))]
    pub cidr: Option<String>,
    /// A Service that is not part of the topology.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ObjectName>,
    /// A DNS name outside the topology. The application gets an address of its sidecar for it, which looks the name up
    /// itself at each call: what the name leads to may change, and no other address becomes callable by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub host: Option<String>,
    /// TCP ports. Empty = every port.
    #[serde(default)]
    #[schemars(length(max = 32), inner(range(min = 1, max = 65535)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub ports: Vec<i32>,
}

/// The sidecar.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxySpec {
    /// Seconds that open connections are given when the pod ends.
    #[serde(default = "drain_seconds")]
    #[schemars(range(min = 0, max = 3600))]
    pub drain_seconds: i32,
    /// Requests and limits of the sidecar container, for pods created from now on.
    #[serde(default)]
    pub resources: ProxyResources,
}

const fn drain_seconds() -> i32 {
    30
}

impl Default for ProxySpec {
    fn default() -> Self {
        Self { drain_seconds: drain_seconds(), resources: ProxyResources::default() }
    }
}

/// Requests and limits of a container, by resource name.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyResources {
    /// What is reserved: `{cpu: 10m, memory: 32Mi}`.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 8))]
    pub requests: BTreeMap<String, String>,
    /// What may be used at most.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 8))]
    pub limits: BTreeMap<String, String>,
}

/// What the operator says about a server.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustedServerStatus {
    /// Ready, Accepted, ProxiesInjected, CertificatesIssued, TrustLoaded, RevocationEffective.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The identity that its certificates carry.
    #[serde(default, rename = "spiffeID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub spiffe_id: Option<String>,
    /// The DNS names that its certificates carry: declared ones, the topology name, cluster names.
    #[serde(default)]
    #[schemars(length(max = 256), inner(length(max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub dns_names: Vec<String>,
    /// Its sidecars.
    #[serde(default)]
    pub proxies: ProxyCounts,
    /// Its certificates.
    #[serde(default)]
    pub certificates: CertificateCounts,
    /// What was taken back of them.
    #[serde(default)]
    pub revocation: RevocationCounts,
    /// Revision of the domain's topology that this status is about.
    #[serde(default)]
    pub topology_revision: i64,
}

/// How many pods and sidecars there are.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyCounts {
    /// Pods that match.
    #[serde(default)]
    pub matched: i32,
    /// Of these, pods with our sidecar.
    #[serde(default)]
    pub injected: i32,
    /// Of these, sidecars that hold a poll.
    #[serde(default)]
    pub connected: i32,
    /// Of these, sidecars with their own current brief in force.
    #[serde(default)]
    pub current: i32,
    /// `current/matched`, for the printed column.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub summary: String,
}

/// How many certificates are in use.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateCounts {
    /// Sidecars that hold a valid certificate.
    #[serde(default)]
    pub live: i32,
    /// The first of them to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earliest_not_after: Option<Time>,
    /// Key identifier of the issuer that signs now.
    #[serde(default, rename = "keyID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub key_id: Option<String>,
}

/// What was taken back of a server's certificates.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RevocationCounts {
    /// Sidecars that have not acknowledged it yet.
    #[serde(default)]
    pub pending: i32,
    /// When the last sidecar had acknowledged the last withdrawal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_effective_time: Option<Time>,
    /// Open connections of this server that sidecars cut for it.
    #[serde(default)]
    pub connections_cut: i64,
}
