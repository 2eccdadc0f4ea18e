//! Carrying a plan out: the load, phase by phase, and what both sides saw of it.

use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::Request;
use parallax_middleware::{LoadMark, Perf, Probe, ProbeSource, ProcessUsage, Snapshot};
use tokio::{
    runtime::Handle,
    task::{JoinSet, coop::consume_budget},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use crate::{
    collector::{SharedTally, Tally},
    outcome::ClientOutcome,
    pacer::{self, Paced},
    plan::{Plan, Workload},
    progress::{Progress, Stage},
    report::ResourceRow,
    scenario::{LoadRng, stream},
    schedule::Schedule,
    sink::{Sample, ServerView, Sink},
    stop::Stop,
    target::{InProcess, exchange},
};

/// How often samples are collected.
const COLLECT_EVERY: Duration = Duration::from_millis(20);
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// What progress calls "the last second".
const RECENT: Duration = Duration::from_secs(1);
/// Past the timeout every request has ended but one whose service blocks its thread.
pub(crate) const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// From the decision to start to the first arrival: the generator's threads are up by then.
const LEAD: Duration = Duration::from_millis(2);

/// Takes progress; called from a thread of the generator's own.
pub(crate) type Observer = Arc<dyn Fn(&Progress) + Send + Sync>;

/// Everything that the measured phase of a run left behind.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) tally: Tally,
    pub(crate) scheduled: u64,
    pub(crate) dropped: u64,
    pub(crate) sent: u64,
    pub(crate) unsent: u64,
    pub(crate) in_flight: u64,
    /// Requests that the warm-up gave up waiting for: the layer may count them in the measured phase.
    pub(crate) left_over: u64,
    pub(crate) started_at: SystemTime,
    pub(crate) measured: Duration,
    pub(crate) interrupted: bool,
    /// The layer that answered, and what it recorded meanwhile.
    pub(crate) server: Option<(Perf, Snapshot)>,
    pub(crate) resources: Vec<ResourceRow>,
}

/// Runs the warm-up, lets it drain, then runs the measured phase.
///
/// Each phase begins and ends with nothing in flight, so the layer's counters before and after the
/// measured one differ by exactly its requests; but for those that a phase gave up waiting for, which are
/// counted apart.
pub(crate) async fn run<S: InProcess>(
    service: S,
    plan: &Arc<Plan>,
    stop: &Stop,
    observer: Option<&Observer>,
) -> io::Result<Findings> {
    let probes = ProbeSource::new();
    tokio::select! {
        () = preflight(service.clone(), plan, &probes) => {}
        () = stop.stopped() => {}
    }
    let phase = Phase { service, plan, probes: &probes, stop, observer };
    let mut left_over = 0;
    if !plan.warmup.is_zero() && !stop.is_stopped() {
        left_over = phase.run(Stage::WarmUp, plan.warmup).await?.in_flight;
    }
    let findings = phase.run(Stage::Measure, plan.duration).await?;
    Ok(Findings { left_over, ..findings })
}

/// Sends requests that do not count, one of each kind until one reaches a layer: so that the layer's
/// counters can be read before the first request that does.
async fn preflight<S: InProcess>(mut service: S, plan: &Plan, probes: &ProbeSource) {
    let mut rng = stream(plan.seed, "preflight", 0);
    for mut request in plan.scenario.one_of_each(&mut rng) {
        equip(&mut request, plan, &probes.probe());
        exchange(&mut service, request, Instant::now(), plan.timeout).await;
        if probes.answered_by().is_some() {
            return;
        }
    }
}

fn equip(request: &mut Request<Bytes>, plan: &Plan, probe: &Probe) {
    let mark = LoadMark::new().paired(probe.clone());
    let mark = if plan.pass_limiter { mark.past_limiter() } else { mark };
    request.extensions_mut().insert(mark);
}

/// Runs stretches of load that begin and end with nothing in flight.
struct Phase<'a, S> {
    service: S,
    plan: &'a Arc<Plan>,
    probes: &'a ProbeSource,
    stop: &'a Stop,
    observer: Option<&'a Observer>,
}

/// What the tasks of a phase share.
struct Load<S> {
    service: S,
    plan: Arc<Plan>,
    probes: ProbeSource,
    stop: Stop,
    sink: Sink,
    tally: SharedTally,
    start: Instant,
    /// No request is due at this moment or later.
    end: Instant,
    /// Nobody waits for the phase any more: its threads must end.
    abandoned: AtomicBool,
    /// [`Stage::WarmUp`] or [`Stage::Measure`].
    stage: Stage,
}

/// Ends the threads of a phase, also if its future is dropped half-way.
struct Abandon<'a>(&'a AtomicBool);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

impl<S: InProcess> Phase<'_, S> {
    async fn run(&self, stage: Stage, duration: Duration) -> io::Result<Findings> {
        let before = self.probes.answered_by().map(Perf::snapshot);
        let started_at = SystemTime::now();
        let start = Instant::now() + LEAD;
        let load = &Arc::new(Load {
            service: self.service.clone(),
            plan: self.plan.clone(),
            probes: self.probes.clone(),
            stop: self.stop.clone(),
            sink: Sink::new(Handle::current().metrics().num_workers()),
            tally: SharedTally::new(Tally::new(self.plan, duration)),
            start,
            end: start + duration,
            abandoned: AtomicBool::new(false),
            stage,
        });
        let _abandon = Abandon(&load.abandoned);
        let collector = Collector::start(load.clone(), stage, self.observer.cloned())?;
        let paced = match load.plan.workload {
            Workload::Closed { users, .. } => run_closed(load, users, &collector.stage).await,
            Workload::Open { rate } => run_open(load, rate, &collector.stage).await,
        };
        let paced = match paced {
            Ok(paced) => paced,
            Err(error) => {
                collector.finish().await;
                return Err(error);
            }
        };
        // From here on nothing is pushed but by requests that outlived the drain; they stay in flight.
        let in_flight = load.sink.in_flight();
        let after = load.probes.answered_by().map(|perf| (perf.clone(), perf.snapshot()));
        let resources = collector.finish().await;
        let server = match (before, after) {
            (Some(before), Some((perf, after))) => Some((perf, after.since(&before))),
            // Met only now: what it counted before cannot be told from what it counted since.
            (None, _) | (Some(_), None) => None,
        };
        let sent = load.sink.total_sent();
        let interrupted = load.stop.is_stopped() && paced.ended < load.end;
        let measured = paced.ended.min(load.end).saturating_duration_since(load.start);
        let mut tally = std::mem::replace(&mut *load.tally.lock(), Tally::new(self.plan, duration));
        tally.close(measured, load.probes.answered_by());
        Ok(Findings {
            tally,
            scheduled: paced.scheduled,
            dropped: paced.dropped,
            sent,
            unsent: paced.scheduled - paced.taken,
            in_flight,
            left_over: 0,
            started_at,
            measured,
            interrupted,
            server,
            resources,
        })
    }
}

/// What a workload did with its schedule.
struct Dispatched {
    scheduled: u64,
    taken: u64,
    dropped: u64,
    /// When the last request was dispatched or the run stopped; not before the plan's end otherwise.
    ended: Instant,
}

async fn run_closed<S: InProcess>(
    load: &Arc<Load<S>>,
    users: usize,
    stage: &StageCell,
) -> io::Result<Dispatched> {
    sleep_until(load.start).await;
    let mut tasks = JoinSet::new();
    for user in 0..users {
        tasks.spawn(load.clone().user(user as u64));
    }
    tokio::select! {
        () = sleep_until(load.end) => {}
        () = load.stop.stopped() => {}
    }
    let ended = load.end_sending(stage);
    let deadline = ended + load.plan.timeout + DRAIN_GRACE;
    let drained = async {
        while let Some(user) = tasks.join_next().await {
            if let Err(error) = user
                && error.is_panic()
            {
                // The service's panics are caught further in: this is the scenario's own.
                resume_unwind(error.into_panic());
            }
        }
    };
    if timeout_at(deadline, drained).await.is_err() {
        // Requests that are still out count as in flight. One that blocks its thread cannot be waited for.
        let _ = timeout(DRAIN_GRACE, tasks.shutdown()).await;
    }
    let sent = load.sink.total_sent();
    Ok(Dispatched { scheduled: sent, taken: sent, dropped: 0, ended })
}

async fn run_open<S: InProcess>(
    load: &Arc<Load<S>>,
    rate: f64,
    stage: &StageCell,
) -> io::Result<Dispatched> {
    let schedule = Schedule::constant(rate, load.end - load.start);
    let runtime = Handle::current();
    let (done, paced) = tokio::sync::oneshot::channel();
    let arrivals = load.clone();
    thread::Builder::new().name("parallax-pacer".to_owned()).spawn(move || {
        let mut dropped = 0;
        let bound = arrivals.plan.max_in_flight as u64;
        let paced = pacer::keep(
            schedule,
            arrivals.start,
            || arrivals.is_stopped(),
            |n, intended| {
                // Only this thread sends, so the count can be too high but never too low.
                if arrivals.sink.in_flight() >= bound {
                    dropped += 1;
                    arrivals.tally.lock().drop_arrival(intended);
                } else {
                    arrivals.sink.sent();
                    runtime.spawn(arrivals.clone().arrival(n, intended));
                }
            },
        );
        // Nobody listens any more if the run itself was dropped.
        let _ = done.send((paced, dropped));
    })?;
    let (Paced { scheduled, taken }, dropped) =
        paced.await.map_err(|_| io::Error::other("the pacing thread ended early"))?;
    // The last arrival comes before the end; the measured interval lasts until it.
    tokio::select! {
        () = sleep_until(load.end) => {}
        () = load.stop.stopped() => {}
    }
    let ended = load.end_sending(stage);
    let deadline = ended + load.plan.timeout + DRAIN_GRACE;
    while load.sink.in_flight() > 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(1)).await;
    }
    // What the runtime has not begun by now it must not begin in the next phase.
    load.abandoned.store(true, Relaxed);
    Ok(Dispatched { scheduled, taken, dropped, ended })
}

impl<S: InProcess> Load<S> {
    /// The random choices of user or arrival `n`. The warm-up makes others than what is measured: it must
    /// not warm just those entries of a cache that are asked for next.
    fn stream(&self, n: u64) -> LoadRng {
        let stage = if self.stage == Stage::WarmUp { "warm-up" } else { "measure" };
        stream(self.plan.seed, &[&self.plan.name, stage].concat(), n)
    }

    /// No request is sent from now on, and what ends later is no part of the rate.
    fn end_sending(&self, stage: &StageCell) -> Instant {
        let ended = Instant::now();
        stage.set(Stage::Drain);
        self.tally.lock().end_at(ended.saturating_duration_since(self.start));
        ended
    }

    fn is_stopped(&self) -> bool {
        self.stop.is_stopped() || self.abandoned.load(Relaxed)
    }

    /// One user: asks, waits for the answer, thinks, and asks again until the phase ends.
    async fn user(self: Arc<Self>, user: u64) {
        let mut service = self.service.clone();
        let mut rng = self.stream(user);
        let mut probe = self.probes.probe();
        // A user is ready when it comes into being, and when it has thought. Users begin in the middle
        // of a thought, each at another point of it: in step they would come in waves.
        let Workload::Closed { users, think_time } = self.plan.workload else { return };
        let mut ready = Instant::now();
        if !think_time.is_zero() {
            ready = self.start + think_time.mul_f64(user as f64 / users as f64);
            self.think_until(ready).await;
        }
        while ready < self.end && !self.is_stopped() {
            let (step, request) = self.plan.scenario.draw(&mut rng);
            self.sink.sent();
            let received = self.send(&mut service, step, request, ready, &mut probe).await;
            ready = received + think_time;
            if think_time.is_zero() {
                // A service that never waits would otherwise keep this worker for itself.
                consume_budget().await;
            } else {
                self.think_until(ready).await;
            }
        }
    }

    async fn think_until(&self, ready: Instant) {
        tokio::select! {
            () = sleep_until(ready.min(self.end)) => {}
            () = self.stop.stopped() => {}
        }
    }

    /// One arrival of an open workload.
    async fn arrival(self: Arc<Self>, n: u64, intended: Duration) {
        if self.abandoned.load(Relaxed) {
            // The phase ended before the runtime got round to this arrival: it stays in flight.
            return;
        }
        let mut service = self.service.clone();
        let (step, request) = self.plan.scenario.draw(&mut self.stream(n));
        let mut probe = self.probes.probe();
        self.send(&mut service, step, request, self.start + intended, &mut probe).await;
    }

    /// Sends a request that was due at `intended`, and keeps its record. Returns when the answer was in.
    async fn send(
        &self,
        service: &mut S,
        step: usize,
        mut request: Request<Bytes>,
        intended: Instant,
        probe: &mut Probe,
    ) -> Instant {
        equip(&mut request, &self.plan, probe);
        let dispatched = Instant::now();
        let mut answer = exchange(service, request, dispatched, self.plan.timeout).await;
        let received = Instant::now();
        // A service that blocked its thread answered in one poll, and no timer could interrupt it; its
        // client has given up all the same.
        let service_time = received.saturating_duration_since(dispatched);
        if service_time > self.plan.timeout {
            answer.outcome = ClientOutcome::Timeout;
        }
        let sample = Sample {
            step: step as u32,
            intended: intended.saturating_duration_since(self.start),
            lag: dispatched.saturating_duration_since(intended),
            service_time,
            answer,
            server: probe.record().map(ServerView::from),
        };
        probe.renew();
        if let Some(batch) = self.sink.push(sample) {
            self.tally.lock().absorb(&batch, self.probes.answered_by());
        }
        self.sink.finished();
        received
    }
}

impl<S> fmt::Debug for Load<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load").field("plan", &self.plan.name).finish_non_exhaustive()
    }
}

/// The stage of a phase, as the collector shows it.
#[derive(Clone, Debug)]
struct StageCell(Arc<AtomicU8>);

impl StageCell {
    fn set(&self, stage: Stage) {
        self.0.store(stage as u8, Relaxed);
    }

    fn get(&self) -> Stage {
        match self.0.load(Relaxed) {
            n if n == Stage::WarmUp as u8 => Stage::WarmUp,
            n if n == Stage::Measure as u8 => Stage::Measure,
            _ => Stage::Drain,
        }
    }
}

/// A thread that turns samples into distributions, watches the process, and tells how things go. It is
/// no task, so that a busy runtime cannot hold it up.
struct Collector {
    stage: StageCell,
    done: Arc<AtomicBool>,
    thread: thread::JoinHandle<Vec<ResourceRow>>,
}

impl Collector {
    fn start<S: InProcess>(
        load: Arc<Load<S>>,
        stage: Stage,
        observer: Option<Observer>,
    ) -> io::Result<Self> {
        let cell = StageCell(Arc::new(AtomicU8::new(stage as u8)));
        let done = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("parallax-collector".to_owned()).spawn({
            let (stage, done) = (cell.clone(), done.clone());
            move || collect(&load, &stage, &done, observer.as_ref())
        })?;
        Ok(Self { stage: cell, done, thread })
    }

    /// Collects what is left, and ends.
    async fn finish(self) -> Vec<ResourceRow> {
        self.done.store(true, Relaxed);
        self.thread.thread().unpark();
        // Its last pass takes milliseconds, but they belong to no worker of the service's runtime.
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await;
        joined.ok().and_then(Result::ok).unwrap_or_default()
    }
}

fn collect<S>(
    load: &Load<S>,
    stage: &StageCell,
    done: &AtomicBool,
    observer: Option<&Observer>,
) -> Vec<ResourceRow> {
    let mut spare = Vec::new();
    let mut resources = Vec::new();
    let slot = load.tally.lock().timeline.width();
    let mut next_row = load.start;
    let mut live = Live::new(load.start);
    loop {
        // Read before the pass: what is pushed before the flag is set is collected.
        let last = done.load(Relaxed) || load.abandoned.load(Relaxed);
        load.sink.drain(&mut spare, |samples| {
            load.tally.lock().absorb(samples, load.probes.answered_by());
        });
        let now = Instant::now();
        if now >= next_row || last {
            next_row = now + slot;
            let usage = ProcessUsage::now();
            resources.push(ResourceRow {
                at_s: now.saturating_duration_since(load.start).as_secs_f64(),
                rss_bytes: usage.rss_bytes,
                cpu_s: usage.cpu.map(|cpu| cpu.as_secs_f64()),
                in_flight: load.sink.in_flight(),
            });
        }
        if let Some(observer) = observer {
            live.tell(load, stage.get(), now, last, observer);
        }
        if last {
            return resources;
        }
        thread::park_timeout(COLLECT_EVERY);
    }
}

/// What the live display shows of the last second.
struct Live {
    next: Instant,
    recent_since: Instant,
    rate: f64,
    p99: Option<Duration>,
    /// Nobody listens any more.
    silent: bool,
}

impl Live {
    fn new(start: Instant) -> Self {
        Self { next: start, recent_since: start, rate: 0.0, p99: None, silent: false }
    }

    fn tell<S>(
        &mut self,
        load: &Load<S>,
        stage: Stage,
        now: Instant,
        last: bool,
        observer: &Observer,
    ) {
        if self.silent || (now < self.next && !last) {
            return;
        }
        self.next = now + TELL_EVERY;
        let mut tally = load.tally.lock();
        let outcomes = tally.outcomes();
        let span = now.saturating_duration_since(self.recent_since);
        if span >= RECENT {
            let recent = tally.take_recent();
            self.recent_since = now;
            self.rate = recent.count() as f64 / span.as_secs_f64();
            self.p99 = recent.summary().p99_us.map(|us| Duration::from_secs_f64(us / 1e6));
        }
        drop(tally);
        let progress = Progress {
            run: load.plan.name.clone(),
            stage,
            elapsed: now.saturating_duration_since(load.start),
            planned: load.end.saturating_duration_since(load.start),
            ok: outcomes.ok,
            failed: outcomes.failed(),
            in_flight: load.sink.in_flight(),
            rate: self.rate,
            p99: self.p99,
        };
        // An observer that panics must not take the samples with it; it has had its last word.
        self.silent = catch_unwind(AssertUnwindSafe(|| observer(&progress))).is_err();
    }
}

/// Seconds since the Unix epoch.
pub(crate) fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
