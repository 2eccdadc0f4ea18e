//! What the service says to requests that it cannot serve.

use axum::{body::Body, extract::Request, http::StatusCode};
use serde_json::{Value, json};

use super::api::{KEY, Storage, json_request, request};

fn entities(n: usize) -> Value {
    (1..=n).map(|id| json!({"id": id, "title": format!("Entity {id}")})).collect()
}

pub(super) async fn a_batch_has_1_to_1000_items(storage: Storage) {
    let api = storage.start().await;
    for n in [0, 1_001] {
        let reply = api.post("/entities", &entities(n)).await;
        reply.problem(422);
        let detail =
            reply.json["errors"][0]["detail"].as_str().expect("a fault says what is wrong");
        assert!(detail.contains(&n.to_string()) && detail.contains("1 to 1000"), "{detail}");
    }
    assert_eq!(api.get("/entities/1").await.status, StatusCode::NOT_FOUND);
    assert_eq!(api.store("/entities", &entities(1_000)).await["stored"], 1_000);
    let views: Value =
        (1..=1_001).map(|id| json!({"user_id": 1, "entity_id": id, "kind": "view"})).collect();
    api.post("/interactions", &views).await.problem(422);
    api.post("/interactions", &json!([])).await.problem(422);
}

pub(super) async fn faults_of_a_batch_are_named_by_their_place(storage: Storage) {
    let api = storage.start().await;
    let batch = json!([
        {"id": 1, "title": "Fine"},
        {"id": 0, "title": "No such id"},
        {"id": 3, "title": "   "},
        {"id": 4, "title": "x".repeat(201)},
        {"id": 5, "title": "Fine", "category": "y".repeat(65)},
    ]);
    let reply = api.post("/entities", &batch).await;
    reply.problem(422);
    let faults = reply.json["errors"].as_array().expect("the faults are listed");
    let places: Vec<&str> = faults.iter().filter_map(|fault| fault["pointer"].as_str()).collect();
    assert_eq!(places, ["/1/id", "/2/title", "/3/title", "/4/category"]);
    // All or nothing.
    api.get("/entities/1").await.problem(404);
    for unknown in [
        json!([{"user_id": 1, "entity_id": 1, "kind": "stared"}]),
        json!([{"user_id": "one", "entity_id": 1, "kind": "view"}]),
        json!([{"user_id": 1, "kind": "view"}]),
        json!([{"user_id": 0, "entity_id": 1, "kind": "view"}]),
        json!("an entity"),
    ] {
        assert!(!api.post("/interactions", &unknown).await.problem(422).is_empty(), "{unknown}");
    }
}

pub(super) async fn an_interaction_needs_its_entity(storage: Storage) {
    let api = storage.start().await;
    api.store("/entities", &entities(2)).await;
    let batch = json!([
        {"user_id": 1, "entity_id": 1, "kind": "view"},
        {"user_id": 1, "entity_id": 77, "kind": "view"},
    ]);
    let reply = api.post("/interactions", &batch).await;
    reply.problem(422);
    assert_eq!(reply.json["errors"][0]["pointer"], "/1/entity_id");
    // All or nothing, and no number is used up.
    let one = json!([{"user_id": 1, "entity_id": 1, "kind": "like"}]);
    api.store("/interactions", &one).await;
    api.knows(2, 1).await;
}

pub(super) async fn bodies_that_cannot_be_read_are_refused(storage: Storage) {
    let api = storage.start().await;
    for path in ["/entities", "/interactions"] {
        for broken in ["", "[", "[{]", "\u{0}"] {
            api.send(json_request(path, broken)).await.problem(400);
        }
        let plain =
            Request::post(path).header("x-api-key", KEY).header("content-type", "text/plain");
        api.send(plain.body(Body::from("[]")).expect("a valid request")).await.problem(415);
        let large = vec![b' '; 5 * 1024 * 1024];
        let reply = api.send(json_request(path, large)).await;
        assert!(reply.problem(413).contains("limit"), "{path}");
    }
}

pub(super) async fn what_does_not_exist_is_not_found(storage: Storage) {
    let api = storage.start().await;
    api.store("/entities", &entities(1)).await;
    for path in ["/", "/nowhere", "/entities", "/entities/1/more", "/entities/2", "/similar/2"] {
        let status = if path == "/entities" { 405 } else { 404 };
        assert!(!api.get(path).await.problem(status).is_empty(), "{path}");
    }
    for (method, path) in [
        ("DELETE", "/entities/1"),
        ("PUT", "/entities"),
        ("POST", "/trending"),
        ("POST", "/health"),
        ("BREW", "/search?q=tea"),
    ] {
        let reply = api.send(request(method, path, KEY)).await;
        assert!(reply.problem(405).contains(method), "{method} {path}");
        assert!(reply.headers.contains_key("allow"), "{method} {path}: {reply:?}");
    }
}

pub(super) async fn parameters_that_make_no_sense_are_refused(storage: Storage) {
    let api = storage.start().await;
    api.store("/entities", &entities(1)).await;
    let long = "x".repeat(201);
    for path in [
        "/entities/0",
        "/entities/-1",
        "/entities/one",
        "/entities/99999999999999999999",
        "/recommendations/0",
        "/similar/1.5",
        "/trending?limit=0",
        "/trending?limit=101",
        "/trending?limit=many",
        "/recommendations/1?limit=-1",
        "/similar/1?limit=1000000",
        "/search",
        "/search?q=",
        "/search?q=%20%21%3F",
        "/search?q=tea&limit=0",
        &format!("/search?q={long}"),
    ] {
        assert!(!api.get(path).await.problem(400).is_empty(), "{path}");
    }
}
