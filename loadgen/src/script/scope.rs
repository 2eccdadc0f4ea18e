//! What a text may name, and what stands for the name: everything is resolved when a file is read.

use std::{collections::BTreeMap, env::VarError, fmt, ops::Range, sync::Arc};

use serde_json::Value;

use super::{
    data::Data,
    error::{Source, list},
    secrets::Secrets,
    template::{Expression, Part, Piece, Template, length, pieces},
};

/// Reads environment variables.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Result<String, VarError>;

/// What the whole file knows.
pub(super) struct Globals<'a> {
    pub(super) env: Env<'a>,
    pub(super) secrets: Secrets,
    /// Each with whether an environment variable is in it.
    pub(super) variables: BTreeMap<String, (Value, bool)>,
    /// `None` of those that could not be read, which is told once.
    pub(super) data: BTreeMap<String, Option<Arc<Data>>>,
}

/// What a sequence of steps knows, so far.
#[derive(Debug)]
pub(super) struct Scope<'g, 'e> {
    globals: &'g mut Globals<'e>,
    /// Of what was extracted.
    pub(super) slots: BTreeMap<String, usize>,
    /// A row of each goes with an iteration.
    pub(super) data: Vec<Arc<Data>>,
    /// The setup's values were used, or those of an answer.
    pub(super) uses_values: bool,
}

/// Stands for what is wrong: it is never rendered.
const UNKNOWN: Part = Part::Slot(usize::MAX);

/// What is said of a name that there is none of.
const GENERATORS: &str = "random.int(1,1000), random.uuid, random.choice(a,b,c)";

impl<'g, 'e> Scope<'g, 'e> {
    /// Knows what `slots` has, by number.
    pub(super) fn new(globals: &'g mut Globals<'e>, slots: BTreeMap<String, usize>) -> Self {
        Self { globals, slots, data: Vec::new(), uses_values: false }
    }

    /// Makes room for what is extracted as `name`.
    pub(super) fn define(&mut self, name: &str) -> usize {
        let next = self.slots.len();
        *self.slots.entry(name.to_owned()).or_insert(next)
    }

    /// Why nothing that is extracted can have this name, if it cannot.
    pub(super) fn is_taken(&self, name: &str) -> Option<&'static str> {
        taken(self.globals, name)
    }

    /// A text, with what stands for its names. What is wrong with it is told of `who`.
    pub(super) fn template(
        &mut self,
        source: &mut Source<'_>,
        at: Range<usize>,
        text: &str,
        who: &dyn fmt::Display,
    ) -> Template {
        let mut template = Template { parts: Vec::new(), secret: false };
        let pieces = pieces(text).unwrap_or_else(|(part, why)| {
            source.wrong_within(
                at.clone(),
                part,
                format!("{who} has a text that cannot be read: {why}"),
            );
            Vec::new()
        });
        for piece in pieces {
            let part = match piece {
                Piece::Text(text) => Part::Text(text.to_owned()),
                Piece::Place { whole, expression } => match self.part(&expression) {
                    Ok((part, secret)) => {
                        template.secret |= secret;
                        part
                    }
                    Err(why) => {
                        let what = format!("{who} uses {whole}, {why}");
                        source.wrong_within(at.clone(), whole, what);
                        UNKNOWN
                    }
                },
            };
            template.parts.push(part);
        }
        template
    }

    /// What stands for an expression, and whether it is an environment variable's.
    fn part(&mut self, expression: &Expression<'_>) -> Result<(Part, bool), String> {
        let plain = |part| Ok((part, false));
        match expression {
            Expression::Quoted(text) => plain(Part::Text((*text).to_owned())),
            Expression::Call { name, arguments } => plain(generator(name, arguments)?),
            Expression::Name("random.uuid") => plain(Part::Uuid),
            Expression::Name(name) => match name.split_once('.') {
                Some(("env", variable)) => {
                    let value = self.globals.env(variable)?;
                    Ok((Part::Constant(value.into()), true))
                }
                Some(("random", _)) => Err(no_generator()),
                Some((data, column)) => plain(self.column(data, column)?),
                None => self.value(name),
            },
        }
    }

    fn value(&mut self, name: &str) -> Result<(Part, bool), String> {
        if let Some(slot) = self.slots.get(name) {
            self.uses_values = true;
            return Ok((Part::Slot(*slot), false));
        }
        match self.globals.variables.get(name) {
            Some((value, secret)) => Ok((Part::Constant(value.clone()), *secret)),
            None => Err(self.unknown()),
        }
    }

    fn column(&mut self, name: &str, column: &str) -> Result<Part, String> {
        let data = match self.globals.data.get(name) {
            None => return Err(self.unknown()),
            // Why there is none is told already.
            Some(None) => return Ok(UNKNOWN),
            Some(Some(data)) => data.clone(),
        };
        let Some(number) = data.columns.iter().position(|known| known == column) else {
            let columns = list(data.columns.iter().map(String::as_str));
            return Err(format!("but {name} has no such column; it has: {columns}"));
        };
        let longest = data.values(number).map(length).max().unwrap_or(0);
        let row = self.data.iter().position(|used| used.name == name).unwrap_or_else(|| {
            self.data.push(data);
            self.data.len() - 1
        });
        Ok(Part::Column { row, column: number, longest })
    }

    fn unknown(&self) -> String {
        let columns =
            self.globals.data.values().flatten().flat_map(|data| {
                data.columns.iter().map(|column| format!("{}.{column}", data.name))
            });
        let values = self.slots.keys().chain(self.globals.variables.keys()).cloned();
        let mut known: Vec<String> = columns.chain(values).collect();
        known.sort();
        let known = match list(known.iter().map(String::as_str)) {
            none if none.is_empty() => "nothing".to_owned(),
            known => known,
        };
        format!("which nothing before it defines; known are: {known}")
    }
}

/// Why nothing else can have this name, if it cannot.
pub(super) fn taken(globals: &Globals<'_>, name: &str) -> Option<&'static str> {
    match name {
        "env" | "random" => Some("is a name of the format's own"),
        name if globals.data.contains_key(name) => Some("is the name of a data file"),
        name if globals.variables.contains_key(name) => Some("is the name of a variable"),
        _ => None,
    }
}

impl Globals<'_> {
    /// The value of an environment variable, which is a secret from now on.
    pub(super) fn env(&mut self, name: &str) -> Result<String, String> {
        match (self.env)(name) {
            Ok(value) => {
                self.secrets.add(name, &value);
                Ok(value)
            }
            Err(VarError::NotPresent) => Err(format!(
                "but the environment has no {name}; set it, like {name}=… before the command"
            )),
            Err(VarError::NotUnicode(_)) => {
                Err(format!("but {name} in the environment is not UTF-8"))
            }
        }
    }
}

impl fmt::Debug for Globals<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Globals").field("data", &self.data).finish_non_exhaustive()
    }
}

fn no_generator() -> String {
    format!("which is no generator; known are: {GENERATORS}")
}

fn generator(name: &str, arguments: &[&str]) -> Result<Part, String> {
    match (name, arguments) {
        ("random.int", [least, most]) => match (least.parse(), most.parse()) {
            (Ok(least), Ok(most)) if least <= most => Ok(Part::Int(least, most)),
            _ => Err("which needs two whole numbers, the lesser first, like random.int(1,1000)"
                .to_owned()),
        },
        ("random.int", _) => {
            Err("which needs two whole numbers, like random.int(1,1000)".to_owned())
        }
        ("random.choice", options) if options.iter().all(|option| !option.is_empty()) => {
            Ok(Part::Choice(options.iter().map(|&option| option.to_owned()).collect()))
        }
        ("random.choice", _) => {
            Err("which needs texts to choose from, like random.choice(a,b,c)".to_owned())
        }
        ("random.uuid", _) => Err("which takes nothing; write {{random.uuid}}".to_owned()),
        _ => Err(no_generator()),
    }
}
