//! Servers that are known by a URL alone: `axum::serve`, as anybody's service.

use axum::{
    Router,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version},
    routing::get,
};
use std::time::Duration;

use bytes::Bytes;
use parallax_loadgen::{Http, LoadTest, LoadTestError, PlanError, Transport, UrlError, Wire};
use parallax_middleware::{BypassPolicy, BypassToken, LoadMark, Perf, TokenCheck, TokenKeys};
use tokio::time::sleep;

use super::{assert_conserved, assert_told, millis, run};
use crate::support::{
    listening::{App, Listening},
    server::free_port,
};

/// Answers a request of another version, or one with a mark, with an error.
async fn serving(version: Version) -> Listening {
    let look = move |request: axum::extract::Request| async move {
        let marked = request.extensions().get::<LoadMark>().is_some()
            || request.headers().contains_key("x-parallax-mark");
        if request.version() == version && !marked { StatusCode::OK } else { StatusCode::CONFLICT }
    };
    let app = Router::new().route("/api/look", get(look)).layer(Perf::new().layer());
    App::Router(app).listen().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_loaded_over_http_1_and_its_paths_begin_with_that_of_the_url() {
    let server = serving(Version::HTTP_11).await;
    let url = format!("http://{}/api/", server.address());
    let run = run(LoadTest::url(&url).expect("it is one").get("/look").users(4)).await;
    assert_conserved(&run.conservation);
    assert_eq!(run.conservation.outcomes.ok, run.conservation.sent, "{:?}", run.errors);
    assert_eq!(run.plan.transport, url);
    assert!(run.connections >= Some(1));
    assert!(run.server.is_none() && run.conservation.server.is_none());
    assert_eq!(run.pairs.paired, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_is_spoken_without_asking_when_the_client_is_told_so() {
    let server = serving(Version::HTTP_2).await;
    let wire = Wire::url(&format!("http://{}", server.address())).expect("it is one");
    let wire = wire.http(Http::Two).build().expect("there is no TLS to set up");
    let run = run(LoadTest::wire(wire).get("/api/look").users(4)).await;
    assert_conserved(&run.conservation);
    assert_eq!(run.conservation.outcomes.ok, run.conservation.sent, "{:?}", run.errors);
    assert_eq!(run.connections, Some(1));
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unix_socket_is_loaded_by_its_path() {
    let folder = tempfile::tempdir().expect("there is room");
    let path = folder.path().join("app.sock");
    let listener = tokio::net::UnixListener::bind(&path).expect("the folder is ours");
    let app = Router::new().route("/api/tea", get(|| async { "tea" }));
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let url = format!("unix:{}:/api", path.display());
    let run = run(LoadTest::url(&url).expect("it is one").get("/tea").users(4)).await;
    server.abort();
    assert_conserved(&run.conservation);
    assert_eq!(run.conservation.outcomes.ok, run.conservation.sent, "{:?}", run.errors);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_goes_along_and_into_no_report() {
    let look = |headers: HeaderMap| async move {
        // Of me:secret, as RFC 7617 writes it; and a header of the wire's.
        let basic = headers.get("authorization").is_some_and(|v| v == "Basic bWU6c2VjcmV0");
        let extra = headers.get("x-extra").is_some_and(|value| value == "yes");
        if basic && extra { StatusCode::OK } else { StatusCode::UNAUTHORIZED }
    };
    let server = App::Router(Router::new().route("/", get(look))).listen().await;
    let wire = Wire::url(&format!("http://me:secret@{}", server.address())).expect("it is one");
    let extra = (HeaderName::from_static("x-extra"), HeaderValue::from_static("yes"));
    let wire = wire.header(extra.0, extra.1).build().expect("there is no TLS to set up");
    let run = run(LoadTest::wire(wire).get("/").users(1)).await;
    assert_eq!(run.conservation.outcomes.ok, run.conservation.sent);
    assert_eq!(run.plan.transport, format!("http://{}", server.address()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_where_nobody_listens_is_told_as_refused() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let test = LoadTest::url(&url).expect("it is one").get("/").rate(100);
    let run = run(test).await;
    assert_conserved(&run.conservation);
    assert_eq!(run.conservation.outcomes.transport_error, run.conservation.sent);
    assert_told(&run, &format!("cannot connect to {url}: "));
    assert_told(&run, "onnection refused");
    assert_eq!((run.errors.len(), run.connections), (1, Some(0)), "{:?}", run.errors);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_nobody_knows_is_told_as_such() {
    let url = "http://nobody.invalid/";
    let run = run(LoadTest::url(url).expect("it is one").get("/").rate(40)).await;
    assert_conserved(&run.conservation);
    let o = run.conservation.outcomes;
    assert_eq!(o.transport_error + o.timeout, run.conservation.sent);
    assert_told(&run, "cannot connect to http://nobody.invalid/: dns error");
}

#[tokio::test]
async fn a_url_that_cannot_be_loaded_is_refused_before_anything_is_sent() {
    assert!(matches!(LoadTest::url("localhost:3000"), Err(UrlError::NoUrl(_))));
    let test = LoadTest::url("http://localhost:3000").expect("it is one").get("/");
    let error = test.transport(Transport::Tcp(Http::One)).warmup(millis(0)).run().await;
    let error = error.expect_err("there are two ways");
    assert!(matches!(error, LoadTestError::Plan(PlanError::TwoTransports { .. })), "{error}");
}

/// A service that answers whole, in a stream, and from a pool; and that tells its times to who has a token.
async fn telling(keys: &TokenKeys) -> Listening {
    let policy = BypassPolicy::in_process().tokens(TokenCheck::new(keys.clone()));
    let perf = Perf::builder().server_timing(&policy).build();
    let pool = perf.clone();
    let app = Router::new()
        .route("/items/{id}", get(|| async { "tea" }))
        .route(
            "/pool",
            get(move || async move { pool.observe("pool_wait:db", sleep(millis(3))).await }),
        )
        .route(
            "/stream",
            get(|| async {
                let chunks = (0..3).map(|_| Ok::<_, std::convert::Infallible>(Bytes::from("tea")));
                axum::body::Body::from_stream(futures_util::stream::iter(chunks))
            }),
        )
        .layer(perf.layer());
    App::Router(app).listen().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_tells_its_times_is_paired_with_as_in_process() {
    let keys = TokenKeys::new("k1", &[7; 32]).expect("it is long enough");
    let token = BypassToken::lasting(Duration::from_secs(60), "run");
    let token = token.mint(&keys).expect("a token can say this");
    let server = telling(&keys).await;
    for http in [Http::One, Http::Two] {
        let wire = Wire::url(&format!("http://{}", server.address())).expect("it is one");
        let wire = wire.http(http).build().expect("there is no TLS to set up");
        let test = LoadTest::wire(wire).get("/items/7").get("/pool").get("/stream").users(3);
        let run = run(test.token(&token)).await;
        assert_conserved(&run.conservation);
        assert_eq!(run.conservation.outcomes.ok, run.conservation.sent, "{:?}", run.errors);
        assert_eq!(run.pairs.paired, run.conservation.sent, "trailers tell of the stream too");
        assert_eq!(run.pairs.negative, 0);
        let rows: Vec<&str> = run.client.routes.iter().map(|row| row.route.as_str()).collect();
        assert_eq!(
            rows,
            ["GET /items/{id}", "GET /pool", "GET /stream"],
            "as the server calls them"
        );
        let pool = &run.client.routes[1].attribution[0];
        assert!(pool.shares["pool_wait:db"] > 0.5, "{pool:?}");
        assert!(run.plan.bypasses_limiter);
        let text = serde_json::to_string(&run).expect("it is JSON");
        assert!(!text.contains(&token), "the token is shown nowhere");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_tells_nothing_for_a_token_of_another_key() {
    let keys = |secret| TokenKeys::new("k1", &[secret; 32]).expect("it is long enough");
    let token = BypassToken::lasting(Duration::from_secs(60), "run");
    let token = token.mint(&keys(8)).expect("a token can say this");
    let server = telling(&keys(7)).await;
    let url = format!("http://{}", server.address());
    let test = LoadTest::url(&url).expect("it is one").get("/items/7").users(2);
    let run = run(test.token(&token)).await;
    assert_eq!((run.pairs.paired, run.conservation.outcomes.ok), (0, run.conservation.sent));
    let rows: Vec<&str> = run.client.routes.iter().map(|row| row.route.as_str()).collect();
    assert_eq!(rows, ["GET /items/7"]);
}
