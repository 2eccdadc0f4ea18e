//! Scenario files, and what they send.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::to_bytes,
    extract::{Path as InPath, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use parallax_loadgen::{LoadTest, LoadTestError, Scenario, report::Run};
use parallax_middleware::Perf;
use serde_json::{Value, json};

/// What a shop was asked, and what it has given out.
#[derive(Default)]
struct Shop {
    asked: Mutex<Vec<String>>,
    orders: AtomicU64,
}

impl Shop {
    /// Method, path and body of each request, in their order.
    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }

    fn count(&self, beginning: &str) -> u64 {
        self.asked().iter().filter(|line| line.starts_with(beginning)).count() as u64
    }
}

/// Shops are opened and closed; in one of them, whoever has logged in orders.
fn shop() -> (Router, Arc<Shop>) {
    let shop = Arc::new(Shop::default());
    let order = get(read).delete(|| async { StatusCode::NO_CONTENT });
    let api = Router::new()
        .route("/shops", post(open))
        .route("/shops/{shop}", delete(|| async { StatusCode::NO_CONTENT }))
        .route("/items/{id}", get(|| async { "tea" }))
        .route("/login", post(login))
        .route("/shops/{shop}/orders", post(create))
        .route("/shops/{shop}/orders/{id}", order)
        .route("/echo", post(echo));
    let router = Router::new()
        .nest("/api/v1", api)
        .layer(from_fn_with_state(shop.clone(), note))
        .with_state(shop.clone())
        .layer(Perf::new().layer());
    (router, shop)
}

async fn note(State(shop): State<Arc<Shop>>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.expect("it is in memory");
    let text = String::from_utf8_lossy(&body);
    let line = format!("{} {} {text}", head.method, head.uri).trim_end().to_owned();
    shop.asked.lock().expect("no panic").push(line);
    next.run(Request::from_parts(head, body.into())).await
}

async fn open(Json(shop): Json<Value>) -> impl IntoResponse {
    // As a name and as a number: an id keeps its type.
    let name = shop["name"].as_str().unwrap_or_default().to_owned();
    (StatusCode::CREATED, Json(json!({ "id": 17, "name": name })))
}

async fn login(body: String) -> impl IntoResponse {
    let email = body.split('&').find_map(|field| field.strip_prefix("email="));
    let cookie = format!("session={}; Path=/; HttpOnly", email.unwrap_or("nobody"));
    ([(header::SET_COOKIE, cookie)], "welcome")
}

/// Every tenth order is lost.
async fn create(
    State(shop): State<Arc<Shop>>,
    InPath(number): InPath<u64>,
    headers: HeaderMap,
    Json(order): Json<Value>,
) -> Response {
    let cookie = headers.get(header::COOKIE).and_then(|cookie| cookie.to_str().ok());
    let email = cookie.and_then(|cookie| cookie.strip_prefix("session="));
    let note = email.map(|email| format!("for {}", email.replace("%40", "@")));
    if note.as_deref() != order["note"].as_str() || !order["item"].is_u64() || number != 17 {
        return StatusCode::FORBIDDEN.into_response();
    }
    let id = shop.orders.fetch_add(1, SeqCst);
    let state = if id % 10 == 3 { "lost" } else { "open" };
    let headers = [(header::ETAG, format!("\"e{id}\""))];
    (StatusCode::CREATED, headers, Json(json!({ "id": id, "state": state }))).into_response()
}

async fn read(InPath((_, id)): InPath<(u64, u64)>, headers: HeaderMap) -> StatusCode {
    let etag = headers.get(header::IF_NONE_MATCH).and_then(|etag| etag.to_str().ok());
    match etag == Some(format!("\"e{id}\"").as_str()) {
        true => StatusCode::NOT_MODIFIED,
        false => StatusCode::NOT_FOUND,
    }
}

/// What it was told, with a status.
async fn echo(headers: HeaderMap, body: String) -> impl IntoResponse {
    let key = headers.get("x-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
    Json(json!({ "key": key, "body": body, "n": 1 }))
}

/// The text of a scenario, beside a file with three users.
fn scenario(text: &str) -> Scenario {
    let folder = tempfile::tempdir().expect("a folder");
    let rows = "{\"id\": 1}\n{\"id\": 2}\n{\"id\": 3}\n";
    std::fs::write(folder.path().join("users.jsonl"), rows).expect("it is writable");
    let path = folder.path().join("scenario.toml");
    Scenario::from_toml(text, path).unwrap_or_else(|error| panic!("{error}"))
}

async fn run(test: LoadTest) -> Run {
    let report = test.warmup(Duration::ZERO).run().await.expect("the plan is valid");
    let run = report.runs.into_iter().next().expect("one run");
    assert_eq!(run.conservation.unexplained, 0, "{:#?}", run.conservation);
    run
}

/// How often a check held, and how often it did not.
fn counts(run: &Run, name: &str) -> (u64, u64) {
    let check = run.checks.iter().find(|check| check.name == name);
    let check = check.unwrap_or_else(|| panic!("no {name:?} in {:?}", run.checks));
    (check.passed, check.failed)
}

fn first_failure<'a>(run: &'a Run, name: &str) -> Option<&'a str> {
    run.checks.iter().find(|check| check.name == name)?.first_failure.as_deref()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_example_orders_with_ids_and_cookies_of_the_answers_and_counts_its_checks() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../loadgen/examples/shop.toml");
    let example = Scenario::read(example).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(example.names().collect::<Vec<_>>(), ["look around", "order"]);
    let (router, shop) = shop();
    let run = run(LoadTest::new(router).scenario(example).users(4).requests(400)).await;

    let orders = shop.orders.load(SeqCst);
    let lost = (0..orders).filter(|id| id % 10 == 3).count() as u64;
    assert!(lost > 2, "{orders} orders");
    assert_eq!(counts(&run, "create: status is 200 or 201"), (orders, 0));
    assert_eq!(counts(&run, "create: /state is \"open\""), (orders - lost, lost));
    assert_eq!(first_failure(&run, "create: /state is \"open\""), Some("it is \"lost\""));
    assert_eq!(run.conservation.outcomes.check_failed, lost);
    // A lost order is read no further; one more may be left by each user at the end.
    let (read, unread) = counts(&run, "read: status is 2xx or 304");
    assert!(unread == 0 && read <= orders - lost && read + lost + 4 >= orders, "{read}");
    // Setup and teardown are once, in the order of things, and count nowhere.
    let asked = shop.asked();
    assert!(asked[0].starts_with("POST /api/v1/shops {\"name\":\"shop "), "{}", asked[0]);
    assert_eq!(asked.last().map(String::as_str), Some("DELETE /api/v1/shops/17"));
    assert_eq!(
        (shop.count("POST /api/v1/shops {"), shop.count("DELETE /api/v1/shops/17 ")),
        (1, 0)
    );
    assert_eq!(run.conservation.sent, 400);
    assert!(run.checks.iter().all(|check| !check.name.contains("the shop")), "{:?}", run.checks);
    // All rows of the data file were used.
    for user in ["ann", "bob", "cleo"] {
        assert!(
            shop.count(&format!("POST /api/v1/login email={user}%40example.com&")) > 0,
            "{user}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_seed_asks_the_same_in_the_same_order_and_another_does_not() {
    const MIX: &str = "
        [data]
        users = { file = 'users.jsonl' }
        [[setup]]
        method = 'POST'
        path = '/api/v1/shops'
        json = { name = '{{random.uuid}}' }
        extract = { shop = { json = '/name' } }
        [[request]]
        path = '/api/v1/items/{{random.int(1,1000)}}'
        weight = 2
        [[flow]]
        name = 'two'
        [[flow.step]]
        name = 'first'
        method = 'POST'
        path = '/api/v1/echo'
        json = { user = '{{users.id}}', shop = '{{shop}}', word = '{{random.choice(a,b,c)}}' }
        extract = { all = { json = '/body' } }
        [[flow.step]]
        name = 'second'
        path = '/api/v1/items/{{users.id}}-{{all}}'
    ";
    let asked = async |seed| {
        let (router, shop) = shop();
        let test = LoadTest::new(router).scenario(scenario(MIX)).users(1).requests(60).seed(seed);
        run(test).await;
        shop.asked()
    };
    let first = asked(1).await;
    // The setup, the preflight, and what was wanted.
    assert_eq!(first.len(), 62);
    assert_eq!(first, asked(1).await);
    assert_ne!(first, asked(2).await);
    // A row goes with all steps of its iteration, and a number stays one.
    let user = |line: &str, before: &str| line.split(before).nth(1)?.chars().next();
    let pairs = first.windows(2).filter(|pair| pair[0].contains("/echo"));
    let users: Vec<_> = pairs
        .map(|pair| {
            let user = (user(&pair[0], "\"user\":"), user(&pair[1], "/items/"));
            assert!(user.0.is_some() && user.0 == user.1, "{pair:?}");
            user.0
        })
        .collect();
    assert!(users.len() > 10 && users.iter().any(|user| *user != users[0]), "{users:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_taken_in_turn_or_once_each() {
    let flow = |pick: &str| {
        scenario(&format!(
            "
            [data]
            users = {{ file = 'users.jsonl', pick = '{pick}' }}
            [[flow]]
            name = 'look'
            [[flow.step]]
            path = '/api/v1/items/{{{{users.id}}}}'
            "
        ))
    };
    let (router, shop_) = shop();
    run(LoadTest::new(router).scenario(flow("sequential")).users(1).requests(7)).await;
    // The preflight takes the first.
    let ids: Vec<_> = shop_.asked().iter().filter_map(|line| line.chars().last()).collect();
    assert_eq!(ids.iter().collect::<String>(), "12312312");

    let (router, shop) = shop();
    let test = LoadTest::new(router).scenario(flow("once")).users(2);
    let run = run(test.duration(Duration::from_millis(200))).await;
    let mut ids: Vec<_> = shop.asked().iter().filter_map(|line| line.chars().last()).collect();
    ids.sort_unstable();
    assert_eq!((ids.iter().collect::<String>().as_str(), run.conservation.sent), ("123", 2));
    assert!(run.checks.is_empty(), "that rows have run out is no failure: {:?}", run.checks);
    assert_eq!(run.conservation.outcomes.ok, 2, "whoever had a row was served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_check_ends_its_iteration_unless_it_is_to_go_on() {
    let flow = |go_on: bool| {
        scenario(&format!(
            "
            [[flow]]
            name = 'two'
            [[flow.step]]
            name = 'first'
            method = 'POST'
            path = '/api/v1/echo'
            body = 'tea'
            [flow.step.check]
            status = [404, '5xx']
            header = {{ content-type = 'application/json', x-none = 'a' }}
            json = {{ '/n' = 1.0, '/body' = 'te', '/none' = true, '' = {{}} }}
            body_contains = 'coffee'
            max_bytes = 5
            go_on = {go_on}
            [[flow.step]]
            name = 'second'
            path = '/api/v1/items/1'
            check = {{ json = {{ '' = 'tea' }}, body_contains = 'ea', max_bytes = 3 }}
            "
        ))
    };
    for go_on in [false, true] {
        let (router, shop) = shop();
        let run_ = run(LoadTest::new(router).scenario(flow(go_on)).users(1).requests(20)).await;
        let sent = if go_on { 10 } else { 20 };
        assert_eq!(counts(&run_, "first: header content-type is \"application/json\""), (sent, 0));
        assert_eq!(counts(&run_, "first: /n is 1"), (sent, 0));
        for (name, why) in [
            ("status is 404 or 5xx", "it is 200"),
            ("header x-none is \"a\"", "it is absent"),
            ("/body is \"te\"", "it is \"tea\""),
            ("/none is true", "the answer has nothing at \"/none\""),
            (" is {}", "it is an object"),
            ("body contains \"coffee\"", "its 29 bytes do not"),
            ("body has at most 5 bytes", "it has 29"),
        ] {
            let name = format!("first: {name}");
            assert_eq!(counts(&run_, &name), (0, sent), "{name}");
            assert_eq!(first_failure(&run_, &name), Some(why));
        }
        assert_eq!(run_.conservation.outcomes.check_failed, 20);
        // The preflight's trial ends with its first request.
        assert_eq!(shop.count("GET "), if go_on { 10 } else { 0 });
        if go_on {
            assert_eq!(counts(&run_, "second: body contains \"ea\""), (10, 0));
            assert_eq!(counts(&run_, "second: body has at most 3 bytes"), (10, 0));
            assert_eq!(first_failure(&run_, "second:  is \"tea\""), Some("the answer is not JSON"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_extracted_or_sent_ends_the_iteration_and_says_why() {
    for (extract, path, why) in [
        (
            "json = '/none'",
            "/",
            "first: no id, since the answer has nothing at \"/none\" (status 200)",
        ),
        (
            "header = 'location'",
            "/",
            "first: no id, since the answer has no header location (status 200)",
        ),
        (
            "cookie = 'c'",
            "/",
            "first: no id, since no answer has set the cookie \"c\" (status 200)",
        ),
        ("json = '/key'", "{{id}}", "GET {id}: its path \"\" is none: empty string"),
        ("json = '/body'", "{{id}}", "GET {id}: its path \"a b\" is none: invalid uri character"),
    ] {
        let (router, shop) = shop();
        let scenario = scenario(&format!(
            "
            [[flow]]
            name = 'two'
            [[flow.step]]
            name = 'first'
            method = 'POST'
            path = '/api/v1/echo'
            body = 'a b'
            extract.id = {{ {extract} }}
            [[flow.step]]
            path = '{path}'
            body = '{{{{id}}}}'
            "
        ));
        let run = run(LoadTest::new(router).scenario(scenario).users(1).requests(5)).await;
        assert_eq!(counts(&run, "the flow goes on"), (0, 5));
        assert_eq!(first_failure(&run, "the flow goes on"), Some(why));
        assert_eq!((run.conservation.outcomes.check_failed, shop.count("GET")), (5, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_fails_in_the_setup_stops_the_run() {
    let scenario = scenario(
        "
        [[setup]]
        name = 'open'
        method = 'POST'
        path = '/api/v1/echo'
        check = { status = 201 }
        [[request]]
        path = '/api/v1/items/1'
        ",
    );
    let (router, shop) = shop();
    let result = LoadTest::new(router).scenario(scenario).users(1).requests(5).run().await;
    let Err(LoadTestError::Setup(why)) = result else { panic!("{result:?}") };
    assert_eq!(why, "open: status is 201: it is 200");
    assert_eq!(shop.asked().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_of_the_environment_is_sent_and_never_reported() {
    // Cargo's own, since a test cannot set one for itself alone.
    let secret = std::env::var("CARGO_PKG_DESCRIPTION").expect("cargo runs the tests");
    let scenario = scenario(
        "
        [variables]
        key = '{{env.CARGO_PKG_DESCRIPTION}}'
        [[request]]
        name = 'echo'
        method = 'POST'
        path = '/api/v1/echo'
        headers = { x-key = '{{key}}' }
        body = '{{env.CARGO_PKG_DESCRIPTION}}'
        check = { json = { '/key' = 'another', '/body' = '{{key}}' } }
        ",
    );
    let (router, shop) = shop();
    let test = LoadTest::new(router).scenario(scenario).users(1).requests(5);
    let report = test.warmup(Duration::ZERO).run().await.expect("the plan is valid");
    assert!(shop.asked().iter().all(|line| line.ends_with(&secret)));
    let run = &report.runs[0];
    assert_eq!(counts(run, "echo: /body is \"{{key}}\""), (5, 0));
    let failure = first_failure(run, "echo: /key is \"another\"");
    assert_eq!(failure, Some("it is \"{{env.CARGO_PKG_DESCRIPTION}}\""));
    let json = parallax_loadgen::render::json(&report);
    assert!(!json.contains(&secret), "{json}");
}
