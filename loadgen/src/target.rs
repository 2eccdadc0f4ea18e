//! What is driven, and how one request to it is carried out.

use std::{
    any::Any,
    error::Error,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::{Context, Poll},
};

use axum::body::Body as AxumBody;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use http_body::Body;
use tokio::time::{Duration, Instant, timeout_at};
use tower_service::Service;

use crate::{
    failures::Failures,
    outcome::ClientOutcome,
    reply::Reply,
    server_timing::{self, ServerTiming},
};

/// Bytes of a body that a flow gets to see.
const MAX_KEPT: usize = 16 << 20;

/// A tower service that can be driven in process: an axum `Router`, or whatever takes axum's body.
pub trait InProcess:
    Service<
        Request<AxumBody>,
        Response = Response<<Self as InProcess>::ResponseBody>,
        Error: Into<Box<dyn Error + Send + Sync>>,
        Future: Send,
    > + Clone
    + Send
    + Sync
    + 'static
{
    /// The body that it answers with.
    type ResponseBody: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send;
}

impl<S, B> InProcess for S
where
    S: Service<Request<AxumBody>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    S::Future: Send,
    B: Body<Data: Send> + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type ResponseBody = B;
}

/// How a request ended, and how much came back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Answer {
    pub(crate) outcome: ClientOutcome,
    pub(crate) bytes: u64,
    /// 503 is a server error, and a rejection too: load shedders answer with it.
    pub(crate) shed: bool,
    /// It panicked because its runtime has no I/O.
    pub(crate) io_refused: bool,
}

impl Answer {
    /// What it says is not what was required.
    pub(crate) fn fail_check(&mut self) {
        if self.outcome == ClientOutcome::Ok {
            self.outcome = ClientOutcome::CheckFailed;
        }
    }

    pub(crate) fn without_response(outcome: ClientOutcome) -> Self {
        Self { outcome, bytes: 0, shed: false, io_refused: false }
    }
}

/// What is wanted of an answer besides how it ended.
#[derive(Debug, Default)]
pub(crate) struct Wanted<'a> {
    /// The whole of it.
    pub(crate) reply: Option<&'a mut Reply>,
    /// The server's record, where the server tells it over the connection.
    pub(crate) told: Option<&'a mut Option<(ServerTiming, StatusCode)>>,
}

/// Sends one request into the service and drains the answer, for at most `timeout` from `dispatched`; into what
/// is `wanted` of it.
///
/// A panic of the service is caught: it ends the request, not the run. `failures` is told of errors.
///
/// The request is taken where it is used. By value, each of the futures that hand it down would hold a copy, and
/// every user a future.
pub(crate) async fn exchange<S: InProcess>(
    service: &mut S,
    request: &mut Option<Request<Bytes>>,
    dispatched: Instant,
    timeout: Duration,
    failures: &Failures,
    wanted: Wanted<'_>,
) -> Answer {
    let mut driving = pin!(drive(service, request, failures, wanted));
    let mut poll = |cx: &mut Context<'_>| {
        // After a panic the future is dropped unpolled, so nobody sees a broken invariant of it.
        catch_unwind(AssertUnwindSafe(|| driving.as_mut().poll(cx))).unwrap_or_else(|panic| {
            let answer = Answer::without_response(ClientOutcome::Panicked);
            Poll::Ready(Answer { io_refused: lacks_io(&*panic), ..answer })
        })
    };
    // Most answers are there at the first poll: those pay for no timer.
    let first = poll_fn(|cx| Poll::Ready(poll(cx))).await;
    match first {
        Poll::Ready(answer) => answer,
        Poll::Pending => timeout_at(dispatched + timeout, poll_fn(poll))
            .await
            .unwrap_or_else(|_| Answer::without_response(ClientOutcome::Timeout)),
    }
}

async fn drive<S: InProcess>(
    service: &mut S,
    request: &mut Option<Request<Bytes>>,
    failures: &Failures,
    wanted: Wanted<'_>,
) -> Answer {
    let broken = |error: Box<dyn Error + Send + Sync>| {
        failures.note(&*error);
        Answer::without_response(ClientOutcome::TransportError)
    };
    if let Err(error) = poll_fn(|cx| service.poll_ready(cx)).await {
        return broken(error.into());
    }
    let request = request.take().unwrap_or_default().map(|body| {
        // An empty axum body costs no allocation, a full one does.
        if body.is_empty() { AxumBody::empty() } else { AxumBody::from(body) }
    });
    let response = match service.call(request).await {
        Ok(response) => response,
        Err(error) => return broken(error.into()),
    };
    let (head, body) = response.into_parts();
    let mut answer = Answer {
        outcome: ClientOutcome::of_status(head.status),
        bytes: 0,
        shed: head.status == StatusCode::SERVICE_UNAVAILABLE,
        io_refused: false,
    };
    let mut body = pin!(body);
    let mut kept = wanted.reply.is_some().then(BytesMut::new);
    let mut trailers = None;
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame {
            Ok(frame) => {
                let mut data = match frame.into_data() {
                    Ok(data) => data,
                    Err(frame) => {
                        trailers = frame.into_trailers().ok();
                        continue;
                    }
                };
                answer.bytes += data.remaining() as u64;
                if let Some(kept) = &mut kept {
                    let room = MAX_KEPT.saturating_sub(kept.len());
                    kept.put((&mut data).take(room));
                }
            }
            Err(error) => {
                // What came until then has come.
                answer.outcome = broken(error.into()).outcome;
                break;
            }
        }
    }
    if let Some(told) = wanted.told {
        let record = server_timing::record(&head.headers, trailers.as_ref());
        *told = record.map(|record| (record, head.status));
    }
    if let (Some(reply), Some(kept)) = (wanted.reply, kept) {
        reply.status = head.status;
        reply.headers = head.headers;
        reply.body = kept.freeze();
    }
    answer
}

/// Is this how tokio says that its runtime has no I/O?
fn lacks_io(panic: &(dyn Any + Send)) -> bool {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.is_some_and(|text| text.contains("IO is disabled"))
}
