//! A new root, under load: known to everybody before it signs, and nobody notices.

use crate::{
    cluster::{Place, amount, kubectl, must, until},
    load::Load,
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

#[test]
fn a_root_is_rotated_under_load_and_no_request_fails() {
    let domain = "rotation";
    let place = Place::with_domain(
        domain,
        "leaf: {lifetimeSeconds: 120, clockSkewSeconds: 30}, rotation: {minTrustedSeconds: 5, ackTimeoutSeconds: 20}",
    );
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
    let (seconds, rate) = (amount(300, 150), amount(500, 100));
    let load = Load::start(&place, "deploy/client", &hosts, rate, seconds);
    rotate(&place, domain);
    until(60, "both roots are in the bundle", || {
        let roots = place.bundle("ca.crt");
        let both = roots.matches("BEGIN CERTIFICATE").count() == 2 && roots.contains(old_roots.trim());
        if both { Ok(()) } else { Err(condition(domain, "RotationComplete")) }
    });
    until(60, "the new one signs", || {
        let now = states(domain);
        if now.contains("Retiring:") { Ok(()) } else { Err(format!("{now} {}", condition(domain, "RotationComplete"))) }
    });
    until(200, "the old one is removed", || {
        let now = states(domain);
        let done = condition(domain, "RotationComplete").starts_with("True/") && now.contains("Removed:");
        if done { Ok(()) } else { Err(format!("{now} {}", condition(domain, "RotationComplete"))) }
    });

    assert!(!place.bundle("ca.crt").contains(old_roots.trim()), "the old root is trusted no more");
    let calls = load.ends();
    eprintln!(
        "{} calls over {seconds} s of a root rotation across {} servers, {} failed",
        calls.ok,
        hosts.len(),
        calls.failed
    );
    assert!(calls.ok > rate * seconds / 3 && calls.failed == 0, "{}\n{}", calls.more, place.picture());
    let events = must(&[
        "get",
        "events.events.k8s.io",
        "-A",
        "-o",
        "jsonpath={range .items[*]}{.regarding.name} {.reason}{\"\\n\"}{end}",
    ]);
    for reason in ["RotationStarted", "RotationCompleted"] {
        assert!(events.lines().any(|line| line == format!("{domain} {reason}")), "{reason}: {events}");
    }
}
