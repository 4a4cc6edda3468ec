//! `export`: what came in, read out of a journal as files that `replay` takes.

use crate::journal::{Account, Entry, ExportError};
use clap::Args;
use prost::Message as _;
use seclog_journal::{Item, LogError, Reader};
use seclog_proto::batch::Unpacker;
use seclog_proto::rfc3339;
use seclog_proto::v1::node_record::Detail;
use seclog_proto::v1::{Batch, JournalEntry, NodeBatch, NodeLoss, NodeRecord};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Files that are open at once.
const OPEN: usize = 200;
const AUDIT: &str = "audit.jsonl";
const SPO: &str = "spo.jsonl";

#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// The journal's directory (serve's --journal). May be that of a correlator that runs.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Directory for the files, which is made: audit.jsonl, spo.jsonl, and node-<name>.jsonl for each node.
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// What came from this time on, RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub since: Option<u64>,
    /// What came before this time, RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub until: Option<u64>,
    #[command(flatten)]
    pub account: Account,
}

#[derive(Debug, thiserror::Error)]
pub enum ExportCommandError {
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error("the journal cannot be read: {0}")]
    Journal(#[from] LogError),
    #[error("cannot write {}: {source}; --to must name a directory that is not there yet", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("batches cannot be read: {0}")]
    Start(io::Error),
}

fn time(text: &str) -> Result<u64, String> {
    rfc3339::parse(text).ok_or_else(|| "no time like 2026-11-24T12:00:00Z".to_owned())
}

/// Files by their names, of which so many are open.
#[derive(Debug)]
struct Files {
    dir: PathBuf,
    open: BTreeMap<String, BufWriter<File>>,
}

/// Reads and writes. True: every entry could be read.
pub fn export(args: &ExportArgs) -> Result<bool, ExportCommandError> {
    let failed = |source| ExportCommandError::Write { path: args.to.clone(), source };
    DirBuilder::new().mode(0o700).create(&args.to).map_err(failed)?;
    let shown = |time: Option<u64>, otherwise: &str| time.map_or_else(|| otherwise.to_owned(), rfc3339::format);
    let (since, until) = (shown(args.since, "the beginning"), shown(args.until, "the end"));
    let what = format!("export: everything that came from {since} to {until}");
    args.account.give(&args.dir, what)?;
    let mut files = Files { dir: args.to.clone(), open: BTreeMap::new() };
    let mut unpacker = Unpacker::new().map_err(ExportCommandError::Start)?;
    let (mut records, mut events, mut lines, mut unread) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut reader = Reader::new(&args.dir, 1);
    while let Some(item) = reader.next(u64::MAX)? {
        let entry = match item {
            Item::Missing(missing) => {
                unread += missing.until - missing.from;
                continue;
            }
            Item::Entry(entry) => entry,
        };
        let Ok(JournalEntry { time_unix_ns: time, entry }) = JournalEntry::decode(entry.payload) else {
            unread += 1;
            continue;
        };
        if args.since.is_some_and(|since| time < since) || args.until.is_some_and(|until| time >= until) {
            continue;
        }
        match entry {
            Some(Entry::NodeBatch(NodeBatch { node, batch, repeated, .. })) => {
                let read = Batch::decode(batch).ok().and_then(|batch| unpacker.unpack(&batch).ok());
                let Some(read) = read else {
                    unread += 1;
                    continue;
                };
                let skip = usize::try_from(repeated).unwrap_or(usize::MAX);
                for record in read.iter().skip(skip) {
                    files.record(&node, record)?;
                    records += 1;
                }
            }
            Some(Entry::NodeLoss(NodeLoss { node, loss, .. })) => {
                let loss = NodeRecord { time_unix_ns: time, detail: loss.map(Detail::Loss), ..NodeRecord::default() };
                files.record(&node, &loss)?;
                records += 1;
            }
            Some(Entry::AuditEvents(audit)) => {
                for event in audit.events {
                    files.line(AUDIT.to_owned(), &one_line(event.to_vec()))?;
                    events += 1;
                }
            }
            Some(Entry::SpoLines(spo)) => {
                for line in spo.lines {
                    files.line(SPO.to_owned(), &line)?;
                    lines += 1;
                }
            }
            _ => {}
        }
    }
    files.close()?;
    tracing::info!(records, events, spo_lines = lines, unread, to = %args.to.display(), "export is done");
    if unread > 0 {
        tracing::warn!(unread, "entries are damaged or missing: seclog-correlator verify says which");
    }
    Ok(unread == 0)
}

/// An event as it came, without line breaks between its parts.
fn one_line(event: Vec<u8>) -> Vec<u8> {
    if !event.contains(&b'\n') {
        return event;
    }
    let compact = serde_json::from_slice::<Value>(&event).and_then(|event| serde_json::to_vec(&event));
    compact.unwrap_or(event)
}

// === impl Files ===

impl Files {
    fn record(&mut self, node: &str, record: &NodeRecord) -> Result<(), ExportCommandError> {
        let name = format!("node-{node}.jsonl");
        let failed = |dir: &Path| ExportCommandError::Write {
            path: dir.join(&name),
            source: io::Error::new(
                io::ErrorKind::InvalidData,
                "a record has no JSON form, or its node no name of a file",
            ),
        };
        let line = serde_json::to_vec(record).map_err(|_| failed(&self.dir))?;
        if !seclog_identity::is_name(node) {
            return Err(failed(&self.dir));
        }
        self.line(name, &line)
    }

    fn line(&mut self, name: String, line: &[u8]) -> Result<(), ExportCommandError> {
        let path = self.dir.join(&name);
        let failed = |source| ExportCommandError::Write { path: path.clone(), source };
        if self.open.len() >= OPEN && !self.open.contains_key(&name) {
            self.close()?;
        }
        let file = match self.open.entry(name) {
            std::collections::btree_map::Entry::Occupied(file) => file.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => {
                let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(failed)?;
                place.insert(BufWriter::new(file))
            }
        };
        file.write_all(line).and_then(|()| file.write_all(b"\n")).map_err(failed)
    }

    fn close(&mut self) -> Result<(), ExportCommandError> {
        for (name, mut file) in std::mem::take(&mut self.open) {
            let failed = |source| ExportCommandError::Write { path: self.dir.join(&name), source };
            file.flush().map_err(failed)?;
        }
        Ok(())
    }
}
