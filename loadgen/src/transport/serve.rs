//! The service's end of the connections within this process.

use std::{error::Error, future::poll_fn, io, sync::Arc};

use axum::body::Body;
use http::Request;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    runtime::Handle,
    task::AbortHandle,
    time::{Duration, sleep},
};

use super::{Http, marks::Marks};
use crate::target::InProcess;

/// A service and what it takes to answer a connection.
#[derive(Clone)]
pub(super) struct Host<S> {
    pub(super) service: S,
    pub(super) marks: Arc<Marks>,
    pub(super) http: Http,
    /// Where connections are answered, whichever thread opens them.
    pub(super) runtime: Handle,
}

/// Something that listens. Dropped, it does not any more.
#[derive(Debug)]
pub(super) struct Listening {
    accepting: AbortHandle,
    /// That of the socket.
    _folder: Option<TempDir>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl<S: InProcess> Host<S> {
    /// Answers what comes over a connection until its client leaves.
    pub(super) fn answer<I>(&self, io: I)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let host = self.clone();
        let answer = service_fn(move |request| host.call(request));
        let io = TokioIo::new(io);
        // How a connection ended is for its client to say.
        match self.http {
            Http::One => {
                let connection = http1::Builder::new().serve_connection(io, answer);
                self.runtime.spawn(async { drop(connection.await) });
            }
            Http::Two => {
                let builder = http2::Builder::new(TokioExecutor::new());
                let connection = builder.serve_connection(io, answer);
                self.runtime.spawn(async { drop(connection.await) });
            }
        }
    }

    /// Gives a request its mark back, and calls the service.
    fn call(
        &self,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<http::Response<S::ResponseBody>, Box<dyn Error + Send + Sync>>>
    + Send
    + use<S> {
        if let Some(mark) = self.marks.take(request.headers_mut()) {
            request.extensions_mut().insert(mark);
        }
        let mut service = self.service.clone();
        async move {
            poll_fn(|cx| service.poll_ready(cx)).await.map_err(Into::into)?;
            service.call(request.map(Body::new)).await.map_err(Into::into)
        }
    }

    /// Listens on a free port of the loopback interface, which is written to `address`.
    pub(super) async fn listen_on_tcp(self) -> io::Result<(Listening, std::net::SocketAddr)> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let accepting = self.runtime.clone().spawn(async move {
            loop {
                match listener.accept().await {
                    // Without it answers are slow, and still right.
                    Ok((stream, _)) => {
                        let _ = stream.set_nodelay(true);
                        self.answer(stream);
                    }
                    Err(_) => sleep(REST).await,
                }
            }
        });
        let listening = Listening { accepting: accepting.abort_handle(), _folder: None };
        Ok((listening, address))
    }

    /// Listens on a Unix socket in a folder of its own, which no other user may enter.
    #[cfg(unix)]
    pub(super) fn listen_on_unix(self) -> io::Result<(Listening, std::path::PathBuf)> {
        use std::{fs::Permissions, os::unix::fs::PermissionsExt};

        let mut folder = tempfile::Builder::new();
        let folder =
            folder.prefix("parallax-").permissions(Permissions::from_mode(0o700)).tempdir()?;
        let path = folder.path().join("service.sock");
        let listener = tokio::net::UnixListener::bind(&path)?;
        let accepting = self.runtime.clone().spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => self.answer(stream),
                    Err(_) => sleep(REST).await,
                }
            }
        });
        Ok((Listening { accepting: accepting.abort_handle(), _folder: Some(folder) }, path))
    }
}

/// After a connection that could not be accepted, most often for want of descriptors.
const REST: Duration = Duration::from_millis(10);
