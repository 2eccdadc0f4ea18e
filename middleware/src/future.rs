//! The response future that reports its own end.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderMap, Response, StatusCode, header::CONTENT_LENGTH};
use http_body::Body;
use pin_project_lite::pin_project;

use crate::{body::PerfBody, bypass::Bypassed, outcome::Outcome, recorder::Recording};

pin_project! {
    /// The future of a request that passed the layer. Dropped early, it counts as cancelled.
    pub struct PerfFuture<F> {
        #[pin]
        inner: F,
        // Handed to the body with the response head; dropped with the future before that.
        recording: Option<Recording>,
        // The answer to HEAD has no body, whatever the service hands out.
        head_only: bool,
    }
}

impl<F> PerfFuture<F> {
    pub(crate) fn new(inner: F, recording: Recording, head_only: bool) -> Self {
        Self { inner, recording: Some(recording), head_only }
    }

    /// The future of a request that is recorded further out.
    pub(crate) fn counted(inner: F) -> Self {
        Self { inner, recording: None, head_only: false }
    }
}

impl<F, B, E> Future for PerfFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<PerfBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let polled = match this.recording {
            Some(recording) => recording.guard(|| this.inner.poll(cx)),
            None => this.inner.poll(cx),
        };
        let Poll::Ready(result) = polled else { return Poll::Pending };
        let recording = this.recording.take();
        Poll::Ready(match result {
            Ok(response) => Ok(wrap(response, recording, *this.head_only)),
            Err(error) => {
                if let Some(recording) = recording {
                    recording.finish(Outcome::ServerError);
                }
                Err(error)
            }
        })
    }
}

fn wrap<B: Body>(
    response: Response<B>,
    recording: Option<Recording>,
    head_only: bool,
) -> Response<PerfBody<B>> {
    let (parts, body) = response.into_parts();
    let body = match recording {
        Some(mut recording) => {
            recording.set_bypassed(parts.extensions.get::<Bypassed>().is_some());
            let length = body.size_hint().exact().or_else(|| content_length(&parts.headers));
            // A server sends no body in these cases, and drops what there is of one unpolled.
            let bodiless = parts.status.is_informational()
                || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
            if head_only || bodiless || length == Some(0) || body.is_end_stream() {
                recording.finish_at_head(parts.status);
                PerfBody::closed(body)
            } else {
                recording.head();
                PerfBody::open(body, recording, Outcome::of_status(parts.status), length)
            }
        }
        None => PerfBody::closed(body),
    };
    Response::from_parts(parts, body)
}

/// The length that the head promises. A server that writes HTTP/1.1 stops there, and drops the body of a
/// file or of a proxied response without asking for its end.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl<F> fmt::Debug for PerfFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerfFuture")
            .field("open", &self.recording.is_some())
            .finish_non_exhaustive()
    }
}
