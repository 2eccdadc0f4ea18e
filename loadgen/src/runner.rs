//! Carrying a plan out: the load, phase by phase, and what both sides saw of it.

use std::{
    collections::BTreeMap,
    future::pending,
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU8, AtomicU64,
            Ordering::{Acquire, Relaxed},
        },
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parallax_middleware::{LatencyHistogram, Perf, ProbeSource, ProcessUsage, Snapshot};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::oneshot,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use crate::{
    alarm::AlarmClock,
    calibration::{Null, cost_of_a_request},
    checks::Checks,
    collector::{SharedTally, Tally, Timeline},
    failures::Failures,
    load::{DRAIN_GRACE, Load, Timer, UnderWay, equip, settle},
    pacer::{self, Paced, Pacer, Taking},
    plan::{MAX_TIME, Plan, Workload},
    progress::{Progress, Stage},
    random::stream,
    reply::FlowError,
    report::{Check, ErrorCount, ResourceRow},
    resources::{Reading, Resources, RuntimeWatch, pools},
    schedule::{Profile, Schedule, Starts},
    server_names::{ServerNames, Told},
    sink::{Sample, Sink},
    stop::Stop,
    target::{InProcess, Wanted, exchange},
    virtual_time::Watch,
    wake_ups::WakeUps,
};

/// How often samples are collected.
const COLLECT_EVERY: Duration = Duration::from_millis(20);
/// In virtual time, for each reading of the process.
const PASSES: u32 = 8;
/// What counts as one moment.
const MOMENT: Duration = Duration::from_micros(50);
/// How often progress is told.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// What progress calls "the last second".
const RECENT: Duration = Duration::from_secs(1);

/// From the decision to start to the first arrival: the generator's threads are up by then.
const LEAD: Duration = Duration::from_millis(2);

/// Takes progress; called from a thread of the generator's own.
pub(crate) type Observer = Arc<dyn Fn(&Progress) + Send + Sync>;

/// Everything that the measured phase of a run left behind.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) tally: Tally,
    /// Of those scheduled, the ones that no answer made due.
    pub(crate) arrivals: u64,
    pub(crate) scheduled: u64,
    pub(crate) dropped: u64,
    pub(crate) sent: u64,
    pub(crate) unsent: u64,
    /// Of those, the ones that were to pause for longer than the run went on.
    pub(crate) outlived: u64,
    pub(crate) in_flight: u64,
    /// Requests that the warm-up gave up waiting for, and those whose server gave no sign of their end: the layer
    /// may count them in the measured phase.
    pub(crate) left_over: u64,
    pub(crate) started_at: SystemTime,
    pub(crate) measured: Duration,
    pub(crate) interrupted: bool,
    /// What the layer that answered recorded meanwhile.
    pub(crate) server: Option<Snapshot>,
    /// What the server's side calls its routes and phases.
    pub(crate) server_names: Option<ServerNames>,
    pub(crate) resources: Vec<ResourceRow>,
    /// How late a task on the service's runtime was woken; not in virtual time.
    pub(crate) canary: Option<LatencyHistogram>,
    /// How late a thread of the generator's own was woken; none in virtual time.
    pub(crate) wake_ups: WakeUps,
    /// The service runs in this process, as far as anybody can tell.
    pub(crate) in_process: bool,
    /// The slots of the warm-up before it, and how long that lasted.
    pub(crate) warmup: Option<(Timeline, Duration)>,
    pub(crate) errors: Vec<ErrorCount>,
    /// Steps of the mix that had a weight and no turn, by name.
    pub(crate) never_taken: Vec<String>,
    pub(crate) checks: Vec<Check>,
    /// Between arrivals; of an open workload.
    pub(crate) gaps: Option<LatencyHistogram>,
    /// What a request costs the generator, by processor time.
    pub(crate) cost: Option<Duration>,
}

/// Why a run left nothing behind.
#[derive(Debug)]
pub(crate) enum RunError {
    Io(io::Error),
    Setup(FlowError),
    /// In virtual time: the service waits for something that happens elsewhere.
    RealWaits,
    /// In virtual time: neither service nor users wait.
    NoWaits,
}

impl From<io::Error> for RunError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Runs the warm-up, lets it drain, then runs the measured phase.
///
/// Each phase begins and ends with nothing in flight, so the layer's counters before and after the
/// measured one differ by exactly its requests; but for those that a phase gave up waiting for, which are
/// counted apart.
pub(crate) async fn run<S: InProcess>(
    service: S,
    plan: &Arc<Plan>,
    host: Option<Handle>,
    stop: &Stop,
    observer: Option<&Observer>,
) -> Result<Findings, RunError> {
    let probes = ProbeSource::new();
    let watch = plan.virtual_time.then(Watch::default);
    // In virtual time nothing costs anything.
    let cost = match watch {
        Some(_) => None,
        None => Some(calibrate(plan, stop).await),
    };
    let mut phase = Phase {
        service,
        plan,
        host,
        probes: &probes,
        stop,
        observer,
        watch: watch.clone(),
        told: plan.token.is_some().then(Told::new),
        unsettled: Arc::default(),
        values: BTreeMap::new(),
    };
    if let Some(setup) = plan.scenario.setup_flow() {
        let load = Arc::new(phase.load(Stage::WarmUp, MAX_TIME, Timer::Runtime));
        tokio::select! {
            values = load.run_aside(setup) => match values {
                Ok(values) => phase.values = values,
                // Whoever stops a run wants no setup either.
                Err(_) if stop.is_stopped() => {}
                Err(error) => return Err(RunError::Setup(error)),
            },
            () = stop.stopped() => {}
        }
    }
    tokio::select! {
        () = phase.preflight() => {}
        () = stop.stopped() => {}
    }
    let (mut left_over, mut warmup) = (0, None);
    if !plan.warmup.is_zero() && !stop.is_stopped() {
        let before = phase.run(Stage::WarmUp, plan.warmup).await?;
        left_over = before.in_flight;
        warmup = Some((before.tally.timeline, before.measured));
    }
    let mut findings = phase.run(Stage::Measure, plan.duration).await?;
    let unsettled = phase.unsettled.load(Relaxed);
    if let Some(teardown) = plan.scenario.teardown_flow() {
        let load = Arc::new(Load {
            stop: Stop::new(),
            ..phase.load(Stage::Drain, MAX_TIME, Timer::Runtime)
        });
        // The figures stand, whatever becomes of what is left behind.
        if let Err(error) = load.run_aside(teardown).await {
            let first_failure = Some(error.to_string());
            let name = "teardown".to_owned();
            findings.checks.push(Check { name, passed: 0, failed: 1, first_failure });
        }
    }
    if let Some(watch) = watch {
        if watch.saw_outside() {
            return Err(RunError::RealWaits);
        }
        if watch.stands_still() {
            return Err(RunError::NoWaits);
        }
    }
    let left_over = left_over + unsettled;
    Ok(Findings { left_over, warmup, cost, ..findings })
}

/// Runs it on a runtime of the generator's own; the service's is the caller's.
pub(crate) async fn run_apart<S: InProcess>(
    service: S,
    plan: &Arc<Plan>,
    stop: &Stop,
    observer: Option<&Observer>,
) -> Result<Findings, RunError> {
    let host = Handle::current();
    let runtime = OwnRuntime::start(host.metrics().num_workers().div_ceil(2))?;
    let (plan, stop, observer) = (plan.clone(), stop.clone(), observer.cloned());
    let mut task = AbortOnDrop(
        runtime
            .handle()
            .spawn(async move { run(service, &plan, Some(host), &stop, observer.as_ref()).await }),
    );
    match (&mut task.0).await {
        Ok(found) => found,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        Err(error) => Err(RunError::Io(io::Error::other(error))),
    }
}

/// A runtime that may be dropped within another.
struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn start(workers: usize) -> io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        let builder = builder.worker_threads(workers).thread_name("parallax-load").enable_all();
        Ok(Self(Some(builder.build()?)))
    }

    fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn calibrate(plan: &Arc<Plan>, stop: &Stop) -> Duration {
    let probes = ProbeSource::new();
    let phase = Phase {
        service: Null,
        plan,
        host: None,
        probes: &probes,
        stop,
        observer: None,
        watch: None,
        told: None,
        unsettled: Arc::default(),
        values: BTreeMap::new(),
    };
    cost_of_a_request(&phase.load(Stage::WarmUp, MAX_TIME, Timer::Runtime)).await
}

/// Runs stretches of load that begin and end with nothing in flight.
struct Phase<'a, S> {
    service: S,
    plan: &'a Arc<Plan>,
    host: Option<Handle>,
    probes: &'a ProbeSource,
    stop: &'a Stop,
    observer: Option<&'a Observer>,
    watch: Option<Watch>,
    told: Option<Arc<Told>>,
    unsettled: Arc<AtomicU64>,
    values: BTreeMap<String, String>,
}

/// Ends the threads of a phase, also if its future is dropped half-way.
struct Abandon<'a>(&'a AtomicBool);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Ends a task that nobody waits for any more.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<S: InProcess> Phase<'_, S> {
    fn load(&self, stage: Stage, duration: Duration, timer: Timer) -> Load<S> {
        let measured = stage == Stage::Measure;
        let start = Instant::now() + LEAD;
        let mut tally = Tally::new(self.plan, duration);
        tally.start = Some(start);
        Load {
            service: self.service.clone(),
            workload: match stage {
                Stage::WarmUp => self.plan.warming_up(),
                Stage::Measure | Stage::Drain => self.plan.workload.clone(),
            },
            plan: self.plan.clone(),
            probes: self.probes.clone(),
            stop: self.stop.clone(),
            sink: Sink::new(Handle::current().metrics().num_workers()),
            tally: SharedTally::new(tally),
            checks: Checks::default(),
            failures: Arc::default(),
            timer,
            host: self.host.clone(),
            watch: self.watch.clone(),
            told: self.told.clone(),
            unsettled: self.unsettled.clone(),
            values: self.values.clone(),
            start,
            end: start + duration,
            begun: self.plan.scenario.names().map(|_| AtomicBool::new(false)).collect(),
            tickets: self.plan.requests.filter(|_| measured).map(AtomicU64::new),
            outlived: AtomicU64::new(0),
            under_way: AtomicU64::new(0),
            given_up: Stop::new(),
            abandoned: AtomicBool::new(false),
            stage,
        }
    }

    /// Sends requests that do not count, one of each kind until one reaches a layer: so that the layer's
    /// counters can be read before the first request that does.
    async fn preflight(&self) {
        let (plan, probes) = (self.plan, self.probes);
        let mut rng = stream(plan.seed, "preflight", 0);
        let mut service = self.service.clone();
        for mut request in plan.scenario.one_of_each(&mut rng) {
            let (mut probe, failures) = (probes.probe(), Failures::default());
            equip(&mut request, plan, &probe);
            exchange(
                &mut service,
                &mut Some(request),
                Instant::now(),
                plan.timeout,
                &failures,
                Wanted::default(),
            )
            .await;
            let settled = settle(&mut probe).await;
            self.unsettled.fetch_add(u64::from(!settled), Relaxed);
            if probes.answered_by().is_some() {
                return;
            }
        }
        if let Some(flow) = plan.scenario.any_flow() {
            // A request shows who answers; whether the flow goes well is for the run to show.
            let one = Some(AtomicU64::new(1));
            let load = self.load(Stage::WarmUp, MAX_TIME, Timer::Hurried);
            let load = Arc::new(Load { tickets: one, ..load });
            let _ = timeout(plan.timeout + DRAIN_GRACE, load.run_aside(flow)).await;
        }
    }

    async fn run(&self, stage: Stage, duration: Duration) -> io::Result<Findings> {
        let before = self.probes.answered_by().map(Perf::snapshot);
        let started_at = SystemTime::now();
        let closed = matches!(self.plan.workload, Workload::Closed { .. });
        let timer = match self.plan.pacer {
            // Arrivals have a pacer of their own; what pauses is woken by the alarm clock.
            Pacer::Precise
                if (closed || self.plan.scenario.has_flows()) && !self.plan.virtual_time =>
            {
                Timer::Precise(AlarmClock::start()?)
            }
            Pacer::Precise | Pacer::Coarse => Timer::Runtime,
        };
        let load = &Arc::new(self.load(stage, duration, timer));
        let _abandon = Abandon(&load.abandoned);
        let collector = Collector::start(load.clone(), stage, self.observer.cloned())?;
        let dispatched = match &load.workload {
            Workload::Closed { users, .. } => run_closed(load, users, &collector.stage).await,
            Workload::Open(schedule) => run_open(load, schedule.clone(), &collector.stage).await,
        };
        let dispatched = match dispatched {
            Ok(dispatched) => dispatched,
            Err(error) => {
                collector.finish().await;
                return Err(error);
            }
        };
        let Collected { resources, canary, wake_ups } = collector.finish().await;
        let after = load.probes.answered_by().map(Perf::snapshot);
        let server = match (before, after) {
            (Some(before), Some(after)) => Some(after.since(&before)),
            // Met only now: what it counted before cannot be told from what it counted since.
            (None, _) | (Some(_), None) => None,
        };
        let sent = load.sink.total_sent();
        let mut tally = std::mem::replace(&mut *load.tally.lock(), Tally::new(self.plan, duration));
        // What ends from here on has outlived the drain, and stays in flight.
        let in_flight = sent.saturating_sub(tally.outcomes().total());
        let all_answered =
            self.plan.requests.is_some_and(|wanted| tally.outcomes().total() >= wanted);
        let interrupted = load.stop.is_stopped() && dispatched.ended < load.end && !all_answered;
        let measured = dispatched.ended.min(load.end).saturating_duration_since(load.start);
        // So many requests took until the last of them was answered, not until somebody noticed.
        let measured = if all_answered { measured.min(tally.last_end()) } else { measured };
        let was_taken = |step: u32| tally.has_seen(step) || load.begun[step as usize].load(Relaxed);
        let never_taken = self.plan.scenario.never_taken(was_taken);
        let server_names = load.server_names();
        tally.close(measured, server_names.as_ref());
        let (paced, dropped) = (dispatched.paced, dispatched.dropped);
        // What was due, and what an answer made due.
        let begun = paced.taken - dropped;
        let unsent = load.sink.total_unsent();
        let follow_ups = (sent + unsent).saturating_sub(begun);
        Ok(Findings {
            tally,
            arrivals: paced.scheduled,
            scheduled: paced.scheduled + follow_ups,
            dropped,
            sent,
            unsent: paced.scheduled - paced.taken + unsent,
            outlived: load.outlived.load(Relaxed).min(unsent),
            in_flight,
            left_over: 0,
            started_at,
            measured,
            interrupted,
            server,
            server_names,
            resources,
            canary,
            wake_ups,
            in_process: load.is_in_process(),
            warmup: None,
            errors: load.failures.counts(),
            never_taken,
            checks: load.checks.all(),
            gaps: (!closed).then_some(paced.gaps),
            cost: None,
        })
    }
}

/// What a workload did with its schedule.
struct Dispatched {
    paced: Paced,
    dropped: u64,
    /// When the last request was dispatched or the run stopped; not before the plan's end otherwise.
    ended: Instant,
}

async fn run_closed<S: InProcess>(
    load: &Arc<Load<S>>,
    users: &Profile,
    stage: &StageCell,
) -> io::Result<Dispatched> {
    sleep_until(load.start).await;
    let mut tasks = JoinSet::new();
    for user in 0..users.peak().ceil() as u64 {
        tasks.spawn(load.clone().user(user));
    }
    tokio::select! {
        () = sleep_until(load.end) => {}
        () = load.stop.stopped() => {}
        () = all_answered(load) => {}
        // Users end by themselves only if virtual time is in vain.
        () = join_all(&mut tasks), if load.watch.is_some() => {}
    }
    let ended = end_sending(load, stage);
    let deadline =
        if load.all_answered() { ended } else { ended + load.plan.timeout + DRAIN_GRACE };
    if timeout_at(deadline, join_all(&mut tasks)).await.is_err() {
        load.given_up.stop();
        // Requests that are still out count as in flight. One that blocks its thread cannot be waited for.
        let _ = timeout(DRAIN_GRACE, tasks.shutdown()).await;
    }
    Ok(Dispatched { paced: Paced::default(), dropped: 0, ended })
}

async fn join_all(tasks: &mut JoinSet<()>) {
    while let Some(user) = tasks.join_next().await {
        if let Err(error) = user
            && error.is_panic()
        {
            // The service's panics are caught further in: this is the scenario's own.
            resume_unwind(error.into_panic());
        }
    }
}

async fn run_open<S: InProcess>(
    load: &Arc<Load<S>>,
    schedule: Schedule,
    stage: &StageCell,
) -> io::Result<Dispatched> {
    // Past all arrivals, so that none of them has the same choices to make.
    let starts = schedule.starts(load.end - load.start, load.stream(u64::MAX));
    let starts = Limited { starts, load: load.clone() };
    let exact = load.plan.pacer == Pacer::Precise && !load.plan.virtual_time;
    let (paced, dropped) =
        if exact { pace_by_thread(load, starts).await? } else { pace_by_timer(load, starts).await };
    // The last arrival comes before the end; the measured interval lasts until it, or until so many requests as
    // were wanted have their answers.
    tokio::select! {
        () = sleep_until(load.end) => {}
        () = load.stop.stopped() => {}
        () = all_answered(load) => {}
    }
    let ended = end_sending(load, stage);
    let deadline =
        if load.all_answered() { ended } else { ended + load.plan.timeout + DRAIN_GRACE };
    let drained_in_time = timeout_at(deadline, drained(load)).await;
    // What the runtime has not begun by now it must not begin in the next phase.
    load.given_up.stop();
    if drained_in_time.is_err() {
        // Flows that wait for something of their own are dropped, which takes a moment.
        let _ = timeout(DRAIN_GRACE, drained(load)).await;
    }
    Ok(Dispatched { paced, dropped, ended })
}

/// Waits for the answer to the last of so many requests as were wanted; for ever, if none were counted.
async fn all_answered<S: InProcess>(load: &Load<S>) {
    if load.tickets.is_none() {
        pending::<()>().await;
    }
    while !load.all_answered() {
        sleep(Duration::from_millis(1)).await;
    }
}

async fn drained<S: InProcess>(load: &Load<S>) {
    while load.under_way.load(Acquire) > 0 {
        sleep(Duration::from_millis(1)).await;
    }
}

/// As many starts as there may be.
struct Limited<S> {
    starts: Starts,
    load: Arc<Load<S>>,
}

impl<S: InProcess> Iterator for Limited<S> {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.load.take_ticket().then(|| self.starts.next()).flatten()
    }
}

async fn pace_by_thread<S: InProcess>(
    load: &Arc<Load<S>>,
    starts: Limited<S>,
) -> io::Result<(Paced, u64)> {
    let runtime = Handle::current();
    let (done, paced) = oneshot::channel();
    let load = load.clone();
    thread::Builder::new().name("parallax-pacer".to_owned()).spawn(move || {
        let mut dropped = 0;
        let paced = pacer::keep(
            starts,
            load.start,
            || load.is_stopped(),
            |n, intended, now| dropped += u64::from(!arrive(&load, &runtime, n, intended, now)),
        );
        // Nobody listens any more if the run itself was dropped.
        let _ = done.send((paced, dropped));
    })?;
    paced.await.map_err(|_| io::Error::other("the pacing thread ended early"))
}

async fn pace_by_timer<S: InProcess>(load: &Arc<Load<S>>, mut starts: Limited<S>) -> (Paced, u64) {
    let (runtime, mut taking, mut dropped) = (Handle::current(), Taking::default(), 0);
    while let Some(at) = starts.next() {
        tokio::select! {
            () = sleep_until(load.start + at) => {}
            () = load.stop.stopped() => {}
        }
        if load.is_stopped() {
            let elapsed = load.start.elapsed();
            let due = std::iter::once(at).chain(starts).take_while(|at| *at < elapsed);
            return (taking.end(due.count() as u64), dropped);
        }
        let now = Instant::now();
        dropped += u64::from(!arrive(load, &runtime, taking.take(now), at, now));
    }
    (taking.end(0), dropped)
}

/// Sends an arrival, at `now`, unless too many are under way.
fn arrive<S: InProcess>(
    load: &Arc<Load<S>>,
    runtime: &Handle,
    n: u64,
    intended: Duration,
    now: Instant,
) -> bool {
    // Only one pacer sends, so the count can be too high but never too low.
    if load.under_way.load(Relaxed) >= load.plan.max_in_flight as u64 {
        load.tally.lock().drop_arrival(intended);
        return false;
    }
    load.sink.sent();
    if load.plan.on_its_runtime() {
        load.sink.begin_to_wait();
    }
    runtime.spawn(UnderWay::begin(load.clone()).arrival(n, intended, now));
    true
}

/// No request is sent from now on, and what ends later is no part of the rate.
fn end_sending<S: InProcess>(load: &Load<S>, stage: &StageCell) -> Instant {
    let ended = Instant::now();
    stage.set(Stage::Drain);
    load.tally.lock().end_at(ended.saturating_duration_since(load.start));
    ended
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

/// Turns samples into distributions, watches the process, and tells how things go. On a thread of its own, so
/// that a busy runtime cannot hold it up; as a task where time is virtual, because no other thread knows that.
struct Collector {
    stage: StageCell,
    done: Arc<AtomicBool>,
    worker: Worker,
}

enum Worker {
    Thread(thread::JoinHandle<Collected>),
    Task(AbortOnDrop<Collected>),
}

/// What it saw besides requests.
#[derive(Default)]
struct Collected {
    resources: Vec<ResourceRow>,
    canary: Option<LatencyHistogram>,
    wake_ups: WakeUps,
}

impl Collector {
    fn start<S: InProcess>(
        load: Arc<Load<S>>,
        stage: Stage,
        observer: Option<Observer>,
    ) -> io::Result<Self> {
        let cell = StageCell(Arc::new(AtomicU8::new(stage as u8)));
        let done = Arc::new(AtomicBool::new(false));
        let virtual_time = load.plan.virtual_time;
        let mut collecting = Collecting::new(load, cell.clone(), done.clone(), observer);
        let worker = if virtual_time {
            Worker::Task(AbortOnDrop(tokio::spawn(async move {
                while !collecting.pass() {
                    sleep(collecting.resources.every() / PASSES).await;
                }
                collecting.collected()
            })))
        } else {
            let thread = thread::Builder::new().name("parallax-collector".to_owned());
            Worker::Thread(thread.spawn(move || {
                pacer::sharpen_sleep();
                while !collecting.pass() {
                    collecting.rest();
                }
                collecting.collected()
            })?)
        };
        Ok(Self { stage: cell, done, worker })
    }

    /// Collects what is left, and ends.
    async fn finish(self) -> Collected {
        self.done.store(true, Relaxed);
        match self.worker {
            Worker::Thread(thread) => {
                thread.thread().unpark();
                // Its last pass takes milliseconds, but they belong to no worker of the service's runtime.
                let joined = tokio::task::spawn_blocking(move || thread.join()).await;
                joined.ok().and_then(Result::ok).unwrap_or_default()
            }
            Worker::Task(mut task) => (&mut task.0).await.unwrap_or_default(),
        }
    }
}

/// The collector at work.
struct Collecting<S> {
    load: Arc<Load<S>>,
    stage: StageCell,
    done: Arc<AtomicBool>,
    observer: Option<Observer>,
    spare: Vec<Sample>,
    resources: Resources,
    /// Where time is real.
    runtime: Option<RuntimeWatch>,
    wake_ups: WakeUps,
    live: Live,
}

impl<S> Collecting<S> {
    fn new(
        load: Arc<Load<S>>,
        stage: StageCell,
        done: Arc<AtomicBool>,
        observer: Option<Observer>,
    ) -> Self {
        let service = load.host.clone().unwrap_or_else(Handle::current);
        let runtime =
            (!load.plan.virtual_time).then(|| RuntimeWatch::start(&service, load.start, load.end));
        Self {
            stage,
            done,
            observer,
            spare: Vec::new(),
            resources: Resources::new(slot_of(&load)),
            runtime,
            wake_ups: WakeUps::default(),
            live: Live::new(load.start),
            load,
        }
    }

    /// Collects what there is. True if that was the last time.
    fn pass(&mut self) -> bool {
        let load = &self.load;
        // Read before the pass: what is pushed before the flag is set is collected.
        let last = self.done.load(Relaxed) || load.abandoned.load(Relaxed);
        if let Some(runtime) = &self.runtime
            && self.stage.get() == Stage::Drain
        {
            runtime.canary.end_here();
        }
        count_in_service(load);
        load.sink.drain(&mut self.spare, |samples| {
            load.tally.lock().absorb(samples, load.server_names().as_ref());
        });
        let now = Instant::now();
        let at = now.saturating_duration_since(load.start);
        if self.resources.is_due(at) || last {
            // A runtime that only the generator runs on says nothing about the service.
            let runtime = self.runtime.as_ref().filter(|_| load.is_in_process());
            self.resources.add(Reading {
                at,
                usage: ProcessUsage::now(),
                in_flight: load.sink.in_flight(),
                runtime: runtime.map(RuntimeWatch::read),
                // A pool of the user's own is asked how it stands: if that panics, nothing else may be lost.
                pools: catch_unwind(AssertUnwindSafe(|| pools(load.probes.answered_by())))
                    .unwrap_or_default(),
            });
        }
        if let Some(observer) = &self.observer {
            self.live.tell(load, self.stage.get(), now, last, observer);
        }
        last
    }

    fn collected(self) -> Collected {
        let canary = self.runtime.map(|runtime| runtime.canary.lateness());
        Collected { resources: self.resources.rows(), canary, wake_ups: self.wake_ups }
    }

    /// Sleeps until the next pass, and notes how late it was woken.
    fn rest(&mut self) {
        let began = Instant::now();
        let late = WakeUps::park(COLLECT_EVERY);
        if let Some(late) = late
            && began >= self.load.start
            && began + COLLECT_EVERY <= self.load.end
            && self.stage.get() != Stage::Drain
        {
            self.wake_ups.record(late, COLLECT_EVERY);
        }
    }
}

/// Counts what is in the service's hands at this moment.
fn count_in_service<S>(load: &Load<S>) {
    if Instant::now() < load.start {
        return;
    }
    // Under the lock, so that nothing is added that ends after the moment.
    let mut tally = load.tally.lock();
    for _ in 0..3 {
        let began = Instant::now();
        let counted = load.sink.count_in_service();
        let took = began.elapsed();
        // If this thread was held up in between, nobody knows of which moment the count is.
        if took <= MOMENT {
            return tally.occupancy.count(began + took / 2 - load.start, counted);
        }
    }
}

fn slot_of<S>(load: &Load<S>) -> Duration {
    load.tally.lock().timeline.width()
}

/// What the live display shows of the last second.
struct Live {
    next: Instant,
    recent_since: Instant,
    rate: f64,
    p50: Option<Duration>,
    p99: Option<Duration>,
    /// Nobody listens any more.
    silent: bool,
}

impl Live {
    fn new(start: Instant) -> Self {
        Self { next: start, recent_since: start, rate: 0.0, p50: None, p99: None, silent: false }
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
            let time = |us: Option<f64>| us.map(|us| Duration::from_secs_f64(us / 1e6));
            let summary = recent.summary();
            (self.p50, self.p99) = (time(summary.p50_us), time(summary.p99_us));
        }
        drop(tally);
        let progress = Progress {
            run: load.plan.name.clone(),
            stage,
            elapsed: now.saturating_duration_since(load.start),
            planned: load.end.saturating_duration_since(load.start),
            requests: load.plan.requests.filter(|_| load.tickets.is_some()),
            ok: outcomes.ok,
            failed: outcomes.failed(),
            in_flight: load.sink.in_flight(),
            rate: self.rate,
            p50: self.p50,
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
