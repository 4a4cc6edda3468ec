//! The standard output of the container `audit-logs` of every API server pod of a hosted control plane, followed through the
//! Kubernetes API of the management cluster.
//!
//! What holds:
//! - Pods are looked for again and again: new ones are followed, and those that are gone are read to their end.
//! - A log is asked for from the time of the last line on (`sinceTime`, whole seconds): what comes twice is known by its
//!   content, as is everything that the container prints again after it was restarted.
//! - A connection that breaks is made again, slower as it fails, at most every 30 s. What went wrong is told once until it
//!   is something else.
//! - After a restart the journal says from which time on each log is wanted.
//!
//! Needs `get` and `list` of pods and `get` of pods/log in that namespace.

use super::lines::Lines;
use super::sink::Sink;
use super::stdin::LineIntake;
use super::trail::{Trail, TrailError};
use super::{audit_events, now};
use crate::join::Route;
use futures_util::AsyncReadExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, LogParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use seclog_proto::rfc3339;
use seclog_proto::v1::SourcePosition;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const LIST_EVERY: Duration = Duration::from_secs(10);
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Nothing came for so long: the connection may be dead. API servers write an event every few seconds.
const SILENT_FOR: Duration = Duration::from_secs(120);
const PIECE: usize = 256 << 10;
/// Pods followed at once.
const MOST_PODS: usize = 64;
const SECOND_NS: u64 = 1_000_000_000;

/// Which logs to follow.
#[derive(Debug, Clone)]
pub struct PodLogs {
    /// The namespace of the hosted control plane.
    pub namespace: String,
    /// A label selector for the API server's pods.
    pub selector: String,
    pub container: String,
}

impl PodLogs {
    /// HyperShift's names.
    pub fn of(namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), selector: "app=kube-apiserver".into(), container: "audit-logs".into() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PodLogsError {
    #[error("kubeconfig {}: {why}", path.display())]
    Kubeconfig { path: PathBuf, why: String },
    #[error("no service account of a pod to ask the API server with ({0}); give --audit-pods-kubeconfig")]
    NotInPod(String),
    #[error("cannot make a client of the Kubernetes API: {0}")]
    Client(kube::Error),
}

/// A client with a kubeconfig, or with the pod's own service account.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, PodLogsError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let failed = |why: String| PodLogsError::Kubeconfig { path: path.to_owned(), why };
            let read = Kubeconfig::read_from(path).map_err(|error| failed(error.to_string()))?;
            let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
            config.map_err(|error| failed(error.to_string()))?
        }
        None => Config::incluster().map_err(|error| PodLogsError::NotInPod(error.to_string()))?,
    };
    // A log is silent while nothing happens: that is ours to judge.
    config.read_timeout = None;
    Client::try_from(config).map_err(PodLogsError::Client)
}

/// Follows until told to stop.
pub async fn follow(client: Client, logs: PodLogs, trail: Trail, stop: watch::Receiver<bool>) {
    let pods: Api<Pod> = Api::namespaced(client, &logs.namespace);
    let mut followed: BTreeMap<String, JoinHandle<()>> = BTreeMap::new();
    let mut told = Told::default();
    let mut stopped = stop.clone();
    loop {
        match pods.list(&ListParams::default().labels(&logs.selector)).await {
            Ok(found) => {
                told.well();
                followed.retain(|_, following| !following.is_finished());
                let names =
                    found.items.iter().filter(|pod| is_started(pod)).filter_map(|pod| pod.metadata.name.clone());
                for name in names {
                    if followed.contains_key(&name) || followed.len() >= MOST_PODS {
                        continue;
                    }
                    let follower = Follower::new(&pods, &logs, &name, &trail);
                    followed.insert(name, tokio::spawn(follower.run(stop.clone())));
                }
            }
            Err(error) => {
                trail.failed(Route::PodLog);
                told.tell(&format!("pods of namespace {:?} cannot be listed", logs.namespace), &error);
            }
        }
        if tokio::time::timeout(LIST_EVERY, stopped.wait_for(|stop| *stop)).await.is_ok() {
            break;
        }
    }
    for following in followed.into_values() {
        let _ = following.await;
    }
}

/// Whether its containers may have printed something.
fn is_started(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase.is_some_and(|phase| phase != "Pending")
}

struct Follower {
    pods: Api<Pod>,
    name: String,
    container: String,
    intake: LineIntake,
    /// The time of the last line, nanoseconds since 1970; 0: none.
    last: u64,
    told: Told,
}

/// Why a log is not read further now.
enum Ended {
    /// The pod is gone.
    Gone,
    /// To be tried again.
    Broken,
    /// The journal is closed.
    Closed,
}

impl Follower {
    fn new(pods: &Api<Pod>, logs: &PodLogs, name: &str, trail: &Trail) -> Self {
        let source = format!("pod-log/{}/{name}", logs.namespace);
        let last = trail.journal().positions(&source).last().map_or(0, |position| position.last);
        let intake = LineIntake { sink: Sink::audit(trail, Route::PodLog, source), lines: Lines::default() };
        let (name, container) = (name.to_owned(), logs.container.clone());
        Self { pods: pods.clone(), name, container, intake, last, told: Told::default() }
    }

    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut wait = SHORTEST_WAIT;
        loop {
            let before = self.last;
            let ended = tokio::select! {
                ended = self.read() => ended,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            match ended {
                Ended::Gone => {
                    tracing::info!(pod = self.name, "the API server's pod is gone");
                    return;
                }
                Ended::Closed => return,
                Ended::Broken => {}
            }
            self.intake.forget_rest();
            wait = if self.last > before { SHORTEST_WAIT } else { (wait * 2).min(LONGEST_WAIT) };
            if tokio::time::timeout(wait, stop.wait_for(|stop| *stop)).await.is_ok() {
                return;
            }
        }
    }

    async fn read(&mut self) -> Ended {
        // The client rounds to whole seconds, and may round up.
        let since = i64::try_from((self.last / SECOND_NS).saturating_sub(1)).ok();
        let since = since.filter(|_| self.last > 0).and_then(|seconds| Timestamp::from_second(seconds).ok());
        let asked = LogParams {
            container: Some(self.container.clone()),
            follow: true,
            timestamps: true,
            since_time: since,
            ..LogParams::default()
        };
        let mut log = match self.pods.log_stream(&self.name, &asked).await {
            Ok(log) => Box::pin(log),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ended::Gone,
            Err(error) => {
                self.intake.sink.failed();
                self.told.tell(&format!("the log of pod {} cannot be read", self.name), &error);
                return Ended::Broken;
            }
        };
        tracing::info!(pod = self.name, container = self.container, "following the API server's audit log");
        let mut piece = vec![0; PIECE];
        loop {
            let read = match tokio::time::timeout(SILENT_FOR, log.read(&mut piece)).await {
                Ok(Ok(0)) => return Ended::Broken,
                Ok(Ok(read)) => read,
                Ok(Err(error)) => {
                    self.intake.sink.failed();
                    self.told.tell(&format!("the log of pod {} broke off", self.name), &error);
                    return Ended::Broken;
                }
                Err(_) => return Ended::Broken,
            };
            let Some(piece) = piece.get(..read) else { return Ended::Broken };
            match self.intake.push(piece).await {
                Ok(stamp) => {
                    self.told.well();
                    if self.note(stamp.as_deref()).await.is_err() {
                        return Ended::Closed;
                    }
                }
                Err(_) => return Ended::Closed,
            }
        }
    }

    /// Remembers in the journal from which time on the log is wanted.
    async fn note(&mut self, stamp: Option<&str>) -> Result<(), TrailError> {
        let Some(at) = stamp.and_then(rfc3339::parse).filter(|at| *at > self.last && *at <= now() + SECOND_NS) else {
            return Ok(());
        };
        self.last = at;
        let source = self.intake.sink.source().to_owned();
        let position = SourcePosition { source: source.clone(), epoch: 1, sequence: at, ..SourcePosition::default() };
        let none: [String; 0] = [];
        self.intake.sink.journal().note(audit_events(Route::PodLog, &source, none, Some(position))).await?;
        Ok(())
    }
}

/// What was said last of what goes wrong.
#[derive(Debug, Default)]
struct Told(String);

impl Told {
    fn tell(&mut self, what: &str, error: &dyn std::error::Error) {
        let text = format!("{what}: {error}");
        if self.0 != text {
            tracing::warn!("{text}; tried again");
            self.0 = text;
        }
    }

    fn well(&mut self) {
        self.0.clear();
    }
}
