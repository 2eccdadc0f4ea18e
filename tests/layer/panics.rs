//! Panics: of handlers and of bodies, caught inside the layer, outside of it, and not at all.

use axum::{Router, http::StatusCode};
use parallax_middleware::{Outcome, Perf};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    layer::responses::{SO_FAR, routes},
    support::{
        client::{Client, Transport, read},
        rig::{Rig, request},
        wire::Ended,
    },
};

/// A client that still gets answers after a panic on `client`'s connection.
async fn survivor(client: Client, over: &Transport) -> Client {
    match over {
        // A panic ends the task that answers it: over HTTP/1.1 that is the connection's.
        Transport::Http1 => client.another().await,
        // Over HTTP/2 it is the stream's.
        Transport::InProcess | Transport::Http2 => client,
    }
}

#[tokio::test]
async fn a_panic_that_nothing_catches_counts_as_panicked_and_harms_nobody_else() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let mut client = rig.client(&over).await;
        for _ in 0..3 {
            client.open(request("GET", "/panics")).await.expect_err("nobody is left to answer");
            client = survivor(client, &over).await;
            assert_eq!(client.fetch("/text").await, (200, Ended::Whole(b"some text".to_vec())));
        }
        rig.assert_ends(&[("GET /panics", Outcome::Panicked, 3), ("GET /text", Outcome::Ok, 3)])
            .await;
        let mut panicked = rig.records();
        panicked.retain(|record| record.outcome == Outcome::Panicked);
        assert!(panicked.iter().all(|record| record.first_byte.is_none()), "{panicked:?}");
    }
}

#[tokio::test]
async fn a_panic_caught_outside_the_layer_still_counts_as_panicked() {
    for over in Transport::each() {
        let perf = Perf::new();
        let rig = Rig::new(&perf, routes().layer(perf.layer()).layer(CatchPanicLayer::new()));
        let client = rig.client(&over).await;
        let answer = client.get("/panics").await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!((answer.record.outcome, answer.record.first_byte), (Outcome::Panicked, None));
        assert_eq!(client.get("/text").await.status, StatusCode::OK);
        rig.assert_ends(&[("GET /panics", Outcome::Panicked, 1), ("GET /text", Outcome::Ok, 1)])
            .await;
    }
}

#[tokio::test]
async fn a_panic_caught_inside_the_layer_is_the_error_that_the_client_gets() {
    for over in Transport::each() {
        let rig = Rig::around(routes().layer(CatchPanicLayer::new()));
        let client = rig.client(&over).await;
        let answer = client.get("/panics").await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(answer.record.outcome, Outcome::ServerError);
        assert_eq!(client.get("/text").await.status, StatusCode::OK);
        rig.assert_ends(&[("GET /panics", Outcome::ServerError, 1), ("GET /text", Outcome::Ok, 1)])
            .await;
    }
}

#[tokio::test]
async fn a_body_that_panics_when_it_is_asked_counts_as_panicked() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        client.open(request("GET", "/panics/asked")).await.expect_err("nobody is left to answer");
        rig.assert_ends(&[("GET /panics/asked", Outcome::Panicked, 1)]).await;
    }
}

#[tokio::test]
async fn a_body_that_panics_counts_as_panicked_though_its_head_said_200() {
    // Whoever catches the panics of handlers does not catch those of bodies.
    type Build = fn(&Perf) -> Router;
    let inside: Build = |perf| routes().layer(CatchPanicLayer::new()).layer(perf.layer());
    let outside: Build = |perf| routes().layer(perf.layer()).layer(CatchPanicLayer::new());
    for over in Transport::each() {
        for build in [inside, outside] {
            let perf = Perf::new();
            let rig = Rig::new(&perf, build(&perf));
            let client = rig.client(&over).await;
            // What came before the panic may or may not have left the server.
            if let Ok(response) = client.open(request("GET", "/panics/later")).await {
                assert_eq!(response.status(), StatusCode::OK);
                let Ended::BrokeOff(body) = read(response.into_body()).await else {
                    panic!("it breaks off");
                };
                assert!(SO_FAR.as_bytes().starts_with(&body), "{body:?}");
            }
            rig.assert_ends(&[("GET /panics/later", Outcome::Panicked, 1)]).await;
            assert!(rig.records()[0].first_byte.is_some());
            assert_eq!(rig.row("GET /panics/later").response_bytes, SO_FAR.len() as u64);
            let client = survivor(client, &over).await;
            assert_eq!(client.get("/text").await.status, StatusCode::OK);
        }
    }
}
