//! The report as a comment on a change: GitHub's Markdown, short, the rest folded.

use std::fmt::Write;

use super::{
    Cost, all_routes, backends, by_transport, clean::clean_lines, dominance, judged, mix_in_words,
    number, one_sided, one_view, parts, plan_in_words, requirements, route_views,
    transports_in_words, why, words,
};
use crate::report::{Attribution, ClientOutcomes, Latency, Report, Run, Verdict};

/// A comment of GitHub's takes 65,536 characters.
const LIMIT: usize = 65_000;
/// Rows of a table; fewer, if names are so long that they do not fit.
const ROWS: [usize; 4] = [20, 10, 4, 1];
/// Characters of a name, and of a sentence.
const NAME: usize = 120;
const SENTENCE: usize = 600;

/// The report as GitHub's Markdown, for a comment on a pull request: the verdict and why, the requirements, what
/// explains the figures, both views by route; folded below them the rest. Always below 65,536 characters: at most
/// 20 routes, runs and requirements are shown, and how many more there are.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let pages = ROWS.iter().map(|rows| Page { out: String::new(), rows: *rows }.of(report));
    let fits = |page: &String| page.len() <= LIMIT;
    pages.into_iter().find(fits).unwrap_or_else(|| {
        let mut page = Page { out: String::new(), rows: 0 };
        page.headline(report);
        clean_lines(&page.out)
    })
}

struct Page {
    out: String,
    /// At most so many of anything.
    rows: usize,
}

impl Page {
    fn of(mut self, report: &Report) -> String {
        self.headline(report);
        self.requirements(report);
        for run in report.runs.iter().take(self.rows) {
            self.run(run);
        }
        self.rest(report.runs.len(), "run");
        self.details(report);
        // What is left is of names, and of those no line: each went through [`escaped`].
        clean_lines(&self.out)
    }

    fn headline(&mut self, report: &Report) {
        let sign = match report.verdict {
            Verdict::Pass => "\u{2705} Pass",
            Verdict::Inconclusive => "\u{2754} Inconclusive",
            Verdict::Fail => "\u{274c} Fail",
            Verdict::Invalid => "\u{26d4} Invalid",
        };
        let grade = report.grade.map_or_else(String::new, |grade| format!(" (grade: {grade})"));
        self.line(&format!("## {sign}: {}{grade}\n", escaped(&report.title, NAME)));
        self.line(&format!("{}\n", escaped(&why(report), SENTENCE)));
    }

    fn requirements(&mut self, report: &Report) {
        let mut all: Vec<_> =
            requirements(report).map(|result| (result, judged(report, result))).collect();
        if all.is_empty() {
            return;
        }
        // What does not hold must not be among those that are left out.
        all.sort_by_key(|(_, (verdict, _))| *verdict == Verdict::Pass);
        let several = report.runs.len() > 1;
        let on = if several { " run |" } else { "" };
        self.line(&format!("| | requirement |{on} observed | interval | limit | margin |"));
        self.line(&format!("|---|---|{}--:|--:|--:|--:|", if several { "---|" } else { "" }));
        for (result, (verdict, why)) in all.iter().take(self.rows) {
            let on =
                if several { format!(" {} |", escaped(&result.run, NAME)) } else { String::new() };
            self.line(&format!(
                "| {} | {}{} |{on} {} | {} | {} | {} |",
                mark(*verdict),
                code(&result.expression),
                note(*verdict, why),
                number::maybe(result.observed, result.unit),
                number::interval(result),
                number::value(result.limit, result.unit),
                result.margin.map_or_else(|| number::NONE.to_owned(), number::margin),
            ));
        }
        self.rest(all.len(), "requirement");
        self.line("");
    }

    fn run(&mut self, run: &Run) {
        self.line(&format!("### {} Run {}\n", mark(run.verdict), escaped(&run.name, NAME)));
        for reason in run.validity.reasons.iter().take(self.rows) {
            let (rule, message) = (escaped(&reason.rule, NAME), escaped(&reason.message, SENTENCE));
            self.line(&format!("- **{} ({rule})**: {message}", run.validity.verdict));
        }
        self.rest(run.validity.reasons.len(), "reason");
        for hint in run.hints.iter().take(self.rows) {
            let (rule, message) = (escaped(&hint.rule, NAME), escaped(&hint.message, SENTENCE));
            self.line(&format!("- **hint ({rule})**: {message}"));
        }
        self.rest(run.hints.len(), "hint");
        let failures = words::failures(run);
        for failure in failures.iter().take(self.rows) {
            self.line(&format!("- {}", escaped(failure, SENTENCE)));
        }
        self.rest(failures.len(), "failure");
        if run.validity.reasons.len() + run.hints.len() + failures.len() > 0 {
            self.line("");
        }
        self.line("| route | seen by | rate | ok | failed | p50 | p95 | p99 | p99.9 | max |");
        self.line("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|");
        let client = &run.client;
        let one_sided = one_sided(run);
        self.both("**all**", client.rate, &client.outcomes, &all_routes(run), one_sided);
        for route in client.routes.iter().take(self.rows) {
            self.both(
                &code(&route.route),
                route.rate,
                &route.outcomes,
                &route_views(route),
                one_sided,
            );
        }
        self.rest(client.routes.len(), "route");
        self.line("");
    }

    /// The response time, and the server time below it.
    fn both(
        &mut self,
        name: &str,
        rate: f64,
        outcomes: &ClientOutcomes,
        views: &[(&str, &Latency); 4],
        one_sided: bool,
    ) {
        let figures = |latency: &Latency| {
            let of = &latency.summary;
            let mut cells = String::new();
            for us in [of.p50_us, of.p95_us, of.p99_us, of.p999_us, of.max_us] {
                let _ = write!(
                    cells,
                    " {} |",
                    us.map_or_else(|| number::NONE.to_owned(), number::duration)
                );
            }
            cells
        };
        self.line(&format!(
            "| {name} | client | {} | {} | {} |{}",
            number::per_second(rate),
            number::count(outcomes.ok),
            number::count(outcomes.failed()),
            figures(views[0].1)
        ));
        if !one_sided {
            self.line(&format!("| | server | | | |{}", figures(views[2].1)));
        }
    }

    fn details(&mut self, report: &Report) {
        self.line("<details>");
        self.line("<summary>Where the time and the requests went, load, environment</summary>\n");
        for costs in by_transport(report).iter().take(self.rows) {
            self.costs(costs);
        }
        if let Some(memory) = &report.memory {
            for text in words::memory(memory) {
                self.line(&format!("- memory: {}", escaped(&text, SENTENCE)));
            }
            self.line("");
        }
        for run in report.runs.iter().take(self.rows) {
            self.line(&format!("**Run {}**\n", escaped(&run.name, NAME)));
            self.attribution(run);
            let mut facts = Vec::new();
            facts.extend(run.settling.iter().map(words::settling));
            facts.extend(words::stalls(&run.stalls));
            facts.extend(run.littles_law.iter().map(words::littles_law));
            facts.extend(conservation(run));
            facts.extend(lag(run));
            facts.extend(run.checks.iter().map(words::check));
            let backends = run.server.iter().flat_map(backends);
            let backends = backends.chain(words::pools_at_their_worst(&run.resources));
            facts.extend(backends.map(|(name, figures)| format!("{name}: {figures}")));
            facts.push(format!("load: {}", plan_in_words(&run.plan)));
            facts.push(format!("requests: {}", mix_in_words(&run.plan)));
            for fact in facts.iter().take(self.rows) {
                self.line(&format!("- {}", escaped(fact, SENTENCE)));
            }
            self.rest(facts.len(), "fact");
            let of_run =
                requirements(report).filter(|result| result.run == run.name).take(self.rows);
            if let Some((command, untold)) = words::repetition(&run.plan, of_run) {
                self.line(&format!("- again: {} ({untold})", code_of(&command, SENTENCE)));
            }
            self.line("");
        }
        self.rest(report.runs.len(), "run");
        let environment = &report.environment;
        let machine = format!(
            "{} {}, {} processors, {} workers, {} build",
            environment.os,
            environment.arch,
            environment.cpus,
            environment.workers,
            environment.profile
        );
        self.line(&format!("- {}", escaped(&machine, SENTENCE)));
        for (name, value) in environment.settings.iter().take(self.rows) {
            self.line(&format!("- {}: {}", escaped(name, NAME), escaped(value, SENTENCE)));
        }
        self.rest(environment.settings.len(), "setting");
        self.line("\n</details>\n");
        let version = escaped(&environment.parallax_version, NAME);
        self.line(&format!(
            "<sub>Response time of successes by percentile, as the client and as the server saw them. Parallax \
             {version}.</sub>"
        ));
    }

    fn costs(&mut self, costs: &[Cost<'_>]) {
        self.line("| transport | rate | service time p50 | p99 | outside p50 | p99 | ratio |");
        self.line("|---|--:|--:|--:|--:|--:|--:|");
        for cost in costs.iter().take(self.rows) {
            let figures = cost.figures().join(" | ");
            self.line(&format!("| {} | {figures} |", code(&cost.name())));
        }
        self.rest(costs.len(), "transport");
        self.line(&format!("\n{}.\n", escaped(&transports_in_words(costs), SENTENCE)));
    }

    fn attribution(&mut self, run: &Run) {
        let groups: Vec<&Attribution> = run.attribution.iter().take(6).collect();
        if groups.is_empty() {
            return;
        }
        let mut head = "| part of the response time |".to_owned();
        let mut times = "| around it |".to_owned();
        for group in &groups {
            let _ = write!(head, " {} |", number::percentile(group.quantile));
            let _ = write!(times, " {} |", number::duration(group.response_us));
        }
        self.line(&head);
        self.line(&format!("|---|{}", "--:|".repeat(groups.len())));
        self.line(&times);
        let parts = parts(&run.attribution);
        for part in parts.iter().take(self.rows) {
            let mut row = format!("| {} |", code(part));
            for group in &groups {
                let share =
                    group.shares.get(*part).map_or_else(String::new, |share| number::share(*share));
                let _ = write!(row, " {share} |");
            }
            self.line(&row);
        }
        self.rest(parts.len(), "part");
        self.line(&format!(
            "\n{}.\n",
            escaped(&dominance("All routes", &run.attribution), SENTENCE)
        ));
    }

    /// How many are not shown, of so many.
    fn rest(&mut self, all: usize, what: &str) {
        let more = all.saturating_sub(self.rows);
        if more > 0 {
            let plural = if more == 1 { "" } else { "s" };
            self.line(&format!(
                "\n_{} more {what}{plural} not shown._\n",
                number::count(more as u64)
            ));
        }
    }

    fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }
}

fn conservation(run: &Run) -> Vec<String> {
    let (n, counts) = (number::count, &run.conservation);
    let layer = counts.server.as_ref().map_or_else(
        || one_view(&run.pairs),
        |server| {
            format!(
                "layer recorded {}; {} sent but not seen, {} of others",
                n(server.recorded),
                n(server.not_seen),
                n(server.foreign)
            )
        },
    );
    let mut facts = vec![
        format!(
            "scheduled {} = dropped {} + sent {} + unsent {}",
            n(counts.scheduled),
            n(counts.dropped),
            n(counts.sent),
            n(counts.unsent)
        ),
        words::sent(counts),
        format!("{layer}; unexplained {}", n(counts.unexplained)),
    ];
    facts.extend(
        run.errors.iter().map(|error| format!("{} \u{d7} {}", n(error.count), error.message)),
    );
    facts.extend(run.connections.map(|opened| format!("connections opened {}", n(opened))));
    facts
}

/// How late the generator was.
fn lag(run: &Run) -> Option<String> {
    let of = &run.client.lag.summary;
    let time = |us: Option<f64>| us.map_or_else(|| number::NONE.to_owned(), number::duration);
    (of.count > 0).then(|| {
        format!("lag p50 {}, p99 {}, max {}", time(of.p50_us), time(of.p99_us), time(of.max_us))
    })
}

fn mark(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "\u{2705}",
        Verdict::Inconclusive => "\u{2754}",
        Verdict::Fail => "\u{274c}",
        Verdict::Invalid => "\u{26d4}",
    }
}

/// Why a requirement is not simply held or missed.
fn note(verdict: Verdict, why: &str) -> String {
    if verdict == Verdict::Pass || why.is_empty() {
        return String::new();
    }
    format!("<br>{verdict}: {}", escaped(why, SENTENCE))
}

/// A name as code, which nobody is notified by.
fn code(name: &str) -> String {
    code_of(name, NAME)
}

fn code_of(text: &str, room: usize) -> String {
    format!("<code>{}</code>", escaped(text, room))
}

/// A text in a line or a cell: of one line, so long at most, and nothing but text.
fn escaped(text: &str, room: usize) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = ' ';
    let mut rest = text.chars().peekable();
    for index in 0.. {
        let Some(c) = rest.next() else { break };
        if index == room {
            out.push('\u{2026}');
            break;
        }
        // Within a word it is no emphasis.
        let within = |next: Option<&char>| {
            before.is_alphanumeric() && next.is_some_and(|c| c.is_alphanumeric())
        };
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            // Whoever is called @name is notified even where the sign is written as a number, and so it is with
            // references: a mark without a width parts the two.
            '@' | '#' => {
                let _ = write!(out, "&#{};&#8288;", u32::from(c));
            }
            '_' if within(rest.peek()) => out.push(c),
            // All that begins emphasis, code, a cell, a link, a formula or an address.
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '~' | '!' | '$' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            ':' if rest.peek() == Some(&'/') => out.push_str("&#58;"),
            '.' if matches!(before, 'w' | 'W') => out.push_str("&#46;"),
            c => out.push(c),
        }
        before = c;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        render::fixture,
        report::{Check, ClientRoute, ErrorCount, Hint},
    };

    #[test]
    fn a_reviewer_sees_the_verdict_the_requirements_and_both_views_first() {
        let page = markdown(&fixture::passed());
        assert!(page.starts_with("## \u{2705} Pass: Recommendation service (grade: "), "{page}");
        let position =
            |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} is missing in:\n{page}"));
        assert!(
            position("All 4 requirements hold")
                < position("| \u{2705} | <code>p95 &lt; 200ms</code> | open | ")
        );
        assert!(position("200ms</code>") < position("- **hint (pool)**: p99 of GET /search"));
        assert!(
            position("**hint (pool)**")
                < position("| <code>GET /search</code> | client | 1,200/s | 6,000 | 0 |")
        );
        assert!(position("| | server | | | |") < position("<details>"));
        assert!(position("<details>") < position("scheduled 50,000"));
        assert!(position("Little's law holds") < position("cargo bench --bench load"));
        assert_eq!(page.matches("<details>").count(), page.matches("</details>").count());
    }

    #[test]
    fn what_does_not_hold_says_why() {
        let page = markdown(&fixture::invalid());
        assert!(page.starts_with("## \u{26d4} Invalid: "), "{page}");
        // What a run has that cannot be believed is neither held nor missed.
        for expression in ["p95 &lt; 200ms", "rate &gt;= 1000/s"] {
            let row = format!(
                "| \u{26d4} | <code>{expression}</code><br>invalid: the run's figures cannot be believed | open |"
            );
            assert!(page.contains(&row), "{row} is missing in:\n{page}");
        }
        assert!(page.contains("- **invalid (masquerade)**: 91.2 %"), "{page}");

        let page = markdown(&fixture::doubtful());
        assert!(page.contains("- **inconclusive (lag)**: the generator itself"), "{page}");

        let mut report = fixture::overloaded();
        report.thresholds[0].note = "half of the run".to_owned();
        let page = markdown(&report);
        assert!(
            page.contains("| \u{274c} | <code>p95 &lt; 200ms</code><br>fail: half of the run |"),
            "{page}"
        );
    }

    #[test]
    fn what_failed_is_above_the_fold_and_what_it_cost_below() {
        let mut report = fixture::transports();
        let run = &mut report.runs[0];
        run.client.outcomes.check_failed = 3;
        run.errors = vec![ErrorCount { message: "refused".to_owned(), count: 12 }];
        run.connections = Some(77);
        run.checks = vec![Check {
            name: "body".to_owned(),
            passed: 4,
            failed: 3,
            first_failure: Some("no total".to_owned()),
        }];
        let page = markdown(&report);
        let fold = page.find("<details>").expect("a fold");
        for (expected, above) in [
            ("- requests ended: 50,000 ok, 3 check failed", true),
            ("- 12 \u{d7} refused", true),
            ("- check body: 4 of 7 held; first failure: no total", true),
            ("| <code>direct</code> | ", false),
            ("| <code>tcp:h2, invalid</code> | ", false),
            ("One plan over each.", false),
            ("- memory: at 100,000 entities: ", false),
            ("- lag p50 ", false),
            ("- connections opened 77", false),
        ] {
            let at = page.find(expected).unwrap_or_else(|| panic!("no {expected} in:\n{page}"));
            assert_eq!(at < fold, above, "{expected}");
        }
    }

    /// The cells of each row of a table.
    fn cells(page: &str) -> Vec<usize> {
        page.lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.matches('|').count() - 1)
            .collect()
    }

    #[test]
    fn no_name_breaks_a_table_or_notifies_anybody() {
        let mut report = fixture::passed();
        let before = cells(&markdown(&report));
        let name = "a|b\\|c`d`<img src=x>\n|---|\r\n@team #12 [x](http://y) www.z.org *_~";
        report.runs[0].client.routes[0].route = name.to_owned();
        report.thresholds[0].expression = name.to_owned();
        report.runs[0].hints[0].message = name.to_owned();
        let page = markdown(&report);
        assert_eq!(cells(&page), before);
        for raw in ["a|b", "`", "<img", "@team", " #12", "](", "http:", "www."] {
            assert!(!page.contains(raw), "{raw} is in:\n{page}");
        }
        assert!(page.contains("&#64;&#8288;team &#35;&#8288;12"), "{page}");
    }

    #[test]
    fn it_is_always_short_enough_for_a_comment() {
        let mut report = fixture::passed();
        let route = report.runs[0].client.routes[0].clone();
        report.runs[0].client.routes =
            (0..500).map(|n| ClientRoute { route: format!("GET /{n}"), ..route.clone() }).collect();
        let page = markdown(&report);
        assert!(page.contains("_480 more routes not shown._"), "{page}");
        assert!(page.contains("GET /19<") && !page.contains("GET /20<"));

        for run in &mut report.runs {
            run.client.routes.truncate(25);
            run.hints =
                vec![Hint { rule: "x".to_owned(), route: None, message: "@".repeat(100_000) }; 100];
            run.client.routes.iter_mut().for_each(|route| route.route = "|".repeat(70_000));
        }
        report.title = "<".repeat(70_000);
        report.runs = vec![report.runs[0].clone(); 30];
        let page = markdown(&report);
        assert!(page.chars().count() < 65_536 && page.len() < 65_536, "{}", page.len());
        assert!(page.contains("All 4 requirements hold"), "{page}");
    }
}
