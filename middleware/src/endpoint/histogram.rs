//! `GET /perf/histogram`: the whole distribution of one route's latencies.

use axum::{
    http::{
        HeaderMap, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

#[cfg(feature = "hdrhistogram")]
use super::TEXT;
use super::{Asked, JSON, accept, off_the_workers, parameters, problem::Problem, varying, window};
use crate::{
    histogram::{LatencyHistogram, LatencySummary, samples_needed},
    perf::Perf,
};

/// The query of `GET /perf/histogram`.
#[derive(Deserialize)]
pub(super) struct Which {
    method: Option<String>,
    route: Option<String>,
    window: Option<String>,
}

/// A distribution, `parallax.histogram/1`.
#[derive(Serialize)]
struct Distribution<'a> {
    schema: &'static str,
    method: &'a str,
    route: &'a str,
    /// Seconds that it covers; `None` if it goes back to the start.
    window_s: Option<f64>,
    latency: LatencySummary,
    /// Quantile and microseconds, up to the last quantile that has enough samples behind it.
    curve: Vec<(f64, f64)>,
}

#[cfg(feature = "hdrhistogram")]
const FORMS: &[&str] = &[TEXT, JSON];
#[cfg(not(feature = "hdrhistogram"))]
const FORMS: &[&str] = &[JSON];

pub(super) async fn show(perf: Perf, headers: HeaderMap, query: Asked<Which>) -> Response {
    perf.watch();
    let answer = async {
        let Which { method, route, window: name } = parameters(query)?;
        let window = window(name.as_deref())?;
        let (Some(method), Some(route)) = (method, route) else {
            let example = "/perf/histogram?method=GET&route=/items/{id}";
            return Err(Problem::bad_request(format!("which route? Ask as in {example}")));
        };
        let Some(form) = accept::choose(&headers, FORMS) else {
            return Err(not_acceptable());
        };
        let body = off_the_workers(move || {
            let snapshot = perf.read(window);
            let latencies = match snapshot.route(&method, &route) {
                Some(counts) => counts.users.ok.clone(),
                // A route that nobody asked for lately is one all the same.
                None if perf.snapshot().route(&method, &route).is_some() => LatencyHistogram::new(),
                None => return None,
            };
            Some(match form {
                #[cfg(feature = "hdrhistogram")]
                TEXT => encoding::payload(&latencies),
                _ => distribution(&Distribution {
                    schema: "parallax.histogram/1",
                    method: &method,
                    route: &route,
                    window_s: snapshot.window.map(|window| window.as_secs_f64()),
                    latency: latencies.summary(),
                    curve: curve(&latencies),
                }),
            })
        });
        let unknown = "no request of this method and route was recorded: GET /perf lists those that were, \
             with `method` and `route` as they are written here";
        let body = body.await.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, unknown))?;
        Ok(([(CONTENT_TYPE, form), (CACHE_CONTROL, "no-store")], body).into_response())
    };
    varying(answer.await.unwrap_or_else(|problem| problem.response(&headers)))
}

fn not_acceptable() -> Problem {
    if cfg!(feature = "hdrhistogram") {
        Problem::not_acceptable("/perf/histogram", FORMS)
    } else {
        let text = "/perf/histogram comes as application/json, and with the feature `hdrhistogram` of \
             parallax-middleware as text/plain";
        Problem::new(StatusCode::NOT_ACCEPTABLE, text)
    }
}

fn distribution(distribution: &Distribution<'_>) -> String {
    serde_json::to_string(distribution).expect("it is text and numbers")
}

/// Four steps in each halving of what lies above.
fn curve(latencies: &LatencyHistogram) -> Vec<(f64, f64)> {
    let micros = |duration: std::time::Duration| duration.as_nanos() as f64 / 1e3;
    (0..100)
        .map(|step| 1.0 - 0.5_f64.powf(f64::from(step) / 4.0))
        .take_while(|q| latencies.count() >= samples_needed(*q))
        .filter_map(|q| Some((q, micros(latencies.quantile(q)?))))
        .collect()
}

#[cfg(feature = "hdrhistogram")]
mod encoding {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use hdrhistogram::{
        Histogram,
        serialization::{Serializer, V2DeflateSerializer},
    };

    use crate::histogram::{LatencyHistogram, Precision};

    /// Nanoseconds in `HdrHistogram`'s V2 encoding, compressed and in base64, as its logs have it.
    pub(super) fn payload(latencies: &LatencyHistogram) -> String {
        let digits = match latencies.precision() {
            Precision::OneDigit => 1,
            Precision::TwoDigits => 2,
            Precision::ThreeDigits => 3,
        };
        let hour = 3_600_000_000_000;
        let mut histogram = Histogram::<u64>::new_with_max(hour, digits)
            .expect("the bounds and the digits are possible");
        for (low, width, n) in latencies.buckets() {
            let middle = u128::from(low + width / 2);
            let value = middle.clamp(latencies.min().as_nanos(), latencies.max().as_nanos());
            histogram.saturating_record_n(value.try_into().unwrap_or(hour), n);
        }
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(&histogram, &mut bytes)
            .expect("counts of the size that buckets have fit, and memory takes what is written");
        STANDARD.encode(bytes)
    }
}
