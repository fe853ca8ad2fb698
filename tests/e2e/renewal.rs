//! Certificates are renewed under load, and nobody notices.

use std::time::{Duration, Instant};

use crate::{
    cluster::{Place, amount},
    workloads::{IDLE, server, service, web},
};

#[test]
fn leaves_of_two_minutes_are_renewed_under_steady_load_and_no_request_fails() {
    let lifetime = amount(120, 60);
    let place = Place::with_domain("renewal", &format!("leaf: {{lifetimeSeconds: {lifetime}, clockSkewSeconds: 30}}"));
    place.apply(&server("web", &web(8080, "hello"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&service("web", 80, 8080));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["web", "client"]);
    let seconds = amount(600, 100);
    let serial = || {
        place.must(&[
            "get",
            "events.events.k8s.io",
            "--field-selector",
            "reason=Renewed",
            "-o",
            "jsonpath={range .items[*]}{.note}{\"\\n\"}{end}",
        ])
    };
    let before = serial();
    let began = Instant::now();
    // Each request is a new connection: 20 a second, each failure is counted and shown.
    let line = format!(
        "end=$(( $(date +%s) + {seconds} )); ok=0; bad=0; while [ $(date +%s) -lt $end ]; do if curl -sS --max-time 5 http://web/ >/dev/null 2>>/tmp/bad; then ok=$((ok+1)); else bad=$((bad+1)); date +%T.%N >>/tmp/bad; fi; sleep 0.04; done; echo $ok $bad; head -n 5 /tmp/bad"
    );
    let said = place.run("deploy/client", &line);
    assert!(began.elapsed() >= Duration::from_secs(seconds - 2), "{}{}", said.out, said.err);
    let counts: Vec<u64> =
        said.out.lines().next().unwrap_or_default().split(' ').filter_map(|n| n.parse().ok()).collect();
    eprintln!("{} requests over {seconds} s with leaves of {lifetime} s, {} failed", counts[0], counts[1]);
    assert!(counts[0] > seconds * 5 && counts[1] == 0, "{}\n{}", said.out, place.picture());
    assert_ne!(serial(), before, "no renewal happened");
    let status = place.must(&[
        "get",
        "trustedserver",
        "web",
        "-o",
        "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}",
    ]);
    assert_eq!(status, "True");
}
