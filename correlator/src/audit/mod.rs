//! Audit records of the kube-apiserver: from the bytes of a request body or a log line to what the join wants to know.
//!
//! [`Filter`] lets go what cannot matter without parsing it; [`Head::kept`] is the one place that says what does. [`Feed`]
//! reads the rest: [`Event`] is one of them, [`Reading`] is what it means: remote access ([`AccessEvent`]), knowledge about
//! a pod ([`PodFact`]), a change of what the monitoring rests on, or none; [`Fingerprint`] tells it from others. No bytes
//! make any of this panic.

mod access;
mod canonical;
mod credential;
mod event;
mod feed;
mod filter;
mod items;
mod kind;
mod lease;
mod monitoring;
mod pod;
mod proxy;
mod uri;
mod webhooks;

pub use access::{Access, AccessEvent, AccessKind, Identity, NewContainer, Stage, User, is_rsh};
pub use canonical::{Digest, Fingerprint};
pub use credential::Credential;
pub use event::{Event, ObjectRef, UserInfo};
pub use feed::{Batch, Feed, FeedCounters, KeptEvent, Malformed};
pub use filter::{Decision, Filter, Found, Kinds, Place};
pub use items::{Item, Items, items};
pub use kind::{Head, Kept, Target};
pub use lease::NodeLease;
pub use monitoring::MonitoringChange;
pub(crate) use monitoring::OWN_NAMESPACE;
pub use pod::{PodFact, ProbeCommand};
pub use uri::Uri;
pub use webhooks::{FailedOpen, WebhookNote};

/// The variable with which SPO's webhook marks an exec, and the key under which it annotates the audit event.
pub const SPO_UID: &str = "SPO_EXEC_REQUEST_UID";

#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("not JSON: {0}")]
    NotJson(serde_json::Error),
    #[error("neither an Event, an EventList nor an array of Events (kind {0:?}); send audit.k8s.io/v1")]
    NotEvents(String),
    #[error("not an audit.k8s.io/v1 Event: {0}")]
    Item(serde_json::Error),
    #[error("{field} is not an RFC 3339 time: {text:?}")]
    Time { field: &'static str, text: String },
}

/// What one event means to the join. More than one may be there: a pod that is created for debugging also tells its probes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    pub access: Option<Box<AccessEvent>>,
    pub pods: Vec<PodFact>,
    pub change: Option<Box<MonitoringChange>>,
    pub lease: Option<NodeLease>,
}

impl Reading {
    pub fn is_irrelevant(&self) -> bool {
        self.access.is_none() && self.pods.is_empty() && self.change.is_none() && self.lease.is_none()
    }
}

/// Reads one event's JSON.
pub fn read(json: &str) -> Result<(Event, Reading), AuditError> {
    let event: Event = serde_json::from_str(json).map_err(AuditError::Item)?;
    let reading = interpret(&event)?;
    Ok((event, reading))
}

/// What an event means; an error only where it is about remote access and lacks what identifies it.
pub fn interpret(event: &Event) -> Result<Reading, AuditError> {
    Ok(Reading {
        access: access::access_event(event)?.map(Box::new),
        pods: pod::facts(event),
        change: monitoring::change(event).map(Box::new),
        lease: lease::lease(event),
    })
}
