//! A private Redis.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    process::Command,
    time::Duration,
};

use rustix::process::Signal;

use crate::support::server::{Launch, Server, User, find, persist};

/// A Redis server of one test's own, empty, on a free port of 127.0.0.1.
#[derive(Debug)]
pub(crate) struct Redis {
    pub(crate) server: Server,
    port: u16,
}

impl Redis {
    /// Starts it.
    ///
    /// # Panics
    /// If Redis is not installed, naming the package, or does not start, with its output.
    pub(crate) fn start() -> Self {
        persist(Self::start_on)
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The answer to a command without arguments that answers with one line or one bulk string.
    pub(crate) fn ask(&self, command: &str) -> Option<String> {
        ask(self.port, command)
    }

    fn start_on(port: u16) -> Result<Self, String> {
        let program = find(&["/usr/bin", "/usr/local/bin"], "redis-server").unwrap_or_else(|| {
            panic!(
                "redis-server was not found: install Redis (Debian and Ubuntu: the package \
                 `redis-server`; macOS: `brew install redis`), or run scripts/test, which does it \
                 where it can"
            )
        });
        let folder = tempfile::Builder::new()
            .prefix("parallax-redis-")
            .tempdir()
            .expect("temporary folders can be made");
        let user = User::instead_of_root();
        if let Some(user) = user {
            user.own(folder.path()).expect("root may give folders away");
        }
        let mut command = Command::new(program);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        // Nothing outlives the test, so nothing is written.
        command.args(["--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(folder.path());
        let ready = || ask(port, "PING").is_some_and(|answer| answer.starts_with("+PONG"));
        let launch = Launch { command, folder, user, stop: Signal::KILL, ready: &ready };
        Ok(Self { server: Server::start(launch)?, port })
    }
}

fn ask(port: u16, command: &str) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
