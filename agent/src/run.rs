//! `seclog-agent run`: builds the parts, starts them, stops them in order.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use clap::{Args, ValueEnum};
use nix::sys::eventfd::EventFd;
use seclog_identity::NodeIdentity;
use seclog_masking::{Rules, RulesError};
use seclog_proto::v1::HookStatus;
use thiserror::Error;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use crate::{
    absence::Keeper,
    capture::{self, audit, kernel},
    check::{self, CheckOptions},
    clock,
    container::{self, Cgroups, Hierarchy, Naming, V1},
    credentials::{self, TlsFiles},
    drive::{self, Sources},
    lineage::{Gaps, Keeping, Kept, Processes, Reconcile, Runtime, Streams, read_proc},
    pipeline::Pipeline,
    quiet,
    record::Origins,
    telemetry::{self, Telemetry},
    uplink::{self, Health, Identity, Sink, SpoolConfig, StreamConfig, UplinkError, WhenFull},
};

/// Batches between the pipeline's thread and the uplink: few, since what waits takes least room where it came in.
const QUEUE: usize = 2;

/// Options of `seclog-agent run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Print node records instead of sending them.
    #[arg(long, value_enum, conflicts_with = "correlator")]
    sink: Option<SinkKind>,
    /// Where the correlator listens for agents, e.g. https://correlator.example:8443. Several, separated by commas, are
    /// tried in turn.
    #[arg(
        long,
        value_name = "URL",
        env = "SECLOG_CORRELATOR",
        value_delimiter = ',',
        required_unless_present = "sink"
    )]
    correlator: Vec<String>,
    /// Certificate authority of the correlator, PEM.
    #[arg(long, value_name = "FILE", env = "SECLOG_TLS_CA")]
    tls_ca: Option<PathBuf>,
    /// This node's certificate, PEM.
    #[arg(long, value_name = "FILE", env = "SECLOG_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// This node's key, PEM.
    #[arg(long, value_name = "FILE", env = "SECLOG_TLS_KEY")]
    tls_key: Option<PathBuf>,
    #[command(flatten)]
    enrol: credentials::EnrolArgs,
    /// Speak without TLS; only to a loopback address.
    #[arg(long)]
    plaintext: bool,
    /// Name of the hosted cluster.
    #[arg(long, env = "SECLOG_CLUSTER", default_value = "")]
    cluster: String,
    /// Name of this node; default: the host name.
    #[arg(long, env = "NODE_NAME")]
    node: Option<String>,
    #[command(flatten)]
    containers: container::Options,
    /// How to see verdicts from eBPF.
    #[arg(long, value_enum, default_value = "auto")]
    verdict_hook: kernel::VerdictHook,
    /// Bytes of the kernel's ring of verdicts, a power of two. It counts twice in resident memory, and is there only where
    /// a hook sees verdicts.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, value_parser = ring_bytes)]
    verdict_ring_bytes: u32,
    /// Bytes of the kernel's ring of process starts and ends, a power of two. It counts twice in resident memory.
    #[arg(long, value_name = "BYTES", default_value_t = 2 << 20, value_parser = ring_bytes)]
    lineage_ring_bytes: u32,
    /// Processes that the kernel's own memory of session roots has room for. Membership of those beyond it is unknown
    /// where their lineage is lost.
    #[arg(long, value_name = "COUNT", default_value_t = 32_768, value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    kernel_processes: u32,
    /// Follow the processes of this cgroup too (path below the v2 root); may be given several times.
    #[arg(long, value_name = "PATH")]
    scope_cgroup: Vec<String>,
    /// Environment variables of session roots that are reported.
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "SPO_EXEC_REQUEST_UID,KUBERNETES_EXEC_AUDIT_ID"
    )]
    wanted_variable: Vec<String>,
    /// Where to keep up to when records were handed over, so that the next run can say what was missed.
    #[arg(long, value_name = "FILE", default_value = "/run/seclog/agent.state")]
    state_file: PathBuf,
    /// Serve /metrics, /healthz and /readyz here, e.g. 127.0.0.1:9464.
    #[arg(long, value_name = "ADDRESS", env = "SECLOG_METRICS_LISTEN")]
    metrics_listen: Option<SocketAddr>,
    /// Directory where records wait until the correlator has them on its disk. Without it they wait in memory, and a restart
    /// loses them.
    #[arg(long, value_name = "DIR", env = "SECLOG_SPOOL_DIR")]
    spool_dir: Option<PathBuf>,
    /// Bytes that may wait, about; default 1 GiB in a directory, 16 MiB in memory.
    #[arg(long, value_name = "BYTES", env = "SECLOG_SPOOL_BYTES", value_parser = clap::value_parser!(u64).range(1 << 20..))]
    spool_bytes: Option<u64>,
    /// What is lost when they are full. How many were lost is told either way.
    #[arg(long, value_enum, default_value = "keep-oldest", env = "SECLOG_SPOOL_FULL")]
    spool_full: WhenFull,
    #[command(flatten)]
    quiet: quiet::QuietArgs,
    #[command(flatten)]
    check: CheckOptions,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SinkKind {
    Stdout,
}

#[derive(Debug, Error)]
pub enum RunError {
    #[error("{path}: {error}")]
    File { path: PathBuf, error: io::Error },
    #[error("{0}")]
    Usage(String),
    #[error("nothing can be captured here: {0}")]
    NoSource(String),
    #[error("cannot start: {0}")]
    Start(io::Error),
    #[error(transparent)]
    Masking(#[from] RulesError),
    #[error(transparent)]
    Uplink(#[from] UplinkError),
}

fn ring_bytes(text: &str) -> Result<u32, String> {
    let bytes: u32 = text.parse().map_err(|error| format!("{error}"))?;
    // The kernel wants a power of two of whole pages; the largest page that Linux runs with is 64 KiB.
    if bytes.is_power_of_two() && (4096..=1 << 30).contains(&bytes) {
        Ok(bytes)
    } else {
        Err("not a power of two from 4096 to 1073741824".into())
    }
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: RunArgs) -> Result<(), RunError> {
    let boot_id = read_file(Path::new("/proc/sys/kernel/random/boot_id"))?.trim().to_owned();
    let node = match &args.node {
        Some(node) => node.clone(),
        None => nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
    };
    let identity = Identity { cluster: args.cluster.clone(), node, boot_id: boot_id.clone() };
    // Before anything that must be ended in order is started.
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Start)?;
    let credentials = Arc::<credentials::Status>::default();
    let sink = sink(&args, &identity, &credentials)?;
    let masking = args.containers.mask.as_deref().map(Rules::load).transpose()?;
    let lookup = args.containers.lookup(&args.wanted_variable).await;
    let (made, containers_made) = container::made();
    container::follow_events(&lookup, &made);
    let (keeper, absence) = Keeper::open(&args.state_file, &boot_id);

    let wake = Arc::new(EventFd::new().map_err(|errno| RunError::Start(errno.into()))?);
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = args.containers.runtime(&args.check.check_root, lookup.client().map(|client| client.path.as_path()));
    let (sources, pipeline, hooks) = start(&args, boot_id, runtime, &wake, &stop)?;
    let pipeline = pipeline.with_containers(made);

    let (sender, batches) = mpsc::channel(QUEUE);
    let thread_stop = Arc::clone(&stop);
    let pulse = Arc::new(quiet::Pulse::default());
    let alive = Arc::downgrade(&pulse);
    let thread = thread::Builder::new()
        .name("pipeline".into())
        .spawn(move || drive::run(sources, pipeline, &absence, &sender, &thread_stop, &pulse))
        .map_err(RunError::Start)?;
    let active: Vec<&str> = hooks.iter().filter(|hook| hook.active).map(|hook| hook.name.as_str()).collect();
    tracing::info!(sources = ?active, "capturing");
    let hooks = watch::Sender::new(hooks);
    let quiet = quiet::Supervisor::start(&args.quiet, alive, hooks.clone());

    let check =
        check::start(args.check.clone(), args.containers.cri_socket.clone(), hooks.subscribe(), identity.node.clone());
    let telemetry = Arc::new(Telemetry::new(
        hooks.subscribe(),
        check.clone(),
        matches!(sink, Sink::Correlator(_)).then_some(credentials),
    ));
    if let Some(address) = args.metrics_listen {
        telemetry::serve(address, Arc::clone(&telemetry))
            .await
            .map_err(|error| RunError::Usage(format!("--metrics-listen {address}: {error}")))?;
    }
    let named = container::start_naming(batches, containers_made, Naming::new(lookup).with_masking(masking));
    let health = Health { hooks: hooks.subscribe(), check };
    let delivery = uplink::deliver(named, sink, identity, health, telemetry, keeper);
    tokio::pin!(delivery);
    let early = tokio::select! {
        result = &mut delivery => Some(result),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    tracing::info!("stopping: handing over what was captured");
    if let Some(quiet) = quiet {
        quiet.stop();
    }
    stop.store(true, Ordering::Relaxed);
    let _ = wake.write(1);
    let result = match early {
        Some(result) => result,
        None => delivery.await,
    };
    if thread.join().is_err() {
        tracing::error!("the pipeline thread ended by a panic; this is a defect");
    }
    Ok(result?)
}

fn read_file(path: &Path) -> Result<String, RunError> {
    fs::read_to_string(path).map_err(|error| RunError::File { path: path.to_owned(), error })
}

/// Every source that works here, the processes that are there already, and each source's status, told now.
fn start(
    args: &RunArgs,
    boot_id: String,
    (runtime, service_pid): (Runtime, Option<u32>),
    wake: &Arc<EventFd>,
    stop: &Arc<AtomicBool>,
) -> Result<(Sources, Pipeline, Vec<HookStatus>), RunError> {
    let mut hooks = Vec::new();
    // Audit first: its records are then never older than the lineage that explains them.
    let audit = match audit::start(Arc::clone(wake), Arc::clone(stop)) {
        Ok(reader) => {
            hooks.push(capture::active("audit/netlink", &format!("receive buffer {} bytes", reader.receive_buffer)));
            Some(reader)
        }
        Err(error) => {
            hooks.push(capture::inactive("audit/netlink", error));
            None
        }
    };
    let own_cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let hierarchy = Hierarchy::find(Path::new("/sys/fs/cgroup"), &own_cgroups);
    match &hierarchy {
        None => tracing::warn!(
            "no cgroup hierarchy below /sys/fs/cgroup (v2, or v1 of pids, memory, devices or cpu): processes cannot be \
             attributed to containers"
        ),
        Some(Hierarchy { v1: Some(V1 { controller, .. }), root }) => {
            tracing::info!(controller, root = %root.display(), "containers are told apart by a cgroup v1 hierarchy");
        }
        Some(_) => {}
    }
    let mut cgroups = Cgroups::new(hierarchy.clone());
    let scope = kernel::Scope::find(hierarchy.as_ref(), service_pid, &args.scope_cgroup);
    match &scope.unbounded {
        Some(reason) => {
            tracing::info!(reason, "every process of this host is followed, not only pods and their runtime")
        }
        None => {
            tracing::info!(pods = ?scope.pods, others = ?scope.others, "processes below these cgroups are followed")
        }
    }
    // The runtime service can have a mount namespace of its own, which is no container's (OpenShift's kubens).
    let host = namespace("/proc/1/ns/mnt").or_else(|| namespace("/proc/self/ns/mnt"));
    let of_service = service_pid.and_then(|pid| namespace(&format!("/proc/{pid}/ns/mnt")));
    let mut host_mounts: Vec<u64> = host.into_iter().chain(of_service).collect();
    host_mounts.dedup();
    let options = kernel::Options {
        hook: args.verdict_hook,
        verdict_ring_bytes: args.verdict_ring_bytes,
        lineage_ring_bytes: args.lineage_ring_bytes,
        kernel_processes: args.kernel_processes,
        host_mount_namespaces: host_mounts.clone(),
        scope: scope.clone(),
        v1: hierarchy.as_ref().and_then(|hierarchy| hierarchy.v1.clone()),
        wanted: args.wanted_variable.clone(),
    };
    let epoch = clock::boot_ns();
    let mut kernel = kernel::KernelCapture::start(&options);
    // From here on process events wait in the ring, and audit records in their queue.
    let lineage_since_ns = clock::boot_ns();
    let runtime = match service_pid {
        Some(pid) => {
            let path = hierarchy.as_ref().and_then(|hierarchy| hierarchy.path_of(pid));
            runtime.served_by(pid, path.map(|path| (cgroups.by_path(&path, epoch).0, path)))
        }
        None => runtime,
    };
    let mut processes = Processes::new(host_mounts)
        .with_runtime(runtime)
        .with_host_pids(namespace("/proc/1/ns/pid").unwrap_or(0))
        .with_proc("/proc".into());
    // Beside the note of what was handed over.
    let kept_path = args.state_file.with_file_name("lineage.state");
    let kept = Kept::read(&kept_path, &boot_id);
    read_proc(Path::new("/proc"), &kept, &mut processes, &mut |text| {
        let Some(path) = hierarchy.as_ref().and_then(|hierarchy| hierarchy.path_in(text)) else {
            return (0, None, scope.unbounded.is_some());
        };
        let (cgroup_id, container) = cgroups.by_path(path, epoch);
        (cgroup_id, container, scope.contains(path))
    });
    match &mut kernel {
        Ok(capture) => {
            capture.open(processes.rooted(), processes.namespaces());
            if processes.has_shims()
                && let Some(count) = capture.count_connections()
            {
                processes.tell_by_streams(Streams::new(Box::new(count), "/proc".into()));
            }
            match capture.count_losses() {
                Ok(count) => processes.mind_gaps(Gaps::new(Box::new(count), epoch)),
                Err(error) => tracing::warn!(error, "lineage is called observed where events of it may have been lost"),
            }
            hooks.extend(capture.hooks.iter().cloned());
        }
        Err(error) => hooks.push(capture::inactive("ebpf", error)),
    }
    // Without audit, verdicts are seen only from now on.
    let since_boot_ns = if audit.is_some() { lineage_since_ns } else { clock::boot_ns() };
    tell(&hooks)?;
    let own = std::process::id();
    let own = processes.at(own, u64::MAX, u64::MAX).and_then(|process| process.root.clone());
    let own = own.filter(|_| !args.containers.report_own);
    if let Some(own) = &own {
        tracing::info!(container = %own.container, "what this container does by itself is not reported (--report-own)");
    }
    let keeping = Keeping::start(kept_path, boot_id.clone()).map_err(RunError::Start)?;
    let origins = Origins { boot_id: boot_id.into(), epoch };
    let mut pipeline = Pipeline::new(origins, processes, cgroups)
        .with_keeping(keeping)
        .with_reconcile(Reconcile::new("/proc".into()))
        .without_own(own);
    let hooked = kernel.as_ref().is_ok_and(kernel::KernelCapture::sees_verdicts);
    if hooked != audit.is_some() {
        pipeline = pipeline.with_one_source();
    }
    Ok((Sources { kernel: kernel.ok(), audit, wake: Arc::clone(wake), since_boot_ns }, pipeline, hooks))
}

/// Says what works and what follows from what does not. An error when nothing does.
fn tell(hooks: &[HookStatus]) -> Result<(), RunError> {
    for HookStatus { name, active, reason } in hooks {
        if *active {
            tracing::info!(hook = name, detail = reason, "works");
        } else {
            tracing::warn!(hook = name, reason, "does not work here");
        }
    }
    let works = |kind: &str| hooks.iter().any(|hook| hook.active && hook.name.starts_with(kind));
    if !works("") {
        let reasons: Vec<String> = hooks.iter().map(|hook| format!("{}: {}", hook.name, hook.reason)).collect();
        return Err(RunError::NoSource(reasons.join("; ")));
    }
    if !works("verdict/") && works("audit/") {
        tracing::warn!("verdicts come from audit alone: without thread, and with a time that is early by up to 10 ms");
    }
    if !works("verdict/") && !works("audit/") {
        tracing::warn!("no source of verdicts works: only process starts and ends are reported");
    }
    if !works("lineage/") {
        tracing::warn!("process starts are not seen: records have no session, and attempts no outcome");
    }
    Ok(())
}

/// The inode number in a namespace link such as `mnt:[4026531841]`.
fn namespace(link: &str) -> Option<u64> {
    let target = fs::read_link(link).ok()?;
    target.to_str()?.strip_suffix(']')?.rsplit('[').next()?.parse().ok()
}

fn sink(args: &RunArgs, identity: &Identity, status: &Arc<credentials::Status>) -> Result<Sink, RunError> {
    let urls = args.correlator.clone();
    if urls.is_empty() {
        return Ok(Sink::Stdout);
    }
    if args.cluster.is_empty() {
        return Err(RunError::Usage("--cluster is needed to send records to a correlator".into()));
    }
    let credentials = match (&args.tls_ca, &args.tls_cert, &args.tls_key, args.plaintext) {
        (None, None, None, true) => {
            if let Some(url) = urls.iter().find(|url| !is_loopback(url)) {
                return Err(RunError::Usage(format!(
                    "--plaintext works to a loopback address only, and {url} is none"
                )));
            }
            None
        }
        (Some(ca), None, None, false)
            if args.enrol.enrol.is_some() && urls.iter().all(|url| url.starts_with("https://")) =>
        {
            let node = NodeIdentity { cluster: identity.cluster.clone(), node: identity.node.clone() };
            let current = args.enrol.start(ca.clone(), node, Arc::clone(status));
            Some(current.map_err(|error| RunError::Usage(error.to_string()))?)
        }
        (Some(ca), Some(certificate), Some(key), false) if urls.iter().all(|url| url.starts_with("https://")) => {
            let files = TlsFiles { ca: ca.clone(), certificate: certificate.clone(), key: key.clone() };
            let current = credentials::follow(files, Arc::clone(status));
            Some(current.map_err(|error| RunError::Usage(format!("--tls-ca, --tls-cert, --tls-key: {error}")))?)
        }
        _ => {
            return Err(RunError::Usage(
                "an https:// correlator needs --tls-ca, and --enrol or --tls-cert and --tls-key; a correlator on loopback may be \
                 spoken to with http:// and --plaintext"
                    .into(),
            ));
        }
    };
    let usual = if args.spool_dir.is_some() { 1 << 30 } else { 16 << 20 };
    let spool = SpoolConfig {
        dir: args.spool_dir.clone(),
        most_bytes: args.spool_bytes.unwrap_or(usual),
        when_full: args.spool_full,
    };
    Ok(Sink::Correlator(Box::new(StreamConfig { urls, credentials, spool })))
}

fn is_loopback(url: &str) -> bool {
    let Some(authority) = url.strip_prefix("http://").and_then(|rest| rest.split('/').next()) else { return false };
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::{is_loopback, ring_bytes};

    #[test]
    fn only_loopback_addresses_are_loopback() {
        for url in ["http://127.0.0.1:1", "http://[::1]:80/", "http://localhost:9"] {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["https://127.0.0.1:1", "http://10.0.0.1:1", "http://127.0.0.1.example:1", "http://", "127.0.0.1"] {
            assert!(!is_loopback(url), "{url}");
        }
    }

    #[test]
    fn a_ring_is_a_power_of_two() {
        assert_eq!(ring_bytes("4194304"), Ok(4 << 20));
        assert!(ring_bytes("5000").is_err() && ring_bytes("2048").is_err() && ring_bytes("x").is_err());
    }
}
