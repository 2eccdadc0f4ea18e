//! Everything that is counted, and how it is read.

use std::{array, collections::BTreeMap, sync::Arc, time::Duration};

use http::Method;
use tokio::time::Instant;

use crate::{
    clock::{Clock, Ticks, TokioClock},
    counts::{LimiterCounts, PhaseCounts, RefusedTokens, RouteCounts, StreamCounts, TrafficCounts},
    histogram::{HistogramCells, LatencyHistogram, Precision, Writer},
    outcome::Outcome,
    phase::{PHASES, PhaseIndex, PhaseNames, PhaseTimes},
    pool::Pools,
    route::{RouteIndex, RouteKey, RouteTable},
    slot::PerSlot,
    sync::{
        OnceLock,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed},
        },
    },
};
#[cfg(feature = "token")]
use crate::{gate::Entrance, token::TokenRefusal};

/// All counters of a recorder.
pub(crate) struct Counters {
    routes: RouteTable<RouteCells>,
    precision: Precision,
    clock: Clock,
    /// The clock of clients that pair.
    shared_clock: TokioClock,
    limiter: LimiterCells,
    pools: Pools,
    phases: PhaseNames,
    /// Phases of work that was for no request.
    elsewhere: PerSlot<PhaseCells>,
    started: Instant,
    /// Where tokens are shown of requests that are told how long they took.
    #[cfg(feature = "token")]
    entrance: Option<Entrance>,
}

/// A route's counters, one shard a slot, each made when its slot first records on the route.
pub(crate) struct RouteCells {
    shards: PerSlot<Shard>,
    /// By traffic: users, and those that passed by a limiter.
    phases: [OnceLock<Box<PhaseCells>>; 2],
}

/// What one slot counts for one route. On cache lines of its own: its neighbours belong to other threads.
#[repr(align(128))]
pub(crate) struct Shard {
    entered: AtomicU64,
    paired: AtomicU64,
    limiter: OnceLock<Box<LimiterCells>>,
    users: Traffic,
    /// From the first request on that passes by a limiter.
    bypassed: OnceLock<Box<Traffic>>,
}

/// The requests of one kind of traffic: 64 KiB if they end in every way that there is, half of that as long as
/// all succeed.
struct Traffic {
    precision: Precision,
    outcomes: [AtomicU64; Outcome::ALL.len()],
    response_bytes: AtomicU64,
    ok: Histogram,
    first_byte: Histogram,
    limited: Histogram,
    failed: Histogram,
    /// From the first one on.
    streams: OnceLock<Box<StreamCells>>,
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

/// The phases of one route, for all threads together: a phase is a wait, and whoever waits has time for an
/// addition that others may see.
struct PhaseCells {
    precision: Precision,
    times: [OnceLock<Box<HistogramCells>>; PHASES],
    overlapped: AtomicU64,
    overlap_ns: AtomicU64,
}

/// What a limiter did.
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

/// What became of a request at a limiter.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AtLimiter {
    pub(crate) admission: Option<Admission>,
    #[cfg(feature = "token")]
    pub(crate) refused: Option<TokenRefusal>,
}

impl AtLimiter {
    fn of(admission: Admission) -> Self {
        Self {
            admission: Some(admission),
            #[cfg(feature = "token")]
            refused: None,
        }
    }
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

impl Counters {
    pub(crate) fn new(route_cap: usize, precision: Precision) -> Self {
        Self {
            routes: RouteTable::new(route_cap, RouteCells::new),
            precision,
            clock: Clock::new(),
            shared_clock: TokioClock::new(),
            limiter: LimiterCells::default(),
            pools: Pools::default(),
            phases: PhaseNames::new(),
            elsewhere: PerSlot::new(),
            started: Instant::now(),
            #[cfg(feature = "token")]
            entrance: None,
        }
    }

    /// Tells requests with a token how long they took, if there is somewhere to show it.
    #[cfg(feature = "token")]
    pub(crate) fn answering(self, entrance: Option<Entrance>) -> Self {
        Self { entrance, ..self }
    }

    /// Where tokens are shown of requests that are told how long they took.
    #[cfg(feature = "token")]
    #[inline]
    pub(crate) fn entrance(&self) -> Option<&Entrance> {
        self.entrance.as_ref()
    }

    /// Counts a request in, and returns its route.
    #[inline]
    pub(crate) fn enter(&self, method: &Method, template: Option<&str>) -> RouteIndex {
        let (route, cells) = self.routes.find(method, template);
        self.on_this_thread(cells, |shard, writer| writer.add(&shard.entered, 1));
        route
    }

    /// Counts a stream whose head goes out so many nanoseconds after its entry.
    pub(crate) fn open_stream(&self, route: RouteIndex, first_byte: u64, bypassed: bool) {
        if let Some((_, cells)) = self.routes.get(route) {
            self.on_this_thread(cells, |shard, writer| {
                shard.traffic(bypassed).open_stream(writer, first_byte);
            });
        }
    }

    /// Counts a request out, on whatever thread it ends.
    #[inline]
    pub(crate) fn leave(&self, route: RouteIndex, ended: Ended) {
        if let Some((_, cells)) = self.routes.get(route) {
            self.on_this_thread(cells, |shard, writer| shard.leave(writer, ended));
        }
    }

    /// Counts what a request did on its way. To be called before it is counted out, so that who sees the
    /// outcome sees this.
    pub(crate) fn on_its_way(
        &self,
        route: RouteIndex,
        ended: Ended,
        phases: &PhaseTimes,
        limiter: AtLimiter,
    ) {
        let Some((_, cells)) = self.routes.get(route) else { return };
        let place = &cells.phases[usize::from(ended.bypassed)];
        // A request that was handed on and was in no phase has none to tell of.
        if !phases.times.is_empty() {
            place
                .get_or_init(|| Box::new(PhaseCells::new(self.precision)))
                .record(phases, ended.server_time);
        }
        self.on_this_thread(cells, |shard, writer| {
            shard.limiter.get_or_init(Box::default).count(writer, limiter);
        });
    }

    /// Counts a phase of work that was for no request.
    pub(crate) fn record_elsewhere(&self, phase: PhaseIndex, ns: u64) {
        let (cells, writer) = self.elsewhere.here(|| PhaseCells::new(self.precision));
        cells.record_one(writer, phase, ns);
    }

    /// The phases of work that was for no request, by name.
    pub(crate) fn elsewhere(&self) -> BTreeMap<String, LatencyHistogram> {
        let mut all = PhaseCounts::default();
        self.elsewhere.iter().for_each(|cells| all.merge(&cells.read(&self.phases)));
        all.times
    }

    /// What is watched besides requests.
    pub(crate) fn pools(&self) -> &Pools {
        &self.pools
    }

    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// The phase of a name.
    pub(crate) fn phase(&self, name: &str) -> PhaseIndex {
        match self.phases.find(name) {
            // It is what is left of a request, and nothing that one can be in.
            PhaseIndex::HANDLER => PhaseIndex::OTHER,
            phase => phase,
        }
    }

    /// The name of a phase.
    pub(crate) fn phase_name(&self, phase: PhaseIndex) -> &str {
        self.phases.name(phase)
    }

    /// Writes to the calling thread's shard. Allocates on the first request that it records on the route.
    #[inline]
    fn on_this_thread(&self, cells: &RouteCells, write: impl FnOnce(&Shard, Writer)) {
        let (shard, writer) = cells.shards.here(|| Shard::new(self.precision));
        write(shard, writer);
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

    /// Nanoseconds between two readings of [`now`](Self::now).
    #[inline]
    pub(crate) fn nanos_between(&self, start: Ticks, end: Ticks, paired: bool) -> u64 {
        if paired {
            TokioClock::nanos_between(start, end)
        } else {
            self.clock.nanos_between(start, end)
        }
    }

    /// The instant of a reading for a request that is paired.
    pub(crate) fn instant(&self, ticks: Ticks) -> Instant {
        self.shared_clock.instant(ticks)
    }

    /// Counts what the limiter did with a request.
    pub(crate) fn admission(&self, admission: Admission) {
        self.limiter.count(Writer::Shared, AtLimiter::of(admission));
    }

    /// Counts a token that lets nobody past the limiter.
    #[cfg(feature = "token")]
    pub(crate) fn refused(&self, refusal: TokenRefusal) {
        self.limiter.count(Writer::Shared, AtLimiter { admission: None, refused: Some(refusal) });
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
            (key.clone(), unchanged.cloned().unwrap_or_else(|| Arc::new(cells.read(&self.phases))))
        };
        self.routes.iter().map(read).collect()
    }

    /// The name of a route that was given an index here.
    pub(crate) fn route_key(&self, route: RouteIndex) -> Option<&RouteKey> {
        self.routes.get(route).map(|(key, _)| key)
    }

    /// The limiter's counters.
    pub(crate) fn limiter(&self) -> LimiterCounts {
        self.limiter.read()
    }

    /// Time since the counters were made.
    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

impl LimiterCells {
    fn count(&self, writer: Writer, at: AtLimiter) {
        if let Some(admission) = at.admission {
            let cell = match admission {
                Admission::Admitted => &self.admitted,
                Admission::Limited => &self.limited,
                Admission::Bypassed => &self.bypassed,
            };
            writer.add(cell, 1);
        }
        #[cfg(feature = "token")]
        if let Some(refusal) = at.refused {
            let cells = &self.refused_tokens;
            let cell = match refusal {
                TokenRefusal::Malformed => &cells.malformed,
                TokenRefusal::Forged => &cells.forged,
                TokenRefusal::Expired => &cells.expired,
                TokenRefusal::OutOfScope => &cells.out_of_scope,
            };
            writer.add(cell, 1);
        }
    }

    fn read(&self) -> LimiterCounts {
        LimiterCounts {
            admitted: self.admitted.load(Relaxed),
            limited: self.limited.load(Relaxed),
            bypassed: self.bypassed.load(Relaxed),
            refused_tokens: self.refused_tokens.read(),
        }
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
        Self { shards: PerSlot::new(), phases: array::from_fn(|_| OnceLock::new()) }
    }

    /// See [`RouteCounts::progress`].
    fn progress(&self) -> [u64; 3] {
        let traffic = || self.shards.iter().flat_map(Shard::both);
        // Ends first: what they follow must not be missed.
        let ended = traffic()
            .map(|(_, traffic)| traffic.outcomes.iter().map(|cell| cell.load(Acquire)).sum::<u64>())
            .sum();
        let opened = traffic().map(|(_, traffic)| traffic.opened()).sum();
        [self.shards.iter().map(|shard| shard.entered.load(Relaxed)).sum(), opened, ended]
    }

    fn read(&self, names: &PhaseNames) -> RouteCounts {
        let mut sum = RouteCounts::default();
        // Ends before beginnings, over all shards: a request enters before it ends, so this order can only
        // see too many in flight, never fewer than none.
        for (kind, traffic) in self.shards.iter().flat_map(Shard::both) {
            traffic.read_ends_into(kind.of(&mut sum));
        }
        for shard in self.shards.iter() {
            sum.entered += shard.entered.load(Relaxed);
            sum.paired += shard.paired.load(Relaxed);
            if let Some(limiter) = shard.limiter.get() {
                sum.limiter.merge(limiter.read());
            }
            for (kind, traffic) in shard.both() {
                traffic.read_into(kind.of(&mut sum));
            }
        }
        for (traffic, phases) in sum.traffic_mut().into_iter().zip(&self.phases) {
            if let Some(phases) = phases.get() {
                traffic.phases = phases.read(names);
            }
        }
        sum.limiter.bypassed = sum.bypassed.recorded();
        sum
    }
}

/// Which of the two kinds of traffic.
#[derive(Clone, Copy)]
enum Kind {
    Users,
    Bypassed,
}

impl Kind {
    fn of(self, counts: &mut RouteCounts) -> &mut TrafficCounts {
        match self {
            Self::Users => &mut counts.users,
            Self::Bypassed => &mut counts.bypassed,
        }
    }
}

impl Shard {
    fn new(precision: Precision) -> Self {
        Self {
            entered: AtomicU64::new(0),
            paired: AtomicU64::new(0),
            limiter: OnceLock::new(),
            users: Traffic::new(precision),
            bypassed: OnceLock::new(),
        }
    }

    /// What there is of both kinds of traffic.
    fn both(&self) -> impl Iterator<Item = (Kind, &Traffic)> {
        let bypassed = self.bypassed.get().map(|traffic| (Kind::Bypassed, &**traffic));
        [(Kind::Users, &self.users)].into_iter().chain(bypassed)
    }

    #[inline]
    fn traffic(&self, bypassed: bool) -> &Traffic {
        if bypassed { self.bypassed() } else { &self.users }
    }

    #[inline(never)]
    fn bypassed(&self) -> &Traffic {
        self.bypassed.get_or_init(|| Box::new(Traffic::new(self.users.precision)))
    }

    #[inline]
    fn leave(&self, writer: Writer, ended: Ended) {
        if ended.paired {
            writer.add(&self.paired, 1);
        }
        self.traffic(ended.bypassed).leave(writer, ended);
    }
}

impl Traffic {
    fn new(precision: Precision) -> Self {
        Self {
            precision,
            outcomes: array::from_fn(|_| AtomicU64::new(0)),
            response_bytes: AtomicU64::new(0),
            ok: OnceLock::new(),
            first_byte: OnceLock::new(),
            limited: OnceLock::new(),
            failed: OnceLock::new(),
            streams: OnceLock::new(),
        }
    }

    #[inline(never)]
    fn streams(&self) -> &StreamCells {
        self.streams.get_or_init(Box::default)
    }

    fn opened(&self) -> u64 {
        self.streams.get().map_or(0, |streams| streams.opened.load(Acquire))
    }

    fn open_stream(&self, writer: Writer, first_byte: u64) {
        self.record(&self.first_byte, writer, first_byte);
        // Who sees the stream sees its first byte.
        writer.publish(&self.streams().opened);
    }

    #[inline]
    fn leave(&self, writer: Writer, ended: Ended) {
        if ended.stream {
            self.streams().record(writer, ended.server_time);
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
        // Last and with release: who sees the outcome sees the entry.
        writer.publish(&self.outcomes[ended.outcome.index()]);
    }

    #[inline]
    fn record(&self, histogram: &Histogram, writer: Writer, ns: u64) {
        histogram.get_or_init(|| HistogramCells::new(self.precision)).record(writer, ns);
    }

    /// Adds outcomes and the ends of streams.
    fn read_ends_into(&self, sum: &mut TrafficCounts) {
        for (to, from) in sum.outcomes.iter_mut().zip(&self.outcomes) {
            *to += from.load(Acquire);
        }
        if let Some(streams) = self.streams.get() {
            sum.streams.merge(streams.read());
        }
    }

    /// Adds all but outcomes and the ends of streams.
    fn read_into(&self, sum: &mut TrafficCounts) {
        sum.response_bytes += self.response_bytes.load(Relaxed);
        sum.streams.opened += self.opened();
        let cells = [&self.ok, &self.first_byte, &self.limited, &self.failed];
        for (into, cells) in sum.histograms_mut().into_iter().zip(cells) {
            if let Some(cells) = cells.get() {
                cells.read_into(into);
            }
        }
    }
}

impl PhaseCells {
    fn new(precision: Precision) -> Self {
        Self {
            precision,
            times: array::from_fn(|_| OnceLock::new()),
            overlapped: AtomicU64::new(0),
            overlap_ns: AtomicU64::new(0),
        }
    }

    /// Records the phases of a request that took so many nanoseconds.
    fn record(&self, phases: &PhaseTimes, server_time: u64) {
        for (phase, ns) in &phases.times {
            self.record_one(Writer::Shared, *phase, *ns);
        }
        self.record_one(
            Writer::Shared,
            PhaseIndex::HANDLER,
            server_time.saturating_sub(phases.covered),
        );
        let overlap = phases.overlap();
        if overlap > 0 {
            Writer::Shared.add(&self.overlapped, 1);
            Writer::Shared.add(&self.overlap_ns, overlap);
        }
    }

    fn record_one(&self, writer: Writer, phase: PhaseIndex, ns: u64) {
        let cells =
            self.times[phase.index()].get_or_init(|| Box::new(HistogramCells::new(self.precision)));
        cells.record(writer, ns);
    }

    fn read(&self, names: &PhaseNames) -> PhaseCounts {
        let read = |phase: PhaseIndex| {
            let mut histogram = LatencyHistogram::default();
            self.times[phase.index()].get()?.read_into(&mut histogram);
            (histogram.count() > 0).then(|| (names.name(phase).to_owned(), histogram))
        };
        PhaseCounts {
            times: PhaseNames::all().filter_map(read).collect(),
            overlapped: self.overlapped.load(Relaxed),
            overlap_ns: self.overlap_ns.load(Relaxed),
        }
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
        counters.routes.iter().next().expect("the route is there").1.read(&counters.phases)
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
            assert_eq!((counts.entered, counts.recorded(), counts.users.failed.count()), (2, 2, 2));
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
                assert_eq!((counts.entered, counts.bypassed.recorded(), counts.paired), (1, 1, 1));
                assert_eq!(
                    (counts.bypassed.failed.count(), counts.bypassed.response_bytes),
                    (1, 7)
                );
                assert_eq!(counts.bypassed.failed.mean(), Duration::from_nanos(10));
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
            assert_eq!((counts.entered, counts.recorded(), counts.users.failed.count()), (2, 2, 2));
            assert_eq!(counts.users.failed.mean(), Duration::from_nanos(55));
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
                    counters.open_stream(route, 10, false);
                    counters.leave(route, Ended { stream: true, ..failed(20) });
                })
            };
            let counts = read_beside(&counters);
            let StreamCounts { opened, ended, sum_ns, extremes_ns } = counts.users.streams;
            assert!(ended <= opened);
            assert!(opened <= counts.users.first_byte.count(), "a stream without its first byte");
            assert_eq!(extremes_ns, (ended > 0).then_some((20, 20)));
            assert!(sum_ns >= 20 * ended);
            server.join().expect("no panic");
            assert_eq!(read(&counters).users.streams.open(), 0);
        });
    }
}
