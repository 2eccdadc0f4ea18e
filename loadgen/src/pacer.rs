//! Keeping a schedule: a thread of its own that sleeps until shortly before an arrival is due, then
//! spins. The runtime's timer is a thousand times coarser than the lateness that this must show.

use std::{hint, thread, time::Duration};

use parallax_middleware::LatencyHistogram;
use tokio::time::Instant;

/// What the operating system may oversleep at the median, a wake-up, with some room. Where the timer slack cannot be
/// lowered there are 50 µs more.
pub(crate) const WAKE_UP: Duration =
    Duration::from_micros(if cfg!(target_os = "linux") { 20 } else { 70 });
/// Left to spin: nine in ten wake-ups take no longer.
const SPIN: Duration = WAKE_UP.saturating_add(Duration::from_micros(20));
/// The longest sleep in one piece, so that a stop is noticed.
const NAP: Duration = Duration::from_millis(20);

/// Who wakes requests when they are due.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Pacer {
    /// A thread of its own that sleeps until shortly before the time, then spins: late by a microsecond or so, at the
    /// cost of a part of a processor.
    #[default]
    Precise,
    /// The runtime's timer, which keeps whole milliseconds: late by up to one, at no cost.
    Coarse,
}

impl Pacer {
    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Precise => "precise",
            Self::Coarse => "coarse",
        }
    }
}

/// Has the calling thread's sleeps end as exactly as the operating system can.
pub(crate) fn sharpen_sleep() {
    // Without it, sleeps are merely less exact.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
}

/// What became of a schedule.
#[derive(Debug, Default)]
pub(crate) struct Paced {
    /// Arrivals that fell due.
    pub(crate) scheduled: u64,
    /// Of those, the ones that were dispatched or dropped; the rest were due when the run was stopped,
    /// and not yet taken.
    pub(crate) taken: u64,
    /// From one arrival that was taken to the next, as they came.
    pub(crate) gaps: LatencyHistogram,
}

/// Counts arrivals as they are taken.
#[derive(Debug, Default)]
pub(crate) struct Taking {
    paced: Paced,
    last: Option<Instant>,
}

impl Taking {
    /// The next arrival is taken at `now`; returns its number.
    pub(crate) fn take(&mut self, now: Instant) -> u64 {
        if let Some(last) = self.last.replace(now) {
            self.paced.gaps.record(now.saturating_duration_since(last));
        }
        self.paced.taken += 1;
        self.paced.taken - 1
    }

    /// The schedule is over; `missed` arrivals were due and not taken.
    pub(crate) fn end(self, missed: u64) -> Paced {
        Paced { scheduled: self.paced.taken + missed, ..self.paced }
    }
}

/// Calls `arrive` with each arrival's number, its intended start and the present moment, when it is due and in order.
/// Arrivals that are already due come at once, one after the other, each with its own intended start.
///
/// Blocks the calling thread until the schedule ends or `stopped` says so.
pub(crate) fn keep(
    mut starts: impl Iterator<Item = Duration>,
    start: Instant,
    stopped: impl Fn() -> bool,
    mut arrive: impl FnMut(u64, Duration, Instant),
) -> Paced {
    sharpen_sleep();
    let mut taking = Taking::default();
    while let Some(at) = starts.next() {
        let Some(now) = wait_until(start + at, &stopped) else {
            let elapsed = start.elapsed();
            let due = std::iter::once(at).chain(starts).take_while(|at| *at < elapsed);
            return taking.end(due.count() as u64);
        };
        arrive(taking.take(now), at, now);
    }
    taking.end(0)
}

/// The moment at which it was due, or a little later; `None` if the run was stopped first.
fn wait_until(due: Instant, stopped: impl Fn() -> bool) -> Option<Instant> {
    loop {
        if stopped() {
            return None;
        }
        let now = Instant::now();
        let left = due.saturating_duration_since(now);
        if left > SPIN {
            thread::sleep((left - SPIN).min(NAP));
        } else if left > Duration::ZERO {
            hint::spin_loop();
        } else {
            return Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// `count` arrivals, `gap` apart.
    fn starts(count: u32, gap: Duration) -> impl Iterator<Item = Duration> {
        (0..count).map(move |n| gap * n)
    }

    #[test]
    fn every_arrival_comes_once_in_order_and_never_early() {
        let start = Instant::now();
        let mut next = 0;
        let paced = keep(
            starts(200, Duration::from_micros(500)),
            start,
            || false,
            |n, at, now| {
                assert_eq!(n, next);
                assert!(now >= start + at);
                assert!(start.elapsed() >= at);
                next += 1;
            },
        );
        assert_eq!((paced.scheduled, paced.taken, paced.gaps.count()), (200, 200, 199));
    }

    #[test]
    fn what_is_due_when_the_run_stops_is_scheduled_and_not_taken() {
        let stopped = Cell::new(false);
        let start = Instant::now();
        let paced = keep(
            starts(3_600_000, Duration::from_millis(1)),
            start,
            || stopped.get(),
            |n, _, _| {
                if n == 4 {
                    // Arrivals 5 to at least 24 fall due behind this one's back.
                    while start.elapsed() < Duration::from_millis(25) {
                        hint::spin_loop();
                    }
                    stopped.set(true);
                }
            },
        );
        assert_eq!(paced.taken, 5);
        assert!(paced.scheduled >= 25, "{paced:?}");
    }
}
