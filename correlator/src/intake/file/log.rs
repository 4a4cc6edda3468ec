//! One audit log, read through its backups and the file that is written to.

use super::place::{self, Fingerprint, Inode, Part};
use crate::intake::lines::Lines;
use crate::intake::sink::Sink;
use crate::intake::trail::TrailError;
use flate2::read::MultiGzDecoder;
use seclog_proto::v1::SourcePosition;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;

const PIECE: usize = 1 << 20;
/// How long to wait before what could not be taken is offered again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Files that were read to their end and are remembered.
const MOST_DONE: usize = 1100;

/// Reads one log on a thread of its own.
#[derive(Debug)]
pub(super) struct Log {
    active: PathBuf,
    sink: Sink,
    runtime: Handle,
    open: Option<Open>,
    /// The files that are done with, oldest first.
    done: Vec<Fingerprint>,
    /// Of the last event that was read.
    last_stage_time: u64,
    told: Option<String>,
}

/// The file that is being read.
#[derive(Debug)]
struct Open {
    part: Part,
    source: Source,
    /// `None`: its first line is not there yet.
    fingerprint: Option<Fingerprint>,
    inode: Inode,
    /// Bytes that are taken. Of a compressed file, of what it holds.
    taken: u64,
    /// Bytes that were read.
    read: u64,
    lines: Lines,
}

#[derive(Debug)]
enum Source {
    Plain(File),
    Compressed(Box<MultiGzDecoder<File>>),
}

/// Why reading goes no further now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stopped {
    #[error(transparent)]
    Trail(#[from] TrailError),
    #[error("told to stop")]
    Told,
}

impl Log {
    pub(super) fn new(active: &Path, sink: Sink, runtime: Handle) -> Self {
        let mut log = Self {
            active: active.to_owned(),
            sink,
            runtime,
            open: None,
            done: Vec::new(),
            last_stage_time: 0,
            told: None,
        };
        log.resume();
        log
    }

    /// Where the journal says that reading ended: files before that one are done.
    fn resume(&mut self) {
        let positions = self.sink.journal().positions(self.sink.source());
        let Some(last) = positions.last() else { return };
        let parts = place::parts(&self.active);
        let prints: Vec<Option<Fingerprint>> = parts.iter().map(Part::fingerprint).collect();
        let at = prints.iter().rposition(|print| print.is_some_and(|print| print.epoch() == last.epoch));
        let Some(at) = at else {
            let path = self.active.display();
            tracing::warn!(%path, "the file that was read last is gone: what was written behind that may be lost");
            self.tell_loss("the file that was read before the restart is gone", None);
            return;
        };
        self.done = prints[..at].iter().copied().flatten().collect();
        match self.open_part(&parts[at], last.last) {
            Ok(()) => tracing::info!(path = %parts[at].path.display(), offset = last.last, "audit log: going on"),
            Err(error) => self.tell(&parts[at].path, &error),
        }
    }

    /// Reads what there is.
    pub(super) fn look(&mut self, stop: &AtomicBool) -> Result<(), Stopped> {
        loop {
            if self.open.is_none() && !self.open_next() {
                return Ok(());
            }
            // Before anything behind the old place is read: it may be another file's by now.
            if self.open.as_ref().is_some_and(|open| open.part.is_active && open.was_replaced()) {
                self.truncated();
            }
            if !self.read_to_end(stop)? {
                return Ok(());
            }
            let Some(open) = &self.open else { return Ok(()) };
            if !open.part.is_active {
                self.finish(stop)?;
                continue;
            }
            // What the path names now; lines written between the last read and this are read below.
            match std::fs::metadata(&self.active) {
                Ok(there) if (there.dev(), there.ino()) == open.inode => {
                    if there.len() < open.read {
                        self.truncated();
                        continue;
                    }
                    self.sink.is_read_until(self.last_stage_time);
                    return Ok(());
                }
                Ok(_) => {
                    self.read_to_end(stop)?;
                    tracing::info!(path = %self.active.display(), "audit log was rotated");
                    self.finish(stop)?;
                }
                // Between rename and creation, or its directory is gone: what is open may still be written to.
                Err(_) => return Ok(()),
            }
        }
    }

    /// The last look is over, and no file will come: a last line without its end counts.
    pub(super) fn end(&mut self, stop: &AtomicBool) -> Result<(), Stopped> {
        self.read_to_end(stop)?;
        self.finish(stop)
    }

    /// Opens the first file that is not done with. False: there is none.
    fn open_next(&mut self) -> bool {
        let parts = place::parts(&self.active);
        let prints: Vec<Option<Fingerprint>> = parts.iter().map(Part::fingerprint).collect();
        // Everything before one that is done is done: files are read in the order in which they were written.
        let is_done = |print: &Option<Fingerprint>| print.is_some_and(|print| self.done.contains(&print));
        let from = prints.iter().rposition(is_done).map_or(0, |at| at + 1);
        for (part, print) in parts.iter().zip(&prints).skip(from) {
            // A backup without anything in it.
            if print.is_none() && !part.is_active {
                continue;
            }
            if let Err(error) = self.open_part(part, 0) {
                if !part.is_active || error.kind() != io::ErrorKind::NotFound {
                    self.sink.failed();
                }
                self.tell(&part.path, &error);
                continue;
            }
            tracing::info!(path = %part.path.display(), "reading audit log");
            self.told = None;
            return true;
        }
        false
    }

    fn open_part(&mut self, part: &Part, offset: u64) -> io::Result<()> {
        let mut file = File::open(&part.path)?;
        let inode = place::inode(&file)?;
        let (fingerprint, source) = if part.is_compressed {
            let fingerprint = part.fingerprint();
            let mut decoder = MultiGzDecoder::new(file);
            io::copy(&mut (&mut decoder).take(offset), &mut io::sink())?;
            (fingerprint, Source::Compressed(Box::new(decoder)))
        } else {
            let fingerprint = Fingerprint::of_file(&file, !part.is_active)?;
            file.seek(SeekFrom::Start(offset))?;
            (fingerprint, Source::Plain(file))
        };
        self.open = Some(Open {
            part: part.clone(),
            source,
            fingerprint,
            inode,
            taken: offset,
            read: offset,
            lines: Lines::default(),
        });
        Ok(())
    }

    /// Reads and takes to the present end. False: it could not be read, and is tried again.
    fn read_to_end(&mut self, stop: &AtomicBool) -> Result<bool, Stopped> {
        let mut piece = vec![0; PIECE];
        loop {
            let Some(open) = &mut self.open else { return Ok(true) };
            let read = match open.source.read(&mut piece) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.sink.failed();
                    let path = open.part.path.clone();
                    let is_compressed = open.part.is_compressed;
                    self.tell(&path, &error);
                    if is_compressed {
                        // A damaged backup stays damaged. What came before that place is taken.
                        self.tell_loss("a compressed backup is damaged", None);
                        return Ok(true);
                    }
                    return Ok(false);
                }
            };
            if read == 0 {
                return Ok(true);
            }
            open.read += read as u64;
            open.lines.push(&piece[..read]);
            let too_long = open.lines.too_long();
            if too_long > 0 {
                self.tell_loss("lines longer than 64 MiB", Some(too_long));
            }
            self.take(false, stop)?;
        }
    }

    /// Takes the lines that are whole, and where nothing more comes the rest.
    fn take(&mut self, all: bool, stop: &AtomicBool) -> Result<(), Stopped> {
        loop {
            let Some(open) = &mut self.open else { return Ok(()) };
            let text = if all { open.lines.rest() } else { open.lines.whole() };
            let bytes = text.len();
            if bytes == 0 {
                return Ok(());
            }
            if open.fingerprint.is_none()
                && let Source::Plain(file) = &open.source
            {
                open.fingerprint = Fingerprint::of_file(file, all).ok().flatten();
            }
            let taken = open.taken + bytes as u64 + open.lines.skipped();
            let source = self.sink.source().to_owned();
            let (print, inode) = (open.fingerprint, open.inode);
            let position = |watermark_unix_ns| {
                let print = print?;
                let digest = [&print.0[..], &inode.0.to_be_bytes(), &inode.1.to_be_bytes()].concat();
                Some(SourcePosition { source, epoch: print.epoch(), sequence: taken, digest, watermark_unix_ns })
            };
            match self.runtime.block_on(self.sink.take(text, position)) {
                Ok(stage_time) => {
                    let _ = open.lines.taken(bytes);
                    open.taken = taken;
                    self.last_stage_time = self.last_stage_time.max(stage_time);
                    return Ok(());
                }
                Err(error) if error.is_closed() => return Err(error.into()),
                Err(error) => {
                    self.sink.failed();
                    let path = open.part.path.clone();
                    self.tell(&path, &error);
                    if stop.load(Ordering::Relaxed) {
                        return Err(Stopped::Told);
                    }
                    std::thread::sleep(AGAIN_AFTER);
                }
            }
        }
    }

    /// The file is over; its last line may lack its end.
    fn finish(&mut self, stop: &AtomicBool) -> Result<(), Stopped> {
        self.take(true, stop)?;
        if let Some(open) = self.open.take()
            && let Some(print) = open.fingerprint
        {
            self.done.push(print);
            if self.done.len() > MOST_DONE {
                self.done.remove(0);
            }
        }
        Ok(())
    }

    fn truncated(&mut self) {
        tracing::warn!(path = %self.active.display(), "audit log was truncated: reading it from the beginning");
        self.open = None;
        self.tell_loss("the file was truncated", None);
        // It is the file that is written to, whatever it begins with now.
        let part = Part { path: self.active.clone(), is_compressed: false, is_active: true };
        if let Err(error) = self.open_part(&part, 0) {
            self.tell(&part.path, &error);
        }
    }

    fn tell_loss(&mut self, reason: &str, count: Option<u64>) {
        let told = self.runtime.block_on(self.sink.lost(reason, count));
        if let Err(error) = told {
            tracing::warn!(path = %self.active.display(), "a loss could not be written to the journal ({reason}): {error}");
        }
    }

    /// Once until it is something else.
    fn tell(&mut self, path: &Path, error: &dyn std::error::Error) {
        let what = format!("{}: {error}", path.display());
        if self.told.as_ref() != Some(&what) {
            tracing::warn!("audit log: {what}; tried again");
            self.told = Some(what);
        }
    }
}

impl Open {
    /// It begins with something else than it did: it was truncated and has grown again.
    fn was_replaced(&self) -> bool {
        match (&self.source, self.fingerprint) {
            (Source::Plain(file), Some(print)) => {
                Fingerprint::of_file(file, false).is_ok_and(|now| now.is_some_and(|now| now != print))
            }
            _ => false,
        }
    }
}

impl Read for Source {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(into),
            Self::Compressed(decoder) => decoder.read(into),
        }
    }
}
