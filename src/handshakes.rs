//! A bound on TLS handshakes under way, in all and of one source: of those beyond it nothing is computed.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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
