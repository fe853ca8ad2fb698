//! Everything that we sign, through zlint and pkilint: no error, but those that are named here with their reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use entente::{pki::authority, telemetry};
use rcgen::KeyPair;
use serde_json::Value;

use crate::{
    made::{self, every_reason, leaf, listed, register, rotate, serial, terms, window},
    tools::{Folder, installed, run, said},
};

/// What a linter calls an error and is none: linter, code, what is linted, a part of the message, why.
const EXCLUDED: &[[&str; 5]] = &[
    [
        "pkilint",
        "pkix.invalid_domain_name_syntax",
        "issuer",
        "\"svc\"",
        "a constraint of one label is a DNS name (RFC 1034 §3.5), and Kubernetes knows Services as NAME.NAMESPACE.svc",
    ],
    [
        "pkilint",
        "pkix.invalid_uri_syntax",
        "leaf",
        "\"spiffe://contoso.example/ns/shop/server/db\"",
        "the linter knows a list of schemes; any scheme is a URI's (RFC 3986 §3.1), and SPIFFE asks for this one",
    ],
];

/// A finding: linter, code, what is linted, message.
type Finding = [String; 4];

#[derive(Default)]
struct Findings {
    errors: BTreeSet<Finding>,
    remarks: BTreeSet<Finding>,
    passed: usize,
}

fn is_excluded(finding: &Finding, [linter, code, subject, part, _why]: &[&str; 5]) -> bool {
    finding[..3] == [*linter, *code, *subject] && finding[3].contains(part)
}

impl Findings {
    fn add(&mut self, linter: &str, code: &str, subject: &str, severity: &str, message: &str) {
        let finding = [linter, code, subject, message].map(str::to_owned);
        match severity.to_lowercase().as_str() {
            "pass" | "na" | "ne" | "info" | "debug" => self.passed += 1,
            "warn" | "warning" | "notice" => drop(self.remarks.insert(finding)),
            // Whatever else it says, and what it could not look at.
            _ => drop(self.errors.insert(finding)),
        }
    }

    /// zlint answers one JSON object: lint to result.
    fn zlint(&mut self, path: &Path) {
        let sources = "RFC5280,RFC8813,Community";
        let output = run(installed("ENTENTE_ZLINT", "zlint").args(["-includeSources", sources]).arg(path));
        let results: BTreeMap<String, Value> = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("zlint {}: {error}: {}", path.display(), said(&output)));
        assert!(results.len() > 10, "zlint looked at nothing in {}", path.display());
        for (lint, result) in results {
            let word = result["result"].as_str().unwrap();
            self.add("zlint", &lint, &subject(path), word, result["details"].as_str().unwrap_or_default());
        }
    }

    /// pkilint answers a list of validations, each with what it found.
    fn pkilint(&mut self, program: &str, options: &[&str], paths: &[&Path]) {
        let mut command = installed("ENTENTE_PKILINT", "bin/python");
        command.args(["-m", &format!("pkilint.bin.{program}"), "lint", "-f", "JSON", "-s", "ALL"]);
        let output = run(command.args(options).args(paths));
        let answer: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{program} {paths:?}: {error}: {}", said(&output)));
        let results = answer["results"].as_array().unwrap();
        assert!(!results.is_empty(), "{program} looked at nothing in {paths:?}");
        for result in results {
            self.passed += 1;
            for found in result["finding_descriptions"].as_array().unwrap() {
                let text = |key: &str| found[key].as_str().unwrap_or_default();
                let last = paths.last().unwrap();
                self.add("pkilint", text("code"), &subject(last), text("severity"), text("message"));
            }
        }
    }
}

/// `leaf-pod.pem` is a leaf: what an exclusion speaks of.
fn subject(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().split(['-', '.']).next().unwrap().to_owned()
}

/// Certificates, each with its issuer's, and lists, each with its type.
type Everything = (Vec<(PathBuf, PathBuf)>, Vec<(PathBuf, &'static str)>);

/// Everything that the controller signs: certificates (each with its issuer's), then lists (each with its type).
fn everything(folder: &Folder) -> Everything {
    let now = telemetry::now();
    let (mut certificates, mut lists) = (vec![], vec![]);
    let mut list = |name: &str, kind, pem: &str| lists.push((folder.file(&format!("{name}.pem"), pem), kind));

    let mut register = register(now);
    let material = register.active().unwrap().clone();
    let root = folder.file("root.pem", &material.root_certificate);
    let issuer = folder.file("issuer-first.pem", &material.issuer_certificate);
    certificates.push((root.clone(), root.clone()));
    certificates.push((issuer.clone(), root.clone()));
    let next = authority::renew_issuer(&material, &terms(), &KeyPair::generate().unwrap(), serial(), now).unwrap();
    certificates.push((folder.file("issuer-next.pem", &next.issuer_certificate), root));
    let signing = register.load(now).unwrap().active;
    for (holder, names) in made::holders() {
        let chain = leaf(&signing, names, serial(), now);
        certificates.push((folder.file(&format!("leaf-{holder}.pem"), &chain[0]), issuer.clone()));
    }

    for (pem, (name, kind)) in made::lists(register.crl_pem()).iter().zip([("crl-empty", "CRL"), ("arl-root", "ARL")]) {
        list(name, kind, pem);
    }
    register.publish(&listed(signing.key_id(), every_reason(now)), window(now), now).unwrap();
    list("crl-every-reason", "CRL", &made::lists(register.crl_pem())[0]);
    rotate(&mut register, now);
    register.publish(&listed(signing.key_id(), every_reason(now)), window(now), now).unwrap();
    let rotated = made::lists(register.crl_pem());
    assert_eq!(rotated.len(), 4, "two issuers' lists and two roots'");
    for (pem, (name, kind)) in rotated.iter().zip([("a", "CRL"), ("b", "CRL"), ("c", "ARL"), ("d", "ARL")]) {
        list(&format!("{}-rotated-{name}", kind.to_lowercase()), kind, pem);
    }
    (certificates, lists)
}

#[test]
fn what_is_signed_passes_both_linters_without_an_error_and_no_exclusion_is_stale() {
    let folder = Folder::new();
    let (certificates, lists) = everything(&folder);
    let mut findings = Findings::default();
    for (certificate, issuer) in &certificates {
        findings.zlint(certificate);
        findings.pkilint("lint_pkix_cert", &[], &[certificate]);
        if certificate != issuer {
            findings.pkilint("lint_pkix_signer_signee_cert_chain", &[], &[issuer, certificate]);
        }
    }
    for (list, kind) in &lists {
        findings.zlint(list);
        findings.pkilint("lint_crl", &["-t", kind, "-p", "PKIX"], &[list]);
    }
    eprintln!("{} certificates and {} lists: {} checks passed", certificates.len(), lists.len(), findings.passed);
    for [linter, code, subject, message] in &findings.remarks {
        eprintln!("remark: {linter} {code} of {subject}: {message}");
    }
    for [linter, code, subject, part, why] in EXCLUDED {
        eprintln!("excluded: {linter} {code} of {subject} ({part}): {why}");
    }
    let new: Vec<_> =
        findings.errors.iter().filter(|one| !EXCLUDED.iter().any(|line| is_excluded(one, line))).collect();
    assert!(new.is_empty(), "errors: {new:#?}");
    let stale: Vec<_> =
        EXCLUDED.iter().filter(|line| !findings.errors.iter().any(|one| is_excluded(one, line))).collect();
    assert!(stale.is_empty(), "exclusions that exclude nothing: {stale:#?}");
}
