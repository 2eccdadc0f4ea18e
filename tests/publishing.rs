//! `Perf::publish`: what a recorder of the `metrics` facade is told, after real requests.

use std::{collections::BTreeMap, time::Duration};

use metrics_util::{
    CompositeKey, MetricKind,
    debugging::{DebugValue, DebuggingRecorder, Snapshotter},
};
use parallax_middleware::Perf;
use tokio::task::JoinHandle;

use crate::{
    exposition::{busy, scrape},
    support::eventually,
};

/// Everything that was told since this was asked last: counters and gauges stay, histograms are taken out.
fn told(snapshotter: &Snapshotter) -> BTreeMap<String, (MetricKind, DebugValue)> {
    let name = |key: &CompositeKey| {
        let labels =
            key.key().labels().map(|label| format!("{}=\"{}\"", label.key(), label.value()));
        format!("{}{{{}}}", key.key().name(), labels.collect::<Vec<_>>().join(","))
    };
    let rows = snapshotter.snapshot().into_vec().into_iter();
    rows.map(|(key, .., value)| (name(&key), (key.kind(), value))).collect()
}

/// How many values a histogram was given, and their sum in seconds.
fn values(value: &(MetricKind, DebugValue)) -> (usize, f64) {
    let (MetricKind::Histogram, DebugValue::Histogram(values)) = value else {
        panic!("it is no histogram: {value:?}")
    };
    (values.len(), values.iter().map(|value| value.into_inner()).sum())
}

async fn ended(publishing: JoinHandle<()>) {
    publishing.await.expect("it does not panic");
}

// One test: the recorder is that of the whole process.
#[tokio::test]
async fn a_recorder_is_told_everything_once_and_the_rest_with_the_last_handle() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().expect("no other test installs one");
    let rig = busy().await;
    let text = scrape(&rig).await;
    let publishing = tokio::spawn(rig.perf.publish(Duration::from_millis(5)));
    let first = eventually("it is published", async || {
        Some(told(&snapshotter)).filter(|told| told.contains_key("parallax_uptime_seconds{}"))
    });
    let first = first.await;

    // Counters are as they are scraped, by the same names.
    let mut counters = 0;
    for (name, value) in &first {
        if let (MetricKind::Counter, DebugValue::Counter(n)) = value {
            let name = name.strip_suffix("{}").unwrap_or(name);
            assert!(text.contains(&format!("\n{name} {n}\n")), "{name} {n}");
            counters += 1;
        }
    }
    assert!(counters > 30, "{counters}");
    let items = r#"http_request_method="GET",http_route="/items/{id}",traffic="users""#;
    let duration = format!("http_server_request_duration_seconds{{{items},result=\"ok\"}}");
    let slow = "http_server_request_duration_seconds{http_request_method=\"GET\",http_route=\"/slow\",\
                traffic=\"users\",result=\"ok\"}";
    assert_eq!(values(&first[&duration]).0, 37);
    // In the middle of its bucket: within 0.8 % of what it was.
    let seconds =
        rig.perf.snapshot().route("GET", "/slow").expect("it was asked for").users.ok.sum();
    let (count, sum) = values(&first[slow]);
    assert_eq!(count, 1);
    assert!((sum / seconds.as_secs_f64() - 1.0).abs() < 0.008, "{sum} for {seconds:?}");
    // The facade's counters are whole numbers.
    assert!(matches!(first["process_cpu_seconds_total{}"], (MetricKind::Gauge, _)));

    // What comes later is told once more each, the very last included.
    let broken = "http_server_request_duration_seconds{http_request_method=\"GET\",http_route=\"/broken\",\
                  traffic=\"users\",result=\"failed\"}";
    let bypassing = crate::support::rig::with_pass(crate::support::rig::request("GET", "/broken"));
    rig.send(bypassing).await;
    drop(rig);
    ended(publishing).await;
    let last = told(&snapshotter);
    let bypassed = broken.replace("users", "bypassed");
    assert_eq!(values(&last[&*bypassed]).0, 1);
    assert_eq!(values(&last[broken]).0, 0);
    assert_eq!(values(&last[&duration]).0, 0);
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_the_last_handle_and_not_before() {
    let perf = Perf::new();
    let publishing = tokio::spawn(perf.publish(Duration::from_secs(10)));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!publishing.is_finished());
    // A router keeps the counters as well as a handle does.
    let router: axum::Router = axum::Router::new().layer(perf.layer()).merge(perf.routes());
    drop(perf);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!publishing.is_finished());
    drop(router);
    ended(publishing).await;
}
