//! The metrics port, over a real socket.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

use seclog_correlator::intake::Budget;
use seclog_correlator::telemetry::{Metrics, Telemetry};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn serve(telemetry: &Telemetry) -> SocketAddr {
    let metrics = Metrics::bind("127.0.0.1:0".parse().unwrap(), telemetry.clone()).unwrap();
    let addr = metrics.addr;
    tokio::spawn(metrics.serve());
    addr
}

async fn get(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn metrics_show_what_is_held_and_readiness_says_which_part_is_not() {
    let telemetry = Telemetry::default();
    let budget = Budget::new(1000);
    budget.register(&telemetry);
    let join = telemetry.readiness("join");
    let addr = serve(&telemetry).await;

    let held = budget.try_take(300).unwrap();
    assert!(budget.try_take(701).is_err());
    let answer = get(addr, "/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{answer}");
    for line in [
        "seclog_correlator_intake_memory_bytes 300",
        "seclog_correlator_intake_memory_limit_bytes 1000",
        "seclog_correlator_intake_memory_refused_total 1",
    ] {
        assert!(answer.lines().any(|found| found == line), "no line {line:?} in\n{answer}");
    }
    drop(held);
    let answer = get(addr, "/metrics").await;
    assert!(answer.contains("seclog_correlator_intake_memory_bytes 0\n"), "{answer}");

    let answer = get(addr, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("join: starting\n"), "{answer}");
    assert!(get(addr, "/healthz").await.starts_with("HTTP/1.1 200"));
    join.ready();
    assert!(get(addr, "/readyz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_head_that_does_not_come_or_does_not_end_is_given_up() {
    let addr = serve(&Telemetry::default()).await;
    let mut slow = TcpStream::connect(addr).await.unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nX-Slow: ").await.unwrap();
    let mut endless = TcpStream::connect(addr).await.unwrap();
    let _ = endless.write_all(format!("GET / HTTP/1.1\r\nX-Long: {}", "x".repeat(100_000)).as_bytes()).await;
    // The server ends both by itself: reading returns.
    let mut answer = Vec::new();
    let _ = slow.read_to_end(&mut answer).await;
    let _ = endless.read_to_end(&mut answer).await;
}
