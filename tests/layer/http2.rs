//! What HTTP/2 alone has: many streams on one connection, which end one by one or together.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use axum::{Router, body::Body, routing::get};
use futures_util::{StreamExt, future::join_all};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parallax_middleware::Outcome;
use tokio::{net::TcpStream, sync::watch};

use crate::{
    layer::responses::{endless, routes, so_far},
    support::{
        client::{Client, Transport, Windows, read, read_about},
        eventually,
        rig::{Rig, request},
        wire::Ended,
    },
};

/// Answers when the gate is open.
fn gated(gate: watch::Receiver<bool>) -> Router {
    let wait = get(async move || {
        gate.clone().wait_for(|open| *open).await.expect("the test holds the gate");
        "some text"
    });
    routes().route("/gated", wait)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_hundred_streams_on_one_connection_those_that_are_reset_are_cancelled() {
    let (open, gate) = watch::channel(false);
    let rig = Rig::around(gated(gate));
    let client = rig.client(&Transport::Http2).await;
    let streams = (0..100).map(|n| {
        let (client, rig, open) = (&client, &rig, &open);
        async move {
            if n % 3 == 0 {
                client.abandon(request("GET", "/gated"), 100).await;
                return;
            }
            let answer = async { assert_eq!(client.fetch("/gated").await.0, 200) };
            let gate = async {
                // Only those that are left get an answer.
                rig.recorded(34).await;
                open.send_replace(true);
            };
            tokio::join!(answer, gate);
        }
    });
    join_all(streams).await;
    rig.assert_ends(&[("GET /gated", Outcome::Cancelled, 34), ("GET /gated", Outcome::Ok, 66)])
        .await;
}

#[tokio::test]
async fn a_connection_cut_ends_all_its_streams() {
    let rig = Rig::around(routes());
    let client = rig.client(&Transport::Http2).await;
    let each = 10;
    let before = (0..each).map(|_| async {
        client.open(request("GET", "/never")).await.expect_err("the connection is gone");
    });
    let half_way = (0..each).map(|_| async {
        let mut body = client.ask("GET", "/stuck").await.into_body();
        read_about(&mut body, 1).await;
        assert_eq!(read(body).await, Ended::BrokeOff(Vec::new()));
    });
    let cut = async {
        assert_eq!(client.get("/text").await.body, "some text");
        rig.entered(2 * each + 1).await;
        client.cut().await;
    };
    tokio::join!(join_all(before), join_all(half_way), cut);
    rig.assert_ends(&[
        ("GET /never", Outcome::Cancelled, each),
        ("GET /stuck", Outcome::Cancelled, each),
        ("GET /text", Outcome::Ok, 1),
    ])
    .await;
}

/// A client of `/counted` that lets the server send 16 KiB a stream, and how many KiB it produced.
async fn narrow() -> (Rig, Client, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let counting = get(async move || {
        Body::from_stream(endless().inspect(move |_| {
            counted.fetch_add(1, Relaxed);
        }))
    });
    let rig = Rig::around(routes().route("/counted", counting));
    let server = Arc::new(rig.listen().await);
    let windows = Windows { stream: 16 * 1024, connection: 1024 * 1024 };
    let client = Client::of_server(&rig, server, &Transport::Http2, Some(windows)).await;
    (rig, client, sent)
}

#[tokio::test]
async fn a_stream_whose_window_is_full_is_in_flight_until_it_is_dropped_and_holds_up_no_other() {
    let (rig, client, sent) = narrow().await;
    let response = client.ask("GET", "/counted").await;
    let full = eventually("the window is full", async || (sent.load(Relaxed) >= 16).then_some(()));
    full.await;
    for _ in 0..20 {
        assert_eq!(client.get("/text").await.body, "some text");
    }
    assert_eq!(rig.row("GET /counted").in_flight, 1);
    // One chunk may wait for the window; the rest is not asked for.
    assert!(sent.load(Relaxed) <= 17, "{sent:?}");
    drop(response);
    rig.assert_ends(&[("GET /counted", Outcome::Cancelled, 1), ("GET /text", Outcome::Ok, 20)])
        .await;
    assert_eq!(rig.row("GET /counted").response_bytes, 1024 * sent.load(Relaxed) as u64);
}

#[tokio::test]
async fn a_reader_that_goes_on_after_its_window_was_full_gets_the_whole_body() {
    let (rig, client, sent) = narrow().await;
    let mut slow = client.ask("GET", "/counted").await.into_body();
    let full = eventually("the window is full", async || (sent.load(Relaxed) >= 16).then_some(()));
    full.await;
    read_about(&mut slow, 50_000).await;
    drop(slow);
    for path in ["/stream", "/file"] {
        assert_eq!(client.get(path).await.body.len(), 100 * 1024, "{path}");
    }
    rig.assert_ends(&[
        ("GET /counted", Outcome::Cancelled, 1),
        ("GET /stream", Outcome::Ok, 1),
        ("GET /file", Outcome::Ok, 1),
    ])
    .await;
    assert!(rig.row("GET /counted").response_bytes >= 50_000);
}

#[tokio::test]
async fn streams_reset_as_fast_as_they_are_opened_leave_nothing_in_flight() {
    let rig = Rig::around(routes());
    let client = rig.client(&Transport::Http2).await;
    for n in 0..500 {
        let mut asked = Box::pin(client.open(request("GET", ["/never", "/stream"][n % 2])));
        // Sent, or not even that; a server may also have had enough of this and close.
        let _ = futures_util::poll!(&mut asked);
        if n % 7 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let other = client.another().await;
    assert_eq!(other.fetch("/text").await, (200, Ended::Whole(b"some text".to_vec())));
    let gone = client.shut_down();
    drop((client, other));
    gone.await;
    rig.settled().await;
    rig.assert_ok_or_cancelled();
}

#[tokio::test]
async fn a_client_that_says_goodbye_still_gets_what_it_asked_for() {
    let (open, gate) = watch::channel(false);
    let rig = Rig::around(gated(gate));
    let server = rig.listen().await;
    let stream = TcpStream::connect(server.address()).await.expect("the server listens");
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.expect("the server speaks HTTP/2");
    let connection = tokio::spawn(connection);
    let mut asked = request("GET", "/gated");
    *asked.uri_mut() = "http://test/gated".parse().expect("a valid address");
    let answer = sender.send_request(asked);
    rig.entered(1).await;
    // With nobody left who could ask for more, hyper says GOAWAY when the last stream is done.
    drop(sender);
    open.send_replace(true);
    let answer = answer.await.expect("the stream was begun before");
    assert_eq!(read(Body::new(answer.into_body())).await, Ended::Whole(b"some text".to_vec()));
    connection.await.expect("no panic").expect("the connection ends well");
    rig.assert_ends(&[("GET /gated", Outcome::Ok, 1)]).await;
}

#[tokio::test]
async fn a_server_that_says_goodbye_while_a_client_uploads_records_the_answer() {
    let rig = Rig::around(routes());
    let client = rig.client(&Transport::Http2).await;
    let mut upload = request("POST", "/echo");
    let (go, gate) = tokio::sync::oneshot::channel::<()>();
    *upload.body_mut() = so_far(async {
        gate.await.map_err(io::Error::other)?;
        Ok(", and the rest".into())
    });
    let shut = async {
        rig.entered(1).await;
        let gone = client.shut_down();
        go.send(()).expect("the client waits");
        gone.await;
    };
    let (answer, ()) = tokio::join!(client.open(upload), shut);
    let body = answer.expect("it was begun before").into_body();
    assert_eq!(read(body).await, Ended::Whole(b"so far, and the rest".to_vec()));
    rig.assert_ends(&[("POST /echo", Outcome::Ok, 1)]).await;
}
