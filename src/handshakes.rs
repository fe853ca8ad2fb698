//! What handshakes share on both sides: a bound on those under way, in all and of one source, beyond which nothing is
//! computed; and how verifiers check that a peer has the key of the certificate that it shows.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, UnixTime};

/// The methods of a rustls verifier that check signatures, with the algorithms that chains may use as well. `tls13` = no
/// other version is offered where it serves.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            leaf: &rustls_pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls12_signature(message, leaf, signature, &$crate::pki::verify::algorithms())
        }

        signatures!(tls13 only);
    };
    (tls13) => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("TLS 1.2 is not offered".to_owned()))
        }

        signatures!(tls13 only);
    };
    (tls13 only) => {
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &rustls_pki_types::CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(message, leaf, signature, &$crate::pki::verify::algorithms())
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            $crate::pki::verify::algorithms().supported_schemes()
        }
    };
}

pub(crate) use signatures;

/// The chain that a peer shows, leaf first.
pub(crate) fn chain<'a>(leaf: &'a CertificateDer<'_>, rest: &'a [CertificateDer<'_>]) -> Vec<CertificateDer<'a>> {
    std::iter::once(leaf).chain(rest).map(|one| CertificateDer::from(one.as_ref())).collect()
}

/// The moment of a handshake.
pub(crate) fn instant(now: UnixTime) -> Timestamp {
    // A time that does not fit is far in the future: everything has expired then.
    i64::try_from(now.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or(Timestamp::MAX)
}

/// The handshakes of one listener.
#[derive(Clone, Debug)]
pub struct Handshakes {
    under_way: Arc<Mutex<UnderWay>>,
    most: usize,
    most_of_source: usize,
}

#[derive(Debug, Default)]
struct UnderWay {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// One handshake under way; ends when dropped.
#[derive(Debug)]
pub struct Handshake {
    under_way: Arc<Mutex<UnderWay>>,
    source: IpAddr,
}

fn lock(under_way: &Mutex<UnderWay>) -> MutexGuard<'_, UnderWay> {
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handshakes {
    /// At most `most` at a time, at most `most_of_source` of one address.
    pub fn new(most: usize, most_of_source: usize) -> Self {
        Self { under_way: Arc::default(), most, most_of_source }
    }

    /// A place for one more from `source`, or `None`.
    pub fn begin(&self, source: IpAddr) -> Option<Handshake> {
        let source = source.to_canonical();
        let mut under_way = lock(&self.under_way);
        let of_source = under_way.by_source.get(&source).copied().unwrap_or_default();
        if under_way.all >= self.most || of_source >= self.most_of_source {
            return None;
        }
        under_way.all += 1;
        under_way.by_source.insert(source, of_source + 1);
        Some(Handshake { under_way: Arc::clone(&self.under_way), source })
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut under_way = lock(&self.under_way);
        under_way.all -= 1;
        if let Some(count) = under_way.by_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                under_way.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_one_source_nor_all_together_pass_their_bound_and_an_ended_one_makes_room() {
        let handshakes = Handshakes::new(3, 2);
        let [greedy, other]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        let mapped = "::ffff:10.0.0.1".parse().unwrap();
        let mut held = vec![handshakes.begin(greedy).unwrap(), handshakes.begin(mapped).unwrap()];
        assert!(handshakes.begin(greedy).is_none(), "its share is taken");
        held.push(handshakes.begin(other).unwrap());
        assert!(handshakes.begin(other).is_none(), "all places are taken");
        held.remove(0);
        assert!(handshakes.begin(greedy).is_some());
        held.clear();
        assert!(lock(&handshakes.under_way).by_source.is_empty(), "nothing is remembered");
    }
}
