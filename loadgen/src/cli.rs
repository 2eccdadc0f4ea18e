//! The command, for a service to embed: flags, progress, Ctrl-C, the report's files, the exit code.

mod load;
mod program;
mod progress;
mod token;
mod url;
mod value;

use std::{
    fs, io,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use clap::{Args, ValueHint};
use terminal_size::{Width, terminal_size_of};

use self::{
    load::{LOAD, REPORT, REQUESTS},
    progress::{Display, Screen},
    value::{count, duration, measurable, pause, positive, rate, threshold_file},
};
use crate::{
    load_test::{LoadTest, LoadTestError},
    pause::Pause,
    plan::PlanError,
    render::{self, Table},
    report::{Environment, MemoryModel, Report, Run, ThresholdResult, Verdict},
    runner::unix_seconds,
    stop::Stop,
    target::InProcess,
    threshold::Threshold,
};

pub use self::{
    load::LoadArgs,
    program::{main, main_with},
    progress::Counter,
    token::{TokenArgs, token},
    url::{UrlArgs, run},
};

/// The flags that every run has.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Concurrent users, each of whom waits for an answer before asking again
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = count, help_heading = LOAD)]
    pub users: Option<usize>,

    /// Requests per second, on schedule whatever became of the earlier ones
    #[arg(long, value_name = "PER_SECOND", allow_negative_numbers = true, value_parser = rate, help_heading = LOAD)]
    pub rate: Option<f64>,

    /// Length of each measured interval, like 30s or 5m
    #[arg(long, value_name = "TIME", allow_negative_numbers = true, value_parser = measurable, help_heading = LOAD)]
    pub duration: Option<Duration>,

    /// Load before each measured interval, not part of any figure
    #[arg(long, value_name = "TIME", allow_negative_numbers = true, value_parser = duration, help_heading = LOAD)]
    pub warmup: Option<Duration>,

    /// Pause of a user between an answer and the next request; exp:100ms draws it at random, 100ms on average
    #[arg(long, value_name = "TIME", allow_negative_numbers = true, value_parser = pause, help_heading = LOAD)]
    pub think_time: Option<Pause>,

    /// Give a request up after this long
    #[arg(long, value_name = "TIME", default_value = "10s", allow_negative_numbers = true,
        value_parser = positive, help_heading = REQUESTS)]
    pub timeout: Duration,

    /// With --rate: an arrival that finds so many requests in flight is dropped and counted [default: 10000]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = count, help_heading = LOAD)]
    pub max_in_flight: Option<usize>,

    /// A requirement, like 'p99 < 25ms' or 'errors < 0.1%' (repeatable)
    #[arg(long = "threshold", value_name = "EXPR", value_parser = Threshold::parse, help_heading = REPORT)]
    pub thresholds: Vec<Threshold>,

    /// File with the requirements of each route, like "GET /items/{id}" = ["p95 < 200ms"]
    // The long path keeps clap from taking it for a flag with many values.
    #[arg(long = "thresholds", value_name = "FILE", value_hint = ValueHint::FilePath,
        value_parser = threshold_file, help_heading = REPORT)]
    pub threshold_file: Option<std::vec::Vec<Threshold>>,

    /// Seed of every random choice: the same seed sends the same requests
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = LOAD)]
    pub seed: u64,

    /// Shorter, for a first look
    #[arg(long, help_heading = LOAD)]
    pub quick: bool,

    /// Folder for report.json, report.html, report.md, junit.xml and tables in CSV
    #[arg(long, value_name = "DIR", default_value = "target/parallax", help_heading = REPORT)]
    pub out: PathBuf,

    /// Print the report as JSON instead of text
    #[arg(long, help_heading = REPORT)]
    pub json: bool,

    /// No progress
    #[arg(long, help_heading = REPORT)]
    pub quiet: bool,

    /// No colours, on a terminal either
    #[arg(long, help_heading = REPORT)]
    pub no_color: bool,
}

/// One use of the command: everything between its flags and its exit code.
#[derive(Debug)]
pub struct Session {
    title: String,
    started: SystemTime,
    args: RunArgs,
    settings: Vec<(String, String)>,
    stop: Stop,
    screen: Screen,
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
        let screen = Screen::new(args.quiet);
        tokio::spawn(stop_on_signals(stop.clone(), screen.clone()));
        Ok(Self {
            title: title.to_owned(),
            started: SystemTime::now(),
            args,
            settings,
            stop,
            screen,
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
            self.screen.tell(line);
        }
    }

    /// Shows the progress of work that is counted.
    #[must_use]
    pub fn counted(&self, name: &str, total: u64) -> Counter {
        Counter::on(&self.screen, name, total)
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
        let mut test = test.timeout(self.args.timeout).seed(self.args.seed).stop_on(&self.stop);
        if let Some(bound) = self.args.max_in_flight {
            test = test.max_in_flight(bound);
        }
        test = test.thresholds(self.args.thresholds.iter().cloned());
        test = test.thresholds(self.args.threshold_file.iter().flatten().cloned());
        let display = Arc::new(Mutex::new(Display::new(&self.screen)));
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

        let out = &self.args.out;
        write_all(out, &report)?;
        let text = if self.args.json {
            render::json(&report)
        } else {
            let text = render::text(&report, style(self.args.no_color, None));
            let (json, html) = (out.join("report.json"), out.join("report.html"));
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

/// How text is printed to standard output: on a terminal as wide as that is, with colours unless its user has asked
/// for none, by a flag or for all programs (<https://no-color.org>).
#[must_use]
pub fn style(no_color: bool, width: Option<usize>) -> render::Style {
    let terminal = io::stdout().is_terminal();
    let columns = || terminal_size_of(io::stdout()).map(|(Width(columns), _)| usize::from(columns));
    render::Style {
        color: terminal && !no_color && !env_is_set("NO_COLOR"),
        width: width.or_else(columns).unwrap_or(render::Style::default().width),
    }
}

/// A variable that is empty is as good as none.
fn env_is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

async fn stop_on_signals(stop: Stop, screen: Screen) {
    if signal().await.is_err() {
        return;
    }
    screen
        .tell("\nstopping: the report is written once the last answers are in; again to quit now");
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

/// Writes every rendering of a report into a folder.
fn write_all(folder: &Path, report: &Report) -> io::Result<()> {
    for (name, text) in [
        ("report.json", render::json(report)),
        ("report.html", render::html(report)),
        ("report.md", render::markdown(report)),
        ("junit.xml", render::junit(report)),
    ] {
        write_whole(&folder.join(name), &text)?;
    }
    for table in Table::ALL {
        let file = folder.join(table.name()).with_extension("csv");
        write_whole(&file, &render::csv(report, table))?;
    }
    Ok(())
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
