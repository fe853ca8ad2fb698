//! The DNS guard on loopback: between an application and a resolver that tells what the test wants.

use std::net::{IpAddr, SocketAddr};

use domain::base::Rtype;
use entente::{
    brief::{EgressHost, Mode},
    identity::DnsName,
};
use tokio::net::{TcpStream, UdpSocket};

use super::harness::{Plan, Sidecar, address, control};
use crate::support::{
    dns::{Ask, Resolver, Told, Zone, exchange, query, read},
    eventually,
    partner::{Authority, add, edge},
};

const DB: &str = "db.contoso.example";
const WEB: &str = "web.contoso.example";
const WWW: &str = "www.example";
const OURS: &str = "192.0.2.1";
const THEIRS: &str = "192.0.2.2";
const FOREIGN: &str = "203.0.113.9";
const V6: &str = "2001:db8::1";

const NOERROR: Option<u8> = Some(0);
const SERVFAIL: Option<u8> = Some(2);
const NXDOMAIN: Option<u8> = Some(3);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A pod whose routes lead `DB` to the server `db`, in both families, and `WEB` to the server `web`.
async fn pod(resolvers: &[SocketAddr]) -> Sidecar {
    let control = control().await;
    let ip_of_pod = address();
    let mut plan = Plan::new(&control, "client", ip_of_pod).resolvers(resolvers);
    for (at, server) in [(OURS, "db"), (V6, "db"), (THEIRS, "web")] {
        plan = plan.calls(SocketAddr::new(ip(at), 5432), &control.domain.id(server), Mode::MutualTls);
    }
    let sidecar = plan
        .brief(|brief| {
            add(brief, Authority::new("fabrikam").scope("fabrikam", "fabrikam.example"));
            brief.partners[0].edges = vec![edge("sip.fabrikam.example", 443)];
            let host = DnsName::parse("api.extra.example").unwrap();
            brief.egress.hosts.push(EgressHost { host, ports: vec![443] });
        })
        .start()
        .await;
    let uid = &sidecar.home.uid;
    for at in [OURS, V6] {
        control.named(uid, ip(at), &[DB]);
    }
    control.named(uid, ip(THEIRS), &[WEB]);
    sidecar
}

async fn ask(pod: &Sidecar, name: &str) -> Told {
    Ask::new(pod.dns.unwrap(), name).play().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fits_is_passed_on_over_udp_and_tcp_and_what_does_not_is_servfail_and_counted() {
    let resolver = Resolver::start(&[loopback()]).await;
    let pod = pod(&[resolver.address]).await;
    resolver.tell(DB, &[ip(OURS), ip(V6)]);
    resolver.tell(WWW, &[ip(FOREIGN)]);
    eventually("the names of the routes", || async {
        resolver.tell(WEB, &[ip(FOREIGN)]);
        (ask(&pod, WEB).await.rcode == SERVFAIL).then_some(())
    })
    .await;
    let before = pod.reasons().await["DnsMismatch"];
    let server = pod.dns.unwrap();
    for ask in [Ask::new(server, DB), Ask::new(server, DB).over_tcp()] {
        let told = ask.play().await;
        assert_eq!((told.rcode, told.addresses), (NOERROR, vec![ip(OURS)]), "{ask:?}");
        let told = ask.clone().kind(Rtype::AAAA).play().await;
        assert_eq!((told.rcode, told.addresses), (NOERROR, vec![ip(V6)]), "{ask:?}");
    }
    assert_eq!(ask(&pod, "dB.Contoso.Example.").await.question, "dB.Contoso.Example");
    assert_eq!(ask(&pod, WWW).await.addresses, [ip(FOREIGN)], "undeclared names are nobody's business");
    assert_eq!(ask(&pod, "nobody.example").await.rcode, NXDOMAIN);
    // Somebody else's address, also that of another declared server, also one among good ones, also behind an alias.
    for (count, addresses) in [vec![FOREIGN], vec![THEIRS], vec![OURS, FOREIGN]].into_iter().enumerate() {
        let addresses: Vec<IpAddr> = addresses.into_iter().map(ip).collect();
        resolver.tell(DB, &addresses);
        let told = if count == 0 { Ask::new(server, DB).over_tcp().play().await } else { ask(&pod, DB).await };
        assert_eq!((told.rcode, told.records, told.question.as_str()), (SERVFAIL, 0, DB), "{addresses:?}");
    }
    let aliases = vec!["alias.example".to_owned(), WEB.to_owned()];
    let zone = Zone { aliases, addresses: vec![ip(THEIRS)], ..Zone::default() };
    resolver.change(|script| script.zones.insert(DB.to_owned(), zone.clone()));
    assert_eq!(ask(&pod, DB).await.rcode, SERVFAIL);
    resolver.change(|script| script.zones.insert(DB.to_owned(), Zone { addresses: vec![ip(OURS)], ..zone }));
    let told = ask(&pod, DB).await;
    assert_eq!((told.addresses, told.records), (vec![ip(OURS)], 3));
    pod.refused("outbound", "DnsMismatch", before + 4).await;
    let id = pod.home.control.domain.id("db").to_string();
    let peers = pod.home.control.look(|world| world.pods[&pod.home.uid].refusals.clone());
    assert!(peers.iter().any(|told| told.peer == id && told.port == resolver.address.port()), "{peers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn virtual_names_are_answered_by_the_guard_and_nobody_else() {
    let resolver = Resolver::start(&[loopback()]).await;
    let pod = pod(&[resolver.address]).await;
    for name in ["sip.fabrikam.example", "api.extra.example"] {
        resolver.tell(name, &[ip(FOREIGN)]);
        let told = ask(&pod, name).await;
        assert!(matches!(told.addresses[..], [IpAddr::V4(one)] if one.octets()[..2] == [240, 61]), "{told:?}");
        for kind in [Rtype::AAAA, Rtype::HTTPS, Rtype::MX] {
            let told = Ask::new(pod.dns.unwrap(), name).kind(kind).play().await;
            assert_eq!((told.rcode, told.records), (NOERROR, 0), "{kind}");
        }
        assert_eq!(resolver.asked(name), 0);
        // Nobody else leads there.
        resolver.tell(WWW, &told.addresses);
        assert_eq!(ask(&pod, WWW).await.rcode, SERVFAIL);
    }
    let before = ask(&pod, "api.extra.example").await.addresses;
    pod.home.control.change_brief(&pod.home.uid, |brief| brief.egress.hosts.clear());
    eventually("the host is gone", || async {
        (ask(&pod, "api.extra.example").await.addresses == [ip(FOREIGN)]).then_some(())
    })
    .await;
    assert_ne!(before, [ip(FOREIGN)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_and_additional_records_of_names_do_not_reach_the_application() {
    let resolver = Resolver::start(&[loopback()]).await;
    let pod = pod(&[resolver.address]).await;
    let additional = vec![(DB.to_owned(), ip(FOREIGN)), ("sip.fabrikam.example".to_owned(), ip(FOREIGN))];
    let zone = Zone { addresses: vec![ip(FOREIGN)], additional, ..Zone::default() };
    resolver.change(|script| script.zones.insert(WWW.to_owned(), zone));
    let told = ask(&pod, WWW).await;
    assert_eq!((told.addresses, told.additional), (vec![ip(FOREIGN)], 0));
    eventually("the names of the routes", || async {
        let told = Ask::new(pod.dns.unwrap(), DB).kind(Rtype::HTTPS).play().await;
        (told.rcode == NOERROR).then_some(())
    })
    .await;
    let asked = resolver.asked(DB);
    let told = Ask::new(pod.dns.unwrap(), &format!("_5432._https.{DB}")).kind(Rtype::SVCB).play().await;
    assert_eq!((told.rcode, told.records, resolver.asked(DB)), (NOERROR, 0, asked));
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_and_long_answers_and_silent_resolvers_are_dealt_with() {
    let (silent, failing) = (Resolver::start(&[loopback()]).await, Resolver::start(&[loopback()]).await);
    let resolver = Resolver::start(&[loopback()]).await;
    silent.change(|script| script.silent = true);
    failing.change(|script| script.fails = true);
    resolver.change(|script| script.forges = Some(ip(FOREIGN)));
    resolver.tell(WWW, &[ip(OURS)]);
    let pod = pod(&[silent.address, failing.address, resolver.address]).await;
    assert_eq!(ask(&pod, WWW).await.addresses, [ip(OURS)]);
    assert!(silent.asked(WWW) > 0 && failing.asked(WWW) > 0);
    let long = Zone { texts: 20, ..Zone::default() };
    resolver.change(|script| script.zones.insert("long.example".to_owned(), long));
    silent.change(|script| script.fails = true);
    silent.change(|script| script.silent = false);
    let ask = Ask::new(pod.dns.unwrap(), "long.example").kind(Rtype::TXT);
    let told = ask.play().await;
    assert!(told.truncated && told.records == 0, "{told:?}");
    assert_eq!(ask.over_tcp().play().await.records, 20);
    assert!(resolver.change(|script| script.asked.iter().any(|(name, _, tcp)| name == "long.example" && *tcp)));
    let told = Ask::new(pod.dns.unwrap(), "fails.example").play().await;
    assert_eq!(told.rcode, NXDOMAIN, "one of them knows");
    resolver.change(|script| script.fails = true);
    assert_eq!(Ask::new(pod.dns.unwrap(), "fails.example").play().await.rcode, SERVFAIL);
    // What is no question is told so.
    let mut update = query(WWW, Rtype::A, 4711, None);
    update[2] |= 0x28;
    assert_eq!(read(exchange(pod.dns.unwrap(), &update, false).await.unwrap()).rcode, Some(4));
    assert!(pod.reasons().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn on_demand_tables_are_asked_for_a_name_and_without_a_controller_nothing_new_is_believed() {
    let resolver = Resolver::start(&[loopback()]).await;
    let pod = pod(&[resolver.address]).await;
    let (control, uid) = (&pod.home.control, &pod.home.uid);
    control.change(|world| {
        let table = world.pods.get_mut(uid).unwrap();
        table.on_demand = true;
        table.routes_version += 1;
    });
    resolver.tell(DB, &[ip(OURS)]);
    resolver.tell(WWW, &[ip(FOREIGN)]);
    eventually("the name was asked for", || async {
        (ask(&pod, DB).await.addresses == [ip(OURS)]).then_some(())?;
        (ask(&pod, WWW).await.addresses == [ip(FOREIGN)]).then_some(())?;
        control.look(|world| {
            let asked = &world.pods[uid].asked_names;
            asked.iter().any(|name| name.as_str() == WWW).then_some(())
        })
    })
    .await;
    resolver.tell(DB, &[ip(FOREIGN)]);
    assert_eq!(ask(&pod, DB).await.rcode, SERVFAIL);
    control.change(|world| world.denied = Some(("/v1/sync", 503, "Busy")));
    eventually("the controller is gone", || async { control.look(|world| (world.denials > 0).then_some(())) }).await;
    resolver.tell(DB, &[ip(OURS)]);
    resolver.tell("new.example", &[ip(FOREIGN)]);
    assert_eq!(ask(&pod, "new.example").await.rcode, SERVFAIL, "it may be declared");
    assert_eq!(ask(&pod, WWW).await.addresses, [ip(FOREIGN)], "what was told before still holds");
    assert_eq!(ask(&pod, DB).await.addresses, [ip(OURS)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn declared_names_need_no_entry_in_dns() {
    let resolver = Resolver::start(&[loopback()]).await;
    let pod = pod(&[resolver.address]).await;
    let topology = pod.home.control.domain.id("db").topology_name().unwrap();
    pod.home.control.named(&pod.home.uid, ip(OURS), &[DB, topology.as_str()]);
    eventually("the topology name", || async {
        (ask(&pod, topology.as_str()).await.addresses == [ip(OURS)]).then_some(())
    })
    .await;
    let told = Ask::new(pod.dns.unwrap(), topology.as_str()).kind(Rtype::AAAA).play().await;
    assert_eq!((told.rcode, told.records), (NOERROR, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_bounds_the_guard_drops_what_is_new_and_comes_back() {
    let resolver = Resolver::start(&[loopback()]).await;
    let pod = pod(&[resolver.address]).await;
    resolver.tell(WWW, &[ip(FOREIGN)]);
    let server = pod.dns.unwrap();
    let mut crowd = vec![];
    for _ in 0..32 {
        crowd.push(TcpStream::connect(server).await.unwrap());
    }
    assert_eq!(Ask::new(server, WWW).over_tcp().play().await, Told::default());
    drop(crowd);
    eventually("room for a connection", || async {
        (Ask::new(server, WWW).over_tcp().play().await.addresses == [ip(FOREIGN)]).then_some(())
    })
    .await;
    let before = pod.reasons().await["Limit"];
    resolver.change(|script| script.silent = true);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    // The kernel drops what is not read in time, so more is sent until it was too much for the guard itself.
    eventually("what is too much is counted", || async {
        for id in 0..300 {
            socket.send_to(&query(WWW, Rtype::A, id, None), server).await.unwrap();
        }
        (pod.reasons().await["Limit"] > before).then_some(())
    })
    .await;
    resolver.change(|script| script.silent = false);
    eventually("room for a question", || async { (ask(&pod, WWW).await.addresses == [ip(FOREIGN)]).then_some(()) })
        .await;
}
