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

/// The point of `serial` in `0.0..1.0`: the same at each look, spread evenly over all serials, which are random.
pub fn share(serial: &[u8]) -> f64 {
    let number = serial.iter().rev().take(4).fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    f64::from(number) / (f64::from(u32::MAX) + 1.0)
}

/// When the peers of an open connection prove themselves anew: at 70–80 % of the way from the last proof to the
/// nearer deadline, so after both could renew (33–40 % of a life) and with time left to try again.
pub fn reprove_at(proven: Timestamp, deadline: Timestamp, share: f64) -> Timestamp {
    let way = (deadline.as_millisecond() - proven.as_millisecond()).max(0);
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "lives are at most years")]
    let wait = (way as f64 * (0.7 + 0.1 * share.clamp(0.0, 1.0))) as i64;
    Timestamp::from_millisecond(proven.as_millisecond().saturating_add(wait)).unwrap_or(deadline)
}

/// The lifetime that [`retry_after`] is told before there is a certificate: attempts are 5 s apart at most.
pub const FIRST_LIFETIME: Duration = Duration::from_secs(500);

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
        fn a_re_proof_falls_in_70_to_80_percent_of_the_way_to_the_deadline(way in 1_i64..604_800, serial: [u8; 16]) {
            let start = Timestamp::from_second(1_800_000_000).unwrap();
            let wait = reprove_at(start, shift(start, way), share(&serial)).as_millisecond() - start.as_millisecond();
            prop_assert!((wait + 1) * 10 >= way * 7_000 && wait * 10 <= way * 8_000, "{wait} of {way} s");
            prop_assert_eq!(reprove_at(start, shift(start, -way), share(&serial)), start);
        }

        #[test]
        fn a_retry_waits_at_most_30_seconds_and_a_hundredth_of_the_life(attempt: u32, jitter in 0.0_f64..1.0) {
            let wait = retry_after(attempt, jitter, Duration::from_secs(86_400));
            prop_assert!(wait <= Duration::from_secs(30) && wait >= Duration::from_millis(125));
            prop_assert!(retry_after(attempt, jitter, Duration::from_secs(120)) <= Duration::from_millis(1200));
        }
    }
}
