//! What the benchmarks share: the middle of many figures, callgrind's counts, and the page that shows them.

use std::{env, fs, path::Path, process::Command};

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Instructions per run, counted by callgrind in this very program; `None` without it. `arguments` has it run
/// so many times: what does not grow with them cancels out.
pub(crate) fn instructions(
    options: &[&str],
    arguments: impl Fn(usize) -> Vec<String>,
    runs: usize,
) -> Option<f64> {
    let count = |runs: usize| -> Option<f64> {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .args(options)
            .arg(env::current_exe().ok()?)
            .args(arguments(runs))
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = text.lines().find(|line| line.contains("Collected :"))?;
        line.rsplit(' ').next()?.parse().ok()
    };
    Some((count(2 * runs)? - count(runs)?) / runs as f64)
}

/// Puts tables between their markers in a page of the documentation.
pub(crate) fn write_tables(page: &str, name: &str, tables: &str) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let text = fs::read_to_string(&page).expect("the page is there");
    let (first, last) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let (before, rest) = text.split_once(&first).expect("the first marker");
    let (_, after) = rest.split_once(&last).expect("the second marker");
    fs::write(&page, format!("{before}{first}\n{tables}{last}{after}"))
        .expect("the page can be written");
}
