//! The issuance ledger of one server: a line for every unexpired certificate, written before the certificate is
//! signed. It travels as the data of a ConfigMap whose resourceVersion is the compare-and-swap.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{authority::Serial, authority::Validity, hex, shift};

/// Lines in one ledger.
pub const MAX_RECORDS: usize = 4096;
/// A pod may ask again for the same key this long and gets the same certificate, in seconds.
const RETRY_SECONDS: i64 = 300;
const FORMAT: &str = "1";

/// One issued certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its serial.
    pub serial: Serial,
    /// UID of the pod that asked.
    pub pod_uid: String,
    /// First 128 bits of the SHA-256 of its key, hex.
    pub key: String,
    /// Key identifier of the issuer, hex.
    pub issuer: String,
    /// Its validity.
    pub validity: Validity,
    /// When it was recorded.
    pub recorded: Timestamp,
}

/// The ledger of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
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
            Self::Unreadable(_) => "LedgerTampered",
        }
    }
}

impl Ledger {
    /// Reads a ConfigMap's data; no data is an empty ledger.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, LedgerError> {
        let Some(text) = data.get("records") else { return Ok(Self::default()) };
        if data.get("format").map(String::as_str) != Some(FORMAT) {
            return Err(LedgerError::Unreadable(0));
        }
        let sequence = data.get("sequence").and_then(|text| text.parse().ok()).ok_or(LedgerError::Unreadable(0))?;
        let line = |(index, line): (usize, &str)| record(line).ok_or(LedgerError::Unreadable(index + 1));
        let records = text.lines().enumerate().map(line).collect::<Result<_, _>>()?;
        Ok(Self { sequence, records })
    }

    /// The ConfigMap's data.
    pub fn render(&self) -> BTreeMap<String, String> {
        let records = self.records.iter().map(line).collect::<String>();
        [("format", FORMAT.to_owned()), ("sequence", self.sequence.to_string()), ("records", records)]
            .map(|(key, value)| (key.to_owned(), value))
            .into()
    }

    /// The unexpired certificates.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The record of an earlier request of the same pod for the same key, if it may be answered again.
    pub fn repeated(&self, pod_uid: &str, key: &str, now: Timestamp) -> Result<Option<&Record>, LedgerError> {
        let Some(found) = self.records.iter().find(|record| record.key == key) else { return Ok(None) };
        let fresh = now <= shift(found.recorded, RETRY_SECONDS);
        if found.pod_uid == pod_uid && fresh { Ok(Some(found)) } else { Err(LedgerError::KeyReused) }
    }

    /// Drops what expired and adds `record`.
    pub fn append(&mut self, record: Record, now: Timestamp) -> Result<(), LedgerError> {
        self.prune(now);
        if self.records.len() >= MAX_RECORDS {
            return Err(LedgerError::Full);
        }
        self.records.push(record);
        self.sequence += 1;
        Ok(())
    }

    /// Drops certificates that ended.
    pub fn prune(&mut self, now: Timestamp) {
        self.records.retain(|record| record.validity.not_after >= now);
    }
}

/// The first 128 bits of a key's SHA-256, as a ledger keeps them.
pub fn key_text(sha256: [u8; 32]) -> String {
    hex(&sha256[..16])
}

fn line(record: &Record) -> String {
    let Record { serial, pod_uid, key, issuer, validity, recorded } = record;
    let (from, to) = (validity.not_before.as_second(), validity.not_after.as_second());
    format!("{serial} {pod_uid} {key} {issuer} {from} {to} {} live\n", recorded.as_second())
}

fn record(line: &str) -> Option<Record> {
    let [serial, pod_uid, key, issuer, from, to, recorded, "live"] = line.split(' ').collect::<Vec<_>>()[..] else {
        return None;
    };
    let instant = |text: &str| Timestamp::from_second(text.parse().ok()?).ok();
    Some(Record {
        serial: Serial::parse(serial)?,
        pod_uid: pod_uid.to_owned(),
        key: key.to_owned(),
        issuer: issuer.to_owned(),
        validity: Validity { not_before: instant(from)?, not_after: instant(to)? },
        recorded: instant(recorded)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn sample(number: u8, key: &str) -> Record {
        Record {
            serial: Serial::from_random([number; 16]),
            pod_uid: "pod-1".into(),
            key: key.into(),
            issuer: "aa".into(),
            validity: Validity { not_before: at(0), not_after: at(1000) },
            recorded: at(300),
        }
    }

    #[test]
    fn a_ledger_reads_back_as_it_was_written() {
        let mut ledger = Ledger::default();
        ledger.append(sample(1, "k1"), at(300)).unwrap();
        ledger.append(sample(2, "k2"), at(300)).unwrap();
        assert_eq!(Ledger::parse(&ledger.render()).unwrap(), ledger);
        assert_eq!(Ledger::parse(&BTreeMap::new()).unwrap(), Ledger::default());
    }

    #[test]
    fn a_retry_of_the_same_pod_and_key_is_answered_again_and_any_other_reuse_is_refused() {
        let mut ledger = Ledger::default();
        ledger.append(sample(1, "k1"), at(300)).unwrap();
        assert!(ledger.repeated("pod-1", "k1", at(600)).unwrap().is_some());
        assert!(ledger.repeated("pod-1", "k2", at(600)).unwrap().is_none());
        assert_eq!(ledger.repeated("pod-2", "k1", at(600)), Err(LedgerError::KeyReused));
        assert_eq!(ledger.repeated("pod-1", "k1", at(601)), Err(LedgerError::KeyReused));
    }

    #[test]
    fn expired_records_leave_and_a_full_ledger_refuses() {
        let mut ledger = Ledger::default();
        for number in 0..MAX_RECORDS {
            ledger.append(sample(1, &number.to_string()), at(300)).unwrap();
        }
        assert_eq!(ledger.append(sample(1, "one more"), at(300)), Err(LedgerError::Full));
        ledger.append(sample(1, "later"), at(1001)).unwrap();
        assert_eq!(ledger.records().len(), 1);
    }

    #[test]
    fn a_line_that_was_meddled_with_is_named() {
        let mut ledger = Ledger::default();
        ledger.append(sample(1, "k1"), at(300)).unwrap();
        let mut data = ledger.render();
        data.get_mut("records").unwrap().push_str("nonsense\n");
        assert_eq!(Ledger::parse(&data), Err(LedgerError::Unreadable(2)));
    }
}
