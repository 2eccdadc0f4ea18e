//! See every request of an axum service from the inside.
//!
//! A tower layer records latency histograms, outcomes and in-flight requests, per route, from entry to
//! the end of the response body; `GET /perf` shows them while the service runs. A load generator in the
//! same process can pair each of its requests with the server's record of it.
//!
//! ```
//! use axum::{Router, body::Body, routing::get};
//! use http::Request;
//! use parallax_middleware::Perf;
//! use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let perf = Perf::new();
//! let app: Router = Router::new()
//!     .route("/items/{id}", get(|| async { "an item" }))
//!     .layer(perf.layer())
//!     .merge(perf.routes());
//!
//! let response = app.oneshot(Request::get("/items/7").body(Body::empty()).unwrap()).await.unwrap();
//! axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
//!
//! let row = &perf.snapshot().view().routes[0];
//! assert_eq!((row.method.as_str(), row.route.as_str()), ("GET", "/items/{id}"));
//! assert_eq!((row.requests, row.outcomes.ok, row.in_flight), (1, 1, 0));
//! # }
//! ```
//!
//! Features, none of which is on by default:
//! - `compression`: `GET /perf` and what lies below it are compressed with gzip for clients that ask for it.
//! - `deadpool`: pools of `deadpool` say how long was waited for a connection (`Perf::observe_deadpool`).
//! - `deadpool-redis`: pools of `deadpool-redis` say besides how long commands took, and what the cache had
//!   (`Perf::observe_redis`).
//! - `sqlx`: pools of sqlx 0.9 that say how long is waited for connections and queries (`Perf::observe_sqlx`).
//! - `hdrhistogram`: `GET /perf/histogram` can answer in `HdrHistogram`'s own encoding.
//! - `metrics`: everything is published to the recorder of the `metrics` facade (`Perf::publish`).
//! - `prometheus`: `GET /perf/metrics`, in the text format of Prometheus.
//! - `token`: load that comes over a connection can be let past a limiter ([`BypassPolicy`]), and be told how
//!   long its requests took (`PerfBuilder::server_timing`).
//! - `test-util`: requests are timed by tokio's clock, which tests can pause.

mod body;
mod bypass;
mod clock;
mod counters;
mod counts;
#[cfg(feature = "deadpool")]
mod deadpool;
mod endpoint;
#[cfg(feature = "prometheus")]
mod exposition;
mod future;
#[cfg(feature = "token")]
mod gate;
mod guard;
mod histogram;
mod history;
#[cfg(feature = "token")]
mod keys;
mod layer;
#[cfg(any(feature = "metrics", feature = "prometheus"))]
mod metric;
mod naming;
mod outcome;
#[cfg(feature = "token")]
mod peer;
mod perf;
mod phase;
mod pool;
mod probe;
mod process;
#[cfg(feature = "metrics")]
mod publisher;
mod recorder;
#[cfg(feature = "deadpool-redis")]
mod redis;
mod route;
#[cfg(feature = "token")]
mod server_timing;
mod service;
mod slot;
mod snapshot;
#[cfg(feature = "sqlx")]
pub mod sqlx;
mod stored;
mod sync;
#[cfg(feature = "token")]
mod token;

#[cfg(feature = "deadpool")]
pub use self::deadpool::{ObservedDeadpool, ObservedManager, ObservedObject};
pub use bypass::{Bypass, BypassFuture, BypassLayer, BypassPolicy, BypassService, LetThrough};
pub use counts::{
    CacheCounts, LimiterCounts, PhaseCounts, PoolCounts, RefusedTokens, RouteCounts, StreamCounts,
    TrafficCounts,
};
pub use future::PerfFuture;
#[cfg(feature = "token")]
pub use gate::TokenCheck;
pub use guard::{BearerGuard, GuardFuture, Guarded, WeakToken};
pub use histogram::{LatencyHistogram, LatencySummary, Precision, samples_needed};
pub use history::{UnknownWindow, Window};
#[cfg(feature = "token")]
pub use keys::{KeyError, TokenKeys};
pub use layer::PerfLayer;
pub use naming::{MatchedTemplate, NameRoute, RequestHead};
pub use outcome::Outcome;
#[cfg(feature = "token")]
pub use peer::{PeerRange, PeerRangeError};
pub use perf::{Perf, PerfBuilder};
pub use phase::{Followed, Observed, Phase};
pub use pool::{CacheWatch, PoolHold, PoolLevel, PoolWait, PoolWatch, TimeoutKind};
pub use probe::{LoadMark, PhaseTime, Probe, ProbeSource, ServerRecord};
pub use process::ProcessUsage;
#[cfg(feature = "deadpool-redis")]
pub use redis::{ObservedConnection, ObservedRedis};
pub use route::RouteKey;
pub use service::PerfService;
pub use snapshot::{
    CacheView, LimiterView, LoadView, OutcomesView, OverlapView, PerfView, PoolView, ProcessView,
    RouteView, RuntimeView, Snapshot, StreamsView,
};
#[cfg(feature = "token")]
pub use token::{BypassToken, TokenError, TokenRefusal};
