//! The peers of the correlator: an agent, and an API server that posts audit events.

use super::pki::{Authority, Leaf};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use seclog_proto::batch::Packer;
use seclog_proto::v1::agent_message::Message as FromAgent;
use seclog_proto::v1::correlator_message::Message as ToAgent;
use seclog_proto::v1::node_stream_client::NodeStreamClient;
use seclog_proto::v1::{AgentMessage, Batch, CorrelatorMessage, Hello, NodeRecord};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Status, Streaming};

pub(crate) async fn channel(
    addr: SocketAddr,
    authority: &Authority,
    leaf: Option<&Leaf>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority.pem)).domain_name("localhost");
    if let Some(leaf) = leaf {
        tls = tls.identity(Identity::from_pem(&leaf.cert, &leaf.key));
    }
    Endpoint::from_shared(format!("https://{addr}")).unwrap().tls_config(tls)?.connect().await
}

pub(crate) async fn plaintext(addr: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap()
}

pub(crate) struct Agent {
    pub(crate) to: mpsc::Sender<AgentMessage>,
    pub(crate) from: Streaming<CorrelatorMessage>,
}

impl Agent {
    /// Connects and says hello.
    pub(crate) async fn connect(channel: Channel, hello: Hello) -> Result<Self, Status> {
        let (to, messages) = mpsc::channel(16);
        to.send(AgentMessage { message: Some(FromAgent::Hello(hello)) }).await.unwrap();
        let from = NodeStreamClient::new(channel).connect(ReceiverStream::new(messages)).await?.into_inner();
        Ok(Self { to, from })
    }

    pub(crate) async fn batch(&self, first_sequence: u64, records: Vec<NodeRecord>, watermark_unix_ns: u64) {
        let batch = batch(first_sequence, records, watermark_unix_ns);
        self.to.send(AgentMessage { message: Some(FromAgent::Batch(batch)) }).await.unwrap();
    }

    pub(crate) async fn welcome(&mut self) -> Result<u64, Status> {
        match self.from.message().await?.and_then(|message| message.message) {
            Some(ToAgent::Welcome(welcome)) => Ok(welcome.acknowledged_sequence),
            other => panic!("expected welcome, got {other:?}"),
        }
    }

    pub(crate) async fn ack(&mut self) -> Result<u64, Status> {
        match self.from.message().await?.and_then(|message| message.message) {
            Some(ToAgent::Ack(ack)) => Ok(ack.sequence),
            other => panic!("expected an ack, got {other:?}"),
        }
    }
}

/// As an agent packs them.
pub(crate) fn batch(first_sequence: u64, records: Vec<NodeRecord>, watermark_unix_ns: u64) -> Bytes {
    if records.is_empty() {
        return Batch { first_sequence, watermark_unix_ns, ..Batch::default() }.encode_to_vec().into();
    }
    let count = records.len() as u64;
    Packer::new(1).unwrap().pack(first_sequence, count, records, watermark_unix_ns).unwrap()
}

pub(crate) fn hello(cluster: &str, node: &str, epoch: u64, oldest_sequence: u64) -> Hello {
    Hello { cluster: cluster.to_owned(), node: node.to_owned(), epoch, oldest_sequence, ..Default::default() }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) retry_after: Option<String>,
}

/// One request as the webhook backend makes it, over HTTP/1.1. An error where the server would not talk.
pub(crate) async fn request(
    addr: SocketAddr,
    authority: &Authority,
    leaf: Option<&Leaf>,
    method: &str,
    path: &str,
    body: impl Into<Bytes>,
) -> Result<Answer, Box<dyn std::error::Error>> {
    let request = hyper::Request::builder().method(method).uri(path).header("content-type", "application/json");
    send(addr, authority, leaf, request.body(Full::new(body.into()))?).await
}

/// Sends a request of the test's own making over TLS.
pub(crate) async fn send<B>(
    addr: SocketAddr,
    authority: &Authority,
    leaf: Option<&Leaf>,
    mut request: hyper::Request<B>,
) -> Result<Answer, Box<dyn std::error::Error>>
where
    B: hyper::body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    request.headers_mut().insert("host", "localhost".parse()?);
    let stream = tls(addr, authority, leaf).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let status = answer.status().as_u16();
    let retry_after = answer.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    let body = String::from_utf8(answer.into_body().collect().await?.to_bytes().to_vec())?;
    Ok(Answer { status, body, retry_after })
}

/// A TLS connection; nothing is said on it yet.
pub(crate) async fn tls(
    addr: SocketAddr,
    authority: &Authority,
    leaf: Option<&Leaf>,
) -> Result<TlsStream<TcpStream>, Box<dyn std::error::Error>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes())?)?;
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match leaf {
        Some(leaf) => config.with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(leaf.cert.as_bytes())?],
            PrivateKeyDer::from_pem_slice(leaf.key.as_bytes())?,
        )?,
        None => config.with_no_client_auth(),
    };
    let stream = TcpStream::connect(addr).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    Ok(connector.connect("localhost".try_into()?, stream).await?)
}

/// The certificate that the server shows.
pub(crate) async fn server_certificate(addr: SocketAddr, authority: &Authority, leaf: &Leaf) -> Vec<u8> {
    let stream = tls(addr, authority, Some(leaf)).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}
