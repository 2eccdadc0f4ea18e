//! The reader of requirements, fed with any text: it says what is wrong, never panics, and reads what it shows.

#![no_main]

use libfuzzer_sys::fuzz_target;
use parallax_loadgen::Threshold;

fuzz_target!(|text: &str| {
    match Threshold::parse(text) {
        Ok(threshold) => {
            // A limit may have more digits in another unit than one can be written with.
            if let Ok(again) = Threshold::parse(&threshold.to_string()) {
                assert_eq!((again.metric, again.route), (threshold.metric, threshold.route));
                assert_eq!((again.stat, again.op), (threshold.stat, threshold.op));
            }
        }
        Err(error) => assert!(error.place().end <= text.len()),
    }
    if let Err(error) = Threshold::from_toml(text, "slo.toml") {
        assert!(error.problems().count() > 0);
    }
});
