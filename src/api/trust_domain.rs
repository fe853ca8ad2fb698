//! `TrustDomain`: which authority, which names.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::trusted_server::ProxyCounts;

/// Which authority signs for which names, and how.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "entente.dev",
    version = "v1alpha1",
    kind = "TrustDomain",
    plural = "trustdomains",
    shortname = "td",
    category = "trust",
    status = "TrustDomainStatus",
    derive = "PartialEq",
    doc = "A trust domain: one authority, the names that it may vouch for, and the namespaces that belong to it.",
    printcolumn(name = "Domain", type_ = "string", json_path = ".spec.spiffeTrustDomain"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Key", type_ = "string", json_path = ".status.activeKeyID", priority = 1),
    printcolumn(name = "Root-Expires", type_ = "string", json_path = ".status.authorities[0].notAfter"),
    printcolumn(name = "Proxies", type_ = "string", json_path = ".status.proxies.summary"),
    printcolumn(name = "Rev", type_ = "integer", json_path = ".status.topologyRevision"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be a DNS label of at most 63 characters")
)]
#[serde(rename_all = "camelCase")]
pub struct TrustDomainSpec {
    /// The SPIFFE trust domain: the first part of every identity, `spiffe://<this>/ns/…`. Immutable.
    #[schemars(
        length(min = 1, max = 128),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    #[x_kube(validation = Rule::new("self == oldSelf").message("spiffeTrustDomain must not change; create another TrustDomain instead"))]
    pub spiffe_trust_domain: String,

    /// DNS names below which servers may carry names, beside their cluster names (below `svc.<clusterDomain>`).
    #[schemars(
        length(min = 1, max = 16),
        inner(
            length(min = 1, max = 253),
            regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub dns_suffixes: Vec<String>,

    /// Namespaces that may join, by name. Absent = every namespace with the label `entente.dev/trust-domain: <this domain>`.
    /// A namespace needs the label in either case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub namespaces: Option<Vec<String>>,

    /// Namespaces that may hold servers of role Edge and FederationPartners: nowhere else is another organisation trusted.
    #[serde(default)]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub edge_namespaces: Vec<String>,

    /// Where the authority's keys come from.
    #[serde(default)]
    pub authority: AuthoritySpec,

    /// How authorities follow one another.
    #[serde(default)]
    pub rotation: RotationSpec,

    /// The certificates of servers.
    #[serde(default)]
    pub leaf: LeafSpec,

    /// What is taken back, beside servers that are suspended or deleted and pods that are gone.
    #[serde(default)]
    pub revocation: RevocationSpec,

    /// Who may call whom where a port does not say.
    #[serde(default)]
    pub topology: TopologySpec,

    /// The cluster's DNS domain.
    #[serde(default = "cluster_domain")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub cluster_domain: String,
}

fn cluster_domain() -> String {
    "cluster.local".to_owned()
}

/// Where the authority's keys come from: exactly one of `managed` and `secretRef`. A change is a rotation.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[x_kube(validation = Rule::new("has(self.managed) != has(self.secretRef)").message("exactly one of managed and secretRef must be set"))]
#[serde(rename_all = "camelCase")]
pub struct AuthoritySpec {
    /// The operator makes root and issuer and keeps them in the Secret `entente-authority-<domain>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedAuthority>,
    /// Your own authority: a Secret of type kubernetes.io/tls in the operator's namespace. `tls.crt` is the issuing
    /// certificate and what leads to the root, `tls.key` its key, `ca.crt` the root, `ca.crl` (optional) the root's CRL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretName>,
}

impl Default for AuthoritySpec {
    fn default() -> Self {
        Self { managed: Some(ManagedAuthority::default()), secret_ref: None }
    }
}

/// A Secret by its name.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretName {
    /// Its name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// How authorities follow one another: prepared, trusted by every sidecar, active, retiring, removed.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RotationSpec {
    /// Whether new roots come by themselves. Issuing certificates under the same root always do.
    #[serde(default)]
    pub policy: RotationPolicy,
    /// Percent of its life after which an issuing certificate or a root is followed by the next one.
    #[serde(default = "start_percent")]
    #[schemars(range(min = 1, max = 90))]
    pub start_at_lifetime_percent: i32,
    /// Seconds that a new root is trusted before it signs.
    #[serde(default = "min_trusted")]
    #[schemars(range(min = 0, max = 604_800))]
    pub min_trusted_seconds: i32,
    /// Seconds after which a rotation that waits names whom it waits for. It never goes on by itself.
    #[serde(default = "ack_timeout")]
    #[schemars(range(min = 1, max = 86_400))]
    pub ack_timeout_seconds: i32,
    /// A moment later than the last rotation starts one of the root then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<Time>,
    /// Key identifier (`status.authorities`) of a retiring authority that must sign again. While it is set no rotation
    /// starts by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[0-9a-f]+$"))]
    pub roll_back_to: Option<String>,
}

const fn start_percent() -> i32 {
    50
}

const fn min_trusted() -> i32 {
    600
}

const fn ack_timeout() -> i32 {
    900
}

impl Default for RotationSpec {
    fn default() -> Self {
        Self {
            policy: RotationPolicy::default(),
            start_at_lifetime_percent: start_percent(),
            min_trusted_seconds: min_trusted(),
            ack_timeout_seconds: ack_timeout(),
            requested_at: None,
            roll_back_to: None,
        }
    }
}

/// Whether new roots come by themselves.
#[derive(schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum RotationPolicy {
    /// At `startAtLifetimePercent` of the root's life, and when `requestedAt` asks.
    #[default]
    Automatic,
    /// Only when `requestedAt` asks.
    Manual,
}

/// What is taken back, and what that means for open connections.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RevocationSpec {
    /// Serial numbers (hex, as `openssl x509 -serial` or a log line shows them) of certificates whose key is known to
    /// others. They stay revoked until they end, also when they are taken off this list.
    #[serde(default)]
    #[schemars(
        length(max = 256),
        inner(length(min = 1, max = 64), regex(pattern = r"^[0-9A-Fa-f]+(:[0-9A-Fa-f]+)*$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub serials: Vec<String>,
    /// What becomes of an open connection when the certificate of its peer ends.
    #[serde(default)]
    pub on_peer_expiry: PeerExpiry,
}

/// What becomes of an open connection when the certificate of its peer ends.
#[derive(schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum PeerExpiry {
    /// It lives on exactly while the peer proves itself anew with its next certificates.
    #[default]
    Reprove,
    /// It ends.
    Cut,
    /// It stays; revocation and the topology still end it.
    Keep,
}

/// An authority that the operator makes.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ManagedAuthority {
    /// Algorithm of the authority's keys.
    #[serde(default)]
    pub key_algorithm: KeyAlgorithm,
    /// Days that a root lives. Takes effect when the next root is made.
    #[serde(default = "root_days")]
    #[schemars(range(min = 1, max = 7300))]
    pub root_lifetime_days: i32,
    /// Days that an issuing intermediate lives; the next one is made at half of it.
    #[serde(default = "issuer_days")]
    #[schemars(range(min = 1, max = 3650))]
    pub issuer_lifetime_days: i32,
}

const fn root_days() -> i32 {
    3650
}

const fn issuer_days() -> i32 {
    30
}

impl Default for ManagedAuthority {
    fn default() -> Self {
        Self {
            key_algorithm: KeyAlgorithm::default(),
            root_lifetime_days: root_days(),
            issuer_lifetime_days: issuer_days(),
        }
    }
}

/// Algorithms of the authority's keys.
#[derive(schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum KeyAlgorithm {
    /// ECDSA over P-256.
    #[default]
    ECDSAP256,
}

/// The certificates of servers.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LeafSpec {
    /// Seconds that a certificate lives; it is renewed at 33–40 % of that. Short lives are for tests.
    #[serde(default = "lifetime")]
    #[schemars(range(min = 60, max = 604_800))]
    pub lifetime_seconds: i32,
    /// Seconds that certificates are back-dated, for clocks that lag.
    #[serde(default = "skew")]
    #[schemars(range(min = 0, max = 3600))]
    pub clock_skew_seconds: i32,
}

const fn lifetime() -> i32 {
    86_400
}

const fn skew() -> i32 {
    300
}

impl Default for LeafSpec {
    fn default() -> Self {
        Self { lifetime_seconds: lifetime(), clock_skew_seconds: skew() }
    }
}

/// Who may call whom where a port does not say.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopologySpec {
    /// Meaning of a MutualTLS port without `allowFrom`.
    #[serde(default)]
    pub default_peers: DefaultPeers,
}

/// Meaning of a MutualTLS port without `allowFrom`.
#[derive(schemars::JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum DefaultPeers {
    /// Every declared server of role Internal may call; partners and Edge servers only where a port names them.
    #[default]
    AllDeclared,
    /// Only the server itself may call.
    ExplicitOnly,
}

/// What the operator says about a domain.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustDomainStatus {
    /// Ready, AuthorityReady, TopologyValid, BundleDistributed, RotationComplete, RevocationPublished.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Grows with every change of what is declared.
    #[serde(default)]
    pub topology_revision: i64,
    /// Digest of what that revision stands for: UID and generation of the domain and its servers.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub topology_digest: String,
    /// Key identifier of the issuer that signs.
    #[serde(default, rename = "activeKeyID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub active_key_id: Option<String>,
    /// The authorities of the domain.
    #[serde(default)]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub authorities: Vec<AuthorityStatus>,
    /// The sidecars of the domain: `matched` pods, of these `injected`, `connected` and `current`.
    #[serde(default)]
    pub proxies: ProxyCounts,
    /// The servers of the domain.
    #[serde(default)]
    pub servers: ServerCounts,
    /// The partners of the domain's edge namespaces.
    #[serde(default)]
    pub partners: PartnerCounts,
    /// The published revocation lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl: Option<CrlStatus>,
}

/// The published revocation lists: one for each key, with one number.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CrlStatus {
    /// Their number.
    pub number: i64,
    /// When they were signed.
    pub this_update: Time,
    /// Until when they may be relied on.
    pub next_update: Time,
    /// Revoked certificates in them.
    pub entries: i32,
}

/// One authority.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorityStatus {
    /// Key identifier of its issuer.
    #[serde(rename = "keyID")]
    #[schemars(length(max = 64))]
    pub key_id: String,
    /// SHA-256 of its root certificate.
    #[schemars(length(max = 64))]
    pub sha256: String,
    /// What it is used for.
    pub state: AuthorityState,
    /// Start of its root's validity.
    pub not_before: Time,
    /// End of its root's validity.
    pub not_after: Time,
    /// Sidecars that have acknowledged it.
    #[serde(default)]
    pub trusted_by_proxies: i32,
    /// Certificates in use that it signed.
    #[serde(default)]
    pub live_leaves: i32,
}

/// What an authority is used for.
#[derive(schemars::JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum AuthorityState {
    /// Made, and on its way to every sidecar and bundle.
    Prepared,
    /// Trusted by every sidecar; it does not sign yet.
    Trusted,
    /// It signs.
    Active,
    /// It signed; what it signed is still in use.
    Retiring,
    /// It is trusted no more.
    Removed,
}

/// How many servers there are.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerCounts {
    /// All that are accepted.
    #[serde(default)]
    pub total: i32,
    /// Of these, servers of role Edge.
    #[serde(default)]
    pub edge: i32,
}

/// How many partners there are.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartnerCounts {
    /// All that are accepted.
    #[serde(default)]
    pub total: i32,
    /// Of these, those that are Ready.
    #[serde(default)]
    pub ready: i32,
}
