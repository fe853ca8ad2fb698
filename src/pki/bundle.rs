//! A set of root certificates with one rendering: equal sets are equal bytes.

use std::collections::BTreeSet;

use rustls_pki_types::{CertificateDer, pem::PemObject};

/// Roots, sorted by their PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle(BTreeSet<String>);

impl Bundle {
    /// The bundle of these PEM certificates; what is no certificate is left out.
    pub fn of<'a>(pems: impl IntoIterator<Item = &'a str>) -> Self {
        let normal = |pem: &'a str| {
            CertificateDer::pem_slice_iter(pem.as_bytes())
                .filter_map(Result::ok)
                .map(|der| encode(&der))
                .collect::<Vec<_>>()
        };
        Self(pems.into_iter().flat_map(normal).collect())
    }

    /// One PEM text, certificates sorted.
    pub fn render(&self) -> String {
        self.0.iter().map(String::as_str).collect()
    }

    /// The certificates one by one, PEM.
    pub fn roots(&self) -> Vec<String> {
        self.0.iter().cloned().collect()
    }
}

/// PEM of a certificate.
pub fn encode(der: &[u8]) -> String {
    labelled("CERTIFICATE", der)
}

/// PEM, 64 characters a line (RFC 7468 §3).
pub(crate) fn labelled(label: &str, der: &[u8]) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine};
    let text = BASE64_STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default().self_signed(&key).unwrap().pem()
    }

    #[test]
    fn equal_sets_render_equal_bytes_and_read_back() {
        let (a, b) = (root(), root());
        let one = Bundle::of([a.as_str(), b.as_str()]);
        let crlf = b.replace('\n', "\r\n");
        let other = Bundle::of([crlf.as_str(), a.as_str(), b.as_str()]);
        assert_eq!(one.render(), other.render());
        assert_eq!(Bundle::of([one.render().as_str()]), one);
        assert_eq!(one.roots().len(), 2);
    }
}
