//! The kinds of group `entente.dev`, version `v1alpha1`: the contract with users, and nothing else.
#![allow(unreachable_pub, reason = "KubeSchema copies each struct into a private scope of its own")]

pub mod conditions;
pub mod crds;
mod federation_partner;
mod partner_trust;
mod trust_domain;
mod trusted_server;

pub use federation_partner::{
    AnchorStatus, BundleStatus, Distribution, FederationPartner, FederationPartnerSpec, FederationPartnerStatus,
    OnStale, PartnerCrlStatus, PartnerEdge, PartnerLimits, PartnerRevocation, PartnerState,
};
pub use partner_trust::{ConfigMapKey, EndpointProfile, PartnerTrust, PublicCa, SpiffeEndpoint};
pub use trust_domain::{
    AuthoritySpec, AuthorityState, AuthorityStatus, CrlStatus, DefaultPeers, KeyAlgorithm, LeafSpec, ManagedAuthority,
    PartnerCounts, PeerExpiry, RevocationSpec, RotationPolicy, RotationSpec, SecretName, ServerCounts, TopologySpec,
    TrustDomain, TrustDomainSpec, TrustDomainStatus,
};
pub use trusted_server::{
    AllowedPeer, CertificateCounts, CertificateSpec, ClientCertificate, EgressRule, MinTlsVersion, ObjectName,
    OutboundPolicy, OutboundSpec, PartnerName, PodSelector, PortMode, PortSpec, Protocol, ProxyCounts, ProxyResources,
    ProxySpec, Requirement, RevocationCounts, Role, SelectorOperator, ServerState, TrustedServer, TrustedServerSpec,
    TrustedServerStatus,
};

/// The API group of every kind.
pub const GROUP: &str = "entente.dev";
