//! What users of the example service do: the load of `validate`.

use bytes::Bytes;
use http::{Method, Request, header::CONTENT_TYPE};
use parallax_loadgen::{LoadRng, Scenario};
use rand::RngExt;
use rand_distr::{Distribution, Zipf};

use crate::{
    auth::API_KEY_HEADER,
    config::ApiKey,
    seed::{self, SeedPlan},
};

/// A weighted mix of reads and one write in ten, on what `plan` has seeded. Entities are as popular in
/// it as they were when they were seeded.
#[must_use]
pub fn mix(plan: &SeedPlan, key: &ApiKey) -> Scenario {
    let users = plan.users;
    let entity = popular_entities(plan);
    let ask = Asker { key: key.clone() };
    Scenario::new()
        .step("GET /recommendations/{user_id}", 40, {
            let ask = ask.clone();
            move |rng| ask.get(&format!("/recommendations/{}", rng.random_range(1..=users)))
        })
        .step("GET /entities/{id}", 20, {
            let (ask, entity) = (ask.clone(), entity.clone());
            move |rng| ask.get(&format!("/entities/{}", entity(rng)))
        })
        .step("GET /similar/{id}", 12, {
            let (ask, entity) = (ask.clone(), entity.clone());
            move |rng| ask.get(&format!("/similar/{}", entity(rng)))
        })
        .step("GET /search", 10, {
            let ask = ask.clone();
            move |rng| ask.get(&format!("/search?q={}", seed::word(rng)))
        })
        .step("GET /trending", 8, {
            let ask = ask.clone();
            move |_| ask.get("/trending")
        })
        .step("POST /interactions", 10, move |rng| {
            let (user, entity) = (rng.random_range(1..=users), entity(rng));
            let body = format!(r#"[{{"user_id":{user},"entity_id":{entity},"kind":"view"}}]"#);
            ask.post("/interactions", body)
        })
}

/// Draws entities by the popularity that the seeder gave them.
fn popular_entities(
    plan: &SeedPlan,
) -> impl Fn(&mut LoadRng) -> u64 + Clone + Send + Sync + 'static {
    let entities = plan.entities;
    // A plan has at least one entity, so the distribution exists; without it, everybody asks for the first.
    let popularity = Zipf::new(entities as f64, seed::ZIPF_EXPONENT).ok();
    move |rng| popularity.map_or(1, |zipf| (zipf.sample(rng) as u64).clamp(1, entities))
}

/// Makes requests that open the service.
#[derive(Clone)]
struct Asker {
    key: ApiKey,
}

impl Asker {
    fn get(&self, path: &str) -> Request<Bytes> {
        self.request(Method::GET, path, Bytes::new())
    }

    fn post(&self, path: &str, json: String) -> Request<Bytes> {
        let mut request = self.request(Method::POST, path, json.into());
        request
            .headers_mut()
            .insert(CONTENT_TYPE, "application/json".parse().expect("visible ASCII"));
        request
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Request<Bytes> {
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().expect("paths of numbers and words are URIs");
        let key = self.key.reveal().parse().expect("a key is visible ASCII");
        request.headers_mut().insert(API_KEY_HEADER, key);
        request
    }
}
