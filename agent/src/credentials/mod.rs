//! What the agent shows to the correlator, and whom it takes for the correlator: certificate, key and authority, from files
//! that are followed. Whoever uses them sees the newest that can be used; what cannot be used is told and changes nothing.

mod enrol;
mod store;

use std::{
    hash::{BuildHasher as _, Hasher as _},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use seclog_identity::{CertificateError, Facts, FileError, Files, certificates, private_key};
use thiserror::Error;
use tokio::{
    sync::{Notify, watch},
    time::interval,
};

pub use enrol::{EnrolArgs, EnrolError};
pub use store::StoreError;

/// How often the files are read again.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// PEM files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// PEM files' contents, that fit each other.
#[derive(Clone)]
pub struct Tls {
    pub ca: Vec<u8>,
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
    pub facts: Facts,
    /// To be notified when the correlator does not accept them.
    pub refused: Arc<Notify>,
}

/// The newest. `None`: there are none yet.
pub type Current = watch::Receiver<Option<Arc<Tls>>>;

/// For the metrics.
#[derive(Debug, Default)]
pub struct Status {
    /// Seconds since 1970; 0: there is no certificate.
    not_after: AtomicI64,
    changes: AtomicU64,
    failures: AtomicU64,
    /// Why what is there now cannot be used. Empty: it is in use.
    failing: Mutex<String>,
}

#[derive(Debug, Error)]
pub enum CredentialError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}: {source}", path.display())]
    Content { path: PathBuf, source: CertificateError },
    #[error("{} and {} do not belong together: {why}", certificate.display(), key.display())]
    Mismatch { certificate: PathBuf, key: PathBuf, why: String },
}

/// Reads the files, and follows them as long as somebody has the receiver. An error where they cannot be used now.
pub fn follow(files: TlsFiles, status: Arc<Status>) -> Result<Current, CredentialError> {
    let TlsFiles { ca, certificate, key } = files.clone();
    let mut followed = Files::new([ca, certificate, key]);
    let contents = followed.changed()?.unwrap_or([const { Vec::new() }; 3]);
    let tls = files.tls(contents)?;
    status.in_use(&tls);
    let (sender, current) = watch::channel(Some(Arc::new(tls)));
    tokio::spawn(async move {
        let mut ticks = interval(LOOK_EVERY);
        loop {
            tokio::select! {
                () = sender.closed() => return,
                _ = ticks.tick() => {}
            }
            let read = match followed.changed() {
                Ok(None) => continue,
                Ok(Some(contents)) => files.tls(contents),
                Err(error) => Err(error.into()),
            };
            match read {
                Ok(tls) => {
                    tracing::info!(not_after = tls.facts.not_after, serial = tls.facts.serial, "TLS files changed");
                    status.changed(&tls);
                    sender.send_replace(Some(Arc::new(tls)));
                }
                Err(error) => status
                    .failed("TLS files changed and cannot be used; those of before stay in use", &error.to_string()),
            }
        }
    });
    Ok(current)
}

// === impl TlsFiles ===

impl TlsFiles {
    fn tls(&self, [ca, certificate, key]: [Vec<u8>; 3]) -> Result<Tls, CredentialError> {
        let content = |path: &PathBuf| {
            let path = path.clone();
            move |source| CredentialError::Content { path, source }
        };
        let mut roots = rustls::RootCertStore::empty();
        for authority in certificates(&ca).map_err(content(&self.ca))? {
            Facts::of(&authority).map_err(content(&self.ca))?;
            let der = |error: rustls::Error| CertificateError::Der(error.to_string());
            roots.add(authority).map_err(|error| content(&self.ca)(der(error)))?;
        }
        let chain = certificates(&certificate).map_err(content(&self.certificate))?;
        let facts = Facts::of_pem(&certificate).map_err(content(&self.certificate))?;
        let private = private_key(&key).map_err(content(&self.key))?;
        // Building the connection's configuration is the check that key and certificate fit.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config =
            config.and_then(|builder| builder.with_root_certificates(roots).with_client_auth_cert(chain, private));
        config.map_err(|error| CredentialError::Mismatch {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            why: error.to_string(),
        })?;
        Ok(Tls { ca, certificate, key, facts, refused: Arc::default() })
    }
}

// === impl Tls ===

impl std::fmt::Debug for Tls {
    /// Without the key.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tls").field("facts", &self.facts).finish_non_exhaustive()
    }
}

// === impl Status ===

impl Status {
    fn in_use(&self, tls: &Tls) {
        self.not_after.store(tls.facts.not_after, Ordering::Relaxed);
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn changed(&self, tls: &Tls) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.in_use(tls);
    }

    /// Told once for each reason.
    fn failed(&self, what: &str, error: &str) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        self.failures.fetch_add(1, Ordering::Relaxed);
        if *failing != error {
            tracing::error!("{what}: {error}");
            error.clone_into(&mut failing);
        }
    }

    /// Name (behind `seclog_agent_`), kind, help, value.
    pub fn metrics(&self) -> [(&'static str, &'static str, &'static str, i64); 4] {
        let number = |counter: &AtomicU64| i64::try_from(counter.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        let failing = !self.failing.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        [
            (
                "certificate_expiry_timestamp_seconds",
                "gauge",
                "When this node's certificate ends, seconds since 1970; 0: it has none.",
                self.not_after.load(Ordering::Relaxed),
            ),
            (
                "certificate_changes_total",
                "counter",
                "Times that another certificate came into use.",
                number(&self.changes),
            ),
            (
                "certificate_failures_total",
                "counter",
                "Times that a certificate could not be had, or what was there not be used.",
                number(&self.failures),
            ),
            (
                "certificate_failing",
                "gauge",
                "1: the last attempt to read or get a certificate failed.",
                i64::from(failing),
            ),
        ]
    }
}

/// Of one: evenly distributed, for jitter.
fn random_part() -> f64 {
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (random % 10_000) as f64 / 10_000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use std::{fs, path::Path};

    fn write(directory: &Path) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap().pem();
        let path = |name: &str| directory.join(name);
        fs::write(path("ca.crt"), &certificate).unwrap();
        fs::write(path("tls.key"), key.serialize_pem()).unwrap();
        fs::write(path("tls.crt"), certificate).unwrap();
        TlsFiles { ca: path("ca.crt"), certificate: path("tls.crt"), key: path("tls.key") }
    }

    fn metric(status: &Status, wanted: &str) -> i64 {
        status.metrics().into_iter().find(|(name, ..)| *name == wanted).unwrap().3
    }

    #[tokio::test]
    async fn changed_files_are_seen_and_bad_ones_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let files = write(directory.path());
        let status = Arc::new(Status::default());
        let mut current = follow(files.clone(), Arc::clone(&status)).unwrap();
        let first = current.borrow_and_update().clone().unwrap();
        assert_eq!(metric(&status, "certificate_expiry_timestamp_seconds"), first.facts.not_after);

        write(directory.path());
        current.changed().await.unwrap();
        let second = current.borrow_and_update().clone().unwrap();
        assert_ne!(second.facts.serial, first.facts.serial);

        fs::write(&files.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
        while metric(&status, "certificate_failing") == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!current.has_changed().unwrap());
        write(directory.path());
        current.changed().await.unwrap();
        assert_eq!(metric(&status, "certificate_failing"), 0);
        assert!(metric(&status, "certificate_failures_total") >= 1);
    }

    #[tokio::test]
    async fn what_cannot_be_used_at_the_start_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let files = write(directory.path());
        fs::write(&files.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let error = follow(files.clone(), Arc::default()).unwrap_err();
        assert!(matches!(error, CredentialError::Mismatch { .. }), "{error}");
        fs::write(&files.ca, "").unwrap();
        assert!(follow(files.clone(), Arc::default()).unwrap_err().to_string().contains("ca.crt"));
        fs::remove_file(&files.certificate).unwrap();
        assert!(follow(files, Arc::default()).unwrap_err().to_string().contains("tls.crt"));
    }
}
