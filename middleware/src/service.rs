//! The service that the layer wraps around another.

use std::task::{Context, Poll};

use axum::{
    BoxError,
    body::{Body, HttpBody},
};
use bytes::Bytes;
use http::{Request, Response};
use tower_service::Service;

#[cfg(feature = "token")]
use crate::server_timing;
use crate::{
    future::{Asked, PerfFuture},
    naming::{MatchedTemplate, NameRoute, RequestHead},
    probe::LoadMark,
    recorder::{Loan, LocalRecorder},
};

/// Records every request to the inner service. Made by [`PerfLayer`](crate::PerfLayer).
#[derive(Clone, Debug)]
pub struct PerfService<S, N = MatchedTemplate> {
    inner: S,
    recorder: Loan,
    naming: N,
}

/// In the extensions of an unmatched request: who has counted it. The fallback of
/// [`Perf::routes`](crate::Perf::routes) carries the layer; under a layer around everything it must
/// not count a second time.
#[derive(Clone)]
struct CountedBy(LocalRecorder);

impl<S, N> PerfService<S, N> {
    pub(crate) fn new(inner: S, recorder: Loan, naming: N) -> Self {
        Self { inner, recorder, naming }
    }
}

impl<S, N, ReqBody, ResBody> Service<Request<ReqBody>> for PerfService<S, N>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    N: NameRoute,
    ResBody: HttpBody<Data = Bytes> + Send + 'static,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = PerfFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let Some(recorder) = self.recorder.take() else {
            return PerfFuture::counted(self.inner.call(request));
        };
        // The probe goes out of the request, so that a second layer inside does not fill it too.
        let (probe, bypassed) = match request.extensions_mut().get_mut::<LoadMark>() {
            Some(mark) => (mark.take_probe(), mark.passes_limiter()),
            None => (None, false),
        };
        let template = self.naming.name_route(RequestHead::of(&request));
        let unmatched = template.is_none();
        if unmatched
            && let Some(CountedBy(outer)) = request.extensions().get()
            && outer.same_as(&recorder)
        {
            return PerfFuture::counted(self.inner.call(request));
        }
        let asked = Asked::from(request.method());
        let mut recording = recorder.enter(request.method(), template, probe);
        // A request that is cut short never says whether it passed; one that may most likely did.
        recording.set_bypassed(bypassed);
        #[cfg(feature = "token")]
        server_timing::judge(&mut recording, &mut request);
        if unmatched {
            // May allocate, for requests that no route answers.
            request.extensions_mut().insert(CountedBy(recording.recorder().clone()));
        }
        let running = recording.run();
        let inner = self.inner.call(request);
        running.done();
        PerfFuture::new(inner, recording, asked)
    }
}
