//! `GET /perf/metrics`: a snapshot in the text format of Prometheus.

use std::fmt;

use axum::response::{IntoResponse, Response};
use http::{
    StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeLabel, EncodeLabelSet, LabelSetEncoder, MetricEncoder, NoLabelSet,
        text::encode_registry,
    },
    metrics::MetricType,
    registry::Registry,
};
use tokio::task::spawn_blocking;

use crate::{
    histogram::LatencyHistogram,
    metric::{Export, Family, Kind, Labels, Sink, Value, export},
    perf::Perf,
    snapshot::Snapshot,
};

/// The bounds that OpenTelemetry's conventions advise for the times of HTTP requests, in nanoseconds.
const BOUNDS_NS: [u64; 14] = {
    const MS: u64 = 1_000_000;
    [
        5 * MS,
        10 * MS,
        25 * MS,
        50 * MS,
        75 * MS,
        100 * MS,
        250 * MS,
        500 * MS,
        750 * MS,
        1_000 * MS,
        2_500 * MS,
        5_000 * MS,
        7_500 * MS,
        10_000 * MS,
    ]
};

/// What a route's lines take, about: four histograms.
const BYTES_A_ROUTE: usize = 12 << 10;

/// Not OpenMetrics, in which counters are named otherwise.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers with everything that was counted since the start.
pub(crate) async fn show(perf: &Perf) -> Response {
    let perf = perf.clone();
    // Many routes take some milliseconds: not those of a thread that answers requests.
    match spawn_blocking(move || encode(perf.snapshot())).await {
        Ok(text) => {
            ([(CONTENT_TYPE, TEXT_FORMAT), (CACHE_CONTROL, "no-store")], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn encode(snapshot: Snapshot) -> String {
    // A guess: growing is copying.
    let mut text = String::with_capacity(BYTES_A_ROUTE * (1 + snapshot.routes().count()));
    let has_pools = !snapshot.pools.is_empty();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Reading(snapshot)));
    encode_registry(&mut text, &registry).expect("a text takes all that is written");
    // OpenMetrics' word for a type that is left open, and Prometheus'. The line comes first, or not at all:
    // pools are exported before routes, and no label has a line's end in it.
    const OPEN: &str = " unknown\n";
    if has_pools && let Some(at) = text.find(OPEN) {
        text.replace_range(at..at + OPEN.len(), " untyped\n");
    }
    text
}

#[derive(Debug)]
struct Reading(Snapshot);

impl Collector for Reading {
    fn encode(&self, descriptors: DescriptorEncoder<'_>) -> fmt::Result {
        let mut encoder = Encoder { descriptors, result: Ok(()) };
        export(&self.0, &mut encoder);
        encoder.result
    }
}

struct Encoder<'a> {
    descriptors: DescriptorEncoder<'a>,
    result: fmt::Result,
}

impl Export for Encoder<'_> {
    fn family(&mut self, family: Family, samples: &dyn Fn(&mut Sink<'_>)) {
        let Self { descriptors, result } = self;
        // A family without samples is not described.
        let mut pending = Some(descriptors);
        let mut metric: Option<MetricEncoder<'_>> = None;
        samples(&mut |labels, value| {
            if matches!(value, Value::Times(times) if times.count() == 0) {
                return;
            }
            let mut write = || {
                if let Some(descriptors) = pending.take() {
                    let Family { name, help, .. } = family;
                    metric =
                        Some(descriptors.encode_descriptor(name, help, None, type_of(family))?);
                }
                metric.as_mut().map_or(Ok(()), |metric| sample(metric, labels, value))
            };
            *result = result.and_then(|()| write());
        });
    }
}

fn type_of(family: Family) -> MetricType {
    match family.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Histogram => MetricType::Histogram,
        // OpenTelemetry's name for it; but promtool wants no gauge to be named as a part of a histogram is.
        Kind::Gauge if family.name.ends_with("_count") => MetricType::Unknown,
        Kind::Gauge => MetricType::Gauge,
    }
}

fn sample(metric: &mut MetricEncoder<'_>, labels: &Labels<'_>, value: Value<'_>) -> fmt::Result {
    if labels.is_empty() {
        write(metric, value)
    } else if let Some(labels) = Written::new(labels) {
        write(&mut metric.encode_family(&labels)?, value)
    } else {
        write(&mut metric.encode_family(&labels)?, value)
    }
}

/// Labels that are written once: the crate does it anew for each line of a histogram.
struct Written<'a> {
    /// Everything up to the last value. The crate writes a label's name as it is.
    name: String,
    value: &'a str,
}

impl<'a> Written<'a> {
    /// `None` if a value has to be escaped, which is left to the crate, as the last one is in any case.
    fn new(labels: &Labels<'a>) -> Option<Self> {
        let ((last, value), labels) = labels.split_last()?;
        let mut name = String::with_capacity(128);
        for (label, value) in labels {
            if value.bytes().any(|byte| matches!(byte, b'\\' | b'"' | b'\n')) {
                return None;
            }
            name.extend([label, "=\"", value, "\","]);
        }
        name.push_str(last);
        Some(Self { name, value })
    }
}

impl EncodeLabelSet for Written<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        (&*self.name, self.value).encode(encoder.encode_label())
    }
}

fn write(metric: &mut MetricEncoder<'_>, value: Value<'_>) -> fmt::Result {
    match value {
        // A counter too: its family is named as its samples are, with `_total`, which the crate would add.
        Value::Count(n) => metric.encode_gauge(&n),
        Value::Seconds(seconds) => metric.encode_gauge(&seconds.as_secs_f64()),
        Value::Times(times) => {
            let seconds = times.sum().as_secs_f64();
            metric.encode_histogram::<NoLabelSet>(seconds, times.count(), &buckets(times), None)
        }
    }
}

/// Upper bounds in seconds, and how many values lie past the one before.
fn buckets(times: &LatencyHistogram) -> [(f64, u64); BOUNDS_NS.len() + 1] {
    let counts = times.up_to(&BOUNDS_NS);
    let bounded = counts.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
    let mut buckets = [(f64::INFINITY, times.count().saturating_sub(bounded)); BOUNDS_NS.len() + 1];
    for ((bucket, bound), n) in buckets.iter_mut().zip(BOUNDS_NS).zip(counts) {
        *bucket = (bound as f64 / 1e9, n);
    }
    buckets
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 4] = ["a", "b", "c", "d"];

    /// One histogram, with labels that are written once or by the crate for each line.
    #[derive(Debug)]
    struct Labelled {
        values: Vec<String>,
        once: bool,
    }

    impl Collector for Labelled {
        fn encode(&self, mut descriptors: DescriptorEncoder<'_>) -> fmt::Result {
            let mut times = LatencyHistogram::new();
            times.record(Duration::from_millis(7));
            let value = Value::Times(&times);
            let labels = NAMES.into_iter().zip(self.values.iter().map(String::as_str));
            let labels: &Labels<'_> = &labels.collect::<Vec<_>>();
            let mut metric =
                descriptors.encode_descriptor("x_seconds", "X", None, MetricType::Histogram)?;
            if self.once {
                sample(&mut metric, labels, value)
            } else {
                write(&mut metric.encode_family(&labels)?, value)
            }
        }
    }

    fn text(collector: Labelled) -> String {
        let mut text = String::new();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(collector));
        encode_registry(&mut text, &registry).expect("a text takes all that is written");
        text
    }

    proptest! {
        #[test]
        fn labels_that_are_written_once_are_what_the_crate_would_write(
            values in prop::collection::vec(r#"[a-z/{}="\\\n\ré,]{0,6}"#, 1..=4),
        ) {
            let [once, by_line] =
                [true, false].map(|once| text(Labelled { values: values.clone(), once }));
            prop_assert_eq!(once, by_line);
        }
    }
}
