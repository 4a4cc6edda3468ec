//! One verdict for what two sources saw.
//!
//! eBPF and audit report the same call of `audit_seccomp`. Both are paired by (process, syscall, ABI, action) within the
//! coarse clock's tick, and by the instruction pointer as a check; a verdict that one source missed goes on alone when it
//! has waited long enough. A loss in one source so never shifts later pairs: what does not fit in time is not paired.
//!
//! The two times can also lie further apart. audit_log_start() waits for room in kauditd's queue before it reads the clock
//! (kernel/audit.c; the queue holds 64 records by default, so any burst waits), and a machine whose processors are taken
//! away for a while ticks late, and audit's clock stands still until then. So a half that has waited in vain takes, at
//! the end of its wait and in order, another one that was left over. When both sources lost a verdict of the same key
//! within that time, those two are taken for one; that needs losses on both sides, which are reported.

use std::collections::{VecDeque, hash_map::Entry};

use foldhash::HashMap;

use crate::{
    abi_names,
    capture::{audit::AuditRecord, kernel::KernelVerdict},
    clock::TICK_NS,
};

/// How long a verdict waits for its other half at least, and for the exec that follows it to be known: nanoseconds.
pub const HOLD_NS: u64 = 250_000_000;
/// How long a verdict waits where there is one source only, for the lineage before it to be in: nanoseconds.
const ALONE_NS: u64 = 20_000_000;
/// The longest it waits, however late audit is: nanoseconds.
const LONGEST_HOLD_NS: u64 = 10_000_000_000;
/// How many times the greatest delay between the halves of late it waits in addition.
const DELAY_FACTOR: u64 = 4;
/// The greatest delay of late counts half as much after so long: nanoseconds.
const DELAY_HALF_LIFE_NS: u64 = 1_000_000_000;
/// Verdicts that wait at once; beyond it the oldest go on early.
const MOST_HELD: usize = 65_536;
/// Both clocks are read by us at different moments, and NTP slews one of them.
const CLOCK_SLACK_NS: u64 = 2_000_000;

/// One verdict by one or two sources. The halves lie elsewhere: tens of thousands wait in a storm, most of them for a half
/// that takes no room before it comes.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub kernel: Option<Box<KernelVerdict>>,
    pub audit: Option<Box<AuditRecord>>,
    /// Boot clock: eBPF's, else audit's coarse time converted.
    pub time_boot_ns: u64,
}

/// Pairs the verdicts of two sources.
#[derive(Debug, Default)]
pub struct Fuse {
    held: VecDeque<Held>,
    /// Number of `held[0]`.
    first: u64,
    /// Verdicts that wait for their other half, by what they share and by the half that they are.
    waiting: HashMap<(Key, Half), Line>,
    /// There is one source: no other half will come.
    alone: bool,
    /// Quiet mode: no other half comes for now.
    quiet: bool,
    /// The greatest time between the arrivals of two halves of late, and when that was.
    delay_ns: u64,
    delay_at_ns: u64,
}

#[derive(Debug)]
struct Held {
    verdict: Verdict,
    key: Key,
    /// Which half came first.
    half: Half,
    arrived_ns: u64,
    /// Number of the next one in its line.
    next: Option<u64>,
}

/// One of the two sources of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Half {
    Kernel,
    Audit,
}

/// The numbers of the first and the last of the same halves of one key that wait, in order of arrival. So the oldest of
/// all that are held is the first of its line, if it is in one.
#[derive(Clone, Copy, Debug)]
struct Line {
    first: u64,
    last: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    pid: u32,
    syscall: i64,
    code: u32,
}

// === impl Verdict ===

impl Verdict {
    /// AUDIT_ARCH_* value and number of the call.
    pub fn call(&self) -> (u32, i64) {
        match (&self.audit, &self.kernel) {
            (Some(audit), _) => (audit.arch, audit.syscall),
            (None, Some(kernel)) => (abi_names::native_arch(kernel.compat.unwrap_or(false)), kernel.syscall),
            (None, None) => (0, -1),
        }
    }
}

// === impl Fuse ===

impl Fuse {
    /// For one source: nothing waits for another half.
    pub fn of_one_source() -> Self {
        Self { alone: true, ..Self::default() }
    }

    /// Whether audit is silent for now, by quiet mode.
    pub fn set_quiet(&mut self, quiet: bool) {
        self.quiet = quiet;
    }

    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// When the verdict was made that waits the longest.
    pub fn oldest_boot_ns(&self) -> Option<u64> {
        self.held.front().map(|held| held.verdict.time_boot_ns)
    }

    /// How long a verdict waits now. The halves of a burst lie further apart the longer kauditd's queue is full, and then
    /// each waits longer for the other.
    pub fn hold_ns(&self, now_ns: u64) -> u64 {
        if self.alone || self.quiet {
            return ALONE_NS;
        }
        HOLD_NS + (self.delay_ns(now_ns) * DELAY_FACTOR).min(LONGEST_HOLD_NS - HOLD_NS)
    }

    fn delay_ns(&self, now_ns: u64) -> u64 {
        let half_lives = now_ns.saturating_sub(self.delay_at_ns) / DELAY_HALF_LIFE_NS;
        self.delay_ns.checked_shr(u32::try_from(half_lives).unwrap_or(u32::MAX)).unwrap_or(0)
    }

    fn saw_delay(&mut self, arrived_ns: u64, now_ns: u64) {
        let delay_ns = now_ns.saturating_sub(arrived_ns);
        if delay_ns >= self.delay_ns(now_ns) {
            self.delay_ns = delay_ns;
            self.delay_at_ns = now_ns;
        }
    }

    pub fn kernel(&mut self, verdict: KernelVerdict, now_ns: u64) {
        let key = Key { pid: verdict.task.pid, syscall: verdict.syscall, code: verdict.code };
        let time_boot_ns = verdict.time_boot_ns;
        let partner = self.take_half((key, Half::Audit), |held| {
            held.audit.as_ref().is_some_and(|audit| agree(&verdict, audit, held.time_boot_ns))
        });
        match partner {
            Some(held) => {
                held.verdict.kernel = Some(Box::new(verdict));
                held.verdict.time_boot_ns = time_boot_ns;
                let arrived_ns = held.arrived_ns;
                self.saw_delay(arrived_ns, now_ns);
            }
            None => {
                let verdict = Verdict { kernel: Some(Box::new(verdict)), audit: None, time_boot_ns };
                self.hold((key, Half::Kernel), verdict, now_ns);
            }
        }
    }

    /// `time_boot_ns`: the record's time on the boot clock.
    pub fn audit(&mut self, record: AuditRecord, time_boot_ns: u64, now_ns: u64) {
        let key = Key { pid: record.pid, syscall: record.syscall, code: record.code };
        let partner = self.take_half((key, Half::Kernel), |held| {
            held.kernel.as_ref().is_some_and(|kernel| agree(kernel, &record, time_boot_ns))
        });
        match partner {
            Some(held) => {
                held.verdict.audit = Some(Box::new(record));
                let arrived_ns = held.arrived_ns;
                self.saw_delay(arrived_ns, now_ns);
            }
            None => {
                let verdict = Verdict { kernel: None, audit: Some(Box::new(record)), time_boot_ns };
                self.hold((key, Half::Audit), verdict, now_ns);
            }
        }
    }

    /// The first waiting half of this kind that fits, no longer waiting.
    fn take_half(&mut self, of: (Key, Half), fits: impl Fn(&Verdict) -> bool) -> Option<&mut Held> {
        let (mut before, mut number) = (None, self.waiting.get(&of)?.first);
        let index = loop {
            let index = (number - self.first) as usize;
            let held = self.held.get(index)?;
            if fits(&held.verdict) {
                break index;
            }
            before = Some(number);
            number = held.next?;
        };
        self.leave_line(of, before, number);
        self.held.get_mut(index)
    }

    fn hold(&mut self, (key, half): (Key, Half), verdict: Verdict, now_ns: u64) {
        let number = self.first + self.held.len() as u64;
        self.held.push_back(Held { verdict, key, half, arrived_ns: now_ns, next: None });
        if self.alone {
            return;
        }
        match self.waiting.entry((key, half)) {
            Entry::Vacant(line) => {
                line.insert(Line { first: number, last: number });
            }
            Entry::Occupied(mut line) => {
                let last = std::mem::replace(&mut line.get_mut().last, number);
                if let Some(last) = self.held.get_mut((last - self.first) as usize) {
                    last.next = Some(number);
                }
            }
        }
    }

    /// Takes `number` out of its line, where `before` stands in front of it.
    fn leave_line(&mut self, of: (Key, Half), before: Option<u64>, number: u64) {
        let next = self.held.get((number - self.first) as usize).and_then(|held| held.next);
        let Entry::Occupied(mut line) = self.waiting.entry(of) else { return };
        match (before, next) {
            (None, None) => {
                line.remove();
            }
            (None, Some(next)) => line.get_mut().first = next,
            (Some(before), next) => {
                if next.is_none() {
                    line.get_mut().last = before;
                }
                if let Some(before) = self.held.get_mut((before - self.first) as usize) {
                    before.next = next;
                }
            }
        }
    }

    /// The next verdict that has waited long enough, in order of arrival. With `ending`, nothing waits any longer.
    pub fn next(&mut self, now_ns: u64, ending: bool) -> Option<Verdict> {
        let hold_ns = self.hold_ns(now_ns);
        loop {
            let due = self
                .held
                .front()
                .is_some_and(|held| ending || held.arrived_ns + hold_ns <= now_ns || self.held.len() > MOST_HELD);
            if !due {
                self.shrink();
                return None;
            }
            let Held { mut verdict, key, half, next, .. } = self.held.pop_front()?;
            if self.alone {
                return Some(verdict);
            }
            if let Entry::Occupied(mut line) = self.waiting.entry((key, half))
                && line.get().first == self.first
            {
                match next {
                    Some(next) => line.get_mut().first = next,
                    None => {
                        line.remove();
                    }
                }
            }
            self.first += 1;
            match (verdict.kernel.is_some(), verdict.audit.is_some()) {
                // Its half went on with another.
                (false, false) => continue,
                (true, true) => {}
                _ => self.complete_from_left_overs(key, &mut verdict, hold_ns),
            }
            return Some(verdict);
        }
    }

    /// After a storm its room goes back.
    fn shrink(&mut self) {
        const ORDINARY: usize = 4_096;
        if self.held.is_empty() && self.held.capacity() > ORDINARY {
            self.held = VecDeque::new();
            self.waiting = HashMap::default();
        }
    }

    /// Takes the other half out of the first left-over verdict that fits; that one is empty then.
    fn complete_from_left_overs(&mut self, key: Key, verdict: &mut Verdict, hold_ns: u64) {
        let alone = &*verdict;
        let missing = if alone.kernel.is_some() { Half::Audit } else { Half::Kernel };
        let partner = self.take_half((key, missing), |other| {
            let near = alone.time_boot_ns.abs_diff(other.time_boot_ns) <= hold_ns;
            near && match (&alone.kernel, &alone.audit, &other.kernel, &other.audit) {
                (Some(kernel), None, None, Some(audit)) | (None, Some(audit), Some(kernel), None) => {
                    same(kernel, audit)
                }
                _ => false,
            }
        });
        let Some(partner) = partner else { return };
        let other = &mut partner.verdict;
        match other.kernel.take() {
            Some(kernel) => {
                verdict.kernel = Some(kernel);
                verdict.time_boot_ns = other.time_boot_ns;
            }
            None => verdict.audit = other.audit.take(),
        }
    }
}

fn agree(kernel: &KernelVerdict, audit: &AuditRecord, audit_boot_ns: u64) -> bool {
    let early = kernel.time_boot_ns.saturating_add(CLOCK_SLACK_NS) < audit_boot_ns;
    let late = kernel.time_boot_ns > audit_boot_ns.saturating_add(TICK_NS + CLOCK_SLACK_NS);
    !early && !late && same(kernel, audit)
}

/// Nothing but time speaks against it. Both read comm and credentials of the same call, so that a pid used again by
/// somebody else is told apart, however soon it is.
fn same(kernel: &KernelVerdict, audit: &AuditRecord) -> bool {
    let same_abi = kernel.compat.is_none_or(|compat| compat == audit.compat);
    let same_place = kernel.instruction_pointer == 0 || kernel.instruction_pointer == audit.ip;
    let same_caller = (kernel.task.uid, kernel.task.gid) == (audit.uid, audit.gid) && kernel.task.comm == audit.comm;
    same_abi && same_place && same_caller
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    fn kernel(pid: u32, at: u64) -> KernelVerdict {
        KernelVerdict {
            cpu: 0,
            sequence: at,
            time_boot_ns: at,
            task: crate::lineage::Task { pid, ..Default::default() },
            syscall: 59,
            signal: 0,
            code: 0x7ffc_0000,
            compat: Some(false),
            instruction_pointer: 0x1234,
        }
    }

    fn audit(pid: u32, at: u64) -> (AuditRecord, u64) {
        let coarse = at / (4 * MS) * (4 * MS);
        let record = AuditRecord { pid, syscall: 59, code: 0x7ffc_0000, ip: 0x1234, ..Default::default() };
        (record, coarse)
    }

    fn drain(fuse: &mut Fuse) -> Vec<(bool, bool, u64)> {
        std::iter::from_fn(|| fuse.next(900 * MS, true))
            .map(|verdict| (verdict.kernel.is_some(), verdict.audit.is_some(), verdict.time_boot_ns))
            .collect()
    }

    #[test]
    fn two_sources_make_one_record_whichever_comes_first() {
        let mut fuse = Fuse::default();
        fuse.kernel(kernel(1, 9 * MS), 0);
        let (record, at) = audit(1, 9 * MS);
        fuse.audit(record.clone(), at, 0);
        fuse.audit(AuditRecord { pid: 2, ..record }, at, 0);
        fuse.kernel(kernel(2, 9 * MS), 0);
        assert!(fuse.next(HOLD_NS - 1, false).is_none());
        assert_eq!(drain(&mut fuse), [(true, true, 9 * MS), (true, true, 9 * MS)]);
        assert!(fuse.waiting.is_empty());
    }

    #[test]
    fn the_longer_the_halves_lie_apart_of_late_the_longer_a_verdict_waits() {
        let mut fuse = Fuse::default();
        fuse.kernel(kernel(1, 100 * MS), 100 * MS);
        let (record, at) = audit(1, 100 * MS);
        fuse.audit(record, at, 250 * MS);
        assert_eq!(fuse.hold_ns(250 * MS), HOLD_NS + 4 * 150 * MS);
        assert_eq!(fuse.hold_ns(1250 * MS), HOLD_NS + 4 * 75 * MS);
        assert_eq!(fuse.hold_ns(1 << 60), HOLD_NS);

        fuse.kernel(kernel(1, 300 * MS), 300 * MS);
        let (record, at) = audit(1, 900 * MS);
        fuse.audit(record, at, 900 * MS);
        assert_eq!(drain(&mut fuse), [(true, true, 100 * MS), (true, true, 300 * MS)]);
    }

    #[test]
    fn in_quiet_mode_a_verdict_does_not_wait_for_audit_and_after_it_does_again() {
        let mut fuse = Fuse::default();
        fuse.set_quiet(true);
        fuse.kernel(kernel(1, 9 * MS), 0);
        assert!(fuse.next(ALONE_NS - 1, false).is_none());
        assert!(fuse.next(ALONE_NS, false).is_some_and(|verdict| verdict.audit.is_none()));
        fuse.set_quiet(false);
        fuse.kernel(kernel(1, 99 * MS), 100 * MS);
        assert!(fuse.next(100 * MS + ALONE_NS, false).is_none());
        let (record, at) = audit(1, 99 * MS);
        fuse.audit(record, at, 150 * MS);
        assert_eq!(drain(&mut fuse), [(true, true, 99 * MS)]);
    }

    #[test]
    fn different_processes_callers_actions_abis_and_places_are_different_verdicts() {
        let mut fuse = Fuse::default();
        fuse.kernel(kernel(1, 9 * MS), 0);
        let (record, at) = audit(1, 9 * MS);
        for other in [
            AuditRecord { pid: 7, ..record.clone() },
            AuditRecord { code: 0x5_0001, ..record.clone() },
            AuditRecord { compat: true, ..record.clone() },
            // A pid that somebody else has by now.
            AuditRecord { uid: 1000, ..record.clone() },
            AuditRecord { gid: 1000, ..record.clone() },
            AuditRecord { comm: "other".into(), ..record.clone() },
            AuditRecord { ip: 1, ..record },
        ] {
            fuse.audit(other, at, 0);
        }
        assert_eq!(drain(&mut fuse).len(), 8);
    }

    #[test]
    fn a_late_tick_leaves_no_halves_and_keeps_the_order() {
        let mut fuse = Fuse::default();
        let (record, _) = audit(1, 0);
        // The tick at 4 ms comes at 40 ms; until then audit's clock stands still.
        let times = [1, 5, 20, 37, 40, 41].map(|ms| ms * MS);
        for (serial, at) in times.iter().enumerate() {
            fuse.kernel(kernel(1, *at), 0);
            let coarse = if *at < 40 * MS { 0 } else { 40 * MS };
            let mut record = record.clone();
            record.time.serial = serial as u64;
            fuse.audit(record, coarse, 0);
        }
        let fused: Vec<_> = std::iter::from_fn(|| fuse.next(900 * MS, true))
            .map(|verdict| {
                (verdict.audit.map(|audit| audit.time.serial), verdict.kernel.map(|kernel| kernel.time_boot_ns))
            })
            .collect();
        let expected: Vec<_> = times.iter().zip(0..).map(|(at, serial)| (Some(serial), Some(*at))).collect();
        assert_eq!(fused, expected);
        assert!(fuse.waiting.is_empty() && fuse.held.is_empty());
    }

    #[test]
    fn a_record_that_waited_for_kauditd_is_still_of_its_verdict() {
        let mut fuse = Fuse::default();
        fuse.kernel(kernel(1, 9 * MS), 0);
        let (record, _) = audit(1, 0);
        fuse.audit(record, 80 * MS, 80 * MS);
        assert_eq!(drain(&mut fuse), [(true, true, 9 * MS)]);
        assert!(fuse.waiting.is_empty() && fuse.held.is_empty());
    }

    #[test]
    fn a_storm_of_one_process_seen_by_one_source_is_handed_on_in_order() {
        for mut fuse in [Fuse::default(), Fuse::of_one_source()] {
            in_order(&mut fuse);
        }
    }

    fn in_order(fuse: &mut Fuse) {
        let (record, at) = audit(1, 0);
        let mut next = 0;
        let mut take = |fuse: &mut Fuse, ending| {
            while let Some(verdict) = fuse.next(0, ending) {
                assert_eq!(verdict.audit.map(|audit| audit.time.serial), Some(next));
                next += 1;
            }
            next
        };
        const STORM: u64 = 200_000;
        for serial in 0..STORM {
            let mut record = record.clone();
            record.time.serial = serial;
            fuse.audit(record, at, 0);
            take(fuse, false);
        }
        assert_eq!(take(fuse, true), STORM);
        assert!(fuse.waiting.is_empty());
    }

    proptest! {
        /// Random verdicts of few processes, random losses in one source, random delay between the sources.
        #[test]
        fn a_loss_leaves_one_record_alone_and_shifts_no_other(
            verdicts in proptest::collection::vec((1u32..4, 0u64..3, 0u8..5), 1..60),
            lag in 0usize..20,
            loser in 0u8..2,
        ) {
            // At least one tick and the slack apart, so that the truth is decidable for every process.
            let mut at = 0;
            let mut truth = Vec::new();
            let mut audit_queue = VecDeque::new();
            let mut fuse = Fuse::default();
            for (index, (pid, gap, fate)) in verdicts.iter().enumerate() {
                at += TICK_NS + 2 * CLOCK_SLACK_NS + gap * MS;
                let (by_kernel, by_audit) = (*fate != 0 || loser != 0, *fate != 0 || loser != 1);
                truth.push((by_kernel, by_audit));
                if by_kernel {
                    fuse.kernel(kernel(*pid, at), 0);
                }
                if by_audit {
                    audit_queue.push_back((index + lag, audit(*pid, at)));
                }
                while audit_queue.front().is_some_and(|(due, _)| *due <= index) {
                    let (_, (record, at)) = audit_queue.pop_front().unwrap();
                    fuse.audit(record, at, 0);
                }
            }
            for (_, (record, at)) in audit_queue {
                fuse.audit(record, at, 0);
            }
            let count = |wanted: (bool, bool)| truth.iter().filter(|fate| **fate == wanted).count();
            let records = drain(&mut fuse);
            let got = |wanted: (bool, bool)| records.iter().filter(|record| (record.0, record.1) == wanted).count();
            for wanted in [(true, true), (true, false), (false, true)] {
                prop_assert_eq!(got(wanted), count(wanted), "{:?}", wanted);
            }
            prop_assert!(fuse.waiting.is_empty());
        }
    }
}
