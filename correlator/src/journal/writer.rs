//! The thread that writes.

use super::checkpoint::{Checkpoint, Signer};
use super::handle::{Receipt, Request, Shared, lock};
use super::positions::{Position, Positions, advances, batch_position, node_source};
use super::{Entry, JournalError};
use crate::intake::{RateLimit, now};
use prost::Message as _;
use seclog_journal::Log;
use seclog_proto::v1::{self, JournalEntry};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

/// Bytes written and synced at once, about.
const GROUP_BYTES: usize = 8 << 20;
/// How long what nobody waits for may lie before it is synced.
const LAZY: Duration = Duration::from_millis(200);

pub(super) struct Writer {
    log: Log,
    most_bytes: u64,
    /// With what is being written.
    staged: Positions,
    shared: Arc<Shared>,
    synced: watch::Sender<u64>,
    told: RateLimit,
    told_wanted: RateLimit,
    signer: Option<Signer>,
    checkpoints: std::sync::mpsc::SyncSender<Checkpoint>,
    checkpoint_every: Duration,
    checkpoint_at: Instant,
    checkpointed: u64,
    /// The next entry is the first of its segment.
    is_new_segment: bool,
    /// Deleted, and no entry says so yet: the disk was full.
    unsaid: Option<Range<u64>>,
    /// Behind what an entry says is deleted, and could not be yet.
    undeleted: Option<u64>,
}

/// What becomes of a request.
enum Fate {
    /// It is written in this group.
    Written(Receipt),
    /// It was there before: where the source stands.
    Known(Receipt),
    Refused(JournalError),
}

impl Writer {
    pub(super) fn new(
        (log, staged): (Log, Positions),
        (most_bytes, checkpoint_every): (u64, Duration),
        shared: Arc<Shared>,
        synced: watch::Sender<u64>,
        (signer, checkpoints): (Option<Signer>, std::sync::mpsc::SyncSender<Checkpoint>),
    ) -> Self {
        let is_new_segment = log.segments().next_back().is_some_and(|(first, _)| first == log.next());
        Self {
            log,
            most_bytes,
            staged,
            shared,
            synced,
            told: RateLimit::default(),
            told_wanted: RateLimit::default(),
            signer,
            checkpoints,
            checkpoint_every,
            checkpoint_at: Instant::now(),
            checkpointed: 0,
            is_new_segment,
            unsaid: None,
            undeleted: None,
        }
    }

    pub(super) fn run(mut self, runtime: &Handle, mut requests: mpsc::Receiver<Request>) {
        loop {
            let Some(group) = self.gather(runtime, &mut requests) else {
                self.stop();
                break;
            };
            if self.write(group) {
                break;
            }
            if self.checkpoint_at.elapsed() >= self.checkpoint_every {
                self.checkpoint();
            }
        }
        self.checkpoint();
    }

    /// What waits, once there is something. `None`: nobody can send any more. Empty: nothing came for a while.
    fn gather(&self, runtime: &Handle, requests: &mut mpsc::Receiver<Request>) -> Option<Vec<Request>> {
        let within = |wait: Duration, requests: &mut mpsc::Receiver<Request>| {
            runtime.block_on(async { tokio::time::timeout(wait, requests.recv()).await })
        };
        let first = match within(self.checkpoint_every.min(Duration::from_secs(1)), requests) {
            Ok(first) => first?,
            Err(_) => return Some(Vec::new()),
        };
        let (mut bytes, mut waited_for) = (first.entry.encoded_len(), first.done.is_some());
        let mut group = vec![first];
        let until = Instant::now() + LAZY;
        while bytes < GROUP_BYTES {
            let request = match requests.try_recv() {
                Ok(request) => request,
                Err(_) if waited_for => break,
                Err(_) => match within(until.saturating_duration_since(Instant::now()), requests) {
                    Ok(Some(request)) => request,
                    _ => break,
                },
            };
            bytes += request.entry.encoded_len();
            waited_for |= request.done.is_some();
            group.push(request);
        }
        Some(group)
    }

    /// True: this was the end.
    fn write(&mut self, mut group: Vec<Request>) -> bool {
        if group.is_empty() {
            return false;
        }
        // The last entry is the last.
        group.sort_by_key(|request| matches!(request.entry, Entry::Stopped(_)));
        let is_end = group.last().is_some_and(|request| matches!(request.entry, Entry::Stopped(_)));
        let mut touched = BTreeSet::new();
        let mut fates = Vec::with_capacity(group.len());
        let (entries, senders): (Vec<Entry>, Vec<_>) =
            group.into_iter().map(|Request { entry, done, _room }| (entry, (done, _room))).unzip();
        let mut written = Vec::with_capacity(entries.len());
        for mut entry in entries {
            let fate = self.judge(&mut entry, &mut touched);
            if let Fate::Written(_) = fate {
                written.push(entry);
            }
            fates.push(fate);
        }
        let result = if written.is_empty() { Ok(()) } else { self.commit(written) };
        let mut durable = lock(&self.shared.positions);
        match &result {
            Ok(()) => durable.copy(&self.staged, &touched),
            Err(_) => self.staged.copy(&durable, &touched),
        }
        drop(durable);
        if let Err(error) = &result
            && let Some(held_back) = self.told.pass()
        {
            tracing::error!(held_back, "{error}; senders are told to come again");
        }
        for ((done, _room), fate) in senders.into_iter().zip(fates) {
            let answer = match (fate, &result) {
                (Fate::Refused(error), _) => Err(error),
                // Where the source stands is what was known before, if this group is not written.
                (Fate::Written(_) | Fate::Known(_), Err(error)) => Err(error.clone()),
                (Fate::Written(receipt) | Fate::Known(receipt), Ok(())) => Ok(receipt),
            };
            if answer.is_err() {
                self.shared.counters.refused.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(done) = done {
                let _ = done.send(answer);
            }
        }
        is_end
    }

    /// Whether the entry follows from what its source has sent.
    fn judge(&mut self, entry: &mut Entry, touched: &mut BTreeSet<String>) -> Fate {
        let nowhere = Position { epoch: 0, last: 0, digest: [0; 32], watermark: 0 };
        let (source, mut position, repeated) = match entry {
            Entry::NodeBatch(batch) => {
                let (source, position) = batch_position(batch);
                let last = self.staged.get(&source, batch.epoch);
                let expected = last.map_or(batch.first_sequence, |last| last.last.saturating_add(1));
                if let Some(last) = last.filter(|last| position.last <= last.last) {
                    let repeated = position.last - batch.first_sequence + 1;
                    return Fate::Known(Receipt { position: last, repeated });
                }
                if batch.first_sequence > expected {
                    return Fate::Refused(JournalError::Gap { expected });
                }
                batch.repeated = expected - batch.first_sequence;
                (source, position, batch.repeated)
            }
            Entry::NodeLoss(loss) => {
                let source = node_source(&loss.node);
                let last = self.staged.get(&source, loss.epoch);
                if let Some(last) = last.filter(|last| loss.last_sequence <= last.last) {
                    return Fate::Known(Receipt { position: last, repeated: 0 });
                }
                let watermark = last.map_or(0, |last| last.watermark);
                (source, Position { epoch: loss.epoch, last: loss.last_sequence, digest: [0; 32], watermark }, 0)
            }
            _ => {
                for (source, position) in advances(entry) {
                    if let Err(error) = self.staged.put(&source, position) {
                        return Fate::Refused(error);
                    }
                    touched.insert(source);
                }
                return Fate::Written(Receipt { position: nowhere, repeated: 0 });
            }
        };
        if let Some(before) = self.staged.get(&source, position.epoch) {
            position.watermark = position.watermark.max(before.watermark);
        }
        if let Err(error) = self.staged.put(&source, position) {
            return Fate::Refused(error);
        }
        touched.insert(source);
        Fate::Written(Receipt { position, repeated })
    }

    fn commit(&mut self, entries: Vec<Entry>) -> Result<(), JournalError> {
        let bytes: u64 = entries.iter().map(|entry| entry.encoded_len() as u64 + Log::overhead()).sum();
        let mut all = Vec::with_capacity(entries.len() + 2);
        if self.log.is_segment_full() {
            self.log.roll().map_err(|error| JournalError::of(&error))?;
            self.is_new_segment = true;
        }
        if let Some(until) = self.undeleted {
            self.delete(until)?;
            self.undeleted = None;
        }
        let until = self.to_delete(bytes)?;
        if self.is_new_segment {
            let positions = lock(&self.shared.positions).encode();
            all.push(Entry::Positions(v1::Positions { positions }));
        }
        all.extend(self.deletion(until));
        all.extend(entries);
        let mut stamp = lock(&self.shared.stamp);
        stamp.time = stamp.time.max(now());
        stamp.number = self.log.next() + all.len() as u64;
        let time_unix_ns = stamp.time;
        drop(stamp);
        let count = all.len() as u64;
        let encode = |entry| JournalEntry { time_unix_ns, entry: Some(entry) }.encode_to_vec();
        let payloads: Vec<Vec<u8>> = all.into_iter().map(encode).collect();
        let written = self.log.append(&payloads).and_then(|()| self.log.sync());
        if let Err(error) = written {
            lock(&self.shared.stamp).number = self.log.next();
            // No room even to say so: what is to go goes now, and the next group says it.
            if let Some(until) = until.filter(|_| error.is_full()) {
                let from = self.unsaid.as_ref().map_or(self.log.first(), |unsaid| unsaid.start);
                self.delete(until)?;
                self.unsaid = Some(from..until);
            }
            return Err(JournalError::of(&error));
        }
        self.is_new_segment = false;
        self.unsaid = None;
        let _ = self.synced.send(self.log.synced());
        if let Some(until) = until
            && let Err(error) = self.delete(until)
        {
            tracing::error!("the journal's oldest segments cannot be deleted: {error}");
            self.undeleted = Some(until);
        }
        let counters = &self.shared.counters;
        counters.entries.fetch_add(count, Ordering::Relaxed);
        let bytes: u64 = payloads.iter().map(|payload| payload.len() as u64 + Log::overhead()).sum();
        counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        counters.syncs.fetch_add(1, Ordering::Relaxed);
        counters.held_bytes.store(self.log.bytes(), Ordering::Relaxed);
        counters.next.store(self.log.next(), Ordering::Relaxed);
        Ok(())
    }

    /// Behind the oldest segments that must go for so many bytes more. They go when an entry that says so is on the disk:
    /// otherwise a kill between the two would look as if somebody else had taken them away.
    fn to_delete(&self, bytes: u64) -> Result<Option<u64>, JournalError> {
        let (read, wanted) = (self.shared.read.load(Ordering::Acquire), self.shared.wanted.load(Ordering::Acquire));
        let mut excess = (self.log.bytes() + bytes).saturating_sub(self.most_bytes);
        let mut until = None;
        let mut segments = self.log.segments();
        let mut oldest = segments.next();
        while excess > 0
            && let (Some((_, length)), Some(next)) = (oldest, segments.next())
        {
            let (second, _) = next;
            if second > read {
                let most = self.most_bytes;
                return Err(JournalError::Full(format!(
                    "{most} bytes (--journal-bytes) are full of what the join has not read yet"
                )));
            }
            (until, oldest, excess) = (Some(second), Some(next), excess.saturating_sub(length));
        }
        if until.is_some_and(|until| until > wanted)
            && let Some(held_back) = self.told_wanted.pass()
        {
            tracing::warn!(
                held_back,
                "--journal-bytes is too small: entries of sessions that are still open are deleted, and a restart would \
                 not know them"
            );
        }
        Ok(until)
    }

    fn delete(&mut self, until: u64) -> Result<(), JournalError> {
        let from = self.log.first();
        self.log.trim(until).map_err(|error| JournalError::of(&error))?;
        self.shared.counters.deleted.fetch_add(until.saturating_sub(from), Ordering::Relaxed);
        tracing::info!(from, until, "the journal has reached its bound: its oldest entries are deleted");
        Ok(())
    }

    /// The entry that says what is deleted.
    fn deletion(&self, until: Option<u64>) -> Option<Entry> {
        let unsaid = self.unsaid.clone();
        let until = until.or(unsaid.as_ref().map(|unsaid| unsaid.end))?;
        let from = unsaid.map_or(self.log.first(), |unsaid| unsaid.start);
        let reason = format!("--journal-bytes {}", self.most_bytes);
        Some(Entry::Deletion(v1::Deletion { from, until, reason }))
    }

    /// The last entry of an orderly end.
    fn stop(&mut self) {
        if let Err(error) = self.commit(vec![Entry::Stopped(v1::Stopped {})]) {
            tracing::warn!("the stop is not in the journal: {error}");
        }
    }

    /// Signs where the chain stands, if it has moved.
    fn checkpoint(&mut self) {
        self.checkpoint_at = Instant::now();
        let (number, chain) = self.log.synced_chain();
        let Some(signer) = self.signer.as_ref().filter(|_| number > self.checkpointed) else { return };
        let checkpoint = signer.sign(number, chain, now());
        // The outlet is stuck: the next checkpoint covers what this one would.
        if self.checkpoints.try_send(checkpoint).is_ok() {
            self.checkpointed = number;
        }
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Writer").field("log", &self.log).finish_non_exhaustive()
    }
}
