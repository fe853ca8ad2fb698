//! The table of routes: address → declared server. Routes only *find* peers; certificates prove them.
//!
//! Pushed whole to small topologies; beyond that an unknown address is asked for at its first dial, which waits.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::{sync::watch, time::timeout};

use crate::brief::{PUSHED_ROUTES, Route, RouteCursor, RouteDelta};

/// How long a dial waits for the answer about an address.
const ASK: Duration = Duration::from_secs(2);
/// How long the answer "nobody declared is there" is believed.
const UNKNOWN: Duration = Duration::from_secs(5);
/// How long an on-demand route is kept after its last use.
const KEEP: Duration = Duration::from_secs(600);
/// Addresses asked for in one sync, and remembered as asked.
const MAX_ASKED: usize = 1024;

/// One state of the table.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<IpAddr, Arc<Entry>>,
    /// The own addresses of pods, by their UIDs.
    pods: HashMap<String, Vec<IpAddr>>,
    cursor: Option<RouteCursor>,
    on_demand: bool,
}

#[derive(Debug)]
struct Entry {
    route: Route,
    /// Seconds after the table's beginning.
    used: AtomicU64,
}

impl Table {
    /// The declared server at `address`.
    pub(super) fn at(&self, address: IpAddr) -> Option<&Route> {
        self.entries.get(&address).map(|entry| &entry.route)
    }

    /// The declared server at the own addresses of the pod `uid`.
    pub(super) fn of_pod(&self, uid: &str) -> impl Iterator<Item = &Route> {
        self.pods.get(uid).into_iter().flatten().filter_map(|address| self.at(*address))
    }

    fn apply(&self, delta: RouteDelta, second: u64) -> Self {
        let mut entries = if delta.reset { HashMap::new() } else { self.entries.clone() };
        for address in &delta.remove {
            entries.remove(&address.to_canonical());
        }
        for route in delta.put {
            let address = route.address.to_canonical();
            let used = AtomicU64::new(second);
            entries.insert(address, Arc::new(Entry { route, used }));
        }
        let mut pods = HashMap::<String, Vec<IpAddr>>::new();
        for (address, entry) in &entries {
            if let Some(uid) = &entry.route.pod {
                pods.entry(uid.clone()).or_default().push(*address);
            }
        }
        Self { entries, pods, cursor: Some(delta.cursor), on_demand: delta.on_demand }
    }
}

/// The table in force, and the questions about addresses that it lacks.
#[derive(Debug)]
pub(super) struct Routes {
    table: ArcSwap<Table>,
    asked: Mutex<BTreeMap<IpAddr, Asked>>,
    changed: watch::Sender<()>,
    wanted: watch::Sender<()>,
    since: Instant,
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Waiting,
    Answered(Instant),
}

impl Default for Routes {
    fn default() -> Self {
        Self {
            table: ArcSwap::default(),
            asked: Mutex::default(),
            changed: watch::Sender::new(()),
            wanted: watch::Sender::new(()),
            since: Instant::now(),
        }
    }
}

impl Routes {
    /// The table as it stands.
    pub(super) fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// The declared server at `address`; waits a little for the first table, or for the answer about this address.
    pub(super) async fn find(&self, address: IpAddr) -> Option<Route> {
        let mut changed = self.changed.subscribe();
        let answer = async {
            loop {
                changed.borrow_and_update();
                if let Some(answer) = self.look(address) {
                    return answer;
                }
                if changed.changed().await.is_err() {
                    return None;
                }
            }
        };
        timeout(ASK, answer).await.ok().flatten()
    }

    /// `None` = not known yet, and asked for.
    fn look(&self, address: IpAddr) -> Option<Option<Route>> {
        let table = self.table.load();
        if let Some(entry) = table.entries.get(&address) {
            entry.used.store(self.second(), Ordering::Relaxed);
            return Some(Some(entry.route.clone()));
        }
        if table.cursor.is_some() && !table.on_demand {
            return Some(None);
        }
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        match asked.get(&address) {
            Some(Asked::Answered(when)) if when.elapsed() < UNKNOWN => return Some(None),
            Some(Asked::Waiting) => return None,
            _ => {}
        }
        if asked.len() >= MAX_ASKED {
            asked.retain(|_, state| matches!(state, Asked::Waiting));
        }
        if asked.len() < MAX_ASKED && table.on_demand {
            asked.insert(address, Asked::Waiting);
            self.wanted.send_replace(());
        }
        None
    }

    /// Applies what the controller sent.
    pub(super) fn apply(&self, delta: RouteDelta) {
        let next = self.table.load().apply(delta, self.second());
        self.table.store(Arc::new(next));
        self.changed.send_replace(());
    }

    /// Where the table stands.
    pub(super) fn cursor(&self) -> Option<RouteCursor> {
        self.table.load().cursor
    }

    /// Addresses to ask for now.
    pub(super) fn ask(&self) -> Vec<IpAddr> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|(_, state)| matches!(state, Asked::Waiting)).map(|(address, _)| *address).collect()
    }

    /// The controller answered about `addresses`: those still absent are nobody's that is declared.
    pub(super) fn answered(&self, addresses: &[IpAddr]) {
        if addresses.is_empty() {
            return;
        }
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        for address in addresses {
            asked.insert(*address, Asked::Answered(now));
        }
        drop(asked);
        self.changed.send_replace(());
    }

    /// On-demand addresses still in use.
    pub(super) fn keep(&self) -> Vec<IpAddr> {
        let table = self.table.load();
        if !table.on_demand {
            return Vec::new();
        }
        let oldest = self.second().saturating_sub(KEEP.as_secs());
        let used = |entry: &&Arc<Entry>| entry.used.load(Ordering::Relaxed) >= oldest;
        table.entries.values().filter(used).map(|entry| entry.route.address).take(PUSHED_ROUTES).collect()
    }

    /// Those of `pods` whose own addresses must be told. The others' count as used, so that they stay.
    pub(super) fn unknown(&self, pods: BTreeSet<String>) -> Vec<String> {
        let table = self.table.load();
        if !table.on_demand {
            return Vec::new();
        }
        let is_unknown = |uid: &String| match table.pods.get(uid) {
            None => true,
            Some(addresses) => {
                for entry in addresses.iter().filter_map(|address| table.entries.get(address)) {
                    entry.used.store(self.second(), Ordering::Relaxed);
                }
                false
            }
        };
        pods.into_iter().filter(is_unknown).take(PUSHED_ROUTES).collect()
    }

    /// A listener for addresses that somebody waits for.
    pub(super) fn wanted(&self) -> watch::Receiver<()> {
        self.wanted.subscribe()
    }

    fn second(&self) -> u64 {
        self.since.elapsed().as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SpiffeId;

    fn route(address: &str) -> Route {
        let server = SpiffeId::parse("spiffe://contoso.example/ns/sip/server/fe").unwrap();
        Route {
            address: address.parse().unwrap(),
            server,
            pod: None,
            sidecar: true,
            ports: BTreeMap::new(),
            names: vec![],
        }
    }

    fn delta(version: u64, put: &[&str], remove: &[&str]) -> RouteDelta {
        RouteDelta {
            cursor: RouteCursor { epoch: 1, version },
            reset: version == 1,
            on_demand: false,
            put: put.iter().map(|address| route(address)).collect(),
            remove: remove.iter().map(|address| address.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn deltas_add_up_and_a_reset_forgets() {
        let routes = Routes::default();
        routes.apply(delta(1, &["10.0.0.1", "10.0.0.2"], &[]));
        routes.apply(delta(2, &["10.0.0.3"], &["10.0.0.1"]));
        let table = routes.table();
        assert!(table.at("10.0.0.1".parse().unwrap()).is_none());
        assert!(table.at("10.0.0.2".parse().unwrap()).is_some());
        assert_eq!(routes.cursor(), Some(RouteCursor { epoch: 1, version: 2 }));
        routes.apply(delta(1, &["10.0.0.9"], &[]));
        assert!(routes.table().at("10.0.0.2".parse().unwrap()).is_none());
    }

    #[test]
    fn the_own_addresses_of_a_pod_are_found_by_its_uid_and_asked_for_where_they_are_unknown() {
        let routes = Routes::default();
        let mut first = delta(1, &["10.0.0.1", "10.0.0.2", "10.0.0.3"], &[]);
        first.on_demand = true;
        first.put[0].pod = Some("one".to_owned());
        first.put[1].pod = Some("one".to_owned());
        routes.apply(first);
        assert_eq!(routes.table().of_pod("one").count(), 2);
        assert_eq!(routes.table().of_pod("two").count(), 0);
        let pods = || BTreeSet::from(["one".to_owned(), "two".to_owned()]);
        assert_eq!(routes.unknown(pods()), ["two"]);
        routes.apply(RouteDelta { on_demand: true, ..delta(2, &[], &["10.0.0.1", "10.0.0.2"]) });
        assert_eq!(routes.table().of_pod("one").count(), 0);
        assert_eq!(routes.unknown(pods()), ["one", "two"]);
        routes.apply(delta(3, &[], &[]));
        assert!(routes.unknown(pods()).is_empty(), "a whole table needs no questions");
    }

    #[tokio::test(start_paused = true)]
    async fn a_dial_before_the_first_table_waits_for_it() {
        let routes = Arc::new(Routes::default());
        let waiting = tokio::spawn({
            let routes = routes.clone();
            async move { routes.find("10.0.0.1".parse().unwrap()).await }
        });
        tokio::task::yield_now().await;
        routes.apply(delta(1, &["10.0.0.1"], &[]));
        assert!(waiting.await.unwrap().is_some());
        assert!(routes.find("10.0.0.2".parse().unwrap()).await.is_none(), "a whole table answers at once");
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_address_is_asked_for_and_its_absence_believed_for_a_while() {
        let routes = Arc::new(Routes::default());
        routes.apply(RouteDelta { on_demand: true, ..delta(1, &[], &[]) });
        let address: IpAddr = "10.0.0.7".parse().unwrap();
        let waiting = tokio::spawn({
            let routes = routes.clone();
            async move { routes.find(address).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(routes.ask(), [address]);
        routes.answered(&[address]);
        assert!(waiting.await.unwrap().is_none());
        assert!(routes.ask().is_empty());
        assert!(routes.find(address).await.is_none());
        assert!(routes.ask().is_empty(), "asked once");
    }
}
