//! Do verdicts depend on the day? `cargo bench -p example-service --bench calibration`.
//!
//! The load of `validate --quick` on the example service, unchanged, again and again, each time on a service that
//! was just started: first ten times to find out what its figures are on this machine at its best and at its worst,
//! then twenty times against limits 30 % beyond its worst, which must never be found broken, nor a run invalid; and ten
//! times against limits 30 % beyond its best, which must never be found kept. The table goes into
//! `docs/measurement.md`, between its markers, unless `-- --print` is given; if a verdict is wrong, the exit code
//! says so.
#![allow(missing_docs, reason = "a benchmark has no API")]

#[allow(dead_code, reason = "other benchmarks use more of it")]
#[path = "../../middleware/benches/support/mod.rs"]
mod support;

use std::{collections::BTreeMap, env, fmt::Write as _, process::ExitCode, time::Duration};

use example_service::{ApiKey, Config, SeedPlan, Seeded, Seeder, Service, workload};
use parallax_loadgen::{LoadTest, Report, Verdict};
use tempfile::TempDir;

use crate::support::write_tables;

/// How far a limit is from all that is usual.
const AWAY: f64 = 0.3;
const FRESH: Duration = Duration::from_secs(120);

/// How much is done.
#[derive(Clone, Copy)]
struct Effort {
    entities: u64,
    learning: usize,
    runs: usize,
    warmup: Duration,
    duration: Duration,
}

const FULL: Effort = Effort {
    entities: 10_000,
    learning: 10,
    runs: 20,
    warmup: Duration::from_secs(2),
    duration: Duration::from_secs(10),
};
const LOOK: Effort = Effort {
    entities: 100,
    learning: 1,
    runs: 1,
    warmup: Duration::ZERO,
    duration: Duration::from_millis(200),
};

#[derive(Clone, Copy, Debug)]
enum Load {
    Closed,
    Open,
}

/// A limit that a usual run keeps, or one that it does not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Side {
    Kept,
    Broken,
}

/// What is judged: a figure, and whether more of it is worse.
const FIGURES: [(&str, bool); 3] = [("p50", true), ("p95", true), ("rate", false)];

struct Bench {
    config: Config,
    plan: SeedPlan,
    seeded: Seeded,
    effort: Effort,
    _folder: TempDir,
}

impl Bench {
    async fn start(effort: Effort) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("calibration.db").display().to_string();
        let key = ApiKey::new("a-key-for-calibration").expect("a key");
        let config = Config::builder().database_url(format!("sqlite://{file}?mode=rwc"));
        let config = config.api_key(key).build().expect("the settings are valid");
        let service = Service::start(config.clone()).await.expect("it starts");
        let plan = SeedPlan::new(effort.entities, 1).expect("it can be seeded");
        let seeded = Seeder::new(&service).seed(&plan, |_| {}).await;
        let seeded = seeded.expect("it takes what it is seeded with");
        service.shutdown().await;
        Self { config, plan, seeded, effort, _folder: folder }
    }

    /// One run on a service whose cache is empty: entries that a run before left would expire together in a later one.
    async fn run(&self, load: Load, limits: &[String]) -> Report {
        let service = Service::start(self.config.clone()).await.expect("it starts");
        let fresh = Seeder::new(&service).wait_until_fresh(&self.seeded, FRESH).await;
        fresh.expect("its model knows what was seeded");
        let test = LoadTest::new(service.router())
            .scenario(workload::mix(&self.plan, service.api_key()))
            .warmup(self.effort.warmup)
            .duration(self.effort.duration)
            .pass_limiter(true);
        let test = match load {
            Load::Closed => test.users(1_000).think_time(Duration::from_millis(100)),
            Load::Open => test.rate(2_000),
        };
        let test = limits.iter().fold(test, |test, limit| test.threshold(limit));
        let report = test.run().await.expect("the plan is valid");
        service.shutdown().await;
        report
    }

    /// The least and the most that the figures usually are, in the order of [`FIGURES`]: microseconds, and requests per
    /// second. No interval over one run knows what the machine does in the next.
    async fn usual(&self, load: Load) -> Vec<[f64; 2]> {
        let mut found = vec![Vec::new(); FIGURES.len()];
        for _ in 0..self.effort.learning {
            let client = self.run(load, &[]).await.runs.remove(0).client;
            let times = client.response_time.summary;
            let figures = [times.p50_us, times.p95_us, Some(client.rate)];
            found.iter_mut().zip(figures).for_each(|(found, figure)| found.extend(figure));
        }
        let least = |found: &[f64]| found.iter().copied().fold(f64::INFINITY, f64::min);
        let most = |found: &[f64]| found.iter().copied().fold(0.0, f64::max);
        found.iter().map(|found| [least(found), most(found)]).collect()
    }
}

fn limit(figure: &str, more_is_worse: bool, [least, most]: [f64; 2], side: Side) -> String {
    let above = more_is_worse == (side == Side::Kept);
    let limit = if above { most * (1.0 + AWAY) } else { least * (1.0 - AWAY) };
    if more_is_worse {
        format!("{figure} < {limit:.3}us")
    } else {
        format!("{figure} >= {limit:.1}/s")
    }
}

/// How often each verdict was found.
type Verdicts = BTreeMap<Verdict, u64>;

/// The table, and whether all verdicts were right.
async fn calibrate(effort: Effort) -> (String, bool) {
    let bench = Bench::start(effort).await;
    let mut table = String::from(
        "| load | usual | limit | pass | inconclusive | fail | invalid |\n|---|---|---|---:|---:|---:|---:|\n",
    );
    let mut right = true;
    for load in [Load::Closed, Load::Open] {
        let usual = bench.usual(load).await;
        // Apart from each other: where a limit is missed, the machine may be blamed, and no figure of the run counts.
        for (side, runs) in [(Side::Kept, effort.runs), (Side::Broken, effort.runs.div_ceil(2))] {
            let limits: Vec<String> = FIGURES
                .iter()
                .zip(&usual)
                .map(|((figure, more_is_worse), usual)| limit(figure, *more_is_worse, *usual, side))
                .collect();
            let mut found = vec![Verdicts::new(); limits.len()];
            for _ in 0..runs {
                let run = bench.run(load, &limits).await.runs.remove(0);
                for reason in &run.validity.reasons {
                    eprintln!("{load:?}: {}: {}", reason.rule, reason.message);
                }
                for (verdicts, result) in found.iter_mut().zip(&run.thresholds) {
                    // Of a run that is invalid no figure counts.
                    let verdict = result.verdict.max(run.validity.verdict);
                    *verdicts.entry(verdict).or_default() += 1;
                    eprintln!("{load:?}: {}: {verdict}, {:?}", result.expression, result.observed);
                }
            }
            for (((figure, more_is_worse), [least, most]), (text, verdicts)) in
                FIGURES.iter().zip(&usual).zip(limits.iter().zip(&found))
            {
                let count = |verdict| verdicts.get(&verdict).copied().unwrap_or(0);
                right &= match side {
                    Side::Kept => count(Verdict::Fail) + count(Verdict::Invalid) == 0,
                    Side::Broken => count(Verdict::Pass) == 0,
                };
                let usual = if *more_is_worse {
                    format!("{figure} {:.3} to {:.3} ms", least / 1e3, most / 1e3)
                } else {
                    format!("{figure} {least:.0} to {most:.0}/s")
                };
                let _ = writeln!(
                    table,
                    "| {load:?} | {usual} | `{text}` | {} | {} | {} | {} |",
                    count(Verdict::Pass),
                    count(Verdict::Inconclusive),
                    count(Verdict::Fail),
                    count(Verdict::Invalid)
                );
            }
        }
    }
    (table, right)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    // `cargo test --benches`: only that all do their part.
    let effort = if has("--bench") { FULL } else { LOOK };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (table, right) = runtime.block_on(calibrate(effort));
    print!("{table}");
    if has("--bench") && !has("--print") {
        write_tables("measurement.md", "calibration", &table);
    }
    if right || !has("--bench") {
        ExitCode::SUCCESS
    } else {
        eprintln!(
            "a verdict was wrong: a limit that is usually kept failed or was invalid, or another one passed"
        );
        ExitCode::FAILURE
    }
}
