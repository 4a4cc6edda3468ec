//! Builds node records from what the rooms know.

use std::{
    fmt::{Arguments, Display, Write as _},
    sync::Arc,
};

use seclog_proto::v1::{
    Container, Loss, NodeRecord, ProcessExit, ProcessStart, SessionRoot, Verdict as VerdictDetail, node_record::Detail,
};

use crate::{
    abi_names,
    clock::Offset,
    container::Cgroups,
    fuse::Verdict,
    lineage::{Argv, Environment, Image, Process, ProcessKey, Root, Task},
};

/// What all records of one start of the agent share.
#[derive(Clone, Debug)]
pub struct Origins {
    pub boot_id: Arc<str>,
    /// Boot clock of this start: ids of two starts differ.
    pub epoch: u64,
}

// === impl Origins ===

impl Origins {
    /// Id of a record from a kernel program, by its origin there.
    pub fn kernel_id(&self, origin: impl Display) -> String {
        self.id(format_args!("{}:{origin}", self.epoch))
    }

    /// One allocation: every record has one.
    fn id(&self, rest: Arguments<'_>) -> String {
        let mut id = String::with_capacity(self.boot_id.len() + 48);
        id.push_str(&self.boot_id);
        id.push(':');
        // Writing to a string does not fail.
        let _ = id.write_fmt(rest);
        id
    }

    fn verdict_id(&self, verdict: &Verdict) -> String {
        match (&verdict.kernel, &verdict.audit) {
            (Some(kernel), _) => self.kernel_id(format_args!("v{}.{}", kernel.cpu, kernel.sequence)),
            (None, Some(audit)) => {
                let (seconds, milliseconds) = (audit.time.unix_ms / 1000, audit.time.unix_ms % 1000);
                self.id(format_args!("a{seconds}.{milliseconds:03}.{}", audit.time.serial))
            }
            (None, None) => self.kernel_id("v?"),
        }
    }
}

/// The part of a record that describes a process.
pub fn describe(
    origins: &Origins,
    offset: Offset,
    time_boot_ns: u64,
    process: Option<&Process>,
    image: Option<&Image>,
    cgroups: &mut Cgroups,
) -> NodeRecord {
    let mut record = NodeRecord {
        boot_id: origins.boot_id.to_string(),
        time_boot_ns,
        time_unix_ns: offset.to_unix(time_boot_ns),
        ..Default::default()
    };
    if let Some(process) = process {
        record.pid = process.key.pid;
        record.start_boottime_ns = process.key.start_boottime_ns;
        if let Some(ProcessKey { pid, start_boottime_ns }) = process.creator {
            record.creator_pid = pid;
            record.creator_start_boottime_ns = start_boottime_ns;
        }
        record.session_root = process.root.as_deref().map(session_root);
    }
    if let Some(image) = image {
        record.generation = image.generation;
        record.comm = image.comm.to_string();
        let cgroup = cgroups.get(image.cgroup_id, time_boot_ns);
        // A namespace entry runs in no container's cgroup: its root tells whose namespace it is in.
        let of_root = process.and_then(|process| process.root.as_ref()).map(|root| Arc::clone(&root.container));
        record.container = Some(Container {
            cgroup_id: image.cgroup_id,
            pod_uid: cgroup.pod_uid.to_string(),
            cgroup_path: cgroup.path.to_string(),
            id: cgroup.container.or(of_root).as_deref().unwrap_or_default().to_owned(),
            mount_namespace: image.mount_namespace,
            pid_namespace: image.pid_namespace,
            ..Default::default()
        });
    }
    record
}

pub fn session_root(root: &Root) -> SessionRoot {
    SessionRoot {
        pid: root.key.pid,
        start_boottime_ns: root.key.start_boottime_ns,
        entry: root.entry.how.into(),
        rule: root.entry.rule.into(),
        lineage: root.lineage.into(),
    }
}

/// Adds what only the event's own task knows.
pub fn of_task(record: &mut NodeRecord, task: &Task) {
    record.tid = task.tid;
    record.uid = task.uid;
    record.gid = task.gid;
}

pub fn process_start(
    (filename, interpreter): (&str, &str),
    argv: &Argv,
    environment: &Environment,
    is_session_root: bool,
) -> Detail {
    Detail::ProcessStart(ProcessStart {
        // The kernel searches where it sees a root; where it stands is for the lineage to say.
        environment: if is_session_root { environment.variables.clone() } else { Vec::new() },
        environment_searched: match environment.whole.filter(|_| is_session_root) {
            None => "",
            Some(true) => "whole",
            Some(false) => "part",
        }
        .into(),
        filename: filename.into(),
        interpreter: interpreter.into(),
        argv: argv.arguments.to_vec(),
        argv_truncated_bytes: argv.truncated_bytes,
        is_session_root,
    })
}

pub fn process_exit(exit_code: i32) -> Detail {
    Detail::ProcessExit(ProcessExit { exit_code })
}

pub fn loss(source: &str, reason: String, count: Option<u64>, from_unix_ns: u64, until_unix_ns: u64) -> Detail {
    Detail::Loss(Loss {
        source: source.into(),
        reason,
        count: count.unwrap_or(0),
        count_known: count.is_some(),
        from_unix_ns,
        until_unix_ns,
    })
}

/// Turns the description of the caller into the verdict's record. The sources' own words about the caller win over what
/// the lineage remembers.
///
/// Changes in place and takes texts out of the verdict, which nobody else needs: storms come through here.
pub fn verdict(record: &mut NodeRecord, origins: &Origins, verdict: &mut Verdict) {
    record.id = origins.verdict_id(verdict);
    let mut detail = VerdictDetail::default();
    if let Some(kernel) = &verdict.kernel {
        record.pid = kernel.task.pid;
        if kernel.task.start_boottime_ns != 0 {
            record.start_boottime_ns = kernel.task.start_boottime_ns;
        }
        set(&mut record.comm, &kernel.task.comm);
        of_task(record, &kernel.task);
        detail.syscall = kernel.syscall;
        detail.compat = kernel.compat.unwrap_or(false);
        detail.arch = abi_names::native_arch(detail.compat);
        detail.code = kernel.code;
        detail.signal = kernel.signal;
        detail.instruction_pointer = kernel.instruction_pointer;
        detail.sources.push("ebpf".into());
        detail.audit_uid = u32::MAX;
        detail.audit_session = u32::MAX;
    }
    let of_audit_alone = verdict.kernel.is_none();
    if let Some(audit) = &mut verdict.audit {
        if of_audit_alone {
            // As audit says it, not converted there and back.
            record.time_unix_ns = audit.time.unix_ms.saturating_mul(1_000_000);
        }
        record.pid = audit.pid;
        set(&mut record.comm, &audit.comm);
        record.uid = audit.uid;
        record.gid = audit.gid;
        detail.syscall = audit.syscall;
        detail.arch = audit.arch;
        detail.compat = audit.compat;
        detail.code = audit.code;
        detail.signal = audit.sig;
        detail.instruction_pointer = audit.ip;
        detail.exe = std::mem::take(&mut audit.exe);
        detail.audit_serial = audit.time.serial;
        detail.audit_uid = audit.auid;
        detail.audit_session = audit.ses;
        detail.subject_context = std::mem::take(&mut audit.subj);
        detail.sources.push("audit".into());
    }
    detail.syscall_name = abi_names::syscall_name(detail.arch, detail.syscall).into();
    detail.arch_name = abi_names::arch_name(detail.arch, detail.syscall).into();
    detail.action = abi_names::action_name(detail.code).into();
    record.detail = Some(Detail::Verdict(detail));
}

/// What is the same already is not allocated again.
fn set(text: &mut String, value: &str) {
    if text != value {
        value.clone_into(text);
    }
}
