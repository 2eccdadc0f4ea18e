//! A real run's report: its schema, and its renderings from the saved file alone.

use std::{panic::catch_unwind, path::Path, time::Duration};

use axum::{Router, routing::get};
use parallax_loadgen::{
    LoadTest, Report, Verdict, render,
    report::{Check, PoolRow},
};
use parallax_middleware::Perf;
use serde_json::{Value, json};

use crate::support::browser::Browser;

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
    for (color, width) in [(false, 80), (true, 132)] {
        let style = render::Style { color, width };
        assert_eq!(render::text(&saved, style), render::text(&report, style));
        assert_eq!(render::summary(&saved, style), render::summary(&report, style));
    }
    for render in [render::html, render::json, render::markdown, render::junit] {
        assert_eq!(render(&saved), render(&report));
    }
    for table in render::Table::ALL {
        assert_eq!(render::csv(&saved, table), render::csv(&report, table));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_that_fails_says_what_did_not_hold_and_little_else() {
    let mut report = real_report().await;
    report.verdict = Verdict::Fail;
    let [first, .., last] = &mut report.runs[0].thresholds[..] else { panic!("there are three") };
    (first.verdict, last.verdict) = (Verdict::Fail, Verdict::Pass);
    let failed = catch_unwind(|| report.assert_passed()).expect_err("it did not pass");
    let message = failed.downcast::<String>().expect("a text");
    for said in ["FAIL  ", "p99 < 1s", "response time", "server time", "GET /"] {
        assert!(message.contains(said), "{said} is missing in {message}");
    }
    for unsaid in ["where every request went", "where the time goes", "errors < 90%", "Report {"] {
        assert!(!message.contains(unsaid), "{unsaid} is in {message}");
    }
}

/// All that a page may have to show, under names of 64 letters.
fn named_at_length(mut report: Report) -> Report {
    let name = "a".repeat(64);
    let run = &mut report.runs[0];
    run.name.clone_from(&name);
    report.thresholds.iter_mut().for_each(|result| result.run.clone_from(&name));
    report.environment.settings.push((name.clone(), name.clone()));
    run.plan.tags.insert(name.clone(), name.clone());
    run.plan.mix[0].0.clone_from(&name);
    run.client.routes[0].route.clone_from(&name);
    let first_failure = Some(name.clone());
    run.checks.push(Check { name: name.clone(), failed: 1, first_failure, ..Check::default() });
    run.warmup.clone_from(&run.timeline);
    run.timeline[1].failed = 3;
    run.timeline[1].outcomes.timeout = 3;
    for row in &mut run.resources {
        let (name, kind) = (name.clone(), "sqlx".to_owned());
        row.pools.push(PoolRow { name, kind, max: 9, in_use: 5, idle: 4, waiting: 2 });
    }
    for group in &mut run.attribution {
        let (part, share) = group.shares.pop_last().expect("a part");
        group.shares.insert(part, share / 2.0);
        group.shares.insert(format!("phase:{name}"), share / 2.0);
    }
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_fits_a_phone_and_a_desk_and_has_nothing_to_complain_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("report.html");
    let report = named_at_length(real_report().await);
    std::fs::write(&path, render::html(&report)).expect("written");
    let mut browser = Browser::start(390, 800).await;
    for (width, scheme) in [(390, "light"), (390, "dark"), (1280, "dark")] {
        browser.resize(width, 800).await;
        browser.prefer(scheme).await;
        browser.open(&format!("file://{}", path.display())).await;
        let overflow =
            "document.documentElement.scrollWidth - document.documentElement.clientWidth";
        assert_eq!(browser.value(overflow).await, 0, "{width} pixels are too few");
        // Plots are drawn, and their words are as far apart as to be read.
        let plots = browser.value("document.querySelectorAll('svg').length").await;
        // By percentile, over time, the ends, the pool, the process.
        assert!(plots.as_u64() >= Some(5), "{plots}");
        let waterfall = "document.querySelectorAll('.waterfall > span').length";
        assert!(browser.value(waterfall).await.as_u64() > Some(2), "no parts of the time");
        let small = "[...document.querySelectorAll('svg text')].filter(e => e.getBoundingClientRect().height < 9)";
        assert_eq!(
            browser.value(&format!("{small}.length")).await,
            0,
            "{width} pixels make them too small"
        );
    }
    // A4, in pixels of the screen, without its margins.
    browser.resize(718, 1_000).await;
    browser.ask("Emulation.setEmulatedMedia", json!({"media": "print"})).await;
    browser.open(&format!("file://{}", path.display())).await;
    let least = "Math.min(...[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height))";
    let least = browser.value(least).await;
    // 8 points.
    assert!(least.as_f64() > Some(10.6), "words of {least} pixels on paper");
    assert_eq!(browser.complaints(), "");
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
