//! The command, for a service to embed: flags, progress, Ctrl-C, the report's files, the exit code.

mod token;

use std::{
    fmt, fs, io,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use tokio::time::Instant;

use crate::{
    load_test::{LoadTest, LoadTestError},
    plan::{MAX_RATE, MAX_TIME, MIN_DURATION, PlanError},
    progress::{Progress, Stage},
    render::{self, number},
    report::{Environment, MemoryModel, Report, Run, ThresholdResult, Verdict},
    runner::unix_seconds,
    stop::Stop,
    target::InProcess,
    threshold::Threshold,
};

pub use self::token::{TokenArgs, token};

/// The flags that every run has.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Concurrent users, each of whom waits for an answer before asking again
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = count)]
    pub users: Option<usize>,

    /// Requests per second, on schedule whatever became of the earlier ones
    #[arg(long, value_name = "PER_SECOND", allow_negative_numbers = true, value_parser = rate)]
    pub rate: Option<f64>,

    /// Length of each measured interval, like 30s or 5m
    #[arg(long, value_name = "TIME", allow_negative_numbers = true, value_parser = measurable)]
    pub duration: Option<Duration>,

    /// Load before each measured interval, not part of any figure
    #[arg(long, value_name = "TIME", allow_negative_numbers = true, value_parser = duration)]
    pub warmup: Option<Duration>,

    /// Pause of a user between an answer and the next request
    #[arg(long, value_name = "TIME", allow_negative_numbers = true, value_parser = duration)]
    pub think_time: Option<Duration>,

    /// Give a request up after this long
    #[arg(
        long, value_name = "TIME", default_value = "10s", allow_negative_numbers = true,
        value_parser = positive
    )]
    pub timeout: Duration,

    /// With --rate: an arrival that finds so many requests in flight is dropped and counted
    #[arg(
        long, value_name = "N", default_value = "10000", allow_negative_numbers = true,
        value_parser = count
    )]
    pub max_in_flight: usize,

    /// A requirement, like 'p99 < 25ms' or 'errors < 0.1%' (repeatable)
    #[arg(long = "threshold", value_name = "EXPR", value_parser = Threshold::parse)]
    pub thresholds: Vec<Threshold>,

    /// Seed of every random choice: the same seed sends the same requests
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// Shorter, for a first look
    #[arg(long)]
    pub quick: bool,

    /// Folder for report.json and report.html
    #[arg(long, value_name = "DIR", default_value = "target/parallax")]
    pub out: PathBuf,

    /// Print the report as JSON instead of text
    #[arg(long)]
    pub json: bool,

    /// No progress
    #[arg(long)]
    pub quiet: bool,

    /// No colours, on a terminal either
    #[arg(long)]
    pub no_color: bool,
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse::<i128>() {
        Ok(n) if n < 1 => Err("it has to be at least 1".to_owned()),
        Ok(n) => usize::try_from(n).map_err(|_| "it is too large".to_owned()),
        Err(_) => Err("it has to be a whole number, like 100".to_owned()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.trim_end_matches("/s").parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= MAX_RATE => Ok(rate),
        Ok(_) => Err("it has to be above 0 and at most 10000000".to_owned()),
        Err(_) => Err("it has to be a number of requests per second, like 1000".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write it like 500ms, 10s, 5m or 1h"))?;
    if duration > MAX_TIME {
        return Err("it has to be a year at most".to_owned());
    }
    Ok(duration)
}

fn measurable(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        short if short < MIN_DURATION => Err("it has to be at least 100ms".to_owned()),
        duration => Ok(duration),
    }
}

fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it has to be above 0, like 10s".to_owned()),
        duration => Ok(duration),
    }
}

/// One use of the command: everything between its flags and its exit code.
#[derive(Debug)]
pub struct Session {
    title: String,
    started: SystemTime,
    args: RunArgs,
    settings: Vec<(String, String)>,
    stop: Stop,
    runs: Vec<Run>,
}

impl Session {
    /// Makes sure that the report can be written, and takes over Ctrl-C: the first ends the run early
    /// and drains it, the second ends the process.
    ///
    /// `settings` are the service's own, for the report; they must hold no secret.
    ///
    /// # Errors
    /// If `--out` cannot be written to.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(
        title: &str,
        args: RunArgs,
        settings: Vec<(String, String)>,
    ) -> Result<Self, PlanError> {
        probe_folder(&args.out)
            .map_err(|source| PlanError::Unwritable { path: args.out.clone(), source })?;
        let stop = Stop::new();
        tokio::spawn(stop_on_signals(stop.clone()));
        Ok(Self {
            title: title.to_owned(),
            started: SystemTime::now(),
            args,
            settings,
            stop,
            runs: Vec::new(),
        })
    }

    /// The flags.
    #[must_use]
    pub fn args(&self) -> &RunArgs {
        &self.args
    }

    /// Stopped by Ctrl-C.
    #[must_use]
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Says something on the way, on standard error; not with `--quiet`.
    pub fn say(&self, line: &str) {
        if !self.args.quiet {
            tell(line);
        }
    }

    /// Shows the progress of work that is counted.
    #[must_use]
    pub fn counted(&self, name: &str, total: u64) -> Counter {
        Counter::new(name, total, self.args.quiet)
    }

    /// Runs a load test under the flags that all runs share, and keeps what it found. Does nothing once
    /// the session is stopped.
    ///
    /// # Errors
    /// As [`LoadTest::run`].
    pub async fn run<S: InProcess>(&mut self, test: LoadTest<S>) -> Result<(), LoadTestError> {
        if self.stop.is_stopped() {
            return Ok(());
        }
        let mut test = test
            .timeout(self.args.timeout)
            .max_in_flight(self.args.max_in_flight)
            .seed(self.args.seed)
            .stop_on(&self.stop);
        for threshold in &self.args.thresholds {
            test = test.threshold(&threshold.expression);
        }
        let display = Arc::new(Mutex::new(Display::new(self.args.quiet)));
        test = test.on_progress({
            let display = display.clone();
            move |progress| {
                if let Ok(mut display) = display.lock() {
                    display.show(progress);
                }
            }
        });
        let run = test.run_part().await;
        if let Ok(mut display) = display.lock() {
            display.end();
        }
        self.runs.push(run?);
        Ok(())
    }

    /// What the runs so far found.
    #[must_use]
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Writes the report and prints it. The exit code says the verdict.
    ///
    /// # Errors
    /// If a file cannot be written after all.
    pub fn finish(
        self,
        requirements: Vec<ThresholdResult>,
        memory: Option<MemoryModel>,
    ) -> io::Result<ExitCode> {
        let interrupted = self.stop.is_stopped();
        let environment = Environment { settings: self.settings, ..Environment::here() };
        let started = unix_seconds(self.started);
        let mut report =
            Report::of(self.title, started, environment, self.runs, requirements, memory);
        report.interrupted |= interrupted;

        let json = self.args.out.join("report.json");
        let html = self.args.out.join("report.html");
        write_whole(&json, &render::json(&report))?;
        write_whole(&html, &render::html(&report))?;
        let text = if self.args.json {
            render::json(&report)
        } else {
            let color = !self.args.no_color && color_on(&io::stdout());
            let text = render::text(&report, render::Style { color });
            format!("{text}\nreport: {}\n        {}\n", json.display(), html.display())
        };
        print_whole(&text)?;
        Ok(exit_code(&report))
    }
}

/// The contract's exit code of a report.
#[must_use]
pub fn exit_code(report: &Report) -> ExitCode {
    if report.interrupted {
        return ExitCode::from(130);
    }
    ExitCode::from(match report.verdict {
        Verdict::Pass => 0,
        Verdict::Invalid => 97,
        Verdict::Inconclusive => 98,
        Verdict::Fail => 99,
    })
}

/// Colours are for a terminal whose user has not asked for none (<https://no-color.org>).
pub fn color_on(output: &impl IsTerminal) -> bool {
    output.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

async fn stop_on_signals(stop: Stop) {
    if signal().await.is_err() {
        return;
    }
    tell("\nstopping: the report is written once the last answers are in; again to quit now");
    stop.stop();
    if signal().await.is_ok() {
        std::process::exit(130);
    }
}

#[cfg(unix)]
async fn signal() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(not(unix))]
async fn signal() -> io::Result<()> {
    tokio::signal::ctrl_c().await
}

/// Prints to standard output. A reader that has seen enough (`| head`) is no error.
///
/// # Errors
/// If it cannot be written for another reason.
pub fn print_whole(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Finds out before an hour of load, not after, whether a report can be written.
fn probe_folder(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let probe = folder.join(format!(".probe-{}", std::process::id()));
    fs::write(&probe, b"")?;
    fs::remove_file(probe)
}

/// Replaces a file in one step, so that nobody reads half a report.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension(format!("tmp-{}", std::process::id()));
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// A line on standard error. Where nobody reads it, the run goes on all the same.
fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Progress of counted work: a bar on a terminal, a line a second elsewhere.
#[derive(Debug)]
pub struct Counter {
    bar: ProgressBar,
    plain: Option<PlainLines>,
    name: String,
    total: u64,
    started: Instant,
}

impl Counter {
    /// Begins to count `name` up to `total`, on standard error; shows nothing if `quiet`.
    #[must_use]
    pub fn new(name: &str, total: u64, quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            Some(total),
            if quiet || !terminal {
                ProgressDrawTarget::hidden()
            } else {
                ProgressDrawTarget::stderr()
            },
        );
        bar.set_style(style("{prefix:12} {wide_bar} {human_pos}/{human_len} {rate} {eta} left"));
        bar.set_prefix(name.to_owned());
        Self {
            bar,
            plain: (!quiet && !terminal).then(PlainLines::default),
            name: name.to_owned(),
            total,
            started: Instant::now(),
        }
    }

    /// `done` of the total are done.
    pub fn set(&mut self, done: u64) {
        self.bar.set_position(done);
        if let Some(plain) = &mut self.plain {
            let (name, total) = (&self.name, self.total);
            let rate = done as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
            // Nothing done tells nothing about the time left.
            let pace = if done == 0 {
                String::new()
            } else {
                let left = total.saturating_sub(done) as f64 / rate;
                format!(", {}, {left:.0} s left", number::per_second(rate))
            };
            plain.line(done >= total, || {
                format!("{name}: {} of {}{pace}", number::count(done), number::count(total))
            });
        }
    }

    /// The work is over.
    pub fn end(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The live display of a run.
#[derive(Debug)]
struct Display {
    bar: ProgressBar,
    plain: Option<PlainLines>,
    stage: Option<Stage>,
}

impl Display {
    fn new(quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            Some(1),
            if quiet || !terminal {
                ProgressDrawTarget::hidden()
            } else {
                ProgressDrawTarget::stderr()
            },
        );
        bar.set_style(style("{prefix:20} {wide_bar} {msg}"));
        Self { bar, plain: (!quiet && !terminal).then(PlainLines::default), stage: None }
    }

    fn show(&mut self, progress: &Progress) {
        let prefix = format!("{} {}", progress.run, progress.stage.name());
        let figures = figures(progress);
        let left = progress.planned.saturating_sub(progress.elapsed);
        self.bar.set_length(progress.planned.as_millis() as u64);
        self.bar.set_position(progress.elapsed.min(progress.planned).as_millis() as u64);
        self.bar.set_prefix(prefix.clone());
        self.bar.set_message(figures.clone());
        if let Some(plain) = &mut self.plain {
            let new_stage = self.stage != Some(progress.stage);
            plain.line(new_stage, || {
                format!("{prefix}: {figures}, {:.0} s left", left.as_secs_f64())
            });
        }
        self.stage = Some(progress.stage);
    }

    fn end(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn figures(progress: &Progress) -> String {
    let p99 = progress.p99.map_or_else(
        || "p99 …".to_owned(),
        |p99| format!("p99 {}", number::duration(p99.as_secs_f64() * 1e6)),
    );
    format!(
        "{}, {p99}, {} errors, {} in flight",
        number::per_second(progress.rate),
        number::count(progress.failed),
        number::count(progress.in_flight)
    )
}

fn style(template: &str) -> ProgressStyle {
    // A template that does not parse is a bug here, not a reason to refuse a run.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("rate", |state: &ProgressState, out: &mut dyn fmt::Write| {
            // Writing to a string cannot fail.
            let _ = out.write_str(&number::per_second(state.per_sec()));
        })
}

/// A line a second at most.
#[derive(Debug, Default)]
struct PlainLines {
    last: Option<Instant>,
}

impl PlainLines {
    fn line(&mut self, at_once: bool, text: impl FnOnce() -> String) {
        let due = self.last.is_none_or(|last| last.elapsed() >= Duration::from_secs(1));
        if due || at_once {
            self.last = Some(Instant::now());
            tell(&text());
        }
    }
}
