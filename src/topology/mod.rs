//! The topology: what all declarations together mean.
//!
//! Resolving never fails as a whole. One bad object gets its problems and loses only what is wrong about it; two
//! objects that claim the same thing are settled by age: the older keeps it.

mod egress;
pub mod endpoint;
pub mod facts;
pub mod kept;
mod names;
mod partners;
mod peers;
mod problem;
mod resolve;
mod selector;
mod trust;

use core::net::IpAddr;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use jiff::Timestamp;

pub use problem::Problem;
pub use selector::Selector;

use crate::{
    api::{
        FederationPartner, PartnerLimits, PartnerState, ProxyResources, Role, RotationSpec, TrustDomain, TrustedServer,
    },
    brief::{
        Allow, Egress, Mode, OnPeerExpiry, PartnerEdge, PartnerNames, PartnerStanding, Revocation, ServerTls, Standing,
    },
    identity::{DnsName, SpiffeId},
    pki::{authority::Serial, ledger::Owner, roots::Root},
};
use facts::{PodFacts, ServiceFacts};
use kept::KeptSeen;

/// One of our objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A `TrustDomain`.
    Domain(String),
    /// A `TrustedServer`.
    Server(ServerKey),
    /// A `FederationPartner`.
    Partner(PartnerKey),
}

/// A `TrustedServer` by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ServerKey {
    /// The key of an object.
    pub(crate) fn of(object: &TrustedServer) -> Self {
        Self {
            namespace: object.metadata.namespace.clone().unwrap_or_default(),
            name: object.metadata.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A `FederationPartner` by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartnerKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl PartnerKey {
    /// The key of an object.
    pub(crate) fn of(object: &FederationPartner) -> Self {
        Self {
            namespace: object.metadata.namespace.clone().unwrap_or_default(),
            name: object.metadata.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for PartnerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(name) => write!(f, "TrustDomain {name}"),
            Self::Server(key) => write!(f, "TrustedServer {key}"),
            Self::Partner(key) => write!(f, "FederationPartner {key}"),
        }
    }
}

/// Everything that was declared, and the facts that it is about.
#[derive(Clone, Debug, Default)]
pub struct Declared {
    /// Our domains.
    pub domains: Vec<TrustDomain>,
    /// Our servers.
    pub servers: Vec<TrustedServer>,
    /// Other organisations.
    pub partners: Vec<FederationPartner>,
    /// What the sources of partners' trust said last that was good.
    pub kept: BTreeMap<PartnerKey, KeptSeen>,
    /// Roots of the web PKI, PEM.
    pub web_roots: Arc<[String]>,
    /// SHA-256 of the public keys of our own authorities, roots and issuers: no partner speaks with one of them.
    pub own_keys: BTreeSet<String>,
    /// Namespaces with the domain that their label names.
    pub namespaces: BTreeMap<String, Option<String>>,
    /// Pods.
    pub pods: Vec<PodFacts>,
    /// Services.
    pub services: Vec<ServiceFacts>,
    /// Our own namespace, where the bundle endpoint of each domain has a certificate of that domain; `None` = nowhere.
    pub bundle_endpoint: Option<String>,
}

impl Declared {
    /// The object of a domain.
    pub fn domain(&self, name: &str) -> Option<&TrustDomain> {
        self.domains.iter().find(|object| object.metadata.name.as_deref() == Some(name))
    }

    /// The object of a server.
    pub fn server(&self, key: &ServerKey) -> Option<&TrustedServer> {
        let ServerKey { namespace, name } = key;
        self.servers.iter().find(|object| {
            let meta = &object.metadata;
            meta.name.as_deref() == Some(name) && meta.namespace.as_deref() == Some(namespace)
        })
    }

    /// The object of a partner.
    pub fn partner(&self, key: &PartnerKey) -> Option<&FederationPartner> {
        let PartnerKey { namespace, name } = key;
        self.partners.iter().find(|object| {
            let meta = &object.metadata;
            meta.name.as_deref() == Some(name) && meta.namespace.as_deref() == Some(namespace)
        })
    }
}

/// What the declarations mean.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    domains: BTreeMap<String, Domain>,
    servers: BTreeMap<ServerKey, Server>,
    /// Our own bundle endpoints, by the name of the domain. They are among no servers: nothing is said of them, nobody
    /// meets them.
    endpoints: BTreeMap<String, Server>,
    partners: BTreeMap<PartnerKey, Partner>,
    /// Servers of a namespace, oldest first.
    by_age: BTreeMap<String, Vec<ServerKey>>,
    pods: BTreeMap<String, (ServerKey, PodFacts)>,
    services: BTreeMap<ServerKey, Vec<OwnService>>,
    /// Roots of the web PKI, PEM.
    web_roots: Arc<[String]>,
}

/// A Service whose pods are one server's, and the ports of it that may be dialled.
type OwnService = (ServiceFacts, BTreeMap<u16, Mode>);

/// A trust domain.
#[derive(Clone, Debug, PartialEq)]
pub struct Domain {
    /// Name of the `TrustDomain`.
    pub name: String,
    /// The SPIFFE trust domain.
    pub trust_domain: DnsName,
    /// Names that servers may carry.
    pub suffixes: Vec<DnsName>,
    /// The cluster's DNS domain.
    pub cluster_domain: DnsName,
    /// Namespaces that have joined.
    pub namespaces: BTreeSet<String>,
    /// Of these, the ones where other organisations may come in.
    pub edge_namespaces: BTreeSet<String>,
    /// Its servers of role Edge: nobody means them who says `AllDeclared`.
    pub edges: BTreeSet<SpiffeId>,
    /// Life of leaves, in seconds.
    pub lifetime_seconds: u32,
    /// How far leaves are back-dated, in seconds.
    pub skew_seconds: u32,
    /// Days that a root lives.
    pub root_days: u32,
    /// Days that an issuer lives.
    pub issuer_days: u32,
    /// Name of the Secret with the owner's own authority; `None` = the operator makes it.
    pub secret_ref: Option<String>,
    /// How authorities follow one another.
    pub rotation: RotationSpec,
    /// Serials that are known to be in the wrong hands.
    pub revoked_serials: BTreeSet<Serial>,
    /// What becomes of open connections when the peer's certificate ends.
    pub on_peer_expiry: OnPeerExpiry,
    /// Digest over UID and generation of the domain, its servers and its partners, and over the partners' roots.
    pub digest: String,
}

impl Domain {
    /// Names below which the authority vouches: the suffixes, the trust domain, the cluster's names.
    pub fn permitted(&self) -> BTreeSet<DnsName> {
        let svc = DnsName::parse("svc").ok();
        let own = [self.trust_domain.clone(), self.cluster_domain.clone()];
        self.suffixes.iter().cloned().chain(own).chain(svc).collect()
    }
}

/// A declared server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Which object.
    pub key: ServerKey,
    /// Its UID.
    pub uid: String,
    /// When it was declared.
    pub created: Timestamp,
    /// Name of its domain.
    pub domain: String,
    /// Its identity.
    pub id: SpiffeId,
    /// Nobody declares it: it is the bundle endpoint of its domain, and UID and age are the domain's.
    pub built_in: bool,
    /// Its place in the topology.
    pub role: Role,
    /// Whether it is suspended.
    pub standing: Standing,
    /// Certificates issued earlier are taken back.
    pub revoke_issued_before: Option<Timestamp>,
    /// The Secret that its software takes key and certificate from, instead of a sidecar.
    pub secret_name: Option<String>,
    /// The Secret with the certificate that its ServerTLS ports show.
    pub server_secret_name: Option<String>,
    /// Its pods.
    pub selector: Selector,
    /// The ServiceAccount that they must run under.
    pub service_account: String,
    /// Declared names that are in order, and the topology name.
    pub names: BTreeSet<DnsName>,
    /// Its ports.
    pub ports: Vec<ServerPort>,
    /// What it may call beside the topology.
    pub egress: Egress,
    /// Seconds to drain.
    pub drain_seconds: u32,
    /// Requests and limits of its sidecars.
    pub resources: ProxyResources,
}

impl Server {
    /// As its ledger names it.
    pub fn owner(&self) -> Owner {
        Owner { id: self.id.clone(), uid: self.uid.clone(), created: self.created }
    }
}

/// Another organisation that Edge servers of its namespace may meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partner {
    /// Which object.
    pub key: PartnerKey,
    /// Its UID.
    pub uid: String,
    /// Name of the domain of ours that it is a partner of.
    pub domain: String,
    /// Whether it is suspended.
    pub state: PartnerState,
    /// Whom it may speak for.
    pub names: PartnerNames,
    /// Where it may be called.
    pub edges: Vec<PartnerEdge>,
    /// Whether TLS 1.2 is spoken with it.
    pub tls12: bool,
    /// The Secret with the certificate that it is shown instead of our own.
    pub present_secret: Option<String>,
    /// What it may ask of one sidecar.
    pub limits: PartnerLimits,
    /// Its roots, the first to end in front; also those that have ended.
    pub roots: Vec<Root>,
    /// What its authority took back; `None` = it publishes nothing.
    pub revocation: Option<Revocation>,
    /// The lists that say so, PEM, as far as they are passed on to applications.
    pub crl_pem: String,
    /// The end of the contract.
    pub valid_until: Option<Timestamp>,
}

impl Partner {
    /// Whether it is trusted at all.
    pub fn standing(&self, now: Timestamp) -> PartnerStanding {
        match self.state {
            PartnerState::Suspended => PartnerStanding::Suspended,
            PartnerState::Active if self.valid_until.is_some_and(|end| end <= now) => PartnerStanding::Expired,
            PartnerState::Active => PartnerStanding::Active,
        }
    }

    /// The roots that have not ended.
    pub fn anchors(&self, now: Timestamp) -> impl Iterator<Item = &Root> {
        self.roots.iter().filter(move |root| now <= root.validity.not_after)
    }
}

/// A declared port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerPort {
    /// Its name.
    pub name: String,
    /// What peers dial.
    pub port: u16,
    /// What the application listens on.
    pub target_port: u16,
    /// What the wire carries; `None` = UDP.
    pub mode: Option<Mode>,
    /// Who may call.
    pub allow: Allow,
    /// How clients are met, where the server alone proves itself.
    pub server_tls: Option<ServerTls>,
}

/// Why a pod gets no certificate, or not yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unattested {
    /// No server selects it.
    #[error("no TrustedServer selects pod {0}: its labels must match the selector of one in its namespace")]
    NoMatchingServer(String),
    /// Its server is suspended.
    #[error("TrustedServer {0} is suspended: its pods get no certificate until spec.state is Active")]
    ServerSuspended(ServerKey),
    /// The pod runs under another ServiceAccount than declared.
    #[error("pod {pod} runs under ServiceAccount {found}, but TrustedServer {server} wants {wanted}")]
    ServiceAccountMismatch {
        /// The pod.
        pod: String,
        /// What it runs under.
        found: String,
        /// The server that selects it.
        server: ServerKey,
        /// What that declares.
        wanted: String,
    },
}

impl Unattested {
    /// The stable code of the issuance stage.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoMatchingServer(_) => "NoMatchingServer",
            Self::ServerSuspended(_) => "ServerSuspended",
            Self::ServiceAccountMismatch { .. } => "ServiceAccountMismatch",
        }
    }
}

impl Topology {
    /// Resolves all declarations; never fails as a whole.
    pub fn resolve(declared: &Declared) -> (Self, Vec<(Key, Problem)>) {
        resolve::resolve(declared)
    }

    /// The domains.
    pub fn domains(&self) -> impl Iterator<Item = &Domain> {
        self.domains.values()
    }

    /// A domain by the name of its object.
    pub fn domain(&self, name: &str) -> Option<&Domain> {
        self.domains.get(name)
    }

    /// The servers, by key.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        self.servers.values()
    }

    /// A server by key.
    pub fn server(&self, key: &ServerKey) -> Option<&Server> {
        self.servers.get(key)
    }

    /// Our own bundle endpoints, by the name of the domain.
    pub fn endpoints(&self) -> impl Iterator<Item = &Server> {
        self.endpoints.values()
    }

    /// Whoever may hold certificates under this key: a server, or a bundle endpoint of ours.
    pub fn holder(&self, key: &ServerKey) -> Option<&Server> {
        self.server(key).or_else(|| self.endpoints().find(|endpoint| endpoint.key == *key))
    }

    /// The partners, by key.
    pub fn partners(&self) -> impl Iterator<Item = &Partner> {
        self.partners.values()
    }

    /// Roots of the web PKI, PEM.
    pub fn web_roots(&self) -> &[String] {
        &self.web_roots
    }

    /// The partners of a namespace.
    pub fn partners_in<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a Partner> + use<'a> {
        let first = PartnerKey { namespace: namespace.to_owned(), name: String::new() };
        let namespace = namespace.to_owned();
        self.partners.range(first..).take_while(move |(key, _)| key.namespace == namespace).map(|(_, partner)| partner)
    }

    /// A partner by key.
    pub fn partner(&self, key: &PartnerKey) -> Option<&Partner> {
        self.partners.get(key)
    }

    /// The domain of a namespace.
    pub fn domain_of_namespace(&self, namespace: &str) -> Option<&Domain> {
        self.domains.values().find(|domain| domain.namespaces.contains(namespace))
    }

    /// The server that selects pods with these labels: the oldest one.
    pub fn selecting(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Option<&Server> {
        let candidates = self.by_age.get(namespace)?;
        candidates.iter().filter_map(|key| self.servers.get(key)).find(|server| server.selector.matches(labels))
    }

    /// The server that a live pod is, by its labels and its ServiceAccount, both.
    pub fn attest(&self, pod: &PodFacts) -> Result<&Server, Unattested> {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let Some(server) = self.selecting(&pod.namespace, &pod.labels) else {
            return Err(Unattested::NoMatchingServer(name));
        };
        if server.standing != Standing::Active {
            return Err(Unattested::ServerSuspended(server.key.clone()));
        }
        if server.service_account == pod.service_account {
            return Ok(server);
        }
        Err(Unattested::ServiceAccountMismatch {
            pod: name,
            found: pod.service_account.clone(),
            server: server.key.clone(),
            wanted: server.service_account.clone(),
        })
    }

    /// The server whose pod this is, with the pod as last seen.
    pub fn pod(&self, uid: &str) -> Option<(&Server, &PodFacts)> {
        let (key, pod) = self.pods.get(uid)?;
        Some((self.servers.get(key)?, pod))
    }

    /// The pods that a server selects, ending ones included.
    pub fn pods_of<'a>(&'a self, key: &'a ServerKey) -> impl Iterator<Item = &'a PodFacts> {
        self.pods.values().filter(move |(server, _)| server == key).map(|(_, pod)| pod)
    }

    /// All selected pods with their servers.
    pub fn pods(&self) -> impl Iterator<Item = (&ServerKey, &PodFacts)> {
        self.pods.values().map(|(key, pod)| (key, pod))
    }

    /// Service addresses that lead to one server: the server, the addresses, and the ports that may be dialled.
    pub fn services(&self) -> impl Iterator<Item = (&ServerKey, &BTreeSet<IpAddr>, &BTreeMap<u16, Mode>)> {
        let all = self.services.iter().flat_map(|(key, services)| services.iter().map(move |one| (key, one)));
        all.map(|(key, (service, ports))| (key, &service.addresses, ports))
    }

    /// The DNS names that the leaf of `pod` carries.
    pub fn names_of(&self, server: &Server, pod: &PodFacts) -> BTreeSet<DnsName> {
        names::of_pod(self, server, pod)
    }

    /// The DNS names that every leaf of `server` carries.
    pub fn names_of_server(&self, server: &Server) -> BTreeSet<DnsName> {
        names::of_server(self, server)
    }
}

#[cfg(test)]
mod tests;
