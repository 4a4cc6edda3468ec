use super::*;
use crate::lineage::{Environment, Event, EventKind, KernelRoot};
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
            origin: RecordOrigin { stream: 't', cpu: 0, sequence: self.now },
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
        origin: RecordOrigin::default(),
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
        origin: RecordOrigin::default(),
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

/// An exec in a mount namespace and a cgroup of its own choosing; what it made.
fn exec_at(world: &mut World, pid: u32, cgroup_id: u64, mount_namespace: u64) -> Applied {
    world.now += 1_000_000;
    let event = Event {
        origin: RecordOrigin::default(),
        time_boot_ns: world.now,
        task: Task { pid, cgroup_id, mount_namespace, ..Default::default() },
        kind: EventKind::Exec {
            old_tid: pid,
            filename: "/bin/id".into(),
            interpreter: "".into(),
            argv: Argv::default(),
            environment: Environment::default(),
        },
    };
    let container = |cgroup| match cgroup {
        CONTAINER_CGROUP => Some("c".into()),
        729 => Some("d".into()),
        _ => None,
    };
    world.processes.apply(&event, &mut |cgroup| container(cgroup))
}

#[test]
fn the_number_of_a_mount_namespace_that_is_used_again_is_another_containers() {
    let mut world = World::new();
    world.remote_exec();
    world.exit(13, true);
    // The kernel gives the number of c's namespace to d's at once.
    assert!(exec_at(&mut world, 40, 729, CONTAINER_MOUNTS).became_root);
    let process = world.processes.at(40, world.now, world.now).unwrap();
    assert_eq!(world.processes.entered(process), None, "d's own process has entered nobody");
    assert!(exec_at(&mut world, 41, 1, CONTAINER_MOUNTS).became_root);
    let root = world.processes.at(41, world.now, world.now).unwrap().root.clone().unwrap();
    assert_eq!((root.entry.how, &*root.container), ("namespace_entry", "d"));
    for pid in [40, 41] {
        world.exit(pid, true);
    }
    // And then to a service of the host.
    assert!(!exec_at(&mut world, 42, 1, CONTAINER_MOUNTS).became_root);
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
            origin: RecordOrigin::default(),
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
    world.processes.insert_rebuilt(&task, 1, Some("c".into()), false, image, None);

    // Its fork and exec were in the ring while /proc was read, and so was the end of an earlier process of its pid.
    world.now = start - 2_000_000;
    let gone = Event {
        origin: RecordOrigin::default(),
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
        processes.insert_rebuilt(&task, parent, None, false, Image::default(), None);
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
    let event = Event {
        origin: RecordOrigin { stream: 's', cpu: 0, sequence: world.now },
        time_boot_ns: world.now,
        task,
        kind,
    };
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
        let event =
            Event { origin: RecordOrigin::default(), time_boot_ns: 9, task, kind: EventKind::Exit { exit_code: 0 } };
        world.processes.apply(&event, &mut |_| None).had_ended
    };
    assert!(!exit());
    assert!(exit());
}

/// Exec by a path of its own.
fn exec_file(world: &mut World, pid: u32, inside: bool, filename: &str, argv: &[&str]) -> Applied {
    let argv = Argv { arguments: argv.iter().map(ToString::to_string).collect(), truncated_bytes: 0 };
    let kind = EventKind::Exec {
        old_tid: pid,
        filename: filename.into(),
        interpreter: "".into(),
        argv,
        environment: Environment::default(),
    };
    world.event(pid, inside, kind)
}

fn entry_of(world: &World, pid: u32) -> (&'static str, &'static str) {
    let root = world.processes.at(pid, world.now, world.now).unwrap().root.clone().unwrap();
    (root.entry.how, root.entry.rule)
}

#[test]
fn crun_that_goes_on_as_a_sealed_copy_of_itself_is_still_the_hosts_runtime() {
    let mut world = World::new();
    exec_file(&mut world, 1, false, "/usr/bin/crio", &["/usr/bin/crio"]);
    world.fork(1, false, 10);
    let argv = ["/usr/bin/crun", "--root=/run/crun", "--systemd-cgroup", "exec", "--process", "/tmp/p", "c"];
    exec_file(&mut world, 10, false, "/usr/bin/crun", &argv);
    exec_file(&mut world, 10, false, "/dev/fd/5", &argv);
    // The helper that is cloned into the container's cgroup, and what it makes.
    world.fork(10, false, 11);
    world.fork(11, false, 12);
    world.exit(11, false);
    assert!(exec_file(&mut world, 12, true, "/bin/sh", &["sh"]).became_root);
    assert_eq!(entry_of(&world, 12).0, "exec");
}

#[test]
fn a_copy_run_by_descriptor_in_another_mount_namespace_is_not_the_hosts_runtime() {
    let mut world = World::new();
    exec_file(&mut world, 1, false, "/usr/bin/crio", &["/usr/bin/crio"]);
    world.fork(1, false, 10);
    exec_file(&mut world, 10, false, "/usr/bin/conmon", &["conmon", "-b", "/x"]);
    world.fork(10, false, 11);
    exec_file(&mut world, 11, false, "/tmp/runc", &["runc", "exec", "c"]);
    world.fork(11, false, 12);
    assert!(exec_file(&mut world, 12, true, "/bin/sh", &["sh"]).became_root);
    assert_eq!(entry_of(&world, 12).0, "other");
    assert!(entry_of(&world, 12).1.contains("calls itself"), "{:?}", entry_of(&world, 12));
}

fn rebuilt(processes: &mut Processes, pid: u32, parent: u32, inside: bool, program: &str, argv: &[&str]) {
    let (container, namespaces) = if inside { (Some("c".into()), (2, 2)) } else { (None, (HOST_MOUNTS, 1)) };
    let task = Task {
        pid,
        tid: pid,
        start_boottime_ns: u64::from(pid) * 10_000_000,
        mount_namespace: namespaces.0,
        pid_namespace: namespaces.1,
        ..Default::default()
    };
    let image = Image {
        program: program.into(),
        argv: Argv { arguments: argv.iter().map(ToString::to_string).collect(), truncated_bytes: 0 },
        mount_namespace: namespaces.0,
        pid_namespace: namespaces.1,
        ..Default::default()
    };
    processes.insert_rebuilt(&task, parent, container, false, image, None);
}

#[test]
fn in_a_container_with_the_hosts_pids_only_the_first_process_is_its_main_one() {
    let mut processes = Processes::new([HOST_MOUNTS]).with_host_pids(2);
    rebuilt(&mut processes, 5, 1, false, "/usr/bin/conmon", &["conmon", "-b", "x", "-c", "c"]);
    rebuilt(&mut processes, 6, 5, true, "/bin/sh", &["sh"]);
    rebuilt(&mut processes, 7, 6, true, "/bin/sleep", &["sleep"]);
    // Its parent is gone, and conmon is the next that adopts.
    rebuilt(&mut processes, 8, 5, true, "/bin/sleep", &["sleep"]);
    let root = |pid: u32| processes.at(pid, u64::MAX / 2, u64::MAX / 2).unwrap().root.clone().unwrap();
    assert_eq!((root(6).entry.how, root(6).key.pid, root(6).lineage), ("start", 6, "rebuilt"));
    assert_eq!(root(7).key.pid, 6);
    assert_eq!((root(8).entry.how, root(8).key.pid, root(8).lineage), ("unknown", 0, "unknown"));
}

#[test]
fn a_waiting_runtime_exec_in_proc_counts_only_below_the_service() {
    let exec = ["/usr/bin/crun", "exec", "c"];
    for (service, how) in [("/usr/bin/crio", "exec"), ("/bin/bash", "unknown")] {
        let mut processes = Processes::new([HOST_MOUNTS]);
        rebuilt(&mut processes, 2, 1, false, "/usr/bin/conmon", &["conmon", "-c", "c"]);
        rebuilt(&mut processes, 3, 2, true, "/bin/sleep", &["sleep"]);
        rebuilt(&mut processes, 4, 1, false, service, &[service]);
        rebuilt(&mut processes, 5, 4, false, "/usr/bin/crun", &exec);
        rebuilt(&mut processes, 6, 5, true, "/bin/sh", &["sh"]);
        let root = processes.at(6, u64::MAX / 2, u64::MAX / 2).unwrap().root.clone().unwrap();
        assert_eq!((root.entry.how, root.key.pid), (how, 6), "{service}");
    }
}

#[test]
fn what_the_run_before_knew_survives_a_restart_and_what_came_meanwhile_is_rebuilt() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lineage.state");
    let mut world = World::new();
    world.remote_exec();
    world.fork(13, true, 20);
    world.exit(13, true);
    crate::lineage::Keeping::start(path.clone(), "boot".into()).unwrap().stop(&world.processes);
    let start = world.processes.at(20, world.now, world.now).unwrap().key.start_boottime_ns;

    let kept = crate::lineage::Kept::read(&path, "boot");
    let mut processes = Processes::new([HOST_MOUNTS]);
    let mut add = |pid: u32, start_boottime_ns: u64, parent: u32, is_init: bool| {
        let task = Task { pid, tid: pid, start_boottime_ns, ..Default::default() };
        let known = kept.of_process(pid, start_boottime_ns);
        processes.insert_rebuilt(&task, parent, Some("c".into()), is_init, Image::default(), known);
    };
    // The container's init, to which 20 has come since its creator ended; a child of 20; an orphan of who knows whom.
    add(2, 0, 0, true);
    add(20, start / 10_000_000 * 10_000_000, 2, false);
    add(21, 900_000_000, 20, false);
    add(22, 910_000_000, 2, false);
    let root = |pid: u32| processes.at(pid, u64::MAX / 2, u64::MAX / 2).unwrap().root.clone().unwrap();
    assert_eq!((root(20).key.pid, root(20).lineage, root(20).entry.how), (13, "kept", "exec"));
    assert_eq!(processes.at(20, u64::MAX / 2, u64::MAX / 2).unwrap().key.start_boottime_ns, start);
    assert_eq!((root(21).key.pid, root(21).lineage), (13, "rebuilt"));
    assert_eq!((root(22).key.pid, root(22).lineage), (0, "unknown"));
}

/// What happens to a process, or to a record of it.
#[derive(Clone, Copy, Debug)]
enum Step {
    Fork(u32, u32),
    Exec(u32),
    /// By a thread that is not the leader: the kernel tells of it by the process.
    ExecByThread(u32),
    Exit(u32),
    /// A remote exec comes in with this pid.
    Enter(u32),
}

fn any_step() -> impl Strategy<Value = (Step, bool)> {
    // Few pids, so that they are used again.
    let pid = 100..110u32;
    let step = prop_oneof![
        4 => (pid.clone(), pid.clone()).prop_map(|(parent, child)| Step::Fork(parent, child)),
        2 => pid.clone().prop_map(Step::Exec),
        1 => pid.clone().prop_map(Step::ExecByThread),
        3 => pid.clone().prop_map(Step::Exit),
        2 => pid.prop_map(Step::Enter),
    ];
    (step, proptest::bool::weighted(0.3))
}

/// A node of which everything is known, beside the table that hears of some of it.
struct Truth {
    processes: Processes,
    now: u64,
    /// Start and root (pid, start) of what lives.
    living: std::collections::BTreeMap<u32, (u64, (u32, u64))>,
}

impl Truth {
    fn hear(&mut self, lost: bool, pid: u32, start: u64, root: Option<(u32, u64)>, inside: bool, kind: EventKind) {
        self.now += 1_000;
        if lost {
            return;
        }
        let (cgroup_id, mount_namespace) = if inside { (CONTAINER_CGROUP, CONTAINER_MOUNTS) } else { (1, HOST_MOUNTS) };
        let root =
            root.map_or(KernelRoot::None, |(pid, start_boottime_ns)| KernelRoot::Known { pid, start_boottime_ns });
        let task =
            Task { pid, tid: pid, start_boottime_ns: start, cgroup_id, mount_namespace, root, ..Default::default() };
        let origin = RecordOrigin { stream: 'p', cpu: 0, sequence: self.now };
        let event = Event { origin, time_boot_ns: self.now, task, kind };
        self.processes.apply(&event, &mut |cgroup| (cgroup == CONTAINER_CGROUP).then(|| "c".into()));
    }

    fn exec(searched: bool) -> EventKind {
        let argv = Argv { arguments: vec!["x".to_owned()].into(), truncated_bytes: 0 };
        let environment = Environment { variables: Vec::new(), whole: searched.then_some(true) };
        EventKind::Exec { old_tid: 7, filename: "/bin/x".into(), interpreter: "".into(), argv, environment }
    }

    fn step(&mut self, step: Step, lost: bool) {
        match step {
            Step::Fork(parent, child) => {
                let Some((start, root)) = self.living.get(&parent).copied() else { return };
                if self.living.contains_key(&child) {
                    return;
                }
                let child_start = self.now + 500;
                self.living.insert(child, (child_start, root));
                let kind = EventKind::Fork { child_pid: child, child_start_boottime_ns: child_start };
                self.hear(lost, parent, start, Some(root), true, kind);
            }
            Step::Exec(pid) | Step::ExecByThread(pid) => {
                let Some((start, root)) = self.living.get(&pid).copied() else { return };
                self.hear(lost, pid, start, Some(root), true, Self::exec(false));
            }
            Step::Exit(pid) => {
                let Some((start, root)) = self.living.remove(&pid) else { return };
                self.hear(lost, pid, start, Some(root), true, EventKind::Exit { exit_code: 0 });
            }
            Step::Enter(pid) => {
                if self.living.contains_key(&pid) {
                    return;
                }
                // The runtime forks it on the host, and it executes inside.
                let start = self.now + 500;
                self.living.insert(pid, (start, (pid, start)));
                let kind = EventKind::Fork { child_pid: pid, child_start_boottime_ns: start };
                self.hear(lost, 50, 50, None, false, kind);
                self.hear(false, pid, start, Some((pid, start)), true, Self::exec(true));
            }
        }
    }

    fn known_root(&self, pid: u32, start: u64) -> Option<&Arc<Root>> {
        self.processes.get(ProcessKey { pid, start_boottime_ns: start })?.root.as_ref()
    }
}

proptest! {
    #[test]
    fn whatever_is_forked_ends_is_used_again_or_lost_no_process_has_anothers_root(
        steps in proptest::collection::vec(any_step(), 1..120),
        loses in proptest::bool::ANY,
    ) {
        let mut truth =
            Truth { processes: Processes::new([HOST_MOUNTS]), now: 1_000, living: Default::default() };
        for (step, lost) in steps {
            truth.step(step, lost && loses);
            for (pid, (start, (root_pid, root_start))) in &truth.living {
                let known = truth.known_root(*pid, *start);
                if let Some(known) = known {
                    // A root that is known is the right one, or is said to be unknown.
                    let right = known.key == ProcessKey { pid: *root_pid, start_boottime_ns: *root_start };
                    prop_assert!(right || known.key.pid == 0, "{} has {:?} of {:?}", pid, known, (root_pid, root_start));
                } else {
                    prop_assert!(loses, "{pid} has no root, and nothing was lost");
                }
                if !loses {
                    prop_assert_eq!(known.map(|root| root.lineage), Some("observed"));
                }
            }
        }
    }
}

/// Counts what is lost, in this world's time.
fn mind_gaps(world: &mut World) -> crate::lineage::gaps::tests::Told {
    let told = crate::lineage::gaps::tests::Told::default();
    world.processes.mind_gaps(Gaps::new(Box::new(told.clone()), 0));
    told
}

/// So much is lost by now, and it is looked before anything else happens.
fn lose(world: &mut World, told: &crate::lineage::gaps::tests::Told, lost: u64) {
    told.0.lock().unwrap().0 = world.now;
    world.processes.look_for_gaps();
    *told.0.lock().unwrap() = (world.now + 1, lost);
}

fn told_of(world: &World, pid: u32) -> (&'static str, &'static str, Option<u32>) {
    let root = world.processes.at(pid, world.now, world.now).unwrap().root.clone().unwrap();
    (root.entry.how, root.lineage, Some(root.key.pid))
}

#[test]
fn where_the_runtimes_exec_was_lost_the_root_says_that_it_does_not_know() {
    let mut world = World::new();
    let told = mind_gaps(&mut world);
    world.exec(1, false, &["crio"]);
    world.fork(1, false, 10);
    // `runc exec` is lost.
    lose(&mut world, &told, 1);
    world.fork(10, false, 13);
    world.exec(13, true, &["sh"]);
    world.fork(13, true, 14);
    world.exec(14, true, &["id"]);
    assert_eq!(told_of(&world, 13), ("unknown", "unknown", Some(13)));
    assert_eq!(told_of(&world, 14), ("unknown", "unknown", Some(13)), "what descends from it knows no more");
}

#[test]
fn where_conmons_exec_was_lost_an_exec_sync_is_not_called_exec() {
    let mut world = World::new();
    let told = mind_gaps(&mut world);
    world.exec(1, false, &["crio"]);
    world.fork(1, false, 9);
    // `conmon -e` is lost.
    lose(&mut world, &told, 1);
    world.fork(9, false, 10);
    world.exec(10, false, &["runc", "exec", "c"]);
    world.fork(10, false, 13);
    world.exec(13, true, &["sh"]);
    assert_eq!(told_of(&world, 13), ("unknown", "unknown", Some(13)));
}

#[test]
fn where_the_roots_own_exec_was_lost_the_next_one_does_not_call_itself_observed() {
    let mut world = World::new();
    let told = mind_gaps(&mut world);
    world.exec(1, false, &["crio"]);
    world.fork(1, false, 10);
    world.exec(10, false, &["runc", "exec", "c"]);
    world.fork(10, false, 13);
    // `sh` is lost; its child is the first in the container that is seen.
    lose(&mut world, &told, 1);
    world.fork(13, true, 14);
    world.exec(14, true, &["id"]);
    assert_eq!(told_of(&world, 14), ("exec", "unknown", Some(14)));
}

#[test]
fn a_loss_before_or_after_changes_nothing() {
    let mut world = World::new();
    let told = mind_gaps(&mut world);
    world.exec(1, false, &["crio"]);
    lose(&mut world, &told, 3);
    lose(&mut world, &told, 3);
    world.remote_exec();
    assert_eq!(told_of(&world, 13), ("exec", "observed", Some(13)));
    lose(&mut world, &told, 4);
    world.fork(13, true, 14);
    world.exec(14, true, &["id"]);
    assert_eq!(told_of(&world, 14), ("exec", "observed", Some(13)));
}

#[test]
fn a_loss_in_the_long_life_of_a_shim_matters_only_where_its_own_exec_was_lost() {
    let mut world = World::new();
    let told = mind_gaps(&mut world);
    world.exec(1, false, &["containerd"]);
    world.fork(1, false, 5);
    world.exec(5, false, &["containerd-shim-runc-v2", "-id", "c"]);
    world.fork(1, false, 6);
    // The second shim's is lost.
    lose(&mut world, &told, 1);
    lose(&mut world, &told, 1);
    for (shim, runc, root) in [(5, 10, 11), (6, 20, 21)] {
        world.fork(shim, false, runc);
        world.exec(runc, false, &["runc", "exec", "--pid-file", &format!("/run/{}.pid", "5ec1".repeat(16)), "c"]);
        world.fork(runc, false, root);
        world.exec(root, true, &["sh"]);
    }
    assert_eq!(told_of(&world, 11), ("exec", "observed", Some(11)));
    assert_eq!(told_of(&world, 21), ("unknown", "unknown", Some(21)));
}

#[test]
fn the_service_is_watched_on_when_its_first_fork_tells_its_exact_start() {
    use crate::lineage::streams::tests::{SERVICE, streams, watched};
    let (_proc, _told, streams, _) = streams();
    let mut world = World::new();
    world.processes = Processes::new([HOST_MOUNTS]).with_runtime(Runtime::default().served_by(SERVICE.pid, None));
    let ProcessKey { pid, start_boottime_ns } = SERVICE;
    let task = Task { pid, tid: pid, start_boottime_ns, mount_namespace: HOST_MOUNTS, ..Default::default() };
    let image = Image { program: "/usr/bin/containerd".into(), mount_namespace: HOST_MOUNTS, ..Default::default() };
    world.processes.insert_rebuilt(&task, 1, None, false, image, None);
    world.processes.tell_by_streams(streams);
    assert_eq!(world.processes.streams.as_ref().and_then(watched), Some(SERVICE));
    let exact = ProcessKey { start_boottime_ns: 4_321, ..SERVICE };
    let event = Event {
        origin: RecordOrigin::default(),
        time_boot_ns: 10_000_000,
        task: Task { start_boottime_ns: exact.start_boottime_ns, ..task },
        kind: EventKind::Fork { child_pid: 51, child_start_boottime_ns: 10_000_000 },
    };
    world.processes.apply(&event, &mut |_| None);
    assert_eq!(world.processes.streams.as_ref().and_then(watched), Some(exact));
}

#[test]
fn where_the_first_of_a_runtimes_two_execs_was_lost_its_copy_is_not_taken_for_the_service() {
    let mut world = World::new();
    let told = mind_gaps(&mut world);
    world.exec(1, false, &["crio"]);
    world.fork(1, false, 10);
    // `crun exec` is lost, and the copy of itself that it goes on as is seen.
    lose(&mut world, &told, 1);
    let argv = Argv { arguments: ["crun", "exec", "c"].map(String::from).into(), truncated_bytes: 0 };
    let (filename, interpreter, environment) = ("/proc/self/exe".into(), "".into(), Environment::default());
    world.event(10, false, EventKind::Exec { old_tid: 10, filename, interpreter, argv, environment });
    world.fork(10, false, 13);
    world.exec(13, true, &["sh"]);
    assert_eq!(told_of(&world, 13), ("unknown", "unknown", Some(13)));
}
