//! Pools of `deadpool`.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use ::deadpool::managed::{
    Manager, Metrics, Object, Pool, PoolError, RecycleResult, TimeoutType, Timeouts,
};
use tokio::time::Instant;

use crate::{
    perf::Perf,
    pool::{PoolHold, PoolSize, PoolSource, PoolWatch, TimeoutKind, Watched},
    recorder::LocalRecorder,
};

/// What pools of this kind are called in a snapshot.
const KIND: &str = "deadpool";

impl Perf {
    /// Watches a pool of `deadpool`, whatever its manager and its wrapper, by wrapping it.
    ///
    /// A wait for a connection is a phase `pool_wait:<name>` of its request; the snapshot has the waits of all,
    /// and how long connections are kept. A wait ends with a connection that may be used: what it takes to
    /// create or to recycle one is part of it, and [`ObservedDeadpool`] says when it is counted apart.
    ///
    /// Wrap a pool once and clone the wrapper: each one adds the pool's size to what is known by that name.
    /// The pool goes when the last of them does.
    ///
    /// ```
    /// # use std::convert::Infallible;
    /// # use deadpool::managed::{self, Metrics, Pool, PoolError, RecycleResult};
    /// # use parallax_middleware::Perf;
    /// # struct Ldap;
    /// # impl Ldap { async fn bind(&mut self) {} }
    /// # impl managed::Manager for Ldap {
    /// #     type Type = Ldap;
    /// #     type Error = Infallible;
    /// #     async fn create(&self) -> Result<Ldap, Infallible> { Ok(Ldap) }
    /// #     async fn recycle(&self, _: &mut Ldap, _: &Metrics) -> RecycleResult<Infallible> { Ok(()) }
    /// # }
    /// # async fn search(perf: &Perf, pool: Pool<Ldap>) -> Result<(), PoolError<Infallible>> {
    /// let pool = perf.observe_deadpool("ldap", pool); // Once, where the pool is made.
    ///
    /// let mut connection = pool.get().await?;
    /// connection.bind().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn observe_deadpool<M, W>(&self, name: &str, pool: Pool<M, W>) -> ObservedDeadpool<M, W>
    where
        M: Manager + 'static,
        W: From<Object<M>>,
    {
        // The same pool without its wrapper, so that the metrics of its objects are at hand.
        let objects = pool.weak().upgrade().expect("it is there");
        let source = Arc::new(Source { pool: pool.weak().upgrade().expect("it is there") });
        let recorder = LocalRecorder::clone(self.recorder());
        let watch = PoolWatch::new(Watched::new(recorder, name, KIND, ())).sized_by(&source);
        ObservedDeadpool { pool, objects, watch, source }
    }

    /// Counts apart what the pool of a name takes to create and to recycle connections, each time: for those
    /// who build their pool from a manager, and have it [observed](Self::observe_deadpool) by the same
    /// name.
    ///
    /// ```
    /// # use std::{convert::Infallible, error::Error};
    /// # use deadpool::managed::{self, Metrics, Pool, RecycleResult};
    /// # struct Ldap;
    /// # impl managed::Manager for Ldap {
    /// #     type Type = Ldap;
    /// #     type Error = Infallible;
    /// #     async fn create(&self) -> Result<Ldap, Infallible> { Ok(Ldap) }
    /// #     async fn recycle(&self, _: &mut Ldap, _: &Metrics) -> RecycleResult<Infallible> { Ok(()) }
    /// # }
    /// # fn pool(perf: &parallax_middleware::Perf, manager: Ldap) -> Result<(), Box<dyn Error>> {
    /// let pool = Pool::builder(perf.observe_manager("ldap", manager)).max_size(5).build()?;
    /// let pool: managed::Pool<_> = pool;
    /// let pool = perf.observe_deadpool("ldap", pool);
    /// # Ok(())
    /// # }
    /// ```
    pub fn observe_manager<M: Manager>(&self, name: &str, manager: M) -> ObservedManager<M> {
        let recorder = LocalRecorder::clone(self.recorder());
        let watch = PoolWatch::new(Watched::new(recorder, name, KIND, ()));
        watch.times_its_parts();
        ObservedManager { manager, watch }
    }
}

/// A pool of `deadpool` that is watched. Made by [`Perf::observe_deadpool`].
///
/// It has [`get`](Self::get) and [`timeout_get`](Self::timeout_get); for all else it derefs to the pool. Who
/// asks the pool itself is not counted. Clones share the pool.
///
/// How the time of a wait is told apart:
/// - The wait is from the first poll until there is a connection or an error.
/// - If a slot was free at once, all of it was spent on creating a connection, or on recycling one, and is
///   counted so as well: by what became of it, with attempts that failed before and with hooks.
/// - If none was, what follows upon the free slot is part of the wait only: a finished pool does not tell
///   when a slot came free. With [`Perf::observe_manager`] the pool does, and each call of the manager that
///   succeeds is counted, whoever waited, without hooks.
///
/// `deadpool` never says that recycling timed out: it drops the connection and takes another. So
/// [`TimeoutKind::Recycle`] is not counted.
pub struct ObservedDeadpool<M: Manager, W: From<Object<M>> = Object<M>> {
    pool: Pool<M, W>,
    objects: Pool<M>,
    watch: PoolWatch,
    /// Not of the watch, which connections hold: they keep no pool open.
    source: Arc<dyn PoolSource>,
}

impl<M: Manager, W: From<Object<M>>> ObservedDeadpool<M, W> {
    /// Waits for a connection, as [`Pool::get`] does.
    ///
    /// # Errors
    /// Those of [`Pool::get`]: timeouts are counted as such, by what took the time, and all others as failed.
    ///
    /// # Cancel safety
    /// Dropped, it gives its place in the queue away, and counts as cancelled.
    pub async fn get(&self) -> Result<ObservedObject<W>, PoolError<M::Error>> {
        self.timeout_get(&self.pool.timeouts()).await
    }

    /// Waits for a connection with other timeouts than the pool has, as [`Pool::timeout_get`] does. A pool
    /// without a runtime complains of a timeout only once no slot is free at once.
    ///
    /// # Errors
    /// Those of [`get`](Self::get).
    ///
    /// # Cancel safety
    /// That of [`get`](Self::get).
    pub async fn timeout_get(
        &self,
        timeouts: &Timeouts,
    ) -> Result<ObservedObject<W>, PoolError<M::Error>> {
        let mut wait = self.watch.ask();
        // Without queueing: nobody is overtaken, as slots that come free go to those who queue.
        let at_once = Timeouts { wait: Some(Duration::ZERO), ..*timeouts };
        let mut got = wait.over(self.objects.timeout_get(&at_once)).await;
        let queued = timeouts.wait != at_once.wait
            && matches!(got, Err(PoolError::Timeout(TimeoutType::Wait)));
        if queued {
            got = wait.over(self.objects.timeout_get(timeouts)).await;
        }
        match got {
            Ok(object) => {
                let (hold, took) = wait.acquired_after();
                if !queued {
                    self.watch.prepared(Object::metrics(&object).recycle_count == 0, took);
                }
                Ok(ObservedObject { hold, inner: object.into() })
            }
            Err(error) => {
                match error {
                    PoolError::Timeout(with) => wait.timed_out(kind_of(with)),
                    _ => wait.failed(),
                }
                Err(error)
            }
        }
    }
}

fn kind_of(timeout: TimeoutType) -> TimeoutKind {
    match timeout {
        TimeoutType::Wait => TimeoutKind::Wait,
        TimeoutType::Create => TimeoutKind::Create,
        TimeoutType::Recycle => TimeoutKind::Recycle,
    }
}

impl<M: Manager, W: From<Object<M>>> Deref for ObservedDeadpool<M, W> {
    type Target = Pool<M, W>;

    fn deref(&self) -> &Pool<M, W> {
        &self.pool
    }
}

impl<M: Manager, W: From<Object<M>>> Clone for ObservedDeadpool<M, W> {
    fn clone(&self) -> Self {
        let (pool, objects) = (self.pool.clone(), self.objects.clone());
        Self { pool, objects, watch: self.watch.clone(), source: self.source.clone() }
    }
}

impl<M: Manager, W: From<Object<M>>> fmt::Debug for ObservedDeadpool<M, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.pool.status();
        f.debug_struct("ObservedDeadpool").field("status", &status).finish_non_exhaustive()
    }
}

/// Knows how large a pool is.
struct Source<M: Manager> {
    pool: Pool<M>,
}

impl<M: Manager> PoolSource for Source<M> {
    fn size(&self) -> PoolSize {
        let status = self.pool.status();
        let [max, size, idle] =
            [status.max_size, status.size, status.available].map(|connections| connections as u64);
        PoolSize { max, size, idle }
    }
}

/// A connection of an [`ObservedDeadpool`]. It derefs to what the pool hands out.
///
/// It counts as in use until it is dropped or [taken apart](Self::into_inner).
#[must_use = "dropped, it goes back into the pool"]
pub struct ObservedObject<W> {
    // Dropped first: as soon as the connection is back, somebody else may have it.
    hold: PoolHold,
    inner: W,
}

impl<W> ObservedObject<W> {
    /// What the pool handed out, for [`Object::take`] for example. It counts as in use no more.
    pub fn into_inner(this: Self) -> W {
        drop(this.hold);
        this.inner
    }
}

impl<W> Deref for ObservedObject<W> {
    type Target = W;

    fn deref(&self) -> &W {
        &self.inner
    }
}

impl<W> DerefMut for ObservedObject<W> {
    fn deref_mut(&mut self) -> &mut W {
        &mut self.inner
    }
}

impl<W> fmt::Debug for ObservedObject<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObservedObject").field("hold", &self.hold).finish_non_exhaustive()
    }
}

/// A manager of connections that is watched. Made by [`Perf::observe_manager`].
///
/// It derefs to the manager.
#[derive(Debug)]
pub struct ObservedManager<M> {
    manager: M,
    watch: PoolWatch,
}

impl<M: Manager> Manager for ObservedManager<M> {
    type Type = M::Type;
    type Error = M::Error;

    async fn create(&self) -> Result<M::Type, M::Error> {
        let start = Instant::now();
        let created = self.manager.create().await?;
        self.watch.created(start.elapsed());
        Ok(created)
    }

    async fn recycle(&self, object: &mut M::Type, metrics: &Metrics) -> RecycleResult<M::Error> {
        let start = Instant::now();
        self.manager.recycle(object, metrics).await?;
        self.watch.recycled(start.elapsed());
        Ok(())
    }

    fn detach(&self, object: &mut M::Type) {
        self.manager.detach(object);
    }
}

impl<M> Deref for ObservedManager<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.manager
    }
}
