//! Certificates from mounted Secrets: what ServerTLS ports show, and what partners are shown, instead of our own.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use crate::{identity::DnsName, telemetry};

/// The kubelet brings a changed Secret into the pod within a minute or two; it is looked for this often.
const LOOK: Duration = Duration::from_secs(10);
/// Certificates in its chain, at most.
const MAX_CHAIN: usize = 8;
/// Names of one that are looked at, at most.
const MAX_NAMES: usize = 64;
/// Folders below that of the certificates for partners, at most.
const MAX_FOLDERS: usize = 256;

/// All that are mounted. A volume is mounted when a pod is created, or never.
#[derive(Debug)]
pub(super) struct Certificates {
    /// For ServerTLS ports.
    pub(super) server: Mounted,
    presented: BTreeMap<String, Mounted>,
}

impl Certificates {
    /// Reads what is mounted now: in `server` what ServerTLS ports show, below `presented` what partners are shown, each
    /// in a folder of the partner's name.
    pub(super) fn new(server: PathBuf, presented: &Path) -> Self {
        let folders = std::fs::read_dir(presented).into_iter().flatten().flatten().map(|entry| entry.path());
        let named = folders.filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path)));
        // A volume keeps its versions in folders that begin with two dots.
        let mounted = named.filter(|(name, path)| !name.starts_with('.') && path.is_dir());
        let presented = mounted.take(MAX_FOLDERS).map(|(name, path)| (name, Mounted::new(path))).collect();
        Self { server: Mounted::new(server), presented }
    }

    /// What the partner `name` is to be shown.
    pub(super) fn presented(&self, name: &str) -> Option<Arc<Certified>> {
        self.presented.get(name)?.current.load_full()
    }

    /// Looks again and again; runs for the proxy's whole life.
    pub(super) async fn follow(self: Arc<Self>) {
        let all: Vec<&Mounted> = [&self.server].into_iter().chain(self.presented.values()).collect();
        let there: Vec<&Mounted> = all.into_iter().filter(|one| one.folder.exists()).collect();
        if there.is_empty() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(LOOK).await;
            there.iter().for_each(|one| one.look());
        }
    }
}

/// One certificate, as its files have it; nothing where there are none.
#[derive(Debug)]
pub(super) struct Mounted {
    folder: PathBuf,
    current: ArcSwapOption<Certified>,
    /// The files as they were read last, good or not.
    read: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
}

/// A certificate that can be shown.
#[derive(Debug)]
pub(super) struct Certified {
    /// Chain and key.
    pub(super) key: Arc<CertifiedKey>,
    /// The DNS names in it that callers may ask for.
    names: Vec<DnsName>,
}

impl Certified {
    /// Whether it carries `name`.
    pub(super) fn names(&self, name: &str) -> bool {
        self.names.iter().any(|own| own.as_str() == name)
    }
}

impl Mounted {
    fn new(folder: PathBuf) -> Self {
        let certificate = Self { folder, current: ArcSwapOption::empty(), read: Mutex::default() };
        certificate.look();
        certificate
    }

    /// What is to be shown now.
    pub(super) fn current(&self) -> Option<Arc<Certified>> {
        self.current.load_full()
    }

    /// Takes over changed files; broken ones are named, and the last good certificate stays.
    fn look(&self) {
        let file = |name: &str| std::fs::read(self.folder.join(name)).ok();
        let Some(found) = file("tls.crt").zip(file("tls.key")) else { return };
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.as_ref() == Some(&found) {
            return;
        }
        match parse(&found.0, &found.1) {
            Some(certified) => {
                tracing::info!(folder = %self.folder.display(), "the mounted certificate is shown");
                self.current.store(Some(Arc::new(certified)));
            }
            None => tracing::warn!(
                folder = %self.folder.display(),
                "the mounted certificate cannot be used: tls.crt and tls.key must be PEM and belong together"
            ),
        }
        *read = Some(found);
    }
}

fn parse(chain: &[u8], key: &[u8]) -> Option<Certified> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().ok()?;
    let key = PrivateKeyDer::from_pem_slice(key).ok()?;
    let key = telemetry::crypto().key_provider.load_private_key(key).ok()?;
    let fits = (1..=MAX_CHAIN).contains(&chain.len());
    let names = names(chain.first()?);
    let certified = CertifiedKey::new(chain, key);
    (fits && certified.keys_match().is_ok()).then(|| Certified { key: Arc::new(certified), names })
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

    fn write(folder: &Path, name: &str) -> CertificateDer<'static> {
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

    #[test]
    fn each_partner_has_its_own_folder_and_a_broken_one_shows_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["fabrikam", "litware", "..2026", ".hidden"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            write(&folder.path().join(name), "edge.contoso.example");
        }
        std::fs::write(folder.path().join("litware/tls.key"), "nonsense").unwrap();
        let certificates = Certificates::new("/nowhere".into(), folder.path());
        let names = |partner: &str| certificates.presented(partner).map(|one| one.names("edge.contoso.example"));
        assert_eq!(names("fabrikam"), Some(true));
        for nobody in ["litware", "..2026", ".hidden", "other", "..", ""] {
            assert_eq!(names(nobody), None, "{nobody}");
        }
        assert!(!certificates.presented("fabrikam").unwrap().names("sip.contoso.example"));
        assert!(certificates.server.current().is_none());
    }
}
