//! What goes in and comes out again.

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::api::{Storage, ids};

pub(super) async fn what_is_stored_is_read_back(storage: Storage) {
    let api = storage.start().await;
    let green = json!({"id": 1, "title": "Green tea", "category": "drinks"});
    // Beyond ASCII, and without a category.
    let other = json!({"id": 7_000_000_000_u64, "title": "Ünïcödé “茶” 🍵"});
    let stored = api.store("/entities", &json!([green, other])).await;
    assert_eq!(stored["stored"], 2);
    for _ in 0..2 {
        // From the database, then from the cache.
        assert_eq!(api.read("/entities/1").await, green);
        assert_eq!(api.read("/entities/7000000000").await, other);
    }
    let more = api.store("/entities", &json!({"items": [{"id": 2, "title": "Cup"}]})).await;
    assert!(more["last"].as_i64() > stored["last"].as_i64(), "{more} after {stored}");
    assert_eq!(api.read("/entities/2").await["title"], "Cup");
}

pub(super) async fn a_new_title_is_read_back_at_once(storage: Storage) {
    let api = storage.start().await;
    for n in 0..20 {
        let entity = json!({"id": 1, "title": format!("Title {n}")});
        api.store("/entities", &json!([entity])).await;
        assert_eq!(api.read("/entities/1").await, entity);
    }
}

pub(super) async fn search_finds_words_by_their_beginning(storage: Storage) {
    let api = storage.start().await;
    let titles = ["Green tea", "Greek salad", "Black TEA, strong", "Teapot", "Gre"];
    let entities: Vec<Value> = (1..)
        .zip(titles)
        .map(|(id, title)| json!({"id": id, "title": title, "category": "kitchen"}))
        .collect();
    api.store("/entities", &json!(entities)).await;
    let views = json!([{"user_id": 1, "entity_id": 4, "kind": "view"}]);
    api.store("/interactions", &views).await;
    api.knows(5, 1).await;
    let found = async |query: &str| {
        let mut found = ids(&api.read(&format!("/search?q={query}")).await);
        found.sort_unstable();
        found
    };
    assert_eq!(found("gre").await, [1, 2, 5]);
    assert_eq!(found("TEA").await, [1, 3, 4]);
    assert_eq!(found("teap").await, [4]);
    // Every word must be there, the last one as a beginning.
    assert_eq!(found("tea%20gre").await, [1]);
    assert_eq!(found("strong%20tea").await, [3]);
    assert_eq!(found("kitchen").await, [1, 2, 3, 4, 5]);
    assert_eq!(found("een").await, [0; 0]);
    // What LIKE and quotes would make of it must not matter.
    assert_eq!(found("gre%25").await, [1, 2, 5]);
    assert_eq!(found("x%27%20OR%201=1").await, [0; 0]);
    // What more users met comes first, and `limit` cuts the end.
    assert_eq!(ids(&api.read("/search?q=tea&limit=1").await), [4]);
}

pub(super) async fn writes_that_come_at_once_are_all_stored(storage: Storage) {
    let api = storage.start().await;
    let (tasks, each) = (20, 25);
    let writes = (0..tasks).map(|task| {
        let api = &api;
        async move {
            let range = task * each + 1..=(task + 1) * each;
            let entities: Vec<Value> = range
                .clone()
                .map(|id| json!({"id": id, "title": format!("Entity {id}")}))
                .collect();
            api.store("/entities", &json!(entities)).await;
            let views: Vec<Value> = range
                .map(|id| json!({"user_id": task + 1, "entity_id": id, "kind": "view"}))
                .collect();
            api.store("/interactions", &json!(views)).await;
        }
    });
    join_all(writes).await;
    // Nothing lost, and no number given twice: the model counts by them.
    api.knows(tasks * each, tasks * each).await;
    for id in [1, each, each + 1, tasks * each] {
        assert_eq!(api.read(&format!("/entities/{id}")).await["title"], format!("Entity {id}"));
    }
}
