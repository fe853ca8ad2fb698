//! The certificate policy above webpki: what it lets through and we do not. Each line of it has a certificate among
//! the tests.

use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, NameConstraints, ParsedExtension, X509Extension},
    oid_registry::{self, Oid},
    public_key::PublicKey,
    x509::X509Version,
};

use super::Role;
use crate::refusal::{ChainDetail, Refusal};

/// The longest serial number, in bytes (RFC 5280 §4.1.2.2).
const MAX_SERIAL: usize = 20;
/// The shortest RSA modulus, in bits.
const MIN_RSA: usize = 2048;
/// The kinds of keys.
pub(in crate::pki) const KEYS: &str = "ECDSA P-256 or P-384, Ed25519, or RSA of at least 2048 bits";

/// Which rule a certificate breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Not X.509 version 3.
    #[error("its version is not 3")]
    Version,
    /// A weak or unknown kind of key.
    #[error("its key must be {KEYS}, in whole bytes")]
    Key,
    /// RFC 5280 §4.1.2.2.
    #[error("its serial number must be positive and have at most {MAX_SERIAL} bytes")]
    Serial,
    /// RFC 5280 §4.2: one instance of each.
    #[error("it has an extension twice or one that cannot be read")]
    Extension,
    /// RFC 5280 §4.2: what is critical must be understood.
    #[error("a critical extension is not known here")]
    CriticalExtension,
    /// RFC 5280 §4.2.1.1.
    #[error("its authorityKeyIdentifier must be there, with a key identifier, and not be critical")]
    AuthorityKey,
    /// RFC 5280 §4.2.1.2.
    #[error("its subjectKeyIdentifier must be there and not be critical")]
    SubjectKey,
    /// The two of them along a chain.
    #[error("its authorityKeyIdentifier is not the subjectKeyIdentifier of its issuer")]
    ForeignKey,
    /// RFC 5280 §4.2.1.9.
    #[error(
        "its basicConstraints must be critical and say CA where it is an authority's, and must not where it is none"
    )]
    BasicConstraints,
    /// RFC 5280 §4.2.1.9.
    #[error("more authorities follow each other than a path length allows")]
    PathLength,
    /// RFC 5280 §4.2.1.3.
    #[error(
        "its keyUsage must hold keyCertSign where it is an authority's, else digitalSignature and no signing of others"
    )]
    KeyUsage,
    /// RFC 5280 §4.2.1.12.
    #[error("its extendedKeyUsage must name the purpose itself, not anyExtendedKeyUsage, and not be critical")]
    Purpose,
    /// RFC 5280 §4.2.1.10.
    #[error("its nameConstraints must be an authority's, critical, not empty, and without leading dots")]
    NameConstraints,
    /// A name that an authority above must not vouch for.
    #[error("a name is outside the name constraints above it")]
    Constrained,
    /// RFC 5280 §4.2.1.11.
    #[error("its policyConstraints must be critical")]
    PolicyConstraints,
    /// RFC 5280 §4.1.2.6.
    #[error("an authority's subject must not be empty")]
    Subject,
    /// RFC 5280 §4.2.1.6.
    #[error("its subjectAltName must be critical where the subject is empty")]
    Names,
}

impl Flaw {
    /// The reason as connections have it.
    pub const fn refusal(self) -> Refusal {
        match self {
            Self::Constrained => Refusal::NameOutOfScope,
            Self::Purpose => Refusal::WrongUsage,
            _ => Refusal::BadChain(ChainDetail::Policy),
        }
    }
}

/// Judges a leaf, apart from its names.
pub(super) fn leaf(one: &X509Certificate<'_>, role: Role) -> Result<(), Flaw> {
    any(one)?;
    serial(one)?;
    authority_key(one)?;
    let basic = one.basic_constraints().ok().flatten();
    check(
        basic.is_none_or(|basic| !basic.value.ca && basic.value.path_len_constraint.is_none()),
        Flaw::BasicConstraints,
    )?;
    let usage = one.key_usage().ok().flatten().map(|usage| usage.value);
    let signs = |usage: &x509_parser::extensions::KeyUsage| usage.key_cert_sign() || usage.crl_sign();
    check(usage.is_none_or(|usage| usage.digital_signature() && !signs(usage)), Flaw::KeyUsage)?;
    check(named(one, &oid_registry::OID_X509_EXT_NAME_CONSTRAINTS).is_none(), Flaw::NameConstraints)?;
    let names = named(one, &oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME);
    let nameless = one.subject().iter().next().is_none();
    check(!nameless || names.is_none_or(|names| names.critical), Flaw::Names)?;
    let purposes = one.extended_key_usage().ok().flatten().ok_or(Flaw::Purpose)?;
    let fits = match role {
        Role::Client => purposes.value.client_auth,
        Role::Server => purposes.value.server_auth,
        Role::WebClient => purposes.value.client_auth || purposes.value.server_auth,
    };
    check(fits && !purposes.value.any && !purposes.critical, Flaw::Purpose)
}

/// Judges an authority between leaf and root.
pub(super) fn authority(one: &X509Certificate<'_>) -> Result<(), Flaw> {
    serial(one)?;
    vouches(one)?;
    authority_key(one)
}

/// Judges a root. webpki does not look inside one; nobody looks at its serial number.
pub(super) fn root(one: &X509Certificate<'_>) -> Result<(), Flaw> {
    vouches(one)?;
    let known = [
        oid_registry::OID_X509_EXT_BASIC_CONSTRAINTS,
        oid_registry::OID_X509_EXT_KEY_USAGE,
        oid_registry::OID_X509_EXT_NAME_CONSTRAINTS,
        oid_registry::OID_X509_EXT_EXTENDED_KEY_USAGE,
        oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME,
    ];
    let understood = |extension: &X509Extension<'_>| !extension.critical || known.contains(&extension.oid);
    check(one.extensions().iter().all(understood), Flaw::CriticalExtension)?;
    let purposes = one.extended_key_usage().ok().flatten().map(|purposes| purposes.value);
    check(purposes.is_none_or(|purposes| purposes.any || (purposes.client_auth && purposes.server_auth)), Flaw::Purpose)
}

/// Whether `below` says that the key with the identifier `issuer` signed it.
pub(super) fn signed_with(below: &X509Certificate<'_>, issuer: &[u8]) -> Result<(), Flaw> {
    check(authority_key_identifier(below) == Some(issuer), Flaw::ForeignKey)
}

/// The identifier of a certificate's own key.
pub(in crate::pki) fn key_identifier<'a>(one: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    match named(one, &oid_registry::OID_X509_EXT_SUBJECT_KEY_IDENTIFIER)?.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0),
        _ => None,
    }
}

fn check(holds: bool, flaw: Flaw) -> Result<(), Flaw> {
    if holds { Ok(()) } else { Err(flaw) }
}

/// What every certificate must be.
fn any(one: &X509Certificate<'_>) -> Result<(), Flaw> {
    check(one.version() == X509Version::V3, Flaw::Version)?;
    check(strong_key(one), Flaw::Key)?;
    let readable = |extension: &X509Extension<'_>| extension.parsed_extension().error().is_none();
    check(one.extensions_map().is_ok() && one.extensions().iter().all(readable), Flaw::Extension)
}

fn vouches(one: &X509Certificate<'_>) -> Result<(), Flaw> {
    any(one)?;
    check(one.subject().iter().next().is_some(), Flaw::Subject)?;
    let basic = one.basic_constraints().ok().flatten();
    check(basic.is_some_and(|basic| basic.critical && basic.value.ca), Flaw::BasicConstraints)?;
    let usage = one.key_usage().ok().flatten();
    check(usage.is_some_and(|usage| usage.value.key_cert_sign()), Flaw::KeyUsage)?;
    let own = named(one, &oid_registry::OID_X509_EXT_SUBJECT_KEY_IDENTIFIER);
    check(own.is_some_and(|own| !own.critical), Flaw::SubjectKey)?;
    let constraints = one.name_constraints().ok().flatten();
    check(constraints.is_none_or(|found| found.critical && sound(found.value)), Flaw::NameConstraints)?;
    let policy = named(one, &oid_registry::OID_X509_EXT_POLICY_CONSTRAINTS);
    check(policy.is_none_or(|policy| policy.critical), Flaw::PolicyConstraints)
}

fn serial(one: &X509Certificate<'_>) -> Result<(), Flaw> {
    let negative = one.raw_serial().first().is_some_and(|byte| byte & 0x80 != 0);
    let bytes = one.raw_serial().iter().skip_while(|byte| **byte == 0).count();
    check(!negative && (1..=MAX_SERIAL).contains(&bytes), Flaw::Serial)
}

fn authority_key(one: &X509Certificate<'_>) -> Result<(), Flaw> {
    let found = named(one, &oid_registry::OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER);
    check(found.is_some_and(|found| !found.critical) && authority_key_identifier(one).is_some(), Flaw::AuthorityKey)
}

fn authority_key_identifier<'a>(one: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    match named(one, &oid_registry::OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER)?.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(authority) => Some(authority.key_identifier.as_ref()?.0),
        _ => None,
    }
}

fn named<'a, 'b>(one: &'a X509Certificate<'b>, oid: &Oid<'_>) -> Option<&'a X509Extension<'b>> {
    one.extensions().iter().find(|extension| extension.oid == *oid)
}

/// A leading dot is OpenSSL's own form, which others read in another way or not at all.
fn sound(constraints: &NameConstraints<'_>) -> bool {
    let lists = [&constraints.permitted_subtrees, &constraints.excluded_subtrees];
    let mut trees = lists.into_iter().flatten().flatten().peekable();
    trees.peek().is_some()
        && trees.all(|tree| !matches!(tree.base, GeneralName::DNSName(name) if name.starts_with('.')))
}

/// The curve counts, not the length of the point: there are other curves of 256 bits.
fn strong_key(one: &X509Certificate<'_>) -> bool {
    let key = one.public_key();
    let curve = || key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    match key.parsed() {
        Ok(PublicKey::EC(_)) => {
            curve().is_some_and(|curve| [oid_registry::OID_EC_P256, oid_registry::OID_NIST_EC_P384].contains(&curve))
        }
        Ok(PublicKey::RSA(rsa)) => long_enough(rsa.modulus),
        _ => key.algorithm.algorithm == oid_registry::OID_SIG_ED25519,
    }
}

/// Measured without leading zeros.
fn long_enough(modulus: &[u8]) -> bool {
    let modulus = modulus.iter().position(|byte| *byte != 0).map_or(&[][..], |at| &modulus[at..]);
    modulus.len() * 8 >= MIN_RSA && modulus.first().is_some_and(|byte| byte & 0x80 != 0)
}

#[cfg(test)]
mod tests;
