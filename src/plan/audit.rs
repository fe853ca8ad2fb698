//! Whether every certificate in use is in a ledger, and every entry of a ledger is explained.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    pki::{
        crl::Reason,
        ledger::{Holder, Ledger, Owner, Record},
    },
    topology,
};

mod finding;

pub use finding::Finding;

/// A pod's entry may be so old before its pod must be there, and a sidecar so late in leaving a certificate that was
/// taken back, in seconds. What was seen once is a finding only if it is still so after this time.
pub const GRACE_SECONDS: i64 = 180;

/// A certificate that a sidecar uses, as it showed it to a replica.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InUse {
    /// UID of its pod.
    pub pod_uid: String,
    /// The identity in it.
    pub id: String,
    /// Its serial, hex.
    pub serial: String,
    /// End of its validity.
    pub not_after: Timestamp,
}

/// A ledger's object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Name of the ConfigMap.
    pub name: String,
    /// `namespace/name` of its server, as its annotation says.
    pub server: Option<String>,
    /// What it holds.
    pub data: BTreeMap<String, String>,
}

/// What was found in the cluster, read in this order: a certificate is recorded before it is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// What sidecars use.
    pub in_use: Vec<InUse>,
    /// The ledgers.
    pub ledgers: Vec<Kept>,
    /// UIDs of all pods.
    pub pods: BTreeSet<String>,
    /// UIDs of the declared servers, by `namespace/name`, and of domains by the names of their bundle endpoints.
    pub servers: BTreeMap<String, String>,
    /// Key identifiers of the authorities of all domains.
    pub issuers: BTreeSet<String>,
    /// The SPIFFE trust domains that are declared.
    pub trust_domains: BTreeSet<String>,
    /// Serials on the published lists of trust domains whose lists are whole; read after the ledgers.
    pub listed: BTreeMap<String, BTreeSet<String>>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Certificates that sidecars use.
    pub certificates: usize,
    /// Entries of all ledgers.
    pub entries: usize,
    /// What is not explained.
    pub findings: BTreeSet<Finding>,
}

/// An entry of a ledger, with whose it is.
#[derive(Clone, Copy)]
struct Entry<'a> {
    ledger: &'a str,
    server: &'a str,
    owner: Option<&'a Owner>,
    record: &'a Record,
}

/// What the ledger of a domain's bundle endpoint calls its server, with an operator in `namespace`.
pub fn endpoint(namespace: &str, domain: &str) -> String {
    topology::endpoint::key(namespace, domain).to_string()
}

/// Holds everything that was seen against everything else.
pub fn audit(observed: &Observed, now: Timestamp) -> Report {
    let (ledgers, mut findings) = readable(&observed.ledgers);
    let mut found = BTreeMap::<String, Vec<Entry<'_>>>::new();
    for (ledger, server, content) in &ledgers {
        for record in content.records() {
            let entry = Entry { ledger, server, owner: content.owner(), record };
            findings.extend(unexplained(observed, entry, now));
            found.entry(record.serial.to_string()).or_default().push(entry);
        }
    }
    for (serial, places) in found.iter().filter(|(_, places)| places.len() > 1) {
        let ledgers = places.iter().map(|entry| entry.ledger.to_owned()).collect();
        findings.insert(Finding::SerialTwice { serial: serial.clone(), ledgers });
    }
    let in_use: BTreeSet<&InUse> = observed.in_use.iter().filter(|one| one.not_after > now).collect();
    findings.extend(in_use.iter().filter_map(|one| used(one, &found)));
    Report { certificates: in_use.len(), entries: found.values().map(Vec::len).sum(), findings }
}

/// The ledgers with their names and whose they are, and what is wrong with the others.
fn readable(all: &[Kept]) -> (Vec<(&str, &str, Ledger)>, BTreeSet<Finding>) {
    let (mut ledgers, mut findings) = (vec![], BTreeSet::new());
    for kept in all {
        let read = match (&kept.server, Ledger::parse(&kept.data)) {
            (None, _) => Err("it does not say whose it is".to_owned()),
            (Some(_), Err(error)) => Err(error.to_string()),
            (Some(server), Ok(ledger)) => Ok((kept.name.as_str(), server.as_str(), ledger)),
        };
        match read {
            Ok(ledger) => ledgers.push(ledger),
            Err(why) => drop(findings.insert(Finding::LedgerUnreadable { ledger: kept.name.clone(), why })),
        }
    }
    (ledgers, findings)
}

/// What of an entry nothing explains. One reason is enough.
fn unexplained(observed: &Observed, entry: Entry<'_>, now: Timestamp) -> Option<Finding> {
    let Entry { owner, record, .. } = entry;
    let (ledger, server, serial) = (entry.ledger.to_owned(), entry.server.to_owned(), record.serial.to_string());
    let domain = owner.map(|owner| owner.id.trust_domain().as_str());
    let past = |moment: Timestamp| now.as_second() - moment.as_second() >= GRACE_SECONDS;
    if let Some((at, _)) = record.revoked {
        let lists = domain.and_then(|domain| observed.listed.get(domain));
        let unlisted = lists.is_some_and(|listed| !listed.contains(&serial));
        let ours = observed.issuers.contains(&record.issuer);
        return (unlisted && ours && past(at) && record.validity.not_after > now).then_some(Finding::NotListed {
            ledger,
            server,
            serial,
        });
    }
    // Nobody trusts certificates of a domain that is gone: they end by themselves.
    if !record.is_live(now) || domain.is_some_and(|domain| !observed.trust_domains.contains(domain)) {
        return None;
    }
    let declared = observed.servers.get(&server);
    if declared.is_none() || declared != owner.map(|owner| &owner.uid) {
        return Some(Finding::ServerNotDeclared { ledger, server, serial });
    }
    if !observed.issuers.contains(&record.issuer) {
        let issuer = record.issuer.clone();
        return Some(Finding::UnknownIssuer { ledger, server, serial, issuer });
    }
    match &record.holder {
        Holder::Pod(uid) if past(record.recorded) && !observed.pods.contains(uid) => {
            Some(Finding::PodGone { ledger, server, pod_uid: uid.clone(), serial })
        }
        Holder::Pod(_) | Holder::Secret(_) => None,
    }
}

/// What of a certificate in use the ledgers do not explain.
fn used(one: &InUse, found: &BTreeMap<String, Vec<Entry<'_>>>) -> Option<Finding> {
    let InUse { pod_uid, id, serial, not_after: _ } = one.clone();
    let Some(places) = found.get(&serial) else { return Some(Finding::NotRecorded { pod_uid, serial }) };
    let holder = Holder::Pod(pod_uid.clone());
    let Some(entry) = places.iter().find(|entry| entry.record.holder == holder) else {
        let ledger = places.iter().map(|entry| entry.ledger.to_owned()).collect();
        return Some(Finding::HeldByAnother { pod_uid, serial, ledger });
    };
    let ledger = entry.ledger.to_owned();
    if entry.owner.is_none_or(|owner| owner.id.to_string() != id) {
        return Some(Finding::IdentityDiffers { pod_uid, serial, id, ledger });
    }
    // A server that is suspended or gone keeps asking with what it has, and is told so.
    let alone = |reason: Reason| !matches!(reason, Reason::Suspended | Reason::ServerDeleted);
    let revoked = entry.record.revoked.is_some_and(|(_, reason)| alone(reason));
    revoked.then_some(Finding::RevokedInUse { pod_uid, serial, ledger })
}

impl Report {
    /// Leaves out what may pass and is not in `later`, a look that came after this one.
    pub fn confirmed_by(&mut self, later: &Self) {
        self.findings.retain(|finding| !finding.may_pass() || later.findings.contains(finding));
    }

    /// Whether there is something that may pass.
    pub fn may_pass(&self) -> bool {
        self.findings.iter().any(Finding::may_pass)
    }

    /// One line with the numbers.
    pub fn summary(&self) -> String {
        let Self { certificates, entries, findings } = self;
        format!("{certificates} certificates in use, {entries} ledger entries, {} findings", findings.len())
    }

    /// A table for people, each kind of finding with what to do.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let width = self.findings.iter().map(|finding| finding.code().len()).max().unwrap_or_default();
        for finding in &self.findings {
            let _ = writeln!(text, "{:width$}  {}", finding.code(), finding.what());
        }
        let kinds: BTreeMap<&str, &str> = self.findings.iter().map(|one| (one.code(), one.advice())).collect();
        if !kinds.is_empty() {
            text.push_str("\nWhat to do:\n");
        }
        for (code, advice) in kinds {
            let _ = writeln!(text, "{code:width$}  {advice}");
        }
        if !self.findings.is_empty() {
            text.push('\n');
        }
        text + &self.summary() + "\n"
    }

    /// The same for programs.
    pub fn json(&self) -> serde_json::Value {
        let one = |finding: &Finding| {
            let mut value = serde_json::json!(finding);
            if let serde_json::Value::Object(fields) = &mut value {
                fields.insert("what".to_owned(), finding.what().into());
                fields.insert("advice".to_owned(), finding.advice().into());
            }
            value
        };
        let Self { certificates, entries, findings } = self;
        let findings: Vec<_> = findings.iter().map(one).collect();
        serde_json::json!({"certificates": certificates, "entries": entries, "findings": findings})
    }
}

#[cfg(test)]
mod tests;
