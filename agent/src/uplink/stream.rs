//! The gRPC stream to the correlator: hello, batches and heartbeats one way, welcome and acknowledgements the other.
//!
//! After a break the stream goes on behind what the correlator has: nothing is sent twice as new, nothing is skipped.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use seclog_proto::v1::{
    AgentMessage, Batch as WireBatch, CorrelatorMessage, Heartbeat, Hello, agent_message, correlator_message,
    node_stream_client::NodeStreamClient,
};
use tokio::{
    sync::mpsc,
    time::{Instant, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as TlsIdentity},
};

use super::{Buffer, Health, UplinkError};
use crate::{check, clock};

/// Records and bytes of one batch.
const BATCH_RECORDS: usize = 1000;
const BATCH_BYTES: usize = 512 << 10;
const HEARTBEAT: Duration = Duration::from_secs(5);
const WELCOME: Duration = Duration::from_secs(10);
const SHORTEST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// How long a stopping agent tries to deliver what is left.
const DRAIN: Duration = Duration::from_secs(5);

/// Who speaks.
#[derive(Clone, Debug)]
pub struct Identity {
    pub cluster: String,
    pub node: String,
    pub boot_id: String,
}

/// PEM files' contents.
#[derive(Clone)]
pub struct Tls {
    pub ca: Vec<u8>,
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

#[derive(Debug)]
pub struct StreamConfig {
    pub url: String,
    /// `None`: plain text, allowed on loopback only.
    pub tls: Option<Tls>,
    pub buffer_bytes: usize,
}

/// Why a stream ended.
#[derive(Debug)]
enum Ended {
    /// Everything was delivered and no more comes.
    Done,
    Broken(String),
}

// === impl Tls ===

impl std::fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Tls { .. }")
    }
}

// === impl StreamConfig ===

impl StreamConfig {
    fn endpoint(&self) -> Result<Endpoint, UplinkError> {
        let wrong =
            |error: tonic::transport::Error| UplinkError::Configuration(format!("--correlator {}: {error}", self.url));
        let endpoint = Endpoint::from_shared(self.url.clone())
            .map_err(wrong)?
            .connect_timeout(Duration::from_secs(10))
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20))
            .keep_alive_while_idle(true);
        match &self.tls {
            None => Ok(endpoint),
            Some(Tls { ca, certificate, key }) => endpoint
                .tls_config(
                    ClientTlsConfig::new()
                        .ca_certificate(Certificate::from_pem(ca))
                        .identity(TlsIdentity::from_pem(certificate, key)),
                )
                .map_err(wrong),
        }
    }
}

/// Streams until the buffer is closed and empty, or until a stopping agent's time is up.
pub(super) async fn run(
    config: StreamConfig,
    identity: Identity,
    health: Health,
    buffer: Arc<Buffer>,
) -> Result<(), UplinkError> {
    let channel = config.endpoint()?.connect_lazy();
    let mut wait = SHORTEST_WAIT;
    let mut give_up = None;
    loop {
        let started = Instant::now();
        match connect_once(channel.clone(), &identity, &health, &buffer).await {
            Ended::Done => return Ok(()),
            Ended::Broken(reason) => {
                tracing::warn!(url = config.url, reason, "no stream to the correlator; trying again")
            }
        }
        if buffer.is_closed() {
            let until = *give_up.get_or_insert_with(|| Instant::now() + DRAIN);
            if buffer.is_empty() || Instant::now() >= until {
                if !buffer.is_empty() {
                    tracing::warn!("stopping with records that the correlator has not acknowledged");
                }
                return Ok(());
            }
        }
        // A stream that lived for a while was a good one: begin anew with short waits.
        if started.elapsed() > LONGEST_WAIT {
            wait = SHORTEST_WAIT;
        }
        sleep(with_jitter(wait)).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Half to all of it, so that the agents of a cluster do not all come back at once.
fn with_jitter(wait: Duration) -> Duration {
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    wait / 2 + wait.mul_f64((random % 1000) as f64 / 2000.0)
}

async fn connect_once(channel: Channel, identity: &Identity, health: &Health, buffer: &Buffer) -> Ended {
    // Few messages in flight: the transport's own window is what limits.
    let (sender, receiver) = mpsc::channel(4);
    let hello = Hello {
        cluster: identity.cluster.clone(),
        node: identity.node.clone(),
        boot_id: identity.boot_id.clone(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
        epoch: buffer.epoch,
        oldest_sequence: buffer.oldest_sequence(),
        hooks: health.hooks.borrow().clone(),
    };
    if sender.send(message(agent_message::Message::Hello(hello))).await.is_err() {
        return Ended::Broken("the stream closed at once".into());
    }
    let mut client = NodeStreamClient::new(channel);
    let mut answers = match timeout(WELCOME, client.connect(ReceiverStream::new(receiver))).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Ended::Broken(describe(&status)),
        Err(_) => return Ended::Broken("no answer to connect".into()),
    };
    let welcome = match timeout(WELCOME, answers.message()).await {
        Ok(Ok(Some(CorrelatorMessage { message: Some(correlator_message::Message::Welcome(welcome)) }))) => welcome,
        Ok(Ok(_)) => return Ended::Broken("the correlator did not answer hello with welcome".into()),
        Ok(Err(status)) => return Ended::Broken(describe(&status)),
        Err(_) => return Ended::Broken("no answer to hello".into()),
    };
    buffer.acknowledge(welcome.acknowledged_sequence);
    tracing::info!(acknowledged = welcome.acknowledged_sequence, "streaming to the correlator");
    exchange(&sender, &mut answers, health, buffer).await
}

async fn exchange(
    sender: &mpsc::Sender<AgentMessage>,
    answers: &mut Streaming<CorrelatorMessage>,
    health: &Health,
    buffer: &Buffer,
) -> Ended {
    let mut next = buffer.oldest_sequence();
    let mut heartbeat = interval(HEARTBEAT);
    let mut drain_until = None;
    // A new stream begins with the last result; after that, results go when they come.
    let mut check = health.check.clone();
    check.mark_changed();
    let closed = || Ended::Broken("the stream closed".into());
    loop {
        while let Some(part) = buffer.part(next, BATCH_RECORDS, BATCH_BYTES) {
            let after = part.first_sequence + part.records.len() as u64;
            let batch = WireBatch {
                first_sequence: part.first_sequence,
                records: part.records,
                watermark_unix_ns: part.watermark_unix_ns,
            };
            tokio::select! {
                sent = sender.send(message(agent_message::Message::Batch(batch))) => match sent {
                    Ok(()) => next = after,
                    Err(_) => return closed(),
                },
                answer = answers.message() => if let Some(ended) = take_answer(answer, buffer) {
                    return ended;
                },
            }
        }
        if buffer.is_closed() {
            if buffer.is_empty() {
                return Ended::Done;
            }
            if Instant::now() >= *drain_until.get_or_insert_with(|| Instant::now() + DRAIN) {
                return Ended::Broken("the last records were not acknowledged in time".into());
            }
        }
        tokio::select! {
            answer = answers.message() => if let Some(ended) = take_answer(answer, buffer) {
                return ended;
            },
            () = buffer.changed() => {}
            _ = heartbeat.tick() => {
                let (watermark_unix_ns, counters) = buffer.idle(next);
                let counters = counters.into_iter().chain(check::counters(&health.check));
                let beat = Heartbeat {
                    watermark_unix_ns,
                    sent_unix_ns: clock::unix_ns(),
                    hooks: health.hooks.borrow().clone(),
                    counters: counters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<HashMap<_, _>>(),
                    check: check.has_changed().is_ok_and(|new| new).then(|| check.borrow_and_update().clone()).flatten(),
                };
                if sender.send(message(agent_message::Message::Heartbeat(beat))).await.is_err() {
                    return closed();
                }
            }
            () = sleep(Duration::from_secs(1)), if buffer.is_closed() => {}
        }
    }
}

fn take_answer(answer: Result<Option<CorrelatorMessage>, tonic::Status>, buffer: &Buffer) -> Option<Ended> {
    match answer {
        Ok(Some(CorrelatorMessage { message: Some(correlator_message::Message::Ack(ack)) })) => {
            if buffer.acknowledge(ack.sequence) {
                None
            } else {
                Some(Ended::Broken(format!("the correlator acknowledged {}, which was never sent", ack.sequence)))
            }
        }
        // Of a newer correlator: not ours to judge.
        Ok(Some(_)) => None,
        Ok(None) => Some(Ended::Broken("the correlator closed the stream".into())),
        Err(status) => Some(Ended::Broken(describe(&status))),
    }
}

fn message(message: agent_message::Message) -> AgentMessage {
    AgentMessage { message: Some(message) }
}

fn describe(status: &tonic::Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
