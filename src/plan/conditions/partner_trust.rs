//! What a partner's status says of the sources of its trust: how fresh its roots and its revocation lists are.

use jiff::Timestamp;

use crate::{
    api::{
        BundleStatus, FederationPartner, PartnerCrlStatus,
        conditions::{State, seconds},
    },
    brief::OnStale,
    topology::{
        Partner,
        kept::{Failure, FailureKind, Kept, KeptSeen, publishes},
    },
};

/// A bundle is fresh for so many times its refresh hint.
const HINTS: i64 = 3;

/// What is known of where a partner's trust comes from.
pub(super) struct Sources<'a> {
    object: &'a FederationPartner,
    kept: Option<&'a Kept>,
}

impl<'a> Sources<'a> {
    pub(super) fn of(object: &'a FederationPartner, held: Option<&'a KeptSeen>) -> Self {
        let record = held.and_then(|held| held.record.as_deref());
        Self { object, kept: record.filter(|kept| kept.is_of(object)) }
    }

    /// Where the roots come from, for the printed column.
    pub(super) const fn word(&self) -> &'static str {
        let trust = &self.object.spec.trust;
        if trust.config_map_ref.is_some() {
            "ConfigMap"
        } else if trust.spiffe_endpoint.is_some() {
            "SPIFFE"
        } else if trust.public_ca.is_some() {
            "PublicCA"
        } else {
            "Static"
        }
    }

    /// What the source said last, where there is one that is asked.
    pub(super) fn bundle(&self) -> Option<BundleStatus> {
        let trust = &self.object.spec.trust;
        let asked = trust.config_map_ref.is_some()
            || trust.spiffe_endpoint.is_some()
            || publishes(&self.object.spec.revocation);
        let kept = self.kept.filter(|_| asked)?;
        let at = |second: i64| Timestamp::from_second(second).ok().filter(|_| second > 0).map(seconds);
        let failed = kept.failure.as_ref().or_else(|| kept.list_failures.values().next());
        // After a failure it is asked again sooner than it said.
        let next = at(kept.fetched.saturating_add(i64::from(kept.refresh)));
        Some(BundleStatus {
            sequence: kept.sequence.and_then(|number| i64::try_from(number).ok()),
            last_fetch_time: at(kept.fetched),
            next_fetch_time: next.filter(|_| trust.spiffe_endpoint.is_some() && failed.is_none()),
            last_error: failed.map(said).unwrap_or_default(),
        })
    }

    /// Whether the roots are what the source says now.
    pub(super) fn fresh(&self, now: Timestamp) -> State {
        const KIND: &str = "TrustFresh";
        let trust = &self.object.spec.trust;
        if trust.public_ca.is_some() {
            return State::good(KIND, "PublicCA", "the roots of the web PKI come with this version of the operator");
        }
        let Some(kept) = self.kept else {
            return match trust.ca_bundle {
                Some(_) => State::good(KIND, "Static", "the roots stand in caBundle"),
                None => State::unknown(KIND, "NotAsked", "the source has not been asked yet"),
            };
        };
        if kept.fetched == 0 && kept.failure.is_none() {
            return State::unknown(KIND, "NotAsked", "the source has not answered yet");
        }
        let stays = if kept.pem.is_empty() { "there was no good one yet" } else { "the last good roots stay" };
        match (&kept.failure, &trust.spiffe_endpoint) {
            (Some(failure), None) => State::bad(KIND, failure.kind.word(), format!("{}; {stays}", failure.message)),
            (failure, Some(_)) if stale(kept, now) => {
                let (reason, why) = match failure {
                    Some(Failure { kind, message }) => (kind.word(), message.as_str()),
                    None => ("FetchFailed", "no answer lately"),
                };
                State::bad(KIND, reason, format!("{why}; {stays}"))
            }
            (Some(failure), Some(_)) => State::good(
                KIND,
                "Fetched",
                format!("the last good bundle is recent. The last attempt: {}", said(failure)),
            ),
            (None, Some(_)) => State::good(KIND, "Fetched", "the bundle endpoint gave the roots lately"),
            (None, None) => State::good(KIND, "Static", format!("the roots stand in {}", place(self.object))),
        }
    }

    /// Whether it is known what the partner took back.
    pub(super) fn revocation(&self, partner: Option<&Partner>, now: Timestamp) -> State {
        const KIND: &str = "RevocationFresh";
        if !publishes(&self.object.spec.revocation) {
            let message = "the partner publishes no revocation list: what its roots vouch for counts until it ends";
            return State::good(KIND, "NotPublished", message);
        }
        let Some(partner) = partner else { return State::unknown(KIND, "NotAccepted", "the partner is not accepted") };
        let failures = || self.kept.iter().flat_map(|kept| &kept.list_failures);
        let told = |(source, failure): (&String, &Failure)| format!("{source}: {}", failure.message);
        let wrong = [FailureKind::BadSignature, FailureKind::Unparsable, FailureKind::TooMany];
        if let Some(found) = failures().find(|(_, failure)| wrong.contains(&failure.kind)) {
            return State::bad(KIND, found.1.kind.word(), told(found));
        }
        let lists = partner.revocation.as_ref();
        let ended = lists.and_then(|lists| lists.next_updates.iter().find(|(_, end)| **end < now.as_second()));
        let becomes = match lists.map(|lists| lists.on_stale) {
            Some(OnStale::Deny) => "new connections that rest on it are refused",
            Some(OnStale::Allow) | None => "what was known last counts, since onStale is Allow",
        };
        let last = failures().next().map(|found| format!(". The last attempt: {}", told(found))).unwrap_or_default();
        if let Some((issuer, _)) = ended {
            return State::bad(KIND, "Stale", format!("the list of issuer {issuer} has ended; {becomes}{last}"));
        }
        match lists.map_or(0, |lists| lists.serials.len()) {
            0 => State::bad(KIND, "Stale", format!("there is no list yet; {becomes}{last}")),
            number => {
                State::good(KIND, "Fresh", format!("{number} lists of the partner's authorities are in force{last}"))
            }
        }
    }
}

/// What a partner's lists say together.
pub(super) fn lists(partner: &Partner) -> Option<PartnerCrlStatus> {
    let lists = partner.revocation.as_ref().filter(|lists| !lists.serials.is_empty())?;
    let at = |second: i64| Timestamp::from_second(second).ok().map(seconds);
    let entries: usize = lists.serials.values().map(Vec::len).sum();
    Some(PartnerCrlStatus {
        number: i64::try_from(lists.number).ok(),
        this_update: at(lists.this_update),
        next_update: at(lists.next_update),
        entries: i32::try_from(entries).unwrap_or(i32::MAX),
    })
}

/// When the condition changes by time alone.
pub(super) fn turns_stale(object: &FederationPartner, kept: &Kept) -> Option<Timestamp> {
    object.spec.trust.spiffe_endpoint.as_ref()?;
    let end = kept.fetched.saturating_add(HINTS * i64::from(kept.refresh) + 1);
    Timestamp::from_second(end).ok()
}

fn stale(kept: &Kept, now: Timestamp) -> bool {
    kept.fetched == 0 || now.as_second() - kept.fetched > HINTS * i64::from(kept.refresh)
}

fn said(failure: &Failure) -> String {
    format!("{}: {}", failure.kind.word(), failure.message)
}

fn place(object: &FederationPartner) -> String {
    match &object.spec.trust.config_map_ref {
        Some(wanted) => format!("ConfigMap {}", wanted.name),
        None => "caBundle".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn object(trust: &Value) -> FederationPartner {
        serde_json::from_value(json!({
            "apiVersion": "entente.dev/v1alpha1", "kind": "FederationPartner",
            "metadata": {"name": "fabrikam", "namespace": "edge", "uid": "u"},
            "spec": {"domains": ["fabrikam.example"], "trust": trust},
        }))
        .unwrap()
    }

    fn endpoint() -> Value {
        json!({"spiffeEndpoint": {"url": "https://x.example/", "spiffeTrustDomain": "x.example", "profile": "HTTPSWeb"}})
    }

    fn map() -> Value {
        json!({"configMapRef": {"name": "roots", "key": "ca.crt"}})
    }

    /// What TrustFresh says of a record that was got at second 1000, in `trust`, at `now`.
    fn fresh(trust: &Value, failure: Option<FailureKind>, now: i64) -> (Option<bool>, &'static str) {
        let object = object(trust);
        let failure = failure.map(|kind| Failure::new(kind, "what is wrong"));
        let record = Kept { pem: "roots".to_owned(), fetched: 1_000, refresh: 100, failure, ..Kept::of(&object) };
        let seen = KeptSeen { record: Some(Arc::new(record)), ..KeptSeen::default() };
        let state = Sources::of(&object, Some(&seen)).fresh(at(now));
        (state.status, state.reason)
    }

    #[test]
    fn trust_is_fresh_while_its_source_says_so_and_an_endpoint_has_three_of_its_hints() {
        let back = FailureKind::SequenceWentBack;
        for (trust, failure, now, expected) in [
            (map(), None, 9_000, (Some(true), "Static")),
            (map(), Some(FailureKind::FetchFailed), 1_001, (Some(false), "FetchFailed")),
            (json!({"caBundle": "x"}), Some(FailureKind::FetchFailed), 1_001, (Some(false), "FetchFailed")),
            (json!({"publicCA": {}}), None, 9_000, (Some(true), "PublicCA")),
            (endpoint(), None, 1_300, (Some(true), "Fetched")),
            (endpoint(), Some(back), 1_300, (Some(true), "Fetched")),
            (endpoint(), Some(back), 1_301, (Some(false), "SequenceWentBack")),
            (endpoint(), None, 1_301, (Some(false), "FetchFailed")),
        ] {
            assert_eq!(fresh(&trust, failure, now), expected, "{trust} {failure:?} {now}");
        }
        let nothing = Sources::of(&object(&map()), None).fresh(at(0));
        assert_eq!((nothing.status, nothing.reason), (None, "NotAsked"));
        let kept = Kept { fetched: 1_000, refresh: 100, ..Kept::default() };
        assert_eq!(turns_stale(&object(&endpoint()), &kept), Some(at(1_301)));
        assert_eq!(turns_stale(&object(&map()), &kept), None);
    }

    #[test]
    fn a_bundle_is_told_with_its_number_its_times_and_why_it_could_not_be_fetched() {
        let object = object(&endpoint());
        let told = |failure: Option<Failure>| {
            let record = Kept { sequence: Some(7), fetched: 1_000, refresh: 100, failure, ..Kept::of(&object) };
            let seen = KeptSeen { record: Some(Arc::new(record)), ..KeptSeen::default() };
            Sources::of(&object, Some(&seen)).bundle().unwrap()
        };
        let good = told(None);
        assert_eq!(
            (good.sequence, good.last_fetch_time, good.last_error.as_str()),
            (Some(7), Some(seconds(at(1_000))), "")
        );
        assert_eq!(good.next_fetch_time, Some(seconds(at(1_100))));
        let bad = told(Some(Failure::fetch("down")));
        assert_eq!((bad.next_fetch_time, bad.last_error.as_str()), (None, "FetchFailed: down"));
        assert_eq!(Sources::of(&object, None).bundle(), None);
    }
}
