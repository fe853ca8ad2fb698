//! Partners in the simulation: they come and go, are suspended, get other roots, and claim what is not theirs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use entente::{
    api::{FederationPartner, PartnerState, Role, TrustedServer},
    brief::PartnerStanding,
    plan::{Asked, World},
    topology::{
        Declared, Key, PartnerKey, Problem, Topology,
        kept::{Failure, Kept},
    },
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, SerialNumber,
};

/// A root that ends in the middle of a history, and one that does not.
static ROOTS: LazyLock<[Signed; 2]> = LazyLock::new(|| [root(1_800_000_600), root(1_900_000_000)]);

/// A root, and two of its lists: an older one and a newer one.
type Signed = (String, [Vec<u8>; 2]);

fn root(end: i64) -> Signed {
    let at = |second| time::OffsetDateTime::from_unix_timestamp(second).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "a partner's root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (at(1_700_000_000), at(end));
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let list = |number: u64| {
        let params = CertificateRevocationListParams {
            this_update: at(1_799_990_000),
            next_update: at(1_800_000_300),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: vec![],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&issuer).unwrap().der().to_vec()
    };
    (pem, [list(1), list(2)])
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
        "spec": {"domains": [domain], "trust": {"caBundle": ROOTS[usize::from(!version.is_multiple_of(3))].0}},
    }))
    .unwrap()
}

/// What the sources of a partner say, in this world: an annotation of its object.
const SAYS: &str = "says";

/// What the leader's attempts bring: every source is asked before every round.
pub(super) fn asked(world: &World, now: Timestamp) -> BTreeMap<PartnerKey, Asked> {
    let one = |object: &FederationPartner| {
        let key = partner_key(object);
        let held = world.declared.kept.get(&key);
        let before = held.and_then(|held| held.record.as_deref()).filter(|record| record.is_of(object)).cloned();
        let mut record = before.unwrap_or_else(|| Kept::of(object));
        let says = object.metadata.annotations.as_ref().and_then(|all| all.get(SAYS)).map_or("roots", String::as_str);
        let ours = &world.declared.own_keys;
        let gone = || Failure::fetch("it is gone");
        match (&object.spec.trust.ca_bundle, says) {
            (Some(pem), _) => record.take_text(Ok(pem), ours, now),
            (None, "nothing") => record.take_text(Ok(""), ours, now),
            (None, "silence") => record.take_text(Err(gone()), ours, now),
            (None, "other roots") => record.take_text(Ok(&ROOTS[0].0), ours, now),
            (None, _) => record.take_text(Ok(&ROOTS[1].0), ours, now),
        }
        record.retain_lists(&object.spec.revocation);
        let roots = record.roots(ours);
        for url in &object.spec.revocation.crl_urls {
            match says {
                "an old list" => record.take_lists(url, Ok(&ROOTS[1].1[0]), &roots, now),
                "a list of nobody" => record.take_lists(url, Ok(b"nonsense"), &roots, now),
                "silence" => record.take_lists(url, Err(gone()), &roots, now),
                _ => record.take_lists(url, Ok(&ROOTS[1].1[1]), &roots, now),
            }
        }
        (key, Asked { on: held.and_then(|held| held.version.clone()), record: record.into() })
    };
    world.declared.partners.iter().map(one).collect()
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
        (14, _) => {
            one.spec.trust.ca_bundle =
                Some(if number > 3 { "nonsense".into() } else { ROOTS.iter().map(|root| root.0.as_str()).collect() })
        }
        // A ConfigMap has no generation: it just holds something else, and so does whoever answers at an address.
        _ => {
            let says =
                ["nothing", "an old list", "roots", "other roots", "roots and a list", "a list of nobody", "silence"];
            let says = says[usize::try_from((number + version) % 7).unwrap()];
            let labels = one.metadata.annotations.get_or_insert_default();
            labels.insert(SAYS.to_owned(), says.to_owned());
            if one.spec.trust.config_map_ref.is_some() {
                return;
            }
            let wanted = serde_json::json!({"configMapRef": {"name": "roots", "key": "ca.crt"}});
            one.spec.trust = serde_json::from_value(wanted).unwrap();
            if number > 2 {
                one.spec.revocation.crl_urls = vec!["http://crl.example".to_owned()];
            }
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
        let fresh = is("TrustFresh") && is("RevocationFresh");
        assert_eq!(is("Ready"), sound && trusted && fresh, "seed {seed}: {key}");
        let kept = world.declared.kept.get(&key).and_then(|held| held.record.as_deref());
        let kept = kept.unwrap_or_else(|| panic!("seed {seed}: {key}: what its sources say is kept"));
        assert!(kept.is_of(object), "seed {seed}: {key}: nobody inherits");
        if let Some(partner) = topology.partner(&key) {
            assert!(!partner.roots.is_empty(), "seed {seed}: {key}: what was good stays");
        }
        if trusted {
            let names = wanted.entry(key.namespace.clone()).or_default();
            names.insert(format!("{}.crt", key.name));
            if topology.partner(&key).is_some_and(|partner| !partner.crl_pem.is_empty()) {
                names.insert(format!("{}.crl.pem", key.name));
            }
        }
    }
    assert!(
        world.declared.kept.keys().all(|key| world.declared.partner(key).is_some()),
        "seed {seed}: nothing is left over"
    );
    let held = world.partner_bundles.iter();
    let held: BTreeMap<String, BTreeSet<String>> =
        held.map(|(namespace, data)| (namespace.clone(), data.keys().cloned().collect())).collect();
    assert_eq!(held, wanted, "seed {seed}: roots of partners where they belong");
}
