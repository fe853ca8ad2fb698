use std::sync::Arc;

use domain::base::{Message, MessageBuilder};
use proptest::prelude::*;
use tokio::net::UdpSocket;

use super::{
    wire::{Answer, Unreadable},
    *,
};

fn name(text: &str) -> DnsName {
    DnsName::parse(text).unwrap()
}

/// A question as an application spells it.
fn question(spelt: &str, kind: Rtype, edns: Option<u16>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(7);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((spelt.parse::<domain::base::Name<Vec<u8>>>().unwrap(), kind)).unwrap();
    let mut builder = builder.additional();
    if let Some(size) = edns {
        builder
            .opt(|opt| {
                opt.set_udp_payload_size(size);
                Ok(())
            })
            .unwrap();
    }
    builder.finish()
}

fn answer(query: &Query, addresses: &[&str]) -> Vec<u8> {
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    query.reply(Rcode::NOERROR, &addresses).unwrap()
}

#[test]
fn a_name_is_the_same_in_every_spelling_and_a_dot_inside_a_label_is_no_border() {
    for spelt in ["db.contoso.example", "DB.Contoso.Example.", "dB.cOnToSo.eXaMpLe"] {
        let query = Query::parse(&question(spelt, Rtype::A, None)).unwrap();
        assert_eq!(query.name(), Some(name("db.contoso.example")), "{spelt}");
    }
    for spelt in ["db\\.contoso.example", "_sip._tcp.contoso.example", ".", "d\\098\\000.example"] {
        assert_eq!(Query::parse(&question(spelt, Rtype::A, None)).unwrap().name(), None, "{spelt}");
    }
    let query = Query::parse(&question("_8443._https.db.contoso.example", Rtype::HTTPS, None)).unwrap();
    assert_eq!(query.service_name(), Some(name("db.contoso.example")));
}

#[test]
fn what_is_no_single_question_is_answered_with_its_error_or_not_at_all() {
    let good = question("db.contoso.example", Rtype::A, Some(1232));
    assert!(Query::parse(&good).is_ok());
    assert_eq!(Query::parse(&good[..11]).unwrap_err(), Unreadable::Nothing);
    let changed = |at: usize, to: u8| {
        let mut message = good.clone();
        message[at] = to;
        match Query::parse(&message) {
            Err(Unreadable::Answer(answer)) => {
                let answer = Message::from_octets(answer).unwrap();
                assert_eq!((answer.header().id(), answer.header().qr()), (7, true));
                Some(answer.header().rcode())
            }
            Err(Unreadable::Nothing) => None,
            Ok(query) => panic!("{query:?}"),
        }
    };
    assert_eq!(changed(2, 0x80), None, "an answer");
    assert_eq!(changed(2, 0x28), Some(Rcode::NOTIMP), "an update");
    assert_eq!(changed(5, 0), Some(Rcode::FORMERR), "no question");
    assert_eq!(changed(5, 2), Some(Rcode::FORMERR), "two questions");
    assert_eq!(changed(11, 2), Some(Rcode::FORMERR), "a record that is not there");
    assert_eq!(changed(12, 0xff), Some(Rcode::FORMERR), "a label that points nowhere");
    for length in 12..good.len() {
        assert!(Query::parse(&good[..length]).is_err(), "{length}");
    }
}

#[test]
fn only_the_answer_to_this_question_under_this_number_is_one() {
    let query = Query::parse(&question("db.contoso.example", Rtype::A, None)).unwrap();
    let accepts = |answer: Vec<u8>| Answer::parse(answer, &query, 7).is_some();
    let good = answer(&query, &["10.0.0.1"]);
    assert!(accepts(good.clone()));
    assert!(accepts(answer(&Query::parse(&question("DB.contoso.example", Rtype::A, None)).unwrap(), &[])));
    for (at, to) in [(1, 8), (2, 0), (5, 0), (12, 3), (good.len() - 5, 5)] {
        let mut wrong = good.clone();
        wrong[at] = to;
        assert!(!accepts(wrong), "{at}");
    }
    for other in [("web.contoso.example", Rtype::A), ("db.contoso.example", Rtype::AAAA)] {
        let other = Query::parse(&question(other.0, other.1, None)).unwrap();
        assert!(!accepts(answer(&other, &["10.0.0.1"])));
    }
    assert!(!accepts(good[..good.len() - 1].to_vec()));
}

#[test]
fn what_is_passed_on_has_no_additional_section_and_the_applications_own_number_and_spelling() {
    let asked = Query::parse(&question("dB.contoso.example", Rtype::A, Some(1232))).unwrap();
    let sent = asked.compose(99).unwrap();
    let upstream = Query::parse(&sent).unwrap();
    let mut told = answer(&upstream, &["10.0.0.1"]);
    told[12..15].copy_from_slice(b"\x02Db");
    let told = Answer::parse(told, &asked, 99).unwrap();
    let passed = asked.relay(&told).unwrap();
    assert_eq!(&passed[..2], &[0, 7]);
    assert_eq!(&passed[12..15], b"\x02dB");
    let message = Message::from_octets(passed).unwrap();
    let counts = message.header_counts();
    assert_eq!((counts.ancount(), counts.arcount()), (1, 1));
    assert_eq!(message.opt().unwrap().udp_payload_size(), 1232);
    let plain = Query::parse(&question("db.contoso.example", Rtype::A, None)).unwrap();
    assert_eq!(Message::from_octets(plain.relay(&told).unwrap()).unwrap().header_counts().arcount(), 0);
}

#[test]
fn what_does_not_fit_says_so_and_is_short() {
    let many: Vec<String> = (0..100).map(|number| format!("10.0.0.{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (edns, fits) in
        [(None, false), (Some(100), false), (Some(1232), false), (Some(4000), true), (Some(65_000), true)]
    {
        let query = Query::parse(&question("db.contoso.example", Rtype::A, edns)).unwrap();
        let whole = answer(&query, &many);
        let sent = query.datagram(whole.clone()).unwrap();
        assert_eq!(sent == whole, fits, "{edns:?}");
        assert_eq!(Message::from_octets(sent).unwrap().header().tc(), !fits, "{edns:?}");
    }
}

/// A resolver that tells these addresses of every name, one behind the other.
async fn resolver(addresses: &'static [&'static str]) -> SocketAddr {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let query = Query::parse(&buffer[..length]).unwrap();
            let family = |address: &&&str| (query.kind() == Rtype::A) != address.contains(':');
            let fitting: Vec<&str> = addresses.iter().filter(family).copied().collect();
            let _ = socket.send_to(&answer(&query, &fitting), from).await;
        }
    });
    address
}

#[tokio::test]
async fn a_name_is_looked_up_in_the_families_of_the_pod_and_never_leads_to_the_pod_itself() {
    let own = |addresses: &[&str]| addresses.iter().map(|one| one.parse().unwrap()).collect::<Vec<IpAddr>>();
    let looked_up = |told, pod: Vec<IpAddr>| async move {
        Guard::new(&[resolver(told).await], &[], &pod).look_up(&name("fabrikam.example")).await
    };
    let both: &[&str] = &["192.0.2.1", "2001:db8::1", "127.0.0.1", "240.61.0.1", "::", "224.0.0.1"];
    assert_eq!(looked_up(both, own(&["10.0.0.1", "fd00::1"])).await, Ok(own(&["192.0.2.1", "2001:db8::1"])));
    assert_eq!(looked_up(both, own(&["10.0.0.1"])).await, Ok(own(&["192.0.2.1"])));
    assert_eq!(looked_up(both, own(&["fd00::1"])).await, Ok(own(&["2001:db8::1"])));
    assert_eq!(looked_up(&["127.0.0.1", "::1"], own(&[])).await, Err(Refusal::DnsMismatch));
    assert_eq!(looked_up(&[], own(&[])).await, Err(Refusal::DialFailed));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_bytes_come_nothing_panics_and_what_is_passed_on_can_be_read(
        noise in prop::collection::vec(any::<u8>(), 0..300),
        changes in prop::collection::vec((0usize..200, any::<u8>()), 0..6),
        cut in 0usize..200,
    ) {
        let asked = Query::parse(&question("db.contoso.example", Rtype::A, Some(1232))).unwrap();
        let mut near = answer(&asked, &["10.0.0.1", "192.0.2.1", "2001:db8::1"]);
        for (at, to) in changes {
            let at = at % near.len();
            near[at] = to;
        }
        near.truncate(near.len() - cut % near.len());
        for bytes in [noise, near] {
            let _ = Query::parse(&bytes);
            if let Some(told) = Answer::parse(bytes, &asked, 7)
                && !told.is_truncated()
            {
                let passed = asked.relay(&told).unwrap();
                let again = Answer::parse(passed, &asked, 7).unwrap();
                prop_assert_eq!(told.addresses(), again.addresses());
            }
        }
    }
}

#[tokio::test]
async fn a_host_of_our_own_is_found_as_resolv_conf_completes_it_and_asked_for_from_no_port_of_the_applications() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let resolver = socket.local_addr().unwrap();
    let (tell, mut ports) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let query = Query::parse(&buffer[..length]).unwrap();
            let known = query.name().is_some_and(|name| name.as_str() == "entente.system.svc.cluster.local");
            let told: &[&str] = if known && query.kind() == Rtype::A { &["10.96.0.7"] } else { &[] };
            tell.send(from.port()).unwrap();
            let _ = socket.send_to(&answer(&query, told), from).await;
        }
    });
    let search = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"].map(name);
    let guard = Guard::new(&[resolver], &search, &["10.0.0.1".parse().unwrap()]);
    assert_eq!(guard.find("entente.system.svc").await, ["10.96.0.7".parse::<IpAddr>().unwrap()]);
    while let Ok(port) = ports.try_recv() {
        assert!(port >= 61_000, "{port}");
    }
    assert_eq!(guard.find("10.96.0.9").await, ["10.96.0.9".parse::<IpAddr>().unwrap()]);
}
