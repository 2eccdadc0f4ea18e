//! The last seconds and minutes, from snapshots that are taken now and then: requests pay nothing for it.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, mem,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::{AbortHandle, spawn_blocking},
    time::{MissedTickBehavior, interval},
};

use crate::{
    counters::Counters,
    counts::{CacheCounts, LimiterCounts, PoolCounts, RouteCounts},
    histogram::{LatencyHistogram, SparseHistogram},
    process::RuntimeUsage,
    route::RouteKey,
    snapshot::{PoolKey, Snapshot},
};

/// A stretch of time up to the present.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Window {
    /// The last 10 s.
    TenSeconds,
    /// The last minute.
    OneMinute,
    /// The last 5 min.
    FiveMinutes,
}

impl Window {
    /// All of them, the shortest first.
    pub const ALL: [Self; 3] = [Self::TenSeconds, Self::OneMinute, Self::FiveMinutes];

    /// How long it is.
    #[must_use]
    pub fn length(self) -> Duration {
        Duration::from_secs(match self {
            Self::TenSeconds => 10,
            Self::OneMinute => 60,
            Self::FiveMinutes => 300,
        })
    }

    /// `10s`, `1m` or `5m`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TenSeconds => "10s",
            Self::OneMinute => "1m",
            Self::FiveMinutes => "5m",
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Window {
    type Err = UnknownWindow;

    fn from_str(name: &str) -> Result<Self, UnknownWindow> {
        let found = Self::ALL.into_iter().find(|window| window.as_str() == name);
        found.ok_or_else(|| UnknownWindow(name.to_owned()))
    }
}

/// There is no window of this name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UnknownWindow(String);

impl fmt::Display for UnknownWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no window {:?}: ask for 10s, 1m or 5m", self.0)
    }
}

impl std::error::Error for UnknownWindow {}

/// From one sample to the next.
const STEP: Duration = Duration::from_secs(1);
/// Intervals that each level keeps; ten of a level's are a window.
const KEPT: usize = 10;
/// How many intervals of the level below make one: 1 s, 6 s, 30 s.
const GROUPED: [usize; 2] = [6, 5];

/// What was recorded lately, in intervals that get longer with age.
#[derive(Debug, Default)]
pub(crate) struct History {
    levels: Mutex<Levels>,
    /// The task that samples, once somebody has asked for a window.
    sampler: Mutex<Option<AbortHandle>>,
}

#[derive(Debug, Default)]
struct Levels {
    /// The last sample, from which the next interval begins.
    latest: Option<Snapshot>,
    /// The newest first.
    levels: [VecDeque<Interval>; 3],
    /// Intervals of each level that belong to no interval of the next one yet.
    loose: [usize; 3],
}

/// What ended within a stretch of time. Small: what did not happen takes no room.
#[derive(Debug, Default)]
struct Interval {
    length: Duration,
    routes: Vec<(RouteKey, EndedCounts)>,
    limiter: LimiterCounts,
    pools: Vec<(PoolKey, PoolCounts, [SparseHistogram; 4])>,
    caches: BTreeMap<String, CacheCounts>,
    elsewhere: SparseTimes,
    cpu: Option<Duration>,
    busy: Option<Duration>,
}

/// A route's counts, its histograms put away.
#[derive(Debug)]
struct EndedCounts {
    /// Without histograms.
    counts: RouteCounts,
    /// By traffic.
    histograms: [[SparseHistogram; 4]; 2],
    phases: [SparseTimes; 2],
}

/// An interval as graphs show it.
#[derive(Debug)]
pub(crate) struct Past {
    /// Since it ended.
    pub(crate) ago: Duration,
    pub(crate) length: Duration,
    pub(crate) routes: Vec<(RouteKey, PastRoute)>,
}

/// What ended on a route within an interval.
#[derive(Debug)]
pub(crate) struct PastRoute {
    pub(crate) requests: u64,
    /// Of successes of the service's users.
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
}

/// Times by name, put away.
type SparseTimes = Vec<(String, SparseHistogram)>;

fn put_away(times: BTreeMap<String, LatencyHistogram>) -> SparseTimes {
    times.into_iter().map(|(name, histogram)| (name, histogram.into())).collect()
}

fn take_out(into: &mut BTreeMap<String, LatencyHistogram>, times: &SparseTimes) {
    for (name, sparse) in times {
        match into.get_mut(name) {
            Some(histogram) => histogram.merge_sparse(sparse),
            None => into.entry(name.clone()).or_default().merge_sparse(sparse),
        }
    }
}

impl History {
    /// Samples once a second until `counters` are gone or the caller's runtime is; without a runtime, not
    /// yet.
    pub(crate) fn start(self: &Arc<Self>, counters: &Arc<Counters>) {
        let Ok(runtime) = Handle::try_current() else { return };
        let mut sampler = self.sampler.lock().unwrap_or_else(PoisonError::into_inner);
        if sampler.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        // Whatever was sampled in a runtime that has ended is too old. The first sample is taken now: what
        // comes is within a window from its first second on.
        let mut levels = self.lock();
        *levels = Levels::default();
        levels.sample(counters);
        let task = runtime.spawn(sample(Arc::downgrade(self), Arc::downgrade(counters)));
        *sampler = Some(task.abort_handle());
    }

    /// What was recorded within the window, or a little longer; less long, if sampling began later.
    pub(crate) fn window(&self, counters: &Counters, window: Window) -> Snapshot {
        self.lock().window(counters, window.length())
    }

    /// The last minutes, the oldest first. There are no more than twice as many intervals as a level keeps.
    pub(crate) fn past(&self, counters: &Counters) -> Vec<Past> {
        self.lock().past(counters.uptime())
    }

    fn lock(&self) -> MutexGuard<'_, Levels> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sample(history: Weak<History>, counters: Weak<Counters>) {
    let mut ticks = interval(STEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let (Some(history), Some(counters)) = (history.upgrade(), counters.upgrade()) else {
            return;
        };
        // Many routes take some milliseconds: not those of a thread that answers requests.
        let sampled = spawn_blocking(move || history.lock().sample(&counters));
        if sampled.await.is_err() {
            return;
        }
    }
}

impl Levels {
    fn sample(&mut self, counters: &Counters) {
        let now = self.read(counters);
        if let Some(latest) = &self.latest {
            let interval = Interval::from(now.since(latest));
            self.push(0, interval);
        }
        self.latest = Some(now);
    }

    /// The present, reading only what has changed since the last sample.
    fn read(&self, counters: &Counters) -> Snapshot {
        match &self.latest {
            Some(latest) => Snapshot::take_after(counters, latest),
            None => Snapshot::take(counters),
        }
    }

    fn push(&mut self, level: usize, interval: Interval) {
        self.levels[level].push_front(interval);
        self.loose[level] += 1;
        if GROUPED.get(level) == Some(&self.loose[level]) {
            let runtime = Some(RuntimeUsage::default());
            let mut whole = Snapshot { runtime, ..Snapshot::default() };
            self.levels[level]
                .iter()
                .take(self.loose[level])
                .for_each(|part| part.add_to(&mut whole));
            self.loose[level] = 0;
            self.push(level + 1, whole.into());
        }
        self.levels[level].truncate(KEPT);
    }

    fn window(&self, counters: &Counters, length: Duration) -> Snapshot {
        let now = self.read(counters);
        let mut whole = now.since(self.latest.as_ref().unwrap_or(&now));
        for (level, intervals) in self.levels.iter().enumerate() {
            let reach: Duration = intervals.iter().map(|interval| interval.length).sum();
            // As much of each level as no longer interval holds yet; of one that reaches far enough, all.
            let last = whole.window >= Some(length.saturating_sub(reach));
            let loose = if last { intervals.len() } else { self.loose[level] };
            for interval in intervals.iter().take(loose) {
                if whole.window >= Some(length) {
                    break;
                }
                interval.add_to(&mut whole);
            }
        }
        whole
    }

    /// The shortest intervals that are left, none over another, but for single seconds: few requests have
    /// percentiles in one. Where the length changes, less than the longer one may be left out.
    fn past(&self, now: Duration) -> Vec<Past> {
        let Some(latest) = &self.latest else { return Vec::new() };
        let (mut past, mut covered) = (Vec::new(), Duration::ZERO);
        let mut newest = now.saturating_sub(latest.uptime);
        for (level, intervals) in self.levels.iter().enumerate() {
            let mut ago = newest;
            for (n, interval) in intervals.iter().enumerate() {
                if level > 0 && ago >= covered {
                    covered = ago + interval.length;
                    past.push(interval.past(ago));
                }
                ago += interval.length;
                if n < self.loose[level] {
                    newest = ago;
                }
            }
        }
        past.reverse();
        past
    }
}

impl From<Snapshot> for Interval {
    fn from(snapshot: Snapshot) -> Self {
        let put_route_away = |(key, counts)| {
            let mut counts: RouteCounts = Arc::unwrap_or_clone(counts);
            // What is in flight ends in a later interval.
            counts.forget_in_flight();
            let empty = counts.is_empty();
            let phases =
                counts.traffic_mut().map(|traffic| put_away(mem::take(&mut traffic.phases.times)));
            let sparse = |histogram| SparseHistogram::from(mem::take(histogram));
            let histograms =
                counts.traffic_mut().map(|traffic| traffic.histograms_mut().map(sparse));
            (!empty).then_some((key, EndedCounts { counts, histograms, phases }))
        };
        let put_pool_away = |(key, mut counts): (PoolKey, PoolCounts)| {
            let histograms = counts.histograms_mut().map(|h| SparseHistogram::from(mem::take(h)));
            // What there is at one moment is as it is now.
            counts.forget_gauges();
            (key, counts, histograms)
        };
        Self {
            length: snapshot.window.unwrap_or_default(),
            routes: snapshot.routes.into_iter().filter_map(put_route_away).collect(),
            limiter: snapshot.limiter,
            pools: snapshot.pools.into_iter().map(put_pool_away).collect(),
            caches: snapshot.caches,
            elsewhere: put_away(snapshot.elsewhere),
            cpu: snapshot.process.cpu,
            busy: snapshot.runtime.and_then(|runtime| runtime.busy),
        }
    }
}

impl Interval {
    fn past(&self, ago: Duration) -> Past {
        let route = |(key, ended): &(RouteKey, EndedCounts)| {
            let [[ok, ..], _] = &ended.histograms;
            let (requests, p50_us, p99_us) =
                (ended.counts.recorded(), ok.percentile(0.5), ok.percentile(0.99));
            (key.clone(), PastRoute { requests, p50_us, p99_us })
        };
        Past { ago, length: self.length, routes: self.routes.iter().map(route).collect() }
    }

    /// Adds what ended in this interval to a later one.
    fn add_to(&self, later: &mut Snapshot) {
        for (key, ended) in &self.routes {
            let counts = Arc::make_mut(later.routes.entry(key.clone()).or_default());
            counts.merge(&ended.counts);
            let put_away = ended.histograms.iter().zip(&ended.phases);
            for (traffic, (histograms, phases)) in counts.traffic_mut().into_iter().zip(put_away) {
                for (to, from) in traffic.histograms_mut().into_iter().zip(histograms) {
                    to.merge_sparse(from);
                }
                take_out(&mut traffic.phases.times, phases);
            }
        }
        later.window = Some(later.window.unwrap_or_default() + self.length);
        later.limiter.merge(self.limiter);
        for (key, counts, histograms) in &self.pools {
            let sum = later.pools.entry(key.clone()).or_default();
            sum.merge(counts);
            for (to, from) in sum.histograms_mut().into_iter().zip(histograms) {
                to.merge_sparse(from);
            }
        }
        for (name, counts) in &self.caches {
            later.caches.entry(name.clone()).or_default().merge(*counts);
        }
        take_out(&mut later.elsewhere, &self.elsewhere);
        let add = |to: &mut Option<Duration>, from: Option<Duration>| {
            *to = to.zip(from).map(|(to, from)| to + from).or(from);
        };
        add(&mut later.process.cpu, self.cpu);
        if let Some(runtime) = &mut later.runtime {
            add(&mut runtime.busy, self.busy);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};
    use proptest::prelude::*;

    use super::*;
    use crate::{histogram::Precision, recorder::Recorder};

    fn serve(recorder: &Recorder, path: &str) {
        let mut recording = recorder.loan().take().expect("the recorder is there").enter(
            &Method::GET,
            Some(path),
            None,
        );
        recording.end_at_head(StatusCode::OK);
    }

    /// Pretends that `interval` took so many seconds.
    fn lasting(mut snapshot: Snapshot, seconds: u64) -> Snapshot {
        snapshot.uptime = Duration::from_secs(seconds);
        snapshot
    }

    #[test]
    fn names_of_windows_are_read_and_others_are_explained() {
        for window in Window::ALL {
            assert_eq!(window.to_string().parse(), Ok(window));
        }
        let error = "1h".parse::<Window>().expect_err("there is none").to_string();
        assert!(error.contains("\"1h\"") && error.contains("10s, 1m or 5m"), "{error}");
    }

    #[test]
    fn nothing_is_sampled_outside_a_runtime() {
        let recorder = Recorder::new(8, Precision::default());
        let history = Arc::new(History::default());
        history.start(&recorder);
        serve(&recorder, "/x");
        let window = history.window(&recorder, Window::TenSeconds);
        assert_eq!((window.recorded(), window.window), (0, Some(Duration::ZERO)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        /// One sample a second, with so many requests since the one before.
        #[test]
        fn a_window_holds_what_its_seconds_held(seconds in prop::collection::vec(0_u64..4, 0..700)) {
            let recorder = Recorder::new(8, Precision::default());
            let mut levels = Levels { latest: Some(lasting(Snapshot::take(&recorder), 0)), ..Levels::default() };
            for (n, requests) in seconds.iter().enumerate() {
                for _ in 0..*requests {
                    serve(&recorder, if n % 7 == 0 { "/sometimes" } else { "/x" });
                }
                let latest = levels.latest.take().expect("there is always one");
                let now = lasting(Snapshot::take_after(&recorder, &latest), n as u64 + 1);
                let interval = Interval::from(now.since(&latest));
                levels.latest = Some(now);
                levels.push(0, interval);
            }
            for window in Window::ALL {
                let found = levels.window(&recorder, window.length());
                let uptime = seconds.len() as u64;
                let covered = found.window.expect("it is an interval").as_secs();
                let (wanted, step) = (window.length().as_secs(), window.length().as_secs() / 10);
                prop_assert!(covered >= wanted.min(uptime) && covered <= wanted + step, "{covered} s of {wanted}");
                let held: u64 = seconds[(uptime - covered) as usize..].iter().sum();
                prop_assert_eq!(found.recorded(), held);
                let values: u64 = found.routes().map(|(_, counts)| counts.users.ok.count()).sum();
                prop_assert_eq!(values, held);
            }
            let uptime = seconds.len() as u64;
            let past = levels.past(Duration::from_secs(uptime));
            prop_assert_eq!(past.is_empty(), uptime < 6);
            prop_assert!(past.len() < 2 * KEPT);
            for (interval, next) in past.iter().zip(past.iter().skip(1)) {
                prop_assert!(interval.ago >= next.ago + next.length, "{interval:?} and {next:?}");
            }
            for interval in &past {
                let to = (uptime - interval.ago.as_secs()) as usize;
                let held: u64 = seconds[to - interval.length.as_secs() as usize..to].iter().sum();
                prop_assert_eq!(interval.routes.iter().map(|(_, route)| route.requests).sum::<u64>(), held);
            }
            if let Some(oldest) = past.first() {
                let reach = (oldest.ago + oldest.length).as_secs();
                prop_assert!(reach + 30 >= uptime.min(300), "{reach} s");
            }
        }
    }
}
