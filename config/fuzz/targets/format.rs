//! Envoy's format strings.
#![no_main]

use config::snapshot::format::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // Either is fine; neither may panic.
    let _ = Format::parse(text);
});
