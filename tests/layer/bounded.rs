//! Memory: what strangers send takes none, and a service with many routes takes only so much.

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
    routing::get,
};
use futures_util::FutureExt;
use parallax_middleware::{Outcome, Perf, Precision};
use tower::{Service, ServiceExt};

use crate::support::rig::{Rig, request};

/// How many different paths and methods are sent.
const DISTINCT: u64 = 200_000;

#[tokio::test]
async fn paths_and_methods_that_nobody_knows_add_nothing_however_many_there_are() {
    let perf = Perf::new();
    let routes = Router::new().route("/items/{id}", get(async || "an item"));
    let mut service = routes.layer(perf.layer()).into_service::<Body>();
    let mut send = |method: String, path: String| {
        let method = Method::from_bytes(method.as_bytes()).expect("a token");
        let request = Request::builder().method(method).uri(path).body(Body::empty());
        let called = service.ready().now_or_never().expect("routers are always ready");
        let answer = called.expect("infallible").call(request.expect("a valid request"));
        answer.now_or_never().expect("nothing waits").expect("infallible").status()
    };
    let rows = || {
        let routes = perf.snapshot().view().routes;
        routes.into_iter().map(|row| format!("{} {}", row.method, row.route)).collect::<Vec<_>>()
    };
    let mut after = Vec::new();
    for n in 0..DISTINCT {
        let unmatched = send(format!("M{n}"), format!("/wp-admin/{n}.php?page={n}"));
        assert_eq!(unmatched, StatusCode::NOT_FOUND);
        let wrong_method = send(format!("M{n}"), format!("/items/{n}"));
        assert_eq!(wrong_method, StatusCode::METHOD_NOT_ALLOWED);
        if n == 0 {
            after = rows();
        }
    }
    assert_eq!(after, ["* (unmatched)", "_OTHER /items/{id}"]);
    assert_eq!(rows(), after);
    let snapshot = perf.snapshot();
    assert_eq!(snapshot.entered(), 2 * DISTINCT);
    assert_eq!(snapshot.outcome(Outcome::ClientError), 2 * DISTINCT);
}

#[tokio::test]
async fn the_cap_on_routes_is_the_services_to_set() {
    let perf = Perf::builder().route_cap(2).precision(Precision::OneDigit).build();
    let routes = Router::new().route("/a", get(async || "")).route("/b", get(async || ""));
    let rig = Rig::new(&perf, routes.route("/c", get(async || "")).layer(perf.layer()));
    for path in ["/a", "/b", "/c"] {
        rig.get(path).await;
    }
    rig.assert_recorded(&[
        ("GET /a", Outcome::Ok, 1),
        ("GET /b", Outcome::Ok, 1),
        ("* (other)", Outcome::Ok, 1),
    ]);
    let snapshot = perf.snapshot();
    let counts = snapshot.route("GET", "/a").expect("it has been asked for");
    assert_eq!(counts.users.ok.precision(), Precision::OneDigit);
}

#[tokio::test]
async fn a_client_that_tries_all_methods_everywhere_takes_no_row_from_a_route() {
    const ROUTES: usize = 60;
    let routes = (0..ROUTES).fold(Router::new(), |routes, n| {
        routes.route(&format!("/route-{n}/{{id}}"), get(async || "an item"))
    });
    let perf = Perf::builder().route_cap(ROUTES).build();
    let rig = Rig::new(&perf, routes.layer(perf.layer()));
    let methods = ["BREW", "CONNECT", "DELETE", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];
    for n in 0..ROUTES {
        for method in methods {
            rig.send(request(method, &format!("/route-{n}/7"))).await;
        }
    }
    for n in 0..ROUTES {
        rig.get(&format!("/route-{n}/7")).await;
        assert_eq!(rig.row(&format!("GET /route-{n}/{{id}}")).outcomes.ok, 1);
    }
    assert_eq!(rig.perf.snapshot().view().routes.len(), 10 * ROUTES);
}

#[tokio::test]
async fn past_512_routes_those_that_come_later_share_a_row() {
    const ROUTES: usize = 600;
    let routes = (0..ROUTES).fold(Router::new(), |routes, n| {
        routes.route(&format!("/route-{n}/{{id}}"), get(async || "an item"))
    });
    let rig = Rig::around(routes);
    // Twice: a route that came too late stays too late, one that came in time stays in time.
    for n in (0..ROUTES).chain(0..ROUTES) {
        assert_eq!(rig.get(&format!("/route-{n}/7")).await.status, StatusCode::OK);
    }
    rig.get("/nowhere").await;
    let rows = rig.perf.snapshot().view().routes;
    assert_eq!(rows.len(), 512 + 2);
    assert_eq!(rig.row("* (other)").outcomes.ok, 2 * (ROUTES as u64 - 512));
    assert_eq!(rig.row("* (unmatched)").outcomes.client_error, 1);
    let own = rows.iter().filter(|row| row.method == "GET" && row.outcomes.ok == 2);
    assert_eq!(own.count(), 512);
}
