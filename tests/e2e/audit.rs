//! `entente audit` as whoever runs the PKI would run it: a pod with the chart's roles and nothing else.

use serde_json::Value;

use crate::{
    cluster::{Place, SYSTEM, apply, kubectl, must, until},
    workloads::{IDLE, server, service, web},
};

/// The auditor's account, bound to both roles of the chart.
fn auditor(place: &Place) {
    apply(&format!(
        "apiVersion: v1
kind: ServiceAccount
metadata: {{name: auditor, namespace: {SYSTEM}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {0}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: entente-pki-admin}}
subjects: [{{kind: ServiceAccount, name: auditor, namespace: {SYSTEM}}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: auditor, namespace: {SYSTEM}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: entente-pki-admin}}
subjects: [{{kind: ServiceAccount, name: auditor, namespace: {SYSTEM}}}]",
        place.name
    ));
}

/// Runs the audit to its end; answers its exit code and what it printed.
fn audit() -> (String, Value) {
    let image = "jsonpath={.spec.template.spec.containers[0].image}";
    let image = must(&["-n", SYSTEM, "get", "deployment", "entente-controller", "-o", image]);
    let _ = kubectl(&["-n", SYSTEM, "delete", "pod", "auditor", "--ignore-not-found", "--grace-period=0"]);
    apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: auditor, namespace: {SYSTEM}}}
spec:
  serviceAccountName: auditor
  restartPolicy: Never
  containers:
  - {{name: audit, image: '{image}', imagePullPolicy: IfNotPresent, args: [audit, --output=json]}}"
    ));
    let code = until(240, "the audit has ended", || {
        let path = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}";
        let said = kubectl(&["-n", SYSTEM, "get", "pod", "auditor", "-o", path]).out;
        if said.is_empty() { Err(kubectl(&["-n", SYSTEM, "logs", "auditor"]).out) } else { Ok(said) }
    });
    let log = must(&["-n", SYSTEM, "logs", "auditor"]);
    let line = log.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("exit {code}: {log}"));
    (code, serde_json::from_str(line).unwrap())
}

/// Removes what the auditor was given.
struct Dismissed(String);

impl Drop for Dismissed {
    fn drop(&mut self) {
        let _ = kubectl(&["delete", "clusterrolebinding", &self.0, "--ignore-not-found"]);
        let all = "pod/auditor serviceaccount/auditor rolebinding/auditor configmap/entente-ledger-copied";
        let arguments = ["-n", SYSTEM, "delete", "--ignore-not-found", "--grace-period=0"];
        let _ = kubectl(&[&arguments[..], &all.split(' ').collect::<Vec<_>>()].concat());
    }
}

#[test]
fn the_audit_explains_every_certificate_and_names_the_ledger_that_somebody_copied() {
    let place = Place::alone("audit");
    place.apply(&server("web", &web(8080, "hello"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&service("web", 80, 8080));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["web", "client"]);
    // A certificate that was taken back with its pod is explained by the published list.
    place.must(&["delete", "pod", &place.pod("client"), "--wait=true"]);
    let _dismissed = Dismissed(place.name.clone());
    auditor(&place);
    let (code, report) = audit();
    assert_eq!((code.as_str(), &report["findings"]), ("0", &serde_json::json!([])), "{report:#}");
    assert!(report["certificates"].as_u64().unwrap() >= 2, "{report:#}");

    let ledgers = must(&["-n", SYSTEM, "get", "configmaps", "-l", "entente.dev/part=ledger", "-o", "json"]);
    let ledgers: Value = serde_json::from_str(&ledgers).unwrap();
    let of_web = |map: &&Value| map["metadata"]["annotations"]["entente.dev/server"] == format!("{}/web", place.name);
    let mut copied = ledgers["items"].as_array().unwrap().iter().find(of_web).unwrap().clone();
    copied["metadata"] = serde_json::json!({
        "name": "entente-ledger-copied", "namespace": SYSTEM, "labels": copied["metadata"]["labels"],
        "annotations": copied["metadata"]["annotations"],
    });
    apply(&copied.to_string());
    let (code, report) = audit();
    assert_eq!(code, "1", "{report:#}");
    let codes: Vec<_> =
        report["findings"].as_array().unwrap().iter().map(|one| one["code"].as_str().unwrap()).collect();
    assert!(!codes.is_empty() && codes.iter().all(|code| *code == "SerialTwice"), "{report:#}");
    assert!(report["findings"][0]["what"].as_str().unwrap().contains("entente-ledger-copied"), "{report:#}");
}
