//! What the join says: a session, in its present revision. The field names are the JSON form.

use super::finding::FindingNote;
use crate::audit::{Credential, FailedOpen, WebhookNote};
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// One remote access as far as it is known. A later revision with the same id replaces the whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Session {
    /// For good: of the first request's identity, or of the root's where there is no request.
    pub id: Uuid,
    /// From 1. Revisions of one id are written in order.
    pub revision: u32,
    pub kind: Kind,
    pub evidence: Evidence,
    pub outcome: Outcome,
    pub state: State,
    /// In state `superseded`: the session that tells the story instead, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<Uuid>,
    /// When it began: the request's arrival, or the root's first exec.
    pub start: Timestamp,
    /// Why kind, evidence and outcome are what they are.
    pub reasons: Vec<String>,
    /// What an administrator should look at.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub findings: Vec<FindingNote>,
    /// What a client or process said of itself that nothing confirms.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub claims: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<SessionUser>,
    /// The request that decided; `other_requests` are its retries or the attach that goes with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Request>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub other_requests: Vec<Request>,
    #[serde(rename = "where")]
    pub place: Place,
    /// The first process of the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<RootProcess>,
    /// Programs that started, in the order of time.
    pub ran: Vec<Ran>,
    /// Further starts that were counted and not kept.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub ran_not_listed: u64,
    /// Logged seccomp verdicts by syscall and outcome: attempts, not what ran.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub verdicts: Vec<VerdictCount>,
    /// Verdicts of its containers in its time of which only the number is known: there was no room for records.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub verdicts_without_detail: Vec<BulkCount>,
    /// What the records could show of it, and what they never do.
    pub sees: Sees,
    /// Where the evidence is ambiguous: everything that could be the other half, none of it asserted.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub candidates: Vec<Candidate>,
    /// Declared losses that touch the session's time.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub losses: Vec<LossNote>,
    /// Why verdicts may be missing that ought to be there: what the node's check of its own configuration found.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub coverage: Vec<String>,
    /// Which streams speak for it: `audit/<route>`, `node/<name>`.
    pub attesters: Vec<String>,
}

impl Session {
    /// The last revision of an id that is no session any more.
    pub(super) fn empty(kind: Kind, start: Timestamp, place: Place) -> Self {
        Self {
            id: Uuid::nil(),
            revision: 0,
            kind,
            evidence: Evidence::NodeOnly,
            outcome: Outcome::Unrequested,
            state: State::Superseded,
            superseded_by: None,
            start,
            reasons: Vec::new(),
            findings: Vec::new(),
            claims: Vec::new(),
            user: None,
            request: None,
            other_requests: Vec::new(),
            place,
            root: None,
            ran: Vec::new(),
            ran_not_listed: 0,
            verdicts: Vec::new(),
            verdicts_without_detail: Vec::new(),
            sees: Sees::default(),
            candidates: Vec::new(),
            losses: Vec::new(),
            coverage: Vec::new(),
            attesters: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Exec,
    Rsh,
    Attach,
    PortForward,
    DebugContainer,
    DebugNode,
    NodeProxy,
    /// A root that no audit record explains.
    NodeEntry,
    /// The kubelet's own exec_sync of a command known from the pod's spec. Counted; written only where an earlier
    /// revision had taken it for something else.
    Probe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    Exact,
    Unique,
    Ambiguous,
    AuditOnly,
    NodeOnly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// 101 or 2xx: the API server let it pass. Not proof that anything ran.
    Accepted,
    /// 401 or 403.
    Denied,
    /// Any other 4xx or 5xx, or a panic.
    Failed,
    /// No response is known yet.
    Pending,
    /// There is no request.
    Unrequested,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Open,
    Closed,
    /// The last revision of this id: the matter goes on under another, or turned out to be none.
    Superseded,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionUser {
    pub username: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub uid: String,
    pub groups: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub credential: Option<SessionCredential>,
    /// Whom the user acted as.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub impersonated: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub impersonated_groups: Vec<String>,
    /// What the user said it were.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub impersonated_credential: Option<SessionCredential>,
}

/// With what a user showed who he is, as far as the API server's authenticator tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionCredential {
    /// What an OAuth token may be used for.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub scopes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub id: Vec<String>,
    /// The pod that a service account token is bound to, and its node.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub pod: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub pod_uid: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub node: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub node_uid: String,
}

/// An admission webhook that was asked about a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WebhookCall {
    pub webhook: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub configuration: String,
    pub mutated: bool,
    /// Operations and paths of its patch, without values.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub patch: Vec<String>,
    /// It could not be asked, and the request was let through: what it is, `mutating` or `validating`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub failed_open: Option<String>,
}

impl SessionCredential {
    /// `None`: the event says nothing of it.
    pub(super) fn of(credential: &Credential) -> Option<Self> {
        let Credential { scopes, id, pod_name, pod_uid, node_name, node_uid } = credential.clone();
        (!credential.is_empty()).then_some(Self { scopes, id, pod: pod_name, pod_uid, node: node_name, node_uid })
    }
}

impl WebhookCall {
    pub(super) fn of(note: &WebhookNote) -> Self {
        let WebhookNote { webhook, configuration, mutated, patch, failed_open } = note.clone();
        let failed_open = failed_open.map(|kind| match kind {
            FailedOpen::Mutating => "mutating".to_owned(),
            FailedOpen::Validating => "validating".to_owned(),
        });
        Self { webhook, configuration, mutated, patch, failed_open }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Request {
    pub verb: String,
    pub uri: String,
    pub argv: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    /// Clients may choose it.
    pub audit_id: String,
    pub received: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i64>,
    /// The address that the API server itself saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ip: Option<String>,
    /// Addresses that came in headers.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub claimed_source_ips: Vec<String>,
    /// A claim of the client.
    pub user_agent: String,
    /// Admission webhooks that were asked, as far as the audit event names them.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub webhooks: Vec<WebhookCall>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    pub cluster: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<String>,
    pub namespace: String,
    pub pod: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pod_uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub container: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub container_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RootProcess {
    pub node: String,
    pub boot_id: String,
    pub pid: u32,
    pub start_boottime_ns: u64,
    /// How it entered: exec, exec_sync, start, namespace_entry, other, unknown.
    pub entry: String,
    pub rule: String,
    pub lineage: String,
    /// Its first exec in the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entered: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exited: Option<Timestamp>,
    /// Wait status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ran {
    pub time: Timestamp,
    pub pid: u32,
    pub argv: Vec<String>,
    pub filename: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub interpreter: String,
    pub comm: String,
    pub uid: u32,
    #[serde(skip_serializing_if = "is_zero", default)]
    pub argv_truncated_bytes: u64,
    /// Started after the request had completed, by the clocks of node and API server.
    pub after_close: bool,
    /// The node record's id.
    pub record: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VerdictCount {
    pub syscall: String,
    /// executed, failed, unknown; empty for syscalls other than execve and execveat.
    pub outcome: String,
    pub count: u64,
}

/// Counts of the node's kernel: of everything in that container, not of this session alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BulkCount {
    pub container_id: String,
    pub syscall: String,
    pub action: String,
    pub count: u64,
    pub first: Timestamp,
    pub last: Timestamp,
    /// The node record's id.
    pub record: String,
}

/// What could be seen where the session was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sees {
    /// Program starts are reported: a node told of the session's root.
    pub process_starts: bool,
    /// Verdicts are reported: at least one came from a container of the session.
    pub verdicts: bool,
    /// What no record ever shows, in words.
    pub never: Vec<String>,
}

/// The other half of a pair that is not asserted, by its session.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Candidate {
    pub session: Uuid,
    pub side: Side,
    pub time: Timestamp,
    /// The request's user, or the root's node and pid.
    pub who: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Request,
    Root,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LossNote {
    /// `node/<name>` or `audit`.
    pub stream: String,
    pub source: String,
    pub reason: String,
    pub from: Timestamp,
    pub until: Timestamp,
    /// Absent: not known how many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

macro_rules! display_as_in_json {
    ($($type:ty { $($variant:ident => $text:literal),+ $(,)? })+) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(match self { $(Self::$variant => $text),+ })
            }
        }
    )+};
}

display_as_in_json! {
    Kind {
        Exec => "exec", Rsh => "rsh", Attach => "attach", PortForward => "port_forward",
        DebugContainer => "debug_container", DebugNode => "debug_node", NodeProxy => "node_proxy",
        NodeEntry => "node_entry", Probe => "probe",
    }
    Evidence {
        Exact => "exact", Unique => "unique", Ambiguous => "ambiguous", AuditOnly => "audit_only",
        NodeOnly => "node_only",
    }
    Outcome {
        Accepted => "accepted", Denied => "denied", Failed => "failed", Pending => "pending",
        Unrequested => "unrequested",
    }
    State { Open => "open", Closed => "closed", Superseded => "superseded" }
}
