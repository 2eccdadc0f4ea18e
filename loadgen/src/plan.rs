//! The validated settings of a run.

use std::{path::PathBuf, time::Duration};

use crate::{
    report::{Model, PlanSummary},
    scenario::Scenario,
    threshold::{Threshold, ThresholdError},
};

/// Ten times what a processor core can dispatch, requests per second.
pub(crate) const MAX_RATE: f64 = 1e7;
/// Far from where sums of times overflow.
pub(crate) const MAX_TIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// The shortest measured interval: one slot.
pub(crate) const MIN_DURATION: Duration = Duration::from_millis(100);

/// Who decides when requests start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Workload {
    /// `users` who wait for their answers, and `think_time` after each.
    Closed { users: usize, think_time: Duration },
    /// `rate` arrivals a second, whatever became of the earlier ones.
    Open { rate: f64 },
}

/// The settings of a run, checked: what holds a `Plan` can be run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) workload: Workload,
    pub(crate) scenario: Scenario,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) timeout: Duration,
    pub(crate) seed: u64,
    pub(crate) pass_limiter: bool,
    pub(crate) thresholds: Vec<Threshold>,
}

impl Workload {
    /// The pause of a user; none in an open workload.
    pub(crate) fn think_time(self) -> Duration {
        match self {
            Self::Closed { think_time, .. } => think_time,
            Self::Open { .. } => Duration::ZERO,
        }
    }
}

impl Plan {
    pub(crate) fn summary(&self) -> PlanSummary {
        let (model, users, rate) = match self.workload {
            Workload::Closed { users, .. } => (Model::Closed, Some(users), None),
            Workload::Open { rate } => (Model::Open, None, Some(rate)),
        };
        PlanSummary {
            model,
            users,
            rate,
            think_time_s: match self.workload {
                Workload::Closed { think_time, .. } => Some(think_time.as_secs_f64()),
                Workload::Open { .. } => None,
            },
            warmup_s: self.warmup.as_secs_f64(),
            duration_s: self.duration.as_secs_f64(),
            max_in_flight: self.max_in_flight,
            timeout_s: self.timeout.as_secs_f64(),
            transport: "direct".to_owned(),
            seed: self.seed,
            mix: self.scenario.weights(),
            bypasses_limiter: self.pass_limiter,
        }
    }
}

/// Settings that cannot be run, with the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Nothing to send.
    #[error("the load test sends nothing: add a request with .get(\"/path\") or .scenario(mix)")]
    NoRequests,
    /// A path that is no URI.
    #[error("{path:?} is no path to request ({source}): write it like \"/search?q=tea\"")]
    BadPath {
        /// As given.
        path: String,
        /// What is wrong with it.
        source: http::Error,
    },
    /// A rate that is not above zero.
    #[error("a rate of {0} requests per second cannot be kept: give a number above 0, like 1000")]
    BadRate(f64),
    /// No users.
    #[error("0 users send nothing: give at least 1")]
    NoUsers,
    /// No measured interval.
    #[error("a duration of {0:?} measures nothing: give at least 100ms")]
    TooShort(Duration),
    /// A time that no clock can add.
    #[error("{0:?} is longer than a year: give a time that you can wait for")]
    TooLong(Duration),
    /// A rate that no machine can keep.
    #[error("a rate of {0} requests per second is beyond any machine: give at most 10000000")]
    RateTooHigh(f64),
    /// A timeout of zero.
    #[error("a timeout of 0 gives every request up: give for example 10s")]
    NoTimeout,
    /// An in-flight bound of zero.
    #[error("an in-flight bound of 0 drops every arrival: give at least 1")]
    NoneInFlight,
    /// A threshold that cannot be read.
    #[error(transparent)]
    Threshold(#[from] ThresholdError),
    /// A place for the report that cannot be written to.
    #[error("cannot write to {path}: {source}; choose another folder with --out")]
    Unwritable {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
