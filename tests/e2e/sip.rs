//! Real SIP servers of two organisations: examples/federation under names of its own, and beside it the same servers
//! without Entente, where the edge does its TLS itself.

use std::{fs, process::Command};

use serde_json::{Value, json};

use crate::{
    cluster::{Place, SYSTEM, Said, Says, amount, apply, create, kubectl, must, node, until},
    organisation::Organisation,
};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/federation");

const OK: &str = "SIP/2.0 200 OK";

/// The example with other words for `contoso` and `fabrikam`, so that two of them stand side by side.
struct Pair {
    us: String,
    them: String,
    _names: Vec<Says>,
}

/// What `call.sh` found.
#[derive(Debug)]
struct Calls {
    made: u64,
    failed: u64,
    set_up: String,
    said: String,
}

impl Pair {
    fn apply(kind: &str, change: impl Fn(&mut Value)) -> Self {
        let name = |side: &str| format!("{kind}-{side}-{}", std::process::id());
        let (us, them) = (name("ours"), name("theirs"));
        let example = must(&["kustomize", EXAMPLE]).replace("contoso", &us).replace("fabrikam", &them);
        let mut documents: Vec<Value> = serde_saphyr::from_multiple(&example).unwrap();
        documents.iter_mut().for_each(change);
        documents.retain(|one| !one.is_null());
        apply(&json!({"apiVersion": "v1", "kind": "List", "items": documents}).to_string());
        // As in the public DNS, which Kamailio asks for its own name before it listens.
        let public = |organisation: &str, namespace: &str, service: &str| {
            let address = must(&["get", "service", service, "-n", namespace, "-o", "jsonpath={.spec.clusterIP}"]);
            Says::new(&format!("sip.{organisation}.example"), &address)
        };
        let names = vec![public(&us, &format!("{us}-edge"), "edge"), public(&them, &them, "sip")];
        Self { us, them, _names: names }
    }

    fn edge(&self) -> String {
        format!("{}-edge", self.us)
    }

    fn reception(&self) -> String {
        format!("reception@{}.example", self.us)
    }

    fn helpdesk(&self) -> String {
        format!("helpdesk@{}.example", self.them)
    }

    fn namespaces(&self) -> [String; 3] {
        [format!("{}-sip", self.us), self.edge(), self.them.clone()]
    }

    fn ready(&self) {
        for namespace in self.namespaces() {
            let said = kubectl(&["rollout", "status", "deployment", "-n", &namespace, "--timeout=120s"]);
            assert!(said.ok, "{namespace}: {}\n{}", said.err, kubectl(&["get", "pods,trustedservers", "-A"]).out);
        }
        for namespace in [&self.namespaces()[0], &self.them] {
            until(30, "a user registers", || {
                let said = self.user(namespace, "/users/register.sh");
                if said.ok { Ok(()) } else { Err(said.out + &said.err) }
            });
        }
    }

    fn user(&self, namespace: &str, line: &str) -> Said {
        let words = ["exec", "-n", namespace, "deploy/users", "-c", "users", "--", "sh"];
        kubectl(&[&words[..], &line.split(' ').collect::<Vec<_>>()].concat())
    }

    fn message(&self, namespace: &str, line: &str) -> String {
        let said = self.user(namespace, &format!("/users/message.sh {line}"));
        said.out.lines().find(|line| line.starts_with("SIP/2.0 ")).unwrap_or(&said.err).trim().to_owned()
    }

    /// Contoso's user calls Fabrikam's.
    fn calls_out(&self, calls: u64) -> Calls {
        self.calls(&self.namespaces()[0], &format!("helpdesk {}.example {calls}", self.them))
    }

    /// Fabrikam's user calls Contoso's.
    fn calls_in(&self, calls: u64) -> Calls {
        self.calls(&self.them, &format!("reception {}.example {calls}", self.us))
    }

    fn calls(&self, namespace: &str, line: &str) -> Calls {
        let said = self.user(namespace, &format!("/users/call.sh {line}"));
        let number = |what: &str| {
            let words: Vec<&str> = said.out.split([' ', ',', '\n']).filter(|word| !word.is_empty()).collect();
            let at = words.iter().position(|word| *word == what)?;
            words[at.checked_sub(1)?].parse().ok()
        };
        let set_up = said.out.lines().find_map(|line| line.strip_prefix("set up within ")).unwrap_or_default();
        let found = number("calls").zip(number("failed"));
        let (made, failed) = found.unwrap_or_else(|| panic!("call.sh {line}: {}\n{}", said.out, said.err));
        Calls { made, failed, set_up: set_up.to_owned(), said: said.out + &said.err }
    }

    /// The partner's standing; then each side's message to the other is answered so.
    fn partner_is(&self, state: &str, answer: &str) {
        let change = json!({"spec": {"state": state}}).to_string();
        let partner = format!("federationpartner/{}", self.them);
        must(&["patch", &partner, "-n", &self.edge(), "--type=merge", "-p", &change]);
        for (from, to) in [(&self.namespaces()[0], self.helpdesk()), (&self.them, self.reception())] {
            until(60, &format!("{to} is answered {answer}"), || {
                let found = self.message(from, &to);
                if found == answer { Ok(()) } else { Err(found) }
            });
        }
    }

    fn wire(&self, verb: &str) -> String {
        must(&["exec", "-n", &self.them, "deploy/sip", "-c", "wire", "--", "sh", "/wire/wire.sh", verb])
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for namespace in self.namespaces() {
                let pods = kubectl(&["get", "pods,trustedservers,federationpartners", "-n", &namespace]).out;
                let log =
                    kubectl(&["logs", "-n", &namespace, "-l", "app", "--all-containers", "--prefix", "--tail=12"]);
                eprintln!("--- {namespace}\n{pods}\n{}", log.out);
            }
        }
        let _ = kubectl(&["delete", "trustdomain", &self.us, "--ignore-not-found", "--wait=false"]);
        let authority = format!("entente-authority-{}", self.us);
        let _ = kubectl(&["-n", SYSTEM, "delete", "secret", &authority, "--ignore-not-found", "--wait=false"]);
        for namespace in self.namespaces() {
            let _ = kubectl(&["delete", "namespace", &namespace, "--wait=false"]);
        }
    }
}

/// The pair as the example has it, each organisation with the other's root.
fn with_entente() -> Pair {
    let pair = Pair::apply("sip", |_| ());
    let folder = node().join(&pair.them);
    until(60, "each gets the other's root", || {
        let said = Command::new(format!("{EXAMPLE}/exchange-roots.sh"))
            .arg(&folder)
            .env("US", &pair.us)
            .env("THEM", &pair.them)
            .env("KUBECONFIG", node().join("kubeconfig"))
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", node().join("bin").display()))
            .output()
            .unwrap();
        if said.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said.stderr).into_owned()) }
    });
    let _ = fs::remove_dir_all(folder);
    for namespace in &pair.namespaces()[..2] {
        must(&["wait", "--for=condition=Ready", "trustedserver", "--all", "-n", namespace, "--timeout=90s"]);
    }
    let partner = format!("federationpartner/{}", pair.them);
    must(&["wait", "--for=condition=Distributed", &partner, "-n", &pair.edge(), "--timeout=60s"]);
    pair.ready();
    pair
}

/// The same servers, and no sidecar: Kamailio at the edge has a certificate and does its TLS itself.
fn without_entente() -> Pair {
    let pair = Pair::apply("plain", |document| {
        let named = (document["kind"].as_str().unwrap(), document["metadata"]["name"].as_str().unwrap());
        match named {
            ("TrustDomain" | "TrustedServer" | "FederationPartner", _) => *document = Value::Null,
            ("Namespace", _) => document["metadata"]["labels"] = json!({}),
            ("Deployment", "edge") => own_tls(&mut document["spec"]["template"]["spec"]),
            // Without a sidecar two ports are two: 5061 for Fabrikam, 5060 for our own.
            ("Service", "edge") => {
                document["spec"]["ports"].as_array_mut().unwrap().push(json!({"name": "own", "port": 5060}))
            }
            ("ConfigMap", _) => inside_is_5060(&mut document["data"]),
            _ => (),
        }
    });
    // One authority for both: who vouches for whom makes no difference to the time that it takes.
    let authority = Organisation::new("plain", "sip");
    let theirs = authority.root();
    for (namespace, organisation) in [(pair.edge(), &pair.us), (pair.them.clone(), &pair.them)] {
        let name = authority.certifies(&format!("sip.{organisation}.example"));
        let own = |kind: &str| authority.file(&format!("{name}.{kind}"));
        let object = |kind: &str, name: &str, field: &str, data: Value| {
            let metadata = json!({"name": name, "namespace": namespace});
            create(&json!({"apiVersion": "v1", "kind": kind, "metadata": metadata, field: data}).to_string());
        };
        object("Secret", "own", "stringData", json!({"tls.crt": own("crt"), "tls.key": own("key")}));
        object("ConfigMap", "theirs", "data", json!({"ca.crt": theirs}));
        let tls = fs::read_to_string(format!("{EXAMPLE}/fabrikam/tls.cfg")).unwrap();
        object("ConfigMap", "tls", "data", json!({"tls.cfg": tls}));
    }
    pair.ready();
    pair
}

/// Where a configuration names the edge's inner side.
fn inside_is_5060(data: &mut Value) {
    if let Some(Value::String(config)) = data.get_mut("kamailio.cfg") {
        *config = config.replace("-edge.svc.cluster.local:5061", "-edge.svc.cluster.local:5060");
    }
}

/// The edge's pod with a certificate and with the branch of its configuration that uses it.
fn own_tls(pod: &mut Value) {
    let container = &mut pod["containers"][0];
    container["command"].as_array_mut().unwrap().extend([json!("-A"), json!("OWN_TLS")]);
    let volumes = pod["volumes"].as_array_mut().unwrap();
    let config = volumes.iter_mut().find(|volume| volume["name"] == "config").unwrap();
    let file = |key: &str, path: &str| json!({"key": key, "path": path});
    let name = config["configMap"]["name"].clone();
    *config = json!({"name": "config", "projected": {"sources": [
        {"configMap": {"name": name}},
        {"configMap": {"name": "tls"}},
        {"secret": {"name": "own", "items": [file("tls.crt", "own/tls.crt"), file("tls.key", "own/tls.key")]}},
        {"configMap": {"name": "theirs", "items": [file("ca.crt", "theirs/ca.crt")]}},
    ]}});
}

#[test]
fn sip_calls_and_messages_pass_both_edges_both_ways_and_a_foreign_from_is_answered_403() {
    let _place = Place::alone("sip");
    let calls = amount(1000, 100);
    let pair = with_entente();
    let ours = pair.namespaces()[0].clone();

    pair.wire("start");
    assert_eq!(pair.message(&pair.them, &pair.reception()), OK);
    assert_eq!(pair.message(&ours, &pair.helpdesk()), OK);
    let (incoming, outgoing) = (pair.calls_in(calls), pair.calls_out(calls));
    for made in [&incoming, &outgoing] {
        assert_eq!((made.made, made.failed), (calls, 0), "{}", made.said);
    }
    let foreign = format!("{} somebody@{}.example", pair.reception(), pair.us);
    assert_eq!(pair.message(&pair.them, &foreign), "SIP/2.0 403 Not Your Domain");
    let seen = pair.wire("stop");
    let line = |port: &str| seen.lines().find(|line| line.contains(port)).unwrap_or_default().to_owned();
    assert!(line("5061").contains(" 0 readable lines"), "{seen}");
    assert!(!line("5061").contains(" 0 packets") && !line("5060").contains(" 0 readable"), "{seen}");

    // Withdrawn, the partner is out in both directions, and our own users go on.
    pair.partner_is("Suspended", "SIP/2.0 408 Request Timeout");
    assert_eq!(pair.message(&ours, &pair.reception()), OK);
    pair.partner_is("Active", OK);
    drop(pair);

    let plain = without_entente();
    let (incoming_plain, outgoing_plain) = (plain.calls_in(calls), plain.calls_out(calls));
    eprintln!("{seen}");
    for (what, with, without) in
        [("Fabrikam calls Contoso", incoming, incoming_plain), ("Contoso calls Fabrikam", outgoing, outgoing_plain)]
    {
        eprintln!("{what}: {} calls, {} failed", with.made, with.failed);
        eprintln!("  with Entente:                set up within {}", with.set_up);
        // What is compared with may fail on a busy machine; it is told, not promised.
        eprintln!("  Kamailio's own TLS, without: set up within {}, {} failed", without.set_up, without.failed);
    }
}
