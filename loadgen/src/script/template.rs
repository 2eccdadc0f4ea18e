//! Texts with places for values, `{{name}}`: what is in them, and what they become.

use std::fmt::Write;

use rand::RngExt;
use serde_json::Value;

use super::data::Row;
use crate::scenario::LoadRng;

/// A piece of a text, as it is written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Piece<'a> {
    Text(&'a str),
    /// What is between braces, and with them.
    Place {
        whole: &'a str,
        expression: Expression<'a>,
    },
}

/// What is between the braces.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Expression<'a> {
    /// `"{{"`: the text itself.
    Quoted(&'a str),
    /// `token`, `users.email`.
    Name(&'a str),
    /// `random.int(1, 6)`.
    Call { name: &'a str, arguments: Vec<&'a str> },
}

/// What is no template: the part that is not, and why.
pub(super) type BadPart<'a> = (&'a str, String);

/// Takes a text apart.
pub(super) fn pieces(text: &str) -> Result<Vec<Piece<'_>>, BadPart<'_>> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while let Some(open) = rest.find("{{") {
        if open > 0 {
            pieces.push(Piece::Text(&rest[..open]));
        }
        rest = &rest[open..];
        let inner = &rest[2..];
        let end = end_of(inner).ok_or_else(|| {
            let line = rest.lines().next().unwrap_or(rest);
            (
                line,
                r#""{{" has no "}}" after it; braces that stand for themselves are {{"{{"}}"#
                    .to_owned(),
            )
        })?;
        let whole = &rest[..2 + end + 2];
        let expression = expression(inner[..end].trim()).ok_or_else(|| {
            let like = "{{token}}, {{users.email}} or {{random.int(1,1000)}}";
            (whole, format!("{whole} is no name; write one like {like}"))
        })?;
        pieces.push(Piece::Place { whole, expression });
        rest = &rest[whole.len()..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    Ok(pieces)
}

/// Where `}}` is, outside of quotes.
fn end_of(text: &str) -> Option<usize> {
    let mut quoted = false;
    text.char_indices().find_map(|(at, c)| {
        quoted ^= c == '"';
        (!quoted && text[at..].starts_with("}}")).then_some(at)
    })
}

fn expression(text: &str) -> Option<Expression<'_>> {
    if let Some(text) = quoted(text) {
        return Some(Expression::Quoted(text));
    }
    let Some((name, arguments)) = text.split_once('(') else {
        return is_path(text).then_some(Expression::Name(text));
    };
    let arguments = arguments.strip_suffix(')')?;
    is_path(name).then(|| Expression::Call { name, arguments: split(arguments) })
}

fn quoted(text: &str) -> Option<&str> {
    let text = text.strip_prefix('"')?.strip_suffix('"')?;
    (!text.contains('"')).then_some(text)
}

/// What is between commas, outside of quotes.
fn split(text: &str) -> Vec<&str> {
    let mut in_quotes = false;
    let parts = text.split(|c| {
        in_quotes ^= c == '"';
        c == ',' && !in_quotes
    });
    parts.map(str::trim).map(|part| quoted(part).unwrap_or(part)).collect()
}

fn is_path(text: &str) -> bool {
    text.split('.').all(is_name)
}

/// Letters, digits, `_` and `-`, and no digit first.
pub(super) fn is_name(text: &str) -> bool {
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    text.chars().all(letters) && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// A text with places for values, every name of which is known.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub(super) parts: Vec<Part>,
    /// An environment variable is in it.
    pub(super) secret: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Part {
    Text(String),
    /// A variable of the file, or of the environment.
    Constant(Value),
    /// What a step, or the setup, has extracted.
    Slot(usize),
    /// A column of a row of the iteration; its longest value has so many bytes.
    Column {
        row: usize,
        column: usize,
        longest: usize,
    },
    Int(i64, i64),
    Uuid,
    Choice(Vec<String>),
}

/// What an iteration knows.
#[derive(Debug)]
pub(super) struct Known<'a> {
    pub(super) values: &'a [Value],
    pub(super) rows: &'a [Row],
    pub(super) random: &'a mut LoadRng,
}

/// What becomes of a value within a text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Encoding {
    /// It stays as it is.
    Plain,
    /// It is percent-encoded, but where a path begins with it.
    Path,
    /// It is percent-encoded, and so is what is around it.
    Form,
}

impl Encoding {
    fn encodes(self, part: usize) -> bool {
        match self {
            Self::Plain => false,
            Self::Path => part > 0,
            Self::Form => true,
        }
    }

    /// Adds what is around values.
    fn push_text(self, text: &mut String, part: &str) {
        match self {
            Self::Plain | Self::Path => text.push_str(part),
            Self::Form => push_encoded(text, part),
        }
    }
}

impl Template {
    /// The text, if it is always the same.
    pub(super) fn constant(&self, encoding: Encoding) -> Option<String> {
        let mut text = String::new();
        for (n, part) in self.parts.iter().enumerate() {
            match part {
                Part::Text(part) => encoding.push_text(&mut text, part),
                Part::Constant(value) => push(&mut text, value, encoding.encodes(n)),
                _ => return None,
            }
        }
        Some(text)
    }

    /// The [value](Self::value), if it is always the same.
    pub(super) fn fixed(&self) -> Option<Value> {
        match &self.parts[..] {
            [Part::Constant(value)] => Some(value.clone()),
            _ => self.constant(Encoding::Plain).map(Value::String),
        }
    }

    /// What is between the places of values.
    pub(super) fn text_alone(&self) -> String {
        let texts = self.parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    /// A text of this form, no shorter than any that can be known before there are answers.
    pub(super) fn sample(&self, encoding: Encoding) -> String {
        let mut text = String::new();
        for (n, part) in self.parts.iter().enumerate() {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Int(..) | Part::Uuid => text.push_str(&"x".repeat(UUID_LENGTH)),
                // A path may begin with any other value.
                _ if n == 0 && encoding == Encoding::Path => text.push('/'),
                Part::Constant(value) => push(&mut text, value, encoding.encodes(n)),
                Part::Slot(_) => text.push('x'),
                // Percent-encoded, a byte takes three.
                Part::Column { longest, .. } => text.push_str(&"x".repeat(3 * longest)),
                Part::Choice(options) => {
                    let longest = options.iter().map(String::len).max().unwrap_or(0);
                    text.push_str(&"x".repeat(3 * longest));
                }
            }
        }
        text
    }

    /// True if all texts of this form have the characters that its [sample](Self::sample) has.
    pub(super) fn is_certain(&self, encoding: Encoding) -> bool {
        self.parts.iter().enumerate().all(|(n, part)| match part {
            Part::Text(_) => true,
            Part::Slot(_) => false,
            Part::Int(..) | Part::Uuid => n > 0 || encoding != Encoding::Path,
            Part::Constant(_) | Part::Column { .. } | Part::Choice(_) => encoding.encodes(n),
        })
    }

    pub(super) fn render(&self, encoding: Encoding, known: &mut Known<'_>) -> String {
        let mut text = String::new();
        for (n, part) in self.parts.iter().enumerate() {
            let encoded = encoding.encodes(n);
            match part {
                Part::Text(part) => encoding.push_text(&mut text, part),
                Part::Constant(value) => push(&mut text, value, encoded),
                Part::Slot(slot) => push(&mut text, &known.values[*slot], encoded),
                Part::Column { row, column, .. } => {
                    push(&mut text, known.rows[*row].value(*column), encoded);
                }
                Part::Int(..) | Part::Uuid | Part::Choice(_) => {
                    push(&mut text, &part.value(known), encoded);
                }
            }
        }
        text
    }

    /// The text; or, if it is nothing but the place of a value, that value with its type.
    pub(super) fn value(&self, known: &mut Known<'_>) -> Value {
        match &self.parts[..] {
            [part] => part.value(known),
            _ => Value::String(self.render(Encoding::Plain, known)),
        }
    }
}

const UUID_LENGTH: usize = 36;

impl Part {
    pub(super) fn is_generated(&self) -> bool {
        matches!(self, Self::Int(..) | Self::Uuid | Self::Choice(_))
    }

    fn value(&self, known: &mut Known<'_>) -> Value {
        match self {
            Self::Text(text) => text.as_str().into(),
            Self::Constant(value) => value.clone(),
            Self::Slot(slot) => known.values[*slot].clone(),
            Self::Column { row, column, .. } => known.rows[*row].value(*column).clone(),
            Self::Int(least, most) => known.random.random_range(*least..=*most).into(),
            Self::Uuid => uuid(known.random).into(),
            Self::Choice(options) => {
                options[known.random.random_range(0..options.len())].as_str().into()
            }
        }
    }
}

/// A random one, version 4 of RFC 9562.
fn uuid(random: &mut LoadRng) -> String {
    let bits = random.random::<u128>() & !(0xF << 76) & !(0b11 << 62) | (0x4 << 76) | (0b10 << 62);
    let hex = format!("{bits:032x}");
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// A value as text: a text as it is, anything else as JSON.
pub(super) fn push(text: &mut String, value: &Value, encoded: bool) {
    match value {
        Value::String(value) if encoded => push_encoded(text, value),
        Value::String(value) => text.push_str(value),
        value if encoded => push_encoded(text, &value.to_string()),
        value => {
            let _ = write!(text, "{value}");
        }
    }
}

/// All but the unreserved characters of RFC 3986 percent-encoded.
pub(super) fn push_encoded(text: &mut String, value: &str) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
}

/// As many bytes as a value has as text.
pub(super) fn length(value: &Value) -> usize {
    let mut text = String::new();
    push(&mut text, value, false);
    text.len()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scenario::stream;

    fn template(parts: impl IntoIterator<Item = Part>) -> Template {
        Template { parts: parts.into_iter().collect(), secret: false }
    }

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    fn render(parts: impl IntoIterator<Item = Part>, encoding: Encoding) -> String {
        let values = [json!("a b/ü"), json!(7), json!({ "a": null })];
        let mut random = stream(1, "", 0);
        let mut known = Known { values: &values, rows: &[], random: &mut random };
        template(parts).render(encoding, &mut known)
    }

    #[test]
    fn a_text_is_taken_apart_into_texts_and_places() {
        let place = |whole, expression| Piece::Place { whole, expression };
        assert_eq!(
            pieces("/a/{{ id }}?q={{users.e-mail}}}").expect("good"),
            [
                Piece::Text("/a/"),
                place("{{ id }}", Expression::Name("id")),
                Piece::Text("?q="),
                place("{{users.e-mail}}", Expression::Name("users.e-mail")),
                Piece::Text("}"),
            ]
        );
        let choice = r#"{{random.choice(a, "b, }}",)}}"#;
        let call = Expression::Call { name: "random.choice", arguments: vec!["a", "b, }}", ""] };
        assert_eq!(pieces(choice).expect("good"), [place(choice, call)]);
        let braces = r#"{"a":{"b":{{"{{"}}}}"#;
        assert_eq!(
            pieces(braces).expect("good")[1],
            place(r#"{{"{{"}}"#, Expression::Quoted("{{"))
        );
        assert_eq!(pieces("").expect("good"), []);
    }

    #[test]
    fn what_is_no_template_is_refused_with_the_part_that_is_not() {
        for (text, part) in [
            ("a {{b", "{{b"),
            ("a {{b}\nc}", "{{b}"),
            ("{{}}", "{{}}"),
            ("{{1a}}", "{{1a}}"),
            ("{{a..b}}", "{{a..b}}"),
            ("{{a b}}", "{{a b}}"),
            ("{{a(b}}", "{{a(b}}"),
            ("{{ü}}", "{{ü}}"),
            ("{{\"a\"b\"}}", "{{\"a\"b\"}}"),
        ] {
            assert_eq!(pieces(text).expect_err(text).0, part);
        }
    }

    #[test]
    fn values_are_percent_encoded_in_paths_and_forms_but_not_where_a_path_begins() {
        let parts = || [Part::Slot(0), text("/"), Part::Slot(0)];
        assert_eq!(render(parts(), Encoding::Plain), "a b/ü/a b/ü");
        assert_eq!(render(parts(), Encoding::Path), "a b/ü/a%20b%2F%C3%BC");
        assert_eq!(render(parts(), Encoding::Form), "a%20b%2F%C3%BC%2Fa%20b%2F%C3%BC");
        assert_eq!(render([text("n="), Part::Slot(1)], Encoding::Path), "n=7");
        assert_eq!(render([text("n="), Part::Slot(2)], Encoding::Plain), r#"n={"a":null}"#);
    }

    #[test]
    fn a_place_by_itself_keeps_the_type_of_its_value() {
        let values = [json!(7)];
        let mut random = stream(1, "", 0);
        let mut known = Known { values: &values, rows: &[], random: &mut random };
        assert_eq!(template([Part::Slot(0)]).value(&mut known), json!(7));
        assert_eq!(template([text("n"), Part::Slot(0)]).value(&mut known), json!("n7"));
        assert_eq!(template([]).value(&mut known), json!(""));
        assert!(template([Part::Int(3, 3)]).value(&mut known) == json!(3));
    }

    #[test]
    fn generated_values_are_within_their_bounds_and_of_their_form() {
        let mut random = stream(1, "", 0);
        let mut known = Known { values: &[], rows: &[], random: &mut random };
        let mut ints = std::collections::BTreeSet::new();
        for _ in 0..1_000 {
            let Value::Number(n) = Part::Int(-1, 1).value(&mut known) else { panic!() };
            ints.insert(n.as_i64().expect("whole"));
            let uuid = uuid(known.random);
            assert_eq!(uuid.len(), UUID_LENGTH);
            assert_eq!(uuid.as_bytes()[14], b'4', "{uuid}");
            assert!(b"89ab".contains(&uuid.as_bytes()[19]), "{uuid}");
        }
        assert_eq!(Vec::from_iter(ints), [-1, 0, 1]);
        let all = Part::Int(i64::MIN, i64::MAX).value(&mut known);
        assert!(all.is_number());
    }

    #[test]
    fn a_sample_is_at_least_as_long_as_what_it_stands_for() {
        let options = vec!["ü".repeat(9), "b".to_owned()];
        let parts = [text("/"), Part::Choice(options), Part::Int(i64::MIN, 0), Part::Uuid];
        let sample = template(parts.clone()).sample(Encoding::Path);
        assert!(sample.len() >= render(parts, Encoding::Path).len());
    }
}
