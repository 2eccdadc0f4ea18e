//! Where the time of a request goes: the phases that it passes through.
//!
//! While the service's own code runs, the request that it runs for is in the thread's [`Scope`]; whoever
//! begins a phase there finds it. Nothing is allocated before a request is in its first phase.

use std::{
    cell::Cell,
    future::Future,
    mem::{self, ManuallyDrop},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

#[cfg(feature = "token")]
use crate::server_timing::Timing;
use crate::{
    clock::Ticks,
    counters::{Admission, AtLimiter},
    recorder::LocalRecorder,
    sync::{
        self, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The most names that phases have; those past them share the last.
pub(crate) const PHASES: usize = 64;
/// Stands for every name past [`PHASES`].
const OVERFLOW: &str = "(other)";

/// A phase's position among the names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct PhaseIndex(u8);

impl From<u8> for PhaseIndex {
    fn from(index: u8) -> Self {
        Self(index)
    }
}

impl PhaseIndex {
    /// In a limiter, until it lets the request through or answers it.
    pub(crate) const LIMITER: Self = Self(0);
    /// In none of the others.
    pub(crate) const HANDLER: Self = Self(1);
    pub(crate) const OTHER: Self = Self(PHASES as u8 - 1);

    pub(crate) fn index(self) -> usize {
        usize::from(self.0) % PHASES
    }
}

/// The names of phases, insert-only. Readers take no lock.
pub(crate) struct PhaseNames {
    /// Filled from the front. There are few: they are looked through.
    names: [OnceLock<Box<str>>; PHASES],
    adding: sync::Mutex<()>,
}

impl PhaseNames {
    pub(crate) fn new() -> Self {
        let names = [(); PHASES].map(|()| OnceLock::new());
        for (phase, name) in [
            (PhaseIndex::LIMITER, "limiter"),
            (PhaseIndex::HANDLER, "handler"),
            (PhaseIndex::OTHER, OVERFLOW),
        ] {
            let _ = names[phase.index()].set(name.into());
        }
        Self { names, adding: sync::Mutex::new(()) }
    }

    /// Finds a name's phase, making it when it is first named.
    pub(crate) fn find(&self, name: &str) -> PhaseIndex {
        match self.look(name) {
            Ok(phase) => phase,
            Err(_) => self.add(name),
        }
    }

    /// The name's phase, or the first free one, if any is.
    fn look(&self, name: &str) -> Result<PhaseIndex, Option<PhaseIndex>> {
        for (phase, place) in (0..).map(PhaseIndex).zip(&self.names) {
            match place.get() {
                Some(found) if **found == *name => return Ok(phase),
                Some(_) => {}
                None => return Err(Some(phase)),
            }
        }
        Err(None)
    }

    #[cold]
    fn add(&self, name: &str) -> PhaseIndex {
        let _alone = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        match self.look(name) {
            Ok(phase) => phase,
            Err(Some(free)) => {
                let _ = self.names[free.index()].set(name.into());
                free
            }
            Err(None) => PhaseIndex::OTHER,
        }
    }

    pub(crate) fn name(&self, phase: PhaseIndex) -> &str {
        self.names[phase.index()].get().map_or(OVERFLOW, |name| name)
    }

    /// Every position there may be.
    pub(crate) fn all() -> impl Iterator<Item = PhaseIndex> {
        (0..PHASES as u8).map(PhaseIndex)
    }
}

/// Which counters, for the life of the process.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct RecorderId(u64);

sync::statics! {
    static NEXT_ID: AtomicU64 = AtomicU64::new(0);
}

impl RecorderId {
    pub(crate) fn new() -> Self {
        Self(NEXT_ID.fetch_add(1, Relaxed))
    }
}

/// A request, as far as its phases need to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) owner: RecorderId,
    pub(crate) entered: Ticks,
    /// Timed by the clock that it shares with its client?
    pub(crate) paired: bool,
}

/// The phases of one request. Of a fixed size for each phase that it was in, however often it was.
#[derive(Debug)]
pub(crate) struct PhaseLog {
    origin: Origin,
    spans: Mutex<Spans>,
    /// What the request's client is told, if it has asked with a token.
    #[cfg(feature = "token")]
    timing: std::sync::OnceLock<Box<Mutex<Timing>>>,
}

/// Times are nanoseconds since the request entered.
#[derive(Debug, Default)]
struct Spans {
    phases: Vec<Span>,
    /// Phases that the request is in now, over all of them.
    open: u32,
    /// How long it was in any, where each beginning of such a stretch counts negative and each end positive.
    covered: u64,
    /// Up to when that is known: a stretch that is told of late may have begun before.
    covered_until: u64,
    /// When the last stretch began: a request that follows may begin one while this one's end is being told.
    latest: u64,
    limiter: AtLimiter,
    /// It passed by a limiter.
    passed: bool,
    closed: bool,
}

/// The time in one phase, in all its stretches together.
#[derive(Clone, Copy, Debug)]
struct Span {
    phase: PhaseIndex,
    /// Stretches that have not ended.
    open: u32,
    /// Their length: beginnings count negative, ends positive.
    ns: u64,
}

/// The phases of a request that is over, in nanoseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct PhaseTimes {
    /// Each phase once.
    pub(crate) times: Vec<(PhaseIndex, u64)>,
    /// Time in any of them.
    pub(crate) covered: u64,
}

impl PhaseTimes {
    /// Time that was spent in several phases at once, as often as there was more than one.
    pub(crate) fn overlap(&self) -> u64 {
        let sum = self.times.iter().fold(0_u64, |sum, (_, ns)| sum.saturating_add(*ns));
        sum.saturating_sub(self.covered)
    }
}

impl Spans {
    /// The time in a phase.
    fn of(&mut self, phase: PhaseIndex) -> &mut Span {
        let known = self.phases.iter().position(|span| span.phase == phase);
        let at = known.unwrap_or_else(|| {
            self.phases.push(Span { phase, open: 0, ns: 0 });
            self.phases.len() - 1
        });
        &mut self.phases[at]
    }

    fn begin(&mut self, phase: PhaseIndex, at: u64) {
        if self.closed {
            return;
        }
        if self.open == 0 {
            self.covered = self.covered.wrapping_sub(at.max(self.covered_until));
        }
        self.latest = self.latest.max(at);
        self.open += 1;
        let span = self.of(phase);
        span.open += 1;
        span.ns = span.ns.wrapping_sub(at);
    }

    fn end(&mut self, phase: PhaseIndex, at: u64) {
        if self.closed {
            return;
        }
        let open = self.phases.iter_mut().find(|span| span.phase == phase && span.open > 0);
        let Some(span) = open else { return };
        span.open -= 1;
        span.ns = span.ns.wrapping_add(at);
        self.open -= 1;
        if self.open == 0 {
            self.covered_until = at.max(self.covered_until);
            self.covered = self.covered.wrapping_add(self.covered_until);
        }
    }
}

impl PhaseLog {
    fn new(origin: Origin) -> Self {
        Self {
            origin,
            spans: Mutex::default(),
            #[cfg(feature = "token")]
            timing: std::sync::OnceLock::new(),
        }
    }

    /// The request's client is told.
    #[cfg(feature = "token")]
    pub(crate) fn set_timing(&self, timing: Timing) {
        self.timing.get_or_init(|| Box::new(Mutex::new(timing)));
    }

    /// What the request's client is told, if it is.
    #[cfg(feature = "token")]
    pub(crate) fn timing(&self) -> Option<MutexGuard<'_, Timing>> {
        Some(self.timing.get()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn spans(&self) -> MutexGuard<'_, Spans> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin(&self, phase: PhaseIndex, at: u64) {
        self.spans().begin(phase, at);
    }

    /// Ends a stretch of a phase, if there is one that has not ended.
    pub(crate) fn end(&self, phase: PhaseIndex, at: u64) {
        self.spans().end(phase, at);
    }

    /// A stretch that is over when it is told of.
    fn add(&self, phase: PhaseIndex, from: u64, to: u64) {
        let mut spans = self.spans();
        if spans.closed {
            return;
        }
        if spans.open == 0 {
            let known = spans.covered_until;
            spans.covered_until = to.max(known);
            let more = spans.covered_until - from.max(known).min(spans.covered_until);
            spans.covered = spans.covered.wrapping_add(more);
        }
        let span = spans.of(phase);
        span.ns = span.ns.wrapping_add(to - from);
    }

    /// What the limiter did with the request.
    pub(crate) fn at_limiter(&self) -> AtLimiter {
        self.spans().limiter
    }

    /// Did it pass by a limiter?
    pub(crate) fn has_passed(&self) -> bool {
        self.spans().passed
    }

    /// A limiter did this with the request: of several, the last one has the word.
    pub(crate) fn admission(&self, admission: Admission) {
        let mut spans = self.spans();
        spans.passed |= admission == Admission::Bypassed;
        spans.limiter.admission = Some(admission);
    }

    /// A token let the request past no limiter.
    #[cfg(feature = "token")]
    pub(crate) fn refused(&self, refusal: crate::token::TokenRefusal) {
        self.spans().limiter.refused = Some(refusal);
    }

    /// The request is over. Stretches that go on are cut here: who follows it may outlive it.
    pub(crate) fn close(&self, at: u64) -> PhaseTimes {
        let mut spans = self.spans();
        spans.closed = true;
        let at = at.max(spans.latest);
        let cut = |ns: u64, open: u32| ns.wrapping_add(at.wrapping_mul(open.into()));
        // Nobody asks again: taken, they are turned into times where they are.
        let phases = mem::take(&mut spans.phases);
        PhaseTimes {
            times: phases.into_iter().map(|span| (span.phase, cut(span.ns, span.open))).collect(),
            covered: cut(spans.covered, spans.open.min(1)),
        }
    }
}

/// The request that a thread's code runs for.
struct Scope {
    /// `None` outside of requests; then the rest means nothing.
    owner: Cell<Option<RecorderId>>,
    entered: Cell<Ticks>,
    paired: Cell<bool>,
    /// From the request's first phase on. It belongs to an [`Entered`] further up the stack, which takes it out.
    log: Cell<ManuallyDrop<Option<Arc<PhaseLog>>>>,
}

sync::locals! {
    /// Without a destructor, so that reading it is one load.
    static CURRENT: Scope = const { Scope::new() };
}

impl Scope {
    const fn new() -> Self {
        Self {
            owner: Cell::new(None),
            entered: Cell::new(Ticks::ZERO),
            paired: Cell::new(false),
            log: Cell::new(ManuallyDrop::new(None)),
        }
    }

    #[inline]
    fn enter(&self, origin: Origin, log: Option<Arc<PhaseLog>>) {
        self.owner.set(Some(origin.owner));
        self.entered.set(origin.entered);
        self.paired.set(origin.paired);
        self.log.set(ManuallyDrop::new(log));
    }

    #[inline]
    fn take_log(&self) -> Option<Arc<PhaseLog>> {
        ManuallyDrop::into_inner(self.log.replace(ManuallyDrop::new(None)))
    }

    /// The request, with its log; nobody is in it any more.
    #[cold]
    fn leave(&self, owner: RecorderId) -> (Origin, Option<Arc<PhaseLog>>) {
        let origin = Origin { owner, entered: self.entered.get(), paired: self.paired.get() };
        (origin, self.take_log())
    }
}

/// While it lives, the thread's code runs for a request.
pub(crate) struct Entered<'r> {
    log: &'r mut Option<Arc<PhaseLog>>,
    /// The request that this one is within.
    outer: Option<Box<(Origin, Option<Arc<PhaseLog>>)>>,
}

impl<'r> Entered<'r> {
    /// Enters a request, whose log may be begun meanwhile.
    #[inline]
    pub(crate) fn enter(origin: Origin, log: &'r mut Option<Arc<PhaseLog>>) -> Self {
        CURRENT.with(|scope| {
            let outer = scope.owner.get().map(|owner| Box::new(scope.leave(owner)));
            scope.enter(origin, log.take());
            Self { log, outer }
        })
    }
}

impl Drop for Entered<'_> {
    #[inline]
    fn drop(&mut self) {
        CURRENT.with(|scope| {
            scope.owner.set(None);
            let log = scope.take_log();
            if log.is_some() {
                *self.log = log;
            }
            if let Some(outer) = self.outer.take() {
                let (origin, log) = *outer;
                scope.enter(origin, log);
            }
        });
    }
}

/// The log of the request that this code runs for, if it runs for any of `owner`'s.
pub(crate) fn current(owner: Option<RecorderId>) -> Option<Arc<PhaseLog>> {
    with_current(owner, Arc::clone)
}

/// Does something with that log.
#[inline]
fn with_current<T>(owner: Option<RecorderId>, run: impl FnOnce(&Arc<PhaseLog>) -> T) -> Option<T> {
    CURRENT.with(|scope| {
        let current = scope.owner.get()?;
        if owner.is_some_and(|owner| owner != current) {
            return None;
        }
        let log = scope.take_log().unwrap_or_else(|| {
            Arc::new(PhaseLog::new(Origin {
                owner: current,
                entered: scope.entered.get(),
                paired: scope.paired.get(),
            }))
        });
        let done = run(&log);
        scope.log.set(ManuallyDrop::new(Some(log)));
        Some(done)
    })
}

/// Runs something for the request of a log.
pub(crate) fn within<T>(log: &Arc<PhaseLog>, run: impl FnOnce() -> T) -> T {
    let mut within = Some(log.clone());
    let _entered = Entered::enter(log.origin, &mut within);
    run()
}

/// A stretch of time in a phase: of a request, or of work outside of any.
#[derive(Debug)]
pub(crate) struct Stretch {
    phase: PhaseIndex,
    /// Where it began.
    at: At,
}

#[derive(Debug)]
enum At {
    /// Nanoseconds after the request entered.
    Request(Arc<PhaseLog>, u64),
    Elsewhere(Ticks),
}

impl LocalRecorder {
    /// Begins a phase of the request that this code runs for.
    pub(crate) fn begin_phase(&self, phase: PhaseIndex) -> Stretch {
        let at = match current(Some(self.id())) {
            Some(log) => {
                let at = self.since_entry(&log);
                log.begin(phase, at);
                At::Request(log, at)
            }
            None => At::Elsewhere(self.now(false)),
        };
        Stretch { phase, at }
    }

    /// Begins a phase that the request that this code runs for has been in since a reading of the clock.
    pub(crate) fn begin_phase_at(&self, phase: PhaseIndex, begun: Ticks) -> Stretch {
        let at = match current(Some(self.id())) {
            Some(log) => {
                let at = if log.origin.paired {
                    // Of another clock. How long ago first, so that it cannot seem longer.
                    let ago = self.nanos_since(begun, false);
                    self.since_entry(&log).saturating_sub(ago)
                } else {
                    self.nanos_between(log.origin.entered, begun, false)
                };
                log.begin(phase, at);
                At::Request(log, at)
            }
            None => At::Elsewhere(begun),
        };
        Stretch { phase, at }
    }

    /// Ends it, and returns how long it was, in nanoseconds.
    pub(crate) fn end_phase(&self, stretch: &Stretch) -> u64 {
        match &stretch.at {
            At::Request(log, begun) => {
                let at = self.since_entry(log);
                log.end(stretch.phase, at);
                at.saturating_sub(*begun)
            }
            At::Elsewhere(begun) => {
                let ns = self.nanos_since(*begun, false);
                self.record_elsewhere(stretch.phase, ns);
                ns
            }
        }
    }

    /// Adds a phase that the request that this code runs for was in between two readings of the clock, the last
    /// of them just now, and returns how long that was, in nanoseconds. Cheaper than to begin and to end it.
    pub(crate) fn add_phase(&self, phase: PhaseIndex, begun: Ticks, ended: Ticks) -> u64 {
        let ns = self.nanos_between(begun, ended, false);
        let of_request = with_current(Some(self.id()), |log| {
            let Origin { entered, paired, .. } = log.origin;
            // A request that is paired goes by another clock.
            let at = if paired {
                self.since_entry(log)
            } else {
                self.nanos_between(entered, ended, false)
            };
            log.add(phase, at.saturating_sub(ns), at);
        });
        if of_request.is_none() {
            self.record_elsewhere(phase, ns);
        }
        ns
    }

    /// Nanoseconds since the request of a log entered.
    pub(crate) fn since_entry(&self, log: &PhaseLog) -> u64 {
        self.nanos_since(log.origin.entered, log.origin.paired)
    }

    /// Counts a token that let the request that this code runs for past no limiter.
    #[cfg(feature = "token")]
    pub(crate) fn refuse(&self, refusal: crate::token::TokenRefusal) {
        self.refused(refusal);
        if let Some(log) = current(Some(self.id())) {
            log.refused(refusal);
        }
    }
}

/// A phase of a request, from when it is made until it is dropped. Made by [`Perf::phase`](crate::Perf::phase).
#[derive(Debug)]
#[must_use = "the phase ends when this is dropped"]
pub struct Phase {
    recorder: LocalRecorder,
    stretch: Stretch,
}

impl Phase {
    pub(crate) fn begin(recorder: LocalRecorder, phase: PhaseIndex) -> Self {
        let stretch = recorder.begin_phase(phase);
        Self { recorder, stretch }
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        self.recorder.end_phase(&self.stretch);
    }
}

pin_project! {
    /// A future whose time is a phase of its request. Made by [`Perf::observe`](crate::Perf::observe).
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Observed<F> {
        // Dropped before the phase ends: what it takes to clean up is part of it.
        #[pin]
        future: F,
        state: Observing,
    }
}

#[derive(Debug)]
enum Observing {
    /// Not polled yet.
    Idle(LocalRecorder, PhaseIndex),
    Running(#[allow(dead_code, reason = "dropped when the future is ready")] Phase),
    Over,
}

impl Observing {
    /// Begins the phase, with the first poll.
    fn begin(&mut self) {
        if let Self::Idle(recorder, phase) = self {
            *self = Self::Running(Phase::begin(recorder.clone(), *phase));
        }
    }
}

impl<F> Observed<F> {
    pub(crate) fn new(recorder: LocalRecorder, phase: PhaseIndex, future: F) -> Self {
        Self { future, state: Observing::Idle(recorder, phase) }
    }
}

impl<F: Future> Future for Observed<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.state.begin();
        let polled = this.future.poll(cx);
        if polled.is_ready() {
            *this.state = Observing::Over;
        }
        polled
    }
}

/// Until it is at its end or dropped.
#[cfg(feature = "sqlx")]
impl<S: futures_core::Stream> futures_core::Stream for Observed<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let this = self.project();
        this.state.begin();
        let polled = this.future.poll_next(cx);
        if matches!(polled, Poll::Ready(None)) {
            *this.state = Observing::Over;
        }
        polled
    }
}

pin_project! {
    /// A future that runs for the request that it was made for, wherever it is polled. Made by
    /// [`Perf::follow`](crate::Perf::follow).
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Followed<F> {
        #[pin]
        future: F,
        log: Option<Arc<PhaseLog>>,
    }
}

impl<F> Followed<F> {
    pub(crate) fn new(future: F) -> Self {
        Self { future, log: current(None) }
    }
}

impl<F: Future> Future for Followed<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        match this.log {
            Some(log) => within(log, || this.future.poll(cx)),
            None => this.future.poll(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_past_the_last_share_it() {
        let names = PhaseNames::new();
        let all: Vec<PhaseIndex> = (0..100).map(|n| names.find(&format!("phase {n}"))).collect();
        assert_eq!(names.name(all[0]), "phase 0");
        assert_eq!(names.find("phase 60"), all[60]);
        assert_eq!((names.name(all[60]), names.name(all[61])), ("phase 60", OVERFLOW));
        assert_eq!(names.find("limiter"), PhaseIndex::LIMITER);
    }

    #[test]
    fn a_phase_that_begins_while_the_end_is_told_takes_no_time() {
        let origin = Origin { owner: RecorderId::new(), entered: Ticks::ZERO, paired: false };
        let log = PhaseLog::new(origin);
        log.begin(PhaseIndex(5), 10);
        let found = log.close(5);
        assert_eq!((found.times, found.covered), (vec![(PhaseIndex(5), 0)], 0));
    }

    proptest! {
        /// Against a plain model: a set of intervals, and for each nanosecond how many phases it is in.
        #[test]
        fn stretches_add_up_and_each_nanosecond_is_covered_once(
            stretches in prop::collection::vec((0_u8..3, 0_usize..40, 0_usize..40), 0..12),
            end in 40_u64..60,
        ) {
            let origin = Origin { owner: RecorderId::new(), entered: Ticks::ZERO, paired: false };
            let log = PhaseLog::new(origin);
            // Those that would go back have no end of their own.
            let ends = |from: usize, to: usize| if to < from { end as usize } else { to };
            for at in 0..40 {
                for (phase, from, to) in &stretches {
                    if *from == at {
                        log.begin(PhaseIndex(*phase), at as u64);
                    }
                    if *to == at && from <= to {
                        log.end(PhaseIndex(*phase), at as u64);
                    }
                }
            }
            let found = log.close(end);
            log.end(PhaseIndex(0), end + 10);
            let in_phase = |ns: usize, (_, from, to): &(u8, usize, usize)| (*from..ends(*from, *to)).contains(&ns);
            let covered = (0..end as usize).filter(|ns| stretches.iter().any(|s| in_phase(*ns, s))).count();
            prop_assert_eq!(found.covered, covered as u64);
            for (phase, time) in &found.times {
                let of_phase = stretches.iter().filter(|(p, ..)| *p == phase.0);
                let sum: usize = of_phase.map(|(_, from, to)| ends(*from, *to) - from).sum();
                prop_assert_eq!(*time, sum as u64);
            }
            let sum: u64 = found.times.iter().map(|(_, time)| time).sum();
            prop_assert_eq!(found.overlap(), sum - found.covered);
        }
    }
}
