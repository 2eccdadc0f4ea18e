//! A service of this process, behind each transport: both sides see the same requests as by a direct call.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri},
    routing::{any, get},
};
use bytes::Bytes;
use futures_util::stream;
use parallax_loadgen::{Http, LoadTest, Scenario, Stop, Transport, Verdict, render};
use parallax_middleware::{LoadMark, Perf};

use super::{CONNECTIONS, SHORT, assert_conserved, millis, run};
use crate::support::{limited, wire};

fn bare_app() -> Router {
    Router::new()
        .route("/fast", get(|| async { "tea" }))
        .route("/error", get(|| async { StatusCode::INTERNAL_SERVER_ERROR }))
        .route("/streamed", get(streamed))
        .route("/panic", get(panics))
        .route("/never", get(std::future::pending::<StatusCode>))
}

fn app() -> Router {
    bare_app().layer(Perf::new().layer())
}

/// A body in three parts, each a turn of the runtime later than the one before.
async fn streamed() -> Body {
    Body::from_stream(stream::unfold(0, |part| async move {
        tokio::task::yield_now().await;
        (part < 3).then(|| (Ok::<_, std::io::Error>(Bytes::from_static(b"tea")), part + 1))
    }))
}

async fn panics() -> StatusCode {
    // Without the hook's message on standard error.
    std::panic::resume_unwind(Box::new("on purpose"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_count_the_same_requests_and_each_is_paired() {
    for transport in CONNECTIONS {
        let test = LoadTest::new(app()).get("/fast").get("/streamed").users(8);
        let run = run(test.transport(transport)).await;
        assert_conserved(&run.conservation);
        assert_eq!(run.plan.transport, transport.to_string());
        let server = run.conservation.server.as_ref().expect("the layer answered");
        assert_eq!(server.recorded, run.conservation.sent);
        assert_eq!((server.not_seen, server.foreign), (0, 0));
        assert_eq!(run.conservation.outcomes.ok, run.conservation.sent, "{:?}", run.errors);
        assert_eq!(run.pairs.paired, run.conservation.outcomes.ok);
        let names: Vec<&str> = run.client.routes.iter().map(|row| row.route.as_str()).collect();
        assert_eq!(names, ["GET /fast", "GET /streamed"]);
        assert!(run.errors.is_empty(), "{:?}", run.errors);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_rate_is_kept_over_connections() {
    for transport in CONNECTIONS {
        let run = run(LoadTest::new(app()).get("/fast").rate(400).transport(transport)).await;
        assert_conserved(&run.conservation);
        assert_eq!(run.conservation.scheduled, 100);
        assert_eq!(run.pairs.paired, run.conservation.outcomes.ok);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_kept_and_counted() {
    for (transport, at_most) in [(Transport::Tcp(Http::One), 40), (Transport::Tcp(Http::Two), 1)] {
        let run = run(LoadTest::new(app()).get("/fast").users(10).transport(transport)).await;
        let opened = run.connections.expect("there are connections");
        assert!((1..=at_most).contains(&opened), "{opened} over {transport}");
        assert!(run.conservation.sent > 2 * opened, "{} requests", run.conservation.sent);
    }
    assert_eq!(run(LoadTest::new(app()).get("/fast")).await.connections, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_the_client_gives_up_is_cancelled_on_the_servers_side_and_paired() {
    for transport in CONNECTIONS {
        let test = LoadTest::new(app()).get("/never").get("/fast").users(4).timeout(millis(40));
        let run = run(test.transport(transport)).await;
        assert_conserved(&run.conservation);
        assert!(run.conservation.outcomes.timeout > 0, "{transport}");
        let view = run.server.expect("the layer answered");
        let cancelled: u64 = view.routes.iter().map(|route| route.outcomes.cancelled).sum();
        assert_eq!(cancelled, run.conservation.outcomes.timeout, "{transport}");
        assert!(view.routes.iter().all(|route| route.in_flight == 0));
        assert_eq!(run.pairs.paired, run.conservation.sent, "{transport}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_of_the_service_is_a_broken_connection_to_its_client() {
    for transport in CONNECTIONS {
        let test = LoadTest::new(app()).get("/panic").get("/fast").users(4);
        let run = run(test.transport(transport)).await;
        assert_conserved(&run.conservation);
        assert!(run.conservation.outcomes.transport_error > 0, "{transport}");
        let view = run.server.as_ref().expect("the layer answered");
        let panicked: u64 = view.routes.iter().map(|route| route.outcomes.panicked).sum();
        assert_eq!(panicked, run.conservation.outcomes.transport_error, "{transport}");
        super::assert_told(&run, "no answer from");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_answer_is_the_same_over_a_connection() {
    for transport in CONNECTIONS {
        let run =
            run(LoadTest::new(app()).get("/error").get("/fast").users(2).transport(transport))
                .await;
        assert_conserved(&run.conservation);
        assert!(run.conservation.outcomes.server_error > 0);
        assert_eq!(run.pairs.paired, run.conservation.sent);
    }
}

/// Says what came, and refuses what should not have.
async fn echo(method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> StatusCode {
    let extra = headers.get("x-extra").map(HeaderValue::as_bytes);
    let as_sent = method == Method::POST
        && uri.path() == "/echo/a%20b"
        && uri.query() == Some("q=tea&n=1")
        && extra == Some(b"yes")
        && body == "milk"
        && !headers.contains_key("x-parallax-mark");
    if as_sent { StatusCode::OK } else { StatusCode::IM_A_TEAPOT }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_arrives_as_it_was_made_and_without_the_generators_own_header() {
    let mix = Scenario::new().step("POST /echo", 1, |_| {
        axum::http::Request::post("/echo/a%20b?q=tea&n=1")
            .header("x-extra", "yes")
            .body(Bytes::from_static(b"milk"))
            .expect("it is a request")
    });
    for transport in CONNECTIONS.into_iter().chain([Transport::Direct]) {
        let app = Router::new().route("/echo/{path}", any(echo)).layer(Perf::new().layer());
        let run = run(LoadTest::new(app).scenario(mix.clone()).users(2).transport(transport)).await;
        assert_eq!(run.conservation.outcomes.ok, run.conservation.sent, "{transport}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pass_of_a_limiter_goes_through_connections() {
    for transport in CONNECTIONS {
        let test = LoadTest::new(limited(bare_app())).get("/fast").users(2).transport(transport);
        let passing = run(test.pass_limiter(true)).await;
        assert_eq!(passing.conservation.outcomes.ok, passing.conservation.sent, "{transport}");
        let limiter =
            passing.server.expect("the layer answered").limiter.expect("it did something");
        assert_eq!((limiter.bypassed, limiter.limited), (passing.conservation.sent, 0));

        let test = LoadTest::new(limited(bare_app())).get("/fast").users(2).transport(transport);
        let stopped = run(test).await;
        assert_eq!(stopped.conservation.outcomes.limited, stopped.conservation.sent);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_that_somebody_else_forges_does_nothing_and_does_not_arrive() {
    type Address = Arc<(AtomicU64, OnceLock<String>)>;
    /// Tells the test where it listens, and a forger what got through.
    async fn look(State(address): State<Address>, request: Request) -> StatusCode {
        let host = request.headers()["host"].to_str().expect("an address");
        // Not before the load has begun that counts.
        if address.0.fetch_add(1, Relaxed) == 10 {
            address.1.get_or_init(|| host.to_owned());
        }
        let marked = request.extensions().get::<LoadMark>().is_some();
        let told = request.headers().contains_key("x-parallax-mark");
        match (marked, told) {
            (true, false) => StatusCode::OK,
            (false, false) => StatusCode::FORBIDDEN,
            (_, true) => StatusCode::IM_A_TEAPOT,
        }
    }
    let (address, stop) = (Address::default(), Stop::new());
    let app = Router::new().route("/", get(look)).with_state(address.clone());
    let forger = tokio::spawn({
        let stop = stop.clone();
        async move {
            let host = crate::support::eventually("the service is called", || async {
                address.1.get().cloned()
            })
            .await;
            let mut connection = wire::Connection::open(host.parse().expect("an address")).await;
            let mut statuses = Vec::new();
            for value in ["", "0", "00000000000000000000000000000000", "true", &"f".repeat(4_000)] {
                connection
                    .write(&format!(
                        "GET / HTTP/1.1\r\nhost: {host}\r\nx-parallax-mark: {value}\r\n\
                         X-Parallax-Mark: 1\r\n\r\n"
                    ))
                    .await;
                statuses.push(connection.answer().await.0);
            }
            stop.stop();
            statuses
        }
    });
    let test = LoadTest::new(app.layer(Perf::new().layer())).get("/").users(2).stop_on(&stop);
    let test = test.transport(Transport::Tcp(Http::One)).warmup(millis(0));
    let run = test.duration(std::time::Duration::from_secs(60)).run_part().await.expect("valid");
    assert_eq!(forger.await.expect("no panic"), [403; 5]);
    assert_conserved(&run.conservation);
    assert_eq!(run.conservation.outcomes.ok, run.conservation.sent);
    assert_eq!(run.pairs.paired, run.conservation.sent);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_of_a_run_is_closed_to_others_and_gone_afterwards() {
    use std::{fs, os::unix::fs::PermissionsExt};

    let ours = |path: &std::path::Path| {
        // Its own descriptors tell a process which sockets it listens on.
        let table = fs::read_to_string("/proc/net/unix").expect("this is Linux");
        table.lines().any(|line| line.ends_with(&path.display().to_string()))
    };
    let found: Arc<OnceLock<std::path::PathBuf>> = Arc::default();
    let look = {
        let found = found.clone();
        move || async move {
            let folders = fs::read_dir(std::env::temp_dir()).expect("there is one");
            let sockets = folders.flatten().map(|folder| folder.path().join("service.sock"));
            let mut sockets = sockets.filter(|path| path.exists() && ours(path));
            if let Some(path) = sockets.next() {
                let folder = path.parent().expect("it has one");
                let mode = fs::metadata(folder).expect("it is there").permissions().mode();
                assert_eq!(mode & 0o777, 0o700);
                found.get_or_init(|| path);
            }
            "tea"
        }
    };
    let app = Router::new().route("/", get(look));
    let test = LoadTest::new(app).get("/").users(1).transport(Transport::Unix(Http::One));
    let run = run(test).await;
    assert_eq!(run.conservation.outcomes.ok, run.conservation.sent, "{:?}", run.errors);
    let path = found.get().expect("it listened somewhere");
    crate::support::eventually("the socket is gone", || async { (!path.exists()).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_run_over_connections_drains_and_reports_what_there_is() {
    for transport in CONNECTIONS {
        let stop = Stop::new();
        let test = LoadTest::new(app()).get("/streamed").users(4).stop_on(&stop);
        let test = test.transport(transport).duration(std::time::Duration::from_secs(600));
        let run = tokio::spawn(test.warmup(millis(0)).run_part());
        tokio::time::sleep(millis(100)).await;
        stop.stop();
        let run = run.await.expect("no panic").expect("valid");
        assert!(run.interrupted);
        assert_conserved(&run.conservation);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_plan_over_several_transports_is_laid_side_by_side() {
    let transports = [Transport::Direct, Transport::Pipe(Http::One), Transport::Tcp(Http::Two)];
    let test = LoadTest::new(app()).name("search").get("/fast").users(4).threshold("p50 < 10s");
    let report = test.warmup(millis(20)).duration(SHORT).compare(transports).await.expect("valid");
    assert_eq!(report.title, "search");
    let names: Vec<&str> = report.runs.iter().map(|run| run.name.as_str()).collect();
    assert_eq!(names, ["direct", "pipe", "tcp:h2"]);
    for run in &report.runs {
        assert_conserved(&run.conservation);
        assert_eq!(run.plan.transport, run.name);
        assert_eq!(run.pairs.paired, run.conservation.sent);
    }
    assert_ne!(report.verdict, Verdict::Fail);
    let text = render::text(&report, render::Style::default());
    assert!(text.contains("What each transport costs"), "{text}");
    assert!(render::html(&report).contains("What each transport costs"));
}
