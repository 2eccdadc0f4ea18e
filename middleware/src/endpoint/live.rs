//! `GET /perf/live`: a snapshot a second, as server-sent events.

use std::{
    convert::Infallible,
    pin::Pin,
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
    task::{JoinHandle, spawn_blocking},
    time::{Instant, Interval, MissedTickBehavior, interval},
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

pub(super) async fn show(perf: Perf, headers: HeaderMap, query: Asked<View>) -> Response {
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
        Ok((head, Body::new(Live::new(perf.onlooker(), window))).into_response())
    };
    varying(answer().unwrap_or_else(|problem| problem.response(&headers)))
}

/// The stream. There is nothing in it but snapshots: whoever hears none for some seconds knows that there
/// is none, and no comment in between pretends otherwise.
struct Live {
    onlooker: Onlooker,
    window: Option<Window>,
    ticks: Interval,
    until: Instant,
    /// A snapshot that is being taken.
    taken: Option<JoinHandle<Option<Bytes>>>,
    ended: bool,
}

impl Live {
    fn new(onlooker: Onlooker, window: Option<Window>) -> Self {
        let mut ticks = interval(STEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { onlooker, window, ticks, until: Instant::now() + LIFE, taken: None, ended: false }
    }

    /// The next snapshot, as an event; `None` if those who counted have gone.
    fn take(&self) -> JoinHandle<Option<Bytes>> {
        let (onlooker, window) = (self.onlooker.clone(), self.window);
        spawn_blocking(move || {
            let json = json(&onlooker.read(window)?);
            Some([b"data: ", &json[..], b"\n\n"].concat().into())
        })
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
                let event = ready!(Pin::new(taken).poll(cx));
                self.taken = None;
                // An error means that the runtime is shutting down.
                if let Ok(Some(event)) = event {
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
                    self.taken = Some(self.take());
                }
            }
        }
        Poll::Ready(None)
    }
}
