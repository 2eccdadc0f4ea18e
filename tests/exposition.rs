//! `GET /perf/metrics`: what Prometheus reads, after real requests.

use std::{collections::BTreeMap, convert::Infallible, env, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Response, StatusCode},
    response::Sse,
    routing::get,
};
use bytes::Bytes;
use deadpool::managed::{Manager, Metrics, Pool, RecycleResult};
use futures_util::stream;
use http_body_util::BodyExt;
use parallax_middleware::{BypassPolicy, Perf, RequestHead};
use tokio::time::sleep;
use tower::{ServiceBuilder, ServiceExt, service_fn};

use crate::support::{
    promtool::promtool,
    rig::{Rig, an_hour, request, with_pass},
};

/// Makes connections of nothing.
struct Trivial;

impl Manager for Trivial {
    type Type = ();
    type Error = Infallible;

    async fn create(&self) -> Result<(), Infallible> {
        Ok(())
    }

    async fn recycle(&self, (): &mut (), _: &Metrics) -> RecycleResult<Infallible> {
        Ok(())
    }
}

/// A service that uses everything that is counted, after some requests of each kind. Its limiter lets 40
/// requests through.
pub(crate) async fn busy() -> Rig {
    let perf = Perf::new();
    let pool: Pool<Trivial> =
        Pool::builder(Trivial).max_size(4).build().expect("it has no timeouts");
    let pool = perf.observe_deadpool("main", pool);
    let cache = perf.cache("prices");
    let item = {
        let perf = perf.clone();
        async move || {
            let _connection = pool.get().await.expect("there is one");
            cache.count(Some(7));
            cache.count(None::<u8>);
            perf.observe("render", async { "an item" }).await
        }
    };
    let slow = {
        let perf = perf.clone();
        async move || {
            let _both = perf.phase("both");
            perf.observe("sleep", sleep(Duration::from_millis(300))).await;
        }
    };
    let events = async || {
        Sse::new(stream::iter([Ok::<_, Infallible>(axum::response::sse::Event::default())]))
    };
    let app = Router::new()
        .route("/items/{id}", get(item))
        .route("/events", get(events))
        .route("/broken", get(async || StatusCode::INTERNAL_SERVER_ERROR))
        .route("/slow", get(slow))
        .layer(perf.bypass(BypassPolicy::in_process()).around(an_hour(40)))
        .layer(perf.layer())
        .merge(perf.routes());
    perf.observe("nightly", async {}).await;
    let rig = Rig::new(&perf, app);
    for n in 0..30 {
        rig.get(&format!("/items/{n}")).await;
    }
    for path in ["/events", "/broken", "/nowhere", "/slow"] {
        rig.get(path).await;
    }
    for _ in 0..12 {
        rig.get("/items/7").await;
    }
    for _ in 0..5 {
        rig.send(with_pass(request("GET", "/items/7"))).await;
    }
    rig
}

/// What Prometheus reads.
pub(crate) async fn scrape(rig: &Rig) -> String {
    let response = rig.open(request("GET", "/perf/metrics")).await;
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await.expect("the body is whole").to_bytes();
    String::from_utf8(body.into()).expect("it is a text")
}

/// Samples by name and labels.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let parts = lines.map(|line| line.rsplit_once(' ').expect("a name and a value"));
    parts.map(|(name, value)| (name, value.parse().expect("a number"))).collect()
}

#[tokio::test(start_paused = true)]
async fn promtool_finds_nothing_to_object_to() {
    let text = scrape(&busy().await).await;
    assert_eq!(promtool(&["check", "metrics"], &env::temp_dir(), &text), "");
}

#[tokio::test]
async fn promtool_finds_nothing_to_object_to_before_the_first_request() {
    let perf = Perf::new();
    let text = scrape(&Rig::new(&perf, perf.routes())).await;
    assert_eq!(promtool(&["check", "metrics"], &env::temp_dir(), &text), "");
    let samples = samples(&text);
    // A rate needs the zero before the one.
    assert_eq!(samples[r#"parallax_limiter_requests_total{decision="limited"}"#], 0.0);
    assert_eq!(samples[r#"parallax_refused_tokens_total{reason="forged"}"#], 0.0);
}

#[tokio::test(start_paused = true)]
async fn it_says_what_the_snapshot_says() {
    let rig = busy().await;
    let text = scrape(&rig).await;
    let found = samples(&text);
    let items = r#"http_request_method="GET",http_route="/items/{id}""#;
    // 40 are let through, 4 of which go to other routes: one request matches no route, and meets no limiter.
    for (outcome, users, bypassed) in
        [("ok", 37.0, 5.0), ("limited", 5.0, 0.0), ("cancelled", 0.0, 0.0)]
    {
        for (traffic, n) in [("users", users), ("bypassed", bypassed)] {
            let name = format!(
                r#"parallax_requests_total{{{items},traffic="{traffic}",outcome="{outcome}"}}"#
            );
            assert_eq!(found[&*name], n, "{name}");
        }
    }
    let count = |name: &str, labels: &str| found[&*format!("{name}{{{labels}}}")];
    let of = |traffic: &str| format!(r#"{items},traffic="{traffic}""#);
    let duration = "http_server_request_duration_seconds_count";
    assert_eq!(count(duration, &format!(r#"{},result="ok""#, of("users"))), 37.0);
    assert_eq!(count(duration, &format!(r#"{},result="limited""#, of("users"))), 5.0);
    assert_eq!(count(duration, &format!(r#"{},result="ok""#, of("bypassed"))), 5.0);
    assert_eq!(count("parallax_time_to_first_byte_seconds_count", &of("users")), 37.0);
    assert_eq!(count("parallax_response_body_bytes_total", &of("bypassed")), 5.0 * 7.0);
    // Those that the limiter turned away were in it, and in no more.
    for (phase, n) in
        [("limiter", 42.0), ("pool_wait:main", 37.0), ("render", 37.0), ("handler", 42.0)]
    {
        let labels = format!(r#"{},phase="{phase}""#, of("users"));
        assert_eq!(count("parallax_phase_duration_seconds_count", &labels), n, "{phase}");
    }
    assert_eq!(count("http_server_active_requests", items), 0.0);
    assert_eq!(count("parallax_elsewhere_phase_duration_seconds_count", r#"phase="nightly""#), 1.0);

    let pool = r#"db_client_connection_pool_name="main",kind="deadpool""#;
    for name in ["wait", "use"] {
        assert_eq!(count(&format!("db_client_connection_{name}_time_seconds_count"), pool), 42.0);
    }
    assert_eq!(count("db_client_connection_create_time_seconds_count", pool), 1.0);
    assert_eq!(count("db_client_connection_max", pool), 4.0);
    assert_eq!(count("db_client_connection_pending_requests", pool), 0.0);
    for (state, n) in [("idle", 1.0), ("used", 0.0)] {
        let labels = format!(r#"{pool},db_client_connection_state="{state}""#);
        assert_eq!(count("db_client_connection_count", &labels), n, "{state}");
    }
    assert_eq!(
        count("db_client_connection_timeouts_total", &format!(r#"{pool},stage="wait""#)),
        0.0
    );
    for result in ["hit", "miss"] {
        let labels = format!(r#"cache="prices",result="{result}""#);
        assert_eq!(count("parallax_cache_lookups_total", &labels), 42.0);
    }
    for (decision, n) in [("admitted", 40.0), ("limited", 5.0), ("bypassed", 5.0)] {
        let labels = format!(r#"decision="{decision}""#);
        assert_eq!(count("parallax_limiter_requests_total", &labels), n, "{decision}");
    }
    let events = r#"http_request_method="GET",http_route="/events",traffic="users""#;
    assert_eq!(count("parallax_streams_opened_total", events), 1.0);
    assert_eq!(count("parallax_open_streams", events), 0.0);
    assert_eq!(found["parallax_runtime_workers"], 1.0);
    assert!(found.contains_key("parallax_uptime_seconds"));
    assert!(found["process_resident_memory_bytes"] > 0.0);
}

#[tokio::test(start_paused = true)]
async fn histograms_have_opentelemetrys_bounds_rise_and_end_at_their_count() {
    let text = scrape(&busy().await).await;
    let found = samples(&text);
    let labels = r#"http_request_method="GET",http_route="/slow",traffic="users",result="ok""#;
    let bucket = |bound: &str| {
        let name =
            format!(r#"http_server_request_duration_seconds_bucket{{le="{bound}",{labels}}}"#);
        found[&*name]
    };
    let below = ["0.005", "0.01", "0.025", "0.05", "0.075", "0.1", "0.25"];
    let above = ["0.5", "0.75", "1.0", "2.5", "5.0", "7.5", "10.0", "+Inf"];
    assert_eq!(below.map(bucket), [0.0; 7]);
    assert_eq!(above.map(bucket), [1.0; 8]);
    let sum = found[&*format!("http_server_request_duration_seconds_sum{{{labels}}}")];
    // The paused clock's 300 ms, and not those of a bucket.
    assert!((0.3..0.3021).contains(&sum), "{sum}");
}

#[tokio::test]
async fn routes_past_the_cap_are_seen_to_share_a_row() {
    let perf = Perf::builder().route_cap(1).build();
    let app = Router::new()
        .route("/a", get(async || "a"))
        .route("/b", get(async || "b"))
        .route("/c", get(async || "c"))
        .layer(perf.layer())
        .merge(perf.routes());
    let rig = Rig::new(&perf, app);
    for path in ["/a", "/b", "/c"] {
        rig.get(path).await;
    }
    let text = scrape(&rig).await;
    assert_eq!(samples(&text)["parallax_other_requests_total"], 2.0);
    assert_eq!(samples(&text)["parallax_routes"], 2.0);
}

#[tokio::test]
async fn counters_never_go_back_while_requests_are_counted() {
    let rig = busy().await;
    let asking = tokio::spawn({
        let rig = rig.clone();
        async move {
            loop {
                rig.send(with_pass(request("GET", "/items/7"))).await;
                tokio::task::yield_now().await;
            }
        }
    });
    let mut earlier = scrape(&rig).await;
    for _ in 0..20 {
        let now = scrape(&rig).await;
        let (then, found) = (samples(&earlier), samples(&now));
        let counts = |name: &str| {
            ["_total", "_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end))
        };
        for (name, before) in then {
            let bare = name.split('{').next().expect("there is a first part");
            if counts(bare) && bare != "db_client_connection_count" {
                assert!(found[name] >= before, "{name}: {before}, then {}", found[name]);
            }
        }
        earlier = now;
    }
    asking.abort();
}

#[tokio::test]
async fn hostile_names_stay_within_their_quotes() {
    const HOSTILE: &str = "/\"} 1\nevil_total{x=\"\\\n# TYPE evil unknown\n\u{202e}é\r";
    fn hostile(_: RequestHead<'_>) -> Option<&str> {
        Some(HOSTILE)
    }
    let perf = Perf::new();
    let service =
        ServiceBuilder::new().layer(perf.layer().name_routes(hostile)).service(service_fn(
            async |_: axum::extract::Request| Ok::<_, Infallible>(Response::new(Body::empty())),
        ));
    for method in ["GET", "BREW", "get", "A!#$%&'*+-.^_`|~"] {
        service.clone().oneshot(request(method, "/")).await.expect("it does not fail");
    }
    perf.cache(HOSTILE).hit();
    drop(perf.pool(HOSTILE).wait());
    perf.observe(HOSTILE, async {}).await;
    let text = scrape(&Rig::new(&perf, perf.routes())).await;
    assert_eq!(promtool(&["check", "metrics"], &env::temp_dir(), &text), "");
    assert!(!text.lines().any(|line| line.starts_with("evil") || line.starts_with("# TYPE evil")));
    let escaped = HOSTILE.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
    let rows = |method: &str| {
        let labels = format!(
            "http_server_active_requests{{http_request_method=\"{method}\",http_route=\"{escaped}\"}} 0\n"
        );
        text.matches(&labels).count()
    };
    assert_eq!((rows("GET"), rows("_OTHER")), (1, 1), "{text}");
}

#[tokio::test]
async fn it_is_a_text_of_prometheus_that_nobody_may_store() {
    let rig = busy().await;
    let response = rig.open(request("GET", "/perf/metrics")).await;
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(response.headers()["cache-control"], "no-store");
}

#[tokio::test]
async fn head_has_the_head_and_other_methods_are_not_allowed() {
    let rig = busy().await;
    let response = rig.open(request("HEAD", "/perf/metrics")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(response.into_body().collect().await.expect("it is whole").to_bytes(), Bytes::new());
    for method in ["POST", "PUT", "DELETE"] {
        let status = rig.open(request(method, "/perf/metrics")).await.status();
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }
}

#[tokio::test]
async fn a_scrape_does_not_count_itself() {
    let rig = busy().await;
    let before = rig.perf.snapshot().entered();
    scrape(&rig).await;
    assert_eq!(rig.perf.snapshot().entered(), before);
}
