//! The sources of partners' trust, which the leader alone asks: ConfigMaps, bundle endpoints, revocation lists.
//!
//! Nothing here ever makes the loop wait. Attempts run beside it, few at a time, and those whose last attempt failed
//! have places of their own: who is slow or broken delays others of its kind alone. What comes of an attempt is the
//! partner's next record, which the plan writes.

pub mod address;
mod ask;
pub mod fetch;
pub mod proof;
pub(super) mod record;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use jiff::Timestamp;
use kube::Client;
use rustls::RootCertStore;
use tokio::{
    sync::Semaphore,
    task::{Id, JoinSet},
};
use tracing::warn;

use super::watch::Signal;
use crate::{
    api::FederationPartner,
    pki::bundle,
    plan::{Asked, World},
    telemetry,
    topology::{
        PartnerKey,
        kept::{self, Kept},
    },
};
use address::Denied;
use ask::{Job, Outcome, Parts};
use fetch::Fetcher;

/// Attempts at a time, by [`Lane`].
const AT_ONCE: [usize; 3] = [8, 4, 4];
/// Attempts that wait for their turn, of each kind; the rest waits for the next round.
const WAITING: usize = 64;
/// Partners whose roots stand in their spec, and that one round looks at.
const PLAIN: usize = 256;
/// A ConfigMap is read again after this time, in seconds.
const LOOK_SECONDS: i64 = 10;

/// What partners are asked with.
#[derive(Clone)]
pub struct Asker {
    client: Client,
    fetcher: Fetcher,
    denied: Denied,
    /// Roots of the web PKI, PEM.
    pub web_roots: Arc<[String]>,
    signal: Signal,
    places: [Arc<Semaphore>; 3],
}

impl std::fmt::Debug for Asker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asker").finish_non_exhaustive()
    }
}

impl Asker {
    /// One that trusts Mozilla's roots for the web PKI, and is never led to `denied` networks nor into the cluster.
    pub(super) fn new(client: Client, denied: &[IpNet], signal: Signal) -> Self {
        let certificates = webpki_root_certs::TLS_SERVER_ROOT_CERTS;
        let mut web = RootCertStore::empty();
        web.add_parsable_certificates(certificates.iter().cloned());
        let fetcher = Fetcher::new(Arc::new(web), Fetcher::system());
        let web_roots = certificates.iter().map(|der| bundle::encode(der)).collect();
        Self::with(client, fetcher, Denied::beside(denied), web_roots, signal)
    }

    fn with(client: Client, fetcher: Fetcher, denied: Denied, web_roots: Arc<[String]>, signal: Signal) -> Self {
        let places = AT_ONCE.map(|places| Arc::new(Semaphore::new(places)));
        Self { client, fetcher, denied, web_roots, signal, places }
    }
}

/// Who waits with whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    /// Partners whose sources have answered, and do.
    Proven,
    /// Partners of whom nothing is known yet.
    New,
    /// Partners whose last attempt brought nothing.
    Failing,
}

/// When each partner is asked, and what came of it.
#[derive(Debug, Default)]
pub(super) struct Sources {
    rows: BTreeMap<PartnerKey, Row>,
    tasks: JoinSet<(PartnerKey, Sign, Outcome)>,
    running: BTreeMap<Id, PartnerKey>,
}

/// Which object an attempt is for: another generation asks anew.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sign(Option<String>, Option<i64>);

impl Sign {
    fn of(object: &FederationPartner) -> Self {
        Self(object.metadata.uid.clone(), object.metadata.generation)
    }
}

#[derive(Debug)]
struct Row {
    sign: Sign,
    /// When each part is asked again.
    maps: Timestamp,
    endpoint: Timestamp,
    lists: Timestamp,
    /// How often in a row endpoint and addresses brought nothing.
    failures: (u32, u32),
    /// The attempt under way: its parts, the version of the record that it rests on, and with whom it waits.
    under_way: Option<(Parts, Option<String>, Lane)>,
    asked: Option<Asked>,
}

impl Row {
    const fn new(sign: Sign) -> Self {
        let always = Timestamp::MIN;
        let due = (always, always, always);
        Self { sign, maps: due.0, endpoint: due.1, lists: due.2, failures: (0, 0), under_way: None, asked: None }
    }

    /// With whom it waits.
    fn lane(&self, record: Option<&Kept>) -> Lane {
        match record {
            _ if self.failures != (0, 0) => Lane::Failing,
            Some(record) if record.fetched > 0 => Lane::Proven,
            Some(_) | None => Lane::New,
        }
    }

    /// What is due of `object`, of which `record` is known.
    fn due(&self, object: &FederationPartner, record: Option<&Kept>, now: Timestamp) -> Parts {
        let spec = &object.spec;
        // A clock that was ahead must not silence a source.
        let late = |at: Timestamp| at <= now || at.as_second() - now.as_second() > 86_400;
        let reads = spec.trust.config_map_ref.is_some() || spec.revocation.config_map_ref.is_some();
        let first = self.maps == Timestamp::MIN || record.is_none();
        Parts {
            maps: first || (reads && late(self.maps)),
            endpoint: spec.trust.spiffe_endpoint.is_some() && late(self.endpoint),
            lists: !spec.revocation.crl_urls.is_empty() && late(self.lists),
        }
    }

    /// Takes over when the parts that were asked are asked again.
    fn took(&mut self, parts: Parts, outcome: &Outcome, now: Timestamp) {
        let after = |seconds: i64| Timestamp::from_second(now.as_second() + seconds).unwrap_or(now);
        let count = |failures: u32, good: bool| if good { 0 } else { failures.saturating_add(1) };
        if parts.maps {
            self.maps = after(LOOK_SECONDS);
        }
        if parts.endpoint {
            self.failures.0 = count(self.failures.0, outcome.endpoint);
            self.endpoint = after(kept::pause(self.failures.0, outcome.record.refresh, telemetry::jitter()));
        }
        if parts.lists {
            self.failures.1 = count(self.failures.1, outcome.lists);
            self.lists = after(kept::pause(self.failures.1, kept::REFRESH, telemetry::jitter()));
        }
    }
}

impl Sources {
    /// Takes in what attempts brought, begins those that are due, and answers the records that would follow.
    pub(super) fn look(&mut self, asker: &Arc<Asker>, world: &World, now: Timestamp) -> BTreeMap<PartnerKey, Asked> {
        let objects: BTreeMap<PartnerKey, &FederationPartner> =
            world.declared.partners.iter().map(|object| (PartnerKey::of(object), object)).collect();
        self.rows.retain(|key, _| objects.contains_key(key));
        for (key, object) in &objects {
            let sign = Sign::of(object);
            let row = self.rows.entry(key.clone()).or_insert_with(|| Row::new(sign.clone()));
            if row.sign != sign {
                *row = Row::new(sign);
            }
        }
        self.take_in(now);
        self.settle(world);
        self.begin(asker, world, &objects, now);
        self.rows.iter().filter_map(|(key, row)| Some((key.clone(), row.asked.clone()?))).collect()
    }

    fn take_in(&mut self, now: Timestamp) {
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            match ended {
                Ok((id, (key, sign, outcome))) => {
                    self.running.remove(&id);
                    let Some(row) = self.rows.get_mut(&key).filter(|row| row.sign == sign) else { continue };
                    let Some((parts, on, _)) = row.under_way.take() else { continue };
                    row.took(parts, &outcome, now);
                    row.asked = Some(Asked { on, record: Arc::new(outcome.record) });
                }
                Err(failure) => {
                    let Some(key) = self.running.remove(&failure.id()) else { continue };
                    warn!(partner = %key, error = %failure, "asking a partner's sources failed");
                    let Some(row) = self.rows.get_mut(&key) else { continue };
                    row.under_way = None;
                    let later = Timestamp::from_second(now.as_second() + LOOK_SECONDS).unwrap_or(now);
                    (row.maps, row.endpoint, row.lists) = (later, later, later);
                }
            }
        }
    }

    /// Forgets what is kept by now, and what rests on a record that somebody else moved on: it is asked anew.
    fn settle(&mut self, world: &World) {
        for (key, row) in &mut self.rows {
            let Some(asked) = &row.asked else { continue };
            let held = world.declared.kept.get(key);
            if held.and_then(|held| held.record.as_ref()) == Some(&asked.record) {
                row.asked = None;
            } else if held.and_then(|held| held.version.clone()) != asked.on {
                let sign = row.sign.clone();
                *row = Row::new(sign);
            }
        }
    }

    fn begin(
        &mut self,
        asker: &Arc<Asker>,
        world: &World,
        objects: &BTreeMap<PartnerKey, &FederationPartner>,
        now: Timestamp,
    ) {
        let mut plain = 0;
        let mut due: BTreeMap<Lane, Vec<(Timestamp, PartnerKey, Parts)>> = BTreeMap::new();
        for (key, row) in self.rows.iter_mut().filter(|(_, row)| row.under_way.is_none() && row.asked.is_none()) {
            let Some(object) = objects.get(key) else { continue };
            let (on, record) = known(world, key, object);
            let parts = row.due(object, record, now);
            if !parts.any() {
                continue;
            }
            if object.spec.trust.ca_bundle.is_none() || kept::publishes(&object.spec.revocation) {
                let since = row.maps.min(row.endpoint).min(row.lists);
                due.entry(row.lane(record)).or_default().push((since, key.clone(), parts));
            } else if plain < PLAIN {
                plain += 1;
                let record = record.cloned().unwrap_or_else(|| Kept::of(object));
                let record = written(object, record, &world.declared.own_keys, now);
                row.asked = Some(Asked { on, record: Arc::new(record) });
                row.maps = now;
            }
        }
        let mut shared = None;
        for (lane, mut waiting) in due {
            // Who has waited longest, first.
            waiting.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
            let taken = self.rows.values().filter(|row| row.under_way.as_ref().is_some_and(|(_, _, one)| *one == lane));
            let room = WAITING.saturating_sub(taken.count());
            for (_, key, parts) in waiting.into_iter().take(room) {
                let (Some(object), Some(row)) = (objects.get(&key), self.rows.get_mut(&key)) else { continue };
                let (on, record) = known(world, &key, object);
                let record = record.cloned().unwrap_or_else(|| Kept::of(object));
                let (ours, known) = shared
                    .get_or_insert_with(|| (Arc::new(world.declared.own_keys.clone()), Arc::new(addresses(world))));
                let (ours, known) = (Arc::clone(ours), Arc::clone(known));
                let job = Job { object: (*object).clone(), parts, record, ours, known };
                row.under_way = Some((parts, on, lane));
                let task = attempt(Arc::clone(asker), (key.clone(), row.sign.clone()), job, lane, now);
                self.running.insert(self.tasks.spawn(task).id(), key);
            }
        }
    }
}

/// The version of what is kept of a partner, and the record where it is this very object's.
fn known<'a>(world: &'a World, key: &PartnerKey, object: &FederationPartner) -> (Option<String>, Option<&'a Kept>) {
    let held = world.declared.kept.get(key);
    let record = held.and_then(|held| held.record.as_deref()).filter(|record| record.is_of(object));
    (held.and_then(|held| held.version.clone()), record)
}

/// One attempt, when there is a place for it.
async fn attempt(
    asker: Arc<Asker>,
    (key, sign): (PartnerKey, Sign),
    job: Job,
    lane: Lane,
    now: Timestamp,
) -> (PartnerKey, Sign, Outcome) {
    let (places, before) = (&asker.places[lane as usize], job.record.clone());
    let place = places.acquire().await;
    let outcome = job.run(&asker, now).await;
    drop(place);
    // What is as it was wakes nobody, unless others may wait for its place.
    if outcome.record != before || places.available_permits() == AT_ONCE[lane as usize] {
        asker.signal.raise();
    }
    (key, sign, outcome)
}

/// What a partner whose roots stand in its spec says: nobody need be asked.
fn written(object: &FederationPartner, mut record: Kept, ours: &BTreeSet<String>, now: Timestamp) -> Kept {
    if let Some(pem) = &object.spec.trust.ca_bundle {
        record.take_text(Ok(pem), ours, now);
    }
    record.retain_lists(&object.spec.revocation);
    record
}

/// Addresses that this cluster has given away.
fn addresses(world: &World) -> HashSet<IpAddr> {
    let pods = world.declared.pods.iter().flat_map(|pod| &pod.addresses);
    let services = world.declared.services.iter().flat_map(|service| &service.addresses);
    pods.chain(services).copied().collect()
}

#[cfg(test)]
mod tests;
