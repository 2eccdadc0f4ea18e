//! Starting, stopping, and storages that do not answer.

use std::{
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use axum::http::StatusCode;
use example_service::{Service, StartError};
use serde_json::json;

use super::api::{KEY, Storage, ids, request};
use crate::support::{eventually, server::free_port};

pub(super) async fn what_was_acknowledged_survives_a_restart(storage: Storage) {
    let api = storage.start().await;
    api.store("/entities", &json!([{"id": 1, "title": "Green tea"}])).await;
    api.store("/interactions", &json!([{"user_id": 1, "entity_id": 1, "kind": "like"}])).await;
    api.service.shutdown().await;
    let api = storage.start().await;
    assert_eq!(api.read("/entities/1").await["title"], "Green tea");
    assert_eq!(ids(&api.read("/search?q=green").await), [1]);
    // The model is made again from what is stored.
    api.knows(1, 1).await;
    assert_eq!(ids(&api.read("/trending").await), [1]);
}

pub(super) async fn after_the_shutdown_it_is_unavailable(storage: Storage) {
    let api = storage.start().await;
    let write = || json!([{"id": 1, "title": "Green tea"}]);
    api.store("/entities", &write()).await;
    let router = api.service.router();
    api.service.shutdown().await;
    for late in [
        request("GET", "/entities/2", KEY),
        request("GET", "/search?q=green", KEY),
        super::api::json_request("/entities", write().to_string()),
    ] {
        let path = late.uri().clone();
        let response = tower::ServiceExt::oneshot(router.clone(), late).await.expect("infallible");
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
    }
}

pub(super) async fn its_own_layer_sees_every_route(storage: Storage) {
    let api = storage.start().await;
    api.store("/entities", &json!([{"id": 1, "title": "Green tea"}])).await;
    api.store("/interactions", &json!([{"user_id": 1, "entity_id": 1, "kind": "view"}])).await;
    for path in ["/entities/1", "/recommendations/1", "/similar/1", "/trending", "/search?q=tea"] {
        api.read(path).await;
    }
    api.get("/nowhere").await.problem(404);
    api.send(request("GET", "/trending", "not-a-key")).await.problem(401);
    let perf = api.read("/perf").await;
    assert_eq!(perf["schema"], "parallax.perf/1");
    let rows = perf["routes"].as_array().expect("an array");
    let row = |method: &str, route: &str| {
        rows.iter()
            .find(|row| row["method"] == method && row["route"] == route)
            .unwrap_or_else(|| panic!("no row {method} {route} in {perf}"))
    };
    for (method, route) in [
        ("POST", "/entities"),
        ("POST", "/interactions"),
        ("GET", "/entities/{id}"),
        ("GET", "/recommendations/{user_id}"),
        ("GET", "/similar/{id}"),
        ("GET", "/trending"),
        ("GET", "/search"),
    ] {
        assert_eq!(row(method, route)["outcomes"]["ok"], 1, "{method} {route}");
        assert_eq!(row(method, route)["in_flight"], 0, "{method} {route}");
    }
    assert_eq!(row("GET", "/trending")["outcomes"]["client_error"], 1);
    assert_eq!(row("*", "(unmatched)")["outcomes"]["client_error"], 1);
    assert!(rows.iter().all(|row| row["route"] != "/perf"), "{perf}");
}

/// Starts a service that must not come up, and returns why. The deadline is the one that is promised.
async fn refused(config: example_service::ConfigBuilder) -> StartError {
    let config = config.build().expect("the settings are valid");
    match tokio::time::timeout(Duration::from_secs(10), Service::start(config)).await {
        Ok(Err(error)) => error,
        Ok(Ok(_)) => panic!("it started on nothing"),
        Err(_) => panic!("it did not give up within 10 s"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_where_nobody_listens_is_named_within_10_seconds() {
    let url = format!("postgres://ann:hidden@127.0.0.1:{}/shop", free_port());
    let error = refused(Storage::sqlite().config().database_url(url)).await;
    let said = error.to_string();
    assert!(matches!(error, StartError::Database { .. }), "{error:?}");
    assert!(said.contains("127.0.0.1") && said.contains("DATABASE_URL"), "{said}");
    assert!(!format!("{said} {error:?}").contains("hidden"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_takes_connections_and_says_nothing_is_named_within_10_seconds() {
    // The kernel takes connections for it; nobody ever answers them.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let port = silent.local_addr().expect("it is bound").port();
    let url = format!("postgres://ann:hidden@127.0.0.1:{port}/shop");
    let error = refused(Storage::sqlite().config().database_url(url)).await;
    assert!(matches!(error, StartError::Database { .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("hidden"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_file_that_cannot_be_made_is_named() {
    let url = "sqlite:///no-such-folder/test.db?mode=rwc";
    let error = refused(Storage::sqlite().config().database_url(url)).await;
    assert!(error.to_string().contains("/no-such-folder/test.db"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_where_nobody_listens_is_named_within_10_seconds() {
    let storage = Storage::sqlite();
    let url = format!("redis://:hidden@127.0.0.1:{}", free_port());
    let error = refused(storage.config().redis_url(Some(url))).await;
    let said = error.to_string();
    assert!(matches!(error, StartError::Redis { .. }), "{error:?}");
    assert!(said.contains("127.0.0.1") && said.contains("REDIS_URL"), "{said}");
    assert!(!format!("{said} {error:?}").contains("hidden"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_kept_in_redis_and_its_end_costs_none() {
    let mut storage = Storage::postgres_and_redis();
    let api = storage.start().await;
    api.store("/entities", &json!([{"id": 1, "title": "Green tea"}])).await;
    assert_eq!(api.read("/entities/1").await["title"], "Green tea");
    let redis = storage.redis.take().expect("it was started");
    let keys = redis.ask("DBSIZE").expect("it answers");
    assert!(keys.starts_with(':') && !keys.starts_with(":0"), "{keys:?}");
    drop(redis);
    for _ in 0..3 {
        assert_eq!(api.read("/entities/1").await["title"], "Green tea");
    }
    api.store("/entities", &json!([{"id": 1, "title": "White tea"}])).await;
    assert_eq!(api.read("/entities/1").await["title"], "White tea");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_either_cache_had_is_counted_and_its_time_is_told_by_route() {
    for (storage, pools) in [(Storage::sqlite(), 0), (Storage::postgres_and_redis(), 1)] {
        let api = storage.start().await;
        api.store("/entities", &json!([{"id": 1, "title": "Green tea"}])).await;
        let cache = eventually("an answer comes from the cache", async || {
            api.read("/entities/1").await;
            let caches = api.service.perf().snapshot().view().caches;
            caches.into_iter().find(|cache| cache.name == "cache" && cache.hits > 0)
        })
        .await;
        assert!(cache.misses > 0, "{cache:?}");
        let view = api.service.perf().snapshot().view();
        assert_eq!(view.pools.iter().filter(|pool| pool.name == "cache").count(), pools);
        let route = view.routes.iter().find(|row| row.route == "/entities/{id}").expect("asked");
        assert!(route.phases["cache:cache"].count >= cache.hits + cache.misses, "{route:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_on_one_storage_see_what_the_other_wrote() {
    let storage = Storage::postgres_and_redis();
    let one = storage.start().await;
    let other =
        super::api::Api::start(storage.config().model_refresh_interval(Duration::from_millis(100)))
            .await;
    one.store("/entities", &json!([{"id": 1, "title": "Green tea"}])).await;
    assert_eq!(other.read("/entities/1").await["title"], "Green tea");
    // Kept for both, so forgotten for both.
    one.store("/entities", &json!([{"id": 1, "title": "White tea"}])).await;
    assert_eq!(other.read("/entities/1").await["title"], "White tea");
    one.store("/interactions", &json!([{"user_id": 1, "entity_id": 1, "kind": "view"}])).await;
    other.knows(1, 1).await;
    assert_eq!(ids(&other.read("/trending").await), [1]);
}
