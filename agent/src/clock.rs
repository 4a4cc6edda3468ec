//! The two clocks of a record: the boot clock, in which the kernel programs stamp, and the wall clock.

use nix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME in nanoseconds: goes on during suspend and is never set.
pub fn boot_ns() -> u64 {
    read(ClockId::CLOCK_BOOTTIME)
}

/// CLOCK_REALTIME in nanoseconds since 1970.
pub fn unix_ns() -> u64 {
    read(ClockId::CLOCK_REALTIME)
}

fn read(clock: ClockId) -> u64 {
    // These clocks exist on every kernel that runs eBPF; a failure would be a broken kernel, and 0 shows it.
    clock_gettime(clock).map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// What the wall clock is ahead of the boot clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offset(i64);

// === impl Offset ===

impl Offset {
    /// Between two readings of one clock lies the other: half of their distance is the error, well below a microsecond.
    pub fn now() -> Self {
        let before = boot_ns();
        let wall = unix_ns();
        let after = boot_ns();
        Self::from_pair(wall, before + (after - before) / 2)
    }

    /// From the same moment on both clocks.
    pub fn from_pair(unix_ns: u64, boot_ns: u64) -> Self {
        Self(unix_ns.wrapping_sub(boot_ns) as i64)
    }

    pub fn to_unix(self, boot_ns: u64) -> u64 {
        boot_ns.saturating_add_signed(self.0)
    }

    pub fn to_boot(self, unix_ns: u64) -> u64 {
        unix_ns.saturating_add_signed(self.0.saturating_neg())
    }
}
