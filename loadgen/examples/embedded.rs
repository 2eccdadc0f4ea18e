//! The command around a service of its own, which is driven in this process.
//!
//! `cargo run --release -p parallax-loadgen --example embedded -- '/search?q=tea' --rate 2000` is a program;
//! in a service's own crate it would be `src/bin/load.rs`. The same file is a benchmark in `benches/load.rs`, with
//!
//! ```toml
//! [[bench]]
//! name = "load"
//! harness = false
//! ```
//!
//! in `Cargo.toml`: then it is `cargo bench --bench load -- '/search?q=tea' --rate 2000`.

use std::{process::ExitCode, time::Duration};

use axum::{Router, extract::Path, routing::get};
use parallax_middleware::Perf;

/// What a service has anyway.
async fn app() -> Router {
    Router::new()
        .route("/", get(|| async { "hello" }))
        .route("/search", get(|| async { "tea" }))
        .route("/slow/{ms}", get(slow))
        .layer(Perf::new().layer())
}

async fn slow(Path(ms): Path<u64>) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

fn main() -> ExitCode {
    parallax_loadgen::cli::main("the embedded example", || async { app().await })
}
