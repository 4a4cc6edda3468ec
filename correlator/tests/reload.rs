//! TLS files that change while the correlator runs, and certificates that end while a stream runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use seclog_correlator::intake::agents::Agents;
use seclog_correlator::intake::{Budget, now};
use seclog_correlator::listen::{Door, Limits, Tls};
use seclog_correlator::telemetry::Telemetry;
use seclog_proto::v1::NodeRecord;
use std::net::SocketAddr;
use std::sync::Arc;
use support::client::{Agent, channel, hello};
use support::journal::{Inputs, journal};
use support::pki::{Authority, Leaf};
use tokio::sync::watch;
use tonic::Code;

struct Intake {
    addr: SocketAddr,
    tls: Arc<Tls>,
    _inputs: Inputs,
    _stop: watch::Sender<bool>,
}

async fn serve(authority: &Authority) -> Intake {
    let (journal, inputs) = journal();
    let (stop, stopped) = watch::channel(false);
    let tls = authority.tls();
    let door = Door::mutual("agents", Arc::clone(&tls), Limits::default(), &Budget::new(64 << 20));
    let agents = Agents::bind("127.0.0.1:0".parse().unwrap(), "guest", door, journal, stopped).await.unwrap();
    let addr = agents.addr;
    tokio::spawn(agents.serve());
    Intake { addr, tls, _inputs: inputs, _stop: stop }
}

impl Intake {
    async fn agent(&self, server: &Authority, leaf: &Leaf) -> Result<Agent, String> {
        let channel = channel(self.addr, server, Some(leaf)).await.map_err(|error| error.to_string())?;
        let mut agent = Agent::connect(channel, hello("guest", "node-1", 1, 1)).await.map_err(|s| s.to_string())?;
        agent.welcome().await.map_err(|status| status.to_string())?;
        Ok(agent)
    }
}

fn records(ids: &[&str]) -> Vec<NodeRecord> {
    ids.iter().map(|id| NodeRecord { id: (*id).to_owned(), ..Default::default() }).collect()
}

#[tokio::test]
async fn a_renewed_server_certificate_is_shown_to_new_connections_and_ends_no_stream() {
    let authority = Authority::new();
    let intake = serve(&authority).await;
    let leaf = authority.agent("guest", "node-1");
    let mut before = intake.agent(&authority, &leaf).await.unwrap();
    let shown = support::client::server_certificate(intake.addr, &authority, &leaf).await;

    assert!(!intake.tls.look(), "nothing has changed");
    authority.renew_server();
    assert!(intake.tls.look());
    assert_ne!(support::client::server_certificate(intake.addr, &authority, &leaf).await, shown);

    before.batch(1, records(&["a"]), 0).await;
    assert_eq!(before.ack().await.unwrap(), 1, "the stream of before goes on");
}

#[tokio::test]
async fn files_that_cannot_be_used_leave_the_old_ones_in_force_and_are_told_in_the_metrics() {
    let authority = Authority::new();
    let intake = serve(&authority).await;
    let leaf = authority.agent("guest", "node-1");
    let telemetry = Telemetry::default();
    intake.tls.register(&telemetry);
    let failing = |telemetry: &Telemetry| {
        let text = telemetry.render().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("seclog_correlator_tls_reload_failing "));
        line.unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    assert_eq!(failing(&telemetry), "0");

    for (file, content) in [("server.crt", "garbage"), ("server.key", &authority.client().key), ("ca.crt", "")] {
        let path = authority.file("kept", "");
        let old = std::fs::read_to_string(path.with_file_name(file)).unwrap();
        authority.file(file, content);
        assert!(!intake.tls.look(), "{file}");
        assert_eq!(failing(&telemetry), "1", "{file}");
        intake.agent(&authority, &leaf).await.unwrap();
        authority.file(file, &old);
        assert!(intake.tls.look(), "{file}");
        assert_eq!(failing(&telemetry), "0", "{file}");
    }
    let text = telemetry.render().unwrap();
    let expiry = text.lines().find_map(|line| {
        line.strip_prefix("seclog_correlator_tls_server_certificate_expiry_timestamp_seconds ")?.parse::<u64>().ok()
    });
    let tomorrow = now() / 1_000_000_000 + 24 * 3600;
    assert!(expiry.unwrap().abs_diff(tomorrow) < 600, "{text}");
}

#[tokio::test]
async fn an_authority_is_replaced_without_a_gap() {
    let (old, new) = (Authority::new(), Authority::new());
    let intake = serve(&old).await;
    let (old_leaf, new_leaf) = (old.agent("guest", "node-1"), new.agent("guest", "node-1"));
    let mut agent = intake.agent(&old, &old_leaf).await.unwrap();
    assert!(intake.agent(&old, &new_leaf).await.is_err(), "the new one is not known yet");

    old.file("ca.crt", &format!("{}{}", old.pem, new.pem));
    assert!(intake.tls.look());
    agent.batch(1, records(&["a"]), 0).await;
    assert_eq!(agent.ack().await.unwrap(), 1, "who was there stays");
    intake.agent(&old, &old_leaf).await.unwrap();
    intake.agent(&old, &new_leaf).await.unwrap();

    old.file("ca.crt", &new.pem);
    assert!(intake.tls.look());
    let status = agent.ack().await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(status.message().contains("not accepted any more"), "{status}");
    assert!(intake.agent(&old, &old_leaf).await.is_err());
    intake.agent(&old, &new_leaf).await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_ends_ends_its_stream_with_the_reason() {
    let authority = Authority::new();
    let intake = serve(&authority).await;
    let soon = i64::try_from(now() / 1_000_000_000).unwrap() + 2;
    let mut agent = intake.agent(&authority, &authority.agent_until("guest", "node-1", soon)).await.unwrap();
    agent.batch(1, records(&["a"]), 0).await;
    assert_eq!(agent.ack().await.unwrap(), 1);
    let status = agent.ack().await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(status.message().to_lowercase().contains("expired"), "{status}");
    let renewed = authority.agent("guest", "node-1");
    intake.agent(&authority, &renewed).await.unwrap();
}
