//! A scenario as a file: what [`Scenario`] and [`Session`](crate::Session) let a program say, in TOML.

mod check;
mod data;
mod error;
mod json;
mod program;
mod request;
mod scope;
mod secrets;
mod sequence;
mod table;
mod template;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, env, fs, ops::Range, path::Path, sync::Arc};

use toml::{Spanned, Value};

pub use self::error::ScriptError;
pub(crate) use self::error::{Source, remedied};
use self::{
    data::Data,
    error::not_a_name,
    program::Kind,
    scope::{Env, Globals, Scope, taken},
    secrets::Secrets,
    sequence::{Sequence, check_name, sequence},
    template::{Known, Part, is_name},
};
use crate::scenario::Scenario;

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
            Some((request, data)) => scenario.step(&name, weight, {
                let hidden = secrets.clone();
                move |random| {
                    let rows: Option<Vec<_>> = data.iter().map(|data| data.pick(random)).collect();
                    let mut known = Known { values: &[], rows: &rows.unwrap_or_default(), random };
                    // That nothing can go wrong with it was found when the file was read.
                    let built = request.build(&mut known, &hidden);
                    built.expect("the request is certain")
                }
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
