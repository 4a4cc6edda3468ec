//! Follows the API server's audit log file: from its beginning, through rotation by rename and truncation, on a thread of
//! its own.
//!
//! What holds: a file that was renamed away is read to its end before the new one is opened; a line counts when its end is
//! there (or when its file is over); nothing but complete lines reaches the join. A file that came and went between two
//! looks (a quarter of a second) is not seen.

use super::{Queue, RateLimit, now};
use crate::audit::{self, FeedCounters};
use crate::join::{Input, Route};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Lines beyond this are skipped, counted and told.
const LONGEST_LINE: usize = 64 << 20;
const PIECE: usize = 256 << 10;
const LATENESS_NS: u64 = 120_000_000_000;

/// Starts to follow; ends when `stop` is set and the file is read to its end, or when the join is gone.
pub fn follow(path: PathBuf, queue: Queue, stop: Arc<AtomicBool>) -> io::Result<JoinHandle<FeedCounters>> {
    std::thread::Builder::new().name("audit-log".to_owned()).spawn(move || {
        let mut follower = Follower {
            path,
            queue,
            open: None,
            partial: Vec::new(),
            line_offset: 0,
            too_long: false,
            told_missing: false,
            counters: FeedCounters::default(),
            malformed: RateLimit::default(),
        };
        while follower.look().is_ok() && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK_EVERY);
        }
        let _ = follower.look();
        follower.counters
    })
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Device and inode.
    identity: (u64, u64),
    position: u64,
}

#[derive(Debug)]
struct Follower {
    path: PathBuf,
    queue: Queue,
    open: Option<Open>,
    /// The beginning of a line whose end is not there yet.
    partial: Vec<u8>,
    line_offset: u64,
    /// The line that is being read is skipped up to its end.
    too_long: bool,
    told_missing: bool,
    counters: FeedCounters,
    malformed: RateLimit,
}

impl Follower {
    /// Reads what there is. An error only when the join is gone.
    fn look(&mut self) -> Result<(), super::Closed> {
        if self.open.is_none() {
            self.try_open();
        }
        loop {
            self.read_to_end()?;
            let Some(open) = &self.open else { return Ok(()) };
            // What the path names now, before the old file's end: lines written between the two are read below.
            let now_there = std::fs::metadata(&self.path).ok();
            match now_there {
                Some(there) if (there.dev(), there.ino()) != open.identity => {
                    self.read_to_end()?;
                    self.end_of_file()?;
                    tracing::info!(path = %self.path.display(), "audit log was rotated");
                    self.open = None;
                    self.try_open();
                    if self.open.is_none() {
                        return Ok(());
                    }
                }
                Some(there) if there.len() < open.position => {
                    tracing::warn!(path = %self.path.display(), "audit log was truncated: reading it from the beginning");
                    self.partial.clear();
                    self.too_long = false;
                    self.open = None;
                    self.loss("the file was truncated", None)?;
                    self.try_open();
                }
                _ => return Ok(()),
            }
        }
    }

    fn try_open(&mut self) {
        let opened = File::open(&self.path).and_then(|file| {
            let there = file.metadata()?;
            Ok(Open { file, identity: (there.dev(), there.ino()), position: 0 })
        });
        match opened {
            Ok(open) => {
                tracing::info!(path = %self.path.display(), "reading audit log");
                self.told_missing = false;
                self.line_offset = 0;
                self.open = Some(open);
            }
            Err(error) => {
                if !std::mem::replace(&mut self.told_missing, true) {
                    tracing::warn!(path = %self.path.display(), "waiting for audit log: {error}");
                }
            }
        }
    }

    fn read_to_end(&mut self) -> Result<(), super::Closed> {
        let mut piece = vec![0; PIECE];
        loop {
            let Some(open) = &mut self.open else { return Ok(()) };
            let read = match open.file.read(&mut piece) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), "cannot read audit log: {error}");
                    0
                }
            };
            if read == 0 {
                return Ok(());
            }
            open.position += read as u64;
            self.piece(&piece[..read])?;
        }
    }

    fn piece(&mut self, piece: &[u8]) -> Result<(), super::Closed> {
        let mut inputs = Vec::new();
        let mut rest = piece;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (head, tail) = (&rest[..end], &rest[end + 1..]);
            if self.too_long {
                self.too_long = false;
                self.line_offset += head.len() as u64 + 1;
            } else if self.partial.is_empty() {
                self.line(head, &mut inputs);
                self.line_offset += head.len() as u64 + 1;
            } else {
                self.partial.extend_from_slice(head);
                let line = std::mem::take(&mut self.partial);
                self.line(&line, &mut inputs);
                self.line_offset += line.len() as u64 + 1;
            }
            rest = tail;
        }
        if self.too_long {
            self.line_offset += rest.len() as u64;
        } else {
            self.partial.extend_from_slice(rest);
            if self.partial.len() > LONGEST_LINE {
                self.counters.malformed += 1;
                self.tell_malformed(self.line_offset, "a line longer than 64 MiB", &mut inputs);
                self.line_offset += self.partial.len() as u64;
                self.partial = Vec::new();
                self.too_long = true;
            }
        }
        if inputs.is_empty() { Ok(()) } else { self.queue.put_blocking(inputs) }
    }

    /// A file that is over may lack its last newline.
    fn end_of_file(&mut self) -> Result<(), super::Closed> {
        let line = std::mem::take(&mut self.partial);
        self.too_long = false;
        let mut inputs = Vec::new();
        self.line(&line, &mut inputs);
        if inputs.is_empty() { Ok(()) } else { self.queue.put_blocking(inputs) }
    }

    fn line(&mut self, line: &[u8], inputs: &mut Vec<Input>) {
        if line.trim_ascii().is_empty() {
            return;
        }
        let items = match audit::items(line) {
            Ok(items) => items,
            Err(error) => {
                self.counters.malformed += 1;
                return self.tell_malformed(self.line_offset, &error.to_string(), inputs);
            }
        };
        for item in items.iter() {
            match self.counters.read(item.json, Route::File) {
                Ok(read) => inputs.extend(read),
                Err(error) => {
                    self.tell_malformed(self.line_offset + item.offset as u64, &error.to_string(), inputs);
                }
            }
        }
    }

    fn tell_malformed(&self, offset: u64, why: &str, inputs: &mut Vec<Input>) {
        if let Some(held_back) = self.malformed.pass() {
            tracing::warn!(path = %self.path.display(), offset, held_back, "audit event skipped: {why}");
        }
        inputs.push(loss("events that could not be read", Some(1)));
    }

    fn loss(&self, reason: &str, count: Option<u64>) -> Result<(), super::Closed> {
        self.queue.put_blocking(vec![loss(reason, count)])
    }
}

/// Events of about now may be missing.
fn loss(reason: &str, count: Option<u64>) -> Input {
    let until = now();
    Input::AuditLoss {
        source: "file".to_owned(),
        reason: reason.to_owned(),
        from: until.saturating_sub(LATENESS_NS),
        until,
        count,
    }
}
