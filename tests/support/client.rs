//! Clients of a rig: one for each of the ways in which a request reaches the layer.

use std::{
    any::Any,
    fmt,
    future::Future,
    mem,
    ops::Deref,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    thread,
};

use axum::{body::Body, extract::Request, response::Response};
use futures_util::FutureExt;
use http::{HeaderValue, Uri, header::HOST, uri::PathAndQuery};
use http_body_util::BodyExt;
use hyper::{
    client::conn::{http1, http2},
    rt::Executor,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync, task::JoinSet};

use crate::support::{
    listening::Listening,
    rig::{Answer, Rig, request},
    wire::Ended,
};

/// How requests reach the layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Transport {
    /// By a call.
    InProcess,
    /// Over a connection that speaks HTTP/1.1.
    Http1,
    /// Over a connection that speaks HTTP/2 from its first byte.
    Http2,
}

/// The transport that a test is at. If the test fails over it, this says so.
#[derive(Debug)]
pub(crate) struct Over(Transport);

impl Transport {
    /// All of them, one after the other.
    pub(crate) fn each() -> impl Iterator<Item = Over> {
        [Self::InProcess, Self::Http1, Self::Http2].into_iter().map(Over)
    }

    /// Those with a connection, which can be cut.
    pub(crate) fn wires() -> impl Iterator<Item = Over> {
        [Self::Http1, Self::Http2].into_iter().map(Over)
    }
}

impl Deref for Over {
    type Target = Transport;

    fn deref(&self) -> &Transport {
        &self.0
    }
}

impl Drop for Over {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("this was over {:?}", self.0);
        }
    }
}

/// A client with a connection of its own. Dropped, the connection is cut.
pub(crate) struct Client {
    rig: Rig,
    link: Link,
}

enum Link {
    Call,
    Wire { server: Arc<Listening>, sender: Sender, tasks: Tasks },
}

enum Sender {
    Http1(sync::Mutex<http1::SendRequest<Body>>),
    Http2(http2::SendRequest<Body>),
}

/// How a client's HTTP/2 connection differs from what hyper makes of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windows {
    /// Bytes that the server may send on one stream before the client has read them.
    pub(crate) stream: u32,
    /// The same over all streams of the connection.
    pub(crate) connection: u32,
}

/// No response came; this is why.
#[derive(Debug)]
#[expect(dead_code, reason = "read by whoever reads the message of a failed test")]
pub(crate) struct Broken(String);

impl Client {
    /// Connects to a rig.
    pub(crate) async fn new(rig: &Rig, transport: &Transport) -> Self {
        if *transport == Transport::InProcess {
            return Self { rig: rig.clone(), link: Link::Call };
        }
        Self::of_server(rig, Arc::new(rig.listen().await), transport, None).await
    }

    /// Connects to a server that listens already.
    pub(crate) async fn of_server(
        rig: &Rig,
        server: Arc<Listening>,
        transport: &Transport,
        windows: Option<Windows>,
    ) -> Self {
        let stream = TcpStream::connect(server.address()).await.expect("the server listens");
        stream.set_nodelay(true).expect("it is connected");
        let stream = TokioIo::new(stream);
        let tasks = Tasks::default();
        let sender = match transport {
            Transport::InProcess => panic!("nothing listens in process"),
            Transport::Http1 => {
                let (sender, connection) =
                    http1::handshake(stream).await.expect("hyper has nothing to object to");
                tasks.execute(connection.with_upgrades());
                Sender::Http1(sync::Mutex::new(sender))
            }
            Transport::Http2 => {
                let mut builder = http2::Builder::new(tasks.clone());
                if let Some(windows) = windows {
                    builder
                        .initial_stream_window_size(windows.stream)
                        .initial_connection_window_size(windows.connection);
                }
                let (sender, connection) =
                    builder.handshake(stream).await.expect("the server speaks HTTP/2");
                tasks.execute(connection);
                Sender::Http2(sender)
            }
        };
        Self { rig: rig.clone(), link: Link::Wire { server, sender, tasks } }
    }

    /// Another client of the same server, with a connection of its own.
    pub(crate) async fn another(&self) -> Self {
        match &self.link {
            Link::Call => Self { rig: self.rig.clone(), link: Link::Call },
            Link::Wire { server, sender, .. } => {
                Self::of_server(&self.rig, server.clone(), sender.transport(), None).await
            }
        }
    }

    /// Sends a request and hands the response out as it comes, unread.
    ///
    /// Dropped before that, this takes the request back: in process the service's future is dropped,
    /// over HTTP/1.1 the connection is closed, over HTTP/2 the stream is reset.
    pub(crate) async fn open(&self, mut request: Request) -> Result<Response, Broken> {
        match &self.link {
            Link::Call => {
                let called = AssertUnwindSafe(self.rig.call(request)).catch_unwind().await;
                called.map_err(|panic| Broken(text_of(&*panic)))?.map_err(Broken::by)
            }
            Link::Wire { sender, .. } => {
                sender.address(&mut request);
                let response = match sender {
                    Sender::Http1(sender) => {
                        let mut sender = sender.lock().await;
                        sender.ready().await.map_err(Broken::by)?;
                        let response = sender.send_request(request);
                        drop(sender);
                        response.await
                    }
                    Sender::Http2(sender) => sender.clone().send_request(request).await,
                };
                Ok(response.map_err(Broken::by)?.map(Body::new))
            }
        }
    }

    /// Sends a request that must be answered.
    pub(crate) async fn ask(&self, method: &str, path: &str) -> Response {
        self.open(request(method, path)).await.expect("it is answered")
    }

    /// Sends a GET that must be answered, and reads the answer as far as it goes: the status, and the
    /// body.
    pub(crate) async fn fetch(&self, path: &str) -> (u16, Ended) {
        let (head, body) = self.ask("GET", path).await.into_parts();
        (head.status.as_u16(), read(body).await)
    }

    /// Sends a request whose answer must be whole, and waits until it is recorded.
    pub(crate) async fn send(&self, request: Request) -> Answer {
        let before = self.rig.perf.snapshot().recorded();
        let (parts, body) = self.open(request).await.expect("it is answered").into_parts();
        let body = body.collect().await.expect("the body is whole").to_bytes();
        self.rig.recorded(before + 1).await;
        let record = self.rig.records().pop().expect("this request is over");
        Answer { status: parts.status, headers: parts.headers, body, record }
    }

    /// [`send`](Self::send) a GET.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(request("GET", path)).await
    }

    /// Sends a request that is never answered, and takes it back once the service has it: when `n`
    /// requests have entered the layer.
    pub(crate) async fn abandon(&self, request: Request, n: u64) {
        tokio::select! {
            response = self.open(request) => panic!("it is answered: {response:?}"),
            () = self.rig.entered(n) => {}
        }
    }

    /// Closes the connection, whatever is under way on it, without another word to the server.
    pub(crate) async fn cut(&self) {
        let Link::Wire { tasks, .. } = &self.link else { panic!("there is nothing to cut") };
        tasks.end().shutdown().await;
    }

    /// Asks the server to stop when it has answered what it has begun, and returns what waits for that.
    pub(crate) fn shut_down(&self) -> impl Future<Output = ()> + use<> {
        let Link::Wire { server, .. } = &self.link else { panic!("there is no server") };
        server.shut_down()
    }

    /// Does the server, or hyper's client, consider the connection closed?
    pub(crate) async fn is_closed(&self) -> bool {
        match &self.link {
            Link::Call => false,
            Link::Wire { sender: Sender::Http1(sender), .. } => sender.lock().await.is_closed(),
            Link::Wire { sender: Sender::Http2(sender), .. } => sender.is_closed(),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Link::Wire { tasks, .. } = &self.link {
            drop(tasks.end());
        }
    }
}

impl Sender {
    fn transport(&self) -> &'static Transport {
        match self {
            Self::Http1(_) => &Transport::Http1,
            Self::Http2(_) => &Transport::Http2,
        }
    }

    /// Completes a request as the protocol asks: a call needs a path alone.
    fn address(&self, request: &mut Request) {
        match self {
            Self::Http1(_) => {
                request.headers_mut().entry(HOST).or_insert(HeaderValue::from_static("test"));
            }
            Self::Http2(_) if request.uri().authority().is_none() => {
                let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
                let uri = format!("http://test{path}").parse::<Uri>();
                *request.uri_mut() = uri.expect("it is as valid as the path");
            }
            Self::Http2(_) => {}
        }
    }
}

impl Broken {
    fn by(error: impl fmt::Debug) -> Self {
        Self(format!("{error:?}"))
    }
}

/// The tasks that drive a connection. hyper starts more of them as it goes, and hands them out to the
/// executor alone: one that forgets them could not cut the connection.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    /// Takes the tasks out; they end with what is returned.
    fn end(&self) -> JoinSet<()> {
        mem::take(&mut *self.0.lock().expect("nobody panics in here"))
    }
}

impl<F> Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.lock().expect("nobody panics in here").spawn(task.map(drop));
    }
}

/// Reads a body until it ends or breaks off, be it with an error or with a panic.
pub(crate) async fn read(mut body: Body) -> Ended {
    let mut bytes = Vec::new();
    loop {
        match AssertUnwindSafe(body.frame()).catch_unwind().await {
            Ok(None) => return Ended::Whole(bytes),
            Ok(Some(Ok(frame))) => bytes.extend(frame.into_data().unwrap_or_default()),
            Ok(Some(Err(_))) | Err(_) => return Ended::BrokeOff(bytes),
        }
    }
}

/// Reads at least `n` bytes of a body that has more.
pub(crate) async fn read_about(body: &mut Body, n: usize) {
    let mut seen = 0;
    while seen < n {
        let frame = body.frame().await.expect("there is more").expect("it does not break off");
        seen += frame.into_data().map_or(0, |data| data.len());
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().unwrap_or("not a text");
    format!("a panic: {text}")
}
