//! The database: one set of queries for SQLite and PostgreSQL.

use std::{fmt::Write as _, time::Duration};

use parallax_middleware::{
    Perf,
    sqlx::{ObservedPool, ObservedTransaction},
};
use sqlx::{
    Any, AnyConnection, AssertSqlSafe, ConnectOptions, Connection, Executor, Row,
    any::{AnyConnectOptions, AnyPoolOptions},
};

use crate::{
    config::{Backend, Config},
    entity::{Entity, terms_of},
    interaction::{Interaction, StoredInteraction},
    redact::scrubbed,
    service::StartError,
};

/// How long the service tries to reach its database when it starts.
const CONNECT_DEADLINE: Duration = Duration::from_secs(8);
/// A migration of much data takes its time, but not for ever.
const MIGRATE_DEADLINE: Duration = Duration::from_secs(120);
/// A connection that lay idle for longer is tried before a request gets it.
const TRUSTED_IDLE: Duration = Duration::from_secs(10);
/// Rows of one statement. SQLite looks every `$n` up among all those before it, so the time to prepare a
/// statement grows with the square of its rows; short ones in a row are much faster than a long one.
const ROWS_PER_STATEMENT: usize = 64;
/// Statements that are kept prepared: the full ones and the shortest. Each length is one of its own.
const PREPARED_ROWS: usize = 8;
/// After every other term with the same beginning: the last character there is.
const LAST_CHARACTER: char = '\u{10FFFF}';

/// A transaction that may write.
pub(crate) type Writing = ObservedTransaction<'static, Any>;

/// The pools, and the queries on them.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    read: ObservedPool<Any>,
    /// On SQLite one connection of its own: there, writers wait for each other anyway, and those that
    /// wait in line here never see `SQLITE_BUSY`. On PostgreSQL the same as `read`.
    write: ObservedPool<Any>,
    /// One connection for the worker that reads what is new: behind a line of requests, the model would
    /// grow old exactly when much is written.
    background: ObservedPool<Any>,
    backend: Backend,
}

impl Store {
    /// Connects, and brings the tables up to date. `perf` says who waits for connections and queries.
    pub(crate) async fn open(config: &Config, perf: &Perf) -> Result<Self, StartError> {
        sqlx::any::install_default_drivers();
        let url = &config.database_url;
        let failed = |error: &dyn std::fmt::Display| StartError::Database {
            url: url.shown(),
            reason: scrubbed(&error.to_string(), url.reveal()),
        };
        let backend = Backend::of(url).map_err(|error| failed(&error))?;
        let options: AnyConnectOptions =
            url.reveal().parse::<AnyConnectOptions>().map_err(|error| failed(&error))?;
        // Statements hold up to thousands of placeholders: no line of a log.
        let options = options.disable_statement_logging();
        // Not through the pool: it would keep trying where nobody listens.
        let first =
            tokio::time::timeout(CONNECT_DEADLINE, first_connection(&options, backend)).await;
        match first {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(&error)),
            Err(_) => return Err(failed(&format!("no answer within {CONNECT_DEADLINE:?}"))),
        }
        let pool = |name, connections| {
            let pool = pool_options(backend)
                .max_connections(connections)
                .acquire_timeout(config.acquire_timeout)
                .connect_lazy_with(options.clone());
            perf.observe_sqlx(name, pool)
        };
        let read = pool("db", config.database_connections);
        let write = match backend {
            Backend::Sqlite => pool("db_write", 1),
            Backend::Postgres => read.clone(),
        };
        let background = pool("db_background", 1);
        let migrations = match backend {
            Backend::Sqlite => sqlx::migrate!("migrations/sqlite"),
            Backend::Postgres => sqlx::migrate!("migrations/postgres"),
        };
        match tokio::time::timeout(MIGRATE_DEADLINE, migrations.run(&write)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(&error)),
            Err(_) => return Err(failed(&format!("migrations took over {MIGRATE_DEADLINE:?}"))),
        }
        Ok(Self { read, write, background, backend })
    }

    /// Waits until every connection is back, and closes them.
    pub(crate) async fn close(&self) {
        self.background.close().await;
        self.read.close().await;
        // Last: on SQLite the connection that wrote tidies the log away.
        self.write.close().await;
    }

    /// What tells this database from others; made at the first start.
    pub(crate) async fn installation(&self) -> Result<String, sqlx::Error> {
        let fresh = format!("{:016x}", rand::random::<u64>());
        sqlx::query("INSERT INTO installation (name, value) VALUES ('id', $1) ON CONFLICT (name) DO NOTHING")
            .bind(fresh)
            .execute(&self.write)
            .await?;
        let row = sqlx::query("SELECT value FROM installation WHERE name = 'id'")
            .fetch_one(&self.write)
            .await?;
        row.try_get(0)
    }

    pub(crate) async fn entity(&self, id: i64) -> Result<Option<Entity>, sqlx::Error> {
        let row = sqlx::query("SELECT title, category FROM entities WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.read)
            .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Entity { id, title: row.try_get(0)?, category: row.try_get(1)? }))
    }

    /// The entities of a user's last interactions, the latest first, some of them twice.
    pub(crate) async fn recent_entities(
        &self,
        user: i64,
        limit: i64,
    ) -> Result<Vec<i64>, sqlx::Error> {
        let rows = sqlx::query(
            "SELECT entity_id FROM interactions WHERE user_id = $1 ORDER BY id DESC LIMIT $2",
        )
        .bind(user)
        .bind(limit)
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    /// Entities that hold every one of `terms`, the last as a beginning: the first `limit` that the
    /// index holds, an entity twice where two of its words begin alike.
    pub(crate) async fn search(
        &self,
        terms: &[String],
        limit: i64,
    ) -> Result<Vec<Entity>, sqlx::Error> {
        let Some((prefix, words)) = terms.split_last() else { return Ok(Vec::new()) };
        // Starts from one term's range and tries the others entity by entity: both by index. A whole
        // word selects better than a beginning, so it leads where there is one.
        let mut sql = String::from(
            "SELECT e.id, e.title, e.category FROM entity_terms t JOIN entities e ON e.id = t.entity_id \
             WHERE t.term >= $1 AND t.term <= $2",
        );
        let mut ranges: Vec<_> = words.iter().map(|word| (word.clone(), word.clone())).collect();
        ranges.push((prefix.clone(), format!("{prefix}{LAST_CHARACTER}")));
        for other in 1..ranges.len() {
            let (low, high) = (2 * other + 1, 2 * other + 2);
            let _ = write!(
                sql,
                " AND EXISTS (SELECT 1 FROM entity_terms o WHERE o.entity_id = t.entity_id \
                 AND o.term >= ${low} AND o.term <= ${high})"
            );
        }
        let _ = write!(sql, " ORDER BY t.term, t.entity_id LIMIT ${}", 2 * ranges.len() + 1);
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for (low, high) in ranges {
            query = query.bind(low).bind(high);
        }
        let rows = query.bind(limit).fetch_all(&self.read).await?;
        rows.iter()
            .map(|row| {
                Ok(Entity {
                    id: row.try_get(0)?,
                    title: row.try_get(1)?,
                    category: row.try_get(2)?,
                })
            })
            .collect()
    }

    /// The last revision of an entity and the last id of an interaction.
    pub(crate) async fn sequences(&self) -> Result<Sequences, sqlx::Error> {
        let rows =
            sqlx::query("SELECT name, value FROM sequences").fetch_all(&self.background).await?;
        let mut sequences = Sequences::default();
        for row in rows {
            let value = row.try_get(1)?;
            match row.try_get::<String, _>(0)?.as_str() {
                "entities" => sequences.entities = value,
                "interactions" => sequences.interactions = value,
                _ => {}
            }
        }
        Ok(sequences)
    }

    /// Entities written after `revision`, oldest write first: revision, id and title.
    pub(crate) async fn entities_after(
        &self,
        revision: i64,
        limit: i64,
    ) -> Result<Vec<(i64, i64, String)>, sqlx::Error> {
        let rows = sqlx::query(
            "SELECT revision, id, title FROM entities WHERE revision > $1 ORDER BY revision LIMIT $2",
        )
        .bind(revision)
        .bind(limit)
        .fetch_all(&self.background)
        .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).collect()
    }

    /// Interactions with ids over `after` and up to `until`, in order.
    pub(crate) async fn interactions_between(
        &self,
        after: i64,
        until: i64,
        limit: i64,
    ) -> Result<Vec<(i64, StoredInteraction)>, sqlx::Error> {
        let rows = sqlx::query(
            "SELECT id, user_id, entity_id, kind, occurred_at_ms FROM interactions \
             WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3",
        )
        .bind(after)
        .bind(until)
        .bind(limit)
        .fetch_all(&self.background)
        .await?;
        rows.iter()
            .map(|row| {
                let interaction = StoredInteraction {
                    user_id: row.try_get(1)?,
                    entity_id: row.try_get(2)?,
                    kind: row.try_get(3)?,
                    occurred_at_ms: row.try_get(4)?,
                };
                Ok((row.try_get(0)?, interaction))
            })
            .collect()
    }

    /// A transaction that may write.
    pub(crate) async fn begin(&self) -> Result<Writing, sqlx::Error> {
        match self.backend {
            // A transaction that reads first and then writes would fail if another process wrote between.
            Backend::Sqlite => self.write.begin_with("BEGIN IMMEDIATE").await,
            Backend::Postgres => self.write.begin().await,
        }
    }
}

/// The numbers last given out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sequences {
    pub(crate) entities: i64,
    pub(crate) interactions: i64,
}

async fn first_connection(
    options: &AnyConnectOptions,
    backend: Backend,
) -> Result<(), sqlx::Error> {
    let mut connection = options.connect().await?;
    prepare(&mut connection, backend).await?;
    connection.close().await
}

fn pool_options(backend: Backend) -> AnyPoolOptions {
    AnyPoolOptions::new()
        // A ping before every query would double the round trips.
        .test_before_acquire(false)
        .before_acquire(move |connection, metadata| {
            Box::pin(async move {
                if backend == Backend::Postgres && metadata.idle_for > TRUSTED_IDLE {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .after_connect(move |connection, _| Box::pin(prepare(connection, backend)))
}

async fn prepare(connection: &mut AnyConnection, backend: Backend) -> Result<(), sqlx::Error> {
    if backend == Backend::Sqlite {
        // The timeout first, since the switch to WAL takes a lock. WAL: readers and the writer do not
        // wait for each other. NORMAL: a power cut may cost the last commits, never the file.
        connection
            .execute("PRAGMA busy_timeout = 30000; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;")
            .await?;
    }
    Ok(())
}

/// Takes `count` numbers; returns the one before the first. Others wait until the transaction ends.
pub(crate) async fn take_numbers(
    transaction: &mut Writing,
    sequence: &'static str,
    count: usize,
) -> Result<i64, sqlx::Error> {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let row =
        sqlx::query("UPDATE sequences SET value = value + $1 WHERE name = $2 RETURNING value")
            .bind(count)
            .bind(sequence)
            .fetch_one(&mut **transaction)
            .await?;
    Ok(row.try_get::<i64, _>(0)? - count)
}

/// Stores entities, each id once, and replaces those that are there. `revision`: the one before theirs.
pub(crate) async fn upsert_entities(
    transaction: &mut Writing,
    entities: &[&Entity],
    mut revision: i64,
) -> Result<(), sqlx::Error> {
    for chunk in entities.chunks(ROWS_PER_STATEMENT) {
        let mut sql = String::from("INSERT INTO entities (id, title, category, revision) VALUES ");
        push_rows(&mut sql, chunk.len(), 4);
        sql.push_str(
            " ON CONFLICT (id) DO UPDATE SET title = excluded.title, category = excluded.category, \
             revision = excluded.revision",
        );
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(is_prepared(chunk.len()));
        for entity in chunk {
            revision += 1;
            query = query.bind(entity.id).bind(&entity.title).bind(&entity.category).bind(revision);
        }
        query.execute(&mut **transaction).await?;

        let mut sql = String::from("DELETE FROM entity_terms WHERE entity_id IN ");
        push_rows(&mut sql, 1, chunk.len());
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(is_prepared(chunk.len()));
        for entity in chunk {
            query = query.bind(entity.id);
        }
        query.execute(&mut **transaction).await?;
    }
    let terms: Vec<(String, i64)> = entities
        .iter()
        .flat_map(|entity| entity.terms().into_iter().map(|term| (term, entity.id)))
        .collect();
    for chunk in terms.chunks(ROWS_PER_STATEMENT) {
        let mut sql = String::from("INSERT INTO entity_terms (term, entity_id) VALUES ");
        push_rows(&mut sql, chunk.len(), 2);
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(is_prepared(chunk.len()));
        for (term, entity) in chunk {
            query = query.bind(term).bind(*entity);
        }
        query.execute(&mut **transaction).await?;
    }
    Ok(())
}

/// Which of `ids`, each given once, are entities.
pub(crate) async fn existing_entities(
    transaction: &mut Writing,
    ids: &[i64],
) -> Result<Vec<i64>, sqlx::Error> {
    let mut existing = Vec::with_capacity(ids.len());
    for chunk in ids.chunks(ROWS_PER_STATEMENT) {
        let mut sql = String::from("SELECT id FROM entities WHERE id IN ");
        push_rows(&mut sql, 1, chunk.len());
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(is_prepared(chunk.len()));
        for id in chunk {
            query = query.bind(*id);
        }
        for row in query.fetch_all(&mut **transaction).await? {
            existing.push(row.try_get(0)?);
        }
    }
    Ok(existing)
}

/// Stores interactions. `id`: the one before theirs.
pub(crate) async fn insert_interactions(
    transaction: &mut Writing,
    interactions: &[Interaction],
    mut id: i64,
    now_ms: i64,
) -> Result<(), sqlx::Error> {
    for chunk in interactions.chunks(ROWS_PER_STATEMENT) {
        let mut sql = String::from(
            "INSERT INTO interactions (id, user_id, entity_id, kind, occurred_at_ms) VALUES ",
        );
        push_rows(&mut sql, chunk.len(), 5);
        let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(is_prepared(chunk.len()));
        for interaction in chunk {
            id += 1;
            query = query
                .bind(id)
                .bind(interaction.user_id)
                .bind(interaction.entity_id)
                .bind(interaction.kind.code())
                .bind(now_ms);
        }
        query.execute(&mut **transaction).await?;
    }
    Ok(())
}

fn is_prepared(rows: usize) -> bool {
    rows <= PREPARED_ROWS || rows == ROWS_PER_STATEMENT
}

/// Appends `($1, $2), ($3, $4)` for two rows of two columns.
fn push_rows(sql: &mut String, rows: usize, columns: usize) {
    let mut number = 0;
    for row in 0..rows {
        sql.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns {
            number += 1;
            // Writing to a string cannot fail.
            let _ = write!(sql, "{}${number}", if column == 0 { "" } else { ", " });
        }
        sql.push(')');
    }
}

/// The words of a search, at most `limit` of them.
pub(crate) fn search_terms(text: &str, limit: usize) -> Vec<String> {
    let mut terms = terms_of(text);
    terms.truncate(limit);
    terms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_numbered_through() {
        let mut sql = String::new();
        push_rows(&mut sql, 2, 2);
        assert_eq!(sql, "($1, $2), ($3, $4)");
    }
}
