//! Time: all of it is tokio's, so that tests can pause it, and windows end where their seconds do.

use std::{thread, time::Duration};

use axum::{Router, body::Body, routing::get};
use futures_util::stream;
use http_body_util::BodyExt;
use parallax_middleware::{
    LatencyHistogram, LoadMark, Outcome, Perf, ProbeSource, Snapshot, Window,
};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep, sleep_until},
};
use tower::ServiceExt;

use crate::support::rig::request;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Routes that sleep, under the layer.
fn app(perf: &Perf) -> Router {
    let late = async || {
        sleep(millis(250)).await;
        Body::from_stream(stream::once(async {
            sleep(millis(500)).await;
            Ok::<_, std::io::Error>("at last")
        }))
    };
    let blocks = async || {
        // In the world outside. The clock of the test does not see it.
        thread::sleep(millis(5));
        "done"
    };
    Router::new()
        .route("/now", get(async || "now"))
        .route("/late", get(late))
        .route("/blocks", get(blocks))
        .route("/minute", get(async || sleep(Duration::from_secs(60)).await))
        .layer(perf.layer())
}

async fn send(app: &Router, path: &str) {
    answer(app, request("GET", path)).await;
}

async fn answer(app: &Router, request: axum::extract::Request) {
    let response = app.clone().oneshot(request).await.expect("routers do not fail");
    response.into_body().collect().await.expect("the body is whole");
}

/// What a histogram is if so many values of one length are recorded.
fn histogram(n: usize, value: Duration) -> LatencyHistogram {
    let mut histogram = LatencyHistogram::new();
    (0..n).for_each(|_| histogram.record(value));
    histogram
}

#[tokio::test(start_paused = true)]
async fn requests_are_timed_by_the_paused_clock_whether_they_carry_a_probe_or_not() {
    for paired in [false, true] {
        let perf = Perf::new();
        let app = app(&perf);
        let probe = ProbeSource::new().probe();
        for path in ["/late", "/blocks"] {
            let mut request = request("GET", path);
            if paired {
                request.extensions_mut().insert(LoadMark::new().paired(probe.clone()));
            }
            answer(&app, request).await;
        }
        let snapshot = perf.snapshot();
        assert_eq!(snapshot.paired(), if paired { 2 } else { 0 });
        for (route, first_byte, whole) in
            [("/late", millis(250), millis(750)), ("/blocks", Duration::ZERO, Duration::ZERO)]
        {
            let counts = snapshot.route("GET", route).expect("it has been asked for");
            assert_eq!(counts.users.ok, histogram(1, whole), "{route}, {paired}");
            assert_eq!(counts.users.first_byte, histogram(1, first_byte), "{route}, {paired}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn uptime_and_intervals_follow_the_paused_clock() {
    let perf = Perf::new();
    assert_eq!(perf.snapshot().view().uptime_s, 0.0);
    sleep(millis(1_500)).await;
    let earlier = perf.snapshot();
    sleep(Duration::from_secs(3600)).await;
    let later = perf.snapshot();
    assert_eq!((earlier.view().uptime_s, later.view().uptime_s), (1.5, 3601.5));
    assert_eq!(
        (later.view().window_s, later.since(&earlier).view().window_s),
        (None, Some(3600.0))
    );
}

/// Seconds that a window covers.
fn covered(window: &Snapshot) -> f64 {
    window.view().window_s.expect("it is an interval")
}

#[tokio::test(start_paused = true)]
async fn each_window_holds_what_was_recorded_in_its_seconds() {
    let perf = Perf::new();
    let app = app(&perf);
    drop(perf.window(Window::TenSeconds));
    let began = Instant::now();
    // When each request ended, in seconds. In the middle of a second, where no sample is taken.
    let mut ended: Vec<f64> = Vec::new();
    for second in 0..700_u32 {
        let at = f64::from(second) + 0.5;
        sleep_until(began + Duration::from_secs_f64(at)).await;
        for _ in 0..(second * second) % 4 {
            send(&app, "/now").await;
            ended.push(at);
        }
        if second % 7 != 0 {
            continue;
        }
        sleep(millis(250)).await;
        let now = at + 0.25;
        for window in Window::ALL {
            let found = perf.window(window);
            let (covered, length) = (covered(&found), window.length().as_secs_f64());
            assert!(covered >= length.min(now), "{covered} s of {window} after {now} s");
            assert!(covered <= length * 1.1, "{covered} s of {window} after {now} s");
            let held = ended.iter().filter(|ended| **ended > now - covered).count();
            assert_eq!(found.recorded(), held as u64, "{window} after {now} s");
            let Some(counts) = found.route("GET", "/now") else { continue };
            assert_eq!(counts.users.ok, histogram(held, Duration::ZERO), "{window} after {now} s");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn windows_begin_when_they_are_first_asked_for() {
    let perf = Perf::new();
    let app = app(&perf);
    send(&app, "/now").await;
    sleep(Duration::from_secs(5)).await;
    drop(perf.window(Window::OneMinute));
    send(&app, "/now").await;
    sleep(Duration::from_secs(3)).await;
    for window in Window::ALL {
        let found = perf.window(window);
        assert_eq!((found.recorded(), covered(&found)), (1, 3.0), "{window}");
    }
    assert_eq!(perf.snapshot().recorded(), 2);
}

#[test]
fn windows_begin_anew_when_the_runtime_that_sampled_has_ended() {
    let perf = Perf::new();
    let app = app(&perf);
    let in_a_runtime = |requests: usize| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            drop(perf.window(Window::TenSeconds));
            for _ in 0..requests {
                send(&app, "/now").await;
            }
            sleep(Duration::from_secs(3)).await;
            perf.window(Window::TenSeconds).recorded()
        })
    };
    assert_eq!(in_a_runtime(2), 2);
    assert_eq!(in_a_runtime(1), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_in_flight_in_each_window_until_it_ends_and_counts_where_it_ends() {
    let perf = Perf::new();
    let app = app(&perf);
    drop(perf.window(Window::TenSeconds));
    let long = tokio::spawn(async move { send(&app, "/minute").await });
    sleep(Duration::from_secs(40)).await;
    for window in Window::ALL {
        let found = perf.window(window);
        let counts = found.route("GET", "/minute").expect("it is under way");
        assert_eq!((counts.in_flight(), counts.recorded()), (1, 0), "{window}");
    }
    long.await.expect("no panic");
    sleep(Duration::from_secs(5)).await;
    for window in Window::ALL {
        let found = perf.window(window);
        let counts = found.route("GET", "/minute").expect("it has ended");
        assert_eq!((counts.in_flight(), counts.outcome(Outcome::Ok)), (0, 1), "{window}");
        assert_eq!(counts.users.ok.count(), 1, "{window}");
        assert_eq!(counts.users.ok.mean(), Duration::from_secs(60), "{window}");
    }
    sleep(Duration::from_secs(10)).await;
    let recorded = Window::ALL.map(|window| perf.window(window).recorded());
    assert_eq!(recorded, [0, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn samples_are_taken_by_one_task_that_ends_with_the_last_handle() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let perf = Perf::new();
    let app = app(&perf);
    assert_eq!(tasks(), before, "nobody has asked for a window");
    drop(perf.window(Window::TenSeconds));
    drop(perf.window(Window::FiveMinutes));
    assert_eq!(tasks(), before + 1);

    let other = perf.clone();
    drop(perf);
    sleep(Duration::from_secs(20)).await;
    assert_eq!(tasks(), before + 1, "there is a handle left");
    assert_eq!(other.window(Window::TenSeconds).recorded(), 0);
    drop(other);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(tasks(), before, "nobody can ask any more");
    // The service goes on, unread.
    send(&app, "/now").await;
}
