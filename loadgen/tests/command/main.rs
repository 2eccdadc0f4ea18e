//! The command as its users meet it: a process, its output, its exit code.

mod omission;
mod run;
mod server;
mod stopping;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, SystemTime},
};

use parallax_middleware::{BypassToken, TokenKeys};

const KEY: &str = "ci:s3cr3t-0123456789abcdef-0123456789";

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parallax"));
    command.env_remove("PARALLAX_BYPASS_KEY").args(arguments).stdin(Stdio::null());
    command
}

fn output(command: &mut Command) -> Output {
    command.output().expect("the command starts")
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// Mints with the key in the environment, and reads the token back.
fn minted(flags: &[&str]) -> BypassToken {
    let arguments = [&["token"], flags].concat();
    let output = output(command(&arguments).env("PARALLAX_BYPASS_KEY", KEY));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    read(&output)
}

/// The token is all there is on standard output, and what else is said holds nothing of it or its key.
fn read(output: &Output) -> BypassToken {
    let text = String::from_utf8(output.stdout.clone()).expect("text");
    let token = text.strip_suffix('\n').expect("one line");
    let said = said(output);
    assert!(!said.contains("s3cr3t") && !said.contains(token), "{said}");
    let keys = TokenKeys::parse(KEY).expect("a key");
    keys.authenticate(token.as_bytes()).expect("the key has signed it")
}

fn key_file(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("bypass.keys");
    fs::write(&path, text).expect("the folder is there");
    path
}

#[test]
fn a_token_says_what_the_flags_say() {
    let flags = ["--expires", "1h", "--method", "GET", "--path", "/items", "--run", "nightly-42"];
    let limits = ["--peer", "10.0.0.0/8", "--budget", "5000", "--concurrency", "16"];
    let before = SystemTime::now();
    let token = minted(&[&flags[..], &limits].concat());
    let hour = Duration::from_secs(3600);
    assert!(token.expires() >= before + hour);
    assert!(token.expires() <= SystemTime::now() + hour + Duration::from_secs(1));
    let expected = BypassToken::until(token.expires(), "nightly-42")
        .method(http::Method::GET)
        .path("/items")
        .peer("10.0.0.0/8".parse().expect("a range"))
        .budget(5000)
        .concurrency(16);
    assert_eq!(token, expected);
}

#[test]
fn without_flags_it_is_for_any_request_in_the_next_ten_minutes_of_a_run_of_its_own() {
    let token = minted(&[]);
    assert_eq!(token, BypassToken::until(token.expires(), token.run()));
    assert!(token.expires() <= SystemTime::now() + Duration::from_secs(601));
    assert_ne!(token.run(), minted(&[]).run());
}

#[test]
fn keys_come_from_a_file_and_the_first_one_signs() {
    let folder = tempfile::tempdir().expect("a folder");
    let old = "old:0123456789abcdef0123456789abcdef";
    let path = key_file(folder.path(), &format!("# since May\n{KEY}\n{old}\n"));
    let file = path.to_str().expect("text");
    // The file is meant, whatever the environment has.
    let mut command = command(&["token", "--key-file", file]);
    read(&output(command.env("PARALLAX_BYPASS_KEY", old)));
}

#[cfg(unix)]
#[test]
fn a_key_file_that_others_can_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let path = key_file(folder.path(), KEY);
    for (mode, warned) in
        [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o620, true)]
    {
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("it is ours");
        let output = output(&mut command(&["token", "--key-file", path.to_str().expect("text")]));
        assert_eq!(output.status.code(), Some(0));
        read(&output);
        let said = said(&output);
        assert_eq!(said.contains("chmod 600"), warned, "{mode:o}: {said}");
    }
}

#[test]
fn bad_input_is_refused_with_a_sentence_that_names_it_and_no_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let short = key_file(folder.path(), "ci:s3cr3t");
    let short = short.to_str().expect("text");
    for (flags, named) in [
        (&["--expires", "soon"][..], "500ms, 10s"),
        (&["--expires", "0s"], "at least 1s"),
        (&["--expires", "2y"], "a year at most"),
        (&["--method", "get"], "in capitals"),
        (&["--method", "G E T"], "like GET"),
        (&["--path", "items"], "\"items\""),
        (&["--path", "/items/"], "without one at the end"),
        (&["--run", "a run"], "letters, digits"),
        (&["--peer", "10.0.0.1/8"], "10.0.0.0/8"),
        (&["--budget", "0"], "--budget"),
        (&["--concurrency", "-1"], "-1"),
        (&["--key-file", "/nowhere/keys"], "/nowhere/keys"),
        (&["--key-file", short], "has 6 bytes and needs 32"),
        (&["--key", KEY], "--key"),
        (&[KEY], "not taken from one"),
        (&["--expires", "10m", KEY], "PARALLAX_BYPASS_KEY"),
    ] {
        let arguments = [&["token"], flags].concat();
        let output = output(command(&arguments).env("PARALLAX_BYPASS_KEY", KEY));
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
        assert!(output.stdout.is_empty(), "a refusal is no result");
        assert!(said.contains(named), "{flags:?} says: {said}");
        assert!(!said.contains("s3cr3t"), "{flags:?} says: {said}");
    }
}

#[test]
fn what_is_no_key_in_the_environment_is_refused_and_none_of_it_is_told() {
    for (value, named) in [
        (None, "openssl rand -hex 32"),
        (Some(""), "ID:SECRET"),
        (Some("s3cr3t-0123456789abcdef-0123456789"), "ID:SECRET"),
        (Some("ci:s3cr3t"), "PARALLAX_BYPASS_KEY: line 1: the secret has 6 bytes"),
        (Some("true"), "ID:SECRET"),
    ] {
        let mut command = command(&["token"]);
        if let Some(value) = value {
            command.env("PARALLAX_BYPASS_KEY", value);
        }
        let output = output(&mut command);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{value:?}: {said}");
        assert!(output.stdout.is_empty() && said.contains(named), "{value:?} says: {said}");
        assert!(!said.contains("s3cr3t"), "{said}");
    }
}

#[test]
fn the_help_has_examples_and_tells_no_value_of_the_environment() {
    let output = output(command(&["token", "--help"]).env("PARALLAX_BYPASS_KEY", KEY));
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(0));
    for part in ["Examples:", "--key-file", "--expires", "PARALLAX_BYPASS_KEY", "x-parallax-bypass"]
    {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    assert!(!text.contains("s3cr3t"));
}

#[test]
fn a_report_that_cannot_be_read_is_refused_by_name() {
    let output = output(&mut command(&["render", "/nowhere/report.json"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("/nowhere/report.json"));
}

#[test]
fn flags_of_another_format_are_refused() {
    for (flags, format) in [(["--table", "timeline"], "csv"), (["--width", "100"], "text")] {
        let other = ["render", "report.json", "--format", "html"];
        let output = output(&mut command(&[&other[..], &flags].concat()));
        assert_eq!(output.status.code(), Some(2));
        assert!(
            said(&output).contains(&format!("{} is for --format {format}", flags[0])),
            "{}",
            said(&output)
        );
    }
}

#[test]
fn every_shell_gets_a_script_that_knows_the_flags() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = output(&mut command(&["completions", shell]));
        assert_eq!(output.status.code(), Some(0), "{shell}: {}", said(&output));
        let script = String::from_utf8(output.stdout).expect("text");
        assert!(script.contains("think-time") && script.contains("completions"), "{shell}");
    }
    let output = output(&mut command(&["completions", "cmd.exe"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("zsh"), "{}", said(&output));
}

#[test]
fn each_help_fits_into_80_columns_and_has_examples() {
    for subcommand in ["run", "render", "token", "completions"] {
        let output = output(&mut command(&[subcommand, "--help"]));
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(text.contains("Examples:"), "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{subcommand}: {line}");
        }
    }
}
