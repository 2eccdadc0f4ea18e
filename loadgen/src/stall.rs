//! Moments in which all routes were slow together: what stops a whole process shows on every route at once.

use std::{collections::BTreeSet, time::Duration};

use statrs::distribution::{Binomial, DiscreteCDF};

use crate::{
    report::Stall,
    slots::{AddUp, MAX_SLOTS, Slots},
};

/// Routes whose slots are kept; a run of more says nothing about the others.
pub(crate) const MAX_ROUTES: usize = 64;
/// Buckets to a power of two: 12 % wide.
const SUB_BITS: u32 = 3;
/// Times are counted in steps of so many bits of nanoseconds, about a microsecond.
const STEP_BITS: u32 = 10;
/// The share of a route's requests that is slow by definition.
const SLOW: f64 = 0.01;
/// A route with fewer requests in a slot says nothing about it.
const MIN_REQUESTS: u64 = 20;
/// A slot in which less than this share of a route's requests is slow is no stall, however sure that it is more than
/// elsewhere.
const MIN_SHARE: f64 = 0.05;
/// How likely a run without a stall may be to show one, over all its slots.
const FALSE_ALARM: f64 = 0.01;

/// By bucket.
#[derive(Clone, Debug, Default)]
struct Counts(Vec<u32>);

impl AddUp for Counts {
    fn add_up(&mut self, Self(theirs): Self) {
        let Self(mine) = self;
        if mine.len() < theirs.len() {
            mine.resize(theirs.len(), 0);
        }
        mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine = mine.saturating_add(theirs));
    }
}

/// Response times of one route by slot, as coarse as they may be: its memory is bounded, a few hundred bytes a slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct TimesBySlot {
    slots: Slots<Counts, MAX_SLOTS>,
}

fn bucket(time: Duration) -> usize {
    let steps = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) >> STEP_BITS;
    let shift = (63 - (steps | (1 << SUB_BITS)).leading_zeros()) - SUB_BITS;
    ((shift << SUB_BITS) + (steps >> shift) as u32) as usize
}

impl TimesBySlot {
    /// Counts a request that was due at `intended`, in slots of `width`, or of longer ones if they become too many.
    pub(crate) fn add(&mut self, intended: Duration, time: Duration, width: Duration) {
        self.slots.begin(width);
        let (Counts(counts), bucket) = (self.slots.at(intended), bucket(time));
        if counts.len() <= bucket {
            counts.resize(bucket + 1, 0);
        }
        counts[bucket] += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.slots.merge(other.slots.clone());
    }

    /// Requests and slow ones, slot by slot. Slow is what lies above the bucket of the p99, so that no more than one
    /// in a hundred is.
    fn slow(&self) -> Vec<(u64, u64)> {
        let mut all = Counts::default();
        self.slots.iter().for_each(|slot| all.add_up(slot.clone()));
        let Counts(all) = all;
        let total: u64 = all.iter().map(|n| u64::from(*n)).sum();
        let mut above = total;
        let cut = all.iter().position(|n| {
            above -= u64::from(*n);
            above as f64 <= SLOW * total as f64
        });
        let cut = cut.map_or(0, |bucket| bucket + 1);
        let sum = |counts: &[u32]| counts.iter().map(|n| u64::from(*n)).sum();
        let slot = |Counts(slot): &Counts| (sum(slot), sum(slot.get(cut..).unwrap_or_default()));
        self.slots.iter().map(slot).collect()
    }
}

/// The stalls of a run, in order; neighbouring ones are one. Of a single route there is nothing to say.
///
/// A slot is one if each route with enough requests in it has significantly more slow ones than one in a hundred, by
/// the exact binomial test, and at least [`MIN_SHARE`] of them. The level of each test is [`FALSE_ALARM`] over all
/// slots. A false alarm needs all of the tests to be wrong, however much routes depend on each other. What makes the slow
/// requests of all of them come together is no noise: a queue that they share shows, too.
pub(crate) fn stalls<'r>(
    routes: impl IntoIterator<Item = &'r TimesBySlot>,
    measured: Duration,
) -> Vec<Stall> {
    let mut routes: Vec<TimesBySlot> = routes.into_iter().cloned().collect();
    let width = routes.iter().map(|route| route.slots.width()).max().unwrap_or_default();
    if width.is_zero() {
        return Vec::new();
    }
    routes.iter_mut().for_each(|route| route.slots.widen(width));
    let slow: Vec<Vec<(u64, u64)>> = routes.iter().map(TimesBySlot::slow).collect();
    let slots = slow.iter().map(Vec::len).max().unwrap_or(0);
    let level = FALSE_ALARM / slots.max(1) as f64;
    let mut found: Vec<(usize, Stall)> = Vec::new();
    // Those of the stall that is under way.
    let mut slow_routes = BTreeSet::new();
    for slot in 0..slots {
        let here = slow.iter().enumerate().filter_map(|(route, slots)| {
            let (requests, slow) = *slots.get(slot)?;
            (requests >= MIN_REQUESTS).then_some((route, requests, slow))
        });
        let here: Vec<(usize, u64, u64)> = here.collect();
        let at = width * slot as u32;
        if here.len() < 2 || at >= measured {
            continue;
        }
        if !here.iter().all(|(_, requests, slow)| is_stalled(*requests, *slow, level)) {
            continue;
        }
        let (requests, slow) = here.iter().fold((0, 0), |sum, (_, n, k)| (sum.0 + n, sum.1 + k));
        let width_s = width.min(measured - at).as_secs_f64();
        match found.last_mut() {
            Some((last, stall)) if *last + 1 == slot => {
                *last = slot;
                slow_routes.extend(here.iter().map(|(route, ..)| *route));
                stall.routes = slow_routes.len() as u64;
                stall.width_s += width_s;
                stall.slow += slow;
                stall.requests += requests;
            }
            _ => {
                slow_routes = here.iter().map(|(route, ..)| *route).collect();
                let routes = here.len() as u64;
                let at_s = at.as_secs_f64();
                found.push((slot, Stall { at_s, width_s, routes, slow, requests }));
            }
        }
    }
    found.into_iter().map(|(_, stall)| stall).collect()
}

fn is_stalled(requests: u64, slow: u64, level: f64) -> bool {
    if (slow as f64) < MIN_SHARE * requests as f64 || slow == 0 {
        return false;
    }
    // How likely so many are, or more, if each request is slow once in a hundred times.
    Binomial::new(SLOW, requests).is_ok_and(|expected| expected.sf(slow - 1) <= level)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    const RUN: Duration = Duration::from_secs(10);
    const WIDTH: Duration = Duration::from_millis(250);
    /// Of one route, evenly spread.
    const REQUESTS: u32 = 4_000;

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    /// A route with exponential times of 10 ms on average, to which `delay` adds what it likes by when a request is
    /// due.
    fn route(random: &mut SmallRng, delay: impl Fn(Duration) -> Duration) -> TimesBySlot {
        let mut times = TimesBySlot::default();
        for n in 0..REQUESTS {
            let at = RUN.mul_f64(f64::from(n) / f64::from(REQUESTS));
            let uniform: f64 = random.random();
            times.add(at, ms(-10.0 * (1.0 - uniform).ln()) + delay(at), WIDTH);
        }
        times
    }

    /// What is due while the process stands still waits until it goes on.
    fn standstill(begin: f64, end: f64) -> impl Fn(Duration) -> Duration {
        move |at| if at >= ms(begin) { ms(end).saturating_sub(at) } else { Duration::ZERO }
    }

    fn found(routes: &[TimesBySlot]) -> Vec<Stall> {
        stalls(routes, RUN)
    }

    #[test]
    fn a_process_that_stands_still_for_a_while_is_found_in_its_place() {
        let mut random = SmallRng::seed_from_u64(7);
        let routes: Vec<_> =
            (0..3).map(|_| route(&mut random, standstill(5_000.0, 5_100.0))).collect();
        let [stall] = &*found(&routes) else { panic!("{:?}", found(&routes)) };
        assert_eq!((stall.at_s, stall.width_s, stall.routes), (5.0, 0.25, 3), "{stall:?}");
        assert_eq!(stall.requests, 300);
        // The slowest hundredth of all, where it is.
        assert!((60..=120).contains(&stall.slow), "{stall:?}");
    }

    #[test]
    fn a_stall_that_lies_in_two_slots_is_one() {
        let mut random = SmallRng::seed_from_u64(7);
        let late = |at| if (ms(5_210.0)..ms(5_290.0)).contains(&at) { ms(300.0) } else { ms(0.0) };
        let routes: Vec<_> = (0..3).map(|_| route(&mut random, late)).collect();
        let [stall] = &*found(&routes) else { panic!("{:?}", found(&routes)) };
        assert_eq!((stall.at_s, stall.width_s, stall.routes), (5.0, 0.5, 3), "{stall:?}");
        assert_eq!(stall.requests, 600);
    }

    #[test]
    fn one_route_that_stands_still_is_no_stall() {
        let mut random = SmallRng::seed_from_u64(7);
        let stalled = route(&mut random, standstill(5_000.0, 5_100.0));
        let other = route(&mut random, |_| Duration::ZERO);
        assert_eq!(found(&[stalled.clone(), other]), []);
        assert_eq!(found(&[stalled]), [], "there is no other route to compare it with");
        assert_eq!(found(&[]), []);
    }

    #[test]
    fn a_route_with_a_few_requests_neither_makes_a_stall_nor_hides_one() {
        let mut random = SmallRng::seed_from_u64(7);
        let mut rare = TimesBySlot::default();
        for n in 0..100 {
            rare.add(RUN / 100 * n, ms(10.0), WIDTH);
        }
        let mut routes: Vec<_> =
            (0..2).map(|_| route(&mut random, standstill(5_000.0, 5_100.0))).collect();
        routes.push(rare.clone());
        assert_eq!(found(&routes).len(), 1);
        assert_eq!(found(&[routes[0].clone(), rare]), []);
    }

    #[test]
    fn runs_without_a_stall_show_none() {
        let mut random = SmallRng::seed_from_u64(1);
        let alarms = (0..300).filter(|_| {
            // A service is a little slower at one time than at another.
            let slower: f64 = random.random_range(0.0..0.5);
            let drift =
                move |at: Duration| ms(slower * 10.0 * (at.as_secs_f64() * 0.6).sin().abs());
            let routes: Vec<_> = (0..2).map(|_| route(&mut random, drift)).collect();
            !found(&routes).is_empty()
        });
        assert!(alarms.count() <= 3, "more than 1 % of the runs");
    }

    #[test]
    fn memory_does_not_grow_with_the_length_of_a_run_and_nothing_is_lost() {
        let mut times = TimesBySlot::default();
        for n in 0..10_000 {
            times.add(WIDTH * n, ms(f64::from(n)), WIDTH);
        }
        assert!(times.slots.iter().len() <= MAX_SLOTS, "{:?}", times.slots.width());
        assert!(times.slots.iter().all(|slot| slot.0.len() < 300));
        let (requests, slow) =
            times.slow().iter().fold((0, 0), |sum, (n, k)| (sum.0 + n, sum.1 + k));
        assert_eq!(requests, 10_000);
        assert!(slow <= 100, "{slow}");
    }

    #[test]
    fn merging_is_adding_whatever_the_widths() {
        let [mut whole, mut short, mut long] = [(); 3].map(|()| TimesBySlot::default());
        for n in 0..2_000 {
            let (at, time) = (WIDTH * n, ms(f64::from(n % 300)));
            whole.add(at, time, WIDTH);
            // The first one ends before its slots become longer.
            if n < 100 { &mut short } else { &mut long }.add(at, time, WIDTH);
        }
        assert_ne!(short.slots.width(), long.slots.width());
        for (mut first, second) in [(short.clone(), &long), (long.clone(), &short)] {
            first.merge(second);
            assert_eq!((first.slots.width(), first.slow()), (whole.slots.width(), whole.slow()));
        }
    }

    #[test]
    fn buckets_rise_with_the_time() {
        let times = (0..4_000_u64).chain((4_000..10_000_000_000).step_by(7_777_777));
        let mut last = 0;
        for time in times.map(Duration::from_nanos) {
            assert!(bucket(time) >= last, "{time:?}");
            last = bucket(time);
        }
        assert!(bucket(Duration::MAX) < 450);
    }
}
