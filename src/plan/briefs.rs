//! What one proxy is told.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::{AuthorityFacts, partners::Federation, withdrawals::Withdrawals};
use crate::{
    brief::{
        Allow, Brief, Cursor, Egress, INTERNAL, OnPeerExpiry, OnStale, Port, Revocation, Scope, ScopeNames, Standing,
        VERSION, partner_scope,
    },
    identity::{Identity, SpiffeId},
    pki,
    topology::{Server, ServerPort, Topology, facts::PodFacts},
};

/// Sidecars spread the renewal that a new issuer asks for over at most so many seconds.
const RENEW_WITHIN: u32 = 600;

/// What the briefs of one server say of its domain's authorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    scope: Scope,
    issuer: String,
    digest: String,
}

impl Trust {
    /// Roots and issuers of `facts`, and what `withdrawals` tells the sidecars of `server`; of everybody without one.
    pub fn of(
        facts: Option<&AuthorityFacts>,
        withdrawals: &Withdrawals,
        topology: &Topology,
        server: Option<&Server>,
    ) -> Self {
        let Some(facts) = facts else { return Self::default() };
        let (mut serials, withdrawn) = withdrawals.told(topology, server);
        let listed = facts.crl.issuers.iter().map(|issuer| {
            let serials = serials.remove(issuer).unwrap_or_default();
            (issuer.clone(), serials.iter().map(ToString::to_string).collect())
        });
        let revocation = Revocation {
            number: facts.crl.number,
            this_update: facts.crl.this_update,
            next_update: facts.crl.next_update,
            next_updates: BTreeMap::new(),
            on_stale: OnStale::Deny,
            serials: listed.collect(),
            withdrawn,
        };
        let scope = Scope {
            id: INTERNAL.to_owned(),
            names: ScopeNames::Servers,
            anchors: facts.roots(),
            issuers: facts.members.iter().map(|one| one.member.key_id.clone()).collect(),
            revocation: Some(revocation),
        };
        let issuer = facts.active().map(|one| one.member.key_id.clone()).unwrap_or_default();
        // A scope is made of strings, numbers and lists: serde_json has no reason to refuse it.
        let digest = pki::sha256_hex(&serde_json::to_vec(&scope).unwrap_or_default());
        Self { scope, issuer, digest }
    }

    /// Roots and revocations.
    pub const fn scope(&self) -> &Scope {
        &self.scope
    }
}

impl Default for Trust {
    fn default() -> Self {
        let scope = Scope {
            id: INTERNAL.to_owned(),
            names: ScopeNames::Servers,
            anchors: vec![],
            issuers: vec![],
            revocation: None,
        };
        Self { scope, issuer: String::new(), digest: String::new() }
    }
}

/// The brief of `pod`, one of `server`'s, `at` a published revision, with what is told of its `partners`.
pub fn brief_of(
    topology: &Topology,
    server: &Server,
    pod: &PodFacts,
    (trust, partners): (&Trust, &Federation),
    at: Cursor,
) -> Brief {
    sealed(plain(topology, server, pod, (trust, partners)), (trust, partners), at)
}

/// Where a sidecar stands that has its brief in force: the cursor of `brief_of`, without making the whole.
pub fn cursor_of(
    topology: &Topology,
    server: &Server,
    pod: &PodFacts,
    (trust, partners): (&Trust, &Federation),
    at: Cursor,
) -> Cursor {
    Cursor { hash: hash(&plain(topology, server, pod, (trust, partners)), (trust, partners)), ..at }
}

/// A published server, less what was taken from it since: what narrows does not wait for the leader.
pub fn narrowed(published: &Server, topology: &Topology) -> Server {
    let Some(now) = topology.server(&published.key) else {
        return Server { standing: Standing::Withdrawn, ..published.clone() };
    };
    let edges = topology.domain(&now.domain).map(|domain| &domain.edges);
    let mut server = Server { standing: now.standing, ..published.clone() };
    for port in &mut server.ports {
        let same = now.ports.iter().find(|one| one.name == port.name && one.port == port.port);
        let Some(same) = same else {
            port.allow = Allow::default();
            continue;
        };
        port.allow.all_declared &= same.allow.all_declared;
        let still = |id: &SpiffeId| {
            let all = same.allow.all_declared && id.trust_domain() == now.id.trust_domain();
            same.allow.server(id).is_some() || (all && !edges.is_some_and(|edges| edges.contains(id)))
        };
        port.allow.servers.retain(|one| still(&one.id));
        port.allow.partners.retain(|one| same.allow.partner(&one.name).is_some());
    }
    server
}

/// Everything but scopes, with what belongs to partners', and the cursor.
fn plain(topology: &Topology, server: &Server, pod: &PodFacts, (trust, partners): (&Trust, &Federation)) -> Brief {
    let domain = topology.domain(&server.domain);
    let lifetime = domain.map_or(86_400, |domain| domain.lifetime_seconds);
    // Whoever names its callers need not hear of Edge servers that come and go.
    let all_declared = server.ports.iter().any(|port| port.allow.all_declared);
    let edges = domain.map(|domain| &domain.edges);
    Brief {
        version: VERSION,
        cursor: Cursor::default(),
        identity: server.id.clone(),
        standing: server.standing,
        names: topology.names_of(server, pod).into_iter().collect(),
        lifetime_seconds: lifetime,
        issuer: trust.issuer.clone(),
        renew_within_seconds: (lifetime / 10).min(RENEW_WITHIN),
        on_peer_expiry: domain.map_or(OnPeerExpiry::Cut, |domain| domain.on_peer_expiry),
        ports: server.ports.iter().filter_map(|declared| port(declared, &partners.scopes)).collect(),
        edges: if all_declared { edges.into_iter().flatten().cloned().collect() } else { vec![] },
        egress: server.egress.clone(),
        scopes: vec![],
        partners: vec![],
        web_roots: vec![],
        drain_seconds: server.drain_seconds,
    }
}

/// The brief of a pod whose server is no longer declared: refuse everything, end what is open. It keeps the names and
/// the anchors that the pod has, so that nothing is asked for anew and the pod can come back.
pub fn withdrawn(identity: &Identity, trust: &Trust, at: Cursor) -> Brief {
    let brief = Brief {
        version: VERSION,
        cursor: Cursor::default(),
        identity: identity.id.clone(),
        standing: Standing::Withdrawn,
        names: identity.dns_names.iter().cloned().collect(),
        lifetime_seconds: 86_400,
        issuer: String::new(),
        renew_within_seconds: 0,
        on_peer_expiry: OnPeerExpiry::Cut,
        ports: vec![],
        edges: vec![],
        egress: Egress::default(),
        scopes: vec![],
        partners: vec![],
        web_roots: vec![],
        drain_seconds: 0,
    };
    sealed(brief, (trust, &Federation::default()), at)
}

/// UDP ports travel with the pod's interception rules, not with the brief. No port lists a partner without a scope.
fn port(port: &ServerPort, partners: &[Scope]) -> Option<Port> {
    let ServerPort { name, port, target_port, mode, allow, server_tls } = port;
    let (name, mut allow) = (name.clone(), allow.clone());
    allow.partners.retain(|entry| partners.iter().any(|scope| scope.id == partner_scope(&entry.name)));
    Some(Port { name, port: *port, target_port: *target_port, mode: (*mode)?, allow, server_tls: server_tls.clone() })
}

/// Gives the brief its scopes and its cursor: the revision, and the hash of everything else.
fn sealed(mut brief: Brief, (trust, partners): (&Trust, &Federation), at: Cursor) -> Brief {
    brief.cursor = Cursor { hash: hash(&brief, (trust, partners)), ..at };
    brief.scopes = [std::slice::from_ref(&trust.scope), &partners.scopes].concat();
    brief.partners.clone_from(&partners.links);
    brief.web_roots.clone_from(&partners.web_roots);
    brief
}

/// Scopes count by their digests: many sidecars share long ones.
fn hash(brief: &Brief, (trust, partners): (&Trust, &Federation)) -> String {
    // A brief is made of strings, numbers and lists: serde_json has no reason to refuse it.
    let mut bytes = serde_json::to_vec(brief).unwrap_or_default();
    bytes.extend(trust.digest.as_bytes());
    bytes.extend(partners.digest().as_bytes());
    pki::hex(&Sha256::digest(bytes)[..16])
}
