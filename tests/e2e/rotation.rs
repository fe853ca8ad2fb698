//! A new root, under load: known to everybody before it signs, and nobody notices.

use crate::{
    cluster::{Place, SYSTEM, amount, kubectl, must, until},
    load::Load,
    outage::{Restored, kill, leading, replicas, scale},
    workloads::{IDLE, server, service, web},
};

/// State of each authority of a domain with the first digits of its key, oldest information first.
pub(crate) fn states(domain: &str) -> String {
    let template = "jsonpath={range .status.authorities[*]}{.state}:{.keyID} {end}";
    kubectl(&["get", "trustdomain", domain, "-o", template]).out
}

pub(crate) fn condition(domain: &str, kind: &str) -> String {
    let path = |field: &str| format!("{{.status.conditions[?(@.type==\"{kind}\")].{field}}}");
    let template = format!("jsonpath={}/{}/{}", path("status"), path("reason"), path("message"));
    kubectl(&["get", "trustdomain", domain, "-o", &template]).out
}

pub(crate) fn rotate(place: &Place, domain: &str) {
    let now = place.run("deploy/client", "date -u +%FT%TZ").out;
    let body = format!("{{\"spec\": {{\"rotation\": {{\"requestedAt\": \"{}\"}}}}}}", now.trim());
    must(&["patch", "trustdomain", domain, "--type=merge", "-p", &body]);
}

/// A whole rotation of the root under load; after each phase `disturb` does its worst.
fn rotation(place: &Place, domain: &str, disturb: impl Fn()) {
    let hosts: Vec<String> = (0..amount(10, 3)).map(|number| format!("web{number}")).collect();
    for host in &hosts {
        place.apply(&server(host, &web(8080, "hello"), "[{name: http, port: 80, targetPort: 8080}]", ""));
        place.apply(&service(host, 80, 8080));
    }
    place.apply(&server("client", IDLE, "[]", ""));
    let all: Vec<&str> = hosts.iter().map(String::as_str).chain(["client"]).collect();
    place.ready(&all);
    let before = states(domain);
    assert!(before.starts_with("Active:") && before.matches(':').count() == 1, "{before}");
    let old_roots = place.bundle("ca.crt");
    let (seconds, rate) = (amount(300, 110), amount(500, 100));
    let load = Load::start(place, "deploy/client", &hosts, rate, seconds);
    rotate(place, domain);
    until(60, "both roots are in the bundle", || {
        let roots = place.bundle("ca.crt");
        let both = roots.matches("BEGIN CERTIFICATE").count() == 2 && roots.contains(old_roots.trim());
        if both { Ok(()) } else { Err(condition(domain, "RotationComplete")) }
    });
    disturb();
    until(60, "everybody trusts the new one", || {
        let now = states(domain);
        if now.contains("Prepared:") { Err(format!("{now} {}", condition(domain, "RotationComplete"))) } else { Ok(()) }
    });
    disturb();
    until(90, "the new one signs", || {
        let now = states(domain);
        if now.contains("Retiring:") { Ok(()) } else { Err(format!("{now} {}", condition(domain, "RotationComplete"))) }
    });
    disturb();
    until(250, "the old one is removed", || {
        let now = states(domain);
        let done = condition(domain, "RotationComplete").starts_with("True/") && now.contains("Removed:");
        if done { Ok(()) } else { Err(format!("{now} {}", condition(domain, "RotationComplete"))) }
    });
    assert!(!place.bundle("ca.crt").contains(old_roots.trim()), "the old root is trusted no more");
    let calls = load.ends();
    let servers = hosts.len();
    eprintln!(
        "{} calls over {seconds} s of a root rotation across {servers} servers, {} failed",
        calls.ok, calls.failed
    );
    assert!(calls.ok > rate * seconds / 3 && calls.failed == 0, "{}\n{}", calls.more, place.picture());
}

/// Short lives, so that a whole rotation fits into a test.
fn spec() -> String {
    let lifetime = amount(120, 60);
    format!(
        "leaf: {{lifetimeSeconds: {lifetime}, clockSkewSeconds: 30}}, rotation: {{minTrustedSeconds: 5, ackTimeoutSeconds: 20}}"
    )
}

#[test]
fn a_root_is_rotated_under_load_and_no_request_fails() {
    let domain = "rotation";
    let place = Place::with_domain(domain, &spec());
    rotation(&place, domain, || ());
    let template = "jsonpath={range .items[*]}{.regarding.name} {.reason}{\"\\n\"}{end}";
    let events = must(&["get", "events.events.k8s.io", "-A", "-o", template]);
    for reason in ["RotationStarted", "RotationCompleted"] {
        assert!(events.lines().any(|line| line == format!("{domain} {reason}")), "{reason}: {events}");
    }
}

#[test]
fn a_rotation_whose_leader_is_killed_in_each_phase_goes_on_and_no_request_fails() {
    let domain = "killed";
    let place = Place::alone_with_domain(domain, &spec());
    let _restored = Restored::later();
    scale(2);
    replicas(2);
    rotation(&place, domain, || {
        let old = leading();
        kill(&old);
        // A new pod starts at once; a restarted container would wait longer and longer.
        let _ = kubectl(&["-n", SYSTEM, "delete", "pod", &old, "--force", "--grace-period=0"]);
    });
}
