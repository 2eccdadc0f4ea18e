//! What the generator can do, and what it costs: `cargo bench -p parallax-loadgen --bench generator`.
//!
//! All candidates drive one router with one trivial route under the layer, in one process, in turn, slice after
//! slice, so that whatever else the machine does meets all alike; what counts is the median over the rounds. wrk and
//! oha drive the same router over a socket of this process, where they are installed. The tables go into
//! `docs/performance.md`, between their markers, unless `-- --print` is given.
#![allow(missing_docs, reason = "a benchmark has no API")]

#[allow(dead_code, reason = "other benchmarks count instructions")]
#[path = "../../middleware/benches/support/mod.rs"]
mod support;

use std::{
    env,
    fmt::Write as _,
    fs,
    future::poll_fn,
    hint,
    pin::pin,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, body::Body, routing::get};
use clap::Parser;
use http::Request;
use http_body::Body as _;
use parallax_loadgen::{LoadTest, Pacer, report::Run};
use parallax_middleware::Perf;
use rlt::{IterInfo, IterReport, StatelessBenchSuite, Status, cli::BenchCli};
use tokio::{
    net::TcpListener,
    task::coop::consume_budget,
    time::{Instant, sleep},
};
use tower_service::Service;

use crate::support::{median, write_tables};

/// Concurrent users of each candidate.
const USERS: usize = 64;
const WORKERS: usize = 2;
/// As long as the pacer does, the bare thread's waker spins before it is due.
const SPIN: Duration = Duration::from_micros(40);

/// How long everything takes.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    slice: Duration,
    paced: Duration,
}

const FULL: Effort =
    Effort { rounds: 9, slice: Duration::from_secs(1), paced: Duration::from_secs(5) };
const LOOK: Effort =
    Effort { rounds: 1, slice: Duration::from_millis(150), paced: Duration::from_millis(150) };

fn app() -> Router {
    Router::new().route("/", get(|| async { "ok" })).layer(Perf::new().layer()).with_state(())
}

async fn ask(app: &mut Router) {
    let request = Request::get("/").body(Body::empty()).expect("valid");
    let Ok(response) = app.call(request).await;
    let mut body = pin!(response.into_body());
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        std::hint::black_box(frame.is_ok());
    }
}

/// Requests per second of tasks that ask and do nothing else.
async fn raw(app: &Router, slice: Duration) -> f64 {
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let start = Instant::now();
    let tasks: Vec<_> = (0..USERS)
        .map(|_| {
            let (mut app, stop, done) = (app.clone(), stop.clone(), done.clone());
            tokio::spawn(async move {
                let mut n = 0;
                while !stop.load(Relaxed) {
                    ask(&mut app).await;
                    n += 1;
                    consume_budget().await;
                }
                done.fetch_add(n, Relaxed);
            })
        })
        .collect();
    sleep(slice).await;
    stop.store(true, Relaxed);
    let took = start.elapsed();
    for task in tasks {
        task.await.expect("it ends");
    }
    done.load(Relaxed) as f64 / took.as_secs_f64()
}

async fn run(test: LoadTest) -> Run {
    let report = test.warmup(Duration::ZERO).run().await.expect("the plan is valid");
    let run = report.runs.into_iter().next().expect("one run");
    assert_eq!(run.conservation.unexplained, 0);
    run
}

async fn parallax(app: &Router, slice: Duration) -> f64 {
    let run = run(LoadTest::new(app.clone()).get("/").users(USERS).duration(slice)).await;
    assert_eq!(run.pairs.paired, run.conservation.outcomes.ok, "every request is paired");
    run.client.rate
}

#[derive(Clone)]
struct Rlt(Router);

#[async_trait]
impl StatelessBenchSuite for Rlt {
    async fn bench(&mut self, _: &IterInfo) -> anyhow::Result<IterReport> {
        let start = Instant::now();
        ask(&mut self.0).await;
        let duration = start.elapsed();
        // A service that never waits would keep the worker for this task; rlt's own timer would never come.
        consume_budget().await;
        Ok(IterReport { duration, status: Status::success(200), bytes: 2, items: 1 })
    }
}

async fn rlt(app: &Router, slice: Duration) -> f64 {
    let file = env::temp_dir().join(format!("rlt-{}.json", std::process::id()));
    let cli = BenchCli::parse_from([
        "rlt",
        "--quiet",
        "--concurrency",
        &USERS.to_string(),
        "--duration",
        &format!("{}ms", slice.as_millis()),
        "--output",
        "json",
        "--output-file",
        file.to_str().expect("a path of text"),
    ]);
    rlt::cli::run(cli, Rlt(app.clone())).await.expect("it runs");
    let text = fs::read_to_string(&file).expect("it wrote its report");
    fs::remove_file(&file).expect("it is a file");
    let report: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let iterations =
        report.pointer("/summary/iters/total").or(report.pointer("/summary/total_iters"));
    let iterations = iterations.and_then(serde_json::Value::as_f64);
    iterations.unwrap_or_else(|| panic!("{text}")) / slice.as_secs_f64()
}

/// Requests per second as a program says that is not installed everywhere.
async fn over_a_socket(program: &str, url: &str, slice: Duration) -> Option<f64> {
    let seconds = slice.as_secs().max(1).to_string();
    let (users, workers) = (USERS.to_string(), WORKERS.to_string());
    let mut command = match program {
        "wrk" => {
            let mut wrk = Command::new("wrk");
            wrk.args(["-t", &workers, "-c", &users, "-d", &seconds, url]);
            wrk
        }
        _ => {
            let mut oha = Command::new("oha");
            oha.args(["--no-tui", "-c", &users, "-z", &format!("{seconds}s"), url]);
            oha
        }
    };
    let output = tokio::task::spawn_blocking(move || command.output()).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.trim_start().starts_with("Requests/sec"))?;
    line.rsplit([' ', '\t']).next()?.parse().ok()
}

/// Requests per second of each candidate.
async fn rates(effort: Effort) -> String {
    let app = app();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("it is bound"));
    let served = app.clone();
    tokio::spawn(async move { axum::serve(listener, served).await });
    let names = [
        "a loop that only asks",
        "Parallax, paired",
        "rlt",
        "wrk, over loopback",
        "oha, over loopback",
    ];
    let mut found: [Vec<f64>; 5] = Default::default();
    for _ in 0..effort.rounds {
        found[0].push(raw(&app, effort.slice).await);
        found[1].push(parallax(&app, effort.slice).await);
        found[2].push(rlt(&app, effort.slice).await);
        found[3].extend(over_a_socket("wrk", &url, effort.slice).await);
        found[4].extend(over_a_socket("oha", &url, effort.slice).await);
    }
    let mut table =
        String::from("| | requests/s | of the loop | Parallax does |\n|---|---:|---:|---:|\n");
    let over = |these: &[f64], those: &[f64]| {
        median(these.iter().zip(those).map(|(this, that)| this / that).collect())
    };
    for (name, rates) in names.iter().zip(&found).filter(|(_, rates)| !rates.is_empty()) {
        let _ = writeln!(
            table,
            "| {name} | {:.0} | {:.2} | {:.1}\u{d7} |",
            median(rates.clone()),
            over(rates, &found[0]),
            over(&found[1], rates),
        );
    }
    table
}

/// How late a thread wakes, in microseconds, median and 99th percentile, that another one wakes 10,000 times a
/// second, and that does nothing else. The one that wakes it sleeps and spins as the pacer does: what the machine adds
/// before a worker of the runtime that sleeps can begin with an arrival.
fn bare_wake_up(duration: Duration) -> [f64; 2] {
    let gap = Duration::from_micros(100);
    let (wake, woken) = mpsc::channel::<Instant>();
    let sleeper = thread::spawn(move || {
        let mut late: Vec<f64> =
            woken.into_iter().map(|due| due.elapsed().as_secs_f64() * 1e6).collect();
        late.sort_by(f64::total_cmp);
        [0.5, 0.99].map(|q| late[(late.len() as f64 * q) as usize])
    });
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    let start = Instant::now();
    for n in 0..duration.div_duration_f64(gap) as u32 {
        let due = start + gap * n;
        loop {
            let left = due.saturating_duration_since(Instant::now());
            if left > SPIN {
                thread::sleep(left - SPIN);
            } else if left.is_zero() {
                break;
            } else {
                hint::spin_loop();
            }
        }
        wake.send(due).expect("it listens");
    }
    drop(wake);
    sleeper.join().expect("no panic")
}

/// How late requests are dispatched, by pacer.
async fn lags(effort: Effort) -> String {
    let app = app();
    let mut table = String::from(
        "| 10,000 arrivals/s | lag p50, µs | p99 | gap p50, µs | p99 | outside p50, µs | p99 |\n|---|---:|---:|---:|---:|---:|---:|\n",
    );
    let mut found: [[Vec<f64>; 6]; 2] = Default::default();
    let mut bare: [Vec<f64>; 2] = Default::default();
    for _ in 0..effort.rounds.div_ceil(3) {
        let woken = tokio::task::spawn_blocking(move || bare_wake_up(effort.paced)).await;
        for (into, us) in bare.iter_mut().zip(woken.expect("no panic")) {
            into.push(us);
        }
        for (pacer, found) in [Pacer::Precise, Pacer::Coarse].into_iter().zip(&mut found) {
            let test = LoadTest::new(app.clone()).get("/").rate(10_000).pacer(pacer);
            let run = run(test.duration(effort.paced)).await;
            let gap = run.generator.and_then(|generator| generator.arrival_gap);
            let gap = gap.expect("an open workload").summary;
            let lag = run.client.lag.summary;
            // Until a worker has begun with a request, and the call: what the generator is not late by.
            let outside = run.pairs.outside.summary;
            let figures = [lag, gap, outside].map(|times| [times.p50_us, times.p99_us]).concat();
            for (into, us) in found.iter_mut().zip(figures) {
                into.push(us.expect("enough arrivals"));
            }
        }
    }
    for (pacer, found) in [Pacer::Precise, Pacer::Coarse].into_iter().zip(found) {
        let figures = found.map(|found| format!(" {:.1} |", median(found))).concat();
        let _ = writeln!(table, "| {} |{figures}", pacer.name());
    }
    let [p50, p99] = bare.map(median);
    let _ =
        writeln!(table, "| a bare thread that another one wakes | | | | | {p50:.1} | {p99:.1} |");
    table
}

/// The resident memory of a fresh process that does what `arguments` say, in bytes.
fn memory_of(arguments: &[String]) -> f64 {
    let program = env::current_exe().expect("this one");
    let output = Command::new(program).args(arguments).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.trim().parse().unwrap_or_else(|_| panic!("{text}{output:?}"))
}

/// What users cost who do nothing, and what time costs.
fn memory(effort: Effort) -> String {
    let idle = |users: usize| memory_of(&["--idle".to_owned(), users.to_string()]);
    let (few, many) = (1_000, 101_000);
    let user = (idle(many) - idle(few)) / (many - few) as f64;
    let busy = |ms: u128| memory_of(&["--busy".to_owned(), ms.to_string()]);
    let short = effort.slice.as_millis();
    let (first, last) = (busy(short), busy(8 * short));
    format!(
        "| | |\n|---|---:|\n| an idle user | {user:.0} B |\n| a run eight times as long | {:+.1} % of the memory |\n",
        (last / first - 1.0) * 100.0
    )
}

fn peak(run: &Run) -> u64 {
    run.resources.iter().filter_map(|row| row.rss_bytes).max().expect("Linux tells")
}

async fn child(what: &str, value: u64) {
    let test = LoadTest::new(app()).get("/");
    let run = match what {
        // Each is spread over an hour of thinking: nearly all wait for their first request.
        "--idle" => {
            let hour = Duration::from_secs(3_600);
            let users = test.users(value as usize).think_time(hour);
            run(users.duration(Duration::from_secs(2))).await
        }
        _ => run(test.users(USERS).duration(Duration::from_millis(value))).await,
    };
    println!("{}", peak(&run));
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(WORKERS).enable_all().build().expect("a runtime");
    if let [what @ ("--idle" | "--busy"), value] =
        &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..]
    {
        runtime.block_on(child(what, value.parse().expect("a number")));
        return;
    }
    let bench = arguments.iter().any(|argument| argument == "--bench");
    // `cargo test --benches`: only that all do their part.
    let effort = if bench { FULL } else { LOOK };
    let tables = runtime.block_on(async {
        let rates = rates(effort).await;
        format!("{rates}\n{}", lags(effort).await)
    });
    let tables = format!("{tables}\n{}", memory(effort));
    print!("{tables}");
    if bench && !arguments.iter().any(|argument| argument == "--print") {
        write_tables("performance.md", "generator", &tables);
    }
}
