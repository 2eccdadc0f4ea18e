//! Pools of `deadpool-redis`: commands, and what a cache had.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use ::deadpool::managed::{Manager, Object, Pool, PoolError, Timeouts};
use deadpool_redis::redis::{Arg, Cmd, Pipeline, RedisFuture, Value, aio::ConnectionLike};

use crate::{
    deadpool::{ObservedDeadpool, ObservedObject},
    perf::Perf,
    phase::{Observed, PhaseIndex},
    pool::CacheWatch,
    recorder::LocalRecorder,
};

impl Perf {
    /// Watches a pool of `deadpool-redis` and the commands that go through it, by wrapping it.
    ///
    /// The pool is watched as by [`observe_deadpool`](Self::observe_deadpool). A command, or a pipeline, is a
    /// phase `cache:<name>` of its request, from its first poll until its answer is there or nobody waits for
    /// it any more. Lookups count as hits and misses of the [cache](Self::cache) of that name;
    /// [`ObservedConnection`] says which.
    ///
    /// Pools of `deadpool_redis::cluster` and `deadpool_redis::sentinel` are welcome, and so is each pool whose
    /// connections deref to something that takes commands.
    ///
    /// ```
    /// use deadpool_redis::{Pool, PoolError, redis::AsyncCommands};
    /// # use parallax_middleware::Perf;
    ///
    /// # async fn price(perf: &Perf, pool: Pool) -> Result<Option<u64>, Box<dyn std::error::Error>> {
    /// let cache = perf.observe_redis("prices", pool); // Once, where the pool is made.
    ///
    /// let mut connection = cache.get().await?; // `pool_wait:prices`
    /// let price: Option<u64> = connection.get("price:7").await?; // `cache:prices`, and a hit or a miss
    /// # Ok(price)
    /// # }
    /// ```
    pub fn observe_redis<M, W>(&self, name: &str, pool: Pool<M, W>) -> ObservedRedis<M, W>
    where
        M: Manager + 'static,
        W: From<Object<M>>,
    {
        let commands = Commands {
            recorder: LocalRecorder::clone(self.recorder()),
            phase: self.recorder().phase(&format!("cache:{name}")),
            cache: self.cache(name),
        };
        ObservedRedis { pool: self.observe_deadpool(name, pool), commands: Arc::new(commands) }
    }
}

/// Where commands are counted.
struct Commands {
    recorder: LocalRecorder,
    /// `cache:<name>`.
    phase: PhaseIndex,
    cache: CacheWatch,
}

impl Commands {
    fn observe<F: Future>(&self, command: F) -> Observed<F> {
        Observed::new(self.recorder.clone(), self.phase, command)
    }

    /// Counts what a command looked for, if it is a lookup.
    fn count(&self, command: &Cmd, answer: &Value) {
        let Some(lookup) = Lookup::of(command) else { return };
        let (hits, misses) = lookup.found(command.args_iter().len() - 1, answer);
        self.cache.add(hits, misses);
    }
}

/// How the answer to a lookup says what was there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Lookup {
    /// It is nil if nothing was.
    One,
    /// It has an element for each thing that was looked for, nil if that was not there.
    Each,
    /// It is empty if nothing was.
    All,
    /// It is 0 if it was not.
    Whether,
    /// It says how many of the keys were.
    HowMany,
}

impl Lookup {
    const NAMES: [(&str, Self); 10] = [
        ("GET", Self::One),
        ("GETDEL", Self::One),
        ("GETEX", Self::One),
        ("HGET", Self::One),
        ("MGET", Self::Each),
        ("HMGET", Self::Each),
        ("HGETEX", Self::Each),
        ("HGETALL", Self::All),
        ("HEXISTS", Self::Whether),
        ("EXISTS", Self::HowMany),
    ];

    fn of(command: &Cmd) -> Option<Self> {
        let Some(Arg::Simple(name)) = command.args_iter().next() else { return None };
        let known = |(known, _): &&(&str, _)| name.eq_ignore_ascii_case(known.as_bytes());
        Self::NAMES.iter().find(known).map(|(_, lookup)| *lookup)
    }

    /// How much of what a command of so many arguments looked for was there, and how much was not. Neither,
    /// if the answer says nothing of it.
    fn found(self, arguments: usize, answer: &Value) -> (u64, u64) {
        let one = |there| if there { (1, 0) } else { (0, 1) };
        match (self, answer) {
            (_, Value::ServerError(_)) => (0, 0),
            (_, Value::Attribute { data, .. }) => self.found(arguments, data),
            (Self::One, found) => one(*found != Value::Nil),
            (Self::Each, Value::Array(found)) => {
                let misses = found.iter().filter(|found| **found == Value::Nil).count();
                ((found.len() - misses) as u64, misses as u64)
            }
            (Self::All, Value::Array(found)) => one(!found.is_empty()),
            (Self::All, Value::Map(found)) => one(!found.is_empty()),
            (Self::Whether, Value::Int(found)) => one(*found != 0),
            (Self::HowMany, Value::Int(found)) => {
                let hits = u64::try_from(*found).unwrap_or(0);
                (hits, (arguments as u64).saturating_sub(hits))
            }
            _ => (0, 0),
        }
    }
}

/// A pool of `deadpool-redis` that is watched, and so are its commands. Made by [`Perf::observe_redis`].
///
/// It has [`get`](Self::get) and [`timeout_get`](Self::timeout_get); for all else it derefs to the pool. Who
/// asks the pool itself is not counted. Clones share the pool.
pub struct ObservedRedis<M = deadpool_redis::Manager, W = deadpool_redis::Connection>
where
    M: Manager,
    W: From<Object<M>>,
{
    pool: ObservedDeadpool<M, W>,
    commands: Arc<Commands>,
}

impl<M: Manager, W: From<Object<M>>> ObservedRedis<M, W> {
    /// Waits for a connection: [`ObservedDeadpool::get`].
    ///
    /// # Errors
    /// Those of [`ObservedDeadpool::get`].
    ///
    /// # Cancel safety
    /// That of [`ObservedDeadpool::get`].
    pub async fn get(&self) -> Result<ObservedConnection<W>, PoolError<M::Error>> {
        Ok(self.connection(self.pool.get().await?))
    }

    /// Waits for a connection with other timeouts than the pool has: [`ObservedDeadpool::timeout_get`].
    ///
    /// # Errors
    /// Those of [`ObservedDeadpool::get`].
    ///
    /// # Cancel safety
    /// That of [`ObservedDeadpool::get`].
    pub async fn timeout_get(
        &self,
        timeouts: &Timeouts,
    ) -> Result<ObservedConnection<W>, PoolError<M::Error>> {
        Ok(self.connection(self.pool.timeout_get(timeouts).await?))
    }

    fn connection(&self, connection: ObservedObject<W>) -> ObservedConnection<W> {
        ObservedConnection { connection, commands: self.commands.clone() }
    }
}

impl<M: Manager, W: From<Object<M>>> Deref for ObservedRedis<M, W> {
    type Target = Pool<M, W>;

    fn deref(&self) -> &Pool<M, W> {
        &self.pool
    }
}

impl<M: Manager, W: From<Object<M>>> Clone for ObservedRedis<M, W> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), commands: self.commands.clone() }
    }
}

impl<M: Manager, W: From<Object<M>>> fmt::Debug for ObservedRedis<M, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObservedRedis").field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// A connection of an [`ObservedRedis`]. It takes commands and pipelines as the connection within does, by
/// `AsyncCommands` or by `query_async(&mut connection)`.
///
/// Each is a phase `cache:<name>` of its request. These, alone or in a pipeline, are lookups, in upper or lower
/// case:
///
/// | command | hits and misses |
/// |---|---|
/// | `GET`, `GETDEL`, `GETEX`, `HGET` | nil is a miss, all else a hit |
/// | `MGET`, `HMGET`, `HGETEX` | the same for each key, or field, that was asked for |
/// | `HGETALL` | nothing is a miss, one field or more are one hit |
/// | `HEXISTS` | 0 is a miss, 1 a hit |
/// | `EXISTS` | each key that there is is a hit, each other one a miss |
///
/// All other commands are neither: those that write, scripts, and lookups in lists, sets and streams, where
/// nothing is an answer as good as any. Nor is a lookup that fails, or one of a transaction that was aborted.
/// Where a value has to be decoded to know whether it will do, have the [cache](Perf::cache) count it instead,
/// under another name.
///
/// It derefs to the connection within: what is asked of that is not counted. It counts as in use until it
/// is dropped or [taken apart](Self::into_inner).
#[must_use = "dropped, it goes back into the pool"]
pub struct ObservedConnection<W = deadpool_redis::Connection> {
    connection: ObservedObject<W>,
    commands: Arc<Commands>,
}

impl<W> ObservedConnection<W> {
    /// The connection within, for `Connection::take` for example. It counts as in use no more.
    pub fn into_inner(this: Self) -> W {
        ObservedObject::into_inner(this.connection)
    }
}

impl<W: DerefMut<Target: ConnectionLike>> ConnectionLike for ObservedConnection<W> {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let Self { connection, commands } = self;
        let asked = commands.observe(connection.deref_mut().req_packed_command(command));
        Box::pin(async move {
            let answer = asked.await?;
            commands.count(command, &answer);
            Ok(answer)
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let Self { connection, commands } = self;
        let connection = connection.deref_mut();
        let asked = commands.observe(connection.req_packed_commands(pipeline, offset, count));
        Box::pin(async move {
            let answers = asked.await?;
            let of_each = match &*answers {
                [Value::Array(of_each)] if pipeline.is_transaction() => of_each,
                // Aborted.
                _ if pipeline.is_transaction() => &Vec::new(),
                _ => &answers,
            };
            for (command, answer) in pipeline.cmd_iter().zip(of_each) {
                commands.count(command, answer);
            }
            Ok(answers)
        })
    }

    fn get_db(&self) -> i64 {
        self.connection.deref().get_db()
    }
}

impl<W> Deref for ObservedConnection<W> {
    type Target = W;

    fn deref(&self) -> &W {
        &self.connection
    }
}

impl<W> DerefMut for ObservedConnection<W> {
    fn deref_mut(&mut self) -> &mut W {
        &mut self.connection
    }
}

impl<W> fmt::Debug for ObservedConnection<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObservedConnection")
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}
