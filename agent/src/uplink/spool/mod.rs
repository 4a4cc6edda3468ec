//! Records until the correlator has them on its disk.
//!
//! What always holds:
//! - Records become frames (encoded batches) as they come in. A frame is never changed: what is sent is what lies here.
//! - Sequences of an epoch start at 1 and have no gaps. What the spool no longer has when its turn comes (dropped for room,
//!   damaged) goes out as a loss record that stands for exactly those sequences.
//! - A frame leaves only when the correlator has acknowledged it with its digest. A digest that differs means that the two
//!   do not speak of the same records: the frames then get a new epoch and are sent again.
//! - Only what is synced is sent. So what is acknowledged is here as well after any crash, and no sequence is used twice.
//!   Where the end of the spool is not known after a crash, a new epoch begins.
//! - Bytes are bounded. What a full spool does is the administrator's choice ([`WhenFull`]), and what it refuses is
//!   counted in the ledger, a file of its own, until there is room for the loss record.
//! - Without a directory frames lie in memory, bounded just so, and the status says that a restart loses them.

mod cursor;
mod ledger;
mod store;

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use bytes::Bytes;
use clap::ValueEnum;
use prost::Message as _;
use seclog_journal::LogError;
use seclog_proto::{
    batch::Packer,
    v1::{HookStatus, NodeRecord},
};
use tokio::sync::Notify;

pub use cursor::{Cursor, Disagreement, Frame};
use ledger::{Ledger, Refused};
use store::Store;

use super::Batch;
use crate::record;

/// Records and bytes of one frame.
const FRAME_RECORDS: usize = 1000;
const FRAME_BYTES: usize = 512 << 10;
/// zstd's level: the fastest that still finds what records repeat.
const LEVEL: i32 = 1;
/// Time from one sync of the disk to the next.
const SYNC_EVERY: Duration = Duration::from_millis(50);

/// What a full spool does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WhenFull {
    /// Refuses what is new.
    KeepOldest,
    /// Drops what is oldest.
    KeepNewest,
}

#[derive(Clone, Debug)]
pub struct SpoolConfig {
    /// `None`: in memory.
    pub dir: Option<PathBuf>,
    pub most_bytes: u64,
    pub when_full: WhenFull,
}

#[derive(Debug)]
pub struct Spool {
    boot_id: String,
    config: SpoolConfig,
    state: Mutex<State>,
    changed: Notify,
    /// Wakes the thread that syncs.
    dirty: Option<mpsc::SyncSender<()>>,
}

#[derive(Debug)]
struct State {
    packer: Packer,
    store: Store,
    ledger: Ledger,
    next_sequence: u64,
    watermark_unix_ns: u64,
    counters: Vec<(&'static str, u64)>,
    totals: Totals,
    /// Frames behind which a watermark is safe, oldest first.
    marks: VecDeque<(u64, u64)>,
    safe_unix_ns: u64,
    /// Everything before this time was acknowledged, so that what is dropped is of later. 0: not known.
    dropped_since_unix_ns: u64,
    /// Why frames cannot be written now.
    trouble: Option<String>,
    closed: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    refused: u64,
    acknowledged: u64,
    /// Told as lost in place of what was dropped or damaged.
    lost: u64,
    epochs: u64,
}

// === impl Spool ===

impl Spool {
    /// Opens what the run before left. An error where the directory cannot be used at all.
    pub fn open(config: SpoolConfig, boot_id: String) -> Result<Arc<Self>, LogError> {
        let (store, ledger, next_sequence, end_lost) = match &config.dir {
            None => (Store::memory(), Ledger::in_memory(), 1, false),
            Some(dir) => {
                let (store, next, end_lost) = Store::open(dir, config.most_bytes)?;
                (store, Ledger::open(dir), next, end_lost)
            }
        };
        let failed = |source| LogError::Io { path: PathBuf::from("zstd"), source };
        let state = State {
            packer: Packer::new(LEVEL).map_err(failed)?,
            store,
            ledger,
            next_sequence,
            watermark_unix_ns: 0,
            counters: Vec::new(),
            totals: Totals::default(),
            marks: VecDeque::new(),
            safe_unix_ns: 0,
            dropped_since_unix_ns: 0,
            trouble: None,
            closed: false,
        };
        let (dirty, wakes) = mpsc::sync_channel(1);
        let dirty = config.dir.is_some().then_some(dirty);
        let spool = Arc::new(Self { boot_id, config, state: Mutex::new(state), changed: Notify::new(), dirty });
        if spool.dirty.is_some() {
            let weak = Arc::downgrade(&spool);
            let sync = move || {
                while wakes.recv().is_ok() {
                    let Some(spool) = weak.upgrade() else { return };
                    spool.sync();
                    drop(spool);
                    thread::sleep(SYNC_EVERY);
                }
            };
            thread::Builder::new().name("spool-sync".into()).spawn(sync).map_err(failed)?;
        }
        if end_lost {
            tracing::warn!("the end of the spool was lost in a crash; a loss record says so");
            let now = crate::clock::unix_ns();
            let reason = "the end of the spool was damaged: records that were not sent may have been there".to_owned();
            let detail = record::loss("spool", reason, None, 0, now);
            let id = format!("{}:{:x}:end", spool.boot_id, spool.state().store.epoch());
            let record = NodeRecord {
                id,
                boot_id: spool.boot_id.clone(),
                time_unix_ns: now,
                detail: Some(detail),
                ..Default::default()
            };
            spool.push(Batch { records: vec![record], ..Batch::default() });
        }
        Ok(spool)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves nothing half done here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes records in, or counts them as refused.
    pub fn push(&self, batch: Batch) {
        let Batch { records, watermark_unix_ns, counters } = batch;
        let mut state = self.state();
        state.watermark_unix_ns = state.watermark_unix_ns.max(watermark_unix_ns);
        if let Some(counters) = counters {
            state.counters = counters;
        }
        let mut rest = records;
        while !rest.is_empty() {
            let mut bytes = 0;
            let mut fits = |record: &NodeRecord| {
                bytes += record.encoded_len();
                bytes <= FRAME_BYTES
            };
            let count = rest.iter().take(FRAME_RECORDS).take_while(|record| fits(record)).count().max(1);
            let after = rest.split_off(count);
            let watermark = if after.is_empty() { state.watermark_unix_ns } else { 0 };
            self.keep(&mut state, std::mem::replace(&mut rest, after), watermark);
        }
        state.mark();
        drop(state);
        self.wake();
    }

    fn wake(&self) {
        match &self.dirty {
            // Full: it will look anyway.
            Some(dirty) => drop(dirty.try_send(())),
            None => self.changed.notify_one(),
        }
    }

    fn keep(&self, state: &mut State, mut records: Vec<NodeRecord>, watermark_unix_ns: u64) {
        let (count, from, until) = span(&records);
        let refused_before = state.ledger.refused();
        if let Some(refused) = refused_before {
            records.insert(0, self.loss_record(state.ledger.losses(), refused));
        }
        match self.append(state, records, watermark_unix_ns) {
            Ok(()) => {
                state.trouble = None;
                if refused_before.is_some() {
                    state.ledger.told();
                }
            }
            Err(why) => {
                state.totals.refused += count;
                state.ledger.refuse(Refused { count, from_unix_ns: from, until_unix_ns: until });
                if state.trouble.replace(why.clone()).is_none() {
                    tracing::warn!(why, "records are refused; a loss record will say how many");
                }
            }
        }
    }

    /// One frame more, or why not.
    fn append(&self, state: &mut State, records: Vec<NodeRecord>, watermark_unix_ns: u64) -> Result<(), String> {
        let count = records.len() as u64;
        let first = state.next_sequence;
        let frame = state.packer.pack(first, count, records, watermark_unix_ns);
        let frame = frame.map_err(|error| format!("records cannot be compressed: {error}"))?;
        let most = self.config.most_bytes;
        while state.store.bytes() + frame.len() as u64 > most {
            let why = || format!("the spool of {most} bytes is full: the correlator does not take records");
            if self.config.when_full == WhenFull::KeepOldest {
                return Err(why());
            }
            self.drop_oldest(state).ok_or_else(why)?;
        }
        match state.store.append(&frame) {
            Ok(()) => {}
            Err(error) if error.is_full() && self.config.when_full == WhenFull::KeepNewest => {
                self.drop_oldest(state).ok_or_else(|| error.to_string())?;
                state.store.append(&frame).map_err(|error| error.to_string())?;
            }
            Err(error) => return Err(error.to_string()),
        }
        state.next_sequence += count;
        Ok(())
    }

    /// `None`: there is nothing that may go.
    fn drop_oldest(&self, state: &mut State) -> Option<()> {
        match state.store.drop_oldest() {
            Ok(records) => {
                let count = records?;
                if count > 0 {
                    let until_unix_ns = crate::clock::unix_ns();
                    state.ledger.refuse(Refused { count, from_unix_ns: 0, until_unix_ns });
                }
                Some(())
            }
            Err(error) => {
                tracing::warn!(%error, "the oldest records cannot be dropped from the spool");
                None
            }
        }
    }

    fn loss_record(&self, number: u64, refused: Refused) -> NodeRecord {
        let Refused { count, from_unix_ns, until_unix_ns } = refused;
        let reason = "the spool was full, or could not be written: records were refused".to_owned();
        NodeRecord {
            id: format!("{}:spool:u{number}", self.boot_id),
            boot_id: self.boot_id.clone(),
            time_unix_ns: until_unix_ns,
            detail: Some(record::loss("uplink_buffer", reason, Some(count), from_unix_ns, until_unix_ns)),
            ..Default::default()
        }
    }

    /// A frame that stands for sequences that are not here any more.
    pub(super) fn loss_frame(&self, first: u64, last: u64) -> io::Result<Bytes> {
        let mut state = self.state();
        let (count, now) = (last - first + 1, crate::clock::unix_ns());
        let from = state.dropped_since_unix_ns;
        let reason = "the spool dropped records for room, or they were damaged on its disk".to_owned();
        let record = NodeRecord {
            id: format!("{}:{:x}:s{first}-{last}", self.boot_id, state.store.sending()),
            boot_id: self.boot_id.clone(),
            time_unix_ns: now,
            detail: Some(record::loss("spool", reason, Some(count), from, now)),
            ..Default::default()
        };
        state.totals.lost += count;
        state.packer.pack(first, count, vec![record], 0)
    }

    /// Waits for the disk, and lets the stream know.
    fn sync(&self) {
        let unsynced = self.state().store.unsynced();
        let result = match &unsynced {
            Ok(Some(unsynced)) => unsynced.sync(),
            Ok(None) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        let mut state = self.state();
        match (&unsynced, result) {
            (Ok(Some(unsynced)), Ok(())) => state.store.was_synced(unsynced),
            (_, Ok(())) => {}
            (_, Err(error)) => {
                // Their sequences are given again, to records that are written after them.
                let lost = state.store.could_not_sync();
                let from = state.safe_unix_ns;
                if let Some((first, next)) = lost {
                    let count = next - first;
                    state.next_sequence = first;
                    state.totals.refused += count;
                    let until_unix_ns = state.watermark_unix_ns;
                    state.ledger.refuse(Refused { count, from_unix_ns: from, until_unix_ns });
                }
                state.trouble = Some(format!("the spool's disk cannot be synced: {error}"));
                tracing::warn!(%error, "the spool's disk cannot be synced; records are refused");
            }
        }
        state.settle_marks();
        drop(state);
        self.changed.notify_one();
    }

    /// No more records come.
    pub fn close(&self) {
        let mut state = self.state();
        if let Some(refused) = state.ledger.refused() {
            let record = self.loss_record(state.ledger.losses(), refused);
            // Small, and the last: it may exceed the bound.
            let first = state.next_sequence;
            let frame = state.packer.pack(first, 1, vec![record], 0);
            if let Ok(frame) = frame
                && state.store.append(&frame).is_ok()
            {
                state.next_sequence += 1;
                state.ledger.told();
            }
        }
        state.closed = true;
        drop(state);
        self.sync();
    }

    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Everything that was taken in is acknowledged.
    pub fn is_empty(&self) -> bool {
        let state = self.state();
        state.store.is_empty()
    }

    /// The epoch that is to be sent first, where its frames lie (`None`: in memory), and how far it was acknowledged by
    /// what is known here.
    pub fn sending(&self) -> (u64, Option<PathBuf>, u64) {
        let state = self.state();
        let epoch = state.store.sending();
        (epoch, state.store.directory(), state.ledger.acknowledged(epoch))
    }

    /// The sequence that comes next in an epoch, where it is the one that is written to.
    pub(super) fn next_sequence(&self, epoch: u64) -> Option<u64> {
        let state = self.state();
        (epoch == state.store.epoch()).then_some(state.next_sequence)
    }

    /// Frames up to this one are with the correlator: they can go.
    pub fn acknowledge(&self, frame: &Frame) {
        let mut state = self.state();
        let (number, sequence) = (frame.number, frame.last);
        let watermark = Batch::watermark_of(&frame.bytes);
        state.dropped_since_unix_ns = state.dropped_since_unix_ns.max(watermark);
        let epoch = state.store.sending();
        // With those before it whose acknowledgements were lost on the way.
        state.totals.acknowledged += sequence.saturating_sub(state.ledger.acknowledged(epoch));
        if let Err(error) = state.store.acknowledge(number) {
            tracing::warn!(%error, "what was acknowledged cannot be deleted from the spool yet");
        }
        state.ledger.acknowledge(epoch, sequence);
        state.settle_marks();
    }

    /// The epoch that was being sent is sent. False: it is the one that is written to.
    pub(super) fn next_epoch(&self) -> bool {
        self.state().store.next_epoch()
    }

    /// The correlator has something else at these positions: everything that is left gets positions of its own.
    pub(super) fn disagreed(&self) {
        let mut state = self.state();
        state.totals.epochs += 1;
        let state = &mut *state;
        match state.store.rename() {
            Ok((before, after)) => state.ledger.renamed(before, after),
            Err(error) => tracing::error!(%error, "the spool could not be given a new epoch"),
        }
    }

    /// The watermark, if everything that was taken in is before `number`, and the counters.
    pub(super) fn idle(&self, epoch: u64, number: u64) -> (u64, Vec<(&'static str, u64)>) {
        let state = self.state();
        let all_sent = epoch == state.store.epoch() && number >= state.store.next();
        let watermark = if all_sent && state.ledger.refused().is_none() { state.watermark_unix_ns } else { 0 };
        (watermark, [state.counters.as_slice(), &counters(&state)].concat())
    }

    /// Wall clock time up to which every record is on a disk, the correlator's or this node's. 0: not known yet.
    pub fn safe_unix_ns(&self) -> u64 {
        self.state().safe_unix_ns
    }

    /// The spool's own counters.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        counters(&self.state())
    }

    /// How records are kept, and what is wrong with that.
    pub fn status(&self) -> HookStatus {
        let state = self.state();
        let (active, reason) = match (&self.config.dir, &state.trouble) {
            (Some(dir), None) => (true, format!("{}, at most {} bytes", dir.display(), self.config.most_bytes)),
            (Some(_), Some(trouble)) => (false, trouble.clone()),
            (None, _) => (false, "records wait in memory: a restart or a crash loses them (--spool-dir)".to_owned()),
        };
        HookStatus { name: "spool/disk".into(), active, reason }
    }

    /// Returns when something can be sent, or the spool was closed.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Number behind the last frame of an epoch that may be sent.
    pub(super) fn limit(&self, epoch: u64) -> u64 {
        self.state().store.limit(epoch)
    }

    /// The first frame in memory from this number on, and its number.
    pub(super) fn frame(&self, number: u64) -> Option<(u64, Bytes)> {
        let state = self.state();
        let number = number.max(state.store.oldest());
        Some((number, state.store.frame(number)?))
    }
}

fn counters(state: &State) -> Vec<(&'static str, u64)> {
    let Totals { refused, acknowledged, lost, epochs } = state.totals;
    vec![
        ("uplink_refused", refused),
        ("uplink_acknowledged", acknowledged),
        ("uplink_lost", lost),
        ("uplink_disagreements", epochs),
        ("spool_bytes", state.store.bytes()),
    ]
}

/// How many, and from when to when.
fn span(records: &[NodeRecord]) -> (u64, u64, u64) {
    let times = || records.iter().map(|record| record.time_unix_ns);
    (records.len() as u64, times().min().unwrap_or(0), times().max().unwrap_or(0))
}

// === impl State ===

impl State {
    /// The watermark holds once every frame that there is now is safe.
    fn mark(&mut self) {
        if self.ledger.refused().is_some() {
            return;
        }
        let last = self.store.next() - 1;
        match self.marks.back_mut() {
            Some((number, watermark)) if *number == last => *watermark = self.watermark_unix_ns,
            _ => self.marks.push_back((last, self.watermark_unix_ns)),
        }
        self.settle_marks();
    }

    fn settle_marks(&mut self) {
        while let Some((number, watermark)) = self.marks.front().copied()
            && number < self.store.safe()
        {
            self.safe_unix_ns = watermark;
            self.marks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests;
