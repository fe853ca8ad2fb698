//! Virtual addresses: one for each name that the sidecar looks up and dials itself. They are routed nowhere; the
//! interception rules bring a dial of one to the sidecar, which thereby learns the name.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use sha2::{Digest, Sha256};

use crate::identity::DnsName;

/// Names that have an address at the same time.
const MOST: usize = 512;
/// Addresses that are held, those at rest included.
const MOST_KEPT: usize = 4 * MOST;
/// An address is given to no other name so long after its own has left.
const REST: Duration = Duration::from_secs(3600);
/// 240.61.0.0/16, of the range that is reserved and routed nowhere (RFC 1112 §4).
const V4: [u8; 2] = [240, 61];
/// 100::/64 is the discard prefix (RFC 6666); the IPv4 form stands at its end.
const V6: [u16; 6] = [0x100, 0, 0, 0, 0, 0];

/// Whether `address` is in the ranges of the guard's own addresses, which nothing real ever has.
pub(in crate::proxy) fn is_virtual(address: IpAddr) -> bool {
    slot(address).is_some()
}

fn slot(address: IpAddr) -> Option<u16> {
    let octets = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let [head @ .., high, low] = address.segments();
            if head != V6 {
                return None;
            }
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            [a, b, c, d]
        }
    };
    let [a, b, c, d] = octets;
    ([a, b] == V4).then(|| u16::from_be_bytes([c, d]))
}

fn v4(slot: u16) -> Ipv4Addr {
    let ([a, b], [c, d]) = (V4, slot.to_be_bytes());
    Ipv4Addr::new(a, b, c, d)
}

/// The addresses of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    /// For `A`.
    pub(super) v4: Ipv4Addr,
    /// For `AAAA`.
    pub(super) v6: Ipv6Addr,
}

#[derive(Debug)]
struct Held {
    name: DnsName,
    /// Since when the name is not wanted any more.
    left: Option<Duration>,
}

/// Which name holds which address.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    slots: BTreeMap<u16, Held>,
    of: BTreeMap<DnsName, u16>,
}

impl Addresses {
    /// From `now` (since the sidecar began) on exactly `names` are wanted. Answers how many found no place.
    pub(super) fn follow(&mut self, names: &BTreeSet<&DnsName>, now: Duration) -> usize {
        for held in self.slots.values_mut() {
            let wanted = names.contains(&held.name);
            held.left = if wanted { None } else { held.left.or(Some(now)) };
        }
        self.slots.retain(|_, held| held.left.is_none_or(|left| now.saturating_sub(left) < REST));
        self.of.retain(|name, slot| self.slots.get(slot).is_some_and(|held| held.name == *name));
        let mut held = self.slots.values().filter(|held| held.left.is_none()).count();
        let mut left_out = 0;
        for name in names {
            if self.of.contains_key(*name) {
                continue;
            }
            let has_room = held < MOST && self.slots.len() < MOST_KEPT;
            let free = if has_room { self.free(name) } else { None };
            let Some(slot) = free else {
                left_out += 1;
                continue;
            };
            held += 1;
            self.slots.insert(slot, Held { name: (*name).clone(), left: None });
            self.of.insert((*name).clone(), slot);
        }
        left_out
    }

    /// The first free place from where the name's hash points: a sidecar that begins anew finds the same ones.
    fn free(&self, name: &DnsName) -> Option<u16> {
        let hash = Sha256::digest(name.as_str().as_bytes());
        let first = u16::from_be_bytes([hash[0], hash[1]]);
        (0..=u16::MAX).map(|step| first.wrapping_add(step)).find(|slot| !self.slots.contains_key(slot))
    }

    /// The name behind `address`.
    pub(super) fn named(&self, address: IpAddr) -> Option<&DnsName> {
        Some(&self.slots.get(&slot(address)?)?.name)
    }

    /// The addresses of `name`, where it is wanted.
    pub(super) fn of(&self, name: &DnsName) -> Option<Pair> {
        let slot = *self.of.get(name)?;
        self.slots.get(&slot)?.left.is_none().then(|| {
            let [a, b, c, d] = v4(slot).octets();
            let [one, two, three, four, five, six] = V6;
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            Pair { v4: v4(slot), v6: Ipv6Addr::new(one, two, three, four, five, six, high, low) }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(number: usize) -> DnsName {
        DnsName::parse(&format!("host-{number}.partner.example")).unwrap()
    }

    fn pick(numbers: &[usize]) -> BTreeSet<DnsName> {
        numbers.iter().map(|number| name(*number)).collect()
    }

    fn follow(addresses: &mut Addresses, names: &BTreeSet<DnsName>, second: u64) -> usize {
        addresses.follow(&names.iter().collect(), Duration::from_secs(second))
    }

    #[test]
    fn a_restarted_sidecar_gives_the_same_addresses_and_knows_the_names_behind_them() {
        let names = pick(&(0..MOST).collect::<Vec<_>>());
        let (mut one, mut two) = (Addresses::default(), Addresses::default());
        assert_eq!((follow(&mut one, &names, 0), follow(&mut two, &names, 99)), (0, 0));
        let mut seen = BTreeSet::new();
        for name in &names {
            let pair = one.of(name).unwrap();
            assert_eq!(Some(pair), two.of(name));
            for address in [IpAddr::from(pair.v4), pair.v6.into()] {
                assert!(is_virtual(address) && seen.insert(address), "{address}");
                assert_eq!(one.named(address), Some(name));
            }
        }
        assert!(!is_virtual("240.62.0.1".parse().unwrap()) && !is_virtual("100::f03e:1".parse().unwrap()));
    }

    #[test]
    fn what_is_beyond_the_bound_gets_no_address() {
        let mut addresses = Addresses::default();
        assert_eq!(follow(&mut addresses, &pick(&(0..MOST + 3).collect::<Vec<_>>()), 0), 3);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_name_keeps_its_address_and_nobody_else_gets_it_within_an_hour(
            steps in prop::collection::vec((prop::collection::btree_set(0usize..40, 0..20), 1u64..3000), 1..20),
        ) {
            let mut addresses = Addresses::default();
            let mut last: BTreeMap<Ipv4Addr, (DnsName, u64)> = BTreeMap::new();
            let mut before: BTreeMap<DnsName, Ipv4Addr> = BTreeMap::new();
            let mut now = 0;
            for (numbers, pause) in steps {
                let names = pick(&numbers.into_iter().collect::<Vec<_>>());
                follow(&mut addresses, &names, now);
                let mut current = BTreeMap::new();
                for name in &names {
                    let address = addresses.of(name).unwrap().v4;
                    if let Some(kept) = before.get(name) {
                        prop_assert_eq!(*kept, address);
                    }
                    if let Some((other, left)) = last.get(&address) {
                        prop_assert!(other == name || now - left >= REST.as_secs(), "{}", address);
                    }
                    current.insert(name.clone(), address);
                }
                // It leaves, at the earliest, when the next names are followed.
                now += pause;
                for (name, address) in &current {
                    last.insert(*address, (name.clone(), now));
                }
                before = current;
            }
        }
    }
}
