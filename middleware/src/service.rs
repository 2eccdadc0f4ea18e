//! The service that the layer wraps around another.

use std::task::{Context, Poll};

use axum::extract::MatchedPath;
use http::{Method, Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::{
    body::PerfBody, bypass::LoadPass, future::PerfFuture, probe::Probe, recorder::LocalRecorder,
};

/// Records every request to the inner service. Made by [`PerfLayer`](crate::PerfLayer).
#[derive(Clone, Debug)]
pub struct PerfService<S> {
    inner: S,
    recorder: LocalRecorder,
}

/// In the extensions of an unmatched request: who has counted it. The fallback of
/// [`Perf::routes`](crate::Perf::routes) carries the layer; under a layer around everything it must
/// not count a second time.
#[derive(Clone)]
struct CountedBy(LocalRecorder);

impl<S> PerfService<S> {
    pub(crate) fn new(inner: S, recorder: LocalRecorder) -> Self {
        Self { inner, recorder }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for PerfService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body,
{
    type Response = Response<PerfBody<ResBody>>;
    type Error = S::Error;
    type Future = PerfFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        // Out of the request, so that a second layer inside does not fill it too.
        let probe = request.extensions_mut().remove::<Probe>();
        let template = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        let unmatched = template.is_none();
        if unmatched
            && let Some(CountedBy(recorder)) = request.extensions().get()
            && recorder.same_as(&self.recorder)
        {
            return PerfFuture::counted(self.inner.call(request));
        }
        let head_only = request.method() == Method::HEAD;
        let mut recording = self.recorder.enter(request.method(), template, probe);
        // A request that is cut short never says whether it passed; one with a pass most likely did.
        recording.set_bypassed(request.extensions().get::<LoadPass>().is_some());
        if unmatched {
            // May allocate, for requests that no route answers.
            request.extensions_mut().insert(CountedBy(self.recorder.clone()));
        }
        let inner = recording.guard(|| self.inner.call(request));
        PerfFuture::new(inner, recording, head_only)
    }
}
