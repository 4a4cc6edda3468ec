//! The server's certificate and key, and the authority whose clients it serves, read again when the files change.
//!
//! What cannot be used does not replace what is in use: the old files stay in force, it is told once, and the gauge
//! `tls_reload_failing` is 1 until good files are there.

use super::denied::Denied;
use crate::intake::now;
use crate::telemetry::{Collect, Sample, Telemetry};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use seclog_identity::{CertificateError, Facts, FileError, Files, NodeIdentity, certificates, private_key};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How often the files are read again.
const LOOK_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}: {source}", path.display())]
    Content { path: PathBuf, source: CertificateError },
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

/// The files in force, followed.
#[derive(Debug)]
pub struct Tls {
    files: Mutex<Files<3>>,
    current: watch::Sender<Arc<Current>>,
    reloads: AtomicU64,
    failures: AtomicU64,
    /// What was told of the files that are there now and cannot be used. Empty: they are in force.
    failing: Mutex<String>,
    denied: OnceLock<Denied>,
    /// What was told of a list that cannot be used.
    denied_failing: Mutex<String>,
}

#[derive(Debug)]
struct Current {
    /// Clients without a certificate are refused.
    mutual: Arc<ServerConfig>,
    /// Clients are not asked for a certificate.
    anonymous: Arc<ServerConfig>,
    clients: Arc<dyn ClientCertVerifier>,
    server: Facts,
    /// The end of the authority that ends first.
    authority_not_after: i64,
}

// === impl TlsFiles ===

impl TlsFiles {
    fn current(&self, [cert, key, client_ca]: &[Vec<u8>; 3]) -> Result<Current, TlsError> {
        let config = |error: &dyn std::fmt::Display| TlsError::Config(error.to_string());
        let content = |path: &Path, source| TlsError::Content { path: path.to_owned(), source };
        let provider = Arc::new(ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        let mut authority_not_after = i64::MAX;
        for certificate in certificates(client_ca).map_err(|source| content(&self.client_ca, source))? {
            let facts = Facts::of(&certificate).map_err(|source| content(&self.client_ca, source))?;
            authority_not_after = authority_not_after.min(facts.not_after);
            roots.add(certificate).map_err(|error| config(&error))?;
        }
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| config(&error))?;
        let chain = certificates(cert).map_err(|source| content(&self.cert, source))?;
        let server = Facts::of_pem(cert).map_err(|source| content(&self.cert, source))?;
        let key = private_key(key).map_err(|source| content(&self.key, source))?;
        let build = |clients: Option<&Arc<dyn ClientCertVerifier>>, protocols: &[&[u8]]| {
            let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .map_err(|error| config(&error))?;
            let builder = match clients {
                Some(clients) => builder.with_client_cert_verifier(Arc::clone(clients)),
                None => builder.with_no_client_auth(),
            };
            let mut server =
                builder.with_single_cert(chain.clone(), key.clone_key()).map_err(|error| config(&error))?;
            server.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Ok::<_, TlsError>(Arc::new(server))
        };
        Ok(Current {
            mutual: build(Some(&clients), &[b"h2", b"http/1.1"])?,
            anonymous: build(None, &[b"h2"])?,
            clients,
            server,
            authority_not_after,
        })
    }
}

// === impl Tls ===

impl Tls {
    /// Reads the files; an error where they cannot be used.
    pub fn open(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let TlsFiles { cert, key, client_ca } = files.clone();
        let mut followed = Files::new([cert, key, client_ca]);
        let contents = followed.changed()?.unwrap_or([const { Vec::new() }; 3]);
        let current = files.current(&contents)?;
        Ok(Arc::new(Self {
            files: Mutex::new(followed),
            current: watch::Sender::new(Arc::new(current)),
            reloads: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            failing: Mutex::default(),
            denied: OnceLock::new(),
            denied_failing: Mutex::default(),
        }))
    }

    /// Nodes on this list are not let in. Once, before anybody is.
    pub fn deny(&self, denied: Denied) {
        // A second list would be a defect of the caller's.
        let _ = self.denied.set(denied);
    }

    /// Why a node with this certificate is denied. `None`: it is not.
    pub fn denies(&self, identity: &NodeIdentity, facts: &Facts) -> Option<String> {
        self.denied.get()?.reason(identity, &facts.key_sha256, &facts.serial)
    }

    /// Shows their end, and what became of changes, in the metrics.
    pub fn register(self: &Arc<Self>, telemetry: &Telemetry) {
        telemetry.collect(Shown(Arc::clone(self)));
    }

    /// Follows the files until `stop`.
    pub fn follow(self: &Arc<Self>, mut stop: watch::Receiver<bool>) {
        let tls = Arc::clone(self);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(LOOK_EVERY);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => return,
                    _ = ticks.tick() => {}
                }
                let looking = Arc::clone(&tls);
                // Files can be on a network; a panic would be a defect and is logged by the runtime.
                let _ = tokio::task::spawn_blocking(move || looking.look()).await;
            }
        });
    }

    /// Reads the files again, and puts what changed in force. True: something new is in force.
    pub fn look(&self) -> bool {
        let denied = self.look_at_denied();
        self.look_at_files() || denied
    }

    fn look_at_denied(&self) -> bool {
        let looked = self.denied.get().map_or(Ok(false), Denied::look);
        let mut failing = self.denied_failing.lock().unwrap_or_else(PoisonError::into_inner);
        match looked {
            Ok(changed) => {
                // Whoever has a stream is asked again.
                if changed {
                    failing.clear();
                    self.current.send_modify(|_| ());
                }
                changed
            }
            Err(error) => {
                let error = error.to_string();
                if *failing != error {
                    tracing::error!("the list of who is denied cannot be used; that of before stays in force: {error}");
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    *failing = error;
                }
                false
            }
        }
    }

    fn look_at_files(&self) -> bool {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let [cert, key, client_ca] = files.paths().clone();
        let read = match files.changed() {
            Ok(None) => return false,
            Ok(Some(contents)) => TlsFiles { cert, key, client_ca }.current(&contents),
            Err(error) => Err(error.into()),
        };
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(current) => {
                let Facts { serial, not_after, .. } = &current.server;
                tracing::info!(serial, not_after, "TLS files changed: new connections are served with the new ones");
                self.reloads.fetch_add(1, Ordering::Relaxed);
                failing.clear();
                self.current.send_replace(Arc::new(current));
                true
            }
            Err(error) => {
                let error = error.to_string();
                if *failing != error {
                    tracing::error!("TLS files changed and cannot be used; those of before stay in force: {error}");
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    *failing = error;
                }
                false
            }
        }
    }

    /// For servers whose clients need a certificate.
    pub fn mutual(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.borrow().mutual)
    }

    /// For servers that know their clients by other means.
    pub fn anonymous(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.borrow().anonymous)
    }

    /// Returns when new files are in force.
    pub fn changes(&self) -> Changes {
        Changes(self.current.subscribe())
    }

    /// Would a client with this chain be let in now? Why not, otherwise.
    pub fn check_client(&self, chain: &[CertificateDer<'_>]) -> Result<(), String> {
        let Some((own, intermediates)) = chain.split_first() else { return Err("no client certificate".to_owned()) };
        let since = Duration::from_nanos(now());
        let clients = Arc::clone(&self.current.borrow().clients);
        if let Err(error) = clients.verify_client_cert(own, intermediates, UnixTime::since_unix_epoch(since)) {
            return Err(format!("the client certificate is not accepted any more: {error}"));
        }
        // What names no node is not for this list.
        let (Ok(identity), Ok(facts)) = (NodeIdentity::of_certificate(own), Facts::of(own)) else { return Ok(()) };
        self.denies(&identity, &facts).map_or(Ok(()), Err)
    }
}

/// Waits for new files.
#[derive(Debug)]
pub struct Changes(watch::Receiver<Arc<Current>>);

impl Changes {
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[derive(Debug)]
struct Shown(Arc<Tls>);

impl Collect for Shown {
    fn collect(&self, to: &mut Sample<'_>) -> std::fmt::Result {
        let Self(tls) = self;
        let current = Arc::clone(&tls.current.borrow());
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        to.gauge(
            "tls_server_certificate_expiry_timestamp_seconds",
            "When the certificate that this server shows ends, seconds since 1970.",
            seconds(current.server.not_after),
        )?;
        to.gauge(
            "tls_client_ca_expiry_timestamp_seconds",
            "When the first of the authorities of --client-ca ends, seconds since 1970.",
            seconds(current.authority_not_after),
        )?;
        to.counter(
            "tls_reloads",
            "Times that changed TLS files came into force.",
            tls.reloads.load(Ordering::Relaxed),
        )?;
        to.counter(
            "tls_reload_failures",
            "Times that changed TLS files could not be used.",
            tls.failures.load(Ordering::Relaxed),
        )?;
        let is_failing = |failing: &Mutex<String>| !failing.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        let failing = is_failing(&tls.failing) || is_failing(&tls.denied_failing);
        to.gauge("tls_reload_failing", "1: the TLS files that are there now cannot be used.", u64::from(failing))
    }
}
