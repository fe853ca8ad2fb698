//! OpenSSL as a relying party: whoever reads `ca.crt` and `crl.pem` and knows nothing of us.

use std::collections::BTreeSet;

use entente::{
    pki::{
        authority::Authority,
        crl::{Reason, Revoked, Window},
        register::Register,
    },
    telemetry,
};
use jiff::{SignedDuration, Timestamp};

use crate::{
    made::{self, every_reason, leaf, listed, pod, register, roots, rotate, serial, window},
    tools::{Folder, verify},
};

/// OpenSSL's answer to a chain of ours, by what a register publishes.
fn judge(register: &Register, chain: &[String], now: Timestamp) -> Result<(), String> {
    verify(&Folder::new(), &chain[0], &chain[1..], &roots(register, now), register.crl_pem())
}

#[track_caller]
fn refused(answer: Result<(), String>, why: &str) {
    let said = answer.unwrap_err();
    assert!(said.contains(why), "{why:?} is not in: {said}");
}

#[test]
fn openssl_believes_every_leaf_and_refuses_the_revoked_the_expired_and_the_stranger() {
    let now = telemetry::now();
    let mut register = register(now);
    let signing = register.load(now).unwrap().active;
    let [taken, kept] = [serial(), serial()];
    let revoked = leaf(&signing, pod(), taken, now);
    assert_eq!(judge(&register, &revoked, now), Ok(()), "before it is revoked");
    let mut entries = every_reason(now);
    entries.insert(Revoked { serial: taken, at: now, reason: Reason::PodGone });
    register.publish(&listed(signing.key_id(), entries), window(now), now).unwrap();

    for (holder, names) in made::holders() {
        assert_eq!(judge(&register, &leaf(&signing, names, serial(), now), now), Ok(()), "{holder}");
    }
    refused(judge(&register, &revoked, now), "certificate revoked");
    let long_ago = now - SignedDuration::from_hours(3);
    refused(judge(&register, &leaf(&signing, pod(), kept, long_ago), now), "certificate has expired");
    let stranger = made::register(now).load(now).unwrap().active;
    refused(judge(&register, &leaf(&stranger, pod(), kept, now), now), "unable to get local issuer certificate");
}

#[test]
fn without_the_lists_or_with_old_ones_openssl_refuses() {
    let now = telemetry::now();
    let mut register = register(now);
    let signing = register.load(now).unwrap().active;
    let chain = leaf(&signing, pod(), serial(), now);
    let lists = made::lists(register.crl_pem());
    let none_of_the_issuer = verify(&Folder::new(), &chain[0], &chain[1..], &roots(&register, now), &lists[1]);
    refused(none_of_the_issuer, "unable to get certificate CRL");
    let none_of_the_root = verify(&Folder::new(), &chain[0], &chain[1..], &roots(&register, now), &lists[0]);
    refused(none_of_the_root, "unable to get certificate CRL");
    let ago = |hours| now - SignedDuration::from_hours(hours);
    let old = Window { number: 1, this_update: ago(3), next_update: ago(1) };
    register.publish(&listed(signing.key_id(), BTreeSet::new()), old, now).unwrap();
    refused(judge(&register, &chain, now), "CRL has expired");
}

#[test]
fn while_a_root_is_rotated_leaves_of_old_and_new_verify_and_both_can_be_revoked() {
    let now = telemetry::now();
    let mut register = register(now);
    let old = register.load(now).unwrap().active;
    let new_key = rotate(&mut register, now);
    register.publish(&listed(old.key_id(), BTreeSet::new()), window(now), now).unwrap();
    let new = register.load(now).unwrap().active;
    assert_eq!(new.key_id(), new_key);
    assert_eq!(roots(&register, now).matches("BEGIN CERTIFICATE").count(), 2);
    assert_eq!(made::lists(register.crl_pem()).len(), 4);

    let signed_by = |authority: &Authority| [serial(), serial()].map(|one| (one, leaf(authority, pod(), one, now)));
    for authority in [&old, &new] {
        let [(_, kept), (taken, revoked)] = signed_by(authority);
        assert_eq!(judge(&register, &revoked, now), Ok(()));
        let entry = Revoked { serial: taken, at: now, reason: Reason::KeyCompromise };
        register.publish(&listed(authority.key_id(), BTreeSet::from([entry])), window(now), now).unwrap();
        assert_eq!(judge(&register, &kept, now), Ok(()));
        refused(judge(&register, &revoked, now), "certificate revoked");
    }
}
