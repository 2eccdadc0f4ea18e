//! Pools and caches that are watched by hand; and whether what is recorded of a pool is what queueing theory
//! says of it.
//!
//! Time is paused, so an hour of a pool's life takes a moment, and every figure is exact.

use std::{future::pending, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use parallax_middleware::{Perf, PoolView, TimeoutKind};
use rand::{SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution, Exp};
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::support::rig::Rig;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn row(perf: &Perf, name: &str) -> PoolView {
    let pools = perf.snapshot().view().pools;
    pools.into_iter().find(|pool| pool.name == name).expect("it is watched")
}

#[tokio::test(start_paused = true)]
async fn a_pool_counts_who_waits_how_long_and_what_comes_of_it() {
    let perf = Perf::new();
    let pool = perf.pool("ldap");
    let wait = pool.wait();
    sleep(ms(20)).await;
    assert_eq!((row(&perf, "ldap").waiting, row(&perf, "ldap").in_use), (1, 0));
    let held = wait.acquired();
    sleep(ms(300)).await;
    assert_eq!((row(&perf, "ldap").waiting, row(&perf, "ldap").in_use), (0, 1));
    drop(held);
    pool.wait().timed_out(TimeoutKind::Wait);
    pool.wait().timed_out(TimeoutKind::Create);
    pool.wait().timed_out(TimeoutKind::Create);
    pool.wait().timed_out(TimeoutKind::Recycle);
    pool.wait().failed();
    drop(pool.wait());
    pool.created(ms(7));
    pool.recycled(ms(1));

    let row = row(&perf, "ldap");
    assert_eq!((row.kind.as_str(), row.acquired, row.cancelled, row.failed), ("other", 1, 1, 1));
    let timeouts = (row.timeouts, row.wait_timeouts, row.create_timeouts, row.recycle_timeouts);
    assert_eq!(timeouts, (4, 1, 2, 1));
    assert_eq!((row.waiting, row.in_use), (0, 0));
    assert_eq!((row.wait.count, row.wait.max_us), (7, Some(20_000.0)));
    assert_eq!((row.hold.count, row.hold.max_us), (1, Some(300_000.0)));
    assert_eq!((row.create.max_us, row.recycle.max_us), (Some(7_000.0), Some(1_000.0)));
}

#[tokio::test(start_paused = true)]
async fn waits_that_nobody_waits_for_any_more_do_not_leak() {
    let perf = Perf::new();
    let mut waits = JoinSet::new();
    for _ in 0..100 {
        let pool = perf.pool("ldap");
        waits.spawn(async move {
            let _wait = pool.wait();
            pending::<()>().await;
        });
    }
    sleep(ms(5)).await;
    assert_eq!(row(&perf, "ldap").waiting, 100);
    waits.shutdown().await;
    let row = row(&perf, "ldap");
    assert_eq!((row.waiting, row.cancelled, row.wait.max_us), (0, 100, Some(5_000.0)));
}

#[tokio::test(start_paused = true)]
async fn a_wait_is_a_phase_of_its_request() {
    let perf = Perf::new();
    let pool = perf.pool("ldap");
    let handler = async move || {
        let wait = pool.wait();
        sleep(ms(20)).await;
        let _held = wait.acquired();
        sleep(ms(5)).await;
        // One that is given up.
        let waiting = async {
            let _wait = pool.wait();
            pending::<()>().await;
        };
        timeout(ms(3), waiting).await.expect_err("it never ends");
    };
    let rig = Rig::new(&perf, Router::new().route("/", get(handler)).layer(perf.layer()));
    rig.get("/").await;
    let [record] = &*rig.records() else { panic!("one request") };
    let [wait] = &*record.phases else { panic!("one phase: {record:?}") };
    assert_eq!(perf.phase_name(wait.phase), "pool_wait:ldap");
    assert_eq!((wait.time, record.handler), (ms(23), ms(5)));
}

/// As diesel has to be used, for example.
#[tokio::test]
async fn what_waits_on_a_thread_for_blocking_work_follows_its_request() {
    let perf = Perf::new();
    let handler = {
        let perf = perf.clone();
        async move || {
            let work = {
                let perf = perf.clone();
                move || {
                    let pool = perf.pool("ldap");
                    let wait = pool.wait();
                    std::thread::sleep(ms(20));
                    let _in_use = wait.acquired();
                    let _query = perf.phase("query:ldap");
                    std::thread::sleep(ms(10));
                }
            };
            let follow = perf.follow(async move { work() });
            let runtime = Handle::current();
            spawn_blocking(move || runtime.block_on(follow)).await.expect("no panic");
        }
    };
    let rig = Rig::new(&perf, Router::new().route("/", get(handler)).layer(perf.layer()));
    let record = rig.get("/").await.record;
    let [wait, query] = &*record.phases else { panic!("two phases: {record:?}") };
    assert_eq!(perf.phase_name(wait.phase), "pool_wait:ldap");
    assert_eq!(perf.phase_name(query.phase), "query:ldap");
    assert!(wait.time >= ms(20) && query.time >= ms(10), "{record:?}");
    assert!(perf.snapshot().view().elsewhere.is_empty());
}

#[tokio::test(start_paused = true)]
async fn intervals_and_windows_have_a_pools_counts_and_its_present() {
    let perf = Perf::new();
    let window = || perf.window(parallax_middleware::Window::TenSeconds);
    window();
    let pool = perf.pool("ldap");
    let cache = perf.cache("prices");
    let kept: Vec<_> = (0..3).map(|_| pool.wait().acquired()).collect();
    cache.count(None::<u8>);
    let before = perf.snapshot();
    let held = pool.wait().acquired();
    let wait = pool.wait();
    sleep(ms(2_500)).await;
    drop(held);
    assert_eq!(cache.count(Some(7)), Some(7));
    let after = perf.snapshot();
    let interval = after.since(&before).pool("ldap").expect("it is watched");
    assert_eq!((interval.acquired, interval.in_use, interval.waiting), (1, 3, 1));
    assert_eq!((interval.wait.count(), interval.hold.count()), (1, 1));
    let of_window = window().pool("ldap").expect("it is watched");
    assert_eq!((of_window.acquired, of_window.in_use, of_window.waiting), (4, 3, 1));
    assert_eq!((of_window.wait.count(), of_window.hold.count()), (4, 1));
    let ratio = |snapshot: &parallax_middleware::Snapshot| {
        snapshot.caches().next().and_then(|(_, counts)| counts.hit_ratio())
    };
    assert_eq!(ratio(&after), Some(0.5));
    assert_eq!(ratio(&after.since(&before)), Some(1.0));
    assert_eq!(ratio(&window()), Some(0.5));

    let json = serde_json::to_string(&after).expect("it can be written");
    let mut read: parallax_middleware::Snapshot = serde_json::from_str(&json).expect("it is read");
    assert_eq!(read, after);
    read.merge(&after);
    let both = read.pool("ldap").expect("it is watched");
    assert_eq!((both.acquired, both.in_use, both.waiting), (8, 6, 2));
    drop((kept, wait));
}

#[tokio::test]
async fn threads_watch_the_same_pool_and_lose_nothing() {
    let perf = Perf::new();
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let perf = perf.clone();
            std::thread::spawn(move || {
                let (pool, cache) = (perf.pool("ldap"), perf.cache("prices"));
                for n in 0..1_000 {
                    drop(pool.wait().acquired());
                    cache.count((n % 4 > 0).then_some(n));
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    let row = row(&perf, "ldap");
    assert_eq!((row.acquired, row.wait.count, row.hold.count), (8_000, 8_000, 8_000));
    assert_eq!((row.waiting, row.in_use), (0, 0));
    assert_eq!(perf.snapshot().view().caches[0].hit_ratio, Some(0.75));
}

/// The probability that an arrival at an M/M/c queue has to wait: Erlang's C formula, with the load in
/// Erlangs. From the recursion of Erlang's B, which is stable.
fn erlang_c(servers: u32, load: f64) -> f64 {
    let b = (1..=servers).fold(1.0, |b, n| load * b / (f64::from(n) + load * b));
    let utilisation = load / f64::from(servers);
    b / (1.0 - utilisation * (1.0 - b))
}

#[test]
fn erlangs_formula_gives_the_published_value() {
    // 4 servers at 75 %.
    assert!((erlang_c(4, 3.0) - 0.50943).abs() < 1e-5);
    // With one server, it is the load.
    assert!((erlang_c(1, 0.8) - 0.8).abs() < 1e-12);
}

/// Simulates a pool of so many connections, each kept for 10 ms on average, under `n` requests that arrive at
/// random, on the service's own code path; and returns the pool's row.
async fn simulated(connections: u32, utilisation: f64, n: usize, seed: u64) -> PoolView {
    const HOLD_S: f64 = 0.010;
    let perf = Perf::new();
    let permits = Arc::new(Semaphore::new(connections as usize));
    let mut random = SmallRng::seed_from_u64(seed);
    let holding = Exp::new(1.0 / HOLD_S).expect("positive");
    let rate = utilisation * f64::from(connections) / HOLD_S;
    let arriving = Exp::new(rate).expect("positive");
    // A timer ticks once a millisecond: what is simulated are minutes.
    const SLOWER: f64 = 1_000.0;
    let start = Instant::now();
    let mut at = 0.0;
    let mut requests = JoinSet::new();
    for _ in 0..n {
        at += arriving.sample(&mut random) * SLOWER;
        let hold = Duration::from_secs_f64(holding.sample(&mut random) * SLOWER);
        let (pool, permits) = (perf.pool("db"), permits.clone());
        sleep_until(start + Duration::from_secs_f64(at)).await;
        requests.spawn(async move {
            let wait = pool.wait();
            let _permit = permits.acquire().await.expect("it is open");
            let _held = wait.acquired();
            sleep(hold).await;
        });
        // What is over makes room.
        while requests.try_join_next().is_some() {}
    }
    while requests.join_next().await.is_some() {}
    row(&perf, "db")
}

/// Waits at an M/M/c queue are 0 with a probability of 1 - C, and else exponential with the rate cμ - λ.
/// (Erlang 1917; Kleinrock, Queueing Systems I, 3.5.)
#[tokio::test(start_paused = true)]
async fn waits_for_a_pool_are_those_of_erlang_c() {
    for (connections, utilisation) in [(1, 0.5), (4, 0.75), (5, 0.9), (20, 0.8), (50, 0.9)] {
        let n = 40_000;
        // Several runs, so that their spread says how far off the mean may be.
        let mut runs = Vec::new();
        for seed in 0..5 {
            runs.push(simulated(connections, utilisation, n, seed).await);
        }
        let c = erlang_c(connections, utilisation * f64::from(connections));
        let drain = (1.0 - utilisation) * f64::from(connections) / 10.0;
        // In milliseconds of the service; the simulation is a thousand times slower.
        let mean_ms = c / drain;
        let p99_ms = (c / 0.01).ln().max(0.0) / drain;
        let within = |what: &str, wanted: f64, found: Vec<f64>| {
            let mean = found.iter().sum::<f64>() / found.len() as f64;
            let spread = found.iter().map(|x| (x - mean).powi(2)).sum::<f64>()
                / (found.len() * (found.len() - 1)) as f64;
            // Student's t with 4 degrees of freedom at 99.9 %, and what a histogram and a timer round.
            let slack = 8.61 * spread.sqrt() + 0.01 * wanted + 0.01;
            let pool = format!("{connections} connections at {utilisation}");
            assert!(
                (mean - wanted).abs() <= slack,
                "{what} of {pool}: {mean} for {wanted}, give or take {slack}"
            );
        };
        let each = |of: fn(&PoolView) -> Option<f64>| {
            runs.iter().map(|run| of(run).expect("there are values") / 1e6).collect()
        };
        within("mean wait", mean_ms, each(|run| run.wait.mean_us));
        within("p99 of the wait", p99_ms, each(|run| run.wait.p99_us));
        within("mean hold", 10.0, each(|run| run.hold.mean_us));
        for run in &runs {
            assert_eq!((run.acquired, run.waiting, run.in_use), (n as u64, 0, 0));
        }
    }
}
