//! Names of routes: always the template, never the path.

use axum::{
    Router,
    http::StatusCode,
    routing::{any, get},
};
use parallax_middleware::{Outcome, Perf};
use tower::ServiceBuilder;

use crate::support::{
    client::Transport,
    rig::{Rig, request},
    wire::Ended,
};

fn items() -> Router {
    Router::new().route("/items/{id}", get(async || "an item"))
}

#[tokio::test]
async fn paths_of_one_template_share_a_row() {
    for over in Transport::each() {
        let rig = Rig::around(items());
        let client = rig.client(&over).await;
        for n in 0..100 {
            client.get(&format!("/items/{n}?page={n}")).await;
        }
        rig.assert_ends(&[("GET /items/{id}", Outcome::Ok, 100)]).await;
    }
}

#[tokio::test]
async fn a_nested_router_keeps_its_full_template() {
    for over in Transport::each() {
        let rig =
            Rig::around(Router::new().nest("/v1/{tenant}", Router::new().nest("/shop", items())));
        let client = rig.client(&over).await;
        client.get("/v1/acme/shop/items/7").await;
        client.get("/v1/acme/shop/nothing").await;
        rig.assert_ends(&[
            ("GET /v1/{tenant}/shop/items/{id}", Outcome::Ok, 1),
            ("* (unmatched)", Outcome::ClientError, 1),
        ])
        .await;
    }
}

#[tokio::test]
async fn a_layer_inside_a_nested_router_knows_the_full_template_too() {
    for over in Transport::each() {
        let perf = Perf::new();
        let rig = Rig::new(&perf, Router::new().nest("/v1", items().layer(perf.layer())));
        let client = rig.client(&over).await;
        client.get("/v1/items/7").await;
        rig.assert_ends(&[("GET /v1/items/{id}", Outcome::Ok, 1)]).await;
    }
}

#[tokio::test]
async fn a_nested_service_hides_its_routes_from_a_layer_outside() {
    for over in Transport::each() {
        let rig = Rig::around(Router::new().nest_service("/v1", items()));
        let client = rig.client(&over).await;
        assert_eq!(client.get("/v1/items/7").await.status, StatusCode::OK);
        rig.assert_ends(&[("* (unmatched)", Outcome::Ok, 1)]).await;
    }
}

#[tokio::test]
async fn a_nested_router_answers_wrong_methods_under_its_full_template() {
    for over in Transport::each() {
        let nested = items().method_not_allowed_fallback(async || (StatusCode::GONE, "no"));
        let rig = Rig::around(Router::new().nest("/v1", nested).nest("/v2", items()));
        let client = rig.client(&over).await;
        for (path, status) in [("/v1/items/7", 410), ("/v2/items/7", 405)] {
            assert_eq!(client.send(request("PUT", path)).await.status.as_u16(), status);
        }
        rig.assert_ends(&[
            ("PUT /v1/items/{id}", Outcome::ClientError, 1),
            ("PUT /v2/items/{id}", Outcome::ClientError, 1),
        ])
        .await;
    }
}

#[tokio::test]
async fn a_fallback_of_a_nested_router_shares_the_row_of_what_no_route_matched() {
    for over in Transport::each() {
        let nested = items().fallback(async || (StatusCode::IM_A_TEAPOT, "not here"));
        let rig = Rig::around(Router::new().nest("/v1", nested).fallback(async || "a page"));
        let client = rig.client(&over).await;
        assert_eq!(client.get("/v1/nowhere").await.status, StatusCode::IM_A_TEAPOT);
        assert_eq!(client.get("/nowhere").await.status, StatusCode::OK);
        rig.assert_ends(&[
            ("* (unmatched)", Outcome::ClientError, 1),
            ("* (unmatched)", Outcome::Ok, 1),
        ])
        .await;
    }
}

#[tokio::test]
async fn a_wildcard_is_one_route_whatever_it_stands_for() {
    for over in Transport::each() {
        let rig = Rig::around(Router::new().route("/files/{*path}", any(async || "a file")));
        let client = rig.client(&over).await;
        for path in ["/files/a", "/files/a/b/c", "/files/%C3%A9?x=%2F"] {
            client.get(path).await;
        }
        rig.assert_ends(&[("GET /files/{*path}", Outcome::Ok, 3)]).await;
    }
}

#[tokio::test]
async fn a_layer_inside_a_nested_service_knows_the_part_of_the_template_that_it_can_see() {
    for over in Transport::each() {
        let perf = Perf::new();
        let nested = items().layer(perf.layer());
        let rig = Rig::new(&perf, Router::new().nest_service("/v1", nested));
        let client = rig.client(&over).await;
        client.get("/v1/items/7").await;
        rig.assert_ends(&[("GET /v1/items/{id}", Outcome::Ok, 1)]).await;
    }
}

#[tokio::test]
async fn merged_routers_are_recorded_if_they_were_merged_before_the_layer() {
    for over in Transport::each() {
        let perf = Perf::new();
        let app = Router::new()
            .route("/one", get(async || "one"))
            .merge(Router::new().route("/two", get(async || "two")))
            .layer(perf.layer())
            .merge(Router::new().route("/three", get(async || "three")));
        let rig = Rig::new(&perf, app);
        let client = rig.client(&over).await;
        for path in ["/one", "/two", "/three"] {
            let body = Ended::Whole(path.as_bytes()[1..].to_vec());
            assert_eq!(client.fetch(path).await, (200, body));
        }
        rig.assert_ends(&[("GET /one", Outcome::Ok, 1), ("GET /two", Outcome::Ok, 1)]).await;
    }
}

#[tokio::test]
async fn what_no_route_matches_is_counted_once_wherever_the_endpoint_is_merged() {
    type Build = fn(&Perf) -> Router;
    for over in Transport::each() {
        let after: Build = |perf| items().layer(perf.layer()).merge(perf.routes());
        let before: Build = |perf| items().merge(perf.routes()).layer(perf.layer());
        let first: Build = |perf| perf.routes().merge(items().layer(perf.layer()));
        let nested: Build =
            |perf| Router::new().nest("/v1", items().merge(perf.routes())).layer(perf.layer());
        for build in [after, before, first, nested] {
            let perf = Perf::new();
            let rig = Rig::new(&perf, build(&perf));
            let client = rig.client(&over).await;
            for path in ["/nowhere", "/v1/nowhere"] {
                assert_eq!(client.get(path).await.status, StatusCode::NOT_FOUND);
            }
            rig.assert_ends(&[("* (unmatched)", Outcome::ClientError, 2)]).await;
        }
    }
}

#[tokio::test]
async fn two_handles_each_count_what_no_route_matches() {
    for over in Transport::each() {
        let (inner, outer) = (Perf::new(), Perf::new());
        let rig = Rig::new(&outer, items().layer(inner.layer()).layer(outer.layer()));
        let client = rig.client(&over).await;
        client.get("/nowhere").await;
        rig.assert_ends(&[("* (unmatched)", Outcome::ClientError, 1)]).await;
        assert_eq!(inner.snapshot().outcome(Outcome::ClientError), 1);
    }
}

#[tokio::test]
async fn a_fallback_shares_the_row_of_what_no_route_matched() {
    for over in Transport::each() {
        let rig = Rig::around(items().fallback(async || (StatusCode::OK, "a page for everything")));
        let client = rig.client(&over).await;
        for n in 0..10 {
            client.get(&format!("/pages/{n}")).await;
        }
        rig.assert_ends(&[("* (unmatched)", Outcome::Ok, 10)]).await;
    }
}

#[tokio::test]
async fn a_route_layer_sees_matched_requests_alone() {
    for over in Transport::each() {
        let perf = Perf::new();
        let rig = Rig::new(&perf, items().route_layer(perf.layer()));
        let client = rig.client(&over).await;
        client.get("/items/7").await;
        assert_eq!(client.fetch("/nothing").await.0, 404);
        // The route matched, if not the method.
        assert_eq!(client.send(request("DELETE", "/items/7")).await.status.as_u16(), 405);
        rig.assert_ends(&[
            ("GET /items/{id}", Outcome::Ok, 1),
            ("DELETE /items/{id}", Outcome::ClientError, 1),
        ])
        .await;
    }
}

#[tokio::test]
async fn a_layer_on_one_route_sees_that_route_alone() {
    for over in Transport::each() {
        let perf = Perf::new();
        let app = Router::new()
            .route("/seen", get(async || "seen").layer(perf.layer()))
            .route("/unseen", get(async || "unseen"));
        let rig = Rig::new(&perf, app);
        let client = rig.client(&over).await;
        client.get("/seen").await;
        assert_eq!(client.fetch("/unseen").await, (200, Ended::Whole(b"unseen".to_vec())));
        rig.assert_ends(&[("GET /seen", Outcome::Ok, 1)]).await;
    }
}

#[tokio::test]
async fn two_layers_both_count_and_the_outer_one_answers_the_probe() {
    for over in Transport::each() {
        let (inner, outer) = (Perf::new(), Perf::new());
        let rig = Rig::new(&outer, items().layer(inner.layer()).layer(outer.layer()));
        let client = rig.client(&over).await;
        client.get("/items/7").await;
        rig.assert_ends(&[("GET /items/{id}", Outcome::Ok, 1)]).await;
        let inside = inner.snapshot();
        assert_eq!((inside.recorded(), inside.outcome(Outcome::Ok), inside.paired()), (1, 1, 0));
    }
}

#[tokio::test]
async fn clones_of_the_layer_share_their_counters() {
    for over in Transport::each() {
        let perf = Perf::new();
        let layer = perf.layer();
        let app = items().layer(layer.clone());
        let other = Router::new().route("/other", get(async || "other")).layer(layer);
        let rig = Rig::new(&perf, app.merge(other));
        let client = rig.client(&over).await;
        client.get("/items/7").await;
        client.get("/other").await;
        rig.assert_ends(&[("GET /items/{id}", Outcome::Ok, 1), ("GET /other", Outcome::Ok, 1)])
            .await;
    }
}

#[tokio::test]
async fn the_layer_fits_around_a_service_that_is_no_router() {
    for over in Transport::each() {
        let perf = Perf::new();
        let service = ServiceBuilder::new().layer(perf.layer()).service(items());
        let rig = Rig::of_service(&perf, service);
        let client = rig.client(&over).await;
        assert_eq!(client.get("/items/7").await.body, "an item");
        // Outside of the router nobody knows yet which route will match.
        assert_eq!(rig.row("* (unmatched)").response_bytes, 7);
        rig.assert_ends(&[("* (unmatched)", Outcome::Ok, 1)]).await;
    }
}
