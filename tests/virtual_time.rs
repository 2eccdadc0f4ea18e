//! Time that passes only while everybody waits: queues whose figures are known, and services that it does not fit.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::Poll,
    thread,
    time::Duration,
};

use axum::{Router, routing::get};
use parallax_loadgen::{
    Arrivals, LoadTest, LoadTestError, Pause, Verdict, report::Run, virtual_time,
};
use parallax_middleware::Perf;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, sleep},
};

/// How service times are distributed; the mean, in milliseconds.
#[derive(Clone, Copy)]
enum Service {
    Exponential(f64),
    Constant(f64),
}

/// So many servers and one queue before them, first come, first served.
struct Queue {
    router: Router,
    requests: Arc<AtomicU64>,
    waited: Arc<AtomicU64>,
}

impl Queue {
    fn new(servers: usize, service: Service) -> Self {
        let perf = Perf::new();
        let semaphore = Arc::new(Semaphore::new(servers));
        let random = Arc::new(Mutex::new(SmallRng::seed_from_u64(11)));
        let (requests, waited) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let handler = {
            let (requests, waited) = (requests.clone(), waited.clone());
            let perf = perf.clone();
            move || async move {
                requests.fetch_add(1, SeqCst);
                waited.fetch_add(u64::from(semaphore.available_permits() == 0), SeqCst);
                let permit =
                    perf.observe("queue", semaphore.acquire()).await.expect("it stays open");
                let ms = match service {
                    Service::Constant(ms) => ms,
                    Service::Exponential(mean) => {
                        let random: f64 = random.lock().expect("no panic").random();
                        -mean * (1.0 - random).ln()
                    }
                };
                // Timers keep whole milliseconds; rounded, the mean stays what it is.
                sleep(Duration::from_millis(ms.round() as u64)).await;
                drop(permit);
            }
        };
        let router = Router::new().route("/", get(handler)).layer(perf.layer());
        Self { router, requests, waited }
    }

    fn test(&self) -> LoadTest {
        LoadTest::new(self.router.clone())
            .get("/")
            .warmup(Duration::from_secs(600))
            .timeout(Duration::from_secs(3_600))
            .virtual_time()
    }
}

async fn run(test: LoadTest) -> Run {
    let report = test.run().await.expect("the plan is valid");
    let run = report.runs.into_iter().next().expect("one run");
    assert_eq!(run.conservation.unexplained, 0, "{:#?}", run.conservation);
    assert_eq!(run.validity.verdict, Verdict::Pass, "{:?}", run.validity);
    run
}

/// `found` is `known`, but for a share that chance may add.
fn assert_near(what: &str, found: f64, known: f64, share: f64) {
    assert!((found / known - 1.0).abs() < share, "{what}: {found}, known {known}");
}

fn millis(us: Option<f64>) -> f64 {
    us.expect("enough samples") / 1e3
}

// The known answers are those of services of 1 ms, here a hundred times slower, because timers keep whole
// milliseconds. The tolerance is four standard deviations of what so long a run finds, or less.

#[tokio::test]
async fn one_server_with_random_service_times_is_an_m_m_1_queue() {
    let queue = Queue::new(1, Service::Exponential(100.0));
    let test = queue.test().rate(8.0).arrivals(Arrivals::Poisson);
    // 10 hours, 288,000 requests.
    let run = run(test.duration(Duration::from_secs(36_000))).await;
    let response = &run.client.response_time.summary;
    assert_near("mean", millis(response.mean_us), 500.0, 0.065);
    assert_near("p50", millis(response.p50_us), 346.6, 0.065);
    assert_near("p95", millis(response.p95_us), 1_497.9, 0.065);
    assert_near("p99", millis(response.p99_us), 2_302.6, 0.1);
    assert_eq!(run.conservation.scheduled, run.conservation.outcomes.ok);
}

#[tokio::test]
async fn four_servers_are_an_m_m_4_queue() {
    let queue = Queue::new(4, Service::Exponential(1_000.0));
    let test = queue.test().rate(3.0).arrivals(Arrivals::Poisson);
    let run = run(test.duration(Duration::from_secs(72_000))).await;
    let waited = queue.waited.load(SeqCst) as f64 / queue.requests.load(SeqCst) as f64;
    assert_near("wait probability", waited, 0.509_43, 0.03);
    let response = &run.client.response_time.summary;
    assert_near("response p99", millis(response.p99_us), 6_006.0, 0.06);
    let server = run.server.expect("the layer answered");
    let waits = &server.routes[0].phases["queue"];
    assert_near("wait p99", millis(waits.p99_us), 3_930.7, 0.1);
}

#[tokio::test]
async fn constant_service_times_halve_the_wait_as_in_an_m_d_1_queue() {
    let queue = Queue::new(1, Service::Constant(100.0));
    let test = queue.test().rate(8.0).arrivals(Arrivals::Poisson);
    let run = run(test.duration(Duration::from_secs(36_000))).await;
    // Pollaczek and Khinchine: ρ / 2μ(1 − ρ) of waiting, and the service.
    let mean = millis(run.client.response_time.summary.mean_us);
    assert_near("mean", mean, 200.0 + 100.0, 0.04);
}

#[tokio::test]
async fn users_who_think_are_the_closed_loop_of_one_server() {
    let queue = Queue::new(1, Service::Exponential(100.0));
    let pause = Pause::Exponential(Duration::from_secs(10));
    let test = queue.test().users(50).think_time(pause);
    let run = run(test.duration(Duration::from_secs(36_000))).await;
    // Mean value analysis of 50 users, one at a time.
    let (think, service, mut queued, mut response) = (10_000.0, 100.0, 0.0, 0.0);
    for users in 1..=50 {
        response = service * (1.0 + queued);
        queued = f64::from(users) / (think + response) * response;
    }
    let rate = 50.0 / (think + response) * 1e3;
    assert!((rate - 4.907).abs() < 0.001 && (response - 189.6).abs() < 0.1, "{rate} {response}");
    assert_near("rate", run.client.rate, rate, 0.01);
    assert_near("response time", millis(run.client.response_time.summary.mean_us), response, 0.03);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hour_of_load_is_the_same_each_time_whatever_runtime_asks_for_it() {
    let figures = async || {
        let queue = Queue::new(1, Service::Exponential(100.0));
        let run = run(queue.test().rate(5).duration(Duration::from_secs(3_600))).await;
        assert!(run.generator.expect("it is told").wake_ups.is_none(), "no machine wakes anybody");
        (run.conservation, run.client, run.pairs, run.attribution, run.thresholds)
    };
    let began = Instant::now();
    let first = figures().await;
    assert!(began.elapsed() < Duration::from_secs(1_800), "it was no hour");
    assert_eq!(first.0.outcomes.ok, 18_000);
    assert_eq!(first, figures().await);
}

#[tokio::test]
async fn a_service_with_tasks_of_its_own_is_born_in_virtual_time() {
    // A limiter that a task fills up once a second, five at a time.
    let run = virtual_time(async {
        let permits = Arc::new(Semaphore::new(0));
        let filler = permits.clone();
        tokio::spawn(async move {
            loop {
                sleep(Duration::from_secs(1)).await;
                filler.add_permits(5);
            }
        });
        let handler = move || async move {
            permits.acquire().await.expect("it stays open").forget();
        };
        let app = Router::new().route("/", get(handler)).layer(Perf::new().layer());
        let test = LoadTest::new(app).get("/").users(50).warmup(Duration::ZERO);
        test.duration(Duration::from_secs(100))
            .timeout(Duration::from_secs(60))
            .virtual_time()
            .run()
            .await
    });
    let report = run.await.expect("a thread").expect("the plan is valid");
    let run = &report.runs[0];
    assert_eq!(run.conservation.unexplained, 0);
    assert_near("rate", run.client.rate, 5.0, 0.02);
    assert!(run.plan.virtual_time);
}

#[tokio::test]
async fn a_service_that_waits_for_more_than_timers_is_refused() {
    let other_thread = || async {
        let answered = Arc::new(Mutex::new((false, None::<std::task::Waker>)));
        let theirs = answered.clone();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            let mut theirs = theirs.lock().expect("no panic");
            theirs.0 = true;
            theirs.1.take().into_iter().for_each(std::task::Waker::wake);
        });
        poll_fn(|cx| {
            let mut answered = answered.lock().expect("no panic");
            answered.1 = Some(cx.waker().clone());
            if answered.0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    };
    let blocking = || async {
        let work = || thread::sleep(Duration::from_millis(5));
        tokio::task::spawn_blocking(work).await.expect("no panic");
    };
    let io = || async {
        let _ = TcpStream::connect("127.0.0.1:9").await;
    };
    for (what, router) in [
        ("another thread", Router::new().route("/", get(other_thread))),
        ("a blocking task", Router::new().route("/", get(blocking))),
        ("a socket", Router::new().route("/", get(io))),
    ] {
        let test = LoadTest::new(router.layer(Perf::new().layer())).get("/").users(1);
        let short = test.duration(Duration::from_secs(1)).warmup(Duration::ZERO);
        let result = short.timeout(Duration::from_secs(3_600)).virtual_time().run().await;
        assert!(matches!(result, Err(LoadTestError::RealWaits)), "{what}: {result:?}");
        let text = result.expect_err("refused").to_string();
        assert!(text.contains("Simulate that wait"), "{text}");
    }
}

#[tokio::test]
async fn time_that_stands_still_is_told() {
    let app = Router::new().route("/", get(|| async { "at once" })).layer(Perf::new().layer());
    let test = LoadTest::new(app).get("/").users(2).warmup(Duration::ZERO).virtual_time();
    let result = test.duration(Duration::from_secs(1)).run().await;
    assert!(matches!(result, Err(LoadTestError::NoWaits)), "{result:?}");
}
