//! Everything that is counted, and how it is read.

use std::{array, collections::BTreeMap, sync::Arc, time::Duration};

use http::Method;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

#[cfg(feature = "token")]
use crate::token::TokenRefusal;
use crate::{
    clock::{Clock, Ticks, TokioClock},
    histogram::{HistogramCells, LatencyHistogram, Precision, Writer},
    outcome::Outcome,
    route::{RouteIndex, RouteKey, RouteTable},
    slot::{SLOTS, Slot},
    sync::{
        OnceLock,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed},
        },
    },
};

/// All counters of a recorder.
pub(crate) struct Counters {
    routes: RouteTable<RouteCells>,
    precision: Precision,
    clock: Clock,
    /// The clock of clients that pair.
    shared_clock: TokioClock,
    limiter: LimiterCells,
    started: Instant,
}

/// A route's counters, one shard a slot, each made when its slot first records on the route.
pub(crate) struct RouteCells {
    shards: Box<[OnceLock<Box<Shard>>; SLOTS]>,
}

/// What one slot counts for one route: 64 KiB if requests end in every way that there is, half of that as
/// long as all succeed. On cache lines of its own: its neighbours belong to other threads.
#[repr(align(128))]
pub(crate) struct Shard {
    precision: Precision,
    entered: AtomicU64,
    outcomes: [AtomicU64; Outcome::ALL.len()],
    paired: AtomicU64,
    bypassed: AtomicU64,
    response_bytes: AtomicU64,
    ok: Histogram,
    first_byte: Histogram,
    limited: Histogram,
    failed: Histogram,
    streams: StreamCells,
}

/// A histogram that is there from its first value on.
type Histogram = OnceLock<HistogramCells>;

// What the documentation promises for the default precision.
const _: () = assert!(
    size_of::<Shard>() + 4 * Precision::TwoDigits.buckets() * size_of::<AtomicU64>() <= 64 * 1024
);

#[derive(Default)]
struct StreamCells {
    opened: AtomicU64,
    ended: AtomicU64,
    sum_ns: AtomicU64,
    inverted_min_ns: AtomicU64,
    max_ns: AtomicU64,
}

/// What a limiter did, over all routes.
#[derive(Default)]
struct LimiterCells {
    admitted: AtomicU64,
    limited: AtomicU64,
    bypassed: AtomicU64,
    refused_tokens: RefusedTokenCells,
}

#[derive(Default)]
struct RefusedTokenCells {
    malformed: AtomicU64,
    forged: AtomicU64,
    expired: AtomicU64,
    out_of_scope: AtomicU64,
}

/// What a limiter did with a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Admission {
    Admitted,
    Limited,
    Bypassed,
}

/// A request that is over, as its route counts it. Times are nanoseconds from its entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) server_time: u64,
    /// Only meaningful for successes.
    pub(crate) first_byte: u64,
    pub(crate) response_bytes: u64,
    pub(crate) bypassed: bool,
    pub(crate) paired: bool,
    pub(crate) stream: bool,
}

/// The counters of one route, added up over its shards.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RouteCounts {
    /// Requests that entered the layer.
    pub entered: u64,
    pub(crate) outcomes: [u64; Outcome::ALL.len()],
    /// Requests that carried a probe and have ended.
    pub paired: u64,
    /// Requests that passed by a limiter and have ended.
    pub bypassed: u64,
    /// Bytes of the bodies of responses that have ended.
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

/// What a limiter did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct LimiterCounts {
    pub(crate) admitted: u64,
    pub(crate) limited: u64,
    pub(crate) bypassed: u64,
    #[serde(default)]
    pub(crate) refused_tokens: RefusedTokens,
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

impl Counters {
    pub(crate) fn new(route_cap: usize, precision: Precision) -> Self {
        Self {
            routes: RouteTable::new(route_cap, RouteCells::new),
            precision,
            clock: Clock::new(),
            shared_clock: TokioClock::new(),
            limiter: LimiterCells::default(),
            started: Instant::now(),
        }
    }

    /// Counts a request in, and returns its route.
    #[inline]
    pub(crate) fn enter(&self, method: &Method, template: Option<&str>) -> RouteIndex {
        let (route, cells) = self.routes.find(method, template);
        self.on_this_thread(cells, |shard, writer| writer.add(&shard.entered, 1));
        route
    }

    /// Counts a stream whose head goes out so many nanoseconds after its entry.
    pub(crate) fn open_stream(&self, route: RouteIndex, first_byte: u64) {
        if let Some((_, cells)) = self.routes.get(route) {
            self.on_this_thread(cells, |shard, writer| shard.open_stream(writer, first_byte));
        }
    }

    /// Counts a request out, on whatever thread it ends.
    #[inline]
    pub(crate) fn leave(&self, route: RouteIndex, ended: Ended) {
        if let Some((_, cells)) = self.routes.get(route) {
            self.on_this_thread(cells, |shard, writer| shard.leave(writer, ended));
        }
    }

    #[cold]
    #[inline(never)]
    fn fill<'s>(&self, place: &'s OnceLock<Box<Shard>>) -> &'s Shard {
        place.get_or_init(|| Box::new(Shard::new(self.precision)))
    }

    /// Writes to the calling thread's shard. Allocates on the first request that it records on the route.
    #[inline]
    fn on_this_thread(&self, cells: &RouteCells, write: impl FnOnce(&Shard, Writer)) {
        let slot = Slot::current();
        let place = &cells.shards[slot.index()];
        let shard = place.get().map_or_else(|| self.fill(place), Box::as_ref);
        write(shard, slot.writer());
    }

    /// The time by the clock of requests that are paired, whose client compares with readings of its own, or
    /// of all others.
    #[inline]
    pub(crate) fn now(&self, paired: bool) -> Ticks {
        if paired { self.shared_clock.now() } else { self.clock.now() }
    }

    /// Nanoseconds since a reading of [`now`](Self::now).
    #[inline]
    pub(crate) fn nanos_since(&self, start: Ticks, paired: bool) -> u64 {
        if paired { self.shared_clock.nanos_since(start) } else { self.clock.nanos_since(start) }
    }

    /// The instant of a reading for a request that is paired.
    pub(crate) fn instant(&self, ticks: Ticks) -> Instant {
        self.shared_clock.instant(ticks)
    }

    /// Counts what the limiter did with a request.
    pub(crate) fn admission(&self, admission: Admission) {
        let cell = match admission {
            Admission::Admitted => &self.limiter.admitted,
            Admission::Limited => &self.limiter.limited,
            Admission::Bypassed => &self.limiter.bypassed,
        };
        cell.fetch_add(1, Relaxed);
    }

    /// Counts a token that lets nobody past the limiter.
    #[cfg(feature = "token")]
    pub(crate) fn refused(&self, refusal: TokenRefusal) {
        let cells = &self.limiter.refused_tokens;
        let cell = match refusal {
            TokenRefusal::Malformed => &cells.malformed,
            TokenRefusal::Forged => &cells.forged,
            TokenRefusal::Expired => &cells.expired,
            TokenRefusal::OutOfScope => &cells.out_of_scope,
        };
        cell.fetch_add(1, Relaxed);
    }

    /// Every route with its counters. Those that have not changed since `earlier` are shared with it.
    pub(crate) fn routes(
        &self,
        earlier: Option<&BTreeMap<RouteKey, Arc<RouteCounts>>>,
    ) -> BTreeMap<RouteKey, Arc<RouteCounts>> {
        let read = |(key, cells): &(RouteKey, RouteCells)| {
            let unchanged = earlier
                .and_then(|earlier| earlier.get(key))
                .filter(|earlier| cells.progress() == earlier.progress());
            (key.clone(), unchanged.cloned().unwrap_or_else(|| Arc::new(cells.read())))
        };
        self.routes.iter().map(read).collect()
    }

    /// The name of a route that was given an index here.
    pub(crate) fn route_key(&self, route: RouteIndex) -> Option<&RouteKey> {
        self.routes.get(route).map(|(key, _)| key)
    }

    /// The limiter's counters.
    pub(crate) fn limiter(&self) -> LimiterCounts {
        LimiterCounts {
            admitted: self.limiter.admitted.load(Relaxed),
            limited: self.limiter.limited.load(Relaxed),
            bypassed: self.limiter.bypassed.load(Relaxed),
            refused_tokens: self.limiter.refused_tokens.read(),
        }
    }

    /// Time since the counters were made.
    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

impl RefusedTokenCells {
    fn read(&self) -> RefusedTokens {
        RefusedTokens {
            malformed: self.malformed.load(Relaxed),
            forged: self.forged.load(Relaxed),
            expired: self.expired.load(Relaxed),
            out_of_scope: self.out_of_scope.load(Relaxed),
        }
    }
}

impl RouteCells {
    fn new() -> Self {
        Self { shards: Box::new(array::from_fn(|_| OnceLock::new())) }
    }

    /// What cannot stand still while anything is counted: requests and streams that began, and requests that
    /// ended.
    fn progress(&self) -> [u64; 3] {
        let sum = |of: fn(&Shard) -> u64| {
            self.shards.iter().filter_map(OnceLock::get).map(|shard| of(shard)).sum()
        };
        // Ends first: what they follow must not be missed.
        let ended = sum(|shard| shard.outcomes.iter().map(|cell| cell.load(Acquire)).sum());
        let opened = sum(|shard| shard.streams.opened.load(Acquire));
        [sum(|shard| shard.entered.load(Relaxed)), opened, ended]
    }

    fn read(&self) -> RouteCounts {
        let mut sum = RouteCounts::default();
        let shards = || self.shards.iter().filter_map(OnceLock::get);
        // Ends before beginnings, over all shards: a request enters before it ends, so this order can
        // only see too many in flight, never fewer than none.
        for shard in shards() {
            for (to, from) in sum.outcomes.iter_mut().zip(&shard.outcomes) {
                *to += from.load(Acquire);
            }
        }
        for shard in shards() {
            sum.streams.merge(shard.streams.read());
        }
        for shard in shards() {
            sum.entered += shard.entered.load(Relaxed);
            sum.paired += shard.paired.load(Relaxed);
            sum.bypassed += shard.bypassed.load(Relaxed);
            sum.response_bytes += shard.response_bytes.load(Relaxed);
            sum.streams.opened += shard.streams.opened.load(Acquire);
            for (cells, into) in [
                (&shard.ok, &mut sum.ok),
                (&shard.first_byte, &mut sum.first_byte),
                (&shard.limited, &mut sum.limited),
                (&shard.failed, &mut sum.failed),
            ] {
                if let Some(cells) = cells.get() {
                    cells.read_into(into);
                }
            }
        }
        sum
    }
}

impl Shard {
    fn new(precision: Precision) -> Self {
        Self {
            precision,
            entered: AtomicU64::new(0),
            outcomes: array::from_fn(|_| AtomicU64::new(0)),
            paired: AtomicU64::new(0),
            bypassed: AtomicU64::new(0),
            response_bytes: AtomicU64::new(0),
            ok: OnceLock::new(),
            first_byte: OnceLock::new(),
            limited: OnceLock::new(),
            failed: OnceLock::new(),
            streams: StreamCells::default(),
        }
    }

    fn open_stream(&self, writer: Writer, first_byte: u64) {
        self.record(&self.first_byte, writer, first_byte);
        // Who sees the stream sees its first byte.
        writer.publish(&self.streams.opened);
    }

    #[inline]
    fn leave(&self, writer: Writer, ended: Ended) {
        if ended.stream {
            self.streams.record(writer, ended.server_time);
        } else {
            match ended.outcome {
                Outcome::Ok => {
                    self.record(&self.ok, writer, ended.server_time);
                    self.record(&self.first_byte, writer, ended.first_byte);
                }
                Outcome::Limited => self.record(&self.limited, writer, ended.server_time),
                _ => self.record(&self.failed, writer, ended.server_time),
            }
        }
        if ended.response_bytes > 0 {
            writer.add(&self.response_bytes, ended.response_bytes);
        }
        if ended.bypassed {
            writer.add(&self.bypassed, 1);
        }
        if ended.paired {
            writer.add(&self.paired, 1);
        }
        // Last and with release: who sees the outcome sees the entry.
        writer.publish(&self.outcomes[ended.outcome.index()]);
    }

    #[inline]
    fn record(&self, histogram: &Histogram, writer: Writer, ns: u64) {
        histogram.get_or_init(|| HistogramCells::new(self.precision)).record(writer, ns);
    }
}

impl StreamCells {
    fn record(&self, writer: Writer, ns: u64) {
        writer.add(&self.sum_ns, ns);
        writer.raise(&self.max_ns, ns);
        writer.raise(&self.inverted_min_ns, u64::MAX - ns);
        writer.publish(&self.ended);
    }

    /// All but `opened`.
    fn read(&self) -> StreamCounts {
        let ended = self.ended.load(Acquire);
        let min_ns = u64::MAX - self.inverted_min_ns.load(Relaxed);
        StreamCounts {
            opened: 0,
            ended,
            sum_ns: self.sum_ns.load(Relaxed),
            extremes_ns: (ended > 0).then(|| (min_ns, self.max_ns.load(Relaxed))),
        }
    }
}

impl RouteCounts {
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

    /// Requests that have not.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.entered.saturating_sub(self.recorded())
    }

    /// Did nothing happen? A request that is ending while the counters are read may have left its time, and
    /// its outcome not yet.
    pub(crate) fn is_empty(&self) -> bool {
        let timed = [&self.ok, &self.first_byte, &self.limited, &self.failed];
        self.progress() == [0; 3] && timed.into_iter().all(|histogram| histogram.count() == 0)
    }

    /// See [`RouteCells::progress`].
    pub(crate) fn progress(&self) -> [u64; 3] {
        [self.entered, self.streams.opened, self.recorded()]
    }

    pub(crate) fn histograms_mut(&mut self) -> [&mut LatencyHistogram; 4] {
        [&mut self.ok, &mut self.first_byte, &mut self.limited, &mut self.failed]
    }

    /// As if all requests had ended.
    pub(crate) fn forget_in_flight(&mut self) {
        self.entered = self.recorded();
        self.streams.opened = self.streams.ended;
    }

    /// Adds what another process, or another time, counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        let add = |mine: &mut u64, theirs: u64| *mine = mine.saturating_add(theirs);
        add(&mut self.entered, other.entered);
        for (mine, theirs) in self.outcomes.iter_mut().zip(&other.outcomes) {
            add(mine, *theirs);
        }
        add(&mut self.paired, other.paired);
        add(&mut self.bypassed, other.bypassed);
        add(&mut self.response_bytes, other.response_bytes);
        self.ok.merge(&other.ok);
        self.first_byte.merge(&other.first_byte);
        self.limited.merge(&other.limited);
        self.failed.merge(&other.failed);
        self.streams.merge(other.streams);
    }

    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let mut outcomes = self.outcomes;
        for (now, then) in outcomes.iter_mut().zip(&earlier.outcomes) {
            *now = now.saturating_sub(*then);
        }
        Self {
            // In flight is entered less recorded: an interval keeps it by starting with what was in
            // flight at its beginning.
            entered: outcomes.iter().fold(self.in_flight(), |sum, n| sum.saturating_add(*n)),
            outcomes,
            paired: self.paired.saturating_sub(earlier.paired),
            bypassed: self.bypassed.saturating_sub(earlier.bypassed),
            response_bytes: self.response_bytes.saturating_sub(earlier.response_bytes),
            ok: self.ok.since(&earlier.ok),
            first_byte: self.first_byte.since(&earlier.first_byte),
            limited: self.limited.since(&earlier.limited),
            failed: self.failed.since(&earlier.failed),
            streams: self.streams.since(earlier.streams),
        }
    }
}

impl StreamCounts {
    /// Streams that have not ended.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.opened.saturating_sub(self.ended)
    }

    fn merge(&mut self, other: Self) {
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

impl LimiterCounts {
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

#[cfg(all(test, parallax_loom))]
mod models {
    use std::sync::Arc;

    use loom::thread;

    use super::*;
    use crate::{slot, sync::model};

    const TEMPLATE: Option<&str> = Some("/x");

    /// Counters of one route, which is there already.
    fn counters() -> Arc<Counters> {
        let counters = Counters::new(1, Precision::OneDigit);
        counters.routes.find(&Method::GET, TEMPLATE);
        Arc::new(counters)
    }

    fn enter(counters: &Counters) -> RouteIndex {
        counters.enter(&Method::GET, TEMPLATE)
    }

    /// A request that failed after so many nanoseconds, and sent nothing.
    fn failed(server_time: u64) -> Ended {
        Ended {
            outcome: Outcome::ServerError,
            server_time,
            first_byte: server_time,
            response_bytes: 0,
            bypassed: false,
            paired: false,
            stream: false,
        }
    }

    fn serve(counters: &Counters, ended: Ended) {
        let route = enter(counters);
        counters.leave(route, ended);
    }

    /// On a thread each.
    fn serve_at_once<const N: usize>(
        counters: &Arc<Counters>,
        requests: [Ended; N],
    ) -> [thread::JoinHandle<()>; N] {
        requests.map(|ended| {
            let counters = counters.clone();
            thread::spawn(move || serve(&counters, ended))
        })
    }

    fn read(counters: &Counters) -> RouteCounts {
        counters.routes.iter().next().expect("the route is there").1.read()
    }

    /// Reads beside those who count, on a thread of its own and begun after theirs: see [`model`].
    fn read_beside(counters: &Arc<Counters>) -> RouteCounts {
        let counters = counters.clone();
        thread::spawn(move || read(&counters)).join().expect("no panic")
    }

    fn assert_none_is_missing(counts: &RouteCounts) {
        assert!(counts.recorded() <= counts.entered, "{counts:?}");
    }

    #[test]
    fn a_reader_never_sees_more_outcomes_than_entries() {
        model(|| {
            let counters = counters();
            let server = {
                let counters = counters.clone();
                thread::spawn(move || {
                    serve(&counters, failed(10));
                    serve(&counters, failed(100));
                })
            };
            assert_none_is_missing(&read_beside(&counters));
            server.join().expect("no panic");
            let counts = read(&counters);
            assert_eq!((counts.entered, counts.recorded(), counts.failed.count()), (2, 2, 2));
        });
    }

    #[test]
    fn a_reader_never_sees_more_outcomes_than_entries_of_a_thread_that_shares_its_slot() {
        model(|| {
            slot::models::take_all();
            let counters = counters();
            let [server] = serve_at_once(&counters, [failed(10)]);
            assert_none_is_missing(&read_beside(&counters));
            server.join().expect("no panic");
            assert_eq!(read(&counters).in_flight(), 0);
        });
    }

    #[test]
    fn a_request_that_ends_on_another_thread_is_never_seen_to_end_before_it_entered() {
        model(|| {
            let counters = counters();
            let first = {
                let counters = counters.clone();
                thread::spawn(move || {
                    let route = enter(&counters);
                    thread::spawn(move || counters.leave(route, failed(10)))
                })
            };
            assert_none_is_missing(&read_beside(&counters));
            let second = first.join().expect("no panic");
            second.join().expect("no panic");
            assert_eq!(read(&counters).in_flight(), 0);
        });
    }

    #[test]
    fn who_sees_an_outcome_sees_everything_else_of_that_request() {
        model(|| {
            let counters = counters();
            let ended = Ended { response_bytes: 7, bypassed: true, paired: true, ..failed(10) };
            let [server] = serve_at_once(&counters, [ended]);
            let counts = read_beside(&counters);
            if counts.recorded() == 1 {
                assert_eq!((counts.entered, counts.bypassed, counts.paired), (1, 1, 1));
                assert_eq!((counts.failed.count(), counts.response_bytes), (1, 7));
                assert_eq!(counts.failed.mean(), Duration::from_nanos(10));
            }
            server.join().expect("no panic");
        });
    }

    #[test]
    fn threads_that_share_a_slot_lose_nothing() {
        model(|| {
            slot::models::take_all();
            let counters = counters();
            for server in serve_at_once(&counters, [failed(10), failed(100)]) {
                server.join().expect("no panic");
            }
            let counts = read(&counters);
            assert_eq!((counts.entered, counts.recorded(), counts.failed.count()), (2, 2, 2));
            assert_eq!(counts.failed.mean(), Duration::from_nanos(55));
        });
    }

    #[test]
    fn a_reader_never_sees_more_streams_end_than_open() {
        model(|| {
            let counters = counters();
            let server = {
                let counters = counters.clone();
                thread::spawn(move || {
                    let route = enter(&counters);
                    counters.open_stream(route, 10);
                    counters.leave(route, Ended { stream: true, ..failed(20) });
                })
            };
            let counts = read_beside(&counters);
            let StreamCounts { opened, ended, sum_ns, extremes_ns } = counts.streams;
            assert!(ended <= opened);
            assert!(opened <= counts.first_byte.count(), "a stream without its first byte");
            assert_eq!(extremes_ns, (ended > 0).then_some((20, 20)));
            assert!(sum_ns >= 20 * ended);
            server.join().expect("no panic");
            assert_eq!(read(&counters).streams.open(), 0);
        });
    }
}
