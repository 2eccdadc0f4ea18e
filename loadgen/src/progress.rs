//! What a run tells while it goes on.

use std::time::Duration;

/// Where a run stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Progress {
    /// The run's name.
    pub run: String,
    /// What it is doing.
    pub stage: Stage,
    /// Time since the stage began.
    pub elapsed: Duration,
    /// Planned length of the stage.
    pub planned: Duration,
    /// The stage ends with so many requests, if not before.
    pub requests: Option<u64>,
    /// Successes so far in this stage.
    pub ok: u64,
    /// Failures so far in this stage, rejections included.
    pub failed: u64,
    /// Requests that are being answered.
    pub in_flight: u64,
    /// Successes per second, over the last second or so.
    pub rate: f64,
    /// Median of the response time over the same, if there were enough samples.
    pub p50: Option<Duration>,
    /// 99th percentile of the response time over the same, if there were enough samples.
    pub p99: Option<Duration>,
}

/// What a run is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Load that does not count.
    WarmUp,
    /// Load that counts.
    Measure,
    /// No more requests; the last answers come in.
    Drain,
}

impl Stage {
    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WarmUp => "warming up",
            Self::Measure => "measuring",
            Self::Drain => "draining",
        }
    }
}
