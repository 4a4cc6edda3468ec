//! The endpoint.

use super::authority::{Authority, AuthorityError};
use super::ledger::{Issued, Ledger, Novelty};
use super::rate::Rate;
use super::token::{Bound, Expected, TokenCheck, shown};
use crate::intake::{RateLimit, now};
use crate::journal::Journal;
use crate::listen::{Door, Incoming, Metered, Peer};
use crate::telemetry::{Collect, Sample, Telemetry};
use seclog_identity::NodeIdentity;
use seclog_proto::v1::enrolment_server::{Enrolment as EnrolmentService, EnrolmentServer};
use seclog_proto::v1::journal_entry::Entry;
use seclog_proto::v1::{Certificate, EnrolRequest, EnrolResponse};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

const LARGEST_MESSAGE: usize = 32 << 10;
/// From a request's arrival to its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Certificates for one node within an hour. A healthy agent takes one or two a day.
const A_NODE_AN_HOUR: usize = 12;
/// Requests at once and a second, of all agents together: a cluster that starts anew comes at once, with jitter.
const BURST: u32 = 200;
const A_SECOND: f64 = 20.0;

#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    #[error("cannot listen for enrolment on {addr} (--enrol-listen): {source}")]
    Bind { addr: SocketAddr, source: std::io::Error },
    #[error("the server for enrolment failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// What certificates are issued for, and how.
#[derive(Debug)]
pub struct Settings {
    pub cluster: String,
    pub expected: Expected,
    pub check: TokenCheck,
    pub authority: Authority,
    pub ledger: Ledger,
    /// Where auditors see what was issued.
    pub journal: Journal,
}

/// A bound listener, not yet serving.
#[derive(Debug)]
pub struct Enrolment {
    listener: TcpListener,
    pub addr: SocketAddr,
    door: Door,
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    rate: Rate,
    refused: RateLimit,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    first: AtomicU64,
    renewed: AtomicU64,
    replaced: AtomicU64,
    second_key: AtomicU64,
    refused: AtomicU64,
    limited: AtomicU64,
    unavailable: AtomicU64,
}

// === impl Enrolment ===

impl Enrolment {
    pub async fn bind(
        addr: SocketAddr,
        door: Door,
        settings: Settings,
        telemetry: &Telemetry,
        stop: watch::Receiver<bool>,
    ) -> Result<Self, EnrolmentError> {
        let failed = |source| EnrolmentError::Bind { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let rate = Rate::new(BURST, A_SECOND);
        let shared = Arc::new(Shared { settings, rate, refused: RateLimit::default(), counters: Counters::default() });
        telemetry.collect(Shown(Arc::clone(&shared)));
        door.register(telemetry);
        Ok(Self { listener, addr, door, shared, stop })
    }

    /// Until told to stop.
    pub async fn serve(self) -> Result<(), EnrolmentError> {
        let Self { listener, door, shared, mut stop, .. } = self;
        let service = EnrolmentServer::new(Service(shared)).max_decoding_message_size(LARGEST_MESSAGE);
        Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .initial_connection_window_size(64 << 10)
            .initial_stream_window_size(64 << 10)
            .max_concurrent_streams(2)
            .http2_max_header_list_size(16 << 10)
            .http2_max_pending_accept_reset_streams(Some(20))
            .timeout(ANSWER_WITHIN)
            .add_service(Metered::new(service, LARGEST_MESSAGE, door.limits()))
            .serve_with_incoming_shutdown(Incoming::new(listener, door), async move {
                let _ = stop.wait_for(|stop| *stop).await;
            })
            .await?;
        Ok(())
    }
}

#[derive(Debug, Clone)]
struct Service(Arc<Shared>);

#[tonic::async_trait]
impl EnrolmentService for Service {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let Some(peer) = extensions.get::<Peer>() else {
            return Err(Status::internal("a connection of unknown origin"));
        };
        let _open = peer.request();
        let answer = self.0.enrol(peer, request).await;
        if let Err(status) = &answer {
            self.0.counters.count(status.code());
            if let Some(held_back) = self.0.refused.pass() {
                let (peer, code) = (peer.addr(), status.code());
                tracing::warn!(%peer, ?code, held_back, "no certificate: {}", status.message());
            }
        }
        answer.map(Response::new)
    }
}

impl Shared {
    async fn enrol(self: &Arc<Self>, peer: &Peer, request: EnrolRequest) -> Result<EnrolResponse, Status> {
        if peer.is_refused() {
            return Err(Status::resource_exhausted("too many connections are open; come again"));
        }
        if let Err(wait) = self.rate.take(Instant::now()) {
            return Err(Status::resource_exhausted(format!("too many requests; come again in {wait:.1?}")));
        }
        let EnrolRequest { token, request, cluster, agent_version } = request;
        let Settings { cluster: ours, expected, check, authority, ledger, journal } = &self.settings;
        if cluster != *ours {
            let cluster = shown(&cluster);
            return Err(Status::permission_denied(format!("this correlator serves cluster {ours:?}, not {cluster:?}")));
        }
        let Bound { node, node_uid, pod, pod_uid } = check.check(&token, expected).await?;
        let time = now() / 1_000_000_000;
        if ledger.within_the_hour(&node, time) >= A_NODE_AN_HOUR {
            return Err(Status::resource_exhausted(format!(
                "{node} got {A_NODE_AN_HOUR} certificates within an hour; come again later"
            )));
        }
        let identity = NodeIdentity { cluster, node: node.clone() };
        let signed = authority.sign(&request, &identity)?;
        let facts = &signed.facts;
        if let Some(why) = authority.denies(&identity, facts) {
            return Err(Status::permission_denied(why));
        }
        let novelty = ledger.novelty(&node, &node_uid, &facts.key_sha256, time);
        let issued = Issued {
            time,
            cluster: identity.cluster,
            node,
            node_uid,
            pod,
            pod_uid,
            serial: facts.serial.clone(),
            key_sha256: facts.key_sha256.clone(),
            not_after: u64::try_from(facts.not_after).unwrap_or(0),
            peer: peer.addr().to_string(),
        };
        let entry = entry(&issued, novelty);
        // The disk may be slow; others are served meanwhile.
        let (shared, line) = (Arc::clone(self), issued.clone());
        let noted = tokio::task::spawn_blocking(move || shared.settings.ledger.note(line)).await;
        let noted = noted.map_err(|error| error.to_string()).and_then(|noted| noted.map_err(|error| error.to_string()));
        noted.map_err(|error| {
            tracing::error!("{error}");
            Status::unavailable("the certificate could not be written down, so it is not given out; come again")
        })?;
        journal.append(entry).await.map_err(|error| {
            tracing::error!("{error}");
            Status::unavailable(
                "the certificate could not be written into the journal, so it is not given out; come again",
            )
        })?;
        self.tell(novelty, &issued, &agent_version);
        Ok(EnrolResponse { certificate_chain: signed.chain })
    }

    fn tell(&self, novelty: Novelty, issued: &Issued, agent_version: &str) {
        let Issued { node, node_uid, pod, serial, key_sha256, not_after, peer, .. } = issued;
        let version = shown(agent_version);
        let counter = match novelty {
            Novelty::First => &self.counters.first,
            Novelty::Renewal => &self.counters.renewed,
            Novelty::Replaced => &self.counters.replaced,
            Novelty::SecondKey => &self.counters.second_key,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        tracing::info!(
            node,
            node_uid,
            pod,
            serial,
            key_sha256,
            not_after,
            peer,
            version,
            ?novelty,
            "certificate issued"
        );
        if novelty == Novelty::SecondKey {
            tracing::warn!(
                node,
                serial,
                key_sha256,
                peer,
                "another key was certified for a node whose certificate has not ended: its state was lost, or somebody else holds a \
                 token of its agent"
            );
        }
    }
}

fn entry(issued: &Issued, novelty: Novelty) -> Entry {
    let Issued { time: _, cluster: _, node, node_uid, pod, pod_uid, serial, key_sha256, not_after, peer } =
        issued.clone();
    let second_key = novelty == Novelty::SecondKey;
    Entry::Certificate(Certificate { node, node_uid, pod, pod_uid, serial, key_sha256, not_after, peer, second_key })
}

// === impl Counters ===

impl Counters {
    fn count(&self, code: Code) {
        let counter = match code {
            Code::ResourceExhausted => &self.limited,
            Code::Unavailable | Code::Internal => &self.unavailable,
            _ => &self.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl From<AuthorityError> for Status {
    fn from(error: AuthorityError) -> Self {
        match &error {
            AuthorityError::Request(_) => Self::invalid_argument(error.to_string()),
            _ => {
                tracing::error!("no certificate can be issued: {error}");
                Self::unavailable("this correlator cannot sign now; its log says why")
            }
        }
    }
}

#[derive(Debug)]
struct Shown(Arc<Shared>);

impl Collect for Shown {
    fn collect(&self, to: &mut Sample<'_>) -> std::fmt::Result {
        let Shared { settings, counters, .. } = &*self.0;
        let Counters { first, renewed, replaced, second_key, refused, limited, unavailable } = counters;
        to.gauge(
            "enrolment_authority_expiry_timestamp_seconds",
            "When the certificate of the authority that signs nodes ends, seconds since 1970.",
            u64::try_from(settings.authority.not_after()).unwrap_or(0),
        )?;
        for (name, help, counter) in [
            ("enrolments_first", "Certificates for nodes that had none.", first),
            ("enrolments_renewed", "Certificates for the key that the node had already.", renewed),
            ("enrolments_replaced", "Certificates for another key of a node that was made anew.", replaced),
            ("enrolments_second_key", "Certificates for another key while that of the first was valid.", second_key),
            ("enrolments_refused", "Requests refused: by the token, or by what was to be signed.", refused),
            ("enrolments_limited", "Requests told to come again because there were too many.", limited),
            ("enrolments_unavailable", "Requests that could not be decided or signed.", unavailable),
        ] {
            to.counter(name, help, counter.load(Ordering::Relaxed))?;
        }
        Ok(())
    }
}
