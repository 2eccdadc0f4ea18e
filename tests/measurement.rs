//! What a run tells of itself: its slots, its warm-up, its machine, and whether it may be believed.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::get};
use parallax_loadgen::{
    Arrivals, LoadTest, Scenario, Session, Topology, Verdict,
    report::{ClientOutcomes, Run, TimelineRow},
};
use parallax_middleware::Perf;
use tokio::time::{Instant, sleep};

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

async fn run(test: LoadTest) -> Run {
    let report = test.run().await.expect("the plan is valid");
    let run = report.runs.into_iter().next().expect("one run");
    assert_eq!(run.conservation.unexplained, 0, "{:#?}", run.conservation);
    run
}

fn rules(run: &Run) -> Vec<&str> {
    run.validity.reasons.iter().map(|reason| reason.rule.as_str()).collect()
}

/// Answers each third request with 500, and each with 429 that comes after one.
fn three_ways() -> Router {
    let turn = Arc::new(AtomicU64::new(0));
    let answer = move || {
        let turn = turn.fetch_add(1, Relaxed);
        async move {
            sleep(millis(2)).await;
            match turn % 3 {
                0 => StatusCode::OK,
                1 => StatusCode::INTERNAL_SERVER_ERROR,
                _ => StatusCode::TOO_MANY_REQUESTS,
            }
        }
    };
    Router::new().route("/", get(answer)).layer(Perf::new().layer())
}

fn sum(rows: &[TimelineRow]) -> ClientOutcomes {
    let mut sum = ClientOutcomes::default();
    for row in rows {
        let o = &row.outcomes;
        assert_eq!((o.ok, o.failed()), (row.ok, row.failed), "{row:?}");
        sum.ok += o.ok;
        sum.server_error += o.server_error;
        sum.limited += o.limited;
        assert_eq!(o.total(), o.ok + o.server_error + o.limited, "{row:?}");
    }
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_slot_says_how_its_requests_ended_and_so_does_each_of_the_warm_up() {
    let test = LoadTest::new(three_ways()).get("/").rate(300);
    let run = run(test.warmup(millis(500)).duration(millis(1_000))).await;
    assert_eq!(sum(&run.timeline), run.conservation.outcomes);
    assert_eq!(sum(&run.warmup).total(), 150, "300/s for half a second");
    let ends = run.warmup.last().map(|row| row.at_s + row.width_s);
    assert!((ends.expect("rows") - 0.5).abs() < 1e-6, "{:?}", run.warmup);
}

#[tokio::test]
async fn a_run_without_a_warm_up_shows_none() {
    let test = LoadTest::new(three_ways()).get("/").users(1).warmup(Duration::ZERO);
    assert_eq!(run(test.duration(millis(200))).await.warmup, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_show_how_the_pools_stand() {
    let perf = Perf::new();
    let (held, wanted) = (perf.pool("held"), perf.pool("wanted"));
    let layer = perf.layer();
    let handler = move || {
        let (held, wanted) = (held.clone(), wanted.clone());
        async move {
            let _hold = held.wait().acquired();
            let wait = wanted.wait();
            sleep(millis(250)).await;
            drop(wait);
        }
    };
    let app = Router::new().route("/", get(handler)).layer(layer);
    let test = LoadTest::new(app).get("/").users(3);
    let run = run(test.warmup(millis(100)).duration(millis(1_000))).await;
    let most = |name: &str, what: fn(&parallax_loadgen::report::PoolRow) -> u64| {
        let pools = run.resources.iter().flat_map(|row| &row.pools);
        pools.filter(|pool| pool.name == name).map(what).max()
    };
    assert_eq!(most("held", |pool| pool.in_use), Some(3));
    assert_eq!(most("wanted", |pool| pool.waiting), Some(3));
    assert_eq!(most("wanted", |pool| pool.in_use), Some(0));
}

/// Blocks the thread that it runs on.
fn blocking(time: Duration) -> Router {
    let handler = move || async move { thread::sleep(time) };
    Router::new().route("/", get(handler)).layer(Perf::new().layer())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_busy_runtime_is_the_services_also_if_the_generator_has_another() {
    for topology in [Topology::Shared, Topology::Split] {
        let test = LoadTest::new(blocking(millis(20))).get("/").users(4).topology(topology);
        let run = run(test.warmup(millis(100)).duration(millis(1_000))).await;
        assert_eq!(run.resources[0].busy_ratio, None, "there is no row before it");
        let busy: Vec<f64> = run.resources.iter().filter_map(|row| row.busy_ratio).collect();
        assert!(
            busy.len() >= 5 && busy.iter().all(|share| (0.0..=1.0).contains(share)),
            "{busy:?}"
        );
        // A worker that is blocked is busy, for all that the runtime knows.
        assert!(busy.iter().any(|share| *share > 0.6), "{topology:?}: {busy:?}");
        assert!(run.resources.iter().all(|row| row.queue_depth.is_some()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_is_missed_while_the_runtime_is_blocked_says_nothing_about_the_service() {
    let test = || LoadTest::new(blocking(millis(50))).get("/").users(8).warmup(millis(100));
    let missed = run(test().duration(Duration::from_secs(3)).threshold("p99 < 25ms")).await;
    assert_eq!(rules(&missed), ["saturated"], "{:?}", missed.validity);
    assert_eq!(missed.verdict, Verdict::Invalid);
    let message = &missed.validity.reasons[0].message;
    assert!(
        message.contains("p99 < 25ms") && message.contains("late where that counts"),
        "{message}"
    );
    let worst = missed.resources.iter().filter_map(|row| row.canary_us).fold(0.0, f64::max);
    assert!(worst > 25_000.0, "{worst}");
    // Who meets the limit all the same has met it.
    let met = run(test().duration(Duration::from_secs(3)).threshold("p99 < 60s")).await;
    assert_eq!(rules(&met), [""; 0], "{:?}", met.validity);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_is_missed_by_far_more_than_the_machine_was_late_stays_missed() {
    let app = Router::new().route("/", get(|| sleep(millis(900)))).layer(Perf::new().layer());
    let test = LoadTest::new(app).get("/").rate(100).warmup(Duration::ZERO);
    let run = run(test.duration(Duration::from_secs(3)).threshold("p50 < 10ms")).await;
    assert_eq!(run.validity.verdict, Verdict::Pass, "{:?}", run.validity);
    assert_ne!(run.verdict, Verdict::Pass);
}

#[tokio::test]
async fn rejections_that_masquerade_are_told_from_answers() {
    // 600 of 1 ms, 396 of 100 ms and 4 of 500 ms, spread over the run.
    let turn = Arc::new(AtomicU64::new(0));
    let answer = move || {
        let turn = turn.fetch_add(1, Relaxed);
        async move {
            let (ms, status) = match turn % 250 {
                0 => (500, StatusCode::OK),
                n if n % 5 < 2 => (100, StatusCode::OK),
                _ => (1, StatusCode::TOO_MANY_REQUESTS),
            };
            sleep(millis(ms)).await;
            status
        }
    };
    let app = Router::new().route("/", get(answer)).layer(Perf::new().layer());
    let test = LoadTest::new(app).get("/").users(1).warmup(Duration::ZERO).requests(1_000);
    // One request goes ahead to see who answers; those after it are a thousand in four rounds all the same.
    let run = run(test.virtual_time()).await;
    let outcomes = run.conservation.outcomes;
    assert_eq!((outcomes.ok, outcomes.limited, run.conservation.sent), (400, 600, 1_000));
    assert_eq!(rules(&run), ["masquerade"], "{:?}", run.validity);
    let p50 = run.client.response_time.summary.p50_us.expect("enough successes");
    assert!((p50 / 100_000.0 - 1.0).abs() < 0.04, "{p50}");
    // Of 400 the 396th, and the last.
    let of = run.client.response_time.summary;
    let (p99, most) = (of.p99_us.expect("enough successes"), of.max_us.expect("enough"));
    assert!((p99 / 100_000.0 - 1.0).abs() < 0.04, "{p99}");
    assert!((most / 500_000.0 - 1.0).abs() < 0.04, "{most}");
    let message = &run.validity.reasons[0].message;
    assert!(message.contains("60.0 %"), "{message}");
}

#[tokio::test]
async fn rejections_are_compared_with_all_successes_of_a_flow_not_with_its_first() {
    // One request in twenty is turned away, in as long as the others take.
    let turn = Arc::new(AtomicU64::new(0));
    let answer = move || {
        let turn = turn.fetch_add(1, Relaxed);
        async move {
            sleep(millis(10)).await;
            if turn.is_multiple_of(20) { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::OK }
        }
    };
    let login = || sleep(millis(60));
    let app = Router::new().route("/login", get(login)).route("/", get(answer));
    let flow = async |mut session: Session| {
        for path in ["/login", "/", "/", "/", "/", "/", "/", "/", "/", "/"] {
            let request = http::Request::get(path).body(bytes::Bytes::new());
            session.send(path, request.expect("a request")).await?;
        }
        Ok(())
    };
    let mix = Scenario::new().flow("a day", 1, flow);
    let test = LoadTest::new(app.layer(Perf::new().layer())).scenario(mix).rate(20);
    let test = test.warmup(Duration::ZERO).virtual_time();
    let run = run(test.duration(Duration::from_secs(60))).await;
    assert!(run.conservation.outcomes.limited > 400, "{:?}", run.conservation);
    assert_eq!(rules(&run), [""; 0], "{:?}", run.validity);
}

#[tokio::test]
async fn an_arrival_that_pauses_past_the_end_sends_nothing_and_is_nobodys_fault() {
    let app = Router::new().route("/", get(|| async { "tea" })).layer(Perf::new().layer());
    let flow = async |mut session: Session| {
        for _ in 0..3 {
            session.pause(Duration::from_secs(1)).await;
        }
        let request = http::Request::new(bytes::Bytes::new());
        session.send("after a pause", request).await?;
        Ok(())
    };
    let mix = Scenario::new().flow("a visit", 1, flow);
    let test = LoadTest::new(app).scenario(mix).rate(100).warmup(Duration::ZERO).virtual_time();
    let test = test.threshold("p99 < 1s");
    let run = run(test.duration(Duration::from_secs(10))).await;
    let counts = &run.conservation;
    assert_eq!((counts.scheduled, counts.sent, counts.unsent), (1_000, 700, 300), "{counts:?}");
    assert_eq!(rules(&run), [""; 0], "{:?}", run.validity);
    // Every request is in a slot, and judged.
    assert_eq!(run.client.response_time.summary.count, 700);
    assert_eq!(run.timeline.iter().map(|slot| slot.ok).sum::<u64>(), 700);
    assert_eq!(run.thresholds[0].samples, 700);
}

#[tokio::test]
async fn a_queue_obeys_littles_law() {
    let server = Arc::new(tokio::sync::Semaphore::new(1));
    let random =
        Arc::new(Mutex::new(<rand::rngs::SmallRng as rand::SeedableRng>::seed_from_u64(5)));
    let handler = move || async move {
        let permit = server.acquire().await.expect("it stays open");
        let random: f64 = rand::RngExt::random(&mut *random.lock().expect("no panic"));
        sleep(millis((-100.0 * (1.0 - random).ln()).round() as u64)).await;
        drop(permit);
    };
    let app = Router::new().route("/", get(handler)).layer(Perf::new().layer());
    let test = LoadTest::new(app).get("/").rate(8.0).arrivals(Arrivals::Poisson).virtual_time();
    let test = test.warmup(Duration::from_secs(600)).timeout(Duration::from_secs(3_600));
    let run = run(test.duration(Duration::from_secs(36_000))).await;
    assert_eq!(run.validity.verdict, Verdict::Pass, "{:?}", run.validity);
    let law = run.littles_law.expect("a long run");
    // ρ / (1 − ρ); the tolerances are about four standard deviations.
    assert!((law.expected / 4.0 - 1.0).abs() < 0.07, "{law:?}");
    assert!((law.sampled / 4.0 - 1.0).abs() < 0.16, "{law:?}");
    assert!(law.holds() && law.samples > 1_000 && law.tolerance < 0.4, "{law:?}");
    assert!(run.settling.expect("enough slots").stationary);
    assert!(run.resources.iter().all(|row| row.canary_us.is_none() && row.busy_ratio.is_none()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_who_never_pause_are_as_many_as_are_in_flight() {
    let app = Router::new().route("/", get(|| sleep(millis(20)))).layer(Perf::new().layer());
    let test = LoadTest::new(app).get("/").users(7).warmup(millis(50));
    let run = run(test.duration(Duration::from_secs(1))).await;
    let law = run.littles_law.expect("fifty moments");
    assert!(law.holds() && (law.expected - 7.0).abs() < 1.0, "{law:?}");
}

/// Answers after 20 ms and, from its first request on, 400 ms more that fall to a third every half hour.
fn warming_up() -> Router {
    let began = Arc::new(Mutex::new(None::<Instant>));
    let handler = move || async move {
        let began = *began.lock().expect("no panic").get_or_insert_with(Instant::now);
        let falling = 400.0 * (-began.elapsed().as_secs_f64() / 1_800.0).exp();
        sleep(Duration::from_secs_f64((20.0 + falling) / 1e3)).await;
    };
    Router::new().route("/", get(handler)).layer(Perf::new().layer())
}

fn an_hour(app: Router) -> LoadTest {
    let test = LoadTest::new(app).get("/").rate(5.0).arrivals(Arrivals::Poisson).virtual_time();
    test.warmup(Duration::ZERO).duration(Duration::from_secs(3_600))
}

#[tokio::test]
async fn a_run_that_only_warms_up_is_not_stationary_and_fails_nothing_that_it_may_yet_meet() {
    let unjudged = run(an_hour(warming_up())).await;
    let settling = unjudged.settling.expect("enough slots");
    assert!(!settling.stationary, "{settling:?}");
    assert_eq!(unjudged.verdict, Verdict::Pass, "nothing was required of it");

    let missed = run(an_hour(warming_up()).threshold("p99 < 100ms")).await;
    assert_eq!(rules(&missed), ["not_settled"], "{:?}", missed.validity);
    let message = &missed.validity.reasons[0].message;
    assert!(message.contains("p99 < 100ms") && message.contains("--warmup"), "{message}");
    // Not even the end of the run is so fast.
    let too_slow = run(an_hour(warming_up()).threshold("p99 < 30ms")).await;
    assert_eq!(too_slow.validity.verdict, Verdict::Pass, "{:?}", too_slow.validity);
    assert_ne!(too_slow.verdict, Verdict::Pass);
}

#[tokio::test]
async fn a_service_that_gets_slower_and_slower_is_not_excused() {
    let began = Arc::new(Mutex::new(None::<Instant>));
    let handler = move || async move {
        let began = *began.lock().expect("no panic").get_or_insert_with(Instant::now);
        sleep(Duration::from_secs_f64(began.elapsed().as_secs_f64() / 3_600.0)).await;
    };
    let app = Router::new().route("/", get(handler)).layer(Perf::new().layer());
    let run = run(an_hour(app).threshold("p99 < 100ms")).await;
    assert!(!run.settling.as_ref().expect("enough slots").stationary);
    assert_eq!(run.validity.verdict, Verdict::Pass, "{:?}", run.validity);
    assert_ne!(run.verdict, Verdict::Pass);
}

#[tokio::test]
async fn stages_are_to_change_the_response_time_so_nothing_is_said_about_settling() {
    let app = Router::new().route("/", get(|| sleep(millis(20)))).layer(Perf::new().layer());
    let stages = [(Duration::from_secs(60), 1.0), (Duration::from_secs(60), 20.0)];
    let test = LoadTest::new(app).get("/").stages(stages).virtual_time();
    assert_eq!(run(test.warmup(Duration::ZERO)).await.settling, None);
}

#[tokio::test]
async fn a_run_without_a_length_keeps_a_bounded_number_of_rows() {
    let app = Router::new().route("/", get(|| sleep(millis(10_000)))).layer(Perf::new().layer());
    let test = LoadTest::new(app).get("/").users(1).requests(2_000).warmup(Duration::ZERO);
    // Five and a half hours; rows begin with ten a second.
    let run = run(test.timeout(Duration::from_secs(60)).virtual_time()).await;
    assert!((256..=513).contains(&run.resources.len()), "{}", run.resources.len());
    assert!(run.timeline.len() <= 256);
    let law = run.littles_law.expect("a long run");
    assert!((law.expected - 1.0).abs() < 0.01 && law.holds(), "{law:?}");
}
