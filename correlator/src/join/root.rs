//! The node's side: one session root with everything that descends from it. Membership is by the root that the record
//! names, never by time. Merging is commutative and idempotent but for the caps, which are counted.

use super::Config;
use super::session::VerdictCount;
use seclog_proto::v1::node_record::Detail;
use seclog_proto::v1::{self, NodeRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use uuid::Uuid;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RootKey {
    pub(super) node: Arc<str>,
    pub(super) boot_id: Arc<str>,
    pub(super) start_boottime_ns: u64,
    pub(super) pid: u32,
}

/// What of a root's description could differ between its records; the least one stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    /// False sorts first: the root's own exec knows best.
    not_of_root: bool,
    pub(super) how: String,
    pub(super) rule: String,
    pub(super) lineage: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Container {
    /// False sorts first.
    not_named: bool,
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) name: String,
    pub(super) pod_uid: String,
    pub(super) id: String,
    pub(super) names: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    start_boottime_ns: u64,
    pub(super) pid: u32,
    pub(super) comm: String,
    pub(super) uid: u32,
    pub(super) program: v1::ProcessStart,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) time: u64,
    pub(super) pid: u32,
    /// Empty: out of every container.
    pub(super) to_container: String,
    pub(super) to_path: String,
    pub(super) by: u32,
}

#[derive(Debug)]
pub(super) struct Root {
    /// Of the session that it would be alone.
    pub(super) id: Uuid,
    pub(super) key: Arc<RootKey>,
    pub(super) entry: Entry,
    /// By container id: descriptions of the same container, the best of each.
    containers: BTreeMap<String, Container>,
    /// The container of the root's own exec.
    own_container: Option<String>,
    /// By time and record id.
    pub(super) starts: BTreeMap<(u64, String), Start>,
    pub(super) starts_not_kept: u64,
    /// What its container was started with, where the node knows it.
    facts: Option<v1::ContainerFacts>,
    /// Mount namespaces that its programs entered: whose, and the first record of it.
    pub(super) entered_others: BTreeMap<String, (u64, String)>,
    /// Moves out of its container, by record id.
    pub(super) moves: BTreeMap<String, Move>,
    /// Hashes of the ids of starts whose execve has its verdict.
    verdict_of: BTreeSet<u64>,
    /// By hash of the verdict's id, the process of execve attempts that only audit saw and that are taken to have failed:
    /// its clock is coarse, so that one of them may be the attempt that another start came of.
    loose: BTreeMap<u64, (u64, u32)>,
    /// A verdict came, and one of a program that was executed.
    pub(super) has_verdicts: (bool, bool),
    verdicts: BTreeMap<String, (String, String)>,
    verdicts_not_kept: BTreeMap<(String, String), u64>,
    /// By process (start, pid) whether a start of it was seen, and its exit.
    processes: BTreeMap<(u64, u32), (bool, bool)>,
    /// How many have started and not exited.
    running: usize,
    pub(super) exit: Option<(u64, i32)>,
    pub(super) first_seen: u64,
    pub(super) last_seen: u64,
    /// The join's `now` when the last, and the first, of it came.
    pub(super) arrived: u64,
    first_arrived: Option<u64>,
    /// How many records it has had.
    pub(super) version: u64,
    /// How often something changed that decides which requests it fits.
    pub(super) face: u64,
    /// A request that fits it was let go while nothing was asserted of it.
    pub(super) lost_candidates: bool,
    /// Its story is told or of no interest: only identity is kept, news are counted.
    pub(super) retired: bool,
}

impl RootKey {
    /// `None` for records that belong to no root.
    pub(super) fn of(node: &Arc<str>, record: &NodeRecord) -> Option<Self> {
        let root = record.session_root.as_ref()?;
        if root.pid == 0 {
            return None;
        }
        Some(Self {
            node: Arc::clone(node),
            boot_id: record.boot_id.as_str().into(),
            start_boottime_ns: root.start_boottime_ns,
            pid: root.pid,
        })
    }
}

impl Root {
    pub(super) fn new(id: Uuid, key: Arc<RootKey>) -> Self {
        Self {
            id,
            key,
            // Greater than any real one.
            entry: Entry {
                not_of_root: true,
                how: "\u{10ffff}".to_owned(),
                rule: String::new(),
                lineage: String::new(),
            },
            containers: BTreeMap::new(),
            own_container: None,
            starts: BTreeMap::new(),
            starts_not_kept: 0,
            facts: None,
            entered_others: BTreeMap::new(),
            moves: BTreeMap::new(),
            verdict_of: BTreeSet::new(),
            loose: BTreeMap::new(),
            has_verdicts: (false, false),
            verdicts: BTreeMap::new(),
            verdicts_not_kept: BTreeMap::new(),
            processes: BTreeMap::new(),
            running: 0,
            exit: None,
            first_seen: u64::MAX,
            last_seen: 0,
            arrived: 0,
            first_arrived: None,
            version: 0,
            face: 0,
            lost_candidates: false,
            retired: false,
        }
    }

    pub(super) fn add(&mut self, record: NodeRecord, config: &Config, now: u64) {
        let is_root_exec = matches!(&record.detail, Some(Detail::ProcessStart(start)) if start.is_session_root);
        if is_root_exec || record.time_unix_ns < self.first_seen {
            self.face += 1;
        }
        self.first_seen = self.first_seen.min(record.time_unix_ns);
        self.last_seen = self.last_seen.max(record.time_unix_ns);
        self.arrived = self.arrived.max(now);
        self.first_arrived.get_or_insert(now);
        self.version += 1;
        if let Some(root) = record.session_root {
            let said = Entry { not_of_root: !is_root_exec, how: root.entry, rule: root.rule, lineage: root.lineage };
            if said < self.entry {
                self.face += 1;
                self.entry = said;
            }
        }
        if let Some(container) = record.container {
            self.add_container(container, is_root_exec, config);
        }
        let process = (record.start_boottime_ns, record.pid);
        let is_root_process = process == (self.key.start_boottime_ns, self.key.pid);
        match record.detail {
            Some(Detail::ProcessStart(mut program)) => {
                if let Some(facts) = program.container_facts.take() {
                    self.add_facts(*facts);
                }
                if !program.entered_container_id.is_empty() {
                    self.add_entered(&program.entered_container_id, record.time_unix_ns, &record.id, config);
                }
                let key = (record.time_unix_ns, record.id);
                // The root's own exec is what identifies it: it is kept even when the rest came first.
                if self.starts.len() < config.starts_per_root || is_root_exec || self.starts.contains_key(&key) {
                    let start = Start {
                        start_boottime_ns: record.start_boottime_ns,
                        pid: record.pid,
                        comm: record.comm,
                        uid: record.uid,
                        program,
                    };
                    self.starts.insert(key, start);
                    let known = self.processes.entry(process).or_default();
                    self.running += usize::from(*known == (false, false));
                    known.0 = true;
                } else {
                    self.starts_not_kept += 1;
                }
            }
            Some(Detail::ProcessExit(exit)) => {
                // More exits than starts that are kept tell nothing that is asked for.
                if self.processes.len() < config.starts_per_root * 4 || self.processes.contains_key(&process) {
                    let known = self.processes.entry(process).or_default();
                    self.running -= usize::from(*known == (true, false));
                    known.1 = true;
                }
                if is_root_process {
                    let said = (record.time_unix_ns, exit.exit_code);
                    // Whoever attached to a main process tells of its end.
                    self.face += u64::from(self.entry.how == "start");
                    self.exit = Some(self.exit.map_or(said, |known| known.min(said)));
                }
            }
            Some(Detail::Verdict(verdict)) => self.add_verdict(record.id, process, verdict, config),
            Some(Detail::CgroupMove(moved)) => {
                if self.moves.len() < config.moves_per_root {
                    let moved = Move {
                        time: record.time_unix_ns,
                        pid: record.pid,
                        to_container: moved.to_container_id,
                        to_path: moved.to_cgroup_path,
                        by: moved.moved_by_pid,
                    };
                    self.moves.insert(record.id, moved);
                }
            }
            Some(Detail::Loss(_) | Detail::VerdictCount(_) | Detail::Amendment(_)) | None => {}
        }
    }

    /// The node says the same of a container as often as it says it; of two that differ the first stands.
    pub(super) fn add_facts(&mut self, facts: v1::ContainerFacts) {
        if self.facts.is_none() {
            self.facts = Some(facts);
            self.face += 1;
            self.version += 1;
        }
    }

    pub(super) fn facts(&self) -> Option<&v1::ContainerFacts> {
        self.facts.as_ref()
    }

    /// The value is one that the container's own environment has: every exec inherits it, so it identifies none.
    pub(super) fn is_own_value(&self, value: &str) -> bool {
        let own = self.facts.iter().flat_map(|facts| &facts.own_environment);
        own.filter_map(|variable| variable.split_once('=')).any(|(_, own)| own == value)
    }

    fn add_entered(&mut self, whose: &str, time: u64, record: &str, config: &Config) {
        if self.entered_others.len() >= config.containers_per_root && !self.entered_others.contains_key(whose) {
            return;
        }
        let said = (time, record.to_owned());
        let known = self.entered_others.entry(whose.to_owned()).or_insert_with(|| said.clone());
        if said < *known {
            *known = said;
        }
    }

    pub(super) fn add_container(&mut self, container: v1::Container, is_root_exec: bool, config: &Config) {
        self.version += 1;
        let said = Container {
            not_named: container.pod_name.is_empty(),
            namespace: container.pod_namespace,
            pod: container.pod_name,
            name: container.name,
            pod_uid: container.pod_uid,
            id: container.id,
            names: container.names,
        };
        if is_root_exec {
            let own = self.own_container.get_or_insert_with(|| said.id.clone());
            self.face += 1;
            if said.id < *own {
                own.clone_from(&said.id);
            }
        }
        let many = self.containers.len() >= config.containers_per_root && !is_root_exec;
        match self.containers.get_mut(&said.id) {
            Some(known) if said < *known => *known = said,
            Some(_) => return,
            None if many => return,
            None => drop(self.containers.insert(said.id.clone(), said)),
        }
        self.face += 1;
    }

    fn add_verdict(&mut self, id: String, process: (u64, u32), verdict: v1::Verdict, config: &Config) {
        let executed = verdict.outcome == "executed" && !verdict.target_id.is_empty();
        self.has_verdicts = (true, self.has_verdicts.1 || executed);
        if executed && self.verdict_of.len() < config.verdicts_per_root {
            self.verdict_of.insert(hash(&verdict.target_id));
            self.loose.remove(&hash(&id));
        } else if !executed
            && verdict.syscall_name.starts_with("execve")
            && !verdict.sources.iter().any(|source| source == "ebpf")
            && self.loose.len() < config.verdicts_per_root
        {
            self.loose.insert(hash(&id), process);
        }
        let said = (verdict.syscall_name, verdict.outcome);
        let room = self.verdicts.len() < config.verdicts_per_root;
        match self.verdicts.get_mut(&id) {
            // The same record again, perhaps completed since.
            Some(known) => {
                if outcome_rank(&said) > outcome_rank(known) {
                    *known = said;
                }
            }
            None if room => drop(self.verdicts.insert(id, said)),
            None => *self.verdicts_not_kept.entry(said).or_default() += 1,
        }
    }

    pub(super) fn container(&self) -> Option<&Container> {
        let own = self.own_container.as_ref().and_then(|id| self.containers.get(id));
        own.or_else(|| self.containers.values().min())
    }

    /// Processes of it were seen in more than one container.
    pub(super) fn other_containers(&self) -> impl Iterator<Item = &Container> {
        let own = self.container().map(|container| container.id.clone());
        self.containers.values().filter(move |container| Some(&container.id) != own.as_ref())
    }

    /// The first exec in the container, where its record came.
    pub(super) fn first_exec(&self) -> Option<(u64, &Start)> {
        let first = self.starts.iter().find(|(_, start)| start.program.is_session_root);
        first.map(|((time, _), start)| (*time, start))
    }

    /// When it entered, as well as is known.
    pub(super) fn entered(&self) -> u64 {
        self.first_exec().map_or(self.first_seen, |(time, _)| time)
    }

    pub(super) fn first_arrival(&self) -> u64 {
        self.first_arrived.unwrap_or_default()
    }

    /// A process whose start is kept has not exited.
    pub(super) fn is_running(&self) -> bool {
        self.running > 0
    }

    pub(super) fn has_container(&self, id: &str) -> bool {
        self.containers.contains_key(id)
    }

    pub(super) fn container_ids(&self) -> impl Iterator<Item = &String> {
        self.containers.keys()
    }

    /// Starts whose execve has no verdict. Nothing can be said where more verdicts came than are kept.
    pub(super) fn starts_without_verdict(&self, config: &Config) -> Vec<(u64, &str)> {
        if self.verdict_of.len() >= config.verdicts_per_root {
            return Vec::new();
        }
        let mut loose: BTreeMap<(u64, u32), u32> = BTreeMap::new();
        for process in self.loose.values() {
            *loose.entry(*process).or_default() += 1;
        }
        let without = self.starts.iter().filter(|((_, id), start)| {
            let may_be_its = loose.get_mut(&(start.start_boottime_ns, start.pid)).filter(|left| **left > 0);
            let seen = self.verdict_of.contains(&hash(id));
            !seen && may_be_its.is_none_or(|left| std::mem::replace(left, *left - 1) == 0)
        });
        without.map(|((time, id), _)| (*time, id.as_str())).collect()
    }

    pub(super) fn verdict_counts(&self) -> Vec<VerdictCount> {
        let mut counts = self.verdicts_not_kept.clone();
        for said in self.verdicts.values() {
            *counts.entry(said.clone()).or_default() += 1;
        }
        counts.into_iter().map(|((syscall, outcome), count)| VerdictCount { syscall, outcome, count }).collect()
    }

    /// Keeps identity and what is alive, lets the story go.
    pub(super) fn retire(&mut self) {
        self.retired = true;
        self.trim();
    }

    pub(super) fn trim(&mut self) {
        let own = (self.key.start_boottime_ns, self.key.pid);
        self.starts.retain(|_, start| start.program.is_session_root);
        self.processes.retain(|process, (started, _)| {
            *started &= *process == own;
            *process == own
        });
        self.running = self.processes.values().filter(|seen| **seen == (true, false)).count();
        self.verdicts.clear();
        self.verdict_of.clear();
        self.loose.clear();
        self.verdicts_not_kept.clear();
    }
}

fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

/// Completed outcomes beat unknown ones; among equals the text decides, so that order of arrival does not.
fn outcome_rank(verdict: &(String, String)) -> (u8, &str, &str) {
    let (syscall, outcome) = verdict;
    let rank = match outcome.as_str() {
        "executed" | "failed" => 2,
        "unknown" => 1,
        _ => 0,
    };
    (rank, outcome, syscall)
}
