//! Latency histograms: a concurrent one that the record path writes, a plain one to read.
//!
//! Both share one bucket layout, the log-linear one of `HdrHistogram` (Gil Tene): from 1 µs up, every
//! power of two is cut into 64 equal buckets, so a bucket is at most 1/64 of its values wide and its
//! midpoint is within 0.8 % of each of them: two significant digits. Below 1 µs buckets are 64 ns
//! wide; past 1 h values are clamped into the last bucket and counted as clamped.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// log2 of the buckets in one power of two.
const SUB_BITS: u32 = 6;
/// log2 of the value, in nanoseconds, at which the logarithmic buckets begin: 1,024 ns.
const LINEAR_BITS: u32 = 10;
/// Buckets of 64 ns below that value.
const LINEAR_BUCKETS: usize = 1 << (LINEAR_BITS - SUB_BITS);
/// The largest value that keeps its place: one hour in nanoseconds.
const MAX_NS: u64 = 3_600_000_000_000;
/// 16 KiB of counters.
const BUCKETS: usize = index_of(MAX_NS) + 1;
// A shard holds four histograms, and promises 64 KiB.
const _: () = assert!(4 * (BUCKETS + 4) * size_of::<u64>() <= 64 * 1024 - 80);

/// The bucket of a value of at most `MAX_NS`.
const fn index_of(ns: u64) -> usize {
    if ns < 1 << LINEAR_BITS {
        (ns >> SUB_BITS) as usize
    } else {
        let exponent = u64::BITS - 1 - ns.leading_zeros();
        let sub = (ns >> (exponent - SUB_BITS)) & ((1 << SUB_BITS) - 1);
        LINEAR_BUCKETS + (((exponent - LINEAR_BITS) << SUB_BITS) as usize) + sub as usize
    }
}

/// Lowest value and width of a bucket, in nanoseconds.
const fn bounds_of(index: usize) -> (u64, u64) {
    if index < LINEAR_BUCKETS {
        ((index as u64) << SUB_BITS, 1 << SUB_BITS)
    } else {
        let index = index - LINEAR_BUCKETS;
        let shift = (index >> SUB_BITS) as u32 + LINEAR_BITS - SUB_BITS;
        let sub = (index & ((1 << SUB_BITS) - 1)) as u64;
        (((1 << SUB_BITS) + sub) << shift, 1 << shift)
    }
}

/// A duration in whole nanoseconds; past 584 years it stays there.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A distribution of durations, to read, merge and subtract.
///
/// Values keep two significant digits from 1 µs to 1 h; the
/// mean is exact to the nanosecond. About 16 KiB once something is recorded, nothing before.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct LatencyHistogram {
    /// Empty, or one counter a bucket.
    counts: Vec<u64>,
    count: u64,
    sum_ns: u64,
    /// Only meaningful if `count > 0`. After a subtraction, the bounds of the outermost buckets.
    min_ns: u64,
    max_ns: u64,
    clamped: u64,
}

impl LatencyHistogram {
    /// An empty histogram.
    #[must_use]
    pub const fn new() -> Self {
        Self { counts: Vec::new(), count: 0, sum_ns: 0, min_ns: 0, max_ns: 0, clamped: 0 }
    }

    /// Records one value.
    pub fn record(&mut self, value: Duration) {
        self.record_nanos(nanos(value));
    }

    /// Records one value, in nanoseconds.
    pub fn record_nanos(&mut self, ns: u64) {
        if self.counts.is_empty() {
            self.counts = vec![0; BUCKETS];
        }
        let kept = ns.min(MAX_NS);
        self.counts[index_of(kept)] += 1;
        self.clamped += u64::from(ns > MAX_NS);
        self.min_ns = if self.count == 0 { kept } else { self.min_ns.min(kept) };
        self.max_ns = self.max_ns.max(kept);
        self.count += 1;
        self.sum_ns = self.sum_ns.saturating_add(kept);
    }

    /// Adds everything that `other` holds.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            self.clone_from(other);
            return;
        }
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.min_ns = self.min_ns.min(other.min_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
        self.count += other.count;
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.clamped += other.clamped;
    }

    /// What was recorded since `earlier`, a former reading of the same histogram.
    ///
    /// Counts and mean are exact. The extremes of an interval are not recorded, so they are known to
    /// their bucket only.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        if earlier.count == 0 {
            return self.clone();
        }
        let counts: Vec<u64> = self
            .counts
            .iter()
            .zip(&earlier.counts)
            .map(|(now, then)| now.saturating_sub(*then))
            .collect();
        let count = counts.iter().sum();
        if count == 0 {
            return Self::new();
        }
        let low = counts.iter().position(|n| *n > 0).unwrap_or(0);
        let high = counts.iter().rposition(|n| *n > 0).unwrap_or(0);
        let (high_low, high_width) = bounds_of(high);
        Self {
            count,
            sum_ns: self.sum_ns.saturating_sub(earlier.sum_ns),
            min_ns: bounds_of(low).0.max(self.min_ns),
            max_ns: (high_low + high_width - 1).min(self.max_ns),
            clamped: self.clamped.saturating_sub(earlier.clamped),
            counts,
        }
    }

    /// How many values were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many values were longer than one hour and count as one hour.
    #[must_use]
    pub fn clamped(&self) -> u64 {
        self.clamped
    }

    /// The mean, exact to the nanosecond; zero if nothing was recorded.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.sum_ns.checked_div(self.count).unwrap_or(0))
    }

    /// The smallest value; zero if nothing was recorded.
    #[must_use]
    pub fn min(&self) -> Duration {
        Duration::from_nanos(if self.count == 0 { 0 } else { self.min_ns })
    }

    /// The largest value; zero if nothing was recorded.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns)
    }

    /// The value at quantile `q` in `[0, 1]`: the smallest recorded value that at least `q` of all
    /// values do not exceed, within 0.8 %. `None` if nothing was recorded.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        // The product may miss an integer by rounding; without the slack p90 of ten values would be
        // the tenth instead of the ninth.
        let rank = (q.clamp(0.0, 1.0) * self.count as f64 - 1e-6).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, n) in self.counts.iter().enumerate() {
            seen += n;
            if seen >= rank {
                let (low, width) = bounds_of(index);
                let middle = low + width / 2;
                return Some(Duration::from_nanos(middle.clamp(self.min_ns, self.max_ns)));
            }
        }
        Some(self.max())
    }

    /// How many values are longer than `limit`.
    ///
    /// Exact if `limit` is a bucket's upper bound; otherwise the values in the limit's own bucket are
    /// counted by where the limit cuts it, so the answer is off by a part of one bucket at most.
    #[must_use]
    pub fn count_above(&self, limit: Duration) -> u64 {
        let limit = nanos(limit);
        if self.count == 0 || limit >= self.max_ns {
            return 0;
        }
        if limit < self.min_ns {
            return self.count;
        }
        let index = index_of(limit.min(MAX_NS));
        let above: u64 = self.counts[index + 1..].iter().sum();
        let (low, width) = bounds_of(index);
        // No value of the bucket lies past the recorded extremes.
        let (first, last) = (low.max(self.min_ns), (low + width - 1).min(self.max_ns));
        let share = (last.saturating_sub(limit)) as f64 / (last - first + 1) as f64;
        above + (self.counts[index] as f64 * share).round() as u64
    }

    /// The non-empty buckets: lowest value, width (both nanoseconds) and count, rising.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.counts.iter().enumerate().filter(|(_, n)| **n > 0).map(|(index, n)| {
            let (low, width) = bounds_of(index);
            (low, width, *n)
        })
    }

    /// Count, mean, extremes and the usual percentiles.
    #[must_use]
    pub fn summary(&self) -> LatencySummary {
        let supported = |q: f64| {
            (self.count >= samples_needed(q)).then(|| self.quantile(q).map(micros)).flatten()
        };
        let known = |value: Duration| (self.count > 0).then(|| micros(value));
        LatencySummary {
            count: self.count,
            mean_us: known(self.mean()),
            min_us: known(self.min()),
            p50_us: supported(0.5),
            p90_us: supported(0.9),
            p95_us: supported(0.95),
            p99_us: supported(0.99),
            p999_us: supported(0.999),
            max_us: known(self.max()),
        }
    }
}

impl fmt::Debug for LatencyHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LatencyHistogram")
            .field("count", &self.count)
            .field("mean", &self.mean())
            .field("min", &self.min())
            .field("max", &self.max())
            .finish_non_exhaustive()
    }
}

/// How many samples a quantile needs before it is shown: three expected past it.
#[must_use]
pub fn samples_needed(q: f64) -> u64 {
    // The slack keeps 3 / (1 - 0.99) at 300: 1 - 0.99 is not exact in binary.
    (3.0 / (1.0 - q) - 1e-6).ceil() as u64
}

fn micros(value: Duration) -> f64 {
    nanos(value) as f64 / 1e3
}

/// A distribution of durations in nine numbers, all microseconds but the count.
///
/// A percentile with too few samples behind it (see [`samples_needed`]) is `None`, as is everything
/// but the count when nothing was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// Values recorded.
    pub count: u64,
    /// Arithmetic mean.
    pub mean_us: Option<f64>,
    /// Smallest value.
    pub min_us: Option<f64>,
    /// Median.
    pub p50_us: Option<f64>,
    /// 90th percentile.
    pub p90_us: Option<f64>,
    /// 95th percentile.
    pub p95_us: Option<f64>,
    /// 99th percentile.
    pub p99_us: Option<f64>,
    /// 99.9th percentile.
    pub p999_us: Option<f64>,
    /// Largest value.
    pub max_us: Option<f64>,
}

/// The writing side: what [`LatencyHistogram`] is read from.
///
/// Writes are relaxed: a reader may see a value's bucket before its sum. The count is not stored but
/// is the sum of the buckets, so that the two can never disagree.
pub(crate) struct HistogramCells {
    buckets: Box<[AtomicU64; BUCKETS]>,
    sum_ns: AtomicU64,
    /// Nanoseconds, inverted, so that zero means "nothing yet" for both extremes.
    inverted_min_ns: AtomicU64,
    max_ns: AtomicU64,
    clamped: AtomicU64,
}

impl HistogramCells {
    pub(crate) fn new() -> Self {
        Self {
            buckets: Box::new([const { AtomicU64::new(0) }; BUCKETS]),
            sum_ns: AtomicU64::new(0),
            inverted_min_ns: AtomicU64::new(0),
            max_ns: AtomicU64::new(0),
            clamped: AtomicU64::new(0),
        }
    }

    /// Records `ns` nanoseconds; `writer` says whether this thread is the only one that writes here.
    pub(crate) fn record(&self, writer: Writer, ns: u64) {
        let kept = ns.min(MAX_NS);
        // `index_of` of a clamped value is always inside; `get` rather than an index, because a bug
        // here must never cost a response.
        if let Some(bucket) = self.buckets.get(index_of(kept)) {
            writer.add(bucket, 1);
        }
        writer.add(&self.sum_ns, kept);
        writer.raise(&self.max_ns, kept);
        writer.raise(&self.inverted_min_ns, u64::MAX - kept);
        if ns > MAX_NS {
            writer.add(&self.clamped, 1);
        }
    }

    /// Adds what was recorded so far to `into`.
    pub(crate) fn read_into(&self, into: &mut LatencyHistogram) {
        let mut counts = vec![0; BUCKETS];
        let mut count = 0;
        for (to, from) in counts.iter_mut().zip(self.buckets.iter()) {
            *to = from.load(Relaxed);
            count += *to;
        }
        if count == 0 {
            return;
        }
        // A value may be in its bucket and not yet in the extremes: the bucket bounds them.
        let low = counts.iter().position(|n| *n > 0).unwrap_or(0);
        let high = counts.iter().rposition(|n| *n > 0).unwrap_or(0);
        let (low_bound, low_width) = bounds_of(low);
        let (high_bound, high_width) = bounds_of(high);
        let min_ns = u64::MAX - self.inverted_min_ns.load(Relaxed);
        let max_ns = self.max_ns.load(Relaxed);
        into.merge(&LatencyHistogram {
            count,
            counts,
            sum_ns: self.sum_ns.load(Relaxed),
            min_ns: min_ns.clamp(low_bound, low_bound + low_width - 1),
            max_ns: max_ns.clamp(high_bound, high_bound + high_width - 1).min(MAX_NS),
            clamped: self.clamped.load(Relaxed),
        });
    }
}

/// How a thread may write to a shard's counters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Writer {
    /// No other thread writes here, so a load and a store make an exact increment, without the locked
    /// instruction that costs more than everything else a record does.
    Only,
    /// Others may write at the same time.
    Shared,
}

impl Writer {
    pub(crate) fn add(self, cell: &AtomicU64, n: u64) {
        match self {
            Self::Only => cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed),
            Self::Shared => {
                cell.fetch_add(n, Relaxed);
            }
        }
    }

    fn raise(self, cell: &AtomicU64, to: u64) {
        match self {
            Self::Only => {
                if to > cell.load(Relaxed) {
                    cell.store(to, Relaxed);
                }
            }
            Self::Shared => {
                cell.fetch_max(to, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn histogram(values_ns: &[u64]) -> LatencyHistogram {
        let mut histogram = LatencyHistogram::new();
        for ns in values_ns {
            histogram.record_nanos(*ns);
        }
        histogram
    }

    #[test]
    fn buckets_tile_the_range_without_gap_or_overlap() {
        let mut next = 0;
        for index in 0..BUCKETS {
            let (low, width) = bounds_of(index);
            assert_eq!(low, next, "bucket {index}");
            assert_eq!(index_of(low), index);
            assert_eq!(index_of(low + width - 1), index);
            assert!(
                low < 1024 || (width as f64) <= low as f64 / 64.0,
                "bucket {index} is too wide"
            );
            next = low + width;
        }
        assert!(next > MAX_NS);
    }

    #[test]
    fn values_past_an_hour_are_clamped_and_counted() {
        let mut histogram = LatencyHistogram::new();
        histogram.record(Duration::from_secs(7200));
        histogram.record(Duration::MAX);
        assert_eq!(histogram.max(), Duration::from_secs(3600));
        assert_eq!((histogram.count(), histogram.clamped()), (2, 2));
    }

    #[test]
    fn percentiles_come_from_merged_counts_not_from_averages() {
        let mut merged = histogram(&vec![1_000_000; 10_000]);
        merged.merge(&histogram(&vec![1_000_000; 10_000]));
        merged.merge(&histogram(&[60_000_000_000]));
        let p99 = merged.quantile(0.99).expect("not empty");
        assert!((0.99..=1.01).contains(&(p99.as_secs_f64() * 1e3)), "{p99:?}");
        assert_eq!(merged.max(), Duration::from_secs(60));
    }

    #[test]
    fn a_percentile_without_support_is_absent() {
        let summary = histogram(&(0..299).map(|n| n * 1000).collect::<Vec<_>>()).summary();
        assert!(summary.p95_us.is_some());
        assert_eq!(summary.p99_us, None);
        assert_eq!((samples_needed(0.99), samples_needed(0.999)), (300, 3000));
        assert_eq!(LatencyHistogram::new().summary(), LatencySummary::default());
    }

    #[test]
    fn a_difference_of_readings_holds_what_came_between() {
        let cells = HistogramCells::new();
        cells.record(Writer::Only, 5_000);
        let mut before = LatencyHistogram::new();
        cells.read_into(&mut before);
        cells.record(Writer::Shared, 70_000);
        let mut after = LatencyHistogram::new();
        cells.read_into(&mut after);
        let between = after.since(&before);
        assert_eq!((between.count(), between.mean()), (1, Duration::from_nanos(70_000)));
        assert!(after.since(&after).summary() == LatencySummary::default());
    }

    proptest! {
        #[test]
        fn quantiles_are_within_two_digits_of_the_sorted_values(
            mut values in prop::collection::vec(1_000_u64..10_000_000_000, 1..400),
            q in 0.0_f64..=1.0,
        ) {
            let histogram = histogram(&values);
            values.sort_unstable();
            let rank = ((q * values.len() as f64 - 1e-6).ceil() as usize).clamp(1, values.len());
            let exact = values[rank - 1] as f64;
            let found = nanos(histogram.quantile(q).expect("not empty")) as f64;
            // 64 ns buckets reach a little past 1 µs.
            prop_assert!((found - exact).abs() <= (exact * 0.008).max(32.0), "{found} for {exact}");
        }

        #[test]
        fn cells_and_plain_histogram_agree_to_the_last_bit(
            values in prop::collection::vec(0_u64..u64::MAX / 2, 0..200),
            shared in any::<bool>(),
        ) {
            let cells = HistogramCells::new();
            let writer = if shared { Writer::Shared } else { Writer::Only };
            for ns in &values {
                cells.record(writer, *ns);
            }
            let mut read = LatencyHistogram::new();
            cells.read_into(&mut read);
            prop_assert_eq!(read, histogram(&values));
        }

        #[test]
        fn merging_is_commutative_and_undone_by_the_difference(
            a in prop::collection::vec(0_u64..5_000_000_000_000, 0..100),
            b in prop::collection::vec(0_u64..5_000_000_000_000, 0..100),
        ) {
            let (ha, hb) = (histogram(&a), histogram(&b));
            let mut ab = ha.clone();
            ab.merge(&hb);
            let mut ba = hb.clone();
            ba.merge(&ha);
            prop_assert_eq!(&ab, &ba);
            let undone = ab.since(&ha);
            prop_assert_eq!(undone.count(), hb.count());
            prop_assert_eq!(undone.mean(), hb.mean());
            prop_assert_eq!(
                undone.buckets().collect::<Vec<_>>(),
                hb.buckets().collect::<Vec<_>>()
            );
        }

        #[test]
        fn exceedances_are_exact_to_the_limits_own_bucket(
            values in prop::collection::vec(1_000_u64..1_000_000_000, 1..300),
            limit in 1_000_u64..1_000_000_000,
        ) {
            let found = histogram(&values).count_above(Duration::from_nanos(limit));
            let (low, width) = bounds_of(index_of(limit));
            let least = values.iter().filter(|v| **v >= low + width).count() as u64;
            let most = values.iter().filter(|v| **v >= low).count() as u64;
            prop_assert!((least..=most).contains(&found), "{found} not in {least}..={most}");
        }
    }
}
