//! `GET /perf`.

use axum::{
    Json, Router,
    http::header::CACHE_CONTROL,
    response::{IntoResponse, Response},
    routing::get,
};

#[cfg(feature = "prometheus")]
use crate::exposition;
use crate::perf::Perf;

pub(crate) fn routes<S>(perf: Perf) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    // Of two merged routers without a fallback of their own, axum keeps the second one's 404: it must
    // carry the layer too, or whatever no route matches would go unseen. The route comes after the
    // layer, so it does not count itself.
    let routes = Router::new().layer(perf.layer());
    #[cfg(feature = "prometheus")]
    let routes = routes.route(
        "/perf/metrics",
        get({
            let perf = perf.clone();
            async move || exposition::show(&perf).await
        }),
    );
    routes.route("/perf", get(async move || show(&perf)))
}

fn show(perf: &Perf) -> Response {
    // Figures of this moment: a stored copy would be a lie.
    ([(CACHE_CONTROL, "no-store")], Json(perf.snapshot().view())).into_response()
}
