//! Pools and caches: who waits for a connection, for how long, and how long it is kept.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use crate::{
    clock::{Clock, Ticks},
    counts::{CacheCounts, PoolCounts},
    histogram::{HistogramCells, Precision, Writer, nanos},
    phase::{PhaseIndex, Stretch, StretchEnd},
    recorder::LocalRecorder,
    slot::PerSlot,
    sync::{
        OnceLock,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed},
        },
    },
};

/// What is counted about one pool.
pub(crate) struct PoolCells {
    name: Box<str>,
    kind: &'static str,
    clock: Clock,
    precision: Precision,
    /// `pool_wait:<name>`.
    wait: PhaseIndex,
    /// What it takes to open and to check connections is counted by whoever does it.
    #[cfg_attr(
        not(feature = "deadpool"),
        expect(dead_code, reason = "no other pool needs to know")
    )]
    parts_apart: AtomicBool,
    shards: PerSlot<PoolShard>,
    /// Those who know how large it is, as long as they are there: a snapshot keeps no pool open.
    sources: Mutex<Vec<Weak<dyn PoolSource>>>,
}

#[derive(Default)]
struct PoolShard {
    asked: AtomicU64,
    acquired: AtomicU64,
    cancelled: AtomicU64,
    failed: AtomicU64,
    timeouts: [AtomicU64; TimeoutKind::ALL.len()],
    released: AtomicU64,
    wait: OnceLock<HistogramCells>,
    create: OnceLock<HistogramCells>,
    recycle: OnceLock<HistogramCells>,
    hold: OnceLock<HistogramCells>,
}

/// Knows how large a pool is.
pub(crate) trait PoolSource: Send + Sync {
    fn size(&self) -> PoolSize;
}

/// How large a pool is at one moment, in connections.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct PoolSize {
    pub(crate) max: u64,
    pub(crate) size: u64,
    pub(crate) idle: u64,
}

/// What a pool ran out of time with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum TimeoutKind {
    /// Waiting until a connection was free.
    Wait,
    /// Opening a connection.
    Create,
    /// Checking an idle connection.
    Recycle,
}

impl TimeoutKind {
    pub(crate) const ALL: [Self; 3] = [Self::Wait, Self::Create, Self::Recycle];
}

impl PoolCells {
    fn in_slot(&self) -> (&PoolShard, Writer) {
        self.shards.here(PoolShard::default)
    }

    fn record(&self, of: fn(&PoolShard) -> &OnceLock<HistogramCells>, took: Duration) {
        let (shard, writer) = self.in_slot();
        let cells = of(shard).get_or_init(|| HistogramCells::new(self.precision));
        cells.record(writer, nanos(took));
    }

    fn sources(&self) -> MutexGuard<'_, Vec<Weak<dyn PoolSource>>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn key(&self) -> (&str, &'static str) {
        (&self.name, self.kind)
    }

    pub(crate) fn read(&self) -> PoolCounts {
        let mut sum = PoolCounts::default();
        let shards = || self.shards.iter();
        // Ends before beginnings: for a moment too many may seem to wait, never fewer than none.
        let released: u64 = shards().map(|shard| shard.released.load(Acquire)).sum();
        for shard in shards() {
            sum.acquired += shard.acquired.load(Acquire);
            sum.cancelled += shard.cancelled.load(Acquire);
            sum.failed += shard.failed.load(Acquire);
            for (sum, cell) in sum.timeouts_mut().into_iter().zip(&shard.timeouts) {
                *sum += cell.load(Acquire);
            }
        }
        let ended = [sum.acquired, sum.cancelled, sum.failed, sum.timeouts()].iter().sum();
        let asked: u64 = shards().map(|shard| shard.asked.load(Relaxed)).sum();
        sum.waiting = asked.saturating_sub(ended);
        sum.in_use = sum.acquired.saturating_sub(released);
        for shard in shards() {
            for (into, cells) in [
                (&mut sum.wait, &shard.wait),
                (&mut sum.create, &shard.create),
                (&mut sum.recycle, &shard.recycle),
                (&mut sum.hold, &shard.hold),
            ] {
                if let Some(cells) = cells.get() {
                    cells.read_into(into);
                }
            }
        }
        let mut sources = self.sources();
        sources.retain(|source| source.strong_count() > 0);
        let sizes: Vec<PoolSize> =
            sources.iter().filter_map(Weak::upgrade).map(|source| source.size()).collect();
        drop(sources);
        sum.max = sizes.iter().map(|size| size.max).sum();
        sum.size = sizes.iter().map(|size| size.size).sum();
        sum.idle = sizes.iter().map(|size| size.idle).sum();
        sum
    }
}

/// The pools and caches of a handle, by name and kind.
#[derive(Default)]
pub(crate) struct Pools {
    pools: Mutex<Vec<Arc<PoolCells>>>,
    caches: Mutex<Vec<Arc<CacheCells>>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pools {
    /// All pools.
    pub(crate) fn pools(&self) -> Vec<Arc<PoolCells>> {
        lock(&self.pools).clone()
    }

    /// All caches.
    pub(crate) fn caches(&self) -> Vec<Arc<CacheCells>> {
        lock(&self.caches).clone()
    }

    fn cache(&self, name: &str) -> Arc<CacheCells> {
        let mut caches = lock(&self.caches);
        if let Some(cells) = caches.iter().find(|cells| *cells.name == *name) {
            return cells.clone();
        }
        let cells = Arc::new(CacheCells { name: name.into(), shards: PerSlot::new() });
        caches.push(cells.clone());
        cells
    }
}

/// Watches a pool of connections: who waits, for how long, and how long connections are kept. Made by
/// [`Perf::pool`](crate::Perf::pool).
///
/// Clones watch the same pool.
#[derive(Clone)]
pub struct PoolWatch {
    recorder: LocalRecorder,
    cells: Arc<PoolCells>,
    /// Keeps what the cells know of the size.
    _source: Option<Arc<dyn PoolSource>>,
}

impl PoolWatch {
    /// Watches the pool of a name, together with whoever else does.
    pub(crate) fn new(
        recorder: LocalRecorder,
        name: &str,
        kind: &'static str,
        source: Option<Arc<dyn PoolSource>>,
    ) -> Self {
        let mut pools = lock(&recorder.pools().pools);
        let known = pools.iter().find(|cells| cells.key() == (name, kind)).cloned();
        let cells = known.unwrap_or_else(|| {
            let cells = Arc::new(PoolCells {
                name: name.into(),
                kind,
                clock: recorder.clock().clone(),
                precision: recorder.precision(),
                wait: recorder.phase(&format!("pool_wait:{name}")),
                parts_apart: AtomicBool::new(false),
                shards: PerSlot::new(),
                sources: Mutex::default(),
            });
            pools.push(cells.clone());
            cells
        });
        drop(pools);
        if let Some(source) = &source {
            cells.sources().push(Arc::downgrade(source));
        }
        Self { recorder, cells, _source: source }
    }

    /// Somebody asks for a connection, and waits from now on: a phase `pool_wait:<name>` of the request.
    ///
    /// Dropped before it is said how that ended, the wait counts as cancelled.
    pub fn wait(&self) -> PoolWait<'_> {
        let (shard, writer) = self.cells.in_slot();
        writer.add(&shard.asked, 1);
        PoolWait { pool: self, stretch: self.recorder.begin_phase(self.cells.wait), over: false }
    }

    /// A new connection was opened, which took so long. Part of a wait, counted apart.
    pub fn created(&self, took: Duration) {
        self.cells.record(|shard| &shard.create, took);
    }

    /// An idle connection was checked, which took so long. Part of a wait, counted apart.
    pub fn recycled(&self, took: Duration) {
        self.cells.record(|shard| &shard.recycle, took);
    }

    /// Whoever opens and checks connections says themselves how long that takes.
    #[cfg(feature = "deadpool")]
    pub(crate) fn times_its_parts(&self) {
        self.cells.parts_apart.store(true, Relaxed);
    }

    /// A whole wait went into opening a connection, or into checking one; counted if nobody else does.
    #[cfg(feature = "deadpool")]
    pub(crate) fn prepared(&self, new: bool, took: Duration) {
        match new {
            _ if self.cells.parts_apart.load(Relaxed) => {}
            true => self.created(took),
            false => self.recycled(took),
        }
    }
}

impl fmt::Debug for PoolWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolWatch").field("name", &self.cells.name).finish_non_exhaustive()
    }
}

/// Somebody waits for a connection. Made by [`PoolWatch::wait`].
#[must_use = "dropped, the wait counts as cancelled"]
pub struct PoolWait<'p> {
    pool: &'p PoolWatch,
    stretch: Stretch,
    over: bool,
}

impl PoolWait<'_> {
    /// The connection is there. It counts as in use until the returned value is dropped.
    pub fn acquired(self) -> PoolHold {
        self.acquired_after().0
    }

    /// The same, and how long the wait was.
    pub(crate) fn acquired_after(mut self) -> (PoolHold, Duration) {
        let StretchEnd { ns, at } = self.end(|shard| &shard.acquired);
        let cells = self.pool.cells.clone();
        let since = at.unwrap_or_else(|| cells.clock.now());
        (PoolHold { cells, since }, Duration::from_nanos(ns))
    }

    /// The pool gave up: it ran out of time.
    pub fn timed_out(mut self, with: TimeoutKind) {
        match with {
            TimeoutKind::Wait => self.end(|shard| &shard.timeouts[0]),
            TimeoutKind::Create => self.end(|shard| &shard.timeouts[1]),
            TimeoutKind::Recycle => self.end(|shard| &shard.timeouts[2]),
        };
    }

    /// There is no connection, for any other reason.
    pub fn failed(mut self) {
        self.end(|shard| &shard.failed);
    }

    fn end(&mut self, as_what: fn(&PoolShard) -> &AtomicU64) -> StretchEnd {
        self.over = true;
        let end = self.pool.recorder.end_phase(&self.stretch);
        let (shard, writer) = self.pool.cells.in_slot();
        let wait = shard.wait.get_or_init(|| HistogramCells::new(self.pool.cells.precision));
        wait.record(writer, end.ns);
        // Last: who sees the end sees the wait.
        writer.publish(as_what(shard));
        end
    }
}

impl Drop for PoolWait<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.end(|shard| &shard.cancelled);
        }
    }
}

impl fmt::Debug for PoolWait<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolWait").field("over", &self.over).finish_non_exhaustive()
    }
}

/// A connection that is in use, until this is dropped. Made by [`PoolWait::acquired`].
#[must_use = "the connection counts as given back when this is dropped"]
pub struct PoolHold {
    cells: Arc<PoolCells>,
    since: Ticks,
}

impl Drop for PoolHold {
    fn drop(&mut self) {
        let ns = self.cells.clock.nanos_since(self.since);
        let (shard, writer) = self.cells.in_slot();
        shard.hold.get_or_init(|| HistogramCells::new(self.cells.precision)).record(writer, ns);
        writer.publish(&shard.released);
    }
}

impl fmt::Debug for PoolHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolHold").field("pool", &self.cells.name).finish_non_exhaustive()
    }
}

/// What is counted about one cache.
pub(crate) struct CacheCells {
    name: Box<str>,
    shards: PerSlot<CacheShard>,
}

#[derive(Default)]
struct CacheShard {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl CacheCells {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn read(&self) -> CacheCounts {
        let sum = |of: fn(&CacheShard) -> &AtomicU64| {
            self.shards.iter().map(|shard| of(shard).load(Relaxed)).sum()
        };
        CacheCounts { hits: sum(|shard| &shard.hits), misses: sum(|shard| &shard.misses) }
    }
}

/// Counts what a cache had and had not. Made by [`Perf::cache`](crate::Perf::cache).
#[derive(Clone)]
pub struct CacheWatch {
    cells: Arc<CacheCells>,
}

impl CacheWatch {
    pub(crate) fn new(recorder: &LocalRecorder, name: &str) -> Self {
        Self { cells: recorder.pools().cache(name) }
    }

    /// What was looked for was there.
    pub fn hit(&self) {
        self.add(1, 0);
    }

    /// It was not.
    pub fn miss(&self) {
        self.add(0, 1);
    }

    /// So much was there, and so much was not.
    pub(crate) fn add(&self, hits: u64, misses: u64) {
        let (shard, writer) = self.cells.shards.here(CacheShard::default);
        writer.add(&shard.hits, hits);
        writer.add(&shard.misses, misses);
    }

    /// One or the other: [`hit`](Self::hit) if there is something in it, else [`miss`](Self::miss). Hands it
    /// back.
    pub fn count<T>(&self, found: Option<T>) -> Option<T> {
        match found {
            Some(_) => self.hit(),
            None => self.miss(),
        }
        found
    }
}

impl fmt::Debug for CacheWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheWatch").field("name", &self.cells.name).finish_non_exhaustive()
    }
}
