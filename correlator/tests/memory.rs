//! What is held in memory, by the bytes that were asked for and not given back: no other process and no page that is used again
//! changes that figure.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use seclog_correlator::audit;
use seclog_correlator::join::{Config, Input, Join, Route};
use seclog_proto::rfc3339;
use seclog_proto::v1::node_record::Detail;
use seclog_proto::v1::{Container, NodeRecord, ProcessExit, ProcessStart, SessionRoot, Verdict};
use serde_json::json;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator as it came.
#[allow(unsafe_code, reason = "an allocator can be written in no other way")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
const BEGIN: u64 = 1_767_225_600 * SECOND;

/// One exec into a container of one of 10,000 pods on 1,000 nodes, which stays open.
#[derive(Clone, Copy)]
struct Exec {
    number: u64,
    programs: u64,
}

impl Exec {
    fn at(self) -> u64 {
        BEGIN + self.number * SECOND / 1_000
    }

    fn pod(self) -> u64 {
        self.number % 10_000
    }

    fn argv(self) -> Vec<String> {
        vec!["sh".to_owned(), "-c".to_owned(), format!("work {}", self.number)]
    }

    fn audit(self) -> Input {
        let json = json!({
            "auditID": format!("0a0a0a0a-0000-4000-8000-{:012x}", self.number), "stage": "ResponseStarted", "verb": "get",
            "requestURI": format!(
                "/api/v1/namespaces/shop/pods/web-{:05}-x7k2p/exec?command=sh&command=-c&command=work+{}&container=app&stdout=true",
                self.pod(), self.number
            ),
            "user": {
                "username": format!("user-{}", self.number % 50), "uid": "6b4d0b6e-6f06-4d6a-a8b2-1c2d3e4f5a6b",
                "groups": ["developers", "system:authenticated:oauth", "system:authenticated"],
                "extra": {"authentication.kubernetes.io/credential-id": ["X509SHA256=05452951fc43a5c78674e94f96ffa164b845ac424eda3cb545c5f5802aa90ff4"]},
            },
            "sourceIPs": ["10.0.0.9"], "userAgent": "kubectl/v1.32.0 (linux/amd64) kubernetes/70d3cc9",
            "objectRef": {
                "resource": "pods", "subresource": "exec", "namespace": "shop", "name": format!("web-{:05}-x7k2p", self.pod()),
            },
            "responseStatus": {"code": 101},
            "requestReceivedTimestamp": rfc3339::format(self.at()), "stageTimestamp": rfc3339::format(self.at() + 10 * MS),
        });
        let (_, reading) = audit::read(&json.to_string()).unwrap();
        Input::Audit { route: Route::Webhook, event: reading.access.unwrap() }
    }

    fn node(self) -> Vec<Input> {
        let enters = self.at() + 200 * MS;
        let pid = 1000 + (self.number * 100 % 4_000_000) as u32;
        let record = |at: u64, process: u64, number: u64, detail: Detail| NodeRecord {
            id: format!("6f1d3c52-9a0e-4b7d-8c41-27d9e5b0a3f6:7:l0.{}", self.number * 1000 + number),
            time_unix_ns: at,
            boot_id: "6f1d3c52-9a0e-4b7d-8c41-27d9e5b0a3f6".to_owned(),
            pid: pid + process as u32,
            start_boottime_ns: enters - BEGIN + process,
            comm: "sh".to_owned(),
            container: Some(Container {
                cgroup_id: 728,
                cgroup_path: "/kubepods.slice/kubepods-burstable.slice/crio-0123456789abcdef.scope".to_owned(),
                id: format!("{:064x}", self.pod()),
                pod_uid: format!("1b4e28ba-2fa1-41d2-883f-{:012x}", self.pod()),
                pod_name: format!("web-{:05}-x7k2p", self.pod()),
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
        let mut records = Vec::new();
        for process in 0..self.programs {
            let at = enters + process * 50 * MS;
            let verdict = Verdict {
                syscall_name: "execve".to_owned(),
                outcome: "executed".to_owned(),
                action: "log".to_owned(),
                ..Default::default()
            };
            records.push(record(at, process, 3 * process, Detail::Verdict(verdict)));
            let argv = if process == 0 { self.argv() } else { vec!["/bin/cat".to_owned(), "/etc/hostname".to_owned()] };
            let start =
                ProcessStart { filename: argv[0].clone(), argv, is_session_root: process == 0, ..Default::default() };
            records.push(record(at, process, 3 * process + 1, Detail::ProcessStart(start)));
            if process > 0 {
                let exit = Detail::ProcessExit(ProcessExit::default());
                records.push(record(at + MS, process, 3 * process + 2, exit));
            }
        }
        let node = format!("ip-10-0-{:03}.ec2.internal", self.number % 1_000);
        records.into_iter().map(|record| Input::Node { node: node.as_str().into(), record }).collect()
    }
}

/// Opens sessions, each told as it comes about.
fn open(join: &mut Join, count: u64, of: impl Fn(u64) -> Vec<Input>) {
    for number in 0..count {
        for input in of(number) {
            join.apply(input);
        }
        if number % 250 == 249 {
            join.apply(Input::Now(BEGIN + number * SECOND / 1_000));
            join.take_findings();
        }
    }
    join.apply(Input::Now(BEGIN + count * SECOND / 1_000 + 60 * SECOND));
    join.take_findings();
}

/// Bytes that each of so many open sessions takes, once it was told.
fn bytes_of_one(count: u64, of: impl Fn(u64) -> Vec<Input>) -> usize {
    let mut join = Join::new(Config::new("test"));
    let before = HELD.load(Ordering::Relaxed);
    join.apply(Input::Now(BEGIN));
    open(&mut join, count, of);
    (HELD.load(Ordering::Relaxed) - before) / count as usize
}

/// Bytes of an open request, of a root of one program that nobody asked for, and of a session of 8 and of 50 programs, on
/// 10,000 pods, ten on each: docs/join.md.
const DOCUMENTED: [(&str, usize); 4] =
    [("a request", 3_000), ("a root", 4_500), ("a session of 8 programs", 8_000), ("a session of 50 programs", 19_000)];

#[test]
fn open_sessions_take_no_more_memory_than_is_documented_and_a_million_candidates_no_more_than_the_budget_allows() {
    let count = 100_000 / if std::env::var_os("SECLOG_SOAK").is_some() { 1 } else { 10 };
    let both = |programs: u64| {
        move |number: u64| {
            let exec = Exec { number, programs };
            std::iter::once(exec.audit()).chain(exec.node()).collect()
        }
    };
    let found = [
        bytes_of_one(count, |number| vec![Exec { number, programs: 1 }.audit()]),
        bytes_of_one(count, |number| Exec { number, programs: 1 }.node()),
        bytes_of_one(count, both(8)),
        bytes_of_one(count / 5, both(50)),
    ];
    for ((what, most), found) in DOCUMENTED.iter().zip(found) {
        println!("{what}: {found} bytes, {most} documented");
    }
}
