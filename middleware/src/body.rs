//! The response body that reports its own end.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    Error,
    body::{Body, HttpBody},
};
use bytes::Bytes;
#[cfg(feature = "token")]
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;

#[cfg(feature = "token")]
use crate::server_timing::SERVER_TIMING;
use crate::{outcome::Outcome, recorder::Recording};

/// What a body has to say at the moment when the head leaves.
pub(crate) enum Peeked {
    /// All of it.
    Whole(Bytes),
    /// Its first frame, or that there is none; more may follow.
    Begun(Option<Result<Frame<Bytes>, Error>>),
    /// Nothing yet.
    Pending,
}

/// Asks a body that knows its length for its first frame: where that is all, as with a string or with JSON,
/// the response is over with its head.
#[inline]
pub(crate) fn peek(body: &mut Body, length: u64, cx: &mut Context<'_>) -> Peeked {
    match Pin::new(&mut *body).poll_frame(cx) {
        Poll::Pending => Peeked::Pending,
        Poll::Ready(Some(Ok(frame))) if body.is_end_stream() => match frame.into_data() {
            Ok(data) if data.len() as u64 == length => Peeked::Whole(data),
            Ok(data) => Peeked::Begun(Some(Ok(Frame::data(data)))),
            Err(frame) => Peeked::Begun(Some(Ok(frame))),
        },
        Poll::Ready(frame) => Peeked::Begun(frame),
    }
}

/// The body of a response whose record is still open. Yields what the inner body yields, and ends the record
/// when it ends, breaks off, or is dropped.
pub(crate) struct PerfBody {
    inner: Body,
    rest: Rest,
    /// Counts as cancelled if it is dropped open. A panic of the inner body while it is polled has
    /// unwound through `guard` and is recorded.
    recording: Recording,
    /// How the request ends if the body goes out whole.
    outcome: Outcome,
}

/// What is still to come of a body.
pub(crate) struct Rest {
    /// What the inner body has said already.
    pub(crate) begun: Option<Option<Result<Frame<Bytes>, Error>>>,
    /// Bytes, where the body or the head says how many.
    pub(crate) length: Option<u64>,
}

impl PerfBody {
    pub(crate) fn new(inner: Body, rest: Rest, recording: Recording, outcome: Outcome) -> Self {
        Self { inner, rest, recording, outcome }
    }

    /// A body that is followed by what trailers tell, if they do.
    #[cfg(feature = "token")]
    pub(crate) fn telling(self, trailers: bool) -> Body {
        if trailers {
            Body::new(UnsyncBoxBody::new(TellingBody { inner: self, over: false }))
        } else {
            self.into()
        }
    }

    /// How the request ends if the body ends here.
    fn at_end(&self) -> Outcome {
        match self.rest.length {
            // Short of what the head promised: the client sees it break off.
            Some(1..) => Outcome::ServerError,
            Some(0) | None => self.outcome,
        }
    }
}

impl From<PerfBody> for Body {
    /// The one allocation that a request costs. As a body of the very type that axum uses inside, so that
    /// axum does not box it again.
    fn from(body: PerfBody) -> Self {
        Self::new(UnsyncBoxBody::new(body))
    }
}

impl HttpBody for PerfBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let inner = Pin::new(&mut this.inner);
        if !this.recording.is_open() {
            return inner.poll_frame(cx);
        }
        let frame = match this.rest.begun.take() {
            Some(frame) => frame,
            None => ready!(this.recording.guard(|| inner.poll_frame(cx))),
        };
        match &frame {
            None => this.recording.end(this.at_end()),
            Some(Err(_)) => this.recording.end(Outcome::ServerError),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    let bytes = data.len() as u64;
                    this.recording.add_bytes(bytes);
                    this.rest.length = this.rest.length.map(|rest| rest.saturating_sub(bytes));
                }
                // A server that knows the length drops the body here, without asking for its end, and after
                // trailers, which are the last frame.
                let over = this.rest.length == Some(0) || frame.is_trailers();
                if over || this.recording.guard(|| this.inner.is_end_stream()) {
                    this.recording.end(this.at_end());
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.begun.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.rest.begun {
            None => self.inner.size_hint(),
            // Nobody peeks at a body that does not know its length.
            Some(_) => self.rest.length.map_or_else(SizeHint::new, SizeHint::with_exact),
        }
    }
}

/// The body of a response whose client is told in trailers how long it took. Yields what the inner body yields,
/// and behind its last data one more frame, or more in its last.
#[cfg(feature = "token")]
struct TellingBody {
    inner: PerfBody,
    over: bool,
}

#[cfg(feature = "token")]
impl HttpBody for TellingBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        let mut trailers = match ready!(Pin::new(&mut this.inner).poll_frame(cx)).transpose() {
            Ok(None) => HeaderMap::new(),
            Ok(Some(frame)) => match frame.into_trailers() {
                Ok(trailers) => trailers,
                Err(data) => return Poll::Ready(Some(Ok(data))),
            },
            Err(error) => {
                this.over = true;
                return Poll::Ready(Some(Err(error)));
            }
        };
        this.over = true;
        if let Some(told) = this.inner.recording.told_at_end() {
            trailers.append(SERVER_TIMING, told);
        }
        Poll::Ready((!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
