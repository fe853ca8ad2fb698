//! Conditions as Kubernetes wants them: positive, keyed by type, `lastTransitionTime` moves only with the status.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Longest message that a condition carries, in characters.
const MAX_MESSAGE: usize = 1024;

/// What one condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Its type.
    pub kind: &'static str,
    /// `None` = Unknown.
    pub status: Option<bool>,
    /// One CamelCase word.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl State {
    /// True.
    pub fn good(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: Some(true), reason, message: message.into() }
    }

    /// False.
    pub fn bad(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: Some(false), reason, message: message.into() }
    }

    /// Unknown.
    pub fn unknown(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: None, reason, message: message.into() }
    }
}

/// `Ready` over `parts`: the first that is not True gives reason and message.
pub fn ready(parts: &[State]) -> State {
    match parts.iter().find(|part| part.status != Some(true)) {
        None => State::good("Ready", "Ready", "everything declared is in force"),
        Some(part) => State { kind: "Ready", ..part.clone() },
    }
}

/// The conditions to write: those of `states`, with the old transition time where the status did not change.
pub fn write(states: &[State], old: &[Condition], generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    let one = |state: &State| {
        let status = match state.status {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let before = old.iter().find(|condition| condition.type_ == state.kind && condition.status == status);
        Condition {
            type_: state.kind.to_owned(),
            status: status.to_owned(),
            reason: state.reason.to_owned(),
            message: state.message.chars().take(MAX_MESSAGE).collect(),
            observed_generation: generation,
            last_transition_time: before
                .map_or_else(|| seconds(now), |condition| condition.last_transition_time.clone()),
        }
    };
    states.iter().map(one).collect()
}

/// `instant` as Kubernetes writes times: whole seconds.
pub fn seconds(instant: Timestamp) -> Time {
    Time(Timestamp::from_second(instant.as_second()).unwrap_or(instant))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn ready_takes_the_first_failing_reason() {
        let parts = [
            State::good("Accepted", "Accepted", ""),
            State::unknown("ProxiesInjected", "Pending", "later"),
            State::bad("TrustLoaded", "AckPending", "never mind"),
        ];
        assert_eq!(ready(&parts), State::unknown("Ready", "Pending", "later"));
        assert_eq!(ready(&parts[..1]).status, Some(true));
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let first = write(&[State::good("Accepted", "Accepted", "a")], &[], Some(1), at(10));
        let second = write(&[State::good("Accepted", "Other", "b")], &first, Some(2), at(20));
        assert_eq!(second[0].last_transition_time, seconds(at(10)));
        assert_eq!((second[0].reason.as_str(), second[0].observed_generation), ("Other", Some(2)));
        let third = write(&[State::bad("Accepted", "Other", "b")], &second, Some(2), at(30));
        assert_eq!(third[0].last_transition_time, seconds(at(30)));
    }
}
