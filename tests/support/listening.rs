//! A service that listens on a port of its own, for HTTP/1.1 and HTTP/2.

use std::{
    future::{Future, pending},
    net::{Ipv4Addr, SocketAddr},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, connect_info::IntoMakeServiceWithConnectInfo},
    response::Response,
    serve::{Listener, ListenerExt},
};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tower::{ServiceExt, util::BoxCloneSyncService};

use crate::support::wire::Connection;

/// What is served.
#[derive(Clone)]
pub(crate) enum App {
    /// Served by `axum::serve`, as its users do it.
    Router(Router),
    /// A service that is no router, and that may fail; served by hyper.
    Service(BoxCloneSyncService<Request, Response, axum::Error>),
}

/// Something that is being served. Dropped, it takes no more connections.
pub(crate) struct Listening {
    address: SocketAddr,
    task: JoinHandle<()>,
    /// Set once, to say that the server should stop.
    goodbye: watch::Sender<bool>,
    /// Closed when it has.
    gone: watch::Receiver<()>,
}

impl App {
    /// Serves on a port of its own, until the returned value is dropped.
    pub(crate) async fn listen(self) -> Listening {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let listener = listener.tap_io(|stream| {
            stream.set_nodelay(true).expect("it is connected");
        });
        let (goodbye, said) = watch::channel(false);
        let (running, gone) = watch::channel(());
        let task = tokio::spawn(async move {
            let _running = running;
            match self {
                Self::Router(router) => axum::serve(listener, with_peer(router))
                    .with_graceful_shutdown(goodbye_of(said))
                    .await
                    .expect("accepting does not fail"),
                Self::Service(service) => serve(listener, service).await,
            }
        });
        Listening { address, task, goodbye, gone }
    }
}

/// Every request says whose socket it came from.
fn with_peer(router: Router) -> IntoMakeServiceWithConnectInfo<Router, SocketAddr> {
    router.into_make_service_with_connect_info()
}

/// A server that is merely dropped says no goodbye.
async fn goodbye_of(mut said: watch::Receiver<bool>) {
    if said.wait_for(|said| *said).await.is_err() {
        pending::<()>().await;
    }
}

async fn serve(
    mut listener: impl Listener<Io: Unpin>,
    service: BoxCloneSyncService<Request, Response, axum::Error>,
) {
    loop {
        let (stream, _) = listener.accept().await;
        let service =
            service.clone().map_request(|request: hyper::Request<Incoming>| request.map(Body::new));
        tokio::spawn(async move {
            let connection = auto::Builder::new(TokioExecutor::new());
            let service = TowerToHyperService::new(service);
            // Services that fail break their connections: that is what the tests of them are about.
            let _ = connection.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

impl Listening {
    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> Connection {
        Connection::open(self.address).await
    }

    /// Asks the server to stop when it has answered what it has begun, and returns what waits for that.
    pub(crate) fn shut_down(&self) -> impl Future<Output = ()> + use<> {
        self.goodbye.send_replace(true);
        let mut gone = self.gone.clone();
        async move {
            // An error is what is waited for: the sender is dropped with the server.
            let _ = gone.changed().await;
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // A server that was asked to stop does so by itself, when its connections have ended.
        if !*self.goodbye.borrow() {
            self.task.abort();
        }
    }
}
