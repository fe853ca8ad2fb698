//! What the controller was asked about an on-demand table, and when it last answered.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long an answer is believed without asking again.
const FRESH: Duration = Duration::from_secs(5);

/// Questions of one kind.
#[derive(Debug)]
pub(super) struct Questions<K> {
    asked: Mutex<BTreeMap<K, Asked>>,
    /// So many are waited for and remembered.
    most: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    waiting: bool,
    /// When the controller last answered about it.
    answered: Option<Instant>,
}

impl<K: Clone + Ord> Questions<K> {
    /// None yet.
    pub(super) fn new(most: usize) -> Self {
        Self { asked: Mutex::default(), most }
    }

    /// Whether the answer about `key` is fresh.
    pub(super) fn is_fresh(&self, key: &K) -> bool {
        self.of(key).is_some_and(|asked| asked.answered.is_some_and(|when| when.elapsed() < FRESH))
    }

    /// Whether there ever was an answer about `key` that is remembered.
    pub(super) fn was_answered(&self, key: &K) -> bool {
        self.of(key).is_some_and(|asked| asked.answered.is_some())
    }

    fn of(&self, key: &K) -> Option<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    /// Asks about `key`; answers whether that is news. Where too much is waited for already, it is not asked.
    pub(super) fn ask(&self, key: &K) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.len() >= self.most && !asked.contains_key(key) {
            asked.retain(|_, state| state.waiting);
        }
        if asked.len() >= self.most && !asked.contains_key(key) {
            return false;
        }
        let state = asked.entry(key.clone()).or_default();
        !std::mem::replace(&mut state.waiting, true)
    }

    /// What is waited for, at most so much.
    pub(super) fn waiting(&self, at_most: usize) -> Vec<K> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|(_, state)| state.waiting).map(|(key, _)| key.clone()).take(at_most).collect()
    }

    /// The controller answered about `keys`.
    pub(super) fn answered(&self, keys: &[K]) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        for key in keys {
            asked.insert(key.clone(), Asked { waiting: false, answered: Some(now) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_bounded_and_old_answers_make_room() {
        let questions = Questions::new(2);
        assert!(questions.ask(&1) && questions.ask(&2) && !questions.ask(&3), "full of what is waited for");
        assert!(!questions.ask(&1), "asked already");
        questions.answered(&[1]);
        assert!(questions.is_fresh(&1) && questions.was_answered(&1) && !questions.is_fresh(&2));
        assert!(questions.ask(&3));
        assert!(!questions.was_answered(&1), "forgotten");
        assert_eq!((questions.waiting(1), questions.waiting(9)), (vec![2], vec![2, 3]));
    }
}
