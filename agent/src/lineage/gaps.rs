//! When events of lineage are missing: the kernel skipped a program, or the ring had no room for what it told.
//!
//! Both are counted where they happen, before anything that follows from the missing event: a fork that was skipped is counted
//! before the child runs. So who decides something by events asks for the count then, and whatever is missing of what the
//! decision rests on is in it. Nothing is held back for that, and nothing that was told is taken back.

use std::{collections::VecDeque, fmt};

use crate::clock;

/// Times remembered; beyond, the two oldest become one.
const MOST: usize = 256;

/// Counts events of lineage that were lost.
pub trait LossCount: fmt::Debug + Send {
    /// So far.
    fn lost(&mut self) -> u64;

    fn now_boot_ns(&self) -> u64 {
        clock::boot_ns()
    }
}

/// The times in which some were lost.
#[derive(Debug)]
pub struct Gaps {
    count: Box<dyn LossCount>,
    lost: u64,
    looked_boot_ns: u64,
    /// From, until; oldest first, disjoint.
    times: VecDeque<(u64, u64)>,
}

// === impl Gaps ===

impl Gaps {
    /// It was counted from this time on.
    pub fn new(count: Box<dyn LossCount>, since_boot_ns: u64) -> Self {
        Self { count, lost: 0, looked_boot_ns: since_boot_ns, times: VecDeque::new() }
    }

    /// Asks for the count: what was lost since the last look was lost between the two.
    pub(super) fn look(&mut self) {
        // The next look begins where this one began to count, and its time ends when it has counted.
        let began = self.count.now_boot_ns();
        let lost = self.count.lost();
        if lost != self.lost {
            let (from, until) = (self.looked_boot_ns, self.count.now_boot_ns());
            match self.times.back_mut() {
                Some(last) if last.1 >= from => last.1 = until,
                _ => self.times.push_back((from, until)),
            }
            if self.times.len() > MOST
                && let Some((from, _)) = self.times.pop_front()
                && let Some(oldest) = self.times.front_mut()
            {
                oldest.0 = from;
            }
        }
        self.lost = lost;
        self.looked_boot_ns = began;
    }

    /// Whether something may have been lost in this time, as far as was looked.
    pub(super) fn touch(&self, from_boot_ns: u64, until_boot_ns: u64) -> bool {
        self.times.iter().rev().any(|(from, until)| *from <= until_boot_ns && from_boot_ns <= *until)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// (now, lost)
    #[derive(Clone, Debug, Default)]
    pub(in crate::lineage) struct Told(pub(in crate::lineage) Arc<Mutex<(u64, u64)>>);

    impl LossCount for Told {
        fn lost(&mut self) -> u64 {
            self.0.lock().unwrap().1
        }

        fn now_boot_ns(&self) -> u64 {
            self.0.lock().unwrap().0
        }
    }

    fn look(gaps: &mut Gaps, told: &Told, now: u64, lost: u64) {
        *told.0.lock().unwrap() = (now, lost);
        gaps.look();
    }

    #[test]
    fn a_loss_lies_between_the_looks_that_do_not_and_do_know_it() {
        let told = Told::default();
        let mut gaps = Gaps::new(Box::new(told.clone()), 0);
        look(&mut gaps, &told, 100, 0);
        assert!(!gaps.touch(0, u64::MAX));
        look(&mut gaps, &told, 200, 2);
        look(&mut gaps, &told, 300, 2);
        assert!(gaps.touch(0, 100) && gaps.touch(150, 160) && gaps.touch(200, 900));
        assert!(!gaps.touch(0, 99) && !gaps.touch(201, 900));
        // Losses without end are one time.
        look(&mut gaps, &told, 400, 3);
        look(&mut gaps, &told, 500, 4);
        assert_eq!(gaps.times, [(100, 200), (300, 500)]);
    }

    #[test]
    fn many_losses_take_bounded_room_and_none_is_forgotten() {
        let told = Told::default();
        let mut gaps = Gaps::new(Box::new(told.clone()), 0);
        let rounds = 3 * MOST as u64;
        for round in 1..=rounds {
            look(&mut gaps, &told, 10 * round, round);
            look(&mut gaps, &told, 10 * round + 5, round);
        }
        assert_eq!(gaps.times.len(), MOST);
        assert!((1..=rounds).all(|round| gaps.touch(10 * round - 3, 10 * round)));
        assert!(!gaps.touch(10 * rounds + 1, 10 * rounds + 4));
    }
}
