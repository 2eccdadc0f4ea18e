//! `example-service validate`: does this service hold its requirements?
//!
//! Starts the service in this process, seeds it, drives its router with concurrent users and then at a
//! constant rate, measures memory per entity in fresh processes, and judges three requirements.

use std::{path::Path, process::ExitCode, time::Duration};

use clap::Args;
use parallax_loadgen::{
    LoadTest, LoadTestError, Pause, PlanError, Run,
    cli::{RunArgs, Session},
    memory,
    report::{MemoryModel, ThresholdResult, Unit, Verdict},
    threshold::Op,
};
use tokio::process::Command;

use crate::{
    ConfigArgs, ConfigError, DEFAULT_DATABASE_URL, MissingKey, SeedError, SeedPlan, Seeder,
    Service, StartError, memory::MemorySample, workload,
};

/// 95 of 100 requests are answered within this.
const LATENCY: &str = "p95 < 200ms";
/// So many requests are answered each second.
const THROUGHPUT: &str = "rate >= 1000/s";
/// What a run must ask for, requests per second, to show that.
const ENOUGH_RATE: f64 = 1_200.0;
/// So many entities fit into so much memory.
const PROJECTED_ENTITIES: u64 = 100_000;
const MEMORY_LIMIT: f64 = 2.0 * 1024.0 * 1024.0 * 1024.0;
const MEMORY: &str = "rss < 2GiB at 100,000 entities";

/// Sizes that memory is measured at, as shares of the seeded entities, and processes for each.
const SIZES: [(u64, u64); 5] = [(1, 8), (1, 4), (1, 2), (3, 4), (1, 1)];
const PROCESSES: u64 = 2;

/// Users read an answer before they ask again. Without a pause a thousand of them are no users but a
/// closed loop that fills whatever queue is longest.
const THINK_TIME: Duration = Duration::from_millis(100);

/// How long the model may take to know everything that was seeded.
const FRESH_DEADLINE: Duration = Duration::from_secs(120);

/// Flags of `validate`.
#[derive(Debug, Args)]
pub struct ValidateArgs {
    #[command(flatten)]
    run: RunArgs,

    /// Entities to seed, and ten times as many interactions [default: 100000, with --quick 10000]
    ///
    /// Memory is measured on SQLite at up to as many; under 10000 they are too few to project from.
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = entities)]
    entities: Option<u64>,

    /// Meet the rate limiter like everybody else: the run must then come out as invalid
    #[arg(long)]
    no_bypass: bool,

    #[command(flatten)]
    config: ConfigArgs,
}

fn entities(text: &str) -> Result<u64, String> {
    match text.parse::<i128>() {
        Ok(n @ 80..=10_000_000) => Ok(n as u64),
        Ok(_) => Err("it has to be 80 to 10000000".to_owned()),
        Err(_) => Err("it has to be a whole number, like 10000".to_owned()),
    }
}

/// Why a validation did not come to a verdict.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    /// The flags or the place for the report make no sense.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The service's settings make no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The service does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The service does not take what it is seeded with.
    #[error("the service could not be seeded: {0}")]
    Seed(#[from] SeedError),
    /// The load generator does not start.
    #[error(transparent)]
    Load(#[from] LoadTestError),
    /// A process that measures memory failed.
    #[error("memory could not be measured: {0}")]
    Memory(String),
    /// A file cannot be written, or a process not be started.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl ValidateError {
    /// Was it the caller's doing?
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Plan(_) | Self::Config(_) | Self::Start(_) | Self::Load(LoadTestError::Plan(_))
        )
    }
}

/// Runs the validation. The exit code says the verdict.
///
/// With the default database the service gets a SQLite file of its own, which is gone afterwards; another
/// one is filled and stays.
///
/// # Errors
/// If anything keeps it from coming to a verdict.
pub async fn validate(args: ValidateArgs) -> Result<ExitCode, ValidateError> {
    let entities = args.entities.unwrap_or(if args.run.quick { 10_000 } else { 100_000 });
    let plan = SeedPlan::new(entities, args.run.seed)?;
    let folder = tempfile::tempdir()?;
    let mut config = args.config;
    let own_database = config.database_url == DEFAULT_DATABASE_URL;
    if own_database {
        config.database_url = sqlite_url(folder.path());
    }
    let config = config.config(None, MissingKey::Invent)?;
    let mut settings = config.describe();
    for (name, value) in &mut settings {
        // A path that is gone when the report is read tells nobody anything.
        if own_database && name == "database" {
            "SQLite in a temporary file".clone_into(value);
        }
    }
    settings.push(("entities".to_owned(), plan.entities.to_string()));
    settings.push(("interactions".to_owned(), plan.interactions.to_string()));
    let session = Session::start("example-service", args.run, settings)?;
    let service = Service::start(config).await?;
    let result = load(session, &service, &plan, !args.no_bypass).await;
    service.shutdown().await;
    result
}

fn sqlite_url(folder: &Path) -> String {
    format!("sqlite://{}?mode=rwc", folder.join("validate.db").display())
}

async fn load(
    mut session: Session,
    service: &Service,
    plan: &SeedPlan,
    bypass: bool,
) -> Result<ExitCode, ValidateError> {
    if !seed_service(&session, service, plan).await? {
        return Ok(session.finish(Vec::new(), None)?);
    }

    let quick = session.args().quick;
    let duration =
        session.args().duration.unwrap_or(Duration::from_secs(if quick { 10 } else { 60 }));
    let warmup = session.args().warmup.unwrap_or(Duration::from_secs(if quick { 2 } else { 10 }));
    let think_time = session.args().think_time.unwrap_or(Pause::Constant(THINK_TIME));
    let users = session.args().users.unwrap_or(1_000);
    let rate = session.args().rate.unwrap_or(2_000.0);
    let test = |name: &str| {
        LoadTest::new(service.router())
            .name(name)
            .scenario(workload::mix(plan, service.api_key()))
            .warmup(warmup)
            .duration(duration)
            .pass_limiter(bypass)
    };
    session.say(&format!(
        "closed: {users} users who pause {:?}, {duration:?} after {warmup:?} of warm-up",
        think_time.mean()
    ));
    let closed = test("closed").users(users).think_time(think_time);
    let mut closed = closed.threshold(LATENCY);
    let mut open = test("open").rate(rate).threshold(LATENCY);
    // Judged where more is asked for than is required: a load that asks for less shows nothing.
    let asked = users as f64 / think_time.mean().as_secs_f64();
    if asked > ENOUGH_RATE {
        closed = closed.threshold(THROUGHPUT);
    } else if rate > ENOUGH_RATE {
        open = open.threshold(THROUGHPUT);
    } else {
        session.say("neither run asks for 1,000 requests/s and more, so the rate is not judged");
    }
    session.run(closed).await?;
    session.say(&format!("open: {rate} requests/s, {duration:?} after {warmup:?} of warm-up"));
    session.run(open).await?;

    let (requirement, model) = match measure_memory(&session, plan).await? {
        Some(points) => judge_memory(&points),
        None => (None, None),
    };
    let mut requirements = headline(session.runs());
    requirements.extend(requirement);
    Ok(session.finish(requirements, model)?)
}

/// Seeds the service through its own router, and waits until its model knows everything. False if it
/// was interrupted.
async fn seed_service(
    session: &Session,
    service: &Service,
    plan: &SeedPlan,
) -> Result<bool, ValidateError> {
    let seeder = Seeder::new(service);
    let mut counter = session.counted("seeding", plan.entities + plan.interactions);
    let seeding = async {
        let mut before = 0;
        let mut stage = None;
        let seeded = seeder
            .seed(plan, |progress| {
                // Stages count from zero; the bar counts on.
                if stage.replace(progress.stage).is_some_and(|stage| stage != progress.stage) {
                    before = plan.entities;
                }
                counter.set(before + progress.done);
            })
            .await?;
        counter.end();
        let fresh = seeder.wait_until_fresh(&seeded, FRESH_DEADLINE).await?;
        session.say(&format!(
            "seeded {} entities and {} interactions in {:.1?}; the model knows them (generation {})",
            seeded.entities, seeded.interactions, seeded.took, fresh.generation
        ));
        Ok(true)
    };
    tokio::select! {
        seeded = seeding => seeded,
        () = session.stop().stopped() => Ok(false),
    }
}

/// The requirements on the runs, each where it came out worst.
fn headline(runs: &[Run]) -> Vec<ThresholdResult> {
    let worst_of = |expression: &str| {
        runs.iter()
            .flat_map(|run| &run.thresholds)
            .filter(|result| result.expression == expression)
            .max_by(|a, b| {
                let room = |result: &ThresholdResult| result.margin.unwrap_or(f64::INFINITY);
                a.verdict.cmp(&b.verdict).then(room(b).total_cmp(&room(a)))
            })
            .cloned()
    };
    [LATENCY, THROUGHPUT].into_iter().filter_map(worst_of).collect()
}

/// Peak memory of fresh processes at several sizes; `None` if it was interrupted.
async fn measure_memory(
    session: &Session,
    plan: &SeedPlan,
) -> Result<Option<Vec<(u64, u64)>>, ValidateError> {
    let mut counter = session.counted("memory", SIZES.len() as u64 * PROCESSES);
    let mut points = Vec::new();
    for (numerator, denominator) in SIZES {
        for process in 0..PROCESSES {
            let size = plan.entities * numerator / denominator;
            tokio::select! {
                point = measure_one(size, plan.seed.wrapping_add(process)) => match point {
                    // Ctrl-C may have ended it before it was noticed here.
                    Err(_) if session.stop().is_stopped() => return Ok(None),
                    point => points.push(point?),
                },
                () = session.stop().stopped() => return Ok(None),
            }
            counter.set(points.len() as u64);
        }
    }
    counter.end();
    Ok(Some(points))
}

async fn measure_one(entities: u64, seed: u64) -> Result<(u64, u64), ValidateError> {
    let failed = |why: String| ValidateError::Memory(format!("{entities} entities: {why}"));
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["measure-memory", "--entities", &entities.to_string(), "--seed", &seed.to_string()])
        .kill_on_drop(true);
    // A terminal's Ctrl-C is for this process, which ends its children itself.
    #[cfg(unix)]
    command.process_group(0);
    let output = command.output().await?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let sample: MemorySample =
        serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
    Ok((sample.entities, sample.peak_rss_bytes))
}

fn judge_memory(points: &[(u64, u64)]) -> (Option<ThresholdResult>, Option<MemoryModel>) {
    match memory::fit(points, PROJECTED_ENTITIES) {
        Ok(model) => {
            let estimate = memory::judge(&model, MEMORY_LIMIT, Op::Less);
            let result = estimate.judged(MEMORY, "", Op::Less, MEMORY_LIMIT, Unit::Bytes);
            (Some(result), Some(model))
        }
        Err(why) => {
            let result = ThresholdResult {
                expression: MEMORY.to_owned(),
                run: String::new(),
                observed: None,
                low: None,
                high: None,
                limit: MEMORY_LIMIT,
                unit: Unit::Bytes,
                margin: None,
                samples: points.len() as u64,
                verdict: Verdict::Inconclusive,
                note: why,
            };
            (Some(result), None)
        }
    }
}
