//! What was known of pods and main processes hours ago is known after a restart, although the journal is not read from there
//! again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use prost::Message as _;
use rusqlite::Connection;
use seclog_correlator::intake::now;
use seclog_correlator::join::Input;
use seclog_correlator::join::session::{Evidence, Kind, Session};
use seclog_correlator::journal::Entry;
use seclog_correlator::store::{FILE, Limits, Store};
use seclog_journal::{Log, Options};
use seclog_proto::rfc3339;
use seclog_proto::v1::{AuditEvents, JournalEntry, NodeBatch, NodeRecord};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use support::client::{Agent, batch, hello, plaintext};
use support::program::{Running, last_lines, wait_for};
use support::scene::{SECOND, Tree, tree};

const HOUR: u64 = 3_600 * SECOND;

fn records(tree: &Tree) -> Vec<NodeRecord> {
    let of = |input| match input {
        Input::Node { record, .. } => record,
        other => panic!("{other:?}"),
    };
    tree.inputs().into_iter().map(of).collect()
}

/// The start of a main process that goes on, and what its pod runs as a probe.
fn server(at: u64) -> (Vec<NodeRecord>, String) {
    let start = records(&tree(50, &["server"], at).entry("start")).into_iter().take(1).collect();
    let status = json!({
        "kind": "Event", "auditID": "status", "stage": "ResponseComplete", "verb": "patch", "level": "RequestResponse",
        "user": {"username": "system:node:node-1"}, "responseStatus": {"code": 200},
        "requestURI": "/api/v1/namespaces/shop/pods/web/status",
        "objectRef": {"resource": "pods", "subresource": "status", "namespace": "shop", "name": "web"},
        "requestReceivedTimestamp": rfc3339::format(at), "stageTimestamp": rfc3339::format(at),
        "responseObject": {"kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "uid": "uid-web"},
            "spec": {"containers": [{"name": "app", "livenessProbe": {"exec": {"command": ["/probe"]}}}]}},
    });
    (start, status.to_string())
}

/// A journal as a correlator has it that runs for hours.
fn write_journal(dir: &Path) {
    let (mut log, _) = Log::open(dir, Options { segment_bytes: 1 << 20 }).unwrap();
    let mut entries: Vec<(u64, Entry)> = Vec::new();
    let mut sequence = 1;
    let mut node = |at: u64, records: Vec<NodeRecord>| {
        let count = records.len() as u64;
        let node_batch = NodeBatch {
            node: "node-1".to_owned(),
            epoch: 1,
            batch: batch(sequence, records, 0).to_vec().into(),
            first_sequence: sequence,
            last_sequence: sequence + count - 1,
            ..NodeBatch::default()
        };
        sequence += count;
        entries.push((at, Entry::NodeBatch(node_batch)));
    };
    let began = now() - 4 * HOUR;
    let (start, status) = server(began);
    node(began, start);
    for number in 1..=8 {
        let at = began + number * HOUR / 3;
        node(at + SECOND, records(&tree(1_000 * number as u32, &["/probe"], at).entry("exec_sync")));
    }
    let events =
        AuditEvents { route: "file".to_owned(), events: vec![status.into_bytes().into()], ..AuditEvents::default() };
    entries.insert(1, (began + SECOND, Entry::AuditEvents(events)));
    let encoded: Vec<Vec<u8>> = entries
        .into_iter()
        .map(|(time_unix_ns, entry)| JournalEntry { time_unix_ns, entry: Some(entry) }.encode_to_vec())
        .collect();
    log.append(&encoded).unwrap();
    log.sync().unwrap();
}

fn replay_from(store: &Path) -> i64 {
    let store = Connection::open(store.join(FILE)).unwrap();
    store.query_row("SELECT replay_from FROM about", [], |row| row.get(0)).unwrap()
}

fn attach(at: u64) -> String {
    let event = |stage: &str, after: u64| {
        json!({
            "kind": "Event", "auditID": format!("attach-{at}"), "stage": stage, "verb": "get", "level": "Metadata",
            "user": {"username": "alice"}, "responseStatus": {"code": 101},
            "requestURI": "/api/v1/namespaces/shop/pods/web/attach?container=app&stdin=true",
            "objectRef": {"resource": "pods", "subresource": "attach", "namespace": "shop", "name": "web"},
            "requestReceivedTimestamp": rfc3339::format(at), "stageTimestamp": rfc3339::format(at + after),
        })
    };
    format!("{}\n{}\n", event("ResponseStarted", SECOND / 100), event("ResponseComplete", SECOND))
}

fn attached(output: &Path) -> Vec<Session> {
    last_lines(output).into_iter().filter(|session| session.kind == Kind::Attach).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_attaches_after_a_kill_is_told_with_the_main_process_that_began_hours_before() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, output) = (dir.path().join("journal"), dir.path().join("out.jsonl"));
    let audit = dir.path().join("audit.log");
    std::fs::create_dir(&journal).unwrap();
    write_journal(&journal);
    let start = || {
        Running::start_with(
            &journal,
            &[
                "--agents-listen=127.0.0.1:0",
                "--plaintext",
                &format!("--audit-log={}", audit.display()),
                &format!("--output={}", output.display()),
            ],
        )
    };
    // It has read everything once when a restart would not begin where it did.
    let running = start();
    running.address("listening for agents");
    let store = journal.join("store");
    let deadline = Instant::now() + Duration::from_secs(120);
    while !store.join(FILE).exists() || replay_from(&store) <= 3 {
        assert!(Instant::now() < deadline, "a restart would still read from entry {}", replay_from(&store));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    running.kill();

    let running = start();
    let reads = running.line("reading from the journal what the join needs");
    assert!(!reads.contains("from=1 ") && !reads.contains("from=2 "), "{reads}");
    // A probe first, so that it is in when the attach is told.
    let agents = running.address("listening for agents");
    let mut agent = Agent::connect(plaintext(agents).await, hello("guest", "node-1", 7, 1)).await.unwrap();
    agent.welcome().await.unwrap();
    let at = now();
    agent.batch(1, records(&tree(60_000, &["/probe"], at - 100 * SECOND).entry("exec_sync")), at).await;
    agent.batch(5, records(&tree(70_000, &["id"], at - 100 * SECOND).entry("exec_sync")), at).await;
    assert_eq!(agent.ack().await.unwrap(), 4);
    std::fs::write(&audit, attach(at - 2 * SECOND)).unwrap();
    wait_for(&output, r#""kind":"attach""#);
    assert_eq!(running.stop(), 0);

    let sessions = attached(&output);
    let root = sessions[0].root.as_ref().expect("its main process is known");
    assert_eq!((sessions.len(), root.pid, sessions[0].place.node.as_deref()), (1, 50, Some("node-1")));
    let entries: Vec<u32> = last_lines(&output)
        .iter()
        .filter(|session| session.evidence == Evidence::NodeOnly && session.kind != Kind::Probe)
        .filter_map(|session| session.root.as_ref().map(|root| root.pid))
        .collect();
    assert_eq!(entries, [70_000], "the pod's spec is known, and so its probe");
}

#[test]
fn a_restart_is_told_what_came_before_its_first_entry_and_was_not_over_by_then() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), "guest", Limits::NONE).unwrap();
    let node = "node-1".into();
    let at = 1_767_225_600 * SECOND;
    let all = records(&tree(50, &["server"], at).entry("start"));
    let (start, exit) = (&all[0], &all[3]);
    store.record(&node, start, 3, 0).unwrap();
    // The same again, and what is nobody's main process.
    store.record(&node, start, 4, 0).unwrap();
    store.record(&node, &records(&tree(80, &["sh"], at))[0], 4, 0).unwrap();
    store.record(&node, exit, 8, 0).unwrap();
    let cursor = |replay_from| seclog_correlator::store::Cursor { replay_from, ..Default::default() };
    let known = |store: &Store, number: u64| store.facts_before(number).unwrap().len();
    store.commit(cursor(1), 0).unwrap();
    assert_eq!([3, 4, 8, 9].map(|number| known(&store, number)), [0, 1, 1, 0]);

    // Its node boots.
    let other = records(&tree(51, &["server"], at).entry("start")).remove(0);
    store.record(&node, &other, 10, 0).unwrap();
    let mut booted = records(&tree(52, &["server"], at).entry("start")).remove(0);
    booted.boot_id = "the next boot".to_owned();
    booted.container.as_mut().unwrap().id = "c".repeat(64);
    store.record(&node, &booted, 12, 0).unwrap();
    store.commit(cursor(9), 0).unwrap();
    assert_eq!([3, 11, 12, 13].map(|number| known(&store, number)), [0, 1, 1, 1]);
    let Some(Input::Node { record, .. }) = store.facts_before(13).unwrap().pop() else { panic!("no record") };
    assert_eq!(record, booted);

    // Another journal.
    drop(store);
    let mut store = Store::open(dir.path(), "guest", Limits::NONE).unwrap();
    store.commit(seclog_correlator::store::Cursor { read_until: 50, ..Default::default() }, 0).unwrap();
    store.begin(5).unwrap();
    assert_eq!(known(&store, 100), 0);
}

#[test]
fn facts_of_pods_are_kept_once_however_often_they_come() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), "guest", Limits::NONE).unwrap();
    for entry in 1..=5 {
        for input in support::scene::pod_status("node-1", &["/probe"]) {
            let Input::Pod(fact) = input else { panic!("{input:?}") };
            store.pod(&fact, entry).unwrap();
        }
        store.commit(Default::default(), 0).unwrap();
    }
    let facts = store.facts_before(2).unwrap();
    assert_eq!((facts.len(), store.facts_before(9).unwrap().len()), (1, 1));
}
