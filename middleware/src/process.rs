//! What the process and its runtime use, as the operating system and tokio tell.

use std::time::Duration;

use tokio::runtime::Handle;

/// The process at one moment; what the platform does not tell is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessUsage {
    /// Resident memory, bytes.
    pub rss_bytes: Option<u64>,
    /// Processor time used so far, all threads.
    pub cpu: Option<Duration>,
}

impl ProcessUsage {
    pub(crate) fn merge(&mut self, other: Self) {
        self.rss_bytes = match (self.rss_bytes, other.rss_bytes) {
            (Some(mine), Some(theirs)) => Some(mine.saturating_add(theirs)),
            (mine, theirs) => mine.or(theirs),
        };
        self.cpu = match (self.cpu, other.cpu) {
            (Some(mine), Some(theirs)) => Some(mine.saturating_add(theirs)),
            (mine, theirs) => mine.or(theirs),
        };
    }

    /// Asks the operating system.
    #[must_use]
    pub fn now() -> Self {
        Self {
            rss_bytes: memory_stats::memory_stats().map(|memory| memory.physical_mem as u64),
            cpu: cpu_time(),
        }
    }
}

#[cfg(unix)]
fn cpu_time() -> Option<Duration> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

#[cfg(not(unix))]
fn cpu_time() -> Option<Duration> {
    None
}

/// The tokio runtime at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct RuntimeUsage {
    pub(crate) workers: usize,
    /// Added up over the workers, since the runtime was built.
    pub(crate) busy: Option<Duration>,
    pub(crate) global_queue_depth: usize,
    pub(crate) alive_tasks: usize,
}

impl RuntimeUsage {
    pub(crate) fn merge(self, other: Self) -> Self {
        Self {
            workers: self.workers.saturating_add(other.workers),
            // Of all workers, or of none.
            busy: self.busy.zip(other.busy).map(|(mine, theirs)| mine.saturating_add(theirs)),
            global_queue_depth: self.global_queue_depth.saturating_add(other.global_queue_depth),
            alive_tasks: self.alive_tasks.saturating_add(other.alive_tasks),
        }
    }

    /// Asks the runtime that the caller runs in, if it runs in one.
    pub(crate) fn now() -> Option<Self> {
        let metrics = Handle::try_current().ok()?.metrics();
        let workers = metrics.num_workers();
        Some(Self {
            workers,
            busy: busy(&metrics, workers),
            global_queue_depth: metrics.global_queue_depth(),
            alive_tasks: metrics.num_alive_tasks(),
        })
    }
}

#[cfg(target_has_atomic = "64")]
#[expect(clippy::unnecessary_wraps, reason = "tokio counts busy time on 64-bit atomics only")]
fn busy(metrics: &tokio::runtime::RuntimeMetrics, workers: usize) -> Option<Duration> {
    Some((0..workers).map(|worker| metrics.worker_total_busy_duration(worker)).sum())
}

#[cfg(not(target_has_atomic = "64"))]
fn busy(_: &tokio::runtime::RuntimeMetrics, _: usize) -> Option<Duration> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_process_uses_memory_and_time() {
        let before = ProcessUsage::now();
        assert!(before.rss_bytes.is_some_and(|bytes| bytes > 100_000));
        let mut sum = 0_u64;
        while ProcessUsage::now().cpu == before.cpu {
            sum = sum.wrapping_add(std::hint::black_box(1));
        }
        assert!(ProcessUsage::now().cpu > before.cpu);
    }

    #[test]
    fn outside_a_runtime_there_is_no_runtime() {
        assert_eq!(RuntimeUsage::now(), None);
    }
}
