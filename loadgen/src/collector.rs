//! From samples to distributions: the bounded memory of a run.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use parallax_middleware::{LatencyHistogram, Outcome, PhaseTime};
use tokio::time::Instant;

use crate::{
    attribution::{BLOCKS, Parts},
    conservation::Finished,
    littles_law::Occupancy,
    outcome::ClientOutcome,
    plan::{Plan, Workload},
    report::ClientOutcomes,
    scenario::StepNames,
    server_names::ServerNames,
    sink::{HANDLER, Sample},
    slots::{AddUp, MAX_SLOTS, Slots},
    stall::{MAX_ROUTES, TimesBySlot},
    statistics::{Window, window_width},
    threshold::{Metric, Threshold},
};

/// Where the length of a run is not known, slots begin with this width and double it when they become too many.
const SHORTEST_SLOT: Duration = Duration::from_millis(100);

/// Everything that is kept of a run's samples. Its size depends on the number of routes, slots and
/// thresholds, never on the number of requests.
#[derive(Debug)]
pub(crate) struct Tally {
    names: StepNames,
    /// By step, and by the layer's route where the layer saw the request.
    rows: BTreeMap<(u32, Option<u32>), Row>,
    pub(crate) lag: LatencyHistogram,
    pub(crate) failed: LatencyHistogram,
    pub(crate) limited: LatencyHistogram,
    /// Of an open workload.
    own_lag: Option<OwnLag>,
    /// 429 and 503, by service time without the wait for a worker: what a limiter or a load shedder answers.
    pub(crate) rejected: LatencyHistogram,
    /// Successes likewise.
    pub(crate) accepted: LatencyHistogram,
    pub(crate) first_byte: LatencyHistogram,
    /// Requests that the layer has a record of.
    pub(crate) seen_by_server: u64,
    /// Pairs whose server time exceeds their service time although the client had the whole answer.
    pub(crate) negative_pairs: u64,
    pub(crate) timeline: Timeline,
    /// Of the blocks that attribution looks at.
    block_width: Duration,
    watches: Vec<Watch>,
    /// Names of the phases that requests were in, by their numbers.
    phases: BTreeMap<u8, String>,
    /// What the layer did not see, by step and by the watch on a route that it may belong to.
    unseen: BTreeMap<(u32, usize), Timeline>,
    /// No slot yet, of this phase's width.
    empty: Timeline,
    /// Since the last look of the live display.
    recent: LatencyHistogram,
    /// When the last request ended.
    last_end: Duration,
    finished: ClientOutcomes,
    /// Of the phase, once it is decided.
    pub(crate) start: Option<Instant>,
    /// What was in flight.
    pub(crate) occupancy: Occupancy,
}

/// One step on one route.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) outcomes: ClientOutcomes,
    /// The same requests, by what the layer told of them.
    pub(crate) finished: Finished,
    /// Successes that were complete before the phase was over: over its length, the rate.
    pub(crate) in_time: u64,
    pub(crate) bytes: u64,
    pub(crate) response_time: LatencyHistogram,
    pub(crate) service_time: LatencyHistogram,
    pub(crate) server_time: LatencyHistogram,
    pub(crate) outside: LatencyHistogram,
    /// Of the successes that the layer saw.
    pub(crate) parts: Parts,
    /// Response times of successes and of what was given up; of the first rows only.
    pub(crate) times: Option<TimesBySlot>,
    /// Which watches look at this row, by position; decided when the row is made.
    watched: Vec<usize>,
}

/// A metric that a threshold judges, slot by slot.
#[derive(Debug)]
struct Watch {
    metric: Metric,
    /// The number of the phase that it is about, once a request was in it.
    phase: Option<u8>,
    route: Option<String>,
    timeline: Timeline,
}

/// The lag of requests as far as it is the generator's own.
#[derive(Debug)]
struct OwnLag {
    /// The generator waits for nobody else's workers.
    alone: bool,
    timeline: Timeline,
    /// Some requests may have waited for workers of the service's runtime.
    left_out: bool,
}

/// The measured interval in slots, by intended start.
#[derive(Clone, Debug)]
pub(crate) struct Timeline {
    /// When the phase ends: as planned, or when it was stopped.
    end: Duration,
    slots: Slots<Slot, MAX_SLOTS>,
}

/// One slot of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slot {
    pub(crate) window: Window,
    pub(crate) dropped: u64,
    /// Successes by the slot in which they ended.
    pub(crate) completed: u64,
    /// How the requests ended; of the timeline, the watches need none.
    pub(crate) outcomes: ClientOutcomes,
}

impl Tally {
    /// An empty tally of a phase that is to last for `duration`.
    pub(crate) fn new(plan: &Plan, duration: Duration) -> Self {
        // How long so many requests will take, nobody knows.
        let (slot, block_width) = if plan.requests.is_some() {
            (SHORTEST_SLOT, SHORTEST_SLOT)
        } else {
            (slot_width(duration), duration / BLOCKS as u32)
        };
        let timeline = Timeline::new(duration, slot);
        let mut watches: Vec<Watch> = Vec::new();
        for threshold in &plan.thresholds {
            let metric = watched_metric(threshold);
            if !watches.iter().any(|w| w.metric == *metric && w.route == threshold.route) {
                let (metric, route) = (metric.clone(), threshold.route.clone());
                watches.push(Watch { metric, phase: None, route, timeline: timeline.clone() });
            }
        }
        Self {
            names: plan.names.clone(),
            rows: BTreeMap::new(),
            lag: LatencyHistogram::new(),
            failed: LatencyHistogram::new(),
            limited: LatencyHistogram::new(),
            own_lag: matches!(plan.workload, Workload::Open(_)).then(|| OwnLag {
                alone: !plan.on_its_runtime(),
                timeline: timeline.clone(),
                left_out: false,
            }),
            rejected: LatencyHistogram::new(),
            accepted: LatencyHistogram::new(),
            first_byte: LatencyHistogram::new(),
            seen_by_server: 0,
            negative_pairs: 0,
            block_width,
            empty: timeline.clone(),
            phases: BTreeMap::new(),
            unseen: BTreeMap::new(),
            timeline,
            watches,
            recent: LatencyHistogram::new(),
            last_end: Duration::ZERO,
            finished: ClientOutcomes::default(),
            start: None,
            occupancy: Occupancy::new(duration),
        }
    }

    /// Adds finished requests. `server` knows the names of what the other side saw, if it saw anything.
    pub(crate) fn absorb(&mut self, samples: &[Sample], server: Option<&ServerNames>) {
        if let Some(start) = self.start {
            self.occupancy.present = start.elapsed();
        }
        for sample in samples {
            self.add(sample, server);
        }
    }

    fn add(&mut self, sample: &Sample, server: Option<&ServerNames>) {
        self.learn_phases(sample, server);
        let route = sample.server.as_ref().map(|server| server.route);
        let room = self.rows.len() < MAX_ROUTES;
        let row = self.rows.entry((sample.step, route)).or_insert_with(|| {
            // Of what the layer did not see, the route is known at the end only.
            let name = route.map(|_| route_name(&self.names, sample.step, route, server));
            let looks = |watch: &Watch| watch.route.is_none() || watch.route == name;
            let matches = self.watches.iter().enumerate().filter(|(_, watch)| looks(watch));
            Row {
                watched: matches.map(|(index, _)| index).collect(),
                times: room.then(TimesBySlot::default),
                ..Row::default()
            }
        });
        let response_time = sample.lag + sample.service_time;
        let outcome = sample.answer.outcome;
        let ok = outcome == ClientOutcome::Ok;
        row.outcomes.add(outcome);
        let timed_out = outcome == ClientOutcome::Timeout;
        row.finished.add(sample.server.as_ref().map(|server| server.outcome), timed_out);
        row.bytes += sample.answer.bytes;
        self.finished.add(outcome);
        self.last_end = self.last_end.max(sample.intended + response_time);
        self.lag.record(sample.lag);
        if let (Some(times), true) = (&mut row.times, ok || timed_out) {
            times.add(sample.intended, response_time, self.timeline.width());
        }
        self.timeline.add(sample.intended, ok.then_some(response_time));
        self.timeline.end_as(sample.intended, outcome);
        let dispatched = sample.intended + sample.lag;
        // Between its wait for the runtime and its dispatch it is the scenario's, which makes it.
        if let Some(handed) = sample.handed {
            self.occupancy.add_wait(handed.at, handed.at + handed.waited);
        }
        if let Some(own) = &mut self.own_lag {
            // One that was due later has waited for a worker twice, the second time as lag.
            if own.alone || sample.handed.is_some_and(|handed| sample.intended <= handed.at) {
                own.timeline.add(sample.intended, Some(sample.lag));
            } else {
                own.left_out = true;
            }
        }
        self.occupancy.add(dispatched + sample.waited, dispatched + sample.service_time);
        // However long all of them waited for a worker, a rejection is faster than a success.
        let served = sample.service_time - sample.waited;
        if ok {
            let in_time = self.timeline.complete(sample.intended + response_time);
            row.in_time += u64::from(in_time);
        }
        if outcome == ClientOutcome::Limited || sample.answer.shed {
            self.rejected.record(served);
        }
        let outside = sample.server.as_ref().map(|server| {
            self.seen_by_server += 1;
            let outside = sample.service_time.saturating_sub(server.server_time);
            // The layer's interval lies within the client's, if the client had the whole answer. In one process both are
            // read from one clock; what is told over a connection is from the server's clock, and as true as the server
            // is.
            let negative = outcome.is_answer() && served < server.server_time;
            self.negative_pairs += u64::from(negative);
            outside
        });
        if ok {
            self.recent.record(response_time);
            row.response_time.record(response_time);
            row.service_time.record(sample.service_time);
            self.accepted.record(served);
            if let (Some(server), Some(outside)) = (&sample.server, outside)
                && server.outcome == Outcome::Ok
            {
                row.server_time.record(server.server_time);
                row.outside.record(outside);
                row.parts.add(sample, self.block_width);
                if let Some(first_byte) = server.first_byte {
                    self.first_byte.record(first_byte);
                }
            }
        } else if outcome == ClientOutcome::Limited {
            self.limited.record(response_time);
        } else {
            self.failed.record(response_time);
        }
        let ended = ok.then_some(sample.intended + response_time);
        let known = sample.server.as_ref();
        // What failed counts as over every limit, in every figure that it has.
        let if_ok = |time: Duration| ok.then_some(time);
        let value = |watch: &Watch| match &watch.metric {
            // A lag is a lag however the request ended.
            Metric::Lag => Some(Some(sample.lag)),
            Metric::Phase(name) if name == HANDLER => known.map(|server| if_ok(server.handler)),
            // What was not in the phase says nothing of it.
            Metric::Phase(_) => known?.time_in(watch.phase?).map(if_ok),
            _ if !ok => Some(None),
            Metric::ServiceTime => Some(Some(sample.service_time)),
            // Of a success that the layer did not see there is nothing to say.
            Metric::ServerTime => known.map(|server| Some(server.server_time)),
            Metric::TimeToFirstByte => known.and_then(|server| server.first_byte).map(Some),
            Metric::Outside => outside.map(Some),
            _ => Some(Some(response_time)),
        };
        for index in &row.watched {
            let watch = &mut self.watches[*index];
            let value = value(watch);
            watch.timeline.watch(sample.intended, value, ended);
        }
        if route.is_none() {
            let on_routes = self.watches.iter().enumerate().filter(|(_, w)| w.route.is_some());
            for (index, watch) in on_routes {
                self.unseen
                    .entry((sample.step, index))
                    .or_insert_with(|| self.empty.clone())
                    .watch(sample.intended, value(watch), ended);
            }
        }
    }

    fn learn_phases(&mut self, sample: &Sample, server: Option<&ServerNames>) {
        let (Some(view), Some(names)) = (&sample.server, server) else { return };
        for PhaseTime { phase, .. } in &view.phases {
            if !self.phases.contains_key(phase) {
                let metric = Metric::Phase(names.phase(*phase));
                let watches = self.watches.iter_mut().filter(|watch| watch.metric == metric);
                watches.for_each(|watch| watch.phase = Some(*phase));
                self.phases.insert(*phase, names.phase(*phase));
            }
        }
    }

    /// Names of the phases that requests were in.
    pub(crate) fn phases(&self) -> impl Iterator<Item = &str> {
        self.phases.values().map(String::as_str)
    }

    /// The route of a row. What the layer did not see goes to the route that the rest of its step took,
    /// if that is one.
    fn route_of(&self, step: u32, route: Option<u32>) -> Option<u32> {
        let mut of_step = self.rows.keys().filter(|(s, r)| *s == step && r.is_some());
        match (route, of_step.next(), of_step.next()) {
            (None, Some((_, only)), None) => *only,
            _ => route,
        }
    }

    /// Counts an arrival that was due and not sent.
    pub(crate) fn drop_arrival(&mut self, intended: Duration) {
        self.timeline.drop_arrival(intended);
    }

    /// The phase ends here, earlier than planned if it was stopped.
    pub(crate) fn end_at(&mut self, end: Duration) {
        self.occupancy.end_at(end);
        let timelines = self.watches.iter_mut().map(|watch| &mut watch.timeline);
        let timelines = timelines.chain([&mut self.timeline, &mut self.empty]);
        timelines.chain(self.unseen.values_mut()).for_each(|slots| slots.end = slots.end.min(end));
    }

    /// The measured interval ended at `end`: whatever did not happen by then did not happen.
    pub(crate) fn close(&mut self, end: Duration, server: Option<&ServerNames>) {
        for ((step, index), unseen) in std::mem::take(&mut self.unseen) {
            let name = route_name(&self.names, step, self.route_of(step, None), server);
            let watch = &mut self.watches[index];
            if watch.route.as_deref() == Some(&name) {
                watch.timeline.slots.merge(unseen.slots);
            }
        }
        let timelines = self.watches.iter_mut().map(|watch| &mut watch.timeline);
        let own_lag = self.own_lag.iter_mut().map(|own| &mut own.timeline);
        timelines.chain(own_lag).chain([&mut self.timeline]).for_each(|slots| slots.close(end));
    }

    /// The lag of an open workload until `end`, slot by slot, as far as it is the generator's own: what a flow sends
    /// after a pause or an answer waits for a worker of the service's runtime as lag. And whether any is left out for
    /// that.
    pub(crate) fn own_lag(&self, end: Duration) -> Option<(Vec<Window>, bool)> {
        let own = self.own_lag.as_ref()?;
        let windows = own.timeline.until(end).map(|(_, slot)| slot.window.clone()).collect();
        Some((windows, own.left_out))
    }

    pub(crate) fn last_end(&self) -> Duration {
        self.last_end
    }

    /// Has a request of this step ended?
    pub(crate) fn has_seen(&self, step: u32) -> bool {
        self.rows.range((step, None)..=(step, Some(u32::MAX))).next().is_some()
    }

    /// How the finished requests ended.
    pub(crate) fn outcomes(&self) -> ClientOutcomes {
        self.finished
    }

    /// Response times of successes since the last call.
    pub(crate) fn take_recent(&mut self) -> LatencyHistogram {
        std::mem::take(&mut self.recent)
    }

    /// The slots that a threshold judges.
    pub(crate) fn watched(&self, threshold: &Threshold) -> &Timeline {
        let metric = watched_metric(threshold);
        self.watches
            .iter()
            .find(|watch| watch.metric == *metric && watch.route == threshold.route)
            .map_or(&self.timeline, |watch| &watch.timeline)
    }

    /// One row a route, by name; under the step's own name where the layer does not tell.
    pub(crate) fn routes(&self, server: Option<&ServerNames>) -> BTreeMap<String, Row> {
        let mut routes: BTreeMap<String, Row> = BTreeMap::new();
        for ((step, route), row) in &self.rows {
            let name = route_name(&self.names, *step, self.route_of(*step, *route), server);
            routes.entry(name).or_default().merge(row);
        }
        routes
    }
}

impl Row {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.outcomes.merge(&other.outcomes);
        self.finished.merge(&other.finished);
        self.in_time += other.in_time;
        self.bytes += other.bytes;
        self.response_time.merge(&other.response_time);
        self.service_time.merge(&other.service_time);
        self.server_time.merge(&other.server_time);
        self.outside.merge(&other.outside);
        self.parts.merge(&other.parts);
        if let Some(theirs) = &other.times {
            self.times.get_or_insert_default().merge(theirs);
        }
    }
}

/// Of a run that lasts for `duration`. Rounded up, so that its last moment is in the last slot.
fn slot_width(duration: Duration) -> Duration {
    let rounding = Duration::from_nanos(MAX_SLOTS as u64 - 1);
    window_width(duration).max((duration + rounding) / MAX_SLOTS as u32)
}

/// The metric whose slots a threshold needs: rates and error ratios are counted with any.
fn watched_metric(threshold: &Threshold) -> &Metric {
    match &threshold.metric {
        metric @ (Metric::ServiceTime
        | Metric::ServerTime
        | Metric::Outside
        | Metric::TimeToFirstByte
        | Metric::Lag
        | Metric::Phase(_)) => metric,
        _ => &Metric::ResponseTime,
    }
}

fn route_name(
    names: &StepNames,
    step: u32,
    route: Option<u32>,
    server: Option<&ServerNames>,
) -> String {
    route
        .and_then(|route| server?.route(route))
        .or_else(|| names.name(step).map(|name| name.to_string()))
        .unwrap_or_default()
}

impl Timeline {
    fn new(duration: Duration, width: Duration) -> Self {
        let mut slots = Slots::default();
        slots.begin(width);
        Self { end: duration, slots }
    }

    /// Counts a request, with its value if it succeeded.
    fn add(&mut self, intended: Duration, value: Option<Duration>) {
        let window = &mut self.slots.at(intended).window;
        match value {
            Some(value) => window.ok.record(value),
            None => window.failed += 1,
        }
    }

    /// Counts a request for a metric: `Some(None)` if it failed, `None` if the metric has nothing to say of
    /// it; and when it ended, if it succeeded.
    fn watch(
        &mut self,
        intended: Duration,
        value: Option<Option<Duration>>,
        ended: Option<Duration>,
    ) {
        if let Some(value) = value {
            self.add(intended, value);
        }
        if let Some(ended) = ended {
            self.complete(ended);
        }
    }

    fn drop_arrival(&mut self, intended: Duration) {
        self.slots.at(intended).dropped += 1;
    }

    /// Counts how a request ended.
    fn end_as(&mut self, intended: Duration, outcome: ClientOutcome) {
        self.slots.at(intended).outcomes.add(outcome);
    }

    /// Counts a success that was complete at `at`. False, and not counted, if that is in the drain: what
    /// ends there is no part of the rate.
    fn complete(&mut self, at: Duration) -> bool {
        if at >= self.end {
            return false;
        }
        self.slots.at(at).completed += 1;
        true
    }

    /// Makes the slots up to `end`, so that a silence counts as nothing done, not as no time passed.
    fn close(&mut self, end: Duration) {
        self.slots.at(end.saturating_sub(Duration::from_nanos(1)));
    }

    pub(crate) fn width(&self) -> Duration {
        self.slots.width()
    }

    /// The slots that begin before `end`, in order, each with its begin: what ends later than the run has no slot in
    /// it.
    pub(crate) fn until(&self, end: Duration) -> impl Iterator<Item = (Duration, &Slot)> {
        let starts = (0_u32..).map(|index| self.width() * index);
        starts.zip(self.slots.iter()).take_while(move |(at, _)| *at < end)
    }
}

impl AddUp for Slot {
    fn add_up(&mut self, other: Self) {
        self.window.ok.merge(&other.window.ok);
        self.window.failed += other.window.failed;
        self.dropped += other.dropped;
        self.completed += other.completed;
        self.outcomes.merge(&other.outcomes);
    }
}

/// A tally that the tasks, the pacer and the collector share.
#[derive(Clone, Debug)]
pub(crate) struct SharedTally {
    tally: Arc<Mutex<Tally>>,
}

impl SharedTally {
    pub(crate) fn new(tally: Tally) -> Self {
        Self { tally: Arc::new(Mutex::new(tally)) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Tally> {
        // Adding to counters cannot panic half-way through a sample that matters more than the rest.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn slots(duration: Duration) -> Timeline {
        Timeline::new(duration, slot_width(duration))
    }

    #[test]
    fn a_run_of_any_length_has_a_bounded_number_of_slots() {
        for seconds in [1, 5, 39, 255, 257, 3_601, 86_400] {
            let planned = Duration::from_secs(seconds);
            let mut slots = slots(planned);
            slots.add(planned - Duration::from_nanos(1), Some(MS));
            slots.close(planned);
            let count = slots.until(planned).count();
            assert!((10..=MAX_SLOTS).contains(&count), "{count} slots in {seconds} s");
            let last = slots.until(planned).last().expect("some");
            assert_eq!(last.1.window.ok.count(), 1);
        }
    }

    #[test]
    fn a_length_that_slots_do_not_divide_is_not_cut_into_half_as_many() {
        let planned = Duration::from_millis(300_001);
        let mut slots = slots(planned);
        slots.close(planned);
        assert_eq!(slots.until(planned).count(), MAX_SLOTS);
    }

    #[test]
    fn requests_count_where_they_were_due_and_completions_where_they_happened() {
        let mut slots = slots(Duration::from_secs(4));
        slots.add(50 * MS, Some(MS));
        slots.end_as(50 * MS, ClientOutcome::Ok);
        slots.complete(250 * MS);
        // Complete after the end: an answer, but no part of the rate.
        slots.add(3_950 * MS, None);
        slots.end_as(3_950 * MS, ClientOutcome::Limited);
        slots.complete(4_100 * MS);
        slots.drop_arrival(150 * MS);
        slots.close(Duration::from_secs(4));
        let all: Vec<_> = slots.until(Duration::from_secs(4)).map(|(_, slot)| slot).collect();
        assert_eq!(all.len(), 40);
        assert_eq!((all[0].window.ok.count(), all[0].completed), (1, 0));
        assert_eq!((all[1].dropped, all[2].completed), (1, 1));
        assert_eq!(all[39].window.failed, 1);
        assert_eq!((all[0].outcomes.ok, all[39].outcomes.limited), (1, 1));
        assert_eq!(all.iter().map(|slot| slot.outcomes.total()).sum::<u64>(), 2);
        assert_eq!(all.iter().map(|slot| slot.completed).sum::<u64>(), 1);
    }

    #[test]
    fn a_silence_at_the_end_is_slots_with_nothing_in_them() {
        let mut slots = slots(Duration::from_secs(4));
        slots.complete(50 * MS);
        slots.close(Duration::from_secs(2));
        assert_eq!(slots.until(Duration::from_secs(2)).count(), 20);
    }

    #[test]
    fn slots_of_a_run_without_a_length_become_longer_and_lose_nothing() {
        let mut slots = Timeline::new(Duration::from_secs(3_600), SHORTEST_SLOT);
        for n in 0..1_000 {
            slots.add(100 * MS * n, (n % 2 == 0).then_some(MS));
            let ok = n % 2 == 0;
            let outcome = if ok { ClientOutcome::Ok } else { ClientOutcome::Timeout };
            slots.end_as(100 * MS * n, outcome);
            slots.complete(100 * MS * n);
            slots.drop_arrival(100 * MS * n);
        }
        assert_eq!(slots.width(), 400 * MS);
        let all: Vec<_> = slots.until(Duration::from_secs(100)).collect();
        assert_eq!(all.len(), 250);
        for (_, slot) in all {
            assert_eq!((slot.window.ok.count(), slot.window.failed), (2, 2));
            assert_eq!((slot.completed, slot.dropped), (4, 4));
            assert_eq!((slot.outcomes.ok, slot.outcomes.timeout), (2, 2));
        }
    }
}
