//! What the model makes of what users did.

use std::time::Duration;

use example_service::{SeedPlan, Seeder};
use serde_json::{Value, json};

use super::api::{Api, Storage, ids};

/// Ten entities; users 1 to 20 met 1 to 5, users 21 to 40 met 6 to 10, and entity 6 was bought most.
async fn two_tastes(storage: &Storage) -> Api {
    let api = storage.start().await;
    let entities: Vec<Value> =
        (1..=10).map(|id| json!({"id": id, "title": format!("Entity {id}")})).collect();
    api.store("/entities", &json!(entities)).await;
    let met = (1..=40).flat_map(|user| {
        let first = if user <= 20 { 1 } else { 6 };
        (first..first + 5).map(move |entity| {
            let kind = if entity == 6 { "purchase" } else { "view" };
            json!({"user_id": user, "entity_id": entity, "kind": kind})
        })
    });
    api.store("/interactions", &json!(met.collect::<Vec<_>>())).await;
    api.knows(10, 200).await;
    api
}

fn sorted(mut ids: Vec<u64>) -> Vec<u64> {
    ids.sort_unstable();
    ids
}

pub(super) async fn recommendations_leave_out_what_the_user_has_met(storage: Storage) {
    let api = two_tastes(&storage).await;
    let view = |entity: u64| json!([{"user_id": 99, "entity_id": entity, "kind": "view"}]);
    api.store("/interactions", &view(1)).await;
    api.store("/interactions", &view(2)).await;
    let list = api.read("/recommendations/99?limit=3").await;
    assert_eq!((&list["user_id"], &list["personal"]), (&json!(99), &json!(true)));
    assert_eq!(sorted(ids(&list)), [3, 4, 5]);
    // At once, not when the model or the cache catches up.
    api.store("/interactions", &view(4)).await;
    assert_eq!(sorted(ids(&api.read("/recommendations/99?limit=2").await)), [3, 5]);
    // Where taste gives no more, what is trending follows, still without what was met.
    let list = api.read("/recommendations/99?limit=100").await;
    assert_eq!(list["personal"], false);
    assert_eq!(sorted(ids(&list)), [3, 5, 6, 7, 8, 9, 10]);
    assert_eq!(sorted(ids(&list)[..2].to_vec()), [3, 5], "personal ones come first");
    for user in [1, 30] {
        let met = if user == 1 { 1..=5 } else { 6..=10 };
        let list = api.read(&format!("/recommendations/{user}?limit=100")).await;
        assert!(ids(&list).iter().all(|id| !met.contains(id)), "user {user} met some of {list}");
    }
}

pub(super) async fn a_user_whom_nobody_knows_gets_what_is_trending(storage: Storage) {
    let api = two_tastes(&storage).await;
    let list = api.read("/recommendations/12345").await;
    assert_eq!(list["personal"], false);
    assert_eq!(ids(&list), ids(&api.read("/trending").await));
}

pub(super) async fn what_the_same_users_met_is_similar(storage: Storage) {
    let api = two_tastes(&storage).await;
    assert_eq!(sorted(ids(&api.read("/similar/1").await)), [2, 3, 4, 5]);
    assert_eq!(sorted(ids(&api.read("/similar/10?limit=100").await)), [6, 7, 8, 9]);
    assert_eq!(ids(&api.read("/similar/10?limit=2").await).len(), 2);
    // An entity that nobody met yet is known, and like nothing.
    api.store("/entities", &json!([{"id": 11, "title": "New"}])).await;
    assert_eq!(ids(&api.read("/similar/11").await), [0; 0]);
}

pub(super) async fn what_counts_most_is_trending(storage: Storage) {
    let api = two_tastes(&storage).await;
    let list = api.read("/trending?limit=3").await;
    assert_eq!((ids(&list)[0], ids(&list).len()), (6, 3));
    assert_eq!(list["items"][0]["title"], "Entity 6");
    let scores: Vec<f64> = list["items"]
        .as_array()
        .expect("a list has items")
        .iter()
        .map(|item| item["score"].as_f64().expect("an item has a score"))
        .collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
}

pub(super) async fn a_seeded_service_is_fresh_when_it_says_so(storage: Storage) {
    let api = storage.start().await;
    let seeder = Seeder::new(&api.service);
    let before = seeder.freshness().await.expect("the service answers");
    assert_eq!((before.entities, before.interactions), (0, 0));
    let plan = SeedPlan::with_sizes(2_500, 6_000, 300, 7).expect("in range");
    let mut told = Vec::new();
    let seeded = seeder.seed(&plan, |progress| told.push(progress)).await.expect("it is stored");
    assert_eq!((seeded.entities, seeded.interactions), (2_500, 6_000));
    let ends: Vec<u64> = told.iter().filter(|p| p.done == p.total).map(|p| p.total).collect();
    assert_eq!(ends, [2_500, 6_000]);
    let fresh = seeder
        .wait_until_fresh(&seeded, Duration::from_secs(60))
        .await
        .expect("the worker catches up");
    assert_eq!((fresh.entities, fresh.interactions), (2_500, 6_000));
    assert!(fresh.generation > before.generation);
    // Fresh means that the answers are there.
    assert_eq!(ids(&api.read("/trending?limit=100").await).len(), 100);
    assert_eq!(ids(&api.read("/recommendations/1").await).len(), 10);
}
