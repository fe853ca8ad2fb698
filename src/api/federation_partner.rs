//! `FederationPartner`: "this other organisation: its roots, its names, where it is".

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ConfigMapKey, MinTlsVersion, PartnerTrust};

/// Another organisation whose servers may call Edge servers of this namespace, and be called by them.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "entente.dev",
    version = "v1alpha1",
    kind = "FederationPartner",
    plural = "federationpartners",
    shortname = "fp",
    category = "trust",
    namespaced,
    status = "FederationPartnerStatus",
    derive = "PartialEq",
    doc = "Another organisation with an authority of its own: its roots, and the names that they may vouch for. Only Edge servers of this namespace whose ports list it ever hold its roots.",
    printcolumn(name = "Domains", type_ = "string", json_path = ".spec.domains"),
    printcolumn(name = "Trust", type_ = "string", json_path = ".status.trustSource"),
    printcolumn(name = "State", type_ = "string", json_path = ".spec.state"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Anchor-Expires", type_ = "string", json_path = ".status.anchors[0].notAfter"),
    printcolumn(name = "Last-Fetch", type_ = "date", json_path = ".status.bundle.lastFetchTime"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be a DNS label of at most 63 characters"),
    validation = Rule::new("self.spec.serverNames.all(name, self.spec.domains.exists(domain, name == domain || name.endsWith('.' + domain)))")
        .message("every serverNames entry must be one of domains or lie below one"),
    validation = Rule::new("self.spec.edges.all(edge, self.spec.domains.exists(domain, edge.host == domain || edge.host.endsWith('.' + domain)))")
        .message("the host of every edges entry must be one of domains or lie below one: its certificate must carry it"),
    validation = Rule::new("!has(self.spec.trust.publicCA) || self.spec.serverNames.size() > 0")
        .message("serverNames must not be empty with trust.publicCA: a public CA vouches for everybody")
)]
#[serde(rename_all = "camelCase")]
pub struct FederationPartnerSpec {
    /// Whether the partner is trusted. Suspended = withdrawn: its roots are in no sidecar, its connections are cut, new
    /// ones refused, while it stays declared.
    #[serde(default)]
    pub state: PartnerState,

    /// The DNS names that this partner may speak for, each with everything below it. None of them may hold, or lie
    /// below, a name of ours or of another partner of this namespace.
    #[schemars(
        length(min = 1, max = 32),
        inner(
            length(min = 1, max = 253),
            regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub domains: Vec<String>,

    /// Where Edge servers of this namespace may call the partner. They dial the name: the sidecar looks it up, calls it
    /// with mutual TLS, and passes nothing on unless the certificate carries the name.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub edges: Vec<PartnerEdge>,

    /// Exact certificate names that are accepted. Empty = every name inside `domains`.
    #[serde(default)]
    #[schemars(
        length(max = 16),
        inner(
            length(min = 1, max = 253),
            regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub server_names: Vec<String>,

    /// Where the partner's roots come from.
    pub trust: PartnerTrust,

    /// SHA-256 digests (base64) of the public keys (SubjectPublicKeyInfo) that the partner's certificates may have.
    /// Empty = every key that its roots vouch for.
    #[serde(default)]
    #[schemars(
        length(max = 16),
        inner(length(min = 44, max = 44), regex(pattern = r"^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub public_key_pins: Vec<String>,

    /// The oldest TLS version that is spoken with this partner. `1.2` for one that cannot do better; always without
    /// tickets.
    #[serde(default, rename = "minTLSVersion")]
    pub min_tls_version: MinTlsVersion,

    /// What the partner's authority takes back.
    #[serde(default)]
    pub revocation: PartnerRevocation,

    /// A Secret of type kubernetes.io/tls of this namespace with the certificate, of a third party for instance, that our
    /// Edge servers present to this partner instead of their own. It is mounted into the sidecars of pods created from
    /// now on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253), regex(pattern = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"))]
    pub present_secret_name: String,

    /// Bounds on what the partner may ask of one Edge sidecar.
    #[serde(default)]
    pub limits: PartnerLimits,

    /// The end of the contract, RFC 3339: from then on the partner is trusted no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<Time>,
}

/// Whether a partner is trusted.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum PartnerState {
    /// It is.
    #[default]
    Active,
    /// Not for the time being.
    Suspended,
}

/// Where a partner may be called.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartnerEdge {
    /// Its name, which its certificate must carry.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub host: String,
    /// Its TCP port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

/// Where the lists of what a partner's authority took back come from. Nothing set = it publishes none, and its
/// certificates count until they end.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartnerRevocation {
    /// Addresses of revocation lists (RFC 5280), DER or PEM. Lists are signed, so `http` serves as well as `https`.
    #[serde(default, rename = "crlURLs")]
    #[schemars(length(max = 8), inner(length(min = 8, max = 1024), regex(pattern = r"^https?://[^\s]+$")))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub crl_urls: Vec<String>,
    /// A ConfigMap of this namespace whose `key` holds lists, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<ConfigMapKey>,
    /// So many seconds after the end that a list names for itself it may still be relied on.
    #[serde(default = "stale_seconds")]
    #[schemars(range(min = 0, max = 2_592_000))]
    pub max_stale_seconds: i32,
    /// What becomes of new connections when there is no list, or one that is too old.
    #[serde(default)]
    pub on_stale: OnStale,
}

const fn stale_seconds() -> i32 {
    86_400
}

impl Default for PartnerRevocation {
    fn default() -> Self {
        Self {
            crl_urls: vec![],
            config_map_ref: None,
            max_stale_seconds: stale_seconds(),
            on_stale: OnStale::default(),
        }
    }
}

/// What becomes of new connections when nobody knows what was taken back.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum OnStale {
    /// They are refused.
    #[default]
    Deny,
    /// What was known last counts.
    Allow,
}

/// Bounds on what a partner may ask of one Edge sidecar.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartnerLimits {
    /// Connections that are open at the same time, both directions.
    #[serde(default = "max_connections")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_connections: i32,
    /// Handshakes that the partner may begin in a second.
    #[serde(default = "handshakes_per_second")]
    #[schemars(range(min = 1, max = 10_000))]
    pub handshakes_per_second: i32,
}

const fn max_connections() -> i32 {
    200
}

const fn handshakes_per_second() -> i32 {
    10
}

impl Default for PartnerLimits {
    fn default() -> Self {
        Self { max_connections: max_connections(), handshakes_per_second: handshakes_per_second() }
    }
}

/// What the operator says about a partner.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FederationPartnerStatus {
    /// Ready, Accepted, TrustFresh, AnchorsValid, RevocationFresh, Distributed, Reachable.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The roots that are accepted: the next one to end in front, those that have ended behind.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub anchors: Vec<AnchorStatus>,
    /// Where the roots come from, for the printed column: Static, ConfigMap, SPIFFE, PublicCA.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub trust_source: String,
    /// What its bundle endpoint said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<BundleStatus>,
    /// What its revocation lists say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl: Option<PartnerCrlStatus>,
    /// Who has taken it over.
    #[serde(default)]
    pub distribution: Distribution,
}

/// One root of a partner.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AnchorStatus {
    /// SHA-256 of the certificate.
    #[schemars(length(max = 64))]
    pub sha256: String,
    /// Its subject.
    #[schemars(length(max = 256))]
    pub subject: String,
    /// End of its validity.
    pub not_after: Time,
}

/// What a partner's bundle endpoint, ConfigMap or revocation address said last.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BundleStatus {
    /// The bundle's own number (`spiffe_sequence`), where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<i64>,
    /// When the last good one was fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_fetch_time: Option<Time>,
    /// When the next one is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_fetch_time: Option<Time>,
    /// Why the last attempt brought nothing; empty = it did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    pub last_error: String,
}

/// What a partner's revocation lists say together.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartnerCrlStatus {
    /// The lowest number of a list (`cRLNumber`), where they have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<i64>,
    /// When the oldest was signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub this_update: Option<Time>,
    /// When the first of them ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_update: Option<Time>,
    /// Revoked serials in all of them.
    #[serde(default)]
    pub entries: i32,
}

/// How many sidecars of Edge servers there are.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Distribution {
    /// Those of this namespace.
    #[serde(default)]
    pub edges: i32,
    /// Of these, sidecars with their own current brief in force.
    #[serde(default)]
    pub current: i32,
}
