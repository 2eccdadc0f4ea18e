//! The reader of scenario files, fed with any text: it says what is wrong, and never panics.

#![no_main]

use libfuzzer_sys::fuzz_target;
use parallax_loadgen::Scenario;

fuzz_target!(|text: &str| {
    // A folder that is not there: no data file is read.
    if let Err(error) = Scenario::from_toml(text, "/nowhere/scenario.toml") {
        assert!(error.problems().count() > 0);
    }
});
