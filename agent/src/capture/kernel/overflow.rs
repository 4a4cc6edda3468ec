//! Verdicts that the ring could not take: how many of which kind, taken out of the kernel's two overflow maps in turn.

use aya::maps::{Array, MapData, MapError, PerCpuHashMap};
use seclog_abi::{OverflowCount, OverflowKey};

use super::decode;
use crate::lineage::Task;

/// How long a program that still writes the map of before may take, in nanoseconds: it runs without being interrupted.
const SETTLE_NS: u64 = 20_000_000;

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Key(OverflowKey);
// SAFETY: OverflowKey is plain data (seclog_abi::Plain).
unsafe impl aya::Pod for Key {}

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Count(OverflowCount);
// SAFETY: OverflowCount is plain data (seclog_abi::Plain).
unsafe impl aya::Pod for Count {}

/// Verdicts of one cgroup, syscall, ABI and action of which only the count is left.
#[derive(Clone, Debug)]
pub struct VerdictOverflow {
    /// One of the processes.
    pub task: Task,
    pub syscall: i64,
    pub code: u32,
    pub compat: Option<bool>,
    pub count: u64,
    pub first_boot_ns: u64,
    pub last_boot_ns: u64,
}

type Counts = PerCpuHashMap<MapData, Key, Count>;

/// The kernel writes one map while the other is read and emptied.
pub(super) struct OverflowMaps {
    turn: Array<MapData, u32>,
    maps: [Counts; 2],
    /// The map the kernel writes.
    writing: u32,
    /// When the kernel was told to write the other one.
    turned_ns: Option<u64>,
    /// Aggregated verdicts at the last turn.
    seen: u64,
    pub(super) unreadable: u64,
}

// === impl OverflowMaps ===

impl OverflowMaps {
    pub(super) fn new(turn: Array<MapData, u32>, even: Counts, odd: Counts) -> Self {
        Self { turn, maps: [even, odd], writing: 0, turned_ns: None, seen: 0, unreadable: 0 }
    }

    /// Counts that are complete by now. `aggregated` is the programs' counter; with `ending`, nothing is waited for.
    pub(super) fn take(&mut self, aggregated: u64, now_ns: u64, ending: bool) -> Vec<VerdictOverflow> {
        let mut found = Vec::new();
        match self.turned_ns {
            Some(turned) if ending || turned + SETTLE_NS <= now_ns => {
                found.extend(self.empty(1 - self.writing));
                self.turned_ns = None;
            }
            None if aggregated != self.seen => {
                self.seen = aggregated;
                if self.turn.set(0, 1 - self.writing, 0).is_ok() {
                    self.writing = 1 - self.writing;
                    self.turned_ns = Some(now_ns);
                }
            }
            _ => {}
        }
        if ending {
            found.extend(self.empty(self.writing));
        }
        found
    }

    fn empty(&mut self, index: u32) -> Vec<VerdictOverflow> {
        let map = &mut self.maps[index as usize];
        let keys: Vec<Key> = map.keys().filter_map(Result::ok).collect();
        let mut found = Vec::new();
        for key in keys {
            match sum(map, key) {
                Ok(Some(count)) => found.push(count),
                Ok(None) => {}
                Err(_) => self.unreadable += 1,
            }
            if map.remove(&key).is_err() {
                self.unreadable += 1;
            }
        }
        found
    }
}

fn sum(map: &Counts, key: Key) -> Result<Option<VerdictOverflow>, MapError> {
    let values = map.get(&key, 0)?;
    let counts = values.iter().map(|Count(count)| *count).filter(|count| count.count > 0);
    let whole = counts.reduce(|sum, one| OverflowCount {
        count: sum.count + one.count,
        first_boot_ns: sum.first_boot_ns.min(one.first_boot_ns),
        last_boot_ns: sum.last_boot_ns.max(one.last_boot_ns),
        ..sum
    });
    let Key(OverflowKey { cgroup_id, syscall, code, compat }) = key;
    Ok(whole.map(|OverflowCount { count, first_boot_ns, last_boot_ns, sample }| VerdictOverflow {
        task: Task { cgroup_id, ..decode::task(sample) },
        syscall,
        code,
        compat: match compat {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        },
        count,
        first_boot_ns,
        last_boot_ns,
    }))
}

/// For reading the maps from the loaded object.
pub(super) fn counts_of(ebpf: &mut aya::Ebpf, name: &str) -> Option<Result<Counts, MapError>> {
    ebpf.take_map(name).map(Counts::try_from)
}
