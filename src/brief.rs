//! The brief: all that one proxy is told, and the messages of the control channel that carry it.
//!
//! This is the one contract between controller and sidecar, and a contract between versions: a sidecar lives as long
//! as its pod. Its poll names the brief version it reads; the controller writes that one. Unknown fields are refused,
//! since an ignored restriction is a hole. Sizes do not grow with the topology: the symbolic rule `AllDeclared`
//! stands for every declared server, and addresses travel apart, as routes.

mod partners;
mod scopes;

use core::net::IpAddr;
use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use self::{
    partners::{Named, PartnerContact, PartnerEdge, PartnerLink, PartnerStanding},
    scopes::{INTERNAL, OnStale, PartnerNames, Revocation, Scope, ScopeNames, Withdrawal, partner_scope},
};
use crate::{
    identity::{DnsName, Peer, SpiffeId},
    refusal::{ReadyDetail, Refusal},
};

/// The brief version that this build reads and writes.
pub const VERSION: u32 = 4;
/// Up to this many addresses are pushed to every proxy; beyond it proxies ask at the first dial.
pub const PUSHED_ROUTES: usize = 2_000;
/// Bound of a sync request's body, in bytes.
pub const MAX_SYNC_REQUEST: usize = 256 * 1024;
/// Bound of a report inside it, in entries of refusals.
pub const MAX_REPORTED_REFUSALS: usize = 256;
/// Bound of a sync response's body, in bytes: routes (2 MiB), the trust of partners (2 MiB), our own revocations and the
/// roots of the web PKI fit in.
pub const MAX_SYNC_RESPONSE: usize = 8 * 1024 * 1024;
/// Bound of a certificate request's body, in bytes.
pub const MAX_CERTIFICATE_REQUEST: usize = 16 * 1024;
/// How long the controller holds a poll that has no news, in seconds.
pub const POLL_HOLD_SECONDS: u64 = 30;
/// Audience of the pod-bound token that a certificate request carries.
pub const TOKEN_AUDIENCE: &str = "entente.dev";
/// Application protocol between our own sidecars.
pub const ALPN: &[u8] = b"entente/1";
/// Application protocol of multiplexed connections: one handshake carries many, each judged by itself.
pub const ALPN_MUX: &[u8] = b"entente/mux";
/// Application protocol of a re-proof: a handshake that moves the deadlines of the connections open between two pods.
pub const ALPN_REPROVE: &[u8] = b"entente/reprove";

/// Where a proxy stands: the policy revision, and the hash of its own brief.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cursor {
    /// UID of the `TrustDomain` object that counts the revisions: one that is created anew begins anew.
    pub domain: String,
    /// Revision of the domain's topology; never goes back.
    pub revision: u64,
    /// Hash of the brief without its cursor. Conditions compare this, so a change elsewhere leaves a server Ready.
    pub hash: String,
}

/// What one proxy must know to enforce the topology.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Brief {
    /// Version of this format.
    pub version: u32,
    /// What acknowledging this brief means.
    pub cursor: Cursor,
    /// Who we are.
    pub identity: SpiffeId,
    /// Whether we are (still) declared.
    pub standing: Standing,
    /// The DNS names our leaf should carry, topology name included; a leaf with others is renewed at once.
    pub names: Vec<DnsName>,
    /// Lifetime of our leaves, in seconds; a change renews at once.
    pub lifetime_seconds: u32,
    /// Key identifier of the issuing certificate that signs now, hex; a leaf of another one is renewed within
    /// `renew_within_seconds`. Empty = not known.
    pub issuer: String,
    /// Seconds over which sidecars spread the renewal that a new issuer asks for.
    pub renew_within_seconds: u32,
    /// What becomes of an open connection when its peer's certificate ends.
    pub on_peer_expiry: OnPeerExpiry,
    /// What we listen for.
    pub ports: Vec<Port>,
    /// Edge servers of our own trust domain: `all_declared` does not mean them. Few, whatever the size of the topology.
    pub edges: Vec<SpiffeId>,
    /// What the application may call beside declared servers.
    pub egress: Egress,
    /// Whom we trust, for what.
    pub scopes: Vec<Scope>,
    /// How we deal with the partners that have a scope here. Only Edge servers have any.
    pub partners: Vec<PartnerLink>,
    /// Roots of the web PKI, PEM: the anchors of the scopes that say so. Empty where none does.
    pub web_roots: Vec<String>,
    /// Seconds that open connections are given when the pod ends.
    pub drain_seconds: u32,
}

/// Whether a server is (still) declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Standing {
    /// Declared and accepted.
    Active,
    /// Declared, and withdrawn for the time being: refuse everything, end what is open.
    Suspended,
    /// No longer declared: refuse everything, end what is open.
    Withdrawn,
}

/// What becomes of an open connection when the peer's certificate that it rests on ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnPeerExpiry {
    /// It lives on exactly while the peer proves itself anew with its next certificates.
    #[default]
    Reprove,
    /// It ends.
    Cut,
    /// It stays; only revocation and topology end it.
    Keep,
}

/// One declared port. A connection to `port` or to `target_port` belongs to it; the proxy forwards to `target_port`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// Name in the `TrustedServer`.
    pub name: String,
    /// What peers dial.
    pub port: u16,
    /// What the application listens on.
    pub target_port: u16,
    /// What the wire carries.
    pub mode: Mode,
    /// Who may call; only `MutualTls` can enforce it.
    pub allow: Allow,
    /// How clients are met; `ServerTls` alone has it.
    pub server_tls: Option<ServerTls>,
}

/// How clients of a `ServerTls` port are met.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerTls {
    /// Application protocols to offer, preferred first; empty = none.
    pub alpn: Vec<String>,
    /// Whether clients may speak TLS 1.2.
    pub tls12: bool,
    /// Whether clients may present a certificate. One that does is a server of our own trust domain, or refused.
    pub client_certificate: bool,
}

/// What the wire of a TCP port carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// Both ends prove themselves.
    MutualTls,
    /// The server alone proves itself; clients outside the topology are welcome.
    ServerTls,
    /// Declared, unprotected, spliced.
    Plaintext,
}

/// Who may call a port: an allow-list, empty = nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Allow {
    /// Every declared Internal server: everyone the authority of our own trust domain vouches for.
    pub all_declared: bool,
    /// These servers.
    pub servers: Vec<AllowedServer>,
    /// These partners, each proven in a scope of its own. Only ports of Edge servers have any.
    pub partners: Vec<AllowedPartner>,
}

/// A server that may call a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AllowedServer {
    /// Who.
    pub id: SpiffeId,
    /// Where the application listens for it alone, so that unmodified software knows who calls; `None` = where it
    /// listens for everybody.
    pub target_port: Option<u16>,
}

/// A partner that may call a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AllowedPartner {
    /// Name of the `FederationPartner`; its scope is [`partner_scope`] of it.
    pub name: String,
    /// As in [`AllowedServer`].
    pub target_port: Option<u16>,
}

/// Where a peer was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission<'a> {
    /// The declared port.
    pub port: &'a Port,
    /// Where the application listens for this caller alone, where it does.
    pub own_port: Option<u16>,
}

impl Admission<'_> {
    /// Where the application is dialled.
    pub fn target_port(&self) -> u16 {
        self.own_port.unwrap_or(self.port.target_port)
    }
}

/// What the application may call beside declared servers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Egress {
    /// Everything that is not declared may be called as it is.
    pub unrestricted: bool,
    /// These networks may be called as they are.
    pub networks: Vec<EgressNetwork>,
    /// These names may be called as they are. The DNS guard answers them with addresses of its own, and the sidecar looks
    /// them up at each call.
    pub hosts: Vec<EgressHost>,
}

/// A name that may be called without TLS of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressHost {
    /// The name.
    pub host: DnsName,
    /// TCP ports, at least one.
    pub ports: Vec<u16>,
}

/// A network that may be called without TLS of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressNetwork {
    /// The network.
    pub cidr: IpNet,
    /// TCP ports; empty = every port.
    pub ports: Vec<u16>,
}

/// The declared server behind one address. Routes only *find* peers; certificates prove them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// A pod's or a Service's address.
    pub address: IpAddr,
    /// Who must answer there.
    pub server: SpiffeId,
    /// DNS names that may lead here: those that this server's certificates carry, a pod's own with its own address.
    pub names: Vec<DnsName>,
    /// UID of the pod, where the address is a pod's with a sidecar.
    pub pod: Option<String>,
    /// Whether a sidecar of ours answers there; else the server's own software does, which holds its key itself.
    pub sidecar: bool,
    /// TCP ports that may be dialled, with what their wire carries.
    pub ports: BTreeMap<u16, Mode>,
}

/// Where a proxy's table of routes stands. Epochs differ between controller replicas and restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteCursor {
    /// Which table.
    pub epoch: u64,
    /// Its version.
    pub version: u64,
}

/// Changes to a proxy's table of routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteDelta {
    /// Where the table stands after this delta.
    pub cursor: RouteCursor,
    /// Forget everything first.
    pub reset: bool,
    /// Too many to push: unknown addresses must be asked for (`SyncRequest::ask`).
    pub on_demand: bool,
    /// New or changed.
    pub put: Vec<Route>,
    /// Gone.
    pub remove: Vec<IpAddr>,
}

/// `POST /v1/sync`: acknowledges, reports, and waits for news (at most `POLL_HOLD_SECONDS`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SyncRequest {
    /// The brief version this proxy reads.
    pub brief_version: u32,
    /// The brief in force: every new connection is judged by it and every open one has been. `None` = none yet.
    pub after: Option<Cursor>,
    /// The routes in force.
    pub routes: Option<RouteCursor>,
    /// On-demand addresses still in use, at most [`PUSHED_ROUTES`].
    pub keep: Vec<IpAddr>,
    /// UIDs of pods behind Service addresses that open connections lead to, at most [`PUSHED_ROUTES`]: where a table is
    /// on demand, their own addresses are told as well, so that they can be asked to prove themselves anew.
    pub pods: Vec<String>,
    /// Addresses to look up now; a non-empty list is answered at once.
    pub ask: Vec<IpAddr>,
    /// DNS names to look up now: every route that one of them may lead to is told. Answered at once as well.
    pub ask_names: Vec<DnsName>,
    /// What was seen since the last report that was answered; one with refusals is answered at once.
    pub report: Report,
}

/// The answer to a sync: only what is new.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SyncResponse {
    /// The next brief, where it differs from the acknowledged one.
    pub brief: Option<Brief>,
    /// Changed routes.
    pub routes: Option<RouteDelta>,
}

/// What a sidecar saw; bounded, aggregated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Report {
    /// Refusals since the last report, at most [`MAX_REPORTED_REFUSALS`] kinds.
    pub refusals: Vec<RefusedConnections>,
    /// Open connections now.
    pub open: u64,
    /// End of our certificate's validity, Unix seconds; 0 = no certificate.
    pub leaf_not_after: i64,
    /// Serial of our certificate, lower-case hex.
    pub leaf_serial: String,
    /// The last contact with each partner that there was any with, by its name; at most as many as the brief has.
    pub contacts: BTreeMap<String, PartnerContact>,
}

/// Equal refusals, counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RefusedConnections {
    /// Who dialled whom: `inbound` or `outbound`.
    pub direction: Direction,
    /// The reason.
    pub reason: Refusal,
    /// Who was refused: a SPIFFE ID where one was proven, else the address.
    pub peer: String,
    /// The port dialled.
    pub port: u16,
    /// Whether they were open and were ended by a rule; else they were refused at their beginning.
    pub cut: bool,
    /// How often.
    pub count: u64,
}

/// Which side of the proxy a connection arrived at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Direction {
    /// From the network to our application.
    Inbound,
    /// From our application to the network.
    Outbound,
}

/// `POST /v1/certificate`, with the pod-bound token as `Authorization: Bearer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateRequest {
    /// PKCS#10, DER, base64. It holds a public key and the proof of possession; nothing else.
    pub csr: String,
}

/// The answer: our chain, leaf first, without the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateResponse {
    /// PEM certificates, leaf first.
    pub chain: Vec<String>,
    /// Anchors of the internal scope, PEM, so that the proxy can check the chain before it uses it.
    pub anchors: Vec<String>,
}

/// The answer to a request that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Denied {
    /// Stable code of the issuance stage, `NoMatchingServer` for instance.
    pub code: String,
    /// One sentence: what is wrong and what to do.
    pub message: String,
}

impl Cursor {
    /// Whether the same domain counted past this one: what is older is never put in force again.
    pub fn is_older_than(&self, other: &Self) -> bool {
        self.domain == other.domain && self.revision < other.revision
    }
}

impl Allow {
    /// These servers and nobody else.
    pub fn servers(ids: impl IntoIterator<Item = SpiffeId>) -> Self {
        let servers = ids.into_iter().map(|id| AllowedServer { id, target_port: None }).collect();
        Self { servers, ..Self::default() }
    }

    /// Every declared Internal server of our own trust domain.
    pub fn all_declared() -> Self {
        Self { all_declared: true, ..Self::default() }
    }

    /// The entry of the server `id`.
    pub fn server(&self, id: &SpiffeId) -> Option<&AllowedServer> {
        self.servers.iter().find(|one| one.id == *id)
    }

    /// The entry of the partner `name`.
    pub fn partner(&self, name: &str) -> Option<&AllowedPartner> {
        self.partners.iter().find(|one| one.name == name)
    }
}

impl Brief {
    /// Whether our server may talk with anybody at all.
    pub const fn stands(&self) -> Result<(), Refusal> {
        match self.standing {
            Standing::Active => Ok(()),
            Standing::Suspended => Err(Refusal::NotReady(ReadyDetail::ServerSuspended)),
            Standing::Withdrawn => Err(Refusal::NotReady(ReadyDetail::Withdrawn)),
        }
    }

    /// The declared port that a connection to `port` belongs to.
    pub fn port(&self, port: u16) -> Result<&Port, Refusal> {
        self.stands()?;
        let belongs = |candidate: &&Port| candidate.port == port || candidate.target_port == port;
        self.ports.iter().find(belongs).ok_or(Refusal::PortNotAllowed)
    }

    /// Judges a peer that was proven in its scope: may `from` call `port`?
    pub fn admit(&self, from: &Peer, port: u16) -> Result<Admission<'_>, Refusal> {
        let port = self.port(port)?;
        let own_port = match from {
            Peer::Server(server) => {
                let ours = server.id.trust_domain() == self.identity.trust_domain();
                let all = port.allow.all_declared && ours && !self.edges.contains(&server.id);
                let listed = port.allow.server(&server.id);
                if !all && listed.is_none() {
                    return Err(Refusal::NotInTopology);
                }
                listed.and_then(|one| one.target_port)
            }
            // A scope that the port does not list is as good as none.
            Peer::Partner(partner) => port.allow.partner(&partner.partner).ok_or(Refusal::NameOutOfScope)?.target_port,
        };
        Ok(Admission { port, own_port })
    }

    /// Whether the application may call this address as it is, beside declared servers and routes.
    pub fn may_leave(&self, address: IpAddr, port: u16) -> bool {
        let matches = |network: &EgressNetwork| {
            network.cidr.contains(&address) && (network.ports.is_empty() || network.ports.contains(&port))
        };
        self.standing == Standing::Active && (self.egress.unrestricted || self.egress.networks.iter().any(matches))
    }

    /// The scope `id`, where the brief has it.
    pub fn scope(&self, id: &str) -> Option<&Scope> {
        self.scopes.iter().find(|scope| scope.id == id)
    }
}

#[cfg(test)]
mod tests;
