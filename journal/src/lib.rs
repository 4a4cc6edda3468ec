//! The durable log: what the agent spools until it is acknowledged, and the correlator's journal, are one structure.
//!
//! A log is a directory of segment files, written by one process at a time (an advisory lock sees to that) and read by any
//! number. Entries are bytes; what they mean is their owner's business.
//!
//! # What always holds
//!
//! 1. Entries have numbers that rise by one from 1. A number is never given twice to entries that were synced.
//! 2. What [`Log::sync`] returned for is on the disk: it is there after a kill, and after a loss of power as far as the disk
//!    keeps its word about flushes.
//! 3. After a kill, what was written and not synced is there whole, or not at all. [`Log::open`] cuts off a torn tail, and
//!    says how many bytes that were.
//! 4. Damage is found, told and stepped over. A [`Reader`] gives every entry that is whole, in order, and says of the others
//!    which numbers are [`Missing`]. No damage makes it end early, or makes [`Log::open`] fail: there is no crash loop.
//! 5. An entry is whole when its header's checksum (CRC-32) and its payload's digest (SHA-256) hold. The header's checksum
//!    is keyed with the log's random id, so that bytes inside a payload cannot pass for an entry.
//! 6. Each entry carries the chain: SHA-256 over the previous entry's chain and its own number, length and digest. So
//!    whoever knows one link (a signed checkpoint) knows everything before it: see [`check`].
//! 7. A write that fails leaves the log as it was: what had reached the file is cut off again before anything else is
//!    written. Until that succeeds every append fails.
//! 8. [`Log::trim`] lets go of whole segments, oldest first, and never of the one being written.
//!
//! # Format, version 1
//!
//! Numbers are little endian. A segment's file is named after its first entry's number, 20 digits and `.log`:
//!
//! | bytes | segment header |
//! |---|---|
//! | 8 | `SECLOGJ` and 0 |
//! | 4 | format version, 1 |
//! | 16 | the log's id, random, the same in all its segments |
//! | 8 | number of the first entry |
//! | 32 | the chain before it; zeros at the beginning of a log |
//! | 4 | CRC-32 of the above |
//!
//! | bytes | entry |
//! |---|---|
//! | 4 | a mark, by which entries are found again behind damage |
//! | 4 | length of the payload |
//! | 8 | number |
//! | 32 | digest: SHA-256 of the payload |
//! | 32 | chain: SHA-256 of the previous chain, number, length, digest |
//! | 4 | CRC-32 of the log's id and the above |
//! | … | payload |
//!
//! # Why not a store from elsewhere
//!
//! Embedded stores (fjall and redb were measured) keep up with the rates here at batches of a thousand. But a log that was
//! damaged must still be read around the damage, and prove what it holds to somebody who has only the files: neither gives
//! that. Both write what passes through twice, or rewrite it in compaction.

mod check;
mod format;
mod lock;
mod log;
mod reader;
mod segments;

pub use check::{Checked, Problem, check};
pub use format::{Digest, LARGEST_ENTRY, digest};
pub use lock::DirectoryLock;
pub use log::{Log, Options, Recovery, Unsynced};
pub use reader::{Entry, Item, Missing, Reader, Why};

use std::{io, path::PathBuf};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum LogError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: another process writes this log", .0.display())]
    Locked(PathBuf),
    #[error(
        "{}: format version {version} is not known to this program (it knows 1); it was written by a newer one",
        path.display()
    )]
    Version { path: PathBuf, version: u32 },
    #[error("an entry of {0} bytes is larger than {LARGEST_ENTRY}")]
    TooLarge(usize),
    #[error("{}: no log is there", .0.display())]
    Nothing(PathBuf),
    #[error("the system gives no random numbers")]
    Random,
}

/// Numbers of the first entries of a log's segments, in order.
pub fn firsts(dir: &std::path::Path) -> Result<Vec<u64>, LogError> {
    segments::list(dir).map_err(|source| LogError::Io { path: dir.to_owned(), source })
}

impl LogError {
    /// The disk has no room, or a quota says so.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}
