//! A script, run: a service that does what it says, clients that do, and the threads.

use std::{
    io,
    panic::{AssertUnwindSafe, resume_unwind},
    pin::Pin,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    task::{Context, Poll, ready},
    thread::{self, ScopedJoinHandle},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{FutureExt, future::join_all};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use parallax_middleware::{
    BypassPolicy, LoadMark, Perf, Probe, ProbeSource, ServerRecord, Snapshot,
};
use tokio::{
    runtime::{Builder, Handle},
    time::{Instant, Sleep, sleep, sleep_until, timeout_at},
};
use tower::{ServiceExt, layer::util::Identity};

use crate::layer::{
    model::script::{Answer, Client, End, Finish, Gives, Length, Reply, Script, Scripted, Target},
    responses::SUM,
};

/// A request's script, and the record that its probe brought back, if it had one.
pub(crate) type Recorded<'s> = (&'s Scripted, Option<ServerRecord>);

/// Runs each thread's requests so many times, all threads at once, under the layer of `perf`. Meanwhile
/// `watch` sees snapshots, one after the other.
pub(crate) fn run<'s>(
    perf: &Perf,
    script: &'s Script,
    rounds: usize,
    mut watch: impl FnMut(Snapshot) + Send,
) -> Vec<Recorded<'s>> {
    let app = app(perf);
    let elsewhere = Arc::new(Elsewhere::new());
    let (ready, over) = (Barrier::new(script.len()), AtomicBool::new(false));
    thread::scope(|scope| {
        let senders: Vec<_> = script
            .iter()
            .map(|requests| {
                scope.spawn(|| {
                    ready.wait();
                    play(&app, requests, rounds, &elsewhere)
                })
            })
            .collect();
        scope.spawn(|| {
            while !over.load(Relaxed) {
                watch(perf.snapshot());
            }
        });
        let recorded = senders.into_iter().map(ScopedJoinHandle::join).collect::<Vec<_>>();
        over.store(true, Relaxed);
        recorded.into_iter().flat_map(|played| played.expect("nothing panics unseen")).collect()
    })
}

fn app(perf: &Perf) -> Router {
    Router::new()
        .route("/items/{id}", get(perform).post(perform))
        .route("/users/{id}/orders", get(perform))
        .layer(perf.bypass(BypassPolicy::in_process()).around(Identity::new()))
        .layer(perf.layer())
}

/// One thread's requests, by a clock of their own.
fn play<'s>(
    app: &Router,
    requests: &'s [Scripted],
    rounds: usize,
    elsewhere: &Arc<Elsewhere>,
) -> Vec<Recorded<'s>> {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without sockets").block_on(async {
        let began = Instant::now();
        let probes = ProbeSource::new();
        let all = requests.iter().flat_map(|request| std::iter::repeat_n(request, rounds));
        let played = all.map(async |request| {
            let probe = request.paired.then(|| probes.probe());
            let sent = send(app.clone(), began, request.clone(), probe.clone(), elsewhere.clone());
            tokio::spawn(sent).await.expect("its panics are caught");
            let record = probe.map(|probe| probe.record().cloned().expect("the request is over"));
            (request, record)
        });
        join_all(played).await
    })
}

async fn send(
    app: Router,
    began: Instant,
    scripted: Scripted,
    probe: Option<Probe>,
    elsewhere: Arc<Elsewhere>,
) {
    sleep_until(began + scripted.starts).await;
    let request = request(&scripted, probe);
    let Client { pause, frames, leaves, finish } = scripted.client;
    let leaves = Instant::now() + leaves;
    let mut call = Box::pin(AssertUnwindSafe(app.oneshot(request)).catch_unwind());
    let response = match timeout_at(leaves, &mut call).await {
        Ok(Ok(response)) => response.expect("routers do not fail"),
        // A panic: nobody waits any longer.
        Ok(Err(_)) => return,
        Err(_) if finish == Finish::Dropped => return,
        Err(_) => return elsewhere.run(move || drop(call)),
    };
    let mut body = response.into_body();
    for _ in 0..frames {
        let frame = async {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            AssertUnwindSafe(body.frame()).catch_unwind().await
        };
        match timeout_at(leaves, frame).await {
            Ok(Ok(Some(Ok(_)))) => {}
            Ok(_) => return,
            Err(_) => break,
        }
    }
    match finish {
        Finish::Dropped => {}
        Finish::DroppedElsewhere => elsewhere.run(move || drop(body)),
        Finish::ReadElsewhere => elsewhere.run(move || read_what_is_ready(body)),
    }
}

fn read_what_is_ready(mut body: Body) {
    let mut next = || AssertUnwindSafe(body.frame()).catch_unwind().now_or_never();
    while let Some(Ok(Some(Ok(_)))) = next() {}
}

fn request(scripted: &Scripted, probe: Option<Probe>) -> Request {
    let (method, path) = match scripted.target {
        Target::GetItem => ("GET", "/items/7"),
        Target::HeadItem => ("HEAD", "/items/7"),
        Target::PostItem => ("POST", "/items/7"),
        Target::GetOrders => ("GET", "/users/7/orders"),
        Target::DeleteItem => ("DELETE", "/items/7"),
        Target::BrewItem => ("BREW", "/items/7"),
        Target::Nowhere => ("GET", "/nowhere"),
        Target::BrewNowhere => ("BREW", "/items"),
    };
    let mut mark = LoadMark::new();
    if scripted.passes {
        mark = mark.past_limiter();
    }
    if let Some(probe) = probe {
        mark = mark.paired(probe);
    }
    let request = Request::builder().method(method).uri(path).extension(scripted.answer.clone());
    // Without anything to say, without a mark: as requests from elsewhere come.
    let request =
        if scripted.passes || scripted.paired { request.extension(mark) } else { request };
    request.body(Body::empty()).expect("a valid request")
}

async fn perform(Extension(answer): Extension<Answer>) -> Response {
    if !answer.after.is_zero() {
        sleep(answer.after).await;
    }
    match answer.gives {
        Gives::Nothing => std::future::pending().await,
        Gives::Panic => panics(),
        Gives::Response { status, body } => {
            let status = StatusCode::from_u16(status).expect("in range");
            (status, body.into_response()).into_response()
        }
    }
}

/// Without a word on standard error: there are thousands.
fn panics() -> ! {
    resume_unwind(Box::new("on purpose"))
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        match self {
            Self::Empty => Body::empty().into_response(),
            Self::Whole(bytes) => Body::from(vec![b'x'; bytes]).into_response(),
            Self::Parts { chunks, ends, end, length, events } => {
                let total: u64 = chunks.iter().map(|(_, bytes)| *bytes as u64).sum();
                let promised = length.of(total);
                let known = matches!(length, Length::Known(_));
                let body = Parts {
                    head: Instant::now(),
                    chunks: chunks.into_iter(),
                    ends,
                    end,
                    missing: promised.filter(|_| known),
                    next: None,
                    timer: None,
                };
                let mut response = Body::new(body).into_response();
                let headers = response.headers_mut();
                if let Some(promised) = promised.filter(|_| !known) {
                    headers.insert(CONTENT_LENGTH, promised.into());
                }
                if events {
                    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
                }
                response
            }
        }
    }
}

/// A body in parts that become ready one after the other, whether anybody asks for them or not.
struct Parts {
    head: Instant,
    chunks: std::vec::IntoIter<(Duration, usize)>,
    ends: Duration,
    end: End,
    /// What is still to come of the length that it knows.
    missing: Option<u64>,
    next: Option<(Duration, usize)>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Parts {
    fn poll_until(&mut self, at: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let ready = self.head + at;
        if Instant::now() < ready {
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(ready)));
            ready!(timer.as_mut().poll(cx));
        }
        self.timer = None;
        Poll::Ready(())
    }
}

impl HttpBody for Parts {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        if this.next.is_none() {
            this.next = this.chunks.next();
        }
        let Some((at, bytes)) = this.next else {
            if this.end == End::Never {
                return Poll::Pending;
            }
            ready!(this.poll_until(this.ends, cx));
            return Poll::Ready(match this.end {
                End::Quiet => None,
                End::Trailers => {
                    // Once.
                    this.end = End::Quiet;
                    let trailers = HeaderMap::from_iter([(SUM, HeaderValue::from_static("7"))]);
                    Some(Ok(Frame::trailers(trailers)))
                }
                End::Error => Some(Err(io::Error::other("the source is gone"))),
                End::Panic => panics(),
                End::Never => unreachable!("it is not waited for"),
            });
        };
        ready!(this.poll_until(at, cx));
        this.next = None;
        this.missing = this.missing.map(|missing| missing - bytes as u64);
        Poll::Ready(Some(Ok(Frame::data(vec![b'x'; bytes].into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.missing == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.missing.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

/// Another thread, where requests end that began on the thread that asks it.
struct Elsewhere {
    errands: mpsc::Sender<Errand>,
}

struct Errand {
    /// Whose clock is looked at.
    runtime: Handle,
    run: Box<dyn FnOnce() + Send>,
    done: mpsc::Sender<()>,
}

impl Elsewhere {
    fn new() -> Self {
        let (errands, received) = mpsc::channel::<Errand>();
        thread::spawn(move || {
            for Errand { runtime, run, done } in received {
                let _clock = runtime.enter();
                run();
                done.send(()).expect("it is waited for");
            }
        });
        Self { errands }
    }

    /// Blocks until it is done, so that the clock of the calling runtime stands still.
    fn run(&self, run: impl FnOnce() + Send + 'static) {
        let (done, wait) = mpsc::channel();
        let errand = Errand { runtime: Handle::current(), run: Box::new(run), done };
        self.errands.send(errand).expect("the thread is there");
        wait.recv().expect("it is done");
    }
}
