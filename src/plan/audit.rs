//! Whether every certificate in use is in a ledger, and every entry of a ledger is explained.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::pki::{
    crl::Reason,
    ledger::{Holder, Ledger, Record},
};

/// A pod's entry may be so old before its pod must be there, and a sidecar so late in leaving a certificate that was
/// taken back, in seconds. What was seen once is a finding only if it is still so after this time.
pub const GRACE_SECONDS: i64 = 180;

/// A certificate that a sidecar uses, as it showed it to a replica.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InUse {
    /// UID of its pod.
    pub pod_uid: String,
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
    /// UIDs of the declared servers, by `namespace/name`.
    pub servers: BTreeMap<String, String>,
    /// Key identifiers of the authorities of all domains.
    pub issuers: BTreeSet<String>,
    /// The SPIFFE trust domains that are declared.
    pub trust_domains: BTreeSet<String>,
}

/// Something that is not explained.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "code", rename_all_fields = "camelCase")]
pub enum Finding {
    /// A certificate in use is in no ledger.
    NotRecorded {
        /// Its sidecar's pod.
        pod_uid: String,
        /// Its serial.
        serial: String,
    },
    /// A sidecar uses a certificate that was taken back.
    RevokedInUse {
        /// The sidecar's pod.
        pod_uid: String,
        /// Its serial.
        serial: String,
        /// The ledger that says so.
        ledger: String,
    },
    /// One serial stands in the ledgers more than once.
    SerialTwice {
        /// Which.
        serial: String,
        /// The ledgers that name it.
        ledgers: Vec<String>,
    },
    /// No authority has the key that signed a certificate.
    UnknownIssuer {
        /// The ledger.
        ledger: String,
        /// Whose it is.
        server: String,
        /// The certificate.
        serial: String,
        /// The key.
        issuer: String,
    },
    /// A certificate is valid whose server is not declared.
    ServerNotDeclared {
        /// The ledger.
        ledger: String,
        /// Whose it was.
        server: String,
        /// The certificate.
        serial: String,
    },
    /// A certificate is valid whose pod is not there.
    PodGone {
        /// The ledger.
        ledger: String,
        /// Whose it is.
        server: String,
        /// The pod.
        pod_uid: String,
        /// The certificate.
        serial: String,
    },
    /// A ledger cannot be read.
    LedgerUnreadable {
        /// Which.
        ledger: String,
        /// Why.
        why: String,
    },
}

impl Finding {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotRecorded { .. } => "NotRecorded",
            Self::RevokedInUse { .. } => "RevokedInUse",
            Self::SerialTwice { .. } => "SerialTwice",
            Self::UnknownIssuer { .. } => "UnknownIssuer",
            Self::ServerNotDeclared { .. } => "ServerNotDeclared",
            Self::PodGone { .. } => "PodGone",
            Self::LedgerUnreadable { .. } => "LedgerUnreadable",
        }
    }

    /// What was found.
    pub fn what(&self) -> String {
        match self {
            Self::NotRecorded { pod_uid, serial } => format!("pod {pod_uid} uses {serial}, which is in no ledger"),
            Self::RevokedInUse { pod_uid, serial, ledger } => {
                format!("pod {pod_uid} uses {serial}, which {ledger} says is taken back")
            }
            Self::SerialTwice { serial, ledgers } => format!("{serial} stands in {}", ledgers.join(", ")),
            Self::UnknownIssuer { ledger, server, serial, issuer } => {
                format!("{serial} of {server} in {ledger} was signed by {issuer}, which no TrustDomain lists")
            }
            Self::ServerNotDeclared { ledger, server, serial } => {
                format!("{serial} in {ledger} is valid, and TrustedServer {server} is not declared")
            }
            Self::PodGone { ledger, server, pod_uid, serial } => {
                format!("{serial} of {server} in {ledger} is valid, and its pod {pod_uid} is gone")
            }
            Self::LedgerUnreadable { ledger, why } => format!("{ledger}: {why}"),
        }
    }

    /// What to do about it.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::NotRecorded { .. } => {
                "The authority's key may have signed outside the operator, or a ledger was removed: list the serial in \
                 revocation.serials of the TrustDomain, and rotate the authority if nobody can say where it is from."
            }
            Self::RevokedInUse { .. } => "Others refuse it already. Delete the pod; read the log of its sidecar first.",
            Self::SerialTwice { .. } => {
                "Somebody copied a line or a ledger: compare with the audit log, and list the serial in \
                 revocation.serials."
            }
            Self::UnknownIssuer { .. } => {
                "Sidecars refuse it, as its authority is not trusted. Delete the pod that holds it to get another; find \
                 out who removed the authority."
            }
            Self::ServerNotDeclared { .. } | Self::PodGone { .. } => {
                "The leader takes such certificates back within two minutes. If this stays, read the controller's log for \
                 \"write down revocations\"."
            }
            Self::LedgerUnreadable { .. } => {
                "Somebody wrote to it. Its server gets no certificate until the ConfigMap is restored, or deleted with \
                 revokeIssuedBefore set to now on its TrustedServer."
            }
        }
    }

    /// Whether it is found in a sound cluster too, for a moment: while a pod ends, or a sidecar gets its next certificate.
    pub const fn may_pass(&self) -> bool {
        match self {
            Self::RevokedInUse { .. } | Self::ServerNotDeclared { .. } | Self::PodGone { .. } => true,
            Self::NotRecorded { .. }
            | Self::SerialTwice { .. }
            | Self::UnknownIssuer { .. }
            | Self::LedgerUnreadable { .. } => false,
        }
    }
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

/// Holds everything that was seen against everything else.
pub fn audit(observed: &Observed, now: Timestamp) -> Report {
    let mut findings = BTreeSet::new();
    let mut found = BTreeMap::<String, Vec<(&str, Record)>>::new();
    let mut entries = 0;
    for kept in &observed.ledgers {
        let unreadable = |why: String| Finding::LedgerUnreadable { ledger: kept.name.clone(), why };
        let (Some(server), ledger) = (&kept.server, Ledger::parse(&kept.data)) else {
            findings.insert(unreadable("it does not say whose it is".to_owned()));
            continue;
        };
        let ledger = match ledger {
            Ok(ledger) => ledger,
            Err(error) => {
                findings.insert(unreadable(error.to_string()));
                continue;
            }
        };
        for record in ledger.records() {
            entries += 1;
            if record.is_live(now) {
                findings.extend(unexplained(observed, (&kept.name, server), &ledger, record, now));
            }
            found.entry(record.serial.to_string()).or_default().push((&kept.name, record.clone()));
        }
    }
    for (serial, places) in found.iter().filter(|(_, places)| places.len() > 1) {
        let ledgers = places.iter().map(|(name, _)| (*name).to_owned()).collect();
        findings.insert(Finding::SerialTwice { serial: serial.clone(), ledgers });
    }
    let in_use: BTreeSet<&InUse> = observed.in_use.iter().filter(|one| one.not_after > now).collect();
    findings.extend(in_use.iter().filter_map(|one| used(one, &found)));
    Report { certificates: in_use.len(), entries, findings }
}

/// What of a valid certificate's entry nothing explains. One reason is enough.
fn unexplained(
    observed: &Observed,
    (name, server): (&String, &String),
    ledger: &Ledger,
    record: &Record,
    now: Timestamp,
) -> Option<Finding> {
    let (ledger_name, server_name, serial) = (name.clone(), server.clone(), record.serial.to_string());
    let declared = observed.servers.get(server);
    // Nobody trusts certificates of a domain that is gone: they end by themselves.
    let domain = ledger.owner().map(|owner| owner.id.trust_domain().as_str());
    if domain.is_some_and(|domain| !observed.trust_domains.contains(domain)) {
        return None;
    }
    if declared.is_none() || declared != ledger.owner().map(|owner| &owner.uid) {
        return Some(Finding::ServerNotDeclared { ledger: ledger_name, server: server_name, serial });
    }
    if !observed.issuers.contains(&record.issuer) {
        let issuer = record.issuer.clone();
        return Some(Finding::UnknownIssuer { ledger: ledger_name, server: server_name, serial, issuer });
    }
    let fresh = now.as_second() - record.recorded.as_second() < GRACE_SECONDS;
    match &record.holder {
        Holder::Pod(uid) if !fresh && !observed.pods.contains(uid) => {
            Some(Finding::PodGone { ledger: ledger_name, server: server_name, pod_uid: uid.clone(), serial })
        }
        Holder::Pod(_) | Holder::Secret(_) => None,
    }
}

/// What of a certificate in use the ledgers do not explain.
fn used(one: &InUse, found: &BTreeMap<String, Vec<(&str, Record)>>) -> Option<Finding> {
    let InUse { pod_uid, serial, not_after: _ } = one.clone();
    let Some(places) = found.get(&serial) else { return Some(Finding::NotRecorded { pod_uid, serial }) };
    let holder = Holder::Pod(pod_uid.clone());
    let mut own = places.iter().filter(|(_, record)| record.holder == holder).peekable();
    if own.peek().is_none() {
        return Some(Finding::NotRecorded { pod_uid, serial });
    }
    // A server that is suspended or gone keeps asking with what it has, and is told so.
    let alone = |reason: Reason| !matches!(reason, Reason::Suspended | Reason::ServerDeleted);
    let (ledger, _) = own.find(|(_, record)| record.revoked.is_some_and(|(_, reason)| alone(reason)))?;
    Some(Finding::RevokedInUse { pod_uid, serial, ledger: (*ledger).to_owned() })
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
