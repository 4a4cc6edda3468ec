//! The recordings of a real cluster, put through the agent's own rooms as if the kernel had just told them.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use seclog_agent::{
    capture::audit::{self, AuditRecord},
    clock::Offset,
    container::{Cgroups, Known, Names},
    lineage::{Argv, Environment, Event, EventKind, Image, KernelRoot, Processes, Task},
    pipeline::Pipeline,
    record::Origins,
    uplink,
};
use seclog_proto::v1::NodeRecord;
use serde::Deserialize;

/// The host's mount namespace on the recorded node.
const HOST_MOUNT_NAMESPACE: u64 = 4_026_531_832;
/// Process id of CRI-O in the trace.
const CRIO_PID: u32 = 1574;
/// The recorded node's boot id was not recorded; ids need one.
const BOOT_ID: &str = "00000000-0000-4000-8000-000000000001";

/// A file of tests/fixtures/real-cluster.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/real-cluster").join(name)
}

pub fn read(name: &str) -> Result<String> {
    let path = path(name);
    std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))
}

/// A line of kernel-process-trace.jsonl.
#[derive(Debug, Deserialize)]
struct TraceLine {
    #[serde(rename = "type")]
    kind: String,
    time_ns: u64,
    pid: u32,
    tid: u32,
    start_boottime_ns: u64,
    cgroup_id: u64,
    pid_ns: u64,
    mnt_ns: u64,
    uid: u32,
    comm: String,
    #[serde(default)]
    filename: String,
    #[serde(default)]
    argv: Vec<String>,
    #[serde(default)]
    child_pid: u32,
    #[serde(default)]
    exit_code: i32,
}

#[derive(Debug, Deserialize)]
struct ContainerList {
    containers: Vec<ListedContainer>,
}

#[derive(Debug, Deserialize)]
struct ListedContainer {
    id: String,
    labels: HashMap<String, String>,
}

/// The process trace as lineage events, and the wall clock's distance to the boot clock.
///
/// A fork line tells its wall clock time and the child's start on the boot clock, a moment before: the smallest distance
/// of the two is the clocks'.
pub fn lineage_events() -> Result<(Vec<Event>, Offset)> {
    let text = read("kernel-process-trace.jsonl")?;
    let lines: Vec<TraceLine> = text
        .lines()
        .enumerate()
        .map(|(index, line)| serde_json::from_str(line).with_context(|| format!("trace line {}", index + 1)))
        .collect::<Result<_>>()?;
    let forks = lines.iter().filter(|line| line.kind == "fork");
    let distance = forks.map(|line| line.time_ns - line.start_boottime_ns).min().context("no fork in the trace")?;
    let offset = Offset::from_pair(distance, 0);
    let events = lines
        .into_iter()
        .enumerate()
        .map(|(index, line)| {
            let kind = match line.kind.as_str() {
                "fork" => {
                    EventKind::Fork { child_pid: line.child_pid, child_start_boottime_ns: line.start_boottime_ns }
                }
                "exec" => EventKind::Exec {
                    old_tid: line.tid,
                    filename: line.filename.as_str().into(),
                    interpreter: "".into(),
                    argv: Argv { arguments: line.argv.into(), truncated_bytes: 0 },
                    environment: Environment::default(),
                },
                "exit" => EventKind::Exit { exit_code: line.exit_code },
                other => anyhow::bail!("trace line {}: type {other}", index + 1),
            };
            Ok(Event {
                origin: format!("t0.{}", index + 1).into(),
                time_boot_ns: offset.to_boot(line.time_ns),
                task: Task {
                    pid: line.pid,
                    tid: line.tid,
                    // A fork line has its child's start, not its own.
                    start_boottime_ns: if line.kind == "fork" { 0 } else { line.start_boottime_ns },
                    cgroup_id: line.cgroup_id,
                    mount_namespace: line.mnt_ns,
                    pid_namespace: line.pid_ns,
                    uid: line.uid,
                    gid: 0,
                    comm: line.comm.as_str().into(),
                    root: KernelRoot::None,
                },
                kind,
            })
        })
        .collect::<Result<_>>()?;
    Ok((events, offset))
}

/// Every line of audit-netlink.log.
pub fn audit_records() -> Result<Vec<AuditRecord>> {
    read("audit-netlink.log")?
        .lines()
        .enumerate()
        .map(|(index, line)| {
            let payload = line.strip_prefix("1326 ").with_context(|| format!("audit line {}: type", index + 1))?;
            audit::parse(payload.as_bytes()).with_context(|| format!("audit line {}", index + 1))
        })
        .collect()
}

/// What CRI-O's ListContainers said.
pub fn names() -> Result<Names> {
    let mut names = Names::new(None);
    let list: ContainerList = serde_json::from_str(&read("crio/list-containers.json")?)?;
    for ListedContainer { id, labels } in list.containers {
        let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
        let known = Known {
            pod_uid: label("io.kubernetes.pod.uid"),
            pod_name: label("io.kubernetes.pod.name"),
            pod_namespace: label("io.kubernetes.pod.namespace"),
            name: label("io.kubernetes.container.name"),
            image: String::new(),
            how: "cri".into(),
        };
        names.remember(id, known);
    }
    Ok(names)
}

/// CRI-O ran before the trace began: the agent would have found it in /proc.
fn add_runtime_service(processes: &mut Processes) {
    let task = Task { pid: CRIO_PID, tid: CRIO_PID, start_boottime_ns: 1, comm: "crio".into(), ..Default::default() };
    let argv = Argv { arguments: vec!["/usr/bin/crio".to_owned()].into(), truncated_bytes: 0 };
    let image = Image {
        comm: Arc::clone(&task.comm),
        filename: "/usr/bin/crio".into(),
        argv,
        mount_namespace: HOST_MOUNT_NAMESPACE,
        ..Default::default()
    };
    processes.insert_rebuilt(&task, 0, None, false, image);
}

/// The recordings as node records: lineage and audit in the order of their times, through the agent's pipeline.
pub fn node_records() -> Result<Vec<NodeRecord>> {
    let (events, offset) = lineage_events()?;
    let cgroup_text = read("cgroup-ids.txt")?;
    let cgroups = cgroup_text.lines().filter_map(|line| {
        let (id, path) = line.split_once(' ')?;
        Some((id.parse().ok()?, path))
    });
    let mut audit: Vec<AuditRecord> = audit_records()?;
    audit.sort_by_key(|record| record.time);
    let mut audit = audit.into_iter().peekable();

    let origins = Origins { boot_id: Arc::from(BOOT_ID), epoch: 1 };
    let mut processes = Processes::new(HOST_MOUNT_NAMESPACE);
    add_runtime_service(&mut processes);
    let mut pipeline = Pipeline::new(origins, processes, Cgroups::recorded(cgroups));
    let mut records = Vec::new();
    let mut last = events.first().map_or(0, |event| event.time_boot_ns);
    for event in &events {
        let now = event.time_boot_ns;
        // An audit record reaches us when its tick is over at the earliest.
        while let Some(record) =
            audit.next_if(|record| offset.to_boot(record.time.unix_ms * 1_000_000) + 5_000_000 < now)
        {
            pipeline.audit_verdict(record, offset, now);
        }
        // The trace can be silent for longer than ended processes are remembered: time passes before the event, in steps
        // as it does for the agent.
        let silence = (1..50).map(|step| last + step * 100_000_000).take_while(|time| *time < now);
        silence.for_each(|time| pipeline.advance(time, offset, false, &mut records));
        last = now;
        pipeline.lineage(event, offset, &mut records);
    }
    let end = events.last().map_or(0, |event| event.time_boot_ns);
    for record in audit {
        pipeline.audit_verdict(record, offset, end);
    }
    pipeline.advance(end, offset, true, &mut records);

    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(uplink::name_containers(&mut names()?, &mut records));
    Ok(records)
}
