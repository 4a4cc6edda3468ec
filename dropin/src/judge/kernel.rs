//! The kernel's and auditd's part.

use super::View;
use crate::{
    facts::{Content, Hooks, Known},
    finding::{Code, Finding, Place, Severity},
};

const ACTIONS_LOGGED: &str = "/proc/sys/kernel/seccomp/actions_logged";
/// Below this a burst of an ordinary node fills the queue (the kernel's default is 64, RHEL's rules set 8192).
const SMALL_BACKLOG: u32 = 1024;

pub(super) fn judge(view: &View<'_>, findings: &mut Vec<Finding>) {
    actions(view, findings);
    let hook = hooks(view, findings);
    let off = audit_off(view, hook, findings);
    if !off {
        status(view, findings);
        auditd(view, findings);
    }
    rules(view, hook, findings);
}

fn actions(view: &View<'_>, findings: &mut Vec<Finding>) {
    let kernel = &view.facts.kernel;
    let has_log = |list: &Option<String>| list.as_ref().map(|l| l.split_whitespace().any(|a| a == "log"));
    if has_log(&kernel.actions_avail) == Some(false) {
        findings.push(
            Finding::new(Code::SeccompUnavailable, Severity::Error, "the kernel does not offer the seccomp action log")
                .at(Place::file("/proc/sys/kernel/seccomp/actions_avail"))
                .so("profiles that log cannot be loaded")
                .fix("use a kernel of 4.14 or later with CONFIG_SECCOMP_FILTER"),
        );
    }
    if has_log(&kernel.actions_logged) == Some(false) {
        findings.push(
            Finding::new(Code::ActionsLogged, Severity::Error, "kernel.seccomp.actions_logged does not contain log")
                .at(Place::file(ACTIONS_LOGGED))
                .so("the kernel makes no record for SCMP_ACT_LOG, whatever profiles say")
                .fix("take the setting out of sysctl.d, or add log to it"),
        );
    }
}

/// Whether verdicts can be seen without audit, if known.
fn hooks(view: &View<'_>, findings: &mut Vec<Finding>) -> Option<bool> {
    let (works, why) = match &view.facts.hooks {
        Hooks::Probed(hooks) => {
            let verdict: Vec<_> = hooks.iter().filter(|(name, _, _)| name.starts_with("verdict/")).collect();
            let reasons: Vec<String> = verdict.iter().map(|(name, _, reason)| format!("{name}: {reason}")).collect();
            (verdict.iter().any(|(_, active, _)| *active), reasons.join("; "))
        }
        Hooks::Files { btf, symbol } => {
            let missing = [(*btf, "no BTF (/sys/kernel/btf/vmlinux)"), (*symbol, "no audit_seccomp in /proc/kallsyms")];
            let reasons: Vec<&str> = missing.into_iter().filter(|(there, _)| !there).map(|(_, name)| name).collect();
            (reasons.is_empty(), reasons.join("; "))
        }
        Hooks::Unknown(reason) => {
            findings.push(
                Finding::new(
                    Code::HooksUnknown,
                    Severity::Unknown,
                    format!("which hooks the kernel offers is unknown: {reason}"),
                )
                .so("whether verdicts can be seen without audit is unknown")
                .fix("ask the running agent, which tries them"),
            );
            return None;
        }
    };
    if !works {
        findings.push(
            Finding::new(Code::HooksMissing, Severity::Warning, format!("no eBPF hook can see verdicts: {why}"))
                .so("verdicts come from audit records alone: later, rate-limited and lost in bursts")
                .fix("use the distribution's kernel with BTF, and give the agent CAP_BPF and CAP_PERFMON"),
        );
    }
    Some(works)
}

fn audit_off(view: &View<'_>, hook: Option<bool>, findings: &mut Vec<Finding>) -> bool {
    let cmdline = view.facts.kernel.cmdline.as_deref().unwrap_or("");
    // The last one counts.
    let last = cmdline.split_whitespace().filter_map(|word| word.strip_prefix("audit=")).next_back();
    if !matches!(last, Some("0" | "off")) {
        return false;
    }
    let severity = if hook == Some(true) { Severity::Warning } else { Severity::Error };
    findings.push(
        Finding::new(Code::AuditOff, severity, "the kernel was started with audit=0")
            .at(Place::file("/proc/cmdline"))
            .so("there are no audit records at all; only the eBPF hook sees verdicts, where it can attach")
            .fix("take audit=0 out of the kernel arguments (PerformanceProfile and tuning examples add it)"),
    );
    true
}

fn status(view: &View<'_>, findings: &mut Vec<Finding>) {
    let status = match &view.facts.audit {
        Known::Yes(status) => status,
        Known::No(reason) => {
            findings.push(
                Finding::new(
                    Code::AuditUnknown,
                    Severity::Unknown,
                    format!("the kernel's audit status is unknown: {reason}"),
                )
                .so("whether records were lost, and how large the backlog is, is unknown")
                .fix("give CAP_AUDIT_CONTROL, or look with `auditctl -s` on the node"),
            );
            return;
        }
    };
    if status.enabled == 0 {
        findings.push(
            Finding::new(Code::AuditDisabled, Severity::Note, "auditing is switched off (audit_enabled=0)")
                .so("SECCOMP records are made all the same; other records are not")
                .fix("nothing for seclog; auditd switches it on"),
        );
    }
    if status.backlog_limit < SMALL_BACKLOG {
        findings.push(
            Finding::new(
                Code::AuditBacklog,
                Severity::Warning,
                format!("the audit backlog holds {} records", status.backlog_limit),
            )
            .so("a burst fills it; the kernel then makes workloads wait, or loses records")
            .fix("boot with audit_backlog_limit=8192, or set it with `auditctl -b 8192`"),
        );
    }
    if status.lost > 0 {
        findings.push(
            Finding::new(
                Code::AuditLost,
                Severity::Warning,
                format!("the kernel lost {} audit records since boot", status.lost),
            )
            .so("verdicts that no eBPF hook saw may be among them")
            .fix("raise the backlog, log fewer syscalls, or use the agent's quiet mode"),
        );
    }
}

fn auditd(view: &View<'_>, findings: &mut Vec<Finding>) {
    // The kernel knows its reader better than a process list does.
    let runs = match view.facts.audit.get() {
        Some(status) => Some(status.pid != 0),
        None => view.facts.auditd.get().copied(),
    };
    if runs == Some(false) {
        findings.push(
            Finding::new(Code::AuditdAbsent, Severity::Note, "auditd does not run")
                .so("records that come while the agent restarts cannot be read back from /var/log/audit/audit.log")
                .fix("enable auditd.service, if that matters"),
        );
    }
}

fn rules(view: &View<'_>, hook: Option<bool>, findings: &mut Vec<Finding>) {
    for file in &view.facts.audit_rules {
        let Content::Text(text) = &file.content else { continue };
        for (at, line) in text.lines().enumerate() {
            let rule = line.trim();
            let excludes = rule.starts_with("-a") && rule.contains("exclude");
            let names_seccomp = ["msgtype=SECCOMP", "msgtype=1326"].iter().any(|m| rule.contains(m));
            if excludes && names_seccomp {
                let severity = if hook == Some(true) { Severity::Note } else { Severity::Error };
                findings.push(
                    Finding::new(Code::AuditRuleExcludes, severity, "this rule excludes SECCOMP records")
                        .at(Place::line(&file.path, u32::try_from(at + 1).unwrap_or(u32::MAX)))
                        .so("verdicts come from the eBPF hook alone")
                        .fix("take it out, unless it is the agent's quiet mode"),
                );
            }
        }
    }
}
