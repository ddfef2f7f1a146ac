//! ClientHellos: what fewer bytes have told, more don't change, unless they follow a whole one in its record.
#![no_main]

use gateway::tls::hello::ClientHello;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(Some(hello)) = ClientHello::read(input) {
        assert_eq!(ClientHello::read(&input[..hello.length]), Ok(Some(hello.clone())));
        for end in 0..hello.length.min(256) {
            assert_eq!(ClientHello::read(&input[..end]), Ok(None), "{end}");
        }
    }
});
