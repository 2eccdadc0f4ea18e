//! Names of routes: always the template, never the path.

use axum::{Router, http::StatusCode, routing::get};
use http_body_util::BodyExt;
use parallax_middleware::{Outcome, Perf};
use tower::{ServiceBuilder, ServiceExt};

use crate::support::rig::{Rig, request};

fn items() -> Router {
    Router::new().route("/items/{id}", get(async || "an item"))
}

#[tokio::test]
async fn paths_of_one_template_share_a_row() {
    let rig = Rig::around(items());
    for n in 0..100 {
        rig.get(&format!("/items/{n}?page={n}")).await;
    }
    rig.assert_recorded(&[("GET /items/{id}", Outcome::Ok, 100)]);
}

#[tokio::test]
async fn a_nested_router_keeps_its_full_template() {
    let rig = Rig::around(Router::new().nest("/v1/{tenant}", Router::new().nest("/shop", items())));
    rig.get("/v1/acme/shop/items/7").await;
    rig.get("/v1/acme/shop/nothing").await;
    rig.assert_recorded(&[
        ("GET /v1/{tenant}/shop/items/{id}", Outcome::Ok, 1),
        ("* (unmatched)", Outcome::ClientError, 1),
    ]);
}

#[tokio::test]
async fn a_layer_inside_a_nested_router_knows_the_full_template_too() {
    let perf = Perf::new();
    let rig = Rig::new(&perf, Router::new().nest("/v1", items().layer(perf.layer())));
    rig.get("/v1/items/7").await;
    rig.assert_recorded(&[("GET /v1/items/{id}", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn a_nested_service_hides_its_routes_from_a_layer_outside() {
    let rig = Rig::around(Router::new().nest_service("/v1", items()));
    assert_eq!(rig.get("/v1/items/7").await.status, StatusCode::OK);
    rig.assert_recorded(&[("* (unmatched)", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn merged_routers_are_recorded_if_they_were_merged_before_the_layer() {
    let perf = Perf::new();
    let app = Router::new()
        .route("/one", get(async || "one"))
        .merge(Router::new().route("/two", get(async || "two")))
        .layer(perf.layer())
        .merge(Router::new().route("/three", get(async || "three")));
    for path in ["/one", "/two", "/three"] {
        let response = app.clone().oneshot(request("GET", path)).await.expect("infallible");
        let body = axum::body::to_bytes(response.into_body(), 100).await.expect("short and whole");
        assert_eq!(&body[..], &path.as_bytes()[1..]);
    }
    Rig::new(&perf, app)
        .assert_recorded(&[("GET /one", Outcome::Ok, 1), ("GET /two", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn what_no_route_matches_is_counted_once_wherever_the_endpoint_is_merged() {
    type Build = fn(&Perf) -> Router;
    let after: Build = |perf| items().layer(perf.layer()).merge(perf.routes());
    let before: Build = |perf| items().merge(perf.routes()).layer(perf.layer());
    let first: Build = |perf| perf.routes().merge(items().layer(perf.layer()));
    let nested: Build =
        |perf| Router::new().nest("/v1", items().merge(perf.routes())).layer(perf.layer());
    for build in [after, before, first, nested] {
        let perf = Perf::new();
        let rig = Rig::new(&perf, build(&perf));
        for path in ["/nowhere", "/v1/nowhere"] {
            assert_eq!(rig.get(path).await.status, StatusCode::NOT_FOUND);
        }
        rig.assert_recorded(&[("* (unmatched)", Outcome::ClientError, 2)]);
    }
}

#[tokio::test]
async fn two_handles_each_count_what_no_route_matches() {
    let (inner, outer) = (Perf::new(), Perf::new());
    let rig = Rig::new(&outer, items().layer(inner.layer()).layer(outer.layer()));
    rig.get("/nowhere").await;
    rig.assert_recorded(&[("* (unmatched)", Outcome::ClientError, 1)]);
    assert_eq!(inner.snapshot().outcome(Outcome::ClientError), 1);
}

#[tokio::test]
async fn a_fallback_shares_the_row_of_what_no_route_matched() {
    let rig = Rig::around(items().fallback(async || (StatusCode::OK, "a page for everything")));
    for n in 0..10 {
        rig.get(&format!("/pages/{n}")).await;
    }
    rig.assert_recorded(&[("* (unmatched)", Outcome::Ok, 10)]);
}

#[tokio::test]
async fn a_route_layer_sees_matched_requests_alone() {
    let perf = Perf::new();
    let rig = Rig::new(&perf, items().route_layer(perf.layer()));
    rig.get("/items/7").await;
    let response = rig.open(request("GET", "/nothing")).await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    rig.assert_recorded(&[("GET /items/{id}", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn a_layer_on_one_route_sees_that_route_alone() {
    let perf = Perf::new();
    let app = Router::new()
        .route("/seen", get(async || "seen").layer(perf.layer()))
        .route("/unseen", get(async || "unseen"));
    let rig = Rig::new(&perf, app);
    rig.get("/seen").await;
    assert_eq!(rig.open(request("GET", "/unseen")).await.status(), StatusCode::OK);
    rig.assert_recorded(&[("GET /seen", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn two_layers_both_count_and_the_outer_one_answers_the_probe() {
    let (inner, outer) = (Perf::new(), Perf::new());
    let rig = Rig::new(&outer, items().layer(inner.layer()).layer(outer.layer()));
    rig.get("/items/7").await;
    rig.assert_recorded(&[("GET /items/{id}", Outcome::Ok, 1)]);
    let inside = inner.snapshot();
    assert_eq!((inside.recorded(), inside.outcome(Outcome::Ok), inside.paired()), (1, 1, 0));
}

#[tokio::test]
async fn clones_of_the_layer_share_their_counters() {
    let perf = Perf::new();
    let layer = perf.layer();
    let app = items().layer(layer.clone());
    let other = Router::new().route("/other", get(async || "other")).layer(layer);
    let rig = Rig::new(&perf, app.merge(other));
    rig.get("/items/7").await;
    rig.get("/other").await;
    rig.assert_recorded(&[("GET /items/{id}", Outcome::Ok, 1), ("GET /other", Outcome::Ok, 1)]);
}

#[tokio::test]
async fn the_layer_fits_around_a_service_that_is_no_router() {
    let perf = Perf::new();
    let service = ServiceBuilder::new().layer(perf.layer()).service(items());
    let response = service.oneshot(request("GET", "/items/7")).await.expect("infallible");
    response.into_body().collect().await.expect("the body is whole");
    let row = &perf.snapshot().view().routes[0];
    // Outside of the router nobody knows yet which route will match.
    assert_eq!((row.route.as_str(), row.outcomes.ok, row.response_bytes), ("(unmatched)", 1, 7));
}
