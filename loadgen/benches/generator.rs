//! What the generator costs: `cargo bench -p parallax-loadgen --bench generator`.
#![allow(missing_docs, reason = "a benchmark has no API")]

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use http::Request;
use http_body::Body as _;
use parallax_loadgen::LoadTest;
use parallax_middleware::Perf;
use tokio::time::{Instant, sleep};
use tower_service::Service;

const SLICE: Duration = Duration::from_millis(500);
const ROUNDS: usize = 5;

fn app() -> Router {
    Router::new().route("/", get(|| async { "ok" })).layer(Perf::new().layer()).with_state(())
}

async fn raw(app: &Router, tasks: usize) -> f64 {
    let stop = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let all: Vec<_> = (0..tasks)
        .map(|_| {
            let (mut app, stop, done) = (app.clone(), stop.clone(), done.clone());
            tokio::spawn(async move {
                let mut n = 0;
                while !stop.load(Relaxed) {
                    let request = Request::get("/").body(Body::empty()).expect("valid");
                    let response = app.call(request).await.expect("infallible");
                    let mut body = response.into_body();
                    while let Some(frame) =
                        poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await
                    {
                        std::hint::black_box(frame.ok());
                    }
                    n += 1;
                    tokio::task::coop::consume_budget().await;
                }
                done.fetch_add(n, Relaxed);
            })
        })
        .collect();
    sleep(SLICE).await;
    stop.store(true, Relaxed);
    let took = start.elapsed();
    for task in all {
        task.await.expect("ends");
    }
    done.load(Relaxed) as f64 / took.as_secs_f64()
}

async fn generator(app: &Router, users: usize) -> f64 {
    let report = LoadTest::new(app.clone())
        .get("/")
        .users(users)
        .warmup(Duration::ZERO)
        .duration(SLICE)
        .run()
        .await
        .expect("valid");
    assert_eq!(report.runs[0].pairs.paired, report.runs[0].conservation.outcomes.ok);
    report.runs[0].client.rate
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let app = app();
    for _ in 0..ROUNDS {
        let a = raw(&app, 64).await;
        let b = generator(&app, 64).await;
        println!("raw {a:.0}/s, generator {b:.0}/s, {:.2}", b / a);
    }
}
