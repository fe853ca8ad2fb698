//! The kinds of group `entente.dev`, version `v1alpha1`: the contract with users, and nothing else.
#![allow(unreachable_pub, reason = "KubeSchema copies each struct into a private scope of its own")]

pub mod conditions;
pub mod crds;
mod federation_partner;
mod trust_domain;
mod trusted_server;

pub use federation_partner::{
    AnchorStatus, ConfigMapKey, Distribution, FederationPartner, FederationPartnerSpec, FederationPartnerStatus,
    PartnerState, PartnerTrust,
};
pub use trust_domain::{
    AuthoritySpec, AuthorityState, AuthorityStatus, CrlStatus, DefaultPeers, KeyAlgorithm, LeafSpec, ManagedAuthority,
    PartnerCounts, PeerExpiry, RevocationSpec, RotationPolicy, RotationSpec, SecretName, ServerCounts, TopologySpec,
    TrustDomain, TrustDomainSpec, TrustDomainStatus,
};
pub use trusted_server::{
    AllowedPeer, CertificateCounts, CertificateSpec, EgressRule, ObjectName, OutboundPolicy, OutboundSpec, PartnerName,
    PodSelector, PortMode, PortSpec, Protocol, ProxyCounts, ProxyResources, ProxySpec, Requirement, RevocationCounts,
    Role, SelectorOperator, ServerState, TrustedServer, TrustedServerSpec, TrustedServerStatus,
};

/// The API group of every kind.
pub const GROUP: &str = "entente.dev";
