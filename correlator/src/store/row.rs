//! A session as the store has it: its columns, and the whole as JSON.

use super::held::RootId;
use crate::join::finding::Finding;
use crate::join::session::{Session, State};
use uuid::Uuid;

/// What has not ended.
pub(super) const NEVER: i64 = i64::MAX;

#[derive(Debug)]
pub(super) struct SessionRow {
    pub(super) id: Uuid,
    pub(super) revision: u32,
    pub(super) told_at: u64,
    pub(super) begun: i64,
    pub(super) ended: i64,
    pub(super) state: String,
    pub(super) kind: String,
    pub(super) evidence: String,
    pub(super) outcome: String,
    pub(super) username: String,
    pub(super) impersonated: String,
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) container: String,
    pub(super) node: String,
    pub(super) root: Option<RootId>,
    pub(super) programs: u64,
    /// Code and id.
    pub(super) findings: Vec<(&'static str, Uuid)>,
    pub(super) json: String,
}

#[derive(Debug)]
pub(super) struct FindingRow {
    pub(super) id: Uuid,
    pub(super) told_at: u64,
    pub(super) time: i64,
    pub(super) code: &'static str,
    pub(super) session: Option<Uuid>,
    pub(super) json: String,
}

impl SessionRow {
    pub(super) fn of(session: &Session, told_at: u64) -> Result<Self, serde_json::Error> {
        let user = session.user.as_ref();
        let place = &session.place;
        Ok(Self {
            id: session.id,
            revision: session.revision,
            told_at,
            begun: signed(session.start.0),
            ended: ended(session),
            state: session.state.to_string(),
            kind: session.kind.to_string(),
            evidence: session.evidence.to_string(),
            outcome: session.outcome.to_string(),
            username: user.map(|user| user.username.clone()).unwrap_or_default(),
            impersonated: user.and_then(|user| user.impersonated.clone()).unwrap_or_default(),
            namespace: place.namespace.clone(),
            pod: place.pod.clone(),
            container: place.container.clone().unwrap_or_default(),
            node: place.node.clone().unwrap_or_default(),
            root: RootId::of(session),
            programs: session.ran.len() as u64 + session.ran_not_listed,
            findings: session.findings.iter().map(|finding| (finding.code.as_str(), finding.id)).collect(),
            json: serde_json::to_string(session)?,
        })
    }
}

impl FindingRow {
    pub(super) fn of(finding: &Finding, told_at: u64) -> Result<Self, serde_json::Error> {
        Ok(Self {
            id: finding.id,
            told_at,
            time: signed(finding.time.0),
            code: finding.code.as_str(),
            session: finding.session,
            json: serde_json::to_string(finding)?,
        })
    }
}

/// When the last of it was: the request's end, the root's, or the last program's start.
fn ended(session: &Session) -> i64 {
    if session.state == State::Open {
        return NEVER;
    }
    let requests = session.request.iter().chain(&session.other_requests).filter_map(|request| request.completed);
    let exited = session.root.iter().filter_map(|root| root.exited);
    let last = requests.chain(exited).chain(session.ran.last().map(|ran| ran.time)).max();
    signed(last.unwrap_or(session.start).0.max(session.start.0))
}

/// SQLite's numbers are signed; 2262 is far enough.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(NEVER)
}

pub(super) fn unsigned(number: i64) -> u64 {
    number.try_into().unwrap_or_default()
}
