//! The response body that reports its own end.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::{outcome::Outcome, recorder::Recording};

pin_project! {
    /// The body of a response that passed the layer. Yields what the inner body yields, and ends the
    /// request's record when the body ends, breaks off, or is dropped.
    pub struct PerfBody<B> {
        #[pin]
        inner: B,
        // Gone once the request is recorded.
        recording: Option<Recording>,
        // How the request ends if the body goes out whole.
        outcome: Outcome,
        // Bytes still to come, where the body or the head says so.
        remaining: Option<u64>,
    }

    impl<B> PinnedDrop for PerfBody<B> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            // Any panic of the inner body has unwound through `guard` and is recorded.
            if let Some(recording) = this.recording.take() {
                recording.finish(Outcome::Cancelled);
            }
        }
    }
}

impl<B: Body> PerfBody<B> {
    /// Wraps the body of a response whose record is still open; `remaining` bytes follow, if that is known.
    pub(crate) fn open(
        inner: B,
        recording: Recording,
        outcome: Outcome,
        remaining: Option<u64>,
    ) -> Self {
        Self { inner, recording: Some(recording), outcome, remaining }
    }

    /// Wraps the body of a response that is already recorded.
    pub(crate) fn closed(inner: B) -> Self {
        Self { inner, recording: None, outcome: Outcome::Ok, remaining: None }
    }
}

impl<B: Body> Body for PerfBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let Some(mut recording) = this.recording.take() else {
            return this.inner.poll_frame(cx);
        };
        let polled = recording.guard(|| this.inner.as_mut().poll_frame(cx));
        let frame = match polled {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                *this.recording = Some(recording);
                return Poll::Pending;
            }
        };
        let outcome = match &frame {
            None => Some(*this.outcome),
            Some(Err(_)) => Some(Outcome::ServerError),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    let bytes = data.remaining() as u64;
                    recording.add_bytes(bytes);
                    *this.remaining = this.remaining.map(|rest| rest.saturating_sub(bytes));
                }
                // A server that knows the length drops the body here, without asking for its end.
                let complete = *this.remaining == Some(0) || this.inner.is_end_stream();
                complete.then_some(*this.outcome)
            }
        };
        match outcome {
            Some(outcome) => recording.finish(outcome),
            None => *this.recording = Some(recording),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B> fmt::Debug for PerfBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerfBody").field("open", &self.recording.is_some()).finish_non_exhaustive()
    }
}
