//! Pools of deadpool that are watched.
//!
//! Time is paused and the manager only sleeps, so every figure is exact.

use std::{
    collections::BTreeMap,
    future::{Future, pending},
    time::Duration,
};

use axum::{Router, routing::get};
use deadpool::{
    Runtime,
    managed::{
        Hook, HookError, Manager, Metrics, Object, Pool, PoolBuilder, PoolError, RecycleResult,
        TimeoutType, Timeouts,
    },
};
use parallax_middleware::{ObservedDeadpool, ObservedObject, Perf, PoolView};
use tokio::{
    task::{JoinSet, spawn, yield_now},
    time::{sleep, timeout},
};

use crate::support::rig::{Rig, request};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Takes so long to make a connection, and so long to check one. Makes none if it is down.
#[derive(Clone, Copy, Debug, Default)]
struct Slow {
    create: Duration,
    recycle: Duration,
    down: bool,
}

#[derive(Debug)]
struct Connection;

#[derive(Debug)]
struct Down;

impl Manager for Slow {
    type Type = Connection;
    type Error = Down;

    async fn create(&self) -> Result<Connection, Down> {
        sleep(self.create).await;
        if self.down { Err(Down) } else { Ok(Connection) }
    }

    async fn recycle(&self, _: &mut Connection, _: &Metrics) -> RecycleResult<Down> {
        sleep(self.recycle).await;
        Ok(())
    }
}

fn builder(size: usize, manager: Slow) -> PoolBuilder<Slow> {
    Pool::builder(manager).max_size(size).runtime(Runtime::Tokio1)
}

fn watched(perf: &Perf, size: usize, manager: Slow) -> ObservedDeadpool<Slow> {
    perf.observe_deadpool("ldap", builder(size, manager).build().expect("it has a runtime"))
}

fn row(perf: &Perf) -> PoolView {
    let [row] = <[_; 1]>::try_from(perf.snapshot().view().pools).expect("one pool is watched");
    row
}

/// Waits until everything has been done that can be done now.
async fn everybody_has_had_a_turn() {
    sleep(ms(1)).await;
}

/// A router of one route, whose handler `run` is.
fn handled<F, Fut>(perf: &Perf, run: F) -> Rig
where
    F: Fn() -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    let handler = async move || run().await;
    Rig::new(perf, Router::new().route("/work", get(handler)).layer(perf.layer()))
}

/// The phases of the only request, by name and in milliseconds, with `handler`.
fn phases(rig: &Rig) -> BTreeMap<String, u128> {
    let [record] = &*rig.records() else { panic!("one request") };
    let named = record
        .phases
        .iter()
        .map(|phase| (rig.perf.phase_name(phase.phase).to_owned(), phase.time.as_millis()));
    named.chain([("handler".to_owned(), record.handler.as_millis())]).collect()
}

fn wanted<const N: usize>(phases: [(&str, u128); N]) -> BTreeMap<String, u128> {
    phases.map(|(name, ms)| (name.to_owned(), ms)).into()
}

#[tokio::test(start_paused = true)]
async fn fifty_requests_that_hold_five_connections_for_10_ms_wait_for_0_to_90_ms() {
    let perf = Perf::new();
    let pool = watched(&perf, 5, Slow::default());
    let rig = handled(&perf, move || {
        let pool = pool.clone();
        async move {
            let _connection = pool.get().await.expect("there is one in time");
            sleep(ms(10)).await;
        }
    });
    let mut clients = JoinSet::new();
    for _ in 0..50 {
        let rig = rig.clone();
        clients.spawn(async move { rig.open(request("GET", "/work")).await });
    }
    everybody_has_had_a_turn().await;
    let meanwhile = row(&perf);
    assert_eq!((meanwhile.max, meanwhile.size, meanwhile.idle), (5, 5, 0));
    assert_eq!((meanwhile.in_use, meanwhile.waiting), (5, 45));
    clients.join_all().await;
    rig.settled().await;

    let mut waits = Vec::new();
    for record in rig.records() {
        let [wait] = &*record.phases else { panic!("one phase: {record:?}") };
        assert_eq!(perf.phase_name(wait.phase), "pool_wait:ldap");
        assert_eq!(record.handler, ms(10));
        waits.push(wait.time);
    }
    waits.sort();
    let exact: Vec<_> = (0..50).map(|n| ms(n / 5 * 10)).collect();
    assert_eq!(waits, exact);

    let of_route = rig.row("GET /work").phases["pool_wait:ldap"];
    assert_eq!((of_route.count, of_route.max_us), (50, Some(90_000.0)));
    let row = row(&perf);
    assert_eq!((row.kind.as_str(), row.acquired, row.wait.count), ("deadpool", 50, 50));
    assert_eq!((row.wait.mean_us, row.wait.max_us), (Some(45_000.0), Some(90_000.0)));
    assert_eq!((row.hold.count, row.hold.min_us, row.hold.max_us), (50, Some(1e4), Some(1e4)));
    assert_eq!((row.size, row.idle, row.in_use, row.waiting), (5, 5, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_finished_pool_takes_for_a_free_slot_is_told_apart() {
    let perf = Perf::new();
    let pool = watched(&perf, 1, Slow { create: ms(30), recycle: ms(10), down: false });
    drop(pool.get().await.expect("it is made"));
    let connection = pool.get().await.expect("it is checked");
    // One that queues: for 10 ms, and then until the connection is checked.
    let queued = pool.get();
    let given_back = async {
        sleep(ms(10)).await;
        drop(connection);
    };
    drop(tokio::join!(queued, given_back).0.expect("it comes free"));
    let row = row(&perf);
    assert_eq!((row.create.count, row.create.max_us), (1, Some(30_000.0)));
    assert_eq!((row.recycle.count, row.recycle.max_us), (1, Some(10_000.0)));
    assert_eq!((row.wait.count, row.wait.min_us), (3, Some(10_000.0)));
    // 30, 10 and 20 ms.
    assert_eq!((row.wait.mean_us, row.wait.max_us), (Some(20_000.0), Some(30_000.0)));
}

#[tokio::test(start_paused = true)]
async fn with_its_manager_a_pool_tells_them_apart_for_those_who_queue_as_well() {
    let perf = Perf::new();
    let manager =
        perf.observe_manager("ldap", Slow { create: ms(30), recycle: ms(5), down: false });
    assert_eq!(manager.create, ms(30), "it derefs to the manager");
    let pool: Pool<_> = Pool::builder(manager).max_size(1).build().expect("no timeouts");
    let pool = perf.observe_deadpool("ldap", pool);
    let connection = pool.get().await.expect("it is made");
    let given_back = async {
        sleep(ms(10)).await;
        drop(connection);
    };
    drop(tokio::join!(pool.get(), given_back).0.expect("it comes free"));
    drop(pool.get().await.expect("it is checked"));
    let row = row(&perf);
    assert_eq!((row.create.count, row.create.max_us), (1, Some(30_000.0)));
    assert_eq!(
        (row.recycle.count, row.recycle.min_us, row.recycle.max_us),
        (2, Some(5_000.0), Some(5_000.0))
    );
    assert_eq!((row.wait.count, row.wait.max_us), (3, Some(30_000.0)));
}

#[tokio::test(start_paused = true)]
async fn waits_that_time_out_are_counted_by_what_took_the_time() {
    let perf = Perf::new();
    let short = Timeouts { wait: Some(ms(30)), create: Some(ms(20)), recycle: Some(ms(20)) };
    let pool = builder(1, Slow { create: ms(50), ..Slow::default() });
    let pool = perf.observe_deadpool("ldap", pool.timeouts(short).build().expect("valid"));

    let error = pool.get().await.expect_err("it takes longer to make one");
    assert!(matches!(error, PoolError::Timeout(TimeoutType::Create)), "{error:?}");
    assert_eq!(row(&perf).wait.max_us, Some(20_000.0));

    let held = pool.timeout_get(&Timeouts::new()).await.expect("there is time");
    let error = pool.get().await.expect_err("it is not given back");
    assert!(matches!(error, PoolError::Timeout(TimeoutType::Wait)), "{error:?}");
    assert_eq!(row(&perf).wait.max_us, Some(50_000.0));
    let error = pool.timeout_get(&Timeouts::wait_millis(0)).await.expect_err("not at once");
    assert!(matches!(error, PoolError::Timeout(TimeoutType::Wait)), "{error:?}");
    assert_eq!(row(&perf).wait.min_us, Some(0.0));
    drop(held);

    let row = row(&perf);
    let timeouts = (row.timeouts, row.wait_timeouts, row.create_timeouts, row.recycle_timeouts);
    assert_eq!(timeouts, (3, 2, 1, 0));
    assert_eq!((row.acquired, row.cancelled, row.failed, row.waiting), (1, 0, 0, 0));
    assert_eq!((row.create.count, row.create.max_us), (1, Some(50_000.0)));
}

/// deadpool says nothing of it, and takes another connection.
#[tokio::test(start_paused = true)]
async fn a_connection_that_takes_too_long_to_check_is_no_timeout_but_makes_for_a_new_one() {
    let perf = Perf::new();
    let pool = builder(1, Slow { create: ms(7), recycle: ms(50), down: false });
    let pool = pool.recycle_timeout(Some(ms(20))).build().expect("valid");
    let pool = perf.observe_deadpool("ldap", pool);
    drop(pool.get().await.expect("it is made"));
    drop(pool.get().await.expect("another one is made"));
    let row = row(&perf);
    assert_eq!((row.acquired, row.timeouts, row.recycle.count), (2, 0, 0));
    assert_eq!((row.create.min_us, row.create.max_us), (Some(7_000.0), Some(27_000.0)));
}

#[tokio::test(start_paused = true)]
async fn waits_that_end_without_a_connection_for_other_reasons_have_failed() {
    let perf = Perf::new();
    let down = watched(&perf, 1, Slow { create: ms(5), down: true, ..Slow::default() });
    assert!(matches!(down.get().await, Err(PoolError::Backend(Down))));
    assert_eq!((row(&perf).failed, row(&perf).wait.max_us), (1, Some(5_000.0)));

    let refusing = builder(1, Slow::default())
        .post_create(Hook::sync_fn(|_, _| Err(HookError::message("not this one"))));
    let refusing = perf.observe_deadpool("ldap", refusing.build().expect("valid"));
    assert!(matches!(refusing.get().await, Err(PoolError::PostCreateHook(_))));

    let closed = watched(&perf, 1, Slow::default());
    let held = closed.get().await.expect("it is open");
    let close = async {
        sleep(ms(10)).await;
        closed.close();
    };
    let (queued, ()) = tokio::join!(closed.get(), close);
    assert!(matches!(queued, Err(PoolError::Closed)));
    assert!(matches!(closed.get().await, Err(PoolError::Closed)));
    drop(held);
    let row = row(&perf);
    assert_eq!((row.acquired, row.failed, row.timeouts, row.cancelled), (1, 4, 0, 0));
    assert_eq!((row.wait.count, row.wait.max_us), (5, Some(10_000.0)));
}

#[tokio::test(start_paused = true)]
async fn waits_that_are_given_up_do_not_leak() {
    let perf = Perf::new();
    let pool = watched(&perf, 1, Slow::default());
    let held = pool.get().await.expect("it is free");
    let mut waits = JoinSet::new();
    for _ in 0..100 {
        let pool = pool.clone();
        waits.spawn(async move { pool.get().await.map(drop) });
    }
    sleep(ms(5)).await;
    assert_eq!((row(&perf).waiting, row(&perf).in_use), (100, 1));
    waits.shutdown().await;
    let given_up = row(&perf);
    assert_eq!((given_up.waiting, given_up.cancelled, given_up.in_use), (0, 100, 1));
    assert_eq!(given_up.wait.max_us, Some(5_000.0));
    drop(held);
    drop(timeout(ms(1), pool.get()).await.expect("nobody else queues").expect("it is free"));
    assert_eq!((row(&perf).acquired, row(&perf).in_use, row(&perf).idle), (2, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_given_up_while_its_connection_is_made_gives_the_slot_back() {
    let perf = Perf::new();
    let pool = watched(&perf, 1, Slow { create: ms(50), ..Slow::default() });
    assert!(timeout(ms(20), pool.get()).await.is_err());
    assert_eq!((row(&perf).cancelled, row(&perf).waiting, row(&perf).size), (1, 0, 0));
    drop(pool.get().await.expect("the slot is free"));
    assert_eq!(row(&perf).create.count, 1);
}

#[tokio::test(start_paused = true)]
async fn those_who_come_later_do_not_overtake_those_who_queue() {
    let perf = Perf::new();
    let pool = watched(&perf, 1, Slow::default());
    let held = pool.get().await.expect("it is free");
    let first = spawn({
        let pool = pool.clone();
        async move { pool.get().await.map(drop) }
    });
    everybody_has_had_a_turn().await;
    drop(held);
    // The one who queues has not had its turn yet, but the slot is its own.
    let error = pool.timeout_get(&Timeouts::wait_millis(0)).await.expect_err("it is spoken for");
    assert!(matches!(error, PoolError::Timeout(TimeoutType::Wait)), "{error:?}");
    first.await.expect("no panic").expect("it is free");
}

#[tokio::test(start_paused = true)]
async fn the_last_wrapper_takes_the_pool_with_it_though_its_figures_stay() {
    let perf = Perf::new();
    let pool = watched(&perf, 3, Slow::default());
    let weak = pool.weak();
    let other = pool.clone();
    let connection = pool.get().await.expect("it is free");
    drop(pool);
    assert_eq!((row(&perf).max, row(&perf).size), (3, 1));
    drop(other);
    assert!(weak.upgrade().is_none(), "neither the handle nor a connection keeps it");
    assert_eq!((row(&perf).max, row(&perf).size, row(&perf).in_use), (0, 0, 1));
    drop(connection);
    assert_eq!((row(&perf).acquired, row(&perf).in_use, row(&perf).hold.count), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_taken_out_is_in_use_no_more() {
    let perf = Perf::new();
    let pool = watched(&perf, 1, Slow::default());
    let connection = pool.get().await.expect("it is free");
    sleep(ms(20)).await;
    let Connection = Object::take(ObservedObject::into_inner(connection));
    sleep(ms(20)).await;
    let row = row(&perf);
    assert_eq!((row.in_use, row.size, row.hold.max_us), (0, 0, Some(20_000.0)));
    assert_eq!(pool.status().max_size, 1, "the rest of the pool is at hand");
}

#[tokio::test(start_paused = true)]
async fn waits_are_their_requests_in_joins_selects_timeouts_and_tasks_that_follow() {
    let perf = Perf::new();
    // Given back after 10, 20 and 30 ms.
    let pool = watched(&perf, 1, Slow::default());
    let rig = handled(&perf, {
        let perf = perf.clone();
        move || {
            let (perf, pool) = (perf.clone(), pool.clone());
            async move {
                let hold = |time| {
                    let pool = pool.clone();
                    async move {
                        let _connection = pool.get().await.expect("it comes free");
                        sleep(time).await;
                    }
                };
                // Waits 0 and 10 ms.
                tokio::join!(hold(ms(10)), hold(ms(10)));
                let held = pool.get().await.expect("it is free");
                // 5 ms and 7 ms.
                tokio::select! {
                    _ = pool.get() => panic!("it is held"),
                    () = sleep(ms(5)) => {}
                }
                timeout(ms(7), pool.get()).await.expect_err("it is held");
                // 3 ms.
                let follower = spawn(perf.follow(hold(ms(1))));
                sleep(ms(3)).await;
                drop(held);
                follower.await.expect("no panic");
                // For nobody.
                spawn(hold(ms(0))).await.expect("no panic");
            }
        }
    });
    rig.get("/work").await;
    rig.settled().await;
    // Waits: 0 + 10 + 0 + 5 + 7 + 3, of which none overlap; and 10 + 1 ms are the handler's own.
    assert_eq!(phases(&rig), wanted([("handler", 11), ("pool_wait:ldap", 25)]));
    assert_eq!(perf.snapshot().view().elsewhere["pool_wait:ldap"].count, 1);
    assert_eq!((row(&perf).acquired, row(&perf).cancelled), (5, 2));
}

#[tokio::test(start_paused = true)]
async fn a_get_that_nobody_polls_waits_for_nothing() {
    let perf = Perf::new();
    let pool = watched(&perf, 1, Slow::default());
    let get = pool.get();
    sleep(ms(5)).await;
    drop(get);
    yield_now().await;
    assert_eq!((row(&perf).cancelled, row(&perf).wait.count), (0, 0));
    tokio::select! {
        biased;
        () = pending() => {}
        got = pool.get() => drop(got),
    }
    assert_eq!(row(&perf).wait.max_us, Some(0.0));
}
