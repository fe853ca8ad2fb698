//! BetterTLS of Netflix: thousands of chains, about half of which must not be believed. Its leaves have no identity of
//! ours, so a chain counts as believed where the names are the first thing that `examine` finds fault with; the host
//! name, which is theirs, is compared by webpki.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine};
use entente::{
    pki::{
        bundle,
        verify::{Anchors, Fault, Role, examine},
    },
    refusal::{ChainDetail, Refusal},
    telemetry,
};
use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use webpki::EndEntityCert;

use crate::tools::{Folder, installed, run, said};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Export {
    trust_root: String,
    suites: BTreeMap<String, Suite>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Suite {
    test_cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    id: u64,
    certificates: Vec<String>,
    hostname: String,
    expected: String,
    /// Either answer is fine.
    failure_is_warning: bool,
}

/// Where we differ on purpose: suite, what they expect, our reason, why.
const EXCEPTIONS: &[(&str, &str, Refusal, &str)] = &[(
    "pathbuilding",
    "ACCEPT",
    Refusal::BadChain(ChainDetail::TooLarge),
    "a chain has four certificates at most: whoever sends more makes us search",
)];

fn der(text: &str) -> CertificateDer<'static> {
    BASE64_STANDARD.decode(text).unwrap().into()
}

fn judge(case: &Case, anchors: &Anchors, now: Timestamp) -> Result<(), Refusal> {
    let chain: Vec<_> = case.certificates.iter().map(|text| der(text)).collect();
    match examine(&chain, Role::Server, anchors, now) {
        Ok(_) | Err(Fault::Refused(Refusal::BadName(_))) => {}
        Err(fault) => return Err(fault.into()),
    }
    let host = ServerName::try_from(case.hostname.as_str()).unwrap();
    let named = EndEntityCert::try_from(&chain[0]).unwrap().verify_is_valid_for_subject_name(&host);
    named.map_err(|_| Refusal::WrongServer(entente::refusal::ServerDetail::DnsName))
}

#[test]
fn chains_of_bettertls_are_believed_or_refused_as_it_says_but_for_named_exceptions() {
    let folder = Folder::new();
    let path = folder.path().join("export.json");
    let output = run(installed("ENTENTE_BETTERTLS", "bettertls").args(["export-tests", "-out"]).arg(&path));
    assert!(output.status.success(), "{}", said(&output));
    let export: Export = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let anchors = Anchors::parse(&[bundle::encode(&der(&export.trust_root))]).unwrap();
    let now = telemetry::now();
    let mut excepted = vec![0; EXCEPTIONS.len()];
    let (mut alike, mut either, mut different) = (BTreeMap::<_, usize>::new(), 0, vec![]);
    for (suite, cases) in &export.suites {
        for case in &cases.test_cases {
            let found = judge(case, &anchors, now);
            let exception = EXCEPTIONS.iter().position(|(of, expected, reason, _)| {
                of == suite && *expected == case.expected && found == Err(*reason)
            });
            match (found.is_ok() == (case.expected == "ACCEPT"), exception) {
                (true, _) => *alike.entry((suite, &case.expected)).or_default() += 1,
                (false, _) if case.failure_is_warning => either += 1,
                (false, Some(index)) => excepted[index] += 1,
                (false, None) => different.push((suite, case.id, &case.expected, found)),
            }
        }
    }
    eprintln!("as expected: {alike:?}; {either} others where either answer is fine");
    for ((suite, expected, reason, why), count) in EXCEPTIONS.iter().zip(&excepted) {
        eprintln!("excepted: {count} of {suite}, {reason} instead of {expected}: {why}");
    }
    assert!(
        different.is_empty(),
        "{} chains, for example {:?}",
        different.len(),
        &different[..different.len().min(20)]
    );
    assert!(excepted.iter().all(|count| *count > 0), "an exception that excepts nothing: {excepted:?}");
    assert!(alike.values().sum::<usize>() > 5_000, "the suite has shrunk: {alike:?}");
}
