//! Where the roots of another organisation come from.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a partner's roots come from: exactly one of them.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[x_kube(validation = Rule::new("[has(self.caBundle), has(self.configMapRef), has(self.spiffeEndpoint), has(self.publicCA)].filter(one, one).size() == 1").message("exactly one of caBundle, configMapRef, spiffeEndpoint and publicCA must be set"))]
#[serde(rename_all = "camelCase")]
pub struct PartnerTrust {
    /// Root certificates, PEM; at most 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65_536))]
    pub ca_bundle: Option<String>,
    /// A ConfigMap of this namespace whose `key` holds them. It is read every ten seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_ref: Option<ConfigMapKey>,
    /// A SPIFFE bundle endpoint that publishes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spiffe_endpoint: Option<SpiffeEndpoint>,
    /// The web PKI, a third party that both trust. `serverNames` are required then, `publicKeyPins` advised.
    #[serde(default, rename = "publicCA", skip_serializing_if = "Option::is_none")]
    pub public_ca: Option<PublicCa>,
}

/// The web PKI: the roots that browsers trust (Mozilla's), as they were when this program was built.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct PublicCa {}

/// A SPIFFE bundle endpoint (SPIFFE_Federation.md §5).
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[x_kube(
    validation = Rule::new("(self.profile == 'HTTPSSPIFFE') == has(self.endpointSPIFFEID)")
        .message("endpointSPIFFEID must be set with profile HTTPSSPIFFE, and with no other"),
    validation = Rule::new("(self.profile == 'HTTPSSPIFFE') == has(self.bootstrapRef)")
        .message("bootstrapRef must be set with profile HTTPSSPIFFE, and with no other"),
    validation = Rule::new("!has(self.endpointSPIFFEID) || self.endpointSPIFFEID.startsWith('spiffe://' + self.spiffeTrustDomain + '/')")
        .message("endpointSPIFFEID must be an identity of spiffeTrustDomain: spiffe://DOMAIN/PATH")
)]
#[serde(rename_all = "camelCase")]
pub struct SpiffeEndpoint {
    /// Its address, `https://host[:port]/path`. Redirects are not followed.
    #[schemars(length(min = 9, max = 1024), regex(pattern = r"^https://[^\s@#]+$"))]
    pub url: String,
    /// The partner's SPIFFE trust domain: its certificates may carry identities of it.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub spiffe_trust_domain: String,
    /// How the endpoint proves itself.
    pub profile: EndpointProfile,
    /// The endpoint's own identity; profile HTTPSSPIFFE.
    #[serde(default, rename = "endpointSPIFFEID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 12, max = 512), regex(pattern = r"^spiffe://[^\s]+$"))]
    pub endpoint_spiffe_id: Option<String>,
    /// A ConfigMap of this namespace whose `key` holds the partner's first bundle, SPIFFE JSON or PEM, got by another way;
    /// profile HTTPSSPIFFE. Later ones are proven by the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap_ref: Option<ConfigMapKey>,
}

/// How a bundle endpoint proves itself (SPIFFE_Federation.md §5.2).
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub enum EndpointProfile {
    /// By a certificate of the web PKI for the URL's host (`https_web`).
    HTTPSWeb,
    /// By an identity of its own trust domain (`https_spiffe`).
    HTTPSSPIFFE,
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
