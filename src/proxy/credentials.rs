//! Our certificate: a key born here, kept in the sidecar's own volume, renewed with a new key each time.

use std::{
    collections::BTreeSet,
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use base64::prelude::{BASE64_STANDARD, Engine};
use jiff::Timestamp;
use rcgen::KeyPair;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::{
    brief::{Brief, CertificateRequest, CertificateResponse, INTERNAL, Scope},
    identity::Identity,
    pki::{
        self, csr, renewal,
        verify::{self, AnchorError, Anchors, Role},
    },
    refusal::Refusal,
    telemetry,
};

/// Certificates in our own chain.
const MAX_CHAIN: usize = 4;

/// Our certificate with its key.
pub(super) struct Leaf {
    /// What the certificate says of us.
    pub(super) identity: Identity,
    /// Chain and key, as rustls wants them.
    pub(super) certified: Arc<CertifiedKey>,
    /// When its life began for us: notBefore lies further back, for clocks that lag.
    pub(super) began: Timestamp,
    /// When it is renewed.
    pub(super) renew_at: Timestamp,
    /// The lifetime that the brief wished for when it was issued; `None` = there was no brief yet.
    pub(super) lifetime: Option<u32>,
    /// Whether it was taken back: it stands for us no longer.
    revoked: AtomicBool,
    /// Whether the controller does not accept it (any more).
    rejected: AtomicBool,
    pem: String,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialError {
    /// The key cannot be made.
    #[error("could not make a key")]
    Key(#[from] rcgen::Error),
    /// No chain, or no certificate in it.
    #[error("the chain is empty, too long, or not PEM")]
    Chain,
    /// The key is unreadable, or not the certificate's.
    #[error("the certificate does not belong to our key")]
    KeyMismatch,
    /// The leaf's names are not of our shape.
    #[error("the certificate names no identity: {0}")]
    Names(Refusal),
    /// Issued to another pod.
    #[error("the certificate is for another pod")]
    OtherPod,
    /// The roots that came with it cannot be used.
    #[error("the roots that came with the certificate cannot be used")]
    Anchors(#[from] AnchorError),
    /// It does not verify.
    #[error("the certificate does not verify: {0}")]
    Unverified(Refusal),
    /// The volume refused.
    #[error("could not keep it in {path}")]
    Store {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A key that waits for its certificate.
pub(super) struct Candidate {
    key: KeyPair,
}

impl Candidate {
    /// Makes a new P-256 key.
    pub(super) fn new() -> Result<Self, CredentialError> {
        Ok(Self { key: KeyPair::generate()? })
    }

    /// The request for its certificate.
    pub(super) fn request(&self) -> Result<CertificateRequest, CredentialError> {
        Ok(CertificateRequest { csr: BASE64_STANDARD.encode(csr::request(&self.key)?) })
    }

    /// Joins key and answer; nothing is taken on trust: our key, our pod, and a chain that verifies in both roles.
    pub(super) fn join(
        &self,
        answer: &CertificateResponse,
        pod_uid: &str,
        lifetime: Option<u32>,
        (now, jitter): (Timestamp, f64),
    ) -> Result<Leaf, CredentialError> {
        let mut pem = self.key.serialize_pem();
        for certificate in &answer.chain {
            pem.push_str(certificate);
            if !certificate.ends_with('\n') {
                pem.push('\n');
            }
        }
        // The leaf is dated back for clocks that lag; its life begins now.
        let leaf = Leaf::parse(pem, pod_uid, lifetime, (now, jitter))?;
        let anchors = Anchors::parse(&answer.anchors)?;
        for role in [Role::Client, Role::Server] {
            verify::verdict(&leaf.certified.cert, role, &anchors, now).map_err(CredentialError::Unverified)?;
        }
        Ok(leaf)
    }
}

impl Leaf {
    fn parse(
        pem: String,
        pod_uid: &str,
        lifetime: Option<u32>,
        (began, jitter): (Timestamp, f64),
    ) -> Result<Self, CredentialError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| CredentialError::Chain)?;
        if !(1..=MAX_CHAIN).contains(&chain.len()) {
            return Err(CredentialError::Chain);
        }
        let identity = Identity::of(&chain[0]).map_err(CredentialError::Names)?;
        if identity.pod_uid.as_deref() != Some(pod_uid) {
            return Err(CredentialError::OtherPod);
        }
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| CredentialError::KeyMismatch)?;
        let key = telemetry::crypto().key_provider.load_private_key(key).map_err(|_| CredentialError::KeyMismatch)?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|_| CredentialError::KeyMismatch)?;
        let renew_at = renewal::renew_at(began, identity.not_after, jitter);
        Ok(Self {
            identity,
            certified: Arc::new(certified),
            began,
            renew_at,
            lifetime,
            revoked: false.into(),
            rejected: false.into(),
            pem,
        })
    }

    /// The serial number, hex.
    pub(super) fn serial(&self) -> String {
        pki::hex(&self.identity.serial)
    }

    /// It was taken back; answers whether that is news.
    pub(super) fn revoke(&self) -> bool {
        !self.revoked.swap(true, Ordering::Relaxed)
    }

    /// Whether it was taken back.
    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }

    /// The controller did not accept it.
    pub(super) fn reject(&self) {
        self.rejected.store(true, Ordering::Relaxed);
    }

    /// Whether the controller accepts it, as far as we know.
    pub(super) fn is_rejected(&self) -> bool {
        self.rejected.load(Ordering::Relaxed)
    }

    /// Whether another authority signs now than the one that signed this leaf.
    pub(super) fn is_of_another_issuer(&self, brief: &Brief) -> bool {
        !brief.issuer.is_empty() && self.identity.issuer.as_ref() != Some(&brief.issuer)
    }

    /// Whether the authority that signed it is out of use: no peer accepts it any more.
    pub(super) fn has_lost_its_issuer(&self, brief: &Brief) -> bool {
        let current = |scope: &Scope| self.identity.issuer.as_ref().is_some_and(|own| scope.issuers.contains(own));
        brief.scope(INTERNAL).is_some_and(|scope| !current(scope))
    }

    /// Whether `brief` asks for other names or another lifetime than this leaf was issued with.
    pub(super) fn differs_from(&self, brief: &Brief) -> bool {
        let names: BTreeSet<_> = brief.names.iter().cloned().collect();
        let lifetime = self.lifetime.is_some_and(|lifetime| lifetime != brief.lifetime_seconds);
        lifetime || names != self.identity.dns_names || brief.identity != self.identity.id
    }

    /// Keeps chain and key for a restart of the container.
    pub(super) fn store(&self, directory: &Path) -> Result<(), CredentialError> {
        write(directory, IDENTITY_FILE, self.pem.as_bytes())
    }
}

/// Chain and key together, so that no crash can leave one without the other.
const IDENTITY_FILE: &str = "identity.pem";
const BRIEF_FILE: &str = "brief.json";

/// What survived a restart of the container.
pub(super) struct Kept {
    /// Certificate and key.
    pub(super) leaf: Leaf,
    /// The brief that was in force.
    pub(super) brief: Option<Brief>,
}

/// Reads back what was kept; what is unreadable, expired or another pod's counts as absent.
pub(super) fn load(directory: &Path, pod_uid: &str, (now, jitter): (Timestamp, f64)) -> Option<Kept> {
    let pem = std::fs::read_to_string(directory.join(IDENTITY_FILE)).ok()?;
    let brief = std::fs::read(directory.join(BRIEF_FILE)).ok();
    let brief = brief.and_then(|bytes| serde_json::from_slice::<Brief>(&bytes).ok());
    let lifetime = brief.as_ref().map(|brief| brief.lifetime_seconds);
    // When it was issued is not kept: the part of its life that is left is divided anew.
    let leaf = Leaf::parse(pem, pod_uid, lifetime, (now, jitter))
        .inspect_err(|error| tracing::warn!(%error, "kept certificate is of no use"))
        .ok()?;
    (leaf.identity.not_after > now).then_some(Kept { leaf, brief })
}

/// Keeps the brief in force, as JSON, for a restart of the container.
pub(super) fn store_brief(directory: &Path, brief: &[u8]) -> Result<(), CredentialError> {
    write(directory, BRIEF_FILE, brief)
}

/// Writes beside the file and renames, so that a reader sees the old or the new one, whole.
fn write(directory: &Path, name: &str, content: &[u8]) -> Result<(), CredentialError> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let path = directory.join(name);
    let beside = directory.join(format!("{name}.new"));
    let attempt = || {
        // A file left behind by a crash may have another mode.
        let _ = std::fs::remove_file(&beside);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&beside, &path)
    };
    attempt().map_err(|source| CredentialError::Store { path: path.display().to_string(), source })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn kept_files_are_for_the_owner_only_and_replaced_whole() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "a", b"one").unwrap();
        std::fs::write(directory.path().join("a.new"), b"left by a crash").unwrap();
        write(directory.path(), "a", b"two").unwrap();
        let path = directory.path().join("a");
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!directory.path().join("a.new").exists());
    }

    /// A leaf of `lifetime` seconds, dated back by `skew`, as the controller issues it.
    fn issued(candidate: &Candidate, lifetime: u32, skew: u32, now: Timestamp) -> CertificateResponse {
        use crate::{
            identity::{DnsName, SpiffeId},
            pki::authority::{self, Authority, Serial, Terms},
        };
        let domain = DnsName::parse("contoso.example").unwrap();
        let permitted = vec![domain.clone()];
        let terms = Terms { trust_domain: domain.clone(), permitted, root_days: 10, issuer_days: 5 };
        let keys = [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()];
        let serials = [Serial::from_random([1; 16]), Serial::from_random([2; 16])];
        let material = authority::create(&terms, keys, serials, now).unwrap();
        let id = SpiffeId::new(&domain, "sip", "fe").unwrap();
        let dns_names = BTreeSet::from([id.topology_name().unwrap()]);
        let names = csr::Names { id, dns_names, pod_uid: Some("uid".to_owned()) };
        let request = csr::Csr::parse(&csr::request(&candidate.key).unwrap()).unwrap();
        let authority = Authority::load(&material, now).unwrap();
        let validity = authority.leaf_validity(lifetime, skew, now).unwrap();
        let issued = authority.sign(&request.grant(names), Serial::from_random([3; 16]), validity).unwrap();
        CertificateResponse { chain: issued.chain, anchors: vec![material.root_certificate] }
    }

    /// A leaf of `lifetime` seconds that the pod `uid` took at `now`, and the roots above it.
    pub(in super::super) fn leaf(lifetime: u32, now: Timestamp) -> (Leaf, Vec<String>) {
        let candidate = Candidate::new().unwrap();
        let answer = issued(&candidate, lifetime, 300, now);
        (candidate.join(&answer, "uid", Some(lifetime), (now, 0.5)).unwrap(), answer.anchors)
    }

    #[test]
    fn a_leaf_shorter_than_the_clock_skew_is_renewed_in_its_life_and_not_at_once() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let candidate = Candidate::new().unwrap();
        let answer = issued(&candidate, 120, 300, now);
        for jitter in [0.0, 0.5, 1.0] {
            let leaf = candidate.join(&answer, "uid", None, (now, jitter)).unwrap();
            let wait = leaf.renew_at.as_second() - now.as_second();
            assert!((39..=48).contains(&wait), "{wait}");
        }
    }

    #[test]
    fn an_answer_for_another_key_or_pod_is_not_used() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let (ours, other) = (Candidate::new().unwrap(), Candidate::new().unwrap());
        let answer = issued(&other, 3600, 300, now);
        assert!(matches!(ours.join(&answer, "uid", None, (now, 0.5)), Err(CredentialError::KeyMismatch)));
        assert!(matches!(other.join(&answer, "another", None, (now, 0.5)), Err(CredentialError::OtherPod)));
        let empty = CertificateResponse { chain: vec![], ..answer };
        assert!(matches!(other.join(&empty, "uid", None, (now, 0.5)), Err(CredentialError::Chain)));
    }

    #[test]
    fn a_kept_leaf_comes_back_until_it_expires() {
        let directory = tempfile::tempdir().unwrap();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let candidate = Candidate::new().unwrap();
        let leaf = candidate.join(&issued(&candidate, 3600, 300, now), "uid", None, (now, 0.5)).unwrap();
        leaf.store(directory.path()).unwrap();
        let kept = load(directory.path(), "uid", (now, 0.5)).unwrap();
        assert_eq!(kept.leaf.serial(), leaf.serial());
        assert!(load(directory.path(), "another pod", (now, 0.5)).is_none());
        let later = Timestamp::from_second(1_800_003_600).unwrap();
        assert!(load(directory.path(), "uid", (later, 0.5)).is_none());
    }

    #[test]
    fn garbage_in_the_volume_counts_as_nothing_kept() {
        let directory = tempfile::tempdir().unwrap();
        let when = (Timestamp::UNIX_EPOCH, 0.5);
        assert!(load(directory.path(), "uid", when).is_none());
        std::fs::write(directory.path().join(IDENTITY_FILE), b"\0garbage").unwrap();
        assert!(load(directory.path(), "uid", when).is_none());
    }
}
