use super::*;
use crate::lineage::Environment;
use proptest::prelude::*;

const HOST_MOUNTS: u64 = 4_026_531_832;
const CONTAINER_MOUNTS: u64 = 4_026_532_181;
const CONTAINER_CGROUP: u64 = 728;

/// Feeds events with times that only grow.
struct World {
    processes: Processes,
    now: u64,
}

impl World {
    fn new() -> Self {
        Self { processes: Processes::new([HOST_MOUNTS]), now: 0 }
    }

    fn event(&mut self, pid: u32, inside: bool, kind: EventKind) -> Applied {
        self.now += 1_000_000;
        let (cgroup_id, mount_namespace) = if inside { (CONTAINER_CGROUP, CONTAINER_MOUNTS) } else { (1, HOST_MOUNTS) };
        let event = Event {
            origin: format!("t0.{}", self.now).into(),
            time_boot_ns: self.now,
            task: Task { pid, tid: pid, cgroup_id, mount_namespace, ..Default::default() },
            kind,
        };
        self.processes.apply(&event, &mut |cgroup| (cgroup == CONTAINER_CGROUP).then(|| "c".into()))
    }

    fn fork(&mut self, pid: u32, inside: bool, child_pid: u32) {
        let child_start_boottime_ns = self.now + 1_000_000;
        self.event(pid, inside, EventKind::Fork { child_pid, child_start_boottime_ns });
    }

    fn exec(&mut self, pid: u32, inside: bool, argv: &[&str]) -> Applied {
        let argv = Argv { arguments: argv.iter().map(ToString::to_string).collect(), truncated_bytes: 0 };
        let filename = format!("/usr/bin/{}", argv.arguments[0]).into();
        self.event(
            pid,
            inside,
            EventKind::Exec {
                old_tid: pid,
                filename,
                interpreter: "".into(),
                argv,
                environment: Environment::default(),
            },
        )
    }

    fn exit(&mut self, pid: u32, inside: bool) {
        self.event(pid, inside, EventKind::Exit { exit_code: 0 });
    }

    fn root_of(&self, pid: u32) -> Option<u32> {
        self.processes.at(pid, self.now, self.now)?.root.as_ref().map(|root| root.key.pid)
    }

    /// crio runs `runc exec`, whose stages make 13, which becomes `sh` inside the container.
    fn remote_exec(&mut self) -> Applied {
        self.exec(1, false, &["crio"]);
        self.fork(1, false, 10);
        self.exec(10, false, &["runc", "exec", "c"]);
        self.fork(10, false, 11);
        self.exec(11, false, &["runc", "init"]);
        self.fork(11, false, 12);
        self.fork(12, false, 13);
        self.exit(12, false);
        self.exit(11, false);
        self.exec(13, true, &["sh", "-c", "id"])
    }
}

#[test]
fn the_first_exec_inside_is_the_root_and_everything_below_inherits_it() {
    let mut world = World::new();
    assert!(world.remote_exec().became_root);
    let root = world.processes.at(13, world.now, world.now).unwrap().root.clone().unwrap();
    assert_eq!((root.entry.how, root.key.pid, &*root.container), ("exec", 13, "c"));

    world.fork(13, true, 20);
    world.fork(20, true, 21);
    world.exit(20, true);
    assert!(!world.exec(21, true, &["id"]).became_root);
    assert!(!world.exec(13, true, &["cat"]).became_root);
    world.exit(13, true);
    assert_eq!(world.root_of(21), Some(13), "a daemon keeps its root when the root is gone");
}

#[test]
fn a_runtime_stage_in_the_containers_cgroup_but_the_hosts_mounts_is_no_root() {
    let mut world = World::new();
    world.now += 1;
    let event = Event {
        origin: "t".into(),
        time_boot_ns: world.now,
        task: Task { pid: 5, cgroup_id: CONTAINER_CGROUP, mount_namespace: HOST_MOUNTS, ..Default::default() },
        kind: EventKind::Exec {
            old_tid: 5,
            filename: "runc".into(),
            interpreter: "".into(),
            argv: Argv::default(),
            environment: Environment::default(),
        },
    };
    assert!(!world.processes.apply(&event, &mut |_| Some("c".into())).became_root);
}

#[test]
fn an_entry_into_the_mount_namespace_from_the_hosts_cgroup_is_a_namespace_entry() {
    let mut world = World::new();
    world.remote_exec();
    world.now += 1;
    let event = Event {
        origin: "t".into(),
        time_boot_ns: world.now,
        task: Task { pid: 90, cgroup_id: 1, mount_namespace: CONTAINER_MOUNTS, ..Default::default() },
        kind: EventKind::Exec {
            old_tid: 90,
            filename: "/bin/id".into(),
            interpreter: "".into(),
            argv: Argv::default(),
            environment: Environment::default(),
        },
    };
    assert!(world.processes.apply(&event, &mut |cgroup| (cgroup == CONTAINER_CGROUP).then(|| "c".into())).became_root);
    let root = world.processes.at(90, world.now, world.now).unwrap().root.clone().unwrap();
    assert_eq!((root.entry.how, &*root.container), ("namespace_entry", "c"));
}

#[test]
fn a_pid_used_again_is_another_process() {
    let mut world = World::new();
    world.remote_exec();
    world.exit(13, true);
    let ended = world.now;
    world.fork(1, false, 13);
    assert_eq!(world.root_of(13), None);
    assert_eq!(world.processes.at(13, ended - 1, ended).unwrap().root.as_ref().unwrap().key.pid, 13);
}

#[test]
fn a_lost_exit_does_not_mix_two_processes_of_one_pid() {
    let mut world = World::new();
    world.remote_exec();
    world.fork(1, false, 13);
    assert_eq!(world.root_of(13), None);
}

#[test]
fn an_image_is_found_by_time() {
    let mut world = World::new();
    world.remote_exec();
    let before = world.now;
    world.exec(13, true, &["id"]);
    let process = world.processes.at(13, before, before).unwrap();
    assert_eq!(&*process.image_at(before).argv.arguments, ["sh", "-c", "id"]);
    assert_eq!(&*process.image_at(world.now).argv.arguments, ["id"]);
    assert_eq!(&*process.image_after(process.image_at(before).generation).unwrap().argv.arguments, ["id"]);
}

#[test]
fn exited_processes_and_images_are_bounded() {
    let mut world = World::new();
    for pid in 100..100 + 2 * MOST_EXITED as u32 {
        world.fork(1, false, pid);
        world.exit(pid, false);
    }
    assert!(world.processes.len() <= MOST_EXITED + 2);
    for _ in 0..3 * MOST_IMAGES {
        world.exec(1, false, &["loop"]);
    }
    assert!(world.processes.at(1, world.now, world.now).unwrap().images().count() <= MOST_IMAGES);
}

/// A random life of few pids; the model keeps who belongs to the root.
fn steps() -> impl Strategy<Value = Vec<(u8, u32, u32)>> {
    proptest::collection::vec((0u8..3, 13u32..20, 13u32..20), 0..200)
}

proptest! {
    #[test]
    fn membership_follows_fork_whatever_the_order(steps in steps()) {
        let mut world = World::new();
        world.remote_exec();
        let mut members = std::collections::BTreeSet::from([13u32]);
        for (what, pid, other) in steps {
            if !members.contains(&pid) {
                continue;
            }
            match what {
                0 if !members.contains(&other) => {
                    world.fork(pid, true, other);
                    members.insert(other);
                }
                1 => {
                    prop_assert!(!world.exec(pid, true, &["x"]).became_root);
                }
                2 => {
                    world.exit(pid, true);
                    members.remove(&pid);
                }
                _ => {}
            }
            for member in &members {
                prop_assert_eq!(world.root_of(*member), Some(13));
            }
        }
    }
}

#[test]
fn a_process_whose_history_was_lost_has_the_root_that_the_kernel_remembers() {
    let mut world = World::new();
    world.remote_exec();
    let root = world.processes.at(13, world.now, world.now).unwrap().key;
    world.now += 1;
    let stamped = KernelRoot::Known { pid: root.pid, start_boottime_ns: root.start_boottime_ns };
    let stranger = |pid, root| Task {
        pid,
        start_boottime_ns: u64::from(pid),
        cgroup_id: CONTAINER_CGROUP,
        mount_namespace: CONTAINER_MOUNTS,
        root,
        ..Default::default()
    };
    for (pid, root, expected) in [
        (70, stamped, ("exec", 13, "kernel")),
        (71, KernelRoot::Known { pid: 9, start_boottime_ns: 9 }, ("unknown", 9, "kernel")),
        (72, KernelRoot::Unknown, ("unknown", 0, "unknown")),
    ] {
        let event = Event {
            origin: "t".into(),
            time_boot_ns: world.now,
            task: stranger(pid, root),
            kind: EventKind::Fork { child_pid: pid + 100, child_start_boottime_ns: world.now },
        };
        world.processes.apply(&event, &mut |cgroup| (cgroup == CONTAINER_CGROUP).then(|| "c".into()));
        let child = world.processes.at(pid + 100, world.now, world.now).unwrap();
        let root = child.root.as_ref().unwrap();
        assert_eq!((root.entry.how, root.key.pid, root.lineage), expected);
    }
}

#[test]
fn what_proc_told_and_what_happened_before_it_was_read_are_merged() {
    let mut world = World::new();
    world.remote_exec();
    let start = 5_003_000_000;
    let image = Image {
        argv: Argv { arguments: ["id".to_owned()].into(), truncated_bytes: 0 },
        cgroup_id: CONTAINER_CGROUP,
        mount_namespace: CONTAINER_MOUNTS,
        read_boot_ns: start + 50_000_000,
        ..Default::default()
    };
    let task = Task { pid: 50, start_boottime_ns: 5_000_000_000, ..Default::default() };
    world.processes.insert_rebuilt(&task, 1, Some("c".into()), false, image);

    // Its fork and exec were in the ring while /proc was read, and so was the end of an earlier process of its pid.
    world.now = start - 2_000_000;
    let gone = Event {
        origin: "t".into(),
        time_boot_ns: world.now,
        task: Task { pid: 50, start_boottime_ns: 7_000, ..Default::default() },
        kind: EventKind::Exit { exit_code: 0 },
    };
    world.processes.apply(&gone, &mut |_| None);
    world.now = start - 1_000_000;
    world.fork(13, true, 50);
    assert!(!world.exec(50, true, &["id"]).became_root);

    let process = world.processes.at(50, world.now, world.now).unwrap();
    assert_eq!((process.key.start_boottime_ns, process.origin), (start, Origin::Observed));
    assert_eq!(process.images().count(), 1, "the exec that /proc had told of is not a second one");
    assert_eq!(world.root_of(50), Some(13), "its creator is the forker, not its parent of /proc");
}

#[test]
fn processes_that_neither_matter_nor_made_one_that_does_are_forgotten() {
    let mut processes = Processes::new([HOST_MOUNTS]);
    for (pid, parent) in [(1, 0), (10, 1), (11, 10), (20, 1)] {
        let task = Task { pid, start_boottime_ns: u64::from(pid), ..Default::default() };
        processes.insert_rebuilt(&task, parent, None, false, Image::default());
    }
    processes.keep_related(&|process| process.key.pid == 11);
    let left: Vec<bool> = [1, 10, 11, 20].map(|pid| processes.at(pid, 0, u64::MAX).is_some()).to_vec();
    assert_eq!(left, [true, true, true, false]);
}

/// Events of a task that the kernel stamps with a root.
fn stamped(world: &mut World, pid: u32, root: u32, kind: EventKind) -> Applied {
    world.now += 1_000_000;
    let root = KernelRoot::Known { pid: root, start_boottime_ns: 0 };
    let (cgroup_id, mount_namespace) = (CONTAINER_CGROUP, CONTAINER_MOUNTS);
    let task = Task { pid, tid: pid, cgroup_id, mount_namespace, root, ..Default::default() };
    let event = Event { origin: format!("s0.{}", world.now).into(), time_boot_ns: world.now, task, kind };
    world.processes.apply(&event, &mut |cgroup| (cgroup == CONTAINER_CGROUP).then(|| "c".into()))
}

fn exec_of(searched: bool) -> EventKind {
    EventKind::Exec {
        old_tid: 0,
        filename: "/bin/sh".into(),
        interpreter: "".into(),
        argv: Argv::default(),
        environment: Environment { variables: Vec::new(), whole: searched.then_some(true) },
    }
}

#[test]
fn a_process_whose_roots_exec_was_lost_is_below_the_root_that_the_kernel_remembers() {
    let mut world = World::new();
    world.fork(1, false, 20);
    // 20 became a root by an exec whose record was lost, and forked 21.
    world.fork(20, true, 21);
    let applied = stamped(&mut world, 21, 20, exec_of(false));
    assert!(!applied.became_root);
    let process = world.processes.get(applied.key).unwrap();
    let root = process.root.as_ref().unwrap();
    assert_eq!((root.key.pid, root.lineage, root.entry.how), (20, "kernel", "unknown"));
}

#[test]
fn a_root_from_outside_of_what_is_followed_is_a_root_of_its_own() {
    let mut world = World::new();
    let applied = stamped(&mut world, 30, 30, exec_of(true));
    assert!(applied.became_root);
    let root = world.processes.get(applied.key).unwrap().root.clone().unwrap();
    assert_eq!((root.key.pid, root.lineage, root.entry.how), (30, "kernel", "unknown"));
}

#[test]
fn the_end_that_a_second_thread_tells_is_known_already() {
    let mut world = World::new();
    let start_boottime_ns = 7;
    world.event(1, false, EventKind::Fork { child_pid: 40, child_start_boottime_ns: start_boottime_ns });
    let mut exit = || {
        let task = Task { pid: 40, tid: 40, start_boottime_ns, ..Default::default() };
        let event = Event { origin: "x0.1".into(), time_boot_ns: 9, task, kind: EventKind::Exit { exit_code: 0 } };
        world.processes.apply(&event, &mut |_| None).had_ended
    };
    assert!(!exit());
    assert!(exit());
}
