//! What crosses the wire, and what does not.

use entente::{brief::Mode, identity::DnsName};

use super::{
    capture::Capture,
    pods::{HUB, HUB6, in_own_network},
    roles::{Act, Fared},
    support::{control::everyone, eventually},
};

const SECRET: &str = "THE-SECRET-OF-CONTOSO";
/// Lifetime of certificates that a test waits for, in seconds.
const SHORT: u32 = 10;
/// Header of a TLS 1.3 application record.
const TLS_RECORD: &[u8] = &[0x17, 0x03, 0x03];

#[test]
fn a_declared_call_is_tls_on_the_wire_in_both_families_and_holds_none_of_the_payload() {
    in_own_network(
        "wire::a_declared_call_is_tls_on_the_wire_in_both_families_and_holds_none_of_the_payload",
        |hub| async move {
            let server = hub.pod(3, "server", &[(5432, Mode::MutualTls)], "").await;
            let client = hub.pod(2, "client", &[], "").await;
            client.knows(&server, "server", 5432, Mode::MutualTls);
            let application = server.start(Act::Echo(vec![server.v4(5432), server.v6(5432)])).await;
            let capture = Capture::start();
            for address in [server.v4(5432), server.v6(5432)] {
                eventually("a call", || async {
                    let fared = client.act(Act::Call(address, SECRET.to_owned())).await;
                    (fared == Fared::Answered).then_some(())
                })
                .await;
            }
            assert!(capture.holding(TLS_RECORD) > 0, "the capture sees the connection");
            assert_eq!(capture.end(SECRET.as_bytes()), 0, "plaintext on the wire");
            assert_eq!(application.told::<u32>(), 2);
        },
    );
}

#[test]
fn a_capture_would_see_plaintext() {
    in_own_network("wire::a_capture_would_see_plaintext", |hub| async move {
        let (server, client) = (hub.bare(3).await, hub.bare(2).await);
        let _application = server.start(Act::Echo(vec![server.v4(5432)])).await;
        let capture = Capture::start();
        assert_eq!(client.act(Act::Call(server.v4(5432), SECRET.to_owned())).await, Fared::Answered);
        assert!(capture.end(SECRET.as_bytes()) >= 2);
    });
}

#[test]
fn what_is_not_declared_is_refused_and_not_a_byte_of_it_leaves_the_pod() {
    in_own_network("wire::what_is_not_declared_is_refused_and_not_a_byte_of_it_leaves_the_pod", |hub| async move {
        let client = hub.pod(2, "client", &[], "").await;
        let outside = [HUB, HUB6].map(|address| (address.parse::<std::net::IpAddr>().unwrap(), 8080).into());
        let application = hub.start(Act::Echo(outside.to_vec())).await;
        let capture = Capture::start();
        for address in outside {
            assert_eq!(client.act(Act::Call(address, SECRET.to_owned())).await, Fared::Reset);
        }
        client.refused("outbound", "DestinationNotDeclared").await;
        assert_eq!(capture.end(SECRET.as_bytes()), 0);
        assert_eq!(application.told::<u32>(), 0);
    });
}

#[test]
fn a_killed_proxy_means_refused_and_never_plaintext() {
    in_own_network("wire::a_killed_proxy_means_refused_and_never_plaintext", |hub| async move {
        let mut server = hub.pod(3, "server", &[(5432, Mode::MutualTls)], "").await;
        let mut client = hub.pod(2, "client", &[], "").await;
        client.knows(&server, "server", 5432, Mode::MutualTls);
        let application = server.start(Act::Echo(vec![server.v4(5432)])).await;
        eventually("a call", || async {
            let fared = client.act(Act::Call(server.v4(5432), SECRET.to_owned())).await;
            (fared == Fared::Answered).then_some(())
        })
        .await;
        let capture = Capture::start();
        let mut held = client.start(Act::Hold(server.v4(5432), SECRET.to_owned())).await;
        client.kill_sidecar().await;
        held.child.wait().await.unwrap();
        assert_eq!(held.told::<Fared>(), Fared::Reset);
        assert_eq!(client.act(Act::Call(server.v4(5432), SECRET.to_owned())).await, Fared::Refused);

        // Restarted, it goes on under its kept key; then the server's proxy dies, and nobody gets past its rules.
        client.start_sidecar().await;
        eventually("a call after the restart", || async {
            let fared = client.act(Act::Call(server.v4(5432), SECRET.to_owned())).await;
            (fared == Fared::Answered).then_some(())
        })
        .await;
        assert_eq!(hub.control.look(|world| world.pods[&client.name].certificates), 1);
        let before = application.told::<u32>();
        server.kill_sidecar().await;
        assert_eq!(client.act(Act::Call(server.v4(5432), SECRET.to_owned())).await, Fared::Reset);
        assert_eq!(capture.end(SECRET.as_bytes()), 0);
        // The hub's own attempt is plaintext by intent; it must not arrive.
        assert_eq!(hub.act(Act::Call(server.v4(5432), SECRET.to_owned())).await, Fared::Refused);
        assert_eq!(application.told::<u32>(), before);
    });
}

#[test]
fn a_removed_edge_is_cut_on_the_wire_and_a_terminated_proxy_ends_with_zero() {
    in_own_network("wire::a_removed_edge_is_cut_on_the_wire_and_a_terminated_proxy_ends_with_zero", |hub| async move {
        let server = hub.pod(3, "server", &[(5432, Mode::MutualTls)], "").await;
        let mut client = hub.pod(2, "client", &[], "").await;
        client.knows(&server, "server", 5432, Mode::MutualTls);
        let _application = server.start(Act::Echo(vec![server.v4(5432)])).await;
        let mut held = client.start(Act::Hold(server.v4(5432), SECRET.to_owned())).await;
        hub.control.change_brief(&server.name, |brief| brief.ports[0].allow.all_declared = false);
        held.child.wait().await.unwrap();
        assert_eq!(held.told::<Fared>(), Fared::Reset);
        server.refused("inbound", "NotInTopology").await;
        hub.control.change_brief(&server.name, |brief| brief.ports[0].allow = everyone());
        eventually("a call again", || async {
            let fared = client.act(Act::Call(server.v4(5432), SECRET.to_owned())).await;
            (fared == Fared::Answered).then_some(())
        })
        .await;
        assert_eq!(client.end_sidecar().await.code(), Some(0));
    });
}

#[test]
fn a_revoked_certificate_is_cut_on_the_wire_in_both_families_and_no_other_connection_is() {
    in_own_network(
        "wire::a_revoked_certificate_is_cut_on_the_wire_in_both_families_and_no_other_connection_is",
        |hub| async move {
            let server = hub.pod(3, "server", &[(5432, Mode::MutualTls)], "").await;
            let (revoked, other) = (hub.pod(2, "client", &[], "").await, hub.pod(4, "other", &[], "").await);
            let _application = server.start(Act::Echo(vec![server.v4(5432), server.v6(5432)])).await;
            for client in [&revoked, &other] {
                client.knows(&server, "server", 5432, Mode::MutualTls);
                eventually("a call", || async {
                    let fared = client.act(Act::Call(server.v4(5432), SECRET.to_owned())).await;
                    (fared == Fared::Answered).then_some(())
                })
                .await;
            }
            let hold = |address| Act::Hold(address, SECRET.to_owned());
            let mut ends = [revoked.start(hold(server.v4(5432))).await, revoked.start(hold(server.v6(5432))).await];
            let mut stays = other.start(hold(server.v4(5432))).await;
            hub.control.revoke(&server.name, &hub.control.serial(&revoked.name));
            for end in &mut ends {
                end.child.wait().await.unwrap();
                assert_eq!(end.told::<Fared>(), Fared::Reset);
            }
            server.refused("inbound", "Revoked").await;
            assert_eq!(revoked.act(Act::Call(server.v4(5432), SECRET.to_owned())).await, Fared::Reset);
            assert_eq!(other.act(Act::Call(server.v4(5432), SECRET.to_owned())).await, Fared::Answered);
            assert!(stays.child.try_wait().unwrap().is_none(), "the other one goes on");
        },
    );
}

#[test]
fn a_re_proof_passes_the_rules_and_reaches_no_application() {
    in_own_network("wire::a_re_proof_passes_the_rules_and_reaches_no_application", |hub| async move {
        let server = hub.pod(3, "server", &[(5432, Mode::MutualTls)], "").await;
        let client = hub.pod(2, "client", &[], "").await;
        client.knows(&server, "server", 5432, Mode::MutualTls);
        let application = server.start(Act::Echo(vec![server.v4(5432)])).await;
        for pod in [&server, &client] {
            hub.control.change(|world| world.pods.get_mut(&pod.name).unwrap().lifetime = SHORT);
            // Another name brings another certificate.
            let added = DnsName::parse("short.contoso.example").unwrap();
            hub.control.change_brief(&pod.name, |brief| brief.names.push(added));
            eventually("a short certificate", || async {
                let pod = hub.control.look(|world| world.pods[&pod.name].clone());
                (pod.serials.len() > 1 && pod.serials.last() == Some(&pod.holds)).then_some(())
            })
            .await;
        }
        let mut held = client.start(Act::Hold(server.v4(5432), SECRET.to_owned())).await;
        let proved = "entente_reproofs_total{direction=\"inbound\",outcome=\"reproved\"}";
        eventually("a re-proof", || async { server.fetch("/metrics").await?.contains(proved).then_some(()) }).await;
        assert!(held.child.try_wait().unwrap().is_none(), "it goes on");
        assert_eq!(application.told::<u32>(), 1);
    });
}
