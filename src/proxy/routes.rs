//! The table of routes: address → declared server, and name → addresses. Routes only *find* peers; certificates prove
//! them.
//!
//! Pushed whole to small topologies; beyond that an unknown address is asked for at its first dial, and a name when a
//! resolver first tells an address of it: both wait.

mod questions;
mod table;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::{sync::watch, time::timeout};

pub(super) use self::table::{Led, Table};
use self::{questions::Questions, table::Entry};
use crate::{
    brief::{PUSHED_ROUTES, Route, RouteCursor, RouteDelta},
    identity::DnsName,
};

/// How long a dial waits for the answer about an address, and an answer of DNS for that about its name.
const ASK: Duration = Duration::from_secs(2);
/// How long news of the table is waited for before a declared name leads to a wrong address: a resolver may have heard of
/// a new pod first.
const NEWS: Duration = Duration::from_secs(1);
/// How long an on-demand route is kept after its last use.
const KEEP: Duration = Duration::from_secs(600);
/// Addresses remembered as asked.
const MAX_ASKED: usize = 1024;
/// And asked for in one sync, which has a bound of bytes.
const ADDRESSES_AT_ONCE: usize = 256;
/// Names remembered as asked.
const MAX_NAMES: usize = 1024;
/// And asked for in one sync.
const NAMES_AT_ONCE: usize = 64;

/// The controller did not answer about a name in time, nor ever before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unanswered;

/// The table in force, and the questions about what it lacks.
#[derive(Debug)]
pub(super) struct Routes {
    table: ArcSwap<Table>,
    addresses: Questions<IpAddr>,
    names: Questions<DnsName>,
    changed: watch::Sender<()>,
    wanted: watch::Sender<()>,
    since: Instant,
}

impl Default for Routes {
    fn default() -> Self {
        Self {
            table: ArcSwap::default(),
            addresses: Questions::new(MAX_ASKED),
            names: Questions::new(MAX_NAMES),
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
        self.wait(ASK, || self.look(address)).await.flatten()
    }

    /// Looks again whenever something has changed, until there is an answer or no more time.
    async fn wait<T>(&self, at_most: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let mut changed = self.changed.subscribe();
        let answer = async {
            loop {
                changed.borrow_and_update();
                if let Some(answer) = look() {
                    return Some(answer);
                }
                if changed.changed().await.is_err() {
                    return None;
                }
            }
        };
        timeout(at_most, answer).await.ok().flatten()
    }

    /// `None` = not known yet, and asked for.
    fn look(&self, address: IpAddr) -> Option<Option<Route>> {
        let table = self.table.load();
        if let Some(entry) = table.entries.get(&address) {
            entry.used.store(self.second(), Ordering::Relaxed);
            return Some(Some(entry.route.clone()));
        }
        if table.cursor.is_some() && !table.on_demand || self.addresses.is_fresh(&address) {
            return Some(None);
        }
        if table.on_demand && self.addresses.ask(&address) {
            self.wanted.send_replace(());
        }
        None
    }

    /// Where the declared name `name` may lead, now that a resolver told `told` of it; `None` = nobody declared bears it.
    /// Waits a little where something is told that the table does not know (yet).
    pub(super) async fn led(&self, name: &DnsName, told: &[IpAddr]) -> Result<Option<Led>, Unanswered> {
        if let Some(led) = self.wait(ASK, || self.look_name(name, told)).await {
            let is_known = |led: &Led| told.iter().all(|address| led.addresses.contains(address));
            if led.as_ref().is_none_or(is_known) {
                return Ok(led);
            }
            let news = || self.table.load().led(name).filter(is_known);
            return Ok(self.wait(NEWS, news).await.or(led));
        }
        // What running servers were told before still holds without a controller.
        if self.names.was_answered(name) { Ok(self.table.load().led(name)) } else { Err(Unanswered) }
    }

    /// `None` = not known yet, and asked for.
    fn look_name(&self, name: &DnsName, told: &[IpAddr]) -> Option<Option<Led>> {
        let table = self.table.load();
        table.cursor?;
        let led = table.led(name);
        let is_known = |led: &Led| told.iter().all(|address| led.addresses.contains(address));
        if !table.on_demand || led.as_ref().is_some_and(is_known) || self.names.is_fresh(name) {
            table.use_at(told, self.second());
            return Some(led);
        }
        if self.names.ask(name) {
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
        self.addresses.waiting(ADDRESSES_AT_ONCE)
    }

    /// Names to ask for now.
    pub(super) fn ask_names(&self) -> Vec<DnsName> {
        self.names.waiting(NAMES_AT_ONCE)
    }

    /// The controller answered about `addresses` and `names`: what is still absent is nobody's that is declared.
    pub(super) fn answered(&self, addresses: &[IpAddr], names: &[DnsName]) {
        if addresses.is_empty() && names.is_empty() {
            return;
        }
        self.addresses.answered(addresses);
        self.names.answered(names);
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
    use std::collections::BTreeMap;

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
        routes.answered(&[address], &[]);
        assert!(waiting.await.unwrap().is_none());
        assert!(routes.ask().is_empty());
        assert!(routes.find(address).await.is_none());
        assert!(routes.ask().is_empty(), "asked once");
    }

    fn name(text: &str) -> DnsName {
        DnsName::parse(text).unwrap()
    }

    /// A delta whose routes bear `names`.
    fn named(version: u64, put: &[&str], remove: &[&str], names: &[&str]) -> RouteDelta {
        let mut delta = delta(version, put, remove);
        for route in &mut delta.put {
            route.names = names.iter().map(|text| name(text)).collect();
        }
        delta
    }

    fn told(addresses: &[&str]) -> Vec<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_leads_to_all_that_bear_it_and_for_a_while_to_what_has_left() {
        let routes = Routes::default();
        routes.apply(named(1, &["10.0.0.1", "10.0.0.2", "10.9.0.1"], &[], &["db.contoso.example"]));
        let mut own = named(2, &["10.0.0.1", "10.0.0.2"], &[], &["db.contoso.example"]);
        own.put[0].pod = Some("one".to_owned());
        own.put[1].pod = Some("two".to_owned());
        routes.apply(own);
        let led = routes.led(&name("db.contoso.example"), &told(&["10.0.0.1"])).await.unwrap().unwrap();
        assert_eq!(led.present, told(&["10.9.0.1"]), "the Service's alone");
        assert_eq!(led.server.unwrap().server(), "fe");
        routes.apply(delta(3, &[], &["10.9.0.1", "10.0.0.2"]));
        let led = routes.led(&name("db.contoso.example"), &[]).await.unwrap().unwrap();
        assert_eq!(led.addresses, told(&["10.0.0.1", "10.0.0.2", "10.9.0.1"]).into_iter().collect());
        assert_eq!(led.present, told(&["10.0.0.1"]));
        // Somebody else has it now.
        routes.apply(named(4, &["10.0.0.2"], &[], &["other.contoso.example"]));
        let led = routes.led(&name("db.contoso.example"), &told(&["10.0.0.2"])).await.unwrap().unwrap();
        assert!(!led.addresses.contains(&told(&["10.0.0.2"])[0]));
        let later = routes.table().apply(delta(5, &[], &[]), 600);
        assert_eq!(later.led(&name("db.contoso.example")).unwrap().addresses.len(), 1);
        assert_eq!(routes.led(&name("nobody.example"), &told(&["10.0.0.1"])).await, Ok(None));
        assert!(routes.ask_names().is_empty(), "a whole table needs no questions");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_a_resolver_knows_first_is_waited_for_a_little() {
        let routes = Arc::new(Routes::default());
        routes.apply(named(1, &["10.0.0.1"], &[], &["db.contoso.example"]));
        let waiting = tokio::spawn({
            let routes = routes.clone();
            async move { routes.led(&name("db.contoso.example"), &told(&["10.0.0.2"])).await }
        });
        tokio::task::yield_now().await;
        routes.apply(named(2, &["10.0.0.2"], &[], &["db.contoso.example"]));
        assert_eq!(waiting.await.unwrap().unwrap().unwrap().addresses.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_on_demand_table_is_asked_for_a_name_and_without_an_answer_the_last_one_counts() {
        let routes = Arc::new(Routes::default());
        routes.apply(RouteDelta { on_demand: true, ..named(1, &["10.0.0.1"], &[], &["db.contoso.example"]) });
        let ask = |text: &'static str, addresses: &'static [&'static str]| {
            let routes = routes.clone();
            tokio::spawn(async move { routes.led(&name(text), &told(addresses)).await })
        };
        assert!(
            ask("db.contoso.example", &["10.0.0.1"]).await.unwrap().unwrap().is_some(),
            "what fits needs no question"
        );
        let (outside, grown) = (ask("www.example", &["192.0.2.1"]), ask("db.contoso.example", &["10.0.0.2"]));
        tokio::task::yield_now().await;
        assert_eq!(routes.ask_names(), [name("db.contoso.example"), name("www.example")]);
        routes.apply(RouteDelta { on_demand: true, ..named(2, &["10.0.0.2"], &[], &["db.contoso.example"]) });
        assert_eq!(grown.await.unwrap().unwrap().unwrap().addresses.len(), 2);
        routes.answered(&[], &routes.ask_names());
        assert_eq!(outside.await.unwrap(), Ok(None));
        assert_eq!(ask("www.example", &["192.0.2.1"]).await.unwrap(), Ok(None));
        assert!(routes.ask_names().is_empty(), "asked once");
        assert_eq!(ask("new.example", &["192.0.2.1"]).await.unwrap(), Err(Unanswered), "nobody answers");
    }
}
