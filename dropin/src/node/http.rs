//! `GET /config` on CRI-O's socket, which serves HTTP/1 beside gRPC (cri-o/cri-o `server/inspect.go`). Only this path is
//! ever asked: others of the same server pause containers.

use std::path::Path;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, body::Bytes};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// The recorded answer has 6 kB.
const MAX_BODY: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("cannot connect to CRI-O's socket: {0}; run as root with the socket mounted")]
    Connect(#[source] std::io::Error),
    #[error("CRI-O's socket did not speak HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("CRI-O answered GET /config with status {0}")]
    Status(u16),
    #[error("CRI-O's answer cannot be used: {0}")]
    Body(String),
}

/// The configuration that CRI-O runs with, as TOML.
pub(crate) async fn config(socket: &Path) -> Result<String, HttpError> {
    let stream = UnixStream::connect(socket).await.map_err(HttpError::Connect)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/config")
        .header(hyper::header::HOST, "crio")
        .body(Empty::<Bytes>::new())
        .map_err(|error| HttpError::Body(error.to_string()))?;
    let response = sender.send_request(request).await?;
    if !response.status().is_success() {
        return Err(HttpError::Status(response.status().as_u16()));
    }
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    connection.abort();
    let bytes = body.map_err(|error| HttpError::Body(error.to_string()))?.to_bytes();
    String::from_utf8(bytes.to_vec()).map_err(|_| HttpError::Body("it is not UTF-8".into()))
}
