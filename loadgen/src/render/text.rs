//! The report on a terminal: 80 columns wide, or as wide as there is room.

use std::{fmt::Write, ops::RangeInclusive};

use anstyle::{AnsiColor, Effects};
use parallax_middleware::{LatencySummary, samples_needed};
use unicode_width::UnicodeWidthStr;

use super::{
    Cost, all_routes, backends, by_transport, clean::clean, cost_in_words, dominance,
    dominated_tail, load_in_words, mix_in_words, number, one_sided, one_view, parts, plan_in_words,
    route_views, transports_in_words, unsupported, why, words,
};
use crate::report::{
    Attribution, Check, ClientOutcomes, Environment, Latency, MemoryModel, Report, Run,
    ThresholdResult, TimelineRow, Unit, Verdict,
};

/// How a text is dressed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Style {
    /// Colours and weights, as ANSI sequences.
    pub color: bool,
    /// Columns, taken as 80 to 160. From 110 on, distributions have more figures.
    pub width: usize,
}

impl Default for Style {
    /// No colours, 80 columns.
    fn default() -> Self {
        Self { color: false, width: *WIDTHS.start() }
    }
}

/// The report for a terminal: the verdict and why, each run with both views, the verdict again. No
/// line is longer than the style's width.
#[must_use]
pub fn text(report: &Report, style: Style) -> String {
    let mut page = Page::new(style);
    page.headline(report);
    page.environment(&report.environment);
    page.requirements("Requirements", report, &report.thresholds);
    for group in by_transport(report) {
        page.costs(&group);
    }
    for run in &report.runs {
        page.run(report, run);
    }
    if let Some(memory) = &report.memory {
        page.memory(memory);
    }
    page.closing(report);
    page.out
}

/// What did not hold, for the message of a test that fails: the verdict and why, the requirements that do not
/// hold, what explains it, and both views of each run. Dressed as [`text()`] is.
#[must_use]
pub fn summary(report: &Report, style: Style) -> String {
    let mut page = Page::new(style);
    page.headline(report);
    let missed: Vec<_> = super::requirements(report)
        .filter(|result| super::judged(report, result).0 != Verdict::Pass)
        .collect();
    page.requirements("Requirements that do not hold", report, missed);
    for run in &report.runs {
        page.run_in_short(run);
    }
    page.out
}

/// What [`summary()`] says of one run.
pub(super) fn run_in_short(run: &Run) -> String {
    let mut page = Page::new(Style::default());
    page.run_in_short(run);
    page.out
}

const WIDTHS: RangeInclusive<usize> = 80..=160;
/// From so many columns on there are more figures of a distribution.
const WIDE: usize = 110;
/// Columns of a figure of a distribution.
const CELL: usize = 10;
/// Columns of a rate beside them.
const COST_RATE: usize = 11;
/// Columns before the figures of a distribution.
const LABEL: usize = 20;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The name of a figure, and how it is taken out of a distribution.
type Column = (&'static str, fn(&LatencySummary) -> Option<String>);

const PLAIN: anstyle::Style = anstyle::Style::new();
const BOLD: anstyle::Style = anstyle::Style::new().bold();
const DIM: anstyle::Style = anstyle::Style::new().effects(Effects::DIMMED);

struct Page {
    out: String,
    color: bool,
    width: usize,
}

impl Page {
    fn new(style: Style) -> Self {
        let width = style.width.clamp(*WIDTHS.start(), *WIDTHS.end());
        Self { out: String::new(), color: style.color, width }
    }

    fn headline(&mut self, report: &Report) {
        let grade = report.grade.map_or_else(String::new, |grade| format!("grade: {grade}"));
        let verdict = report.verdict.to_string().to_uppercase();
        let room = self.width - verdict.len() - 2 - grade.len() - 2;
        let title = fitted(&report.title, room);
        let gap = " ".repeat(room - width(&title) + 2);
        let verdict = self.paint(verdict_style(report.verdict).bold(), &verdict);
        let title = self.paint(BOLD, &title);
        self.line(format!("{verdict}  {title}{gap}{grade}").trim_end());
        self.wrapped(0, PLAIN, &why(report));
    }

    fn environment(&mut self, environment: &Environment) {
        let machine = format!(
            "{} {}, {} processors, {} workers, {} build, Parallax {}",
            environment.os,
            environment.arch,
            environment.cpus,
            environment.workers,
            environment.profile,
            environment.parallax_version
        );
        self.wrapped(0, DIM, &machine);
        if !environment.settings.is_empty() {
            let settings: Vec<_> = environment
                .settings
                .iter()
                .map(|(name, value)| format!("{name}: {value}"))
                .collect();
            self.wrapped(0, DIM, &settings.join("; "));
        }
    }

    fn requirements<'r>(
        &mut self,
        title: &str,
        report: &Report,
        results: impl IntoIterator<Item = &'r ThresholdResult>,
    ) {
        let mut results = results.into_iter().peekable();
        if results.peek().is_none() {
            return;
        }
        self.section(title, None);
        let head = figures("observed", "interval", "limit", "margin");
        let head = self.row("", &head);
        self.painted(DIM, &head);
        let mut before = None;
        for result in results {
            if before != Some(&result.run) {
                let on = &result.run;
                before = Some(on);
                let run = if on.is_empty() { "  of the whole" } else { &format!("  in {on}") };
                self.painted(DIM, &fitted(run, self.width));
            }
            let label = clean(&result.expression);
            let figures = figures(
                &number::maybe(result.observed, result.unit),
                &number::interval(result),
                &number::value(result.limit, result.unit),
                &result.margin.map_or_else(|| number::NONE.to_owned(), number::margin),
            );
            // A blank on either side of the label; what leaves no room for it goes below it.
            let own_line = width(&label) + 2 + width(&figures) >= self.figures_end();
            if own_line {
                self.painted(PLAIN, &format!("  {}", fitted(&label, self.width - 2)));
            }
            let (verdict, note) = super::judged(report, result);
            let judged = self.paint(verdict_style(verdict), &verdict.to_string());
            let row = self.row(if own_line { "" } else { &label }, &figures);
            self.line(&format!("{row} {judged}"));
            if verdict != Verdict::Pass && !note.is_empty() {
                self.wrapped(4, DIM, note);
            }
        }
    }

    fn costs(&mut self, costs: &[Cost<'_>]) {
        self.section("What each transport costs", None);
        let width = self.width;
        let row = |name: &str, [rate, figures @ ..]: [&str; 6]| {
            let figures: String = figures.into_iter().map(cell).collect();
            let room = width - 5 * CELL - COST_RATE;
            format!("  {} {rate:>COST_RATE$}{figures}", padded(name, room - 3))
        };
        let above =
            format!("{:>1$}{2:>3$}", "service time", self.width - 3 * CELL, "outside", 2 * CELL);
        self.painted(DIM, &above);
        self.painted(DIM, &row("", ["rate", "p50", "p99", "p50", "p99", "ratio"]));
        for cost in costs {
            let figures = cost.figures();
            self.line(&row(&cost.name(), figures.each_ref().map(String::as_str)));
        }
        self.wrapped(2, DIM, &transports_in_words(costs));
    }

    fn run(&mut self, report: &Report, run: &Run) {
        self.section(&format!("Run {}", run.name), Some(run.verdict));
        self.wrapped(2, PLAIN, &plan_in_words(&run.plan));
        self.wrapped(2, PLAIN, &mix_in_words(&run.plan));
        if run.interrupted {
            let text = format!("interrupted after {}", number::seconds(run.measured_s));
            self.wrapped(2, PLAIN, &text);
        }
        self.findings(run);
        self.both_views(run);
        let client = &run.client;
        self.out.push('\n');
        self.painted(BOLD, "  the generator");
        self.latency("lag", &client.lag);
        if let Some(generator) = &run.generator {
            if let Some(gap) = &generator.arrival_gap {
                self.latency("arrival gap", gap);
            }
            if let Some(wake_ups) = &generator.wake_ups {
                self.latency("wake-up", wake_ups);
            }
            if let Some(cost) = cost_in_words(generator) {
                self.wrapped(4, DIM, &cost);
            }
        }
        for (name, latency) in [("rejections", &client.limited), ("failures", &client.failed)] {
            if latency.summary.count > 0 {
                self.latency(name, latency);
            }
        }
        self.checks(&run.checks);
        self.attribution(run);
        self.over_time(run);
        self.conservation(run);
        self.process(run);
        self.requirements(&format!("Requirements of {}", run.name), report, &run.thresholds);
    }

    fn run_in_short(&mut self, run: &Run) {
        self.section(&format!("Run {}", run.name), Some(run.verdict));
        self.wrapped(2, PLAIN, &load_in_words(&run.plan));
        self.findings(run);
        if run.conservation.unexplained > 0 {
            let text =
                format!("unexplained requests: {}", number::count(run.conservation.unexplained));
            self.wrapped(2, verdict_style(Verdict::Invalid), &text);
        }
        for text in words::failures(run) {
            self.wrapped(2, verdict_style(Verdict::Fail), &text);
        }
        self.both_views(run);
    }

    /// Why the run is not valid, or may not be, and what explains its figures.
    fn findings(&mut self, run: &Run) {
        let verdict = run.validity.verdict;
        for reason in &run.validity.reasons {
            let text = format!("{verdict} ({}): {}", reason.rule, reason.message);
            self.wrapped(2, verdict_style(verdict), &text);
        }
        for hint in &run.hints {
            self.wrapped(2, BOLD, &format!("hint ({}): {}", hint.rule, hint.message));
        }
    }

    /// All routes and each of them, as the client and as the layer saw them.
    fn both_views(&mut self, run: &Run) {
        let client = &run.client;
        self.out.push('\n');
        let head: String = self.columns().map(|(name, _)| cell(name)).collect();
        self.painted(DIM, &format!("{:LABEL$}{head}", ""));
        let sides = if one_sided(run) { 2 } else { 4 };
        self.views("all routes", client.rate, &client.outcomes, &all_routes(run)[..sides]);
        for route in &client.routes {
            self.views(&route.route, route.rate, &route.outcomes, &route_views(route)[..sides]);
        }
    }

    /// One block: the name and its counts, then a line for each view.
    fn views(
        &mut self,
        name: &str,
        rate: f64,
        outcomes: &ClientOutcomes,
        views: &[(&str, &Latency)],
    ) {
        let counts = format!(
            "{}   {} ok   {} failed",
            number::per_second(rate),
            number::count(outcomes.ok),
            number::count(outcomes.failed())
        );
        let room = (self.width - 2).saturating_sub(counts.len() + 2);
        let name = fitted(name, room);
        let gap = " ".repeat(room + 2 - width(&name));
        let name = self.paint(BOLD, &name);
        self.line(&format!("  {name}{gap}{counts}"));
        if views.iter().all(|(_, latency)| latency.summary.count == 0) {
            self.painted(DIM, "    no success, so no times");
            return;
        }
        for (label, latency) in views {
            self.latency(label, latency);
        }
        // The first view tells what is missing in all of them.
        let missing: Vec<_> = unsupported(views[0].1)
            .map(|(name, q)| {
                format!("{name} n/a (needs {} samples)", number::count(samples_needed(q)))
            })
            .collect();
        if !missing.is_empty() {
            self.wrapped(4, DIM, &missing.join(", "));
        }
    }

    fn latency(&mut self, label: &str, latency: &Latency) {
        let summary = &latency.summary;
        let label = format!("    {label:<width$}", width = LABEL - 4);
        if summary.count == 0 {
            let none = self.paint(DIM, &format!("{:>CELL$}", "no samples"));
            self.line(&format!("{label}{none}"));
            return;
        }
        let figures: String = self
            .columns()
            .map(|(_, figure)| cell(figure(summary).as_deref().unwrap_or("n/a")))
            .collect();
        self.line(&format!("{label}{figures}"));
    }

    /// The figures of a distribution that there is room for.
    fn columns(&self) -> impl Iterator<Item = Column> + use<> {
        let wide = self.width >= WIDE;
        fn time(us: Option<f64>) -> Option<String> {
            us.map(number::duration)
        }
        let more: [Column; 3] = [
            ("samples", |of| Some(number::count(of.count))),
            ("mean", |of| time(of.mean_us)),
            ("min", |of| time(of.min_us)),
        ];
        let always: [Column; 6] = [
            ("p50", |of| time(of.p50_us)),
            ("p90", |of| time(of.p90_us)),
            ("p95", |of| time(of.p95_us)),
            ("p99", |of| time(of.p99_us)),
            ("p99.9", |of| time(of.p999_us)),
            ("max", |of| time(of.max_us)),
        ];
        more.into_iter().filter(move |_| wide).chain(always)
    }

    fn checks(&mut self, checks: &[Check]) {
        if checks.is_empty() {
            return;
        }
        self.painted(BOLD, "  checks");
        for check in checks {
            let total = number::count(check.passed.saturating_add(check.failed));
            let counts = format!("{} of {total} held", number::count(check.passed));
            let style = if check.failed == 0 { PLAIN } else { verdict_style(Verdict::Fail) };
            self.wrapped(4, style, &format!("{}: {counts}", check.name));
            if let Some(failure) = &check.first_failure {
                self.wrapped(6, DIM, &format!("first failure: {failure}"));
            }
        }
    }

    /// The share of each part of the response times around each quantile, and what is shown to dominate.
    fn attribution(&mut self, run: &Run) {
        if run.attribution.is_empty() {
            return;
        }
        self.out.push('\n');
        let groups = &run.attribution[..run.attribution.len().min((self.width - 30) / CELL)];
        let room = self.width - CELL * groups.len().max(4);
        let label = |text: &str| format!("{} ", padded(text, room - 1));
        let cells = |of: &dyn Fn(&Attribution) -> String| -> String {
            groups.iter().map(|group| cell(&of(group))).collect()
        };
        let head = cells(&|group| number::percentile(group.quantile));
        let title = self.paint(BOLD, &label("  where the time goes"));
        let head = self.paint(DIM, &head);
        self.line(&format!("{title}{head}"));
        let times = cells(&|group| number::duration(group.response_us));
        self.line(&format!("{}{times}", label("    response time, around it")));
        for part in parts(&run.attribution) {
            let shares = cells(&|group| {
                group.shares.get(part).map_or_else(String::new, |share| number::share(*share))
            });
            self.line(&format!("{}{shares}", label(&format!("    {part}"))));
        }
        self.wrapped(4, PLAIN, &dominance("all routes", &run.attribution));
        for route in &run.client.routes {
            if let Some(tail) = dominated_tail(&route.attribution) {
                self.wrapped(4, PLAIN, &dominance(&route.route, tail));
            }
        }
    }

    fn over_time(&mut self, run: &Run) {
        let findings: Vec<_> = (run.settling.iter().map(words::settling))
            .chain(words::stalls(&run.stalls))
            .chain(run.littles_law.iter().map(words::littles_law))
            .collect();
        if run.timeline.len() < 2 && findings.is_empty() {
            return;
        }
        self.painted(BOLD, "  over time");
        self.sparklines(&run.timeline);
        for finding in findings {
            self.wrapped(4, PLAIN, &finding);
        }
    }

    fn sparklines(&mut self, timeline: &[TimelineRow]) {
        if timeline.len() < 2 {
            return;
        }
        let rates: Vec<_> = timeline
            .iter()
            .map(|row| (row.width_s > 0.0).then(|| row.completed as f64 / row.width_s))
            .collect();
        let p99s: Vec<_> = timeline.iter().map(|row| row.p99_us).collect();
        for (label, values, unit) in [("rate", rates, Unit::PerSecond), ("p99", p99s, Unit::Us)] {
            let Some((bars, low, high)) = sparkline_of(self.width - 40, &values) else { continue };
            let (low, high) = (number::value(low, unit), number::value(high, unit));
            let range = if low == high { high } else { format!("{low} to {high}") };
            self.line(&format!("    {label:<5} {bars}  {range}"));
        }
    }

    fn conservation(&mut self, run: &Run) {
        let (n, counts) = (number::count, &run.conservation);
        self.painted(BOLD, "  where every request went");
        let schedule = format!(
            "scheduled {} = dropped {} + sent {} + unsent {}",
            n(counts.scheduled),
            n(counts.dropped),
            n(counts.sent),
            n(counts.unsent)
        );
        self.wrapped(4, PLAIN, &schedule);
        self.wrapped(4, PLAIN, &words::sent(counts));
        for error in &run.errors {
            self.wrapped(6, PLAIN, &format!("{} \u{d7} {}", n(error.count), error.message));
        }
        if let Some(connections) = run.connections {
            self.wrapped(4, PLAIN, &format!("connections opened {}", n(connections)));
        }
        let layer = counts.server.as_ref().map_or_else(
            || one_view(&run.pairs),
            |server| {
                format!(
                    "layer saw {}, recorded {}; {} sent but not seen, {} of others",
                    n(server.entered),
                    n(server.recorded),
                    n(server.not_seen),
                    n(server.foreign)
                )
            },
        );
        self.wrapped(4, PLAIN, &layer);
        let style = if counts.unexplained == 0 { PLAIN } else { verdict_style(Verdict::Invalid) };
        self.wrapped(4, style, &format!("unexplained {}", n(counts.unexplained)));
    }

    fn process(&mut self, run: &Run) {
        let Some(server) = &run.server else { return };
        let worst = words::pools_at_their_worst(&run.resources);
        let backends: Vec<_> = backends(server).into_iter().chain(worst).collect();
        let mut facts = Vec::new();
        if let Some(cpu_s) = server.process.cpu_s {
            facts.push(format!("{} of processor time", number::seconds(cpu_s)));
        }
        if let Some(runtime) = &server.runtime
            && let Some(busy) = runtime.busy_ratio
        {
            facts.push(format!("{} workers {} busy", runtime.workers, number::percent(busy)));
        }
        if let Some(bytes) = server.process.rss_bytes {
            facts.push(format!("{} resident", number::bytes(bytes as f64)));
        }
        if let Some(limiter) = &server.limiter {
            facts.push(format!(
                "limiter admitted {}, refused {}, passed by {}",
                number::count(limiter.admitted),
                number::count(limiter.limited),
                number::count(limiter.bypassed)
            ));
        }
        if !facts.is_empty() || !backends.is_empty() {
            self.painted(BOLD, "  the process");
        }
        self.wrapped(4, PLAIN, &facts.join("; "));
        for (name, figures) in backends {
            self.wrapped(4, PLAIN, &format!("{name}: {figures}"));
        }
    }

    fn memory(&mut self, memory: &MemoryModel) {
        self.section("Memory", None);
        for text in words::memory(memory) {
            self.wrapped(2, PLAIN, &text);
        }
    }

    fn closing(&mut self, report: &Report) {
        self.out.push('\n');
        let verdict = report.verdict.to_string().to_uppercase();
        let found: Vec<_> =
            super::requirements(report).map(|result| super::judged(report, result).0).collect();
        let counts: Vec<_> =
            [Verdict::Pass, Verdict::Fail, Verdict::Inconclusive, Verdict::Invalid]
                .into_iter()
                .map(|verdict| (verdict, found.iter().filter(|found| **found == verdict).count()))
                .filter(|(_, count)| *count > 0)
                .map(|(verdict, count)| format!("{count} {verdict}"))
                .collect();
        let tally = match counts.as_slice() {
            [] => "nothing was required".to_owned(),
            counts => format!("requirements: {}", counts.join(", ")),
        };
        let count =
            |verdict| report.runs.iter().filter(|run| run.validity.verdict == verdict).count();
        let runs = match (count(Verdict::Invalid), count(Verdict::Pass), report.runs.len()) {
            (_, _, 0) => "no run".to_owned(),
            (_, 1, 1) => "the run is valid".to_owned(),
            (_, valid, n) if valid == n => format!("all {n} runs are valid"),
            (0, _, 1) => "whether the run is valid could not be decided".to_owned(),
            (0, valid, n) => format!("{valid} of {n} runs valid for certain"),
            (invalid, _, n) => format!("{invalid} of {n} runs invalid"),
        };
        let verdict = self.paint(verdict_style(report.verdict).bold(), &verdict);
        self.line(&format!("{verdict}  {tally}; {runs}"));
    }

    fn section(&mut self, title: &str, verdict: Option<Verdict>) {
        self.out.push('\n');
        let verdict = verdict.map(|verdict| (verdict, verdict.to_string()));
        let taken = verdict.as_ref().map_or(0, |(_, text)| text.len() + 1);
        let title = fitted(title, self.width - taken - 2);
        let rule = "─".repeat(self.width - taken - width(&title) - 1);
        let title = self.paint(BOLD, &title);
        let rule = self.paint(DIM, &rule);
        let end = verdict.map_or_else(String::new, |(verdict, text)| {
            format!(" {}", self.paint(verdict_style(verdict), &text))
        });
        self.line(&format!("{title} {rule}{end}"));
    }

    /// Words of `text` on as many lines as they need; in a list, all but the first stand further in.
    fn wrapped(&mut self, indent: usize, style: anstyle::Style, text: &str) {
        let text = clean(text);
        let mut line = " ".repeat(indent);
        let mut begun = false;
        for word in text.split_whitespace() {
            if begun && width(&line) + 1 + width(word) > self.width {
                self.painted(style, &line);
                line = " ".repeat(if indent > 0 { indent + 2 } else { 0 });
                begun = false;
            }
            if begun {
                line.push(' ');
            }
            // A word longer than a line is cut: nothing else could be done with it.
            let room = self.width - width(&line);
            line.push_str(&fitted(word, room));
            begun = true;
        }
        if begun {
            self.painted(style, &line);
        }
    }

    /// Where the figures of a requirement end; a blank and the longest verdict fill the line.
    fn figures_end(&self) -> usize {
        self.width - 1 - "inconclusive".len()
    }

    /// A requirement but for its verdict, its figures aligned to the right.
    fn row(&self, label: &str, figures: &str) -> String {
        let room = self.figures_end().saturating_sub(2 + width(label));
        format!("  {label}{figures:>room$}")
    }

    fn painted(&mut self, style: anstyle::Style, text: &str) {
        let text = self.paint(style, text);
        self.line(&text);
    }

    fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }

    fn paint(&self, style: anstyle::Style, text: &str) -> String {
        let mut painted = String::new();
        // Writing into a string does not fail.
        let _ = if self.color && !text.is_empty() {
            write!(painted, "{style}{text}{style:#}")
        } else {
            write!(painted, "{text}")
        };
        painted
    }
}

fn verdict_style(verdict: Verdict) -> anstyle::Style {
    let color = match verdict {
        Verdict::Pass => AnsiColor::Green,
        Verdict::Inconclusive => AnsiColor::Yellow,
        Verdict::Fail => AnsiColor::Red,
        Verdict::Invalid => AnsiColor::Magenta,
    };
    color.on_default()
}

fn figures(observed: &str, interval: &str, limit: &str, margin: &str) -> String {
    format!("{observed:>9} {interval:>17} {limit:>8} {margin:>7}")
}

fn cell(text: &str) -> String {
    format!("{text:>CELL$}")
}

/// Columns of a terminal: letters of some scripts take two, marks on a letter none.
fn width(text: &str) -> usize {
    text.width()
}

/// Cleaned, and cut to at most `room` columns.
fn fitted(text: &str, room: usize) -> String {
    let text = clean(text);
    if width(&text) <= room {
        return text;
    }
    // The end of each character; the wider the text up to it, the later it is.
    let ends: Vec<_> = text.char_indices().map(|(begin, c)| begin + c.len_utf8()).collect();
    let kept = ends.partition_point(|end| width(&text[..*end]) < room);
    format!("{}…", &text[..kept.checked_sub(1).map_or(0, |last| ends[last])])
}

/// The same, with blanks up to so many columns.
fn padded(text: &str, room: usize) -> String {
    let text = fitted(text, room);
    let blanks = " ".repeat(room - width(&text));
    text + &blanks
}

/// At most 40 bars, with the least and the largest value; `None` without values.
pub(crate) fn sparkline(values: &[Option<f64>]) -> Option<(String, f64, f64)> {
    sparkline_of(40, values)
}

/// A bar that stands for several slots shows the largest of them: a spike must not vanish.
fn sparkline_of(most: usize, values: &[Option<f64>]) -> Option<(String, f64, f64)> {
    let present = || values.iter().flatten().copied();
    let low = present().min_by(f64::total_cmp)?;
    let high = present().max_by(f64::total_cmp)?;
    let group = values.len().div_ceil(most);
    let bars = values
        .chunks(group)
        .map(|chunk| {
            let value = chunk.iter().flatten().copied().max_by(f64::total_cmp);
            value.map_or(' ', |value| {
                // From zero, so that noise is not drawn as a storm.
                let share = if high > 0.0 { value / high } else { 0.0 };
                BARS[((share * 7.0).round() as usize).min(7)]
            })
        })
        .collect();
    Some((bars, low, high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{render::fixture, report::ErrorCount};

    fn plain(report: &Report) -> String {
        text(report, Style::default())
    }

    fn without_escapes(text: &str) -> String {
        let mut out = String::new();
        let mut inside = false;
        for c in text.chars() {
            match (inside, c) {
                (false, '\u{1b}') => inside = true,
                (false, c) => out.push(c),
                (true, 'm') => inside = false,
                (true, _) => {}
            }
        }
        out
    }

    #[test]
    fn no_line_is_longer_than_there_is_room() {
        for report in [fixture::passed(), fixture::invalid(), fixture::hostile_and_empty()] {
            for room in [80, 100, 110, 132, 160] {
                let style = Style { width: room, ..Style::default() };
                for line in text(&report, style).lines().chain(summary(&report, style).lines()) {
                    assert!(width(line) <= room, "{} of {room}: {line}", width(line));
                }
            }
        }
    }

    #[test]
    fn widths_that_no_page_has_are_taken_as_the_nearest_that_one_has() {
        let page = |width| text(&fixture::passed(), Style { width, ..Style::default() });
        assert_eq!(page(0), page(80));
        assert_eq!(page(usize::MAX), page(160));
    }

    #[test]
    fn a_wide_terminal_shows_more_figures_of_each_route() {
        let page = |width| text(&fixture::passed(), Style { width, ..Style::default() });
        let heads = ["samples", "mean", "min", "p50", "p90", "p95", "p99", "p99.9", "max"];
        let head = |page: &str| -> Vec<String> {
            let line = page.lines().find(|line| line.trim_end().ends_with("p99.9       max"));
            line.expect("a head").split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(head(&page(109)), heads[3..]);
        assert_eq!(head(&page(110)), heads);
        assert!(page(110).contains("    response time       26,000"), "{}", page(110));
    }

    #[test]
    fn what_explains_the_figures_stands_before_them() {
        let page = plain(&fixture::passed());
        let hint =
            page.find("hint (pool): p99 of GET /search: 71 % waiting for db").expect("the hint");
        assert!(hint < page.find("response time").expect("the figures"));
        for expected in [
            "settled after 250 ms of the measured interval",
            "1 stall, at 2.50 s for 125 ms: 61 of 1,250 requests slow, on 5 routes",
            "Little's law holds: 7.10 in flight on average",
            "pool db at its worst, at 0 s: 50 of 50 in use, 180 waiting",
        ] {
            assert!(page.contains(expected), "{expected} is missing in:\n{page}");
        }
    }

    #[test]
    fn the_message_of_a_test_says_what_failed_and_little_else() {
        let mut report = fixture::invalid();
        report.runs[0].plan.think_time_s = Some(0.25);
        let page = summary(&report, Style::default());
        for expected in [
            "INVALID  Recommendation service",
            "The figures cannot be believed: in open, 91.2 % of requests",
            "p95 < 200ms",
            "invalid (masquerade): 91.2 %",
            "hint (pool): p99 of GET /search",
            "pausing 250 ms after its answer",
            "GET /entities/{id}",
            "server time",
        ] {
            assert!(page.contains(expected), "{expected} is missing in:\n{page}");
        }
        assert!(page.contains("  requests ended: 50,000 limited\n"), "{page}");
        assert!(page.contains("  1,234 \u{d7} the exchange broke off\n"), "{page}");
        // Nothing succeeded in the second run.
        report.runs[1].client.routes[0] =
            fixture::hostile_and_empty().runs[0].client.routes[0].clone();
        let short = summary(&report, Style::default());
        assert!(short.contains("    no success, so no times\n"), "{short}");
        for more in ["rss < ", "where the time goes", "Memory", "scheduled", "linux"] {
            assert!(!page.contains(more), "{more} is in:\n{page}");
        }
        assert!(page.lines().count() < plain(&report).lines().count() / 2 + 20, "{page}");
    }

    #[test]
    fn the_message_of_a_test_says_how_requests_failed() {
        let mut report = fixture::passed();
        assert!(!summary(&report, Style::default()).contains("requests ended"));
        let run = &mut report.runs[0];
        run.client.outcomes.timeout = 7;
        run.client.outcomes.check_failed = 1_200;
        let error = |n: u64| ErrorCount { message: format!("cause {n}"), count: 9 - n };
        run.errors = (0..5).map(error).collect();
        let check = |name: &str, failed| Check {
            name: name.to_owned(),
            passed: 40,
            failed,
            first_failure: (failed > 0).then(|| "$.total is 3".to_owned()),
        };
        run.checks = vec![check("body", 1_200), check("head", 0)];
        let page = summary(&report, Style::default());
        let said = "  requests ended: 50,000 ok, 7 timeout, 1,200 check failed\n  9 \u{d7} cause 0\n  \
                    8 \u{d7} cause 1\n  7 \u{d7} cause 2\n  check body: 40 of 1,240 held; first failure: \
                    $.total is 3\n";
        assert!(page.contains(said), "{said} is missing in:\n{page}");
        assert!(!page.contains("check head"), "{page}");
    }

    #[test]
    fn names_of_wide_letters_stand_in_their_columns() {
        let mut report = fixture::transports();
        for run in &mut report.runs {
            run.plan.transport = format!("{}{}", "測".repeat(40), run.plan.transport);
            run.client.routes[0].route = "GET /テスト".to_owned();
            for group in &mut run.attribution {
                let share = group.shares.remove("lag").expect("a part");
                group.shares.insert("テスト".repeat(9), share);
            }
        }
        report.title = "é\u{301}\u{301}".repeat(50);
        for room in [80, 110] {
            let page = text(&report, Style { width: room, ..Style::default() });
            let ends = |what: &[&str]| -> Vec<usize> {
                let lines = page.lines().filter(|line| what.iter().all(|part| line.contains(part)));
                lines.map(width).collect()
            };
            assert!(ends(&["測", "1.00"]).contains(&room), "{page}");
            assert_eq!(ends(&["GET /テスト", " ok "]), ends(&["all routes", " ok "]), "{page}");
            assert!(page.lines().all(|line| width(line) <= room), "{page}");
            assert!(
                page.starts_with(&format!("PASS  {}  ", "é\u{301}\u{301}".repeat(50))),
                "{page}"
            );
        }
        assert_eq!(
            (fitted("測測測", 4), fitted("測測測", 5)),
            ("測…".to_owned(), "測測…".to_owned())
        );
        assert_eq!((padded("測", 3), fitted("測測測", 1)), ("測 ".to_owned(), "…".to_owned()));
    }

    #[test]
    fn requirements_of_the_whole_and_pools_alone_have_their_heading() {
        let mut report = fixture::passed();
        report.thresholds.reverse();
        let server = report.runs[0].server.as_mut().expect("a layer");
        (server.runtime, server.limiter) = (None, None);
        (server.process.cpu_s, server.process.rss_bytes) = (None, None);
        report.runs.truncate(1);
        let page = plain(&report);
        let whole = page.find("\n  of the whole\n").expect("a line");
        assert!(whole < page.find("\n  memory at 100,000").expect("the requirement"), "{page}");
        assert!(page.contains("  the process\n    pool db (sqlx), at most 50: 48,000"), "{page}");
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        for report in [fixture::passed(), fixture::invalid(), fixture::hostile_and_empty()] {
            let colored = text(&report, Style { color: true, ..Style::default() });
            assert_eq!(without_escapes(&colored), plain(&report));
            assert!(!plain(&report).contains('\u{1b}'));
        }
    }

    #[test]
    fn the_verdict_stands_first_and_last() {
        let page = plain(&fixture::passed());
        assert!(page.starts_with("PASS  Recommendation service"), "{page}");
        assert!(
            page.lines().nth(1).is_some_and(|line| line.starts_with("All 4 requirements hold"))
        );
        let last = page.lines().last().expect("it has lines");
        assert_eq!(last, "PASS  requirements: 4 pass; all 2 runs are valid");
    }

    #[test]
    fn both_views_and_the_conservation_line_are_there() {
        let page = plain(&fixture::passed());
        for expected in [
            "response time",
            "service time",
            "server time",
            "outside",
            "GET /recommendations/{user_id}",
            "scheduled 50,000 = dropped 0 + sent 50,000 + unsent 0",
            "sent 50,000 = ok 50,000 + in flight 0",
            "unexplained 0",
            "p99.9 n/a (needs 3,000 samples)",
            "where the time goes",
            "pool_wait:db is 95.3 % of the time at p99.9",
            "pool db (sqlx), at most 50: 48,000 acquired",
            "cache cache: 80 % of 50,000 lookups hit",
        ] {
            assert!(page.contains(expected), "{expected} is missing in:\n{page}");
        }
    }

    #[test]
    fn an_invalid_run_says_why_before_its_figures() {
        let page = plain(&fixture::invalid());
        assert!(page.starts_with("INVALID"));
        let why = page.find("91.2 % of requests were rejected").expect("the reason is there");
        let figures = page.find("response time").expect("the figures are there");
        assert!(why < figures);
        assert!(page.contains("no samples"));
        assert!(page.contains("1,234 × the exchange broke off"), "{page}");
        assert!(page.contains("connections opened 5,678"), "{page}");
    }

    #[test]
    fn a_run_that_may_be_invalid_says_so_and_keeps_what_was_found() {
        let page = plain(&fixture::doubtful());
        let doubt = "the generator itself may have been late: lag p99 1.01 ms";
        let headline: Vec<&str> = page.lines().take(3).collect();
        assert!(headline[0].starts_with("INCONCLUSIVE  "), "{page}");
        assert_eq!(
            headline[1..].join(" "),
            format!("It is open whether the figures can be believed: in open, {doubt}.")
        );
        assert!(page.contains("  inconclusive (lag): the generator itself"), "{page}");
        let closing = page.lines().last().expect("a last line");
        assert_eq!(closing, "INCONCLUSIVE  requirements: 4 pass; 1 of 2 runs valid for certain");
    }

    #[test]
    fn a_doubtful_run_that_misses_a_limit_says_both() {
        let mut report = fixture::doubtful();
        (report.thresholds[0].verdict, report.verdict) = (Verdict::Fail, Verdict::Fail);
        let page = plain(&report).replace("\n", " ");
        assert!(page.contains("1 of 4 requirements failed. p95 < 200ms: observed "), "{page}");
        assert!(
            page.contains(
                ". It is open whether the figures can be believed: in open, the generator"
            ),
            "{page}"
        );
    }

    #[test]
    fn one_of_two_runs_of_a_name_that_is_invalid_takes_nothing_from_the_other() {
        let mut report = fixture::invalid();
        let results: Vec<_> = report.thresholds.drain(..2).collect();
        for (run, mut result) in report.runs.iter_mut().zip(results) {
            run.name = "load test".to_owned();
            (result.run, result.verdict) = (run.name.clone(), Verdict::Pass);
            // That they are equal in all else, too, makes them no one requirement.
            run.thresholds =
                vec![ThresholdResult { expression: "p95 < 200ms".to_owned(), ..result }];
        }
        report.thresholds.clear();
        let verdicts = |page: &str| -> Vec<String> {
            let rows = page.lines().filter(|line| line.contains(" < ") || line.contains(" >= "));
            rows.filter_map(|row| row.split_whitespace().last().map(str::to_owned)).collect()
        };
        let page = plain(&report);
        assert_eq!(verdicts(&page), ["pass", "invalid"], "{page}");
        // In short there is what does not hold.
        let short = summary(&report, Style::default());
        assert_eq!(verdicts(&short), ["invalid"], "{short}");
    }

    #[test]
    fn what_was_found_of_an_invalid_run_is_neither_held_nor_missed() {
        let report = fixture::invalid();
        let page = plain(&report);
        let of_the_run = report.thresholds.iter().filter(|result| result.run == "open").count();
        let rows = page.lines().filter(|line| line.ends_with(" invalid"));
        assert!(of_the_run > 1 && rows.count() >= of_the_run, "{page}");
        assert_eq!(
            page.matches("the run's figures cannot be believed\n").count(),
            of_the_run,
            "{page}"
        );
        let closing = page.lines().last().expect("a last line");
        assert!(
            closing.contains(&format!(", {of_the_run} invalid; 1 of 2 runs invalid")),
            "{page}"
        );
        assert!(!closing.contains("fail"), "{closing}");
    }

    #[test]
    fn runs_that_differ_in_their_transport_alone_are_laid_side_by_side() {
        let page = plain(&fixture::transports());
        let begin = page.find("What each transport costs").expect("it is there");
        let rows: Vec<&str> = page[begin..].lines().skip(3).take(3).collect();
        assert!(rows[0].starts_with("  direct ") && rows[0].ends_with(" 1.00"), "{rows:#?}");
        assert!(rows[1].starts_with("  tcp:h2, invalid "), "{rows:#?}");
        assert!(rows[2].contains("to that over direct"), "{rows:#?}");
        assert!(rows.iter().all(|row| width(row) <= 80), "{rows:#?}");
        assert!(!plain(&fixture::passed()).contains("What each transport costs"));
    }

    #[test]
    fn the_same_report_gives_the_same_bytes() {
        let report = fixture::passed();
        assert_eq!(plain(&report), plain(&report.clone()));
    }
}
