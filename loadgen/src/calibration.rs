//! What a request costs the generator itself, measured against a service that does nothing.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use tokio::{task::coop::consume_budget, time::Instant};
use tower_service::Service;

use crate::load::Load;

/// Requests of a batch, and batches: the fastest counts, because what slows one down is not the generator.
const BATCH: u32 = 1_000;
const BATCHES: usize = 8;

/// Answers at once, and does nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Null;

impl Service<Request<Body>> for Null {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        ready(Ok(Response::new(Body::empty())))
    }
}

/// Processor time that a request takes to be sent, recorded and collected. The scenario is not asked: what it draws
/// and builds may be counted. `load` is only for this.
pub(crate) async fn cost_of_a_request(load: &Load<Null>) -> Duration {
    let mut sender = load.sender();
    let mut fastest = Duration::MAX;
    for _ in 0..BATCHES {
        let began = Instant::now();
        for _ in 0..BATCH {
            load.sink.sent();
            let mut request = Some(Request::new(Bytes::new()));
            let ready = Instant::now();
            load.send(&mut sender, 0, &mut request, ready, None).await;
        }
        load.sink.drain(&mut Vec::new(), |samples| load.tally.lock().absorb(samples, None));
        fastest = fastest.min(began.elapsed());
        consume_budget().await;
    }
    fastest / BATCH
}
