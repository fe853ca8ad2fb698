//! The issuance ledger of one server: a line for every unexpired certificate, written before the certificate is
//! signed. It travels as the data of a ConfigMap whose resourceVersion is the compare-and-swap.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{
    authority::{Serial, Validity},
    crl::{Reason, Revoked},
    hex, sha256_hex, shift,
};
use crate::identity::{DnsName, SpiffeId};

/// Lines in one ledger.
pub const MAX_RECORDS: usize = 4096;
/// Certificates that one pod may have in use: three follow each other, the rest is for restarts of its sidecar.
const MAX_LIVE: usize = 8;
/// A pod may ask again for the same key this long and gets the same certificate, in seconds.
const RETRY_SECONDS: i64 = 300;
const FORMAT: &str = "3";
/// It says nothing of when the owner was created, so that any other counts as newer.
const FORMAT_BEFORE: &str = "2";
/// A revoked certificate stays listed so long after its end, in seconds: one more CRL says so.
const LISTED_AFTER_END: i64 = 3_600;
/// What a record says whose names are not known.
const UNKNOWN: &str = "-";
/// What a record of a certificate in a Secret says instead of a pod's UID; the Secret's name follows.
const SECRET: &str = "secret/";

/// One issued certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its serial.
    pub serial: Serial,
    /// Who holds it.
    pub holder: Holder,
    /// First 128 bits of the SHA-256 of its key, hex.
    pub key: String,
    /// What its DNS names come to ([`names_text`]); `-` = not known.
    pub names: String,
    /// Key identifier of the issuer, hex.
    pub issuer: String,
    /// Its validity.
    pub validity: Validity,
    /// When it was recorded.
    pub recorded: Timestamp,
    /// When and why it was taken back.
    pub revoked: Option<(Timestamp, Reason)>,
}

/// Who holds a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// The sidecar of the pod with this UID.
    Pod(String),
    /// The Secret of this name in the server's namespace, for software that holds the key itself.
    Secret(String),
}

/// Whose certificates a ledger records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The server's identity.
    pub id: SpiffeId,
    /// UID of the `TrustedServer`: one that is created anew does not inherit the certificates of the one before.
    pub uid: String,
    /// When it was created: UIDs have no order.
    pub created: Timestamp,
}

impl Owner {
    /// Whether it was created after the object with `uid`, which had its name. Of two that were created within one second
    /// nobody can tell: neither is turned away.
    pub fn follows(&self, uid: &str, created: Timestamp) -> bool {
        self.uid != uid && self.created > created
    }
}

/// The ledger of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    owner: Option<Owner>,
    sequence: u64,
    records: Vec<Record>,
}

/// Why a record is not taken, or a ledger not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// More certificates than a ledger holds.
    #[error("the ledger holds {MAX_RECORDS} unexpired certificates already")]
    Full,
    /// The key belongs to another pod, or is too old to be asked for again.
    #[error("this key was certified before; a new certificate needs a new key")]
    KeyReused,
    /// It is asked for by a server that was deleted and created anew meanwhile.
    #[error("the server was created anew meanwhile; try again")]
    CreatedAnew,
    /// Not a ledger.
    #[error("line {0} of the ledger cannot be read")]
    Unreadable(usize),
}

impl LedgerError {
    /// The stable code of the issuance stage.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Full => "LedgerFull",
            Self::KeyReused => "KeyReused",
            Self::CreatedAnew => "LedgerConflict",
            Self::Unreadable(_) => "LedgerTampered",
        }
    }
}

impl Ledger {
    /// Reads a ConfigMap's data; no data is an empty ledger.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, LedgerError> {
        let Some(text) = data.get("records") else { return Ok(Self::default()) };
        let created = match data.get("format").map(String::as_str) {
            Some(FORMAT) => data.get("serverCreated").and_then(|text| text.parse().ok()),
            Some(FORMAT_BEFORE) => Some(Timestamp::UNIX_EPOCH),
            _ => return Err(LedgerError::Unreadable(0)),
        };
        let owner = match (data.get("identity"), data.get("serverUID")) {
            (Some(id), Some(uid)) => {
                let id = SpiffeId::parse(id).map_err(|_| LedgerError::Unreadable(0))?;
                Some(Owner { id, uid: uid.clone(), created: created.ok_or(LedgerError::Unreadable(0))? })
            }
            _ => None,
        };
        let sequence = data.get("sequence").and_then(|text| text.parse().ok()).ok_or(LedgerError::Unreadable(0))?;
        let line = |(index, line): (usize, &str)| record(line).ok_or(LedgerError::Unreadable(index + 1));
        let records = text.lines().enumerate().map(line).collect::<Result<_, _>>()?;
        Ok(Self { owner, sequence, records })
    }

    /// The ConfigMap's data.
    pub fn render(&self) -> BTreeMap<String, String> {
        let records = self.records.iter().map(line).collect::<String>();
        let owner = self.owner.iter().flat_map(|Owner { id, uid, created }| {
            [("identity", id.to_string()), ("serverUID", uid.clone()), ("serverCreated", created.to_string())]
        });
        [("format", FORMAT.to_owned()), ("sequence", self.sequence.to_string()), ("records", records)]
            .into_iter()
            .chain(owner)
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    }

    /// Whose it is; nobody's before the first record.
    pub const fn owner(&self) -> Option<&Owner> {
        self.owner.as_ref()
    }

    /// Grows with every change.
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The unexpired certificates.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The record of an earlier request of the same pod for the same key, if it may be answered again: the same authority
    /// must sign it, since its serial is taken back by that one's list, and with the same names, since no serial stands for
    /// two certificates (RFC 5280 §4.1.2.2).
    pub fn repeated(&self, wanted: &Record, now: Timestamp) -> Result<Option<&Record>, LedgerError> {
        let Some(found) = self.records.iter().find(|record| record.key == wanted.key) else { return Ok(None) };
        let fresh = now <= shift(found.recorded, RETRY_SECONDS) && found.revoked.is_none();
        let sealed = |record: &Record| (record.holder.clone(), record.issuer.clone(), record.names.clone());
        let same = sealed(found) == sealed(wanted);
        if same && fresh { Ok(Some(found)) } else { Err(LedgerError::KeyReused) }
    }

    /// Drops what expired and adds `record`, a certificate of `owner`; what an earlier owner held is taken back. An
    /// earlier owner itself is turned away: whoever asks for it does not see yet that there is another one.
    pub fn append(&mut self, owner: &Owner, record: Record, now: Timestamp) -> Result<(), LedgerError> {
        if self.owner.as_ref().is_some_and(|held| held.follows(&owner.uid, owner.created)) {
            return Err(LedgerError::CreatedAnew);
        }
        if self.owner.as_ref().is_some_and(|held| (&held.id, &held.uid) != (&owner.id, &owner.uid)) {
            let all: Vec<_> = self.records.iter().map(|record| (record.serial, Reason::ServerDeleted)).collect();
            self.revoke(&all, now);
        }
        self.prune(now);
        if self.records.len() >= MAX_RECORDS {
            return Err(LedgerError::Full);
        }
        self.supersede(&record.holder, now);
        self.owner = Some(owner.clone());
        self.records.push(record);
        self.sequence += 1;
        Ok(())
    }

    /// Makes room for one more certificate of a pod: it uses the last one that it got, so the first are nobody's. What
    /// software does that takes its key from a Secret, nobody knows.
    fn supersede(&mut self, holder: &Holder, now: Timestamp) {
        let own = self.records.iter().filter(|record| record.holder == *holder && record.is_live(now));
        let own: Vec<_> = own.map(|record| (record.serial, Reason::Superseded)).collect();
        if let Holder::Pod(_) = holder {
            self.revoke(&own[..(own.len() + 1).saturating_sub(MAX_LIVE)], now);
        }
    }

    /// Marks certificates as taken back, where they are not yet; answers what changed.
    pub fn revoke(&mut self, marks: &[(Serial, Reason)], now: Timestamp) -> Vec<Revoked> {
        let mut done = vec![];
        for record in &mut self.records {
            let mark = marks.iter().find(|(serial, _)| *serial == record.serial);
            if let (Some((serial, reason)), None) = (mark, record.revoked) {
                record.revoked = Some((now, *reason));
                done.push(Revoked { serial: *serial, at: now, reason: *reason });
            }
        }
        self.sequence += u64::from(!done.is_empty());
        done
    }

    /// Drops certificates that ended; a revoked one when the lists have said so once more.
    pub fn prune(&mut self, now: Timestamp) {
        self.records.retain(|record| record.listed_until() >= now);
    }
}

impl Record {
    /// Whether somebody may use it now.
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.revoked.is_none() && self.validity.not_after > now
    }

    /// Until when it stands in the ledger.
    pub fn listed_until(&self) -> Timestamp {
        let more = if self.revoked.is_some() { LISTED_AFTER_END } else { 0 };
        shift(self.validity.not_after, more)
    }
}

/// The first 128 bits of a key's SHA-256, as a ledger keeps them.
pub fn key_text(sha256: [u8; 32]) -> String {
    hex(&sha256[..16])
}

/// The first 64 bits of the SHA-256 of all names, hex.
pub fn names_text(names: &BTreeSet<DnsName>) -> String {
    let all: Vec<&str> = names.iter().map(DnsName::as_str).collect();
    sha256_hex(all.join("\n").as_bytes())[..16].to_owned()
}

fn line(record: &Record) -> String {
    let Record { serial, holder, key, names, issuer, validity, recorded, revoked } = record;
    let (from, to) = (validity.not_before.as_second(), validity.not_after.as_second());
    let holder = match holder {
        Holder::Pod(uid) => uid.clone(),
        Holder::Secret(name) => format!("{SECRET}{name}"),
    };
    let state = match revoked {
        None => "live".to_owned(),
        Some((at, reason)) => format!("revoked@{}:{}", at.as_second(), reason.word()),
    };
    format!("{serial} {holder} {key} {names} {issuer} {from} {to} {} {state}\n", recorded.as_second())
}

fn record(line: &str) -> Option<Record> {
    let (serial, holder, key, names, [issuer, from, to, recorded, state]) = match line.split(' ').collect::<Vec<_>>()[..]
    {
        [serial, holder, key, names, issuer, from, to, recorded, state] => {
            (serial, holder, key, names, [issuer, from, to, recorded, state])
        }
        // Format 2.
        [serial, holder, key, issuer, from, to, recorded, state] => {
            (serial, holder, key, UNKNOWN, [issuer, from, to, recorded, state])
        }
        _ => return None,
    };
    let instant = |text: &str| Timestamp::from_second(text.parse().ok()?).ok();
    let revoked = match state.strip_prefix("revoked@") {
        None if state == "live" => None,
        None => return None,
        Some(rest) => {
            let (at, reason) = rest.split_once(':')?;
            Some((instant(at)?, Reason::parse(reason)?))
        }
    };
    Some(Record {
        serial: Serial::parse(serial)?,
        holder: match holder.strip_prefix(SECRET) {
            Some(name) => Holder::Secret(name.to_owned()),
            None => Holder::Pod(holder.to_owned()),
        },
        key: key.to_owned(),
        names: names.to_owned(),
        issuer: issuer.to_owned(),
        validity: Validity { not_before: instant(from)?, not_after: instant(to)? },
        recorded: instant(recorded)?,
        revoked,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(number: u8) -> Holder {
        Holder::Pod(format!("pod-{number}"))
    }

    fn owner(uid: &str) -> Owner {
        let id = SpiffeId::parse("spiffe://contoso.example/ns/sip/server/front-end").unwrap();
        Owner { id, uid: uid.to_owned(), created: at(uid.parse().unwrap()) }
    }

    fn sample(number: u8, key: &str) -> Record {
        Record {
            serial: Serial::from_random([number; 16]),
            holder: pod(1),
            key: key.into(),
            names: "n".into(),
            issuer: "aa".into(),
            validity: Validity { not_before: at(0), not_after: at(1000) },
            recorded: at(300),
            revoked: None,
        }
    }

    #[test]
    fn a_ledger_reads_back_as_it_was_written() {
        let mut ledger = Ledger::default();
        ledger.append(&owner("1"), sample(1, "k1"), at(300)).unwrap();
        ledger
            .append(&owner("1"), Record { holder: Holder::Secret("key".into()), ..sample(2, "k2") }, at(300))
            .unwrap();
        ledger.revoke(&[(sample(1, "").serial, Reason::PodGone)], at(400));
        assert_eq!(Ledger::parse(&ledger.render()).unwrap(), ledger);
        assert_eq!(Ledger::parse(&BTreeMap::new()).unwrap(), Ledger::default());
    }

    #[test]
    fn a_retry_of_the_same_pod_and_key_is_answered_again_and_any_other_reuse_is_refused() {
        let mut ledger = Ledger::default();
        ledger.append(&owner("1"), sample(1, "k1"), at(300)).unwrap();
        let again = sample(9, "k1");
        assert!(ledger.repeated(&again, at(600)).unwrap().is_some());
        assert!(ledger.repeated(&sample(9, "k2"), at(600)).unwrap().is_none());
        let other = |wanted: Record| assert_eq!(ledger.repeated(&wanted, at(600)), Err(LedgerError::KeyReused));
        other(Record { holder: pod(2), ..again.clone() });
        other(Record { issuer: "bb".into(), ..again.clone() });
        other(Record { names: names_text(&BTreeSet::new()), ..again.clone() });
        assert_eq!(ledger.repeated(&again, at(601)), Err(LedgerError::KeyReused));
        ledger.revoke(&[(sample(1, "").serial, Reason::Suspended)], at(400));
        assert_eq!(ledger.repeated(&again, at(600)), Err(LedgerError::KeyReused), "a revoked one is not signed again");
    }

    #[test]
    fn expired_records_leave_and_a_full_ledger_refuses() {
        let mut ledger = Ledger::default();
        for number in 0..MAX_RECORDS {
            let holder = Holder::Pod(number.to_string());
            ledger.append(&owner("1"), Record { holder, ..sample(1, &number.to_string()) }, at(300)).unwrap();
        }
        assert_eq!(ledger.append(&owner("1"), sample(1, "one more"), at(300)), Err(LedgerError::Full));
        ledger.append(&owner("1"), sample(1, "later"), at(1001)).unwrap();
        assert_eq!(ledger.records().len(), 1);
    }

    #[test]
    fn a_pod_that_asks_again_and_again_loses_its_first_certificates_and_never_the_last() {
        let mut ledger = Ledger::default();
        let other = Record { holder: pod(2), ..sample(200, "other") };
        ledger.append(&owner("1"), other.clone(), at(300)).unwrap();
        for number in 1..=30 {
            ledger.append(&owner("1"), sample(number, &number.to_string()), at(300)).unwrap();
            let live: Vec<&Record> =
                ledger.records().iter().filter(|one| one.holder == pod(1) && one.is_live(at(300))).collect();
            assert_eq!(live.len(), usize::from(number).min(MAX_LIVE));
            assert_eq!(live.last().unwrap().serial, sample(number, "").serial, "the last one is the one in use");
        }
        let superseded = Some((at(300), Reason::Superseded));
        assert_eq!(ledger.records().iter().filter(|one| one.revoked == superseded).count(), 30 - MAX_LIVE);
        assert_eq!(ledger.records()[0], other, "others keep theirs");
        assert_eq!(Ledger::parse(&ledger.render()).unwrap(), ledger);
    }

    #[test]
    fn software_that_takes_its_key_from_a_secret_keeps_what_it_may_still_use() {
        let mut ledger = Ledger::default();
        for number in 1..=30 {
            let record = Record { holder: Holder::Secret("key".into()), ..sample(number, &number.to_string()) };
            ledger.append(&owner("1"), record, at(300)).unwrap();
        }
        assert!(ledger.records().iter().all(|record| record.is_live(at(300))));
    }

    #[test]
    fn a_certificate_is_taken_back_once_and_stays_listed_past_its_end() {
        let mut ledger = Ledger::default();
        ledger.append(&owner("1"), sample(1, "k1"), at(300)).unwrap();
        ledger.append(&owner("1"), sample(2, "k2"), at(300)).unwrap();
        let one = sample(1, "").serial;
        let marks = [(one, Reason::Suspended)];
        assert_eq!(ledger.revoke(&marks, at(400)), [Revoked { serial: one, at: at(400), reason: Reason::Suspended }]);
        let sequence = ledger.sequence();
        assert_eq!(ledger.revoke(&[(one, Reason::PodGone)], at(500)), [], "the first reason stays");
        assert_eq!(ledger.sequence(), sequence);
        let live: Vec<bool> = ledger.records().iter().map(|record| record.is_live(at(500))).collect();
        assert_eq!(live, [false, true]);
        ledger.prune(at(1_001));
        assert_eq!(ledger.records().len(), 1, "the revoked one is still listed");
        ledger.prune(at(1_001 + LISTED_AFTER_END));
        assert_eq!(ledger.records().len(), 0);
    }

    #[test]
    fn a_server_that_is_created_anew_takes_back_what_the_one_before_held() {
        let mut ledger = Ledger::default();
        ledger.append(&owner("1"), sample(1, "k1"), at(300)).unwrap();
        ledger.append(&owner("2"), sample(2, "k2"), at(400)).unwrap();
        let revoked: Vec<_> = ledger.records().iter().map(|record| record.revoked).collect();
        assert_eq!(revoked, [Some((at(400), Reason::ServerDeleted)), None]);
    }

    #[test]
    fn who_still_sees_the_server_before_takes_nothing_back_of_the_one_that_was_created_anew() {
        let mut ledger = Ledger::default();
        ledger.append(&owner("2"), sample(1, "k1"), at(300)).unwrap();
        let before = ledger.clone();
        assert_eq!(ledger.append(&owner("1"), sample(2, "k2"), at(400)), Err(LedgerError::CreatedAnew));
        assert_eq!(ledger, before);
        // Within one second there is no order: a server must never be locked out of its own ledger.
        let twin = Owner { uid: "0".to_owned(), ..owner("2") };
        ledger.append(&twin, sample(3, "k3"), at(400)).unwrap();
        assert_eq!(ledger.owner(), Some(&twin));
    }

    #[test]
    fn a_ledger_of_the_format_before_is_read_and_its_owner_goes_on() {
        let mut ledger = Ledger::default();
        ledger.append(&owner("1"), sample(1, "k1"), at(300)).unwrap();
        let mut data = ledger.render();
        data.insert("format".to_owned(), FORMAT_BEFORE.to_owned());
        data.remove("serverCreated");
        let mut read = Ledger::parse(&data).unwrap();
        read.append(&owner("1"), sample(2, "k2"), at(400)).unwrap();
        assert!(read.records().iter().all(|record| record.is_live(at(400))), "it is the same server");
        assert_eq!(Ledger::parse(&read.render()).unwrap().owner(), Some(&owner("1")));
        data.insert("format".to_owned(), FORMAT.to_owned());
        assert_eq!(Ledger::parse(&data), Err(LedgerError::Unreadable(0)), "the new one says when");
    }

    #[test]
    fn a_line_that_was_meddled_with_is_named() {
        for line in ["nonsense\n", "\n", "40 pod k aa 0 1 2 revoked@x:suspended\n", "40 pod k aa 0 1 2 dead\n"] {
            let mut ledger = Ledger::default();
            ledger.append(&owner("1"), sample(1, "k1"), at(300)).unwrap();
            let mut data = ledger.render();
            data.get_mut("records").unwrap().push_str(line);
            assert_eq!(Ledger::parse(&data), Err(LedgerError::Unreadable(2)), "{line}");
        }
    }
}
