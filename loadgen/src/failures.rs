//! What went wrong, in words: the texts of errors, and how often each occurred.

use std::{
    error::Error,
    fmt::Write,
    sync::{Mutex, PoisonError},
};

use crate::report::ErrorCount;

/// Texts that are kept; what comes after them is counted together.
const KINDS: usize = 16;
/// Bytes of a text that are kept, and a few more to end a character.
const LONGEST: usize = 240;
/// What stands for the texts that are not kept.
const OTHERS: &str = "other errors";

/// The errors of a phase. Its size is bounded, and a phase without errors never takes the lock.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    kinds: Mutex<Vec<ErrorCount>>,
}

impl Failures {
    /// Counts an error under its text, its causes included.
    pub(crate) fn note(&self, error: &(dyn Error + 'static)) {
        self.count(&describe(error));
    }

    fn count(&self, text: &str) {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kinds.iter().position(|kind| kind.message == text);
        let full = kinds.len() >= KINDS;
        let others = || kinds.iter().position(|kind| kind.message == OTHERS);
        match known.or_else(|| if full { others() } else { None }) {
            Some(index) => kinds[index].count += 1,
            None => {
                let message = if full { OTHERS } else { text }.to_owned();
                kinds.push(ErrorCount { message, count: 1 });
            }
        }
    }

    /// The texts so far, the most frequent first.
    pub(crate) fn counts(&self) -> Vec<ErrorCount> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner).clone();
        kinds.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.message.cmp(&b.message)));
        kinds
    }
}

/// An error and its causes on one line: `cannot connect to localhost:1: Connection refused (os error 111)`.
/// A cause that its effect has already quoted is not told twice.
pub(crate) fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            // Writing into a string does not fail.
            let _ = write!(text, ": {more}");
        }
        cause = error.source();
    }
    text.truncate(text.ceil_char_boundary(LONGEST));
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot connect")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_text_names_the_causes_and_each_once() {
        let refused = io::Error::other("connection refused");
        assert_eq!(describe(&Outer(refused)), "cannot connect: connection refused");
        let wrapped = io::Error::other(Outer(io::Error::other("no route")));
        assert_eq!(describe(&wrapped), "cannot connect: no route");
    }

    #[test]
    fn equal_texts_are_counted_together_and_the_most_frequent_comes_first() {
        let failures = Failures::default();
        for text in ["rare", "often", "often"] {
            failures.note(&io::Error::other(text));
        }
        let counts = failures.counts();
        let counts: Vec<_> = counts.iter().map(|kind| (&*kind.message, kind.count)).collect();
        assert_eq!(counts, [("often", 2), ("rare", 1)]);
    }

    #[test]
    fn memory_is_bounded_and_every_error_is_counted() {
        let failures = Failures::default();
        for n in 0..1_000 {
            failures.note(&io::Error::other(format!("{n} {}", "ä".repeat(10_000))));
        }
        let counts = failures.counts();
        assert_eq!(counts.len(), KINDS + 1);
        assert_eq!(counts.iter().map(|kind| kind.count).sum::<u64>(), 1_000);
        assert_eq!((&*counts[0].message, counts[0].count), (OTHERS, 1_000 - KINDS as u64));
        assert!(counts.iter().all(|kind| kind.message.len() < LONGEST + 4));
    }
}
