//! JSON with places for values in its strings.

use std::{fmt, ops::Range};

use serde_json::{Map, Number, Value};

use super::{
    error::Source,
    scope::Scope,
    template::{Known, Template},
};

#[derive(Clone, Debug)]
pub(super) enum Json {
    /// Always the same.
    Fixed(Value),
    Text(Template),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// A value of TOML as JSON; what is wrong with it is told of `who`.
    pub(super) fn new(
        source: &mut Source<'_>,
        scope: &mut Scope<'_, '_>,
        at: &Range<usize>,
        value: &toml::Value,
        who: &dyn fmt::Display,
    ) -> Self {
        let mut wrong = |what: &str| {
            source.wrong(at.clone(), format!("{who} has {what}"));
            Self::Fixed(Value::Null)
        };
        match value {
            toml::Value::String(text) => {
                let template = scope.template(source, at.clone(), text, who);
                match template.fixed() {
                    Some(value) => Self::Fixed(value),
                    None => Self::Text(template),
                }
            }
            toml::Value::Integer(n) => Self::Fixed((*n).into()),
            toml::Value::Float(n) => match Number::from_f64(*n) {
                Some(n) => Self::Fixed(Value::Number(n)),
                None => {
                    wrong(&format!("the number {n}, which JSON has not; write another, or a text"))
                }
            },
            toml::Value::Boolean(value) => Self::Fixed((*value).into()),
            toml::Value::Datetime(time) => wrong(&format!(
                "the date {time}, which JSON has not; write it as a text, \"{time}\""
            )),
            toml::Value::Array(values) => Self::Array(
                values.iter().map(|value| Self::new(source, scope, at, value, who)).collect(),
            )
            .folded(),
            toml::Value::Table(table) => {
                let mut members = Vec::with_capacity(table.len());
                for (key, value) in table {
                    if key.contains("{{") {
                        let what = format!(
                            "{who} has a place for a value in the key {key:?}; a key is always the same"
                        );
                        source.wrong_within(at.clone(), key, what);
                    }
                    members.push((key.clone(), Self::new(source, scope, at, value, who)));
                }
                Self::Object(members).folded()
            }
        }
    }

    /// As one value, if all within is always the same.
    fn folded(self) -> Self {
        let fixed = |json: &Self| match json {
            Self::Fixed(value) => Some(value.clone()),
            Self::Text(_) | Self::Array(_) | Self::Object(_) => None,
        };
        let value = match &self {
            Self::Array(values) => {
                values.iter().map(fixed).collect::<Option<_>>().map(Value::Array)
            }
            Self::Object(members) => members
                .iter()
                .map(|(key, json)| Some((key.clone(), fixed(json)?)))
                .collect::<Option<Map<_, _>>>()
                .map(Value::Object),
            Self::Fixed(_) | Self::Text(_) => None,
        };
        value.map_or(self, Self::Fixed)
    }

    pub(super) fn render(&self, known: &mut Known<'_>) -> Value {
        match self {
            Self::Fixed(value) => value.clone(),
            Self::Text(template) => template.value(known),
            Self::Array(values) => values.iter().map(|value| value.render(known)).collect(),
            Self::Object(members) => {
                members.iter().map(|(key, value)| (key.clone(), value.render(known))).collect()
            }
        }
    }
}

/// True if two values are the same; 1 and 1.0 are.
pub(super) fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            let same = |(key, a)| b.get(key).is_some_and(|b| is_same(a, b));
            a.len() == b.len() && a.iter().all(same)
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_the_same_if_their_values_are() {
        let a = json!({ "n": [1, 2.5], "s": "1" });
        assert!(is_same(&a, &json!({ "s": "1", "n": [1.0, 2.5] })));
        for other in [
            json!({ "n": [1, 2.5], "s": 1 }),
            json!({ "n": [1], "s": "1" }),
            json!({ "n": [1, 2.5] }),
            json!({ "n": [1, 2.5], "t": "1" }),
        ] {
            assert!(!is_same(&a, &other), "{other}");
        }
    }
}
