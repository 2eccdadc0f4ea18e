//! A task on the service's runtime that does nothing but wake up: how late it is, any task there may be.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use parallax_middleware::LatencyHistogram;
use tokio::{
    runtime::Handle,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// How often it wakes up. The runtime's timer keeps whole milliseconds, so it is up to one late anyway.
const EVERY: Duration = Duration::from_millis(5);

/// The task; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Canary {
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

/// What it has seen.
#[derive(Debug)]
struct Seen {
    start: Instant,
    /// When it is to wake up next, nanoseconds since the start.
    due_ns: AtomicU64,
    /// The worst lateness since somebody asked.
    worst_ns: AtomicU64,
    /// When the interval was over sooner than planned, nanoseconds since the start.
    over_ns: AtomicU64,
    late: Mutex<LatencyHistogram>,
}

impl Canary {
    /// Sends it to a runtime, for an interval that begins at `start` and is over at `end`. After that it goes on, but
    /// no longer adds to [`lateness`](Self::lateness).
    pub(crate) fn start(runtime: &Handle, start: Instant, end: Instant) -> Self {
        let seen = Arc::new(Seen {
            start,
            due_ns: AtomicU64::new(EVERY.as_nanos() as u64),
            worst_ns: AtomicU64::new(0),
            over_ns: AtomicU64::new(u64::MAX),
            late: Mutex::default(),
        });
        let task = runtime.spawn(seen.clone().wake_up_again_and_again(end));
        Self { seen, task }
    }

    /// The worst lateness since the last call; also of a wake-up that should have come and has not.
    pub(crate) fn take_worst(&self) -> Duration {
        let due = self.seen.start + Duration::from_nanos(self.seen.due_ns.load(Acquire));
        let worst = Duration::from_nanos(self.seen.worst_ns.swap(0, AcqRel));
        worst.max(Instant::now().saturating_duration_since(due))
    }

    /// The interval is over, sooner than was planned.
    pub(crate) fn end_here(&self) {
        let now = Instant::now().saturating_duration_since(self.seen.start);
        self.seen.over_ns.fetch_min(now.as_nanos() as u64, Relaxed);
    }

    /// How late it was within its interval.
    pub(crate) fn lateness(&self) -> LatencyHistogram {
        self.seen.late().clone()
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    /// A histogram is whole between two values.
    fn late(&self) -> MutexGuard<'_, LatencyHistogram> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wake_up_again_and_again(self: Arc<Self>, end: Instant) {
        let mut due = self.start + EVERY;
        loop {
            sleep_until(due).await;
            due = self.woken(due, Instant::now(), end);
        }
    }

    /// It was to wake up at `due`, and did at `now`. Returns when it is to wake up next.
    ///
    /// One that sleeps for a second has missed two hundred moments: each of them counts, or a long block would look
    /// like a single late wake-up.
    fn woken(&self, mut due: Instant, now: Instant, end: Instant) -> Instant {
        let worst = now.saturating_duration_since(due);
        self.worst_ns.fetch_max(worst.as_nanos() as u64, Relaxed);
        // Moments that it slept through count, also if it wakes up afterwards.
        let over = Duration::from_nanos(self.over_ns.load(Relaxed));
        let mut late = self.late();
        while due <= now {
            if due < end && due.saturating_duration_since(self.start) < over {
                late.record(now - due);
            }
            due += EVERY;
        }
        drop(late);
        let next = due.saturating_duration_since(self.start).as_nanos() as u64;
        self.due_ns.store(next, Release);
        due
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Waits until it has woken up and was late by as much.
    async fn seen(canary: &Canary, late: Duration) {
        for _ in 0..10_000 {
            if canary.lateness().max() >= late {
                return;
            }
            tokio::time::sleep(MS).await;
        }
        panic!("it never was {late:?} late: {:?}", canary.lateness().summary());
    }

    #[tokio::test]
    async fn a_thread_that_is_blocked_is_late_for_every_moment_that_it_missed() {
        let start = Instant::now();
        let canary = Canary::start(&Handle::current(), start, start + MS * 3_600_000);
        tokio::time::sleep(MS * 20).await;
        canary.take_worst();
        thread::sleep(MS * 200);
        // It has not woken up yet: somebody else asks.
        assert!(canary.take_worst() >= MS * 190);
        seen(&canary, MS * 190).await;
        let late = canary.lateness();
        assert!(late.count_above(MS * 100) >= 18, "{:?}", late.summary());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_after_the_interval_does_not_count() {
        let start = Instant::now();
        let canary = Canary::start(&Handle::current(), start, start + MS * 100);
        tokio::time::sleep(MS * 1_000).await;
        // At 5, 10, … 95 ms.
        assert_eq!(canary.lateness().count(), 19);
        assert!(canary.take_worst() <= MS);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_after_a_stop_does_not_count() {
        let start = Instant::now();
        let canary = Canary::start(&Handle::current(), start, start + MS * 3_600_000);
        tokio::time::sleep(MS * 52).await;
        canary.end_here();
        canary.end_here();
        tokio::time::sleep(MS * 1_000).await;
        assert_eq!(canary.lateness().count(), 10);
    }

    #[tokio::test]
    async fn what_was_missed_before_a_stop_counts_also_if_it_is_noticed_afterwards() {
        let start = Instant::now();
        let canary = Canary::start(&Handle::current(), start, start + MS * 3_600_000);
        tokio::time::sleep(MS * 20).await;
        thread::sleep(MS * 200);
        canary.end_here();
        seen(&canary, MS * 190).await;
        assert!(canary.lateness().count() >= 40);
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_when_nobody_has_it_any_more() {
        let start = Instant::now();
        let canary = Canary::start(&Handle::current(), start, start + MS * 100);
        tokio::time::sleep(MS * 20).await;
        let seen = Arc::downgrade(&canary.seen);
        drop(canary);
        tokio::time::sleep(MS * 20).await;
        assert!(seen.upgrade().is_none());
    }
}
