//! Writing.

use crate::{
    DirectoryLock, LogError, Reader,
    format::{
        Digest, ENTRY_HEADER, EntryHeader, LARGEST_ENTRY, LogId, SEGMENT_HEADER, SegmentHeader, VERSION, digest, link,
    },
    reader::Item,
    segments,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// A segment that has reached this size is followed by another.
    pub segment_bytes: u64,
}

/// What [`Log::open`] found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Bytes of the torn tail that was cut off: written before a crash, and never synced.
    pub torn_bytes: u64,
    /// Entries of the last segment that are damaged. Earlier segments are looked at when they are read.
    pub damaged: u64,
    /// Nothing could be read of the end of the log: numbers go on behind all that can have been there.
    pub lost_end: bool,
}

impl Recovery {
    /// The log ends as it was left.
    pub fn is_clean(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    first: u64,
    bytes: u64,
}

/// Where the log ends.
#[derive(Debug, Clone, Copy)]
struct End {
    /// Number of the next entry.
    next: u64,
    chain: Digest,
    /// Bytes of the last segment.
    length: u64,
}

/// Appended, and perhaps not yet on the disk.
#[derive(Debug)]
pub struct Unsynced {
    file: File,
    end: End,
}

/// A log, open for writing.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    options: Options,
    id: LogId,
    /// Oldest first; the last one is written to.
    segments: VecDeque<Segment>,
    file: File,
    end: End,
    /// What is surely on the disk.
    synced: End,
    /// A write or sync failed, and the file has not been cut back yet.
    is_broken: bool,
    buffer: Vec<u8>,
    _lock: DirectoryLock,
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20 }
    }
}

// === impl Unsynced ===

impl Unsynced {
    /// Waits for the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Number behind the last entry that this covers.
    pub fn next(&self) -> u64 {
        self.end.next
    }
}

// === impl Log ===

impl Log {
    /// Opens the log in a directory, or begins one there.
    pub fn open(dir: &Path, options: Options) -> Result<(Self, Recovery), LogError> {
        let failed = |source| LogError::Io { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        let lock = DirectoryLock::take(dir)
            .map_err(|source| LogError::Io { path: dir.join("lock"), source })?
            .ok_or_else(|| LogError::Locked(dir.to_owned()))?;
        let mut firsts = segments::list(dir).map_err(failed)?;
        // Crashed while it was made: nothing was ever written to it.
        while let Some(last) = firsts.last() {
            let path = segments::path(dir, *last);
            let bytes = fs::metadata(&path).map_err(failed)?.len();
            if bytes >= SEGMENT_HEADER as u64 || firsts.len() == 1 && bytes > 0 {
                break;
            }
            fs::remove_file(&path).map_err(failed)?;
            firsts.pop();
        }
        let known = segments::any_header(dir, &firsts).map_err(failed)?;
        if let Some(SegmentHeader { version, .. }) = known.filter(|header| header.version != VERSION) {
            return Err(LogError::Version { path: dir.to_owned(), version });
        }
        let id = match known {
            Some(header) => header.id,
            None => random_id()?,
        };
        let begin = Begin { dir, options, id, lock };
        let Some(last) = firsts.last().copied() else { return Ok((begin.create(1, [0; 32])?, Recovery::default())) };
        begin.go_on(last, &firsts, known.is_some())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Number of the oldest entry that there may be.
    pub fn first(&self) -> u64 {
        self.segments.front().map_or(self.end.next, |segment| segment.first)
    }

    /// Number that the next entry gets.
    pub fn next(&self) -> u64 {
        self.end.next
    }

    /// Every entry with a smaller number is on the disk.
    pub fn synced(&self) -> u64 {
        self.synced.next
    }

    /// The chain at the last entry that is on the disk, and its number.
    pub fn synced_chain(&self) -> (u64, Digest) {
        (self.synced.next - 1, self.synced.chain)
    }

    /// Of all its files.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Numbers of the segments' first entries, oldest first, each with the bytes of its file.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        self.segments.iter().map(|segment| (segment.first, segment.bytes))
    }

    /// Bytes that an entry takes besides its payload.
    pub const fn overhead() -> u64 {
        ENTRY_HEADER as u64
    }

    /// Whether the next append begins a new segment.
    pub fn is_segment_full(&self) -> bool {
        self.end.length >= self.options.segment_bytes && self.end.length > SEGMENT_HEADER as u64
    }

    /// Writes entries, and does not wait for the disk. Their numbers are those from what [`Log::next`] was before. On an
    /// error none of them is written.
    pub fn append<P: AsRef<[u8]>>(&mut self, payloads: &[P]) -> Result<(), LogError> {
        self.repair()?;
        if self.is_segment_full() {
            self.roll()?;
        }
        let mut end = self.end;
        self.buffer.clear();
        for payload in payloads {
            let payload = payload.as_ref();
            let length = u32::try_from(payload.len()).ok().filter(|length| *length as usize <= LARGEST_ENTRY);
            let length = length.ok_or(LogError::TooLarge(payload.len()))?;
            let digest = digest(payload);
            let chain = link(&end.chain, end.next, length, &digest);
            EntryHeader { length, number: end.next, digest, chain }.encode(&self.id, &mut self.buffer);
            self.buffer.extend_from_slice(payload);
            end.next += 1;
            end.chain = chain;
        }
        let written = self.file.write_all(&self.buffer);
        end.length += self.buffer.len() as u64;
        // What one large batch took is given back.
        if self.buffer.capacity() > 4 << 20 {
            self.buffer = Vec::new();
        }
        if let Err(source) = written {
            let error = self.error(source);
            self.is_broken = true;
            // A torn entry in the middle of the file would cost its followers a search.
            let _ = self.cut(self.end);
            return Err(error);
        }
        self.end = end;
        self.note_length();
        Ok(())
    }

    /// Waits until everything that was appended is on the disk. On an error nothing since the last sync is in the log.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.repair()?;
        if self.synced.next == self.end.next && self.synced.length == self.end.length {
            return Ok(());
        }
        match self.file.sync_data() {
            Ok(()) => {
                self.synced = self.end;
                Ok(())
            }
            Err(source) => {
                let error = self.error(source);
                // What the kernel could not write it may have thrown away: only what is known to be there counts.
                self.could_not_sync();
                Err(error)
            }
        }
    }

    /// What is to be synced now, so that this can be done without holding the log; then tell [`Log::was_synced`]. `None`:
    /// everything is.
    pub fn unsynced(&self) -> io::Result<Option<Unsynced>> {
        if self.is_broken || self.synced.next == self.end.next {
            return Ok(None);
        }
        Ok(Some(Unsynced { file: self.file.try_clone()?, end: self.end }))
    }

    /// What [`Log::unsynced`] gave is on the disk.
    pub fn was_synced(&mut self, done: &Unsynced) {
        // A new segment, or an append that failed, may have come in between: both have synced or cut on their own.
        let same_file = self.segments.back().is_some_and(|segment| segment.first < done.end.next);
        if same_file && done.end.next > self.synced.next && done.end.next <= self.end.next {
            self.synced = done.end;
        }
    }

    /// What [`Log::unsynced`] gave could not be synced: nothing since the last sync is in the log.
    pub fn could_not_sync(&mut self) {
        self.end = self.synced;
        self.is_broken = true;
        let _ = self.repair();
    }

    /// Lets go of the segments whose entries all have smaller numbers. Returns how many entries and bytes.
    pub fn trim(&mut self, keep_from: u64) -> Result<(u64, u64), LogError> {
        let (mut entries, mut bytes) = (0, 0);
        while let (Some(segment), Some(after)) = (self.segments.front(), self.segments.get(1))
            && after.first <= keep_from
        {
            let path = segments::path(&self.dir, segment.first);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(LogError::Io { path, source }),
            }
            entries += after.first - segment.first;
            bytes += segment.bytes;
            self.segments.pop_front();
        }
        Ok((entries, bytes))
    }

    /// Begins a new segment, so that [`Log::trim`] can let go of the one before.
    pub fn roll(&mut self) -> Result<(), LogError> {
        self.sync()?;
        if self.end.length <= SEGMENT_HEADER as u64 {
            return Ok(());
        }
        let header = SegmentHeader { version: VERSION, id: self.id, first: self.end.next, chain: self.end.chain };
        self.file = create_segment(&self.dir, &header)?;
        self.end.length = SEGMENT_HEADER as u64;
        self.synced = self.end;
        self.segments.push_back(Segment { first: self.end.next, bytes: self.end.length });
        Ok(())
    }

    /// Lets go of every entry without taking room for a new segment, as [`Log::roll`] and [`Log::trim`] would: for a full
    /// disk. A crash in between leaves an empty log, whose numbers begin anew.
    pub fn clear(&mut self) -> Result<(), LogError> {
        let last = self.segments.back().map_or(self.end.next, |segment| segment.first);
        self.trim(last)?;
        let (from, to) = (segments::path(&self.dir, last), segments::path(&self.dir, self.end.next));
        let header = SegmentHeader { version: VERSION, id: self.id, first: self.end.next, chain: self.end.chain };
        self.is_broken = true;
        self.end.length = SEGMENT_HEADER as u64;
        let cleared = self.file.set_len(0).and_then(|()| {
            self.file.seek(SeekFrom::Start(0))?;
            self.file.write_all(&header.encode())?;
            self.file.sync_all()?;
            fs::rename(&from, &to)?;
            File::open(&self.dir)?.sync_all()
        });
        cleared.map_err(|source| LogError::Io { path: from, source })?;
        self.is_broken = false;
        self.synced = self.end;
        self.segments = VecDeque::from([Segment { first: self.end.next, bytes: self.end.length }]);
        Ok(())
    }

    /// Gives its directory another name.
    pub fn move_to(&mut self, dir: &Path) -> Result<(), LogError> {
        fs::rename(&self.dir, dir).map_err(|source| LogError::Io { path: dir.to_owned(), source })?;
        self.dir = dir.to_owned();
        Ok(())
    }

    /// A reader of this log.
    pub fn reader(&self, from: u64) -> Reader {
        Reader::new(&self.dir, from)
    }

    fn error(&self, source: io::Error) -> LogError {
        LogError::Io { path: segments::path(&self.dir, self.segments.back().map_or(0, |s| s.first)), source }
    }

    fn note_length(&mut self) {
        let length = self.end.length;
        if let Some(segment) = self.segments.back_mut() {
            segment.bytes = length;
        }
    }

    /// After a failure: cuts the file back to where the log ends.
    fn repair(&mut self) -> Result<(), LogError> {
        if !self.is_broken {
            return Ok(());
        }
        self.cut(self.end).map_err(|source| self.error(source))
    }

    fn cut(&mut self, end: End) -> io::Result<()> {
        self.file.set_len(end.length)?;
        self.file.seek(SeekFrom::Start(end.length))?;
        self.is_broken = false;
        self.note_length();
        Ok(())
    }
}

/// What is needed to make a log.
struct Begin<'a> {
    dir: &'a Path,
    options: Options,
    id: LogId,
    lock: DirectoryLock,
}

impl Begin<'_> {
    fn create(self, next: u64, chain: Digest) -> Result<Log, LogError> {
        let Self { dir, options, id, lock } = self;
        let file = create_segment(dir, &SegmentHeader { version: VERSION, id, first: next, chain })?;
        let end = End { next, chain, length: SEGMENT_HEADER as u64 };
        let segments = VecDeque::from([Segment { first: next, bytes: end.length }]);
        let dir = dir.to_owned();
        Ok(Log {
            dir,
            options,
            id,
            segments,
            file,
            end,
            synced: end,
            is_broken: false,
            buffer: Vec::new(),
            _lock: lock,
        })
    }

    /// Goes on behind the last entry of the last segment.
    fn go_on(self, last: u64, firsts: &[u64], is_known: bool) -> Result<(Log, Recovery), LogError> {
        let dir = self.dir;
        let path = segments::path(dir, last);
        let failed = |source| LogError::Io { path: path.clone(), source };
        let mut recovery = Recovery::default();
        let mut end = End { next: last, chain: [0; 32], length: SEGMENT_HEADER as u64 };
        let mut file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        let header = segments::header(&file).map_err(failed)?;
        if let Some(header) = header {
            end.chain = header.chain;
        }
        if is_known {
            let mut reader = Reader::new(dir, last);
            while let Some(item) = reader.next(u64::MAX)? {
                match item {
                    Item::Entry(entry) => (end.next, end.chain) = (entry.number + 1, entry.chain),
                    Item::Missing(missing) => {
                        recovery.damaged += missing.until - missing.from;
                        end.next = missing.until;
                        end.chain = missing.chain.unwrap_or(end.chain);
                    }
                }
                end.length = reader.offset().unwrap_or(end.length);
            }
        }
        let bytes = file.metadata().map_err(failed)?.len();
        let mut segments = VecDeque::new();
        for first in firsts {
            let bytes = fs::metadata(segments::path(dir, *first)).map_err(failed)?.len();
            segments.push_back(Segment { first: *first, bytes });
        }
        let rest = bytes.saturating_sub(end.length);
        if header.is_none() || !is_torn(&file, end.length, rest, &self.id).map_err(failed)? {
            // What stood there may have been synced, and cannot be read any more: its numbers are used up.
            recovery.lost_end = true;
            end.next += rest / ENTRY_HEADER as u64 + 1;
            let mut log = self.create(end.next, end.chain)?;
            segments.append(&mut log.segments);
            log.segments = segments;
            return Ok((log, recovery));
        }
        if rest > 0 {
            recovery.torn_bytes = rest;
            file.set_len(end.length).map_err(failed)?;
        }
        file.seek(SeekFrom::Start(end.length)).map_err(failed)?;
        // What was written and not synced before a kill counts from now on.
        file.sync_all().map_err(failed)?;
        let Self { options, id, lock, .. } = self;
        let mut log = Log {
            dir: dir.to_owned(),
            options,
            id,
            segments,
            file,
            end,
            synced: end,
            is_broken: false,
            buffer: Vec::new(),
            _lock: lock,
        };
        log.note_length();
        Ok((log, recovery))
    }
}

/// Whether the last bytes of a file are what a crash leaves of an append: a part of an entry, or zeros that a file system
/// gave a file whose bytes it never wrote.
fn is_torn(file: &File, from: u64, bytes: u64, id: &LogId) -> io::Result<bool> {
    if bytes < ENTRY_HEADER as u64 {
        return Ok(true);
    }
    let mut piece = vec![0; 64 << 10];
    let mut at = from;
    let mut is_zero = true;
    while is_zero {
        let read = file.read_at(&mut piece, at)?;
        let bytes = piece.get(..read).unwrap_or_default();
        if at == from && EntryHeader::decode(bytes, id).is_some() {
            return Ok(true);
        }
        is_zero = bytes.iter().all(|byte| *byte == 0);
        at += read as u64;
        if read == 0 {
            break;
        }
    }
    Ok(is_zero)
}

fn random_id() -> Result<LogId, LogError> {
    let mut id = [0; 16];
    SystemRandom::new().fill(&mut id).map_err(|_| LogError::Random)?;
    Ok(id)
}

/// On the disk with its header and its name, or not there.
fn create_segment(dir: &Path, header: &SegmentHeader) -> Result<File, LogError> {
    let path = segments::path(dir, header.first);
    let made = OpenOptions::new().read(true).write(true).create_new(true).open(&path).and_then(|mut file| {
        file.write_all(&header.encode())?;
        file.sync_all()?;
        File::open(dir)?.sync_all()?;
        Ok(file)
    });
    made.map_err(|source| {
        if source.kind() != io::ErrorKind::AlreadyExists {
            let _ = fs::remove_file(&path);
        }
        LogError::Io { path, source }
    })
}
