//! Every example means something, and nothing in it is wrong.

use std::{collections::BTreeMap, fs, path::Path};

use entente::topology::{
    Declared, Topology,
    facts::{PodFacts, ServiceFacts},
};
use k8s_openapi::api::core::v1::{Pod, Service};
use serde_json::Value;

/// The documents of every manifest in a folder of examples.
fn documents(folder: &Path) -> Vec<Value> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let yaml = files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    yaml.flat_map(|file| serde_saphyr::from_multiple::<Value>(&fs::read_to_string(file).unwrap()).unwrap()).collect()
}

/// The pod that a template or a Pod object describes.
fn pod(document: &Value) -> Option<PodFacts> {
    let template = if document["kind"] == "Pod" { document } else { document["spec"].get("template")? };
    let mut pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": template["metadata"], "spec": template["spec"],
    }))
    .unwrap();
    pod.metadata.namespace = document["metadata"]["namespace"].as_str().map(str::to_owned);
    pod.metadata.name = document["metadata"]["name"].as_str().map(str::to_owned);
    pod.metadata.uid = pod.metadata.name.clone();
    Some(PodFacts { injected: true, ..PodFacts::of(&pod) })
}

fn declared(documents: &[Value]) -> Declared {
    let kind = |name: &'static str| documents.iter().filter(move |one| one["kind"] == name);
    let domain = serde_json::json!({
        "apiVersion": "entente.dev/v1alpha1", "kind": "TrustDomain", "metadata": {"name": "contoso"},
        "spec": {"spiffeTrustDomain": "contoso.example", "dnsSuffixes": ["contoso.example"]},
    });
    let namespaces: BTreeMap<String, Option<String>> = kind("Namespace")
        .map(|one| {
            let label = one["metadata"]["labels"]["entente.dev/trust-domain"].as_str().map(str::to_owned);
            (one["metadata"]["name"].as_str().unwrap().to_owned(), label)
        })
        .collect();
    Declared {
        domains: {
            let own: Vec<&Value> = kind("TrustDomain").collect();
            let all = if own.is_empty() { vec![&domain] } else { own };
            all.into_iter().map(|one| serde_json::from_value(one.clone()).unwrap()).collect()
        },
        partners: kind("FederationPartner").map(|one| serde_json::from_value(one.clone()).unwrap()).collect(),
        servers: kind("TrustedServer").map(|one| serde_json::from_value(one.clone()).unwrap()).collect(),
        namespaces,
        pods: documents.iter().filter_map(pod).collect(),
        services: kind("Service")
            .map(|one| ServiceFacts::of(&serde_json::from_value::<Service>(one.clone()).unwrap()))
            .collect(),
        ..Declared::default()
    }
}

#[test]
fn every_example_resolves_without_a_problem_and_each_of_its_pods_is_who_it_claims_to_be() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut seen = 0;
    for folder in fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()) {
        // The chart is rendered, installed and judged on the real node.
        if folder.join("Chart.yaml").exists() {
            continue;
        }
        let declared = declared(&documents(&folder));
        let (topology, problems) = Topology::resolve(&declared);
        assert_eq!(problems, vec![], "{}", folder.display());
        assert!(topology.servers().count() > 0, "{} declares no server", folder.display());
        for server in topology.servers() {
            let pods: Vec<_> = topology.pods_of(&server.key).collect();
            assert!(!pods.is_empty(), "{}: no pod is {}", folder.display(), server.key);
            assert!(pods.iter().all(|pod| topology.attest(pod).is_ok()), "{}: {}", folder.display(), server.key);
        }
        seen += 1;
    }
    assert!(seen >= 3, "only {seen} examples were seen");
}
