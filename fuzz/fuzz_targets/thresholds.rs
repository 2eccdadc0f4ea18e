//! The reader of requirements, fed with any text: it says what is wrong, never panics, and reads what it shows.

#![no_main]

use libfuzzer_sys::fuzz_target;
use parallax_loadgen::Threshold;

fuzz_target!(|text: &str| {
    match Threshold::parse(text) {
        Ok(threshold) => {
            let shown = threshold.to_string();
            match Threshold::parse(&shown) {
                Ok(again) => {
                    assert_eq!((again.metric, again.route), (threshold.metric, threshold.route));
                    assert_eq!((again.stat, again.op), (threshold.stat, threshold.op));
                    assert_eq!((again.limit, again.unit), (threshold.limit, threshold.unit));
                }
                // A limit may have more digits in another unit than one can be written with: twenty.
                Err(error) => assert!(shown[error.place()].len() > 20, "{shown:?}: {error}"),
            }
        }
        Err(error) => assert!(error.place().end <= text.len()),
    }
    match Threshold::from_toml(text, "slo.toml") {
        Ok(thresholds) => assert!(!thresholds.is_empty()),
        Err(error) => {
            assert_ne!(error.problems().count(), 0);
            assert!(error.problems().all(|problem| problem.starts_with("slo.toml:")), "{error}");
        }
    }
});
