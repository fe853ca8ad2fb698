//! The last contact with each partner, as the next sync reports it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::watch;

use crate::{
    brief::{Brief, PartnerContact},
    refusal::Refusal,
};

/// Partners that are remembered between two reports.
const MAX_PARTNERS: usize = 512;

/// What came of the last contacts.
#[derive(Debug)]
pub(super) struct Contacts {
    last: Mutex<Last>,
    news: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Last {
    of: BTreeMap<String, PartnerContact>,
    /// Whether an outcome is another one than was told.
    changed: bool,
}

impl Default for Contacts {
    fn default() -> Self {
        Self { last: Mutex::default(), news: watch::Sender::new(()) }
    }
}

impl Contacts {
    fn lock(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `partner` was verified in its scope, or not, and then why.
    pub(super) fn met(&self, partner: &str, refused: Option<Refusal>, now: Timestamp) {
        let contact = PartnerContact { at: now.as_second(), refused };
        let mut last = self.lock();
        let before = last.of.get(partner).map(|before| before.refused);
        if before.is_none() && last.of.len() >= MAX_PARTNERS {
            return;
        }
        last.of.insert(partner.to_owned(), contact);
        if before != Some(refused) {
            last.changed = true;
            drop(last);
            self.news.send_replace(());
        }
    }

    /// What is to be reported: of the partners that `brief` knows, others are forgotten.
    pub(super) fn report(&self, brief: Option<&Brief>) -> BTreeMap<String, PartnerContact> {
        let mut last = self.lock();
        last.of.retain(|name, _| brief.is_some_and(|brief| brief.link(name).is_some()));
        last.changed = false;
        last.of.clone()
    }

    /// Whether an outcome is not reported yet.
    pub(super) fn is_changed(&self) -> bool {
        self.lock().changed
    }

    /// A listener for changed outcomes.
    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_outcome_is_news() {
        let contacts = Contacts::default();
        let met = |refused, second| {
            contacts.met("fabrikam", refused, Timestamp::from_second(second).unwrap());
            let changed = contacts.is_changed();
            contacts.lock().changed = false;
            changed
        };
        let failed = Some(Refusal::DialFailed);
        assert_eq!(
            [(None, 1), (None, 2), (failed, 3), (failed, 4), (None, 5)].map(|(refused, at)| met(refused, at)),
            [true, false, true, false, true]
        );
        assert_eq!(contacts.lock().of["fabrikam"], PartnerContact { at: 5, refused: None });
        for number in 0..2 * MAX_PARTNERS {
            contacts.met(&format!("partner-{number}"), None, Timestamp::UNIX_EPOCH);
        }
        assert_eq!(contacts.lock().of.len(), MAX_PARTNERS);
        assert!(contacts.report(None).is_empty() && !contacts.is_changed());
    }
}
