//! Values of environment variables, which no text may show.

use std::fmt;

use super::template::push_encoded;

/// What must not be shown, and by what it is replaced.
#[derive(Clone, Default)]
pub(super) struct Secrets(Vec<(String, String)>);

impl Secrets {
    pub(super) fn add(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            let place = format!("{{{{env.{name}}}}}");
            // As it stands in a path.
            let mut encoded = String::new();
            push_encoded(&mut encoded, value);
            self.0.extend([(value.to_owned(), place.clone()), (encoded, place)]);
            // A secret may be a part of another one.
            self.0.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
            self.0.dedup();
        }
    }

    /// The text without any of them.
    pub(super) fn hide(&self, text: &str) -> String {
        self.0
            .iter()
            .fold(text.to_owned(), |text, (value, name)| text.replace(value.as_str(), name))
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(_, name)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_replaced_by_its_name_the_longest_first() {
        let mut secrets = Secrets::default();
        for (name, value) in
            [("SHORT", "abc"), ("LONG", "abc/def"), ("EMPTY", ""), ("LONG", "abc/def")]
        {
            secrets.add(name, value);
        }
        let hidden = secrets.hide("abc/def, abc, /a?key=abc%2Fdef");
        assert_eq!(hidden, "{{env.LONG}}, {{env.SHORT}}, /a?key={{env.LONG}}");
        assert!(!format!("{secrets:?}").contains("abc"));
    }
}
