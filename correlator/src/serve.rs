//! `serve`: intakes → queue → join → outlet, until told to stop.

use crate::intake::agents::{Agents, AgentsError, Transport};
use crate::intake::webhook::{Limits, Webhook, WebhookError};
use crate::intake::{self, Inputs, Queue, TlsFiles, file};
use crate::join::{Config, Counters, Input, Join};
use crate::outlet::{Format, Outlet, OutletError};
use clap::Args;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How often the join learns the time of day.
const TICK: Duration = Duration::from_millis(250);
/// How long intakes may take to end.
const DRAIN_WITHIN: Duration = Duration::from_secs(15);
/// How often it is told that the join turned something away.
const TELL_EVERY: Duration = Duration::from_secs(60);
const SECOND_NS: u64 = 1_000_000_000;

#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Name of the hosted cluster that this correlator serves.
    #[arg(long)]
    pub cluster: String,
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
    /// Agents speak plain text. Only on a loopback address.
    #[arg(long)]
    pub plaintext: bool,
    /// Audit log file of the API server to follow. Repeatable.
    #[arg(long, value_name = "FILE")]
    pub audit_log: Vec<PathBuf>,
    /// Where to write sessions; a file is appended to, - is standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
    #[arg(long, value_enum, default_value = "json")]
    pub format: Format,
    /// Largest body of the audit webhook, bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    pub webhook_body_limit: usize,
    /// How late audit events may come, seconds: so long a process that no request explains waits for one.
    #[arg(long, value_name = "SECONDS", default_value_t = 45)]
    pub audit_lateness: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("nothing to take in: give --agents-listen, --audit-webhook-listen or --audit-log")]
    Nothing,
    #[error("--agents-listen needs --tls-cert, --tls-key and --client-ca, or --plaintext on a loopback address")]
    NoTransport,
    #[error("the audit webhook needs --tls-cert, --tls-key and --client-ca")]
    NoTls,
    #[error(transparent)]
    Agents(#[from] AgentsError),
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    #[error(transparent)]
    Outlet(#[from] OutletError),
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    #[error("the join's thread ended by a panic; the sessions that it held are lost")]
    JoinPanicked,
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
    let (queue, inputs) = intake::queue();
    let (stop, stopped) = watch::channel(false);
    let mut intakes = Intakes::start(args, &queue, stopped).await?;
    drop(queue);
    let mut joining = spawn_join(args, inputs, outlet)?;

    let mut fine = true;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
        _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
        failed = intakes.failed() => {
            tracing::error!("{failed}");
            fine = false;
        }
        () = joining.ended() => fine = false,
    }
    let _ = stop.send(true);
    intakes.drain().await;
    // Every sender is gone by now: the join has all, writes what it still holds, and ends.
    joining.finish().await?;
    tracing::info!("done");
    Ok(fine)
}

struct Intakes {
    servers: JoinSet<Result<(), ServeError>>,
    files: Vec<JoinHandle<crate::audit::FeedCounters>>,
    stop_files: Arc<AtomicBool>,
}

impl Intakes {
    async fn start(args: &ServeArgs, queue: &Queue, stop: watch::Receiver<bool>) -> Result<Self, ServeError> {
        if args.agents_listen.is_none() && args.audit_webhook_listen.is_none() && args.audit_log.is_empty() {
            return Err(ServeError::Nothing);
        }
        let tls = match (&args.tls_cert, &args.tls_key, &args.client_ca) {
            (Some(cert), Some(key), Some(client_ca)) => {
                Some(TlsFiles { cert: cert.clone(), key: key.clone(), client_ca: client_ca.clone() })
            }
            _ => None,
        };
        let mut servers = JoinSet::new();
        if let Some(addr) = args.agents_listen {
            let transport = match (&tls, args.plaintext) {
                (_, true) => Transport::Plaintext,
                (Some(tls), false) => Transport::Tls(tls.clone()),
                (None, false) => return Err(ServeError::NoTransport),
            };
            let agents = Agents::bind(addr, &args.cluster, transport, queue.clone(), stop.clone()).await?;
            tracing::info!(addr = %agents.addr, "listening for agents");
            servers.spawn(async move { Ok(agents.serve().await?) });
        }
        if let Some(addr) = args.audit_webhook_listen {
            let tls = tls.as_ref().ok_or(ServeError::NoTls)?;
            let limits = Limits { body: args.webhook_body_limit, ..Limits::default() };
            let webhook = Webhook::bind(addr, tls, limits, queue.clone(), stop)?;
            tracing::info!(addr = %webhook.addr, "listening for audit webhook");
            servers.spawn(async move { Ok(webhook.serve().await?) });
        }
        let stop_files = Arc::new(AtomicBool::new(false));
        let mut files = Vec::new();
        for path in &args.audit_log {
            files.push(file::follow(path.clone(), queue.clone(), Arc::clone(&stop_files))?);
        }
        Ok(Self { servers, files, stop_files })
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
                Ok(Ok(Ok(counters))) => tracing::info!(
                    events = counters.events,
                    access = counters.access,
                    irrelevant = counters.irrelevant_total(),
                    malformed = counters.malformed,
                    "audit log followed"
                ),
                _ => tracing::warn!("an audit log could not be read to its end in time"),
            }
        }
    }
}

/// The thread that joins and writes.
struct Joining {
    thread: JoinHandle<Result<(), OutletError>>,
    alive: watch::Receiver<()>,
}

fn spawn_join(args: &ServeArgs, inputs: Inputs, outlet: Outlet) -> Result<Joining, ServeError> {
    let mut config = Config::new(&args.cluster);
    config.audit_lateness_ns = args.audit_lateness.saturating_mul(SECOND_NS);
    let (living, alive) = watch::channel(());
    let runtime = Handle::current();
    let thread = std::thread::Builder::new().name("join".to_owned()).spawn(move || {
        let _living = living;
        join_and_write(Join::new(config), &runtime, inputs, outlet)
    })?;
    Ok(Joining { thread, alive })
}

fn join_and_write(mut join: Join, runtime: &Handle, mut inputs: Inputs, mut outlet: Outlet) -> Result<(), OutletError> {
    outlet.write(&join.apply(Input::Now(intake::now())))?;
    let mut next_tick = Instant::now() + TICK;
    let mut told = (Instant::now(), join.counters());
    loop {
        let received = runtime.block_on(async { tokio::time::timeout_at(next_tick.into(), inputs.recv()).await });
        match received {
            Ok(Some(batch)) => {
                for input in batch {
                    outlet.write(&join.apply(input))?;
                }
                outlet.write_findings(&join.take_findings())?;
            }
            Ok(None) => break,
            Err(_) => {}
        }
        if Instant::now() >= next_tick {
            outlet.write(&join.apply(Input::Now(intake::now())))?;
            outlet.write_findings(&join.take_findings())?;
            next_tick = Instant::now() + TICK;
        }
        if told.0.elapsed() >= TELL_EVERY {
            let counters = join.counters();
            tell_refusals(&told.1, &counters);
            told = (Instant::now(), counters);
        }
    }
    outlet.write(&join.apply(Input::Now(intake::now())))?;
    outlet.write(&join.finish())?;
    outlet.write_findings(&join.take_findings())?;
    let counters = join.counters();
    tracing::info!(?counters, "join is done");
    Ok(())
}

fn tell_refusals(before: &Counters, now: &Counters) {
    let refused = |counters: &Counters| {
        let Counters { refused_requests, refused_roots, refused_pods, given_up, .. } = *counters;
        [refused_requests, refused_roots, refused_pods, given_up]
    };
    if refused(before) != refused(now) {
        let [requests, roots, pods, given_up] = refused(now);
        tracing::warn!(requests, roots, pods, given_up, "the join is full: turned away since the start");
    }
}

impl Joining {
    /// Waits until the thread has ended, which it should not.
    async fn ended(&mut self) {
        while self.alive.changed().await.is_ok() {}
    }

    async fn finish(self) -> Result<(), ServeError> {
        let waited = tokio::task::spawn_blocking(move || self.thread.join()).await;
        match waited {
            Ok(Ok(result)) => Ok(result?),
            _ => Err(ServeError::JoinPanicked),
        }
    }
}
