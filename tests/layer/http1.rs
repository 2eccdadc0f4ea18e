//! What HTTP/1.1 alone has: requests sent ahead, closed halves, bytes that are no request.

use axum::{
    body::Bytes,
    http::StatusCode,
    routing::{any, get, post},
};
use parallax_middleware::Outcome;
use tokio::sync::watch;

use crate::{
    layer::responses::{SO_FAR, routes},
    support::{
        listening::Listening,
        rig::Rig,
        wire::{Connection, Ended},
    },
};

async fn served() -> (Rig, Listening, Connection) {
    let rig = Rig::around(routes());
    let server = rig.listen().await;
    let client = server.connect().await;
    (rig, server, client)
}

fn whole(text: &str) -> Ended {
    Ended::Whole(text.as_bytes().to_vec())
}

/// Several requests in one write.
fn ahead(paths: &[&str]) -> String {
    paths.iter().map(|path| format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).collect()
}

#[tokio::test]
async fn pipelined_requests_are_each_recorded() {
    let (rig, _server, mut client) = served().await;
    client.write(&ahead(&["/text", "/lost", "/text"])).await;
    assert_eq!(client.answer().await, (200, whole("some text")));
    assert_eq!(client.answer().await, (404, whole("")));
    assert_eq!(client.answer().await, (200, whole("some text")));
    rig.assert_ends(&[("GET /text", Outcome::Ok, 2), ("* (unmatched)", Outcome::ClientError, 1)])
        .await;
}

#[tokio::test]
async fn the_second_of_two_pipelined_requests_is_cancelled_when_the_client_leaves_after_the_first()
{
    let (rig, _server, mut client) = served().await;
    client.write(&ahead(&["/text", "/never"])).await;
    assert_eq!(client.answer().await, (200, whole("some text")));
    rig.entered(2).await;
    drop(client);
    rig.assert_ends(&[("GET /text", Outcome::Ok, 1), ("GET /never", Outcome::Cancelled, 1)]).await;
}

#[tokio::test]
async fn with_a_third_behind_it_the_second_is_in_flight_until_its_handler_answers() {
    let (open, gate) = watch::channel(false);
    let gated = get(async move || {
        gate.clone().wait_for(|open| *open).await.expect("the test holds the gate");
        "some text"
    });
    let rig = Rig::around(routes().route("/gated", gated));
    let server = rig.listen().await;
    let mut client = server.connect().await;
    client.write(&ahead(&["/text", "/gated", "/text"])).await;
    assert_eq!(client.answer().await, (200, whole("some text")));
    rig.entered(2).await;
    drop(client);
    // hyper sees the end of a connection only when it has read what came before it: the third request.
    open.send_replace(true);
    let gone = server.shut_down();
    drop(server);
    gone.await;
    rig.settled().await;
    let snapshot = rig.perf.snapshot();
    let (ok, cancelled) = (snapshot.outcome(Outcome::Ok), snapshot.outcome(Outcome::Cancelled));
    assert_eq!((ok + cancelled, rig.row("GET /gated").requests), (snapshot.entered(), 1));
}

#[tokio::test]
async fn a_pipelined_stream_is_cancelled_where_the_client_stops_reading_and_leaves() {
    let (rig, _server, mut client) = served().await;
    client.write(&ahead(&["/text", "/endless", "/text"])).await;
    assert_eq!(client.answer().await, (200, whole("some text")));
    assert_eq!(client.head().await.expect("it answers").status, 200);
    client.read_about(10_000).await;
    drop(client);
    rig.assert_ends(&[("GET /text", Outcome::Ok, 1), ("GET /endless", Outcome::Cancelled, 1)])
        .await;
    assert!(rig.row("GET /endless").response_bytes >= 10_000);
}

#[tokio::test]
async fn a_client_that_leaves_without_reading_what_it_sent_ahead_for_leaves_nothing_in_flight() {
    let (rig, server, mut client) = served().await;
    client.write(&ahead(&["/text"; 50])).await;
    assert_eq!(client.answer().await, (200, whole("some text")));
    drop(client);
    let gone = server.shut_down();
    drop(server);
    gone.await;
    rig.settled().await;
    let snapshot = rig.perf.snapshot();
    let (ok, cancelled) = (snapshot.outcome(Outcome::Ok), snapshot.outcome(Outcome::Cancelled));
    assert!((1..=50).contains(&ok));
    assert_eq!(ok + cancelled, snapshot.entered());
}

#[tokio::test]
async fn a_client_that_closes_its_own_half_has_left() {
    let (rig, _server, mut client) = served().await;
    client.ask("GET", "/never").await;
    rig.entered(1).await;
    client.finish().await;
    assert!(client.is_over().await);
    rig.assert_ends(&[("GET /never", Outcome::Cancelled, 1)]).await;
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_is_whole() {
    let (rig, _server, mut client) = served().await;
    client.write("GET /stream HTTP/1.0\r\n\r\n").await;
    let head = client.head().await.expect("it answers");
    assert_eq!((head.status, head.headers.get("content-length")), (200, None));
    assert_eq!(client.rest().await.len(), 100 * 1024);
    rig.assert_ends(&[("GET /stream", Outcome::Ok, 1)]).await;
}

#[tokio::test]
async fn a_body_that_breaks_off_breaks_the_connection() {
    let (rig, _server, mut client) = served().await;
    client.ask("GET", "/breaks").await;
    // What came before the break may or may not have left the server.
    if let Some(head) = client.head().await {
        assert_eq!(head.status, 200);
        let Ended::BrokeOff(body) = client.body(&head).await else { panic!("it breaks off") };
        assert!(SO_FAR.as_bytes().starts_with(&body), "{body:?}");
    }
    assert!(client.is_over().await);
    rig.assert_ends(&[("GET /breaks", Outcome::ServerError, 1)]).await;
}

#[tokio::test]
async fn a_panic_ends_its_own_connection_alone() {
    let (rig, server, mut client) = served().await;
    let mut other = server.connect().await;
    assert_eq!(other.get("/text").await, (200, whole("some text")));
    client.ask("GET", "/panics").await;
    assert!(client.head().await.is_none());
    assert_eq!(other.get("/text").await, (200, whole("some text")));
    rig.assert_ends(&[("GET /panics", Outcome::Panicked, 1), ("GET /text", Outcome::Ok, 2)]).await;
}

#[tokio::test]
async fn an_informational_response_that_comes_first_is_no_outcome() {
    let (rig, _server, mut client) = served().await;
    let head = "POST /echo HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 4\r\n";
    client.write(&format!("{head}\r\n")).await;
    assert_eq!(client.answer().await, (100, whole("")));
    client.write("text").await;
    assert_eq!(client.answer().await, (200, whole("text")));
    rig.assert_ends(&[("POST /echo", Outcome::Ok, 1)]).await;
}

#[tokio::test]
async fn a_request_that_breaks_off_half_way_through_its_body_is_recorded_once() {
    let rig =
        Rig::around(routes().route("/counted", post(async |body: Bytes| body.len().to_string())));
    let server = rig.listen().await;
    let mut client = server.connect().await;
    let head = "POST /counted HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n";
    client.write(&format!("{head}less than that")).await;
    rig.entered(1).await;
    client.finish().await;
    rig.settled().await;
    // The extractor refuses what is not whole, or the handler is dropped before that.
    let outcome = rig.records()[0].outcome;
    assert!(matches!(outcome, Outcome::ClientError | Outcome::Cancelled), "{outcome:?}");
    rig.assert_recorded(&[("POST /counted", outcome, 1)]);
}

#[tokio::test]
async fn a_response_that_ends_the_connection_is_as_whole_as_any() {
    let closing = any(async || (StatusCode::OK, [("connection", "close")], "some text"));
    let rig = Rig::around(routes().route("/closing", closing));
    let server = rig.listen().await;
    let mut client = server.connect().await;
    client.write(&ahead(&["/closing", "/text"])).await;
    assert_eq!(client.answer().await, (200, whole("some text")));
    assert!(client.is_over().await);
    rig.assert_ends(&[("GET /closing", Outcome::Ok, 1)]).await;
}

#[tokio::test]
async fn what_never_becomes_a_request_is_not_counted() {
    let (rig, server, mut half) = served().await;
    half.write("GET /text HTTP/1.1\r\nhost: te").await;
    drop(half);
    let mut nonsense = server.connect().await;
    nonsense.write("this is no request\r\n\r\n").await;
    assert_eq!(nonsense.head().await.expect("hyper answers on its own").status, 400);
    drop((nonsense, server.connect().await));
    assert_eq!(server.connect().await.get("/text").await.0, 200);
    let gone = server.shut_down();
    gone.await;
    rig.assert_recorded(&[("GET /text", Outcome::Ok, 1)]);
}
