//! The node's synchronous part: lineage, fuse, attempts and containers, in one thread, without I/O but for cgroup
//! look-ups.
//!
//! Lineage goes in up to a time before the verdicts of that time; then every verdict finds the image that made it.

use seclog_proto::v1::{NodeRecord, node_record::Detail};

use crate::{
    abi_names,
    capture::{audit::AuditRecord, kernel::KernelVerdict},
    clock::Offset,
    container::Cgroups,
    fuse::{Fuse, Verdict},
    lineage::{Attempts, Event, EventKind, Image, Process, ProcessKey, Processes},
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
            counters: PipelineCounters::default(),
        }
    }

    /// A fork, exec or exit. What happens below a session root is reported; the rest is only remembered.
    pub fn lineage(&mut self, event: &Event, offset: Offset, out: &mut Vec<NodeRecord>) {
        self.counters.lineage_events += 1;
        let Self { origins, processes, cgroups, .. } = self;
        let now = event.time_boot_ns;
        let applied = processes.apply(event, &mut |id| cgroups.get(id, now).container);
        let Some(process) = processes.get(applied.key).filter(|process| process.root.is_some()) else { return };
        let detail = match &event.kind {
            EventKind::Fork { .. } => return,
            EventKind::Exec { filename, interpreter, argv, .. } => {
                record::process_start(filename, interpreter, argv, applied.became_root)
            }
            EventKind::Exit { exit_code } => record::process_exit(*exit_code),
        };
        let mut record = record::describe(origins, offset, now, Some(process), Some(process.image()), cgroups);
        record::of_task(&mut record, &event.task);
        record.comm = event.task.comm.to_string();
        record.id = origins.kernel_id(&event.origin);
        record.detail = Some(detail);
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
        let mut record = record::describe(&self.origins, offset, until_boot_ns, None, None, &mut self.cgroups);
        record.id = self.origins.kernel_id(&format!("x{}", self.losses));
        let (from, until) = (offset.to_unix(from_boot_ns), offset.to_unix(until_boot_ns));
        record.detail = Some(record::loss(source, reason, count, from, until));
        out.push(record);
    }

    /// Hands out what has waited long enough. Call it when lineage is in up to `now_boot_ns`; with `ending`, nothing
    /// waits any longer.
    pub fn advance(&mut self, now_boot_ns: u64, offset: Offset, ending: bool, out: &mut Vec<NodeRecord>) {
        while let Some(verdict) = self.fuse.next(if ending { u64::MAX } else { now_boot_ns }) {
            self.pin(&verdict, now_boot_ns, offset, out);
        }
        let mut settled = Vec::new();
        self.attempts.settle(&self.processes, now_boot_ns, ending, &mut settled);
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
    fn pin(&mut self, verdict: &Verdict, now_boot_ns: u64, offset: Offset, out: &mut Vec<NodeRecord>) {
        match (&verdict.kernel, &verdict.audit) {
            (Some(_), Some(_)) => self.counters.fused += 1,
            (Some(_), None) => self.counters.only_kernel += 1,
            _ => self.counters.only_audit += 1,
        }
        let process = find(&self.processes, verdict);
        if process.is_none() {
            self.counters.unpinned += 1;
        }
        let image = process.map(|process| caller_image(process, verdict));
        let (key, generation) = (process.map(|process| process.key), image.map_or(0, |image| image.generation));
        let described =
            record::describe(&self.origins, offset, verdict.time_boot_ns, process, image, &mut self.cgroups);
        let record = record::verdict(described, &self.origins, verdict);
        let exec =
            matches!(&record.detail, Some(Detail::Verdict(detail)) if abi_names::is_exec(detail.arch, detail.syscall));
        match key {
            Some(key) if exec => self.attempts.add(key, generation, verdict.time_boot_ns, record, now_boot_ns),
            _ => {
                let mut record = record;
                if exec && let Some(Detail::Verdict(detail)) = &mut record.detail {
                    detail.outcome = "unknown".into();
                }
                out.push(record);
            }
        }
    }

    /// Something waits for its time, not for an event.
    pub fn is_waiting(&self) -> bool {
        self.fuse.held() > 0 || !self.attempts.is_empty()
    }

    /// Boot clock time up to which every record was handed out, when lineage is in up to `drained_boot_ns`.
    pub fn watermark(&self, drained_boot_ns: u64) -> u64 {
        let held = if self.fuse.held() > 0 { crate::fuse::HOLD_NS } else { 0 };
        let now = drained_boot_ns.saturating_sub(held + IN_FLIGHT_NS + TICK_NS);
        self.attempts.oldest().map_or(now, |oldest| now.min(oldest))
    }
}

fn find<'a>(processes: &'a Processes, verdict: &Verdict) -> Option<&'a Process> {
    let at = verdict.time_boot_ns;
    match (&verdict.kernel, &verdict.audit) {
        (Some(kernel), _) => {
            let key = ProcessKey { pid: kernel.task.pid, start_boottime_ns: kernel.task.start_boottime_ns };
            processes.get(key).or_else(|| processes.at(kernel.task.pid, at, at))
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
