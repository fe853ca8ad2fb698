//! What handshakes share on both sides: a bound on those under way, in all and of one source, beyond which nothing is
//! computed; and how verifiers check that a peer has the key of the certificate that it shows.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::Notify;

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

/// Handshakes that were displaced and have not ended, above which nobody should be let in.
const MOST_LEAVING: usize = 32;

/// The handshakes of one listener.
#[derive(Clone, Debug)]
pub struct Handshakes {
    under_way: Arc<Mutex<UnderWay>>,
    /// Somebody who was displaced has left.
    left: Arc<Notify>,
    most: usize,
    most_of_source: usize,
}

#[derive(Debug, Default)]
struct UnderWay {
    all: usize,
    by_source: HashMap<IpAddr, VecDeque<Begun>>,
    /// Displaced, and not ended.
    leaving: usize,
    /// How many were begun so far: the number of the next one.
    begun: u64,
}

/// A handshake under way; those of one source stand in the order in which they began.
#[derive(Debug)]
struct Begun {
    number: u64,
    displaced: Arc<Notify>,
}

/// One handshake under way; ends when dropped.
#[derive(Debug)]
pub struct Handshake {
    under_way: Arc<Mutex<UnderWay>>,
    source: IpAddr,
    number: u64,
    displaced: Arc<Notify>,
    left: Arc<Notify>,
}

fn lock(under_way: &Mutex<UnderWay>) -> MutexGuard<'_, UnderWay> {
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

impl UnderWay {
    fn of(&self, source: IpAddr) -> usize {
        self.by_source.get(&source).map_or(0, VecDeque::len)
    }

    fn remove(&mut self, source: IpAddr, number: u64) -> Option<Begun> {
        let of_source = self.by_source.get_mut(&source)?;
        let position = of_source.iter().position(|begun| begun.number == number)?;
        let removed = of_source.remove(position);
        if of_source.is_empty() {
            self.by_source.remove(&source);
        }
        self.all -= 1;
        removed
    }

    /// Ends the oldest handshake of the source that has most, if that has more than `own`.
    fn displace(&mut self, own: usize) -> Option<()> {
        let order = |begun: &VecDeque<Begun>| (begun.len(), std::cmp::Reverse(begun.front().map(|one| one.number)));
        let (&source, begun) = self.by_source.iter().max_by_key(|(_, begun)| order(begun))?;
        let oldest = begun.front().filter(|_| begun.len() > own)?.number;
        self.remove(source, oldest)?.displaced.notify_one();
        self.leaving += 1;
        Some(())
    }
}

impl Handshakes {
    /// At most `most` at a time, at most `most_of_source` of one address.
    pub fn new(most: usize, most_of_source: usize) -> Self {
        Self { under_way: Arc::default(), left: Arc::default(), most, most_of_source }
    }

    /// A place for one more from `source`, or `None`.
    pub fn begin(&self, source: IpAddr) -> Option<Handshake> {
        self.enter(source, |_, _| None)
    }

    /// The same; where all places are taken, the oldest handshake of the source that has most of them, and more than
    /// `source` has, is [displaced](Handshake::displaced): whoever says nothing keeps nobody out.
    pub fn begin_before(&self, source: IpAddr) -> Option<Handshake> {
        self.enter(source, UnderWay::displace)
    }

    fn enter(&self, source: IpAddr, full: impl FnOnce(&mut UnderWay, usize) -> Option<()>) -> Option<Handshake> {
        let source = source.to_canonical();
        let mut under_way = lock(&self.under_way);
        let own = under_way.of(source);
        if own >= self.most_of_source {
            return None;
        }
        if under_way.all >= self.most {
            full(&mut under_way, own)?;
        }
        let (number, displaced) = (under_way.begun, Arc::<Notify>::default());
        under_way.begun += 1;
        under_way.all += 1;
        under_way.by_source.entry(source).or_default().push_back(Begun { number, displaced: displaced.clone() });
        let (under_way, left) = (Arc::clone(&self.under_way), Arc::clone(&self.left));
        Some(Handshake { under_way, source, number, displaced, left })
    }

    /// Waits until those that were displaced have left, but for a few: whoever accepts faster than others end would hold
    /// more than `most`.
    pub async fn settled(&self) {
        loop {
            let mut left = pin!(self.left.notified());
            left.as_mut().enable();
            if lock(&self.under_way).leaving <= MOST_LEAVING {
                return;
            }
            left.await;
        }
    }
}

impl Handshake {
    /// Waits until another one needs its place.
    pub async fn displaced(&self) {
        self.displaced.notified().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut under_way = lock(&self.under_way);
        if under_way.remove(self.source, self.number).is_none() {
            under_way.leaving -= 1;
            self.left.notify_waiters();
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

    #[test]
    fn where_all_places_are_taken_the_oldest_of_whoever_has_most_makes_room_for_who_has_fewer() {
        use futures::FutureExt;
        let handshakes = Handshakes::new(5, 3);
        let [greedy, modest, other]: [IpAddr; 3] =
            ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|text| text.parse().unwrap());
        let begun = [modest, greedy, greedy, greedy, modest].map(|source| handshakes.begin_before(source).unwrap());
        let displaced = || [0, 1, 2, 3, 4].map(|number: usize| begun[number].displaced().now_or_never().is_some());
        assert!(handshakes.begin(other).is_none(), "who may displace nobody finds no place");
        assert!(handshakes.begin_before(greedy).is_none(), "its share is taken");
        assert_eq!(displaced(), [false; 5]);
        let first = handshakes.begin_before(other).unwrap();
        assert_eq!(displaced(), [false, true, false, false, false], "the oldest of three");
        // Two each of two sources: the one that began first of all.
        let second = handshakes.begin_before(other).unwrap();
        assert_eq!(displaced(), [true, false, false, false, false]);
        assert!(handshakes.begin_before(greedy).is_none(), "nobody has more than it has");
        assert_eq!(lock(&handshakes.under_way).all, 5);
        drop((begun, first, second));
        let left = lock(&handshakes.under_way);
        assert!(left.all == 0 && left.leaving == 0 && left.by_source.is_empty(), "nothing is remembered");
    }

    #[test]
    fn nobody_is_let_in_while_many_of_the_displaced_have_not_left() {
        use futures::FutureExt;
        let handshakes = Handshakes::new(100, 100);
        let [greedy, other]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        let mut stalled: VecDeque<_> = (0..100).map(|_| handshakes.begin_before(greedy).unwrap()).collect();
        let _displacing: Vec<_> = (0..=MOST_LEAVING).map(|_| handshakes.begin_before(other).unwrap()).collect();
        let mut settled = Box::pin(handshakes.settled());
        assert!(settled.as_mut().now_or_never().is_none());
        drop(stalled.pop_back());
        assert!(settled.as_mut().now_or_never().is_none(), "that one was not displaced");
        drop(stalled.pop_front());
        assert!(settled.now_or_never().is_some());
    }
}
