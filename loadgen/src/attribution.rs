//! Where the time of slow requests goes: the share of each part in the response times around a quantile.
//!
//! The parts of a request are added up under its response time's bucket and its time block, so memory does not
//! grow with requests, and a group of ranks can be taken out of any selection of blocks.

use std::{collections::BTreeMap, time::Duration};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::{
    report::Attribution,
    sink::Sample,
    slots::{AddUp, Slots},
};

/// Which quantiles are taken apart.
const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];
/// The ranks around the median that others are compared with.
const MIDDLE: (f64, f64) = (0.4, 0.6);
/// Blocks of time that a run is cut into; dependence within one does not narrow the intervals.
pub(crate) const BLOCKS: usize = 40;
/// Past this many blocks, of a run whose length nobody knew, each two become one.
const MAX_BLOCKS: usize = 2 * BLOCKS;
/// Fewer blocks with requests, or fewer requests in the group, and nothing is concluded.
const MIN_BLOCKS: usize = 20;
const MIN_REQUESTS: f64 = 50.0;
/// Resampled runs, and the share of them that each end of an interval leaves out.
const RESAMPLES: usize = 1_000;
const TAIL: f64 = 0.05;
/// A part that takes more than this of the time, with the interval's whole length, dominates.
const DOMINANT: f64 = 0.5;
/// Buckets to a power of two: 3 % wide.
const SUB_BITS: u32 = 5;

/// A part of a response time.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Part {
    Lag,
    /// Waiting for a worker of the service's runtime.
    Runtime,
    Outside,
    /// A phase of the layer, by its number there.
    Phase(u8),
    Handler,
}

/// The parts of the requests of one route, or of several.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts {
    /// In the order in which they were first met: their position is that of their sums.
    parts: Vec<Part>,
    blocks: Slots<Block, MAX_BLOCKS>,
}

/// The requests that were due in one stretch of the run, by bucket of their response time.
type Block = BTreeMap<u32, Sums>;

#[derive(Clone, Debug, Default)]
struct Sums {
    requests: u64,
    /// Seconds, by the position of the part; those that are missing are zero.
    times: Vec<f64>,
}

impl AddUp for Block {
    fn add_up(&mut self, other: Self) {
        for (bucket, theirs) in other {
            self.entry(bucket).or_default().add(&theirs);
        }
    }
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        if self.times.len() < other.times.len() {
            self.times.resize(other.times.len(), 0.0);
        }
        self.times.iter_mut().zip(&other.times).for_each(|(mine, theirs)| *mine += theirs);
    }
}

/// The bucket of a response time; they rise with it.
fn bucket(time: Duration) -> u32 {
    let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let shift = (63 - (ns | (1 << SUB_BITS)).leading_zeros()) - SUB_BITS;
    (shift << SUB_BITS) + (ns >> shift) as u32
}

/// The position of a part, which is given one if it has none.
fn place(known: &mut Vec<Part>, part: Part) -> usize {
    known.iter().position(|known| *known == part).unwrap_or_else(|| {
        known.push(part);
        known.len() - 1
    })
}

impl Parts {
    /// Adds a success that the layer saw, in a run that is cut into blocks of `width`, or longer ones if they
    /// become too many.
    pub(crate) fn add(&mut self, sample: &Sample, width: Duration) {
        let Some(server) = &sample.server else { return };
        self.blocks.begin(width);
        let block = self.blocks.at(sample.intended);
        let known = &mut self.parts;
        let sums = block.entry(bucket(sample.lag + sample.service_time)).or_default();
        sums.requests += 1;
        let mut add = |part: Part, seconds: f64| {
            let position = place(known, part);
            if sums.times.len() <= position {
                sums.times.resize(position + 1, 0.0);
            }
            sums.times[position] += seconds;
        };
        add(Part::Lag, sample.lag.as_secs_f64());
        if !sample.waited.is_zero() {
            add(Part::Runtime, sample.waited.as_secs_f64());
        }
        let outside = sample.service_time.saturating_sub(server.server_time + sample.waited);
        add(Part::Outside, outside.as_secs_f64());
        add(Part::Handler, server.handler.as_secs_f64());
        // Phases that overlap share the time in which they did.
        let in_phases = server.server_time.saturating_sub(server.handler).as_secs_f64();
        let sum: f64 = server.phases.iter().map(|phase| phase.time.as_secs_f64()).sum();
        let scale = if sum > in_phases { in_phases / sum } else { 1.0 };
        for phase in &server.phases {
            add(Part::Phase(phase.phase), phase.time.as_secs_f64() * scale);
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        let places: Vec<usize> =
            other.parts.iter().map(|part| place(&mut self.parts, *part)).collect();
        let mut theirs = other.blocks.clone();
        for sums in theirs.iter_mut().flat_map(BTreeMap::values_mut) {
            let mut moved = vec![0.0; self.parts.len()];
            for (place, seconds) in places.iter().zip(&sums.times) {
                moved[*place] = *seconds;
            }
            sums.times = moved;
        }
        self.blocks.merge(theirs);
    }

    /// Takes the response times around each quantile apart; `name` says what a part is called. Those with less
    /// than a request in their group are left out.
    pub(crate) fn attribute(&self, name: impl Fn(Part) -> String, seed: u64) -> Vec<Attribution> {
        let table = Table::of(self);
        let filled = self.blocks.iter().enumerate().filter(|(_, block)| !block.is_empty());
        let blocks: Vec<usize> = filled.map(|(position, _)| position).collect();
        let around = |run: &Run<'_>, q: f64| run.group(q - (1.0 - q) / 2.0, q + (1.0 - q) / 2.0);
        let whole = table.run(blocks.iter().map(|block| (*block, 1.0)).collect());
        let groups: Vec<(f64, Group)> = QUANTILES
            .iter()
            .map(|q| (*q, around(&whole, *q)))
            .filter(|(_, group)| group.requests > 1.0 - 1e-9)
            .collect();
        let middle = whole.group(MIDDLE.0, MIDDLE.1);
        let mut random = SmallRng::seed_from_u64(seed);
        // By quantile and part: the shares in each resampled run.
        let mut resampled =
            vec![vec![Vec::with_capacity(RESAMPLES); self.parts.len()]; groups.len()];
        let enough = blocks.len() >= MIN_BLOCKS;
        for _ in 0..if enough { RESAMPLES } else { 0 } {
            let mut times = vec![0_u32; table.blocks.len()];
            for _ in &blocks {
                times[blocks[random.random_range(0..blocks.len())]] += 1;
            }
            let drawn = times.iter().enumerate().filter(|(_, times)| **times > 0);
            let run = table.run(drawn.map(|(block, times)| (block, f64::from(*times))).collect());
            for ((q, _), shares) in groups.iter().zip(&mut resampled) {
                for (into, share) in shares.iter_mut().zip(around(&run, *q).shares()) {
                    into.push(share);
                }
            }
        }
        let names: Vec<String> = self.parts.iter().map(|part| name(*part)).collect();
        let attribution = |((q, group), resampled): (&(f64, Group), Vec<Vec<f64>>)| {
            let conclusive = enough && group.requests >= MIN_REQUESTS;
            let by_name = |values: Vec<f64>| names.iter().cloned().zip(values).collect();
            let ends: Vec<(f64, f64)> =
                resampled.into_iter().filter(|_| conclusive).filter_map(interval).collect();
            let dominant = ends.iter().position(|(low, _)| *low > DOMINANT);
            let excess =
                group.means().zip(middle.means()).map(|(here, there)| (here - there) * 1e6);
            Attribution {
                quantile: *q,
                requests: group.requests.round() as u64,
                response_us: group.means().sum::<f64>() * 1e6,
                shares: by_name(group.shares().collect()),
                low: by_name(ends.iter().map(|(low, _)| *low).collect()),
                high: by_name(ends.iter().map(|(_, high)| *high).collect()),
                excess_us: by_name(excess.collect()),
                dominant: dominant.map(|position| names[position].clone()),
            }
        };
        groups.iter().zip(resampled).map(attribution).collect()
    }
}

/// The interval that so many values lie in.
fn interval(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |share: f64| values[(share * last as f64).round() as usize];
    Some((at(TAIL), at(1.0 - TAIL)))
}

/// All blocks side by side, with a row for each bucket: the requests first and then the parts, each added up
/// over all rows before it, so that what lies between two ranks is a difference.
struct Table {
    width: usize,
    rows: usize,
    /// By block; one row more than there are buckets.
    blocks: Vec<Vec<f64>>,
}

impl Table {
    fn of(parts: &Parts) -> Self {
        let mut buckets: Vec<u32> =
            parts.blocks.iter().flat_map(|block| block.keys().copied()).collect();
        buckets.sort_unstable();
        buckets.dedup();
        let width = 1 + parts.parts.len();
        let added_up = |block: &Block| {
            let mut rows = vec![0.0; width];
            let mut sum = rows.clone();
            for bucket in &buckets {
                if let Some(sums) = block.get(bucket) {
                    sum[0] += sums.requests as f64;
                    sum[1..].iter_mut().zip(&sums.times).for_each(|(sum, time)| *sum += time);
                }
                rows.extend_from_slice(&sum);
            }
            rows
        };
        Self { width, rows: buckets.len(), blocks: parts.blocks.iter().map(added_up).collect() }
    }

    /// A run in which blocks occur so often.
    fn run(&self, blocks: Vec<(usize, f64)>) -> Run<'_> {
        let mut run = Run { table: self, blocks, requests: 0.0 };
        run.requests = run.at(self.rows, 0);
        run
    }
}

/// A run that is put together from blocks.
struct Run<'t> {
    table: &'t Table,
    /// By position, and how often.
    blocks: Vec<(usize, f64)>,
    requests: f64,
}

impl Run<'_> {
    /// The sum of a column over all rows before one.
    fn at(&self, row: usize, column: usize) -> f64 {
        let place = row * self.table.width + column;
        self.blocks.iter().map(|(block, weight)| weight * self.table.blocks[*block][place]).sum()
    }

    /// All times up to a rank. Within a bucket, requests are alike.
    fn up_to(&self, rank: f64) -> impl Iterator<Item = f64> {
        let (mut low, mut high) = (0, self.table.rows);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.at(middle, 0) <= rank {
                low = middle;
            } else {
                high = middle;
            }
        }
        let (before, after) = (self.at(low, 0), self.at(high, 0));
        let share =
            if after > before { ((rank - before) / (after - before)).clamp(0.0, 1.0) } else { 0.0 };
        (1..self.table.width).map(move |column| {
            let before = self.at(low, column);
            before + share * (self.at(high, column) - before)
        })
    }

    /// The requests between two ranks, as shares of all.
    fn group(&self, low: f64, high: f64) -> Group {
        let (low, high) = (low * self.requests, high * self.requests);
        let times = self.up_to(high).zip(self.up_to(low)).map(|(high, low)| (high - low).max(0.0));
        Group { requests: high - low, times: times.collect() }
    }
}

/// Requests of neighbouring ranks, and the time that went into each part.
struct Group {
    requests: f64,
    times: Vec<f64>,
}

impl Group {
    fn shares(&self) -> impl Iterator<Item = f64> {
        let total: f64 = self.times.iter().sum();
        self.times.iter().map(move |time| if total > 0.0 { time / total } else { 0.0 })
    }

    /// Seconds of a request.
    fn means(&self) -> impl Iterator<Item = f64> {
        self.times.iter().map(|time| if self.requests > 0.0 { time / self.requests } else { 0.0 })
    }
}

#[cfg(test)]
mod tests {
    use parallax_middleware::{Outcome, PhaseTime};
    use proptest::prelude::*;

    use super::*;
    use crate::{outcome::ClientOutcome, sink::ServerView, target::Answer};

    const RUN: Duration = Duration::from_secs(40);

    fn us(us: f64) -> Duration {
        Duration::from_secs_f64(us / 1e6)
    }

    /// A request that was due at a share of the run, with its parts in microseconds.
    fn sample(at: f64, lag: f64, outside: f64, phases: &[(u8, f64)], handler: f64) -> Sample {
        let in_phases: f64 = phases.iter().map(|(_, us)| us).sum();
        Sample {
            step: 0,
            intended: RUN.mul_f64(at),
            lag: us(lag),
            service_time: us(outside + in_phases + handler),
            waited: Duration::ZERO,
            handed: None,
            answer: Answer::without_response(ClientOutcome::Ok),
            server: Some(ServerView {
                route: 0,
                first_byte: None,
                server_time: us(in_phases + handler),
                outcome: Outcome::Ok,
                phases: phases
                    .iter()
                    .map(|(phase, time)| PhaseTime::new(*phase, us(*time)))
                    .collect(),
                handler: us(handler),
            }),
        }
    }

    fn name(part: Part) -> String {
        match part {
            Part::Lag => "lag".to_owned(),
            Part::Runtime => "runtime".to_owned(),
            Part::Outside => "outside".to_owned(),
            Part::Handler => "handler".to_owned(),
            Part::Phase(n) => format!("phase {n}"),
        }
    }

    fn attribute(samples: &[Sample]) -> Vec<Attribution> {
        let mut parts = Parts::default();
        samples.iter().for_each(|sample| parts.add(sample, RUN / BLOCKS as u32));
        parts.attribute(name, 7)
    }

    #[test]
    fn the_wait_for_the_runtime_is_a_part_of_its_own_and_not_outside() {
        let waited = |n: usize| {
            let sample = sample(n as f64 / 100.0, 100.0, 400.0, &[], 500.0);
            Sample { waited: us(300.0), ..sample }
        };
        let attributions = attribute(&(0..100).map(waited).collect::<Vec<_>>());
        let shares = &attributions[0].shares;
        for (part, share) in [("lag", 0.1), ("runtime", 0.3), ("outside", 0.1), ("handler", 0.5)] {
            assert!((shares[part] - share).abs() < 1e-9, "{part}: {shares:?}");
        }
    }

    /// 10,000 requests: the slowest 5 % wait 90 ms of their 100 for the pool, the others 1 of 10.
    fn two_kinds() -> Vec<Sample> {
        (0..10_000)
            .map(|n| {
                let at = f64::from(n) / 10_000.0;
                let jitter = f64::from(n % 97);
                match n % 20 {
                    0 => sample(at, 0.0, 1_000.0, &[(5, 90_000.0 + jitter)], 9_000.0),
                    _ => sample(at, 0.0, 1_000.0, &[(5, 1_000.0)], 8_000.0 + jitter),
                }
            })
            .collect()
    }

    #[test]
    fn buckets_rise_with_the_time_and_are_at_most_a_thirty_second_wide() {
        let mut last = bucket(Duration::ZERO);
        for ns in (1..5_000).chain((5_000..10_000_000_000).step_by(7_777_777)) {
            let next = bucket(Duration::from_nanos(ns));
            assert!(next >= last, "{ns}");
            last = next;
        }
        let ends = [1.0, 1.031, 1.1].map(|factor| bucket(Duration::from_secs_f64(factor)));
        assert!((1..=2).contains(&(ends[1] - ends[0])) && ends[2] - ends[0] >= 3, "{ends:?}");
    }

    #[test]
    fn the_tail_is_told_apart_from_the_middle_and_what_dominates_is_named() {
        let [p50, .., p99, p999] = &*attribute(&two_kinds()) else { panic!("four quantiles") };
        assert!((p50.shares["handler"] - 0.8).abs() < 0.01, "{p50:?}");
        assert_eq!(p50.dominant.as_deref(), Some("handler"));
        assert!((p99.shares["phase 5"] - 0.9).abs() < 0.01, "{p99:?}");
        assert_eq!(p99.dominant.as_deref(), Some("phase 5"));
        assert_eq!(p99.requests, 100);
        assert!((p99.response_us - 100_000.0).abs() < 200.0, "{p99:?}");
        assert!((p99.excess_us["phase 5"] - 89_000.0).abs() < 200.0, "{p99:?}");
        assert!(p99.excess_us["outside"].abs() < 1.0, "{p99:?}");
        // Ten requests say nothing.
        assert_eq!((p999.requests, &p999.dominant, p999.low.len()), (10, &None, 0));
    }

    #[test]
    fn half_of_the_time_does_not_dominate() {
        let even = |n: u32| {
            let at = f64::from(n) / 10_000.0;
            let more = f64::from(n * 7_919 % 400) - 200.0;
            sample(at, 0.0, 20.0, &[(5, 990.0 + more)], 990.0 - more)
        };
        let samples: Vec<Sample> = (0..10_000).map(even).collect();
        for attribution in attribute(&samples) {
            assert_eq!(attribution.dominant, None, "{attribution:?}");
        }
    }

    #[test]
    fn what_happened_in_one_stretch_of_the_run_only_has_a_wide_interval() {
        // All slow requests lie in two blocks of forty.
        let samples: Vec<Sample> = (0..10_000)
            .map(|n| {
                let at = f64::from(n) / 10_000.0;
                if (0.50..0.55).contains(&at) && n % 2 == 0 {
                    return sample(at, 0.0, 0.0, &[(5, 90_000.0)], 10_000.0);
                }
                sample(at, 0.0, 0.0, &[(5, 100.0)], 9_900.0 + f64::from(n % 97))
            })
            .collect();
        let attributions = attribute(&samples);
        let p99 = &attributions[2];
        assert!(p99.shares["phase 5"] > 0.85, "{p99:?}");
        // Two blocks are missing from one run in eight that is put together from forty at random.
        assert!(p99.low["phase 5"] < 0.1, "{p99:?}");
        assert_eq!(p99.dominant, None);
    }

    #[test]
    fn a_short_run_concludes_nothing() {
        let samples: Vec<Sample> = (0..1_000)
            .map(|n| sample(f64::from(n) / 4_000.0, 0.0, 0.0, &[(5, 900.0)], 100.0))
            .collect();
        for attribution in attribute(&samples) {
            assert_eq!((attribution.dominant, attribution.low.len()), (None, 0));
        }
        assert!(attribute(&[]).is_empty());
    }

    #[test]
    fn phases_that_overlap_share_the_time_in_which_they_did() {
        let mut overlapped = sample(0.5, 0.0, 0.0, &[(5, 600.0), (6, 600.0)], 400.0);
        let server = overlapped.server.as_mut().expect("there is one");
        (server.server_time, overlapped.service_time) = (us(1_000.0), us(1_000.0));
        let attributions = attribute(&[overlapped.clone(), overlapped]);
        let shares = &attributions[0].shares;
        assert!((shares["phase 5"] - 0.3).abs() < 1e-9 && (shares["handler"] - 0.4).abs() < 1e-9);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn shares_sum_to_one_and_merging_is_adding(
            requests in prop::collection::vec(
                (0.0_f64..1.0, 0.0_f64..1e4, 0.0_f64..1e4, 0_u8..4, 0.0_f64..1e5, 1.0_f64..1e5),
                1..300,
            ),
            cut in 0_usize..300,
        ) {
            let samples: Vec<Sample> = requests
                .iter()
                .map(|(at, lag, outside, phase, waited, handler)| {
                    sample(*at, *lag, *outside, &[(*phase, *waited)], *handler)
                })
                .collect();
            let (first, second) = samples.split_at(cut.min(samples.len()));
            let [mut merged, rest] = [first, second].map(|samples| {
                let mut parts = Parts::default();
                samples.iter().for_each(|sample| parts.add(sample, RUN / BLOCKS as u32));
                parts
            });
            merged.merge(&rest);
            let whole = attribute(&samples);
            let merged = merged.attribute(name, 7);
            prop_assert_eq!(whole.len(), merged.len());
            for (whole, merged) in whole.iter().zip(&merged) {
                prop_assert!((whole.shares.values().sum::<f64>() - 1.0).abs() < 1e-9);
                prop_assert!(whole.shares.values().all(|share| (0.0..=1.0).contains(share)));
                for (part, share) in &whole.shares {
                    prop_assert!((share - merged.shares[part]).abs() < 1e-9);
                    if let (Some(low), Some(high)) = (whole.low.get(part), whole.high.get(part)) {
                        prop_assert!(low <= high);
                    }
                }
            }
        }
    }
}
