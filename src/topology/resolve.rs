//! Declarations to topology, one kind after the other: domains, servers, pods, Services, partners.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use sha2::{Digest, Sha256};

use super::{
    Declared, Domain, Key, PartnerKey, Problem, Selector, Server, ServerKey, ServerPort, Topology, egress,
    facts::{PodFacts, ServiceFacts, TargetPort},
    partners, peers,
    selector::service_selects,
};
use crate::{
    api::{
        ClientCertificate, DefaultPeers, MinTlsVersion, PeerExpiry, PortMode, PortSpec, Protocol, Role, ServerState,
        TrustDomain, TrustedServer,
    },
    brief::{Allow, Egress, Mode, OnPeerExpiry, ServerTls, Standing},
    identity::{DnsName, SpiffeId},
    pki::{self, authority::Serial},
};

/// Pods named in one message, at most.
const NAMED: usize = 5;

pub(super) type Problems = Vec<(Key, Problem)>;

pub(super) fn resolve(declared: &Declared) -> (Topology, Problems) {
    let mut problems = vec![];
    let domains = domains(declared, &mut problems);
    let mut topology = Topology { domains, web_roots: Arc::clone(&declared.web_roots), ..Topology::default() };
    let order = servers(declared, &mut topology, &mut problems);
    pods(declared, &mut topology, &mut problems);
    services(declared, &mut topology, &mut problems);
    partners::partners(declared, &mut topology, &mut problems);
    for server in order {
        peers_and_egress(declared, server, &mut topology, &mut problems);
    }
    digests(declared, &mut topology);
    problems.sort();
    (topology, problems)
}

fn domains(declared: &Declared, problems: &mut Problems) -> BTreeMap<String, Domain> {
    let mut sorted: Vec<&TrustDomain> = declared.domains.iter().collect();
    sorted.sort_by_key(|domain| age(&domain.metadata));
    let mut found = BTreeMap::<String, Domain>::new();
    for object in sorted {
        let name = object.metadata.name.clone().unwrap_or_default();
        match domain(object, &name, declared) {
            Err(problem) => problems.push((Key::Domain(name), problem)),
            Ok(domain) => match found.values().find(|other| other.trust_domain == domain.trust_domain) {
                Some(other) => {
                    let problem = Problem::TrustDomainConflict(domain.trust_domain.clone(), other.name.clone());
                    problems.push((Key::Domain(name), problem));
                }
                None => drop(found.insert(name, domain)),
            },
        }
    }
    found
}

fn domain(object: &TrustDomain, name: &str, declared: &Declared) -> Result<Domain, Problem> {
    let spec = &object.spec;
    let parse = |text: &str| DnsName::parse(text).map_err(|error| Problem::InvalidName(error.to_string()));
    let joined = declared.namespaces.iter().filter(|(namespace, label)| {
        let consented = spec.namespaces.as_ref().is_none_or(|listed| listed.contains(namespace));
        label.as_deref() == Some(name) && consented
    });
    let namespaces: BTreeSet<String> = joined.map(|(namespace, _)| namespace.clone()).collect();
    let managed = spec.authority.managed.clone().unwrap_or_default();
    Ok(Domain {
        name: name.to_owned(),
        trust_domain: parse(&spec.spiffe_trust_domain)?,
        suffixes: spec.dns_suffixes.iter().map(|suffix| parse(suffix)).collect::<Result<_, _>>()?,
        cluster_domain: parse(&spec.cluster_domain)?,
        edge_namespaces: spec.edge_namespaces.iter().filter(|name| namespaces.contains(*name)).cloned().collect(),
        edges: BTreeSet::new(),
        namespaces,
        lifetime_seconds: positive(spec.leaf.lifetime_seconds).max(60),
        skew_seconds: positive(spec.leaf.clock_skew_seconds),
        root_days: positive(managed.root_lifetime_days).max(1),
        issuer_days: positive(managed.issuer_lifetime_days).max(1),
        secret_ref: spec.authority.secret_ref.as_ref().map(|secret| secret.name.clone()),
        rotation: spec.rotation.clone(),
        revoked_serials: spec.revocation.serials.iter().filter_map(|text| serial(text)).collect(),
        on_peer_expiry: match spec.revocation.on_peer_expiry {
            PeerExpiry::Reprove => OnPeerExpiry::Reprove,
            PeerExpiry::Cut => OnPeerExpiry::Cut,
            PeerExpiry::Keep => OnPeerExpiry::Keep,
        },
        digest: String::new(),
    })
}

/// A serial as people write it: either case, with or without colons and leading zeros. One that none of our
/// certificates can have names nothing.
fn serial(text: &str) -> Option<Serial> {
    let bare: String = text.chars().filter(|character| *character != ':').collect();
    Serial::parse(&bare.trim_start_matches('0').to_ascii_lowercase()).filter(|serial| serial.is_ours())
}

/// Adds every server that has a domain, oldest first, and answers them in that order.
fn servers<'a>(declared: &'a Declared, topology: &mut Topology, problems: &mut Problems) -> Vec<&'a TrustedServer> {
    // One that is being deleted is no longer declared, whatever still holds its object.
    let here = declared.servers.iter().filter(|server| server.metadata.deletion_timestamp.is_none());
    let mut sorted: Vec<&TrustedServer> = here.collect();
    sorted.sort_by_key(|server| {
        seniority(&server.metadata, server.status.as_ref().map(|status| status.conditions.as_slice()))
    });
    let mut claimed = BTreeMap::<DnsName, ServerKey>::new();
    sorted.retain(|object| {
        let key = ServerKey::of(object);
        let mut own = vec![];
        let resolved = server(object, &key, declared, topology, &mut claimed, &mut own);
        let kept = match resolved {
            Err(problem) => {
                own.push(problem);
                false
            }
            Ok(server) => {
                if let Some(domain) = topology.domains.get_mut(&server.domain).filter(|_| server.role == Role::Edge) {
                    domain.edges.insert(server.id.clone());
                }
                topology.by_age.entry(key.namespace.clone()).or_default().push(key.clone());
                topology.servers.insert(key.clone(), server);
                true
            }
        };
        problems.extend(own.into_iter().map(|problem| (Key::Server(key.clone()), problem)));
        kept
    });
    sorted
}

fn server(
    object: &TrustedServer,
    key: &ServerKey,
    declared: &Declared,
    topology: &Topology,
    claimed: &mut BTreeMap<DnsName, ServerKey>,
    problems: &mut Vec<Problem>,
) -> Result<Server, Problem> {
    let spec = &object.spec;
    let Some(domain) = topology.domain_of_namespace(&key.namespace) else {
        return Err(not_joined(declared, &key.namespace));
    };
    if spec.role == Role::Edge && !domain.edge_namespaces.contains(&key.namespace) {
        return Err(Problem::EdgeNotAllowedHere { namespace: key.namespace.clone(), domain: domain.name.clone() });
    }
    let id = SpiffeId::new(&domain.trust_domain, &key.namespace, &key.name)
        .map_err(|error| Problem::InvalidName(error.to_string()))?;
    let topology_name = id.topology_name().ok_or_else(|| {
        Problem::InvalidName(format!("{}.{}.{} must be a DNS name", key.name, key.namespace, domain.trust_domain))
    })?;
    let selector = Selector::parse(&spec.selector).ok_or(Problem::InvalidSelector)?;
    let mut names = BTreeSet::from([topology_name]);
    for text in &spec.dns_names {
        match claim(text, key, domain, claimed) {
            Ok(name) => drop(names.insert(name)),
            Err(problem) => problems.push(problem),
        }
    }
    Ok(Server {
        key: key.clone(),
        uid: object.metadata.uid.clone().unwrap_or_default(),
        created: object.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        domain: domain.name.clone(),
        id,
        role: spec.role,
        standing: match spec.state {
            ServerState::Active => Standing::Active,
            ServerState::Suspended => Standing::Suspended,
        },
        revoke_issued_before: spec.revoke_issued_before.as_ref().map(|time| time.0),
        secret_name: Some(spec.certificate.secret_name.clone()).filter(|name| !name.is_empty()),
        server_secret_name: Some(spec.certificate.server_secret_name.clone()).filter(|name| !name.is_empty()),
        selector,
        service_account: spec.service_account_name.clone(),
        names,
        ports: vec![],
        egress: Egress::default(),
        drain_seconds: positive(spec.proxy.drain_seconds),
        resources: spec.proxy.resources.clone(),
    })
    .map(|server| Server { ports: ports(object, domain, &server.id, declared), ..server })
}

/// Why a namespace is in no domain.
pub(super) fn not_joined(declared: &Declared, namespace: &str) -> Problem {
    let namespace = namespace.to_owned();
    match declared.namespaces.get(&namespace).cloned().flatten() {
        Some(domain) => Problem::DomainNotThere { namespace, domain },
        None => Problem::NoTrustDomain(namespace),
    }
}

/// A declared name: inside the domain, not reserved, and not another server's.
fn claim(
    text: &str,
    key: &ServerKey,
    domain: &Domain,
    claimed: &mut BTreeMap<DnsName, ServerKey>,
) -> Result<DnsName, Problem> {
    let listed = || domain.suffixes.iter().map(DnsName::as_str).collect::<Vec<_>>().join(", ");
    let outside = || Problem::NameOutsideDomain(text.chars().take(80).collect(), listed());
    let name = DnsName::parse(text).map_err(|_| outside())?;
    if !domain.suffixes.iter().any(|suffix| name.is_within(suffix)) {
        return Err(outside());
    }
    // `<server>.<namespace>.<trust domain>` is the topology name of the server with that name, declared or not.
    let reserved = name.as_str().strip_suffix(domain.trust_domain.as_str()).and_then(|head| head.strip_suffix('.'));
    if let Some((server, namespace)) = reserved.and_then(|head| head.split_once('.'))
        && domain.namespaces.contains(namespace)
        && (namespace, server) != (key.namespace.as_str(), key.name.as_str())
    {
        return Err(Problem::NameConflict(name.clone(), format!("{namespace}/{server}")));
    }
    match claimed.get(&name) {
        Some(other) => Err(Problem::NameConflict(name, other.to_string())),
        None => {
            claimed.insert(name.clone(), key.clone());
            Ok(name)
        }
    }
}

fn ports(object: &TrustedServer, domain: &Domain, own: &SpiffeId, declared: &Declared) -> Vec<ServerPort> {
    let chosen = declared.domain(&domain.name).map(|object| object.spec.topology.default_peers);
    // An Edge server is called by whom it names.
    let default_peers = match object.spec.role {
        Role::Internal => chosen.unwrap_or(DefaultPeers::ExplicitOnly),
        Role::Edge => DefaultPeers::ExplicitOnly,
    };
    let number = |value: i32| u16::try_from(value).ok().filter(|port| *port > 0);
    let one = |spec: &PortSpec| {
        let port = number(spec.port)?;
        Some(ServerPort {
            name: spec.name.clone(),
            port,
            target_port: spec.target_port.map_or(Some(port), number)?,
            mode: match (spec.protocol, spec.mode) {
                (Protocol::UDP, _) => None,
                (Protocol::TCP, PortMode::MutualTLS) => Some(Mode::MutualTls),
                (Protocol::TCP, PortMode::ServerTLS) => Some(Mode::ServerTls),
                (Protocol::TCP, PortMode::Plaintext) => Some(Mode::Plaintext),
            },
            // Who is named is filled in when all servers are known.
            allow: match (&spec.allow_from, default_peers) {
                (None, DefaultPeers::AllDeclared) => Allow::all_declared(),
                (None, DefaultPeers::ExplicitOnly) => Allow::servers([own.clone()]),
                (Some(_), _) => Allow::default(),
            },
            server_tls: (spec.protocol == Protocol::TCP && spec.mode == PortMode::ServerTLS).then(|| ServerTls {
                alpn: spec.alpn.clone(),
                tls12: spec.min_tls_version == MinTlsVersion::Tls12,
                client_certificate: spec.client_certificate == ClientCertificate::Optional,
            }),
        })
    };
    object.spec.ports.iter().filter_map(one).collect()
}

/// Gives each pod to the oldest server that selects it.
fn pods(declared: &Declared, topology: &mut Topology, problems: &mut Problems) {
    let mut overlaps = BTreeMap::<(ServerKey, ServerKey), Vec<String>>::new();
    let mut owned = BTreeMap::new();
    for pod in &declared.pods {
        let candidates = topology.by_age.get(&pod.namespace).into_iter().flatten();
        let mut selecting = candidates.filter(|key| topology.servers[*key].selector.matches(&pod.labels));
        let Some(first) = selecting.next() else { continue };
        for newer in selecting.filter(|_| !pod.ending) {
            overlaps.entry((newer.clone(), first.clone())).or_default().push(pod.name.clone());
        }
        owned.insert(pod.uid.clone(), (first.clone(), pod.clone()));
    }
    topology.pods = owned;
    for ((newer, older), mut names) in overlaps {
        names.sort();
        names.truncate(NAMED);
        let problem = Problem::SelectorOverlap { pods: names.join(", "), other: older.to_string() };
        problems.push((Key::Server(newer), problem));
    }
}

/// Gives each Service to the one server that its pods belong to.
fn services(declared: &Declared, topology: &mut Topology, problems: &mut Problems) {
    let mut pods_in = BTreeMap::<&str, Vec<&PodFacts>>::new();
    for pod in declared.pods.iter().filter(|pod| !pod.ending) {
        pods_in.entry(&pod.namespace).or_default().push(pod);
    }
    let mut sorted: Vec<&ServiceFacts> = declared.services.iter().collect();
    sorted.sort_by_key(|service| (&service.namespace, &service.name));
    let mut found = BTreeMap::<ServerKey, Vec<_>>::new();
    for service in sorted {
        if service.selector.is_empty() || topology.domain_of_namespace(&service.namespace).is_none() {
            continue;
        }
        let pods = pods_in.get(service.namespace.as_str()).map(Vec::as_slice).unwrap_or_default();
        let selected: Vec<&PodFacts> =
            pods.iter().copied().filter(|pod| service_selects(&service.selector, &pod.labels)).collect();
        let mut owners: BTreeSet<Option<&ServerKey>> =
            selected.iter().map(|pod| topology.pods.get(&pod.uid).map(|(key, _)| key)).collect();
        if owners.is_empty() {
            // No pod yet: labels that the Service asks for may already say which server it is.
            owners.extend(topology.selecting(&service.namespace, &service.selector).map(|server| Some(&server.key)));
        }
        match owners.iter().copied().flatten().collect::<Vec<_>>()[..] {
            [] => {}
            [key] if owners.len() == 1 => {
                let ports = service_ports(service, &topology.servers[key], &selected, problems);
                found.entry(key.clone()).or_default().push((service.clone(), ports));
            }
            ref several => problems.extend(
                several
                    .iter()
                    .map(|key| (Key::Server((*key).clone()), Problem::ServiceSpansServers(service.name.clone()))),
            ),
        }
    }
    topology.services = found;
}

fn service_ports(
    service: &ServiceFacts,
    server: &Server,
    pods: &[&PodFacts],
    problems: &mut Problems,
) -> BTreeMap<u16, Mode> {
    let mut modes = BTreeMap::new();
    for (port, target) in &service.ports {
        let number = match target {
            TargetPort::Number(number) => Some(*number),
            // A name means what the pods call it; before the first pod it means nothing yet.
            TargetPort::Named(name) => pods.iter().find_map(|pod| pod.named_ports.get(name).copied()),
        };
        let declared = number.and_then(|number| {
            server.ports.iter().find(|port| port.mode.is_some() && (port.port == number || port.target_port == number))
        });
        match declared.and_then(|port| port.mode) {
            Some(mode) => drop(modes.insert(*port, mode)),
            None if number.is_none() && pods.is_empty() => {}
            None => problems.push((
                Key::Server(server.key.clone()),
                Problem::ServicePortMismatch { service: service.name.clone(), port: *port },
            )),
        }
    }
    modes
}

/// The parts that name other objects.
fn peers_and_egress(declared: &Declared, object: &TrustedServer, topology: &mut Topology, problems: &mut Problems) {
    let key = ServerKey::of(object);
    let Some(server) = topology.servers.get(&key) else { return };
    let mut own = vec![];
    let mut allowed = peers::named(object, server, topology, &mut own);
    problems.extend(own.into_iter().map(|problem| (Key::Server(key.clone()), problem)));
    let mut own = vec![];
    let egress = egress::named(declared, object, &key, topology, &mut own);
    problems.extend(own.into_iter().map(|problem| (Key::Server(key.clone()), problem)));
    let Some(server) = topology.servers.get_mut(&key) else { return };
    server.egress = egress;
    for port in &mut server.ports {
        if let Some(named) = allowed.remove(&port.name) {
            port.allow = named;
        }
    }
}

/// The digest of a domain: UID and generation of itself, of its servers and of its partners, in the order of their keys.
/// A partner's roots count by themselves: they may stand in a ConfigMap, which has no generation.
fn digests(declared: &Declared, topology: &mut Topology) {
    let Topology { domains, servers, partners, .. } = topology;
    let generation = |metadata: &ObjectMeta| metadata.generation.unwrap_or_default();
    let of_servers: BTreeMap<ServerKey, i64> =
        declared.servers.iter().map(|object| (ServerKey::of(object), generation(&object.metadata))).collect();
    let of_partners: BTreeMap<PartnerKey, i64> =
        declared.partners.iter().map(|object| (PartnerKey::of(object), generation(&object.metadata))).collect();
    for domain in domains.values_mut() {
        let mut hash = Sha256::new();
        let meta = declared.domain(&domain.name).map(|object| &object.metadata);
        let uid = meta.and_then(|meta| meta.uid.as_deref()).unwrap_or_default();
        hash.update(format!("TrustDomain {uid} {}\n", meta.map(generation).unwrap_or_default()));
        for server in servers.values().filter(|server| server.domain == domain.name) {
            let generation = of_servers.get(&server.key).copied().unwrap_or_default();
            hash.update(format!("TrustedServer {} {generation}\n", server.uid));
        }
        for partner in partners.values().filter(|partner| partner.domain == domain.name) {
            let generation = of_partners.get(&partner.key).copied().unwrap_or_default();
            let roots: Vec<&str> = partner.roots.iter().map(|root| root.sha256.as_str()).collect();
            hash.update(format!("FederationPartner {} {generation} {}\n", partner.uid, roots.join(" ")));
        }
        domain.digest = pki::hex(&hash.finalize());
    }
}

/// Sorts by age. Ages count whole seconds: within one, who was accepted before goes first, so that nobody loses what it
/// holds to somebody that came a moment later.
pub(super) fn seniority(metadata: &ObjectMeta, conditions: Option<&[Condition]>) -> (Timestamp, bool, String) {
    let (created, uid) = age(metadata);
    let accepted = conditions.unwrap_or_default().iter().any(|one| one.type_ == "Accepted" && one.status == "True");
    (created, !accepted, uid)
}

/// Sorts by age; equal ages by UID, so that every replica settles a conflict in the same way.
fn age(metadata: &ObjectMeta) -> (Timestamp, String) {
    let created = metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0);
    (created, metadata.uid.clone().unwrap_or_default())
}

fn positive(value: i32) -> u32 {
    u32::try_from(value).unwrap_or_default()
}
