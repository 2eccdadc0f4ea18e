//! A private PostgreSQL.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::process::Signal;

use crate::support::server::{Launch, Server, User, find, persist};

/// A PostgreSQL server of one test's own, empty, on a free port of 127.0.0.1.
#[derive(Debug)]
pub(crate) struct Postgres {
    pub(crate) server: Server,
    port: u16,
}

impl Postgres {
    /// Starts it.
    ///
    /// # Panics
    /// If PostgreSQL is not installed, naming the package, or does not start, with its output.
    pub(crate) fn start() -> Self {
        persist(Self::start_on)
    }

    /// The address of its one database.
    pub(crate) fn url(&self) -> String {
        format!("postgres://parallax@127.0.0.1:{}/postgres", self.port)
    }

    fn start_on(port: u16) -> Result<Self, String> {
        let folder = tempfile::Builder::new()
            .prefix("parallax-postgres-")
            .tempdir()
            .expect("temporary folders can be made");
        let user = User::instead_of_root();
        if let Some(user) = user {
            user.own(folder.path()).expect("root may give folders away");
        }
        let data = folder.path().join("data");
        initialise(&data, user)?;
        let mut command = Command::new(binary("postgres"));
        command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-h", "127.0.0.1"]);
        // No socket file: its folder's path may be too long for one. Nothing outlives the test, so
        // nothing needs to reach the disk.
        command.args(["-k", "", "-c", "fsync=off", "-c", "synchronous_commit=off"]);
        command.args(["-c", "full_page_writes=off", "-c", "shared_buffers=32MB"]);
        command.args(["-c", "max_connections=200"]);
        let pid_file = data.join("postmaster.pid");
        let ready = || {
            // The eighth line is the state, padded.
            let state = fs::read_to_string(&pid_file).unwrap_or_default();
            state.lines().nth(7).is_some_and(|state| state.trim() == "ready")
        };
        // SIGQUIT is the immediate shutdown: unlike SIGKILL it takes the children along.
        let launch = Launch { command, folder, user, stop: Signal::QUIT, ready: &ready };
        Ok(Self { server: Server::start(launch)?, port })
    }
}

/// Writes the files of an empty server that trusts everybody who reaches it.
fn initialise(data: &Path, user: Option<User>) -> Result<(), String> {
    let mut command = Command::new(binary("initdb"));
    command.arg("-D").arg(data).args(["-U", "parallax", "-A", "trust", "-E", "UTF8"]);
    command.args(["--no-locale", "--no-sync", "--no-instructions"]);
    // Where the tests were started may be closed to the other user.
    command.current_dir("/").stdin(Stdio::null());
    if let Some(user) = user {
        user.run(&mut command);
    }
    let output = command.output().map_err(|error| format!("cannot run initdb: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("initdb: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// A program of the installed PostgreSQL, the newest version first.
fn binary(name: &str) -> PathBuf {
    let mut versions: Vec<(u32, String)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin").to_str()?.to_owned()))
        })
        .collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    let folders: Vec<&str> = versions.iter().map(|(_, folder)| folder.as_str()).collect();
    find(&folders, name).unwrap_or_else(|| {
        panic!(
            "{name} was not found: install PostgreSQL (Debian and Ubuntu: the package `postgresql`; \
             macOS: `brew install postgresql`), or run scripts/test, which does it where it can"
        )
    })
}
