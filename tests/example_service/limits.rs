//! Who may come in, and how often.

use std::net::Ipv4Addr;

use axum::{body::Body, extract::Request, http::StatusCode};
use parallax_middleware::LimiterView;
use serde_json::json;
use tokio::net::TcpListener;

use super::api::{Api, KEY, OTHER_KEY, Storage, request, with_pass};
use crate::support::wire::Connection;

const PATHS: [(&str, &str); 8] = [
    ("GET", "/entities/1"),
    ("GET", "/recommendations/1"),
    ("GET", "/similar/1"),
    ("GET", "/trending"),
    ("GET", "/search?q=tea"),
    ("POST", "/entities"),
    ("POST", "/interactions"),
    ("GET", "/perf"),
];

/// A service whose limiter lets five requests a minute through.
async fn five_a_minute(storage: &Storage) -> Api {
    let api = Api::start(storage.config().rate_limit(5)).await;
    let tea = json!([{"id": 1, "title": "Green tea"}]);
    let entities = super::api::json_request("/entities", tea.to_string());
    assert_eq!(api.send(with_pass(entities)).await.status, StatusCode::CREATED);
    api
}

pub(super) async fn nobody_gets_in_without_a_key(storage: Storage) {
    let api = storage.start().await;
    for (method, path) in PATHS {
        let without = Request::builder().method(method).uri(path).body(Body::empty());
        let reply = api.send(without.expect("a valid request")).await;
        assert!(reply.problem(401).contains("x-api-key"), "{path}");
        for wrong in ["", "true", "a-key-of-the-test", "A-KEY-OF-THE-TESTS", "a-key-of-the-tests-"]
        {
            let reply = api.send(request(method, path, wrong)).await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{path} with {wrong:?}");
        }
    }
    let health = Request::get("/health").body(Body::empty()).expect("a valid request");
    assert_eq!(api.send(health).await.json["status"], "ok");
    for key in [KEY, OTHER_KEY] {
        assert_eq!(api.send(request("GET", "/trending", key)).await.status, StatusCode::OK);
    }
}

pub(super) async fn a_key_that_is_over_its_quota_is_told_when_to_come_back(storage: Storage) {
    let api = five_a_minute(&storage).await;
    // Strangers use up nobody's quota.
    for _ in 0..10 {
        api.send(request("GET", "/entities/1", "not-a-key")).await.problem(401);
    }
    for _ in 0..5 {
        assert_eq!(api.get("/entities/1").await.status, StatusCode::OK);
    }
    let reply = api.get("/entities/1").await;
    reply.problem(429);
    let seconds = reply.headers["retry-after"].to_str().expect("a number");
    assert!((1..=60).contains(&seconds.parse::<u64>().expect("a number")), "{seconds}");
    // Keys have quotas of their own, and health has none.
    assert_eq!(api.send(request("GET", "/entities/1", OTHER_KEY)).await.status, StatusCode::OK);
    assert_eq!(api.get("/health").await.status, StatusCode::OK);
}

pub(super) async fn the_pass_of_this_process_goes_around_the_limiter(storage: Storage) {
    let api = five_a_minute(&storage).await;
    for _ in 0..50 {
        let reply = api.send(with_pass(request("GET", "/entities/1", KEY))).await;
        assert_eq!(reply.status, StatusCode::OK);
    }
    // Around the limiter, not around the key.
    api.send(with_pass(request("GET", "/entities/1", "not-a-key"))).await.problem(401);
    for status in [200, 200, 200, 200, 200, 429] {
        assert_eq!(api.get("/entities/1").await.status.as_u16(), status);
    }
    let limiter = api.service.perf().snapshot().view().limiter;
    assert_eq!(
        limiter,
        Some(LimiterView { admitted: 5, limited: 1, bypassed: 51, ..LimiterView::default() })
    );
}

pub(super) async fn nothing_that_comes_over_a_connection_goes_around_the_limiter(storage: Storage) {
    let api = five_a_minute(&storage).await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let router = api.service.router();
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let mut client = Connection::open(address).await;
    let mut statuses = Vec::new();
    for claim in [
        "x-bypass-rate-limit: true",
        "x-parallax-bypass: true",
        "x-load-pass: 1",
        "loadmark: LoadMark",
        "x-forwarded-for: 127.0.0.1",
        "x-real-ip: 127.0.0.1",
        "forwarded: for=127.0.0.1",
    ] {
        let head =
            format!("GET /entities/1 HTTP/1.1\r\nhost: test\r\nx-api-key: {KEY}\r\n{claim}\r\n");
        client.write(&format!("{head}\r\n")).await;
        statuses.push(client.answer().await.0);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429]);
    server.abort();
    let limiter = api.service.perf().snapshot().view().limiter;
    assert_eq!(
        limiter,
        Some(LimiterView { admitted: 5, limited: 2, bypassed: 1, ..LimiterView::default() })
    );
}
