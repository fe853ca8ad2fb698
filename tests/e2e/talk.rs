//! Declared servers talk with unmodified software, and the wire shows TLS only.

use std::{fs, process::Command};

use crate::{
    cluster::{Place, must, node, suffix, until},
    workloads::{IDLE, account, declared, server, service, web},
};

/// A capture on the bridge that every pod is plugged into.
struct Capture {
    child: std::process::Child,
    file: std::path::PathBuf,
}

impl Capture {
    fn start(name: &str) -> Self {
        let file = node().join(format!("{name}.pcap"));
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/entente-node{}", suffix()))
            .args(["tcpdump", "--immediate-mode", "-U", "-s", "0", "-i", "cni0", "-w"])
            .arg(&file)
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("tcpdump is there: run ./up node as root");
        until(10, "the capture has begun", || fs::metadata(&file).map(|_| ()).map_err(|error| error.to_string()));
        Self { child, file }
    }

    /// Stops when `seen` is in the capture so many times: what was sent before is in it too.
    fn stop_after(mut self, times: usize, seen: &[u8]) -> Vec<u8> {
        until(10, "the last of it is captured", || {
            let bytes = fs::read(&self.file).map_err(|error| error.to_string())?;
            let found = bytes.windows(seen.len()).filter(|window| *window == seen).count();
            if found >= times { Ok(()) } else { Err(format!("{found} times in {} bytes", bytes.len())) }
        });
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
        let bytes = fs::read(&self.file).unwrap();
        let _ = fs::remove_file(&self.file);
        bytes
    }
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn redis_and_http_pass_unmodified_and_the_wire_holds_tls_13_and_none_of_the_payload() {
    let place = Place::new("wire");
    place.apply(&server("redis", "exec redis-server --save '' --protected-mode no", "[{name: redis, port: 6379}]", ""));
    place.apply(&service("redis", 6379, 6379));
    place.apply(&server("web", &web(8080, "the-secret-answer"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&service("web", 80, 8080));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["redis", "web", "client"]);
    let capture = Capture::start(&place.name);
    let said =
        place.run("deploy/client", "redis-cli -h redis SET key the-secret-question && redis-cli -h redis GET key");
    assert_eq!(said.out, "OK\nthe-secret-question\n", "{}", said.err);
    let said = place.run("deploy/client", "curl -sS --max-time 10 http://web/");
    assert_eq!(said.out, "the-secret-answer\n", "{}", said.err);
    // Three connections, each with a ServerHello whose supported version is TLS 1.3 (RFC 8446 §4.2.1).
    let bytes = capture.stop_after(3, &[0x00, 0x2b, 0x00, 0x02, 0x03, 0x04]);
    assert!(!holds(&bytes, b"the-secret"), "the payload is on the wire");
    assert!(!holds(&bytes, b"GET / HTTP"), "the request is on the wire");
}

#[test]
fn a_protocol_in_which_the_server_speaks_first_works() {
    let place = Place::new("banner");
    let banner = "exec socat TCP-LISTEN:2525,fork,reuseaddr SYSTEM:'echo 220 ready; read line; echo 250 $line'";
    place.apply(&server("mail", banner, "[{name: smtp, port: 2525}]", ""));
    place.apply(&service("mail", 25, 2525));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["mail", "client"]);
    let line = "exec 3<>/dev/tcp/mail/25; read -r a <&3; echo $a; echo hello >&3; read -r a <&3; echo $a";
    let said = place.kubectl(&["exec", "deploy/client", "-c", "app", "--", "timeout", "10", "bash", "-c", line]);
    assert_eq!(said.out, "220 ready\n250 hello\n", "{}", said.err);
}

#[test]
fn members_of_a_stateful_set_call_each_other_by_name_and_a_pod_calls_its_own_service() {
    let place = Place::new("members");
    let command = web(8080, "member");
    place.apply(&format!(
        "{}\n---\n{}\n---\napiVersion: v1
kind: Service
metadata: {{name: db}}
spec: {{clusterIP: None, selector: {{app: db}}, ports: [{{port: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: any}}
spec: {{selector: {{app: db}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: db}}
spec:
  serviceName: db
  replicas: 3
  podManagementPolicy: Parallel
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      serviceAccountName: db
      terminationGracePeriodSeconds: 2
      containers:
      - name: app
        image: registry.local/tools:dev
        imagePullPolicy: IfNotPresent
        command: [sh, -c, {command:?}]",
        account("db"),
        declared("db", "[{name: http, port: 8080}]", ""),
    ));
    until(60, "three members", || {
        let count = place.kubectl(&["get", "statefulset", "db", "-o", "jsonpath={.status.readyReplicas}"]).out;
        if count == "3" { Ok(()) } else { Err(format!("{count} ready\n{}", place.picture())) }
    });
    place.ready(&["db"]);
    for from in 0..3 {
        for to in 0..3 {
            let line = format!("curl -sS --max-time 10 http://db-{to}.db:8080/");
            let said = place.run(&format!("pod/db-{from}"), &line);
            assert_eq!(said.out, "member\n", "db-{from} → db-{to}: {}", said.err);
        }
    }
    for _ in 0..6 {
        let said = place.run("pod/db-0", "curl -sS --max-time 10 http://any/");
        assert_eq!(said.out, "member\n", "its own Service: {}", said.err);
    }
    // While much changes elsewhere, the leader says so a moment later.
    until(15, "all three are told of", || {
        let status = place.must(&["get", "trustedserver", "db", "-o", "jsonpath={.status.proxies.summary}"]);
        if status == "3/3" { Ok(()) } else { Err(status) }
    });
}

#[test]
fn http_tcp_and_grpc_probes_and_hooks_work_under_strict_mode() {
    let place = Place::new("probes");
    let command = web(8080, "fine");
    place.apply(&account("web"));
    place.apply(&declared("web", "[{name: http, port: 8080}]", ""));
    place.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec:
  serviceAccountName: web
  terminationGracePeriodSeconds: 5
  containers:
  - name: app
    image: registry.local/tools:dev
    imagePullPolicy: IfNotPresent
    command: [sh, -c, {command:?}]
    ports: [{{name: http, containerPort: 8080}}]
    startupProbe: {{tcpSocket: {{port: http}}, periodSeconds: 1, failureThreshold: 30}}
    readinessProbe: {{httpGet: {{path: /ready, port: http}}, periodSeconds: 1}}
    livenessProbe: {{httpGet: {{path: /live, port: 8080}}, periodSeconds: 2}}
    lifecycle: {{preStop: {{httpGet: {{path: /stop, port: 8080}}}}}}"
    ));
    place.ready(&["web"]);
    until(30, "the pod is Ready by its probes", || {
        let said = place.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=1s"]);
        if said.ok { Ok(()) } else { Err(place.picture()) }
    });
    // Nobody reaches another path or the application through the sidecar's probe port.
    let address = place.must(&["get", "pod", "web", "-o", "jsonpath={.status.podIP}"]);
    let said = must(&["get", "--raw", &format!("/api/v1/namespaces/{}/pods/web:15020/proxy/ready", place.name)]);
    assert!(said.len() < 200, "{said}");
    let other = format!("/api/v1/namespaces/{}/pods/web:15020/proxy/probe/app/other", place.name);
    assert!(!place.kubectl(&["get", "--raw", &other]).ok, "only declared probes are performed at {address}");
}
