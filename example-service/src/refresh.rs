//! The background worker that keeps the model fresh, off the path of requests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{sync::Notify, task::JoinHandle, time::Instant};

use crate::{
    model::{Coverage, Histories, Model},
    store::{Sequences, Store},
    writer::now_ms,
};

/// Rows read at once: they are held in memory.
const CHUNK: i64 = 5_000;
/// Between two refreshes at least this, however often the worker is woken: writes come in bursts.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// After a build, this many times as long in peace: builds take at most a fifth of one processor. What it
/// took to read is not counted: most of it is waiting.
const PAUSE_FACTOR: u32 = 4;

/// The current model, and how fresh it is.
#[derive(Clone, Debug)]
pub(crate) struct LiveModel {
    current: Arc<ArcSwap<Model>>,
    /// Whether the last refresh could not read the database.
    failing: Arc<AtomicBool>,
}

impl LiveModel {
    pub(crate) fn new() -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(Model::empty())),
            failing: Arc::new(AtomicBool::new(false)),
        }
    }

    pub(crate) fn load(&self) -> arc_swap::Guard<Arc<Model>> {
        self.current.load()
    }

    pub(crate) fn coverage(&self) -> Coverage {
        self.load().coverage
    }

    pub(crate) fn failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }
}

/// Starts the worker: a refresh now, then after every `written`, and every `interval` for what other
/// processes wrote. It ends when `stop` is told.
pub(crate) fn start(
    store: Store,
    live: LiveModel,
    interval: Duration,
    written: Arc<Notify>,
    stop: Arc<Notify>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        tokio::select! {
            () = run(store, live, interval, written) => {}
            () = stop.notified() => {}
        }
    })
}

async fn run(store: Store, live: LiveModel, interval: Duration, written: Arc<Notify>) {
    let mut histories = Histories::default();
    loop {
        let mut built = Duration::ZERO;
        match refresh(&store, &live, &mut histories).await {
            Ok(took) => {
                built = took;
                live.failing.store(false, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::error!(%error, "the model could not be refreshed; the last one stays");
                live.failing.store(true, Ordering::Relaxed);
            }
        }
        tokio::time::sleep(SHORTEST_PAUSE.max(built * PAUSE_FACTOR)).await;
        // Told while the worker was busy or paused, it returns at once.
        let _ = tokio::time::timeout(interval, written.notified()).await;
    }
}

#[derive(Debug, thiserror::Error)]
enum RefreshError {
    #[error(transparent)]
    Read(#[from] sqlx::Error),
    #[error("the build failed: {0}")]
    Build(#[from] tokio::task::JoinError),
}

/// Returns how long the build took; nothing where there was nothing new.
async fn refresh(
    store: &Store,
    live: &LiveModel,
    histories: &mut Histories,
) -> Result<Duration, RefreshError> {
    let started = Instant::now();
    let goal = store.sequences().await?;
    let known =
        Sequences { entities: histories.entity_revision, interactions: histories.interactions };
    if goal == known && live.coverage().generation > 0 {
        return Ok(Duration::ZERO);
    }
    // Up to the interactions of `goal` only: their entities were written before them, so that all of
    // them are among what is read first.
    loop {
        let entities = store.entities_after(histories.entity_revision, CHUNK).await?;
        if entities.is_empty() {
            break;
        }
        histories.add_entities(&entities);
    }
    while histories.interactions < goal.interactions {
        let rows =
            store.interactions_between(histories.interactions, goal.interactions, CHUNK).await?;
        if rows.is_empty() {
            break;
        }
        histories.add_interactions(&rows);
    }
    // Moved there and back: a build keeps its thread busy for up to a second.
    let mut moved = std::mem::take(histories);
    let (moved, mut model, built) = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        let model = moved.build(now_ms());
        (moved, model, started.elapsed())
    })
    .await?;
    *histories = moved;
    model.coverage.took = started.elapsed();
    tracing::debug!(coverage = ?model.coverage, "the model is refreshed");
    live.current.store(Arc::new(model));
    Ok(built)
}
