//! The server's TLS identity, and the authority whose clients it serves. Clients without a certificate are refused.

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} holds no {what} in PEM form: {why}", path.display())]
    Pem { path: PathBuf, what: &'static str, why: String },
    #[error("certificate, key and client CA do not make a TLS server: {0}")]
    Config(String),
}

/// PEM files: the server's certificate chain and key, and the CA that signs clients.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: PathBuf,
}

impl TlsFiles {
    /// For the webhook.
    pub(super) fn rustls(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let config = |error: &dyn std::fmt::Display| TlsError::Config(error.to_string());
        let provider = Arc::new(ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        for certificate in certificates(&self.client_ca)? {
            roots.add(certificate).map_err(|error| config(&error))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| config(&error))?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?).map_err(|error| TlsError::Pem {
            path: self.key.clone(),
            what: "private key",
            why: error.to_string(),
        })?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| config(&error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(&self.cert)?, key)
            .map_err(|error| config(&error))?;
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(server))
    }

    /// For gRPC. Checked as for the webhook, whose errors say more.
    pub(super) fn tonic(&self) -> Result<ServerTlsConfig, TlsError> {
        self.rustls()?;
        Ok(ServerTlsConfig::new()
            .identity(Identity::from_pem(read(&self.cert)?, read(&self.key)?))
            .client_ca_root(Certificate::from_pem(read(&self.client_ca)?))
            .client_auth_optional(false))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |why: String| TlsError::Pem { path: path.to_owned(), what: "certificate", why };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let found = found.map_err(|error| pem(error.to_string()))?;
    if found.is_empty() { Err(pem("it is empty".to_owned())) } else { Ok(found) }
}
