//! Where the time of a request goes: phases that it names, and the limiter.
//!
//! Time is paused, so every figure is exact.

use std::{collections::BTreeMap, convert::Infallible, future::pending, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    error_handling::HandleErrorLayer,
    extract::Request,
    http::StatusCode,
    response::Response,
    routing::get,
};
use futures_util::{StreamExt, future, stream};
use parallax_middleware::{BypassPolicy, LatencySummary, LimiterView, Outcome, Perf, ServerRecord};
use tokio::{
    task::{JoinSet, spawn},
    time::{sleep, timeout},
};
use tower::{BoxError, Service, ServiceBuilder, buffer::BufferLayer, limit::RateLimitLayer};

use crate::support::rig::{Rig, an_hour, request, with_pass};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A router of one route, whose handler `run` is.
fn handled<F, Fut>(run: F) -> Rig
where
    F: Fn(Perf) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send,
{
    let perf = Perf::new();
    let handler = {
        let perf = perf.clone();
        async move || run(perf).await
    };
    Rig::new(&perf, Router::new().route("/work", get(handler)).layer(perf.layer()))
}

/// The phases of a request, by name and in milliseconds, with `handler`.
fn phases(perf: &Perf, record: &ServerRecord) -> BTreeMap<String, u128> {
    let named = record
        .phases
        .iter()
        .map(|phase| (perf.phase_name(phase.phase).to_owned(), phase.time.as_millis()));
    named.chain([("handler".to_owned(), record.handler.as_millis())]).collect()
}

fn wanted<const N: usize>(phases: [(&str, u128); N]) -> BTreeMap<String, u128> {
    phases.map(|(name, ms)| (name.to_owned(), ms)).into()
}

/// Asserts that the one request so far was in these phases for so many milliseconds, in its own record and in
/// its route's.
async fn assert_phases<const N: usize>(rig: &Rig, expected: [(&str, u128); N]) {
    rig.settled().await;
    let records = rig.records();
    let [record] = &*records else { panic!("one request: {records:?}") };
    assert_eq!(phases(&rig.perf, record), wanted(expected));
    let row = rig.perf.snapshot().view().routes.remove(0);
    let of_route: BTreeMap<String, u128> =
        row.phases.iter().map(|(name, times)| (name.clone(), only(times))).collect();
    assert_eq!(of_route, wanted(expected));
}

/// The only value of a summary, in milliseconds.
fn only(times: &LatencySummary) -> u128 {
    assert_eq!((times.count, times.min_us), (1, times.max_us));
    (times.max_us.expect("there is one") / 1e3) as u128
}

#[tokio::test(start_paused = true)]
async fn a_future_that_is_observed_is_a_phase_and_the_rest_is_the_handlers() {
    let rig = handled(async |perf| {
        sleep(ms(3)).await;
        perf.observe("pool_wait:ldap", sleep(ms(20))).await;
        perf.observe("query:ldap", sleep(ms(5))).await;
        perf.observe("query:ldap", sleep(ms(6))).await;
    });
    rig.get("/work").await;
    assert_phases(&rig, [("handler", 3), ("pool_wait:ldap", 20), ("query:ldap", 11)]).await;
    assert_eq!(rig.row("GET /work").overlap, None);
}

#[tokio::test(start_paused = true)]
async fn a_phase_lasts_until_it_is_dropped() {
    let rig = handled(async |perf| {
        let render = perf.phase("render");
        sleep(ms(20)).await;
        drop(render);
        sleep(ms(1)).await;
    });
    rig.get("/work").await;
    assert_phases(&rig, [("handler", 1), ("render", 20)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_future_that_nobody_polls_is_no_phase() {
    let rig = handled(async |perf| {
        let observed = perf.observe("query", sleep(ms(5)));
        sleep(ms(7)).await;
        drop(observed);
    });
    rig.get("/work").await;
    rig.settled().await;
    assert_eq!(rig.records()[0].phases.len(), 0);
    assert!(rig.row("GET /work").phases.is_empty());
}

#[tokio::test(start_paused = true)]
async fn phases_that_are_joined_overlap_and_the_handler_is_never_less_than_nothing() {
    let rig = handled(async |perf| {
        sleep(ms(2)).await;
        let query = |time| perf.observe("query", sleep(time));
        let cache = perf.observe("cache", sleep(ms(10)));
        future::join3(query(ms(30)), query(ms(20)), cache).await;
    });
    rig.get("/work").await;
    assert_phases(&rig, [("cache", 10), ("handler", 2), ("query", 50)]).await;
    let overlap = rig.row("GET /work").overlap.expect("three at once");
    assert_eq!((overlap.requests, overlap.total_us), (1, 30_000.0));
}

#[tokio::test(start_paused = true)]
async fn what_a_select_or_a_timeout_drops_ends_there() {
    let rig = handled(async |perf| {
        tokio::select! {
            () = perf.observe("slow", pending()) => {}
            () = perf.observe("fast", sleep(ms(4))) => {}
        }
        timeout(ms(5), perf.observe("late", pending::<()>())).await.expect_err("it never ends");
        sleep(ms(6)).await;
    });
    rig.get("/work").await;
    assert_phases(&rig, [("fast", 4), ("handler", 6), ("late", 5), ("slow", 4)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_follows_its_request_is_counted_for_it() {
    let rig = handled(async |perf| {
        let work = {
            let perf = perf.clone();
            async move {
                perf.observe("query", sleep(ms(20))).await;
                // And so does one that it begins.
                let inner = perf.clone();
                let deeper = async move { inner.observe("cache", sleep(ms(5))).await };
                spawn(perf.follow(deeper)).await.expect("no panic");
            }
        };
        spawn(perf.follow(work)).await.expect("no panic");
    });
    rig.get("/work").await;
    assert_phases(&rig, [("cache", 5), ("handler", 0), ("query", 20)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_outlives_its_request_is_counted_until_there() {
    let rig = handled(async |perf| {
        let work = {
            let perf = perf.clone();
            async move { perf.observe("query", sleep(ms(50))).await }
        };
        spawn(perf.follow(work));
        sleep(ms(20)).await;
    });
    rig.get("/work").await;
    assert_phases(&rig, [("handler", 0), ("query", 20)]).await;
    sleep(ms(100)).await;
    assert_phases(&rig, [("handler", 0), ("query", 20)]).await;
}

#[tokio::test(start_paused = true)]
async fn work_for_no_request_is_counted_under_no_route() {
    let rig = handled(async |perf| {
        let work = async move { perf.observe("query", sleep(ms(20))).await };
        spawn(work).await.expect("no panic");
    });
    rig.perf.observe("refresh", sleep(ms(30))).await;
    drop(rig.perf.phase("refresh"));
    rig.get("/work").await;
    rig.settled().await;
    assert!(rig.row("GET /work").phases.is_empty());
    let view = rig.perf.snapshot().view();
    assert_eq!(only(&view.elsewhere["query"]), 20);
    let refresh = view.elsewhere["refresh"];
    assert_eq!((refresh.count, refresh.max_us), (2, Some(30_000.0)));
}

#[tokio::test(start_paused = true)]
async fn each_of_many_requests_on_many_tasks_has_its_own_phases() {
    let perf = Perf::new();
    let handler = {
        let perf = perf.clone();
        async move |axum::extract::Path(n): axum::extract::Path<u64>| {
            for _ in 0..3 {
                perf.observe("query", sleep(ms(n))).await;
            }
        }
    };
    let app = Router::new().route("/work/{n}", get(handler)).layer(perf.layer());
    let rig = Rig::new(&perf, app);
    let mut clients = JoinSet::new();
    for n in 1..=50 {
        let rig = rig.clone();
        clients.spawn(async move { rig.open(request("GET", &format!("/work/{n}"))).await });
    }
    clients.join_all().await;
    rig.settled().await;
    for record in rig.records() {
        let [query] = &*record.phases else { panic!("one phase: {record:?}") };
        assert_eq!((query.time, record.handler), (record.server_time, Duration::ZERO));
    }
    let counted = rig.row("GET /work/{n}").phases["query"];
    assert_eq!((counted.count, counted.max_us), (50, Some(150_000.0)));
}

#[tokio::test(start_paused = true)]
async fn what_a_body_waits_for_while_it_is_sent_is_a_phase_of_its_request() {
    let perf = Perf::new();
    let handler = {
        let perf = perf.clone();
        async move || {
            let rows = stream::iter(0..3).then(move |_| {
                let perf = perf.clone();
                async move {
                    perf.observe("query", sleep(ms(10))).await;
                    Ok::<_, Infallible>(Bytes::from_static(b"row\n"))
                }
            });
            Body::from_stream(rows)
        }
    };
    let rig = Rig::new(&perf, Router::new().route("/rows", get(handler)).layer(perf.layer()));
    assert_eq!(rig.get("/rows").await.body, "row\nrow\nrow\n");
    assert_phases(&rig, [("handler", 0), ("query", 30)]).await;
}

#[tokio::test(start_paused = true)]
async fn requests_that_are_cut_short_or_panic_keep_their_phases() {
    let rig = handled(async |perf| {
        perf.observe("query", sleep(ms(20))).await;
        let _render = perf.phase("render");
        sleep(ms(20)).await;
        panic!("on purpose");
    });
    let cut = timeout(ms(30), rig.open(request("GET", "/work"))).await;
    assert!(cut.is_err());
    let panicked = spawn({
        let rig = rig.clone();
        async move { rig.open(request("GET", "/work")).await }
    });
    assert!(panicked.await.is_err());
    let records = rig.records();
    let all = records.iter().map(|record| (record.outcome, phases(&rig.perf, record)));
    assert_eq!(
        all.collect::<Vec<_>>(),
        [
            (Outcome::Cancelled, wanted([("handler", 0), ("query", 20), ("render", 10)])),
            (Outcome::Panicked, wanted([("handler", 0), ("query", 20), ("render", 20)])),
        ]
    );
    assert_eq!(rig.row("GET /work").phases["render"].count, 2);
    // Nothing of them is left for what comes next on this thread.
    drop(rig.perf.phase("afterwards"));
    assert_eq!(rig.perf.snapshot().view().elsewhere["afterwards"].count, 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_within_a_request_has_phases_of_its_own() {
    let perf = Perf::new();
    let inner = {
        let perf = perf.clone();
        async move || perf.observe("query", sleep(ms(20))).await
    };
    let inner = Router::new().route("/inner", get(inner)).layer(perf.layer());
    let outer = {
        let perf = perf.clone();
        async move || {
            let call = inner.clone().call(request("GET", "/inner"));
            perf.observe("upstream", call).await.expect("routers do not fail");
            perf.observe("query", sleep(ms(1))).await;
        }
    };
    let app = Router::new().route("/outer", get(outer)).layer(perf.layer());
    let rig = Rig::new(&perf, app);
    rig.get("/outer").await;
    let of = |route, phase: &str| only(&rig.row(route).phases[phase]);
    assert_eq!((of("GET /outer", "upstream"), of("GET /outer", "query")), (20, 1));
    assert_eq!(of("GET /inner", "query"), 20);
}

#[tokio::test(start_paused = true)]
async fn a_handle_that_does_not_watch_the_request_counts_its_phases_elsewhere() {
    let other = Perf::new();
    let rig = handled({
        let other = other.clone();
        move |_| {
            let other = other.clone();
            async move { other.observe("query", sleep(ms(20))).await }
        }
    });
    rig.get("/work").await;
    assert!(rig.row("GET /work").phases.is_empty());
    assert_eq!(only(&other.snapshot().view().elsewhere["query"]), 20);
}

#[tokio::test(start_paused = true)]
async fn names_are_bounded() {
    let rig = handled(async |perf| {
        for n in 0..1_000 {
            drop(perf.phase(&format!("user {n}")));
        }
    });
    rig.get("/work").await;
    let phases = rig.row("GET /work").phases;
    assert_eq!(phases.len(), 63, "61 names, (other) and handler");
    assert!(phases.contains_key("(other)") && phases.contains_key("user 0"));
}

#[tokio::test(start_paused = true)]
async fn phases_are_in_intervals_windows_and_what_is_stored() {
    let rig = handled(async |perf| perf.observe("query", sleep(ms(20))).await);
    let window = || rig.perf.window(parallax_middleware::Window::TenSeconds);
    window();
    rig.get("/work").await;
    let first = rig.perf.snapshot();
    rig.get("/work").await;
    sleep(ms(2_500)).await;
    let both = rig.perf.snapshot();
    let count =
        |snapshot: &parallax_middleware::Snapshot| snapshot.view().routes[0].phases["query"].count;
    assert_eq!((count(&first), count(&both), count(&both.since(&first))), (1, 2, 1));
    assert_eq!(count(&window()), 2);
    let json = serde_json::to_string(&both).expect("it can be written");
    let mut read: parallax_middleware::Snapshot = serde_json::from_str(&json).expect("it is read");
    assert_eq!(read, both);
    read.merge(&both);
    assert_eq!(count(&read), 4);
}

/// A limiter that takes 30 ms for those that it lets through, and 10 ms for those that it refuses.
#[derive(Clone)]
struct Slow<S> {
    inner: S,
    refuse: bool,
}

impl<S> Service<Request> for Slow<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = future::BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let Self { mut inner, refuse } = self.clone();
        Box::pin(async move {
            sleep(ms(10)).await;
            if refuse {
                drop(request);
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                return Ok(response);
            }
            sleep(ms(20)).await;
            inner.call(request).await
        })
    }
}

fn slow(perf: &Perf, refuse: bool) -> Rig {
    let handler = {
        let perf = perf.clone();
        async move || perf.observe("query", sleep(ms(5))).await
    };
    let limiter = tower::layer::layer_fn(move |inner| Slow { inner, refuse });
    let app = Router::new()
        .route("/work", get(handler))
        .layer(perf.bypass(BypassPolicy::in_process()).around(limiter))
        .layer(perf.layer());
    Rig::new(perf, app)
}

#[tokio::test(start_paused = true)]
async fn time_in_a_limiter_is_a_phase_until_it_lets_through_or_refuses() {
    let rig = slow(&Perf::new(), false);
    rig.get("/work").await;
    assert_phases(&rig, [("handler", 0), ("limiter", 30), ("query", 5)]).await;
    let rig = slow(&Perf::new(), true);
    rig.get("/work").await;
    assert_phases(&rig, [("handler", 0), ("limiter", 10)]).await;
}

#[tokio::test(start_paused = true)]
async fn what_passes_by_a_limiter_is_in_none_and_kept_apart_from_users() {
    let rig = slow(&Perf::new(), false);
    for _ in 0..3 {
        rig.send(with_pass(request("GET", "/work"))).await;
    }
    rig.get("/work").await;
    let row = rig.row("GET /work");
    assert_eq!((row.requests, row.bypassed, row.outcomes.ok), (4, 3, 4));
    // The user's request alone.
    assert_eq!((row.latency.count, row.latency.max_us), (1, Some(35_000.0)));
    assert_eq!(only(&row.phases["limiter"]), 30);
    let load = row.load.expect("three passed");
    assert_eq!((load.outcomes.ok, load.latency.count), (3, 3));
    assert_eq!((load.latency.max_us, load.phases["query"].count), (Some(5_000.0), 3));
    assert!(!load.phases.contains_key("limiter"));
    rig.assert_recorded(&[("GET /work", Outcome::Ok, 4)]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_handed_on_and_in_no_phase_has_none() {
    let rig = handled(async |perf| {
        spawn(perf.follow(async {})).await.expect("no panic");
    });
    rig.get("/work").await;
    rig.settled().await;
    assert!(rig.row("GET /work").phases.is_empty());
}

#[tokio::test]
async fn what_a_limiter_does_is_counted_by_route() {
    let perf = Perf::new();
    let app = Router::new()
        .route("/a", get(async || "a"))
        .route("/b", get(async || "b"))
        .layer(perf.bypass(BypassPolicy::in_process()).around(an_hour(3)))
        .layer(perf.layer());
    let rig = Rig::new(&perf, app);
    for path in ["/a", "/a", "/b", "/b", "/b"] {
        rig.get(path).await;
    }
    rig.send(with_pass(request("GET", "/b"))).await;
    let of = |route| rig.row(route).limiter.expect("it met one");
    assert_eq!(of("GET /a"), LimiterView { admitted: 2, ..LimiterView::default() });
    assert_eq!(
        of("GET /b"),
        LimiterView { admitted: 1, limited: 2, bypassed: 1, ..LimiterView::default() }
    );
    assert_eq!(rig.row("GET /b").bypassed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_limiter_that_calls_from_a_task_of_its_own_ends_where_it_lets_through() {
    // One a second, behind a queue: the usual way to make tower's limiter one that can be cloned.
    let perf = Perf::new();
    let handler = {
        let perf = perf.clone();
        async move || perf.observe("query", sleep(ms(5))).await
    };
    let limiter = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(async |_: BoxError| StatusCode::INTERNAL_SERVER_ERROR))
        .layer(BufferLayer::new(16))
        .layer(RateLimitLayer::new(1, Duration::from_secs(1)));
    let app = Router::new()
        .route("/work", get(handler))
        .layer(perf.bypass(BypassPolicy::in_process()).around(limiter))
        .layer(perf.layer());
    // With its state, so that all requests meet one limiter.
    let rig = Rig::new(&perf, app.with_state(()));
    rig.get("/work").await;
    rig.get("/work").await;
    let second = rig.records().pop().expect("two requests");
    assert_eq!(phases(&perf, &second), wanted([("handler", 0), ("limiter", 995), ("query", 5)]));
}
