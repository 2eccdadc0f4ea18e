//! The validated settings of a run.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use http::HeaderValue;

use crate::{
    pacer::Pacer,
    pause::Pause,
    report::{Model, PlanSummary},
    scenario::{Scenario, StepNames},
    schedule::{Arrivals, Profile, Schedule},
    threshold::{Threshold, ThresholdError},
    transport::Transport,
};

/// Ten times what a processor core can dispatch, requests per second.
pub(crate) const MAX_RATE: f64 = 1e7;
/// Far from where sums of times overflow.
pub(crate) const MAX_TIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// The shortest measured interval: one slot.
pub(crate) const MIN_DURATION: Duration = Duration::from_millis(100);

/// Who decides when requests start.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Workload {
    /// So many users over time, who wait for their answers.
    Closed { users: Profile, pause: Pause, pacing: Option<Duration> },
    /// Arrivals on a schedule, whatever became of the earlier ones.
    Open(Schedule),
}

/// Where the generator's own tasks run.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Topology {
    /// On the service's runtime: nothing is handed from thread to thread, and what the generator costs is taken
    /// from the service.
    #[default]
    Shared,
    /// On a runtime of its own; each request is handed to the service's and back.
    Split,
}

impl Topology {
    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Split => "split",
        }
    }
}

/// The settings of a run, checked: what holds a `Plan` can be run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) workload: Workload,
    /// What the warm-up does instead of following the stages: their first level.
    pub(crate) warmup_level: f64,
    /// As given: seconds and levels, where there are any.
    pub(crate) stages: Vec<(Duration, f64)>,
    pub(crate) scenario: Scenario,
    /// What requests are called in reports, by number.
    pub(crate) names: StepNames,
    pub(crate) warmup: Duration,
    pub(crate) duration: Duration,
    /// The measured interval ends with so many requests, if not before.
    pub(crate) requests: Option<u64>,
    pub(crate) max_in_flight: usize,
    pub(crate) timeout: Duration,
    pub(crate) seed: u64,
    pub(crate) pass_limiter: bool,
    /// The service is reached through a connection, not by a call.
    pub(crate) over_connection: bool,
    /// Goes with each request, past a limiter over a connection, and asks for the server's times.
    pub(crate) token: Option<HeaderValue>,
    pub(crate) pacer: Pacer,
    pub(crate) topology: Topology,
    /// Requests go over connections of their own to wherever those lead.
    pub(crate) leads_out: bool,
    /// Time is tokio's, and paused.
    pub(crate) virtual_time: bool,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) thresholds: Vec<Threshold>,
}

impl Plan {
    /// Do the generator's tasks run on the workers that answer, so that who waits for one waits for the service?
    pub(crate) fn on_its_runtime(&self) -> bool {
        let apart = self.topology == Topology::Split && !self.virtual_time;
        !apart && !self.over_connection
    }

    /// What goes before the measured load: the same, at a level that does not change.
    pub(crate) fn warming_up(&self) -> Workload {
        let profile = Profile::constant(self.warmup_level, self.warmup);
        match &self.workload {
            Workload::Closed { pause, pacing, .. } => {
                Workload::Closed { users: profile, pause: *pause, pacing: *pacing }
            }
            Workload::Open(schedule) => Workload::Open(Schedule::Rate {
                profile,
                arrivals: match schedule {
                    Schedule::Rate { arrivals, .. } => *arrivals,
                    Schedule::Replay(_) => Arrivals::Constant,
                },
            }),
        }
    }

    pub(crate) fn summary(&self) -> PlanSummary {
        let closed = |users: &Profile| users.peak().round() as usize;
        let (model, users, rate, arrivals) = match &self.workload {
            Workload::Closed { users, .. } => (Model::Closed, Some(closed(users)), None, None),
            Workload::Open(Schedule::Rate { profile, arrivals }) => {
                (Model::Open, None, Some(profile.peak()), Some(arrivals.name()))
            }
            Workload::Open(Schedule::Replay(starts)) => {
                let rate = starts.len() as f64 / self.duration.as_secs_f64();
                (Model::Open, None, Some(rate), Some("replay"))
            }
        };
        let (pause, pacing) = match &self.workload {
            Workload::Closed { pause, pacing, .. } => (Some(*pause), *pacing),
            Workload::Open(_) => (None, None),
        };
        PlanSummary {
            model,
            users,
            rate,
            arrivals: arrivals.map(str::to_owned),
            stages: self.stages.iter().map(|(time, level)| (time.as_secs_f64(), *level)).collect(),
            requests: self.requests,
            think_time_s: pause.map(|pause| pause.mean().as_secs_f64()),
            random_think_time: matches!(pause, Some(Pause::Exponential(_))),
            pacing_s: pacing.map(|pacing| pacing.as_secs_f64()),
            warmup_s: self.warmup.as_secs_f64(),
            duration_s: self.duration.as_secs_f64(),
            max_in_flight: self.max_in_flight,
            timeout_s: self.timeout.as_secs_f64(),
            transport: "direct".to_owned(),
            seed: self.seed,
            mix: self.scenario.weights(),
            bypasses_limiter: self.pass_limiter || self.token.is_some(),
            pacer: self.pacer.name().to_owned(),
            topology: self.topology.name().to_owned(),
            virtual_time: self.virtual_time,
            tags: self.tags.clone(),
        }
    }
}

/// Settings that cannot be run, with the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A token that no header can carry. Its text is not shown.
    #[error("the token is no value of a header: give the text that `parallax token` prints")]
    BadToken,
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
    /// More users than fit into any memory.
    #[error("{0} users are beyond any machine: give at most 10000000")]
    TooManyUsers(usize),
    /// Stages that never lead above zero.
    #[error("the stages send nothing: write them like 10s:100,30s:1000, with a level above 0")]
    NoLoad,
    /// A duration beside stages that take another time.
    #[error(
        "the stages take {0:?} together, and the duration says otherwise: leave the duration out"
    )]
    StagesLast(Duration),
    /// A replay of nothing.
    #[error("there is nothing to replay: give at least one start time, in seconds, one a line")]
    NothingToReplay,
    /// A run of no requests.
    #[error("0 requests are no load: give at least 1")]
    NoRequestsWanted,
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
    /// A connection to a connection.
    #[error(
        "the load of {url} goes over its own connections, not over {transport}: leave out the transport"
    )]
    TwoTransports {
        /// What is loaded.
        url: String,
        /// What was asked for.
        transport: Transport,
    },
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
