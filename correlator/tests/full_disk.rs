//! A real full file system under the store.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

use seclog_correlator::join::session::Session;
use seclog_correlator::store::{Cursor, Limits, Reader, Store};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use uuid::Uuid;

/// A small file system in memory; gone when dropped.
struct Small(tempfile::TempDir);

impl Small {
    /// `None`: only root may mount one.
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "seclog-test"]).arg(dir.path());
        let mounted = mount.status().is_ok_and(|status| status.success());
        mounted.then_some(Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all room that is left.
    fn fill(&self) -> PathBuf {
        let path = self.path().join("ballast");
        let mut file = File::create(&path).unwrap();
        for piece in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![1; piece]).is_ok() {}
        }
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

fn sessions(numbers: std::ops::Range<u128>) -> Vec<Session> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/recordings.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find(|line| !line.contains(r#""kind":"finding""#)).unwrap();
    let one: Session = serde_json::from_str(line).unwrap();
    numbers.map(|number| Session { id: Uuid::from_u128(number << 64 | 7), ..one.clone() }).collect()
}

#[test]
fn a_full_disk_under_the_store_loses_nothing_and_is_no_damage() {
    let Some(small) = Small::new("8m") else {
        eprintln!("skipped: only root may mount a file system");
        return;
    };
    let dir = small.path().join("store");
    let mut store = Store::open(&dir, "guest", Limits::NONE).unwrap();
    let cursor = |number| Cursor { replay_from: number, told_until_unix_ns: number, read_until: number };
    let there =
        |number: u128| Reader::open(&dir).unwrap().session(Uuid::from_u128(number << 64 | 7)).unwrap().is_some();
    store.told(&sessions(0..1), 1).unwrap();
    store.commit(cursor(1), 1).unwrap();

    let ballast = small.fill();
    store.told(&sessions(1..200), 2).unwrap();
    for failures in 1..=3 {
        let error = store.commit(cursor(2), 2).unwrap_err();
        assert!(!error.is_damage(), "{error}");
        assert!(error.to_string().contains("sessions.db"), "{error}");
        assert_eq!((store.totals().failures, store.cursor()), (failures, cursor(1)), "all or nothing");
    }
    assert!(store.totals().waiting_bytes > 100_000, "it waits");
    assert!(there(0) && !there(1), "who reads sees what was there");

    std::fs::remove_file(ballast).unwrap();
    store.commit(cursor(2), 2).unwrap();
    assert!((0..200).all(there), "nothing is lost");
    assert_eq!((store.totals().waiting_bytes, store.cursor()), (0, cursor(2)));
}
