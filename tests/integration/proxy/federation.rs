//! Partners at the edge: each is believed for its own names, under its own roots, at the ports that list it.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use base64::prelude::{BASE64_STANDARD, Engine};
use entente::{
    brief::{Allow, AllowedPartner, AllowedServer, Brief, Mode, OnPeerExpiry, Revocation},
    identity::SpiffeId,
};
use jiff::SignedDuration;
use rcgen::{KeyPair, PublicKeyData, SanType};
use rustls::{AlertDescription, Error};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use super::harness::{Plan, Sidecar, address, control};
use crate::support::{
    applications::{Application, Behaviour},
    control::Server,
    domain::{Certified, Domain, instant},
    eventually,
    partner::{Authority, add, allowed, dns, forge, names, uri},
    soon, wire,
};

pub(super) const NAME: &str = "edge.sip.contoso.example";
pub(super) const OURS: &str = "spiffe://contoso.example/ns/sip/server/client";

pub(super) fn own_names() -> Vec<SanType> {
    vec![uri(OURS), dns("client.sip.contoso.example")]
}

pub(super) fn of_a() -> Vec<SanType> {
    vec![dns("sip.fabrikam.example")]
}

pub(super) fn of_b() -> Vec<SanType> {
    vec![dns("sip.litware.example")]
}

/// An Edge server, the partners that it knows, and whoever else dials it.
pub(super) struct Edge {
    pub(super) control: Arc<Server>,
    pub(super) a: Authority,
    pub(super) b: Authority,
    pub(super) applications: Vec<Application>,
    pub(super) sidecar: Sidecar,
}

impl Edge {
    /// One port for each of `listeners`, each with an application behind it.
    pub(super) async fn new(listeners: Vec<Allow>) -> Self {
        Self::with(listeners, |_| ()).await
    }

    pub(super) async fn with(listeners: Vec<Allow>, change: impl FnOnce(&mut Brief) + Send + 'static) -> Self {
        Self::planned(listeners, change, |plan| plan).await
    }

    /// The same with whatever else is to be planned.
    pub(super) async fn planned(
        listeners: Vec<Allow>,
        change: impl FnOnce(&mut Brief) + Send + 'static,
        plan_more: impl FnOnce(Plan) -> Plan,
    ) -> Self {
        let (control, ip) = (control().await, address());
        let (a, b) = (Authority::new("fabrikam"), Authority::new("litware"));
        let mut applications = vec![];
        let mut plan = Plan::new(&control, "edge", ip);
        let mut listed: Vec<String> = vec![];
        for allow in listeners {
            listed.extend(allow.partners.iter().map(|one| one.name.clone()));
            let application = Application::start(ip, Behaviour::Echo).await;
            plan = plan.port_for(Mode::MutualTls, application.address, allow);
            applications.push(application);
        }
        let scopes = [a.scope("fabrikam", "fabrikam.example"), b.scope("litware", "litware.example")];
        let scopes: Vec<_> =
            scopes.into_iter().filter(|scope| listed.iter().any(|name| scope.id.ends_with(name))).collect();
        let known = move |brief: &mut Brief| scopes.into_iter().for_each(|scope| add(brief, scope));
        let sidecar = plan_more(plan.brief(known).brief(change)).start().await;
        Self { control, a, b, applications, sidecar }
    }

    /// A connection that was let in, which says so by its first echo.
    pub(super) async fn open(&self, listener: usize, certificate: Certified) -> Option<TlsStream<TcpStream>> {
        let config = wire::client(Some(certificate));
        let mut stream = wire::connect(self.sidecar.inbound[listener], config, NAME).await.ok()?;
        echo(&mut stream).await.then_some(stream)
    }

    /// `ok`, or the code of the one refusal that the call brought.
    pub(super) async fn outcome(&self, listener: usize, certificate: Certified) -> String {
        outcome_of(&self.sidecar, self.open(listener, certificate)).await
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Brief)) {
        self.control.change_brief(&self.sidecar.home.uid, change);
    }

    /// The reason for which `stream`, which was open, is ended.
    pub(super) async fn cut(&self, mut stream: TlsStream<TcpStream>, reason: &str) {
        soon("the connection's end", async { while matches!(stream.read(&mut [0; 16]).await, Ok(1..)) {} }).await;
        self.sidecar.refused("inbound", reason, 1).await;
        let series = format!("entente_cut_by_reason_total{{direction=\"inbound\",reason=\"{reason}\"}}");
        assert_eq!(self.sidecar.metric(&series).await, 1.0);
    }
}

/// `ok` where `opening` brings something, or the code of the one refusal that it brings at `sidecar`.
pub(super) async fn outcome_of<T>(sidecar: &Sidecar, opening: impl Future<Output = Option<T>>) -> String {
    let before = sidecar.reasons().await;
    if opening.await.is_some() {
        return "ok".to_owned();
    }
    let news = eventually("a refusal", || async {
        let now = sidecar.reasons().await;
        // Those that were let in before end without a goodbye.
        let is_new = |(code, count): &(String, u32)| code != "Truncated" && before.get(code) != Some(count);
        let new: Vec<_> = now.into_iter().filter(is_new).map(|(code, _)| code).collect();
        (!new.is_empty()).then_some(new)
    });
    news.await.join(" ")
}

pub(super) async fn echo(stream: &mut TlsStream<TcpStream>) -> bool {
    let talk = async {
        stream.write_all(b"hello").await?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.map(|_| answer == *b"hello")
    };
    soon("an answer or an end", talk).await.unwrap_or(false)
}

pub(super) fn partners(names: &[&str]) -> Allow {
    Allow { partners: allowed(names), ..Allow::default() }
}

/// Our own authority, with whatever names: what our issuer would refuse is signed with its key directly.
pub(super) fn own(domain: &Domain, names: &[SanType]) -> Certified {
    domain.forge("client", |params, _| params.subject_alt_names = names.to_vec())
}

/// The table of the trust model, and the listeners beside it: A and B; A and servers of ours; all three.
#[tokio::test]
async fn of_four_authorities_and_three_names_each_listener_accepts_what_it_lists_and_nothing_else() {
    let client = || Allow::servers([SpiffeId::parse(OURS).unwrap()]);
    let edge = Edge::new(vec![
        client(),
        partners(&["fabrikam"]),
        partners(&["litware"]),
        partners(&["fabrikam", "litware"]),
        Allow { partners: allowed(&["fabrikam"]), ..client() },
        Allow { partners: allowed(&["fabrikam", "litware"]), ..client() },
    ])
    .await;
    let unknown = Authority::new("unknown");
    const U: &str = "UntrustedRoot";
    const N: &str = "NameOutOfScope";
    // By authority and name: internal, edge-A, edge-B, then the other three.
    let table = [
        [["ok", N, N, N, "ok", "ok"], [N, U, N, U, U, U], [N, N, U, U, N, U]],
        [[U, N, N, N, U, U], [U, "ok", N, "ok", "ok", "ok"], [U, N, U, U, N, U]],
        [[U, N, N, N, U, U], [U, U, N, U, U, U], [U, N, "ok", "ok", N, "ok"]],
        [[U, N, N, N, U, U], [U, U, N, U, U, U], [U, N, U, U, N, U]],
    ];
    for (authority, rows) in table.iter().enumerate() {
        for (names, row) in [own_names(), of_a(), of_b()].iter().zip(rows) {
            for (listener, expected) in row.iter().enumerate() {
                let certificate = match authority {
                    0 => own(&edge.control.domain, names),
                    1 => edge.a.certificate(names),
                    2 => edge.b.certificate(names),
                    _ => unknown.certificate(names),
                };
                let found = edge.outcome(listener, certificate).await;
                assert_eq!(found, *expected, "authority {authority}, {names:?}, listener {listener}");
            }
        }
    }
    let accepted: usize = edge.applications.iter().map(Application::accepted).sum();
    assert_eq!(accepted, table.as_flattened().as_flattened().iter().filter(|cell| **cell == "ok").count());
}

#[tokio::test]
async fn an_internal_server_that_knows_no_partner_refuses_all_of_them() {
    let edge = Edge::new(vec![Allow::all_declared()]).await;
    for (certificate, expected) in [
        (own(&edge.control.domain, &own_names()), "ok"),
        (own(&edge.control.domain, &of_a()), "NameOutOfScope"),
        (edge.a.certificate(&own_names()), "UntrustedRoot"),
        (edge.a.certificate(&of_a()), "UntrustedRoot"),
    ] {
        assert_eq!(edge.outcome(0, certificate).await, expected);
    }
}

#[tokio::test]
async fn a_certificate_with_names_of_two_scopes_is_out_of_scope_everywhere() {
    let all = Allow { all_declared: true, ..partners(&["fabrikam", "litware"]) };
    let edge = Edge::new(vec![partners(&["fabrikam"]), partners(&["litware"]), all, Allow::all_declared()]).await;
    for names in [[own_names(), of_a()].concat(), [of_a(), of_b()].concat(), [own_names(), of_b()].concat()] {
        for listener in 0..4 {
            let found = edge.outcome(listener, own(&edge.control.domain, &names)).await;
            assert_eq!(found, "NameOutOfScope", "ours, {names:?}, listener {listener}");
            let found = edge.outcome(listener, edge.a.certificate(&names)).await;
            // A port for servers of ours leaves no choice: there a partner's authority is nobody's.
            let expected = if listener == 3 { "UntrustedRoot" } else { "NameOutOfScope" };
            assert_eq!(found, expected, "partner's, {names:?}, listener {listener}");
        }
    }
}

#[tokio::test]
async fn what_is_accepted_is_refused_as_soon_as_anything_about_it_is_wrong() {
    let edge = Edge::new(vec![Allow::all_declared(), partners(&["fabrikam"]), partners(&["litware"])]).await;
    let cases = [
        ("good", ["ok", "ok"]),
        ("expired", ["Expired", "Expired"]),
        ("no purpose", ["WrongUsage", "WrongUsage"]),
        ("a second URI", ["BadName", "NameOutOfScope"]),
        ("an address", ["BadName", "BadName"]),
        ("names in the common name only", ["BadName", "NameOutOfScope"]),
    ];
    for (what, [ours, theirs]) in cases {
        let change = forge(what);
        assert_eq!(edge.outcome(0, edge.control.domain.forge("client", change)).await, ours, "{what}, ours");
        assert_eq!(edge.outcome(1, edge.a.forge(&of_a(), change)).await, theirs, "{what}, A's");
        assert_eq!(edge.outcome(2, edge.b.forge(&of_b(), change)).await, theirs, "{what}, B's");
    }
}

#[tokio::test]
async fn an_expired_anchor_vouches_for_nobody_in_any_scope() {
    let expired = |name: &str| {
        Authority::with(name, KeyPair::generate().unwrap(), |params, now| {
            params.not_before = instant(now - SignedDuration::from_hours(48));
            params.not_after = instant(now - SignedDuration::from_hours(1));
        })
    };
    let (old, older) = (expired("contoso"), expired("fabrikam"));
    let roots = [old.root.clone(), older.root.clone()];
    let edge = Edge::with(vec![Allow::all_declared(), partners(&["fabrikam"])], move |brief| {
        let [ours, theirs] = roots;
        brief.scopes[0].anchors.push(ours);
        brief.scopes[1].anchors = vec![theirs];
    })
    .await;
    assert_eq!(edge.outcome(0, old.certificate(&own_names())).await, "UntrustedRoot");
    assert_eq!(edge.outcome(1, older.certificate(&of_a())).await, "UntrustedRoot");
}

#[tokio::test]
async fn two_partners_that_share_a_root_stay_apart_by_names_and_pins() {
    let shared = Authority::new("public");
    let root = shared.root.clone();
    let key = KeyPair::generate().unwrap();
    let pin = BASE64_STANDARD.encode(Sha256::digest(key.subject_public_key_info()));
    let edge = Edge::with(vec![partners(&["fabrikam"]), partners(&["litware"])], move |brief| {
        for scope in &mut brief.scopes[1..] {
            scope.anchors = vec![root.clone()];
        }
        names(&mut brief.scopes[1]).public_key_pins = vec![pin];
    })
    .await;
    let pinned = || shared.forge_for(&key, &of_a(), |_, _| ());
    for (listener, certificate, expected) in [
        (0, pinned(), "ok"),
        (0, shared.certificate(&of_a()), "PinMismatch"),
        (0, shared.certificate(&of_b()), "NameOutOfScope"),
        (1, shared.certificate(&of_b()), "ok"),
        (1, pinned(), "NameOutOfScope"),
    ] {
        assert_eq!(edge.outcome(listener, certificate).await, expected, "listener {listener}");
    }
}

#[tokio::test]
async fn a_partner_with_rsa_keys_is_let_in() {
    let rsa = || KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let authority = Authority::with("fabrikam", rsa(), |_, _| ());
    let root = authority.root.clone();
    let edge = Edge::with(vec![partners(&["fabrikam"])], move |brief| brief.scopes[1].anchors = vec![root]).await;
    assert_eq!(edge.outcome(0, authority.forge_for(&rsa(), &of_a(), |_, _| ())).await, "ok");
}

#[tokio::test]
async fn a_stranger_at_the_edge_is_not_told_whose_names_are_known_there() {
    let edge = Edge::new(vec![partners(&["fabrikam"])]).await;
    let denied = Error::AlertReceived(AlertDescription::AccessDenied);
    for names in [own_names(), of_b(), vec![dns("*.fabrikam.example")], vec![dns("nobody.example")], vec![]] {
        let config = wire::client(Some(edge.b.certificate(&names)));
        let mut stream = wire::connect(edge.sidecar.inbound[0], config, NAME).await.unwrap();
        let told = soon("an alert", stream.read_u8()).await.unwrap_err();
        assert_eq!(told.get_ref().and_then(|error| error.downcast_ref()), Some(&denied), "{names:?}");
    }
}

#[tokio::test]
async fn a_partner_speaks_no_protocol_that_is_for_servers_of_ours() {
    let edge = Edge::new(vec![partners(&["fabrikam"])]).await;
    for protocol in [&b"entente/1"[..], b"entente/reprove"] {
        let mut config = wire::client(Some(edge.a.certificate(&of_a())));
        config.alpn_protocols = vec![protocol.to_vec()];
        assert!(!wire::is_served(wire::connect(edge.sidecar.inbound[0], config, NAME).await).await);
    }
    edge.sidecar.refused("inbound", "BadAlpn", 2).await;
    assert_eq!(edge.applications[0].accepted(), 0);
}

#[tokio::test]
async fn the_application_learns_by_its_local_port_who_calls() {
    let allow = Allow {
        all_declared: true,
        servers: vec![AllowedServer { id: SpiffeId::parse(OURS).unwrap(), target_port: Some(5970) }],
        partners: vec![AllowedPartner { name: "fabrikam".into(), target_port: Some(5980) }],
    };
    let edge = Edge::new(vec![allow]).await;
    let ip = edge.sidecar.home.ip;
    let own_ports = [Application::at((ip, 5970).into()).await, Application::at((ip, 5980).into()).await];
    let accepted = || [edge.applications[0].accepted(), own_ports[0].accepted(), own_ports[1].accepted()];
    let (domain, other) = (&edge.control.domain, "director");
    assert_eq!(edge.outcome(0, domain.certificate(other)).await, "ok");
    assert_eq!(accepted(), [1, 0, 0]);
    let mut known = edge.open(0, domain.certificate("client")).await.unwrap();
    assert_eq!(accepted(), [1, 1, 0]);
    let mut partner = edge.open(0, edge.a.certificate(&of_a())).await.unwrap();
    assert_eq!(accepted(), [1, 1, 1]);

    // It may still call, but no longer there.
    edge.change(|brief| brief.ports[0].allow.servers.clear());
    assert!(echo(&mut partner).await);
    soon("the connection's end", async { while matches!(known.read(&mut [0; 16]).await, Ok(1..)) {} }).await;
    edge.sidecar.refused("inbound", "PortNotAllowed", 1).await;
    assert_eq!(edge.outcome(0, domain.certificate("client")).await, "ok");
    assert_eq!(accepted(), [2, 1, 1]);
}

#[tokio::test]
async fn a_partners_open_connection_ends_with_the_reason_that_now_applies_and_no_other_is_touched() {
    type Change = fn(&mut Brief, &str);
    let revoked: Change = |brief, serial| {
        let issuer = serial.split(' ').next().unwrap().to_owned();
        let serials = BTreeMap::from([(issuer, vec![serial.split(' ').nth(1).unwrap().to_owned()])]);
        brief.scopes[1].revocation =
            Some(Revocation { next_update: i64::from(u32::MAX), serials, ..Revocation::default() });
    };
    let cases: [(&str, Change, &str); 7] = [
        (
            "the partner is gone",
            |brief, _| {
                brief.ports[0].allow.partners.remove(0);
                brief.scopes.remove(1);
                brief.partners.remove(0);
            },
            "NameOutOfScope",
        ),
        (
            "it moved to another port",
            |brief, _| {
                let moved = brief.ports[0].allow.partners.remove(0);
                brief.ports[1].allow.partners.push(moved);
            },
            "NameOutOfScope",
        ),
        ("other roots", |brief, _| brief.scopes[1].anchors = vec![Authority::new("other").root], "UntrustedRoot"),
        (
            "other domains",
            |brief, _| names(&mut brief.scopes[1]).domains = vec!["fabrikam.net".parse().unwrap()],
            "NameOutOfScope",
        ),
        (
            "its names are another's",
            |brief, _| {
                let theirs = std::mem::take(&mut names(&mut brief.scopes[1]).domains);
                let root = brief.scopes[1].anchors[0].clone();
                names(&mut brief.scopes[1]).domains = vec!["fabrikam.net".parse().unwrap()];
                names(&mut brief.scopes[2]).domains.extend(theirs);
                brief.scopes[2].anchors.push(root);
            },
            "NameOutOfScope",
        ),
        (
            "other pins",
            |brief, _| names(&mut brief.scopes[1]).public_key_pins = vec![BASE64_STANDARD.encode([7; 32])],
            "PinMismatch",
        ),
        ("revoked", revoked, "Revoked"),
    ];
    for (what, change, reason) in cases {
        let edge = Edge::new(vec![partners(&["fabrikam", "litware"]), partners(&["litware"])]).await;
        let certificate = edge.a.certificate(&of_a());
        let shown = x509(&certificate);
        let first = edge.open(0, certificate).await.expect(what);
        let mut second = edge.open(0, edge.b.certificate(&of_b())).await.expect(what);
        edge.change(|brief| brief.drain_seconds += 1);
        edge.sidecar.acknowledges().await;
        edge.change(|brief| change(brief, &shown));
        edge.cut(first, reason).await;
        assert!(echo(&mut second).await, "{what}: the other partner was cut");
        let told = edge.control.look(|world| world.pods[&edge.sidecar.home.uid].refusals.clone());
        assert_eq!(
            told.iter().map(|one| (one.peer.as_str(), one.cut)).collect::<Vec<_>>(),
            [("partner/fabrikam", true)]
        );
    }
}

/// Key identifier of the issuer, and serial.
pub(super) fn x509(certificate: &Certified) -> String {
    use x509_parser::{extensions::ParsedExtension, prelude::FromDer};
    let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&certificate.0[0]).unwrap();
    let issuer = leaf.extensions().iter().find_map(|one| match one.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(authority) => authority.key_identifier.as_ref().map(|key| key.0),
        _ => None,
    });
    let hex = entente::pki::hex;
    format!("{} {}", hex(issuer.unwrap()), hex(&leaf.tbs_certificate.serial.to_bytes_be()))
}

#[tokio::test]
async fn a_partners_connection_ends_with_its_certificate_whatever_the_policy_for_our_own() {
    let edge = Edge::with(vec![partners(&["fabrikam"])], |brief| brief.on_peer_expiry = OnPeerExpiry::Keep).await;
    let soon_over = edge.a.forge(&of_a(), |params, now| params.not_after = instant(now + SignedDuration::from_secs(4)));
    let stream = edge.open(0, soon_over).await.unwrap();
    edge.cut(stream, "Expired").await;
}

#[tokio::test]
async fn a_brief_whose_partners_overlap_is_not_put_in_force() {
    let edge = Edge::new(vec![partners(&["fabrikam", "litware"])]).await;
    let mut open = edge.open(0, edge.a.certificate(&of_a())).await.unwrap();
    let good = edge.control.look(|world| world.pods[&edge.sidecar.home.uid].acknowledged.clone());
    edge.change(|brief| names(&mut brief.scopes[2]).domains.push("sip.fabrikam.example".parse().unwrap()));
    eventually("rejected", || async {
        (edge.sidecar.metric("entente_briefs_rejected_total").await > 0.0).then_some(())
    })
    .await;
    assert_eq!(edge.control.look(|world| world.pods[&edge.sidecar.home.uid].acknowledged.clone()), good);
    assert!(echo(&mut open).await);
    assert_eq!(edge.outcome(0, edge.a.certificate(&of_a())).await, "ok");
}
