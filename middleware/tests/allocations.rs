//! What is allocated: nothing per request but the box of a body that is wrapped, and a fixed amount per route.
//!
//! A binary of its own, because counting takes another allocator, and that one is the whole binary's. It counts
//! by thread, so tests do not disturb each other.

use std::{
    error, fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    thread,
};

use allocation_counter::measure;
use axum::{
    Router,
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::{Method, StatusCode, header::CONTENT_TYPE},
    response::Response,
    routing::{RouterIntoService, get},
};
use http_body::{Frame, SizeHint};
use parallax_middleware::{LoadMark, Outcome, Perf, ProbeSource};
use tower::{Service, layer::util::Identity};

/// Requests that are counted in one go.
const N: u64 = 1_000;

/// What the record of a route takes on one thread if requests end in every way: as the documentation says.
const SHARD: i64 = 64 * 1024;

/// What a client does with a request.
type Client = fn(&mut RouterIntoService<Body>, Request);

#[test]
fn a_response_without_a_body_costs_no_allocation() {
    for (method, path) in [
        ("GET", "/nothing"),
        ("GET", "/status/204"),
        ("GET", "/status/304"),
        ("GET", "/status/400"),
        ("GET", "/status/429"),
        ("GET", "/status/500"),
        ("HEAD", "/whole"),
        ("HEAD", "/stream"),
        ("DELETE", "/whole"),
        ("BREW", "/whole"),
    ] {
        assert_adds(0, method, path, reads);
        assert_adds(0, method, path, leaves_with_the_head);
    }
}

#[test]
fn a_request_that_ends_before_its_head_costs_no_allocation() {
    assert_adds(0, "GET", "/never", leaves_before_the_head);
    assert_adds(0, "GET", "/panics", sees_a_panic);
}

#[test]
fn a_body_that_is_wrapped_costs_its_box() {
    let paths =
        ["/stream", "/sized", "/events", "/breaks", "/stream/404", "/stream/429", "/stream/500"];
    for path in paths {
        assert_adds(1, "GET", path, reads);
        assert_adds(1, "GET", path, leaves_with_the_head);
    }
}

/// It is looked at, and then goes out in a new box: nothing can be put back into axum's.
#[test]
fn a_body_in_memory_costs_a_box_too() {
    for path in ["/whole", "/refused"] {
        assert_adds(1, "GET", path, reads);
        assert_adds(1, "GET", path, leaves_with_the_head);
    }
}

/// Each takes a note along that it is counted, for the fallback of the routes of `/perf`.
#[test]
fn a_path_that_no_route_matches_costs_the_note_that_it_is_counted() {
    for method in ["GET", "BREW"] {
        for mark in Mark::ALL {
            // Beside a mark, the note finds the request's extensions full.
            let growth = u64::from(mark != Mark::None);
            assert_eq!(added(method, "/nowhere", mark, reads), 1 + growth, "{method}, {mark:?}");
        }
    }
}

#[test]
fn a_route_takes_64_kib_a_thread_if_its_requests_end_in_every_way() {
    let perf = Perf::new();
    let app = routes().layer(perf.layer());
    let end_in_every_way = |app: &Router| {
        let mut service = app.clone().into_service();
        for path in ["/stream/200", "/stream/429", "/stream/500"] {
            reads(&mut service, request("GET", path));
        }
    };
    // What is made once for all routes, as the thread's place among threads.
    let warm = |app: &Router| {
        reads(&mut app.clone().into_service(), request("GET", "/whole"));
    };
    warm(&app);
    let first = measure(|| end_in_every_way(&app)).bytes_current;
    assert!((SHARD / 2..=SHARD + ROUTE).contains(&first), "{first} bytes");
    assert_eq!(measure(|| end_in_every_way(&app)).bytes_current, 0);

    let (app, second) = thread::spawn(move || {
        warm(&app);
        let bytes = measure(|| end_in_every_way(&app)).bytes_current;
        (app, bytes)
    })
    .join()
    .expect("no panic");
    assert!((SHARD / 2..=SHARD).contains(&second), "{second} bytes");
    drop(app);
    let snapshot = perf.snapshot();
    let counts = snapshot.route("GET", "/stream/{status}").expect("it has been asked for");
    let users = &counts.users;
    let of = [&users.ok, &users.first_byte, &users.limited, &users.failed];
    assert!(of.into_iter().all(|histogram| histogram.count() >= 3), "{counts:?}");
}

#[test]
fn paths_and_methods_that_nobody_knows_take_no_memory() {
    let perf = Perf::new();
    let mut service = routes().layer(perf.layer()).into_service();
    let mut send = |n: u64| {
        let method = Method::from_bytes(format!("M{n}").as_bytes()).expect("a token");
        for path in [format!("/wp-admin/{n}.php?page={n}"), "/whole".to_owned()] {
            let mut request = request("GET", &path);
            *request.method_mut() = method.clone();
            reads(&mut service, request);
        }
    };
    send(0);
    let strangers = 100_000;
    let taken = measure(|| (1..=strangers).for_each(&mut send));
    assert_eq!(taken.bytes_current, 0, "{taken:?}");
    assert_eq!(perf.snapshot().outcome(Outcome::ClientError), 2 * (strangers + 1));
}

/// What a route takes once, besides what it takes on each thread: its name, and where to find the threads'.
const ROUTE: i64 = 2 * 1024;

/// Asserts that a request costs exactly so many allocations more under the layer than under one that does
/// nothing, whether it carries a probe or not.
fn assert_adds(expected: u64, method: &str, path: &str, client: Client) {
    for mark in Mark::ALL {
        assert_eq!(added(method, path, mark, client), expected, "{method} {path}, {mark:?}");
    }
}

/// How many allocations more each request costs under the layer than under one that does nothing.
fn added(method: &str, path: &str, mark: Mark, client: Client) -> u64 {
    let perf = Perf::new();
    let bare = allocations(routes().layer(Identity::new()), method, path, mark, client);
    let recorded = allocations(routes().layer(perf.layer()), method, path, mark, client);
    let snapshot = perf.snapshot();
    assert_eq!((snapshot.entered(), snapshot.recorded()), (2 * N, 2 * N), "{method} {path}");
    assert_eq!(snapshot.paired(), if mark == Mark::Probe { 2 * N } else { 0 });
    let added = recorded.checked_sub(bare).expect("the layer saves none");
    assert_eq!(added % N, 0, "{method} {path}, {mark:?}: {added} in {N} requests");
    added / N
}

/// How many allocations there are in `N` requests, after as many. The requests themselves, and their probes,
/// are the client's.
fn allocations(app: Router, method: &str, path: &str, mark: Mark, client: Client) -> u64 {
    // Built once: left to itself, axum puts a router's layers around its handlers anew for each request.
    let mut service = app.with_state(()).into_service();
    let probes = ProbeSource::new();
    let marked = |_| mark.put_on(request(method, path), &probes);
    let requests = || (0..N).map(marked).collect::<Vec<_>>();
    let mut send = |requests: Vec<Request>| {
        for request in requests {
            client(&mut service, request);
        }
    };
    send(requests());
    let requests = requests();
    measure(|| send(requests)).count_total
}

/// What a request carries from a client in this process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mark {
    None,
    Plain,
    Probe,
}

impl Mark {
    const ALL: [Self; 3] = [Self::None, Self::Plain, Self::Probe];

    fn put_on(self, mut request: Request, probes: &ProbeSource) -> Request {
        let mark = match self {
            Self::None => return request,
            Self::Plain => LoadMark::new(),
            Self::Probe => LoadMark::new().paired(probes.probe()),
        };
        request.extensions_mut().insert(mark);
        request
    }
}

fn request(method: &str, path: &str) -> Request {
    Request::builder().method(method).uri(path).body(Body::empty()).expect("a valid request")
}

/// Calls the service, which answers at once.
fn answer(service: &mut RouterIntoService<Body>, request: Request) -> Response {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Service::<Request>::poll_ready(service, &mut cx).is_ready());
    match pin!(service.call(request)).poll(&mut cx) {
        Poll::Ready(Ok(response)) => response,
        Poll::Pending => panic!("it waits"),
    }
}

fn reads(service: &mut RouterIntoService<Body>, request: Request) {
    let mut body = pin!(answer(service, request).into_body());
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(Ok(_))) = body.as_mut().poll_frame(&mut cx) {}
}

fn leaves_with_the_head(service: &mut RouterIntoService<Body>, request: Request) {
    drop(answer(service, request));
}

fn leaves_before_the_head(service: &mut RouterIntoService<Body>, request: Request) {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(pin!(service.call(request)).poll(&mut cx).is_pending());
}

fn sees_a_panic(service: &mut RouterIntoService<Body>, request: Request) {
    catch_unwind(AssertUnwindSafe(|| answer(service, request))).expect_err("it panics");
}

fn routes() -> Router {
    Router::new()
        .route("/whole", get(async || "some text"))
        .route("/nothing", get(async || ""))
        .route("/refused", get(async || (StatusCode::BAD_REQUEST, "some text")))
        .route("/status/{status}", get(async |request: Request| status(&request)))
        .route("/stream", get(async || Body::new(Parts::stream())))
        .route(
            "/stream/{status}",
            get(async |request: Request| (status(&request), Body::new(Parts::stream()))),
        )
        .route("/sized", get(async || Body::new(Parts { sized: true, ..Parts::stream() })))
        .route(
            "/events",
            get(async || ([(CONTENT_TYPE, "text/event-stream")], Body::new(Parts::stream()))),
        )
        .route("/breaks", get(async || Body::new(Parts { breaks: true, ..Parts::stream() })))
        .route("/never", get(std::future::pending::<StatusCode>))
        .route("/panics", get(panics))
}

/// The status that the path ends with.
fn status(request: &Request) -> StatusCode {
    let (_, status) = request.uri().path().rsplit_once('/').expect("a path");
    status.parse().expect("a status")
}

async fn panics() -> StatusCode {
    resume_unwind(Box::new("on purpose"))
}

/// A body that does not come in one piece.
struct Parts {
    left: usize,
    /// Does it know its length?
    sized: bool,
    breaks: bool,
}

/// Takes no memory of its own.
#[derive(Debug)]
struct Gone;

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the source is gone")
    }
}

impl error::Error for Gone {}

const PART: &[u8] = b"some text";

impl Parts {
    fn stream() -> Self {
        Self { left: 3, sized: false, breaks: false }
    }
}

impl HttpBody for Parts {
    type Data = Bytes;
    type Error = Gone;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Gone>>> {
        Poll::Ready(match self.left.checked_sub(1) {
            None => None,
            Some(0) if self.breaks => Some(Err(Gone)),
            Some(left) => {
                self.left = left;
                Some(Ok(Frame::data(Bytes::from_static(PART))))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.sized && self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        let length = (self.left * PART.len()) as u64;
        if self.sized { SizeHint::with_exact(length) } else { SizeHint::new() }
    }
}
