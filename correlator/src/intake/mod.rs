//! Where records come in. Every intake puts what came, as it came, into the [journal](crate::journal), and answers its sender
//! when it is there: senders are slowed down or told to come again, nothing is dropped here.

pub mod agents;
mod budget;
pub mod file;
mod lines;
mod live;
pub mod pods;
mod sink;
pub mod stdin;
pub mod trail;
pub mod webhook;

pub use budget::{Budget, Held, OverBudget};
pub use sink::{Kind, SpoIntake};

use crate::join::Route;
use crate::journal::Entry;
use seclog_proto::v1::{AuditEvents, AuditLoss, SourcePosition};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// How late audit events may be that were lost about now.
const LATENESS_NS: u64 = 120_000_000_000;

/// Events of the audit log, byte for byte, as an entry of the journal. `source`: from whom; `position`: how far the source
/// was read with them, where it can go on from there.
pub fn audit_events<B: Into<bytes::Bytes>>(
    route: Route,
    source: &str,
    events: impl IntoIterator<Item = B>,
    position: Option<SourcePosition>,
) -> Entry {
    let events = events.into_iter().map(Into::into).collect();
    Entry::AuditEvents(AuditEvents {
        route: route.to_string(),
        source: source.to_owned(),
        events,
        position,
        late: false,
    })
}

/// Audit events of about now may be missing.
pub fn audit_loss(source: &str, reason: &str, count: Option<u64>) -> Entry {
    let until = now();
    Entry::AuditLoss(AuditLoss {
        source: source.to_owned(),
        reason: reason.to_owned(),
        from_unix_ns: until.saturating_sub(LATENESS_NS),
        until_unix_ns: until,
        count: count.unwrap_or(0),
        count_known: count.is_some(),
        position: None,
    })
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
