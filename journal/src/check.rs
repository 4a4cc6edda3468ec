//! Proving what a log holds.

use crate::{
    Entry, LogError, Missing, Why,
    format::{Digest, link},
    reader::{Item, Reader},
    segments,
};
use std::path::Path;

/// Problems that are told one by one; more are counted.
const TOLD: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    Missing(Missing),
    /// The entry's chain does not follow from the one before: something was put in, taken out or changed.
    ChainBroken {
        number: u64,
    },
    /// As above, at the beginning of a segment.
    SegmentDetached {
        first: u64,
    },
}

/// What is there.
#[derive(Debug, Default)]
pub struct Checked {
    /// Number of the first entry that the files begin with, and the chain before it.
    pub first: u64,
    pub chain_before: Option<Digest>,
    /// Number behind the last entry.
    pub next: u64,
    pub entries: u64,
    pub bytes: u64,
    pub problems: Vec<Problem>,
    pub more_problems: u64,
    /// Bytes behind the last whole entry: a torn tail, or damage at the very end.
    pub trailing_bytes: u64,
}

/// Reads a whole log and checks every digest and link. What is running may go on writing: its end is then as it was at some
/// time.
pub fn check(dir: &Path, mut each: impl FnMut(&Entry<'_>)) -> Result<Checked, LogError> {
    let failed = |source| LogError::Io { path: dir.to_owned(), source };
    let firsts = segments::list(dir).map_err(failed)?;
    let Some(first) = firsts.first().copied() else { return Err(LogError::Nothing(dir.to_owned())) };
    let mut checked = Checked { first, next: first, ..Checked::default() };
    let mut reader = Reader::new(dir, first);
    // The chain at the entry before, where it is known; and what the segment says of its beginning.
    let mut before: Option<Digest> = None;
    let mut segment: Option<(u64, Option<Digest>)> = None;
    loop {
        let next = checked.next;
        let found = match reader.next(u64::MAX)? {
            Some(Item::Entry(entry)) => {
                each(&entry);
                checked.entries += 1;
                checked.bytes += entry.payload.len() as u64;
                checked.next = entry.number + 1;
                let length = u32::try_from(entry.payload.len()).unwrap_or(u32::MAX);
                Some((entry.number, length, entry.digest, entry.chain))
            }
            Some(Item::Missing(missing)) => {
                checked.tell(Problem::Missing(missing));
                checked.next = missing.until;
                before = missing.chain;
                None
            }
            None => break,
        };
        if reader.segment().map(|(first, _)| first) != segment.map(|(first, _)| first) {
            segment = reader.segment();
            if let Some((first, Some(chain))) = segment {
                if first == checked.first {
                    checked.chain_before = Some(chain);
                }
                if found.is_some() && first == next && before.is_some_and(|before| before != chain) {
                    checked.tell(Problem::SegmentDetached { first });
                }
            }
        }
        if let Some((number, length, digest, chain)) = found {
            let at_start = segment.filter(|(first, _)| *first == number).and_then(|(_, chain)| chain);
            if before.or(at_start).is_some_and(|before| link(&before, number, length, &digest) != chain) {
                checked.tell(Problem::ChainBroken { number });
            }
            before = Some(chain);
        }
    }
    checked.trailing_bytes = reader.trailing();
    Ok(checked)
}

impl Checked {
    fn tell(&mut self, problem: Problem) {
        if self.problems.len() < TOLD {
            self.problems.push(problem);
        } else {
            self.more_problems += 1;
        }
    }

    pub fn is_whole(&self) -> bool {
        self.problems.is_empty() && self.trailing_bytes == 0
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(Missing { from, until, why, .. }) => {
                let why = match why {
                    Why::Damaged => "damaged",
                    Why::Gone => "missing",
                };
                let last = until - 1;
                if *from == last {
                    write!(formatter, "entry {from} is {why}")
                } else {
                    write!(formatter, "entries {from} to {last} are {why}")
                }
            }
            Self::ChainBroken { number } => {
                write!(formatter, "entry {number} does not follow from the one before it: the log was changed here")
            }
            Self::SegmentDetached { first } => {
                write!(formatter, "the segment that begins with entry {first} does not follow from the one before it")
            }
        }
    }
}
