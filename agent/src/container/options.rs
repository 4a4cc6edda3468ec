//! What `run` is told of the node's container runtime.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use tokio::{sync::mpsc, time::sleep};

use super::{cri::CriClient, lookup::Lookup, state::State};
use crate::{
    capture::kernel,
    lineage::{Role, Runtime},
};

/// Options of `seclog-agent run` that concern containers.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// The container runtime's CRI socket; default: the first of CRI-O's and containerd's that exists.
    #[arg(long, value_name = "PATH", env = "SECLOG_CRI_SOCKET")]
    pub cri_socket: Option<PathBuf>,
    /// An OCI runtime of the host (runc, crun), by its path there; may be given several times, and replaces what is found:
    /// the usual places, and those that CRI-O's configuration names. No other program counts as one, whatever its name.
    #[arg(long, value_name = "PATH")]
    pub runtime_binary: Vec<String>,
    /// The program of the service that serves the CRI, by its path on the host; default: the usual places of crio and
    /// containerd.
    #[arg(long, value_name = "PATH")]
    pub runtime_service: Vec<String>,
    /// Where the runtime keeps the specifications of its containers, read only; may be given several times. Default: those
    /// of /run/containers/storage/overlay-containers (CRI-O) and /run/containerd/io.containerd.runtime.v2.task/k8s.io
    /// (containerd) that are there.
    #[arg(long, value_name = "DIR")]
    pub runtime_state: Vec<PathBuf>,
    /// Leave the CRI socket alone even where it is there: names then come from --runtime-state.
    #[arg(long, conflicts_with = "cri_socket")]
    pub no_cri: bool,
    /// Mask secrets in command lines before they leave this process: `default`, or a file of rules (docs/containers.md).
    /// The correlator needs the same.
    #[arg(long, value_name = "default|FILE", env = "SECLOG_MASK")]
    pub mask: Option<String>,
    /// Report what the agent's own container does by itself, too. (What enters it is always reported.)
    #[arg(long)]
    pub report_own: bool,
}

/// CRI-O's and containerd's.
const SOCKETS: [&str; 2] = ["/run/crio/crio.sock", "/run/containerd/containerd.sock"];
/// Containers made and not yet looked up.
const MOST_MADE: usize = 1024;
/// After the runtime's events have ended, until they are asked for again.
const EVENTS_AGAIN: Duration = Duration::from_secs(60);
/// The host's root directory: of the first process, whose mount namespace is the host's.
const HOST_ROOT: &str = "/proc/1/root";

// === impl Options ===

impl Options {
    /// Who is asked about containers.
    pub async fn lookup(&self, wanted: &[String]) -> Lookup {
        let states = State::find(&self.runtime_state);
        for state in &states {
            tracing::info!(directory = %state.directory().display(), "containers are known from the runtime's state");
        }
        let found = || SOCKETS.iter().map(PathBuf::from).find(|path| path.exists());
        let socket = self.cri_socket.clone().or_else(found).filter(|_| !self.no_cri);
        let client = match socket {
            Some(path) => {
                let mut client = CriClient::new(path.clone());
                match client.version().await {
                    Ok((runtime, version)) => {
                        tracing::info!(socket = %path.display(), runtime, version, "containers are known from CRI");
                    }
                    Err(error) if states.is_empty() => {
                        tracing::warn!(%error, "container names are missing until the runtime answers");
                    }
                    Err(error) => tracing::info!(%error, "CRI does not answer; the runtime's state on disk does"),
                }
                Some(client)
            }
            None => None,
        };
        if states.is_empty() && client.is_none() {
            tracing::warn!(
                sockets = ?SOCKETS,
                "neither the runtime's state nor its socket is there: containers are known by id and pod UID alone. Mount \
                 /run/containers/storage read-only (--runtime-state), or name a socket by --cri-socket"
            );
        }
        Lookup::new(states, client, wanted)
    }

    /// What the runtime consists of, and the process that serves the CRI. `configuration`: below which CRI-O's files are.
    pub fn runtime(&self, configuration: &Path, socket: Option<&Path>) -> (Runtime, Option<u32>) {
        let mut runtime = Runtime::new(&self.runtime_binary, &[], &self.runtime_service, Path::new(HOST_ROOT));
        match seclog_dropin::node::runtime_programs(configuration) {
            Ok(programs) => {
                let runtimes = programs.runtimes.iter().filter(|_| self.runtime_binary.is_empty());
                runtimes.for_each(|path| runtime.add(path, Role::Runtime));
                programs.monitors.iter().for_each(|path| runtime.add(path, Role::Conmon));
            }
            Err(error) => tracing::debug!(%error, "CRI-O's configuration names no runtimes"),
        }
        let service = socket.and_then(kernel::service_pid).or_else(|| runtime.find_service(Path::new("/proc")));
        match service {
            Some(pid) => tracing::info!(pid, "the process that serves the CRI"),
            None => tracing::warn!(
                "no process was found that serves the CRI: entries into containers are judged by the programs' paths \
                 alone. Name its program by --runtime-service, or its socket by --cri-socket"
            ),
        }
        (runtime, service)
    }
}

/// The way on which containers are told of as they are made.
pub fn made() -> (mpsc::Sender<Arc<str>>, mpsc::Receiver<Arc<str>>) {
    mpsc::channel(MOST_MADE)
}

/// Follows the runtime's own events, where it sends any.
pub fn follow_events(lookup: &Lookup, made: &mpsc::Sender<Arc<str>>) {
    let Some(client) = lookup.client().cloned() else { return };
    let made = made.clone();
    tokio::spawn(async move {
        let mut told = false;
        while !made.is_closed() {
            match client.events(&made).await {
                Ok(0) if !told => {
                    told = true;
                    tracing::info!(
                        "the runtime sends no container events (CRI-O: enable_pod_events); containers are looked up as their cgroups are made"
                    );
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the runtime's container events ended"),
            }
            sleep(EVENTS_AGAIN).await;
        }
    });
}
