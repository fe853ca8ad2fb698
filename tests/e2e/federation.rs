//! Another organisation at the edge: its own authority, its own names, one server of ours, and nothing behind it.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    cluster::{Place, must, node, suffix, until},
    workloads::{IDLE, server, service, web},
};

const DOMAIN: &str = "federated";
const SOON: Duration = Duration::from_secs(10);

/// The partner's authority, made by OpenSSL, in a folder that is removed at the end.
struct Fabrikam(PathBuf);

impl Fabrikam {
    fn new() -> Self {
        let made = Self(node().join("fabrikam"));
        std::fs::create_dir_all(&made.0).unwrap();
        made.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout root.key -out root.crt -days 30 \
             -subj /O=Fabrikam/CN=root -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign",
        );
        made
    }

    fn openssl(&self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let out = Command::new("openssl").args(&words).current_dir(&self.0).output().expect("openssl is there");
        assert!(out.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// Certifies `name`, whosever it is; answers the files' name.
    fn certifies(&self, name: &str) -> String {
        let extensions = format!(
            "subjectAltName=DNS:{name}\nextendedKeyUsage=clientAuth,serverAuth\nkeyUsage=critical,digitalSignature\n\
             basicConstraints=critical,CA:FALSE\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        );
        std::fs::write(self.0.join(format!("{name}.ext")), extensions).unwrap();
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /O=Fabrikam"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA root.crt -CAkey root.key -CAcreateserial -days 30 -extfile {name}.ext -out {name}.crt"
        ));
        name.to_owned()
    }

    /// OpenSSL's client with the certificate of `name`, from outside the topology: the node's own network.
    fn dials(&self, name: &str, to: &str) -> Child {
        Command::new("nsenter")
            .arg(format!("--net=/run/netns/entente-node{}", suffix()))
            .args(["openssl", "s_client", "-quiet", "-connect", to, "-CAfile", "ours.crt", "-verify_return_error"])
            .args(["-cert", &format!("{name}.crt"), "-key", &format!("{name}.key")])
            .current_dir(&self.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// What `name` is answered to one request; nothing = it was refused.
    fn calls(&self, name: &str, to: &str) -> String {
        let mut child = self.dials(name, to);
        let mut stdin = child.stdin.take().unwrap();
        let _ = stdin.write_all(b"GET / HTTP/1.0\r\n\r\n");
        ends(&mut child, SOON);
        drop(stdin);
        let _ = child.kill();
        String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).into_owned()
    }
}

impl Drop for Fabrikam {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Waits for the end of a client; answers how long it took.
fn ends(child: &mut Child, at_most: Duration) -> Option<Duration> {
    let began = Instant::now();
    while began.elapsed() < at_most {
        if child.try_wait().unwrap().is_some() {
            return Some(began.elapsed());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

fn partner(root: &Path) -> String {
    let root = std::fs::read_to_string(root).unwrap().replace('\n', "\n      ");
    format!(
        "apiVersion: entente.dev/v1alpha1
kind: FederationPartner
metadata: {{name: fabrikam}}
spec:
  domains: [fabrikam.example]
  trust:
    caBundle: |
      {root}"
    )
}

fn partner_is(place: &Place, kind: &str, expected: &str) {
    until(30, &format!("the partner has {kind}={expected}"), || {
        let path = |field: &str| format!("{{.status.conditions[?(@.type==\"{kind}\")].{field}}}");
        let template = format!("jsonpath={}/{}/{}", path("status"), path("reason"), path("message"));
        let found = place.kubectl(&["get", "federationpartner", "fabrikam", "-o", &template]).out;
        if found.starts_with(expected) { Ok(()) } else { Err(found) }
    });
}

#[test]
fn a_partner_reaches_the_edge_server_that_lists_it_under_its_own_names_and_nothing_else() {
    let place = Place::with_domain(DOMAIN, "leaf: {lifetimeSeconds: 3600, clockSkewSeconds: 30}");
    let edges = format!("{{\"spec\": {{\"edgeNamespaces\": [\"{}\"]}}}}", place.name);
    must(&["patch", "trustdomain", DOMAIN, "--type=merge", "-p", &edges]);
    let fabrikam = Fabrikam::new();
    place.apply(&partner(&fabrikam.0.join("root.crt")));
    let two = web(8080, "ours").replacen(
        "server {",
        "server { listen 8081; location / { return 200 'theirs'; } } server {",
        1,
    );
    let allowed = "allowFrom: [{partner: {name: fabrikam}, targetPort: 8081}, {server: {name: client}}]";
    place.apply(&server(
        "gate",
        &two,
        &format!("[{{name: sip, port: 5061, targetPort: 8080, {allowed}}}]"),
        "  role: Edge",
    ));
    place.apply(&service("gate", 5061, 5061));
    place.apply(&server("inside", &web(8080, "inside"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["gate", "inside", "client"]);
    partner_is(&place, "Ready", "True/");
    std::fs::write(fabrikam.0.join("ours.crt"), place.bundle("ca.crt")).unwrap();
    let address = |app: &str| place.must(&["get", "pod", &place.pod(app), "-o", "jsonpath={.status.podIP}"]);
    let (gate, inside) = (format!("{}:5061", address("gate")), format!("{}:8080", address("inside")));

    let sip = fabrikam.certifies("sip.fabrikam.example");
    assert!(fabrikam.calls(&sip, &gate).ends_with("theirs"), "{}", place.picture());
    assert_eq!(place.run("deploy/client", "curl -sS --max-time 5 http://gate:5061/").out, "ours\n");

    let ours = fabrikam.certifies("gate.federated.example");
    assert_eq!(fabrikam.calls(&ours, &gate), "", "its authority does not speak for us");
    assert_eq!(fabrikam.calls(&sip, &inside), "", "nobody inside has heard of it");
    assert_eq!(place.refusals(&place.pod("gate"), "inbound", "NameOutOfScope"), 1);
    assert!(place.refusals(&place.pod("inside"), "inbound", "UntrustedRoot") >= 1);

    // What is open ends with the partner's standing, and it may come back.
    let mut held = fabrikam.dials(&sip, &gate);
    let stdin = held.stdin.take().unwrap();
    assert_eq!(ends(&mut held, Duration::from_secs(2)), None, "it is open");
    place.must(&[
        "patch",
        "federationpartner",
        "fabrikam",
        "--type=merge",
        "-p",
        r#"{"spec": {"state": "Suspended"}}"#,
    ]);
    let took = ends(&mut held, SOON).expect("a suspended partner is cut");
    drop(stdin);
    eprintln!("a suspended partner's connection ended {took:.2?} after kubectl patch");
    assert_eq!(fabrikam.calls(&sip, &gate), "");
    partner_is(&place, "Ready", "False/Suspended");
    place.must(&["patch", "federationpartner", "fabrikam", "--type=merge", "-p", r#"{"spec": {"state": "Active"}}"#]);
    until(10, "it may call again", || {
        let answer = fabrikam.calls(&sip, &gate);
        if answer.ends_with("theirs") { Ok(()) } else { Err(answer) }
    });
}
