//! Clients that leave: before the head, half-way through the body, in the middle of their own words.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    routing::{get, post},
};
use futures_util::{
    FutureExt, StreamExt,
    future::{join, join_all, pending},
    stream,
};
use parallax_middleware::Outcome;
use tokio::{task::yield_now, time::timeout};

use crate::{
    layer::responses::{endless, routes, so_far},
    support::{
        client::{Client, Transport, read_about},
        eventually,
        rig::{Rig, request},
        wire::Ended,
    },
};

#[tokio::test(start_paused = true)]
async fn a_client_that_gives_up_counts_as_cancelled_with_the_time_until_then() {
    let rig = Rig::around(routes());
    let patience = Duration::from_millis(40);
    timeout(patience, rig.open(request("GET", "/never"))).await.expect_err("it never answers");
    let record = rig.records().pop().expect("it is over");
    assert_eq!(record.outcome, Outcome::Cancelled);
    assert_eq!((record.first_byte, record.server_time), (None, patience));
    rig.assert_recorded(&[("GET /never", Outcome::Cancelled, 1)]);
}

#[tokio::test]
async fn a_request_taken_back_before_its_head_is_cancelled_and_no_longer_in_flight() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let mut client = rig.client(&over).await;
        client.abandon(request("GET", "/never"), 1).await;
        rig.assert_ends(&[("GET /never", Outcome::Cancelled, 1)]).await;
        assert_eq!(rig.records()[0].first_byte, None);
        client = same_or_another(client, &over).await;
        assert_eq!(client.get("/text").await.body, "some text");
        rig.assert_ends(&[("GET /never", Outcome::Cancelled, 1), ("GET /text", Outcome::Ok, 1)])
            .await;
    }
}

#[tokio::test]
async fn a_connection_cut_before_the_head_cancels_its_request() {
    for over in Transport::wires() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        let cut = async {
            rig.entered(1).await;
            assert_eq!(rig.row("GET /never").in_flight, 1);
            client.cut().await;
        };
        let (response, ()) = join(client.open(request("GET", "/never")), cut).await;
        response.expect_err("the connection is gone");
        rig.assert_ends(&[("GET /never", Outcome::Cancelled, 1)]).await;
        assert_eq!(rig.records()[0].first_byte, None);
    }
}

#[tokio::test]
async fn a_body_dropped_half_way_is_cancelled_with_what_went_out() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let mut client = rig.client(&over).await;
        let mut body = client.ask("GET", "/endless").await.into_body();
        read_about(&mut body, 10_000).await;
        assert_eq!(rig.row("GET /endless").in_flight, 1);
        drop(body);
        rig.assert_ends(&[("GET /endless", Outcome::Cancelled, 1)]).await;
        assert!(rig.row("GET /endless").response_bytes >= 10_000);
        assert!(rig.records()[0].first_byte.is_some());
        client = same_or_another(client, &over).await;
        assert_eq!(client.get("/text").await.body, "some text");
    }
}

#[tokio::test]
async fn a_connection_cut_half_way_through_the_body_cancels_its_request() {
    for over in Transport::wires() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        let mut body = client.ask("GET", "/endless").await.into_body();
        read_about(&mut body, 10_000).await;
        client.cut().await;
        rig.assert_ends(&[("GET /endless", Outcome::Cancelled, 1)]).await;
        assert!(rig.row("GET /endless").response_bytes >= 10_000);
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_the_body_has_nothing_to_say_is_noticed() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        let mut body = client.ask("GET", "/stuck").await.into_body();
        read_about(&mut body, 1).await;
        drop((body, client));
        rig.assert_ends(&[("GET /stuck", Outcome::Cancelled, 1)]).await;
    }
}

#[tokio::test]
async fn a_client_that_never_reads_is_in_flight_until_it_leaves() {
    for over in Transport::wires() {
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = sent.clone();
        let counting = get(async move || {
            Body::from_stream(endless().inspect(move |_| {
                counted.fetch_add(1, Relaxed);
            }))
        });
        let rig = Rig::around(Router::new().route("/counted", counting));
        let client = rig.client(&over).await;
        let response = client.ask("GET", "/counted").await;
        // As much as a server may send over HTTP/2 before it is told to go on.
        eventually("the server has sent 64 KiB", async || (sent.load(Relaxed) >= 64).then_some(()))
            .await;
        assert_eq!(rig.row("GET /counted").in_flight, 1);
        drop(response);
        rig.assert_ends(&[("GET /counted", Outcome::Cancelled, 1)]).await;
        assert_eq!(rig.row("GET /counted").response_bytes, 1024 * sent.load(Relaxed) as u64);
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_its_own_request_is_recorded_once() {
    for over in Transport::wires() {
        let rig = Rig::around(routes().route("/reading", post(async |_: Bytes| "read")));
        let client = rig.client(&over).await;
        let mut upload = request("POST", "/reading");
        *upload.body_mut() = so_far(pending());
        let cut = async {
            rig.entered(1).await;
            client.cut().await;
        };
        let (response, ()) = join(client.open(upload), cut).await;
        response.expect_err("the connection is gone");
        rig.recorded(1).await;
        // The handler's extractor may be told before the handler is dropped, or not any more.
        let outcome = rig.records()[0].outcome;
        assert!(matches!(outcome, Outcome::Cancelled | Outcome::ClientError), "{outcome:?}");
        rig.assert_ends(&[("POST /reading", outcome, 1)]).await;
    }
}

#[tokio::test]
async fn a_client_whose_own_body_breaks_off_is_recorded_once_if_at_all() {
    for over in Transport::wires() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        let mut upload = request("POST", "/echo");
        *upload.body_mut() = so_far(async { Err(io::Error::other("the file is gone")) });
        client.open(upload).await.expect_err("hyper does not send half a request");
        let gone = client.shut_down();
        drop(client);
        gone.await;
        rig.settled().await;
        // A request that breaks off before its head has left the client is none.
        let snapshot = rig.perf.snapshot();
        assert!(snapshot.recorded() <= 1);
        assert_eq!(snapshot.outcome(Outcome::Ok), 0);
    }
}

#[tokio::test]
async fn a_connection_cut_after_the_last_byte_takes_nothing_back() {
    for over in Transport::wires() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        assert_eq!(client.get("/stream").await.body.len(), 100 * 1024);
        client.cut().await;
        let client = client.another().await;
        assert_eq!(client.get("/text").await.body, "some text");
        rig.assert_ends(&[("GET /stream", Outcome::Ok, 1), ("GET /text", Outcome::Ok, 1)]).await;
    }
}

#[tokio::test]
async fn a_server_that_shuts_down_answers_what_it_has_begun() {
    for over in Transport::wires() {
        let (go, gate) = tokio::sync::watch::channel(false);
        let slow = get(async move || {
            gate.clone().wait_for(|open| *open).await.expect("the test holds the other end");
            Body::from_stream(stream::iter(["slow, ", "but whole"].map(Ok::<_, io::Error>)))
        });
        let rig = Rig::around(routes().route("/slow", slow));
        let client = rig.client(&over).await;
        let asked = client.fetch("/slow");
        let shut = async {
            rig.entered(1).await;
            let gone = client.shut_down();
            go.send(true).expect("the handler waits");
            gone.await;
        };
        let (answer, ()) = join(asked, shut).await;
        assert_eq!(answer, (200, Ended::Whole(b"slow, but whole".to_vec())));
        rig.assert_recorded(&[("GET /slow", Outcome::Ok, 1)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_that_leave_and_many_that_stay_are_all_accounted_for() {
    for over in Transport::wires() {
        let rig = Rig::around(routes());
        let first = rig.client(&over).await;
        let each = 50_u64;
        // All have arrived before the first of them leaves.
        let all_wait = eventually("all wait", async || {
            let rows = rig.perf.snapshot().view().routes;
            let row = rows.iter().find(|row| row.route == "/never")?;
            (row.requests + row.in_flight == each).then_some(())
        })
        .shared();
        let clients = (0..3 * each).map(|n| {
            let (first, all_wait) = (&first, all_wait.clone());
            async move {
                let client = first.another().await;
                match n % 3 {
                    0 => assert_eq!(client.fetch("/text").await.0, 200),
                    1 => {
                        let never = client.open(request("GET", "/never"));
                        tokio::select! {
                            response = never => panic!("it is answered: {response:?}"),
                            () = all_wait => {}
                        }
                    }
                    _ => {
                        let mut body = client.ask("GET", "/endless").await.into_body();
                        read_about(&mut body, 5_000).await;
                    }
                }
            }
        });
        join_all(clients).await;
        rig.assert_ends(&[
            ("GET /text", Outcome::Ok, each),
            ("GET /never", Outcome::Cancelled, each),
            ("GET /endless", Outcome::Cancelled, each),
        ])
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_at_any_moment_leave_nothing_behind() {
    for over in Transport::wires() {
        let rig = Rig::around(routes());
        let first = rig.client(&over).await;
        let clients = (0..60).map(|n| {
            let first = &first;
            async move {
                let client = first.another().await;
                let path = ["/text", "/stream", "/never"][n % 3];
                let cut = async {
                    // From before the request has left the client to after its answer.
                    for _ in 0..n {
                        yield_now().await;
                    }
                    client.cut().await;
                };
                let _answered_or_not = join(client.open(request("GET", path)), cut).await;
            }
        });
        join_all(clients).await;
        // When the server has ended all its connections, no request can follow.
        let gone = first.shut_down();
        drop(first);
        gone.await;
        rig.settled().await;
        rig.assert_ok_or_cancelled();
    }
}

/// A client for what comes after a request that was taken back.
async fn same_or_another(client: Client, over: &Transport) -> Client {
    match over {
        Transport::Http1 => {
            eventually("the connection is closed", async || client.is_closed().await.then_some(()))
                .await;
            client.another().await
        }
        Transport::InProcess | Transport::Http2 => client,
    }
}
