//! Somebody with rights that nobody should have writes to what the operator keeps: nothing false is signed, what runs
//! goes on, and what can be restored is.

use serde_json::{Value, json};

use crate::{
    cluster::{Place, SYSTEM, create, kubectl, must, until},
    rotation::condition,
    workloads::{IDLE, server, service, web},
};

/// web, called by client, in a domain of its own.
fn place(domain: &str) -> Place {
    let place = Place::with_domain(domain, "leaf: {lifetimeSeconds: 3600, clockSkewSeconds: 30}");
    place.apply(&server("web", &web(8080, "hello"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&service("web", 80, 8080));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["web", "client"]);
    place
}

fn talks(place: &Place) {
    assert_eq!(place.run("deploy/client", "curl -sS --max-time 5 http://web/").out, "hello\n", "{}", place.picture());
}

/// An object without what the API server adds, so that it can be applied again.
fn saved(kind: &str, name: &str) -> Value {
    let mut object: Value = serde_json::from_str(&must(&["-n", SYSTEM, "get", kind, name, "-o", "json"])).unwrap();
    let meta = &object["metadata"];
    object["metadata"] = json!({
        "name": name, "namespace": SYSTEM, "labels": meta["labels"], "annotations": meta["annotations"],
    });
    object
}

fn restored(object: &Value) {
    let (kind, name) = (object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
    let _ = kubectl(&["-n", SYSTEM, "delete", kind, name, "--ignore-not-found"]);
    create(&object.to_string());
}

/// A pod more, which needs a certificate.
fn one_more(place: &Place, replicas: u32) {
    place.must(&["scale", "deployment", "client", &format!("--replicas={replicas}")]);
}

fn domain_is(domain: &str, kind: &str, expected: &str) {
    until(30, &format!("{domain} has {kind}={expected}"), || {
        let found = condition(domain, kind);
        if found.starts_with(expected) { Ok(()) } else { Err(found) }
    });
}

#[test]
fn an_authority_that_is_corrupted_exchanged_or_deleted_signs_nothing_and_traffic_goes_on_until_it_is_restored() {
    let domain = "tampered";
    let place = place(domain);
    let name = format!("entente-authority-{domain}");
    let ours = saved("secret", &name);
    let mut exchanged = saved("secret", "entente-authority-contoso");
    exchanged["metadata"] = ours["metadata"].clone();
    let broken = |key: &str| {
        let body = json!({"data": {key: "bm9uc2Vuc2U="}}).to_string();
        must(&["-n", SYSTEM, "patch", "secret", &name, "--type=merge", "-p", &body]);
    };
    let harms: [(&str, &dyn Fn()); 3] = [
        ("AuthorityBroken", &|| broken("register.json")),
        ("AuthorityReplaced", &|| restored(&exchanged)),
        ("AuthorityLost", &|| drop(must(&["-n", SYSTEM, "delete", "secret", &name]))),
    ];
    for (number, (reason, harm)) in (2..).zip(harms) {
        harm();
        domain_is(domain, "AuthorityReady", &format!("False/{reason}"));
        talks(&place);
        one_more(&place, number);
        until(60, "the new pod is told that nothing is signed", || {
            let logs = place.kubectl(&["logs", "-l", "app=client", "-c", "entente-proxy", "--tail=50"]).out;
            if logs.contains("AuthorityNotReady") { Ok(()) } else { Err(logs) }
        });
        assert_eq!(place.field("client", "{.status.certificates.live}"), (number - 1).to_string(), "{reason}");
        restored(&ours);
        domain_is(domain, "Ready", "True/");
        place.ready(&["client"]);
        until(60, "the new pod has its certificate", || {
            let live = place.field("client", "{.status.certificates.live}");
            if live == number.to_string() { Ok(()) } else { Err(live) }
        });
        talks(&place);
    }
}

#[test]
fn a_trust_bundle_that_somebody_edits_or_deletes_is_restored_and_moves_no_trust() {
    let place = place("edited");
    let before = (place.bundle("ca.crt"), place.bundle("crl.pem"));
    let edits = [
        json!({"data": {"ca.crt": "", "crl.pem": ""}}),
        json!({"data": {"ca.crt": "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"}}),
        json!({"data": {"crl.pem": null, "bundle.json": null}}),
    ];
    let restored = |place: &Place| {
        until(10, "the bundle is as it was", || {
            let found = (place.bundle("ca.crt"), place.bundle("crl.pem"));
            // The list may have been signed anew meanwhile.
            if found.0 == before.0 && found.1.len() == before.1.len() { Ok(()) } else { Err(found.0) }
        });
    };
    for edit in edits {
        place.must(&["patch", "configmap", "entente-trust-bundle", "--type=merge", "-p", &edit.to_string()]);
        talks(&place);
        restored(&place);
    }
    place.must(&["delete", "configmap", "entente-trust-bundle"]);
    talks(&place);
    restored(&place);
}

#[test]
fn for_a_server_whose_ledger_cannot_be_read_nothing_is_signed_until_it_is_restored() {
    let place = place("ledger");
    let all = must(&["-n", SYSTEM, "get", "configmaps", "-l", "entente.dev/part=ledger", "-o", "json"]);
    let all: Value = serde_json::from_str(&all).unwrap();
    let mine = format!("{}/client", place.name);
    let own = |map: &&Value| map["metadata"]["annotations"]["entente.dev/server"] == mine;
    let name = all["items"].as_array().unwrap().iter().find(own).unwrap()["metadata"]["name"].as_str().unwrap();
    let ours = saved("configmap", name);
    must(&["-n", SYSTEM, "patch", "configmap", name, "--type=merge", "-p", r#"{"data": {"records": "nonsense"}}"#]);
    one_more(&place, 2);
    until(60, "the new pod is told why", || {
        let logs = place.kubectl(&["logs", "-l", "app=client", "-c", "entente-proxy", "--tail=50"]).out;
        if logs.contains("LedgerTampered") { Ok(()) } else { Err(logs) }
    });
    talks(&place);
    restored(&ours);
    place.ready(&["client", "web"]);
    talks(&place);
}
