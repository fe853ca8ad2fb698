//! Names that a certificate can prove: DNS names, SPIFFE IDs, and the identity read from a verified leaf.
//!
//! Everything is parsed once, at the edge, into types that cannot be wrong; comparison is field by field on the
//! parsed form, never on text with suffixes, patterns or case folding (`I2` of the trust model).

mod peer;

use std::{collections::BTreeSet, fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

pub use self::peer::{Between, PartnerIdentity, Peer};
use crate::refusal::{NameDetail, Refusal};

/// A lower-case DNS name of RFC 1123 labels: no wildcard, no trailing dot, at most 253 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DnsName(String);

/// Why a text is not a name that Entente uses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a DNS name of lower-case RFC 1123 labels.
    #[error(
        "{0:?} must be a DNS name of lower-case letters, digits, '-' and '.', at most 253 characters, without wildcard or trailing dot"
    )]
    Dns(String),
    /// Not a SPIFFE ID of the one shape that Entente issues.
    #[error("{0:?} must be spiffe://TRUST-DOMAIN/ns/NAMESPACE/server/NAME")]
    Spiffe(String),
}

impl DnsName {
    /// Parses `text`, which must already be in the one accepted form.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let fits = (1..=253).contains(&text.len()) && text.split('.').all(is_label);
        if fits { Ok(Self(text.to_owned())) } else { Err(NameError::Dns(clip(text))) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this name is `suffix` itself or lies below it, label by label.
    pub fn is_within(&self, suffix: &Self) -> bool {
        self.0 == suffix.0 || self.0.strip_suffix(suffix.0.as_str()).is_some_and(|head| head.ends_with('.'))
    }
}

impl FromStr for DnsName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for DnsName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<DnsName> for String {
    fn from(name: DnsName) -> Self {
        name.0
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `spiffe://<trust domain>/ns/<namespace>/server/<name>`: the one identity of a declared server (SPIFFE-ID §2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    trust_domain: DnsName,
    namespace: String,
    server: String,
}

impl SpiffeId {
    /// The identity of server `server` in `namespace`; both must be RFC 1123 labels.
    pub fn new(trust_domain: &DnsName, namespace: &str, server: &str) -> Result<Self, NameError> {
        if is_label(namespace) && is_label(server) {
            Ok(Self { trust_domain: trust_domain.clone(), namespace: namespace.to_owned(), server: server.to_owned() })
        } else {
            Err(NameError::Spiffe(clip(&format!("spiffe://{trust_domain}/ns/{namespace}/server/{server}"))))
        }
    }

    /// Parses the text of a URI; anything but the one shape is refused, there is no normalisation.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Spiffe(clip(text));
        let rest = text.strip_prefix("spiffe://").ok_or_else(wrong)?;
        let [domain, "ns", namespace, "server", server] = rest.split('/').collect::<Vec<_>>()[..] else {
            return Err(wrong());
        };
        let trust_domain = DnsName::parse(domain).map_err(|_| wrong())?;
        Self::new(&trust_domain, namespace, server).map_err(|_| wrong())
    }

    /// The SPIFFE trust domain.
    pub fn trust_domain(&self) -> &DnsName {
        &self.trust_domain
    }

    /// The Kubernetes namespace of the server.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name of the `TrustedServer`.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// `<name>.<namespace>.<trust domain>`: the DNS name that every leaf of this server carries, and the SNI between
    /// sidecars. `None` when the whole is longer than a DNS name may be.
    pub fn topology_name(&self) -> Option<DnsName> {
        DnsName::parse(&format!("{}.{}.{}", self.server, self.namespace, self.trust_domain)).ok()
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/server/{}", self.trust_domain, self.namespace, self.server)
    }
}

/// What a leaf certificate says of its holder. It proves nothing until the chain above it has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The one URI name.
    pub id: SpiffeId,
    /// The DNS names beside it.
    pub dns_names: BTreeSet<DnsName>,
    /// UID of the pod the certificate was issued to (the subject's serialNumber), where there is one.
    pub pod_uid: Option<String>,
    /// The certificate's serial number, big-endian without leading zeros.
    pub serial: Vec<u8>,
    /// Key identifier of the issuer, hex (authorityKeyIdentifier, RFC 5280 §4.2.1.1), where there is one.
    pub issuer: Option<String>,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
}

impl Identity {
    /// Reads the identity of a DER-encoded leaf: exactly one URI, of our shape, beside DNS names only.
    pub fn of(leaf: &[u8]) -> Result<Self, Refusal> {
        let (rest, certificate) = X509Certificate::from_der(leaf).map_err(|_| Refusal::BadName(NameDetail::Grammar))?;
        if !rest.is_empty() {
            return Err(Refusal::BadName(NameDetail::Grammar));
        }
        let LeafNames { uris, dns_names } = LeafNames::of(&certificate)?;
        let uri = match &uris[..] {
            [] => return Err(Refusal::BadName(NameDetail::NoIdentity)),
            [uri] => uri,
            _ => return Err(Refusal::BadName(NameDetail::SeveralIdentities)),
        };
        let (not_before, not_after) = validity(&certificate)?;
        Ok(Self {
            id: SpiffeId::parse(uri).map_err(|_| Refusal::BadName(NameDetail::Grammar))?,
            dns_names,
            pod_uid: subject_serial_number(&certificate),
            serial: certificate.tbs_certificate.serial.to_bytes_be(),
            issuer: issuing_key(&certificate),
            not_before,
            not_after,
        })
    }
}

/// The names in a leaf, whoever's it is: URIs as they are written, DNS names in the one accepted form, and no others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeafNames {
    /// URIs; what they are is for the scope to say.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns_names: BTreeSet<DnsName>,
}

impl LeafNames {
    /// Reads the subjectAltName, and never the subject.
    pub fn of(certificate: &X509Certificate<'_>) -> Result<Self, Refusal> {
        let mut lists = certificate.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(names),
            _ => None,
        });
        let mut found = Self::default();
        let Some(names) = lists.next() else { return Ok(found) };
        if lists.next().is_some() {
            return Err(Refusal::BadName(NameDetail::SeveralIdentities));
        }
        for name in &names.general_names {
            match name {
                GeneralName::URI(uri) => found.uris.push((*uri).to_owned()),
                GeneralName::DNSName(dns) => {
                    let parsed = DnsName::parse(dns).map_err(|_| Refusal::BadName(NameDetail::Grammar))?;
                    found.dns_names.insert(parsed);
                }
                _ => return Err(Refusal::BadName(NameDetail::Kind)),
            }
        }
        Ok(found)
    }
}

fn validity(certificate: &X509Certificate<'_>) -> Result<(Timestamp, Timestamp), Refusal> {
    let instant = |seconds| Timestamp::from_second(seconds).map_err(|_| Refusal::BadName(NameDetail::Grammar));
    let validity = certificate.validity();
    Ok((instant(validity.not_before.timestamp())?, instant(validity.not_after.timestamp())?))
}

fn issuing_key(certificate: &X509Certificate<'_>) -> Option<String> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(authority) => {
            let identifier = authority.key_identifier.as_ref()?;
            Some(identifier.0.iter().map(|byte| format!("{byte:02x}")).collect())
        }
        _ => None,
    })
}

fn subject_serial_number(certificate: &X509Certificate<'_>) -> Option<String> {
    let oid = x509_parser::oid_registry::OID_X509_SERIALNUMBER;
    certificate.subject().iter_by_oid(&oid).next()?.as_str().ok().map(str::to_owned)
}

/// An RFC 1123 label: 1 to 63 lower-case letters, digits and inner hyphens.
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Foreign text goes into messages at a bounded length.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dns_names_have_one_form_only() {
        for good in ["a", "a.b", "fe.contoso.example", "x-1.y"] {
            assert!(DnsName::parse(good).is_ok(), "{good}");
        }
        let long_label = "a".repeat(64);
        let long_name = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(63)].join(".");
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "*.a",
            "A.b",
            "a_b",
            "-a",
            "a-",
            "a\0b",
            "ä.b",
            "xn--.",
            &long_label,
            &long_name,
        ] {
            assert!(DnsName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_is_within_a_suffix_only_at_a_label_boundary() {
        let name = |text| DnsName::parse(text).unwrap();
        assert!(name("a.contoso.example").is_within(&name("contoso.example")));
        assert!(name("contoso.example").is_within(&name("contoso.example")));
        assert!(!name("evilcontoso.example").is_within(&name("contoso.example")));
        assert!(!name("example").is_within(&name("contoso.example")));
    }

    #[test]
    fn spiffe_ids_that_play_games_are_refused() {
        for bad in [
            "spiffe://contoso.example/ns/a/server/b/",
            "spiffe://contoso.example/ns/a/server",
            "spiffe://contoso.example/ns/../server/b",
            "spiffe://contoso.example/ns/a%2e/server/b",
            "spiffe://Contoso.example/ns/a/server/b",
            "SPIFFE://contoso.example/ns/a/server/b",
            "spiffe://contoso.example:443/ns/a/server/b",
            "spiffe://contoso.example/ns/a/server/b?c",
            "spiffe://contoso.example/ns/a/sa/b",
            "https://contoso.example/ns/a/server/b",
        ] {
            assert!(SpiffeId::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_spiffe_id_reads_back_as_it_was_written(ns in "[a-z][a-z0-9]{0,20}", server in "[a-z]([a-z0-9-]{0,20}[a-z0-9])?") {
            let id = SpiffeId::new(&DnsName::parse("contoso.example").unwrap(), &ns, &server).unwrap();
            prop_assert_eq!(SpiffeId::parse(&id.to_string()).unwrap(), id);
        }

        #[test]
        fn any_text_is_parsed_or_refused_without_panic(text in ".{0,300}") {
            let _ = SpiffeId::parse(&text);
            let _ = DnsName::parse(&text);
        }

        #[test]
        fn any_bytes_are_an_identity_or_a_refusal(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Identity::of(&bytes).is_err());
        }
    }
}
