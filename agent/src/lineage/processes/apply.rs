//! What events do to the table.

use std::sync::Arc;

use super::{
    Applied, Image, LOOK_UP_EVERY_NS, MOST_IMAGES, MOST_KEPT, MOST_LOOK_UPS, Origin, Process, ProcessKey, Processes,
    roots::makes_root,
};
use crate::lineage::{
    entry,
    event::{Event, EventKind, KernelRoot, Task},
    runtime::runs_itself_again,
    snapshot,
};

impl Processes {
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
                    comm: event.task.comm,
                    filename: Arc::clone(filename),
                    program: Arc::clone(filename),
                    argv: argv.clone(),
                    cgroup_id: event.task.cgroup_id,
                    mount_namespace: event.task.mount_namespace,
                    pid_namespace: event.task.pid_namespace,
                    exec_origin: Some(event.origin),
                    read_boot_ns: 0,
                };
                became_root = self.exec(key, image, event.task.root, container_of);
            }
            EventKind::Exit { .. } => self.end(key, now),
            EventKind::CgroupMade { .. } | EventKind::CgroupMoved { .. } => {}
        }
        self.forget_excess();
        Applied { key, became_root, had_ended }
    }

    /// The key of the process that the event's task describes; adds it when nothing told of it.
    pub(super) fn resolve(
        &mut self,
        event: &Event,
        container_of: &mut dyn FnMut(u64) -> Option<Arc<str>>,
    ) -> ProcessKey {
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
            comm: task.comm,
            cgroup_id: task.cgroup_id,
            mount_namespace: task.mount_namespace,
            pid_namespace: task.pid_namespace,
            ..Default::default()
        };
        let mut process = Process::new(wanted, Origin::Unknown, task.start_boottime_ns, image);
        if !makes_root(event) {
            process.root = self.root_by_kernel(task, container_of);
        }
        if process.root.is_none() && !older_than_known {
            self.look_up(&mut process, task, now);
        }
        if older_than_known {
            self.by_pid.entry(wanted.pid).or_default().insert(0, wanted);
            self.by_key.insert(wanted, process);
        } else {
            self.add(process);
        }
        wanted
    }

    /// A process of the host that was not followed so far, such as a runtime service that was just restarted: /proc may
    /// still tell what it is.
    pub(super) fn look_up(&mut self, process: &mut Process, task: &Task, now: u64) {
        let on_host = self.host_mount_namespaces.contains(&task.mount_namespace);
        let Some(proc) = self.proc.as_ref().filter(|_| on_host && task.start_boottime_ns != 0) else { return };
        if now >= self.looked_up.0 + LOOK_UP_EVERY_NS {
            self.looked_up = (now, 0);
        }
        self.looked_up.1 += 1;
        if self.looked_up.1 > MOST_LOOK_UPS {
            return;
        }
        if let Some((parent, image)) = snapshot::read_one(proc, task) {
            process.origin = Origin::Rebuilt;
            process.creator = self.living(parent);
            process.images = vec![image];
        }
    }

    /// /proc tells start times in ticks of 10 ms.
    pub(super) fn matches_coarsely(&self, known: ProcessKey, start_boottime_ns: u64) -> bool {
        const TICK_NS: u64 = 10_000_000;
        self.by_key.get(&known).is_some_and(|process| {
            process.origin == Origin::Rebuilt && known.start_boottime_ns / TICK_NS == start_boottime_ns / TICK_NS
        })
    }

    /// Gives a process its exact start time once an event tells it.
    pub(super) fn refine(&mut self, known: ProcessKey, start_boottime_ns: u64) -> ProcessKey {
        let exact = ProcessKey { start_boottime_ns, ..known };
        if start_boottime_ns == 0 || exact == known {
            return known;
        }
        if let Some(mut process) = self.by_key.remove(&known) {
            process.key = exact;
            self.by_key.insert(exact, process);
            if let Some(streams) = &mut self.streams {
                streams.refine(known, exact);
            }
            if let Some(last) = self.by_pid.get_mut(&known.pid).and_then(|keys| keys.last_mut()) {
                *last = exact;
            }
        }
        exact
    }

    pub(super) fn fork(&mut self, creator: ProcessKey, child: ProcessKey, task: &Task, now: u64) {
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
        if self.by_key.len() >= MOST_KEPT && !self.make_room() {
            self.not_kept += 1;
            return;
        }
        let (image, root) = match self.by_key.get(&creator) {
            Some(process) => (process.image().clone(), process.root.clone()),
            None => (Image::default(), None),
        };
        // The child is what its creator is at this moment: comm by the event (prctl changes it without an exec).
        let image = Image {
            generation: 0,
            since_boot_ns: now,
            comm: task.comm,
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
        self.changes += u64::from(process.root.is_some());
        self.add(process);
    }

    pub(super) fn exec(
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
            if let Some(last) = self.by_key.get_mut(&key).and_then(|process| process.images.last_mut()) {
                last.exec_origin = image.exec_origin;
                last.filename = image.filename;
            }
            return false;
        }
        image.generation = last.generation + 1;
        if runs_itself_again(&image.filename) && last.mount_namespace == image.mount_namespace {
            image.program = Arc::clone(&last.program);
        }
        let mut root = match process.root {
            Some(_) => None,
            None => self.root_by(key, &image, by_kernel, container_of),
        };
        if let Some(root) = &mut root {
            if root.entry == entry::EXEC_BY_SHIM || root.entry == entry::EXEC_WITH_CONSOLE {
                root.entry = self.told_by_streams(key, root.entry);
            }
            self.doubt(root, image.since_boot_ns);
            self.remember_namespace(image.mount_namespace, &root.container);
        }
        let Some(process) = self.by_key.get_mut(&key) else { return false };
        process.images.push(image);
        if process.images.len() > MOST_IMAGES {
            process.images.remove(0);
        }
        let became_root = root.is_some();
        if became_root {
            process.root = root.map(Arc::new);
        }
        self.changes += u64::from(process.root.is_some());
        became_root
    }
}
