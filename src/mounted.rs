//! A certificate from a mounted Secret, followed when its files change: what ServerTLS ports and partners are shown, and
//! the bundle endpoint under the web PKI.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use arc_swap::ArcSwapOption;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use crate::{identity::DnsName, telemetry};

/// The kubelet brings a changed Secret into the pod within a minute or two; it is looked for this often.
pub const LOOK: Duration = Duration::from_secs(10);
/// Certificates in its chain, at most.
const MAX_CHAIN: usize = 8;
/// Names of one that are looked at, at most.
const MAX_NAMES: usize = 64;

/// One certificate, as the files `tls.crt` and `tls.key` have it; nothing where there are none.
#[derive(Debug)]
pub struct Mounted {
    folder: PathBuf,
    current: ArcSwapOption<Certified>,
    /// The files as they were read last, good or not.
    seen: Mutex<Option<Files>>,
}

type Files = (Vec<u8>, Vec<u8>);

/// A certificate that can be shown.
#[derive(Debug)]
pub struct Certified {
    /// Chain and key.
    pub key: Arc<CertifiedKey>,
    /// The DNS names in it that callers may ask for.
    names: Vec<DnsName>,
}

impl Certified {
    /// Whether it carries `name`.
    pub fn names(&self, name: &str) -> bool {
        self.names.iter().any(|own| own.as_str() == name)
    }
}

impl Mounted {
    /// What stands in `folder`, read once.
    pub fn new(folder: PathBuf) -> Self {
        let certificate = Self { folder, current: ArcSwapOption::empty(), seen: Mutex::default() };
        certificate.look();
        certificate
    }

    /// What is to be shown now.
    pub fn current(&self) -> Option<Arc<Certified>> {
        self.current.load_full()
    }

    /// Whether anything is mounted. A volume is mounted when a pod is created, or never.
    pub fn is_there(&self) -> bool {
        self.folder.exists()
    }

    /// Takes over changed files; broken ones are named, and the last good certificate stays.
    pub fn look(&self) {
        let file = |name: &str| std::fs::read(self.folder.join(name)).ok();
        let Some(found) = file("tls.crt").zip(file("tls.key")) else { return };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.as_ref() == Some(&found) {
            return;
        }
        match parse(&found) {
            Ok(certified) => {
                tracing::info!(folder = %self.folder.display(), "the mounted certificate is shown");
                self.current.store(Some(Arc::new(certified)));
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(folder = %self.folder.display(), error, "the mounted certificate cannot be used");
            }
        }
        *seen = Some(found);
    }

    /// Looks again and again.
    pub async fn follow(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look();
        }
    }
}

impl ResolvesServerCert for Mounted {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current().map(|certified| Arc::clone(&certified.key))
    }
}

/// Reads a chain and its key, PEM both.
///
/// # Errors
/// Where they are none, or do not belong together.
pub fn pair(chain: &[u8], key: &[u8]) -> Result<CertifiedKey> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let key = PrivateKeyDer::from_pem_slice(key).context("tls.key must be PEM of a key")?;
    let key = telemetry::crypto().key_provider.load_private_key(key).context("tls.key")?;
    let next = CertifiedKey::new(chain.context("tls.crt must be PEM of certificates")?, key);
    next.keys_match().context("tls.key must be the key of tls.crt")?;
    Ok(next)
}

fn parse((chain, key): &Files) -> Result<Certified> {
    let certified = pair(chain, key)?;
    let (leaf, count) = (certified.cert.first().context("tls.crt is empty")?, certified.cert.len());
    ensure!(count <= MAX_CHAIN, "tls.crt must hold at most {MAX_CHAIN} certificates");
    Ok(Certified { names: names(leaf), key: Arc::new(certified) })
}

/// The names that can be asked for. What else the certificate carries is for whoever is shown it to judge.
fn names(leaf: &CertificateDer<'_>) -> Vec<DnsName> {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return vec![] };
    let lists = leaf.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let names = lists.flatten().filter_map(|name| match name {
        GeneralName::DNSName(name) => DnsName::parse(name).ok(),
        _ => None,
    });
    names.take(MAX_NAMES).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn write(folder: &std::path::Path, name: &str) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
        std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
        certificate.der().clone()
    }

    #[test]
    fn changed_files_are_taken_over_and_broken_ones_keep_the_last_good() {
        let folder = tempfile::tempdir().unwrap();
        let certificate = Mounted::new(folder.path().to_owned());
        let shown = || certificate.current().map(|certified| certified.key.cert[0].clone());
        assert_eq!(shown(), None);
        let first = write(folder.path(), "one.example");
        certificate.look();
        assert_eq!(shown(), Some(first.clone()));
        for broken in ["", "nonsense", &KeyPair::generate().unwrap().serialize_pem()] {
            std::fs::write(folder.path().join("tls.key"), broken).unwrap();
            certificate.look();
            assert_eq!(shown(), Some(first.clone()), "{broken:?}");
        }
        let second = write(folder.path(), "two.example");
        certificate.look();
        assert_eq!(shown(), Some(second));
    }
}
