//! What a request pays for the layer, beside what it pays for others: `cargo bench -p parallax-middleware`.
//!
//! All candidates run in one process, in turn, round after round, so that whatever else the machine does
//! meets all of them alike; what counts is the median over the rounds of the difference to an empty layer
//! within the round. With `valgrind` installed, instructions are counted besides: those repeat to the digit.
//! The table goes into `docs/performance.md`, between its markers.
//!
//! `-- NAME...` runs only the empty layer and the candidates whose names contain one of these, and prints.
#![allow(missing_docs, reason = "a benchmark has no API")]

mod support;

use std::{
    env,
    fmt::Write as _,
    hint::black_box,
    pin::Pin,
    sync::{Arc, Barrier},
    task::{Context, Poll},
    thread,
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Body as _;
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};
use parallax_middleware::{LoadMark, Perf, Probe, ProbeSource};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::Service;

use crate::support::{median, write_tables};

/// Requests of one candidate in one round, per thread.
const REQUESTS: usize = 20_000;
const ROUNDS: usize = 25;
/// Requests between two counts of instructions; start-up cancels out.
const COUNTED: usize = 10_000;

#[derive(Clone, Copy, Eq, PartialEq)]
enum Candidate {
    Bare,
    Empty,
    Passing,
    Marked,
    Parallax,
    ParallaxProbe,
    Trace,
    Prometheus,
    OpenTelemetry,
}

impl Candidate {
    const ALL: [Self; 9] = [
        Self::Bare,
        Self::Empty,
        Self::Passing,
        Self::Marked,
        Self::Parallax,
        Self::ParallaxProbe,
        Self::Trace,
        Self::Prometheus,
        Self::OpenTelemetry,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare router",
            Self::Empty => "empty layer",
            Self::Passing => "a layer that only passes on",
            Self::Marked => "empty layer, requests with a probe",
            Self::Parallax => "Parallax",
            Self::ParallaxProbe => "Parallax, paired",
            Self::Trace => "tower-http TraceLayer",
            Self::Prometheus => "axum-prometheus",
            Self::OpenTelemetry => "opentelemetry-instrumentation-tower",
        }
    }

    /// A router of so many routes, with the candidate's layer around it.
    fn router(self, routes: usize) -> Router {
        let router = (0..routes).fold(Router::new(), |router, n| {
            router.route(&format!("/route-{n}/{{id}}"), get(|| async { "some text" }))
        });
        let router = match self {
            Self::Bare => router,
            Self::Empty | Self::Marked => router.layer(tower::layer::util::Identity::new()),
            Self::Passing => router.layer(tower::layer::layer_fn(Passing)),
            // With its endpoint, as in a service.
            Self::Parallax | Self::ParallaxProbe => {
                let perf = Perf::new();
                router.layer(perf.layer()).merge(perf.routes())
            }
            // Without a subscriber, as in a service that logs nothing of the kind.
            Self::Trace => router.layer(tower_http::trace::TraceLayer::new_for_http()),
            Self::Prometheus => router.layer(axum_prometheus::PrometheusMetricLayer::new()),
            Self::OpenTelemetry => {
                router.layer(opentelemetry_instrumentation_tower::http::server::Layer::new())
            }
        };
        router.with_state(())
    }
}

/// What every layer needs that looks at responses: a service and a future of its own. It does nothing.
#[derive(Clone)]
struct Passing<S>(S);

impl<S, R> Service<Request<R>> for Passing<S>
where
    S: Service<Request<R>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = PassingFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        PassingFuture { inner: self.0.call(request) }
    }
}

pin_project! {
    struct PassingFuture<F> {
        #[pin]
        inner: F,
    }
}

impl<F, E> Future for PassingFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().inner.poll(cx).map(|result| result.map(|response| response.map(Body::new)))
    }
}

/// What the layer does for each request that can be timed apart, and what it costs here: nanoseconds.
fn parts() -> [(&'static str, f64); 5] {
    let clock = quanta::Clock::new();
    let reference = Arc::new([0_u64; 16]);
    let weak = Arc::downgrade(&reference);
    let text = Bytes::from_static(b"some text");
    [
        (
            "two readings of the clock, and what lies between",
            each(|| {
                let entered = clock.raw();
                black_box(clock.delta_as_nanos(black_box(entered), clock.raw()));
            }),
        ),
        (
            "the same by the kernel's clock, as a paired request has them",
            each(|| {
                let entered = Instant::now();
                black_box(black_box(entered).elapsed().as_nanos() as u64);
            }),
        ),
        (
            "a reference of its own to the counters, and back",
            each(|| {
                black_box(weak.upgrade());
            }),
        ),
        (
            "the text in a body of its own again, once it is known to be whole",
            each(|| {
                drop(black_box(Body::from(text.clone())));
            }),
        ),
        ("looking into the request for a mark and for the route's template", {
            let mut extensions = http::Extensions::new();
            extensions.insert(0_u32);
            extensions.insert(0_u64);
            each(|| {
                black_box(extensions.get_mut::<LoadMark>().is_some());
                black_box(black_box(&extensions).get::<u64>());
            })
        }),
    ]
}

/// Nanoseconds for one of many.
fn each(mut part: impl FnMut()) -> f64 {
    const TIMES: u32 = 200_000;
    let round = |_| {
        let started = Instant::now();
        (0..TIMES).for_each(|_| part());
        started.elapsed().as_secs_f64() * 1e9 / f64::from(TIMES)
    };
    median((0..ROUNDS).map(round).collect())
}

/// Sends requests into a router from this thread, and drains the answers.
struct Client {
    router: Router,
    uris: Vec<Uri>,
    probe: Option<Probe>,
    answered: bool,
}

impl Client {
    fn new(candidate: Candidate, router: Router, routes: usize) -> Self {
        let uri = |n| format!("/route-{n}/7").parse().expect("a path");
        let answered = candidate == Candidate::ParallaxProbe;
        let marked = answered || candidate == Candidate::Marked;
        let probe = marked.then(|| ProbeSource::new().probe());
        Self { router, uris: (0..routes).map(uri).collect(), probe, answered }
    }

    async fn send(&mut self, requests: usize) {
        for n in 0..requests {
            let mut request = Request::new(Body::empty());
            request.uri_mut().clone_from(&self.uris[n % self.uris.len()]);
            if let Some(probe) = &mut self.probe {
                probe.renew();
                request.extensions_mut().insert(LoadMark::new().paired(probe.clone()));
            }
            let Ok(response) = self.router.call(request).await;
            let mut body = std::pin::pin!(response.into_body());
            while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
                black_box(frame.expect("the body is whole"));
            }
            if let Some(probe) = &self.probe {
                assert_eq!(probe.record().is_some(), self.answered);
            }
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Nanoseconds per request, as each of `threads` threads on one router sees it.
fn time(candidate: Candidate, router: &Router, routes: usize, threads: usize) -> f64 {
    let barrier = Barrier::new(threads);
    let one = || {
        let mut client = Client::new(candidate, router.clone(), routes);
        runtime().block_on(async {
            client.send(REQUESTS / 10).await;
            barrier.wait();
            let started = Instant::now();
            client.send(REQUESTS).await;
            started.elapsed()
        })
    };
    let slowest = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).fold(Duration::ZERO, Duration::max)
    });
    slowest.as_secs_f64() * 1e9 / REQUESTS as f64
}

/// Instructions per request; `None` without callgrind. Only those within [`counted`]: what comes before is not
/// the same each time.
fn instructions(candidate: Candidate, routes: usize) -> Option<f64> {
    let arguments = |requests: usize| {
        let numbers = [candidate as usize, routes, requests];
        ["--count".to_owned()].into_iter().chain(numbers.map(|n| n.to_string())).collect()
    };
    let options = ["--collect-atstart=no", "--toggle-collect=overhead::counted*"];
    support::instructions(&options, arguments, COUNTED)
}

/// The part of the command that callgrind runs.
fn count(arguments: &[String]) {
    let number = |n: usize| arguments[n].parse::<usize>().expect("a number");
    let (candidate, routes) = (Candidate::ALL[number(0)], number(1));
    prepare(candidate);
    let mut client = Client::new(candidate, candidate.router(routes), routes);
    counted(&mut client, number(2));
}

/// The part that callgrind counts.
#[inline(never)]
fn counted(client: &mut Client, requests: usize) {
    runtime().block_on(client.send(requests));
}

/// What a candidate records into: memory, exported hardly ever. One that is not asked for is not there, so
/// that its threads do not count.
fn prepare(candidate: Candidate) {
    match candidate {
        // It wants a runtime, for a task that is idle meanwhile.
        Candidate::Prometheus => {
            runtime().block_on(async { axum_prometheus::PrometheusMetricLayer::pair() });
        }
        Candidate::OpenTelemetry => {
            let reader = PeriodicReader::builder(InMemoryMetricExporter::default())
                .with_interval(Duration::from_secs(3600))
                .build();
            let provider = SdkMeterProvider::builder().with_reader(reader).build();
            opentelemetry::global::set_meter_provider(provider);
        }
        _ => {}
    }
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--count") {
        return count(&arguments[at + 1..]);
    }
    Candidate::ALL.into_iter().for_each(prepare);
    let names: Vec<&String> = arguments.iter().filter(|name| !name.starts_with("--")).collect();
    let asked = |candidate: &Candidate| {
        names.is_empty()
            || *candidate == Candidate::Empty
            || names.iter().any(|name| candidate.name().contains(*name))
    };
    let candidates: Vec<Candidate> = Candidate::ALL.into_iter().filter(asked).collect();
    let empty = candidates.iter().position(|c| *c == Candidate::Empty).expect("it is always asked");
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test --benches`: only that every candidate answers.
        for candidate in Candidate::ALL {
            time(candidate, &candidate.router(2), 2, 2);
        }
        return;
    }

    let mut table = String::from(
        "| | routes | 1 thread, ns | 2 threads, ns | 2 threads over 1, rate | instructions |\n\
         |---|---:|---:|---:|---:|---:|\n",
    );
    for routes in [1, 50] {
        let routers: Vec<Router> = candidates.iter().map(|c| c.router(routes)).collect();
        let mut times = vec![[Vec::new(), Vec::new()]; candidates.len()];
        for round in 0..ROUNDS {
            eprintln!("{routes} routes, round {} of {ROUNDS}", round + 1);
            for step in 0..candidates.len() {
                // Another one is first in each round.
                let n = (step + round) % candidates.len();
                for threads in [1, 2] {
                    let time = time(candidates[n], &routers[n], routes, threads);
                    times[n][threads - 1].push(time);
                }
            }
        }
        let counts: Vec<Option<f64>> =
            candidates.iter().map(|candidate| instructions(*candidate, routes)).collect();
        for (n, candidate) in candidates.iter().enumerate() {
            // The bare router and the empty layer as they are, the others over the empty layer.
            let absolute = matches!(candidate, Candidate::Bare | Candidate::Empty);
            let over = |threads: usize| {
                let mine = times[n][threads].iter();
                if absolute {
                    format!("{:.0}", median(mine.copied().collect()))
                } else {
                    let over = mine.zip(&times[empty][threads]).map(|(a, b)| a - b);
                    format!("{:+.0}", median(over.collect()))
                }
            };
            let scaling = times[n][0].iter().zip(&times[n][1]).map(|(one, two)| 2.0 * one / two);
            let instructions = match (counts[n], counts[empty]) {
                (Some(count), _) if absolute => format!("{count:.0}"),
                (Some(count), Some(empty)) => format!("{:+.0}", count - empty),
                _ => "–".to_owned(),
            };
            let _ = writeln!(
                table,
                "| {} | {routes} | {} | {} | {:.2} | {instructions} |",
                candidate.name(),
                over(0),
                over(1),
                median(scaling.collect()),
            );
        }
    }
    let mut parts_table = String::from("| part | ns |\n|---|---:|\n");
    for (part, ns) in parts() {
        let _ = writeln!(parts_table, "| {part} | {ns:.0} |");
    }
    print!("{table}\n{parts_table}");
    if names.is_empty() {
        write_tables("performance.md", "overhead", &table);
        write_tables("performance.md", "parts", &parts_table);
    }
}
