//! When to renew, and how long to wait after a failure.

use std::time::Duration;

use jiff::Timestamp;

use super::shift;

/// A uniform point in 33–40 % of the certificate's life; `jitter` is in `0.0..1.0`.
pub fn renew_at(not_before: Timestamp, not_after: Timestamp, jitter: f64) -> Timestamp {
    let life = (not_after.as_second() - not_before.as_second()).max(0);
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "lives are at most years")]
    let wait = (life as f64 * (0.33 + 0.07 * jitter.clamp(0.0, 1.0))).ceil() as i64;
    shift(not_before, wait)
}

/// The pause before attempt `attempt + 1`: exponential from 250 ms with jitter, at most 30 s and a hundredth of the
/// lifetime, so that an outage costs no more of a life than it must.
pub fn retry_after(attempt: u32, jitter: f64, lifetime: Duration) -> Duration {
    let cap = Duration::from_secs(30).min(lifetime / 100).max(Duration::from_millis(500));
    let grown = Duration::from_millis(250).saturating_mul(1 << attempt.min(10));
    grown.min(cap).mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn renewal_falls_in_33_to_40_percent_of_every_life(life in 60_i64..604_800, jitter in 0.0_f64..1.0) {
            let start = Timestamp::from_second(1_800_000_000).unwrap();
            let wait = renew_at(start, shift(start, life), jitter).as_second() - start.as_second();
            prop_assert!(wait * 100 >= life * 33 && (wait - 1) * 100 <= life * 40, "{wait} of {life}");
        }

        #[test]
        fn a_retry_waits_at_most_30_seconds_and_a_hundredth_of_the_life(attempt: u32, jitter in 0.0_f64..1.0) {
            let wait = retry_after(attempt, jitter, Duration::from_secs(86_400));
            prop_assert!(wait <= Duration::from_secs(30) && wait >= Duration::from_millis(125));
            prop_assert!(retry_after(attempt, jitter, Duration::from_secs(120)) <= Duration::from_millis(1200));
        }
    }
}
