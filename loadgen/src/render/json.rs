//! The report as it is saved and read back.

use std::fmt::Write;

use super::clean::steers;
use crate::report::Report;

/// The report as JSON, `parallax.report/1`, indented, with a newline at the end. What would steer a terminal is
/// escaped in it, and read back as it was.
#[must_use]
pub fn json(report: &Report) -> String {
    // Serialising into memory fails only for maps with keys that are no strings; a report has none.
    let text = serde_json::to_string_pretty(report).expect("a report consists of JSON's own types");
    let mut out = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        // Such characters stand within strings only: all else is ASCII.
        if c != '\n' && steers(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing into a string does not fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use jsonschema::Validator;
    use parallax_middleware::Perf;
    use serde_json::{Value, json};

    use super::*;
    use crate::render::{self, fixture};

    fn schema(text: &str) -> (Value, Validator) {
        let schema = serde_json::from_str(text).expect("the schema is JSON");
        jsonschema::meta::validate(&schema).expect("the schema is a schema");
        let validator = jsonschema::validator_for(&schema).expect("its references resolve");
        (schema, validator)
    }

    fn report_schema() -> (Value, Validator) {
        schema(include_str!("../../../docs/report.schema.json"))
    }

    fn perf_schema() -> (Value, Validator) {
        schema(include_str!("../../../docs/perf.schema.json"))
    }

    fn assert_fits(validator: &Validator, value: &Value) {
        let errors: Vec<_> = validator
            .iter_errors(value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{errors:#?}");
    }

    fn value(report: &Report) -> Value {
        serde_json::from_str(&super::json(report)).expect("it is JSON")
    }

    #[test]
    fn a_saved_report_is_read_back_as_it_was() {
        let report = fixture::passed();
        let folder = tempfile::tempdir().expect("a folder for the report");
        let path = folder.path().join("report.json");
        std::fs::write(&path, super::json(&report)).expect("the folder is writable");
        let read = Report::read(&path).expect("it is a report");
        assert_eq!(read, report);
        assert_eq!(super::json(&read), super::json(&report));
    }

    #[test]
    fn what_steers_a_terminal_is_escaped_and_read_back() {
        let mut report = fixture::passed();
        report.title = "a\u{9b}2J\u{7f}\u{202e}b\u{e0041}ä🦀\n".to_owned();
        let text = super::json(&report);
        assert!(text.contains(r#""a\u009b2J\u007f\u202eb\udb40\udc41ä🦀\n""#), "{text}");
        assert_eq!(Report::from_json(text.as_bytes()), Ok(report));
    }

    #[test]
    fn reports_fit_their_schema() {
        let (_, validator) = report_schema();
        for report in [fixture::passed(), fixture::invalid(), fixture::doubtful()] {
            assert_fits(&validator, &value(&report));
        }
    }

    #[test]
    fn snapshots_fit_their_schema() {
        let (_, validator) = perf_schema();
        let empty = Perf::new().snapshot().view();
        assert_fits(&validator, &serde_json::to_value(empty).expect("it is JSON"));
        assert_fits(&validator, &value(&fixture::passed())["runs"][0]["server"]);
    }

    #[test]
    fn the_schema_refuses_what_no_report_may_say() {
        let (_, validator) = report_schema();
        let good = value(&fixture::passed());
        for (path, broken) in [
            ("/schema", json!("parallax.report/2")),
            ("/verdict", json!("passed")),
            // What is invalid has no grade.
            ("/verdict", json!("invalid")),
            ("/grade", json!("superb")),
            ("/thresholds/0/unit", json!("ms")),
            ("/thresholds/0/limit", json!(null)),
            ("/runs/0/conservation/unexplained", json!(-1)),
            ("/runs/0/conservation/ok", json!(1.5)),
            ("/runs/0/client/response_time/p99_us", json!("12 ms")),
            ("/runs/0/client/response_time/count", json!(0)),
            ("/runs/0/client/response_time/curve/0", json!([1.2, 5.0])),
            ("/runs/0/client/response_time/curve/0", json!([0.5, 5.0, 6.0])),
            // Each verdict but a pass has its reasons.
            ("/runs/0/validity/verdict", json!("inconclusive")),
            ("/runs/0/validity/verdict", json!("fail")),
            ("/runs/0/validity/reasons", json!([{"rule": "lag", "message": "late"}])),
            ("/runs/0/plan/users", json!(null)),
            ("/runs/0/plan/timeout_s", json!(0)),
            ("/runs/0/server/routes/0/outcomes/ok", json!(null)),
            ("/runs/0/server/runtime/busy_ratio", json!(1.01)),
            ("/runs/0/hints/0/message", json!("")),
            ("/runs/0/littles_law/samples", json!(-1)),
            ("/runs/0/settling/stationary", json!("yes")),
            ("/runs/0/stalls/0/at_s", json!(-0.5)),
            ("/runs/0/warmup/0/outcomes/ok", json!(null)),
            ("/runs/0/timeline/0/outcomes", json!({})),
            ("/runs/0/resources/0/busy_ratio", json!(1.5)),
            ("/runs/0/resources/0/canary_us", json!("late")),
            ("/runs/0/resources/0/pools/0/waiting", json!(null)),
            ("/runs/0/client/routes/0/conservation/unexplained", json!(0.5)),
            ("/memory/reach", json!("far")),
        ] {
            let mut report = good.clone();
            *report.pointer_mut(path).unwrap_or_else(|| panic!("{path} is missing")) = broken;
            assert!(!validator.is_valid(&report), "{path} was accepted");
        }
        for (path, field) in [
            ("", "environment"),
            ("/runs/0", "conservation"),
            ("/runs/0", "server"),
            ("/runs/0/conservation", "check_failed"),
            ("/runs/0/pairs/outside", "p999_us"),
            ("/runs/0/timeline/0", "p99_us"),
            ("/runs/0/hints/0", "rule"),
            ("/runs/0/stalls/0", "slow"),
            ("/runs/0/client/routes/0/conservation", "not_seen"),
        ] {
            let mut report = good.clone();
            let object = report.pointer_mut(path).and_then(Value::as_object_mut).expect(path);
            assert!(object.remove(field).is_some(), "{path}/{field} is missing");
            assert!(!validator.is_valid(&report), "without {path}/{field} it was accepted");
        }
    }

    /// What reports have had only since hints came up, by the place that has it.
    const LATER: [(&str, &[&str]); 6] = [
        ("/runs/0", &["hints", "littles_law", "settling", "stalls", "warmup"]),
        ("/runs/0/generator", &["wake_ups"]),
        ("/runs/0/timeline/0", &["outcomes"]),
        ("/runs/0/warmup/0", &["outcomes"]),
        ("/runs/0/resources/0", &["busy_ratio", "queue_depth", "canary_us", "pools"]),
        ("/runs/0/client/routes/0", &["conservation"]),
    ];

    #[test]
    fn older_reports_have_less_and_are_reports_all_the_same() {
        let (_, validator) = report_schema();
        let mut report = value(&fixture::passed());
        for (path, fields) in LATER.into_iter().rev() {
            let object = report.pointer_mut(path).and_then(Value::as_object_mut).expect(path);
            for field in fields {
                assert!(object.remove(*field).is_some(), "{path}/{field} is missing");
            }
        }
        assert_fits(&validator, &report);
        let old: Report = serde_json::from_value(report).expect("it is a report");
        assert!(old.runs[0].hints.is_empty() && old.runs[0].resources[0].pools.is_empty());
        assert!(!render::text(&old, render::Style::default()).is_empty());
        assert!(!render::html(&old).is_empty());
    }

    #[test]
    fn readers_may_meet_fields_that_they_do_not_know() {
        let mut report = value(&fixture::passed());
        report["runs"][0]["invented_later"] = json!(1);
        let (_, validator) = report_schema();
        assert_fits(&validator, &report);
        assert!(serde_json::from_value::<Report>(report).is_ok());
    }

    #[test]
    fn the_snapshot_inside_a_report_has_the_schema_of_the_endpoint() {
        let (report, perf) = (report_schema().0, perf_schema().0);
        let inner = report["$defs"]["perf"].as_object().expect("an object");
        for (key, value) in inner {
            assert_eq!(&perf[key], value, "{key}");
        }
        for (name, value) in perf["$defs"].as_object().expect("an object") {
            assert_eq!(&report["$defs"][name], value, "{name}");
        }
    }
}
