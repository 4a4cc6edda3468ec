//! The fuse on two synthetic streams of the same verdicts, of which audit's comes later and each loses one in a hundred.

use std::collections::VecDeque;

use anyhow::{Result, ensure};
use seclog_agent::{
    capture::{audit::AuditRecord, kernel::KernelVerdict},
    fuse::Fuse,
    lineage::Task,
};

use super::{figure::Figure, processor, spread};

const REPETITIONS: usize = 7;
/// Between two verdicts: 100,000 a second.
const EVERY_NS: u64 = 10_000;
/// How much later audit's stream is read.
const DELAY_NS: u64 = 5_000_000;
/// The kernel's coarse clock (HZ=250).
const TICK_NS: u64 = 4_000_000;
/// Verdicts fed before the fuse is asked again: two milliseconds of them.
const PASS: u64 = 200;

/// Their turn comes every 0.65 s.
const MANY: u64 = 65_536;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub both: u64,
    pub only_kernel: u64,
    pub only_audit: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub truth: Counts,
    pub found: Counts,
    /// Fused out of the halves of two verdicts.
    pub wrong: u64,
    pub cpu_ns: u64,
}

/// `processes` take turns. With [`MANY`], two verdicts of one process lie further apart than the fuse holds, and each pair
/// can be told; with one, only counts can.
pub fn run(verdicts: u64, processes: u64) -> Outcome {
    let mut outcome = Outcome::default();
    let mut fuse = Fuse::default();
    let mut late: VecDeque<(u64, AuditRecord, u64)> = VecDeque::new();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut loses = || {
        // xorshift64: the same losses in every run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random.is_multiple_of(100)
    };
    let mut now = 3_600_000_000_000;
    let mut number = 0;
    while number < verdicts {
        let mut kernel = Vec::new();
        for _ in 0..PASS.min(verdicts - number) {
            now += EVERY_NS;
            let pid = (1000 + number % processes) as u32;
            let (kernel_loses, audit_loses) = (loses(), loses());
            match (kernel_loses, audit_loses) {
                (false, false) => outcome.truth.both += 1,
                (false, true) => outcome.truth.only_kernel += 1,
                (true, false) => outcome.truth.only_audit += 1,
                (true, true) => {}
            }
            if !kernel_loses {
                kernel.push(of_kernel(number, pid, now));
            }
            if !audit_loses {
                late.push_back((now + DELAY_NS, of_audit(number, pid), now / TICK_NS * TICK_NS));
            }
            number += 1;
        }
        let mut audit = Vec::new();
        while late.front().is_some_and(|(due, _, _)| *due <= now) {
            audit.extend(late.pop_front().map(|(_, record, time)| (record, time)));
        }
        outcome.step(&mut fuse, kernel, audit, now, false);
    }
    let rest = late.into_iter().map(|(_, record, time)| (record, time)).collect();
    outcome.step(&mut fuse, Vec::new(), rest, now + DELAY_NS, true);
    outcome
}

// === impl Outcome ===

impl Outcome {
    fn step(
        &mut self,
        fuse: &mut Fuse,
        kernel: Vec<KernelVerdict>,
        audit: Vec<(AuditRecord, u64)>,
        now: u64,
        ending: bool,
    ) {
        let begin = processor::thread_ns();
        kernel.into_iter().for_each(|verdict| fuse.kernel(verdict, now));
        audit.into_iter().for_each(|(record, time)| fuse.audit(record, time, now));
        while let Some(verdict) = fuse.next(now, ending) {
            match (&verdict.kernel, &verdict.audit) {
                (Some(kernel), Some(audit)) => {
                    self.found.both += 1;
                    self.wrong += u64::from(kernel.sequence != audit.time.serial);
                }
                (Some(_), None) => self.found.only_kernel += 1,
                _ => self.found.only_audit += 1,
            }
        }
        self.cpu_ns += processor::thread_ns() - begin;
    }
}

fn of_kernel(number: u64, pid: u32, time_boot_ns: u64) -> KernelVerdict {
    KernelVerdict {
        cpu: 0,
        sequence: number,
        time_boot_ns,
        task: Task { pid, tid: pid, start_boottime_ns: 7, comm: "curl".into(), ..Default::default() },
        syscall: 42,
        signal: 0,
        code: 0x7ffc_0000,
        compat: Some(false),
        instruction_pointer: 0x1234,
    }
}

fn of_audit(number: u64, pid: u32) -> AuditRecord {
    let mut record = AuditRecord {
        pid,
        syscall: 42,
        code: 0x7ffc_0000,
        ip: 0x1234,
        arch: 0xc000_003e,
        comm: "curl".into(),
        exe: "/usr/bin/curl".into(),
        ..Default::default()
    };
    record.time.serial = number;
    record
}

pub fn figures(verdicts: u64) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (name, processes) in
        [("fuse: two sources, 5 ms apart, 1 % lost in each", MANY), ("  of one process at full speed", 1)]
    {
        let mut costs = Vec::new();
        let mut last = Outcome::default();
        for _ in 0..REPETITIONS {
            last = run(verdicts, processes);
            costs.push(last.cpu_ns as f64 / verdicts as f64);
        }
        let Outcome { truth, found, wrong, .. } = last;
        let (in_kernel, in_audit) = (truth.both + truth.only_kernel, truth.both + truth.only_audit);
        ensure!(found.both + found.only_kernel == in_kernel, "verdicts of the ring are lost in the fuse");
        ensure!(found.both + found.only_audit == in_audit, "records of audit are lost in the fuse");
        let how = format!(
            "ns a verdict, {verdicts} x {REPETITIONS}; fused {}, eBPF alone {}, audit alone {}; truth {}, {}, {}; of two verdicts {wrong}",
            found.both, found.only_kernel, found.only_audit, truth.both, truth.only_kernel, truth.only_audit
        );
        figures.push(Figure::stated(name, spread(&costs, 0), how));
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::{MANY, run};

    #[test]
    fn with_many_processes_every_pair_is_the_true_one() {
        let outcome = run(140_000, MANY);
        assert_eq!(outcome.found, outcome.truth);
        assert_eq!(outcome.wrong, 0);
    }

    #[test]
    fn with_one_process_nothing_is_lost() {
        let outcome = run(5_000, 1);
        let (found, truth) = (outcome.found, outcome.truth);
        assert_eq!(found.both + found.only_kernel, truth.both + truth.only_kernel);
        assert_eq!(found.both + found.only_audit, truth.both + truth.only_audit);
    }
}
