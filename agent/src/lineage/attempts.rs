//! Which attempts to start a program did.
//!
//! A verdict fires at syscall entry, so it is an attempt of the caller's image. The exec event that ends that image tells
//! which attempt succeeded: the last one of the image. Attempts of one image before it failed, and so did all of an image
//! that ends by exit. Audit knows neither the thread nor the exact time, so an attempt waits until no other attempt of
//! its image can still be under way, and all of them are looked at together ([`standing`](super::standing)).

use std::{collections::VecDeque, sync::Arc};

use foldhash::HashMap;

use super::{
    event::RecordOrigin,
    processes::{Process, ProcessKey, Processes},
    standing::{Standing, standings},
};
use crate::{clock::TICK_NS, record::Record};

/// How long after an exec or exit an attempt of the ended image may still come, beyond the fuse's hold: the delay of
/// kauditd, nanoseconds.
const LATE_NS: u64 = 50_000_000;
/// After so long without exec or exit the outcome is called unknown: nanoseconds.
const GIVE_UP_NS: u64 = 2_000_000_000;
/// How often a waiting attempt is looked at again: nanoseconds.
const AGAIN_NS: u64 = 50_000_000;

/// Attempts that wait for their outcome.
#[derive(Debug, Default)]
pub struct Attempts {
    waiting: HashMap<ProcessKey, Vec<Attempt>>,
    /// When to look at a process again; in order, since every look is the same time ahead.
    looks: VecDeque<(u64, ProcessKey)>,
}

#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) record: Record,
    /// Of the image that the times of both say.
    pub(super) generation: u32,
    pub(super) time_boot_ns: u64,
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Executed { target: Option<RecordOrigin>, filename: Arc<str> },
    Failed,
    Unknown,
}

// === impl Attempts ===

impl Attempts {
    pub fn len(&self) -> usize {
        self.waiting.values().map(Vec::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Event time of the oldest attempt that waits.
    pub fn oldest(&self) -> Option<u64> {
        self.waiting.values().flatten().map(|attempt| attempt.time_boot_ns).min()
    }

    /// An attempt of a process's image.
    pub fn add(&mut self, key: ProcessKey, generation: u32, time_boot_ns: u64, record: Record, now_ns: u64) {
        let attempts = self.waiting.entry(key).or_default();
        if attempts.is_empty() {
            self.looks.push_back((now_ns + AGAIN_NS, key));
        }
        attempts.push(Attempt { record, generation, time_boot_ns });
    }

    /// Hands out the records whose outcome is known by now. With `ending`, all of them.
    ///
    /// `hold_ns` is how long the fuse keeps a verdict now.
    pub fn settle(
        &mut self,
        processes: &mut Processes,
        (now_ns, hold_ns): (u64, u64),
        ending: bool,
        out: &mut Vec<(ProcessKey, Record, Outcome)>,
    ) {
        while let Some((due, key)) = self.looks.front().copied()
            && (ending || due <= now_ns)
        {
            self.looks.pop_front();
            let Some(attempts) = self.waiting.remove(&key) else { continue };
            let Some(process) = processes.get(key) else {
                out.extend(attempts.into_iter().map(|attempt| (key, attempt.record, Outcome::Unknown)));
                continue;
            };
            let given_up = |attempt: &Attempt| ending || attempt.time_boot_ns + GIVE_UP_NS <= now_ns;
            let may_come = |ended_ns: u64| !ending && ended_ns + hold_ns + LATE_NS > now_ns;
            let standings = standings(&attempts, process);
            let mut outcomes: Vec<Option<Outcome>> = attempts
                .iter()
                .zip(&standings)
                .map(|(attempt, standing)| outcome(*standing, process, given_up(attempt), may_come))
                .collect();
            // Who stands next to one that waits is needed to place that one.
            for (index, pair) in attempts.windows(2).enumerate().rev() {
                let is_near = pair[1].time_boot_ns.saturating_sub(pair[0].time_boot_ns) <= 2 * TICK_NS;
                if is_near && outcomes[index + 1].is_none() && !given_up(&pair[0]) {
                    outcomes[index] = None;
                }
            }
            let mut left = Vec::new();
            for ((mut attempt, outcome), standing) in attempts.into_iter().zip(outcomes).zip(standings) {
                let Some(outcome) = outcome else {
                    left.push(attempt);
                    continue;
                };
                attempt.record.generation = standing.generation.unwrap_or(attempt.generation);
                if matches!(outcome, Outcome::Executed { .. }) {
                    processes.settled_before(key, attempt.record.generation + 1);
                }
                out.push((key, attempt.record, outcome));
            }
            if !left.is_empty() {
                self.waiting.insert(key, left);
                self.looks.push_back((now_ns + AGAIN_NS, key));
            }
        }
    }
}

/// `None`: not known yet.
fn outcome(standing: Standing, process: &Process, given_up: bool, may_come: impl Fn(u64) -> bool) -> Option<Outcome> {
    let is_over = process.exited_boot_ns.is_some_and(|exited| !may_come(exited));
    let open = (given_up || is_over).then_some(Outcome::Unknown);
    let Some(generation) = standing.generation else { return open };
    match (process.image_after(generation), process.exited_boot_ns) {
        (Some(next), _) if may_come(next.since_boot_ns) => None,
        (Some(next), _) => match standing.is_last {
            Some(true) => Some(Outcome::Executed { target: next.exec_origin, filename: Arc::clone(&next.filename) }),
            Some(false) => Some(Outcome::Failed),
            None => open,
        },
        (None, Some(exited)) if may_come(exited) => None,
        // Its image may be one of those no longer remembered.
        (None, Some(_)) if process.image().generation > generation => Some(Outcome::Unknown),
        (None, Some(_)) => Some(Outcome::Failed),
        (None, None) => open,
    }
}
