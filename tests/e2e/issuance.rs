//! Every certificate in use is recorded, and every record explained.

use std::process::Command;

use serde_json::Value;

use crate::{
    cluster::{Place, node, until},
    workloads::{IDLE, server},
};

/// What `entente audit` says of the whole node, and its exit code.
fn audit() -> (Option<i32>, Value, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_entente"))
        .args(["audit", "--output", "json"])
        .env("KUBECONFIG", node().join("kubeconfig"))
        .output()
        .expect("entente is built");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), said)
}

/// Other tests leave what they leave: findings count that name something of this place.
fn ours(place: &Place, found: &Value, pods: &[String]) -> Vec<String> {
    let findings = found["findings"].as_array().cloned().unwrap_or_default();
    let (ours, others): (Vec<_>, Vec<_>) = findings
        .iter()
        .map(Value::to_string)
        .partition(|one| one.contains(&place.name) || pods.iter().any(|uid| one.contains(uid)));
    if !others.is_empty() {
        eprintln!("left by others: {others:#?}");
    }
    ours
}

fn uids(place: &Place) -> Vec<String> {
    let template = "jsonpath={range .items[*]}{.metadata.uid}{\"\\n\"}{end}";
    place.must(&["get", "pods", "-o", template]).lines().map(str::to_owned).collect()
}

#[test]
fn the_audit_explains_every_certificate_also_after_a_pod_and_a_server_are_gone() {
    let place = Place::alone("audit");
    for name in ["one", "two", "three"] {
        place.apply(&server(name, IDLE, "[]", ""));
    }
    place.ready(&["one", "two", "three"]);
    let mut pods = uids(&place);
    until(30, "all three sidecars are known", || {
        let (code, found, said) = audit();
        assert!(matches!(code, Some(0 | 1)), "could not find out: {said}");
        let certificates = found["certificates"].as_u64().unwrap_or_default();
        if certificates >= 3 { Ok(()) } else { Err(found.to_string()) }
    });
    place.must(&["delete", "pod", &place.pod("one"), "--wait=true"]);
    place.must(&["delete", "trustedserver", "two", "--wait=true"]);
    place.ready(&["one", "three"]);
    pods.extend(uids(&place));
    // What the leader has yet to take back passes while the audit waits.
    let (code, found, said) = audit();
    assert!(matches!(code, Some(0 | 1)), "could not find out: {said}");
    assert_eq!(ours(&place, &found, &pods), Vec::<String>::new());
    assert!(found["entries"].as_u64().is_some_and(|entries| entries >= 4), "{found}");
    eprintln!("{} certificates in use, {} ledger entries", found["certificates"], found["entries"]);
}
