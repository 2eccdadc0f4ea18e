//! How late this machine wakes a thread that sleeps, and what that may have added to a request.

use std::{thread, time::Duration};

use parallax_middleware::LatencyHistogram;
use tokio::time::Instant;

use crate::threshold::{Metric, Stat, Threshold};

/// A request that asks a database once waits for so many wake-ups: of the worker that takes it up, of whoever answers
/// the query, and of a worker again.
const IN_A_REQUEST: u32 = 3;
/// What of a lateness is beyond this is a pause of the machine, which a request meets once.
const LONGEST: Duration = Duration::from_millis(5);
/// Of the moments, so many have to be later than a quantile that counts.
const PAST_A_QUANTILE: f64 = 3.0;

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

    /// Notes that a sleep of `every` ended so late; each further moment that was slept through counts as well.
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
    /// nothing if nobody looked. `here` is whether the service runs on it.
    pub(crate) fn may_add(&self, limit: &Threshold, here: bool) -> Duration {
        match limit.metric {
            // One on the generator's lateness is about what wakes it.
            Metric::Lag => return Duration::ZERO,
            Metric::ServerTime | Metric::TimeToFirstByte | Metric::Phase(_) if !here => {
                return Duration::ZERO;
            }
            _ => {}
        }
        let late = match limit.stat {
            Some(Stat::Quantile(q)) => {
                let supported = 1.0 - PAST_A_QUANTILE / self.0.count() as f64;
                self.0.quantile(q.min(supported).max(0.0)).unwrap_or_default()
            }
            Some(Stat::Mean) | None => self.0.mean(),
            Some(Stat::Max) => self.0.max(),
            Some(Stat::Min) => return Duration::ZERO,
        };
        let late = late.saturating_sub(self.0.min());
        late + late.min(LONGEST) * (IN_A_REQUEST - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);
    const MS: Duration = Duration::from_millis(1);
    const EVERY: Duration = Duration::from_millis(20);

    /// 10 µs late at best, and so much more every so many times of a thousand.
    fn late(every: u32, more: Duration) -> WakeUps {
        let mut wake_ups = WakeUps::default();
        for n in 0..1_000 {
            wake_ups.0.record(US * 10 + if n % every == 0 { more } else { Duration::ZERO });
        }
        wake_ups
    }

    fn added(wake_ups: &WakeUps, limit: &str, here: bool) -> Duration {
        wake_ups.may_add(&Threshold::parse(limit).expect("a limit"), here)
    }

    #[test]
    fn what_is_later_than_at_best_may_be_added_three_times_where_a_limit_is() {
        let wake_ups = late(10, US * 100);
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
            let (found, expected) = (added(&wake_ups, limit, true), US * late_us * 3);
            assert!(found.abs_diff(expected) <= US * 6, "{limit}: {found:?}, not {expected:?}");
        }
        assert_eq!(added(&WakeUps::default(), "p99 < 1ms", true), Duration::ZERO, "nobody looked");
    }

    #[test]
    fn a_pause_of_the_whole_machine_is_met_once() {
        let added = added(&late(1_000, MS * 50), "max < 1ms", true);
        assert_eq!(added, MS * (50 + 2 * 5));
    }

    #[test]
    fn a_quantile_that_too_few_moments_support_is_the_last_that_they_do() {
        // Two of a thousand are beyond p99.7.
        assert!(added(&late(500, MS), "p99.99 < 1ms", true) < US * 6);
    }

    #[test]
    fn a_server_elsewhere_waits_for_the_wake_ups_of_another_machine() {
        let mut wake_ups = late(1, US * 100);
        wake_ups.0.record(US * 10);
        for (limit, adds) in [
            ("server_time p95 < 1ms", false),
            ("ttfb p95 < 1ms", false),
            ("query:db p95 < 1ms", false),
            ("p95 < 1ms", true),
            ("outside p95 < 1ms", true),
        ] {
            assert_eq!(added(&wake_ups, limit, false) > Duration::ZERO, adds, "{limit}");
            assert!(added(&wake_ups, limit, true) > Duration::ZERO, "{limit}");
        }
    }

    #[test]
    fn each_moment_that_was_slept_through_counts() {
        let mut wake_ups = WakeUps::default();
        wake_ups.record(MS * 45, EVERY);
        let late = wake_ups.lateness();
        assert_eq!((late.count(), late.min(), late.max()), (3, MS * 5, MS * 45));
    }

    #[test]
    fn who_is_woken_by_somebody_was_not_late() {
        thread::current().unpark();
        assert_eq!(WakeUps::park(Duration::from_secs(3_600)), None);
        assert!(WakeUps::park(US).is_some());
    }
}
