//! What a connection costs more if its pool is watched: `cargo bench -p parallax-middleware --features sqlx
//! --bench pools`.
//!
//! A pool as it is and one that is watched run in one process, in turn, round after round, so that whatever else
//! the machine does meets both alike; what counts is the median over the rounds of the difference within the
//! round. Connections are taken from an idle pool and given back at once, within a request under the layer and
//! outside of any. What a pool does with a connection that was given back is waited for, and not timed. With
//! `valgrind` installed, instructions are counted besides. The table goes into `docs/performance.md`, between its
//! markers.
#![allow(missing_docs, reason = "a benchmark has no API")]

mod support;

use std::{
    env,
    fmt::Write as _,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use allocation_counter::measure;
use axum::{Router, body::Body, routing::get};
use http::Request;
use parallax_middleware::{Perf, sqlx::ObservedPool};
use sqlx::{Sqlite, SqlitePool, sqlite::SqlitePoolOptions};
use tokio::{runtime::Runtime, task::yield_now, time::Instant};
use tower::Service;

use crate::support::{instructions, median, write_tables};

/// Connections of a pool, which are taken and given back one after another.
const CONNECTIONS: u32 = 32;
const ROUNDS: usize = 2_000;
/// Rounds between two counts of instructions; start-up cancels out.
const COUNTED: usize = 20;

/// A pool, watched or not.
trait Pool: Send + Sync {
    /// Takes a connection, which must be there at once, and gives it back.
    fn take(&self);
    /// Are all connections in the pool?
    fn is_idle(&self) -> bool;
}

/// A pool as it is and one that is watched.
struct Pair {
    name: &'static str,
    bare: Arc<dyn Pool>,
    watched: Arc<dyn Pool>,
}

async fn pairs(perf: &Perf) -> Vec<Pair> {
    vec![Pair {
        name: "sqlx",
        bare: Arc::new(sqlite().await),
        watched: Arc::new(perf.observe_sqlx("db", sqlite().await)),
    }]
}

/// Polls what is ready with its first poll.
fn at_once(future: Pin<&mut impl Future<Output = ()>>) {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(()) => {}
        Poll::Pending => panic!("the pool is idle"),
    }
}

async fn sqlite() -> SqlitePool {
    let options = SqlitePoolOptions::new()
        .max_connections(CONNECTIONS)
        .test_before_acquire(false)
        // No task that tidies up meanwhile.
        .idle_timeout(None)
        .max_lifetime(None);
    let pool = options.connect("sqlite::memory:").await.expect("memory can be opened");
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        all.push(pool.acquire().await.expect("one more can be opened"));
    }
    pool
}

impl Pool for SqlitePool {
    fn take(&self) {
        at_once(pin!(async { drop(self.acquire().await.expect("the pool is open")) }));
    }

    fn is_idle(&self) -> bool {
        self.num_idle() == CONNECTIONS as usize
    }
}

impl Pool for ObservedPool<Sqlite> {
    fn take(&self) {
        at_once(pin!(async { drop(self.acquire().await.expect("the pool is open")) }));
    }

    fn is_idle(&self) -> bool {
        (**self).is_idle()
    }
}

/// Where connections are taken.
#[derive(Clone, Copy)]
enum Place {
    Request,
    Elsewhere,
}

impl Place {
    const ALL: [Self; 2] = [Self::Request, Self::Elsewhere];

    fn name(self) -> &'static str {
        match self {
            Self::Request => "within a request",
            Self::Elsewhere => "outside of any",
        }
    }
}

/// What one connection took in one round.
#[derive(Clone, Copy, Default)]
struct Taken {
    ns: f64,
    allocations: f64,
}

/// Takes every connection of a pool once. Only this is timed and counted.
#[inline(never)]
fn counted(pool: &dyn Pool) {
    (0..CONNECTIONS).for_each(|_| pool.take());
}

/// Measures a round.
fn measured(pool: &dyn Pool) -> Taken {
    let mut taken = Taken::default();
    let allocated = measure(|| {
        let started = Instant::now();
        counted(pool);
        taken.ns = started.elapsed().as_secs_f64() * 1e9 / f64::from(CONNECTIONS);
    });
    taken.allocations = allocated.count_total as f64 / f64::from(CONNECTIONS);
    taken
}

/// One pool in one place.
struct Bench {
    pool: Arc<dyn Pool>,
    /// Its handler measures a round.
    app: Option<Router>,
    ns: Arc<AtomicU64>,
    allocations: Arc<AtomicU64>,
}

impl Bench {
    fn new(perf: &Perf, pool: &Arc<dyn Pool>, place: Place) -> Self {
        let (ns, allocations) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let handler = {
            let (pool, ns, allocations) = (pool.clone(), ns.clone(), allocations.clone());
            let perf = perf.clone();
            async move || {
                // A request has its first phase once.
                drop(perf.phase("before"));
                let taken = measured(&*pool);
                ns.store(taken.ns.to_bits(), Relaxed);
                allocations.store(taken.allocations.to_bits(), Relaxed);
            }
        };
        let app = match place {
            Place::Request => {
                Some(Router::new().route("/", get(handler)).layer(perf.layer()).with_state(()))
            }
            Place::Elsewhere => None,
        };
        Self { pool: pool.clone(), app, ns, allocations }
    }

    async fn round(&mut self) -> Taken {
        while !self.pool.is_idle() {
            yield_now().await;
        }
        match &mut self.app {
            Some(app) => {
                let Ok(_) = app.call(Request::new(Body::empty())).await;
                Taken {
                    ns: f64::from_bits(self.ns.load(Relaxed)),
                    allocations: f64::from_bits(self.allocations.load(Relaxed)),
                }
            }
            None => measured(&*self.pool),
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The part of the command that callgrind runs.
async fn count(arguments: &[String]) {
    let number = |n: usize| arguments[n].parse::<usize>().expect("a number");
    let perf = Perf::new();
    let pair = pairs(&perf).await.swap_remove(number(0));
    let pool = if number(1) == 0 { pair.bare } else { pair.watched };
    let mut bench = Bench::new(&perf, &pool, Place::ALL[number(2)]);
    for _ in 0..number(3) {
        bench.round().await;
    }
}

/// Instructions that one connection takes; `None` without callgrind.
fn instructions_of(pair: usize, watched: bool, place: Place) -> Option<f64> {
    let arguments = |rounds: usize| {
        let numbers = [pair, watched.into(), place as usize, rounds];
        ["--count".to_owned()].into_iter().chain(numbers.map(|n| n.to_string())).collect()
    };
    let options = ["--collect-atstart=no", "--toggle-collect=pools::counted*"];
    instructions(&options, arguments, COUNTED).map(|count| count / f64::from(CONNECTIONS))
}

async fn run(rounds: usize) -> String {
    let mut table = String::from(
        "| | | bare, ns | watched, ns | allocations | instructions |\n|---|---|---:|---:|---:|---:|\n",
    );
    let perf = Perf::new();
    for (n, pair) in pairs(&perf).await.iter().enumerate() {
        for place in Place::ALL {
            let mut both = [&pair.bare, &pair.watched].map(|pool| Bench::new(&perf, pool, place));
            let mut taken = [const { Vec::new() }; 2];
            for round in 0..rounds {
                for step in 0..2 {
                    // The other one is first in each round.
                    let which = (step + round) % 2;
                    taken[which].push(both[which].round().await);
                }
            }
            let over = |value: fn(&Taken) -> f64| {
                let [bare, watched] = &taken;
                median(bare.iter().zip(watched).map(|(b, w)| value(w) - value(b)).collect())
            };
            let instructions =
                match (instructions_of(n, false, place), instructions_of(n, true, place)) {
                    (Some(bare), Some(watched)) => format!("{:+.0}", watched - bare),
                    _ => "–".to_owned(),
                };
            let _ = writeln!(
                table,
                "| {} | {} | {:.0} | {:+.0} | {:+.0} | {instructions} |",
                pair.name,
                place.name(),
                median(taken[0].iter().map(|taken| taken.ns).collect()),
                over(|taken| taken.ns),
                over(|taken| taken.allocations),
            );
        }
    }
    table
}

fn main() {
    if env::var("SIZES").is_ok() {
        let p = runtime();
        p.block_on(async {
            let s = sqlite().await;
            let f = s.acquire();
            eprintln!("future {}", std::mem::size_of_val(&f));
            let c = f.await.expect("x");
            eprintln!("conn {} raw {}", std::mem::size_of_val(&c), std::mem::size_of_val(&*c));
            let perf = Perf::new();
            let o = perf.observe_sqlx("x", s.clone());
            let f = o.acquire();
            eprintln!("ofuture {}", std::mem::size_of_val(&f));
        });
        return;
    }
    let arguments: Vec<String> = env::args().skip(1).collect();
    let runtime = runtime();
    if let Some(at) = arguments.iter().position(|argument| argument == "--count") {
        return runtime.block_on(count(&arguments[at + 1..]));
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test --benches`: only that every pool does its part.
        runtime.block_on(run(2));
        return;
    }
    let table = runtime.block_on(run(ROUNDS));
    print!("{table}");
    if !arguments.iter().any(|argument| argument == "--print") {
        write_tables("pools", &table);
    }
}
