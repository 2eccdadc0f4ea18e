//! Requirements by route, as a file.

use std::{collections::BTreeMap, fs, ops::Range, path::Path};

use toml::Spanned;

use super::Threshold;
use crate::script::{ScriptError, Source, remedied};

/// Stands for all routes together.
const WHOLE: &str = "*";

/// By route, its expressions.
type Table = BTreeMap<Spanned<String>, Spanned<Vec<Spanned<String>>>>;

impl Threshold {
    /// Reads a file with the requirements of each route, in TOML:
    ///
    /// ```toml
    /// "*" = ["errors < 0.1%", "rss < 1GiB"]
    /// "GET /items/{id}" = ["p95 < 200ms", "pool_wait:db p99 < 5ms"]
    /// ```
    ///
    /// Routes are called as reports call them; `*` is all of them together.
    ///
    /// # Errors
    /// If the file cannot be read, or says something that makes no sense: all of it, each with its place.
    pub fn read(path: impl AsRef<Path>) -> Result<Vec<Self>, ScriptError> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|error| {
            ScriptError::of_file(path, format_args!("it cannot be read: {error}"))
        })?;
        Self::from_toml(&text, path)
    }

    /// Reads requirements from a text, like [`read`](Self::read). `path` is what errors call it.
    ///
    /// ```
    /// use parallax_loadgen::Threshold;
    ///
    /// let text = r#""GET /items/{id}" = ["p95 < 200ms"]"#;
    /// let thresholds = Threshold::from_toml(text, "slo.toml").expect("it is right");
    /// assert_eq!(thresholds[0].to_string(), r#"response_time p95{route="GET /items/{id}"} < 200ms"#);
    ///
    /// let wrong = Threshold::from_toml(&text.replace("200ms", "200m"), "slo.toml");
    /// assert_eq!(
    ///     wrong.expect_err("minutes are no unit").to_string(),
    ///     "slo.toml:1:32: `m` does not fit `response_time`; write a duration in ns, us, ms or s, for example 25ms"
    /// );
    /// ```
    ///
    /// # Errors
    /// As those of [`read`](Self::read).
    pub fn from_toml(text: &str, path: impl AsRef<Path>) -> Result<Vec<Self>, ScriptError> {
        let mut source = Source::new(path.as_ref(), text);
        let table: Table = match toml::from_str(text) {
            Ok(table) => table,
            Err(error) => {
                let what = format!(
                    "{}; a line is a route and its requirements, like \"GET /\" = [\"p99 < 25ms\"]",
                    remedied(error.message())
                );
                source.wrong(error.span().unwrap_or(0..0), what);
                return source.finish(Vec::new());
            }
        };
        if table.is_empty() {
            source.wrong(0..0, "nothing is required; write a line like \"*\" = [\"p99 < 25ms\"]");
        }
        let mut thresholds = Vec::new();
        for (route, expressions) in &table {
            let name = route.get_ref();
            if name.trim().is_empty() {
                source
                    .wrong(route.span(), "the route is empty; name one, or \"*\" for all together");
            }
            if expressions.get_ref().is_empty() {
                let what = format!("nothing is required of {name:?}; write like [\"p99 < 25ms\"]");
                source.wrong(expressions.span(), what);
            }
            for expression in expressions.get_ref() {
                let read = Self::parse(expression.get_ref());
                let of_route = |threshold: Self| match name.as_str() {
                    WHOLE => Ok(threshold),
                    route => threshold.on_route(route),
                };
                match read.and_then(of_route) {
                    Ok(threshold) => thresholds.push(threshold),
                    Err(error) => {
                        let at = within(text, expression, error.place());
                        source.wrong(at, error.on_one_line());
                    }
                }
            }
        }
        source.finish(thresholds)
    }
}

/// The place in the file of a part of an expression, which begins behind a quote and blanks; that of the whole one if
/// it is written in another way than it reads.
fn within(text: &str, expression: &Spanned<String>, part: Range<usize>) -> Range<usize> {
    let at = expression.span();
    let value = expression.get_ref();
    let start = at.start + 1 + (value.len() - value.trim_start().len());
    let as_it_reads = text.get(start..).is_some_and(|rest| rest.starts_with(value.trim()));
    if as_it_reads { start + part.start..start + part.end } else { at }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::threshold::Metric;

    fn read(text: &str) -> Vec<Threshold> {
        Threshold::from_toml(text, "slo.toml").unwrap_or_else(|error| panic!("{error}"))
    }

    fn refusal(text: &str) -> String {
        Threshold::from_toml(text, "slo.toml").expect_err(text).to_string()
    }

    #[test]
    fn a_line_is_a_route_and_what_is_required_of_it() {
        let read = read(
            r#"
            # Of all together.
            "*" = ["errors < 0.1%", "rss < 1GiB", 'p95{route="GET /"} < 1s']
            "GET /items/{id}" = ["p95 < 200ms", "pool_wait:db p99 < 5ms"]
            "#,
        );
        let shown: Vec<String> = read.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "errors < 0.1%",
                "rss < 1GiB",
                r#"response_time p95{route="GET /"} < 1s"#,
                r#"response_time p95{route="GET /items/{id}"} < 200ms"#,
                r#"pool_wait:db p99{route="GET /items/{id}"} < 5ms"#,
            ]
        );
        // The report shows which route it is about, and renderings read it there.
        for threshold in &read {
            assert_eq!(Threshold::parse(&threshold.expression).as_ref(), Ok(threshold));
        }
        assert_eq!(read[4].metric, Metric::Phase("pool_wait:db".to_owned()));
    }

    #[test]
    fn everything_that_is_wrong_is_told_with_its_place_and_the_remedy() {
        let text = r#""GET /" = [
    "p99 < 25m",
    'rss < 1GiB',
    "errors{route=\"GET /\"} < 1%",
]
"GET /b" = []
"" = ["p99 < 1s"]
"#;
        assert_eq!(
            refusal(text),
            "slo.toml:2:14: `m` does not fit `response_time`; write a duration in ns, us, ms or s, for example \
             25ms\n\
             slo.toml:3:6: `rss` is not known by route; put it under \"*\"\n\
             slo.toml:4:5: it stands under a route, and selects one; leave the selector out\n\
             slo.toml:6:12: nothing is required of \"GET /b\"; write like [\"p99 < 25ms\"]\n\
             slo.toml:7:1: the route is empty; name one, or \"*\" for all together"
        );
    }

    #[test]
    fn what_is_no_such_table_says_what_one_is() {
        for (text, place, words) in [
            ("", "slo.toml:1:1: ", "nothing is required"),
            ("\"GET /\" = \"p99 < 1s\"", "slo.toml:1:11: ", "expected a sequence"),
            (
                "[[threshold]]\nexpression = \"p99 < 1s\"",
                "slo.toml:1:",
                "like \"GET /\" = [\"p99 < 25ms\"]",
            ),
            ("\"GET /\" = [1]", "slo.toml:1:12: ", "expected a string"),
            ("\"a\" = []\n\"a\" = []", "slo.toml:2:1: ", "duplicate key"),
            ("GET / = []", "slo.toml:1:5: ", "like \"GET /\""),
        ] {
            let error = refusal(text);
            assert!(error.starts_with(place) && error.contains(words), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_with_the_reason(text in any::<String>()) {
            if let Err(error) = Threshold::from_toml(&text, "slo.toml") {
                prop_assert!(error.problems().all(|problem| problem.starts_with("slo.toml:")));
            }
        }

        #[test]
        fn any_expression_under_a_route_is_read_or_refused_with_its_place(
            expression in r#"[a-z_:]{0,9}( p?[0-9]{0,3})?(\{route='?[a-z]{0,3}'?\})? ?[<>=]{1,2} ?[0-9.]{0,4}[a-z%/]{0,2}"#,
            blanks in " {0,3}",
        ) {
            let text = format!("\"GET /\" = [\n  \"{blanks}{expression}\"\n]");
            match Threshold::from_toml(&text, "slo.toml") {
                Ok(read) => prop_assert_eq!(read[0].route.as_deref(), Some("GET /")),
                Err(error) => {
                    let refused = Threshold::parse(&expression).err();
                    let within = refused.map_or(0, |error| error.place().start);
                    let before = blanks.len() + expression.len() - expression.trim_start().len();
                    let begin = format!("slo.toml:2:{}: ", 4 + before + within);
                    prop_assert!(error.to_string().starts_with(&begin), "{}", error);
                }
            }
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Threshold::read("/nowhere/slo.toml").expect_err("it is not there").to_string();
        assert!(error.starts_with("/nowhere/slo.toml: it cannot be read: "), "{error}");
    }
}
