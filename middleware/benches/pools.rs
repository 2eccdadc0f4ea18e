//! What a connection costs more if its pool is watched: `cargo bench -p parallax-middleware --features sqlx
//! --bench pools`.
//!
//! A pool as it is and one that is watched run in one process, in turn, round after round, so that whatever else
//! the machine does meets both alike; what counts is the median over the rounds of the difference within the
//! round. Connections are taken from an idle pool and given back at once, within a request under the layer and
//! outside of any. What a pool does with a connection that was given back is waited for, and not timed. No
//! instructions are counted: what the allocator does for a pool is not the same each time. The table goes into
//! `docs/performance.md`, between its markers, unless `-- --print` is given.
#![allow(missing_docs, reason = "a benchmark has no API")]

#[allow(dead_code, reason = "other benchmarks count instructions")]
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

use crate::support::{median, write_tables};

/// Connections of a pool, which are taken and given back one after another.
const CONNECTIONS: u32 = 32;
const ROUNDS: usize = 2_000;

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

async fn run(rounds: usize) -> String {
    let mut table =
        String::from("| | | bare, ns | watched, ns | allocations |\n|---|---|---:|---:|---:|\n");
    let perf = Perf::new();
    for pair in &pairs(&perf).await {
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
            let _ = writeln!(
                table,
                "| {} | {} | {:.0} | {:+.0} | {:+.0} |",
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
    let arguments: Vec<String> = env::args().skip(1).collect();
    let runtime = runtime();
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test --benches`: only that every pool does its part.
        runtime.block_on(run(2));
        return;
    }
    let table = runtime.block_on(run(ROUNDS));
    print!("{table}");
    if !arguments.iter().any(|argument| argument == "--print") {
        write_tables("performance.md", "pools", &table);
    }
}
