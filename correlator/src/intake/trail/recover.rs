//! What the journal's files say of events that are known.

use super::memory::{Changes, Memory};
use crate::audit::{Digest, Feed};
use crate::join::Route;
use crate::journal::{Entry, Journal};
use seclog_proto::v1::{AuditEvents, AuditSeen};

/// What was known of events that came since a time, nanoseconds since 1970. What cannot be read is left out: copies of it
/// are taken anew.
pub(super) fn memory(journal: &Journal, since: u64) -> Memory {
    let mut memory = Memory::default();
    let mut feed = Feed::default();
    let read = journal.since(since, |time, entry| match entry {
        Entry::AuditEvents(AuditEvents { route, events, .. }) => {
            let Ok(route) = route.parse::<Route>() else { return };
            for json in events {
                if let Ok(Some(event)) = feed.event(&json) {
                    memory.offer(&event, route, time, &mut Changes::default());
                }
            }
        }
        Entry::AuditSeen(AuditSeen { route, sightings, .. }) => {
            let Ok(route) = route.parse::<Route>() else { return };
            for sighting in sightings {
                if let Ok(digest) = sighting.digest.as_slice().try_into() {
                    memory.seen(Digest(digest), route);
                }
            }
        }
        _ => {}
    });
    if let Err(error) = read {
        tracing::warn!(
            "what the journal knows of audit events cannot be read whole: {error}; copies may be taken again"
        );
    }
    if memory.len() > 0 {
        tracing::info!(events = memory.len(), "audit events are known from before");
    }
    memory
}
