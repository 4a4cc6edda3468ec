//! The pipeline's thread: waits for the sources, feeds the pipeline, hands batches over, accounts for losses.

use std::{
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::EventFd,
};
use seclog_abi::program;
use tokio::sync::mpsc;

use crate::{
    absence::Absence,
    capture::{
        audit::AuditReader,
        kernel::{KernelCapture, Record, decode},
    },
    clock::{self, Offset, Offsets},
    memory::Storms,
    pipeline::Pipeline,
    quiet::{Pulse, netlink::AuditControl},
    record::{self, Origins},
    throttle::Throttle,
};

/// Ring records and audit records taken in one pass, so that no source starves another and no batch grows beyond some
/// MiB: a node record has about two KiB.
const BUDGET: usize = 1_024;
/// Longest sleep while something waits for its time, and while nothing does.
const BUSY: u16 = 25;
const IDLE: u16 = 500;
/// After a wake-up, time for more to come: one pass for many events.
const GATHER: Duration = Duration::from_millis(2);
/// How often it is looked again, at the end, whether the last programs are done.
const MOST_UNSETTLED: u32 = 100;
const ACCOUNT_NS: u64 = 1_000_000_000;
/// How often the kernel is asked what it lost.
const ASK_KERNEL_NS: u64 = 10_000_000_000;

/// What works on this host.
#[derive(Debug)]
pub struct Sources {
    pub kernel: Option<KernelCapture>,
    pub audit: Option<AuditReader>,
    /// Signalled by the audit reader and to stop.
    pub wake: Arc<EventFd>,
    /// Since when nothing goes by unseen.
    pub since_boot_ns: u64,
}

/// What the pipeline hands over at once.
#[derive(Debug)]
pub struct Captured {
    pub origins: Origins,
    pub records: Vec<record::Record>,
    /// Wall clock time up to which every record was handed over.
    pub watermark_unix_ns: u64,
    /// Counters by name, now and then.
    pub counters: Option<Vec<(&'static str, u64)>>,
}

/// Feeds the pipeline until `stop` is set or nobody takes batches any more.
pub fn run(
    mut sources: Sources,
    pipeline: Pipeline,
    absence: &Absence,
    batches: &mpsc::Sender<Captured>,
    stop: &AtomicBool,
    pulse: &Pulse,
) {
    let mut driver = Driver::new(pipeline);
    driver.begin(absence, sources.since_boot_ns);
    let mut unsettled = 0;
    let mut more = false;
    loop {
        let ending = stop.load(Ordering::Relaxed);
        // What is left of the last pass wakes nobody up again.
        if !ending && !more {
            wait(&sources, if driver.pipeline.is_waiting() { BUSY } else { IDLE });
        }
        driver.pipeline.set_quiet(pulse.is_quiet(clock::boot_ns()));
        more = driver.pass(&mut sources, ending);
        if ending && !more && unsettled < MOST_UNSETTLED && !driver.is_settled(&sources) {
            // A program that was under way when it was taken off: it needs a processor, and then it is done.
            unsettled += 1;
            thread::sleep(GATHER);
            more = true;
        }
        pulse.beat();
        if !driver.hand_over(batches) {
            return;
        }
        if ending && !more {
            driver.pipeline.end();
            tracing::info!(counters = ?driver.last_counters, "captured");
            return;
        }
    }
}

struct Driver {
    pipeline: Pipeline,
    out: Vec<record::Record>,
    accounted_ns: u64,
    before: Totals,
    malformed: Throttle,
    counters: Option<Vec<(&'static str, u64)>>,
    last_counters: Vec<(&'static str, u64)>,
    watermark_boot_ns: u64,
    offset: Offset,
    /// Also of before the wall clock was set.
    offsets: Offsets,
    malformed_ring: u64,
    audit_closed: bool,
    /// Verdicts handed over as counts: in the end, what the programs call aggregated.
    verdicts_counted: u64,
    /// Of the last lineage event that was read.
    last_lineage_ns: u64,
    /// `None`: we may not ask.
    audit_control: Option<AuditControl>,
    kernel_asked_ns: u64,
    kernel_lost: Option<u64>,
    storms: Storms,
    /// Records handed over at the last accounting.
    records_before: u64,
}

/// Loss counters at the last accounting.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    verdict_dropped: u64,
    lineage_dropped: u64,
    recursion_misses: u64,
    overruns: u64,
    queue_full: u64,
    serial_gaps: u64,
}

// === impl Driver ===

impl Driver {
    fn new(pipeline: Pipeline) -> Self {
        Self {
            pipeline,
            out: Vec::new(),
            accounted_ns: clock::boot_ns(),
            before: Totals::default(),
            malformed: Throttle::new(10_000_000_000),
            counters: None,
            last_counters: Vec::new(),
            watermark_boot_ns: 0,
            offset: Offset::now(),
            offsets: Offsets::new(Offset::now()),
            malformed_ring: 0,
            audit_closed: false,
            verdicts_counted: 0,
            last_lineage_ns: 0,
            audit_control: AuditControl::open().ok(),
            kernel_asked_ns: 0,
            kernel_lost: None,
            storms: Storms::default(),
            records_before: 0,
        }
    }

    /// What happened while nobody watched is lost, and said first.
    fn begin(&mut self, absence: &Absence, since_boot_ns: u64) {
        let from = absence.from_unix_ns.map_or(0, |unix_ns| self.offset.to_boot(unix_ns));
        let window = (from, since_boot_ns.max(from));
        self.pipeline.loss(("agent", absence.reason.to_owned()), None, window, self.offset, &mut self.out);
    }

    /// One round over all sources; true when some may hold more.
    fn pass(&mut self, sources: &mut Sources, ending: bool) -> bool {
        // Read before draining: everything stamped by then is in, but for what is in flight.
        let now = clock::boot_ns();
        self.look_at_clock();
        let mut more = false;
        // Up to when lineage is in: that is how far verdicts can be judged.
        let mut lineage_ns = now;
        if let Some(kernel) = &mut sources.kernel {
            if ending {
                // Nothing new from here on, so that the counters close.
                kernel.close();
            }
            if self.drain_lineage(&mut kernel.lineage) {
                more = true;
                lineage_ns = self.last_lineage_ns;
            }
            for path in self.pipeline.take_made() {
                kernel.cgroup_made(&path);
            }
            if let Some(verdicts) = &mut kernel.verdicts {
                more |= self.drain_verdicts(verdicts, now);
            }
            for count in kernel.take_overflow(now, ending) {
                self.verdicts_counted += count.count;
                self.pipeline.verdict_count(count, self.offset, &mut self.out);
            }
        }
        if let Some(audit) = &sources.audit {
            more |= self.drain_audit(audit, now);
        }
        self.pipeline.advance(lineage_ns, self.offset, ending && !more, &mut self.out);
        if !more {
            self.watermark_boot_ns = self.pipeline.watermark(now);
        }
        if now >= self.accounted_ns + ACCOUNT_NS || ending {
            self.pipeline.processes.look_for_gaps();
            self.account(sources, now);
        }
        more
    }

    fn look_at_clock(&mut self) {
        self.offset = Offset::now();
        if let Some(moved) = self.offsets.look(self.offset) {
            tracing::warn!(
                milliseconds = moved / 1_000_000,
                "the wall clock was set; records before and after differ by it"
            );
        }
    }

    /// Whether everything that the programs have seen is accounted for: read, counted or dropped.
    fn is_settled(&self, sources: &Sources) -> bool {
        let Some(kernel) = &sources.kernel else { return true };
        let (verdict, lineage) = (kernel.counters(program::VERDICT), kernel.lineage_counters());
        let counters = &self.pipeline.counters;
        verdict.seen == verdict.submitted + verdict.aggregated + verdict.dropped
            && lineage.seen == lineage.submitted + lineage.dropped
            && verdict.submitted + lineage.submitted
                == counters.kernel_verdicts + counters.lineage_events + self.malformed_ring
            && verdict.aggregated == self.verdicts_counted
    }

    fn drain_lineage(&mut self, ring: &mut RingBuf<MapData>) -> bool {
        for _ in 0..BUDGET {
            let Some(item) = ring.next() else { return false };
            match decode(&item) {
                Ok(Record::Lineage(event)) => {
                    self.last_lineage_ns = event.time_boot_ns;
                    self.pipeline.lineage(&event, self.offset, &mut self.out);
                }
                Ok(Record::Verdict(_)) => self.malformed_ring += 1,
                Err(error) => {
                    self.malformed_ring += 1;
                    if self.malformed.allows(clock::boot_ns()) {
                        tracing::warn!(%error, "a lineage record was skipped");
                    }
                }
            }
        }
        true
    }

    fn drain_verdicts(&mut self, ring: &mut RingBuf<MapData>, now: u64) -> bool {
        for _ in 0..BUDGET {
            let Some(item) = ring.next() else { return false };
            match decode(&item) {
                Ok(Record::Verdict(verdict)) => self.pipeline.kernel_verdict(verdict, now),
                Ok(Record::Lineage(_)) => self.malformed_ring += 1,
                Err(error) => {
                    self.malformed_ring += 1;
                    if self.malformed.allows(clock::boot_ns()) {
                        tracing::warn!(%error, "a verdict record was skipped");
                    }
                }
            }
        }
        true
    }

    fn drain_audit(&mut self, audit: &AuditReader, now: u64) -> bool {
        for _ in 0..BUDGET {
            let Some(record) = audit.next() else { return false };
            let offset = self.offsets.at(record.time.unix_ms.saturating_mul(1_000_000), now);
            self.pipeline.audit_verdict(record, offset, now);
        }
        true
    }

    /// Losses since the last accounting, as records; all counters, for the heartbeat.
    fn account(&mut self, sources: &Sources, now: u64) {
        let window = (self.accounted_ns, now);
        self.accounted_ns = now;
        let records = self.pipeline.counters.records;
        self.storms.look((records - self.records_before) as usize);
        self.records_before = records;
        let mut counters = vec![
            ("lineage_events", self.pipeline.counters.lineage_events),
            ("kernel_verdicts", self.pipeline.counters.kernel_verdicts),
            ("audit_verdicts", self.pipeline.counters.audit_verdicts),
            ("fused", self.pipeline.counters.fused),
            ("only_kernel", self.pipeline.counters.only_kernel),
            ("only_audit", self.pipeline.counters.only_audit),
            ("unpinned", self.pipeline.counters.unpinned),
            ("malformed_ring", self.malformed_ring),
            (
                "malformed_audit",
                sources.audit.as_ref().map_or(0, |audit| audit.counters.malformed_records.load(Ordering::Relaxed)),
            ),
            ("processes", self.pipeline.processes.len() as u64),
            ("records", self.pipeline.counters.records),
            ("losses", self.pipeline.counters.losses),
            ("own_records", self.pipeline.counters.own_records),
        ];
        if let Some(kernel) = &sources.kernel {
            let (verdict, lineage) = (kernel.counters(program::VERDICT), kernel.lineage_counters());
            counters.extend([
                ("verdict_seen", verdict.seen),
                ("verdict_submitted", verdict.submitted),
                ("verdict_aggregated", verdict.aggregated),
                ("verdict_dropped", verdict.dropped),
                ("verdict_recursion_misses", verdict.recursion_misses),
                ("verdict_verified_instructions", verdict.verified_instructions),
                ("lineage_seen", lineage.seen),
                ("lineage_submitted", lineage.submitted),
                ("lineage_dropped", lineage.dropped),
                ("lineage_filtered", lineage.filtered),
                ("lineage_recursion_misses", lineage.recursion_misses),
                ("lineage_verified_instructions", lineage.verified_instructions),
                ("process_map_full", lineage.process_map_full),
                ("verdicts_counted", self.verdicts_counted),
                ("overflow_unreadable", kernel.unreadable_overflow()),
            ]);
            let full = "the ring was full, and so was the map that counts what it cannot take";
            self.lost(("verdict_ring", full), verdict.dropped - self.before.verdict_dropped, window);
            let full = "the ring was full: this process did not get to read it in time";
            self.lost(("lineage_ring", full), lineage.dropped - self.before.lineage_dropped, window);
            let missed = verdict.recursion_misses + lineage.recursion_misses;
            let reason = "a program was due while it ran on the same CPU (recursion_misses)";
            self.lost(("hook", reason), missed.saturating_sub(self.before.recursion_misses), window);
            self.before.verdict_dropped = verdict.dropped;
            self.before.lineage_dropped = lineage.dropped;
            self.before.recursion_misses = missed;
        }
        if let Some(audit) = &sources.audit {
            let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            let (overruns, queue_full) = (load(&audit.counters.overruns), load(&audit.counters.queue_full));
            counters.extend([
                ("audit_received", load(&audit.counters.received)),
                ("audit_overruns", overruns),
                ("audit_queue_full", queue_full),
                ("audit_malformed_datagrams", load(&audit.counters.malformed)),
            ]);
            if overruns > self.before.overruns {
                let reason =
                    format!("ENOBUFS {} times: the socket's receive buffer was full", overruns - self.before.overruns);
                self.pipeline.loss(("audit_netlink", reason), None, window, self.offset, &mut self.out);
            }
            self.lost(("audit_netlink", "the agent's own queue was full"), queue_full - self.before.queue_full, window);
            let serial_gaps = load(&audit.counters.serial_gaps);
            let gaps = serial_gaps - self.before.serial_gaps;
            self.before.serial_gaps = serial_gaps;
            let kernel_lost = self.kernel_lost(now, window);
            counters.extend([("audit_serial_gaps", serial_gaps), ("audit_kernel_lost", kernel_lost)]);
            let reason = "serial numbers never came: records of any type lost before they reached us, a lower bound";
            self.lost(("audit_netlink", reason), gaps, window);
            self.before.overruns = overruns;
            self.before.queue_full = queue_full;
            if audit.counters.closed.load(Ordering::Relaxed) && !self.audit_closed {
                self.audit_closed = true;
                let reason = "the audit socket is closed: nothing comes from audit until a restart".to_owned();
                self.pipeline.loss(("audit_netlink", reason), None, window, self.offset, &mut self.out);
            }
        }
        self.last_counters.clone_from(&counters);
        self.counters = Some(counters);
    }

    /// What the kernel says it lost of its audit records since boot, asked now and then; 0 without the right to ask. New
    /// losses become a record.
    fn kernel_lost(&mut self, now: u64, window: (u64, u64)) -> u64 {
        if now >= self.kernel_asked_ns + ASK_KERNEL_NS
            && let Some(control) = &mut self.audit_control
        {
            self.kernel_asked_ns = now;
            match control.status() {
                Ok(status) => {
                    let lost = u64::from(status.lost);
                    if let Some(before) = self.kernel_lost.replace(lost) {
                        let since = (window.1.saturating_sub(ASK_KERNEL_NS), window.1);
                        self.lost(
                            ("audit_netlink", "the kernel's own count of lost audit records, of any type"),
                            lost.saturating_sub(before),
                            since,
                        );
                    }
                }
                Err(error) => {
                    tracing::info!(%error, "the kernel's own count of lost audit records is not known");
                    self.audit_control = None;
                }
            }
        }
        self.kernel_lost.unwrap_or(0)
    }

    fn lost(&mut self, (source, reason): (&'static str, &str), count: u64, window: (u64, u64)) {
        if count == 0 {
            return;
        }
        tracing::warn!(source, count, reason, "records were lost");
        self.pipeline.loss((source, reason.to_owned()), Some(count), window, self.offset, &mut self.out);
    }

    /// Waits while the uplink is slow: meanwhile the rings fill, and what they cannot take is counted. False when nobody
    /// takes batches any more.
    fn hand_over(&mut self, batches: &mpsc::Sender<Captured>) -> bool {
        let counters = self.counters.take();
        if self.out.is_empty() && counters.is_none() {
            return !batches.is_closed();
        }
        self.pipeline.counters.records += self.out.len() as u64;
        let batch = Captured {
            origins: self.pipeline.origins.clone(),
            records: std::mem::take(&mut self.out),
            watermark_unix_ns: self.offset.to_unix(self.watermark_boot_ns),
            counters,
        };
        batches.blocking_send(batch).is_ok()
    }
}

/// Until a source has something, or for so many milliseconds.
fn wait(sources: &Sources, milliseconds: u16) {
    let mut descriptors = vec![PollFd::new(std::os::fd::AsFd::as_fd(&*sources.wake), PollFlags::POLLIN)];
    if let Some(kernel) = &sources.kernel {
        for ring in std::iter::once(&kernel.lineage).chain(&kernel.verdicts) {
            // SAFETY: the ring outlives this call.
            let descriptor = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
            descriptors.push(PollFd::new(descriptor, PollFlags::POLLIN));
        }
    }
    let ready = poll(&mut descriptors, PollTimeout::from(milliseconds)).unwrap_or(0);
    if ready > 0 {
        let woken = descriptors[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN));
        drop(descriptors);
        if woken {
            let _ = sources.wake.read();
        }
        thread::sleep(GATHER);
    }
}
