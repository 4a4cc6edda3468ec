//! Where records come in. Every intake hands batches to one bounded queue and waits when it is full: senders are slowed
//! down, nothing is dropped here.

pub mod agents;
pub mod file;
mod identity;
mod tls;
pub mod webhook;

pub use identity::{IdentityError, NodeIdentity};
pub use tls::{TlsError, TlsFiles};

use crate::join::Input;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// Batches that may wait for the join. Each is at most what one message, body or piece of a file holds.
const WAITING_BATCHES: usize = 64;

/// The join's end of the queue.
pub type Inputs = mpsc::Receiver<Vec<Input>>;

/// The intakes' end of the queue.
#[derive(Debug, Clone)]
pub struct Queue(mpsc::Sender<Vec<Input>>);

/// The join is gone: the process is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("shutting down")]
pub struct Closed;

pub fn queue() -> (Queue, Inputs) {
    let (sender, receiver) = mpsc::channel(WAITING_BATCHES);
    (Queue(sender), receiver)
}

impl Queue {
    /// Waits for room.
    pub async fn put(&self, batch: Vec<Input>) -> Result<(), Closed> {
        self.0.send(batch).await.map_err(|_| Closed)
    }

    /// Waits for room no longer than `patience`; `Ok(None)`: there was none.
    pub async fn room(&self, patience: Duration) -> Result<Option<mpsc::Permit<'_, Vec<Input>>>, Closed> {
        match tokio::time::timeout(patience, self.0.reserve()).await {
            Ok(permit) => permit.map(Some).map_err(|_| Closed),
            Err(_) => Ok(None),
        }
    }

    /// From a thread of its own.
    pub fn put_blocking(&self, batch: Vec<Input>) -> Result<(), Closed> {
        self.0.blocking_send(batch).map_err(|_| Closed)
    }
}

/// The wall clock, nanoseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Lets a message through at most every ten seconds, and tells how many were held back since.
#[derive(Debug, Default)]
pub(crate) struct RateLimit {
    next: AtomicU64,
    held_back: AtomicU64,
}

impl RateLimit {
    /// `Some(held back since the last)` where the message may be logged.
    pub(crate) fn pass(&self) -> Option<u64> {
        let (now, next) = (now(), self.next.load(Ordering::Relaxed));
        let ours = now >= next
            && self.next.compare_exchange(next, now + 10_000_000_000, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if ours {
            return Some(self.held_back.swap(0, Ordering::Relaxed));
        }
        self.held_back.fetch_add(1, Ordering::Relaxed);
        None
    }
}
