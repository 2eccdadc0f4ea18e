//! Do verdicts depend on the day? `cargo bench -p example-service --bench calibration`.
//!
//! The load of `validate --quick` on the example service, unchanged, again and again, each time on a service that
//! was just started: ten times to find out what its figures usually are; twenty times against limits that are 30 %
//! worse than their medians, which must never be found broken, nor a run invalid; and ten times against limits that
//! are 30 % better, which must never be found kept, and far better ones, most of which must be found broken for
//! certain. How far apart those runs were is shown beside that, and what of it the wake-ups of their machine explain.
//! The tables go into `docs/measurement.md`, between their markers, unless `-- --print` is given; if a verdict is
//! wrong, the exit code says so.
#![allow(missing_docs, reason = "a benchmark has no API")]

#[allow(dead_code, reason = "other benchmarks use more of it")]
#[path = "../../middleware/benches/support/mod.rs"]
mod support;

use std::{collections::BTreeMap, env, fmt::Write as _, process::ExitCode, time::Duration};

use example_service::{ApiKey, Config, SeedPlan, Seeded, Seeder, Service, workload};
use parallax_loadgen::{LoadTest, Run, Verdict, report::ClientView};
use parallax_middleware::LatencySummary;
use tempfile::TempDir;

use crate::support::write_tables;

/// How far a limit is from what is usual.
const AWAY: f64 = 0.3;
/// What is usual, in limits that are far from it.
const FAR: f64 = 4.0;
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
    duration: Duration::from_millis(400),
};

#[derive(Clone, Copy, Debug)]
enum Load {
    Closed,
    Open,
}

/// Where a limit is, and so what becomes of it in a usual run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Side {
    Kept,
    Broken,
    BrokenByFar,
}

/// What is judged.
#[derive(Clone, Copy)]
enum Figure {
    P50,
    P95,
    P99,
    Rate,
}

impl Figure {
    const ALL: [Self; 4] = [Self::P50, Self::P95, Self::P99, Self::Rate];

    fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P95 => "p95",
            Self::P99 => "p99",
            Self::Rate => "rate",
        }
    }

    fn of(self, client: &ClientView) -> f64 {
        let time = self.of_times(&client.response_time.summary);
        time.unwrap_or(client.rate)
    }

    /// In microseconds.
    fn of_times(self, times: &LatencySummary) -> Option<f64> {
        match self {
            Self::P50 => times.p50_us,
            Self::P95 => times.p95_us,
            Self::P99 => times.p99_us,
            Self::Rate => None,
        }
    }

    fn text(self, figure: f64) -> String {
        match self {
            Self::Rate => format!("{figure:.0}/s"),
            _ => format!("{:.3} ms", figure / 1e3),
        }
    }

    fn limit(self, usual: f64, side: Side) -> f64 {
        match (self, side) {
            (Self::Rate, Side::Kept) => usual * (1.0 - AWAY),
            (Self::Rate, Side::Broken) => usual * (1.0 + AWAY),
            (Self::Rate, Side::BrokenByFar) => usual * FAR,
            (_, Side::Kept) => usual * (1.0 + AWAY),
            (_, Side::Broken) => usual * (1.0 - AWAY),
            (_, Side::BrokenByFar) => usual / FAR,
        }
    }

    fn expression(self, limit: f64) -> String {
        match self {
            Self::Rate => format!("rate >= {limit:.0}/s"),
            _ => format!("{} < {limit:.0}us", self.name()),
        }
    }

    /// What the machine woke a thread later than at its best.
    fn late(self, run: &Run) -> Option<f64> {
        let late = &run.generator.as_ref()?.wake_ups.as_ref()?.summary;
        Some(self.of_times(late)? - late.min_us?)
    }
}

/// The median, the least and the most.
fn spread(mut found: Vec<f64>) -> Option<[f64; 3]> {
    found.sort_by(f64::total_cmp);
    let (last, half) = (found.len().checked_sub(1)?, found.len() / 2);
    Some([f64::midpoint(found[last - half], found[half]), found[0], found[last]])
}

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
    async fn run(&self, load: Load, limits: &[String]) -> Run {
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
        let mut report = test.run().await.expect("the plan is valid");
        service.shutdown().await;
        report.runs.remove(0)
    }
}

/// How often each verdict was found.
type Verdicts = BTreeMap<Verdict, u64>;

/// The tables, and whether all verdicts were right.
async fn calibrate(effort: Effort) -> (String, bool) {
    let bench = Bench::start(effort).await;
    let mut verdicts = String::from(
        "| load | usual | limit | pass | inconclusive | fail | invalid |\n|---|---|---|---:|---:|---:|---:|\n",
    );
    let mut ranges = String::from(
        "| load | figure | least | most | lateness | beyond, in lateness |\n|---|---|---:|---:|---:|---:|\n",
    );
    let mut right = true;
    for load in [Load::Closed, Load::Open] {
        let mut runs = Vec::new();
        for _ in 0..effort.learning {
            runs.push(bench.run(load, &[]).await);
        }
        let of = |figure: Figure, runs: &[Run]| {
            spread(runs.iter().map(|run| figure.of(&run.client)).collect()).expect("there are runs")
        };
        let usual = Figure::ALL.map(|figure| (figure, of(figure, &runs)[0]));
        let mut far = Verdicts::new();
        // Apart from each other: where a limit is missed, the machine may be blamed, and no figure of the run counts.
        for (sides, count) in [
            (&[Side::Kept][..], effort.runs),
            (&[Side::Broken, Side::BrokenByFar], effort.runs.div_ceil(2)),
        ] {
            let limits: Vec<_> = sides
                .iter()
                .flat_map(|side| usual.map(|(figure, usual)| (*side, figure, usual)))
                .map(|(side, figure, usual)| {
                    (side, figure, usual, figure.expression(figure.limit(usual, side)))
                })
                .collect();
            let expressions: Vec<_> = limits.iter().map(|limit| limit.3.clone()).collect();
            let mut found = vec![Verdicts::new(); limits.len()];
            for _ in 0..count {
                let run = bench.run(load, &expressions).await;
                for reason in &run.validity.reasons {
                    eprintln!("{load:?}: {}: {}", reason.rule, reason.message);
                }
                for (found, result) in found.iter_mut().zip(&run.thresholds) {
                    // Of a run that is invalid no figure counts, and one in doubt passes nothing.
                    let verdict = result.verdict.max(run.validity.verdict);
                    *found.entry(verdict).or_default() += 1;
                    let observed = result.observed.unwrap_or(f64::NAN);
                    eprintln!(
                        "{load:?}: {}: {verdict}, {observed:.1}, {}",
                        result.expression, result.note
                    );
                }
                runs.push(run);
            }
            for ((side, figure, usual, limit), found) in limits.iter().zip(&found) {
                let count = |verdict| found.get(&verdict).copied().unwrap_or(0);
                right &= match side {
                    Side::Kept => count(Verdict::Fail) + count(Verdict::Invalid) == 0,
                    Side::Broken | Side::BrokenByFar => count(Verdict::Pass) == 0,
                };
                if *side == Side::BrokenByFar {
                    found.iter().for_each(|(verdict, n)| *far.entry(*verdict).or_default() += n);
                }
                let _ = writeln!(
                    verdicts,
                    "| {load:?} | {} {} | `{limit}` | {} | {} | {} | {} |",
                    figure.name(),
                    figure.text(*usual),
                    count(Verdict::Pass),
                    count(Verdict::Inconclusive),
                    count(Verdict::Fail),
                    count(Verdict::Invalid)
                );
            }
        }
        // A judge who never decides is never wrong.
        right &= 2 * far.get(&Verdict::Fail).copied().unwrap_or(0) > far.values().sum();
        for (figure, usual) in usual {
            let [_, least, most] = of(figure, &runs).map(|found| found / usual);
            let limit = figure.limit(usual, Side::Kept);
            let late = spread(runs.iter().filter_map(|run| figure.late(run)).collect());
            let beyond = |run: &Run| Some((figure.of(&run.client) - limit) / figure.late(run)?);
            let beyond = runs.iter().filter_map(beyond).reduce(f64::max);
            let (late, beyond) = match late.zip(beyond) {
                Some(([late, ..], beyond)) => (figure.text(late), format!("{beyond:.1}")),
                None => ("–".to_owned(), "–".to_owned()),
            };
            let _ = writeln!(
                ranges,
                "| {load:?} | {} | {least:.2}× | {most:.2}× | {late} | {beyond} |",
                figure.name()
            );
        }
    }
    (format!("{verdicts}\n{ranges}"), right)
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
            "a verdict was wrong: a limit that is usually kept failed or was invalid, another one passed, or too \
             few of those that are far too tight were found broken"
        );
        ExitCode::FAILURE
    }
}
