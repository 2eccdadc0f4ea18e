//! A scenario as a file: what [`Scenario`] and [`Session`](crate::Session) let a program say, in TOML.

mod check;
mod data;
mod error;
mod json;
mod program;
mod request;
mod scope;
mod secrets;
mod table;
mod template;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    ops::Range,
    path::Path,
    sync::Arc,
};

use toml::{Spanned, Value};

pub use self::error::ScriptError;
use self::{
    check::{checks, is_pointer},
    data::Data,
    error::{Source, remedied, shown},
    program::{Extract, From, Kind, Program, Step},
    request::{Blueprint, header_name},
    scope::{Env, Globals, Scope, taken},
    secrets::Secrets,
    template::{Known, Part, Piece, is_name, pieces},
};
use crate::{
    plan::{MAX_TIME, Pause},
    scenario::Scenario,
};

impl Scenario {
    /// Reads a scenario file, and the data files that it names.
    ///
    /// What can be wrong with it is found here, not during the run; `docs/guide/scenarios.md` has the format.
    /// Requests without values of answers are as cheap as a [`step`](Self::step).
    ///
    /// # Errors
    /// If a file cannot be read, or says something that makes no sense: all of it, each with its place.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ScriptError> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|error| {
            ScriptError::of_file(path, format_args!("it cannot be read: {error}"))
        })?;
        Self::from_toml(&text, path)
    }

    /// Reads a scenario from a text, like [`read`](Self::read). `path` is what errors call it, and data files
    /// are looked for beside it; it need not exist.
    ///
    /// ```
    /// use parallax_loadgen::Scenario;
    ///
    /// let text = "
    /// [[request]]
    /// name = 'an item'
    /// path = '/items/{{random.int(1,1000)}}'
    /// ";
    /// let shop = Scenario::from_toml(text, "shop.toml").expect("it is right");
    /// assert_eq!(shop.names().collect::<Vec<_>>(), ["an item"]);
    ///
    /// let wrong = Scenario::from_toml(&text.replace("random.int(1,1000)", "id"), "shop.toml");
    /// assert_eq!(
    ///     wrong.expect_err("there is no id").to_string(),
    ///     "shop.toml:4:16: the request \"an item\" uses {{id}}, which nothing before it defines; \
    ///      known are: nothing"
    /// );
    /// ```
    ///
    /// # Errors
    /// As those of [`read`](Self::read).
    pub fn from_toml(text: &str, path: impl AsRef<Path>) -> Result<Self, ScriptError> {
        compile(text, path.as_ref(), &|name| env::var(name))
    }
}

fn compile(text: &str, path: &Path, env: Env<'_>) -> Result<Scenario, ScriptError> {
    let mut source = Source::new(path, text);
    let file: table::File = match toml::from_str(text) {
        Ok(file) => file,
        Err(error) => {
            source.wrong(error.span().unwrap_or(0..0), remedied(error.message()));
            return source.finish(Scenario::new());
        }
    };
    let mut globals = Globals {
        env,
        secrets: Secrets::default(),
        variables: BTreeMap::new(),
        data: BTreeMap::new(),
    };
    define_variables(&mut source, &mut globals, &file.variables);
    read_data(&mut source, &mut globals, &file.data);

    let nothing = BTreeMap::new();
    let setup = sequence(&mut source, &mut globals, &nothing, &file.setup, "setup step");
    let setup_leaves = setup.slots.clone();
    let mut mix = Mix::default();
    for request in &file.request {
        let weight = request.get_ref().weight.as_ref();
        refuse_in_request(&mut source, request.get_ref());
        let steps = std::slice::from_ref(request);
        let steps = sequence(&mut source, &mut globals, &setup_leaves, steps, "request");
        let name = steps.steps[0].name.clone();
        mix.add(&mut source, name, request.span(), weight, steps);
    }
    for flow in &file.flow {
        let (at, flow) = (flow.span(), flow.get_ref());
        let name = flow.name.get_ref();
        check_name(&mut source, &flow.name);
        if flow.step.is_empty() {
            let what = format!("the flow {name:?} has no steps; add a [[flow.step]] after it");
            source.wrong(at, what);
        }
        let steps = sequence(&mut source, &mut globals, &setup_leaves, &flow.step, "step");
        mix.add(&mut source, name.clone(), flow.name.span(), flow.weight.as_ref(), steps);
    }
    let teardown =
        sequence(&mut source, &mut globals, &setup_leaves, &file.teardown, "teardown step");
    mix.check(&mut source);

    let secrets = Arc::new(globals.secrets);
    let mut scenario = Scenario::new();
    if !setup.steps.is_empty() {
        let program = setup.program(Kind::Aside, &nothing, setup_leaves.clone(), &secrets);
        scenario = scenario.setup(move |session| program.clone().run(session));
    }
    for (name, weight, steps) in mix.members {
        scenario = match steps.alone() {
            Some((request, data)) => scenario.step(&name, weight, move |random| {
                let rows: Option<Vec<_>> = data.iter().map(|data| data.pick(random)).collect();
                let mut known = Known { values: &[], rows: &rows.unwrap_or_default(), random };
                // That nothing can go wrong with it was found when the file was read.
                request.build(&mut known).expect("the request is certain")
            }),
            None => {
                let program = steps.program(Kind::Flow, &setup_leaves, BTreeMap::new(), &secrets);
                scenario.flow(&name, weight, move |session| program.clone().run(session))
            }
        };
    }
    if !teardown.steps.is_empty() {
        let program = teardown.program(Kind::Aside, &setup_leaves, BTreeMap::new(), &secrets);
        scenario = scenario.teardown(move |session| program.clone().run(session));
    }
    source.finish(scenario)
}

/// A variable is always the same: the environment alone is known to it.
fn define_variables(
    source: &mut Source<'_>,
    globals: &mut Globals<'_>,
    tables: &table::Named<Spanned<Value>>,
) {
    let mut variables = BTreeMap::new();
    for (name, value) in tables {
        if !is_free_name(source, globals, name, "variable") {
            continue;
        }
        let who = format!("the variable {:?}", name.get_ref());
        let constant = match value.get_ref() {
            Value::Integer(n) => ((*n).into(), false),
            Value::Boolean(value) => ((*value).into(), false),
            Value::Float(n) if n.is_finite() => ((*n).into(), false),
            Value::String(text) => {
                let mut scope = Scope::new(globals, BTreeMap::new());
                let template = scope.template(source, value.span(), text, &who);
                // What is unknown is told already.
                let changes = template.parts.iter().any(Part::is_generated);
                if changes {
                    let what =
                        format!("{who} is {text:?}, which changes; a variable is always the same");
                    source.wrong(value.span(), what);
                }
                let constant = template.fixed().unwrap_or_default();
                (constant, template.secret)
            }
            _ => {
                source.wrong(
                    value.span(),
                    format!("{who} has to be a text, a number, true or false"),
                );
                continue;
            }
        };
        variables.insert(name.get_ref().clone(), constant);
    }
    globals.variables = variables;
}

fn read_data(
    source: &mut Source<'_>,
    globals: &mut Globals<'_>,
    tables: &table::Named<table::Data>,
) {
    let folder = source.path.parent().unwrap_or(Path::new(""));
    for (name, table) in tables {
        if !is_free_name(source, globals, name, "data file") {
            continue;
        }
        let file = table.file.get_ref();
        let data = match Data::read(name.get_ref(), &folder.join(file), table.pick) {
            Ok(data) => Some(Arc::new(data)),
            // A line of the data is the place; without one, the place is where the file is named.
            Err(bad) if bad.line.is_some() => {
                source.wrong_in(&bad.path, bad.line, bad.what);
                None
            }
            Err(bad) => {
                let what = format!("the data file {:?} is not usable: {}", file, bad.what);
                source.wrong(table.file.span(), what);
                None
            }
        };
        globals.data.insert(name.get_ref().clone(), data);
    }
}

/// Steps as they are to be done, and what they need.
#[derive(Debug, Default)]
struct Sequence {
    steps: Vec<Step>,
    slots: BTreeMap<String, usize>,
    data: Vec<Arc<Data>>,
    uses_values: bool,
}

impl Sequence {
    fn program(
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
    fn alone(&self) -> Option<(Blueprint, Vec<Arc<Data>>)> {
        let [Step { request, pause: None, checks, extracts, .. }] = &self.steps[..] else {
            return None;
        };
        let simple = request.certain && checks.is_empty() && extracts.is_empty();
        let endless = !self.uses_values && !self.data.iter().any(|data| data.ends());
        (simple && endless).then(|| (request.clone(), self.data.clone()))
    }
}

/// What a file's steps become; `kind` is what they are called.
fn sequence(
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

fn check_name(source: &mut Source<'_>, name: &table::Text) {
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

/// What needs a step after it.
fn refuse_in_request(source: &mut Source<'_>, request: &table::Step) {
    let remedy = "a [[request]] is all of its iteration: write it as a [[flow]] with steps";
    if let Some(pause) = &request.pause {
        source.wrong(pause.span(), format!("`pause` is between the steps of a flow; {remedy}"));
    }
    if let Some(name) = request.extract.keys().next() {
        source.wrong(name.span(), format!("`extract` is for the steps after it; {remedy}"));
    }
}

/// Flows and requests, as they are drawn.
#[derive(Debug, Default)]
struct Mix {
    members: Vec<(String, u32, Sequence)>,
    total_weight: u64,
}

impl Mix {
    fn add(
        &mut self,
        source: &mut Source<'_>,
        name: String,
        at: Range<usize>,
        weight: Option<&Spanned<u32>>,
        steps: Sequence,
    ) {
        if self.members.iter().any(|(known, ..)| *known == name) {
            let what = format!(
                "there is a flow or a request {name:?} before; give this one another `name`"
            );
            source.wrong(at.clone(), what);
        }
        let weight = weight.map_or(1, |weight| *weight.get_ref());
        self.total_weight += u64::from(weight);
        if self.total_weight > u64::from(u32::MAX) {
            source.wrong(
                at,
                format!("the weights add up to {}; {} is the most", self.total_weight, u32::MAX),
            );
        }
        self.members.push((name, weight, steps));
    }

    fn check(&self, source: &mut Source<'_>) {
        if self.members.is_empty() {
            source.wrong(0..0, "there is nothing to send; add a [[request]] or a [[flow]]");
        } else if self.total_weight == 0 {
            source.wrong(
                0..0,
                "nothing is ever sent, since all weights are 0; give one flow or request another",
            );
        }
    }
}

/// True if something new can have this name.
fn is_free_name(
    source: &mut Source<'_>,
    globals: &Globals<'_>,
    name: &table::Text,
    what: &str,
) -> bool {
    let text = name.get_ref();
    let wrong = if is_name(text) {
        taken(globals, text).map(|why| {
            format!("a {what} cannot be named {text:?}, which {why}; choose another name")
        })
    } else {
        Some(not_a_name(text))
    };
    let free = wrong.is_none();
    if let Some(wrong) = wrong {
        source.wrong(name.span(), wrong);
    }
    free
}

fn not_a_name(text: &str) -> String {
    format!(
        "{text:?} is no name; a name has letters, digits, \"_\" and \"-\", and begins with a letter"
    )
}
