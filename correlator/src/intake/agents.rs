//! The agents' streams: `seclog.v1.NodeStream`.
//!
//! What holds:
//! - Records of one (node, epoch) are in the journal in the order of their sequences, each once: a batch that begins behind
//!   the expected sequence ends the stream, what was there before is marked so and counted.
//! - An ack follows only when the journal has the batch and is synced. So what was acknowledged survives a kill.
//! - Batches are not looked into here: the journal keeps them as they came, and the join reads them from there.
//! - No more than the window's bytes are on the way of one stream: agents keep to it, and who does not waits.
//! - Who an agent is comes from its certificate. Only over plain text (loopback) its own word is taken.
//! - Whatever is wrong with a stream ends that stream alone, with a status that says why.

use super::live::{Beats, Live};
use super::{Held, now};
use crate::journal::{Entry, Journal, JournalError, Pending, Position, node_source};
use crate::listen::{Door, Incoming, Metered, OpenRequest, Peer, PendingMessages};
use bytes::Bytes;
use prost::Message as _;
use seclog_identity::{NodeIdentity, is_name};
use seclog_proto::batch::LARGEST_RECORDS;
use seclog_proto::v1::agent_message::Message as FromAgent;
use seclog_proto::v1::correlator_message::Message as ToAgent;
use seclog_proto::v1::node_stream_server::{NodeStream, NodeStreamServer};
use seclog_proto::v1::{
    Ack, AgentMessage, Batch, CheckFinding, CheckStatus, CorrelatorMessage, Heartbeat, Hello, HookStatus, Loss,
    NodeBatch, NodeLoss, NodeReport, Welcome,
};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of one message. Agents send batches far smaller than this.
const LARGEST_MESSAGE: usize = 4 << 20;
/// A peer must say hello within this time.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Streams of one node at once: the one in use, and those that are not yet known to be dead.
const STREAMS_PER_NODE: usize = 4;
/// Bytes that HTTP/2 takes in for one connection before anybody has asked for them.
const WINDOW: u32 = 64 << 10;
/// Bytes of batches that an agent may have on the way.
const BATCHES_WINDOW: u64 = 4 << 20;
/// Batches of one stream that wait to be written.
const PENDING: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum AgentsError {
    #[error("cannot listen for agents on {addr}: {source}")]
    Bind { addr: SocketAddr, source: std::io::Error },
    #[error(
        "{0} is not a loopback address: agents may speak plain text only within this machine; give --tls-cert, --tls-key and \
         --client-ca instead of --plaintext"
    )]
    PlaintextBeyondLoopback(SocketAddr),
    #[error("the server for agents failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

#[derive(Debug, Default)]
struct AgentCounters {
    records: AtomicU64,
    /// Records that an agent sent again.
    repeated: AtomicU64,
    /// Streams that ended with an error.
    refused: AtomicU64,
}

/// A bound listener, not yet serving.
#[derive(Debug)]
pub struct Agents {
    listener: TcpListener,
    pub addr: SocketAddr,
    service: Service,
}

impl Agents {
    pub async fn bind(
        addr: SocketAddr,
        cluster: &str,
        door: Door,
        journal: Journal,
        stop: watch::Receiver<bool>,
    ) -> Result<Self, AgentsError> {
        if door.is_plaintext() && !addr.ip().is_loopback() {
            return Err(AgentsError::PlaintextBeyondLoopback(addr));
        }
        let failed = |source| AgentsError::Bind { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let service = Service(Arc::new(Shared {
            cluster: cluster.to_owned(),
            door,
            journal,
            stop,
            beats: Beats::default(),
            streams: Mutex::default(),
            told_plaintext: std::sync::Once::new(),
            counters: AgentCounters::default(),
        }));
        Ok(Self { listener, addr, service })
    }

    /// Until told to stop; then the streams end and this returns.
    pub async fn serve(self) -> Result<(), AgentsError> {
        let Self { listener, service, .. } = self;
        let mut stop = service.0.stop.clone();
        let shared = Arc::clone(&service.0);
        let service = NodeStreamServer::new(service).max_decoding_message_size(LARGEST_MESSAGE);
        Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(WINDOW)
            .max_concurrent_streams(STREAMS_PER_NODE as u32)
            .http2_max_header_list_size(16 << 10)
            // Peers that open streams and reset them at once (CVE-2023-44487) are sent away.
            .http2_max_pending_accept_reset_streams(Some(20))
            .add_service(Metered::new(service, LARGEST_MESSAGE, shared.door.limits()))
            .serve_with_incoming_shutdown(Incoming::new(listener, shared.door.clone()), async move {
                let _ = stop.wait_for(|stop| *stop).await;
            })
            .await?;
        let AgentCounters { records, repeated, refused } = &shared.counters;
        let [records, repeated, refused] = [records, repeated, refused].map(|counter| counter.load(Ordering::Relaxed));
        tracing::info!(records, repeated, refused, "agents served");
        Ok(())
    }
}

#[derive(Debug, Clone)]
struct Service(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    cluster: String,
    door: Door,
    journal: Journal,
    stop: watch::Receiver<bool>,
    beats: Beats,
    /// Streams that each node has open.
    streams: Mutex<BTreeMap<String, usize>>,
    told_plaintext: std::sync::Once,
    counters: AgentCounters,
}

#[tonic::async_trait]
impl NodeStream for Service {
    type ConnectStream = ReceiverStream<Result<CorrelatorMessage, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (_, extensions, inbound) = request.into_parts();
        let Some(peer) = extensions.get::<Peer>().cloned() else {
            return Err(Status::internal("a connection of unknown origin"));
        };
        let messages = extensions.get::<PendingMessages>().cloned().unwrap_or_default();
        let open = peer.request();
        let certified = self.0.certified(&peer)?;
        let (sender, receiver) = mpsc::channel(16);
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            let node = String::new();
            let mut stream =
                Stream { shared: &shared, inbound, outbound: &sender, node, peer: &peer, messages, _open: open };
            let ended = tokio::select! {
                ended = stream.run(certified) => ended,
                why = shared.door.no_longer_trusted(&peer) => Err(Status::unauthenticated(why)),
            };
            if let Err(status) = ended {
                let node = stream.node;
                shared.counters.refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(peer = %peer.addr(), node, code = ?status.code(), "agent stream ended: {}", status.message());
                let _ = tokio::time::timeout(shared.door.limits().reads_within, sender.send(Err(status))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl Shared {
    /// Who the certificate says it is; `None` over plain text.
    fn certified(&self, peer: &Peer) -> Result<Option<NodeIdentity>, Status> {
        if peer.is_refused() {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            let most = self.door.limits().connections;
            return Err(Status::resource_exhausted(format!(
                "{most} connections are open, the most there may be; come again"
            )));
        }
        if self.door.is_plaintext() {
            self.told_plaintext.call_once(|| {
                tracing::warn!("agents speak plain text: the names that they give themselves are taken as they are");
            });
            return Ok(None);
        }
        let refused = |why: String| {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(peer = %peer.addr(), "agent refused: {why}");
            Status::permission_denied(why)
        };
        let Some(certificate) = peer.chain().first() else {
            return Err(refused("no client certificate".to_owned()));
        };
        let identity = NodeIdentity::of_certificate(certificate).map_err(|error| refused(error.to_string()))?;
        if identity.cluster != self.cluster {
            return Err(refused(format!(
                "the certificate is of cluster {:?}; this correlator serves {:?}",
                identity.cluster, self.cluster
            )));
        }
        self.door.check(peer).map_err(|why| {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(peer = %peer.addr(), node = identity.node, "agent refused: {why}");
            Status::unauthenticated(why)
        })?;
        Ok(Some(identity))
    }

    fn identify(&self, certified: Option<NodeIdentity>, hello: &Hello) -> Result<String, Status> {
        let (cluster, node) = (hello.cluster.as_str(), hello.node.as_str());
        if let Some(certified) = certified {
            let agrees = |said: &str, proven: &str| said.is_empty() || said == proven;
            if !agrees(cluster, &certified.cluster) || !agrees(node, &certified.node) {
                return Err(Status::permission_denied(format!(
                    "hello says {}/{}, the certificate {}/{}",
                    shown(cluster),
                    shown(node),
                    certified.cluster,
                    certified.node
                )));
            }
            return Ok(certified.node);
        }
        if cluster != self.cluster {
            return Err(Status::permission_denied(format!(
                "hello says cluster {}; this correlator serves {:?}",
                shown(cluster),
                self.cluster
            )));
        }
        if !is_name(node) {
            return Err(Status::invalid_argument(format!("{} is no node name", shown(node))));
        }
        Ok(node.to_owned())
    }

    /// One more stream of this node, until what is returned is dropped.
    fn admit(self: &Arc<Self>, node: &str) -> Result<Admitted, Status> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let open = streams.entry(node.to_owned()).or_default();
        if *open >= STREAMS_PER_NODE {
            return Err(Status::resource_exhausted(format!("{node} has {open} streams open already; come again")));
        }
        *open += 1;
        Ok(Admitted { shared: Arc::clone(self), node: node.to_owned() })
    }
}

/// A stream among those of its node.
#[derive(Debug)]
struct Admitted {
    shared: Arc<Shared>,
    node: String,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut streams = self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = streams.get_mut(&self.node) {
            *open -= 1;
            if *open == 0 {
                streams.remove(&self.node);
            }
        }
    }
}

/// One agent's stream.
struct Stream<'a> {
    shared: &'a Arc<Shared>,
    inbound: Streaming<AgentMessage>,
    outbound: &'a mpsc::Sender<Result<CorrelatorMessage, Status>>,
    node: String,
    peer: &'a Peer,
    messages: PendingMessages,
    _open: OpenRequest,
}

/// A batch that was read and is not yet acknowledged.
struct Taken {
    pending: Pending,
    first: u64,
    count: u64,
    /// In memory until it is written.
    _held: Held,
}

impl Stream<'_> {
    async fn run(&mut self, certified: Option<NodeIdentity>) -> Result<(), Status> {
        let first = tokio::time::timeout(HELLO_WITHIN, self.next()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello within 10 s"))??;
        drop(self.messages.next());
        let hello = match first {
            Some(FromAgent::Hello(hello)) => hello,
            Some(_) => return Err(Status::invalid_argument("a stream begins with hello")),
            None => return Ok(()),
        };
        self.node = self.shared.identify(certified, &hello)?;
        let _admitted = self.shared.admit(&self.node)?;
        let node = self.node.clone();
        let known = self.resume(&node, &hello).await?;
        let acknowledged = known.map_or(0, |position| position.last);
        let version: String = hello.agent_version.chars().take(64).collect();
        tracing::info!(%node, version, epoch = hello.epoch, acknowledged, certified_until = self.peer.not_after(), "agent connected");
        log_hooks(&node, &hello.hooks);
        let live = self.shared.beats.begin(&node, &self.peer.addr().to_string(), &hello);
        let digest = known.map(|position| digest(&position)).unwrap_or_default();
        let welcome = Welcome { acknowledged_sequence: acknowledged, digest, window_bytes: BATCHES_WINDOW };
        self.say(ToAgent::Welcome(welcome)).await?;
        let silent_for = self.shared.door.limits().silent_for;
        let mut taken = VecDeque::new();
        loop {
            let message = tokio::select! {
                biased;
                receipt = written(&mut taken), if !taken.is_empty() => {
                    self.acknowledge(&receipt?).await?;
                    continue;
                }
                message = tokio::time::timeout(silent_for, self.next()), if taken.len() < PENDING => message,
            };
            let message =
                message.map_err(|_| Status::deadline_exceeded(format!("no message within {silent_for:?}")))??;
            // In memory until the message is dealt with.
            let held = self.messages.next();
            match message {
                Some(FromAgent::Batch(batch)) => {
                    if let Some((pending, first, count)) = self.take(&node, hello.epoch, batch).await? {
                        taken.push_back(Taken { pending, first, count, _held: held });
                    }
                }
                Some(FromAgent::Heartbeat(heartbeat)) => self.heartbeat(&node, heartbeat, &live).await?,
                Some(FromAgent::Hello(_)) => return Err(Status::invalid_argument("a second hello")),
                None => {
                    while !taken.is_empty() {
                        let receipt = written(&mut taken).await?;
                        self.acknowledge(&receipt).await?;
                    }
                    tracing::info!(%node, "agent disconnected");
                    return Ok(());
                }
            }
        }
    }

    /// `None`: the agent has ended the stream. Ending because the process stops is an error to the agent: it comes again.
    async fn next(&mut self) -> Result<Option<FromAgent>, Status> {
        let mut stop = self.shared.stop.clone();
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => Err(Status::unavailable("the correlator is shutting down")),
            received = self.inbound.message() => match received {
                Ok(Some(AgentMessage { message: Some(message) })) => Ok(Some(message)),
                Ok(Some(AgentMessage { message: None })) => {
                    Err(Status::invalid_argument("a message of a kind that this correlator does not know"))
                }
                Ok(None) => Ok(None),
                Err(status) => Err(status),
            }
        }
    }

    async fn say(&self, message: ToAgent) -> Result<(), Status> {
        let message = CorrelatorMessage { message: Some(message) };
        match tokio::time::timeout(self.shared.door.limits().reads_within, self.outbound.send(Ok(message))).await {
            Ok(sent) => sent.map_err(|_| Status::cancelled("the agent has gone")),
            Err(_) => Err(Status::deadline_exceeded("the agent does not read what it is answered")),
        }
    }

    /// Where this epoch goes on. Records that the agent no longer has and that never came are a loss.
    async fn resume(&self, node: &str, hello: &Hello) -> Result<Option<Position>, Status> {
        let journal = &self.shared.journal;
        let Some(known) = journal.position(&node_source(node), hello.epoch) else { return Ok(None) };
        if hello.oldest_sequence > known.last.saturating_add(1) {
            let missing = hello.oldest_sequence - known.last - 1;
            tracing::warn!(%node, missing, "the agent gave up records before they were acknowledged");
            let loss = Loss {
                source: "uplink_sequence".to_owned(),
                reason: "the agent no longer has records that were never received".to_owned(),
                count: missing,
                count_known: true,
                from_unix_ns: known.watermark,
                until_unix_ns: now(),
            };
            let last_sequence = hello.oldest_sequence - 1;
            let (node, epoch, loss) = (node.to_owned(), hello.epoch, Some(loss));
            let entry = Entry::NodeLoss(NodeLoss { node, epoch, loss, last_sequence });
            journal.append(entry).await.map_err(refusal)?;
        }
        Ok(Some(known))
    }

    /// Hands a batch to the journal; `None` where it has no records, and was acknowledged.
    async fn take(&self, node: &str, epoch: u64, bytes: Bytes) -> Result<Option<(Pending, u64, u64)>, Status> {
        let malformed =
            |error: prost::DecodeError| Status::invalid_argument(format!("failed to decode a batch: {error}"));
        let Batch { first_sequence: first, watermark_unix_ns, count, records, records_bytes, .. } =
            Batch::decode(bytes.clone()).map_err(malformed)?;
        let journal = &self.shared.journal;
        if count == 0 {
            if !records.is_empty() {
                return Err(Status::invalid_argument("a batch of records covers at least one sequence"));
            }
            let report = NodeReport { node: node.to_owned(), watermark_unix_ns, ..NodeReport::default() };
            journal.append(Entry::NodeReport(report)).await.map_err(refusal)?;
            let known = journal.position(&node_source(node), epoch);
            let (sequence, digest) = known.map(|known| (known.last, digest(&known))).unwrap_or_default();
            self.say(ToAgent::Ack(Ack { sequence, digest })).await?;
            return Ok(None);
        }
        if first == 0 {
            return Err(Status::invalid_argument("sequences begin with 1"));
        }
        if records_bytes > LARGEST_RECORDS as u64 {
            let most = LARGEST_RECORDS;
            return Err(Status::invalid_argument(format!(
                "records of {records_bytes} bytes in a batch, {most} may be"
            )));
        }
        let last = first.checked_add(count - 1).ok_or_else(|| Status::invalid_argument("sequence beyond 2^64"))?;
        let entry = Entry::NodeBatch(NodeBatch {
            node: node.to_owned(),
            epoch,
            digest: seclog_journal::digest(&bytes).to_vec(),
            batch: bytes,
            first_sequence: first,
            last_sequence: last,
            repeated: 0,
            watermark_unix_ns,
        });
        let pending = journal.send(entry).await.map_err(refusal)?;
        Ok(Some((pending, first, count)))
    }

    async fn acknowledge(&self, written: &Written) -> Result<(), Status> {
        let counters = &self.shared.counters;
        counters.records.fetch_add(written.fresh, Ordering::Relaxed);
        counters.repeated.fetch_add(written.repeated, Ordering::Relaxed);
        let (sequence, digest) = (written.position.last, digest(&written.position));
        self.say(ToAgent::Ack(Ack { sequence, digest })).await
    }

    async fn heartbeat(&self, node: &str, heartbeat: Heartbeat, live: &Live<'_>) -> Result<(), Status> {
        let received = now();
        let Heartbeat { watermark_unix_ns, sent_unix_ns, hooks: _, counters: _, check } = heartbeat;
        tracing::debug!(%node, sent_unix_ns, watermark_unix_ns, "heartbeat");
        if let Some(status) = &check {
            log_check(node, status);
        }
        let journal = &self.shared.journal;
        let report =
            NodeReport { node: node.to_owned(), watermark_unix_ns, sent_unix_ns, received_unix_ns: received, check };
        journal.note(Entry::NodeReport(report)).await.map_err(refusal)?;
        if let Some(shared) = live.beat(sent_unix_ns, received) {
            tracing::error!(%node, peers = ?shared.peers, "two live streams speak for one node: its key was copied");
            journal.append(Entry::SharedIdentity(shared)).await.map_err(refusal)?;
        }
        Ok(())
    }
}

/// What became of the batch that was sent first.
struct Written {
    position: Position,
    fresh: u64,
    repeated: u64,
}

/// Waits for the oldest batch that is not yet written. Loses nothing when it is dropped.
async fn written(taken: &mut VecDeque<Taken>) -> Result<Written, Status> {
    let Some(oldest) = taken.front_mut() else { return std::future::pending().await };
    let receipt = oldest.pending.written().await;
    let (first, count) = (oldest.first, oldest.count);
    taken.pop_front();
    let receipt = receipt.map_err(|error| match error {
        JournalError::Gap { .. } => Status::invalid_argument(format!(
            "{error}, the batch begins with {first}; connect again and go on behind the welcome's sequence"
        )),
        error => refusal(error),
    })?;
    let repeated = receipt.repeated.min(count);
    Ok(Written { position: receipt.position, fresh: count - repeated, repeated })
}

/// As the wire has it: nothing where no batch ended there.
fn digest(position: &Position) -> Vec<u8> {
    if position.digest == [0; 32] { Vec::new() } else { position.digest.to_vec() }
}

fn refusal(error: JournalError) -> Status {
    match error {
        JournalError::Full(_) | JournalError::TooMany(_) => Status::resource_exhausted(error.to_string()),
        JournalError::Gap { .. } => Status::invalid_argument(error.to_string()),
        JournalError::Unwritable(_) | JournalError::Closed => Status::unavailable(error.to_string()),
    }
}

fn log_hooks(node: &str, hooks: &[HookStatus]) {
    for hook in hooks.iter().filter(|hook| !hook.active).take(16) {
        tracing::info!(node, hook = shown(&hook.name), "not active on the node: {}", shown(&hook.reason));
    }
}

fn log_check(node: &str, status: &CheckStatus) {
    let CheckStatus { checked_unix_ns: _, verdict, findings, namespaces: _ } = status;
    tracing::info!(node, verdict = shown(verdict), findings = findings.len(), "the node checked its configuration");
    for finding in findings.iter().filter(|f| matches!(f.severity.as_str(), "error" | "warning")).take(16) {
        let CheckFinding { code, severity, what, place } = finding;
        tracing::warn!(node, code = shown(code), severity, place = shown(place), "{}", shown(what));
    }
}

/// A peer's text in a message: cut, and escaped.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(100).collect::<String>())
}
