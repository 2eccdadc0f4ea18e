//! One route for each kind of response.

use std::{
    convert::Infallible,
    future::{self, Ready, pending},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::Path,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{CONTENT_LENGTH, TRAILER},
    },
    routing::{get, post},
};
use futures_util::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, SizeHint};
use tokio::task::yield_now;

pub(crate) type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, io::Error>> + Send>>;

/// The trailer that the routes with trailers send.
pub(crate) const SUM: HeaderName = HeaderName::from_static("x-sum");

/// What [`routes`] breaks off after.
pub(crate) const SO_FAR: &str = "so far";

pub(crate) async fn panics() -> StatusCode {
    panic!("a handler that panics")
}

/// 1 KiB, again and again.
pub(crate) fn endless() -> Chunks {
    Box::pin(stream::repeat_with(|| Ok(Bytes::from_static(&[b'x'; 1024]))))
}

/// A chunk, and then whatever `end` says.
pub(crate) fn so_far<F>(end: F) -> Body
where
    F: Future<Output = Result<Bytes, io::Error>> + Send + 'static,
{
    let chunk = stream::once(async { Ok(Bytes::from_static(SO_FAR.as_bytes())) });
    Body::from_stream(chunk.chain(stream::once(end)))
}

/// A body that has ended before anybody looks, and names no length.
struct AtItsEnd;

impl HttpBody for AtItsEnd {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

/// A body that panics when it is asked whether it is over.
struct PanicsWhenAsked;

impl HttpBody for PanicsWhenAsked {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        panic!("a body that panics when it is asked")
    }
}

/// A body that knows its length, as a file or an array of buffers does.
struct Known {
    length: u64,
    inner: Body,
}

impl HttpBody for Known {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            self.length -= data.len() as u64;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.length == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

fn sum() -> Ready<Option<Result<HeaderMap, Infallible>>> {
    future::ready(Some(Ok(HeaderMap::from_iter([(SUM, HeaderValue::from_static("7"))]))))
}

/// Frames as a gRPC server sends them: data, and trailers as the last.
fn frames_with_trailers() -> Body {
    let data = || Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"some text")));
    let trailers = HeaderMap::from_iter([(SUM, HeaderValue::from_static("7"))]);
    Body::new(StreamBody::new(stream::iter([data(), data(), Ok(Frame::trailers(trailers))])))
}

pub(crate) fn routes() -> Router {
    Router::new()
        .merge(whole())
        .merge(empty())
        .merge(broken())
        .merge(known())
        .route("/echo", post(async |body: Bytes| body))
        .route("/ignore", post(async || "not read"))
}

fn whole() -> Router {
    let announced = [(TRAILER, HeaderValue::from_name(SUM))];
    Router::new()
        .route("/text", get(async || "some text"))
        .route("/stream", get(async || Body::from_stream(endless().take(100))))
        .route(
            "/file",
            get(async || ([(CONTENT_LENGTH, "102400")], Body::from_stream(endless().take(100)))),
        )
        .route(
            "/refused",
            get(async || (StatusCode::BAD_REQUEST, Body::from_stream(endless().take(1)))),
        )
        .route(
            "/trailers/unsized",
            get({
                let announced = announced.clone();
                async || (announced, frames_with_trailers())
            }),
        )
        .route(
            "/trailers/sized",
            get({
                let announced = announced.clone();
                async || (announced, Body::new(Full::from("some text").with_trailers(sum())))
            }),
        )
        .route(
            "/trailers/alone",
            get(async || (announced, Body::new(Empty::<Bytes>::new().with_trailers(sum())))),
        )
}

/// Responses without a body, of which some do not know it.
fn empty() -> Router {
    Router::new()
        .route("/no-content", get(async || StatusCode::NO_CONTENT))
        .route("/not-modified", get(async || StatusCode::NOT_MODIFIED))
        .route("/empty", get(async || ""))
        .route("/ended", get(async || Body::new(AtItsEnd)))
        .route("/nothing", get(async || Body::from_stream(endless().take(0))))
        .route(
            "/proxied/{status}",
            get(async |Path(status): Path<u16>| {
                // As a proxy hands it on: a stream that does not know that it has nothing to say.
                let status = StatusCode::from_u16(status).expect("a status");
                let length = (status == StatusCode::OK).then_some([(CONTENT_LENGTH, "0")]);
                (status, length, Body::from_stream(endless().take(0)))
            }),
        )
}

/// Bodies that know their length, however they come to it.
fn known() -> Router {
    let known = |chunks: Chunks| Body::new(Known { length: 8, inner: Body::from_stream(chunks) });
    fn half() -> Result<Bytes, io::Error> {
        Ok(Bytes::from_static(b"half"))
    }
    Router::new()
        .route("/known/halves", get(async move || known(stream::iter([half(), half()]).boxed())))
        .route(
            "/known/late",
            get(async move || {
                let late = stream::repeat(()).then(async |()| {
                    yield_now().await;
                    half()
                });
                known(late.take(2).boxed())
            }),
        )
        .route(
            "/known/breaks",
            get(async move || known(stream::iter([Err(io::Error::other("gone"))]).boxed())),
        )
        .route(
            "/known/panics",
            get(async move || known(stream::once(async { panic!("a body that panics") }).boxed())),
        )
}

/// Responses that do not end, or not well.
fn broken() -> Router {
    Router::new()
        .route("/never", get(pending::<StatusCode>))
        .route("/endless", get(async || Body::from_stream(endless())))
        .route("/stuck", get(async || so_far(pending())))
        .route(
            "/breaks",
            get(async || so_far(future::ready(Err(io::Error::other("the source is gone"))))),
        )
        .route(
            "/short",
            get(async || ([(CONTENT_LENGTH, "102400")], Body::from_stream(endless().take(99)))),
        )
        .route("/panics", get(panics))
        .route("/panics/asked", get(async || Body::new(PanicsWhenAsked)))
        .route("/panics/later", get(async || so_far(async { panic!("a body that panics") })))
}
