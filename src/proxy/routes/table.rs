//! One state of the table of routes.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    brief::{PUSHED_ROUTES, Route, RouteCursor, RouteDelta},
    identity::{DnsName, SpiffeId},
};

/// So many seconds a name may still lead to an address that has left the table: resolvers tell what they remember.
const LINGER: u64 = 60;

/// One state of the table.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Table {
    pub(super) entries: HashMap<IpAddr, Arc<Entry>>,
    /// The own addresses of pods, by their UIDs.
    pub(super) pods: HashMap<String, Vec<IpAddr>>,
    names: HashMap<DnsName, Vec<IpAddr>>,
    /// What has left lately, and when.
    left: HashMap<IpAddr, (Arc<Entry>, u64)>,
    pub(super) cursor: Option<RouteCursor>,
    pub(super) on_demand: bool,
}

/// A route, and when it was last used.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) route: Route,
    /// Seconds after the table's beginning.
    pub(super) used: AtomicU64,
}

/// Where a declared name may lead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::proxy) struct Led {
    /// To these addresses, those that have just left included.
    pub(in crate::proxy) addresses: BTreeSet<IpAddr>,
    /// Those of Services, or else of pods, that are there now.
    pub(in crate::proxy) present: Vec<IpAddr>,
    /// Whose they are, where they are one server's.
    pub(in crate::proxy) server: Option<SpiffeId>,
}

impl Table {
    /// The declared server at `address`.
    pub(in crate::proxy) fn at(&self, address: IpAddr) -> Option<&Route> {
        self.entries.get(&address).map(|entry| &entry.route)
    }

    /// The declared server at the own addresses of the pod `uid`.
    pub(in crate::proxy) fn of_pod(&self, uid: &str) -> impl Iterator<Item = &Route> {
        self.pods.get(uid).into_iter().flatten().filter_map(|address| self.at(*address))
    }

    /// Where `name` may lead; `None` = no route that is in hand bears it.
    pub(in crate::proxy) fn led(&self, name: &DnsName) -> Option<Led> {
        let addresses = self.names.get(name)?;
        let here = |address: &IpAddr| self.entries.get(address).filter(|entry| entry.route.names.contains(name));
        let routes: Vec<&Route> = addresses.iter().filter_map(|address| Some(&here(address)?.route)).collect();
        let left = addresses.iter().filter_map(|address| Some(&self.left.get(address)?.0.route));
        let servers: BTreeSet<&SpiffeId> = routes.iter().copied().chain(left).map(|route| &route.server).collect();
        let services = routes.iter().filter(|route| route.pod.is_none()).map(|route| route.address.to_canonical());
        let mut present: Vec<IpAddr> = services.collect();
        if present.is_empty() {
            present = routes.iter().map(|route| route.address.to_canonical()).collect();
        }
        present.sort();
        let server = if servers.len() == 1 { servers.first().map(|server| (*server).clone()) } else { None };
        Some(Led { addresses: addresses.iter().copied().collect(), present, server })
    }

    /// Counts the routes to `addresses` as used at `second`, so that an on-demand table keeps them.
    pub(super) fn use_at(&self, addresses: &[IpAddr], second: u64) {
        for entry in addresses.iter().filter_map(|address| self.entries.get(address)) {
            entry.used.store(second, Ordering::Relaxed);
        }
    }

    pub(super) fn apply(&self, delta: RouteDelta, second: u64) -> Self {
        let mut entries = if delta.reset { HashMap::new() } else { self.entries.clone() };
        for address in &delta.remove {
            entries.remove(&address.to_canonical());
        }
        for route in delta.put {
            let address = route.address.to_canonical();
            let used = AtomicU64::new(second);
            entries.insert(address, Arc::new(Entry { route, used }));
        }
        let mut left = self.left.clone();
        let gone = self.entries.iter().filter(|(address, _)| !entries.contains_key(*address));
        left.extend(gone.map(|(address, entry)| (*address, (entry.clone(), second))).take(PUSHED_ROUTES));
        // An address that is somebody's again is nobody else's.
        left.retain(|address, (_, when)| !entries.contains_key(address) && second.saturating_sub(*when) < LINGER);
        let mut pods = HashMap::<String, Vec<IpAddr>>::new();
        let mut names = HashMap::<DnsName, Vec<IpAddr>>::new();
        for (address, entry) in &entries {
            if let Some(uid) = &entry.route.pod {
                pods.entry(uid.clone()).or_default().push(*address);
            }
        }
        let lingering = left.iter().map(|(address, (entry, _))| (address, entry));
        for (address, entry) in entries.iter().chain(lingering) {
            for name in &entry.route.names {
                match names.get_mut(name) {
                    Some(addresses) => addresses.push(*address),
                    None => _ = names.insert(name.clone(), vec![*address]),
                }
            }
        }
        Self { entries, pods, names, left, cursor: Some(delta.cursor), on_demand: delta.on_demand }
    }
}
