//! From what a run left behind to what it means: validity first, then the thresholds.

use std::{collections::BTreeMap, time::Duration};

use parallax_middleware::{LatencyHistogram, Snapshot, samples_needed};

use crate::{
    attribution::Part,
    collector::{Row, Slot, Timeline},
    conservation::{Balance, Recorded},
    load::DRAIN_GRACE,
    plan::{Plan, Workload},
    render::{self, number},
    report::{
        Attribution, ClientOutcomes, ClientRoute, ClientView, Conservation, Environment,
        GeneratorView, Latency, LittlesLaw, MemoryModel, Pairs, Reason, Report, ResourceRow, Run,
        SCHEMA, ServerConservation, ThresholdResult, TimelineRow, Validity, Verdict,
    },
    runner::{Findings, unix_seconds},
    saturation::{self, Machine, Missed},
    schedule::Schedule,
    server_names::ServerNames,
    settling::Series,
    sink::HANDLER,
    stall::stalls,
    statistics::{self, Estimate, Window},
    threshold::{Metric, Op, Stat, Threshold},
    wake_ups::WakeUps,
};

/// Quantiles of a curve: up the percentiles, then four steps in each further nine.
const CURVE: [f64; 32] = [
    0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.965, 0.975,
    0.985, 0.99, 0.9925, 0.995, 0.9965, 0.9975, 0.9985, 0.999, 0.99925, 0.9995, 0.99965, 0.99975,
    0.99985, 0.9999, 0.99999,
];

/// Lag at p99 that any run may have, and the share of the reported p99 that it may have beyond that.
const LAG_FLOOR: Duration = Duration::from_millis(1);
const LAG_SHARE: f64 = 0.05;
/// Of the requests, so many may have more.
const LATE_SHARE: f64 = 0.01;
/// Of the arrivals, at least so many must have been sent.
const SENT_SHARE: f64 = 0.99;
/// Rejections past this share masquerade if they are faster than this share of the success median, or
/// more than the successes: then it hardly matters how fast they are, the load went elsewhere.
const REJECTED_SHARE: f64 = 0.01;
const MASQUERADE_SHARE: f64 = 0.5;
/// How long a process has to be watched before its machine is blamed for what it misses.
const ENOUGH_TO_BLAME: Duration = Duration::from_millis(1_500);
/// Pairs with a server time above their service time, at most.
const NEGATIVE_SHARE: f64 = 0.001;

/// Makes the report of one run.
pub(crate) fn judge(plan: &Plan, findings: Findings) -> Run {
    let names = findings.server_names.as_ref();
    let rows = findings.tally.routes(names);
    let total = rows.values().fold(Row::default(), |mut total, row| {
        total.merge(row);
        total
    });
    let balance = balance(&findings, &rows);
    let conservation = conserve(&findings, balance.as_ref());
    let mut validity = validate(plan, &findings, &conservation, balance.as_ref());
    let judged = |wake_ups: &WakeUps| -> Vec<ThresholdResult> {
        let judge = |threshold| {
            judge_threshold(&plan.name, threshold, &findings, wake_ups, &conservation, &rows)
        };
        plan.thresholds.iter().map(judge).collect()
    };
    // A machine without room is one also if its wake-ups may be why a limit is missed.
    let seen = judged(&WakeUps::default());
    let thresholds = judged(&findings.wake_ups);
    let measured = findings.measured;
    let littles_law = findings.tally.occupancy.law(measured, findings.in_flight);
    let series = series(plan, &findings);
    let missed = Missed::of(&plan.thresholds, &seen);
    let machine = Machine {
        late: findings.canary.as_ref(),
        cpu_share: cpu_share(within(&findings.resources, measured))
            .filter(|_| measured >= ENOUGH_TO_BLAME && !plan.virtual_time),
        with_service: findings.in_process,
    };
    let late = p99(&total.response_time).and_then(|p99| {
        let (lag, is_part) = findings.tally.own_lag(measured)?;
        late(&lag, is_part, p99)
    });
    validity.add(Verdict::Invalid, broken_law(littles_law.as_ref()));
    validity.add(Verdict::Invalid, saturation::saturated(machine, &missed));
    let fall = series.as_ref().and_then(Series::fall);
    validity.add(Verdict::Invalid, saturation::not_settled(fall, &missed));
    let invalid = thresholds.iter().filter(|result| result.verdict == Verdict::Invalid);
    let no_samples = |result: &ThresholdResult| Reason {
        rule: "no_samples".to_owned(),
        message: format!("{}: {}", result.expression, result.note),
    };
    validity.add(Verdict::Invalid, invalid.map(no_samples));
    if let Some((verdict, reason)) = late {
        validity.add(verdict, [reason]);
    }
    let verdict = thresholds.iter().map(|t| t.verdict).fold(validity.verdict, Verdict::max);
    let client = client_view(&findings, &rows, &total, balance.as_ref(), plan.seed);
    Run {
        name: plan.name.clone(),
        plan: plan.summary(),
        started_at_unix_s: unix_seconds(findings.started_at),
        measured_s: measured.as_secs_f64(),
        interrupted: findings.interrupted,
        validity,
        verdict,
        errors: findings.errors.clone(),
        connections: None,
        client,
        server: findings.server.as_ref().map(Snapshot::view),
        pairs: Pairs {
            paired: findings.tally.seen_by_server,
            server_time: latency(&total.server_time),
            time_to_first_byte: latency(&findings.tally.first_byte),
            outside: latency(&total.outside),
            negative: findings.tally.negative_pairs,
        },
        attribution: attribute(&total, names, plan.seed),
        conservation,
        hints: Vec::new(),
        littles_law,
        settling: series.as_ref().and_then(Series::settling),
        stalls: stalls(rows.values().filter_map(|row| row.times.as_ref()), measured),
        checks: findings.checks.clone(),
        generator: Some(generator_view(&findings)),
        thresholds,
        warmup: findings
            .warmup
            .as_ref()
            .map(|(slots, lasted)| timeline(slots, *lasted))
            .unwrap_or_default(),
        timeline: timeline(&findings.tally.timeline, measured),
        resources: findings.resources,
    }
}

fn timeline(slots: &Timeline, lasted: Duration) -> Vec<TimelineRow> {
    slots.until(lasted).map(|(at, slot)| timeline_row(at, slot, slots.width(), lasted)).collect()
}

/// Response times over the run, unless they are to change because the load does.
fn series(plan: &Plan, findings: &Findings) -> Option<Series> {
    let replays = matches!(plan.workload, Workload::Open(Schedule::Replay(_)));
    (plan.stages.is_empty() && !replays).then(|| {
        let slots = &findings.tally.timeline;
        Series::of(slots.until(findings.measured), slots.width(), findings.measured)
    })
}

fn broken_law(law: Option<&LittlesLaw>) -> Option<Reason> {
    let law = law.filter(|law| !law.holds())?;
    let message = format!(
        "Little's law does not hold: {:.3} requests were in flight on average, counted at {} moments, and {:.3} by \
         their own times, {:.3} apart at the most. The times are wrong, or requests are missing: please report this \
         with the plan",
        law.sampled, law.samples, law.expected, law.tolerance
    );
    Some(Reason { rule: "littles_law".to_owned(), message })
}

/// What the generator did and cost.
fn generator_view(findings: &Findings) -> GeneratorView {
    let used = findings.resources.iter().filter_map(|row| row.cpu_s);
    let (first, last) = (used.clone().reduce(f64::min), used.reduce(f64::max));
    let used = first.zip(last).map(|(first, last)| last - first).filter(|used| *used > 0.0);
    let cost = findings.cost.map(|cost| cost.as_secs_f64());
    let own = |cost: f64| cost * findings.sent as f64;
    GeneratorView {
        arrival_gap: findings.gaps.as_ref().map(latency),
        wake_ups: Some(findings.wake_ups.lateness()).filter(|late| late.count() > 0).map(latency),
        ns_per_request: cost.map(|cost| cost * 1e9),
        cpu_share: cost.zip(used).map(|(cost, used)| (own(cost) / used).min(1.0)),
    }
}

/// Lays the routes of both sides beside each other; none without a layer.
fn balance(findings: &Findings, rows: &BTreeMap<String, Row>) -> Option<Balance> {
    let layer = Recorded::of(findings.server.as_ref()?);
    let client = rows.iter().map(|(name, row)| (name.clone(), row.finished.clone())).collect();
    // Of those that a phase gave up waiting for nobody knows how many the layer has seen end.
    Some(Balance::of(&client, &layer, findings.in_flight + findings.left_over))
}

/// Accounts for every request, on both sides.
fn conserve(findings: &Findings, balance: Option<&Balance>) -> Conservation {
    let outcomes = findings.tally.outcomes();
    let seen = findings.tally.seen_by_server;
    let accounted = outcomes.total() + findings.in_flight;
    let scheduled = findings.dropped + findings.sent + findings.unsent;
    let unexplained = findings.sent.abs_diff(accounted)
        + findings.scheduled.abs_diff(scheduled)
        + balance.map_or(0, |balance| balance.unexplained);
    let server = findings.server.as_ref().map(|interval| ServerConservation {
        entered: interval.entered(),
        recorded: interval.recorded(),
        not_seen: outcomes.total().saturating_sub(seen),
        foreign: interval.recorded().saturating_sub(interval.paired()),
    });
    Conservation {
        scheduled: findings.scheduled,
        dropped: findings.dropped,
        sent: findings.sent,
        unsent: findings.unsent,
        outcomes,
        in_flight: findings.in_flight,
        server,
        unexplained,
    }
}

/// Applies the rules that a run must pass before its figures mean anything.
fn validate(
    plan: &Plan,
    findings: &Findings,
    counts: &Conservation,
    balance: Option<&Balance>,
) -> Validity {
    let mut reasons = Vec::new();
    let mut broken = |rule: &str, message: String| {
        reasons.push(Reason { rule: rule.to_owned(), message });
    };
    let tally = &findings.tally;
    if counts.unexplained > 0 {
        let problems = balance.map(Balance::problems).filter(|problems| !problems.is_empty());
        broken(
            "conservation",
            match problems {
                Some(problems) => format!(
                    "{} requests are unaccounted for: client and layer do not count the same requests \
                     ({problems}). Does a layer send requests again, or something else drive this service with \
                     probes?",
                    counts.unexplained
                ),
                None => format!(
                    "{} requests are unaccounted for: the generator does not count what it sent",
                    counts.unexplained
                ),
            },
        );
    }
    if counts.sent == 0 {
        broken(
            "nothing_sent",
            format!(
                "not one of {} scheduled requests was sent: was the run stopped at once, or do flows begin \
                 with a longer pause? Run longer, or at a higher rate",
                counts.scheduled
            ),
        );
    } else if counts.outcomes.ok == 0 {
        broken(
            "no_success",
            format!(
                "not one of {} requests succeeded ({}): there is no latency to judge. Does one by hand?",
                counts.sent,
                ends(&counts.outcomes)
            ),
        );
    }
    let missing = &findings.never_taken;
    // A request that is still out may be the one of its kind.
    if counts.sent > 0 && counts.in_flight == 0 && !findings.interrupted && !missing.is_empty() {
        broken(
            "never_sent",
            format!(
                "{} of the {} parts of the mix had no turn: {}. What was measured is another mix: run longer, or \
                 leave out what is not to be tested",
                missing.len(),
                plan.scenario.names().count(),
                some_of(missing),
            ),
        );
    }
    if counts.in_flight > 0 && !findings.interrupted {
        broken(
            "in_flight",
            format!(
                "{} requests never ended: {:?} after the last one was sent they were given up. Does the \
                 service block its threads, or does the scenario panic?",
                counts.in_flight,
                plan.timeout + DRAIN_GRACE
            ),
        );
    }
    if let Some(rejected_p50) = tally.rejected.quantile(0.5) {
        let success_p50 = tally.accepted.quantile(0.5);
        let share = tally.rejected.count() as f64 / counts.outcomes.total().max(1) as f64;
        let faster = success_p50.is_none_or(|p50| rejected_p50 < p50.mul_f64(MASQUERADE_SHARE));
        let most = tally.rejected.count() > counts.outcomes.ok;
        if share > REJECTED_SHARE && (faster || most) {
            let against = success_p50.map_or_else(
                || "and none succeeded".to_owned(),
                |p50| format!("against {} for a success", number::duration(micros(p50))),
            );
            broken(
                "masquerade",
                format!(
                    "rejections masquerade as fast answers: {:.1} % of the requests were turned away \
                     (429 or 503) in {} at the median, {against}. The load never reached the service: \
                     let it pass the limiter, or test with a quota that fits",
                    share * 100.0,
                    number::duration(micros(rejected_p50)),
                ),
            );
        }
    }
    if matches!(plan.workload, Workload::Open { .. }) {
        let arrivals = findings.arrivals.saturating_sub(findings.outlived).max(1) as f64;
        // What was due in the moment of a stop is nobody's fault.
        let unsent = if findings.interrupted { 0 } else { counts.unsent - findings.outlived };
        let sent = 1.0 - (counts.dropped + unsent) as f64 / arrivals;
        if sent < SENT_SHARE {
            broken(
                "dropped",
                format!(
                    "only {:.1} % of the arrivals were sent: {} found {} others under way and were \
                     dropped, {unsent} had nothing to send. The service does not keep up with the \
                     rate, or --max-in-flight is too low",
                    sent * 100.0,
                    counts.dropped,
                    plan.max_in_flight
                ),
            );
        }
    }
    if tally.seen_by_server > 0
        && tally.negative_pairs as f64 > NEGATIVE_SHARE * tally.seen_by_server as f64
    {
        broken(
            "negative_outside",
            format!(
                "{} of {} requests took longer inside the layer than for the client: over a connection the \
                     server's clock is wrong, or what it tells; in one process this cannot be",
                tally.negative_pairs, tally.seen_by_server
            ),
        );
    }
    let verdict = if reasons.is_empty() { Verdict::Pass } else { Verdict::Invalid };
    Validity { verdict, reasons }
}

impl Validity {
    /// What is wrong for certain needs no doubt beside it.
    fn add(&mut self, verdict: Verdict, reasons: impl IntoIterator<Item = Reason>) {
        for reason in reasons {
            if verdict > self.verdict {
                self.verdict = verdict;
                self.reasons.clear();
            }
            if verdict == self.verdict {
                self.reasons.push(reason);
            }
        }
    }
}

/// Was the generator itself late, by its lag in slots of the run? Invalid if more than a hundredth of the requests are
/// shown to be later than they may be, and inconclusive if that can be chance: a pause of the whole machine makes as
/// many of a short run late.
fn late(lag: &[Window], is_part: bool, response_p99: Duration) -> Option<(Verdict, Reason)> {
    let allowed = LAG_FLOOR.max(response_p99.mul_f64(LAG_SHARE));
    let mut all = LatencyHistogram::new();
    lag.iter().for_each(|window| all.merge(&window.ok));
    let p99 = p99(&all).filter(|p99| *p99 > allowed)?;
    let counts: Vec<(u64, u64)> =
        lag.iter().map(|window| (window.ok.count(), window.ok.count_above(allowed))).collect();
    let late = statistics::judge_failures(&counts, LATE_SHARE, Op::AtMost);
    let whose = if is_part { " of the requests that arrivals send at once" } else { "" };
    let evidence = format!(
        "lag p99 {}{whose}, more than {} (1 ms, or 5 % of the response time's p99)",
        number::duration(micros(p99)),
        number::duration(micros(allowed))
    );
    let (verdict, message) = if late.low > Some(LATE_SHARE) {
        let remedy = "Lower the rate, or free the machine";
        (Verdict::Invalid, format!("the generator itself was late: {evidence}. {remedy}"))
    } else {
        let [share, low, high] =
            [late.observed, late.low, late.high].map(|share| share.unwrap_or(0.0) * 100.0);
        let chance = format!(
            "but that can be chance: {share:.1} % of the requests were later than that, {low:.1} to {high:.1} % with \
             95 % confidence a side. Run longer, or free the machine"
        );
        (
            Verdict::Inconclusive,
            format!("the generator itself may have been late: {evidence}, {chance}"),
        )
    };
    Some((verdict, Reason { rule: "lag".to_owned(), message }))
}

/// The first few of the names, and how many more there are.
fn some_of(names: &[String]) -> String {
    let (first, rest) = names.split_at(names.len().min(5));
    let more = if rest.is_empty() { String::new() } else { format!(", and {} more", rest.len()) };
    format!("{}{more}", first.join(", "))
}

/// How requests ended, in words.
fn ends(outcomes: &ClientOutcomes) -> String {
    let some = outcomes.named().into_iter().filter(|(_, count)| *count > 0);
    let some: Vec<_> = some.map(|(name, count)| format!("{count} {name}")).collect();
    if some.is_empty() { "none has ended".to_owned() } else { some.join(", ") }
}

fn p99(histogram: &LatencyHistogram) -> Option<Duration> {
    (histogram.count() >= samples_needed(0.99)).then(|| histogram.quantile(0.99)).flatten()
}

/// Where the time of the requests went that the layer saw.
fn attribute(row: &Row, names: Option<&ServerNames>, seed: u64) -> Vec<Attribution> {
    let Some(names) = names else { return Vec::new() };
    let name = |part| match part {
        Part::Lag => "lag".to_owned(),
        Part::Runtime => "runtime".to_owned(),
        Part::Outside => "outside".to_owned(),
        Part::Handler => "handler".to_owned(),
        Part::Phase(phase) => match names.phase(phase) {
            name if matches!(name.as_str(), "lag" | "runtime" | "outside") => {
                format!("phase {name}")
            }
            name => name,
        },
    };
    row.parts.attribute(name, seed)
}

fn client_view(
    findings: &Findings,
    rows: &BTreeMap<String, Row>,
    total: &Row,
    balance: Option<&Balance>,
    seed: u64,
) -> ClientView {
    let (tally, measured) = (&findings.tally, findings.measured);
    let names = findings.server_names.as_ref();
    let per_second =
        |n: u64| if measured.is_zero() { 0.0 } else { n as f64 / measured.as_secs_f64() };
    ClientView {
        rate: per_second(total.in_time),
        response_time: latency(&total.response_time),
        service_time: latency(&total.service_time),
        lag: latency(&tally.lag),
        failed: latency(&tally.failed),
        limited: latency(&tally.limited),
        outcomes: total.outcomes,
        response_bytes: total.bytes,
        routes: rows
            .iter()
            .map(|(name, row)| ClientRoute {
                route: name.clone(),
                rate: per_second(row.in_time),
                outcomes: row.outcomes,
                response_time: latency(&row.response_time),
                service_time: latency(&row.service_time),
                server_time: latency(&row.server_time),
                outside: latency(&row.outside),
                conservation: balance.and_then(|balance| balance.routes.get(name).cloned()),
                attribution: attribute(row, names, seed),
            })
            .collect(),
    }
}

fn latency(histogram: &LatencyHistogram) -> Latency {
    let supported = |q: &&f64| samples_needed(**q) <= histogram.count();
    let point = |q: &f64| histogram.quantile(*q).map(|value| (*q, micros(value)));
    Latency {
        summary: histogram.summary(),
        curve: CURVE.iter().filter(supported).filter_map(point).collect(),
    }
}

fn timeline_row(at: Duration, slot: &Slot, width: Duration, measured: Duration) -> TimelineRow {
    let summary = slot.window.ok.summary();
    TimelineRow {
        at_s: at.as_secs_f64(),
        width_s: width.min(measured - at).as_secs_f64(),
        ok: slot.window.ok.count(),
        completed: slot.completed,
        failed: slot.window.failed,
        outcomes: slot.outcomes,
        dropped: slot.dropped,
        p50_us: summary.p50_us,
        p99_us: summary.p99_us,
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

impl Report {
    /// Puts runs together, and judges the whole: `thresholds` are requirements that belong to no run,
    /// or repeat one of a run's for the headline.
    #[must_use]
    pub fn of(
        title: String,
        started_at_unix_s: f64,
        environment: Environment,
        runs: Vec<Run>,
        thresholds: Vec<ThresholdResult>,
        memory: Option<MemoryModel>,
    ) -> Self {
        let judged: Vec<ThresholdResult> =
            runs.iter().flat_map(|run| &run.thresholds).chain(&thresholds).cloned().collect();
        let verdict = runs
            .iter()
            .map(|run| run.verdict)
            .chain(thresholds.iter().map(|threshold| threshold.verdict))
            .max()
            .unwrap_or(Verdict::Invalid);
        let grade = match verdict {
            Verdict::Pass => statistics::grade(&judged),
            Verdict::Fail if runs.iter().all(|run| run.validity.verdict == Verdict::Pass) => {
                statistics::grade(&judged)
            }
            _ => None,
        };
        Self {
            schema: SCHEMA.to_owned(),
            title,
            started_at_unix_s,
            interrupted: runs.iter().any(|run| run.interrupted),
            environment,
            verdict,
            grade,
            thresholds,
            runs,
            memory,
        }
    }
}

/// Judges one requirement on one run.
fn judge_threshold(
    run: &str,
    threshold: &Threshold,
    findings: &Findings,
    wake_ups: &WakeUps,
    conservation: &Conservation,
    rows: &BTreeMap<String, Row>,
) -> ThresholdResult {
    let tally = &findings.tally;
    let watched = tally.watched(threshold);
    let slots: Vec<(Duration, &Slot)> = watched.until(findings.measured).collect();
    let finished: u64 = slots.iter().map(|(_, slot)| slot.window.requests()).sum();
    let estimate = match &threshold.metric {
        Metric::Dropped => count(conservation.dropped, threshold),
        Metric::Unexplained => count(conservation.unexplained, threshold),
        Metric::Rss => {
            let peak = findings.resources.iter().filter_map(|row| row.rss_bytes).max();
            reading(peak.map(|bytes| bytes as f64), findings.resources.len(), threshold)
        }
        Metric::Cpu => reading(cpu_share(&findings.resources), findings.resources.len(), threshold),
        Metric::HitRatio(cache) => hit_ratio(cache, threshold, findings),
        _ if finished == 0 => nothing_matched(threshold, findings, rows),
        Metric::Errors => {
            let counts: Vec<(u64, u64)> = slots
                .iter()
                .map(|(_, slot)| (slot.window.requests(), slot.window.failed))
                .collect();
            statistics::judge_failures(&counts, threshold.limit, threshold.op)
        }
        Metric::Rate => {
            let width = watched.width();
            // A slot that the run ended in is no sample of a rate.
            let whole = slots.iter().filter(|(at, _)| *at + width <= findings.measured);
            let completed: Vec<u64> = whole.map(|(_, slot)| slot.completed).collect();
            statistics::judge_rate(&completed, width, threshold.limit, threshold.op)
        }
        _ => {
            let windows: Vec<Window> = slots.iter().map(|(_, slot)| slot.window.clone()).collect();
            let stat = threshold.stat.unwrap_or(Stat::Mean);
            let added = wake_ups.may_add(threshold, findings.in_process);
            statistics::judge_duration(&windows, stat, threshold.limit, threshold.op, added)
        }
    };
    estimate.for_threshold(threshold, run)
}

fn count(n: u64, threshold: &Threshold) -> Estimate {
    statistics::judge_value(n as f64, 1, threshold.limit, threshold.op)
}

fn reading(value: Option<f64>, readings: usize, threshold: &Threshold) -> Estimate {
    value.map_or_else(Estimate::no_samples, |value| {
        statistics::judge_value(value, readings as u64, threshold.limit, threshold.op)
    })
}

/// The readings of the measured interval.
fn within(resources: &[ResourceRow], measured: Duration) -> &[ResourceRow] {
    let measured = measured.as_secs_f64();
    &resources[..resources.partition_point(|row| row.at_s <= measured)]
}

/// Processor time over the time of all cores, between the first reading and the last.
fn cpu_share(resources: &[ResourceRow]) -> Option<f64> {
    let (first, last) = (resources.first()?, resources.last()?);
    let span = last.at_s - first.at_s;
    (span > 0.0).then_some((last.cpu_s? - first.cpu_s?) / (span * cpus() as f64))
}

/// What the layer counted of a cache meanwhile, others' lookups included.
fn hit_ratio(cache: &str, threshold: &Threshold, findings: &Findings) -> Estimate {
    let Some(server) = &findings.server else {
        return nothing("no layer answered in this process, so nobody knows of caches".to_owned());
    };
    let caches: Vec<_> = server.caches().collect();
    let Some((_, counts)) = caches.iter().find(|(name, _)| *name == cache) else {
        let names = caches.iter().map(|(name, _)| *name);
        return nothing(format!("there is no cache {cache:?}; {}", listed("caches", names)));
    };
    match counts.hit_ratio() {
        Some(ratio) => statistics::judge_value(
            ratio,
            counts.hits.saturating_add(counts.misses),
            threshold.limit,
            threshold.op,
        ),
        None => nothing(format!("nobody asked the cache {cache:?} for anything")),
    }
}

/// A threshold without a sample, most often one with a mistyped name: says which there are.
fn nothing_matched(
    threshold: &Threshold,
    findings: &Findings,
    rows: &BTreeMap<String, Row>,
) -> Estimate {
    let on_route = match &threshold.route {
        Some(route) if !rows.contains_key(route) => {
            let names = listed("routes seen", rows.keys().map(String::as_str));
            return nothing(format!("no request was to the route {route:?}; {names}"));
        }
        Some(route) => format!(" to {route:?}"),
        None => String::new(),
    };
    let seen = findings.tally.seen_by_server > 0;
    let note = match &threshold.metric {
        _ if rows.is_empty() => "no request has ended, so there is nothing to judge".to_owned(),
        Metric::Phase(_) | Metric::ServerTime | Metric::TimeToFirstByte | Metric::Outside
            if !seen =>
        {
            format!("no layer answered, so nobody knows `{}`", threshold.metric)
        }
        Metric::Phase(phase) => {
            let names = listed("phases seen", findings.tally.phases().chain([HANDLER]));
            format!("no request{on_route} was in the phase {phase:?}; {names}")
        }
        metric => format!("of no request{on_route} `{metric}` is known"),
    };
    nothing(note)
}

fn nothing(note: String) -> Estimate {
    Estimate { note, ..Estimate::no_samples() }
}

fn listed<'n>(what: &str, names: impl IntoIterator<Item = &'n str>) -> String {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_unstable();
    format!("{what}: {}", if names.is_empty() { "none".to_owned() } else { names.join(", ") })
}

impl Report {
    /// Fails the test that calls it, with what did not hold as its message, unless the verdict is pass.
    ///
    /// # Panics
    /// If the verdict is anything but [`Verdict::Pass`].
    #[track_caller]
    pub fn assert_passed(&self) {
        assert!(
            self.verdict == Verdict::Pass,
            "the load test did not pass\n\n{}",
            render::summary(self, render::Style::default())
        );
    }
}

impl Environment {
    /// This machine, this build and, within a runtime, its workers.
    #[must_use]
    pub fn here() -> Self {
        let runtime = tokio::runtime::Handle::try_current();
        Self {
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            cpus: cpus(),
            workers: runtime.map_or(0, |runtime| runtime.metrics().num_workers()),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
            parallax_version: env!("CARGO_PKG_VERSION").to_owned(),
            settings: Vec::new(),
        }
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of so many slots of 100 requests each, which are sent in time but for the last ones of each slot.
    fn lag(slots: usize, late: impl Fn(usize) -> u64) -> Vec<Window> {
        let mut windows = vec![Window::default(); slots];
        for (slot, window) in windows.iter_mut().enumerate() {
            let late = late(slot);
            for request in 0..100 {
                let us = if request < 100 - late { 2 } else { 4_000 };
                window.ok.record(Duration::from_micros(us));
            }
        }
        windows
    }

    fn lateness(lag: &[Window], response_p99_ms: u64) -> Option<(Verdict, String)> {
        let late = late(lag, false, Duration::from_millis(response_p99_ms));
        late.map(|(verdict, reason)| (verdict, reason.message))
    }

    #[test]
    fn a_generator_that_is_late_all_the_time_makes_a_run_invalid() {
        let always = lag(40, |_| 3);
        let (verdict, message) = lateness(&always, 10).expect("it was late");
        assert_eq!(verdict, Verdict::Invalid);
        assert_eq!(
            message,
            "the generator itself was late: lag p99 4.00 ms, more than 1.00 ms (1 ms, or 5 % of the response time's \
             p99). Lower the rate, or free the machine"
        );
        assert_eq!(lateness(&always, 100), None, "4 ms are less than 5 % of 100 ms");
        assert_eq!(lateness(&lag(40, |slot| u64::from(slot % 2 == 0)), 10), None, "one in 200");
    }

    #[test]
    fn whether_one_pause_made_it_late_or_chance_is_open() {
        let paused = lag(40, |slot| if slot == 17 { 80 } else { 0 });
        let (verdict, message) = lateness(&paused, 10).expect("it was late");
        assert_eq!(verdict, Verdict::Inconclusive);
        assert!(message.starts_with(
            "the generator itself may have been late: lag p99 4.00 ms, more than 1.00 ms"
        ));
        assert!(
            message.contains(
                "but that can be chance: 2.0 % of the requests were later than that, 0.1 to "
            ),
            "{message}"
        );

        let paused = lag(40, |slot| if (17..19).contains(&slot) { 100 } else { 0 });
        let (verdict, _) = lateness(&paused, 10).expect("it was late");
        assert_eq!(verdict, Verdict::Inconclusive, "a twentieth of the run");

        // Half of a run is no chance, however they follow one another.
        let (verdict, _) =
            lateness(&lag(40, |slot| if slot < 20 { 100 } else { 0 }), 10).expect("late");
        assert_eq!(verdict, Verdict::Invalid);
        let (verdict, _) = lateness(&lag(10, |_| 50), 10).expect("late");
        assert_eq!(verdict, Verdict::Invalid, "nor is half of each slot of a short one");
        let (verdict, _) =
            lateness(&lag(3, |slot| if slot == 0 { 50 } else { 0 }), 10).expect("late");
        assert_eq!(verdict, Verdict::Inconclusive);
        assert_eq!(lateness(&lag(2, |_| 50), 10), None, "200 requests have no p99");
    }

    #[test]
    fn a_run_that_is_invalid_for_certain_gives_no_reasons_that_may_be_chance() {
        let reason = |rule: &str| Reason { rule: rule.to_owned(), message: "so it is".to_owned() };
        let mut validity = Validity { verdict: Verdict::Pass, reasons: Vec::new() };
        let rules = |validity: &Validity| -> Vec<String> {
            validity.reasons.iter().map(|reason| reason.rule.clone()).collect()
        };
        validity.add(Verdict::Invalid, None);
        assert_eq!(validity.verdict, Verdict::Pass);
        validity.add(Verdict::Inconclusive, [reason("lag")]);
        assert_eq!(
            (validity.verdict, rules(&validity)),
            (Verdict::Inconclusive, vec!["lag".into()])
        );
        validity.add(Verdict::Invalid, [reason("littles_law"), reason("no_samples")]);
        validity.add(Verdict::Inconclusive, [reason("lag")]);
        assert_eq!(validity.verdict, Verdict::Invalid);
        assert_eq!(rules(&validity), ["littles_law", "no_samples"]);
    }

    #[test]
    fn a_broken_law_is_told_with_both_measurements() {
        let law = LittlesLaw { sampled: 9.0, expected: 4.5, tolerance: 0.1, samples: 500 };
        let reason = broken_law(Some(&law)).expect("it is broken");
        assert_eq!(reason.rule, "littles_law");
        for part in ["9.000 requests", "500 moments", "4.500 by their own times"] {
            assert!(reason.message.contains(part), "{}", reason.message);
        }
        assert_eq!(broken_law(Some(&LittlesLaw { expected: 8.95, ..law })), None);
        assert_eq!(broken_law(None), None, "too few moments");
    }
}
