//! The control plane goes away, is killed, and comes back: what runs goes on, and nothing is lost, double or orphaned.

use std::{
    collections::BTreeSet,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::{
    cluster::{Place, SYSTEM, amount, kubectl, must, suffix, until},
    workloads::{IDLE, account, declared, deployment, server, service, web},
};

pub(crate) const CONTROLLER: &str = "app.kubernetes.io/component=controller";

pub(crate) fn scale(replicas: u32) {
    must(&["-n", SYSTEM, "scale", "deployment/entente-controller", &format!("--replicas={replicas}")]);
}

/// Waits until this many replicas serve.
pub(crate) fn replicas(count: usize) {
    until(90, &format!("{count} replicas serve"), || {
        let template = "jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}{end}";
        let pods = kubectl(&["-n", SYSTEM, "get", "pods", "-l", CONTROLLER, "-o", template]).out;
        let all = pods.lines().count();
        let ready = pods.lines().filter(|line| line.ends_with("True")).count();
        if all == count && ready == count { Ok(()) } else { Err(pods) }
    });
}

/// Puts the installation back as it was, also when a test fails.
pub(crate) struct Restored(u32);

impl Restored {
    pub(crate) fn later() -> Self {
        let count = must(&["-n", SYSTEM, "get", "deployment/entente-controller", "-o", "jsonpath={.spec.replicas}"]);
        Self(count.parse().unwrap())
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = kubectl(&["-n", SYSTEM, "scale", "deployment/entente-controller", &format!("--replicas={}", self.0)]);
        let _ = kubectl(&["-n", SYSTEM, "rollout", "status", "deployment/entente-controller", "--timeout=90s"]);
    }
}

/// Kills the first process of a container, at once.
pub(crate) fn kill(pod: &str) {
    let id = must(&["-n", SYSTEM, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}"]);
    let Some(id) = id.strip_prefix("containerd://") else { return };
    let socket = format!("/run/entente-node{}/containerd.sock", suffix());
    let _ = Command::new("ctr").args(["-a", &socket, "-n", "k8s.io", "tasks", "kill", "-s", "9", id]).output();
}

pub(crate) fn leader() -> String {
    must(&["-n", SYSTEM, "get", "lease", "entente-leader", "-o", "jsonpath={.spec.holderIdentity}"])
}

/// The replica that leads and is there: the lease names one that was killed for a while.
pub(crate) fn leading() -> String {
    until(60, "somebody leads", || {
        let name = leader();
        let pods = kubectl(&["-n", SYSTEM, "get", "pods", "-l", CONTROLLER, "-o", "name"]).out;
        if !name.is_empty() && pods.contains(&name) { Ok(name) } else { Err(name) }
    })
}

/// Serials of a server's ledger: one line for each certificate that was ever signed and lives.
pub(crate) fn issued(place: &Place, server: &str) -> String {
    let template =
        "jsonpath={range .items[*]}{.metadata.annotations.entente\\.dev/server} {.data.sequence}{\"\\n\"}{end}";
    let all = must(&["-n", SYSTEM, "get", "configmaps", "-l", "entente.dev/part=ledger", "-o", template]);
    let own = format!("{}/{server} ", place.name);
    all.lines().filter(|line| line.starts_with(&own)).collect()
}

#[test]
fn without_a_controller_running_servers_go_on_and_nothing_is_issued_anew_when_it_is_back() {
    let place = Place::alone("outage");
    let _restored = Restored::later();
    place.apply(&server("web", &web(8080, "hello"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&service("web", 80, 8080));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["web", "client"]);
    let before = (issued(&place, "web"), issued(&place, "client"));
    assert!(before.0.ends_with(" 1"), "{before:?}");
    scale(0);
    replicas(0);
    let seconds = amount(60, 10);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut calls = 0;
    while Instant::now() < end {
        let said = place.run("deploy/client", "curl -sS --max-time 5 http://web/");
        assert_eq!(said.out, "hello\n", "call {calls}: {}", said.err);
        calls += 1;
    }
    scale(1);
    replicas(1);
    place.ready(&["web", "client"]);
    until(20, "the proxies are connected again", || {
        let count = place.must(&["get", "trustedserver", "web", "-o", "jsonpath={.status.proxies.connected}"]);
        if count == "1" { Ok(()) } else { Err(count) }
    });
    assert_eq!((issued(&place, "web"), issued(&place, "client")), before, "re-issued without need");
    eprintln!("{calls} new connections in {seconds} s without a controller");
}

#[test]
fn killed_again_and_again_while_servers_appear_the_controller_loses_and_doubles_nothing() {
    let place = Place::alone("kills");
    let _restored = Restored::later();
    scale(1);
    replicas(1);
    let (kills, servers) = (amount(100, 5), amount(50, 6));
    let done = AtomicBool::new(false);
    let killed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while killed.load(Ordering::Relaxed) < kills {
                let pods = kubectl(&[
                    "-n",
                    SYSTEM,
                    "get",
                    "pods",
                    "-l",
                    CONTROLLER,
                    "--field-selector=status.phase=Running",
                    "-o",
                    "jsonpath={.items[*].metadata.name}",
                ]);
                for pod in pods.out.split_whitespace() {
                    kill(pod);
                    // A new pod starts at once; a restarted container would wait longer and longer.
                    let _ = kubectl(&["-n", SYSTEM, "delete", "pod", pod, "--force", "--grace-period=0"]);
                    killed.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(700));
            }
            done.store(true, Ordering::Relaxed);
        });
        for number in 0..servers {
            let name = format!("s{number}");
            place.apply(&format!("{}\n---\n{}", account(&name), declared(&name, "[{name: a, port: 80}]", "")));
            // The webhook may be away: users try again, as controllers of Kubernetes do.
            until(120, "a pod is admitted", || {
                let said = place.try_apply(&deployment(&name, &name, IDLE));
                if said.ok { Ok(()) } else { Err(said.err) }
            });
        }
    });
    assert!(done.load(Ordering::Relaxed));
    replicas(1);
    let names: Vec<String> = (0..servers).map(|number| format!("s{number}")).collect();
    until(180, "every server is Ready", || {
        let template = "jsonpath={range .items[*]}{.metadata.name} {.status.conditions[?(@.type==\"Ready\")].status}{\"\\n\"}{end}";
        let all = place.must(&["get", "trustedservers", "-o", template]);
        let ready = all.lines().filter(|line| line.ends_with(" True")).count();
        if ready == names.len() { Ok(()) } else { Err(format!("{all}\n{}", place.picture())) }
    });
    let template = "jsonpath={range .items[*]}{.metadata.annotations.entente\\.dev/server}{\"\\n\"}{end}";
    let ledgers = must(&["-n", SYSTEM, "get", "configmaps", "-l", "entente.dev/part=ledger", "-o", template]);
    let own: Vec<&str> = ledgers.lines().filter(|line| line.starts_with(&format!("{}/", place.name))).collect();
    let wanted: BTreeSet<String> = names.iter().map(|name| format!("{}/{name}", place.name)).collect();
    assert_eq!(own.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), wanted, "one ledger each");
    assert_eq!(own.len(), wanted.len(), "no ledger is double");
    let secrets = must(&["-n", SYSTEM, "get", "secrets", "-l", "entente.dev/part=authority", "-o", "name"]);
    assert_eq!(secrets.lines().filter(|name| name.ends_with("-contoso")).count(), 1);
    let bundles = place.must(&["get", "configmaps", "-l", "entente.dev/part=bundle", "-o", "name"]);
    assert_eq!(bundles.lines().count(), 1);
    eprintln!("{} kills while {servers} servers appeared", killed.load(Ordering::Relaxed));
}

#[test]
fn with_two_replicas_signing_and_briefs_continue_when_the_leader_is_killed() {
    let place = Place::alone("leader");
    let _restored = Restored::later();
    scale(2);
    replicas(2);
    place.apply(&server("web", &web(8080, "hello"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&service("web", 80, 8080));
    place.ready(&["web"]);
    let old = until(30, "somebody leads", || {
        let name = leader();
        if name.is_empty() { Err(name) } else { Ok(name) }
    });
    kill(&old);
    let _ = kubectl(&["-n", SYSTEM, "delete", "pod", &old, "--force", "--grace-period=0"]);
    // The other replica signs and writes briefs from what was published, before anybody leads again.
    until(30, "a new pod is admitted", || {
        let said = place.try_apply(
            &deployment("web2", "web", &web(8080, "hello")).replace("{app: web2}", "{app: web, more: web2}"),
        );
        if said.ok { Ok(()) } else { Err(said.err) }
    });
    until(60, "the new pod has its certificate and its brief", || {
        let said = place.kubectl(&["wait", "--for=condition=Ready", "pod", "-l", "more=web2", "--timeout=1s"]);
        if said.ok { Ok(()) } else { Err(place.picture()) }
    });
    until(60, "another replica leads", || {
        let name = leader();
        if !name.is_empty() && name != old { Ok(()) } else { Err(name) }
    });
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["client", "web"]);
    assert_eq!(place.run("deploy/client", "curl -sS --max-time 10 http://web/").out, "hello\n");
}
