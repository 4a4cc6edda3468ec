//! Running containers: do they log?

use std::collections::BTreeMap;

use super::View;
use crate::{
    facts::{Container, Known, Logs},
    finding::{Code, Finding, Severity},
};

pub(super) fn judge(view: &View<'_>, findings: &mut Vec<Finding>) {
    let containers = match &view.facts.containers {
        Known::Yes(containers) => containers,
        Known::No(reason) => {
            findings.push(
                Finding::new(
                    Code::ContainersUnknown,
                    Severity::Unknown,
                    format!("running containers are unknown: {reason}"),
                )
                .so("which of them log is unknown")
                .fix("mount /run/containers/storage read-only, or CRI-O's socket"),
            );
            return;
        }
    };
    older(view, containers, findings);
    let mut silent: BTreeMap<&str, Vec<&Container>> = BTreeMap::new();
    for container in containers.iter().filter(|c| c.logs == Logs::No && !c.privileged) {
        silent.entry(&container.namespace).or_default().push(container);
    }
    // Expected everywhere, each namespace without is worth a line; otherwise it is a fact of the overview.
    let severity = if view.expect.workload { Severity::Warning } else { Severity::Note };
    for (namespace, list) in silent {
        let example = list.first().map(|c| format!("{}/{}", c.pod, c.name)).unwrap_or_default();
        findings.push(
            Finding::new(
                Code::ContainersNotLogging,
                severity,
                format!("{} running containers of namespace {namespace:?} do not log, e.g. {example}", list.len()),
            )
            .so("programs started in them make no verdicts; process starts are seen all the same")
            .fix("give their pods a profile that logs; containers that run keep the one they started with"),
        );
    }
}

/// The privileged profile holds for containers created since it took effect.
fn older(view: &View<'_>, containers: &[Container], findings: &mut Vec<Finding>) {
    if view.effective("privileged_seccomp_profile").is_none() {
        return;
    }
    let old: Vec<&Container> = containers.iter().filter(|c| c.privileged && c.logs == Logs::No).collect();
    if let Some(first) = old.first() {
        findings.push(
            Finding::new(
                Code::ContainersOlder,
                Severity::Note,
                format!(
                    "{} privileged containers run without the profile, e.g. {}/{}",
                    old.len(),
                    first.namespace,
                    first.pod
                ),
            )
            .so("they were created before it took effect; programs started in them make no verdicts")
            .fix("restart their pods; new ones, debug pods among them, get the profile"),
        );
    }
}
