//! Heads of HTTP/1 requests: the result must not depend on how the bytes arrive.
#![no_main]

use bytes::BytesMut;
use gateway::http::head::HeadScanner;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let whole = HeadScanner::default().request(&mut BytesMut::from(input));
    let mut scanner = HeadScanner::default();
    let mut buffer = BytesMut::new();
    for byte in input {
        buffer.extend_from_slice(&[*byte]);
        match scanner.request(&mut buffer) {
            Ok(None) => {}
            Ok(Some(head)) => {
                assert_eq!(whole, Ok(Some(head)));
                return;
            }
            Err(_) => {
                assert!(whole.is_err());
                return;
            }
        }
    }
    assert!(!matches!(whole, Ok(Some(_))));
});
