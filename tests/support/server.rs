//! A server process that belongs to one test: started from an installed binary, in a folder of its
//! own, on a port of its own, and ended with the value that stands for it.

use std::{
    env, fs, io,
    net::{Ipv4Addr, TcpListener},
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::Instant;

/// How long a server may take to start, or to stop, before the test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server. Dropped, also by a panic, it stops the process and removes its folder.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    stop: Signal,
    // Removed after the process is gone: fields drop after `Drop::drop`.
    _folder: TempDir,
}

/// What it takes to start a server.
pub(crate) struct Launch<'a> {
    /// The command, complete but for its user and its output.
    pub(crate) command: Command,
    /// Where it keeps its files, and where its output goes.
    pub(crate) folder: TempDir,
    /// Who runs it; `None` runs it as the tests themselves.
    pub(crate) user: Option<User>,
    /// Ends it at once and without a trace.
    pub(crate) stop: Signal,
    /// Does it take requests yet?
    pub(crate) ready: &'a dyn Fn() -> bool,
}

impl Server {
    /// Starts the server and waits until it is ready.
    ///
    /// # Errors
    /// With its output, if it ends before that or takes too long.
    pub(crate) fn start(launch: Launch<'_>) -> Result<Self, String> {
        let Launch { command, folder, user, stop, ready } = launch;
        let program = command.get_program().to_owned();
        let output = folder.path().join("output.log");
        let log = fs::File::create(&output).expect("the folder is ours");
        let mut command = with_parent(&command, stop);
        if let Some(user) = user {
            command.uid(user.uid).gid(user.gid);
        }
        let child = command
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor is free"))
            .stderr(log)
            .spawn()
            .map_err(|error| format!("cannot run {}: {error}", program.display()))?;
        let mut server = Self { child, stop, _folder: folder };
        let deadline = Instant::now() + PATIENCE;
        while !ready() {
            let ended = server.child.try_wait().expect("it is our child");
            if ended.is_some() || Instant::now() > deadline {
                let state = ended.map_or("is not ready".to_owned(), |status| status.to_string());
                let said = fs::read_to_string(&output).unwrap_or_default();
                return Err(format!("{} {state}; it said:\n{said}", program.display()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        // Somebody else may have taken the port first and answer for the server that failed to.
        match server.child.try_wait().expect("it is our child") {
            None => Ok(server),
            Some(status) => Err(format!("{} ended: {status}", program.display())),
        }
    }

    /// The number of the process.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill_process(self.pid(), self.stop);
        let deadline = Instant::now() + PATIENCE;
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The same command, ended by the kernel if the tests are killed before they can end it themselves.
///
/// `setpriv` is part of Linux; where it is missing, only the drop ends the server. The kernel watches
/// the thread that starts the server: start it on the test's own thread.
fn with_parent(command: &Command, stop: Signal) -> Command {
    let Some(setpriv) = find(&["/usr/bin", "/bin"], "setpriv") else {
        let mut plain = Command::new(command.get_program());
        plain.args(command.get_args());
        return plain;
    };
    let mut wrapped = Command::new(setpriv);
    wrapped.arg("--pdeathsig").arg(if stop == Signal::QUIT { "QUIT" } else { "KILL" });
    wrapped.arg("--").arg(command.get_program()).args(command.get_args());
    wrapped
}

/// An account of this machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// An account without rights for servers that refuse to run as root; `None` if the tests are not
    /// run by root, and the server may run as they do.
    pub(crate) fn instead_of_root() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let accounts = fs::read_to_string("/etc/passwd").expect("root runs the tests on Unix");
        let account = |name: &str| {
            accounts.lines().map(|line| line.split(':').collect::<Vec<_>>()).find_map(|fields| {
                match fields[..] {
                    [found, _, uid, gid, ..] if found == name => {
                        Some(Self { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
                    }
                    _ => None,
                }
            })
        };
        Some(account("postgres").or_else(|| account("nobody")).expect("an account named nobody"))
    }

    /// Gives the account a folder.
    pub(crate) fn own(self, folder: &Path) -> io::Result<()> {
        chown(folder, Some(self.uid), Some(self.gid))
    }

    /// Runs a command as this account.
    pub(crate) fn run(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }
}

/// An installed program: from `PATH`, or from one of the folders where packages hide it.
pub(crate) fn find(folders: &[&str], program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(folders.iter().map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// A port that nobody listens on at this moment. Somebody may take it before the server does, so
/// starting a server is tried more than once.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

/// Starts a server, on another port if the first was taken meanwhile.
///
/// # Panics
/// With the server's output, if it does not start the third time either.
pub(crate) fn persist<T>(start: impl Fn(u16) -> Result<T, String>) -> T {
    let mut last = String::new();
    for _ in 0..3 {
        match start(free_port()) {
            Ok(server) => return server,
            Err(error) => last = error,
        }
    }
    panic!("{last}");
}
