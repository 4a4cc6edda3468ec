//! Following an audit log file as the API server writes and rotates it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use seclog_correlator::intake::{Inputs, file, queue};
use seclog_correlator::join::Input;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
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
    let (queue, inputs) = queue();
    let stop = Arc::new(AtomicBool::new(false));
    file::follow(path.clone(), queue, Arc::clone(&stop)).unwrap();
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
async fn what_cannot_be_read_is_declared_lost_and_the_rest_kept() {
    let mut log = log();
    log.append(&format!("{}garbage\n{}", line("a"), line("b")));
    let batch = log.inputs.recv().await.unwrap();
    let lost = batch.iter().filter(|input| matches!(input, Input::AuditLoss { .. })).count();
    assert_eq!((batch.len(), lost), (3, 1));
}

#[tokio::test]
async fn what_was_written_before_the_stop_is_read() {
    let mut log = log();
    log.stop.store(true, Ordering::Relaxed);
    log.append(&line("a"));
    assert_eq!(log.users(1).await, ["a"]);
    assert!(log.inputs.recv().await.is_none(), "and then it ends");
}
