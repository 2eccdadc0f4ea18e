//! What is recommended.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::extract::Item;

const TITLE_CHARS: usize = 200;
const CATEGORY_CHARS: usize = 64;
/// Words of an entity that search finds it by.
const TERM_LIMIT: usize = 32;
/// Longer words are found by their beginning only.
const TERM_CHARS: usize = 32;

/// Something that users view, like and buy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entity {
    /// 1 or more.
    pub(crate) id: i64,
    /// 1 to 200 characters.
    pub(crate) title: String,
    /// 1 to 64 characters; empty: none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) category: String,
}

impl Entity {
    /// The words that search finds it by, each once.
    pub(crate) fn terms(&self) -> Vec<String> {
        let mut terms = terms_of(&self.title);
        terms.extend(terms_of(&self.category));
        terms.truncate(TERM_LIMIT);
        terms.sort_unstable();
        terms.dedup();
        terms
    }
}

impl Item for Entity {
    fn check(&self, mut fault: impl FnMut(&'static str, String)) {
        if self.id < 1 {
            fault("id", format!("{} is not 1 or more", self.id));
        }
        let title = self.title.chars().count();
        if self.title.trim().is_empty() || title > TITLE_CHARS {
            fault("title", format!("{title} characters; give 1 to {TITLE_CHARS}, not all blank"));
        }
        // NUL is no text to PostgreSQL, and no title needs the others.
        if self.title.chars().any(char::is_control) {
            fault("title", "holds control characters".to_owned());
        }
        let category = self.category.chars().count();
        if category > CATEGORY_CHARS || self.category.chars().any(char::is_control) {
            fault(
                "category",
                format!(
                    "{category} characters; give up to {CATEGORY_CHARS}, none a control character"
                ),
            );
        }
    }
}

/// The words of a text: letters and digits, in lower case.
pub(crate) fn terms_of(text: &str) -> Vec<String> {
    text.split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(|word| word.chars().flat_map(char::to_lowercase).take(TERM_CHARS).collect())
        .collect()
}

/// A title as it stands in lists. Shared: a model and its successor hold the same ones.
pub(crate) type Title = std::sync::Arc<str>;

/// A line of a list of entities.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Listed<'a> {
    pub(crate) id: i64,
    pub(crate) title: Cow<'a, str>,
    /// Higher is better; comparable within one list only.
    pub(crate) score: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_letters_and_digits_in_lower_case() {
        assert_eq!(terms_of("Grüner Tee, 100g!"), ["grüner", "tee", "100g"]);
        let entity =
            Entity { id: 1, title: "tea Tea TEA".to_owned(), category: "hot tea".to_owned() };
        assert_eq!(entity.terms(), ["hot", "tea"]);
    }

    #[test]
    fn every_fault_is_named() {
        let mut fields = Vec::new();
        let entity = Entity { id: 0, title: "\0".to_owned(), category: "c".repeat(65) };
        entity.check(|field, _| fields.push(field));
        assert_eq!(fields, ["id", "title", "category"]);
        let entity = Entity { id: 1, title: "é".repeat(200), category: String::new() };
        entity.check(|field, detail| panic!("{field}: {detail}"));
    }
}
