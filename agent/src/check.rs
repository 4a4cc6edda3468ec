//! The drop-in check inside `run`: repeated, its changes told, its last result for the uplink.
//!
//! What it judges is the crate `seclog-dropin`; here are the clock, the log and the way out.

mod event;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use seclog_dropin::{
    check::Expectation,
    facts::Hooks,
    finding::{Finding, Severity},
    node::{self, Sources},
    report::{Change, Report},
};
use seclog_proto::v1::{CheckFinding, CheckStatus, HookStatus, NamespaceLogging};
use tokio::{sync::watch, time::interval};

use crate::clock;

/// Findings and namespaces in a status: a heartbeat stays small whatever the node looks like.
const MOST: usize = 100;

/// Options of the check in `run`.
#[derive(Args, Clone, Debug)]
pub struct CheckOptions {
    /// Where the node's files are: its root, or the directory below which the pod has /etc/crio and the like mounted.
    #[arg(long, value_name = "DIR", env = "SECLOG_CHECK_ROOT", default_value = "/")]
    pub check_root: PathBuf,
    /// Seconds between checks of the node's configuration; 0 switches them off.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    check_interval: u64,
    /// What should be logged on this node.
    #[arg(long, value_enum, default_value_t = Expectation::Auto)]
    check_expect: Expectation,
}

/// The last result, `None` before the first.
pub type Status = watch::Receiver<Option<CheckStatus>>;

/// Checks until the receivers are gone. The first check is due at once.
pub fn start(
    options: CheckOptions,
    socket: Option<PathBuf>,
    hooks: watch::Receiver<Vec<HookStatus>>,
    node: String,
) -> Status {
    let (sender, receiver) = watch::channel(None);
    if options.check_interval == 0 {
        return receiver;
    }
    tokio::spawn(async move {
        let mut every = interval(Duration::from_secs(options.check_interval));
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let events = event::Events::of_this_pod(&node);
        let mut last: Option<Report> = None;
        loop {
            tokio::select! {
                _ = every.tick() => {}
                () = sender.closed() => return,
            }
            let (options, socket) = (options.clone(), socket.clone());
            let tried = |hook: &HookStatus| (hook.name.clone(), hook.active, hook.reason.clone());
            let hooks: Vec<(String, bool, String)> = hooks.borrow().iter().map(tried).collect();
            // It reads files and waits for CRI-O.
            let report = match tokio::task::spawn_blocking(move || check(&options, socket, hooks)).await {
                Ok(Ok(report)) => report,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the node's configuration could not be checked");
                    continue;
                }
                Err(error) => {
                    tracing::error!(%error, "the check ended by a panic; this is a defect");
                    continue;
                }
            };
            let changes = match &last {
                Some(last) => report.changes_since(last),
                None => report.findings.iter().map(|f| Change { appeared: true, finding: f.clone() }).collect(),
            };
            changes.iter().for_each(tell);
            if last.is_none() || last.as_ref().is_some_and(|last| last.verdict != report.verdict) {
                tracing::info!(
                    verdict = report.verdict.name(),
                    errors = report.count(Severity::Error),
                    warnings = report.count(Severity::Warning),
                    "the node's configuration was checked"
                );
            }
            if let Some(events) = &events {
                events.tell(&report, &changes, last.is_none()).await;
            }
            sender.send_replace(Some(status(&report)));
            last = Some(report);
        }
    });
    receiver
}

fn check(
    options: &CheckOptions,
    socket: Option<PathBuf>,
    hooks: Vec<(String, bool, String)>,
) -> Result<Report, node::RootError> {
    // In a pod the socket is an opt-in, though the host's files may reach it.
    let on_node = options.check_root == Path::new("/");
    let sources =
        Sources { root: options.check_root.clone(), version: None, ask_socket: socket.is_some() || on_node, socket };
    let mut facts = node::gather(&sources)?;
    // What was tried beats what files promise.
    facts.hooks = Hooks::Probed(hooks);
    Ok(Report::of(&options.check_root.to_string_lossy(), &facts, options.check_expect.expect()))
}

fn tell(change: &Change) {
    let Change { appeared, finding: Finding { code, severity, what, place, consequence, action } } = change;
    let place = place.as_ref().map(ToString::to_string).unwrap_or_default();
    match (appeared, severity) {
        (false, Severity::Error | Severity::Warning) => tracing::info!(%code, place, "no longer: {what}"),
        (true, Severity::Error) => tracing::error!(%code, place, consequence, action, "{what}"),
        (true, Severity::Warning) => tracing::warn!(%code, place, consequence, action, "{what}"),
        (true, Severity::Unknown) => tracing::info!(%code, place, consequence, action, "{what}"),
        _ => tracing::debug!(%code, place, appeared, "{what}"),
    }
}

/// The last result as numbers, for the agent's counters; nothing before the first.
pub fn counters(status: &Status) -> Vec<(&'static str, u64)> {
    let status = status.borrow();
    let Some(CheckStatus { findings, namespaces, .. }) = status.as_ref() else { return Vec::new() };
    let of = |severity: &str| findings.iter().filter(|f| f.severity == severity).count() as u64;
    vec![
        ("check_errors", of("error")),
        ("check_warnings", of("warning")),
        ("check_unknown", of("unknown")),
        ("check_containers_logging", namespaces.iter().map(|n| u64::from(n.logs)).sum()),
        ("check_containers_not_logging", namespaces.iter().map(|n| u64::from(n.does_not_log)).sum()),
    ]
}

/// As the correlator gets it.
fn status(report: &Report) -> CheckStatus {
    let finding = |finding: &Finding| CheckFinding {
        code: finding.code.name().into(),
        severity: finding.severity.to_string(),
        what: finding.what.clone(),
        place: finding.place.as_ref().map(ToString::to_string).unwrap_or_default(),
    };
    CheckStatus {
        checked_unix_ns: clock::unix_ns(),
        verdict: report.verdict.name().into(),
        findings: report.findings.iter().take(MOST).map(finding).collect(),
        namespaces: report
            .containers
            .iter()
            .take(MOST)
            .map(|c| NamespaceLogging {
                namespace: c.namespace.clone(),
                logs: c.logs,
                does_not_log: c.does_not_log,
                unknown: c.unknown,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_result_of_the_first_check_is_there_at_once_with_the_hooks_that_were_tried() {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("etc/crio/crio.conf.d");
        std::fs::create_dir_all(&conf).unwrap();
        std::fs::write(conf.join("10"), "[crio.runtime]\n").unwrap();
        let options =
            CheckOptions { check_root: dir.path().into(), check_interval: 3600, check_expect: Expectation::Auto };
        let hook = HookStatus { name: "verdict/fentry".into(), active: false, reason: "EPERM".into() };
        let (_sender, hooks) = watch::channel(vec![hook]);
        let mut results = start(options, None, hooks, "node-1".into());
        let result = results.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert_eq!(result.verdict, "problems");
        let codes: Vec<&str> = result.findings.iter().map(|f| f.code.as_str()).collect();
        let counters: std::collections::BTreeMap<_, _> = counters(&results).into_iter().collect();
        assert!(counters["check_errors"] >= 1 && counters["check_warnings"] >= 1, "{counters:?}");
        assert!(codes.contains(&"dropin-missing") && codes.contains(&"hooks-missing"), "{codes:?}");
    }
}
