//! The gRPC stream to the correlator: hello, batches and heartbeats one way, welcome and acknowledgements the other.
//!
//! After a break the stream goes on behind what the correlator has: nothing is sent twice as new, nothing is skipped. No
//! more is on the way than the correlator's window, and what waits, waits in the spool.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use seclog_proto::v1::{
    Ack, AgentMessage, CorrelatorMessage, Heartbeat, Hello, HookStatus, agent_message, correlator_message,
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

use super::{
    Health, Spool, SpoolConfig, UplinkError,
    spool::{Cursor, Disagreement, Frame},
};
use crate::{
    check, clock,
    credentials::{self, Tls},
};

/// Bytes on the way where the correlator does not say.
const WINDOW: u64 = 4 << 20;
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

#[derive(Debug)]
pub struct StreamConfig {
    /// Tried in turn.
    pub urls: Vec<String>,
    /// `None`: plain text, allowed on loopback only.
    pub credentials: Option<credentials::Current>,
    pub spool: SpoolConfig,
}

/// Why a stream ended.
#[derive(Debug)]
enum Ended {
    /// Everything was delivered and no more comes.
    Done,
    /// There are newer credentials to connect with.
    Renewed,
    /// An epoch was sent; the next one wants a stream of its own.
    NextEpoch,
    /// The correlator has other records at these positions.
    Disagreed(String),
    Broken(String),
}

/// Frames that are sent and not acknowledged.
#[derive(Debug, Default)]
struct InFlight {
    frames: VecDeque<Frame>,
    bytes: u64,
}

// === impl StreamConfig ===

impl StreamConfig {
    fn endpoint(&self, url: &str, tls: Option<&Tls>) -> Result<Endpoint, UplinkError> {
        let wrong = |error: tonic::transport::Error| UplinkError::Configuration(format!("--correlator {url}: {error}"));
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(wrong)?
            .connect_timeout(Duration::from_secs(10))
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20))
            .keep_alive_while_idle(true);
        match tls {
            None => Ok(endpoint),
            Some(Tls { ca, certificate, key, .. }) => endpoint
                .tls_config(
                    ClientTlsConfig::new()
                        .ca_certificate(Certificate::from_pem(ca))
                        .identity(TlsIdentity::from_pem(certificate, key)),
                )
                .map_err(wrong),
        }
    }
}

/// Streams until the spool is closed and empty, or until a stopping agent's time is up.
pub(super) async fn run(
    config: StreamConfig,
    identity: Identity,
    health: Health,
    spool: Arc<Spool>,
) -> Result<(), UplinkError> {
    let mut credentials = config.credentials.clone();
    let mut wait = SHORTEST_WAIT;
    let mut give_up = None;
    let mut turn = 0;
    let instance = random();
    loop {
        let started = Instant::now();
        let Some(url) = config.urls.get(turn % config.urls.len().max(1)) else {
            return Err(UplinkError::Configuration("--correlator names no correlator".into()));
        };
        // Each connection is made with the newest.
        let tls = credentials.as_mut().and_then(|credentials| credentials.borrow_and_update().clone());
        let ended = if tls.is_none() && credentials.is_some() {
            Ended::Broken("this node has no certificate yet".into())
        } else {
            let channel = config.endpoint(url, tls.as_deref())?.connect_lazy();
            connect_once(channel, (&identity, instance), &health, &spool, credentials.as_mut()).await
        };
        match ended {
            Ended::Done => return Ok(()),
            Ended::Renewed => {
                tracing::info!("connecting anew with the changed credentials");
                wait = SHORTEST_WAIT;
                continue;
            }
            Ended::NextEpoch => continue,
            Ended::Disagreed(reason) => {
                tracing::error!(
                    url,
                    reason,
                    "the correlator and this spool do not speak of the same records: was this node's disk or key copied? \
                     Everything that is left is sent again under a new epoch"
                );
                spool.disagreed();
            }
            Ended::Broken(reason) => {
                // The server ends a handshake with an alert when it does not accept the certificate.
                if let Some(tls) = tls.filter(|_| reason.contains("Unauthenticated") || reason.contains("fatal alert"))
                {
                    tls.refused.notify_one();
                }
                tracing::warn!(url, reason, "no stream to the correlator; trying again");
                turn += 1;
            }
        }
        if spool.is_closed() {
            let until = *give_up.get_or_insert_with(|| Instant::now() + DRAIN);
            if spool.is_empty() || Instant::now() >= until {
                if !spool.is_empty() {
                    tracing::warn!("stopping with records that the correlator has not acknowledged");
                }
                return Ok(());
            }
        }
        // A stream that lived for a while was a good one: begin anew with short waits.
        if started.elapsed() > LONGEST_WAIT {
            wait = SHORTEST_WAIT;
        }
        let until = give_up.map_or(Duration::MAX, |until: Instant| until.saturating_duration_since(Instant::now()));
        sleep(with_jitter(wait).min(until)).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// The standard library's hash keys are random; nothing here needs more than that.
fn random() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// Half to all of it, so that the agents of a cluster do not all come back at once.
fn with_jitter(wait: Duration) -> Duration {
    wait / 2 + wait.mul_f64((random() % 1000) as f64 / 2000.0)
}

async fn connect_once(
    channel: Channel,
    (identity, instance): (&Identity, u64),
    health: &Health,
    spool: &Spool,
    credentials: Option<&mut credentials::Current>,
) -> Ended {
    // Few messages in flight: the transport's own window is what limits.
    let (sender, receiver) = mpsc::channel(4);
    let sending = spool.sending();
    let hello = Hello {
        cluster: identity.cluster.clone(),
        node: identity.node.clone(),
        boot_id: identity.boot_id.clone(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
        epoch: sending.0,
        // What is not here any more is accounted for by losses in its place.
        oldest_sequence: 1,
        hooks: hooks(health, spool),
        instance,
        sent_unix_ns: clock::unix_ns(),
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
    let (acknowledged, window) = (welcome.acknowledged_sequence, welcome.window_bytes);
    tracing::info!(epoch = sending.0, acknowledged, window, "streaming to the correlator");
    let cursor = match Cursor::new(spool, sending, (acknowledged, welcome.digest)) {
        Ok(cursor) => cursor,
        Err(Disagreement(why)) => return Ended::Disagreed(why),
    };
    let window = if window == 0 { WINDOW } else { window };
    exchange(&sender, &mut answers, health, spool, (cursor, window), credentials).await
}

async fn exchange(
    sender: &mpsc::Sender<AgentMessage>,
    answers: &mut Streaming<CorrelatorMessage>,
    health: &Health,
    spool: &Spool,
    (mut cursor, window): (Cursor, u64),
    mut credentials: Option<&mut credentials::Current>,
) -> Ended {
    let mut in_flight = InFlight::default();
    let mut waiting: Option<Frame> = None;
    let mut heartbeat = interval(HEARTBEAT);
    let mut drain_until = None;
    // A new stream begins with the last result; after that, results go when they come.
    let mut check = health.check.clone();
    check.mark_changed();
    let closed = || Ended::Broken("the stream closed".into());
    loop {
        loop {
            let frame = match waiting.take() {
                Some(frame) => frame,
                None => match cursor.next(spool) {
                    Ok(Ok(Some(frame))) => frame,
                    Ok(Ok(None)) => break,
                    Ok(Err(Disagreement(why))) => return Ended::Disagreed(why),
                    Err(error) => return Ended::Broken(format!("the spool cannot be read: {error}")),
                },
            };
            if !in_flight.has_room(&frame, window) {
                waiting = Some(frame);
                break;
            }
            if credentials.as_ref().is_some_and(|credentials| credentials.has_changed().unwrap_or(false)) {
                return Ended::Renewed;
            }
            tokio::select! {
                sent = sender.send(message(agent_message::Message::Batch(frame.bytes.clone()))) => match sent {
                    Ok(()) => in_flight.push(frame),
                    Err(_) => return closed(),
                },
                answer = answers.message() => {
                    waiting = Some(frame);
                    if let Some(ended) = take_answer(answer, &mut in_flight, spool) {
                        return ended;
                    }
                }
            }
        }
        let all_sent = waiting.is_none() && in_flight.frames.is_empty();
        if spool.limit(cursor.epoch) == 0
            || all_sent && cursor.number() >= spool.limit(cursor.epoch) && spool.next_epoch()
        {
            return Ended::NextEpoch;
        }
        if spool.is_closed() {
            if all_sent && cursor.number() >= spool.limit(cursor.epoch) {
                return Ended::Done;
            }
            if Instant::now() >= *drain_until.get_or_insert_with(|| Instant::now() + DRAIN) {
                return Ended::Broken("the last records were not acknowledged in time".into());
            }
        }
        tokio::select! {
            answer = answers.message() => if let Some(ended) = take_answer(answer, &mut in_flight, spool) {
                return ended;
            },
            () = spool.changed() => {}
            () = renewed(credentials.as_deref_mut()) => return Ended::Renewed,
            _ = heartbeat.tick() => {
                let next = if waiting.is_some() { 0 } else { cursor.number() };
                let (watermark_unix_ns, counters) = spool.idle(cursor.epoch, next);
                let counters = counters.into_iter().chain(check::counters(&health.check));
                let beat = Heartbeat {
                    watermark_unix_ns,
                    sent_unix_ns: clock::unix_ns(),
                    hooks: hooks(health, spool),
                    counters: counters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<HashMap<_, _>>(),
                    check: check.has_changed().is_ok_and(|new| new).then(|| check.borrow_and_update().clone()).flatten(),
                };
                tokio::select! {
                    sent = sender.send(message(agent_message::Message::Heartbeat(beat))) => if sent.is_err() {
                        return closed();
                    },
                    answer = answers.message() => if let Some(ended) = take_answer(answer, &mut in_flight, spool) {
                        return ended;
                    },
                }
            }
            () = sleep(Duration::from_millis(500)), if spool.is_closed() => {}
        }
    }
}

/// What works on this node, the spool included.
fn hooks(health: &Health, spool: &Spool) -> Vec<HookStatus> {
    let mut hooks = health.hooks.borrow().clone();
    hooks.push(spool.status());
    hooks
}

// === impl InFlight ===

impl InFlight {
    /// One may always be on the way, however large.
    fn has_room(&self, frame: &Frame, window: u64) -> bool {
        self.frames.is_empty() || self.bytes + frame.bytes.len() as u64 <= window
    }

    fn push(&mut self, frame: Frame) {
        self.bytes += frame.bytes.len() as u64;
        self.frames.push_back(frame);
    }

    /// Lets go of what is acknowledged, if both mean the same records.
    fn acknowledge(&mut self, ack: &Ack, spool: &Spool) -> Result<(), Ended> {
        if self.frames.front().is_some_and(|frame| ack.sequence < frame.first) {
            // Of what was there before.
            return Ok(());
        }
        let Some(at) = self.frames.iter().position(|frame| frame.last == ack.sequence) else {
            return Err(Ended::Disagreed(format!("the correlator acknowledged {}, which ends no batch", ack.sequence)));
        };
        let frame = self.frames.get(at).filter(|frame| ack.digest == frame.digest);
        let Some(_) = frame else {
            return Err(Ended::Disagreed(format!("the correlator has other records at {}", ack.sequence)));
        };
        for frame in self.frames.drain(..=at) {
            self.bytes -= frame.bytes.len() as u64;
            spool.acknowledge(&frame);
        }
        Ok(())
    }
}

/// Returns when there are newer credentials.
async fn renewed(credentials: Option<&mut credentials::Current>) {
    let changed = match credentials {
        Some(credentials) => credentials.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

fn take_answer(
    answer: Result<Option<CorrelatorMessage>, tonic::Status>,
    in_flight: &mut InFlight,
    spool: &Spool,
) -> Option<Ended> {
    match answer {
        Ok(Some(CorrelatorMessage { message: Some(correlator_message::Message::Ack(ack)) })) => {
            in_flight.acknowledge(&ack, spool).err()
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
