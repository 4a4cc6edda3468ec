//! The check's verdict as a Kubernetes Event on the node, where `oc describe node` shows it.
//!
//! Only in a pod whose service account may create Events in the namespace `default` (that of Events on nodes). One Event
//! when the verdict or the grave findings change, none otherwise: the API server is not a log.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, body::Bytes, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use seclog_dropin::{
    finding::Severity,
    report::{Change, Report, Verdict},
};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::clock;

const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const WITHIN: Duration = Duration::from_secs(10);
/// The API server's limit for a message, bytes.
const NOTE: usize = 1024;

#[derive(Debug, Error)]
enum EventError {
    #[error("{path}: {error}")]
    File { path: PathBuf, error: io::Error },
    #[error("the API server's certificate authority in {0} cannot be read")]
    Authority(PathBuf),
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    #[error("{0} is no name or address of an API server")]
    Address(String),
    #[error("cannot reach the API server at {address}: {error}")]
    Connect { address: String, error: io::Error },
    #[error("the API server did not answer in 10 seconds")]
    Slow,
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("the request cannot be made: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("the API server answered {status}: {body}")]
    Refused { status: u16, body: String },
}

/// Where Events go.
#[derive(Debug)]
pub(super) struct Events {
    host: String,
    port: u16,
    account: PathBuf,
    node: String,
}

impl Events {
    /// `None` outside a pod, or where no token is mounted: then nobody wants Events.
    pub(super) fn of_this_pod(node: &str) -> Option<Self> {
        let host = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
        let port = std::env::var("KUBERNETES_SERVICE_PORT").ok()?.parse().ok()?;
        let account = PathBuf::from(ACCOUNT);
        account.join("token").exists().then(|| Self { host, port, account, node: node.to_owned() })
    }

    /// Tells what changed, if it is worth an Event. A failure is logged: the check goes on without.
    pub(super) async fn tell(&self, report: &Report, changes: &[Change], first: bool) {
        let grave = |change: &&Change| matches!(change.finding.severity, Severity::Error | Severity::Warning);
        let changes: Vec<&Change> = changes.iter().filter(grave).collect();
        if changes.is_empty() || (first && report.verdict == Verdict::Ok) {
            return;
        }
        let sent = timeout(WITHIN, self.post(&event(&self.node, report, &changes, clock::unix_ns()))).await;
        match sent.unwrap_or(Err(EventError::Slow)) {
            Ok(()) => tracing::debug!("the check's change was told as an Event on the node"),
            Err(error) => tracing::warn!(%error, "the check's change could not be told as an Event on the node"),
        }
    }

    async fn post(&self, event: &Value) -> Result<(), EventError> {
        let Self { host, port, account, node: _ } = self;
        // The token is renewed on disk.
        let token = read(&account.join("token"))?;
        let tls = TlsConnector::from(Arc::new(config(&account.join("ca.crt"))?));
        let name = ServerName::try_from(host.clone()).map_err(|_| EventError::Address(host.clone()))?;
        let connect = |error| EventError::Connect { address: format!("{host}:{port}"), error };
        let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(connect)?;
        let stream = tls.connect(name, stream).await.map_err(connect)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::post("/api/v1/namespaces/default/events")
            .header(header::HOST, format!("{host}:{port}"))
            .header(header::AUTHORIZATION, format!("Bearer {}", token.trim()))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(event.to_string())))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), 64 << 10).collect().await;
        connection.abort();
        if status.is_success() {
            return Ok(());
        }
        let body = body.map(|b| b.to_bytes()).unwrap_or_default();
        let body = String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(300).collect();
        Err(EventError::Refused { status: status.as_u16(), body })
    }
}

fn read(path: &Path) -> Result<String, EventError> {
    fs::read_to_string(path).map_err(|error| EventError::File { path: path.to_owned(), error })
}

fn config(authority: &Path) -> Result<ClientConfig, EventError> {
    let mut roots = RootCertStore::empty();
    let unreadable = |_| EventError::Authority(authority.to_owned());
    for certificate in CertificateDer::pem_file_iter(authority).map_err(unreadable)? {
        roots.add(certificate.map_err(unreadable)?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// core/v1 Event about the node.
fn event(node: &str, report: &Report, changes: &[&Change], now_unix_ns: u64) -> Value {
    let ok = report.verdict == Verdict::Ok;
    let mut note = if ok {
        "seclog: the node logs as it should".to_owned()
    } else {
        format!("seclog: {} errors, {} warnings", report.count(Severity::Error), report.count(Severity::Warning))
    };
    for Change { appeared, finding } in changes {
        let place = finding.place.as_ref().map_or(String::new(), |p| format!(" ({p})"));
        note.push_str(&format!(
            "; {}{}: {}{place}",
            if *appeared { "" } else { "no longer " },
            finding.code,
            finding.what
        ));
    }
    // In bytes, and never in the middle of a character.
    let note: String = note.char_indices().take_while(|(at, c)| at + c.len_utf8() <= NOTE).map(|(_, c)| c).collect();
    let time = seclog_proto::rfc3339::format(now_unix_ns / 1_000_000_000 * 1_000_000_000);
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": "seclog-check-", "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
        "type": if ok { "Normal" } else { "Warning" },
        "reason": if ok { "SeclogCheckPassed" } else { "SeclogCheckFailed" },
        "message": note,
        "source": {"component": "seclog-agent", "host": node},
        "reportingComponent": "seclog-agent",
        "reportingInstance": node,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    })
}

#[cfg(test)]
mod tests {
    use seclog_dropin::{facts::NodeFacts, finding::Code};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A node without any configuration: one finding that is no problem, one change to tell.
    fn report() -> Report {
        Report::of("/", &NodeFacts::default(), None)
    }

    fn change(report: &Report) -> Change {
        let mut finding = report.findings[0].clone();
        finding.severity = Severity::Error;
        finding.code = Code::DropinMissing;
        Change { appeared: true, finding }
    }

    #[test]
    fn an_event_names_the_node_and_stays_below_the_limit() {
        let report = report();
        let mut change = change(&report);
        change.finding.what = "ä".repeat(5000);
        let event = event("node-1", &report, &[&change], 1_795_473_004_372_321_256);
        assert_eq!(event["involvedObject"]["name"], "node-1");
        assert_eq!(event["lastTimestamp"], "2026-11-23T22:30:04.000000000Z");
        let message = event["message"].as_str().unwrap();
        assert!(message.len() <= NOTE && message.contains("dropin-missing"), "{message}");
    }

    #[tokio::test]
    async fn the_api_server_gets_the_event_with_the_accounts_token() {
        let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let account = tempfile::tempdir().unwrap();
        fs::write(account.path().join("token"), "secret\n").unwrap();
        fs::write(account.path().join("ca.crt"), signed.cert.pem()).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
        let server = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![signed.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = tokio_rustls::TlsAcceptor::from(Arc::new(server)).accept(stream).await.unwrap();
            let mut request = vec![0; 1 << 16];
            let mut length = 0;
            while !request[..length].ends_with(b"}") {
                length += stream.read(&mut request[length..]).await.unwrap();
            }
            stream.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
            String::from_utf8(request[..length].to_vec()).unwrap()
        });
        let events = Events { host: "localhost".into(), port, account: account.path().into(), node: "node-1".into() };
        let report = report();
        events.post(&event("node-1", &report, &[&change(&report)], 0)).await.unwrap();
        let request = served.await.unwrap();
        assert!(request.starts_with("POST /api/v1/namespaces/default/events HTTP/1.1"), "{request}");
        assert!(request.contains("authorization: Bearer secret\r\n"), "{request}");
        assert!(request.contains("\"kind\":\"Event\""));
    }
}
