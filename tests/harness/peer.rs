//! Other programs that a few tests run against: curl, nghttp2, nginx.

use std::process::{Command, Stdio};

/// Whether `program` can be run. If not, the test that asks is skipped and says so; with `FAIRLEAD_REQUIRE_PEERS=1` it
/// fails instead, so that a machine that checks releases can't skip in silence.
pub fn available(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !found {
        assert!(std::env::var("FAIRLEAD_REQUIRE_PEERS").as_deref() != Ok("1"), "{program} isn't installed");
        eprintln!("skipped: {program} isn't installed");
    }
    found
}
