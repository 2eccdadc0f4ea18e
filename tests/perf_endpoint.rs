//! `GET /perf`: what the contract promises, after real requests.

use std::{collections::BTreeSet, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, StatusCode},
    response::Response,
    routing::get,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use hdrhistogram::{Histogram, serialization::Deserializer};
use http_body_util::BodyExt;
use parallax_middleware::{BearerGuard, BypassPolicy, Perf, PerfView};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep, timeout};
use tower::layer::util::Identity;

use crate::support::rig::{Answer, Rig, request, with_pass};

/// A service as the documentation shows it.
fn service() -> (Perf, Rig) {
    let perf = Perf::new();
    let app = Router::new()
        .route("/items/{id}", get(async || "an item"))
        .route("/broken", get(async || StatusCode::INTERNAL_SERVER_ERROR))
        .layer(perf.bypass(BypassPolicy::in_process()).around(Identity::new()))
        .layer(perf.layer())
        .merge(perf.routes());
    (perf.clone(), Rig::new(&perf, app))
}

/// Reads `/perf`, which lies outside of the layer: no probe is filled for it.
async fn read(rig: &Rig) -> Value {
    let body = rig.open(request("GET", "/perf")).await.into_body();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.expect("the body is whole");
    serde_json::from_slice(&bytes).expect("it is JSON")
}

fn row<'a>(perf: &'a Value, route: &str) -> &'a Value {
    let rows = perf["routes"].as_array().expect("an array");
    rows.iter().find(|row| row["route"] == route).expect("the route was asked for")
}

#[tokio::test]
async fn it_is_json_that_nobody_may_store() {
    let (_, rig) = service();
    let response = rig.open(request("GET", "/perf")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers()["cache-control"], "no-store");
}

#[tokio::test]
async fn it_has_the_fields_of_the_contract() {
    let (_, rig) = service();
    for n in 0..100 {
        let Answer { status, .. } = rig.get(&format!("/items/{n}")).await;
        assert_eq!(status, StatusCode::OK);
    }
    rig.send(with_pass(request("GET", "/items/7"))).await;
    rig.get("/broken").await;
    rig.get("/nowhere").await;
    let perf = read(&rig).await;

    assert_eq!(perf["schema"], "parallax.perf/1");
    assert!(perf["uptime_s"].as_f64().is_some_and(|seconds| seconds > 0.0));
    assert_eq!(perf["window_s"], Value::Null);
    let items = row(&perf, "/items/{id}");
    assert_eq!(items["method"], "GET");
    assert_eq!((&items["requests"], &items["in_flight"]), (&json!(101), &json!(0)));
    assert_eq!(
        items["outcomes"],
        json!({"ok": 101, "client_error": 0, "limited": 0, "server_error": 0, "cancelled": 0,
               "panicked": 0})
    );
    assert_eq!((&items["bypassed"], &items["response_bytes"]), (&json!(1), &json!(101 * 7)));
    for latency in [&items["latency"], &items["time_to_first_byte"]] {
        // The load that passed by the limiter is apart.
        assert_eq!(latency["count"], 100);
        let figure = |name: &str| latency[name].as_f64();
        let rising = ["min_us", "p50_us", "p90_us", "p95_us", "max_us"].map(figure);
        assert!(rising.iter().all(Option::is_some), "{latency}");
        assert!(rising.is_sorted(), "{latency}");
        assert!(figure("mean_us") >= figure("min_us") && figure("mean_us") <= figure("max_us"));
        // 100 samples say nothing about these; a number would be the maximum in disguise.
        assert_eq!((&latency["p99_us"], &latency["p999_us"]), (&Value::Null, &Value::Null));
    }
    assert_eq!(items["load"]["latency"]["count"], 1);
    assert_eq!(row(&perf, "/broken")["outcomes"]["server_error"], 1);
    assert_eq!(row(&perf, "/broken")["latency"]["count"], 0);
    assert_eq!(row(&perf, "(unmatched)")["outcomes"]["client_error"], 1);
    // The 404 is that of the endpoint's router: the limiter does not lie around it.
    assert_eq!(
        perf["limiter"],
        json!({"admitted": 101, "limited": 0, "bypassed": 1,
               "refused_tokens": {"malformed": 0, "forged": 0, "expired": 0, "out_of_scope": 0}})
    );
    assert_eq!(perf["runtime"]["workers"], 1);
    assert!(
        perf["runtime"]["alive_tasks"].is_u64() && perf["runtime"]["global_queue_depth"].is_u64()
    );
    if cfg!(target_os = "linux") {
        assert!(perf["process"]["rss_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
        assert!(perf["process"]["cpu_s"].as_f64().is_some_and(|seconds| seconds > 0.0));
    }
}

#[tokio::test]
async fn it_reads_back_as_the_type_that_wrote_it() {
    let (_, rig) = service();
    rig.get("/items/7").await;
    let json = read(&rig).await;
    let view: PerfView = serde_json::from_value(json.clone()).expect("the type reads its own JSON");
    assert_eq!(serde_json::to_value(&view).expect("it can be written"), json);
}

#[tokio::test]
async fn readers_ignore_fields_that_they_do_not_know() {
    let (_, rig) = service();
    rig.get("/items/7").await;
    let mut json = read(&rig).await;
    json["from_the_future"] = json!({"any": "thing"});
    json["routes"][0]["from_the_future"] = json!(1);
    serde_json::from_value::<PerfView>(json).expect("unknown fields are no error");
}

#[tokio::test]
async fn parts_that_a_service_does_not_use_are_absent() {
    let perf = Perf::new();
    let app = Router::new().route("/", get(async || "home")).layer(perf.layer());
    let rig = Rig::new(&perf, app.merge(perf.routes()));
    rig.get("/").await;
    let json = read(&rig).await;
    let fields: Vec<&String> = json.as_object().expect("an object").keys().collect();
    for absent in ["limiter", "pools", "caches"] {
        assert!(!fields.iter().any(|field| *field == absent), "{fields:?}");
    }
}

#[tokio::test]
async fn it_does_not_count_itself_and_changes_nothing() {
    let (perf, rig) = service();
    rig.get("/items/7").await;
    for _ in 0..5 {
        assert_eq!(row(&read(&rig).await, "/items/{id}")["requests"], 1);
    }
    assert_eq!(perf.snapshot().entered(), 1);
}

#[tokio::test]
async fn only_get_and_head_are_allowed() {
    let (_, rig) = service();
    for method in ["POST", "PUT", "DELETE"] {
        let response = rig.open(request(method, "/perf")).await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
    assert_eq!(rig.open(request("HEAD", "/perf")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn it_answers_over_a_connection() {
    let (_, rig) = service();
    let server = rig.listen().await;
    let mut client = server.connect().await;
    assert_eq!(client.get("/items/7").await.0, 200);
    client.ask("GET", "/perf").await;
    let head = client.head().await.expect("it answers");
    assert_eq!((head.status, head.headers["cache-control"].as_str()), (200, "no-store"));
    let crate::support::wire::Ended::Whole(body) = client.body(&head).await else {
        panic!("the body is whole");
    };
    let perf: Value = serde_json::from_slice(&body).expect("it is JSON");
    assert_eq!(row(&perf, "/items/{id}")["requests"], 1);
}

/// A GET with headers, and what comes back.
async fn ask(rig: &Rig, path: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, String) {
    let (parts, body) = open(rig, path, headers).await.into_parts();
    let body = body.collect().await.expect("the body is whole").to_bytes();
    (parts.status, parts.headers, String::from_utf8_lossy(&body).into_owned())
}

async fn open(rig: &Rig, path: &str, headers: &[(&str, &str)]) -> Response {
    let mut asked = request("GET", path);
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().expect("a name");
        asked.headers_mut().append(name, value.parse().expect("a value"));
    }
    rig.open(asked).await
}

const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

#[tokio::test]
async fn a_browser_gets_the_page_and_everybody_else_json() {
    let (_, rig) = service();
    for (accept, form) in [
        (BROWSER, "text/html; charset=utf-8"),
        ("text/html;q=0.2", "text/html; charset=utf-8"),
        ("*/*", "application/json"),
        ("application/json, text/html;q=0.9", "application/json"),
        ("application/*;q=0.5, text/html;q=0.4", "application/json"),
    ] {
        let (status, headers, _) = ask(&rig, "/perf", &[("accept", accept)]).await;
        assert_eq!(
            (status, &headers["content-type"]),
            (StatusCode::OK, &form.parse().expect("a value"))
        );
        assert_eq!(headers["vary"], "accept", "{accept}");
    }
    let (status, headers, text) = ask(&rig, "/perf", &[("accept", "image/png")]).await;
    assert_eq!((status, headers["vary"].as_bytes()), (StatusCode::NOT_ACCEPTABLE, &b"accept"[..]));
    assert!(text.contains("application/json and text/html"), "{text}");
}

#[tokio::test]
async fn the_page_brings_all_it_needs_and_its_policy_allows_nothing_else() {
    let (_, rig) = service();
    let (_, headers, page) = ask(&rig, "/perf", &[("accept", BROWSER)]).await;
    let policy = headers["content-security-policy"].to_str().expect("it is text");
    let hash = |tag: &str| {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        assert_eq!((page.matches(&open).count(), page.matches(&close).count()), (1, 1), "{tag}");
        let inside = page.split(&open).nth(1).and_then(|rest| rest.split(&close).next());
        STANDARD.encode(Sha256::digest(inside.expect("it is there")))
    };
    assert_eq!(
        policy,
        format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            hash("script"),
            hash("style")
        ),
        "endpoint/page.rs has the hashes of another script or style"
    );
    assert!(page.len() < 100 * 1024, "{} bytes", page.len());
    for way_out in [
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "https:",
        "url(",
        "@import",
        " style=",
        " on",
    ] {
        let uses = page.match_indices(way_out).map(|(at, _)| &page[at..(at + 20).min(page.len())]);
        let attributes = uses.filter(|text| {
            way_out != " on"
                || text
                    .split_once('=')
                    .is_some_and(|(name, _)| name.trim().chars().all(|c| c.is_ascii_lowercase()))
        });
        assert_eq!(attributes.collect::<Vec<_>>(), [""; 0], "{way_out}");
    }
    for (header, value) in
        [("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer")]
    {
        assert_eq!(headers[header], value);
    }
}

#[tokio::test]
async fn who_has_the_page_already_is_told_so() {
    let (_, rig) = service();
    let (_, headers, _) = ask(&rig, "/perf", &[("accept", BROWSER)]).await;
    assert_eq!(headers["cache-control"], "private, no-cache");
    let tag = headers["etag"].to_str().expect("it is text");
    let listed = format!("\"other\", {tag}");
    for known in [tag, &listed, "*"] {
        let (status, headers, body) =
            ask(&rig, "/perf", &[("accept", BROWSER), ("if-none-match", known)]).await;
        assert_eq!(
            (status, &*body, headers["etag"].to_str().ok()),
            (StatusCode::NOT_MODIFIED, "", Some(tag))
        );
        assert_eq!(headers["vary"], "accept");
    }
    let (status, ..) =
        ask(&rig, "/perf", &[("accept", BROWSER), ("if-none-match", "\"other\"")]).await;
    assert_eq!(status, StatusCode::OK);
    // Figures are never the same.
    let (status, headers, _) = ask(&rig, "/perf", &[("if-none-match", "*")]).await;
    assert_eq!((status, headers.get("etag")), (StatusCode::OK, None));
}

#[tokio::test(start_paused = true)]
async fn a_window_begins_with_the_first_request_and_ends_now() {
    let (_, rig) = service();
    rig.get("/items/7").await;
    ask(&rig, "/perf", &[]).await;
    sleep(Duration::from_millis(2_500)).await;
    rig.get("/items/7").await;
    for (query, requests) in [("?window=10s", 1), ("?window=1m", 1), ("?window=5m", 1), ("", 2)] {
        let (_, _, text) = ask(&rig, &format!("/perf{query}"), &[]).await;
        let perf: Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(row(&perf, "/items/{id}")["requests"], requests, "{query}");
        assert_eq!(perf["window_s"].is_null(), query.is_empty(), "{query}");
    }
}

#[tokio::test]
async fn a_window_that_there_is_not_is_explained() {
    let (_, rig) = service();
    for path in ["/perf", "/perf/live", "/perf/histogram"] {
        for query in ["window=1h", "window=", "window=10S", "window=1m&window=1m"] {
            let (status, headers, text) = ask(&rig, &format!("{path}?{query}"), &[]).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path}?{query}");
            assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
            assert_eq!(headers["cache-control"], "no-store");
            assert!(query.contains('&') || text.contains("10s, 1m or 5m"), "{text}");
        }
    }
    let (_, headers, text) = ask(&rig, "/perf?window=1h", &[("accept", "application/json")]).await;
    assert_eq!(headers["content-type"], "application/json");
    let problem: Value = serde_json::from_str(&text).expect("it is JSON");
    assert!(
        problem["error"].as_str().is_some_and(|error| error.contains("10s, 1m or 5m")),
        "{problem}"
    );
}

#[tokio::test]
async fn other_methods_are_told_what_there_is() {
    let (_, rig) = service();
    for path in ["/perf", "/perf/live", "/perf/history", "/perf/histogram"] {
        let response = rig.open(request("POST", path)).await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.headers()["allow"], "GET,HEAD");
        let text = response.into_body().collect().await.expect("it is whole").to_bytes();
        assert!(text.starts_with(path.as_bytes()) && text.ends_with(b"nothing else\n"), "{text:?}");
    }
}

#[tokio::test]
async fn head_has_the_headers_of_get_and_no_body() {
    let (_, rig) = service();
    rig.get("/items/7").await;
    for path in ["/perf", "/perf/live", "/perf/histogram?method=GET&route=/items/{id}"] {
        let path = path.replace('{', "%7B").replace('}', "%7D");
        let (head, body) = rig.open(request("HEAD", &path)).await.into_parts();
        let get = open(&rig, &path, &[]).await;
        assert_eq!(
            (head.status, &head.headers["content-type"]),
            (StatusCode::OK, &get.headers()["content-type"])
        );
        assert_eq!(body.collect().await.expect("it is whole").to_bytes(), Bytes::new(), "{path}");
    }
}

#[tokio::test]
async fn what_is_asked_for_compressed_is_compressed_but_for_the_stream() {
    let (_, rig) = service();
    let wanted = ("accept-encoding", "gzip");
    let (_, plain, page) = ask(&rig, "/perf", &[("accept", BROWSER)]).await;
    assert_eq!(plain.get("content-encoding"), None);
    let packed = open(&rig, "/perf", &[("accept", BROWSER), wanted]).await;
    assert_eq!(
        (&packed.headers()["content-encoding"], &packed.headers()["etag"]),
        (&"gzip".parse().expect("a value"), &plain["etag"])
    );
    let packed = packed.into_body().collect().await.expect("it is whole").to_bytes();
    assert!(
        packed.starts_with(&[0x1f, 0x8b]) && packed.len() < page.len() / 2,
        "{} bytes",
        packed.len()
    );
    let json = open(&rig, "/perf", &[wanted]).await;
    assert_eq!(json.headers()["content-encoding"], "gzip");
    let live = open(&rig, "/perf/live", &[wanted]).await;
    assert_eq!(live.headers().get("content-encoding"), None);
}

/// The next event of a stream: its data, or `None` at its end.
async fn event(body: &mut Body) -> Option<String> {
    let frame = body.frame().await?.expect("streams do not break");
    let bytes = frame.into_data().expect("there are no trailers");
    Some(String::from_utf8(bytes.into()).expect("it is text"))
}

fn data(event: &str) -> Value {
    let json = event.strip_prefix("data: ").and_then(|rest| rest.strip_suffix("\n\n"));
    serde_json::from_str(json.expect("it is one event")).expect("it is JSON")
}

#[tokio::test(start_paused = true)]
async fn the_stream_has_a_snapshot_a_second_and_nothing_else() {
    let (_, rig) = service();
    let response = open(&rig, "/perf/live", &[("accept", "text/event-stream")]).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-store");
    let (mut body, began) = (response.into_body(), Instant::now());
    for seconds in 0..20 {
        let view = data(&event(&mut body).await.expect("it goes on"));
        assert_eq!(
            (view["schema"].as_str(), began.elapsed().as_secs()),
            (Some("parallax.perf/1"), seconds)
        );
        assert_eq!(view["routes"].as_array().map(Vec::len), Some(usize::from(seconds > 0)));
        if seconds == 0 {
            rig.get("/items/7").await;
        }
    }
    // So that a service that shuts down need not wait for ever.
    assert_eq!(event(&mut body).await.as_deref(), Some("event: renew\ndata: {}\n\n"));
    assert_eq!(event(&mut body).await, None);
}

#[tokio::test(start_paused = true)]
async fn the_stream_of_a_window_forgets() {
    let (_, rig) = service();
    let mut body = open(&rig, "/perf/live?window=10s", &[]).await.into_body();
    assert_eq!(data(&event(&mut body).await.expect("it goes on"))["window_s"], 0.0);
    rig.get("/items/7").await;
    let mut rows = Vec::new();
    for _ in 1..20 {
        let view = data(&event(&mut body).await.expect("it goes on"));
        rows.push(view["routes"].as_array().map(Vec::len));
    }
    assert_eq!((rows.first(), rows.last()), (Some(&Some(1)), Some(&Some(0))), "{rows:?}");
}

/// By the clock of the machine: each snapshot that is taken then has an uptime of its own.
#[tokio::test]
async fn streams_of_a_window_share_one_snapshot_a_second() {
    const STREAMS: usize = 25;
    let (_, rig) = service();
    let (mut all, mut windows) = (BTreeSet::new(), BTreeSet::new());
    let mut streams = Vec::new();
    for n in 0..STREAMS {
        let path = if n % 2 == 0 { "/perf/live" } else { "/perf/live?window=1m" };
        streams.push((n % 2, open(&rig, path, &[]).await.into_body()));
    }
    for _ in 0..3 {
        for (window, body) in &mut streams {
            let view = data(&event(body).await.expect("it goes on"));
            let taken = (*window, view["uptime_s"].to_string());
            windows.insert(view["window_s"].is_null());
            all.insert(taken);
        }
    }
    assert_eq!(windows.len(), 2, "each has its own");
    // Three seconds of two windows, and some more where the machine is busy; not one for each stream and second.
    assert!((2 * 3..STREAMS).contains(&all.len()), "{all:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_others_were_before_has_the_last_snapshot_at_once_and_then_the_same() {
    let (_, rig) = service();
    let mut first = open(&rig, "/perf/live", &[]).await.into_body();
    let at_once = event(&mut first).await.expect("it goes on");
    sleep(Duration::from_millis(400)).await;
    rig.get("/items/7").await;
    let (mut second, began) = (open(&rig, "/perf/live", &[]).await.into_body(), Instant::now());
    assert_eq!(event(&mut second).await.as_ref(), Some(&at_once));
    assert_eq!(began.elapsed(), Duration::ZERO);
    let next = event(&mut first).await;
    assert_eq!(event(&mut second).await, next);
    assert_eq!(began.elapsed().as_millis(), 600);
    assert_eq!(row(&data(&next.expect("it goes on")), "/items/{id}")["requests"], 1);
    drop((first, second));
    // Nobody has kept it.
    let view =
        data(&event(&mut open(&rig, "/perf/live", &[]).await.into_body()).await.expect("one"));
    assert_eq!(row(&view, "/items/{id}")["requests"], 1);
}

#[tokio::test(start_paused = true)]
async fn the_stream_ends_when_nobody_counts_any_more() {
    let (perf, rig) = service();
    let mut body = open(&rig, "/perf/live", &[]).await.into_body();
    assert!(event(&mut body).await.is_some());
    drop((perf, rig));
    assert_eq!(event(&mut body).await, None);
    assert_eq!(event(&mut body).await, None, "and stays so");
}

#[tokio::test(start_paused = true)]
async fn streams_end_when_the_service_says_so() {
    let (perf, rig) = service();
    let mut body = open(&rig, "/perf/live", &[]).await.into_body();
    assert!(event(&mut body).await.is_some());
    perf.end_streams();
    assert_eq!(event(&mut body).await, None);
    let mut later = open(&rig, "/perf/live", &[]).await.into_body();
    assert_eq!(event(&mut later).await, None);
}

#[tokio::test]
async fn a_graceful_shutdown_does_not_wait_for_those_who_watch() {
    let (perf, rig) = service();
    let server = rig.listen().await;
    let mut client = server.connect().await;
    client.ask("GET", "/perf/live").await;
    assert_eq!(client.head().await.expect("it answers").status, 200);
    perf.end_streams();
    timeout(Duration::from_secs(15), server.shut_down()).await.expect("it takes a second");
}

#[tokio::test(start_paused = true)]
async fn the_history_has_the_last_minutes_from_when_somebody_first_looked() {
    let (_, rig) = service();
    let history = async || {
        let (status, headers, text) = ask(&rig, "/perf/history", &[]).await;
        let form = (status, &headers["content-type"], &headers["cache-control"]);
        assert_eq!(form, (StatusCode::OK, &json_type(), &"no-store".parse().expect("a value")));
        serde_json::from_str::<Value>(&text).expect("it is JSON")
    };
    assert_eq!(
        history().await,
        json!({"schema": "parallax.history/1", "intervals": [], "routes": []})
    );
    // Between two samples, so that it is plain which one sees a request.
    sleep(Duration::from_millis(500)).await;
    for second in 0..122 {
        for _ in 0..if second < 60 { 1 } else { 60 } {
            rig.get("/items/7").await;
        }
        sleep(Duration::from_secs(1)).await;
    }
    let view = history().await;
    let intervals: Vec<(f64, f64)> =
        serde_json::from_value(view["intervals"].clone()).expect("it is pairs");
    assert!(
        intervals.iter().rev().is_sorted_by(|later, earlier| later.0 < earlier.0),
        "{intervals:?}"
    );
    let lengths: Vec<u64> = intervals.iter().map(|(_, length)| length.round() as u64).collect();
    assert_eq!(lengths, [30, 30, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6]);
    let row = row(&view, "/items/{id}");
    assert_eq!((&row["method"], &row["requests"][0]), (&json!("GET"), &json!(30)));
    assert!(row["requests"].as_array().expect("an array").iter().skip(2).all(|n| *n == 360));
    // 30 requests say nothing of a hundredth of them, and 360 do.
    let known = |figure: &str, n: usize| row[figure][n].is_number();
    assert_eq!((known("p50_us", 0), known("p99_us", 0), known("p99_us", 11)), (true, false, true));
}

fn json_type() -> http::HeaderValue {
    http::HeaderValue::from_static("application/json")
}

const ITEMS: &str = "/perf/histogram?method=GET&route=/items/%7Bid%7D";

#[tokio::test]
async fn a_histogram_is_read_by_the_tools_of_hdrhistogram() {
    let (perf, rig) = service();
    for n in 0..500 {
        rig.get(&format!("/items/{n}")).await;
    }
    let (status, headers, text) = ask(&rig, ITEMS, &[]).await;
    assert_eq!((status, headers["content-type"].as_bytes()), (StatusCode::OK, &b"text/plain"[..]));
    assert_eq!(headers["cache-control"], "no-store");
    assert!(text.starts_with("HIST"), "as in a log: {text}");
    let payload = STANDARD.decode(&text).expect("it is base64");
    let read: Histogram<u64> =
        Deserializer::new().deserialize(&mut &payload[..]).expect("it is V2");
    let snapshot = perf.snapshot();
    let ours = &snapshot.route("GET", "/items/{id}").expect("it was asked for").users.ok;
    assert_eq!(read.len(), 500);
    for q in [0.0, 0.5, 0.9, 0.99, 1.0] {
        let (theirs, ours) = (
            read.value_at_quantile(q) as f64,
            ours.quantile(q).expect("there are some").as_nanos() as f64,
        );
        // Two significant digits on either side.
        assert!((theirs / ours - 1.0).abs() < 0.02, "{q}: {theirs} and {ours}");
    }
}

#[tokio::test]
async fn a_histogram_as_json_has_the_curve_as_far_as_the_samples_reach() {
    let (_, rig) = service();
    for n in 0..500 {
        rig.get(&format!("/items/{n}")).await;
    }
    let (_, headers, text) =
        ask(&rig, &format!("{ITEMS}&window=5m"), &[("accept", "application/json")]).await;
    assert_eq!(headers["content-type"], "application/json");
    let json: Value = serde_json::from_str(&text).expect("it is JSON");
    // Sampling has only just begun.
    assert_eq!((json["latency"]["count"].as_u64(), json["window_s"].is_null()), (Some(0), false));
    let (_, _, text) = ask(&rig, ITEMS, &[("accept", "application/json")]).await;
    let json: Value = serde_json::from_str(&text).expect("it is JSON");
    assert_eq!(
        (json["schema"].as_str(), json["route"].as_str()),
        (Some("parallax.histogram/1"), Some("/items/{id}"))
    );
    let curve: Vec<(f64, f64)> =
        serde_json::from_value(json["curve"].clone()).expect("it is pairs");
    assert!(curve.is_sorted() && curve[0].0 == 0.0, "{curve:?}");
    let last = curve.last().expect("it is not empty").0;
    // Three of 500 samples lie past 0.994.
    assert!((0.99..=0.994).contains(&last), "{last}");
    assert_eq!(
        json["latency"]["p50_us"],
        curve.iter().find(|(q, _)| *q == 0.5).expect("it is there").1
    );
}

#[tokio::test]
async fn a_histogram_of_nothing_is_explained() {
    let (_, rig) = service();
    rig.get("/items/7").await;
    for (query, status, remedy) in [
        ("", StatusCode::BAD_REQUEST, "?method=GET&route="),
        ("?method=GET", StatusCode::BAD_REQUEST, "?method=GET&route="),
        ("?method=GET&route=/nowhere", StatusCode::NOT_FOUND, "GET /perf lists"),
        ("?method=POST&route=/items/%7Bid%7D", StatusCode::NOT_FOUND, "GET /perf lists"),
        ("?method=get&route=/items/7", StatusCode::NOT_FOUND, "GET /perf lists"),
    ] {
        let (found, _, text) = ask(&rig, &format!("/perf/histogram{query}"), &[]).await;
        assert_eq!(found, status, "{query}");
        assert!(text.contains(remedy), "{text}");
        assert!(!text.contains("nowhere"), "what was sent is not sent back: {text}");
    }
}

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn guarded() -> Rig {
    let perf = Perf::new();
    let guard = BearerGuard::new(TOKEN).expect("it is long enough");
    let app = Router::new().route("/", get(async || "home")).layer(perf.layer());
    Rig::new(&perf, app.merge(perf.routes().route_layer(guard)))
}

#[tokio::test]
async fn without_the_token_nobody_sees_anything() {
    let rig = guarded();
    let wrong = format!("Bearer {}", TOKEN.replace('f', "e"));
    for path in ["/perf", "/perf/live", "/perf/history", "/perf/histogram"] {
        for headers in [&[][..], &[("authorization", wrong.as_str())], &[("accept", BROWSER)]] {
            let (status, answer, text) = ask(&rig, path, headers).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
            assert_eq!(answer["cache-control"], "no-store");
            let ways: Vec<_> = answer
                .get_all("www-authenticate")
                .iter()
                .filter_map(|way| way.to_str().ok())
                .collect();
            assert!(
                ways[0].starts_with("Bearer realm=") && ways[1].starts_with("Basic realm="),
                "{ways:?}"
            );
            assert!(
                !text.contains(TOKEN) && !text.contains("schema") && !text.contains("<html"),
                "{text}"
            );
        }
        let response = rig.open(request("POST", path)).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    }
}

#[tokio::test]
async fn with_the_token_programs_and_browsers_get_in_and_nothing_else_is_guarded() {
    let rig = guarded();
    let basic = format!("Basic {}", STANDARD.encode(format!("anybody:{TOKEN}")));
    for value in [&format!("Bearer {TOKEN}"), &basic] {
        assert_eq!(ask(&rig, "/perf", &[("authorization", value)]).await.0, StatusCode::OK);
    }
    assert_eq!(rig.get("/").await.status, StatusCode::OK);
    assert_eq!(rig.get("/nowhere").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn nothing_that_a_client_sent_is_shown_to_those_who_watch() {
    let (_, rig) = service();
    let secret = "s3cr3t-of-somebody";
    let mut sent = request("GET", &format!("/items/{secret}?key={secret}"));
    sent.headers_mut().insert("authorization", secret.parse().expect("a value"));
    rig.send(sent).await;
    rig.get(&format!("/{secret}")).await;
    for path in ["/perf", "/perf?window=10s", "/perf/history", ITEMS] {
        let (_, _, text) = ask(&rig, path, &[("accept", "application/json")]).await;
        assert!(!text.contains(secret), "{path}: {text}");
    }
}
