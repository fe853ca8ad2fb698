//! How partners that call are dealt with, beside whom they can prove: standing, limits, versions, lists, certificates
//! that they are shown; and clients of ServerTLS ports that say who they are.

use std::collections::BTreeMap;

use entente::{
    brief::{Allow, Mode, OnStale, PartnerStanding, Revocation, ServerTls},
    telemetry,
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType};
use rustls::{AlertDescription, Error};
use tokio::io::AsyncReadExt;

use super::{
    federation::{Edge, NAME, OURS, echo, of_a, of_b, outcome_of, own_names, partners, x509},
    harness::{Plan, address, control},
};
use crate::support::{
    applications::{Application, Behaviour},
    domain::{Certified, pem},
    eventually,
    partner::{Authority, dns, names, uri},
    soon, wire,
};

#[tokio::test]
async fn a_caller_proves_names_of_its_partners_domains_and_no_other_kind_of_name() {
    let edge = Edge::new(vec![partners(&["fabrikam", "litware"])]).await;
    let ip = || SanType::IpAddress([10, 0, 0, 1].into());
    let a = || dns("sip.fabrikam.example");
    for (names, expected) in [
        (vec![a()], "ok"),
        (vec![dns("fabrikam.example"), a()], "ok"),
        (vec![dns("xn--mnchen-3ya.fabrikam.example")], "ok"),
        (vec![dns("edge.sip.contoso.example")], "NameOutOfScope"),
        (vec![a(), dns("edge.sip.contoso.example")], "NameOutOfScope"),
        (vec![uri(OURS)], "NameOutOfScope"),
        (vec![a(), uri(OURS)], "NameOutOfScope"),
        (vec![uri("spiffe://fabrikam.example/a")], "NameOutOfScope"),
        (vec![ip()], "BadName"),
        (vec![a(), ip()], "BadName"),
        (vec![], "NameOutOfScope"),
        (vec![dns("*.fabrikam.example")], "BadName"),
        (vec![dns("SIP.fabrikam.example")], "BadName"),
        (vec![dns("sip.fabrikam.example.")], "BadName"),
    ] {
        assert_eq!(edge.outcome(0, edge.a.certificate(&names)).await, expected, "{names:?}");
    }
}

#[tokio::test]
async fn a_spiffe_partner_calls_by_its_identity_alone() {
    let edge = Edge::with(vec![partners(&["fabrikam"])], |brief| {
        names(&mut brief.scopes[1]).trust_domain = Some("fabrikam.test".parse().unwrap());
    })
    .await;
    let id = || uri("spiffe://fabrikam.test/ns/web/sa/front");
    for (names, expected) in [
        (vec![id()], "ok"),
        (vec![id(), dns("sip.fabrikam.example")], "ok"),
        (vec![id(), uri("spiffe://fabrikam.test/other")], "BadName"),
        (vec![id(), uri(OURS)], "NameOutOfScope"),
        (vec![uri("spiffe://litware.test/a")], "NameOutOfScope"),
        (own_names(), "NameOutOfScope"),
    ] {
        assert_eq!(edge.outcome(0, edge.a.certificate(&names)).await, expected, "{names:?}");
    }
}

#[tokio::test]
async fn a_public_ca_vouches_for_exact_names_by_server_certificates() {
    let public = Authority::new("public");
    let root = public.root.clone();
    let edge = Edge::with(vec![partners(&["fabrikam"])], move |brief| {
        brief.scopes[1].anchors.clear();
        names(&mut brief.scopes[1]).web = true;
        names(&mut brief.scopes[1]).server_names = vec!["sip.fabrikam.example".parse().unwrap()];
        brief.web_roots = vec![root];
    })
    .await;
    let server = |params: &mut CertificateParams, _| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    assert_eq!(edge.outcome(0, public.forge(&of_a(), server)).await, "ok");
    let other = [dns("other.fabrikam.example")];
    assert_eq!(edge.outcome(0, public.forge(&other, server)).await, "NameOutOfScope");
    assert_eq!(edge.outcome(0, edge.a.forge(&of_a(), server)).await, "UntrustedRoot", "its own root is none now");
}

#[tokio::test]
async fn a_partner_that_does_not_stand_is_refused_by_its_names_and_its_connections_end() {
    for (standing, reason) in
        [(PartnerStanding::Suspended, "PartnerSuspended"), (PartnerStanding::Expired, "PartnerExpired")]
    {
        let edge = Edge::new(vec![partners(&["fabrikam", "litware"])]).await;
        let first = edge.open(0, edge.a.certificate(&of_a())).await.unwrap();
        let mut second = edge.open(0, edge.b.certificate(&of_b())).await.unwrap();
        edge.change(|brief| {
            brief.partners[0].standing = standing;
            brief.scopes[1].anchors.clear();
        });
        edge.cut(first, reason).await;
        assert!(echo(&mut second).await, "the other partner was cut");
        assert_eq!(edge.outcome(0, edge.a.certificate(&of_a())).await, reason);
        // Whoever uses its names learns no more than it does.
        assert_eq!(edge.outcome(0, edge.b.certificate(&of_a())).await, reason);
        edge.change(|brief| brief.partners[0].standing = PartnerStanding::Active);
        let root = edge.a.root.clone();
        edge.change(|brief| brief.scopes[1].anchors = vec![root]);
        edge.sidecar.acknowledges().await;
        assert_eq!(edge.outcome(0, edge.a.certificate(&of_a())).await, "ok");
    }
}

#[tokio::test]
async fn a_partners_handshakes_are_counted_before_anything_is_verified_for_them() {
    let edge = Edge::with(vec![partners(&["fabrikam", "litware"])], |brief| {
        // One that may begin none shows it without a clock.
        brief.partners[0].handshakes_per_second = 0;
    })
    .await;
    let unknown = Authority::new("unknown");
    for certificate in [edge.a.certificate(&of_a()), unknown.certificate(&of_a())] {
        assert_eq!(edge.outcome(0, certificate).await, "Limit");
    }
    assert_eq!(edge.outcome(0, edge.b.certificate(&of_b())).await, "ok");
    assert_eq!(edge.outcome(0, unknown.certificate(&own_names())).await, "NameOutOfScope");
    edge.change(|brief| brief.partners[0].handshakes_per_second = 1);
    edge.sidecar.acknowledges().await;
    eventually("its second", || async { edge.open(0, edge.a.certificate(&of_a())).await }).await;
}

#[tokio::test]
async fn a_partner_has_so_many_open_connections_and_one_that_ends_makes_room() {
    let edge =
        Edge::with(vec![partners(&["fabrikam", "litware"])], |brief| brief.partners[0].max_connections = 2).await;
    let open = || edge.open(0, edge.a.certificate(&of_a()));
    let (first, mut second) = (open().await.unwrap(), open().await.unwrap());
    assert_eq!(edge.outcome(0, edge.a.certificate(&of_a())).await, "Limit");
    assert_eq!(edge.outcome(0, edge.b.certificate(&of_b())).await, "ok");
    drop(first);
    eventually("room", open).await;
    assert!(echo(&mut second).await);
}

#[tokio::test]
async fn tls_12_is_for_the_partner_that_cannot_do_better_and_for_nobody_else_at_its_port() {
    let client = Allow { all_declared: true, ..partners(&["fabrikam", "litware"]) };
    let edge = Edge::new(vec![client, partners(&["litware"])]).await;
    let outcome = async |listener: usize, certificate: Certified| {
        let opening = async {
            let config = wire::client12(Some(certificate));
            let mut stream = wire::connect(edge.sidecar.inbound[listener], config, NAME).await.ok()?;
            echo(&mut stream).await.then_some(stream)
        };
        outcome_of(&edge.sidecar, opening).await
    };
    assert_eq!(outcome(0, edge.a.certificate(&of_a())).await, "HandshakeFailed", "nobody may");
    edge.change(|brief| brief.partners[0].tls12 = true);
    edge.sidecar.acknowledges().await;
    assert_eq!(outcome(0, edge.a.certificate(&of_a())).await, "ok");
    assert_eq!(outcome(0, edge.b.certificate(&of_b())).await, "HandshakeFailed", "another partner");
    assert_eq!(outcome(0, edge.control.domain.certificate("client")).await, "HandshakeFailed", "one of ours");
    assert_eq!(outcome(1, edge.b.certificate(&of_b())).await, "HandshakeFailed", "another port");
    assert_eq!(outcome(0, edge.b.certificate(&of_a())).await, "UntrustedRoot");
    assert_eq!(edge.outcome(0, edge.b.certificate(&of_b())).await, "ok", "by TLS 1.3");
}

#[tokio::test]
async fn nothing_of_a_session_is_kept_in_tls_12_either() {
    let edge = Edge::with(vec![partners(&["fabrikam"])], |brief| brief.partners[0].tls12 = true).await;
    let mut config = wire::client12(Some(edge.a.certificate(&of_a())));
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    for _ in 0..3 {
        let mut stream = wire::connect(edge.sidecar.inbound[0], config.clone(), NAME).await.unwrap();
        assert!(echo(&mut stream).await);
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test]
async fn lists_that_are_stale_or_missing_refuse_or_let_pass_as_the_partner_says() {
    let edge = Edge::new(vec![partners(&["fabrikam"])]).await;
    let good = || edge.a.certificate(&of_a());
    let issuer = x509(&good()).split(' ').next().unwrap().to_owned();
    let bad = good();
    let bad_serial = x509(&bad).split(' ').nth(1).unwrap().to_owned();
    let now = telemetry::now().as_second();
    let list = |issuer: &str, next_update, on_stale| Revocation {
        next_update,
        on_stale,
        serials: BTreeMap::from([(issuer.to_owned(), vec![bad_serial.clone()])]),
        ..Revocation::default()
    };
    for (what, list, expected) in [
        ("fresh", list(&issuer, now + 3600, OnStale::Deny), "ok"),
        ("stale", list(&issuer, now - 1, OnStale::Deny), "StaleCRL"),
        ("another issuer's", list("00", now + 3600, OnStale::Deny), "UnknownStatus"),
        ("stale, allowed", list(&issuer, now - 1, OnStale::Allow), "ok"),
        ("another issuer's, allowed", list("00", now + 3600, OnStale::Allow), "ok"),
    ] {
        edge.change(|brief| brief.scopes[1].revocation = Some(list.clone()));
        edge.sidecar.acknowledges().await;
        assert_eq!(edge.outcome(0, good()).await, expected, "{what}");
    }
    edge.change(|brief| brief.scopes[1].revocation = Some(list(&issuer, now - 1, OnStale::Allow)));
    edge.sidecar.acknowledges().await;
    assert_eq!(edge.outcome(0, bad).await, "Revoked", "what was known last counts");
}

#[tokio::test]
async fn the_certificate_for_a_partner_is_shown_to_whoever_asks_for_its_name_and_not_replaced_by_ours() {
    let third = Authority::new("public");
    let presented = third.certificate(&[dns("sip.contoso.net")]);
    let [chain, key] = pem(&presented);
    let edge = Edge::planned(
        vec![partners(&["fabrikam", "litware"])],
        |brief| brief.partners.iter_mut().for_each(|link| link.presents = true),
        move |plan| plan.mounts("fabrikam", [&chain, &key]),
    )
    .await;
    let shown = async |certificate: Certified, name: &str| {
        let config = wire::client(Some(certificate));
        let mut stream = wire::connect(edge.sidecar.inbound[0], config, name).await.ok()?;
        let leaf = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        echo(&mut stream).await.then_some(leaf)
    };
    assert_eq!(shown(edge.a.certificate(&of_a()), "sip.contoso.net").await, Some(presented.0[0].clone()));
    let ours = shown(edge.a.certificate(&of_a()), NAME).await.unwrap();
    assert_eq!(entente::identity::Identity::of(&ours).unwrap().id, edge.control.domain.id("edge"));
    assert_eq!(shown(edge.a.certificate(&of_a()), "other.contoso.net").await, None);
    edge.sidecar.refused("inbound", "HandshakeFailed", 1).await;
    // Nothing is mounted for the other one.
    assert_eq!(edge.outcome(0, edge.b.certificate(&of_b())).await, "NotReady");
}

#[tokio::test]
async fn a_partner_that_called_is_a_contact_and_one_that_could_not_prove_itself_is_none() {
    let edge = Edge::new(vec![partners(&["fabrikam", "litware"])]).await;
    assert_eq!(edge.outcome(0, edge.a.certificate(&of_b())).await, "UntrustedRoot");
    assert_eq!(edge.outcome(0, edge.a.certificate(&of_a())).await, "ok");
    let contacts = eventually("a contact", || async {
        let told = edge.control.look(|world| world.pods[&edge.sidecar.home.uid].contacts.clone());
        (!told.is_empty()).then_some(told)
    })
    .await;
    let told: Vec<_> = contacts.iter().map(|(name, contact)| (name.as_str(), contact.refused)).collect();
    assert_eq!(told, [("fabrikam", None)]);
}

#[tokio::test]
async fn a_client_of_a_server_tls_port_need_not_say_who_it_is_and_is_held_to_it_where_it_does() {
    let (control, ip) = (control().await, address());
    let application = Application::start(ip, Behaviour::Echo).await;
    let settings = ServerTls { alpn: vec!["sip/2".to_owned()], tls12: true, client_certificate: true };
    let sidecar = Plan::new(&control, "web", ip)
        .port(Mode::ServerTls, application.address)
        .brief(move |brief| brief.ports[0].server_tls = Some(settings))
        .start()
        .await;
    let connect = async |certificate: Option<Certified>, old: bool| {
        let mut config = if old { wire::client12(certificate) } else { wire::client(certificate) };
        config.alpn_protocols = vec![b"h2".to_vec(), b"sip/2".to_vec()];
        let mut stream = wire::connect(sidecar.inbound[0], config, "web.sip.contoso.example").await.ok()?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"sip/2"[..]));
        echo(&mut stream).await.then_some(stream)
    };
    let outcome = async |certificate, old| outcome_of(&sidecar, connect(certificate, old)).await;
    let stranger = || Authority::new("stranger").certificate(&of_a());
    for old in [false, true] {
        assert_eq!(outcome(None, old).await, "ok");
        assert_eq!(outcome(Some(control.domain.certificate("client")), old).await, "ok");
        assert_eq!(outcome(Some(stranger()), old).await, "UntrustedRoot");
    }
    let known = control.domain.certificate("client");
    let serial = x509(&known).split(' ').nth(1).unwrap().to_owned();
    let again = (known.0.clone(), known.1.clone_key());
    let mut other = connect(Some(control.domain.certificate("client")), false).await.unwrap();
    let mut nobody = connect(None, false).await.unwrap();
    let mut stream = connect(Some(known), false).await.unwrap();
    control.revoke(&sidecar.home.uid, &serial);
    soon("the connection's end", async { while matches!(stream.read(&mut [0; 16]).await, Ok(1..)) {} }).await;
    sidecar.refused("inbound", "Revoked", 1).await;
    assert!(echo(&mut other).await && echo(&mut nobody).await, "somebody else was cut");
    assert_eq!(outcome(Some(again), false).await, "Revoked");
    let told = control.look(|world| world.pods[&sidecar.home.uid].refusals.clone());
    let cut: Vec<_> = told.iter().filter(|one| one.cut).map(|one| one.peer.clone()).collect();
    assert_eq!(cut, [control.domain.id("client").to_string()]);
}

#[tokio::test]
async fn a_server_tls_port_speaks_what_it_declares_and_nothing_else() {
    let (control, ip) = (control().await, address());
    let application = Application::start(ip, Behaviour::Echo).await;
    let sidecar = Plan::new(&control, "web", ip).port(Mode::ServerTls, application.address).start().await;
    let connect = async |old: bool, protocols: &[&str]| {
        let mut config = if old { wire::client12(None) } else { wire::client(None) };
        config.alpn_protocols = protocols.iter().map(|one| one.as_bytes().to_vec()).collect();
        wire::connect(sidecar.inbound[0], config, "web.sip.contoso.example").await
    };
    assert!(wire::is_served(connect(false, &[]).await).await);
    assert!(wire::is_served(connect(false, &["h2"]).await).await, "a port that names none is asked for none");
    assert!(connect(true, &[]).await.is_err(), "TLS 1.2");
    let uid = &sidecar.home.uid;
    let settings = ServerTls { alpn: vec!["sip/2".to_owned()], ..ServerTls::default() };
    control.change_brief(uid, |brief| brief.ports[0].server_tls = Some(settings));
    sidecar.acknowledges().await;
    let refused = connect(false, &["h2"]).await.unwrap_err();
    let alert = refused.get_ref().and_then(|error| error.downcast_ref::<Error>());
    assert_eq!(alert, Some(&Error::AlertReceived(AlertDescription::NoApplicationProtocol)));
    // What is between servers of ours is offered to nobody.
    let ours = ServerTls { alpn: vec!["entente/1".to_owned()], ..ServerTls::default() };
    control.change_brief(uid, |brief| brief.ports[0].server_tls = Some(ours));
    eventually("rejected", || async { (sidecar.metric("entente_briefs_rejected_total").await > 0.0).then_some(()) })
        .await;
}
