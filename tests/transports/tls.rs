//! Servers over TLS, with a certificate of their own making.

use std::{io::Write, net::SocketAddr, process::ExitCode, sync::Arc};

use axum::{Router, http::Version, routing::get};
use clap::{Args, Command, FromArgMatches};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use parallax_loadgen::{
    Http, LoadTest, Report, UrlError, Wire, WireBuilder,
    cli::{self, UrlArgs},
};
use rcgen::{CertificateParams, DnType, KeyPair};
use tempfile::NamedTempFile;
use tokio::{
    net::TcpListener,
    task::{JoinHandle, spawn_blocking},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};

use super::{assert_conserved, assert_told, run};

/// Answers over TLS until it is dropped.
struct Server {
    address: SocketAddr,
    /// What a client must trust.
    certificate: NamedTempFile,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// A server for `localhost` that offers these protocols.
    async fn start(protocols: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let key = KeyPair::generate().expect("there is entropy");
        let mut params = CertificateParams::new(["localhost".to_owned()]).expect("it is a name");
        // Who vouches for a certificate is found by name first.
        params.distinguished_name.push(DnType::CommonName, format!("test {address}"));
        let made = params.self_signed(&key).expect("the key can sign");
        let mut certificate = NamedTempFile::new().expect("there is room");
        certificate.write_all(made.pem().as_bytes()).expect("there is room");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("it is a key");
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(vec![made.der().clone()], key)
            .expect("the key is the certificate's");
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let version = |request: axum::extract::Request| async move {
            if request.version() == Version::HTTP_2 { "2" } else { "one" }
        };
        let app = Router::new().route("/", get(version));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, app) = (acceptor.clone(), app.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = TowerToHyperService::new(app);
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, certificate, task }
    }

    fn url(&self) -> WireBuilder {
        let url = format!("https://localhost:{}", self.address.port());
        Wire::url(&url).expect("it is one")
    }

    fn trusted(&self) -> WireBuilder {
        self.url().ca_file(self.certificate.path())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_version_of_http_is_what_client_and_server_agree_upon() {
    let both = ["h2", "http/1.1"];
    for (offered, wanted, bytes) in [
        (&both[..], None, 1),
        (&both, Some(Http::One), 3),
        (&both, Some(Http::Two), 1),
        (&["http/1.1"], None, 3),
        (&[], None, 3),
    ] {
        let server = Server::start(offered).await;
        let wire = wanted.into_iter().fold(server.trusted(), WireBuilder::http);
        let run = run(LoadTest::wire(wire.build().expect("it is a CA")).get("/").users(4)).await;
        assert_conserved(&run.conservation);
        let ok = run.conservation.outcomes.ok;
        assert_eq!(ok, run.conservation.sent, "{offered:?} {wanted:?} {:?}", run.errors);
        assert_eq!(run.client.response_bytes, bytes * ok, "{offered:?} {wanted:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_nobody_vouches_for_is_refused_with_the_remedy() {
    let server = Server::start(&["http/1.1"]).await;
    let other = Server::start(&["http/1.1"]).await;
    let wire = server.url().ca_file(other.certificate.path()).build().expect("it is a CA");
    let run = run(LoadTest::wire(wire).get("/").rate(40)).await;
    assert_conserved(&run.conservation);
    assert_eq!(run.conservation.outcomes.transport_error, run.conservation.sent);
    assert_told(&run, "the server's certificate is not believed: UnknownIssuer");
    assert_told(&run, "ca_file");
    assert_eq!(run.connections, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_for_another_name_is_refused() {
    let server = Server::start(&["http/1.1"]).await;
    let wire = Wire::url(&format!("https://{}", server.address)).expect("it is one");
    let wire = wire.ca_file(server.certificate.path()).build().expect("it is a CA");
    let run = run(LoadTest::wire(wire).get("/").rate(40)).await;
    assert_eq!(run.conservation.outcomes.transport_error, run.conservation.sent);
    assert_told(&run, "certificate not valid for name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_care_may_believe_anybody() {
    let server = Server::start(&["h2"]).await;
    let wire = server.url().insecure().build().expect("there is nothing to read");
    let run = run(LoadTest::wire(wire).get("/").users(2)).await;
    assert_conserved(&run.conservation);
    assert_eq!(run.conservation.outcomes.ok, run.conservation.sent, "{:?}", run.errors);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_tls_or_without_http_2_is_told_as_such() {
    let plain = crate::support::listening::App::Router(Router::new()).listen().await;
    let wire = Wire::url(&format!("https://{}", plain.address())).expect("it is one").insecure();
    let wire = wire.build().expect("there is nothing to read");
    let outcome = run(LoadTest::wire(wire).get("/").rate(40)).await;
    assert_eq!(outcome.conservation.outcomes.transport_error, outcome.conservation.sent);
    assert_told(&outcome, "TLS failed: ");

    for offered in [&["http/1.1"][..], &[]] {
        let server = Server::start(offered).await;
        let wire = server.trusted().http(Http::Two).build().expect("it is a CA");
        let run = run(LoadTest::wire(wire).get("/").rate(40)).await;
        assert_eq!(run.conservation.outcomes.transport_error, run.conservation.sent);
        assert_told(&run, "cannot connect to https://localhost");
    }
}

#[test]
fn ca_certificates_that_cannot_be_read_are_named() {
    let mut empty = NamedTempFile::new().expect("there is room");
    empty.write_all(b"no certificate").expect("there is room");
    for path in [empty.path(), std::path::Path::new("/nowhere/ca.pem")] {
        let wire = Wire::url("https://localhost").expect("it is one").ca_file(path);
        let error = wire.build().expect_err("there is none");
        assert!(
            matches!(&error, UrlError::Tls(text) if text.contains(path.to_str().expect("UTF-8")))
        );
        assert!(error.to_string().contains("give a file in PEM"), "{error}");
    }
}

/// Runs `parallax run` with these flags, and returns its exit code and its report.
async fn command(server: &Server, flags: &[&str]) -> (ExitCode, Option<Report>) {
    let out = tempfile::tempdir().expect("a folder");
    let url = format!("https://localhost:{}/", server.address.port());
    let folder = out.path().to_str().expect("text");
    let always = ["run", &url, "--out", folder, "--warmup", "0s", "--requests", "20", "--quiet"];
    let matches =
        UrlArgs::augment_args(Command::new("run")).get_matches_from([&always[..], flags].concat());
    let args = UrlArgs::from_arg_matches(&matches).expect("the flags make sense");
    let code = spawn_blocking(|| cli::run(args)).await.expect("it does not panic");
    (code, Report::read(&out.path().join("report.json")).ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_believes_whom_its_flags_say_and_speaks_the_http_that_they_say() {
    let server = Server::start(&["h2", "http/1.1"]).await;
    let old = Server::start(&["http/1.1"]).await;
    let ca = |server: &Server| server.certificate.path().to_str().expect("text").to_owned();
    for (server, flags, bytes) in [
        (&server, &["--ca", &ca(&server)][..], 1),
        (&old, &["--ca", &ca(&old)], 3),
        (&old, &["--insecure"], 3),
        (&server, &["--insecure", "--http2"], 1),
    ] {
        let (code, report) = command(server, flags).await;
        let run = &report.expect("it is written").runs[0];
        assert_eq!(code, ExitCode::SUCCESS, "{flags:?} {:?}", run.errors);
        assert_eq!(run.conservation.outcomes.ok, 20, "{flags:?} {:?}", run.errors);
        assert_eq!(run.client.response_bytes, 20 * bytes, "{flags:?}");
    }
    for (server, flags) in [(&old, &["--ca", &ca(&server)][..]), (&old, &["--insecure", "--http2"])]
    {
        // Before anything is sent.
        let (code, report) = command(server, flags).await;
        assert_eq!((code, report.is_none()), (ExitCode::from(2), true), "{flags:?}");
    }
}
