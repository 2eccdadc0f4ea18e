//! The clock that requests are timed by.

use std::{fs, sync::OnceLock, time::Duration};

use tokio::time::Instant;

use crate::histogram::nanos;

/// Where Linux says which clock it keeps time by.
const CLOCK_SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

/// A monotonic clock. The processor's own counter where the kernel keeps time by it too, tokio's clock
/// elsewhere and with the feature `test-util`.
///
/// A reading of the counter takes half the time of one through the kernel's function, which besides
/// waits for all instructions before it. The kernel's own choice vouches for a counter that neither stops nor
/// differs between processors.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    Counter(quanta::Clock),
    /// Readings count from here.
    Tokio(Instant),
}

/// A reading of a clock; only its own clock knows what it means.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks(u64);

impl Clock {
    pub(crate) fn new() -> Self {
        if cfg!(feature = "test-util") { None } else { Self::counter() }.unwrap_or_else(Self::tokio)
    }

    /// Tokio's clock, which stands still while tests pause it, and then lies behind: so readings count from
    /// an hour ago.
    pub(crate) fn tokio() -> Self {
        let now = Instant::now();
        Self::Tokio(now.checked_sub(Duration::from_secs(3600)).unwrap_or(now))
    }

    /// The processor's counter. The first call in a process compares it with the kernel's clock: for about a
    /// millisecond, on a machine that is very busy for up to 200.
    pub(crate) fn counter() -> Option<Self> {
        static TRUSTED: OnceLock<bool> = OnceLock::new();
        let trusted = TRUSTED.get_or_init(|| {
            let source = fs::read_to_string(CLOCK_SOURCE).unwrap_or_default();
            matches!(source.trim(), "tsc" | "arch_sys_counter")
        });
        trusted.then(|| Self::Counter(quanta::Clock::new()))
    }

    #[inline]
    pub(crate) fn now(&self) -> Ticks {
        match self {
            Self::Counter(clock) => Ticks(clock.raw()),
            Self::Tokio(origin) => Ticks(nanos(origin.elapsed())),
        }
    }

    /// The instant of a reading. Of the counter only nearly: what lies between is compared by two clocks.
    pub(crate) fn instant(&self, ticks: Ticks) -> Instant {
        match self {
            Self::Counter(_) => {
                let now = Instant::now();
                now.checked_sub(Duration::from_nanos(self.nanos_since(ticks))).unwrap_or(now)
            }
            Self::Tokio(origin) => *origin + Duration::from_nanos(ticks.0),
        }
    }

    /// Nanoseconds since `start`, zero if that is still to come.
    #[inline]
    pub(crate) fn nanos_since(&self, start: Ticks) -> u64 {
        let Ticks(now) = self.now();
        match self {
            Self::Counter(clock) => clock.delta_as_nanos(start.0, now),
            Self::Tokio(_) => now.saturating_sub(start.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nanoseconds that `clock` sees pass while 20 ms do, with bounds from the kernel's clock.
    fn span(clock: &Clock) -> (u64, u64, u64) {
        let outer = Instant::now();
        let start = clock.now();
        let inner = Instant::now();
        while inner.elapsed() < Duration::from_millis(20) {}
        let least = nanos(inner.elapsed());
        let found = clock.nanos_since(start);
        (least, found, nanos(outer.elapsed()))
    }

    #[test]
    fn each_clock_agrees_with_the_kernels() {
        for clock in Clock::counter().into_iter().chain([Clock::tokio(), Clock::new()]) {
            let (least, found, most) = span(&clock);
            // A calibration of a millisecond knows the counter's rate to a few in 100,000.
            let slack = least / 1_000;
            assert!((least - slack..=most + slack).contains(&found), "{clock:?}: {found} ns");
        }
    }

    #[test]
    fn a_start_that_is_still_to_come_is_no_time_ago() {
        for clock in Clock::counter().into_iter().chain([Clock::tokio()]) {
            assert_eq!(clock.nanos_since(Ticks(u64::MAX)), 0);
        }
    }
}
