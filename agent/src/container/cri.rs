//! The container runtime's own knowledge, by CRI over its unix socket. Reads only.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use seclog_proto::cri::{
    ContainerEventType, ContainerStatusRequest, GetEventsRequest, ListContainersRequest, ListPodSandboxRequest,
    PodSandboxFilter, VersionRequest, runtime_service_client::RuntimeServiceClient,
};
use thiserror::Error;
use tokio::{net::UnixStream, sync::mpsc};
use tonic::transport::{Channel, Endpoint, Uri};

use super::known::Known;

/// A runtime that does not answer must not hold up records.
const TIMEOUT: Duration = Duration::from_millis(800);
/// A verbose status holds the container's whole specification.
const MOST_MESSAGE: usize = 16 << 20;

#[derive(Debug, Error)]
pub enum CriError {
    #[error("{path}: cannot connect to the container runtime: {reason}")]
    Connect { path: PathBuf, reason: String },
    #[error("the container runtime answered {0}")]
    Answer(String),
}

/// Asks one runtime.
#[derive(Clone, Debug)]
pub struct CriClient {
    client: RuntimeServiceClient<Channel>,
    pub path: PathBuf,
}

// === impl CriClient ===

impl CriClient {
    /// Connects when first asked, and again after the runtime restarts.
    pub fn new(path: PathBuf) -> Self {
        let client = RuntimeServiceClient::new(channel(&path, Some(TIMEOUT))).max_decoding_message_size(MOST_MESSAGE);
        Self { client, path }
    }

    /// Name and version of the runtime.
    pub async fn version(&mut self) -> Result<(String, String), CriError> {
        let answer = self.client.version(VersionRequest::default()).await.map_err(|status| self.error(&status))?;
        let answer = answer.into_inner();
        Ok((answer.runtime_name, answer.runtime_version))
    }

    /// One container with everything that the runtime tells of it; `None` where it does not know it.
    pub async fn container(&mut self, id: &str, wanted: &[String]) -> Result<Option<Known>, CriError> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        match self.client.container_status(request).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                let info = answer.info.get("info").map(String::as_str);
                Ok(answer.status.map(|status| Known::of_status(status, info, wanted)))
            }
            Err(status) if status.code() == tonic::Code::NotFound => self.sandbox(id).await,
            Err(status) => Err(self.error(&status)),
        }
    }

    /// A sandbox's own (pause) container has the sandbox's id.
    async fn sandbox(&mut self, id: &str) -> Result<Option<Known>, CriError> {
        let filter = Some(PodSandboxFilter { id: id.to_owned() });
        let answer = self.client.list_pod_sandbox(ListPodSandboxRequest { filter }).await;
        let mut items = answer.map_err(|status| self.error(&status))?.into_inner().items;
        Ok(items.pop().map(Known::of_sandbox))
    }

    /// Ids of the containers and sandboxes that the runtime has now.
    pub async fn ids(&mut self) -> Result<Vec<String>, CriError> {
        let containers = self.client.list_containers(ListContainersRequest { filter: None }).await;
        let containers = containers.map_err(|status| self.error(&status))?.into_inner().containers;
        let sandboxes = self.client.list_pod_sandbox(ListPodSandboxRequest { filter: None }).await;
        let sandboxes = sandboxes.map_err(|status| self.error(&status))?.into_inner().items;
        let containers = containers.into_iter().map(|container| container.id);
        Ok(containers.chain(sandboxes.into_iter().map(|sandbox| sandbox.id)).collect())
    }

    /// Tells `made` of each container that the runtime makes or starts, until the stream ends: CRI-O ends it at once
    /// unless `enable_pod_events` is set.
    pub async fn events(&self, made: &mpsc::Sender<Arc<str>>) -> Result<u64, CriError> {
        // A stream that is silent for hours is no failure: without the limit on answers.
        let mut client = RuntimeServiceClient::new(channel(&self.path, None));
        let answer = client.get_container_events(GetEventsRequest::default()).await;
        let mut events = answer.map_err(|status| self.error(&status))?.into_inner();
        let mut count = 0;
        while let Some(event) = events.message().await.map_err(|status| self.error(&status))? {
            count += 1;
            let new = [ContainerEventType::ContainerCreatedEvent, ContainerEventType::ContainerStartedEvent];
            if new.contains(&event.container_event_type()) {
                // A container that nobody is told of is looked up when its first record comes.
                let _ = made.try_send(event.container_id.into());
            }
        }
        Ok(count)
    }

    fn error(&self, status: &tonic::Status) -> CriError {
        if status.code() == tonic::Code::Unavailable {
            return CriError::Connect { path: self.path.clone(), reason: status.message().to_owned() };
        }
        CriError::Answer(format!("{:?}: {}", status.code(), status.message()))
    }
}

fn channel(path: &Path, timeout: Option<Duration>) -> Channel {
    let path = path.to_owned();
    // The address is not used: the connector below goes to the socket.
    let endpoint = Endpoint::from_static("http://cri.invalid").connect_timeout(TIMEOUT);
    let endpoint = match timeout {
        Some(timeout) => endpoint.timeout(timeout),
        None => endpoint,
    };
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    }))
}
