//! The report as one page that needs nothing else: no script, no network, light and dark, on paper.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use parallax_middleware::samples_needed;

use super::{
    Cost, all_routes, backends, by_transport,
    clean::clean_lines,
    cost_in_words, dominance, dominated_tail, judged, load_in_words, mix_in_words, number,
    one_sided, one_view, parts, plan_in_words,
    plot::{self, Course, Limit, Panel, Series},
    requirements as all_requirements, route_views, transports_in_words, unsupported, warmup_begins,
    why, words,
};
use crate::{
    report::{
        Attribution, ClientOutcomes, ClientRoute, Environment, Latency, MemoryModel, PoolRow,
        Report, ResourceRow, Run, ThresholdResult, Unit, Verdict,
    },
    threshold::{Metric, Stat, Threshold},
};

const CSS: &str = include_str!("style.css");

/// The report as a self-contained HTML page: the verdict and the requirements first, then each run with
/// its plots, tables, counts and plan.
#[must_use]
pub fn html(report: &Report) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (report.verdict) ": " (report.title) }
                style { (PreEscaped(CSS)) }
            }
            body {
                main {
                    (headline(report))
                    @if !report.thresholds.is_empty() {
                        h2 { "Requirements" }
                        (requirements(report, &report.thresholds))
                    }
                    @if let Some(model) = &report.memory { (memory(model)) }
                    @for group in by_transport(report) { (cost_table(&group)) }
                    @for run in &report.runs { (run_section(report, run)) }
                    h2 { "Environment and plan" }
                    (environment(&report.environment))
                    @for run in &report.runs { (plan(report, run)) }
                    footer { "Parallax " (report.environment.parallax_version) ", " (report.schema) }
                }
            }
        }
    };
    // What is left is of names: their lines are blanks on a page.
    clean_lines(&page.into_string())
}

fn headline(report: &Report) -> Markup {
    html! {
        header class=(report.verdict) {
            (badge(report.verdict))
            @if let Some(grade) = report.grade { " " span.soft { "grade: " (grade) } }
            h1 { (report.title) }
            p.why { (why(report)) }
            @let (date, time) = number::utc(report.started_at_unix_s);
            p.soft { "Began " (date) " " (time) " UTC." }
        }
        @let doubts = || report.runs.iter().flat_map(|run| {
            run.validity.reasons.iter().map(move |reason| (run, reason))
        });
        @if doubts().next().is_some() {
            ul.reasons {
                @for (run, reason) in doubts() {
                    @let verdict = run.validity.verdict;
                    li class=(verdict) { b { (run.name) ", " (verdict) " (" (reason.rule) ")" } ": " (reason.message) }
                }
            }
        }
        @let hints = || report.runs.iter().flat_map(|run| run.hints.iter().map(move |hint| (run, hint)));
        @if hints().next().is_some() {
            ul.hints {
                @for (run, hint) in hints() {
                    li {
                        b { @if report.runs.len() > 1 { (run.name) ", " } (hint.rule) }
                        ": " (hint.message)
                    }
                }
            }
        }
    }
}

fn requirements(report: &Report, results: &[ThresholdResult]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Requirements" {
            table {
                thead {
                    tr {
                        th scope="col" { "verdict" } th.text scope="col" { "requirement" }
                        (columns(&["observed", "interval", "limit", "margin", "samples"]))
                    }
                }
                tbody {
                    @for result in results {
                        @let (verdict, note) = judged(report, result);
                        tr class=(verdict) {
                            td { (badge(verdict)) }
                            th.text scope="row" {
                                b { (result.expression) }
                                @if !result.run.is_empty() { span.soft { " in " (result.run) } }
                                @if !note.is_empty() { div.note { (note) } }
                            }
                            td { (number::maybe(result.observed, result.unit)) }
                            td { (number::interval(result)) }
                            td { (number::value(result.limit, result.unit)) }
                            td { (margin(result.margin)) }
                            td { (number::count(result.samples)) }
                        }
                    }
                }
            }
        }
    }
}

fn columns(names: &[&str]) -> Markup {
    html! { @for name in names { th scope="col" { (name) } } }
}

/// The figure, and how much of the limit is left as a bar.
fn margin(margin: Option<f64>) -> Markup {
    html! {
        @if let Some(margin) = margin {
            (number::margin(margin))
            span.meter aria-hidden="true" {
                i style={ "width:" (format!("{:.0}", margin.clamp(0.0, 1.0) * 100.0)) "%" } {}
            }
        } @else { (number::NONE) }
    }
}

fn cost_table(costs: &[Cost<'_>]) -> Markup {
    html! {
        h2 { "What each transport costs" }
        div.scroll tabindex="0" role="region" aria-label="What each transport costs" {
            table {
                thead {
                    tr {
                        th.text scope="col" { "transport" }
                        (columns(&["rate", "service time p50", "p99", "outside p50", "p99", "ratio"]))
                    }
                }
                tbody {
                    @for cost in costs {
                        tr {
                            th.text scope="row" { b { (cost.name()) } }
                            @for figure in cost.figures() { td { (figure) } }
                        }
                    }
                }
            }
        }
        p.note { (transports_in_words(costs)) "." }
    }
}

fn run_section(report: &Report, run: &Run) -> Markup {
    html! {
        h2 class=(run.verdict) { "Run " (run.name) " " (badge(run.verdict)) }
        p { (load_in_words(&run.plan)) "." }
        @if run.interrupted { p { "Interrupted after " (number::seconds(run.measured_s)) "." } }
        @if !run.thresholds.is_empty() { (requirements(report, &run.thresholds)) }
        h3 { @if one_sided(run) { "The client's view, by route" } @else { "Both views, by route" } }
        (views(run))
        @if !run.attribution.is_empty() {
            h3 { "Where the time goes" }
            (waterfall(run))
            (attribution(run))
        }
        h3 { "By percentile, and over time" }
        (plots(report, run))
        (steadiness(run))
        h3 { "Where every request went" }
        (conservation(run))
        @if let Some(facts) = process(run) {
            h3 { "The process" }
            (facts)
        }
    }
}

fn plots(report: &Report, run: &Run) -> Markup {
    let series = [
        Series { name: "response time", class: "response", curve: &run.client.response_time.curve },
        Series { name: "service time", class: "service", curve: &run.client.service_time.curve },
        Series { name: "server time", class: "server", curve: &run.pairs.server_time.curve },
    ];
    let parsed: Vec<_> = report
        .thresholds
        .iter()
        .filter(|result| result.run == run.name)
        .chain(&run.thresholds)
        .filter_map(|result| Threshold::parse(&result.expression).ok())
        .collect();
    let limits: Vec<_> = parsed
        .iter()
        .filter(|limit| limit.metric == Metric::ResponseTime && limit.route.is_none())
        .filter_map(|limit| match limit.stat {
            Some(Stat::Quantile(quantile)) => {
                Some(Limit { quantile, us: limit.limit, expression: &limit.expression })
            }
            _ => None,
        })
        .collect();
    let course = course(run);
    let kinds = kinds(run);
    let slots = || run.warmup.iter().chain(&run.timeline);
    html! {
        div.plots {
            figure {
                figcaption {
                    b { "Latency by percentile, successes" }
                    span.response { i.key.response {} "response time (client)" }
                    span.service { i.key.service {} "service time (client)" }
                    span.server { i.key.server {} "server time (layer)" }
                }
                (plot::percentiles(&series, &limits))
            }
            figure {
                figcaption {
                    b { "Response time and rate over time" }
                    span.p99 { i.key.p99 {} "p99" }
                    span.p50 { i.key.p50 {} "p50" }
                    span.rate { i.key.rate {} "successes per second" }
                    @if slots().any(|row| row.failed > 0) {
                        span { i.key.bad {} "failed" }
                    }
                    @if slots().any(|row| row.dropped > 0) {
                        span { i.key.dropped {} "dropped" }
                    }
                    @if !run.warmup.is_empty() { span { i.key.warmup {} "warm-up" } }
                    @if !run.stalls.is_empty() { span { i.key.stall {} "stall" } }
                }
                (plot::over_time(&course))
            }
            @if kinds.iter().any(|kind| *kind != "ok") {
                figure {
                    figcaption {
                        b { "How requests ended, per second" }
                        @for kind in &kinds { span { i class={ "key ended-" (kind) } {} (kind.replace('_', " ")) } }
                    }
                    (plot::outcomes(&course, &kinds))
                }
            }
            @for pool in words::pools(&run.resources) {
                figure {
                    figcaption {
                        b { "Pool " (pool.label) }
                        span.server { i.key.used {} "in use" }
                        span.response { i.key.waiting {} "waiting" }
                        span { i.key.most {} "at most" }
                    }
                    @let label = "Connections in use and requests waiting over time";
                    (plot::panels(label, &course, &pool_panels(run, &pool)))
                }
            }
            @let process = process_panels(report, run);
            @if !process.is_empty() {
                figure {
                    figcaption {
                        b { "The process" }
                        span.response { i.key.cpu {} "processor time" }
                        span.service { i.key.workers {} "workers busy" }
                        span.server { i.key.used {} "others" }
                    }
                    (plot::panels("The process over time", &course, &process))
                }
            }
        }
    }
}

/// The kinds of ends that there were, `dropped` among them; none in a report that does not tell them slot by slot.
fn kinds(run: &Run) -> Vec<&'static str> {
    let slots = || run.warmup.iter().chain(&run.timeline);
    if slots().all(|row| row.outcomes.total() == 0) {
        return Vec::new();
    }
    let ended = (0..ClientOutcomes::default().named().len())
        .filter(|kind| slots().any(|row| row.outcomes.named()[*kind].1 > 0))
        .map(|kind| ClientOutcomes::default().named()[kind].0);
    ended.chain(slots().any(|row| row.dropped > 0).then_some("dropped")).collect()
}

fn course(run: &Run) -> Course<'_> {
    let slots = run.timeline.iter().map(|row| row.at_s + row.width_s);
    Course {
        warmup: &run.warmup,
        begins: warmup_begins(run),
        timeline: &run.timeline,
        stalls: &run.stalls,
        ends: slots.chain(run.resources.iter().map(|row| row.at_s)).fold(0.0, f64::max),
    }
}

/// Who has a connection, and who waits for one: how many wait is of another size, and has a panel of its own.
fn pool_panels(run: &Run, pool: &words::Pool) -> [Panel; 2] {
    let points = |of: fn(&PoolRow) -> u64| {
        let at = |row: &ResourceRow| (row.at_s, pool.at(row).map(|pool| of(pool) as f64));
        run.resources.iter().map(at).collect::<Vec<_>>()
    };
    let most = points(|pool| pool.max).iter().filter_map(|(_, max)| *max).fold(0.0, f64::max);
    [
        Panel {
            title: "connections in use".to_owned(),
            unit: Unit::Count,
            most: (most > 0.0).then_some(most),
            lines: vec![("server", points(|pool| pool.in_use))],
        },
        Panel {
            title: "requests waiting".to_owned(),
            unit: Unit::Count,
            most: None,
            lines: vec![("response", points(|pool| pool.waiting))],
        },
    ]
}

/// What is known of the process over time.
fn process_panels(report: &Report, run: &Run) -> Vec<Panel> {
    let points = |of: &dyn Fn(&ResourceRow) -> Option<f64>| {
        run.resources.iter().map(|row| (row.at_s, of(row))).collect::<Vec<_>>()
    };
    let cpus = report.environment.cpus.max(1) as f64;
    let used = run.resources.windows(2).map(|rows| {
        let share = rows[1].cpu_s.zip(rows[0].cpu_s).map(|(now, before)| {
            ((now - before) / (rows[1].at_s - rows[0].at_s) / cpus).clamp(0.0, 1.0)
        });
        (rows[1].at_s, share.filter(|share| share.is_finite()))
    });
    let panel =
        |title: &str, unit, most, lines| Panel { title: title.to_owned(), unit, most, lines };
    [
        panel(
            "share of the processors, and of the workers' time",
            Unit::Ratio,
            Some(1.0),
            vec![("response", used.collect()), ("service", points(&|row| row.busy_ratio))],
        ),
        panel(
            "resident memory",
            Unit::Bytes,
            None,
            vec![("server", points(&|row| row.rss_bytes.map(|bytes| bytes as f64)))],
        ),
        panel(
            "requests in flight in the generator",
            Unit::Count,
            None,
            vec![("server", points(&|row| Some(row.in_flight as f64)))],
        ),
        panel(
            "latest wake-up of a task",
            Unit::Us,
            None,
            vec![("server", points(&|row| row.canary_us))],
        ),
        panel(
            "tasks in the runtime's queue",
            Unit::Count,
            None,
            vec![("server", points(&|row| row.queue_depth.map(|depth| depth as f64)))],
        ),
    ]
    .into_iter()
    .filter(|panel| {
        panel.lines.iter().any(|(_, points)| points.iter().any(|(_, figure)| figure.is_some()))
    })
    .collect()
}

/// From when on the figures hold, when they did not, and whether they agree with one another.
fn steadiness(run: &Run) -> Markup {
    let sentences = run.settling.iter().map(words::settling);
    let sentences = sentences.chain(words::stalls(&run.stalls));
    let sentences: Vec<_> =
        sentences.chain(run.littles_law.iter().map(words::littles_law)).collect();
    html! {
        @if !sentences.is_empty() {
            ul.flow { @for sentence in &sentences { li { (capital(sentence)) "." } } }
        }
    }
}

fn capital(sentence: &str) -> String {
    let mut rest = sentence.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

fn views(run: &Run) -> Markup {
    let client = &run.client;
    let sides = if one_sided(run) { 2 } else { 4 };
    html! {
        div.scroll tabindex="0" role="region" aria-label="Latency by route" {
            table {
                thead {
                    tr {
                        (columns(&["seen as", "p50", "p90", "p95", "p99", "p99.9", "max", "mean"]))
                    }
                }
                tbody {
                    (block("all routes", client.rate, &client.outcomes, &all_routes(run)[..sides]))
                    @for route in &client.routes {
                        (block(&route.route, route.rate, &route.outcomes, &route_views(route)[..sides]))
                    }
                    tr { th.group colspan="8" scope="colgroup" { "The generator" } }
                    (latency_row("lag", &client.lag, false))
                    @if let Some(gap) = run.generator.as_ref().and_then(|g| g.arrival_gap.as_ref()) {
                        (latency_row("arrival gap", gap, false))
                    }
                    @if let Some(late) = run.generator.as_ref().and_then(|g| g.wake_ups.as_ref()) {
                        (latency_row("wake-up", late, false))
                    }
                    @for (name, latency) in [("rejections", &client.limited), ("failures", &client.failed)] {
                        @if latency.summary.count > 0 { (latency_row(name, latency, false)) }
                    }
                }
            }
        }
        p.note {
            "Response time: intended start to drained body. Service time: the same from the dispatch. "
            "Server time: entry into the layer to end of the body. Outside: service time less server "
            "time of the same request. Successes only. Wake-up: how late a thread of the generator's "
            "was woken."
            @if let Some(cost) = run.generator.as_ref().and_then(cost_in_words) {
                " The generator took " (cost) "."
            }
        }
        @if !run.checks.is_empty() {
            div.scroll tabindex="0" role="region" aria-label="Checks" {
                table {
                    thead {
                        tr {
                            th.text scope="col" { "check" } (columns(&["held", "failed"]))
                            th.text scope="col" { "first failure" }
                        }
                    }
                    tbody {
                        @for check in &run.checks {
                            tr {
                                th.text scope="row" { (check.name) }
                                td { (number::count(check.passed)) }
                                td { (number::count(check.failed)) }
                                td.text { (check.first_failure.as_deref().unwrap_or_default()) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn block(name: &str, rate: f64, outcomes: &ClientOutcomes, rows: &[(&str, &Latency)]) -> Markup {
    html! {
        tr {
            th.group colspan="8" scope="colgroup" {
                (name)
                small {
                    (number::per_second(rate)) ", " (number::count(outcomes.ok)) " ok, "
                    (number::count(outcomes.failed())) " failed"
                    @for (kind, count) in &outcomes.named()[1..] {
                        @if *count > 0 { ", " (number::count(*count)) " " (kind.replace('_', " ")) }
                    }
                    // The first view tells what is missing in all of them.
                    @for (percentile, q) in unsupported(rows[0].1) {
                        "; " (percentile) " n/a (needs " (number::count(samples_needed(q))) " samples)"
                    }
                }
            }
        }
        @for (index, (label, latency)) in rows.iter().enumerate() {
            (latency_row(label, latency, index == 0))
        }
    }
}

fn latency_row(label: &str, latency: &Latency, first: bool) -> Markup {
    let summary = &latency.summary;
    let figures = [
        summary.p50_us,
        summary.p90_us,
        summary.p95_us,
        summary.p99_us,
        summary.p999_us,
        summary.max_us,
        summary.mean_us,
    ];
    html! {
        tr.first[first] {
            th.view scope="row" { (label) }
            @if summary.count == 0 {
                td.soft colspan="7" { "no samples" }
            } @else {
                @for us in figures {
                    @if let Some(us) = us { td { (number::duration(us)) } }
                    @else { td.soft { "n/a" } }
                }
            }
        }
    }
}

/// The time of the requests around p99, one part after the other, as a request goes through them.
fn waterfall(run: &Run) -> Markup {
    let groups = &run.attribution;
    let distance = |group: &Attribution| (group.quantile - 0.99).abs();
    let tail = groups.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
    let Some(tail) = tail else { return Markup::default() };
    let mut steps: Vec<_> = parts(groups)
        .into_iter()
        .enumerate()
        .map(|(position, part)| (position, part, tail.shares.get(part).copied().unwrap_or(0.0)))
        .filter(|(_, _, share)| *share >= 0.001)
        .collect();
    steps.sort_by_key(|(position, part, _)| (stage(part), *position));
    let mut begin = 0.0;
    let steps = steps.into_iter().map(|(position, part, share)| {
        begin += share;
        (position, part, share, begin - share)
    });
    let percent = |share: f64| format!("{:.2}%", share.clamp(0.0, 1.0) * 100.0);
    html! {
        p {
            b { "A request around " (number::percentile(tail.quantile)) } " takes "
            (number::duration(tail.response_us)) ":"
        }
        div.waterfall {
            @for (position, part, share, left) in steps {
                span { (part) }
                div aria-hidden="true" {
                    @let place = format!("left:{};width:{}", percent(left), percent(share));
                    i class={ "part-" (position.min(7)) } style=(place) {}
                    @if let (Some(low), Some(high)) = (tail.low.get(part), tail.high.get(part)) {
                        s style={ "left:" (percent(left + low)) ";width:" (percent(high - low)) } {}
                    }
                }
                span {
                    (number::duration(tail.response_us * share)) ", " (number::share(share))
                    @if let (Some(low), Some(high)) = (tail.low.get(part), tail.high.get(part)) {
                        small { " (" (number::share(*low)) " to " (number::share(*high)) ")" }
                    }
                }
            }
        }
    }
}

/// How early a request is in a part of its time. Phases may come in any order and more than once: this one is usual.
fn stage(part: &str) -> u8 {
    let kind = part.split(':').next().unwrap_or(part);
    match kind {
        "lag" => 0,
        "runtime" => 1,
        "outside" => 2,
        "limiter" => 3,
        "pool_wait" => 4,
        "query" => 5,
        "cache" => 6,
        "handler" => 8,
        _ => 7,
    }
}

/// A bar for each quantile, as long as the time around it against the longest, made of the parts' shares.
fn attribution(run: &Run) -> Markup {
    let groups = &run.attribution;
    let parts = parts(groups);
    let longest = groups.iter().map(|group| group.response_us).fold(0.0, f64::max);
    let percent = |ratio: f64| format!("{:.2}%", ratio * 100.0);
    let class = |position: usize| format!("part-{}", position.min(7));
    html! {
        p { (dominance("All routes", groups)) "." }
        @for route in &run.client.routes {
            @if let Some(tail) = dominated_tail(&route.attribution) {
                p { (dominance(&route.route, tail)) "." }
            }
        }
        div.shares role="img" aria-label="Shares of the response time around each quantile; the table has the figures" {
            @for group in groups {
                span { (number::percentile(group.quantile)) }
                div {
                    div style={ "width:" (percent(group.response_us / longest.max(1e-9))) } {
                        @for (position, part) in parts.iter().enumerate() {
                            @let share = group.shares.get(*part).copied().unwrap_or(0.0);
                            i class=(class(position)) style={ "width:" (percent(share)) }
                                title={ (part) ": " (number::share(share)) } {}
                        }
                    }
                }
                span { (number::duration(group.response_us)) }
            }
        }
        div.scroll tabindex="0" role="region" aria-label="Shares of the response time" {
            table {
                thead {
                    tr {
                        th.text scope="col" { "part of the response time" }
                        @for group in groups { th scope="col" { (number::percentile(group.quantile)) } }
                    }
                }
                tbody {
                    tr {
                        th.text scope="row" { "response time around it" }
                        @for group in groups { td { (number::duration(group.response_us)) } }
                    }
                    @for (position, part) in parts.iter().enumerate() {
                        tr {
                            th.text scope="row" { i class={ "key " (class(position)) } {} " " (part) }
                            @for group in groups {
                                td {
                                    (number::share(group.shares.get(*part).copied().unwrap_or(0.0)))
                                    @if let (Some(low), Some(high)) = (group.low.get(*part), group.high.get(*part)) {
                                        div.soft { (number::share(*low)) " to " (number::share(*high)) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
        p.note {
            "Of the requests around each quantile of the response time. Handler: the time in the layer that is "
            "in no phase. Runtime: the wait for a worker of the service's runtime. Below a share, its interval: each end is wrong with a probability of 5 %."
        }
    }
}

fn conservation(run: &Run) -> Markup {
    let (n, counts) = (number::count, &run.conservation);
    html! {
        ul.flow {
            li {
                "scheduled " b { (n(counts.scheduled)) } " = dropped " b { (n(counts.dropped)) }
                " + sent " b { (n(counts.sent)) } " + unsent " b { (n(counts.unsent)) }
            }
            li {
                "sent " b { (n(counts.sent)) } " = "
                @for (kind, count) in counts.outcomes.named() {
                    @if count > 0 || kind == "ok" { (kind.replace('_', " ")) " " b { (n(count)) } " + " }
                }
                "in flight " b { (n(counts.in_flight)) }
                @for error in &run.errors { div.note { (n(error.count)) " \u{d7} " (error.message) } }
            }
            @if let Some(connections) = run.connections {
                li { "connections opened " b { (n(connections)) } }
            }
            @if let Some(server) = &counts.server {
                li {
                    "layer saw " b { (n(server.entered)) } ", recorded " b { (n(server.recorded)) }
                    "; sent but not seen " b { (n(server.not_seen)) } "; of other clients "
                    b { (n(server.foreign)) }
                }
            } @else {
                li.soft { (one_view(&run.pairs)) }
            }
            li { "unexplained " b { (n(counts.unexplained)) } }
        }
        (conservation_by_route(&run.client.routes))
    }
}

fn conservation_by_route(routes: &[ClientRoute]) -> Markup {
    let rows =
        || routes.iter().filter_map(|route| Some((&route.route, route.conservation.as_ref()?)));
    html! {
        @if rows().next().is_some() {
            div.scroll tabindex="0" role="region" aria-label="Requests on both sides, by route" {
                table {
                    thead {
                        tr {
                            th.text scope="col" { "route" }
                            (columns(&[
                                "ended (client)", "recorded (layer)", "not seen", "of others", "timed out",
                                "unexplained",
                            ]))
                        }
                    }
                    tbody {
                        @for (route, both) in rows() {
                            tr {
                                th.text scope="row" { (route) }
                                td { (number::count(both.finished)) }
                                td { (number::count(both.recorded)) }
                                td { (number::count(both.not_seen)) }
                                td { (number::count(both.foreign)) }
                                td { (number::count(both.timed_out)) }
                                td.wrong[both.unexplained > 0] { (number::count(both.unexplained)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `None` if nothing is known.
fn process(run: &Run) -> Option<Markup> {
    let server = run.server.as_ref()?;
    let busy =
        server.runtime.as_ref().and_then(|runtime| Some((runtime.workers, runtime.busy_ratio?)));
    let rss = run.resources.iter().filter_map(|row| row.rss_bytes);
    let peak = rss.chain(server.process.rss_bytes).max();
    Some(html! {
        dl {
            @if let Some(bytes) = peak { dt { "peak resident memory" } dd { (number::bytes(bytes as f64)) } }
            @if let Some(cpu_s) = server.process.cpu_s {
                dt { "processor time" } dd { (number::seconds(cpu_s)) }
            }
            @if let Some((workers, ratio)) = busy {
                dt { "workers busy" } dd { (number::percent(ratio)) " of " (workers) }
            }
            @if let Some(limiter) = &server.limiter {
                dt { "limiter" }
                dd {
                    "admitted " (number::count(limiter.admitted)) ", refused "
                    (number::count(limiter.limited)) ", passed by " (number::count(limiter.bypassed))
                }
            }
            @for (name, figures) in backends(server).into_iter().chain(words::pools_at_their_worst(&run.resources)) {
                dt { (name) } dd { (figures) }
            }
            dt { "pairs" }
            dd {
                (number::count(run.pairs.paired)) " seen from both sides, "
                (number::count(run.pairs.negative)) " with a server time over the service time"
            }
        }
    })
}

fn memory(model: &MemoryModel) -> Markup {
    let sizes = || model.points.iter().map(|(entities, _)| *entities);
    let bytes = |value| number::value(value, Unit::Bytes);
    html! {
        h2 { "Memory" }
        dl {
            dt { "model" }
            dd {
                (bytes(model.base_bytes)) " + " (bytes(model.bytes_per_entity)) " for each entity ("
                (bytes(model.theil_sen_bytes_per_entity)) " by Theil-Sen)"
            }
            dt { "measured" }
            dd {
                (model.points.len()) " processes with " (number::count(sizes().min().unwrap_or(0)))
                " to " (number::count(sizes().max().unwrap_or(0))) " entities"
            }
            dt { "at " (number::count(model.projected_entities)) " entities" }
            dd {
                b { (bytes(model.projected_bytes)) } ", between " (bytes(model.low_bytes)) " and "
                (bytes(model.high_bytes)) " with 95 % confidence (" (model.reach) ")"
            }
        }
    }
}

fn environment(environment: &Environment) -> Markup {
    html! {
        dl {
            dt { "machine" }
            dd { (environment.os) " " (environment.arch) ", " (environment.cpus) " processors" }
            dt { "runtime" }
            dd { (environment.workers) " workers, " (environment.profile) " build" }
            @for (name, value) in &environment.settings { dt { (name) } dd { (value) } }
        }
    }
}

/// What it takes to run it again.
fn plan(report: &Report, run: &Run) -> Markup {
    let of_run = all_requirements(report).filter(|result| result.run == run.name);
    html! {
        h3 { "Run " (run.name) }
        p { (plan_in_words(&run.plan)) "." }
        p.soft { (mix_in_words(&run.plan)) "." }
        @if let Some((command, untold)) = words::repetition(&run.plan, of_run) {
            pre { (command) }
            p.note { "Again: " (untold) "." }
        }
    }
}

fn badge(verdict: Verdict) -> Markup {
    html! { span class={ "badge " (verdict) } { (verdict) } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{render::fixture, report::Check};

    #[test]
    fn names_cannot_become_markup() {
        let page = html(&fixture::hostile_and_empty());
        assert!(!page.contains("<script"), "a name became an element");
        assert!(page.contains("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;"));
    }

    #[test]
    fn each_part_of_the_time_has_its_colour_beside_its_name() {
        let page = html(&fixture::passed());
        assert!(page.contains(r#"<i class="key part-0"></i> pool_wait:db"#), "{page}");
    }

    #[test]
    fn the_page_needs_nothing_from_outside() {
        for report in [fixture::passed(), fixture::invalid(), fixture::hostile_and_empty()] {
            let page = html(&report);
            for reference in ["http:", "https:", "src=", "href=", "@import", "url("] {
                assert!(!page.contains(reference), "{reference}");
            }
            assert!(!page.contains("NaN"));
            assert_eq!(page, html(&report));
        }
    }

    #[test]
    fn the_verdict_and_its_reasons_come_before_any_figure() {
        let page = html(&fixture::invalid());
        let position = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} is missing"));
        assert!(position("The figures cannot be believed") < position("Requirements"));
        assert!(position("91.2 % of requests were rejected") < position("Requirements"));
        assert!(position("Requirements") < position("Run closed"));
    }

    #[test]
    fn a_doubtful_run_is_called_that() {
        let page = html(&fixture::doubtful());
        assert!(
            page.contains("<li class=\"inconclusive\"><b>open, inconclusive (lag)</b>: the gen"),
            "{page}"
        );
    }

    #[test]
    fn what_was_found_of_an_invalid_run_is_neither_held_nor_missed() {
        let report = fixture::invalid();
        let of_the_run = report.thresholds.iter().filter(|result| result.run == "open").count();
        let page = html(&report);
        assert!(of_the_run > 1);
        assert_eq!(
            page.matches("<div class=\"note\">the run's figures cannot be believed</div>").count(),
            of_the_run
        );
        assert_eq!(page.matches("<tr class=\"invalid\">").count(), of_the_run);
        assert!(!page.contains("<tr class=\"fail\">"));
    }

    #[test]
    fn a_run_shows_its_plots_with_their_limit() {
        let page = html(&fixture::passed());
        // By percentile, over time, the pool, the process.
        assert_eq!(page.matches("<svg").count(), 2 * 4);
        assert!(page.contains("limit: p95 &lt; 200ms"));
        assert!(page.contains("n/a (needs 3,000 samples)"));
    }

    #[test]
    fn what_explains_the_figures_comes_right_below_the_verdict() {
        let page = html(&fixture::passed());
        let position = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} is missing"));
        let in_order = [
            "All 4 requirements hold",
            "<b>closed, pool</b>: p99 of GET /search: 71 %",
            "<h2>Requirements</h2>",
            "Both views, by route",
            "<div class=\"waterfall\"",
            "Latency by percentile",
            "<b>Pool db</b>",
            "Settled after 250 ms",
            "Where every request went",
            "recorded (layer)",
            "Environment and plan",
            "cargo bench --bench load",
        ];
        let in_order = in_order.map(position);
        assert!(in_order.is_sorted(), "{in_order:?}");
    }

    #[test]
    fn tables_are_read_out_with_their_heads_and_scrolled_by_keys() {
        let mut report = fixture::transports();
        report.runs[0].checks = vec![Check { name: "body".to_owned(), ..Check::default() }];
        let page = html(&report);
        assert!(!page.contains("<th></th>") && !page.contains("<th>"), "{page}");
        for head in page.split("<th ").skip(1).map(|rest| rest.split_once('>').expect("an end").0) {
            assert!(head.contains("scope="), "{head}");
        }
        for row in page.split("<tr").skip(1) {
            assert!(row.contains("<th "), "no name of a row: {row}");
        }
        for region in page.split("class=\"scroll\"").skip(1) {
            assert!(
                region.starts_with(" tabindex=\"0\" role=\"region\" aria-label=\""),
                "{region}"
            );
        }
        // The parts of a slow request are text, and their bars nothing.
        assert!(page.contains("<div class=\"waterfall\"><span>"), "{page}");
        assert!(page.contains("<div aria-hidden=\"true\"><i class=\"part-"), "{page}");
        assert!(page.contains("response time around it</th><td>"), "{page}");
    }

    #[test]
    fn the_tail_is_a_waterfall_in_the_order_of_a_request() {
        let page = html(&fixture::passed());
        let begin = page.rfind("<div class=\"waterfall\"").expect("it is there");
        let waterfall =
            &page[begin..page[begin..].find("<div class=\"shares\"").expect("its end") + begin];
        let parts: Vec<_> = ["lag", "pool_wait:db", "query:db", "handler"]
            .map(|part| waterfall.find(&format!("<span>{part}</span>")).expect(part))
            .into();
        assert!(parts.is_sorted(), "{waterfall}");
        let order = [
            "lag",
            "runtime",
            "outside",
            "limiter",
            "pool_wait:a",
            "query:a",
            "cache:b",
            "render",
            "handler",
        ];
        assert!(order.map(stage).is_sorted());
        assert!(waterfall.contains("left:0.00%") && waterfall.contains("<small> ("), "{waterfall}");
    }

    #[test]
    fn ends_are_drawn_where_they_differ_and_old_reports_have_none() {
        let mut report = fixture::passed();
        report.runs[0].timeline[3].outcomes.timeout = 7;
        report.runs[0].timeline[4].dropped = 9;
        let page = html(&report);
        assert_eq!(
            page.matches("How requests ended").count(),
            2,
            "a figure and its name for those who do not see it"
        );
        assert!(
            page.contains("<polygon class=\"ended-timeout\"")
                && page.contains("<polygon class=\"ended-dropped\"")
        );
        let run = &mut report.runs[0];
        for row in run.timeline.iter_mut().chain(&mut run.warmup) {
            row.outcomes = ClientOutcomes::default();
        }
        assert!(!html(&report).contains("How requests ended"));
    }

    #[test]
    fn runs_that_differ_in_their_transport_alone_are_laid_side_by_side() {
        let page = html(&fixture::transports());
        assert!(page.contains("What each transport costs"));
        assert!(page.contains("<b>tcp:h2, invalid</b>"));
        assert!(!html(&fixture::passed()).contains("What each transport costs"));
    }
}
