//! Event streams: counted as requests, but a stream of minutes is not in the latency of its route.

use std::{convert::Infallible, future::pending, io, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{
        StatusCode,
        header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE},
    },
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::get,
};
use futures_util::{Stream, StreamExt, future::join_all, stream};
use http::HeaderMap;
use http_body_util::BodyExt;
use parallax_middleware::Outcome;
use tokio::time::sleep;

use crate::{
    layer::responses::{SO_FAR, so_far},
    support::{
        client::{Transport, read, read_about},
        rig::{Rig, request},
        wire::Ended,
    },
};

/// `n` events.
fn events(n: usize) -> impl Stream<Item = Result<Event, Infallible>> + Send + 'static {
    stream::iter(0..n).map(|n| Ok(Event::default().data(n.to_string())))
}

/// A response that is an event stream by its content type, and nothing else.
fn typed(content_type: &'static str, body: Body) -> Response {
    ([(CONTENT_TYPE, content_type)], body).into_response()
}

fn routes() -> Router {
    let gone = || async { Err(io::Error::other("the source is gone")) };
    Router::new()
        .route("/text", get(async || "some text"))
        .route("/events", get(async || Sse::new(events(3))))
        .route(
            "/events/endless",
            get(async || {
                Sse::new(events(1).chain(stream::pending())).keep_alive(KeepAlive::default())
            }),
        )
        .route("/events/break", get(async move || typed("text/event-stream", so_far(gone()))))
        .route(
            "/events/panic",
            get(async || typed("text/event-stream", so_far(async { panic!("a broken source") }))),
        )
        .route(
            "/either",
            get(async |headers: HeaderMap| match headers.get(ACCEPT) {
                Some(accept) if accept == "text/event-stream" => {
                    Sse::new(events(3)).into_response()
                }
                _ => "some text".into_response(),
            }),
        )
}

/// How many streams of a route there were, how many are open, how many have a duration.
fn streams(rig: &Rig, route: &str) -> (u64, u64, u64) {
    let streams = rig.row(route).streams;
    streams.map_or((0, 0, 0), |streams| (streams.opened, streams.open, streams.duration.count))
}

#[tokio::test]
async fn a_stream_that_the_server_ends_is_a_success_outside_of_the_latency() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        let answer = client.get("/events").await;
        assert_eq!(answer.body, "data: 0\n\ndata: 1\n\ndata: 2\n\n");
        assert!(answer.record.first_byte.is_some());
        rig.assert_ends(&[("GET /events", Outcome::Ok, 1)]).await;
        let row = rig.row("GET /events");
        assert_eq!(streams(&rig, "GET /events"), (1, 0, 1));
        assert_eq!((row.latency.count, row.time_to_first_byte.count), (0, 1));
        assert_eq!(row.response_bytes, answer.body.len() as u64);
    }
}

#[tokio::test]
async fn a_stream_that_the_client_leaves_is_cancelled_outside_of_the_failed_latency() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        let mut body = client.ask("GET", "/events/endless").await.into_body();
        read_about(&mut body, 1).await;
        assert_eq!(streams(&rig, "GET /events/endless"), (1, 1, 0));
        let row = rig.row("GET /events/endless");
        // The head is out, and nobody waits for the end to say so.
        assert_eq!((row.in_flight, row.time_to_first_byte.count), (1, 1));
        drop(body);
        rig.assert_ends(&[("GET /events/endless", Outcome::Cancelled, 1)]).await;
        let row = rig.row("GET /events/endless");
        assert_eq!(streams(&rig, "GET /events/endless"), (1, 0, 1));
        assert_eq!((row.failed_latency.count, row.time_to_first_byte.count), (0, 1));
    }
}

#[tokio::test]
async fn a_connection_cut_closes_its_streams() {
    for over in Transport::wires() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        let mut body = client.ask("GET", "/events/endless").await.into_body();
        read_about(&mut body, 1).await;
        client.cut().await;
        rig.assert_ends(&[("GET /events/endless", Outcome::Cancelled, 1)]).await;
        assert_eq!(streams(&rig, "GET /events/endless"), (1, 0, 1));
    }
}

#[tokio::test]
async fn streams_that_break_off_or_panic_are_failures_outside_of_the_failed_latency() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let mut client = rig.client(&over).await;
        let cases = [("/events/break", Outcome::ServerError), ("/events/panic", Outcome::Panicked)];
        for (path, outcome) in cases {
            // What came before the end may or may not have left the server.
            if let Ok(response) = client.open(request("GET", path)).await {
                let Ended::BrokeOff(body) = read(response.into_body()).await else {
                    panic!("it breaks off");
                };
                assert!(SO_FAR.as_bytes().starts_with(&body), "{body:?}");
            }
            let route = format!("GET {path}");
            rig.settled().await;
            let record = rig.records().pop().expect("it is over");
            assert_eq!(record.outcome, outcome);
            assert_eq!(streams(&rig, &route), (1, 0, 1));
            assert_eq!(rig.row(&route).failed_latency.count, 0);
            client = client.another().await;
        }
        rig.assert_ends(&[
            ("GET /events/break", Outcome::ServerError, 1),
            ("GET /events/panic", Outcome::Panicked, 1),
        ])
        .await;
    }
}

#[tokio::test]
async fn a_route_with_streams_and_other_responses_keeps_them_apart() {
    for over in Transport::each() {
        let rig = Rig::around(routes());
        let client = rig.client(&over).await;
        for n in 0..6 {
            let mut asked = request("GET", "/either");
            if n % 3 == 0 {
                asked.headers_mut().insert(ACCEPT, "text/event-stream".parse().expect("a value"));
            }
            client.send(asked).await;
        }
        rig.assert_ends(&[("GET /either", Outcome::Ok, 6)]).await;
        let row = rig.row("GET /either");
        assert_eq!(streams(&rig, "GET /either"), (2, 0, 2));
        assert_eq!((row.latency.count, row.time_to_first_byte.count), (4, 6));
    }
}

#[tokio::test]
async fn many_streams_are_open_until_they_end_one_by_one() {
    let rig = Rig::around(routes());
    let client = rig.client(&Transport::Http2).await;
    let opened = join_all((0..20).map(|_| client.ask("GET", "/events/endless"))).await;
    assert_eq!(streams(&rig, "GET /events/endless"), (20, 20, 0));
    assert_eq!(client.get("/text").await.body, "some text");
    for (n, response) in (1..).zip(opened) {
        drop(response);
        rig.recorded(n + 1).await;
        assert_eq!(streams(&rig, "GET /events/endless"), (20, 20 - n, n));
    }
    rig.assert_ends(&[
        ("GET /events/endless", Outcome::Cancelled, 20),
        ("GET /text", Outcome::Ok, 1),
    ])
    .await;
}

#[tokio::test]
async fn what_makes_a_stream_is_its_media_type_however_it_is_written() {
    for over in Transport::each() {
        for (content_type, is_stream) in [
            ("text/event-stream", true),
            ("text/event-stream; charset=utf-8", true),
            ("text/event-stream;charset=utf-8", true),
            ("Text/Event-Stream", true),
            ("text/event-streams", false),
            ("text/plain", false),
            ("application/text/event-stream", false),
        ] {
            let chunks = || stream::iter(["data: ", "0\n\n"]).map(Ok::<_, Infallible>);
            let route = get(async move || typed(content_type, Body::from_stream(chunks())));
            let rig = Rig::around(Router::new().route("/typed", route));
            let client = rig.client(&over).await;
            assert_eq!(client.get("/typed").await.body, "data: 0\n\n");
            rig.assert_ends(&[("GET /typed", Outcome::Ok, 1)]).await;
            let n = u64::from(is_stream);
            assert_eq!(streams(&rig, "GET /typed"), (n, 0, n), "{content_type}");
            assert_eq!(rig.row("GET /typed").latency.count, 1 - n, "{content_type}");
        }
    }
}

#[tokio::test]
async fn what_ends_by_itself_is_no_stream_whatever_its_media_type() {
    let chunks = || Body::from_stream(stream::iter(["data: ", "0\n\n"]).map(Ok::<_, Infallible>));
    let routes = Router::new()
        .route("/events", get(async || Sse::new(events(3))))
        .route("/whole", get(async || typed("text/event-stream", Body::from("data: 0\n\n"))))
        .route(
            "/sized",
            get(async move || ([(CONTENT_LENGTH, "9")], typed("text/event-stream", chunks()))),
        )
        .route(
            "/limited",
            get(async move || {
                (StatusCode::TOO_MANY_REQUESTS, typed("text/event-stream", chunks()))
            }),
        );
    for over in Transport::each() {
        let rig = Rig::around(routes.clone());
        let client = rig.client(&over).await;
        for path in ["/whole", "/sized", "/limited"] {
            assert_eq!(client.get(path).await.body, "data: 0\n\n", "{path}");
        }
        assert_eq!(client.send(request("HEAD", "/events")).await.body, "");
        rig.assert_ends(&[
            ("GET /whole", Outcome::Ok, 1),
            ("GET /sized", Outcome::Ok, 1),
            ("GET /limited", Outcome::Limited, 1),
            ("HEAD /events", Outcome::Ok, 1),
        ])
        .await;
        assert!(rig.perf.snapshot().view().routes.iter().all(|row| row.streams.is_none()));
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_stream_is_that_from_its_entry_to_its_end() {
    let ticking = || {
        stream::iter(0..60).then(async |_| {
            sleep(Duration::from_secs(1)).await;
            Ok::<_, Infallible>(Bytes::from_static(b"data: tick\n\n"))
        })
    };
    let rig = Rig::around(Router::new().route(
        "/minute",
        get(async move || {
            sleep(Duration::from_millis(5)).await;
            typed("text/event-stream", Body::from_stream(ticking().boxed()))
        }),
    ));
    let record = rig.get("/minute").await.record;
    assert_eq!(record.first_byte, Some(Duration::from_millis(5)));
    assert_eq!(record.server_time, Duration::from_millis(60_005));
    let row = rig.row("GET /minute");
    let duration = row.streams.expect("it was one").duration;
    assert_eq!((duration.mean_us, duration.max_us), (Some(60_005_000.0), Some(60_005_000.0)));
    assert_eq!((row.latency.max_us, row.time_to_first_byte.max_us), (None, Some(5_000.0)));
    rig.assert_recorded(&[("GET /minute", Outcome::Ok, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_before_the_head_of_a_stream_leaves_no_stream() {
    let rig = Rig::around(Router::new().route(
        "/never",
        get(async || {
            pending::<()>().await;
            Sse::new(events(1))
        }),
    ));
    let patience = Duration::from_millis(40);
    let asked = rig.open(request("GET", "/never"));
    tokio::time::timeout(patience, asked).await.expect_err("it never answers");
    assert_eq!(streams(&rig, "GET /never"), (0, 0, 0));
    assert_eq!(rig.row("GET /never").failed_latency.count, 1);
    rig.assert_recorded(&[("GET /never", Outcome::Cancelled, 1)]);
}

#[tokio::test]
async fn a_stream_is_not_open_before_its_head_nor_after_its_end() {
    let rig = Rig::around(routes());
    let mut body = rig.open(request("GET", "/events")).await.into_body();
    for _ in 0..3 {
        assert_eq!(streams(&rig, "GET /events"), (1, 1, 0));
        body.frame().await.expect("there is another event").expect("it does not break off");
    }
    assert_eq!(streams(&rig, "GET /events"), (1, 1, 0), "nobody has said yet that it is over");
    assert!(body.frame().await.is_none());
    assert_eq!(streams(&rig, "GET /events"), (1, 0, 1));
    drop(body);
    rig.assert_recorded(&[("GET /events", Outcome::Ok, 1)]);
}
