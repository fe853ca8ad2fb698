//! Trust that was given is taken back: on open connections at once, in lists that anybody can read, and for good.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    changes::{CLOCK, Ticking},
    cluster::{Place, until},
    workloads::{IDLE, server, service, web},
};

/// A cut must be seen in this time; what it took is printed.
const SOON: Duration = Duration::from_secs(10);
const CLOCK_PORT: &str = "[{name: clock, port: 7000}]";

/// clock, and two callers with an open connection each.
fn two_callers(place: &Place) -> [Ticking; 2] {
    place.apply(&server("clock", CLOCK, CLOCK_PORT, ""));
    place.apply(&server("first", IDLE, "[]", ""));
    place.apply(&server("second", IDLE, "[]", ""));
    place.ready(&["clock", "first", "second"]);
    let address = place.must(&["get", "pod", &place.pod("clock"), "-o", "jsonpath={.status.podIP}"]);
    let callers = ["deploy/first", "deploy/second"].map(|from| Ticking::start(place, from, &address));
    assert!(callers.iter().all(|one| one.ticks(SOON)), "both get through");
    callers
}

fn patch(place: &Place, server: &str, spec: &str) -> Instant {
    place.must(&["patch", "trustedserver", server, "--type=merge", "-p", &format!("{{\"spec\": {spec}}}")]);
    Instant::now()
}

fn cut(place: &Place, caller: &Ticking, since: Instant) -> Duration {
    let ended = caller.ends(SOON);
    assert!(ended.is_some(), "still connected\n{}", place.picture());
    since.elapsed()
}

/// Serial numbers on the published lists, lower-case hex.
fn listed(place: &Place) -> Vec<String> {
    let mut found = vec![];
    for list in place.bundle("crl.pem").split_inclusive("-----END X509 CRL-----\n") {
        let mut openssl = Command::new("openssl")
            .args(["crl", "-noout", "-text"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("openssl is there: run ./test prerequisites");
        openssl.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
        let text = String::from_utf8(openssl.wait_with_output().unwrap().stdout).unwrap();
        let serials = text.lines().filter_map(|line| line.trim().strip_prefix("Serial Number: "));
        found.extend(serials.map(str::to_lowercase));
    }
    found
}

fn serials(place: &Place, server: &str) -> Vec<String> {
    place.ledger(server).iter().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn a_suspended_server_is_cut_at_once_listed_and_told_of_and_comes_back_with_new_certificates() {
    let place = Place::alone("suspend");
    let [first, second] = two_callers(&place);
    let held = serials(&place, "first");
    let since = patch(&place, "first", "{\"state\": \"Suspended\"}");
    eprintln!("a suspended server was cut after {:?}", cut(&place, &first, since));
    assert!(second.ticks(Duration::from_secs(2)), "the other one goes on");
    place.condition_is("first", "RevocationEffective", "True/");
    place.condition_is("first", "Ready", "False/Suspended/");
    assert!(!place.field("first", "{.status.revocation.lastEffectiveTime}").is_empty());
    until(10, "its certificates are on the published list", || {
        let listed = listed(&place);
        if held.iter().all(|serial| listed.contains(serial)) { Ok(()) } else { Err(format!("{held:?} {listed:?}")) }
    });
    until(20, "its connections are counted", || {
        let cut = place.field("first", "{.status.revocation.connectionsCut}");
        if cut == "1" { Ok(()) } else { Err(cut) }
    });
    let events = place.must(&["get", "events.events.k8s.io", "-o", "jsonpath={range .items[*]}{.reason} {end}"]);
    assert!(events.contains("Revoked") && events.contains("ConnectionsCut"), "{events}");

    patch(&place, "first", "{\"state\": \"Active\"}");
    place.ready(&["first"]);
    let address = place.must(&["get", "pod", &place.pod("clock"), "-o", "jsonpath={.status.podIP}"]);
    until(20, "it is back", || {
        let line = format!("timeout 2 socat -u TCP:{address}:7000 - | head -n 1 | grep tick");
        if place.run("deploy/first", &line).ok { Ok(()) } else { Err(place.picture()) }
    });
    assert!(held.iter().all(|serial| listed(&place).contains(serial)), "what was taken back stays so");
}

#[test]
fn a_listed_serial_is_refused_and_its_pod_goes_on_with_a_new_certificate() {
    let place = Place::with_domain("stolen", "leaf: {lifetimeSeconds: 3600, clockSkewSeconds: 30}");
    let [first, second] = two_callers(&place);
    let held = serials(&place, "first");
    let body = format!("{{\"spec\": {{\"revocation\": {{\"serials\": [\"{}\"]}}}}}}", held[0].to_uppercase());
    let since = Instant::now();
    place.must(&["patch", "trustdomain", "stolen", "--type=merge", "-p", &body]);
    eprintln!("the connection of a revoked serial was cut after {:?}", cut(&place, &first, since));
    assert!(second.ticks(Duration::from_secs(2)), "the other one goes on");
    until(30, "the pod has a new certificate", || {
        let now = serials(&place, "first");
        if now.iter().any(|serial| !held.contains(serial)) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    let address = place.must(&["get", "pod", &place.pod("clock"), "-o", "jsonpath={.status.podIP}"]);
    until(20, "it calls again", || {
        let line = format!("timeout 2 socat -u TCP:{address}:7000 - | head -n 1 | grep tick");
        if place.run("deploy/first", &line).ok { Ok(()) } else { Err(place.picture()) }
    });
    until(10, "the serial is on the published list", || {
        let listed = listed(&place);
        if listed.contains(&held[0]) { Ok(()) } else { Err(format!("{listed:?}")) }
    });
}

#[test]
fn everything_issued_before_a_moment_is_taken_back_and_issued_anew() {
    let place = Place::new("before");
    place.apply(&server("web", &web(8080, "hello"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&service("web", 80, 8080));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["web", "client"]);
    let held = serials(&place, "web");
    // The moment must lie after the issuance, in whole seconds.
    let now = place.run("deploy/client", "sleep 1.1; date -u +%FT%TZ").out;
    patch(&place, "web", &format!("{{\"revokeIssuedBefore\": \"{}\"}}", now.trim()));
    until(30, "it is issued anew", || {
        let ledger = place.ledger("web");
        let old = ledger.iter().filter(|line| held.iter().any(|serial| line.starts_with(serial)));
        let revoked = old.filter(|line| line.contains(" revoked@")).count();
        if revoked == held.len() && ledger.len() > held.len() { Ok(()) } else { Err(format!("{ledger:?}")) }
    });
    place.condition_is("web", "Ready", "True/");
    until(10, "it is called again", || {
        let said = place.run("deploy/client", "curl -sS --max-time 5 http://web/");
        if said.out == "hello\n" { Ok(()) } else { Err(said.err) }
    });
}

#[test]
fn a_deleted_server_is_cut_its_object_goes_when_all_is_written_and_a_pod_that_is_gone_follows() {
    let place = Place::alone("deleted");
    let [first, second] = two_callers(&place);
    let held = serials(&place, "first");
    let since = Instant::now();
    place.must(&["delete", "trustedserver", "first", "--wait=false"]);
    eprintln!("a deleted server was cut after {:?}", cut(&place, &first, since));
    assert!(second.ticks(Duration::from_secs(2)), "the other one goes on");
    until(10, "its object is gone", || {
        let said = place.kubectl(&["get", "trustedserver", "first"]);
        if said.ok { Err(said.out) } else { Ok(()) }
    });
    let lists = listed(&place);
    assert!(held.iter().all(|serial| lists.contains(serial)), "it goes when all is published");
    let gone = serials(&place, "second");
    place.must(&["delete", "deployment", "second", "--wait=true"]);
    // Its sidecar drains first: 40 s at most, and a minute passes.
    until(200, "the certificate of a pod that is gone is listed", || {
        let listed = listed(&place);
        if gone.iter().all(|serial| listed.contains(serial)) { Ok(()) } else { Err(format!("{gone:?} {listed:?}")) }
    });
}
