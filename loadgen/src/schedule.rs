//! When requests are meant to start.
//!
//! Arithmetic only: nothing here reads a clock, so a generator that wakes late cannot move the
//! intended starts and hide its lateness.

use std::time::Duration;

/// Intended start times of an open workload, as offsets from its beginning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Schedule {
    /// Arrivals per second, finite and above zero.
    rate: f64,
    duration: Duration,
}

impl Schedule {
    /// Equally spaced arrivals, the first at once, the last before `duration` is over.
    pub(crate) fn constant(rate: f64, duration: Duration) -> Self {
        Self { rate, duration }
    }

    /// The intended start of arrival `n`, counted from 0; `None` past the end.
    pub(crate) fn at(&self, n: u64) -> Option<Duration> {
        // A product, never a running sum: rounding must not add up. Exact to a nanosecond for the
        // first 100 days.
        let at = Duration::try_from_secs_f64(n as f64 / self.rate).ok()?;
        (at < self.duration).then_some(at)
    }

    /// How many arrivals are due before `elapsed` has passed.
    pub(crate) fn due_before(&self, elapsed: Duration) -> u64 {
        let elapsed = elapsed.min(self.duration);
        // The product may land on either side of the boundary: step to the exact count.
        let mut n = (elapsed.as_secs_f64() * self.rate) as u64;
        while n > 0 && self.at(n - 1).is_none_or(|at| at >= elapsed) {
            n -= 1;
        }
        while self.at(n).is_some_and(|at| at < elapsed) {
            n += 1;
        }
        n
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn arrivals_are_equally_spaced_and_end_with_the_duration() {
        let schedule = Schedule::constant(4.0, Duration::from_secs(1));
        let all: Vec<_> = (0..).map_while(|n| schedule.at(n)).collect();
        assert_eq!(all, [0, 250, 500, 750].map(Duration::from_millis));
    }

    #[test]
    fn an_hour_at_an_awkward_rate_does_not_drift() {
        let schedule = Schedule::constant(333.3, Duration::from_secs(7200));
        let at = schedule.at(1_199_880).expect("within two hours");
        assert!(at.abs_diff(Duration::from_secs(3600)) < Duration::from_nanos(2), "{at:?}");
    }

    proptest! {
        #[test]
        fn counting_the_due_agrees_with_listing_them(
            rate in 0.5_f64..5_000.0,
            elapsed_us in 0_u64..1_000_000,
        ) {
            let schedule = Schedule::constant(rate, Duration::from_millis(700));
            let elapsed = Duration::from_micros(elapsed_us);
            let listed = (0..).map_while(|n| schedule.at(n)).filter(|at| *at < elapsed).count();
            prop_assert_eq!(schedule.due_before(elapsed), listed as u64);
        }
    }
}
