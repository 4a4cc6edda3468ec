//! The container runtime's own knowledge, by CRI over its unix socket. Reads only.

use std::{path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use seclog_proto::cri::{
    ContainerFilter, CriContainer, ListContainersRequest, ListPodSandboxRequest, PodSandbox, PodSandboxFilter,
    VersionRequest, runtime_service_client::RuntimeServiceClient,
};
use thiserror::Error;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// A runtime that does not answer must not hold up records.
const TIMEOUT: Duration = Duration::from_millis(800);

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
        let connect_path = path.clone();
        // The address is not used: the connector below goes to the socket.
        let channel = Endpoint::from_static("http://cri.invalid")
            .connect_timeout(TIMEOUT)
            .timeout(TIMEOUT)
            .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let path = connect_path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }));
        Self { client: RuntimeServiceClient::new(channel), path }
    }

    /// Name and version of the runtime.
    pub async fn version(&mut self) -> Result<(String, String), CriError> {
        let answer = self.client.version(VersionRequest::default()).await.map_err(|status| self.error(&status))?;
        let answer = answer.into_inner();
        Ok((answer.runtime_name, answer.runtime_version))
    }

    /// One container, or all.
    pub async fn containers(&mut self, id: Option<&str>) -> Result<Vec<CriContainer>, CriError> {
        let filter = id.map(|id| ContainerFilter { id: id.to_owned() });
        let answer = self.client.list_containers(ListContainersRequest { filter }).await;
        Ok(answer.map_err(|status| self.error(&status))?.into_inner().containers)
    }

    /// One pod sandbox, or all. A sandbox's own (pause) container has the sandbox's id.
    pub async fn sandboxes(&mut self, id: Option<&str>) -> Result<Vec<PodSandbox>, CriError> {
        let filter = id.map(|id| PodSandboxFilter { id: id.to_owned() });
        let answer = self.client.list_pod_sandbox(ListPodSandboxRequest { filter }).await;
        Ok(answer.map_err(|status| self.error(&status))?.into_inner().items)
    }

    fn error(&self, status: &tonic::Status) -> CriError {
        if status.code() == tonic::Code::Unavailable {
            return CriError::Connect { path: self.path.clone(), reason: status.message().to_owned() };
        }
        CriError::Answer(format!("{:?}: {}", status.code(), status.message()))
    }
}
