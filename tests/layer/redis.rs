//! Pools of deadpool-redis that are watched, with a real Redis.

use std::{future::Future, time::Duration};

use axum::{Router, routing::get};
use deadpool_redis::{
    Connection, Manager, Pool,
    redis::{AsyncCommands, AsyncConnectionConfig, Cmd, Value, cmd, pipe},
};
use parallax_middleware::{ObservedConnection, ObservedRedis, Perf, PoolView};
use tokio::{task::spawn, time::timeout};

use crate::support::{redis::Redis, rig::Rig};

/// So long at least a command takes that waits for what never comes.
const A_WHILE: Duration = Duration::from_millis(50);

/// Whatever else the machine does, an answer is waited for.
fn manager(url: &str) -> Manager {
    let patient =
        AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    Manager::new_with_config(url, patient).expect("a valid address")
}

fn observed(perf: &Perf, url: &str) -> ObservedRedis {
    let pool = Pool::builder(manager(url)).max_size(2).build().expect("it has no timeouts");
    perf.observe_redis("prices", pool)
}

async fn connected(perf: &Perf, url: &str) -> ObservedConnection {
    observed(perf, url).get().await.expect("Redis runs")
}

/// Waits for what never comes, for [`A_WHILE`].
fn waiting() -> Cmd {
    cmd("BLPOP").arg("nothing").arg(A_WHILE.as_secs_f64()).take()
}

fn row(perf: &Perf) -> PoolView {
    let [row] = <[_; 1]>::try_from(perf.snapshot().view().pools).expect("one pool is watched");
    row
}

/// Hits and misses so far.
fn found(perf: &Perf) -> (u64, u64) {
    let [cache] = <[_; 1]>::try_from(perf.snapshot().view().caches).expect("one cache");
    assert_eq!(cache.name, "prices");
    (cache.hits, cache.misses)
}

/// A router of one route, whose handler `run` is.
fn handled<F, Fut>(perf: &Perf, run: F) -> Rig
where
    F: Fn() -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    let handler = async move || run().await;
    Rig::new(perf, Router::new().route("/price", get(handler)).layer(perf.layer()))
}

/// The time of the only request in a phase, zero if it was not in it.
fn phase(rig: &Rig, name: &str) -> Duration {
    let [record] = &*rig.records() else { panic!("one request") };
    let of_name = record.phases.iter().find(|phase| rig.perf.phase_name(phase.phase) == name);
    of_name.map_or(Duration::ZERO, |phase| phase.time)
}

#[tokio::test]
async fn lookups_are_hits_and_misses_and_all_else_is_neither() {
    let redis = Redis::start();
    for protocol in ["resp2", "resp3"] {
        let perf = Perf::new();
        let url = format!("{}?protocol={protocol}", redis.url());
        let mut connection = connected(&perf, &url).await;
        let commands = [
            ("FLUSHALL", (0, 0)),
            ("SET there 1", (0, 0)),
            ("HSET hash a 1 b 2", (0, 0)),
            ("GET there", (1, 0)),
            ("get there", (1, 0)),
            ("GET nowhere", (0, 1)),
            ("GETEX there EX 60", (1, 0)),
            ("GETEX nowhere", (0, 1)),
            ("MGET there nowhere there neither", (2, 2)),
            ("HGET hash a", (1, 0)),
            ("HGET hash c", (0, 1)),
            ("HGET nowhere a", (0, 1)),
            ("HMGET hash a b c", (2, 1)),
            ("HGETALL hash", (1, 0)),
            ("HGETALL nowhere", (0, 1)),
            ("HEXISTS hash a", (1, 0)),
            ("HEXISTS hash c", (0, 1)),
            ("EXISTS there", (1, 0)),
            ("EXISTS there hash nowhere", (2, 1)),
            ("EXISTS nowhere", (0, 1)),
            ("SET there 2 GET", (0, 0)),
            ("GETSET there 3", (0, 0)),
            ("LINDEX nowhere 0", (0, 0)),
            ("SMEMBERS nowhere", (0, 0)),
            ("TTL nowhere", (0, 0)),
            ("GETDEL there", (1, 0)),
            ("GETDEL there", (0, 1)),
            ("DEL hash", (0, 0)),
            ("PING", (0, 0)),
        ];
        let (mut hits, mut misses) = (0, 0);
        for (text, (more_hits, more_misses)) in commands {
            let mut words = text.split(' ');
            let mut command = cmd(words.next().expect("it has a name"));
            words.for_each(|word| {
                command.arg(word);
            });
            command.exec_async(&mut connection).await.expect("it is a command");
            (hits, misses) = (hits + more_hits, misses + more_misses);
            assert_eq!(found(&perf), (hits, misses), "{protocol}: after {text}");
        }
        let elsewhere = perf.snapshot().view().elsewhere;
        assert_eq!(elsewhere["cache:prices"].count, commands.len() as u64);
        assert_eq!(elsewhere["pool_wait:prices"].count, 1);
    }
}

#[tokio::test]
async fn a_lookup_that_fails_is_neither() {
    let (redis, perf) = (Redis::start(), Perf::new());
    let mut connection = connected(&perf, &redis.url()).await;
    let _: () = connection.hset("hash", "a", 1).await.expect("it is stored");
    let error = connection.get::<_, Option<u64>>("hash").await.expect_err("it is a hash");
    assert_eq!(error.code(), Some("WRONGTYPE"));
    let answers: Vec<Value> = pipe()
        .get("hash")
        .get("nowhere")
        .ignore_errors()
        .query_async(&mut connection)
        .await
        .expect("it is answered");
    assert_eq!(answers.len(), 2);
    assert_eq!(found(&perf), (0, 1));
    drop(redis);
    connection.get::<_, Option<u64>>("hash").await.expect_err("Redis has gone");
    assert_eq!(found(&perf), (0, 1));
    assert_eq!(perf.snapshot().view().elsewhere["cache:prices"].count, 4);
}

#[tokio::test]
async fn pipelines_are_one_stretch_and_their_lookups_count() {
    let (redis, perf) = (Redis::start(), Perf::new());
    let mut connection = connected(&perf, &redis.url()).await;
    let looked_up: (Option<u64>, Option<u64>) = pipe()
        .set("there", 7)
        .ignore()
        .get("there")
        .get("nowhere")
        .query_async(&mut connection)
        .await
        .expect("it is answered");
    assert_eq!((looked_up, found(&perf)), ((Some(7), None), (1, 1)));

    let looked_up: (Option<u64>, Vec<Option<u64>>) = pipe()
        .atomic()
        .set("other", 8)
        .ignore()
        .get("other")
        .mget(&["there", "nowhere", "neither"])
        .query_async(&mut connection)
        .await
        .expect("it is answered");
    assert_eq!(looked_up, (Some(8), vec![Some(7), None, None]));
    assert_eq!(found(&perf), (3, 3));
    assert_eq!(perf.snapshot().view().elsewhere["cache:prices"].count, 2);

    // One that is aborted looked nothing up.
    cmd("WATCH").arg("there").exec_async(&mut connection).await.expect("it is watched");
    let _: () = connected(&perf, &redis.url()).await.set("there", 9).await.expect("it is stored");
    let aborted: Option<(u64,)> =
        pipe().atomic().get("there").query_async(&mut connection).await.expect("it is answered");
    assert_eq!((aborted, found(&perf)), (None, (3, 3)));
}

#[tokio::test]
async fn commands_are_a_phase_of_their_request_and_of_its_route() {
    let (redis, perf) = (Redis::start(), Perf::new());
    let pool = observed(&perf, &redis.url());
    let rig = handled(&perf, move || {
        let pool = pool.clone();
        async move {
            let mut connection = pool.get().await.expect("Redis runs");
            let _: Option<u64> = connection.get("nowhere").await.expect("it is answered");
            waiting().exec_async(&mut connection).await.expect("it is answered");
            pipe().add_command(waiting()).exec_async(&mut connection).await.expect("so is this");
        }
    });
    rig.get("/price").await;
    rig.settled().await;
    let [record] = &*rig.records() else { panic!("one request") };
    let sum: Duration = record.phases.iter().map(|phase| phase.time).sum();
    assert_eq!(record.phases.len(), 2, "{record:?}");
    assert_eq!(record.handler, record.server_time - sum, "they follow upon each other");
    assert!(phase(&rig, "pool_wait:prices") > Duration::ZERO, "a connection is opened");
    let asked = phase(&rig, "cache:prices");
    assert!(asked >= 2 * A_WHILE, "{asked:?}");
    let of_route = rig.row("GET /price");
    assert_eq!(of_route.phases["cache:prices"].max_us, Some(asked.as_nanos() as f64 / 1e3));
    assert_eq!(of_route.phases["pool_wait:prices"].count, 1);

    let pool = row(&perf);
    assert_eq!((pool.kind.as_str(), pool.name.as_str()), ("deadpool", "prices"));
    assert_eq!((pool.max, pool.size, pool.idle, pool.in_use), (2, 1, 1, 0));
    assert_eq!((pool.create.count, pool.recycle.count, pool.hold.count), (1, 0, 1));
    assert!(pool.hold.max_us >= Some(2.0 * A_WHILE.as_micros() as f64), "{pool:?}");
    assert_eq!(found(&perf), (0, 1));
}

#[tokio::test]
async fn a_command_is_its_requests_where_it_is_raced_and_where_it_follows() {
    let (redis, perf) = (Redis::start(), Perf::new());
    let pool = observed(&perf, &redis.url());
    let rig = handled(&perf, {
        let perf = perf.clone();
        move || {
            let (perf, pool) = (perf.clone(), pool.clone());
            async move {
                let mut connection = pool.get().await.expect("Redis runs");
                let mut other = pool.get().await.expect("Redis runs");
                // Both at once: as long as one.
                let (one, two) = (waiting(), waiting());
                let (one, two) =
                    tokio::join!(one.exec_async(&mut connection), two.exec_async(&mut other),);
                one.and(two).expect("they are answered");
                let forever = cmd("BLPOP").arg("nothing").arg(0).take();
                let given_up = timeout(A_WHILE, forever.exec_async(&mut connection)).await;
                given_up.expect_err("it never comes");
                // Stuck behind what was given up.
                drop(Connection::take(ObservedConnection::into_inner(connection)));
                let follower = async move { waiting().exec_async(&mut other).await };
                spawn(perf.follow(follower)).await.expect("no panic").expect("it is answered");
            }
        }
    });
    rig.get("/price").await;
    rig.settled().await;
    let asked = phase(&rig, "cache:prices");
    assert!(asked >= 4 * A_WHILE, "{asked:?}");
    let overlap = rig.row("GET /price").overlap.expect("two at once").total_us;
    assert!(overlap > 0.0);
    assert!(!perf.snapshot().view().elsewhere.contains_key("cache:prices"));
    let pool = row(&perf);
    assert_eq!((pool.size, pool.in_use, pool.acquired), (1, 0, 2));
}

#[tokio::test]
async fn a_pool_whose_manager_is_watched_takes_commands_as_well() {
    let (redis, perf) = (Redis::start(), Perf::new());
    let manager = perf.observe_manager("prices", manager(&redis.url()));
    let pool: deadpool::managed::Pool<_> =
        deadpool::managed::Pool::builder(manager).max_size(1).build().expect("no timeouts");
    let pool = perf.observe_redis("prices", pool);
    for _ in 0..3 {
        let mut connection = pool.get().await.expect("Redis runs");
        let _: Option<u64> = connection.get("nowhere").await.expect("it is answered");
    }
    let row = row(&perf);
    assert_eq!((row.create.count, row.recycle.count, row.wait.count), (1, 2, 3));
    assert!(row.create.max_us < row.wait.max_us, "a part of a wait");
    assert_eq!(found(&perf), (0, 3));
}

#[tokio::test]
async fn a_redis_that_is_not_there_is_a_wait_that_failed() {
    let perf = Perf::new();
    let redis = Redis::start();
    let url = redis.url();
    drop(redis);
    let error = observed(&perf, &url).get().await.map(drop).expect_err("nobody listens");
    assert!(matches!(error, deadpool_redis::PoolError::Backend(_)), "{error:?}");
    assert_eq!((row(&perf).failed, row(&perf).acquired, row(&perf).in_use), (1, 0, 0));
}
