//! Gets this node's certificate from the correlator, and a new one in time.
//!
//! The token is read anew for each request: kubelet replaces it. A certificate is renewed at about two thirds of its life, and
//! at once (though not more often than every half minute) when the correlator does not accept it. Until a first one is there, and while none can
//! be had, records wait where they wait for the correlator.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use seclog_identity::{Facts, Files, NodeIdentity, certificates};
use seclog_proto::v1::{EnrolRequest, enrolment_client::EnrolmentClient};
use thiserror::Error;
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use super::{Current, Status, Tls, random_part, store::Store, store::StoreError};
use crate::clock;

const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(120);
/// The clock can be set, so no wait for a time of day is longer.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
const LARGEST_TOKEN: usize = 16 << 10;

/// Options of `run` that are about enrolment.
#[derive(Args, Clone, Debug)]
pub struct EnrolArgs {
    /// Where the correlator certifies this node's key, e.g. https://enrol.example:443. In place of --tls-cert and --tls-key.
    #[arg(long, value_name = "URL", env = "SECLOG_ENROL", requires = "tls_ca", conflicts_with_all = ["tls_cert", "tls_key", "plaintext", "sink"])]
    pub enrol: Option<String>,
    /// The service account token that proves which node this is, projected for the correlator's audience.
    #[arg(long, value_name = "FILE", default_value = "/var/run/secrets/seclog/token")]
    enrol_token: PathBuf,
    /// Where this node's key and certificate are kept; for root only.
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/lib/seclog/identity")]
    identity_dir: PathBuf,
}

#[derive(Debug, Error)]
pub enum EnrolError {
    #[error("--enrol {url}: {why}")]
    Url { url: String, why: String },
    #[error("this node's key: {0}")]
    Store(#[from] StoreError),
    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[error("no certificate from {url}: {why}")]
    Refused { url: String, why: String },
}

struct Enroller {
    url: String,
    token: PathBuf,
    ca: Files<1>,
    ca_pem: Vec<u8>,
    identity: NodeIdentity,
    store: Store,
    refused: Arc<Notify>,
    status: Arc<Status>,
}

// === impl EnrolArgs ===

impl EnrolArgs {
    /// Starts to get and renew. The certificate of before is there at once if it can still be used.
    pub fn start(&self, ca: PathBuf, identity: NodeIdentity, status: Arc<Status>) -> Result<Current, EnrolError> {
        let url = self.enrol.clone().unwrap_or_default();
        let wrong = |why: &str| EnrolError::Url { url: url.clone(), why: why.to_owned() };
        if !url.starts_with("https://") {
            return Err(wrong("it must be https: the token must go to nobody but the correlator"));
        }
        Endpoint::from_shared(url.clone()).map_err(|error| wrong(&error.to_string()))?;
        if identity.uri().is_none() {
            return Err(wrong(&format!(
                "{}/{} is no name of a node (--cluster, --node)",
                identity.cluster, identity.node
            )));
        }
        let mut enroller = Enroller {
            url,
            token: self.enrol_token.clone(),
            ca: Files::new([ca]),
            ca_pem: Vec::new(),
            store: Store::open(&self.identity_dir, identity.clone())?,
            identity,
            refused: Arc::default(),
            status,
        };
        enroller.look_at_ca()?;
        let kept = enroller.store.certificate().filter(|(_, facts)| facts.not_after > seconds());
        let first = kept.map(|(chain, facts)| enroller.tls(chain, facts));
        if let Some(tls) = &first {
            enroller.status.in_use(tls);
        }
        let (sender, current) = watch::channel(first.map(Arc::new));
        tokio::spawn(enroller.run(sender));
        Ok(current)
    }
}

// === impl Enroller ===

impl Enroller {
    async fn run(mut self, current: watch::Sender<Option<Arc<Tls>>>) {
        let mut wait = SHORTEST_WAIT;
        loop {
            let due = current.borrow().as_ref().map_or(0, |tls| renewal(&tls.facts));
            tokio::select! {
                () = current.closed() => return,
                () = self.due(due, &current) => {}
            }
            match self.enrol().await {
                Ok(tls) => {
                    wait = SHORTEST_WAIT;
                    let life = tls.facts.not_after.saturating_sub(tls.facts.not_before);
                    let pause = Duration::from_secs(u64::try_from(life / 4).unwrap_or(0)).min(LONGEST_SLEEP);
                    let Facts { serial, not_after, .. } = &tls.facts;
                    tracing::info!(serial, not_after, "this node's key is certified");
                    self.status.changed(&tls);
                    current.send_replace(Some(Arc::new(tls)));
                    // A certificate that is not accepted is no reason to ask without a pause.
                    sleep(pause).await;
                }
                Err(error) => {
                    self.status.failed("this node's key is not certified; trying again", &error.to_string());
                    sleep(wait / 2 + wait.mul_f64(random_part() / 2.0)).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }

    /// Returns when a certificate is to be asked for. Meanwhile a changed authority of the correlator comes into use.
    async fn due(&mut self, due: i64, current: &watch::Sender<Option<Arc<Tls>>>) {
        loop {
            let left = due.saturating_sub(seconds());
            if left <= 0 {
                return;
            }
            let left = Duration::from_secs(u64::try_from(left).unwrap_or(0)).min(LONGEST_SLEEP);
            let refused = Arc::clone(&self.refused);
            tokio::select! {
                () = sleep(left.min(Duration::from_secs(2))) => {}
                () = refused.notified() => {
                    tracing::warn!("the correlator does not accept this node's certificate: asking for another");
                    return;
                }
            }
            match self.look_at_ca() {
                Ok(true) => current.send_if_modified(|tls| match tls {
                    Some(tls) => {
                        tracing::info!("the authority of the correlator changed");
                        *tls = Arc::new(Tls { ca: self.ca_pem.clone(), ..Tls::clone(tls) });
                        true
                    }
                    None => false,
                }),
                Ok(false) => false,
                Err(error) => {
                    self.status.failed(
                        "the authority of the correlator cannot be read; that of before stays in use",
                        &error.to_string(),
                    );
                    false
                }
            };
        }
    }

    /// True: it changed.
    fn look_at_ca(&mut self) -> Result<bool, EnrolError> {
        let path = self.ca.paths()[0].clone();
        let wrong = |why: String| EnrolError::File { path: path.clone(), why };
        let Some([pem]) = self.ca.changed().map_err(|error| wrong(error.to_string()))? else { return Ok(false) };
        certificates(&pem).map_err(|error| wrong(error.to_string()))?;
        self.ca_pem = pem;
        Ok(true)
    }

    async fn enrol(&mut self) -> Result<Tls, EnrolError> {
        // It is read again before it is needed: a rotation of both is seen whole.
        self.look_at_ca()?;
        let wrong = |why: String| EnrolError::File { path: self.token.clone(), why };
        let token = std::fs::read_to_string(&self.token).map_err(|error| wrong(error.to_string()))?;
        let token = token.trim();
        if token.is_empty() || token.len() > LARGEST_TOKEN {
            return Err(wrong(format!("{} bytes are no token", token.len())));
        }
        let refused = |why: String| EnrolError::Refused { url: self.url.clone(), why };
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.ca_pem));
        let endpoint = Endpoint::from_shared(self.url.clone()).and_then(|endpoint| endpoint.tls_config(tls));
        let endpoint = endpoint.map_err(|error| refused(causes(&error)))?.connect_timeout(Duration::from_secs(10));
        let request = EnrolRequest {
            token: token.to_owned(),
            request: self.store.request()?,
            cluster: self.identity.cluster.clone(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
        };
        let asking = async {
            let channel = endpoint.connect().await.map_err(|error| causes(&error))?;
            let answer = EnrolmentClient::new(channel).enrol(request).await;
            answer.map_err(|status| format!("{:?}: {}", status.code(), status.message()))
        };
        let answer =
            timeout(ANSWER_WITHIN, asking).await.unwrap_or_else(|_| Err(format!("no answer within {ANSWER_WITHIN:?}")));
        let chain = answer.map_err(refused)?.into_inner().certificate_chain.into_bytes();
        let facts = self.store.check(&chain).map_err(|why| refused(format!("the certificate is of no use: {why}")))?;
        self.store.save(&chain)?;
        Ok(self.tls(chain, facts))
    }

    fn tls(&self, certificate: Vec<u8>, facts: Facts) -> Tls {
        let (ca, key) = (self.ca_pem.clone(), self.store.key_pem().into_bytes());
        Tls { ca, certificate, key, facts, refused: Arc::clone(&self.refused) }
    }
}

/// Between 60 and 70 hundredths of its life: agents that came at the same time do not come again at the same time.
fn renewal(facts: &Facts) -> i64 {
    let life = facts.not_after.saturating_sub(facts.not_before).max(0);
    let part = 0.6 + random_part() / 10.0;
    facts.not_before.saturating_add((life as f64 * part) as i64)
}

fn seconds() -> i64 {
    i64::try_from(clock::unix_ns() / 1_000_000_000).unwrap_or(i64::MAX)
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_at_about_two_thirds_and_not_by_all_at_once() {
        let facts = Facts { not_before: 1000, not_after: 2000, serial: String::new(), key_sha256: String::new() };
        let times: Vec<i64> = (0..100).map(|_| renewal(&facts)).collect();
        assert!(times.iter().all(|time| (1600..=1700).contains(time)), "{times:?}");
        assert!(times.iter().any(|time| *time != times[0]), "{times:?}");
    }
}
