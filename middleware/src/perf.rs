//! The handle that a service keeps.

use std::{
    future::IntoFuture,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

#[cfg(feature = "metrics")]
use std::time::Duration;

use axum::Router;

#[cfg(feature = "token")]
use crate::gate::Entrance;
#[cfg(feature = "metrics")]
use crate::publisher;
#[cfg(feature = "sqlx")]
use crate::sqlx::ObservedPool;
use crate::{
    bypass::{Bypass, BypassPolicy},
    counters::Counters,
    endpoint,
    histogram::Precision,
    history::{History, Past, Window},
    layer::PerfLayer,
    phase::{Followed, Observed, Phase},
    pool::{CacheWatch, PoolLevel, PoolWatch, Watched},
    recorder::{LocalRecorder, Recorder},
    route::RouteKey,
    snapshot::Snapshot,
};

/// The handle to everything that is recorded. Clones share it; nothing is global.
///
/// ```
/// use axum::{Router, routing::get};
/// use parallax_middleware::Perf;
///
/// let perf = Perf::new();
/// let app: Router = Router::new()
///     .route("/items/{id}", get(|| async { "an item" }))
///     .layer(perf.layer())
///     .merge(perf.routes());
/// ```
#[derive(Clone, Debug)]
pub struct Perf {
    recorder: Recorder,
    history: Arc<History>,
    /// Is nobody to watch any more?
    over: Arc<AtomicBool>,
}

/// What a stream of snapshots has of the handle: it keeps nothing alive.
#[derive(Clone)]
pub(crate) struct Onlooker {
    counters: Weak<Counters>,
    history: Weak<History>,
    over: Arc<AtomicBool>,
}

impl Onlooker {
    /// Everything recorded so far, or lately; `None` if those who counted have gone.
    pub(crate) fn read(&self, window: Option<Window>) -> Option<Snapshot> {
        let counters = self.counters.upgrade()?;
        Some(match window {
            Some(window) => self.history.upgrade()?.window(&counters, window),
            None => Snapshot::take(&counters),
        })
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }
}

impl Default for Perf {
    fn default() -> Self {
        Self::new()
    }
}

impl Perf {
    /// A handle with nothing recorded yet, room for 512 routes, and two significant digits.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A handle with other bounds than [`new`](Self::new) sets.
    ///
    /// ```
    /// use parallax_middleware::{Perf, Precision};
    ///
    /// let perf = Perf::builder().route_cap(2_000).precision(Precision::ThreeDigits).build();
    /// ```
    pub fn builder() -> PerfBuilder {
        PerfBuilder {
            route_cap: 512,
            precision: Precision::default(),
            #[cfg(feature = "token")]
            entrance: None,
        }
    }

    pub(crate) fn from_recorder(recorder: Recorder) -> Self {
        Self { recorder, history: Arc::default(), over: Arc::default() }
    }

    pub(crate) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// The layer that records. Add it after the routes and outside of whatever should count as the
    /// service's own time.
    #[must_use]
    pub fn layer(&self) -> PerfLayer {
        PerfLayer::new(self.recorder.clone())
    }

    /// `GET /perf` and what lies below it, to merge into the service's router. Merged after the layer, they do
    /// not count themselves.
    ///
    /// | path | what |
    /// |---|---|
    /// | `/perf` | a page (`Accept: text/html`), or else a [`PerfView`](crate::PerfView) as JSON |
    /// | `/perf/live` | a snapshot a second, as server-sent events |
    /// | `/perf/histogram?method=&route=` | the latencies of one route |
    /// | `/perf/metrics` | with the feature `prometheus`: everything since the start, as Prometheus reads it |
    ///
    /// The first three take `?window=10s`, `1m` or `5m`, for what was recorded [lately](Self::window): the first
    /// request begins the sampling that this needs. Without it they show everything since the start.
    ///
    /// They tell anyone who may ask which routes there are and how they fare, though nothing of single
    /// requests: no paths, queries, headers or addresses. Where strangers can reach the service, put them on
    /// a listener of their own, or behind a layer that lets nobody else in,
    /// [`BearerGuard`](crate::BearerGuard) or another:
    ///
    /// ```
    /// # use axum::Router;
    /// # use parallax_middleware::{BearerGuard, Perf};
    /// # let perf = Perf::new();
    /// # let token = "0123456789abcdef0123456789abcdef";
    /// let watching: Router = perf.routes().route_layer(BearerGuard::new(token)?);
    /// # Ok::<(), parallax_middleware::WeakToken>(())
    /// ```
    ///
    /// `route_layer`, unlike `layer`, leaves paths alone that no route matches. Where neither router has a
    /// fallback of its own, axum answers them with the merged router's: they are still recorded, but other
    /// layers, a limiter for example, lie around them only if they are added after the merge.
    ///
    /// A stream of `/perf/live` ends after 20 s, and the client begins the next one, so a graceful shutdown
    /// waits no longer than that; [`end_streams`](Self::end_streams) makes it a second. Histograms are JSON,
    /// or with the feature `hdrhistogram` that tool's V2 encoding.
    pub fn routes<S>(&self) -> Router<S>
    where
        S: Clone + Send + Sync + 'static,
    {
        endpoint::routes(self)
    }

    /// Ends the streams of `/perf/live` within a second, and every later one at once: the service shuts down.
    ///
    /// ```no_run
    /// # use axum::Router;
    /// # async fn serve(perf: parallax_middleware::Perf, listener: tokio::net::TcpListener, app: Router) {
    /// # async fn signal() {}
    /// let goodbye = async move {
    ///     signal().await;
    ///     perf.end_streams();
    /// };
    /// axum::serve(listener, app).with_graceful_shutdown(goodbye).await;
    /// # }
    /// ```
    pub fn end_streams(&self) {
        self.over.store(true, Relaxed);
    }

    /// Somebody looks: begins to sample, if nothing has yet.
    pub(crate) fn watch(&self) {
        self.history.start(&self.recorder);
    }

    pub(crate) fn onlooker(&self) -> Onlooker {
        Onlooker {
            counters: Arc::downgrade(&self.recorder),
            history: Arc::downgrade(&self.history),
            over: self.over.clone(),
        }
    }

    /// What was recorded lately, or since the start.
    pub(crate) fn read(&self, window: Option<Window>) -> Snapshot {
        window.map_or_else(|| self.snapshot(), |window| self.window(window))
    }

    /// The last minutes, interval by interval.
    pub(crate) fn past(&self) -> Vec<Past> {
        self.history.past(&self.recorder)
    }

    /// A way past a limiter for the load that `policy` authorises.
    ///
    /// ```
    /// # use axum::{Router, routing::get};
    /// # use parallax_middleware::{BypassPolicy, Perf};
    /// # let perf = Perf::new();
    /// # let limiter = tower::layer::util::Identity::new();
    /// let app: Router = Router::new()
    ///     .route("/items/{id}", get(|| async { "an item" }))
    ///     .layer(perf.bypass(BypassPolicy::in_process()).around(limiter))
    ///     .layer(perf.layer());
    /// ```
    #[must_use]
    pub fn bypass(&self, policy: BypassPolicy) -> Bypass {
        Bypass::new(self.recorder.clone(), policy)
    }

    /// The route that [`ServerRecord::route_id`](crate::ServerRecord::route_id) stands for; `None` for
    /// a number that this handle's layer did not give out.
    #[must_use]
    pub fn route_key(&self, route_id: u32) -> Option<&RouteKey> {
        self.recorder.route_key(route_id.into())
    }

    /// The name of a phase that a [`PhaseTime`](crate::PhaseTime) stands for.
    #[must_use]
    pub fn phase_name(&self, phase: u8) -> &str {
        self.recorder.phase_name(phase.into())
    }

    /// Begins a phase of the request that this code runs for; it ends when the returned value is dropped.
    ///
    /// Phases are for what a request waits for: `pool_wait:ldap`, `query:search`, `render`. They show, by
    /// route, where its time goes. A request may be in a phase again and again; the times add up. Phases may
    /// overlap, in futures that are joined, and the figures then say by how much.
    ///
    /// The request is the one whose handler, or whatever else under the layer, calls this; of two layers around each
    /// other, the inner one's handle sees phases. Code that runs for no
    /// request, or in a task of its own without [`follow`](Self::follow), is counted too, but under no route.
    ///
    /// A handle keeps 61 names beside its own, `limiter` and `handler`; those past them share the name
    /// `(other)`. So name kinds of work, never users or keys.
    ///
    /// ```
    /// # fn render() -> String { String::new() }
    /// # fn page(perf: &parallax_middleware::Perf) -> String {
    /// let _phase = perf.phase("render");
    /// render()
    /// # }
    /// ```
    pub fn phase(&self, name: &str) -> Phase {
        Phase::begin(LocalRecorder::clone(&self.recorder), self.recorder.phase(name))
    }

    /// Makes the time of a future, from its first poll until it is ready or dropped, a [phase](Self::phase)
    /// of the request that polls it.
    ///
    /// ```
    /// # use std::{io::Result, time::Duration};
    /// # struct Ldap;
    /// # impl Ldap { async fn acquire(&self) -> Result<()> { Ok(()) } }
    /// # async fn bind(perf: &parallax_middleware::Perf, ldap: Ldap) -> Result<()> {
    /// let connection = perf.observe("pool_wait:ldap", ldap.acquire()).await?;
    /// # Ok(connection)
    /// # }
    /// ```
    pub fn observe<F: IntoFuture>(&self, name: &str, future: F) -> Observed<F::IntoFuture> {
        let recorder = LocalRecorder::clone(&self.recorder);
        Observed::new(recorder, self.recorder.phase(name), future.into_future())
    }

    /// Has a future that goes to a task of its own run for the request that this is called for: its phases are
    /// that request's, until the request is over.
    ///
    /// ```
    /// # async fn handler(perf: parallax_middleware::Perf) {
    /// let lookup = tokio::spawn(perf.follow({
    ///     let perf = perf.clone();
    ///     async move { perf.observe("query:search", async { 7 }).await }
    /// }));
    /// # lookup.await.unwrap();
    /// # }
    /// ```
    pub fn follow<F: IntoFuture>(&self, future: F) -> Followed<F::IntoFuture> {
        Followed::new(future.into_future())
    }

    /// Watches a pool of connections that has no wrapper here: bb8, r2d2, a pool of one's own.
    ///
    /// A wait is a phase `pool_wait:<name>` of its request; the snapshot has the waits of all, and how long
    /// connections are kept. Whoever watches a pool of the same name watches the same one. There is no bound on names:
    /// they are the service's own, never a user's.
    ///
    /// ```
    /// # use std::io::Result;
    /// # struct Pool;
    /// # impl Pool { async fn get(&self) -> Result<()> { Ok(()) } }
    /// # async fn search(perf: &parallax_middleware::Perf, pool: Pool) -> Result<()> {
    /// let watch = perf.pool("ldap"); // Once, beside the pool.
    ///
    /// let wait = watch.wait();
    /// let connection = pool.get().await?; // Fails: the wait counts as cancelled.
    /// let _in_use = wait.acquired();
    /// # Ok(connection)
    /// # }
    /// ```
    #[must_use]
    pub fn pool(&self, name: &str) -> PoolWatch {
        PoolWatch::new(Watched::new(LocalRecorder::clone(&self.recorder), name, "other", ()))
    }

    /// Wraps a pool of sqlx: whoever acquires a connection from the wrapper is in the phase `pool_wait:<name>`
    /// until it is there, and a query through it is the phase `query:<name>`. The snapshot has the waits of all,
    /// how long connections are kept, and how many there are. [The module](crate::sqlx) says what is measured.
    ///
    /// A pool is wrapped once, and the wrapper cloned: what watches two under one name adds up their sizes.
    ///
    /// ```
    /// # async fn connect(perf: &parallax_middleware::Perf, url: &str) -> sqlx::Result<()> {
    /// let pool = sqlx::SqlitePool::connect(url).await?;
    /// let pool = perf.observe_sqlx("db", pool);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "sqlx")]
    #[must_use]
    pub fn observe_sqlx<DB: sqlx::Database>(
        &self,
        name: &str,
        pool: sqlx::Pool<DB>,
    ) -> ObservedPool<DB> {
        let recorder = LocalRecorder::clone(&self.recorder);
        ObservedPool::new(Watched::new(recorder, name, "sqlx", pool))
    }

    /// Options for a pool that will be [wrapped](Self::observe_sqlx) under this name: how long it takes to check
    /// idle connections is counted apart, as the pool's `recycle`. Without this, it is part of the waits alone.
    ///
    /// Connections are checked as they were, but by a `before_acquire` in the place of `test_before_acquire`: one
    /// that the options have already is replaced. Options that do not check connections are left as they are.
    ///
    /// ```
    /// # use sqlx::sqlite::SqlitePoolOptions;
    /// # async fn connect(perf: &parallax_middleware::Perf, url: &str) -> sqlx::Result<()> {
    /// let options = perf.observe_sqlx_options("db", SqlitePoolOptions::new());
    /// let pool = perf.observe_sqlx("db", options.connect(url).await?);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "sqlx")]
    pub fn observe_sqlx_options<DB: sqlx::Database>(
        &self,
        name: &str,
        options: sqlx::pool::PoolOptions<DB>,
    ) -> sqlx::pool::PoolOptions<DB> {
        let recorder = LocalRecorder::clone(&self.recorder);
        let pool = PoolWatch::new(Watched::new(recorder, name, "sqlx", ()));
        crate::sqlx::count_checks(options, pool)
    }

    /// Counts what a cache had and had not.
    ///
    /// ```
    /// # use std::collections::HashMap;
    /// # fn price(perf: &parallax_middleware::Perf, prices: &HashMap<u64, u64>) -> Option<u64> {
    /// let cache = perf.cache("prices"); // Once, beside the cache.
    ///
    /// cache.count(prices.get(&7)).copied()
    /// # }
    /// ```
    #[must_use]
    pub fn cache(&self, name: &str) -> CacheWatch {
        CacheWatch::new(&self.recorder, name)
    }

    /// How each pool stands at this moment: a part of a [`snapshot`](Self::snapshot) that is cheap enough to be
    /// read many times a second.
    ///
    /// ```
    /// # let perf = parallax_middleware::Perf::new();
    /// let watch = perf.pool("ldap");
    /// let _waits = watch.wait();
    /// assert_eq!(perf.pool_levels()[0].waiting, 1);
    /// ```
    #[must_use]
    pub fn pool_levels(&self) -> Vec<PoolLevel> {
        self.recorder.pools().levels()
    }

    /// What was recorded lately: the last 10 s, minute or 5 min, and up to a tenth more. The figures say how
    /// long exactly ([`PerfView::window_s`](crate::PerfView::window_s)).
    ///
    /// This takes a sample of the counters once a second, in a task that begins with the first call in a tokio
    /// runtime: what came before is in no window. It ends with the last handle, or with its runtime; the next
    /// call then begins anew. Requests pay nothing for it. Where tests pause tokio's clock, its seconds are
    /// the paused clock's.
    ///
    /// # Panics
    ///
    /// The task panics if the runtime has no timer.
    #[must_use]
    pub fn window(&self, window: Window) -> Snapshot {
        self.history.start(&self.recorder);
        self.history.window(&self.recorder, window)
    }

    /// Publishes everything that is counted to the recorder that the [`metrics`] facade has installed, once
    /// every `every` (at least a millisecond), until the last handle and the last service are gone, and then
    /// once more.
    ///
    /// Names and labels are those of `GET /perf/metrics`. Counters are set to what was counted since the start;
    /// those of seconds are gauges, since the facade's counters are whole numbers. Histograms get each value
    /// that came since they were last published, in the middle of its bucket: as exactly as the
    /// [`Precision`](crate::Precision) says. Requests pay nothing for it: figures come from snapshots, taken on
    /// a thread for blocking work.
    ///
    /// Install the recorder before: what is published without one is lost. Spawn it once, or histograms get
    /// every value twice. Dropped, it stops; what was published stays.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use parallax_middleware::Perf;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let perf = Perf::new();
    /// tokio::spawn(perf.publish(Duration::from_secs(10)));
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// The future panics outside of a tokio runtime with a timer.
    #[cfg(feature = "metrics")]
    pub fn publish(&self, every: Duration) -> impl Future<Output = ()> + Send + use<> {
        publisher::publish(Arc::clone(&self.recorder), every)
    }

    /// Everything recorded so far. Reading makes no request wait.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(&self.recorder)
    }
}

/// Bounds the memory of a [`Perf`] handle: a route costs two histograms for each worker thread that
/// answers it, two more once requests fail or are limited on it. [`Precision`] says how large one is.
#[derive(Clone, Debug)]
#[must_use]
pub struct PerfBuilder {
    route_cap: usize,
    precision: Precision,
    #[cfg(feature = "token")]
    entrance: Option<Entrance>,
}

impl PerfBuilder {
    /// The most templates that have rows of their own, one a method, 1 to 65,536; what comes after shares one
    /// row, `(other)`. Outside of that range, the nearest bound applies.
    pub fn route_cap(self, routes: usize) -> Self {
        Self { route_cap: routes.clamp(1, 65_536), ..self }
    }

    /// How exactly latencies are kept.
    pub fn precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Tells whoever sends a [token](crate::BypassToken) that is good for the request how long it took, in
    /// headers and trailers `Server-Timing`: its route, the time to its first byte, its time in all, and that
    /// in each phase. Nobody else is told. Without tokens in the policy, nobody is.
    ///
    /// The layer then judges tokens itself, takes their header out of every request, and counts those that are
    /// refused. A bypass inside or outside of the layer does not judge them again if it has a clone of the same
    /// policy; give it no other with the same header.
    ///
    /// ```
    /// # use axum::{Router, routing::get};
    /// use parallax_middleware::{BypassPolicy, Perf, TokenKeys};
    ///
    /// # let limiter = tower::layer::util::Identity::new();
    /// let keys = TokenKeys::parse("ci:8f0f7c1e5a4b4d0d9c8e6b1a2f3e4d5c").unwrap();
    /// let policy = BypassPolicy::in_process().tokens(keys);
    /// let perf = Perf::builder().server_timing(&policy).build();
    ///
    /// let app: Router = Router::new()
    ///     .route("/items/{id}", get(|| async { "an item" }))
    ///     .layer(perf.bypass(policy).around(limiter))
    ///     .layer(perf.layer());
    /// ```
    #[cfg(feature = "token")]
    pub fn server_timing(self, policy: &BypassPolicy) -> Self {
        Self { entrance: policy.entrance(), ..self }
    }

    /// The handle.
    #[must_use]
    pub fn build(self) -> Perf {
        let counters = Counters::new(self.route_cap, self.precision);
        #[cfg(feature = "token")]
        let counters = counters.answering(self.entrance);
        Perf::from_recorder(counters.into())
    }
}
