//! Facts that a directory cannot show: the kernel's audit status, hooks that were tried, SELinux labels, owners.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod common;

use common::{Node, PROFILE};
use seclog_dropin::{
    facts::{AuditStatus, Container, Hooks, Known, Logs, NodeFacts},
    judge::Expect,
    report::Report,
};

/// A node without fault whose kernel and hooks answer.
fn good() -> NodeFacts {
    let mut facts = Node::openshift(33).with_dropin().facts();
    facts.audit = Known::Yes(AuditStatus { enabled: 1, pid: 700, backlog_limit: 8192, lost: 0, backlog: 0 });
    facts.hooks = Hooks::Probed(vec![("verdict/fentry".into(), true, String::new())]);
    facts
}

fn findings(change: impl FnOnce(&mut NodeFacts), expect: Option<Expect>) -> Vec<String> {
    let mut facts = good();
    change(&mut facts);
    let report = Report::of("/", &facts, expect);
    // Of every such node: no socket below the root, and ordinary pods that nobody asked to log.
    let always = ["socket-unknown", "workload-not-logged"];
    let shown = report.findings.iter().filter(|f| !always.contains(&f.code.name()));
    shown.map(|f| format!("{} {}", f.severity, f.code)).collect()
}

#[test]
fn the_kernels_audit_status() {
    let audit = |change: fn(&mut AuditStatus)| {
        findings(
            |facts| {
                if let Known::Yes(status) = &mut facts.audit {
                    change(status);
                }
            },
            None,
        )
    };
    assert_eq!(audit(|_| {}), [] as [&str; 0]);
    assert_eq!(audit(|s| s.lost = 12), ["warning audit-lost"]);
    assert_eq!(audit(|s| s.backlog_limit = 64), ["warning audit-backlog"]);
    assert_eq!(audit(|s| s.enabled = 0), ["note audit-disabled"]);
    assert_eq!(audit(|s| s.pid = 0), ["note auditd-absent"], "the kernel's word beats a process of that name");
    assert_eq!(findings(|f| f.audit = Known::No("EPERM".into()), None), ["unknown audit-unknown"]);
}

#[test]
fn hooks_that_were_tried() {
    let tried = |active| Hooks::Probed(vec![("verdict/fentry".into(), active, "EPERM".into())]);
    assert_eq!(findings(|f| f.hooks = tried(false), None), ["warning hooks-missing"]);
    let off = |f: &mut NodeFacts, active| {
        f.hooks = tried(active);
        f.kernel.cmdline = Some("audit=0".into());
    };
    assert_eq!(findings(|f| off(f, true), None), ["warning audit-off"], "audit status and auditd are moot then");
    assert_eq!(findings(|f| off(f, false), None), ["error audit-off", "warning hooks-missing"]);
}

#[test]
fn labels_and_owners_of_the_profile() {
    let label = |name: &'static str| {
        findings(|f| f.profiles.get_mut(PROFILE).unwrap().meta.selinux_type = Some(name.into()), None)
    };
    for (name, expected) in [
        ("container_config_t", None),
        ("etc_t", None),
        ("user_tmp_t", Some("warning profile-label")),
        ("container_file_t", Some("warning profile-label")),
        ("unlabeled_t", Some("warning profile-label")),
    ] {
        assert_eq!(label(name), expected.into_iter().collect::<Vec<_>>(), "{name}");
    }
    let owner = findings(|f| f.profiles.get_mut(PROFILE).unwrap().meta.uid = Some(4711), None);
    assert_eq!(owner, ["warning profile-permissions"]);
}

#[test]
fn containers_are_expected_to_log_where_that_was_asked_for() {
    let container = Container {
        namespace: "shop".into(),
        pod: "web".into(),
        name: "app".into(),
        id: "x".into(),
        privileged: false,
        logs: Logs::No,
        created: None,
    };
    let with = |expect| findings(|f| f.containers = Known::Yes(vec![container.clone()]), expect);
    assert_eq!(with(None), ["note containers-not-logging"]);
    let workload = Expect { privileged: true, workload: true };
    assert_eq!(with(Some(workload)), ["warning containers-not-logging"]);
}
