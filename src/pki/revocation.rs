//! What was taken back, compiled for looking up: the fifth step of a judgement, at handshakes and at every later look.
//!
//! Unknown or stale status is a refusal (`UnknownStatus`, `StaleCRL`). It is no evidence against a connection that is
//! open already: that one ends when its peer's certificate does.

mod serials;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;

use self::serials::Serials;
use crate::{
    brief::{OnStale, Revocation, Scope, Withdrawal},
    identity::{Identity, PartnerIdentity, SpiffeId},
    refusal::{Refusal, WithdrawnDetail},
};

/// Revoked serials that one view may hold, in all.
pub const MAX_SERIALS: usize = 20_000;
/// Withdrawn identities that one view may hold.
pub const MAX_WITHDRAWN: usize = 20_000;

/// The revocations of one scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    number: u64,
    next_update: Option<Timestamp>,
    on_stale: OnStale,
    /// Of issuers whose lists end by themselves.
    next_updates: BTreeMap<String, Timestamp>,
    current: BTreeSet<String>,
    serials: BTreeMap<String, Serials>,
    withdrawn: HashMap<SpiffeId, Vec<(Timestamp, WithdrawnDetail)>>,
}

/// Why a view cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// A serial that is not lower-case hex of whole bytes.
    #[error("a revoked serial is not lower-case hex")]
    Serial,
    /// A moment that no clock shows.
    #[error("a moment of the revocations is out of range")]
    Moment,
    /// More than a view may hold.
    #[error("more revocations than {MAX_SERIALS} serials and {MAX_WITHDRAWN} identities")]
    TooMany,
}

impl View {
    /// Compiles what a brief says of one scope.
    pub fn of(scope: &Scope) -> Result<Self, ViewError> {
        let current = scope.issuers.iter().cloned().collect();
        let Some(revocation) = &scope.revocation else { return Ok(Self { current, ..Self::default() }) };
        let Revocation { number, this_update: _, next_update, next_updates, on_stale, serials, withdrawn } = revocation;
        let count: usize = serials.values().map(Vec::len).sum();
        if count > MAX_SERIALS || withdrawn.len() > MAX_WITHDRAWN {
            return Err(ViewError::TooMany);
        }
        let moment = |second: i64| Timestamp::from_second(second).map_err(|_| ViewError::Moment);
        let set = |list: &[String]| Serials::parse(list).ok_or(ViewError::Serial);
        let mut by_identity = HashMap::<SpiffeId, Vec<_>>::new();
        for Withdrawal { id, starting_before, reason } in withdrawn {
            by_identity.entry(id.clone()).or_default().push((moment(*starting_before)?, *reason));
        }
        Ok(Self {
            number: *number,
            next_update: Some(moment(*next_update)?),
            on_stale: *on_stale,
            next_updates: next_updates
                .iter()
                .map(|(issuer, end)| Ok((issuer.clone(), moment(*end)?)))
                .collect::<Result<_, _>>()?,
            current,
            serials: serials.iter().map(|(issuer, list)| Ok((issuer.clone(), set(list)?))).collect::<Result<_, _>>()?,
            withdrawn: by_identity,
        })
    }

    /// Number of the CRL that it stands for.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Judges a peer whose chain and names are in order, at its handshake.
    pub fn judge(&self, peer: &Identity, now: Timestamp) -> Result<(), Refusal> {
        self.taken_back(peer)?;
        self.issuer_is_current(peer)?;
        let known = peer.issuer.as_ref().is_some_and(|issuer| self.serials.contains_key(issuer));
        match self.next_update {
            Some(end) if known => {
                if now <= end {
                    Ok(())
                } else {
                    Err(Refusal::StaleCrl)
                }
            }
            _ => Err(Refusal::UnknownStatus),
        }
    }

    /// The same of a partner. One that publishes nothing is believed until its certificates end; of one whose lists may
    /// be stale, what was known last counts. The leaf's issuer must have an entry, the authorities above it may have one.
    pub fn judge_partner(&self, peer: &PartnerIdentity, now: Timestamp) -> Result<(), Refusal> {
        self.partner_taken_back(peer)?;
        let known = peer.issuer.as_ref().is_some_and(|issuer| self.serials.contains_key(issuer));
        // The list of one issuer that is stale says nothing about another's.
        let own = peer.issuer.as_ref().and_then(|issuer| self.next_updates.get(issuer)).copied();
        match own.or(self.next_update) {
            None => Ok(()),
            Some(_) if self.on_stale == OnStale::Allow => Ok(()),
            Some(_) if !known => Err(Refusal::UnknownStatus),
            Some(end) if now <= end => Ok(()),
            Some(_) => Err(Refusal::StaleCrl),
        }
    }

    /// Whether a partner took back what `peer` showed, or an authority above it.
    pub fn partner_taken_back(&self, peer: &PartnerIdentity) -> Result<(), Refusal> {
        let above = peer.through.iter().any(|one| self.lists(one.issuer.as_deref(), &one.serial));
        if above || self.lists(peer.issuer.as_deref(), &peer.serial) { Err(Refusal::Revoked) } else { Ok(()) }
    }

    fn lists(&self, issuer: Option<&str>, serial: &[u8]) -> bool {
        issuer.and_then(|issuer| self.serials.get(issuer)).is_some_and(|serials| serials.contains(serial))
    }

    /// Whether what `peer` showed was taken back: its serial, or all that its identity held then.
    pub fn taken_back(&self, peer: &Identity) -> Result<(), Refusal> {
        if self.lists(peer.issuer.as_deref(), &peer.serial) {
            return Err(Refusal::Revoked);
        }
        let moments = self.withdrawn.get(&peer.id).map_or(&[][..], Vec::as_slice);
        match moments.iter().find(|(before, _)| peer.not_before < *before) {
            Some((_, reason)) => Err(Refusal::Withdrawn(*reason)),
            None => Ok(()),
        }
    }

    /// Whether the issuer of `peer`'s certificate is in use.
    pub fn issuer_is_current(&self, peer: &Identity) -> Result<(), Refusal> {
        let current = peer.issuer.as_ref().is_some_and(|issuer| self.current.contains(issuer));
        if current { Ok(()) } else { Err(Refusal::IssuerNotCurrent) }
    }

    /// An issuer in use of whose revocations `before` knew and this view knows nothing.
    pub fn forgets(&self, before: &Self) -> Option<&str> {
        let forgotten = |issuer: &&String| before.serials.contains_key(*issuer) && !self.serials.contains_key(*issuer);
        self.current.iter().find(forgotten).map(String::as_str)
    }

    /// Takes over what `before` holds as well: within one CRL number a view only grows.
    pub fn unite(&mut self, before: &Self) {
        for (issuer, serials) in &before.serials {
            if let Some(own) = self.serials.get_mut(issuer) {
                own.unite(serials);
            }
        }
        for (id, moments) in &before.withdrawn {
            let own = self.withdrawn.entry(id.clone()).or_default();
            let new: Vec<_> = moments.iter().filter(|moment| !own.contains(moment)).copied().collect();
            own.extend(new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{brief::ScopeNames, identity::Between};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn id(server: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://contoso.example/ns/sip/server/{server}")).unwrap()
    }

    fn peer(server: &str, serial: u8, issuer: Option<&str>) -> Identity {
        Identity {
            id: id(server),
            dns_names: BTreeSet::new(),
            pod_uid: None,
            serial: vec![serial, 7],
            issuer: issuer.map(str::to_owned),
            not_before: at(100),
            not_after: at(1_000),
        }
    }

    fn scope(next_update: i64, serials: &[&str], withdrawn: &[(&str, i64, WithdrawnDetail)]) -> Scope {
        let withdrawal = |(server, starting_before, reason): &(&str, i64, WithdrawnDetail)| Withdrawal {
            id: id(server),
            starting_before: *starting_before,
            reason: *reason,
        };
        let serials = serials.iter().map(|text| (*text).to_owned()).collect();
        Scope {
            id: "internal".to_owned(),
            names: ScopeNames::Servers,
            anchors: vec![],
            issuers: vec!["aa".to_owned(), "bb".to_owned()],
            revocation: Some(Revocation {
                number: 1,
                this_update: 0,
                next_update,
                next_updates: BTreeMap::new(),
                serials: BTreeMap::from([("aa".to_owned(), serials)]),
                withdrawn: withdrawn.iter().map(withdrawal).collect(),
                on_stale: OnStale::Deny,
            }),
        }
    }

    fn view(next_update: i64, serials: &[&str], withdrawn: &[(&str, i64, WithdrawnDetail)]) -> View {
        View::of(&scope(next_update, serials, withdrawn)).unwrap()
    }

    #[test]
    fn each_way_of_being_withdrawn_or_unknown_has_its_own_reason() {
        let withdrawn = [("gone", 101, WithdrawnDetail::Deleted), ("friend", 100, WithdrawnDetail::IssuedBefore)];
        let view = view(500, &["0107", "000907"], &withdrawn);
        for (peer, now, expected) in [
            (peer("friend", 2, Some("aa")), 400, Ok(())),
            (peer("friend", 1, Some("aa")), 400, Err(Refusal::Revoked)),
            (peer("friend", 9, Some("aa")), 400, Err(Refusal::Revoked)),
            (peer("friend", 1, Some("bb")), 400, Err(Refusal::UnknownStatus)),
            (peer("friend", 1, Some("cc")), 400, Err(Refusal::IssuerNotCurrent)),
            (peer("friend", 1, None), 400, Err(Refusal::IssuerNotCurrent)),
            (peer("friend", 2, Some("aa")), 501, Err(Refusal::StaleCrl)),
            (peer("friend", 1, Some("aa")), 501, Err(Refusal::Revoked)),
            (peer("gone", 2, Some("aa")), 400, Err(Refusal::Withdrawn(WithdrawnDetail::Deleted))),
        ] {
            assert_eq!(view.judge(&peer, at(now)), expected, "{peer:?} at {now}");
        }
    }

    #[test]
    fn a_partner_that_publishes_nothing_is_believed_and_one_that_does_is_asked_of_everybody() {
        let partner = |serial: u8, issuer: &str| PartnerIdentity {
            partner: "fabrikam".to_owned(),
            dns_names: BTreeSet::new(),
            serial: vec![serial, 7],
            issuer: Some(issuer.to_owned()),
            spiffe_id: None,
            through: vec![],
            not_before: at(100),
            not_after: at(1_000),
        };
        let silent = View::of(&Scope { revocation: None, issuers: vec![], ..scope(500, &[], &[]) }).unwrap();
        assert_eq!(silent.judge_partner(&partner(1, "aa"), at(900)), Ok(()));
        let view = View::of(&Scope { issuers: vec![], ..scope(500, &["0107"], &[]) }).unwrap();
        for (peer, now, expected) in [
            (partner(2, "aa"), 500, Ok(())),
            (partner(1, "aa"), 400, Err(Refusal::Revoked)),
            (partner(2, "bb"), 400, Err(Refusal::UnknownStatus)),
            (partner(2, "aa"), 501, Err(Refusal::StaleCrl)),
        ] {
            assert_eq!(view.judge_partner(&peer, at(now)), expected, "{peer:?} at {now}");
        }
        assert_eq!(view.partner_taken_back(&partner(2, "bb")), Ok(()));
        let above = |issuer: &str| {
            let through = vec![Between { issuer: Some(issuer.to_owned()), serial: vec![1, 7] }];
            view.judge_partner(&PartnerIdentity { through, ..partner(2, "aa") }, at(400))
        };
        assert_eq!((above("aa"), above("bb")), (Err(Refusal::Revoked), Ok(())), "an authority above it");
        let mut scope = Scope { issuers: vec![], ..scope(500, &["0107"], &[]) };
        scope.revocation.as_mut().unwrap().on_stale = OnStale::Allow;
        let lenient = View::of(&scope).unwrap();
        for (peer, now, expected) in [
            (partner(1, "aa"), 501, Err(Refusal::Revoked)),
            (partner(2, "aa"), 501, Ok(())),
            (partner(1, "bb"), 400, Ok(())),
        ] {
            assert_eq!(lenient.judge_partner(&peer, at(now)), expected, "lenient: {peer:?} at {now}");
        }
    }

    #[test]
    fn a_stale_list_of_one_issuer_of_a_partner_says_nothing_of_another() {
        let partner = |issuer: &str| PartnerIdentity {
            partner: "fabrikam".to_owned(),
            dns_names: BTreeSet::new(),
            serial: vec![2],
            issuer: Some(issuer.to_owned()),
            spiffe_id: None,
            through: vec![],
            not_before: at(100),
            not_after: at(1_000),
        };
        let mut scope = Scope { issuers: vec![], ..scope(300, &["0107"], &[]) };
        if let Some(revocation) = &mut scope.revocation {
            revocation.serials.insert("bb".to_owned(), vec![]);
            revocation.next_updates = BTreeMap::from([("aa".to_owned(), 500), ("bb".to_owned(), 300)]);
        }
        let view = View::of(&scope).unwrap();
        assert_eq!(view.judge_partner(&partner("aa"), at(400)), Ok(()));
        assert_eq!(view.judge_partner(&partner("bb"), at(400)), Err(Refusal::StaleCrl));
        assert_eq!(view.judge_partner(&partner("aa"), at(501)), Err(Refusal::StaleCrl));
    }

    #[test]
    fn without_any_view_nobody_is_admitted() {
        assert_eq!(View::default().judge(&peer("friend", 2, Some("aa")), at(0)), Err(Refusal::IssuerNotCurrent));
        let unknown = View::of(&Scope { revocation: None, ..scope(500, &[], &[]) }).unwrap();
        assert_eq!(unknown.judge(&peer("friend", 2, Some("aa")), at(0)), Err(Refusal::UnknownStatus));
    }

    #[test]
    fn staleness_is_no_evidence_against_what_is_open() {
        let view = view(500, &["0107"], &[]);
        assert_eq!(view.taken_back(&peer("friend", 2, Some("aa"))), Ok(()));
        assert_eq!(view.taken_back(&peer("friend", 1, Some("aa"))), Err(Refusal::Revoked));
    }

    #[test]
    fn within_one_number_a_view_only_grows() {
        let before = view(500, &["0107"], &[("gone", 200, WithdrawnDetail::Suspended)]);
        let mut after = view(600, &["0207"], &[]);
        after.unite(&before);
        for serial in [1, 2] {
            assert_eq!(after.judge(&peer("friend", serial, Some("aa")), at(0)), Err(Refusal::Revoked));
        }
        let withdrawn = Err(Refusal::Withdrawn(WithdrawnDetail::Suspended));
        assert_eq!(after.judge(&peer("gone", 3, Some("aa")), at(0)), withdrawn);
        assert_eq!(after.judge(&peer("friend", 3, Some("aa")), at(550)), Ok(()));
    }

    #[test]
    fn a_view_that_lacks_an_issuer_in_use_forgets_it() {
        let before = view(500, &["0107"], &[]);
        assert_eq!(view(600, &[], &[]).forgets(&before), None);
        assert_eq!(View::of(&Scope { revocation: None, ..scope(600, &[], &[]) }).unwrap().forgets(&before), Some("aa"));
        assert_eq!(View::of(&Scope { issuers: vec![], ..scope(600, &[], &[]) }).unwrap().forgets(&before), None);
        assert_eq!(before.forgets(&View::default()), None);
    }

    #[test]
    fn what_cannot_be_read_is_no_view() {
        for bad in ["", "1", "zz", "AB", "é"] {
            assert_eq!(View::of(&scope(500, &[bad], &[])), Err(ViewError::Serial), "{bad}");
        }
        assert_eq!(View::of(&scope(i64::MAX, &[], &[])), Err(ViewError::Moment));
    }
}
