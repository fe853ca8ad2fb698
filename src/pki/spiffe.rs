//! SPIFFE bundles as others publish them (SPIFFE Trust Domain and Bundle §4): a JWK set whose keys are root
//! certificates, with a number that never goes back and a hint when to look again.

use base64::prelude::{BASE64_STANDARD, Engine};
use serde::Deserialize;

use super::{
    bundle,
    roots::{self, MAX_ROOTS},
};

/// Bytes that a bundle may have.
pub const LONGEST: usize = 256 * 1024;
/// Keys that a bundle may have, those of other uses included.
const MAX_KEYS: usize = 256;

/// What a bundle says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpiffeBundle {
    /// Its number, where it has one.
    pub sequence: Option<u64>,
    /// Seconds after which to look again, where it says so.
    pub refresh_hint: Option<u64>,
    /// The certificates in it, PEM; none = it is empty.
    pub pem: String,
}

/// Why a bundle is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// Longer than any bundle is.
    #[error("a bundle has at most {LONGEST} bytes")]
    TooLong,
    /// Not the JSON of a bundle.
    #[error("it is not the JSON of a SPIFFE bundle")]
    Malformed,
    /// Keys beyond the bound.
    #[error("a bundle has at most {MAX_KEYS} keys, of which {MAX_ROOTS} are roots")]
    TooMany,
    /// SPIFFE Trust Domain and Bundle §4.2.2: x5c holds exactly one certificate.
    #[error("a key with use x509-svid must hold exactly one certificate in x5c")]
    Certificate,
}

/// Fields that are not named here are of no concern (§4.1).
#[derive(Deserialize)]
struct Document {
    keys: Option<Vec<Key>>,
    spiffe_sequence: Option<u64>,
    spiffe_refresh_hint: Option<u64>,
}

#[derive(Deserialize)]
struct Key {
    #[serde(rename = "use")]
    purpose: Option<String>,
    x5c: Option<Vec<String>>,
}

/// Reads a bundle. A key of another use, or of none, is left out as §4.2.1 asks.
pub fn parse(json: &[u8]) -> Result<SpiffeBundle, SpiffeError> {
    if json.len() > LONGEST {
        return Err(SpiffeError::TooLong);
    }
    let document: Document = serde_json::from_slice(json).map_err(|_| SpiffeError::Malformed)?;
    let keys = document.keys.unwrap_or_default();
    let known = keys.iter().filter(|key| key.purpose.as_deref() == Some("x509-svid"));
    if keys.len() > MAX_KEYS || known.clone().count() > MAX_ROOTS {
        return Err(SpiffeError::TooMany);
    }
    Ok(SpiffeBundle {
        sequence: document.spiffe_sequence,
        refresh_hint: document.spiffe_refresh_hint,
        pem: known.map(certificate).collect::<Result<_, _>>()?,
    })
}

fn certificate(key: &Key) -> Result<String, SpiffeError> {
    let [text] = key.x5c.as_deref().unwrap_or_default() else { return Err(SpiffeError::Certificate) };
    let der = BASE64_STANDARD.decode(text).map_err(|_| SpiffeError::Certificate)?;
    roots::key_of(&der).ok_or(SpiffeError::Certificate)?;
    Ok(bundle::encode(&der))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pki::{self, roots::tests::authority};

    fn x5c(pem: &str) -> String {
        BASE64_STANDARD.encode(pki::certificate(pem).unwrap())
    }

    fn read(document: &Value) -> Result<SpiffeBundle, SpiffeError> {
        parse(document.to_string().as_bytes())
    }

    #[test]
    fn a_bundle_means_the_certificates_of_its_x509_keys_and_everything_unknown_is_passed_over() {
        let (one, two) = (authority("one", 0, 9), authority("two", 0, 9));
        let document = json!({
            "keys": [
                {"use": "x509-svid", "kty": "EC", "crv": "P-256", "x": "", "y": "", "x5c": [x5c(&one)]},
                {"use": "jwt-svid", "kid": "k", "kty": "EC"},
                {"use": "of-tomorrow", "x5c": []},
                {"kty": "RSA"},
                {"use": "x509-svid", "x5c": [x5c(&two)]},
            ],
            "spiffe_sequence": 12_345_678_901_u64, "spiffe_refresh_hint": 600, "new_field": {"a": [1]},
        });
        let expected =
            SpiffeBundle { sequence: Some(12_345_678_901), refresh_hint: Some(600), pem: format!("{one}{two}") };
        assert_eq!(read(&document), Ok(SpiffeBundle { pem: expected.pem.replace("\r\n", "\n"), ..expected }));
        let nothing = SpiffeBundle { sequence: None, refresh_hint: None, pem: String::new() };
        for empty in [json!({}), json!({"keys": []}), json!({"keys": null}), json!({"keys": [{"use": "jwt-svid"}]})] {
            assert_eq!(read(&empty).as_ref(), Ok(&nothing), "{empty}");
        }
    }

    #[test]
    fn what_is_no_bundle_is_refused_as_a_whole() {
        let root = authority("one", 0, 9);
        let certificate = x5c(&root);
        let key = |x5c: Value| json!({"keys": [{"use": "x509-svid", "x5c": x5c}]});
        for (document, expected) in [
            (key(json!([])), SpiffeError::Certificate),
            (key(Value::Null), SpiffeError::Certificate),
            (key(json!([certificate, certificate])), SpiffeError::Certificate),
            (key(json!(["!"])), SpiffeError::Certificate),
            (key(json!([BASE64_STANDARD.encode("nonsense")])), SpiffeError::Certificate),
            (key(json!("text")), SpiffeError::Malformed),
            (json!({"keys": [], "spiffe_sequence": -1}), SpiffeError::Malformed),
            (json!({"keys": [], "spiffe_sequence": "7"}), SpiffeError::Malformed),
            (json!([]), SpiffeError::Malformed),
            (json!({"keys": vec![json!({}); MAX_KEYS + 1]}), SpiffeError::TooMany),
            (
                json!({"keys": vec![json!({"use": "x509-svid", "x5c": [certificate]}); MAX_ROOTS + 1]}),
                SpiffeError::TooMany,
            ),
        ] {
            assert_eq!(read(&document), Err(expected), "{document}");
        }
        assert_eq!(parse(&vec![b' '; LONGEST + 1]), Err(SpiffeError::TooLong));
        let deep = format!("{{\"keys\": {}{}}}", "[".repeat(9_000), "]".repeat(9_000));
        assert_eq!(parse(deep.as_bytes()), Err(SpiffeError::Malformed));
    }
}
