//! What goes into the join.

use crate::audit::{AccessEvent, MonitoringChange, PodFact};
use seclog_proto::v1::{CheckStatus, NodeRecord};
use std::fmt;
use std::sync::Arc;

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all inputs are node records: a box would cost each an allocation"
)]
pub enum Input {
    Node {
        node: Arc<str>,
        record: NodeRecord,
    },
    Audit {
        route: Route,
        event: Box<AccessEvent>,
    },
    Pod(PodFact),
    /// What the monitoring rests on was changed.
    Monitoring(MonitoringChange),
    /// A node's check of its own configuration.
    NodeCheck {
        node: Arc<str>,
        status: CheckStatus,
    },
    /// Audit events of that time may be missing.
    AuditLoss {
        source: String,
        reason: String,
        from: u64,
        until: u64,
        count: Option<u64>,
    },
    /// The source has handed over everything up to this event time.
    Watermark {
        source: Source,
        until: u64,
    },
    /// A node's wall clock when it sent a message, and the correlator's when that came. Nanoseconds since 1970.
    Clock {
        node: Arc<str>,
        sent: u64,
        received: u64,
    },
    /// The time of day, nanoseconds since 1970. Revisions come only with it.
    Now(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Node(Arc<str>),
    Audit,
}

/// By which way an audit event came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    File,
    Webhook,
}

impl fmt::Display for Route {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::File => "file",
            Self::Webhook => "webhook",
        })
    }
}
