//! Holes in the serial numbers of audit records: a lower bound of what was lost.
//!
//! All records of all types share one numbering, and several records of one event share a number. Records can arrive a
//! little out of order, so a hole counts only when it has stayed open for a while.

use std::collections::VecDeque;

/// How long a hole may still be filled, in nanoseconds.
const GRACE_NS: u64 = 2_000_000_000;
/// Holes remembered at once; more are counted as lost at once.
const MOST_HOLES: usize = 1024;

/// Follows the serial numbers of one socket.
#[derive(Debug, Default)]
pub struct SerialGaps {
    highest: Option<u64>,
    holes: VecDeque<Hole>,
    settled: u64,
}

#[derive(Clone, Copy, Debug)]
struct Hole {
    first: u64,
    last: u64,
    since_ns: u64,
}

impl SerialGaps {
    /// A record with this serial came at this time.
    pub fn saw(&mut self, serial: u64, now_ns: u64) {
        match self.highest {
            None => self.highest = Some(serial),
            Some(highest) if serial > highest => {
                if serial > highest + 1 {
                    self.holes.push_back(Hole { first: highest + 1, last: serial - 1, since_ns: now_ns });
                    if self.holes.len() > MOST_HOLES
                        && let Some(hole) = self.holes.pop_front()
                    {
                        self.settled += hole.last - hole.first + 1;
                    }
                }
                self.highest = Some(serial);
            }
            Some(_) => self.fill(serial),
        }
    }

    fn fill(&mut self, serial: u64) {
        let Some(index) = self.holes.iter().position(|hole| (hole.first..=hole.last).contains(&serial)) else { return };
        let hole = self.holes[index];
        let parts = [
            (hole.first < serial).then(|| Hole { last: serial - 1, ..hole }),
            (serial < hole.last).then(|| Hole { first: serial + 1, ..hole }),
        ];
        self.holes.remove(index);
        for part in parts.into_iter().flatten().rev() {
            self.holes.insert(index, part);
        }
    }

    /// Numbers that never came, since the last call.
    pub fn take_lost(&mut self, now_ns: u64) -> u64 {
        while let Some(hole) = self.holes.front()
            && hole.since_ns + GRACE_NS <= now_ns
        {
            self.settled += hole.last - hole.first + 1;
            self.holes.pop_front();
        }
        std::mem::take(&mut self.settled)
    }
}

#[cfg(test)]
mod tests {
    use super::{GRACE_NS, SerialGaps};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_hole_counts_only_when_nothing_fills_it_in_time() {
        let mut gaps = SerialGaps::default();
        for serial in [10, 11, 11, 15, 13] {
            gaps.saw(serial, 0);
        }
        assert_eq!(gaps.take_lost(GRACE_NS - 1), 0);
        gaps.saw(12, GRACE_NS - 1);
        assert_eq!(gaps.take_lost(GRACE_NS), 1);
        assert_eq!(gaps.take_lost(GRACE_NS * 2), 0);
    }

    proptest! {
        #[test]
        fn in_any_order_the_count_is_what_never_came(serials in proptest::collection::vec(0u64..200, 1..100)) {
            let mut gaps = SerialGaps::default();
            serials.iter().for_each(|serial| gaps.saw(*serial, 0));
            let first = serials[0];
            let came: BTreeSet<u64> = serials.iter().copied().filter(|serial| *serial >= first).collect();
            let expected = came.last().unwrap() - first + 1 - came.len() as u64;
            prop_assert_eq!(gaps.take_lost(GRACE_NS), expected);
        }
    }
}
