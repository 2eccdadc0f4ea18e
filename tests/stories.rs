//! Reports that were believed and should not have been, and what is said now of what they were about.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    http::{StatusCode, header},
    routing::get,
};
use bytes::Bytes;
use deadpool::{
    Runtime,
    managed::{Manager, Metrics, Pool, RecycleResult},
};
use governor::{Quota, RateLimiter};
use http::Request;
use parallax_loadgen::{
    Http, LoadTest, Report, Scenario, Transport, Verdict, memory,
    render::{Style, text},
    report::{Environment, Run, Unit},
    threshold::Op,
};
use parallax_middleware::{
    BypassPolicy, BypassToken, ObservedDeadpool, Perf, TokenCheck, TokenKeys,
};
use tokio::time::sleep;

const SHORT: Duration = Duration::from_millis(400);
/// As long as it takes to judge a requirement.
const ENOUGH: Duration = Duration::from_millis(2_500);
const ONE_MS: Duration = Duration::from_millis(1);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn report(test: LoadTest) -> Report {
    test.warmup(Duration::ZERO).run().await.expect("the plan is valid")
}

fn page(report: &Report) -> String {
    // As one line, wherever it is broken.
    text(report, Style::default()).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether so short a run decides its requirement depends on the machine; that it may be believed does not.
fn assert_all_well(report: &Report) {
    let run = &report.runs[0];
    assert!(run.validity.reasons.is_empty(), "{}", page(report));
    assert_ne!(report.verdict, Verdict::Fail, "{}", page(report));
    assert_eq!(run.conservation.outcomes.ok, run.conservation.sent);
}

fn rules(run: &Run) -> Vec<&str> {
    run.validity.reasons.iter().map(|reason| &*reason.rule).collect()
}

/// 350,000 connections in 30 s took all the ports of the machine, and the server could not be started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_nobody_keeps_are_seen_before_the_ports_are_gone() {
    let app = Router::new().route("/", get(|| async { "tea" })).layer(Perf::new().layer());
    let test = |app: &Router| LoadTest::new(app.clone()).get("/").users(1_000).duration(ENOUGH);

    // In process there is no connection, however many users there are.
    let direct = report(test(&app).threshold("errors < 0.1%")).await;
    assert_all_well(&direct);
    assert_eq!(direct.runs[0].connections, None);
    assert!(direct.runs[0].conservation.sent > 1_000);

    // Over TCP there are as many as users, if the server keeps them.
    let tcp = test(&app).users(50).transport(Transport::Tcp(Http::One));
    let kept = report(tcp).await;
    let connections = kept.runs[0].connections.expect("there are some");
    assert!(connections <= 100 && kept.runs[0].conservation.sent > 500, "{connections}");
    assert!(kept.runs[0].hints.iter().all(|hint| hint.rule != "connections"));

    // And if it keeps none, that is said, with what it leads to.
    let handler = || async { ([(header::CONNECTION, "close")], "tea") };
    let app = Router::new().route("/", get(handler)).layer(Perf::new().layer());
    let closed = report(test(&app).users(4).transport(Transport::Tcp(Http::One))).await;
    let hint = closed.runs[0].hints.iter().find(|hint| hint.rule == "connections");
    let message = &hint.unwrap_or_else(|| panic!("{:?}", closed.runs[0].hints)).message;
    assert!(message.contains("nobody keeps them"), "{message}");
    assert!(page(&closed).contains("nobody keeps them"), "{}", page(&closed));
}

/// The rate limiter turned the load away before the application ran; the report said "p95: 0 ms, PASS".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limiter_that_turns_the_load_away_is_no_fast_service() {
    let test = |app| LoadTest::new(app).get("/").users(20).duration(ENOUGH).threshold("p95 < 1s");
    let limited = report(test(service(BypassPolicy::in_process()))).await;
    let run = &limited.runs[0];
    assert_eq!((limited.verdict, limited.grade), (Verdict::Invalid, None));
    assert!(rules(run).contains(&"masquerade"), "{:?}", run.validity);
    assert!(page(&limited).contains("The load never reached the service"), "{}", page(&limited));

    // The same load with a pass gets there.
    let passing = report(test(service(BypassPolicy::in_process())).pass_limiter(true)).await;
    assert_all_well(&passing);
    assert!(passing.runs[0].client.response_time.summary.p50_us > Some(900.0));
}

/// A header, `x-bypass-rate-limit: true`, switched the limiter off for anybody who sent it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_that_says_true_lets_nobody_past_the_limiter() {
    let keys = TokenKeys::new("k1", b"a secret that is long enough for this").expect("a key");
    let policy = BypassPolicy::default().tokens(TokenCheck::new(keys.clone()));
    let with = |name: &'static str, value: String| {
        let asks = move |_: &mut _| {
            let request = Request::get("/").header(name, &value).body(Bytes::new());
            request.expect("it is a request")
        };
        let mix = Scenario::new().step("asks", 1, asks);
        let test = LoadTest::new(service(policy.clone())).scenario(mix).users(20);
        report(test.duration(ENOUGH).threshold("p95 < 1s"))
    };
    for name in ["x-bypass-rate-limit", "x-parallax-bypass"] {
        let report = with(name, "true".to_owned()).await;
        let run = &report.runs[0];
        assert_eq!(report.verdict, Verdict::Invalid, "{}", page(&report));
        assert!(rules(run).contains(&"masquerade"), "{:?}", run.validity);
        let limiter = run.server.as_ref().and_then(|view| view.limiter.as_ref());
        let limiter = limiter.expect("it was met");
        assert_eq!(limiter.bypassed, 0);
        let tried = if name == "x-parallax-bypass" { run.conservation.sent } else { 0 };
        assert_eq!(limiter.refused_tokens.malformed, tried);
    }
    let token = BypassToken::lasting(ms(60_000), "story").mint(&keys).expect("a token");
    let report = with("x-parallax-bypass", token).await;
    assert_all_well(&report);
}

/// A service of one millisecond, behind a limiter of 20 requests an hour.
fn service(policy: BypassPolicy) -> Router {
    let perf = Perf::new();
    let quota = Quota::per_hour(20.try_into().expect("not zero"));
    let limiter = Arc::new(RateLimiter::direct(quota));
    let limit = axum::middleware::from_fn(move |request, next: axum::middleware::Next| {
        let admitted = limiter.check().is_ok();
        async move {
            if admitted {
                next.run(request).await
            } else {
                axum::response::IntoResponse::into_response(StatusCode::TOO_MANY_REQUESTS)
            }
        }
    });
    let handler = async || {
        sleep(ONE_MS).await;
        "tea"
    };
    Router::new()
        .route("/", get(handler))
        .layer(perf.bypass(policy).around(limit))
        .layer(perf.layer())
}

/// p95 was 6.1 s under sustained load because 1,000 requests stood in line for 50 connections; nothing in the
/// latency figures said so.
#[tokio::test]
async fn a_line_before_a_pool_is_named_with_its_length() {
    struct Connections;
    impl Manager for Connections {
        type Type = ();
        type Error = ();

        async fn create(&self) -> Result<(), ()> {
            Ok(())
        }

        async fn recycle(&self, (): &mut (), _: &Metrics) -> RecycleResult<()> {
            Ok(())
        }
    }
    let perf = Perf::new();
    let pool = Pool::builder(Connections).max_size(50).runtime(Runtime::Tokio1).build();
    let pool: ObservedDeadpool<Connections> =
        perf.observe_deadpool("db", pool.expect("it has a runtime"));
    let handler = async move || {
        let connection = pool.get().await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
        // What a query takes, in time that is simulated.
        sleep(ms(300)).await;
        drop(connection);
        Ok::<_, StatusCode>("tea")
    };
    let route = "/recommendations/{user_id}";
    let app = Router::new().route(route, get(handler)).layer(perf.layer());
    // 50 connections for 300 ms each serve 167 requests/s: a thousand users wait for 6 s.
    let test = LoadTest::new(app).get("/recommendations/7").users(1_000).virtual_time();
    let test = test.duration(Duration::from_secs(120)).threshold("p95 < 200ms");
    let report = test.warmup(Duration::from_secs(12)).run().await.expect("the plan is valid");
    let run = &report.runs[0];
    assert!(run.validity.reasons.is_empty(), "{:?}", run.validity);
    assert_eq!(report.verdict, Verdict::Fail);
    let p95 = run.client.response_time.summary.p95_us.expect("there are enough");
    assert!((5.9e6..6.1e6).contains(&p95), "{p95}");
    let hint = &run.hints[0];
    let route = format!("GET {route}");
    assert_eq!((&*hint.rule, hint.route.as_deref()), ("pool", Some(&*route)));
    let said = format!("p99 of {route}: 95 % waiting for db (50 of 50 in use, 950 waiting)");
    assert!(hint.message.starts_with(&said), "{}", hint.message);
    assert!(hint.message.contains("holds are flat, so size is the limit"), "{}", hint.message);
    assert!(page(&report).contains(&said), "{}", page(&report));
}

/// Memory was 348 MB at 10,000 entities; "3.5 GB projected" passed against a limit of 2 GB.
#[test]
fn a_projection_over_its_limit_fails_and_is_no_ratio() {
    const LIMIT: f64 = 2e9;
    // 48 MB without an entity, 30 kB for each, and some noise.
    let measured = [1_250, 2_500, 5_000, 7_500, 10_000_u64]
        .map(|n| [(n, 48_000_000 + 30_000 * n), (n, 48_100_000 + 30_000 * n)])
        .concat();
    let model = memory::fit(&measured, 100_000).expect("there are enough");
    let found = memory::judge(&model, LIMIT, Op::Less).judged(
        "memory at 100,000 entities < 2GB",
        "",
        Op::Less,
        LIMIT,
        Unit::Bytes,
    );
    let projected = found.observed.expect("there is a figure");
    assert!((3.0e9..3.1e9).contains(&projected), "not 3.48 GB: {projected}");
    let environment = Environment::here();
    let report =
        Report::of("memory".to_owned(), 0.0, environment, Vec::new(), vec![found], Some(model));
    assert_eq!(report.verdict, Verdict::Fail);
    assert!(page(&report).contains("1 of 1 requirements failed"), "{}", page(&report));
    assert!(page(&report).contains("extrapolation"), "{}", page(&report));
}

/// 23 of 32 benchmarks never ran, and the summary still said that all was complete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_ran_is_missed() {
    let app = Router::new().route("/{n}", get(|| async { "tea" })).layer(Perf::new().layer());
    let step = |mix: Scenario, n: u32| {
        let asks = move |_: &mut _| {
            let request = Request::get(format!("/{n}")).body(Bytes::new());
            request.expect("it is a request")
        };
        // Some are drawn a million times as often as the rest.
        mix.step(&format!("benchmark {n}"), if n < 9 { 1_000_000 } else { 1 }, asks)
    };
    let mix = (0..32).fold(Scenario::new(), step);
    let test = LoadTest::new(app).scenario(mix).users(4).requests(900).threshold("p95 < 1s");
    let incomplete = report(test.duration(Duration::from_secs(60))).await;
    let run = &incomplete.runs[0];
    assert_eq!((incomplete.verdict, rules(run)), (Verdict::Invalid, vec!["never_sent"]));
    let said = "23 of the 32 parts of the mix had no turn: benchmark 9, benchmark 10,";
    assert!(page(&incomplete).contains(said), "{}", page(&incomplete));

    // And a requirement on what does not exist is none that holds.
    let app = Router::new().route("/{n}", get(|| async { "tea" })).layer(Perf::new().layer());
    let mistyped = LoadTest::new(app).get("/1").users(4).duration(SHORT);
    let mistyped = report(mistyped.threshold(r#"p95{route="GET /{id}"} < 1s"#)).await;
    assert_eq!(mistyped.verdict, Verdict::Invalid);
    assert!(page(&mistyped).contains("routes seen: GET /{n}"), "{}", page(&mistyped));
}
