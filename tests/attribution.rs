//! Where the time of requests goes, as the report of a run has it.

use std::time::Duration;

use axum::{Router, routing::get};
use parallax_loadgen::{
    LoadTest,
    render::{Style, text},
    report::{Attribution, Report},
};
use parallax_middleware::Perf;
use sqlx::{postgres::PgPoolOptions, query};

use crate::support::postgres::Postgres;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// 1,000 users who ask for a query of 10 ms and then pause for a second, on a pool of so many connections.
async fn a_thousand_users(connections: u32) -> Report {
    let (perf, server) = (Perf::new(), Postgres::start());
    let pool = PgPoolOptions::new().min_connections(connections).max_connections(connections);
    let pool = perf.observe_sqlx("db", pool.connect(&server.url()).await.expect("it runs"));
    let handler = async move || {
        let slept = query("SELECT pg_sleep(0.01)").execute(&pool).await;
        slept.map(|_| ()).map_err(|error| error.to_string())
    };
    let app = Router::new().route("/work", get(handler)).layer(perf.layer());
    LoadTest::new(app)
        .get("/work")
        .users(1_000)
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
    let report = a_thousand_users(5).await;
    assert!(report.runs[0].validity.reasons.is_empty(), "{:?}", report.runs[0].validity);
    for quantile in [0.5, 0.9] {
        let group = at(&report, quantile);
        assert_eq!(group.dominant.as_deref(), Some("pool_wait:db"), "{group:?}");
        // Five at a time take 10 ms each: of a second, the query has a hundredth.
        assert!(group.shares["pool_wait:db"] > 0.8, "{group:?}");
        let sum: f64 = group.shares.values().sum();
        assert!((sum - 1.0).abs() < 1e-9, "{group:?}");
    }
    let page = text(&report, Style::default());
    assert!(page.contains("GET /work: pool_wait:db is"), "{page}");
    assert!(page.contains("pool db (sqlx), at most 5:"), "{page}");
    let row = &report.runs[0].client.routes[0];
    assert_eq!(row.attribution, report.runs[0].attribution, "it is the only route");

    let report = a_thousand_users(100).await;
    for group in &report.runs[0].attribution {
        assert_ne!(group.dominant.as_deref(), Some("pool_wait:db"), "{group:?}");
    }
    assert_eq!(at(&report, 0.5).dominant.as_deref(), Some("query:db"), "{:?}", at(&report, 0.5));
}
