//! What a run's findings say, in sentences.

use std::time::Duration;

use super::number;
use crate::report::{
    Check, Conservation, LittlesLaw, MemoryModel, Model, PlanSummary, PoolRow, ResourceRow, Run,
    Settling, Stall, ThresholdResult,
};

/// Texts of errors that stand for all of them.
const ERRORS: usize = 3;

/// What failed in a run: how its requests ended, the most frequent errors, the checks that did not hold.
pub(super) fn failures(run: &Run) -> Vec<String> {
    let outcomes = &run.client.outcomes;
    let ends: Vec<_> = (outcomes.named().into_iter())
        .filter(|(_, count)| *count > 0)
        .map(|(name, n)| format!("{} {}", number::count(n), name.replace('_', " ")))
        .collect();
    let ends = (outcomes.failed() > 0).then(|| format!("requests ended: {}", ends.join(", ")));
    let errors = run.errors.iter().take(ERRORS);
    let errors =
        errors.map(|error| format!("{} \u{d7} {}", number::count(error.count), error.message));
    let failed = run.checks.iter().filter(|check| check.failed > 0).map(check);
    ends.into_iter().chain(errors).chain(failed).collect()
}

/// What became of the requests that were sent.
pub(super) fn sent(counts: &Conservation) -> String {
    let ends: Vec<_> = (counts.outcomes.named().into_iter())
        .filter(|(name, count)| *count > 0 || *name == "ok")
        .chain([("in flight", counts.in_flight)])
        .map(|(name, count)| format!("{} {}", name.replace('_', " "), number::count(count)))
        .collect();
    format!("sent {} = {}", number::count(counts.sent), ends.join(" + "))
}

/// How often a check held, and what was wrong the first time.
pub(super) fn check(check: &Check) -> String {
    let total = number::count(check.passed.saturating_add(check.failed));
    let held = format!("check {}: {} of {total} held", check.name, number::count(check.passed));
    match &check.first_failure {
        Some(failure) => format!("{held}; first failure: {failure}"),
        None => held,
    }
}

/// What an entity takes, and what so many would.
pub(super) fn memory(memory: &MemoryModel) -> [String; 2] {
    let sizes = memory.points.iter().map(|(entities, _)| *entities);
    let (least, most) = (sizes.clone().min().unwrap_or(0), sizes.max().unwrap_or(0));
    [
        format!(
            "{} + {} for each entity ({} by Theil-Sen), from {} processes with {} to {} entities",
            number::bytes(memory.base_bytes),
            number::bytes(memory.bytes_per_entity),
            number::bytes(memory.theil_sen_bytes_per_entity),
            memory.points.len(),
            number::count(least),
            number::count(most)
        ),
        format!(
            "at {} entities: {}, between {} and {} with 95 % confidence ({})",
            number::count(memory.projected_entities),
            number::bytes(memory.projected_bytes),
            number::bytes(memory.low_bytes),
            number::bytes(memory.high_bytes),
            memory.reach
        ),
    ]
}

/// Whether as much was in flight as rate and service times say.
pub(super) fn littles_law(law: &LittlesLaw) -> String {
    let holds =
        if (law.sampled - law.expected).abs() <= law.tolerance { "holds" } else { "is broken" };
    format!(
        "Little's law {holds}: {} in flight on average, {} by rate and service time (\u{b1} {}, {} samples)",
        number::plain(law.sampled),
        number::plain(law.expected),
        number::plain(law.tolerance),
        number::count(law.samples)
    )
}

/// From when on the figures are those of a steady state.
pub(super) fn settling(settling: &Settling) -> String {
    let transient = number::seconds(settling.transient_s);
    if !settling.stationary {
        format!(
            "not settled: the first {transient} differ from the rest; warm up longer, or run longer"
        )
    } else if settling.transient_s > 0.0 {
        format!("settled after {transient} of the measured interval")
    } else {
        "settled from the start".to_owned()
    }
}

/// How often everything was slow at once, and when it was worst; `None` if it never was.
pub(super) fn stalls(stalls: &[Stall]) -> Option<String> {
    let worst = stalls.iter().max_by(|a, b| a.slow.cmp(&b.slow).then(b.at_s.total_cmp(&a.at_s)))?;
    let of = |n: u64, what: &str| {
        format!("{} {what}{}", number::count(n), if n == 1 { "" } else { "s" })
    };
    let count = match stalls.len() {
        1 => "1 stall,".to_owned(),
        n => format!("{n} stalls, the worst"),
    };
    Some(format!(
        "{count} at {} for {}: {} of {} slow, on {}",
        number::seconds(worst.at_s),
        number::seconds(worst.width_s),
        number::count(worst.slow),
        of(worst.requests, "request"),
        of(worst.routes, "route")
    ))
}

/// A pool that turns up in a run's resources.
pub(super) struct Pool<'a> {
    name: &'a str,
    kind: &'a str,
    /// Its name, and its kind too where another kind of pool has the same.
    pub(super) label: String,
}

impl Pool<'_> {
    /// How it stood.
    pub(super) fn at<'a>(&self, row: &'a ResourceRow) -> Option<&'a PoolRow> {
        row.pools.iter().find(|pool| (&*pool.name, &*pool.kind) == (self.name, self.kind))
    }
}

/// The pools of moments, in the order in which they turn up.
pub(super) fn pools<'a>(resources: impl IntoIterator<Item = &'a ResourceRow>) -> Vec<Pool<'a>> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for pool in resources.into_iter().flat_map(|row| &row.pools) {
        if !found.contains(&(&pool.name, &pool.kind)) {
            found.push((&pool.name, &pool.kind));
        }
    }
    let of = |(name, kind): &(&'a str, &'a str)| {
        let taken = found.iter().any(|other| other.0 == *name && other.1 != *kind);
        let label =
            if taken && !kind.is_empty() { format!("{name} ({kind})") } else { (*name).to_owned() };
        Pool { name, kind, label }
    };
    found.iter().map(of).collect()
}

/// The moment in which most waited for each pool, and if nobody ever did, in which most of it was lent out; and how it
/// stood then.
pub(super) fn pools_at_their_worst(resources: &[ResourceRow]) -> Vec<(String, String)> {
    let worst = |pool: Pool<'_>| {
        // The first of several that are equally bad.
        let (at_s, worst) = (resources.iter())
            .filter_map(|row| Some((row.at_s, pool.at(row)?)))
            .reduce(|worst, row| {
                let key = |pool: &PoolRow| (pool.waiting, pool.in_use);
                if key(row.1) > key(worst.1) { row } else { worst }
            })?;
        let max = match worst.max {
            0 => String::new(),
            max => format!(" of {}", number::count(max)),
        };
        let (in_use, waiting) = (number::count(worst.in_use), number::count(worst.waiting));
        Some((
            format!("pool {} at its worst, at {}", pool.label, number::seconds(at_s)),
            format!("{in_use}{max} in use, {waiting} waiting"),
        ))
    };
    pools(resources).into_iter().filter_map(worst).collect()
}

/// The command that asks for the same again, and what no report tells of it. `None` for start times that were read
/// from a file, and for virtual time: no command asks for those.
pub(super) fn repetition<'a>(
    plan: &PlanSummary,
    requirements: impl IntoIterator<Item = &'a ThresholdResult>,
) -> Option<(String, &'static str)> {
    if plan.arrivals.as_deref() == Some("replay") || plan.virtual_time {
        return None;
    }
    let paths = paths(plan);
    let server = plan.transport.contains('/');
    let method = paths.as_ref().and_then(|paths| paths.first()).map_or("GET", |(method, _)| method);
    let mut words = Vec::new();
    let single = match &paths {
        Some(paths) if server && paths.len() > 1 => None,
        paths => paths.as_ref(),
    };
    if server {
        words.push("parallax run".to_owned());
        let path = single.and_then(|paths| paths.first()).map_or("", |(_, path)| path);
        let colon = if plan.transport.starts_with("unix:") && !path.is_empty() { ":" } else { "" };
        words.push(quoted(&format!("{}{colon}{path}", plan.transport.trim_end_matches('/'))));
    } else {
        words.push("cargo bench --bench load --".to_owned());
        words.extend(single.into_iter().flatten().map(|(_, path)| quoted(path)));
    }
    let mut flag = |name: &str, value: String| words.push(format!("--{name} {}", quoted(&value)));
    match single {
        None => flag("scenario", "FILE".to_owned()),
        Some(_) if method != "GET" => flag("method", method.to_owned()),
        Some(_) => {}
    }
    let unit = if plan.model == Model::Closed { "users" } else { "" };
    let stages: Vec<_> =
        plan.stages.iter().map(|(s, level)| format!("{}:{level}{unit}", time(*s))).collect();
    if !stages.is_empty() {
        flag("stages", stages.join(","));
    } else if let Some(users) = plan.users {
        flag("users", users.to_string());
    } else if let Some(rate) = plan.rate {
        flag("rate", rate.to_string());
    }
    if plan.arrivals.as_deref() == Some("poisson") {
        flag("arrivals", "poisson".to_owned());
    }
    if let Some(pause) = plan.think_time_s.filter(|pause| *pause > 0.0) {
        let random = if plan.random_think_time { "exp:" } else { "" };
        flag("think-time", format!("{random}{}", time(pause)));
    }
    if let Some(pacing) = plan.pacing_s {
        flag("pacing", time(pacing));
    }
    if let Some(requests) = plan.requests {
        flag("requests", requests.to_string());
    }
    if stages.is_empty() {
        flag("duration", time(plan.duration_s));
    }
    flag("warmup", time(plan.warmup_s));
    flag("timeout", time(plan.timeout_s));
    if plan.model == Model::Open {
        flag("max-in-flight", plan.max_in_flight.to_string());
    }
    flag("seed", plan.seed.to_string());
    if plan.pacer == "coarse" {
        flag("pacer", plan.pacer.clone());
    }
    if plan.topology == "split" {
        flag("runtime", plan.topology.clone());
    }
    for result in requirements {
        flag("threshold", result.expression.clone());
    }
    if !server {
        flag("transport", plan.transport.clone());
        if plan.bypasses_limiter {
            words.push("--pass-limiter".to_owned());
        }
    }
    let untold = match (server, single) {
        (true, None) => "FILE is a scenario with the requests above, which a report does not hold",
        (true, _) => "the query, headers and a body are in no report, and neither is a token's key",
        (false, None) => {
            "for a service whose command is a bench named load; FILE is a scenario with the requests above, which a \
             report does not hold"
        }
        (false, _) => {
            "for a service whose command is a bench named load; queries, headers and bodies are in no report"
        }
    };
    Some((words.join(" "), untold))
}

/// Method and path of each request, if that is how they are called and they are all alike in method and weight.
fn paths(plan: &PlanSummary) -> Option<Vec<(&str, &str)>> {
    let mut paths = Vec::new();
    for (name, weight) in &plan.mix {
        let (method, path) = name.split_once(' ')?;
        let first = paths.first().map_or(method, |(method, _)| *method);
        let word = !method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase());
        if !word || method != first || *weight != plan.mix[0].1 || !path.starts_with('/') {
            return None;
        }
        paths.push((method, path));
    }
    (!paths.is_empty()).then_some(paths)
}

/// As flags take it.
fn time(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds.max(0.0)).map_or_else(
        |_| format!("{seconds}s"),
        |time| humantime::format_duration(time).to_string().replace(' ', ""),
    )
}

/// For a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::fixture;

    fn repeated(change: impl FnOnce(&mut PlanSummary)) -> Option<String> {
        let report = fixture::passed();
        let mut plan = report.runs[1].plan.clone();
        change(&mut plan);
        repetition(&plan, &report.thresholds[..1]).map(|(command, _)| command)
    }

    #[test]
    fn a_run_on_a_url_is_repeated_by_the_command_that_it_was() {
        let command = repeated(|plan| {
            plan.transport = "http://127.0.0.1:3000".to_owned();
            plan.mix = vec![("POST /it's".to_owned(), 1)];
            plan.arrivals = Some("poisson".to_owned());
        });
        assert_eq!(
            command.as_deref(),
            Some(
                r"parallax run 'http://127.0.0.1:3000/it'\''s' --method POST --rate 10000 --arrivals poisson \
                  --duration 5s --warmup 1s --timeout 10s --max-in-flight 4096 --seed 42 \
                  --threshold 'p95 < 200ms'"
                    .replace("\\\n                  ", "")
                    .as_str()
            )
        );
    }

    #[test]
    fn a_mix_is_repeated_with_a_scenario_and_a_stage_with_its_level() {
        let command =
            repeated(|plan| plan.stages = vec![(0.5, 10.0), (90.0, 20.0)]).expect("it can");
        assert!(command.starts_with("cargo bench --bench load -- --scenario FILE"), "{command}");
        assert!(command.contains(" --stages 500ms:10,1m30s:20 --warmup 1s "), "{command}");
        assert!(command.ends_with(" --transport direct --pass-limiter"), "{command}");
    }

    #[test]
    fn no_command_asks_for_recorded_times_or_virtual_ones() {
        assert_eq!(repeated(|plan| plan.arrivals = Some("replay".to_owned())), None);
        assert_eq!(repeated(|plan| plan.virtual_time = true), None);
    }

    #[test]
    fn findings_are_sentences() {
        let report = fixture::passed();
        let run = &report.runs[0];
        assert_eq!(
            run.littles_law.as_ref().map(littles_law).as_deref(),
            Some(
                "Little's law holds: 7.10 in flight on average, 7.00 by rate and service time (\u{b1} 0.40, 240 \
                 samples)"
            )
        );
        assert_eq!(
            run.settling.as_ref().map(settling).as_deref(),
            Some("settled after 250 ms of the measured interval")
        );
        assert_eq!(
            stalls(&run.stalls).as_deref(),
            Some("1 stall, at 2.50 s for 125 ms: 61 of 1,250 requests slow, on 5 routes")
        );
        assert_eq!(stalls(&[]), None);
        assert_eq!(
            pools_at_their_worst(&run.resources),
            [(
                "pool db at its worst, at 0 s".to_owned(),
                "50 of 50 in use, 180 waiting".to_owned()
            )]
        );
    }

    #[test]
    fn pools_of_one_name_are_told_apart_by_their_kind() {
        let mut report = fixture::passed();
        let resources = &mut report.runs[0].resources;
        for row in resources.iter_mut() {
            let other = PoolRow { kind: "redis".to_owned(), waiting: 7, ..row.pools[0].clone() };
            row.pools.push(other);
        }
        let labels: Vec<_> = pools(&*resources).into_iter().map(|pool| pool.label).collect();
        assert_eq!(labels, ["db (sqlx)", "db (redis)"]);
        let worst = pools_at_their_worst(resources);
        assert_eq!(worst[1].0, "pool db (redis) at its worst, at 0 s");
        assert_eq!(worst[1].1, "50 of 50 in use, 7 waiting");
        let page = crate::render::html(&report);
        assert!(page.contains("<b>Pool db (sqlx)</b>"), "{page}");
        assert!(page.contains("<b>Pool db (redis)</b>"), "{page}");
    }
}
