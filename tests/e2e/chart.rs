//! The chart's life, and charts of applications that bring their own TrustedServer.

use std::{fs, process::Command};

use crate::{
    cluster::{Place, Said, kubectl, must, node, program, until},
    workloads::{IDLE, server, service, web},
};

const SYSTEM: &str = "entente-system";

fn helm(arguments: &[&str]) -> Said {
    program("helm").args(arguments).output().expect("helm is there: run ./up node").into()
}

fn root() -> String {
    must(&["-n", SYSTEM, "get", "secret", "entente-authority-contoso", "-o", "jsonpath={.data.ca\\.crt}"])
}

#[test]
fn upgrade_uninstall_and_install_again_keep_objects_root_and_traffic() {
    let place = Place::alone("chart");
    place.apply(&server("web", &web(8080, "hello"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&service("web", 80, 8080));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["web", "client"]);
    let hello = |when: &str| {
        let said = place.run("deploy/client", "curl -sS --max-time 10 http://web/");
        assert_eq!(said.out, "hello\n", "{when}: {}", said.err);
    };
    let chart = format!("{}/charts/entente", env!("CARGO_MANIFEST_DIR"));
    let before = root();
    let values = helm(&["get", "values", "entente", "-n", SYSTEM, "-o", "yaml"]);
    assert!(values.ok, "{}", values.err);
    let file = node().join("values.yaml");
    fs::write(&file, &values.out).unwrap();
    let said = helm(&["upgrade", "entente", &chart, "-n", SYSTEM, "--reuse-values", "--wait", "--timeout", "2m"]);
    assert!(said.ok, "upgrade: {}", said.err);
    hello("after the upgrade");
    let said = helm(&["uninstall", "entente", "-n", SYSTEM, "--wait"]);
    assert!(said.ok, "uninstall: {}", said.err);
    assert!(said.out.contains("trustedservers.entente.dev"), "what is kept is announced: {}", said.out);
    hello("without the operator");
    assert!(kubectl(&["get", "crd", "trustedservers.entente.dev", "trustdomains.entente.dev"]).ok);
    assert!(place.kubectl(&["get", "trustedserver", "web"]).ok);
    assert_eq!(root(), before, "the authority stays");
    let install =
        ["install", "entente", &chart, "-n", SYSTEM, "-f", file.to_str().unwrap(), "--wait", "--timeout", "2m"];
    let said = helm(&install);
    assert!(said.ok, "install again: {}", said.err);
    place.ready(&["web", "client"]);
    assert_eq!(root(), before, "the same root goes on");
    hello("after the new installation");
    place.must(&["rollout", "restart", "deployment/client"]);
    place.must(&["rollout", "status", "deployment/client", "--timeout=90s"]);
    hello("from a new pod");
}

#[test]
fn an_application_chart_with_deployment_and_trusted_server_never_starts_a_bare_pod() {
    let place = Place::new("appchart");
    let chart = format!("{}/examples/application-chart", env!("CARGO_MANIFEST_DIR"));
    let said = helm(&["install", "app", &chart, "-n", &place.name]);
    assert!(said.ok, "{}", said.err);
    until(90, "every server of the chart is Ready", || {
        let template = "jsonpath={range .items[*]}{.status.conditions[?(@.type==\"Ready\")].status} {end}";
        let ready = place.must(&["get", "trustedservers", "-o", template]);
        let good = !ready.is_empty() && ready.split_whitespace().all(|status| status == "True");
        if good { Ok(()) } else { Err(place.picture()) }
    });
    let template = "jsonpath={range .items[*]}{.metadata.name}: {.spec.initContainers[*].name}{\"\\n\"}{end}";
    let pods = place.must(&["get", "pods", "-o", template]);
    assert!(!pods.is_empty() && pods.lines().all(|line| line.contains("entente-proxy")), "a bare pod: {pods}");
}

#[test]
fn the_chart_renders_and_lints_with_every_set_of_values() {
    let chart = format!("{}/charts/entente", env!("CARGO_MANIFEST_DIR"));
    let run = |arguments: &[&str]| -> Said {
        Command::new(node().join("bin/helm")).args(arguments).output().expect("helm is there: run ./up node").into()
    };
    for values in [
        &[][..],
        &["--set", "replicas=3"],
        &["--set", "trustDomain.create=true,trustDomain.spiffeTrustDomain=a.example"],
    ] {
        let said = run(&[&["lint", &chart], values].concat());
        assert!(said.ok, "{values:?}: {}{}", said.out, said.err);
        let said = run(&[&["template", "entente", &chart, "-n", SYSTEM, "--kube-version", "1.34.0"], values].concat());
        assert!(said.ok, "{values:?}: {}", said.err);
        // A value: the definition of FederationPartner has a field of that name.
        for word in ["caBundle: ", "BEGIN ", "genCA"] {
            assert!(!said.out.contains(word), "{word} is rendered");
        }
    }
}
