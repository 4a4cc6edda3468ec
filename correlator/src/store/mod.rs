//! What the join said, to be asked for: sessions, their activity, findings. SQLite, written by one thread of one process,
//! read by any number of others meanwhile.
//!
//! What holds:
//! - The journal is the truth. A store that is missing, damaged or of an older format is made anew from what the journal
//!   still has.
//! - What was told and the cursor in the journal are written in one transaction: after a kill at any time the store is as
//!   of its cursor, and the join goes on from there. What is told again is known by id and revision.
//! - What waits to be written is bounded; while the disk does not take it the join stands, and the journal keeps.
//! - A session stands in its last revision, with one line for each revision before. The records of its processes are kept
//!   as they came ([`Activity`]).
//! - The store is bounded in bytes and age: what was told longest ago goes first, and it is noted how much and of when.
//!
//! The format's version is SQLite's `user_version`; the tables are in schema.sql.

mod activity;
mod attic;
mod facts;
mod held;
mod query;
mod retention;
mod row;
mod schema;
mod writer;

pub use activity::Activity;
pub use attic::DiskAttic;
pub use held::HoldingCounts;
pub use query::{Filter, Found, Page, Pattern, Reader, Revision, Told};
pub use retention::{Deleted, Limits};
pub use schema::FILE;
pub use writer::{Cursor, Store, Totals};

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no store is at {}; `serve` makes it in its journal's directory: name it with --store DIR", .0.display())]
    Nothing(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Sql { path: PathBuf, source: rusqlite::Error },
    #[error(
        "{}: format {version} is not known to this program (it knows {}): use the seclog-correlator that writes it",
        path.display(),
        schema::FORMAT
    )]
    Version { path: PathBuf, version: i64 },
    #[error("{}: not a store of seclog", .0.display())]
    Foreign(PathBuf),
    #[error("{}: another process writes this store", .0.display())]
    Locked(PathBuf),
    #[error("{}: the store is of cluster {found:?}, not of {asked:?}", path.display())]
    Cluster { path: PathBuf, found: String, asked: String },
    #[error("{}: the store of a running or stopped `serve`; give a directory of its own", .0.display())]
    OfServe(PathBuf),
    #[error(
        "{}: may not be read by this user; ask as the user that the correlator runs as (SQLite needs to write beside it)",
        .0.display()
    )]
    Permission(PathBuf),
    #[error("{}: damaged: {why}; a restart of `serve` makes the store anew from the journal", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("a session has no JSON form: {0}")]
    Json(#[from] serde_json::Error),
}

impl StoreError {
    /// Only making the store anew helps.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Foreign(_))
    }
}
