//! What is held in memory, by the bytes that were asked for and not given back: no other process and no page that is used again
//! changes that figure.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use seclog_correlator::audit;
use seclog_correlator::join::session::Evidence;
use seclog_correlator::join::{Config, Input, Join, REQUEST_BYTES, ROOT_BYTES, Route};
use seclog_correlator::store::DiskAttic;
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

/// One exec into a container, which stays open until it is closed.
#[derive(Clone, Copy)]
struct Exec {
    number: u64,
    programs: u64,
    pods: u64,
}

impl Exec {
    fn at(self) -> u64 {
        BEGIN + self.number * SECOND / 1_000
    }

    fn pod(self) -> u64 {
        self.number % self.pods
    }

    fn argv(self) -> Vec<String> {
        vec!["sh".to_owned(), "-c".to_owned(), format!("work {}", self.number)]
    }

    fn audit(self, stage: &str, at: u64) -> Input {
        let json = json!({
            "auditID": format!("0a0a0a0a-0000-4000-8000-{:012x}", self.number), "stage": stage, "verb": "get",
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
            "requestReceivedTimestamp": rfc3339::format(self.at()), "stageTimestamp": rfc3339::format(at),
        });
        let (_, reading) = audit::read(&json.to_string()).unwrap();
        Input::Audit { route: Route::Webhook, event: reading.access.unwrap() }
    }

    fn asked(self) -> Input {
        self.audit("ResponseStarted", self.at() + 10 * MS)
    }

    fn closed(self, at: u64) -> Input {
        self.audit("ResponseComplete", at)
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

/// Opens sessions, each told as it comes about. When the last of it was.
fn open(join: &mut Join, count: u64, of: impl Fn(u64) -> Vec<Input>) -> u64 {
    for number in 0..count {
        for input in of(number) {
            join.apply(input);
        }
        if number % 250 == 249 {
            join.apply(Input::Now(BEGIN + number * SECOND / 1_000));
            join.take_findings();
        }
    }
    let end = BEGIN + count * SECOND / 1_000 + 60 * SECOND;
    join.apply(Input::Now(end));
    join.take_findings();
    end
}

/// Bytes that each of so many open sessions takes, once it was told.
fn bytes_of_one(count: u64, of: impl Fn(u64) -> Vec<Input>) -> u64 {
    let mut join = Join::new(Config { most_deed_bytes: usize::MAX, ..Config::new("test") });
    let before = HELD.load(Ordering::Relaxed);
    join.apply(Input::Now(BEGIN));
    open(&mut join, count, of);
    (HELD.load(Ordering::Relaxed) - before) as u64 / count
}

/// Ten sessions in each pod; docs/join.md.
const DOCUMENTED: [(&str, u64); 4] = [
    ("an open request", REQUEST_BYTES as u64),
    ("a root of one program that nobody asked for", 4_000),
    ("an open session of 8 programs", 6_500),
    ("an open session of 50 programs", 18_000),
];
/// With what its programs did in the attic: what the budget counts.
const DOCUMENTED_AWAY: u64 = (REQUEST_BYTES + ROOT_BYTES) as u64;

#[test]
fn open_sessions_take_no_more_memory_than_is_documented_and_less_when_memory_is_short() {
    let exec = |programs: u64| move |number: u64| Exec { number, programs, pods: 500 };
    let both = |exec: Exec| std::iter::once(exec.asked()).chain(exec.node()).collect::<Vec<Input>>();
    let found = [
        bytes_of_one(5_000, |number| vec![exec(1)(number).asked()]),
        bytes_of_one(5_000, |number| exec(1)(number).node()),
        bytes_of_one(5_000, |number| both(exec(8)(number))),
        bytes_of_one(5_000, |number| both(exec(50)(number))),
    ];
    for ((what, most), found) in DOCUMENTED.iter().zip(found) {
        println!("{what}: {found} bytes");
        assert!(found <= *most, "{what}: {found} bytes, and {most} documented");
    }

    // In the long form a million candidates: as many requests, and as many roots.
    let count: u64 = if std::env::var_os("SECLOG_SOAK").is_some() { 500_000 } else { 5_000 };
    let exec = |number: u64| Exec { number, programs: 8, pods: count / 10 };
    let budget = if count > 5_000 { 64 << 20 } else { 512 << 10 };
    let dir = tempfile::tempdir().unwrap();
    let before = HELD.load(Ordering::Relaxed);
    let most_element_bytes = count as usize * (REQUEST_BYTES + ROOT_BYTES) + 1;
    let mut join = Join::new(Config { most_deed_bytes: budget, most_element_bytes, ..Config::new("test") });
    join.set_attic(Box::new(DiskAttic::open(dir.path(), 4 << 30).unwrap()));
    join.apply(Input::Now(BEGIN));
    let end = open(&mut join, count, |number| both(exec(number)));
    let counters = join.counters();
    assert_eq!(
        (counters.refused_requests, counters.refused_roots, counters.cut, counters.attic_failures),
        (0, 0, 0, 0)
    );
    assert!(join.deed_bytes() <= budget, "{} bytes of what programs did are in memory", join.deed_bytes());
    assert!(counters.put_away > count / 2, "{counters:?}");
    let each = (HELD.load(Ordering::Relaxed) - before) as u64 / count;
    let file = std::fs::metadata(dir.path().join("attic.sqlite")).unwrap().len();
    println!("an open session of 8 programs with little memory: {each} bytes, and {} on disk", file / count);
    assert!(each <= DOCUMENTED_AWAY, "{each} bytes, and {DOCUMENTED_AWAY} documented");

    // All of them close, and are told once more with all that they ran.
    let mut told = 0;
    for number in 0..count {
        join.apply(exec(number).closed(end + SECOND));
        if number % 1_000 == 999 {
            for session in join.apply(Input::Now(end + 2 * SECOND + number * MS)) {
                assert_eq!((session.ran.len(), session.ran_not_listed), (8, 0), "{session:?}");
                assert_eq!(session.evidence, Evidence::Unique);
                told += 1;
            }
        }
    }
    assert_eq!(told, count);
    assert!(join.deed_bytes() <= budget, "telling of what is away does not bring it back");
}
