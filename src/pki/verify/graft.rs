//! Name constraints that we put on a partner's root (RFC 5280 §4.2.1.10): its DNS names, no address, and no URI unless it
//! has a SPIFFE trust domain, since webpki knows no constraint on URIs but to refuse them all.
//!
//! They hold along the whole path, so also for what an authority below the root signs. They say nothing of a leaf
//! without names, so `partner` judges those as well.

use rustls_pki_types::Der;

use crate::identity::DnsName;

const SEQUENCE: u8 = 0x30;
const PERMITTED: u8 = 0xa0;
const EXCLUDED: u8 = 0xa1;
const DNS_NAME: u8 = 0x82;
const URI: u8 = 0x86;
const IP_ADDRESS: u8 = 0x87;

/// The contents of a NameConstraints extension without its outer SEQUENCE, as `TrustAnchor` wants them: names within
/// `domains`, no addresses, and URIs only where `uris` says so.
pub(super) fn constraints(domains: &[DnsName], uris: bool) -> Der<'static> {
    [permitted(domains), excluded(uris)].concat().into()
}

fn permitted(domains: &[DnsName]) -> Vec<u8> {
    let names: Vec<u8> = domains.iter().flat_map(|domain| subtree(DNS_NAME, domain.as_str().as_bytes())).collect();
    tagged(PERMITTED, &names)
}

fn excluded(uris: bool) -> Vec<u8> {
    // Address and mask, all zero: every address of its family.
    let mut trees = [subtree(IP_ADDRESS, &[0; 8]), subtree(IP_ADDRESS, &[0; 32])].concat();
    if !uris {
        // An empty URI: webpki refuses every URI then.
        trees.extend(subtree(URI, &[]));
    }
    tagged(EXCLUDED, &trees)
}

fn subtree(kind: u8, base: &[u8]) -> Vec<u8> {
    tagged(SEQUENCE, &tagged(kind, base))
}

/// One DER value (X.690 §8.1.3, §10.1).
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut value = vec![tag];
    match significant {
        [] => value.push(0),
        [short] if *short < 0x80 => value.push(*short),
        // At most eight bytes of length.
        long => {
            value.push(0x80 | u8::try_from(long.len()).unwrap_or_default());
            value.extend(long);
        }
    }
    value.extend(content);
    value
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::SanType;
    use rustls_pki_types::UnixTime;
    use webpki::{EndEntityCert, KeyUsage};

    use super::*;
    use crate::pki::{
        self,
        verify::{
            algorithms,
            scopes::tests::{Authority, dns, ip, now, uri},
        },
    };

    #[test]
    fn lengths_are_written_in_the_shortest_form() {
        assert_eq!(tagged(4, &[]), [4, 0]);
        assert_eq!(tagged(4, &[7; 127])[..3], [4, 127, 7]);
        assert_eq!(tagged(4, &[7; 128])[..4], [4, 0x81, 128, 7]);
        assert_eq!(tagged(4, &[7; 300])[..5], [4, 0x82, 1, 44, 7]);
    }

    /// Whether a path is found under a bare root, under one with permitted names, under one with the graft of a partner
    /// with a SPIFFE trust domain, under one with the whole graft.
    #[test]
    fn each_part_of_the_graft_refuses_what_the_parts_before_it_let_through() {
        let (authority, domains) = (Authority::new("fabrikam"), [DnsName::parse("fabrikam.example").unwrap()]);
        let root = pki::certificate(&authority.pem).unwrap();
        let built = |names: &[SanType], graft: Option<Vec<u8>>| {
            let chain = authority.leaf(|params| {
                params.distinguished_name.push(rcgen::DnType::CommonName, "fe.sip.contoso.example");
                params.subject_alt_names = names.to_vec();
            });
            let mut anchor = webpki::anchor_from_trusted_cert(&root).unwrap();
            anchor.name_constraints = graft.map(Der::from);
            let time = UnixTime::since_unix_epoch(Duration::from_secs(now().as_second().unsigned_abs()));
            let leaf = EndEntityCert::try_from(&chain[0]).unwrap();
            let usage = KeyUsage::client_auth();
            leaf.verify_for_usage(algorithms().all, &[anchor], &[], time, usage, None, None).is_ok()
        };
        let ours = || uri("spiffe://contoso.example/ns/sip/server/fe");
        let address = || ip([10, 0, 0, 1]);
        for (names, expected) in [
            (vec![dns("sip.fabrikam.example")], [true, true, true, true]),
            (vec![dns("fe.sip.contoso.example")], [true, false, false, false]),
            (vec![ours()], [true, true, true, false]),
            (vec![dns("sip.fabrikam.example"), ours()], [true, true, true, false]),
            (vec![address()], [true, true, false, false]),
            (vec![dns("sip.fabrikam.example"), address()], [true, true, false, false]),
            (vec![], [true, true, true, true]),
        ] {
            let grafts = [true, false].map(|uris| Some(constraints(&domains, uris).to_vec()));
            let [spiffe, whole] = grafts;
            let found = [None, Some(permitted(&domains)), spiffe, whole].map(|graft| built(&names, graft));
            assert_eq!(found, expected, "{names:?}");
        }
    }
}
