//! `GET /perf/live`: a snapshot a second, as server-sent events.
//!
//! However many streams there are, a window's snapshot is taken once a second, by whichever of its streams
//! comes first; where none is open, by nobody.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::Body,
    http::{
        HeaderMap,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body::Frame;
use tokio::{
    sync::OnceCell,
    task::spawn_blocking,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

use super::{Asked, EVENTS, View, accept, json, parameters, problem::Problem, varying, window};
use crate::{
    history::Window,
    perf::{Onlooker, Perf},
};

/// From one snapshot to the next.
const STEP: Duration = Duration::from_secs(1);
/// A service that shuts down waits for its responses. One that lasts no longer than this holds none up for
/// long, whoever watches; the client asks again, and misses nothing.
const LIFE: Duration = Duration::from_secs(20);
/// Sent last by a stream that has lasted long enough.
const RENEW: &[u8] = b"event: renew\ndata: {}\n\n";

/// The events of the seconds that are, for all streams.
pub(super) struct Events {
    /// When the seconds began.
    begun: Instant,
    /// Each with its second, by window. The streams alone keep them.
    latest: Mutex<[(u32, Weak<Event>); 1 + Window::ALL.len()]>,
}

/// A snapshot as it is sent, once one of those who want it has taken it.
type Event = OnceCell<Bytes>;

impl Events {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), latest: Mutex::default() })
    }

    /// How many seconds are over.
    fn second(&self) -> u32 {
        self.begun.elapsed().as_secs() as u32
    }

    /// When this second began.
    fn start(&self) -> Instant {
        self.begun + STEP * self.second()
    }

    /// The event of this second.
    fn now(&self, window: Option<Window>) -> Arc<Event> {
        let second = self.second();
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = &mut latest[window.map_or(0, |window| 1 + window as usize)];
        if let Some(event) = latest.1.upgrade().filter(|_| latest.0 == second) {
            return event;
        }
        let event = Arc::default();
        *latest = (second, Arc::downgrade(&event));
        event
    }

    /// Now, and whenever a second begins.
    fn ticks(&self) -> Interval {
        let mut ticks = interval_at(self.start(), STEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticks
    }
}

pub(super) async fn show(
    perf: Perf,
    events: Arc<Events>,
    headers: HeaderMap,
    query: Asked<View>,
) -> Response {
    perf.watch();
    let answer = || {
        let window = window(parameters(query)?.window.as_deref())?;
        if accept::choose(&headers, &[EVENTS]).is_none() {
            return Err(Problem::not_acceptable("/perf/live", &[EVENTS]));
        }
        // The last one is for proxies that would rather collect a response before they pass it on.
        let head = [
            (CONTENT_TYPE.as_str(), EVENTS),
            (CACHE_CONTROL.as_str(), "no-store"),
            ("x-accel-buffering", "no"),
        ];
        Ok((head, Body::new(Live::new(perf.onlooker(), events, window))).into_response())
    };
    varying(answer().unwrap_or_else(|problem| problem.response(&headers)))
}

/// The stream. There is nothing in it but snapshots: whoever hears none for some seconds knows that there
/// is none, and no comment in between pretends otherwise.
struct Live {
    onlooker: Onlooker,
    events: Arc<Events>,
    window: Option<Window>,
    ticks: Interval,
    until: Instant,
    /// Kept for those who come later in the same second.
    event: Arc<Event>,
    /// The event that is waited for.
    taken: Option<Pin<Box<dyn Future<Output = Option<Bytes>> + Send>>>,
    ended: bool,
}

impl Live {
    fn new(onlooker: Onlooker, events: Arc<Events>, window: Option<Window>) -> Self {
        let (ticks, event) = (events.ticks(), events.now(window));
        let until = events.start() + LIFE;
        Self { onlooker, events, window, ticks, until, event, taken: None, ended: false }
    }

    /// The event of this second; `None` if those who counted have gone, or the runtime is shutting down.
    fn take(&mut self) -> impl Future<Output = Option<Bytes>> + Send + use<> {
        self.event = self.events.now(self.window);
        let (event, onlooker, window) = (self.event.clone(), self.onlooker.clone(), self.window);
        let take = async move || {
            let snapshot = spawn_blocking(move || {
                let json = json(&onlooker.read(window)?);
                Some([b"data: ", &json[..], b"\n\n"].concat().into())
            });
            snapshot.await.ok().flatten().ok_or(())
        };
        async move { event.get_or_try_init(take).await.ok().cloned() }
    }
}

impl http_body::Body for Live {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = |bytes| Poll::Ready(Some(Ok(Frame::data(bytes))));
        while !self.ended {
            if let Some(taken) = &mut self.taken {
                let event = ready!(taken.as_mut().poll(cx));
                self.taken = None;
                if let Some(event) = event {
                    return frame(event);
                }
                self.ended = true;
            } else {
                ready!(self.ticks.poll_tick(cx));
                if self.onlooker.is_over() {
                    self.ended = true;
                } else if Instant::now() >= self.until {
                    self.ended = true;
                    return frame(Bytes::from_static(RENEW));
                } else {
                    self.taken = Some(Box::pin(self.take()));
                }
            }
        }
        Poll::Ready(None)
    }
}
