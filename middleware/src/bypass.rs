//! Past the rate limiter, for load that is authorised.
//!
//! A bypass cannot be expressed inside most limiters, so it branches around them: the limited service
//! and the plain one stand side by side, and each request takes one.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    extract::Request,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    counters::Admission,
    probe::LoadMark,
    recorder::{LocalRecorder, Recorder},
};

/// In the extensions of a response: the request did pass by the limiter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bypassed;

/// Who may pass by the limiter.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct BypassPolicy {}

impl BypassPolicy {
    /// Nobody but a load generator in this very process, by its [`LoadMark`]. The default.
    #[must_use]
    pub fn in_process() -> Self {
        Self::default()
    }
}

/// A way around a limiter. Made by [`Perf::bypass`](crate::Perf::bypass).
#[derive(Clone, Debug)]
pub struct Bypass {
    recorder: Recorder,
}

impl Bypass {
    pub(crate) fn new(recorder: Recorder, _policy: BypassPolicy) -> Self {
        Self { recorder }
    }

    /// Puts the way around `limiter`, any layer that answers for an axum service.
    #[must_use]
    pub fn around<L>(self, limiter: L) -> BypassLayer<L> {
        BypassLayer { limiter, recorder: self.recorder }
    }
}

/// A limiter with a way around it.
#[derive(Clone, Debug)]
pub struct BypassLayer<L> {
    limiter: L,
    recorder: Recorder,
}

impl<L, S> Layer<S> for BypassLayer<L>
where
    L: Layer<S>,
    S: Clone,
{
    type Service = BypassService<L::Service, S>;

    fn layer(&self, inner: S) -> Self::Service {
        BypassService {
            limited: self.limiter.layer(inner.clone()),
            open: inner,
            recorder: LocalRecorder::clone(&self.recorder),
        }
    }
}

/// The limited service and the plain one, side by side.
#[derive(Clone, Debug)]
pub struct BypassService<L, S> {
    limited: L,
    open: S,
    recorder: LocalRecorder,
}

impl<L, S> Service<Request> for BypassService<L, S>
where
    L: Service<Request, Error = Infallible> + Clone,
    L::Response: IntoResponse,
    S: Service<Request, Error = Infallible> + Clone,
    S::Response: IntoResponse,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BypassFuture<L, S>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Which of the two must be ready depends on the request: the future waits for that one alone,
        // so that a full limiter never holds up what passes by it.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let recorder = self.recorder.clone();
        // Used up here: inside, nobody can pass it on.
        if request.extensions_mut().get_mut().is_some_and(LoadMark::take_pass) {
            // Counted before anything can cut the request short.
            recorder.admission(Admission::Bypassed);
            let call = Call::Ready { service: self.open.clone(), request: Some(request) };
            BypassFuture { branch: Branch::Open { call }, recorder }
        } else {
            let call = Call::Ready { service: self.limited.clone(), request: Some(request) };
            BypassFuture { branch: Branch::Limited { call }, recorder }
        }
    }
}

pin_project! {
    /// The future of a request that met a [`BypassService`].
    pub struct BypassFuture<L: Service<Request>, S: Service<Request>> {
        #[pin]
        branch: Branch<L, S>,
        recorder: LocalRecorder,
    }
}

pin_project! {
    #[project = BranchProjection]
    enum Branch<L: Service<Request>, S: Service<Request>> {
        Limited { #[pin] call: Call<L> },
        Open { #[pin] call: Call<S> },
    }
}

pin_project! {
    /// Waits for a service of its own to be ready, then calls it.
    #[project = CallProjection]
    enum Call<S: Service<Request>> {
        Ready { service: S, request: Option<Request> },
        Called { #[pin] future: S::Future },
    }
}

impl<S> Call<S>
where
    S: Service<Request, Error = Infallible>,
    S::Response: IntoResponse,
{
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response> {
        loop {
            match self.as_mut().project() {
                CallProjection::Ready { service, request } => {
                    let Ok(()) = ready!(service.poll_ready(cx));
                    let Some(request) = request.take() else {
                        return Poll::Ready(StatusCode::INTERNAL_SERVER_ERROR.into_response());
                    };
                    let future = service.call(request);
                    self.set(Self::Called { future });
                }
                CallProjection::Called { future } => {
                    let Ok(response) = ready!(future.poll(cx));
                    return Poll::Ready(response.into_response());
                }
            }
        }
    }
}

impl<L, S> Future for BypassFuture<L, S>
where
    L: Service<Request, Error = Infallible>,
    L::Response: IntoResponse,
    S: Service<Request, Error = Infallible>,
    S::Response: IntoResponse,
{
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        Poll::Ready(Ok(match this.branch.project() {
            BranchProjection::Limited { call } => {
                let response = ready!(call.poll(cx));
                let limited = response.status() == StatusCode::TOO_MANY_REQUESTS;
                let admission = if limited { Admission::Limited } else { Admission::Admitted };
                this.recorder.admission(admission);
                response
            }
            BranchProjection::Open { call } => {
                let mut response = ready!(call.poll(cx));
                response.extensions_mut().insert(Bypassed);
                response
            }
        }))
    }
}

impl<L: Service<Request>, S: Service<Request>> fmt::Debug for BypassFuture<L, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BypassFuture").finish_non_exhaustive()
    }
}
