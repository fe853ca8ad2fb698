//! The audit log: one line for every certificate that is issued, refused or taken back, on the log's target `audit`.
//!
//! The lines of one process are a chain: each has a number and the hash of the line before, so that one which is missing
//! or was changed shows. The hash is SHA-256 over [`Line::text`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tracing::{info, warn};

use crate::{
    identity::{DnsName, SpiffeId},
    pki::{
        self,
        ledger::{Holder, Owner, Record},
    },
    topology::ServerKey,
};

/// Characters of one value.
const MAX_VALUE: usize = 256;
/// DNS names that a line tells; more are counted.
const MAX_NAMES: usize = 8;
/// Refusals of one asker that are told singly within a minute; more are counted.
const SINGLY: u64 = 10;
const MINUTE: i64 = 60;
/// Askers whose refusals are told apart.
const MAX_ASKERS: usize = 4_096;

/// What a line tells; what is not known is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// `Issued`, `Renewed`, `Repeated`, `Revoked`, or the code of a refusal.
    pub(super) code: String,
    pub(super) serial: Option<String>,
    pub(super) id: Option<String>,
    pub(super) dns_names: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) pod: Option<String>,
    pub(super) pod_uid: Option<String>,
    pub(super) node: Option<String>,
    pub(super) account: Option<String>,
    /// Id of the token.
    pub(super) credential: Option<String>,
    /// Secret of software that holds its key itself.
    pub(super) secret: Option<String>,
    /// The key, as ledgers name it.
    pub(super) key: Option<String>,
    /// Key identifier of the issuer.
    pub(super) issuer: Option<String>,
    pub(super) not_after: Option<String>,
    /// `namespace/name` of the server, and UID of its object.
    pub(super) server: Option<String>,
    pub(super) server_uid: Option<String>,
    /// Revision of the topology.
    pub(super) revision: Option<u64>,
    pub(super) source: Option<String>,
    /// Why it was refused or taken back.
    pub(super) reason: Option<String>,
    /// How many refusals the line stands for, where it is more than one.
    pub(super) count: Option<u64>,
}

impl Line {
    /// What is hashed: `name=value` in this order, each with a newline, numbers as they are, text without control
    /// characters.
    fn text(&self, chain: &str, seq: u64, previous: &str) -> String {
        let mut text = format!("chain={chain}\nseq={seq}\nprevious={previous}\ncode={}\n", self.code);
        let Self { code: _, serial, id, dns_names, namespace, pod, pod_uid, node, account, credential, .. } = self;
        let Self { secret, key, issuer, not_after, server, server_uid, revision, source, reason, count, .. } = self;
        let (revision, count) = (revision.map(|number| number.to_string()), count.map(|number| number.to_string()));
        let fields = [
            ("serial", serial),
            ("id", id),
            ("dns_names", dns_names),
            ("namespace", namespace),
            ("pod", pod),
            ("pod_uid", pod_uid),
            ("node", node),
            ("account", account),
            ("credential", credential),
            ("secret", secret),
            ("key", key),
            ("issuer", issuer),
            ("not_after", not_after),
            ("server", server),
            ("server_uid", server_uid),
            ("revision", &revision),
            ("source", source),
            ("reason", reason),
            ("count", &count),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                let _ = writeln!(text, "{name}={value}");
            }
        }
        text
    }

    /// A certificate that is taken back: `record` says why.
    pub(super) fn revoked(server: &ServerKey, owner: Option<&Owner>, record: &Record) -> Self {
        let (pod_uid, secret) = match &record.holder {
            Holder::Pod(uid) => (Some(uid.clone()), None),
            Holder::Secret(name) => (None, Some(name.clone())),
        };
        Self {
            code: "Revoked".to_owned(),
            serial: Some(record.serial.to_string()),
            id: owner.map(|owner| owner.id.to_string()),
            pod_uid,
            secret,
            key: Some(record.key.clone()),
            issuer: Some(record.issuer.clone()),
            not_after: Some(record.validity.not_after.to_string()),
            server: Some(server.to_string()),
            server_uid: owner.map(|owner| owner.uid.clone()),
            reason: record.revoked.map(|(_, reason)| reason.word().to_owned()),
            ..Self::default()
        }
    }

    /// The names of a certificate.
    pub(super) fn names(&mut self, id: &SpiffeId, dns_names: &BTreeSet<DnsName>) {
        self.id = Some(id.to_string());
        let told: Vec<&str> = dns_names.iter().take(MAX_NAMES).map(DnsName::as_str).collect();
        let more = dns_names.len().saturating_sub(MAX_NAMES);
        let more = if more == 0 { String::new() } else { format!(",+{more}") };
        self.dns_names = Some(told.join(",") + &more);
    }

    /// With every text in bounds and in one line, whoever it came from.
    fn bounded(mut self) -> Self {
        let Self { serial, id, namespace, pod, pod_uid, node, account, credential, secret, key, .. } = &mut self;
        for value in [serial, id, namespace, pod, pod_uid, node, account, credential, secret, key] {
            *value = value.take().map(|text| bounded(&text, MAX_VALUE));
        }
        let Self { issuer, not_after, server, server_uid, source, reason, .. } = &mut self;
        for value in [issuer, not_after, server, server_uid, source, reason] {
            *value = value.take().map(|text| bounded(&text, MAX_VALUE));
        }
        self.dns_names = self.dns_names.take().map(|text| bounded(&text, MAX_NAMES * MAX_VALUE));
        self.code = bounded(&self.code, MAX_VALUE);
        self
    }

    /// Who asks, for counting: a pod, else an address.
    fn asker(&self) -> &str {
        let source = self.source.as_deref().map(|source| source.rsplit_once(':').map_or(source, |(host, _)| host));
        self.pod_uid.as_deref().or(source).unwrap_or_default()
    }
}

fn bounded(text: &str, most: usize) -> String {
    let mut out = String::new();
    for character in text.chars() {
        if character.is_ascii() && !character.is_control() {
            out.push(character);
        } else {
            let _ = write!(out, "{}", character.escape_unicode());
        }
        if out.len() >= most {
            out.truncate(most);
            out.push_str("...");
            break;
        }
    }
    out
}

/// The audit log of this process.
pub(super) struct Audit {
    chain: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seq: u64,
    previous: String,
    refusals: Refusals,
}

/// Refusals of the current minute.
#[derive(Default)]
struct Refusals {
    minute: i64,
    askers: BTreeMap<String, Asker>,
}

#[derive(Default)]
struct Asker {
    told: u64,
    /// Those that were not told singly, with the last of each code.
    untold: BTreeMap<String, Line>,
}

impl Refusals {
    /// What is to be told when `line` was refused: itself, and what the minute before has left untold.
    fn take(&mut self, line: Line, now: Timestamp) -> Vec<Line> {
        let mut told = self.ended(now);
        let known = self.askers.len() < MAX_ASKERS || self.askers.contains_key(line.asker());
        let name = if known { line.asker().to_owned() } else { String::new() };
        let asker = self.askers.entry(name).or_default();
        if asker.told < SINGLY {
            asker.told += 1;
            told.push(line);
        } else {
            let count = asker.untold.get(&line.code).and_then(|one| one.count).unwrap_or_default() + 1;
            asker.untold.insert(line.code.clone(), Line { count: Some(count), ..line });
        }
        told
    }

    /// What a minute that is over has left untold.
    fn ended(&mut self, now: Timestamp) -> Vec<Line> {
        let minute = now.as_second().div_euclid(MINUTE);
        if minute == self.minute {
            return vec![];
        }
        self.minute = minute;
        std::mem::take(&mut self.askers).into_values().flat_map(|asker| asker.untold.into_values()).collect()
    }
}

impl Audit {
    /// A chain of its own, with a name that no other process has.
    pub(super) fn new(random: [u8; 8]) -> Self {
        Self { chain: pki::hex(&random), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A certificate was signed, or taken back.
    pub(super) fn tell(&self, line: Line) {
        self.write(&mut self.state(), line, false);
    }

    /// A certificate was refused.
    pub(super) fn refused(&self, line: Line, now: Timestamp) {
        let mut state = self.state();
        for line in state.refusals.take(line.bounded(), now) {
            self.write(&mut state, line, true);
        }
    }

    /// Tells what is left of a minute that is over.
    pub(super) fn sweep(&self, now: Timestamp) {
        let mut state = self.state();
        for line in state.refusals.ended(now) {
            self.write(&mut state, line, true);
        }
    }

    fn write(&self, state: &mut State, line: Line, refused: bool) {
        let line = line.bounded();
        state.seq += 1;
        let (chain, seq, previous) = (&self.chain, state.seq, std::mem::take(&mut state.previous));
        state.previous = pki::sha256_hex(line.text(chain, seq, &previous).as_bytes());
        let Line { code, serial, id, dns_names, namespace, pod, pod_uid, node, account, credential, .. } = line;
        let Line { secret, key, issuer, not_after, server, server_uid, revision, source, reason, count, .. } = line;
        // A macro for each level: the level of a line is a constant.
        if refused {
            warn!(target: "audit", chain, seq, previous, code, serial, id, dns_names, namespace, pod, pod_uid, node,
                account, credential, secret, key, issuer, not_after, server, server_uid, revision, source, reason, count,
                "certificate refused");
        } else if code == "Revoked" {
            info!(target: "audit", chain, seq, previous, code, serial, id, dns_names, namespace, pod, pod_uid, node,
                account, credential, secret, key, issuer, not_after, server, server_uid, revision, source, reason, count,
                "certificate revoked");
        } else {
            info!(target: "audit", chain, seq, previous, code, serial, id, dns_names, namespace, pod, pod_uid, node,
                account, credential, secret, key, issuer, not_after, server, server_uid, revision, source, reason, count,
                "certificate issued");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Written {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    /// The lines that `act` leaves in a JSON log.
    fn lines(act: impl FnOnce(&Audit)) -> Vec<serde_json::Value> {
        let written = Written::default();
        let subscriber = tracing_subscriber::fmt().json().with_writer(written.clone()).finish();
        tracing::subscriber::with_default(subscriber, || act(&Audit::new([7; 8])));
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn refusal(pod: &str) -> Line {
        Line {
            code: "RateLimited".into(),
            pod_uid: Some(pod.into()),
            source: Some("198.18.0.7:4711".into()),
            reason: Some("this pod asks too often".into()),
            ..Line::default()
        }
    }

    #[test]
    fn each_line_names_the_hash_of_the_one_before() {
        let issued = Line {
            code: "Issued".into(),
            serial: Some("40ff".into()),
            node: Some("node".into()),
            revision: Some(7),
            ..Line::default()
        };
        let lines = lines(|audit| {
            audit.tell(issued.clone());
            audit.refused(refusal("pod"), at(0));
            audit.tell(Line { code: "Revoked".into(), ..issued.clone() });
        });
        let fields: Vec<_> = lines.iter().map(|line| &line["fields"]).collect();
        let messages: Vec<_> = fields.iter().map(|fields| fields["message"].as_str().unwrap()).collect();
        assert_eq!(messages, ["certificate issued", "certificate refused", "certificate revoked"]);
        assert!(lines.iter().all(|line| line["target"] == "audit"));
        let text = "chain=0707070707070707\nseq=1\nprevious=\ncode=Issued\nserial=40ff\nnode=node\nrevision=7\n";
        assert_eq!(fields[1]["previous"], pki::sha256_hex(text.as_bytes()));
        assert_eq!((&fields[0]["seq"], &fields[2]["seq"]), (&1.into(), &3.into()));
        assert!(fields[0].get("pod").is_none(), "what is not known is left out");
        let second = refusal("pod").text("0707070707070707", 2, fields[1]["previous"].as_str().unwrap());
        assert_eq!(fields[2]["previous"], pki::sha256_hex(second.as_bytes()));
    }

    #[test]
    fn after_ten_refusals_of_a_pod_within_a_minute_the_rest_is_one_line_with_a_count() {
        let lines = lines(|audit| {
            for second in 0..40 {
                audit.refused(refusal("flood"), at(second / 2));
            }
            audit.refused(refusal("other"), at(21));
            audit.sweep(at(59));
            audit.sweep(at(60));
            audit.sweep(at(120));
        });
        let of = |pod: &str| -> Vec<_> {
            lines.iter().filter(|line| line["fields"]["pod_uid"] == pod).map(|line| &line["fields"]["count"]).collect()
        };
        assert_eq!((of("flood").len(), of("other").len()), (11, 1));
        assert_eq!(*of("flood")[10], 30);
        assert!(of("other")[0].is_null());
    }

    #[test]
    fn what_others_say_stays_in_its_line_and_in_bounds() {
        let evil = Line { reason: Some(format!("a\nseq=9\u{202e}{}", "x".repeat(1_000))), ..refusal("pod") };
        let lines = lines(|audit| audit.refused(evil, at(0)));
        let reason = lines[0]["fields"]["reason"].as_str().unwrap();
        assert!(reason.starts_with("a\\u{a}seq=9\\u{202e}xxx"), "{reason}");
        assert!(reason.len() < 300);
    }

    #[test]
    fn askers_beyond_the_bound_are_counted_together() {
        let mut refusals = Refusals::default();
        let told: usize =
            (0..MAX_ASKERS + 100).map(|number| refusals.take(refusal(&number.to_string()), at(0)).len()).sum();
        assert_eq!(told, MAX_ASKERS + 10);
        assert_eq!(refusals.askers.len(), MAX_ASKERS + 1);
    }
}
