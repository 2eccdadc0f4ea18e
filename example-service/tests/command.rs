//! The command as its users meet it: a process, its output, its exit code.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::time::Instant;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_example-service"));
    // What the machine has set for the service is not meant for its tests.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("EXAMPLE_") || name == "DATABASE_URL" || name == "REDIS_URL" {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the command starts")
}

/// Runs a command that must be refused, and returns what it says.
fn refusal(arguments: &[&str]) -> String {
    let output = run(arguments);
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty(), "a refusal is no result");
    said
}

/// A small validation that has every part, with a report in `out`.
fn small<'a>(out: &'a str, duration: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["validate", "--quick", "--entities", "400", "--users", "20"];
    // Users without a pause use the limiter's quota up in a moment.
    arguments.extend(["--think-time", "0s", "--rate", "100", "--warmup", "100ms"]);
    arguments.extend(["--duration", duration, "--out", out]);
    arguments.extend(more);
    arguments
}

fn report(folder: &Path) -> Value {
    let text = fs::read(folder.join("report.json")).expect("a report was written");
    serde_json::from_slice(&text).expect("it is JSON")
}

#[test]
fn bad_input_is_refused_with_a_sentence_that_names_it() {
    for (arguments, named) in [
        (&["validate", "--unknown"][..], "--unknown"),
        (&["validate", "--rate", "0"], "above 0"),
        (&["validate", "--rate", "fast"], "fast"),
        (&["validate", "--entities", "-5"], "80 to 10000000"),
        (&["validate", "--users", "0"], "at least 1"),
        (&["validate", "--duration", "soon"], "500ms, 10s"),
        (&["validate", "--out", "/proc/nowhere"], "/proc/nowhere"),
        (&["validate", "--database-url", "mysql://host/name"], "sqlite://"),
        (&["serve"], "EXAMPLE_API_KEYS"),
    ] {
        let said = refusal(arguments);
        assert!(said.contains(named), "{arguments:?} says: {said}");
    }
}

#[test]
fn a_token_of_perf_that_could_be_guessed_is_refused_and_not_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    fs::write(&file, "too-short-to-be-safe\n").expect("there is room");
    let file = file.to_str().expect("text");
    for (variable, value, place) in [
        ("EXAMPLE_PERF_TOKEN", "too-short-to-be-safe", "EXAMPLE_PERF_TOKEN"),
        ("EXAMPLE_PERF_TOKEN_FILE", file, file),
        ("EXAMPLE_PERF_TOKEN_FILE", "/no/such/file", "/no/such/file"),
    ] {
        let mut serve = command(&["serve", "--addr", "127.0.0.1:0"]);
        let serve = serve.env("EXAMPLE_API_KEYS", "a-key-of-tests").env(variable, value);
        let output = serve.output().expect("the command starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("token of /perf") && said.contains(place), "{said}");
        assert!(!said.contains("too-short"), "{said}");
    }
}

#[test]
fn a_malformed_threshold_is_shown_with_a_caret_under_the_place() {
    let said = refusal(&["validate", "--threshold", "p95 <> 200ms"]);
    let lines: Vec<&str> = said.lines().collect();
    let shown = lines.iter().position(|line| line.trim() == "p95 <> 200ms").expect("it is shown");
    let column = lines[shown + 1].find('^').expect("a caret");
    assert!(lines[shown][column..].starts_with(['<', '>']), "{said}");
}

#[test]
fn a_database_that_nobody_answers_on_is_given_up_within_ten_seconds() {
    // Bound and never accepted: connections open, and nobody speaks.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("postgres://user:hunter2@{}/db", silent.local_addr().expect("bound"));
    let out = tempfile::tempdir().expect("a folder");
    let started = Instant::now();
    let output = command(&["validate", "--quick", "--out", out.path().to_str().expect("text")])
        .env("DATABASE_URL", url)
        .output()
        .expect("the command starts");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(started.elapsed() < Duration::from_secs(15), "it took {:?}", started.elapsed());
    assert!(said.contains("127.0.0.1"), "{said}");
    assert!(!said.contains("hunter2"), "the password is nobody's business: {said}");
}

#[test]
fn a_validation_accounts_for_every_request_and_writes_its_report() {
    let out = tempfile::tempdir().expect("a folder");
    let output = run(&small(out.path().to_str().expect("text"), "2s", &["--no-color"]));
    let text = String::from_utf8(output.stdout).expect("text");
    // Which verdict depends on the machine; that there is one does not.
    let verdict = output.status.code().expect("it was not killed");
    assert!([0, 97, 98, 99].contains(&verdict), "exit {verdict}: {text}");
    for part in ["Run closed", "Run open", "p95 < 200ms", "rate >= 1000/s", "rss < 2GiB", "lag"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    // The path of the report is as long as it is.
    let folder = out.path().to_str().expect("text");
    for line in text.lines().filter(|line| !line.contains(folder)) {
        assert!(line.chars().count() <= 80, "{line}");
    }

    let report = report(out.path());
    assert_eq!(report["interrupted"], false);
    assert_eq!(report["thresholds"].as_array().expect("a list").len(), 3);
    for run in report["runs"].as_array().expect("a list") {
        let counts = &run["conservation"];
        assert_eq!(counts["unexplained"], 0, "{counts}");
        assert_eq!(counts["sent"], counts["ok"], "no request failed: {counts}");
        assert_eq!(counts["sent"], counts["server"]["recorded"], "{counts}");
        assert_eq!(run["server"]["limiter"]["bypassed"], counts["sent"]);
    }
    assert_eq!(report["memory"]["points"].as_array().expect("a list").len(), 10);
    let page = fs::read_to_string(out.path().join("report.html")).expect("a page was written");
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("<svg"));
}

#[test]
fn load_that_meets_the_limiter_is_invalid_and_not_fast() {
    let out = tempfile::tempdir().expect("a folder");
    let output = run(&small(
        out.path().to_str().expect("text"),
        "2s",
        &["--no-bypass", "--json", "--rate-limit", "20"],
    ));
    assert_eq!(output.status.code(), Some(97));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(report["verdict"], "invalid");
    let closed = &report["runs"][0];
    assert!(closed["conservation"]["limited"].as_u64() > Some(0));
    let rules: Vec<&str> = closed["validity"]["reasons"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|reason| reason["rule"].as_str())
        .collect();
    assert!(rules.contains(&"masquerade"), "{rules:?}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_run_early_and_still_writes_the_report() {
    let out = tempfile::tempdir().expect("a folder");
    let folder = out.path().to_str().expect("text");
    let mut child = command(&small(folder, "10m", &[]))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    // The command says when the load begins.
    let said = std::io::BufReader::new(child.stderr.take().expect("piped"));
    let mut lines = std::io::BufRead::lines(said);
    let measuring = lines.by_ref().map_while(Result::ok).find(|line| line.contains("measuring"));
    assert!(measuring.is_some(), "it never began to measure");
    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupt.expect("kill is there").success());
    lines.map_while(Result::ok).for_each(drop);
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(130));
    let report = report(out.path());
    assert_eq!(report["interrupted"], true);
    let run = &report["runs"][0];
    assert_eq!(run["interrupted"], true);
    assert_eq!(run["conservation"]["unexplained"], 0);
    assert!(run["measured_s"].as_f64() < Some(600.0));
}
