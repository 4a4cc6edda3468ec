//! How far each source has been taken in.

use super::{Entry, JournalError};
use prost::Message as _;
use seclog_journal::{Digest, Item, Log, LogError};
use seclog_proto::v1::{self, JournalEntry, NodeBatch, NodeLoss, SourcePosition};
use std::collections::BTreeMap;

/// Epochs remembered of each source; it has one at a time.
const EPOCHS: usize = 4;
/// Sources remembered. Clusters have far fewer nodes; over plain text names cost nothing to make up.
const SOURCES: usize = 20_000;

/// How far one epoch of a source has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub epoch: u64,
    /// The last sequence that the journal has.
    pub last: u64,
    /// Of the batch that ended there; zeros where none did.
    pub digest: Digest,
    pub watermark: u64,
}

/// Of each source its epochs, the one in use last.
#[derive(Debug, Clone, Default)]
pub(super) struct Positions(BTreeMap<String, Vec<Position>>);

/// What a node's stream is called among the sources.
pub fn node_source(node: &str) -> String {
    format!("node/{node}")
}

impl Positions {
    pub(super) fn get(&self, source: &str, epoch: u64) -> Option<Position> {
        self.0.get(source)?.iter().find(|position| position.epoch == epoch).copied()
    }

    /// The epochs of a source, the one in use last.
    pub(super) fn of(&self, source: &str) -> &[Position] {
        self.0.get(source).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn put(&mut self, source: &str, position: Position) -> Result<(), JournalError> {
        if self.0.len() >= SOURCES && !self.0.contains_key(source) {
            return Err(JournalError::TooMany(format!("more than {SOURCES} sources")));
        }
        let epochs = self.0.entry(source.to_owned()).or_default();
        epochs.retain(|known| known.epoch != position.epoch);
        epochs.push(position);
        if epochs.len() > EPOCHS {
            epochs.remove(0);
        }
        Ok(())
    }

    /// Takes over what is known of some sources.
    pub(super) fn copy(&mut self, from: &Self, sources: impl IntoIterator<Item = impl AsRef<str>>) {
        for source in sources {
            match from.0.get_key_value(source.as_ref()) {
                Some((source, epochs)) => drop(self.0.insert(source.clone(), epochs.clone())),
                None => drop(self.0.remove(source.as_ref())),
            }
        }
    }

    pub(super) fn encode(&self) -> Vec<SourcePosition> {
        let of = |(source, epochs): (&String, &Vec<Position>)| {
            epochs.iter().map(|position| position.encode(source.clone())).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of).collect()
    }
}

impl Position {
    pub(super) fn encode(&self, source: String) -> SourcePosition {
        let Self { epoch, last, digest, watermark } = *self;
        let digest = if digest == [0; 32] { Vec::new() } else { digest.to_vec() };
        SourcePosition { source, epoch, sequence: last, digest, watermark_unix_ns: watermark }
    }

    pub(super) fn decode(from: &SourcePosition) -> Self {
        Self {
            epoch: from.epoch,
            last: from.sequence,
            digest: from.digest.as_slice().try_into().unwrap_or_default(),
            watermark: from.watermark_unix_ns,
        }
    }
}

/// What the last segments say of positions and of the time.
pub(super) fn recover(log: &Log) -> Result<(Positions, u64), LogError> {
    let firsts: Vec<u64> = log.segments().map(|(first, _)| first).collect();
    for first in firsts.iter().rev() {
        let mut positions = Positions::default();
        let (mut time, mut is_complete) = (0, false);
        let mut reader = log.reader(*first);
        while let Some(item) = reader.next(log.next())? {
            let Item::Entry(entry) = item else { continue };
            // What is no message of ours is told by the feed, which reads it too.
            let Ok(decoded) = JournalEntry::decode(entry.payload) else { continue };
            time = decoded.time_unix_ns;
            is_complete |= entry.number == *first && matches!(decoded.entry, Some(Entry::Positions(_)));
            for (source, position) in decoded.entry.iter().flat_map(advances) {
                let _ = positions.put(&source, position);
            }
        }
        // Else its beginning is damaged, and the segment before is needed too.
        if is_complete || Some(first) == firsts.first() {
            return Ok((positions, time));
        }
    }
    Ok((Positions::default(), 0))
}

/// The positions that an entry moves.
pub(super) fn advances(entry: &Entry) -> Vec<(String, Position)> {
    let of = |position: &v1::SourcePosition| (position.source.clone(), Position::decode(position));
    match entry {
        Entry::Positions(positions) => positions.positions.iter().map(of).collect(),
        Entry::NodeBatch(batch) => vec![batch_position(batch)],
        Entry::NodeLoss(NodeLoss { node, epoch, loss, last_sequence }) => {
            let watermark = loss.as_ref().map_or(0, |loss| loss.from_unix_ns);
            let position = Position { epoch: *epoch, last: *last_sequence, digest: [0; 32], watermark };
            vec![(node_source(node), position)]
        }
        Entry::AuditEvents(events) => events.position.iter().map(of).collect(),
        Entry::AuditLoss(loss) => loss.position.iter().map(of).collect(),
        Entry::AuditSeen(seen) => seen.position.iter().map(of).collect(),
        Entry::SpoLines(lines) => lines.position.iter().map(of).collect(),
        Entry::NodeReport(_)
        | Entry::Deletion(_)
        | Entry::Stopped(_)
        | Entry::Export(_)
        | Entry::SharedIdentity(_)
        | Entry::AuditWatermark(_)
        | Entry::AuditRoute(_)
        | Entry::AuditFinding(_)
        | Entry::Certificate(_) => Vec::new(),
    }
}

pub(super) fn batch_position(batch: &NodeBatch) -> (String, Position) {
    let digest: Digest = batch.digest.as_slice().try_into().unwrap_or_default();
    let position =
        Position { epoch: batch.epoch, last: batch.last_sequence, digest, watermark: batch.watermark_unix_ns };
    (node_source(&batch.node), position)
}
