//! What the store costs: CPU time for each revision of a session, for each node record that is kept, and for each that no
//! session tells of; and bytes on disk.
//!
//! `cargo bench -p seclog-correlator --bench store_cost`. CPU time of the process (/proc/self/stat counts ticks of 10 ms, so
//! runs are long enough), syncs to the disk are waits and cost none; a transaction for every second of event time, as `serve`
//! has it. Each figure is the least of three runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark says no more by handling them")]

use seclog_correlator::join::session::Session;
use seclog_correlator::store::{Cursor, Limits, Store};
use seclog_proto::v1::NodeRecord;
use seclog_proto::v1::node_record::Detail;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const SECOND: u64 = 1_000_000_000;
const BEGIN: u64 = 1_767_225_600 * SECOND;

fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    // utime and stime: fields 14 and 15, where the name is 2.
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// An exact session of the recordings with four programs.
fn recorded() -> Session {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/recordings.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find(|line| line.contains("5a2f1eff-7f28-558f-9cd2-aa4577318a7e")).unwrap();
    serde_json::from_str(line).unwrap()
}

/// Node records of one root, as the agent's code makes them of a recorded trace.
fn records() -> Vec<NodeRecord> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/derived/node-records.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let all = text.lines().map(|line| serde_json::from_str::<NodeRecord>(line).unwrap());
    all.filter(|record| record.session_root.as_ref().is_some_and(|root| root.pid == 7352)).collect()
}

struct Run {
    cpu: Duration,
    bytes: u64,
}

/// `sessions` in a second for `seconds`, each with `times` revisions, and the records of its root before; `told`: whether a
/// session tells of them.
fn run(sessions: u64, seconds: u64, times: u32, with_records: bool, told: bool) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), "guest", Limits::NONE).unwrap();
    let (mut session, mut records) = (recorded(), records());
    let node: Arc<str> = "node-1".into();
    let before = cpu();
    for second in 0..seconds {
        let now = BEGIN + second * SECOND;
        for number in 0..sessions {
            let start = (second * sessions + number + 1) * 1_000;
            session.id = Uuid::from_u128(u128::from(start) << 64);
            session.start.0 = now;
            session.root.as_mut().unwrap().start_boottime_ns = start;
            for record in records.iter_mut().filter(|_| with_records) {
                record.session_root.as_mut().unwrap().start_boottime_ns = start;
                store.record(&node, record, second, now).unwrap();
            }
            for revision in (1..=times).filter(|_| told) {
                session.revision = revision;
                store.told(std::slice::from_ref(&session), now).unwrap();
            }
        }
        store.commit(Cursor { replay_from: second, told_until_unix_ns: now, read_until: second + 1 }, now).unwrap();
    }
    Run { cpu: cpu() - before, bytes: store.totals().bytes }
}

fn least(run: impl Fn() -> Run) -> Run {
    (0..3).map(|_| run()).min_by_key(|run| run.cpu).unwrap()
}

fn main() {
    assert!(records().iter().any(|record| matches!(record.detail, Some(Detail::ProcessStart(_)))));
    let many = records().len() as f64;
    let each = |run: &Run, count: f64| run.cpu.as_nanos() as f64 / count / 1_000.0;
    let new = least(|| run(100, 200, 1, false, true));
    println!("a session's first revision: {:.1} us, {} bytes on disk", each(&new, 20_000.0), new.bytes / 20_000);
    let revised = least(|| run(25, 200, 4, false, true));
    println!("any revision, four of each session: {:.1} us", each(&revised, 20_000.0));
    let unwanted = least(|| run(100, 400, 1, true, false));
    println!("a node record that no session tells of: {:.2} us", each(&unwanted, 40_000.0 * many));
    let with = least(|| run(100, 200, 1, true, true));
    let records = Run { cpu: with.cpu.saturating_sub(new.cpu), bytes: with.bytes.saturating_sub(new.bytes) };
    println!(
        "a node record that is kept, {many} to a root: {:.2} us, {:.0} bytes on disk",
        each(&records, 20_000.0 * many),
        records.bytes as f64 / 20_000.0 / many
    );
}
