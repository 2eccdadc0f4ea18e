//! What a step requires of its answer.

use std::{cell::OnceCell, fmt};

use http::{HeaderName, StatusCode};
use serde_json::Value;

use super::{
    error::{Source, shown},
    json::{Json, is_same},
    request::header_name,
    scope::Scope,
    secrets::Secrets,
    table,
    template::{Encoding, Known, Template},
};
use crate::session::Reply;

/// A requirement, under the name that the report has for it.
#[derive(Clone, Debug)]
pub(super) struct Check {
    pub(super) name: String,
    rule: Rule,
}

#[derive(Clone, Debug)]
enum Rule {
    /// One of these ranges, from and to.
    Status(Vec<(u16, u16)>),
    Header(HeaderName, Template),
    Json(String, Json),
    Contains(Template),
    MaxBytes(u64),
}

/// An answer, whose body is read as JSON once, if it is.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    pub(super) reply: &'a Reply,
    json: OnceCell<Option<Value>>,
}

impl<'a> Answer<'a> {
    pub(super) fn new(reply: &'a Reply) -> Self {
        Self { reply, json: OnceCell::new() }
    }

    /// What a JSON pointer points to, or why nothing.
    pub(super) fn at(&self, pointer: &str) -> Result<&Value, String> {
        let body = self.json.get_or_init(|| serde_json::from_slice(&self.reply.body).ok());
        let body = body.as_ref().ok_or("the answer is not JSON")?;
        body.pointer(pointer).ok_or_else(|| format!("the answer has nothing at {pointer:?}"))
    }
}

/// The checks of a step, in the order of the reference.
pub(super) fn checks(
    source: &mut Source<'_>,
    scope: &mut Scope<'_, '_>,
    step: &str,
    table: &table::Check,
    who: &dyn fmt::Display,
) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut add = |what: fmt::Arguments<'_>, rule| {
        checks.push(Check { name: format!("{step}: {what}"), rule });
    };
    if let Some(status) = &table.status {
        match Statuses::parse(status.get_ref()) {
            Some(Statuses { ranges, text }) => add(format_args!("status is {text}"), Rule::Status(ranges)),
            None => source.wrong(
                status.span(),
                format!(
                    "{who} checks for the status {}; a status is a number like 200, a class like \"2xx\", or a \
                     list of them",
                    shown(status.get_ref())
                ),
            ),
        }
    }
    for (key, value) in &table.header {
        let template = scope.template(source, value.span(), value.get_ref(), who);
        if let Some(name) = header_name(source, key, who) {
            let what = format!("header {name} is {:?}", value.get_ref());
            add(format_args!("{what}"), Rule::Header(name, template));
        }
    }
    for (pointer, value) in &table.json {
        let json = Json::new(source, scope, &value.span(), value.get_ref(), who);
        if is_pointer(source, pointer.span(), pointer.get_ref(), who) {
            let what = format!("{} is {}", pointer.get_ref(), shown(value.get_ref()));
            add(format_args!("{what}"), Rule::Json(pointer.get_ref().clone(), json));
        }
    }
    if let Some(text) = &table.body_contains {
        let template = scope.template(source, text.span(), text.get_ref(), who);
        add(format_args!("body contains {:?}", text.get_ref()), Rule::Contains(template));
    }
    if let Some(bytes) = table.max_bytes {
        add(format_args!("body has at most {bytes} bytes"), Rule::MaxBytes(bytes));
    }
    checks
}

/// True if a text is a JSON pointer.
pub(super) fn is_pointer(
    source: &mut Source<'_>,
    at: std::ops::Range<usize>,
    pointer: &str,
    who: &dyn fmt::Display,
) -> bool {
    let right = pointer.is_empty() || pointer.starts_with('/');
    if !right {
        let what = format!(
            "{who} has the JSON pointer {pointer:?}; a pointer begins with \"/\", like \"/items/0/id\""
        );
        source.wrong(at, what);
    }
    right
}

struct Statuses {
    ranges: Vec<(u16, u16)>,
    text: String,
}

impl Statuses {
    fn parse(value: &toml::Value) -> Option<Self> {
        let one = |value: &toml::Value| match value {
            toml::Value::Integer(code @ 100..=599) => {
                Some(((*code as u16, *code as u16), code.to_string()))
            }
            toml::Value::String(class) => {
                let hundreds = class.strip_suffix("xx")?;
                let first = ["1", "2", "3", "4", "5"].iter().position(|n| *n == hundreds)?;
                let first = (first as u16 + 1) * 100;
                Some(((first, first + 99), class.clone()))
            }
            _ => None,
        };
        let values = match value {
            toml::Value::Array(values) if !values.is_empty() => &values[..],
            toml::Value::Array(_) => return None,
            value => std::slice::from_ref(value),
        };
        let parsed = values.iter().map(one).collect::<Option<Vec<_>>>()?;
        let (ranges, texts): (Vec<_>, Vec<_>) = parsed.into_iter().unzip();
        Some(Self { ranges, text: texts.join(" or ") })
    }
}

impl Check {
    /// What is wrong with an answer.
    pub(super) fn failure(
        &self,
        answer: &Answer<'_>,
        known: &mut Known<'_>,
        secrets: &Secrets,
    ) -> Option<String> {
        let reply = answer.reply;
        match &self.rule {
            Rule::Status(ranges) => {
                let is = StatusCode::as_u16(&reply.status);
                let held = ranges.iter().any(|(from, to)| (*from..=*to).contains(&is));
                (!held).then(|| format!("it is {is}"))
            }
            Rule::Header(name, template) => {
                let wanted = template.render(Encoding::Plain, known);
                match reply.header(name.as_str()) {
                    Some(value) if value == wanted => None,
                    Some(value) => Some(format!("it is {:?}", secrets.hide(value))),
                    None => Some("it is absent".to_owned()),
                }
            }
            Rule::Json(pointer, json) => {
                let wanted = json.render(known);
                match answer.at(pointer) {
                    Ok(value) if is_same(value, &wanted) => None,
                    Ok(value) => Some(format!("it is {}", told(value, secrets))),
                    Err(why) => Some(why),
                }
            }
            Rule::Contains(template) => {
                let wanted = template.render(Encoding::Plain, known);
                let held = contains(&reply.body, wanted.as_bytes());
                (!held).then(|| format!("its {} bytes do not", reply.body.len()))
            }
            Rule::MaxBytes(most) => {
                let bytes = reply.body.len() as u64;
                (bytes > *most).then(|| format!("it has {bytes}"))
            }
        }
    }
}

/// A value of an answer, for a report: what it is, if that is short.
fn told(value: &Value, secrets: &Secrets) -> String {
    match value {
        Value::Array(values) => format!("an array of {}", values.len()),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) => format!("{:?}", secrets.hide(text)),
        value => secrets.hide(&value.to_string()),
    }
}

/// True if `text` is somewhere in `body`.
fn contains(body: &[u8], text: &[u8]) -> bool {
    text.is_empty() || body.windows(text.len()).any(|part| part == text)
}
