//! A point-in-time reading, and the form in which it is shown.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    counters::Counters,
    counts::{
        CacheCounts, LimiterCounts, PhaseCounts, PoolCounts, RefusedTokens, RouteCounts,
        StreamCounts, TrafficCounts, merge_times, times_since,
    },
    histogram::{LatencyHistogram, LatencySummary},
    outcome::Outcome,
    process::{ProcessUsage, RuntimeUsage},
    route::RouteKey,
    stored::StoredSnapshot,
};

/// Everything that was recorded up to one moment, or between two.
///
/// Counters never go back, so an interval is the difference of two snapshots: [`Snapshot::since`]. The
/// snapshots of several processes add up: [`Snapshot::merge`]. Serialised (`parallax.snapshot/1`), it
/// is whole: what is read back is equal to what was written.
///
/// ```
/// # use parallax_middleware::{Perf, Snapshot};
/// # let perf = Perf::new();
/// let json = serde_json::to_string(&perf.snapshot()).unwrap();
/// // In another process:
/// let mut fleet: Snapshot = serde_json::from_str(&json).unwrap();
/// fleet.merge(&perf.snapshot());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StoredSnapshot", into = "StoredSnapshot")]
pub struct Snapshot {
    /// Since the recorder was made.
    pub(crate) uptime: Duration,
    /// Length of the interval, for a difference.
    pub(crate) window: Option<Duration>,
    /// By name; routes without a request in the interval are left out of a difference. Snapshots share what
    /// did not change between them.
    pub(crate) routes: BTreeMap<RouteKey, Arc<RouteCounts>>,
    pub(crate) limiter: LimiterCounts,
    /// By name and kind.
    pub(crate) pools: BTreeMap<PoolKey, PoolCounts>,
    /// By name.
    pub(crate) caches: BTreeMap<String, CacheCounts>,
    /// Phases of work that was for no request.
    pub(crate) elsewhere: BTreeMap<String, LatencyHistogram>,
    pub(crate) process: ProcessUsage,
    pub(crate) runtime: Option<RuntimeUsage>,
}

impl Snapshot {
    pub(crate) fn take(counters: &Counters) -> Self {
        Self::of(counters, counters.routes(None))
    }

    /// A snapshot that reads only what has changed since an earlier one of the same counters.
    pub(crate) fn take_after(counters: &Counters, earlier: &Self) -> Self {
        Self::of(counters, counters.routes(Some(&earlier.routes)))
    }

    fn of(counters: &Counters, routes: BTreeMap<RouteKey, Arc<RouteCounts>>) -> Self {
        Self {
            uptime: counters.uptime(),
            window: None,
            routes,
            limiter: counters.limiter(),
            pools: counters
                .pools()
                .pools()
                .iter()
                .map(|cells| (PoolKey::from(cells.key()), cells.read()))
                .collect(),
            caches: counters
                .pools()
                .caches()
                .iter()
                .map(|cells| (cells.name().to_owned(), cells.read()))
                .collect(),
            elsewhere: counters.elsewhere(),
            process: ProcessUsage::now(),
            runtime: RuntimeUsage::now(),
        }
    }

    /// What was recorded after `earlier` was taken, from the same handle. Requests in flight are those
    /// of `self`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let interval = |(key, counts): (&RouteKey, &Arc<RouteCounts>)| {
            let counts = match earlier.routes.get(key) {
                None => counts.clone(),
                Some(before) if Arc::ptr_eq(counts, before) && counts.in_flight() == 0 => {
                    return None;
                }
                Some(before) => Arc::new(counts.since(before)),
            };
            (!counts.is_empty()).then(|| (key.clone(), counts))
        };
        let mut process = self.process;
        if let (Some(now), Some(then)) = (&mut process.cpu, earlier.process.cpu) {
            *now = now.saturating_sub(then);
        }
        let mut runtime = self.runtime;
        if let (Some(now), Some(then)) = (&mut runtime, &earlier.runtime)
            && let (Some(now), Some(then)) = (&mut now.busy, then.busy)
        {
            *now = now.saturating_sub(then);
        }
        Self {
            uptime: self.uptime,
            window: Some(self.uptime.saturating_sub(earlier.uptime)),
            routes: self.routes.iter().filter_map(interval).collect(),
            limiter: self.limiter.since(&earlier.limiter),
            pools: difference(&self.pools, &earlier.pools, PoolCounts::since),
            caches: difference(&self.caches, &earlier.caches, |now, then| now.since(*then)),
            elsewhere: times_since(&self.elsewhere, &earlier.elsewhere),
            process,
            runtime,
        }
    }

    /// Adds what another process recorded. Counts, memory, processor time, workers and queues add up; of
    /// the two uptimes, and of the two windows, the longer one stands.
    ///
    /// Merging into [`Snapshot::default`] gives the other one.
    pub fn merge(&mut self, other: &Self) {
        if *self == Self::default() {
            self.clone_from(other);
            return;
        }
        for (key, counts) in &other.routes {
            match self.routes.get_mut(key) {
                Some(mine) => Arc::make_mut(mine).merge(counts),
                None => {
                    self.routes.insert(key.clone(), counts.clone());
                }
            }
        }
        self.limiter.merge(other.limiter);
        for (key, counts) in &other.pools {
            self.pools.entry(key.clone()).or_default().merge(counts);
        }
        for (name, counts) in &other.caches {
            self.caches.entry(name.clone()).or_default().merge(*counts);
        }
        merge_times(&mut self.elsewhere, &other.elsewhere);
        self.uptime = self.uptime.max(other.uptime);
        self.window = self.window.zip(other.window).map(|(mine, theirs)| mine.max(theirs));
        self.process.merge(other.process);
        self.runtime = match (self.runtime, other.runtime) {
            (Some(mine), Some(theirs)) => Some(mine.merge(theirs)),
            (mine, theirs) => mine.or(theirs),
        };
    }

    /// What was counted about each pool, with its name and its kind.
    pub fn pools(&self) -> impl Iterator<Item = (&str, &str, &PoolCounts)> {
        self.pools.iter().map(|(key, counts)| (&*key.name, &*key.kind, counts))
    }

    /// The counters of one pool: all of that name, of whatever kind.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<PoolCounts> {
        let mut named =
            self.pools().filter(|(found, ..)| *found == name).map(|(.., counts)| counts);
        let mut sum = named.next()?.clone();
        named.for_each(|counts| sum.merge(counts));
        Some(sum)
    }

    /// What was counted about each cache, by name.
    pub fn caches(&self) -> impl Iterator<Item = (&str, &CacheCounts)> {
        self.caches.iter().map(|(name, counts)| (&**name, counts))
    }

    /// Every route with its counters, by method and template.
    pub fn routes(&self) -> impl Iterator<Item = (&RouteKey, &RouteCounts)> {
        self.routes.iter().map(|(key, counts)| (key, &**counts))
    }

    /// The counters of one route: its method and its template, as [`RouteKey`] has them.
    #[must_use]
    pub fn route(&self, method: &str, template: &str) -> Option<&RouteCounts> {
        let wanted = |key: &RouteKey| (key.method(), key.template()) == (method, template);
        self.routes().find(|(key, _)| wanted(key)).map(|(_, counts)| counts)
    }

    fn total(&self, of: impl Fn(&RouteCounts) -> u64) -> u64 {
        self.routes.values().fold(0, |sum: u64, counts| sum.saturating_add(of(counts)))
    }

    /// Requests that entered the layer.
    #[must_use]
    pub fn entered(&self) -> u64 {
        self.total(|counts| counts.entered)
    }

    /// Requests that have an outcome.
    #[must_use]
    pub fn recorded(&self) -> u64 {
        self.total(RouteCounts::recorded)
    }

    /// Requests that carried a probe and have an outcome.
    #[must_use]
    pub fn paired(&self) -> u64 {
        self.total(|counts| counts.paired)
    }

    /// How many requests of one outcome there were.
    #[must_use]
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        self.total(|counts| counts.outcome(outcome))
    }

    /// The reading in the form of `GET /perf`.
    #[must_use]
    pub fn view(&self) -> PerfView {
        let limiter = self.limiter;
        let interval = self.window.unwrap_or(self.uptime).as_secs_f64();
        PerfView {
            schema: PerfView::SCHEMA.to_owned(),
            uptime_s: self.uptime.as_secs_f64(),
            window_s: self.window.map(|window| window.as_secs_f64()),
            routes: self.routes.iter().map(|(key, counts)| row(key, counts)).collect(),
            limiter: limiter_view(limiter),
            pools: self.pools.iter().map(|(key, counts)| PoolView::of(key, counts)).collect(),
            caches: self.caches.iter().map(|(name, counts)| CacheView::of(name, *counts)).collect(),
            elsewhere: summaries(&self.elsewhere),
            process: ProcessView {
                rss_bytes: self.process.rss_bytes,
                cpu_s: self.process.cpu.map(|cpu| cpu.as_secs_f64()),
            },
            runtime: self.runtime.map(|runtime| RuntimeView {
                workers: runtime.workers,
                // The runtime is older than the recorder, so only an interval has a ratio.
                busy_ratio: self.window.and(runtime.busy).and_then(|busy| {
                    let of = interval * runtime.workers as f64;
                    (of > 0.0).then(|| (busy.as_secs_f64() / of).clamp(0.0, 1.0))
                }),
                global_queue_depth: runtime.global_queue_depth,
                alive_tasks: runtime.alive_tasks,
            }),
        }
    }
}

/// A pool's name and kind.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct PoolKey {
    pub(crate) name: String,
    pub(crate) kind: String,
}

impl From<(&str, &str)> for PoolKey {
    fn from((name, kind): (&str, &str)) -> Self {
        Self { name: name.to_owned(), kind: kind.to_owned() }
    }
}

/// `now` without what was there earlier.
fn difference<K: Ord + Clone, C: Clone>(
    now: &BTreeMap<K, C>,
    earlier: &BTreeMap<K, C>,
    since: impl Fn(&C, &C) -> C,
) -> BTreeMap<K, C> {
    let interval = |(key, counts): (&K, &C)| {
        let interval = earlier.get(key).map_or_else(|| counts.clone(), |then| since(counts, then));
        (key.clone(), interval)
    };
    now.iter().map(interval).collect()
}

impl PoolView {
    fn of(key: &PoolKey, counts: &PoolCounts) -> Self {
        Self {
            name: key.name.clone(),
            kind: key.kind.clone(),
            max: counts.max,
            size: counts.size,
            idle: counts.idle,
            in_use: counts.in_use,
            waiting: counts.waiting,
            acquired: counts.acquired,
            cancelled: counts.cancelled,
            failed: counts.failed,
            timeouts: counts.timeouts(),
            wait_timeouts: counts.wait_timeouts,
            create_timeouts: counts.create_timeouts,
            recycle_timeouts: counts.recycle_timeouts,
            wait: counts.wait.summary(),
            create: counts.create.summary(),
            recycle: counts.recycle.summary(),
            hold: counts.hold.summary(),
        }
    }
}

impl CacheView {
    fn of(name: &str, counts: CacheCounts) -> Self {
        Self {
            name: name.to_owned(),
            hits: counts.hits,
            misses: counts.misses,
            hit_ratio: counts.hit_ratio(),
        }
    }
}

fn row(key: &RouteKey, counts: &RouteCounts) -> RouteView {
    let users = &counts.users;
    RouteView {
        method: key.method().to_owned(),
        route: key.template().to_owned(),
        requests: counts.recorded(),
        in_flight: counts.in_flight(),
        outcomes: outcomes_view(|outcome| counts.outcome(outcome)),
        bypassed: counts.bypassed.recorded(),
        paired: counts.paired,
        latency: users.ok.summary(),
        time_to_first_byte: users.first_byte.summary(),
        limited_latency: users.limited.summary(),
        failed_latency: users.failed.summary(),
        phases: summaries(&users.phases.times),
        overlap: users.phases.view(),
        streams: users.streams.view(),
        response_bytes: users.response_bytes.saturating_add(counts.bypassed.response_bytes),
        load: (!counts.bypassed.is_empty()).then(|| LoadView::of(&counts.bypassed)),
        limiter: limiter_view(counts.limiter),
    }
}

impl LoadView {
    fn of(counts: &TrafficCounts) -> Self {
        Self {
            outcomes: outcomes_view(|outcome| counts.outcome(outcome)),
            latency: counts.ok.summary(),
            time_to_first_byte: counts.first_byte.summary(),
            limited_latency: counts.limited.summary(),
            failed_latency: counts.failed.summary(),
            phases: summaries(&counts.phases.times),
            overlap: counts.phases.view(),
            streams: counts.streams.view(),
            response_bytes: counts.response_bytes,
        }
    }
}

fn outcomes_view(of: impl Fn(Outcome) -> u64) -> OutcomesView {
    OutcomesView {
        ok: of(Outcome::Ok),
        client_error: of(Outcome::ClientError),
        limited: of(Outcome::Limited),
        server_error: of(Outcome::ServerError),
        cancelled: of(Outcome::Cancelled),
        panicked: of(Outcome::Panicked),
    }
}

fn limiter_view(counts: LimiterCounts) -> Option<LimiterView> {
    (counts != LimiterCounts::default()).then_some(LimiterView {
        admitted: counts.admitted,
        limited: counts.limited,
        bypassed: counts.bypassed,
        refused_tokens: counts.refused_tokens,
    })
}

fn summaries(times: &BTreeMap<String, LatencyHistogram>) -> BTreeMap<String, LatencySummary> {
    times.iter().map(|(name, histogram)| (name.clone(), histogram.summary())).collect()
}

impl PhaseCounts {
    fn view(&self) -> Option<OverlapView> {
        (self.overlapped > 0).then_some(OverlapView {
            requests: self.overlapped,
            total_us: self.overlap_ns as f64 / 1e3,
        })
    }
}

impl StreamCounts {
    fn view(&self) -> Option<StreamsView> {
        let micros = |ns: u64| ns as f64 / 1e3;
        (self.opened > 0).then(|| StreamsView {
            opened: self.opened,
            open: self.open(),
            duration: LatencySummary {
                count: self.ended,
                mean_us: self.sum_ns.checked_div(self.ended).map(micros),
                min_us: self.extremes_ns.map(|(min, _)| micros(min)),
                max_us: self.extremes_ns.map(|(_, max)| micros(max)),
                ..LatencySummary::default()
            },
        })
    }
}

/// A snapshot as `GET /perf` shows it: `parallax.perf/1`.
///
/// Parts that a service does not use are absent. Readers ignore fields that they do not know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PerfView {
    /// [`PerfView::SCHEMA`].
    pub schema: String,
    /// Seconds since the handle was made.
    pub uptime_s: f64,
    /// Seconds that the figures cover; `None` if they go back to the start.
    pub window_s: Option<f64>,
    /// One row a route, by method and template.
    pub routes: Vec<RouteView>,
    /// What a limiter with a way around it did; absent if it did nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limiter: Option<LimiterView>,
    /// Pools of connections that are watched, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolView>,
    /// Caches that are watched, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<CacheView>,
    /// Phases of work that was for no request, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub elsewhere: BTreeMap<String, LatencySummary>,
    /// What the process uses.
    pub process: ProcessView,
    /// The tokio runtime that took the snapshot; absent outside of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeView>,
}

impl PerfView {
    /// Name and version of the format.
    pub const SCHEMA: &str = "parallax.perf/1";
}

/// One route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteView {
    /// HTTP method, `_OTHER`, or `*` for a row that stands for several.
    pub method: String,
    /// Matched template, `(unmatched)`, or `(other)` past the cap.
    pub route: String,
    /// Requests that have ended.
    pub requests: u64,
    /// Requests that have not.
    pub in_flight: u64,
    /// How those that have ended did so.
    pub outcomes: OutcomesView,
    /// Requests that passed by the limiter. They are in all counts; their times are apart, in `load`.
    pub bypassed: u64,
    /// Requests that carried a probe of a load generator.
    pub paired: u64,
    /// From entry to the end of the body: successes, without streams.
    pub latency: LatencySummary,
    /// From entry to the response head: successes, and streams as soon as they are open.
    pub time_to_first_byte: LatencySummary,
    /// From entry to end of rejections.
    pub limited_latency: LatencySummary,
    /// From entry to end of everything else that failed.
    pub failed_latency: LatencySummary,
    /// Where the time went, by phase: for each phase, over the requests that were in it, however they ended, all
    /// the time that one spent there. `handler` is the rest, over the requests that were in any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub phases: BTreeMap<String, LatencySummary>,
    /// Requests that were in several phases at once; absent if none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<OverlapView>,
    /// Server-sent events, counted apart; absent if the route sent none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<StreamsView>,
    /// Bytes of response bodies.
    pub response_bytes: u64,
    /// Those that passed by the limiter; absent if none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadView>,
    /// What the limiter did with those that have ended; absent if they met none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limiter: Option<LimiterView>,
}

/// The requests to one route that passed by a limiter: the load of a test, apart from the service's users. Its
/// fields are those of [`RouteView`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct LoadView {
    pub outcomes: OutcomesView,
    pub latency: LatencySummary,
    pub time_to_first_byte: LatencySummary,
    pub limited_latency: LatencySummary,
    pub failed_latency: LatencySummary,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub phases: BTreeMap<String, LatencySummary>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<OverlapView>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<StreamsView>,
    pub response_bytes: u64,
}

/// Requests that were in several phases at once. Their phases add up to more than their time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OverlapView {
    /// How many.
    pub requests: u64,
    /// By how much, over all of them, in microseconds.
    pub total_us: f64,
}

/// Responses of type `text/event-stream`. They are requests with an outcome as all others, but last as long
/// as both sides wish, so their duration is in no latency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StreamsView {
    /// Streams whose head went out.
    pub opened: u64,
    /// Those of them that have not ended.
    pub open: u64,
    /// From entry to end of those that have, however they did. Percentiles are not kept.
    pub duration: LatencySummary,
}

/// Requests by outcome.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct OutcomesView {
    /// Status 100 to 399, body out whole.
    pub ok: u64,
    /// Status 400 to 499 but 429.
    pub client_error: u64,
    /// Status 429.
    pub limited: u64,
    /// Status 500 and up, service errors, bodies that broke off.
    pub server_error: u64,
    /// Dropped before the end.
    pub cancelled: u64,
    /// Ended by a panic.
    pub panicked: u64,
}

/// A pool of connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// What it is: `sqlx`, `deadpool`, `other`.
    pub kind: String,
    /// The most connections that there may be; 0 where the pool does not tell.
    pub max: u64,
    /// Connections that there are.
    pub size: u64,
    /// Those of them that are not in use.
    pub idle: u64,
    /// Connections that somebody has.
    pub in_use: u64,
    /// Those who wait for one.
    pub waiting: u64,
    /// Waits that ended with a connection.
    pub acquired: u64,
    /// Waits that were broken off by those who waited.
    pub cancelled: u64,
    /// Waits that ended without a connection, but for lack of time.
    pub failed: u64,
    /// Waits that ended because time ran out: the sum of the next three.
    pub timeouts: u64,
    /// Before a connection was free.
    pub wait_timeouts: u64,
    /// While one was opened.
    pub create_timeouts: u64,
    /// While an idle one was checked.
    pub recycle_timeouts: u64,
    /// From asking to the end of the wait, however it ended.
    pub wait: LatencySummary,
    /// Opening connections, a part of waits; empty where the pool does not tell.
    pub create: LatencySummary,
    /// Checking idle connections, a part of waits; empty where the pool does not tell.
    pub recycle: LatencySummary,
    /// From getting a connection to giving it back.
    pub hold: LatencySummary,
}

/// A cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheView {
    /// Its name.
    pub name: String,
    /// What was looked for was there.
    pub hits: u64,
    /// It was not.
    pub misses: u64,
    /// Hits of all lookups; `None` if there was none.
    pub hit_ratio: Option<f64>,
}

/// What a limiter with a way around it did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct LimiterView {
    /// Requests that it let through.
    pub admitted: u64,
    /// Requests that it answered itself, with 429 or whatever it says.
    pub limited: u64,
    /// Requests that went around it.
    pub bypassed: u64,
    /// Tokens that did not let their requests around it.
    #[serde(default)]
    pub refused_tokens: RefusedTokens,
}

/// What the process uses; what the platform does not tell is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessView {
    /// Resident memory.
    pub rss_bytes: Option<u64>,
    /// Processor time of all threads, since the process began or within the window.
    pub cpu_s: Option<f64>,
}

/// The tokio runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RuntimeView {
    /// Worker threads.
    pub workers: usize,
    /// Share of the window that the workers were busy; `None` without a window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_ratio: Option<f64>,
    /// Tasks that wait for a worker in the shared queue.
    pub global_queue_depth: usize,
    /// Tasks that have not ended.
    pub alive_tasks: usize,
}
