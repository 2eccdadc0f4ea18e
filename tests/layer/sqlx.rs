//! Pools of sqlx: the wrapper goes wherever a pool goes, and what it says of waits, queries and holds is so.
//!
//! On SQLite and on a real PostgreSQL, which take real time: bounds are those that hold on a machine of any speed.

use std::time::Duration;

use axum::{Router, routing::get};
use futures_util::{StreamExt, TryStreamExt};
use parallax_middleware::{
    Outcome, Perf, PoolView, ServerRecord,
    sqlx::{ObservedConnection, ObservedPool},
};
use sqlx::{
    Acquire, Connection, Error, Executor, PgConnection, Postgres, Sqlite, SqliteConnection,
    postgres::PgPoolOptions, query, query_as, query_scalar, raw_sql, sqlite::SqlitePoolOptions,
};
use tokio::{
    net::TcpListener,
    task::{JoinSet, spawn},
    time::{Instant, timeout},
};

use crate::support::{
    eventually, postgres,
    rig::{Rig, request},
};

const SEVEN: &str = "SELECT CAST(7 AS BIGINT)";
const THREE_ROWS: &str = "SELECT CAST(1 AS BIGINT) UNION ALL SELECT 2 UNION ALL SELECT 3";

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn row(perf: &Perf) -> PoolView {
    perf.snapshot().view().pools.into_iter().find(|pool| pool.name == "db").expect("it is watched")
}

/// How often work for no request was in a phase.
fn elsewhere(perf: &Perf, phase: &str) -> u64 {
    perf.snapshot().view().elsewhere.get(phase).map_or(0, |times| times.count)
}

async fn sqlite(perf: &Perf, options: SqlitePoolOptions) -> ObservedPool<Sqlite> {
    perf.observe_sqlx("db", options.connect("sqlite::memory:").await.expect("there is memory"))
}

/// A pool whose connections are open.
async fn filled(
    perf: &Perf,
    server: &postgres::Postgres,
    connections: u32,
) -> ObservedPool<Postgres> {
    let options = PgPoolOptions::new().max_connections(connections);
    let pool = options.connect(&server.url()).await.expect("it runs");
    let mut all = Vec::new();
    for _ in 0..connections {
        all.push(pool.acquire().await.expect("it runs"));
    }
    perf.observe_sqlx("db", pool)
}

/// Waits until nobody holds a connection, and those that were held are back.
async fn idle<DB: sqlx::Database>(perf: &Perf, pool: &ObservedPool<DB>) {
    eventually("all connections are back", async || {
        (row(perf).in_use == 0 && pool.num_idle() == pool.size() as usize).then_some(())
    })
    .await;
}

/// A router of one route, whose handler runs `run` on the pool.
fn handled<F, Fut>(perf: &Perf, pool: &ObservedPool<Postgres>, run: F) -> Rig
where
    F: Fn(Perf, ObservedPool<Postgres>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    let handler = {
        let (perf, pool) = (perf.clone(), pool.clone());
        async move || run(perf, pool).await
    };
    Rig::new(perf, Router::new().route("/work", get(handler)).layer(perf.layer()))
}

/// How long a request was in a phase.
fn time_in(perf: &Perf, record: &ServerRecord, phase: &str) -> Duration {
    let found = record.phases.iter().find(|time| perf.phase_name(time.phase) == phase);
    found.unwrap_or_else(|| panic!("{phase} is not in {record:?}")).time
}

async fn sleeps(pool: &ObservedPool<Postgres>, time: Duration) {
    let slept = query("SELECT pg_sleep($1)").bind(time.as_secs_f64()).execute(pool).await;
    slept.expect("the server sleeps");
}

/// Uses the wrapper of a pool of one connection in every way in which a pool can be used, and asserts what each
/// one counts: connections that were acquired, and queries.
macro_rules! in_every_way {
    ($name:ident, $database:ty, $connection:ty, $begin:literal) => {
        async fn $name(perf: &Perf, pool: &ObservedPool<$database>) {
            async fn executes<'e, E: Executor<'e, Database = $database>>(on: E) -> i64 {
                query_scalar(SEVEN).fetch_one(on).await.expect("a row")
            }
            async fn acquires<'a, A: Acquire<'a, Database = $database>>(from: A) -> i64 {
                let mut connection = from.acquire().await.expect("a connection");
                query_scalar(SEVEN).fetch_one(&mut *connection).await.expect("a row")
            }
            async fn begins<'a, A: Acquire<'a, Database = $database>>(from: A) -> i64 {
                let mut transaction = from.begin().await.expect("a transaction");
                let seven = query_scalar(SEVEN).fetch_one(&mut *transaction).await.expect("a row");
                transaction.commit().await.expect("it commits");
                seven
            }
            async fn plainly(connection: &mut $connection) -> i64 {
                query_scalar(SEVEN).fetch_one(connection).await.expect("a row")
            }

            let mut counted = (0, 0);
            let mut adds = |acquired: u64, queries: u64, by: &str| {
                counted = (counted.0 + acquired, counted.1 + queries);
                let waits = elsewhere(perf, "pool_wait:db");
                assert_eq!((waits, elsewhere(perf, "query:db")), counted, "{by}");
                let row = row(perf);
                assert_eq!(
                    (row.acquired, row.wait.count, row.in_use),
                    (counted.0, counted.0, 0),
                    "{by}"
                );
            };

            // On the pool itself.
            pool.execute("CREATE TABLE t (n BIGINT)").await.expect("a table");
            adds(1, 1, "Executor::execute");
            query("INSERT INTO t VALUES ($1)").bind(1_i64).execute(pool).await.expect("a row");
            adds(1, 1, "execute");
            let (seven,): (i64,) = query_as(SEVEN).fetch_one(pool).await.expect("a row");
            assert_eq!(seven, 7);
            adds(1, 1, "fetch_one");
            let none: Option<i64> = query_scalar("SELECT n FROM t WHERE n = 9")
                .fetch_optional(pool)
                .await
                .expect("it runs");
            assert_eq!(none, None);
            adds(1, 1, "fetch_optional");
            let all: Vec<i64> = query_scalar(THREE_ROWS).fetch_all(pool).await.expect("rows");
            assert_eq!(all, [1, 2, 3]);
            adds(1, 1, "fetch_all");
            let all: Vec<i64> =
                query_scalar::<_, i64>(THREE_ROWS).fetch(pool).try_collect().await.expect("rows");
            assert_eq!(all, [1, 2, 3]);
            adds(1, 1, "fetch");
            let steps: Vec<_> =
                raw_sql("SELECT 1; SELECT 2").fetch_many(pool).try_collect().await.expect("rows");
            assert_eq!(steps.iter().filter(|step| step.is_right()).count(), 2);
            adds(1, 1, "fetch_many");
            query("SELECT nothing FROM nowhere").execute(pool).await.expect_err("no such table");
            adds(1, 1, "a query that fails");
            let sql = || sqlx::SqlSafeStr::into_sql_str(SEVEN);
            pool.prepare(sql()).await.expect("a statement");
            adds(1, 1, "prepare");
            pool.describe(sql()).await.expect("a description");
            adds(1, 1, "describe");
            assert_eq!(executes(pool).await, 7);
            adds(1, 1, "a function of any Executor");
            {
                let mut rows = query(THREE_ROWS).fetch(pool);
                rows.next().await.expect("a row").expect("it runs");
                assert_eq!(row(perf).in_use, 1);
            }
            adds(1, 1, "a stream that is not read to its end");

            // On a connection.
            let mut connection = pool.acquire().await.expect("a connection");
            query(SEVEN).execute(&mut *connection).await.expect("it runs");
            connection.execute(SEVEN).await.expect("it runs");
            assert_eq!(executes(&mut *connection).await, 7);
            let rows: Vec<_> =
                query(THREE_ROWS).fetch(&mut *connection).try_collect().await.expect("rows");
            assert_eq!((rows.len(), row(perf).in_use), (3, 1));
            let mut transaction = connection.begin().await.expect("a transaction");
            query(SEVEN).execute(&mut *transaction).await.expect("it runs");
            transaction.commit().await.expect("it commits");
            drop(connection);
            adds(1, 7, "queries on a connection");
            let mut connection = pool.acquire().await.expect("a connection");
            connection.ping().await.expect("it is there");
            assert_eq!(plainly(&mut connection).await, 7);
            assert_eq!(acquires(&mut connection).await, 7);
            assert_eq!(acquires(&mut *connection).await, 7);
            drop(connection);
            adds(1, 0, "queries past the wrapper");
            let mut connection = pool.acquire().await.expect("a connection");
            assert_eq!(begins(&mut connection).await + begins(&mut *connection).await, 14);
            drop(connection);
            adds(1, 2, "a function of any Acquire, on a connection");

            // On a transaction.
            let insert = || query("INSERT INTO t VALUES (2)");
            let mut transaction = pool.begin().await.expect("a transaction");
            insert().execute(&mut *transaction).await.expect("a row");
            transaction.rollback().await.expect("it rolls back");
            adds(1, 3, "a transaction that is rolled back");
            let mut transaction = pool.begin().await.expect("a transaction");
            insert().execute(&mut *transaction).await.expect("a row");
            drop(transaction);
            adds(1, 2, "a transaction that is dropped");
            let mut transaction = pool.begin().await.expect("a transaction");
            insert().execute(&mut *transaction).await.expect("a row");
            let mut inner = transaction.begin().await.expect("a savepoint");
            insert().execute(&mut *inner).await.expect("a row");
            inner.rollback().await.expect("it rolls back");
            assert_eq!(executes(&mut *transaction).await, 7);
            assert_eq!(row(perf).in_use, 1);
            transaction.commit().await.expect("it commits");
            adds(1, 7, "a transaction within a transaction");
            let transaction = pool.begin_with($begin).await.expect("a transaction");
            transaction.commit().await.expect("it commits");
            adds(1, 2, "begin_with");
            let rows: i64 =
                query_scalar("SELECT COUNT(*) FROM t").fetch_one(pool).await.expect("a row");
            assert_eq!(rows, 2);
            adds(1, 1, "what is left");

            // Only what is there at once.
            let held = pool.acquire().await.expect("a connection");
            assert!(pool.try_acquire().is_none());
            assert!(pool.try_begin().await.expect("none is no error").is_none());
            drop(held);
            adds(1, 0, "try_acquire in vain");
            idle(perf, pool).await;
            assert_eq!(executes(&mut *pool.try_acquire().expect("it is idle")).await, 7);
            adds(1, 1, "try_acquire");
            idle(perf, pool).await;
            let transaction = pool.try_begin().await.expect("it runs").expect("it is idle");
            transaction.commit().await.expect("it commits");
            adds(1, 2, "try_begin");
            idle(perf, pool).await;
            let transaction =
                pool.try_begin_with($begin).await.expect("it runs").expect("it is idle");
            transaction.commit().await.expect("it commits");
            adds(1, 2, "try_begin_with");

            // By functions that take whatever connections come from.
            assert_eq!(acquires(pool).await, 7);
            adds(1, 0, "a function of any Acquire that acquires");
            assert_eq!(row(perf).hold.count, row(perf).acquired);
            assert_eq!(begins(pool).await, 7);
            adds(1, 1, "a function of any Acquire that begins");
            assert_eq!(row(perf).hold.count, row(perf).acquired - 1, "sqlx has that one");

            // And out of the pool again.
            let acquire = async || pool.acquire().await.expect("a connection");
            drop::<sqlx::pool::PoolConnection<$database>>(acquire().await.into_inner());
            acquire().await.close().await.expect("it closes");
            acquire().await.close_on_drop();
            acquire().await.detach().close().await.expect("it closes");
            adds(4, 0, "connections that are let go of");
            assert_eq!(row(perf).hold.count, row(perf).acquired - 1);
            drop::<$connection>(acquire().await.leak());
            adds(1, 0, "a connection that is leaked");
        }
    };
}

in_every_way!(on_sqlite, Sqlite, SqliteConnection, "BEGIN IMMEDIATE");
in_every_way!(on_postgres, Postgres, PgConnection, "BEGIN READ ONLY");

#[tokio::test]
async fn the_wrapper_goes_wherever_a_pool_of_sqlite_goes() {
    let perf = Perf::new();
    on_sqlite(&perf, &sqlite(&perf, SqlitePoolOptions::new().max_connections(1)).await).await;
}

#[tokio::test]
async fn the_wrapper_goes_wherever_a_pool_of_postgresql_goes() {
    let (perf, server) = (Perf::new(), postgres::Postgres::start());
    on_postgres(&perf, &filled(&perf, &server, 1).await).await;
}

/// It runs nothing: that there is no server is all that it can find out.
#[cfg(feature = "mysql")]
#[tokio::test]
async fn the_wrapper_goes_where_a_pool_of_mysql_goes() {
    let perf = Perf::new();
    let options = sqlx::mysql::MySqlPoolOptions::new().acquire_timeout(ms(50));
    let pool = options.connect_lazy("mysql://nobody@127.0.0.1:1/none").expect("an address");
    let pool = perf.observe_sqlx("db", pool);
    async fn used(pool: &ObservedPool<sqlx::MySql>) -> Result<(), Error> {
        query("SELECT ?").bind(7).execute(pool).await?;
        let mut transaction = pool.begin().await?;
        query("SELECT 7").fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        let mut connection = Acquire::acquire(pool).await?;
        query("SELECT 7").fetch_one(&mut connection).await?;
        pool.acquire().await?.ping().await
    }
    assert!(matches!(used(&pool).await, Err(Error::PoolTimedOut)));
    assert_eq!((row(&perf).acquired, row(&perf).create_timeouts), (0, 1));
}

/// Functions that know the database no more than by its bounds.
#[tokio::test]
async fn the_wrapper_goes_into_functions_of_any_database() {
    async fn executes<DB: sqlx::Database>(pool: &ObservedPool<DB>) -> Result<(), Error>
    where
        for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    {
        pool.execute(SEVEN).await?;
        let mut connection = pool.acquire().await?;
        connection.execute(SEVEN).await?;
        (**connection).execute(SEVEN).await?;
        drop(connection);
        let mut transaction: parallax_middleware::sqlx::ObservedTransaction<'_, DB> =
            pool.begin().await?;
        transaction.execute(SEVEN).await?;
        transaction.commit().await
    }
    let perf = Perf::new();
    let pool = sqlite(&perf, SqlitePoolOptions::new()).await;
    executes(&pool).await.expect("it runs");
    assert_eq!((row(&perf).acquired, elsewhere(&perf, "query:db")), (3, 5));
}

/// In waves: while 5 of 50 sleep, the others wait. With `late` for all that took longer than the sleeps: the
/// k-th connection is had after k / 5 sleeps and at most `late` later, since after it the sleeps of those that
/// are left still have to fit in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_requests_at_a_pool_of_five_wait_in_ten_waves() {
    const REQUESTS: usize = 50;
    const CONNECTIONS: u32 = 5;
    let nap = ms(100);
    let (perf, server) = (Perf::new(), postgres::Postgres::start());
    let pool = filled(&perf, &server, CONNECTIONS).await;
    let rig = handled(&perf, &pool, async |_, pool| sleeps(&pool, ms(100)).await);
    // All wait before the first one may sleep.
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        held.push(pool.acquire().await.expect("a connection"));
    }
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..REQUESTS {
        let rig = rig.clone();
        clients.spawn(async move { rig.get("/work").await });
    }
    eventually("all wait", async || (row(&perf).waiting == REQUESTS as u64).then_some(())).await;
    assert_eq!(row(&perf).in_use, 5);
    drop(held);
    clients.join_all().await;
    let waves = REQUESTS as u32 / CONNECTIONS;
    let late = started.elapsed() - nap * waves;
    rig.settled().await;

    let within = |what: &str, found: Duration, at_least: Duration| {
        // The server's clock is another one.
        let from = at_least.saturating_sub(ms(1));
        assert!(
            from <= found && found <= at_least + late,
            "{what}: {found:?}, {at_least:?} + {late:?}"
        );
    };
    let records = rig.records();
    assert_eq!(records.len(), REQUESTS);
    let mut waits: Vec<Duration> =
        records.iter().map(|record| time_in(&perf, record, "pool_wait:db")).collect();
    waits.sort_unstable();
    for (wave, waits) in (0..).zip(waits.chunks(CONNECTIONS as usize)) {
        for wait in waits {
            within(&format!("a wait of wave {wave}"), *wait, nap * wave);
        }
    }
    for record in &records {
        within("a query", time_in(&perf, record, "query:db"), nap);
        let wait = time_in(&perf, record, "pool_wait:db");
        let query = time_in(&perf, record, "query:db");
        assert_eq!(wait + query + record.handler, record.server_time, "one after the other");
    }

    let route = rig.row("GET /work");
    assert_eq!(route.overlap, None);
    let pool_row = row(&perf);
    let of_pool = pool_row.wait;
    // Those that were held first waited too, for nothing.
    assert_eq!((of_pool.count, route.phases["pool_wait:db"].count), (55, 50));
    assert_eq!(pool_row.acquired, 55);
    let us = |us: Option<f64>| Duration::from_secs_f64(us.expect("there are values") / 1e6);
    let of_route = route.phases["pool_wait:db"];
    within("the mean wait", us(of_route.mean_us), nap * (waves - 1) / 2);
    within("the longest wait", us(of_route.max_us), nap * (waves - 1));
    within("the longest wait of the pool", us(of_pool.max_us), nap * (waves - 1));
    // What a histogram rounds: 0.8 %.
    let exactly = |wait: Duration| wait.mul_f64(0.99)..=wait.mul_f64(1.01);
    assert!(exactly(waits[24]).contains(&us(of_route.p50_us)), "{of_route:?}: {waits:?}");
    assert!(exactly(waits[44]).contains(&us(of_route.p90_us)), "{of_route:?}: {waits:?}");
    let sum: Duration = waits.iter().sum();
    assert!(exactly(sum / 50).contains(&us(of_route.mean_us)), "{of_route:?}: {waits:?}");
    within("the mean query", us(route.phases["query:db"].mean_us), nap);
    let held_longest = us(pool_row.hold.max_us);
    assert!(held_longest >= nap, "{held_longest:?}");
}

#[tokio::test]
async fn requests_that_do_several_things_at_once_keep_their_waits_and_queries() {
    let (perf, server) = (Perf::new(), postgres::Postgres::start());
    let pool = filled(&perf, &server, 3).await;
    let joined = handled(&perf, &pool, async |_, pool| {
        tokio::join!(sleeps(&pool, ms(100)), sleeps(&pool, ms(60)));
    });
    let record = joined.get("/work").await.record;
    assert!(time_in(&perf, &record, "query:db") >= ms(159), "{record:?}");
    assert!(joined.row("GET /work").overlap.is_some());

    let followed = handled(&perf, &pool, async |perf, pool| {
        spawn(perf.follow(async move { sleeps(&pool, ms(60)).await })).await.expect("no panic");
    });
    let record = followed.get("/work").await.record;
    assert!(time_in(&perf, &record, "query:db") >= ms(59), "{record:?}");

    let cut = handled(&perf, &pool, async |_, pool| {
        timeout(ms(50), sleeps(&pool, ms(1_000))).await.expect_err("it takes longer");
        tokio::select! {
            () = sleeps(&pool, ms(1_000)) => panic!("it takes longer"),
            () = sleeps(&pool, ms(50)) => {}
        }
    });
    let record = cut.get("/work").await.record;
    assert!(time_in(&perf, &record, "query:db") >= ms(149), "{record:?}");
    assert_eq!(row(&perf).in_use, 0);
    idle(&perf, &pool).await;

    // A client that leaves.
    let left = handled(&perf, &pool, async |_, pool| sleeps(&pool, ms(1_000)).await);
    timeout(ms(100), left.open(request("GET", "/work"))).await.expect_err("it takes longer");
    let [record] = &*left.records() else { panic!("one request") };
    assert_eq!((record.outcome, row(&perf).in_use), (Outcome::Cancelled, 0));
    assert!(elsewhere(&perf, "query:db") == 0, "all of them are of a request");
}

#[tokio::test]
async fn what_is_read_of_a_stream_is_a_query_until_the_last_row_or_its_drop() {
    let (perf, server) = (Perf::new(), postgres::Postgres::start());
    let pool = filled(&perf, &server, 1).await;
    let rig = handled(&perf, &pool, async |_, pool| {
        let mut rows = query("SELECT pg_sleep(0.05) FROM generate_series(1, 3)").fetch(&pool);
        tokio::time::sleep(ms(40)).await;
        while let Some(row) = rows.next().await {
            row.expect("it runs");
        }
        tokio::time::sleep(ms(40)).await;
    });
    let record = rig.get("/work").await.record;
    assert!(time_in(&perf, &record, "query:db") >= ms(149), "{record:?}");
    assert!(
        record.handler >= ms(79),
        "neither before the first row nor after the last: {record:?}"
    );
}

#[tokio::test]
async fn who_waits_and_what_is_in_use_is_seen_while_it_is_so() {
    let perf = Perf::new();
    let pool = sqlite(&perf, SqlitePoolOptions::new().max_connections(2)).await;
    let seen = || {
        let row = row(&perf);
        (row.max, row.size, row.idle, row.in_use, row.waiting)
    };
    assert_eq!((row(&perf).kind.as_str(), seen()), ("sqlx", (2, 1, 1, 0, 0)));
    let first = pool.acquire().await.expect("a connection");
    assert_eq!(seen(), (2, 1, 0, 1, 0));
    let second = pool.begin().await.expect("a transaction");
    assert_eq!(seen(), (2, 2, 0, 2, 0));
    let third = spawn({
        let pool = pool.clone();
        async move { pool.acquire().await }
    });
    eventually("it waits", async || (seen() == (2, 2, 0, 2, 1)).then_some(())).await;
    drop(first);
    let third = third.await.expect("no panic").expect("a connection");
    assert_eq!(seen(), (2, 2, 0, 2, 0));
    drop((second, third));
    idle(&perf, &pool).await;
    assert_eq!(seen(), (2, 2, 2, 0, 0));
}

#[tokio::test]
async fn a_wait_that_runs_out_of_time_counts_by_what_it_waited_for() {
    let perf = Perf::new();
    let options = SqlitePoolOptions::new().max_connections(1).acquire_timeout(ms(50));
    let pool = sqlite(&perf, options).await;
    let held = pool.acquire().await.expect("a connection");
    let found = query(SEVEN).execute(&pool).await;
    assert!(matches!(found, Err(Error::PoolTimedOut)), "{found:?}");
    let seen = row(&perf);
    assert_eq!((seen.timeouts, seen.wait_timeouts, seen.waiting), (1, 1, 0));
    assert!(seen.wait.max_us >= Some(50_000.0), "{seen:?}");
    assert_eq!(elsewhere(&perf, "query:db"), 0, "there was none");
    drop(held);

    // A server that never answers, and none at all.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let ports = [silent.local_addr().expect("it listens").port(), 1];
    for (so_far, port) in (1..).zip(ports) {
        let url = format!("postgres://nobody@127.0.0.1:{port}/none");
        let options = PgPoolOptions::new().max_connections(1).acquire_timeout(ms(50));
        let perf = Perf::new();
        let pool = perf.observe_sqlx("db", options.connect_lazy(&url).expect("an address"));
        let found = pool.acquire().await;
        assert!(matches!(found, Err(Error::PoolTimedOut)), "{found:?}");
        let seen = row(&perf);
        assert_eq!((seen.timeouts, seen.create_timeouts), (1, 1), "{so_far}");
    }
}

#[tokio::test]
async fn other_errors_than_lack_of_time_count_as_failed() {
    let (perf, server) = (Perf::new(), postgres::Postgres::start());
    let options = PgPoolOptions::new().max_connections(1);
    let url = server.url().replace("/postgres", "/no-such-database");
    let pool = perf.observe_sqlx("db", options.connect_lazy(&url).expect("an address"));
    let found = pool.begin().await;
    assert!(matches!(found, Err(Error::Database(_))), "{found:?}");
    let seen = row(&perf);
    assert_eq!((seen.failed, seen.timeouts, seen.acquired, seen.waiting), (1, 0, 0, 0));
}

#[tokio::test]
async fn checks_of_idle_connections_are_counted_apart_if_the_options_are_prepared() {
    let (perf, server) = (Perf::new(), postgres::Postgres::start());
    let options = perf.observe_sqlx_options("db", PgPoolOptions::new().max_connections(1));
    let pool = perf.observe_sqlx("db", options.connect(&server.url()).await.expect("it runs"));
    // Connecting has opened one.
    let pid = async || query_scalar::<_, i32>("SELECT pg_backend_pid()").fetch_one(&pool).await;
    let first = pid().await.expect("a row");
    assert_eq!(pid().await.expect("a row"), first);
    assert_eq!(row(&perf).recycle.count, 2);
    // One that does not answer is replaced.
    idle(&perf, &pool).await;
    let mut other = PgConnection::connect(&server.url()).await.expect("it runs");
    let ended =
        query("SELECT pg_terminate_backend($1, 10000)").bind(first).execute(&mut other).await;
    ended.expect("it is ended");
    assert_ne!(pid().await.expect("a row"), first);
    let seen = row(&perf);
    assert_eq!((seen.recycle.count, seen.acquired, seen.failed), (3, 3, 0));

    let unchecked = PgPoolOptions::new().test_before_acquire(false);
    let options = perf.observe_sqlx_options("db", unchecked);
    assert!(!options.get_test_before_acquire());
}

#[tokio::test]
async fn waits_that_are_given_up_count_as_cancelled_and_leave_nothing_behind() {
    let perf = Perf::new();
    let pool = sqlite(&perf, SqlitePoolOptions::new().max_connections(1)).await;
    let held = pool.acquire().await.expect("a connection");
    let mut waits = JoinSet::new();
    for _ in 0..20 {
        let pool = pool.clone();
        waits.spawn(async move { query(SEVEN).execute(&pool).await });
    }
    // One that nobody ever polls is none.
    drop(pool.acquire());
    eventually("all wait", async || (row(&perf).waiting == 20).then_some(())).await;
    waits.shutdown().await;
    assert_eq!((row(&perf).waiting, row(&perf).cancelled), (0, 20));
    drop(held);
    query(SEVEN).execute(&pool).await.expect("the pool is as it was");
    assert_eq!((row(&perf).acquired, row(&perf).in_use), (2, 0));
}

#[tokio::test]
async fn closing_the_pool_fails_those_who_wait() {
    let perf = Perf::new();
    let pool = sqlite(&perf, SqlitePoolOptions::new().max_connections(1)).await;
    let held = pool.acquire().await.expect("a connection");
    let waiting = spawn({
        let pool = pool.clone();
        async move { pool.acquire().await }
    });
    eventually("it waits", async || (row(&perf).waiting == 1).then_some(())).await;
    let closing = spawn({
        let pool = pool.clone();
        async move { pool.close().await }
    });
    let found = waiting.await.expect("no panic");
    assert!(matches!(found, Err(Error::PoolClosed)), "{found:?}");
    assert!(pool.is_closed() && !closing.is_finished());
    drop(held);
    closing.await.expect("no panic");
    assert!(matches!(pool.acquire().await, Err(Error::PoolClosed)));
    let seen = row(&perf);
    assert_eq!((seen.failed, seen.in_use, seen.waiting, seen.size, seen.idle), (2, 0, 0, 0, 0));
}

#[tokio::test]
async fn a_pool_closes_with_its_last_wrapper_though_the_figures_live_on() {
    let perf = Perf::new();
    let pool = sqlite(&perf, SqlitePoolOptions::new().max_connections(3)).await;
    query(SEVEN).execute(&pool).await.expect("it runs");
    idle(&perf, &pool).await;
    let closed = pool.close_event();
    let clone = pool.clone();
    drop(pool);
    assert_eq!((row(&perf).max, row(&perf).size, clone.is_closed()), (3, 1, false));
    drop(clone);
    timeout(Duration::from_secs(20), closed).await.expect("nobody keeps it open");
    assert_eq!((row(&perf).max, row(&perf).size, row(&perf).acquired), (0, 0, 1));
}

#[tokio::test]
async fn pools_under_one_name_are_added_up() {
    let perf = Perf::new();
    let one = sqlite(&perf, SqlitePoolOptions::new().max_connections(2)).await;
    let other = sqlite(&perf, SqlitePoolOptions::new().max_connections(3)).await;
    let _held: Vec<ObservedConnection<Sqlite>> = vec![
        one.acquire().await.expect("a connection"),
        other.acquire().await.expect("a connection"),
    ];
    assert_eq!(perf.snapshot().view().pools.len(), 1);
    assert_eq!((row(&perf).max, row(&perf).size, row(&perf).in_use), (5, 2, 2));
}
