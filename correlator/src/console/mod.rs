//! What people ask the store: `sessions`, `show`, `tail`, `findings`.
//!
//! They read the store's files themselves, whether `serve` runs or not; see [`crate::store`]. What a process or client
//! could choose reaches no terminal unescaped.

mod activity;
mod ask;
mod findings;
mod list;
mod show;
mod tail;
mod when;

pub use ask::{FilterArgs, StoreArgs};
pub use findings::{FindingsArgs, findings};
pub use list::{SessionsArgs, sessions};
pub use show::{ShowArgs, show};
pub use tail::{TailArgs, tail};

use crate::store::StoreError;
use std::io::{self, Write};
use uuid::Uuid;

#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0} fits several sessions: {list}; give more of it", .prefix, list = short(.fits))]
    Ambiguous { prefix: String, fits: Vec<Uuid> },
    #[error("{0:?} is no id of a session: hexadecimal digits, as `sessions` prints them")]
    NoId(String),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
    #[error("a session has no JSON form: {0}")]
    Json(#[from] serde_json::Error),
}

fn short(ids: &[Uuid]) -> String {
    let ids: Vec<String> = ids.iter().take(4).map(Uuid::to_string).collect();
    ids.join(", ")
}

/// Standard output; who closes it has seen enough.
struct Output(io::StdoutLock<'static>);

impl Output {
    fn new() -> Self {
        Self(io::stdout().lock())
    }

    /// False: nobody reads any more.
    fn put(&mut self, text: &str) -> io::Result<bool> {
        match self.0.write_all(text.as_bytes()).and_then(|()| self.0.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            written => written.map(|()| true),
        }
    }
}
