//! Ctrl-C, once and twice.
#![cfg(unix)]

use std::{
    io::{BufRead, BufReader, Lines},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    command,
    run::{quickly, report},
    server::Server,
};

/// A command that runs for ten minutes, once it measures.
fn measuring(url: &str, folder: &Path, flags: &[&str]) -> (Child, Lines<BufReader<ChildStderr>>) {
    let flags = [flags, &["--duration", "10m"]].concat();
    let mut child = command(&quickly(url, folder, &flags))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let said = lines.by_ref().map_while(Result::ok).find(|line| {
        // With a request under way there is something to drain.
        line.contains("measuring") && !line.contains(" 0 in flight")
    });
    assert!(said.is_some(), "it never began to measure");
    (child, lines)
}

fn interrupt(child: &Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(status.expect("kill is there").success());
}

#[test]
fn once_drains_and_writes_the_report() {
    let (server, folder) = (Server::start(), tempfile::tempdir().expect("a folder"));
    // The progress is told as measuring begins, and again a second later.
    let url = server.at("/slow/1500");
    let (mut child, mut lines) = measuring(&url, folder.path(), &["--users", "3"]);
    interrupt(&child);
    let said = lines.by_ref().map_while(Result::ok).find(|line| line.contains("stopping"));
    assert!(said.is_some_and(|said| said.contains("again to quit now")));
    lines.map_while(Result::ok).for_each(drop);
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    let report = report(folder.path());
    assert_eq!(
        (&report["interrupted"], &report["runs"][0]["interrupted"]),
        (&true.into(), &true.into())
    );
    let counts = &report["runs"][0]["conservation"];
    // Every request that was under way has its answer.
    assert_eq!((&counts["in_flight"], &counts["unexplained"]), (&0.into(), &0.into()), "{counts}");
    assert_eq!(counts["ok"], counts["sent"], "{counts}");
    assert!(counts["ok"].as_u64() >= Some(3), "{counts}");
}

#[test]
fn twice_quits_at_once_and_without_a_report() {
    // The first request is the one that looks whether a layer answers.
    let server = Server::that_stalls(2, Duration::from_secs(600));
    let (folder, url) = (tempfile::tempdir().expect("a folder"), server.at("/"));
    let flags = ["--users", "3", "--timeout", "5m"];
    let (mut child, mut lines) = measuring(&url, folder.path(), &flags);
    interrupt(&child);
    assert!(lines.by_ref().map_while(Result::ok).any(|line| line.contains("stopping")));
    let second = Instant::now();
    interrupt(&child);
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(second.elapsed() < Duration::from_secs(30), "it waited for the answers");
    assert!(!folder.path().join("report.json").exists());
}
