//! Label selectors, checked: never empty, never about absence.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::{PodSelector, SelectorOperator};

/// Selects pods by labels that they have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(BTreeMap<String, BTreeSet<String>>);

impl Selector {
    /// The selector of a server; `None` where it would select everything or nothing.
    pub fn parse(selector: &PodSelector) -> Option<Self> {
        let mut wanted = BTreeMap::<String, BTreeSet<String>>::new();
        let labels = selector.match_labels.iter().map(|(key, value)| (key, BTreeSet::from([value.clone()])));
        let expressions = selector.match_expressions.iter().map(|requirement| match requirement.operator {
            SelectorOperator::In => (&requirement.key, requirement.values.iter().cloned().collect()),
        });
        for (key, values) in labels.chain(expressions) {
            let narrowed = match wanted.get(key) {
                Some(before) => before.intersection(&values).cloned().collect(),
                None => values,
            };
            wanted.insert(key.clone(), narrowed);
        }
        let sound = !wanted.is_empty() && wanted.values().all(|values| !values.is_empty());
        sound.then_some(Self(wanted))
    }

    /// Selects no pod, whatever its labels.
    pub(super) fn nothing() -> Self {
        Self(BTreeMap::from([(String::new(), BTreeSet::new())]))
    }

    /// Whether `labels` fit.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, values)| labels.get(key).is_some_and(|value| values.contains(value)))
    }
}

/// Whether a Service's `selector` selects a pod with `labels`; an empty one selects none.
pub(super) fn service_selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Requirement;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_selector_needs_every_label_and_one_of_the_values() {
        let role = Requirement {
            key: "tier".into(),
            operator: SelectorOperator::In,
            values: vec!["front".into(), "back".into()],
        };
        let selector = PodSelector { match_labels: labels(&[("app", "web")]), match_expressions: vec![role] };
        let selector = Selector::parse(&selector).unwrap();
        assert!(selector.matches(&labels(&[("app", "web"), ("tier", "back"), ("more", "x")])));
        assert!(!selector.matches(&labels(&[("app", "web"), ("tier", "other")])));
        assert!(!selector.matches(&labels(&[("app", "web")])));
    }

    #[test]
    fn an_empty_selector_is_none() {
        assert_eq!(Selector::parse(&PodSelector::default()), None);
        assert!(!service_selects(&BTreeMap::new(), &labels(&[("app", "web")])));
    }

    #[test]
    fn a_selector_of_nothing_matches_no_labels() {
        for some in [labels(&[]), labels(&[("app", "web")]), labels(&[("", "")])] {
            assert!(!Selector::nothing().matches(&some), "{some:?}");
        }
    }
}
