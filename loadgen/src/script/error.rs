//! Why a file was not read: a scenario, or what is required of it.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

/// Why a file was not read, of a scenario or of thresholds: everything that is wrong with it, each with its place.
///
/// Its text has a line for each, like `shop.toml:14:9: …`; lines and columns count from 1, columns in
/// characters. It has no value of an environment variable in it.
#[derive(Debug)]
pub struct ScriptError {
    problems: Vec<Problem>,
}

#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Problem {
    file: PathBuf,
    place: Option<(usize, usize)>,
    what: String,
}

impl ScriptError {
    /// What concerns a file as a whole.
    pub(crate) fn of_file(file: &Path, what: impl fmt::Display) -> Self {
        Self { problems: vec![Problem { file: file.into(), place: None, what: what.to_string() }] }
    }

    /// What is wrong, one text for each thing, in the order of the file.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        self.problems.iter().map(ToString::to_string)
    }
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            let separator = if n == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ScriptError {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// A file that is being read, and what was wrong with it so far.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    pub(super) path: &'a Path,
    text: &'a str,
    problems: Vec<Problem>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(path: &'a Path, text: &'a str) -> Self {
        Self { path, text, problems: Vec::new() }
    }

    pub(crate) fn wrong(&mut self, at: Range<usize>, what: impl Into<String>) {
        let place = Some(self.place(at.start));
        self.problems.push(Problem { file: self.path.into(), place, what: what.into() });
    }

    /// What is wrong with `part` of a text that is at `at`.
    pub(super) fn wrong_within(&mut self, at: Range<usize>, part: &str, what: impl Into<String>) {
        let find = |text: Option<&str>| text.and_then(|text| text.find(part));
        // A table's place is that of its header: what is in it follows.
        let offset = find(self.text.get(at.clone())).or_else(|| find(self.text.get(at.start..)));
        let start = at.start + offset.unwrap_or(0);
        self.wrong(start..start, what);
    }

    /// What is wrong with a line of another file.
    pub(super) fn wrong_in(&mut self, file: &Path, line: Option<u64>, what: impl Into<String>) {
        let place = line.map(|line| (line as usize, 1));
        self.problems.push(Problem { file: file.into(), place, what: what.into() });
    }

    /// What is right so far, or else everything that is not.
    pub(crate) fn finish<T>(mut self, value: T) -> Result<T, ScriptError> {
        if self.problems.is_empty() {
            return Ok(value);
        }
        self.problems.sort();
        self.problems.dedup();
        Err(ScriptError { problems: self.problems })
    }

    /// Line and column, in characters, from 1.
    fn place(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        let column = before[line_start..].chars().count() + 1;
        (before.matches('\n').count() + 1, column)
    }
}

/// The first of many names, for an error.
pub(super) fn list<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    const MANY: usize = 20;
    let names: Vec<&str> = names.into_iter().collect();
    let dots = if names.len() > MANY { ", …" } else { "" };
    format!("{}{dots}", names[..names.len().min(MANY)].join(", "))
}

/// A value as the file has it.
pub(super) fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => format!("{text:?}"),
        toml::Value::Integer(n) => n.to_string(),
        toml::Value::Float(n) => n.to_string(),
        toml::Value::Boolean(value) => value.to_string(),
        toml::Value::Datetime(time) => time.to_string(),
        toml::Value::Array(values) => {
            format!("[{}]", values.iter().map(shown).collect::<Vec<_>>().join(", "))
        }
        toml::Value::Table(table) => {
            let members = table.iter().map(|(key, value)| format!("{key:?}: {}", shown(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(", "))
        }
    }
}

/// What the reader of TOML says of a text or of a type, with a remedy.
pub(crate) fn remedied(message: &str) -> String {
    let message = message.trim();
    if let Some(field) = message.strip_prefix("missing field ") {
        return format!("{field} is missing; add it");
    }
    if message.starts_with("wanted exactly 1 element") {
        return "expected one of `json`, `header`, `cookie`, and nothing else".to_owned();
    }
    let whole = |message: &str, number| {
        Some(format!("{}a whole number from 0", message.strip_suffix(number)?))
    };
    let numbers = ["u32", "u64"].into_iter().find_map(|number| whole(message, number));
    numbers.unwrap_or_else(|| message.to_owned())
}

/// What is said of a text that can name nothing.
pub(super) fn not_a_name(text: &str) -> String {
    format!(
        "{text:?} is no name; a name has letters, digits, \"_\" and \"-\", and begins with a letter"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_lines_and_characters_from_1() {
        let text = "a = 1\nbü = '{{x}}'\n";
        let source = Source::new(Path::new("a.toml"), text);
        let at = |part| source.place(text.find(part).expect("it is there"));
        assert_eq!((at("a"), at("b"), at("{{")), ((1, 1), (2, 1), (2, 7)));
        assert_eq!(source.place(text.len()), (3, 1));
        // Past the end, or within a character: no place, but no panic either.
        assert_eq!(source.place(8), source.place(1_000));
    }

    #[test]
    fn problems_are_told_in_the_order_of_the_file_and_once() {
        let mut source = Source::new(Path::new("a.toml"), "one\ntwo\n");
        source.wrong(4..7, "second");
        source.wrong(0..3, "first");
        source.wrong_within(0..8, "wo", "within");
        source.wrong(4..7, "second");
        source.wrong_in(Path::new("a.csv"), Some(3), "no row");
        let error = source.finish(()).expect_err("four things are wrong");
        assert_eq!(
            error.to_string(),
            "a.csv:3:1: no row\na.toml:1:1: first\na.toml:2:1: second\na.toml:2:2: within"
        );
    }

    #[test]
    fn a_long_list_is_cut() {
        assert_eq!(list(["a", "b"]), "a, b");
        assert!(list(["x"; 30]).ends_with("x, …"));
    }
}
