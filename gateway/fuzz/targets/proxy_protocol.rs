//! PROXY protocol headers: more bytes never change what fewer have told.
#![no_main]

use gateway::listener::proxy_protocol::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let whole = parse(input);
    for end in 0..input.len().min(256) {
        let part = parse(&input[..end]);
        assert!(part == Ok(None) || part == whole, "{end}");
    }
});
