//! What is stored, and what it says about what was counted. Nothing is passed over: what is stored must be counted, and
//! what is counted must be stored.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// What fixed work cost when it was counted last for the record.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Baseline {
    /// System calls: the same everywhere.
    pub(crate) calls: Expectations,
    /// Instructions, by what the processor shows.
    pub(crate) instructions: BTreeMap<String, Built>,
}

/// What is expected, by what was done.
pub(crate) type Expectations = BTreeMap<String, Expected>;

/// What is expected of a program that was built so.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Built {
    /// The compilers, for whoever wonders why everything has changed.
    pub(crate) built_by: String,
    /// What is expected.
    pub(crate) expected: Expectations,
}

/// What one piece of work should cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expected {
    /// Instructions or system calls.
    pub(crate) count: f64,
    /// By how many per cent it may be more.
    pub(crate) tolerance: f64,
    /// The same by kind; compared with no tolerance, shown where the sum grew.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) kinds: BTreeMap<String, f64>,
}

/// What one piece of work cost now.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counted {
    /// Instructions or system calls.
    pub(crate) count: f64,
    /// The same by kind, where there are kinds.
    pub(crate) kinds: BTreeMap<String, f64>,
}

/// What came of one comparison.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// Within the tolerance.
    Held,
    /// Fewer, by more than the tolerance: good, and worth to be kept.
    Fell,
    /// More than is tolerated.
    Grew,
    /// Nothing is stored.
    NotExpected,
    /// It was not counted.
    NotCounted,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Compared {
    /// What was done.
    pub(crate) name: String,
    /// What came of it.
    pub(crate) outcome: Outcome,
    expected: Option<Expected>,
    counted: Option<Counted>,
}

/// Compares all that is expected with all that was counted.
pub(crate) fn compare(expected: &Expectations, counted: &BTreeMap<String, Counted>) -> Vec<Compared> {
    let names = expected.keys().chain(counted.keys().filter(|name| !expected.contains_key(*name)));
    names
        .map(|name| {
            let (expected, counted) = (expected.get(name).cloned(), counted.get(name).cloned());
            let outcome = match (&expected, &counted) {
                (Some(expected), Some(counted)) => judge(expected, counted),
                (None, _) => Outcome::NotExpected,
                (Some(_), None) => Outcome::NotCounted,
            };
            Compared { name: name.clone(), outcome, expected, counted }
        })
        .collect()
}

fn judge(expected: &Expected, counted: &Counted) -> Outcome {
    let tolerated = expected.count * expected.tolerance / 100.0;
    if counted.count > expected.count + tolerated {
        Outcome::Grew
    } else if counted.count < expected.count - tolerated {
        Outcome::Fell
    } else {
        Outcome::Held
    }
}

impl Outcome {
    /// Whether the gate stays closed.
    pub(crate) const fn is_failure(&self) -> bool {
        match self {
            Self::Held | Self::Fell => false,
            Self::Grew | Self::NotExpected | Self::NotCounted => true,
        }
    }
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, outcome, expected, counted } = self;
        let (expected, counted) = match (expected, counted) {
            (Some(expected), Some(counted)) => (expected, counted),
            (None, Some(counted)) => return write!(f, "FAILED  {name:24} {}, and nothing is stored", counted.count),
            (_, None) => return write!(f, "FAILED  {name:24} is stored and was not counted"),
        };
        let word = if outcome.is_failure() { "FAILED" } else { "ok" };
        let change = (counted.count / expected.count - 1.0) * 100.0;
        write!(f, "{word:7} {name:24} {:>14} {change:+8.2} %", counted.count)?;
        match outcome {
            Outcome::Held | Outcome::NotExpected | Outcome::NotCounted => return Ok(()),
            Outcome::Fell => return write!(f, "  the stored {} can be lowered", expected.count),
            Outcome::Grew => write!(f, "  {} is stored, {} % more are allowed", expected.count, expected.tolerance)?,
        }
        let kinds =
            expected.kinds.keys().chain(counted.kinds.keys().filter(|kind| !expected.kinds.contains_key(*kind)));
        for kind in kinds {
            let of = |kinds: &BTreeMap<String, f64>| kinds.get(kind).copied().unwrap_or_default();
            let (before, now) = (of(&expected.kinds), of(&counted.kinds));
            if now > before {
                write!(f, "\n          {kind:22} {now:>14}  was {before}")?;
            }
        }
        Ok(())
    }
}

/// What `expected` becomes when `counted` is stored; tolerances stay, and are `tolerance` where there was none.
pub(crate) fn store(expected: &mut Expectations, counted: &BTreeMap<String, Counted>, tolerance: impl Fn(&str) -> f64) {
    for (name, Counted { count, kinds }) in counted {
        let tolerance = expected.get(name).map_or_else(|| tolerance(name), |expected| expected.tolerance);
        expected.insert(name.clone(), Expected { count: *count, tolerance, kinds: kinds.clone() });
    }
}

impl Baseline {
    /// Reads what is stored.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
    }

    /// Stores it.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests;
