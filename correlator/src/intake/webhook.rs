//! The audit webhook backend's endpoint: POST of an EventList, Event or array of Events to any path, over mutual TLS.
//!
//! What holds: 200 is answered only when the join's queue has every event of the body that could be read (in memory: there
//! is no journal yet). Events that cannot be read are counted and told, and cost no neighbour. 429 asks to come again: the
//! API server does, for as long as its own buffer lasts.

use super::identity::NodeIdentity;
use super::tls::{TlsError, TlsFiles};
use super::{Queue, RateLimit, now};
use crate::audit::{self, FeedCounters};
use crate::join::{Input, Route};
use axum::Extension;
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum_server::accept::Accept;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};

const DRAIN_WITHIN: Duration = Duration::from_secs(10);
const BODY_WITHIN: Duration = Duration::from_secs(30);
/// Bodies in memory at a time; with the largest body this bounds the memory of the endpoint.
const BODIES_AT_ONCE: usize = 8;
const LATENESS_NS: u64 = 120_000_000_000;

#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("cannot listen for the audit webhook on {addr}: {source}")]
    Bind { addr: SocketAddr, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the server for the audit webhook failed: {0}")]
    Serve(io::Error),
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a body.
    pub body: usize,
    /// How long a body waits for room in the queue. The API server gives a request 30 s.
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
    tls: RustlsConfig,
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Shared {
    queue: Queue,
    limits: Limits,
    bodies: Semaphore,
    counters: Mutex<FeedCounters>,
    malformed: RateLimit,
    refused: RateLimit,
}

impl Webhook {
    pub fn bind(
        addr: SocketAddr,
        tls: &TlsFiles,
        limits: Limits,
        queue: Queue,
        stop: watch::Receiver<bool>,
    ) -> Result<Self, WebhookError> {
        let failed = |source| WebhookError::Bind { addr, source };
        let tls = RustlsConfig::from_config(tls.rustls()?);
        let listener = TcpListener::bind(addr).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            queue,
            limits,
            bodies: Semaphore::new(BODIES_AT_ONCE),
            counters: Mutex::default(),
            malformed: RateLimit::default(),
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
        let app = Router::new().fallback(receive).with_state(Arc::clone(&shared));
        axum_server::from_tcp(listener)
            .map_err(WebhookError::Serve)?
            .acceptor(Acceptor(RustlsAcceptor::new(tls)))
            .handle(handle)
            .serve(app.into_make_service_with_connect_info::<SocketAddr>())
            .await
            .map_err(WebhookError::Serve)?;
        let counters = shared.counters.lock().unwrap_or_else(PoisonError::into_inner);
        tracing::info!(
            events = counters.events,
            access = counters.access,
            irrelevant = counters.irrelevant_total(),
            malformed = counters.malformed,
            "audit webhook served"
        );
        Ok(())
    }
}

/// The client certificate is an agent's.
#[derive(Debug, Clone, Copy)]
struct IsAgent(bool);

/// Tells the handler whether the peer's certificate is that of a node's agent.
#[derive(Debug, Clone)]
struct Acceptor(RustlsAcceptor);

type AcceptFuture<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl<I, S> Accept<I, S> for Acceptor
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Send + 'static,
{
    type Stream = tokio_rustls::server::TlsStream<I>;
    type Service = <Extension<IsAgent> as tower_layer::Layer<S>>::Service;
    type Future = AcceptFuture<(Self::Stream, Self::Service)>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let accepting = self.0.accept(stream, service);
        Box::pin(async move {
            let (stream, service) = accepting.await?;
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let is_agent = certificate.is_some_and(|certificate| NodeIdentity::of_certificate(certificate).is_ok());
            Ok((stream, tower_layer::Layer::layer(&Extension(IsAgent(is_agent)), service)))
        })
    }
}

async fn receive(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Extension(IsAgent(is_agent)): Extension<IsAgent>,
    request: Request,
) -> Response {
    match shared.handle(peer, is_agent, request).await {
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
    async fn handle(&self, peer: SocketAddr, is_agent: bool, request: Request) -> Result<(), Refusal> {
        if is_agent {
            // The same authority signs both, and a node must not make up what the API server says.
            return Err(refuse(
                StatusCode::FORBIDDEN,
                "this is the certificate of a node's agent, not of an API server",
            ));
        }
        if request.method() != Method::POST {
            return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "POST audit.k8s.io/v1 events here"));
        }
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > self.limits.body as u64) {
            return Err(self.too_large());
        }
        let Ok(Ok(_bodies)) = tokio::time::timeout(self.limits.patience, self.bodies.acquire()).await else {
            return Err(refuse(StatusCode::TOO_MANY_REQUESTS, "too many requests at once"));
        };
        let body = self.body(request.into_body()).await?;
        let room = self.queue.room(self.limits.patience).await;
        let room = room.map_err(|closed| refuse(StatusCode::SERVICE_UNAVAILABLE, closed.to_string()))?;
        let room = room.ok_or_else(|| refuse(StatusCode::TOO_MANY_REQUESTS, "the join is behind"))?;
        let inputs = self.read(peer, &body)?;
        if !inputs.is_empty() {
            room.send(inputs);
        }
        Ok(())
    }

    async fn body(&self, body: Body) -> Result<axum::body::Bytes, Refusal> {
        let reading = axum::body::to_bytes(body, self.limits.body);
        match tokio::time::timeout(BODY_WITHIN, reading).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(error))
                if std::error::Error::source(&error)
                    .is_some_and(|cause| cause.to_string().contains("length limit")) =>
            {
                Err(self.too_large())
            }
            Ok(Err(error)) => Err(refuse(StatusCode::BAD_REQUEST, format!("the body broke off: {error}"))),
            Err(_) => Err(refuse(StatusCode::REQUEST_TIMEOUT, "the body did not come within 30 s")),
        }
    }

    fn too_large(&self) -> Refusal {
        let limit = self.limits.body;
        refuse(StatusCode::PAYLOAD_TOO_LARGE, format!("a body may have {limit} bytes (--webhook-body-limit)"))
    }

    fn read(&self, peer: SocketAddr, body: &[u8]) -> Result<Vec<Input>, Refusal> {
        let items = audit::items(body).map_err(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))?;
        let mut inputs = Vec::new();
        let mut malformed = 0;
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        for item in items.iter() {
            match counters.read(item.json, Route::Webhook) {
                Ok(read) => inputs.extend(read),
                Err(error) => {
                    malformed += 1;
                    if let Some(held_back) = self.malformed.pass() {
                        let (index, offset) = (item.index, item.offset);
                        tracing::warn!(%peer, index, offset, held_back, "audit event skipped: {error}");
                    }
                }
            }
        }
        drop(counters);
        if malformed > 0 {
            let until = now();
            inputs.push(Input::AuditLoss {
                source: "webhook".to_owned(),
                reason: "events that could not be read".to_owned(),
                from: until.saturating_sub(LATENESS_NS),
                until,
                count: Some(malformed),
            });
        }
        Ok(inputs)
    }
}
