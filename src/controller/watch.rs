//! Watches: each kind becomes a table of projections, kept current by kube's watcher.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::StreamExt;
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::watch, task::JoinSet};
use tracing::warn;

/// Wakes the loop after changes.
#[derive(Clone, Debug)]
pub(super) struct Signal(Arc<watch::Sender<u64>>);

impl Signal {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    pub(super) fn raise(&self) {
        self.0.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(super) fn listen(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// Objects of one kind by `namespace/name`, reduced to what we need of them.
#[derive(Debug)]
pub(super) struct Table<V> {
    rows: RwLock<BTreeMap<String, V>>,
    synced: AtomicBool,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self { rows: RwLock::default(), synced: AtomicBool::new(false) }
    }
}

impl<V: Clone> Table<V> {
    /// Whether the first list is complete.
    pub(super) fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// All rows.
    pub(super) fn rows(&self) -> BTreeMap<String, V> {
        self.read(Clone::clone)
    }

    /// Looks at the rows under the lock.
    pub(super) fn read<R>(&self, look: impl FnOnce(&BTreeMap<String, V>) -> R) -> R {
        look(&self.rows.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn change<R>(&self, act: impl FnOnce(&mut BTreeMap<String, V>) -> R) -> R {
        act(&mut self.rows.write().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

/// Keeps a table of `api`'s objects; `project` answers `None` for objects that do not matter.
pub(super) fn keep<K, V>(
    tasks: &mut JoinSet<()>,
    api: Api<K>,
    config: watcher::Config,
    signal: Signal,
    project: impl Fn(K) -> Option<V> + Send + 'static,
) -> Arc<Table<V>>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    V: Clone + PartialEq + Send + Sync + 'static,
{
    let table = Arc::new(Table::default());
    let kept = Arc::clone(&table);
    tasks.spawn(async move {
        let mut stream = watcher::watcher(api, config).default_backoff().boxed();
        let mut fresh = BTreeMap::new();
        while let Some(event) = stream.next().await {
            let changed = match event {
                Ok(event) => take(&kept, &mut fresh, event, &project),
                Err(error) => {
                    warn!(%error, "a watch failed and starts again");
                    false
                }
            };
            if changed {
                signal.raise();
            }
        }
    });
    table
}

/// Takes one event over; answers whether the table changed.
fn take<K: Resource, V: Clone + PartialEq>(
    table: &Table<V>,
    fresh: &mut BTreeMap<String, V>,
    event: Event<K>,
    project: &impl Fn(K) -> Option<V>,
) -> bool {
    let name = |object: &K| format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any());
    match event {
        Event::Init => {
            fresh.clear();
            false
        }
        Event::InitApply(object) => {
            let key = name(&object);
            fresh.extend(project(object).map(|row| (key, row)));
            false
        }
        Event::InitDone => {
            let rows = std::mem::take(fresh);
            table.change(|held| *held = rows);
            table.synced.store(true, Ordering::Release);
            true
        }
        Event::Apply(object) => {
            let key = name(&object);
            match project(object) {
                Some(row) => table.change(|held| {
                    let same = held.get(&key) == Some(&row);
                    if !same {
                        held.insert(key, row);
                    }
                    !same
                }),
                None => table.change(|held| held.remove(&key).is_some()),
            }
        }
        Event::Delete(object) => table.change(|held| held.remove(&name(&object)).is_some()),
    }
}
