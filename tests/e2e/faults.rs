//! What the authority and its world may suffer without anybody noticing: it is away, the API server is away, a leader is
//! paused and wakes up again.

use std::{process::Command, time::Duration};

use crate::{
    cluster::{Place, SYSTEM, amount, kubectl, must, suffix, until},
    load::{Calls, Load},
    outage::{Restored, issued, leader, leading, replicas, scale},
    rotation::{condition, rotate, states},
    workloads::{IDLE, server, service, web},
};

/// Seconds that certificates live in these tests.
const LIFE: u64 = 120;

/// web and client in a domain with short lives, everything Ready.
fn place(domain: &str) -> Place {
    let spec = format!("leaf: {{lifetimeSeconds: {LIFE}, clockSkewSeconds: 30}}, rotation: {{minTrustedSeconds: 2}}");
    let place = Place::alone_with_domain(domain, &spec);
    place.apply(&server("web", &web(8080, "hello"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&service("web", 80, 8080));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["web", "client"]);
    place
}

fn nothing_failed(place: &Place, calls: &Calls, what: &str) {
    eprintln!("{what}: {} calls, {} failed", calls.ok, calls.failed);
    assert!(calls.ok > 100 && calls.failed == 0, "{what}: {}\n{}", calls.more, place.picture());
}

#[test]
fn an_authority_that_is_away_for_more_than_half_of_a_certificates_life_costs_nothing() {
    let place = place("away");
    let _restored = Restored::later();
    // Just renewed: what is left of a life is then the most that it can be.
    let away = LIFE * 55 / 100;
    let load = Load::start(&place, "deploy/client", &["web".to_owned()], 50, away + 25);
    let before = issued(&place, "web");
    until(60, "a renewal", || if issued(&place, "web") == before { Err("none yet".to_owned()) } else { Ok(()) });
    scale(0);
    replicas(0);
    std::thread::sleep(Duration::from_secs(away));
    scale(1);
    replicas(1);
    nothing_failed(&place, &load.ends(), "authority away for 55 % of a life");
    place.condition_is("web", "Ready", "True/");
}

/// A process of the node that stands still until this is dropped.
struct Paused(String);

impl Paused {
    fn new(pid: &str) -> Self {
        let stopped = Command::new("kill").args(["-STOP", pid]).status().unwrap();
        assert!(stopped.success(), "process {pid} cannot be stopped");
        Self(pid.to_owned())
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-CONT", &self.0]).status();
    }
}

#[test]
fn an_api_server_that_hangs_costs_no_call_and_nothing_is_issued_twice() {
    let place = place("hangs");
    // 30 minutes of a day's certificate are 2.5 s of ours: this is far more.
    let away = amount(60, 25);
    let load = Load::start(&place, "deploy/client", &["web".to_owned()], 50, away + 15);
    let pid = std::fs::read_to_string(format!("/run/entente-node{}/pid/kube-apiserver", suffix())).unwrap();
    let paused = Paused::new(pid.trim());
    std::thread::sleep(Duration::from_secs(away));
    drop(paused);
    nothing_failed(&place, &load.ends(), &format!("API server hanging for {away} s"));
    until(60, "everything is in force again", || {
        let found = condition("hangs", "Ready");
        if found.starts_with("True/") { Ok(()) } else { Err(found) }
    });
    place.condition_is("web", "Ready", "True/");
    let serials: Vec<String> = place.ledger("web");
    let mut unique: Vec<&str> = serials.iter().filter_map(|line| line.split(' ').next()).collect();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), serials.len(), "no serial twice");
}

/// The process of a controller's pod.
fn process(pod: &str) -> String {
    let id = must(&["-n", SYSTEM, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}"]);
    let id = id.trim_start_matches("containerd://").to_owned();
    let socket = format!("/run/entente-node{}/containerd.sock", suffix());
    let out = Command::new("ctr").args(["-a", &socket, "-n", "k8s.io", "tasks", "ls"]).output().unwrap();
    let tasks = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = tasks.lines().find(|line| line.starts_with(&id)).unwrap_or_else(|| panic!("{id}: {tasks}"));
    line.split_whitespace().nth(1).unwrap().to_owned()
}

fn number(domain: &str) -> u64 {
    let template = "jsonpath={.status.crl.number}";
    kubectl(&["get", "trustdomain", domain, "-o", template]).out.parse().unwrap_or(0)
}

#[test]
fn two_leaders_by_a_paused_process_issue_nothing_twice_and_no_number_goes_back() {
    let domain = "paused";
    let place = place(domain);
    let _restored = Restored::later();
    scale(2);
    replicas(2);
    let cycles = amount(20, 1);
    let mut highest = number(domain);
    for cycle in 0..cycles {
        let old = leading();
        let paused = Paused::new(&process(&old));
        rotate(&place, domain);
        until(60, "another replica leads", || {
            let name = leader();
            if !name.is_empty() && name != old { Ok(()) } else { Err(name) }
        });
        until(60, "the rotation began without it", || {
            let now = states(domain);
            if now.contains("Prepared:") || now.contains("Trusted:") || now.contains("Retiring:") {
                Ok(())
            } else {
                Err(now)
            }
        });
        // It wakes up and believes that it leads.
        drop(paused);
        for _ in 0..30 {
            let now = number(domain);
            assert!(now >= highest, "cycle {cycle}: list number {now} after {highest}");
            highest = now;
            assert_eq!(states(domain).matches("Active:").count(), 1, "{}", states(domain));
            std::thread::sleep(Duration::from_millis(200));
        }
        until(200, "the rotation comes to its end", || {
            let now = condition(domain, "RotationComplete");
            if now.starts_with("True/") { Ok(()) } else { Err(now) }
        });
    }
    assert_eq!(place.run("deploy/client", "curl -sS --max-time 5 http://web/").out, "hello\n");
    eprintln!("{cycles} leaders paused and woken; the last list has number {highest}");
}

/// Controllers whose wall clock is wrong, until this is dropped.
struct WrongClock;

impl WrongClock {
    /// Starts them anew under libfaketime, `ahead` of the node.
    fn set(ahead: &str) -> Self {
        const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
        assert!(std::path::Path::new(LIBRARY).exists(), "{LIBRARY} is missing: apt-get install libfaketime");
        let variable = |name: &str, value: &str| serde_json::json!({"name": name, "value": value});
        let environment = [
            variable("LD_PRELOAD", "/faketime/libfaketimeMT.so.1"),
            variable("FAKETIME", ahead),
            variable("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        let mount = serde_json::json!({"name": "faketime", "mountPath": "/faketime", "readOnly": true});
        let path = std::path::Path::new(LIBRARY).parent();
        let spec = serde_json::json!({
            "volumes": [{"name": "faketime", "hostPath": {"path": path}}],
            "containers": [{"name": "controller", "env": environment, "volumeMounts": [mount]}],
        });
        let patch = serde_json::json!({"spec": {"template": {"spec": spec}}}).to_string();
        must(&["-n", SYSTEM, "patch", "deployment", "entente-controller", "--patch", &patch]);
        let set = Self;
        rolled_out();
        set
    }
}

impl Drop for WrongClock {
    fn drop(&mut self) {
        let _ = kubectl(&["-n", SYSTEM, "rollout", "undo", "deployment/entente-controller"]);
        rolled_out();
    }
}

fn rolled_out() {
    let _ = kubectl(&["-n", SYSTEM, "rollout", "status", "deployment/entente-controller", "--timeout=90s"]);
}

#[test]
fn controllers_whose_clock_is_wrong_sign_and_lead_nothing_and_no_call_fails() {
    // Further back than the cluster's own certificates begin no controller reaches the API server at all.
    let cases = [("ahead", "+25h"), ("behind", "-120s")];
    for (domain, ahead) in cases.into_iter().take(usize::try_from(amount(2, 1)).unwrap()) {
        let place = place(domain);
        let load = Load::start(&place, "deploy/client", &["web".to_owned()], 50, 100);
        let wrong = WrongClock::set(ahead);
        let (before, list) = (issued(&place, "web"), number(domain));
        until(90, "a sidecar is told why nothing is signed", || {
            let log = place.kubectl(&["logs", &place.pod("web"), "-c", "entente-proxy", "--tail=2000"]).out;
            let last = || log.lines().rev().take(3).collect();
            if log.contains("ClockSuspect") { Ok(()) } else { Err(last()) }
        });
        assert_eq!((issued(&place, "web"), number(domain)), (before.clone(), list), "nothing is signed");
        drop(wrong);
        until(60, "a renewal", || if issued(&place, "web") == before { Err("none yet".to_owned()) } else { Ok(()) });
        nothing_failed(&place, &load.ends(), &format!("controllers whose clock is {ahead}"));
        place.condition_is("web", "Ready", "True/");
        assert_eq!(states(domain).matches("Active:").count(), 1, "{}", states(domain));
    }
}
