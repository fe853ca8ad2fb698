//! Authorities of one's own as OpenSSL makes them: kinds of keys and their files, subjects, chains. What we sign under
//! them is believed by OpenSSL and by us.

use std::{collections::BTreeSet, process::Command};

use entente::{
    pki::{
        authority::{Authority, Material},
        certificate,
        register::{Listed, Register},
        verify::{Anchors, Role, verdict},
    },
    telemetry,
};

use crate::{
    made::{holders, leaf, name, serial, terms, window},
    tools::{Folder, openssl, run, said, verify},
};

/// How an authority differs from the plain one.
pub(crate) struct Given {
    /// The arguments that make the issuer's key `issuer.key`.
    pub(crate) key: &'static [&'static str],
    pub(crate) subject: &'static str,
    /// Which string types OpenSSL uses.
    pub(crate) strings: &'static str,
    /// Authorities between the issuing one and the root.
    pub(crate) between: usize,
    /// Of the issuing certificate; of two for one extension OpenSSL takes the later one.
    pub(crate) extensions: &'static str,
    /// Of those between.
    pub(crate) extensions_between: &'static str,
    /// Of the root.
    pub(crate) extensions_root: &'static str,
}

const P256: &[&str] = &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"];
const P384: &[&str] = &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-out"];
const RSA: &[&str] = &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out"];
const SEC1: &[&str] = &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"];
const SEC1_P384: &[&str] = &["ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out"];
/// With the block of parameters that OpenSSL writes before the key.
const SEC1_PARAMETERS: &[&str] = &["ecparam", "-name", "prime256v1", "-genkey", "-out"];
const PKCS1: &[&str] = &["genrsa", "-traditional", "-out"];
const ED25519: &[&str] = &["genpkey", "-algorithm", "ED25519", "-out"];

const FITTING: &str =
    "nameConstraints=critical,permitted;DNS:contoso.example,permitted;DNS:cluster.local,permitted;DNS:svc";

impl Default for Given {
    fn default() -> Self {
        let (subject, strings) = ("/O=Contoso/CN=Contoso issuer", "utf8only");
        Self { key: P256, subject, strings, between: 0, extensions: "", extensions_between: "", extensions_root: "" }
    }
}

const ROOT: &str = "basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=hash
";

impl Given {
    /// Makes it; answers what a Secret would hold, and the lists of the authorities between.
    pub(crate) fn make(&self, folder: &Folder) -> (Material, String) {
        let request = format!("[req]\ndistinguished_name=dn\nstring_mask={}\nutf8=yes\n[dn]\n", self.strings);
        folder.file("req.cnf", &request);
        folder.file("ca.cnf", "[ca]\ndefault_ca=own\n[own]\ndatabase=index.txt\ncrlnumber=crlnumber\ndefault_md=sha256\ndefault_crl_days=30\ncrl_extensions=crl\n[crl]\nauthorityKeyIdentifier=keyid,issuer\n");
        folder.file("index.txt", "");
        folder.file("crlnumber", "01");
        self.root(folder);
        let names: Vec<String> = (0..self.between).map(|number| format!("between{number}")).collect();
        let mut above = "root".to_owned();
        for name in &names {
            openssl(folder, &[P384, &[&format!("{name}.key")]].concat());
            self.sign(folder, name, &above, &format!("/O=Contoso/OU=One/OU=Two/CN={name}"), self.extensions_between);
            above.clone_from(name);
        }
        openssl(folder, &[self.key, &["issuer.key"]].concat());
        self.sign(folder, "issuer", &above, self.subject, self.extensions);
        let between: Vec<String> = names.iter().rev().map(|name| folder.read(&format!("{name}.pem"))).collect();
        let material = Material {
            root_certificate: folder.read("root.pem"),
            root_key: None,
            between,
            issuer_certificate: folder.read("issuer.pem"),
            issuer_key: folder.read("issuer.key"),
            root_crl: Some(list_of(folder, "root")),
        };
        (material, names.iter().map(|name| list_of(folder, name)).collect())
    }

    fn root(&self, folder: &Folder) {
        openssl(folder, &[P256, &["root.key"]].concat());
        let root = "/DC=example/DC=contoso/CN=Contoso root";
        openssl(folder, &["req", "-new", "-config", "req.cnf", "-key", "root.key", "-subj", root, "-out", "root.csr"]);
        folder.file("root.ext", &format!("{ROOT}{}\n", self.extensions_root));
        let own = ["x509", "-req", "-in", "root.csr", "-signkey", "root.key", "-days", "30", "-extfile", "root.ext"];
        openssl(folder, &[&own[..], &["-out", "root.pem"]].concat());
    }

    fn sign(&self, folder: &Folder, subject: &str, above: &str, distinguished: &str, more: &str) {
        let [key, csr, pem, extensions] = ["key", "csr", "pem", "ext"].map(|kind| format!("{subject}.{kind}"));
        let [above_key, above_pem] = ["key", "pem"].map(|kind| format!("{above}.{kind}"));
        let request = ["req", "-new", "-config", "req.cnf", "-utf8", "-subj", distinguished];
        openssl(folder, &[&request[..], &["-key", &key, "-out", &csr]].concat());
        folder.file(&extensions, &format!("{ROOT}authorityKeyIdentifier=keyid,issuer\n{more}\n"));
        let sign = ["x509", "-req", "-days", "20", "-CAcreateserial", "-in", &csr, "-CA", &above_pem];
        let rest = ["-CAkey", &above_key, "-extfile", &extensions, "-out", &pem];
        openssl(folder, &[&sign[..], &rest[..]].concat());
    }
}

pub(crate) fn list_of(folder: &Folder, authority: &str) -> String {
    let [key, pem, crl] = ["key", "pem", "crl"].map(|kind| format!("{authority}.{kind}"));
    openssl(folder, &["ca", "-config", "ca.cnf", "-gencrl", "-cert", &pem, "-keyfile", &key, "-out", &crl]);
    folder.read(&crl)
}

fn believed(what: &str, given: &Given) {
    let folder = Folder::new();
    let (material, lists_between) = given.make(&folder);
    believed_of(what, &folder, &material, &lists_between);
}

fn believed_of(what: &str, folder: &Folder, material: &Material, lists_between: &str) {
    let now = telemetry::now();
    let authority = Authority::load(material, now).unwrap_or_else(|error| panic!("{what}: {error}"));
    let permitted: BTreeSet<_> = terms().permitted.into_iter().collect();
    authority.prove(&name("contoso.example"), &permitted, now).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut register = Register::create(material.clone(), window(now), now).unwrap();
    let anchors = Anchors::parse(std::slice::from_ref(&material.root_certificate)).unwrap();
    for (holder, names) in holders() {
        let chain = leaf(&authority, names, serial(), now);
        let ders: Vec<_> = chain.iter().map(|pem| certificate(pem).unwrap()).collect();
        for role in [Role::Client, Role::Server] {
            let found = verdict(&ders, role, &anchors, now);
            assert!(found.is_ok(), "{what}, {holder}, {role:?}: {found:?}");
        }
        let lists = format!("{}{lists_between}", register.crl_pem());
        let said = verify(folder, &chain[0], &chain[1..], &material.root_certificate, &lists);
        assert_eq!(said, Ok(()), "{what}, {holder}");
    }
    let taken = serial();
    let revoked = leaf(&authority, holders().swap_remove(0).1, taken, now);
    let entry = entente::pki::crl::Revoked { serial: taken, at: now, reason: entente::pki::crl::Reason::PodGone };
    let listed = Listed::from([(authority.key_id().to_owned(), BTreeSet::from([entry]))]);
    register.publish(&listed, window(now), now).unwrap();
    let lists = format!("{}{lists_between}", register.crl_pem());
    let said = verify(folder, &revoked[0], &revoked[1..], &material.root_certificate, &lists).unwrap_err();
    assert!(said.contains("certificate revoked"), "{what}: {said}");
}

#[test]
fn keys_of_every_kind_and_file_sign_what_openssl_believes() {
    let of = |key| Given { key, ..Given::default() };
    for (what, key) in [
        ("P-256 in PKCS#8", P256),
        ("P-384 in PKCS#8", P384),
        ("RSA-2048 in PKCS#8", RSA),
        ("P-256 in SEC1", SEC1),
        ("P-384 in SEC1", SEC1_P384),
        ("P-256 in SEC1 after its parameters", SEC1_PARAMETERS),
        ("RSA-2048 in PKCS#1", PKCS1),
        ("Ed25519", ED25519),
    ] {
        believed(what, &of(key));
    }
}

#[test]
fn subjects_of_every_form_stand_in_leaves_as_their_owner_wrote_them() {
    let of = |subject, strings| Given { subject, strings, ..Given::default() };
    for (what, subject, strings) in [
        ("UTF8String", "/O=Contoso Köln/CN=Ausstellerin", "utf8only"),
        ("PrintableString", "/C=DE/O=Contoso/CN=Issuer", "default"),
        ("BMPString", "/O=Contoso Łódź/CN=Issuer", "default"),
        ("T61String", "/O=Contoso Köln/CN=Issuer", "MASK:4"),
        ("several organisational units", "/O=Contoso/OU=One/OU=Two/OU=One/CN=Issuer", "utf8only"),
        ("domain components", "/DC=example/DC=contoso/DC=corp/CN=Issuer", "utf8only"),
        ("several attributes in one part", "/O=Contoso/OU=One+CN=Issuer", "utf8only"),
        ("an address", "/O=Contoso/emailAddress=pki@contoso.example", "utf8only"),
    ] {
        believed(what, &of(subject, strings));
    }
}

#[test]
fn chains_and_constraints_that_fit_are_no_hindrance() {
    let plain = Given::default;
    let path_length = "basicConstraints=critical,CA:TRUE,pathlen:0";
    believed("path length 0", &Given { extensions: path_length, ..plain() });
    believed("one between", &Given { between: 1, ..plain() });
    believed("two between", &Given { between: 2, ..plain() });
    believed("fitting constraints", &Given { extensions: FITTING, ..plain() });
    believed(
        "excluded elsewhere",
        &Given { extensions: "nameConstraints=critical,excluded;DNS:fabrikam.example", ..plain() },
    );
    believed("purposes that fit", &Given { extensions: "extendedKeyUsage=serverAuth,clientAuth", ..plain() });
    believed("any policy", &Given { extensions: "certificatePolicies=2.5.29.32.0", ..plain() });
}

#[test]
fn what_the_example_makes_signs_what_everybody_believes() {
    let folder = Folder::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/bring-your-own-ca/make-ca.sh");
    let output = run(Command::new("bash").arg(script).arg(folder.path()));
    assert!(output.status.success(), "{}", said(&output));
    let material = Material {
        root_certificate: folder.read("root.crt"),
        root_key: None,
        between: vec![],
        issuer_certificate: folder.read("issuer.crt"),
        issuer_key: folder.read("issuer.key"),
        root_crl: Some(folder.read("root.crl")),
    };
    believed_of("the example", &folder, &material, "");
}
