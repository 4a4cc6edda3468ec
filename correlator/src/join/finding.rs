//! What an administrator should look at: a line of its own, and named in the session that it concerns.

use super::ids;
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// Records that a finding names; the session has them all.
const RECORDS: usize = 16;

/// A finding as a line: `kind` tells it from a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Finding {
    pub kind: FindingKind,
    /// The same for the same matter in every replay; a line may come twice.
    pub id: Uuid,
    pub code: Code,
    pub severity: Severity,
    /// What the code means, the same for all findings of it.
    pub explanation: String,
    /// What was found.
    pub text: String,
    pub time: Timestamp,
    pub cluster: String,
    /// The session that names it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub session: Option<Uuid>,
    /// Ids of the node records, audit ids and streams that it rests on.
    pub records: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    Finding,
}

/// A finding as its session names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FindingNote {
    pub id: Uuid,
    pub code: Code,
    pub severity: Severity,
    pub text: String,
    /// Ids of the node records, audit ids and streams that it rests on.
    pub records: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Notice,
    /// Evidence is weaker than it looks, or could be.
    Warning,
    /// Somebody may be hiding something.
    Alarm,
}

macro_rules! codes {
    ($($name:ident $text:literal $severity:ident $explanation:literal)+) => {
        /// Stable: a code is never given another meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Code {
            $(#[serde(rename = $text)] $name),+
        }

        impl Code {
            pub const ALL: &[Code] = &[$(Code::$name),+];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            pub fn of(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|code| code.as_str() == text)
            }

            pub fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity),+ }
            }

            pub fn explanation(self) -> &'static str {
                match self { $(Self::$name => $explanation),+ }
            }
        }
    };
}

codes! {
    IdentifierForged "identifier-forged" Warning
        "The request or a process names an identifier that the API server did not record for it. It is a claim."
    IdentifierReused "identifier-reused" Alarm
        "The identifier that the API server recorded for this request stands in other requests or other roots as well."
    ArgvDiffers "argv-differs-from-request" Warning
        "What ran is not what was asked: the webhook's rule replaced an argument."
    EntryWithoutAudit "entry-without-audit" Alarm
        "A process entered a container by the container runtime, and no audit record asks for it."
    UnexplainedSyncExec "unexplained-sync-exec" Notice
        "A command entered a container as the kubelet's probes and hooks do. No audit record showed the pod's spec, so it is not known whether it is one."
    NamespaceEntry "namespace-entry-without-audit" Alarm
        "A process of the host entered a container's namespaces without the container runtime."
    NamespaceEntered "namespace-entered" Alarm
        "A program of the session ran in the mount namespace of another container, or of the host (nsenter). It still belongs to the session."
    DaemonAsked "daemon-asked" Notice
        "A program of the session asked a daemon of the node to run something. What the daemon ran is not below the session and not told as part of it."
    CgroupMove "cgroup-move" Alarm
        "A process of the session was moved out of its container's cgroup. It still belongs to the session."
    OtherContainer "seen-in-other-container" Alarm
        "Processes of the session were seen in another container than it entered."
    VerdictSuppressed "verdict-suppressed" Alarm
        "A program started without a verdict on its execve, in a container where other programs have theirs."
    ActivityAfterClose "activity-after-close" Warning
        "Programs of the session started after its request had completed."
    NodeProxy "node-proxy" Warning
        "The access went to the kubelet through nodes/proxy, where admission and the rules for pods/exec do not apply."
    WebhookFailedOpen "webhook-failed-open" Warning
        "An admission webhook failed and was passed over, so that no identifier was injected."
    OneRouteOnly "one-route-only" Warning
        "Audit events came by one of the configured routes alone, and should have come by another as well."
    AuditDisagreement "audit-disagreement" Alarm
        "Audit records of the same stage of the same request differ."
    AuditIdReused "audit-id-reused" Warning
        "Several requests carry one audit id. Clients may choose it, and hide so from tools that keep one event of an id."
    AuditRouteSilent "audit-route-silent" Warning
        "Nothing comes by one of the configured routes of audit events any more. The other ones stand alone."
    ForeignPod "foreign-pod" Alarm
        "A node reports a pod that runs elsewhere by the API server's records."
    AuditGap "audit-gap" Warning
        "Audit events of the session's time were lost."
    NodeGap "node-gap" Warning
        "Records of the node that tell who belongs to whom were lost in the session's time."
    CoverageLost "coverage-lost" Warning
        "Verdicts were lost, or only counted, while the session ran."
    NodeSilent "node-silent" Warning
        "Nothing is heard of a node any more. Requests no longer wait for it."
    NodeWithoutAgent "node-without-agent" Warning
        "A node lives and no agent ever spoke for it. What is done in its containers is not seen."
    AuditSilent "audit-silent" Warning
        "No audit event comes any more. Whoever enters a container now stays without a name."
    MonitoringChanged "monitoring-changed" Notice
        "Somebody changed what the monitoring rests on: webhook configurations, profiles, or objects of seclog."
    NodeIdentityShared "node-identity-shared" Alarm
        "Two agents spoke for one node at the same time: the node's key was copied. What either says may be forged."
    NodeKeySecond "node-key-second" Alarm
        "Another key was certified for a node whose certificate had not ended: the node's state was lost, or somebody else holds a token of its agent."
    AgentEntered "agent-entered" Alarm
        "Somebody accessed a pod of seclog itself."
}

impl fmt::Display for Code {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl FindingNote {
    /// `subject`: what it is about, for the id; the request's or root's own id where there is one.
    pub(super) fn new(code: Code, cluster: &str, subject: &str, text: String, records: Vec<String>) -> Self {
        let id = ids::of_finding(cluster, code.as_str(), subject);
        let mut records = records;
        records.truncate(RECORDS);
        Self { id, code, severity: code.severity(), text, records }
    }

    pub(super) fn line(&self, cluster: &str, time: Timestamp, session: Option<Uuid>) -> Finding {
        let Self { id, code, severity, text, records } = self.clone();
        Finding {
            kind: FindingKind::Finding,
            id,
            code,
            severity,
            explanation: code.explanation().to_owned(),
            text,
            time,
            cluster: cluster.to_owned(),
            session,
            records,
        }
    }
}
