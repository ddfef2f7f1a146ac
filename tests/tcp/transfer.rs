//! Much data: nothing is lost, and the gateway holds little of it.

use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{servers, to};
use crate::harness::client::{CLIENT, connect_from};
use crate::harness::gateway::Gateway;
use crate::harness::mesh::Mesh;
use crate::harness::pki::{Authority, tls_secret};
use crate::harness::tls_client::Settings;
use crate::harness::upstream::Upstream;

const MIB: usize = 1 << 20;

async fn start() -> (Gateway, Upstream, Authority) {
    let authority = Authority::new("servers");
    let echo = Upstream::echo().await;
    let yaml = servers(&[9000])
        + "- port: {number: 9443, name: tls, protocol: TLS}\n  hosts: [a.test]\n  \
           tls: {mode: SIMPLE, credentialName: c}\n";
    let gateway = Mesh::new()
        .servers(&yaml, &[9000, 9443])
        .service("echo.test", "TCP", &[echo.address()])
        .resource(
            "VirtualService",
            &format!("hosts: ['*']\ngateways: [gateway]\ntcp:\n{}{}", to(9000, "echo.test"), to(9443, "echo.test")),
        )
        .document(&tls_secret("c", &authority.server("a.test")))
        .start()
        .await;
    (gateway, echo, authority)
}

/// Byte number `place` of the stream.
fn pattern(place: usize) -> u8 {
    (place % 251) as u8
}

/// Sends that much and reads it back. Returns how fast, in MiB a second each way.
async fn there_and_back(stream: impl AsyncRead + AsyncWrite, length: usize) -> f64 {
    let (mut read, mut write) = tokio::io::split(stream);
    let begin = Instant::now();
    let sends = async move {
        // 251 blocks repeat, so that one table serves all.
        let block: Vec<u8> = (0..251 * 256).map(pattern).collect();
        let mut sent = 0;
        while sent < length {
            let piece = block.len().min(length - sent);
            write.write_all(&block[..piece]).await.unwrap();
            sent += piece;
        }
        write.shutdown().await.unwrap();
    };
    let receives = async move {
        let mut buffer = vec![0; 64 * 1024];
        let expected: Vec<u8> = (0..251 + buffer.len()).map(pattern).collect();
        let mut received = 0;
        loop {
            let count = read.read(&mut buffer).await.unwrap();
            if count == 0 {
                return received;
            }
            let phase = received % 251;
            assert!(buffer[..count] == expected[phase..phase + count], "bytes differ after {received}");
            received += count;
        }
    };
    let ((), received) = tokio::join!(sends, receives);
    assert_eq!(received, length);
    (length / MIB) as f64 / begin.elapsed().as_secs_f64()
}

/// The highest resident memory, in KiB, while `work` goes on.
async fn peak<T>(gateway: &Gateway, work: impl Future<Output = T>) -> (T, u64) {
    let mut work = std::pin::pin!(work);
    let mut highest = gateway.resident();
    loop {
        tokio::select! {
            done = &mut work => return (done, highest),
            () = tokio::time::sleep(Duration::from_millis(10)) => highest = highest.max(gateway.resident()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_transfers_keep_memory_flat() {
    let (gateway, _echo, authority) = start().await;
    for (what, length) in [("TCP", 256 * MIB), ("TLS", 64 * MIB)] {
        let before = gateway.resident();
        let speed = async {
            if what == "TLS" {
                let connected = Settings::new(&[&authority]).connect(gateway.address(9443), "a.test").await.unwrap();
                there_and_back(connected.stream, length).await
            } else {
                there_and_back(connect_from(CLIENT, gateway.address(9000)).await.unwrap(), length).await
            }
        };
        let (speed, highest) = peak(&gateway, speed).await;
        let grown = highest.saturating_sub(before);
        eprintln!("{what}: {} MiB each way at {speed:.0} MiB/s, {grown} KiB more memory", length / MIB);
        assert!(grown < 16 * 1024, "{what}: {grown} KiB more");
    }
}

#[tokio::test]
async fn who_does_not_read_is_not_read_for() {
    let (gateway, echo, _authority) = start().await;
    let before = gateway.resident();
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = connect_from(CLIENT, gateway.address(9000)).await.unwrap();
        // Nobody reads the echo: at some point nothing more can be sent.
        let block = vec![0_u8; 64 * 1024];
        let mut sent = 0;
        while let Ok(result) = tokio::time::timeout(Duration::from_millis(300), stream.write_all(&block)).await {
            result.unwrap();
            sent += block.len();
            assert!(sent < 256 * MIB, "it never ends");
        }
        streams.push(stream);
    }
    assert_eq!(echo.open(), 8);
    let grown = gateway.resident().saturating_sub(before);
    eprintln!("8 connections that nobody reads from: {grown} KiB more memory");
    assert!(grown < 16 * 1024, "{grown} KiB more");
}
