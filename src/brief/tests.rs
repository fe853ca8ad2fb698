use std::collections::BTreeSet;

use jiff::Timestamp;

use super::*;
use crate::identity::{Identity, PartnerIdentity};

fn id(server: &str) -> SpiffeId {
    SpiffeId::new(&DnsName::parse("contoso.example").unwrap(), "sip", server).unwrap()
}

fn peer(id: SpiffeId) -> Peer {
    Peer::Server(Identity {
        id,
        dns_names: BTreeSet::new(),
        pod_uid: None,
        serial: vec![1],
        issuer: None,
        not_before: Timestamp::UNIX_EPOCH,
        not_after: Timestamp::UNIX_EPOCH,
    })
}

fn partner(name: &str) -> Peer {
    Peer::Partner(PartnerIdentity {
        partner: name.to_owned(),
        dns_names: BTreeSet::new(),
        spiffe_id: None,
        through: vec![],
        serial: vec![1],
        issuer: None,
        not_before: Timestamp::UNIX_EPOCH,
        not_after: Timestamp::UNIX_EPOCH,
    })
}

fn brief(allow: Allow) -> Brief {
    Brief {
        version: VERSION,
        cursor: Cursor::default(),
        identity: id("front-end"),
        standing: Standing::Active,
        names: vec![],
        lifetime_seconds: 86_400,
        issuer: String::new(),
        renew_within_seconds: 0,
        on_peer_expiry: OnPeerExpiry::default(),
        ports: vec![Port {
            name: "sip".into(),
            port: 5061,
            target_port: 5060,
            mode: Mode::MutualTls,
            allow,
            server_tls: None,
        }],
        edges: vec![],
        egress: Egress::default(),
        scopes: vec![],
        drain_seconds: 30,
        partners: vec![],
        web_roots: vec![],
    }
}

#[test]
fn a_peer_is_admitted_on_both_numbers_of_a_declared_port_and_on_no_other() {
    let brief = brief(Allow::servers([id("mediation")]));
    assert!(brief.admit(&peer(id("mediation")), 5061).is_ok());
    assert!(brief.admit(&peer(id("mediation")), 5060).is_ok());
    assert_eq!(brief.admit(&peer(id("mediation")), 80), Err(Refusal::PortNotAllowed));
    assert_eq!(brief.admit(&peer(id("director")), 5061), Err(Refusal::NotInTopology));
}

#[test]
fn all_declared_means_our_trust_domain_only() {
    let brief = brief(Allow::all_declared());
    let foreign = SpiffeId::new(&DnsName::parse("fabrikam.example").unwrap(), "sip", "mediation").unwrap();
    assert!(brief.admit(&peer(id("anyone")), 5061).is_ok());
    assert_eq!(brief.admit(&peer(foreign), 5061), Err(Refusal::NotInTopology));
}

#[test]
fn all_declared_does_not_mean_edge_servers() {
    let mut brief = brief(Allow::all_declared());
    brief.edges = vec![id("edge")];
    assert_eq!(brief.admit(&peer(id("edge")), 5061), Err(Refusal::NotInTopology));
    assert!(brief.admit(&peer(id("anyone")), 5061).is_ok());
    brief.ports[0].allow = Allow::servers([id("edge")]);
    assert!(brief.admit(&peer(id("edge")), 5061).is_ok(), "one that is named may call");
}

#[test]
fn a_partner_is_admitted_where_it_is_listed_and_all_declared_does_not_mean_it() {
    let listed = AllowedPartner { name: "fabrikam".into(), target_port: None };
    let mut brief = brief(Allow { partners: vec![listed], ..Allow::default() });
    assert!(brief.admit(&partner("fabrikam"), 5061).is_ok());
    assert_eq!(brief.admit(&partner("litware"), 5061), Err(Refusal::NameOutOfScope));
    assert_eq!(brief.admit(&peer(id("front-end")), 5061), Err(Refusal::NotInTopology));
    brief.ports[0].allow = Allow::all_declared();
    assert_eq!(brief.admit(&partner("fabrikam"), 5061), Err(Refusal::NameOutOfScope));
}

#[test]
fn a_caller_with_a_port_of_its_own_is_delivered_there_and_others_where_everybody_is() {
    let allow = Allow {
        all_declared: true,
        servers: vec![AllowedServer { id: id("mediation"), target_port: Some(5070) }],
        partners: vec![AllowedPartner { name: "fabrikam".into(), target_port: Some(5080) }],
    };
    let brief = brief(allow);
    let target = |from: &Peer| brief.admit(from, 5061).map(|admission| admission.target_port());
    assert_eq!(target(&peer(id("mediation"))), Ok(5070));
    assert_eq!(target(&peer(id("director"))), Ok(5060));
    assert_eq!(target(&partner("fabrikam")), Ok(5080));
    // What it listens on for one caller is no port that anybody dials.
    assert_eq!(brief.admit(&peer(id("mediation")), 5070), Err(Refusal::PortNotAllowed));
}

#[test]
fn an_empty_list_admits_nobody_and_a_withdrawn_server_nothing() {
    let mut brief = brief(Allow::default());
    assert_eq!(brief.admit(&peer(id("front-end")), 5061), Err(Refusal::NotInTopology));
    brief.standing = Standing::Withdrawn;
    assert_eq!(brief.admit(&peer(id("front-end")), 5061), Err(Refusal::NotReady(ReadyDetail::Withdrawn)));
}

#[test]
fn a_domain_that_is_created_anew_begins_to_count_anew() {
    let at = |domain: &str, revision| Cursor { domain: domain.to_owned(), revision, hash: String::new() };
    assert!(at("one", 1).is_older_than(&at("one", 2)));
    assert!(!at("one", 2).is_older_than(&at("one", 2)));
    assert!(!at("two", 1).is_older_than(&at("one", 2)));
}

#[test]
fn a_brief_with_an_unknown_field_is_refused() {
    let mut written = serde_json::to_value(brief(Allow::default())).unwrap();
    assert!(serde_json::from_value::<Brief>(written.clone()).is_ok());
    written["onlyOnSundays"] = true.into();
    assert!(serde_json::from_value::<Brief>(written).is_err());
}

#[test]
fn a_name_is_a_partners_edge_or_an_allowed_host_at_its_own_ports_alone() {
    let host = |text: &str| DnsName::parse(text).unwrap();
    let link = |name: &str, edges: &[(&str, u16)]| PartnerLink {
        name: name.to_owned(),
        standing: PartnerStanding::Suspended,
        edges: edges.iter().map(|(name, port)| PartnerEdge { host: host(name), port: *port }).collect(),
        tls12: false,
        presents: false,
        max_connections: 1,
        handshakes_per_second: 1,
    };
    let mut brief = brief(Allow::default());
    brief.partners =
        vec![link("a", &[("sip.a.example", 5061), ("sip.a.example", 5062)]), link("b", &[("b.example", 1)])];
    let hosts = [("api.example", vec![443]), ("b.example", vec![443])];
    brief.egress.hosts = hosts.map(|(name, ports)| EgressHost { host: host(name), ports }).to_vec();
    let found = |brief: &Brief, name: &str, port| match brief.named(&host(name), port) {
        Ok(Named::Edge(link)) => Ok(link.name.clone()),
        Ok(Named::Host) => Ok("host".to_owned()),
        Err(refusal) => Err(refusal),
    };
    for (name, port, expected) in [
        ("sip.a.example", 5061, Ok("a")),
        ("sip.a.example", 5062, Ok("a")),
        ("sip.a.example", 5063, Err(Refusal::PortNotAllowed)),
        ("b.example", 1, Ok("b")),
        ("b.example", 443, Ok("host")),
        ("b.example", 444, Err(Refusal::PortNotAllowed)),
        ("api.example", 443, Ok("host")),
        ("a.example", 5061, Err(Refusal::DestinationNotDeclared)),
    ] {
        assert_eq!(found(&brief, name, port), expected.map(str::to_owned), "{name}:{port}");
    }
    brief.standing = Standing::Withdrawn;
    assert_eq!(found(&brief, "api.example", 443), Err(Refusal::NotReady(ReadyDetail::Withdrawn)));
}
