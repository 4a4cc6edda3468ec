//! Where frames lie: in a directory for each epoch, or in memory.

use std::{
    collections::VecDeque,
    fs,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use prost::Message as _;
use seclog_journal::{Item, Log, LogError, Options, Reader, Unsynced};
use seclog_proto::v1::Batch;

/// An epoch's frames on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Rises from epoch to epoch of one spool.
    number: u64,
    pub(super) epoch: u64,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one, for as long as the agent runs")]
pub(super) enum Store {
    Disk {
        dir: PathBuf,
        /// Earlier epochs that are not acknowledged yet, oldest first, with number and bytes behind their last frame.
        older: VecDeque<(Place, u64, u64)>,
        place: Place,
        log: Log,
        /// Frames before this number of the epoch that is being sent are acknowledged.
        acknowledged: u64,
        /// Of each frame that is not synced yet its number, its first sequence and the one behind its last.
        unsynced: VecDeque<(u64, u64, u64)>,
    },
    Memory {
        epoch: u64,
        frames: VecDeque<Bytes>,
        /// Number of `frames[0]`.
        first: u64,
        bytes: u64,
    },
}

/// Random, not 0.
fn random_epoch() -> u64 {
    // The standard library's hash keys are random for each process and differ from hasher to hasher.
    RandomState::new().build_hasher().finish().max(1)
}

// === impl Place ===

impl Place {
    fn next(number: u64) -> Self {
        Self { number, epoch: random_epoch() }
    }

    pub(super) fn path(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{:010}-{:016x}", self.number, self.epoch))
    }

    fn of(name: &str) -> Option<Self> {
        let (number, epoch) = name.split_once('-')?;
        Some(Self { number: number.parse().ok()?, epoch: u64::from_str_radix(epoch, 16).ok()? })
    }
}

// === impl Store ===

impl Store {
    pub(super) fn memory() -> Self {
        Self::Memory { epoch: random_epoch(), frames: VecDeque::new(), first: 1, bytes: 0 }
    }

    /// The store, the sequence that comes next, and whether the end of what the run before wrote is lost.
    pub(super) fn open(dir: &Path, most_bytes: u64) -> Result<(Self, u64, bool), LogError> {
        let failed = |source| LogError::Io { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        let mut places = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed)? {
            places.extend(entry.map_err(failed)?.file_name().to_str().and_then(Place::of));
        }
        places.sort_by_key(|place| place.number);
        // Many small segments: they are what is let go of.
        let options = Options { segment_bytes: (most_bytes / 16).clamp(64 << 10, 4 << 20) };
        let last = places.pop();
        let number = last.as_ref().map_or(0, |last| last.number);
        let (mut older, mut end_lost, mut current) = (VecDeque::new(), false, None);
        for place in places {
            older.extend(Self::left(dir, place)?);
        }
        if let Some(place) = last {
            let (log, recovery) = Log::open(&place.path(dir), options)?;
            // A torn tail was written by a process that was killed; it was not synced, and so not sent.
            if recovery.lost_end || recovery.damaged > 0 {
                tracing::warn!(?recovery, "the spool is damaged; what is whole is sent");
                end_lost = recovery.lost_end;
                drop(log);
                older.extend(Self::left(dir, place)?);
            } else {
                match last_sequence(&log)? {
                    Some(next) => current = Some((place, log, next)),
                    // All of it was acknowledged and let go of, or its last frame says nothing of its sequences.
                    None => {
                        end_lost = log.first() != log.next();
                        drop(log);
                        older.extend(Self::left(dir, place)?);
                    }
                }
            }
        }
        let (place, log, next) = match current {
            Some(current) => current,
            None => {
                let place = Place::next(number + 1);
                let (log, _) = Log::open(&place.path(dir), options)?;
                (place, log, 1)
            }
        };
        let store = Self::Disk { dir: dir.to_owned(), older, place, log, acknowledged: 0, unsynced: VecDeque::new() };
        Ok((store, next, end_lost))
    }

    /// An earlier epoch with frames, number and bytes behind its last; none where there are none.
    fn left(dir: &Path, place: Place) -> Result<Option<(Place, u64, u64)>, LogError> {
        let path = place.path(dir);
        let (log, _) = Log::open(&path, Options::default())?;
        let (next, bytes, is_empty) = (log.next(), log.bytes(), log.first() == log.next());
        drop(log);
        if is_empty {
            fs::remove_dir_all(&path).map_err(|source| LogError::Io { path, source })?;
            return Ok(None);
        }
        Ok(Some((place, next, bytes)))
    }

    /// The epoch that is written to.
    pub(super) fn epoch(&self) -> u64 {
        match self {
            Self::Disk { place, .. } => place.epoch,
            Self::Memory { epoch, .. } => *epoch,
        }
    }

    /// The epoch that is sent first.
    pub(super) fn sending(&self) -> u64 {
        match self {
            Self::Disk { older, place, .. } => older.front().map_or(place.epoch, |(place, ..)| place.epoch),
            Self::Memory { epoch, .. } => *epoch,
        }
    }

    /// Where the frames of the epoch that is sent first lie; `None`: in memory.
    pub(super) fn directory(&self) -> Option<PathBuf> {
        match self {
            Self::Disk { dir, older, place, .. } => Some(older.front().map_or(place, |(place, ..)| place).path(dir)),
            Self::Memory { .. } => None,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Disk { older, log, .. } => log.bytes() + older.iter().map(|(.., bytes)| bytes).sum::<u64>(),
            Self::Memory { bytes, .. } => *bytes,
        }
    }

    /// Number of the next frame of the epoch that is written to.
    pub(super) fn next(&self) -> u64 {
        match self {
            Self::Disk { log, .. } => log.next(),
            Self::Memory { frames, first, .. } => first + frames.len() as u64,
        }
    }

    /// Frames of the epoch that is written to are safe before this number: on a disk, or acknowledged.
    pub(super) fn safe(&self) -> u64 {
        match self {
            Self::Disk { log, .. } => log.synced(),
            Self::Memory { first, .. } => *first,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Disk { older, log, acknowledged, .. } => {
                older.is_empty() && (*acknowledged >= log.next() || log.first() == log.next())
            }
            Self::Memory { frames, .. } => frames.is_empty(),
        }
    }

    /// Number behind the last frame of an epoch that may be sent.
    pub(super) fn limit(&self, of: u64) -> u64 {
        match self {
            Self::Disk { older, place, log, .. } => match older.iter().find(|(place, ..)| place.epoch == of) {
                Some((_, next, _)) => *next,
                None if place.epoch == of => log.synced(),
                None => 0,
            },
            Self::Memory { .. } => self.next(),
        }
    }

    pub(super) fn frame(&self, number: u64) -> Option<Bytes> {
        match self {
            Self::Disk { .. } => None,
            Self::Memory { frames, first, .. } => {
                frames.get(usize::try_from(number.checked_sub(*first)?).ok()?).cloned()
            }
        }
    }

    /// Number of the oldest frame in memory.
    pub(super) fn oldest(&self) -> u64 {
        match self {
            Self::Disk { .. } => 1,
            Self::Memory { first, .. } => *first,
        }
    }

    pub(super) fn append(&mut self, frame: &Bytes) -> Result<(), LogError> {
        match self {
            Self::Disk { log, unsynced, .. } => {
                let number = log.next();
                log.append(&[frame])?;
                let (first, next) = sequences(frame);
                unsynced.push_back((number, first, next));
            }
            Self::Memory { frames, bytes, .. } => {
                *bytes += frame.len() as u64;
                frames.push_back(frame.clone());
            }
        }
        Ok(())
    }

    /// Makes room. `None`: there is nothing to let go of but what was written last. Else how many records went of which the
    /// holes in an epoch's sequences will not tell.
    pub(super) fn drop_oldest(&mut self) -> Result<Option<u64>, LogError> {
        match self {
            Self::Disk { dir, older, log, .. } => {
                if let Some((place, ..)) = older.pop_front() {
                    let path = place.path(dir);
                    let mut records = 0;
                    let mut reader = Reader::new(&path, 1);
                    while let Some(item) = reader.next(u64::MAX)? {
                        if let Item::Entry(entry) = item {
                            let (first, next) = sequences(entry.payload);
                            records += next - first;
                        }
                    }
                    fs::remove_dir_all(&path).map_err(|source| LogError::Io { path, source })?;
                    return Ok(Some(records));
                }
                let Some((second, _)) = log.segments().nth(1) else { return Ok(None) };
                log.trim(second)?;
                Ok(Some(0))
            }
            Self::Memory { frames, first, bytes, .. } => {
                let Some(frame) = frames.pop_front() else { return Ok(None) };
                *first += 1;
                *bytes -= frame.len() as u64;
                Ok(Some(0))
            }
        }
    }

    /// Frames of the epoch that is sent first are acknowledged up to this one.
    pub(super) fn acknowledge(&mut self, number: u64) -> Result<(), LogError> {
        match self {
            Self::Disk { older, log, acknowledged, .. } => {
                *acknowledged = number + 1;
                if older.is_empty() {
                    if *acknowledged >= log.next() && log.bytes() > 1 << 20 {
                        match log.roll() {
                            // No room even for a new segment.
                            Err(error) if error.is_full() => log.clear()?,
                            rolled => rolled?,
                        }
                    }
                    log.trim(*acknowledged)?;
                }
            }
            Self::Memory { frames, first, bytes, .. } => {
                while *first <= number
                    && let Some(frame) = frames.pop_front()
                {
                    *first += 1;
                    *bytes -= frame.len() as u64;
                }
            }
        }
        Ok(())
    }

    /// The earliest epoch is sent and acknowledged. False: it is the one that is written to.
    pub(super) fn next_epoch(&mut self) -> bool {
        let Self::Disk { dir, older, acknowledged, .. } = self else { return false };
        let Some((place, ..)) = older.pop_front() else { return false };
        *acknowledged = 0;
        let path = place.path(dir);
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "what was acknowledged cannot be deleted from the spool");
        }
        true
    }

    /// Gives the epoch that is sent first another name. Returns the one before and the one after.
    pub(super) fn rename(&mut self) -> Result<(u64, u64), LogError> {
        match self {
            Self::Disk { dir, older, place, log, acknowledged, .. } => {
                *acknowledged = 0;
                let before = older.front().map_or(&*place, |(place, ..)| place).clone();
                let after = Place { epoch: random_epoch(), ..before };
                match older.front_mut() {
                    Some((place, ..)) => {
                        let path = before.path(dir);
                        fs::rename(&path, after.path(dir)).map_err(|source| LogError::Io { path, source })?;
                        *place = after.clone();
                    }
                    None => {
                        log.move_to(&after.path(dir))?;
                        *place = after.clone();
                    }
                }
                Ok((before.epoch, after.epoch))
            }
            Self::Memory { epoch, .. } => {
                let before = std::mem::replace(epoch, random_epoch());
                Ok((before, *epoch))
            }
        }
    }

    pub(super) fn unsynced(&self) -> io::Result<Option<Unsynced>> {
        match self {
            Self::Disk { log, .. } => log.unsynced(),
            Self::Memory { .. } => Ok(None),
        }
    }

    pub(super) fn was_synced(&mut self, done: &Unsynced) {
        if let Self::Disk { log, unsynced, .. } = self {
            log.was_synced(done);
            while unsynced.front().is_some_and(|(number, ..)| *number < log.synced()) {
                unsynced.pop_front();
            }
        }
    }

    /// Takes back what was written and not synced. Returns the first of its sequences, and the one behind its last.
    pub(super) fn could_not_sync(&mut self) -> Option<(u64, u64)> {
        let Self::Disk { log, unsynced, .. } = self else { return None };
        log.could_not_sync();
        let lost = unsynced.iter().find(|(number, ..)| *number >= log.next()).map(|(_, first, _)| *first);
        let end = std::mem::take(unsynced).back().map(|(.., next)| *next);
        lost.zip(end)
    }
}

/// A frame's first sequence, and the one behind its last; nothing where it is none.
pub(super) fn sequences(frame: &[u8]) -> (u64, u64) {
    let batch = Batch::decode(frame).unwrap_or_default();
    (batch.first_sequence, batch.first_sequence.saturating_add(batch.count))
}

/// The sequence behind the last frame; `None`: there is no telling.
fn last_sequence(log: &Log) -> Result<Option<u64>, LogError> {
    let Some((first, _)) = log.segments().rfind(|(first, _)| *first < log.next()) else {
        return Ok(None);
    };
    let mut reader: Reader = log.reader(first);
    let mut next = None;
    while let Some(item) = reader.next(log.next())? {
        if let Item::Entry(entry) = item {
            next = Some(sequences(entry.payload).1).filter(|next| *next > 0);
        }
    }
    Ok(next)
}
