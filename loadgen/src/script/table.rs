//! The tables of a scenario file, as TOML has them: what keys there are, and of which types.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::{Spanned, Value};

/// By name, each with its place.
pub(super) type Named<T> = BTreeMap<Spanned<String>, T>;
pub(super) type Text = Spanned<String>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) variables: Named<Spanned<Value>>,
    #[serde(default)]
    pub(super) data: Named<Data>,
    #[serde(default)]
    pub(super) setup: Vec<Spanned<Step>>,
    #[serde(default)]
    pub(super) teardown: Vec<Spanned<Step>>,
    #[serde(default)]
    pub(super) request: Vec<Spanned<Step>>,
    #[serde(default)]
    pub(super) flow: Vec<Spanned<Flow>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Data {
    pub(super) file: Text,
    #[serde(default)]
    pub(super) pick: Pick,
}

/// Which row an iteration has.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Pick {
    /// Any.
    #[default]
    Random,
    /// The next one, after the last the first.
    Sequential,
    /// The next one, until there is none.
    Once,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Flow {
    pub(super) name: Text,
    pub(super) weight: Option<Spanned<u32>>,
    #[serde(default)]
    pub(super) step: Vec<Spanned<Step>>,
}

/// A request: one of a flow, of a setup, of a teardown, or by itself.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Step {
    pub(super) name: Option<Text>,
    pub(super) weight: Option<Spanned<u32>>,
    pub(super) method: Option<Text>,
    pub(super) path: Text,
    #[serde(default)]
    pub(super) headers: Named<Text>,
    pub(super) body: Option<Text>,
    pub(super) json: Option<Spanned<Value>>,
    pub(super) form: Option<Spanned<Named<Text>>>,
    pub(super) pause: Option<Spanned<Value>>,
    #[serde(default)]
    pub(super) extract: Named<Spanned<Source>>,
    #[serde(default)]
    pub(super) check: Check,
}

/// Where a value is in an answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Source {
    Json(String),
    Header(String),
    Cookie(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Check {
    pub(super) status: Option<Spanned<Value>>,
    #[serde(default)]
    pub(super) header: Named<Text>,
    #[serde(default)]
    pub(super) json: Named<Spanned<Value>>,
    pub(super) body_contains: Option<Text>,
    pub(super) max_bytes: Option<u64>,
    #[serde(default)]
    pub(super) go_on: bool,
}
