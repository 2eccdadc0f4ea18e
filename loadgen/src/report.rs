//! What a run found, as plain data.
//!
//! A [`Report`] is complete: every rendering is made from it alone, offline, and a saved report
//! renders to the same bytes as the run that wrote it. Durations are microseconds (`_us`), rates are
//! requests per second, ratios are in `[0, 1]`, quantiles in `[0, 1]`.

use std::{collections::BTreeMap, fmt, io, path::Path};

use parallax_middleware::{LatencySummary, PerfView};
use serde::{Deserialize, Serialize};

use crate::render::clean::clean;

/// The name and version of the report format. A breaking change bumps the number.
pub const SCHEMA: &str = "parallax.report/1";

/// What was found out about a figure, a run or a report.
///
/// The order is the order of precedence: the verdict of a whole is the worst of its parts.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The whole confidence interval lies on the good side of the limit.
    Pass,
    /// The interval straddles the limit, there are too few samples to say, or the machine may be why; of a run, whether
    /// its figures can be believed is open.
    Inconclusive,
    /// The whole confidence interval lies on the bad side of the limit; that of a time by more than the machine may
    /// have added.
    Fail,
    /// The data cannot be believed, whatever they say.
    Invalid,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pass => "pass",
            Self::Inconclusive => "inconclusive",
            Self::Fail => "fail",
            Self::Invalid => "invalid",
        })
    }
}

/// How much room is left under the tightest limit; only a report that passed has one above `Poor`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// The worst margin is at least 30 %.
    Excellent,
    /// The worst margin is at least 10 %.
    Good,
    /// Every limit holds, the worst with less than 10 % to spare.
    Fair,
    /// A limit was broken.
    Poor,
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Excellent => "excellent",
            Self::Good => "good",
            Self::Fair => "fair",
            Self::Poor => "poor",
        })
    }
}

/// Everything that was found, over all runs of one command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// What was tested, for the headline.
    pub title: String,
    /// When the first run began, seconds since the Unix epoch.
    pub started_at_unix_s: f64,
    /// True if somebody ended the run early; everything up to then is here.
    pub interrupted: bool,
    /// Where it ran.
    pub environment: Environment,
    /// The worst verdict of the runs and of `thresholds`.
    pub verdict: Verdict,
    /// `None` if anything is inconclusive or invalid, or if nothing was judged.
    pub grade: Option<Grade>,
    /// The requirements on the whole, each judged on the run (or measurement) named in it.
    pub thresholds: Vec<ThresholdResult>,
    /// One entry a run, in the order in which they ran.
    pub runs: Vec<Run>,
    /// Memory against the number of stored entities, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryModel>,
}

/// The machine and the build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Operating system, as Rust names it.
    pub os: String,
    /// Processor architecture, as Rust names it.
    pub arch: String,
    /// Logical processors that this process may use.
    pub cpus: usize,
    /// Worker threads of the runtime that ran the service and the generator.
    pub workers: usize,
    /// `release` or `debug`.
    pub profile: String,
    /// Version of Parallax that wrote the report.
    pub parallax_version: String,
    /// The service's own settings, in words, without secrets.
    #[serde(default)]
    pub settings: Vec<(String, String)>,
}

/// One run: one workload against one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// For example `closed` or `open`.
    pub name: String,
    /// What was asked for.
    pub plan: PlanSummary,
    /// When the measured interval began, seconds since the Unix epoch.
    pub started_at_unix_s: f64,
    /// Length of the measured interval, from its first intended start to its end, without the drain.
    pub measured_s: f64,
    /// True if the run ended before its plan did.
    pub interrupted: bool,
    /// May the figures be believed?
    pub validity: Validity,
    /// The worst of `validity` and of its thresholds.
    pub verdict: Verdict,
    /// Where every request went.
    pub conservation: Conservation,
    /// The errors behind `transport_error`, the most frequent first: at most 16 texts, and one for the rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ErrorCount>,
    /// Connections that the generator opened, from before the warm-up to the end of the drain; absent where
    /// there are none to open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// What the client felt.
    pub client: ClientView,
    /// What the layer recorded during the measured interval and the drain after it, in which the last
    /// answers came in; absent if no layer answered.
    pub server: Option<PerfView>,
    /// Requests seen from both sides.
    pub pairs: Pairs,
    /// Where the time of the paired successes went, around each quantile of their response times.
    #[serde(default)]
    pub attribution: Vec<Attribution>,
    /// What explains the figures, each with its evidence, the weightiest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<Hint>,
    /// Requests in flight against what rate and service time say that they must be; absent under ten moments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub littles_law: Option<LittlesLaw>,
    /// When the figures had settled; absent if there were too few slots to say, and where the load was to change: with
    /// stages and recorded arrivals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settling: Option<Settling>,
    /// Moments in which all routes were slow together, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stalls: Vec<Stall>,
    /// What the scenario checked of the answers, in the order of the names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    /// What the load generator itself did and cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<GeneratorView>,
    /// The run's own thresholds.
    pub thresholds: Vec<ThresholdResult>,
    /// Equal slots of the warm-up, by intended start, in order, with `at_s` from the start of the warm-up; no other
    /// figure contains them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warmup: Vec<TimelineRow>,
    /// Equal slots of the measured interval, by intended start, in order.
    pub timeline: Vec<TimelineRow>,
    /// The process over time, in order.
    pub resources: Vec<ResourceRow>,
}

/// The settings of a run, as validated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanSummary {
    /// `closed` (users who wait for their answers) or `open` (arrivals that do not).
    pub model: Model,
    /// Concurrent users; closed model only.
    pub users: Option<usize>,
    /// Intended arrivals per second, at the most if that changes; open model only.
    pub rate: Option<f64>,
    /// How arrivals follow one another: `constant`, `poisson` or `replay`; open model only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrivals: Option<String>,
    /// Straight lines in time: how long each takes, in seconds, and the rate or the number of users that it leads
    /// to. Empty if neither changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<(f64, f64)>,
    /// The run was to end with so many requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Pause of a user between an answer and the next request, on average; closed model only.
    pub think_time_s: Option<f64>,
    /// The pauses are exponentially distributed, instead of all alike.
    #[serde(default)]
    pub random_think_time: bool,
    /// From the beginning of one iteration of a user to the next, at least; closed model only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pacing_s: Option<f64>,
    /// Warm-up before the measured interval, not part of any figure.
    pub warmup_s: f64,
    /// Planned length of the measured interval.
    pub duration_s: f64,
    /// Bound on requests in flight; an arrival past it is dropped.
    pub max_in_flight: usize,
    /// After this long without a complete response a request is given up.
    pub timeout_s: f64,
    /// How the target is reached: `direct` is a call into the service, `pipe`, `tcp` and `unix` a connection to
    /// it, `:h2` one of HTTP/2; or the URL of another server.
    pub transport: String,
    /// Seed of every random choice.
    pub seed: u64,
    /// The requests of the mix, by name and weight.
    pub mix: Vec<(String, u32)>,
    /// True if the load carries the pass that lets it by the rate limiter.
    pub bypasses_limiter: bool,
    /// Who wakes requests when they are due: `precise` (a thread that spins) or `coarse` (the runtime's timer).
    #[serde(default)]
    pub pacer: String,
    /// The generator's tasks run on the service's runtime (`shared`) or on one of their own (`split`).
    #[serde(default)]
    pub topology: String,
    /// Time was simulated: it passed when everybody waited.
    #[serde(default)]
    pub virtual_time: bool,
    /// What the caller calls this run, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

/// Who decides when the next request starts.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Model {
    /// A fixed number of users, each of whom waits for an answer before asking again.
    Closed,
    /// Arrivals on a schedule, whether or not earlier ones were answered.
    Open,
}

/// May the figures be believed?
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validity {
    /// [`Verdict::Pass`] or [`Verdict::Invalid`]; [`Verdict::Inconclusive`] if that cannot be told.
    pub verdict: Verdict,
    /// Why not, each with its evidence; empty if the run is valid.
    pub reasons: Vec<Reason>,
}

/// A rule that a run broke.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    /// Stable name of the rule, for programs: for example `masquerade`.
    pub rule: String,
    /// The finding with its figures and the remedy, for people.
    pub message: String,
}

/// Where every request of the measured interval went. Integers, exact:
/// `scheduled = dropped + sent + unsent` and
/// `sent = ok + client_error + limited + server_error + timeout + transport_error + cancelled +
/// panicked + check_failed + in_flight`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Conservation {
    /// Requests that the schedule called for.
    pub scheduled: u64,
    /// Due, but not sent, because the in-flight bound was reached.
    pub dropped: u64,
    /// Handed to the target.
    pub sent: u64,
    /// Due before the stop, but not sent by then; or an arrival whose flow sent nothing.
    pub unsent: u64,
    /// How the sent ones ended for the client.
    #[serde(flatten)]
    pub outcomes: ClientOutcomes,
    /// Sent, and still unanswered when the drain deadline passed.
    pub in_flight: u64,
    /// The same requests as the layer counted them; absent without a layer.
    pub server: Option<ServerConservation>,
    /// What no rule accounts for, client and server together. Anything but 0 makes the run invalid.
    pub unexplained: u64,
}

/// What the layer counted meanwhile: this run's requests, and those of others.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct ServerConservation {
    /// Requests that entered the layer.
    pub entered: u64,
    /// Requests that it has recorded with an outcome.
    pub recorded: u64,
    /// Sent by the client but never seen by the layer (answered by something outside it).
    pub not_seen: u64,
    /// Of `recorded`, those that this run did not send (other clients of the service).
    pub foreign: u64,
}

/// One route's requests as both sides count them, and what accounts for the difference:
/// `finished = recorded - foreign + not_seen`, but for `unexplained`, and for requests that a run gave up waiting for:
/// the layer may have recorded those.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct RouteConservation {
    /// Requests that ended for the client, however they did.
    pub finished: u64,
    /// Requests that the layer has recorded, however they ended.
    pub recorded: u64,
    /// Answered, or given up, before they reached the layer.
    pub not_seen: u64,
    /// Of `recorded`, those that this run did not send.
    pub foreign: u64,
    /// Given up by the client after its timeout, which the layer recorded as cancelled.
    pub timed_out: u64,
    /// What no rule accounts for. Anything but 0 makes the run invalid.
    pub unexplained: u64,
}

/// An error, and how many requests it ended.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ErrorCount {
    /// The error and its causes, on one line.
    pub message: String,
    /// Requests that it ended.
    pub count: u64,
}

/// Requests by how they ended, as the client sees it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct ClientOutcomes {
    /// Status 100 to 399, body complete.
    pub ok: u64,
    /// Status 400 to 499 but 429.
    pub client_error: u64,
    /// Status 429.
    pub limited: u64,
    /// Status 500 to 599.
    pub server_error: u64,
    /// Given up by the client after its timeout.
    pub timeout: u64,
    /// The target failed without a response, or its body broke off.
    pub transport_error: u64,
    /// Ended by the client before an answer, for another reason than its timeout.
    pub cancelled: u64,
    /// The service panicked while it answered.
    pub panicked: u64,
    /// Answered, but a check on the answer failed.
    pub check_failed: u64,
}

impl ClientOutcomes {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ok.saturating_add(self.failed())
    }

    /// All but `ok`.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.named()[1..].iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Name and count, in the order in which they are shown.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 9] {
        [
            ("ok", self.ok),
            ("client_error", self.client_error),
            ("limited", self.limited),
            ("server_error", self.server_error),
            ("timeout", self.timeout),
            ("transport_error", self.transport_error),
            ("cancelled", self.cancelled),
            ("panicked", self.panicked),
            ("check_failed", self.check_failed),
        ]
    }
}

/// What the client felt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientView {
    /// Successful responses per second of the measured interval.
    pub rate: f64,
    /// From the intended start to the drained body, successes only. The headline.
    pub response_time: Latency,
    /// From the dispatch to the drained body, successes only.
    pub service_time: Latency,
    /// From the intended start to the dispatch: the generator's own lateness, all requests. What arrivals wait for a
    /// worker of the runtime that they were handed to, which is the service's, is not in it.
    pub lag: Latency,
    /// Response time of everything that failed.
    pub failed: Latency,
    /// Response time of rejections (429).
    pub limited: Latency,
    /// How requests ended.
    pub outcomes: ClientOutcomes,
    /// Bytes of response bodies.
    pub response_bytes: u64,
    /// One row a route, by name.
    pub routes: Vec<ClientRoute>,
}

/// One route as the client felt it, beside what the layer recorded for the same requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientRoute {
    /// Method and matched template as the layer knows it (`GET /items/{id}`); the name of the
    /// request in the mix where no layer answered.
    pub route: String,
    /// Successful responses per second of the measured interval.
    pub rate: f64,
    /// How requests ended.
    pub outcomes: ClientOutcomes,
    /// From the intended start to the drained body, successes only.
    pub response_time: Latency,
    /// From the dispatch to the drained body, successes only.
    pub service_time: Latency,
    /// The layer's time for the same requests, successes only.
    pub server_time: Latency,
    /// Service time less server time of the same request, successes only.
    pub outside: Latency,
    /// The route's requests on both sides; absent without a layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conservation: Option<RouteConservation>,
    /// Where the time of the paired successes went.
    #[serde(default)]
    pub attribution: Vec<Attribution>,
}

/// A distribution: the summary of the contract, and the curve that plots are drawn from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Count, mean, extremes and percentiles; a percentile without enough samples is `None`.
    #[serde(flatten)]
    pub summary: LatencySummary,
    /// `(quantile, microseconds)` with rising quantiles, denser towards 1, up to the last quantile
    /// that the samples support; empty if there are too few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curve: Vec<(f64, f64)>,
}

/// Requests seen from both sides, request by request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pairs {
    /// Requests with a complete record from both sides.
    pub paired: u64,
    /// The layer's time of the paired successes.
    pub server_time: Latency,
    /// The layer's time to the response head of the paired successes.
    pub time_to_first_byte: Latency,
    /// Service time less server time of the paired successes.
    pub outside: Latency,
    /// Pairs whose server time exceeds their service time although the client had the whole answer, which cannot be on
    /// one clock.
    pub negative: u64,
}

/// A sentence on what made the figures what they are.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Hint {
    /// Stable name of the rule that found it, for programs: for example `pool`.
    pub rule: String,
    /// The route that it is about; none if it is about the whole run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The finding with the figures behind it, for people.
    pub message: String,
}

/// Little's law, `N = λ · W`, on this run: two measurements of the requests in flight that have nothing in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LittlesLaw {
    /// Mean of the requests in flight, counted at regular moments of the measured interval.
    pub sampled: f64,
    /// Mean of what is in flight if the service times are right: their sum within the measured interval over
    /// its length.
    pub expected: f64,
    /// How far apart the two may be: a share of `expected`, and the sampling error.
    pub tolerance: f64,
    /// Moments behind `sampled`.
    pub samples: u64,
}

/// Where the transient of a run's beginning ends, by MSER: the slots left out that make the rest's mean most certain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settling {
    /// Seconds of the measured interval that belong to the transient.
    pub transient_s: f64,
    /// Slots that were looked at.
    pub slots: u64,
    /// False if the transient takes 45 % of the measured interval or more: then it has no end in sight.
    pub stationary: bool,
}

/// A moment in which the requests of all routes were slow together: what they share stood still, the process or something
/// that all of them wait for, not one route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// Its beginning, seconds since the start of the measured interval.
    pub at_s: f64,
    /// Its length in seconds.
    pub width_s: f64,
    /// Routes with slow requests in it.
    pub routes: u64,
    /// Slow requests in it: past the p99 of their route.
    pub slow: u64,
    /// Of all requests of it.
    pub requests: u64,
}

/// Something that a scenario requires of answers.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// As the scenario calls it.
    pub name: String,
    /// How often it held.
    pub passed: u64,
    /// How often it did not; those requests are `check_failed`, if they had not failed otherwise.
    pub failed: u64,
    /// What was wrong the first time, if the scenario said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_failure: Option<String>,
}

/// What the load generator itself did and cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GeneratorView {
    /// From one dispatched arrival to the next; open model only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrival_gap: Option<Latency>,
    /// How late a thread of the generator's was woken that sleeps 20 ms at a time; absent in virtual time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake_ups: Option<Latency>,
    /// What a request to a service that does nothing took before the run, one after the other on one thread, in the
    /// fastest of several batches: sending, recording, collecting.
    pub ns_per_request: Option<f64>,
    /// That for all requests of the run, as a share of the processor time that the process used meanwhile, 0 to 1: at
    /// least so much of it was the generator's. The pacer's spinning is not in it.
    pub cpu_share: Option<f64>,
}

/// Where the time went of the requests whose response times are around one quantile: those of the ranks
/// `q ± (1 - q) / 2`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attribution {
    /// 0 to 1.
    pub quantile: f64,
    /// Requests in the group.
    pub requests: u64,
    /// Their mean response time.
    pub response_us: f64,
    /// The share of each part in it, 0 to 1; they sum to 1. `lag`, `runtime` (waiting for a worker of the service's
    /// runtime), `outside`, the phases that the layer saw, and `handler` for the rest.
    pub shares: BTreeMap<String, f64>,
    /// Lower ends of the shares' intervals, each wrong with a probability of 5 %; empty if there are too few
    /// requests, or blocks of time with any, to say.
    #[serde(default)]
    pub low: BTreeMap<String, f64>,
    /// Upper ends, likewise.
    #[serde(default)]
    pub high: BTreeMap<String, f64>,
    /// How much more of each part a request has than one of the ranks 40 to 60 %.
    #[serde(default)]
    pub excess_us: BTreeMap<String, f64>,
    /// The part whose share is shown to be over a half, if one is.
    pub dominant: Option<String>,
}

/// A threshold with what was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThresholdResult {
    /// As written: `p95 < 200ms`.
    pub expression: String,
    /// The run that it was judged on; empty for one that belongs to no run.
    #[serde(default)]
    pub run: String,
    /// The measured figure, in the unit of the expression's metric: microseconds, a ratio, requests
    /// per second, bytes or a count. `None` if there was nothing to measure.
    pub observed: Option<f64>,
    /// Lower end of the confidence interval of `observed`.
    pub low: Option<f64>,
    /// Upper end of the confidence interval of `observed`.
    pub high: Option<f64>,
    /// The limit, in the same unit.
    pub limit: f64,
    /// Of `observed`, `low`, `high` and `limit`.
    pub unit: Unit,
    /// How far the conservative end of the interval is from the limit, as a ratio of the limit;
    /// negative past it.
    pub margin: Option<f64>,
    /// Samples behind the figure.
    pub samples: u64,
    /// The finding.
    pub verdict: Verdict,
    /// Why it is not simply pass or fail, or how it was found; may be empty.
    #[serde(default)]
    pub note: String,
}

/// What a threshold's figures are measured in.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Microseconds.
    Us,
    /// In `[0, 1]`, shown as a percentage.
    Ratio,
    /// Per second.
    PerSecond,
    /// Bytes.
    Bytes,
    /// A whole number.
    Count,
}

/// One slot of the measured interval. Requests belong to the slot of their intended start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimelineRow {
    /// Start of the slot, seconds since the start of the measured interval.
    pub at_s: f64,
    /// Length of the slot; the last one may be shorter.
    pub width_s: f64,
    /// Successful responses to requests of this slot.
    pub ok: u64,
    /// Successful responses that were complete within this slot, whenever they were asked for: over
    /// its width, the rate.
    pub completed: u64,
    /// Failed requests of this slot, rejections included.
    pub failed: u64,
    /// How the requests of this slot ended.
    #[serde(default)]
    pub outcomes: ClientOutcomes,
    /// Arrivals of this slot that were dropped.
    pub dropped: u64,
    /// Median response time of the slot's successes.
    pub p50_us: Option<f64>,
    /// 99th percentile of the response time of the slot's successes.
    pub p99_us: Option<f64>,
}

/// The process at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResourceRow {
    /// Seconds since the start of the measured interval.
    pub at_s: f64,
    /// Resident memory.
    pub rss_bytes: Option<u64>,
    /// Processor time used so far by the process, all threads.
    pub cpu_s: Option<f64>,
    /// Requests in flight in the generator.
    pub in_flight: u64,
    /// Since the row before, the share of their time in which the workers of the service's runtime were busy, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_ratio: Option<f64>,
    /// Tasks that wait in the global queue of the service's runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_depth: Option<u64>,
    /// Since the row before, how late a task on the service's runtime was woken that sleeps a little, again and again:
    /// the worst.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_us: Option<f64>,
    /// The pools that the layer watches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolRow>,
}

/// A pool at one moment.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct PoolRow {
    /// As it was registered.
    pub name: String,
    /// What pool it is, for example `sqlx`: pools of several kinds may have one name. Empty in older reports.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Connections that it may have.
    pub max: u64,
    /// Connections lent out.
    pub in_use: u64,
    /// Open, and nobody's.
    pub idle: u64,
    /// Requests that wait for one.
    pub waiting: u64,
}

/// Memory as a straight line over the number of stored entities: `base + slope · n`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryModel {
    /// Entities and peak resident bytes of one fresh process each.
    pub points: Vec<(u64, u64)>,
    /// Memory at no entities, bytes.
    pub base_bytes: f64,
    /// Marginal cost of an entity, bytes, least squares.
    pub bytes_per_entity: f64,
    /// The same by Theil-Sen, a check against single outliers.
    pub theil_sen_bytes_per_entity: f64,
    /// Entities that the projection is for.
    pub projected_entities: u64,
    /// Projected memory, bytes.
    pub projected_bytes: f64,
    /// Lower end of the 95 % prediction interval, bytes.
    pub low_bytes: f64,
    /// Upper end of the 95 % prediction interval, bytes.
    pub high_bytes: f64,
    /// `measured`, `estimate` (to 2× the measured range), `extrapolation` (to 10×) or `beyond`.
    pub reach: String,
}

/// A report that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadReportError {
    /// The file cannot be opened or read.
    #[error("cannot read the report {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It is not a report of this version.
    #[error("{path} is not a {SCHEMA} report: {detail}")]
    Format {
        /// The file.
        path: String,
        /// What does not fit.
        detail: String,
    },
}

impl Report {
    /// Reads a saved report.
    ///
    /// # Errors
    /// If the file cannot be read, is not JSON, or has another schema than [`SCHEMA`].
    pub fn read(path: &Path) -> Result<Self, ReadReportError> {
        let bytes = std::fs::read(path)
            .map_err(|source| ReadReportError::Io { path: path.display().to_string(), source })?;
        Self::from_json(&bytes)
            .map_err(|detail| ReadReportError::Format { path: path.display().to_string(), detail })
    }

    /// Parses the JSON of a report.
    ///
    /// # Errors
    /// What does not fit, if it is no JSON or has another schema than [`SCHEMA`]; on one line, and fit for a terminal
    /// whatever the bytes are.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        // The parser repeats what it does not know as it is.
        Self::parse(bytes).map_err(|error| clean(&error))
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Header {
            schema: Option<String>,
        }
        let header: Header = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        match header.schema.as_deref() {
            Some(SCHEMA) => serde_json::from_slice(bytes).map_err(|error| error.to_string()),
            Some(other) => Err(format!("its schema is {other:?}")),
            None => Err("it has no field \"schema\"".to_owned()),
        }
    }
}
