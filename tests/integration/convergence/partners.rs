//! Partners in the simulation: they come and go, are suspended, get other roots, and claim what is not theirs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use entente::{
    api::{FederationPartner, PartnerState, Role, TrustedServer},
    brief::PartnerStanding,
    plan::World,
    topology::{Declared, Key, PartnerKey, Problem, Topology},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};

/// A root that ends in the middle of a history, and one that does not.
static ROOTS: LazyLock<[String; 2]> = LazyLock::new(|| [root(1_800_000_600), root(1_900_000_000)]);

fn root(end: i64) -> String {
    let at = |second| time::OffsetDateTime::from_unix_timestamp(second).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "a partner's root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (at(1_700_000_000), at(end));
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

pub(super) fn partner_key(partner: &FederationPartner) -> PartnerKey {
    let meta = &partner.metadata;
    PartnerKey { namespace: meta.namespace.clone().unwrap(), name: meta.name.clone().unwrap() }
}

/// Makes an Edge server of one that was about to be declared; elsewhere than in `ns0` it is not allowed.
pub(super) fn at_the_edge(server: &mut TrustedServer, number: u64) {
    server.spec.role = Role::Edge;
    let entry = serde_json::json!([{"partner": {"name": format!("p{}", number % 2)}, "targetPort": 8080}]);
    server.spec.ports[0].allow_from = Some(serde_json::from_value(entry).unwrap());
}

fn partner(namespace: &str, name: &str, now: Timestamp, version: u64) -> FederationPartner {
    // Of those that are declared in one place, some claim what another one has, or what is ours.
    let domain = ["fabrikam.example", "litware.example", "a.litware.example", "contoso.example"];
    let domain = domain[usize::try_from(version % 4).unwrap()];
    serde_json::from_value(serde_json::json!({
        "apiVersion": "entente.dev/v1alpha1", "kind": "FederationPartner",
        "metadata": {"name": name, "namespace": namespace, "uid": format!("p{version}"), "generation": 1,
                     "resourceVersion": version.to_string(), "creationTimestamp": now.to_string()},
        "spec": {"domains": [domain], "trust": {"caBundle": ROOTS[usize::from(!version.is_multiple_of(3))]}},
    }))
    .unwrap()
}

/// One random edit.
pub(super) fn life(declared: &mut Declared, (namespace, number, kind): (&str, u64, u64), now: Timestamp, version: u64) {
    if kind == 12 {
        let place = if number > 0 { "ns0" } else { namespace };
        let new = partner(place, &format!("p{}", number % 2), now, version);
        if !declared.partners.iter().any(|one| partner_key(one) == partner_key(&new)) {
            declared.partners.push(new);
        }
        return;
    }
    if kind == 13 && number == 0 {
        let Some(last) = declared.partners.last_mut() else { return };
        if last.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
            declared.partners.pop();
        } else {
            last.metadata.deletion_timestamp = Some(Time(now));
            last.metadata.resource_version = Some(version.to_string());
        }
        return;
    }
    let Some(one) = declared.partners.first_mut() else { return };
    match (kind, number) {
        (13, 1 | 2) => {
            one.spec.state = match one.spec.state {
                PartnerState::Active => PartnerState::Suspended,
                PartnerState::Suspended => PartnerState::Active,
            };
        }
        (13, _) => one.spec.valid_until = Some(Time(Timestamp::from_second(now.as_second() + 90).unwrap())),
        (14, _) => one.spec.trust.ca_bundle = Some(if number > 3 { "nonsense".into() } else { ROOTS.concat() }),
        // A ConfigMap has no generation: it just holds something else.
        _ => {
            let wanted = serde_json::json!({"configMapRef": {"name": "roots", "key": "ca.crt"}});
            let key = partner_key(one);
            let held = if number > 3 { Err("it is gone".to_owned()) } else { Ok(ROOTS[1].clone()) };
            declared.partner_roots.insert(key, held);
            if one.spec.trust.config_map_ref.is_some() {
                return;
            }
            one.spec.trust = serde_json::from_value(wanted).unwrap();
        }
    }
    super::touch(&mut one.metadata, version);
}

/// Each partner says what it is, and its roots stand where they belong.
pub(super) fn judge(world: &World, (topology, problems): (&Topology, &[(Key, Problem)]), now: Timestamp, seed: u64) {
    let mut wanted = BTreeMap::<String, BTreeSet<String>>::new();
    for object in &world.declared.partners {
        let key = partner_key(object);
        let conditions = object.status.clone().unwrap_or_default().conditions;
        let is = |kind: &str| conditions.iter().any(|one| one.type_ == kind && one.status == "True");
        let sound = !problems.iter().any(|(owner, _)| *owner == Key::Partner(key.clone()));
        assert_eq!(is("Accepted"), sound, "seed {seed}: {key}");
        let trusted = topology.partner(&key).is_some_and(|partner| {
            partner.standing(now) == PartnerStanding::Active && partner.anchors(now).next().is_some()
        });
        assert_eq!(is("Ready"), sound && trusted, "seed {seed}: {key}");
        if trusted {
            wanted.entry(key.namespace).or_default().insert(format!("{}.crt", key.name));
        }
    }
    let held = world.partner_bundles.iter();
    let held: BTreeMap<String, BTreeSet<String>> =
        held.map(|(namespace, data)| (namespace.clone(), data.keys().cloned().collect())).collect();
    assert_eq!(held, wanted, "seed {seed}: roots of partners where they belong");
}
