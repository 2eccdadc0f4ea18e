//! How often what a scenario requires of the answers held.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use crate::report::Check;

/// Checks past this many share the last one: a name with an id in it must not fill the memory.
const MAX_CHECKS: usize = 200;
const OTHER: &str = "(other)";
/// Characters kept of what was wrong.
const MAX_FAILURE: usize = 200;

/// Counts of the checks of a phase. Clones are one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checks {
    by_name: Arc<Mutex<BTreeMap<String, Check>>>,
}

impl Checks {
    /// Counts a check that held, or else what was wrong.
    pub(crate) fn count(&self, name: &str, failure: Option<&dyn fmt::Display>) {
        let mut checks = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let full = checks.len() >= MAX_CHECKS && !checks.contains_key(name);
        let name = if full { OTHER } else { name };
        if !checks.contains_key(name) {
            checks.insert(name.to_owned(), Check { name: name.to_owned(), ..Check::default() });
        }
        let Some(check) = checks.get_mut(name) else { return };
        match failure {
            None => check.passed += 1,
            Some(failure) => {
                check.failed += 1;
                if check.failed == 1 {
                    let text: String = failure.to_string().chars().take(MAX_FAILURE).collect();
                    check.first_failure = (!text.is_empty()).then_some(text);
                }
            }
        }
    }

    pub(crate) fn all(&self) -> Vec<Check> {
        let checks = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        checks.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_has_its_counts_and_its_first_failure() {
        let checks = Checks::default();
        checks.count("has an id", None);
        checks.count("has an id", Some(&"it is null"));
        checks.count("has an id", Some(&"it is 0"));
        checks.count("is fresh", Some(&""));
        let all = checks.all();
        let id = Check {
            name: "has an id".to_owned(),
            passed: 1,
            failed: 2,
            first_failure: Some("it is null".to_owned()),
        };
        assert_eq!(all[0], id);
        assert_eq!((all[1].failed, &all[1].first_failure), (1, &None));
    }

    #[test]
    fn checks_past_the_limit_share_one() {
        let checks = Checks::default();
        for n in 0..1_000 {
            checks.count(&format!("item {n}"), None);
        }
        let all = checks.all();
        assert_eq!(all.len(), MAX_CHECKS + 1);
        assert_eq!(all.iter().map(|check| check.passed).sum::<u64>(), 1_000);
    }
}
