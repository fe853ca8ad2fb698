//! Addresses that somebody else's name must never lead us to: ourselves, the node, the cloud's metadata, the cluster.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;

/// What no partner's address may be, whatever an operator sets: unspecified, loopback, link-local (with the metadata
/// service of most clouds), multicast and broadcast, and the metadata services that are not link-local.
const ALWAYS: [&str; 15] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "192.0.0.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "::/128",
    "::1/128",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "fd00:ec2::/32",
    "fd20:ce::254/128",
];

/// Networks and addresses that are refused.
#[derive(Clone, Debug, Default)]
pub struct Denied {
    networks: Arc<[IpNet]>,
    /// Pods and Services of this cluster.
    known: Arc<HashSet<IpAddr>>,
}

impl Denied {
    /// What is always refused, and `networks` beside it: those of pods, Services and nodes.
    pub fn beside(networks: &[IpNet]) -> Self {
        let always = ALWAYS.iter().filter_map(|text| text.parse().ok());
        Self::only(always.chain(networks.iter().copied()).collect())
    }

    /// `networks` and nothing else.
    pub fn only(networks: Vec<IpNet>) -> Self {
        Self { networks: networks.into(), known: Arc::default() }
    }

    /// The same, with addresses that this cluster has given away.
    #[must_use]
    pub fn with(&self, known: Arc<HashSet<IpAddr>>) -> Self {
        Self { networks: Arc::clone(&self.networks), known }
    }

    /// Whether nobody may be led to `address`, in whichever way it is written.
    pub fn holds(&self, address: IpAddr) -> bool {
        let refused =
            |one: &IpAddr| self.known.contains(one) || self.networks.iter().any(|network| network.contains(one));
        std::iter::once(address).chain(inside(address)).any(|one| refused(&one))
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible, NAT64 (RFC 6052) and 6to4 (RFC 3056).
fn inside(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(address) = address else { return None };
    let octets = address.octets();
    let four = |at: usize| Some(IpAddr::V4(Ipv4Addr::new(octets[at], octets[at + 1], octets[at + 2], octets[at + 3])));
    match octets {
        [0x20, 0x02, ..] => four(2),
        [0, 0x64, 0xff, 0x9b, ..] => four(12),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ..] => four(12),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ..] if address != Ipv6Addr::LOCALHOST => four(12),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_way_to_write_an_address_leads_to_ourselves_the_node_the_metadata_or_the_cluster() {
        let denied = Denied::beside(&["10.96.0.0/12".parse().unwrap()]);
        assert_eq!(denied.networks.len(), ALWAYS.len() + 1, "each of them can be read");
        let denied = denied.with(Arc::new(HashSet::from(["10.244.1.7".parse().unwrap()])));
        for (address, expected) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("0.0.0.0", true),
            ("169.254.169.254", true),
            ("::ffff:169.254.169.254", true),
            ("64:ff9b::a9fe:a9fe", true),
            ("2002:a9fe:a9fe::1", true),
            ("::169.254.169.254", true),
            ("fd00:ec2::254", true),
            ("100.100.100.200", true),
            ("168.63.129.16", true),
            ("::1", true),
            ("::", true),
            ("fe80::1", true),
            ("ff02::1", true),
            ("239.1.1.1", true),
            ("255.255.255.255", true),
            ("10.96.0.1", true),
            ("::ffff:10.96.0.1", true),
            ("10.244.1.7", true),
            ("10.244.1.8", false),
            ("192.0.2.7", false),
            ("2001:db8::7", false),
            ("64:ff9b::c000:207", false),
        ] {
            assert_eq!(denied.holds(address.parse().unwrap()), expected, "{address}");
        }
    }
}
