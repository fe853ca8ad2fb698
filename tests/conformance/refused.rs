//! Authorities of one's own, as OpenSSL makes them, that cannot sign for a domain: each is refused before it is taken in,
//! and the reason says what must change.

use std::collections::BTreeSet;

use entente::{
    pki::authority::{Authority, Material},
    telemetry,
};
use jiff::{SignedDuration, Timestamp};

use crate::{
    made::{name, terms},
    own_ca::{Given, list_of},
    tools::{Folder, openssl},
};

/// What a controller answers to an authority that somebody gives it.
fn judged(material: &Material, now: Timestamp) -> Result<(), String> {
    let names: BTreeSet<_> = terms().permitted.into_iter().collect();
    let authority = Authority::load(material, now).map_err(|error| error.to_string())?;
    authority.prove(&name("contoso.example"), &names, now).map_err(|error| error.to_string())
}

/// The same of one that is made now: OpenSSL dates it after the test has begun.
fn made(given: &Given) -> Result<(), String> {
    let (material, _) = given.make(&Folder::new());
    judged(&material, telemetry::now())
}

fn must_permit(name: &str) -> String {
    format!("the issuing certificate's name constraints must permit {name}, by DNS names only, or be left out")
}

/// What is given, what is answered, what should be.
type Line<'a> = (&'a str, Result<(), String>, Result<(), &'a str>);

/// Prints the table; all of its lines are looked at before one of them fails.
#[track_caller]
fn table(lines: Vec<Line<'_>>) {
    let mut wrong = vec![];
    for (what, found, expected) in lines {
        eprintln!("{what}: {}", found.as_ref().err().map_or("accepted", String::as_str));
        if found != expected.map_err(str::to_owned) {
            wrong.push(what);
        }
    }
    assert!(wrong.is_empty(), "another answer than expected: {wrong:?}");
}

const NOT_A_CA: &str = "the issuing certificate must be a certificate authority's: basicConstraints CA, keyUsage \
     keyCertSign and cRLSign, a subjectKeyIdentifier and a subject";
const NO_KEY_IDENTIFIER: &str = "a certificate that it signs does not verify: certificate 1 of the chain: its \
     authorityKeyIdentifier must be there, with a key identifier, and not be critical";
const UNSOUND: &str = "a certificate that it signs does not verify: certificate 1 of the chain: its nameConstraints must \
     be an authority's, critical, not empty, and without leading dots";
const TOO_LONG: &str = "a certificate that it signs does not verify: the chain: more authorities follow each other than \
     a path length allows";
const BROKEN: &str =
    "the issuing certificate does not lead to the root: each certificate must be signed by the next one";
const FOREIGN: &str = "the CRL must be PEM, signed by the root in its own name, and whole (no critical extension)";
const UNUSABLE: &str = "the issuer's key must be ECDSA P-256 or P-384, Ed25519, or RSA of at least 2048 bits";
const LOCKED: &str = "the issuer's key is encrypted: it must be given without a password";

#[test]
fn an_issuing_certificate_that_cannot_do_its_work_is_refused() {
    let of = |extensions| made(&Given { extensions, ..Given::default() });
    table(vec![
        ("path length 0", of("basicConstraints=critical,CA:TRUE,pathlen:0"), Ok(())),
        ("no CA", of("basicConstraints=critical,CA:FALSE"), Err(NOT_A_CA)),
        ("basicConstraints not critical", of("basicConstraints=CA:TRUE"), Err(NOT_A_CA)),
        ("without cRLSign", of("keyUsage=critical,keyCertSign"), Err(NOT_A_CA)),
        ("without keyCertSign", of("keyUsage=critical,cRLSign"), Err(NOT_A_CA)),
        ("without SKI", of("subjectKeyIdentifier=none"), Err(NOT_A_CA)),
        ("without AKI", of("authorityKeyIdentifier=none"), Err(NO_KEY_IDENTIFIER)),
        ("AKI by name only", of("authorityKeyIdentifier=issuer:always"), Err(NO_KEY_IDENTIFIER)),
        (
            "for servers only",
            of("extendedKeyUsage=serverAuth"),
            Err("a certificate that it signs does not verify: WrongUsage"),
        ),
        (
            "an unknown critical extension",
            of("1.2.3.4=critical,ASN1:NULL"),
            Err("a certificate that it signs does not verify: the chain: a critical extension is not known here"),
        ),
    ]);
}

#[test]
fn name_constraints_that_do_not_fit_are_refused() {
    let of = |extensions| made(&Given { extensions, ..Given::default() });
    table(vec![
        (
            "another domain",
            of("nameConstraints=critical,permitted;DNS:fabrikam.example"),
            Err(&must_permit("contoso.example")),
        ),
        (
            "the domain alone",
            of("nameConstraints=critical,permitted;DNS:contoso.example"),
            Err(&must_permit("cluster.local")),
        ),
        (
            "the domain excluded",
            of("nameConstraints=critical,excluded;DNS:contoso.example"),
            Err(&must_permit("contoso.example")),
        ),
        ("by URI", of("nameConstraints=critical,permitted;URI:contoso.example"), Err(&must_permit("contoso.example"))),
        ("leading dot", of("nameConstraints=critical,permitted;DNS:.contoso.example"), Err(UNSOUND)),
        (
            "not critical",
            of("nameConstraints=permitted;DNS:contoso.example,permitted;DNS:cluster.local,permitted;DNS:svc"),
            Err(UNSOUND),
        ),
    ]);
}

#[test]
fn what_stands_above_and_forbids_it_is_refused() {
    let between = |extensions_between| made(&Given { between: 1, extensions_between, ..Given::default() });
    let root = |between, extensions_root| made(&Given { between, extensions_root, ..Given::default() });
    table(vec![
        ("path length 0 between", between("basicConstraints=critical,CA:TRUE,pathlen:0"), Err(TOO_LONG)),
        ("path length 0 at the root", root(0, "basicConstraints=critical,CA:TRUE,pathlen:0"), Err(TOO_LONG)),
        (
            "path length 1 at the root, one between",
            root(1, "basicConstraints=critical,CA:TRUE,pathlen:1"),
            Err(TOO_LONG),
        ),
        ("path length 1 at the root", root(0, "basicConstraints=critical,CA:TRUE,pathlen:1"), Ok(())),
        (
            "constraints between",
            between("nameConstraints=critical,permitted;DNS:contoso.example"),
            Err(&must_permit("cluster.local")),
        ),
        ("no SKI between", between("subjectKeyIdentifier=none"), Err(NO_KEY_IDENTIFIER)),
        ("no SKI at the root", root(0, "subjectKeyIdentifier=none"), Err(&NOT_A_CA.replace("issuing", "root"))),
        (
            "unknown critical extension at the root",
            root(0, "1.2.3.4=critical,ASN1:NULL"),
            Err(
                "a certificate that it signs does not verify: root 0 cannot be trusted: a critical extension is not known here",
            ),
        ),
        (
            "three between",
            root(3, ""),
            Err("at most 2 certificates may lie between the issuing certificate and the root"),
        ),
    ]);
}

#[test]
fn keys_that_are_weak_unknown_or_locked_are_refused() {
    let of = |key| made(&Given { key, ..Given::default() });
    let folder = Folder::new();
    let (material, _) = Given::default().make(&folder);
    openssl(&folder, &["pkcs8", "-topk8", "-in", "issuer.key", "-passout", "pass:secret", "-out", "locked.key"]);
    openssl(&folder, &["ec", "-in", "issuer.key", "-aes256", "-passout", "pass:secret", "-out", "older.key"]);
    let locked = |file| judged(&Material { issuer_key: folder.read(file), ..material.clone() }, telemetry::now());
    table(vec![
        ("RSA-1024", of(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024", "-out"]), Err(UNUSABLE)),
        (
            "P-521",
            of(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521", "-out"]),
            Err(
                "a certificate that it signs does not verify: certificate 0 of the chain: its key must be ECDSA P-256 or P-384, Ed25519, or RSA of at least 2048 bits, in whole bytes",
            ),
        ),
        (
            "secp256k1",
            of(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1", "-out"]),
            Err(UNUSABLE),
        ),
        ("locked with a password", locked("locked.key"), Err(LOCKED)),
        ("the same in its older form", locked("older.key"), Err(LOCKED)),
    ]);
}

#[test]
fn what_is_out_of_date_or_does_not_belong_together_is_refused() {
    let [folder, other] = [Folder::new(), Folder::new()];
    let ((one, _), (stranger, _)) = (Given::default().make(&folder), Given::default().make(&other));
    let now = telemetry::now();
    let days = |days: i64| now + SignedDuration::from_hours(24 * days);
    let crl = |list| judged(&Material { root_crl: Some(list), ..one.clone() }, now);
    table(vec![
        ("in its time", judged(&one, now), Ok(())),
        ("expired", judged(&one, days(21)), Err("the issuing certificate is outside its validity")),
        ("not yet valid", judged(&one, days(-1)), Err("the root certificate is outside its validity")),
        (
            "the key of another",
            judged(&Material { issuer_key: stranger.issuer_key.clone(), ..one.clone() }, now),
            Err("the issuer's key does not belong to its certificate"),
        ),
        (
            "another root",
            judged(&Material { root_certificate: stranger.root_certificate, ..one.clone() }, now),
            Err(BROKEN),
        ),
        ("the list of another root of the same name", crl(list_of(&other, "root")), Err(FOREIGN)),
        ("the list of the issuing certificate", crl(list_of(&folder, "issuer")), Err(FOREIGN)),
    ]);
}
