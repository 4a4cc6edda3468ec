//! The agents' streams, over real TLS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use seclog_correlator::intake::Budget;
use seclog_correlator::intake::agents::{Agents, AgentsError};
use seclog_correlator::join::Input;
use seclog_correlator::listen::{Door, Limits};
use seclog_proto::v1::{Ack, CorrelatorMessage, NodeRecord};
use std::net::SocketAddr;
use support::client::{Agent, channel, hello, plaintext};
use support::journal::{Inputs, journal};
use support::pki::{Authority, Leaf};
use tokio::sync::watch;
use tonic::Code;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

struct Intake {
    authority: Authority,
    addr: SocketAddr,
    inputs: Inputs,
    stop: watch::Sender<bool>,
}

async fn intake() -> Intake {
    let authority = Authority::new();
    let door = Door::mutual("agents", authority.tls(), Limits::default(), &Budget::new(64 << 20));
    let (addr, inputs, stop) = serve(door).await;
    Intake { authority, addr, inputs, stop }
}

async fn serve(door: Door) -> (SocketAddr, Inputs, watch::Sender<bool>) {
    let (journal, inputs) = journal();
    let (stop, stopped) = watch::channel(false);
    let agents = Agents::bind("127.0.0.1:0".parse().unwrap(), "guest", door, journal, stopped).await.unwrap();
    let addr = agents.addr;
    tokio::spawn(agents.serve());
    (addr, inputs, stop)
}

fn plaintext_door() -> Door {
    Door::plaintext("agents", Limits::default(), &Budget::new(64 << 20))
}

impl Intake {
    async fn channel(&self, leaf: &Leaf) -> Channel {
        channel(self.addr, &self.authority, Some(leaf)).await.unwrap()
    }

    async fn node(&self, node: &str) -> Channel {
        self.channel(&self.authority.agent("guest", node)).await
    }

    /// Ids of the records that came so far, in their order.
    fn taken(&mut self) -> Vec<String> {
        let mut taken = Vec::new();
        while let Some(batch) = self.inputs.try_recv() {
            taken.extend(batch.into_iter().filter_map(|input| match input {
                Input::Node { node, record } => {
                    assert_eq!(&*node, "node-1");
                    Some(record.id)
                }
                _ => None,
            }));
        }
        taken
    }
}

fn records(sequences: std::ops::RangeInclusive<u64>) -> Vec<NodeRecord> {
    sequences.map(|sequence| NodeRecord { id: sequence.to_string(), ..Default::default() }).collect()
}

fn ids(sequences: std::ops::RangeInclusive<u64>) -> Vec<String> {
    sequences.map(|sequence| sequence.to_string()).collect()
}

async fn refusal(channel: Channel, cluster: &str, node: &str) -> tonic::Status {
    match Agent::connect(channel, hello(cluster, node, 1, 1)).await {
        Ok(mut agent) => agent.welcome().await.unwrap_err(),
        Err(status) => status,
    }
}

#[tokio::test]
async fn a_stream_goes_on_after_a_reconnect_without_gap_or_duplicate() {
    let mut intake = intake().await;
    let mut agent = Agent::connect(intake.node("node-1").await, hello("guest", "node-1", 7, 1)).await.unwrap();
    assert_eq!(agent.welcome().await.unwrap(), 0);
    agent.batch(1, records(1..=3), 0).await;
    assert_eq!(agent.ack().await.unwrap(), 3);
    agent.batch(4, records(4..=5), 0).await;
    assert_eq!(agent.ack().await.unwrap(), 5);
    drop(agent);

    // It never saw the ack of 4 and 5, and sends them again with what is new.
    let mut agent = Agent::connect(intake.node("node-1").await, hello("guest", "node-1", 7, 4)).await.unwrap();
    assert_eq!(agent.welcome().await.unwrap(), 5);
    agent.batch(4, records(4..=8), 0).await;
    assert_eq!(agent.ack().await.unwrap(), 8);
    agent.batch(4, records(4..=8), 0).await;
    assert_eq!(agent.ack().await.unwrap(), 8, "wholly repeated");
    assert_eq!(intake.taken(), ids(1..=8));

    // A new buffer of the same node is another matter.
    let mut agent = Agent::connect(intake.node("node-1").await, hello("guest", "node-1", 8, 1)).await.unwrap();
    assert_eq!(agent.welcome().await.unwrap(), 0);
    agent.batch(1, records(1..=1), 0).await;
    assert_eq!(agent.ack().await.unwrap(), 1);
    assert_eq!(intake.taken(), ids(1..=1));
}

#[tokio::test]
async fn a_gap_ends_the_stream_and_says_what_is_next() {
    let mut intake = intake().await;
    let mut agent = Agent::connect(intake.node("node-1").await, hello("guest", "node-1", 7, 1)).await.unwrap();
    agent.welcome().await.unwrap();
    agent.batch(1, records(1..=2), 0).await;
    agent.ack().await.unwrap();
    agent.batch(4, records(4..=4), 0).await;
    let status = agent.ack().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("sequence gap: 3 is next"), "{}", status.message());
    assert_eq!(intake.taken(), ids(1..=2));
}

#[tokio::test]
async fn records_that_the_agent_gave_up_are_a_declared_loss() {
    let mut intake = intake().await;
    let mut agent = Agent::connect(intake.node("node-1").await, hello("guest", "node-1", 7, 1)).await.unwrap();
    agent.welcome().await.unwrap();
    agent.batch(1, records(1..=2), 1000).await;
    agent.ack().await.unwrap();
    drop(agent);
    intake.taken();
    let mut agent = Agent::connect(intake.node("node-1").await, hello("guest", "node-1", 7, 6)).await.unwrap();
    assert_eq!(agent.welcome().await.unwrap(), 2);
    agent.batch(6, records(6..=6), 0).await;
    assert_eq!(agent.ack().await.unwrap(), 6);
    let Some(Input::Node { record, .. }) = intake.inputs.try_recv().unwrap().pop() else { panic!("no loss") };
    let Some(seclog_proto::v1::node_record::Detail::Loss(loss)) = record.detail else { panic!("{record:?}") };
    assert_eq!((loss.count, loss.count_known, loss.from_unix_ns), (3, true, 1000));
}

#[tokio::test]
async fn a_hello_that_lies_is_refused() {
    let intake = intake().await;
    for (cluster, node) in [("guest", "node-2"), ("other", "node-1")] {
        let status = refusal(intake.node("node-1").await, cluster, node).await;
        assert_eq!(status.code(), Code::PermissionDenied, "{cluster}/{node}");
        assert!(status.message().contains("the certificate"), "{}", status.message());
    }
}

#[tokio::test]
async fn only_certificates_of_this_cluster_and_of_a_node_are_served() {
    let intake = intake().await;
    let other = intake.channel(&intake.authority.agent("other", "node-1")).await;
    let status = refusal(other, "other", "node-1").await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("this correlator serves \"guest\""), "{}", status.message());
    let nobody = intake.channel(&intake.authority.client()).await;
    let status = refusal(nobody, "guest", "node-1").await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("names no node"), "{}", status.message());
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let intake = intake().await;
    let failed = match channel(intake.addr, &intake.authority, None).await {
        Ok(channel) => Agent::connect(channel, hello("guest", "node-1", 1, 1)).await.is_err(),
        Err(_) => true,
    };
    assert!(failed);
}

#[tokio::test]
async fn garbage_ends_its_own_stream_only() {
    let mut intake = intake().await;
    let mut agent = Agent::connect(intake.node("node-1").await, hello("guest", "node-1", 7, 1)).await.unwrap();
    agent.welcome().await.unwrap();

    let mut grpc = Grpc::new(intake.node("node-1").await);
    grpc.ready().await.unwrap();
    // On the wire a number where hello should be.
    let garbage = tokio_stream::iter([Ack { sequence: 5, digest: Vec::new() }]);
    let codec = ProstCodec::<Ack, CorrelatorMessage>::default();
    let path = "/seclog.v1.NodeStream/Connect".parse().unwrap();
    let answer = grpc.streaming(tonic::Request::new(garbage), path, codec).await;
    let status = match answer {
        Ok(answer) => answer.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    assert!(status.message().contains("decode"), "{status:?}");

    agent.batch(1, records(1..=1), 0).await;
    assert_eq!(agent.ack().await.unwrap(), 1, "the other stream goes on");
    assert_eq!(intake.taken(), ids(1..=1));
}

#[tokio::test]
async fn streams_end_when_the_correlator_stops() {
    let intake = intake().await;
    let mut agent = Agent::connect(intake.node("node-1").await, hello("guest", "node-1", 7, 1)).await.unwrap();
    agent.welcome().await.unwrap();
    intake.stop.send(true).unwrap();
    assert_eq!(agent.ack().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn plain_text_takes_the_hellos_word_but_not_its_cluster() {
    let (addr, mut inputs, _stop) = serve(plaintext_door()).await;
    let mut agent = Agent::connect(plaintext(addr).await, hello("guest", "node-9", 1, 0)).await.unwrap();
    agent.welcome().await.unwrap();
    agent.batch(5, records(5..=5), 0).await;
    assert_eq!(agent.ack().await.unwrap(), 5);
    assert!(matches!(&inputs.try_recv().unwrap()[..], [Input::Node { node, .. }] if &**node == "node-9"));
    let status = refusal(plaintext(addr).await, "other", "node-9").await;
    assert_eq!(status.code(), Code::PermissionDenied);
    let status = refusal(plaintext(addr).await, "guest", "a\nb").await;
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn plain_text_is_for_loopback_only() {
    let (journal, _inputs) = journal();
    let (_stop, stopped) = watch::channel(false);
    let bound = Agents::bind("0.0.0.0:0".parse().unwrap(), "guest", plaintext_door(), journal, stopped).await;
    assert!(matches!(bound, Err(AgentsError::PlaintextBeyondLoopback(_))));
}
