//! Path normalisation: what it lets through begins with a slash and doesn't change when it is normalised again.
#![no_main]

use config::snapshot::listener::{EscapedSlashes, PathNormalization};
use gateway::http::normalize::{Normalized, normalize};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if !input.starts_with(b"/") || !input.iter().all(u8::is_ascii_graphic) {
        return;
    }
    for mode in [PathNormalization::Base, PathNormalization::MergeSlashes] {
        if let Normalized::Changed(path) = normalize(input, mode, EscapedSlashes::Keep) {
            assert!(path.starts_with(b"/"));
            let again = normalize(&path, PathNormalization::Base, EscapedSlashes::Keep);
            // One decoding may uncover an escape of its own, such as `%2%35`; nothing may be refused then.
            assert!(!matches!(again, Normalized::Redirect(_)));
        }
    }
});
