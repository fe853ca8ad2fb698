//! The certificate that ServerTLS ports show instead of our own, from a mounted Secret: a public CA's for instance.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::credentials::Leaf;
use crate::telemetry;

/// The kubelet brings a changed Secret into the pod within a minute or two; it is looked for this often.
const LOOK: Duration = Duration::from_secs(10);
/// Certificates in its chain, at most.
const MAX_CHAIN: usize = 8;

/// What ServerTLS ports show, as the mounted files have it; nothing where none is mounted.
#[derive(Debug)]
pub(super) struct ServerCertificate {
    folder: PathBuf,
    current: ArcSwapOption<CertifiedKey>,
    /// The files as they were read last, good or not.
    read: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
}

impl ServerCertificate {
    /// Reads what is mounted in `folder` now.
    pub(super) fn new(folder: PathBuf) -> Self {
        let certificate = Self { folder, current: ArcSwapOption::empty(), read: Mutex::default() };
        certificate.look();
        certificate
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
                tracing::info!("ServerTLS ports show the mounted certificate");
                self.current.store(Some(Arc::new(certified)));
            }
            None => tracing::warn!(
                folder = %self.folder.display(),
                "the mounted certificate cannot be used: tls.crt and tls.key must be PEM and belong together"
            ),
        }
        *read = Some(found);
    }

    /// Looks again and again; runs for the proxy's whole life.
    pub(super) async fn follow(self: Arc<Self>) {
        if !Path::new(&self.folder).exists() {
            // A volume is mounted when a pod is created, or never.
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(LOOK).await;
            self.look();
        }
    }
}

fn parse(chain: &[u8], key: &[u8]) -> Option<CertifiedKey> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().ok()?;
    let key = PrivateKeyDer::from_pem_slice(key).ok()?;
    let key = telemetry::crypto().key_provider.load_private_key(key).ok()?;
    let fits = (1..=MAX_CHAIN).contains(&chain.len());
    let certified = CertifiedKey::new(chain, key);
    (fits && certified.keys_match().is_ok()).then_some(certified)
}

/// What a ServerTLS port shows: the mounted certificate, else our own.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) mounted: Arc<ServerCertificate>,
    pub(super) own: Arc<Leaf>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.mounted.current.load_full().or_else(|| Some(self.own.certified.clone()))
    }
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
        let certificate = ServerCertificate::new(folder.path().to_owned());
        let shown = || certificate.current.load_full().map(|certified| certified.cert[0].clone());
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
