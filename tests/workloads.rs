//! What a load looks like over time, and what a user of it can ask for.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::SET_COOKIE},
    response::IntoResponse,
    routing::{get, post},
};
use bytes::Bytes;
use http::Request;
use parallax_loadgen::{
    Arrivals, FlowError, LoadTest, LoadTestError, Pacer, Pause, Scenario, Session, Stop, Topology,
    Verdict,
    report::{Check, Run},
};
use parallax_middleware::Perf;
use serde_json::{Value, json};
use tokio::time::sleep;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn app() -> Router {
    Router::new()
        .route("/fast", get(|| async { "tea" }))
        .route(
            "/slow",
            get(|| async {
                sleep(millis(20)).await;
                "slow"
            }),
        )
        .layer(Perf::new().layer())
}

async fn run(test: LoadTest) -> Run {
    let report = test.warmup(Duration::ZERO).run().await.expect("the plan is valid");
    let run = report.runs.into_iter().next().expect("one run");
    let c = &run.conservation;
    assert_eq!(c.unexplained, 0, "{c:#?}");
    assert_eq!(c.scheduled, c.dropped + c.sent + c.unsent, "{c:#?}");
    assert_eq!(c.sent, c.outcomes.total() + c.in_flight, "{c:#?}");
    run
}

fn get_request(path: &str) -> Request<Bytes> {
    Request::get(path).body(Bytes::new()).expect("valid")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_follows_its_stages() {
    // Up to 1,000/s in 400 ms, which are 200 requests, as many at that rate in 200 ms, then none.
    let stages =
        [(millis(400), 1_000.0), (millis(200), 1_000.0), (Duration::ZERO, 0.0), (millis(400), 0.0)];
    let run = run(LoadTest::new(app()).get("/fast").stages(stages)).await;
    assert_eq!((run.conservation.scheduled, run.conservation.sent), (400, 400));
    let due_before = |end: f64| {
        let rows = run.timeline.iter().filter(|row| row.at_s < end - 1e-9);
        rows.map(|row| row.ok + row.failed).sum::<u64>()
    };
    // A ramp has sent a quarter of its requests when half its time is over.
    assert_eq!((due_before(0.2), due_before(0.4), due_before(0.6)), (50, 200, 400));
    assert_eq!(run.plan.stages.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_arrivals_are_the_same_for_the_same_seed() {
    let scheduled = async |seed| {
        let test = LoadTest::new(app()).get("/fast").rate(500).arrivals(Arrivals::Poisson);
        let run = run(test.duration(millis(400)).seed(seed)).await;
        (run.conservation.scheduled, run.plan.arrivals)
    };
    let first = scheduled(1).await;
    assert_eq!(first.1.as_deref(), Some("poisson"));
    assert_eq!(first, scheduled(1).await);
    // Five standard deviations around 200.
    assert!(first.0.abs_diff(200) < 71, "{first:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_sends_what_was_recorded() {
    let starts = [9_000, 9_010, 9_010, 9_300].map(millis);
    let run = run(LoadTest::new(app()).get("/fast").replay(starts)).await;
    assert_eq!(run.conservation.sent, 4);
    assert!((0.3..0.4).contains(&run.measured_s), "{}", run.measured_s);
    let gaps = run.generator.expect("it is told").arrival_gap.expect("an open workload");
    assert_eq!(gaps.summary.count, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_so_many_requests_sends_so_many_and_ends() {
    let closed = LoadTest::new(app()).get("/slow").users(7).requests(50);
    let open = LoadTest::new(app()).get("/slow").rate(1_000).requests(50);
    for test in [closed, open] {
        let run = run(test).await;
        assert_eq!((run.conservation.scheduled, run.conservation.outcomes.ok), (50, 50));
        assert!(!run.interrupted);
        // At most 10 minutes, it said; and it was over with its last answer, which is part of the rate.
        assert!(run.measured_s < 60.0, "{}", run.measured_s);
        assert!((run.client.rate * run.measured_s - 50.0).abs() < 1e-6, "{}", run.client.rate);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_come_and_go_in_stages() {
    let present = Arc::new(Mutex::new((0_usize, 0_usize)));
    let app = {
        let present = present.clone();
        let slow = move || async move {
            {
                let mut present = present.lock().expect("no panic");
                present.0 += 1;
                present.1 = present.1.max(present.0);
            }
            sleep(millis(5)).await;
            present.lock().expect("no panic").0 -= 1;
        };
        Router::new().route("/", get(slow)).layer(Perf::new().layer())
    };
    let stages = [(millis(300), 8), (millis(200), 8), (millis(300), 0)];
    let run = run(LoadTest::new(app).get("/").user_stages(stages)).await;
    assert_eq!(present.lock().expect("no panic").1, 8, "all were there at once");
    assert_eq!(run.plan.users, Some(8));
    // Fewer at the beginning and at the end than in the middle.
    let slots: Vec<u64> = run.timeline.iter().map(|row| row.ok).collect();
    assert!(slots[0] < slots[3] && slots[7] < slots[4], "{slots:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paced_user_asks_at_its_own_beat() {
    let paced = LoadTest::new(app()).get("/slow").users(1).pacing(millis(50));
    let run_ = run(paced.duration(millis(500))).await;
    // The answer takes 20 of the 50 ms: pauses of 50 ms would leave 7 requests, not 10.
    assert_eq!(run_.conservation.sent, 10);
    assert_eq!(run_.plan.pacing_s, Some(0.05));
    let late = LoadTest::new(app()).get("/slow").users(1).pacing(millis(10));
    let run_ = run(late.duration(millis(300))).await;
    // Who cannot keep the beat asks again at once.
    assert!((8..=15).contains(&run_.conservation.sent), "{}", run_.conservation.sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_pacer_and_each_topology_sends_the_same() {
    for pacer in [Pacer::Precise, Pacer::Coarse] {
        for topology in [Topology::Shared, Topology::Split] {
            let test = || LoadTest::new(app()).get("/fast").pacer(pacer).topology(topology);
            let open = run(test().rate(500).duration(millis(300))).await;
            assert_eq!((open.conservation.sent, open.pairs.paired), (150, 150));
            assert_eq!(open.plan.pacer, pacer.name());
            assert_eq!(open.plan.topology, topology.name());
            let pause = Pause::Exponential(millis(10));
            let closed = run(test().users(5).think_time(pause).duration(millis(300))).await;
            assert!(closed.conservation.sent > 20, "{:?}", closed.conservation);
            assert_eq!(closed.pairs.paired, closed.conservation.sent);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_generator_says_what_it_costs() {
    let run = run(LoadTest::new(app()).get("/fast").users(2).duration(millis(300))).await;
    let generator = run.generator.expect("it is told");
    let ns = generator.ns_per_request.expect("it was measured");
    assert!((10.0..1e6).contains(&ns), "{ns}");
    let share = generator.cpu_share.expect("Linux tells processor time");
    assert!(share > 0.0 && share <= 1.0, "{share}");
    assert!(generator.arrival_gap.is_none(), "users have no arrivals");
    // Once in 20 ms, at the most.
    let wake_ups = generator.wake_ups.expect("time is real").summary;
    assert!((1..=20).contains(&wake_ups.count), "{wake_ups:?}");
}

/// A shop: orders that are created, read under their id, and only by whoever has the session's cookie.
fn shop() -> (Router, Arc<Shop>) {
    let shop = Arc::new(Shop::default());
    let router = Router::new()
        .route("/login", post(login))
        .route("/orders", post(create))
        .route("/orders/{id}", get(read))
        .with_state(shop.clone())
        .layer(Perf::new().layer());
    (router, shop)
}

#[derive(Default)]
struct Shop {
    logins: AtomicU64,
    created: AtomicU64,
    read: Mutex<BTreeSet<u64>>,
}

async fn login(State(shop): State<Arc<Shop>>) -> impl IntoResponse {
    let n = shop.logins.fetch_add(1, SeqCst);
    ([(SET_COOKIE, format!("session=s{n}; Path=/; HttpOnly"))], "welcome")
}

async fn create(State(shop): State<Arc<Shop>>, headers: HeaderMap) -> (StatusCode, Json<Value>) {
    let cookie = headers.get("cookie").and_then(|value| value.to_str().ok());
    if cookie.is_none_or(|cookie| !cookie.starts_with("session=s")) {
        return (StatusCode::UNAUTHORIZED, Json(json!({})));
    }
    let id = shop.created.fetch_add(1, SeqCst);
    (StatusCode::CREATED, Json(json!({ "order": { "id": id } })))
}

async fn read(State(shop): State<Arc<Shop>>, Path(id): Path<u64>) -> Json<Value> {
    shop.read.lock().expect("no panic").insert(id);
    Json(json!({ "id": id, "state": if id % 10 == 3 { "lost" } else { "open" } }))
}

async fn order(mut session: Session) -> Result<(), FlowError> {
    session.send("log in", Request::post("/login").body(Bytes::new())?).await?;
    session.pause(millis(2)).await;
    let created = session.send("create", Request::post("/orders").body(Bytes::new())?).await?;
    session.check("an order is created", created.status == StatusCode::CREATED);
    let id = created.text_at("/order/id")?;
    let read = session.send("read", get_request(&format!("/orders/{id}"))).await?;
    session.check("the order is open", read.text_at("/state")? == "open");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_carries_ids_and_cookies_from_answer_to_request() {
    for open in [false, true] {
        let (router, shop) = shop();
        let test = LoadTest::new(router).scenario(Scenario::new().flow("order", 1, order));
        let test = if open { test.rate(100) } else { test.users(4) };
        let run = run(test.duration(millis(500))).await;
        let rows: Vec<_> = run.client.routes.iter().map(|row| row.route.as_str()).collect();
        assert_eq!(rows, ["GET /orders/{id}", "POST /login", "POST /orders"]);
        let created = shop.created.load(SeqCst);
        assert!(created > 20, "{created}");
        // The preflight's order is the first. At the end an order may be left that nobody reads.
        let read = shop.read.lock().expect("no panic").len() as u64;
        assert!(read <= created && read + 60 > created, "{read} of {created}");
        let lost = run.conservation.outcomes.check_failed;
        let [made, state] = &run.checks[..] else { panic!("{:?}", run.checks) };
        assert_eq!((made.name.as_str(), made.failed), ("an order is created", 0));
        assert_eq!((state.name.as_str(), state.failed), ("the order is open", lost));
        assert!(lost > 0 && state.passed > 5 * lost, "{state:?}");
        if open {
            // A flow of three requests: each arrival is followed by what its answers make due.
            assert_eq!(run.conservation.scheduled, run.conservation.sent);
            assert!(run.conservation.sent > 120, "{:?}", run.conservation);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_within_a_flow_is_no_part_of_any_response_time() {
    let flow = |mut session: Session| async move {
        session.send("first", get_request("/fast")).await?;
        session.pause(millis(30)).await;
        session.send("second", get_request("/fast")).await?;
        // Nor is one at the end: the next iteration is due after it.
        session.pause(millis(30)).await;
        Ok(())
    };
    let test = LoadTest::new(app()).scenario(Scenario::new().flow("two", 1, flow)).users(2);
    let run = run(test.duration(millis(900))).await;
    // Each user at most 15 times two requests.
    assert!((20..=62).contains(&run.conservation.sent), "{}", run.conservation.sent);
    let p50 = run.client.response_time.summary.p50_us.expect("enough");
    assert!(p50 < 20_000.0, "{p50} µs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_in_a_flow_fails_its_last_request_and_says_why() {
    let flow = |mut session: Session| async move {
        let reply = session.send("read", get_request("/fast")).await?;
        reply.json::<u64>()?;
        Ok(())
    };
    let test = LoadTest::new(app()).scenario(Scenario::new().flow("reads", 1, flow)).users(1);
    let run = run(test.duration(millis(200)).think_time(millis(5))).await;
    let outcomes = run.conservation.outcomes;
    assert_eq!((outcomes.ok, outcomes.check_failed), (0, run.conservation.sent));
    let [Check { failed, first_failure: Some(why), .. }] = &run.checks[..] else {
        panic!("{:?}", run.checks)
    };
    assert_eq!(*failed, run.conservation.sent);
    assert!(why.contains("expected"), "{why}");
    assert_eq!(run.verdict, Verdict::Invalid, "nothing succeeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_that_sends_nothing_is_counted_as_unsent() {
    let nothing = |_: Session| async { Ok(()) };
    let test = LoadTest::new(app()).scenario(Scenario::new().flow("idle", 1, nothing)).rate(100);
    let run_ = run(test.duration(millis(200))).await;
    assert_eq!((run_.conservation.scheduled, run_.conservation.unsent), (20, 20));
    let pauses = |mut session: Session| async move {
        session.pause(millis(1)).await;
        Ok(())
    };
    let test = LoadTest::new(app()).scenario(Scenario::new().flow("idle", 1, pauses)).rate(100);
    let run_ = run(test.duration(millis(200))).await;
    assert_eq!((run_.conservation.scheduled, run_.conservation.unsent), (20, 20));
    let test = LoadTest::new(app()).scenario(Scenario::new().flow("idle", 1, nothing)).users(2);
    let run_ = run(test.duration(millis(200))).await;
    assert_eq!(run_.conservation.sent, 0);
    assert_eq!(run_.verdict, Verdict::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn setup_and_teardown_run_once_and_count_in_no_figure() {
    let (router, shop) = shop();
    let torn_down = Arc::new(AtomicUsize::new(0));
    let scenario = Scenario::new()
        .setup(|mut session| async move {
            session.send("log in", Request::post("/login").body(Bytes::new())?).await?;
            let cookie = session.cookie("session").unwrap_or_default().to_owned();
            session.set("session", cookie);
            Ok(())
        })
        .flow("create", 1, |mut session: Session| async move {
            let cookie = session.get("session").unwrap_or_default();
            let request = Request::post("/orders").header("cookie", format!("session={cookie}"));
            let reply = session.send("create", request.body(Bytes::new())?).await?;
            session.check("it is created", reply.status == StatusCode::CREATED);
            Ok(())
        })
        .teardown({
            let torn_down = torn_down.clone();
            move |mut session| {
                let torn_down = torn_down.clone();
                async move {
                    session.send("read", get_request("/orders/0")).await?;
                    torn_down.fetch_add(1, SeqCst);
                    Ok(())
                }
            }
        });
    let stop = Stop::new();
    let test = LoadTest::new(router).scenario(scenario).users(2).stop_on(&stop);
    let stopping = async {
        sleep(millis(300)).await;
        stop.stop();
    };
    let (run, ()) = tokio::join!(run(test.duration(Duration::from_secs(60))), stopping);
    assert!(run.interrupted);
    assert_eq!((shop.logins.load(SeqCst), torn_down.load(SeqCst)), (1, 1));
    assert_eq!(run.conservation.outcomes.ok, run.conservation.sent);
    let rows: Vec<_> = run.client.routes.iter().map(|row| row.route.as_str()).collect();
    assert_eq!(rows, ["POST /orders"], "nothing of setup and teardown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setup_that_fails_stops_the_run_with_its_reason() {
    let scenario = Scenario::new().setup(|_| async { Err(FlowError::new("no account")) }).step(
        "fast",
        1,
        |_| get_request("/fast"),
    );
    let result = LoadTest::new(app()).scenario(scenario).run().await;
    let Err(LoadTestError::Setup(reason)) = result else { panic!("{result:?}") };
    assert_eq!(reason, "no account");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_requests_are_those_of_the_flows_too() {
    let flow = |mut session: Session| async move {
        session.send("first", get_request("/fast")).await?;
        session.pause(millis(20)).await;
        session.send("second", get_request("/fast")).await?;
        Ok(())
    };
    for open in [false, true] {
        let test = LoadTest::new(app()).scenario(Scenario::new().flow("two", 1, flow)).requests(20);
        let run = run(if open { test.rate(1_000) } else { test.users(3) }).await;
        // Also those that a pause still holds up when all others have their answers.
        assert_eq!((run.conservation.scheduled, run.conservation.outcomes.ok), (20, 20));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_that_pause_count_against_the_bound_too() {
    let flow = |mut session: Session| async move {
        session.send("first", get_request("/fast")).await?;
        session.pause(Duration::from_secs(60)).await;
        Ok(())
    };
    let test = LoadTest::new(app()).scenario(Scenario::new().flow("lingers", 1, flow)).rate(200);
    let run = run(test.max_in_flight(10).duration(millis(300))).await;
    assert_eq!((run.conservation.sent, run.conservation.dropped), (10, 50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_teardown_that_fails_costs_no_figure_and_is_told() {
    let scenario = Scenario::new()
        .step("fast", 1, |_| get_request("/fast"))
        .teardown(|_| async { Err(FlowError::new("the account stays")) });
    let run = run(LoadTest::new(app()).scenario(scenario).users(1).duration(millis(200))).await;
    assert!(run.conservation.outcomes.ok > 0);
    let [Check { name, failed: 1, first_failure: Some(why), .. }] = &run.checks[..] else {
        panic!("{:?}", run.checks)
    };
    assert_eq!((name.as_str(), why.as_str()), ("teardown", "the account stays"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_that_never_ends_by_itself_ends_with_the_run() {
    let goes_on = |mut session: Session| async move {
        loop {
            session.send("again", get_request("/fast")).await?;
            session.pause(millis(5)).await;
        }
    };
    // Nor does it ever hear that the run is over.
    let deaf = |mut session: Session| async move {
        loop {
            let _ = session.send("again", get_request("/fast")).await;
            session.pause(millis(5)).await;
        }
    };
    for open in [false, true] {
        for scenario in
            [Scenario::new().flow("on", 1, goes_on), Scenario::new().flow("deaf", 1, deaf)]
        {
            let test = LoadTest::new(app()).scenario(scenario).duration(millis(200));
            let run = run(if open { test.rate(20) } else { test.users(4) }).await;
            // At once, and every 5 ms from then on.
            assert!((4..=4 * 41).contains(&run.conservation.sent), "{:?}", run.conservation);
            assert_eq!(run.conservation.in_flight, 0);
            let recorded = run.server.expect("the layer answered").routes[0].requests;
            assert_eq!(recorded, run.conservation.sent, "the trial of the flow has ended too");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_counts_whatever_its_flow_waits_for_afterwards() {
    let lingers = |mut session: Session| async move {
        session.send("first", get_request("/fast")).await?;
        sleep(Duration::from_secs(3_600)).await;
        Ok(())
    };
    for open in [false, true] {
        let scenario = Scenario::new().flow("lingers", 1, lingers);
        let test = LoadTest::new(app()).scenario(scenario).timeout(millis(200));
        let test = test.duration(millis(200));
        let run = run(if open { test.rate(20) } else { test.users(4) }).await;
        assert_eq!((run.conservation.outcomes.ok, run.conservation.in_flight), (4, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thinking_after_the_last_request_is_no_part_of_a_run_of_so_many() {
    let test = LoadTest::new(app()).get("/fast").users(5).think_time(Duration::from_secs(2));
    let run = run(test.requests(4)).await;
    // Users begin 400 ms apart: the fourth asks after 1.2 s.
    assert_eq!(run.conservation.outcomes.ok, 4);
    assert!((1.2..1.9).contains(&run.measured_s), "{}", run.measured_s);
}

#[tokio::test]
async fn a_user_who_still_waits_when_the_next_stage_wants_it_is_not_late() {
    let slow = || async { sleep(millis(700)).await };
    let router = Router::new().route("/", get(slow)).layer(Perf::new().layer());
    let second = Duration::from_secs(1);
    let stages = [
        (Duration::ZERO, 1),
        (second, 1),
        (Duration::ZERO, 0),
        (millis(100), 0),
        (Duration::ZERO, 1),
        (second, 1),
    ];
    let test = LoadTest::new(router).get("/").user_stages(stages).virtual_time();
    let run = run(test).await;
    // Due at 0, at 0.7 s, and at 1.4 s: not at 1.1 s, when its stage begins.
    assert_eq!(run.conservation.outcomes.ok, 3);
    let lag = run.client.lag.summary.max_us.expect("some");
    assert!(lag <= 1_100.0, "{lag} µs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_fails_in_the_setup_fails_it() {
    let scenario = Scenario::new()
        .setup(|mut session| async move {
            let reply = session.send("log in", get_request("/fast")).await?;
            session.check("logged in", reply.status == StatusCode::CREATED);
            Ok(())
        })
        .step("fast", 1, |_| get_request("/fast"));
    let result = LoadTest::new(app()).scenario(scenario).run().await;
    let Err(LoadTestError::Setup(reason)) = result else { panic!("{result:?}") };
    assert_eq!(reason, "logged in: it does not hold");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_stopped_during_its_setup_is_interrupted_and_reports() {
    let stop = Stop::new();
    let stopping = stop.clone();
    let scenario = Scenario::new()
        .setup(move |_| {
            let stop = stopping.clone();
            async move {
                stop.stop();
                sleep(Duration::from_secs(3_600)).await;
                Ok(())
            }
        })
        .step("fast", 1, |_| get_request("/fast"));
    let run = run(LoadTest::new(app()).scenario(scenario).users(2).stop_on(&stop)).await;
    assert!(run.interrupted);
}
