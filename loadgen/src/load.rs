//! The load of one phase: what users and arrivals do until it ends.

use std::{
    collections::BTreeMap,
    fmt,
    future::pending,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, Release, SeqCst},
        },
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Version};
use parallax_middleware::{LoadMark, Probe, ProbeSource};
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::{coop::consume_budget, yield_now},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    alarm::AlarmClock,
    checks::Checks,
    collector::SharedTally,
    failures::Failures,
    outcome::ClientOutcome,
    plan::{Plan, Workload},
    progress::Stage,
    random::{LoadRng, stream},
    reply::{FlowError, Reply},
    scenario::{Action, Flow},
    server_names::{ServerNames, Told},
    server_timing,
    session::{BoxFuture, Client, Session, State},
    sink::{Handed, Sample, ServerView, Sink},
    stop::Stop,
    target::{Answer, InProcess, Wanted, exchange},
    virtual_time::Watch,
};

/// Past the timeout every request has ended but one whose service blocks its thread.
pub(crate) const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// What the tasks of a phase share.
pub(crate) struct Load<S> {
    pub(crate) service: S,
    pub(crate) plan: Arc<Plan>,
    /// The plan's, or that of its warm-up.
    pub(crate) workload: Workload,
    pub(crate) probes: ProbeSource,
    pub(crate) stop: Stop,
    pub(crate) sink: Sink,
    pub(crate) tally: SharedTally,
    pub(crate) checks: Checks,
    pub(crate) failures: Arc<Failures>,
    pub(crate) timer: Timer,
    /// The service's runtime, if the generator has another.
    pub(crate) host: Option<Handle>,
    /// Where time is virtual.
    pub(crate) watch: Option<Watch>,
    /// Names that come over a connection, if the server is asked for its times.
    pub(crate) told: Option<Arc<Told>>,
    /// Requests of all phases that ended for the client, and not within the grace for the server.
    pub(crate) unsettled: Arc<AtomicU64>,
    /// What the setup left for every session.
    pub(crate) values: BTreeMap<String, String>,
    pub(crate) start: Instant,
    /// No request is due at this moment or later.
    pub(crate) end: Instant,
    /// Of the steps that are flows, by number: it has begun.
    pub(crate) begun: Box<[AtomicBool]>,
    /// Requests that may still be sent, if their number is fixed.
    pub(crate) tickets: Option<AtomicU64>,
    /// Arrivals whose requests, or flows, are not over.
    pub(crate) under_way: AtomicU64,
    /// Of those, the ones that were to pause for longer than the phase goes on, and sent nothing.
    pub(crate) outlived: AtomicU64,
    /// The drain is over: what is not, is dropped.
    pub(crate) given_up: Stop,
    /// Nobody waits for the phase any more: its threads must end.
    pub(crate) abandoned: AtomicBool,
    pub(crate) stage: Stage,
}

/// Waits until a request is due.
#[derive(Debug)]
pub(crate) enum Timer {
    Precise(AlarmClock),
    /// The runtime's, which keeps whole milliseconds.
    Runtime,
    /// Waits for nothing: who only wants to see the requests needs no pauses.
    Hurried,
}

impl Timer {
    async fn wait_until(&self, due: Instant) {
        match self {
            Self::Precise(clock) => clock.at(due).await,
            Self::Runtime => sleep_until(due).await,
            Self::Hurried => {}
        }
    }
}

/// What a task needs to send: its own handle on the service, and a probe that it uses again and again.
pub(crate) struct Sender<S> {
    service: S,
    probe: Probe,
}

impl<S: InProcess> Load<S> {
    pub(crate) fn sender(&self) -> Sender<S> {
        Sender { service: self.service.clone(), probe: self.probes.probe() }
    }

    /// The random choices of user or arrival `n`. The warm-up makes others than what is measured: it must
    /// not warm just those entries of a cache that are asked for next.
    pub(crate) fn stream(&self, n: u64) -> LoadRng {
        let stage = match self.stage {
            Stage::WarmUp => "warm-up",
            Stage::Measure | Stage::Drain => "measure",
        };
        stream(self.plan.seed, &[&self.plan.name, stage].concat(), n)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        let in_vain = |watch: &Watch| watch.saw_outside() || watch.stands_still();
        self.stop.is_stopped()
            || self.given_up.is_stopped()
            || self.abandoned.load(Relaxed)
            || self.watch.as_ref().is_some_and(in_vain)
    }

    fn is_over(&self, ready: Instant) -> bool {
        ready >= self.end || self.is_stopped()
    }

    /// Notes that a step that is a flow has begun.
    fn begin(&self, step: u32) {
        let begun = &self.begun[step as usize];
        // Once; after that, nobody writes what all read.
        if !begun.load(Relaxed) {
            begun.store(true, Relaxed);
        }
    }

    /// Have as many requests as were wanted their answers?
    pub(crate) fn all_answered(&self) -> bool {
        let wanted = self.tickets.as_ref().and(self.plan.requests);
        wanted.is_some_and(|wanted| self.sink.total_finished() >= wanted)
    }

    /// Is there nothing left to be sent?
    fn is_done(&self) -> bool {
        self.tickets.as_ref().is_some_and(|left| left.load(Relaxed) == 0)
    }

    /// May one more request be sent?
    pub(crate) fn take_ticket(&self) -> bool {
        let one_less = |left: u64| left.checked_sub(1);
        self.tickets
            .as_ref()
            .is_none_or(|left| left.fetch_update(SeqCst, Relaxed, one_less).is_ok())
    }

    /// One user: asks, waits for the answer, thinks, and asks again, whenever it is there.
    pub(crate) async fn user(self: Arc<Self>, user: u64) {
        let Workload::Closed { users, pause, pacing } = &self.workload else { return };
        let mut random = self.stream(user);
        let mut sender = self.sender();
        let population = users.peak().max(1.0);
        // Since when it has no answer to wait for.
        let mut free = self.start;
        for (from, to) in users.above(user as f64) {
            let leaves = (self.start + to).min(self.end);
            // A user is ready when it comes, and when it has thought. Those who are there from the beginning begin
            // in the middle of a thought, each at another point of it: in step they would come in waves.
            let mut ready = (self.start + from).max(free);
            if from.is_zero() {
                ready +=
                    pause.mean().max(pacing.unwrap_or_default()).mul_f64(user as f64 / population);
            }
            self.wait_until(ready).await;
            while ready < leaves && !self.is_over(ready) && !self.is_done() {
                let (step, drawn) = self.plan.scenario.draw(&mut random);
                let received = match drawn {
                    Action::Request(build) => {
                        if !self.take_ticket() {
                            return;
                        }
                        let mut request = Some(build(&mut random));
                        self.sink.sent();
                        self.send(&mut sender, step, &mut request, ready, None).await
                    }
                    Action::Flow(flow) => {
                        self.begin(step);
                        let random = stream(rand::RngExt::random(&mut random), "flow", 0);
                        match Box::pin(self.clone().iterate(&**flow, random, ready, None)).await {
                            Some(received) => received,
                            // It has sent nothing, because nothing may be sent any more, or for no reason: then
                            // it must not spin.
                            None => {
                                let later = Instant::now() + Duration::from_millis(1);
                                self.wait_until(later).await;
                                later
                            }
                        }
                    }
                };
                free = received;
                // Until here it was when the iteration was due.
                let soonest = ready + pacing.unwrap_or_default();
                ready = (received + pause.draw(&mut random)).max(soonest);
                if ready == received {
                    // A service that never waits would otherwise keep this worker for itself.
                    consume_budget().await;
                } else {
                    self.wait_until(ready.min(leaves)).await;
                }
            }
        }
    }

    /// Waits until `due`, or until the load is over.
    async fn wait_until(&self, due: Instant) {
        let due = due.min(self.end);
        if due <= Instant::now() {
            return;
        }
        tokio::select! {
            () = self.timer.wait_until(due) => {}
            () = self.stop.stopped() => {}
        }
    }

    /// Goes through a flow once. Returns when its last answer was in, or the pause after it over; `None` if it has
    /// neither sent anything nor paused. An iteration that `arrived` has waited for the runtime.
    pub(crate) async fn iterate(
        self: Arc<Self>,
        flow: &Flow,
        random: LoadRng,
        ready: Instant,
        arrived: Option<&Handed>,
    ) -> Option<Instant> {
        let state = State::new(self.values.clone());
        let last = Last { load: &*self, state: state.clone() };
        let ended = Arc::new(EndOfFlow::default());
        let client = self.flow_client(arrived, &ended);
        let session = Session::new(Box::new(client), ready, random, state.clone());
        if let Err(error) = self.go_through(flow, session, &ended).await
            && let Some(reason) = error.uncounted()
        {
            self.checks.count("the flow goes on", Some(&reason));
            if let Some(sample) = &mut *state.pending() {
                sample.answer.fail_check();
            }
        }
        drop(last);
        let ns = ended.ns.load(Relaxed);
        (ns > 0).then(|| self.start + Duration::from_nanos(ns - 1))
    }

    fn flow_client(
        self: &Arc<Self>,
        arrived: Option<&Handed>,
        ended: &Arc<EndOfFlow>,
    ) -> FlowClient<S> {
        let arrived = arrived.copied();
        let (sender, ended) = (self.sender(), ended.clone());
        let has_outlived = AtomicBool::new(false);
        FlowClient { sender, load: self.clone(), arrived, has_outlived, ended }
    }

    /// Runs a flow until it ends, or until it has been told that the load is over and goes on all the same, or
    /// until nobody waits for it any more. Then it is dropped.
    async fn go_through(
        &self,
        flow: &Flow,
        session: Session,
        ended: &EndOfFlow,
    ) -> Result<(), FlowError> {
        tokio::select! {
            biased;
            result = flow(session) => result,
            () = ended.told_twice.notified() => Ok(()),
            () = self.given_up.stopped() => Ok(()),
        }
    }

    /// Runs a flow that counts in no figure; what it set.
    pub(crate) async fn run_aside(
        self: Arc<Self>,
        flow: &Flow,
    ) -> Result<BTreeMap<String, String>, FlowError> {
        let (state, ended) = (State::new(self.values.clone()), Arc::default());
        let client = self.flow_client(None, &ended);
        let random = stream(self.plan.seed, "aside", 0);
        let session = Session::new(Box::new(client), Instant::now(), random, state.clone());
        self.go_through(flow, session, &ended).await?;
        if let Some(check) = self.checks.all().into_iter().find(|check| check.failed > 0) {
            let why = check.first_failure.unwrap_or_else(|| "it does not hold".to_owned());
            return Err(FlowError::new(format!("{}: {why}", check.name)));
        }
        let values = std::mem::take(&mut *state.values());
        Ok(values)
    }

    /// Sends a request that was due at `intended` and has waited for the service's runtime since it was `handed` to
    /// it, and keeps its record. Returns when the answer was in.
    pub(crate) async fn send(
        &self,
        sender: &mut Sender<S>,
        step: u32,
        request: &mut Option<Request<Bytes>>,
        intended: Instant,
        handed: Option<&Handed>,
    ) -> Instant {
        let (sample, received) =
            self.carry_out(sender, step, request, intended, handed, None).await;
        self.keep(sample);
        received
    }

    async fn carry_out(
        &self,
        sender: &mut Sender<S>,
        step: u32,
        request: &mut Option<Request<Bytes>>,
        intended: Instant,
        handed: Option<&Handed>,
        reply: Option<&mut Reply>,
    ) -> (Sample, Instant) {
        if let Some(request) = request {
            equip(request, &self.plan, &sender.probe);
        }
        let timeout = self.plan.timeout;
        let in_service = self.sink.in_service();
        // What waits for a worker of the service's runtime is with the service already.
        let due = intended.saturating_duration_since(self.start);
        let waited = handed.map_or(Duration::ZERO, |handed| handed.held_up(due));
        let dispatched = Instant::now() - waited;
        let (service, failures) = (&mut sender.service, &self.failures);
        let is_flow = reply.is_some();
        let mut told = None;
        let wanted = Wanted { reply, told: self.told.is_some().then_some(&mut told) };
        let mut answer = match &self.host {
            None => match &self.watch {
                None => exchange(service, request, dispatched, timeout, failures, wanted).await,
                // A task of its own weight, which no run in real time has to carry.
                Some(watch) => {
                    let exchange =
                        exchange(service, request, dispatched, timeout, failures, wanted);
                    Box::pin(watch.over(exchange)).await
                }
            },
            Some(host) => {
                let request = request.take().unwrap_or_default();
                Box::pin(self.hand_over(host, service, request, dispatched, wanted)).await
            }
        };
        let received = Instant::now();
        drop(in_service);
        if self.probes.answered_by().is_some() {
            let settled = settle(&mut sender.probe).await;
            self.unsettled.fetch_add(u64::from(!settled), Relaxed);
        }
        // A service that blocked its thread answered in one poll, and no timer could interrupt it; its
        // client has given up all the same.
        let service_time = received.saturating_duration_since(dispatched);
        if let Some(watch) = &self.watch {
            if answer.io_refused {
                watch.see_outside();
            }
            match &self.workload {
                Workload::Closed { users, .. } => watch.answered(received, users.peak() as usize),
                // Only a flow can go on and on.
                Workload::Open(_) if is_flow => watch.answered(received, self.plan.max_in_flight),
                Workload::Open(_) => {}
            }
        }
        if service_time > timeout {
            answer.outcome = ClientOutcome::Timeout;
        }
        let sample = Sample {
            step,
            intended: due,
            lag: dispatched.saturating_duration_since(intended),
            service_time,
            waited,
            // On a runtime of its own, or over a connection, the generator waits for itself.
            handed: handed.copied().filter(|_| self.plan.on_its_runtime()),
            answer,
            server: sender.probe.record().map(ServerView::from).or_else(|| {
                let (record, status) = told?;
                self.told.as_ref()?.view(&record, status)
            }),
        };
        sender.probe.renew();
        (sample, received)
    }

    /// Has the service's runtime carry a request out.
    async fn hand_over(
        &self,
        host: &Handle,
        service: &S,
        request: Request<Bytes>,
        dispatched: Instant,
        wanted: Wanted<'_>,
    ) -> Answer {
        let (mut service, timeout) = (service.clone(), self.plan.timeout);
        let failures = self.failures.clone();
        let mut request = Some(request);
        let (with_reply, with_times) = (wanted.reply.is_some(), wanted.told.is_some());
        let task = host.spawn(async move {
            let mut reply = with_reply.then(|| Reply::none(dispatched));
            let mut told = None;
            let wanted = Wanted { reply: reply.as_mut(), told: with_times.then_some(&mut told) };
            let answer =
                exchange(&mut service, &mut request, dispatched, timeout, &failures, wanted).await;
            (answer, reply, told)
        });
        match task.await {
            Ok((answer, reply, told)) => {
                if let (Some(place), Some(reply)) = (wanted.reply, reply) {
                    *place = reply;
                }
                if let Some(place) = wanted.told {
                    *place = told;
                }
                answer
            }
            // The service's runtime is gone.
            Err(_) => Answer::without_response(ClientOutcome::TransportError),
        }
    }

    fn keep(&self, sample: Sample) {
        if let Some(batch) = self.sink.push(sample) {
            self.tally.lock().absorb(&batch, self.server_names().as_ref());
        }
        self.sink.finished();
    }
}

impl<S> Load<S> {
    /// Does the service run in this process? Behind a connection that leads out of the test it does if a layer of
    /// this process answers.
    pub(crate) fn is_in_process(&self) -> bool {
        !self.plan.leads_out || self.probes.answered_by().is_some()
    }

    /// Who knows what the other side calls its routes, once it is known who answers.
    pub(crate) fn server_names(&self) -> Option<ServerNames> {
        let layer = self.probes.answered_by().map(|perf| ServerNames::Layer(perf.clone()));
        layer.or_else(|| self.told.clone().map(ServerNames::Told))
    }
}

/// Waits until the server's side of a request is over: behind a connection it learns a little later than the
/// client, or notices later, that the request has ended. It is given up like any that never ends: false if it was.
pub(crate) async fn settle(probe: &mut Probe) -> bool {
    if probe.record().is_some() {
        return true;
    }
    let mut turns = 0_u32;
    let deadline = Instant::now() + DRAIN_GRACE;
    while probe.record().is_none() && probe.is_shared() {
        if Instant::now() >= deadline {
            return false;
        }
        turns += 1;
        // Most often it is a matter of who of two tasks runs first.
        if turns < 16 { yield_now().await } else { sleep(Duration::from_millis(1)).await }
    }
    true
}

pub(crate) fn equip(request: &mut Request<Bytes>, plan: &Plan, probe: &Probe) {
    let mark = LoadMark::new().paired(probe.clone());
    let mark = if plan.pass_limiter { mark.past_limiter() } else { mark };
    request.extensions_mut().insert(mark);
    if let Some(token) = &plan.token {
        // Over HTTP/2 the header that only HTTP/1.1 wants is taken out again.
        server_timing::ask(request.headers_mut(), token, Version::HTTP_11);
    }
}

/// An arrival of an open workload, until all that comes of it is over.
pub(crate) struct UnderWay<S> {
    load: Arc<Load<S>>,
}

impl<S: InProcess> UnderWay<S> {
    pub(crate) fn begin(load: Arc<Load<S>>) -> Self {
        load.under_way.fetch_add(1, Relaxed);
        Self { load }
    }

    /// One arrival of an open workload, whose first request counts as sent already. It was handed to the runtime at
    /// `handed`.
    pub(crate) async fn arrival(self, n: u64, intended: Duration, handed: Instant) {
        let load = &self.load;
        let handed = if load.plan.on_its_runtime() {
            let waited = handed.elapsed();
            load.sink.end_wait();
            Handed { at: handed.saturating_duration_since(load.start), waited }
        } else {
            Handed::default()
        };
        if load.abandoned.load(Relaxed) || load.given_up.is_stopped() {
            // The phase ended before the runtime got round to this arrival: it stays in flight.
            return;
        }
        let ready = load.start + intended;
        let mut random = load.stream(n);
        let (step, drawn) = load.plan.scenario.draw(&mut random);
        match drawn {
            Action::Request(build) => {
                let mut request = Some(build(&mut random));
                load.send(&mut load.sender(), step, &mut request, ready, Some(&handed)).await;
            }
            Action::Flow(flow) => {
                load.begin(step);
                load.clone().iterate(&**flow, random, ready, Some(&handed)).await;
            }
        }
    }
}

impl<S> Drop for UnderWay<S> {
    fn drop(&mut self) {
        // Whoever sees that it is over sees what was counted of it.
        self.load.under_way.fetch_sub(1, Release);
    }
}

/// When the last answer of a flow was in, or the pause after it over: nanoseconds since the phase's start, and one;
/// 0 if there was none.
#[derive(Debug, Default)]
struct EndOfFlow {
    ns: AtomicU64,
    /// How often it was told that nothing is sent any more.
    told: AtomicU64,
    told_twice: Notify,
}

impl EndOfFlow {
    fn at(&self, since_start: Duration) {
        self.ns.store(since_start.as_nanos() as u64 + 1, Relaxed);
    }

    /// Tells a flow that the load is over. The first time, for it to end as it likes; one that asks again is held
    /// until it is dropped, or it would ask for ever.
    async fn tell(&self) {
        if self.told.fetch_add(1, Relaxed) == 0 {
            yield_now().await;
        } else {
            self.told_twice.notify_one();
            pending::<()>().await;
        }
    }
}

/// Keeps the last request of a flow, whatever ends that: also if it is dropped while it waits for something of its
/// own.
struct Last<'a, S: InProcess> {
    load: &'a Load<S>,
    state: Arc<State>,
}

impl<S: InProcess> Drop for Last<'_, S> {
    fn drop(&mut self) {
        let last = self.state.pending().take();
        if let Some(sample) = last {
            self.load.keep(sample);
        }
    }
}

/// What a session sends through.
struct FlowClient<S> {
    load: Arc<Load<S>>,
    sender: Sender<S>,
    /// The first request has been counted as sent, by whoever let the iteration begin; and has waited so long for the
    /// runtime.
    arrived: Option<Handed>,
    /// Before its first request it was to pause for longer than the run goes on.
    has_outlived: AtomicBool,
    ended: Arc<EndOfFlow>,
}

impl<S: InProcess> Client for FlowClient<S> {
    fn send<'a>(
        &'a mut self,
        name: &'a str,
        request: Request<Bytes>,
        ready: Instant,
    ) -> BoxFuture<'a, Option<(Sample, Reply)>> {
        Box::pin(async move {
            let load = &self.load;
            if self.has_outlived.load(Relaxed) {
                self.ended.tell().await;
                return None;
            }
            // What the pacer has counted is sent, also a moment after the end.
            let arrived = self.arrived.take();
            if arrived.is_none() {
                if load.is_over(ready) || !load.take_ticket() {
                    self.ended.tell().await;
                    return None;
                }
                load.sink.sent();
            }
            let step = load.plan.names.number(name);
            let (mut request, mut reply) = (Some(request), Reply::none(ready));
            let (sample, received) = load
                .carry_out(
                    &mut self.sender,
                    step,
                    &mut request,
                    ready,
                    arrived.as_ref(),
                    Some(&mut reply),
                )
                .await;
            reply.received = received;
            let since = received.saturating_duration_since(load.start);
            self.ended.at(since);
            Some((sample, reply))
        })
    }

    fn wait_until(&self, due: Instant) -> BoxFuture<'_, ()> {
        // A pause after the last answer is a part of the flow: what comes next is due after it.
        self.ended.at(due.saturating_duration_since(self.load.start));
        Box::pin(async move {
            if self.load.is_over(Instant::now()) {
                self.ended.tell().await;
            }
            let outlives =
                |due| due >= self.load.end || self.load.is_stopped() && due > Instant::now();
            self.load.wait_until(due).await;
            if self.arrived.is_some() && outlives(due) {
                self.has_outlived.store(true, Relaxed);
            }
        })
    }

    fn keep(&self, sample: Sample) {
        self.load.keep(sample);
    }

    fn check(&self, name: &str, failure: Option<&dyn fmt::Display>) {
        self.load.checks.count(name, failure);
    }
}

impl<S> Drop for FlowClient<S> {
    fn drop(&mut self) {
        let Some(handed) = self.arrived else { return };
        if self.load.plan.on_its_runtime() {
            // What was counted as in flight while it waited was that.
            self.load.tally.lock().occupancy.add_wait(handed.at, handed.at + handed.waited);
        }
        self.load.outlived.fetch_add(u64::from(*self.has_outlived.get_mut()), Relaxed);
        self.load.sink.unsent();
    }
}

impl<S> fmt::Debug for FlowClient<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowClient").finish_non_exhaustive()
    }
}

impl<S> fmt::Debug for Load<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load").field("plan", &self.plan.name).finish_non_exhaustive()
    }
}
