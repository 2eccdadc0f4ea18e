//! Data files: rows of values for iterations.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use rand::RngExt;
use serde_json::{Map, Value};

use super::table::Pick;
use crate::scenario::LoadRng;

/// The rows of a file, read once.
#[derive(Debug)]
pub(super) struct Data {
    pub(super) name: String,
    pub(super) columns: Vec<String>,
    rows: Vec<Vec<Value>>,
    pick: Pick,
    /// The next row of those that are taken in order, by whoever asks first.
    next: AtomicU64,
}

/// A row of a set, which goes with all requests of an iteration.
#[derive(Clone, Debug)]
pub(super) struct Row {
    data: Arc<Data>,
    number: usize,
}

impl Row {
    pub(super) fn value(&self, column: usize) -> &Value {
        &self.data.rows[self.number][column]
    }
}

/// Why a file is no data.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct BadData {
    pub(super) path: PathBuf,
    pub(super) line: Option<u64>,
    pub(super) what: String,
}

impl Data {
    pub(super) fn read(name: &str, path: &Path, pick: Pick) -> Result<Self, BadData> {
        let bad = |line, what| BadData { path: path.to_owned(), line, what };
        let parse = match path.extension().and_then(|extension| extension.to_str()) {
            Some("csv") => csv,
            Some("jsonl") => jsonl,
            _ => {
                let what = "what it holds its name does not say: it has to end in .csv or .jsonl";
                return Err(bad(None, what.to_owned()));
            }
        };
        let read = || {
            // A pipe or a device might never end.
            if !fs::metadata(path)?.is_file() {
                return Err(std::io::Error::other("it is no file"));
            }
            fs::read_to_string(path)
        };
        let text = read().map_err(|error| bad(None, format!("it cannot be read: {error}")))?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let (columns, rows) = parse(text).map_err(|(line, what)| bad(line, what))?;
        if rows.is_empty() {
            return Err(bad(None, "it has no rows; add one at least".to_owned()));
        }
        Ok(Self { name: name.to_owned(), columns, rows, pick, next: AtomicU64::new(0) })
    }

    /// Those of a column.
    pub(super) fn values(&self, column: usize) -> impl Iterator<Item = &Value> {
        self.rows.iter().map(move |row| &row[column])
    }

    /// True if there may be no row for an iteration.
    pub(super) fn ends(&self) -> bool {
        self.pick == Pick::Once
    }

    /// A row for an iteration; `None` if all have been taken.
    pub(super) fn pick(self: &Arc<Self>, random: &mut LoadRng) -> Option<Row> {
        let rows = self.rows.len() as u64;
        let number = match self.pick {
            Pick::Random => random.random_range(0..rows),
            Pick::Sequential => self.next.fetch_add(1, Relaxed) % rows,
            Pick::Once => {
                let one_more = |next: u64| (next < rows).then_some(next + 1);
                self.next.fetch_update(Relaxed, Relaxed, one_more).ok()?
            }
        };
        Some(Row { data: self.clone(), number: number as usize })
    }
}

type Table = (Vec<String>, Vec<Vec<Value>>);
type BadLine = (Option<u64>, String);

fn csv(text: &str) -> Result<Table, BadLine> {
    let bad = |error: &csv::Error| {
        let line = error.position().map(csv::Position::line);
        let what = match error.kind() {
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                format!("the row has {len} values, and the first line names {expected_len} columns")
            }
            _ => error.to_string(),
        };
        (line, what)
    };
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let columns: Vec<String> =
        reader.headers().map_err(|e| bad(&e))?.iter().map(str::to_owned).collect();
    let mut seen = BTreeSet::new();
    if let Some(twice) = columns.iter().find(|column| !seen.insert(*column)) {
        return Err((Some(1), format!("two columns are named {twice:?}; rename one")));
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| bad(&error))?;
        rows.push(record.iter().map(|value| Value::String(value.to_owned())).collect());
    }
    Ok((columns, rows))
}

/// An object a line; the first has the columns, and all have the same.
fn jsonl(text: &str) -> Result<Table, BadLine> {
    let mut columns: Vec<String> = Vec::new();
    let mut rows = Vec::new();
    for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
        let bad = |what: String| (Some(line), what);
        let mut object: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| bad(format!("each line has to be a JSON object: {error}")))?;
        if rows.is_empty() {
            columns = object.keys().cloned().collect();
        }
        let mut row = Vec::with_capacity(columns.len());
        for column in &columns {
            let value = object.remove(column);
            row.push(value.ok_or_else(|| {
                bad(format!("the row has no {column:?}, which the first one has"))
            })?);
        }
        if let Some(column) = object.keys().next() {
            return Err(bad(format!("the row has {column:?}, which the first one has not")));
        }
        rows.push(row);
    }
    Ok((columns, rows))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scenario::stream;

    fn read(file: &str, text: &str, pick: Pick) -> Result<Arc<Data>, (Option<u64>, String)> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(file);
        fs::write(&path, text).expect("the folder is writable");
        Data::read("users", &path, pick).map(Arc::new).map_err(|bad| {
            assert_eq!(bad.path, path);
            (bad.line, bad.what)
        })
    }

    fn picks(data: &Arc<Data>, seed: u64, n: usize) -> Vec<Option<Value>> {
        let mut random = stream(seed, "", 0);
        let pick = |_| data.pick(&mut random).map(|row| row.value(0).clone());
        (0..n).map(pick).collect()
    }

    #[test]
    fn rows_of_csv_are_text_and_rows_of_jsonl_keep_their_types() {
        let csv = read("u.csv", "\u{feff}id,name\n1,\"Ann, B.\"\n", Pick::Random).expect("good");
        assert_eq!(csv.columns, ["id", "name"]);
        assert_eq!(csv.rows, [[json!("1"), json!("Ann, B.")]]);
        let jsonl = "{\"id\": 1, \"tags\": [\"a\"]}\n\n{\"tags\": null, \"id\": \"2\"}\n";
        let jsonl = read("u.jsonl", jsonl, Pick::Random).expect("good");
        assert_eq!(jsonl.columns, ["id", "tags"]);
        assert_eq!(jsonl.rows, [[json!(1), json!(["a"])], [json!("2"), json!(null)]]);
    }

    #[test]
    fn sequential_rows_begin_again_and_rows_that_are_used_once_do_not() {
        let text = "id\na\nb\nc\n";
        let of = |names: &str| -> Vec<Option<Value>> {
            names.chars().map(|c| (c != '-').then(|| json!(c.to_string()))).collect()
        };
        let sequential = read("u.csv", text, Pick::Sequential).expect("good");
        assert_eq!(picks(&sequential, 1, 7), of("abcabca"));
        let once = read("u.csv", text, Pick::Once).expect("good");
        assert_eq!(picks(&once, 1, 5), of("abc--"));
    }

    #[test]
    fn random_rows_are_the_same_for_the_same_seed() {
        let rows: String = (0..100).map(|n| format!("{n}\n")).collect();
        let data = read("u.csv", &format!("id\n{rows}"), Pick::Random).expect("good");
        assert_eq!(picks(&data, 1, 20), picks(&data, 1, 20));
        assert_ne!(picks(&data, 1, 20), picks(&data, 2, 20));
    }

    #[test]
    fn what_is_no_data_is_refused_with_its_line() {
        let has = "each line has to be a JSON object: ";
        for (file, text, line, what) in [
            (
                "u.csv",
                "a,b\n1,2\n3\n",
                Some(3),
                "the row has 1 values, and the first line names 2 columns",
            ),
            ("u.csv", "a,a\n1,2\n", Some(1), "two columns are named \"a\"; rename one"),
            ("u.csv", "a\n", None, "it has no rows; add one at least"),
            ("u.csv", "", None, "it has no rows; add one at least"),
            (
                "u.jsonl",
                "{\"a\":1}\n{}\n",
                Some(2),
                "the row has no \"a\", which the first one has",
            ),
            (
                "u.jsonl",
                "{}\n{\"a\":1}\n",
                Some(2),
                "the row has \"a\", which the first one has not",
            ),
            (
                "u.txt",
                "",
                None,
                "what it holds its name does not say: it has to end in .csv or .jsonl",
            ),
        ] {
            let refused = read(file, text, Pick::Random).expect_err(text);
            assert_eq!(refused, (line, what.to_owned()));
        }
        let (line, what) = read("u.jsonl", "{}\n[1]\n", Pick::Random).expect_err("no object");
        assert!(line == Some(2) && what.starts_with(has), "{what}");
        let folder = tempfile::tempdir().expect("a folder");
        let missing = Data::read("users", &folder.path().join("u.csv"), Pick::Random);
        let why = "it cannot be read: No such file or directory (os error 2)";
        assert_eq!(missing.expect_err("missing").what, why);
        let is_folder = folder.path().join("d.csv");
        fs::create_dir(&is_folder).expect("writable");
        let folder = Data::read("users", &is_folder, Pick::Random).expect_err("a folder");
        assert_eq!(folder.what, "it cannot be read: it is no file");
    }
}
