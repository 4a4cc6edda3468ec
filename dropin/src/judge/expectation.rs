//! Is what should make CRI-O log there, and in effect?

use super::View;
use crate::{
    facts::Content,
    finding::{Code, Finding, Place, Severity},
    merge::{Merged, Setting, show},
    options::Section,
    version::CrioVersion,
};

const PRIVILEGED: &str = "privileged_seccomp_profile";
const WORKLOAD: &str = "seccomp_profile";

pub(super) fn judge(view: &View<'_>, findings: &mut Vec<Finding>) {
    let privileged = view.effective(PRIVILEGED).is_some();
    let handler_profile = |m: &Merged| m.handlers.values().any(|h| h.text(WORKLOAD).is_some());
    let workload = view.effective(WORKLOAD).is_some() || handler_profile(&view.merged);
    overridden(view, PRIVILEGED, findings);
    overridden(view, WORKLOAD, findings);
    match view.version {
        Some(version) if !version.has_privileged_profile() => {
            unsupported(view, version, workload, findings);
        }
        _ if !privileged && !workload => findings.push(missing(view)),
        _ if !privileged => findings.push(
            Finding::new(
                Code::PrivilegedNotLogged,
                if view.expect.privileged { Severity::Warning } else { Severity::Note },
                "privileged_seccomp_profile is not set",
            )
            .so("privileged containers, those of `oc debug node` among them, make no verdicts")
            .fix("apply the drop-in that `seclog-correlator render nodepool` writes"),
        ),
        _ => {}
    }
    // Where nothing is set at all, that has been said.
    if !workload && (privileged || findings.iter().all(|f| f.code != Code::DropinMissing)) {
        let severity = if view.expect.workload { Severity::Error } else { Severity::Note };
        findings.push(
            Finding::new(Code::WorkloadNotLogged, severity, "seccomp_profile is not set: RuntimeDefault logs nothing")
                .so("ordinary containers make verdicts only with a Localhost profile of their own; process starts are seen all the same")
                .fix("render with --workload to log RuntimeDefault, or bind profiles to the pods that matter"),
        );
    }
    service_flags(view, findings);
}

fn missing(view: &View<'_>) -> Finding {
    // A drop-in that meant well gets named: the recipe's sets something else altogether.
    let recipe = view.facts.config.iter().find(|f| {
        f.path.contains("seccomp")
            || f.content
                .text()
                .is_some_and(|t| t.contains(crate::annotations::TRACE_SYSCALL) && !f.path.ends_with("/00-default"))
    });
    let finding = Finding::new(
        Code::DropinMissing,
        Severity::Error,
        "nothing makes CRI-O log: neither privileged_seccomp_profile nor seccomp_profile is set",
    )
    .so("no container makes verdicts unless its pod names a logging profile; debug sessions on the node are not logged at all")
    .fix("apply what `seclog-correlator render nodepool` writes");
    match recipe {
        Some(file) => finding.at(Place::file(&file.path)),
        None => finding,
    }
}

fn unsupported(view: &View<'_>, version: CrioVersion, workload: bool, findings: &mut Vec<Finding>) {
    findings.push(
        Finding::new(
            Code::PrivilegedUnsupported,
            if view.expect.privileged { Severity::Warning } else { Severity::Note },
            format!(
                "CRI-O {version} (OpenShift {}) cannot give privileged containers a seccomp profile",
                version.openshift()
            ),
        )
        .so("debug sessions make no verdicts on this node; process starts are seen all the same")
        .fix("upgrade to OpenShift 4.20 (CRI-O 1.33) or later"),
    );
    if !workload {
        findings.push(missing(view));
    }
}

/// An earlier file set the option, a later one took it back.
fn overridden(view: &View<'_>, key: &'static str, findings: &mut Vec<Finding>) {
    let Some(setting) = view.merged.setting(Section::Runtime, key) else { return };
    let Some(before) = view.merged.overridden.get(&(Section::Runtime, key)).and_then(|b| b.last()) else { return };
    let same = |a: &Setting, b: &Setting| a.value.same(&b.value);
    if before.value.is_zero() || same(before, setting) {
        return;
    }
    let emptied = setting.value.is_zero();
    findings.push(
        Finding::new(
            Code::DropinOverridden,
            if emptied { Severity::Error } else { Severity::Warning },
            format!(
                "{key} is set to {} here, after {} set it to {}",
                show(&setting.value),
                before.place,
                show(&before.value)
            ),
        )
        .at(setting.place.clone())
        .so(if emptied { "the option is off" } else { "the earlier profile is not used" })
        .fix("keep the option in one file; files are read in the order of their names"),
    );
}

/// Flags and environment of the service: a reload builds the configuration from files alone.
fn service_flags(view: &View<'_>, findings: &mut Vec<Finding>) {
    let names = [
        "privileged-seccomp-profile",
        "seccomp-profile",
        "CONTAINER_PRIVILEGED_SECCOMP_PROFILE",
        "CONTAINER_SECCOMP_PROFILE",
    ];
    let mentions = |text: &str| names.iter().copied().find(|n| text.contains(*n));
    for file in &view.facts.service {
        let Content::Text(text) = &file.content else { continue };
        let environment_file = file.path.starts_with("/etc/sysconfig/");
        for (at, line) in text.lines().enumerate() {
            let line_number = u32::try_from(at + 1).unwrap_or(u32::MAX);
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
                continue;
            }
            if environment_file && (!trimmed.contains('=') || bad_name(trimmed)) {
                findings.push(
                    Finding::new(Code::SysconfigLine, Severity::Warning, "this line is not NAME=VALUE")
                        .at(Place::line(&file.path, line_number))
                        .so("systemd ignores it, so what it means to set is not set")
                        .fix("take it out; set seccomp profiles in a file of /etc/crio/crio.conf.d"),
                );
            }
            if let Some(name) = mentions(trimmed) {
                findings.push(flag(name, Place::line(&file.path, line_number)));
            }
        }
    }
    let args = view.facts.process.iter().flat_map(|p| &p.args);
    for arg in args {
        if let Some(name) = mentions(arg).filter(|_| arg.starts_with("--")) {
            findings.push(flag(name, Place::file("/proc (arguments of crio)")));
        }
    }
}

fn bad_name(line: &str) -> bool {
    let name = line.split('=').next().unwrap_or("");
    name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn flag(name: &str, place: Place) -> Finding {
    Finding::new(Code::SysconfigFlag, Severity::Warning, format!("the seccomp profile is given to the service by {name}"))
        .at(place)
        .so("the first reload of CRI-O (on OpenShift any change of registries or policies) builds its configuration from files alone and drops it")
        .fix("put the option in a file of /etc/crio/crio.conf.d and take it out here")
}
