//! The API server's side of the audit webhook.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::pki::{Identity, Pki};

/// POSTs one EventList as kube-apiserver does: client certificate, its request timeout in the query, no compression.
/// An answer other than success is an error, after which the API server would send it again.
pub async fn deliver(pki: &Pki, webhook: SocketAddr, event_list: String) -> Result<()> {
    let connector = TlsConnector::from(Arc::new(client_config(pki, &pki.webhook_client)?));
    let tcp = TcpStream::connect(webhook).await.with_context(|| format!("audit webhook {webhook}"))?;
    // The Service's name: the only one that reaches it from every API server of a hosted control plane.
    let tls =
        connector.connect(ServerName::try_from("audit-webhook")?, tcp).await.context("TLS to the audit webhook")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
    let connection = tokio::spawn(connection);

    let request = Request::post("/?timeout=30s")
        .header(header::HOST, "audit-webhook")
        .header(header::USER_AGENT, "kube-apiserver/v1.32.4 (linux/amd64) kubernetes/4cb5f07")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json, */*")
        .body(Full::new(Bytes::from(event_list)))?;
    let response = sender.send_request(request).await.context("POST to the audit webhook")?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    ensure!(status.is_success(), "the audit webhook answered {status}: {}", String::from_utf8_lossy(&body));
    Ok(())
}

fn client_config(pki: &Pki, identity: &Identity) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&pki.ca)? {
        roots.add(certificate?)?;
    }
    let chain = CertificateDer::pem_file_iter(&identity.certificate)?.collect::<Result<Vec<_>, _>>()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&identity.key)?)?)
}
