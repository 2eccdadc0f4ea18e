//! The load generator, the layer and a router together, in process.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{Path, Request},
    http::StatusCode,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use parallax_loadgen::{
    Http, LoadTest, LoadTestError, Report, Scenario, Session, Stop, Topology, Transport, Verdict,
    report::{Conservation, Run},
};
use parallax_middleware::{BypassPolicy, LoadMark, Perf, ProbeSource};

use crate::support::limited;

const SHORT: Duration = Duration::from_millis(400);
/// Longer than any run takes that is stopped.
const LONG: Duration = Duration::from_secs(600);

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A router with a route for each way to answer, behind the layer.
fn app() -> Router {
    bare_app().layer(Perf::new().layer())
}

fn bare_app() -> Router {
    Router::new()
        .route("/fast", get(|| async { "tea" }))
        .route("/items/{id}", get(|Path(id): Path<u64>| async move { id.to_string() }))
        .route("/error", get(|| async { StatusCode::INTERNAL_SERVER_ERROR }))
        .route("/limited", get(|| async { StatusCode::TOO_MANY_REQUESTS }))
        .route("/panic", get(panics))
        .route(
            "/slow",
            get(|| async {
                tokio::time::sleep(millis(50)).await;
                "slow"
            }),
        )
        .route(
            "/never",
            get(|| async {
                std::future::pending::<()>().await;
                "never"
            }),
        )
}

async fn panics() -> StatusCode {
    // Without the hook's message on standard error, a thousand times over.
    std::panic::resume_unwind(Box::new("on purpose"))
}

async fn run(test: LoadTest) -> Run {
    let report = test.warmup(millis(50)).duration(SHORT).run().await.expect("the plan is valid");
    report.runs.into_iter().next().expect("one run")
}

/// Every request is accounted for, and the layer counted the same ones.
fn assert_conserved(conservation: &Conservation) {
    let c = conservation;
    assert_eq!(c.unexplained, 0, "{c:#?}");
    assert_eq!(c.scheduled, c.dropped + c.sent + c.unsent, "{c:#?}");
    assert_eq!(c.sent, c.outcomes.total() + c.in_flight, "{c:#?}");
    assert!(c.sent > 0);
}

fn rules(run: &Run) -> Vec<&str> {
    run.validity.reasons.iter().map(|reason| reason.rule.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_users_are_counted_alike_on_both_sides() {
    let run = run(LoadTest::new(app()).get("/fast").get("/items/7").users(20)).await;
    assert_conserved(&run.conservation);
    let server = run.conservation.server.as_ref().expect("the layer answered");
    assert_eq!(server.recorded, run.conservation.sent);
    assert_eq!((server.not_seen, server.foreign), (0, 0));
    assert_eq!(run.pairs.paired, run.conservation.sent);
    assert_eq!(run.pairs.negative, 0);

    let names: Vec<&str> = run.client.routes.iter().map(|row| row.route.as_str()).collect();
    assert_eq!(names, ["GET /fast", "GET /items/{id}"], "rows carry the layer's names");
    let view = run.server.as_ref().expect("the layer answered");
    for row in &run.client.routes {
        let theirs = view
            .routes
            .iter()
            .find(|theirs| format!("{} {}", theirs.method, theirs.route) == row.route)
            .expect("the layer has the route");
        assert_eq!(theirs.outcomes.ok, row.outcomes.ok);
        assert_eq!(theirs.latency.count, row.server_time.summary.count);
    }
    // Request by request the layer's time lies within the client's, so it does in the mean.
    let mean = |latency: &parallax_loadgen::report::Latency| latency.summary.mean_us.expect("some");
    assert!(mean(&run.pairs.server_time) <= mean(&run.client.service_time));
    assert!(mean(&run.client.service_time) <= mean(&run.client.response_time));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_rate_schedules_by_arithmetic() {
    let run = run(LoadTest::new(app()).get("/fast").rate(1_000)).await;
    assert_conserved(&run.conservation);
    // 0.4 s at 1,000/s, whatever the machine was doing meanwhile.
    assert_eq!(run.conservation.scheduled, 400);
    assert_eq!(run.client.lag.summary.count, run.conservation.sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arrivals_past_the_bound_are_dropped_and_counted() {
    let run = run(LoadTest::new(app()).get("/slow").rate(1_000).max_in_flight(5)).await;
    assert_conserved(&run.conservation);
    assert_eq!(run.conservation.scheduled, 400);
    // Five at a time, 50 ms each: at most 100 a second and one more round.
    assert!(run.conservation.sent <= 50, "{:?}", run.conservation);
    assert_eq!(run.verdict, Verdict::Invalid);
    assert!(rules(&run).contains(&"dropped"), "{:?}", run.validity);
    let dropped: u64 = run.timeline.iter().map(|row| row.dropped).sum();
    assert_eq!(dropped, run.conservation.dropped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panicking_handler_ends_its_request_and_not_the_run() {
    let run = run(LoadTest::new(app()).get("/panic").get("/fast").users(4)).await;
    assert_conserved(&run.conservation);
    assert!(run.conservation.outcomes.panicked > 0);
    assert!(run.conservation.outcomes.ok > 0);
    let view = run.server.expect("the layer answered");
    let panicked: u64 = view.routes.iter().map(|route| route.outcomes.panicked).sum();
    assert_eq!(panicked, run.conservation.outcomes.panicked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_of_the_client_is_a_cancellation_for_the_layer() {
    let test = LoadTest::new(app()).get("/never").get("/fast").users(4).timeout(millis(40));
    let run = run(test).await;
    assert_conserved(&run.conservation);
    assert!(run.conservation.outcomes.timeout > 0);
    let view = run.server.expect("the layer answered");
    let cancelled: u64 = view.routes.iter().map(|route| route.outcomes.cancelled).sum();
    assert_eq!(cancelled, run.conservation.outcomes.timeout);
    assert!(view.routes.iter().all(|route| route.in_flight == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_do_not_enter_success_latency() {
    let run = run(LoadTest::new(app()).get("/error").get("/slow").users(4)).await;
    assert_conserved(&run.conservation);
    let c = &run.client;
    assert_eq!(c.response_time.summary.count, run.conservation.outcomes.ok);
    assert_eq!(c.failed.summary.count, run.conservation.outcomes.server_error);
    // The errors are instant; one among the successes would show.
    assert!(c.response_time.summary.min_us.expect("some") >= 50_000.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_route_has_both_sides_of_its_requests_and_what_is_between_them() {
    async fn turn_some_away(request: Request, next: Next) -> Response {
        static N: AtomicU64 = AtomicU64::new(0);
        if request.uri().path() == "/fast" && N.fetch_add(1, Relaxed).is_multiple_of(4) {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        next.run(request).await
    }
    let app = app().layer(from_fn(turn_some_away));
    let others = app.clone();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let foreign = tokio::spawn({
        let stop = stop.clone();
        async move {
            while !stop.load(Relaxed) {
                let request = Request::get("/items/7").body(axum::body::Body::empty());
                let answer =
                    tower::ServiceExt::oneshot(others.clone(), request.expect("it is a request"))
                        .await;
                assert_eq!(answer.expect("it answers").status(), StatusCode::OK);
                tokio::time::sleep(millis(1)).await;
            }
        }
    });
    let test = LoadTest::new(app).get("/fast").get("/items/7").get("/never").get("/panic").users(4);
    let run = run(test.timeout(millis(20))).await;
    stop.store(true, Relaxed);
    foreign.await.expect("it ends");
    assert_conserved(&run.conservation);
    let of = |route: &str| {
        let mut routes = run.client.routes.iter();
        let row = routes.find(|row| row.route == route).expect("it is there");
        (row.conservation.clone().expect("there is a layer"), row.outcomes)
    };
    for route in ["GET /fast", "GET /items/{id}", "GET /never", "GET /panic"] {
        let (counts, outcomes) = of(route);
        assert_eq!(counts.finished, outcomes.total(), "{route}: {counts:?}");
        assert_eq!(counts.finished, counts.recorded - counts.foreign + counts.not_seen, "{route}");
        assert_eq!(counts.unexplained, 0, "{route}");
        assert_eq!(counts.foreign > 0, route == "GET /items/{id}", "{route}: {counts:?}");
        assert_eq!(counts.not_seen > 0, route == "GET /fast", "{route}: {counts:?}");
        assert_eq!(counts.timed_out, if route == "GET /never" { outcomes.timeout } else { 0 });
    }
    assert!(of("GET /never").0.timed_out > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_only_the_layer_knows_of_make_a_run_invalid_and_are_named_by_route() {
    // As another generator would, the handler sends the service requests with a probe, but nobody counts them.
    let perf = Perf::new();
    let inner = bare_app().layer(perf.layer());
    let asks = async move || {
        let mut request =
            Request::get("/items/7").body(axum::body::Body::empty()).expect("it is one");
        request.extensions_mut().insert(LoadMark::new().paired(ProbeSource::new().probe()));
        let answer = tower::ServiceExt::oneshot(inner.clone(), request).await;
        answer.expect("it answers").status()
    };
    let app = Router::new().route("/asks", get(asks)).layer(perf.layer());
    let run = run(LoadTest::new(app).get("/asks").users(2)).await;
    assert_eq!(run.verdict, Verdict::Invalid);
    let [reason] = &*run.validity.reasons else { panic!("{:?}", run.validity) };
    assert_eq!(reason.rule, "conservation");
    let sent = run.conservation.sent;
    assert_eq!(run.conservation.unexplained, sent);
    let problem = "(GET /items/{id}: 0 came back to the client with the layer's record, and the layer counts ";
    assert!(reason.message.contains(problem), "{}", reason.message);
    let asked = run.client.routes[0].conservation.as_ref().expect("there is a layer");
    assert_eq!((asked.finished, asked.unexplained), (sent, 0), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_clients_of_the_service_are_told_apart() {
    let perf = Perf::new();
    let app = bare_app().layer(perf.layer());
    let stop = Stop::new();
    let others = tokio::spawn({
        let (app, stop) = (app.clone(), stop.clone());
        async move {
            let mut sent = 0_u64;
            while !stop.is_stopped() {
                let request = Request::get("/fast").body(axum::body::Body::empty()).expect("valid");
                let response = tower::ServiceExt::oneshot(app.clone(), request).await;
                let body = response.expect("infallible").into_body();
                axum::body::to_bytes(body, 100).await.expect("short");
                sent += 1;
                tokio::time::sleep(millis(1)).await;
            }
            sent
        }
    });
    let run = run(LoadTest::new(app).get("/fast").users(2)).await;
    stop.stop();
    let others = others.await.expect("no panic");
    assert_conserved(&run.conservation);
    let server = run.conservation.server.expect("the layer answered");
    assert!(server.foreign > 0 && server.foreign <= others, "{server:?}, {others} sent");
    assert_eq!(server.recorded - server.foreign, run.conservation.sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_layer_there_is_one_view_and_it_says_so() {
    let run = run(LoadTest::new(bare_app()).get("/items/7").users(2)).await;
    assert_eq!(run.conservation.unexplained, 0);
    assert!(run.server.is_none() && run.conservation.server.is_none());
    assert_eq!(run.pairs.paired, 0);
    assert_eq!(run.client.routes[0].route, "GET /items/7");
}

/// Rejects `of_ten` requests in ten after `rejection`, and answers the others after 100 ms.
fn rejecting(of_ten: u64, rejection: Duration) -> Router {
    let turn = Arc::new(AtomicU64::new(0));
    let answer = move || {
        let turn = turn.fetch_add(1, Relaxed);
        async move {
            if turn % 10 < of_ten {
                tokio::time::sleep(rejection).await;
                StatusCode::TOO_MANY_REQUESTS
            } else {
                tokio::time::sleep(millis(100)).await;
                StatusCode::OK
            }
        }
    };
    Router::new().route("/", get(answer)).layer(Perf::new().layer())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejections_that_masquerade_as_fast_answers_make_a_run_invalid() {
    let test = LoadTest::new(rejecting(2, millis(1))).get("/").users(100);
    let run = run(test.threshold("p95 < 500ms")).await;
    assert_conserved(&run.conservation);
    assert_eq!(run.verdict, Verdict::Invalid);
    assert_eq!(rules(&run), ["masquerade"], "{:?}", run.validity);
    // The success median is that of the successes, not of the rejections.
    assert!(run.client.response_time.summary.p50_us.expect("enough") >= 100_000.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_is_mostly_turned_away_is_invalid_however_slowly() {
    let run = run(LoadTest::new(rejecting(6, millis(100))).get("/").users(100)).await;
    assert_eq!(rules(&run), ["masquerade"], "{:?}", run.validity);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_slow_rejections_are_errors_and_nothing_else() {
    let run = run(LoadTest::new(rejecting(2, millis(100))).get("/").users(100)).await;
    assert_eq!(run.validity.verdict, Verdict::Pass, "{:?}", run.validity);
    assert!(run.conservation.outcomes.limited > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_only_rejects_never_passes() {
    let test = LoadTest::new(app()).get("/limited").users(4).threshold("p95 < 200ms");
    let run = run(test).await;
    assert_eq!(run.verdict, Verdict::Invalid);
    assert!(rules(&run).contains(&"masquerade"), "{:?}", run.validity);
    assert_eq!(run.client.response_time.summary.count, 0);
    assert_eq!(run.thresholds[0].observed, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_threshold_on_a_mistyped_route_is_invalid_and_names_the_routes() {
    let test = LoadTest::new(app())
        .get("/items/7")
        .users(2)
        .threshold(r#"p95{route="GET /item/{id}"} < 200ms"#);
    let run = run(test).await;
    assert_eq!(run.verdict, Verdict::Invalid);
    let reason = &run.validity.reasons[0];
    assert_eq!(reason.rule, "no_samples");
    assert!(reason.message.contains("GET /items/{id}"), "{}", reason.message);
}

/// Every second answer is in the phase `render`, on one of two routes; a cache has three of four.
fn with_phases() -> Router {
    let perf = Perf::new();
    let (cache, layer) = (perf.cache("items"), perf.layer());
    let render = async move || {
        static N: AtomicU64 = AtomicU64::new(0);
        let n = N.fetch_add(1, Relaxed);
        cache.count((!n.is_multiple_of(4)).then_some(n));
        if n.is_multiple_of(2) {
            perf.observe("render", tokio::time::sleep(millis(25))).await;
        }
    };
    Router::new().route("/page", get(render)).route("/plain", get(|| async {})).layer(layer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn phases_and_caches_have_thresholds_like_response_times() {
    let test = LoadTest::new(with_phases()).get("/page").get("/plain").users(8);
    let test = test
        .warmup(millis(50))
        .duration(millis(2_500))
        .threshold("render p50 >= 4ms")
        .threshold("render p50 < 4ms")
        .threshold("handler max < 60s")
        .threshold("cache:items hit_ratio >= 70%")
        .threshold("cache:items hit_ratio > 90%")
        .route_thresholds("GET /page", ["render mean > 4ms", "ttfb p50 < 60s", "lag p50 < 60s"])
        .route_thresholds("GET /plain", ["ttfb p50 < 4ms"]);
    let report = test.run().await.expect("the plan is valid");
    let results = &report.runs[0].thresholds;
    let found = |expression: &str| {
        let mut results = results.iter();
        results.find(|result| result.expression == expression).expect("it was judged")
    };
    for (expression, verdict) in [
        ("render p50 >= 4ms", Verdict::Pass),
        ("render p50 < 4ms", Verdict::Fail),
        ("handler max < 60s", Verdict::Pass),
        ("cache:items hit_ratio >= 70%", Verdict::Pass),
        ("cache:items hit_ratio > 90%", Verdict::Fail),
        ("render mean{route=\"GET /page\"} > 4ms", Verdict::Pass),
        ("ttfb p50{route=\"GET /page\"} < 60s", Verdict::Pass),
        ("lag p50{route=\"GET /page\"} < 60s", Verdict::Pass),
    ] {
        let result = found(expression);
        assert_eq!(result.verdict, verdict, "{result:?}");
    }
    // What was not in the phase is no sample of it.
    let row = |route: &str| {
        let mut routes = report.runs[0].client.routes.iter();
        routes.find(|row| row.route == route).expect("it is there").outcomes.ok
    };
    let samples = found("render p50 >= 4ms").samples;
    assert!(samples.abs_diff(row("GET /page") / 2) <= 8, "{samples} of {}", row("GET /page"));
    assert_eq!(found("handler max < 60s").samples, row("GET /page") + row("GET /plain"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_threshold_on_what_does_not_exist_is_invalid_and_names_what_does() {
    let test = LoadTest::new(with_phases()).get("/page").get("/plain").users(2);
    let test = test
        .threshold("rendr p50 < 1s")
        .threshold("pool_wait:db p50 < 1s")
        .threshold("cache:item hit_ratio > 50%")
        .route_thresholds("GET /plain", ["render p50 < 1s"])
        .route_thresholds("GET /pages", ["render p50 < 1s"]);
    let run = run(test).await;
    let notes: Vec<_> = run.thresholds.iter().map(|result| &*result.note).collect();
    assert_eq!(
        notes,
        [
            "no request was in the phase \"rendr\"; phases seen: handler, render",
            "no request was in the phase \"pool_wait:db\"; phases seen: handler, render",
            "there is no cache \"item\"; caches: items",
            "no request to \"GET /plain\" was in the phase \"render\"; phases seen: handler, render",
            "no request was to the route \"GET /pages\"; routes seen: GET /page, GET /plain",
        ]
    );
    assert!(run.thresholds.iter().all(|result| result.verdict == Verdict::Invalid));
    assert_eq!(run.verdict, Verdict::Invalid);

    let run = self::run(LoadTest::new(bare_app()).get("/fast").threshold("render p50 < 1s")).await;
    assert_eq!(run.thresholds[0].note, "no layer answered, so nobody knows `render`");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_in_process_pass_goes_around_the_limiter_and_is_counted() {
    let passing =
        run(LoadTest::new(limited(bare_app())).get("/fast").users(2).pass_limiter(true)).await;
    assert_conserved(&passing.conservation);
    assert_eq!(passing.conservation.outcomes.ok, passing.conservation.sent);
    let view = passing.server.expect("the layer answered");
    assert_eq!(view.routes[0].bypassed, passing.conservation.sent);
    let limiter = view.limiter.expect("it did something");
    assert_eq!((limiter.bypassed, limiter.limited), (passing.conservation.sent, 0));

    let limited = run(LoadTest::new(limited(bare_app())).get("/fast").users(2)).await;
    assert_eq!(limited.conservation.outcomes.limited, limited.conservation.sent);
    assert_eq!(limited.verdict, Verdict::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_is_used_up_by_the_limiter_it_passes() {
    async fn sees_pass(request: Request) -> StatusCode {
        let passes = request.extensions().get().is_some_and(LoadMark::passes_limiter);
        if passes { StatusCode::IM_A_TEAPOT } else { StatusCode::OK }
    }
    let perf = Perf::new();
    let app = Router::new()
        .route("/", get(sees_pass))
        .layer(perf.bypass(BypassPolicy::in_process()).around(tower::layer::util::Identity::new()))
        .layer(perf.layer());
    let run = run(LoadTest::new(app).get("/").users(1).pass_limiter(true)).await;
    assert_eq!(run.conservation.outcomes.ok, run.conservation.sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_run_drains_and_reports_what_there_is() {
    for open in [false, true] {
        let stop = Stop::new();
        let test =
            LoadTest::new(app()).get("/slow").stop_on(&stop).duration(Duration::from_secs(600));
        let test = if open { test.rate(500) } else { test.users(20) };
        let run = tokio::spawn(test.warmup(Duration::ZERO).run());
        tokio::time::sleep(millis(300)).await;
        stop.stop();
        let report = run.await.expect("no panic").expect("valid");
        assert!(report.interrupted);
        assert!(report.runs[0].measured_s < 60.0);
        assert_conserved(&report.runs[0].conservation);
        assert_eq!(report.runs[0].conservation.in_flight, 0, "answers under way were waited for");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_seed_sends_the_same_requests() {
    /// The first hundred, however long they take.
    async fn sent(seed: u64, warmup: Duration) -> Vec<String> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Stop::new();
        let app = Router::new().fallback({
            let (seen, stop) = (seen.clone(), stop.clone());
            move |request: Request| async move {
                let mut seen = seen.lock().expect("no panic");
                if seen.len() < 100 {
                    seen.push(request.uri().path().to_owned());
                } else {
                    stop.stop();
                }
            }
        });
        let mix = Scenario::new().step("random", 1, |rng| {
            use rand::RngExt;
            let id: u32 = rng.random();
            Request::get(format!("/{id}")).body(Bytes::new()).expect("valid")
        });
        // One user, so that the order is the user's.
        let test = LoadTest::new(app).scenario(mix).users(1).seed(seed).stop_on(&stop);
        test.warmup(warmup).duration(LONG).run().await.expect("the plan is valid");
        let seen = seen.lock().expect("no panic").clone();
        assert_eq!(seen.len(), 100);
        seen
    }
    // All of them in the measured run, or all of them in the warm-up.
    for warmup in [Duration::ZERO, LONG] {
        assert_eq!(sent(7, warmup).await, sent(7, warmup).await);
        assert_ne!(sent(7, warmup).await, sent(8, warmup).await);
    }
}

#[tokio::test]
async fn settings_that_cannot_be_run_say_why() {
    async fn refusal(test: LoadTest) -> String {
        match test.run().await {
            Err(LoadTestError::Plan(error)) => error.to_string(),
            other => panic!("expected a refusal, got {other:?}"),
        }
    }
    let test = || LoadTest::new(app()).get("/fast");
    assert!(refusal(LoadTest::new(app())).await.contains("sends nothing"));
    assert!(refusal(test().rate(0)).await.contains("0 requests per second"));
    assert!(refusal(test().rate(f64::NAN)).await.contains("NaN"));
    assert!(refusal(test().users(0)).await.contains("0 users"));
    assert!(refusal(test().duration(Duration::ZERO)).await.contains("0ns"));
    assert!(refusal(test().timeout(Duration::ZERO)).await.contains("timeout"));
    assert!(refusal(test().max_in_flight(0)).await.contains("bound of 0"));
    assert!(refusal(test().get("no path at all")).await.contains("no path at all"));
    let threshold = refusal(test().threshold("p95 <> 3ms")).await;
    assert!(threshold.contains('^'), "{threshold}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_slo_is_an_assertion() {
    let report: Report = LoadTest::new(app())
        .get("/fast")
        .users(4)
        .warmup(millis(50))
        .duration(Duration::from_secs(3))
        .threshold("p99 < 5s")
        .threshold("errors < 1%")
        .threshold("rate >= 1/s")
        .run()
        .await
        .expect("the plan is valid");
    report.assert_passed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_slo_fails_the_test_with_the_figures() {
    // Each as long as none of its neighbours, so that users do not come in waves. Waves that the machine holds
    // up as a whole are worth a few independent requests, too few for a verdict.
    let turn = Arc::new(AtomicU64::new(0));
    let uneven = move || {
        let turn = turn.fetch_add(1, Relaxed);
        async move { tokio::time::sleep(millis(20 + turn * 89 % 200)).await }
    };
    let report = LoadTest::new(Router::new().route("/", get(uneven)).layer(Perf::new().layer()))
        .get("/")
        .users(50)
        .warmup(millis(50))
        .duration(Duration::from_secs(3))
        .threshold("p95 < 10ms")
        .run()
        .await
        .expect("the plan is valid");
    assert_eq!(report.verdict, Verdict::Fail);
    let panic = std::panic::catch_unwind(|| report.assert_passed()).expect_err("it fails");
    let message = panic.downcast_ref::<String>().expect("a message");
    assert!(message.contains("p95 < 10ms") && message.contains("fail"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_run_sends_nothing_more() {
    for open in [false, true] {
        let perf = Perf::new();
        let test = LoadTest::new(bare_app().layer(perf.layer())).get("/fast");
        let test = if open { test.rate(2_000) } else { test.users(4) };
        let run = test.warmup(Duration::ZERO).duration(Duration::from_secs(600)).run();
        tokio::time::timeout(millis(200), run).await.expect_err("it is far from done");
        // What was on its way may still arrive; then nothing does.
        tokio::time::sleep(millis(200)).await;
        let sent = perf.snapshot().entered();
        assert!(sent > 0);
        tokio::time::sleep(millis(200)).await;
        assert_eq!(perf.snapshot().entered(), sent, "open: {open}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_warm_up_sends_other_requests_than_the_measured_run() {
    for open in [false, true] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let app = Router::new().fallback({
            let seen = seen.clone();
            move |request: Request| async move {
                seen.lock().expect("no panic").push(request.uri().path().to_owned());
                tokio::time::sleep(millis(1)).await;
            }
        });
        let mix = Scenario::new().step("random", 1, |rng| {
            use rand::RngExt;
            let id: u64 = rng.random();
            Request::get(format!("/{id}")).body(Bytes::new()).expect("valid")
        });
        let test = LoadTest::new(app).scenario(mix).warmup(millis(200)).duration(millis(200));
        let test = if open { test.rate(500) } else { test.users(5) };
        test.run().await.expect("valid");
        let mut seen = seen.lock().expect("no panic").clone();
        let sent = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), sent, "no request was sent twice; open: {open}");
        assert!(sent > 10);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scenario_that_panics_does_not_pass_unseen() {
    let mix = || {
        let turn = AtomicU64::new(0);
        Scenario::new().step("sometimes", 1, move |_| {
            // The preflight is the first; its panic would be the caller's own.
            assert!(turn.fetch_add(1, Relaxed) < 20, "on purpose");
            Request::get("/fast").body(Bytes::new()).expect("valid")
        })
    };
    let closed = LoadTest::new(app()).scenario(mix()).users(1).warmup(Duration::ZERO).run();
    let error = tokio::spawn(closed).await.expect_err("the panic is handed on");
    assert!(error.is_panic());

    let open = LoadTest::new(app()).scenario(mix()).rate(100).timeout(millis(100));
    let run = run(open).await;
    assert_eq!(run.conservation.unexplained, 0);
    assert!(run.conservation.in_flight > 0);
    assert!(rules(&run).contains(&"in_flight"), "{:?}", run.validity);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_too_late_is_a_timeout_even_from_a_blocked_thread() {
    let app = Router::new()
        .route(
            "/blocks",
            get(|| async {
                std::thread::sleep(millis(60));
                "late"
            }),
        )
        .layer(Perf::new().layer());
    let run = run(LoadTest::new(app).get("/blocks").users(1).timeout(millis(30))).await;
    assert_conserved(&run.conservation);
    assert_eq!(run.conservation.outcomes.timeout, run.conservation.sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_threshold_on_a_route_counts_what_was_answered_outside_the_layer() {
    async fn turn_some_away(request: Request, next: Next) -> Response {
        static TURN: AtomicU64 = AtomicU64::new(0);
        if TURN.fetch_add(1, Relaxed) % 5 == 4 {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        next.run(request).await
    }
    let app = app().layer(from_fn(turn_some_away));
    let test = LoadTest::new(app)
        .get("/items/7")
        .users(2)
        .threshold(r#"errors{route="GET /items/{id}"} < 5%"#);
    let report =
        test.warmup(millis(50)).duration(Duration::from_secs(3)).run().await.expect("valid");
    let run = &report.runs[0];
    assert!(run.conservation.server.as_ref().expect("the layer answered").not_seen > 0);
    let observed = run.thresholds[0].observed.expect("there are samples");
    assert!((observed - 0.2).abs() < 0.01, "{observed}");
    assert_eq!(run.verdict, Verdict::Fail);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_that_panics_costs_no_sample() {
    let test = LoadTest::new(app()).get("/fast").users(2);
    let run = run(test.on_progress(|_| std::panic::resume_unwind(Box::new("on purpose")))).await;
    assert_conserved(&run.conservation);
    assert!(!run.resources.is_empty());
}

#[tokio::test]
async fn extremes_are_refused_before_anything_overflows() {
    let test = || LoadTest::new(app()).get("/fast");
    for test in [
        test().duration(Duration::MAX),
        test().timeout(Duration::MAX),
        test().warmup(Duration::MAX),
        test().users(1).think_time(Duration::MAX),
        test().rate(1e300),
    ] {
        test.run().await.expect_err("it is refused");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_threshold_on_a_route_counts_what_came_before_the_layer_saw_the_first() {
    async fn open_late(request: Request, next: Next) -> Response {
        static TURN: AtomicU64 = AtomicU64::new(0);
        // The first is the preflight.
        if (1..=100).contains(&TURN.fetch_add(1, Relaxed)) {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        next.run(request).await
    }
    let report = LoadTest::new(app().layer(from_fn(open_late)))
        .get("/slow")
        .users(5)
        .warmup(Duration::ZERO)
        .duration(Duration::from_secs(3))
        .threshold(r#"errors{route="GET /slow"} < 1%"#)
        .run()
        .await
        .expect("valid");
    let run = &report.runs[0];
    assert_conserved(&run.conservation);
    assert_eq!(run.conservation.outcomes.client_error, 100);
    let finished = run.conservation.outcomes.total();
    let observed = run.thresholds[0].observed.expect("there are samples");
    assert!((observed - 100.0 / finished as f64).abs() < 1e-9, "{observed} of {finished}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn waiting_for_the_services_own_runtime_is_the_services_time_and_no_lag() {
    // One worker, and two seconds of work for it in every second.
    let blocks = || async {
        std::thread::sleep(millis(4));
        "at last"
    };
    let app = Router::new().route("/", get(blocks)).layer(Perf::new().layer());
    let test = |transport| {
        let test = LoadTest::new(app.clone()).get("/").rate(500).transport(transport);
        test.warmup(Duration::ZERO).duration(millis(1_200))
    };
    let report = test(Transport::Direct).run().await.expect("the plan is valid");
    let run = &report.runs[0];
    // Enough of them for the rule.
    assert!(run.client.outcomes.ok > 300, "{:?}", run.client.outcomes);
    assert!(!rules(run).contains(&"lag"), "{:?}", run.validity);
    let (lag, service) = (&run.client.lag.summary, &run.client.service_time.summary);
    let mean = service.mean_us.expect("there are samples");
    assert!(lag.mean_us.expect("there are samples") < mean / 4.0, "{lag:?} {service:?}");
    let shares = &run.attribution[0].shares;
    assert!(shares["runtime"] > 0.5, "{shares:?}");

    // Over a connection, the task that should have sent is the generator's own.
    let report = test(Transport::Pipe(Http::One)).run().await.expect("the plan is valid");
    let run = &report.runs[0];
    let lag = run.client.lag.summary.mean_us.expect("there are samples");
    assert!(lag > 20_000.0, "{lag}");
    assert!(rules(run).contains(&"lag"), "{:?}", run.validity);
    assert!(!run.attribution[0].shares.contains_key("runtime"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_stopped_sends_nothing_of_flows_that_pause_whatever_they_do_next() {
    // It does not look at what became of its requests.
    let flow = async |mut session: Session| {
        session.pause(Duration::from_secs(60)).await;
        let _ = session.send("first", http::Request::new(Bytes::new())).await;
        let _ = session.send("second", http::Request::new(Bytes::new())).await;
        Ok(())
    };
    for topology in [Topology::Shared, Topology::Split] {
        let stop = Stop::new();
        let mix = Scenario::new().flow("a visit", 1, flow);
        let test = LoadTest::new(app()).scenario(mix).rate(200).topology(topology).stop_on(&stop);
        let test = test.warmup(Duration::ZERO).duration(Duration::from_secs(600));
        let run = tokio::spawn(test.run());
        tokio::time::sleep(millis(300)).await;
        stop.stop();
        let report = run.await.expect("no panic").expect("valid");
        let counts = &report.runs[0].conservation;
        assert!(report.interrupted && counts.unsent > 20, "{counts:?}");
        assert_eq!((counts.scheduled, counts.sent), (counts.unsent, 0), "{counts:?}");
        assert_eq!(counts.unexplained, 0, "{counts:?}");
        assert_eq!(rules(&report.runs[0]), ["nothing_sent"], "{:?}", report.runs[0].validity);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_arrival_that_waits_for_a_worker_after_its_pause_waits_for_the_service() {
    let blocks = || async { std::thread::sleep(millis(4)) };
    let app = Router::new().route("/", get(blocks)).layer(Perf::new().layer());
    let flow = async |mut session: Session| {
        session.pause(millis(50)).await;
        session.send("late", http::Request::new(Bytes::new())).await?;
        Ok(())
    };
    let test = LoadTest::new(app).scenario(Scenario::new().flow("a visit", 1, flow)).rate(500);
    let report = test.warmup(Duration::ZERO).duration(millis(1_200)).run().await;
    let run = &report.expect("the plan is valid").runs[0];
    let lag = run.client.lag.summary;
    assert!(run.client.outcomes.ok > 300 && lag.p50_us > Some(20_000.0), "{lag:?}");
    // Nor is it missing where requests in flight are counted, also of those that paused past the end.
    assert!(run.conservation.unsent > 0, "{:?}", run.conservation);
    assert_eq!(rules(run), [""; 0], "{:?}", run.validity);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_flow_sends_late_is_the_generators_lag_unless_it_runs_on_the_services_runtime() {
    let app = Router::new().route("/", get(|| async { "tea" })).layer(Perf::new().layer());
    // No pause that the generator knows of: the second request is due when the first has its answer.
    let flow = async |mut session: Session| {
        session.send("first", http::Request::new(Bytes::new())).await?;
        tokio::time::sleep(millis(200)).await;
        session.send("second", http::Request::new(Bytes::new())).await?;
        Ok(())
    };
    for (transport, topology, expected) in [
        (Transport::Pipe(Http::One), Topology::Shared, true),
        (Transport::Direct, Topology::Split, true),
        (Transport::Direct, Topology::Shared, false),
    ] {
        let mix = Scenario::new().flow("both", 1, flow);
        let test = LoadTest::new(app.clone()).scenario(mix).rate(500).warmup(Duration::ZERO);
        let test = test.duration(millis(2_000)).transport(transport).topology(topology);
        let report = test.run().await.expect("the plan is valid");
        let run = &report.runs[0];
        // Half of the requests, in either case.
        let lag = run.client.lag.summary;
        assert!(lag.p90_us > Some(200_000.0), "{lag:?}");
        // A pause of this machine may make the pacer late, but not for certain.
        let late = run.validity.verdict == Verdict::Invalid && rules(run).contains(&"lag");
        assert_eq!(late, expected, "{:?}", run.validity);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_notices_a_timeout_after_its_client_has_no_clock_that_lies() {
    let turn = Arc::new(AtomicU64::new(0));
    let answer = move || {
        let slow = turn.fetch_add(1, Relaxed).is_multiple_of(20);
        async move { tokio::time::sleep(if slow { millis(500) } else { Duration::ZERO }).await }
    };
    let app = Router::new().route("/", get(answer)).layer(Perf::new().layer());
    for transport in [Transport::Pipe(Http::One), Transport::Pipe(Http::Two)] {
        let test = LoadTest::new(app.clone()).get("/").rate(200).transport(transport);
        let test = test.timeout(millis(50)).warmup(Duration::ZERO).duration(millis(1_000));
        let report = test.run().await.expect("the plan is valid");
        let run = &report.runs[0];
        assert!(run.conservation.outcomes.timeout >= 5, "{:?}", run.conservation);
        assert_eq!(run.pairs.negative, 0, "{transport}: {:?}", run.validity);
    }
}
