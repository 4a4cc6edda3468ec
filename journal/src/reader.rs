//! Reading from a cursor.

use crate::{
    LogError,
    format::{Digest, ENTRY_HEADER, EntryHeader, LogId, SEGMENT_HEADER, SegmentHeader, digest, find_mark},
    segments,
};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// Bytes read at once.
const PIECE: usize = 256 << 10;

/// A whole entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    pub number: u64,
    /// SHA-256 of the payload.
    pub digest: Digest,
    pub chain: Digest,
    pub payload: &'a [u8],
}

/// Entries that are not there, or not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// Numbers, the second not included.
    pub from: u64,
    pub until: u64,
    pub why: Why,
    /// The chain at the last of them, where its header could still be read.
    pub chain: Option<Digest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Bytes in their place are not what was written.
    Damaged,
    /// Their files are gone: trimmed, or deleted.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    Entry(Entry<'a>),
    Missing(Missing),
}

#[derive(Debug)]
struct Open {
    file: File,
    first: u64,
    /// `None`: damaged.
    header: Option<SegmentHeader>,
    /// Number of the next segment's first entry: from there on nothing in this file counts. Known once it is looked for.
    until: Option<u64>,
    /// Where the next entry begins in the file.
    offset: u64,
}

/// Reads a log's entries in order. Only files are shared with the [`crate::Log`] that writes them.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    id: Option<LogId>,
    /// The number that comes next.
    expected: u64,
    open: Option<Open>,
    /// Bytes of the file from `open.offset` on.
    buffer: Vec<u8>,
    start: usize,
    trailing: u64,
    /// Garbage that was stepped over since the last entry.
    garbage: u64,
}

/// What stands where an entry should begin.
enum Found {
    Header(EntryHeader),
    /// The file ends, perhaps within an entry.
    End {
        rest: bool,
    },
    Garbage,
}

// === impl Reader ===

impl Reader {
    /// Begins with the entry `from`, or with the first that there is behind it.
    pub fn new(dir: &Path, from: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            id: None,
            expected: from.max(1),
            open: None,
            buffer: Vec::new(),
            start: 0,
            trailing: 0,
            garbage: 0,
        }
    }

    /// The number that comes next.
    pub fn position(&self) -> u64 {
        self.expected
    }

    /// Number and chain at the beginning of the segment that is being read.
    pub(crate) fn segment(&self) -> Option<(u64, Option<Digest>)> {
        self.open.as_ref().map(|open| (open.first, open.header.map(|header| header.chain)))
    }

    /// Where the next entry begins in the segment's file.
    pub(crate) fn offset(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.offset)
    }

    /// Bytes at the end of the log that are no entry; known at its end.
    pub(crate) fn trailing(&self) -> u64 {
        self.trailing
    }

    fn failed(&self, source: io::Error) -> LogError {
        LogError::Io { path: self.dir.clone(), source }
    }

    /// The next entry before number `limit`, which must be written. `None`: the limit is reached, or, with `u64::MAX` for
    /// a limit, the end of the log.
    pub fn next(&mut self, limit: u64) -> Result<Option<Item<'_>>, LogError> {
        if self.expected >= limit {
            return Ok(None);
        }
        loop {
            if self.open.is_none() {
                if let Some(missing) = self.enter(limit)? {
                    return Ok(Some(Item::Missing(missing)));
                }
                if self.open.is_none() {
                    return Ok(None);
                }
            }
            match self.look()? {
                Found::Header(header) => {
                    let beyond = self.open.as_ref().and_then(|open| open.until).is_some_and(|end| header.number >= end);
                    if beyond {
                        // Written once, and given up when that could not be synced.
                        if let Some(missing) = self.leave(limit)? {
                            return Ok(Some(Item::Missing(missing)));
                        }
                        continue;
                    }
                    if header.number < self.expected {
                        self.skip(ENTRY_HEADER + header.length as usize);
                        continue;
                    }
                    if header.number > self.expected {
                        let (from, until) = (self.expected, header.number.min(limit));
                        self.expected = until;
                        return Ok(Some(Item::Missing(Missing { from, until, why: Why::Damaged, chain: None })));
                    }
                    return self.entry(header).map(Some);
                }
                Found::End { rest } => {
                    let last = self.expected;
                    self.trailing = self.garbage + self.bytes().len() as u64;
                    match self.leave(limit)? {
                        Some(missing) => return Ok(Some(Item::Missing(missing))),
                        None if self.open.is_none() => {
                            if limit == u64::MAX {
                                return Ok(None);
                            }
                            // Written it was, and is no more.
                            self.expected = limit;
                            let why = if rest { Why::Damaged } else { Why::Gone };
                            return Ok(Some(Item::Missing(Missing { from: last, until: limit, why, chain: None })));
                        }
                        None => {}
                    }
                }
                Found::Garbage => {
                    let before = self.offset();
                    self.resync()?;
                    self.garbage += self.offset().zip(before).map_or(0, |(after, before)| after - before);
                }
            }
        }
    }

    /// Opens the segment that holds the expected entry. Says what is missing before the first that there is.
    fn enter(&mut self, limit: u64) -> Result<Option<Missing>, LogError> {
        // A segment can be trimmed between the listing and the opening.
        for _ in 0..3 {
            let missing = self.try_enter(limit)?;
            if missing.is_some() || self.open.is_some() {
                return Ok(missing);
            }
        }
        Ok(None)
    }

    fn try_enter(&mut self, limit: u64) -> Result<Option<Missing>, LogError> {
        let firsts = segments::list(&self.dir).map_err(|error| self.failed(error))?;
        if self.id.is_none() {
            let header = segments::any_header(&self.dir, &firsts).map_err(|error| self.failed(error))?;
            self.id = header.map(|header| header.id);
        }
        let at = firsts.partition_point(|first| *first <= self.expected);
        let Some(first) = at.checked_sub(1).or((!firsts.is_empty()).then_some(0)).and_then(|at| firsts.get(at)) else {
            return Ok(None);
        };
        let first = *first;
        if first > self.expected {
            let (from, until) = (self.expected, first.min(limit));
            self.expected = until;
            return Ok(Some(Missing { from, until, why: Why::Gone, chain: None }));
        }
        self.open_segment(first, firsts.get(at).copied())?;
        Ok(None)
    }

    fn open_segment(&mut self, first: u64, until: Option<u64>) -> Result<(), LogError> {
        let path = segments::path(&self.dir, first);
        let failed = |source| LogError::Io { path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            // Trimmed meanwhile: what comes next is looked for anew.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let header = segments::header(&file).map_err(failed)?;
        if let Some(SegmentHeader { version, .. }) = header.filter(|header| header.version != crate::format::VERSION) {
            return Err(LogError::Version { path, version });
        }
        self.buffer.clear();
        (self.start, self.garbage, self.trailing) = (0, 0, 0);
        self.open = Some(Open { file, first, header, until, offset: SEGMENT_HEADER as u64 });
        Ok(())
    }

    /// The file is over: on to the next, if there is one. Says what is missing in between.
    fn leave(&mut self, limit: u64) -> Result<Option<Missing>, LogError> {
        let Some(open) = self.open.take() else { return Ok(None) };
        let firsts = segments::list(&self.dir).map_err(|error| self.failed(error))?;
        let Some(next) = firsts.iter().copied().find(|first| *first > open.first) else {
            return Ok(None);
        };
        let missing = (self.expected < next).then(|| {
            let (from, until) = (self.expected, next.min(limit));
            Missing { from, until, why: Why::Damaged, chain: None }
        });
        self.expected = self.expected.max(next.min(limit));
        let after = firsts.iter().copied().find(|first| *first > next);
        self.open_segment(next, after)?;
        Ok(missing)
    }

    /// At least so many bytes of the file in the buffer, or all that there are.
    fn fill(&mut self, wanted: usize) -> Result<(), LogError> {
        let Some(open) = &self.open else { return Ok(()) };
        if self.buffer.len() - self.start >= wanted {
            return Ok(());
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        let have = self.buffer.len();
        self.buffer.resize(wanted.max(PIECE), 0);
        let mut filled = have;
        while filled < self.buffer.len() {
            let Some(room) = self.buffer.get_mut(filled..) else { break };
            match open.file.read_at(room, open.offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.buffer.truncate(filled);
                    return Err(self.failed(error));
                }
            }
        }
        self.buffer.truncate(filled);
        Ok(())
    }

    fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    fn look(&mut self) -> Result<Found, LogError> {
        self.fill(ENTRY_HEADER)?;
        if self.bytes().len() < ENTRY_HEADER {
            return Ok(Found::End { rest: !self.bytes().is_empty() });
        }
        let Some(id) = self.id else { return Ok(Found::Garbage) };
        let Some(header) = EntryHeader::decode(self.bytes(), &id) else { return Ok(Found::Garbage) };
        let whole = ENTRY_HEADER + header.length as usize;
        self.fill(whole)?;
        // The file ends within it.
        if self.bytes().len() < whole { Ok(Found::End { rest: true }) } else { Ok(Found::Header(header)) }
    }

    fn skip(&mut self, bytes: usize) {
        let bytes = bytes.min(self.buffer.len() - self.start);
        self.start += bytes;
        if let Some(open) = &mut self.open {
            open.offset += bytes as u64;
        }
    }

    fn entry(&mut self, header: EntryHeader) -> Result<Item<'_>, LogError> {
        let EntryHeader { length, number, digest: said, chain } = header;
        let start = self.start + ENTRY_HEADER;
        self.skip(ENTRY_HEADER + length as usize);
        self.garbage = 0;
        self.expected = number + 1;
        let payload = self.buffer.get(start..start + length as usize).unwrap_or_default();
        if digest(payload) != said {
            let missing = Missing { from: number, until: number + 1, why: Why::Damaged, chain: Some(chain) };
            return Ok(Item::Missing(missing));
        }
        Ok(Item::Entry(Entry { number, digest: said, chain, payload }))
    }

    /// To the next bytes that are an entry's header, or to the end of the file.
    fn resync(&mut self) -> Result<(), LogError> {
        let Some(id) = self.id else {
            // No segment's header is left: nothing in here can be told from garbage.
            loop {
                let rest = self.bytes().len();
                self.skip(rest);
                self.fill(ENTRY_HEADER)?;
                if self.bytes().is_empty() {
                    return Ok(());
                }
            }
        };
        let mut from = 1;
        loop {
            match find_mark(self.bytes(), from) {
                Some(at) => {
                    self.skip(at);
                    self.fill(ENTRY_HEADER)?;
                    if self.bytes().len() < ENTRY_HEADER {
                        return Ok(());
                    }
                    let plausible = |header: &EntryHeader| header.number >= self.expected;
                    if EntryHeader::decode(self.bytes(), &id).as_ref().is_some_and(plausible) {
                        return Ok(());
                    }
                    from = 1;
                }
                None => {
                    let keep = 3.min(self.bytes().len());
                    self.skip(self.bytes().len() - keep);
                    self.fill(keep + 1)?;
                    if self.bytes().len() <= keep {
                        self.skip(keep);
                        return Ok(());
                    }
                    from = 0;
                }
            }
        }
    }
}
