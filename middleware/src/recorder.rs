//! The write handle: where requests are counted.

use std::{
    collections::BTreeMap,
    fmt, mem,
    ops::Deref,
    sync::{Arc, Weak},
    time::Duration,
};

#[cfg(feature = "token")]
use http::{HeaderMap, HeaderValue};
use http::{Method, StatusCode};

use crate::{
    clock::Ticks,
    counters::{Counters, Ended},
    outcome::Outcome,
    phase::{Entered, Origin, PhaseLog, PhaseTimes, RecorderId},
    probe::{PhaseTime, Probe, ServerRecord},
    route::RouteIndex,
    slot::{SLOTS, Slot},
    sync::{self, Mutex, MutexGuard, OnceLock, PoisonError},
};
#[cfg(feature = "token")]
use crate::{phase, server_timing::Timing};

/// Where requests are counted, as those hold it that last: the service's handle, the layer. Clones share the
/// counters.
#[derive(Clone)]
pub(crate) struct Recorder {
    local: LocalRecorder,
    /// Keeps every slot's handle alive, so that [`LocalRecorder::clone`] finds them.
    _handles: sync::Arc<[sync::Arc<Handle>]>,
}

/// Where requests are counted, as services and requests hold it.
///
/// A service is cloned for each request. One reference count for all threads would be the one thing that
/// they fight for, so each slot has a handle with a count of its own: a clone is of the handle of the
/// thread that clones.
pub(crate) struct LocalRecorder {
    handle: sync::Arc<Handle>,
}

/// A slot's handle, on cache lines of its own together with its reference count.
#[repr(align(128))]
struct Handle {
    id: RecorderId,
    counters: Arc<Counters>,
    /// The handles of all slots. Weak, or they would keep each other alive.
    siblings: Arc<OnceLock<Box<[sync::Weak<Handle>]>>>,
}

sync::statics! {
    /// All counters that somebody holds, for services that have lent their reference away.
    static HELD: Mutex<BTreeMap<RecorderId, Weak<Counters>>> = Mutex::new(BTreeMap::new());
}

fn held() -> MutexGuard<'static, BTreeMap<RecorderId, Weak<Counters>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    #[cfg(test)]
    pub(crate) fn new(route_cap: usize, precision: crate::histogram::Precision) -> Self {
        Counters::new(route_cap, precision).into()
    }

    /// Of the same counters as one that was met in a request.
    pub(crate) fn of(local: &LocalRecorder) -> Self {
        Self::with_handles(local.handle.id, local)
    }

    fn with_handles(id: RecorderId, counters: &Arc<Counters>) -> Self {
        let siblings = Arc::new(OnceLock::new());
        let handle = || {
            sync::Arc::new(Handle { id, counters: counters.clone(), siblings: siblings.clone() })
        };
        let handles: sync::Arc<[sync::Arc<Handle>]> = (0..SLOTS).map(|_| handle()).collect();
        siblings.get_or_init(|| handles.iter().map(sync::Arc::downgrade).collect());
        Self { local: LocalRecorder { handle: handle() }, _handles: handles }
    }

    /// For a service.
    pub(crate) fn loan(&self) -> Loan {
        Loan::Kept(self.local.clone())
    }
}

impl From<Counters> for Recorder {
    fn from(counters: Counters) -> Self {
        let id = RecorderId::new();
        let counters = Arc::new(counters);
        let mut held = held();
        held.retain(|_, counters| counters.strong_count() > 0);
        held.insert(id, Arc::downgrade(&counters));
        drop(held);
        Self::with_handles(id, &counters)
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
    #[inline]
    fn clone(&self) -> Self {
        let siblings = self.handle.siblings.get();
        let local = siblings.and_then(|handles| handles.get(Slot::current().index())?.upgrade());
        Self { handle: local.unwrap_or_else(|| self.handle.clone()) }
    }
}

impl Deref for LocalRecorder {
    type Target = Arc<Counters>;

    #[inline]
    fn deref(&self) -> &Arc<Counters> {
        &self.handle.counters
    }
}

/// What a service has of its recorder.
///
/// Each request needs a reference of its own, and a reference that is counted up or down costs as much as
/// all the other counting of a request. axum clones a service for each request and drops it as soon as it is
/// called, so a clone hands the reference that it was made with on to its first request.
#[derive(Debug)]
pub(crate) enum Loan {
    /// A service that was not cloned from another, or was called before: it keeps its reference.
    Kept(LocalRecorder),
    /// A clone that nobody has called yet.
    Fresh(LocalRecorder),
    /// A clone that has been called once.
    Spent(RecorderId),
}

impl Loan {
    /// A reference for a request. `None` if nobody else is left who could read what it counts.
    ///
    /// Takes a lock if this is the second call of a clone, and never again for that clone.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<LocalRecorder> {
        let id = match self {
            Self::Kept(recorder) => return Some(recorder.clone()),
            Self::Fresh(recorder) => recorder.handle.id,
            Self::Spent(id) => {
                let recorder = LocalRecorder::held(*id)?;
                *self = Self::Kept(recorder.clone());
                return Some(recorder);
            }
        };
        match mem::replace(self, Self::Spent(id)) {
            Self::Fresh(recorder) => Some(recorder),
            Self::Kept(_) | Self::Spent(_) => None,
        }
    }
}

impl Clone for Loan {
    #[inline]
    fn clone(&self) -> Self {
        match self {
            Self::Kept(recorder) | Self::Fresh(recorder) => Self::Fresh(recorder.clone()),
            Self::Spent(id) => Self::Spent(*id),
        }
    }
}

impl LocalRecorder {
    /// A new reference to counters that somebody else holds, if anybody does.
    #[cold]
    fn held(id: RecorderId) -> Option<Self> {
        let counters = held().get(&id)?.upgrade()?;
        // Its count is shared by whoever clones it from here on.
        Some(Self { handle: sync::Arc::new(Handle { id, counters, siblings: Arc::default() }) })
    }

    /// Counts a request in. Whatever happens to the returned [`Recording`], it counts it out again.
    #[inline]
    pub(crate) fn enter(
        self,
        method: &Method,
        template: Option<&str>,
        probe: Option<Probe>,
    ) -> Recording {
        let route = self.handle.counters.enter(method, template);
        let entered = self.now(probe.is_some());
        Recording {
            recorder: self,
            route,
            entered,
            first_byte: NONE,
            response_bytes: 0,
            probe,
            log: None,
            outcome: Outcome::Cancelled,
            bypassed: false,
            stream: false,
            ended: false,
        }
    }

    pub(crate) fn id(&self) -> RecorderId {
        self.handle.id
    }

    pub(crate) fn same_as(&self, other: &LocalRecorder) -> bool {
        Arc::ptr_eq(self, other)
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

/// Stands for a time that is not known yet.
const NONE: u64 = u64::MAX;

/// One request between its entry and its end. Dropped before [`end`](Self::end), it counts as
/// cancelled, or as panicked while [`guard`](Self::guard) runs.
///
/// It moves with the response, several times: it is kept small.
pub(crate) struct Recording {
    recorder: LocalRecorder,
    entered: Ticks,
    /// Nanoseconds from the entry to the response head, or [`NONE`].
    first_byte: u64,
    response_bytes: u64,
    probe: Option<Probe>,
    /// From its first phase on, or from a token that is good.
    log: Option<Arc<PhaseLog>>,
    route: RouteIndex,
    /// How the request ends if nothing more happens.
    outcome: Outcome,
    bypassed: bool,
    stream: bool,
    ended: bool,
}

impl Recording {
    /// The service's own code runs, so that its phases are this request's, until the returned value is
    /// [`done`](Running::done). A panic in between counts as the request's; a drop at any other time means that
    /// it was cancelled.
    #[inline]
    pub(crate) fn run(&mut self) -> Running<'_> {
        self.outcome = Outcome::Panicked;
        let origin = Origin {
            owner: self.recorder.id(),
            entered: self.entered,
            paired: self.probe.is_some(),
        };
        Running { _entered: Entered::enter(origin, &mut self.log), outcome: &mut self.outcome }
    }

    /// Runs the service's own code: see [`run`](Self::run).
    #[inline]
    pub(crate) fn guard<T>(&mut self, run: impl FnOnce() -> T) -> T {
        let running = self.run();
        let result = run();
        running.done();
        result
    }

    /// Nanoseconds since the request entered.
    #[inline]
    fn elapsed(&self) -> u64 {
        self.recorder.nanos_since(self.entered, self.probe.is_some())
    }

    /// The response head leaves the layer.
    #[inline]
    pub(crate) fn head(&mut self) {
        self.first_byte = self.elapsed();
    }

    /// The response head leaves the layer, and events follow for as long as both sides wish.
    pub(crate) fn stream_head(&mut self) {
        self.head();
        self.stream = true;
        self.recorder.open_stream(self.route, self.first_byte, self.bypassed);
    }

    /// The response head leaves the layer with the whole response: no body follows.
    pub(crate) fn end_at_head(&mut self, status: StatusCode) {
        self.head();
        self.record(self.first_byte, Outcome::of_status(status));
    }

    /// The request's client is told.
    #[cfg(feature = "token")]
    #[cold]
    pub(crate) fn set_timing(&mut self, timing: Timing) {
        let id = self.recorder.id();
        if let Some(log) = self.guard(|| phase::current(Some(id))) {
            log.set_timing(timing);
        }
    }

    /// Tells the client what is known when the head leaves; `length` is that of the body that follows, if it is
    /// known. Returns whether the rest follows in trailers.
    #[cfg(feature = "token")]
    #[inline]
    pub(crate) fn tell_at_head(&mut self, headers: &mut HeaderMap, length: Option<u64>) -> bool {
        let timing = self.log.as_ref().and_then(|log| log.timing());
        timing.is_some_and(|mut timing| {
            timing.tell_at_head(&self.recorder, self.route, self.first_byte, headers, length)
        })
    }

    /// What the client is told in trailers, once the request is over.
    #[cfg(feature = "token")]
    pub(crate) fn told_at_end(&mut self) -> Option<HeaderValue> {
        self.log.as_ref()?.timing()?.at_end()
    }

    /// Who records it.
    pub(crate) fn recorder(&self) -> &LocalRecorder {
        &self.recorder
    }

    /// Bytes of the response body that left the layer.
    #[inline]
    pub(crate) fn add_bytes(&mut self, bytes: u64) {
        self.response_bytes += bytes;
    }

    /// Did it pass by the limiter?
    #[inline]
    pub(crate) fn set_bypassed(&mut self, bypassed: bool) {
        self.bypassed = bypassed;
    }

    /// Is it still to be recorded?
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        !self.ended
    }

    /// The request is over.
    #[inline]
    pub(crate) fn end(&mut self, outcome: Outcome) {
        self.record(self.elapsed(), outcome);
    }

    fn record(&mut self, server_time: u64, outcome: Outcome) {
        self.ended = true;
        // One that was cut short had no response to say so.
        self.bypassed |= self.log.as_ref().is_some_and(|log| log.has_passed());
        let ended = Ended {
            outcome,
            server_time,
            first_byte: self.first_byte,
            response_bytes: self.response_bytes,
            bypassed: self.bypassed,
            paired: self.probe.is_some(),
            stream: self.stream,
        };
        let log = self.log.take();
        let phases = log.as_ref().map(|log| self.on_its_way(log, ended));
        self.recorder.leave(self.route, ended);
        #[cfg(feature = "token")]
        if let Some(log) = log.filter(|log| log.timing().is_some()) {
            // It will be asked for what is told.
            self.log = Some(log);
        }
        if let Some(probe) = self.probe.take() {
            self.fill(probe, ended, &phases.unwrap_or_default());
        }
    }

    #[cold]
    fn on_its_way(&self, log: &PhaseLog, ended: Ended) -> PhaseTimes {
        let phases = log.close(ended.server_time);
        self.recorder.on_its_way(self.route, ended, &phases, log.at_limiter());
        #[cfg(feature = "token")]
        if let Some(mut timing) = log.timing() {
            timing.end(&self.recorder, ended, &phases);
        }
        phases
    }

    fn fill(&self, probe: Probe, ended: Ended, phases: &PhaseTimes) {
        let entered = self.recorder.instant(self.entered);
        probe.fill(
            &self.recorder,
            ServerRecord {
                entered,
                first_byte: (ended.first_byte != NONE)
                    .then(|| Duration::from_nanos(ended.first_byte)),
                server_time: Duration::from_nanos(ended.server_time),
                outcome: ended.outcome,
                bypassed: ended.bypassed,
                route: self.route,
                phases: phases.times.iter().copied().map(PhaseTime::from).collect(),
                handler: Duration::from_nanos(ended.server_time.saturating_sub(phases.covered)),
            },
        );
    }
}

/// The service's own code runs for a request. Made by [`Recording::run`].
pub(crate) struct Running<'r> {
    _entered: Entered<'r>,
    outcome: &'r mut Outcome,
}

impl Running<'_> {
    /// It has returned.
    #[inline]
    pub(crate) fn done(self) {
        *self.outcome = Outcome::Cancelled;
    }
}

impl Drop for Recording {
    #[inline]
    fn drop(&mut self) {
        if !self.ended {
            self.end(self.outcome);
        }
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording").field("ended", &self.ended).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::histogram::Precision;

    fn recorder() -> Recorder {
        Recorder::new(8, Precision::default())
    }

    fn enter(loan: &mut Loan) -> Option<Recording> {
        Some(loan.take()?.enter(&Method::GET, Some("/x"), None))
    }

    fn serve_one(loan: &mut Loan) {
        enter(loan).expect("the counters are there").end_at_head(StatusCode::OK);
    }

    fn recorded(counters: &Counters) -> u64 {
        counters.routes(None).values().map(|counts| counts.recorded()).sum()
    }

    #[test]
    fn threads_count_in_one_place_and_hold_it_by_different_counts() {
        let recorder = recorder();
        serve_one(&mut recorder.loan());
        let there = thread::scope(|scope| {
            let clone = || {
                serve_one(&mut recorder.loan());
                recorder.local.clone()
            };
            scope.spawn(clone).join().expect("no panic")
        });
        let here = recorder.local.clone();
        assert!(!sync::Arc::ptr_eq(&here.handle, &there.handle));
        assert!(here.same_as(&there));
        assert_eq!(recorded(&recorder), 2);
    }

    #[test]
    fn a_clone_hands_its_reference_on_and_counts_however_often_it_is_called() {
        let recorder = recorder();
        let service = recorder.loan();
        let mut clone = service.clone();
        for called in 0..3 {
            assert_eq!(matches!(clone, Loan::Fresh(_)), called == 0);
            assert_eq!(matches!(clone, Loan::Spent(_)), called == 1);
            serve_one(&mut clone.clone());
            serve_one(&mut clone);
        }
        assert_eq!(recorded(&recorder), 6);
        assert!(matches!(service, Loan::Kept(_)));
    }

    #[test]
    fn a_service_that_outlives_the_handle_still_counts() {
        let recorder = recorder();
        let counters = Arc::clone(&recorder);
        let mut service = recorder.loan();
        drop(recorder);
        serve_one(&mut service.clone());
        serve_one(&mut service);
        assert_eq!(recorded(&counters), 2);
    }

    #[test]
    fn nothing_is_left_when_everybody_has_gone() {
        let recorder = recorder();
        let counters = Arc::downgrade(&recorder);
        let mut service = recorder.loan();
        let mut clone = service.clone();
        let request = enter(&mut service);
        drop((recorder, service));
        serve_one(&mut clone);
        assert!(counters.upgrade().is_some(), "the request keeps them");
        drop(request);
        assert!(counters.upgrade().is_none());
        assert!(enter(&mut clone).is_none(), "nobody could read it");
    }

    #[test]
    fn a_request_may_end_on_another_thread_than_it_began_on() {
        let recorder = recorder();
        let request = enter(&mut recorder.loan());
        thread::spawn(move || drop(request)).join().expect("no panic");
        let (_, counts) = recorder.routes(None).pop_first().expect("it has been asked for");
        assert_eq!((counts.entered, counts.outcome(Outcome::Cancelled)), (1, 1));
    }

    #[test]
    fn a_recording_counts_itself_out_whatever_ends_it() {
        let recorder = recorder();
        let enter = || enter(&mut recorder.loan()).expect("the counters are there");
        drop(enter());
        enter().end(Outcome::ClientError);
        let panicked = std::panic::catch_unwind(|| {
            enter().guard(|| std::panic::resume_unwind(Box::new("on purpose")))
        });
        assert!(panicked.is_err());
        let (_, counts) = recorder.routes(None).pop_first().expect("it has been asked for");
        let of = |outcome| counts.outcome(outcome);
        assert_eq!(counts.entered, 3);
        assert_eq!(of(Outcome::Cancelled), 1);
        assert_eq!(of(Outcome::ClientError), 1);
        assert_eq!(of(Outcome::Panicked), 1);
        assert_eq!(counts.users.failed.count(), 3);
    }
}

#[cfg(all(test, parallax_loom))]
mod models {
    use loom::thread;

    use super::*;
    use crate::{histogram::Precision, sync::model};

    fn recorder() -> Recorder {
        Recorder::new(1, Precision::OneDigit)
    }

    /// Counts one request, without a clock: what it reads is no part of the model.
    fn serve_one(recorder: &LocalRecorder) {
        let route = recorder.handle.counters.enter(&Method::GET, None);
        let ended = Ended {
            outcome: Outcome::Ok,
            server_time: 1,
            first_byte: 1,
            response_bytes: 0,
            bypassed: false,
            paired: false,
            stream: false,
        };
        recorder.handle.counters.leave(route, ended);
    }

    fn recorded(counters: &Counters) -> u64 {
        counters.routes(None).values().map(|counts| counts.recorded()).sum()
    }

    #[test]
    fn clones_on_other_threads_count_in_one_place_and_nothing_is_left_of_it() {
        model(|| {
            let recorder = recorder();
            let counters = Arc::downgrade(&recorder);
            let threads = [(); 2].map(|()| {
                let mut service = recorder.loan();
                thread::spawn(move || serve_one(&service.take().expect("the service keeps them")))
            });
            for thread in threads {
                thread.join().expect("no panic");
            }
            assert_eq!(recorded(&recorder), 2);
            drop(recorder);
            assert!(counters.upgrade().is_none());
        });
    }

    #[test]
    fn a_clone_counts_while_everybody_else_goes() {
        model(|| {
            let recorder = recorder();
            let counters = Arc::downgrade(&recorder);
            let service = recorder.loan();
            let thread = {
                let mut clone = service.clone();
                thread::spawn(move || {
                    let local = clone.take().expect("it was made with a reference");
                    serve_one(&local.clone());
                    local
                })
            };
            drop((recorder, service));
            let request = thread.join().expect("no panic");
            assert_eq!(recorded(&request), 1);
            drop(request);
            assert!(counters.upgrade().is_none());
        });
    }

    #[test]
    fn a_clone_that_lent_its_reference_gets_another_one_or_learns_that_nobody_is_left() {
        model(|| {
            let recorder = recorder();
            let counters = Arc::downgrade(&recorder);
            let mut spent = recorder.loan().clone();
            drop(spent.take());
            let thread = thread::spawn(move || {
                let again = spent.take();
                if let Some(local) = &again {
                    serve_one(local);
                }
                again.map(|local| recorded(&local))
            });
            drop(recorder);
            let seen = thread.join().expect("no panic");
            assert!(seen.is_none_or(|recorded| recorded == 1));
            assert!(counters.upgrade().is_none());
        });
    }
}
