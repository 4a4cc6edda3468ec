//! The audit webhook backend's endpoint: POST of an EventList, Event or array of Events, plain or gzip, over mutual TLS.
//!
//! What holds: 200 is answered only when the journal has every event of the body that matters and is synced, and the
//! quarantine what could not be read, which costs no neighbour. 429 and 503 ask to come again: the API server does, for as
//! long as its own buffer lasts. What it sends twice is in the journal once.
//!
//! Memory is taken from the budget before a body is read, and again before it is unpacked; no body may be larger than the
//! limit, packed or unpacked.
//!
//! Whose events these are: a certificate may name its cluster by a URI `seclog-audit://<cluster>`, and a path may by
//! `/clusters/<cluster>`; both must be the cluster that is served. Any other path and any query will do.

use super::RateLimit;
use super::trail::{Origin, Trail, TrailError};
use super::{Budget, Held, OverBudget};
use crate::audit::Feed;
use crate::join::Route;
use crate::journal::JournalError;
use crate::listen::Tls;
use axum::Extension;
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum_server::accept::Accept;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use flate2::read::MultiGzDecoder;
use http_body_util::BodyExt;
use hyper_util::rt::TokioTimer;
use seclog_identity::NodeIdentity;
use std::future::Future;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

const DRAIN_WITHIN: Duration = Duration::from_secs(10);
/// A request's head must have come within this time.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
const BODY_WITHIN: Duration = Duration::from_secs(30);
/// Bodies that are read at a time.
const BODIES_AT_ONCE: usize = 8;
/// Memory is taken in steps of at least this.
const STEP: usize = 256 << 10;
/// How an API server's certificate names its cluster.
const SCHEME: &str = "seclog-audit://";

#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("cannot listen for the audit webhook on {addr}: {source}")]
    Bind { addr: SocketAddr, source: io::Error },
    #[error("the server for the audit webhook failed: {0}")]
    Serve(io::Error),
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a body.
    pub body: usize,
    /// How long a body waits for the journal. The API server gives a request 30 s.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body: 64 << 20, patience: Duration::from_secs(10) }
    }
}

/// A bound listener, not yet serving.
#[derive(Debug)]
pub struct Webhook {
    listener: TcpListener,
    pub addr: SocketAddr,
    tls: Arc<Tls>,
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Shared {
    cluster: String,
    trail: Trail,
    budget: Budget,
    limits: Limits,
    bodies: Semaphore,
    refused: RateLimit,
}

impl Webhook {
    pub fn bind(
        addr: SocketAddr,
        tls: Arc<Tls>,
        limits: Limits,
        cluster: &str,
        trail: Trail,
        budget: &Budget,
        stop: watch::Receiver<bool>,
    ) -> Result<Self, WebhookError> {
        let failed = |source| WebhookError::Bind { addr, source };
        let listener = TcpListener::bind(addr).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            cluster: cluster.to_owned(),
            trail,
            budget: budget.clone(),
            limits,
            bodies: Semaphore::new(BODIES_AT_ONCE),
            refused: RateLimit::default(),
        });
        Ok(Self { listener, addr, tls, shared, stop })
    }

    /// Until told to stop; requests that have begun are finished.
    pub async fn serve(self) -> Result<(), WebhookError> {
        let Self { listener, tls, shared, mut stop, .. } = self;
        let handle = axum_server::Handle::new();
        let stopper = handle.clone();
        tokio::spawn(async move {
            let _ = stop.wait_for(|stop| *stop).await;
            stopper.graceful_shutdown(Some(DRAIN_WITHIN));
        });
        let config = RustlsConfig::from_config(tls.mutual());
        let reloaded = config.clone();
        let following = tokio::spawn(async move {
            let mut changes = tls.changes();
            loop {
                changes.next().await;
                reloaded.reload_from_config(tls.mutual());
            }
        });
        let app = Router::new().fallback(receive).with_state(shared);
        let mut server = axum_server::from_tcp(listener)
            .map_err(WebhookError::Serve)?
            .acceptor(Acceptor(RustlsAcceptor::new(config)));
        let protocols = server.http_builder();
        protocols.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
        protocols
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(20))
            .max_concurrent_streams(BODIES_AT_ONCE as u32)
            .max_header_list_size(16 << 10);
        server
            .handle(handle)
            .serve(app.into_make_service_with_connect_info::<SocketAddr>())
            .await
            .map_err(WebhookError::Serve)?;
        following.abort();
        Ok(())
    }
}

/// What a peer's certificate says of it.
#[derive(Debug, Clone, Default)]
struct Client {
    is_agent: bool,
    /// The cluster for whose API server it speaks, where it names one.
    cluster: Option<String>,
}

impl Client {
    fn of_certificate(der: &[u8]) -> Self {
        let is_agent = NodeIdentity::of_certificate(der).is_ok();
        let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Self { is_agent, cluster: None } };
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|names| &names.value.general_names);
        let mut clusters = names.filter_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix(SCHEME).map(str::to_owned),
            _ => None,
        });
        Self { is_agent, cluster: clusters.next() }
    }
}

/// Tells the handler what the peer's certificate says.
#[derive(Debug, Clone)]
struct Acceptor(RustlsAcceptor);

type AcceptFuture<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl<I, S> Accept<I, S> for Acceptor
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Send + 'static,
{
    type Stream = tokio_rustls::server::TlsStream<I>;
    type Service = <Extension<Client> as tower_layer::Layer<S>>::Service;
    type Future = AcceptFuture<(Self::Stream, Self::Service)>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let accepting = self.0.accept(stream, service);
        Box::pin(async move {
            let (stream, service) = accepting.await?;
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let client = certificate.map(|certificate| Client::of_certificate(certificate)).unwrap_or_default();
            Ok((stream, tower_layer::Layer::layer(&Extension(client), service)))
        })
    }
}

async fn receive(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Response {
    match shared.handle(peer, client, request).await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(Refusal { status, why }) => {
            if let Some(held_back) = shared.refused.pass() {
                tracing::warn!(%peer, status = status.as_u16(), held_back, "audit webhook request refused: {why}");
            }
            let mut response = (status, format!("{why}\n")).into_response();
            if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            response
        }
    }
}

struct Refusal {
    status: StatusCode,
    why: String,
}

fn refuse(status: StatusCode, why: impl Into<String>) -> Refusal {
    Refusal { status, why: why.into() }
}

impl Shared {
    async fn handle(&self, peer: SocketAddr, client: Client, request: Request) -> Result<(), Refusal> {
        self.admit(&client, request.uri().path())?;
        if request.method() != Method::POST {
            return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "POST audit.k8s.io/v1 events here"));
        }
        let encoding = Encoding::of(request.headers())?;
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > self.limits.body as u64) {
            return Err(self.too_large());
        }
        let Ok(Ok(_bodies)) = tokio::time::timeout(self.limits.patience, self.bodies.acquire()).await else {
            return Err(refuse(StatusCode::TOO_MANY_REQUESTS, "too many requests at once"));
        };
        let received = tokio::time::timeout(BODY_WITHIN, self.body(request.into_body())).await;
        let late = |_| refuse(StatusCode::REQUEST_TIMEOUT, "the body did not come within 30 s");
        let (body, held) = received.map_err(late)??;
        let (budget, limits, runtime) = (self.budget.clone(), self.limits, Handle::current());
        let reading = tokio::task::spawn_blocking(move || {
            let (body, _held) = encoding.decode(body, held, limits, &budget, &runtime)?;
            let batch = Feed::default().body(&body);
            batch.map_err(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))
        });
        let failed = |_| refuse(StatusCode::INTERNAL_SERVER_ERROR, "the body could not be read: a defect");
        let batch = reading.await.map_err(failed)??;
        let origin = Origin { route: Route::Webhook, source: format!("webhook/{}", peer.ip()) };
        match tokio::time::timeout(self.limits.patience, self.trail.take(origin, batch, None)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(TrailError::Journal(error @ (JournalError::Full(_) | JournalError::TooMany(_))))) => {
                Err(refuse(StatusCode::TOO_MANY_REQUESTS, error.to_string()))
            }
            Ok(Err(error)) => Err(refuse(StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
            Err(_) => Err(refuse(StatusCode::TOO_MANY_REQUESTS, "the journal is behind")),
        }
    }

    /// Whether this client may speak for the cluster's API server.
    fn admit(&self, client: &Client, path: &str) -> Result<(), Refusal> {
        let forbidden = |why: String| Err(refuse(StatusCode::FORBIDDEN, why));
        // The same authority signs both, and a node must not make up what the API server says.
        if client.is_agent {
            return forbidden("this is the certificate of a node's agent, not of an API server".to_owned());
        }
        let cluster = &self.cluster;
        if let Some(named) = client.cluster.as_ref().filter(|named| *named != cluster) {
            return forbidden(format!("this is the certificate of cluster {named:?}; {cluster:?} is served here"));
        }
        let named = path.strip_prefix("/clusters/").map(|rest| rest.split('/').next().unwrap_or_default());
        match named {
            Some(named) if named != cluster => {
                forbidden(format!("the path names cluster {named:?}; {cluster:?} is served here"))
            }
            _ => Ok(()),
        }
    }

    /// Reads a body, and takes memory for it before.
    async fn body(&self, mut body: Body) -> Result<(Vec<u8>, Held), Refusal> {
        let mut bytes = Vec::new();
        let mut room = Room::default();
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|error| refuse(StatusCode::BAD_REQUEST, format!("the body broke off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > self.limits.body {
                return Err(self.too_large());
            }
            if let Some(more) = room.more(data.len()) {
                let held = self.budget.take(more, self.limits.patience).await;
                room.add(more, held.map_err(|error| over_budget(&error))?);
            }
            bytes.extend_from_slice(&data);
        }
        Ok((bytes, room.held))
    }

    fn too_large(&self) -> Refusal {
        too_large(self.limits.body)
    }
}

fn too_large(limit: usize) -> Refusal {
    refuse(StatusCode::PAYLOAD_TOO_LARGE, format!("a body may have {limit} bytes (--webhook-body-limit)"))
}

fn over_budget(error: &OverBudget) -> Refusal {
    let status = match error {
        OverBudget::Never { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        OverBudget::Now { .. } => StatusCode::TOO_MANY_REQUESTS,
    };
    refuse(status, error.to_string())
}

/// Memory taken in steps, ahead of what is used.
#[derive(Debug, Default)]
struct Room {
    used: usize,
    taken: usize,
    held: Held,
}

impl Room {
    /// How much more is to be taken before so many bytes come.
    fn more(&mut self, bytes: usize) -> Option<usize> {
        self.used += bytes;
        (self.used > self.taken).then(|| (self.used - self.taken).max(STEP))
    }

    fn add(&mut self, bytes: usize, held: Held) {
        self.taken += bytes;
        self.held.add(held);
    }
}

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Plain,
    Gzip,
}

impl Encoding {
    fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let named = headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes).unwrap_or_default();
        match named.to_ascii_lowercase().as_slice() {
            b"" | b"identity" => Ok(Self::Plain),
            b"gzip" | b"x-gzip" => Ok(Self::Gzip),
            _ => Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send the body plain or with Content-Encoding: gzip")),
        }
    }

    /// What is in a body. It may be no larger than a plain one, however small it was packed; memory for it is taken first.
    fn decode(
        self,
        body: Vec<u8>,
        held: Held,
        limits: Limits,
        budget: &Budget,
        runtime: &Handle,
    ) -> Result<(Vec<u8>, Held), Refusal> {
        if self == Self::Plain {
            return Ok((body, held));
        }
        let mut room = Room::default();
        let mut decoder = MultiGzDecoder::new(body.as_slice());
        let (mut plain, mut piece) = (Vec::new(), vec![0; STEP]);
        loop {
            let read = decoder.read(&mut piece).map_err(|error| {
                refuse(StatusCode::BAD_REQUEST, format!("the body is not what Content-Encoding: gzip says: {error}"))
            })?;
            if read == 0 {
                return Ok((plain, room.held));
            }
            if plain.len() + read > limits.body {
                return Err(too_large(limits.body));
            }
            if let Some(more) = room.more(read) {
                let taken = runtime.block_on(budget.take(more, limits.patience));
                room.add(more, taken.map_err(|error| over_budget(&error))?);
            }
            plain.extend_from_slice(&piece[..read]);
        }
    }
}
