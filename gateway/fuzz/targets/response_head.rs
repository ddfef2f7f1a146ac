//! Heads of HTTP/1 responses.
#![no_main]

use bytes::BytesMut;
use gateway::http::head::{HeadScanner, MAX_HEADERS};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(Some(head)) = HeadScanner::default().response(&mut BytesMut::from(input)) {
        assert!(head.status < 1000);
        assert!(head.headers.len() <= MAX_HEADERS);
    }
});
