//! `docs/operations`: the alert rules and the dashboard, held against what a real service exposes.

use std::{collections::BTreeSet, fs, path::PathBuf};

use serde_json::Value;

use crate::{
    exposition::{busy, scrape},
    support::promtool::promtool,
};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/operations")
}

fn read(file: &str) -> String {
    fs::read_to_string(folder().join(file)).expect("it is there")
}

/// Words that are made of letters, digits and underscores.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// `key="value"` and `key=~"value|value"`, but with a variable of the dashboard.
fn selectors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices('=') {
        let key = words(&text[..at]).last().filter(|key| text[..at].ends_with(key));
        let rest = text[at + 1..].trim_start_matches('~');
        let value = rest.strip_prefix('"').and_then(|rest| rest.split_once('"'));
        let (Some(key), Some((values, _))) = (key, value) else { continue };
        if !values.contains('$') && key != "job" && key != "instance" {
            found.extend(values.split('|').map(|value| format!("{key}=\"{value}\"")));
        }
    }
    found
}

/// Every expression of the dashboard: those of its panels, and those that fill its variables.
fn expressions(dashboard: &Value) -> Vec<&str> {
    match dashboard {
        Value::Object(fields) => {
            let own =
                ["expr", "definition"].into_iter().filter_map(|name| fields.get(name)?.as_str());
            own.chain(fields.values().flat_map(expressions)).collect()
        }
        Value::Array(values) => values.iter().flat_map(expressions).collect(),
        _ => Vec::new(),
    }
}

/// Asserts that all metrics and labels that `text` names are among the words of these lines.
fn assert_named<'e>(text: &str, exposed: impl Iterator<Item = &'e str>) {
    let known: BTreeSet<&str> = exposed.flat_map(words).collect();
    let ours = |word: &&str| {
        let families = ["http_", "db_client_", "parallax_", "process_"];
        families.iter().any(|family| word.starts_with(family))
    };
    let named: BTreeSet<&str> = words(text).filter(ours).collect();
    assert!(named.len() > 10, "{named:?}");
    let missing: Vec<&&str> = named.iter().filter(|name| !known.contains(**name)).collect();
    assert!(missing.is_empty(), "nothing is named {missing:?}");
}

/// Asserts that everything that `text` asks for is there in what a busy service exposes.
fn assert_exposed(text: &str, exposed: &str) {
    assert_named(text, exposed.lines().filter(|line| !line.starts_with('#')));
    let selectors = selectors(text);
    assert!(selectors.len() > 3, "{selectors:?}");
    for selector in selectors {
        assert!(exposed.contains(&selector), "nothing is labelled {selector}");
    }
}

fn alerts() -> BTreeSet<String> {
    let rules = read("alerts.yml");
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    names.map(ToOwned::to_owned).collect()
}

#[test]
fn promtool_accepts_the_rules() {
    let said = promtool(&["check", "rules", "alerts.yml"], &folder(), "");
    assert!(said.contains(&format!("{} rules found", alerts().len())), "{said}");
}

#[test]
fn every_alert_fires_when_it_should_and_is_silent_otherwise() {
    promtool(&["test", "rules", "alerts.test.yml"], &folder(), "");
    let cases = read("alerts.test.yml");
    for alert in alerts() {
        let expects = |what: &str| {
            let mut of_alert = cases
                .split("  - name: ")
                .filter(|case| case.contains(&format!("alertname: {alert}\n")));
            of_alert.any(|case| case.contains(what))
        };
        assert!(expects("exp_labels:"), "{alert} never fires in a test");
        assert!(expects("exp_alerts: []"), "{alert} is never silent in a test");
    }
}

#[test]
fn every_alert_has_its_paragraph_and_every_paragraph_its_alert() {
    let (rules, page) = (read("alerts.yml"), read("README.md"));
    let headings: BTreeSet<String> =
        page.lines().filter_map(|line| line.strip_prefix("### ")).map(ToOwned::to_owned).collect();
    assert_eq!(headings, alerts());
    for alert in alerts() {
        let link = format!("runbook: docs/operations/README.md#{}\n", alert.to_lowercase());
        assert!(rules.contains(&link), "{alert}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_rules_name_is_exposed() {
    let exposed = scrape(&busy().await).await;
    assert_exposed(&read("alerts.yml"), &exposed);
    // The figures that the rules are tested with have the labels of real ones.
    let series: String = read("alerts.test.yml")
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- series: "))
        .map(|series| format!("{series}\n"))
        .collect();
    assert_exposed(&series, &exposed);
}

#[tokio::test(start_paused = true)]
async fn what_the_dashboard_names_is_exposed() {
    let exposed = scrape(&busy().await).await;
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).expect("it is JSON");
    let expressions = expressions(&dashboard);
    assert!(expressions.len() > 25, "{expressions:?}");
    assert_exposed(&expressions.join("\n"), &exposed);
}

#[tokio::test(start_paused = true)]
async fn what_the_page_names_is_exposed_and_all_that_is_exposed_is_on_the_page() {
    let (exposed, page) = (scrape(&busy().await).await, read("README.md"));
    assert_named(&page, exposed.lines());
    let types = exposed.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    for family in types.filter_map(|line| line.split(' ').next()) {
        assert!(page.contains(&format!("`{family}`")), "{family} is not on the page");
    }
}
