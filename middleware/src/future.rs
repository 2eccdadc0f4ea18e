//! The response future that reports its own end.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    BoxError,
    body::{Body, HttpBody},
};
use bytes::Bytes;
use http::{
    HeaderMap, Method, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use pin_project_lite::pin_project;

use crate::{
    body::{Peeked, PerfBody, Rest, peek},
    bypass::Bypassed,
    outcome::Outcome,
    recorder::Recording,
};

pin_project! {
    /// The future of a request that passed the layer. Dropped early, it counts as cancelled.
    pub struct PerfFuture<F> {
        #[pin]
        inner: F,
        // Handed to the body with the response head; dropped with the future before that.
        recording: Option<Recording>,
        asked: Asked,
    }
}

/// What the request's method means for the body of its response.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked {
    /// None is sent, whatever the service hands out.
    Head,
    /// None is sent if the answer is yes.
    Connect,
    Other,
}

impl From<&Method> for Asked {
    fn from(method: &Method) -> Self {
        match *method {
            Method::HEAD => Self::Head,
            Method::CONNECT => Self::Connect,
            _ => Self::Other,
        }
    }
}

impl<F> PerfFuture<F> {
    #[inline]
    pub(crate) fn new(inner: F, recording: Recording, asked: Asked) -> Self {
        Self { inner, recording: Some(recording), asked }
    }

    /// The future of a request that is recorded further out.
    pub(crate) fn counted(inner: F) -> Self {
        Self { inner, recording: None, asked: Asked::Other }
    }
}

impl<F, B, E> Future for PerfFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(recording) = this.recording.as_mut() else {
            let response = ready!(this.inner.poll(cx))?;
            return Poll::Ready(Ok(response.map(Body::new)));
        };
        let running = recording.run();
        let Poll::Ready(answered) = this.inner.poll(cx) else {
            running.done();
            return Poll::Pending;
        };
        let mut answered = answered.map(|response| response.map(Body::new));
        let head = answered.as_mut().ok().map(|response| Head::of(response, *this.asked, cx));
        running.done();
        let (Ok(response), Some(head)) = (&mut answered, head) else {
            recording.end(Outcome::ServerError);
            return Poll::Ready(answered);
        };
        recording.set_bypassed(response.extensions().get::<Bypassed>().is_some());
        let rest = match head {
            Head::Whole { bytes } => {
                recording.add_bytes(bytes);
                recording.end_at_head(response.status());
                #[cfg(feature = "token")]
                recording.tell_at_head(response.headers_mut(), Some(bytes));
                return Poll::Ready(answered);
            }
            Head::Stream => {
                recording.stream_head();
                Rest { begun: None, length: None }
            }
            Head::Open(rest) => {
                recording.head();
                rest
            }
        };
        #[cfg(feature = "token")]
        let trailers = recording.tell_at_head(response.headers_mut(), rest.length);
        if let Some(recording) = this.recording.take() {
            let outcome = Outcome::of_status(response.status());
            let body = response.body_mut();
            let recorded = PerfBody::new(mem::take(body), rest, recording, outcome);
            #[cfg(feature = "token")]
            let recorded = recorded.telling(trailers);
            #[cfg(not(feature = "token"))]
            let recorded = Body::from(recorded);
            *body = recorded;
        }
        Poll::Ready(answered)
    }
}

/// What leaves with the head of a response.
enum Head {
    /// All of it, with a body of so many bytes.
    Whole { bytes: u64 },
    /// Events follow, for as long as both sides wish.
    Stream,
    /// This is still to come.
    Open(Rest),
}

impl Head {
    /// Asks the response's body, which is the service's own code, too.
    #[inline]
    fn of(response: &mut Response<Body>, asked: Asked, cx: &mut Context<'_>) -> Self {
        let exact = response.body().size_hint().exact();
        let length = exact.or_else(|| content_length(response.headers()));
        if length == Some(0) || is_whole(response, exact, asked) {
            return Self::Whole { bytes: 0 };
        }
        let begun = match exact.map(|length| peek(response.body_mut(), length, cx)) {
            Some(Peeked::Whole(data)) => {
                let bytes = data.len() as u64;
                *response.body_mut() = Body::from(data);
                return Self::Whole { bytes };
            }
            Some(Peeked::Begun(frame)) => Some(frame),
            Some(Peeked::Pending) | None => None,
        };
        if length.is_none() && is_event_stream(response) {
            return Self::Stream;
        }
        Self::Open(Rest { begun, length })
    }
}

/// Is the response over with its head? A server sends no body in these cases, and drops what there is of
/// one unpolled.
#[inline]
fn is_whole(response: &Response<Body>, exact: Option<u64>, asked: Asked) -> bool {
    let status = response.status();
    match asked {
        Asked::Head => true,
        // The connection is the client's now.
        Asked::Connect if status.is_success() => true,
        Asked::Connect | Asked::Other => {
            status.is_informational()
                || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
                || (exact.is_none() && response.body().is_end_stream())
        }
    }
}

/// The length that the head promises. A server that writes HTTP/1.1 stops there, and drops the body of a
/// file or of a proxied response without asking for its end.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Server-sent events, which last as long as both sides wish: no latency.
fn is_event_stream(response: &Response<Body>) -> bool {
    const EVENT_STREAM: &[u8] = b"text/event-stream";
    Outcome::of_status(response.status()) == Outcome::Ok
        && response.headers().get(CONTENT_TYPE).is_some_and(|value| {
            let value = value.as_bytes();
            let (name, rest) = value.split_at(value.len().min(EVENT_STREAM.len()));
            name.eq_ignore_ascii_case(EVENT_STREAM)
                && matches!(rest, [] | [b';' | b' ' | b'\t', ..])
        })
}

impl<F> fmt::Debug for PerfFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerfFuture")
            .field("open", &self.recording.is_some())
            .finish_non_exhaustive()
    }
}
