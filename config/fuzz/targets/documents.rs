//! Whole files: whatever stands in them becomes resources or diagnostics, and no panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for parsed in config::parse::parse_text("fuzz.yaml", text) {
        for diagnostic in &parsed.diagnostics {
            assert!(!diagnostic.message.is_empty());
        }
    }
});
