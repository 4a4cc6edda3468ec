//! What goes into the join.

use super::finding::Code;
use crate::audit::{AccessEvent, Digest, MonitoringChange, NodeLease, PodFact};
use crate::spo::SpoLine;
use seclog_proto::v1::{CheckStatus, NodeRecord};
use std::fmt;
use std::str::FromStr;
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
    /// A node renewed its lease.
    Lease(NodeLease),
    /// What SPO's JSON enricher tells of one process.
    Spo(Box<SpoLine>),
    /// What the monitoring rests on was changed.
    Monitoring(MonitoringChange),
    /// A node's check of its own configuration.
    NodeCheck {
        node: Arc<str>,
        status: CheckStatus,
    },
    /// Two agents spoke for one node at the same time.
    SharedIdentity {
        node: Arc<str>,
        /// Where they came from.
        peers: Vec<String>,
        /// Nanoseconds since 1970.
        time: u64,
    },
    /// An audit event that is known came by another route as well.
    AuditSeen {
        route: Route,
        digest: Digest,
        /// Nanoseconds since 1970.
        stage_time: u64,
    },
    /// A route of audit events fell silent, or (`None`) is heard again. Nanoseconds since 1970.
    AuditRoute {
        route: Route,
        silent_since: Option<u64>,
    },
    /// What the intake of audit events found.
    AuditFinding {
        code: Code,
        /// Nanoseconds since 1970.
        time: u64,
        /// What it is about, for its id.
        subject: String,
        text: String,
        records: Vec<String>,
    },
    /// Another key was certified for a node whose certificate had not ended.
    SecondKey {
        node: Arc<str>,
        /// Of the new certificate, hexadecimal.
        serial: String,
        /// Where it was asked from.
        peer: String,
        /// Nanoseconds since 1970.
        time: u64,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Route {
    /// The API server's log file.
    File,
    /// The API server's webhook backend.
    Webhook,
    /// The standard output of the container `audit-logs`, piped.
    Stdin,
    /// The same, followed through the Kubernetes API.
    PodLog,
}

impl Route {
    pub const ALL: [Self; 4] = [Self::File, Self::Webhook, Self::Stdin, Self::PodLog];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Webhook => "webhook",
            Self::Stdin => "stdin",
            Self::PodLog => "pod-log",
        }
    }
}

impl FromStr for Route {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|route| route.as_str() == text).ok_or(())
    }
}

impl fmt::Display for Route {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}
