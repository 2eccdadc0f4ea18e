//! Bodies: the request lasts until the end of its response's body, however that comes.

use std::{io, pin::Pin, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderValue, StatusCode, header::CONTENT_LENGTH},
    response::IntoResponse,
    routing::get,
};
use futures_util::{Stream, StreamExt, stream};
use http_body_util::BodyExt;
use parallax_middleware::Outcome;
use tokio::time::sleep;

use crate::support::rig::{Rig, request};

type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, io::Error>> + Send>>;

/// Chunks of 10 bytes, one every 100 ms.
fn ticking(n: usize) -> Chunks {
    Box::pin(stream::iter(0..n).then(async |_| {
        sleep(Duration::from_millis(100)).await;
        Ok(Bytes::from_static(b"0123456789"))
    }))
}

fn breaking_off() -> Chunks {
    let whole = stream::iter([Ok(Bytes::from_static(b"so far"))]);
    Box::pin(whole.chain(stream::iter([Err(io::Error::other("the source is gone"))])))
}

fn panicking() -> Chunks {
    let whole = stream::iter([Ok(Bytes::from_static(b"so far"))]);
    Box::pin(whole.chain(stream::once(async { panic!("a body that panics") })))
}

fn serve<F>(path: &str, make: F) -> Rig
where
    F: Fn() -> Chunks + Clone + Send + Sync + 'static,
{
    Rig::around(Router::new().route(path, get(async move || Body::from_stream(make()))))
}

#[tokio::test(start_paused = true)]
async fn a_stream_lasts_until_its_end() {
    let rig = serve("/stream", || ticking(5));
    let answer = rig.get("/stream").await;
    assert_eq!(answer.body.len(), 50);
    assert_eq!(answer.record.first_byte, Some(Duration::ZERO));
    assert_eq!(answer.record.server_time, Duration::from_millis(500));
    let row = rig.row("GET /stream");
    assert_eq!(row.response_bytes, 50);
    assert_eq!((row.time_to_first_byte.max_us, row.latency.max_us), (Some(0.0), Some(500_000.0)));
    rig.assert_recorded(&[("GET /stream", Outcome::Ok, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_dropped_half_read_counts_as_cancelled_with_what_went_out() {
    let rig = serve("/stream", || ticking(usize::MAX));
    let mut body = rig.open(request("GET", "/stream")).await.into_body();
    for _ in 0..3 {
        body.frame().await.expect("there is more").expect("it does not break off");
    }
    assert_eq!(rig.row("GET /stream").in_flight, 1);
    drop(body);
    let record = rig.records().pop().expect("it is over");
    assert_eq!(record.first_byte, Some(Duration::ZERO));
    assert_eq!(record.server_time, Duration::from_millis(300));
    assert_eq!(rig.row("GET /stream").response_bytes, 30);
    rig.assert_recorded(&[("GET /stream", Outcome::Cancelled, 1)]);
}

#[tokio::test]
async fn a_stream_that_is_dropped_unread_counts_as_cancelled() {
    let rig = serve("/stream", || ticking(1));
    drop(rig.open(request("GET", "/stream")).await);
    rig.assert_recorded(&[("GET /stream", Outcome::Cancelled, 1)]);
}

#[tokio::test]
async fn a_response_that_is_whole_with_its_head_is_over_with_its_head() {
    let rig = Rig::around(Router::new().route("/text", get(async || "some text")));
    let response = rig.open(request("GET", "/text")).await;
    let record = rig.records().pop().expect("there is nothing left to do");
    assert_eq!(record.first_byte, Some(record.server_time));
    assert_eq!(rig.row("GET /text").response_bytes, 9);
    // What becomes of it on its way out is no longer the service's affair.
    drop(response);
    rig.assert_recorded(&[("GET /text", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn a_body_of_known_length_is_complete_with_its_last_byte() {
    let rig = Rig::around(Router::new().route("/text", get(async || "some text")));
    let mut body = rig.open(request("GET", "/text")).await.into_body();
    body.frame().await.expect("there is one").expect("it does not break off");
    // Not asked for its end, as hyper does not ask.
    drop(body);
    assert_eq!(rig.row("GET /text").response_bytes, 9);
    rig.assert_recorded(&[("GET /text", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_a_server_error_though_its_head_said_200() {
    let rig = serve("/breaks", breaking_off);
    let response = rig.open(request("GET", "/breaks")).await;
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body().collect().await.expect_err("the source is gone");
    assert_eq!(rig.row("GET /breaks").response_bytes, 6);
    rig.assert_recorded(&[("GET /breaks", Outcome::ServerError, 1)]);
}

#[tokio::test]
async fn a_body_that_panics_counts_as_panicked() {
    let rig = serve("/panics", panicking);
    let body = rig.open(request("GET", "/panics")).await.into_body();
    tokio::spawn(body.collect()).await.expect_err("the panic goes on outwards");
    let record = rig.records().pop().expect("it is over");
    assert!(record.first_byte.is_some());
    rig.assert_recorded(&[("GET /panics", Outcome::Panicked, 1)]);
}

#[tokio::test]
async fn the_body_of_an_error_is_read_to_its_end_too() {
    let rig = Rig::around(Router::new().route(
        "/refused",
        get(async || {
            (
                StatusCode::BAD_REQUEST,
                Body::from_stream(stream::iter(["no", "!"].map(Ok::<_, io::Error>))),
            )
        }),
    ));
    assert_eq!(rig.get("/refused").await.body, "no!");
    assert_eq!(rig.row("GET /refused").response_bytes, 3);
    rig.assert_recorded(&[("GET /refused", Outcome::ClientError, 1)]);
}

#[tokio::test]
async fn head_is_a_success_without_a_body() {
    let rig = Rig::around(
        Router::new()
            .route("/text", get(async || "some text"))
            .route("/stream", get(async || Body::from_stream(ticking(usize::MAX)))),
    );
    for path in ["/text", "/stream"] {
        let answer = rig.send(request("HEAD", path)).await;
        assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 0), "{path}");
        assert_eq!(answer.record.first_byte, Some(answer.record.server_time), "{path}");
    }
    assert_eq!(rig.row("HEAD /text").response_bytes, 0);
    rig.assert_recorded(&[("HEAD /text", Outcome::Ok, 1), ("HEAD /stream", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn responses_without_a_body_end_with_their_head() {
    let rig = Rig::around(
        Router::new()
            .route("/no-content", get(async || StatusCode::NO_CONTENT))
            .route("/not-modified", get(async || StatusCode::NOT_MODIFIED))
            .route("/empty", get(async || "")),
    );
    for path in ["/no-content", "/not-modified", "/empty"] {
        // Dropped unread: there is nothing to read.
        drop(rig.open(request("GET", path)).await);
    }
    rig.assert_recorded(&[
        ("GET /no-content", Outcome::Ok, 1),
        ("GET /not-modified", Outcome::Ok, 1),
        ("GET /empty", Outcome::Ok, 1),
    ]);
}

#[tokio::test]
async fn a_stream_without_a_chunk_is_a_success() {
    let rig = serve("/nothing", || Box::pin(stream::empty()));
    assert_eq!(rig.get("/nothing").await.body.len(), 0);
    rig.assert_recorded(&[("GET /nothing", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn the_layer_changes_neither_head_nor_body() {
    let rig = Rig::around(Router::new().route(
        "/text",
        get(async || {
            let mut response = "some text".into_response();
            response.headers_mut().insert("x-own", HeaderValue::from_static("kept"));
            response
        }),
    ));
    let response = rig.open(request("GET", "/text")).await;
    assert_eq!(axum::body::HttpBody::size_hint(response.body()).exact(), Some(9));
    let answer = rig.get("/text").await;
    assert_eq!(answer.body, "some text");
    assert_eq!(answer.headers["x-own"], "kept");
    assert_eq!(answer.headers[CONTENT_LENGTH], "9");
}
