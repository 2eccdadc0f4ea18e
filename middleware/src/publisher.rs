//! Publishes what is counted to the recorder of the `metrics` facade.

use std::{sync::Arc, time::Duration};

use metrics::{Key, KeyName, Label, Level, Metadata, Recorder, Unit, with_recorder};
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use crate::{
    counters::Counters,
    histogram::{LatencyHistogram, nanos},
    metric::{Export, Family, Kind, Labels, Sink, Value, export},
    snapshot::Snapshot,
};

/// Publishes until nobody else is left who has the counters, and then once more.
pub(crate) async fn publish(counters: Arc<Counters>, every: Duration) {
    let mut ticks = interval(every.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut published = None;
    loop {
        ticks.tick().await;
        // Before the reading: what is read after it has come to its end.
        let last = Arc::strong_count(&counters) == 1;
        let now = {
            let counters = counters.clone();
            // Many routes take some milliseconds: not those of a thread that answers requests.
            spawn_blocking(move || {
                let now = Snapshot::take(&counters);
                with_recorder(|recorder| record(recorder, &now, published.as_ref()));
                now
            })
        };
        match now.await {
            Ok(now) if !last => published = Some(now),
            _ => return,
        }
    }
}

/// Records what came after `earlier`, and describes it all if there is nothing earlier.
fn record(recorder: &dyn Recorder, now: &Snapshot, earlier: Option<&Snapshot>) {
    let describe = earlier.is_none();
    let from_start = earlier.map(|earlier| now.since(earlier));
    export(now, &mut Levels { recorder, describe });
    export(from_start.as_ref().unwrap_or(now), &mut Times { recorder });
}

/// Publishes counters and gauges, which have a value.
struct Levels<'a> {
    recorder: &'a dyn Recorder,
    describe: bool,
}

/// Publishes histograms, which take values.
struct Times<'a> {
    recorder: &'a dyn Recorder,
}

const METADATA: Metadata<'static> =
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

fn key(family: Family, labels: &Labels<'_>) -> Key {
    let label = |(name, value): &(&'static str, &str)| Label::new(*name, (*value).to_owned());
    Key::from_parts(family.name, labels.iter().map(label).collect::<Vec<_>>())
}

impl Export for Levels<'_> {
    fn family(&mut self, family: Family, samples: &dyn Fn(&mut Sink<'_>)) {
        if self.describe {
            describe(self.recorder, family);
        }
        samples(&mut |labels, value| match value {
            Value::Count(n) if family.kind == Kind::Counter => {
                self.recorder.register_counter(&key(family, labels), &METADATA).absolute(n);
            }
            Value::Count(n) => {
                self.recorder.register_gauge(&key(family, labels), &METADATA).set(n as f64);
            }
            Value::Seconds(seconds) => {
                self.recorder.register_gauge(&key(family, labels), &METADATA).set(seconds);
            }
            Value::Times(_) => {}
        });
    }
}

impl Export for Times<'_> {
    fn family(&mut self, family: Family, samples: &dyn Fn(&mut Sink<'_>)) {
        samples(&mut |labels, value| {
            if let Value::Times(times) = value
                && times.count() > 0
            {
                let histogram = self.recorder.register_histogram(&key(family, labels), &METADATA);
                for (ns, n) in values(times) {
                    histogram.record_many(Duration::from_nanos(ns), n as usize);
                }
            }
        });
    }
}

/// The middle of each bucket that is not empty, in nanoseconds, and how many values it has.
fn values(times: &LatencyHistogram) -> impl Iterator<Item = (u64, u64)> {
    let (min, max) = (nanos(times.min()), nanos(times.max()));
    times.buckets().map(move |(low, width, n)| ((low + width / 2).clamp(min, max), n))
}

fn describe(recorder: &dyn Recorder, family: Family) {
    let name = KeyName::from_const_str(family.name);
    let unit = match family.name {
        name if name.ends_with("_bytes") || name.ends_with("_bytes_total") => Unit::Bytes,
        name if name.ends_with("_seconds") || name.ends_with("_seconds_total") => Unit::Seconds,
        _ => Unit::Count,
    };
    let describe = match family.kind {
        Kind::Counter if unit != Unit::Seconds => Recorder::describe_counter,
        Kind::Counter | Kind::Gauge => Recorder::describe_gauge,
        Kind::Histogram => Recorder::describe_histogram,
    };
    describe(recorder, name, Some(unit), family.help.into());
}
