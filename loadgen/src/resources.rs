//! The process, the service's runtime and its pools over time.

use std::time::Duration;

use parallax_middleware::{Perf, PoolLevel, ProcessUsage};
use tokio::{
    runtime::{Handle, RuntimeMetrics},
    time::Instant,
};

use crate::{
    canary::Canary,
    report::{PoolRow, ResourceRow},
};

/// Readings that are kept. Past that, two of them become one, and the next ones come half as often.
const MAX_READINGS: usize = 512;

/// Readings of a phase, a bounded number however long it lasts.
#[derive(Debug)]
pub(crate) struct Resources {
    readings: Vec<Reading>,
    every: Duration,
    next: Duration,
}

/// The process at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    /// Since the start of the phase.
    pub(crate) at: Duration,
    pub(crate) usage: ProcessUsage,
    pub(crate) in_flight: u64,
    pub(crate) runtime: Option<RuntimeReading>,
    pub(crate) pools: Vec<PoolLevel>,
}

/// The service's runtime at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RuntimeReading {
    workers: usize,
    /// Of all workers, since the runtime was built.
    busy: Option<Duration>,
    queue_depth: usize,
    /// The worst since the reading before.
    canary: Duration,
}

/// Watches a runtime.
#[derive(Debug)]
pub(crate) struct RuntimeWatch {
    metrics: RuntimeMetrics,
    pub(crate) canary: Canary,
}

impl RuntimeWatch {
    /// For an interval that begins at `start` and is over at `end`.
    pub(crate) fn start(runtime: &Handle, start: Instant, end: Instant) -> Self {
        Self { metrics: runtime.metrics(), canary: Canary::start(runtime, start, end) }
    }

    pub(crate) fn read(&self) -> RuntimeReading {
        let workers = self.metrics.num_workers();
        RuntimeReading {
            workers,
            busy: busy(&self.metrics, workers),
            queue_depth: self.metrics.global_queue_depth(),
            canary: self.canary.take_worst(),
        }
    }
}

#[cfg(target_has_atomic = "64")]
#[expect(clippy::unnecessary_wraps, reason = "tokio counts busy time on 64-bit atomics only")]
fn busy(metrics: &RuntimeMetrics, workers: usize) -> Option<Duration> {
    Some((0..workers).map(|worker| metrics.worker_total_busy_duration(worker)).sum())
}

#[cfg(not(target_has_atomic = "64"))]
fn busy(_: &RuntimeMetrics, _: usize) -> Option<Duration> {
    None
}

impl Resources {
    /// To be read so often, at first.
    pub(crate) fn new(every: Duration) -> Self {
        Self { readings: Vec::new(), every, next: Duration::ZERO }
    }

    /// From one reading to the next.
    pub(crate) fn every(&self) -> Duration {
        self.every
    }

    /// Is it time for a reading?
    pub(crate) fn is_due(&self, at: Duration) -> bool {
        at >= self.next
    }

    pub(crate) fn add(&mut self, reading: Reading) {
        if self.readings.len() == MAX_READINGS {
            self.coarsen();
        }
        self.next = reading.at + self.every;
        self.readings.push(reading);
    }

    /// Keeps the later of each two, with the worst of both. The first stays: all that is counted is counted from it.
    fn coarsen(&mut self) {
        self.every *= 2;
        let mut readings = std::mem::take(&mut self.readings).into_iter();
        self.readings.extend(readings.next());
        while let Some(mut reading) = readings.next() {
            if let Some(later) = readings.next() {
                let worst = reading.runtime.map(|runtime| runtime.canary);
                reading = later;
                if let (Some(runtime), Some(worst)) = (&mut reading.runtime, worst) {
                    runtime.canary = runtime.canary.max(worst);
                }
            }
            self.readings.push(reading);
        }
    }

    /// As a report has them.
    pub(crate) fn rows(&self) -> Vec<ResourceRow> {
        let before = std::iter::once(None).chain(self.readings.iter().map(Some));
        before.zip(&self.readings).map(|(before, reading)| reading.row(before)).collect()
    }
}

impl Reading {
    fn row(&self, before: Option<&Self>) -> ResourceRow {
        let busy_ratio = before.and_then(|before| {
            let (now, then) = (self.runtime?, before.runtime?);
            let time = (self.at - before.at).as_secs_f64() * now.workers as f64;
            let busy = now.busy?.saturating_sub(then.busy?).as_secs_f64();
            // Workers add their time up when they pause, so a long stretch may count in the interval after it.
            (time > 0.0).then(|| (busy / time).min(1.0))
        });
        ResourceRow {
            at_s: self.at.as_secs_f64(),
            rss_bytes: self.usage.rss_bytes,
            cpu_s: self.usage.cpu.map(|cpu| cpu.as_secs_f64()),
            in_flight: self.in_flight,
            busy_ratio,
            queue_depth: self.runtime.map(|runtime| runtime.queue_depth as u64),
            canary_us: self.runtime.map(|runtime| runtime.canary.as_secs_f64() * 1e6),
            pools: self.pools.iter().map(pool_row).collect(),
        }
    }
}

fn pool_row(pool: &PoolLevel) -> PoolRow {
    PoolRow {
        name: pool.name.clone(),
        kind: pool.kind.to_owned(),
        max: pool.max,
        in_use: pool.in_use,
        idle: pool.idle,
        waiting: pool.waiting,
    }
}

/// What the layer's pools hold, if a layer of this process has answered.
pub(crate) fn pools(perf: Option<&Perf>) -> Vec<PoolLevel> {
    perf.map(Perf::pool_levels).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn reading(n: u32, canary: Duration) -> Reading {
        let runtime = RuntimeReading {
            workers: 2,
            // Half of the time of both.
            busy: Some(MS * 100 * n),
            queue_depth: n as usize,
            canary,
        };
        Reading { at: MS * 100 * n, runtime: Some(runtime), ..Reading::default() }
    }

    #[test]
    fn readings_of_a_run_without_a_length_come_less_often_and_lose_nothing() {
        let mut resources = Resources::new(MS * 100);
        for n in 0..100_000 {
            if resources.is_due(MS * 100 * n) {
                resources.add(reading(n, MS));
            }
        }
        let rows = resources.rows();
        assert!((MAX_READINGS / 2..=MAX_READINGS).contains(&rows.len()), "{}", rows.len());
        assert!(rows.is_sorted_by(|a, b| a.at_s < b.at_s));
        assert!((rows[0].at_s, rows[0].busy_ratio) == (0.0, None));
        for row in &rows[1..] {
            assert!((row.busy_ratio.expect("told") - 0.5).abs() < 1e-9, "{row:?}");
        }
    }

    #[test]
    fn the_worst_of_two_readings_outlives_the_one_that_is_dropped() {
        let mut resources = Resources::new(MS * 100);
        (0..600).for_each(|n| resources.add(reading(n, if n == 101 { MS * 900 } else { MS })));
        let worst =
            resources.rows().into_iter().filter_map(|row| row.canary_us).max_by(f64::total_cmp);
        assert_eq!(worst, Some(900_000.0));
    }
}
