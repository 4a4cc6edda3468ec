//! Which attempts to start a program did.
//!
//! A verdict fires at syscall entry, so it is an attempt of the caller's image. The exec event that ends that image tells
//! which attempt succeeded: the last one of the image. Attempts of one image before it failed, and so did all of an image
//! that ends by exit. Audit knows neither the thread nor the exact time, so an attempt waits until no other attempt of
//! its image can still be under way.

use std::collections::{HashMap, VecDeque};

use seclog_proto::v1::{NodeRecord, node_record::Detail};

use super::processes::{ProcessKey, Processes};

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
struct Attempt {
    record: NodeRecord,
    generation: u32,
    time_boot_ns: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Executed { target_origin: Option<String>, filename: String },
    Failed,
    Unknown,
    NotYet,
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
    pub fn add(&mut self, key: ProcessKey, generation: u32, time_boot_ns: u64, record: NodeRecord, now_ns: u64) {
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
        processes: &Processes,
        (now_ns, hold_ns): (u64, u64),
        ending: bool,
        out: &mut Vec<(ProcessKey, NodeRecord, Option<String>)>,
    ) {
        while let Some((due, key)) = self.looks.front().copied()
            && (ending || due <= now_ns)
        {
            self.looks.pop_front();
            let Some(attempts) = self.waiting.remove(&key) else { continue };
            let outcomes: Vec<Outcome> = (0..attempts.len())
                .map(|index| outcome(&attempts, index, processes, key, (now_ns, hold_ns), ending))
                .collect();
            let mut left = Vec::new();
            for (mut attempt, outcome) in attempts.into_iter().zip(outcomes) {
                let Some(Detail::Verdict(verdict)) = &mut attempt.record.detail else { continue };
                let mut target = None;
                verdict.outcome = match outcome {
                    Outcome::NotYet => {
                        left.push(attempt);
                        continue;
                    }
                    Outcome::Executed { target_origin, filename } => {
                        verdict.target_filename = filename;
                        target = target_origin;
                        "executed"
                    }
                    Outcome::Failed => "failed",
                    Outcome::Unknown => "unknown",
                }
                .into();
                out.push((key, attempt.record, target));
            }
            if !left.is_empty() {
                self.waiting.insert(key, left);
                self.looks.push_back((now_ns + AGAIN_NS, key));
            }
        }
    }
}

fn outcome(
    attempts: &[Attempt],
    index: usize,
    processes: &Processes,
    key: ProcessKey,
    (now_ns, hold_ns): (u64, u64),
    ending: bool,
) -> Outcome {
    let attempt = &attempts[index];
    let Some(process) = processes.get(key) else { return Outcome::Unknown };
    let may_come = |ended_ns: u64| !ending && ended_ns + hold_ns + LATE_NS > now_ns;
    let last = !attempts[index + 1..].iter().any(|later| later.generation == attempt.generation);
    match (process.image_after(attempt.generation), process.exited_boot_ns) {
        (Some(next), _) if may_come(next.since_boot_ns) => Outcome::NotYet,
        (Some(next), _) if last => Outcome::Executed {
            target_origin: next.exec_origin.as_ref().map(ToString::to_string),
            filename: next.filename.to_string(),
        },
        (Some(_), _) => Outcome::Failed,
        (None, Some(exited)) if may_come(exited) => Outcome::NotYet,
        // Its image may be one of those no longer remembered.
        (None, Some(_)) if process.image().generation > attempt.generation => Outcome::Unknown,
        (None, Some(_)) => Outcome::Failed,
        (None, None) if ending || attempt.time_boot_ns + GIVE_UP_NS <= now_ns => Outcome::Unknown,
        (None, None) => Outcome::NotYet,
    }
}
