//! `parallax token`: mints a token that lets load past a service's limiter.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::Args;
use http::Method;
use parallax_middleware::{BypassToken, KeyError, PeerRange, TokenError, TokenKeys};
use rand::{RngExt, distr::Alphanumeric};

use super::{
    print_whole, tell,
    value::{duration, method},
};

/// Holds keys, if no file does.
pub(super) const VARIABLE: &str = "PARALLAX_BYPASS_KEY";

/// Flags of `parallax token`.
#[derive(Clone, Debug, Args)]
pub struct TokenArgs {
    /// How long it is good for, like 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = lifetime)]
    expires: Duration,

    /// Only for this method, like GET [default: any]
    #[arg(long, value_name = "METHOD", value_parser = method)]
    method: Option<Method>,

    /// Only for this path and what lies below it
    #[arg(long, value_name = "PREFIX", default_value = "/")]
    path: String,

    /// Name of the run that it is for [default: one made up]
    #[arg(long, value_name = "NAME")]
    run: Option<String>,

    /// Only from this address or range, like 10.0.0.0/8 [default: anywhere]
    #[arg(long, value_name = "CIDR")]
    peer: Option<PeerRange>,

    /// Only so many requests, in each process of the service [default: any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    budget: Option<u32>,

    /// Only so many requests at a time, in each process of the service [default: any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,

    /// File with the service's keys, the one that signs first [default: the variable's]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,

    /// Taken in so that the answer to a key in an argument does not repeat it.
    #[arg(hide = true, trailing_var_arg = true)]
    stray: Vec<OsString>,
}

fn lifetime(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        short if short < Duration::from_secs(1) => Err("it has to be at least 1s".to_owned()),
        time => Ok(time),
    }
}

/// Mints a token and prints it, alone, to standard output. What it is good for goes to standard error.
#[must_use]
pub fn token(args: TokenArgs) -> ExitCode {
    match mint(args) {
        Ok((token, text)) => {
            tell(&format!("for run {}, until {}", token.run(), seconds(token.expires())));
            match print_whole(&format!("{text}\n")) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tell(&format!("error: cannot print the token: {error}"));
                    ExitCode::from(1)
                }
            }
        }
        Err(error) => {
            tell(&format!("error: {error}"));
            ExitCode::from(2)
        }
    }
}

fn mint(args: TokenArgs) -> Result<(BypassToken, String), MintError> {
    if !args.stray.is_empty() {
        return Err(MintError::Stray);
    }
    let keys = keys(args.key_file.as_deref())?;
    let run = args.run.unwrap_or_else(some_name);
    let mut token = BypassToken::lasting(args.expires, &run).path(&args.path);
    if let Some(method) = args.method {
        token = token.method(method);
    }
    if let Some(range) = args.peer {
        token = token.peer(range);
    }
    if let Some(requests) = args.budget {
        token = token.budget(requests);
    }
    if let Some(requests) = args.concurrency {
        token = token.concurrency(requests);
    }
    let text = token.mint(&keys)?;
    Ok((token, text))
}

pub(super) fn keys(file: Option<&Path>) -> Result<TokenKeys, MintError> {
    if let Some(path) = file {
        let named = || path.display().to_string();
        let read = |source| MintError::Unreadable { path: named(), source };
        let text = fs::read(path).map_err(read)?;
        warn_of_readers(path).map_err(read)?;
        let text = String::from_utf8(text).map_err(|_| MintError::NoText(named()))?;
        return TokenKeys::parse(&text).map_err(|source| MintError::Keys { of: named(), source });
    }
    let text = env::var_os(VARIABLE).ok_or(MintError::NoKeys)?;
    let text = text.into_string().map_err(|_| MintError::NoText(VARIABLE.to_owned()))?;
    TokenKeys::parse(&text).map_err(|source| MintError::Keys { of: VARIABLE.to_owned(), source })
}

/// Says so if the machine's other users can read the keys, or put theirs in.
#[cfg(unix)]
fn warn_of_readers(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = fs::metadata(path)?;
    let mode = metadata.permissions().mode() & 0o777;
    if metadata.is_file() && mode & 0o066 != 0 {
        let path = path.display();
        tell(&format!(
            "warning: others can read or change {path} (mode {mode:o}); run: chmod 600 {path}"
        ));
    }
    Ok(())
}

#[cfg(not(unix))]
fn warn_of_readers(_: &Path) -> io::Result<()> {
    Ok(())
}

pub(super) fn some_name() -> String {
    rand::rng().sample_iter(Alphanumeric).take(10).map(char::from).collect()
}

pub(super) fn seconds(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(super) enum MintError {
    #[error(
        "unexpected argument; a key is not taken from one, because other users of the machine can see it \
         there: put it into {VARIABLE} or a --key-file"
    )]
    Stray,
    #[error(
        "there is no key: set {VARIABLE} to ID:SECRET or name a --key-file with such a line; \
         `echo \"ci:$(openssl rand -hex 32)\"` makes one, and the service needs the same"
    )]
    NoKeys,
    #[error("{of}: {source}")]
    Keys { of: String, source: KeyError },
    #[error("{0}: this is not UTF-8")]
    NoText(String),
    #[error("{path}: {source}")]
    Unreadable { path: String, source: io::Error },
    #[error(transparent)]
    Token(#[from] TokenError),
}
