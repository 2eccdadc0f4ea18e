//! Little's law, `N = λ · W`: do as many requests wait for their answers as their times say?
//!
//! Two measurements of one thing. One counts requests as they come and go, and reads no clock; it is looked at every
//! few milliseconds. The other adds up what the clock said of each request. Where times are wrong, or requests lost,
//! they part.

use std::time::Duration;

use crate::report::LittlesLaw;

/// From one moment at which requests are counted to the next, at first.
const EVERY: Duration = Duration::from_millis(20);
/// Moments that are kept. Past that, every other one is dropped, and the next ones come half as often.
const MAX_MOMENTS: usize = 4_096;
/// Fewer say nothing.
const MIN_MOMENTS: usize = 10;
/// What the two may differ by, as a share.
const TOLERANCE: f64 = 0.01;
/// Between counting a request and reading the clock for it, seconds; also where the thread is held up meanwhile, on
/// average.
const RESOLUTION_S: f64 = 5e-6;
/// Requests that a moment may catch just between the two, over the whole run, beyond what the average says.
const CAUGHT: f64 = 10.0;

/// What was in flight over a phase.
#[derive(Clone, Debug)]
pub(crate) struct Occupancy {
    /// Of the phase.
    end: Duration,
    /// The service times, as far as they lie within the phase.
    busy: Duration,
    /// What of that lies in the future, seen from when it was added.
    ahead: Duration,
    /// Requests that are added have ended by now; set before they are.
    pub(crate) present: Duration,
    requests: u64,
    every: Duration,
    next: Duration,
    moments: Vec<Moment>,
    /// How many more requests (fewer, if negative) are in flight by their times at a moment than at the one before.
    /// Has one entry more than there are moments.
    ///
    /// With those that begin or end just then, as in virtual time happens all the time.
    with_ends: Vec<i64>,
    /// Without them.
    within: Vec<i64>,
}

#[derive(Clone, Copy, Debug)]
struct Moment {
    at: Duration,
    counted: u64,
}

impl Occupancy {
    pub(crate) fn new(duration: Duration) -> Self {
        Self {
            end: duration,
            busy: Duration::ZERO,
            ahead: Duration::ZERO,
            present: Duration::MAX,
            requests: 0,
            every: EVERY,
            next: Duration::ZERO,
            moments: Vec::new(),
            with_ends: vec![0],
            within: vec![0],
        }
    }

    /// The phase ends here, earlier than planned.
    pub(crate) fn end_at(&mut self, end: Duration) {
        self.end = self.end.min(end);
    }

    /// So many requests were in flight at a moment: no request has been added that ended later.
    pub(crate) fn count(&mut self, at: Duration, counted: u64) {
        if at < self.next {
            return;
        }
        if self.moments.len() == MAX_MOMENTS {
            self.thin_out();
        }
        self.next = at + self.every;
        self.moments.push(Moment { at, counted });
        self.with_ends.push(0);
        self.within.push(0);
    }

    /// Adds a request that has ended.
    pub(crate) fn add(&mut self, dispatched: Duration, received: Duration) {
        self.requests += 1;
        self.add_wait(dispatched, received);
    }

    /// Adds a part of a request.
    pub(crate) fn add_wait(&mut self, dispatched: Duration, received: Duration) {
        let within = |at: Duration| at.min(self.end);
        self.busy += within(received).saturating_sub(within(dispatched));
        self.ahead += within(received).saturating_sub(within(self.present.max(dispatched)));
        let before = |at: Duration| self.moments.partition_point(|moment| moment.at < at);
        let upto = |at: Duration| self.moments.partition_point(|moment| moment.at <= at);
        let (from, past) = (before(dispatched), upto(received));
        if from < past {
            self.with_ends[from] += 1;
            self.with_ends[past] -= 1;
            let (from, past) = (upto(dispatched), before(received));
            if from < past {
                self.within[from] += 1;
                self.within[past] -= 1;
            }
        }
    }

    /// Drops every other moment.
    fn thin_out(&mut self) {
        self.every *= 2;
        self.moments = self.moments.iter().copied().step_by(2).collect();
        for changes in [&mut self.with_ends, &mut self.within] {
            let mut kept = vec![0; self.moments.len() + 1];
            // What changes at a moment that is dropped is seen at the next.
            changes
                .iter()
                .enumerate()
                .for_each(|(index, change)| kept[index.div_ceil(2)] += change);
            *changes = kept;
        }
    }

    /// Both measurements, of a phase that lasted so long; `lost` requests were dispatched, and nobody knows when
    /// they ended. `None` if there is too little to say.
    pub(crate) fn law(&self, measured: Duration, lost: u64) -> Option<LittlesLaw> {
        let samples = self.moments.iter().take_while(|moment| moment.at < measured).count();
        if samples < MIN_MOMENTS || self.requests == 0 {
            return None;
        }
        let n = samples as f64;
        let counted: u64 = self.moments[..samples].iter().map(|moment| moment.counted).sum();
        let expected = self.busy.as_secs_f64() / measured.as_secs_f64();
        // What the same moments show by the requests' own times: how far those moments are from the rest of the run
        // is known, and need not be estimated.
        let at_moments = |changes: &[i64]| {
            let sum =
                |(level, sum): (i64, i64), change: &i64| (level + change, sum + level + change);
            changes[..samples].iter().fold((0, 0), sum).1 as f64 / n
        };
        let (least, most) = (at_moments(&self.within), at_moments(&self.with_ends));
        // But for times that reach into the future: those are wrong.
        let credible = expected - self.ahead.as_secs_f64() / measured.as_secs_f64();
        let by_chance = (credible - least).max(most - credible).max(0.0);
        let between = RESOLUTION_S * self.requests as f64 / measured.as_secs_f64() + CAUGHT / n;
        Some(LittlesLaw {
            sampled: counted as f64 / n,
            expected,
            tolerance: TOLERANCE * expected + by_chance + between + lost as f64,
            samples: samples as u64,
        })
    }
}

impl LittlesLaw {
    /// Do the two measurements agree?
    #[must_use]
    pub fn holds(&self) -> bool {
        (self.sampled - self.expected).abs() <= self.tolerance
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A run of requests by dispatch and end, counted every 20 ms, whose times are told as `told` says.
    fn law_of(
        measured: Duration,
        requests: &[(Duration, Duration)],
        told: impl Fn(Duration) -> Duration,
    ) -> LittlesLaw {
        let mut occupancy = Occupancy::new(measured);
        let mut by_end: Vec<_> = requests.to_vec();
        by_end.sort_by_key(|(_, end)| *end);
        let mut ended = by_end.into_iter().peekable();
        let mut add = |occupancy: &mut Occupancy, until: Duration| {
            while let Some((from, to)) = ended.next_if(|(_, to)| *to <= until) {
                occupancy.present = to;
                occupancy.add(from, from + told(to - from));
            }
        };
        for n in 0.. {
            // Never at a beginning or an end, which are whole milliseconds.
            let at = EVERY * n + MS / 2;
            if at >= measured {
                break;
            }
            add(&mut occupancy, at);
            let counted = requests.iter().filter(|(from, to)| *from < at && at < *to).count();
            occupancy.count(at, counted as u64);
        }
        add(&mut occupancy, Duration::MAX);
        occupancy.law(measured, 0).expect("enough moments")
    }

    /// Ten users of a service that takes 90 ms, and 7 ms between: out of step with the moments.
    fn ten_users(seconds: u32) -> Vec<(Duration, Duration)> {
        let user = |user: u32| {
            (0..=seconds * 1_000 / 97).map(move |n| {
                let from = MS * (n * 97 + user * 7);
                (from, from + MS * 90)
            })
        };
        (0..10).flat_map(user).collect()
    }

    #[test]
    fn ten_users_who_wait_most_of_their_time_are_nine_in_flight() {
        let law = law_of(Duration::from_secs(10), &ten_users(10), |time| time);
        let known = 10.0 * 90.0 / 97.0;
        assert!((law.expected / known - 1.0).abs() < 0.03, "{law:?}");
        assert!(law.holds() && (law.sampled / law.expected - 1.0).abs() < 0.02, "{law:?}");
        assert_eq!(law.samples, 500);
    }

    #[test]
    fn times_that_are_too_short_or_too_long_break_the_law() {
        for told in [0.5, 0.9, 1.1, 2.0, 10.0] {
            let law = law_of(Duration::from_secs(10), &ten_users(10), |time| time.mul_f64(told));
            assert!(!law.holds(), "told {told} times the truth: {law:?}");
        }
    }

    #[test]
    fn requests_that_are_lost_break_the_law_unless_it_is_known() {
        let (mut occupancy, requests) = (Occupancy::new(Duration::from_secs(1)), 100);
        for n in 0..50 {
            occupancy.count(EVERY * n, requests);
        }
        for _ in 0..90 {
            occupancy.add(Duration::ZERO, Duration::from_secs(1));
        }
        let law = |lost| occupancy.law(Duration::from_secs(1), lost).expect("enough moments");
        assert!(!law(0).holds(), "{:?}", law(0));
        assert!(law(10).holds(), "{:?}", law(10));
    }

    #[test]
    fn arrivals_in_step_with_the_moments_are_no_breach() {
        // 50/s of 5 ms each: a quarter of a request is in flight, and the moments never see one.
        let requests: Vec<_> = (0..500).map(|n| (MS * (20 * n + 10), MS * (20 * n + 15))).collect();
        let law = law_of(Duration::from_secs(10), &requests, |time| time);
        assert!(law.holds() && law.sampled < 0.01 && law.expected > 0.24, "{law:?}");
    }

    #[test]
    fn too_few_moments_say_nothing() {
        let mut occupancy = Occupancy::new(Duration::from_secs(1));
        occupancy.add(Duration::ZERO, MS);
        (0..9).for_each(|n| occupancy.count(EVERY * n, 0));
        assert_eq!(occupancy.law(Duration::from_secs(1), 0), None);
        occupancy.count(EVERY * 9, 0);
        assert!(occupancy.law(Duration::from_secs(1), 0).is_some());
    }

    #[test]
    fn a_long_run_keeps_no_more_moments_than_a_short_one() {
        let mut occupancy = Occupancy::new(Duration::from_secs(36_000));
        for n in 0..1_800_000 {
            let at = EVERY * n;
            // One that lasts for 25 ms, every 40 ms.
            if n % 2 == 1 && n > 1 {
                occupancy.add(at - MS * 25, at);
            }
            occupancy.count(at + MS, u64::from(n % 2 == 0));
        }
        assert!(occupancy.moments.len() <= MAX_MOMENTS && occupancy.is_whole());
        let law = occupancy.law(Duration::from_secs(36_000), 0).expect("enough");
        assert!((law.expected - 0.625).abs() < 1e-3, "{law:?}");
    }

    impl Occupancy {
        /// Every request that began has ended.
        fn is_whole(&self) -> bool {
            let sums = [&self.with_ends, &self.within].map(|changes| changes.iter().sum::<i64>());
            sums == [0, 0] && self.with_ends.len() == self.moments.len() + 1
        }
    }

    proptest! {
        /// Whatever requests there are: true times never break the law.
        #[test]
        fn true_times_never_break_the_law(
            requests in prop::collection::vec((0_u32..1_990, 0_u32..500), 1..300),
        ) {
            let requests: Vec<_> =
                requests.into_iter().map(|(from, time)| (MS * from, MS * (from + time))).collect();
            let law = law_of(Duration::from_secs(2), &requests, |time| time);
            prop_assert!(law.holds(), "{:?}", law);
        }

        /// Moments that are dropped take nothing with them: what is left is as if only it had been counted.
        #[test]
        fn thinning_out_leaves_what_the_other_moments_saw(
            requests in prop::collection::vec((0_u32..5_000, 0_u32..2_000), 1..200),
        ) {
            let measured = Duration::from_secs(10);
            let (mut all, mut half) = (Occupancy::new(measured), Occupancy::new(measured));
            half.every = EVERY * 2;
            for n in 0..500 {
                all.count(EVERY * n + MS / 2, 1);
                half.count(EVERY * n + MS / 2, 1);
            }
            for (from, time) in requests {
                all.add(MS * from, MS * (from + time));
                half.add(MS * from, MS * (from + time));
            }
            all.thin_out();
            prop_assert_eq!(&all.with_ends, &half.with_ends);
            prop_assert_eq!(&all.within, &half.within);
        }
    }
}
