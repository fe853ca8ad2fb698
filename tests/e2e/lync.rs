//! `examples/lync-topology`: each cell of its table of who may call whom is a real connection.

use std::{path::PathBuf, thread};

use crate::{
    cluster::{Place, Says, kubectl, must, program, until},
    organisation::Organisation,
};

const FABRIKAM: &str = "198.18.254.2";
const LITWARE: &str = "198.18.254.3";
const EDGE: &str = "voice-edge";

fn example() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/lync-topology")
}

/// The example as it stands, removed at the end.
struct Example;

impl Example {
    fn applied() -> Self {
        let said = program("kubectl").args(["apply", "-f"]).arg(example()).output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        Self
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = kubectl(&["delete", "trustdomain", "voice", "--wait=false"]);
        let _ = kubectl(&["-n", "entente-system", "delete", "secret", "entente-authority-voice", "--wait=false"]);
        let _ = kubectl(&["delete", "namespace", "voice", EDGE, "--wait=false"]);
    }
}

/// A row of the table: who calls, and what each column says.
struct Row {
    caller: String,
    cells: Vec<(String, String)>,
}

/// The table in the example's README.
fn table() -> Vec<Row> {
    let text = std::fs::read_to_string(example().join("README.md")).unwrap();
    let lines = text.lines().skip_while(|line| !line.starts_with("| | front-end:5061"));
    let cells = |line: &str| -> Vec<String> {
        let inner = line.trim().trim_matches('|');
        inner.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut rows: Vec<Vec<String>> = lines.take_while(|line| line.starts_with('|')).map(cells).collect();
    let columns = rows.remove(0);
    rows.remove(0);
    let row = |mut cells: Vec<String>| {
        let caller = cells.remove(0);
        Row { caller, cells: columns[1..].iter().cloned().zip(cells).filter(|(_, cell)| !cell.is_empty()).collect() }
    };
    rows.into_iter().map(row).collect()
}

/// The host and port that a column means.
fn destination(column: &str) -> String {
    let (name, port) = column.split_once(':').unwrap();
    match name {
        "edge" => format!("edge.{EDGE}.svc.cluster.local:{port}"),
        name if name.contains('.') => column.to_owned(),
        name => format!("{name}.voice.svc.cluster.local:{port}"),
    }
}

/// A shell line that prints what `to` says to a plain call, or to one under TLS.
fn call(to: &str, tls: bool, roots: &str) -> String {
    let host = to.split(':').next().unwrap();
    if tls {
        format!(
            "timeout 8 openssl s_client -quiet -verify_return_error -verify_hostname {host} -CAfile {roots} \
             -connect {to} 2>/dev/null </dev/null"
        )
    } else {
        format!("timeout 8 socat -u TCP:{to},connect-timeout=5 - 2>/dev/null")
    }
}

/// Calls every column from the inside of a pod; answers what each said.
fn from_pod(place: &[&str], row: &Row, roots: &str) -> Vec<String> {
    let lines = row.cells.iter().map(|(column, cell)| {
        let call = call(&destination(column), cell == "TLS", roots);
        // OpenSSL's client now and then prints nothing of a server that speaks first and hangs up at once.
        let again = if cell == "TLS" {
            format!(" [ -n \"$said\" ] || said=$({call} | head -c 100);").repeat(2)
        } else {
            String::new()
        };
        format!("said=$({call} | head -c 100);{again} echo \"<$said>\"")
    });
    let script = lines.collect::<Vec<_>>().join("\n");
    let said = kubectl(&[place, &["--", "sh", "-c", &script]].concat());
    said.out.split('>').map(|one| one.trim().trim_start_matches('<').to_owned()).collect()
}

/// The same from outside, by OpenSSL with the organisation's certificate where one is asked for.
fn from_outside(organisation: &Organisation, certificate: &str, row: &Row) -> Vec<String> {
    let address = |column: &str| {
        let to = destination(column);
        let (host, port) = to.split_once(':').unwrap();
        let mut labels = host.split('.');
        let (name, namespace) = (labels.next().unwrap(), labels.next().unwrap());
        let ip = must(&["-n", namespace, "get", "service", name, "-o", "jsonpath={.spec.clusterIP}"]);
        format!("{ip}:{port}")
    };
    let one = |(column, cell): &(String, String)| {
        let call = || {
            let said = organisation.calls(if cell == "TLS" { "" } else { certificate }, &address(column));
            said.trim().to_owned()
        };
        // As above; who is refused is refused each time.
        let wanted = cell == "yes" || cell == "TLS";
        let mut tries = (0..if wanted { 3 } else { 1 }).map(|_| call());
        tries.find(|said| !said.is_empty()).unwrap_or_default()
    };
    row.cells.iter().map(one).collect()
}

fn confirm(row: &Row, said: &[String]) -> Vec<String> {
    let wrong = row.cells.iter().zip(said).filter(|((column, cell), said)| {
        let who = column.split(':').next().unwrap();
        let wanted = cell == "yes" || cell == "TLS";
        // Whoever answers says who it is; nobody else's answer counts.
        wanted != said.starts_with(who) || (!wanted && !said.is_empty())
    });
    wrong.map(|((column, cell), said)| format!("{} calls {column}: wanted {cell}, got {said:?}", row.caller)).collect()
}

fn ready() {
    for namespace in ["voice", EDGE] {
        until(180, &format!("every server of {namespace} is Ready"), || {
            let template = "jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type==\"Ready\")].status},{.status.conditions[?(@.type==\"Ready\")].reason} {end}";
            let found = must(&["-n", namespace, "get", "trustedservers", "-o", template]);
            let all = found.split_whitespace().all(|one| one.contains("=True,"));
            if all && !found.is_empty() { Ok(()) } else { Err(found) }
        });
        must(&["-n", namespace, "wait", "--for=condition=Available", "deployment", "--all", "--timeout=120s"]);
    }
}

/// Gives a partner the root whose key we have, instead of the demonstration.
fn rooted(partner: &str, organisation: &Organisation) {
    let patch = serde_json::json!({"spec": {"trust": {"caBundle": organisation.root()}}}).to_string();
    must(&["-n", EDGE, "patch", "federationpartner", partner, "--type=merge", "-p", &patch]);
}

#[test]
fn in_the_lync_topology_every_cell_of_who_may_call_whom_is_as_its_table_says() {
    let place = Place::new("lync");
    let _example = Example::applied();
    let (fabrikam, litware) = (Organisation::new("Fabrikam", "lync"), Organisation::new("Litware", "lync"));
    rooted("fabrikam", &fabrikam);
    rooted("litware", &litware);
    ready();
    let ours = must(&["-n", EDGE, "get", "configmap", "entente-trust-bundle", "-o", "jsonpath={.data.ca\\.crt}"]);
    let mut servers = vec![];
    for (organisation, name, address) in
        [(&fabrikam, "access.fabrikam.example", FABRIKAM), (&litware, "access.litware.example", LITWARE)]
    {
        organisation.trusts(&ours);
        organisation.certifies(name);
        servers.push((organisation.serves(name, address, 5061), Says::new(name, address)));
    }
    // The roots that we gave it in the demonstration's place are on their way to the edge.
    let access = must(&["-n", EDGE, "get", "service", "edge", "-o", "jsonpath={.spec.clusterIP}"]);
    until(30, "the edge knows Fabrikam's root", || {
        let said = fabrikam.calls("access.fabrikam.example", &format!("{access}:5061"));
        if said.is_empty() { Err("it is refused".to_owned()) } else { Ok(()) }
    });
    // Nobody declared it: no sidecar, no certificate, the roots that everybody may have.
    let stranger = format!("t-lync-stranger-{}", std::process::id());
    must(&[
        "run",
        &stranger,
        "--image=registry.local/tools:dev",
        "--image-pull-policy=IfNotPresent",
        "--",
        "sleep",
        "600",
    ]);
    must(&["wait", "--for=condition=Ready", "pod", &stranger, "--timeout=60s"]);
    let script = format!("cat >/tmp/ca.crt <<'PEM'\n{ours}\nPEM");
    must(&["exec", &stranger, "--", "sh", "-c", &script]);

    let rows = table();
    assert_eq!(rows.len(), 9, "the table is read whole");
    let cells: usize = rows.iter().map(|row| row.cells.len()).sum();
    assert_eq!(cells, 86);
    let wrong: Vec<String> = thread::scope(|scope| {
        let (stranger, fabrikam, litware) = (&stranger, &fabrikam, &litware);
        let confirming: Vec<_> = rows
            .iter()
            .map(|row| {
                scope.spawn(move || {
                    let said = match row.caller.as_str() {
                        "Fabrikam" => from_outside(fabrikam, "access.fabrikam.example", row),
                        "Litware" => from_outside(litware, "access.litware.example", row),
                        "a stranger" => from_pod(&["exec", stranger], row, "/tmp/ca.crt"),
                        name => {
                            let (namespace, deployment) =
                                (if name == "edge" { EDGE } else { "voice" }, format!("deploy/{name}"));
                            from_pod(&["-n", namespace, "exec", &deployment, "-c", name], row, "/trust/ca.crt")
                        }
                    };
                    confirm(row, &said)
                })
            })
            .collect();
        confirming.into_iter().flat_map(|row| row.join().unwrap()).collect()
    });
    let _ = kubectl(&["delete", "pod", &stranger, "--wait=false"]);
    if !wrong.is_empty() {
        for namespace in ["voice", EDGE] {
            for pod in must(&["-n", namespace, "get", "pods", "-o", "name"]).lines() {
                let log = must(&["-n", namespace, "logs", pod, "-c", "entente-proxy"]);
                let early = log.lines().filter(|line| line.contains("reason=") && !line.contains("reason=\"ok\""));
                early.for_each(|line| eprintln!("{pod}: {line}"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    eprintln!("{cells} cells of who may call whom are as the table says");
    drop(place);
}
