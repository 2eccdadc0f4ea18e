//! The way past a limiter: for the load of this process, and for nobody else.

use axum::{Router, http::StatusCode, routing::get};
use parallax_middleware::{BypassPolicy, LimiterView, LoadMark, Outcome, Perf};

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
    let carried = async |request: axum::extract::Request| {
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
