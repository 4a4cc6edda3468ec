//! The recorded kernel trace as node records, by a reading of its own: what an agent would have reported.

use seclog_proto::v1::node_record::Detail;
use seclog_proto::v1::{Container, NodeRecord, ProcessExit, ProcessStart, SessionRoot, Verdict};
use serde::Deserialize;
use std::collections::HashMap;

const HOST_MOUNT_NAMESPACE: u64 = 4026531832;
const BOOT: &str = "b0070000-0000-4000-8000-000000000001";

#[derive(Deserialize)]
struct Event {
    r#type: String,
    time_ns: u64,
    pid: u32,
    tid: u32,
    start_boottime_ns: u64,
    cgroup_id: u64,
    mnt_ns: u64,
    uid: u32,
    comm: String,
    #[serde(default)]
    child_pid: u32,
    #[serde(default)]
    child_tid: u32,
    #[serde(default)]
    filename: String,
    #[serde(default)]
    argv: Vec<String>,
    #[serde(default)]
    env_ids: Vec<String>,
    #[serde(default)]
    exit_code: i32,
}

#[derive(Clone, Default)]
struct Process {
    start: u64,
    creator: u32,
    argv: Vec<String>,
    comm: String,
    generation: u32,
    root: Option<SessionRoot>,
    container: Option<Container>,
    execs: Vec<u64>,
}

/// Every record of the trace that belongs to a session root, in kernel order, then the verdicts of the audit log.
pub(crate) fn node_records() -> Vec<NodeRecord> {
    let containers = containers();
    let mut by_mount: HashMap<u64, Container> = HashMap::new();
    let mut processes: HashMap<u32, Process> = HashMap::new();
    let mut records = Vec::new();
    for (number, line) in super::read("kernel-process-trace.jsonl").lines().enumerate() {
        let event: Event = serde_json::from_str(line).unwrap();
        if event.r#type == "fork" {
            if event.child_pid == event.child_tid {
                let mut child = processes.get(&event.pid).cloned().unwrap_or_default();
                child.start = event.start_boottime_ns;
                child.creator = event.pid;
                child.comm = event.comm;
                child.generation = 0;
                child.execs.clear();
                processes.insert(event.child_pid, child);
            }
            continue;
        }
        if event.pid != event.tid {
            continue;
        }
        let mut process = processes.get(&event.pid).cloned().unwrap_or_default();
        process.start = event.start_boottime_ns;
        let mut detail = None;
        if event.r#type == "exec" {
            process.argv = event.argv.clone();
            process.comm = event.comm.clone();
            process.generation += 1;
            process.execs.push(event.time_ns);
            let in_cgroup = containers.get(&event.cgroup_id);
            if let (Some(container), true) = (in_cgroup, event.mnt_ns != HOST_MOUNT_NAMESPACE) {
                by_mount.insert(event.mnt_ns, container.clone());
            }
            let mut is_root = false;
            if process.root.is_none() && event.mnt_ns != HOST_MOUNT_NAMESPACE {
                is_root = true;
                let (entry, rule) = match in_cgroup {
                    Some(_) => entry(&processes, process.creator),
                    None => ("namespace_entry", "container's mount namespace, host's cgroup"),
                };
                process.container = in_cgroup.or_else(|| by_mount.get(&event.mnt_ns)).cloned();
                process.root = Some(SessionRoot {
                    pid: event.pid,
                    start_boottime_ns: event.start_boottime_ns,
                    entry: entry.to_owned(),
                    rule: rule.to_owned(),
                    lineage: "observed".to_owned(),
                });
            }
            detail = Some(Detail::ProcessStart(ProcessStart {
                filename: event.filename.clone(),
                argv: event.argv.clone(),
                is_session_root: is_root,
                environment: if is_root { event.env_ids.clone() } else { Vec::new() },
                environment_searched: if is_root { "whole" } else { "" }.to_owned(),
                ..Default::default()
            }));
        } else if event.r#type == "exit" {
            detail = Some(Detail::ProcessExit(ProcessExit { exit_code: event.exit_code, found_gone: false }));
        }
        if process.root.is_some() {
            records.push(record(
                format!("{BOOT}:7:l0.{number}"),
                event.time_ns,
                event.pid,
                &process,
                event.uid,
                detail,
            ));
        }
        processes.insert(event.pid, process);
    }
    records.extend(verdicts(&processes));
    records
}

fn record(id: String, time: u64, pid: u32, process: &Process, uid: u32, detail: Option<Detail>) -> NodeRecord {
    NodeRecord {
        id,
        time_unix_ns: time,
        boot_id: BOOT.to_owned(),
        pid,
        tid: pid,
        start_boottime_ns: process.start,
        generation: process.generation,
        comm: process.comm.clone(),
        uid,
        creator_pid: process.creator,
        container: process.container.clone(),
        session_root: process.root.clone(),
        detail,
        ..Default::default()
    }
}

/// By the chain of creators: runc's exec below conmon's `-e` or below crio, or runc's create.
fn entry(processes: &HashMap<u32, Process>, creator: u32) -> (&'static str, &'static str) {
    let mut at = creator;
    let mut runc = "";
    for _ in 0..32 {
        let Some(process) = processes.get(&at) else { break };
        let has = |argument: &str| process.argv.iter().any(|other| other == argument);
        match process.argv.first().map(|program| program.rsplit('/').next().unwrap_or_default()) {
            Some("runc") if has("exec") => runc = "exec",
            Some("runc") if has("create") => runc = "create",
            Some("conmon") if runc == "exec" && has("-e") => return ("exec_sync", "runc exec below conmon -e"),
            _ => {}
        }
        at = process.creator;
    }
    match runc {
        "exec" => ("exec", "runc exec below crio"),
        "create" => ("start", "runc create"),
        _ => ("other", "no runtime among the creators"),
    }
}

/// Containers by the inode of their cgroup.
pub(super) fn containers() -> HashMap<u64, Container> {
    #[derive(Deserialize)]
    struct List {
        containers: Vec<Listed>,
    }
    #[derive(Deserialize)]
    struct Listed {
        id: String,
        labels: HashMap<String, String>,
    }
    let list: List = serde_json::from_str(&super::read("crio/list-containers.json")).unwrap();
    let mut containers = HashMap::new();
    for line in super::read("cgroup-ids.txt").lines() {
        let Some((inode, path)) = line.split_once(' ') else { continue };
        let Some((_, id)) = path.rsplit_once("/crio-") else { continue };
        // Sandboxes are not listed as containers; nothing execs in them.
        let Some(listed) = list.containers.iter().find(|listed| listed.id == id) else { continue };
        let label = |name: &str| listed.labels[&format!("io.kubernetes.{name}")].clone();
        let container = Container {
            cgroup_id: inode.parse().unwrap(),
            cgroup_path: path.to_owned(),
            id: id.to_owned(),
            pod_uid: label("pod.uid"),
            pod_name: label("pod.name"),
            pod_namespace: label("pod.namespace"),
            name: label("container.name"),
            names: "cri".to_owned(),
            ..Default::default()
        };
        containers.insert(container.cgroup_id, container);
    }
    containers
}

fn verdicts(processes: &HashMap<u32, Process>) -> Vec<NodeRecord> {
    let mut records = Vec::new();
    for line in super::read("audit-netlink.log").lines() {
        let Some(line) = line.strip_prefix("1326 audit(") else { continue };
        let (stamp, rest) = line.split_once("):").unwrap();
        let (time, serial) = stamp.split_once(':').unwrap();
        let (seconds, millis) = time.split_once('.').unwrap();
        let time = seconds.parse::<u64>().unwrap() * 1_000_000_000 + millis.parse::<u64>().unwrap() * 1_000_000;
        let field = |name: &str| {
            rest.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap().to_owned()
        };
        let pid: u32 = field("pid").parse().unwrap();
        let Some(process) = processes.get(&pid).filter(|process| process.root.is_some()) else { continue };
        let syscall: i64 = field("syscall").parse().unwrap();
        let name = match syscall {
            56 => "clone",
            57 => "fork",
            58 => "vfork",
            59 => "execve",
            322 => "execveat",
            435 => "clone3",
            other => panic!("syscall {other}"),
        };
        // Audit's clock is up to a tick early.
        let executed = process.execs.iter().any(|exec| (time..time + 8_000_000).contains(exec));
        let outcome = match (name, executed) {
            ("execve" | "execveat", true) => "executed",
            ("execve" | "execveat", false) => "failed",
            _ => "",
        };
        let detail = Detail::Verdict(Verdict {
            syscall,
            syscall_name: name.to_owned(),
            action: "log".to_owned(),
            sources: vec!["audit".to_owned()],
            audit_serial: serial.parse().unwrap(),
            outcome: outcome.to_owned(),
            ..Default::default()
        });
        records.push(record(format!("{BOOT}:a{time}.{serial}"), time, pid, process, 0, Some(detail)));
    }
    records
}
