//! How late this machine wakes a thread that only sleeps, and what that may have added to a request.

use std::{thread, time::Duration};

use parallax_middleware::LatencyHistogram;
use tokio::time::Instant;

use crate::threshold::{Metric, Stat, Threshold};

/// A request that asks a database once waits for so many wake-ups: of the worker that takes it up, of whoever answers
/// the query, and of a worker again. Runs of the calibration needed half as many, at the most.
const IN_A_REQUEST: u32 = 3;

/// How late a thread was woken.
#[derive(Clone, Debug, Default)]
pub(crate) struct WakeUps(LatencyHistogram);

impl WakeUps {
    /// Parks the calling thread for so long, or until it is unparked, and returns how late that ended; `None` if it was
    /// unparked.
    pub(crate) fn park(every: Duration) -> Option<Duration> {
        let began = Instant::now();
        thread::park_timeout(every);
        began.elapsed().checked_sub(every)
    }

    /// A thread that wakes up that often was late by so much. Whoever oversleeps has missed moments: each of them counts.
    pub(crate) fn record(&mut self, late: Duration, every: Duration) {
        let mut late = Some(late);
        while let Some(by) = late {
            self.0.record(by);
            late = by.checked_sub(every);
        }
    }

    pub(crate) fn lateness(&self) -> &LatencyHistogram {
        &self.0
    }

    /// What wake-ups may have added to the time that a limit is about, beyond what they take on this machine at best;
    /// nothing if nobody looked.
    pub(crate) fn may_add(&self, limit: &Threshold) -> Duration {
        let late = match limit.stat {
            // A limit on the generator's lateness is one on what wakes it.
            _ if limit.metric == Metric::Lag => return Duration::ZERO,
            Some(Stat::Quantile(q)) => self.0.quantile(q).unwrap_or_default(),
            Some(Stat::Mean) | None => self.0.mean(),
            Some(Stat::Max) => self.0.max(),
            Some(Stat::Min) => self.0.min(),
        };
        late.saturating_sub(self.0.min()) * IN_A_REQUEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);
    const EVERY: Duration = Duration::from_millis(20);

    fn added(wake_ups: &WakeUps, limit: &str) -> Duration {
        wake_ups.may_add(&Threshold::parse(limit).expect("a limit"))
    }

    #[test]
    fn what_is_later_than_at_best_may_be_added_three_times_where_a_limit_is() {
        let mut wake_ups = WakeUps::default();
        for n in 0..1_000 {
            wake_ups.record(if n % 10 == 0 { US * 110 } else { US * 10 }, EVERY);
        }
        for (limit, late_us) in [
            ("p50 < 1ms", 0),
            ("p95 < 1ms", 100),
            ("service_time p99 < 1ms", 100),
            ("pool_wait:db p99.9 < 1ms", 100),
            ("mean < 1ms", 10),
            ("max < 1ms", 100),
            ("min < 1ms", 0),
            ("lag p99 < 1ms", 0),
        ] {
            let (found, expected) = (added(&wake_ups, limit), US * late_us * IN_A_REQUEST);
            assert!(found.abs_diff(expected) <= US * 10, "{limit}: {found:?}, not {expected:?}");
        }
        assert_eq!(added(&WakeUps::default(), "max < 1ms"), Duration::ZERO, "nobody looked");
    }

    #[test]
    fn each_moment_that_was_slept_through_counts() {
        let mut wake_ups = WakeUps::default();
        wake_ups.record(US * 45_000, EVERY);
        let late = wake_ups.lateness();
        assert_eq!((late.count(), late.min(), late.max()), (3, US * 5_000, US * 45_000));
    }

    #[test]
    fn who_is_woken_by_somebody_was_not_late() {
        thread::current().unpark();
        assert_eq!(WakeUps::park(Duration::from_secs(3_600)), None);
        assert!(WakeUps::park(US).is_some());
    }
}
