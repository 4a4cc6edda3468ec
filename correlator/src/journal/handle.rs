//! What others have of the journal: where intakes put what came in, and what they share with the thread that writes.

use super::checkpoint::{Checkpoint, Signer};
use super::feed::Feed;
use super::positions::{Position, Positions, recover};
use super::writer::Writer;
use super::{Entry, JournalError};
use crate::intake::now;
use crate::telemetry::{self, Telemetry};
use prost::Message as _;
use seclog_journal::{Item, Log, LogError, Options, Reader, Recovery};
use seclog_proto::v1::{self, JournalEntry};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

/// Bytes that may wait to be written.
const WAITING_BYTES: usize = 128 << 20;
const WAITING: usize = 1024;

#[derive(Debug, Clone)]
pub struct JournalOptions {
    pub dir: PathBuf,
    /// Bytes of all its files, about: a segment or a group more.
    pub most_bytes: u64,
    pub segment_bytes: u64,
    pub checkpoint_every: Duration,
}

/// What appending came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Where the source stands now: for a batch that was there before, where it stood already.
    pub position: Position,
    /// So many sequences of the batch were there before.
    pub repeated: u64,
}

/// A journal that was opened.
#[derive(Debug)]
pub struct Opened {
    pub journal: Journal,
    /// What the join reads.
    pub feed: Feed,
    pub checkpoints: std::sync::mpsc::Receiver<Checkpoint>,
    pub writer: JoinHandle<()>,
    pub recovery: Recovery,
}

/// Where intakes put what came in. Clones are the same journal.
#[derive(Debug, Clone)]
pub struct Journal {
    sender: mpsc::Sender<Request>,
    shared: Arc<Shared>,
    runtime: Handle,
}

/// What the writer and everybody else share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) dir: PathBuf,
    room: Arc<Semaphore>,
    /// What is on the disk.
    pub(super) positions: Mutex<Positions>,
    pub(super) stamp: Mutex<Stamp>,
    /// The join has read every entry before this number.
    pub(super) read: AtomicU64,
    /// After a restart the join wants to begin here.
    pub(super) wanted: AtomicU64,
    pub(super) counters: Counters,
}

/// What the next entry gets.
#[derive(Debug, Default)]
pub(super) struct Stamp {
    pub(super) time: u64,
    pub(super) number: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) entries: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) deleted: AtomicU64,
    pub(super) held_bytes: AtomicU64,
    pub(super) next: AtomicU64,
}

/// An entry that is on its way.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<Receipt, JournalError>>);

#[derive(Debug)]
pub(super) struct Request {
    pub(super) entry: Entry,
    /// `None`: nobody waits.
    pub(super) done: Option<oneshot::Sender<Result<Receipt, JournalError>>>,
    pub(super) _room: OwnedSemaphorePermit,
}

// === impl Pending ===

impl Pending {
    /// Waits until the entry is on the disk. Loses nothing when it is dropped before.
    pub async fn written(&mut self) -> Result<Receipt, JournalError> {
        (&mut self.0).await.unwrap_or(Err(JournalError::Closed))
    }
}

// === impl Journal ===

impl Journal {
    /// Opens a journal, or begins one, and starts its thread. Within a tokio runtime.
    pub fn open(options: JournalOptions, signer: Option<Signer>, telemetry: &Telemetry) -> Result<Opened, LogError> {
        let JournalOptions { dir, most_bytes, segment_bytes, checkpoint_every } = options;
        let (log, recovery) = Log::open(&dir, Options { segment_bytes })?;
        let (positions, time) = recover(&log)?;
        let time = if time > now() { behind_journal(time) } else { time };
        let shared = Arc::new(Shared {
            dir: dir.clone(),
            room: Arc::new(Semaphore::new(WAITING_BYTES)),
            positions: Mutex::new(positions.clone()),
            stamp: Mutex::new(Stamp { time, number: log.next() }),
            read: AtomicU64::new(log.first()),
            wanted: AtomicU64::new(log.first()),
            counters: Counters::default(),
        });
        telemetry.collect(Arc::clone(&shared));
        let (sender, requests) = mpsc::channel(WAITING);
        let (synced, end) = watch::channel(log.synced());
        let (checkpoint_sender, checkpoints) = std::sync::mpsc::sync_channel(16);
        let runtime = Handle::current();
        let feed = Feed::new(Arc::clone(&shared), end, runtime.clone());
        let writer = Writer::new(
            (log, positions),
            (most_bytes, checkpoint_every),
            Arc::clone(&shared),
            synced,
            (signer, checkpoint_sender),
        );
        let failed = |source| LogError::Io { path: dir.clone(), source };
        let handle = runtime.clone();
        let writer =
            std::thread::Builder::new().name("journal".to_owned()).spawn(move || writer.run(&handle, requests));
        let writer = writer.map_err(failed)?;
        Ok(Opened { journal: Self { sender, shared, runtime }, feed, checkpoints, writer, recovery })
    }

    /// Puts an entry in the line; waits for room in it. Entries of one sender are written in the order in which they are
    /// sent.
    pub async fn send(&self, entry: Entry) -> Result<Pending, JournalError> {
        let (done, waits) = oneshot::channel();
        self.put(entry, Some(done)).await?;
        Ok(Pending(waits))
    }

    /// Returns when the entry is on the disk.
    pub async fn append(&self, entry: Entry) -> Result<Receipt, JournalError> {
        self.send(entry).await?.written().await
    }

    /// As [`Journal::append`], from a thread outside the runtime.
    pub fn append_blocking(&self, entry: Entry) -> Result<Receipt, JournalError> {
        self.runtime.block_on(self.append(entry))
    }

    /// For what its sender repeats or can do without: nobody waits, and it is synced with what comes next, or soon.
    pub async fn note(&self, entry: Entry) -> Result<(), JournalError> {
        self.put(entry, None).await
    }

    async fn put(
        &self,
        entry: Entry,
        done: Option<oneshot::Sender<Result<Receipt, JournalError>>>,
    ) -> Result<(), JournalError> {
        let bytes = entry.encoded_len().clamp(1, WAITING_BYTES);
        let room = Arc::clone(&self.shared.room).acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).await;
        let room = room.map_err(|_| JournalError::Closed)?;
        self.sender.send(Request { entry, done, _room: room }).await.map_err(|_| JournalError::Closed)
    }

    /// Writes the last entry, and ends the thread: everything that is sent after this is refused.
    pub async fn close(&self) -> Result<(), JournalError> {
        self.append(Entry::Stopped(v1::Stopped {})).await.map(drop)
    }

    /// Calls `each` with the time and the content of what is on the disk and came since a time, and of some before it.
    pub fn since(&self, time: u64, mut each: impl FnMut(u64, Entry)) -> Result<(), LogError> {
        let firsts = seclog_journal::firsts(&self.shared.dir)?;
        let begins_before = |first: &&u64| {
            let mut reader = Reader::new(&self.shared.dir, **first);
            let Ok(Some(Item::Entry(entry))) = reader.next(u64::MAX) else { return false };
            JournalEntry::decode(entry.payload).is_ok_and(|entry| entry.time_unix_ns < time)
        };
        let from = firsts.iter().rev().find(begins_before).or(firsts.first()).copied();
        let mut reader = Reader::new(&self.shared.dir, from.unwrap_or(1));
        while let Some(item) = reader.next(self.shared.next())? {
            let Item::Entry(entry) = item else { continue };
            if let Ok(JournalEntry { time_unix_ns, entry: Some(entry) }) = JournalEntry::decode(entry.payload) {
                each(time_unix_ns, entry);
            }
        }
        Ok(())
    }

    /// How far an epoch of a source has come, on the disk.
    pub fn position(&self, source: &str, epoch: u64) -> Option<Position> {
        lock(&self.shared.positions).get(source, epoch)
    }

    /// The epochs of a source that are known, the one in use last.
    pub fn positions(&self, source: &str) -> Vec<Position> {
        lock(&self.shared.positions).of(source).to_vec()
    }
}

// === impl Shared ===

impl Shared {
    /// From now on no entry has a time before this. Returns the number before which all that have one lie; 0 for a
    /// journal that is only read.
    pub(super) fn tick(&self, time: u64) -> u64 {
        let mut stamp = lock(&self.stamp);
        stamp.time = stamp.time.max(time);
        stamp.number
    }

    /// The number that the next entry gets.
    pub(super) fn next(&self) -> u64 {
        lock(&self.stamp).number
    }
}

impl telemetry::Collect for Arc<Shared> {
    fn collect(&self, to: &mut telemetry::Sample<'_>) -> std::fmt::Result {
        let Counters { entries, bytes, syncs, refused, deleted, held_bytes, next } = &self.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        to.counter("journal_entries", "Entries written to the journal and synced.", load(entries))?;
        to.counter("journal_written_bytes", "Bytes written to the journal and synced.", load(bytes))?;
        to.counter("journal_syncs", "Times that the journal was synced.", load(syncs))?;
        to.counter("journal_refused", "Entries that could not be written; their senders were told.", load(refused))?;
        to.counter("journal_deleted", "Entries that the journal's bound has deleted.", load(deleted))?;
        to.gauge("journal_bytes", "Bytes of the journal's files.", load(held_bytes))?;
        let behind = load(next).saturating_sub(self.read.load(Ordering::Relaxed));
        to.gauge("journal_unread", "Entries that the join has not read yet.", behind)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves nothing half done here.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The clock was set back since the journal was last written: times do not rise there.
fn behind_journal(time: u64) -> u64 {
    let seconds = time.saturating_sub(now()) / 1_000_000_000;
    tracing::warn!(seconds, "the journal's last entry is of the future: the clock was set back");
    now()
}

pub(super) fn dir_of(shared: &Shared) -> &Path {
    &shared.dir
}
