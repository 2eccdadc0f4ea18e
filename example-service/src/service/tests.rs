use axum::{body::Body, http::Request};
use base64::{Engine, engine::general_purpose::STANDARD};
use http_body_util::BodyExt;
use parallax_middleware::{BypassToken, TokenKeys};
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt;

use super::*;
use crate::seed::{SeedPlan, Seeder};

/// A service on a database of its own, and the folder that holds it.
async fn service(
    change: impl FnOnce(crate::ConfigBuilder) -> crate::ConfigBuilder,
) -> (Service, TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let database = folder.path().join("test.db");
    let builder = Config::builder()
        .database_url(format!("sqlite://{}?mode=rwc", database.display()))
        .api_key(ApiKey::new("the-key-of-tests").expect("usable"));
    let config = change(builder).build().expect("valid");
    (Service::start(config).await.expect("started"), folder)
}

struct Answer {
    status: u16,
    kind: String,
    retry_after: Option<u64>,
    timing: Option<String>,
    json: Value,
}

async fn call(service: &Service, method: &str, path: &str, body: Option<Value>) -> Answer {
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("x-api-key", "the-key-of-tests")
        .header("content-type", "application/json")
        .body(body)
        .expect("a request");
    send(service, request).await
}

async fn send(service: &Service, request: Request<Body>) -> Answer {
    let response = service.router().oneshot(request).await.expect("routers never fail");
    let header = |name: &str| {
        response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let timing = header("server-timing");
    let (status, kind, retry_after) = (
        response.status().as_u16(),
        header("content-type").unwrap_or_default(),
        header("retry-after"),
    );
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    Answer {
        status,
        kind,
        retry_after: retry_after.and_then(|seconds| seconds.parse().ok()),
        timing,
        json: serde_json::from_slice(&body).unwrap_or(Value::Null),
    }
}

fn ids(answer: &Answer) -> Vec<i64> {
    let items = answer.json["items"].as_array().expect("a list");
    items.iter().map(|item| item["id"].as_i64().expect("an id")).collect()
}

#[tokio::test]
async fn what_is_stored_is_read_found_and_recommended() {
    let (service, _folder) = service(|config| config).await;
    let entities = json!([
        {"id": 1, "title": "Green tea", "category": "drinks"},
        {"id": 2, "title": "Black tea"},
        {"id": 3, "title": "Teapot"},
        {"id": 4, "title": "Lamp"},
    ]);
    let answer = call(&service, "POST", "/entities", Some(entities)).await;
    assert_eq!((answer.status, &answer.json), (201, &json!({"stored": 4, "last": 4})));
    let answer = call(&service, "GET", "/entities/1", None).await;
    assert_eq!(answer.json, json!({"id": 1, "title": "Green tea", "category": "drinks"}));
    call(&service, "POST", "/entities", Some(json!([{"id": 1, "title": "Jade tea"}]))).await;
    assert_eq!(
        call(&service, "GET", "/entities/1", None).await.json,
        json!({"id": 1, "title": "Jade tea"})
    );

    assert_eq!(ids(&call(&service, "GET", "/search?q=tea", None).await), [1, 2, 3]);
    assert_eq!(ids(&call(&service, "GET", "/search?q=TEA%20bl", None).await), [2]);
    assert_eq!(ids(&call(&service, "GET", "/search?q=green", None).await), [0_i64; 0]);

    let met: Vec<Value> = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (3, 3)]
        .map(|(user, entity)| json!({"user_id": user, "entity_id": entity, "kind": "view"}))
        .into();
    let answer = call(&service, "POST", "/interactions", Some(json!({"items": met}))).await;
    assert_eq!((answer.status, &answer.json), (201, &json!({"stored": 6, "last": 6})));
    loop {
        let health = call(&service, "GET", "/health", None).await;
        assert_eq!((health.status, &health.json["status"]), (200, &json!("ok")));
        if health.json["model"]["interactions"] == 6 {
            assert_eq!(health.json["model"]["entities"], 4);
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(ids(&call(&service, "GET", "/similar/1", None).await), [2]);
    assert_eq!(ids(&call(&service, "GET", "/trending?limit=1", None).await), [2]);
    let answer = call(&service, "GET", "/recommendations/3?limit=1", None).await;
    assert_eq!((ids(&answer), &answer.json["personal"]), (vec![1], &json!(true)));
    service.shutdown().await;
}

#[tokio::test]
async fn every_refusal_is_a_problem() {
    let (service, _folder) = service(|config| config).await;
    let one = |kind: &str| json!([{"user_id": 1, "entity_id": 9, "kind": kind}]);
    for (method, path, body, status) in [
        ("GET", "/nowhere", None, 404),
        ("GET", "/entities/9", None, 404),
        ("GET", "/similar/9", None, 404),
        ("GET", "/entities/0", None, 400),
        ("GET", "/entities/x", None, 400),
        ("GET", "/search", None, 400),
        ("GET", "/search?q=%20", None, 400),
        ("GET", "/trending?limit=0", None, 400),
        ("DELETE", "/entities/9", None, 405),
        ("POST", "/health", None, 405),
        ("POST", "/entities", None, 400),
        ("POST", "/entities", Some(json!([])), 422),
        ("POST", "/entities", Some(json!([{"id": 0, "title": ""}])), 422),
        ("POST", "/entities", Some(json!("x".repeat(BODY_LIMIT))), 413),
        ("POST", "/interactions", Some(one("stare")), 422),
        ("POST", "/interactions", Some(one("view")), 422),
    ] {
        let answer = call(&service, method, path, body).await;
        assert_eq!(
            (answer.status, answer.kind.as_str()),
            (status, "application/problem+json"),
            "{method} {path}"
        );
        assert_eq!(answer.json["status"], status, "{method} {path}");
    }
    let unknown = call(&service, "POST", "/interactions", Some(one("view"))).await;
    assert_eq!(unknown.json["errors"][0]["pointer"], "/0/entity_id");
    service.shutdown().await;
}

#[tokio::test]
async fn without_a_key_only_health_answers() {
    let (service, _folder) = service(|config| config).await;
    for (path, key, status) in [
        ("/trending", None, 401),
        ("/trending", Some("wrong-key-of-tests"), 401),
        ("/perf", None, 401),
        ("/nowhere", None, 401),
        ("/health", None, 200),
        ("/perf", Some("the-key-of-tests"), 200),
    ] {
        let mut request = Request::get(path);
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        let answer = send(&service, request.body(Body::empty()).expect("a request")).await;
        assert_eq!(answer.status, status, "{path} {key:?}");
    }
    service.shutdown().await;
}

#[tokio::test]
async fn with_a_token_for_it_perf_opens_to_its_holders_and_in_a_browser() {
    let token = "of-thirty-two-characters-or-more";
    let guard = BearerGuard::new(token).expect("it is long enough");
    let (service, _folder) = service(|config| config.perf_guard(guard)).await;
    let password = format!("Basic {}", STANDARD.encode(format!("anybody:{token}")));
    for path in ["/perf", "/perf/history"] {
        for (name, value, status) in [
            ("accept", "text/html", 401),
            ("x-api-key", "the-key-of-tests", 401),
            ("authorization", "Bearer the-key-of-tests", 401),
            ("authorization", &format!("Bearer {token}"), 200),
            ("authorization", &password, 200),
        ] {
            let request = Request::get(path).header(name, value).body(Body::empty());
            let answer = send(&service, request.expect("a request")).await;
            assert_eq!(answer.status, status, "{path} {name}: {value}");
        }
    }
    let request = Request::get("/perf")
        .header("authorization", password)
        .header("accept", "text/html")
        .header("accept-encoding", "gzip")
        .body(Body::empty());
    let response = service.router().oneshot(request.expect("a request")).await;
    let headers = response.expect("routers never fail").headers().clone();
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    assert_eq!(headers["content-encoding"], "gzip");
    // It opens nothing else, and nothing else is closed by it.
    let request = Request::get("/trending").header("authorization", format!("Bearer {token}"));
    assert_eq!(send(&service, request.body(Body::empty()).expect("a request")).await.status, 401);
    assert_eq!(call(&service, "GET", "/trending", None).await.status, 200);
    service.shutdown().await;
}

#[tokio::test]
async fn past_the_limit_a_key_waits_and_a_load_test_passes_by() {
    let (service, _folder) = service(|config| config.rate_limit(2)).await;
    let seeder = Seeder::new(&service);
    let plan = SeedPlan::with_sizes(1_500, 2_500, 50, 1).expect("a valid plan");
    let mut told = Vec::new();
    let seeded = seeder.seed(&plan, |progress| told.push(progress.done)).await.expect("seeded");
    assert_eq!(told, [0, 1_000, 1_500, 0, 1_000, 2_000, 2_500]);
    let fresh = seeder.wait_until_fresh(&seeded, Duration::from_secs(60)).await.expect("fresh");
    assert_eq!((fresh.entities, fresh.interactions), (1_500, 2_500));

    assert_eq!(call(&service, "GET", "/trending", None).await.status, 200);
    assert_eq!(call(&service, "GET", "/trending", None).await.status, 200);
    let limited = call(&service, "GET", "/trending", None).await;
    assert_eq!((limited.status, limited.kind.as_str()), (429, "application/problem+json"));
    assert!(
        limited.retry_after.is_some_and(|seconds| (1..=31).contains(&seconds)),
        "{:?}",
        limited.retry_after
    );
    let limiter = service.perf().snapshot().view().limiter.expect("requests met the limiter");
    assert_eq!((limiter.admitted, limiter.limited, limiter.bypassed), (2, 1, 5));
    service.shutdown().await;
}

#[tokio::test]
async fn a_token_lets_load_by_the_limiter_and_stays_out_of_its_users_figures() {
    let keys = TokenKeys::new("k1", b"a secret of thirty-two bytes, or more").expect("a good key");
    let token = BypassToken::lasting(Duration::from_secs(60), "a-run").path("/trending");
    let token = token.mint(&keys).expect("it can be minted");
    let with_tokens = service(|config| config.rate_limit(1).bypass_keys(keys)).await;
    let without = service(|config| config.rate_limit(1)).await;
    for ((service, _folder), passes) in [(with_tokens, true), (without, false)] {
        let (mut statuses, mut told) = (Vec::new(), 0);
        for _ in 0..3 {
            let request = Request::get("/trending")
                .header("x-api-key", "the-key-of-tests")
                .header("x-parallax-bypass", &token)
                .body(Body::empty())
                .expect("a request");
            let answer = send(&service, request).await;
            statuses.push(answer.status);
            told += usize::from(answer.timing.is_some_and(|told| told.contains("px-ttfb")));
        }
        assert_eq!(statuses, if passes { [200, 200, 200] } else { [200, 429, 429] });
        assert_eq!(told, if passes { 3 } else { 0 }, "who has a token is told how long it took");
        let rows = service.perf().snapshot().view().routes;
        let row = rows.iter().find(|row| row.route == "/trending").expect("it was asked for");
        assert_eq!((row.bypassed, row.latency.count), if passes { (3, 0) } else { (0, 1) });
        service.shutdown().await;
    }
}

#[tokio::test]
async fn a_restart_keeps_what_was_stored() {
    let (first, folder) = service(|config| config).await;
    let seeder = Seeder::new(&first);
    let plan = SeedPlan::with_sizes(20, 200, 10, 1).expect("a valid plan");
    let seeded = seeder.seed(&plan, |_| {}).await.expect("seeded");
    first.shutdown().await;
    let database = folder.path().join("test.db");
    let config = Config::builder()
        .database_url(format!("sqlite://{}?mode=rwc", database.display()))
        .api_key(ApiKey::random())
        .build()
        .expect("valid");
    let second = Service::start(config).await.expect("started");
    let fresh = Seeder::new(&second)
        .wait_until_fresh(&seeded, Duration::from_secs(60))
        .await
        .expect("fresh");
    assert_eq!((fresh.entities, fresh.interactions), (20, 200));
    second.shutdown().await;
}

#[tokio::test]
async fn a_database_that_cannot_be_used_is_named_without_its_password() {
    let start = async |url: &str| {
        let config =
            Config::builder().database_url(url).api_key(ApiKey::random()).build().expect("valid");
        Service::start(config).await.expect_err("refused").to_string()
    };
    let error = start("sqlite:///nowhere/at/all.db?mode=rwc").await;
    assert!(error.contains("/nowhere/at/all.db") && error.contains("DATABASE_URL"), "{error}");
    // Port 1 of this machine: nobody answers.
    let error = start("postgres://ann:hidden@127.0.0.1:1/shop").await;
    assert!(
        error.contains("postgres://ann:***@127.0.0.1:1/shop") && !error.contains("hidden"),
        "{error}"
    );
}
