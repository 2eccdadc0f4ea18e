//! Services that are no routers: they may fail, and they may let their callers wait.

use std::{
    future::{Pending, Ready, pending, ready},
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, extract::Request, response::Response};
use futures_util::future::join;
use parallax_middleware::{Outcome, Perf};
use tokio::{sync::Semaphore, time::sleep};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};

use crate::support::{
    client::{Client, Transport},
    eventually,
    rig::{Rig, request},
};

/// Fails at the call, if the path says so.
#[derive(Clone)]
struct Failing;

impl Service<Request> for Failing {
    type Response = Response;
    type Error = io::Error;
    type Future = Ready<Result<Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        ready(match request.uri().path() {
            "/fails" => Err(io::Error::other("it fails")),
            "/panics" => panic!("a service that panics when it is called"),
            _ => Ok(Response::new(Body::from("some text"))),
        })
    }
}

/// Never takes a request.
#[derive(Clone)]
struct OutOfOrder;

impl Service<Request> for OutOfOrder {
    type Response = Response;
    type Error = io::Error;
    type Future = Pending<Result<Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Err(io::Error::other("it is out of order")))
    }

    fn call(&mut self, _: Request) -> Self::Future {
        panic!("it was not ready")
    }
}

/// A client that still gets answers after the service has failed `client`.
async fn survivor(client: Client, over: &Transport) -> Client {
    match over {
        // A service that fails ends the connection, or over HTTP/2 the stream.
        Transport::Http1 => client.another().await,
        Transport::InProcess | Transport::Http2 => client,
    }
}

#[tokio::test]
async fn an_error_of_the_service_is_a_server_error_without_a_first_byte() {
    for over in Transport::each() {
        let perf = Perf::new();
        let rig =
            Rig::of_service(&perf, ServiceBuilder::new().layer(perf.layer()).service(Failing));
        let client = rig.client(&over).await;
        client.open(request("GET", "/fails")).await.expect_err("there is no response");
        rig.assert_ends(&[("* (unmatched)", Outcome::ServerError, 1)]).await;
        assert_eq!(rig.records()[0].first_byte, None);
        let client = survivor(client, &over).await;
        assert_eq!(client.get("/text").await.body, "some text");
        rig.assert_ends(&[
            ("* (unmatched)", Outcome::ServerError, 1),
            ("* (unmatched)", Outcome::Ok, 1),
        ])
        .await;
    }
}

#[tokio::test]
async fn a_panic_in_the_call_itself_counts_as_panicked() {
    for over in Transport::each() {
        let perf = Perf::new();
        let rig =
            Rig::of_service(&perf, ServiceBuilder::new().layer(perf.layer()).service(Failing));
        let client = rig.client(&over).await;
        client.open(request("GET", "/panics")).await.expect_err("there is no response");
        rig.assert_ends(&[("* (unmatched)", Outcome::Panicked, 1)]).await;
        assert_eq!(rig.records()[0].first_byte, None);
        let client = survivor(client, &over).await;
        assert_eq!(client.get("/text").await.body, "some text");
    }
}

#[tokio::test]
async fn an_error_before_the_call_belongs_to_no_request() {
    for over in Transport::each() {
        let perf = Perf::new();
        let service = ServiceBuilder::new().layer(perf.layer()).service(OutOfOrder);
        let rig = Rig::of_service(&perf, service);
        let client = rig.client(&over).await;
        for _ in 0..3 {
            let client = client.another().await;
            client.open(request("GET", "/")).await.expect_err("there is no response");
        }
        assert_eq!(rig.perf.snapshot().entered(), 0);
        rig.assert_recorded(&[]);
    }
}

/// Knows how many wait for the inner service to be ready.
struct Queue<S> {
    inner: S,
    length: Arc<AtomicUsize>,
    waiting: Option<Waiting>,
}

/// One that waits, until this is dropped.
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl<S: Clone> Clone for Queue<S> {
    /// The same queue, in which the clone does not wait.
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), length: self.length.clone(), waiting: None }
    }
}

impl<S: Service<Request>> Service<Request> for Queue<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let polled = self.inner.poll_ready(cx);
        if polled.is_ready() {
            self.waiting = None;
        } else {
            self.waiting.get_or_insert_with(|| {
                self.length.fetch_add(1, Relaxed);
                Waiting(self.length.clone())
            });
        }
        polled
    }

    fn call(&mut self, request: Request) -> S::Future {
        self.inner.call(request)
    }
}

/// A service under the layer that takes one request at a time, and answers when it is told to.
struct OneAtATime {
    rig: Rig,
    answers: Arc<Semaphore>,
    queue: Arc<AtomicUsize>,
}

impl OneAtATime {
    fn new() -> Self {
        let perf = Perf::new();
        let answers = Arc::new(Semaphore::new(0));
        let queue = Arc::new(AtomicUsize::new(0));
        let told = answers.clone();
        let answering = service_fn(move |_: Request| {
            let told = told.clone();
            async move {
                told.acquire().await.expect("it is never closed").forget();
                Ok::<_, BoxError>(Response::new(Body::from("some text")))
            }
        });
        let length = queue.clone();
        let service = ServiceBuilder::new()
            .layer(perf.layer())
            .layer_fn(|inner| Queue { inner, length: length.clone(), waiting: None })
            .concurrency_limit(1)
            .service(answering);
        Self { rig: Rig::of_service(&perf, service), answers, queue }
    }

    /// Waits until `n` requests wait for the service.
    async fn queued(&self, n: usize) {
        eventually(&format!("{n} wait for the service"), async || {
            (self.queue.load(Relaxed) == n).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_request_is_counted_when_the_service_takes_it_not_while_it_waits() {
    for over in Transport::each() {
        let service = OneAtATime::new();
        let rig = &service.rig;
        let first = rig.client(&over).await;
        let second = first.another().await;
        let release = async {
            rig.entered(1).await;
            service.queued(1).await;
            let row = rig.row("* (unmatched)");
            assert_eq!((row.requests, row.in_flight), (0, 1));
            service.answers.add_permits(1);
            rig.entered(2).await;
            service.answers.add_permits(1);
        };
        let both = join(first.fetch("/"), second.fetch("/"));
        let ((one, other), ()) = join(both, release).await;
        assert_eq!((one.0, other.0), (200, 200));
        rig.assert_ends(&[("* (unmatched)", Outcome::Ok, 2)]).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_for_the_service_leaves_nothing_behind() {
    for over in Transport::each() {
        let service = OneAtATime::new();
        let rig = &service.rig;
        let first = rig.client(&over).await;
        let second = first.another().await;
        let leave = async {
            rig.entered(1).await;
            tokio::select! {
                response = second.open(request("GET", "/")) => panic!("it is answered: {response:?}"),
                () = service.queued(1) => {}
            }
            service.queued(0).await;
            assert_eq!(rig.perf.snapshot().entered(), 1);
            service.answers.add_permits(1);
        };
        let (answer, ()) = join(first.fetch("/"), leave).await;
        assert_eq!(answer.0, 200);
        rig.assert_ends(&[("* (unmatched)", Outcome::Ok, 1)]).await;
        // The place that it waited for is free.
        service.answers.add_permits(1);
        assert_eq!(first.get("/").await.body, "some text");
        rig.assert_ends(&[("* (unmatched)", Outcome::Ok, 2)]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_that_a_request_waits_for_the_service_is_not_the_services() {
    let perf = Perf::new();
    let slow = service_fn(async |_: Request| {
        sleep(Duration::from_millis(50)).await;
        Ok::<_, BoxError>(Response::new(Body::empty()))
    });
    let service = ServiceBuilder::new().layer(perf.layer()).concurrency_limit(1).service(slow);
    let rig = Rig::of_service(&perf, service);
    let (first, second) = join(rig.call(request("GET", "/")), rig.call(request("GET", "/"))).await;
    assert!(first.is_ok() && second.is_ok());
    let times: Vec<Duration> = rig.records().iter().map(|record| record.server_time).collect();
    assert_eq!(times, [Duration::from_millis(50); 2]);
    rig.assert_recorded(&[("* (unmatched)", Outcome::Ok, 2)]);
}

#[tokio::test]
async fn a_service_that_is_ready_but_not_called_has_no_request() {
    let perf = Perf::new();
    let never = service_fn(async |_: Request| pending::<Result<Response, BoxError>>().await);
    let mut service = ServiceBuilder::new().layer(perf.layer()).service(never);
    service.ready().await.expect("it is always ready");
    assert_eq!(perf.snapshot().entered(), 0);
    let called = service.ready().await.expect("it is always ready").call(request("GET", "/"));
    assert_eq!(perf.snapshot().entered(), 1);
    // Called, but never polled.
    drop(called);
    let snapshot = perf.snapshot();
    assert_eq!((snapshot.recorded(), snapshot.outcome(Outcome::Cancelled)), (1, 1));
}
