//! A worker node's container runtime: containerd with a root, state and socket of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{
    cri::{Cri, Pod, Rights},
    image, leftovers, places,
    process::{PATIENCE, Process},
    skip,
    stream::Output,
};

/// Stops its pods and itself when dropped, and leaves nothing behind.
#[derive(Debug)]
pub struct Node {
    /// One after the other, where it was started again.
    containerd: Mutex<Process>,
    cri: Cri,
    pods: Mutex<Vec<PodRun>>,
    // Dropped last: the others use it.
    directory: TempDir,
}

#[derive(Debug)]
struct PodRun {
    uid: String,
    sandbox_id: Option<String>,
}

impl Node {
    /// Why there can be no containers on this machine; `None` when there can.
    pub fn unavailable() -> Option<String> {
        if !nix::unistd::geteuid().is_root() {
            return Some("real containers need root".into());
        }
        let missing: Vec<_> = ["containerd", "ctr", "runc", "umoci", "busybox"]
            .into_iter()
            .filter(|name| places::tool(name).is_none())
            .collect();
        (!missing.is_empty()).then(|| format!("not installed: {}", missing.join(", ")))
    }

    /// Whether there can be containers here, and these tools too; where not, `test` is told as skipped.
    pub fn is_available(test: &str, tools: &[&str]) -> bool {
        let missing = tools.iter().find(|tool| places::tool(tool).is_none());
        let reason = Self::unavailable().or(missing.map(|tool| format!("not installed: {tool}")));
        if let Some(reason) = &reason {
            skip(test, reason);
        }
        reason.is_none()
    }

    /// Starts containerd and imports the image; returns when the runtime answers.
    pub async fn start() -> Result<Self> {
        Self::start_with("runc").await
    }

    /// With another OCI runtime.
    pub async fn start_with(runtime: &str) -> Result<Self> {
        let runtime = places::tool(runtime).with_context(|| format!("no {runtime}"))?;
        let directory = tempfile::Builder::new().prefix("seclog-node-").tempdir()?;
        let path = directory.path();
        fs::write(path.join(CONFIGURATION), configuration(path, &runtime)?)?;
        let containerd = containerd(path)?;
        let archive = image::build(path)?;
        let mut import = Command::new(places::tool("ctr").context("no ctr")?);
        import.arg("--address").arg(socket(path)).args(["-n", "k8s.io", "images", "import"]);
        image::run(import.args(["--snapshotter", SNAPSHOTTER, "--base-name", image::BASE_NAME]).arg(archive))?;
        let mut cri = Cri::connect(&socket(path), path).await.context("containerd's CRI")?;
        cri.version().await.context("containerd's CRI")?;
        Ok(Self { containerd: Mutex::new(containerd), cri, pods: Mutex::default(), directory })
    }

    /// Kills containerd and starts it again, with the same containers; returns when the runtime answers again.
    pub async fn restart(&self) -> Result<()> {
        {
            let mut running = self.containerd();
            running.signal(Signal::SIGKILL);
            running.wait(PATIENCE).context("containerd does not end")?;
            *running = containerd(self.directory.path())?;
        }
        let deadline = Instant::now() + PATIENCE;
        // It listens before it has found its containers again, and answers until then that it is not ready.
        while let Err(error) = self.cri.clone().containers().await {
            ensure!(Instant::now() < deadline, "not within {PATIENCE:?}: {error:#}; its log:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    pub fn socket(&self) -> PathBuf {
        socket(self.directory.path())
    }

    /// Where it keeps the specifications of its containers, and their root file systems.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state/io.containerd.runtime.v2.task/k8s.io")
    }

    /// A file of a running container.
    pub fn file(&self, pod: &Pod, path: &str) -> PathBuf {
        self.state().join(&pod.container_id).join("rootfs").join(path.trim_start_matches('/'))
    }

    /// The container's first process.
    pub fn main_process(&self, pod: &Pod) -> Result<u32> {
        let path = self.state().join(&pod.container_id).join("init.pid");
        fs::read_to_string(&path).with_context(|| path.display().to_string())?.trim().parse().context("a pid")
    }

    pub fn log(&self) -> String {
        self.containerd().log()
    }

    fn containerd(&self) -> MutexGuard<'_, Process> {
        self.containerd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn version(&self) -> Result<String> {
        self.cri.clone().version().await
    }

    pub async fn run_pod(&self, namespace: &str, name: &str, container: &str) -> Result<Pod> {
        self.run_pod_with(namespace, name, container, Rights::Ordinary).await
    }

    pub async fn run_pod_with(&self, namespace: &str, name: &str, container: &str, rights: Rights) -> Result<Pod> {
        let uid = fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
        // Noted first: whatever fails below may have made cgroups.
        self.pods().push(PodRun { uid: uid.clone(), sandbox_id: None });
        let pod = self.cri.clone().run_pod(namespace, name, &uid, container, rights).await?;
        self.pods()
            .iter_mut()
            .filter(|run| run.uid == uid)
            .for_each(|run| run.sandbox_id = Some(pod.sandbox_id.clone()));
        Ok(pod)
    }

    /// One more container of a pod; its id.
    pub async fn run_container(&self, pod: &Pod, name: &str, command: &[&str]) -> Result<String> {
        self.cri.clone().run_container(pod, name, command).await
    }

    /// See [`Cri::exec`].
    pub async fn exec(&self, pod: &Pod, command: &[&str]) -> Result<Output> {
        self.cri.clone().exec(&pod.container_id, command).await
    }

    /// See [`Cri::exec_with`].
    pub async fn exec_with_console(&self, pod: &Pod, command: &[&str]) -> Result<Output> {
        self.cri.clone().exec_with(&pod.container_id, command, true).await
    }

    /// See [`Cri::exec_sync`].
    pub async fn exec_sync(&self, pod: &Pod, command: &[&str]) -> Result<Output> {
        self.cri.clone().exec_sync(&pod.container_id, command).await
    }

    /// An exec by containerd's own API, past the CRI: what an administrator of the node does with `ctr`.
    pub fn by_hand(&self, pod: &Pod, command: &[&str]) -> Result<()> {
        let mut ctr = Command::new(places::tool("ctr").context("no ctr")?);
        ctr.arg("--address").arg(self.socket()).args(["-n", "k8s.io", "tasks", "exec", "--exec-id", "by-hand"]);
        image::run(ctr.arg(&pod.container_id).args(command)).map(drop)
    }

    fn pods(&self) -> MutexGuard<'_, Vec<PodRun>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let Self { containerd, cri: _, pods, directory } = self;
        let pods = std::mem::take(pods.get_mut().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = remove_pods(socket(directory.path()), directory.path().to_owned(), &pods) {
            eprintln!("pods were not stopped in order: {error:#}");
        }
        let containerd = containerd.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = containerd.terminate() {
            eprintln!("containerd: {error:#}");
        }
        // Finds nothing when the above went well.
        leftovers::remove(directory.path(), &pods.iter().map(|pod| pod.uid.as_str()).collect::<Vec<_>>());
    }
}

/// On a thread with a runtime of its own: the one that drops this node may be waiting for it.
fn remove_pods(socket: PathBuf, directory: PathBuf, pods: &[PodRun]) -> Result<()> {
    let sandboxes: Vec<String> = pods.iter().filter_map(|pod| pod.sandbox_id.clone()).collect();
    let work = async move {
        let mut cri = Cri::connect(&socket, &directory).await?;
        for sandbox in sandboxes {
            cri.remove_pod(&sandbox).await?;
        }
        anyhow::Ok(())
    };
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await? })
    });
    thread.join().unwrap_or_else(|_| Err(anyhow!("panicked")))
}

/// As configured in this directory; returns when it has booted.
fn containerd(directory: &Path) -> Result<Process> {
    let program = places::tool("containerd").context("no containerd")?;
    // Where Debian puts runc, which a user's PATH may lack.
    let search = std::env::join_paths(
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .chain(["/usr/sbin".into(), "/sbin".into()]),
    )?;
    let config = directory.join(CONFIGURATION);
    let containerd =
        Process::start("containerd", Command::new(program).arg("--config").arg(config).env("PATH", search))?;
    containerd.wait_for_log("containerd successfully booted")?;
    Ok(containerd)
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("containerd.sock")
}

const CONFIGURATION: &str = "config.toml";
/// Copies the image for each container instead of stacking it: works on every file system, overlay included.
const SNAPSHOTTER: &str = "native";

fn configuration(directory: &Path, runtime: &Path) -> Result<String> {
    let runtime = runtime.to_str().context("the runtime's path is not UTF-8")?;
    let directory = directory.to_str().context("temporary directory is not UTF-8")?;
    let image = image::REFERENCE;
    Ok(format!(
        r#"version = 2
root = "{directory}/root"
state = "{directory}/state"
[grpc]
address = "{directory}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{directory}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
# Without CAP_SYS_RESOURCE nothing may lower it.
restrict_oom_score_adj = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{directory}/cni"
bin_dir = "{directory}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{SNAPSHOTTER}"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runtime}"
Root = "{directory}/runc"
"#
    ))
}
