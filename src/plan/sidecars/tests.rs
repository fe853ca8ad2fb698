use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::sidecar::{ENV_PROBES, Probe, ProbeAction};

const ORDERS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: orders-0, labels: {app: orders}}
spec:
  initContainers:
  - {name: migrate, image: "registry.local/tools:dev"}
  containers:
  - name: app
    image: registry.local/tools:dev
    ports: [{name: http, containerPort: 8080}]
    readinessProbe:
      httpGet: {path: "/healthy?deep=1", port: http, httpHeaders: [{name: Host, value: orders}]}
      periodSeconds: 7
      timeoutSeconds: 3
  volumes: [{name: data, emptyDir: {}}]
"#;

/// A second pod: its own native sidecar, all kinds of probes and hooks, a container without any.
const BUSY: &str = r#"
metadata: {labels: {entente.dev/server: chosen}}
spec:
  terminationGracePeriodSeconds: 90
  initContainers:
  - name: logs
    restartPolicy: Always
    startupProbe: {tcpSocket: {port: 9000}, periodSeconds: 2}
  containers:
  - name: app
    ports: [{name: https, containerPort: 8443}]
    securityContext: {capabilities: {drop: [CAP_NET_RAW]}}
    livenessProbe: {httpGet: {port: https, scheme: HTTPS, path: live}, initialDelaySeconds: 4}
    readinessProbe: {grpc: {port: 9090, service: orders.v1}}
    startupProbe: {exec: {command: [/started]}}
    lifecycle:
      postStart: {exec: {command: [/begin]}}
      preStop: {httpGet: {port: "8443", path: /drain}}
  - name: helper
    securityContext: {capabilities: {drop: [all]}}
"#;

fn pod(yaml: &str) -> Pod {
    serde_saphyr::from_str(yaml).unwrap()
}

fn with_injection<T>(act: impl FnOnce(&Injection<'_>) -> T) -> T {
    act(&Injection {
        image: "registry.local/entente:dev",
        pull_policy: "IfNotPresent",
        control_address: "entente.entente-system.svc:8443",
        control_ca: "the authority",
        server: "orders",
        server_certificate: None,
        presented: &BTreeMap::new(),
        udp_ports: &[5060, 5062],
        drain_seconds: 30,
        resources: &ProxyResources::default(),
    })
}

fn injected(pod: &Pod) -> Pod {
    with_injection(|injection| inject(pod, injection)).unwrap()
}

fn recorded(pod: &Pod) -> Probes {
    let proxy = &pod.spec.as_ref().unwrap().init_containers.as_ref().unwrap()[1];
    let variable = proxy.env.iter().flatten().find(|variable| variable.name == ENV_PROBES).unwrap();
    serde_json::from_str(variable.value.as_ref().unwrap()).unwrap()
}

#[test]
fn an_injected_pod_is_the_stored_one() {
    let golden = include_str!("injected.yaml").replace("VERSION", env!("CARGO_PKG_VERSION"));
    let (have, want) = (injected(&pod(ORDERS)), pod(&golden));
    assert_eq!(serde_json::to_value(have).unwrap(), serde_json::to_value(want).unwrap());
}

#[test]
fn injecting_again_changes_nothing_and_patches_nothing() {
    for yaml in [ORDERS, BUSY] {
        let once = injected(&pod(yaml));
        assert_eq!(injected(&once), once);
        assert_eq!(with_injection(|injection| patch(&once, injection)).unwrap(), Patch(vec![]));
    }
}

#[test]
fn the_patch_leads_to_the_injected_pod_and_keeps_fields_that_we_do_not_know() {
    for yaml in [ORDERS, BUSY, "spec: {containers: [{name: app}]}"] {
        let mut raw = serde_json::to_value(pod(yaml)).unwrap();
        let news = json!({"from": "Kubernetes 1.99"});
        let first = if raw["spec"]["initContainers"].is_array() { "initContainers" } else { "containers" };
        raw["spec"][first][0]["news"] = news.clone();
        raw["spec"]["news"] = news.clone();
        let typed: Pod = serde_json::from_value(raw.clone()).unwrap();
        json_patch::patch(&mut raw, &with_injection(|injection| patch(&typed, injection)).unwrap()).unwrap();
        let moved = if first == "initContainers" { 2 } else { 0 };
        assert_eq!(raw["spec"][first][moved]["news"].take(), news, "{yaml}");
        raw["spec"][first][moved].as_object_mut().unwrap().remove("news");
        raw["spec"].as_object_mut().unwrap().remove("news");
        assert_eq!(raw, serde_json::to_value(injected(&typed)).unwrap(), "{yaml}");
    }
}

#[test]
fn a_pod_that_another_webhook_changed_after_us_is_put_in_order_again() {
    let once = injected(&pod(ORDERS));
    let mut changed = once.clone();
    let init = changed.spec.as_mut().unwrap().init_containers.as_mut().unwrap();
    init[1].image = Some("example.com/other:1".to_owned());
    init[1].security_context = None;
    init.rotate_left(1);
    let mut raw = serde_json::to_value(&changed).unwrap();
    json_patch::patch(&mut raw, &with_injection(|injection| patch(&changed, injection)).unwrap()).unwrap();
    let repaired: Pod = serde_json::from_value(raw).unwrap();
    let order: Vec<_> = names(&repaired).collect();
    assert_eq!(order, [INIT_CONTAINER, PROXY_CONTAINER, "migrate"]);
    let ours = |pod: &Pod| pod.spec.as_ref().unwrap().init_containers.as_ref().unwrap()[..2].to_vec();
    assert_eq!(ours(&repaired), ours(&once));
    assert_eq!(recorded(&repaired), recorded(&once));
}

#[test]
fn amounts_that_a_limit_range_added_stay() {
    let mut once = injected(&pod(ORDERS));
    let proxy = &mut once.spec.as_mut().unwrap().init_containers.as_mut().unwrap()[1];
    let limits = proxy.resources.get_or_insert_default().limits.get_or_insert_default();
    limits.insert("cpu".to_owned(), k8s_openapi::apimachinery::pkg::api::resource::Quantity("1".to_owned()));
    assert_eq!(injected(&once), once);
}

#[test]
fn resources_of_the_server_replace_the_defaults_they_would_contradict() {
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, amount)| ((*name).to_owned(), (*amount).to_owned())).collect()
    };
    let check = |requests: &[(&str, &str)], limits: &[(&str, &str)], want: Value| {
        let resources = ProxyResources { requests: map(requests), limits: map(limits) };
        let pod = with_injection(|injection| inject(&pod(ORDERS), &Injection { resources: &resources, ..*injection }));
        let spec = serde_json::to_value(pod.unwrap()).unwrap();
        assert_eq!(spec["spec"]["initContainers"][1]["resources"], want);
    };
    let defaults = json!({"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "128Mi"}});
    check(&[], &[], defaults);
    check(&[("memory", "1Gi")], &[], json!({"requests": {"cpu": "10m", "memory": "1Gi"}, "limits": {}}));
    check(&[], &[("memory", "8Mi")], json!({"requests": {"cpu": "10m"}, "limits": {"memory": "8Mi"}}));
    check(
        &[("cpu", "1")],
        &[("cpu", "2")],
        json!({
            "requests": {"cpu": "1", "memory": "16Mi"}, "limits": {"cpu": "2", "memory": "128Mi"},
        }),
    );
}

#[test]
fn every_kind_of_probe_and_hook_is_asked_of_the_sidecar_and_exec_stays() {
    let pod = injected(&pod(BUSY));
    let http = |path: &str, https| ProbeAction::Http { port: 8443, path: path.to_owned(), https, headers: vec![] };
    let grpc = ProbeAction::Grpc { port: 9090, service: "orders.v1".to_owned() };
    let want = [
        ("/hook/app/preStop", http("/drain", false), 90),
        ("/probe/app/liveness", http("/live", true), 1),
        ("/probe/app/readiness", grpc, 1),
        ("/probe/logs/startup", ProbeAction::Tcp { port: 9000 }, 1),
    ];
    let want: Probes = want
        .into_iter()
        .map(|(path, action, timeout_seconds)| (path.to_owned(), Probe { action, timeout_seconds }))
        .collect();
    assert_eq!(recorded(&pod), want);
    let raw = serde_json::to_value(&pod).unwrap();
    let asks = |path: &str| json!({"path": path, "port": 15020, "scheme": "HTTP"});
    let app = &raw["spec"]["containers"][0];
    let liveness = json!({"httpGet": asks("/probe/app/liveness"), "initialDelaySeconds": 4});
    assert_eq!(app["livenessProbe"], liveness);
    assert_eq!(app["readinessProbe"], json!({"httpGet": asks("/probe/app/readiness")}));
    assert_eq!(app["startupProbe"], json!({"exec": {"command": ["/started"]}}));
    assert_eq!(app["lifecycle"]["postStart"], json!({"exec": {"command": ["/begin"]}}));
    assert_eq!(app["lifecycle"]["preStop"], json!({"httpGet": asks("/hook/app/preStop")}));
    let native = &raw["spec"]["initContainers"][2];
    assert_eq!(native["startupProbe"], json!({"httpGet": asks("/probe/logs/startup"), "periodSeconds": 2}));
}

#[test]
fn capabilities_are_dropped_once_and_a_label_or_longer_grace_of_the_user_stays() {
    let raw = serde_json::to_value(injected(&pod(BUSY))).unwrap();
    let dropped = |index: usize| raw["spec"]["containers"][index]["securityContext"]["capabilities"]["drop"].clone();
    assert_eq!(dropped(0), json!(["CAP_NET_RAW", "NET_ADMIN"]));
    assert_eq!(dropped(1), json!(["all"]));
    assert_eq!(raw["metadata"]["labels"][SERVER_LABEL], "chosen");
    assert_eq!(raw["spec"]["terminationGracePeriodSeconds"], 90);
}

#[test]
fn what_cannot_be_protected_is_refused_and_the_reason_says_what_must_change() {
    let refused = |yaml: &str, want: &str| {
        let error = with_injection(|injection| patch(&pod(yaml), injection)).expect_err(yaml);
        assert!(error.to_string().contains(want), "{yaml}\n  says: {error}\n  not: {want}");
    };
    for field in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
        refused(&format!("spec: {{{field}: true, containers: []}}"), &format!("spec.{field} must not be true"));
    }
    for id in ["runAsUser: 5061", "runAsGroup: 5061", "fsGroup: 5061", "supplementalGroups: [1, 5061]"] {
        let field = id.split(':').next().unwrap();
        let want = format!("pod: securityContext.{field} must not be 5061");
        refused(&format!("spec: {{securityContext: {{{id}}}, containers: []}}"), &want);
    }
    let containers = [
        ("securityContext: {privileged: true}", "privileged must not be true"),
        ("securityContext: {runAsUser: 5061}", "container x: securityContext.runAsUser must not be 5061"),
        ("securityContext: {runAsGroup: 5061}", "container x: securityContext.runAsGroup must not be 5061"),
        ("ports: [{containerPort: 15006}]", "port 15006 must be another one"),
        ("volumeMounts: [{name: entente-token, mountPath: /t}]", "must not mount volume entente-token"),
        ("livenessProbe: {httpGet: {port: 80, host: example.com}}", "liveness must not set host"),
        ("startupProbe: {tcpSocket: {port: 80, host: 127.0.0.1}}", "startup must not set host"),
        ("lifecycle: {preStop: {httpGet: {port: 80, host: a}}}", "preStop must not set host"),
        ("readinessProbe: {httpGet: {port: web}}", "readiness names port web"),
        ("readinessProbe: {grpc: {port: 0}}", "readiness names port 0"),
        ("readinessProbe: {httpGet: {port: 15020, path: /probe/x/readiness}}", "port 15020 must be another one"),
    ];
    for (part, want) in containers {
        refused(&format!("spec: {{containers: [{{name: x, {part}}}]}}"), want);
        refused(
            &format!("spec: {{initContainers: [{{name: x, restartPolicy: Always, {part}}}], containers: []}}"),
            want,
        );
    }
    for capability in ["NET_ADMIN", "CAP_NET_RAW", "sys_admin", "SYS_PTRACE", "BPF", "ALL"] {
        let context = format!("securityContext: {{capabilities: {{add: [{capability}]}}}}");
        let want = format!("capabilities.add must not contain {capability}");
        refused(&format!("spec: {{containers: [{{name: x, {context}}}]}}"), &want);
    }
}

#[test]
fn names_and_tokens_of_the_sidecar_are_its_own() {
    let refused = |yaml: &str, want: &NotInjectable| {
        assert_eq!(with_injection(|injection| inject(&pod(yaml), injection)).as_ref(), Err(want), "{yaml}");
    };
    let name = |kind, name: &str| NotInjectable::ReservedName { kind, name: name.to_owned() };
    refused("spec: {containers: [{name: entente-proxy, args: [proxy]}]}", &name("container", "entente-proxy"));
    for theirs in ["args: [shell]", "args: [proxy], command: [/bin/sh]", "image: x"] {
        let yaml = format!("spec: {{initContainers: [{{name: entente-proxy, {theirs}}}], containers: []}}");
        refused(&yaml, &name("container", "entente-proxy"));
    }
    for volume in ["entente-state", "entente-token", "entente-empty"] {
        let yaml = format!("spec: {{containers: [], volumes: [{{name: {volume}, hostPath: {{path: /tmp}}}}]}}");
        refused(&yaml, &name("volume", volume));
    }
    let token = "projected: {sources: [{serviceAccountToken: {audience: entente.dev, path: t}}]}";
    let yaml = format!("spec: {{containers: [], volumes: [{{name: mine, {token}}}]}}");
    refused(&yaml, &NotInjectable::TokenAudience("mine".to_owned()));
}

#[test]
fn a_forged_record_of_probes_is_forgotten() {
    let forged = r#"
spec:
  initContainers:
  - name: entente-proxy
    args: [proxy]
    env: [{name: ENTENTE_PROBES, value: '{"/probe/app/liveness":{"action":{"tcp":{"port":22}},"timeoutSeconds":1}}'}]
  containers:
  - {name: app}
"#;
    assert_eq!(recorded(&injected(&pod(forged))), Probes::new());
}

#[test]
fn a_certificate_for_clients_outside_is_mounted_into_the_sidecar_alone() {
    let named = |pod: &Pod| {
        with_injection(|injection| inject(pod, &Injection { server_certificate: Some("public"), ..*injection }))
            .unwrap()
    };
    let once = named(&pod(ORDERS));
    let spec = once.spec.as_ref().unwrap();
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == "entente-server-certificate").unwrap();
    assert_eq!(volume.secret.as_ref().unwrap().secret_name.as_deref(), Some("public"));
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mounting = all.filter(|container| {
        container.volume_mounts.iter().flatten().any(|mount| mount.name == "entente-server-certificate")
    });
    assert_eq!(mounting.map(|container| container.name.as_str()).collect::<Vec<_>>(), ["entente-proxy"]);
    assert_eq!(serde_json::to_value(named(&once)).unwrap(), serde_json::to_value(&once).unwrap(), "twice is once");
    let stranger = with_injection(|injection| inject(&once, injection));
    assert!(matches!(stranger, Err(NotInjectable::ReservedName { .. })), "another Secret is not ours to mount");
}

#[test]
fn certificates_for_partners_are_mounted_into_the_sidecar_alone_each_in_a_folder_of_its_partner() {
    let secrets = BTreeMap::from([("fabrikam".to_owned(), "for-fabrikam".to_owned())]);
    let presenting =
        |pod: &Pod| with_injection(|injection| inject(pod, &Injection { presented: &secrets, ..*injection })).unwrap();
    let once = presenting(&pod(ORDERS));
    let spec = once.spec.as_ref().unwrap();
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == "entente-presented").unwrap();
    let source = volume.projected.as_ref().unwrap().sources.as_ref().unwrap()[0].secret.clone().unwrap();
    assert_eq!((source.name.as_str(), source.optional), ("for-fabrikam", Some(true)));
    let paths: Vec<_> = source.items.iter().flatten().map(|item| item.path.as_str()).collect();
    assert_eq!(paths, ["fabrikam/tls.crt", "fabrikam/tls.key"]);
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mounts = |container: &&Container| {
        container.volume_mounts.iter().flatten().any(|mount| mount.name == "entente-presented")
    };
    assert_eq!(all.filter(mounts).map(|one| one.name.as_str()).collect::<Vec<_>>(), ["entente-proxy"]);
    assert_eq!(serde_json::to_value(presenting(&once)).unwrap(), serde_json::to_value(&once).unwrap(), "twice is once");
}
