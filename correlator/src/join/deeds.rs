//! What the processes of one root did. It takes most of the memory, and is needed only to tell of the root, never to find out
//! whose it is: so it is kept packed, and may wait in an [`super::attic::Attic`].

use super::Config;
use super::session::VerdictCount;
use seclog_proto::v1::{self, CgroupMove};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A program that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Start {
    pub(super) start_boottime_ns: u64,
    pub(super) pid: u32,
    pub(super) uid: u32,
    pub(super) comm: String,
    pub(super) filename: String,
    pub(super) interpreter: String,
    pub(super) argv: Vec<String>,
    pub(super) argv_truncated_bytes: u64,
    pub(super) is_session_root: bool,
    pub(super) environment: Vec<String>,
    pub(super) environment_searched: String,
}

impl Start {
    pub(super) fn new(process: (u64, u32), uid: u32, comm: String, program: v1::ProcessStart) -> Self {
        Self {
            start_boottime_ns: process.0,
            pid: process.1,
            uid,
            comm,
            filename: program.filename,
            interpreter: program.interpreter,
            argv: program.argv,
            argv_truncated_bytes: program.argv_truncated_bytes,
            is_session_root: program.is_session_root,
            environment: program.environment,
            environment_searched: program.environment_searched,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Move {
    pub(super) time: u64,
    pub(super) pid: u32,
    /// Empty: out of every container.
    pub(super) to_container: String,
    pub(super) to_path: String,
    pub(super) by: u32,
}

/// What became of a verdict: its syscall and outcome, by number in [`Deeds::kinds`].
type KindNumber = u16;

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deeds {
    /// By time and record id, each packed: a program takes a fifth so.
    starts: BTreeMap<(u64, Box<str>), Box<[u8]>>,
    pub(super) starts_not_kept: u64,
    /// Mount namespaces that its programs entered: whose, and the first record of it.
    pub(super) entered_others: BTreeMap<String, (u64, String)>,
    /// Moves out of its container, by record id.
    pub(super) moves: BTreeMap<String, Move>,
    /// Hashes of the ids of starts whose execve has its verdict.
    verdict_of: BTreeSet<u64>,
    /// By hash of the verdict's id, the process of execve attempts that only audit saw and that are taken to have failed:
    /// its clock is coarse, so that one of them may be the attempt that another start came of.
    loose: BTreeMap<u64, (u64, u32)>,
    /// Syscall and outcome.
    kinds: Vec<(Box<str>, Box<str>)>,
    /// By hash of the verdict's id.
    verdicts: BTreeMap<u64, KindNumber>,
    verdicts_not_kept: BTreeMap<KindNumber, u64>,
    /// By process (start, pid) whether a start of it was seen, and its exit.
    processes: BTreeMap<(u64, u32), (bool, bool)>,
    /// What it takes but for itself, near enough.
    #[serde(skip)]
    bytes: usize,
}

/// What an entry of a map takes, in a node that is two thirds full: of two small numbers, and of texts without the text.
const SMALL: usize = 32;
const ENTRY: usize = 96;

impl Deeds {
    /// Of a list that cannot be read any more.
    pub(super) fn lost(listed: u64) -> Self {
        Self { starts_not_kept: listed, ..Self::default() }
    }

    /// The bytes that it takes besides itself, near enough.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts them anew.
    pub(super) fn weigh(&mut self) {
        let starts: usize = self.starts.iter().map(|((_, id), packed)| ENTRY + id.len() + packed.len()).sum();
        let moves: usize = self.moves.iter().map(|(id, moved)| ENTRY * 2 + id.len() + moved.to_path.len()).sum();
        let small = self.verdicts.len() + self.verdict_of.len() + self.loose.len() + self.processes.len();
        self.bytes = starts + moves + small * SMALL + (self.kinds.len() + self.entered_others.len()) * ENTRY;
    }

    /// Programs that are listed.
    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    pub(super) fn first_record(&self) -> Option<&str> {
        self.starts.keys().next().map(|(_, id)| &**id)
    }

    /// By time and record id.
    pub(super) fn starts(&self) -> impl Iterator<Item = (u64, &str, Start)> {
        self.starts.iter().filter_map(|((time, id), packed)| {
            // What was packed here is unpacked; what came back damaged was not taken.
            Some((*time, &**id, postcard::from_bytes(packed).ok()?))
        })
    }

    /// True where its process is seen to run from now on. The root's own exec is kept even when the rest came first.
    pub(super) fn add_start(&mut self, time: u64, id: &str, start: &Start, config: &Config) -> bool {
        let key = (time, Box::from(id));
        if self.starts.len() >= config.starts_per_root && !start.is_session_root && !self.starts.contains_key(&key) {
            self.starts_not_kept += 1;
            return false;
        }
        match postcard::to_allocvec(start) {
            Ok(packed) => {
                let bytes = ENTRY + id.len() + packed.len();
                let before = self.starts.insert(key, packed.into_boxed_slice());
                self.bytes += if before.is_none() { bytes } else { 0 };
            }
            Err(_) => self.starts_not_kept += 1,
        }
        let known = self.process((start.start_boottime_ns, start.pid));
        let began = *known == (false, false);
        known.0 = true;
        began
    }

    /// True where a process that was seen to run has ended.
    pub(super) fn add_exit(&mut self, process: (u64, u32), config: &Config) -> bool {
        // More exits than starts that are kept tell nothing that is asked for.
        if self.processes.len() >= config.starts_per_root * 4 && !self.processes.contains_key(&process) {
            return false;
        }
        let known = self.process(process);
        let ended = *known == (true, false);
        known.1 = true;
        ended
    }

    fn process(&mut self, process: (u64, u32)) -> &mut (bool, bool) {
        let bytes = &mut self.bytes;
        self.processes.entry(process).or_insert_with(|| {
            *bytes += SMALL;
            (false, false)
        })
    }

    pub(super) fn add_entered(&mut self, whose: &str, time: u64, record: &str, config: &Config) {
        if self.entered_others.len() >= config.containers_per_root && !self.entered_others.contains_key(whose) {
            return;
        }
        let said = (time, record.to_owned());
        self.bytes += ENTRY;
        let known = self.entered_others.entry(whose.to_owned()).or_insert_with(|| said.clone());
        if said < *known {
            *known = said;
        }
    }

    pub(super) fn add_move(&mut self, id: String, time: u64, pid: u32, moved: CgroupMove, config: &Config) {
        if self.moves.len() < config.moves_per_root {
            let moved = Move {
                time,
                pid,
                to_container: moved.to_container_id,
                to_path: moved.to_cgroup_path,
                by: moved.moved_by_pid,
            };
            self.bytes += ENTRY * 2 + id.len() + moved.to_path.len();
            self.moves.insert(id, moved);
        }
    }

    pub(super) fn add_verdict(&mut self, id: &str, process: (u64, u32), verdict: &v1::Verdict, config: &Config) {
        let executed = is_of_executed(verdict);
        let id = hash(id);
        self.bytes += SMALL;
        if executed && self.verdict_of.len() < config.verdicts_per_root {
            self.verdict_of.insert(hash(&verdict.target_id));
            self.loose.remove(&id);
        } else if !executed
            && verdict.syscall_name.starts_with("execve")
            && !verdict.sources.iter().any(|source| source == "ebpf")
            && self.loose.len() < config.verdicts_per_root
        {
            self.loose.insert(id, process);
        }
        let said = self.kind(&verdict.syscall_name, &verdict.outcome);
        match self.verdicts.get(&id) {
            // The same record again, perhaps completed since.
            Some(known) => {
                if self.rank(said) > self.rank(*known) {
                    self.verdicts.insert(id, said);
                }
            }
            None if self.verdicts.len() < config.verdicts_per_root => drop(self.verdicts.insert(id, said)),
            None => *self.verdicts_not_kept.entry(said).or_default() += 1,
        }
    }

    fn kind(&mut self, syscall: &str, outcome: &str) -> KindNumber {
        let known = self.kinds.iter().position(|kind| *kind.0 == *syscall && *kind.1 == *outcome);
        let at = known.unwrap_or_else(|| {
            if self.kinds.len() >= MOST_KINDS {
                // No kernel has so many: they are counted together, without a name.
                return 0;
            }
            if self.kinds.len() + 1 == MOST_KINDS {
                self.kinds.push(Default::default());
            } else {
                self.kinds.push((syscall.into(), outcome.into()));
            }
            self.kinds.len() - 1
        });
        KindNumber::try_from(at).unwrap_or_default()
    }

    /// Completed outcomes beat unknown ones; among equals the text decides, so that order of arrival does not.
    fn rank(&self, kind: KindNumber) -> (u8, &str, &str) {
        let (syscall, outcome) = self.kinds.get(usize::from(kind)).map_or(("", ""), |(one, other)| (&**one, &**other));
        let rank = match outcome {
            "executed" | "failed" => 2,
            "unknown" => 1,
            _ => 0,
        };
        (rank, outcome, syscall)
    }

    pub(super) fn verdict_counts(&self) -> Vec<VerdictCount> {
        let mut counts = self.verdicts_not_kept.clone();
        for said in self.verdicts.values() {
            *counts.entry(*said).or_default() += 1;
        }
        let counts = counts.into_iter().map(|(kind, count)| {
            let (_, outcome, syscall) = self.rank(kind);
            ((syscall, outcome), count)
        });
        let counts: BTreeMap<(&str, &str), u64> = counts.collect();
        let count = |((syscall, outcome), count): ((&str, &str), u64)| VerdictCount {
            syscall: syscall.to_owned(),
            outcome: outcome.to_owned(),
            count,
        };
        counts.into_iter().map(count).collect()
    }

    /// Starts whose execve has no verdict. Nothing can be said where more verdicts came than are kept.
    pub(super) fn starts_without_verdict(&self, config: &Config) -> Vec<&str> {
        if self.verdict_of.len() >= config.verdicts_per_root {
            return Vec::new();
        }
        let mut loose: BTreeMap<(u64, u32), u32> = BTreeMap::new();
        for process in self.loose.values() {
            *loose.entry(*process).or_default() += 1;
        }
        let without = self.starts().filter(|(_, id, start)| {
            let may_be_its = loose.get_mut(&(start.start_boottime_ns, start.pid)).filter(|left| **left > 0);
            let seen = self.verdict_of.contains(&hash(id));
            !seen && may_be_its.is_none_or(|left| std::mem::replace(left, *left - 1) == 0)
        });
        without.map(|(_, id, _)| id).collect()
    }

    /// Keeps of it what is of the root itself. How many of its processes run.
    pub(super) fn trim(&mut self, own: (u64, u32)) -> usize {
        let of_root: BTreeSet<(u64, Box<str>)> = self
            .starts()
            .filter(|(.., start)| start.is_session_root)
            .map(|(time, id, _)| (time, Box::from(id)))
            .collect();
        self.starts.retain(|key, _| of_root.contains(key));
        self.processes.retain(|process, (started, _)| {
            *started &= *process == own;
            *process == own
        });
        self.verdicts.clear();
        self.verdict_of.clear();
        self.loose.clear();
        self.verdicts_not_kept.clear();
        self.kinds.clear();
        self.weigh();
        self.processes.values().filter(|seen| **seen == (true, false)).count()
    }

    /// Lets go of the list of programs, and of what is only needed for it; all of it is counted.
    pub(super) fn cut(&mut self) {
        self.starts_not_kept = self.starts_not_kept.saturating_add(self.starts.len() as u64);
        self.starts.clear();
        for said in std::mem::take(&mut self.verdicts).into_values() {
            *self.verdicts_not_kept.entry(said).or_default() += 1;
        }
        self.verdict_of.clear();
        self.loose.clear();
        self.weigh();
    }
}

/// Kinds of verdicts that are told apart in one root: 450 syscalls, and execve with three outcomes.
const MOST_KINDS: usize = 1_024;

/// The program that it is about was executed, and its start is known.
pub(super) fn is_of_executed(verdict: &v1::Verdict) -> bool {
    verdict.outcome == "executed" && !verdict.target_id.is_empty()
}

fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}
