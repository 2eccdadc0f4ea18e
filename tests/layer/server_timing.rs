//! `Server-Timing`: whoever sends a token that is good is told what the layer recorded, and nobody else.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version,
        header::{CONNECTION, CONTENT_TYPE, TRAILER, UPGRADE, VARY},
    },
    response::Response,
    routing::{any, get},
};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use parallax_loadgen::{ServerTiming, server_timing};
use parallax_middleware::{
    BypassPolicy, BypassToken, LimiterView, LoadMark, Perf, ProbeSource, RefusedTokens,
    ServerRecord, TokenCheck, TokenKeys,
};
use proptest::prelude::*;
use tower::{ServiceBuilder, ServiceExt, service_fn};

use crate::{
    layer::responses::{SUM, endless, routes},
    support::{
        client::{Client, Transport},
        rig::{Rig, an_hour, request},
    },
};

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const TOKEN: HeaderName = server_timing::TOKEN_HEADER;

fn keys() -> TokenKeys {
    TokenKeys::new("k1", &[7; 32]).expect("it is long enough")
}

/// Good for a minute, for anything.
fn token() -> BypassToken {
    BypassToken::lasting(Duration::from_secs(60), "run")
}

fn minted(token: &BypassToken) -> HeaderValue {
    let text = token.mint(&keys()).expect("a token can say this");
    HeaderValue::try_from(text).expect("it is ASCII")
}

fn policy() -> BypassPolicy {
    BypassPolicy::in_process().tokens(TokenCheck::new(keys()).leeway(Duration::ZERO))
}

/// The layer around `routes`, with phases whose names are no tokens.
fn telling(routes: impl FnOnce(&Perf) -> Router) -> Rig {
    let perf = Perf::builder().server_timing(&policy()).build();
    let app = routes(&perf).layer(perf.layer());
    Rig::new(&perf, app)
}

/// Every kind of response, and one that was in phases.
fn all(perf: &Perf) -> Router {
    let (perf, events) = (perf.clone(), [(CONTENT_TYPE, "text/event-stream")]);
    let phases = get(async move || {
        perf.observe("pool_wait:db", tokio::task::yield_now()).await;
        drop(perf.phase("render \"it\"; 100 % caf\u{e9}\r\n"));
        "some text"
    });
    routes()
        .route("/phases/{of}", phases)
        .route("/events", get(async move || (events, Body::from_stream(endless().take(3)))))
        .route(
            "/switch",
            get(async || {
                (StatusCode::SWITCHING_PROTOCOLS, [(CONNECTION, "upgrade"), (UPGRADE, "x")])
            }),
        )
        .route("/tells", get(async || ([(SERVER_TIMING, "db;dur=7")], "some text")))
        .route("/tells/late", get(tells_late))
}

/// Has a value of its own in the head, and one in the trailers.
async fn tells_late() -> Response {
    let trailers = HeaderMap::from_iter([(SERVER_TIMING, HeaderValue::from_static("late;dur=7"))]);
    let body = Body::from_stream(endless().take(2)).with_trailers(async { Some(Ok(trailers)) });
    let response =
        Response::builder().header(SERVER_TIMING, "db;dur=7").header(TRAILER, "server-timing");
    response.body(Body::new(body)).expect("a valid response")
}

fn version(over: &Transport) -> Version {
    if *over == Transport::Http2 { Version::HTTP_2 } else { Version::HTTP_11 }
}

/// A request with a token, from a client that takes trailers.
fn asked(over: &Transport, method: &str, path: &str, token: &HeaderValue) -> Request {
    let mut request = request(method, path);
    server_timing::ask(request.headers_mut(), token, version(over));
    request
}

/// A response, read to its end.
struct Told {
    status: StatusCode,
    head: HeaderMap,
    trailers: Option<HeaderMap>,
    bytes: usize,
}

impl Told {
    async fn by(client: &Client, request: Request) -> Self {
        let (parts, body) = client.open(request).await.expect("it is answered").into_parts();
        let body = body.collect().await.expect("the body is whole");
        let trailers = body.trailers().cloned();
        let bytes = body.to_bytes().len();
        Self { status: parts.status, head: parts.headers, trailers, bytes }
    }

    fn record(&self) -> Option<ServerTiming> {
        server_timing::record(&self.head, self.trailers.as_ref())
    }

    fn values(headers: &HeaderMap) -> Vec<&str> {
        let values = headers.get_all(SERVER_TIMING).into_iter();
        values.map(|value| value.to_str().expect("it is ASCII")).collect()
    }

    /// Asserts that nothing says that there is a layer.
    fn assert_nothing(&self) {
        let all = self.trailers.iter().chain([&self.head]);
        for headers in all {
            assert!(Self::values(headers).is_empty(), "{headers:?}");
            assert!(!headers.contains_key(VARY) && !headers.contains_key(TRAILER), "{headers:?}");
        }
    }
}

/// What should have been told of a request that the layer has recorded.
fn expected(perf: &Perf, record: &ServerRecord) -> ServerTiming {
    let mut expected = ServerTiming::default();
    expected.route = perf.route_key(record.route_id()).map(ToString::to_string);
    expected.first_byte = record.first_byte;
    expected.server_time = Some(record.server_time);
    expected.handler = Some(record.handler);
    let phases = record.phases.iter();
    expected.phases =
        phases.map(|phase| (perf.phase_name(phase.phase).to_owned(), phase.time)).collect();
    expected
}

/// Asserts that the last request's record was told whole.
fn assert_whole(rig: &Rig, told: &Told) {
    let record = rig.records().pop().expect("it is over");
    assert_eq!(told.record(), Some(expected(&rig.perf, &record)));
}

/// Asserts that of the last request all was told that the head can know.
fn assert_head_alone(rig: &Rig, told: &Told) {
    let record = rig.records().pop().expect("it is over");
    let whole = expected(&rig.perf, &record);
    let mut head = ServerTiming::default();
    (head.route, head.first_byte) = (whole.route, whole.first_byte);
    assert_eq!(told.record(), Some(head));
    assert_eq!((told.head.get(TRAILER), &told.trailers), (None, &None));
}

#[tokio::test]
async fn a_response_that_is_over_with_its_head_says_all_of_it_there() {
    for over in Transport::each() {
        let rig = telling(all);
        let client = rig.client(&over).await;
        let paths = [
            "/text",
            "/phases/7",
            "/empty",
            "/no-content",
            "/not-modified",
            "/lost",
            "/ended",
            "/tells",
        ];
        let gets = paths.map(|path| ("GET", path));
        for (method, path) in gets.into_iter().chain([("HEAD", "/stream"), ("POST", "/echo")]) {
            let told = Told::by(&client, asked(&over, method, path, &minted(&token()))).await;
            assert_whole(&rig, &told);
            assert_eq!(told.trailers, None, "{path}");
            assert_eq!(told.head[VARY], TOKEN.as_str(), "{path}");
        }
    }
}

#[tokio::test]
async fn phases_and_routes_are_told_by_their_names_whatever_is_in_them() {
    for over in Transport::each() {
        let rig = telling(all);
        let client = rig.client(&over).await;
        let told = Told::by(&client, asked(&over, "GET", "/phases/7", &minted(&token()))).await;
        let record = told.record().expect("it is told");
        assert_eq!(record.route.as_deref(), Some("GET /phases/{of}"));
        let names: Vec<&str> = record.phases.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["pool_wait:db", "render \"it\"; 100 % caf\u{e9}\r\n"]);
        assert_whole(&rig, &told);
    }
}

#[tokio::test]
async fn of_a_body_that_is_streamed_the_end_is_told_in_trailers() {
    for over in Transport::each() {
        let rig = telling(all);
        let client = rig.client(&over).await;
        for (path, bytes) in
            [("/stream", 100 * 1024), ("/refused", 1024), ("/nothing", 0), ("/events", 3 * 1024)]
        {
            let told = Told::by(&client, asked(&over, "GET", path, &minted(&token()))).await;
            assert_whole(&rig, &told);
            assert_eq!(told.bytes, bytes);
            let head = ServerTiming::parse(&told.head).expect("the head tells something");
            assert!(head.first_byte.is_some() && head.route.is_some(), "{path}");
            assert_eq!((head.server_time, head.handler), (None, None), "{path}");
            let announced = told.head.get(TRAILER).map(|value| value.to_str().expect("ASCII"));
            let expected = (*over != Transport::Http2).then_some("server-timing");
            assert_eq!(announced, expected, "{path}");
        }
    }
}

#[tokio::test]
async fn over_http_1_nothing_follows_a_body_of_known_length_or_one_whose_client_takes_no_trailers()
{
    let rig = telling(all);
    let client = rig.client(&Transport::Http1).await;
    for path in ["/file", "/known/late"] {
        let told =
            Told::by(&client, asked(&Transport::Http1, "GET", path, &minted(&token()))).await;
        assert_head_alone(&rig, &told);
    }
    for path in ["/stream", "/events"] {
        let mut request = request("GET", path);
        request.headers_mut().insert(TOKEN, minted(&token()));
        assert_head_alone(&rig, &Told::by(&client, request).await);
    }
    let server = rig.listen().await;
    let mut old = server.connect().await;
    let token = minted(&token());
    let token = token.to_str().expect("ASCII");
    old.write(&format!("GET /stream HTTP/1.0\r\nte: trailers\r\n{TOKEN}: {token}\r\n\r\n")).await;
    let head = old.head().await.expect("it answers");
    assert!(head.headers["server-timing"].starts_with("px-ttfb;dur="), "{head:?}");
    assert_eq!((head.headers.get("trailer"), old.rest().await.len()), (None, 100 * 1024));
}

#[tokio::test]
async fn over_http_2_trailers_follow_a_body_of_known_length_too() {
    let rig = telling(all);
    let client = rig.client(&Transport::Http2).await;
    for (path, bytes) in [("/file", 100 * 1024), ("/known/late", 8), ("/known/halves", 8)] {
        let told =
            Told::by(&client, asked(&Transport::Http2, "GET", path, &minted(&token()))).await;
        assert_whole(&rig, &told);
        assert_eq!(told.bytes, bytes);
        assert_eq!(told.head["content-length"], bytes.to_string());
        assert!(told.trailers.is_some(), "{path}");
    }
}

#[tokio::test]
async fn what_a_handler_tells_itself_stays() {
    for over in Transport::each() {
        let rig = telling(all);
        let client = rig.client(&over).await;
        let ask =
            async |path| Told::by(&client, asked(&over, "GET", path, &minted(&token()))).await;
        let told = ask("/tells").await;
        assert_eq!(Told::values(&told.head)[0], "db;dur=7");
        assert_whole(&rig, &told);

        let told = ask("/tells/late").await;
        assert_eq!(Told::values(&told.head)[0], "db;dur=7");
        let trailers = told.trailers.as_ref().expect("there are");
        assert_eq!(Told::values(trailers)[0], "late;dur=7");
        assert_whole(&rig, &told);

        let told = ask("/trailers/unsized").await;
        assert_eq!(told.trailers.as_ref().expect("there are")[SUM], "7");
        assert_whole(&rig, &told);
    }
}

#[tokio::test]
async fn an_upgrade_is_told_with_its_head() {
    for over in [Transport::InProcess, Transport::Http1] {
        let rig = telling(all);
        let client = rig.client(&over).await;
        let mut request = asked(&over, "GET", "/switch", &minted(&token()));
        request.headers_mut().append(CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(UPGRADE, HeaderValue::from_static("x"));
        let response = client.open(request).await.expect("it is answered");
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let record = rig.records().pop().expect("it is over");
        let told = ServerTiming::parse(response.headers());
        assert_eq!(told, Some(expected(&rig.perf, &record)));
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_or_is_left_has_no_trailers() {
    for over in Transport::wires() {
        let rig = telling(all);
        let client = rig.client(&over).await;
        let response = client.open(asked(&over, "GET", "/endless", &minted(&token()))).await;
        let response = response.expect("it is answered");
        let head = ServerTiming::parse(response.headers()).expect("the head tells something");
        assert_eq!(head.server_time, None);
        drop(response);
        rig.settled().await;
        assert_eq!(rig.row("GET /endless").outcomes.cancelled, 1);
    }
}

/// Where the limiter is, seen from the layer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Limiter {
    Nowhere,
    Inside,
    Outside,
}

/// A handler that says whether the token has reached it, under a limiter that lets nobody else in after the first.
fn limited(at: Limiter) -> Rig {
    let policy = policy();
    let perf = Perf::builder().server_timing(&policy).build();
    let app = Router::new().route(
        "/items/{id}",
        any(async |headers: HeaderMap| headers.contains_key(TOKEN).to_string()),
    );
    let app = match at {
        Limiter::Nowhere => app.layer(perf.layer()),
        Limiter::Inside => app.layer(perf.bypass(policy).around(an_hour(1))).layer(perf.layer()),
        Limiter::Outside => app.layer(perf.layer()).layer(perf.bypass(policy).around(an_hour(1))),
    };
    Rig::new(&perf, app)
}

const LIMITERS: [Limiter; 3] = [Limiter::Nowhere, Limiter::Inside, Limiter::Outside];

fn limiter(rig: &Rig) -> LimiterView {
    rig.perf.snapshot().view().limiter.unwrap_or_default()
}

#[tokio::test]
async fn a_token_is_judged_once_wherever_the_limiter_is_and_no_handler_sees_it() {
    for over in Transport::each() {
        for at in LIMITERS {
            let rig = limited(at);
            let client = rig.client(&over).await;
            let token = minted(&token().budget(3));
            for n in 1..=3 {
                let told = Told::by(&client, asked(&over, "GET", "/items/7", &token)).await;
                assert_eq!(told.status, StatusCode::OK, "{at:?}");
                assert_eq!(told.bytes, "false".len(), "{at:?}");
                assert_whole(&rig, &told);
                let passed = if at == Limiter::Nowhere { 0 } else { n };
                let expected = LimiterView { bypassed: passed, ..LimiterView::default() };
                assert_eq!(limiter(&rig), expected, "{at:?}");
                assert_eq!(
                    rig.row("GET /items/{id}").bypassed,
                    if at == Limiter::Inside { n } else { 0 }
                );
            }
            // That was all of its budget.
            let told = Told::by(&client, asked(&over, "GET", "/items/7", &token)).await;
            told.assert_nothing();
            let refused = RefusedTokens { out_of_scope: 1, ..RefusedTokens::default() };
            assert_eq!(limiter(&rig).refused_tokens, refused, "{at:?}");
        }
    }
}

#[tokio::test]
async fn whoever_has_no_good_token_is_told_nothing_and_counted_once() {
    let other = TokenKeys::new("k1", &[8; 32]).expect("it is long enough");
    let forged = HeaderValue::try_from(token().mint(&other).expect("a token")).expect("ASCII");
    let expired = minted(&BypassToken::until(SystemTime::UNIX_EPOCH, "run"));
    let refused = |change: fn(&mut RefusedTokens)| {
        let mut refused = RefusedTokens::default();
        change(&mut refused);
        refused
    };
    let tokens = [
        (None, refused(|_| {})),
        (Some(HeaderValue::from_static("true")), refused(|n| n.malformed = 1)),
        (Some(forged), refused(|n| n.forged = 1)),
        (Some(expired), refused(|n| n.expired = 1)),
        (Some(minted(&token().method(Method::POST))), refused(|n| n.out_of_scope = 1)),
        (Some(minted(&token().path("/other"))), refused(|n| n.out_of_scope = 1)),
        (
            Some(minted(&token().peer("192.0.2.7".parse().expect("an address")))),
            refused(|n| n.out_of_scope = 1),
        ),
    ];
    for over in Transport::each() {
        for at in LIMITERS {
            for (token, refused) in &tokens {
                let rig = limited(at);
                let client = rig.client(&over).await;
                let mut request = asked(&over, "GET", "/items/7", &minted(&self::token()));
                request.headers_mut().remove(TOKEN);
                request.headers_mut().extend(token.clone().map(|token| (TOKEN, token)));
                let told = Told::by(&client, request).await;
                told.assert_nothing();
                assert_eq!((told.status, told.bytes), (StatusCode::OK, "false".len()));
                assert_eq!(limiter(&rig).refused_tokens, *refused, "{at:?}: {token:?}");
                if at != Limiter::Outside {
                    let of_route = rig.row("GET /items/{id}").limiter.unwrap_or_default();
                    assert_eq!(of_route.refused_tokens, *refused, "{at:?}: {token:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_token_that_comes_twice_is_malformed() {
    for at in LIMITERS {
        let rig = limited(at);
        let client = rig.client(&Transport::Http1).await;
        let mut request = asked(&Transport::Http1, "GET", "/items/7", &minted(&token()));
        request.headers_mut().append(TOKEN, minted(&token()));
        Told::by(&client, request).await.assert_nothing();
        let refused = RefusedTokens { malformed: 1, ..RefusedTokens::default() };
        assert_eq!(limiter(&rig).refused_tokens, refused, "{at:?}");
    }
}

#[tokio::test]
async fn nobody_is_told_unless_the_service_says_so() {
    for over in Transport::each() {
        for perf in
            [Perf::new(), Perf::builder().server_timing(&BypassPolicy::in_process()).build()]
        {
            let bypass = perf.bypass(policy()).around(an_hour(1));
            let rig = Rig::new(&perf, routes().layer(bypass).layer(perf.layer()));
            let client = rig.client(&over).await;
            for path in ["/text", "/stream"] {
                let told = Told::by(&client, asked(&over, "GET", path, &minted(&token()))).await;
                told.assert_nothing();
            }
            assert_eq!(limiter(&rig).bypassed, 2);
        }
    }
}

#[tokio::test]
async fn a_token_passes_one_limiter_alone() {
    let policy = policy();
    let perf = Perf::builder().server_timing(&policy).build();
    let limit = || perf.bypass(policy.clone()).around(an_hour(1));
    let app = routes().layer(limit()).layer(perf.layer()).layer(limit());
    let rig = Rig::new(&perf, app);
    let client = rig.client(&Transport::Http1).await;
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let told =
            Told::by(&client, asked(&Transport::Http1, "GET", "/text", &minted(&token()))).await;
        statuses.push(told.status.as_u16());
        assert_whole(&rig, &told);
    }
    assert_eq!(statuses, [200, 429, 429]);
}

#[tokio::test]
async fn a_limiter_with_keys_of_its_own_tells_nobody() {
    let theirs = TokenKeys::new("k2", &[9; 32]).expect("it is long enough");
    let token = HeaderValue::try_from(token().mint(&theirs).expect("a token")).expect("ASCII");
    let perf = Perf::builder().server_timing(&policy()).build();
    let bypass = perf.bypass(BypassPolicy::in_process().tokens(theirs)).around(an_hour(1));
    let rig = Rig::new(&perf, routes().layer(perf.layer()).layer(bypass));
    let client = rig.client(&Transport::Http1).await;
    for _ in 0..2 {
        let told = Told::by(&client, asked(&Transport::Http1, "GET", "/text", &token)).await;
        told.assert_nothing();
        assert_eq!(told.status, StatusCode::OK);
    }
    assert_eq!(limiter(&rig), LimiterView { bypassed: 2, ..LimiterView::default() });
}

#[tokio::test]
async fn a_token_with_a_cap_is_held_until_the_body_has_ended() {
    for over in Transport::wires() {
        let rig = telling(all);
        let client = rig.client(&over).await;
        let other = client.another().await;
        let token = minted(&token().concurrency(1));
        let long =
            client.open(asked(&over, "GET", "/endless", &token)).await.expect("it is answered");
        Told::by(&other, asked(&over, "GET", "/text", &token)).await.assert_nothing();
        drop(long);
        drop(client);
        rig.settled().await;
        let told = Told::by(&other, asked(&over, "GET", "/text", &token)).await;
        assert_whole(&rig, &told);
    }
}

/// In the extensions of a request: what its route is called.
#[derive(Clone)]
struct Called(Arc<str>);

/// One request to such a route, in these phases: what the layer has recorded, and what it told.
async fn both(route: &str, phases: Vec<String>) -> (ServerTiming, Option<ServerTiming>) {
    let perf = Perf::builder().server_timing(&policy()).build();
    let probe = ProbeSource::new().probe();
    let mut request = asked(&Transport::Http2, "GET", "/", &minted(&token()));
    request.extensions_mut().insert(Called(route.into()));
    request.extensions_mut().insert(LoadMark::new().paired(probe.clone()));
    let named = perf
        .layer()
        .name_routes(|head| head.extensions.get::<Called>().map(|Called(name)| &**name));
    let handler = {
        let perf = perf.clone();
        service_fn(move |_: Request| {
            phases.iter().for_each(|name| drop(perf.phase(name)));
            async { Ok::<_, std::io::Error>(Response::new(Body::from("some text"))) }
        })
    };
    let response = ServiceBuilder::new().layer(named).service(handler).oneshot(request).await;
    let told = ServerTiming::parse(response.expect("it cannot fail").headers());
    (expected(&perf, probe.record().expect("it is over")), told)
}

proptest! {
    #[test]
    fn what_is_told_reads_back_as_it_was_recorded(
        route in prop::arbitrary::any::<String>(),
        phases in prop::collection::vec(prop::arbitrary::any::<String>(), 0..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let (recorded, told) = runtime.expect("it builds").block_on(both(&route, phases));
        prop_assert_eq!(told, Some(recorded));
    }
}

#[tokio::test]
async fn names_that_are_too_long_are_left_out_and_said_to_be() {
    let long = "long".repeat(2_000);
    let (mut recorded, told) = both(&long, vec![long.clone(), "short".to_owned()]).await;
    recorded.route = None;
    recorded.phases.remove(0);
    recorded.cut = true;
    assert_eq!(told, Some(recorded));
}
