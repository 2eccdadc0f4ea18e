//! A load test, as a Rust program writes it.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::Router;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri};

use crate::{
    hint::hints,
    pacer::Pacer,
    pause::Pause,
    plan::{MAX_TIME, Plan, PlanError, Topology, Workload},
    progress::Progress,
    report::{Environment, Model, Report, Run},
    runner::{self, Findings, Observer, RunError, unix_seconds},
    scenario::{Scenario, StepNames},
    schedule::{Arrivals, Schedule},
    shape::Shape,
    stop::Stop,
    target::InProcess,
    threshold::{Threshold, ThresholdError},
    transport::{Transport, UrlError, Wire},
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
    /// The same service, if it is at the other end of a connection.
    wire: Option<Wire>,
    transport: Transport,
    name: String,
    shape: Shape,
    arrivals: Arrivals,
    pause: Pause,
    pacing: Option<Duration>,
    scenario: Scenario,
    warmup: Duration,
    duration: Option<Duration>,
    requests: Option<u64>,
    pacer: Pacer,
    topology: Topology,
    virtual_time: bool,
    tags: BTreeMap<String, String>,
    max_in_flight: usize,
    timeout: Duration,
    seed: u64,
    pass_limiter: bool,
    token: Option<HeaderValue>,
    thresholds: Vec<Threshold>,
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

impl LoadTest<Wire> {
    /// A load test of a server: of its URL, as [`Wire::url`] reads it.
    ///
    /// # Errors
    /// If it is no such URL, or TLS cannot be set up; before anything is sent.
    pub fn url(url: &str) -> Result<Self, UrlError> {
        Ok(Self::wire(Wire::url(url)?.build()?))
    }

    /// A load test of the server at the other end of a [`Wire`], which can be set up as a URL alone cannot.
    pub fn wire(wire: Wire) -> Self {
        Self { wire: Some(wire.clone()), ..Self::service(wire) }
    }
}

impl<S: InProcess> LoadTest<S> {
    /// A load test of any tower service that takes axum's request body.
    pub fn service(service: S) -> Self {
        Self {
            service,
            wire: None,
            transport: Transport::Direct,
            name: "load test".to_owned(),
            shape: Shape::Users(10),
            arrivals: Arrivals::Constant,
            pause: Pause::default(),
            pacing: None,
            scenario: Scenario::new(),
            warmup: Duration::from_secs(1),
            duration: None,
            requests: None,
            pacer: Pacer::default(),
            topology: Topology::default(),
            virtual_time: false,
            tags: BTreeMap::new(),
            max_in_flight: 10_000,
            timeout: Duration::from_secs(10),
            seed: 1,
            pass_limiter: false,
            token: None,
            thresholds: Vec::new(),
            stop: Stop::new(),
            observer: None,
            mistake: None,
        }
    }

    /// How the service is reached: it stays in this process, and is served there. Default:
    /// [`Transport::Direct`].
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
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
        self.shape = Shape::Users(users);
        self
    }

    /// Closed model: their number changes in straight lines, from 0, in so much time to so many; at once if a
    /// stage takes no time. The stages last as long as the measured interval.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use axum::Router;
    /// # use parallax_loadgen::LoadTest;
    /// let secs = Duration::from_secs;
    /// let test = LoadTest::new(Router::new())
    ///     .get("/search?q=tea")
    ///     // Up to 100 users in 10 s, and 100 of them for a minute.
    ///     .user_stages([(secs(10), 100), (secs(60), 100)]);
    /// # let _ = test;
    /// ```
    pub fn user_stages(mut self, stages: impl IntoIterator<Item = (Duration, usize)>) -> Self {
        let stages = stages.into_iter().map(|(time, users)| (time, users as f64));
        self.shape = Shape::UserStages(stages.collect());
        self
    }

    /// Closed model: a user pauses this long between an answer and the next request: a [`Duration`], or a
    /// [`Pause`] at random. Default: none.
    pub fn think_time(mut self, pause: impl Into<Pause>) -> Self {
        self.pause = pause.into();
        self
    }

    /// Closed model: a user begins an iteration this long after the one before it began, or when that is over if
    /// it took longer. Default: none.
    pub fn pacing(mut self, pacing: Duration) -> Self {
        self.pacing = Some(pacing);
        self
    }

    /// Open model: `rate` requests per second start on schedule, whatever became of the earlier ones.
    pub fn rate(mut self, rate: impl Into<f64>) -> Self {
        self.shape = Shape::Rate(rate.into());
        self
    }

    /// Open model: the rate changes in straight lines, from 0, in so much time to so many requests per second; at
    /// once if a stage takes no time. The stages last as long as the measured interval.
    pub fn stages(mut self, stages: impl IntoIterator<Item = (Duration, f64)>) -> Self {
        self.shape = Shape::RateStages(stages.into_iter().collect());
        self
    }

    /// Open model: `base` requests per second, and in the middle third of the measured interval `peak`.
    pub fn spike(mut self, base: impl Into<f64>, peak: impl Into<f64>) -> Self {
        self.shape = Shape::Spike { base: base.into(), peak: peak.into() };
        self
    }

    /// Open model: requests start at these times, counted from the first of them, once more. They are what another
    /// system has logged, for example; their order does not matter. The measured interval ends with the last one.
    pub fn replay(mut self, starts: impl IntoIterator<Item = Duration>) -> Self {
        let mut starts: Vec<Duration> = starts.into_iter().collect();
        starts.sort_unstable();
        self.shape = Shape::Replay(starts);
        self
    }

    /// Open model: how arrivals follow one another. Default: equally spaced.
    pub fn arrivals(mut self, arrivals: Arrivals) -> Self {
        self.arrivals = arrivals;
        self
    }

    /// Ends the measured interval once so many requests have been sent and answered, unless its
    /// [duration](Self::duration) is over before; that is 10 minutes then, or what is set.
    pub fn requests(mut self, requests: u64) -> Self {
        self.requests = Some(requests);
        self
    }

    /// Who wakes requests when they are due. Default: a thread that is exact.
    pub fn pacer(mut self, pacer: Pacer) -> Self {
        self.pacer = pacer;
        self
    }

    /// Where the generator's tasks run. Default: on the runtime that the caller is on.
    pub fn topology(mut self, topology: Topology) -> Self {
        self.topology = topology;
        self
    }

    /// Lets time pass only while everybody waits: an hour of load takes seconds, and comes out the same every
    /// time. For services whose waits are tokio's timers, locks and channels: limiters, retries, timeouts, pools
    /// with simulated work. See [`virtual_time`](crate::virtual_time()) for one with tasks of its own.
    ///
    /// Timers keep whole milliseconds, so waits should be much longer: model a service of 1 ms as one of 1 s. What
    /// computes takes no time. The [pacer](Self::pacer) and the [topology](Self::topology) mean nothing.
    ///
    /// A service that waits for I/O, for another thread or for another runtime is refused with
    /// [`LoadTestError::RealWaits`]; unless it is a task of its own that waits, which nobody sees.
    #[cfg(feature = "virtual-time")]
    pub fn virtual_time(mut self) -> Self {
        self.virtual_time = true;
        self
    }

    /// Adds a name and a value to the report, to find it by.
    pub fn tag(mut self, name: &str, value: &str) -> Self {
        self.tags.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Load before the measured interval, not part of any figure. Default: 1 s.
    pub fn warmup(mut self, warmup: Duration) -> Self {
        self.warmup = warmup;
        self
    }

    /// Length of the measured interval. Default: 10 s, or as long as the stages.
    pub fn duration(mut self, duration: Duration) -> Self {
        self.duration = Some(duration);
        self
    }

    /// Open model: an arrival that finds so many others under way, requests or flows, is dropped and counted.
    /// Default: 10,000.
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

    /// Sends a bypass token with each request, in the header `x-parallax-bypass`: over a connection it is what
    /// lets load by a limiter, and what has the server say in `Server-Timing` how long it took, if it
    /// [does that](parallax_middleware::PerfBuilder::server_timing). Then both views are paired as in process.
    ///
    /// The token is shown nowhere. `parallax token` prints one.
    pub fn token(mut self, token: &str) -> Self {
        match HeaderValue::try_from(token) {
            Ok(mut token) => {
                token.set_sensitive(true);
                self.token = Some(token);
            }
            Err(_) => {
                self.mistake.get_or_insert(PlanError::BadToken);
            }
        }
        self
    }

    /// Adds a requirement: `p99 < 25ms`, `errors < 0.1%`, `p95{route="GET /items/{id}"} <= 200ms`,
    /// `pool_wait:db p99 < 5ms`.
    pub fn threshold(self, expression: &str) -> Self {
        self.require(Threshold::parse(expression))
    }

    /// Adds requirements on one route, called as reports call it: `"GET /items/{id}"`.
    ///
    /// ```
    /// # use axum::Router;
    /// # use parallax_loadgen::LoadTest;
    /// LoadTest::new(Router::new())
    ///     .threshold("errors < 0.1%")
    ///     .route_thresholds("GET /items/{id}", ["p95 < 200ms", "pool_wait:db p99 < 5ms"]);
    /// ```
    pub fn route_thresholds<'e>(
        self,
        route: &str,
        expressions: impl IntoIterator<Item = &'e str>,
    ) -> Self {
        expressions.into_iter().fold(self, |test, expression| {
            let threshold = Threshold::parse(expression);
            test.require(threshold.and_then(|threshold| threshold.on_route(route)))
        })
    }

    /// Adds requirements that are read already, like those of a [file](Threshold::read).
    pub fn thresholds(mut self, thresholds: impl IntoIterator<Item = Threshold>) -> Self {
        self.thresholds.extend(thresholds);
        self
    }

    fn require(mut self, threshold: Result<Threshold, ThresholdError>) -> Self {
        match threshold {
            Ok(threshold) => self.thresholds.push(threshold),
            Err(error) => {
                self.mistake.get_or_insert(error.into());
            }
        }
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
        let plan = self.build()?;
        self.carry_out(plan, self.transport).await
    }

    /// Runs the same test over each of `transports`, one after the other, and reports them side by side: a run
    /// each, named like its transport. One that is stopped is the last.
    ///
    /// ```
    /// use std::time::Duration;
    /// use axum::{Router, routing::get};
    /// use parallax_loadgen::{Http, LoadTest, Transport};
    ///
    /// # #[tokio::main(flavor = "multi_thread", worker_threads = 2)]
    /// # async fn main() {
    /// let app = Router::new().route("/", get(|| async { "tea" }));
    /// let report = LoadTest::new(app)
    ///     .get("/")
    ///     .warmup(Duration::from_millis(50))
    ///     .duration(Duration::from_millis(200))
    ///     .compare([Transport::Direct, Transport::Tcp(Http::One)])
    ///     .await
    ///     .expect("the plan is valid");
    /// assert_eq!(report.runs[1].name, "tcp");
    /// assert!(report.runs[1].connections >= Some(1));
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`run`](Self::run). The first error ends it, and what the transports before it gave is lost.
    ///
    /// # Cancel safety
    /// As [`run`](Self::run).
    pub async fn compare(
        mut self,
        transports: impl IntoIterator<Item = Transport>,
    ) -> Result<Report, LoadTestError> {
        let (title, started) = (self.name.clone(), SystemTime::now());
        let mut runs = Vec::new();
        for transport in transports {
            if !runs.is_empty() && self.stop.is_stopped() {
                break;
            }
            self.name = transport.to_string();
            let plan = self.build()?;
            runs.push(self.carry_out(plan, transport).await?);
        }
        let (started, environment) = (unix_seconds(started), Environment::here());
        Ok(Report::of(title, started, environment, runs, Vec::new(), None))
    }

    async fn carry_out(&self, mut plan: Plan, transport: Transport) -> Result<Run, LoadTestError> {
        plan.over_connection = self.wire.is_some() || transport != Transport::Direct;
        let plan = Arc::new(plan);
        // What is on its way through a connection takes no virtual time.
        if plan.virtual_time && plan.over_connection {
            return Err(LoadTestError::RealWaits);
        }
        let before = self.wire.as_ref().map_or(0, Wire::connections);
        let (findings, wire) = match (&self.wire, transport.connection()) {
            (Some(wire), Some(_)) => {
                let url = wire.name().to_owned();
                return Err(PlanError::TwoTransports { url, transport }.into());
            }
            (wire, None) => {
                let findings = self.drive(self.service.clone(), &plan).await?;
                (findings, wire.clone())
            }
            (None, Some((medium, http))) => {
                let wire = Wire::serve(self.service.clone(), medium, http).await?;
                let findings = self.drive(wire.clone(), &plan).await?;
                (findings, Some(wire))
            }
        };
        let mut run = verdict::judge(&plan, findings);
        run.plan.transport = match &self.wire {
            Some(wire) => wire.name().to_owned(),
            None => transport.to_string(),
        };
        run.connections = wire.map(|wire| wire.connections() - before);
        run.hints = hints(&run, Environment::here().cpus);
        Ok(run)
    }

    async fn drive<T: InProcess>(
        &self,
        service: T,
        plan: &Arc<Plan>,
    ) -> Result<Findings, RunError> {
        let (stop, observer) = (&self.stop, self.observer.as_ref());
        if plan.virtual_time {
            run_in_virtual_time(service, plan.clone(), stop.clone(), observer.cloned()).await
        } else if plan.topology == Topology::Split {
            runner::run_apart(service, plan, stop, observer).await
        } else {
            runner::run(service, plan, None, stop, observer).await
        }
    }

    fn build(&mut self) -> Result<Plan, PlanError> {
        if let Some(mistake) = self.mistake.take() {
            return Err(mistake);
        }
        if self.scenario.is_empty() {
            return Err(PlanError::NoRequests);
        }
        let shaped = self.shape.clone().work_out(self.duration, self.requests)?;
        let workload = match (shaped.model, shaped.profile) {
            (Model::Closed, Some(users)) => {
                Workload::Closed { users, pause: self.pause, pacing: self.pacing }
            }
            (_, Some(profile)) => {
                Workload::Open(Schedule::Rate { profile, arrivals: self.arrivals })
            }
            (_, None) => Workload::Open(Schedule::Replay(shaped.replay.into())),
        };
        let pacing = self.pacing.unwrap_or_default();
        for time in [self.warmup, shaped.duration, self.timeout, self.pause.mean(), pacing] {
            if time > MAX_TIME {
                return Err(PlanError::TooLong(time));
            }
        }
        if self.timeout.is_zero() {
            return Err(PlanError::NoTimeout);
        }
        if self.max_in_flight == 0 {
            return Err(PlanError::NoneInFlight);
        }
        if self.requests == Some(0) {
            return Err(PlanError::NoRequestsWanted);
        }
        Ok(Plan {
            name: self.name.clone(),
            workload,
            warmup_level: shaped.first_level,
            stages: shaped.stages,
            names: StepNames::of(&self.scenario),
            scenario: self.scenario.clone(),
            warmup: self.warmup,
            duration: shaped.duration,
            requests: self.requests,
            max_in_flight: self.max_in_flight,
            timeout: self.timeout,
            seed: self.seed,
            over_connection: false,
            pass_limiter: self.pass_limiter,
            token: self.token.clone(),
            pacer: self.pacer,
            topology: self.topology,
            leads_out: self.wire.is_some(),
            virtual_time: self.virtual_time,
            tags: self.tags.clone(),
            thresholds: self.thresholds.clone(),
        })
    }
}

#[cfg(feature = "virtual-time")]
async fn run_in_virtual_time<S: InProcess>(
    service: S,
    plan: Arc<Plan>,
    stop: Stop,
    observer: Option<Observer>,
) -> Result<Findings, RunError> {
    let run = async move { runner::run(service, &plan, None, &stop, observer.as_ref()).await };
    crate::virtual_time(run).await?
}

/// Without the feature no plan asks for it.
#[cfg(not(feature = "virtual-time"))]
async fn run_in_virtual_time<S: InProcess>(
    service: S,
    plan: Arc<Plan>,
    stop: Stop,
    observer: Option<Observer>,
) -> Result<Findings, RunError> {
    runner::run(service, &plan, None, &stop, observer.as_ref()).await
}

impl<S> fmt::Debug for LoadTest<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadTest")
            .field("name", &self.name)
            .field("shape", &self.shape)
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
    /// The operating system refused the generator its threads, or a socket for its transport.
    #[error("the load generator cannot start: {0}")]
    Start(#[from] io::Error),
    /// The scenario's setup failed, so there was no load.
    #[error("the scenario's setup failed: {0}")]
    Setup(String),
    /// In virtual time, the service waited for something that takes real time.
    #[error(
        "virtual time does not fit this service: it waits for I/O, another thread or another runtime, which \
         takes no virtual time. Simulate that wait with a timer, or test in real time"
    )]
    RealWaits,
    /// In virtual time, nobody waits, so it does not pass.
    #[error(
        "virtual time stands still: neither the users nor the service ever wait. Give the users a think time, or \
         the service a wait on a timer"
    )]
    NoWaits,
}

impl From<RunError> for LoadTestError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Io(error) => Self::Start(error),
            RunError::Setup(error) => Self::Setup(error.to_string()),
            RunError::RealWaits => Self::RealWaits,
            RunError::NoWaits => Self::NoWaits,
        }
    }
}
