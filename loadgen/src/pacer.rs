//! Keeping a schedule: a thread of its own that sleeps until shortly before an arrival is due, then
//! spins. The runtime's timer is a thousand times coarser than the lateness that this must show.

use std::{hint, thread, time::Duration};

use tokio::time::Instant;

use crate::schedule::Schedule;

/// Left to spin: what the operating system may oversleep, its default timer slack of 50 µs and a wake-up.
const SPIN: Duration = Duration::from_micros(60);
/// The longest sleep in one piece, so that a stop is noticed.
const NAP: Duration = Duration::from_millis(20);

/// What became of a schedule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Paced {
    /// Arrivals that fell due.
    pub(crate) scheduled: u64,
    /// Of those, the ones that were dispatched or dropped; the rest were due when the run was stopped,
    /// and not yet taken.
    pub(crate) taken: u64,
}

/// Calls `arrive` with each arrival's number and intended start, when it is due and in order. Arrivals
/// that are already due come at once, one after the other, each with its own intended start.
///
/// Blocks the calling thread until the schedule ends or `stopped` says so.
pub(crate) fn keep(
    schedule: Schedule,
    start: Instant,
    stopped: impl Fn() -> bool,
    mut arrive: impl FnMut(u64, Duration),
) -> Paced {
    let mut taken = 0;
    while let Some(at) = schedule.at(taken) {
        if !wait_until(start + at, &stopped) {
            let scheduled = schedule.due_before(start.elapsed()).max(taken);
            return Paced { scheduled, taken };
        }
        arrive(taken, at);
        taken += 1;
    }
    Paced { scheduled: taken, taken }
}

/// False if the run was stopped first.
fn wait_until(due: Instant, stopped: impl Fn() -> bool) -> bool {
    loop {
        if stopped() {
            return false;
        }
        let left = due.saturating_duration_since(Instant::now());
        if left > SPIN {
            thread::sleep((left - SPIN).min(NAP));
        } else if left > Duration::ZERO {
            hint::spin_loop();
        } else {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn every_arrival_comes_once_in_order_and_never_early() {
        let schedule = Schedule::constant(2_000.0, Duration::from_millis(100));
        let start = Instant::now();
        let mut next = 0;
        let paced = keep(
            schedule,
            start,
            || false,
            |n, at| {
                assert_eq!(n, next);
                assert!(start.elapsed() >= at);
                next += 1;
            },
        );
        assert_eq!(paced, Paced { scheduled: 200, taken: 200 });
    }

    #[test]
    fn what_is_due_when_the_run_stops_is_scheduled_and_not_taken() {
        let schedule = Schedule::constant(1_000.0, Duration::from_secs(3600));
        let stopped = Cell::new(false);
        let start = Instant::now();
        let paced = keep(
            schedule,
            start,
            || stopped.get(),
            |n, _| {
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
