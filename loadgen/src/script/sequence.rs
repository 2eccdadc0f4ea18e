//! Steps of a file, and what they become.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use toml::{Spanned, Value};

use super::{
    check::{checks, is_pointer},
    data::Data,
    error::{Source, not_a_name, shown},
    program::{Extract, From, Kind, Program, Step},
    request::{Blueprint, header_name},
    scope::{Globals, Scope},
    secrets::Secrets,
    table,
    template::{Piece, is_name, pieces},
};
use crate::{pause::Pause, plan::MAX_TIME};

/// Steps as they are to be done, and what they need.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    pub(super) steps: Vec<Step>,
    pub(super) slots: BTreeMap<String, usize>,
    data: Vec<Arc<Data>>,
    uses_values: bool,
}

impl Sequence {
    pub(super) fn program(
        self,
        kind: Kind,
        inherited: &BTreeMap<String, usize>,
        left: BTreeMap<String, usize>,
        secrets: &Arc<Secrets>,
    ) -> Arc<Program> {
        Arc::new(Program {
            kind,
            steps: self.steps,
            inherited: inherited.clone(),
            left,
            slots: self.slots.len(),
            data: self.data,
            secrets: secrets.clone(),
        })
    }

    /// The request and its data, if it is one by itself with which nothing can go wrong: it needs no session.
    pub(super) fn alone(&self) -> Option<(Blueprint, Vec<Arc<Data>>)> {
        let [Step { request, pause: None, checks, extracts, .. }] = &self.steps[..] else {
            return None;
        };
        let simple = request.certain && checks.is_empty() && extracts.is_empty();
        let endless = !self.uses_values && !self.data.iter().any(|data| data.ends());
        (simple && endless).then(|| (request.clone(), self.data.clone()))
    }
}

/// What a file's steps become; `kind` is what they are called.
pub(super) fn sequence(
    source: &mut Source<'_>,
    globals: &mut Globals<'_>,
    inherited: &BTreeMap<String, usize>,
    tables: &[Spanned<table::Step>],
    kind: &str,
) -> Sequence {
    let mut scope = Scope::new(globals, inherited.clone());
    let mut names = BTreeSet::new();
    let mut steps = Vec::with_capacity(tables.len());
    for table in tables {
        let (at, table) = (table.span(), table.get_ref());
        let name = name_of(source, table);
        if !names.insert(name.clone()) {
            let at = table.name.as_ref().map_or(at, Spanned::span);
            source.wrong(
                at,
                format!("there is a {kind} {name:?} before; give this one another `name`"),
            );
        }
        if let (true, Some(weight)) = (kind != "request", &table.weight) {
            let what = format!(
                "the {kind} {name:?} has a weight; only flows and requests by themselves have one"
            );
            source.wrong(weight.span(), what);
        }
        steps.push(step(source, &mut scope, table, name, kind));
    }
    let Scope { slots, data, uses_values, .. } = scope;
    Sequence { steps, slots, data, uses_values }
}

fn step(
    source: &mut Source<'_>,
    scope: &mut Scope<'_, '_>,
    table: &table::Step,
    name: String,
    kind: &str,
) -> Step {
    let who = format!("the {kind} {name:?}");
    let pause = table.pause.as_ref().and_then(|value| pause(source, value, &who));
    let request = Blueprint::new(source, scope, table, &who);
    let checks = checks(source, scope, &name, &table.check, &who);
    if table.check.go_on && checks.is_empty() {
        let at = table.path.span();
        source.wrong(
            at,
            format!("{who} goes on after failed checks, but has none; take `go_on` out"),
        );
    }
    let extracts =
        table.extract.iter().filter_map(|(name, from)| extract(source, scope, name, from, &who));
    let extracts = extracts.collect();
    Step { name, pause, request, checks, go_on: table.check.go_on, extracts }
}

/// Its name, or else its method and path, with `{id}` for `{{id}}` and without the query.
fn name_of(source: &mut Source<'_>, table: &table::Step) -> String {
    if let Some(name) = &table.name {
        check_name(source, name);
        return name.get_ref().clone();
    }
    let method = table.method.as_ref().map_or("GET", |method| method.get_ref());
    let path = table.path.get_ref();
    let path = match pieces(path) {
        Ok(pieces) => pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => (*text).to_owned(),
                Piece::Place { whole, .. } => whole[1..whole.len() - 1].replace(' ', ""),
            })
            .collect(),
        Err(_) => path.clone(),
    };
    format!("{method} {}", path.split('?').next().unwrap_or_default())
}

pub(super) fn check_name(source: &mut Source<'_>, name: &table::Text) {
    let text = name.get_ref();
    let what = match text.as_str() {
        "" => "a name is empty; leave `name` out, or write one".to_owned(),
        text if text.contains("{{") => {
            format!(
                "the name {text:?} has a place for a value; a name is always the same, for the report"
            )
        }
        _ => return,
    };
    source.wrong(name.span(), what);
}

fn extract(
    source: &mut Source<'_>,
    scope: &mut Scope<'_, '_>,
    name: &table::Text,
    from: &Spanned<table::Source>,
    who: &str,
) -> Option<Extract> {
    let text = name.get_ref();
    if !is_name(text) {
        source.wrong(name.span(), not_a_name(text));
        return None;
    }
    if let Some(why) = scope.is_taken(text) {
        source.wrong(
            name.span(),
            format!("{who} extracts {text:?}, which {why}; choose another name"),
        );
        return None;
    }
    let slot = scope.define(text);
    let from = match from.get_ref() {
        table::Source::Json(pointer) => {
            is_pointer(source, from.span(), pointer, &who).then(|| From::Json(pointer.clone()))?
        }
        table::Source::Header(header) => {
            From::Header(header_name(source, &Spanned::new(from.span(), header.clone()), &who)?)
        }
        table::Source::Cookie(cookie) => From::Cookie(cookie.clone()),
    };
    Some(Extract { name: text.clone(), slot, from })
}

/// Always so long, or so long on average.
fn pause(source: &mut Source<'_>, value: &Spanned<Value>, who: &str) -> Option<Pause> {
    let duration = |text: &str| {
        let time = humantime::parse_duration(text).ok()?;
        (time <= MAX_TIME).then_some(time)
    };
    let parsed = match value.get_ref() {
        Value::String(text) => duration(text).map(Pause::Constant),
        Value::Table(table) if table.len() == 1 => {
            let mean = table.get("mean").and_then(Value::as_str);
            mean.and_then(duration).map(Pause::Exponential)
        }
        _ => None,
    };
    if parsed.is_none() {
        let what = format!(
            "{who} has the pause {}; write it like \"500ms\" or {{ mean = \"2s\" }}, and a year at most",
            shown(value.get_ref())
        );
        source.wrong(value.span(), what);
    }
    parsed
}
