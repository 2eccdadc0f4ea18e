//! Latency histograms: a concurrent one that the record path writes, a plain one to read.
//!
//! Both share one bucket layout, the log-linear one of `HdrHistogram` (Gil Tene): from 1 µs up, every
//! power of two is cut into equally wide buckets, as many as the [`Precision`] says. Below 1 µs buckets
//! are 128 ns wide; past 1 h values are clamped into the last bucket and counted as clamped.

use std::{
    fmt, iter,
    ops::{Range, RangeInclusive},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, Release},
};

/// log2 of the value, in nanoseconds, at which the logarithmic buckets begin: 1,024 ns.
const LINEAR_BITS: u32 = 10;
/// log2 of the width of the buckets below that value.
const LINEAR_WIDTH_BITS: u32 = 7;
/// Buckets below that value.
const LINEAR_BUCKETS: usize = 1 << (LINEAR_BITS - LINEAR_WIDTH_BITS);
/// The largest value that keeps its place: one hour in nanoseconds; in a model, the end of the fourth bucket.
const MAX_NS: u64 =
    if cfg!(parallax_loom) { (4 << LINEAR_WIDTH_BITS) - 1 } else { 3_600_000_000_000 };

/// How exactly a histogram keeps values between 1,024 ns and 1 h. Below, within 64 ns.
///
/// The layouts nest: each bucket of a finer one lies within one bucket of a coarser one.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// One significant digit: within 3.2 % of the value, 4 KiB a histogram.
    OneDigit = 4,
    /// Two significant digits: within 0.8 % of the value, 16 KiB a histogram.
    #[default]
    TwoDigits = 6,
    /// Three significant digits: within 0.1 % of the value, 127 KiB a histogram.
    ThreeDigits = 9,
}

impl Precision {
    /// log2 of the buckets in one power of two.
    const fn sub_bits(self) -> u32 {
        self as u32
    }

    /// Buckets of a histogram.
    pub(crate) const fn buckets(self) -> usize {
        self.index_of(MAX_NS) + 1
    }

    /// The bucket of a value of at most `MAX_NS`.
    const fn index_of(self, ns: u64) -> usize {
        if ns < 1 << LINEAR_BITS {
            (ns >> LINEAR_WIDTH_BITS) as usize
        } else {
            let exponent = u64::BITS - 1 - ns.leading_zeros();
            // The exponent above 10, and below it the leading bits of the value without the first one.
            let octave = (exponent - LINEAR_BITS + 1) as usize;
            let sub_bits = self.sub_bits();
            (ns >> (exponent - sub_bits)) as usize + (octave << sub_bits) + LINEAR_BUCKETS
                - (2 << sub_bits)
        }
    }

    /// Lowest value and width of a bucket, in nanoseconds.
    const fn bounds_of(self, index: usize) -> (u64, u64) {
        if index < LINEAR_BUCKETS {
            ((index as u64) << LINEAR_WIDTH_BITS, 1 << LINEAR_WIDTH_BITS)
        } else {
            let sub_bits = self.sub_bits();
            let index = index - LINEAR_BUCKETS;
            let shift = (index >> sub_bits) as u32 + LINEAR_BITS - sub_bits;
            let sub = (index & ((1 << sub_bits) - 1)) as u64;
            (((1 << sub_bits) + sub) << shift, 1 << shift)
        }
    }
}

/// A duration in whole nanoseconds; past 584 years it stays there.
#[inline]
pub(crate) fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(duration.subsec_nanos().into())
}

/// A distribution of durations, to read, merge and subtract.
///
/// Values keep as many significant digits as its [`Precision`] says, two unless asked otherwise; the
/// mean is exact to the nanosecond. Takes memory once something is recorded, none before. Serialised, it
/// is its non-empty buckets and the exact sums, in nanoseconds.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(try_from = "SparseHistogram", into = "SparseHistogram")]
pub struct LatencyHistogram {
    precision: Precision,
    /// The bucket of the first counter.
    first: usize,
    /// One a bucket, without a gap. Buckets without a counter are empty.
    counts: Vec<u64>,
    count: u64,
    /// Wraps around, so that differences stay exact: with ten thousand requests in flight, after three weeks.
    sum_ns: u64,
    /// Only meaningful if `count > 0`. After a subtraction, the bounds of the outermost buckets.
    min_ns: u64,
    max_ns: u64,
    clamped: u64,
}

impl LatencyHistogram {
    /// An empty histogram of two significant digits.
    #[must_use]
    pub const fn new() -> Self {
        Self::with_precision(Precision::TwoDigits)
    }

    /// An empty histogram.
    #[must_use]
    pub const fn with_precision(precision: Precision) -> Self {
        Self {
            precision,
            first: 0,
            counts: Vec::new(),
            count: 0,
            sum_ns: 0,
            min_ns: 0,
            max_ns: 0,
            clamped: 0,
        }
    }

    /// How exactly it keeps its values.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Records one value.
    pub fn record(&mut self, value: Duration) {
        self.record_nanos(nanos(value));
    }

    /// Records one value, in nanoseconds.
    pub fn record_nanos(&mut self, ns: u64) {
        let kept = ns.min(MAX_NS);
        *self.bucket(self.precision.index_of(kept)) += 1;
        self.clamped += u64::from(ns > MAX_NS);
        self.min_ns = if self.count == 0 { kept } else { self.min_ns.min(kept) };
        self.max_ns = self.max_ns.max(kept);
        self.count += 1;
        self.sum_ns = self.sum_ns.wrapping_add(kept);
    }

    /// The counter of a bucket. Who writes to one will write to its neighbours, so that some of them get one too.
    #[inline]
    fn bucket(&mut self, index: usize) -> &mut u64 {
        if self.counts.get(index.wrapping_sub(self.first)).is_none() {
            let around = self.precision.buckets() / 16;
            let end = self.precision.buckets().min(index + around + 1);
            self.make_room(index.saturating_sub(around)..end);
        }
        &mut self.counts[index - self.first]
    }

    /// Gives these buckets counters too.
    fn make_room(&mut self, buckets: Range<usize>) {
        if self.counts.is_empty() {
            self.first = buckets.start;
        }
        let (first, end) = (self.first.min(buckets.start), self.held().end.max(buckets.end));
        self.counts.splice(..0, iter::repeat_n(0, self.first - first));
        self.counts.resize(end - first, 0);
        self.first = first;
    }

    /// The buckets that have counters.
    fn held(&self) -> Range<usize> {
        self.first..self.first + self.counts.len()
    }

    /// Adds everything that `other` holds. Of two precisions the lower one is kept; its buckets hold the
    /// finer ones whole, so no value moves to a wrong one.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            self.clone_from(other);
            return;
        }
        if other.precision < self.precision {
            *self = self.at(other.precision);
        }
        if self.precision == other.precision {
            self.make_room(other.held());
            let mine = &mut self.counts[other.first - self.first..];
            for (mine, theirs) in mine.iter_mut().zip(&other.counts) {
                *mine = mine.saturating_add(*theirs);
            }
        } else {
            for (low, _, n) in other.buckets() {
                let mine = self.bucket(self.precision.index_of(low));
                *mine = mine.saturating_add(n);
            }
        }
        self.min_ns = self.min_ns.min(other.min_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
        self.count = self.count.saturating_add(other.count);
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
        self.clamped = self.clamped.saturating_add(other.clamped);
    }

    /// Adds what a histogram of the same layout held that was put away.
    pub(crate) fn merge_sparse(&mut self, other: &SparseHistogram) {
        if other.buckets.is_empty() {
            return;
        }
        if self.count == 0 {
            *self = Self::with_precision(other.precision);
            self.min_ns = u64::MAX;
        }
        for (low, n) in &other.buckets {
            *self.bucket(self.precision.index_of(*low)) += n;
            self.count += n;
        }
        self.min_ns = self.min_ns.min(other.min_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
        self.clamped += other.clamped;
    }

    /// The same values in the buckets of a lower precision.
    fn at(&self, precision: Precision) -> Self {
        let mut lower = Self { precision, first: 0, counts: Vec::new(), ..*self };
        for (low, _, n) in self.buckets() {
            let count = lower.bucket(precision.index_of(low));
            *count = count.saturating_add(n);
        }
        lower
    }

    /// What was recorded since `earlier`, a former reading of the same histogram.
    ///
    /// Counts are exact, and so is the mean but for a value that was being recorded as the interval began or
    /// ended. The extremes of an interval are not recorded, so they are known to their bucket only.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        if earlier.count == 0 {
            return self.clone();
        }
        let precision = self.precision.min(earlier.precision);
        if self.precision != earlier.precision {
            return self.at(precision).since(&earlier.at(precision));
        }
        let then = |index: usize| earlier.counts.get(index.wrapping_sub(earlier.first)).copied();
        let counts: Vec<u64> = self
            .held()
            .zip(&self.counts)
            .map(|(index, now)| now.saturating_sub(then(index).unwrap_or(0)))
            .collect();
        let mut interval = Self {
            precision,
            first: self.first,
            count: total(&counts),
            sum_ns: self.sum_ns.wrapping_sub(earlier.sum_ns),
            clamped: self.clamped.saturating_sub(earlier.clamped),
            counts,
            ..Self::new()
        };
        if interval.count == 0 {
            return Self::with_precision(precision);
        }
        let (low, high) = interval.bounds();
        interval.min_ns = self.min_ns.max(*low.start());
        interval.max_ns = self.max_ns.min(*high.end());
        interval
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

    /// All values added up, exact to the nanosecond. Past 584 years it begins anew at zero.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
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
    /// values do not exceed, as exactly as the precision says. `None` if nothing was recorded.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        let rank = rank(q, self.count);
        let mut seen: u64 = 0;
        for (index, n) in self.held().zip(&self.counts) {
            seen = seen.saturating_add(*n);
            if seen >= rank {
                let (low, width) = self.precision.bounds_of(index);
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
        let index = self.precision.index_of(limit.min(MAX_NS));
        let (here, after) = self.counts[index - self.first..].split_at(1);
        let above = total(after);
        let (low, width) = self.precision.bounds_of(index);
        // No value of the bucket lies past the recorded extremes.
        let (first, last) = (low.max(self.min_ns), (low + width - 1).min(self.max_ns));
        let share = (last.saturating_sub(limit)) as f64 / (last - first + 1) as f64;
        above.saturating_add((here[0] as f64 * share).round() as u64)
    }

    /// The non-empty buckets: lowest value, width (both nanoseconds) and count, rising.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.held().zip(&self.counts).filter(|(_, n)| **n > 0).map(|(index, n)| {
            let (low, width) = self.precision.bounds_of(index);
            (low, width, *n)
        })
    }

    /// How many values lie up to each of some rising bounds, in nanoseconds, and past the one before it; those
    /// past the last one are in none.
    ///
    /// A bucket that a bound cuts counts past it. So no value is counted under a bound that it exceeds, and
    /// what is counted never goes back.
    #[cfg(feature = "prometheus")]
    pub(crate) fn up_to<const N: usize>(&self, bounds_ns: &[u64; N]) -> [u64; N] {
        let mut up_to = [0_u64; N];
        if self.count == 0 {
            return up_to;
        }
        let mut from = self.precision.index_of(self.min_ns);
        let end = self.precision.index_of(self.max_ns) + 1;
        for (count, bound) in up_to.iter_mut().zip(bounds_ns) {
            // The first bucket whose last value lies past the bound.
            let to = self.precision.index_of((bound + 1).min(MAX_NS)).clamp(from, end);
            *count = total(&self.counts[from - self.first..to - self.first]);
            from = to;
        }
        up_to
    }

    /// The outermost buckets that are not empty.
    fn bounds(&self) -> (RangeInclusive<u64>, RangeInclusive<u64>) {
        let range = |place: Option<usize>| {
            let (low, width) = self.precision.bounds_of(self.first + place.unwrap_or(0));
            low..=(low + width - 1).min(MAX_NS)
        };
        let filled = |n: &u64| *n > 0;
        (range(self.counts.iter().position(filled)), range(self.counts.iter().rposition(filled)))
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

/// A histogram as it is serialised, and as it is kept where many are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SparseHistogram {
    precision: Precision,
    sum_ns: u64,
    min_ns: u64,
    max_ns: u64,
    clamped: u64,
    /// Lowest value in nanoseconds and count, of each bucket that is not empty.
    buckets: Vec<(u64, u64)>,
}

impl SparseHistogram {
    /// A percentile as a [summary](LatencyHistogram::summary) has it, in microseconds: `None` with too few samples.
    pub(crate) fn percentile(&self, q: f64) -> Option<f64> {
        let count = self.buckets.iter().map(|(_, n)| n).sum();
        if count < samples_needed(q) {
            return None;
        }
        let (rank, mut seen) = (rank(q, count), 0);
        let reached = |(_, n): &&(u64, u64)| {
            seen += n;
            seen >= rank
        };
        let (low, _) = self.buckets.iter().find(reached)?;
        let (low, width) = self.precision.bounds_of(self.precision.index_of(*low));
        Some(micros(Duration::from_nanos((low + width / 2).clamp(self.min_ns, self.max_ns))))
    }
}

impl From<LatencyHistogram> for SparseHistogram {
    fn from(histogram: LatencyHistogram) -> Self {
        Self::from(&histogram)
    }
}

impl From<&LatencyHistogram> for SparseHistogram {
    fn from(histogram: &LatencyHistogram) -> Self {
        Self {
            precision: histogram.precision,
            sum_ns: histogram.sum_ns,
            min_ns: histogram.min_ns,
            max_ns: histogram.max_ns,
            clamped: histogram.clamped,
            buckets: histogram.buckets().map(|(low, _, n)| (low, n)).collect(),
        }
    }
}

impl TryFrom<SparseHistogram> for LatencyHistogram {
    type Error = String;

    fn try_from(stored: SparseHistogram) -> Result<Self, String> {
        let SparseHistogram { precision, sum_ns, min_ns, max_ns, clamped, buckets } = stored;
        let mut histogram = Self { sum_ns, clamped, ..Self::with_precision(precision) };
        if buckets.is_empty() {
            return Ok(Self::with_precision(precision));
        }
        for (low, n) in buckets {
            if low > MAX_NS {
                return Err(format!("a bucket begins at {low} ns: past one hour there is none"));
            }
            let bucket = histogram.bucket(precision.index_of(low));
            *bucket = bucket.checked_add(n).ok_or("a count is past 64 bits")?;
            histogram.count =
                histogram.count.checked_add(n).ok_or("the counts add up to more than 64 bits")?;
        }
        let (low, high) = histogram.bounds();
        (histogram.min_ns, histogram.max_ns) = (min_ns, max_ns);
        let held = low.contains(&min_ns) && high.contains(&max_ns);
        if histogram.count == 0 || !held || min_ns > max_ns {
            return Err(format!("no bucket holds the extremes, {min_ns} ns and {max_ns} ns"));
        }
        Ok(histogram)
    }
}

/// Holding the same, whichever of the empty buckets have counters.
impl PartialEq for LatencyHistogram {
    fn eq(&self, other: &Self) -> bool {
        let exact =
            |of: &Self| (of.precision, of.count, of.sum_ns, of.min_ns, of.max_ns, of.clamped);
        exact(self) == exact(other) && self.buckets().eq(other.buckets())
    }
}

impl Eq for LatencyHistogram {}

/// What was read back from elsewhere may add up to more than fits.
fn total(counts: &[u64]) -> u64 {
    /// log2 of more buckets than there are.
    const BUCKETS_BITS: u32 = 16;
    const _: () = assert!(Precision::ThreeDigits.buckets() < 1 << BUCKETS_BITS);
    // Adding several at once, which processors do not with a look at each sum.
    let add = |(sum, bits): (u64, u64), n: &u64| (sum.wrapping_add(*n), bits | n);
    let (sum, bits) = counts.iter().fold((0, 0), add);
    let fits = bits.leading_zeros() >= BUCKETS_BITS;
    if fits { sum } else { counts.iter().fold(0, |sum, n| sum.saturating_add(*n)) }
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

/// Which value it is, counted from the smallest. The product may miss an integer by rounding; without the slack
/// p90 of ten values would be the tenth instead of the ninth.
fn rank(q: f64, count: u64) -> u64 {
    (q.clamp(0.0, 1.0) * count as f64 - 1e-6).ceil().max(1.0) as u64
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
    precision: Precision,
    /// One a bucket.
    buckets: Box<[AtomicU64]>,
    sum_ns: AtomicU64,
    /// Nanoseconds, inverted, so that zero means "nothing yet" for both extremes.
    inverted_min_ns: AtomicU64,
    max_ns: AtomicU64,
    clamped: AtomicU64,
}

impl HistogramCells {
    pub(crate) fn new(precision: Precision) -> Self {
        Self {
            precision,
            buckets: (0..precision.buckets()).map(|_| AtomicU64::new(0)).collect(),
            sum_ns: AtomicU64::new(0),
            inverted_min_ns: AtomicU64::new(0),
            max_ns: AtomicU64::new(0),
            clamped: AtomicU64::new(0),
        }
    }

    /// Records `ns` nanoseconds; `writer` says whether this thread is the only one that writes here.
    #[inline]
    pub(crate) fn record(&self, writer: Writer, ns: u64) {
        let kept = ns.min(MAX_NS);
        // The index of a clamped value is always inside; `get` rather than an index, because a bug
        // here must never cost a response.
        if let Some(bucket) = self.buckets.get(self.precision.index_of(kept)) {
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
        // Extremes first, and then only the buckets between them, which are few of all. A value past them is
        // still being recorded: who sees that its request has ended sees it in the extremes too.
        let max_ns = self.max_ns.load(Relaxed);
        let min_ns = (u64::MAX - self.inverted_min_ns.load(Relaxed)).min(MAX_NS);
        let [first, last] = [min_ns, max_ns].map(|ns| self.precision.index_of(ns));
        let Some(buckets) = self.buckets.get(first..=last) else { return };
        let mut read = LatencyHistogram::with_precision(self.precision);
        read.first = first;
        read.counts = buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
        read.count = total(&read.counts);
        if read.count == 0 {
            return;
        }
        // The outermost value may be in the extremes and not in its bucket yet, or the other way round.
        let (low, high) = read.bounds();
        let min_ns = min_ns.clamp(*low.start(), *low.end());
        let max_ns = max_ns.clamp(*high.start(), *high.end());
        // While only one of them has caught up with the first values, it may have passed the other.
        let known = min_ns <= max_ns;
        (read.min_ns, read.max_ns) =
            if known { (min_ns, max_ns) } else { (*low.start(), *high.end()) };
        read.sum_ns = self.sum_ns.load(Relaxed);
        read.clamped = self.clamped.load(Relaxed);
        // The first one is not copied: of many routes, that would be most of the work.
        if into.count == 0 {
            *into = read;
        } else {
            into.merge(&read);
        }
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
    #[inline]
    pub(crate) fn add(self, cell: &AtomicU64, n: u64) {
        match self {
            Self::Only => cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed),
            Self::Shared => {
                cell.fetch_add(n, Relaxed);
            }
        }
    }

    /// One more, and who sees it sees everything that this thread wrote before.
    #[inline]
    pub(crate) fn publish(self, cell: &AtomicU64) {
        match self {
            Self::Only => cell.store(cell.load(Relaxed).wrapping_add(1), Release),
            Self::Shared => {
                cell.fetch_add(1, Release);
            }
        }
    }

    #[inline]
    pub(crate) fn raise(self, cell: &AtomicU64, to: u64) {
        match self {
            Self::Only => {
                if to > cell.load(Relaxed) {
                    cell.store(to, Relaxed);
                }
            }
            // Seldom the largest so far: look before taking the line for oneself.
            Self::Shared => {
                if to > cell.load(Relaxed) {
                    cell.fetch_max(to, Relaxed);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// With the largest error of a value that its bucket's middle stands for.
    const PRECISIONS: [(Precision, f64); 3] = [
        (Precision::OneDigit, 0.032),
        (Precision::TwoDigits, 0.008),
        (Precision::ThreeDigits, 0.001),
    ];

    fn precisions() -> impl Strategy<Value = Precision> {
        prop::sample::select(PRECISIONS.map(|(precision, _)| precision).to_vec())
    }

    fn with_precision(precision: Precision, values_ns: &[u64]) -> LatencyHistogram {
        let mut histogram = LatencyHistogram::with_precision(precision);
        for ns in values_ns {
            histogram.record_nanos(*ns);
        }
        histogram
    }

    fn histogram(values_ns: &[u64]) -> LatencyHistogram {
        let mut histogram = LatencyHistogram::new();
        for ns in values_ns {
            histogram.record_nanos(*ns);
        }
        histogram
    }

    #[test]
    fn buckets_tile_the_range_without_gap_or_overlap() {
        for (precision, error) in PRECISIONS {
            let mut next = 0;
            for index in 0..precision.buckets() {
                let (low, width) = precision.bounds_of(index);
                assert_eq!(low, next, "bucket {index} of {precision:?}");
                assert_eq!(precision.index_of(low), index);
                assert_eq!(precision.index_of(low + width - 1), index);
                let worst = (width as f64 / 2.0) / low as f64;
                assert!(
                    low < 1024 || worst <= error,
                    "bucket {index} of {precision:?} is too wide"
                );
                next = low + width;
            }
            assert!(next > MAX_NS);
        }
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
    fn the_mean_of_an_interval_is_exact_however_much_time_was_added_up_before() {
        let cells = HistogramCells::new(Precision::OneDigit);
        cells.record(Writer::Only, 1);
        cells.sum_ns.store(u64::MAX - 10, Relaxed);
        let mut before = LatencyHistogram::new();
        cells.read_into(&mut before);
        cells.record(Writer::Only, 30);
        cells.record(Writer::Only, 50);
        let mut after = LatencyHistogram::new();
        cells.read_into(&mut after);
        assert_eq!(after.since(&before).mean(), Duration::from_nanos(40));
        // The same where two threads' shards are added up.
        let (mut sum, mut later) = (before.clone(), after.clone());
        sum.merge(&before);
        later.merge(&before);
        assert_eq!(later.since(&sum).mean(), Duration::from_nanos(40));
    }

    #[test]
    fn what_cannot_have_been_recorded_is_not_read() {
        let read = |json: &str| serde_json::from_str::<LatencyHistogram>(json);
        let stored = |min: u64, max: u64, buckets: &str| {
            format!(
                r#"{{"precision":"two_digits","sum_ns":9,"min_ns":{min},"max_ns":{max},"clamped":0,"buckets":{buckets}}}"#
            )
        };
        assert_eq!(read(&stored(7, 8, "[[0,2]]")).expect("it is whole").count(), 2);
        for (json, why) in [
            (stored(7, 8, "[[3600000000001,1]]"), "past one hour"),
            (stored(7, 128, "[[0,2]]"), "no bucket holds"),
            (stored(8, 7, "[[0,2]]"), "no bucket holds"),
            (stored(0, 0, "[[0,0]]"), "no bucket holds"),
            (stored(0, 0, "[[0,18446744073709551615],[1,1]]"), "past 64 bits"),
        ] {
            let error = read(&json).expect_err(&json).to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[cfg(feature = "prometheus")]
    #[test]
    fn a_bucket_that_a_bound_cuts_counts_past_it() {
        // The bucket of 5 ms begins at 4,980,736 ns and is 65,536 ns wide.
        let histogram = histogram(&[4_980_735, 4_980_736, 5_000_000, 5_000_001]);
        assert_eq!(histogram.up_to(&[5_000_000, 10_000_000]), [1, 3]);
        // The last value that it may hold is the bound itself.
        assert_eq!(histogram.up_to(&[5_046_271, 10_000_000]), [4, 0]);
        assert_eq!(histogram.sum(), Duration::from_nanos(19_961_472));
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
    fn a_value_is_read_once_it_is_in_its_bucket_and_between_the_extremes() {
        let cells = HistogramCells::new(Precision::default());
        let count = || {
            let mut read = LatencyHistogram::new();
            cells.read_into(&mut read);
            read.count()
        };
        Writer::Only.raise(&cells.max_ns, 200);
        Writer::Only.raise(&cells.inverted_min_ns, u64::MAX - 200);
        assert_eq!(count(), 0);
        Writer::Only.add(&cells.buckets[1], 1);
        assert_eq!(count(), 1);
        Writer::Only.add(&cells.buckets[7], 1);
        assert_eq!(count(), 1);
        Writer::Only.raise(&cells.max_ns, 1_000);
        assert_eq!(count(), 2);
    }

    #[test]
    fn extremes_that_no_bucket_holds_yet_are_known_to_the_outermost_that_does() {
        let cells = HistogramCells::new(Precision::default());
        Writer::Only.add(&cells.buckets[1], 1);
        Writer::Only.raise(&cells.inverted_min_ns, u64::MAX - 10);
        for max_ns in [140, 300] {
            Writer::Only.raise(&cells.max_ns, max_ns);
            let mut read = LatencyHistogram::new();
            cells.read_into(&mut read);
            assert_eq!((read.min_ns, read.max_ns), (128, max_ns.min(255)));
        }
    }

    #[test]
    fn counts_that_add_up_to_more_than_fits_stay_at_the_most() {
        let json = r#"{"precision":"two_digits","sum_ns":9,"min_ns":7,"max_ns":130,"clamped":0,
            "buckets":[[0,18446744073709551614],[128,1]]}"#;
        let mut histogram: LatencyHistogram = serde_json::from_str(json).expect("it is whole");
        assert_eq!(histogram.count(), u64::MAX);
        histogram.merge(&histogram.clone());
        assert_eq!(histogram.count(), u64::MAX);
        assert_eq!(total(&histogram.counts), u64::MAX);
        assert_eq!(histogram.buckets().map(|(.., n)| n).collect::<Vec<_>>(), [u64::MAX, 2]);
    }

    #[test]
    fn a_difference_of_readings_holds_what_came_between() {
        let cells = HistogramCells::new(Precision::default());
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
            let supported = (values.len() as u64 >= samples_needed(q)).then_some(found / 1e3);
            prop_assert_eq!(SparseHistogram::from(&histogram).percentile(q), supported);
            // 128 ns buckets reach a little past 1 µs.
            prop_assert!((found - exact).abs() <= (exact * 0.008).max(64.0), "{found} for {exact}");
        }

        #[test]
        fn cells_and_plain_histogram_agree_to_the_last_bit(
            values in prop::collection::vec(0_u64..u64::MAX / 2, 0..200),
            shared in any::<bool>(),
            precision in precisions(),
        ) {
            let cells = HistogramCells::new(precision);
            let writer = if shared { Writer::Shared } else { Writer::Only };
            for ns in &values {
                cells.record(writer, *ns);
            }
            let mut read = LatencyHistogram::with_precision(precision);
            cells.read_into(&mut read);
            prop_assert_eq!(read, with_precision(precision, &values));
        }

        #[test]
        fn shards_add_up_to_one_histogram_wherever_their_values_lie(
            shards in prop::collection::vec(prop::collection::vec(0_u64..5_000_000_000_000, 0..20), 0..4),
            more in prop::collection::vec(0_u64..5_000_000_000_000, 0..5),
            precision in precisions(),
        ) {
            let mut read = LatencyHistogram::with_precision(precision);
            for values in &shards {
                let cells = HistogramCells::new(precision);
                values.iter().for_each(|ns| cells.record(Writer::Only, *ns));
                cells.read_into(&mut read);
            }
            let mut all = shards.concat();
            prop_assert_eq!(&read, &with_precision(precision, &all));
            more.iter().for_each(|ns| read.record_nanos(*ns));
            all.extend(more);
            prop_assert_eq!(&read, &with_precision(precision, &all));
        }

        #[test]
        fn a_total_is_the_sum_or_the_most_that_fits(
            counts in prop::collection::vec(prop_oneof![0_u64..9, any::<u64>()], 0..40),
        ) {
            let exact: u128 = counts.iter().copied().map(u128::from).sum();
            prop_assert_eq!(u128::from(total(&counts)), exact.min(u64::MAX.into()));
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
        fn what_is_stored_is_read_back_whole(
            values in prop::collection::vec(0_u64..5_000_000_000_000, 0..100),
            precision in precisions(),
        ) {
            let histogram = with_precision(precision, &values);
            let json = serde_json::to_string(&histogram).expect("it can be written");
            prop_assert_eq!(serde_json::from_str::<LatencyHistogram>(&json).expect("it is ours"), histogram);
        }

        #[test]
        fn of_two_precisions_the_lower_one_holds_every_value_where_it_belongs(
            a in prop::collection::vec(0_u64..5_000_000_000_000, 1..100),
            b in prop::collection::vec(0_u64..5_000_000_000_000, 1..100),
            of_a in precisions(),
            of_b in precisions(),
        ) {
            let mut merged = with_precision(of_a, &a);
            merged.merge(&with_precision(of_b, &b));
            let both: Vec<u64> = a.iter().chain(&b).copied().collect();
            prop_assert_eq!(&merged, &with_precision(of_a.min(of_b), &both));
            let undone = merged.since(&with_precision(of_a, &a));
            prop_assert_eq!(undone.count(), b.len() as u64);
        }

        #[cfg(feature = "prometheus")]
        #[test]
        fn each_bucket_is_counted_up_to_the_first_bound_that_its_last_value_does_not_exceed(
            values in prop::collection::vec(0_u64..20_000_000_000, 0..300),
            bounds in prop::collection::btree_set(1_u64..10_000_000_000, 5),
            precision in precisions(),
        ) {
            let cells = HistogramCells::new(precision);
            values.iter().for_each(|ns| cells.record(Writer::Only, *ns));
            let mut histogram = LatencyHistogram::new();
            cells.read_into(&mut histogram);
            let bounds: Vec<u64> = bounds.into_iter().collect();
            let mut expected = [0; 5];
            for (low, width, n) in histogram.buckets() {
                if let Some(place) = bounds.iter().position(|bound| low + width - 1 <= *bound) {
                    expected[place] += n;
                }
            }
            let bounds: [u64; 5] = bounds.try_into().expect("there are five");
            prop_assert_eq!(histogram.up_to(&bounds), expected);
        }

        #[cfg(feature = "prometheus")]
        #[test]
        fn no_value_is_counted_under_a_bound_that_it_exceeds_and_none_far_below_is_missed(
            values in prop::collection::vec(1_000_u64..20_000_000_000, 0..300),
            precision in precisions(),
        ) {
            let bounds = [5_000_000_u64, 10_000_000, 250_000_000, 1_000_000_000, 10_000_000_000];
            let counts = with_precision(precision, &values).up_to(&bounds);
            let mut counted = 0;
            for (bound, n) in bounds.into_iter().zip(counts) {
                counted += n;
                let up_to = |limit: u64| values.iter().filter(|value| **value <= limit).count() as u64;
                // As wide as the widest bucket is in proportion to its values.
                let far = bound - (bound >> precision.sub_bits());
                prop_assert!((up_to(far)..=up_to(bound)).contains(&counted), "{counted} to {bound} ns");
            }
        }

        #[test]
        fn exceedances_are_exact_to_the_limits_own_bucket(
            values in prop::collection::vec(1_000_u64..1_000_000_000, 1..300),
            limit in 1_000_u64..1_000_000_000,
        ) {
            let found = histogram(&values).count_above(Duration::from_nanos(limit));
            let precision = Precision::default();
            let (low, width) = precision.bounds_of(precision.index_of(limit));
            let least = values.iter().filter(|v| **v >= low + width).count() as u64;
            let most = values.iter().filter(|v| **v >= low).count() as u64;
            prop_assert!((least..=most).contains(&found), "{found} not in {least}..={most}");
        }
    }
}

#[cfg(all(test, parallax_loom))]
mod models {
    use std::sync::Arc;

    use loom::thread;

    use super::*;
    use crate::sync::model;

    fn cells() -> Arc<HistogramCells> {
        Arc::new(HistogramCells::new(Precision::OneDigit))
    }

    fn read(cells: &HistogramCells) -> LatencyHistogram {
        let mut read = LatencyHistogram::with_precision(Precision::OneDigit);
        cells.read_into(&mut read);
        read
    }

    /// Records on a thread of its own.
    fn record(
        cells: &Arc<HistogramCells>,
        writer: Writer,
        values_ns: &'static [u64],
    ) -> thread::JoinHandle<()> {
        let cells = cells.clone();
        thread::spawn(move || {
            for ns in values_ns {
                cells.record(writer, *ns);
            }
        })
    }

    fn plain(values_ns: &[u64]) -> LatencyHistogram {
        let mut histogram = LatencyHistogram::with_precision(Precision::OneDigit);
        for ns in values_ns {
            histogram.record_nanos(*ns);
        }
        histogram
    }

    /// Nothing in a reading contradicts the rest of it.
    fn assert_sound(read: &LatencyHistogram) {
        assert_eq!(read.count, read.counts.iter().sum::<u64>());
        if read.count > 0 {
            let (low, high) = read.bounds();
            assert!(low.contains(&read.min_ns), "{read:?}");
            assert!(high.contains(&read.max_ns), "{read:?}");
            assert!(read.min_ns <= read.max_ns, "{read:?}");
        }
    }

    /// A reading beside writers, and one after them.
    fn check(writer: Writer, threads: &'static [&'static [u64]]) {
        model(move || {
            let cells = cells();
            let writers: Vec<_> =
                threads.iter().map(|values_ns| record(&cells, writer, values_ns)).collect();
            let reader = {
                let cells = cells.clone();
                thread::spawn(move || read(&cells))
            };
            let beside = reader.join().expect("no panic");
            assert_sound(&beside);
            for writer in writers {
                writer.join().expect("no panic");
            }
            let after = read(&cells);
            assert_eq!(after, plain(&threads.concat()));
            for (low, _, then) in beside.buckets() {
                assert!(after.buckets().any(|(bucket, _, now)| bucket == low && then <= now));
            }
        });
    }

    #[test]
    fn a_reader_beside_the_only_writer_sees_a_sound_histogram() {
        check(Writer::Only, &[&[200, 10, 600]]);
    }

    #[test]
    fn a_reader_beside_several_writers_sees_a_sound_histogram_and_no_value_is_lost() {
        check(Writer::Shared, &[&[200], &[10]]);
    }

    #[test]
    fn the_extremes_of_several_writers_are_exact() {
        model(|| {
            let cells = cells();
            let writers = [
                record(&cells, Writer::Shared, &[10, 200]),
                record(&cells, Writer::Shared, &[20, 600]),
            ];
            for writer in writers {
                writer.join().expect("no panic");
            }
            assert_eq!(read(&cells), plain(&[10, 20, 200, 600]));
        });
    }
}
