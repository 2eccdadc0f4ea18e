//! A service at the other end of a connection.

#[cfg(feature = "tls")]
use std::path::Path;
use std::{
    error::Error,
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use axum::body::Body;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, Uri,
    header::AUTHORIZATION,
    uri::{Authority, Parts, PathAndQuery, Scheme},
};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{self, Client, ResponseFuture},
    rt::TokioExecutor,
};
use parallax_middleware::LoadMark;
use tokio::runtime::Handle;
use tower_service::Service;

#[cfg(feature = "tls")]
use super::tls::{Tls, Trust};
use super::{
    Http, Medium,
    connect::{Connector, Way},
    marks::{Marks, Ticket},
    serve::{Host, Listening},
    url::{Target, UrlError},
};
use crate::target::InProcess;

/// A service at the other end of connections: what a [`LoadTest`](crate::LoadTest) of a URL drives.
///
/// Clones share their connections. Over HTTP/1.1 each request in flight has a connection for itself, which is
/// kept for the next one as long as the server keeps it; over HTTP/2 all share one. Connections are opened when
/// a request finds none, so opening them is part of its service time.
///
/// A request that may have reached the server is never sent again: if its connection ends before the answer
/// does, it has failed. One that was not begun to be sent, because the server closed an idle connection in the
/// same moment, takes another connection.
///
/// # Cancel safety
/// A request whose future or body is dropped is given up: over HTTP/1.1 its connection is closed, over HTTP/2
/// its stream is reset.
#[derive(Clone)]
pub struct Wire {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client<Connector, Body>,
    name: String,
    scheme: Scheme,
    authority: Authority,
    /// Goes before each path.
    prefix: String,
    /// Go with each request that has no such header of its own.
    headers: HeaderMap,
    opened: Arc<AtomicU64>,
    /// Of a service of this process.
    marks: Option<Arc<Marks>>,
    _listening: Option<Listening>,
}

impl Wire {
    /// The server of a URL: `http://127.0.0.1:3000`, `https://example.org/api`, or
    /// `unix:/run/app.sock:/api` for a Unix socket. What the URL has for a path goes before the paths of the
    /// requests; its name and password, if any, go along as basic authorization.
    ///
    /// Nothing is opened yet.
    ///
    /// # Errors
    /// If the URL is none of these.
    ///
    /// ```
    /// use parallax_loadgen::{Http, LoadTest, Wire};
    ///
    /// # fn main() -> Result<(), parallax_loadgen::UrlError> {
    /// let wire = Wire::url("http://127.0.0.1:3000/api")?.http(Http::Two).build()?;
    /// let test = LoadTest::wire(wire).get("/search?q=tea").rate(500);
    /// # drop(test);
    /// # Ok(())
    /// # }
    /// ```
    pub fn url(url: &str) -> Result<WireBuilder, UrlError> {
        let target = Target::parse(url)?;
        let mut headers = HeaderMap::new();
        headers.extend(target.authorization.clone().map(|value| (AUTHORIZATION, value)));
        Ok(WireBuilder {
            target,
            http: None,
            headers,
            #[cfg(feature = "tls")]
            trust: Trust::default(),
        })
    }

    /// Serves `service` in this process, and is the other end of the connections to it. It is served until the
    /// last clone is dropped, on the runtime of the caller.
    pub(crate) async fn serve<S: InProcess>(
        service: S,
        medium: Medium,
        http: Http,
    ) -> io::Result<Self> {
        let marks = Arc::new(Marks::default());
        let host = Host { service, marks: marks.clone(), http, runtime: Handle::current() };
        let mut authority = Authority::from_static("localhost");
        let (way, listening) = match medium {
            Medium::Pipe => (Way::Pipe(Arc::new(move |end| host.answer(end))), None),
            Medium::Tcp => {
                let (listening, address) = host.listen_on_tcp().await?;
                authority = address.to_string().parse().map_err(io::Error::other)?;
                (Way::tcp(), Some(listening))
            }
            #[cfg(unix)]
            Medium::Unix => {
                let (listening, path) = host.listen_on_unix()?;
                (Way::Unix(path), Some(listening))
            }
            #[cfg(not(unix))]
            Medium::Unix => return Err(io::ErrorKind::Unsupported.into()),
        };
        let opened = Arc::new(AtomicU64::new(0));
        Ok(Self {
            inner: Arc::new(Inner {
                client: client(Connector { way, opened: opened.clone() }, http == Http::Two),
                name: authority.to_string(),
                scheme: Scheme::HTTP,
                authority,
                prefix: String::new(),
                headers: HeaderMap::new(),
                opened,
                marks: Some(marks),
                _listening: listening,
            }),
        })
    }

    /// The URL, without a password.
    pub(crate) fn name(&self) -> &str {
        &self.inner.name
    }

    /// Connections opened so far, by all clones.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.inner.opened.load(Relaxed)
    }
}

/// Connections are kept as long as their server keeps them, however many and however long idle.
fn client(connector: Connector, h2: bool) -> Client<Connector, Body> {
    let mut builder = Client::builder(TokioExecutor::new());
    builder.pool_idle_timeout(None).pool_max_idle_per_host(usize::MAX).http2_only(h2);
    // What was handed back unsent takes another connection; nothing else is ever sent again.
    builder.retry_canceled_requests(true);
    builder.build(connector)
}

/// The settings of a [`Wire`] to a URL.
#[derive(Clone, Debug)]
#[must_use = "nothing is opened until it is built"]
pub struct WireBuilder {
    target: Target,
    http: Option<Http>,
    headers: HeaderMap,
    #[cfg(feature = "tls")]
    trust: Trust,
}

impl WireBuilder {
    /// The version of HTTP. Default: in plain text and over Unix sockets HTTP/1.1; over TLS what the server
    /// chooses, HTTP/2 if it may.
    pub fn http(mut self, http: Http) -> Self {
        self.http = Some(http);
        self
    }

    /// A header for each request that has none of this name.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Trusts the CA certificates of a PEM file, and no others. Default: those that the operating system trusts.
    #[cfg(feature = "tls")]
    pub fn ca_file(mut self, path: impl AsRef<Path>) -> Self {
        self.trust = Trust::File(path.as_ref().to_owned());
        self
    }

    /// Takes any certificate for the server's, whoever made it. For servers whose figures are no secret.
    #[cfg(feature = "tls")]
    pub fn insecure(mut self) -> Self {
        self.trust = Trust::Anybody;
        self
    }

    /// # Errors
    /// If the CA certificates of an `https://` URL cannot be read, its host is no name for a certificate, or
    /// this build has no TLS.
    pub fn build(self) -> Result<Wire, UrlError> {
        let way = match &self.target.socket {
            Some(path) => Way::Unix(path.clone()),
            #[cfg(feature = "tls")]
            None if self.target.is_tls() => {
                let host = self.target.authority.host();
                Way::tls(Tls::new(host, self.http, &self.trust)?)
            }
            #[cfg(not(feature = "tls"))]
            None if self.target.is_tls() => {
                let text = "this build has no TLS: build parallax-loadgen with its feature tls";
                return Err(UrlError::Tls(text.to_owned()));
            }
            None => Way::tcp(),
        };
        let opened = Arc::new(AtomicU64::new(0));
        let h2 = self.http == Some(Http::Two);
        Ok(Wire {
            inner: Arc::new(Inner {
                client: client(Connector { way, opened: opened.clone() }, h2),
                name: self.target.name,
                scheme: self.target.scheme,
                authority: self.target.authority,
                prefix: self.target.prefix,
                headers: self.headers,
                opened,
                marks: None,
                _listening: None,
            }),
        })
    }
}

impl Inner {
    /// What a request needs to go over a connection: where to, and the headers that the generator adds.
    fn prepare(&self, request: &mut Request<Body>) -> Result<Option<Ticket>, WireError> {
        let mark = request.extensions_mut().remove::<LoadMark>();
        request.extensions_mut().clear();
        let path = request.uri().path_and_query();
        let path = match path {
            Some(path) if self.prefix.is_empty() => path.clone(),
            path => {
                let path = path.map_or("/", PathAndQuery::as_str);
                PathAndQuery::try_from([&self.prefix, path].concat()).map_err(WireError::uri)?
            }
        };
        let mut parts = Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(path);
        *request.uri_mut() = Uri::from_parts(parts).map_err(WireError::uri)?;
        for (name, value) in &self.headers {
            if !request.headers().contains_key(name) {
                request.headers_mut().insert(name, value.clone());
            }
        }
        // A mark means nothing to a server elsewhere, and cannot reach it.
        let marks = self.marks.as_ref().zip(mark);
        Ok(marks.map(|(marks, mark)| marks.leave(mark, request.headers_mut())))
    }
}

impl Service<Request<Body>> for Wire {
    type Response = Response<Incoming>;
    type Error = WireError;
    type Future = WireFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> WireFuture {
        match self.inner.prepare(&mut request) {
            Ok(ticket) => {
                let response = self.inner.client.request(request);
                WireFuture { response: Ok(response), inner: self.inner.clone(), _ticket: ticket }
            }
            Err(error) => {
                WireFuture { response: Err(Some(error)), inner: self.inner.clone(), _ticket: None }
            }
        }
    }
}

/// A request that is answered over a connection.
#[must_use = "futures do nothing unless polled"]
pub struct WireFuture {
    response: Result<ResponseFuture, Option<WireError>>,
    inner: Arc<Inner>,
    /// By the head of the answer the mark has been found.
    _ticket: Option<Ticket>,
}

impl Future for WireFuture {
    type Output = Result<Response<Incoming>, WireError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        match &mut this.response {
            Ok(response) => Pin::new(response).poll(cx).map_err(|error| WireError {
                what: if error.is_connect() {
                    format!("cannot connect to {}", this.inner.name)
                } else {
                    format!("no answer from {}", this.inner.name)
                },
                cause: Cause::Client(error),
            }),
            Err(error) => {
                Poll::Ready(Err(error.take().expect("a future is polled once it is ready")))
            }
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("name", &self.inner.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for WireFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireFuture").field("name", &self.inner.name).finish_non_exhaustive()
    }
}

/// Why a request got no answer.
#[derive(Debug)]
pub struct WireError {
    what: String,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    Client(legacy::Error),
    Uri(http::Error),
}

impl WireError {
    fn uri(error: impl Into<http::Error>) -> Self {
        let what = "the request's path makes no URL".to_owned();
        Self { what, cause: Cause::Uri(error.into()) }
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for WireError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.cause {
            // The client's own text says nothing that `what` does not.
            Cause::Client(error) => error.source(),
            Cause::Uri(error) => Some(error),
        }
    }
}
