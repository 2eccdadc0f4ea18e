//! Past the rate limiter, for load that is authorised.
//!
//! A bypass cannot be expressed inside most limiters, so it branches around them: the limited service
//! and the plain one stand side by side, and each request takes one.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use axum::{
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderName, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    counters::Admission,
    phase::{self, Phase, PhaseIndex, PhaseLog},
    probe::LoadMark,
    recorder::{LocalRecorder, Recorder},
};
#[cfg(feature = "token")]
use crate::{
    gate::{Entrance, Gate, Held, TokenCheck, take_token},
    probe::GoodFor,
};

/// Where tokens are looked for if nothing else is said.
const HEADER: HeaderName = HeaderName::from_static("x-parallax-bypass");

/// What a request holds until its response is over: nothing, where there are no tokens.
#[cfg(not(feature = "token"))]
type Held = Infallible;

/// In the extensions of a response: the request did pass by the limiter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bypassed;

/// Who may pass by the limiter.
///
/// Whoever it is, the header of a token is taken out of every request, be it good or not: nothing inside sees
/// it. That is so as well where no tokens are taken.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BypassPolicy {
    header: HeaderName,
    #[cfg(feature = "token")]
    gate: Option<Arc<Gate>>,
}

impl Default for BypassPolicy {
    fn default() -> Self {
        Self {
            header: HEADER,
            #[cfg(feature = "token")]
            gate: None,
        }
    }
}

impl BypassPolicy {
    /// Nobody but a load generator in this very process, by its [`LoadMark`]. The default.
    #[must_use]
    pub fn in_process() -> Self {
        Self::default()
    }

    /// Whoever sends a [token](crate::BypassToken) that is good for the request, too: over any connection, in
    /// a header.
    ///
    /// Clones of the policy share what they know of budgets; a second call forgets it.
    ///
    /// ```
    /// # use axum::{Router, routing::get};
    /// # use parallax_middleware::{BypassPolicy, Perf, TokenKeys};
    /// # fn app(perf: Perf) -> Result<Router, Box<dyn std::error::Error>> {
    /// # let limiter = tower::layer::util::Identity::new();
    /// let keys = TokenKeys::parse(&std::env::var("PARALLAX_BYPASS_KEY")?)?;
    /// let policy = BypassPolicy::in_process().tokens(keys);
    ///
    /// let app = Router::new()
    ///     .route("/items/{id}", get(|| async { "an item" }))
    ///     .layer(perf.bypass(policy).around(limiter))
    ///     .layer(perf.layer());
    /// # Ok(app)
    /// # }
    /// ```
    #[cfg(feature = "token")]
    #[must_use]
    pub fn tokens(self, check: impl Into<TokenCheck>) -> Self {
        Self { gate: Some(Arc::new(Gate::new(check.into()))), ..self }
    }

    /// Another header for tokens than `x-parallax-bypass`. It belongs to the tokens alone: what else might
    /// be in it is taken out as well.
    #[must_use]
    pub fn header(self, name: HeaderName) -> Self {
        Self { header: name, ..self }
    }

    /// May the request pass? Uses up what lets it, and takes out of it what says so.
    fn admit(&self, request: &mut Request, recorder: &LocalRecorder) -> Option<Pass> {
        // Used up here: inside, nobody can pass it on.
        let mark = request.extensions_mut().get_mut::<LoadMark>();
        let (marked, judged) =
            mark.map_or((false, false), |mark| (mark.take_pass(), self.has_judged(mark)));
        if marked || judged {
            request.headers_mut().remove(&self.header);
            return Some(Pass { held: None, marked });
        }
        self.present(request, recorder)
    }

    /// Did the layer outside find the request's token good, at this very gate? Whoever answers timing judges tokens.
    #[cfg(feature = "token")]
    fn has_judged(&self, mark: &mut LoadMark) -> bool {
        self.gate.as_ref().is_some_and(|gate| mark.take_good_for(GoodFor::Limiter, gate))
    }

    /// Nobody takes tokens.
    #[cfg(not(feature = "token"))]
    fn has_judged(&self, _: &mut LoadMark) -> bool {
        false
    }

    /// Shows the request's token at the gate; `None` if there is none that is good.
    #[cfg(feature = "token")]
    fn present(&self, request: &mut Request, recorder: &LocalRecorder) -> Option<Pass> {
        let token = take_token(&self.header, request.headers_mut())?;
        let gate = self.gate.as_ref()?;
        match gate.judge(token.as_ref(), request) {
            Ok(held) => {
                if recorder.entrance().is_some() {
                    // The layer may lie inside.
                    let mark = request.extensions_mut().get_or_insert_default::<LoadMark>();
                    mark.set_good_for(GoodFor::Timing, gate);
                }
                Some(Pass { held, marked: false })
            }
            Err(refusal) => {
                recorder.refuse(refusal);
                None
            }
        }
    }

    /// Nobody takes tokens.
    #[cfg(not(feature = "token"))]
    fn present(&self, request: &mut Request, _: &LocalRecorder) -> Option<Pass> {
        request.headers_mut().remove(&self.header);
        None
    }

    /// Where tokens are shown, if they are taken.
    #[cfg(feature = "token")]
    pub(crate) fn entrance(&self) -> Option<Entrance> {
        Some(Entrance { header: self.header.clone(), gate: self.gate.clone()? })
    }
}

/// The request may pass by the limiter.
struct Pass {
    held: Option<Held>,
    /// By an extension of the request, which the layer has seen itself.
    marked: bool,
}

/// A way around a limiter. Made by [`Perf::bypass`](crate::Perf::bypass).
#[derive(Clone, Debug)]
pub struct Bypass {
    recorder: Recorder,
    policy: BypassPolicy,
}

impl Bypass {
    pub(crate) fn new(recorder: Recorder, policy: BypassPolicy) -> Self {
        Self { recorder, policy }
    }

    /// Puts the way around `limiter`, any layer that answers for an axum service.
    #[must_use]
    pub fn around<L>(self, limiter: L) -> BypassLayer<L> {
        BypassLayer { limiter, recorder: self.recorder, policy: self.policy }
    }
}

/// A limiter with a way around it.
#[derive(Clone, Debug)]
pub struct BypassLayer<L> {
    limiter: L,
    recorder: Recorder,
    policy: BypassPolicy,
}

impl<L, S> Layer<S> for BypassLayer<L>
where
    L: Layer<LetThrough<S>>,
    S: Clone,
{
    type Service = BypassService<L::Service, S>;

    fn layer(&self, inner: S) -> Self::Service {
        BypassService {
            limited: self.limiter.layer(LetThrough { inner: inner.clone() }),
            open: inner,
            recorder: LocalRecorder::clone(&self.recorder),
            policy: self.policy.clone(),
        }
    }
}

/// The way of one request through one limiter. It may be in several at once, one around the other.
struct Passage {
    recorder: LocalRecorder,
    /// `None` where no layer lies around the limiter.
    log: Option<Arc<PhaseLog>>,
    let_through: AtomicBool,
}

impl Passage {
    fn begin(recorder: LocalRecorder) -> Arc<Self> {
        let log = phase::current(Some(recorder.id()));
        Arc::new(Self { recorder, log, let_through: AtomicBool::new(false) })
    }

    /// The limiter hands the request on; again, if it tries more than once.
    fn let_through(&self) {
        if !self.let_through.swap(true, Relaxed) {
            self.count(Admission::Admitted);
        }
    }

    /// There is a response: the limiter's own, if it has let nothing through.
    fn answered(&self) {
        if !self.let_through.load(Relaxed) {
            self.count(Admission::Limited);
        }
    }

    fn count(&self, admission: Admission) {
        self.recorder.admission(admission);
        if let Some(log) = &self.log {
            log.admission(admission);
        }
    }
}

/// In the extensions of a request that is in a limiter: the phase lasts until this is dropped.
struct InLimiter {
    passage: Arc<Passage>,
    phase: Option<Phase>,
}

impl Clone for InLimiter {
    /// A copy of the request takes the same way, in no phase of its own.
    fn clone(&self) -> Self {
        Self { passage: self.passage.clone(), phase: None }
    }
}

/// What a limiter lets its requests through to. Made by [`BypassLayer`].
#[derive(Clone, Debug)]
pub struct LetThrough<S> {
    inner: S,
}

impl<S: Service<Request>> Service<Request> for LetThrough<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> S::Future {
        let in_limiter = request.extensions_mut().remove();
        let Some(InLimiter { passage, phase }) = in_limiter else {
            return self.inner.call(request);
        };
        passage.let_through();
        drop(phase);
        match &passage.log {
            // A limiter may call from a task of its own.
            Some(log) => phase::within(log, || self.inner.call(request)),
            None => self.inner.call(request),
        }
    }
}

/// The limited service and the plain one, side by side.
#[derive(Clone, Debug)]
pub struct BypassService<L, S> {
    limited: L,
    open: S,
    recorder: LocalRecorder,
    policy: BypassPolicy,
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
        if let Some(Pass { held, marked }) = self.policy.admit(&mut request, &recorder) {
            // Counted before anything can cut the request short.
            recorder.admission(Admission::Bypassed);
            if !marked && let Some(log) = phase::current(Some(recorder.id())) {
                log.admission(Admission::Bypassed);
            }
            let call = Call::Ready { service: self.open.clone(), request: Some(request) };
            BypassFuture { branch: Branch::Open { call, held } }
        } else {
            let passage = Passage::begin(recorder.clone());
            let in_request = passage.log.is_some();
            let phase = in_request.then(|| Phase::begin(recorder, PhaseIndex::LIMITER));
            request.extensions_mut().insert(InLimiter { passage: passage.clone(), phase });
            let call = Call::Ready { service: self.limited.clone(), request: Some(request) };
            BypassFuture { branch: Branch::Limited { call, passage } }
        }
    }
}

pin_project! {
    /// The future of a request that met a [`BypassService`].
    pub struct BypassFuture<L: Service<Request>, S: Service<Request>> {
        #[pin]
        branch: Branch<L, S>,
    }
}

pin_project! {
    #[project = BranchProjection]
    enum Branch<L: Service<Request>, S: Service<Request>> {
        Limited { #[pin] call: Call<L>, passage: Arc<Passage> },
        Open { #[pin] call: Call<S>, held: Option<Held> },
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
            BranchProjection::Limited { call, passage } => {
                let response = ready!(call.poll(cx));
                passage.answered();
                response
            }
            BranchProjection::Open { call, held } => {
                let mut response = ready!(call.poll(cx));
                response.extensions_mut().insert(Bypassed);
                match held.take() {
                    Some(held) if !response.body().is_end_stream() => {
                        response.map(|inner| Body::new(HoldingBody { inner, _held: held }))
                    }
                    _ => response,
                }
            }
        }))
    }
}

pin_project! {
    /// A body that holds something for as long as it is there.
    struct HoldingBody {
        #[pin]
        inner: Body,
        _held: Held,
    }
}

impl HttpBody for HoldingBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.project().inner.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<L: Service<Request>, S: Service<Request>> fmt::Debug for BypassFuture<L, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BypassFuture").finish_non_exhaustive()
    }
}
