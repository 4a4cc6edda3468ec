//! The node's synchronous part: lineage, fuse, attempts and containers, in one thread, without I/O but for cgroup
//! look-ups.
//!
//! Lineage goes in up to a time before the verdicts of that time; then every verdict finds the image that made it.

use std::sync::Arc;

use seclog_proto::v1::{CgroupMove, NodeRecord, VerdictCount, node_record::Detail};

use crate::{
    abi_names,
    capture::{
        audit::AuditRecord,
        kernel::{KernelVerdict, VerdictOverflow},
    },
    clock::Offset,
    container::Cgroups,
    fuse::{Fuse, HOLD_NS, Verdict},
    lineage::{Attempts, Event, EventKind, Image, Process, ProcessKey, Processes, Task},
    record::{self, Origins},
};

/// audit's coarse clock is early by up to one tick (HZ=100), nanoseconds.
const TICK_NS: u64 = 10_000_000;
/// An event stamped before a drain can become visible only after it: its CPU was between the two. Nanoseconds.
const IN_FLIGHT_NS: u64 = 10_000_000;

/// Events in, node records out.
#[derive(Debug)]
pub struct Pipeline {
    pub origins: Origins,
    pub processes: Processes,
    pub cgroups: Cgroups,
    fuse: Fuse,
    attempts: Attempts,
    losses: u64,
    overflows: u64,
    pub counters: PipelineCounters,
}

/// What went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PipelineCounters {
    pub lineage_events: u64,
    pub kernel_verdicts: u64,
    pub audit_verdicts: u64,
    pub fused: u64,
    pub only_kernel: u64,
    pub only_audit: u64,
    /// Verdicts whose process was not known.
    pub unpinned: u64,
    /// Node records made, and those of them that tell of losses.
    pub records: u64,
    pub losses: u64,
}

// === impl Pipeline ===

impl Pipeline {
    pub fn new(origins: Origins, processes: Processes, cgroups: Cgroups) -> Self {
        Self {
            origins,
            processes,
            cgroups,
            fuse: Fuse::default(),
            attempts: Attempts::default(),
            losses: 0,
            overflows: 0,
            counters: PipelineCounters::default(),
        }
    }

    /// One source of verdicts works, and no other will: verdicts need not wait for their other half.
    pub fn with_one_source(self) -> Self {
        Self { fuse: Fuse::of_one_source(), ..self }
    }

    /// A fork, exec or exit. What happens below a session root is reported; the rest is only remembered.
    pub fn lineage(&mut self, event: &Event, offset: Offset, out: &mut Vec<NodeRecord>) {
        self.counters.lineage_events += 1;
        match &event.kind {
            EventKind::CgroupMade { cgroup_id, path } => {
                return self.cgroups.learn(*cgroup_id, path, event.time_boot_ns);
            }
            EventKind::CgroupMoved { .. } => return self.cgroup_moved(event, offset, out),
            EventKind::Fork { .. } | EventKind::Exec { .. } | EventKind::Exit { .. } => {}
        }
        let Self { origins, processes, cgroups, .. } = self;
        let now = event.time_boot_ns;
        let applied = processes.apply(event, &mut |id| cgroups.get(id, now).container);
        let Some(process) = processes.get(applied.key).filter(|process| process.root.is_some()) else { return };
        if applied.had_ended {
            return;
        }
        let detail = match &event.kind {
            EventKind::Exec { filename, interpreter, argv, environment, .. } => {
                record::process_start((filename, interpreter), argv, environment, applied.became_root)
            }
            EventKind::Exit { exit_code } => record::process_exit(*exit_code),
            EventKind::Fork { .. } | EventKind::CgroupMade { .. } | EventKind::CgroupMoved { .. } => return,
        };
        let mut record = record::describe(origins, offset, now, Some(process), Some(process.image()), cgroups);
        record::of_task(&mut record, &event.task);
        record.comm = event.task.comm.to_string();
        record.id = origins.kernel_id(&event.origin);
        record.detail = Some(detail);
        out.push(record);
    }

    /// A move teaches the cgroup's path. It is reported when a session's process leaves its container, and changes
    /// nothing else: membership follows lineage.
    fn cgroup_moved(&mut self, event: &Event, offset: Offset, out: &mut Vec<NodeRecord>) {
        let EventKind::CgroupMoved { pid, start_boottime_ns, cgroup_id, path } = &event.kind else { return };
        let Self { origins, processes, cgroups, .. } = self;
        let now = event.time_boot_ns;
        cgroups.learn(*cgroup_id, path, now);
        let key = ProcessKey { pid: *pid, start_boottime_ns: *start_boottime_ns };
        let Some((before, process)) = processes.moved(key, *cgroup_id) else { return };
        let Some(root) = &process.root else { return };
        let to = cgroups.get(*cgroup_id, now).container;
        if to.as_ref() == Some(&root.container) || before == *cgroup_id {
            return;
        }
        let mut record = record::describe(origins, offset, now, Some(process), Some(process.image()), cgroups);
        record.id = origins.kernel_id(&event.origin);
        record.detail = Some(Detail::CgroupMove(CgroupMove {
            from_cgroup_id: before,
            to_cgroup_id: *cgroup_id,
            to_cgroup_path: path.to_string(),
            to_container_id: to.as_deref().unwrap_or_default().to_owned(),
            moved_by_pid: event.task.pid,
        }));
        out.push(record);
    }

    /// Verdicts of which the kernel kept only the count, as a record.
    pub fn verdict_count(&mut self, count: &VerdictOverflow, offset: Offset, out: &mut Vec<NodeRecord>) {
        let VerdictOverflow { task, syscall, code, compat, count, first_boot_ns, last_boot_ns } = count;
        self.overflows += 1;
        let key = ProcessKey { pid: task.pid, start_boottime_ns: task.start_boottime_ns };
        let process = self.processes.get(key);
        let image = Image {
            comm: Arc::clone(&task.comm),
            cgroup_id: task.cgroup_id,
            mount_namespace: task.mount_namespace,
            pid_namespace: task.pid_namespace,
            ..Default::default()
        };
        let mut record =
            record::describe(&self.origins, offset, *last_boot_ns, process, Some(&image), &mut self.cgroups);
        record.id = self.origins.kernel_id(format_args!("o{}", self.overflows));
        record.pid = task.pid;
        record.start_boottime_ns = task.start_boottime_ns;
        record::of_task(&mut record, task);
        self.root_of_kernel(task, *last_boot_ns, &mut record);
        let arch = abi_names::native_arch(compat.unwrap_or(false));
        record.detail = Some(Detail::VerdictCount(VerdictCount {
            syscall: *syscall,
            syscall_name: abi_names::syscall_name(arch, *syscall).into(),
            arch,
            arch_name: abi_names::arch_name(arch, *syscall).into(),
            code: *code,
            action: abi_names::action_name(*code).into(),
            count: *count,
            first_unix_ns: offset.to_unix(*first_boot_ns),
            last_unix_ns: offset.to_unix(*last_boot_ns),
        }));
        out.push(record);
    }

    pub fn kernel_verdict(&mut self, verdict: KernelVerdict, now_boot_ns: u64) {
        self.counters.kernel_verdicts += 1;
        self.fuse.kernel(verdict, now_boot_ns);
    }

    pub fn audit_verdict(&mut self, record: AuditRecord, offset: Offset, now_boot_ns: u64) {
        self.counters.audit_verdicts += 1;
        let time_boot_ns = offset.to_boot(record.time.unix_ms.saturating_mul(1_000_000));
        self.fuse.audit(record, time_boot_ns, now_boot_ns);
    }

    /// Records that were not delivered, as a record.
    pub fn loss(
        &mut self,
        (source, reason): (&str, String),
        count: Option<u64>,
        (from_boot_ns, until_boot_ns): (u64, u64),
        offset: Offset,
        out: &mut Vec<NodeRecord>,
    ) {
        self.losses += 1;
        self.counters.losses += 1;
        let mut record = record::describe(&self.origins, offset, until_boot_ns, None, None, &mut self.cgroups);
        record.id = self.origins.kernel_id(format_args!("x{}", self.losses));
        let (from, until) = (offset.to_unix(from_boot_ns), offset.to_unix(until_boot_ns));
        record.detail = Some(record::loss(source, reason, count, from, until));
        out.push(record);
    }

    /// Hands out what has waited long enough. Call it when lineage is in up to `now_boot_ns`; with `ending`, nothing
    /// waits any longer.
    pub fn advance(&mut self, now_boot_ns: u64, offset: Offset, ending: bool, out: &mut Vec<NodeRecord>) {
        while let Some(verdict) = self.fuse.next(now_boot_ns, ending) {
            self.pin(verdict, now_boot_ns, offset, out);
        }
        let mut settled = Vec::new();
        let times = (now_boot_ns, self.fuse.hold_ns(now_boot_ns).max(HOLD_NS));
        self.attempts.settle(&self.processes, times, ending, &mut settled);
        for (key, mut record, target) in settled {
            if let (Some(target), Some(Detail::Verdict(verdict))) = (target, &mut record.detail) {
                verdict.target_id = self.origins.kernel_id(&target);
            }
            // The attempt that made a session root belongs to it, though its caller was still outside.
            if record.session_root.is_none() {
                let process = self.processes.get(key);
                record.session_root =
                    record::describe(&self.origins, offset, 0, process, None, &mut self.cgroups).session_root;
            }
            out.push(record);
        }
    }

    /// Finds the image that made a verdict. Attempts to start a program then wait for their outcome.
    fn pin(&mut self, mut verdict: Verdict, now_boot_ns: u64, offset: Offset, out: &mut Vec<NodeRecord>) {
        match (&verdict.kernel, &verdict.audit) {
            (Some(_), Some(_)) => self.counters.fused += 1,
            (Some(_), None) => self.counters.only_kernel += 1,
            _ => self.counters.only_audit += 1,
        }
        let process = find(&self.processes, &verdict);
        if process.is_none() {
            self.counters.unpinned += 1;
        }
        let image = process.map(|process| caller_image(process, &verdict));
        let (key, generation) = (process.map(|process| process.key), image.map_or(0, |image| image.generation));
        // A process whose lineage was lost is still what the kernel stamped.
        let stamped = verdict.kernel.as_ref().filter(|_| process.is_none()).map(|kernel| Image {
            comm: Arc::clone(&kernel.task.comm),
            cgroup_id: kernel.task.cgroup_id,
            mount_namespace: kernel.task.mount_namespace,
            pid_namespace: kernel.task.pid_namespace,
            ..Default::default()
        });
        let image = image.or(stamped.as_ref());
        let mut record =
            record::describe(&self.origins, offset, verdict.time_boot_ns, process, image, &mut self.cgroups);
        record::verdict(&mut record, &self.origins, &mut verdict);
        if let Some(kernel) = &verdict.kernel {
            self.root_of_kernel(&kernel.task, verdict.time_boot_ns, &mut record);
        }
        let exec =
            matches!(&record.detail, Some(Detail::Verdict(detail)) if abi_names::is_exec(detail.arch, detail.syscall));
        match key {
            Some(key) if exec => self.attempts.add(key, generation, verdict.time_boot_ns, record, now_boot_ns),
            _ => {
                if exec && let Some(Detail::Verdict(detail)) = &mut record.detail {
                    detail.outcome = "unknown".into();
                }
                out.push(record);
            }
        }
    }

    /// Membership that lineage cannot tell, because its records were lost, the kernel tells from its own memory.
    fn root_of_kernel(&mut self, task: &Task, at_boot_ns: u64, record: &mut NodeRecord) {
        let Self { processes, cgroups, .. } = self;
        if record.session_root.is_none() {
            let root = processes.root_by_kernel(task, &mut |id| cgroups.get(id, at_boot_ns).container);
            record.session_root = root.as_deref().map(record::session_root);
        }
    }

    /// Something waits for its time, not for an event.
    pub fn is_waiting(&self) -> bool {
        self.fuse.held() > 0 || !self.attempts.is_empty()
    }

    /// Boot clock time up to which every record was handed out, when lineage is in up to `drained_boot_ns`.
    pub fn watermark(&self, drained_boot_ns: u64) -> u64 {
        let held = if self.fuse.held() > 0 { self.fuse.hold_ns(drained_boot_ns) } else { 0 };
        let now = drained_boot_ns.saturating_sub(held + IN_FLIGHT_NS + TICK_NS);
        self.attempts.oldest().map_or(now, |oldest| now.min(oldest))
    }
}

fn find<'a>(processes: &'a Processes, verdict: &Verdict) -> Option<&'a Process> {
    let at = verdict.time_boot_ns;
    match (&verdict.kernel, &verdict.audit) {
        (Some(kernel), _) => {
            let key = ProcessKey { pid: kernel.task.pid, start_boottime_ns: kernel.task.start_boottime_ns };
            // By pid alone only where the kernel's layout gives no start time.
            processes.get(key).or_else(|| processes.at(kernel.task.pid, at, at).filter(|_| key.start_boottime_ns == 0))
        }
        (None, Some(audit)) => processes.at(audit.pid, at, at + TICK_NS),
        (None, None) => None,
    }
}

/// By time where the time is exact. audit's is early by up to a tick: of the images of that tick, the first whose comm is
/// the record's.
fn caller_image<'a>(process: &'a Process, verdict: &Verdict) -> &'a Image {
    let at = verdict.time_boot_ns;
    let Some(audit) = verdict.audit.as_ref().filter(|_| verdict.kernel.is_none()) else { return process.image_at(at) };
    let first = process.image_at(at);
    process
        .images()
        .filter(|image| image.generation >= first.generation && image.since_boot_ns <= at + TICK_NS)
        .find(|image| *image.comm == *audit.comm)
        .unwrap_or(first)
}
