//! Writes, gathered into groups: a transaction costs the same for one row as for hundreds.
//!
//! One task writes. While it commits, requests line up; the next transaction takes all that wait. The
//! line is bounded, so a client past it waits, and is told in the end rather than forgotten.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    entity::Entity,
    interaction::Interaction,
    problem::ApiError,
    store::{self, Store, Writing},
};

/// Jobs that may wait. Each has at most a batch of rows.
const QUEUE: usize = 4_096;
/// Rows after which a group is closed, so that no job waits for too many others.
const GROUP_ROWS: usize = 2_000;
/// Missing entities that an answer names.
const NAMED_MISSING: usize = 10;

/// What was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) rows: usize,
    /// The last number of `sequences` that the rows took.
    pub(crate) last: i64,
}

/// Hands jobs to the task that writes.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
}

impl Writer {
    /// Starts the task. It ends when `stop` is told and what waits is written. `written` is told after
    /// every commit.
    pub(crate) fn start(
        store: Store,
        written: Arc<Notify>,
        stop: Arc<Notify>,
    ) -> (Self, JoinHandle<()>) {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let task = tokio::spawn(run(store, queue, written, stop));
        (Self { jobs }, task)
    }

    /// Stores entities; an id that occurs twice is stored as it occurs last.
    ///
    /// # Cancel safety
    /// Once the job is in line, it is written whether or not the caller still waits.
    pub(crate) async fn entities(&self, entities: Vec<Entity>) -> Result<Receipt, ApiError> {
        self.write(Rows::Entities(entities)).await
    }

    /// Stores interactions, all or none: all of their entities must exist.
    ///
    /// # Cancel safety
    /// Once the job is in line, it is written whether or not the caller still waits.
    pub(crate) async fn interactions(&self, rows: Vec<Interaction>) -> Result<Receipt, ApiError> {
        self.write(Rows::Interactions(rows)).await
    }

    async fn write(&self, rows: Rows) -> Result<Receipt, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job { rows, reply }).await.map_err(|_| ApiError::Unavailable)?;
        answer.await.map_err(|_| ApiError::Unavailable)?
    }
}

#[derive(Debug)]
struct Job {
    rows: Rows,
    reply: oneshot::Sender<Result<Receipt, ApiError>>,
}

#[derive(Debug)]
enum Rows {
    Entities(Vec<Entity>),
    Interactions(Vec<Interaction>),
}

impl Rows {
    fn len(&self) -> usize {
        match self {
            Self::Entities(rows) => rows.len(),
            Self::Interactions(rows) => rows.len(),
        }
    }
}

async fn run(
    store: Store,
    mut queue: mpsc::Receiver<Job>,
    written: Arc<Notify>,
    stop: Arc<Notify>,
) {
    let mut stopping = false;
    loop {
        let job = if stopping {
            queue.recv().await
        } else {
            tokio::select! {
                job = queue.recv() => job,
                () = stop.notified() => {
                    // No more jobs from now on; those in line are still received.
                    queue.close();
                    stopping = true;
                    continue;
                }
            }
        };
        let Some(job) = job else { return };
        let mut rows = job.rows.len();
        let mut group = vec![job];
        while rows < GROUP_ROWS {
            let Ok(job) = queue.try_recv() else { break };
            rows += job.rows.len();
            group.push(job);
        }
        write_group(&store, group).await;
        written.notify_one();
    }
}

async fn write_group(store: &Store, group: Vec<Job>) {
    let (rows, replies): (Vec<Rows>, Vec<_>) =
        group.into_iter().map(|job| (job.rows, job.reply)).unzip();
    let answers = answers_to(store, &rows).await;
    for (reply, answer) in replies.into_iter().zip(answers) {
        // Nobody may wait any more; the rows stand all the same.
        let _ = reply.send(answer);
    }
}

type Answers = Vec<Result<Receipt, ApiError>>;

/// Writes the rows of all jobs in one transaction; an answer for each, in order.
/// An answer for each job.
async fn answers_to(store: &Store, jobs: &[Rows]) -> Answers {
    match store.begin().await {
        Ok(transaction) => match write_all(transaction, jobs).await {
            Ok(answers) => return answers,
            // The database refused a statement, so nothing was stored; one job may have spoilt it for the
            // others: each on its own.
            Err(error @ sqlx::Error::Database(_)) if jobs.len() > 1 => {
                tracing::warn!(%error, jobs = jobs.len(), "a group of writes failed; writing each alone");
            }
            Err(error) => return all_alike(error, jobs),
        },
        Err(error) => return all_alike(error, jobs),
    }
    let mut answers = Vec::with_capacity(jobs.len());
    for job in jobs.chunks(1) {
        match store.begin().await {
            Ok(transaction) => match write_all(transaction, job).await {
                Ok(answer) => answers.extend(answer),
                Err(error) => answers.extend(all_alike(error, job)),
            },
            // A database that is gone is gone for all that are left.
            Err(error) => {
                let left = &jobs[answers.len()..];
                answers.extend(all_alike(error, left));
                break;
            }
        }
    }
    answers
}

fn all_alike(error: sqlx::Error, jobs: &[Rows]) -> Answers {
    let answer = ApiError::from(error);
    jobs.iter().map(|_| Err(answer.clone())).collect()
}

async fn write_all(mut transaction: Writing, jobs: &[Rows]) -> Result<Answers, sqlx::Error> {
    // Entities first: an interaction may follow its entity in the same group.
    let mut written_entities = write_entities(&mut transaction, jobs).await?;
    let mut answers = write_interactions(&mut transaction, jobs).await?;
    transaction.commit().await?;
    for (answer, entities) in answers.iter_mut().zip(&mut written_entities) {
        if let Some(receipt) = entities.take() {
            *answer = Some(Ok(receipt));
        }
    }
    Ok(answers.into_iter().map(|answer| answer.unwrap_or(Err(ApiError::Internal))).collect())
}

async fn write_entities(
    transaction: &mut Writing,
    jobs: &[Rows],
) -> Result<Vec<Option<Receipt>>, sqlx::Error> {
    let mut latest: FxHashMap<i64, &Entity> = FxHashMap::default();
    for job in jobs {
        if let Rows::Entities(entities) = job {
            latest.extend(entities.iter().map(|entity| (entity.id, entity)));
        }
    }
    let mut last = 0;
    if !latest.is_empty() {
        let mut entities: Vec<&Entity> = latest.into_values().collect();
        // In one order everywhere, so that two processes never wait for each other's rows.
        entities.sort_unstable_by_key(|entity| entity.id);
        let before = store::take_numbers(transaction, "entities", entities.len()).await?;
        last = before + i64::try_from(entities.len()).unwrap_or_default();
        store::upsert_entities(transaction, &entities, before).await?;
    }
    Ok(jobs
        .iter()
        .map(|job| matches!(job, Rows::Entities(_)).then(|| Receipt { rows: job.len(), last }))
        .collect())
}

async fn write_interactions(
    transaction: &mut Writing,
    jobs: &[Rows],
) -> Result<Vec<Option<Result<Receipt, ApiError>>>, sqlx::Error> {
    let mut answers = Vec::with_capacity(jobs.len());
    answers.resize_with(jobs.len(), || None);
    let named: FxHashSet<i64> = jobs
        .iter()
        .filter_map(|job| if let Rows::Interactions(rows) = job { Some(rows) } else { None })
        .flatten()
        .map(|row| row.entity_id)
        .collect();
    if named.is_empty() {
        return Ok(answers);
    }
    let mut named: Vec<i64> = named.into_iter().collect();
    named.sort_unstable();
    let existing: FxHashSet<i64> =
        store::existing_entities(transaction, &named).await?.into_iter().collect();

    let mut rows: Vec<Interaction> = Vec::new();
    let mut ends = Vec::with_capacity(jobs.len());
    for (job, answer) in jobs.iter().zip(&mut answers) {
        if let Rows::Interactions(interactions) = job {
            match missing(interactions, &existing) {
                Some(error) => *answer = Some(Err(error)),
                None => rows.extend(interactions),
            }
        }
        ends.push(rows.len());
    }
    if rows.is_empty() {
        return Ok(answers);
    }
    let before = store::take_numbers(transaction, "interactions", rows.len()).await?;
    store::insert_interactions(transaction, &rows, before, now_ms()).await?;
    for ((job, answer), end) in jobs.iter().zip(&mut answers).zip(ends) {
        if answer.is_none() && matches!(job, Rows::Interactions(_)) {
            let last = before + i64::try_from(end).unwrap_or_default();
            *answer = Some(Ok(Receipt { rows: job.len(), last }));
        }
    }
    Ok(answers)
}

fn missing(interactions: &[Interaction], existing: &FxHashSet<i64>) -> Option<ApiError> {
    let faults: Vec<_> = interactions
        .iter()
        .enumerate()
        .filter(|(_, row)| !existing.contains(&row.entity_id))
        .take(NAMED_MISSING)
        .map(|(place, row)| crate::problem::Fault {
            pointer: format!("/{place}/entity_id"),
            detail: format!("entity {} does not exist", row.entity_id),
        })
        .collect();
    (!faults.is_empty()).then_some(ApiError::Invalid { faults })
}

/// Unix time, milliseconds.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
