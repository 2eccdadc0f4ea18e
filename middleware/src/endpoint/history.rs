//! `GET /perf/history`: how many requests there were in the last minutes, and how long they took.

use std::collections::BTreeMap;

use axum::{
    http::{
        HeaderMap,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{JSON, accept, off_the_workers, problem::Problem, varying};
use crate::{history::Past, perf::Perf, route::RouteKey};

/// The past, `parallax.history/1`. The oldest comes first.
#[derive(Serialize)]
struct View<'a> {
    schema: &'static str,
    /// When each interval ended, in seconds before now, and how many seconds it was long.
    intervals: Vec<(f64, f64)>,
    routes: Vec<RouteView<'a>>,
}

/// One number an interval.
#[derive(Serialize)]
struct RouteView<'a> {
    method: &'a str,
    route: &'a str,
    /// That ended.
    requests: Vec<u64>,
    /// Of successes of the service's users, in microseconds; `None` where there are too few.
    p50_us: Vec<Option<f64>>,
    p99_us: Vec<Option<f64>>,
}

pub(super) async fn show(perf: Perf, headers: HeaderMap) -> Response {
    perf.watch();
    if accept::choose(&headers, &[JSON]).is_none() {
        return varying(Problem::not_acceptable("/perf/history", &[JSON]).response(&headers));
    }
    let json = off_the_workers(move || {
        serde_json::to_vec(&view(&perf.past())).expect("it is text and numbers")
    });
    varying(([(CONTENT_TYPE, JSON), (CACHE_CONTROL, "no-store")], json.await).into_response())
}

fn view(past: &[Past]) -> View<'_> {
    let seconds = |past: &Past| (past.ago.as_secs_f64(), past.length.as_secs_f64());
    let mut routes: BTreeMap<&RouteKey, RouteView<'_>> = BTreeMap::new();
    for (n, interval) in past.iter().enumerate() {
        for (key, ended) in &interval.routes {
            let row = routes.entry(key).or_insert_with(|| RouteView {
                method: key.method(),
                route: key.template(),
                requests: vec![0; past.len()],
                p50_us: vec![None; past.len()],
                p99_us: vec![None; past.len()],
            });
            (row.requests[n], row.p50_us[n], row.p99_us[n]) =
                (ended.requests, ended.p50_us, ended.p99_us);
        }
    }
    View {
        schema: "parallax.history/1",
        intervals: past.iter().map(seconds).collect(),
        routes: routes.into_values().collect(),
    }
}
