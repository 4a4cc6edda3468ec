//! `replay` of the recordings, word for word. The node records are what the agent's own code makes of them.
//!
//! After a change that is meant, SECLOG_GOLDEN=write renews the files; read the difference before committing it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use seclog_correlator::journal::Account;
use seclog_correlator::outlet::Format;
use seclog_correlator::replay::{ReplayArgs, replay};
use std::path::{Path, PathBuf};
use support::fixture;

fn here(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn check(format: Format, golden: &str) {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("out");
    let records = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/derived/node-records.jsonl");
    let args = ReplayArgs {
        mask: None,
        store: None,
        cluster: "guest".to_owned(),
        audit: vec![fixture("kas-audit.log")],
        node_records: vec![format!("node-1={}", records.display())],
        spo: Vec::new(),
        format,
        output: output.clone(),
        journal: None,
        account: Account::default(),
        audit_lateness: 45,
    };
    assert!(replay(&args).unwrap());
    let found = std::fs::read_to_string(&output).unwrap();
    let path = here(golden);
    if std::env::var("SECLOG_GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::write(&path, &found).unwrap();
    }
    same(&path, &found);
}

fn same(path: &Path, found: &str) {
    let expected = std::fs::read_to_string(path).unwrap();
    for (number, (expected, found)) in expected.lines().zip(found.lines()).enumerate() {
        assert_eq!(expected, found, "{}:{}", path.display(), number + 1);
    }
    assert_eq!(expected.lines().count(), found.lines().count(), "{}", path.display());
}

#[test]
fn the_table_of_the_recordings_stays_as_it_is() {
    check(Format::Table, "recordings.table.txt");
}

#[test]
fn the_json_of_the_recordings_stays_as_it_is() {
    check(Format::Json, "recordings.jsonl");
}
