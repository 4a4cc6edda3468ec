//! `replay`: the same join over recorded files, with the same result every time.

use crate::audit::{self, FeedCounters};
use crate::join::finding::Finding;
use crate::join::session::{Session, State};
use crate::join::{Config, Counters, Input, Join, Route};
use crate::outlet::{Format, Outlet, OutletError};
use clap::Args;
use seclog_proto::v1::NodeRecord;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longer lines are no audit events and no node records of ours.
const LONGEST_LINE: u64 = 64 << 20;
/// Malformed lines that are named one by one; the rest is counted.
const NAMED: u64 = 20;

#[derive(Debug, Clone, Args)]
pub struct ReplayArgs {
    /// Name of the cluster that the records are of.
    #[arg(long)]
    pub cluster: String,
    /// Audit events or EventLists, one JSON value a line; - for standard input. Repeatable.
    #[arg(long, value_name = "FILE")]
    pub audit: Vec<PathBuf>,
    /// Node records, one JSON object a line, as FILE or NODE=FILE; - for standard input. Repeatable.
    #[arg(long, value_name = "[NODE=]FILE")]
    pub node_records: Vec<String>,
    #[arg(long, value_enum, default_value = "json")]
    pub format: Format,
    /// Where to write the sessions; - for standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Outlet(#[from] OutletError),
}

/// What a replay found.
#[derive(Debug, Default)]
pub struct Replay {
    /// In the order of their start, then of their id.
    pub sessions: Vec<Session>,
    /// In the order of their time, then of their id, each once.
    pub findings: Vec<Finding>,
    pub audit: FeedCounters,
    pub join: Counters,
    pub malformed: u64,
}

/// Reads, joins, writes. True: all input was good.
pub fn replay(args: &ReplayArgs) -> Result<bool, ReplayError> {
    let mut reader = Reader::new(&args.cluster);
    for path in &args.audit {
        reader.audit_file(path)?;
    }
    for argument in &args.node_records {
        let (node, path) = node_and_file(argument);
        reader.node_file(node, Path::new(path))?;
    }
    let replay = reader.finish();
    let mut outlet = Outlet::open(&args.output, args.format)?;
    outlet.write(&replay.sessions)?;
    outlet.write_findings(&replay.findings)?;
    let Counters { node_records, outside_roots, probes, .. } = replay.join;
    tracing::info!(
        sessions = replay.sessions.len(),
        audit_events = replay.audit.events,
        irrelevant = replay.audit.irrelevant_total(),
        node_records,
        outside_roots,
        probes,
        malformed = replay.malformed,
        "replay is done"
    );
    Ok(replay.malformed == 0)
}

/// A file of that very name is meant before a node and a file.
fn node_and_file(argument: &str) -> (&str, &str) {
    match argument.split_once('=') {
        Some((node, file)) if !Path::new(argument).exists() && !node.contains('/') => (node, file),
        _ => ("", argument),
    }
}

/// Feeds files to a join.
#[derive(Debug)]
pub struct Reader {
    join: Join,
    audit: FeedCounters,
    malformed: u64,
}

impl Reader {
    pub fn new(cluster: &str) -> Self {
        Self { join: Join::new(Config::new(cluster)), audit: FeedCounters::default(), malformed: 0 }
    }

    pub fn audit_file(&mut self, path: &Path) -> Result<(), ReplayError> {
        lines(path, |number, offset, line| match line {
            Ok(line) => self.audit_line(path, number, offset, line),
            Err(why) => self.skip(path, number, offset, why),
        })
    }

    fn audit_line(&mut self, path: &Path, number: u64, offset: u64, line: &[u8]) {
        let items = match audit::items(line) {
            Ok(items) => items,
            Err(error) => return self.skip(path, number, offset, &error.to_string()),
        };
        for item in items.iter() {
            match self.audit.read(item.json, Route::File) {
                Ok(inputs) => inputs.into_iter().for_each(|input| drop(self.join.apply(input))),
                Err(error) => self.skip(path, number, offset + item.offset as u64, &error.to_string()),
            }
        }
    }

    /// `node` may be empty: not known whose records these are.
    pub fn node_file(&mut self, node: &str, path: &Path) -> Result<(), ReplayError> {
        let node: Arc<str> = node.into();
        lines(path, |number, offset, line| {
            let read = line.map_err(str::to_owned).and_then(|line| {
                serde_json::from_slice::<NodeRecord>(line).map_err(|error| format!("not a node record: {error}"))
            });
            match read {
                Ok(record) => drop(self.join.apply(Input::Node { node: Arc::clone(&node), record })),
                Err(why) => self.skip(path, number, offset, &why),
            }
        })
    }

    /// Records that are already read.
    pub fn apply(&mut self, input: Input) {
        self.join.apply(input);
    }

    fn skip(&mut self, path: &Path, number: u64, offset: u64, why: &str) {
        self.malformed += 1;
        if self.malformed <= NAMED {
            tracing::warn!("{}:{number}: skipped at byte {offset}: {why}", path.display());
        } else if self.malformed == NAMED + 1 {
            tracing::warn!("further malformed lines are only counted");
        }
    }

    pub fn finish(mut self) -> Replay {
        let mut sessions = self.join.finish();
        sessions.retain(|session| session.state != State::Superseded);
        sessions.sort_by_key(|session| (session.start, session.id));
        let mut findings = self.join.take_findings();
        findings.sort_by_key(|finding| (finding.time, finding.id));
        findings.dedup_by_key(|finding| finding.id);
        Replay { sessions, findings, audit: self.audit, join: self.join.counters(), malformed: self.malformed }
    }
}

/// Calls with line number (from 1), byte offset and the line without its end; blank lines are left out.
fn lines(path: &Path, mut each: impl FnMut(u64, u64, Result<&[u8], &str>)) -> Result<(), ReplayError> {
    let failed = |source| ReplayError::Read { path: path.to_owned(), source };
    let input: Box<dyn Read> =
        if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(path).map_err(failed)?) };
    let mut input = BufReader::with_capacity(1 << 16, input);
    let (mut number, mut offset) = (0, 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut length = (&mut input).take(LONGEST_LINE).read_until(b'\n', &mut line).map_err(failed)? as u64;
        if length == 0 {
            return Ok(());
        }
        number += 1;
        if length == LONGEST_LINE && line.last() != Some(&b'\n') {
            line.clear();
            length += input.skip_until(b'\n').map_err(failed)? as u64;
            each(number, offset, Err("longer than 64 MiB"));
        } else if !line.trim_ascii().is_empty() {
            each(number, offset, Ok(line.trim_ascii_end()));
        }
        offset += length;
    }
}
