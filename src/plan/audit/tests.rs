use super::*;
use crate::{
    identity::SpiffeId,
    pki::{
        authority::{Serial, Validity},
        crl::Reason,
        ledger::Owner,
    },
};

const NOW: i64 = 1_800_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(NOW + second).unwrap()
}

fn serial(number: u8) -> Serial {
    Serial::from_random([number; 16])
}

fn record(number: u8, pod: &str, recorded: i64) -> Record {
    Record {
        serial: serial(number),
        holder: Holder::Pod(pod.to_owned()),
        key: format!("key-{number}"),
        names: "n".into(),
        issuer: "aa".to_owned(),
        validity: Validity { not_before: at(recorded), not_after: at(recorded + 3_600) },
        recorded: at(recorded),
        revoked: None,
    }
}

fn kept(name: &str, records: Vec<Record>) -> Kept {
    let id = SpiffeId::parse(ID).unwrap();
    let mut ledger = Ledger::default();
    for record in records {
        let recorded = record.recorded;
        let owner = Owner { id: id.clone(), uid: "server-1".to_owned(), created: at(-3_600) };
        ledger.append(&owner, record, recorded).unwrap();
    }
    Kept { name: name.to_owned(), server: Some("sip/front-end".to_owned()), data: ledger.render() }
}

const ID: &str = "spiffe://contoso.example/ns/sip/server/front-end";

fn uses(pod: &str, number: u8) -> InUse {
    let serial = serial(number).to_string();
    InUse { pod_uid: pod.to_owned(), id: ID.to_owned(), serial, not_after: at(3_000) }
}

/// Two pods with their certificates; nothing is wrong.
fn sound() -> Observed {
    Observed {
        in_use: vec![uses("pod-1", 1), uses("pod-2", 2)],
        ledgers: vec![kept("entente-ledger-1", vec![record(1, "pod-1", -600), record(2, "pod-2", -600)])],
        pods: ["pod-1", "pod-2"].map(str::to_owned).into(),
        servers: [("sip/front-end".to_owned(), "server-1".to_owned())].into(),
        issuers: ["aa".to_owned()].into(),
        trust_domains: ["contoso.example".to_owned()].into(),
        listed: BTreeMap::new(),
    }
}

/// The codes of what is found after `change`.
fn check(change: impl FnOnce(&mut Observed), expected: &[&str]) -> Report {
    let mut observed = sound();
    change(&mut observed);
    let report = audit(&observed, at(0));
    let codes: Vec<_> = report.findings.iter().map(Finding::code).collect();
    assert_eq!(codes, expected, "{}", report.text());
    report
}

#[test]
fn nothing_is_found_where_everything_is_explained() {
    let report = check(|_| (), &[]);
    assert_eq!(report.text(), "2 certificates in use, 2 ledger entries, 0 findings\n");
    assert_eq!(report.json(), serde_json::json!({"certificates": 2, "entries": 2, "findings": []}));
}

#[test]
fn a_certificate_in_use_that_no_ledger_has_is_found() {
    let report = check(|observed| observed.in_use.push(uses("pod-1", 9)), &["NotRecorded"]);
    assert!(!report.may_pass());
}

#[test]
fn a_certificate_that_another_pod_or_another_server_uses_is_found() {
    let report = check(|observed| observed.in_use.push(uses("pod-2", 1)), &["HeldByAnother"]);
    assert!(!report.may_pass());
    let id = "spiffe://contoso.example/ns/sip/server/mediation".to_owned();
    let report = check(|observed| observed.in_use[0].id = id, &["IdentityDiffers"]);
    assert!(!report.may_pass());
}

#[test]
fn what_was_taken_back_and_is_on_no_list_is_found_after_the_grace() {
    let revoked = |seconds: i64| {
        let revoked = Record { revoked: Some((at(-seconds), Reason::PodGone)), ..record(3, "pod-3", -600) };
        let ledger = kept("entente-ledger-2", vec![revoked]);
        move |observed: &mut Observed| {
            observed.ledgers.push(ledger);
            observed.listed.insert("contoso.example".to_owned(), BTreeSet::new());
        }
    };
    check(revoked(GRACE_SECONDS - 1), &[]);
    assert!(check(revoked(GRACE_SECONDS), &["NotListed"]).may_pass());
    let listed = |observed: &mut Observed| {
        revoked(GRACE_SECONDS)(observed);
        observed.listed.insert("contoso.example".to_owned(), [serial(3).to_string()].into());
    };
    check(listed, &[]);
    let unread = |observed: &mut Observed| {
        revoked(GRACE_SECONDS)(observed);
        observed.listed.clear();
    };
    check(unread, &[]);
}

#[test]
fn a_certificate_that_ended_is_nobodys_business() {
    check(|observed| observed.in_use.push(InUse { not_after: at(0), ..uses("pod-1", 9) }), &[]);
    check(|observed| observed.ledgers.push(kept("entente-ledger-2", vec![record(3, "gone", -3_600)])), &[]);
}

#[test]
fn an_entry_whose_pod_is_gone_is_found_after_the_grace() {
    let entry = |recorded| {
        move |observed: &mut Observed| {
            observed.ledgers.push(kept("entente-ledger-2", vec![record(3, "gone", recorded)]));
        }
    };
    check(entry(-GRACE_SECONDS + 1), &[]);
    let report = check(entry(-GRACE_SECONDS), &["PodGone"]);
    assert!(report.may_pass());
    let secret = Record { holder: Holder::Secret("key".to_owned()), ..record(3, "", -600) };
    check(|observed| observed.ledgers.push(kept("entente-ledger-2", vec![secret])), &[]);
}

#[test]
fn an_entry_that_was_taken_back_is_explained_and_its_use_is_found() {
    let revoked = Record { revoked: Some((at(-60), Reason::PodGone)), ..record(3, "pod-1", -600) };
    let ledger = kept("entente-ledger-2", vec![revoked]);
    check(|observed| observed.ledgers.push(ledger.clone()), &[]);
    let used = |observed: &mut Observed| {
        observed.ledgers.push(ledger.clone());
        observed.in_use.push(uses("pod-1", 3));
    };
    assert!(check(used, &["RevokedInUse"]).may_pass());
}

#[test]
fn a_server_that_is_suspended_may_still_ask_with_what_was_taken_back() {
    let revoked = Record { revoked: Some((at(-60), Reason::Suspended)), ..record(3, "pod-1", -600) };
    let used = |observed: &mut Observed| {
        observed.ledgers.push(kept("entente-ledger-2", vec![revoked]));
        observed.in_use.push(uses("pod-1", 3));
    };
    check(used, &[]);
}

#[test]
fn a_valid_entry_of_a_server_that_is_not_declared_or_was_created_anew_is_found() {
    check(|observed| observed.servers.clear(), &["ServerNotDeclared", "ServerNotDeclared"]);
    let anew = |observed: &mut Observed| drop(observed.servers.insert("sip/front-end".into(), "server-2".into()));
    check(anew, &["ServerNotDeclared", "ServerNotDeclared"]);
}

#[test]
fn a_valid_entry_of_an_authority_that_nobody_lists_is_found() {
    check(|observed| observed.issuers = ["bb".to_owned()].into(), &["UnknownIssuer", "UnknownIssuer"]);
}

#[test]
fn entries_of_a_domain_that_is_gone_are_explained_and_their_use_is_still_held_against_them() {
    let gone = |observed: &mut Observed| {
        observed.trust_domains.clear();
        observed.servers.clear();
        observed.issuers.clear();
    };
    check(gone, &[]);
    let used = |observed: &mut Observed| {
        gone(observed);
        observed.in_use.push(uses("pod-1", 9));
    };
    check(used, &["NotRecorded"]);
}

#[test]
fn one_serial_in_two_places_is_found_once() {
    let twice = |observed: &mut Observed| {
        observed.ledgers.push(kept("entente-ledger-2", vec![record(1, "pod-1", -600)]));
    };
    let report = check(twice, &["SerialTwice"]);
    assert!(report.text().contains("entente-ledger-1, entente-ledger-2"), "{}", report.text());
}

#[test]
fn a_ledger_that_cannot_be_read_is_found_and_the_others_are_still_read() {
    let broken = |observed: &mut Observed| {
        let mut kept = kept("entente-ledger-2", vec![record(3, "pod-1", -600)]);
        kept.data.insert("records".to_owned(), "nonsense\n".to_owned());
        observed.ledgers.insert(0, kept);
    };
    let report = check(broken, &["LedgerUnreadable"]);
    assert_eq!(report.entries, 2);
    check(|observed| observed.ledgers.push(Kept::default()), &["LedgerUnreadable"]);
}

#[test]
fn what_passes_is_no_finding_and_what_cannot_pass_stays() {
    let two = |observed: &mut Observed| {
        observed.ledgers.push(kept("entente-ledger-2", vec![record(3, "gone", -600)]));
        observed.in_use.push(uses("pod-1", 9));
    };
    let mut first = check(two, &["NotRecorded", "PodGone"]);
    let same = first.clone();
    first.confirmed_by(&same);
    assert_eq!(first, same);
    first.confirmed_by(&audit(&sound(), at(5)));
    assert_eq!(first.findings.iter().map(Finding::code).collect::<Vec<_>>(), ["NotRecorded"]);
}

#[test]
fn people_and_programs_are_told_what_to_do() {
    let report = check(|observed| observed.in_use.push(uses("pod-1", 9)), &["NotRecorded"]);
    let text = report.text();
    assert!(text.starts_with("NotRecorded  pod pod-1 uses "), "{text}");
    assert!(text.contains("\nWhat to do:\nNotRecorded  The authority's key"), "{text}");
    let json = report.json();
    assert_eq!(
        (&json["findings"][0]["code"], &json["findings"][0]["podUid"]),
        (&"NotRecorded".into(), &"pod-1".into())
    );
    assert!(json["findings"][0]["advice"].as_str().is_some_and(|advice| !advice.is_empty()));
}
