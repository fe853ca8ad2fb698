//! Lists of others: what is taken, and what each of the others is refused for.

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CrlIssuingDistributionPoint, CrlScope, DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber,
};

use super::*;
use crate::pki::{offset, roots};

/// Lists for the tests of others.
pub(crate) struct Signer {
    params: CertificateParams,
    key: KeyPair,
    pub(crate) root: String,
}

impl Signer {
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, &[KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign], None)
    }

    /// An authority with these usages, below another one where there is one.
    pub(crate) fn with(name: &str, usages: &[KeyUsagePurpose], above: Option<&Self>) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = usages.to_vec();
        params.use_authority_key_identifier_extension = true;
        let root = match above {
            Some(above) => params.signed_by(&key, &Issuer::new(above.params.clone(), &above.key)).unwrap().pem(),
            None => params.self_signed(&key).unwrap().pem(),
        };
        Self { params, key, root }
    }

    pub(crate) fn list(&self, number: u64, serials: &[u64]) -> Vec<u8> {
        self.make(number, serials, |_| ())
    }

    pub(crate) fn make(
        &self,
        number: u64,
        serials: &[u64],
        change: impl FnOnce(&mut CertificateRevocationListParams),
    ) -> Vec<u8> {
        let entry = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: offset(at(NOW)),
            reason_code: None,
            invalidity_date: None,
        };
        let mut params = CertificateRevocationListParams {
            this_update: offset(at(NOW)),
            next_update: offset(at(NOW + 1_000)),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        change(&mut params);
        let mut signer = self.params.clone();
        signer.key_usages = vec![KeyUsagePurpose::CrlSign];
        params.signed_by(&Issuer::new(signer, &self.key)).unwrap().der().to_vec()
    }

    pub(crate) fn root(&self) -> Root {
        roots::read(&self.root).unwrap().remove(0).unwrap()
    }
}

pub(crate) const NOW: i64 = 1_800_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn judged(der: Vec<u8>, roots: &[Root]) -> Result<(String, List), ListError> {
    read(&CertificateRevocationListDer::from(der), roots, at(NOW))
}

#[test]
fn a_list_is_reduced_to_number_times_and_serials_of_the_root_that_signed_it() {
    let (fabrikam, other) = (Signer::new("fabrikam"), Signer::new("other"));
    let roots = [other.root(), fabrikam.root()];
    let der = fabrikam.list(300, &[7, 255, 0x0100]);
    let (issuer, list) = judged(der.clone(), &roots).unwrap();
    assert_eq!(issuer, fabrikam.root().key_id);
    assert_eq!((list.number.as_deref(), list.counted()), (Some("012c"), Some(300)));
    assert_eq!((list.this_update, list.next_update), (NOW, NOW + 1_000));
    assert_eq!(list.serials, ["0100", "07", "ff"]);
    assert_eq!(split(list.pem.as_bytes()).unwrap()[0].as_ref(), der.as_slice(), "PEM of the same list");
    assert_eq!(split(&der).unwrap()[0].as_ref(), der.as_slice(), "DER is taken as well");
}

#[test]
fn an_issuing_authority_may_stand_among_the_roots_so_that_its_lists_count() {
    let root = Signer::new("fabrikam");
    let usages = [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let issuing = Signer::with("fabrikam issuing", &usages, Some(&root));
    assert_eq!(judged(issuing.list(1, &[7]), &[root.root()]), Err(ListError::BadSignature));
    let (issuer, _) = judged(issuing.list(1, &[7]), &[root.root(), issuing.root()]).unwrap();
    assert_eq!(issuer, issuing.root().key_id);
}

#[test]
fn each_list_that_is_not_taken_has_its_own_reason() {
    let (fabrikam, other) = (Signer::new("fabrikam"), Signer::new("fabrikam"));
    let roots = [fabrikam.root()];
    let mute = Signer::with("mute", &[KeyUsagePurpose::KeyCertSign], None);
    let part = |params: &mut CertificateRevocationListParams| {
        let uris = vec!["http://fabrikam.example/crl".to_owned()];
        let distribution_point = CrlDistributionPoint { uris };
        params.issuing_distribution_point =
            Some(CrlIssuingDistributionPoint { distribution_point, scope: Some(CrlScope::UserCertsOnly) });
    };
    let mut forged = fabrikam.list(1, &[7]);
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let unparsable = |result: Result<(String, List), ListError>| matches!(result, Err(ListError::Unparsable(_)));
    assert_eq!(judged(other.list(1, &[7]), &roots), Err(ListError::BadSignature), "the same name, another key");
    assert_eq!(judged(mute.list(1, &[7]), &[mute.root()]), Err(ListError::BadSignature), "it may not sign lists");
    assert_eq!(judged(forged, &roots), Err(ListError::BadSignature));
    assert!(unparsable(judged(fabrikam.make(1, &[7], part), &roots)), "a part of a list");
    assert!(unparsable(judged(b"nonsense".to_vec(), &roots)));
    assert!(unparsable(judged([fabrikam.list(1, &[]), vec![0]].concat(), &roots)), "something behind it");
    let later = |params: &mut CertificateRevocationListParams| params.this_update = offset(at(NOW + 900));
    assert!(unparsable(judged(fabrikam.make(1, &[], later), &roots)), "from the future");
    let many: Vec<u64> = (0..=u64::try_from(MAX_SERIALS).unwrap()).collect();
    assert_eq!(judged(fabrikam.list(1, &many), &roots), Err(ListError::TooMany));
    for nothing in [&b""[..], b"nonsense", b"-----BEGIN X509 CRL-----\nM!\n-----END X509 CRL-----\n"] {
        assert!(matches!(split(nothing), Err(ListError::Unparsable(_))), "{nothing:?}");
    }
    assert!(split(&vec![0x30; LONGEST + 1]).is_err());
}

#[test]
fn neither_number_nor_date_of_an_authority_goes_back() {
    let signer = Signer::new("fabrikam");
    let list = |number: u64, later: i64| {
        let shifted = |params: &mut CertificateRevocationListParams| params.this_update = offset(at(NOW - 500 + later));
        judged(signer.make(number, &[], shifted), &[signer.root()]).unwrap().1
    };
    for ((number, later), expected) in
        [((9, 0), false), ((10, 0), true), ((11, 0), true), ((0x1_0000, 5), true), ((10, -1), false), ((11, -1), false)]
    {
        assert_eq!(list(number, later).follows(&list(10, 0)), expected, "{number} {later}");
    }
    let unnumbered = List { number: None, ..list(1, 0) };
    assert!(!unnumbered.follows(&list(1, 0)) && list(1, 0).follows(&unnumbered));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(at_byte in 0usize..400, value in any::<u8>(), cut in 0usize..400) {
        let signer = Signer::new("fabrikam");
        let mut der = signer.list(1, &[7, 8]);
        let place = at_byte % der.len();
        der[place] = value;
        der.truncate(der.len().min(cut.max(1)));
        let _ = judged(der, &[signer.root()]);
    }
}
