//! The client side of an exec stream: what the API server does with the URL that a CRI runtime gives it.
//! The protocol `v4.channel.k8s.io` puts a channel's number before each WebSocket message
//! (k8s.io/apiserver/pkg/util/wsstream).

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio_stream::StreamExt as _;
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest as _, http::HeaderValue},
};

const PROTOCOL: &str = "v4.channel.k8s.io";
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub exit_code: i32,
}

/// Reads the streams of `url` (as CRI's Exec returns it) until the server closes them.
pub async fn exec(url: &str) -> Result<Output> {
    let mut request = url.replacen("http", "ws", 1).into_client_request()?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(PROTOCOL));
    let (mut socket, response) = connect_async(request).await.with_context(|| format!("exec stream {url}"))?;
    let protocol = response.headers().get("Sec-WebSocket-Protocol").map(HeaderValue::as_bytes);
    ensure!(protocol == Some(PROTOCOL.as_bytes()), "the runtime chose the protocol {protocol:?}");

    let (mut stdout, mut stderr, mut status) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(message) = socket.next().await {
        let message = match message {
            // The server may drop the connection behind its last message.
            Err(Error::ConnectionClosed | Error::Protocol(_) | Error::Io(_)) if !status.is_empty() => break,
            other => other?,
        };
        let data = match message {
            Message::Close(_) => break,
            Message::Binary(data) => data,
            Message::Text(text) => text.into(),
            _ => continue,
        };
        match data.split_first() {
            Some((&STDOUT, data)) => stdout.extend_from_slice(data),
            Some((&STDERR, data)) => stderr.extend_from_slice(data),
            Some((&STATUS, data)) => status.extend_from_slice(data),
            _ => {}
        }
    }
    Ok(Output {
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        exit_code: exit_code(&status)?,
    })
}

/// From a metav1.Status: a failure carries the exit code as a cause.
fn exit_code(status: &[u8]) -> Result<i32> {
    let status: Value = serde_json::from_slice(status).context("the exec stream ended without a status")?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
    match causes.iter().find(|cause| cause["reason"] == "ExitCode") {
        Some(cause) => Ok(cause["message"].as_str().unwrap_or_default().parse()?),
        None => bail!("exec failed: {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::exit_code;

    #[test]
    fn the_exit_code_is_read_from_the_status() {
        assert_eq!(exit_code(br#"{"metadata":{},"status":"Success"}"#).unwrap(), 0);
        let failure = br#"{"metadata":{},"status":"Failure","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
        assert_eq!(exit_code(failure).unwrap(), 3);
        assert!(exit_code(br#"{"status":"Failure","message":"no such container"}"#).is_err());
        assert!(exit_code(b"").is_err());
    }
}
