//! What the agent's own container does by itself is left out; what enters it is not.

#![allow(clippy::unwrap_used, reason = "a test says no more by handling them")]

use seclog_agent::{
    clock::Offset,
    container::Cgroups,
    lineage::{Argv, Environment, Event, EventKind, Image, Processes, RecordOrigin, Task},
    pipeline::Pipeline,
    record::{Origins, Record},
};

const HOST: u64 = 1;
const CGROUP: u64 = 7;

fn task(pid: u32, cgroup_id: u64, mount_namespace: u64) -> Task {
    Task { pid, tid: pid, start_boottime_ns: u64::from(pid) * 1_000, cgroup_id, mount_namespace, ..Default::default() }
}

fn event(pipeline: &mut Pipeline, time_boot_ns: u64, task: Task, kind: EventKind) -> Vec<Record> {
    let origin = RecordOrigin { stream: 't', cpu: 0, sequence: time_boot_ns };
    let mut out = Vec::new();
    pipeline.lineage(&Event { origin, time_boot_ns, task, kind }, Offset::from_pair(1, 1), &mut out);
    out
}

fn exec() -> EventKind {
    let (filename, interpreter) = ("/bin/sh".into(), "".into());
    EventKind::Exec { old_tid: 0, filename, interpreter, argv: Argv::default(), environment: Environment::default() }
}

fn fork(child_pid: u32) -> EventKind {
    EventKind::Fork { child_pid, child_start_boottime_ns: u64::from(child_pid) * 1_000 }
}

#[test]
fn the_agents_own_programs_are_left_out_and_counted_and_an_entry_into_its_container_is_told() {
    let path = format!("/kubepods/podu/crio-{}", "a".repeat(64));
    let cgroups = Cgroups::recorded([(CGROUP, path.as_str())]);
    let mut processes = Processes::new([HOST]);
    // The agent, 40, is the main process of its container.
    processes.insert_rebuilt(&task(1, 1, HOST), 0, None, false, Image::default(), None);
    processes.insert_rebuilt(&task(40, CGROUP, 2), 1, Some("a".repeat(64).into()), false, Image::default(), None);
    let own = processes.at(40, u64::MAX, u64::MAX).unwrap().root.clone();
    assert!(own.is_some());
    let origins = Origins { boot_id: "boot".into(), epoch: 1 };
    let mut pipeline = Pipeline::new(origins, processes, cgroups).without_own(own);

    event(&mut pipeline, 1_000_000, task(40, CGROUP, 2), fork(41));
    assert!(event(&mut pipeline, 1_000_001, task(41, CGROUP, 2), exec()).is_empty());
    assert_eq!(pipeline.counters.own_records, 1);

    event(&mut pipeline, 1_000_002, task(1, 1, HOST), fork(50));
    let told = event(&mut pipeline, 1_000_003, task(50, CGROUP, 2), exec());
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(pipeline.counters.own_records, 1);
}
