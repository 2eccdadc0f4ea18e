//! What the tests share.

pub(crate) mod browser;
pub(crate) mod client;
pub(crate) mod listening;
pub(crate) mod postgres;
pub(crate) mod promtool;
pub(crate) mod redis;
pub(crate) mod rig;
pub(crate) mod server;
pub(crate) mod wire;

use std::{future::Future, time::Duration};

use axum::{
    Router,
    extract::Request,
    http::StatusCode,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use parallax_middleware::{BypassPolicy, Perf};
use tokio::time::{Instant, sleep};

/// The service behind a limiter that turns all requests away but those with a pass, and behind the layer.
pub(crate) fn limited(service: Router) -> Router {
    async fn turn_away(_: Request, _: Next) -> Response {
        StatusCode::TOO_MANY_REQUESTS.into_response()
    }
    let perf = Perf::new();
    service
        .layer(perf.bypass(BypassPolicy::in_process()).around(from_fn(turn_away)))
        .layer(perf.layer())
}

/// Waits until `reached` returns something, by asking every few milliseconds.
///
/// The deadline only bounds a test that fails; no test depends on how long the wait took.
///
/// # Panics
/// After 20 s, with `what` was waited for.
pub(crate) async fn eventually<T, F>(what: &str, mut reached: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = reached().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited 20 s in vain until {what}");
        sleep(Duration::from_millis(2)).await;
    }
}
