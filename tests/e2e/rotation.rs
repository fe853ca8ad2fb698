//! A new root, under load: known to everybody before it signs, and nobody notices.

use crate::{
    cluster::{Place, amount, kubectl, must, until},
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

fn rotate(place: &Place, domain: &str) {
    let now = place.run("deploy/client", "date -u +%FT%TZ").out;
    let body = format!("{{\"spec\": {{\"rotation\": {{\"requestedAt\": \"{}\"}}}}}}", now.trim());
    must(&["patch", "trustdomain", domain, "--type=merge", "-p", &body]);
}

/// A shell line that calls `url` as fast as it can for so many seconds, each call a new connection, and says how many
/// calls worked, how many failed, and the first failures.
fn load(url: &str, seconds: u64) -> String {
    format!(
        "end=$(( $(date +%s) + {seconds} )); ok=0; bad=0; while [ $(date +%s) -lt $end ]; do if curl -sS --max-time 5 {url} >/dev/null 2>>/tmp/bad; then ok=$((ok+1)); else bad=$((bad+1)); date +%T.%N >>/tmp/bad; fi; done; echo $ok $bad; head -n 5 /tmp/bad"
    )
}

#[test]
fn a_root_is_rotated_under_load_and_no_request_fails() {
    let domain = "rotation";
    let place = Place::with_domain(
        domain,
        "leaf: {lifetimeSeconds: 120, clockSkewSeconds: 30}, rotation: {minTrustedSeconds: 5, ackTimeoutSeconds: 20}",
    );
    place.apply(&server("web", &web(8080, "hello"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&service("web", 80, 8080));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["web", "client"]);
    let before = states(domain);
    assert!(before.starts_with("Active:") && before.matches(':').count() == 1, "{before}");
    let old_roots = place.bundle("ca.crt");
    let seconds = amount(300, 150);
    let said = std::thread::scope(|scope| {
        let calls = scope.spawn(|| place.run("deploy/client", &load("http://web/", seconds)));
        rotate(&place, domain);
        until(60, "both roots are in the bundle", || {
            let roots = place.bundle("ca.crt");
            let both = roots.matches("BEGIN CERTIFICATE").count() == 2 && roots.contains(old_roots.trim());
            if both { Ok(()) } else { Err(condition(domain, "RotationComplete")) }
        });
        until(60, "the new one signs", || {
            let now = states(domain);
            if now.contains("Retiring:") {
                Ok(())
            } else {
                Err(format!("{now} {}", condition(domain, "RotationComplete")))
            }
        });
        until(200, "the old one is removed", || {
            let now = states(domain);
            let done = condition(domain, "RotationComplete").starts_with("True/") && now.contains("Removed:");
            if done { Ok(()) } else { Err(format!("{now} {}", condition(domain, "RotationComplete"))) }
        });
        calls.join().unwrap()
    });
    assert!(!place.bundle("ca.crt").contains(old_roots.trim()), "the old root is trusted no more");
    let counts: Vec<u64> =
        said.out.lines().next().unwrap_or_default().split(' ').filter_map(|n| n.parse().ok()).collect();
    eprintln!("{} new connections over {seconds} s of a root rotation, {} failed", counts[0], counts[1]);
    assert!(counts[0] > seconds && counts[1] == 0, "{}\n{}", said.out, place.picture());
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
