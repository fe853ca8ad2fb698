//! Ways round the proxy: none reaches a MutualTLS port without an identity, and what is no TCP does not leave.

use std::net::SocketAddr;

use entente::{
    brief::Mode,
    sidecar::{ADMIN_PORT, HEALTH_PORT, INBOUND_PORT, OUTBOUND_PORT, UID},
};

use super::{
    capture::Capture,
    pods::{HUB, HUB6, in_own_network},
    roles::{Act, Fared},
};

const SECRET: &str = "THE-SECRET-OF-CONTOSO";

fn hub(port: u16) -> [SocketAddr; 2] {
    [HUB, HUB6].map(|address| (address.parse::<std::net::IpAddr>().unwrap(), port).into())
}

fn call(address: SocketAddr) -> Act {
    Act::Call(address, SECRET.to_owned())
}

#[test]
fn plaintext_from_outside_reaches_no_port_of_the_pod() {
    in_own_network("bypass::plaintext_from_outside_reaches_no_port_of_the_pod", |hub| async move {
        let server = hub.pod(3, "server", &[(5432, Mode::MutualTls), (8080, Mode::Plaintext)], "").await;
        let all = [5432, 8080, 9999].map(|port| server.v4(port));
        let application =
            server.start(Act::Echo([all.to_vec(), vec![server.v6(5432), server.v6(9999)]].concat())).await;
        let loopback = server.start(Act::Echo(vec!["127.0.0.1:7000".parse().unwrap()])).await;
        for address in [server.v4(5432), server.v6(5432), server.v4(9999), server.v6(9999)] {
            assert_eq!(hub.act(call(address)).await, Fared::Reset, "{address}");
        }
        // Neither the proxy's own ports nor what listens on loopback only.
        for port in [ADMIN_PORT, OUTBOUND_PORT, INBOUND_PORT, 7000] {
            for address in [server.v4(port), server.v6(port)] {
                assert_eq!(hub.act(call(address)).await, Fared::Reset, "{address}");
            }
        }
        assert_eq!(application.told::<u32>(), 0);
        assert_eq!(loopback.told::<u32>(), 0);
        for reason in ["NotTls", "PortNotAllowed", "ForbiddenDestination"] {
            server.refused("inbound", reason).await;
        }
        // Declared plaintext is plaintext.
        assert_eq!(hub.act(call(server.v4(8080))).await, Fared::Answered);
        assert!(server.fetch("/live").await.unwrap().contains(" 200 "), "{HEALTH_PORT} answers");
    });
}

#[test]
fn an_application_with_half_of_the_proxys_ids_is_redirected_and_one_with_both_meets_a_port_that_wants_tls() {
    let name = "bypass::an_application_with_half_of_the_proxys_ids_is_redirected_and_one_with_both_meets_a_port_that_wants_tls";
    in_own_network(name, |hub| async move {
        let server = hub.pod(3, "server", &[(5432, Mode::MutualTls)], "").await;
        let client = hub.pod(2, "client", &[], "").await;
        let application = server.start(Act::Echo(vec![server.v4(5432), server.v6(5432)])).await;
        let capture = Capture::start();
        for user in [(UID, 0), (0, UID), (1000, 1000)] {
            assert_eq!(client.act_as(user, call(server.v4(5432))).await, Fared::Reset, "{user:?}");
        }
        client.refused("outbound", "DestinationNotDeclared").await;
        assert_eq!(capture.end(SECRET.as_bytes()), 0);
        // Admission refuses this user; should it be there all the same, the receiver refuses it.
        for address in [server.v4(5432), server.v6(5432)] {
            assert_eq!(client.act_as((UID, UID), call(address)).await, Fared::Reset);
        }
        server.refused("inbound", "NotTls").await;
        assert_eq!(application.told::<u32>(), 0);
    });
}

#[test]
fn an_application_reaches_nothing_by_dialling_the_proxy_itself() {
    in_own_network("bypass::an_application_reaches_nothing_by_dialling_the_proxy_itself", |hub| async move {
        let pod = hub.pod(3, "server", &[(5432, Mode::MutualTls)], "").await;
        for port in [OUTBOUND_PORT, INBOUND_PORT] {
            for loopback in ["127.0.0.1", "::1"] {
                let address = SocketAddr::new(loopback.parse().unwrap(), port);
                assert_eq!(pod.act(call(address)).await, Fared::Reset, "{address}");
            }
        }
        assert_eq!(pod.act(call(pod.v4(INBOUND_PORT))).await, Fared::Reset);
        assert_eq!(pod.act(call(pod.v4(OUTBOUND_PORT))).await, Fared::Refused, "loopback only");
        pod.refused("outbound", "ForbiddenDestination").await;
        pod.refused("inbound", "ForbiddenDestination").await;
    });
}

#[test]
fn udp_leaves_and_enters_only_as_dns_and_on_declared_ports() {
    in_own_network("bypass::udp_leaves_and_enters_only_as_dns_and_on_declared_ports", |net| async move {
        let pod = net.pod(3, "server", &[], "5060").await;
        let say = |from, to| Act::Datagram(from, to, SECRET.to_owned());
        let mut outside = vec![];
        for address in [hub(53), hub(9000)].concat() {
            outside.push(net.start(Act::EchoDatagrams(address)).await);
        }
        let _inside = pod.start(Act::EchoDatagrams(pod.v4(5060))).await;
        let _hidden = pod.start(Act::EchoDatagrams(pod.v4(9000))).await;
        let capture = Capture::start();
        for address in hub(9000) {
            assert_ne!(pod.act(say(0, address)).await, Fared::Answered, "{address}");
        }
        // What is no question goes nowhere from the guard.
        for address in hub(53) {
            assert_ne!(pod.act(say(0, address)).await, Fared::Answered, "DNS at {address}");
        }
        assert_eq!(capture.end(SECRET.as_bytes()), 0);
        assert_ne!(net.act(say(0, pod.v4(9000))).await, Fared::Answered, "an undeclared port of the pod");
        assert_eq!(net.act(say(0, pod.v4(5060))).await, Fared::Answered, "a declared port");
        assert_ne!(pod.act(say(5061, hub(9000)[0])).await, Fared::Answered);
    });
}

#[test]
fn rules_load_twice_and_not_without_the_right_to() {
    in_own_network("bypass::rules_load_twice_and_not_without_the_right_to", |net| async move {
        let pod = net.bare(4).await;
        pod.intercept("").await;
        pod.intercept("5060,5061").await;
        let _outside = net.start(Act::Echo(hub(8080).to_vec())).await;
        for address in hub(8080) {
            assert_eq!(pod.act(call(address)).await, Fared::Refused, "rules without a proxy refuse");
        }
        assert!(!pod.intercepts_as(1000).await);
    });
}

#[test]
fn a_pod_that_gets_ipv6_after_its_rules_sends_nothing_over_it() {
    in_own_network("bypass::a_pod_that_gets_ipv6_after_its_rules_sends_nothing_over_it", |net| async move {
        let pod = net.without_ipv6(4).await;
        pod.intercept("").await;
        pod.add_ipv6().await;
        let application = net.start(Act::Echo(hub(8080).to_vec())).await;
        let capture = Capture::start();
        for address in hub(8080) {
            assert_ne!(pod.act(call(address)).await, Fared::Answered, "{address}");
        }
        assert_eq!(capture.end(SECRET.as_bytes()), 0);
        assert_eq!(application.told::<u32>(), 0);
    });
}

#[test]
fn no_other_protocol_leaves_the_pod() {
    in_own_network("bypass::no_other_protocol_leaves_the_pod", |net| async move {
        /// ICMP, ICMPv6 (nothing like neighbour discovery), SCTP, an unassigned one.
        const PROTOCOLS: [(i32, usize); 6] = [(1, 0), (58, 1), (132, 0), (132, 1), (200, 0), (200, 1)];
        let (bare, pod) = (net.bare(2).await, net.pod(3, "server", &[], "").await);
        let packet = |protocol, family: usize| Act::Packet(protocol, hub(0)[family], SECRET.to_owned());
        let capture = Capture::start();
        for (protocol, family) in PROTOCOLS {
            pod.act(packet(protocol, family)).await;
        }
        assert_eq!(capture.end(SECRET.as_bytes()), 0);
        let capture = Capture::start();
        for (protocol, family) in PROTOCOLS {
            bare.act(packet(protocol, family)).await;
        }
        assert!(capture.end(SECRET.as_bytes()) >= PROTOCOLS.len(), "a pod without rules sends them all");
    });
}
