//! What it costs to keep a latency, in the ways that it could be kept:
//! `cargo bench -p parallax-middleware --bench storage`.
//!
//! Every candidate records the same latencies for one route, back to back, so nothing hides its cost and
//! threads that share something meet on it as often as they can. The candidates run in one process, in turn,
//! round after round; what counts is the median over the rounds, and ratios are taken within a round. With
//! `valgrind` installed, instructions are counted besides. The tables go into `docs/performance.md`, between
//! their markers.
#![allow(missing_docs, reason = "a benchmark has no API")]

// The layer's own file: its cells are no part of the public API.
#[allow(dead_code, unreachable_pub, unused_imports, reason = "only its cells are measured")]
#[path = "../src/histogram.rs"]
mod histogram;
// Which the cells take their atomics from.
mod support;
#[allow(unused_imports, unused_macros, reason = "the cells need its atomics only")]
#[path = "../src/sync.rs"]
mod sync;

use std::{
    env,
    hint::black_box,
    process::Command,
    sync::{
        Barrier, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use hdrhistogram::{Histogram, SyncHistogram};
use parallax_middleware::ProcessUsage;
use rand::{SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, LogNormal};
use tokio::time::Instant;

use crate::{
    histogram::{HistogramCells, LatencyHistogram, Writer},
    support::{median, write_tables},
};

/// Latencies in the stream, which repeats: 128 KiB of them, too many for a branch predictor to learn.
const STREAM: usize = 1 << 14;
/// Records in one pass, per thread.
const RECORDS: usize = 2_000_000;
/// Records in one pass that is read meanwhile: long enough for some dozens of readings.
const READ_RECORDS: usize = 10_000_000;
const ROUNDS: usize = 31;
/// A pass counts if its threads had processors to themselves for this part of the time: two threads that
/// take turns say nothing of two threads at once. Others may use the machine too.
const UNDISTURBED: f64 = 0.97;
/// How often a candidate's passes are repeated for that in one round; then they count as they are.
const PATIENCE: usize = 50;
/// Records between two counts of instructions; start-up cancels out.
const COUNTED: usize = 100_000;
/// Routes that are made to see how the process grows by one.
const HELD: usize = 1_000;
/// From one reading to the next.
const READ_EVERY: Duration = Duration::from_millis(1);
/// What a histogram promises to tell apart: 1 µs to 1 h, in nanoseconds.
const RANGE_NS: (u64, u64) = (1_000, 3_600_000_000_000);
/// The first power of two in that range. A layout that begins there is coarser in the 24 ns before it.
const FIRST_POWER_NS: u64 = 1_024;

/// A way to keep the latencies of one route.
trait Storage: Sync {
    const NAME: &str;
    /// What else of the values than their buckets is known exactly.
    const EXACT: &str;
    /// What a reading does to those who write.
    const READING: &str;

    /// For so many threads.
    fn new(threads: usize) -> Self;

    /// What one of the threads records nanoseconds with. Recording takes whatever makes it safe to read
    /// at the same time.
    fn writer(&self, thread: usize) -> impl FnMut(u64);

    /// Adds everything up as a snapshot does; how many values there are.
    fn read(&self) -> u64;

    /// The lowest and the highest value that cannot be told from `ns`.
    fn bucket(ns: u64) -> (u64, u64);
}

/// Keeps what belongs to one thread off the cache lines of another, as the layer's shards do.
#[repr(align(128))]
struct Apart<T>(T);

/// The layer's cells, as the layer makes them.
fn cells() -> HistogramCells {
    HistogramCells::new(histogram::Precision::TwoDigits)
}

fn read_cells<'a>(shards: impl IntoIterator<Item = &'a HistogramCells>) -> u64 {
    let mut sum = LatencyHistogram::new();
    for shard in shards {
        shard.read_into(&mut sum);
    }
    sum.count()
}

fn bucket_of_cells(ns: u64) -> (u64, u64) {
    let cells = cells();
    cells.record(Writer::Only, ns);
    let mut read = LatencyHistogram::new();
    cells.read_into(&mut read);
    let (low, width, _) = read.buckets().next().expect("one value");
    (low, low + width - 1)
}

/// What the layer does: a shard a thread, and no thread writes to another's.
struct OnlyWriter(Box<[Apart<HistogramCells>]>);

impl Storage for OnlyWriter {
    const NAME: &str = "Parallax: a shard a thread, plain loads and stores";
    const EXACT: &str = "sum, extremes, clamped";
    const READING: &str = "nothing: it loads what they store";

    fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| Apart(cells())).collect())
    }

    fn writer(&self, thread: usize) -> impl FnMut(u64) {
        let shard = &self.0[thread].0;
        |ns| shard.record(Writer::Only, ns)
    }

    fn read(&self) -> u64 {
        read_cells(self.0.iter().map(|shard| &shard.0))
    }

    fn bucket(ns: u64) -> (u64, u64) {
        bucket_of_cells(ns)
    }
}

/// The same shards, written as if others might write to them too.
struct AtomicShards(OnlyWriter);

impl Storage for AtomicShards {
    const NAME: &str = "atomic buckets, a shard a thread";
    const EXACT: &str = OnlyWriter::EXACT;
    const READING: &str = OnlyWriter::READING;

    fn new(threads: usize) -> Self {
        Self(OnlyWriter::new(threads))
    }

    fn writer(&self, thread: usize) -> impl FnMut(u64) {
        let shard = &self.0.0[thread].0;
        |ns| shard.record(Writer::Shared, ns)
    }

    fn read(&self) -> u64 {
        self.0.read()
    }

    fn bucket(ns: u64) -> (u64, u64) {
        bucket_of_cells(ns)
    }
}

/// One set of cells for all threads: what the layer does past its last slot.
struct SharedCells(HistogramCells);

impl Storage for SharedCells {
    const NAME: &str = "atomic buckets, all threads on one";
    const EXACT: &str = OnlyWriter::EXACT;
    const READING: &str = OnlyWriter::READING;

    fn new(_: usize) -> Self {
        Self(cells())
    }

    fn writer(&self, _: usize) -> impl FnMut(u64) {
        |ns| self.0.record(Writer::Shared, ns)
    }

    fn read(&self) -> u64 {
        read_cells([&self.0])
    }

    fn bucket(ns: u64) -> (u64, u64) {
        bucket_of_cells(ns)
    }
}

/// The `histogram` crate's atomic histogram, one for all threads.
struct HistogramCrate(::histogram::AtomicHistogram);

impl HistogramCrate {
    /// As many buckets to a power of two as Parallax has, up to the first power of two past an hour.
    fn config() -> ::histogram::Config {
        ::histogram::Config::new(6, 42).expect("a valid layout")
    }
}

impl Storage for HistogramCrate {
    const NAME: &str = "`histogram`: `AtomicHistogram`, all threads on one";
    const EXACT: &str = "nothing; longer values are refused";
    const READING: &str = OnlyWriter::READING;

    fn new(_: usize) -> Self {
        Self(::histogram::AtomicHistogram::with_config(&Self::config()))
    }

    fn writer(&self, _: usize) -> impl FnMut(u64) {
        |ns| self.0.increment(ns).expect("a value in range")
    }

    fn read(&self) -> u64 {
        self.0.load().iter().map(|bucket| bucket.count()).sum()
    }

    fn bucket(ns: u64) -> (u64, u64) {
        let mut histogram = ::histogram::Histogram::with_config(&Self::config());
        histogram.increment(ns).expect("a value in range");
        let bucket = histogram.iter().find(|bucket| bucket.count() > 0).expect("one value");
        (bucket.start(), bucket.end())
    }
}

/// Two digits from 1 µs to 1 h. The lower bound is where buckets stop to narrow, and not where the digits
/// begin: with 1 µs for it they would be 512 ns wide up to 131 µs. 16 ns keeps the digits from 1 µs on.
fn hdr() -> Histogram<u64> {
    Histogram::new_with_bounds(16, RANGE_NS.1, 2).expect("valid bounds")
}

fn bucket_of_hdr(ns: u64) -> (u64, u64) {
    let histogram = hdr();
    (histogram.lowest_equivalent(ns), histogram.highest_equivalent(ns))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An hdrhistogram a thread. Its counters are no atomics, so whoever wants to read it has to lock it.
struct HdrPerThread(Box<[Apart<Mutex<Histogram<u64>>>]>);

impl Storage for HdrPerThread {
    const NAME: &str = "hdrhistogram a thread, in a `Mutex`";
    const EXACT: &str = "extremes";
    const READING: &str = "holds each one's lock while it adds";

    fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| Apart(Mutex::new(hdr()))).collect())
    }

    fn writer(&self, thread: usize) -> impl FnMut(u64) {
        let shard = &self.0[thread].0;
        |ns| locked(shard).saturating_record(ns)
    }

    fn read(&self) -> u64 {
        let mut sum = hdr();
        for shard in &self.0 {
            sum.add(&*locked(&shard.0)).expect("the same bounds");
        }
        sum.len()
    }

    fn bucket(ns: u64) -> (u64, u64) {
        bucket_of_hdr(ns)
    }
}

/// hdrhistogram's own way of recording from many threads.
struct HdrRecorder(Mutex<SyncHistogram<u64>>);

impl Storage for HdrRecorder {
    const NAME: &str = "hdrhistogram: `sync::Recorder` a thread";
    const EXACT: &str = HdrPerThread::EXACT;
    const READING: &str =
        "each allocates a histogram at its next record; an idle one stalls the reader";

    fn new(_: usize) -> Self {
        Self(Mutex::new(hdr().into()))
    }

    fn writer(&self, _: usize) -> impl FnMut(u64) {
        let mut recorder = locked(&self.0).recorder();
        move |ns| recorder.saturating_record(ns)
    }

    fn read(&self) -> u64 {
        let mut histogram = locked(&self.0);
        histogram.refresh();
        histogram.len()
    }

    fn bucket(ns: u64) -> (u64, u64) {
        bucket_of_hdr(ns)
    }
}

/// What is asked of a candidate.
struct Candidate {
    name: &'static str,
    exact: &'static str,
    reading: &'static str,
    time: fn(&[u64], usize, usize) -> Pass,
    time_read: fn(&[u64], usize) -> ReadPass,
    count: fn(&[u64], usize),
    hold: fn(usize) -> usize,
    worst_error: fn(u64, u64) -> f64,
}

impl Candidate {
    const ALL: [Self; 6] = [
        Self::of::<OnlyWriter>(),
        Self::of::<AtomicShards>(),
        Self::of::<SharedCells>(),
        Self::of::<HistogramCrate>(),
        Self::of::<HdrPerThread>(),
        Self::of::<HdrRecorder>(),
    ];

    const fn of<S: Storage>() -> Self {
        Self {
            name: S::NAME,
            exact: S::EXACT,
            reading: S::READING,
            time: time::<S>,
            time_read: time_read::<S>,
            count: count::<S>,
            hold: hold::<S>,
            worst_error: worst_error::<S>,
        }
    }
}

/// Latencies of about 1 µs to 100 ms, log-normal, in nanoseconds; always the same ones.
fn stream() -> Vec<u64> {
    // The middle of that range, on a logarithmic scale, and a third of the way to either end.
    let latencies = LogNormal::new(316_000_f64.ln(), 1.92).expect("a valid distribution");
    let mut rng = SmallRng::seed_from_u64(1);
    (0..STREAM).map(|_| latencies.sample(&mut rng).clamp(1e3, 1e8) as u64).collect()
}

fn record(mut write: impl FnMut(u64), stream: &[u64], records: usize) {
    for ns in stream.iter().cycle().take(records) {
        // Through a reference that escapes, or what a record leaves behind could stay in registers until
        // the next one, as it never does between two requests.
        black_box(&mut write)(*ns);
    }
}

/// A pass of threads that record at the same time.
#[derive(Clone, Copy)]
struct Pass {
    /// Nanoseconds per record, as the slowest thread sees it.
    record_ns: f64,
    /// How much of the time each thread had a processor to itself, on average, in `[0, 1]`.
    running: f64,
}

/// `threads` threads record on one route.
fn time<S: Storage>(stream: &[u64], records: usize, threads: usize) -> Pass {
    let storage = S::new(threads);
    let barrier = Barrier::new(threads);
    let one = |thread| {
        let mut write = storage.writer(thread);
        // Half-way round from each other: threads that share buckets shall not do so in step.
        let (behind, ahead) = stream.split_at(thread * stream.len() / threads);
        let stream = [ahead, behind].concat();
        record(&mut write, &stream, stream.len());
        barrier.wait();
        let (used, started) = (processor_time(), Instant::now());
        record(&mut write, &stream, records);
        (started.elapsed(), used)
    };
    let times: Vec<(Duration, Duration)> = thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || one(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let used_after = processor_time();
    assert_eq!(storage.read(), (threads * (records + stream.len())) as u64, "{}", S::NAME);
    let slowest = times.iter().map(|(elapsed, _)| *elapsed).max().expect("a thread");
    let used_before = times.iter().map(|(_, used)| *used).min().expect("a thread");
    let running = nanos(used_after - used_before) / (nanos(slowest) * threads as f64);
    Pass { record_ns: nanos(slowest) / records as f64, running }
}

/// A pass of one thread that is read meanwhile.
#[derive(Clone, Copy)]
struct ReadPass {
    /// Nanoseconds per record.
    record_ns: f64,
    /// Median of one reading, in nanoseconds.
    reading_ns: f64,
    /// How much of the time the writer had a processor to itself, in `[0, 1]`.
    running: f64,
}

/// One thread records, another one reads a thousand times a second.
fn time_read<S: Storage>(stream: &[u64], records: usize) -> ReadPass {
    let storage = S::new(1);
    let (ready, done) = (Barrier::new(2), AtomicBool::new(false));
    let pass = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut write = storage.writer(0);
            record(&mut write, stream, stream.len());
            ready.wait();
            let (used, started) = (processor_time(), Instant::now());
            record(&mut write, stream, records);
            let elapsed = started.elapsed();
            done.store(true, Relaxed);
            (elapsed, processor_time() - used)
        });
        ready.wait();
        let mut readings = Vec::new();
        let mut next = Instant::now();
        loop {
            let started = Instant::now();
            black_box(storage.read());
            readings.push(nanos(started.elapsed()));
            if done.load(Relaxed) {
                break;
            }
            next += READ_EVERY;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        let (elapsed, used) = writer.join().expect("no panic");
        ReadPass {
            record_ns: nanos(elapsed) / records as f64,
            reading_ns: median(readings),
            // The reader's own time is in it: a percent at most.
            running: nanos(used) / nanos(elapsed),
        }
    });
    assert_eq!(storage.read(), (records + stream.len()) as u64, "{}", S::NAME);
    pass
}

/// What the process has used so far, all threads.
fn processor_time() -> Duration {
    ProcessUsage::now().cpu.expect("the system says")
}

/// The part of the command that callgrind runs.
fn count<S: Storage>(stream: &[u64], records: usize) {
    let storage = S::new(1);
    record(storage.writer(0), stream, records);
}

/// Bytes by which the process grows for one route that so many threads record on.
fn hold<S: Storage>(threads: usize) -> usize {
    let resident = || memory_stats::memory_stats().expect("the system says").physical_mem;
    let before = resident();
    let routes: Vec<S> = (0..HELD).map(|_| S::new(threads)).collect();
    let mut writers: Vec<_> =
        routes.iter().flat_map(|route| (0..threads).map(|thread| route.writer(thread))).collect();
    // A page counts once it is written to.
    for write in &mut writers {
        sweep(RANGE_NS, 2.0).for_each(write);
    }
    let grown = resident() - before;
    black_box((&routes, writers));
    grown / HELD
}

/// How far the middle of a bucket is at most from a value in it, as a part of the value, for values from
/// `first` to `last`.
fn worst_error<S: Storage>(first: u64, last: u64) -> f64 {
    let error = |ns: u64| {
        let (low, high) = S::bucket(ns);
        let middle = low.midpoint(high) as f64;
        let of = |value: u64| (middle - value as f64).abs() / value as f64;
        of(low.max(first)).max(of(high.min(last)))
    };
    sweep((first, last), 1.003).map(error).fold(0.0, f64::max)
}

/// From one to the other, in steps of so much, in nanoseconds.
fn sweep((first, last): (u64, u64), step: f64) -> impl Iterator<Item = u64> {
    let next = move |ns: &f64| Some(ns * step).filter(|next| *next <= last as f64);
    std::iter::successors(Some(first as f64), next).map(|ns| ns as u64)
}

fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

/// Instructions per record; `None` without callgrind.
fn instructions(candidate: usize) -> Option<f64> {
    let arguments =
        |records: usize| vec!["--count".to_owned(), candidate.to_string(), records.to_string()];
    support::instructions(&[], arguments, COUNTED)
}

/// KiB for one route and so many threads, in a process that holds nothing else.
fn kibibytes(candidate: usize, threads: usize) -> f64 {
    let output = Command::new(env::current_exe().expect("this program has a path"))
        .args(["--hold", &candidate.to_string(), &threads.to_string()])
        .output()
        .expect("this program starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.trim().parse::<f64>().expect("a number of bytes") / 1024.0
}

/// What was measured of a candidate, one value a round.
#[derive(Clone, Default)]
struct Times {
    one_ns: Vec<f64>,
    two_ns: Vec<f64>,
    read: Vec<ReadPass>,
}

impl Times {
    /// Measures a round, and returns how often it had to be repeated.
    fn measure(&mut self, candidate: &Candidate, stream: &[u64]) -> usize {
        let mut repeated = 0;
        // Both or neither: what keeps the second processor busy also slows one thread on the first, and
        // passes that follow each other meet the same.
        let (one, two) = loop {
            let time = |threads| (candidate.time)(stream, RECORDS, threads);
            let (one, two) = (time(1), time(2));
            if one.running.min(two.running) >= UNDISTURBED || repeated >= PATIENCE {
                break (one, two);
            }
            repeated += 1;
        };
        self.one_ns.push(one.record_ns);
        self.two_ns.push(two.record_ns);
        let read = loop {
            let read = (candidate.time_read)(stream, READ_RECORDS);
            if read.running >= UNDISTURBED || repeated >= PATIENCE {
                break read;
            }
            repeated += 1;
        };
        self.read.push(read);
        repeated
    }

    /// How many times what one thread records two threads record.
    fn scaling(&self) -> f64 {
        median(self.one_ns.iter().zip(&self.two_ns).map(|(one, two)| 2.0 * one / two).collect())
    }
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let argument = |n: usize| arguments[n].parse::<usize>().expect("a number");
    let stream = stream();
    match arguments.first().map(String::as_str) {
        Some("--count") => return (Candidate::ALL[argument(1)].count)(&stream, argument(2)),
        Some("--hold") => return println!("{}", (Candidate::ALL[argument(1)].hold)(argument(2))),
        _ => {}
    }
    // Cargo says so to a benchmark; `cargo test` starts it without a word.
    if !arguments.iter().any(|argument| argument == "--bench")
        || arguments.iter().any(|argument| argument == "--test")
    {
        return test(&stream);
    }

    let mut times = vec![Times::default(); Candidate::ALL.len()];
    for round in 0..ROUNDS {
        let mut repeated = 0;
        for step in 0..Candidate::ALL.len() {
            // Another one is first in each round.
            let n = (step + round) % Candidate::ALL.len();
            repeated += times[n].measure(&Candidate::ALL[n], &stream);
        }
        eprintln!("round {} of {ROUNDS}, {repeated} repetitions", round + 1);
    }
    let tables = tables(&times);
    print!("{tables}");
    write_tables("performance.md", "storage", &tables);
}

/// That every candidate counts everything, also while it is read, in buckets that keep two digits; and what
/// the table says of an idle `Recorder`.
fn test(stream: &[u64]) {
    for candidate in &Candidate::ALL {
        (candidate.time)(stream, 1_000, 2);
        (candidate.time_read)(stream, 1_000);
        let worst = (candidate.worst_error)(FIRST_POWER_NS, RANGE_NS.1);
        assert!(worst < 0.01, "{}: {worst}", candidate.name);
    }
    // Not that it takes long, but that no wait is long enough: the values of a thread that went to sleep
    // are not to be had.
    let mut histogram = SyncHistogram::from(hdr());
    let mut idle = histogram.recorder();
    idle.saturating_record(RANGE_NS.0);
    histogram.refresh_timeout(READ_EVERY);
    assert_eq!(histogram.len(), 0, "the table says that an idle recorder stalls a reading");
}

fn tables(times: &[Times]) -> String {
    let mut cost = String::from(
        "| | 1 thread, ns | 2 threads, ns | 2 threads over 1, rate | read meanwhile, ns | a reading, µs \
         | instructions |\n|---|---:|---:|---:|---:|---:|---:|\n",
    );
    let mut worth = String::from(
        "| | KiB a route, 1 thread | 2 threads | worst error | exact besides the count | a reading does to \
         writers |\n|---|---:|---:|---:|---|---|\n",
    );
    for (n, (candidate, times)) in Candidate::ALL.iter().zip(times).enumerate() {
        let Candidate { name, exact, reading, .. } = candidate;
        let instructions =
            instructions(n).map_or_else(|| "–".to_owned(), |count| format!("{count:.0}"));
        let of_readings =
            |value: fn(&ReadPass) -> f64| median(times.read.iter().map(value).collect());
        cost += &format!(
            "| {name} | {:.1} | {:.1} | {:.2} | {:.1} | {:.0} | {instructions} |\n",
            median(times.one_ns.clone()),
            median(times.two_ns.clone()),
            times.scaling(),
            of_readings(|pass| pass.record_ns),
            of_readings(|pass| pass.reading_ns) / 1e3,
        );
        let (below, worst) = (
            (candidate.worst_error)(RANGE_NS.0, FIRST_POWER_NS - 1) * 100.0,
            (candidate.worst_error)(FIRST_POWER_NS, RANGE_NS.1) * 100.0,
        );
        // Said only of a layout that does not keep two digits there.
        let below =
            if below > 1.0 { format!("; {below:.1} % below 1.024 µs") } else { String::new() };
        worth += &format!(
            "| {name} | {:.0} | {:.0} | {worst:.2} %{below} | {exact} | {reading} |\n",
            kibibytes(n, 1),
            kibibytes(n, 2),
        );
    }
    format!("{cost}\n{worth}")
}
