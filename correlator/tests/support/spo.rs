//! The recording as SPO's JSON enricher would have told of it: a line for each process that has SECCOMP records, with the
//! program that it ran when the first of them was written, in the form of jsonenricher.go (v1.0.0): whole seconds, arguments
//! with a space behind each, the identifier from the environment or else from the command line.

use super::trace::containers;
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Deserialize)]
struct Event {
    r#type: String,
    time_ns: u64,
    pid: u32,
    cgroup_id: u64,
    uid: u32,
    #[serde(default)]
    child_pid: u32,
    #[serde(default)]
    child_tid: u32,
    #[serde(default)]
    argv: Vec<String>,
    #[serde(default)]
    env_ids: Vec<String>,
}

/// What a process ran from some time on.
#[derive(Clone)]
struct Image {
    since: u64,
    is_exec: bool,
    cgroup_id: u64,
    uid: u32,
    argv: Vec<String>,
    env_ids: Vec<String>,
}

struct Bucket {
    /// Nanoseconds since 1970.
    first: u64,
    executable: String,
    syscalls: BTreeSet<&'static str>,
}

const NAME: &str = "SPO_EXEC_REQUEST_UID=";

pub(crate) fn lines() -> Vec<String> {
    let mut images: BTreeMap<u32, Vec<Image>> = BTreeMap::new();
    for line in super::read("kernel-process-trace.jsonl").lines() {
        let Event { r#type, time_ns, pid, cgroup_id, uid, child_pid, child_tid, argv, env_ids } =
            serde_json::from_str(line).unwrap();
        match r#type.as_str() {
            "exec" => images.entry(pid).or_default().push(Image {
                since: time_ns,
                is_exec: true,
                cgroup_id,
                uid,
                argv,
                env_ids,
            }),
            "fork" if child_pid == child_tid => {
                let inherited = images.get(&pid).and_then(|images| images.last()).cloned();
                let inherited = inherited.map(|image| Image { since: time_ns, is_exec: false, cgroup_id, ..image });
                images.insert(child_pid, inherited.into_iter().collect());
            }
            _ => {}
        }
    }
    let containers = containers();
    let mut lines = Vec::new();
    for (pid, Bucket { first, executable, syscalls }) in buckets() {
        let Some(images) = images.get(&pid) else { continue };
        // What execve was logged for has started by then; audit's clock is up to a tick early.
        let soon = first..=first + 12_000_000;
        let exec = images.iter().find(|image| image.is_exec && soon.contains(&image.since));
        let Some(ran) = exec.or_else(|| images.iter().rfind(|image| image.since <= *soon.end())) else { continue };
        let command: String = ran.argv.iter().map(|argument| format!("{argument} ")).collect();
        let in_environment = ran.env_ids.iter().find_map(|variable| variable.strip_prefix(NAME));
        let in_command = command.split_once(NAME).and_then(|(_, rest)| rest.split(char::is_whitespace).next());
        let seconds = first / 1_000_000_000 * 1_000_000_000;
        let mut line = json!({
            "auditID": format!("00000000-0000-4000-8000-{pid:012}"), "cmdLine": command, "executable": executable, "gid": 0,
            "node": {"name": "node-1"}, "pid": pid, "resource": null, "syscalls": syscalls,
            "timestamp": seclog_proto::rfc3339::format(seconds), "uid": ran.uid, "version": "spo/v1_alpha",
        });
        if let Some(container) = containers.get(&ran.cgroup_id) {
            line["resource"] =
                json!({"pod": container.pod_name, "namespace": container.pod_namespace, "container": container.name});
        }
        if let Some(uid) = in_environment.or(in_command).filter(|uid| !uid.is_empty()) {
            line["requestUID"] = json!(uid);
        }
        lines.push((first, line.to_string()));
    }
    lines.sort();
    lines.into_iter().map(|(_, line)| line).collect()
}

/// By pid. The recording is shorter than what the kernel takes to come round.
fn buckets() -> BTreeMap<u32, Bucket> {
    let mut buckets: BTreeMap<u32, Bucket> = BTreeMap::new();
    for line in super::read("audit-netlink.log").lines() {
        let Some(line) = line.strip_prefix("1326 audit(") else { continue };
        let (stamp, rest) = line.split_once("):").unwrap();
        let (seconds, millis) = stamp.split_once(':').unwrap().0.split_once('.').unwrap();
        let time = seconds.parse::<u64>().unwrap() * 1_000_000_000 + millis.parse::<u64>().unwrap() * 1_000_000;
        let field = |name: &str| {
            let value = rest.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap();
            value.trim_matches('"').to_owned()
        };
        let bucket = buckets.entry(field("pid").parse().unwrap()).or_insert_with(|| Bucket {
            first: time,
            executable: field("exe"),
            syscalls: BTreeSet::new(),
        });
        bucket.syscalls.insert(match field("syscall").as_str() {
            "56" => "clone",
            "57" => "fork",
            "58" => "vfork",
            "59" => "execve",
            "322" => "execveat",
            "435" => "clone3",
            other => panic!("syscall {other}"),
        });
    }
    buckets
}
