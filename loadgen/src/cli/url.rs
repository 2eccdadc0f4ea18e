//! `parallax run URL`: load on a server that runs already.

use std::{fmt, path::PathBuf, process::ExitCode, time::Duration};

use axum::body::Body;
use clap::{Args, ValueHint};
use http::{Method, Request};
use parallax_middleware::BypassToken;
use tokio::time::timeout;
use tower_service::Service;

use super::{
    LoadArgs, Session, env_is_set,
    load::{NoRun, REQUESTS},
    program::conclude,
    token::{keys, seconds, some_name},
};
use crate::{
    failures::describe,
    load_test::LoadTest,
    scenario::Scenario,
    transport::{Http, Transport, UrlError, Wire, WireBuilder},
};

/// What opening a connection may take before a run, at most.
const PATIENCE: Duration = Duration::from_secs(5);
/// A token is good for longer than its run, so that a slow start does not matter.
const SLACK: Duration = Duration::from_secs(60);
/// What a scenario's own steps before the load and after it may take: nobody knows, and this is plenty.
const FLOWS: Duration = Duration::from_secs(3_600);
const TLS: &str = "TLS and HTTP";

/// Flags of `parallax run`.
#[derive(Clone, Args)]
#[expect(clippy::doc_markdown, reason = "these are the words of --help")]
pub struct UrlArgs {
    /// What to ask for: http://…, https://…, or unix:/path/to.sock:/path
    #[arg(value_hint = ValueHint::Url)]
    url: String,

    #[command(flatten)]
    load: LoadArgs,

    /// Believe the CA certificates of this PEM file, and no others
    #[cfg(feature = "tls")]
    #[arg(
        long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "insecure",
        help_heading = TLS
    )]
    ca: Option<PathBuf>,

    /// Believe any certificate, whoever made it
    #[cfg(feature = "tls")]
    #[arg(long, help_heading = TLS)]
    insecure: bool,

    /// HTTP/2 and nothing else [default: https:// as the server likes, else HTTP/1.1]
    #[arg(long, help_heading = TLS)]
    http2: bool,

    /// File with a key of the service: each request carries a token that lets it past the limiter
    ///
    /// Without it, PARALLAX_BYPASS_KEY may hold the key. See parallax token.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = REQUESTS)]
    key_file: Option<PathBuf>,

    /// Taken in so that its refusal can say why.
    #[arg(long = "transport", hide = true, value_delimiter = ',')]
    transports: Vec<Transport>,
}

impl fmt::Debug for UrlArgs {
    /// The URL may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UrlArgs").field("load", &self.load).finish_non_exhaustive()
    }
}

/// Drives the server of a URL, writes and prints the report. The exit code says the verdict.
#[must_use]
pub fn run(args: UrlArgs) -> ExitCode {
    conclude(drive(args))
}

async fn drive(args: UrlArgs) -> Result<ExitCode, NoRun> {
    let load = &args.load;
    if let Some(transport) = args.transports.first() {
        return Err(NoRun::usage(format_args!(
            "--transport {transport} is for a service of this process, and a URL says itself how it is \
             reached: http:// by TCP, https:// by TLS, unix: by a Unix socket. Leave it out"
        )));
    }
    load.check()?;
    let (server, paths) = match &load.scenario {
        // The paths are the file's.
        Some(_) => (args.url.clone(), Vec::new()),
        None => {
            let (server, path) = divided(&args.url);
            (server, vec![path])
        }
    };
    let mut wire = args.tls(server_at(&server, &args.url)?)?;
    let scenario = load.scenario(&paths)?;
    if args.http2 {
        wire = wire.http(Http::Two);
    }
    let replayed = load.replayed()?;
    let probe = wire.clone().build()?;
    let mut settings = vec![("url".to_owned(), probe.name().to_owned())];
    let token =
        token(&args, load.at_most(&replayed).saturating_add(around(&scenario, load.run.timeout)))?;
    let mut test = LoadTest::wire(wire.build()?).name(load.model()).scenario(scenario);
    if let Some((token, about)) = token {
        test = test.token(&token);
        settings.push(("bypass token".to_owned(), about));
    }
    let test = load.applied(test, &replayed);
    let mut session = Session::start(probe.name(), load.run.clone(), settings)?;
    let stop = session.stop().clone();
    tokio::select! {
        reached = reach(probe, load.run.timeout.min(PATIENCE)) => reached?,
        () = stop.stopped() => {}
    }
    session.run(test).await?;
    Ok(session.finish(Vec::new(), None)?)
}

impl UrlArgs {
    #[cfg(feature = "tls")]
    fn tls(&self, wire: WireBuilder) -> Result<WireBuilder, NoRun> {
        let flag = if self.insecure { "--insecure" } else { "--ca" };
        let secure = self.url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
        match &self.ca {
            None if !self.insecure => Ok(wire),
            _ if !secure => Err(NoRun::usage(format_args!(
                "{flag} is for https://, and this URL is none of it"
            ))),
            Some(path) => Ok(wire.ca_file(path)),
            None => Ok(wire.insecure()),
        }
    }

    #[cfg(not(feature = "tls"))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "it is as with TLS")]
    fn tls(&self, wire: WireBuilder) -> Result<WireBuilder, NoRun> {
        Ok(wire)
    }
}

/// The server of `url`. An error is about the whole URL, which tells where a password may be in it.
fn server_at(server: &str, url: &str) -> Result<WireBuilder, UrlError> {
    Wire::url(server).map_err(|error| Wire::url(url).err().unwrap_or(error))
}

/// The server of a URL, and what is asked of it.
fn divided(url: &str) -> (String, String) {
    // What stands behind # is never sent.
    let url = url.split('#').next().unwrap_or_default();
    let (server, path) = match url.strip_prefix("unix:") {
        Some(rest) => {
            let socket = rest.find(':').unwrap_or(rest.len());
            (url.len() - rest.len() + socket, rest.get(socket + 1..).unwrap_or_default())
        }
        None => {
            let host = url.find("://").map(|at| at + 3);
            let end = host.and_then(|host| url[host..].find(['/', '?']).map(|at| host + at));
            let end = end.unwrap_or(url.len());
            (end, &url[end..])
        }
    };
    let slash = if path.starts_with('/') { "" } else { "/" };
    (url[..server].to_owned(), format!("{slash}{path}"))
}

/// What a run may take beside its load: each step is tried once, and there may be a setup, a teardown and the trial
/// of a flow.
fn around(scenario: &Scenario, timeout: Duration) -> Duration {
    let steps = u32::try_from(scenario.names().count()).unwrap_or(u32::MAX);
    let trial = (timeout + Duration::from_secs(1)).saturating_mul(steps);
    let aside = [scenario.setup_flow(), scenario.any_flow(), scenario.teardown_flow()];
    let flows = if aside.iter().any(Option::is_some) { FLOWS } else { Duration::ZERO };
    trial.saturating_add(flows + SLACK)
}

/// A token that is good for so long, and what the report says of it; `None` without a key.
fn token(args: &UrlArgs, lifetime: Duration) -> Result<Option<(String, String)>, NoRun> {
    if args.key_file.is_none() && !env_is_set(super::token::VARIABLE) {
        return Ok(None);
    }
    let keys = keys(args.key_file.as_deref()).map_err(NoRun::usage)?;
    let mut token = BypassToken::lasting(lifetime, &some_name());
    if args.load.scenario.is_none() {
        token = token.method(args.load.method());
    }
    let text = token.mint(&keys).map_err(NoRun::usage)?;
    let about = format!("run {}, until {}", token.run(), seconds(token.expires()));
    Ok(Some((text, about)))
}

/// Opens a connection, and asks the server what it can do, which changes nothing there. Whatever it answers, it is
/// there.
async fn reach(mut wire: Wire, patience: Duration) -> Result<(), NoRun> {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = Method::OPTIONS;
    let answer = timeout(patience, wire.call(request)).await;
    if wire.connections() > 0 {
        return Ok(());
    }
    Err(match answer {
        Ok(Err(error)) => NoRun::usage(format_args!(
            "{}; nothing was sent: check the server and the URL",
            describe(&error)
        )),
        _ => NoRun::usage(format_args!(
            "cannot connect to {} within {patience:?}; nothing was sent: check the server and the URL",
            wire.name()
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_server_and_what_is_asked_of_it() {
        for (url, server, path) in [
            ("http://127.0.0.1:3000", "http://127.0.0.1:3000", "/"),
            ("http://h/search?q=a/b#top", "http://h", "/search?q=a/b"),
            ("https://me:secret@h?q", "https://me:secret@h", "/?q"),
            ("unix:/run/app.sock", "unix:/run/app.sock", "/"),
            ("unix:/run/app.sock:/x?q", "unix:/run/app.sock", "/x?q"),
            ("localhost:3000", "localhost:3000", "/"),
        ] {
            assert_eq!(divided(url), (server.to_owned(), path.to_owned()), "{url}");
        }
    }

    #[test]
    fn a_token_outlasts_what_a_run_does_beside_its_load() {
        let request = |_: &mut _| Request::default();
        let steps = Scenario::new().step("a", 1, request).step("b", 1, request);
        let timeout = Duration::from_secs(10);
        assert_eq!(around(&steps, timeout), SLACK + Duration::from_secs(22));
        assert!(around(&steps.clone().setup(|_| async { Ok(()) }), timeout) > FLOWS);
        assert!(around(&steps.teardown(|_| async { Ok(()) }), timeout) > FLOWS);
    }

    #[test]
    fn no_error_shows_a_part_of_a_password() {
        for url in ["http://me:se/cret@h:1/", "http://me:se?cret@h", "http://me:se#cret@h"] {
            let (server, _) = divided(url);
            let error = server_at(&server, url).expect_err(url).to_string();
            assert!(error.starts_with("\"http://…\" is no URL"), "{error}");
        }
    }
}
