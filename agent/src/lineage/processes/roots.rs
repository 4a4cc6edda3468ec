//! Session roots: whose container a process came into, how, and what is known where records are missing.

use std::sync::Arc;

use super::{HOST, Image, MOST_CREATORS, MOST_NAMESPACES, Origin, Process, ProcessKey, Processes, Root};
use crate::lineage::{
    entry::{self, Creator, Entry},
    event::{Event, EventKind, KernelRoot, Task},
    gaps::Gaps,
    runtime::Role,
    streams::{Streams, Told},
};

impl Processes {
    /// Tells exec from ExecSync by the connections to the process that serves the CRI, from now on.
    pub fn tell_by_streams(&mut self, mut streams: Streams) {
        streams.watch(self.service());
        self.streams = Some(streams);
    }

    /// Nothing that may rest on a lost event is called observed from now on.
    pub fn mind_gaps(&mut self, gaps: Gaps) {
        self.gaps = Some(gaps);
    }

    /// Notes what was lost since the last look: now and then, so that the times of losses are short.
    pub fn look_for_gaps(&mut self) {
        if let Some(gaps) = &mut self.gaps {
            gaps.look();
        }
    }

    /// Takes back what a root says too much where an event that decides it may be missing.
    pub(super) fn doubt(&mut self, root: &mut Root, until_boot_ns: u64) {
        self.look_for_gaps();
        if !self.may_lack_events(root, until_boot_ns) {
            return;
        }
        root.entry = entry::in_doubt(root.entry, &self.runtime, self.creators(root.key));
        if root.lineage == "observed" {
            root.lineage = "unknown";
        }
    }

    /// Whether something may be missing of what made a process a root at this time: of itself since its fork, and of its
    /// creators, each until it made the next.
    fn may_lack_events(&self, root: &Root, until_boot_ns: u64) -> bool {
        let (Some(gaps), Some(process)) = (&self.gaps, self.by_key.get(&root.key)) else { return false };
        if gaps.touch(process.started_boot_ns, until_boot_ns) {
            return true;
        }
        // It says where it is, not where it comes from.
        if root.entry == entry::NAMESPACE_ENTRY {
            return false;
        }
        let mut until = process.started_boot_ns;
        for Creator { process, image } in self.creators(root.key) {
            let until = std::mem::replace(&mut until, process.started_boot_ns);
            // Monitors and services live long, and are what they are since the exec that was seen of them.
            match self.runtime.role(&image.program).filter(|_| image.has_own_exec() || image.read_boot_ns != 0) {
                // Nothing beyond it decides.
                Some(Role::Service) => return false,
                Some(Role::Shim | Role::Conmon) => {}
                _ if gaps.touch(process.started_boot_ns, until) => return true,
                _ => {}
            }
        }
        false
    }

    /// Whether the process that serves the CRI leaves containers to shims, which serve Exec and ExecSync alike.
    pub fn has_shims(&self) -> bool {
        let service = self.service().and_then(|key| self.by_key.get(&key));
        // CRI-O has a monitor of its own for each ExecSync.
        service.is_some_and(|service| !service.image().program.ends_with("/crio"))
    }

    /// The process that serves the CRI, where it is known for sure.
    pub(super) fn service(&self) -> Option<ProcessKey> {
        let is_it = |process: &Process| {
            let image = process.image();
            process.exited_boot_ns.is_none()
                && self.host_mount_namespaces.contains(&image.mount_namespace)
                && self.runtime.serves(process.key, image) == Some(true)
                && self.runtime.role(&image.program) == Some(Role::Service)
        };
        let first = self.runtime.service_pid().and_then(|pid| self.living(pid));
        if let Some(key) = first.filter(|key| self.by_key.get(key).is_some_and(is_it)) {
            return Some(key);
        }
        // It was started anew; what it starts itself can run its program, too.
        let mut found = self.by_key.values().filter(|process| is_it(process)).map(|process| process.key);
        let one = found.next()?;
        found.next().is_none().then_some(one)
    }

    /// The root of a process that was in a container before we looked. Below another process of the container it is
    /// that one's, unless that one is the container's init: orphans get init as their parent, so it proves nothing. (A
    /// subreaper proves it: only what descends from it comes to it.)
    pub(super) fn rebuilt_root(&self, process: &Process, container: Arc<str>) -> Arc<Root> {
        let unknown =
            |entry, container| Arc::new(Root { key: ProcessKey::default(), entry, container, lineage: "unknown" });
        let creator = process.creator.and_then(|creator| self.by_key.get(&creator));
        let above = creator.and_then(|creator| creator.root.as_ref().map(|root| (creator, root)));
        match above {
            Some((creator, root)) if !creator.is_init => match root.lineage {
                // Of what was known for sure, this is a guess.
                "kept" => Arc::new(Root { lineage: "rebuilt", ..Root::clone(root) }),
                _ => Arc::clone(root),
            },
            Some((_, root)) => unknown(entry::OLD_ORPHAN, Arc::clone(&root.container)),
            None => {
                // /proc is read in the order of start times.
                let is_first = process.is_init || !self.by_key.values().any(|other| other.is_in(&container));
                // Orphans of a container that has no pid namespace of its own get a parent outside.
                let shares_pids =
                    self.host_pid_namespace != 0 && process.image().pid_namespace == self.host_pid_namespace;
                if shares_pids && !is_first {
                    return unknown(entry::OLD_OUTSIDE, container);
                }
                let outside = std::iter::successors(creator, |process| self.by_key.get(&process.creator?));
                let outside = outside.take(MOST_CREATORS).map(|process| Creator { process, image: process.image() });
                let entry = entry::classify_rebuilt(&self.runtime, &self.host_mount_namespaces, is_first, outside);
                Arc::new(Root { key: process.key, entry, container, lineage: "rebuilt" })
            }
        }
    }

    pub(super) fn remember_namespace(&mut self, mount_namespace: u64, container: &Arc<str>) {
        if mount_namespace == 0 || self.host_mount_namespaces.contains(&mount_namespace) {
            return;
        }
        if let Some(known) = self.namespaces.get(&mount_namespace) {
            // The numbers of namespaces are used again, at once.
            if known != container && self.owner(mount_namespace).is_none() {
                self.namespaces.insert(mount_namespace, Arc::clone(container));
            }
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

    /// Whose a mount namespace is, as long as one of its processes lives in it: afterwards its number is somebody else's.
    pub(super) fn owner(&self, mount_namespace: u64) -> Option<&Arc<str>> {
        let owner = self.namespaces.get(&mount_namespace)?;
        let lives_in_it = |process: &Process| {
            process.exited_boot_ns.is_none()
                && process.image().mount_namespace == mount_namespace
                && process.is_in(owner)
        };
        self.by_key.values().any(lives_in_it).then_some(owner)
    }

    /// Mount namespaces of containers.
    pub fn namespaces(&self) -> impl Iterator<Item = u64> {
        self.namespaces.keys().copied()
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
                        let container = container_of(task.cgroup_id)?;
                        Some(Arc::new(Root { key, entry: entry::ROOT_LOST, container, lineage: "kernel" }))
                    }
                }
            }
            KernelRoot::Unknown => {
                let container = container_of(task.cgroup_id)?;
                let entry = entry::MEMORY_FULL;
                Some(Arc::new(Root { key: ProcessKey::default(), entry, container, lineage: "unknown" }))
            }
        }
    }

    /// A known process without a root for which the kernel has one: the records that would tell were lost.
    pub(super) fn adopt_root(
        &mut self,
        key: ProcessKey,
        event: &Event,
        container_of: &mut dyn FnMut(u64) -> Option<Arc<str>>,
    ) {
        let lacks_root = self.by_key.get(&key).is_some_and(|process| process.root.is_none());
        if !lacks_root || makes_root(event) || !matches!(event.task.root, KernelRoot::Known { .. }) {
            return;
        }
        let root = self.root_by_kernel(&event.task, container_of);
        if let Some(process) = self.by_key.get_mut(&key) {
            process.root = root;
        }
    }

    /// Whether an exec that is not below a root yet makes one.
    pub(super) fn root_by(
        &self,
        key: ProcessKey,
        image: &Image,
        by_kernel: KernelRoot,
        container_of: &mut dyn FnMut(u64) -> Option<Arc<str>>,
    ) -> Option<Root> {
        let in_host_mounts = self.host_mount_namespaces.contains(&image.mount_namespace);
        let orphan = self.by_key.get(&key).is_some_and(|process| process.origin == Origin::Unknown);
        let (container, entry) = match container_of(image.cgroup_id) {
            // The runtime's own stages run in the container's cgroup before they enter its mount namespace.
            Some(_) if in_host_mounts && image.mount_namespace != 0 => return None,
            Some(container) if orphan => (container, entry::FORK_LOST),
            Some(container) => {
                let entry = entry::classify(&self.runtime, &self.host_mount_namespaces, self.creators(key));
                (container, entry)
            }
            None => {
                let container = self.owner(image.mount_namespace).filter(|_| !in_host_mounts)?;
                (Arc::clone(container), entry::NAMESPACE_ENTRY)
            }
        };
        let lineage = match by_kernel {
            _ if !orphan => "observed",
            // Not from a cgroup that is followed. What is below a root is in the kernel's memory, and this is not.
            KernelRoot::None if entry == entry::NAMESPACE_ENTRY => "kernel",
            // Every process below a root inherits it in the kernel: one that makes its own is below none.
            KernelRoot::Known { pid, .. } if pid == key.pid => "kernel",
            _ => "unknown",
        };
        Some(Root { key, entry, container, lineage })
    }

    /// The entry of an exec below a shim, with what the connections for streams tell of it.
    pub(super) fn told_by_streams(&mut self, key: ProcessKey, entry: Entry) -> Entry {
        let asked = entry::asked_boot_ns(&self.runtime, &self.host_mount_namespaces, self.creators(key));
        let service = self.service();
        let (Some(streams), Some(asked)) = (&mut self.streams, asked) else { return entry };
        let is_exec = entry == entry::EXEC_WITH_CONSOLE;
        match streams.tell(service, asked, is_exec) {
            Told::Synchronous => entry::EXEC_SYNC_BY_SHIM,
            Told::Connected | Told::Nothing => entry,
        }
    }

    /// Whose mount namespace a process of a session runs in, where that is not its container's: another container's, or the
    /// host's.
    pub fn entered(&self, process: &Process) -> Option<Arc<str>> {
        let root = process.root.as_ref()?;
        let namespace = process.image().mount_namespace;
        if namespace == 0 {
            return None;
        }
        if self.host_mount_namespaces.contains(&namespace) {
            return Some(HOST.into());
        }
        self.namespaces.get(&namespace).filter(|owner| **owner != root.container)?;
        self.owner(namespace).cloned()
    }

    /// The images of the creators, nearest first, each as it was when it made the next.
    pub(super) fn creators(&self, key: ProcessKey) -> impl Iterator<Item = Creator<'_>> {
        let mut next = self.by_key.get(&key);
        std::iter::from_fn(move || {
            let child = next?;
            let process = self.by_key.get(&child.creator?)?;
            next = Some(process);
            Some(Creator { process, image: process.image_at(child.started_boot_ns) })
        })
        .take(MOST_CREATORS)
    }
}

/// An exec that makes a root itself is stamped with it, too; what tells is that its environment was searched.
pub(super) fn makes_root(event: &Event) -> bool {
    matches!(&event.kind, EventKind::Exec { environment, .. } if environment.whole.is_some())
}
