//! When requests are meant to start.
//!
//! Arithmetic only: nothing here reads a clock, so a generator that wakes late cannot move the
//! intended starts and hide its lateness.

use std::{sync::Arc, time::Duration};

use rand::RngExt;

use crate::random::LoadRng;

/// How arrivals of an open workload follow one another.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Arrivals {
    /// Equally spaced, or as equally as a changing rate allows.
    #[default]
    Constant,
    /// At random and independent of each other: a Poisson process of the wanted rate, as many independent
    /// clients produce it.
    Poisson,
}

impl Arrivals {
    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Poisson => "poisson",
        }
    }
}

/// A level over time, in straight lines: arrivals per second, or users.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Profile {
    lines: Vec<Line>,
}

/// Seconds, and levels of 0 or more.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Line {
    from: f64,
    length: f64,
    start: f64,
    end: f64,
    /// Under all lines before this one.
    area_before: f64,
}

impl Line {
    fn area(&self) -> f64 {
        (self.start + self.end) / 2.0 * self.length
    }

    /// The level's change in a second.
    fn slope(&self) -> f64 {
        (self.end - self.start) / self.length
    }

    /// From the line's beginning until so much area lies under it, which must be at most what does.
    fn reach(&self, area: f64) -> f64 {
        if area <= 0.0 {
            return 0.0;
        }
        // Of the two ways to write the root of slope/2·x² + start·x = area, the one that does not subtract
        // what is almost equal.
        let root = (self.start * self.start + 2.0 * self.slope() * area).max(0.0).sqrt();
        2.0 * area / (self.start + root)
    }
}

impl Profile {
    /// `level` from the beginning to the end.
    pub(crate) fn constant(level: f64, duration: Duration) -> Self {
        Self::stages(level, &[(duration, level)])
    }

    /// From `level`, for each stage a straight line that takes so long and leads to its level; at once if it
    /// takes no time.
    pub(crate) fn stages(mut level: f64, stages: &[(Duration, f64)]) -> Self {
        let mut lines = Vec::new();
        let (mut from, mut area_before) = (0.0, 0.0);
        for (length, to) in stages {
            let line =
                Line { from, length: length.as_secs_f64(), start: level, end: *to, area_before };
            level = *to;
            if !length.is_zero() {
                from += line.length;
                area_before += line.area();
                lines.push(line);
            }
        }
        Self { lines }
    }

    pub(crate) fn peak(&self) -> f64 {
        self.lines.iter().map(|line| line.start.max(line.end)).fold(0.0, f64::max)
    }

    /// When so much area lies under the profile and more will; `None` if that is never.
    fn reach(&self, area: f64) -> Option<Duration> {
        let line = self.lines.partition_point(|line| line.area_before + line.area() <= area);
        let line = self.lines.get(line)?;
        Duration::try_from_secs_f64(line.from + line.reach(area - line.area_before)).ok()
    }

    /// The stretches of time in which the profile is above `level`, in order.
    pub(crate) fn above(&self, level: f64) -> Vec<(Duration, Duration)> {
        let mut stretches: Vec<(f64, f64)> = Vec::new();
        for line in &self.lines {
            let end = line.from + line.length;
            let crossing = line.from + (level - line.start) / line.slope();
            let (from, to) = match (line.start > level, line.end > level) {
                (true, true) => (line.from, end),
                (false, true) => (crossing, end),
                (true, false) => (line.from, crossing),
                (false, false) => continue,
            };
            match stretches.last_mut() {
                Some(last) if last.1 >= from => last.1 = to,
                _ => stretches.push((from, to)),
            }
        }
        let seconds = |s| Duration::try_from_secs_f64(s).unwrap_or(Duration::MAX);
        stretches.into_iter().map(|(from, to)| (seconds(from), seconds(to))).collect()
    }
}

/// Intended start times of an open workload, as offsets from its beginning.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Schedule {
    /// At a rate that may change.
    Rate { profile: Profile, arrivals: Arrivals },
    /// Once more as they were, in order.
    Replay(Arc<[Duration]>),
}

impl Schedule {
    /// The intended starts in order, those before `end`. A random schedule takes its choices from `random`.
    pub(crate) fn starts(self, end: Duration, random: LoadRng) -> Starts {
        Starts { schedule: self, end, next: 0, area: 0.0, random }
    }
}

/// The intended starts of a schedule, in order.
#[derive(Debug)]
pub(crate) struct Starts {
    schedule: Schedule,
    end: Duration,
    next: u64,
    /// Expected number of arrivals until the last one, of a random schedule.
    area: f64,
    random: LoadRng,
}

impl Iterator for Starts {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let at = match &self.schedule {
            // From the number itself, never a running sum: rounding must not add up. Exact to a nanosecond
            // for the first 100 days of a constant rate.
            Schedule::Rate { profile, arrivals: Arrivals::Constant } => {
                profile.reach(self.next as f64)?
            }
            Schedule::Rate { profile, arrivals: Arrivals::Poisson } => {
                // A Poisson process of rate 1, with its time stretched to the profile: exponential steps by
                // inversion.
                self.area -= (1.0 - self.random.random::<f64>()).ln();
                profile.reach(self.area)?
            }
            Schedule::Replay(starts) => *starts.get(usize::try_from(self.next).ok()?)?,
        };
        self.next += 1;
        (at < self.end).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::random::stream;

    const SECOND: Duration = Duration::from_secs(1);

    fn starts(profile: Profile, arrivals: Arrivals, end: Duration, seed: u64) -> Starts {
        Schedule::Rate { profile, arrivals }.starts(end, stream(seed, "", 0))
    }

    fn constant(rate: f64, duration: Duration) -> Starts {
        starts(Profile::constant(rate, duration), Arrivals::Constant, duration, 1)
    }

    #[test]
    fn arrivals_are_equally_spaced_and_end_with_the_duration() {
        let all: Vec<_> = constant(4.0, SECOND).collect();
        assert_eq!(all, [0, 250, 500, 750].map(Duration::from_millis));
    }

    #[test]
    fn an_hour_at_an_awkward_rate_does_not_drift() {
        let at = constant(333.3, 7200 * SECOND).nth(1_199_880).expect("within two hours");
        assert!(at.abs_diff(3600 * SECOND) < Duration::from_nanos(2), "{at:?}");
    }

    #[test]
    fn a_ramp_comes_closer_and_closer() {
        // The n-th arrival of a ramp from 0 to 8/s in a second is due when n = 4t².
        let profile = Profile::stages(0.0, &[(SECOND, 8.0), (SECOND, 8.0)]);
        let all: Vec<f64> =
            starts(profile, Arrivals::Constant, 2 * SECOND, 1).map(|at| at.as_secs_f64()).collect();
        for (n, at) in all.iter().take(4).enumerate() {
            assert!((at - (n as f64 / 4.0).sqrt()).abs() < 1e-9, "{n}: {at}");
        }
        assert_eq!(all.len(), 4 + 8);
        assert!((all[4] - 1.0).abs() < 1e-9 && (all[5] - 1.125).abs() < 1e-9, "{all:?}");
    }

    #[test]
    fn a_stage_without_time_is_a_jump() {
        let stages = [
            (SECOND, 10.0),
            (Duration::ZERO, 100.0),
            (SECOND, 100.0),
            (Duration::ZERO, 0.0),
            (SECOND, 0.0),
        ];
        let profile = Profile::stages(10.0, &stages);
        let all: Vec<_> = starts(profile, Arrivals::Constant, 3 * SECOND, 1).collect();
        let within = |from: u32, to: u32| {
            all.iter().filter(|at| (from * SECOND..to * SECOND).contains(at)).count()
        };
        assert_eq!((within(0, 1), within(1, 2), within(2, 3)), (10, 100, 0));
    }

    #[test]
    fn random_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() {
        let profile = Profile::constant(1_000.0, 100 * SECOND);
        let all: Vec<_> = starts(profile, Arrivals::Poisson, 100 * SECOND, 7).collect();
        // Five standard deviations of a Poisson variable of mean 100,000.
        assert!((all.len() as f64 - 100_000.0).abs() < 5.0 * 100_000_f64.sqrt(), "{}", all.len());
        let mut counts = [0.0_f64; 1_000];
        for at in &all {
            counts[(at.as_secs_f64() * 10.0) as usize] += 1.0;
        }
        let mean = counts.iter().sum::<f64>() / 1_000.0;
        let variance = counts.iter().map(|n| (n - mean).powi(2)).sum::<f64>() / 999.0;
        // The index of dispersion is 1, here ± 5·√(2/999).
        assert!((variance / mean - 1.0).abs() < 0.224, "{}", variance / mean);
        let gaps = all.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64());
        let long = gaps.filter(|gap| *gap > 0.001).count() as f64 / all.len() as f64;
        assert!((long - (-1.0_f64).exp()).abs() < 0.01, "{long}");
    }

    #[test]
    fn the_same_seed_makes_the_same_random_arrivals_and_another_does_not() {
        let of = |seed| {
            let profile = Profile::constant(100.0, SECOND);
            starts(profile, Arrivals::Poisson, SECOND, seed).collect::<Vec<_>>()
        };
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn a_replay_is_what_it_was_up_to_the_end() {
        let times: Arc<[Duration]> = [0, 5, 5, 900, 1_100].map(Duration::from_millis).into();
        let replay = Schedule::Replay(times.clone());
        let all: Vec<_> = replay.starts(SECOND, stream(1, "", 0)).collect();
        assert_eq!(all, times[..4]);
    }

    #[test]
    fn users_come_and_go_with_the_profile() {
        // Up to 2 in 2 s, down to 0 in 1 s, and up to 1 again in 1 s.
        let stages = [(2 * SECOND, 2.0), (SECOND, 0.0), (SECOND, 1.0)];
        let profile = Profile::stages(0.0, &stages);
        let ms = Duration::from_millis;
        assert_eq!(profile.above(0.0), [(ms(0), ms(4_000))]);
        assert_eq!(profile.above(0.5), [(ms(500), ms(2_750)), (ms(3_500), ms(4_000))]);
        assert_eq!(profile.above(1.0), [(ms(1_000), ms(2_500))]);
        assert_eq!(profile.above(2.0), []);
        assert_eq!(Profile::constant(3.0, SECOND).above(2.0), [(ms(0), ms(1_000))]);
    }

    proptest! {
        #[test]
        fn each_stretch_has_as_many_arrivals_as_its_area(
            first in 0.0_f64..2_000.0,
            stages in prop::collection::vec((0_u64..3_000, 0.0_f64..2_000.0), 1..6),
        ) {
            let stages: Vec<_> =
                stages.into_iter().map(|(ms, level)| (Duration::from_millis(ms), level)).collect();
            let end: Duration = stages.iter().map(|(length, _)| *length).sum();
            let profile = Profile::stages(first, &stages);
            let all: Vec<_> = starts(profile, Arrivals::Constant, end, 1).collect();
            prop_assert!(all.is_sorted());
            let (mut from, mut level, mut area) = (Duration::ZERO, first, 0.0);
            for (length, to) in stages {
                area += (level + to) / 2.0 * length.as_secs_f64();
                from += length;
                level = to;
                let before = all.iter().filter(|at| **at < from).count() as f64;
                prop_assert!((before - area).abs() <= 1.0 + 1e-6, "{before} for {area}");
            }
        }
    }
}
