//! The layer in a served router: what hyper does with bodies, and what clients do that leave.

use std::{future::pending, io, pin::Pin};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Path,
    http::{
        StatusCode,
        header::{CONNECTION, CONTENT_LENGTH, UPGRADE},
    },
    routing::{get, post},
};
use futures_util::{Stream, StreamExt, future::join_all, stream};
use parallax_middleware::Outcome;
use tower_http::catch_panic::CatchPanicLayer;

use crate::support::{
    listening::Listening,
    rig::Rig,
    wire::{Connection, Ended},
};

type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, io::Error>> + Send>>;

async fn panics() -> StatusCode {
    panic!("a handler that panics")
}

/// 1 KiB, again and again.
fn endless() -> Chunks {
    Box::pin(stream::repeat_with(|| Ok(Bytes::from_static(&[b'x'; 1024]))))
}

fn routes() -> Router {
    Router::new()
        .route("/text", get(async || "some text"))
        .route("/echo", post(async |body: Bytes| body))
        .route("/ignore", post(async || "not read"))
        .route("/never", get(pending::<StatusCode>))
        .route("/panics", get(panics))
        .route("/endless", get(async || Body::from_stream(endless())))
        .route("/stream", get(async || Body::from_stream(endless().take(100))))
        .route(
            "/proxied/{status}",
            get(async |Path(status): Path<u16>| {
                // As a proxy hands it on: a stream that does not know that it has nothing to say.
                let status = StatusCode::from_u16(status).expect("a status");
                let length = (status == StatusCode::OK).then_some([(CONTENT_LENGTH, "0")]);
                (status, length, Body::from_stream(endless().take(0)))
            }),
        )
        .route(
            "/file",
            get(async || ([(CONTENT_LENGTH, "102400")], Body::from_stream(endless().take(100)))),
        )
        .route(
            "/breaks",
            get(async || {
                let gone = stream::once(async { Err(io::Error::other("the source is gone")) });
                Body::from_stream(endless().take(1).chain(gone))
            }),
        )
        .route("/no-content", get(async || StatusCode::NO_CONTENT))
        .route("/not-modified", get(async || StatusCode::NOT_MODIFIED))
        .route("/empty", get(async || ""))
        .route(
            "/upgrade",
            get(async || {
                (StatusCode::SWITCHING_PROTOCOLS, [(CONNECTION, "upgrade"), (UPGRADE, "parallax")])
            }),
        )
}

async fn served() -> (Rig, Listening, Connection) {
    let rig = Rig::around(routes());
    let server = rig.listen().await;
    let client = server.connect().await;
    (rig, server, client)
}

fn whole(text: &str) -> Ended {
    Ended::Whole(text.as_bytes().to_vec())
}

#[tokio::test]
async fn a_sized_body_is_complete_though_hyper_never_asks_for_its_end() {
    let (rig, _server, mut client) = served().await;
    for _ in 0..10 {
        assert_eq!(client.get("/text").await, (200, whole("some text")));
    }
    rig.recorded(10).await;
    assert_eq!(rig.row("GET /text").response_bytes, 90);
    rig.assert_recorded(&[("GET /text", Outcome::Ok, 10)]);
}

#[tokio::test]
async fn a_streamed_body_of_unknown_length_is_recorded_at_its_end() {
    let (rig, _server, mut client) = served().await;
    let (status, Ended::Whole(body)) = client.get("/stream").await else {
        panic!("the stream is whole");
    };
    assert_eq!((status, body.len()), (200, 100 * 1024));
    rig.recorded(1).await;
    assert_eq!(rig.row("GET /stream").response_bytes, 100 * 1024);
    rig.assert_recorded(&[("GET /stream", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn a_stream_that_keeps_the_length_it_promised_is_complete() {
    let (rig, _server, mut client) = served().await;
    let (status, Ended::Whole(body)) = client.get("/file").await else {
        panic!("the file is whole");
    };
    assert_eq!((status, body.len()), (200, 100 * 1024));
    rig.recorded(1).await;
    rig.assert_recorded(&[("GET /file", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn streams_that_are_never_asked_are_complete_where_no_body_belongs() {
    let (rig, _server, mut client) = served().await;
    for status in [200, 204, 304] {
        assert_eq!(client.get(&format!("/proxied/{status}")).await.0, status);
    }
    rig.recorded(3).await;
    rig.assert_recorded(&[("GET /proxied/{status}", Outcome::Ok, 3)]);
}

#[tokio::test]
async fn bodies_that_do_not_exist_are_successes() {
    let (rig, _server, mut client) = served().await;
    for (path, status) in [("/no-content", 204), ("/not-modified", 304), ("/empty", 200)] {
        assert_eq!(client.get(path).await, (status, whole("")), "{path}");
    }
    for path in ["/text", "/endless"] {
        client.ask("HEAD", path).await;
        assert_eq!(client.head().await.expect("it answers").status, 200, "{path}");
    }
    rig.recorded(5).await;
    rig.assert_recorded(&[
        ("GET /no-content", Outcome::Ok, 1),
        ("GET /not-modified", Outcome::Ok, 1),
        ("GET /empty", Outcome::Ok, 1),
        ("HEAD /text", Outcome::Ok, 1),
        ("HEAD /endless", Outcome::Ok, 1),
    ]);
}

#[tokio::test]
async fn pipelined_requests_are_each_recorded() {
    let (rig, _server, mut client) = served().await;
    let one = "GET /text HTTP/1.1\r\nhost: test\r\n\r\n";
    let lost = "GET /lost HTTP/1.1\r\nhost: test\r\n\r\n";
    client.write(&format!("{one}{lost}{one}")).await;
    assert_eq!(client.answer().await, (200, whole("some text")));
    assert_eq!(client.answer().await, (404, whole("")));
    assert_eq!(client.answer().await, (200, whole("some text")));
    rig.recorded(3).await;
    rig.assert_recorded(&[
        ("GET /text", Outcome::Ok, 2),
        ("* (unmatched)", Outcome::ClientError, 1),
    ]);
}

#[tokio::test]
async fn a_wrong_method_counts_for_its_route() {
    let (rig, _server, mut client) = served().await;
    client.ask("DELETE", "/text").await;
    assert_eq!(client.answer().await.0, 405);
    rig.recorded(1).await;
    rig.assert_recorded(&[("DELETE /text", Outcome::ClientError, 1)]);
}

#[tokio::test]
async fn connections_share_the_counters() {
    let (rig, server, mut first) = served().await;
    assert_eq!(first.get("/text").await.0, 200);
    for _ in 0..5 {
        assert_eq!(server.connect().await.get("/text").await.0, 200);
    }
    rig.recorded(6).await;
    rig.assert_recorded(&[("GET /text", Outcome::Ok, 6)]);
}

#[tokio::test]
async fn request_bodies_that_are_read_or_ignored_change_nothing() {
    let (rig, _server, mut client) = served().await;
    let body = "y".repeat(5000);
    for (path, answer) in [("/echo", body.as_str()), ("/ignore", "not read")] {
        let head = format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 5000\r\n\r\n");
        client.write(&format!("{head}{body}")).await;
        assert_eq!(client.answer().await, (200, whole(answer)));
    }
    rig.recorded(2).await;
    rig.assert_recorded(&[("POST /echo", Outcome::Ok, 1), ("POST /ignore", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn an_upgrade_ends_with_its_head() {
    let (rig, _server, mut client) = served().await;
    let upgrade = "connection: upgrade\r\nupgrade: parallax\r\n";
    client.write(&format!("GET /upgrade HTTP/1.1\r\nhost: test\r\n{upgrade}\r\n")).await;
    assert_eq!(client.head().await.expect("it answers").status, 101);
    rig.recorded(1).await;
    rig.assert_recorded(&[("GET /upgrade", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn a_client_that_leaves_a_slow_handler_is_cancelled_and_no_longer_in_flight() {
    let (rig, _server, mut client) = served().await;
    client.ask("GET", "/never").await;
    crate::support::eventually("the request is in the handler", async || {
        (rig.perf.snapshot().entered() == 1).then_some(())
    })
    .await;
    assert_eq!(rig.row("GET /never").in_flight, 1);
    drop(client);
    rig.recorded(1).await;
    assert_eq!(rig.records()[0].first_byte, None);
    rig.assert_recorded(&[("GET /never", Outcome::Cancelled, 1)]);
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_half_read_is_cancelled() {
    let (rig, _server, mut client) = served().await;
    client.ask("GET", "/endless").await;
    assert_eq!(client.head().await.expect("it answers").status, 200);
    client.read_about(10_000).await;
    drop(client);
    rig.recorded(1).await;
    assert!(rig.row("GET /endless").response_bytes >= 10_000);
    assert!(rig.records()[0].first_byte.is_some());
    rig.assert_recorded(&[("GET /endless", Outcome::Cancelled, 1)]);
}

#[tokio::test]
async fn a_body_that_breaks_off_breaks_the_connection_and_is_a_server_error() {
    let (rig, _server, mut client) = served().await;
    client.ask("GET", "/breaks").await;
    // What came before the break may or may not have left the server.
    if let Some(head) = client.head().await {
        assert_eq!(head.status, 200);
        assert!(matches!(client.body(&head).await, Ended::BrokeOff(_)));
    }
    assert!(client.is_over().await);
    rig.recorded(1).await;
    rig.assert_recorded(&[("GET /breaks", Outcome::ServerError, 1)]);
}

#[tokio::test]
async fn a_panic_ends_its_own_connection_alone() {
    let (rig, server, mut client) = served().await;
    client.ask("GET", "/panics").await;
    assert!(client.head().await.is_none());
    assert_eq!(server.connect().await.get("/text").await, (200, whole("some text")));
    rig.recorded(2).await;
    rig.assert_recorded(&[("GET /panics", Outcome::Panicked, 1), ("GET /text", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn a_caught_panic_keeps_its_connection() {
    let rig = Rig::around(routes().layer(CatchPanicLayer::new()));
    let server = rig.listen().await;
    let mut client = server.connect().await;
    assert_eq!(client.get("/panics").await.0, 500);
    assert_eq!(client.get("/text").await.0, 200);
    rig.recorded(2).await;
    rig.assert_recorded(&[("GET /panics", Outcome::ServerError, 1), ("GET /text", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn what_never_becomes_a_request_is_not_counted() {
    let (rig, server, mut half) = served().await;
    half.write("GET /text HTTP/1.1\r\nhost: te").await;
    drop(half);
    let mut nonsense = server.connect().await;
    nonsense.write("this is no request\r\n\r\n").await;
    assert_eq!(nonsense.head().await.expect("hyper answers on its own").status, 400);
    // A request after them shows that the server has taken note of all three.
    assert_eq!(server.connect().await.get("/text").await.0, 200);
    rig.recorded(1).await;
    rig.assert_recorded(&[("GET /text", Outcome::Ok, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_that_leave_and_many_that_stay_are_all_accounted_for() {
    let (rig, server, _client) = served().await;
    let each = 50_u64;
    let clients = (0..3 * each).map(|n| {
        let (rig, server) = (&rig, &server);
        async move {
            let mut client = server.connect().await;
            match n % 3 {
                0 => assert_eq!(client.get("/text").await.0, 200),
                1 => {
                    client.ask("GET", "/never").await;
                    // All have arrived before the first of them leaves.
                    crate::support::eventually("all wait", async || {
                        let rows = rig.perf.snapshot().view().routes;
                        let row = rows.iter().find(|row| row.route == "/never")?;
                        (row.requests + row.in_flight == each).then_some(())
                    })
                    .await;
                }
                _ => {
                    client.ask("GET", "/endless").await;
                    client.read_about(5_000).await;
                }
            }
        }
    });
    join_all(clients).await;
    rig.recorded(3 * each).await;
    rig.assert_recorded(&[
        ("GET /text", Outcome::Ok, each),
        ("GET /never", Outcome::Cancelled, each),
        ("GET /endless", Outcome::Cancelled, each),
    ]);
}
