//! Our application calls partners at their edges, by name: each must prove itself in its own scope, and that name.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use entente::{
    brief::{Brief, EgressHost, Mode, OnPeerExpiry, PartnerContact, PartnerStanding, Revocation},
    identity::DnsName,
    refusal::Refusal,
};
use jiff::SignedDuration;
use rcgen::{CertificateParams, GeneralSubtree, KeyPair, NameConstraints, SanType};
use rustls::{
    ServerConfig, SupportedProtocolVersion,
    version::{TLS12, TLS13},
};
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::{
    federation::{of_a, of_b, outcome_of, own, x509},
    harness::{Plan, Seen, Sidecar, address, control, echo, read_out},
};
use crate::support::{
    applications::{Application, Behaviour},
    control::Server,
    dns::Resolver,
    domain::{Certified, instant, pem},
    eventually,
    partner::{Authority, add, dns, edge, forge, names, uri},
    soon, wire,
};

const A: &str = "sip.fabrikam.example";
const B: &str = "sip.litware.example";
const API: &str = "api.extra.example";
const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// The address that the guard gives to `host`.
fn behind(host: &str, port: u16) -> SocketAddr {
    let hash = Sha256::digest(host.as_bytes());
    (IpAddr::from([240, 61, hash[0], hash[1]]), port).into()
}

/// A server somewhere that asks for a certificate, believes it, and echoes.
#[derive(Clone)]
struct Far {
    address: SocketAddr,
    config: Arc<Mutex<Option<Arc<ServerConfig>>>>,
    /// What callers showed last.
    shown: Arc<Mutex<Vec<CertificateDer<'static>>>>,
    /// Connections on which application data came.
    told: Arc<AtomicUsize>,
}

impl Far {
    async fn start() -> Self {
        let listener = TcpListener::bind((address(), 0)).await.unwrap();
        let (config, shown) = (Arc::default(), Arc::default());
        let far = Self { address: listener.local_addr().unwrap(), config, shown, told: Arc::default() };
        let serving = far.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let far = serving.clone();
                tokio::spawn(async move { far.serve(stream).await });
            }
        });
        far
    }

    async fn serve(self, stream: TcpStream) {
        let Some(config) = self.config.lock().unwrap().clone() else { return };
        let Ok(mut stream) = TlsAcceptor::from(config).accept(stream).await else { return };
        *self.shown.lock().unwrap() = stream.get_ref().1.peer_certificates().unwrap().to_vec();
        let mut buffer = [0; 64];
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            self.told.fetch_add(1, Ordering::SeqCst);
            if stream.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    }

    fn shows(&self, certificate: Certified) {
        self.speaks(certificate, BOTH);
    }

    fn speaks(&self, certificate: Certified, versions: &[&'static SupportedProtocolVersion]) {
        *self.config.lock().unwrap() = Some(Arc::new(wire::asking(certificate, versions)));
    }

    fn told(&self) -> usize {
        self.told.load(Ordering::SeqCst)
    }
}

/// An Edge server whose application calls an internal server (0), A's edge (1) and B's (2), and one that may be called
/// as it is (3).
struct Caller {
    control: Arc<Server>,
    resolver: Resolver,
    a: Authority,
    b: Authority,
    far: [Far; 3],
    api: Application,
    sidecar: Sidecar,
}

impl Caller {
    async fn new() -> Self {
        Self::with(|_| (), |plan| plan).await
    }

    async fn with(change: impl FnOnce(&mut Brief) + Send + 'static, more: impl FnOnce(Plan) -> Plan) -> Self {
        let (control, ip) = (control().await, address());
        let resolver = Resolver::start(&["127.0.0.1:0".parse().unwrap()]).await;
        let (a, b) = (Authority::new("fabrikam"), Authority::new("litware"));
        let far = [Far::start().await, Far::start().await, Far::start().await];
        let api = Application::start(address(), Behaviour::Echo).await;
        let ports = [&far[1], &far[2]].map(|far| far.address.port());
        for (host, at) in [(A, far[1].address), (B, far[2].address), (API, api.address)] {
            resolver.tell(host, &[at.ip()]);
        }
        let host = EgressHost { host: DnsName::parse(API).unwrap(), ports: vec![api.address.port()] };
        let scopes = [a.scope("fabrikam", "fabrikam.example"), b.scope("litware", "litware.example")];
        let plan = Plan::new(&control, "edge", ip)
            .resolvers(&[resolver.address])
            .calls(far[0].address, &control.domain.id("far"), Mode::MutualTls)
            .calls_undeclared(behind(A, ports[0]))
            .calls_undeclared(behind(B, ports[1]))
            .calls_undeclared(behind(API, api.address.port()))
            .calls_undeclared(behind(A, 1))
            .calls_undeclared(behind("never.example", 5061))
            .brief(move |brief| {
                scopes.into_iter().for_each(|scope| add(brief, scope));
                brief.partners[0].edges = vec![edge(A, ports[0])];
                brief.partners[1].edges = vec![edge(B, ports[1])];
                brief.egress.hosts.push(host);
            })
            .brief(change);
        let sidecar = more(plan).start().await;
        Self { control, resolver, a, b, far, api, sidecar }
    }

    /// A connection that was let in, which shows by its first echo.
    async fn open(&self, index: usize) -> Option<TcpStream> {
        let mut stream = self.sidecar.open(index).await;
        echo(&mut stream, b"hello").await.ok().map(|()| stream)
    }

    /// What comes of dialling where this is shown.
    async fn outcome(&self, index: usize, certificate: Certified) -> String {
        self.far[index].shows(certificate);
        self.called(index).await
    }

    async fn called(&self, index: usize) -> String {
        outcome_of(&self.sidecar, self.open(index)).await
    }

    fn change(&self, change: impl FnOnce(&mut Brief)) {
        self.control.change_brief(&self.sidecar.home.uid, change);
    }

    /// The reason for which `stream`, which was open, is ended.
    async fn cut(&self, mut stream: TcpStream, reason: &str) {
        assert_eq!(read_out(&mut stream).await.1, Seen::Reset);
        self.sidecar.refused("outbound", reason, 1).await;
        let series = format!("entente_cut_by_reason_total{{direction=\"outbound\",reason=\"{reason}\"}}");
        assert_eq!(self.sidecar.metric(&series).await, 1.0);
    }

    /// Waits until the last contact with A was told as `expected`.
    async fn contact(&self, expected: Option<Refusal>) -> PartnerContact {
        eventually(&format!("contact {expected:?}"), || async {
            let told = self.control.look(|world| world.pods[&self.sidecar.home.uid].contacts.get("fabrikam").copied());
            told.filter(|contact| contact.refused == expected)
        })
        .await
    }
}

fn of_ours() -> Vec<SanType> {
    vec![uri("spiffe://contoso.example/ns/sip/server/far"), dns("far.sip.contoso.example")]
}

#[tokio::test]
async fn of_four_authorities_and_three_names_each_destination_believes_its_own_and_nothing_else() {
    let caller = Caller::new().await;
    let unknown = Authority::new("unknown");
    const U: &str = "UntrustedRoot";
    const N: &str = "NameOutOfScope";
    // By authority and name: internal, A's edge, B's edge.
    let table = [
        [["ok", U, U], [N, U, U], [N, U, U]],
        [[U, N, U], [U, "ok", U], [U, N, U]],
        [[U, U, N], [U, U, N], [U, U, "ok"]],
        [[U, U, U], [U, U, U], [U, U, U]],
    ];
    for (authority, rows) in table.iter().enumerate() {
        for (names, row) in [of_ours(), of_a(), of_b()].iter().zip(rows) {
            for (index, expected) in row.iter().enumerate() {
                let certificate = match authority {
                    0 => own(&caller.control.domain, names),
                    1 => caller.a.certificate(names),
                    2 => caller.b.certificate(names),
                    _ => unknown.certificate(names),
                };
                let found = caller.outcome(index, certificate).await;
                assert_eq!(found, *expected, "authority {authority}, {names:?}, destination {index}");
            }
        }
    }
    let told: usize = caller.far.iter().map(Far::told).sum();
    assert_eq!(told, 3, "nothing is said before the verdict");
}

#[tokio::test]
async fn an_edge_proves_the_name_that_was_dialled_among_names_of_its_domains() {
    let caller = Caller::new().await;
    let ip = || SanType::IpAddress([10, 0, 0, 1].into());
    let foreign = || uri("spiffe://contoso.example/ns/sip/server/far");
    for (names, expected) in [
        (vec![dns(A)], "ok"),
        (vec![dns(A), dns("fabrikam.example")], "ok"),
        (vec![dns(A), dns("xn--mnchen-3ya.fabrikam.example")], "ok"),
        (vec![dns("other.fabrikam.example")], "WrongServer"),
        (vec![dns("fabrikam.example")], "WrongServer"),
        (vec![dns("far.sip.contoso.example")], "NameOutOfScope"),
        (vec![dns(A), dns("far.sip.contoso.example")], "NameOutOfScope"),
        (vec![dns(A), dns(B)], "NameOutOfScope"),
        (vec![foreign()], "NameOutOfScope"),
        (vec![dns(A), foreign()], "NameOutOfScope"),
        (vec![ip()], "NameOutOfScope"),
        (vec![dns(A), ip()], "NameOutOfScope"),
        (vec![], "BadName"),
        (vec![dns("*.fabrikam.example")], "BadName"),
        (vec![dns("SIP.fabrikam.example")], "BadName"),
        (vec![dns("sip.fabrikam.example.")], "BadChain"),
    ] {
        let found = caller.outcome(1, caller.a.certificate(&names)).await;
        assert_eq!(found, expected, "{names:?}");
    }
}

#[tokio::test]
async fn what_is_believed_is_refused_as_soon_as_anything_about_it_is_wrong() {
    let caller = Caller::new().await;
    let cases = [
        ("good", ["ok", "ok"]),
        ("expired", ["Expired", "Expired"]),
        ("no purpose", ["WrongUsage", "WrongUsage"]),
        ("a second URI", ["BadName", "NameOutOfScope"]),
        ("an address", ["BadName", "NameOutOfScope"]),
        ("names in the common name only", ["BadName", "BadName"]),
    ];
    for (what, [ours, theirs]) in cases {
        let change = forge(what);
        assert_eq!(caller.outcome(0, caller.control.domain.forge("far", change)).await, ours, "{what}, ours");
        assert_eq!(caller.outcome(1, caller.a.forge(&of_a(), change)).await, theirs, "{what}, A's");
        assert_eq!(caller.outcome(2, caller.b.forge(&of_b(), change)).await, theirs, "{what}, B's");
    }
}

#[tokio::test]
async fn an_authority_between_widens_nothing_and_may_be_taken_back() {
    let wider = |params: &mut CertificateParams| {
        let permitted_subtrees =
            ["fabrikam.example", "contoso.example"].map(|name| GeneralSubtree::DnsName(name.into()));
        let permitted_subtrees = permitted_subtrees.to_vec();
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: vec![] });
        params.serial_number = Some(vec![7].into());
    };
    let caller = Caller::new().await;
    let between = caller.a.below(wider);
    assert_eq!(caller.outcome(1, between.certificate(&of_a())).await, "ok");
    let ours = [of_a(), vec![dns("far.sip.contoso.example")]].concat();
    assert_eq!(caller.outcome(1, between.certificate(&ours)).await, "NameOutOfScope");

    // Of the two issuers on the path, both have lists.
    let leaf = between.certificate(&of_a());
    let [issuer, root] = [&leaf, &(leaf.0[1..].to_vec(), leaf.1.clone_key())].map(x509);
    let key = |text: &str| text.split(' ').next().unwrap().to_owned();
    let serials = BTreeMap::from([(key(&issuer), vec![]), (key(&root), vec!["07".to_owned()])]);
    caller.far[1].shows(leaf);
    caller.change(|brief| brief.scopes[1].revocation = Some(listed(serials)));
    caller.sidecar.acknowledges().await;
    assert_eq!(caller.called(1).await, "Revoked");
}

fn listed(serials: BTreeMap<String, Vec<String>>) -> Revocation {
    Revocation { next_update: i64::from(u32::MAX), serials, ..Revocation::default() }
}

type Change = fn(&mut Brief, &str);

/// Key identifier and serial, as the text that `x509` answers, on a list.
fn revoke(brief: &mut Brief, shown: &str) {
    let (issuer, serial) = shown.split_once(' ').unwrap();
    brief.scopes[1].revocation = Some(listed(BTreeMap::from([(issuer.to_owned(), vec![serial.to_owned()])])));
}

#[tokio::test]
async fn a_call_to_a_partner_is_refused_and_an_open_one_ends_with_the_reason_that_now_applies() {
    let cases: [(&str, Change, &str, &str); 10] = [
        ("suspended", |brief, _| brief.partners[0].standing = PartnerStanding::Suspended, "PartnerSuspended", ""),
        ("contract ended", |brief, _| brief.partners[0].standing = PartnerStanding::Expired, "PartnerExpired", ""),
        (
            "gone",
            |brief, _| {
                brief.partners.remove(0);
                brief.scopes.remove(1);
            },
            "DestinationNotDeclared",
            "",
        ),
        ("another edge", |brief, _| brief.partners[0].edges[0].port = 1, "PortNotAllowed", ""),
        ("other roots", |brief, _| brief.scopes[1].anchors = vec![Authority::new("other").root], "UntrustedRoot", ""),
        (
            "an expired root",
            |brief, _| {
                let old = Authority::with("fabrikam", KeyPair::generate().unwrap(), |params, now| {
                    params.not_before = instant(now - SignedDuration::from_hours(48));
                    params.not_after = instant(now - SignedDuration::from_hours(1));
                });
                brief.scopes[1].anchors = vec![old.root];
            },
            "UntrustedRoot",
            "",
        ),
        (
            "exact names",
            |brief, _| names(&mut brief.scopes[1]).server_names = vec!["other.fabrikam.example".parse().unwrap()],
            "NameOutOfScope",
            "",
        ),
        (
            "other pins",
            |brief, _| names(&mut brief.scopes[1]).public_key_pins = vec![format!("{}=", "A".repeat(43))],
            "PinMismatch",
            "",
        ),
        ("revoked", revoke, "Revoked", ""),
        ("issuer unknown", |brief, _| brief.scopes[1].revocation = Some(listed(BTreeMap::new())), "", "UnknownStatus"),
    ];
    for (what, change, cut, refused) in cases {
        let caller = Caller::new().await;
        let certificate = caller.a.certificate(&of_a());
        let shown = x509(&certificate);
        caller.far[1].shows(certificate);
        caller.far[2].shows(caller.b.certificate(&of_b()));
        let mut first = caller.open(1).await.expect(what);
        let mut second = caller.open(2).await.expect(what);
        caller.change(|brief| change(brief, &shown));
        if cut.is_empty() {
            caller.sidecar.acknowledges().await;
            echo(&mut first, b"still").await.expect("it is no evidence against what is open");
        } else {
            caller.cut(first, cut).await;
        }
        echo(&mut second, b"still").await.expect("the other partner was cut");
        let expected = if refused.is_empty() { cut } else { refused };
        let before = caller.far[1].told();
        let again = caller.sidecar.open(1).await;
        eventually(what, || async {
            let (_, metrics) = caller.sidecar.fetch("/metrics").await;
            let counted = if refused.is_empty() { 2 } else { 1 };
            let line = format!("entente_refusals_total{{direction=\"outbound\",reason=\"{expected}\"}} {counted}");
            metrics.contains(&line).then_some(())
        })
        .await;
        drop(again);
        assert_eq!(caller.far[1].told(), before, "{what}: something was said");
    }
}

#[tokio::test]
async fn a_partners_connection_ends_with_its_certificate_whatever_the_policy_for_our_own() {
    let caller = Caller::with(|brief| brief.on_peer_expiry = OnPeerExpiry::Keep, |plan| plan).await;
    let certificate =
        caller.a.forge(&of_a(), |params, now| params.not_after = instant(now + SignedDuration::from_secs(4)));
    caller.far[1].shows(certificate);
    let stream = caller.open(1).await.unwrap();
    caller.cut(stream, "Expired").await;
}

#[tokio::test]
async fn a_name_leads_neither_to_ourselves_nor_to_a_server_of_ours_nor_past_its_ports() {
    let caller = Caller::new().await;
    let ip = caller.sidecar.home.ip;
    for (what, told, expected) in [
        ("this pod", vec![ip], "DnsMismatch"),
        ("a server of ours", vec![caller.far[0].address.ip()], "DnsMismatch"),
        ("one of them", vec![caller.far[1].address.ip(), caller.far[0].address.ip()], "DnsMismatch"),
        ("an address of the guard's", vec![behind(A, 1).ip()], "DnsMismatch"),
        ("a link of the node's", vec!["169.254.169.254".parse().unwrap()], "DnsMismatch"),
        ("nowhere", vec![], "DialFailed"),
        ("nobody listens", vec![address()], "DialFailed"),
        ("where it is", vec![caller.far[1].address.ip()], "ok"),
        ("first where it is not", vec![address(), caller.far[1].address.ip()], "ok"),
    ] {
        caller.resolver.tell(A, &told);
        assert_eq!(caller.outcome(1, caller.a.certificate(&of_a())).await, expected, "{what}");
    }
    assert_eq!(caller.far[0].told(), 0);
    assert_eq!(caller.called(4).await, "PortNotAllowed");
    assert_eq!(caller.called(5).await, "DestinationNotDeclared");
}

#[tokio::test]
async fn a_host_is_called_as_it_is_for_as_long_as_the_brief_says_so() {
    let caller = Caller::new().await;
    let open = caller.open(3).await.unwrap();
    assert_eq!(caller.api.accepted(), 1);
    caller.change(|brief| brief.egress.hosts.clear());
    caller.cut(open, "DestinationNotDeclared").await;
    caller.change(|brief| {
        brief.egress.hosts.push(EgressHost { host: DnsName::parse(API).unwrap(), ports: vec![1] });
    });
    caller.sidecar.acknowledges().await;
    assert_eq!(caller.called(3).await, "PortNotAllowed");
    assert_eq!(caller.api.accepted(), 1);
}

#[tokio::test]
async fn a_partner_is_shown_our_certificate_or_the_one_that_is_mounted_for_it_and_no_other() {
    let third = Authority::new("public");
    let presented = third.certificate(&[dns("edge.contoso.example")]);
    let [chain, key] = pem(&presented);
    let presents = |brief: &mut Brief| brief.partners.iter_mut().for_each(|link| link.presents = true);
    let caller = Caller::with(presents, move |plan| plan.mounts("fabrikam", [&chain, &key])).await;
    assert_eq!(caller.outcome(1, caller.a.certificate(&of_a())).await, "ok");
    assert_eq!(*caller.far[1].shown.lock().unwrap(), presented.0);
    assert_eq!(caller.outcome(2, caller.b.certificate(&of_b())).await, "NotReady", "nothing is mounted for B");
    caller.change(|brief| brief.partners[1].presents = false);
    caller.sidecar.acknowledges().await;
    assert_eq!(caller.called(2).await, "ok");
    let ours = caller.far[2].shown.lock().unwrap().clone();
    let identity = entente::identity::Identity::of(&ours[0]).unwrap();
    assert_eq!(identity.id, caller.control.domain.id("edge"));
}

#[tokio::test]
async fn tls_12_is_spoken_only_with_the_partner_that_cannot_do_better() {
    let caller = Caller::new().await;
    for far in 0..3 {
        let certificate = match far {
            0 => own(&caller.control.domain, &of_ours()),
            1 => caller.a.certificate(&of_a()),
            _ => caller.b.certificate(&of_b()),
        };
        caller.far[far].speaks(certificate, &[&TLS12]);
    }
    for index in 0..3 {
        assert_eq!(caller.called(index).await, "HandshakeFailed", "{index}");
    }
    caller.change(|brief| brief.partners[0].tls12 = true);
    caller.sidecar.acknowledges().await;
    assert_eq!(caller.called(0).await, "HandshakeFailed");
    assert_eq!(caller.called(2).await, "HandshakeFailed");
    let open = caller.open(1).await.unwrap();
    // Whoever may speak 1.2 is still judged.
    caller.far[1].speaks(caller.b.certificate(&of_a()), &[&TLS12]);
    assert_eq!(caller.called(1).await, "UntrustedRoot");
    caller.far[1].speaks(caller.a.certificate(&of_a()), BOTH);
    let newer = caller.open(1).await.unwrap();
    caller.change(|brief| brief.partners[0].tls12 = false);
    let mut open = open;
    assert_eq!(read_out(&mut open).await.1, Seen::Reset);
    let mut newer = newer;
    echo(&mut newer, b"still").await.unwrap();
}

#[tokio::test]
async fn a_partner_has_so_many_connections_in_both_directions() {
    let caller = Caller::with(|brief| brief.partners[0].max_connections = 1, |plan| plan).await;
    caller.far[1].shows(caller.a.certificate(&of_a()));
    caller.far[2].shows(caller.b.certificate(&of_b()));
    let open = caller.open(1).await.unwrap();
    assert_eq!(caller.called(1).await, "Limit");
    assert_eq!(caller.called(2).await, "ok");
    drop(open);
    eventually("room", || async { caller.open(1).await }).await;
}

#[tokio::test]
async fn what_came_of_calling_a_partner_is_told_when_it_changes() {
    let caller = Caller::new().await;
    caller.far[1].shows(caller.a.certificate(&of_a()));
    let open = caller.open(1).await.unwrap();
    let first = caller.contact(None).await;
    assert!(first.at > 0);
    caller.far[1].shows(caller.b.certificate(&of_a()));
    assert_eq!(caller.called(1).await, "UntrustedRoot");
    let told = soon("a contact", async {
        loop {
            let last = caller.control.look(|world| world.pods[&caller.sidecar.home.uid].contacts["fabrikam"]);
            if let Some(refused) = last.refused {
                return refused;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(told.await.code(), "UntrustedRoot");
    caller.resolver.tell(A, &[]);
    assert_eq!(caller.called(1).await, "DialFailed");
    caller.contact(Some(Refusal::DialFailed)).await;
    caller.resolver.tell(A, &[caller.far[1].address.ip()]);
    caller.far[1].shows(caller.a.certificate(&of_a()));
    assert_eq!(caller.called(1).await, "ok");
    caller.contact(None).await;
    // A partner that leaves the brief leaves the report.
    caller.change(|brief| {
        brief.partners.remove(0);
        brief.scopes.remove(1);
    });
    eventually("forgotten", || async {
        caller.control.look(|world| world.pods[&caller.sidecar.home.uid].contacts.is_empty().then_some(()))
    })
    .await;
    drop(open);
}
