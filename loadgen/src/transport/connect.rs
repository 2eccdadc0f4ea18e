//! Opening connections.

use std::{
    error::Error,
    fmt,
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use tokio::io::{DuplexStream, duplex};
use tower_service::Service;

#[cfg(feature = "tls")]
use super::tls::Tls;

/// Bytes on their way in each direction of a pipe, as many as a Unix socket of Linux takes by default or so.
const PIPE_BYTES: usize = 256 * 1024;

/// The way to a server.
#[derive(Clone)]
pub(super) enum Way {
    /// To whatever the URL names.
    Tcp(HttpConnector),
    /// The same, under TLS.
    #[cfg(feature = "tls")]
    Tls(HttpConnector, Tls),
    /// To the socket of this path.
    #[cfg_attr(not(unix), expect(dead_code, reason = "there are none"))]
    Unix(PathBuf),
    /// To a service of this process, which answers whatever end of a pipe it is handed.
    Pipe(Arc<dyn Fn(DuplexStream) + Send + Sync>),
}

impl Way {
    /// By TCP, in plain text.
    pub(super) fn tcp() -> Self {
        Self::Tcp(tcp())
    }

    #[cfg(feature = "tls")]
    pub(super) fn tls(tls: Tls) -> Self {
        Self::Tls(tcp(), tls)
    }
}

/// Without Nagle's delay: a request is sent when it is due.
fn tcp() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector
}

/// Opens connections one way, and counts them.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) way: Way,
    pub(super) opened: Arc<AtomicU64>,
}

type BoxError = Box<dyn Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { way, opened } = self.clone();
        Box::pin(async move {
            let stream = way.open(uri).await?;
            opened.fetch_add(1, Relaxed);
            Ok(stream)
        })
    }
}

impl Way {
    async fn open(self, uri: Uri) -> Result<Stream, BoxError> {
        match self {
            Self::Tcp(mut tcp) => Ok(Stream::new(tcp.call(uri).await?, false)),
            #[cfg(feature = "tls")]
            Self::Tls(mut tcp, tls) => {
                let (stream, h2) = tls.open(tcp.call(uri).await?.into_inner()).await?;
                Ok(Stream::new(TokioIo::new(stream), h2))
            }
            #[cfg(unix)]
            Self::Unix(path) => loop {
                match tokio::net::UnixStream::connect(&path).await {
                    // Unlike TCP, a Unix socket whose queue is full does not let its clients wait.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                    }
                    opened => return Ok(Stream::new(TokioIo::new(opened?), false)),
                }
            },
            #[cfg(not(unix))]
            Self::Unix(_) => Err(io::Error::from(io::ErrorKind::Unsupported).into()),
            Self::Pipe(answer) => {
                let (ours, theirs) = duplex(PIPE_BYTES);
                answer(theirs);
                Ok(Stream::new(TokioIo::new(ours), false))
            }
        }
    }
}

/// An open connection.
pub(super) struct Stream {
    io: Pin<Box<dyn Io>>,
    /// The server chose HTTP/2 when the connection was made.
    h2: bool,
}

trait Io: Read + Write + Send {}

impl<T: Read + Write + Send> Io for T {}

impl Stream {
    fn new(io: impl Io + 'static, h2: bool) -> Self {
        Self { io: Box::pin(io), h2 }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.h2 { connected.negotiated_h2() } else { connected }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write_vectored(cx, bytes)
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("h2", &self.h2).finish_non_exhaustive()
    }
}
