//! TLS, as a client.

use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore,
        SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    },
};

use super::{Http, url::UrlError};

/// Whom a client believes.
#[derive(Clone, Debug, Default)]
pub(super) enum Trust {
    /// The certificates that the operating system trusts.
    #[default]
    System,
    /// Those of a file, and no others.
    File(PathBuf),
    /// Anybody.
    Anybody,
}

/// Opens TLS over connections to one server.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
    wanted: Option<Http>,
}

impl Tls {
    /// `http`: the version that is asked for; both if that is for the server to choose.
    pub(super) fn new(host: &str, http: Option<Http>, trust: &Trust) -> Result<Self, UrlError> {
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|_| UrlError::HostName(host.to_owned()))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| UrlError::Tls(error.to_string()))?;
        let builder = match trust {
            Trust::System => builder.with_root_certificates(system_roots()?),
            Trust::File(path) => builder.with_root_certificates(roots_of(path)?),
            Trust::Anybody => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(BelieveAnybody(provider))),
        };
        let mut config = builder.with_no_client_auth();
        let protocols: &[&[u8]] = match http {
            Some(Http::One) => &[b"http/1.1"],
            Some(Http::Two) => &[b"h2"],
            None => &[b"h2", b"http/1.1"],
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name, wanted: http })
    }

    /// The stream, and whether the server chose HTTP/2.
    pub(super) async fn open(
        &self,
        stream: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, bool), Box<dyn Error + Send + Sync>> {
        let stream = self.connector.connect(self.name.clone(), stream).await.map_err(|error| {
            let untrusted = error.get_ref().and_then(|error| error.downcast_ref());
            match untrusted {
                Some(rustls::Error::InvalidCertificate(reason)) => {
                    Box::new(Untrusted(reason.clone())) as Box<dyn Error + Send + Sync>
                }
                _ => Box::from(format!("TLS failed: {error}")),
            }
        })?;
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        if self.wanted == Some(Http::Two) && !h2 {
            return Err("the server does not speak HTTP/2 over TLS".into());
        }
        Ok((stream, h2))
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "the server's certificate is not believed: {0}; trust its CA with ca_file (--ca), or anybody with insecure \
     (--insecure)"
)]
struct Untrusted(CertificateError);

fn system_roots() -> Result<RootCertStore, UrlError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
        return Err(UrlError::Tls(format!(
            "the operating system trusts no certificate at all{why}: name a CA with ca_file (--ca)"
        )));
    }
    Ok(roots)
}

fn roots_of(path: &Path) -> Result<RootCertStore, UrlError> {
    let bad = |why: &dyn std::fmt::Display| {
        UrlError::Tls(format!(
            "{} holds no CA certificates ({why}): give a file in PEM",
            path.display()
        ))
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| bad(&error))? {
        let certificate = certificate.map_err(|error| bad(&error))?;
        roots.add(certificate).map_err(|error| bad(&error))?;
    }
    if roots.is_empty() {
        Err(bad(&"nothing in it begins with BEGIN CERTIFICATE"))
    } else {
        Ok(roots)
    }
}

/// Believes any certificate. That its holder has the key is checked all the same, as the protocol needs it.
#[derive(Debug)]
struct BelieveAnybody(Arc<CryptoProvider>);

impl ServerCertVerifier for BelieveAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
