//! The correlator's journal: what came in is on the disk before it is acknowledged, and the join reads it from there.
//!
//! What holds:
//! - One thread writes. It gathers what waits, writes it as one append, syncs once, and then answers everybody: an answer
//!   means that the entry survives a kill.
//! - How far each source has come (a node's spool, an audit log file) is decided by that thread and written with the entry.
//!   So a batch is in the journal once, whoever sends it how often, and whatever fails in between.
//! - What cannot be written is refused with a reason, and nothing of it is in the journal.
//! - What waits is bounded in bytes; behind that senders wait.
//! - At its bound the journal lets go of its oldest segments and says so in an entry; never of what the join has not read. Is
//!   that all there is, it refuses.
//! - Whoever has something read out by our own commands is in an entry before: see [`Account`].
//! - Time stamps let a replay tell the join the time as it was told when the entries came: see [`Journal::tick`].
//!
//! [`Journal`] is all that intakes see, [`Feed`] all that the join sees: a distributed log can take the place behind both.

mod checkpoint;
mod exports;
mod feed;
mod handle;
mod positions;
mod verify;
mod writer;

pub use checkpoint::{Checkpoint, CheckpointError, PublicKey, Signer};
pub(crate) use exports::follow as follow_exports;
pub use exports::{Account, ExportError};
pub use feed::{Fed, Feed, FeedTotals, Files};
pub use handle::{Journal, JournalOptions, Opened, Pending, Receipt};
pub use positions::{Position, node_source};
pub use verify::{VerifyArgs, VerifyError, verify};

use seclog_journal::LogError;
pub use seclog_proto::v1::journal_entry::Entry;

/// Why an entry is not in the journal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Come again.
    #[error("the journal has no room: {0}")]
    Full(String),
    #[error("the journal cannot be written: {0}")]
    Unwritable(String),
    /// A batch does not follow from the last one.
    #[error("sequence gap: {expected} is next")]
    Gap { expected: u64 },
    #[error("{0}")]
    TooMany(String),
    #[error("shutting down")]
    Closed,
}

impl JournalError {
    fn of(error: &LogError) -> Self {
        if error.is_full() { Self::Full(error.to_string()) } else { Self::Unwritable(error.to_string()) }
    }
}
