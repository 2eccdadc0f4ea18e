//! The way past a limiter: for the load of this process, and for nobody else.

use axum::{Router, extract::Request, http::StatusCode, routing::get};
use parallax_middleware::{BypassPolicy, LimiterView, LoadMark, Outcome, Perf};

use tower::util::MapRequestLayer;

use crate::support::rig::{Rig, an_hour, request, with_pass};

/// A router whose limiter lets two requests an hour through, with a way around it.
fn two_an_hour() -> Rig {
    let perf = Perf::new();
    let app = Router::new()
        .route("/items/{id}", get(async || "an item"))
        .layer(perf.bypass(BypassPolicy::in_process()).around(an_hour(2)))
        .layer(perf.layer());
    Rig::new(&perf, app)
}

#[tokio::test]
async fn requests_without_a_pass_meet_the_limiter() {
    let rig = two_an_hour();
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(rig.get("/items/7").await.status.as_u16());
    }
    assert_eq!(statuses, [200, 200, 429, 429, 429]);
    let limiter = rig.perf.snapshot().view().limiter;
    assert_eq!(
        limiter,
        Some(LimiterView { admitted: 2, limited: 3, bypassed: 0, ..LimiterView::default() })
    );
    rig.assert_recorded(&[
        ("GET /items/{id}", Outcome::Ok, 2),
        ("GET /items/{id}", Outcome::Limited, 3),
    ]);
}

#[tokio::test]
async fn requests_with_a_pass_go_around_it_and_are_marked() {
    let rig = two_an_hour();
    for _ in 0..4 {
        let answer = rig.send(with_pass(request("GET", "/items/7"))).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.record.bypassed);
    }
    // They used up nothing of what the others may.
    let answer = rig.get("/items/7").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(!answer.record.bypassed);
    let limiter = rig.perf.snapshot().view().limiter;
    assert_eq!(
        limiter,
        Some(LimiterView { admitted: 1, limited: 0, bypassed: 4, ..LimiterView::default() })
    );
    assert_eq!(rig.row("GET /items/{id}").bypassed, 4);
    rig.assert_recorded(&[("GET /items/{id}", Outcome::Ok, 5)]);
}

#[tokio::test]
async fn a_pass_is_used_up_at_the_limiter() {
    let perf = Perf::new();
    let carried = async |request: Request| {
        request.extensions().get().is_some_and(LoadMark::passes_limiter).to_string()
    };
    let app = Router::new()
        .route("/carried", get(carried))
        .layer(perf.bypass(BypassPolicy::in_process()).around(tower::layer::util::Identity::new()))
        .layer(perf.layer());
    let rig = Rig::new(&perf, app);
    assert_eq!(rig.send(with_pass(request("GET", "/carried"))).await.body, "false");
}

#[tokio::test]
async fn nothing_that_comes_over_a_connection_passes_the_limiter() {
    let rig = two_an_hour();
    let server = rig.listen().await;
    let mut client = server.connect().await;
    let mut statuses = Vec::new();
    for header in ["x-bypass-rate-limit", "x-parallax-bypass", "LoadMark", "x-load-pass"] {
        client
            .write(&format!("GET /items/7 HTTP/1.1\r\nhost: test\r\n{header}: true\r\n\r\n"))
            .await;
        statuses.push(client.answer().await.0);
    }
    assert_eq!(statuses, [200, 200, 429, 429]);
    let limiter = rig.perf.snapshot().view().limiter;
    assert_eq!(
        limiter,
        Some(LimiterView { admitted: 2, limited: 2, bypassed: 0, ..LimiterView::default() })
    );
    rig.assert_recorded(&[
        ("GET /items/{id}", Outcome::Ok, 2),
        ("GET /items/{id}", Outcome::Limited, 2),
    ]);
}

#[tokio::test]
async fn without_a_limiter_there_are_no_figures_of_one() {
    let rig = Rig::around(Router::new().route("/", get(async || "home")));
    rig.get("/").await;
    assert_eq!(rig.perf.snapshot().view().limiter, None);
}

#[tokio::test]
async fn each_of_two_limiters_counts_what_it_did_and_the_route_what_became_of_the_request() {
    let perf = Perf::new();
    let app = Router::new()
        .route("/items/{id}", get(async || "an item"))
        .layer(perf.bypass(BypassPolicy::in_process()).around(an_hour(1)))
        .layer(perf.bypass(BypassPolicy::in_process()).around(an_hour(3)))
        .layer(perf.layer());
    let rig = Rig::new(&perf, app);
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(rig.get("/items/7").await.status.as_u16());
    }
    assert_eq!(statuses, [200, 429, 429, 429, 429]);
    // The outer one let three through and stopped two; of those three, the inner one let one through.
    let both = LimiterView { admitted: 3 + 1, limited: 2 + 2, ..LimiterView::default() };
    assert_eq!(rig.perf.snapshot().view().limiter, Some(both));
    let row = LimiterView { admitted: 1, limited: 4, ..LimiterView::default() };
    assert_eq!(rig.row("GET /items/{id}").limiter, Some(row));
}

#[tokio::test]
async fn a_limiter_that_hands_a_copy_on_has_let_the_request_through() {
    let copy = |request: Request| {
        let (parts, body) = request.into_parts();
        Request::from_parts(parts.clone(), body)
    };
    let perf = Perf::new();
    let app = Router::new()
        .route("/", get(async || "home"))
        .layer(perf.bypass(BypassPolicy::in_process()).around(MapRequestLayer::new(copy)))
        .layer(perf.layer());
    let rig = Rig::new(&perf, app);
    rig.get("/").await;
    let admitted = Some(LimiterView { admitted: 1, ..LimiterView::default() });
    assert_eq!(rig.perf.snapshot().view().limiter, admitted);
    assert_eq!(rig.row("GET /").limiter, admitted);
}

#[tokio::test]
async fn a_limiter_counts_without_the_layer_as_well() {
    let perf = Perf::new();
    let app = Router::new()
        .route("/", get(async || StatusCode::TOO_MANY_REQUESTS))
        .layer(perf.bypass(BypassPolicy::in_process()).around(an_hour(1)));
    let rig = Rig::new(&perf, app);
    for _ in 0..3 {
        assert_eq!(rig.open(request("GET", "/")).await.status(), StatusCode::TOO_MANY_REQUESTS);
    }
    // The first one's answer is the handler's.
    let limiter = LimiterView { admitted: 1, limited: 2, ..LimiterView::default() };
    assert_eq!(rig.perf.snapshot().view().limiter, Some(limiter));
}
