//! Where the time of requests goes, as the report of a run has it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use deadpool_redis::{Manager, Pool, redis::cmd};
use parallax_loadgen::{
    LoadTest,
    render::{Style, text},
    report::{Attribution, Report},
};
use parallax_middleware::Perf;
use sqlx::{postgres::PgPoolOptions, query};

use crate::support::{postgres::Postgres, redis::Redis};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// 1,000 users who ask for a query of 50 ms and then pause for a second, on a pool of so many connections.
async fn a_thousand_users(connections: u32) -> Report {
    let (perf, server) = (Perf::new(), Postgres::start());
    let pool = PgPoolOptions::new().min_connections(connections).max_connections(connections);
    let pool = perf.observe_sqlx("db", pool.connect(&server.url()).await.expect("it runs"));
    let handler = async move || {
        let slept = query("SELECT pg_sleep(0.05)").execute(&pool).await;
        slept.map(|_| ()).map_err(|error| error.to_string())
    };
    asked(Router::new().route("/work", get(handler)).layer(perf.layer()), 1_000).await
}

/// So many users who ask for work and then pause for a second.
async fn asked(app: Router, users: usize) -> Report {
    LoadTest::new(app)
        .get("/work")
        .users(users)
        .think_time(ms(1_000))
        .warmup(ms(2_500))
        .duration(ms(4_000))
        .run()
        .await
        .expect("the plan is valid")
}

fn at(report: &Report, quantile: f64) -> &Attribution {
    let mut groups = report.runs[0].attribution.iter();
    groups.find(|group| group.quantile == quantile).expect("there are enough requests")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_too_small_dominates_and_one_that_is_large_enough_does_not() {
    let report = a_thousand_users(20).await;
    assert!(report.runs[0].validity.reasons.is_empty(), "{:?}", report.runs[0].validity);
    for quantile in [0.5, 0.9] {
        let group = at(&report, quantile);
        assert_eq!(group.dominant.as_deref(), Some("pool_wait:db"), "{group:?}");
        // Twenty at a time take 50 ms each: of two and a half seconds, the query has a fiftieth.
        assert!(group.shares["pool_wait:db"] > 0.8, "{group:?}");
        let sum: f64 = group.shares.values().sum();
        assert!((sum - 1.0).abs() < 1e-9, "{group:?}");
    }
    let page = text(&report, Style::default());
    assert!(page.contains("GET /work: pool_wait:db is"), "{page}");
    assert!(page.contains("pool db (sqlx), at most 20:"), "{page}");
    let row = &report.runs[0].client.routes[0];
    assert_eq!(row.attribution, report.runs[0].attribution, "it is the only route");

    assert_waits_for(&report, "db");

    let report = a_thousand_users(100).await;
    let rules = || report.runs[0].hints.iter().map(|hint| &*hint.rule);
    assert!(
        rules().all(|rule| rule != "pool") && rules().any(|rule| rule == "query"),
        "{report:?}"
    );
    for group in &report.runs[0].attribution {
        assert_ne!(group.dominant.as_deref(), Some("pool_wait:db"), "{group:?}");
    }
    assert_eq!(at(&report, 0.5).dominant.as_deref(), Some("query:db"), "{:?}", at(&report, 0.5));
}

/// The first hint is that the pool of this name is the limit.
fn assert_waits_for(report: &Report, pool: &str) {
    let hint = &report.runs[0].hints[0];
    assert_eq!((&*hint.rule, hint.route.as_deref()), ("pool", Some("GET /work")), "{hint:?}");
    let beginnings = ["p99 of GET /work: ", "p90 of GET /work: "];
    assert!(beginnings.iter().any(|p| hint.message.starts_with(p)), "{hint:?}");
    assert!(hint.message.contains(&format!(" % waiting for {pool} (")), "{hint:?}");
    // Or, on a machine whose speed changes, what it can be.
    let so =
        ["holds are flat, so size is the limit", "connections are held for too long", "holds rise"];
    assert!(so.iter().any(|so| hint.message.contains(so)), "{hint:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_of_redis_that_is_too_small_is_named_as_well() {
    let (perf, redis) = (Perf::new(), Redis::start());
    let manager = Manager::new(redis.url()).expect("a valid address");
    let pool = Pool::builder(manager).max_size(10).build().expect("it has no timeouts");
    let pool = perf.observe_redis("prices", pool);
    // Waits for what never comes, for 50 ms.
    let handler = async move || {
        let mut connection = pool.get().await.map_err(|error| error.to_string())?;
        let waited = cmd("BLPOP").arg("nothing").arg(0.05).exec_async(&mut connection).await;
        waited.map_err(|error| error.to_string())
    };
    let app = Router::new().route("/work", get(handler)).layer(perf.layer());
    let report = asked(app, 500).await;
    assert_eq!(
        report.runs[0].conservation.outcomes.failed(),
        0,
        "{:?}",
        report.runs[0].conservation
    );
    assert_waits_for(&report, "prices");
}

/// Two routes that only sleep, and the moment at which every thread of their runtime is held up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moment_in_which_the_whole_runtime_stands_still_is_found() {
    let calls = Arc::new(AtomicU64::new(0));
    let slept = async move || {
        // In the middle of the run, as half of 1,000 requests a second come here.
        if calls.fetch_add(1, Relaxed) == 1_500 {
            for _ in 0..2 {
                tokio::spawn(async { std::thread::sleep(ms(250)) });
            }
        }
        tokio::time::sleep(ms(2)).await;
    };
    let other = || async { tokio::time::sleep(ms(2)).await };
    let app = Router::new().route("/a", get(slept)).route("/b", get(other));
    let test = LoadTest::new(app.layer(Perf::new().layer())).get("/a").get("/b").rate(1_000);
    let report = test.warmup(ms(500)).duration(ms(6_000)).run().await.expect("the plan is valid");
    let run = &report.runs[0];
    let in_time = |at_s: f64| (2.0..3.0).contains(&at_s);
    assert!(run.stalls.iter().any(|stall| in_time(stall.at_s)), "{:?}", run.stalls);
    let hint = run.hints.iter().find(|hint| hint.rule == "stall").expect("there is one");
    assert!(hint.message.starts_with("all routes were slow at once"), "{hint:?}");
}
