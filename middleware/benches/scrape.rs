//! What a scrape costs: `cargo bench -p parallax-middleware --features prometheus --bench scrape`.
//!
//! A service of 500 routes, all of which are asked for on all workers. First how long `GET /perf/metrics` takes
//! while nothing else happens. Then rounds of load with and without a scrape a second, in turn, in the same
//! process: what counts is the median over the pairs of rounds of what scraping makes of a round's p99. The
//! table goes into `docs/performance.md`, between its markers.
//!
//! `-- alone` leaves the load away, and prints.
#![allow(missing_docs, reason = "a benchmark has no API")]

#[allow(dead_code, reason = "not every benchmark counts instructions")]
mod support;

use std::{env, fmt::Write as _, hint::black_box, time::Duration};

use axum::{Router, body::Body, routing::get};
use http::Request;
use http_body_util::BodyExt;
use parallax_middleware::{LatencyHistogram, Perf, Precision};
use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, interval, sleep},
};
use tower::ServiceExt;

use crate::support::{median, write_tables};

const ROUTES: usize = 500;
const WORKERS: usize = 2;
const SCRAPES: usize = 101;
/// Pairs of rounds.
const PAIRS: usize = 30;
const ROUND: Duration = Duration::from_secs(2);
/// Prometheus' own default is a minute.
const EVERY: Duration = Duration::from_secs(1);
/// Users that ask, wait for the answer, think, and ask again.
const USERS: usize = 8;
const THINK: Duration = Duration::from_millis(1);

struct Bench {
    perf: Perf,
    app: Router,
}

impl Bench {
    fn new() -> Self {
        let perf = Perf::new();
        let mut routes = Router::new();
        for n in 0..ROUTES {
            let perf = perf.clone();
            let handler = async move || {
                perf.observe("render", work()).await;
                "a page"
            };
            routes = routes.route(&path(n), get(handler));
        }
        let app = routes.layer(perf.layer()).merge(perf.routes());
        Self { perf, app }
    }

    async fn ask(&self, path: &str) -> usize {
        let request = Request::get(path).body(Body::empty()).expect("a path");
        let Ok(response) = self.app.clone().oneshot(request).await;
        assert!(response.status().is_success(), "{path}: {}", response.status());
        response.into_body().collect().await.expect("it is whole").to_bytes().len()
    }

    /// Requests on every route from every worker, with times all over.
    async fn warm(self: &std::sync::Arc<Self>, times: usize) {
        let mut tasks = JoinSet::new();
        for _ in 0..4 * WORKERS {
            let bench = self.clone();
            tasks.spawn(async move {
                for _ in 0..times {
                    for n in 0..ROUTES {
                        black_box(bench.ask(&path(n)).await);
                    }
                }
            });
        }
        tasks.join_all().await;
    }

    /// How long users waited for their answers.
    async fn round(
        self: &std::sync::Arc<Self>,
        length: Duration,
        scraped: bool,
    ) -> LatencyHistogram {
        let mut users = JoinSet::new();
        let end = Instant::now() + length;
        for user in 0..USERS {
            let bench = self.clone();
            users.spawn(async move {
                let mut times = LatencyHistogram::with_precision(Precision::ThreeDigits);
                for n in (user * ROUTES / USERS).. {
                    let path = path(n % ROUTES);
                    let began = Instant::now();
                    if began >= end {
                        break;
                    }
                    black_box(bench.ask(&path).await);
                    times.record(began.elapsed());
                    sleep(THINK).await;
                }
                times
            });
        }
        let scraper = scraped.then(|| {
            let bench = self.clone();
            tokio::spawn(async move {
                let mut ticks = interval(EVERY);
                loop {
                    ticks.tick().await;
                    black_box(bench.ask("/perf/metrics").await);
                }
            })
        });
        let mut all = LatencyHistogram::with_precision(Precision::ThreeDigits);
        users.join_all().await.iter().for_each(|times| all.merge(times));
        if let Some(scraper) = scraper {
            scraper.abort();
        }
        all
    }
}

fn path(n: usize) -> String {
    format!("/shops/{}/offers/{n}", n % 10)
}

/// Some tens of microseconds, and a turn for others.
async fn work() {
    let mut sum = 0_u64;
    for n in 0..20_000_u64 {
        sum = black_box(sum.wrapping_mul(31).wrapping_add(n));
    }
    yield_now().await;
}

/// Milliseconds.
fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn quantile(times: &LatencyHistogram, q: f64) -> f64 {
    times.quantile(q).map_or(f64::NAN, ms)
}

async fn run() -> String {
    let bench = std::sync::Arc::new(Bench::new());
    bench.warm(40).await;
    let (mut snapshots, mut scrapes, mut bytes) = (Vec::new(), Vec::new(), 0);
    for _ in 0..SCRAPES {
        let began = Instant::now();
        black_box(bench.perf.snapshot());
        snapshots.push(ms(began.elapsed()));
        let began = Instant::now();
        bytes = bench.ask("/perf/metrics").await;
        scrapes.push(ms(began.elapsed()));
    }
    let slowest = scrapes.iter().copied().fold(0.0, f64::max);
    if env::args().any(|argument| argument == "alone") {
        return format!(
            "a snapshot {:.1} ms, a scrape {:.1} ms, the slowest {slowest:.1} ms, {:.1} MB\n",
            median(snapshots),
            median(scrapes),
            bytes as f64 / 1e6
        );
    }

    let mut rounds = [Vec::new(), Vec::new()];
    for pair in 0..PAIRS {
        for step in 0..2 {
            // Another one is first in each pair.
            let scraped = (step + pair) % 2;
            rounds[scraped].push(bench.round(ROUND, scraped == 1).await);
        }
    }
    let [without, with] = rounds.map(|rounds| {
        [0.5, 0.99].map(|q| rounds.iter().map(|times| quantile(times, q)).collect::<Vec<_>>())
    });
    let more = |n: usize| {
        let ratios = with[n].iter().zip(&without[n]).map(|(with, without)| with / without - 1.0);
        median(ratios.collect()) * 100.0
    };
    let (p50, p99) = (more(0), more(1));
    let [[p50_without, p99_without], [p50_with, p99_with]] =
        [without, with].map(|quantiles| quantiles.map(median));
    let mut table = format!("| {ROUTES} routes | |\n|---|---:|\n");
    let mut line = |what: &str, figure: String| {
        let _ = writeln!(table, "| {what} | {figure} |");
    };
    line("a snapshot, median", format!("{:.1} ms", median(snapshots)));
    line("a scrape, snapshot included, median", format!("{:.1} ms", median(scrapes)));
    line(&format!("a scrape, slowest of {SCRAPES}"), format!("{slowest:.1} ms"));
    line("its text", format!("{:.1} MB", bytes as f64 / 1e6));
    line("p50 of users, without scrapes", format!("{p50_without:.3} ms"));
    line("p50 with a scrape a second", format!("{p50_with:.3} ms, {p50:+.1} %"));
    line("p99 of users, without scrapes", format!("{p99_without:.3} ms"));
    line("p99 with a scrape a second", format!("{p99_with:.3} ms, {p99:+.1} %"));
    table
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .expect("a runtime");
    if !env::args().any(|argument| argument == "--bench") {
        // `cargo test --benches`: only that it runs.
        runtime.block_on(async {
            let bench = std::sync::Arc::new(Bench::new());
            bench.warm(1).await;
            bench.round(Duration::from_millis(50), true).await;
        });
        return;
    }
    let table = runtime.block_on(async { tokio::spawn(run()).await.expect("no panic") });
    print!("{table}");
    if table.starts_with('|') {
        write_tables("performance.md", "scrape", &table);
    }
}
