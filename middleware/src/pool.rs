//! Pools and caches: who waits for a connection, for how long, and how long it is kept.

use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
#[cfg(any(feature = "deadpool", feature = "sqlx"))]
use std::{
    pin::Pin,
    task::{Context, Poll},
};

use crate::{
    clock::Ticks,
    counts::{CacheCounts, PoolCounts},
    histogram::{HistogramCells, Precision, Writer, nanos},
    phase::{PhaseIndex, Stretch},
    recorder::LocalRecorder,
    slot::PerSlot,
    sync::{
        OnceLock,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed},
        },
    },
};

/// What is counted about one pool.
pub(crate) struct PoolCells {
    name: Box<str>,
    kind: &'static str,
    precision: Precision,
    /// `pool_wait:<name>`.
    wait: PhaseIndex,
    /// What it takes to open and to check connections is counted by whoever does it.
    #[cfg(feature = "deadpool")]
    parts_apart: std::sync::atomic::AtomicBool,
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

    fn counted(self) -> Counted {
        match self {
            Self::Wait => |shard| &shard.timeouts[0],
            Self::Create => |shard| &shard.timeouts[1],
            Self::Recycle => |shard| &shard.timeouts[2],
        }
    }
}

/// How waits of a kind are counted that end in one way.
type Counted = fn(&PoolShard) -> &AtomicU64;

impl PoolCells {
    fn in_slot(&self) -> (&PoolShard, Writer) {
        self.shards.here(PoolShard::default)
    }

    /// Records a time, and hands out where the rest is counted.
    #[inline]
    fn record(
        &self,
        of: impl FnOnce(&PoolShard) -> &OnceLock<HistogramCells>,
        ns: u64,
    ) -> (&PoolShard, Writer) {
        let (shard, writer) = self.in_slot();
        of(shard).get_or_init(|| HistogramCells::new(self.precision)).record(writer, ns);
        (shard, writer)
    }

    /// A wait begins.
    fn asked(&self) {
        let (shard, writer) = self.in_slot();
        writer.add(&shard.asked, 1);
    }

    /// A wait is over; one that is told of only now is counted in first.
    fn ended(&self, ns: u64, as_what: Counted, told_late: bool) {
        let (shard, writer) = self.record(|shard| &shard.wait, ns);
        writer.add(&shard.asked, told_late.into());
        // Last: who sees the end sees the wait.
        writer.publish(as_what(shard));
    }

    fn sources(&self) -> MutexGuard<'_, Vec<Weak<dyn PoolSource>>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn key(&self) -> (&str, &'static str) {
        (&self.name, self.kind)
    }

    /// All but the histograms, which take far longer to read.
    pub(crate) fn level(&self) -> PoolCounts {
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
        let mut sources = self.sources();
        sources.retain(|source| source.strong_count() > 0);
        let there: Vec<Arc<dyn PoolSource>> = sources.iter().filter_map(Weak::upgrade).collect();
        // What comes is the pool's own code.
        drop(sources);
        let sizes: Vec<PoolSize> = there.iter().map(|source| source.size()).collect();
        sum.max = sizes.iter().map(|size| size.max).sum();
        sum.size = sizes.iter().map(|size| size.size).sum();
        sum.idle = sizes.iter().map(|size| size.idle).sum();
        sum
    }

    pub(crate) fn read(&self) -> PoolCounts {
        let mut sum = self.level();
        for shard in self.shards.iter() {
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
        sum
    }
}

/// How a pool stands at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct PoolLevel {
    /// Its name.
    pub name: String,
    /// Its kind, as [`PoolView::kind`](crate::PoolView::kind) has it: pools of several kinds may have one name.
    pub kind: &'static str,
    /// The most connections that there may be; 0 where the pool does not tell.
    pub max: u64,
    /// Connections that are there and not in use.
    pub idle: u64,
    /// Connections that somebody has.
    pub in_use: u64,
    /// Those who wait for one.
    pub waiting: u64,
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

    /// How each pool stands.
    pub(crate) fn levels(&self) -> Vec<PoolLevel> {
        let level = |cells: Arc<PoolCells>| {
            let PoolCounts { max, idle, in_use, waiting, .. } = cells.level();
            let (name, kind) = (cells.name.to_string(), cells.kind);
            PoolLevel { name, kind, max, idle, in_use, waiting }
        };
        self.pools().into_iter().map(level).collect()
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
    watched: Arc<Watched<dyn PoolSource>>,
}

/// What all clones of a watch share, and connections that are in use.
pub(crate) struct Watched<S: ?Sized> {
    recorder: LocalRecorder,
    cells: Arc<PoolCells>,
    /// `query:<name>`, once there is one.
    #[cfg(feature = "sqlx")]
    query: OnceLock<PhaseIndex>,
    pub(crate) source: S,
}

impl<S> Watched<S> {
    /// Watches the pool of a name, together with whoever else does.
    pub(crate) fn new(
        recorder: LocalRecorder,
        name: &str,
        kind: &'static str,
        source: S,
    ) -> Arc<Self> {
        let mut pools = lock(&recorder.pools().pools);
        let known = pools.iter().find(|cells| cells.key() == (name, kind)).cloned();
        let cells = known.unwrap_or_else(|| {
            let cells = Arc::new(PoolCells {
                name: name.into(),
                kind,
                precision: recorder.precision(),
                wait: recorder.phase(&format!("pool_wait:{name}")),
                #[cfg(feature = "deadpool")]
                parts_apart: false.into(),
                shards: PerSlot::new(),
                sources: Mutex::default(),
            });
            pools.push(cells.clone());
            cells
        });
        drop(pools);
        Arc::new(Self {
            recorder,
            cells,
            #[cfg(feature = "sqlx")]
            query: OnceLock::new(),
            source,
        })
    }
}

impl<S: PoolSource + ?Sized> PoolSource for Watched<S> {
    fn size(&self) -> PoolSize {
        self.source.size()
    }
}

/// Nobody knows.
impl PoolSource for () {
    fn size(&self) -> PoolSize {
        PoolSize::default()
    }
}

impl PoolWatch {
    pub(crate) fn new<S: PoolSource + 'static>(watched: Arc<Watched<S>>) -> Self {
        Self { watched }
    }

    /// Somebody asks for a connection, and waits from now on: a phase `pool_wait:<name>` of the request.
    ///
    /// Dropped before it is said how that ended, the wait counts as cancelled.
    pub fn wait(&self) -> PoolWait<'_> {
        let Watched { recorder, cells, .. } = &*self.watched;
        cells.asked();
        let begun = recorder.now(false);
        let stretch = recorder.begin_phase_at(cells.wait, begun);
        PoolWait { pool: self, begun, stretch: Some(stretch), over: false }
    }

    /// A wait that begins now, of somebody who [polls](PoolWait::poll) it.
    #[cfg(any(feature = "deadpool", feature = "sqlx"))]
    #[inline]
    pub(crate) fn ask(&self) -> PoolWait<'_> {
        PoolWait { pool: self, begun: self.watched.recorder.now(false), stretch: None, over: false }
    }

    /// A new connection was opened, which took so long. Part of a wait, counted apart.
    pub fn created(&self, took: Duration) {
        self.watched.cells.record(|shard| &shard.create, nanos(took));
    }

    /// An idle connection was checked, which took so long. Part of a wait, counted apart.
    pub fn recycled(&self, took: Duration) {
        self.watched.cells.record(|shard| &shard.recycle, nanos(took));
    }

    /// Has the snapshot ask `source` how large the pool is, as long as that is there.
    #[cfg(any(feature = "deadpool", feature = "sqlx"))]
    pub(crate) fn sized_by(self, source: &Arc<impl PoolSource + 'static>) -> Self {
        let source = Arc::downgrade(source);
        self.watched.cells.sources().push(source);
        self
    }

    /// Whoever opens and checks connections says themselves how long that takes.
    #[cfg(feature = "deadpool")]
    pub(crate) fn times_its_parts(&self) {
        self.watched.cells.parts_apart.store(true, Relaxed);
    }

    /// A whole wait went into opening a connection, or into checking one; counted if nobody else does.
    #[cfg(feature = "deadpool")]
    pub(crate) fn prepared(&self, new: bool, took: Duration) {
        match new {
            _ if self.watched.cells.parts_apart.load(Relaxed) => {}
            true => self.created(took),
            false => self.recycled(took),
        }
    }

    /// How large the pool is now, if anybody knows.
    #[cfg(feature = "sqlx")]
    pub(crate) fn size(&self) -> PoolSize {
        self.watched.size()
    }

    /// Who records a query of this pool's, and as which phase.
    #[cfg(feature = "sqlx")]
    pub(crate) fn query(&self) -> (LocalRecorder, PhaseIndex) {
        let Watched { recorder, cells, query, .. } = &*self.watched;
        let phase = *query.get_or_init(|| recorder.phase(&format!("query:{}", cells.name)));
        (recorder.clone(), phase)
    }
}

impl fmt::Debug for PoolWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolWatch").field("name", &self.watched.cells.name).finish_non_exhaustive()
    }
}

/// Somebody waits for a connection. Made by [`PoolWatch::wait`].
#[must_use = "dropped, the wait counts as cancelled"]
pub struct PoolWait<'p> {
    pool: &'p PoolWatch,
    begun: Ticks,
    /// `None` while nobody can see it: it is told of when it is over.
    stretch: Option<Stretch>,
    over: bool,
}

impl PoolWait<'_> {
    /// The connection is there. It counts as in use until the returned value is dropped.
    pub fn acquired(mut self) -> PoolHold {
        let since = self.end(|shard| &shard.acquired).map(|(at, _)| at);
        PoolHold { since, pool: self.pool.clone() }
    }

    /// The same, and how long the wait was.
    #[cfg(feature = "deadpool")]
    #[inline]
    pub(crate) fn acquired_after(mut self) -> (PoolHold, Duration) {
        let end = self.end(|shard| &shard.acquired);
        let took = Duration::from_nanos(end.map_or(0, |(_, ns)| ns));
        (PoolHold { since: end.map(|(at, _)| at), pool: self.pool.clone() }, took)
    }

    /// [`acquired`](Self::acquired), for [`PoolHold::since`].
    #[cfg(feature = "sqlx")]
    #[inline]
    pub(crate) fn acquired_at(mut self) -> Option<Ticks> {
        self.end(|shard| &shard.acquired).map(|(at, _)| at)
    }

    /// Polls for the connection. One that is there with the first poll, as it mostly is, costs less than it would
    /// after [`PoolWatch::wait`]: the request is looked for once, and no reference to it is taken.
    #[cfg(any(feature = "deadpool", feature = "sqlx"))]
    #[inline]
    pub(crate) fn poll<F: Future>(
        &mut self,
        future: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<F::Output> {
        let polled = future.poll(cx);
        if polled.is_pending() && self.stretch.is_none() {
            let Watched { recorder, cells, .. } = &*self.pool.watched;
            cells.asked();
            self.stretch = Some(recorder.begin_phase_at(cells.wait, self.begun));
        }
        polled
    }

    /// Waits for a future: see [`poll`](Self::poll).
    #[cfg(feature = "deadpool")]
    pub(crate) async fn over<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| self.poll(future.as_mut(), cx)).await
    }

    /// The pool gave up: it ran out of time.
    pub fn timed_out(mut self, with: TimeoutKind) {
        self.end(with.counted());
    }

    /// There is no connection, for any other reason.
    pub fn failed(mut self) {
        self.end(|shard| &shard.failed);
    }

    /// Returns when it ended and how long it was, unless it was over before.
    fn end(&mut self, as_what: Counted) -> Option<(Ticks, u64)> {
        if mem::replace(&mut self.over, true) {
            return None;
        }
        let Watched { recorder, cells, .. } = &*self.pool.watched;
        let ended = recorder.now(false);
        let ns = match &self.stretch {
            Some(stretch) => recorder.end_phase(stretch),
            None => recorder.add_phase(cells.wait, self.begun, ended),
        };
        cells.ended(ns, as_what, self.stretch.is_none());
        Some((ended, ns))
    }
}

impl Drop for PoolWait<'_> {
    fn drop(&mut self) {
        self.end(|shard| &shard.cancelled);
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
    pool: PoolWatch,
    /// `None` if somebody else holds the connection, or nobody knows for how long.
    since: Option<Ticks>,
}

#[cfg(feature = "sqlx")]
impl PoolHold {
    /// In use since then.
    #[inline]
    pub(crate) fn new(pool: PoolWatch, since: Option<Ticks>) -> Self {
        Self { pool, since }
    }

    /// Of a connection that somebody else holds.
    pub(crate) fn by_another(&self) -> Self {
        Self { pool: self.pool.clone(), since: None }
    }

    /// The connection goes where it cannot be seen: it counts as given back, and for how long it was in use
    /// is not known.
    pub(crate) fn lose(mut self) {
        if self.since.take().is_some() {
            let (shard, writer) = self.pool.watched.cells.in_slot();
            writer.publish(&shard.released);
        }
    }

    pub(crate) fn pool(&self) -> &PoolWatch {
        &self.pool
    }
}

impl Drop for PoolHold {
    fn drop(&mut self) {
        let Some(since) = self.since else { return };
        let Watched { recorder, cells, .. } = &*self.pool.watched;
        let ns = recorder.nanos_since(since, false);
        let (shard, writer) = cells.record(|shard| &shard.hold, ns);
        writer.publish(&shard.released);
    }
}

impl fmt::Debug for PoolHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolHold").field("pool", &self.pool).finish_non_exhaustive()
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
