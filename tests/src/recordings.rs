//! The recordings of a real cluster, put through the agent's own rooms as if the kernel had just told them.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use seclog_agent::{
    capture::audit::{self, AuditRecord},
    clock::Offset,
    container::{Cgroups, Known, Lookup, Naming},
    lineage::{Argv, Environment, Event, EventKind, Image, KernelRoot, Processes, RecordOrigin, Runtime, Task},
    pipeline::Pipeline,
    record::Origins,
};
use seclog_proto::{
    cri::{ContainerMetadata, CriContainerStatus},
    v1::NodeRecord,
};
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
    /// Nanoseconds since 1970.
    #[serde(rename = "createdAt")]
    created_at: String,
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
                origin: RecordOrigin { stream: 't', cpu: 0, sequence: index as u64 + 1 },
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

/// What CRI-O's ListContainers said, and of one container its specification.
pub fn naming() -> Result<Naming> {
    let mut naming = Naming::new(Lookup::default());
    let list: ContainerList = serde_json::from_str(&read("crio/list-containers.json")?)?;
    for ListedContainer { id, labels, .. } in list.containers {
        let status = CriContainerStatus {
            metadata: labels
                .get("io.kubernetes.container.name")
                .map(|name| ContainerMetadata { name: name.clone(), ..Default::default() }),
            labels,
            ..Default::default()
        };
        naming.remember(&id, Known::of_status(status, None, &[]));
    }
    Ok(naming)
}

/// CRI-O ran before the trace began: the agent would have found it in /proc.
fn add_runtime_service(processes: &mut Processes) {
    let task = Task { pid: CRIO_PID, tid: CRIO_PID, start_boottime_ns: 1, comm: "crio".into(), ..Default::default() };
    let argv = Argv { arguments: vec!["/usr/bin/crio".to_owned()].into(), truncated_bytes: 0 };
    let image = Image {
        comm: task.comm,
        filename: "/usr/bin/crio".into(),
        program: "/usr/bin/crio".into(),
        argv,
        mount_namespace: HOST_MOUNT_NAMESPACE,
        ..Default::default()
    };
    processes.insert_rebuilt(&task, 0, None, false, image, None);
}

/// Main processes of containers that were there before the trace began: the agent would have found them in /proc. Their pids
/// were not recorded, so they get numbers that no process has; their mount namespaces are those of the first exec.
fn add_main_processes(
    processes: &mut Processes,
    events: &[Event],
    cgroups: &[(u64, &str)],
    offset: Offset,
) -> Result<()> {
    const FIRST_PID: u32 = 1 << 22;
    let begin = events.first().map_or(0, |event| event.time_boot_ns);
    let list: ContainerList = serde_json::from_str(&read("crio/list-containers.json")?)?;
    for (pid, container) in (FIRST_PID..).zip(&list.containers) {
        let created = offset.to_boot(container.created_at.parse().context("createdAt")?);
        let cgroup = cgroups.iter().find(|(_, path)| path.ends_with(&format!("crio-{}", container.id)));
        let Some((cgroup_id, _)) = cgroup.filter(|_| created < begin) else { continue };
        let inside = |event: &&Event| {
            let Task { cgroup_id: of, mount_namespace, .. } = event.task;
            of == *cgroup_id && mount_namespace != HOST_MOUNT_NAMESPACE && matches!(event.kind, EventKind::Exec { .. })
        };
        let Some(first) = events.iter().find(inside) else { continue };
        let mount_namespace = first.task.mount_namespace;
        let task = Task {
            pid,
            tid: pid,
            start_boottime_ns: created,
            cgroup_id: *cgroup_id,
            mount_namespace,
            pid_namespace: first.task.pid_namespace,
            ..Default::default()
        };
        let image = Image { cgroup_id: *cgroup_id, mount_namespace, ..Default::default() };
        processes.insert_rebuilt(&task, 0, Some(container.id.as_str().into()), true, image, None);
    }
    Ok(())
}

/// The recordings as node records: lineage and audit in the order of their times, through the agent's pipeline.
pub fn node_records() -> Result<Vec<NodeRecord>> {
    let (events, offset) = lineage_events()?;
    let cgroup_text = read("cgroup-ids.txt")?;
    let cgroups = cgroup_text.lines().filter_map(|line| {
        let (id, path) = line.split_once(' ')?;
        Some((id.parse().ok()?, path))
    });
    let cgroups: Vec<(u64, &str)> = cgroups.collect();
    let mut audit: Vec<AuditRecord> = audit_records()?;
    audit.sort_by_key(|record| record.time);
    let mut audit = audit.into_iter().peekable();

    let origins = Origins { boot_id: Arc::from(BOOT_ID), epoch: 1 };
    let mut processes =
        Processes::new([HOST_MOUNT_NAMESPACE]).with_runtime(Runtime::default().served_by(CRIO_PID, None));
    add_runtime_service(&mut processes);
    add_main_processes(&mut processes, &events, &cgroups, offset)?;
    let mut pipeline = Pipeline::new(origins.clone(), processes, Cgroups::recorded(cgroups));
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

    let mut records: Vec<NodeRecord> = records.into_iter().map(|record| record.to_node_record(&origins)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(naming()?.name(&mut records));
    Ok(records)
}
