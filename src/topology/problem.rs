//! Every way in which a declaration can be wrong, with its stable reason and its sentence.

use crate::identity::DnsName;

/// What is wrong with one object. The server goes on with what is right about it, unless [`Problem::excludes`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// The object could not be read at all.
    #[error("the object cannot be read: {0}")]
    Unreadable(String),
    /// The namespace is in no domain.
    #[error(
        "namespace {0} is in no trust domain: a cluster administrator must label it {label}=NAME, and the domain's spec.namespaces, where set, must list it",
        label = crate::sidecar::DOMAIN_LABEL
    )]
    NoTrustDomain(String),
    /// The domain that the namespace names does not exist.
    #[error(
        "namespace {namespace} names trust domain {domain}, which does not exist or does not list it in spec.namespaces"
    )]
    DomainNotThere {
        /// The namespace.
        namespace: String,
        /// What its label says.
        domain: String,
    },
    /// Another domain uses the same SPIFFE trust domain.
    #[error("spiffeTrustDomain {0} belongs to the older TrustDomain {1}")]
    TrustDomainConflict(DnsName, String),
    /// A selector that selects everything, or a requirement without values.
    #[error("selector must name at least one label, and every matchExpressions entry at least one value")]
    InvalidSelector,
    /// The identity would not be a valid name.
    #[error("{0}")]
    InvalidName(String),
    /// A DNS name outside the domain.
    #[error("dnsNames: {0} must be inside one of the domain's dnsSuffixes: {1}")]
    NameOutsideDomain(String, String),
    /// A DNS name that another server claimed first.
    #[error("dnsNames: {0} belongs to the older server {1}")]
    NameConflict(DnsName, String),
    /// Pods that an older server selects too.
    #[error(
        "selector must not select pods of another server: {pods} also match the older server {other}, which keeps them"
    )]
    SelectorOverlap {
        /// Up to five pods.
        pods: String,
        /// Who keeps them.
        other: String,
    },
    /// `allowFrom` names a server that does not exist.
    #[error("ports[{port}].allowFrom: server {peer} does not exist in this domain")]
    UnknownPeer {
        /// Name of the port.
        port: String,
        /// `namespace/name`.
        peer: String,
    },
    /// An Edge server elsewhere.
    #[error("role Edge must be in one of the edgeNamespaces of TrustDomain {domain}; {namespace} is none of them")]
    EdgeNotAllowedHere {
        /// Where it is.
        namespace: String,
        /// The domain.
        domain: String,
    },
    /// `allowFrom` names a partner that is not there.
    #[error(
        "ports[{port}].allowFrom: FederationPartner {partner} must exist in this namespace and be accepted, and this server must have role Edge"
    )]
    UnknownPartner {
        /// Name of the port.
        port: String,
        /// Name of the partner.
        partner: String,
    },
    /// A caller's own local port that is already another port's.
    #[error("ports[{port}].allowFrom: targetPort {number} must not be a number of port {other}; the entry is left out")]
    TargetPortConflict {
        /// Name of the port.
        port: String,
        /// The number.
        number: u16,
        /// Name of the port that has it.
        other: String,
    },
    /// A partner elsewhere.
    #[error(
        "a FederationPartner must be in one of the edgeNamespaces of TrustDomain {domain}; {namespace} is none of them"
    )]
    NotEdgeNamespace {
        /// Where it is.
        namespace: String,
        /// The domain.
        domain: String,
    },
    /// A name that somebody else speaks for.
    #[error("domains: {name} must neither hold nor lie below a name of {other}, which keeps it")]
    DomainOverlap {
        /// The name.
        name: DnsName,
        /// Whose it is.
        other: String,
    },
    /// A public CA that may vouch for anybody.
    #[error("serverNames must not be empty with trust.publicCA: a public CA vouches for everybody")]
    ServerNamesRequired,
    /// A pin that no key can have.
    #[error("publicKeyPins: {0:?} must be the base64 of a SHA-256 digest; the partner is left out")]
    InvalidPin(String),
    /// Roots that cannot be read.
    #[error("trust: {0}")]
    UnreadableRoots(String),
    /// A root that is no authority's certificate.
    #[error("trust: every root must be a certificate authority's. {0}")]
    NotACa(String),
    /// A root with a key of ours.
    #[error("trust: {0} has the key of an authority of ours, which must not vouch for somebody else")]
    AnchorIsOurs(String),
    /// `outbound.extra` names a network that cannot be read.
    #[error("outbound.extra: {0:?} must be a network such as 192.0.2.0/24")]
    InvalidNetwork(String),
    /// `outbound.extra` names a Service that does not exist.
    #[error("outbound.extra: Service {0} does not exist")]
    UnknownService(String),
    /// `outbound.extra` names a declared server as if it were none.
    #[error("outbound.extra: host {name} is a name of server {server}; it is called as that server's allowFrom says")]
    HostIsDeclared {
        /// The name.
        name: DnsName,
        /// Whose it is.
        server: String,
    },
    /// More partners, or more of their trust, than sidecars are told.
    #[error(
        "the partners of a namespace are at most {most}, and their roots and lists together at most {bytes} bytes; the older ones keep their place"
    )]
    TooManyPartners {
        /// Partners of one namespace.
        most: usize,
        /// Bytes of their trust.
        bytes: usize,
    },
    /// A Service port that leads to no declared port.
    #[error(
        "Service {service}: port {port} leads to no declared port or targetPort of this server; callers of it are refused"
    )]
    ServicePortMismatch {
        /// Name of the Service.
        service: String,
        /// Its port.
        port: u16,
    },
    /// A Service over pods of several servers, or over undeclared pods too.
    #[error("Service {0} selects pods of more than this one server; its address is refused")]
    ServiceSpansServers(String),
}

impl Problem {
    /// The stable reason, one CamelCase word.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(_) | Self::UnreadableRoots(_) => "Unreadable",
            Self::NoTrustDomain(_) | Self::DomainNotThere { .. } => "NoTrustDomain",
            Self::TrustDomainConflict(..) => "TrustDomainConflict",
            Self::InvalidSelector => "InvalidSelector",
            Self::InvalidName(_) => "InvalidName",
            Self::NameOutsideDomain(..) => "NameOutsideDomain",
            Self::NameConflict(..) => "NameConflict",
            Self::SelectorOverlap { .. } => "SelectorOverlap",
            Self::UnknownPeer { .. } => "UnknownPeer",
            Self::EdgeNotAllowedHere { .. } => "EdgeNotAllowedHere",
            Self::UnknownPartner { .. } => "UnknownPartner",
            Self::TargetPortConflict { .. } => "TargetPortConflict",
            Self::NotEdgeNamespace { .. } => "NotEdgeNamespace",
            Self::DomainOverlap { .. } => "DomainOverlap",
            Self::ServerNamesRequired => "ServerNamesRequired",
            Self::InvalidPin(_) => "InvalidPin",
            Self::NotACa(_) => "NotACA",
            Self::AnchorIsOurs(_) => "AnchorIsOurs",
            Self::InvalidNetwork(_) => "InvalidNetwork",
            Self::UnknownService(_) => "UnknownService",
            Self::HostIsDeclared { .. } => "HostIsDeclared",
            Self::TooManyPartners { .. } => "TooManyPartners",
            Self::ServicePortMismatch { .. } => "ServicePortMismatch",
            Self::ServiceSpansServers(_) => "ServiceSpansServers",
        }
    }
}
