//! The two clocks of a record: the boot clock, in which the kernel programs stamp, and the wall clock.

use std::collections::VecDeque;

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

/// A change of the offset between two looks that no slewing explains (0.5 ms in a second), nanoseconds.
const STEP_NS: u64 = 10_000_000;
/// No record comes before its time by more, but for the clock's own slewing, nor so long after it: nanoseconds.
const AHEAD_NS: u64 = 1_000_000_000;
const LATE_NS: u64 = 60_000_000_000;
/// Offsets remembered: records that were stamped before a step come after it.
const MOST_OFFSETS: usize = 4;

/// The offset now, and those from before the wall clock was set.
#[derive(Clone, Debug)]
pub struct Offsets {
    now: Offset,
    before: VecDeque<Offset>,
}

// === impl Offsets ===

impl Offsets {
    pub fn new(now: Offset) -> Self {
        Self { now, before: VecDeque::new() }
    }

    /// Takes a new look; by how many nanoseconds the wall clock was set since the last one, if it was.
    pub fn look(&mut self, now: Offset) -> Option<i64> {
        let Offset(moved) = Offset(now.0.wrapping_sub(self.now.0));
        let stepped = moved.unsigned_abs() > STEP_NS;
        if stepped {
            self.before.push_front(self.now);
            self.before.truncate(MOST_OFFSETS);
        }
        self.now = now;
        stepped.then_some(moved)
    }

    /// The offset by which something was stamped that was stamped a short while ago.
    pub fn at(&self, unix_ns: u64, now_boot_ns: u64) -> Offset {
        let all = [self.now].into_iter().chain(self.before.iter().copied());
        let nearest = all.min_by_key(|offset| offset.to_boot(unix_ns).abs_diff(now_boot_ns)).unwrap_or(self.now);
        let time = nearest.to_boot(unix_ns);
        // Set twice between two looks: nobody knows the offset it was stamped by, but it was a moment ago.
        let is_possible = time <= now_boot_ns + AHEAD_NS && time + LATE_NS >= now_boot_ns;
        if is_possible { nearest } else { Offset::from_pair(unix_ns, now_boot_ns) }
    }
}

/// audit's clock is the kernel's coarse one: early by up to a tick, at most 10 ms (HZ=100). Nanoseconds.
pub const TICK_NS: u64 = 10_000_000;

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

#[cfg(test)]
mod tests {
    use super::{Offset, Offsets};

    #[test]
    fn what_was_stamped_before_the_clock_was_set_keeps_its_time() {
        const HOUR_NS: u64 = 3_600_000_000_000;
        const BOOT_NS: u64 = 700_000_000_000;
        let unix_ns = 100 * HOUR_NS;
        let mut offsets = Offsets::new(Offset::from_pair(unix_ns, BOOT_NS));
        assert_eq!(offsets.look(Offset::from_pair(unix_ns + 400_000, BOOT_NS)), None);
        let ahead = Offset::from_pair(unix_ns + HOUR_NS, BOOT_NS);
        assert!(offsets.look(ahead).is_some_and(|moved| moved > 3_590_000_000_000));
        assert_eq!(offsets.at(unix_ns + HOUR_NS, BOOT_NS), ahead);
        // Set back an hour and forth again, unseen.
        assert_eq!(offsets.at(unix_ns - HOUR_NS, BOOT_NS).to_boot(unix_ns - HOUR_NS), BOOT_NS);
        assert_eq!(offsets.at(unix_ns, BOOT_NS).to_boot(unix_ns), BOOT_NS - 400_000);
    }
}
