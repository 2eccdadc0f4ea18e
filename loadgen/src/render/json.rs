//! The report as it is saved and read back.

use crate::report::Report;

/// The report as JSON, `parallax.report/1`, indented, with a newline at the end.
#[must_use]
pub fn json(report: &Report) -> String {
    // Serialising into memory fails only for maps with keys that are no strings; a report has none.
    let mut text =
        serde_json::to_string_pretty(report).expect("a report consists of JSON's own types");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::fixture;

    #[test]
    fn a_saved_report_is_read_back_as_it_was() {
        let report = fixture::passed();
        let folder = tempfile::tempdir().expect("a folder for the report");
        let path = folder.path().join("report.json");
        std::fs::write(&path, json(&report)).expect("the folder is writable");
        let read = Report::read(&path).expect("it is a report");
        assert_eq!(read, report);
        assert_eq!(json(&read), json(&report));
    }
}
