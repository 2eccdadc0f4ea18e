//! What each transport costs on this machine: `cargo run --release -p parallax-loadgen --example transports`.
//!
//! One plan over a call, a pipe, a Unix socket and TCP, each with HTTP/1.1 and HTTP/2, of a service that does
//! hardly anything, so that all there is to see is the way to it.

use std::{error::Error, time::Duration};

use axum::{Json, Router, extract::Path, routing::get};
use parallax_loadgen::{LoadTest, Transport, render};
use parallax_middleware::Perf;

async fn item(Path(id): Path<u64>) -> Json<(u64, &'static str)> {
    Json((id, "a pot of tea, freshly made, with milk in a jug beside it"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let transports = ["direct", "pipe", "pipe:h2", "unix", "unix:h2", "tcp", "tcp:h2"];
    let transports =
        transports.into_iter().map(str::parse).collect::<Result<Vec<Transport>, _>>()?;
    let app = || Router::new().route("/items/{id}", get(item)).layer(Perf::new().layer());
    let test = |name| {
        LoadTest::new(app())
            .name(name)
            .get("/items/7")
            .warmup(Duration::from_secs(1))
            .duration(Duration::from_secs(5))
    };
    let tests = [
        // What a request takes.
        test("one user").users(1),
        // The same, when the runtime has other things to do as well.
        test("5,000 requests a second").rate(5_000),
        // What the machine can carry.
        test("64 users").users(64),
    ];
    for test in tests {
        let report = test.compare(transports.clone()).await?;
        let text = render::text(&report, render::Style::default());
        // The table of costs alone; the rest is about each run.
        let table = text.lines().skip_while(|line| !line.starts_with("What each transport costs"));
        println!("{}", report.title);
        table.take_while(|line| !line.is_empty()).for_each(|line| println!("{line}"));
        println!();
    }
    Ok(())
}
