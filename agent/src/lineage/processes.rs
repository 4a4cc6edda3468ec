//! The table of processes.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{
    entry::{self, Entry},
    event::{Argv, Event, EventKind, KernelRoot, Task},
};

/// How long an exited process is remembered, for records that come late: nanoseconds.
const REMEMBER_NS: u64 = 30_000_000_000;
/// Exited processes remembered at once.
const MOST_EXITED: usize = 20_000;
/// Images remembered of one process: a program that execs itself in a loop must not grow.
const MOST_IMAGES: usize = 64;
/// Creators looked at: a chain is a handful long; the bound stops damage.
const MOST_CREATORS: usize = 64;
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
    pub comm: Arc<str>,
    pub filename: Arc<str>,
    pub argv: Argv,
    pub cgroup_id: u64,
    pub mount_namespace: u64,
    pub pid_namespace: u64,
    /// Origin of the exec event; none for an image inherited at fork.
    pub exec_origin: Option<Arc<str>>,
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
    /// Oldest first; never empty.
    images: VecDeque<Image>,
}

/// All processes that live or ended a short while ago.
#[derive(Debug)]
pub struct Processes {
    host_mount_namespaces: Vec<u64>,
    by_key: HashMap<ProcessKey, Process>,
    /// Processes of one pid, oldest first; the last may live.
    by_pid: HashMap<u32, Vec<ProcessKey>>,
    exited: VecDeque<(u64, ProcessKey)>,
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

impl Process {
    fn new(key: ProcessKey, origin: Origin, started_boot_ns: u64, image: Image) -> Self {
        Self {
            key,
            creator: None,
            origin,
            started_boot_ns,
            exited_boot_ns: None,
            root: None,
            is_init: false,
            images: VecDeque::from([image]),
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
            by_key: HashMap::new(),
            by_pid: HashMap::new(),
            exited: VecDeque::new(),
            namespaces: HashMap::new(),
            namespace_order: VecDeque::new(),
        }
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
    ) {
        if self.by_pid.contains_key(&task.pid) {
            return;
        }
        let key = ProcessKey { pid: task.pid, start_boottime_ns: task.start_boottime_ns };
        let mut process = Process::new(key, Origin::Rebuilt, task.start_boottime_ns, image);
        process.creator = self.living(parent);
        process.is_init = is_init;
        process.root = container.map(|container| self.rebuilt_root(&process, container));
        if let Some(root) = &process.root {
            self.remember_namespace(task.mount_namespace, &root.container);
        }
        self.add(process);
    }

    /// The root of a process that was in a container before we looked. Below another process of the container it is
    /// that one's, unless that one is the container's init: orphans get init as their parent, so it proves nothing.
    fn rebuilt_root(&self, process: &Process, container: Arc<str>) -> Arc<Root> {
        let creator = process.creator.and_then(|creator| self.by_key.get(&creator));
        let above = creator.and_then(|creator| creator.root.as_ref().map(|root| (creator, root)));
        match above {
            Some((creator, root)) if !creator.is_init => Arc::clone(root),
            Some((_, root)) => {
                let rule = "child of the container's init in /proc: started by it, or an orphan of some session";
                let entry = Entry { how: "unknown", rule };
                Arc::new(Root {
                    key: ProcessKey::default(),
                    entry,
                    container: Arc::clone(&root.container),
                    lineage: "unknown",
                })
            }
            None => {
                let outside = std::iter::successors(creator, |process| self.by_key.get(&process.creator?));
                let entry = entry::classify_rebuilt(process.is_init, outside.take(MOST_CREATORS).map(Process::image));
                Arc::new(Root { key: process.key, entry, container, lineage: "rebuilt" })
            }
        }
    }

    fn remember_namespace(&mut self, mount_namespace: u64, container: &Arc<str>) {
        if mount_namespace == 0
            || self.host_mount_namespaces.contains(&mount_namespace)
            || self.namespaces.contains_key(&mount_namespace)
        {
            return;
        }
        self.namespaces.insert(mount_namespace, Arc::clone(container));
        self.namespace_order.push_back(mount_namespace);
        if self.namespace_order.len() > MOST_NAMESPACES
            && let Some(oldest) = self.namespace_order.pop_front()
        {
            self.namespaces.remove(&oldest);
        }
    }

    fn add(&mut self, process: Process) {
        self.by_pid.entry(process.key.pid).or_default().push(process.key);
        self.by_key.insert(process.key, process);
    }

    fn living(&self, pid: u32) -> Option<ProcessKey> {
        self.by_pid
            .get(&pid)?
            .last()
            .copied()
            .filter(|key| self.by_key.get(key).is_some_and(|process| process.exited_boot_ns.is_none()))
    }

    /// The key of the process that the event's task describes; adds it when nothing told of it.
    fn resolve(&mut self, event: &Event, container_of: &mut dyn FnMut(u64) -> Option<Arc<str>>) -> ProcessKey {
        let (task, now) = (&event.task, event.time_boot_ns);
        let wanted = ProcessKey { pid: task.pid, start_boottime_ns: task.start_boottime_ns };
        if task.start_boottime_ns != 0 && self.by_key.contains_key(&wanted) {
            return wanted;
        }
        let mut older_than_known = false;
        if let Some(known) = self.living(task.pid) {
            let same = known.start_boottime_ns == wanted.start_boottime_ns
                || task.start_boottime_ns == 0
                || known.start_boottime_ns == 0
                || self.matches_coarsely(known, task.start_boottime_ns);
            if same {
                return self.refine(known, task.start_boottime_ns);
            }
            if known.start_boottime_ns > wanted.start_boottime_ns {
                // /proc was read after this event: the process that it tells of was gone by then.
                older_than_known = true;
            } else {
                // Another process has this pid now, so the known one's exit was lost.
                self.end(known, now);
            }
        }
        let image = Image {
            comm: Arc::clone(&task.comm),
            cgroup_id: task.cgroup_id,
            mount_namespace: task.mount_namespace,
            pid_namespace: task.pid_namespace,
            ..Default::default()
        };
        let mut process = Process::new(wanted, Origin::Unknown, task.start_boottime_ns, image);
        if !makes_root(event) {
            process.root = self.root_by_kernel(task, container_of);
        }
        if older_than_known {
            self.by_pid.entry(wanted.pid).or_default().insert(0, wanted);
            self.by_key.insert(wanted, process);
        } else {
            self.add(process);
        }
        wanted
    }

    /// The root that the kernel remembers for a process whose own history was lost.
    pub fn root_by_kernel(
        &self,
        task: &Task,
        container_of: &mut dyn FnMut(u64) -> Option<Arc<str>>,
    ) -> Option<Arc<Root>> {
        match task.root {
            KernelRoot::None => None,
            KernelRoot::Known { pid, start_boottime_ns } => {
                let key = ProcessKey { pid, start_boottime_ns };
                let process = self.by_key.get(&key);
                let known = process.and_then(|process| process.root.as_ref()).filter(|root| root.key == key);
                // Where the scope has no bounds, the kernel takes any service with mounts of its own for a container.
                if known.is_none() && process.is_some_and(|process| container_of(process.image().cgroup_id).is_none()) {
                    return None;
                }
                match known {
                    Some(root) => Some(Arc::new(Root { lineage: "kernel", ..Root::clone(root) })),
                    None => {
                        let entry =
                            Entry { how: "unknown", rule: "the root's own records were lost; the kernel remembers it" };
                        let container = container_of(task.cgroup_id)?;
                        Some(Arc::new(Root { key, entry, container, lineage: "kernel" }))
                    }
                }
            }
            KernelRoot::Unknown => {
                let entry = Entry {
                    how: "unknown",
                    rule: "records of its lineage were lost, and the kernel's own memory was full",
                };
                let container = container_of(task.cgroup_id)?;
                Some(Arc::new(Root { key: ProcessKey::default(), entry, container, lineage: "unknown" }))
            }
        }
    }

    /// /proc tells start times in ticks of 10 ms.
    fn matches_coarsely(&self, known: ProcessKey, start_boottime_ns: u64) -> bool {
        const TICK_NS: u64 = 10_000_000;
        self.by_key.get(&known).is_some_and(|process| {
            process.origin == Origin::Rebuilt && known.start_boottime_ns / TICK_NS == start_boottime_ns / TICK_NS
        })
    }

    /// Gives a process its exact start time once an event tells it.
    fn refine(&mut self, known: ProcessKey, start_boottime_ns: u64) -> ProcessKey {
        let exact = ProcessKey { start_boottime_ns, ..known };
        if start_boottime_ns == 0 || exact == known {
            return known;
        }
        if let Some(mut process) = self.by_key.remove(&known) {
            process.key = exact;
            self.by_key.insert(exact, process);
            if let Some(last) = self.by_pid.get_mut(&known.pid).and_then(|keys| keys.last_mut()) {
                *last = exact;
            }
        }
        exact
    }

    /// Applies one event. `container_of` names the container that a cgroup belongs to.
    pub fn apply(&mut self, event: &Event, container_of: &mut dyn FnMut(u64) -> Option<Arc<str>>) -> Applied {
        let now = event.time_boot_ns;
        let key = self.resolve(event, container_of);
        self.adopt_root(key, event, container_of);
        let had_ended = self.by_key.get(&key).is_some_and(|process| process.exited_boot_ns.is_some());
        let mut became_root = false;
        match &event.kind {
            EventKind::Fork { child_pid, child_start_boottime_ns } => {
                let child = ProcessKey { pid: *child_pid, start_boottime_ns: *child_start_boottime_ns };
                self.fork(key, child, &event.task, now);
            }
            EventKind::Exec { filename, argv, .. } => {
                let image = Image {
                    generation: 0,
                    since_boot_ns: now,
                    comm: Arc::clone(&event.task.comm),
                    filename: Arc::clone(filename),
                    argv: argv.clone(),
                    cgroup_id: event.task.cgroup_id,
                    mount_namespace: event.task.mount_namespace,
                    pid_namespace: event.task.pid_namespace,
                    exec_origin: Some(Arc::clone(&event.origin)),
                    read_boot_ns: 0,
                };
                became_root = self.exec(key, image, event.task.root, container_of);
            }
            EventKind::Exit { .. } => self.end(key, now),
            EventKind::CgroupMade { .. } | EventKind::CgroupMoved { .. } => {}
        }
        self.forget(now);
        Applied { key, became_root, had_ended }
    }

    /// A known process without a root for which the kernel has one: the records that would tell were lost.
    fn adopt_root(&mut self, key: ProcessKey, event: &Event, container_of: &mut dyn FnMut(u64) -> Option<Arc<str>>) {
        let lacks_root = self.by_key.get(&key).is_some_and(|process| process.root.is_none());
        if !lacks_root || makes_root(event) || !matches!(event.task.root, KernelRoot::Known { .. }) {
            return;
        }
        let root = self.root_by_kernel(&event.task, container_of);
        if let Some(process) = self.by_key.get_mut(&key) {
            process.root = root;
        }
    }

    fn fork(&mut self, creator: ProcessKey, child: ProcessKey, task: &Task, now: u64) {
        if self.by_key.contains_key(&child) && child.start_boottime_ns != 0 {
            return;
        }
        if let Some(old) = self.living(child.pid) {
            if self.matches_coarsely(old, child.start_boottime_ns) {
                // /proc was read after this event and knows the child already; who made it is only now known for sure.
                let key = self.refine(old, child.start_boottime_ns);
                let root = self.by_key.get(&creator).and_then(|process| process.root.clone());
                if let Some(process) = self.by_key.get_mut(&key) {
                    process.creator = Some(creator);
                    process.origin = Origin::Observed;
                    process.root = root;
                }
                return;
            }
            if old.start_boottime_ns > child.start_boottime_ns && child.start_boottime_ns != 0 {
                // The child was gone when /proc was read; nothing of it is left to tell.
                return;
            }
            self.end(old, now);
        }
        let (image, root) = match self.by_key.get(&creator) {
            Some(process) => (process.image().clone(), process.root.clone()),
            None => (Image::default(), None),
        };
        // The child is what its creator is at this moment: comm by the event (prctl changes it without an exec).
        let image = Image {
            generation: 0,
            since_boot_ns: now,
            comm: Arc::clone(&task.comm),
            cgroup_id: task.cgroup_id,
            mount_namespace: task.mount_namespace,
            exec_origin: None,
            read_boot_ns: 0,
            ..image
        };
        let started = if child.start_boottime_ns == 0 { now } else { child.start_boottime_ns };
        let mut process = Process::new(child, Origin::Observed, started, image);
        process.creator = Some(creator);
        process.root = root;
        self.add(process);
    }

    fn exec(
        &mut self,
        key: ProcessKey,
        mut image: Image,
        by_kernel: KernelRoot,
        container_of: &mut dyn FnMut(u64) -> Option<Arc<str>>,
    ) -> bool {
        let Some(process) = self.by_key.get(&key) else { return false };
        let last = process.image();
        let read_later = last.exec_origin.is_none() && last.read_boot_ns > image.since_boot_ns;
        if read_later && last.argv == image.argv {
            // /proc was read after this exec, so the image is known already; the event tells its origin.
            if let Some(last) = self.by_key.get_mut(&key).and_then(|process| process.images.back_mut()) {
                last.exec_origin = image.exec_origin;
                last.filename = image.filename;
            }
            return false;
        }
        image.generation = last.generation + 1;
        let root = match process.root {
            Some(_) => None,
            None => self.root_by(key, &image, by_kernel, container_of),
        };
        if let Some(root) = &root {
            self.remember_namespace(image.mount_namespace, &root.container);
        }
        let Some(process) = self.by_key.get_mut(&key) else { return false };
        process.images.push_back(image);
        if process.images.len() > MOST_IMAGES {
            process.images.pop_front();
        }
        let became_root = root.is_some();
        if became_root {
            process.root = root;
        }
        became_root
    }

    /// Whether an exec that is not below a root yet makes one.
    fn root_by(
        &self,
        key: ProcessKey,
        image: &Image,
        by_kernel: KernelRoot,
        container_of: &mut dyn FnMut(u64) -> Option<Arc<str>>,
    ) -> Option<Arc<Root>> {
        let in_host_mounts = self.host_mount_namespaces.contains(&image.mount_namespace);
        let orphan = self.by_key.get(&key).is_some_and(|process| process.origin == Origin::Unknown);
        let (container, entry) = match container_of(image.cgroup_id) {
            // The runtime's own stages run in the container's cgroup before they enter its mount namespace.
            Some(_) if in_host_mounts && image.mount_namespace != 0 => return None,
            Some(container) if orphan => {
                let rule = "its fork was not seen: it came from outside of what is followed, or the record was lost";
                (container, Entry { how: "unknown", rule })
            }
            Some(container) => (container, entry::classify(self.creators(key))),
            None => {
                let container = self.namespaces.get(&image.mount_namespace).filter(|_| !in_host_mounts)?;
                let rule = "runs in a container's mount namespace but in no container's cgroup";
                (Arc::clone(container), Entry { how: "namespace_entry", rule })
            }
        };
        let lineage = match by_kernel {
            _ if !orphan => "observed",
            // Every process below a root inherits it in the kernel: one that makes its own is below none.
            KernelRoot::Known { pid, .. } if pid == key.pid => "kernel",
            _ => "unknown",
        };
        Some(Arc::new(Root { key, entry, container, lineage }))
    }

    /// The images of the creators, nearest first, each as it was when it made the next.
    fn creators(&self, key: ProcessKey) -> impl Iterator<Item = &Image> {
        let mut next = self.by_key.get(&key);
        std::iter::from_fn(move || {
            let child = next?;
            let creator = self.by_key.get(&child.creator?);
            let image = creator?.image_at(child.started_boot_ns);
            next = creator;
            Some(image)
        })
        .take(MOST_CREATORS)
    }

    fn end(&mut self, key: ProcessKey, now: u64) {
        if let Some(process) = self.by_key.get_mut(&key)
            && process.exited_boot_ns.is_none()
        {
            process.exited_boot_ns = Some(now);
            self.exited.push_back((now, key));
        }
    }

    fn forget(&mut self, now: u64) {
        while let Some((exited, key)) = self.exited.front().copied()
            && (exited + REMEMBER_NS < now || self.exited.len() > MOST_EXITED)
        {
            self.exited.pop_front();
            self.by_key.remove(&key);
            if let Some(keys) = self.by_pid.get_mut(&key.pid) {
                keys.retain(|known| *known != key);
                if keys.is_empty() {
                    self.by_pid.remove(&key.pid);
                }
            }
        }
    }

    /// The living process of this key, moved to another cgroup: what it was in before.
    pub fn moved(&mut self, key: ProcessKey, cgroup_id: u64) -> Option<(u64, &Process)> {
        let key = if self.by_key.contains_key(&key) { key } else { self.living(key.pid)? };
        let process = self.by_key.get_mut(&key)?;
        let image = process.images.back_mut()?;
        let before = std::mem::replace(&mut image.cgroup_id, cgroup_id);
        Some((before, process))
    }

    /// Processes below session roots that live now, for the kernel's own memory.
    pub fn rooted(&self) -> impl Iterator<Item = (ProcessKey, &Root)> {
        let living = self.by_key.values().filter(|process| process.exited_boot_ns.is_none());
        living.filter_map(|process| Some((process.key, &**process.root.as_ref()?)))
    }

    /// Forgets processes that neither matter nor made one that does.
    pub fn keep_related(&mut self, matters: &dyn Fn(&Process) -> bool) {
        let mut keep = std::collections::HashSet::new();
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

/// An exec that makes a root itself is stamped with it, too; what tells is that its environment was searched.
fn makes_root(event: &Event) -> bool {
    matches!(&event.kind, EventKind::Exec { environment, .. } if environment.whole.is_some())
}

#[cfg(test)]
mod tests;
