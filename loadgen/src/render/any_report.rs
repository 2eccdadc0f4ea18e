//! Whatever can be read as a report can be rendered, and no name in it is more than a name.

use std::cell::Cell;

use proptest::{
    prelude::*,
    sample::{Index, select},
    test_runner::{Config, TestRunner},
};
use roxmltree::Document;
use serde_json::{Map, Value, json};
use unicode_width::UnicodeWidthStr;

use super::{Style, Table, csv, fixture, html, json as as_json, junit, markdown, summary, text};
use crate::report::Report;

/// What ends strings, elements, cells, lines and sections, turns directions, steers terminals, calls people.
const NAMES: [&str; 17] = [
    "",
    "</script><img src=x onerror=y>",
    "\"onmouseover=\"x' autofocus='",
    "</style></details></system-out>]]><![CDATA[",
    "=cmd|' /C calc'!A0",
    "\t@SUM(1+1)*cmd",
    "a,b;\"c\"\r\nd|e\\|f\\",
    "`code` @team #1 [a](javascript:b) *_~",
    "\u{1b}[31m\u{1b}]0;title\u{7}\u{9b}2J",
    "\u{202e}desrever\u{2066}\u{200f}\u{2028}\u{feff}",
    "\u{ad}\u{61c}\u{2060}\u{2065}\u{3164}\u{e0041}",
    "GET /x;=HYPERLINK(1)",
    "測定測定測定測定測定測定測定測定測定測定測定測定測定測定測定測定測定測定測定測定測定測定測定",
    "\u{0}\u{1}\u{fffe}\u{ffff}\u{7f}",
    "GET /größe/テスト/🦀",
    "p99 < 25ms",
    "..............................................................................................................",
];

/// A change of one value, that its reader may well put up with.
#[derive(Clone, Debug)]
enum Change {
    Null,
    Number(f64),
    Count(i128),
    Text(String),
    Empty,
    /// What is left of an array or an object: so many.
    Fewer(Index),
    /// An array twice as long.
    Twice,
    Remove(Index),
    Other(Value),
}

fn change() -> impl Strategy<Value = Change> {
    let edges =
        [0.0, -0.0, -1.0, 1e308, -1e308, f64::MAX, f64::MIN_POSITIVE, 5e-324, 1e15, 0.1 + 0.2];
    let counts = [0, 1, -1, i128::from(u64::MAX), i128::from(i64::MAX), i128::from(u32::MAX)];
    let name = prop_oneof![3 => select(&NAMES[..]).prop_map(str::to_owned), 1 => any::<String>()];
    prop_oneof![
        1 => Just(Change::Null),
        4 => prop_oneof![select(edges.to_vec()), any::<f64>()].prop_map(Change::Number),
        4 => select(counts.to_vec()).prop_map(Change::Count),
        6 => name.prop_map(Change::Text),
        2 => Just(Change::Empty),
        1 => any::<Index>().prop_map(Change::Fewer),
        1 => Just(Change::Twice),
        2 => any::<Index>().prop_map(Change::Remove),
        1 => select(vec![json!([]), json!({}), json!(true), json!("x"), json!(7)]).prop_map(Change::Other),
    ]
}

impl Change {
    /// Whether it leaves a value of the same kind.
    fn suits(&self, value: &Value) -> bool {
        match self {
            Self::Null | Self::Other(_) => true,
            Self::Number(_) => value.is_f64(),
            Self::Count(_) => value.is_number(),
            Self::Text(_) => value.is_string(),
            Self::Empty | Self::Fewer(_) => value.is_array(),
            Self::Twice => value.as_array().is_some_and(|array| array.len() < 100),
            Self::Remove(_) => value.is_object(),
        }
    }

    fn apply(&self, value: &mut Value) {
        match (self, value) {
            (Self::Fewer(count), Value::Array(array)) => {
                array.truncate(count.index(array.len() + 1));
            }
            (Self::Twice, Value::Array(array)) => array.extend(array.clone()),
            (Self::Remove(which), Value::Object(object)) if !object.is_empty() => {
                let key = object.keys().nth(which.index(object.len())).expect("a key").clone();
                object.remove(&key);
            }
            (Self::Null, value) => *value = Value::Null,
            (Self::Number(number), value) => *value = json!(number),
            (Self::Count(count), value) => {
                *value = serde_json::from_str(&count.to_string()).expect("a number");
            }
            (Self::Text(text), value) => *value = json!(text),
            (Self::Empty, value) => *value = json!([]),
            (Self::Other(other), value) => *value = other.clone(),
            (Self::Fewer(_) | Self::Twice | Self::Remove(_), _) => {}
        }
    }
}

/// The places of all values that a change suits.
fn places(value: &Value, path: &str, change: &Change, found: &mut Vec<String>) {
    if change.suits(value) {
        found.push(path.to_owned());
    }
    match value {
        Value::Array(array) => {
            for (index, value) in array.iter().enumerate() {
                places(value, &format!("{path}/{index}"), change, found);
            }
        }
        Value::Object(object) => {
            for (name, value) in object {
                let name = name.replace('~', "~0").replace('/', "~1");
                places(value, &format!("{path}/{name}"), change, found);
            }
        }
        _ => {}
    }
}

/// Reports of all kinds, with few enough points that most changes meet something else.
fn originals() -> Vec<Value> {
    [
        fixture::passed(),
        fixture::invalid(),
        fixture::doubtful(),
        fixture::overloaded(),
        fixture::hostile_and_empty(),
    ]
    .iter()
    .map(|report| {
        let mut value = serde_json::to_value(report).expect("it is JSON");
        shorten(&mut value);
        value
    })
    .collect()
}

fn shorten(value: &mut Value) {
    match value {
        Value::Array(array) => {
            array.truncate(6);
            array.iter_mut().for_each(shorten);
        }
        Value::Object(object) => object.values_mut().for_each(shorten),
        _ => {}
    }
}

#[test]
fn whatever_is_read_is_rendered_and_no_name_is_more_than_a_name() {
    let originals = originals();
    let cases = 150;
    let read = Cell::new(0_u32);
    let mut runner =
        TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(cases) });
    let changes = prop::collection::vec((any::<Index>(), change()), 0..12);
    runner
        .run(&(0..originals.len(), changes), |(which, changes)| {
            let mut value = originals[which].clone();
            for (place, change) in &changes {
                let mut found = Vec::new();
                places(&value, "", change, &mut found);
                if let Some(path) = (!found.is_empty()).then(|| &found[place.index(found.len())])
                    && let Some(value) = value.pointer_mut(path)
                {
                    change.apply(value);
                }
            }
            let bytes = serde_json::to_vec(&value).expect("it is JSON");
            match Report::from_json(&bytes) {
                Ok(report) => {
                    read.set(read.get() + 1);
                    renders(&report);
                }
                Err(error) => assert_shows(&error),
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(read.get() > cases / 4, "only {} of {cases} could be read", read.get());
}

#[test]
fn names_are_names_in_every_place_that_has_one() {
    let [.., original, _] = &originals()[..] else { panic!("there are several") };
    for name in NAMES {
        let mut value = original.clone();
        rename(&mut value, name);
        value["schema"] = json!(crate::report::SCHEMA);
        let bytes = serde_json::to_vec(&value).expect("it is JSON");
        let report = Report::from_json(&bytes).expect("names are free");
        renders(&report);
        for width in [80, 132] {
            let style = Style { width, ..Style::default() };
            let pages = [text(&report, style), summary(&report, style)];
            for line in pages.iter().flat_map(|page| page.lines()) {
                assert!(line.width() <= width, "{} of {width}: {line}", line.width());
            }
        }
    }
}

#[test]
fn what_is_no_report_is_refused_in_words_that_show() {
    for name in NAMES {
        let mut value = originals()[0].clone();
        value["verdict"] = json!(name);
        let bytes = serde_json::to_vec(&value).expect("it is JSON");
        let error = Report::from_json(&bytes).expect_err("it is no verdict");
        assert!(error.contains("verdict") || error.contains("variant"), "{error}");
        assert_shows(&error);
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn no_figure_is_too_large_or_too_small() {
    for original in originals() {
        for (figure, count) in [
            (1e308, u64::MAX),
            (-1e308, 1),
            (f64::MAX, u64::MAX - 1),
            (5e-324, 0),
            (5e-324, u64::MAX),
            (0.0, u64::MAX),
            (1.0, 1 << 53),
        ] {
            let mut value = original.clone();
            resize(&mut value, figure, count);
            let bytes = serde_json::to_vec(&value).expect("it is JSON");
            renders(&Report::from_json(&bytes).expect("figures are free"));
        }
    }
}

/// Puts a figure into the place of every one.
fn resize(value: &mut Value, figure: f64, count: u64) {
    match value {
        Value::Number(number) => {
            *value = if number.is_f64() { json!(figure) } else { json!(count) }
        }
        Value::Array(array) => array.iter_mut().for_each(|value| resize(value, figure, count)),
        Value::Object(object) => {
            for (name, value) in object {
                // Weights have 32 bits.
                let count = if name == "mix" { count.min(u64::from(u32::MAX)) } else { count };
                resize(value, figure, count);
            }
        }
        _ => {}
    }
}

/// `SEEDS=$PWD/fuzz/seeds/report cargo test -p parallax-loadgen --lib -- --ignored what_fuzzing_begins_with`
#[test]
#[ignore = "it writes files that are kept"]
fn what_fuzzing_begins_with() {
    let folder = std::env::var("SEEDS").expect("SEEDS names a folder");
    for (index, report) in originals().iter().enumerate() {
        let path = std::path::Path::new(&folder).join(format!("{index}.json"));
        std::fs::write(path, report.to_string()).expect("the folder is there");
    }
}

/// Puts a name into the place of every text that may be any.
fn rename(value: &mut Value, name: &str) {
    const WORDS: [&str; 5] = ["verdict", "grade", "unit", "model", "schema"];
    match value {
        Value::String(text) => *text = name.to_owned(),
        Value::Array(array) => array.iter_mut().for_each(|value| rename(value, name)),
        Value::Object(object) => {
            let renamed: Map<_, _> = std::mem::take(object)
                .into_iter()
                .map(|(key, mut value)| {
                    if !WORDS.contains(&key.as_str()) {
                        rename(&mut value, name);
                    }
                    // Parts of the time and phases are keys, and so are names of tags.
                    let known = ["lag", "runtime", "outside"].contains(&key.as_str());
                    let part = value.is_number() && (known || key.contains(':'));
                    if key == "tags"
                        && let Value::Object(tags) = &mut value
                    {
                        let renamed = std::mem::take(tags).into_iter();
                        *tags = renamed.map(|(tag, of)| (format!("{name}{tag}"), of)).collect();
                    }
                    (if part { format!("{name}{key}") } else { key }, value)
                })
                .collect();
            *object = renamed;
        }
        _ => {}
    }
}

/// What holds of every rendering of every report.
fn renders(report: &Report) {
    let bytes = as_json(report);
    let again = Report::from_json(bytes.as_bytes()).expect("what was written can be read");
    assert_eq!(as_json(&again), bytes, "a saved report is the report");
    assert_shows(&bytes);

    for width in [80, 132] {
        let plain = Style { width, ..Style::default() };
        for render in [text, summary] {
            let page = render(report, plain);
            assert_shows(&page);
            let colored = render(report, Style { color: true, ..plain });
            assert_eq!(without_colors(&colored), page, "colours change nothing else");
        }
    }

    let page = html(report);
    assert_shows(&page);
    for markup in [
        "<img",
        "<script",
        "</script",
        "\"onmouseover",
        "</style></details",
        "<![CDATA",
        "NaN",
        "\"inf",
    ] {
        assert_eq!(around(&page, markup), None);
    }

    let comment = markdown(report);
    assert_shows(&comment);
    assert!(comment.len() < 65_536);
    for markup in ["<img", "<script", "`", "@", "](", "</system-out"] {
        assert_eq!(around(&comment, markup), None);
    }
    let (mut columns, folded) = (None, comment.matches("<details>").count());
    assert_eq!(folded, comment.matches("</details>").count());
    for line in comment.lines() {
        let cells = line.starts_with('|').then(|| line.matches('|').count());
        if let (Some(before), Some(now)) = (columns, cells) {
            assert_eq!(before, now, "{line}");
        }
        columns = cells;
    }

    let results = junit(report);
    let document = Document::parse(&results).expect("it is XML");
    let count =
        |name| document.descendants().filter(|node| node.has_tag_name(name)).count().to_string();
    let root = document.root_element();
    assert_eq!(root.attribute("tests"), Some(&*count("testcase")));
    assert_eq!(root.attribute("failures"), Some(&*count("failure")));
    assert_eq!(root.attribute("errors"), Some(&*count("error")));

    for table in Table::ALL {
        let rows = csv(report, table);
        let mut reader = ::csv::Reader::from_reader(rows.as_bytes());
        let head = reader.headers().expect("a head").clone();
        let records = reader.records().map(|row| row.expect("as many columns as the head has"));
        for record in [head].into_iter().chain(records) {
            for cell in &record {
                for part in cell.split(';') {
                    let formula = part.trim_start().starts_with(['=', '+', '-', '@']);
                    assert!(!formula || cell.parse::<f64>().is_ok(), "{cell:?} is a formula");
                }
                assert!(!cell.contains(['\n', '\r', '\t', '\u{1b}', '\u{202e}']), "{cell:?}");
            }
        }
    }
}

/// Nothing in it steers a terminal or a reader.
fn assert_shows(page: &str) {
    for c in page.chars() {
        let steers = c.is_control() && c != '\n'
            || matches!(
                c,
                '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}'
                    | '\u{3164}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}'
            );
        assert!(!steers, "{c:?} is in {:?}", around(page, &c.to_string()));
    }
}

/// Where a text has another, if it does.
fn around(text: &str, part: &str) -> Option<String> {
    let at = text.find(part)?;
    let before: String = text[..at].chars().rev().take(100).collect();
    Some(before.chars().rev().chain(text[at..].chars().take(100)).collect())
}

/// Without what `Style` puts there: `ESC [`, digits and semicolons, `m`.
fn without_colors(page: &str) -> String {
    let mut parts = page.split("\u{1b}[");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find('m').expect("a colour ends");
        assert!(part[..end].chars().all(|c| c.is_ascii_digit() || c == ';'), "{part}");
        out.push_str(&part[end + 1..]);
    }
    out
}
