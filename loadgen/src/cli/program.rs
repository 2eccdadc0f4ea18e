//! The command around a service of its own: a program, or a `[[bench]]`.

use std::{env, ffi::OsString, future::Future, path::Path, process::ExitCode, time::Duration};

use axum::Router;
use clap::{CommandFactory, FromArgMatches, Parser};
use tokio::runtime::Builder;

use super::{
    LoadArgs, Session,
    load::{GENERATOR, NoRun, REQUESTS},
    tell,
};
use crate::{load_test::LoadTest, scenario::Scenario, transport::Transport};

/// Between a slow machine and a test that only has to show that a program works.
const SHORT_LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Parser)]
#[command(max_term_width = 80)]
struct Program {
    /// What to ask for, like /search?q=tea, each as likely as the others [default: what the program says, or /]
    #[arg(value_name = "PATH", conflicts_with = "scenario")]
    paths: Vec<String>,

    #[command(flatten)]
    load: LoadArgs,

    /// How requests reach the service: direct, pipe, unix, tcp, and :h2 for HTTP/2, as in tcp:h2 [default: direct]
    ///
    /// Several, with commas between them, are run one after the other and laid side by side.
    #[arg(
        long = "transport", value_name = "WHICH", value_delimiter = ',', help_heading = GENERATOR
    )]
    transports: Vec<Transport>,

    /// Have the load pass by the service's limiter, if that lets load of its own process by
    #[arg(long, help_heading = REQUESTS)]
    pass_limiter: bool,

    /// What `cargo bench` gives every program.
    #[arg(long, hide = true)]
    bench: bool,
}

const EXAMPLES: &str = "\
Examples:
  load '/search?q=tea' --rate 2000
  load / --users 50 --think-time exp:100ms --transport direct,pipe,tcp
  load / --stages 10s:100,30s:1000 --threshold 'p99 < 25ms'

As a bench, with flags: cargo bench --bench load -- / --rate 2000
Exit: 0 pass, 1 unexpected error, 2 bad usage, 97 invalid, 98 inconclusive,
99 a threshold failed, 130 interrupted";

/// The whole command around a service: a program that loads it, in the process that it is.
///
/// `app` is called once, on a multi-threaded runtime, and what it returns is driven by the flags of the command line:
/// those of `parallax run`, with paths in the place of a URL. `title` is what the report is about.
///
/// ```no_run
/// // src/bin/load.rs: cargo run --release --bin load -- '/search?q=tea' --rate 2000
/// use std::process::ExitCode;
/// use axum::{Router, routing::get};
///
/// async fn app() -> Router {
///     Router::new().route("/search", get(|| async { "tea" }))
/// }
///
/// fn main() -> ExitCode {
///     parallax_loadgen::cli::main("my service", || async { app().await })
/// }
/// ```
///
/// The same file is a benchmark, in `benches/load.rs`, with this in `Cargo.toml`:
///
/// ```toml
/// [[bench]]
/// name = "load"
/// harness = false
/// ```
///
/// `cargo bench --bench load -- '/search?q=tea' --rate 2000` is then the same as above. `cargo test --benches` calls a
/// benchmark as well; it takes a very short look then, which only shows that the program works, judges nothing and
/// writes no report.
pub fn main<F>(title: &str, app: impl FnOnce() -> F) -> ExitCode
where
    F: Future<Output = Router>,
{
    start(title, None, app)
}

/// Like [`main()`], with what is asked for where the command line does not say it.
pub fn main_with<F>(title: &str, usual: Scenario, app: impl FnOnce() -> F) -> ExitCode
where
    F: Future<Output = Router>,
{
    start(title, Some(usual), app)
}

fn start<F>(title: &str, usual: Option<Scenario>, app: impl FnOnce() -> F) -> ExitCode
where
    F: Future<Output = Router>,
{
    let args: Vec<OsString> = env::args_os().collect();
    match asked(&args, env::current_exe().ok().as_deref()) {
        Asked::Tests => ExitCode::SUCCESS,
        Asked::ShortLook => {
            tell("a very short look, as cargo test wants it of a bench; cargo bench takes flags");
            conclude(look(usual, app))
        }
        Asked::Load => conclude(drive(
            title,
            usual,
            app,
            parsed(title, &args).unwrap_or_else(|error| error.exit()),
        )),
    }
}

/// What the caller of the program wants.
#[derive(Debug, Eq, PartialEq)]
enum Asked {
    Load,
    /// To see that it works.
    ShortLook,
    /// The names of its tests.
    Tests,
}

/// Cargo tells a bench nothing but `--bench` when it is to measure, and puts it where no other program is.
fn asked(args: &[OsString], program: Option<&Path>) -> Asked {
    let has = |flag: &str| args.iter().skip(1).any(|arg| arg == flag);
    let folder = program.and_then(Path::parent).and_then(Path::file_name);
    if has("--list") {
        Asked::Tests
    } else if has("--test") || (folder.is_some_and(|name| name == "deps") && !has("--bench")) {
        Asked::ShortLook
    } else {
        Asked::Load
    }
}

fn parsed(title: &str, args: &[OsString]) -> Result<Program, clap::Error> {
    let about = format!(
        "Load on {title}, in this process\n\nWithout flags 10 users ask for the paths, for 10 s after 1 s of \
         warm-up."
    );
    let command = Program::command().about(about).after_help(EXAMPLES);
    Program::from_arg_matches(&command.try_get_matches_from(args)?)
}

async fn drive<F>(
    title: &str,
    usual: Option<Scenario>,
    app: impl FnOnce() -> F,
    program: Program,
) -> Result<ExitCode, NoRun>
where
    F: Future<Output = Router>,
{
    let load = &program.load;
    load.check()?;
    let scenario = match usual {
        Some(usual) if program.paths.is_empty() && load.scenario.is_none() => {
            load.refuse_details()?;
            usual
        }
        _ if program.paths.is_empty() => load.scenario(&["/".to_owned()])?,
        _ => load.scenario(&program.paths)?,
    };
    let replayed = load.replayed()?;
    let mut session = Session::start(title, load.run.clone(), Vec::new())?;
    let app = app().await;
    let transports = match &program.transports[..] {
        [] => &[Transport::Direct],
        transports => transports,
    };
    let mut failed = None;
    for transport in transports {
        let name =
            if transports.len() > 1 { transport.to_string() } else { load.model().to_owned() };
        let test = LoadTest::new(app.clone())
            .name(&name)
            .transport(*transport)
            .pass_limiter(program.pass_limiter)
            .scenario(scenario.clone());
        match session.run(load.applied(test, &replayed)).await {
            Ok(()) => {}
            Err(error) if session.runs().is_empty() => return Err(error.into()),
            Err(error) => {
                failed = Some(format!("{transport}: {error}; the report has the runs before it"));
                break;
            }
        }
    }
    let concluded = session.finish(Vec::new(), None)?;
    match failed {
        Some(error) => Err(NoRun::Unexpected(error)),
        None => Ok(concluded),
    }
}

/// Sends requests for a moment, to see that they are answered.
async fn look<F>(usual: Option<Scenario>, app: impl FnOnce() -> F) -> Result<ExitCode, NoRun>
where
    F: Future<Output = Router>,
{
    let test = LoadTest::new(app().await).name("a short look");
    let test = match usual {
        Some(usual) => test.scenario(usual),
        None => test.get("/"),
    };
    let run = test.users(1).warmup(Duration::ZERO).duration(SHORT_LOOK).run_part().await?;
    let outcomes = run.client.outcomes;
    let broken = outcomes.server_error + outcomes.panicked + outcomes.timeout;
    if broken > 0 || outcomes.total() == 0 {
        return Err(NoRun::Unexpected(format!("the service does not work: {outcomes:?}")));
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the command to its end. What is still at work then nobody waits for.
pub(super) fn conclude(command: impl Future<Output = Result<ExitCode, NoRun>>) -> ExitCode {
    let concluded = match Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let concluded = runtime.block_on(command);
            runtime.shutdown_background();
            concluded
        }
        Err(error) => Err(error.into()),
    };
    let (text, code) = match concluded {
        Ok(code) => return code,
        Err(NoRun::Usage(text)) => (text, 2),
        Err(NoRun::Unexpected(text)) => (text, 1),
    };
    tell(&format!("error: {text}"));
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering::Relaxed},
        },
    };
    #[cfg(unix)]
    use std::{io::Write, os::fd::AsRawFd};

    use axum::{http::StatusCode, routing::get};
    use parallax_middleware::Perf;
    use serde_json::Value;

    use super::*;
    use crate::reply::FlowError;

    async fn app() -> Router {
        Router::new()
            .route("/", get(|| async { "tea" }))
            .route("/fail", get(|| async { StatusCode::INTERNAL_SERVER_ERROR }))
            .layer(Perf::new().layer())
    }

    /// Runs the program with these arguments, and returns its report, or why there is none.
    fn load(usual: Option<Scenario>, arguments: &[&str]) -> Result<Value, String> {
        let folder = tempfile::tempdir().expect("a folder");
        load_into(folder.path(), usual, arguments)?;
        Ok(report_in(folder.path()))
    }

    fn report_in(folder: &Path) -> Value {
        let text = fs::read(folder.join("report.json")).expect("it was written");
        serde_json::from_slice(&text).expect("it is JSON")
    }

    fn load_into(folder: &Path, usual: Option<Scenario>, arguments: &[&str]) -> Result<(), String> {
        let out = folder.to_str().expect("text");
        let always = ["load", "--out", out, "--quiet", "--warmup", "0s", "--duration", "300ms"];
        let args: Vec<OsString> =
            [&always[..], arguments].concat().iter().map(Into::into).collect();
        let program = parsed("a test", &args).map_err(|error| error.to_string())?;
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let driven =
            runtime.expect("threads are there").block_on(drive("a test", usual, app, program));
        match driven {
            Ok(_) => Ok(()),
            Err(NoRun::Usage(text) | NoRun::Unexpected(text)) => Err(text),
        }
    }

    #[test]
    fn a_service_is_called_unless_told_otherwise() {
        let report = load(None, &["/?q=tea", "--users", "1"]).expect("it runs");
        assert_eq!(report["title"], "a test");
        let run = &report["runs"][0];
        assert_eq!((&run["name"], &run["plan"]["transport"]), (&"closed".into(), &"direct".into()));
        assert_eq!(run["plan"]["mix"][0][0], "GET /");
        assert_eq!(run["conservation"]["server"]["recorded"], run["conservation"]["sent"]);
    }

    #[test]
    fn several_transports_are_runs_of_one_report() {
        let flags = ["--users", "2", "--transport", "direct,pipe", "--transport", "tcp"];
        let report = load(None, &flags).expect("it runs");
        let runs = report["runs"].as_array().expect("a list");
        let names: Vec<_> = runs.iter().filter_map(|run| run["name"].as_str()).collect();
        assert_eq!(names, ["direct", "pipe", "tcp"]);
        assert!(runs.iter().all(|run| run["conservation"]["unexplained"] == 0));
    }

    #[test]
    fn a_transport_that_fails_costs_no_run_before_it() {
        let began = Arc::new(AtomicBool::new(false));
        let setup = move |_| {
            let again = began.swap(true, Relaxed);
            async move { if again { Err(FlowError::new("only once")) } else { Ok(()) } }
        };
        let request = |_: &mut _| http::Request::default();
        let usual = Scenario::new().step("GET /", 1, request).setup(setup);
        let folder = tempfile::tempdir().expect("a folder");
        let flags = ["--users", "1", "--transport", "direct,pipe,tcp"];
        let error = load_into(folder.path(), Some(usual), &flags).expect_err("the setup fails");
        assert!(error.starts_with("pipe: ") && error.contains("only once"), "{error}");
        let report = report_in(folder.path());
        let names: Vec<_> =
            report["runs"].as_array().into_iter().flatten().map(|run| &run["name"]).collect();
        assert_eq!(names, ["direct"]);
    }

    #[cfg(unix)]
    #[test]
    fn start_times_may_come_from_a_pipe() {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        writer.write_all(b"0\n0.1\n").expect("the pipe has room");
        drop(writer);
        let path = format!("/dev/fd/{}", reader.as_raw_fd());
        let flags = ["/", "--replay", &path, "--transport", "direct,pipe"];
        let report = load(None, &flags).expect("it runs");
        let sent = |n: usize| &report["runs"][n]["conservation"]["sent"];
        assert_eq!((sent(0), sent(1)), (&2.into(), &2.into()));
    }

    #[test]
    fn the_program_says_what_is_asked_for_unless_paths_do() {
        let usual = || Some(Scenario::new().step("usual", 1, |_| http::Request::default()));
        let asked = |flags: &[&str]| {
            load(usual(), flags).map(|mut report| report["runs"][0]["plan"]["mix"][0][0].take())
        };
        assert_eq!(asked(&["--users", "1"]), Ok("usual".into()));
        assert_eq!(asked(&["--users", "1", "/"]), Ok("GET /".into()));
        let refused = asked(&["--header", "a: b"]).expect_err("there is no path");
        assert!(refused.contains("--header is for paths"), "{refused}");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (flags, words) in [
            (&["search"][..], "write it like /search?q=tea"),
            (&["--transport", "udp"], "direct, pipe, tcp or unix"),
            (&["/", "--scenario", "mix.toml"], "cannot be used with"),
            (&["--users", "1", "--rate", "1"], "cannot be used with"),
        ] {
            let refused = load(None, flags).expect_err("it makes no sense");
            assert!(refused.contains(words), "{flags:?}: {refused}");
        }
    }

    #[test]
    fn cargo_bench_measures_and_cargo_test_takes_a_short_look() {
        let bench = Path::new("/project/target/release/deps/load-0123456789abcdef");
        let program = Path::new("/project/target/release/load");
        let asked = |args: &[&str], path| {
            let args: Vec<OsString> = [&["load"], args].concat().iter().map(Into::into).collect();
            asked(&args, Some(path))
        };
        assert_eq!(asked(&["--rate", "5", "--bench"], bench), Asked::Load);
        assert_eq!(asked(&["--rate", "5"], program), Asked::Load);
        assert_eq!(asked(&[], bench), Asked::ShortLook);
        // Words that only the standard harness knows.
        assert_eq!(asked(&["a_test", "--nocapture"], bench), Asked::ShortLook);
        assert_eq!(asked(&["--test"], program), Asked::ShortLook);
        assert_eq!(asked(&["--list", "--format", "terse"], bench), Asked::Tests);
        let args = ["load", "--bench", "/"].map(OsString::from);
        assert!(parsed("a test", &args).is_ok(), "a bench's own flag means nothing");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_short_look_tells_a_service_that_works_from_one_that_does_not() {
        assert!(look(None, app).await.is_ok());
        let broken = Scenario::new()
            .step("GET /fail", 1, |_| http::Request::get("/fail").body("".into()).expect("a path"));
        let Err(NoRun::Unexpected(text)) = look(Some(broken), app).await else {
            panic!("it does not work")
        };
        assert!(text.contains("does not work"), "{text}");
    }
}
