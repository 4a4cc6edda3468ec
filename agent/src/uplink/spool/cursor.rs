//! One epoch's frames in the order in which they are sent, with losses in the place of what is missing.

use std::{io, path::Path};

use bytes::Bytes;
use seclog_journal::{Digest, Item, Reader, digest};

use super::{Spool, store::sequences};

/// What is sent as one batch.
#[derive(Clone, Debug)]
pub struct Frame {
    /// When this is acknowledged, frames up to this number may go.
    pub number: u64,
    pub first: u64,
    pub last: u64,
    pub bytes: Bytes,
    pub digest: Digest,
}

/// The correlator has something else at a position than is here.
#[derive(Debug)]
pub struct Disagreement(pub String);

#[derive(Debug)]
pub struct Cursor {
    pub epoch: u64,
    /// `None`: frames lie in memory.
    reader: Option<Reader>,
    /// Number of the next frame.
    number: u64,
    /// The sequence that comes next.
    expected: u64,
    /// The correlator says that it has up to here, and what the batch there digests to.
    welcome: (u64, Vec<u8>),
    /// By what is known here, up to this it was acknowledged before.
    acknowledged: u64,
    /// Comes after the loss that was just given.
    held: Option<Frame>,
}

// === impl Cursor ===

impl Cursor {
    /// Behind what the correlator has.
    pub fn new(
        spool: &Spool,
        (epoch, dir, acknowledged): (u64, Option<impl AsRef<Path>>, u64),
        welcome: (u64, Vec<u8>),
    ) -> Result<Self, Disagreement> {
        let last = welcome.0;
        if spool.next_sequence(epoch).is_some_and(|next| last >= next) {
            return Err(Disagreement(format!("the correlator has up to {last}, which was never sent")));
        }
        let reader = dir.map(|dir| Reader::new(dir.as_ref(), 1));
        Ok(Self { epoch, reader, number: 1, expected: last + 1, welcome, acknowledged, held: None })
    }

    /// Number of the frame that comes next.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What comes next, if it is there and may be sent.
    pub fn next(&mut self, spool: &Spool) -> io::Result<Result<Option<Frame>, Disagreement>> {
        if let Some(frame) = self.held.take() {
            return Ok(Ok(Some(self.give(frame))));
        }
        loop {
            let Some(frame) = self.read(spool)? else { return Ok(Ok(None)) };
            self.number = frame.number + 1;
            if frame.last < self.expected {
                let (last, said) = &self.welcome;
                if frame.last == *last && !said.is_empty() && *said != frame.digest {
                    let why = format!("the correlator has other records at {last}");
                    return Ok(Err(Disagreement(why)));
                }
                if frame.last == *last {
                    spool.acknowledge(&frame);
                }
                continue;
            }
            if frame.first > self.expected {
                let missing = (self.expected, frame.first - 1);
                // A correlator that knows nothing of this epoch begins anywhere.
                let was_acknowledged = self.welcome.0 == 0 && missing.1 <= self.acknowledged;
                if !was_acknowledged {
                    let bytes = spool.loss_frame(missing.0, missing.1)?;
                    let digest = digest(&bytes);
                    let number = frame.number - 1;
                    self.held = Some(frame);
                    self.expected = missing.1 + 1;
                    return Ok(Ok(Some(Frame { number, first: missing.0, last: missing.1, bytes, digest })));
                }
            }
            return Ok(Ok(Some(self.give(frame))));
        }
    }

    fn give(&mut self, frame: Frame) -> Frame {
        self.expected = frame.last + 1;
        frame
    }

    /// The next whole frame. Those that are missing show as a hole in the sequences.
    fn read(&mut self, spool: &Spool) -> io::Result<Option<Frame>> {
        let Some(reader) = &mut self.reader else {
            let Some((number, bytes)) = spool.frame(self.number) else { return Ok(None) };
            return Ok(Some(frame(number, bytes.clone(), digest(&bytes))));
        };
        let limit = spool.limit(self.epoch);
        loop {
            match reader.next(limit).map_err(io::Error::other)? {
                None => return Ok(None),
                Some(Item::Missing(missing)) => {
                    tracing::warn!(?missing, "frames of the spool are missing; a loss record stands for them");
                    self.number = missing.until;
                }
                Some(Item::Entry(entry)) => {
                    let frame = frame(entry.number, Bytes::copy_from_slice(entry.payload), entry.digest);
                    if frame.first > 0 && frame.last >= frame.first {
                        return Ok(Some(frame));
                    }
                }
            }
        }
    }
}

fn frame(number: u64, bytes: Bytes, digest: Digest) -> Frame {
    let (first, next) = sequences(&bytes);
    Frame { number, first, last: next.saturating_sub(1), bytes, digest }
}
