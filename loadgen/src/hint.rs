//! What made the figures what they are, in sentences with the figures behind them.
//!
//! A hint claims no more than the intervals of a report show: that a part dominates is the attribution's finding, and
//! that something is flat, rises or falls is one over the whole interval of the change.

use parallax_middleware::{PerfView, PoolView, RouteView};

use crate::{
    render::number,
    report::{Attribution, Hint, Model, PoolRow, ResourceRow, Run, TimelineRow},
    statistics::student_t_quantile,
};

/// More would be read by nobody.
const MOST: usize = 5;
/// Which group of a route is spoken of: the first one in which something dominates.
const QUANTILES: [f64; 3] = [0.99, 0.9, 0.5];
/// A pool with more of its connections in use than this is exhausted.
const EXHAUSTED: f64 = 0.95;
/// A part of more than this dominates.
const DOMINANT: f64 = 0.5;
/// Processors that do more than this are busy; those that do less than that have room.
const BUSY: f64 = 0.9;
const ROOM: f64 = 0.7;
/// Of the requests, so many ask a pool if all of them do.
const ALL_ASK: f64 = 0.95;
/// What changes by less is flat.
const FLAT: f64 = 1.1;
/// A task is late past so many microseconds, and a thread is held up if it is in this share of the readings, and in
/// so many at least.
const LATE_US: f64 = 10_000.0;
const LATE_SHARE: f64 = 0.1;
const LATE_READINGS: usize = 3;
/// Rejections up to this share say nothing of a limiter.
const LIMITED: f64 = 0.01;
/// Requests in flight differ enough to compare the rates if they do by this factor.
const MORE_IN_FLIGHT: f64 = 1.5;
/// Batches that each half of a comparison is put together to, so that neighbours do not count as independent, and
/// values that each of them has at least.
const BATCHES: usize = 5;
const PER_BATCH: usize = 2;
/// Fewer connections than this exhaust nothing.
const FEW_CONNECTIONS: u64 = 100;
/// Ports that Linux gives to those who connect, 32,768 to 60,999 unless it is told otherwise, and how long a closed
/// connection keeps one (`tcp(7)`, `ip(7)`).
const EPHEMERAL_PORTS: f64 = 28_232.0;
const TIME_WAIT_S: f64 = 60.0;
/// Each end of an interval is wrong with this probability at most.
const TAIL: f64 = 0.05;

/// Says what explains the figures of a run, the weightiest first, five at the most. `cpus` are the processors of the
/// machine, as [`Environment`](crate::report::Environment) has them.
///
/// It needs nothing but the report, so a saved one gives the same hints. Where nothing can be shown, nothing is said;
/// where nothing dominates, the shares are.
///
/// ```no_run
/// # use std::path::Path;
/// use parallax_loadgen::{Report, hints};
///
/// let report = Report::read(Path::new("report.json")).expect("it is one");
/// for run in &report.runs {
///     for hint in hints(run, report.environment.cpus) {
///         println!("{}", hint.message);
///     }
/// }
/// ```
#[must_use]
pub fn hints(run: &Run, cpus: usize) -> Vec<Hint> {
    let dominant = Dominant::all(run);
    let machine = Machine::of(run, cpus);
    let (mut hints, mut rest) = (Vec::new(), Vec::new());
    for part in &dominant {
        match [lag, pool, lock].iter().find_map(|cause| cause(run, part, &machine)) {
            Some(cause) => hints.push(cause),
            None => rest.push(named(run, part, &machine)),
        }
    }
    let of_all = [
        blocking(&machine),
        cpu(run, &machine, cpus),
        stall(run),
        admission(run),
        connections(run),
    ];
    hints.extend(of_all.into_iter().flatten().chain(rest));
    if dominant.is_empty() {
        hints.extend(shares(run));
    }
    hints.truncate(MOST);
    hints
}

/// A part that is shown to be over a half of the time of a route's slow requests.
#[derive(Debug)]
struct Dominant<'r> {
    /// None if it is all of them.
    route: Option<&'r str>,
    group: &'r Attribution,
    part: &'r str,
    /// Its part in the response times of the whole run, to compare with others.
    weight: f64,
    /// Other routes that it dominates as well.
    others: usize,
}

impl<'r> Dominant<'r> {
    /// One for each part, about the route that it weighs most in, the heaviest first. Where routes by themselves have
    /// too few requests, it is about all of them.
    fn all(run: &'r Run) -> Vec<Self> {
        let by_route = run.client.routes.iter().filter_map(|route| {
            let times = &route.response_time.summary;
            Self::of(&route.attribution, Some(&route.route), times.count as f64)
        });
        let mut all: Vec<Self> = by_route.collect();
        if all.is_empty() {
            all.extend(Self::of(&run.attribution, None, 1.0));
        }
        all.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        let mut parts: Vec<Self> = Vec::new();
        for dominant in all {
            match parts.iter_mut().find(|known| known.part == dominant.part) {
                Some(heavier) => heavier.others += 1,
                None => parts.push(dominant),
            }
        }
        parts
    }

    fn of(groups: &'r [Attribution], route: Option<&'r str>, requests: f64) -> Option<Self> {
        let group =
            QUANTILES.iter().filter_map(|q| at(groups, *q)).find(|g| g.dominant.is_some())?;
        let part = group.dominant.as_deref()?;
        let weight = requests * group.response_us * group.shares.get(part).copied().unwrap_or(0.0);
        Some(Self { route, group, part, weight, others: 0 })
    }

    /// `p99 of GET /items/{id}: 71 %`
    fn share(&self) -> String {
        let share = self.group.shares.get(self.part).copied().unwrap_or(0.0);
        format!("{}: {}", subject(self.group.quantile, self.route), percent(share))
    }

    fn hint(&self, rule: &str, message: &str) -> Hint {
        let others = match self.others {
            0 => String::new(),
            1 => " (and so for another route)".to_owned(),
            n => format!(" (and so for {n} other routes)"),
        };
        Hint {
            rule: rule.to_owned(),
            route: self.route.map(str::to_owned),
            message: format!("{}{others}", [&self.share(), message].join(" ")),
        }
    }
}

fn at(groups: &[Attribution], quantile: f64) -> Option<&Attribution> {
    groups.iter().find(|group| (group.quantile - quantile).abs() < 1e-9)
}

fn subject(quantile: f64, route: Option<&str>) -> String {
    let of = route.map_or_else(String::new, |route| format!(" of {route}"));
    format!("{}{of}", number::percentile(quantile))
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// The process, as far as the run's own service is in it.
#[derive(Debug)]
struct Machine {
    /// Processor time over that of all processors.
    cpu: Option<f64>,
    /// Share of their time in which the runtime's workers had something to do.
    busy: Option<f64>,
    /// Processors that the workers can use at once.
    processors: f64,
    /// Processor time over that of the processors that the workers can use.
    used: Option<f64>,
    /// How late a task was woken, in microseconds.
    lateness: Vec<f64>,
}

impl Machine {
    fn of(run: &Run, cpus: usize) -> Self {
        // Of a server elsewhere, or of simulated time, the process knows nothing.
        let here = run.server.is_some() && !run.plan.virtual_time;
        let rows: Vec<_> = if here { measured_rows(run).collect() } else { Vec::new() };
        let cpu = || {
            let (first, last) = (rows.first()?, rows.last()?);
            let time = (last.at_s - first.at_s) * cpus as f64;
            (time > 0.0).then_some((last.cpu_s? - first.cpu_s?) / time)
        };
        let ratios: Vec<f64> = rows.iter().filter_map(|row| row.busy_ratio).collect();
        let runtime = run.server.as_ref().and_then(|server| server.runtime.as_ref());
        let processors =
            runtime.map_or(cpus, |runtime| runtime.workers.clamp(1, cpus.max(1))) as f64;
        Self {
            cpu: cpu(),
            processors,
            used: cpu().map(|cpu| cpu * cpus as f64 / processors),
            busy: mean(&ratios),
            lateness: rows.iter().filter_map(|row| row.canary_us).collect(),
        }
    }

    fn has_room(&self) -> Option<f64> {
        self.cpu.filter(|cpu| *cpu < ROOM)
    }
}

/// The readings within the measured interval.
fn measured_rows(run: &Run) -> impl Iterator<Item = &ResourceRow> {
    run.resources.iter().filter(|row| row.at_s <= run.measured_s)
}

/// The whole slots of the measured interval.
fn whole_slots(run: &Run) -> impl Iterator<Item = &TimelineRow> {
    let width = run.timeline.first().map_or(0.0, |slot| slot.width_s);
    run.timeline.iter().filter(move |slot| slot.width_s >= width * (1.0 - 1e-9))
}

/// The readings in a slot.
fn readings<'r>(
    run: &'r Run,
    slot: &TimelineRow,
) -> impl DoubleEndedIterator<Item = &'r ResourceRow> {
    let (begin, end) = (slot.at_s, slot.at_s + slot.width_s);
    run.resources.iter().filter(move |row| row.at_s >= begin && row.at_s < end)
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// By what factor something changed, and the ends of its interval.
#[derive(Debug)]
struct Change {
    factor: f64,
    low: f64,
    high: f64,
}

impl Change {
    /// From some values to others, by the means of batches of neighbours. `None` if there are too few, or if one of
    /// the means is not above zero.
    fn between(before: &[f64], after: &[f64]) -> Option<Self> {
        let logs = |values: &[f64]| -> Option<Vec<f64>> {
            let size = values.len() / BATCHES;
            if size < PER_BATCH {
                return None;
            }
            // What does not fill a batch joins none.
            let means = values.chunks_exact(size).take(BATCHES).filter_map(mean);
            means.map(|mean| (mean > 0.0).then(|| mean.ln())).collect()
        };
        let (before, after) = (logs(before)?, logs(after)?);
        let centre = |logs: &[f64]| logs.iter().sum::<f64>() / BATCHES as f64;
        let variance = |logs: &[f64]| {
            let squares: f64 = logs.iter().map(|log| (log - centre(logs)).powi(2)).sum();
            squares / (BATCHES - 1) as f64 / BATCHES as f64
        };
        let change = centre(&after) - centre(&before);
        // The freedom of one side alone: no more is certain if one of them varies more than the other.
        let t = student_t_quantile(1.0 - TAIL, (BATCHES - 1) as f64);
        let reach = t * (variance(&before) + variance(&after)).sqrt();
        Some(Self {
            factor: change.exp(),
            low: (change - reach).exp(),
            high: (change + reach).exp(),
        })
    }

    /// From the first half of values in the order of time to the second.
    fn over(values: &[f64]) -> Option<Self> {
        let (before, after) = values.split_at(values.len() / 2);
        Self::between(before, after)
    }

    fn is_flat(&self) -> bool {
        self.does_not_rise() && self.low > 1.0 / FLAT
    }

    fn does_not_rise(&self) -> bool {
        self.high < FLAT
    }

    fn rises(&self) -> bool {
        self.low > FLAT
    }

    fn falls(&self) -> bool {
        self.high < 1.0
    }
}

/// The generator was late: then the figures are its own.
fn lag(run: &Run, dominant: &Dominant<'_>, _: &Machine) -> Option<Hint> {
    (dominant.part == "lag").then(|| {
        dominant.hint(
            "lag",
            if run.plan.topology == "shared" && run.plan.transport == "direct" {
                "gone before the request was sent: the generator was late, or its tasks waited for workers, \
                 busy or asleep"
            } else {
                "gone before the request was sent: the generator was late, and the figure is its own"
            },
        )
    })
}

/// A wait for a pool dominates, and all of its connections are in use.
fn pool(run: &Run, dominant: &Dominant<'_>, _: &Machine) -> Option<Hint> {
    let name = dominant.part.strip_prefix("pool_wait:")?;
    let server = run.server.as_ref()?;
    let (view, use_of) = Use::of_fullest(run, server, name)?;
    if use_of.ratio <= EXHAUSTED {
        return None;
    }
    // Where other requests do without the pool, how many there are says nothing of how long connections are held.
    let phase = format!("pool_wait:{name}");
    let waits = |route: &RouteView| route.phases.get(&phase).map_or(0, |waits| waits.count);
    let asking: u64 = server.routes.iter().map(waits).sum();
    let all: u64 = server.routes.iter().map(|route| route.requests).sum();
    let of_all = asking as f64 >= ALL_ASK * all as f64;
    let holds: Vec<f64> = whole_slots(run)
        .filter(|slot| of_all && slot.completed > 0)
        .map(|slot| {
            // As many are held as there are on average, so each as long as that takes to serve them: Little's law. With
            // all of them in use, the reading is only more exact.
            let read = readings(run, slot).next_back().and_then(|row| pool_row(row, view));
            let in_use = read.map_or(view.max, |row| row.in_use);
            in_use as f64 * slot.width_s / slot.completed as f64
        })
        .collect();
    let so = match Change::over(&holds) {
        Some(change) if change.rises() => format!(
            "holds rise, by {} from the first half to the second, so what is done with a \
             connection is the limit",
            percent(change.factor - 1.0)
        ),
        Some(change) if change.is_flat() => "holds are flat, so size is the limit".to_owned(),
        _ => "it is too small, or connections are held for too long".to_owned(),
    };
    let held = view
        .hold
        .p50_us
        .map_or_else(String::new, |p50| format!("; the median hold is {}", number::duration(p50)));
    let timeouts = match view.timeouts {
        0 => String::new(),
        n => format!("; {} waits ran out of time", number::count(n)),
    };
    let message = format!("waiting for {name} ({use_of}); {so}{held}{timeouts}");
    Some(dominant.hint("pool", &message))
}

fn pool_row<'r>(row: &'r ResourceRow, view: &PoolView) -> Option<&'r PoolRow> {
    // Older reports do not know the kind.
    let is_it = |pool: &&PoolRow| {
        pool.name == view.name && (pool.kind == view.kind || pool.kind.is_empty()) && pool.max > 0
    };
    row.pools.iter().find(is_it)
}

/// How much of a pool was in use.
struct Use {
    ratio: f64,
    max: u64,
    /// Connections in use and requests that wait, at most moments; where that was read.
    read: Option<(u64, u64)>,
}

impl Use {
    /// Of the pools of this name, which may be of several kinds, the one that was in use the most.
    fn of_fullest<'s>(run: &Run, server: &'s PerfView, name: &str) -> Option<(&'s PoolView, Self)> {
        let named = server.pools.iter().filter(|pool| pool.name == name);
        named
            .filter_map(|view| Some((view, Self::of(run, server, view)?)))
            .max_by(|a, b| a.1.ratio.total_cmp(&b.1.ratio))
    }

    fn of(run: &Run, server: &PerfView, view: &PoolView) -> Option<Self> {
        // Before the first request nothing is in use.
        let rows = measured_rows(run).filter(|row| row.at_s > 0.0);
        let rows: Vec<&PoolRow> = rows.filter_map(|row| pool_row(row, view)).collect();
        let of =
            |value: fn(&PoolRow) -> u64| median(rows.iter().map(|row| value(row) as f64).collect());
        let ratio = median(rows.iter().map(|row| row.in_use as f64 / row.max as f64).collect());
        if let (Some(ratio), Some(in_use), Some(waiting)) =
            (ratio, of(|row| row.in_use), of(|row| row.waiting))
        {
            let read = Some((in_use as u64, waiting as u64));
            return Some(Self { ratio, max: rows[0].max, read });
        }
        // Without readings, from how long connections were held together.
        let held_s = view.hold.count as f64 * view.hold.mean_us? / 1e6;
        let offered_s = view.max as f64 * server.window_s?;
        (offered_s > 0.0).then(|| Self {
            ratio: (held_s / offered_s).min(1.0),
            max: view.max,
            read: None,
        })
    }
}

impl std::fmt::Display for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.read {
            Some((in_use, waiting)) => {
                let n = number::count;
                write!(f, "{} of {} in use, {} waiting", n(in_use), n(self.max), n(waiting))
            }
            None => {
                write!(f, "{} in use {} of the time", number::count(self.max), percent(self.ratio))
            }
        }
    }
}

/// A lock dominates, processors have room, and the more requests there are at once, the fewer are served.
fn lock(run: &Run, dominant: &Dominant<'_>, machine: &Machine) -> Option<Hint> {
    let cpu = machine.has_room().filter(|_| dominant.part.starts_with("lock"))?;
    // As a slot begins: what is in flight at its end is what it has not served.
    let reading = |slot: &TimelineRow| {
        let row = readings(run, slot).next()?;
        Some((row.in_flight, slot.completed as f64 / slot.width_s))
    };
    let mut by_load: Vec<(u64, f64)> = whole_slots(run).filter_map(reading).collect();
    by_load.sort_by_key(|(in_flight, _)| *in_flight);
    let (few, many) = by_load.split_at(by_load.len() / 2);
    let rates = |slots: &[(u64, f64)]| slots.iter().map(|(_, rate)| *rate).collect::<Vec<_>>();
    let in_flight =
        |slots: &[(u64, f64)]| mean(&slots.iter().map(|(n, _)| *n as f64).collect::<Vec<_>>());
    let (few_at_once, many_at_once) = (in_flight(few)?, in_flight(many)?);
    let (before, after) = (rates(few), rates(many));
    let falls = Change::between(&before, &after)?.falls();
    if !falls || many_at_once < MORE_IN_FLIGHT * few_at_once {
        return None;
    }
    let message = format!(
        "waiting in {} with the processors {} busy, and the rate falls from {} to {} as requests \
         in flight grow from {few_at_once:.0} to {many_at_once:.0}: a lock convoy",
        dominant.part,
        percent(cpu),
        number::per_second(mean(&before)?),
        number::per_second(mean(&after)?)
    );
    Some(dominant.hint("lock", &message))
}

/// Tasks wait for threads, and these do not compute: one worker on two processors that computes all the time takes half
/// of them, and blocks nothing.
fn blocking(machine: &Machine) -> Option<Hint> {
    let cpu = machine.used.filter(|used| *used < ROOM)?;
    let late = machine.lateness.iter().filter(|late| **late > LATE_US).count();
    let readings = machine.lateness.len();
    let worst = machine.lateness.iter().copied().fold(0.0, f64::max);
    let often = late >= LATE_READINGS && late as f64 >= LATE_SHARE * readings as f64;
    let workers = machine.busy.filter(|busy| *busy > BUSY);
    let evidence = match (often, workers) {
        (true, _) => format!(
            "a task was woken up to {} late, over {} in {late} of {readings} readings",
            number::duration(worst),
            number::seconds(LATE_US / 1e6)
        ),
        (false, Some(busy)) => {
            format!("its workers had something to do {} of the time", percent(busy))
        }
        (false, None) => return None,
    };
    let (processors, were) = if machine.processors > 1.0 {
        (format!("the {} processors", machine.processors), "were")
    } else {
        ("the one processor".to_owned(), "was")
    };
    Some(whole_run(
        "blocking",
        format!(
            "something holds the runtime's threads up: {evidence}, while {processors} that they \
             can use {were} {} busy. Code that blocks its thread belongs into spawn_blocking; or another process takes the processors",
            percent(cpu)
        ),
    ))
}

/// Processors are busy, and the rate does not grow.
fn cpu(run: &Run, machine: &Machine, cpus: usize) -> Option<Hint> {
    let cpu = machine.cpu.filter(|cpu| *cpu > BUSY)?;
    let completed: Vec<f64> = whole_slots(run).map(|slot| slot.completed as f64).collect();
    if !Change::over(&completed)?.does_not_rise() || !asks_for_more(run) {
        return None;
    }
    let own = run.generator.as_ref().and_then(|generator| generator.cpu_share);
    let own = own.map_or_else(String::new, |own| {
        format!("; at least {} of that is the generator's own work", percent(own))
    });
    Some(whole_run(
        "cpu",
        format!(
            "the {cpus} processors are {} busy and the rate does not rise above {}: they have no \
             more to give{own}",
            percent(cpu.min(1.0)),
            number::per_second(run.client.rate)
        ),
    ))
}

/// Is more asked for than is served? Users without a pause always do; a schedule that is met does not.
fn asks_for_more(run: &Run) -> bool {
    let plan = &run.plan;
    let pauses = plan.think_time_s.is_some_and(|s| s > 0.0) || plan.pacing_s.is_some();
    let in_flight: Vec<f64> = measured_rows(run).map(|row| row.in_flight as f64 + 1.0).collect();
    let piles_up = Change::over(&in_flight).is_some_and(|change| change.rises());
    (plan.model == Model::Closed && !pauses)
        || run.conservation.dropped + run.conservation.unsent > 0
        || piles_up
}

fn stall(run: &Run) -> Option<Hint> {
    let longest = run.stalls.iter().max_by(|a, b| a.width_s.total_cmp(&b.width_s))?;
    let n = number::count;
    let moments = match run.stalls.len() {
        1 => format!("all routes were slow at once from {} on", number::seconds(longest.at_s)),
        moments => format!(
            "all routes were slow at once in {} moments, the longest from {} on",
            n(moments as u64),
            number::seconds(longest.at_s)
        ),
    };
    Some(whole_run(
        "stall",
        format!(
            "{moments}, within {}: {} of {} requests to {} routes were past the p99 of their \
             route. Something that they share was slow or stood still, the process or a queue that all of them \
             wait in, and not one route",
            number::seconds(longest.width_s),
            n(longest.slow),
            n(longest.requests),
            n(longest.routes)
        ),
    ))
}

/// Requests are turned away, and there are no more of them at once than before.
fn admission(run: &Run) -> Option<Hint> {
    let outcomes = &run.client.outcomes;
    let share = outcomes.limited as f64 / outcomes.total().max(1) as f64;
    if share <= LIMITED {
        return None;
    }
    // In flight may be nobody; one more changes no verdict.
    let in_flight: Vec<f64> = measured_rows(run).map(|row| row.in_flight as f64 + 1.0).collect();
    if !Change::over(&in_flight)?.is_flat() {
        return None;
    }
    let most = measured_rows(run).map(|row| row.in_flight).max()?;
    let all_users = run.plan.users.is_some_and(|users| most >= users as u64);
    let users = if all_users { ", as many as there are users," } else { "" };
    Some(whole_run(
        "admission",
        format!(
            "{} of the requests were turned away with 429, with {} in flight at the most{users} \
             and no more towards the end: a limiter decides what is served, not what the service \
             can do",
            percent(share),
            number::count(most)
        ),
    ))
}

/// Connections that are used once: each of them takes a port, and keeps it for a while after its end.
fn connections(run: &Run) -> Option<Hint> {
    // They are counted from before the warm-up.
    let warming_up: u64 = run.warmup.iter().map(|slot| slot.ok + slot.failed).sum();
    let (opened, sent) = (run.connections?, run.conservation.sent + warming_up);
    let at_once = measured_rows(run).map(|row| row.in_flight).max().unwrap_or(0);
    let at_once = at_once.max(run.plan.users.unwrap_or(0) as u64);
    // What fails costs its connection, too.
    let mostly_well = 2 * run.client.outcomes.ok > run.conservation.sent;
    if !mostly_well || 2 * opened < sent || opened < FEW_CONNECTIONS.max(2 * at_once) {
        return None;
    }
    let has_ports = !["pipe", "unix"].iter().any(|way| run.plan.transport.starts_with(way));
    let time = run.measured_s + if run.warmup.is_empty() { 0.0 } else { run.plan.warmup_s };
    let lasts = EPHEMERAL_PORTS * time / opened as f64;
    let ports = if has_ports && lasts < TIME_WAIT_S {
        format!(
            ". Each has a port of its client until {TIME_WAIT_S} s after its end, and at this rate the {} that Linux \
             gives out last for {}",
            number::count(EPHEMERAL_PORTS as u64),
            number::seconds(lasts)
        )
    } else {
        String::new()
    };
    Some(whole_run(
        "connections",
        format!(
            "{} connections for {} requests: nobody keeps them, so each request pays for opening one{ports}",
            number::count(opened),
            number::count(sent)
        ),
    ))
}

fn whole_run(rule: &str, message: String) -> Hint {
    Hint { rule: rule.to_owned(), route: None, message }
}

/// What dominates, without a cause that the report could show.
fn named(run: &Run, dominant: &Dominant<'_>, machine: &Machine) -> Hint {
    let part = dominant.part;
    let (rule, message) = match part.split_once(':') {
        Some(("query", name)) => {
            let message = format!(
                "in queries of {name}, each with its connection in hand: the database takes the \
                 time, not the pool"
            );
            ("query", message)
        }
        Some(("pool_wait", name)) => {
            let server = run.server.as_ref();
            let message = match server.and_then(|server| Use::of_fullest(run, server, name)) {
                Some((_, in_use)) => format!(
                    "waiting for {name}, and not for want of connections ({in_use}): bursts, or \
                     opening and checking connections, take the time"
                ),
                None => format!("waiting for {name}"),
            };
            ("pool_wait", message)
        }
        Some(("cache", name)) => {
            ("cache", format!("in the cache {name}: the cache itself takes the time"))
        }
        _ => match part {
            "handler" => {
                let message =
                    "in the handler and in none of its phases: name phases to see what it does";
                ("handler", message.to_owned())
            }
            "outside" => {
                let over = match run.plan.transport.as_str() {
                    "direct" => "layers around it".to_owned(),
                    transport => format!("the way there and back by {transport}, layers around it"),
                };
                (
                    "outside",
                    format!("outside of the layer: {over}, and tasks that wait to be woken"),
                )
            }
            "runtime" => {
                let why = match machine.busy {
                    Some(busy) if busy > ROOM => {
                        format!("they had other things to do ({} busy)", percent(busy))
                    }
                    Some(busy) => {
                        format!("they slept, and one had to be woken ({} busy)", percent(busy))
                    }
                    None => "they had other things to do, or slept".to_owned(),
                };
                ("runtime", format!("waiting for a worker of the service's runtime: {why}"))
            }
            "limiter" => ("limiter", "at the limiter, before it let the request in".to_owned()),
            // One that is called like a part that is none, it is called `phase lag` there.
            part => {
                ("phase", format!("in the phase {}", part.strip_prefix("phase ").unwrap_or(part)))
            }
        },
    };
    dominant.hint(rule, &message)
}

/// Nothing dominates: what there is, the largest first, and how much of it has no name.
fn shares(run: &Run) -> Option<Hint> {
    let groups = &run.attribution;
    // Without intervals, something may well dominate.
    let conclusive = |group: &&Attribution| {
        !group.high.is_empty() && group.high.values().all(|high| *high < DOMINANT)
    };
    let group = QUANTILES.iter().filter_map(|q| at(groups, *q)).find(conclusive)?;
    let mut parts: Vec<(&String, f64)> =
        group.shares.iter().map(|(part, share)| (part, *share)).collect();
    parts.sort_by(|a, b| b.1.total_cmp(&a.1));
    let named: Vec<String> = parts
        .iter()
        .filter(|(_, share)| *share >= 0.01)
        .map(|(part, share)| format!("{part} {}", percent(*share)))
        .collect();
    let unnamed = |part: &str| group.shares.get(part).copied().unwrap_or(0.0);
    Some(whole_run(
        "shares",
        format!(
            "{}: nothing dominates ({}); {} of it, handler and outside, no phase explains",
            subject(group.quantile, None),
            named.join(", "),
            percent(unnamed("handler") + unnamed("outside"))
        ),
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use parallax_middleware::{LatencySummary, ProcessView, RuntimeView};

    use super::*;
    use crate::report::{
        ClientOutcomes, ClientRoute, ClientView, Conservation, GeneratorView, Latency, Pairs,
        PlanSummary, Stall, Validity, Verdict,
    };

    const CPUS: usize = 2;
    const SLOTS: u32 = 40;
    const WIDTH_S: f64 = 0.125;
    const ROUTE: &str = "GET /recommendations/{user_id}";

    /// A run that nothing explains: half of the processors' time, 800/s, ten in flight.
    fn quiet() -> Run {
        let slot = |n: u32| TimelineRow {
            at_s: f64::from(n) * WIDTH_S,
            width_s: WIDTH_S,
            ok: 100,
            completed: 100,
            failed: 0,
            outcomes: ClientOutcomes::default(),
            dropped: 0,
            p50_us: None,
            p99_us: None,
        };
        let row = |n: u32| ResourceRow {
            at_s: f64::from(n) * WIDTH_S + 0.01,
            rss_bytes: None,
            cpu_s: None,
            in_flight: 10,
            busy_ratio: Some(0.5),
            queue_depth: Some(0),
            canary_us: Some(1_200.0),
            pools: Vec::new(),
        };
        let hold = LatencySummary { p50_us: Some(10_000.0), ..LatencySummary::default() };
        let server = PerfView {
            schema: PerfView::SCHEMA.to_owned(),
            uptime_s: 7.0,
            window_s: Some(5.0),
            routes: Vec::new(),
            limiter: None,
            pools: vec![PoolView { name: "db".to_owned(), max: 50, hold, ..PoolView::default() }],
            caches: Vec::new(),
            elsewhere: BTreeMap::new(),
            process: ProcessView::default(),
            runtime: None,
        };
        let outcomes = ClientOutcomes { ok: 4_000, ..ClientOutcomes::default() };
        let run = Run {
            name: "open".to_owned(),
            plan: plan(),
            started_at_unix_s: 0.0,
            measured_s: 5.0,
            interrupted: false,
            validity: Validity { verdict: Verdict::Pass, reasons: Vec::new() },
            verdict: Verdict::Pass,
            conservation: Conservation::default(),
            errors: Vec::new(),
            connections: None,
            client: ClientView {
                rate: 800.0,
                response_time: Latency::default(),
                service_time: Latency::default(),
                lag: Latency::default(),
                failed: Latency::default(),
                limited: Latency::default(),
                outcomes,
                response_bytes: 0,
                routes: vec![
                    route("GET /", 10),
                    route(ROUTE, 1_000),
                    route("GET /entities/{id}", 3_000),
                ],
            },
            server: Some(server),
            pairs: Pairs::default(),
            attribution: Vec::new(),
            hints: Vec::new(),
            littles_law: None,
            settling: None,
            stalls: Vec::new(),
            checks: Vec::new(),
            generator: Some(GeneratorView { cpu_share: Some(0.12), ..GeneratorView::default() }),
            thresholds: Vec::new(),
            warmup: Vec::new(),
            timeline: (0..SLOTS).map(slot).collect(),
            resources: (0..SLOTS).map(row).collect(),
        };
        with_cpu(run, 0.5)
    }

    fn plan() -> PlanSummary {
        PlanSummary {
            model: Model::Open,
            users: None,
            rate: Some(800.0),
            arrivals: None,
            stages: Vec::new(),
            requests: None,
            think_time_s: None,
            random_think_time: false,
            pacing_s: None,
            warmup_s: 1.0,
            duration_s: 5.0,
            max_in_flight: 10_000,
            timeout_s: 10.0,
            transport: "direct".to_owned(),
            seed: 1,
            mix: Vec::new(),
            bypasses_limiter: false,
            pacer: "precise".to_owned(),
            topology: "shared".to_owned(),
            virtual_time: false,
            tags: BTreeMap::new(),
        }
    }

    fn route(name: &str, requests: u64) -> ClientRoute {
        let mut response_time = Latency::default();
        response_time.summary.count = requests;
        ClientRoute {
            route: name.to_owned(),
            rate: 0.0,
            outcomes: ClientOutcomes::default(),
            response_time,
            service_time: Latency::default(),
            server_time: Latency::default(),
            outside: Latency::default(),
            conservation: None,
            attribution: Vec::new(),
        }
    }

    fn with_cpu(mut run: Run, share: f64) -> Run {
        for row in &mut run.resources {
            row.cpu_s = Some(1.0 + share * row.at_s * CPUS as f64);
        }
        run
    }

    /// Completed requests by slot.
    fn with_rate(mut run: Run, rate: impl Fn(u32) -> u64) -> Run {
        (0..).zip(&mut run.timeline).for_each(|(n, slot)| slot.completed = rate(n));
        run
    }

    fn with_in_flight(mut run: Run, in_flight: impl Fn(u32) -> u64) -> Run {
        (0..).zip(&mut run.resources).for_each(|(n, row)| row.in_flight = in_flight(n));
        run
    }

    fn with_pool(mut run: Run, in_use: u64) -> Run {
        for row in &mut run.resources {
            let name = "db".to_owned();
            row.pools = vec![PoolRow {
                name,
                kind: String::new(),
                max: 50,
                in_use,
                idle: 50 - in_use,
                waiting: 180,
            }];
        }
        run
    }

    /// The parts around a quantile; the first one dominates if it is over a half.
    fn group(quantile: f64, shares: &[(&str, f64)]) -> Attribution {
        let shares: BTreeMap<String, f64> =
            shares.iter().map(|(part, share)| ((*part).to_owned(), *share)).collect();
        let over =
            |by: f64| shares.iter().map(|(part, share)| (part.clone(), share + by)).collect();
        let dominant = shares.iter().find(|(_, share)| **share - 0.04 > 0.5);
        Attribution {
            quantile,
            requests: 500,
            response_us: 20_000.0,
            low: over(-0.04),
            high: over(0.04),
            excess_us: BTreeMap::new(),
            dominant: dominant.map(|(part, _)| part.clone()),
            shares,
        }
    }

    /// So that p99 of one route is 71 % this.
    fn with_part(mut run: Run, part: &str) -> Run {
        let mut routes = run.client.routes.iter_mut();
        let route = routes.find(|route| route.route == ROUTE).expect("it is there");
        route.attribution =
            vec![group(0.5, &[("other", 1.0)]), group(0.99, &[(part, 0.71), ("rest", 0.29)])];
        run
    }

    /// Rules and sentences; they are the same from a saved report.
    fn found(run: &Run) -> Vec<(String, String)> {
        let found = hints(run, CPUS);
        let json = serde_json::to_string(run).expect("it can be written");
        let saved: Run = serde_json::from_str(&json).expect("it can be read");
        assert_eq!(hints(&saved, CPUS), found);
        found.into_iter().map(|hint| (hint.rule, hint.message)).collect()
    }

    fn rules(run: &Run) -> Vec<String> {
        found(run).into_iter().map(|(rule, _)| rule).collect()
    }

    #[track_caller]
    fn assert_says(run: &Run, rule: &str, message: &str) {
        assert_eq!(found(run), [(rule.to_owned(), message.to_owned())]);
    }

    #[test]
    fn a_run_that_nothing_explains_has_no_hint() {
        assert_eq!(found(&quiet()), []);
    }

    #[test]
    fn a_pool_is_too_small_if_all_of_it_is_in_use_and_holds_are_flat() {
        let run = with_pool(with_part(quiet(), "pool_wait:db"), 50);
        let [(rule, message)] = &*found(&run) else { panic!("one hint") };
        assert_eq!(rule, "pool");
        let expected = "p99 of GET /recommendations/{user_id}: 71 % waiting for db (50 of 50 in \
                        use, 180 waiting); holds are flat, so size is the limit; the median hold \
                        is 10.0 ms";
        assert_eq!(message, expected);
        assert_eq!(hints(&run, CPUS)[0].route.as_deref(), Some(ROUTE));
    }

    #[test]
    fn a_pool_is_exhausted_past_95_percent_only() {
        let waits = with_part(quiet(), "pool_wait:db");
        assert_eq!(rules(&with_pool(waits.clone(), 48)), ["pool"]);
        assert_says(
            &with_pool(waits.clone(), 47),
            "pool_wait",
            "p99 of GET /recommendations/{user_id}: 71 % waiting for db, and not for want of \
             connections (47 of 50 in use, 180 waiting): bursts, or opening and checking \
             connections, take the time",
        );
        // And only a wait that dominates is worth a word.
        assert_eq!(rules(&with_pool(quiet(), 50)), [""; 0]);
    }

    #[test]
    fn holds_that_rise_are_told_from_a_pool_that_is_too_small() {
        let run = with_pool(with_part(quiet(), "pool_wait:db"), 50);
        let slower =
            |second: u64| with_rate(run.clone(), move |n| if n < SLOTS / 2 { 100 } else { second });
        let message = |run: &Run| found(run)[0].1.clone();
        let rising = message(&slower(80));
        assert!(
            rising.contains("holds rise, by 25 % from the first half to the second"),
            "{rising}"
        );
        // By 11 %: neither flat nor much.
        let rising = message(&slower(90));
        assert!(rising.contains("holds rise, by 11 %"), "{rising}");
        let flat = message(&slower(95));
        assert!(flat.contains("size is the limit"), "{flat}");
        // Half of the slots take three times as long: that says nothing.
        let erratic = with_rate(run.clone(), |n| if n % 8 < 4 { 50 } else { 150 });
        let unsure = message(&erratic);
        assert!(unsure.contains("too small, or connections are held for too long"), "{unsure}");
        // Nor do a few slots.
        let mut short = run.clone();
        short.timeline.truncate(19);
        assert!(message(&short).contains("or connections are held for too long"));
    }

    #[test]
    fn of_two_pools_of_one_name_the_fullest_is_what_is_waited_for() {
        let mut run = with_pool(with_part(quiet(), "pool_wait:db"), 50);
        for row in &mut run.resources {
            row.pools[0].kind = "sqlx".to_owned();
            let idle = PoolRow {
                kind: "redis".to_owned(),
                in_use: 1,
                idle: 9,
                max: 10,
                ..row.pools[0].clone()
            };
            row.pools.insert(0, PoolRow { waiting: 0, ..idle });
        }
        let server = run.server.as_mut().expect("it is there");
        server.pools[0].kind = "sqlx".to_owned();
        server.pools[0].hold.p50_us = Some(10_000.0);
        let mut idle = PoolView { kind: "redis".to_owned(), max: 10, ..server.pools[0].clone() };
        idle.hold.p50_us = Some(70.0);
        server.pools.insert(0, idle);
        let message = &found(&run)[0].1;
        assert!(message.contains("waiting for db (50 of 50 in use, 180 waiting)"), "{message}");
        assert!(message.contains("the median hold is 10.0 ms"), "{message}");
    }

    #[test]
    fn without_readings_of_a_pool_its_holds_tell_how_much_was_in_use() {
        let mut run = with_part(quiet(), "pool_wait:db");
        let server = run.server.as_mut().expect("it is there");
        server.window_s = Some(5.0);
        // 50 connections for 5 s.
        (server.pools[0].hold.count, server.pools[0].hold.mean_us) = (24_000, Some(10_000.0));
        let message = &found(&run)[0].1;
        assert!(
            message.contains("waiting for db (50 in use 96 % of the time); holds are flat"),
            "{message}"
        );
        run.server.as_mut().expect("it is there").pools[0].hold.count = 23_500;
        assert_eq!(rules(&run), ["pool_wait"]);
        run.server = None;
        assert_says(&run, "pool_wait", &format!("p99 of {ROUTE}: 71 % waiting for db"));
    }

    #[test]
    fn busy_processors_are_the_limit_if_the_rate_does_not_rise() {
        let asked = |mut run: Run| {
            run.conservation.dropped = 1;
            run
        };
        assert_says(
            &asked(with_cpu(quiet(), 0.91)),
            "cpu",
            "the 2 processors are 91 % busy and the rate does not rise above 800/s: they have no \
             more to give; at least 12 % of that is the generator's own work",
        );
        assert_eq!(rules(&asked(with_cpu(quiet(), 0.89))), [""; 0]);
        // All that was asked for is served: there may be more to be had.
        assert_eq!(rules(&with_cpu(quiet(), 0.95)), [""; 0]);
        let rising = with_rate(quiet(), |n| 100 + 2 * u64::from(n));
        assert_eq!(rules(&asked(with_cpu(rising, 0.95))), [""; 0]);
        // A server elsewhere has processors of its own.
        let elsewhere = Run { server: None, ..asked(with_cpu(quiet(), 0.95)) };
        assert_eq!(rules(&elsewhere), [""; 0]);
    }

    #[test]
    fn threads_that_are_held_up_are_told_from_processors_that_are_busy() {
        let late = |readings: usize, us: f64| {
            let mut run = with_cpu(quiet(), 0.2);
            run.resources.iter_mut().take(readings).for_each(|row| row.canary_us = Some(us));
            run
        };
        assert_says(
            &late(4, 11_000.0),
            "blocking",
            "something holds the runtime's threads up: a task was woken up to 11.0 ms late, over \
             10 ms in 4 of 40 readings, while the 2 processors that they can use were 20 % busy. Code that blocks its \
             thread belongs into spawn_blocking; or another process takes the processors",
        );
        assert_eq!(rules(&late(3, 11_000.0)), [""; 0]);
        // One worker that computes takes half of two processors.
        let mut computing = with_cpu(late(40, 11_000.0), 0.5);
        let server = computing.server.as_mut().expect("it is there");
        server.runtime = Some(RuntimeView { workers: 1, ..RuntimeView::default() });
        assert_eq!(rules(&computing), [""; 0]);
        assert_eq!(rules(&late(40, 9_900.0)), [""; 0]);
        assert_eq!(rules(&with_cpu(late(40, 11_000.0), 0.71)), [""; 0]);
        let busy = |ratio: f64| {
            let mut run = with_cpu(quiet(), 0.69);
            run.resources.iter_mut().for_each(|row| row.busy_ratio = Some(ratio));
            run
        };
        assert_eq!(rules(&busy(0.91)), ["blocking"]);
        assert_eq!(rules(&busy(0.89)), [""; 0]);
    }

    #[test]
    fn a_lock_is_a_convoy_if_more_at_once_get_less_done() {
        let convoy = |few: u64, many: u64| {
            let run = with_part(with_cpu(quiet(), 0.35), "lock:cart");
            let run = with_in_flight(run, |n| if n % 4 < 2 { 20 } else { 80 });
            with_rate(run, move |n| if n % 4 < 2 { few } else { many } + u64::from(n % 3))
        };
        let [(rule, message)] = &*found(&convoy(112, 77)) else { panic!("one hint") };
        assert_eq!(rule, "lock");
        assert!(
            message.contains(
                "71 % waiting in lock:cart with the processors 35 % busy, and the rate falls from \
                 904/s to 624/s as requests in flight grow from 20 to 80: a lock convoy"
            ),
            "{message}"
        );
        assert_eq!(rules(&convoy(112, 112)), ["phase"]);
        assert_eq!(rules(&with_cpu(convoy(112, 77), 0.75)), ["phase"]);
        let alike = with_in_flight(convoy(112, 77), |n| if n % 4 < 2 { 20 } else { 29 });
        assert_eq!(rules(&alike), ["phase"]);
    }

    #[test]
    fn rejections_with_no_more_in_flight_are_a_limiters() {
        let limited = |limited: u64| {
            let mut run = quiet();
            run.client.outcomes =
                ClientOutcomes { ok: 1_000 - limited, limited, ..ClientOutcomes::default() };
            run
        };
        assert_says(
            &limited(120),
            "admission",
            "12 % of the requests were turned away with 429, with 10 in flight at the most and no \
             more towards the end: a limiter decides what is served, not what the service can do",
        );
        assert_eq!(rules(&limited(11)), ["admission"]);
        assert_eq!(rules(&limited(10)), [""; 0]);
        let growing = with_in_flight(limited(120), |n| 10 + u64::from(n));
        assert_eq!(rules(&growing), [""; 0]);
    }

    #[test]
    fn stalls_are_told_together_with_the_longest() {
        let stall =
            |at_s: f64, width_s: f64| Stall { at_s, width_s, routes: 4, slow: 61, requests: 1_250 };
        let mut run = quiet();
        run.stalls = vec![stall(2.5, 0.125)];
        assert_says(
            &run,
            "stall",
            "all routes were slow at once from 2.50 s on, within 125 ms: 61 of 1,250 requests to \
             4 routes were past the p99 of their route. Something that they share was slow or stood still, the process \
             or a queue that all of them wait in, and not one route",
        );
        run.stalls.push(stall(4.0, 0.25));
        let message = &found(&run)[0].1;
        assert!(
            message
                .starts_with("all routes were slow at once in 2 moments, the longest from 4 s on"),
            "{message}"
        );
    }

    #[test]
    fn whatever_dominates_has_a_sentence() {
        for (part, rule, words) in [
            ("lag", "lag", "the generator was late, or its tasks waited for workers"),
            (
                "query:db",
                "query",
                "71 % in queries of db, each with its connection in hand: the database",
            ),
            ("cache:items", "cache", "71 % in the cache items"),
            ("handler", "handler", "71 % in the handler and in none of its phases"),
            (
                "outside",
                "outside",
                "71 % outside of the layer: layers around it, and tasks that wait",
            ),
            ("limiter", "limiter", "71 % at the limiter"),
            ("render", "phase", "71 % in the phase render"),
            ("phase lag", "phase", "71 % in the phase lag"),
        ] {
            let run = with_part(quiet(), part);
            let [(found, message)] = &*found(&run) else { panic!("one hint of {part}") };
            assert_eq!(found, rule, "{message}");
            assert!(
                message.starts_with("p99 of GET /recommendations/{user_id}: 71 %"),
                "{message}"
            );
            assert!(message.contains(words), "{message}");
        }
        let mut run = with_part(quiet(), "outside");
        run.plan.transport = "tcp:h2".to_owned();
        assert!(found(&run)[0].1.contains("the way there and back by tcp:h2"));
    }

    #[test]
    fn a_wait_for_the_runtime_says_whether_its_workers_were_busy_or_asleep() {
        let mut run = with_part(quiet(), "runtime");
        assert!(found(&run)[0].1.contains("they slept, and one had to be woken (50 % busy)"));
        run.resources.iter_mut().for_each(|row| row.busy_ratio = Some(0.8));
        assert!(found(&run)[0].1.contains("they had other things to do (80 % busy)"));
        run.resources.iter_mut().for_each(|row| row.busy_ratio = None);
        assert!(found(&run)[0].1.contains("they had other things to do, or slept"));
    }

    #[test]
    fn connections_that_are_used_once_are_told_with_what_they_use_up() {
        let with = |opened: u64, transport: &str| {
            let mut run = quiet();
            run.connections = Some(opened);
            run.plan.transport = transport.to_owned();
            run.conservation.sent = 4_000;
            run
        };
        // 4,000 in 5 s: 28,232 in 35 s.
        assert_says(
            &with(4_000, "tcp"),
            "connections",
            "4,000 connections for 4,000 requests: nobody keeps them, so each request pays for opening one. Each has a \
             port of its client until 60 s after its end, and at this rate the 28,232 that Linux gives out last for \
             35.3 s",
        );
        let hint = found(&with(2_000, "unix")).remove(0);
        assert!(hint.1.ends_with("pays for opening one"), "{}", hint.1);
        // So slow that ports come back in time.
        let mut slow = with(2_000, "tcp");
        slow.measured_s = 5.0;
        assert!(found(&slow)[0].1.ends_with("pays for opening one"));
        assert_eq!(rules(&with(1_999, "tcp")), [""; 0]);
        // As many as there are users: each of them has opened its own.
        let mut users = with(4_000, "tcp");
        users.plan.users = Some(2_001);
        assert_eq!(rules(&users), [""; 0]);
        // Most of them are from the warm-up.
        let mut warmed = with(4_000, "tcp");
        warmed.warmup = vec![TimelineRow { ok: 4_001, ..warmed.timeline[0].clone() }];
        assert_eq!(rules(&warmed), [""; 0]);
        let mut failing = with(4_000, "tcp");
        failing.client.outcomes.ok = 2_000;
        assert_eq!(rules(&failing), [""; 0]);
    }

    #[test]
    fn a_part_is_told_once_of_the_route_that_it_weighs_most_in() {
        let mut run = quiet();
        for route in &mut run.client.routes {
            route.attribution = vec![group(0.9, &[("query:db", 0.6), ("handler", 0.4)])];
        }
        let [hint] = &*hints(&run, CPUS) else { panic!("one hint") };
        assert_eq!(hint.route.as_deref(), Some("GET /entities/{id}"));
        assert!(
            hint.message.starts_with("p90 of GET /entities/{id}: 60 % in queries of db"),
            "{}",
            hint.message
        );
        assert!(hint.message.ends_with("(and so for 2 other routes)"), "{}", hint.message);
    }

    #[test]
    fn where_nothing_dominates_the_shares_are_told() {
        let mut run = quiet();
        run.attribution = vec![group(
            0.99,
            &[
                ("handler", 0.4),
                ("query:db", 0.35),
                ("outside", 0.152),
                ("lag", 0.09),
                ("limiter", 0.008),
            ],
        )];
        assert_says(
            &run,
            "shares",
            "p99: nothing dominates (handler 40 %, query:db 35 %, outside 15 %, lag 9 %); 55 % of \
             it, handler and outside, no phase explains",
        );
        // One of them may.
        run.attribution[0].high.insert("handler".to_owned(), 0.51);
        assert_eq!(rules(&run), [""; 0]);
        // Too few requests to say that nothing does.
        run.attribution[0].high.clear();
        assert_eq!(rules(&run), [""; 0]);
    }

    #[test]
    fn causes_come_first_and_there_are_five_at_the_most() {
        let mut run = with_pool(with_part(with_cpu(quiet(), 0.95), "pool_wait:db"), 50);
        run.conservation.dropped = 1;
        run.stalls = vec![Stall { at_s: 0.0, width_s: 0.1, routes: 2, slow: 9, requests: 90 }];
        run.client.outcomes.limited = 4_000;
        let others = run.client.routes.iter_mut().filter(|route| route.route != ROUTE);
        for (route, part) in others.zip(["query:db", "handler"]) {
            route.attribution = vec![group(0.99, &[(part, 0.9)])];
        }
        let rules = rules(&run);
        assert_eq!(rules[..4], ["pool", "cpu", "stall", "admission"]);
        assert_eq!(rules.len(), MOST);
    }
}
