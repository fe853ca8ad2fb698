//! `FederationPartner`: "this other organisation: its roots, its names".

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Another organisation whose servers may call Edge servers of this namespace.
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
    printcolumn(name = "State", type_ = "string", json_path = ".spec.state"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Anchor-Expires", type_ = "string", json_path = ".status.anchors[0].notAfter"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must be a DNS label of at most 63 characters"),
    validation = Rule::new("self.spec.serverNames.all(name, self.spec.domains.exists(domain, name == domain || name.endsWith('.' + domain)))")
        .message("every serverNames entry must be one of domains or lie below one")
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

/// Where a partner's roots come from: exactly one of `caBundle` and `configMapRef`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[x_kube(validation = Rule::new("has(self.caBundle) != has(self.configMapRef)").message("exactly one of caBundle and configMapRef must be set"))]
#[serde(rename_all = "camelCase")]
pub struct PartnerTrust {
    /// Root certificates, PEM; at most 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65_536))]
    pub ca_bundle: Option<String>,
    /// A ConfigMap of this namespace whose `key` holds them. It is read every ten seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<ConfigMapKey>,
}

/// One key of a ConfigMap.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKey {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Its key.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// What the operator says about a partner.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FederationPartnerStatus {
    /// Ready, Accepted, AnchorsValid, Distributed.
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
