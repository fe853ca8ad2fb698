//! The certificates that are mounted into this pod: what ServerTLS ports show, and what partners are shown, instead of our
//! own.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::mounted::{Certified, LOOK, Mounted};

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
        self.presented.get(name)?.current()
    }

    /// Looks again and again; runs for the proxy's whole life.
    pub(super) async fn follow(self: Arc<Self>) {
        let all: Vec<&Mounted> = [&self.server].into_iter().chain(self.presented.values()).collect();
        let there: Vec<&Mounted> = all.into_iter().filter(|one| one.is_there()).collect();
        if there.is_empty() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(LOOK).await;
            there.iter().for_each(|one| one.look());
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn write(folder: &Path, name: &str) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
        std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
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
