//! How many events of lineage the kernel programs did not hand over, asked for whenever something is decided by them.

use std::{os::fd::AsFd as _, sync::Arc};

use aya::{
    maps::{MapData, PerCpuArray},
    programs::ProgramFd,
};

use super::{
    info,
    load::{CountersValue, LINEAGE},
};
use crate::lineage::LossCount;

/// Reads while others attach and close the programs.
pub struct KernelLosses {
    programs: Vec<ProgramFd>,
    counters: Arc<PerCpuArray<MapData, CountersValue>>,
}

// === impl KernelLosses ===

impl KernelLosses {
    pub(super) fn new(programs: Vec<ProgramFd>, counters: Arc<PerCpuArray<MapData, CountersValue>>) -> Self {
        Self { programs, counters }
    }
}

impl std::fmt::Debug for KernelLosses {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("KernelLosses").finish_non_exhaustive()
    }
}

impl LossCount for KernelLosses {
    /// Skipped by the kernel, or without room in the ring. The numbers only grow, so that a sum tells of each.
    fn lost(&mut self) -> u64 {
        let skipped = self.programs.iter().filter_map(|program| info::figures(program.as_fd()));
        let skipped: u64 = skipped.map(|figures| figures.recursion_misses).sum();
        let values = LINEAGE.iter().filter_map(|(_, program)| self.counters.get(program, 0).ok());
        let dropped: u64 = values.map(|values| values.iter().map(|value| value.0.dropped).sum::<u64>()).sum();
        skipped + dropped
    }
}
