//! The agents' streams: `seclog.v1.NodeStream`.
//!
//! What holds:
//! - Records of one (node, epoch) reach the join in the order of their sequences, each once: a batch that begins behind the
//!   expected sequence ends the stream, what was seen before is skipped and counted.
//! - An ack follows only when the join's queue has the records. There is no journal yet, so an ack means "taken into
//!   memory": what the correlator had acknowledged and not written as a session is lost when it is killed.
//! - Who an agent is comes from its certificate. Only over plain text (loopback) its own word is taken.
//! - Whatever is wrong with a stream ends that stream alone, with a status that says why.

use super::identity::{NodeIdentity, is_name};
use super::tls::{TlsError, TlsFiles};
use super::{Queue, now};
use crate::join::{Input, Source};
use seclog_proto::v1::agent_message::Message as FromAgent;
use seclog_proto::v1::correlator_message::Message as ToAgent;
use seclog_proto::v1::node_record::Detail;
use seclog_proto::v1::node_stream_server::{NodeStream, NodeStreamServer};
use seclog_proto::v1::{
    Ack, AgentMessage, Batch, CheckFinding, CheckStatus, CorrelatorMessage, Heartbeat, Hello, HookStatus, Loss,
    NodeRecord, Welcome,
};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of one message. Agents send batches far smaller than this.
const LARGEST_MESSAGE: usize = 16 << 20;
/// A peer must say hello within this time.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Epochs remembered of each node; an agent has one at a time.
const EPOCHS_PER_NODE: usize = 4;
/// Nodes remembered. Clusters are far smaller; over plain text names cost nothing to make up.
const MAX_NODES: usize = 20_000;

#[derive(Debug, thiserror::Error)]
pub enum AgentsError {
    #[error("cannot listen for agents on {addr}: {source}")]
    Bind { addr: SocketAddr, source: std::io::Error },
    #[error(
        "{0} is not a loopback address: agents may speak plain text only within this machine; give --tls-cert, --tls-key and \
         --client-ca instead of --plaintext"
    )]
    PlaintextBeyondLoopback(SocketAddr),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the server for agents failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// How an agent's word about its name is checked.
#[derive(Debug, Clone)]
pub enum Transport {
    Tls(TlsFiles),
    Plaintext,
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
    transport: Transport,
    service: Service,
}

impl Agents {
    pub async fn bind(
        addr: SocketAddr,
        cluster: &str,
        transport: Transport,
        queue: Queue,
        stop: watch::Receiver<bool>,
    ) -> Result<Self, AgentsError> {
        if matches!(transport, Transport::Plaintext) && !addr.ip().is_loopback() {
            return Err(AgentsError::PlaintextBeyondLoopback(addr));
        }
        if let Transport::Tls(files) = &transport {
            files.tonic()?;
        }
        let failed = |source| AgentsError::Bind { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let service = Service(Arc::new(Shared {
            cluster: cluster.to_owned(),
            plaintext: matches!(transport, Transport::Plaintext),
            queue,
            stop,
            positions: Mutex::default(),
            told_plaintext: std::sync::Once::new(),
            counters: AgentCounters::default(),
        }));
        Ok(Self { listener, addr, transport, service })
    }

    /// Until told to stop; then the streams end and this returns.
    pub async fn serve(self) -> Result<(), AgentsError> {
        let Self { listener, transport, service, .. } = self;
        let mut stop = service.0.stop.clone();
        let mut server = Server::builder()
            .tcp_nodelay(true)
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)));
        if let Transport::Tls(files) = &transport {
            server = server.tls_config(files.tonic()?)?;
        }
        let shared = Arc::clone(&service.0);
        let service = NodeStreamServer::new(service).max_decoding_message_size(LARGEST_MESSAGE);
        server
            .add_service(service)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async move {
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
    plaintext: bool,
    queue: Queue,
    stop: watch::Receiver<bool>,
    positions: Mutex<BTreeMap<String, Vec<Epoch>>>,
    told_plaintext: std::sync::Once,
    counters: AgentCounters,
}

#[derive(Debug, Clone)]
struct Epoch {
    id: u64,
    /// Two streams of one epoch (the old one not yet known to be dead) take turns.
    position: Arc<tokio::sync::Mutex<Position>>,
}

#[derive(Debug, Default)]
struct Position {
    /// The last sequence that the join's queue has. `None`: whatever comes first.
    last: Option<u64>,
    watermark: u64,
}

#[tonic::async_trait]
impl NodeStream for Service {
    type ConnectStream = ReceiverStream<Result<CorrelatorMessage, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let certified = self.0.certified(&request)?;
        let peer = request.remote_addr();
        let (sender, receiver) = mpsc::channel(16);
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut stream =
                Stream { shared: &shared, inbound: request.into_inner(), outbound: &sender, node: String::new() };
            if let Err(status) = stream.run(certified).await {
                let node = stream.node;
                shared.counters.refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(?peer, node, code = ?status.code(), "agent stream ended: {}", status.message());
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl Shared {
    /// Who the certificate says it is; `None` over plain text.
    fn certified(&self, request: &Request<Streaming<AgentMessage>>) -> Result<Option<NodeIdentity>, Status> {
        if self.plaintext {
            self.told_plaintext.call_once(|| {
                tracing::warn!("agents speak plain text: the names that they give themselves are taken as they are");
            });
            return Ok(None);
        }
        let refused = |why: String| {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(peer = ?request.remote_addr(), "agent refused: {why}");
            Status::permission_denied(why)
        };
        let certificates = request.peer_certs().unwrap_or_default();
        let Some(certificate) = certificates.first() else {
            return Err(refused("no client certificate".to_owned()));
        };
        let identity = NodeIdentity::of_certificate(certificate).map_err(|error| refused(error.to_string()))?;
        if identity.cluster != self.cluster {
            return Err(refused(format!(
                "the certificate is of cluster {:?}; this correlator serves {:?}",
                identity.cluster, self.cluster
            )));
        }
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

    fn epoch(&self, node: &str, id: u64) -> Result<Arc<tokio::sync::Mutex<Position>>, Status> {
        let mut positions = self.positions.lock().unwrap_or_else(PoisonError::into_inner);
        if positions.len() >= MAX_NODES && !positions.contains_key(node) {
            return Err(Status::resource_exhausted(format!("more than {MAX_NODES} nodes")));
        }
        let epochs = positions.entry(node.to_owned()).or_default();
        // The one in use goes to the end; the oldest is forgotten.
        let epoch = match epochs.iter().position(|epoch| epoch.id == id) {
            Some(at) => epochs.remove(at),
            None => Epoch { id, position: Arc::default() },
        };
        let position = Arc::clone(&epoch.position);
        epochs.push(epoch);
        if epochs.len() > EPOCHS_PER_NODE {
            epochs.remove(0);
        }
        Ok(position)
    }
}

/// One agent's stream.
struct Stream<'a> {
    shared: &'a Shared,
    inbound: Streaming<AgentMessage>,
    outbound: &'a mpsc::Sender<Result<CorrelatorMessage, Status>>,
    node: String,
}

impl Stream<'_> {
    async fn run(&mut self, certified: Option<NodeIdentity>) -> Result<(), Status> {
        let first = tokio::time::timeout(HELLO_WITHIN, self.next()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello within 10 s"))??;
        let hello = match first {
            Some(FromAgent::Hello(hello)) => hello,
            Some(_) => return Err(Status::invalid_argument("a stream begins with hello")),
            None => return Ok(()),
        };
        self.node = self.shared.identify(certified, &hello)?;
        let node: Arc<str> = self.node.as_str().into();
        let position = self.shared.epoch(&node, hello.epoch)?;
        let acknowledged = self.resume(&node, &hello, &position).await?;
        let version: String = hello.agent_version.chars().take(64).collect();
        tracing::info!(%node, version, epoch = hello.epoch, acknowledged, "agent connected");
        log_hooks(&node, &hello.hooks);
        self.say(ToAgent::Welcome(Welcome { acknowledged_sequence: acknowledged })).await?;
        loop {
            match self.next().await? {
                Some(FromAgent::Batch(batch)) => {
                    let sequence = self.take(&node, batch, &position).await?;
                    self.say(ToAgent::Ack(Ack { sequence })).await?;
                }
                Some(FromAgent::Heartbeat(heartbeat)) => self.heartbeat(&node, heartbeat, &position).await?,
                Some(FromAgent::Hello(_)) => return Err(Status::invalid_argument("a second hello")),
                None => {
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
        self.outbound.send(Ok(message)).await.map_err(|_| Status::cancelled("the agent has gone"))
    }

    /// Where this epoch goes on. Records that the agent no longer has and that never came are a loss.
    async fn resume(
        &self,
        node: &Arc<str>,
        hello: &Hello,
        position: &tokio::sync::Mutex<Position>,
    ) -> Result<u64, Status> {
        let mut position = position.lock().await;
        let Some(last) = position.last else {
            // Nothing of this epoch is known: it begins here, or this process did.
            position.last = hello.oldest_sequence.checked_sub(1);
            return Ok(0);
        };
        if hello.oldest_sequence > last + 1 {
            let missing = hello.oldest_sequence - last - 1;
            tracing::warn!(%node, missing, "the agent gave up records before they were acknowledged");
            let loss = Loss {
                source: "uplink_sequence".to_owned(),
                reason: "the agent no longer has records that were never received".to_owned(),
                count: missing,
                count_known: true,
                from_unix_ns: position.watermark,
                until_unix_ns: now(),
            };
            let record = NodeRecord { detail: Some(Detail::Loss(loss)), ..NodeRecord::default() };
            self.put(vec![Input::Node { node: Arc::clone(node), record }]).await?;
            position.last = Some(hello.oldest_sequence - 1);
        }
        Ok(last)
    }

    /// Hands a batch to the join; returns the sequence to acknowledge.
    async fn take(
        &self,
        node: &Arc<str>,
        batch: Batch,
        position: &tokio::sync::Mutex<Position>,
    ) -> Result<u64, Status> {
        let Batch { first_sequence, records, watermark_unix_ns } = batch;
        let mut position = position.lock().await;
        if records.is_empty() {
            self.watermark(node, watermark_unix_ns, &mut position).await?;
            return Ok(position.last.unwrap_or_default());
        }
        if first_sequence == 0 {
            return Err(Status::invalid_argument("sequences begin with 1"));
        }
        let end = first_sequence
            .checked_add(records.len() as u64 - 1)
            .ok_or_else(|| Status::invalid_argument("sequence beyond 2^64"))?;
        let expected = position.last.map_or(first_sequence, |last| last.saturating_add(1));
        if first_sequence > expected {
            return Err(Status::invalid_argument(format!(
                "sequence gap: {expected} is next, the batch begins with {first_sequence}; connect again and go on behind \
                 the welcome's sequence"
            )));
        }
        let seen = usize::try_from(expected - first_sequence).unwrap_or(usize::MAX).min(records.len());
        let counters = &self.shared.counters;
        counters.repeated.fetch_add(seen as u64, Ordering::Relaxed);
        counters.records.fetch_add((records.len() - seen) as u64, Ordering::Relaxed);
        let fresh: Vec<Input> =
            records.into_iter().skip(seen).map(|record| Input::Node { node: Arc::clone(node), record }).collect();
        if !fresh.is_empty() {
            self.put(fresh).await?;
            position.last = Some(end);
        }
        self.watermark(node, watermark_unix_ns, &mut position).await?;
        Ok(position.last.unwrap_or_default())
    }

    async fn heartbeat(
        &self,
        node: &Arc<str>,
        heartbeat: Heartbeat,
        position: &tokio::sync::Mutex<Position>,
    ) -> Result<(), Status> {
        let received = now();
        let Heartbeat { watermark_unix_ns, sent_unix_ns, hooks: _, counters: _, check } = heartbeat;
        tracing::debug!(%node, sent_unix_ns, watermark_unix_ns, "heartbeat");
        if let Some(status) = check {
            log_check(node, &status);
            self.put(vec![Input::NodeCheck { node: Arc::clone(node), status }]).await?;
        }
        if sent_unix_ns > 0 {
            self.put(vec![Input::Clock { node: Arc::clone(node), sent: sent_unix_ns, received }]).await?;
        }
        let mut position = position.lock().await;
        self.watermark(node, watermark_unix_ns, &mut position).await
    }

    async fn watermark(&self, node: &Arc<str>, until: u64, position: &mut Position) -> Result<(), Status> {
        if until <= position.watermark {
            return Ok(());
        }
        position.watermark = until;
        self.put(vec![Input::Watermark { source: Source::Node(Arc::clone(node)), until }]).await
    }

    async fn put(&self, batch: Vec<Input>) -> Result<(), Status> {
        self.shared.queue.put(batch).await.map_err(|closed| Status::unavailable(closed.to_string()))
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
