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

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Packed {
    time: u64,
    id: Box<str>,
    /// A [`Start`].
    bytes: Box<[u8]>,
}

impl Packed {
    fn key(&self) -> (u64, &str) {
        (self.time, &self.id)
    }
}

/// What became of a verdict: its syscall and outcome, by number in [`Deeds::kinds`].
type KindNumber = u16;

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Deeds {
    /// In the order of time and record id, each packed: a program takes a fifth so. Sorted lists, here and below, since most
    /// roots have one program, for which a map's node is eleven times too large; what comes is mostly the latest.
    starts: Vec<Packed>,
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
    /// In the order of hashes of the verdicts' ids.
    verdicts: Vec<(u64, KindNumber)>,
    verdicts_not_kept: BTreeMap<KindNumber, u64>,
    /// In the order of start and pid, whether a start of it was seen, and its exit.
    processes: Vec<((u64, u32), (bool, bool))>,
    /// What it takes but for itself, near enough.
    #[serde(skip)]
    bytes: usize,
}

/// What an entry of a list that is two thirds full takes: of small numbers, and of texts without the text.
const SMALL: usize = 32;
const ENTRY: usize = 64;

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
        let starts: usize = self.starts.iter().map(|start| ENTRY + start.id.len() + start.bytes.len()).sum();
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
        self.starts.first().map(|start| &*start.id)
    }

    /// By time and record id.
    pub(super) fn starts(&self) -> impl Iterator<Item = (u64, &str, Start)> {
        // What was packed here can be unpacked; what came back damaged was not taken.
        self.starts.iter().filter_map(|start| Some((start.time, &*start.id, postcard::from_bytes(&start.bytes).ok()?)))
    }

    /// True where its process is seen to run from now on. The root's own exec is kept even when the rest came first.
    pub(super) fn add_start(&mut self, time: u64, id: &str, start: &Start, config: &Config) -> bool {
        let found = self.starts.binary_search_by(|known| known.key().cmp(&(time, id)));
        let is_full = self.starts.len() >= config.starts_per_root && !start.is_session_root;
        match (found, postcard::to_allocvec(start)) {
            (Ok(at), Ok(bytes)) => self.starts[at].bytes = bytes.into_boxed_slice(),
            (Err(at), Ok(bytes)) if !is_full => {
                self.bytes += ENTRY + id.len() + bytes.len();
                insert(&mut self.starts, at, Packed { time, id: id.into(), bytes: bytes.into_boxed_slice() });
            }
            _ => {
                self.starts_not_kept += 1;
                return false;
            }
        }
        let known = self.process((start.start_boottime_ns, start.pid));
        let began = *known == (false, false);
        known.0 = true;
        began
    }

    /// True where a process that was seen to run has ended.
    pub(super) fn add_exit(&mut self, process: (u64, u32), config: &Config) -> bool {
        // More exits than starts that are kept tell nothing that is asked for.
        let is_full = self.processes.len() >= config.starts_per_root * 4;
        if is_full && self.processes.binary_search_by_key(&process, |(process, _)| *process).is_err() {
            return false;
        }
        let known = self.process(process);
        let ended = *known == (true, false);
        known.1 = true;
        ended
    }

    fn process(&mut self, process: (u64, u32)) -> &mut (bool, bool) {
        let at = self.processes.binary_search_by_key(&process, |(process, _)| *process).unwrap_or_else(|at| {
            self.bytes += SMALL;
            insert(&mut self.processes, at, (process, (false, false)));
            at
        });
        &mut self.processes[at].1
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
        match self.verdicts.binary_search_by_key(&id, |(id, _)| *id) {
            // The same record again, perhaps completed since.
            Ok(at) => {
                if self.rank(said) > self.rank(self.verdicts[at].1) {
                    self.verdicts[at].1 = said;
                }
            }
            Err(at) if self.verdicts.len() < config.verdicts_per_root => insert(&mut self.verdicts, at, (id, said)),
            Err(_) => *self.verdicts_not_kept.entry(said).or_default() += 1,
        }
    }

    fn kind(&mut self, syscall: &str, outcome: &str) -> KindNumber {
        let known = self.kinds.iter().position(|kind| *kind.0 == *syscall && *kind.1 == *outcome);
        // No kernel has so many: the rest is counted together, without a name.
        let (syscall, outcome) = if self.kinds.len() < MOST_KINDS { (syscall, outcome) } else { ("", "") };
        let known = known.or_else(|| self.kinds.iter().position(|kind| *kind.0 == *syscall && *kind.1 == *outcome));
        let at = known.unwrap_or_else(|| {
            let at = self.kinds.len();
            insert(&mut self.kinds, at, (syscall.into(), outcome.into()));
            at
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
        for (_, said) in &self.verdicts {
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
        self.starts.retain(|start| postcard::from_bytes(&start.bytes).is_ok_and(|start: Start| start.is_session_root));
        self.processes.retain_mut(|(process, (started, _))| {
            *started &= *process == own;
            *process == own
        });
        self.verdicts.clear();
        self.verdict_of.clear();
        self.loose.clear();
        self.verdicts_not_kept.clear();
        self.kinds.clear();
        self.weigh();
        self.processes.iter().filter(|(_, seen)| *seen == (true, false)).count()
    }

    /// Lets go of the list of programs, and of what is only needed for it; all of it is counted.
    pub(super) fn cut(&mut self) {
        self.starts_not_kept = self.starts_not_kept.saturating_add(self.starts.len() as u64);
        self.starts.clear();
        for (_, said) in std::mem::take(&mut self.verdicts) {
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

/// The first takes no more room than it needs.
fn insert<T>(all: &mut Vec<T>, at: usize, one: T) {
    if all.is_empty() {
        all.reserve_exact(1);
    }
    all.insert(at, one);
}

fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}
