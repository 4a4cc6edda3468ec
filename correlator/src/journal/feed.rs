//! What the join reads: the journal's entries as its inputs.

use super::Entry;
use super::handle::{Shared, dir_of};
use crate::audit::{self, Digest};
use crate::intake::RateLimit;
use crate::join::finding::Code;
use crate::join::{Input, Route, Source};
use crate::spo;
use prost::Message as _;
use seclog_journal::{Item, LogError, Missing, Reader, Why};
use seclog_proto::batch::{BatchError, Unpacker};
use seclog_proto::v1::node_record::Detail;
use seclog_proto::v1::{
    AuditEvents, AuditFinding, AuditLoss, AuditRoute, AuditSeen, AuditSighting, AuditWatermark, Batch, Certificate,
    JournalEntry, Loss, NodeBatch, NodeLoss, NodeRecord, NodeReport, SharedIdentity, SpoLines,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// What comes next from a journal.
#[derive(Debug)]
pub enum Fed {
    /// An entry that came at this time, nanoseconds since 1970.
    Inputs { time: u64, inputs: Vec<Input> },
    /// The correlator that wrote this stopped here.
    Stopped { time: u64 },
    /// Nothing came in the time given.
    Idle,
    /// Everything was read, and nothing more is written.
    Ended,
}

/// What was read, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FeedTotals {
    pub entries: u64,
    /// Entries that are damaged or gone.
    pub missing: u64,
    /// Entries and batches that are no messages of ours.
    pub unreadable: u64,
}

/// A cursor in the journal.
#[derive(Debug)]
pub struct Feed {
    shared: Arc<Shared>,
    reader: Reader,
    end: watch::Receiver<u64>,
    runtime: Handle,
    decoder: Decoder,
}

/// Every input that a journal's files hold, in order, without a journal that runs.
#[derive(Debug)]
pub struct Files {
    reader: Reader,
    decoder: Decoder,
}

/// Entries to inputs.
#[derive(Debug)]
struct Decoder {
    unpacker: Option<Unpacker>,
    audit: audit::Feed,
    totals: FeedTotals,
    last_time: u64,
    told: RateLimit,
}

// === impl Feed ===

impl Feed {
    pub(super) fn new(shared: Arc<Shared>, end: watch::Receiver<u64>, runtime: Handle) -> Self {
        let reader = Reader::new(dir_of(&shared), shared.read.load(Ordering::Relaxed));
        Self { shared, reader, end, runtime, decoder: Decoder::new() }
    }

    /// Goes on with this entry, or with the first that is still there.
    pub fn begin_at(&mut self, number: u64) {
        let number = number.min(self.end()).max(self.shared.read.load(Ordering::Relaxed));
        self.reader = Reader::new(dir_of(&self.shared), number);
        self.shared.read.store(number, Ordering::Release);
    }

    /// Number of the entry that comes next.
    pub fn position(&self) -> u64 {
        self.reader.position()
    }

    /// Number behind the last entry that is on the disk.
    pub fn end(&self) -> u64 {
        *self.end.borrow()
    }

    pub fn totals(&self) -> FeedTotals {
        self.decoder.totals
    }

    /// Nothing more is written.
    pub fn is_closed(&self) -> bool {
        self.end.has_changed().is_err()
    }

    /// After a restart the entries from this one on are wanted again.
    pub fn want_from(&self, number: u64) {
        self.shared.wanted.store(number, Ordering::Release);
    }

    /// From now on no entry comes with a time before this. What has one lies before the number that is returned.
    pub fn tick(&self, time: u64) -> u64 {
        self.shared.tick(time)
    }

    /// Whether everything before a number was read, of what has not been given up meanwhile.
    pub fn has_read(&self, number: u64) -> bool {
        self.position() >= number.min(self.shared.next())
    }

    /// The next entry, if it is there.
    pub fn try_next(&mut self) -> Result<Option<Fed>, LogError> {
        loop {
            let end = *self.end.borrow_and_update();
            // What was read before this one is done with.
            self.shared.read.store(self.reader.position(), Ordering::Release);
            match self.reader.next(end)? {
                Some(Item::Entry(entry)) => {
                    if let Some(fed) = self.decoder.entry(entry.number, entry.payload) {
                        return Ok(Some(fed));
                    }
                }
                Some(Item::Missing(missing)) => return Ok(Some(self.decoder.missing(missing))),
                None => return Ok(None),
            }
        }
    }

    /// Waits until there is more to read. False: there never will be.
    pub async fn more(&mut self) -> bool {
        self.end.changed().await.is_ok() || self.reader.position() < self.end()
    }

    /// The next entry; waits for it until then. From a thread outside the runtime.
    pub fn next(&mut self, until: Instant) -> Result<Fed, LogError> {
        let runtime = self.runtime.clone();
        loop {
            if let Some(fed) = self.try_next()? {
                return Ok(fed);
            }
            match runtime.block_on(async { tokio::time::timeout_at(until.into(), self.more()).await }) {
                Ok(true) => {}
                Ok(false) => return Ok(Fed::Ended),
                Err(_) => return Ok(Fed::Idle),
            }
        }
    }
}

// === impl Files ===

impl Files {
    pub fn open(dir: &Path) -> Self {
        Self { reader: Reader::new(dir, 1), decoder: Decoder::new() }
    }

    /// What comes next; `None`: that was all.
    pub fn read(&mut self) -> Result<Option<Fed>, LogError> {
        while let Some(item) = self.reader.next(u64::MAX)? {
            match item {
                Item::Entry(entry) => {
                    if let Some(fed) = self.decoder.entry(entry.number, entry.payload) {
                        return Ok(Some(fed));
                    }
                }
                Item::Missing(missing) => return Ok(Some(self.decoder.missing(missing))),
            }
        }
        Ok(None)
    }

    pub fn totals(&self) -> FeedTotals {
        self.decoder.totals
    }
}

// === impl Decoder ===

impl Decoder {
    fn new() -> Self {
        let unpacker = Unpacker::new().inspect_err(|error| tracing::error!("zstd cannot be used: {error}")).ok();
        Self {
            unpacker,
            audit: audit::Feed::default(),
            totals: FeedTotals::default(),
            last_time: 0,
            told: RateLimit::default(),
        }
    }

    /// `None`: nothing in it is for the join.
    fn entry(&mut self, number: u64, payload: &[u8]) -> Option<Fed> {
        self.totals.entries += 1;
        let JournalEntry { time_unix_ns: time, entry } = match JournalEntry::decode(payload) {
            Ok(decoded) => decoded,
            Err(error) => {
                self.unreadable(number, &error.to_string());
                return Some(self.gap(1, format!("entry {number} of the journal cannot be read: {error}")));
            }
        };
        self.last_time = time;
        let inputs = match entry? {
            Entry::NodeBatch(batch) => self.batch(number, time, batch),
            Entry::NodeReport(report) => of_report(report),
            Entry::NodeLoss(NodeLoss { node, loss, .. }) => vec![lost(&node.into(), loss.unwrap_or_default())],
            Entry::AuditEvents(events) => self.audit(number, time, events),
            Entry::AuditLoss(AuditLoss { source, reason, from_unix_ns, until_unix_ns, count, count_known, .. }) => {
                let (from, until, count) = (from_unix_ns, until_unix_ns, count_known.then_some(count));
                vec![Input::AuditLoss { source, reason, from, until, count }]
            }
            Entry::SharedIdentity(SharedIdentity { node, peers, epochs: _ }) => {
                vec![Input::SharedIdentity { node: node.into(), peers, time }]
            }
            Entry::AuditSeen(seen) => self.seen(number, seen),
            Entry::SpoLines(SpoLines { lines, .. }) => self.spo(number, &lines),
            Entry::AuditWatermark(AuditWatermark { until_unix_ns: until }) => {
                vec![Input::Watermark { source: Source::Audit, until }]
            }
            Entry::AuditRoute(AuditRoute { route, silent_since_unix_ns }) => {
                let route = self.route(number, &route)?;
                let silent_since = (silent_since_unix_ns > 0).then_some(silent_since_unix_ns);
                vec![Input::AuditRoute { route, silent_since }]
            }
            Entry::AuditFinding(AuditFinding { code, time_unix_ns: time, subject, text, records }) => {
                let Some(code) = Code::of(&code) else {
                    self.unreadable(number, &format!("a finding that is not known: {code:?}"));
                    return None;
                };
                vec![Input::AuditFinding { code, time, subject, text, records }]
            }
            Entry::Certificate(Certificate { node, serial, peer, second_key: true, .. }) => {
                vec![Input::SecondKey { node: node.into(), serial, peer, time }]
            }
            Entry::Stopped(_) => return Some(Fed::Stopped { time }),
            Entry::Positions(_) | Entry::Deletion(_) | Entry::Export(_) | Entry::Certificate(_) => return None,
        };
        Some(Fed::Inputs { time, inputs })
    }

    fn batch(&mut self, number: u64, time: u64, entry: NodeBatch) -> Vec<Input> {
        let NodeBatch { node, batch, first_sequence, last_sequence, repeated, watermark_unix_ns, .. } = entry;
        let node: Arc<str> = node.into();
        let covered = last_sequence.saturating_sub(first_sequence) + 1;
        let read = Batch::decode(batch).map_err(BatchError::from).and_then(|batch| match &mut self.unpacker {
            Some(unpacker) => unpacker.unpack(&batch),
            None => Err(BatchError::Compression(batch.compression)),
        });
        let mut inputs = match read {
            Ok(records) => {
                // Losses that stand for all of it are not split.
                let skip = if records.len() as u64 == covered { repeated } else { 0 };
                let skip = usize::try_from(skip).unwrap_or(usize::MAX);
                let inputs = records.into_iter().skip(skip);
                inputs.map(|record| Input::Node { node: Arc::clone(&node), record }).collect()
            }
            Err(error) => {
                self.unreadable(number, &format!("batch of node {node:?}: {error}"));
                let loss = Loss {
                    source: "journal".to_owned(),
                    reason: format!("a batch of the agent cannot be read: {error}"),
                    count: covered.saturating_sub(repeated),
                    count_known: true,
                    from_unix_ns: watermark_unix_ns.min(time),
                    until_unix_ns: time,
                };
                vec![lost(&node, loss)]
            }
        };
        if watermark_unix_ns > 0 {
            inputs.push(Input::Watermark { source: Source::Node(node), until: watermark_unix_ns });
        }
        inputs
    }

    fn audit(&mut self, number: u64, time: u64, events: AuditEvents) -> Vec<Input> {
        let AuditEvents { route, source, events, position: _, late } = events;
        let mut inputs = Vec::new();
        let Some(route) = self.route(number, &route) else { return inputs };
        for event in events {
            match self.audit.event(&event) {
                Ok(kept) => inputs.extend(kept.into_iter().flat_map(|mut event| {
                    if late {
                        event.set_late();
                    }
                    event.inputs(route)
                })),
                Err(error) => {
                    self.unreadable(number, &format!("audit event: {error}"));
                    inputs.push(Input::AuditLoss {
                        source: source.clone(),
                        reason: "events that could not be read".to_owned(),
                        from: time,
                        until: time,
                        count: Some(1),
                    });
                }
            }
        }
        inputs
    }

    fn seen(&mut self, number: u64, seen: AuditSeen) -> Vec<Input> {
        let AuditSeen { route, sightings, .. } = seen;
        let Some(route) = self.route(number, &route) else { return Vec::new() };
        let input = |sighting: AuditSighting| {
            let digest = Digest(sighting.digest.as_slice().try_into().ok()?);
            Some(Input::AuditSeen { route, digest, stage_time: sighting.stage_time_unix_ns })
        };
        sightings.into_iter().filter_map(input).collect()
    }

    fn spo(&mut self, number: u64, lines: &[impl AsRef<[u8]>]) -> Vec<Input> {
        let mut inputs = Vec::with_capacity(lines.len());
        for line in lines {
            match spo::read(line.as_ref()) {
                Ok(line) => inputs.push(Input::Spo(Box::new(line))),
                Err(error) => self.unreadable(number, &error.to_string()),
            }
        }
        inputs
    }

    fn route(&mut self, number: u64, route: &str) -> Option<Route> {
        let known = route.parse().ok();
        if known.is_none() {
            self.unreadable(number, &format!("audit events by a route that is not known: {route:?}"));
        }
        known
    }

    fn missing(&mut self, missing: Missing) -> Fed {
        let Missing { from, until, why, .. } = missing;
        let count = until - from;
        let why = match why {
            Why::Damaged => "damaged",
            Why::Gone => "gone",
        };
        self.totals.missing += count;
        tracing::error!(from, until, why, "entries of the journal are not there any more");
        self.gap(count, format!("{count} entries of the journal are {why}"))
    }

    /// Anything may have stood there, about now.
    fn gap(&self, count: u64, reason: String) -> Fed {
        let time = self.last_time;
        let loss =
            Input::AuditLoss { source: "journal".to_owned(), reason, from: time, until: time, count: Some(count) };
        Fed::Inputs { time, inputs: vec![loss] }
    }

    fn unreadable(&mut self, number: u64, why: &str) {
        self.totals.unreadable += 1;
        if let Some(held_back) = self.told.pass() {
            tracing::error!(entry = number, held_back, "in the journal, and cannot be read: {why}");
        }
    }
}

fn of_report(report: NodeReport) -> Vec<Input> {
    let NodeReport { node, watermark_unix_ns, sent_unix_ns, received_unix_ns, check } = report;
    let node: Arc<str> = node.into();
    let check = check.map(|status| Input::NodeCheck { node: Arc::clone(&node), status });
    let clock = (sent_unix_ns > 0).then(|| Input::Clock {
        node: Arc::clone(&node),
        sent: sent_unix_ns,
        received: received_unix_ns,
    });
    let watermark = (watermark_unix_ns > 0)
        .then(|| Input::Watermark { source: Source::Node(Arc::clone(&node)), until: watermark_unix_ns });
    check.into_iter().chain(clock).chain(watermark).collect()
}

fn lost(node: &Arc<str>, loss: Loss) -> Input {
    let record = NodeRecord { detail: Some(Detail::Loss(loss)), ..NodeRecord::default() };
    Input::Node { node: Arc::clone(node), record }
}
