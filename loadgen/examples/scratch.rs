//! x
use axum::{Router, routing::get};
use parallax_loadgen::LoadTest;
use parallax_middleware::Perf;
use std::time::Duration;
#[tokio::main]
async fn main() {
    let app = Router::new()
        .route("/search", get(|| async { "tea" }))
        .route(
            "/slow",
            get(|| async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                "x"
            }),
        )
        .layer(Perf::new().layer());
    for mode in ["closed", "open", "slow"] {
        let t = LoadTest::new(app.clone())
            .name(mode)
            .duration(Duration::from_secs(2))
            .warmup(Duration::from_millis(500));
        let t = match mode {
            "closed" => t.get("/search?q=tea").get("/slow").users(100),
            "open" => t.get("/search?q=tea").rate(10_000),
            _ => t.get("/slow").rate(2000),
        };
        let r = t
            .threshold("p95 < 20ms")
            .threshold("errors<1%")
            .threshold("rate >= 1000/s")
            .on_progress(|p| {
                eprintln!(
                    "{} {:?} {:?} {} {} {:?}",
                    p.run, p.stage, p.elapsed, p.rate as u64, p.in_flight, p.p99
                )
            })
            .run()
            .await
            .unwrap();
        println!(
            "{}",
            parallax_loadgen::render::text(&r, parallax_loadgen::render::Style { color: false })
        );
    }
}
