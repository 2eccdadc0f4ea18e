//! Load over connections: of a service in this process, and of any server by its URL.

// Servers that break off, stall, talk nonsense or close their connections.
mod misbehaving;
// A service of this process behind each transport.
mod own;
// Servers that are known by a URL alone.
mod servers;
// Servers over TLS.
mod tls;

use std::time::Duration;

use parallax_loadgen::{
    Http, InProcess, LoadTest, Transport,
    report::{Conservation, Run},
};

const SHORT: Duration = Duration::from_millis(250);

/// Every transport that has connections.
const CONNECTIONS: [Transport; 6] = [
    Transport::Pipe(Http::One),
    Transport::Pipe(Http::Two),
    Transport::Tcp(Http::One),
    Transport::Tcp(Http::Two),
    Transport::Unix(Http::One),
    Transport::Unix(Http::Two),
];

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn run<S: InProcess>(test: LoadTest<S>) -> Run {
    test.warmup(millis(50)).duration(SHORT).run_part().await.expect("the plan is valid")
}

/// Every request is accounted for, and the layer, if one answered, counted the same ones.
fn assert_conserved(conservation: &Conservation) {
    let c = conservation;
    assert_eq!(c.unexplained, 0, "{c:#?}");
    assert_eq!(c.scheduled, c.dropped + c.sent + c.unsent, "{c:#?}");
    assert_eq!(c.sent, c.outcomes.total() + c.in_flight, "{c:#?}");
    assert_eq!(c.in_flight, 0, "{c:#?}");
    assert!(c.sent > 0);
}

/// The errors that were told are those that were counted, and one of them says `text`.
fn assert_told(run: &Run, text: &str) {
    let told: u64 = run.errors.iter().map(|error| error.count).sum();
    assert_eq!(told, run.conservation.outcomes.transport_error, "{:?}", run.errors);
    assert!(run.errors.iter().any(|error| error.message.contains(text)), "{:?}", run.errors);
}
