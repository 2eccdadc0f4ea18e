//! Bodies: the request lasts until the end of its response's body, however that comes.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_LENGTH, TE},
    },
    response::IntoResponse,
    routing::get,
};
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use parallax_middleware::Outcome;
use tokio::time::sleep;

use crate::{
    layer::responses::{Chunks, SO_FAR, SUM, routes},
    support::{
        client::{Client, Transport, read},
        rig::{Rig, request},
        wire::Ended,
    },
};

/// Chunks of 10 bytes, one every 100 ms.
fn ticking(n: usize) -> Chunks {
    Box::pin(stream::iter(0..n).then(async |_| {
        sleep(Duration::from_millis(100)).await;
        Ok(Bytes::from_static(b"0123456789"))
    }))
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
    let rig = Rig::around(routes());
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
async fn a_body_of_known_length_is_complete_though_nobody_asks_for_its_end() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        for _ in 0..10 {
            assert_eq!(client.get("/text").await.body, "some text");
        }
        assert_eq!(rig.row("GET /text").response_bytes, 90);
        rig.assert_ends(&[("GET /text", Outcome::Ok, 10)]).await;
    }
}

#[tokio::test]
async fn a_stream_is_complete_at_its_end_whether_its_length_was_known_or_not() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        for path in ["/stream", "/file"] {
            assert_eq!(client.get(path).await.body.len(), 100 * 1024, "{path}");
            assert_eq!(rig.row(&format!("GET {path}")).response_bytes, 100 * 1024, "{path}");
        }
        rig.assert_ends(&[("GET /stream", Outcome::Ok, 1), ("GET /file", Outcome::Ok, 1)]).await;
    }
}

#[tokio::test]
async fn a_body_of_known_length_is_complete_though_it_comes_late_or_in_parts() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        for path in ["/known/halves", "/known/late"] {
            let answer = client.get(path).await;
            assert_eq!(answer.body, "halfhalf", "{path}");
            assert_eq!(answer.headers[CONTENT_LENGTH], "8", "{path}");
            assert_eq!(rig.row(&format!("GET {path}")).response_bytes, 8, "{path}");
        }
        rig.assert_ends(&[
            ("GET /known/halves", Outcome::Ok, 1),
            ("GET /known/late", Outcome::Ok, 1),
        ])
        .await;
    }
}

#[tokio::test]
async fn a_body_of_known_length_can_break_off_or_panic_at_its_first_byte() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        for path in ["/known/breaks", "/known/panics"] {
            let client = client.another().await;
            // Whether the head goes out before that is the server's affair.
            if let Ok(response) = client.open(request("GET", path)).await {
                assert_eq!(read(response.into_body()).await, Ended::BrokeOff(Vec::new()), "{path}");
            }
        }
        rig.assert_ends(&[
            ("GET /known/breaks", Outcome::ServerError, 1),
            ("GET /known/panics", Outcome::Panicked, 1),
        ])
        .await;
    }
}

#[tokio::test]
async fn a_body_of_known_length_that_is_dropped_half_way_is_cancelled() {
    let rig = Rig::around(routes());
    for path in ["/known/halves", "/known/late"] {
        let mut body = rig.open(request("GET", path)).await.into_body();
        assert_eq!(body.size_hint().exact(), Some(8), "{path}");
        body.frame().await.expect("there is one").expect("it does not break off");
        assert_eq!(body.size_hint().exact(), Some(4), "{path}");
        assert_eq!(rig.row(&format!("GET {path}")).in_flight, 1, "{path}");
        drop(body);
        assert_eq!(rig.row(&format!("GET {path}")).response_bytes, 4, "{path}");
    }
    rig.assert_recorded(&[
        ("GET /known/halves", Outcome::Cancelled, 1),
        ("GET /known/late", Outcome::Cancelled, 1),
    ]);
}

#[tokio::test]
async fn the_body_of_an_error_is_read_to_its_end_too() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        assert_eq!(client.get("/refused").await.body.len(), 1024);
        assert_eq!(rig.row("GET /refused").response_bytes, 1024);
        rig.assert_ends(&[("GET /refused", Outcome::ClientError, 1)]).await;
    }
}

/// Asks for trailers, and returns what data and what trailer came.
async fn with_trailers(client: &Client, path: &str) -> (Bytes, Option<HeaderValue>) {
    let mut request = request("GET", path);
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    let response = client.open(request).await.expect("it is answered");
    let body = response.into_body().collect().await.expect("the body is whole");
    let sum = body.trailers().and_then(|trailers| trailers.get(SUM)).cloned();
    (body.to_bytes(), sum)
}

#[tokio::test]
async fn a_stream_with_trailers_is_complete_with_them() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        let (data, sum) = with_trailers(&client, "/trailers/unsized").await;
        assert_eq!((&data[..], sum), (&b"some textsome text"[..], Some(HeaderValue::from(7))));
        rig.recorded(1).await;
        assert_eq!(rig.row("GET /trailers/unsized").response_bytes, 18);
        rig.assert_ends(&[("GET /trailers/unsized", Outcome::Ok, 1)]).await;
    }
}

#[tokio::test]
async fn trailers_after_a_known_length_change_nothing() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        for (path, data) in [("/trailers/sized", "some text"), ("/trailers/alone", "")] {
            let (received, sum) = with_trailers(&client, path).await;
            assert_eq!(received, data, "{path}");
            // With a length there is no room for them in HTTP/1.1.
            let room = *over != Transport::Http1;
            assert_eq!(sum, room.then(|| HeaderValue::from(7)), "{path}");
        }
        rig.assert_ends(&[
            ("GET /trailers/sized", Outcome::Ok, 1),
            ("GET /trailers/alone", Outcome::Ok, 1),
        ])
        .await;
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_a_server_error_though_its_head_said_200() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        // What came before the break may or may not have left the server.
        if let Ok(response) = client.open(request("GET", "/breaks")).await {
            assert_eq!(response.status(), StatusCode::OK);
            let Ended::BrokeOff(body) = read(response.into_body()).await else {
                panic!("it breaks off");
            };
            assert!(SO_FAR.as_bytes().starts_with(&body), "{body:?}");
        }
        rig.recorded(1).await;
        assert_eq!(rig.row("GET /breaks").response_bytes, SO_FAR.len() as u64);
        rig.assert_ends(&[("GET /breaks", Outcome::ServerError, 1)]).await;
    }
}

#[tokio::test]
async fn a_body_that_ends_short_of_the_length_it_promised_is_a_server_error() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        let response = client.ask("GET", "/short").await;
        let ended = read(response.into_body()).await;
        // Who counts sees that it is not whole.
        assert_eq!(matches!(ended, Ended::Whole(_)), *over == Transport::InProcess);
        rig.assert_ends(&[("GET /short", Outcome::ServerError, 1)]).await;
        assert_eq!(rig.row("GET /short").response_bytes, 99 * 1024);
    }
}

#[tokio::test]
async fn head_is_a_success_without_a_body() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        for path in ["/text", "/endless", "/trailers/unsized"] {
            let answer = client.send(request("HEAD", path)).await;
            assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 0), "{path}");
            assert_eq!(answer.record.first_byte, Some(answer.record.server_time), "{path}");
            assert_eq!(rig.row(&format!("HEAD {path}")).response_bytes, 0, "{path}");
        }
        rig.assert_ends(&[
            ("HEAD /text", Outcome::Ok, 1),
            ("HEAD /endless", Outcome::Ok, 1),
            ("HEAD /trailers/unsized", Outcome::Ok, 1),
        ])
        .await;
    }
}

#[tokio::test]
async fn responses_without_a_body_end_with_their_head() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        let paths =
            [("/no-content", 204), ("/not-modified", 304), ("/empty", 200), ("/ended", 200)];
        for (path, status) in paths {
            // Dropped unread: there is nothing to read.
            assert_eq!(client.ask("GET", path).await.status().as_u16(), status, "{path}");
        }
        rig.assert_ends(&[
            ("GET /no-content", Outcome::Ok, 1),
            ("GET /not-modified", Outcome::Ok, 1),
            ("GET /empty", Outcome::Ok, 1),
            ("GET /ended", Outcome::Ok, 1),
        ])
        .await;
        assert!(rig.records().iter().all(|record| record.first_byte == Some(record.server_time)));
    }
}

#[tokio::test]
async fn streams_that_are_never_asked_are_complete_where_no_body_belongs() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        for status in [200, 204, 304] {
            let response = client.ask("GET", &format!("/proxied/{status}")).await;
            assert_eq!(response.status().as_u16(), status);
        }
        rig.assert_ends(&[("GET /proxied/{status}", Outcome::Ok, 3)]).await;
    }
}

#[tokio::test]
async fn a_stream_without_a_chunk_is_a_success() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        assert_eq!(client.get("/nothing").await.body.len(), 0);
        rig.assert_ends(&[("GET /nothing", Outcome::Ok, 1)]).await;
    }
}

#[tokio::test]
async fn request_bodies_that_are_read_or_ignored_change_nothing() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        let sent = "y".repeat(5000);
        for (path, answer) in [("/echo", sent.as_str()), ("/ignore", "not read")] {
            let mut request = request("POST", path);
            *request.body_mut() = Body::from(sent.clone());
            assert_eq!(client.send(request).await.body, answer, "{path}");
        }
        rig.assert_ends(&[("POST /echo", Outcome::Ok, 1), ("POST /ignore", Outcome::Ok, 1)]).await;
    }
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
    assert_eq!(response.body().size_hint().exact(), Some(9));
    let answer = rig.get("/text").await;
    assert_eq!(answer.body, "some text");
    assert_eq!(answer.headers["x-own"], "kept");
    assert_eq!(answer.headers[CONTENT_LENGTH], "9");
}
