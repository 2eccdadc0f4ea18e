//! What a report looks like: on a terminal, as JSON, as tables, as a page, in a review and in CI.
//!
//! Every rendering is made from the [`Report`] alone, offline, and the same report renders to the same
//! bytes.

pub(crate) mod clean;
mod csv;
mod html;
mod json;
mod junit;
mod markdown;
pub(crate) mod number;
mod plot;
mod text;
mod words;

#[cfg(test)]
mod any_report;
#[cfg(test)]
pub(crate) mod fixture;

pub use csv::{Table, csv};
pub use html::html;
pub use json::json;
pub use junit::junit;
pub use markdown::markdown;
pub(crate) use text::sparkline;
pub use text::{Style, summary, text};

use std::collections::BTreeMap;

use parallax_middleware::{PerfView, RefusedTokens};

use crate::report::{
    Attribution, ClientRoute, GeneratorView, Latency, Model, Pairs, PlanSummary, Report, Run,
    ThresholdResult, Verdict,
};

/// Every requirement of a report, those of the whole first; what the whole repeats of a run counts once.
fn requirements(report: &Report) -> impl Iterator<Item = &ThresholdResult> {
    let of_runs = report.runs.iter().flat_map(|run| &run.thresholds);
    report.thresholds.iter().chain(of_runs.filter(|result| !report.thresholds.contains(result)))
}

/// The run that a requirement of this very report was judged on, if its figures cannot be believed: then neither can
/// what was found.
fn invalid_run<'a>(report: &'a Report, result: &ThresholdResult) -> Option<&'a Run> {
    // Several runs may have one name; which one a requirement of the whole means, nobody knows then.
    let own = |run: &&Run| run.thresholds.iter().any(|own| std::ptr::eq(own, result));
    let is_invalid = |run: &&Run| run.validity.verdict == Verdict::Invalid;
    match report.runs.iter().find(own) {
        Some(run) => Some(run).filter(is_invalid),
        None => report
            .runs
            .iter()
            .filter(is_invalid)
            .find(|run| !run.name.is_empty() && run.name == result.run),
    }
}

/// What a requirement came to, and why where its figures do not say it.
fn judged<'a>(report: &Report, result: &'a ThresholdResult) -> (Verdict, &'a str) {
    match invalid_run(report, result) {
        Some(_) if result.verdict != Verdict::Invalid => {
            (Verdict::Invalid, "the run's figures cannot be believed")
        }
        Some(_) | None => (result.verdict, &result.note),
    }
}

/// Both sides' times of a route, in the order in which they are shown.
fn route_views(route: &ClientRoute) -> [(&'static str, &Latency); 4] {
    [
        ("response time", &route.response_time),
        ("service time", &route.service_time),
        ("server time", &route.server_time),
        ("outside", &route.outside),
    ]
}

/// The same of all routes together.
fn all_routes(run: &Run) -> [(&'static str, &Latency); 4] {
    [
        ("response time", &run.client.response_time),
        ("service time", &run.client.service_time),
        ("server time", &run.pairs.server_time),
        ("outside", &run.pairs.outside),
    ]
}

/// Who saw one side alone has no figures of the other.
fn one_sided(run: &Run) -> bool {
    run.server.is_none() && run.pairs.paired == 0
}

/// When the warm-up began, on the clock of the measured interval: as long before 0 as its slots take.
fn warmup_begins(run: &Run) -> f64 {
    run.warmup.last().map_or(0.0, |last| -(last.at_s + last.width_s))
}

/// Why the verdict is what it is, in a sentence or two.
fn why(report: &Report) -> String {
    let all: Vec<_> = requirements(report).collect();
    let with = |verdict| all.iter().filter(move |result| result.verdict == verdict);
    // Why the figures cannot be believed, or why that is open.
    let doubt = |verdict: Verdict, finding: &str| {
        let doubtful = report.runs.iter().filter(|run| run.validity.verdict == verdict);
        let mut reasons = doubtful.flat_map(|run| {
            run.validity.reasons.iter().map(move |reason| (&run.name, &reason.message))
        });
        let (run, message) = reasons.next()?;
        let more = match reasons.count() {
            0 => String::new(),
            n => format!(" ({n} more below.)"),
        };
        Some(format!("{finding}: in {run}, {}{more}", stopped(message)))
    };
    let sentence = match report.verdict {
        Verdict::Invalid => {
            if let Some(sentence) = doubt(Verdict::Invalid, "The figures cannot be believed") {
                sentence
            } else if let Some(result) = with(Verdict::Invalid).next() {
                because(&format!("{} cannot be judged", result.expression), &result.note)
            } else {
                "The figures cannot be believed.".to_owned()
            }
        }
        Verdict::Fail => {
            let worst = with(Verdict::Fail).next().map_or_else(String::new, |result| {
                format!(" {}: {}.", result.expression, found_against_limit(result))
            });
            format!("{} of {} requirements failed.{worst}", with(Verdict::Fail).count(), all.len())
        }
        Verdict::Inconclusive => {
            let first = with(Verdict::Inconclusive).next().map_or_else(String::new, |result| {
                format!(" {}", because(&result.expression, &result.note))
            });
            match with(Verdict::Inconclusive).count() {
                0 if doubt(Verdict::Inconclusive, "").is_none() => {
                    "It could not be decided.".to_owned()
                }
                0 => String::new(),
                n => format!("{n} of {} requirements could not be decided.{first}", all.len()),
            }
        }
        Verdict::Pass if all.is_empty() => {
            "The figures are valid; nothing was required of them.".to_owned()
        }
        Verdict::Pass => {
            let tightest = all
                .iter()
                .filter_map(|result| Some((result.margin?, &result.expression)))
                .min_by(|a, b| a.0.total_cmp(&b.0));
            let room = tightest.map_or_else(String::new, |(margin, expression)| {
                let margin = number::margin(margin);
                format!(" The tightest, {expression}, has {margin} to spare.")
            });
            match all.len() {
                1 => format!("The one requirement holds.{room}"),
                n => format!("All {n} requirements hold.{room}"),
            }
        }
    };
    let open = match report.verdict {
        Verdict::Fail | Verdict::Inconclusive => {
            doubt(Verdict::Inconclusive, "It is open whether the figures can be believed")
        }
        Verdict::Pass | Verdict::Invalid => None,
    };
    let sentence = match open {
        Some(open) => format!("{sentence} {open}").trim_start().to_owned(),
        None => sentence,
    };
    if report.interrupted {
        format!("{sentence} The run was interrupted; this is what was found until then.")
    } else {
        sentence
    }
}

/// What was found and what would have been right: `observed 1.23 s, limit 200 ms`.
fn found_against_limit(result: &ThresholdResult) -> String {
    let observed = result
        .observed
        .map_or_else(|| "no figure".to_owned(), |value| number::value(value, result.unit));
    format!("observed {observed}, limit {}", number::value(result.limit, result.unit))
}

/// What was found, and why if that is known, as a sentence.
fn because(finding: &str, note: &str) -> String {
    if note.is_empty() { stopped(finding) } else { format!("{finding}: {}", stopped(note)) }
}

/// A text as a sentence: with a full stop, and only one.
fn stopped(text: &str) -> String {
    format!("{}.", text.trim_end_matches('.'))
}

/// How runs compare that differ in nothing but how they reach the service.
struct Cost<'a> {
    run: &'a Run,
    /// Of the median service time to that of the first.
    ratio: Option<f64>,
}

/// The runs of the same plan over several transports, plan by plan, in the order in which they ran.
fn by_transport(report: &Report) -> Vec<Vec<Cost<'_>>> {
    let mut groups: Vec<Vec<&Run>> = Vec::new();
    for run in &report.runs {
        let same = |other: &Run| {
            let transport = run.plan.transport.clone();
            run.plan == PlanSummary { transport, ..other.plan.clone() }
        };
        match groups.iter_mut().find(|group| same(group[0])) {
            Some(group) => group.push(run),
            None => groups.push(vec![run]),
        }
    }
    groups.retain(|group| group.iter().any(|run| run.plan.transport != group[0].plan.transport));
    let median = |run: &Run| run.client.service_time.summary.p50_us;
    let ratio = |run: &Run, first: &Run| Some(median(run)? / median(first).filter(|us| *us > 0.0)?);
    groups
        .into_iter()
        .map(|runs| {
            let first = runs[0];
            runs.into_iter().map(|run| Cost { run, ratio: ratio(run, first) }).collect()
        })
        .collect()
}

impl Cost<'_> {
    /// The transport; and that its figures mean nothing, if they do not.
    fn name(&self) -> String {
        let transport = &self.run.plan.transport;
        match self.run.validity.verdict {
            Verdict::Pass => transport.clone(),
            verdict => format!("{transport}, {verdict}"),
        }
    }

    /// Rate, medians and 99th percentiles of the service time and of what is outside of the layer, the ratio.
    fn figures(&self) -> [String; 6] {
        let time = |us: Option<f64>| us.map_or_else(|| number::NONE.to_owned(), number::duration);
        let (service, outside) =
            (&self.run.client.service_time.summary, &self.run.pairs.outside.summary);
        [
            number::per_second(self.run.client.rate),
            time(service.p50_us),
            time(service.p99_us),
            time(outside.p50_us),
            time(outside.p99_us),
            self.ratio.map_or_else(|| number::NONE.to_owned(), number::plain),
        ]
    }
}

/// What the columns of costs mean.
fn transports_in_words(costs: &[Cost<'_>]) -> String {
    format!(
        "One plan over each. Ratio: of the median service time to that over {}. Outside: the part of the \
         service time that the layer did not see: the transport and both its ends",
        costs.first().map_or("the first", |cost| &cost.run.plan.transport)
    )
}

/// A plan in a sentence.
fn plan_in_words(plan: &PlanSummary) -> String {
    let mut words = vec![load_in_words(plan)];
    words.push(format!(
        "{} {}",
        plan.requests.map_or_else(
            || number::seconds(plan.duration_s),
            |requests| {
                let within = number::seconds(plan.duration_s);
                format!("{} requests within {within}", number::count(requests))
            }
        ),
        if plan.warmup_s > 0.0 {
            format!("after {} of warm-up", number::seconds(plan.warmup_s))
        } else {
            "without a warm-up".to_owned()
        }
    ));
    words.push(format!(
        "at most {} in flight, timeout {}",
        number::count(plan.max_in_flight as u64),
        number::seconds(plan.timeout_s)
    ));
    // A server has its URL for a transport.
    if plan.transport.contains('/') {
        words.push(format!("to {}", plan.transport));
    } else {
        words.push(format!("{} transport", plan.transport));
    }
    if plan.virtual_time {
        words.push("virtual time".to_owned());
    } else {
        if plan.pacer == "coarse" {
            words.push("paced by the runtime's timer".to_owned());
        }
        if plan.topology == "split" {
            words.push("the generator on a runtime of its own".to_owned());
        }
    }
    words.push(format!("seed {}", plan.seed));
    words.extend(plan.tags.iter().map(|(name, value)| format!("{name}: {value}")));
    words.join("; ")
}

fn load_in_words(plan: &PlanSummary) -> String {
    let most = if plan.stages.is_empty() { "" } else { "up to " };
    let load = match plan.model {
        Model::Closed => {
            let users = number::count(plan.users.unwrap_or(0) as u64);
            let mut habits = Vec::new();
            match plan.think_time_s {
                Some(pause) if pause > 0.0 => {
                    let random = if plan.random_think_time { " on average" } else { "" };
                    let pause = number::seconds(pause);
                    habits.push(format!("each pausing {pause}{random} after its answer"));
                }
                _ => habits.push("each waiting for its answer".to_owned()),
            }
            if let Some(pacing) = plan.pacing_s {
                habits.push(format!("asking every {} at most", number::seconds(pacing)));
            }
            let plural = if plan.users == Some(1) { "" } else { "s" };
            format!("{most}{users} user{plural}, {}", habits.join(", "))
        }
        Model::Open => {
            let rate = number::plain(plan.rate.unwrap_or(0.0));
            let how = match plan.arrivals.as_deref() {
                Some("poisson") => " at random",
                Some("replay") => " on average, as they were recorded",
                _ => "",
            };
            format!("{most}{rate} arrivals a second{how}, whether answered or not")
        }
    };
    if plan.stages.is_empty() {
        return load;
    }
    let stage = |(seconds, level): &(f64, f64)| {
        format!("{} to {}", number::seconds(*seconds), number::plain(*level))
    };
    let stages: Vec<_> = plan.stages.iter().map(stage).collect();
    format!("{load}; in stages: {}", stages.join(", "))
}

/// Whose view there is where no layer of this process answered.
fn one_view(pairs: &Pairs) -> String {
    match pairs.paired {
        0 => "no layer answered, so there is one view only".to_owned(),
        paired => format!(
            "the server told its times of {} of them; what else it counted, only itself knows",
            number::count(paired)
        ),
    }
}

/// What the generator itself cost, in a sentence.
fn cost_in_words(generator: &GeneratorView) -> Option<String> {
    let cost = number::duration(generator.ns_per_request? / 1e3);
    let share = generator.cpu_share.map_or_else(String::new, |share| {
        format!(", at least {} of the processor time used", number::share(share))
    });
    Some(format!("{cost} of its own for a request{share}"))
}

/// The requests of a plan and their weights, and how the load fares at the limiter.
fn mix_in_words(plan: &PlanSummary) -> String {
    let mix: Vec<_> =
        plan.mix.iter().map(|(name, weight)| format!("{name} \u{d7} {weight}")).collect();
    let mix = if mix.is_empty() { "no requests named".to_owned() } else { mix.join(", ") };
    if plan.bypasses_limiter { format!("{mix}; the load passes by the limiter") } else { mix }
}

/// The parts of attributed times, those with the largest share in the furthest tail first. Those that are
/// nowhere as much as a thousandth are left out.
fn parts(groups: &[Attribution]) -> Vec<&str> {
    let mut parts: Vec<(&str, f64)> = groups
        .last()
        .into_iter()
        .flat_map(|tail| tail.shares.iter().map(|(part, share)| (part.as_str(), *share)))
        .filter(|(part, _)| {
            groups.iter().any(|group| group.shares.get(*part).is_some_and(|share| *share >= 0.001))
        })
        .collect();
    parts.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    parts.into_iter().map(|(part, _)| part).collect()
}

/// The furthest tail in which something dominates.
fn dominated_tail(groups: &[Attribution]) -> Option<&[Attribution]> {
    let last = groups.iter().rposition(|group| group.dominant.is_some())?;
    groups.get(last..=last)
}

/// What dominates the response times of a route, in a sentence.
fn dominance(route: &str, groups: &[Attribution]) -> String {
    let shown: Vec<String> = groups
        .iter()
        .filter_map(|group| {
            let part = group.dominant.as_deref()?;
            let share = |of: &BTreeMap<String, f64>| of.get(part).copied().map(number::share);
            Some(format!(
                "{part} is {} of the time at {} ({} to {})",
                share(&group.shares)?,
                number::percentile(group.quantile),
                share(&group.low)?,
                share(&group.high)?,
            ))
        })
        .collect();
    if !shown.is_empty() {
        return format!("{route}: {}", shown.join("; "));
    }
    if groups.iter().all(|group| group.low.is_empty()) {
        return format!("{route}: too short a run, or too few requests, to say what dominates");
    }
    format!("{route}: nothing is shown to take more than half of the time")
}

/// What was seen of pools, caches and refused tokens: what it is, and its figures.
fn backends(server: &PerfView) -> Vec<(String, String)> {
    let time = |us: Option<f64>| us.map_or_else(|| number::NONE.to_owned(), number::duration);
    let pools = server.pools.iter().map(|pool| {
        let mut name = format!("pool {} ({})", pool.name, pool.kind);
        if pool.max > 0 {
            name += &format!(", at most {}", number::count(pool.max));
        }
        let mut text = format!(
            "{} acquired, wait p50 {}, p99 {}; held p50 {}, p99 {}",
            number::count(pool.acquired),
            time(pool.wait.p50_us),
            time(pool.wait.p99_us),
            time(pool.hold.p50_us),
            time(pool.hold.p99_us),
        );
        for (n, what) in
            [(pool.timeouts, "timed out"), (pool.failed, "failed"), (pool.cancelled, "given up")]
        {
            if n > 0 {
                text += &format!("; {} {what}", number::count(n));
            }
        }
        (name, text)
    });
    let caches = server.caches.iter().filter_map(|cache| {
        let hit = number::percent(cache.hit_ratio?);
        let lookups = number::count(cache.hits.saturating_add(cache.misses));
        Some((format!("cache {}", cache.name), format!("{hit} of {lookups} lookups hit")))
    });
    let refused = server.limiter.map(|limiter| limiter.refused_tokens);
    let refused = refused.filter(|tokens| *tokens != RefusedTokens::default());
    let refused = refused.map(|tokens| {
        let RefusedTokens { malformed, forged, expired, out_of_scope } = tokens;
        let figures = format!(
            "{malformed} malformed, {forged} forged, {expired} expired, {out_of_scope} out of scope"
        );
        ("tokens refused".to_owned(), figures)
    });
    pools.chain(caches).chain(refused).collect()
}

/// The percentiles that too few samples support, by name and quantile; none if nothing was recorded at
/// all, which is said otherwise.
fn unsupported(latency: &Latency) -> impl Iterator<Item = (&'static str, f64)> {
    let summary = latency.summary;
    [
        ("p50", 0.5, summary.p50_us),
        ("p90", 0.9, summary.p90_us),
        ("p95", 0.95, summary.p95_us),
        ("p99", 0.99, summary.p99_us),
        ("p99.9", 0.999, summary.p999_us),
    ]
    .into_iter()
    .filter(move |(_, _, us)| summary.count > 0 && us.is_none())
    .map(|(name, q, _)| (name, q))
}
