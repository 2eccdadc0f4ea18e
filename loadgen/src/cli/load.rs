//! The flags of a load, and the load test that they make.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use clap::{ArgGroup, Args, ValueEnum, ValueHint};
use http::{HeaderMap, Method, Request, Uri};

use super::{
    RunArgs,
    value::{
        Hidden, Stages, count, header, hidden, method, positive, rate, stages, start_times, tag,
    },
};
use crate::{
    load_test::{LoadTest, LoadTestError},
    pacer::Pacer,
    plan::{PlanError, Topology},
    scenario::Scenario,
    schedule::Arrivals,
    shape::{DURATION, REQUESTS_WITHIN},
    target::InProcess,
    transport::UrlError,
};

/// Without a word about it: of a first look.
const WARMUP: Duration = Duration::from_secs(1);
/// The same with `--quick`.
const QUICK: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));

/// The flags of a load: how much, of what, for how long.
#[derive(Clone, Debug, Args)]
#[command(
    group = ArgGroup::new("level").args(["users", "rate", "stages", "replay"]),
    group = ArgGroup::new("of users").args(["think_time", "pacing"]).multiple(true)
        .conflicts_with_all(["rate", "replay"]),
    group = ArgGroup::new("of arrivals").args(["arrivals", "max_in_flight"]).multiple(true)
        .conflicts_with("users"),
)]
pub struct LoadArgs {
    #[command(flatten)]
    pub(super) run: RunArgs,

    /// Rates that change in straight lines, like 10s:100,30s:1000; or users, like 10s:100users,30s:1000users
    ///
    /// From 0 on, each stage leads to its level in its time; at once if that is 0s.
    #[arg(
        long, value_name = "TIME:LEVEL,…", value_parser = stages, conflicts_with = "duration",
        help_heading = LOAD
    )]
    stages: Option<Stages>,

    /// With --rate: so many requests per second in the middle third of the run
    #[arg(
        long, value_name = "PER_SECOND", allow_negative_numbers = true, value_parser = rate,
        requires = "rate", help_heading = LOAD
    )]
    spike: Option<f64>,

    /// Start requests when FILE says: seconds, one a line, in any order; # begins a comment
    #[arg(
        long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "arrivals",
        help_heading = LOAD
    )]
    replay: Option<PathBuf>,

    /// With rates: how requests follow one another [default: constant]
    #[arg(long, value_name = "HOW", value_enum, help_heading = LOAD)]
    arrivals: Option<HowArrivals>,

    /// With users: from the beginning of one iteration to that of the next, or longer if it takes longer
    #[arg(
        long, value_name = "TIME", allow_negative_numbers = true, value_parser = positive,
        help_heading = LOAD
    )]
    pacing: Option<Duration>,

    /// End after so many requests, within --duration or 10 minutes
    #[arg(
        long, value_name = "N", allow_negative_numbers = true, value_parser = count,
        help_heading = LOAD
    )]
    requests: Option<usize>,

    /// Method of the requests [default: GET, with a body POST]
    #[arg(
        long, value_name = "METHOD", value_parser = method, conflicts_with = "scenario",
        help_heading = REQUESTS
    )]
    method: Option<Method>,

    /// Header of the requests, like 'Accept: text/html' (repeatable); no report shows it
    #[arg(
        long = "header", value_name = "'NAME: VALUE'", value_parser = hidden,
        conflicts_with = "scenario", help_heading = REQUESTS
    )]
    headers: Vec<Hidden>,

    /// Body of the requests; no report shows it
    #[arg(
        long, value_name = "TEXT", value_parser = hidden, conflicts_with_all = ["scenario", "body_file"],
        help_heading = REQUESTS
    )]
    body: Option<Hidden>,

    /// File with the body of the requests
    #[arg(
        long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "scenario",
        help_heading = REQUESTS
    )]
    body_file: Option<PathBuf>,

    /// File with what is asked for: a mix of requests, and flows of several
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = REQUESTS)]
    pub(super) scenario: Option<PathBuf>,

    /// A name and a value for the report, to find it by (repeatable)
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = tag, help_heading = REPORT)]
    tags: Vec<(String, String)>,

    /// What wakes requests when they are due: a thread that is exact, or the runtime's timer [default: precise]
    #[arg(long, value_name = "WHICH", value_enum, help_heading = GENERATOR)]
    pacer: Option<WhichPacer>,

    /// Where the generator runs: on the service's runtime, or on one of its own [default: shared]
    #[arg(long, value_name = "WHICH", value_enum, help_heading = GENERATOR)]
    runtime: Option<WhichRuntime>,
}

pub(super) const LOAD: &str = "How much load";
pub(super) const REQUESTS: &str = "What is asked for";
pub(super) const REPORT: &str = "Requirements and report";
pub(super) const GENERATOR: &str = "The generator";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum HowArrivals {
    /// Equally spaced
    Constant,
    /// At random, like those of many who know nothing of one another
    Poisson,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WhichPacer {
    /// A thread of its own: late by some 10 µs, for a part of a processor
    Precise,
    /// The runtime's timer: late by up to 1 ms, for nothing
    Coarse,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WhichRuntime {
    /// The service's
    Shared,
    /// One of the generator's own
    Split,
}

impl LoadArgs {
    /// What the flags are about without saying so to one another; the rest is clap's.
    pub(super) fn check(&self) -> Result<(), NoRun> {
        let users = match &self.stages {
            Some(stages) => matches!(stages, Stages::Users(_)),
            None => self.run.rate.is_none() && self.replay.is_none(),
        };
        let refuse = |given: bool, flag: &str, remedy: &str| {
            if given { Err(NoRun::usage(format_args!("{flag} {remedy}"))) } else { Ok(()) }
        };
        if users {
            let remedy =
                "is for arrivals, and this load is of users: give --rate, or --stages of rates";
            refuse(self.arrivals.is_some(), "--arrivals", remedy)?;
            refuse(self.run.max_in_flight.is_some(), "--max-in-flight", remedy)
        } else {
            let remedy =
                "is for users, and this load is of arrivals: give --users, or --stages of users";
            refuse(self.run.think_time.is_some(), "--think-time", remedy)?;
            refuse(self.pacing.is_some(), "--pacing", remedy)
        }
    }

    /// Of users, or of arrivals?
    pub(super) fn model(&self) -> &'static str {
        let arrivals = self.run.rate.is_some()
            || self.replay.is_some()
            || matches!(self.stages, Some(Stages::Rates(_)));
        if arrivals { "open" } else { "closed" }
    }

    /// How the requests are asked for, where no scenario says so.
    pub(super) fn method(&self) -> Method {
        let body = self.body.is_some() || self.body_file.is_some();
        let usual = if body { Method::POST } else { Method::GET };
        self.method.clone().unwrap_or(usual)
    }

    /// For requests that are not made from the flags.
    pub(super) fn refuse_details(&self) -> Result<(), NoRun> {
        let given = [
            ("--method", self.method.is_some()),
            ("--header", !self.headers.is_empty()),
            ("--body", self.body.is_some()),
            ("--body-file", self.body_file.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(NoRun::usage(format_args!(
                "{flag} is for paths of the command line, and there are none: give one, like /search?q=tea"
            ))),
            None => Ok(()),
        }
    }

    /// The scenario that is asked for: the file's, or requests of these paths.
    pub(super) fn scenario(&self, paths: &[String]) -> Result<Scenario, NoRun> {
        if let Some(path) = &self.scenario {
            return scenario_of(path);
        }
        let mut headers = HeaderMap::new();
        for text in &self.headers {
            let (name, value) = header(text).map_err(|why| {
                NoRun::usage(format_args!(
                    "a --header is none: {why}; write it like 'Accept: text/html'"
                ))
            })?;
            headers.append(name, value);
        }
        let body = match (&self.body, &self.body_file) {
            (Some(text), _) => Bytes::from(text.0.clone()),
            (None, Some(path)) => fs::read(path)
                .map_err(|error| {
                    NoRun::usage(format_args!("--body-file {}: {error}", path.display()))
                })?
                .into(),
            (None, None) => Bytes::new(),
        };
        let method = self.method();
        let mut scenario = Scenario::new();
        for path in paths {
            let uri = path.parse::<Uri>().ok().filter(|_| path.starts_with('/'));
            let uri = uri.ok_or_else(|| {
                NoRun::usage(format_args!(
                    "{path:?} is no path to request: write it like /search?q=tea"
                ))
            })?;
            let mut request = Request::new(body.clone());
            *request.method_mut() = method.clone();
            request.headers_mut().clone_from(&headers);
            let name = format!("{method} {}", uri.path());
            *request.uri_mut() = uri;
            scenario = scenario.step(&name, 1, move |_| request.clone());
        }
        Ok(scenario)
    }

    /// The start times of `--replay`, none without it. To be read once: a pipe is empty after that.
    pub(super) fn replayed(&self) -> Result<Vec<Duration>, NoRun> {
        let read = self.replay.as_deref().map(start_times);
        read.transpose().map(Option::unwrap_or_default).map_err(NoRun::Usage)
    }

    /// Gives a load test what the flags say, but for what a [`Session`](super::Session) gives it.
    pub(super) fn applied<S: InProcess>(
        &self,
        mut test: LoadTest<S>,
        replayed: &[Duration],
    ) -> LoadTest<S> {
        let RunArgs { users, rate, duration, warmup, think_time, quick, .. } = self.run;
        if let Some(users) = users {
            test = test.users(users);
        }
        match (rate, self.spike) {
            (Some(rate), Some(peak)) => test = test.spike(rate, peak),
            (Some(rate), None) => test = test.rate(rate),
            (None, _) => {}
        }
        match &self.stages {
            Some(Stages::Rates(stages)) => test = test.stages(stages.iter().copied()),
            Some(Stages::Users(stages)) => test = test.user_stages(stages.iter().copied()),
            None => {}
        }
        if self.replay.is_some() {
            test = test.replay(replayed.iter().copied());
        }
        if let Some(arrivals) = self.arrivals {
            test = test.arrivals(match arrivals {
                HowArrivals::Constant => Arrivals::Constant,
                HowArrivals::Poisson => Arrivals::Poisson,
            });
        }
        if let Some(pause) = think_time {
            test = test.think_time(pause);
        }
        if let Some(pacing) = self.pacing {
            test = test.pacing(pacing);
        }
        if let Some(requests) = self.requests {
            test = test.requests(requests as u64);
        }
        let fixed = self.stages.is_some() || self.replay.is_some() || self.requests.is_some();
        if let Some(duration) = duration.or_else(|| (quick && !fixed).then_some(QUICK.1)) {
            test = test.duration(duration);
        }
        if let Some(pacer) = self.pacer {
            test = test.pacer(match pacer {
                WhichPacer::Precise => Pacer::Precise,
                WhichPacer::Coarse => Pacer::Coarse,
            });
        }
        if let Some(runtime) = self.runtime {
            test = test.topology(match runtime {
                WhichRuntime::Shared => Topology::Shared,
                WhichRuntime::Split => Topology::Split,
            });
        }
        for (name, value) in &self.tags {
            test = test.tag(name, value);
        }
        test.warmup(warmup.unwrap_or(if quick { QUICK.0 } else { WARMUP }))
    }

    /// From the first request to the last answer it takes no longer than this.
    pub(super) fn at_most(&self, replayed: &[Duration]) -> Duration {
        let ends = replayed.iter().max().zip(replayed.iter().min());
        let replayed = ends.map(|(last, first)| *last - *first);
        let usual = if self.requests.is_some() { REQUESTS_WITHIN } else { DURATION };
        let staged = self.stages.as_ref().map(Stages::length);
        let load = self.run.duration.or(staged).or(replayed).unwrap_or(usual);
        let around = self.run.warmup.unwrap_or(WARMUP) + self.run.timeout * 2;
        load.saturating_add(around)
    }
}

/// The scenario of a file.
fn scenario_of(path: &Path) -> Result<Scenario, NoRun> {
    Scenario::read(path).map_err(NoRun::usage)
}

/// Why there is no run.
#[derive(Debug)]
pub(super) enum NoRun {
    /// What the user has to change.
    Usage(String),
    /// What nobody has expected.
    Unexpected(String),
}

impl NoRun {
    pub(super) fn usage(text: impl fmt::Display) -> Self {
        Self::Usage(text.to_string())
    }
}

impl From<PlanError> for NoRun {
    fn from(error: PlanError) -> Self {
        Self::usage(error)
    }
}

impl From<UrlError> for NoRun {
    fn from(error: UrlError) -> Self {
        Self::usage(error)
    }
}

impl From<LoadTestError> for NoRun {
    fn from(error: LoadTestError) -> Self {
        match error {
            LoadTestError::Plan(error) => error.into(),
            error => Self::Unexpected(error.to_string()),
        }
    }
}

impl From<io::Error> for NoRun {
    fn from(error: io::Error) -> Self {
        Self::Unexpected(error.to_string())
    }
}
