//! How requests end.

use std::{future::pending, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Path,
    http::{Method, Request, StatusCode},
    response::Redirect,
    routing::{any, get, post},
};
use futures_util::future::join_all;
use parallax_middleware::Outcome;
use tokio::{task::yield_now, time::sleep};

use crate::support::{
    client::Transport,
    rig::{Rig, request},
};

async fn panics() -> StatusCode {
    panic!("a handler that panics")
}

#[tokio::test]
async fn each_status_counts_as_its_outcome() {
    for over in Transport::each() {
        let rig = Rig::around(Router::new().route(
            "/status/{code}",
            get(async |Path(code): Path<u16>| {
                (StatusCode::from_u16(code).expect("in range"), "said")
            }),
        ));
        let client = rig.client(&over).await;
        for (code, outcome) in [
            (200, Outcome::Ok),
            (201, Outcome::Ok),
            (302, Outcome::Ok),
            (400, Outcome::ClientError),
            (404, Outcome::ClientError),
            (422, Outcome::ClientError),
            (429, Outcome::Limited),
            (500, Outcome::ServerError),
            (503, Outcome::ServerError),
        ] {
            let answer = client.get(&format!("/status/{code}")).await;
            assert_eq!(answer.status.as_u16(), code);
            assert_eq!(answer.record.outcome, outcome, "{code}");
            assert!(answer.record.first_byte.is_some(), "{code}");
        }
        rig.assert_ends(&[
            ("GET /status/{code}", Outcome::Ok, 3),
            ("GET /status/{code}", Outcome::ClientError, 3),
            ("GET /status/{code}", Outcome::Limited, 1),
            ("GET /status/{code}", Outcome::ServerError, 2),
        ])
        .await;
    }
}

#[tokio::test]
async fn a_redirect_is_a_success() {
    for over in Transport::each() {
        let rig =
            Rig::around(Router::new().route("/old", get(async || Redirect::permanent("/new"))));
        let client = rig.client(&over).await;
        assert_eq!(client.get("/old").await.status, StatusCode::PERMANENT_REDIRECT);
        rig.assert_ends(&[("GET /old", Outcome::Ok, 1)]).await;
    }
}

#[tokio::test]
async fn what_no_route_matches_shares_one_row_whatever_its_path_and_method() {
    for over in Transport::each() {
        let rig = Rig::around(Router::new().route("/", get(async || "home")));
        let client = rig.client(&over).await;
        for n in 0..50 {
            let method = ["GET", "POST", "BREW", "PROPFIND"][n % 4];
            let answer = client.send(request(method, &format!("/wp-admin/{n}.php"))).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND);
        }
        rig.assert_ends(&[("* (unmatched)", Outcome::ClientError, 50)]).await;
    }
}

#[tokio::test]
async fn a_wrong_method_counts_for_its_route() {
    for over in Transport::each() {
        let rig = Rig::around(Router::new().route("/items/{id}", get(async || "an item")));
        let client = rig.client(&over).await;
        let answer = client.send(request("DELETE", "/items/7")).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
        client.send(request("BREW", "/items/7")).await;
        rig.assert_ends(&[
            ("DELETE /items/{id}", Outcome::ClientError, 1),
            ("_OTHER /items/{id}", Outcome::ClientError, 1),
        ])
        .await;
    }
}

#[tokio::test]
async fn methods_have_rows_of_their_own() {
    for over in Transport::each() {
        let rig = Rig::around(Router::new().route("/x", any(async || "said")));
        let client = rig.client(&over).await;
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::OPTIONS] {
            client.send(request(method.as_str(), "/x")).await;
        }
        rig.assert_ends(&[
            ("GET /x", Outcome::Ok, 1),
            ("POST /x", Outcome::Ok, 1),
            ("PUT /x", Outcome::Ok, 1),
            ("PATCH /x", Outcome::Ok, 1),
            ("OPTIONS /x", Outcome::Ok, 1),
        ])
        .await;
    }
}

#[tokio::test]
async fn an_extractor_that_refuses_the_request_is_a_client_error() {
    for over in Transport::each() {
        let rig = Rig::around(Router::new().route(
            "/items",
            post(async |axum::Json(ids): axum::Json<Vec<u64>>| ids.len().to_string()),
        ));
        let client = rig.client(&over).await;
        let send = async |body: &str| {
            let json = Request::post("/items").header("content-type", "application/json");
            client.send(json.body(Body::from(body.to_owned())).expect("a valid request")).await
        };
        assert_eq!(send("[1,2]").await.body, "2");
        assert_eq!(send("[1,").await.status, StatusCode::BAD_REQUEST);
        assert_eq!(send("{}").await.status, StatusCode::UNPROCESSABLE_ENTITY);
        rig.assert_ends(&[
            ("POST /items", Outcome::Ok, 1),
            ("POST /items", Outcome::ClientError, 2),
        ])
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn times_are_those_of_the_request_exactly() {
    let rig = Rig::around(Router::new().route(
        "/slow",
        get(async || {
            sleep(Duration::from_millis(250)).await;
            "at last"
        }),
    ));
    let record = rig.get("/slow").await.record;
    assert_eq!(record.first_byte, Some(Duration::from_millis(250)));
    assert_eq!(record.server_time, Duration::from_millis(250));
    assert_eq!(rig.row("GET /slow").latency.max_us, Some(250_000.0));
    rig.assert_recorded(&[("GET /slow", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn requests_are_in_flight_until_they_end() {
    let rig = Rig::around(
        Router::new()
            .route("/never", get(pending::<StatusCode>))
            .route("/now", get(async || "now")),
    );
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let rig = rig.clone();
            tokio::spawn(async move { rig.open(request("GET", "/never")).await.status() })
        })
        .collect();
    while rig.perf.snapshot().entered() < 20 {
        yield_now().await;
    }
    rig.get("/now").await;
    assert_eq!((rig.row("GET /never").in_flight, rig.row("GET /now").in_flight), (20, 0));
    for task in &waiting {
        task.abort();
    }
    join_all(waiting).await;
    rig.assert_recorded(&[("GET /never", Outcome::Cancelled, 20), ("GET /now", Outcome::Ok, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_when_thousands_end_in_every_way_at_once() {
    let rig = Rig::around(
        Router::new()
            .route("/ok", get(async || "said"))
            .route("/limited", get(async || StatusCode::TOO_MANY_REQUESTS))
            .route("/broken", get(async || StatusCode::BAD_GATEWAY))
            .route("/never", get(pending::<StatusCode>))
            .route("/panics", get(panics)),
    );
    let each = 500;
    let paths = ["/ok", "/limited", "/broken", "/never", "/panics"];
    let tasks: Vec<_> = (0..each * paths.len())
        .map(|n| {
            let (rig, path) = (rig.clone(), paths[n % paths.len()]);
            tokio::spawn(async move {
                let response = rig.open(request("GET", path));
                if path == "/never" {
                    // Polled once, so that the request is under way when it is dropped.
                    tokio::select! {
                        biased;
                        response = response => drop(response),
                        () = yield_now() => {}
                    }
                } else {
                    let body = response.await.into_body();
                    axum::body::to_bytes(body, usize::MAX).await.expect("the body is whole");
                }
            })
        })
        .collect();
    let panicked = join_all(tasks).await.iter().filter(|joined| joined.is_err()).count();
    assert_eq!(panicked, each);
    let each = each as u64;
    rig.assert_recorded(&[
        ("GET /ok", Outcome::Ok, each),
        ("GET /limited", Outcome::Limited, each),
        ("GET /broken", Outcome::ServerError, each),
        ("GET /never", Outcome::Cancelled, each),
        ("GET /panics", Outcome::Panicked, each),
    ]);
}
