//! Which certificates were issued: a file of JSON lines, one for each, on the disk before the certificate is handed out.
//!
//! It answers whether a key is new to a node whose certificate has not ended, and how many certificates a node got lately. At
//! the start, lines of certificates that ended more than [`KEPT_FOR`] ago are dropped; the rest is written anew, and takes the
//! old file's place whole or not at all. A last line that was cut off by a crash is of a certificate that nobody got.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Seconds: long enough for whoever looks into what a certificate was used for.
const KEPT_FOR: u64 = 30 * 24 * 3600;
/// Certificates of one node that are remembered, the newest.
const REMEMBERED: usize = 16;
const HOUR: u64 = 3600;

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Seconds since 1970.
    pub time: u64,
    pub cluster: String,
    pub node: String,
    #[serde(default)]
    pub node_uid: String,
    #[serde(default)]
    pub pod: String,
    #[serde(default)]
    pub pod_uid: String,
    pub serial: String,
    pub key_sha256: String,
    /// Seconds since 1970.
    pub not_after: u64,
    /// Who asked, as far as the network tells.
    pub peer: String,
}

/// What a certificate is to its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Novelty {
    /// None of this node is valid.
    First,
    /// For the key of the certificate that is valid.
    Renewal,
    /// For another key, and the node is another object of the same name.
    Replaced,
    /// For another key of the same node, while the certificate for the first is valid.
    SecondKey,
}

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot use the ledger of certificates {}: {source}; give --enrol-ledger a file on a disk that can be written", path.display())]
    File { path: PathBuf, source: io::Error },
}

#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    by_node: BTreeMap<String, Vec<Issued>>,
    issued: u64,
}

// === impl Ledger ===

impl Ledger {
    /// `now`: seconds since 1970.
    pub fn open(path: &Path, now: u64) -> Result<Self, LedgerError> {
        let failed = |source| LedgerError::File { path: path.to_owned(), source };
        let mut kept = Vec::new();
        let mut unreadable = 0_u64;
        match File::open(path) {
            Ok(file) => {
                for line in BufReader::new(file).split(b'\n') {
                    match serde_json::from_slice::<Issued>(&line.map_err(failed)?) {
                        Ok(issued) if issued.not_after.saturating_add(KEPT_FOR) >= now => kept.push(issued),
                        Ok(_) => {}
                        Err(_) => unreadable += 1,
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        if unreadable > 0 {
            tracing::warn!(file = %path.display(), unreadable, "lines of the ledger of certificates cannot be read; they are left out");
        }
        let file = rewrite(path, &kept).map_err(failed)?;
        let mut state = State { file, by_node: BTreeMap::new(), issued: 0 };
        for issued in kept {
            state.remember(issued);
        }
        Ok(Self { path: path.to_owned(), state: Mutex::new(state) })
    }

    /// What a certificate for this key would be.
    pub fn novelty(&self, node: &str, node_uid: &str, key_sha256: &str, now: u64) -> Novelty {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let of_node = state.by_node.get(node).map(Vec::as_slice).unwrap_or_default();
        let mut valid = of_node.iter().rev().filter(|issued| issued.not_after >= now);
        let Some(newest) = valid.next() else { return Novelty::First };
        if newest.key_sha256 == key_sha256 {
            return Novelty::Renewal;
        }
        let is_known = |uid: &str| !uid.is_empty();
        let replaced = is_known(node_uid) && is_known(&newest.node_uid) && newest.node_uid != node_uid;
        if replaced { Novelty::Replaced } else { Novelty::SecondKey }
    }

    /// Certificates that the node got within the last hour.
    pub fn within_the_hour(&self, node: &str, now: u64) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = |issued: &&Issued| issued.time.saturating_add(HOUR) > now;
        state.by_node.get(node).map_or(0, |of_node| of_node.iter().filter(recent).count())
    }

    /// Notes a certificate. When this returns it is on the disk.
    pub fn note(&self, issued: Issued) -> Result<(), LedgerError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |source| LedgerError::File { path: self.path.clone(), source };
        let line = line(&issued).map_err(failed)?;
        state.file.write_all(&line).and_then(|()| state.file.sync_data()).map_err(failed)?;
        state.issued += 1;
        state.remember(issued);
        Ok(())
    }

    /// Certificates issued since the start.
    pub fn issued(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).issued
    }
}

impl State {
    fn remember(&mut self, issued: Issued) {
        let of_node = self.by_node.entry(issued.node.clone()).or_default();
        of_node.push(issued);
        if of_node.len() > REMEMBERED {
            of_node.remove(0);
        }
    }
}

fn line(issued: &Issued) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(issued)?;
    line.push(b'\n');
    Ok(line)
}

fn rewrite(path: &Path, kept: &[Issued]) -> io::Result<File> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(&temporary)?;
    for issued in kept {
        file.write_all(&line(issued)?)?;
    }
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    if let Some(directory) = path.parent() {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        File::open(directory)?.sync_all()?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issued(node: &str, key: &str, time: u64) -> Issued {
        Issued {
            time,
            cluster: "guest".into(),
            node: node.into(),
            node_uid: "uid-1".into(),
            pod: "agent-x".into(),
            pod_uid: "pod-1".into(),
            serial: format!("{time:x}"),
            key_sha256: key.into(),
            not_after: time + 1000,
            peer: "127.0.0.1:1".into(),
        }
    }

    #[test]
    fn another_key_is_told_from_a_renewal_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("issued.jsonl");
        let ledger = Ledger::open(&path, 0).unwrap();
        assert_eq!(ledger.novelty("node-1", "uid-1", "key-1", 100), Novelty::First);
        ledger.note(issued("node-1", "key-1", 100)).unwrap();
        for ledger in [ledger, Ledger::open(&path, 200).unwrap()] {
            assert_eq!(ledger.novelty("node-1", "uid-1", "key-1", 200), Novelty::Renewal);
            assert_eq!(ledger.novelty("node-1", "uid-1", "key-2", 200), Novelty::SecondKey);
            assert_eq!(ledger.novelty("node-1", "", "key-2", 200), Novelty::SecondKey, "unknown is no excuse");
            assert_eq!(ledger.novelty("node-1", "uid-2", "key-2", 200), Novelty::Replaced);
            assert_eq!(ledger.novelty("node-1", "uid-1", "key-2", 1101), Novelty::First, "it has ended");
            assert_eq!(ledger.novelty("node-2", "uid-1", "key-2", 200), Novelty::First);
            assert_eq!(ledger.within_the_hour("node-1", 200), 1);
            assert_eq!(ledger.within_the_hour("node-1", 100 + HOUR), 0);
        }
    }

    #[test]
    fn a_line_cut_off_by_a_crash_and_old_lines_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("issued.jsonl");
        let ledger = Ledger::open(&path, 0).unwrap();
        ledger.note(issued("node-1", "key-1", 100)).unwrap();
        ledger.note(issued("node-2", "key-2", 100 + KEPT_FOR)).unwrap();
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(br#"{"time":7,"clus"#);
        std::fs::write(&path, &text).unwrap();
        let now = 1200 + KEPT_FOR;
        let ledger = Ledger::open(&path, now).unwrap();
        ledger.note(issued("node-3", "key-3", now)).unwrap();
        let lines = std::fs::read_to_string(&path).unwrap();
        let nodes: Vec<String> = lines.lines().map(|line| serde_json::from_str::<Issued>(line).unwrap().node).collect();
        assert_eq!(nodes, ["node-2", "node-3"]);
    }

    #[test]
    fn a_ledger_that_cannot_be_written_is_named() {
        let error = Ledger::open(Path::new("/proc/no/such/ledger"), 0).unwrap_err();
        assert!(error.to_string().contains("/proc/no/such/ledger"), "{error}");
    }

    #[test]
    fn the_memory_of_a_node_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("issued.jsonl"), 0).unwrap();
        for time in 0..100 {
            ledger.note(issued("node-1", &format!("key-{time}"), time)).unwrap();
        }
        assert_eq!(ledger.within_the_hour("node-1", 100), REMEMBERED);
        assert_eq!(ledger.issued(), 100);
    }
}
