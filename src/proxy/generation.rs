//! A generation: leaf, anchors and brief, validated together, compiled once, swapped whole.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use rustls::{ClientConfig, ServerConfig};

use super::{
    chains::Chains,
    credentials::Leaf,
    judge::Judge,
    presented::Certificates,
    quotas::Quotas,
    tls::{self, Making, TlsError},
};
use crate::{
    brief::{Allow, Brief, Cursor, INTERNAL, Mode, Port, ServerTls, VERSION},
    identity::SpiffeId,
    pki::{
        revocation::{View, ViewError},
        verify::{self, AnchorError, Anchors, Partners, Role, ScopeError},
    },
    refusal::{HandshakeDetail, ReadyDetail, Refusal},
};

/// Ports that one server may declare.
const MAX_PORTS: usize = 32;
/// Application protocols that one port may offer.
const MAX_PROTOCOLS: usize = 32;
/// How application protocols of ours begin.
const OURS: &str = "entente/";
/// Client configurations kept; beyond it the store starts anew.
const MAX_CLIENTS: usize = 4096;

/// Why a brief is not put in force.
#[derive(Debug, thiserror::Error)]
pub(super) enum GenerationError {
    /// Written for another version of this program.
    #[error("brief version {0} is not the one this proxy reads")]
    Version(u32),
    /// Somebody else's.
    #[error("the brief is for {brief}, our certificate names {leaf}")]
    Identity {
        /// Whom the brief names.
        brief: String,
        /// Whom our certificate names.
        leaf: String,
    },
    /// Older than the one in force.
    #[error("brief revision {new} is older than {current}")]
    Older {
        /// The brief's revision.
        new: u64,
        /// The revision in force.
        current: u64,
    },
    /// What it knows of revocations is older.
    #[error("the brief's revocations (CRL {new}) are older than those in force (CRL {current})")]
    OlderRevocations {
        /// The brief's CRL number; 0 = it has none.
        new: u64,
        /// The number in force.
        current: u64,
    },
    /// It knows less of revocations, so that good peers would be refused.
    #[error("the brief does not say what issuer {0} has revoked, the one in force does")]
    Forgets(String),
    /// A number that belongs to two ports, or too many ports.
    #[error("the brief's ports are ambiguous or too many")]
    Ports,
    /// Application protocols that cannot be offered.
    #[error("the application protocols of port {0} are too many, too long, or ours")]
    Protocols(u16),
    /// Roots that cannot be used.
    #[error("unusable roots")]
    Anchors(#[from] AnchorError),
    /// Scopes that cannot be told apart.
    #[error(transparent)]
    Scopes(#[from] ScopeError),
    /// Revocations that cannot be read.
    #[error("unusable revocations")]
    Revocations(#[from] ViewError),
    /// A brief without roots would refuse everybody.
    #[error("the brief has no roots for our own trust domain")]
    NoAnchors,
    /// A brief without issuers would refuse everybody, and end what is open.
    #[error("the brief has no issuers for our own trust domain")]
    NoIssuers,
    /// Our own certificate does not verify under the brief's roots.
    #[error("our certificate does not verify under the brief's roots: {0}")]
    OwnChain(Refusal),
    /// TLS refuses it.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// All that one connection is judged and served by.
#[derive(Debug)]
pub(super) struct Generation {
    /// Our certificate and key.
    pub(super) leaf: Arc<Leaf>,
    /// What judges peers.
    pub(super) judge: Arc<Judge>,
    /// End of what we show peers: our chain and its anchor.
    pub(super) own_until: Timestamp,
    servers: HashMap<u16, Arc<ServerConfig>>,
    clients: Mutex<HashMap<SpiffeId, Arc<ClientConfig>>>,
}

impl Generation {
    /// Validates `brief` together with `leaf` and compiles both. `before` is what is in force: nothing goes back.
    pub(super) fn build(
        mut brief: Brief,
        leaf: Arc<Leaf>,
        before: Option<&Self>,
        (mounted, quotas): (&Arc<Certificates>, &Arc<Quotas>),
        now: Timestamp,
    ) -> Result<Self, GenerationError> {
        if brief.version != VERSION {
            return Err(GenerationError::Version(brief.version));
        }
        if brief.identity != leaf.identity.id {
            return Err(GenerationError::Identity {
                brief: brief.identity.to_string(),
                leaf: leaf.identity.id.to_string(),
            });
        }
        check_ports(&brief)?;
        let scope = brief.scope(INTERNAL).ok_or(GenerationError::NoAnchors)?;
        let anchors = Anchors::parse(&scope.anchors)?;
        if anchors.is_empty() {
            return Err(GenerationError::NoAnchors);
        }
        if scope.issuers.is_empty() {
            return Err(GenerationError::NoIssuers);
        }
        let own_until = check_own_chain(&leaf, &anchors, now)?;
        let view = goes_on(&brief.cursor, View::of(scope)?, before)?;
        let partners = Partners::of(&brief, before.map(|before| &before.judge.partners))?;
        forget_serials(&mut brief);
        let judge = Arc::new(Judge { brief, anchors, view, partners, chains: Chains::default() });
        let making = Making { leaf: &leaf, judge: &judge, mounted, quotas };
        let plain = ServerTls::default();
        let mut servers = HashMap::new();
        for port in &judge.brief.ports {
            let config = match port.mode {
                Mode::MutualTls => tls::mutual(making, port)?,
                Mode::ServerTls => tls::server_only(making, port.server_tls.as_ref().unwrap_or(&plain))?,
                Mode::Plaintext => continue,
            };
            servers.insert(port.port, config);
        }
        Ok(Self { leaf, judge, own_until, servers, clients: Mutex::default() })
    }

    /// The brief.
    pub(super) fn brief(&self) -> &Brief {
        &self.judge.brief
    }

    /// What putting this generation in force acknowledges.
    pub(super) fn cursor(&self) -> &Cursor {
        &self.judge.brief.cursor
    }

    /// The configuration of a declared TLS port.
    pub(super) fn server(&self, port: u16) -> Result<Arc<ServerConfig>, Refusal> {
        self.servers.get(&port).cloned().ok_or(Refusal::PortNotAllowed)
    }

    /// The configuration to dial `server`, made at its first use.
    pub(super) fn client(&self, server: &SpiffeId) -> Result<Arc<ClientConfig>, Refusal> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = clients.get(server) {
            return Ok(config.clone());
        }
        let config = tls::dial(&self.leaf, &self.judge, server.clone())
            .map_err(|_| Refusal::HandshakeFailed(HandshakeDetail::Malformed))?;
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(server.clone(), config.clone());
        Ok(config)
    }
}

/// The view holds them, in a tenth of the room. A renewal of our certificate builds of the same brief once more, and then
/// takes them over from there: hence the issuers stay.
fn forget_serials(brief: &mut Brief) {
    let internal = brief.scopes.iter_mut().filter(|scope| scope.id == INTERNAL);
    for revocation in internal.filter_map(|scope| scope.revocation.as_mut()) {
        revocation.serials.values_mut().for_each(|list| *list = Vec::new());
    }
}

/// Within one domain neither revision nor revocations go back; within one revision and CRL a view only grows.
fn goes_on(cursor: &Cursor, mut view: View, before: Option<&Generation>) -> Result<View, GenerationError> {
    let Some(before) = before.filter(|before| before.cursor().domain == cursor.domain) else { return Ok(view) };
    if cursor.is_older_than(before.cursor()) {
        return Err(GenerationError::Older { new: cursor.revision, current: before.cursor().revision });
    }
    let (new, current) = (view.number(), before.judge.view.number());
    if new < current {
        return Err(GenerationError::OlderRevocations { new, current });
    }
    if let Some(issuer) = view.forgets(&before.judge.view) {
        return Err(GenerationError::Forgets(issuer.to_owned()));
    }
    if new == current && cursor.revision == before.cursor().revision {
        view.unite(&before.judge.view);
    }
    Ok(view)
}

fn check_ports(brief: &Brief) -> Result<(), GenerationError> {
    let mut seen = BTreeSet::new();
    for port in &brief.ports {
        let Allow { all_declared: _, servers, partners } = &port.allow;
        let local = servers.iter().map(|one| one.target_port).chain(partners.iter().map(|one| one.target_port));
        // Callers of one port may share a local one; nothing else may.
        let own: BTreeSet<u16> = local.flatten().chain([port.port, port.target_port]).collect();
        if own.contains(&0) || !seen.is_disjoint(&own) {
            return Err(GenerationError::Ports);
        }
        seen.extend(own);
        if !offers_in_order(port) {
            return Err(GenerationError::Protocols(port.port));
        }
    }
    if brief.ports.len() > MAX_PORTS { Err(GenerationError::Ports) } else { Ok(()) }
}

/// The application protocols of a port can be written (RFC 7301 §3.1), and none of them is ours: what comes by those is
/// between servers of ours.
fn offers_in_order(port: &Port) -> bool {
    let offered = port.server_tls.as_ref().map_or(&[][..], |settings| &settings.alpn);
    let fits = |protocol: &String| (1..=255).contains(&protocol.len()) && !protocol.starts_with(OURS);
    offered.len() <= MAX_PROTOCOLS && offered.iter().all(fits)
}

/// A brief whose roots do not vouch for us would cut us off from every peer. A leaf outside its validity is no argument
/// against a brief: it is renewed and the brief is needed for that, or the clock is wrong and will be set right.
/// Answers until when we can show it.
fn check_own_chain(leaf: &Leaf, anchors: &Anchors, now: Timestamp) -> Result<Timestamp, GenerationError> {
    match verify::verdict(&leaf.certified.cert, Role::Server, anchors, now) {
        Ok(verdict) => Ok(verdict.valid_until),
        Err(Refusal::Expired | Refusal::NotYetValid) => Ok(leaf.identity.not_after),
        Err(refusal) => Err(GenerationError::OwnChain(refusal)),
    }
}

/// How far this proxy is on its way to judging anybody.
#[derive(Debug)]
pub(super) enum Readiness {
    /// No certificate yet.
    NoIdentity,
    /// A certificate, but no brief.
    NoBrief,
    /// In force.
    InForce(Arc<Generation>),
}

impl Readiness {
    /// The generation in force, where our server is declared and our own certificate stands for us.
    pub(super) fn generation(&self, now: Timestamp) -> Result<&Arc<Generation>, Refusal> {
        let generation = match self {
            Self::NoIdentity => return Err(Refusal::NotReady(ReadyDetail::NoIdentity)),
            Self::NoBrief => return Err(Refusal::NotReady(ReadyDetail::NoBrief)),
            Self::InForce(generation) => generation,
        };
        generation.brief().stands()?;
        if generation.leaf.is_revoked() {
            return Err(Refusal::NotReady(ReadyDetail::OwnRevoked));
        }
        if generation.leaf.identity.not_after <= now {
            return Err(Refusal::NotReady(ReadyDetail::OwnExpired));
        }
        Ok(generation)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::LazyLock};

    use super::*;
    use crate::{
        brief::{AllowedPartner, Egress, OnPeerExpiry, Revocation, Scope, ScopeNames, Standing, Withdrawal},
        identity::Identity,
        proxy::credentials::tests::leaf,
        refusal::WithdrawnDetail,
    };

    const NOW: i64 = 1_800_000_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Whose certificate it is, with a brief that fits it: revision 5 of domain `one`, CRL 7.
    fn ours() -> (Arc<Leaf>, Brief) {
        let (leaf, anchors) = leaf(3600, at(NOW));
        let issuer = leaf.identity.issuer.clone().unwrap();
        let revocation = Revocation {
            number: 7,
            this_update: NOW,
            next_update: NOW + 86_400,
            next_updates: BTreeMap::new(),
            serials: BTreeMap::from([(issuer.clone(), vec!["0707".to_owned()])]),
            withdrawn: vec![],
            on_stale: crate::brief::OnStale::Deny,
        };
        let issuers = vec![issuer.clone()];
        let brief = Brief {
            version: VERSION,
            cursor: Cursor { domain: "one".to_owned(), revision: 5, hash: String::new() },
            identity: leaf.identity.id.clone(),
            standing: Standing::Active,
            names: vec![],
            lifetime_seconds: 3600,
            issuer,
            renew_within_seconds: 0,
            on_peer_expiry: OnPeerExpiry::default(),
            ports: vec![],
            edges: vec![],
            egress: Egress::default(),
            scopes: vec![Scope {
                id: INTERNAL.to_owned(),
                names: ScopeNames::Servers,
                anchors,
                issuers,
                revocation: Some(revocation),
            }],
            drain_seconds: 30,
            partners: vec![],
            web_roots: vec![],
        };
        (Arc::new(leaf), brief)
    }

    fn revocation(brief: &mut Brief) -> &mut Revocation {
        brief.scopes[0].revocation.as_mut().unwrap()
    }

    /// Nothing is mounted, and nobody has asked for anything.
    fn around() -> (&'static Arc<Certificates>, &'static Arc<Quotas>) {
        static NOTHING: LazyLock<(Arc<Certificates>, Arc<Quotas>)> = LazyLock::new(|| {
            let nowhere = std::path::Path::new("/nowhere");
            (Arc::new(Certificates::new(nowhere.into(), nowhere)), Arc::default())
        });
        (&NOTHING.0, &NOTHING.1)
    }

    #[test]
    fn neither_revision_nor_revocations_of_one_domain_go_back() {
        let (leaf, good) = ours();
        let before = Generation::build(good.clone(), leaf.clone(), None, around(), at(NOW)).unwrap();
        type Change = fn(&mut Brief);
        let cases: [(&str, Change, bool); 10] = [
            ("the same", |_| (), true),
            ("a later list", |brief| revocation(brief).number = 8, true),
            ("an older list", |brief| revocation(brief).number = 6, false),
            (
                "an older list under a later revision",
                |brief| {
                    brief.cursor.revision = 6;
                    revocation(brief).number = 6;
                },
                false,
            ),
            ("an older revision", |brief| brief.cursor.revision = 4, false),
            ("no list", |brief| brief.scopes[0].revocation = None, false),
            ("an empty list", |brief| revocation(brief).serials.clear(), false),
            ("no issuers", |brief| brief.scopes[0].issuers.clear(), false),
            ("an issuer of whom nothing was known", |brief| brief.scopes[0].issuers.push("00ff".to_owned()), true),
            (
                "a domain that begins anew",
                |brief| {
                    brief.cursor = Cursor { domain: "two".to_owned(), revision: 1, hash: String::new() };
                    revocation(brief).number = 1;
                },
                true,
            ),
        ];
        for (what, change, accepted) in cases {
            let mut brief = good.clone();
            change(&mut brief);
            let built = Generation::build(brief, leaf.clone(), Some(&before), around(), at(NOW));
            assert_eq!(built.is_ok(), accepted, "{what}: {:?}", built.err());
        }
    }

    #[test]
    fn callers_of_one_port_may_share_a_local_port_and_two_ports_may_not() {
        let partner = |name: &str, port| AllowedPartner { name: name.to_owned(), target_port: Some(port) };
        let port = |number, partners| Port {
            name: format!("port-{number}"),
            port: number,
            target_port: number + 1_000,
            mode: Mode::MutualTls,
            allow: Allow { partners, ..Allow::default() },
            server_tls: None,
        };
        let accepted = |local: [u16; 3]| {
            let [one, two, other] = local;
            let (_, mut brief) = ours();
            brief.ports = vec![
                port(5061, vec![partner("fabrikam", one), partner("litware", two)]),
                port(5062, vec![partner("fabrikam", other)]),
            ];
            check_ports(&brief).is_ok()
        };
        assert!(accepted([5070, 5070, 5071]));
        assert!(accepted([6061, 5070, 5071]), "where everybody is delivered");
        assert!(!accepted([5070, 5071, 5071]));
        assert!(!accepted([5062, 5070, 5071]), "another port's number");
        assert!(!accepted([0, 5070, 5071]));
    }

    #[test]
    fn within_one_revision_and_list_a_view_only_grows_also_through_a_renewal() {
        let (leaf, good) = ours();
        let before = Generation::build(good.clone(), leaf.clone(), None, around(), at(NOW)).unwrap();
        let listed = Identity { serial: vec![7, 7], ..leaf.identity.clone() };
        let forgets = |revision, number| {
            let mut brief = good.clone();
            revocation(&mut brief).serials.values_mut().for_each(Vec::clear);
            brief.cursor.revision += revision;
            revocation(&mut brief).number += number;
            let after = Generation::build(brief, leaf.clone(), Some(&before), around(), at(NOW)).unwrap();
            // A renewal builds of the same brief once more.
            let brief = after.brief().clone();
            let renewed = Generation::build(brief, leaf.clone(), Some(&after), around(), at(NOW)).unwrap();
            renewed.judge.view.taken_back(&listed)
        };
        assert_eq!(forgets(0, 0), Err(Refusal::Revoked));
        assert_eq!(forgets(1, 0), Ok(()));
        assert_eq!(forgets(0, 1), Ok(()));
    }

    #[test]
    fn what_was_revoked_is_held_once_and_not_forgotten_by_a_renewal() {
        let (leaf, brief) = ours();
        let listed = Identity { serial: vec![7, 7], ..leaf.identity.clone() };
        let mut generation = Generation::build(brief, leaf.clone(), None, around(), at(NOW)).unwrap();
        for _ in 0..3 {
            assert_eq!(generation.judge.view.taken_back(&listed), Err(Refusal::Revoked));
            let serials = &generation.brief().scope(INTERNAL).unwrap().revocation.as_ref().unwrap().serials;
            assert!(serials.values().all(Vec::is_empty), "the view holds them");
            let renewed =
                Generation::build(generation.brief().clone(), leaf.clone(), Some(&generation), around(), at(NOW));
            generation = renewed.unwrap();
        }
    }

    #[test]
    fn a_clock_that_is_wrong_is_no_argument_against_a_brief() {
        let (leaf, brief) = ours();
        for (step, ready) in [(-25 * 3600, true), (0, true), (25 * 3600, false)] {
            let now = at(NOW + step);
            let generation = Generation::build(brief.clone(), leaf.clone(), None, around(), now).unwrap();
            let readiness = Readiness::InForce(Arc::new(generation));
            assert_eq!(readiness.generation(now).is_ok(), ready, "{step}");
            assert!(readiness.generation(at(NOW)).is_ok(), "when it is set right");
        }
    }

    #[test]
    fn what_is_wrong_with_ourselves_has_one_reason() {
        let reason = |standing, revoked, later| {
            let (leaf, mut brief) = ours();
            brief.standing = standing;
            revocation(&mut brief).withdrawn.push(Withdrawal {
                id: leaf.identity.id.clone(),
                starting_before: NOW + 1,
                reason: WithdrawnDetail::Suspended,
            });
            let generation = Generation::build(brief, leaf.clone(), None, around(), at(NOW)).unwrap();
            assert!(generation.judge.view.taken_back(&leaf.identity).is_err());
            if revoked {
                leaf.revoke();
            }
            match Readiness::InForce(Arc::new(generation)).generation(at(NOW + later)) {
                Err(Refusal::NotReady(detail)) => Some(detail),
                _ => None,
            }
        };
        for (standing, revoked, later, expected) in [
            (Standing::Active, false, 0, None),
            (Standing::Active, true, 0, Some(ReadyDetail::OwnRevoked)),
            (Standing::Active, false, 3600, Some(ReadyDetail::OwnExpired)),
            (Standing::Suspended, true, 3600, Some(ReadyDetail::ServerSuspended)),
            (Standing::Withdrawn, true, 3600, Some(ReadyDetail::Withdrawn)),
        ] {
            assert_eq!(reason(standing, revoked, later), expected, "{standing:?} {revoked} {later}");
        }
    }
}
