//! Chunked bodies: the result must not depend on how the bytes arrive.
#![no_main]

use bytes::BytesMut;
use gateway::http::chunked::{Decoded, Decoder};
use libfuzzer_sys::fuzz_target;

fn decode(pieces: &mut dyn Iterator<Item = &[u8]>) -> (Vec<u8>, Option<bool>) {
    let mut decoder = Decoder::chunked();
    let mut buffer = BytesMut::new();
    let mut body = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Decoded::Data(data)) => body.extend_from_slice(&data),
                Ok(Decoded::End) => return (body, Some(true)),
                Ok(Decoded::NeedMore) => break,
                Err(_) => return (body, Some(false)),
            }
        }
    }
    (body, None)
}

fuzz_target!(|input: &[u8]| {
    let whole = decode(&mut std::iter::once(input));
    let bytewise = decode(&mut input.chunks(1));
    assert_eq!(whole, bytewise);
});
