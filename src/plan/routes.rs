//! The table of addresses of one domain, and what a proxy must still be told of it.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    brief::{Mode, PUSHED_ROUTES, Route, RouteCursor, RouteDelta},
    identity::DnsName,
    topology::{Server, ServerKey, Topology},
};

/// Removals that are remembered; a proxy that missed more starts afresh.
const MAX_REMOVED: usize = 4_096;

/// Bytes of a table that is pushed, and of an answer about one that is not: either must fit into one response beside a
/// brief. Names make a route long, and each pod's carries them.
const MAX_BYTES: usize = 2 * 1024 * 1024;
/// Bytes of a route without its names, ports included, at most.
const BARE_BYTES: usize = 512;

/// All addresses of a domain's servers, with the version at which each changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTable {
    cursor: RouteCursor,
    routes: BTreeMap<IpAddr, (u64, Route)>,
    removed: VecDeque<(u64, IpAddr)>,
    /// Removals up to this version are forgotten.
    floor: u64,
}

/// What a proxy wants to know of a table that is told on demand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// Addresses that it dials now.
    pub ask: &'a [IpAddr],
    /// Names that its application asks for now.
    pub names: &'a [DnsName],
    /// Addresses that it still uses.
    pub keep: &'a [IpAddr],
    /// Pods whose own addresses it needs.
    pub pods: &'a [String],
}

/// The addresses of `domain`'s servers: its pods with a sidecar, and its Services.
pub fn routes_of(topology: &Topology, domain: &str) -> BTreeMap<IpAddr, Route> {
    let mut routes = BTreeMap::new();
    let mut names = BTreeMap::<&ServerKey, Vec<DnsName>>::new();
    let server = |key| topology.server(key).filter(|server| server.domain == domain);
    for (key, addresses, ports) in topology.services() {
        let Some(server) = server(key) else { continue };
        let names = names.entry(key).or_insert_with(|| topology.names_of_server(server).into_iter().collect());
        let one = |address: &IpAddr| (*address, route(*address, (server, names), None, ports.clone()));
        routes.extend(addresses.iter().map(one));
    }
    for (key, pod) in topology.pods() {
        let Some(server) = server(key) else { continue };
        // A pod without a sidecar proves itself where its software holds the key.
        let proves_itself = pod.injected || server.secret_name.is_some();
        if !proves_itself || pod.service_account != server.service_account {
            continue;
        }
        let names: Vec<DnsName> = topology.names_of(server, pod).into_iter().collect();
        let ports: BTreeMap<u16, Mode> = server
            .ports
            .iter()
            .filter_map(|port| Some((port, port.mode?)))
            .flat_map(|(port, mode)| [(port.port, mode), (port.target_port, mode)])
            .collect();
        for address in &pod.addresses {
            // An address that is used again belongs to the pod that lives.
            if !pod.ending || !routes.contains_key(address) {
                routes.insert(*address, route(*address, (server, &names), Some(pod.uid.clone()), ports.clone()));
            }
        }
    }
    routes
}

/// How long a route is when it is told, roughly and at most.
fn bytes(route: &Route) -> usize {
    BARE_BYTES + route.names.iter().map(|name| name.as_str().len() + 3).sum::<usize>()
}

fn route(
    address: IpAddr,
    (server, names): (&Server, &[DnsName]),
    pod: Option<String>,
    ports: BTreeMap<u16, Mode>,
) -> Route {
    let sidecar = server.secret_name.is_none();
    Route { address, server: server.id.clone(), names: names.to_vec(), pod: pod.filter(|_| sidecar), sidecar, ports }
}

impl RouteTable {
    /// An empty table; `epoch` tells it from tables of other replicas and earlier lives.
    pub fn new(epoch: u64) -> Self {
        Self { cursor: RouteCursor { epoch, version: 1 }, ..Self::default() }
    }

    /// Where it stands.
    pub const fn cursor(&self) -> RouteCursor {
        self.cursor
    }

    /// Takes over the addresses as they are now; the version grows only with a change.
    pub fn update(&mut self, now: BTreeMap<IpAddr, Route>) {
        let next = self.cursor.version + 1;
        let gone: Vec<IpAddr> = self.routes.keys().filter(|address| !now.contains_key(address)).copied().collect();
        let mut changed = !gone.is_empty();
        for address in gone {
            self.routes.remove(&address);
            self.removed.push_back((next, address));
        }
        for (address, route) in now {
            if self.routes.get(&address).is_none_or(|(_, before)| *before != route) {
                self.routes.insert(address, (next, route));
                changed = true;
            }
        }
        while self.removed.len() > MAX_REMOVED {
            if let Some((version, _)) = self.removed.pop_front() {
                self.floor = version;
            }
        }
        if changed {
            self.cursor.version = next;
        }
    }

    /// What a proxy that stands at `after` must be told; `None` = nothing. Beyond the size that is pushed, only what
    /// it asks for and still uses.
    pub fn since(&self, after: Option<RouteCursor>, asked: &Asked<'_>) -> Option<RouteDelta> {
        let known = after.filter(|cursor| cursor.epoch == self.cursor.epoch && cursor.version >= self.floor);
        let whole: usize = self.routes.values().map(|(_, route)| bytes(route)).sum();
        let on_demand = self.routes.len() > PUSHED_ROUTES || whole > MAX_BYTES;
        let mut also = if on_demand { self.of_pods(asked.pods) } else { BTreeSet::new() };
        // A pod that is not here is no news; that a name is nobody's is an answer.
        if known == Some(self.cursor) && asked.ask.is_empty() && asked.names.is_empty() && also.is_empty() {
            return None;
        }
        also.extend(if on_demand { self.of_names(asked.names) } else { BTreeSet::new() });
        let mut delta = RouteDelta { cursor: self.cursor, reset: known.is_none(), on_demand, ..RouteDelta::default() };
        let since = known.map_or(0, |cursor| cursor.version);
        if on_demand {
            self.asked(&mut delta, since, asked, also);
        } else {
            delta.put = self.routes.values().filter(|(at, _)| *at > since).map(|(_, route)| route.clone()).collect();
            let gone = self.removed.iter().filter(|(at, address)| *at > since && !self.routes.contains_key(address));
            delta.remove = gone.map(|(_, address)| *address).collect();
        }
        if delta.reset {
            delta.remove.clear();
        }
        Some(delta)
    }

    /// The own addresses of these pods.
    fn of_pods(&self, pods: &[String]) -> BTreeSet<IpAddr> {
        let pods: BTreeSet<&String> = pods.iter().take(PUSHED_ROUTES).collect();
        let of = |route: &Route| route.pod.as_ref().is_some_and(|pod| pods.contains(pod));
        let routes = self.routes.iter().filter(|_| !pods.is_empty());
        routes.filter(|(_, (_, route))| of(route)).map(|(address, _)| *address).collect()
    }

    /// The addresses that these names may lead to.
    fn of_names(&self, names: &[DnsName]) -> BTreeSet<IpAddr> {
        let names: BTreeSet<&DnsName> = names.iter().take(PUSHED_ROUTES).collect();
        let leads = |route: &Route| route.names.iter().any(|name| names.contains(name));
        let routes = self.routes.iter().filter(|_| !names.is_empty());
        routes.filter(|(_, (_, route))| leads(route)).map(|(address, _)| *address).take(PUSHED_ROUTES).collect()
    }

    fn asked(&self, delta: &mut RouteDelta, since: u64, asked: &Asked<'_>, also: BTreeSet<IpAddr>) {
        let mut ask: BTreeSet<IpAddr> = asked.ask.iter().copied().take(PUSHED_ROUTES).collect();
        ask.extend(also);
        let keep: BTreeSet<IpAddr> = asked.keep.iter().copied().take(PUSHED_ROUTES).collect();
        let mut told = 0;
        // What does not fit is forgotten and asked for again; what is asked for now goes first.
        for address in ask.iter().chain(keep.difference(&ask)) {
            match self.routes.get(address) {
                Some((at, route)) if delta.reset || *at > since || ask.contains(address) => {
                    told += bytes(route);
                    if told > MAX_BYTES {
                        delta.remove.push(*address);
                    } else {
                        delta.put.push(route.clone());
                    }
                }
                Some(_) => {}
                None => delta.remove.push(*address),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::{DnsName, SpiffeId};

    fn sample(address: u16, server: &str) -> (IpAddr, Route) {
        let address = IpAddr::from([10, 0, (address >> 8) as u8, (address & 0xff) as u8]);
        let id = SpiffeId::new(&DnsName::parse("contoso.example").unwrap(), "shop", server).unwrap();
        (
            address,
            Route {
                address,
                server: id,
                pod: Some(format!("pod-{address}")),
                sidecar: true,
                ports: BTreeMap::from([(80, Mode::MutualTls)]),
                names: vec![],
            },
        )
    }

    fn follow(held: &mut BTreeMap<IpAddr, Route>, delta: RouteDelta) {
        if delta.reset {
            held.clear();
        }
        for address in delta.remove {
            held.remove(&address);
        }
        held.extend(delta.put.into_iter().map(|route| (route.address, route)));
    }

    proptest! {
        #[test]
        fn a_proxy_that_follows_the_deltas_holds_the_table(
            states in prop::collection::vec(prop::collection::btree_map(0_u16..30, 0_u8..3, 0..20), 1..12),
            polls in prop::collection::vec(any::<bool>(), 12),
        ) {
            let mut table = RouteTable::new(7);
            let mut held = BTreeMap::new();
            let mut cursor = None;
            for (state, poll) in states.iter().zip(polls) {
                let now: BTreeMap<_, _> = state.iter().map(|(at, server)| sample(*at, &format!("s{server}"))).collect();
                table.update(now.clone());
                if poll {
                    if let Some(delta) = table.since(cursor, &Asked::default()) {
                        cursor = Some(delta.cursor);
                        follow(&mut held, delta);
                    }
                    prop_assert_eq!(&held, &now);
                }
            }
        }
    }

    #[test]
    fn nothing_new_is_nothing_told_and_another_epoch_starts_afresh() {
        let mut table = RouteTable::new(1);
        table.update([sample(1, "a")].into());
        let cursor = table.since(None, &Asked::default()).unwrap().cursor;
        assert_eq!(table.since(Some(cursor), &Asked::default()), None);
        table.update([sample(1, "a")].into());
        assert_eq!(table.since(Some(cursor), &Asked::default()), None);
        assert!(table.since(Some(RouteCursor { epoch: 2, ..cursor }), &Asked::default()).unwrap().reset);
    }

    #[test]
    fn of_a_large_table_a_name_is_told_with_every_address_that_it_may_lead_to() {
        let mut table = RouteTable::new(1);
        let name = |text: &str| DnsName::parse(text).unwrap();
        let mut routes: BTreeMap<_, _> = (0..3_000).map(|address| sample(address, "a")).collect();
        for (index, route) in routes.values_mut().enumerate() {
            route.names = vec![name(if index < 2 { "a.contoso.example" } else { "b.contoso.example" })];
        }
        table.update(routes);
        let cursor = table.since(None, &Asked::default()).unwrap().cursor;
        let told = |asked: &str| table.since(Some(cursor), &Asked { names: &[name(asked)], ..Asked::default() });
        assert_eq!(told("a.contoso.example").unwrap().put.len(), 2);
        assert_eq!(told("b.contoso.example").unwrap().put.len(), PUSHED_ROUTES, "as many as are ever pushed");
        assert_eq!(told("c.contoso.example").unwrap().put, vec![], "nobody's is an answer");
    }

    #[test]
    fn names_that_are_many_and_long_make_a_table_large_and_no_answer_longer_than_its_bound() {
        let mut table = RouteTable::new(1);
        let long = DnsName::parse(&format!("{}.contoso.example", ["x".repeat(60).as_str(); 3].join("."))).unwrap();
        let routes = (0..1_000).map(|address| {
            let (at, route) = sample(address, "a");
            (at, Route { names: vec![long.clone(); 20], ..route })
        });
        table.update(routes.collect());
        let delta = table.since(None, &Asked::default()).unwrap();
        assert!(delta.on_demand && delta.put.is_empty());
        let all: Vec<IpAddr> = (0..1_000).map(|address| sample(address, "a").0).collect();
        let asked = Asked { ask: &all[..1], keep: &all, ..Asked::default() };
        let told = table.since(Some(RouteCursor { version: 1, ..delta.cursor }), &asked).unwrap();
        assert!(serde_json::to_vec(&told).unwrap().len() <= MAX_BYTES + 64 * 1024);
        assert_eq!(told.put[0].address, all[0]);
        assert_eq!(told.put.len() + told.remove.len(), 1_000, "what does not fit is not kept as it was");
        assert!(!told.remove.is_empty());
    }

    #[test]
    fn a_large_table_is_told_only_on_demand() {
        let mut table = RouteTable::new(1);
        table.update((0..3_000).map(|address| sample(address, "a")).collect());
        let delta = table.since(None, &Asked::default()).unwrap();
        assert!(delta.on_demand && delta.put.is_empty());
        let (known, unknown) = (sample(5, "a").0, sample(4_000, "a").0);
        let delta = table.since(Some(delta.cursor), &Asked { ask: &[known, unknown], ..Asked::default() }).unwrap();
        assert_eq!((delta.put.len(), delta.remove), (1, vec![unknown]));
        let pods = [format!("pod-{}", sample(7, "a").0), "pod-of-nobody".to_owned()];
        let told = table.since(Some(delta.cursor), &Asked { pods: &pods, ..Asked::default() }).unwrap();
        assert_eq!(told.put.iter().map(|route| route.address).collect::<Vec<_>>(), [sample(7, "a").0]);
        assert_eq!(table.since(Some(delta.cursor), &Asked { pods: &pods[1..], ..Asked::default() }), None);
        table.update((0..2_999).filter(|address| *address != 5).map(|address| sample(address, "a")).collect());
        assert_eq!(
            table.since(Some(delta.cursor), &Asked { keep: &[known], ..Asked::default() }).unwrap().remove,
            vec![known]
        );
    }
}
