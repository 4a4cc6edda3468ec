//! The port: `/metrics` for Prometheus, `/healthz` (the process answers), `/readyz` (every part is ready, else which is
//! not and why). Plain HTTP without a client's identity: it shows numbers and no names of users, nodes or pods, and is to
//! be reached by the monitoring only (NetworkPolicy).

use super::Telemetry;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::TokioTimer;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// A request's head must have come within this time.
const HEAD_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("cannot listen for metrics on {addr} (--metrics-listen): {source}")]
    Bind { addr: SocketAddr, source: io::Error },
}

/// A bound listener, not yet serving.
#[derive(Debug)]
pub struct Metrics {
    listener: TcpListener,
    pub addr: SocketAddr,
    telemetry: Telemetry,
}

impl Metrics {
    pub fn bind(addr: SocketAddr, telemetry: Telemetry) -> Result<Self, TelemetryError> {
        let failed = |source| TelemetryError::Bind { addr, source };
        let listener = TcpListener::bind(addr).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, addr, telemetry })
    }

    /// Until the process ends, so that a drain is seen too.
    pub async fn serve(self) -> io::Result<()> {
        let Self { listener, telemetry, .. } = self;
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .with_state(telemetry);
        let mut server = axum_server::from_tcp(listener)?;
        server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(16 << 10);
        server.serve(router.into_make_service()).await
    }
}

async fn metrics(State(telemetry): State<Telemetry>) -> Response {
    match telemetry.render() {
        Ok(text) => {
            ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn ready(State(telemetry): State<Telemetry>) -> (StatusCode, String) {
    match telemetry.not_ready() {
        why if why.is_empty() => (StatusCode::OK, "ok\n".to_owned()),
        why => (StatusCode::SERVICE_UNAVAILABLE, why),
    }
}
