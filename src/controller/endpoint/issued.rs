//! Certificates of our own authorities for the bundle endpoint (profile https_spiffe): each domain has its own, and the
//! name that is called says whose is shown.

use std::{collections::BTreeMap, fmt, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::{
    identity::{DnsName, Identity, SpiffeId},
    mounted::pair,
    topology::Server,
};

/// The certificate of one domain's endpoint, with its key.
pub struct Certificate {
    id: SpiffeId,
    shown: Arc<CertifiedKey>,
}

/// The certificates as they are now, in the order of the names of their domains.
pub type All = Arc<dyn Fn() -> Vec<Arc<Certificate>> + Send + Sync>;

/// Shows them.
pub struct Issued(All);

impl Certificate {
    /// What the Secret of an endpoint holds, if it is the certificate of `server` in `namespace`.
    ///
    /// # Errors
    /// Where it cannot be used.
    pub fn read(chain: &[u8], key: &[u8], (namespace, server): (&str, &str)) -> Result<Self> {
        let shown = pair(chain, key)?;
        let leaf = shown.cert.first().context("tls.crt is empty")?;
        let id = match Identity::of(leaf) {
            Ok(identity) => identity.id,
            Err(refusal) => bail!("tls.crt: {refusal}"),
        };
        ensure!((id.namespace(), id.server()) == (namespace, server), "tls.crt is the certificate of {id}");
        Ok(Self { id, shown: Arc::new(shown) })
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        // A key is that of its certificate, or it was never read.
        self.shown.cert == other.shown.cert
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({})", self.id)
    }
}

impl Issued {
    /// Shows what `all` answers at each handshake.
    pub fn new(all: All) -> Arc<Self> {
        Arc::new(Self(all))
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Issued")
    }
}

impl ResolvesServerCert for Issued {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let all = (self.0)();
        let chosen = choose(all.iter().map(|one| one.id.trust_domain()), hello.server_name())?;
        all.get(chosen).map(|one| Arc::clone(&one.shown))
    }
}

/// The certificate of the endpoint `own` among `rows`, by `namespace/name` of their Secrets: none of an earlier domain.
pub(in super::super) fn of(rows: &BTreeMap<String, Arc<Certificate>>, own: &Server) -> Option<Arc<Certificate>> {
    let secret = own.secret_name.as_deref()?;
    let found = rows.get(&format!("{}/{secret}", own.key.namespace))?;
    (found.id == own.id).then(|| Arc::clone(found))
}

/// Which of these trust domains is meant by `name`: the closest that holds it, or else the first.
fn choose<'a>(trust_domains: impl Iterator<Item = &'a DnsName>, name: Option<&str>) -> Option<usize> {
    let name = name.and_then(|name| DnsName::parse(name).ok());
    let held = |domain: &DnsName| match &name {
        Some(name) if name.is_within(domain) => domain.as_str().len(),
        Some(_) | None => 0,
    };
    let ranked = trust_domains.enumerate().map(|(at, domain)| (held(domain), std::cmp::Reverse(at)));
    ranked.max().map(|(_, std::cmp::Reverse(at))| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_is_called_says_whose_certificate_is_shown_and_any_other_the_first() {
        let names = |all: &[&str]| all.iter().map(|name| DnsName::parse(name).unwrap()).collect::<Vec<_>>();
        let all = names(&["contoso.example", "eu.contoso.example", "fabrikam.example"]);
        for (asked, expected) in [
            (None, 0),
            (Some("bundle.contoso.example"), 0),
            (Some("contoso.example"), 0),
            (Some("bundle.eu.contoso.example"), 1),
            (Some("bundle.fabrikam.example"), 2),
            (Some("notfabrikam.example"), 0),
            (Some("elsewhere.example"), 0),
            (Some("Not A Name"), 0),
        ] {
            assert_eq!(choose(all.iter(), asked), Some(expected), "{asked:?}");
        }
        assert_eq!(choose([].iter(), Some("bundle.contoso.example")), None, "nobody has a certificate yet");
    }
}
