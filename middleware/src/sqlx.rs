//! Pools of sqlx: how long is waited for a connection, how long queries take, and how long connections are
//! kept.
//!
//! [`Perf::observe_sqlx`](crate::Perf::observe_sqlx) wraps a pool, and the wrapper goes wherever the pool
//! went: it is an [`Executor`], it can [`acquire`](ObservedPool::acquire) and [`begin`](ObservedPool::begin).
//!
//! ```
//! # use parallax_middleware::Perf;
//! # use sqlx::{SqlitePool, sqlite::SqlitePoolOptions};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> sqlx::Result<()> {
//! let perf = Perf::new();
//! let pool = SqlitePoolOptions::new().max_connections(5).connect("sqlite::memory:").await?;
//! let pool = perf.observe_sqlx("db", pool);
//!
//! let one: i64 = sqlx::query_scalar("SELECT 1").fetch_one(&pool).await?;
//!
//! let mut transaction = pool.begin().await?;
//! let two: i64 = sqlx::query_scalar("SELECT 2").fetch_one(&mut *transaction).await?;
//! transaction.commit().await?;
//!
//! let row = &perf.snapshot().view().pools[0];
//! assert_eq!((row.name.as_str(), row.acquired, row.in_use, row.max), ("db", 2, 0, 5));
//! # assert_eq!((one, two), (1, 2));
//! # Ok(())
//! # }
//! ```
//!
//! # What is measured
//!
//! - A **wait**, phase `pool_wait:<name>`, is from the first poll of an `acquire` to its end. It is all that sqlx
//!   does under its `acquire_timeout`: waiting until a connection is free, checking an idle one (a ping, unless
//!   `test_before_acquire(false)`), and opening a new one. sqlx does not say when one ends and the other begins;
//!   [`Perf::observe_sqlx_options`](crate::Perf::observe_sqlx_options) has checks counted apart.
//! - A **query**, phase `query:<name>`, is from the first poll of a query to its last row, error or drop, without
//!   the wait for its connection. `BEGIN`, `COMMIT` and `ROLLBACK` are queries too.
//! - A **hold** is from getting a connection to dropping it. sqlx then pings it before others may have it: that
//!   time is part of their waits.
//!
//! What goes past the wrapper is not measured: queries on a [connection](sqlx::Connection) itself
//! (`&mut **connection`, functions that take a `&mut PgConnection`), and the holds of transactions that are begun
//! through the trait [`Acquire`], which are sqlx's own type: their waits and their `BEGIN` are.
//!
//! A wait that ends with [`Error::PoolTimedOut`] counts as [`TimeoutKind::Create`] if the pool had room for one
//! more connection when it gave up, so that it must have tried to open one; else as [`TimeoutKind::Wait`]. All
//! other errors, [`Error::PoolClosed`] for example, count as failed.

use std::{
    fmt,
    future::{poll_fn, ready},
    marker::PhantomData,
    mem,
    ops::{Deref, DerefMut},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures_core::{Stream, future::BoxFuture, stream::BoxStream};
use sqlx::{
    Acquire, Connection, Database, Describe, Either, Error, Execute, Executor, Pool, SqlSafeStr,
    SqlStr, Transaction,
    pool::{PoolConnection, PoolOptions},
};
use tokio::time::Instant;

use crate::{
    phase::Observed,
    pool::{PoolHold, PoolSize, PoolSource, PoolWait, PoolWatch, TimeoutKind, Watched},
};

/// A pool whose waits, queries and holds are measured. Made by
/// [`Perf::observe_sqlx`](crate::Perf::observe_sqlx).
///
/// Clones are of the same pool. What has no method here, `close` for example, is the [`Pool`]'s, which it
/// dereferences to.
pub struct ObservedPool<DB: Database> {
    watched: Arc<Watched<Pool<DB>>>,
}

/// A connection of an [`ObservedPool`], in use until it is dropped.
pub type ObservedConnection<DB> = Lease<DB, PoolConnection<DB>>;

/// A transaction, on a connection of an [`ObservedPool`]. Dropped before
/// [`commit`](ObservedTransaction::commit), it is rolled back, as sqlx's own.
pub type ObservedTransaction<'c, DB> = Lease<DB, Transaction<'c, DB>>;

impl<DB: Database> PoolSource for Pool<DB> {
    fn size(&self) -> PoolSize {
        PoolSize {
            max: self.options().get_max_connections().into(),
            size: Pool::size(self).into(),
            idle: self.num_idle() as u64,
        }
    }
}

impl<DB: Database> ObservedPool<DB> {
    pub(crate) fn new(watched: Arc<Watched<Pool<DB>>>) -> Self {
        PoolWatch::new(watched.clone()).sized_by(&watched);
        Self { watched }
    }

    /// Waits for a connection.
    ///
    /// # Errors
    ///
    /// Those of [`Pool::acquire`].
    ///
    /// # Cancel safety
    ///
    /// A connection is never lost. Dropped, the wait counts as cancelled.
    pub fn acquire(
        &self,
    ) -> impl Future<Output = Result<ObservedConnection<DB>, Error>> + Send + use<DB> {
        let watched = self.watched.clone();
        async move {
            // Made here, not before: it is large, and would be moved.
            let mut acquire = pin!(watched.source.acquire());
            let pool = PoolWatch::new(watched);
            let mut wait = pool.ask();
            match poll_fn(|cx| wait.poll(acquire.as_mut(), cx)).await {
                Ok(connection) => {
                    let since = wait.acquired_at();
                    Ok(Lease::new(connection, PoolHold::new(pool, since)))
                }
                Err(error) => {
                    give_up(wait, &error, pool.size());
                    Err(error)
                }
            }
        }
    }

    /// An idle connection, if there is one and nobody waits for it.
    #[must_use]
    pub fn try_acquire(&self) -> Option<ObservedConnection<DB>> {
        let connection = self.watched.source.try_acquire()?;
        let pool = PoolWatch::new(self.watched.clone());
        let since = pool.ask().acquired_at();
        Some(Lease::new(connection, PoolHold::new(pool, since)))
    }

    /// Waits for a connection and begins a transaction on it.
    ///
    /// # Errors
    ///
    /// Those of [`Pool::begin`].
    pub async fn begin(&self) -> Result<ObservedTransaction<'static, DB>, Error> {
        self.acquire().await?.into_transaction(None).await
    }

    /// [`begin`](Self::begin), if there is an idle connection and nobody waits for it.
    ///
    /// # Errors
    ///
    /// Those of [`Pool::try_begin`].
    pub async fn try_begin(&self) -> Result<Option<ObservedTransaction<'static, DB>>, Error> {
        match self.try_acquire() {
            Some(connection) => connection.into_transaction(None).await.map(Some),
            None => Ok(None),
        }
    }

    /// [`begin`](Self::begin), with another statement than `BEGIN`.
    ///
    /// # Errors
    ///
    /// Those of [`Pool::begin_with`].
    pub async fn begin_with(
        &self,
        statement: impl SqlSafeStr,
    ) -> Result<ObservedTransaction<'static, DB>, Error> {
        self.acquire().await?.into_transaction(Some(statement.into_sql_str())).await
    }

    /// [`try_begin`](Self::try_begin), with another statement than `BEGIN`.
    ///
    /// # Errors
    ///
    /// Those of [`Pool::try_begin_with`].
    pub async fn try_begin_with(
        &self,
        statement: impl SqlSafeStr,
    ) -> Result<Option<ObservedTransaction<'static, DB>>, Error> {
        match self.try_acquire() {
            Some(connection) => {
                connection.into_transaction(Some(statement.into_sql_str())).await.map(Some)
            }
            None => Ok(None),
        }
    }
}

/// Has the checks of idle connections counted.
pub(crate) fn count_checks<DB: Database>(
    options: PoolOptions<DB>,
    pool: PoolWatch,
) -> PoolOptions<DB> {
    if !options.get_test_before_acquire() {
        return options;
    }
    options.test_before_acquire(false).before_acquire(move |connection, _| {
        let pool = pool.clone();
        Box::pin(async move {
            let began = Instant::now();
            let answer = connection.ping().await;
            pool.recycled(began.elapsed());
            answer.map(|()| true)
        })
    })
}

/// A wait ends without a connection.
#[cold]
fn give_up(wait: PoolWait<'_>, error: &Error, pool: PoolSize) {
    match error {
        Error::PoolTimedOut if pool.size < pool.max => wait.timed_out(TimeoutKind::Create),
        Error::PoolTimedOut => wait.timed_out(TimeoutKind::Wait),
        _ => wait.failed(),
    }
}

impl<DB: Database> Clone for ObservedPool<DB> {
    fn clone(&self) -> Self {
        Self { watched: self.watched.clone() }
    }
}

impl<DB: Database> Deref for ObservedPool<DB> {
    type Target = Pool<DB>;

    fn deref(&self) -> &Pool<DB> {
        &self.watched.source
    }
}

impl<DB: Database> fmt::Debug for ObservedPool<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ObservedPool").field(&**self).finish()
    }
}

impl<'c, DB: Database> Acquire<'c> for &'_ ObservedPool<DB> {
    type Database = DB;
    type Connection = Timed<DB, PoolConnection<DB>>;

    fn acquire(self) -> BoxFuture<'c, Result<Self::Connection, Error>> {
        let acquire = self.acquire();
        Box::pin(async move { Ok(acquire.await?.timed) })
    }

    fn begin(self) -> BoxFuture<'c, Result<Transaction<'c, DB>, Error>> {
        let acquire = self.acquire();
        Box::pin(async move {
            let Timed { connection, hold, .. } = acquire.await?.into_transaction(None).await?.timed;
            hold.lose();
            Ok(connection)
        })
    }
}

impl<'p, DB: Queries> Executor<'p> for &'_ ObservedPool<DB> {
    type Database = DB;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<DB::QueryResult, DB::Row>, Error>>
    where
        E: 'q + Execute<'q, DB>,
    {
        let (acquire, next) = (self.acquire(), Next::default());
        let run = {
            let next = next.clone();
            async move {
                let mut connection = acquire.await?;
                let mut rows = (&mut *connection).fetch_many(query);
                while let Some(row) = poll_fn(|cx| rows.as_mut().poll_next(cx)).await {
                    next.hand_over(row?).await;
                }
                Ok(())
            }
        };
        Box::pin(Rows { run: Some(Box::pin(run)), next })
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<DB::Row>, Error>>
    where
        E: 'q + Execute<'q, DB>,
    {
        let acquire = self.acquire();
        Box::pin(async move { (&mut *acquire.await?).fetch_optional(query).await })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement, Error>>
    where
        'p: 'e,
    {
        let acquire = self.acquire();
        Box::pin(async move { (&mut *acquire.await?).prepare_with(sql, parameters).await })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<DB>, Error>>
    where
        'p: 'e,
    {
        let acquire = self.acquire();
        Box::pin(async move { (&mut *acquire.await?).describe(sql).await })
    }
}

/// The rows of a query, with the connection that it runs on: a future that gets them, one after another.
struct Rows<'e, T> {
    /// `None` when it is over.
    run: Option<BoxFuture<'e, Result<(), Error>>>,
    next: Next<T>,
}

/// A row that is handed over. The future and the stream that it is in are polled by the same task: nobody waits
/// for the lock.
struct Next<T>(Arc<Mutex<Option<T>>>);

impl<T> Next<T> {
    fn row(&self) -> MutexGuard<'_, Option<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready when the stream is asked for the row after this one.
    async fn hand_over(&self, row: T) {
        *self.row() = Some(row);
        let mut handed_over = false;
        poll_fn(
            |_| {
                if mem::replace(&mut handed_over, true) { Poll::Ready(()) } else { Poll::Pending }
            },
        )
        .await;
    }
}

impl<T> Clone for Next<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Next<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Stream for Rows<'_, T> {
    type Item = Result<T, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(run) = &mut self.run else { return Poll::Ready(None) };
        match run.as_mut().poll(cx) {
            Poll::Ready(result) => {
                self.run = None;
                Poll::Ready(result.err().map(Err))
            }
            Poll::Pending => match self.next.row().take() {
                Some(row) => Poll::Ready(Some(Ok(row))),
                None => Poll::Pending,
            },
        }
    }
}

/// What an [`ObservedPool`] lent: a connection, or a transaction on one. As with sqlx's own types, queries go
/// through `&mut *lease`.
pub struct Lease<DB: Database, C> {
    timed: Timed<DB, C>,
}

impl<DB: Database, C> Lease<DB, C> {
    fn new(connection: C, hold: PoolHold) -> Self {
        Self { timed: Timed { connection, hold, database: PhantomData } }
    }
}

impl<DB: Database, C: DerefMut<Target = DB::Connection>> Lease<DB, C> {
    /// Begins a transaction on the connection; within a transaction, sets a savepoint.
    ///
    /// # Errors
    ///
    /// Those of [`Connection::begin`].
    pub async fn begin(&mut self) -> Result<ObservedTransaction<'_, DB>, Error> {
        self.timed.begin().await
    }
}

impl<DB: Database> ObservedConnection<DB> {
    async fn into_transaction(
        self,
        statement: Option<SqlStr>,
    ) -> Result<ObservedTransaction<'static, DB>, Error> {
        let Timed { connection, hold, .. } = self.timed;
        let begin = Transaction::begin(connection, statement);
        let transaction = observe(hold.pool(), begin).await?;
        Ok(Lease::new(transaction, hold))
    }

    /// sqlx's own connection, which counts as given back from now on.
    #[must_use = "dropped, the connection goes back to the pool"]
    pub fn into_inner(self) -> PoolConnection<DB> {
        self.timed.connection
    }

    /// Closes the connection: see [`PoolConnection::close`].
    ///
    /// # Errors
    ///
    /// Those of [`PoolConnection::close`].
    pub async fn close(self) -> Result<(), Error> {
        let Timed { connection, hold: _hold, .. } = self.timed;
        connection.close().await
    }

    /// Closes the connection when it is dropped: see [`PoolConnection::close_on_drop`].
    pub fn close_on_drop(&mut self) {
        self.timed.connection.close_on_drop();
    }

    /// Takes the connection out of the pool: see [`PoolConnection::detach`]. It counts as given back.
    #[must_use = "dropped, the connection is closed"]
    pub fn detach(self) -> DB::Connection {
        self.into_inner().detach()
    }

    /// Takes the connection out of the pool, which has one less from now on: see [`PoolConnection::leak`]. It
    /// counts as given back.
    #[must_use = "dropped, the connection is closed"]
    pub fn leak(self) -> DB::Connection {
        self.into_inner().leak()
    }
}

impl<DB: Database> ObservedTransaction<'_, DB> {
    /// Commits the transaction, or releases the savepoint.
    ///
    /// # Errors
    ///
    /// Those of [`Transaction::commit`].
    pub async fn commit(self) -> Result<(), Error> {
        let Timed { connection, hold, .. } = self.timed;
        observe(hold.pool(), connection.commit()).await
    }

    /// Rolls the transaction back, to its savepoint if it has one.
    ///
    /// # Errors
    ///
    /// Those of [`Transaction::rollback`].
    pub async fn rollback(self) -> Result<(), Error> {
        let Timed { connection, hold, .. } = self.timed;
        observe(hold.pool(), connection.rollback()).await
    }
}

impl<DB: Database, C> Deref for Lease<DB, C> {
    type Target = Timed<DB, C>;

    fn deref(&self) -> &Timed<DB, C> {
        &self.timed
    }
}

impl<DB: Database, C> DerefMut for Lease<DB, C> {
    fn deref_mut(&mut self) -> &mut Timed<DB, C> {
        &mut self.timed
    }
}

impl<DB: Database, C: Deref<Target = DB::Connection>> AsRef<DB::Connection> for Lease<DB, C> {
    fn as_ref(&self) -> &DB::Connection {
        &self.timed
    }
}

impl<DB: Database, C: DerefMut<Target = DB::Connection>> AsMut<DB::Connection> for Lease<DB, C> {
    fn as_mut(&mut self) -> &mut DB::Connection {
        &mut self.timed
    }
}

impl<DB: Database, C> fmt::Debug for Lease<DB, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("hold", &self.timed.hold).finish()
    }
}

impl<'c, DB: Database, C> Acquire<'c> for &'c mut Lease<DB, C>
where
    C: DerefMut<Target = DB::Connection>,
{
    type Database = DB;
    type Connection = &'c mut DB::Connection;

    fn acquire(self) -> BoxFuture<'c, Result<Self::Connection, Error>> {
        Acquire::acquire(&mut self.timed)
    }

    fn begin(self) -> BoxFuture<'c, Result<Transaction<'c, DB>, Error>> {
        Acquire::begin(&mut self.timed)
    }
}

/// A connection whose queries are timed: an [`Executor`], and the [connection](sqlx::Connection) of the database
/// for everything else.
pub struct Timed<DB: Database, C> {
    // Given back before it counts as such.
    connection: C,
    hold: PoolHold,
    database: PhantomData<fn() -> DB>,
}

/// Makes the time of a future or a stream a query's.
fn observe<F>(pool: &PoolWatch, query: F) -> Observed<F> {
    let (recorder, phase) = pool.query();
    Observed::new(recorder, phase, query)
}

impl<DB: Database, C: DerefMut<Target = DB::Connection>> Timed<DB, C> {
    /// Begins a transaction on the connection; within a transaction, sets a savepoint.
    ///
    /// # Errors
    ///
    /// Those of [`Connection::begin`].
    pub async fn begin(&mut self) -> Result<ObservedTransaction<'_, DB>, Error> {
        let Self { connection, hold, .. } = self;
        let begin = Transaction::begin(&mut **connection, None);
        Ok(Lease::new(observe(hold.pool(), begin).await?, hold.by_another()))
    }
}

impl<DB: Database, C: Deref> Deref for Timed<DB, C> {
    type Target = C::Target;

    fn deref(&self) -> &C::Target {
        &self.connection
    }
}

impl<DB: Database, C: DerefMut> DerefMut for Timed<DB, C> {
    fn deref_mut(&mut self) -> &mut C::Target {
        &mut self.connection
    }
}

impl<DB: Database, C: DerefMut<Target = DB::Connection>> AsMut<DB::Connection> for Timed<DB, C> {
    fn as_mut(&mut self) -> &mut DB::Connection {
        &mut self.connection
    }
}

impl<DB: Database, C> fmt::Debug for Timed<DB, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timed").field("hold", &self.hold).finish_non_exhaustive()
    }
}

impl<'c, DB: Database, C> Acquire<'c> for &'c mut Timed<DB, C>
where
    C: DerefMut<Target = DB::Connection>,
{
    type Database = DB;
    type Connection = &'c mut DB::Connection;

    fn acquire(self) -> BoxFuture<'c, Result<Self::Connection, Error>> {
        Box::pin(ready(Ok(&mut *self.connection)))
    }

    fn begin(self) -> BoxFuture<'c, Result<Transaction<'c, DB>, Error>> {
        let Timed { connection, hold, .. } = self;
        Box::pin(observe(hold.pool(), Transaction::begin(&mut **connection, None)))
    }
}

impl<'c, DB: Queries, C> Executor<'c> for &'c mut Timed<DB, C>
where
    C: DerefMut<Target = DB::Connection> + Send,
{
    type Database = DB;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<DB::QueryResult, DB::Row>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        Box::pin(observe(self.hold.pool(), DB::fetch_many(&mut self.connection, query)))
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<DB::Row>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, DB>,
    {
        Box::pin(observe(self.hold.pool(), DB::fetch_optional(&mut self.connection, query)))
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement, Error>>
    where
        'c: 'e,
    {
        Box::pin(observe(self.hold.pool(), DB::prepare_with(&mut self.connection, sql, parameters)))
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<DB>, Error>>
    where
        'c: 'e,
    {
        Box::pin(observe(self.hold.pool(), DB::describe(&mut self.connection, sql)))
    }
}

/// A database whose connections run queries, which are all that sqlx knows.
///
/// It stands for the bound that says so. That one would have the compiler ask of every [`Timed`] whether the
/// connection in it is another one, and so on without an end.
pub trait Queries: Database {
    #[doc(hidden)]
    #[expect(clippy::type_complexity, reason = "it is that of sqlx's own")]
    fn fetch_many<'e, 'q: 'e, E>(
        connection: &'e mut Self::Connection,
        query: E,
    ) -> BoxStream<'e, Result<Either<Self::QueryResult, Self::Row>, Error>>
    where
        E: 'q + Execute<'q, Self>;

    #[doc(hidden)]
    fn fetch_optional<'e, 'q: 'e, E>(
        connection: &'e mut Self::Connection,
        query: E,
    ) -> BoxFuture<'e, Result<Option<Self::Row>, Error>>
    where
        E: 'q + Execute<'q, Self>;

    #[doc(hidden)]
    fn prepare_with<'e>(
        connection: &'e mut Self::Connection,
        sql: SqlStr,
        parameters: &'e [Self::TypeInfo],
    ) -> BoxFuture<'e, Result<Self::Statement, Error>>;

    #[doc(hidden)]
    fn describe(
        connection: &mut Self::Connection,
        sql: SqlStr,
    ) -> BoxFuture<'_, Result<Describe<Self>, Error>>;
}

impl<DB: Database> Queries for DB
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    fn fetch_many<'e, 'q: 'e, E>(
        connection: &'e mut DB::Connection,
        query: E,
    ) -> BoxStream<'e, Result<Either<DB::QueryResult, DB::Row>, Error>>
    where
        E: 'q + Execute<'q, DB>,
    {
        Executor::fetch_many(connection, query)
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        connection: &'e mut DB::Connection,
        query: E,
    ) -> BoxFuture<'e, Result<Option<DB::Row>, Error>>
    where
        E: 'q + Execute<'q, DB>,
    {
        Executor::fetch_optional(connection, query)
    }

    fn prepare_with<'e>(
        connection: &'e mut DB::Connection,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, Result<DB::Statement, Error>> {
        Executor::prepare_with(connection, sql, parameters)
    }

    fn describe(
        connection: &mut DB::Connection,
        sql: SqlStr,
    ) -> BoxFuture<'_, Result<Describe<DB>, Error>> {
        Executor::describe(connection, sql)
    }
}
