//! The steps of a flow, of a setup or of a teardown, at work.

use std::{collections::BTreeMap, sync::Arc};

use http::HeaderName;
use serde_json::Value;

use super::{
    check::{Answer, Check},
    data::{Data, Row},
    request::Blueprint,
    secrets::Secrets,
    template::Known,
};
use crate::{pause::Pause, random::LoadRng, reply::FlowError, session::Session};

/// Steps, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) kind: Kind,
    pub(super) steps: Vec<Step>,
    /// What every session begins with, in the slots from 0.
    pub(super) inherited: BTreeMap<String, usize>,
    /// What it leaves: of a setup.
    pub(super) left: BTreeMap<String, usize>,
    pub(super) slots: usize,
    /// A row of each goes with an iteration.
    pub(super) data: Vec<Arc<Data>>,
    pub(super) secrets: Arc<Secrets>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Flow,
    /// A setup or a teardown: what fails in it ends it with an error, since it counts in no figure.
    Aside,
}

#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) name: String,
    /// Before the request.
    pub(super) pause: Option<Pause>,
    pub(super) request: Blueprint,
    pub(super) checks: Vec<Check>,
    /// Although a check has failed.
    pub(super) go_on: bool,
    pub(super) extracts: Vec<Extract>,
}

/// A value that is taken out of an answer.
#[derive(Clone, Debug)]
pub(super) struct Extract {
    pub(super) name: String,
    pub(super) slot: usize,
    pub(super) from: From,
}

#[derive(Clone, Debug)]
pub(super) enum From {
    Json(String),
    Header(HeaderName),
    Cookie(String),
}

impl Program {
    /// Goes through the steps once.
    pub(super) async fn run(self: Arc<Self>, mut session: Session) -> Result<(), FlowError> {
        let rows = self.rows(session.random())?;
        let mut values = vec![Value::Null; self.slots];
        for (name, slot) in &self.inherited {
            let value = session.get(name).and_then(|json| serde_json::from_str(&json).ok());
            values[*slot] = value.unwrap_or_default();
        }
        for step in &self.steps {
            if !self.step(step, &mut session, &mut values, &rows).await? {
                return Ok(());
            }
        }
        for (name, slot) in &self.left {
            session.set(name, values[*slot].to_string());
        }
        Ok(())
    }

    /// A row of each set. That there is none left is the end of a flow and no failure.
    fn rows(&self, random: &mut LoadRng) -> Result<Vec<Row>, FlowError> {
        let row = |data: &Arc<Data>| {
            data.pick(random).ok_or_else(|| {
                let why = format!("the rows of {:?} have run out", data.name);
                match self.kind {
                    Kind::Flow => FlowError::done(why),
                    Kind::Aside => FlowError::new(why),
                }
            })
        };
        self.data.iter().map(row).collect()
    }

    /// False if the iteration ends here, for a reason that is counted.
    async fn step(
        &self,
        step: &Step,
        session: &mut Session,
        values: &mut [Value],
        rows: &[Row],
    ) -> Result<bool, FlowError> {
        let stop = |why: String| FlowError::new(format!("{}: {why}", step.name));
        if let Some(pause) = step.pause {
            session.pause(pause).await;
        }
        let mut known = Known { values, rows, random: session.random() };
        let request = step.request.build(&mut known, &self.secrets).map_err(stop)?;
        let reply = session.send(&step.name, request).await?;
        let answer = Answer::new(&reply);
        let mut held = true;
        for check in &step.checks {
            let mut known = Known { values, rows, random: session.random() };
            let failure = check.failure(&answer, &mut known, &self.secrets);
            if let (Kind::Aside, Some(why)) = (self.kind, &failure) {
                return Err(FlowError::new(format!("{}: {why}", check.name)));
            }
            let failure = failure.as_ref().map(|why| why as &dyn std::fmt::Display);
            held &= session.check_that(&check.name, failure);
        }
        if !held && !step.go_on {
            return Ok(false);
        }
        for extract in &step.extracts {
            let value = extract.from.find(&answer, session);
            let status = reply.status.as_u16();
            values[extract.slot] = value.map_err(|why| {
                stop(format!("no {}, since {why} (status {status})", extract.name))
            })?;
        }
        Ok(true)
    }
}

impl From {
    /// The value, or why there is none.
    fn find(&self, answer: &Answer<'_>, session: &Session) -> Result<Value, String> {
        match self {
            Self::Json(pointer) => answer.at(pointer).cloned(),
            Self::Header(name) => match answer.reply.header(name.as_str()) {
                Some(value) => Ok(value.into()),
                None => Err(format!("the answer has no header {name}")),
            },
            Self::Cookie(name) => match session.cookie(name) {
                Some(value) => Ok(value.into()),
                None => Err(format!("no answer has set the cookie {name:?}")),
            },
        }
    }
}
