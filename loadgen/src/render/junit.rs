//! The report as JUnit's XML, which continuous integration shows as test results.

use std::mem;

use maud::{Markup, PreEscaped, html};

use super::{
    clean::clean_lines, found_against_limit, invalid_run, number, plan_in_words,
    text::run_in_short, words,
};
use crate::report::{Environment, Report, Run, ThresholdResult, Verdict};

/// The report as JUnit XML: a suite a run, with a case for its validity and one a requirement, and a suite for
/// requirements that belong to no run.
///
/// A requirement that does not hold is a `failure`. One that cannot be decided is an `error`, and so are a run that
/// is invalid, or may be, or was interrupted, every requirement of an invalid one, and a report that ended between two
/// runs: none of them says that the service is too slow, and none lets a build pass.
#[must_use]
pub fn junit(report: &Report) -> String {
    let suites = suites(report);
    let (cases, failures, errors) =
        suites.iter().fold((0, 0, 0), |(cases, failures, errors), suite| {
            let count = |kind| suite.cases.iter().filter(|case| case.kind() == kind).count();
            (
                cases + suite.cases.len(),
                failures + count(Kind::Failure),
                errors + count(Kind::Error),
            )
        });
    let time: f64 = suites.iter().map(|suite| suite.time_s).sum();
    let document = html! {
        (PreEscaped("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"))
        testsuites name=(report.title) tests=(cases) failures=(failures) errors=(errors) time=(seconds(time)) {
            @for suite in &suites { "\n" (suite.element(report)) }
            "\n"
        }
    };
    let mut text = clean_lines(&document.into_string());
    text.push('\n');
    text
}

struct Suite<'a> {
    name: &'a str,
    run: Option<&'a Run>,
    time_s: f64,
    cases: Vec<Case<'a>>,
}

/// What a case is about.
enum Case<'a> {
    /// Somebody ended the report early, and no run tells.
    Interruption,
    Validity(&'a Run),
    /// With the run that it was judged on, if that is invalid.
    Requirement(&'a ThresholdResult, Option<&'a Run>),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Success,
    Failure,
    Error,
}

fn suites(report: &Report) -> Vec<Suite<'_>> {
    let requirement = |result| Case::Requirement(result, invalid_run(report, result));
    let mut left: Vec<_> = report.thresholds.iter().collect();
    let mut suites: Vec<_> = (report.runs.iter())
        .map(|run| {
            let (of_run, others): (Vec<_>, Vec<_>) =
                mem::take(&mut left).into_iter().partition(|result| result.run == run.name);
            left = others;
            let own = run.thresholds.iter().filter(|result| !report.thresholds.contains(result));
            let requirements = of_run.into_iter().chain(own).map(requirement);
            Suite {
                name: &run.name,
                run: Some(run),
                time_s: run.measured_s,
                cases: [Case::Validity(run)].into_iter().chain(requirements).collect(),
            }
        })
        .collect();
    let untold = report.interrupted && !report.runs.iter().any(|run| run.interrupted);
    let interruption = untold.then_some(Case::Interruption);
    let cases: Vec<_> = interruption.into_iter().chain(left.into_iter().map(requirement)).collect();
    if !cases.is_empty() {
        suites.push(Suite { name: "the whole", run: None, time_s: 0.0, cases });
    }
    suites
}

impl Suite<'_> {
    fn element(&self, report: &Report) -> Markup {
        let count = |kind| self.cases.iter().filter(|case| case.kind() == kind).count();
        let began = self.run.map_or(report.started_at_unix_s, |run| run.started_at_unix_s);
        let (date, time) = number::utc(began);
        // Jenkins and GitLab put the class before the name of a case; a dot would be a package to them.
        let class = format!("{}.{}", report.title.replace('.', " "), self.name.replace('.', " "));
        html! {
            testsuite name=(self.name) tests=(self.cases.len()) failures=(count(Kind::Failure))
                errors=(count(Kind::Error)) skipped="0" time=(seconds(self.time_s)) timestamp={ (date) "T" (time) } {
                properties {
                    @for (name, value) in environment(&report.environment) {
                        property name=(name) value=(value) {}
                    }
                    @if let Some(run) = self.run {
                        property name="load" value=(plan_in_words(&run.plan)) {}
                        @for (name, value) in &run.plan.tags {
                            property name={ "tag " (name) } value=(value) {}
                        }
                    }
                }
                @for case in &self.cases { "\n" (case.element(&class)) }
                "\n"
                @if let Some(run) = self.run { system-out { (output(run)) } }
            }
        }
    }
}

impl Case<'_> {
    fn kind(&self) -> Kind {
        match self {
            Self::Validity(run) if run.interrupted || run.validity.verdict != Verdict::Pass => {
                Kind::Error
            }
            Self::Interruption | Self::Requirement(_, Some(_)) => Kind::Error,
            Self::Validity(_) => Kind::Success,
            Self::Requirement(result, None) => match result.verdict {
                Verdict::Pass => Kind::Success,
                Verdict::Fail => Kind::Failure,
                Verdict::Inconclusive | Verdict::Invalid => Kind::Error,
            },
        }
    }

    fn element(&self, class: &str) -> Markup {
        let (name, time) = match self {
            Self::Interruption => ("the report is complete", 0.0),
            Self::Validity(run) => ("the run is valid", run.measured_s),
            Self::Requirement(result, _) => (&*result.expression, 0.0),
        };
        let (kind, message, text) = match self {
            Self::Interruption => {
                let message = "interrupted between two runs".to_owned();
                ("interrupted".to_owned(), message.clone(), message)
            }
            Self::Validity(run) => {
                let reasons = run
                    .validity
                    .reasons
                    .iter()
                    .map(|reason| format!("{}: {}", reason.rule, reason.message));
                let interrupted = run
                    .interrupted
                    .then(|| format!("interrupted after {}", number::seconds(run.measured_s)));
                let all: Vec<_> = interrupted.into_iter().chain(reasons).collect();
                let kind = match run.validity.verdict {
                    Verdict::Pass => "interrupted".to_owned(),
                    verdict => verdict.to_string(),
                };
                (kind, all.first().cloned().unwrap_or_default(), all.join("\n"))
            }
            Self::Requirement(result, invalid) => {
                let found = found_against_limit(result);
                let details =
                    format!("{found}\ninterval {}\n{}", number::interval(result), result.note);
                match invalid {
                    None => (result.verdict.to_string(), found, details),
                    Some(_) => {
                        let message = format!("the run is invalid; {found}");
                        (Verdict::Invalid.to_string(), message, details)
                    }
                }
            }
        };
        html! {
            testcase classname=(class) name=(name) time=(seconds(time)) {
                @match self.kind() {
                    Kind::Success => {}
                    Kind::Failure => { failure message=(message) type=(kind) { (text.trim_end()) } }
                    Kind::Error => { error message=(message) type=(kind) { (text.trim_end()) } }
                }
            }
        }
    }
}

fn environment(environment: &Environment) -> impl Iterator<Item = (&str, String)> {
    let own = environment.settings.iter().map(|(name, value)| (name.as_str(), value.clone()));
    [
        ("os", environment.os.clone()),
        ("arch", environment.arch.clone()),
        ("cpus", environment.cpus.to_string()),
        ("workers", environment.workers.to_string()),
        ("profile", environment.profile.clone()),
        ("parallax version", environment.parallax_version.clone()),
    ]
    .into_iter()
    .chain(own)
}

/// What a reader of a failed build wants to see.
fn output(run: &Run) -> String {
    let mut lines = vec![run_in_short(run).trim().to_owned()];
    lines.extend(run.settling.iter().map(words::settling));
    lines.extend(words::stalls(&run.stalls));
    lines.extend(run.littles_law.iter().map(words::littles_law));
    let pools = words::pools_at_their_worst(&run.resources).into_iter();
    lines.extend(pools.map(|(pool, figures)| format!("{pool}: {figures}")));
    lines.join("\n")
}

/// As JUnit has them: to the millisecond, without a unit.
fn seconds(s: f64) -> String {
    // The sum of no times is -0, and so is what -0 is clamped to.
    format!("{:.3}", if s.is_finite() { s.clamp(0.0, 1e12) + 0.0 } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use roxmltree::{Document, Node};

    use super::*;
    use crate::render::fixture;

    fn all<'a>(document: &'a Document<'_>, name: &str) -> Vec<Node<'a, 'a>> {
        document.descendants().filter(|node| node.has_tag_name(name)).collect()
    }

    #[test]
    fn a_run_is_a_suite_and_a_requirement_a_case() {
        let text = junit(&fixture::passed());
        let document = Document::parse(&text).expect("it is XML");
        let root = document.root_element();
        assert_eq!((root.attribute("tests"), root.attribute("failures")), (Some("6"), Some("0")));
        let suites = all(&document, "testsuite");
        let names: Vec<_> = suites.iter().filter_map(|suite| suite.attribute("name")).collect();
        assert_eq!(names, ["closed", "open", "the whole"]);
        assert_eq!(suites[1].attribute("timestamp"), Some("2026-09-21T14:13:21"));
        assert_eq!(suites[1].attribute("time"), Some("5.000"));
        let cases: Vec<_> =
            all(&document, "testcase").iter().filter_map(|case| case.attribute("name")).collect();
        assert_eq!(
            cases,
            [
                "the run is valid",
                "the run is valid",
                "p95 < 200ms",
                "rate >= 1000/s",
                "errors < 0.1%",
                "memory at 100,000 entities < 2GiB",
            ]
        );
        let property = |name| {
            all(&document, "property")
                .into_iter()
                .find(|property| property.attribute("name") == Some(name))
        };
        assert_eq!(property("cpus").and_then(|cpus| cpus.attribute("value")), Some("2"));
        assert_eq!(property("tag build").and_then(|tag| tag.attribute("value")), Some("4711"));
    }

    #[test]
    fn what_fails_is_a_failure_and_what_nobody_can_say_an_error() {
        let mut report = fixture::passed();
        report.thresholds[0].verdict = Verdict::Fail;
        report.thresholds[1].verdict = Verdict::Inconclusive;
        report.runs[0].interrupted = true;
        let text = junit(&report);
        let document = Document::parse(&text).expect("it is XML");
        let of = |name| -> Vec<_> {
            all(&document, name).iter().filter_map(|node| node.attribute("type")).collect()
        };
        assert_eq!(of("failure"), ["fail"]);
        assert_eq!(of("error"), ["interrupted", "inconclusive"]);
        let root = document.root_element();
        assert_eq!((root.attribute("failures"), root.attribute("errors")), (Some("1"), Some("2")));
    }

    #[test]
    fn of_an_invalid_run_nothing_is_passed_or_failed() {
        let report = fixture::invalid();
        let verdicts: Vec<_> = report.thresholds.iter().map(|result| result.verdict).collect();
        assert_eq!(verdicts[..3], [Verdict::Fail, Verdict::Pass, Verdict::Pass]);
        let text = junit(&report);
        let document = Document::parse(&text).expect("it is XML");
        assert!(all(&document, "failure").is_empty(), "{text}");
        let errors = all(&document, "error");
        // The run, and its three requirements; that of the whole is left.
        let types: Vec<_> = errors.iter().filter_map(|error| error.attribute("type")).collect();
        assert_eq!(types, ["invalid"; 4]);
        let message = |n: usize| errors[n].attribute("message").expect("a message");
        assert!(message(0).starts_with("masquerade: 91.2 %"), "{}", message(0));
        assert!(message(1).starts_with("the run is invalid; observed "), "{}", message(1));
    }

    #[test]
    fn a_run_that_may_be_invalid_is_an_error_and_its_requirements_are_what_was_found() {
        let text = junit(&fixture::doubtful());
        let document = Document::parse(&text).expect("it is XML");
        let [error] = &all(&document, "error")[..] else { panic!("one, in {text}") };
        assert_eq!(error.attribute("type"), Some("inconclusive"));
        let case = error.parent().expect("it is in a case");
        assert_eq!(case.attribute("name"), Some("the run is valid"));
    }

    #[test]
    fn a_report_that_ended_between_its_runs_is_not_all_green() {
        let report = Report { interrupted: true, ..fixture::passed() };
        let text = junit(&report);
        let document = Document::parse(&text).expect("it is XML");
        let [error] = &all(&document, "error")[..] else { panic!("one, in {text}") };
        let case = error.parent().expect("it is in a case");
        assert_eq!(case.attribute("name"), Some("the report is complete"));
        assert_eq!(error.attribute("type"), Some("interrupted"));
        let suite = case.parent().and_then(|suite| suite.attribute("name"));
        assert_eq!(suite, Some("the whole"));
        let before = Report { runs: Vec::new(), thresholds: Vec::new(), ..report };
        let text = junit(&before);
        let document = Document::parse(&text).expect("it is XML");
        let root = document.root_element();
        assert_eq!((root.attribute("errors"), root.attribute("time")), (Some("1"), Some("0.000")));
    }

    #[test]
    fn names_are_text_whatever_they_hold() {
        let mut report = fixture::hostile_and_empty();
        report.title = "a\u{0}\u{fffe}\"'<![CDATA[]]>&amp;".to_owned();
        let text = junit(&report);
        let document = Document::parse(&text).expect("it is XML");
        assert_eq!(
            document.root_element().attribute("name"),
            Some("a\u{fffd}\u{fffd}\"'<![CDATA[]]>&amp;")
        );
    }
}
