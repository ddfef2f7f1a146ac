//! What testssl.sh, a scanner, thinks of a server with defaults.

use std::path::Path;
use std::process::Command;

use super::{edge, https};
use crate::harness::peer;
use crate::harness::pki::{Authority, Leaf, tls_secret};
use crate::harness::process::run;
use crate::harness::upstream::Upstream;

#[tokio::test]
async fn testssl_finds_nothing_above_low() {
    if !peer::available("testssl") || !peer::available("jq") {
        return;
    }
    let authority = Authority::new("servers");
    let upstream = Upstream::ok().await;
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root.pem");
    std::fs::write(&root, authority.pem()).unwrap();
    let yaml = https("*", "{mode: SIMPLE, credentialName: c}");
    let mesh =
        edge(&yaml, &[443], upstream.address()).document(&tls_secret("c", &authority.issue(&Leaf::server("a.test"))));
    let gateway = mesh.start().await;
    let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/testssl.sh"));
    script.args([&gateway.address(443).to_string(), "a.test", root.to_str().unwrap()]);
    let output = run(script).await;
    let text = String::from_utf8_lossy(&output.stdout);
    eprintln!("{text}");
    assert!(output.status.success(), "{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
}
