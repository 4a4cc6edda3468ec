//! Processes whose end was not seen: a lost exit record must not leave them in the table for good.
//!
//! A few living processes are looked up in /proc every second, all of them in turn; more, and sooner, after records were
//! lost. One that is missing is looked up again a while later, when every record of its end has been read, and only then
//! taken for gone.

use std::{collections::VecDeque, fs, path::PathBuf};

use super::{
    processes::{ProcessKey, Processes},
    snapshot::start_of,
};

/// Processes looked up in one step, and after a loss.
const STEP: usize = 32;
const STEP_AFTER_LOSS: usize = 512;
/// Between steps, and between two rounds over all processes: nanoseconds.
const EVERY_NS: u64 = 1_000_000_000;
const ROUND_NS: u64 = 60_000_000_000;
/// Until a missing process is looked up again: longer than its exit record can be on its way.
const AGAIN_NS: u64 = 3_000_000_000;
/// USER_HZ: /proc tells start times in hundredths of a second.
const TICK_NS: u64 = 10_000_000;

#[derive(Debug)]
pub struct Reconcile {
    proc: PathBuf,
    left: VecDeque<ProcessKey>,
    missing: VecDeque<(u64, ProcessKey)>,
    next_ns: u64,
    next_round_ns: u64,
    after_loss: bool,
}

// === impl Reconcile ===

impl Reconcile {
    pub fn new(proc: PathBuf) -> Self {
        Self {
            proc,
            left: VecDeque::new(),
            missing: VecDeque::new(),
            next_ns: 0,
            next_round_ns: ROUND_NS,
            after_loss: false,
        }
    }

    /// Records were lost: a round over all processes begins now.
    pub fn lost(&mut self) {
        self.after_loss = true;
        self.left.clear();
    }

    /// Processes that are gone without their end having been seen. Call it when lineage is in up to `now_boot_ns`.
    pub fn look(&mut self, processes: &Processes, now_boot_ns: u64) -> Vec<ProcessKey> {
        if now_boot_ns < self.next_ns {
            return Vec::new();
        }
        self.next_ns = now_boot_ns + EVERY_NS;
        let mut gone = Vec::new();
        while let Some((at, key)) = self.missing.front().copied()
            && at + AGAIN_NS <= now_boot_ns
        {
            self.missing.pop_front();
            if processes.is_living(key) && !self.is_there(key) {
                gone.push(key);
            }
        }
        if self.left.is_empty() && (self.after_loss || now_boot_ns >= self.next_round_ns) {
            self.next_round_ns = now_boot_ns + ROUND_NS;
            self.left.extend(processes.living_keys());
        }
        let step = if self.after_loss { STEP_AFTER_LOSS } else { STEP };
        for _ in 0..step {
            let Some(key) = self.left.pop_front() else {
                self.after_loss = false;
                break;
            };
            if processes.is_living(key) && !self.is_there(key) {
                self.missing.push_back((now_boot_ns, key));
            }
        }
        gone
    }

    fn is_there(&self, key: ProcessKey) -> bool {
        let Ok(stat) = fs::read(self.proc.join(key.pid.to_string()).join("stat")) else { return false };
        // A start that is not known proves nothing either way.
        start_of(&stat)
            .is_none_or(|start| key.start_boottime_ns == 0 || start / TICK_NS == key.start_boottime_ns / TICK_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lineage::{Image, Task};

    fn known(processes: &mut Processes, pid: u32, start_boottime_ns: u64) -> ProcessKey {
        let task = Task { pid, tid: pid, start_boottime_ns, ..Task::default() };
        processes.insert_rebuilt(&task, 1, Some("c".into()), false, Image::default(), None);
        ProcessKey { pid, start_boottime_ns }
    }

    /// A directory that looks like /proc to this.
    fn put(proc: &std::path::Path, pid: u32, start_ticks: u64) {
        let directory = proc.join(pid.to_string());
        fs::create_dir_all(&directory).unwrap();
        let fields = vec!["0"; 17].join(" ");
        fs::write(directory.join("stat"), format!("{pid} (a b) S 1 {fields} {start_ticks} 0")).unwrap();
    }

    #[test]
    fn a_process_that_is_missing_twice_is_gone_and_one_that_reuses_its_pid_does_not_save_it() {
        let proc = tempfile::tempdir().unwrap();
        let mut processes = Processes::new([1]);
        known(&mut processes, 10, 500_000_000);
        let reused = known(&mut processes, 11, 500_000_000);
        let missing = known(&mut processes, 12, 500_000_000);
        put(proc.path(), 10, 50);
        put(proc.path(), 11, 51);
        let mut reconcile = Reconcile::new(proc.path().into());
        let second = 1_000_000_000;
        assert!(reconcile.look(&processes, second).is_empty());
        reconcile.lost();
        assert!(reconcile.look(&processes, 2 * second).is_empty(), "its exit record may be on its way");
        let mut gone = Vec::new();
        for at in 3..8 {
            gone.extend(reconcile.look(&processes, at * second));
        }
        gone.sort_unstable();
        assert_eq!(gone, [reused, missing]);
    }

    #[test]
    fn all_processes_have_their_turn_in_bounded_steps() {
        let proc = tempfile::tempdir().unwrap();
        let mut processes = Processes::new([1]);
        for pid in 10..10 + 3 * STEP as u32 {
            known(&mut processes, pid, 500_000_000);
        }
        let mut reconcile = Reconcile::new(proc.path().into());
        let mut gone = 0;
        for second in 0..120 {
            let found = reconcile.look(&processes, second * 1_000_000_000).len();
            assert!(found <= STEP);
            gone += found;
        }
        assert_eq!(gone, 3 * STEP);
    }
}
