//! What was counted, as plain numbers: readings, their sums and their differences.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{histogram::LatencyHistogram, outcome::Outcome};

/// The counters of one route.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RouteCounts {
    /// Requests that entered the layer.
    pub entered: u64,
    /// Requests that carried a probe and have ended.
    pub paired: u64,
    /// Requests that have ended, but those that passed by a limiter: those of the service's users.
    pub users: TrafficCounts,
    /// Requests that have ended and passed by a limiter: authorised load. Kept apart, so that a load test on a
    /// live service does not show in its users' latencies.
    #[serde(default, skip_serializing_if = "TrafficCounts::is_empty")]
    pub bypassed: TrafficCounts,
    /// What a limiter with a way around it did with those that have ended.
    #[serde(default, skip_serializing_if = "LimiterCounts::is_empty")]
    pub limiter: LimiterCounts,
}

/// The requests to one route that have ended, of one kind of traffic.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TrafficCounts {
    pub(crate) outcomes: [u64; Outcome::ALL.len()],
    /// Bytes of the bodies of their responses.
    pub response_bytes: u64,
    /// From entry to the end of the body: successes, without streams.
    pub ok: LatencyHistogram,
    /// From entry to the response head: successes, and streams as soon as they are open.
    pub first_byte: LatencyHistogram,
    /// From entry to end of rejections.
    pub limited: LatencyHistogram,
    /// From entry to end of everything else that failed.
    pub failed: LatencyHistogram,
    /// Event streams.
    pub streams: StreamCounts,
    /// Where the time went.
    #[serde(default, skip_serializing_if = "PhaseCounts::is_empty")]
    pub phases: PhaseCounts,
}

/// The event streams of one route.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StreamCounts {
    /// Streams whose head went out.
    pub opened: u64,
    /// Those of them that have ended, however.
    pub ended: u64,
    /// From entry to end, over those that have ended, in nanoseconds.
    pub sum_ns: u64,
    /// The shortest and the longest of them; unknown in an interval that does not begin at the start.
    pub extremes_ns: Option<(u64, u64)>,
}

/// The phases of requests that have ended, however they did.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PhaseCounts {
    /// By name. A request that was in a phase at all has one value in it: all the time that it spent there.
    pub times: BTreeMap<String, LatencyHistogram>,
    /// Requests that were in several phases at once: the sum of their phases is more than the time that they
    /// took.
    pub overlapped: u64,
    /// By how much, over all of them, in nanoseconds.
    pub overlap_ns: u64,
}

/// What was counted about one pool.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PoolCounts {
    /// Waits that ended with a connection.
    pub acquired: u64,
    /// Those that nobody waited for to their end.
    pub cancelled: u64,
    /// Those that ended without a connection, but not for lack of time.
    pub failed: u64,
    /// Those that ran out of time before a connection was free.
    pub wait_timeouts: u64,
    /// Those that ran out of time while one was opened.
    pub create_timeouts: u64,
    /// Those that ran out of time while an idle one was checked.
    pub recycle_timeouts: u64,
    /// From asking to the end of the wait, however it ended.
    pub wait: LatencyHistogram,
    /// Opening connections, where the pool lets that be seen.
    pub create: LatencyHistogram,
    /// Checking idle connections, where the pool lets that be seen.
    pub recycle: LatencyHistogram,
    /// From getting a connection to giving it back.
    pub hold: LatencyHistogram,
    /// Those who waited when this was read.
    pub waiting: u64,
    /// Connections that were in use.
    pub in_use: u64,
    /// The most connections that there may be; 0 if nobody knows.
    pub max: u64,
    /// Connections that there were.
    pub size: u64,
    /// Those of them that were not in use.
    pub idle: u64,
}

/// What was counted about one cache.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CacheCounts {
    /// What was looked for was there.
    pub hits: u64,
    /// It was not.
    pub misses: u64,
}

/// What a limiter did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct LimiterCounts {
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

/// Tokens that let nobody past a limiter, by why. Their requests went to the limiter.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct RefusedTokens {
    /// No token, or more than one header.
    pub malformed: u64,
    /// Signed by none of the keys.
    pub forged: u64,
    /// Good once.
    pub expired: u64,
    /// Good, but for other requests, from elsewhere, or not for so many.
    pub out_of_scope: u64,
}

fn add(mine: &mut u64, theirs: u64) {
    *mine = mine.saturating_add(theirs);
}

impl RouteCounts {
    /// Requests that ended this way.
    #[must_use]
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        self.users.outcome(outcome).saturating_add(self.bypassed.outcome(outcome))
    }

    /// Requests that have ended.
    #[must_use]
    pub fn recorded(&self) -> u64 {
        self.users.recorded().saturating_add(self.bypassed.recorded())
    }

    /// Requests that have not.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.entered.saturating_sub(self.recorded())
    }

    /// Event streams whose head went out.
    fn opened(&self) -> u64 {
        self.users.streams.opened.saturating_add(self.bypassed.streams.opened)
    }

    /// Did nothing happen? A request that is ending while the counters are read may have left its time, and
    /// its outcome not yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.entered == 0 && self.users.is_empty() && self.bypassed.is_empty()
    }

    /// What cannot stand still while anything is counted: requests and streams that began, and requests that
    /// ended.
    pub(crate) fn progress(&self) -> [u64; 3] {
        [self.entered, self.opened(), self.recorded()]
    }

    /// Both kinds of traffic.
    pub(crate) fn traffic_mut(&mut self) -> [&mut TrafficCounts; 2] {
        [&mut self.users, &mut self.bypassed]
    }

    /// As if all requests had ended.
    pub(crate) fn forget_in_flight(&mut self) {
        self.entered = self.recorded();
        for traffic in self.traffic_mut() {
            traffic.streams.opened = traffic.streams.ended;
        }
    }

    /// Adds what another process, or another time, counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        add(&mut self.entered, other.entered);
        add(&mut self.paired, other.paired);
        self.users.merge(&other.users);
        self.bypassed.merge(&other.bypassed);
        self.limiter.merge(other.limiter);
    }

    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let mut interval = Self {
            entered: 0,
            paired: self.paired.saturating_sub(earlier.paired),
            users: self.users.since(&earlier.users),
            bypassed: self.bypassed.since(&earlier.bypassed),
            limiter: self.limiter.since(&earlier.limiter),
        };
        // In flight is entered less recorded: an interval keeps it by starting with what was in flight at its
        // beginning.
        interval.entered = self.in_flight().saturating_add(interval.recorded());
        interval
    }
}

impl TrafficCounts {
    /// Requests that ended this way.
    #[must_use]
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome.index()]
    }

    /// Requests that have ended.
    #[must_use]
    pub fn recorded(&self) -> u64 {
        self.outcomes.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    pub(crate) fn is_empty(&self) -> bool {
        let timed = [&self.ok, &self.first_byte, &self.limited, &self.failed];
        self.recorded() == 0
            && self.streams.opened == 0
            && timed.into_iter().all(|histogram| histogram.count() == 0)
            && self.phases.is_empty()
    }

    pub(crate) fn histograms_mut(&mut self) -> [&mut LatencyHistogram; 4] {
        [&mut self.ok, &mut self.first_byte, &mut self.limited, &mut self.failed]
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.outcomes.iter_mut().zip(&other.outcomes) {
            add(mine, *theirs);
        }
        add(&mut self.response_bytes, other.response_bytes);
        self.ok.merge(&other.ok);
        self.first_byte.merge(&other.first_byte);
        self.limited.merge(&other.limited);
        self.failed.merge(&other.failed);
        self.streams.merge(other.streams);
        self.phases.merge(&other.phases);
    }

    fn since(&self, earlier: &Self) -> Self {
        let mut outcomes = self.outcomes;
        for (now, then) in outcomes.iter_mut().zip(&earlier.outcomes) {
            *now = now.saturating_sub(*then);
        }
        Self {
            outcomes,
            response_bytes: self.response_bytes.saturating_sub(earlier.response_bytes),
            ok: self.ok.since(&earlier.ok),
            first_byte: self.first_byte.since(&earlier.first_byte),
            limited: self.limited.since(&earlier.limited),
            failed: self.failed.since(&earlier.failed),
            streams: self.streams.since(earlier.streams),
            phases: self.phases.since(&earlier.phases),
        }
    }
}

impl StreamCounts {
    /// Streams that have not ended.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.opened.saturating_sub(self.ended)
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.opened = self.opened.saturating_add(other.opened);
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
        self.extremes_ns = match (self.extremes_ns, other.extremes_ns) {
            (Some((min, max)), Some((low, high))) => Some((min.min(low), max.max(high))),
            (mine, None) if other.ended == 0 => mine,
            (None, theirs) if self.ended == 0 => theirs,
            _ => None,
        };
        self.ended = self.ended.saturating_add(other.ended);
    }

    fn since(self, earlier: Self) -> Self {
        let ended = self.ended.saturating_sub(earlier.ended);
        Self {
            // As with requests: an interval starts with the streams that were open at its beginning.
            opened: ended.saturating_add(self.open()),
            ended,
            sum_ns: self.sum_ns.wrapping_sub(earlier.sum_ns),
            extremes_ns: self.extremes_ns.filter(|_| earlier.ended == 0),
        }
    }
}

impl PhaseCounts {
    pub(crate) fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        merge_times(&mut self.times, &other.times);
        add(&mut self.overlapped, other.overlapped);
        add(&mut self.overlap_ns, other.overlap_ns);
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            times: times_since(&self.times, &earlier.times),
            overlapped: self.overlapped.saturating_sub(earlier.overlapped),
            overlap_ns: self.overlap_ns.saturating_sub(earlier.overlap_ns),
        }
    }
}

/// Times by name.
type Times = BTreeMap<String, LatencyHistogram>;

pub(crate) fn merge_times(mine: &mut Times, theirs: &Times) {
    for (name, theirs) in theirs {
        match mine.get_mut(name) {
            Some(mine) => mine.merge(theirs),
            None => {
                mine.insert(name.clone(), theirs.clone());
            }
        }
    }
}

/// What was added after `earlier`, without what was not.
pub(crate) fn times_since(now: &Times, earlier: &Times) -> Times {
    let interval = |(name, now): (&String, &LatencyHistogram)| {
        let interval = match earlier.get(name) {
            Some(then) => now.since(then),
            None => now.clone(),
        };
        (interval.count() > 0).then(|| (name.clone(), interval))
    };
    now.iter().filter_map(interval).collect()
}

impl PoolCounts {
    /// Waits that ran out of time, with whatever.
    #[must_use]
    pub fn timeouts(&self) -> u64 {
        let Self { wait_timeouts, create_timeouts, recycle_timeouts, .. } = self;
        wait_timeouts.saturating_add(*create_timeouts).saturating_add(*recycle_timeouts)
    }

    /// By what it ran out of time with, in the order of [`TimeoutKind`](crate::TimeoutKind).
    pub(crate) fn timeouts_mut(&mut self) -> [&mut u64; 3] {
        [&mut self.wait_timeouts, &mut self.create_timeouts, &mut self.recycle_timeouts]
    }

    fn counts_mut(&mut self) -> [&mut u64; 6] {
        [
            &mut self.acquired,
            &mut self.cancelled,
            &mut self.failed,
            &mut self.wait_timeouts,
            &mut self.create_timeouts,
            &mut self.recycle_timeouts,
        ]
    }

    /// What is as it is at one moment.
    fn gauges_mut(&mut self) -> [&mut u64; 5] {
        [&mut self.waiting, &mut self.in_use, &mut self.max, &mut self.size, &mut self.idle]
    }

    pub(crate) fn histograms_mut(&mut self) -> [&mut LatencyHistogram; 4] {
        [&mut self.wait, &mut self.create, &mut self.recycle, &mut self.hold]
    }

    /// Adds what another process counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        for (mine, theirs) in self.counts_mut().into_iter().zip(other.counts_mut()) {
            add(mine, *theirs);
        }
        for (mine, theirs) in self.gauges_mut().into_iter().zip(other.gauges_mut()) {
            add(mine, *theirs);
        }
        for (mine, theirs) in self.histograms_mut().into_iter().zip(other.histograms_mut()) {
            mine.merge(theirs);
        }
    }

    /// What was counted after `earlier`; what there was at one moment is as it is now.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let (mut interval, mut earlier) = (self.clone(), earlier.clone());
        for (now, then) in interval.counts_mut().into_iter().zip(earlier.counts_mut()) {
            *now = now.saturating_sub(*then);
        }
        for (now, then) in interval.histograms_mut().into_iter().zip(earlier.histograms_mut()) {
            *now = now.since(then);
        }
        interval
    }

    /// As if nobody waited, and nothing were there.
    pub(crate) fn forget_gauges(&mut self) {
        for gauge in self.gauges_mut() {
            *gauge = 0;
        }
    }
}

impl CacheCounts {
    /// Hits of all lookups, 0 to 1; `None` if there was none.
    #[must_use]
    pub fn hit_ratio(&self) -> Option<f64> {
        let lookups = self.hits.saturating_add(self.misses);
        (lookups > 0).then(|| self.hits as f64 / lookups as f64)
    }

    pub(crate) fn merge(&mut self, other: Self) {
        add(&mut self.hits, other.hits);
        add(&mut self.misses, other.misses);
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            hits: self.hits.saturating_sub(earlier.hits),
            misses: self.misses.saturating_sub(earlier.misses),
        }
    }
}

impl LimiterCounts {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.admitted = self.admitted.saturating_add(other.admitted);
        self.limited = self.limited.saturating_add(other.limited);
        self.bypassed = self.bypassed.saturating_add(other.bypassed);
        self.refused_tokens = self.refused_tokens.zip(other.refused_tokens, u64::saturating_add);
    }

    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            admitted: self.admitted.saturating_sub(earlier.admitted),
            limited: self.limited.saturating_sub(earlier.limited),
            bypassed: self.bypassed.saturating_sub(earlier.bypassed),
            refused_tokens: self.refused_tokens.zip(earlier.refused_tokens, u64::saturating_sub),
        }
    }
}

impl RefusedTokens {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { malformed, forged, expired, out_of_scope } = *self;
        [malformed, forged, expired, out_of_scope].into_iter().fold(0, u64::saturating_add)
    }

    fn zip(self, other: Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            malformed: combine(self.malformed, other.malformed),
            forged: combine(self.forged, other.forged),
            expired: combine(self.expired, other.expired),
            out_of_scope: combine(self.out_of_scope, other.out_of_scope),
        }
    }
}
