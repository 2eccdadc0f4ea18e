//! The reader of saved reports, and every rendering of what it takes for one. Begin with `seeds/report`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use parallax_loadgen::{
    Report,
    render::{self, Style, Table},
};

fuzz_target!(|data: &[u8]| {
    let report = match Report::from_json(data) {
        Ok(report) => report,
        Err(error) => return assert!(error.chars().all(|c| !c.is_control()), "{error:?}"),
    };
    for width in [80, 132] {
        let page = render::text(&report, Style { width, ..Style::default() });
        assert!(page.chars().all(|c| c == '\n' || !c.is_control()));
    }
    assert!(!render::summary(&report, Style { color: true, ..Style::default() }).is_empty());
    assert!(!render::html(&report).contains("NaN"));
    assert!(render::markdown(&report).len() < 65_536);
    assert!(render::junit(&report).chars().all(|c| c == '\n' || !c.is_control()));
    for table in Table::ALL {
        assert!(render::csv(&report, table).ends_with('\n'));
    }
    let saved = render::json(&report);
    let read = Report::from_json(saved.as_bytes()).expect("what was written can be read");
    assert_eq!(render::json(&read), saved);
});
