//! How often one pod may ask: a burst, then one for each twentieth of a certificate's life.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;

/// Certificates that one pod may have in a burst.
const BURST: f64 = 10.0;
/// Pods whose budget is remembered.
const MOST: usize = 65_536;

/// The budgets of all pods.
#[derive(Default)]
pub(super) struct Budgets(Mutex<HashMap<String, (f64, Timestamp)>>);

impl Budgets {
    /// Whether the pod may have one more certificate now; if not, in how many seconds.
    pub(super) fn spend(&self, uid: &str, lifetime_seconds: u32, now: Timestamp) -> Result<(), f64> {
        let mut budgets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if budgets.len() >= MOST {
            budgets.retain(|_, (left, _)| *left < BURST - 1.0);
        }
        let seconds = (f64::from(lifetime_seconds) / 20.0).max(3.0);
        let (left, at) = budgets.entry(uid.to_owned()).or_insert((BURST, now));
        let passed = now.duration_since(*at).as_secs_f64().max(0.0);
        *left = (*left + passed / seconds).min(BURST);
        *at = now;
        if *left < 1.0 {
            return Err((1.0 - *left) * seconds);
        }
        *left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_a_burst_and_then_one_each_twentieth_of_a_life() {
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        let budgets = Budgets::default();
        for _ in 0..10 {
            budgets.spend("pod", 200, at(0)).unwrap();
        }
        assert_eq!(budgets.spend("pod", 200, at(0)), Err(10.0));
        assert_eq!(budgets.spend("other", 200, at(0)), Ok(()), "a budget of its own");
        assert_eq!(budgets.spend("pod", 200, at(10)), Ok(()));
        assert!(budgets.spend("pod", 200, at(10)).is_err());
    }
}
