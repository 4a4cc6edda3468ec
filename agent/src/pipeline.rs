//! The node's synchronous part: lineage, fuse, attempts and containers, in one thread, without I/O but for cgroup
//! look-ups.
//!
//! Lineage goes in up to a time before the verdicts of that time; then every verdict finds the image that made it.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::{
    abi_names,
    capture::{
        audit::AuditRecord,
        kernel::{KernelVerdict, VerdictOverflow},
    },
    clock::{Offset, TICK_NS},
    container::{Cgroups, container_of_path},
    fuse::{Fuse, HOLD_NS, Verdict},
    lineage::{
        Attempts, Event, EventKind, Image, Keeping, Outcome, Process, ProcessKey, Processes, Reconcile, RecordOrigin,
        Root, Task,
    },
    record::{Detail, Id, Lost, Moved, Origins, Record, Start, VerdictEnd},
};

/// An event stamped before a drain can become visible only after it: its CPU was between the two. Nanoseconds.
const IN_FLIGHT_NS: u64 = 10_000_000;

/// How often processes that were not kept are told of.
const TELL_EVERY_NS: u64 = 1_000_000_000;
/// Cgroups that were made and not yet asked for.
const MOST_MADE: usize = 4096;

/// Events in, records out.
#[derive(Debug)]
pub struct Pipeline {
    pub origins: Origins,
    pub processes: Processes,
    pub cgroups: Cgroups,
    fuse: Fuse,
    attempts: Attempts,
    losses: u64,
    overflows: u64,
    /// Paths of cgroups that were made and not yet asked for.
    made: Vec<Arc<str>>,
    keeping: Option<Keeping>,
    /// The session root that the agent itself is below.
    own: Option<Arc<Root>>,
    reconcile: Option<Reconcile>,
    /// Processes that were found gone.
    gone: u64,
    /// How many processes that were not kept were told of, and when.
    not_kept_told: (u64, u64),
    /// Told of containers whose cgroup was made.
    containers: Option<mpsc::Sender<Arc<str>>>,
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
    /// Records made, and those of them that tell of losses.
    pub records: u64,
    pub losses: u64,
    /// Records of the agent's own container, which are not handed over.
    pub own_records: u64,
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
            made: Vec::new(),
            keeping: None,
            own: None,
            reconcile: None,
            gone: 0,
            not_kept_told: (0, 0),
            containers: None,
            counters: PipelineCounters::default(),
        }
    }

    /// Keeps what is known of processes for the next run.
    #[must_use]
    pub fn with_keeping(self, keeping: Keeping) -> Self {
        Self { keeping: Some(keeping), ..self }
    }

    /// Leaves out what is below this root: the agent's own container's main process.
    #[must_use]
    pub fn without_own(self, own: Option<Arc<Root>>) -> Self {
        Self { own, ..self }
    }

    fn is_own(&self, root: Option<&Arc<Root>>) -> bool {
        match (&self.own, root) {
            (Some(own), Some(root)) => own.key == root.key && own.key.pid != 0,
            _ => false,
        }
    }

    /// Takes records of the agent's own out of what is handed over.
    fn leave_out_own(&mut self, from: usize, out: &mut Vec<Record>) {
        if self.own.is_none() || !out.iter().skip(from).any(|record| self.is_own(record.root.as_ref())) {
            return;
        }
        let before = out.len();
        let rest: Vec<Record> = out.drain(from..).filter(|record| !self.is_own(record.root.as_ref())).collect();
        out.extend(rest);
        self.counters.own_records += (before - out.len()) as u64;
    }

    /// Looks there for processes whose end was lost.
    #[must_use]
    pub fn with_reconcile(self, reconcile: Reconcile) -> Self {
        Self { reconcile: Some(reconcile), ..self }
    }

    /// Tells of containers as their cgroups are made, so that they can be looked up while they exist.
    #[must_use]
    pub fn with_containers(self, containers: mpsc::Sender<Arc<str>>) -> Self {
        Self { containers: Some(containers), ..self }
    }

    /// Nothing comes any more.
    pub fn end(&mut self) {
        if let Some(keeping) = &mut self.keeping {
            keeping.stop(&self.processes);
        }
    }

    /// One source of verdicts works, and no other will: verdicts need not wait for their other half.
    pub fn with_one_source(self) -> Self {
        Self { fuse: Fuse::of_one_source(), ..self }
    }

    /// Whether the kernel makes no audit records of verdicts for now.
    pub fn set_quiet(&mut self, quiet: bool) {
        self.fuse.set_quiet(quiet);
    }

    /// A fork, exec or exit. What happens below a session root is reported; the rest is only remembered.
    pub fn lineage(&mut self, event: &Event, offset: Offset, out: &mut Vec<Record>) {
        let from = out.len();
        self.lineage_event(event, offset, out);
        self.leave_out_own(from, out);
    }

    fn lineage_event(&mut self, event: &Event, offset: Offset, out: &mut Vec<Record>) {
        self.counters.lineage_events += 1;
        match &event.kind {
            EventKind::CgroupMade { cgroup_id, path } => {
                return self.cgroup_made(*cgroup_id, path, event.time_boot_ns);
            }
            EventKind::CgroupMoved { .. } => return self.cgroup_moved(event, offset, out),
            EventKind::Fork { .. } | EventKind::Exec { .. } | EventKind::Exit { .. } => {}
        }
        let Self { processes, cgroups, .. } = self;
        let now = event.time_boot_ns;
        let applied = processes.apply(event, &mut |id| cgroups.get(id, now).container.clone());
        let Some(process) = processes.get(applied.key).filter(|process| process.root.is_some()) else { return };
        if applied.had_ended {
            return;
        }
        let detail = match &event.kind {
            EventKind::Exec { filename, interpreter, argv, environment, .. } => Detail::Start(Start {
                filename: Arc::clone(filename),
                interpreter: Arc::clone(interpreter),
                argv: argv.clone(),
                environment: environment.clone(),
                is_session_root: applied.became_root,
                entered: processes.entered(process),
            }),
            EventKind::Exit { exit_code } => Detail::Exit(*exit_code),
            EventKind::Fork { .. } | EventKind::CgroupMade { .. } | EventKind::CgroupMoved { .. } => return,
        };
        let mut record = Record::new(Id::Kernel(event.origin), offset, now, detail);
        record.of_process(process).of_image(process.image(), cgroups).of_task(&event.task);
        record.comm = event.task.comm;
        out.push(record);
    }

    /// Its path is known from here on, before anything runs in it.
    fn cgroup_made(&mut self, cgroup_id: u64, path: &Arc<str>, now: u64) {
        self.cgroups.learn(cgroup_id, path, now);
        self.processes.cgroup_made(cgroup_id, path);
        if let (Some(containers), Some(id)) = (&self.containers, container_of_path(path)) {
            // Where there is no room, it is looked up when its first record comes.
            let _ = containers.try_send(id.into());
        }
        if self.made.len() < MOST_MADE {
            self.made.push(Arc::clone(path));
        }
    }

    /// Cgroups that were made since the last call.
    pub fn take_made(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.made)
    }

    /// A move teaches the cgroup's path. It is reported when a session's process leaves its container, and changes
    /// nothing else: membership follows lineage.
    fn cgroup_moved(&mut self, event: &Event, offset: Offset, out: &mut Vec<Record>) {
        let EventKind::CgroupMoved { pid, start_boottime_ns, cgroup_id, path } = &event.kind else { return };
        let Self { processes, cgroups, .. } = self;
        let now = event.time_boot_ns;
        cgroups.learn(*cgroup_id, path, now);
        let key = ProcessKey { pid: *pid, start_boottime_ns: *start_boottime_ns };
        let Some((before, process)) = processes.moved(key, *cgroup_id) else { return };
        let Some(root) = &process.root else { return };
        let to = cgroups.get(*cgroup_id, now).container.clone();
        if to.as_ref() == Some(&root.container) || before == *cgroup_id {
            return;
        }
        let moved = Moved {
            from_cgroup_id: before,
            to_cgroup_id: *cgroup_id,
            to_path: Arc::clone(path),
            to_container: to,
            by_pid: event.task.pid,
        };
        let mut record = Record::new(Id::Kernel(event.origin), offset, now, Detail::Moved(Box::new(moved)));
        record.of_process(process).of_image(process.image(), cgroups);
        out.push(record);
    }

    /// Verdicts of which the kernel kept only the count, as a record.
    pub fn verdict_count(&mut self, count: VerdictOverflow, offset: Offset, out: &mut Vec<Record>) {
        self.overflows += 1;
        let (task, at) = (count.task, count.last_boot_ns);
        let key = ProcessKey { pid: task.pid, start_boottime_ns: task.start_boottime_ns };
        let mut record = Record::new(Id::Own('o', self.overflows), offset, at, Detail::Count(Box::new(count)));
        if let Some(process) = self.processes.get(key) {
            record.of_process(process);
        }
        record.of_image(&stamped(&task), &mut self.cgroups).of_task(&task);
        record.key = key;
        self.root_of_kernel(&task, &mut record);
        out.push(record);
    }

    pub fn kernel_verdict(&mut self, verdict: KernelVerdict, now_boot_ns: u64) {
        self.counters.kernel_verdicts += 1;
        // It may be younger than the pass that reads it, and lineage is in up to then only.
        let arrived = now_boot_ns.max(verdict.time_boot_ns);
        self.fuse.kernel(verdict, arrived);
    }

    pub fn audit_verdict(&mut self, record: AuditRecord, offset: Offset, now_boot_ns: u64) {
        self.counters.audit_verdicts += 1;
        let time_boot_ns = offset.to_boot(record.time.unix_ms.saturating_mul(1_000_000));
        self.fuse.audit(record, time_boot_ns, now_boot_ns);
    }

    /// Records that were not delivered, as a record.
    pub fn loss(
        &mut self,
        (source, reason): (&'static str, String),
        count: Option<u64>,
        (from_boot_ns, until_boot_ns): (u64, u64),
        offset: Offset,
        out: &mut Vec<Record>,
    ) {
        self.losses += 1;
        self.counters.losses += 1;
        if let Some(reconcile) = self.reconcile.as_mut().filter(|_| source == "lineage_ring") {
            reconcile.lost();
        }
        let (from_unix_ns, until_unix_ns) = (offset.to_unix(from_boot_ns), offset.to_unix(until_boot_ns));
        let lost = Lost { source, reason, count, from_unix_ns, until_unix_ns };
        out.push(Record::new(Id::Own('x', self.losses), offset, until_boot_ns, Detail::Lost(Box::new(lost))));
    }

    /// Hands out what has waited long enough. Call it when lineage is in up to `now_boot_ns`; with `ending`, nothing
    /// waits any longer.
    pub fn advance(&mut self, now_boot_ns: u64, offset: Offset, ending: bool, out: &mut Vec<Record>) {
        let from = out.len();
        self.settle(now_boot_ns, offset, ending, out);
        self.leave_out_own(from, out);
    }

    fn settle(&mut self, now_boot_ns: u64, offset: Offset, ending: bool, out: &mut Vec<Record>) {
        while let Some(verdict) = self.fuse.next(now_boot_ns, ending) {
            self.pin(verdict, now_boot_ns, offset, out);
        }
        if let Some(keeping) = &mut self.keeping {
            keeping.look(&self.processes, now_boot_ns);
        }
        let waiting = self.fuse.oldest_boot_ns().into_iter().chain(self.attempts.oldest()).min();
        self.processes.forget_before(waiting.map_or(now_boot_ns, |oldest| oldest.min(now_boot_ns)));
        self.reconcile(now_boot_ns, offset, out);
        self.tell_not_kept(now_boot_ns, offset, out);
        let mut settled = Vec::new();
        let times = (now_boot_ns, self.fuse.hold_ns(now_boot_ns).max(HOLD_NS));
        self.attempts.settle(&mut self.processes, times, ending, &mut settled);
        for (key, mut record, outcome) in settled {
            if let Detail::Verdict(_, end) = &mut record.detail {
                *end = VerdictEnd::Of(outcome);
            }
            // The attempt that made a session root belongs to it, though its caller was still outside.
            if record.root.is_none() {
                record.root = self.processes.get(key).and_then(|process| process.root.clone());
            }
            out.push(record);
        }
    }

    /// Ends processes whose end was not seen.
    fn reconcile(&mut self, now_boot_ns: u64, offset: Offset, out: &mut Vec<Record>) {
        let Some(reconcile) = &mut self.reconcile else { return };
        for key in reconcile.look(&self.processes, now_boot_ns) {
            if let Some(process) = self.processes.get(key).filter(|process| process.root.is_some()) {
                self.gone += 1;
                let mut record = Record::new(Id::Own('g', self.gone), offset, now_boot_ns, Detail::Gone);
                record.of_process(process).of_image(process.image(), &mut self.cgroups);
                out.push(record);
            }
            self.processes.gone(key, now_boot_ns);
        }
    }

    /// Processes that the table had no room for, once a second as a loss.
    fn tell_not_kept(&mut self, now_boot_ns: u64, offset: Offset, out: &mut Vec<Record>) {
        let (told, since) = self.not_kept_told;
        if now_boot_ns < since + TELL_EVERY_NS {
            return;
        }
        let not_kept = self.processes.not_kept();
        self.not_kept_told = (not_kept, now_boot_ns);
        if not_kept > told {
            let reason = "more processes than the agent remembers: which session these belong to is known where the kernel remembers it";
            let window = (since, now_boot_ns);
            self.loss(("process_table", reason.to_owned()), Some(not_kept - told), window, offset, out);
        }
    }

    /// Finds the image that made a verdict. Attempts to start a program then wait for their outcome.
    fn pin(&mut self, verdict: Verdict, now_boot_ns: u64, offset: Offset, out: &mut Vec<Record>) {
        match (&verdict.kernel, &verdict.audit) {
            (Some(_), Some(_)) => self.counters.fused += 1,
            (Some(_), None) => self.counters.only_kernel += 1,
            _ => self.counters.only_audit += 1,
        }
        let at = verdict.time_boot_ns;
        let id = match (&verdict.kernel, &verdict.audit) {
            (Some(kernel), _) => Id::Kernel(RecordOrigin { stream: 'v', cpu: kernel.cpu, sequence: kernel.sequence }),
            (None, Some(audit)) => Id::Audit(audit.time),
            (None, None) => return,
        };
        let task = verdict.kernel.as_ref().map(|kernel| kernel.task);
        let (arch, syscall) = verdict.call();
        let exec = abi_names::is_exec(arch, syscall);
        let process = find(&self.processes, &verdict);
        let image = process.map(|process| caller_image(process, &verdict));
        let caller = process.zip(image).map(|(process, image)| (process.key, image.generation));
        // A process whose lineage was lost is still what the kernel stamped.
        let stamped = task.as_ref().filter(|_| process.is_none()).map(stamped);
        let end = if exec { VerdictEnd::Of(Outcome::Unknown) } else { VerdictEnd::NoAttempt };
        let mut record = Record::new(id, offset, at, Detail::Verdict(verdict, end));
        if let Some(process) = process {
            record.of_process(process);
        } else {
            self.counters.unpinned += 1;
        }
        if let Some(image) = image.or(stamped.as_ref()) {
            record.of_image(image, &mut self.cgroups);
        }
        record.of_caller();
        if let Some(task) = task {
            self.root_of_kernel(&task, &mut record);
        }
        match caller.filter(|_| exec) {
            Some((key, generation)) => self.attempts.add(key, generation, at, record, now_boot_ns),
            None => out.push(record),
        }
    }

    /// Membership that lineage cannot tell, because its records were lost, the kernel tells from its own memory.
    fn root_of_kernel(&mut self, task: &Task, record: &mut Record) {
        let Self { processes, cgroups, .. } = self;
        if record.root.is_none() {
            record.root =
                processes.root_by_kernel(task, &mut |id| cgroups.get(id, record.time_boot_ns).container.clone());
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

/// What the kernel stamped of a process, in place of an image.
fn stamped(task: &Task) -> Image {
    Image {
        comm: task.comm,
        cgroup_id: task.cgroup_id,
        mount_namespace: task.mount_namespace,
        pid_namespace: task.pid_namespace,
        ..Default::default()
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
        .find(|image| image.comm == audit.comm)
        .unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        capture::audit::AuditTime,
        lineage::{Argv, Environment},
    };

    const MS: u64 = 1_000_000;
    /// The audit time of all attempts.
    const BEGIN: u64 = 1_000 * MS;

    /// What becomes of the attempts of one process that audit alone saw, all in one tick: the first of `programs` runs for a
    /// while, the others follow at one millisecond's distance, each tries once to become the next.
    fn outcomes(programs: &[&str]) -> Vec<Outcome> {
        let origins = Origins { boot_id: "b".into(), epoch: 1 };
        let mut pipeline = Pipeline::new(origins, Processes::new([1]), Cgroups::recorded([])).with_one_source();
        let (offset, mut out) = (Offset::from_pair(0, 0), Vec::new());
        for (index, program) in programs.iter().enumerate() {
            let task = Task { pid: 9, tid: 9, start_boottime_ns: 5, comm: (*program).into(), ..Default::default() };
            let (argv, environment) = (Argv::default(), Environment::default());
            let kind = EventKind::Exec {
                old_tid: 9,
                filename: (*program).into(),
                interpreter: (*program).into(),
                argv,
                environment,
            };
            let time_boot_ns = BEGIN + index as u64 * MS - if index == 0 { 50 * MS } else { 0 };
            let event = Event { origin: RecordOrigin::default(), time_boot_ns, task, kind };
            pipeline.lineage(&event, offset, &mut out);
        }
        for (index, program) in programs[..programs.len() - 1].iter().enumerate() {
            let time = AuditTime { unix_ms: BEGIN / MS, serial: index as u64 };
            let record = AuditRecord {
                time,
                pid: 9,
                comm: (*program).into(),
                syscall: 59,
                arch: abi_names::X86_64,
                ..Default::default()
            };
            pipeline.audit_verdict(record, offset, BEGIN + 5 * MS);
        }
        (1..40).for_each(|round| pipeline.advance(BEGIN + round * 100 * MS, offset, false, &mut out));
        out.into_iter()
            .filter_map(|record| match record.detail {
                Detail::Verdict(_, VerdictEnd::Of(outcome)) => Some(outcome),
                _ => None,
            })
            .collect()
    }

    fn executed(filename: &str) -> Outcome {
        Outcome::Executed { target: Some(RecordOrigin::default()), filename: filename.into() }
    }

    #[test]
    fn by_audit_alone_attempts_of_one_tick_are_told_apart_by_their_names() {
        assert_eq!(outcomes(&["sh", "env", "id"]), [executed("env"), executed("id")]);
    }

    #[test]
    fn by_audit_alone_attempts_of_one_tick_and_one_name_are_told_apart_by_their_order() {
        assert_eq!(outcomes(&["sh", "sh"]), [executed("sh")]);
        assert_eq!(outcomes(&["sh", "sh", "sh", "ls"]), [executed("sh"), executed("sh"), executed("ls")]);
    }
}
