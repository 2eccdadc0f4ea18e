//! The parser of `Server-Timing`, fed with what any server may answer, in the head and in trailers.

#![no_main]

use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use parallax_loadgen::server_timing::record;

fuzz_target!(|data: &[u8]| {
    // Lines are values; a blank one ends the head.
    let mut parts = [HeaderMap::new(), HeaderMap::new()];
    let mut at = 0;
    for line in data.split(|byte| *byte == b'\n') {
        if line.is_empty() {
            at = 1;
        } else if let Ok(value) = HeaderValue::from_bytes(line) {
            parts[at].append("server-timing", value);
        }
    }
    let [head, trailers] = &parts;
    if let Some(told) = record(head, Some(trailers)) {
        assert!(told.phases.len() <= 64);
        let within = |part| told.server_time.is_none() || part <= told.server_time;
        assert!(within(told.first_byte) && within(told.handler));
    }
    // What one part tells is believed, or not, as that of another.
    assert_eq!(record(head, None), record(&HeaderMap::new(), Some(head)));
});
