//! Where the transient of a run's beginning ends, and whether it ends at all.

use std::time::Duration;

use crate::{collector::Slot, report::Settling};

/// Fewer slots say nothing.
const MIN_SLOTS: usize = 20;
/// A transient of this share of the run has no end in sight.
const NO_END: f64 = 0.45;
/// Batches of slots that a fall is shown by.
const BATCHES: usize = 10;
/// Of the pairs of batches, those that fall less those that rise, as a share: so much shows a fall.
const CONCORDANCE: f64 = 0.8;
/// By how much the second half must be faster than the first.
const FALL: f64 = 0.1;

/// Mean response times of the slots of a run.
#[derive(Debug)]
pub(crate) struct Series {
    /// The beginning of each slot, and its mean in microseconds.
    slots: Vec<(Duration, f64)>,
}

/// Response times that fell through the whole run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fall {
    /// Mean of the first tenth, microseconds.
    pub(crate) first_us: f64,
    /// Of the last.
    pub(crate) last_us: f64,
}

impl Series {
    /// Of the slots that have successes and are whole.
    pub(crate) fn of<'a>(
        slots: impl Iterator<Item = (Duration, &'a Slot)>,
        width: Duration,
        measured: Duration,
    ) -> Self {
        let slots = slots
            .filter(|(at, slot)| slot.window.ok.count() > 0 && *at + width <= measured)
            .map(|(at, slot)| (at, slot.window.ok.mean().as_secs_f64() * 1e6));
        Self { slots: slots.collect() }
    }

    /// By MSER (White, *An effective truncation heuristic for bias reduction in simulation output*, 1997): leaves out
    /// as many slots as make the mean of the rest most certain, and half of them at the most. `None` if there are too
    /// few.
    pub(crate) fn settling(&self) -> Option<Settling> {
        let n = self.slots.len();
        if n < MIN_SLOTS {
            return None;
        }
        let transient = self.transient();
        Some(Settling {
            transient_s: self.slots[transient].0.as_secs_f64(),
            slots: n as u64,
            stationary: (transient as f64) < NO_END * n as f64,
        })
    }

    /// Slots that belong to the transient.
    fn transient(&self) -> usize {
        let n = self.slots.len();
        let (mut sum, mut squares) = (0.0, 0.0);
        // Relative to some value of theirs, or squares of large times would cancel out.
        let base = self.slots.last().map_or(0.0, |slot| slot.1);
        let mut best = (f64::INFINITY, 0);
        for (d, (_, mean)) in self.slots.iter().enumerate().rev() {
            let (left, mean) = ((n - d) as f64, mean - base);
            sum += mean;
            squares += mean * mean;
            let error = (squares - sum * sum / left).max(0.0) / (left * left);
            // Of two that are as good, the one that leaves out less.
            if d <= n / 2 && error <= best.0 {
                best = (error, d);
            }
        }
        best.1
    }

    /// The response times fell from the beginning to the end, by too much and too steadily for chance.
    pub(crate) fn fall(&self) -> Option<Fall> {
        let size = self.slots.len() / BATCHES;
        if self.slots.len() < MIN_SLOTS || self.settling()?.stationary {
            return None;
        }
        let mean = |slots: &[(Duration, f64)]| {
            slots.iter().map(|slot| slot.1).sum::<f64>() / slots.len() as f64
        };
        // What is left over by the division belongs to the last.
        let batches: Vec<f64> = (0..BATCHES)
            .map(|n| {
                &self.slots
                    [n * size..if n + 1 < BATCHES { (n + 1) * size } else { self.slots.len() }]
            })
            .map(mean)
            .collect();
        let pairs = (0..BATCHES).flat_map(|later| (0..later).map(move |sooner| (sooner, later)));
        let sign =
            |difference: f64| f64::from(i8::from(difference > 0.0) - i8::from(difference < 0.0));
        let falls: f64 = pairs.map(|(a, b)| sign(batches[a] - batches[b])).sum();
        let (first, second) = batches.split_at(BATCHES / 2);
        let half = |batches: &[f64]| batches.iter().sum::<f64>() / batches.len() as f64;
        let steady = falls >= CONCORDANCE * (BATCHES * (BATCHES - 1) / 2) as f64;
        (steady && half(first) >= half(second) * (1.0 + FALL))
            .then(|| Fall { first_us: batches[0], last_us: batches[BATCHES - 1] })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    fn series(means: impl IntoIterator<Item = f64>) -> Series {
        let slots = means.into_iter().enumerate();
        Series { slots: slots.map(|(n, mean)| (Duration::from_secs(n as u64), mean)).collect() }
    }

    fn exponential(random: &mut SmallRng, mean: f64) -> f64 {
        -mean * (1.0 - random.random::<f64>()).ln()
    }

    /// Response times of an M/M/1 queue that is in its steady state from the beginning, by windows; the service takes 1.
    fn queue(random: &mut SmallRng, load: f64, windows: usize, requests: usize) -> Series {
        let mut wait = 0.0;
        if random.random::<f64>() < load {
            wait = exponential(random, 1.0 / (1.0 - load));
        }
        series((0..windows).map(|_| {
            let mut sum = 0.0;
            for _ in 0..requests {
                let response = wait + exponential(random, 1.0);
                sum += response;
                wait = f64::max(response - exponential(random, 1.0 / load), 0.0);
            }
            sum / requests as f64
        }))
    }

    /// A little noise around 10, each value as the one before, to this degree.
    fn noise(random: &mut SmallRng, alike: f64, windows: usize) -> Series {
        let mut value = 0.0;
        series((0..windows).map(|_| {
            let normal: f64 = (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0;
            value = alike * value + normal;
            10.0 + value
        }))
    }

    /// Shares of runs that seem not to be stationary, and of those that seem to fall.
    fn shares(runs: u32, mut run: impl FnMut(&mut SmallRng) -> Series) -> (f64, f64) {
        let mut random = SmallRng::seed_from_u64(7);
        let (mut unsettled, mut falling) = (0, 0);
        for _ in 0..runs {
            let series = run(&mut random);
            unsettled += u32::from(!series.settling().expect("enough slots").stationary);
            falling += u32::from(series.fall().is_some());
        }
        (f64::from(unsettled) / f64::from(runs), f64::from(falling) / f64::from(runs))
    }

    /// As they were found when the rules were made; the figures of the documentation are these.
    #[test]
    fn runs_that_are_what_they_are_from_the_beginning_hardly_ever_seem_to_fall() {
        for (what, (unsettled, falling), most_unsettled) in [
            ("noise, 40", shares(1_000, |random| noise(random, 0.0, 40)), 0.03),
            ("noise, 256", shares(1_000, |random| noise(random, 0.0, 256)), 0.01),
            ("a little alike, 40", shares(1_000, |random| noise(random, 0.5, 40)), 0.05),
            ("very much alike, 40", shares(1_000, |random| noise(random, 0.9, 40)), 0.2),
            ("very much alike, 256", shares(1_000, |random| noise(random, 0.9, 256)), 0.05),
            ("queue at 80 %, 40 x 80", shares(500, |random| queue(random, 0.8, 40, 80)), 0.1),
            ("queue at 90 %, 40 x 90", shares(500, |random| queue(random, 0.9, 40, 90)), 0.15),
            ("queue at 90 %, 40 x 900", shares(100, |random| queue(random, 0.9, 40, 900)), 0.15),
        ] {
            println!("{what}: {unsettled:.4} not stationary, {falling:.4} falling");
            assert!(unsettled <= most_unsettled, "{what}: {unsettled}");
            assert!(falling <= 0.005, "{what}: {falling}");
        }
    }

    /// Falls to 100 from 100 more, down to a share of that every so many slots.
    fn warming_up(random: &mut SmallRng, windows: usize, constant: f64) -> Series {
        series((0..windows).map(|n| {
            let noise = 0.9 + 0.2 * random.random::<f64>();
            (100.0 + 300.0 * (-(n as f64) / constant).exp()) * noise
        }))
    }

    #[test]
    fn a_warm_up_as_long_as_the_run_is_seen() {
        for windows in [40_u16, 256] {
            let constant = f64::from(windows) / 2.0;
            let (unsettled, falling) =
                shares(200, |random| warming_up(random, windows.into(), constant));
            assert!(unsettled > 0.95 && falling > 0.95, "{windows}: {unsettled} {falling}");
        }
    }

    #[test]
    fn a_short_warm_up_is_left_out_and_the_rest_is_stationary() {
        let mut random = SmallRng::seed_from_u64(3);
        let warm = warming_up(&mut random, 256, 8.0);
        let settling = warm.settling().expect("enough slots");
        assert!(
            settling.stationary && (16.0..64.0).contains(&settling.transient_s),
            "{settling:?}"
        );
        assert!(warm.fall().is_none());
    }

    #[test]
    fn response_times_that_rise_are_not_stationary_and_fall_nowhere() {
        let rising = series((0..100).map(f64::from));
        assert!(!rising.settling().expect("enough slots").stationary);
        // Two levels, as virtual time has them: no fall that goes on.
        let steps = series((0..40).map(|n| if n < 20 { 20.0 } else { 10.0 }));
        assert!(steps.fall().is_none());
        assert!(rising.fall().is_none(), "a service that gets slower fails for that");
    }

    #[test]
    fn a_run_of_equal_times_has_no_transient() {
        let settling = series([3.1; 50]).settling().expect("enough slots");
        assert_eq!((settling.transient_s, settling.stationary), (0.0, true));
        assert_eq!(series([3.1; 19]).settling(), None, "too few slots to say");
    }

    proptest! {
        /// What is found at once by formula is what comes out when every choice is tried.
        #[test]
        fn no_other_choice_makes_the_mean_more_certain(
            means in prop::collection::vec(0_u32..1_000_000, 20..256),
        ) {
            let means: Vec<f64> = means.into_iter().map(f64::from).collect();
            let error = |d: usize| {
                let rest = &means[d..];
                let mean = rest.iter().sum::<f64>() / rest.len() as f64;
                let squares: f64 = rest.iter().map(|x| (x - mean).powi(2)).sum();
                squares / (rest.len() as f64).powi(2)
            };
            let found = series(means.iter().copied()).transient();
            prop_assert!(found <= means.len() / 2);
            let best = (0..=means.len() / 2).map(error).fold(f64::INFINITY, f64::min);
            prop_assert!(error(found) <= best * (1.0 + 1e-6), "{} {}", error(found), best);
        }
    }
}
