//! The write handle: where requests are counted.

use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use http::{Method, StatusCode};
use tokio::time::Instant;

use crate::{
    histogram::{HistogramCells, LatencyHistogram, Writer, nanos},
    outcome::Outcome,
    probe::{Probe, ServerRecord},
    route::{RouteIndex, RouteKey, RouteTable},
    slot::{SLOTS, Slot},
};

/// Routes with a row of their own; the rest share one.
const ROUTE_CAP: usize = 512;

/// Where requests are counted, as those hold it that last: the service's handle, the layer. Clones share the
/// counters.
#[derive(Clone)]
pub(crate) struct Recorder {
    local: LocalRecorder,
    /// Keeps every slot's handle alive, so that [`LocalRecorder::clone`] finds them.
    _handles: Arc<[Arc<Handle>]>,
}

/// Where requests are counted, as each request holds it.
///
/// One reference count for all threads would be the one thing that they fight for, so each slot has a
/// handle with a count of its own: a clone is of the handle of the thread that clones.
pub(crate) struct LocalRecorder {
    handle: Arc<Handle>,
}

/// A slot's handle, on cache lines of its own together with its reference count.
#[repr(align(128))]
struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    routes: RouteTable<RouteCells>,
    limiter: LimiterCells,
    started: Instant,
    /// The handles of the slots. Weak, or they would keep each other alive.
    handles: OnceLock<Box<[Weak<Handle>]>>,
}

/// A route's counters, one shard a slot, each made when its slot first records on the route.
struct RouteCells {
    shards: Box<[OnceLock<Box<Shard>>]>,
}

/// What one slot counts for one route: 64 KiB, nearly all of it histograms. On cache lines of its own: its
/// neighbours belong to other threads.
#[repr(align(128))]
struct Shard {
    entered: AtomicU64,
    outcomes: [AtomicU64; Outcome::ALL.len()],
    paired: AtomicU64,
    bypassed: AtomicU64,
    response_bytes: AtomicU64,
    ok: HistogramCells,
    first_byte: HistogramCells,
    limited: HistogramCells,
    failed: HistogramCells,
}

/// What a limiter did, over all routes.
#[derive(Default)]
struct LimiterCells {
    admitted: AtomicU64,
    limited: AtomicU64,
    bypassed: AtomicU64,
}

/// What a limiter did with a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Admission {
    Admitted,
    Limited,
    Bypassed,
}

/// The counters of one route, added up over its shards.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct RouteCounts {
    pub(crate) entered: u64,
    pub(crate) outcomes: [u64; Outcome::ALL.len()],
    pub(crate) paired: u64,
    pub(crate) bypassed: u64,
    pub(crate) response_bytes: u64,
    pub(crate) ok: LatencyHistogram,
    pub(crate) first_byte: LatencyHistogram,
    pub(crate) limited: LatencyHistogram,
    pub(crate) failed: LatencyHistogram,
}

/// The counters of the limiter.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct LimiterCounts {
    pub(crate) admitted: u64,
    pub(crate) limited: u64,
    pub(crate) bypassed: u64,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        let shared = Arc::new(Shared {
            routes: RouteTable::new(ROUTE_CAP, RouteCells::new),
            limiter: LimiterCells::default(),
            started: Instant::now(),
            handles: OnceLock::new(),
        });
        let handle = || Arc::new(Handle { shared: shared.clone() });
        let handles: Arc<[Arc<Handle>]> = (0..SLOTS).map(|_| handle()).collect();
        shared.handles.get_or_init(|| handles.iter().map(Arc::downgrade).collect());
        Self { local: LocalRecorder { handle: handle() }, _handles: handles }
    }

    /// For somebody who met the recorder in a request only. It counts in the same place, but keeps no
    /// handles alive.
    pub(crate) fn met(local: &LocalRecorder) -> Self {
        Self { local: local.clone(), _handles: Arc::new([]) }
    }

    /// For a service, and for the requests that it answers.
    pub(crate) fn local(&self) -> LocalRecorder {
        self.local.clone()
    }
}

impl Deref for Recorder {
    type Target = LocalRecorder;

    fn deref(&self) -> &LocalRecorder {
        &self.local
    }
}

impl Clone for LocalRecorder {
    /// Another reference to the same counters, through the handle of the calling thread's slot. Where
    /// nothing that lasts is left, the handles are gone, and clones share one count.
    fn clone(&self) -> Self {
        let handles = self.shared().handles.get();
        let local = handles.and_then(|handles| handles.get(Slot::current().index)?.upgrade());
        Self { handle: local.unwrap_or_else(|| self.handle.clone()) }
    }
}

impl LocalRecorder {
    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    /// Counts a request in. Whatever happens to the returned [`Recording`], it counts it out again.
    pub(crate) fn enter(
        &self,
        method: &Method,
        template: Option<&str>,
        probe: Option<Probe>,
    ) -> Recording {
        let route = self.shared().routes.find(method, template);
        self.with_shard(route, |shard, writer| writer.add(&shard.entered, 1));
        Recording {
            recorder: self.clone(),
            route,
            entered: Instant::now(),
            first_byte: None,
            outcome: Outcome::Cancelled,
            response_bytes: 0,
            bypassed: false,
            probe,
            finished: false,
        }
    }

    /// Counts what the limiter did with a request.
    pub(crate) fn admission(&self, admission: Admission) {
        let cells = &self.shared().limiter;
        let cell = match admission {
            Admission::Admitted => &cells.admitted,
            Admission::Limited => &cells.limited,
            Admission::Bypassed => &cells.bypassed,
        };
        cell.fetch_add(1, Relaxed);
    }

    /// Every route with its counters.
    pub(crate) fn routes(&self) -> Vec<(RouteKey, RouteCounts)> {
        self.shared().routes.iter().map(|(key, cells)| (key.clone(), cells.read())).collect()
    }

    /// The limiter's counters.
    pub(crate) fn limiter(&self) -> LimiterCounts {
        let cells = &self.shared().limiter;
        LimiterCounts {
            admitted: cells.admitted.load(Relaxed),
            limited: cells.limited.load(Relaxed),
            bypassed: cells.bypassed.load(Relaxed),
        }
    }

    /// The name of a route that this recorder gave an index to.
    pub(crate) fn route_key(&self, route: RouteIndex) -> Option<&RouteKey> {
        self.shared().routes.get(route).map(|(key, _)| key)
    }

    /// Time since the recorder was made.
    pub(crate) fn uptime(&self) -> Duration {
        self.shared().started.elapsed()
    }

    pub(crate) fn same_as(&self, other: &LocalRecorder) -> bool {
        Arc::ptr_eq(&self.handle.shared, &other.handle.shared)
    }

    fn with_shard(&self, route: RouteIndex, write: impl FnOnce(&Shard, Writer)) {
        let Some((_, cells)) = self.shared().routes.get(route) else { return };
        let slot = Slot::current();
        if let Some(place) = cells.shards.get(slot.index) {
            // Allocates on the first request that this thread records on this route.
            write(place.get_or_init(|| Box::new(Shard::new())), slot.writer);
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("uptime", &self.uptime()).finish_non_exhaustive()
    }
}

impl fmt::Debug for LocalRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalRecorder").field("uptime", &self.uptime()).finish_non_exhaustive()
    }
}

impl RouteCells {
    fn new() -> Self {
        Self { shards: (0..SLOTS).map(|_| OnceLock::new()).collect() }
    }

    fn read(&self) -> RouteCounts {
        let mut sum = RouteCounts::default();
        let shards = || self.shards.iter().filter_map(OnceLock::get);
        // Outcomes before entries, over all shards: a request enters before it ends, so this order can
        // only see too many in flight, never fewer than none.
        for shard in shards() {
            for (to, from) in sum.outcomes.iter_mut().zip(&shard.outcomes) {
                *to += from.load(Acquire);
            }
        }
        for shard in shards() {
            sum.entered += shard.entered.load(Relaxed);
            sum.paired += shard.paired.load(Relaxed);
            sum.bypassed += shard.bypassed.load(Relaxed);
            sum.response_bytes += shard.response_bytes.load(Relaxed);
            shard.ok.read_into(&mut sum.ok);
            shard.first_byte.read_into(&mut sum.first_byte);
            shard.limited.read_into(&mut sum.limited);
            shard.failed.read_into(&mut sum.failed);
        }
        sum
    }
}

impl Shard {
    fn new() -> Self {
        Self {
            entered: AtomicU64::new(0),
            outcomes: [const { AtomicU64::new(0) }; Outcome::ALL.len()],
            paired: AtomicU64::new(0),
            bypassed: AtomicU64::new(0),
            response_bytes: AtomicU64::new(0),
            ok: HistogramCells::new(),
            first_byte: HistogramCells::new(),
            limited: HistogramCells::new(),
            failed: HistogramCells::new(),
        }
    }
}

/// One request between its entry and its end. Dropped before [`finish`](Self::finish), it counts as
/// cancelled, or as panicked while [`guard`](Self::guard) runs.
pub(crate) struct Recording {
    recorder: LocalRecorder,
    route: RouteIndex,
    entered: Instant,
    /// From the entry to the response head, once there is one.
    first_byte: Option<Duration>,
    /// How the request ends if nothing more happens.
    outcome: Outcome,
    response_bytes: u64,
    bypassed: bool,
    probe: Option<Probe>,
    finished: bool,
}

impl Recording {
    /// Runs the service's own code. A panic in it unwinds through here, and the request counts as
    /// panicked; a drop at any other time counts as cancelled.
    pub(crate) fn guard<T>(&mut self, run: impl FnOnce() -> T) -> T {
        self.outcome = Outcome::Panicked;
        let result = run();
        self.outcome = Outcome::Cancelled;
        result
    }

    /// The response head leaves the layer.
    pub(crate) fn head(&mut self) {
        self.first_byte = Some(self.entered.elapsed());
    }

    /// The response head leaves the layer with the whole response: no body follows.
    pub(crate) fn finish_at_head(mut self, status: StatusCode) {
        let now = self.entered.elapsed();
        self.first_byte = Some(now);
        self.record(now, Outcome::of_status(status));
    }

    /// Bytes of the response body that left the layer.
    pub(crate) fn add_bytes(&mut self, bytes: u64) {
        self.response_bytes += bytes;
    }

    /// Did it pass by the limiter?
    pub(crate) fn set_bypassed(&mut self, bypassed: bool) {
        self.bypassed = bypassed;
    }

    /// The request is over.
    pub(crate) fn finish(mut self, outcome: Outcome) {
        self.record(self.entered.elapsed(), outcome);
    }

    fn record(&mut self, end: Duration, outcome: Outcome) {
        self.finished = true;
        self.recorder.with_shard(self.route, |shard, writer| {
            let histogram = match outcome {
                Outcome::Ok => &shard.ok,
                Outcome::Limited => &shard.limited,
                _ => &shard.failed,
            };
            histogram.record(writer, nanos(end));
            if let (Outcome::Ok, Some(first_byte)) = (outcome, self.first_byte) {
                shard.first_byte.record(writer, nanos(first_byte));
            }
            writer.add(&shard.response_bytes, self.response_bytes);
            if self.bypassed {
                writer.add(&shard.bypassed, 1);
            }
            if self.probe.is_some() {
                writer.add(&shard.paired, 1);
            }
            // Last and with release: who sees the outcome sees the entry.
            let cell = &shard.outcomes[outcome.index()];
            match writer {
                Writer::Only => cell.store(cell.load(Relaxed) + 1, Release),
                Writer::Shared => {
                    cell.fetch_add(1, Release);
                }
            }
        });
        if let Some(probe) = self.probe.take() {
            probe.fill(
                &self.recorder,
                ServerRecord {
                    entered: self.entered,
                    first_byte: self.first_byte,
                    server_time: end,
                    outcome,
                    bypassed: self.bypassed,
                    route: self.route,
                },
            );
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if !self.finished {
            self.record(self.entered.elapsed(), self.outcome);
        }
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording").field("route", &self.route).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn serve_one(recorder: &LocalRecorder) {
        let recording = recorder.enter(&Method::GET, Some("/x"), None);
        recording.finish_at_head(StatusCode::OK);
    }

    fn recorded(recorder: &LocalRecorder) -> u64 {
        recorder.routes().iter().map(|(_, counts)| counts.outcomes.iter().sum::<u64>()).sum()
    }

    #[test]
    fn threads_count_in_one_place_and_hold_it_by_different_counts() {
        let recorder = Recorder::new();
        let here = recorder.local();
        let there = thread::scope(|scope| {
            let clone = || {
                let local = here.clone();
                serve_one(&local);
                local
            };
            scope.spawn(clone).join().expect("no panic")
        });
        serve_one(&here);
        assert!(!Arc::ptr_eq(&here.handle, &there.handle));
        assert!(here.same_as(&there));
        assert_eq!(recorded(&recorder), 2);
    }

    #[test]
    fn a_service_that_outlives_the_handle_still_counts() {
        let recorder = Recorder::new();
        let service = recorder.local();
        drop(recorder);
        serve_one(&service.clone());
        serve_one(&service);
        assert_eq!(recorded(&service), 2);
    }

    #[test]
    fn nothing_is_left_when_everybody_has_gone() {
        let recorder = Recorder::new();
        let shared = Arc::downgrade(&recorder.handle.shared);
        let service = recorder.local();
        let request = service.enter(&Method::GET, Some("/x"), None);
        drop((recorder, service));
        assert!(shared.upgrade().is_some(), "the request keeps it");
        drop(request);
        assert!(shared.upgrade().is_none());
    }

    #[test]
    fn a_recording_counts_itself_out_whatever_ends_it() {
        let recorder = Recorder::new();
        let enter = || recorder.enter(&Method::GET, Some("/x"), None);
        drop(enter());
        enter().finish(Outcome::ClientError);
        let panicked = std::panic::catch_unwind(|| {
            enter().guard(|| std::panic::resume_unwind(Box::new("on purpose")))
        });
        assert!(panicked.is_err());
        let routes = recorder.routes();
        let (_, counts) = &routes[0];
        let of = |outcome: Outcome| counts.outcomes[outcome.index()];
        assert_eq!(counts.entered, 3);
        assert_eq!(of(Outcome::Cancelled), 1);
        assert_eq!(of(Outcome::ClientError), 1);
        assert_eq!(of(Outcome::Panicked), 1);
        assert_eq!(counts.failed.count(), 3);
    }
}
