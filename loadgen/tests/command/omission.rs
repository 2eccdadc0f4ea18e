//! Coordinated omission: what a server's stall costs everybody who was to be answered meanwhile.
//!
//! The server answers at once, but for one stall of a second. At 200 requests a second for 4 s, 800 are due, 200 of
//! them in the stall: the one that was due at `t` of it waits for `1 s - t`. So a share of `1 - q` of all requests waits
//! for longer than `1 s - 4 s * (1 - q)`: the quantile `q` of the response time is 0.96 s at 99 %, 0.8 s at 95 %,
//! 0.6 s at 90 %, and at 50 % it is that of a server that does not stall.

use std::time::Duration;

use serde_json::Value;

use super::{
    command, output,
    run::{quickly, report},
    server::Server,
};

const STALL: Duration = Duration::from_secs(1);

fn driven(flags: &[&str]) -> Value {
    // Some way into the run, whichever of the two it is.
    let (server, folder) =
        (Server::that_stalls(100, STALL), tempfile::tempdir().expect("a folder"));
    let flags = [flags, &["--duration", "4s"]].concat();
    output(&mut command(&quickly(&server.url, folder.path(), &flags)));
    let run = report(folder.path())["runs"][0].take();
    assert_eq!(run["conservation"]["unexplained"], 0, "{run}");
    assert_eq!(run["conservation"]["ok"], run["conservation"]["scheduled"], "{run}");
    run
}

fn seconds(latency: &Value, quantile: &str) -> f64 {
    latency[quantile].as_f64().unwrap_or_else(|| panic!("no {quantile} in {latency}")) / 1e6
}

#[test]
fn a_rate_shows_the_stall_of_everybody_who_was_due_in_it() {
    let run = driven(&["--rate", "200"]);
    let response = &run["client"]["response_time"];
    assert_eq!(run["conservation"]["scheduled"], 800);
    for (quantile, at_least) in [("p99_us", 0.96), ("p95_us", 0.8), ("p90_us", 0.6)] {
        let seen = seconds(response, quantile);
        // Bounds from below, less a bucket's width: a busy machine makes waiting longer, never shorter.
        assert!(seen >= at_least * 0.95, "{quantile}: {seen} s, expected {at_least} s: {response}");
    }
    // Three quarters were not due in the stall.
    assert!(seconds(response, "p50_us") < 0.5, "{response}");
}

#[test]
fn a_user_who_waits_for_the_answer_feels_it_once() {
    let run = driven(&["--users", "1", "--think-time", "5ms"]);
    let (service, sent) = (&run["client"]["service_time"], &run["conservation"]["sent"]);
    // One request of hundreds, so the 99th percentile knows nothing of it, and the maximum all.
    assert!(sent.as_u64() > Some(200), "{sent}");
    assert!(seconds(service, "p99_us") < 0.5, "{service}");
    assert!(seconds(service, "max_us") >= 0.95, "{service}");
}
