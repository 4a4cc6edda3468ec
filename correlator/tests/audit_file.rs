//! Following an audit log file as the API server writes and rotates it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use flate2::Compression;
use flate2::write::GzEncoder;
use seclog_correlator::intake::{Kind, audit_loss, file};
use seclog_correlator::join::{Input, Route};
use seclog_correlator::journal::Journal;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::journal::{Inputs, journal, trail};
use tempfile::TempDir;

struct Log {
    _dir: TempDir,
    path: PathBuf,
    inputs: Inputs,
    stop: Arc<AtomicBool>,
}

fn log() -> Log {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    let (journal, inputs) = journal();
    let stop = Arc::new(AtomicBool::new(false));
    let trail = trail(&journal, inputs.dir.path(), &[Route::File]);
    file::follow(path.clone(), Kind::Audit(trail), Arc::clone(&stop)).unwrap();
    Log { _dir: dir, path, inputs, stop }
}

impl Log {
    fn append(&self, text: &str) {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// Users of the next `count` events, in order.
    async fn users(&mut self, count: usize) -> Vec<String> {
        let mut users = Vec::new();
        while users.len() < count {
            let batch = tokio::time::timeout(Duration::from_secs(10), self.inputs.recv()).await;
            for input in batch.expect("nothing came within 10 s").unwrap() {
                if let Input::Audit { event, .. } = input {
                    users.push(event.user.username);
                }
            }
        }
        users
    }
}

fn line(user: &str) -> String {
    let event = serde_json::json!({
        "auditID": user, "stage": "ResponseComplete", "verb": "get", "user": {"username": user},
        "requestURI": "/api/v1/namespaces/n/pods/p/exec?command=id", "responseStatus": {"code": 101},
        "objectRef": {"resource": "pods", "subresource": "exec", "namespace": "n", "name": "p"},
        "requestReceivedTimestamp": "2026-01-01T00:00:00Z", "stageTimestamp": "2026-01-01T00:00:01Z",
    });
    format!("{event}\n")
}

#[tokio::test]
async fn a_file_that_does_not_exist_yet_is_waited_for() {
    let mut log = log();
    tokio::time::sleep(Duration::from_millis(300)).await;
    log.append(&line("a"));
    assert_eq!(log.users(1).await, ["a"]);
}

#[tokio::test]
async fn a_line_counts_when_its_end_is_there() {
    let mut log = log();
    let whole = line("b");
    let (head, tail) = whole.split_at(50);
    log.append(&format!("{}{head}", line("a")));
    assert_eq!(log.users(1).await, ["a"]);
    log.append(tail);
    assert_eq!(log.users(1).await, ["b"]);
}

#[tokio::test]
async fn rotation_by_rename_drains_the_old_file_first() {
    let mut log = log();
    log.append(&line("a"));
    assert_eq!(log.users(1).await, ["a"]);
    let mut old = OpenOptions::new().append(true).open(&log.path).unwrap();
    std::fs::rename(&log.path, log.path.with_extension("1")).unwrap();
    old.write_all(line("b").as_bytes()).unwrap();
    // Its last line lacks the newline.
    old.write_all(line("c").trim_end().as_bytes()).unwrap();
    log.append(&line("d"));
    assert_eq!(log.users(3).await, ["b", "c", "d"]);
}

#[tokio::test]
async fn a_truncated_file_is_read_from_its_beginning_and_the_gap_is_declared() {
    let mut log = log();
    log.append(&format!("{}{}", line("a"), line("b")));
    assert_eq!(log.users(2).await, ["a", "b"]);
    std::fs::write(&log.path, line("c")).unwrap();
    let batch = log.inputs.recv().await.unwrap();
    assert!(matches!(&batch[..], [Input::AuditLoss { .. }]), "{batch:?}");
    assert_eq!(log.users(1).await, ["c"]);
}

#[tokio::test]
async fn what_cannot_be_read_is_declared_lost_quarantined_and_the_rest_kept() {
    let mut log = log();
    log.append(&format!("{}garbage\n{}", line("a"), line("b")));
    let batch = log.inputs.recv().await.unwrap();
    assert!(matches!(&batch[..], [Input::AuditLoss { count: Some(1), .. }]), "{batch:?}");
    assert_eq!(log.users(2).await, ["a", "b"]);
    let kept = std::fs::read_to_string(log.inputs.dir.path().join("quarantine/quarantine.jsonl")).unwrap();
    let record: serde_json::Value = serde_json::from_str(kept.trim()).unwrap();
    assert_eq!((&record["bytes_base64"], &record["route"]), (&"Z2FyYmFnZQ==".into(), &"file".into()));
    assert_eq!(record["offset"], line("a").len());
}

#[tokio::test]
async fn what_was_written_before_the_stop_is_read() {
    let mut log = log();
    log.stop.store(true, Ordering::Relaxed);
    log.append(&line("a"));
    assert_eq!(log.users(1).await, ["a"]);
    assert!(log.inputs.recv().await.is_none(), "and then it ends");
}

/// A follower that can be stopped and started again on the same journal, as after a restart.
struct Restartable {
    dir: TempDir,
    journal: Journal,
    inputs: Inputs,
}

impl Restartable {
    fn new() -> Self {
        let (journal, inputs) = journal();
        Self { dir: tempfile::tempdir().unwrap(), journal, inputs }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("audit.log")
    }

    /// What one run takes in that looks once and ends; users in order.
    async fn run(&mut self) -> Vec<String> {
        self.run_on(&self.path()).await
    }

    async fn run_on(&mut self, path: &Path) -> Vec<String> {
        // As if new: what the last run remembered is gone.
        let empty = tempfile::tempdir().unwrap();
        let trail = trail(&self.journal, empty.path(), &[Route::File]);
        let stop = Arc::new(AtomicBool::new(true));
        let thread = file::follow(path.to_owned(), Kind::Audit(trail), stop).unwrap();
        tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap();
        // What nobody waited for is on the disk when this is.
        self.journal.append(audit_loss("test", "end of the run", None)).await.unwrap();
        let mut users = Vec::new();
        while let Some(batch) = self.inputs.try_recv() {
            users.extend(batch.into_iter().filter_map(|input| match input {
                Input::Audit { event, .. } => Some(event.user.username),
                Input::AuditLoss { source, reason, .. } if source != "test" => Some(format!("lost: {reason}")),
                _ => None,
            }));
        }
        users
    }
}

fn compress(path: &Path) {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&std::fs::read(path).unwrap()).unwrap();
    std::fs::write(path.with_extension("log.gz"), encoder.finish().unwrap()).unwrap();
    std::fs::remove_file(path).unwrap();
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[tokio::test]
async fn a_restart_goes_on_where_the_journal_says_through_renames_and_compression() {
    let mut log = Restartable::new();
    let path = log.path();
    let first = log.dir.path().join("audit-2026-11-26T14-33-45.420.log");
    append(&path, &format!("{}{}", line("a"), line("b")));
    assert_eq!(log.run().await, ["a", "b"]);
    assert_eq!(log.run().await, [] as [&str; 0], "nothing twice");
    append(&path, &line("c"));
    std::fs::rename(&path, &first).unwrap();
    append(&path, &line("d"));
    assert_eq!(log.run().await, ["c", "d"], "renamed while nobody looked");
    // Another rotation, and both backups are compressed.
    let second = log.dir.path().join("audit-2026-11-26T15-33-45.420.log");
    append(&path, &line("e"));
    std::fs::rename(&path, &second).unwrap();
    compress(&first);
    compress(&second);
    append(&path, &line("f"));
    assert_eq!(log.run().await, ["e", "f"]);
}

#[tokio::test]
async fn backups_that_were_there_before_are_read_first_in_their_order() {
    let mut log = Restartable::new();
    let named = |stamp: &str| log.dir.path().join(format!("audit-{stamp}.log"));
    append(&named("2026-11-26T14-33-45.420"), &line("b"));
    append(&named("2026-11-25T14-33-45.420"), &line("a"));
    compress(&named("2026-11-25T14-33-45.420"));
    append(&named("2026-11-26T15-33-45.420"), "");
    append(&log.path(), &line("c"));
    assert_eq!(log.run().await, ["a", "b", "c"]);
    assert_eq!(log.run().await, [] as [&str; 0]);
}

#[tokio::test]
async fn a_file_that_is_gone_after_a_restart_is_a_gap_and_what_is_there_is_read() {
    let mut log = Restartable::new();
    append(&log.path(), &line("a"));
    assert_eq!(log.run().await, ["a"]);
    std::fs::remove_file(log.path()).unwrap();
    append(&log.path(), &line("b"));
    assert_eq!(log.run().await, ["lost: the file that was read before the restart is gone", "b"]);
}

#[tokio::test]
async fn a_line_cut_by_a_restart_is_read_once_and_whole() {
    let mut log = Restartable::new();
    let whole = line("b");
    let (head, tail) = whole.split_at(80);
    append(&log.path(), &format!("{}{head}", line("a")));
    assert_eq!(log.run().await, ["a"]);
    append(&log.path(), tail);
    assert_eq!(log.run().await, ["b"]);
}

#[tokio::test]
async fn a_file_that_was_truncated_and_grew_beyond_is_known_as_another() {
    let mut log = log();
    log.append(&line("a"));
    assert_eq!(log.users(1).await, ["a"]);
    std::fs::write(&log.path, format!("{}{}", line("b"), line("c"))).unwrap();
    let mut users = log.users(2).await;
    // What grew behind the old place may have been read before the truncation was seen; it is not read twice.
    users.sort();
    assert_eq!(users, ["b", "c"]);
}

#[tokio::test]
async fn every_pods_directory_is_followed_as_it_comes_and_goes() {
    let mut log = Restartable::new();
    let dirs = log.dir.path().to_owned();
    for pod in ["kas-0", "kas-1"] {
        std::fs::create_dir(dirs.join(pod)).unwrap();
        append(&dirs.join(pod).join("audit.log"), &line(pod));
    }
    std::fs::create_dir(dirs.join("lost+found")).unwrap();
    assert_eq!(log.run_on(&dirs).await, ["kas-0", "kas-1"]);
    std::fs::remove_dir_all(dirs.join("kas-0")).unwrap();
    append(&dirs.join("kas-1/audit.log"), &line("later"));
    assert_eq!(log.run_on(&dirs).await, ["later"]);
}

#[tokio::test]
async fn two_hundred_megabytes_at_the_start_are_read_once() {
    let mut log = Restartable::new();
    let (bulk, recorded) = (support::read("kas-audit-bulk.log"), support::read("kas-audit.log"));
    let mut file = std::fs::File::create(log.path()).unwrap();
    file.write_all(recorded.as_bytes()).unwrap();
    for _ in 0..170 {
        file.write_all(bulk.as_bytes()).unwrap();
    }
    assert!(file.metadata().unwrap().len() > 200_000_000);
    assert_eq!(log.run().await.len(), 62);
    assert_eq!(log.run().await, [] as [&str; 0]);
}
