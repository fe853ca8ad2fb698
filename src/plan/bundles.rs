//! The public trust bundle of each namespace: roots and revocation lists, for whoever checks our servers.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine};
use serde_json::{Value, json};
use x509_parser::{certificate::X509Certificate, prelude::FromDer, public_key::PublicKey};

use super::{AuthorityFacts, Plan, Step, World, turn::Turn};
use crate::{
    pki::{self, bundle::Bundle},
    topology::Domain,
};

/// Name of the public bundle's ConfigMap.
pub const NAME: &str = "entente-trust-bundle";

/// Seconds after which others look again, at most.
const LONGEST_HINT: i64 = 300;

/// What ConfigMap `entente-trust-bundle` of a domain holds: `ca.crt`, `crl.pem`, and both roots and their sequence as a
/// SPIFFE bundle (`bundle.json`, SPIFFE Trust Domain and Bundle §4).
pub fn data(domain: &Domain, facts: &AuthorityFacts) -> BTreeMap<String, String> {
    let roots = facts.roots();
    let keys: Vec<Value> = roots.iter().filter_map(|pem| key(pem)).collect();
    // Partners must learn of a root before it signs.
    let hint = pki::crl::period(domain.lifetime_seconds).min(LONGEST_HINT);
    let spiffe = json!({"keys": keys, "spiffe_sequence": facts.crl.number, "spiffe_refresh_hint": hint});
    BTreeMap::from([
        ("ca.crt".to_owned(), Bundle::of(roots.iter().map(String::as_str)).render()),
        ("crl.pem".to_owned(), facts.crl_pem.to_string()),
        ("bundle.json".to_owned(), format!("{spiffe:#}\n")),
    ])
}

/// A root as a JWK (RFC 7517, RFC 7518 §6).
fn key(pem: &str) -> Option<Value> {
    let der = pki::certificate(pem)?;
    let (_, parsed) = X509Certificate::from_der(&der).ok()?;
    let chain = [BASE64_STANDARD.encode(&der)];
    let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    match parsed.public_key().parsed().ok()? {
        PublicKey::EC(point) => {
            // The point is uncompressed: a byte that says so, then both coordinates.
            let (x, y) = point.data().get(1..)?.split_at_checked(point.data().len() / 2)?;
            let curve = if point.key_size() == 384 { "P-384" } else { "P-256" };
            Some(json!({"use": "x509-svid", "kty": "EC", "crv": curve, "x": text(x), "y": text(y), "x5c": chain}))
        }
        PublicKey::RSA(key) => {
            let bare = |bytes: &[u8]| text(&bytes.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<_>>());
            let (n, e) = (bare(key.modulus), bare(key.exponent));
            Some(json!({"use": "x509-svid", "kty": "RSA", "n": n, "e": e, "x5c": chain}))
        }
        _ => None,
    }
}

/// Whether the bundle of `namespace` holds `data`, or need not any more; further keys are not ours to judge.
fn carries(world: &World, namespace: &str, data: &BTreeMap<String, String>) -> bool {
    if world.ending_namespaces.contains(namespace) {
        return true;
    }
    let held = world.bundles.get(namespace);
    held.is_some_and(|held| data.iter().all(|(key, value)| held.get(key) == Some(value)))
}

/// Namespaces of `domain` whose bundle does not hold `data`.
pub(super) fn without<'a>(domain: &'a Domain, world: &World, data: &BTreeMap<String, String>) -> Vec<&'a str> {
    domain.namespaces.iter().filter(|namespace| !carries(world, namespace, data)).map(String::as_str).collect()
}

pub(super) fn write(turn: &Turn<'_>, plan: &mut Plan) {
    for namespace in &turn.unbundled {
        plan.steps.push(Step::WriteBundle {
            namespace: (*namespace).to_owned(),
            domain: turn.domain.name.clone(),
            data: turn.bundle.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, PKCS_ECDSA_P384_SHA384};

    use super::*;

    fn root(key: &KeyPair) -> String {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.self_signed(key).unwrap().pem()
    }

    #[test]
    fn a_root_becomes_a_jwk_with_its_own_coordinates_and_its_certificate() {
        let curves = [
            (KeyPair::generate().unwrap(), "P-256", 32),
            (KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(), "P-384", 48),
        ];
        for (pair, curve, size) in curves {
            let pem = root(&pair);
            let jwk = key(&pem).unwrap();
            assert_eq!(
                (jwk["use"].as_str(), jwk["kty"].as_str(), jwk["crv"].as_str()),
                (Some("x509-svid"), Some("EC"), Some(curve))
            );
            let part = |name: &str| BASE64_URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
            assert_eq!((part("x").len(), part("y").len()), (size, size));
            // An uncompressed point ends the public key (RFC 5480 §2.2).
            let point = [vec![4], part("x"), part("y")].concat();
            assert!(rcgen::PublicKeyData::subject_public_key_info(&pair).ends_with(&point));
            let der = pki::certificate(&pem).unwrap();
            assert_eq!(BASE64_STANDARD.decode(jwk["x5c"][0].as_str().unwrap()).unwrap(), der.to_vec());
        }
        assert_eq!(key("nonsense"), None);
    }
}
