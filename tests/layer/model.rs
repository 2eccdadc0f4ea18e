//! Random requests over several threads, held against a plain model: what is recorded is exactly what the
//! scripts say, to the last bucket.

// What must be recorded, worked out from the script alone.
mod reference;
// The service, the clients and the threads that do what a script says.
mod running;
// What each request does, at random.
mod script;

use std::{
    sync::{Arc, Barrier},
    thread,
};

use axum::{Router, routing::get};
use futures_util::FutureExt;
use parallax_middleware::{LatencyHistogram, Outcome, Perf, RouteCounts, Snapshot, TrafficCounts};
use proptest::prelude::*;
use tower::ServiceExt;

use crate::{
    layer::model::{
        reference::Model,
        running::{Recorded, run},
        script::{Script, scripts},
    },
    support::rig::request,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_recorded_is_what_the_requests_did(script in scripts(2..5, 0..40)) {
        let perf = Perf::new();
        let mut watcher = Watcher::default();
        let recorded = run(&perf, &script, 1, |snapshot| watcher.see(snapshot));
        assert_script(&script, 1, &perf.snapshot(), &recorded);
        watcher.see(perf.snapshot());
    }

    #[test]
    fn snapshots_survive_json_and_add_up_in_any_order(
        scripts in prop::array::uniform3(scripts(1..3, 0..15)),
    ) {
        let mut model = Model::default();
        let [a, b, c] = scripts.map(|script| {
            let perf = Perf::new();
            run(&perf, &script, 1, |_| ());
            model.add(&script, 1);
            perf.snapshot()
        });
        for snapshot in [&a, &b, &c] {
            let json = serde_json::to_string(snapshot).expect("it can be written");
            let read: Snapshot = serde_json::from_str(&json).expect("it is ours");
            assert!(read == *snapshot, "{json}");
        }
        let merged = |one: &Snapshot, other: &Snapshot| {
            let mut sum = one.clone();
            sum.merge(other);
            sum
        };
        assert!(merged(&a, &b) == merged(&b, &a));
        let all = merged(&merged(&a, &b), &c);
        assert!(all == merged(&a, &merged(&b, &c)));
        model.assert_recorded(&all);
    }
}

proptest! {
    // Each two hundred times as large: two threads must meet at the same counter at the same time.
    #![proptest_config(ProptestConfig::with_cases(3))]

    #[test]
    fn threads_that_find_no_place_of_their_own_count_exactly_too(script in scripts(4..5, 5..15)) {
        const ROUNDS: usize = 200;
        let crowd = Crowd::gather();
        let perf = Perf::new();
        let mut watcher = Watcher::default();
        let recorded = run(&perf, &script, ROUNDS, |snapshot| watcher.see(snapshot));
        assert_script(&script, ROUNDS, &perf.snapshot(), &recorded);
        drop(crowd);
    }
}

#[tokio::test(start_paused = true)]
async fn intervals_lose_no_time_of_a_request_that_ends_while_the_counters_are_read() {
    let perf = Perf::new();
    let app = Router::new().route("/", get(async || "here")).layer(perf.layer());
    let send = || app.clone().oneshot(request("GET", "/"));
    send().await.expect("infallible");
    let earlier = perf.snapshot();
    send().await.expect("infallible");
    let later = perf.snapshot();
    // Outcomes are read before times. What ends in between is in the times alone.
    let [mut caught, times] = [&earlier, &later]
        .map(|snapshot| serde_json::to_value(snapshot).expect("it can be written"));
    for histogram in ["ok", "first_byte"] {
        caught["routes"][0]["users"][histogram] = times["routes"][0]["users"][histogram].clone();
    }
    let caught: Snapshot = serde_json::from_value(caught).expect("it is ours");

    let mut sum = earlier.clone();
    for interval in [caught.since(&earlier), later.since(&caught)] {
        sum.merge(&interval);
    }
    let [sum, later] =
        [&sum, &later].map(|snapshot| counters(snapshot.route("GET", "/").expect("a row")));
    assert_eq!(sum, later);
}

/// Asserts that a run's sums, and the record of each request that carried a probe, are what its script says.
fn assert_script(script: &Script, rounds: usize, sums: &Snapshot, recorded: &[Recorded<'_>]) {
    let mut model = Model::default();
    model.add(script, rounds);
    model.assert_recorded(sums);
    for (request, record) in recorded {
        assert_eq!(record.is_some(), request.paired);
        let Some(record) = record else { continue };
        let expected = request.ended();
        let found = (record.outcome, record.server_time, record.first_byte, record.bypassed);
        let wanted =
            (expected.outcome, expected.server_time, expected.first_byte, expected.bypassed);
        assert_eq!(found, wanted, "outcome, server time, first byte, bypassed of {request:#?}");
    }
}

/// Sees snapshots that are taken while requests come and go, one after the other.
#[derive(Default)]
struct Watcher {
    first: Option<Snapshot>,
    last: Option<Snapshot>,
}

impl Watcher {
    /// Asserts that `now` can be true, and can follow what was seen before.
    fn see(&mut self, now: Snapshot) {
        for (key, counts) in now.routes() {
            let of_outcomes: u64 = Outcome::ALL.map(|outcome| counts.outcome(outcome)).iter().sum();
            assert_eq!(counts.recorded(), of_outcomes, "{key}");
            assert!(counts.entered >= counts.recorded(), "{key}: more ends than beginnings");
            for traffic in [&counts.users, &counts.bypassed] {
                let streams = traffic.streams;
                assert!(streams.opened >= streams.ended, "{key}: {streams:?}");
                let timed = histograms(traffic).map(|(name, histogram)| {
                    let of_buckets: u64 = histogram.buckets().map(|(.., n)| n).sum();
                    assert_eq!(histogram.count(), of_buckets, "{key}: {name}");
                    histogram.count()
                });
                // Whoever sees a request's outcome sees its time.
                let [ok, _, limited, failed] = timed;
                let timed = ok + limited + failed + streams.ended;
                assert!(timed >= traffic.recorded(), "{key}: an outcome without its time");
                assert!(limited >= traffic.outcome(Outcome::Limited), "{key}: limited");
            }
        }
        for earlier in self.last.iter().chain(&self.first) {
            assert_follows(earlier, &now);
        }
        self.first.get_or_insert_with(|| now.clone());
        self.last = Some(now);
    }
}

/// Asserts that no counter goes back, and that what lies between makes one of the other.
fn assert_follows(earlier: &Snapshot, later: &Snapshot) {
    let mut sum = earlier.clone();
    sum.merge(&later.since(earlier));
    for (key, now) in later.routes() {
        let Some(sum) = sum.route(key.method(), key.template()) else {
            // A row is there a moment before its first request is counted.
            assert_eq!(now.entered, 0, "{key} is missing");
            continue;
        };
        if let Some(then) = earlier.route(key.method(), key.template()) {
            for (now, then) in counters(now).into_iter().zip(counters(then)) {
                assert!(now >= then, "{key}: {now:?} after {then:?}");
            }
            assert!(now.entered >= then.entered);
            for (now, then) in traffic(now).into_iter().zip(traffic(then)) {
                assert!(now.streams.opened >= then.streams.opened);
            }
        }
        assert_eq!(counters(sum), counters(now), "{key}");
        let both = |counts| traffic(counts).into_iter().flat_map(histograms);
        for ((name, sum), (_, now)) in both(sum).zip(both(now)) {
            assert_eq!(sum.count(), now.count(), "{key}: {name}");
            // Not the means: a value may be in its bucket a moment before it is in the sum.
            assert!(sum.buckets().eq(now.buckets()), "{key}: {name}");
        }
    }
}

/// Everything that only grows, but what is in flight as well: an interval begins with that.
fn counters(counts: &RouteCounts) -> Vec<(&'static str, u64)> {
    let of_traffic = |counts: &TrafficCounts| {
        let outcomes =
            Outcome::ALL.map(|outcome| ("requests of one outcome", counts.outcome(outcome)));
        let histograms = histograms(counts).map(|(name, histogram)| (name, histogram.count()));
        let others = [
            ("response bytes", counts.response_bytes),
            ("streams that ended", counts.streams.ended),
            ("time of streams", counts.streams.sum_ns),
        ];
        outcomes.into_iter().chain(histograms).chain(others).collect::<Vec<_>>()
    };
    let others = [
        ("paired", counts.paired),
        ("admitted", counts.limiter.admitted),
        ("rejected by the limiter", counts.limiter.limited),
    ];
    traffic(counts).into_iter().flat_map(of_traffic).chain(others).collect()
}

fn traffic(counts: &RouteCounts) -> [&TrafficCounts; 2] {
    [&counts.users, &counts.bypassed]
}

fn histograms(counts: &TrafficCounts) -> [(&'static str, &LatencyHistogram); 4] {
    [
        ("ok", &counts.ok),
        ("first byte", &counts.first_byte),
        ("limited", &counts.limited),
        ("failed", &counts.failed),
    ]
}

/// More threads than there are places to count in alone, each with its place taken, until they leave.
struct Crowd {
    leave: Arc<Barrier>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Crowd {
    const SIZE: usize = 64;

    fn gather() -> Self {
        let perf = Perf::new();
        let app = Router::new().route("/", get(async || "here")).layer(perf.layer());
        let [here, leave] = [(); 2].map(|()| Arc::new(Barrier::new(Self::SIZE + 1)));
        let threads = (0..Self::SIZE)
            .map(|_| {
                let (app, here, leave) = (app.clone(), here.clone(), leave.clone());
                thread::spawn(move || {
                    let answer = app.oneshot(request("GET", "/")).now_or_never();
                    assert!(answer.is_some(), "nothing waits");
                    here.wait();
                    leave.wait();
                })
            })
            .collect();
        here.wait();
        assert_eq!(perf.snapshot().recorded(), Self::SIZE as u64);
        Self { leave, threads }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.leave.wait();
        for thread in self.threads.drain(..) {
            thread.join().expect("nobody panics");
        }
    }
}
