//! `replay`: the same join over recorded files, or over a journal, with the same result every time.

use crate::audit::{Feed, FeedCounters};
use crate::join::finding::Finding;
use crate::join::session::{Session, State};
use crate::join::{Config, Counters, Input, Join, Route};
use crate::journal::{Account, ExportError, FeedTotals};
use crate::outlet::{Format, Outlet, OutletError};
use crate::rejoin::{RejoinError, rejoin};
use crate::spo;
use crate::store::{Cursor, Limits, Store, StoreError};
use crate::timestamp::Timestamp;
use clap::Args;
use seclog_masking::{Rules, RulesError};
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
    /// Mask secrets in what was asked for, by the rules that the agents have (--mask): `default`, or a file.
    #[arg(long, value_name = "default|FILE")]
    pub mask: Option<String>,
    /// Audit events or EventLists, one JSON value a line; - for standard input. Repeatable.
    #[arg(long, value_name = "FILE")]
    pub audit: Vec<PathBuf>,
    /// Node records, one JSON object a line, as FILE or NODE=FILE; - for standard input. Repeatable.
    #[arg(long, value_name = "[NODE=]FILE")]
    pub node_records: Vec<String>,
    /// Output of SPO's JSON enricher, one JSON object a line; - for standard input. Repeatable.
    #[arg(long, value_name = "FILE")]
    pub spo: Vec<PathBuf>,
    /// The journal of a correlator (serve's --journal) in place of such files: every revision, as serve told it. May be that of
    /// a correlator that runs. An entry says who read it.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["audit", "node_records", "spo", "store"])]
    pub journal: Option<PathBuf>,
    #[command(flatten)]
    pub account: Account,
    /// For a journal: as it was with serve, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 45)]
    pub audit_lateness: u64,
    #[arg(long, value_enum, default_value = "json")]
    pub format: Format,
    /// Where to write the sessions; - for standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,
    /// Make a store of them in this directory, for `sessions`, `show` and `findings`.
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Outlet(#[from] OutletError),
    #[error(transparent)]
    Masking(#[from] RulesError),
    #[error("cannot make the store: {0}")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Rejoin(#[from] RejoinError),
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

/// A replay has no attic: what it tells does not depend on how much memory there is.
fn config(cluster: &str, masking: Option<Arc<Rules>>) -> Config {
    Config { masking, most_deed_bytes: usize::MAX, ..Config::new(cluster) }
}

/// Reads, joins, writes. True: all input was good.
pub fn replay(args: &ReplayArgs) -> Result<bool, ReplayError> {
    let masking = args.mask.as_deref().map(Rules::load).transpose()?.map(Arc::new);
    if let Some(dir) = &args.journal {
        let audit_lateness_ns = args.audit_lateness.saturating_mul(1_000_000_000);
        let join = Join::new(Config { audit_lateness_ns, ..config(&args.cluster, masking) });
        let outlet = Outlet::open(&args.output, args.format)?;
        args.account.give(dir, "replay: the sessions of all entries".to_owned())?;
        let FeedTotals { entries, missing, unreadable } = rejoin(dir, join, outlet)?;
        tracing::info!(entries, missing, unreadable, "replay is done");
        return Ok(missing == 0 && unreadable == 0);
    }
    let mut reader = Reader::with_config(config(&args.cluster, masking));
    reader.store = args.store.as_deref().map(|dir| new_store(dir, &args.cluster)).transpose()?;
    for path in &args.audit {
        reader.audit_file(path)?;
    }
    for argument in &args.node_records {
        let (node, path) = node_and_file(argument);
        reader.node_file(node, Path::new(path))?;
    }
    for path in &args.spo {
        reader.spo_file(path)?;
    }
    let store = reader.store.take();
    let replay = reader.finish();
    if let Some(store) = store {
        fill(store, &replay)?;
    }
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

/// Never that of a `serve`: its cursor is in another journal's numbers.
fn new_store(dir: &Path, cluster: &str) -> Result<Store, StoreError> {
    let store = Store::open(dir, cluster, Limits::NONE)?;
    if store.cursor() != Cursor::default() {
        return Err(StoreError::OfServe(dir.to_owned()));
    }
    Ok(store)
}

fn fill(mut store: Store, replay: &Replay) -> Result<(), StoreError> {
    // Recordings have no present; the last thing that was found is as good.
    let times = replay.sessions.iter().map(|session| session.start);
    let Timestamp(now) = times.chain(replay.findings.iter().map(|finding| finding.time)).max().unwrap_or_default();
    store.told(&replay.sessions, now)?;
    store.found(&replay.findings, now)?;
    store.commit(Cursor::default(), now)
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
    audit: Feed,
    malformed: u64,
    store: Option<Store>,
}

impl Reader {
    pub fn new(cluster: &str) -> Self {
        Self::with_config(config(cluster, None))
    }

    fn with_config(config: Config) -> Self {
        Self { join: Join::new(config), audit: Feed::default(), malformed: 0, store: None }
    }

    pub fn audit_file(&mut self, path: &Path) -> Result<(), ReplayError> {
        lines(path, |number, offset, line| match line {
            Ok(line) => self.audit_line(path, number, offset, line),
            Err(why) => self.skip(path, number, offset, why),
        })
    }

    fn audit_line(&mut self, path: &Path, number: u64, offset: u64, line: &[u8]) {
        let batch = self.audit.lines(line);
        for event in batch.events {
            event.inputs(Route::File).for_each(|input| drop(self.join.apply(input)));
        }
        for malformed in batch.malformed {
            self.skip(path, number, offset + malformed.offset as u64, &malformed.why.to_string());
        }
    }

    /// `node` may be empty: not known whose records these are.
    pub fn node_file(&mut self, node: &str, path: &Path) -> Result<(), ReplayError> {
        let node: Arc<str> = node.into();
        let mut stored = Ok(());
        lines(path, |number, offset, line| {
            let read = line.map_err(str::to_owned).and_then(|line| {
                serde_json::from_slice::<NodeRecord>(line).map_err(|error| format!("not a node record: {error}"))
            });
            match read {
                Ok(record) => {
                    if let (Some(store), Ok(())) = (&mut self.store, &stored) {
                        stored = store.record(&node, &record, 0, 0);
                    }
                    drop(self.join.apply(Input::Node { node: Arc::clone(&node), record }));
                }
                Err(why) => self.skip(path, number, offset, &why),
            }
        })?;
        Ok(stored?)
    }

    /// Lines of SPO's JSON enricher. What it says of itself between them is left out.
    pub fn spo_file(&mut self, path: &Path) -> Result<(), ReplayError> {
        lines(path, |number, offset, line| match line {
            Ok(line) if !spo::is_record(line) => {}
            Ok(line) => match spo::read(line) {
                Ok(line) => drop(self.join.apply(Input::Spo(Box::new(line)))),
                Err(why) => self.skip(path, number, offset, &why.to_string()),
            },
            Err(why) => self.skip(path, number, offset, why),
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
        Replay { sessions, findings, audit: self.audit.counters, join: self.join.counters(), malformed: self.malformed }
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
