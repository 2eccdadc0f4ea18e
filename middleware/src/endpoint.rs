//! `GET /perf`.

use axum::{
    Json, Router,
    http::header::CACHE_CONTROL,
    response::{IntoResponse, Response},
    routing::get,
};

use crate::perf::Perf;

pub(crate) fn routes<S>(perf: Perf) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    Router::new().route("/perf", get(async move || show(&perf)))
}

fn show(perf: &Perf) -> Response {
    // Figures of this moment: a stored copy would be a lie.
    ([(CACHE_CONTROL, "no-store")], Json(perf.snapshot().view())).into_response()
}
