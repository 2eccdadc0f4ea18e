//! The command: `serve` the example service, `validate` it, or `seed` its database.

use std::{fmt::Display, io::IsTerminal, net::SocketAddr, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use example_service::{
    Config, ConfigArgs, MissingKey, Service, memory,
    seed::{SeedPlan, SeedStage, Seeder},
    validate::{ValidateArgs, validate},
};
use parallax_loadgen::cli::Counter;
use tokio::{net::TcpListener, time::Instant};
use tracing_subscriber::EnvFilter;

/// How long requests that are under way may take once the service was told to stop.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// How long `seed` waits for the model.
const FRESH_DEADLINE: Duration = Duration::from_secs(120);

/// A recommendation API that carries the Parallax layer
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Listen and answer until Ctrl-C or SIGTERM
    Serve {
        /// Address to listen on
        #[arg(
            long,
            env = "EXAMPLE_ADDR",
            value_name = "ADDRESS",
            default_value = "127.0.0.1:3000"
        )]
        addr: SocketAddr,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Load this service in process and judge its requirements
    ///
    /// By default 1,000 users who pause 100ms between requests, then 2,000 requests/s on
    /// schedule: for 60s each over 100,000 entities, with --quick for 10s over 10,000.
    ///
    /// Examples:
    ///   example-service validate --quick
    ///   example-service validate --users 500 --rate 3000 --duration 30s
    ///   example-service validate --quick --threshold 'errors < 0.1%' --out /tmp/report
    #[command(verbatim_doc_comment)]
    Validate(Box<ValidateArgs>),
    /// Fill the database with generated entities and interactions
    Seed {
        /// Entities, 1 or more
        #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
        entities: u64,
        /// Interactions [default: ten for each entity]
        #[arg(long, value_name = "COUNT")]
        interactions: Option<u64>,
        /// Users [default: as many as entities]
        #[arg(long, value_name = "COUNT")]
        users: Option<u64>,
        /// The same seed makes the same data
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Print the peak memory of a service with so many entities, as a line of JSON
    #[command(hide = true)]
    MeasureMemory {
        #[arg(long)]
        entities: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

/// What went wrong, and the exit code that says whose turn it is.
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// 2: the user can set it right.
    fn configuration(error: impl Display) -> Self {
        Self { code: 2, message: error.to_string() }
    }

    /// 1: nobody expected it.
    fn unexpected(error: impl Display) -> Self {
        Self { code: 1, message: error.to_string() }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Next to progress and verdicts the service's own news are noise.
    let news = if matches!(cli.command, Command::Validate(_)) { "warn" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(news));
    // To stderr: stdout is for results.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::from(1);
        }
    };
    let result = runtime.block_on(run(cli.command));
    // A look-up of a name that does not end must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match result {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

async fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Serve { addr, config } => serve(addr, &config).await?,
        Command::Validate(args) => {
            return validate(*args).await.map_err(|error| {
                let code = if error.is_usage() { 2 } else { 1 };
                Failure { code, message: error.to_string() }
            });
        }
        Command::Seed { entities, interactions, users, seed, config } => {
            let plan = SeedPlan::with_sizes(
                entities,
                interactions.unwrap_or_else(|| entities.saturating_mul(10)),
                users.unwrap_or(entities),
                seed,
            )
            .map_err(Failure::configuration)?;
            fill(&plan, &config).await?;
        }
        Command::MeasureMemory { entities, seed } => {
            let sample = memory::measure(entities, seed).await.map_err(Failure::unexpected)?;
            println!("{}", serde_json::to_string(&sample).map_err(Failure::unexpected)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(addr: SocketAddr, args: &ConfigArgs) -> Result<(), Failure> {
    let config = args.config(Some(addr), MissingKey::Refuse).map_err(Failure::configuration)?;
    // Before the database: a taken address is the cheaper mistake.
    let listener = TcpListener::bind(addr)
        .await
        .map_err(|error| Failure::configuration(format!("cannot listen on {addr}: {error}")))?;
    let addr = listener.local_addr().map_err(Failure::unexpected)?;
    let service = start(config).await?;
    tracing::info!("listening on http://{addr}");

    let (stopping, mut stopped) = tokio::sync::watch::channel(false);
    let perf = service.perf().clone();
    let server = axum::serve(listener, service.router().into_make_service())
        .with_graceful_shutdown(async move {
            stop_signal().await;
            tracing::info!("stopping");
            perf.end_streams();
            let _ = stopping.send(true);
        });
    let deadline = async {
        // Without a sender nobody will stop it any more: the server has ended.
        let _ = stopped.wait_for(|&stopping| stopping).await;
        tokio::time::sleep(DRAIN_DEADLINE).await;
    };
    let served = tokio::select! {
        served = server => served,
        () = deadline => {
            tracing::warn!("requests were still under way after {DRAIN_DEADLINE:?}; leaving them");
            Ok(())
        }
    };
    service.shutdown().await;
    served.map_err(Failure::unexpected)
}

async fn fill(plan: &SeedPlan, args: &ConfigArgs) -> Result<(), Failure> {
    let config = args.config(None, MissingKey::Invent).map_err(Failure::configuration)?;
    let service = start(config).await?;
    let seeder = Seeder::new(&service);
    let filled = tokio::select! {
        filled = fill_with(&seeder, plan) => filled,
        () = stop_signal() => Err(Failure { code: 130, message: "interrupted; what is stored stays".to_owned() }),
    };
    service.shutdown().await;
    filled
}

async fn fill_with(seeder: &Seeder, plan: &SeedPlan) -> Result<(), Failure> {
    let started = Instant::now();
    let mut counter: Option<(SeedStage, Counter)> = None;
    let seeded = seeder
        .seed(plan, |progress| {
            if counter.as_ref().is_none_or(|(stage, _)| *stage != progress.stage) {
                let name = progress.stage.to_string();
                counter = Some((progress.stage, Counter::new(&name, progress.total, false)));
            }
            if let Some((_, counter)) = &mut counter {
                counter.set(progress.done);
            }
        })
        .await
        .map_err(Failure::unexpected)?;
    let fresh =
        seeder.wait_until_fresh(&seeded, FRESH_DEADLINE).await.map_err(Failure::unexpected)?;
    println!(
        "{} entities and {} interactions in {:.1?}; the model knows {} entities and {} interactions",
        seeded.entities,
        seeded.interactions,
        started.elapsed(),
        fresh.entities,
        fresh.interactions
    );
    Ok(())
}

async fn start(config: Config) -> Result<Service, Failure> {
    for (name, value) in config.describe() {
        tracing::info!("{name}: {value}");
    }
    Service::start(config).await.map_err(Failure::configuration)
}

/// Ctrl-C, or SIGTERM where there is such a thing.
async fn stop_signal() {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            // It cannot be heard, which is no reason to stop.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = interrupt => {}
        () = terminate() => {}
    }
}

#[cfg(unix)]
async fn terminate() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            terminate.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn terminate() {
    std::future::pending().await
}
