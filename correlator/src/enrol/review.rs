//! Tokens checked by the hosted cluster's API server: `authentication.k8s.io/v1` TokenReview, which also knows whether pod,
//! node and service account still exist. Where it does not tell the node (before Kubernetes 1.30), the pod is looked up.

use super::token::{Bound, Expected, TokenError, bound_by_extra, shown};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use seclog_identity::{FileError, Files};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore};

/// Reviews under way at once.
const AT_ONCE: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("kubeconfig {}: {why}", path.display())]
    Kubeconfig { path: PathBuf, why: String },
}

/// Asks one API server. Its kubeconfig is followed.
pub struct Review {
    path: PathBuf,
    patience: Duration,
    at_once: Semaphore,
    state: Mutex<State>,
}

struct State {
    files: Files<1>,
    client: Client,
    told: String,
}

impl std::fmt::Debug for Review {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Review").field("path", &self.path).finish_non_exhaustive()
    }
}

// === impl Review ===

impl Review {
    /// `patience`: for one question to the API server.
    pub async fn open(path: &Path, patience: Duration) -> Result<Self, ReviewError> {
        let mut files = Files::new([path.to_owned()]);
        files.changed()?;
        let client = client(path).await.map_err(|why| ReviewError::Kubeconfig { path: path.to_owned(), why })?;
        let state = Mutex::new(State { files, client, told: String::new() });
        Ok(Self { path: path.to_owned(), patience, at_once: Semaphore::new(AT_ONCE), state })
    }

    async fn client(&self) -> Client {
        let mut state = self.state.lock().await;
        let made = match state.files.changed() {
            Ok(None) => return state.client.clone(),
            Ok(Some(_)) => client(&self.path).await,
            Err(error) => Err(error.to_string()),
        };
        match made {
            Ok(client) => {
                tracing::info!(file = %self.path.display(), "the kubeconfig for token reviews changed");
                state.client = client;
                state.told.clear();
            }
            Err(why) if why != state.told => {
                tracing::error!(file = %self.path.display(), "the kubeconfig changed and cannot be used; that of before stays in use: {why}");
                state.told = why;
            }
            Err(_) => {}
        }
        state.client.clone()
    }

    pub(super) async fn check(&self, token: &str, expected: &Expected) -> Result<Bound, TokenError> {
        let Ok(_turn) = self.at_once.try_acquire() else {
            return Err(TokenError::Unchecked(format!("{AT_ONCE} checks are under way; come again")));
        };
        let client = self.client().await;
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![expected.audience.clone()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(client.clone());
        let answer = self.ask("token review", api.create(&PostParams::default(), &review)).await?;
        let status = answer.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            let why = status.error.unwrap_or_else(|| "the API server does not know it".to_owned());
            return Err(TokenError::Refused(shown(&why)));
        }
        // An API server that knows no audiences would accept a token that was made for another service.
        if !status.audiences.unwrap_or_default().contains(&expected.audience) {
            return Err(TokenError::Refused(format!(
                "the API server does not confirm that it was made for the audience {:?}",
                expected.audience
            )));
        }
        let UserInfo { username, extra, .. } = status.user.unwrap_or_default();
        let username = username.unwrap_or_default();
        if username != expected.user() {
            return Err(TokenError::NotAnAgent(format!(
                "it is of {:?}, not of {:?}",
                shown(&username),
                expected.user()
            )));
        }
        let bound = bound_by_extra(&extra.unwrap_or_default());
        if bound.node.is_empty() { self.look_up(client, bound, expected).await } else { Ok(bound) }
    }

    /// The node of the pod that the token is bound to.
    async fn look_up(&self, client: Client, bound: Bound, expected: &Expected) -> Result<Bound, TokenError> {
        if bound.pod.is_empty() || bound.pod_uid.is_empty() {
            return Err(TokenError::NotAnAgent(
                "it is bound to no pod: it must be one that kubelet projected".to_owned(),
            ));
        }
        let pods: Api<Pod> = Api::namespaced(client, &expected.namespace);
        let pod = self.ask("the agent's pod", pods.get(&bound.pod)).await?;
        if pod.metadata.uid.as_deref() != Some(&bound.pod_uid) {
            return Err(TokenError::Refused(format!("its pod {:?} is there no more", shown(&bound.pod))));
        }
        let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
        if node.is_empty() {
            return Err(TokenError::NotAnAgent(format!("its pod {:?} runs on no node", shown(&bound.pod))));
        }
        Ok(Bound { node, ..bound })
    }

    /// What goes wrong here is not the agent's fault: it is told to come again, and the log says what to do.
    async fn ask<T>(&self, what: &str, question: impl Future<Output = kube::Result<T>>) -> Result<T, TokenError> {
        let why = match tokio::time::timeout(self.patience, question).await {
            Ok(Ok(answer)) => return Ok(answer),
            Err(_) => format!("the API server did not answer within {:?}", self.patience),
            Ok(Err(kube::Error::Api(status))) => {
                let said = shown(&status.message);
                match status.code {
                    401 => format!(
                        "the API server does not know this correlator (401): renew the credentials in {}: {said}",
                        self.path.display()
                    ),
                    403 => format!(
                        "this correlator may not ask for it (403): bind its user to ClusterRole system:auth-delegator, and for \
                         Kubernetes before 1.30 to one that may get pods of the agents' namespace: {said}"
                    ),
                    404 => format!("the API server does not know it (404): {said}"),
                    code => format!("the API server answered {code}: {said}"),
                }
            }
            Ok(Err(error)) => format!("the API server cannot be asked: {}", shown(&causes(&error))),
        };
        tracing::error!("{what}: {why}");
        // Where a pod is gone, coming again does not help.
        if what != "token review" && why.contains("(404)") {
            return Err(TokenError::Refused("its pod is there no more".to_owned()));
        }
        Err(TokenError::Unchecked(why))
    }
}

async fn client(path: &Path) -> Result<Client, String> {
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| error.to_string())?;
    let users = kubeconfig.auth_infos.iter().filter_map(|named| named.auth_info.as_ref());
    if users.into_iter().any(|user| user.exec.is_some() || user.auth_provider.is_some()) {
        return Err(
            "it starts a program to log in (exec, auth-provider): use a token or a client certificate".to_owned()
        );
    }
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let mut config = config.map_err(|error| causes(&error))?;
    if config.accept_invalid_certs {
        return Err("it has insecure-skip-tls-verify: whoever answers would decide who is an agent".to_owned());
    }
    if config.cluster_url.scheme_str() != Some("https") {
        return Err("its server is not https: tokens would go over the network in plain text".to_owned());
    }
    config.connect_timeout = Some(Duration::from_secs(5));
    config.default_retry = false;
    Client::try_from(config).map_err(|error| causes(&error))
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
