//! What watching a pool of deadpool costs:
//! `cargo bench -p parallax-middleware --features deadpool --bench deadpool`.
//!
//! The same pool, bare and watched, in turn, round after round: one connection is taken and given back at once,
//! so that it is always idle and its manager has nothing to do. What counts is the median over the rounds of
//! the difference within a round. With `valgrind` installed, instructions are counted besides. The table goes
//! into `docs/performance.md`, between its markers.
//!
//! `-- NAME...` runs only the cases whose names contain one of these, and prints.
#![allow(missing_docs, reason = "a benchmark has no API")]

mod support;

use std::{
    convert::Infallible,
    env,
    fmt::Write as _,
    hint::black_box,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use deadpool::managed::{Manager, Metrics, Pool, RecycleResult};
use http::Request;
use parallax_middleware::{LoadMark, ObservedDeadpool, Perf, ProbeSource};
use tokio::time::Instant;
use tower::Service;

use crate::support::{median, write_tables};

/// Connections that are taken and given back in one round.
const TIMES: usize = 20_000;
const ROUNDS: usize = 51;
/// Those between two counts of instructions; start-up cancels out.
const COUNTED: usize = 10_000;

/// Makes nothing, and has nothing to check.
struct Trivial;

impl Manager for Trivial {
    type Type = ();
    type Error = Infallible;

    async fn create(&self) -> Result<(), Infallible> {
        Ok(())
    }

    async fn recycle(&self, (): &mut (), _: &Metrics) -> RecycleResult<Infallible> {
        Ok(())
    }
}

/// Where connections are asked for.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Case {
    Outside,
    Request,
    Paired,
    Once,
}

impl Case {
    const ALL: [Self; 4] = [Self::Outside, Self::Request, Self::Paired, Self::Once];

    fn name(self) -> &'static str {
        match self {
            Self::Outside => "outside of requests",
            Self::Request => "within a request",
            Self::Paired => "within a paired request",
            Self::Once => "a request under the layer, with one connection",
        }
    }

    /// How many connections each request takes.
    fn per_request(self, times: usize) -> usize {
        if self == Self::Once { 1 } else { times }
    }
}

/// The same pool, watched or not.
#[derive(Clone)]
enum Subject {
    Bare(Pool<Trivial>),
    Watched(ObservedDeadpool<Trivial>),
}

impl Subject {
    fn new(perf: &Perf, watched: bool) -> Self {
        let pool = Pool::builder(Trivial).max_size(4).build().expect("it has no timeouts");
        match watched {
            true => Self::Watched(perf.observe_deadpool("bench", pool)),
            false => Self::Bare(pool),
        }
    }

    async fn take(&self, times: usize) {
        match self {
            Self::Bare(pool) => {
                for _ in 0..times {
                    drop(black_box(pool.get().await.expect("there is one")));
                }
            }
            Self::Watched(pool) => {
                for _ in 0..times {
                    drop(black_box(pool.get().await.expect("there is one")));
                }
            }
        }
    }
}

/// A pool, and a service under the layer whose handler asks it for connections.
struct Bench {
    subject: Subject,
    router: Router,
    source: ProbeSource,
    /// What the handler took for its connections, and how many it is to take.
    work: Arc<Mutex<(Duration, usize)>>,
}

impl Bench {
    fn new(watched: bool) -> Self {
        let perf = Perf::new();
        let subject = Subject::new(&perf, watched);
        let work = Arc::new(Mutex::new((Duration::ZERO, 0)));
        let handler = {
            let (subject, work) = (subject.clone(), Arc::clone(&work));
            async move || {
                let times = work.lock().expect("no panic").1;
                let started = Instant::now();
                subject.take(times).await;
                work.lock().expect("no panic").0 = started.elapsed();
            }
        };
        let router = Router::new().route("/", get(handler)).layer(perf.layer());
        Self { subject, router, source: ProbeSource::new(), work }
    }

    /// How long so many connections took.
    async fn run(&mut self, case: Case, times: usize) -> Duration {
        let started = Instant::now();
        if case == Case::Outside {
            self.subject.take(times).await;
            return started.elapsed();
        }
        let per_request = case.per_request(times);
        self.work.lock().expect("no panic").1 = per_request;
        for _ in 0..times / per_request {
            let mut request = Request::new(Body::empty());
            if case == Case::Paired {
                request.extensions_mut().insert(LoadMark::new().paired(self.source.probe()));
            }
            let Ok(response) = self.router.call(request).await;
            black_box(response);
        }
        // Where a request takes many, only they count; else the whole request does.
        if case == Case::Once { started.elapsed() } else { self.work.lock().expect("no panic").0 }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Nanoseconds for a connection.
fn time(bench: &mut Bench, case: Case) -> f64 {
    runtime().block_on(async {
        bench.run(case, TIMES / 10).await;
        bench.run(case, TIMES).await.as_secs_f64() * 1e9 / TIMES as f64
    })
}

/// Instructions for a connection; `None` without callgrind.
fn instructions(case: Case, watched: bool) -> Option<f64> {
    let arguments = |times: usize| {
        let numbers = [case as usize, watched.into(), times];
        ["--count".to_owned()].into_iter().chain(numbers.map(|n| n.to_string())).collect()
    };
    let options = ["--collect-atstart=no", "--toggle-collect=deadpool::counted*"];
    support::instructions(&options, arguments, COUNTED)
}

/// The part of the command that callgrind runs.
fn count(arguments: &[String]) {
    let number = |n: usize| arguments[n].parse::<usize>().expect("a number");
    let mut bench = Bench::new(number(1) > 0);
    counted(&mut bench, Case::ALL[number(0)], number(2));
}

/// The part that callgrind counts.
#[inline(never)]
fn counted(bench: &mut Bench, case: Case, times: usize) {
    runtime().block_on(bench.run(case, times));
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--count") {
        return count(&arguments[at + 1..]);
    }
    let mut benches = [Bench::new(false), Bench::new(true)];
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test --benches`: only that every case runs.
        for case in Case::ALL {
            benches.iter_mut().for_each(|bench| {
                runtime().block_on(bench.run(case, 10));
            });
        }
        return;
    }
    let names: Vec<&String> = arguments.iter().filter(|name| !name.starts_with("--")).collect();
    let asked =
        |case: &Case| names.is_empty() || names.iter().any(|name| case.name().contains(*name));

    let mut table = String::from(
        "| a connection that is idle, taken and given back | bare, ns | watched, ns | more, ns | more \
         instructions |\n|---|---:|---:|---:|---:|\n",
    );
    for case in Case::ALL.into_iter().filter(asked) {
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            for step in 0..2 {
                // Another one is first in each round.
                let n = (step + round) % 2;
                times[n].push(time(&mut benches[n], case));
            }
        }
        let more = times[1].iter().zip(&times[0]).map(|(watched, bare)| watched - bare).collect();
        let counts = (instructions(case, true), instructions(case, false));
        let instructions = match counts {
            (Some(watched), Some(bare)) => format!("{:+.0}", watched - bare),
            _ => "–".to_owned(),
        };
        let [bare, watched] = times.map(median);
        let _ = writeln!(
            table,
            "| {} | {bare:.0} | {watched:.0} | {:+.0} | {instructions} |",
            case.name(),
            median(more),
        );
    }
    print!("{table}");
    if names.is_empty() {
        write_tables("performance.md", "deadpool", &table);
    }
}
