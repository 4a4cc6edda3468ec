//! Pods and containers by the Container Runtime Interface, configured as kubelet would.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use seclog_proto::cri::{
    self, ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecRequest, ExecSyncRequest, ImageSpec,
    LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, RunPodSandboxRequest, SecurityProfile,
    StartContainerRequest, runtime_service_client::RuntimeServiceClient, security_profile::ProfileType,
};
use tonic::transport::{Channel, Endpoint};

use super::{
    image,
    stream::{self, Output},
};

/// A client of one runtime.
#[derive(Debug, Clone)]
pub struct Cri {
    client: RuntimeServiceClient<Channel>,
    directory: PathBuf,
}

/// One pod with one container, running.
#[derive(Debug, Clone)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub sandbox_id: String,
    pub container: String,
    pub container_id: String,
    pub rights: Rights,
}

/// What a pod may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    Ordinary,
    /// What `oc debug node/…` makes: privileged, among the host's processes.
    Node,
}

// === impl Rights ===

impl Rights {
    fn namespaces(self) -> NamespaceOption {
        match self {
            Self::Ordinary => host_network(),
            Self::Node => NamespaceOption { pid: NamespaceMode::Node.into(), ..host_network() },
        }
    }

    fn apply_to(self, sandbox: &mut PodSandboxConfig) {
        if let Some(context) = sandbox.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
            context.namespace_options = Some(self.namespaces());
            context.privileged = self == Self::Node;
        }
    }
}

impl Pod {
    /// Where kubelet puts a pod without requests, with cgroupfs as the driver.
    pub fn cgroup(uid: &str) -> String {
        format!("/kubepods/besteffort/pod{uid}")
    }
}

impl Cri {
    /// `directory` is for logs and the seccomp profile.
    pub async fn connect(socket: &Path, directory: &Path) -> Result<Self> {
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?.connect().await?;
        Ok(Self { client: RuntimeServiceClient::new(channel), directory: directory.to_owned() })
    }

    /// Name and version of the runtime, once it answers.
    pub async fn version(&mut self) -> Result<String> {
        let version = self.client.version(cri::VersionRequest::default()).await?.into_inner();
        Ok(format!("{} {}", version.runtime_name, version.runtime_version))
    }

    /// Runs a pod on the host's network with one container that waits, under a seccomp profile that logs what starts
    /// processes.
    pub async fn run_pod(
        &mut self,
        namespace: &str,
        name: &str,
        uid: &str,
        container: &str,
        rights: Rights,
    ) -> Result<Pod> {
        let mut sandbox_config = sandbox_config(namespace, name, uid, &self.directory);
        rights.apply_to(&mut sandbox_config);
        let request = RunPodSandboxRequest { config: Some(sandbox_config.clone()), runtime_handler: String::new() };
        let sandbox_id =
            self.client.run_pod_sandbox(request).await.context("RunPodSandbox")?.into_inner().pod_sandbox_id;

        let mut pod = Pod {
            namespace: namespace.into(),
            name: name.into(),
            uid: uid.into(),
            sandbox_id,
            container: container.into(),
            container_id: String::new(),
            rights,
        };
        pod.container_id = self.run_container(&pod, container, &["/bin/sleep", "1000000"]).await?;
        Ok(pod)
    }

    /// One more container of a pod; its id.
    pub async fn run_container(&mut self, pod: &Pod, container: &str, command: &[&str]) -> Result<String> {
        let Pod { namespace, name, uid, sandbox_id, .. } = pod;
        let mut sandbox_config = sandbox_config(namespace, name, uid, &self.directory);
        pod.rights.apply_to(&mut sandbox_config);
        let mut labels = labels(namespace, name, uid);
        labels.insert("io.kubernetes.container.name".into(), container.into());
        let seccomp = SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: logging_profile(&self.directory)?.display().to_string(),
        };
        let security_context = LinuxContainerSecurityContext {
            namespace_options: Some(pod.rights.namespaces()),
            privileged: pod.rights == Rights::Node,
            seccomp: Some(seccomp).filter(|_| pod.rights == Rights::Ordinary),
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: container.into(), attempt: 0 }),
            image: Some(ImageSpec { image: image::REFERENCE.into() }),
            command: command.iter().map(ToString::to_string).collect(),
            labels,
            log_path: format!("{container}.log"),
            linux: Some(LinuxContainerConfig { security_context: Some(security_context) }),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox_id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let container_id =
            self.client.create_container(request).await.context("CreateContainer")?.into_inner().container_id;
        let request = StartContainerRequest { container_id: container_id.clone() };
        self.client.start_container(request).await.context("StartContainer")?;
        Ok(container_id)
    }

    /// Ids of all containers that run or ran.
    pub async fn containers(&mut self) -> Result<Vec<String>> {
        let response = self.client.list_containers(cri::ListContainersRequest::default()).await?.into_inner();
        Ok(response.containers.into_iter().map(|container| container.id).collect())
    }

    pub async fn remove_pod(&mut self, sandbox_id: &str) -> Result<()> {
        let pod_sandbox_id = sandbox_id.to_owned();
        self.client.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await?;
        self.client.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id }).await?;
        Ok(())
    }

    /// The streaming way, as for `kubectl exec`: the runtime's own streaming server carries the output.
    pub async fn exec(&mut self, container_id: &str, command: &[&str]) -> Result<Output> {
        self.exec_with(container_id, command, false).await
    }

    /// The same; with a console there is one output only.
    pub async fn exec_with(&mut self, container_id: &str, command: &[&str], console: bool) -> Result<Output> {
        let request = ExecRequest {
            container_id: container_id.into(),
            cmd: command.iter().map(ToString::to_string).collect(),
            tty: console,
            stdout: true,
            stderr: !console,
            ..Default::default()
        };
        let url = self.client.exec(request).await.context("Exec")?.into_inner().url;
        stream::exec(&url).await
    }

    /// The way of probes and lifecycle hooks.
    pub async fn exec_sync(&mut self, container_id: &str, command: &[&str]) -> Result<Output> {
        let request = ExecSyncRequest {
            container_id: container_id.into(),
            cmd: command.iter().map(ToString::to_string).collect(),
            timeout: 60,
        };
        let response = self.client.exec_sync(request).await.context("ExecSync")?.into_inner();
        Ok(Output {
            stdout: String::from_utf8_lossy(&response.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&response.stderr).into_owned(),
            exit_code: response.exit_code,
        })
    }
}

fn sandbox_config(namespace: &str, name: &str, uid: &str, directory: &Path) -> PodSandboxConfig {
    let security_context =
        LinuxSandboxSecurityContext { namespace_options: Some(host_network()), ..Default::default() };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: uid.into(),
            namespace: namespace.into(),
            attempt: 0,
        }),
        log_directory: directory.join("logs").display().to_string(),
        labels: labels(namespace, name, uid),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: Pod::cgroup(uid),
            security_context: Some(security_context),
        }),
        ..Default::default()
    }
}

fn labels(namespace: &str, name: &str, uid: &str) -> HashMap<String, String> {
    [("name", name), ("namespace", namespace), ("uid", uid)]
        .map(|(label, value)| (format!("io.kubernetes.pod.{label}"), value.to_owned()))
        .into()
}

/// No network set-up to prepare, and nothing to clean.
fn host_network() -> NamespaceOption {
    NamespaceOption { network: NamespaceMode::Node.into(), pid: NamespaceMode::Container.into(), ..Default::default() }
}

fn logging_profile(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("seccomp.json");
    let profile = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{
            "names": ["execve", "execveat", "clone", "clone3", "fork", "vfork"],
            "action": "SCMP_ACT_LOG",
        }],
    });
    fs::write(&path, profile.to_string())?;
    Ok(path)
}
