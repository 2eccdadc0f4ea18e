//! The program that says what Prometheus thinks of an exposition, of rules and of their tests.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use crate::support::server::find;

/// Runs `promtool` in a folder, with a text as its input, and returns what it says.
///
/// # Panics
/// If it is not installed, naming the package; and with what it says, if it finds a fault.
pub(crate) fn promtool(arguments: &[&str], folder: &Path, input: &str) -> String {
    let program = find(&["/usr/bin", "/usr/local/bin"], "promtool").unwrap_or_else(|| {
        panic!(
            "promtool was not found: install Prometheus (Debian and Ubuntu: the package `prometheus`; macOS: \
             `brew install prometheus`), or run scripts/test, which does it where it can"
        )
    });
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it is a program");
    let mut stdin = child.stdin.take().expect("it is a pipe");
    // It reads everything before it says anything.
    stdin.write_all(input.as_bytes()).expect("it reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("it is our child");
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    let said = said.concat();
    assert!(output.status.success(), "promtool {arguments:?}: {}\n{said}", output.status);
    said
}
