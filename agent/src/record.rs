//! What the pipeline says, first as numbers and shared texts, then as node records.
//!
//! A [`Record`] is what the pipeline's thread makes and what waits in a storm: some hundred bytes, hardly a text of its own.
//! A node record has some twenty texts; it is made of it on the way out, by the uplink's thread ([`Record::to_node_record`]).

use std::{
    fmt::{Display, Write as _},
    sync::Arc,
};

use seclog_proto::v1::{
    CgroupMove, Container, Loss, NodeRecord, ProcessExit, ProcessStart, SessionRoot, Verdict as VerdictDetail,
    VerdictCount, node_record::Detail as NodeDetail,
};

use crate::{
    abi_names,
    capture::{audit::AuditTime, kernel::VerdictOverflow},
    clock::Offset,
    container::{Cgroup, Cgroups},
    fuse::Verdict,
    lineage::{Argv, Comm, Environment, Image, Outcome, Process, ProcessKey, RecordOrigin, Root, Task},
};

/// What all records of one start of the agent share.
#[derive(Clone, Debug)]
pub struct Origins {
    pub boot_id: Arc<str>,
    /// Boot clock of this start: ids of two starts differ.
    pub epoch: u64,
}

/// What one event came to.
#[derive(Clone, Debug)]
pub struct Record {
    pub id: Id,
    pub time_unix_ns: u64,
    pub time_boot_ns: u64,
    /// Zero: not of a process.
    pub key: ProcessKey,
    pub tid: u32,
    pub uid: u32,
    pub gid: u32,
    pub generation: u32,
    pub comm: Comm,
    pub creator: Option<ProcessKey>,
    pub place: Option<Place>,
    pub root: Option<Arc<Root>>,
    pub detail: Detail,
}

/// Where a record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Id {
    Kernel(RecordOrigin),
    Audit(AuditTime),
    /// Made by the agent, with a letter and a number of its own.
    Own(char, u64),
}

/// Where a process ran.
#[derive(Clone, Debug)]
pub struct Place {
    pub cgroup_id: u64,
    pub cgroup: Arc<Cgroup>,
    /// Of a namespace entry, which runs in no container's cgroup: whose namespace it is in.
    pub container: Option<Arc<str>>,
    pub mount_namespace: u64,
    pub pid_namespace: u64,
}

#[derive(Clone, Debug)]
pub enum Detail {
    Verdict(Verdict, VerdictEnd),
    Start(Start),
    /// Wait status.
    Exit(i32),
    /// An exit that was not seen.
    Gone,
    Count(Box<VerdictOverflow>),
    Moved(Box<Moved>),
    Lost(Box<Lost>),
}

/// What became of the call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VerdictEnd {
    /// Not an attempt to start a program.
    #[default]
    NoAttempt,
    Of(Outcome),
}

#[derive(Clone, Debug)]
pub struct Start {
    pub filename: Arc<str>,
    pub interpreter: Arc<str>,
    pub argv: Argv,
    pub environment: Environment,
    pub is_session_root: bool,
    /// Whose mount namespace it runs in, where that is not its session's container's.
    pub entered: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
pub struct Moved {
    pub from_cgroup_id: u64,
    pub to_cgroup_id: u64,
    pub to_path: Arc<str>,
    pub to_container: Option<Arc<str>>,
    pub by_pid: u32,
}

#[derive(Clone, Debug)]
pub struct Lost {
    pub source: &'static str,
    pub reason: String,
    /// `None`: not known.
    pub count: Option<u64>,
    pub from_unix_ns: u64,
    pub until_unix_ns: u64,
}

// === impl Origins ===

impl Origins {
    /// One allocation: every record has one.
    pub fn id(&self, id: Id) -> String {
        match id {
            Id::Kernel(origin) => self.kernel_id(origin),
            Id::Own(letter, number) => self.kernel_id(format_args!("{letter}{number}")),
            Id::Audit(AuditTime { unix_ms, serial }) => {
                let mut text = self.begin();
                // Writing to a string does not fail.
                let _ = write!(text, "a{}.{:03}.{serial}", unix_ms / 1000, unix_ms % 1000);
                text
            }
        }
    }

    fn kernel_id(&self, origin: impl Display) -> String {
        let mut text = self.begin();
        let _ = write!(text, "{}:{origin}", self.epoch);
        text
    }

    fn begin(&self) -> String {
        let mut text = String::with_capacity(self.boot_id.len() + 48);
        text.push_str(&self.boot_id);
        text.push(':');
        text
    }
}

// === impl Record ===

impl Record {
    /// Of nobody yet.
    pub fn new(id: Id, offset: Offset, time_boot_ns: u64, detail: Detail) -> Self {
        Self {
            id,
            time_unix_ns: offset.to_unix(time_boot_ns),
            time_boot_ns,
            key: ProcessKey::default(),
            tid: 0,
            uid: 0,
            gid: 0,
            generation: 0,
            comm: Comm::default(),
            creator: None,
            place: None,
            root: None,
            detail,
        }
    }

    /// Adds the process that it is of.
    pub fn of_process(&mut self, process: &Process) -> &mut Self {
        self.key = process.key;
        self.creator = process.creator;
        self.root.clone_from(&process.root);
        self
    }

    /// Adds the image that it is of.
    pub fn of_image(&mut self, image: &Image, cgroups: &mut Cgroups) -> &mut Self {
        self.generation = image.generation;
        self.comm = image.comm;
        let cgroup = cgroups.get(image.cgroup_id, self.time_boot_ns);
        let container = cgroup.container.is_none().then(|| Some(Arc::clone(&self.root.as_ref()?.container)));
        self.place = Some(Place {
            cgroup_id: image.cgroup_id,
            container: container.flatten(),
            cgroup,
            mount_namespace: image.mount_namespace,
            pid_namespace: image.pid_namespace,
        });
        self
    }

    /// Adds what only the event's own task knows.
    pub fn of_task(&mut self, task: &Task) -> &mut Self {
        self.tid = task.tid;
        self.uid = task.uid;
        self.gid = task.gid;
        self
    }

    /// Adds what the sources of a verdict say of its caller: their words win over what the lineage remembers.
    pub fn of_caller(&mut self) {
        let Detail::Verdict(verdict, _) = &self.detail else { return };
        if let Some(kernel) = &verdict.kernel {
            let task = kernel.task;
            self.key.pid = task.pid;
            if task.start_boottime_ns != 0 {
                self.key.start_boottime_ns = task.start_boottime_ns;
            }
            self.comm = task.comm;
            (self.tid, self.uid, self.gid) = (task.tid, task.uid, task.gid);
        } else if let Some(audit) = &verdict.audit {
            // As audit says it, not converted there and back.
            self.time_unix_ns = audit.time.unix_ms.saturating_mul(1_000_000);
            self.key.pid = audit.pid;
            self.comm = audit.comm;
            (self.uid, self.gid) = (audit.uid, audit.gid);
        }
    }

    pub fn to_node_record(self, origins: &Origins) -> NodeRecord {
        let creator = self.creator.unwrap_or_default();
        NodeRecord {
            id: origins.id(self.id),
            time_unix_ns: self.time_unix_ns,
            time_boot_ns: self.time_boot_ns,
            boot_id: origins.boot_id.to_string(),
            pid: self.key.pid,
            tid: self.tid,
            start_boottime_ns: self.key.start_boottime_ns,
            generation: self.generation,
            comm: self.comm.to_text(),
            uid: self.uid,
            gid: self.gid,
            creator_pid: creator.pid,
            creator_start_boottime_ns: creator.start_boottime_ns,
            container: self.place.as_ref().map(container),
            session_root: self.root.as_deref().map(session_root),
            detail: Some(match self.detail {
                Detail::Verdict(verdict, end) => NodeDetail::Verdict(verdict_detail(verdict, end, origins)),
                Detail::Start(start) => NodeDetail::ProcessStart(process_start(start)),
                Detail::Exit(exit_code) => NodeDetail::ProcessExit(ProcessExit { exit_code, found_gone: false }),
                Detail::Gone => NodeDetail::ProcessExit(ProcessExit { exit_code: -1, found_gone: true }),
                Detail::Count(count) => NodeDetail::VerdictCount(verdict_count(
                    &count,
                    // The record's own time is the last one's, on both clocks.
                    Offset::from_pair(self.time_unix_ns, self.time_boot_ns),
                )),
                Detail::Moved(moved) => NodeDetail::CgroupMove(CgroupMove {
                    from_cgroup_id: moved.from_cgroup_id,
                    to_cgroup_id: moved.to_cgroup_id,
                    to_cgroup_path: moved.to_path.to_string(),
                    to_container_id: moved.to_container.as_deref().unwrap_or_default().to_owned(),
                    moved_by_pid: moved.by_pid,
                }),
                Detail::Lost(lost) => loss(lost.source, lost.reason, lost.count, lost.from_unix_ns, lost.until_unix_ns),
            }),
        }
    }
}

fn container(place: &Place) -> Container {
    let Place { cgroup_id, cgroup, container, mount_namespace, pid_namespace } = place;
    Container {
        cgroup_id: *cgroup_id,
        cgroup_path: cgroup.path.to_string(),
        id: cgroup.container.as_ref().or(container.as_ref()).map(ToString::to_string).unwrap_or_default(),
        pod_uid: cgroup.pod_uid.to_string(),
        mount_namespace: *mount_namespace,
        pid_namespace: *pid_namespace,
        ..Default::default()
    }
}

fn session_root(root: &Root) -> SessionRoot {
    SessionRoot {
        pid: root.key.pid,
        start_boottime_ns: root.key.start_boottime_ns,
        entry: root.entry.how.into(),
        rule: root.entry.rule.into(),
        lineage: root.lineage.into(),
    }
}

fn process_start(start: Start) -> ProcessStart {
    let Start { filename, interpreter, argv, environment, is_session_root, entered } = start;
    ProcessStart {
        // The kernel searches where it sees a root; where it stands is for the lineage to say.
        environment_searched: match environment.whole.filter(|_| is_session_root) {
            None => "",
            Some(true) => "whole",
            Some(false) => "part",
        }
        .into(),
        environment: if is_session_root { environment.variables } else { Vec::new() },
        filename: filename.to_string(),
        interpreter: interpreter.to_string(),
        argv: argv.arguments.to_vec(),
        argv_truncated_bytes: argv.truncated_bytes,
        is_session_root,
        // By the runtime, when the records are named.
        container_facts: None,
        entered_container_id: entered.as_deref().unwrap_or_default().to_owned(),
    }
}

pub fn loss(source: &str, reason: String, count: Option<u64>, from_unix_ns: u64, until_unix_ns: u64) -> NodeDetail {
    NodeDetail::Loss(Loss {
        source: source.into(),
        reason,
        count: count.unwrap_or(0),
        count_known: count.is_some(),
        from_unix_ns,
        until_unix_ns,
    })
}

fn verdict_count(count: &VerdictOverflow, offset: Offset) -> VerdictCount {
    let arch = abi_names::native_arch(count.compat.unwrap_or(false));
    VerdictCount {
        syscall: count.syscall,
        syscall_name: abi_names::syscall_name(arch, count.syscall).into(),
        arch,
        arch_name: abi_names::arch_name(arch, count.syscall).into(),
        code: count.code,
        action: abi_names::action_name(count.code).into(),
        count: count.count,
        first_unix_ns: offset.to_unix(count.first_boot_ns),
        last_unix_ns: offset.to_unix(count.last_boot_ns),
    }
}

fn verdict_detail(verdict: Verdict, end: VerdictEnd, origins: &Origins) -> VerdictDetail {
    let (arch, syscall) = verdict.call();
    let mut detail = VerdictDetail {
        syscall,
        arch,
        syscall_name: abi_names::syscall_name(arch, syscall).into(),
        arch_name: abi_names::arch_name(arch, syscall).into(),
        audit_uid: u32::MAX,
        audit_session: u32::MAX,
        ..Default::default()
    };
    if let Some(kernel) = verdict.kernel {
        detail.compat = kernel.compat.unwrap_or(false);
        detail.code = kernel.code;
        detail.signal = kernel.signal;
        detail.instruction_pointer = kernel.instruction_pointer;
        detail.sources.push("ebpf".into());
    }
    if let Some(audit) = verdict.audit {
        detail.compat = audit.compat;
        detail.code = audit.code;
        detail.signal = audit.sig;
        detail.instruction_pointer = audit.ip;
        detail.exe = audit.exe.to_string();
        detail.audit_serial = audit.time.serial;
        detail.audit_uid = audit.auid;
        detail.audit_session = audit.ses;
        detail.subject_context = audit.subj.to_string();
        detail.sources.push("audit".into());
    }
    detail.action = abi_names::action_name(detail.code).into();
    detail.outcome = match end {
        VerdictEnd::NoAttempt => "",
        VerdictEnd::Of(Outcome::Failed) => "failed",
        VerdictEnd::Of(Outcome::Unknown) => "unknown",
        VerdictEnd::Of(Outcome::Executed { target, filename }) => {
            detail.target_id = target.map(|target| origins.id(Id::Kernel(target))).unwrap_or_default();
            detail.target_filename = filename.to_string();
            "executed"
        }
    }
    .into();
    detail
}
