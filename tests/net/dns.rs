//! The DNS guard behind the real rules: what an application is told of names, and what it can do about it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use domain::base::Rtype;
use entente::{
    brief::{EgressHost, Mode},
    identity::DnsName,
    sidecar::DNS_PORT,
};

use super::{
    capture::Capture,
    pods::{HUB, HUB6, Hub, Pod, in_own_network},
    roles::{Act, Fared},
    support::{
        dns::{Ask, Resolver, Told},
        eventually,
    },
};

const SECRET: &str = "THE-SECRET-OF-CONTOSO";
const DB: &str = "db.contoso.example";
const WWW: &str = "www.example";
const PORT: u16 = 5432;

fn hub(port: u16) -> [SocketAddr; 2] {
    [HUB, HUB6].map(|address| (address.parse::<IpAddr>().unwrap(), port).into())
}

async fn resolver() -> Resolver {
    Resolver::start(&hub(53)).await
}

async fn ask(pod: &Pod<'_>, ask: Ask) -> Told {
    pod.start(Act::Ask(ask)).await.told()
}

async fn look_up(pod: &Pod<'_>, name: &str) -> BTreeSet<IpAddr> {
    pod.start(Act::LookUp(name.to_owned())).await.told()
}

/// A server, and a client that knows it as `DB`.
async fn pair(net: &Hub) -> (Pod<'_>, Pod<'_>) {
    let server = net.pod(3, "server", &[(PORT, Mode::MutualTls)], "").await;
    let client = net.pod(2, "client", &[], "").await;
    client.knows(&server, "server", PORT, Mode::MutualTls);
    for address in [server.v4(0), server.v6(0)] {
        net.control.named(&client.name, address.ip(), &[DB]);
    }
    (server, client)
}

fn call(address: SocketAddr) -> Act {
    Act::Call(address, SECRET.to_owned())
}

fn call_by_name(name: &str) -> Act {
    Act::CallByName(name.to_owned(), PORT, SECRET.to_owned())
}

#[test]
fn resolvers_answer_through_the_guard_in_both_families_and_protocols_and_no_other_one_is_reached() {
    let name = "dns::resolvers_answer_through_the_guard_in_both_families_and_protocols_and_no_other_one_is_reached";
    in_own_network(name, |net| async move {
        let resolver = resolver().await;
        let foreign: [IpAddr; 2] = ["203.0.113.9".parse().unwrap(), "2001:db8::9".parse().unwrap()];
        resolver.tell(WWW, &foreign);
        let mut pod = net.pod(2, "client", &[], "").await;
        for server in hub(53) {
            for question in [Ask::new(server, WWW), Ask::new(server, WWW).over_tcp()] {
                // The client hears what comes from the address that it asked, and nothing else.
                let told = ask(&pod, question.clone()).await;
                assert_eq!((told.rcode, &told.addresses[..]), (Some(0), &foreign[..1]), "{question:?}");
                let told = ask(&pod, question.clone().kind(Rtype::AAAA)).await;
                assert_eq!(told.addresses, foreign[1..], "{question:?}");
            }
        }
        assert_eq!(look_up(&pod, WWW).await, BTreeSet::from(foreign), "as unmodified software asks");
        // Nor is there a way past the guard where conntrack still knows a question of its own.
        let port = resolver.change(|script| *script.ports.last().unwrap());
        let capture = Capture::start();
        for server in hub(53) {
            assert_ne!(pod.act(Act::Datagram(port, server, SECRET.to_owned())).await, Fared::Answered);
        }
        assert_eq!(capture.end(SECRET.as_bytes()), 0);
        // Whoever it is, another resolver is none.
        let other = net.bare(9).await;
        let mut others = vec![];
        for address in [other.v4(53), other.v6(53)] {
            others.push(other.start(Act::EchoDatagrams(address)).await);
            others.push(other.start(Act::Echo(vec![address])).await);
        }
        let capture = Capture::start();
        for address in [other.v4(53), other.v6(53)] {
            let say = Act::Datagram(0, address, SECRET.to_owned());
            assert_ne!(pod.act(say).await, Fared::Answered, "{address}");
            assert_eq!(pod.act(call(address)).await, Fared::Reset, "as any TCP");
        }
        // Nor is the guard one for the world outside.
        for address in [pod.v4(DNS_PORT), pod.v6(DNS_PORT)] {
            let outside = net.start(Act::Ask(Ask::new(address, WWW))).await;
            assert_eq!(outside.told::<Told>(), Told::default(), "{address}");
        }
        assert_eq!(capture.end(SECRET.as_bytes()), 0);
        pod.refused("outbound", "DestinationNotDeclared").await;
        // Without a sidecar nobody is asked.
        pod.kill_sidecar().await;
        let before = resolver.change(|script| script.asked.len());
        for server in hub(53) {
            assert_eq!(ask(&pod, Ask::new(server, WWW)).await, Told::default(), "{server}");
        }
        assert_eq!(resolver.change(|script| script.asked.len()), before);
    });
}

#[test]
fn a_hijacked_name_leads_nowhere_and_no_byte_of_payload_leaves() {
    in_own_network("dns::a_hijacked_name_leads_nowhere_and_no_byte_of_payload_leaves", |net| async move {
        let resolver = resolver().await;
        let (server, client) = pair(&net).await;
        let other = net.pod(4, "other", &[(PORT, Mode::MutualTls)], "").await;
        client.knows(&other, "other", PORT, Mode::MutualTls);
        let own = [server.v4(PORT), server.v6(PORT)];
        let _application = server.start(Act::Echo(own.to_vec())).await;
        let _other = other.start(Act::Echo(vec![other.v4(PORT), other.v6(PORT)])).await;
        let thief = net.start(Act::Echo(hub(PORT).to_vec())).await;
        let ips = |addresses: &[SocketAddr]| addresses.iter().map(SocketAddr::ip).collect::<Vec<_>>();
        let capture = Capture::start();
        resolver.tell(DB, &ips(&own));
        eventually("called by its name", || async {
            (client.act(call_by_name(DB)).await == Fared::Answered).then_some(())
        })
        .await;
        let hijacks = [ips(&hub(PORT)), ips(&[other.v4(0), other.v6(0)]), [ips(&own), ips(&hub(PORT))].concat()];
        for addresses in hijacks {
            resolver.tell(DB, &addresses);
            assert_eq!(look_up(&client, DB).await, BTreeSet::new(), "{addresses:?}");
            assert_eq!(ask(&client, Ask::new(hub(53)[0], DB)).await.rcode, Some(2), "{addresses:?}");
            assert_eq!(client.act(call_by_name(DB)).await, Fared::Refused, "{addresses:?}");
        }
        client.refused("outbound", "DnsMismatch").await;
        assert!(client.log().contains("DnsMismatch"), "it has a record");
        // Who does not ask gains nothing.
        for address in hub(PORT) {
            assert_eq!(client.act(call(address)).await, Fared::Reset, "{address}");
        }
        client.refused("outbound", "DestinationNotDeclared").await;
        assert_eq!(thief.told::<u32>(), 0);
        assert_eq!(capture.end(SECRET.as_bytes()), 0);
    });
}

#[test]
fn a_virtual_address_leads_to_the_sidecar_and_no_packet_to_it_leaves() {
    in_own_network("dns::a_virtual_address_leads_to_the_sidecar_and_no_packet_to_it_leaves", |net| async move {
        let resolver = resolver().await;
        let client = net.pod(2, "client", &[], "").await;
        let host = DnsName::parse("sip.fabrikam.example").unwrap();
        resolver.tell(host.as_str(), &[HUB.parse().unwrap()]);
        net.control.change_brief(&client.name, |brief| {
            brief.egress.hosts.push(EgressHost { host: host.clone(), ports: vec![443] });
        });
        let IpAddr::V4(address) = eventually("a virtual address", || async {
            let found = look_up(&client, host.as_str()).await.pop_first()?;
            (found != HUB.parse::<IpAddr>().unwrap()).then_some(found)
        })
        .await
        else {
            panic!("a pod with IPv4 is told IPv4")
        };
        assert_eq!(address.octets()[..2], [240, 61]);
        let [a, b, c, d] = address.octets();
        let v6: SocketAddr = format!("[100::{a:02x}{b:02x}:{c:02x}{d:02x}]:444").parse().unwrap();
        // Not a port that may be called: whatever else comes of a call, the sidecar refuses this one.
        let capture = Capture::start();
        for address in [SocketAddr::new(address.into(), 444), v6] {
            assert_eq!(client.act(call(address)).await, Fared::Reset, "{address}");
        }
        assert_eq!(capture.end(&address.octets()), 0);
    });
}
