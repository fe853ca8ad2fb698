//! What each partner may ask of this sidecar: handshakes in a second, and connections that are open together.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::refusal::{LimitDetail, Refusal};

/// Partners that are remembered; beyond it those without open connections are forgotten.
const MAX_PARTNERS: usize = 512;

/// What partners have asked for so far. It outlives briefs.
#[derive(Debug, Default)]
pub(super) struct Quotas(Mutex<BTreeMap<String, Load>>);

#[derive(Debug)]
struct Load {
    /// Handshakes that may begin at once.
    tokens: f64,
    filled: Instant,
    open: u32,
}

/// A partner's place for one connection, left when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    quotas: Arc<Quotas>,
    partner: String,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(load) = self.quotas.lock().get_mut(&self.partner) {
            load.open = load.open.saturating_sub(1);
        }
    }
}

impl Quotas {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Load>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `partner` begins a handshake: as many in a second as `per_second`, which may come together.
    pub(super) fn begin(&self, partner: &str, per_second: u32, now: Instant) -> Result<(), Refusal> {
        let mut loads = self.lock();
        let load = of(&mut loads, partner, now);
        let gained = now.saturating_duration_since(load.filled).as_secs_f64() * f64::from(per_second);
        load.tokens = (load.tokens + gained).min(f64::from(per_second));
        load.filled = now;
        if load.tokens < 1.0 {
            return Err(Refusal::Limit(LimitDetail::PartnerRate));
        }
        load.tokens -= 1.0;
        Ok(())
    }

    /// A place for one more connection with `partner`, which may have `most`.
    pub(super) fn seat(self: &Arc<Self>, partner: &str, most: u32) -> Result<Seat, Refusal> {
        let mut loads = self.lock();
        let load = of(&mut loads, partner, Instant::now());
        if load.open >= most {
            return Err(Refusal::Limit(LimitDetail::PartnerConnections));
        }
        load.open += 1;
        Ok(Seat { quotas: self.clone(), partner: partner.to_owned() })
    }
}

fn of<'a>(loads: &'a mut BTreeMap<String, Load>, partner: &str, now: Instant) -> &'a mut Load {
    if loads.len() >= MAX_PARTNERS && !loads.contains_key(partner) {
        loads.retain(|_, load| load.open > 0);
    }
    // Of whom nothing is known may begin as many as there may be at once.
    loads.entry(partner.to_owned()).or_insert(Load { tokens: f64::INFINITY, filled: now, open: 0 })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn handshakes_beyond_the_rate_wait_for_their_second_and_one_partner_costs_another_nothing() {
        let (quotas, begun) = (Quotas::default(), Instant::now());
        let begin =
            |partner: &str, milliseconds| quotas.begin(partner, 4, begun + Duration::from_millis(milliseconds)).is_ok();
        assert_eq!([0; 6].map(|at| begin("fabrikam", at)), [true, true, true, true, false, false]);
        assert!(begin("litware", 0));
        assert_eq!([200, 260, 300].map(|at| begin("fabrikam", at)), [false, true, false]);
        let later = (0..10).filter(|_| begin("fabrikam", 60_000)).count();
        assert_eq!(later, 4, "what was not used is not saved up");
        assert!(quotas.begin("nobody", 0, begun).is_err());
    }

    #[test]
    fn a_partner_has_so_many_connections_and_one_that_ends_makes_room() {
        let quotas = Arc::new(Quotas::default());
        let first = quotas.seat("fabrikam", 2).unwrap();
        let second = quotas.seat("fabrikam", 2).unwrap();
        assert_eq!(quotas.seat("fabrikam", 2).unwrap_err(), Refusal::Limit(LimitDetail::PartnerConnections));
        assert!(quotas.seat("fabrikam", 3).is_ok());
        assert!(quotas.seat("litware", 1).is_ok());
        drop(first);
        assert!(quotas.seat("fabrikam", 2).is_ok());
        drop(second);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_open_connections_are_not_forgotten() {
        let quotas = Arc::new(Quotas::default());
        let held = quotas.seat("fabrikam", 1).unwrap();
        for number in 0..2 * MAX_PARTNERS {
            let _ = quotas.begin(&format!("partner-{number}"), 1, Instant::now());
        }
        assert!(quotas.lock().len() <= MAX_PARTNERS);
        assert!(quotas.seat("fabrikam", 1).is_err());
        drop(held);
    }
}
