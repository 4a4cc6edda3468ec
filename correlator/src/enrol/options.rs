//! The options of `serve` that are about enrolment.

use super::authority::{Authority, AuthorityError, AuthorityFiles};
use super::keys::{Keys, KeysError};
use super::ledger::{Ledger, LedgerError};
use super::review::{Review, ReviewError};
use super::service::{Enrolment, EnrolmentError, Settings};
use super::token::{Expected, TokenCheck};
use crate::intake::{Budget, now};
use crate::journal::Journal;
use crate::listen::{Door, Limits, Tls};
use crate::telemetry::Telemetry;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// For one question to the API server.
const REVIEW_WITHIN: Duration = Duration::from_secs(8);

#[derive(Debug, Clone, Args)]
pub struct EnrolArgs {
    /// Address where agents get their certificates (gRPC; only the server shows a certificate); port 0 picks one.
    #[arg(long, value_name = "ADDR", requires = "enrol_ca_cert", requires = "enrol_ca_key", requires = "enrol_ledger")]
    pub enrol_listen: Option<SocketAddr>,
    /// Certificate of the authority that signs agents' keys, PEM. It must be among --client-ca.
    #[arg(long, value_name = "FILE", requires = "enrol_listen")]
    enrol_ca_cert: Option<PathBuf>,
    /// Its key, PEM (PKCS#8).
    #[arg(long, value_name = "FILE", requires = "enrol_listen")]
    enrol_ca_key: Option<PathBuf>,
    /// File of the certificates that were issued, one JSON object a line.
    #[arg(long, value_name = "FILE", requires = "enrol_listen")]
    enrol_ledger: Option<PathBuf>,
    /// Kubeconfig of the hosted cluster: its API server checks the agents' tokens (TokenReview).
    #[arg(long, value_name = "FILE", requires = "enrol_listen", conflicts_with = "token_keys")]
    token_review_kubeconfig: Option<PathBuf>,
    /// Public keys that the hosted cluster's API server signs tokens with: a JWKS, or PEM.
    #[arg(long, value_name = "FILE", requires = "enrol_listen", requires = "token_issuer")]
    token_keys: Option<PathBuf>,
    /// The issuer that must stand in tokens (`--service-account-issuer` of the API server).
    #[arg(long, value_name = "URL", requires = "enrol_listen")]
    token_issuer: Option<String>,
    /// The audience that agents' tokens are made for.
    #[arg(long, value_name = "NAME", default_value = "seclog-enrolment")]
    token_audience: String,
    /// The agents' service account.
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "seclog/seclog-agent", value_parser = service_account)]
    token_service_account: (String, String),
    /// How long a certificate is valid, seconds. Agents renew at two thirds of it.
    #[arg(long, value_name = "SECONDS", default_value_t = 24 * 3600, value_parser = clap::value_parser!(u64).range(10..=90 * 24 * 3600))]
    enrol_lifetime: u64,
    /// Connections for enrolment at once.
    #[arg(long, value_name = "COUNT", default_value_t = 256)]
    enrol_connections: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "--enrol-listen needs --enrol-ca-cert, --enrol-ca-key and --enrol-ledger, and to check tokens --token-review-kubeconfig, or \
         --token-keys with --token-issuer"
    )]
    Incomplete,
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Review(#[from] ReviewError),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Enrolment(#[from] EnrolmentError),
}

fn service_account(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("not NAMESPACE/NAME".to_owned()),
    }
}

// === impl EnrolArgs ===

impl EnrolArgs {
    pub(crate) async fn start(
        &self,
        cluster: &str,
        tls: &Arc<Tls>,
        journal: &Journal,
        budget: &Budget,
        telemetry: &Telemetry,
        stop: &watch::Receiver<bool>,
    ) -> Result<Enrolment, StartError> {
        let (Some(addr), Some(certificate), Some(key), Some(ledger)) =
            (self.enrol_listen, &self.enrol_ca_cert, &self.enrol_ca_key, &self.enrol_ledger)
        else {
            return Err(StartError::Incomplete);
        };
        let check = match (&self.token_review_kubeconfig, &self.token_keys) {
            (Some(kubeconfig), None) => TokenCheck::Review(Review::open(kubeconfig, REVIEW_WITHIN).await?),
            (None, Some(keys)) => TokenCheck::Keys(Keys::open(keys)?),
            _ => return Err(StartError::Incomplete),
        };
        let files = AuthorityFiles { certificate: certificate.clone(), key: key.clone() };
        let authority = Authority::open(files, Duration::from_secs(self.enrol_lifetime), Arc::clone(tls))?;
        let (namespace, service_account) = self.token_service_account.clone();
        let settings = Settings {
            cluster: cluster.to_owned(),
            expected: Expected {
                audience: self.token_audience.clone(),
                issuer: self.token_issuer.clone(),
                namespace,
                service_account,
            },
            check,
            authority,
            ledger: Ledger::open(ledger, now() / 1_000_000_000)?,
            journal: journal.clone(),
        };
        let limits = Limits {
            connections: self.enrol_connections,
            handshakes: self.enrol_connections,
            idle_within: Duration::from_secs(15),
            connection_memory: 1 << 20,
            ..Limits::default()
        };
        let door = Door::anonymous("enrolment", Arc::clone(tls), limits, budget);
        Ok(Enrolment::bind(addr, door, settings, telemetry, stop.clone()).await?)
    }
}
