//! Hot reload: the rules of the design ("Reload") on the real binary. What counts is what clients get.

mod documents;
mod files;
mod listeners;
mod load;
mod start;
mod upstreams;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::client::Http1;
use crate::harness::eventually;
use crate::harness::gateway::{Gateway, write_into};
use crate::harness::mesh::Mesh;

/// A VirtualService without an upstream: every request for `host` gets `body`.
fn answer(name: &str, host: &str, body: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: {name}\nspec:\n  hosts: [\"{host}\"]\n  \
         gateways: [gateway]\n  http:\n  - directResponse:\n      status: 200\n      body: {{string: {body}}}\n"
    )
}

/// A gateway that listens on port 80 and has no route.
async fn start() -> Gateway {
    Mesh::new().start().await
}

/// What a client gets: the body of a 200, else the status.
async fn get(gateway: &Gateway, host: &str) -> String {
    let response = Http1::connect(gateway.address(80)).await.get(host, "/").await;
    match response.status {
        200 => response.text(),
        status => status.to_string(),
    }
}

/// Waits until clients get `wanted`.
async fn becomes(gateway: &Gateway, host: &str, wanted: &str) {
    eventually(&format!("{host} answers {wanted}"), || async { (get(gateway, host).await == wanted).then_some(()) })
        .await;
}

/// Waits until clients get `new`; nobody may get anything but `old` before.
async fn turns(gateway: &Gateway, host: &str, old: &str, new: &str) {
    eventually(&format!("{host} answers {new} after {old}"), || async {
        let got = get(gateway, host).await;
        assert!(got == old || got == new, "{host}: between {old} and {new} a client got {got}");
        (got == new).then_some(())
    })
    .await;
}

/// Waits until everything that was done to files before this call has been looked at: a change made now is seen after
/// what was made before.
async fn settled(gateway: &Gateway) {
    // A name of its own for each turn, so that the mark of one isn't taken for that of another.
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let host = format!("settled-{turn}.test");
    write_into(
        &gateway.config(),
        &format!("zz-settled-{turn}.yaml"),
        &answer(&format!("settled-{turn}"), &host, "yes"),
    );
    becomes(gateway, &host, "yes").await;
}

/// Makes sure that clients go on getting `wanted` after what was done to the files has been looked at.
async fn stays(gateway: &Gateway, host: &str, wanted: &str) {
    settled(gateway).await;
    assert_eq!(get(gateway, host).await, wanted, "{host}");
}

/// A directory beside the one that [`Gateway::config`] names, and watched as well.
struct Volume {
    place: tempfile::TempDir,
}

impl Volume {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("volume")).unwrap();
        Self { place }
    }

    fn path(&self) -> PathBuf {
        self.place.path().join("volume")
    }

    /// A gateway that watches this volume, too.
    async fn start(&self) -> Gateway {
        let path = self.path();
        let started = Mesh::new().builder().argument("--config").argument(path.to_str().unwrap()).start().await;
        started.unwrap_or_else(|failure| panic!("{failure}"))
    }
}

/// Long enough for a joined batch of events (100 ms at most) to have been taken as it is.
const LONGER_THAN_A_BATCH: Duration = Duration::from_millis(250);
