//! What becomes of a record, whatever a source says.

use serde_json::json;

use super::*;
use crate::pki::{
    lists::tests::{NOW, Signer},
    roots::tests::{authority, leaf},
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(NOW + second).unwrap()
}

fn partner(uid: &str, trust: &serde_json::Value) -> FederationPartner {
    serde_json::from_value(json!({
        "apiVersion": "entente.dev/v1alpha1", "kind": "FederationPartner",
        "metadata": {"name": "fabrikam", "namespace": "edge", "uid": uid},
        "spec": {"domains": ["fabrikam.example"], "trust": trust},
    }))
    .unwrap()
}

fn map(name: &str) -> serde_json::Value {
    json!({"configMapRef": {"name": name, "key": "ca.crt"}})
}

fn root(name: &str) -> String {
    Bundle::of([authority(name, 0, NOW + 9_000).as_str()]).render()
}

fn bundle(pems: &[&str], sequence: Option<u64>, hint: Option<u64>) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine};
    let one = |pem: &&str| json!({"use": "x509-svid", "x5c": [BASE64_STANDARD.encode(pki::certificate(pem).unwrap())]});
    let keys: Vec<_> = pems.iter().map(one).collect();
    json!({"keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": hint}).to_string()
}

fn ours() -> BTreeSet<String> {
    BTreeSet::new()
}

#[test]
fn neither_another_object_nor_another_source_inherits_a_record() {
    let object = partner("u1", &map("roots"));
    let kept = Kept::of(&object);
    assert!(kept.is_of(&object));
    assert!(!kept.is_of(&partner("u2", &map("roots"))) && !kept.is_of(&partner("u1", &map("others"))));
    let written = Kept::of(&partner("u1", &json!({"caBundle": "one"})));
    assert!(written.is_of(&partner("u1", &json!({"caBundle": "two"}))), "what stands in the spec is one source");
    assert!(!written.is_of(&object));
}

#[test]
fn roots_stay_whatever_a_source_says_until_it_gives_others() {
    let (one, two) = (root("one"), root("two"));
    let mut kept = Kept::of(&partner("u1", &map("roots")));
    for nothing in ["", "nonsense", leaf("www.fabrikam.example").as_str()] {
        kept.take_text(Ok(nothing), &ours(), at(0));
        assert_eq!((kept.pem.as_str(), kept.fetched), ("", 0));
        assert_eq!(kept.failure.as_ref().unwrap().kind, FailureKind::FetchFailed, "{nothing:?}");
    }
    kept.take_text(Ok(&one), &ours(), at(1));
    let good = kept.clone();
    assert_eq!((good.pem.as_str(), good.fetched, &good.failure), (one.as_str(), NOW + 1, &None));
    kept.take_text(Ok(&one), &ours(), at(11));
    assert_eq!(kept, good, "what is as it was is not written again");
    kept.take_text(Ok(&one), &ours(), at(1 + i64::from(REFRESH)));
    assert_eq!(kept.fetched, NOW + 1 + i64::from(REFRESH), "but now and then, so that it is known to be fresh");
    let its_key = BTreeSet::from([kept.roots(&ours())[0].key.clone()]);
    for said in [Ok(""), Ok("nonsense"), Err(Failure::fetch("it is gone"))] {
        kept.take_text(said, &ours(), at(400));
        assert_eq!((kept.pem.as_str(), kept.failure.is_some()), (one.as_str(), true));
    }
    kept.take_text(Ok(&one), &its_key, at(400));
    assert!(kept.failure.as_ref().unwrap().message.contains("authority of ours"));
    kept.take_text(Ok(&format!("{two}{}", leaf("x.example"))), &ours(), at(401));
    assert_eq!((kept.roots(&ours()).len(), &kept.failure), (1, &None), "one that can be used replaces");
    assert!(kept.roots(&ours())[0].subject.contains("two"));
}

#[test]
fn a_bundle_never_goes_back_and_an_empty_one_changes_nothing() {
    let (one, two) = (root("one"), root("two"));
    let mut kept = Kept::of(&partner("u1", &map("roots")));
    let unfit = leaf("x.example");
    let mut take = |json: String, second: i64| {
        kept.take_bundle(Ok(json.as_bytes()), &ours(), at(second));
        (kept.sequence, kept.failure.as_ref().map(|failure| failure.kind), kept.pem.clone(), kept.refresh)
    };
    let empty = Some(FailureKind::EmptyBundle);
    let back = Some(FailureKind::SequenceWentBack);
    assert_eq!(take(bundle(&[&one], Some(7), Some(10)), 0), (Some(7), None, one.clone(), 60));
    assert_eq!(take(bundle(&[&two], Some(6), None), 1), (Some(7), back, one.clone(), 60));
    assert_eq!(take(bundle(&[&two], None, None), 2), (Some(7), back, one.clone(), 60));
    assert_eq!(take(bundle(&[], Some(8), None), 3), (Some(7), empty, one.clone(), 60));
    assert_eq!(take(bundle(&[&unfit], Some(8), None), 4), (Some(7), empty, one.clone(), 60));
    assert_eq!(take("nonsense".to_owned(), 5), (Some(7), Some(FailureKind::FetchFailed), one.clone(), 60));
    assert_eq!(take(bundle(&[&one], Some(7), Some(10)), 6), (Some(7), None, one, 60), "the same once more");
    assert_eq!(take(bundle(&[&two], Some(8), Some(999_999)), 7), (Some(8), None, two, 86_400));
}

#[test]
fn a_first_bundle_counts_at_once_and_another_one_begins_anew() {
    let (one, two) = (root("one"), root("two"));
    let mut kept = Kept::of(&partner("u1", &map("roots")));
    kept.take_bootstrap("nonsense", &ours(), at(0));
    assert!(kept.pem.is_empty() && kept.failure.is_some());
    kept.take_bootstrap(&one, &ours(), at(1));
    assert_eq!((kept.pem.as_str(), kept.sequence, &kept.failure), (one.as_str(), None, &None));
    kept.take_bundle(Ok(bundle(&[&two], Some(9), None).as_bytes()), &ours(), at(2));
    kept.take_bootstrap(&one, &ours(), at(3));
    assert_eq!((kept.pem.as_str(), kept.sequence), (two.as_str(), Some(9)), "read already");
    kept.take_bootstrap(&bundle(&[&one], Some(3), None), &ours(), at(4));
    assert_eq!((kept.pem.as_str(), kept.sequence), (one.as_str(), Some(3)), "got by another way, so it may go back");
}

#[test]
fn lists_stay_and_are_replaced_one_by_one() {
    let (a, b) = (Signer::new("a"), Signer::new("b"));
    let roots = [a.root(), b.root()];
    let mut kept = Kept::of(&partner("u1", &map("roots")));
    let pem = |ders: &[Vec<u8>]| ders.iter().map(|der| pki::bundle::labelled("X509 CRL", der)).collect::<String>();
    let both = pem(&[a.list(2, &[7]), b.list(5, &[8, 9])]);
    kept.take_lists("url", Ok(both.as_bytes()), &roots, at(0));
    assert_eq!((kept.lists.len(), kept.list_failures.len()), (2, 0));
    assert_eq!(kept.lists[&a.root().key_id].list.serials, ["07"]);
    let stranger = Signer::new("stranger").list(9, &[]);
    for (said, expected) in [
        (pem(&[a.list(1, &[])]), FailureKind::WentBack),
        ("nonsense".to_owned(), FailureKind::Unparsable),
        (pem(&[stranger]), FailureKind::BadSignature),
        (pem(&[b.list(6, &(0..=20_000).collect::<Vec<_>>())]), FailureKind::TooMany),
        (pem(&[b.list(6, &(10_000..30_000).collect::<Vec<_>>())]), FailureKind::TooMany),
    ] {
        kept.take_lists("url", Ok(said.as_bytes()), &roots, at(1));
        assert_eq!(kept.list_failures["url"].kind, expected);
        assert_eq!(kept.lists[&a.root().key_id].list.counted(), Some(2));
        assert_eq!(kept.lists[&b.root().key_id].list.counted(), Some(5));
    }
    kept.take_lists("url", Ok(&a.list(3, &[])), &roots, at(2));
    assert!(kept.lists[&a.root().key_id].list.serials.is_empty() && kept.list_failures.is_empty());
    kept.take_lists("url", Err(Failure::fetch("down")), &roots, at(3));
    assert_eq!((kept.lists.len(), kept.list_failures.len()), (2, 1));
    kept.retain_lists(&PartnerRevocation::default());
    assert!(kept.lists.is_empty() && kept.list_failures.is_empty());
}

#[test]
fn the_largest_record_fits_into_an_object() {
    let serials = vec!["f".repeat(40); MAX_SERIALS];
    let list = List { number: None, this_update: 0, next_update: 0, serials, pem: String::new() };
    let mut kept = Kept { pem: "x".repeat(65_536), ..Kept::default() };
    kept.lists.insert("a".to_owned(), KeptList { source: "s".repeat(1_024), list });
    assert!(serde_json::to_string(&kept).unwrap().len() < 1_000_000);
}

#[test]
fn a_source_is_asked_later_and_later_and_never_later_than_it_says() {
    for (failures, refresh, dice, expected) in [
        (0, 300, 0.0, 270),
        (0, 300, 1.0, 300),
        (1, 300, 1.0, 10),
        (1, 300, 0.0, 5),
        (2, 300, 1.0, 20),
        (6, 300, 1.0, 300),
        (u32::MAX, 300, 0.0, 150),
        (0, 86_400, 1.0, 86_400),
    ] {
        assert_eq!(pause(failures, refresh, dice), expected, "{failures} {refresh} {dice}");
    }
}
