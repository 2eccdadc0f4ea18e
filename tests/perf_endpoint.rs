//! `GET /perf`: what the contract promises, after real requests.

use axum::{Router, http::StatusCode, routing::get};
use parallax_middleware::{BypassPolicy, Perf, PerfView};
use serde_json::{Value, json};
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
        assert_eq!(latency["count"], 101);
        let figure = |name: &str| latency[name].as_f64();
        let rising = ["min_us", "p50_us", "p90_us", "p95_us", "max_us"].map(figure);
        assert!(rising.iter().all(Option::is_some), "{latency}");
        assert!(rising.is_sorted(), "{latency}");
        assert!(figure("mean_us") >= figure("min_us") && figure("mean_us") <= figure("max_us"));
        // 101 samples say nothing about these; a number would be the maximum in disguise.
        assert_eq!((&latency["p99_us"], &latency["p999_us"]), (&Value::Null, &Value::Null));
    }
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
