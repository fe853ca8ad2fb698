//! kubectl against the node of `./up node`, a namespace for each test, and bounded waits.

use std::{
    fmt::Write as _,
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{
        Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// The operator's namespace.
pub(crate) const SYSTEM: &str = "entente-system";

/// Tests that need the control plane share it; those that take it away have it alone.
static CONTROL_PLANE: RwLock<()> = RwLock::new(());
static COUNT: AtomicU32 = AtomicU32::new(0);

/// What the names of this node end with: nothing, or the number that `./up` was given in `ENTENTE_NODE`.
pub(crate) fn suffix() -> String {
    #[allow(clippy::disallowed_methods, reason = "which node to test is said from outside")]
    let number = std::env::var("ENTENTE_NODE").unwrap_or_default();
    if number.is_empty() || number == "0" { String::new() } else { format!("-{number}") }
}

/// Where `./up` keeps the node.
pub(crate) fn node() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!(".node{}", suffix()))
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    /// Whether it exited with 0.
    pub(crate) ok: bool,
    /// Its standard output.
    pub(crate) out: String,
    /// Its standard error.
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// A program of the node's, with its access.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(node().join("bin").join(name));
    command.arg("--kubeconfig").arg(node().join("kubeconfig"));
    command
}

/// Runs kubectl; whatever it says is answered.
pub(crate) fn kubectl(arguments: &[&str]) -> Said {
    program("kubectl").args(arguments).output().expect("kubectl is there: run ./up node").into()
}

/// Runs kubectl, which must succeed; answers its output.
pub(crate) fn must(arguments: &[&str]) -> String {
    let said = kubectl(arguments);
    assert!(said.ok, "kubectl {arguments:?}: {}", said.err);
    said.out
}

/// Applies YAML; whatever the API server says is answered.
pub(crate) fn try_apply(yaml: &str) -> Said {
    fed("apply", yaml)
}

/// Creates an object that may be too large for the annotation of `kubectl apply`.
pub(crate) fn create(yaml: &str) {
    let said = fed("create", yaml);
    assert!(said.ok, "kubectl create: {}", said.err);
}

fn fed(verb: &str, yaml: &str) -> Said {
    let mut child = program("kubectl")
        .args([verb, "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl is there: run ./up node");
    child.stdin.take().unwrap().write_all(yaml.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

/// Applies YAML, which must be accepted.
pub(crate) fn apply(yaml: &str) {
    let said = try_apply(yaml);
    assert!(said.ok, "kubectl apply: {}\n{yaml}", said.err);
}

/// Asks again until `answer` has one, and says what was missing when the time is over.
pub(crate) fn until<T>(seconds: u64, what: &str, mut answer: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        match answer() {
            Ok(found) => return found,
            Err(last) if Instant::now() >= end => panic!("not within {seconds} s: {what}; last: {last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// A namespace of its own in trust domain `contoso`, removed at the end.
pub(crate) struct Place {
    /// Its name.
    pub(crate) name: String,
    domain: Option<String>,
    _shared: Option<RwLockReadGuard<'static, ()>>,
    _alone: Option<RwLockWriteGuard<'static, ()>>,
}

impl Place {
    /// For a test that leaves the control plane in peace.
    pub(crate) fn new(test: &str) -> Self {
        let shared = CONTROL_PLANE.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Self::named(test, "contoso", Some(shared), None)
    }

    /// For a test that stops or replaces the control plane, or that takes time.
    pub(crate) fn alone(test: &str) -> Self {
        let alone = CONTROL_PLANE.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        Self::named(test, "contoso", None, Some(alone))
    }

    /// With a trust domain of its own; `more` is further YAML of its spec, in flow style.
    pub(crate) fn with_domain(test: &str, more: &str) -> Self {
        let shared = CONTROL_PLANE.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        Self::in_domain(test, more, Some(shared), None)
    }

    /// With a trust domain of its own, whose edge it is.
    pub(crate) fn at_the_edge(test: &str) -> Self {
        let place = Self::with_domain(test, "leaf: {lifetimeSeconds: 3600, clockSkewSeconds: 30}");
        let edges = format!("{{\"spec\": {{\"edgeNamespaces\": [\"{}\"]}}}}", place.name);
        must(&["patch", "trustdomain", test, "--type=merge", "-p", &edges]);
        place
    }

    /// The same for a test that has the control plane alone.
    pub(crate) fn alone_with_domain(test: &str, more: &str) -> Self {
        let alone = CONTROL_PLANE.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        Self::in_domain(test, more, None, Some(alone))
    }

    fn in_domain(
        test: &str,
        more: &str,
        shared: Option<RwLockReadGuard<'static, ()>>,
        alone: Option<RwLockWriteGuard<'static, ()>>,
    ) -> Self {
        let mut place = Self::named(test, test, shared, alone);
        apply(&format!(
            "apiVersion: entente.dev/v1alpha1
kind: TrustDomain
metadata: {{name: {test}}}
spec: {{spiffeTrustDomain: {test}.example, dnsSuffixes: [{test}.example], {more}}}"
        ));
        place.domain = Some(test.to_owned());
        place
    }

    fn named(
        test: &str,
        domain: &str,
        shared: Option<RwLockReadGuard<'static, ()>>,
        alone: Option<RwLockWriteGuard<'static, ()>>,
    ) -> Self {
        let name = format!("t-{test}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        namespace(&name, Some(domain));
        Self { name, domain: None, _shared: shared, _alone: alone }
    }

    /// kubectl inside this namespace.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Said {
        kubectl(&[&["-n", &self.name], arguments].concat())
    }

    /// kubectl inside this namespace, which must succeed.
    pub(crate) fn must(&self, arguments: &[&str]) -> String {
        must(&[&["-n", &self.name], arguments].concat())
    }

    /// Applies objects of this namespace.
    pub(crate) fn apply(&self, yaml: &str) {
        let said = self.try_apply(yaml);
        assert!(said.ok, "kubectl apply: {}\n{yaml}", said.err);
    }

    /// Applies objects of this namespace; whatever the API server says is answered.
    pub(crate) fn try_apply(&self, yaml: &str) -> Said {
        let mut text = String::new();
        for document in yaml.split("\n---\n") {
            let placed = document.replacen("metadata: {", &format!("metadata: {{namespace: {}, ", self.name), 1);
            let _ = writeln!(text, "{placed}\n---");
        }
        try_apply(&text)
    }

    /// Runs a shell line in the container `app` of a pod or `deploy/NAME`.
    pub(crate) fn run(&self, target: &str, line: &str) -> Said {
        self.kubectl(&["exec", target, "-c", "app", "--", "sh", "-c", line])
    }

    /// Waits until these servers are Ready, and the applications in their pods too.
    pub(crate) fn ready(&self, servers: &[&str]) {
        for server in servers {
            let wait = format!("--for=condition=Ready=True trustedserver/{server} --timeout=90s");
            let said = self.kubectl(&[&["wait"], &wait.split(' ').collect::<Vec<_>>()[..]].concat());
            assert!(said.ok, "{server} is not Ready: {}\n{}", said.err, self.picture());
            let label = format!("app={server}");
            let said = self.kubectl(&["wait", "--for=condition=Ready", "pod", "-l", &label, "--timeout=60s"]);
            assert!(said.ok, "{server}'s application is not Ready: {}\n{}", said.err, self.picture());
        }
        self.services_lead_somewhere();
    }

    /// Waits until kube-proxy has heard of the pods behind every Service: a pod is Ready a moment earlier.
    fn services_lead_somewhere(&self) {
        let template = "jsonpath={range .items[*]}{.spec.clusterIP} {.spec.ports[0].port}{\"\\n\"}{end}";
        for service in self.must(&["get", "services", "-o", template]).lines().filter(|line| !line.starts_with("None"))
        {
            let line = format!("exec 3<>/dev/tcp/{}", service.replace(' ', "/"));
            until(20, &format!("Service {service} leads somewhere"), || {
                let dial = Command::new("nsenter")
                    .arg(format!("--net=/run/netns/entente-node{}", suffix()))
                    .args(["timeout", "1", "bash", "-c", &line])
                    .stderr(Stdio::null())
                    .status();
                if dial.is_ok_and(|status| status.success()) { Ok(()) } else { Err("refused".to_owned()) }
            });
        }
    }

    /// `status/reason/message` of a condition of a server.
    pub(crate) fn condition(&self, server: &str, kind: &str) -> String {
        let path = |field: &str| format!("{{.status.conditions[?(@.type==\"{kind}\")].{field}}}");
        let template = format!("jsonpath={}/{}/{}", path("status"), path("reason"), path("message"));
        self.kubectl(&["get", "trustedserver", server, "-o", &template]).out
    }

    /// Waits until a condition begins with `expected`.
    pub(crate) fn condition_is(&self, server: &str, kind: &str, expected: &str) -> String {
        until(30, &format!("{server} has {kind}={expected}"), || {
            let found = self.condition(server, kind);
            if found.starts_with(expected) { Ok(found) } else { Err(found) }
        })
    }

    /// Waits until a condition of the partner `fabrikam` begins with `expected`, `status/reason/message`.
    pub(crate) fn partner_is(&self, kind: &str, expected: &str) {
        until(45, &format!("the partner has {kind}={expected}"), || {
            let path = |field: &str| format!("{{.status.conditions[?(@.type==\"{kind}\")].{field}}}");
            let template = format!("jsonpath={}/{}/{}", path("status"), path("reason"), path("message"));
            let found = self.kubectl(&["get", "federationpartner", "fabrikam", "-o", &template]).out;
            if found.starts_with(expected) { Ok(()) } else { Err(found) }
        });
    }

    /// Waits for an Event of reason ConnectionRefused with this code on a server.
    pub(crate) fn refusal_event(&self, server: &str, code: &str) {
        until(20, &format!("an Event of {code} on {server}"), || {
            let template = "jsonpath={range .items[*]}{.regarding.name} {.action} {.note}{\"\\n\"}{end}";
            let arguments =
                ["get", "events.events.k8s.io", "--field-selector", "reason=ConnectionRefused", "-o", template];
            let found = self.kubectl(&arguments).out;
            if found.lines().any(|line| line.starts_with(&format!("{server} {code} "))) { Ok(()) } else { Err(found) }
        });
    }

    /// Waits for a line of the sidecar's log that holds all of `parts`.
    pub(crate) fn logged(&self, target: &str, parts: &[&str]) {
        until(15, &format!("{parts:?} in the log of {target}"), || {
            let log = self.kubectl(&["logs", target, "-c", "entente-proxy", "--tail=200"]).out;
            let found = log.lines().any(|line| parts.iter().all(|part| line.contains(part)));
            if found { Ok(()) } else { Err(log.lines().rev().take(8).collect::<Vec<_>>().join("\n")) }
        });
    }

    /// A sidecar's counter of refusals.
    pub(crate) fn refusals(&self, target: &str, direction: &str, code: &str) -> u64 {
        let metrics = self.kubectl(&["get", "--raw", &self.health(target)]).out;
        let wanted = [format!("direction=\"{direction}\""), format!("reason=\"{code}\"")];
        let mut lines = metrics.lines().filter(|line| {
            line.starts_with("entente_refusals_total") && wanted.iter().all(|part| line.contains(part.as_str()))
        });
        lines.next().and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    }

    /// The path of a pod's metrics through the API server.
    fn health(&self, pod: &str) -> String {
        format!("/api/v1/namespaces/{}/pods/{pod}:15020/proxy/metrics", self.name)
    }

    /// The name of the first pod with label `app=NAME`.
    pub(crate) fn pod(&self, app: &str) -> String {
        let selector = format!("app={app}");
        self.must(&[
            "get",
            "pods",
            "-l",
            &selector,
            "--field-selector=status.phase=Running",
            "-o",
            "jsonpath={.items[0].metadata.name}",
        ])
    }

    /// A field of a server, by its JSON path.
    pub(crate) fn field(&self, server: &str, path: &str) -> String {
        self.kubectl(&["get", "trustedserver", server, "-o", &format!("jsonpath={path}")]).out
    }

    /// The trust bundle of this namespace: `ca.crt`, `crl.pem` and the like.
    pub(crate) fn bundle(&self, key: &str) -> String {
        let path = format!("jsonpath={{.data.{}}}", key.replace('.', "\\."));
        self.kubectl(&["get", "configmap", "entente-trust-bundle", "-o", &path]).out
    }

    /// The lines of the ledger of a server.
    pub(crate) fn ledger(&self, server: &str) -> Vec<String> {
        let template =
            "jsonpath={range .items[*]}{.metadata.annotations.entente\\.dev/server}{\"\\n\"}{.data.records}{end}";
        let all = must(&["-n", SYSTEM, "get", "configmaps", "-l", "entente.dev/part=ledger", "-o", template]);
        let own = format!("{}/{server}", self.name);
        let lines = all.lines().skip_while(|line| *line != own).skip(1);
        lines.take_while(|line| !line.contains('/') || line.contains(' ')).map(str::to_owned).collect()
    }

    /// What a person would look at first.
    pub(crate) fn picture(&self) -> String {
        let pods = self.kubectl(&["get", "pods,trustedservers", "-o", "wide"]).out;
        let events = self.kubectl(&["get", "events", "--sort-by=.lastTimestamp"]).out;
        let tail: Vec<&str> = events.lines().rev().take(15).collect();
        let mut logs = String::new();
        for pod in self.kubectl(&["get", "pods", "-o", "name"]).out.lines() {
            let log = self.kubectl(&["logs", pod, "-c", "entente-proxy"]);
            // What went wrong is said at WARN; the last lines say where it stands.
            let lines: Vec<&str> = log.out.lines().collect();
            let warnings = lines.iter().filter(|line| line.contains(" WARN ") || is_early_end(line)).rev().take(10);
            let last = lines.iter().rev().take(4);
            let shown: Vec<&str> = warnings.chain(last).copied().collect();
            let _ = writeln!(logs, "{pod}: {}\n{}", log.err, shown.join("\n"));
        }
        format!("{pods}\n{}\n{logs}", tail.join("\n"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.name, self.picture());
        }
        if let Some(domain) = &self.domain {
            let _ = kubectl(&["delete", "trustdomain", domain, "--wait=false"]);
            // The operator never deletes an authority; the next test of this name begins without.
            let authority = format!("entente-authority-{domain}");
            let _ = kubectl(&["-n", SYSTEM, "delete", "secret", &authority, "--wait=false"]);
        }
        let _ = kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}

/// What the cluster's DNS is made to say of a name; taken back at the end.
pub(crate) struct Says(String);

static HOSTS: Mutex<()> = Mutex::new(());

impl Says {
    /// From now on `name` leads to `address`.
    pub(crate) fn new(name: &str, address: &str) -> Self {
        let entry = format!("{address} {name}");
        edit_hosts(|lines| lines.push(entry.clone()));
        let answer = format!("dig +short +time=1 +tries=1 @198.18.255.{} {name}", 2 + 4 * number());
        until(10, &format!("DNS says {entry}"), || {
            let said = in_node("sh", &["-c", &answer]);
            if said.out.trim() == address { Ok(()) } else { Err(said.out) }
        });
        Self(entry)
    }
}

impl Drop for Says {
    fn drop(&mut self) {
        edit_hosts(|lines| lines.retain(|line| *line != self.0));
    }
}

fn edit_hosts(edit: impl FnOnce(&mut Vec<String>)) {
    let _turn = HOSTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let file = node().join("hosts");
    let held = std::fs::read_to_string(&file).unwrap_or_default();
    let mut lines: Vec<String> = held.lines().map(str::to_owned).collect();
    edit(&mut lines);
    std::fs::write(file, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

/// The number of this node.
fn number() -> u8 {
    suffix().trim_start_matches('-').parse().unwrap_or(0)
}

/// Runs a program in the node's own network.
pub(crate) fn in_node(program: &str, arguments: &[&str]) -> Said {
    let network = format!("--net=/run/netns/entente-node{}", suffix());
    Command::new("nsenter").arg(network).arg(program).args(arguments).output().expect("nsenter is there").into()
}

/// An access record of a connection that did not end in order.
fn is_early_end(line: &str) -> bool {
    line.contains("reason=") && !line.contains("reason=\"ok\"")
}

/// A namespace, in a trust domain or in none.
pub(crate) fn namespace(name: &str, domain: Option<&str>) {
    let label = domain.map(|domain| format!("labels: {{entente.dev/trust-domain: {domain}}}")).unwrap_or_default();
    apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, {label}}}"));
}

/// How much of a long test to do: all of it under `./test long`, else a small part.
pub(crate) fn amount(long: u64, short: u64) -> u64 {
    #[allow(clippy::disallowed_methods, reason = "how much to test is said from outside")]
    let is_long = std::env::var("ENTENTE_LONG").is_ok();
    if is_long { long } else { short }
}
