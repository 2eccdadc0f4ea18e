//! Where finished requests go: from many tasks to one collector, in batches.

use std::{
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use parallax_middleware::{Outcome, PhaseTime, ServerRecord};

use crate::target::Answer;

/// Samples that a shard holds before whoever adds the next one empties it: the bound on memory when
/// the collector is late. Its cost then shows as lag, and is not lost.
const SHARD_CAP: usize = 16_384;

/// What the time of a request in none of its phases is called.
pub(crate) const HANDLER: &str = "handler";

/// One finished request.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// Index in the scenario.
    pub(crate) step: u32,
    /// Intended start, since the beginning of the measured interval.
    pub(crate) intended: Duration,
    /// From the intended start to the dispatch.
    pub(crate) lag: Duration,
    /// From the dispatch to the drained body.
    pub(crate) service_time: Duration,
    /// Of it, the time until a worker of the service's runtime began with the request.
    pub(crate) waited: Duration,
    /// How it came to that runtime, if it was handed to it.
    pub(crate) handed: Option<Handed>,
    pub(crate) answer: Answer,
    /// The layer's view of the same request.
    pub(crate) server: Option<ServerView>,
}

/// How an arrival came to the service's runtime.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Handed {
    /// Since the beginning of the measured interval.
    pub(crate) at: Duration,
    /// Until a worker began with it.
    pub(crate) waited: Duration,
}

impl Handed {
    /// How much of the wait held a request up that was due at `intended`: a pause before it may have absorbed it.
    pub(crate) fn held_up(&self, intended: Duration) -> Duration {
        (self.at + self.waited).saturating_sub(intended).min(self.waited)
    }
}

/// The part of a server's record that a sample keeps.
#[derive(Clone, Debug)]
pub(crate) struct ServerView {
    pub(crate) route: u32,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) server_time: Duration,
    pub(crate) outcome: Outcome,
    pub(crate) phases: Vec<PhaseTime>,
    /// Time in none of them.
    pub(crate) handler: Duration,
}

impl ServerView {
    /// How long the request was in a phase; `None` if it was not.
    pub(crate) fn time_in(&self, phase: u8) -> Option<Duration> {
        self.phases.iter().find(|known| known.phase == phase).map(|phase| phase.time)
    }
}

impl From<&ServerRecord> for ServerView {
    fn from(record: &ServerRecord) -> Self {
        Self {
            route: record.route_id(),
            first_byte: record.first_byte,
            server_time: record.server_time,
            outcome: record.outcome,
            phases: record.phases.clone(),
            handler: record.handler,
        }
    }
}

/// Collects samples without making the tasks that produce them wait for one another: a shard for each
/// worker of the runtime, and one for everything else.
#[derive(Debug)]
pub(crate) struct Sink {
    shards: Box<[Shard]>,
}

/// On cache lines of its own, so that workers do not slow each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    sent: AtomicU64,
    /// Of those, the ones that were not after all.
    unsent: AtomicU64,
    finished: AtomicU64,
    /// Requests that were handed over, and those that are over: counted without a look at any clock.
    began: AtomicU64,
    ended: AtomicU64,
    samples: Mutex<Vec<Sample>>,
}

impl Sink {
    pub(crate) fn new(workers: usize) -> Self {
        Self { shards: (0..=workers).map(|_| Shard::default()).collect() }
    }

    fn shard(&self) -> &Shard {
        let last = self.shards.len() - 1;
        &self.shards[tokio::runtime::worker_index().unwrap_or(last).min(last)]
    }

    /// Counts a request as handed to the target.
    pub(crate) fn sent(&self) {
        self.shard().sent.fetch_add(1, Relaxed);
    }

    /// Takes a request back that was counted as handed to the target and never was.
    pub(crate) fn unsent(&self) {
        let shard = self.shard();
        shard.unsent.fetch_add(1, Relaxed);
        shard.finished.fetch_add(1, Release);
    }

    /// Counts a request as in the service's hands until the guard is dropped.
    pub(crate) fn in_service(&self) -> InService<'_> {
        let shard = self.shard();
        shard.began.fetch_add(1, Relaxed);
        InService { shard }
    }

    /// Counts a request as in the hands of the service's runtime.
    pub(crate) fn begin_to_wait(&self) {
        self.shard().began.fetch_add(1, Relaxed);
    }

    /// Counts it as no longer there.
    pub(crate) fn end_wait(&self) {
        self.shard().ended.fetch_add(1, Release);
    }

    /// Requests in the service's hands, counted from the outside.
    pub(crate) fn count_in_service(&self) -> u64 {
        // Shard by shard: a worker that ends one request begins the next, and between two passes over all shards many
        // would. What moves from worker to worker meanwhile may count too much as well as too little.
        let on = |shard: &Shard| {
            let ended = shard.ended.load(Acquire);
            shard.began.load(Relaxed).wrapping_sub(ended) as i64
        };
        self.shards.iter().map(on).sum::<i64>().max(0) as u64
    }

    /// Adds a finished request. Returns a batch for the collector if the shard is full.
    #[must_use = "the batch holds finished requests"]
    pub(crate) fn push(&self, sample: Sample) -> Option<Vec<Sample>> {
        let mut samples = lock(&self.shard().samples);
        samples.push(sample);
        (samples.len() >= SHARD_CAP).then(|| mem::take(&mut *samples))
    }

    /// Counts a request as finished: only once its sample is where the collector finds it, so that
    /// nothing in flight means nothing to come.
    pub(crate) fn finished(&self) {
        self.shard().finished.fetch_add(1, Release);
    }

    /// Takes the samples of every shard, one shard at a time, and gives each vector back for reuse.
    pub(crate) fn drain(&self, spare: &mut Vec<Sample>, mut each: impl FnMut(&[Sample])) {
        for shard in &self.shards {
            mem::swap(&mut *lock(&shard.samples), spare);
            each(spare);
            spare.clear();
        }
    }

    /// Requests handed to the target so far.
    pub(crate) fn total_sent(&self) -> u64 {
        self.total_begun() - self.total_unsent()
    }

    /// Requests that were taken back.
    pub(crate) fn total_unsent(&self) -> u64 {
        self.shards.iter().map(|shard| shard.unsent.load(Relaxed)).sum()
    }

    fn total_begun(&self) -> u64 {
        self.shards.iter().map(|shard| shard.sent.load(Relaxed)).sum()
    }

    /// Requests that have ended, but those that were taken back.
    pub(crate) fn total_finished(&self) -> u64 {
        let finished: u64 = self.shards.iter().map(|shard| shard.finished.load(Acquire)).sum();
        finished.saturating_sub(self.total_unsent())
    }

    /// Requests handed to the target and not finished.
    pub(crate) fn in_flight(&self) -> u64 {
        // Finished first: in between, requests can only be sent. Whoever sees one finished sees what the
        // layer counted of it.
        let finished: u64 = self.shards.iter().map(|shard| shard.finished.load(Acquire)).sum();
        self.total_begun().saturating_sub(finished)
    }
}

/// A request in the service's hands.
#[derive(Debug)]
pub(crate) struct InService<'a> {
    /// The one that has counted its beginning, so that a reading of it sees both or neither.
    shard: &'a Shard,
}

impl Drop for InService<'_> {
    fn drop(&mut self) {
        self.shard.ended.fetch_add(1, Release);
    }
}

/// A panic while the lock is held can only come from a failed allocation of the vector, which leaves
/// the samples whole.
fn lock(samples: &Mutex<Vec<Sample>>) -> MutexGuard<'_, Vec<Sample>> {
    samples.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_a_pause_absorbed_holds_nothing_up() {
        let ms = Duration::from_millis;
        let handed = Handed { at: ms(100), waited: ms(50) };
        let held_up = [90, 100, 120, 150, 1_100].map(|due| handed.held_up(ms(due)));
        assert_eq!(held_up, [50, 50, 30, 0, 0].map(ms));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_request_is_in_service_until_its_guard_is_dropped_on_whatever_thread() {
        let sink = std::sync::Arc::new(Sink::new(2));
        // This thread is no worker, the task's is.
        let here = sink.in_service();
        let theirs = tokio::spawn({
            let sink = sink.clone();
            async move {
                let guard = sink.in_service();
                tokio::task::yield_now().await;
                let counted = sink.count_in_service();
                drop(guard);
                counted
            }
        });
        assert_eq!(theirs.await.expect("no panic"), 2);
        assert_eq!(sink.count_in_service(), 1);
        let there = std::thread::scope(|scope| scope.spawn(|| drop(here)).join());
        assert!(there.is_ok() && sink.count_in_service() == 0);
    }
}
