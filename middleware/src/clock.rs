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
    Tokio(TokioClock),
}

/// Tokio's clock, which stands still while tests pause it, and then lies behind: so readings count from an
/// hour before it was made.
#[derive(Clone, Debug)]
pub(crate) struct TokioClock {
    origin: Instant,
}

/// A reading of a clock; only its own clock knows what it means.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks(u64);

impl Ticks {
    /// A reading of no clock.
    pub(crate) const ZERO: Self = Self(0);
}

impl Clock {
    pub(crate) fn new() -> Self {
        let counter = if cfg!(feature = "test-util") { None } else { Self::counter() };
        counter.unwrap_or_else(|| Self::Tokio(TokioClock::new()))
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
            Self::Tokio(clock) => clock.now(),
        }
    }

    /// Nanoseconds since `start`, zero if that is still to come.
    #[inline]
    pub(crate) fn nanos_since(&self, start: Ticks) -> u64 {
        self.nanos_between(start, self.now())
    }

    /// Nanoseconds from one reading to another, zero if that one was first.
    #[inline]
    pub(crate) fn nanos_between(&self, start: Ticks, end: Ticks) -> u64 {
        match self {
            Self::Counter(clock) => clock.delta_as_nanos(start.0, end.0),
            Self::Tokio(_) => TokioClock::nanos_between(start, end),
        }
    }
}

impl TokioClock {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { origin: now.checked_sub(Duration::from_secs(3600)).unwrap_or(now) }
    }

    #[inline]
    pub(crate) fn now(&self) -> Ticks {
        Ticks(nanos(self.origin.elapsed()))
    }

    /// Nanoseconds since `start`, zero if that is still to come.
    #[inline]
    pub(crate) fn nanos_since(&self, start: Ticks) -> u64 {
        Self::nanos_between(start, self.now())
    }

    /// Nanoseconds from one reading to another, zero if that one was first.
    #[inline]
    pub(crate) fn nanos_between(start: Ticks, end: Ticks) -> u64 {
        end.0.saturating_sub(start.0)
    }

    /// The instant of a reading.
    pub(crate) fn instant(&self, Ticks(ticks): Ticks) -> Instant {
        self.origin + Duration::from_nanos(ticks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that this machine has.
    fn clocks() -> impl Iterator<Item = Clock> {
        Clock::counter().into_iter().chain([Clock::Tokio(TokioClock::new()), Clock::new()])
    }

    #[test]
    fn a_reading_of_tokios_clock_is_an_instant() {
        let clock = TokioClock::new();
        let (before, reading, after) = (Instant::now(), clock.now(), Instant::now());
        assert!((before..=after).contains(&clock.instant(reading)));
    }

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
        for clock in clocks() {
            let (least, found, most) = span(&clock);
            // A calibration of a millisecond knows the counter's rate to a few in 100,000.
            let slack = least / 1_000;
            assert!((least - slack..=most + slack).contains(&found), "{clock:?}: {found} ns");
        }
    }

    #[test]
    fn a_start_that_is_still_to_come_is_no_time_ago() {
        for clock in clocks() {
            assert_eq!(clock.nanos_since(Ticks(u64::MAX)), 0);
        }
    }
}
