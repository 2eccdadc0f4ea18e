//! A real run's report: its schema, and its renderings from the saved file alone.

use std::{path::Path, time::Duration};

use axum::{Router, routing::get};
use parallax_loadgen::{LoadTest, Report, render};
use parallax_middleware::Perf;
use serde_json::Value;

async fn real_report() -> Report {
    let app = Router::new().route("/", get(|| async { "tea" })).layer(Perf::new().layer());
    LoadTest::new(app)
        .get("/")
        .get("/nowhere")
        .rate(500)
        .warmup(Duration::ZERO)
        .duration(Duration::from_millis(400))
        .threshold("p99 < 1s")
        .threshold("p99.9 < 1s")
        .threshold("errors < 90%")
        .run()
        .await
        .expect("the plan is valid")
}

fn schema(name: &str) -> jsonschema::Validator {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    let text = std::fs::read(path).expect("the schema is there");
    let schema: Value = serde_json::from_slice(&text).expect("the schema is JSON");
    jsonschema::validator_for(&schema).expect("the schema is a schema")
}

fn assert_valid(validator: &jsonschema::Validator, value: &Value) {
    let errors: Vec<String> =
        validator.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_report_follows_its_schema() {
    let report = real_report().await;
    let value: Value = serde_json::from_str(&render::json(&report)).expect("it is JSON");
    let schema = schema("report.schema.json");
    assert_valid(&schema, &value);

    let mut broken = value;
    broken["runs"][0]["conservation"]["sent"] = "many".into();
    assert!(!schema.is_valid(&broken), "the schema refuses a wrong type");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_snapshot_follows_its_schema() {
    let perf = Perf::new();
    let app = Router::new().route("/", get(|| async { "tea" })).layer(perf.layer());
    LoadTest::new(app)
        .get("/")
        .warmup(Duration::ZERO)
        .duration(Duration::from_millis(100))
        .run()
        .await
        .expect("the plan is valid");
    let schema = schema("perf.schema.json");
    let value = serde_json::to_value(perf.snapshot().view()).expect("it serialises");
    assert_valid(&schema, &value);
    assert!(!schema.is_valid(&serde_json::json!({ "schema": "parallax.perf/1" })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saved_report_renders_to_the_same_bytes() {
    let report = real_report().await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("report.json");
    std::fs::write(&path, render::json(&report)).expect("written");
    let saved = Report::read(&path).expect("it is a report");
    assert_eq!(saved, report);
    for color in [false, true] {
        let style = render::Style { color, ..render::Style::default() };
        assert_eq!(render::text(&saved, style), render::text(&report, style));
    }
    assert_eq!(render::html(&saved), render::html(&report));
    assert_eq!(render::json(&saved), render::json(&report));
}

#[test]
fn what_is_no_report_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    for (content, reason) in [
        ("{", "EOF"),
        ("{}", "no field \"schema\""),
        (r#"{"schema":"parallax.report/2"}"#, "parallax.report/2"),
        (r#"{"schema":"parallax.report/1"}"#, "missing field"),
    ] {
        let path = folder.path().join("report.json");
        std::fs::write(&path, content).expect("written");
        let error = Report::read(&path).expect_err("it is no report").to_string();
        assert!(error.contains(reason) && error.contains("report.json"), "{error}");
    }
    let error = Report::read(&folder.path().join("absent.json")).expect_err("absent").to_string();
    assert!(error.contains("absent.json"), "{error}");
}
