//! CRI on CRI-O's socket: its version, and whether running containers log.

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use seclog_proto::cri::{
    ContainerState, ContainerStatusRequest, CriContainer, ListContainersRequest, VersionRequest,
    runtime_service_client::RuntimeServiceClient,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::{
    facts::{Container, Known, Logs},
    spec::Spec,
    version::CrioVersion,
};

/// More than kubelet lets a node run.
const MAX_CONTAINERS: usize = 4096;
/// A verbose status holds the container's whole specification.
const MAX_MESSAGE: usize = 16 << 20;

pub(crate) async fn ask(socket: &Path) -> (Option<CrioVersion>, Known<Vec<Container>>) {
    let mut client = match connect(socket.to_owned()).await {
        Ok(channel) => RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
        Err(error) => return (None, Known::No(format!("CRI: {error}"))),
    };
    let version = client.version(VersionRequest::default()).await.ok().map(tonic::Response::into_inner);
    let version = version.filter(|v| v.runtime_name == "cri-o").and_then(|v| CrioVersion::parse(&v.runtime_version));
    let containers = match client.list_containers(ListContainersRequest::default()).await {
        Ok(list) => list.into_inner().containers,
        Err(status) => return (version, Known::No(format!("CRI ListContainers: {}", status.message()))),
    };
    let mut known = Vec::new();
    let running = containers.into_iter().filter(|c| c.state == ContainerState::ContainerRunning as i32);
    for container in running.take(MAX_CONTAINERS) {
        let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
        let info = match client.container_status(request).await {
            Ok(status) => status.into_inner().info.remove("info"),
            // It ended meanwhile, or CRI-O will not say: unknown, and named.
            Err(_) => None,
        };
        known.push(judge(container, info.as_deref()));
    }
    (version, Known::Yes(known))
}

async fn connect(socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
    // The address is never resolved: the connector goes to the socket.
    Endpoint::from_static("http://crio")
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
}

fn judge(container: CriContainer, info: Option<&str>) -> Container {
    let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
    let info: Option<Info> = info.and_then(|text| serde_json::from_str(text).ok());
    Container {
        namespace: label("io.kubernetes.pod.namespace"),
        pod: label("io.kubernetes.pod.name"),
        name: label("io.kubernetes.container.name"),
        id: container.id,
        privileged: info.as_ref().is_some_and(|i| i.privileged),
        logs: info.map_or(Logs::Unknown, |i| i.runtime_spec.logs()),
        created: Some(container.created_at / 1_000_000_000),
    }
}

/// The JSON of ContainerStatus' `info["info"]` (cri-o/cri-o `server/container_status.go`).
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    #[serde(default)]
    privileged: bool,
    #[serde(default)]
    runtime_spec: Spec,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verbose_status_tells_whether_the_container_logs_and_is_privileged() {
        let container = CriContainer {
            id: "x".into(),
            labels: [("io.kubernetes.pod.namespace".to_owned(), "shop".to_owned())].into(),
            ..CriContainer::default()
        };
        let logging = r#"{"privileged":false,"runtimeSpec":{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["execve"],"action":"SCMP_ACT_LOG"}]}}}}"#;
        for (info, logs, privileged) in [
            (Some(logging), Logs::Yes, false),
            (Some(r#"{"privileged":true,"runtimeSpec":{"linux":{}}}"#), Logs::No, true),
            (Some("{"), Logs::Unknown, false),
            (None, Logs::Unknown, false),
        ] {
            let judged = judge(container.clone(), info);
            assert_eq!((judged.logs, judged.privileged, judged.namespace.as_str()), (logs, privileged, "shop"));
        }
    }
}
