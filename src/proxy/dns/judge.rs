//! What the application may be told of a name: the one judgement of the guard, over values.

use std::net::IpAddr;

use domain::base::Rtype;

use super::{
    addresses::{Pair, is_virtual},
    wire::Told,
};
use crate::{
    identity::{DnsName, SpiffeId},
    proxy::routes::Led,
};

/// The families that the pod has addresses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Families {
    /// IPv4.
    pub(super) v4: bool,
    /// IPv6.
    pub(super) v6: bool,
}

impl Families {
    /// Those of `addresses`; both, where there are none.
    pub(super) fn of(addresses: &[IpAddr]) -> Self {
        let (v4, v6) = (addresses.iter().any(IpAddr::is_ipv4), addresses.iter().any(IpAddr::is_ipv6));
        if v4 || v6 { Self { v4, v6 } } else { Self { v4: true, v6: true } }
    }
}

/// Answers for a name that is dialled for the application: its own address, and nothing else of it. One family is enough,
/// and IPv4 is what every application can dial where the pod has it.
pub(super) fn of_virtual(pair: Pair, kind: Rtype, families: Families) -> Vec<IpAddr> {
    match kind {
        Rtype::A | Rtype::ANY if families.v4 => vec![pair.v4.into()],
        Rtype::AAAA | Rtype::ANY if !families.v4 => vec![pair.v6.into()],
        _ => vec![],
    }
}

/// Answers for a declared name that no resolver knows.
pub(super) fn of_declared(led: &Led, kind: Rtype) -> Vec<IpAddr> {
    let fits = |address: &&IpAddr| match kind {
        Rtype::A => address.is_ipv4(),
        Rtype::AAAA => address.is_ipv6(),
        _ => false,
    };
    led.present.iter().filter(fits).copied().collect()
}

/// Whether the type says how to connect (RFC 9460), with hints of addresses that nobody would judge.
pub(super) fn tells_how_to_connect(kind: Rtype) -> bool {
    matches!(kind, Rtype::HTTPS | Rtype::SVCB)
}

/// An answer that must not reach the application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    /// The declared name that it is wrong about.
    pub(super) name: Option<DnsName>,
    /// Whose name that is, where it is one server's.
    pub(super) server: Option<SpiffeId>,
    /// What it told.
    pub(super) address: IpAddr,
}

/// Judges what a resolver `told` of `name`. A declared name leads only to addresses of its own, whatever aliases lie
/// between; an undeclared one to anything but the guard's own addresses, and what it says of declared names by the way
/// must be right as well. `led` says where a name that is declared may lead.
pub(super) fn judge(
    name: Option<&DnsName>,
    told: &[Told],
    led: impl Fn(&DnsName) -> Option<Led>,
) -> Result<(), Mismatch> {
    let asked = name.and_then(|name| Some((name.clone(), led(name)?)));
    for Told { owner, address } in told {
        if is_virtual(*address) {
            return Err(Mismatch { name: name.cloned(), server: None, address: *address });
        }
        let declared = asked.clone().or_else(|| owner.as_ref().and_then(|owner| Some((owner.clone(), led(owner)?))));
        if let Some((name, led)) = declared
            && !led.addresses.contains(address)
        {
            return Err(Mismatch { name: Some(name), server: led.server, address: *address });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> DnsName {
        DnsName::parse(text).unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn server(name: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://contoso.example/ns/sip/server/{name}")).unwrap()
    }

    /// `db` is at 10.0.0.1 and fd00::1, `web` at 10.0.0.2; nothing else is declared.
    fn led(of: &DnsName) -> Option<Led> {
        let (addresses, id): (&[&str], _) = match of.as_str() {
            "db.contoso.example" => (&["10.0.0.1", "fd00::1"], "db"),
            "web.contoso.example" => (&["10.0.0.2"], "web"),
            _ => return None,
        };
        let present: Vec<IpAddr> = addresses.iter().map(|one| address(one)).collect();
        Some(Led { addresses: present.iter().copied().collect(), present, server: Some(server(id)) })
    }

    #[test]
    fn a_declared_name_leads_to_its_servers_addresses_or_nowhere() {
        const DB: &str = "db.contoso.example";
        const WEB: &str = "web.contoso.example";
        const WWW: &str = "www.example";
        // What was asked, what was told of whom, and who is then wronged.
        type Case = (&'static str, &'static [(&'static str, &'static str)], Option<&'static str>);
        let cases: [Case; 12] = [
            (DB, &[(DB, "10.0.0.1")], None),
            (DB, &[(DB, "fd00::1"), (DB, "10.0.0.1")], None),
            (DB, &[], None),
            (DB, &[(DB, "192.0.2.9")], Some("db")),
            (DB, &[(DB, "10.0.0.1"), (DB, "192.0.2.9")], Some("db")),
            (DB, &[(DB, "10.0.0.2")], Some("db")),
            // Through an alias, also one that is declared itself.
            (DB, &[("alias.example", "10.0.0.1")], None),
            (DB, &[(WEB, "10.0.0.1")], None),
            (DB, &[("alias.example", "192.0.2.9")], Some("db")),
            (WWW, &[(WWW, "192.0.2.9"), (WWW, "10.0.0.1")], None),
            (WWW, &[(DB, "10.0.0.1")], None),
            (WWW, &[(WWW, "192.0.2.9"), (DB, "192.0.2.9")], Some("db")),
        ];
        for (asked, told, wronged) in cases {
            let told: Vec<Told> =
                told.iter().map(|(of, at)| Told { owner: Some(name(of)), address: address(at) }).collect();
            let verdict = judge(Some(&name(asked)), &told, led);
            assert_eq!(verdict.err().map(|wrong| wrong.server), wronged.map(|id| Some(server(id))), "{asked} {told:?}");
        }
    }

    #[test]
    fn nobody_else_tells_an_address_of_the_guards_own() {
        for one in ["240.61.7.7", "100::240.61.7.7"] {
            let told = [Told { owner: None, address: address(one) }];
            assert!(judge(None, &told, led).is_err(), "{one}");
            assert!(judge(Some(&name("www.example")), &told, led).is_err(), "{one}");
        }
        assert_eq!(judge(None, &[Told { owner: None, address: address("240.62.7.7") }], led), Ok(()));
    }

    #[test]
    fn a_virtual_name_has_one_address_of_the_family_that_the_pod_has() {
        let pair = Pair { v4: "240.61.0.1".parse().unwrap(), v6: "100::240.61.0.1".parse().unwrap() };
        let check = |kind, v4, v6, expected: &[&str]| {
            let expected: Vec<IpAddr> = expected.iter().map(|one| address(one)).collect();
            assert_eq!(of_virtual(pair, kind, Families { v4, v6 }), expected, "{kind} {v4} {v6}");
        };
        for v6 in [false, true] {
            check(Rtype::A, true, v6, &["240.61.0.1"]);
            check(Rtype::AAAA, true, v6, &[]);
        }
        check(Rtype::A, false, true, &[]);
        check(Rtype::AAAA, false, true, &["100::240.61.0.1"]);
        for kind in [Rtype::MX, Rtype::HTTPS, Rtype::TXT] {
            check(kind, true, true, &[]);
        }
    }
}
