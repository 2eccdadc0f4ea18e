//! The service, put together.

use std::{any::Any, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use parallax_middleware::{BearerGuard, BypassPolicy, Perf};
use tokio::{sync::Notify, task::JoinHandle};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    auth::{self, Keys},
    cache::{Cache, MemoryCache, ReadThrough, RedisCache},
    config::{ApiKey, Config},
    extract::BODY_LIMIT,
    problem::ApiError,
    refresh::{self, LiveModel},
    routes::{self, AppState},
    store::Store,
    writer::Writer,
};

/// How long a shutdown waits for what is under way.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// A running service: its storage is open, its worker runs, and its [router](Service::router) answers.
/// It listens nowhere by itself.
///
/// Dropped without [`shutdown`](Service::shutdown), the tasks behind it go on until the runtime ends.
#[derive(Debug)]
pub struct Service {
    router: Router,
    perf: Perf,
    api_key: ApiKey,
    store: Store,
    tasks: Vec<(Arc<Notify>, JoinHandle<()>)>,
}

impl Service {
    /// Connects, brings the tables up to date, and starts the worker that keeps the model fresh.
    ///
    /// # Errors
    /// The database, or Redis where it is set, cannot be reached within 10 s, or refuses.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let limiter = auth::limiter(&config)?;
        let policy = BypassPolicy::in_process();
        // Load that comes with a token is told how long it took, for both views.
        let (perf, policy) = match &config.bypass_keys {
            Some(keys) => {
                let policy = policy.tokens(keys.clone());
                (Perf::builder().server_timing(&policy).build(), policy)
            }
            None => (Perf::new(), policy),
        };
        let store = Store::open(&config, &perf).await?;
        let cache: Box<dyn Cache> = match &config.redis_url {
            None => Box::new(MemoryCache::new(&perf)),
            Some(url) => {
                // Two services on one Redis but two databases must not read each other's answers.
                let installation =
                    store.installation().await.map_err(|error| StartError::Database {
                        url: config.database_url.shown(),
                        reason: error.to_string(),
                    })?;
                let prefix = format!("example-service:{installation}");
                Box::new(RedisCache::connect(url, config.redis_connections, prefix, &perf).await?)
            }
        };

        let written = Arc::new(Notify::new());
        let (stop_writer, stop_worker) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let model = LiveModel::new();
        let (writer, writer_task) =
            Writer::start(store.clone(), written.clone(), stop_writer.clone());
        let interval = config.model_refresh_interval;
        let worker_task =
            refresh::start(store.clone(), model.clone(), interval, written, stop_worker.clone());

        let cache = ReadThrough::new(cache, config.cache_ttl);
        let state = AppState { store: store.clone(), writer, cache, model };
        let keys = Keys::new(&config.api_keys);
        let router = router(Arc::new(state), &perf, keys, limiter, policy, config.perf_guard);
        let Some(api_key) = config.api_keys.into_iter().next() else {
            return Err(StartError::NoApiKey);
        };
        // The writer first: what it still writes, nobody needs to read.
        let tasks = vec![(stop_writer, writer_task), (stop_worker, worker_task)];
        Ok(Self { router, perf, api_key, store, tasks })
    }

    /// The whole service as a router, to serve or to call in process. Clones are cheap.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// What the layer around the service has seen.
    #[must_use]
    pub fn perf(&self) -> &Perf {
        &self.perf
    }

    /// A key that opens the service, for callers in the same process.
    #[must_use]
    pub fn api_key(&self) -> &ApiKey {
        &self.api_key
    }

    /// Writes what waits to be written, stops the worker and closes the connections, all within 10 s.
    /// From then on the router answers 503 where it needs the database.
    pub async fn shutdown(self) {
        let stop = async {
            for (stop, task) in self.tasks {
                // Kept for a task that does not wait at this moment.
                stop.notify_one();
                if let Err(error) = task.await {
                    tracing::error!(%error, "a background task failed");
                }
            }
            self.store.close().await;
        };
        if tokio::time::timeout(SHUTDOWN_DEADLINE, stop).await.is_err() {
            tracing::warn!("not everything ended within {SHUTDOWN_DEADLINE:?}; leaving it");
        }
    }
}

type Limiter = tower_governor::GovernorLayer<
    auth::ByKey,
    governor::middleware::NoOpMiddleware,
    axum::body::Body,
>;

/// From the outside in: the layer that records, panics caught, the key, the limiter and the way around
/// it, the routes. So 401, 429 and panics are all in the figures.
fn router(
    state: Arc<AppState>,
    perf: &Perf,
    keys: Keys,
    limiter: Limiter,
    policy: BypassPolicy,
    perf_guard: Option<BearerGuard>,
) -> Router {
    let with_key = from_fn_with_state(keys, auth::require_key);
    let api = Router::new()
        .route("/entities", post(routes::post_entities))
        .route("/entities/{id}", get(routes::get_entity))
        .route("/interactions", post(routes::post_interactions))
        .route("/recommendations/{user_id}", get(routes::recommendations))
        .route("/similar/{id}", get(routes::similar))
        .route("/trending", get(routes::trending))
        .route("/search", get(routes::search))
        .fallback(routes::not_found)
        .method_not_allowed_fallback(routes::method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(perf.bypass(policy).around(limiter))
        .layer(with_key.clone());
    // A browser can send a password, and no header of ours.
    let watching = match perf_guard {
        Some(guard) => perf.routes().route_layer(guard),
        None => perf.routes().route_layer(with_key),
    };
    // For load balancers: they have no key.
    let open = Router::new()
        .route("/health", get(routes::health))
        .method_not_allowed_fallback(routes::method_not_allowed);
    open.merge(api)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(perf.layer())
        .with_state(state)
        // Outside of the layer: watching is not traffic.
        .merge(watching)
}

#[expect(clippy::needless_pass_by_value, reason = "the layer hands it over")]
fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    tracing::error!(message, "a handler panicked");
    ApiError::Internal.into_response()
}

/// Why the service could not start. No variant shows a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Nobody answers there, or it cannot be used.
    #[error(
        "cannot use the database {url}: {reason}; check that it runs and may be written, or set DATABASE_URL \
         to another one"
    )]
    Database {
        /// Where it was looked for, without a password.
        url: String,
        /// What the driver says.
        reason: String,
    },
    /// Nobody answers there.
    #[error(
        "cannot use Redis {url}: {reason}; check that it runs, or unset REDIS_URL for a cache in the process"
    )]
    Redis {
        /// Where it was looked for, without a password.
        url: String,
        /// What the driver says.
        reason: String,
    },
    /// More requests a minute than the limiter's clock can tell apart.
    #[error("a rate limit of {requests} requests per 60 s is too fine for the limiter")]
    RateLimit {
        /// What was asked for.
        requests: u32,
    },
    /// The configuration holds no key.
    #[error("the service has no API key")]
    NoApiKey,
}

#[cfg(test)]
mod tests;
