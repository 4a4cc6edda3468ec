//! `serve`: intakes → journal → join → outlet, until told to stop.

use crate::enrol::{EnrolArgs, EnrolmentError, StartError};
use crate::intake::agents::{Agents, AgentsError};
use crate::intake::pods::{self, PodLogs, PodLogsError};
use crate::intake::stdin::{self, StdinError};
use crate::intake::trail::{Trail, TrailError, TrailOptions};
use crate::intake::webhook::{Limits, Webhook, WebhookError};
use crate::intake::{Budget, Kind, SpoIntake, file};
use crate::join::{Config, DEFAULT_MEMORY, Join, Route};
use crate::joining::{Joining, JoiningError};
use crate::journal::{self, CheckpointError, Journal, JournalOptions, Opened, Signer};
use crate::listen::{Denied, DeniedError, Door, Limits as DoorLimits, Tls, TlsError, TlsFiles};
use crate::outlet::{Format, Outlet, OutletError};
use crate::store::{DiskAttic, Limits as StoreLimits, Store, StoreError};
use crate::telemetry::{Metrics, Telemetry, TelemetryError};
use clap::Args;
use seclog_journal::{LogError, Recovery};
use seclog_masking::{Rules, RulesError};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long intakes may take to end.
const DRAIN_WITHIN: Duration = Duration::from_secs(15);
/// Of the journal's segments; smaller where the journal is: what is deleted is deleted in these.
const SEGMENT_BYTES: u64 = 64 << 20;
const SEGMENTS: u64 = 16;
const SMALLEST_JOURNAL: u64 = 16 << 20;
const SECOND_NS: u64 = 1_000_000_000;
const SMALLEST_STORE: u64 = 1 << 20;

#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Name of the hosted cluster that this correlator serves.
    #[arg(long)]
    pub cluster: String,
    /// Mask secrets in what was asked for, by the rules that the agents have (--mask): `default`, or a file.
    #[arg(long, value_name = "default|FILE")]
    pub mask: Option<String>,
    /// Address for the agents' gRPC streams; port 0 picks one.
    #[arg(long, value_name = "ADDR")]
    pub agents_listen: Option<SocketAddr>,
    /// Address for the API server's audit webhook (HTTPS); port 0 picks one.
    #[arg(long, value_name = "ADDR", requires = "tls_cert")]
    pub audit_webhook_listen: Option<SocketAddr>,
    /// Certificate chain of this server, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_key", requires = "client_ca")]
    pub tls_cert: Option<PathBuf>,
    /// Key of this server, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Authority that signs the certificates of agents and API servers, PEM. Clients without one are refused.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub client_ca: Option<PathBuf>,
    /// List of nodes, keys and certificates that are let in no more, one a line: node NAME, key SHA256, serial HEXADECIMAL.
    #[arg(long, value_name = "FILE", requires = "client_ca")]
    pub denied: Option<PathBuf>,
    /// Agents speak plain text. Only on a loopback address.
    #[arg(long)]
    pub plaintext: bool,
    /// Audit log file of an API server to follow, with its backups; or a directory: its audit.log, and that of each directory
    /// in it. Repeatable.
    #[arg(long, value_name = "PATH")]
    pub audit_log: Vec<PathBuf>,
    /// Take audit events from standard input: oc logs -f … -c audit-logs | seclog-correlator serve --audit-stdin …
    #[arg(long)]
    pub audit_stdin: bool,
    /// Follow the containers audit-logs of all API server pods in this namespace, a hosted control plane's, through the
    /// Kubernetes API.
    #[arg(long, value_name = "NAMESPACE")]
    pub audit_pods: Option<String>,
    /// For that, of the management cluster [default: the pod's own service account].
    #[arg(long, value_name = "FILE", requires = "audit_pods")]
    pub audit_pods_kubeconfig: Option<PathBuf>,
    /// Log file of SPO's JSON enricher to follow, with its backups; or a directory: its audit.log, and that of each directory
    /// in it, one a node. For clusters without agents. Repeatable.
    #[arg(long, value_name = "PATH")]
    pub spo_log: Vec<PathBuf>,
    /// Take lines of SPO's JSON enricher from standard input: oc logs -f … -c json-enricher | seclog-correlator serve
    /// --spo-stdin …
    #[arg(long, conflicts_with = "audit_stdin")]
    pub spo_stdin: bool,
    /// Directory of the journal: what was acknowledged is there. A disk of its own, that survives the pod.
    #[arg(long, value_name = "DIR", env = "SECLOG_JOURNAL")]
    pub journal: PathBuf,
    /// Bytes of the journal. Beyond, its oldest segments are deleted, but never what was not joined.
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 30, value_parser = clap::value_parser!(u64).range(SMALLEST_JOURNAL..))]
    pub journal_bytes: u64,
    /// Ed25519 key (PKCS#8, PEM) that signs checkpoints of the journal; without it there are none. See docs/delivery.md.
    #[arg(long, value_name = "FILE")]
    pub checkpoint_key: Option<PathBuf>,
    /// How often a checkpoint is written, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub checkpoint_every: u64,
    /// Directory of the store, which `sessions`, `show`, `tail` and `findings` read [default: store in the journal's
    /// directory].
    #[arg(long, value_name = "DIR", env = "SECLOG_STORE")]
    pub store: Option<PathBuf>,
    /// Bytes of the store. Beyond, the sessions that were told of longest ago are deleted.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 30, value_parser = clap::value_parser!(u64).range(SMALLEST_STORE..))]
    pub store_bytes: u64,
    /// Sessions that were told of longer ago are deleted from the store, days.
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    pub store_days: u64,
    /// Memory for sessions that may still change, bytes. What the programs of the longest quiet ones did waits on the store's disk
    /// when it takes more than a quarter of that, in a file of at most as many bytes as the store; requests and processes for
    /// which there is no room are turned away and counted.
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MEMORY)]
    pub join_memory: usize,
    /// Where to write sessions; a file is appended to, - is standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
    #[arg(long, value_enum, default_value = "json")]
    pub format: Format,
    /// Largest body of the audit webhook, bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    pub webhook_body_limit: usize,
    #[command(flatten)]
    pub enrol: EnrolArgs,
    /// Serve /metrics, /healthz and /readyz here; port 0 picks one.
    #[arg(long, value_name = "ADDR")]
    pub metrics_listen: Option<SocketAddr>,
    /// Connections of agents at once. Those beyond are told to come again.
    #[arg(long, value_name = "COUNT", default_value_t = 2048)]
    pub agent_connections: usize,
    /// Memory for what peers sent and is not yet handed on, all intakes together, bytes. Who would exceed it is told to
    /// come again.
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20)]
    pub intake_memory: usize,
    /// Where bytes that should have been audit events are kept [default: quarantine in the journal's directory].
    #[arg(long, value_name = "DIR")]
    pub quarantine: Option<PathBuf>,
    /// How long after an audit event came it may come by another route, seconds. Events older than this are late: they open
    /// no session as if it went on now.
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    pub audit_horizon: u64,
    /// How late audit events may come, seconds: so long a process that no request explains waits for one.
    #[arg(long, value_name = "SECONDS", default_value_t = 45)]
    pub audit_lateness: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(
        "nothing to take in: give --agents-listen, --audit-webhook-listen, --audit-log, --audit-stdin, --audit-pods, --spo-log or \
         --spo-stdin"
    )]
    Nothing,
    #[error("--agents-listen needs --tls-cert, --tls-key and --client-ca, or --plaintext on a loopback address")]
    NoTransport,
    #[error("the audit webhook needs --tls-cert, --tls-key and --client-ca")]
    NoTls,
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("--denied: {0}")]
    Denied(#[from] DeniedError),
    #[error(transparent)]
    Agents(#[from] AgentsError),
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    #[error("--enrol-listen needs --tls-cert, --tls-key and --client-ca")]
    NoEnrolTls,
    #[error(transparent)]
    Enrol(#[from] StartError),
    #[error(transparent)]
    Enrolment(#[from] EnrolmentError),
    #[error(transparent)]
    Outlet(#[from] OutletError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    #[error("cannot open the journal: {0}")]
    Journal(#[from] LogError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("cannot open the store: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Masking(#[from] RulesError),
    #[error(transparent)]
    Joining(#[from] JoiningError),
    #[error(transparent)]
    Trail(#[from] TrailError),
    #[error(transparent)]
    PodLogs(#[from] PodLogsError),
}

impl ServeArgs {
    fn trail(&self) -> TrailOptions {
        let mut routes = Vec::new();
        routes.extend((!self.audit_log.is_empty()).then_some(Route::File));
        routes.extend(self.audit_webhook_listen.map(|_| Route::Webhook));
        routes.extend(self.audit_stdin.then_some(Route::Stdin));
        routes.extend(self.audit_pods.as_ref().map(|_| Route::PodLog));
        let quarantine = self.quarantine.clone().unwrap_or_else(|| self.journal.join("quarantine"));
        let horizon_ns = self.audit_horizon.saturating_mul(SECOND_NS);
        TrailOptions { horizon_ns, ..TrailOptions::new(routes, quarantine) }
    }

    fn takes_more_than_input(&self) -> bool {
        self.agents_listen.is_some()
            || self.audit_webhook_listen.is_some()
            || !self.audit_log.is_empty()
            || !self.spo_log.is_empty()
            || self.audit_pods.is_some()
    }

    fn has_no_intake(&self) -> bool {
        !self.takes_more_than_input() && !self.audit_stdin && !self.spo_stdin
    }
}

/// Runs until SIGTERM or SIGINT. True: everything ended well.
pub fn serve(args: &ServeArgs) -> Result<bool, ServeError> {
    let runtime = Runtime::new()?;
    let result = runtime.block_on(run(args));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn run(args: &ServeArgs) -> Result<bool, ServeError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let outlet = Outlet::open(&args.output, args.format)?;
    let telemetry = Telemetry::default();
    let budget = Budget::new(args.intake_memory);
    budget.register(&telemetry);
    show_metrics(args, &telemetry)?;
    let ready = telemetry.readiness("intake");
    if args.has_no_intake() {
        return Err(ServeError::Nothing);
    }
    let opened = open_journal(args, &telemetry)?;
    let (journal, writer) = (opened.journal, opened.writer);
    let mut config = Config::new(&args.cluster);
    config.masking = args.mask.as_deref().map(Rules::load).transpose()?.map(Arc::new);
    config.audit_lateness_ns = args.audit_lateness.saturating_mul(SECOND_NS);
    config.set_memory(args.join_memory);
    let mut join = Join::new(config);
    let store = open_store(args, &telemetry)?;
    join.set_attic(Box::new(DiskAttic::open(&store_directory(args), args.store_bytes)?));
    let mut joining = Joining::start(join, opened.feed, opened.checkpoints, outlet, store, &args.journal)?;
    let (stop, stopped) = watch::channel(false);
    let (mut intakes, mut input) = Intakes::start(args, &journal, &budget, &telemetry, stopped).await?;
    ready.ready();

    let mut fine = true;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
        failed = intakes.failed() => {
            tracing::error!("{failed}");
            fine = false;
        }
        () = joining.ended() => fine = false,
        ended = &mut input => match ended {
            Ok(Ok(())) => tracing::info!("standard input has ended: draining"),
            Ok(Err(error)) => {
                tracing::error!("{error}");
                fine = false;
            }
            Err(error) => {
                tracing::error!("standard input is no longer read: {error}");
                fine = false;
            }
        },
    }
    ready.not_ready("draining");
    let _ = stop.send(true);
    input.abort();
    intakes.drain().await;
    if let Err(error) = journal.close().await {
        tracing::warn!("the stop is not in the journal: {error}");
    }
    drop(journal);
    // The join has all, writes what it still holds, and ends.
    joining.finish().await?;
    if tokio::task::spawn_blocking(move || writer.join()).await.is_ok_and(|ended| ended.is_err()) {
        tracing::error!("the journal's thread ended by a panic; this is a defect");
        fine = false;
    }
    tracing::info!("done");
    Ok(fine)
}

fn open_journal(args: &ServeArgs, telemetry: &Telemetry) -> Result<Opened, ServeError> {
    let signer = args.checkpoint_key.as_deref().map(|path| Signer::from_file(path, &args.cluster)).transpose()?;
    let options = JournalOptions {
        dir: args.journal.clone(),
        most_bytes: args.journal_bytes,
        segment_bytes: (args.journal_bytes / SEGMENTS).min(SEGMENT_BYTES),
        checkpoint_every: Duration::from_secs(args.checkpoint_every),
    };
    let opened = Journal::open(options, signer, telemetry)?;
    let Recovery { torn_bytes, damaged, lost_end } = opened.recovery;
    if !opened.recovery.is_clean() {
        tracing::warn!(
            torn_bytes,
            damaged,
            lost_end,
            "the journal did not end as it was left: a torn tail was never acknowledged; damage is stepped over and told"
        );
    }
    Ok(opened)
}

fn store_directory(args: &ServeArgs) -> PathBuf {
    args.store.clone().unwrap_or_else(|| args.journal.join("store"))
}

fn open_store(args: &ServeArgs, telemetry: &Telemetry) -> Result<Store, ServeError> {
    let dir = store_directory(args);
    let age_ns = args.store_days.saturating_mul(86_400).saturating_mul(SECOND_NS);
    let store = Store::open(&dir, &args.cluster, StoreLimits { bytes: args.store_bytes, age_ns })?;
    store.register(telemetry);
    Ok(store)
}

/// Until the process ends: a drain can be watched.
fn show_metrics(args: &ServeArgs, telemetry: &Telemetry) -> Result<(), ServeError> {
    let Some(addr) = args.metrics_listen else { return Ok(()) };
    let metrics = Metrics::bind(addr, telemetry.clone())?;
    tracing::info!(addr = %metrics.addr, "listening for metrics");
    tokio::spawn(async move {
        if let Err(error) = metrics.serve().await {
            tracing::error!("metrics are no longer served: {error}");
        }
    });
    Ok(())
}

/// Takes lines from standard input; returns only where nothing else comes in.
async fn take_input(kind: Option<Kind>, more: bool) -> Result<(), StdinError> {
    let taken = kind.is_some();
    if let Some(kind) = kind {
        stdin::follow(tokio::io::stdin(), kind).await?;
        if more {
            tracing::warn!("standard input has ended: nothing more comes that way");
        }
    }
    if !taken || more {
        std::future::pending::<()>().await;
    }
    Ok(())
}

/// Ends with standard input, where that is all there is.
type Input = tokio::task::JoinHandle<Result<(), StdinError>>;

struct Intakes {
    servers: JoinSet<Result<(), ServeError>>,
    files: Vec<JoinHandle<()>>,
    stop_files: Arc<AtomicBool>,
}

impl Intakes {
    async fn start(
        args: &ServeArgs,
        journal: &Journal,
        budget: &Budget,
        telemetry: &Telemetry,
        stop: watch::Receiver<bool>,
    ) -> Result<(Self, Input), ServeError> {
        let tls = match (&args.tls_cert, &args.tls_key, &args.client_ca) {
            (Some(cert), Some(key), Some(client_ca)) => {
                let tls = Tls::open(TlsFiles { cert: cert.clone(), key: key.clone(), client_ca: client_ca.clone() })?;
                if let Some(denied) = &args.denied {
                    tls.deny(Denied::open(denied)?);
                }
                tls.register(telemetry);
                tls.follow(stop.clone());
                Some(tls)
            }
            _ => None,
        };
        let mut servers = JoinSet::new();
        let trail = Trail::open(journal.clone(), args.trail(), telemetry)?;
        servers.spawn({
            let (trail, stop) = (trail.clone(), stop.clone());
            async move {
                trail.watch(stop).await;
                Ok(())
            }
        });
        servers.spawn({
            let (journal, dir, stop) = (journal.clone(), args.journal.clone(), stop.clone());
            async move {
                journal::follow_exports(journal, dir, stop).await;
                Ok(())
            }
        });
        if let Some(addr) = args.agents_listen {
            let limits = DoorLimits { connections: args.agent_connections, ..DoorLimits::default() };
            let door = match (&tls, args.plaintext) {
                (_, true) => Door::plaintext("agents", limits, budget),
                (Some(tls), false) => Door::mutual("agents", Arc::clone(tls), limits, budget),
                (None, false) => return Err(ServeError::NoTransport),
            };
            door.register(telemetry);
            let agents = Agents::bind(addr, &args.cluster, door, journal.clone(), stop.clone()).await?;
            tracing::info!(addr = %agents.addr, "listening for agents");
            servers.spawn(async move { Ok(agents.serve().await?) });
        }
        if args.enrol.enrol_listen.is_some() {
            let tls = tls.as_ref().ok_or(ServeError::NoEnrolTls)?;
            let enrolment = args.enrol.start(&args.cluster, tls, journal, budget, telemetry, &stop).await?;
            tracing::info!(addr = %enrolment.addr, "listening for enrolment");
            servers.spawn(async move { Ok(enrolment.serve().await?) });
        }
        if let Some(addr) = args.audit_webhook_listen {
            let tls = tls.ok_or(ServeError::NoTls)?;
            let limits = Limits { body: args.webhook_body_limit, ..Limits::default() };
            let webhook = Webhook::bind(addr, tls, limits, &args.cluster, trail.clone(), budget, stop.clone())?;
            tracing::info!(addr = %webhook.addr, "listening for audit webhook");
            servers.spawn(async move { Ok(webhook.serve().await?) });
        }
        let stop_files = Arc::new(AtomicBool::new(false));
        let mut files = Vec::new();
        for path in &args.audit_log {
            files.push(file::follow(path.clone(), Kind::Audit(trail.clone()), Arc::clone(&stop_files))?);
        }
        let spo = SpoIntake::new(journal.clone(), telemetry);
        for path in &args.spo_log {
            files.push(file::follow(path.clone(), Kind::Spo(spo.clone()), Arc::clone(&stop_files))?);
        }
        if let Some(namespace) = &args.audit_pods {
            let client = pods::client(args.audit_pods_kubeconfig.as_deref()).await?;
            let (logs, trail, stop) = (PodLogs::of(namespace), trail.clone(), stop.clone());
            tracing::info!(namespace, "following the logs of API server pods");
            servers.spawn(async move {
                pods::follow(client, logs, trail, stop).await;
                Ok(())
            });
        }
        let input = match (args.audit_stdin, args.spo_stdin) {
            (true, _) => Some(Kind::Audit(trail)),
            (false, true) => Some(Kind::Spo(spo)),
            (false, false) => None,
        };
        let input = tokio::spawn(take_input(input, args.takes_more_than_input()));
        Ok((Self { servers, files, stop_files }, input))
    }

    /// An intake that ended by itself, and why. Waits for ever while all go on.
    async fn failed(&mut self) -> String {
        match self.servers.join_next().await {
            Some(Ok(Ok(()))) => "an intake ended".to_owned(),
            Some(Ok(Err(error))) => error.to_string(),
            Some(Err(error)) => format!("an intake failed: {error}"),
            None => std::future::pending().await,
        }
    }

    async fn drain(mut self) {
        self.stop_files.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + DRAIN_WITHIN;
        while let Ok(Some(ended)) = tokio::time::timeout_at(deadline.into(), self.servers.join_next()).await {
            if let Ok(Err(error)) = ended {
                tracing::warn!("{error}");
            }
        }
        self.servers.shutdown().await;
        for follower in self.files {
            let waited = tokio::task::spawn_blocking(move || follower.join());
            match tokio::time::timeout_at(deadline.into(), waited).await {
                Ok(Ok(Ok(()))) => {}
                _ => tracing::warn!("an audit log could not be read to its end in time"),
            }
        }
    }
}
