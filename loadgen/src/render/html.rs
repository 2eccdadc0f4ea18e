//! The report as one page that needs nothing else: no script, no network, light and dark, on paper.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use parallax_middleware::samples_needed;

use super::{
    Cost, all_routes, backends, by_transport, cost_in_words, dominance, dominated_tail,
    mix_in_words, number, one_view, parts, plan_in_words,
    plot::{self, Limit, Series},
    route_views, transports_in_words, unsupported, why,
};
use crate::{
    report::{
        ClientOutcomes, ClientRoute, Environment, Latency, MemoryModel, Report, Run,
        ThresholdResult, Unit, Verdict,
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
                        (requirements(&report.thresholds))
                    }
                    @if let Some(model) = &report.memory { (memory(model)) }
                    @for group in by_transport(report) { (cost_table(&group)) }
                    @for run in &report.runs { (run_section(report, run)) }
                    h2 { "Environment" }
                    (environment(&report.environment))
                    footer { "Parallax " (report.environment.parallax_version) ", " (report.schema) }
                }
            }
        }
    };
    page.into_string()
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
        @let invalid = || report.runs.iter().flat_map(|run| {
            run.validity.reasons.iter().map(move |reason| (run, reason))
        });
        @if invalid().next().is_some() {
            ul.reasons {
                @for (run, reason) in invalid() {
                    li { b { (run.name) ", " (reason.rule) } ": " (reason.message) }
                }
            }
        }
    }
}

fn requirements(results: &[ThresholdResult]) -> Markup {
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        th { "verdict" } th.text { "requirement" } th { "observed" }
                        th { "interval" } th { "limit" } th { "margin" } th { "samples" }
                    }
                }
                tbody {
                    @for result in results {
                        tr class=(result.verdict) {
                            td { (badge(result.verdict)) }
                            td.text {
                                b { (result.expression) }
                                @if !result.run.is_empty() { span.soft { " in " (result.run) } }
                                @if !result.note.is_empty() { div.note { (result.note) } }
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
        div.scroll {
            table {
                thead {
                    tr {
                        th.text { "transport" } th { "rate" } th { "service time p50" } th { "p99" }
                        th { "outside p50" } th { "p99" } th { "ratio" }
                    }
                }
                tbody {
                    @for cost in costs {
                        tr {
                            td.text { b { (cost.name()) } }
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
        p { (plan_in_words(&run.plan)) "." }
        p.soft { (mix_in_words(&run.plan)) "." }
        @if run.interrupted { p { "Interrupted after " (number::seconds(run.measured_s)) "." } }
        (plots(report, run))
        @if !run.thresholds.is_empty() { (requirements(&run.thresholds)) }
        h3 { "Both views, by route" }
        (views(run))
        @if !run.attribution.is_empty() {
            h3 { "Where the time goes" }
            (attribution(run))
        }
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
                    @if run.timeline.iter().any(|row| row.failed + row.dropped > 0) {
                        span { i.key.bad {} "failed or dropped per second" }
                    }
                }
                (plot::over_time(&run.timeline))
            }
        }
    }
}

fn views(run: &Run) -> Markup {
    let client = &run.client;
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        th {} th { "p50" } th { "p90" } th { "p95" } th { "p99" } th { "p99.9" }
                        th { "max" } th { "mean" }
                    }
                }
                tbody {
                    (block("all routes", client.rate, &client.outcomes, &all_routes(run)))
                    @for route in &client.routes { (route_block(route)) }
                    tr { th colspan="8" { "The generator" } }
                    (latency_row("lag", &client.lag, false))
                    @if let Some(gap) = run.generator.as_ref().and_then(|g| g.arrival_gap.as_ref()) {
                        (latency_row("arrival gap", gap, false))
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
            "time of the same request. Successes only."
            @if let Some(cost) = run.generator.as_ref().and_then(cost_in_words) {
                " The generator took " (cost) "."
            }
        }
        @if !run.checks.is_empty() {
            div.scroll {
                table {
                    thead { tr { th.text { "check" } th { "held" } th { "failed" } th.text { "first failure" } } }
                    tbody {
                        @for check in &run.checks {
                            tr {
                                td.text { (check.name) }
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

fn route_block(route: &ClientRoute) -> Markup {
    block(&route.route, route.rate, &route.outcomes, &route_views(route))
}

fn block(name: &str, rate: f64, outcomes: &ClientOutcomes, rows: &[(&str, &Latency)]) -> Markup {
    html! {
        tr {
            th colspan="8" {
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
            td.view { (label) }
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
        div.scroll {
            table {
                thead {
                    tr {
                        th.text { "part of the response time" }
                        @for group in groups { th { (number::percentile(group.quantile)) } }
                    }
                }
                tbody {
                    @for (position, part) in parts.iter().enumerate() {
                        tr {
                            td.text { i class={ "key " (class(position)) } {} " " (part) }
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
            "in no phase. Below a share, its interval: each end is wrong with a probability of 5 %."
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
            @for text in backends(server) {
                @let (name, figures) = text.split_once(": ").unwrap_or(("", &text));
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

fn badge(verdict: Verdict) -> Markup {
    html! { span class={ "badge " (verdict) } { (verdict) } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::fixture;

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
    fn a_run_shows_two_plots_with_their_limit() {
        let page = html(&fixture::passed());
        assert_eq!(page.matches("<svg").count(), 4);
        assert!(page.contains("limit: p95 &lt; 200ms"));
        assert!(page.contains("n/a (needs 3,000 samples)"));
    }

    #[test]
    fn runs_that_differ_in_their_transport_alone_are_laid_side_by_side() {
        let page = html(&fixture::transports());
        assert!(page.contains("What each transport costs"));
        assert!(page.contains("<b>tcp:h2, invalid</b>"));
        assert!(!html(&fixture::passed()).contains("What each transport costs"));
    }
}
