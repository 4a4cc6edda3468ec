//! What the join costs: CPU time for each node record and each relevant audit event, and memory for each open session.
//!
//! `cargo bench -p seclog-correlator --bench join_cost`. CPU time of the process (/proc/self/stat counts ticks of 10 ms, so
//! runs are long enough), inputs made beforehand; the join is ticked four times a second of event time, as `serve` does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark says no more by handling them")]

use seclog_correlator::audit;
use seclog_correlator::join::{Config, Input, Join, Route, Source};
use seclog_proto::rfc3339;
use seclog_proto::v1::node_record::Detail;
use seclog_proto::v1::{Container, NodeRecord, ProcessExit, ProcessStart, SessionRoot, Verdict};
use serde_json::json;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
const BEGIN: u64 = 1_767_225_600 * SECOND;

/// One exec into a container: two audit events, and a tree of `programs` with their verdicts and exits.
#[derive(Clone, Copy)]
struct Exec {
    number: u64,
    at: u64,
    pod: u64,
    identical: bool,
    lasts: u64,
    programs: u64,
}

impl Exec {
    fn argv(self) -> Vec<String> {
        let script = if self.identical { "work".to_owned() } else { format!("work {}", self.number) };
        vec!["sh".to_owned(), "-c".to_owned(), script]
    }

    fn audit(self) -> Vec<(u64, Input)> {
        let event = |stage: &str, at: u64| {
            let json = json!({
                "auditID": format!("0a0a0a0a-0000-4000-8000-{:012x}", self.number), "stage": stage, "verb": "get",
                "requestURI": format!(
                    "/api/v1/namespaces/shop/pods/web-{}/exec?command=sh&command=-c&command={}&container=app&stdout=true",
                    self.pod, self.argv()[2].replace(' ', "+")
                ),
                "user": {"username": format!("user-{}", self.number % 50), "groups": ["system:authenticated"]},
                "sourceIPs": ["10.0.0.9"], "userAgent": "kubectl/v1.32.0 (linux/amd64) kubernetes/70d3cc9",
                "objectRef": {"resource": "pods", "subresource": "exec", "namespace": "shop", "name": format!("web-{}", self.pod)},
                "responseStatus": {"code": 101},
                "requestReceivedTimestamp": rfc3339::format(self.at), "stageTimestamp": rfc3339::format(at),
            });
            let (_, reading) = audit::read(&json.to_string()).unwrap();
            (at, Input::Audit { route: Route::Webhook, event: reading.access.unwrap() })
        };
        vec![event("ResponseStarted", self.at + 10 * MS), event("ResponseComplete", self.at + self.lasts)]
    }

    fn node(self) -> Vec<(u64, Input)> {
        let enters = self.at + 200 * MS;
        let pid = 1000 + (self.number * 100 % 4_000_000) as u32;
        let mut records = Vec::new();
        let mut add = |at: u64, process: u64, detail: Detail| {
            let record = NodeRecord {
                id: format!("6f1d3c52-9a0e-4b7d-8c41-27d9e5b0a3f6:7:l0.{}", self.number * 1000 + records.len() as u64),
                time_unix_ns: at,
                boot_id: "6f1d3c52-9a0e-4b7d-8c41-27d9e5b0a3f6".to_owned(),
                pid: pid + process as u32,
                start_boottime_ns: enters - BEGIN + process,
                comm: "sh".to_owned(),
                container: Some(Container {
                    cgroup_id: 728,
                    cgroup_path: "/kubepods.slice/kubepods-burstable.slice/crio-0123456789abcdef.scope".to_owned(),
                    id: format!("{:064x}", self.pod),
                    pod_uid: format!("1b4e28ba-2fa1-41d2-883f-{:012x}", self.pod),
                    pod_name: format!("web-{}", self.pod),
                    pod_namespace: "shop".to_owned(),
                    name: "app".to_owned(),
                    names: "cri".to_owned(),
                    ..Default::default()
                }),
                session_root: Some(SessionRoot {
                    pid,
                    start_boottime_ns: enters - BEGIN,
                    entry: "exec".to_owned(),
                    rule: "runc exec below crio".to_owned(),
                    lineage: "observed".to_owned(),
                }),
                detail: Some(detail),
                ..Default::default()
            };
            records.push((at, Input::Node { node: format!("node-{}", self.pod % 10).as_str().into(), record }));
        };
        for process in 0..self.programs {
            let at = enters + process * self.lasts / (self.programs + 1);
            let verdict = Verdict {
                syscall_name: "execve".to_owned(),
                outcome: "executed".to_owned(),
                action: "log".to_owned(),
                ..Default::default()
            };
            add(at, process, Detail::Verdict(verdict));
            let argv = if process == 0 { self.argv() } else { vec!["/bin/cat".to_owned(), "/etc/hostname".to_owned()] };
            let start =
                ProcessStart { filename: argv[0].clone(), argv, is_session_root: process == 0, ..Default::default() };
            add(at, process, Detail::ProcessStart(start));
            let ends = if process == 0 { enters + self.lasts } else { at + MS };
            add(ends, process, Detail::ProcessExit(ProcessExit::default()));
        }
        records
    }
}

/// CPU time of this process so far, nanoseconds.
fn cpu() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10 * MS
}

/// Resident memory, bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// The inputs in the order of time, with watermarks and ticks.
fn timeline(mut inputs: Vec<(u64, Input)>) -> Vec<Input> {
    inputs.sort_by_key(|(at, _)| *at);
    let end = inputs.last().map_or(BEGIN, |(at, _)| *at);
    let mut out = Vec::with_capacity(inputs.len() * 2);
    let mut now = BEGIN;
    let tick = |now: u64, out: &mut Vec<Input>| {
        for node in 0..10 {
            let source = Source::Node(format!("node-{node}").as_str().into());
            out.push(Input::Watermark { source, until: now - 500 * MS });
        }
        out.push(Input::Watermark { source: Source::Audit, until: now - 500 * MS });
        out.push(Input::Now(now));
    };
    for (at, input) in inputs {
        while now < at {
            tick(now, &mut out);
            now += 250 * MS;
        }
        out.push(input);
    }
    while now < end + 5 * SECOND {
        tick(now, &mut out);
        now += 250 * MS;
    }
    out
}

/// CPU nanoseconds, node records, audit events, revisions.
fn run(execs: &[Exec], audit: bool, node: bool) -> (u64, u64, u64, u64) {
    let mut inputs = Vec::new();
    for exec in execs {
        inputs.extend(if audit { exec.audit() } else { Vec::new() });
        inputs.extend(if node { exec.node() } else { Vec::new() });
    }
    let inputs = timeline(inputs);
    let mut join = Join::new(Config::new("bench"));
    let mut revisions = 0;
    let before = cpu();
    for input in inputs {
        revisions += join.apply(input).len() as u64;
    }
    let spent = cpu() - before;
    let counters = join.counters();
    (spent, counters.node_records, counters.audit_events, revisions)
}

fn execs(count: u64, per_second: u64, pods: u64, identical: bool, lasts: u64, programs: u64) -> Vec<Exec> {
    let one = |number| Exec {
        number,
        at: BEGIN + SECOND + number * SECOND / per_second,
        pod: number % pods,
        identical,
        lasts,
        programs,
    };
    (0..count).map(one).collect()
}

fn main() {
    println!("{:<58} {:>9} {:>8} {:>9} {:>8} {:>10}", "scene", "records", "events", "revisions", "CPU s", "ns/record");
    let scenes: [(&str, Vec<Exec>); 5] = [
        ("1,000 pods, 20 execs/s, 8 programs each", execs(10_000, 20, 1000, false, 4 * SECOND, 8)),
        ("one pod, 2 execs/s for 1,000 s, 25 programs each", execs(2_000, 2, 1, false, SECOND, 25)),
        ("one pod, 2 execs/s for 1,000 s, all the same command", execs(2_000, 2, 1, true, SECOND, 25)),
        ("one pod, 2 execs/s, same command, open for 60 s", execs(2_000, 2, 1, true, 60 * SECOND, 25)),
        ("one pod, 50 execs/s for 40 s, open for 30 s", execs(2_000, 50, 1, false, 30 * SECOND, 25)),
    ];
    // `-- same` runs the scenes whose names have it.
    let wanted = std::env::args().skip(1).find(|word| !word.starts_with("--"));
    let is_wanted = |name: &str| wanted.as_ref().is_none_or(|wanted| name.contains(wanted.as_str()));
    for (name, execs) in scenes.iter().filter(|(name, _)| is_wanted(name)) {
        let (spent, records, events, revisions) = run(execs, true, true);
        println!(
            "{name:<58} {records:>9} {events:>8} {revisions:>9} {:>8.2} {:>10}",
            spent as f64 / 1e9,
            spent / records.max(1)
        );
    }
    if wanted.is_some() {
        return;
    }
    let busy = execs(50_000, 100, 1000, false, 4 * SECOND, 1);
    let (spent, _, events, _) = run(&busy, true, false);
    println!("audit events alone: {events} events, {} ns each", spent / events.max(1));

    for programs in [1, 8, 50] {
        let open = execs(20_000, 1000, 1000, false, 3_600 * SECOND, programs);
        let mut join = Join::new(Config::new("bench"));
        join.apply(Input::Now(BEGIN));
        let before = memory();
        for exec in &open {
            // Made and taken one by one: what stays is the join's.
            let asked = exec.audit().into_iter().take(1);
            for (_, input) in asked.chain(exec.node().into_iter().filter(|(at, _)| *at < exec.at + 3_600 * SECOND)) {
                join.apply(input);
            }
            if exec.number % 250 == 249 {
                join.apply(Input::Now(exec.at));
            }
        }
        join.apply(Input::Now(BEGIN + 60 * SECOND));
        let bytes = memory().saturating_sub(before) / open.len() as u64;
        println!("an open session of {programs} programs: {bytes} bytes resident");
    }
}
