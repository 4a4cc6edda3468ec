//! The table of processes.

use std::{collections::VecDeque, path::PathBuf, sync::Arc};

use foldhash::{HashMap, HashSet};
use smallvec::SmallVec;

use super::{
    comm::Comm,
    entry::Entry,
    event::{Argv, RecordOrigin, Task},
    gaps::Gaps,
    kept::Remembered,
    runtime::{Runtime, runs_itself_again},
    streams::Streams,
};

mod apply;
mod roots;

/// How long an exited process is remembered, for records that come late: nanoseconds.
const REMEMBER_NS: u64 = 30_000_000_000;
/// Exited processes remembered at once.
const MOST_EXITED: usize = 20_000;
/// Processes remembered at once. Of more than [`MOST_KEPT`], only those that an event of their own tells of, and of those the
/// latest.
const MOST_KEPT: usize = 48_000;
const MOST_OVERFLOW: usize = 8_000;
/// Images remembered of one process: a program that execs itself in a loop must not grow.
const MOST_IMAGES: usize = 64;
/// Creators looked at: a chain is a handful long; the bound stops damage.
const MOST_CREATORS: usize = 64;
/// Processes looked up in /proc in so many nanoseconds.
const MOST_LOOK_UPS: u32 = 64;
const LOOK_UP_EVERY_NS: u64 = 1_000_000_000;
/// Stands for the host where a container's id would.
const HOST: &str = "host";
/// Mount namespaces of containers remembered.
const MOST_NAMESPACES: usize = 8192;

/// Names a process for good, on one boot of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessKey {
    pub pid: u32,
    /// Boot clock. 0: unknown.
    pub start_boottime_ns: u64,
}

/// How a process came to be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Its fork was seen.
    #[default]
    Observed,
    /// Read from /proc at start.
    Rebuilt,
    /// First seen in the middle of its life.
    Unknown,
}

/// A process between two execs.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// How many execs of this process came before.
    pub generation: u32,
    pub since_boot_ns: u64,
    pub comm: Comm,
    pub filename: Arc<str>,
    /// The file that was first run by its path: a program that goes on as a copy of itself is still that one.
    pub program: Arc<str>,
    pub argv: Argv,
    pub cgroup_id: u64,
    pub mount_namespace: u64,
    pub pid_namespace: u64,
    /// Origin of the exec event; none for an image inherited at fork.
    pub exec_origin: Option<RecordOrigin>,
    /// When /proc told of it; 0: an event did.
    pub read_boot_ns: u64,
}

/// The first exec in a container that a process descends from.
#[derive(Clone, Debug)]
pub struct Root {
    pub key: ProcessKey,
    pub entry: Entry,
    pub container: Arc<str>,
    /// How sure the lineage is: observed | rebuilt | unknown.
    pub lineage: &'static str,
}

#[derive(Clone, Debug)]
pub struct Process {
    pub key: ProcessKey,
    pub creator: Option<ProcessKey>,
    pub origin: Origin,
    pub started_boot_ns: u64,
    pub exited_boot_ns: Option<u64>,
    pub root: Option<Arc<Root>>,
    /// The first process of its pid namespace, as /proc told at start.
    is_init: bool,
    /// Attempts of earlier generations are settled.
    pub(super) first_open: u32,
    /// Oldest first; never empty.
    images: Vec<Image>,
}

/// All processes that live or ended a short while ago.
#[derive(Debug)]
pub struct Processes {
    host_mount_namespaces: Vec<u64>,
    runtime: Runtime,
    /// Tells exec from ExecSync below shims; `None`: nothing does.
    streams: Option<Streams>,
    /// When events were lost; `None`: nobody counts.
    gaps: Option<Gaps>,
    /// 0: unknown.
    host_pid_namespace: u64,
    /// How often something of processes below session roots changed.
    changes: u64,
    /// Where processes that were not followed are looked up; `None`: nowhere.
    proc: Option<PathBuf>,
    /// Since when, and how many were.
    looked_up: (u64, u32),
    by_key: HashMap<ProcessKey, Process>,
    /// Processes of one pid, oldest first; the last may live.
    by_pid: HashMap<u32, SmallVec<[ProcessKey; 1]>>,
    exited: VecDeque<(u64, ProcessKey)>,
    /// Added although the table was full, oldest first.
    overflow: VecDeque<ProcessKey>,
    /// Processes that there was no room for.
    not_kept: u64,
    /// Mount namespaces that session roots run in, and whose they are.
    namespaces: HashMap<u64, Arc<str>>,
    /// The same, oldest first.
    namespace_order: VecDeque<u64>,
}

/// What an event did.
#[derive(Debug)]
pub struct Applied {
    pub key: ProcessKey,
    /// This exec made the process a session root.
    pub became_root: bool,
    /// The process had ended before: its threads that end at the same time can each tell of the end.
    pub had_ended: bool,
}

// === impl Process ===

impl Image {
    /// Whether the exec that made it the program that it is was seen: not inherited, and no copy of what was before.
    pub(super) fn has_own_exec(&self) -> bool {
        self.exec_origin.is_some() && !runs_itself_again(&self.filename)
    }
}

impl Process {
    pub(super) fn new(key: ProcessKey, origin: Origin, started_boot_ns: u64, image: Image) -> Self {
        // A fork, then an exec: most have two.
        let mut images = Vec::with_capacity(2);
        images.push(image);
        Self {
            key,
            creator: None,
            origin,
            started_boot_ns,
            exited_boot_ns: None,
            root: None,
            is_init: false,
            first_open: 0,
            images,
        }
    }

    /// What it is now, or was last.
    pub fn image(&self) -> &Image {
        // Never empty: made with one image, and only pushed to or trimmed above one.
        &self.images[self.images.len() - 1]
    }

    /// What it was at a time: the last image that began by then, else the oldest.
    pub fn image_at(&self, time_boot_ns: u64) -> &Image {
        self.images.iter().rev().find(|image| image.since_boot_ns <= time_boot_ns).unwrap_or(&self.images[0])
    }

    pub fn images(&self) -> impl DoubleEndedIterator<Item = &Image> {
        self.images.iter()
    }

    /// Whether a session of this container is its own.
    fn is_in(&self, container: &Arc<str>) -> bool {
        self.root.as_ref().is_some_and(|root| root.container == *container)
    }

    /// The image that the exec ending `generation` made.
    pub fn image_after(&self, generation: u32) -> Option<&Image> {
        self.images.iter().find(|image| image.generation == generation + 1)
    }
}

// === impl Processes ===

impl Processes {
    /// Inode numbers of mount namespaces that are no container's.
    pub fn new(host_mount_namespaces: impl IntoIterator<Item = u64>) -> Self {
        Self {
            host_mount_namespaces: host_mount_namespaces.into_iter().collect(),
            runtime: Runtime::default(),
            streams: None,
            gaps: None,
            host_pid_namespace: 0,
            changes: 0,
            proc: None,
            looked_up: (0, 0),
            by_key: HashMap::default(),
            by_pid: HashMap::default(),
            exited: VecDeque::new(),
            overflow: VecDeque::new(),
            not_kept: 0,
            namespaces: HashMap::default(),
            namespace_order: VecDeque::new(),
        }
    }

    /// What decides how session roots entered.
    #[must_use]
    pub fn with_runtime(self, runtime: Runtime) -> Self {
        Self { runtime, ..self }
    }

    /// Looks processes up there that events tell of and whose fork was not followed.
    #[must_use]
    pub fn with_proc(self, proc: PathBuf) -> Self {
        Self { proc: Some(proc), ..self }
    }

    /// Inode number of the host's pid namespace: containers in it have no init of their own.
    #[must_use]
    pub fn with_host_pids(self, host_pid_namespace: u64) -> Self {
        Self { host_pid_namespace, ..self }
    }

    /// A cgroup was made: perhaps the runtime service's, which was restarted.
    pub fn cgroup_made(&mut self, cgroup_id: u64, path: &str) {
        self.runtime.cgroup_made(cgroup_id, path);
    }

    pub fn get(&self, key: ProcessKey) -> Option<&Process> {
        self.by_key.get(&key)
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Adds a process that was there before the first event, unless events told of it already. `parent` is who /proc
    /// calls its parent, the best guess at its creator; `container` is where it runs; `is_init` says that it is the first
    /// process of its pid namespace.
    pub fn insert_rebuilt(
        &mut self,
        task: &Task,
        parent: u32,
        container: Option<Arc<str>>,
        is_init: bool,
        image: Image,
        kept: Option<&Remembered>,
    ) {
        if self.by_pid.contains_key(&task.pid) {
            return;
        }
        let key = ProcessKey { pid: task.pid, start_boottime_ns: task.start_boottime_ns };
        let mut process = Process::new(key, Origin::Rebuilt, task.start_boottime_ns, image);
        process.creator = self.living(parent);
        process.is_init = is_init;
        if let Some(Remembered { key, creator, generation, root }) = kept {
            // As the run before knew it: by the fork, not by the present parent.
            process.key = *key;
            process.started_boot_ns = key.start_boottime_ns;
            process.creator = *creator;
            process.root = Some(Arc::clone(root));
            if let Some(image) = process.images.last_mut() {
                image.generation = *generation;
            }
        } else {
            process.root = container.map(|container| self.rebuilt_root(&process, container));
        }
        self.changes += u64::from(process.root.is_some());
        if let Some(root) = &process.root {
            self.remember_namespace(task.mount_namespace, &root.container);
        }
        self.add(process);
    }

    fn add(&mut self, process: Process) {
        if self.by_key.len() >= MOST_KEPT && !self.make_room() {
            self.overflow.push_back(process.key);
            if self.overflow.len() > MOST_OVERFLOW
                && let Some(oldest) = self.overflow.pop_front()
                && self.by_key.contains_key(&oldest)
            {
                self.remove(oldest);
                self.not_kept += 1;
            }
        }
        self.by_pid.entry(process.key.pid).or_default().push(process.key);
        self.by_key.insert(process.key, process);
    }

    /// Forgets the process that ended first.
    fn make_room(&mut self) -> bool {
        let Some((_, key)) = self.exited.pop_front() else { return false };
        self.remove(key);
        true
    }

    fn remove(&mut self, key: ProcessKey) {
        self.by_key.remove(&key);
        if let Some(keys) = self.by_pid.get_mut(&key.pid) {
            keys.retain(|known| *known != key);
            if keys.is_empty() {
                self.by_pid.remove(&key.pid);
            }
        }
    }

    /// Processes that there was no room for: a program that one of them starts has the root that the kernel remembers.
    pub fn not_kept(&self) -> u64 {
        self.not_kept
    }

    pub(super) fn is_living(&self, key: ProcessKey) -> bool {
        self.by_key.get(&key).is_some_and(|process| process.exited_boot_ns.is_none())
    }

    pub(super) fn living_keys(&self) -> impl Iterator<Item = ProcessKey> {
        self.by_key.values().filter(|process| process.exited_boot_ns.is_none()).map(|process| process.key)
    }

    /// Its end was not seen.
    pub fn gone(&mut self, key: ProcessKey, now: u64) {
        self.end(key, now);
        self.forget_excess();
    }

    fn living(&self, pid: u32) -> Option<ProcessKey> {
        self.by_pid
            .get(&pid)?
            .last()
            .copied()
            .filter(|key| self.by_key.get(key).is_some_and(|process| process.exited_boot_ns.is_none()))
    }

    fn end(&mut self, key: ProcessKey, now: u64) {
        if let Some(process) = self.by_key.get_mut(&key)
            && process.exited_boot_ns.is_none()
        {
            process.exited_boot_ns = Some(now);
            self.changes += u64::from(process.root.is_some());
            self.exited.push_back((now, key));
        }
    }

    fn forget_excess(&mut self) {
        while self.exited.len() > MOST_EXITED && self.make_room() {}
    }

    /// Forgets processes that ended long before this time, of which nothing waits any more. Not while events are applied: after
    /// a stall of the agent they are of a long time, and what happened in it is still to be explained.
    pub fn forget_before(&mut self, time_boot_ns: u64) {
        while self.exited.front().is_some_and(|(exited, _)| exited + REMEMBER_NS < time_boot_ns) && self.make_room() {}
    }

    /// The living process of this key, moved to another cgroup: what it was in before.
    pub fn moved(&mut self, key: ProcessKey, cgroup_id: u64) -> Option<(u64, &Process)> {
        let key = if self.by_key.contains_key(&key) { key } else { self.living(key.pid)? };
        let process = self.by_key.get_mut(&key)?;
        let image = process.images.last_mut()?;
        let before = std::mem::replace(&mut image.cgroup_id, cgroup_id);
        Some((before, process))
    }

    /// How often something of processes below session roots changed.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The attempts of generations before this one are settled.
    pub(super) fn settled_before(&mut self, key: ProcessKey, generation: u32) {
        if let Some(process) = self.by_key.get_mut(&key) {
            process.first_open = process.first_open.max(generation);
        }
    }

    /// Processes below session roots that live now.
    pub(super) fn living_rooted(&self) -> impl Iterator<Item = &Process> {
        self.by_key.values().filter(|process| process.exited_boot_ns.is_none() && process.root.is_some())
    }

    /// Processes below session roots that live now, for the kernel's own memory.
    pub fn rooted(&self) -> impl Iterator<Item = (ProcessKey, &Root)> {
        self.living_rooted().filter_map(|process| Some((process.key, &**process.root.as_ref()?)))
    }

    /// Forgets processes that neither matter nor made one that does.
    pub fn keep_related(&mut self, matters: &dyn Fn(&Process) -> bool) {
        let mut keep = HashSet::default();
        for process in self.by_key.values().filter(|process| process.root.is_some() || matters(process)) {
            let mut next = Some(process.key);
            while let Some(key) = next
                && keep.insert(key)
            {
                next = self.by_key.get(&key).and_then(|process| process.creator);
            }
        }
        self.by_key.retain(|key, _| keep.contains(key));
        self.by_pid.retain(|_, keys| {
            keys.retain(|key| keep.contains(key));
            !keys.is_empty()
        });
    }

    /// The process that had `pid` at a time, between `from` and `until`: the latest that had started and not yet ended.
    pub fn at(&self, pid: u32, from: u64, until: u64) -> Option<&Process> {
        self.by_pid.get(&pid)?.iter().rev().filter_map(|key| self.by_key.get(key)).find(|process| {
            process.started_boot_ns <= until && process.exited_boot_ns.is_none_or(|exited| exited >= from)
        })
    }
}

#[cfg(test)]
mod tests;
