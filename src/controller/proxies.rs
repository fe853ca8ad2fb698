//! What the sidecars told the replicas: who has which brief in force.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::watch::Signal;
use crate::{
    brief::{Cursor, MAX_REPORTED_REFUSALS, PartnerContact, RefusedConnections, Report},
    identity::{Identity, SpiffeId},
    pki::{self, verify::MAX_PARTNERS},
    plan::{ProxySeen, audit::InUse},
    refusal::Refusal,
};

/// A sidecar between two polls counts as connected this long, in seconds.
const BETWEEN_POLLS: i64 = 10;
/// Certificates that one answer tells of.
const MAX_IN_USE: usize = 65_536;
/// Identities whose cut connections are counted, for each sidecar.
const MAX_CUT: usize = 256;

/// One sidecar, as one replica sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    cursor: Option<Cursor>,
    /// Polls that are held now.
    held: u32,
    /// When the last poll came or ended, Unix seconds.
    last: i64,
    leaf_not_before: i64,
    leaf_not_after: i64,
    /// Identity in its certificate, and the certificate's serial, hex.
    id: String,
    serial: String,
    /// Open connections that it cut because of a withdrawal, by who lost them; bounded.
    cut: BTreeMap<SpiffeId, u64>,
    /// Its last contact with each partner; bounded.
    contacts: BTreeMap<String, PartnerContact>,
}

pub(super) type Rows = BTreeMap<String, Row>;

/// Our own rows and those of the other replicas.
pub(super) struct Proxies {
    own: Mutex<Rows>,
    others: Mutex<BTreeMap<String, Rows>>,
    version: watch::Sender<u64>,
    signal: Signal,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxies {
    pub(super) fn new(signal: Signal) -> Self {
        Self { own: Mutex::default(), others: Mutex::default(), version: watch::Sender::new(1), signal }
    }

    /// A poll came: what it acknowledges, and with which certificate. It is held until the answer is dropped.
    pub(super) fn poll(&self, uid: &str, identity: &Identity, cursor: Option<Cursor>, now: Timestamp) -> Held<'_> {
        let news = {
            let mut own = lock(&self.own);
            let row = own.entry(uid.to_owned()).or_default();
            let before =
                (row.cursor.clone(), row.leaf_not_after, row.held > 0 || now.as_second() - row.last < BETWEEN_POLLS);
            row.cursor = cursor;
            row.held += 1;
            row.last = now.as_second();
            row.leaf_not_before = identity.not_before.as_second();
            row.leaf_not_after = identity.not_after.as_second();
            row.id = identity.id.to_string();
            row.serial = pki::hex(&identity.serial);
            before != (row.cursor.clone(), row.leaf_not_after, true)
        };
        if news {
            self.changed();
        }
        Held { proxies: self, uid: uid.to_owned() }
    }

    /// A sidecar reports; what it cut because of a withdrawal is counted, and whom it met is news where that changed.
    pub(super) fn report(&self, uid: &str, report: &Report) {
        let withdrawn = |refused: &&RefusedConnections| {
            let because = matches!(
                refused.reason,
                Refusal::Revoked | Refusal::Withdrawn(_) | Refusal::IssuerNotCurrent | Refusal::NotReady(_)
            );
            refused.cut && because
        };
        let mut own = lock(&self.own);
        for refused in report.refusals.iter().take(MAX_REPORTED_REFUSALS).filter(withdrawn) {
            let Ok(id) = SpiffeId::parse(&refused.peer) else { continue };
            let cut = &mut own.entry(uid.to_owned()).or_default().cut;
            if cut.len() < MAX_CUT || cut.contains_key(&id) {
                *cut.entry(id).or_default() += refused.count;
            }
        }
        if report.contacts.is_empty() {
            return;
        }
        let row = own.entry(uid.to_owned()).or_default();
        let outcomes = |contacts: &BTreeMap<String, PartnerContact>| -> Vec<(String, Option<Refusal>)> {
            contacts.iter().map(|(name, contact)| (name.clone(), contact.refused)).collect()
        };
        let before = outcomes(&row.contacts);
        row.contacts = report.contacts.iter().take(MAX_PARTNERS).map(|(name, one)| (name.clone(), *one)).collect();
        let news = before != outcomes(&row.contacts);
        drop(own);
        if news {
            self.changed();
        }
    }

    /// The certificates that sidecars use which poll this replica now; bounded.
    pub(super) fn in_use(&self, now: Timestamp) -> Vec<InUse> {
        let own = lock(&self.own);
        let polls = own.iter().filter(|(_, row)| row.held > 0 || now.as_second() - row.last < BETWEEN_POLLS);
        let shown = polls.filter_map(|(uid, row)| {
            let not_after = Timestamp::from_second(row.leaf_not_after).ok().filter(|_| !row.serial.is_empty())?;
            Some(InUse { pod_uid: uid.clone(), id: row.id.clone(), serial: row.serial.clone(), not_after })
        });
        shown.take(MAX_IN_USE).collect()
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
        self.signal.raise();
    }

    /// Our own rows and their version, for another replica.
    pub(super) fn own(&self) -> (u64, Rows) {
        (*self.version.borrow(), lock(&self.own).clone())
    }

    /// Wakes when our own rows have changed.
    pub(super) fn listen(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Takes over the rows of another replica.
    pub(super) fn take(&self, replica: &str, rows: Rows) {
        lock(&self.others).insert(replica.to_owned(), rows);
        self.signal.raise();
    }

    /// Forgets a replica.
    pub(super) fn forget(&self, replica: &str) {
        lock(&self.others).remove(replica);
    }

    /// Forgets pods that are gone.
    pub(super) fn prune(&self, exists: impl Fn(&str) -> bool) {
        lock(&self.own).retain(|uid, row| row.held > 0 || exists(uid));
    }

    /// What all replicas know together: of each sidecar, the row with the latest poll.
    pub(super) fn seen(&self, now: Timestamp) -> BTreeMap<String, ProxySeen> {
        let mut latest = lock(&self.own).clone();
        for rows in lock(&self.others).values() {
            for (uid, row) in rows {
                let newer = latest.get(uid).is_none_or(|held| (row.held > 0, row.last) > (held.held > 0, held.last));
                if newer {
                    latest.insert(uid.clone(), row.clone());
                }
            }
        }
        latest.into_iter().map(|(uid, row)| (uid, seen(row, now))).collect()
    }
}

fn seen(row: Row, now: Timestamp) -> ProxySeen {
    let Row { cursor, held, last, leaf_not_before, leaf_not_after, id: _, serial, cut, contacts } = row;
    ProxySeen {
        serial,
        cursor,
        connected: held > 0 || now.as_second() - last < BETWEEN_POLLS,
        leaf_not_before: Timestamp::from_second(leaf_not_before).ok(),
        leaf_not_after: Timestamp::from_second(leaf_not_after).ok(),
        cut,
        contacts,
    }
}

/// A poll that is being held.
pub(super) struct Held<'a> {
    proxies: &'a Proxies,
    uid: String,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let now = crate::telemetry::now().as_second();
        if let Some(row) = lock(&self.proxies.own).get_mut(&self.uid) {
            row.held = row.held.saturating_sub(1);
            row.last = now;
        }
        // Nothing is said of it: the next poll follows at once, and the loop looks again before patience ends.
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::identity::DnsName;

    #[test]
    fn what_is_in_use_is_what_sidecars_show_that_still_poll() {
        let now = crate::telemetry::now();
        let later = |seconds| Timestamp::from_second(now.as_second() + seconds).unwrap();
        let identity = |serial| Identity {
            id: SpiffeId::new(&DnsName::parse("contoso.example").unwrap(), "shop", "web").unwrap(),
            dns_names: BTreeSet::new(),
            pod_uid: Some("pod".into()),
            serial: vec![0x40, serial],
            issuer: None,
            not_before: now,
            not_after: later(3_600),
        };
        let proxies = Proxies::new(Signal::new());
        drop(proxies.poll("ended", &identity(1), None, now));
        let _held = proxies.poll("held", &identity(2), None, now);
        let serials = |at| proxies.in_use(at).into_iter().map(|one| one.serial).collect::<Vec<_>>();
        assert_eq!(serials(now), ["4001", "4002"]);
        assert_eq!(serials(later(60)), ["4002"]);
        let text = serde_json::to_value(proxies.in_use(now)).unwrap();
        let fields: Vec<_> = text[0].as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields, ["id", "notAfter", "podUid", "serial"]);
    }
}
