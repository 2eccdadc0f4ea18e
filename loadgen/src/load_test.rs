//! A load test, as a Rust program writes it.

use std::{
    fmt, io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::Router;
use bytes::Bytes;
use http::{Method, Request, Uri};

use crate::{
    plan::{MAX_RATE, MAX_TIME, MIN_DURATION, Plan, PlanError, Workload},
    progress::Progress,
    report::{Environment, Report, Run},
    runner::{self, Observer, unix_seconds},
    scenario::Scenario,
    stop::Stop,
    target::InProcess,
    threshold::Threshold,
    verdict,
};

/// Drives an axum service in process: no socket, no port, on the runtime that the caller is on.
///
/// ```
/// use std::time::Duration;
/// use axum::{Router, routing::get};
/// use parallax_loadgen::LoadTest;
/// use parallax_middleware::Perf;
///
/// # #[tokio::main(flavor = "multi_thread", worker_threads = 2)]
/// # async fn main() {
/// let app = Router::new()
///     .route("/search", get(|| async { "tea" }))
///     .layer(Perf::new().layer());
///
/// let report = LoadTest::new(app)
///     .get("/search?q=tea")
///     .users(8)
///     .warmup(Duration::from_millis(100))
///     .duration(Duration::from_millis(400))
///     .threshold("p99 < 5s")
///     .threshold("errors < 1%")
///     .run()
///     .await
///     .expect("the plan is valid");
/// assert_eq!(report.runs[0].conservation.unexplained, 0);
/// # }
/// ```
#[must_use = "a load test does nothing until it is run"]
pub struct LoadTest<S = Router> {
    service: S,
    name: String,
    workload: Workload,
    scenario: Scenario,
    warmup: Duration,
    duration: Duration,
    max_in_flight: usize,
    timeout: Duration,
    seed: u64,
    pass_limiter: bool,
    thresholds: Vec<String>,
    stop: Stop,
    observer: Option<Observer>,
    /// The first thing that a builder method could not make sense of.
    mistake: Option<PlanError>,
}

impl LoadTest {
    /// A load test of a router, of 10 users for 10 s after 1 s of warm-up unless told otherwise.
    pub fn new(router: Router) -> Self {
        // Turns handlers into routes once; the router would do it for every request otherwise.
        Self::service(router.with_state(()))
    }
}

impl<S: InProcess> LoadTest<S> {
    /// A load test of any tower service that takes axum's request body.
    pub fn service(service: S) -> Self {
        Self {
            service,
            name: "load test".to_owned(),
            workload: Workload::Closed { users: 10, think_time: Duration::ZERO },
            scenario: Scenario::new(),
            warmup: Duration::from_secs(1),
            duration: Duration::from_secs(10),
            max_in_flight: 10_000,
            timeout: Duration::from_secs(10),
            seed: 1,
            pass_limiter: false,
            thresholds: Vec::new(),
            stop: Stop::new(),
            observer: None,
            mistake: None,
        }
    }

    /// Names the run, for the report.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Adds a GET request to the mix, as likely as every other one added so.
    pub fn get(mut self, path: &str) -> Self {
        match path.parse::<Uri>() {
            Ok(uri) => {
                let name = format!("GET {}", uri.path());
                self.scenario = self.scenario.step(&name, 1, move |_| {
                    let mut request = Request::new(Bytes::new());
                    *request.method_mut() = Method::GET;
                    request.uri_mut().clone_from(&uri);
                    request
                });
            }
            Err(source) => {
                let path = path.to_owned();
                self.mistake.get_or_insert(PlanError::BadPath { path, source: source.into() });
            }
        }
        self
    }

    /// Sends this mix instead of what was added so far.
    pub fn scenario(mut self, scenario: Scenario) -> Self {
        self.scenario = scenario;
        self
    }

    /// Closed model: `users` who each wait for an answer before they ask again.
    pub fn users(mut self, users: usize) -> Self {
        self.workload = Workload::Closed { users, think_time: self.workload.think_time() };
        self
    }

    /// Closed model: a user pauses this long between an answer and the next request. Default: none.
    pub fn think_time(mut self, pause: Duration) -> Self {
        if let Workload::Closed { think_time, .. } = &mut self.workload {
            *think_time = pause;
        }
        self
    }

    /// Open model: `rate` requests per second start on schedule, whatever became of the earlier ones.
    pub fn rate(mut self, rate: impl Into<f64>) -> Self {
        self.workload = Workload::Open { rate: rate.into() };
        self
    }

    /// Load before the measured interval, not part of any figure. Default: 1 s.
    pub fn warmup(mut self, warmup: Duration) -> Self {
        self.warmup = warmup;
        self
    }

    /// Length of the measured interval. Default: 10 s.
    pub fn duration(mut self, duration: Duration) -> Self {
        self.duration = duration;
        self
    }

    /// Open model: an arrival that finds so many requests in flight is dropped and counted. Default:
    /// 10,000.
    pub fn max_in_flight(mut self, bound: usize) -> Self {
        self.max_in_flight = bound;
        self
    }

    /// Gives a request up that is not answered, body and all, this long after its dispatch. Default: 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The seed of every random choice: the same seed sends the same requests. Default: 1.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Marks each request [`past_limiter`](parallax_middleware::LoadMark::past_limiter), so that a limiter
    /// with a way around it lets it by. Default: the limiter is part of what is tested.
    pub fn pass_limiter(mut self, pass: bool) -> Self {
        self.pass_limiter = pass;
        self
    }

    /// Adds a requirement: `p99 < 25ms`, `errors < 0.1%`, `p95{route="GET /items/{id}"} <= 200ms`.
    pub fn threshold(mut self, expression: &str) -> Self {
        self.thresholds.push(expression.to_owned());
        self
    }

    /// Ends the run early when `stop` is called; the report is then marked as interrupted.
    pub fn stop_on(mut self, stop: &Stop) -> Self {
        self.stop = stop.clone();
        self
    }

    /// Tells how the run goes, five times a second, from a thread of the generator's own.
    pub fn on_progress(mut self, observer: impl Fn(&Progress) + Send + Sync + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// Runs the test and reports what both sides saw.
    ///
    /// # Errors
    /// If the settings make no sense, before anything is sent, or if the operating system refuses the
    /// generator its threads.
    ///
    /// # Cancel safety
    /// A dropped run sends nothing more and leaves no report. To end one early with a report, use
    /// [`stop_on`](Self::stop_on).
    pub async fn run(self) -> Result<Report, LoadTestError> {
        let title = self.name.clone();
        let started = SystemTime::now();
        let run = self.run_part().await?;
        Ok(Report::of(
            title,
            unix_seconds(started),
            Environment::here(),
            vec![run],
            Vec::new(),
            None,
        ))
    }

    /// Runs the test as one of several runs of a report; see [`Report::of`].
    ///
    /// # Errors
    /// As [`run`](Self::run).
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    pub async fn run_part(mut self) -> Result<Run, LoadTestError> {
        let plan = Arc::new(self.build()?);
        let findings = runner::run(self.service, &plan, &self.stop, self.observer.as_ref()).await?;
        Ok(verdict::judge(&plan, findings))
    }

    fn build(&mut self) -> Result<Plan, PlanError> {
        if let Some(mistake) = self.mistake.take() {
            return Err(mistake);
        }
        if self.scenario.is_empty() {
            return Err(PlanError::NoRequests);
        }
        match self.workload {
            Workload::Closed { users: 0, .. } => return Err(PlanError::NoUsers),
            Workload::Open { rate } if !(rate.is_finite() && rate > 0.0) => {
                return Err(PlanError::BadRate(rate));
            }
            Workload::Open { rate } if rate > MAX_RATE => return Err(PlanError::RateTooHigh(rate)),
            _ => {}
        }
        let think_time = self.workload.think_time();
        for time in [self.warmup, self.duration, self.timeout, think_time] {
            if time > MAX_TIME {
                return Err(PlanError::TooLong(time));
            }
        }
        if self.duration < MIN_DURATION {
            return Err(PlanError::TooShort(self.duration));
        }
        if self.timeout.is_zero() {
            return Err(PlanError::NoTimeout);
        }
        if self.max_in_flight == 0 {
            return Err(PlanError::NoneInFlight);
        }
        let thresholds =
            self.thresholds.iter().map(|e| Threshold::parse(e)).collect::<Result<_, _>>()?;
        Ok(Plan {
            name: self.name.clone(),
            workload: self.workload,
            scenario: self.scenario.clone(),
            warmup: self.warmup,
            duration: self.duration,
            max_in_flight: self.max_in_flight,
            timeout: self.timeout,
            seed: self.seed,
            pass_limiter: self.pass_limiter,
            thresholds,
        })
    }
}

impl<S> fmt::Debug for LoadTest<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadTest")
            .field("name", &self.name)
            .field("workload", &self.workload)
            .field("scenario", &self.scenario)
            .finish_non_exhaustive()
    }
}

/// Why a load test did not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadTestError {
    /// The settings make no sense.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The operating system refused the generator its threads.
    #[error("the load generator cannot start: {0}")]
    Start(#[from] io::Error),
}
