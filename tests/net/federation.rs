//! Partners behind the real rules, with the real binary, and OpenSSL and GnuTLS as whoever is at the other end.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use entente::{
    brief::{Allow, Brief, Mode, PartnerStanding, Port},
    identity::SpiffeId,
};
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, GeneralSubtree, KeyPair, NameConstraints, SanType};

use super::{
    foreign::{Client, Echoes, Files, Stack, WORD},
    pods::{HUB, HUB6, Hub, Pod, in_own_network},
    roles::{Act, Fared},
    support::{
        dns::Resolver,
        domain::{Certified, Domain, instant},
        eventually,
        partner::{Authority, add, allowed, dns, edge, forge, uri},
        soon,
    },
};

const STACKS: [Stack; 2] = [Stack::OpenSsl, Stack::GnuTls];
const NAME: &str = "edge.sip.contoso.example";
const OURS: &str = "spiffe://contoso.example/ns/sip/server/far";
const A: &str = "sip.fabrikam.example";
const B: &str = "sip.litware.example";
/// Ports of the Edge server: for servers of ours, for A, for B.
const PORTS: [u16; 3] = [5061, 5062, 5063];
/// Where the others listen.
const EDGE: u16 = 5061;
const U: &str = "UntrustedRoot";
const N: &str = "NameOutOfScope";

fn names(whose: usize) -> Vec<SanType> {
    match whose {
        0 => vec![uri(OURS), dns("far.sip.contoso.example")],
        1 => vec![dns(A)],
        _ => vec![dns(B)],
    }
}

/// An Edge server (10.77.0.3) that knows A and B; a server of ours (.4), A's edge (.5) and B's (.6) that are played by
/// others' software; and a resolver at the hub.
struct World<'a> {
    hub: &'a Hub,
    pod: Pod<'a>,
    far: [Pod<'a>; 3],
    a: Authority,
    b: Authority,
    unknown: Authority,
    _resolver: Resolver,
    _application: super::pods::Playing,
}

impl<'a> World<'a> {
    async fn new(hub: &'a Hub) -> Self {
        let at = [HUB, HUB6].map(|address| SocketAddr::new(address.parse::<IpAddr>().unwrap(), 53));
        let resolver = Resolver::start(&at).await;
        let (a, b) = (Authority::new("fabrikam"), Authority::new("litware"));
        let far = [hub.bare(4).await, hub.bare(5).await, hub.bare(6).await];
        resolver.tell(A, &[far[1].v4(0).ip()]);
        resolver.tell(B, &[far[2].v4(0).ip()]);
        let pod = hub.pod(3, "edge", &[], "").await;
        let lists = |partner: &[&str]| Allow { partners: allowed(partner), ..Allow::default() };
        let allow = [Allow::servers([SpiffeId::parse(OURS).unwrap()]), lists(&["fabrikam"]), lists(&["litware"])];
        let scopes = [a.scope("fabrikam", "fabrikam.example"), b.scope("litware", "litware.example")];
        hub.control.change_brief(&pod.name, |brief| {
            brief.ports = PORTS.into_iter().zip(allow).map(|(port, allow)| mutual(port, allow)).collect();
            scopes.into_iter().for_each(|scope| add(brief, scope));
            brief.partners[0].edges = vec![edge(A, EDGE)];
            brief.partners[1].edges = vec![edge(B, EDGE)];
        });
        pod.knows(&far[0], "far", EDGE, Mode::MutualTls);
        let application = pod.start(Act::Echo(PORTS.map(|port| pod.v4(port)).to_vec())).await;
        let world = Self {
            hub,
            pod,
            far,
            a,
            b,
            unknown: Authority::new("unknown"),
            _resolver: resolver,
            _application: application,
        };
        world.in_force().await;
        world
    }

    /// Waits until the brief is in force, routes included.
    async fn in_force(&self) {
        eventually("the brief in force", || async {
            self.hub.control.look(|world| {
                let pod = &world.pods[&self.pod.name];
                (pod.acknowledged.as_ref() == pod.brief.as_ref().map(|brief| &brief.cursor)).then_some(())
            })
        })
        .await;
    }

    async fn change(&self, change: impl FnOnce(&mut Brief)) {
        self.hub.control.change_brief(&self.pod.name, change);
        self.in_force().await;
    }

    fn domain(&self) -> &Domain {
        &self.hub.control.domain
    }

    /// A certificate by the authority number `signer` (ours, A, B, unknown), with what `change` makes of it.
    fn forge(&self, signer: usize, whose: usize, change: impl FnOnce(&mut CertificateParams, Timestamp)) -> Certified {
        let names = names(whose);
        match signer {
            0 => self.domain().forge("far", |params, now| {
                params.subject_alt_names = names;
                change(params, now);
            }),
            1 => self.a.forge(&names, change),
            2 => self.b.forge(&names, change),
            _ => self.unknown.forge(&names, change),
        }
    }

    fn files(&self, certified: &Certified) -> Files {
        Files::write(self.hub.folder(), "certificate", certified)
    }

    /// What comes of `stack` calling our port number `index` and showing this.
    async fn calls_us(&self, stack: Stack, index: usize, certified: &Certified) -> String {
        let files = self.files(certified);
        self.outcome("inbound", async {
            let mut client = Client::start(stack, self.pod.v4(PORTS[index]), NAME, &files, &[]);
            client.echo().await
        })
        .await
    }

    /// What comes of our calling the destination number `index`, where `stack` shows this.
    async fn is_called(&self, stack: Stack, index: usize, certified: &Certified) -> String {
        let far = &self.far[index];
        let server = Echoes::start(stack, &far.name, far.v4(EDGE), &self.files(certified), &[]).await;
        let address = self.address(index).await;
        let outcome = self
            .outcome("outbound", async { self.pod.act(Act::Call(address, WORD.to_owned())).await == Fared::Answered });
        let outcome = outcome.await;
        server.end().await;
        outcome
    }

    /// Where the application finds the destination number `index`.
    async fn address(&self, index: usize) -> SocketAddr {
        let host = match index {
            0 => return self.far[0].v4(EDGE),
            1 => A,
            _ => B,
        };
        let found: std::collections::BTreeSet<IpAddr> = self.pod.start(Act::LookUp(host.to_owned())).await.told();
        let address = found.into_iter().find(IpAddr::is_ipv4).expect("a name of the guard's");
        SocketAddr::new(address, EDGE)
    }

    /// `ok`, or the codes of the refusals that the call brought.
    async fn outcome(&self, direction: &str, call: impl Future<Output = bool>) -> String {
        let before = self.reasons(direction).await;
        if call.await {
            return "ok".to_owned();
        }
        let news = eventually("a refusal", || async {
            let now = self.reasons(direction).await;
            let is_new = |(code, count): &(String, u64)| code != "Truncated" && before.get(code) != Some(count);
            let new: Vec<_> = now.into_iter().filter(is_new).map(|(code, _)| code).collect();
            (!new.is_empty()).then_some(new)
        });
        news.await.join(" ")
    }

    async fn reasons(&self, direction: &str) -> BTreeMap<String, u64> {
        let text = eventually("metrics", || self.pod.fetch("/metrics")).await;
        let prefix = format!("entente_refusals_total{{direction=\"{direction}\",reason=\"");
        let lines = text.lines().filter_map(|line| line.strip_prefix(prefix.as_str()));
        lines
            .map(|line| {
                let (reason, value) = line.split_once("\"} ").unwrap();
                (reason.to_owned(), value.trim().parse().unwrap())
            })
            .collect()
    }
}

fn mutual(port: u16, allow: Allow) -> Port {
    Port { name: format!("port-{port}"), port, target_port: port, mode: Mode::MutualTls, allow, server_tls: None }
}

#[test]
fn the_federation_matrix_holds_against_openssl_and_gnutls_in_both_directions() {
    let name = "federation::the_federation_matrix_holds_against_openssl_and_gnutls_in_both_directions";
    in_own_network(name, |net| async move {
        let world = World::new(&net).await;
        // By authority and name: internal, edge-A, edge-B. Whoever calls chooses its scope at an Edge by its names;
        // where we call, the destination has chosen.
        let inbound = [
            [["ok", N, N], [N, U, N], [N, N, U]],
            [[U, N, N], [U, "ok", N], [U, N, U]],
            [[U, N, N], [U, U, N], [U, N, "ok"]],
            [[U, N, N], [U, U, N], [U, N, U]],
        ];
        let outbound = [
            [["ok", U, U], [N, U, U], [N, U, U]],
            [[U, N, U], [U, "ok", U], [U, N, U]],
            [[U, U, N], [U, U, N], [U, U, "ok"]],
            [[U, U, U], [U, U, U], [U, U, U]],
        ];
        let began = Instant::now();
        let mut cells = 0;
        for stack in STACKS {
            for signer in 0..4 {
                for whose in 0..3 {
                    let certified = world.forge(signer, whose, |_, _| ());
                    for index in 0..3 {
                        let what = format!("{stack:?}, authority {signer}, name {whose}, {index}");
                        let found = world.calls_us(stack, index, &certified).await;
                        assert_eq!(found, inbound[signer][whose][index], "inbound, {what}");
                        let found = world.is_called(stack, index, &certified).await;
                        assert_eq!(found, outbound[signer][whose][index], "outbound, {what}");
                        cells += 2;
                    }
                }
            }
        }
        println!("{cells} cells in {:?}", began.elapsed());
    });
}

#[test]
fn each_cell_that_accepts_refuses_what_is_wrong_in_one_way() {
    in_own_network("federation::each_cell_that_accepts_refuses_what_is_wrong_in_one_way", |net| async move {
        let world = World::new(&net).await;
        // Called by it, and calling it: what is wrong with servers of ours, and with partners.
        let wrong = [
            ("expired", ["Expired", "Expired"], ["Expired", "Expired"]),
            ("no purpose", ["WrongUsage", "WrongUsage"], ["WrongUsage", "WrongUsage"]),
            ("a second URI", ["BadName", "BadName"], [N, N]),
            ("an address", ["BadName", "BadName"], ["BadName", N]),
            ("names in the common name only", ["BadName", "BadName"], [N, "BadName"]),
        ];
        for (what, ours, theirs) in wrong {
            let change = forge(what);
            for index in 0..3 {
                let certified = world.forge(index, index, change);
                let [inbound, outbound] = if index == 0 { ours } else { theirs };
                for stack in STACKS {
                    let found = world.calls_us(stack, index, &certified).await;
                    assert_eq!(found, inbound, "inbound, {stack:?}, {what}, {index}");
                    let found = world.is_called(stack, index, &certified).await;
                    assert_eq!(found, outbound, "outbound, {stack:?}, {what}, {index}");
                }
            }
        }
        // What its authority has taken back.
        for index in 0..3 {
            let certified = world.forge(index, index, |_, _| ());
            let shown = shown(&certified);
            world.change(|brief| revoke(brief, index, &shown)).await;
            for stack in STACKS {
                assert_eq!(world.calls_us(stack, index, &certified).await, "Revoked", "{stack:?}, {index}");
                assert_eq!(world.is_called(stack, index, &certified).await, "Revoked", "{stack:?}, {index}");
            }
            world.change(|brief| brief.scopes[1].revocation = None).await;
        }
        // An authority between that would let more pass than its root may.
        let between = world.a.below(|params| {
            let permitted = ["fabrikam.example", "contoso.example"].map(|name| GeneralSubtree::DnsName(name.into()));
            let permitted_subtrees = permitted.to_vec();
            params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: vec![] });
        });
        let wider = between.certificate(&[dns(A), dns("far.sip.contoso.example")]);
        for stack in STACKS {
            let good = between.certificate(&names(1));
            assert_eq!(world.calls_us(stack, 1, &good).await, "ok", "{stack:?}");
            assert_eq!(world.is_called(stack, 1, &good).await, "ok", "{stack:?}");
            assert_eq!(world.calls_us(stack, 1, &wider).await, N, "{stack:?}");
            assert_eq!(world.is_called(stack, 1, &wider).await, N, "{stack:?}");
        }
    });
}

/// What takes trust in A away, and the reason that then applies.
type Taking = (&'static str, fn(&mut Brief, &str), &'static str);

const TAKING: [Taking; 5] = [
    ("suspended", |brief, _| brief.partners[0].standing = PartnerStanding::Suspended, "PartnerSuspended"),
    ("contract ended", |brief, _| brief.partners[0].standing = PartnerStanding::Expired, "PartnerExpired"),
    ("other roots", |brief, _| brief.scopes[1].anchors = vec![Authority::new("other").root], U),
    (
        "its root has ended",
        |brief, _| {
            let old = Authority::with("fabrikam", KeyPair::generate().unwrap(), |params, now| {
                params.not_before = instant(now - SignedDuration::from_hours(48));
                params.not_after = instant(now - SignedDuration::from_hours(1));
            });
            brief.scopes[1].anchors = vec![old.root];
        },
        U,
    ),
    ("revoked", |brief, shown| revoke(brief, 1, shown), "Revoked"),
];

/// Puts what was `shown` (key identifier and serial) on the list of the scope number `index`.
fn revoke(brief: &mut Brief, index: usize, shown: &str) {
    let (issuer, serial) = shown.split_once(' ').unwrap();
    let list = brief.scopes[index].revocation.get_or_insert_default();
    list.next_update = i64::from(u32::MAX);
    list.serials.entry(issuer.to_owned()).or_default().push(serial.to_owned());
}

#[test]
fn connections_end_when_trust_in_a_partner_is_taken_away_and_no_other_partners_do() {
    let name = "federation::connections_end_when_trust_in_a_partner_is_taken_away_and_no_other_partners_do";
    in_own_network(name, |net| async move {
        let world = World::new(&net).await;
        for stack in STACKS {
            for (what, take, reason) in TAKING {
                let (a, b) = (world.forge(1, 1, |_, _| ()), world.forge(2, 2, |_, _| ()));
                let shown = shown(&a);
                let [a_files, b_files] =
                    [("a", &a), ("b", &b)].map(|(name, one)| Files::write(net.folder(), name, one));
                let mut called = Client::start(stack, world.pod.v4(PORTS[1]), NAME, &a_files, &[]);
                let mut other = Client::start(stack, world.pod.v4(PORTS[2]), NAME, &b_files, &[]);
                assert!(called.echo().await && other.echo().await, "{stack:?}, {what}");
                let far = &world.far[1];
                let server = Echoes::start(stack, &far.name, far.v4(EDGE), &a_files, &[]).await;
                let mut calling = world.pod.start(Act::Hold(world.address(1).await, WORD.to_owned())).await;

                let before = net.control.look(|world| world.pods["pod3"].brief.clone().unwrap());
                let began = Instant::now();
                net.control.change_brief("pod3", |brief| take(brief, &shown));
                let ends = async { (called.ended().await, began.elapsed()).1 };
                let other_ends =
                    async { (soon("the call's end", calling.child.wait()).await.unwrap(), began.elapsed()).1 };
                let (inbound, outbound) = tokio::join!(ends, other_ends);
                println!("{stack:?}, {what}: the caller was cut after {inbound:?}, the called one after {outbound:?}");
                assert!(other.echo().await, "{stack:?}, {what}: the other partner was cut");
                world.in_force().await;
                assert_eq!(world.calls_us(stack, 1, &a).await, reason, "{stack:?}, {what}");
                server.end().await;
                assert_eq!(world.is_called(stack, 1, &a).await, reason, "{stack:?}, {what}");
                world
                    .change(|brief| {
                        brief.partners = before.partners;
                        brief.scopes = before.scopes;
                    })
                    .await;
            }
        }
    });
}

/// Key identifier of the issuer, and serial.
fn shown(certificate: &Certified) -> String {
    use x509_parser::{extensions::ParsedExtension, prelude::FromDer};
    let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&certificate.0[0]).unwrap();
    let issuer = leaf.extensions().iter().find_map(|one| match one.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(authority) => authority.key_identifier.as_ref().map(|key| key.0),
        _ => None,
    });
    let hex = entente::pki::hex;
    format!("{} {}", hex(issuer.unwrap()), hex(&leaf.tbs_certificate.serial.to_bytes_be()))
}

#[test]
fn tls_12_is_spoken_only_with_the_partner_that_cannot_do_better() {
    in_own_network("federation::tls_12_is_spoken_only_with_the_partner_that_cannot_do_better", |net| async move {
        let world = World::new(&net).await;
        let old = |stack| match stack {
            Stack::OpenSsl => ["-tls1_2"].as_slice(),
            Stack::GnuTls => ["--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.2"].as_slice(),
        };
        let both = async |stack, index: usize| {
            let files = world.files(&world.forge(index, index, |_, _| ()));
            let inbound = world.outcome("inbound", async {
                Client::start(stack, world.pod.v4(PORTS[index]), NAME, &files, old(stack)).echo().await
            });
            let inbound = inbound.await;
            let far = &world.far[index];
            let server = Echoes::start(stack, &far.name, far.v4(EDGE), &files, old(stack)).await;
            let address = world.address(index).await;
            let outbound = world.outcome("outbound", async {
                world.pod.act(Act::Call(address, WORD.to_owned())).await == Fared::Answered
            });
            let outbound = outbound.await;
            server.end().await;
            [inbound, outbound]
        };
        for stack in STACKS {
            assert_eq!(both(stack, 1).await, ["HandshakeFailed"; 2], "{stack:?}");
            world.change(|brief| brief.partners[0].tls12 = true).await;
            assert_eq!(both(stack, 1).await, ["ok"; 2], "{stack:?}");
            assert_eq!(both(stack, 2).await, ["HandshakeFailed"; 2], "{stack:?}, another partner");
            assert_eq!(both(stack, 0).await, ["HandshakeFailed"; 2], "{stack:?}, one of ours");
            // Only what has forward secrecy and authenticated encryption.
            for weak in ["ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES128-SHA"] {
                let files = world.files(&world.forge(1, 1, |_, _| ()));
                let found = world.outcome("inbound", async {
                    let more = ["-tls1_2", "-cipher", weak];
                    Client::start(Stack::OpenSsl, world.pod.v4(PORTS[1]), NAME, &files, &more).echo().await
                });
                assert_eq!(found.await, "HandshakeFailed", "{weak}");
            }
            world.change(|brief| brief.partners[0].tls12 = false).await;
        }
    });
}
