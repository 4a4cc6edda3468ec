//! What the join said, held against what happened.

use crate::world::{Access, NODES};
use seclog_correlator::join::session::{Evidence, Session, State};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Accesses that were asked for and ran.
    pub(crate) true_pairs: u64,
    pub(crate) exact: u64,
    pub(crate) unique: u64,
    pub(crate) ambiguous: u64,
    /// In any revision, at any time.
    pub(crate) wrong_exact: u64,
    /// In the last revision of a session.
    pub(crate) wrong_unique: u64,
    /// Said while records were still on their way, and taken back.
    pub(crate) wrong_for_a_while: u64,
    /// Programs of another access in a session's list.
    pub(crate) foreign: u64,
    pub(crate) revisions: u64,
}

impl Verdict {
    /// Percent of the true pairs that are named, by exact or unique evidence.
    pub(crate) fn recall(&self) -> f64 {
        let named = self.exact + self.unique - self.wrong_unique;
        if self.true_pairs == 0 { 100.0 } else { named as f64 / self.true_pairs as f64 * 100.0 }
    }
}

pub(crate) struct Judge<'a> {
    /// By audit id and arrival.
    requests: BTreeMap<(&'a str, u64), u64>,
    /// By node, start and pid.
    roots: BTreeMap<(&'static str, u64, u32), u64>,
    last: BTreeMap<String, Session>,
    verdict: Verdict,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(accesses: &'a [Access]) -> Self {
        let mut judge = Self {
            requests: BTreeMap::new(),
            roots: BTreeMap::new(),
            last: BTreeMap::new(),
            verdict: Verdict::default(),
        };
        for access in accesses {
            if let Some(request) = &access.request {
                judge.requests.insert((&request.audit_id, request.received), access.number);
            }
            if let Some(tree) = &access.tree {
                judge.roots.insert((NODES[access.node()], tree.born, tree.pid), access.number);
            }
            judge.verdict.true_pairs += u64::from(access.request.is_some() && access.tree.is_some());
        }
        judge
    }

    pub(crate) fn hear(&mut self, sessions: Vec<Session>) {
        for session in sessions {
            self.verdict.revisions += 1;
            if self.is_wrong(&session) {
                match session.evidence {
                    Evidence::Exact => self.verdict.wrong_exact += 1,
                    _ => self.verdict.wrong_for_a_while += 1,
                }
            }
            self.last.insert(session.id.to_string(), session);
        }
    }

    /// It names somebody for what somebody else, or nobody, asked for.
    fn is_wrong(&self, session: &Session) -> bool {
        if !matches!(session.evidence, Evidence::Exact | Evidence::Unique) || session.state == State::Superseded {
            return false;
        }
        let asked = session
            .request
            .as_ref()
            .and_then(|request| self.requests.get(&(request.audit_id.as_str(), request.received.0)).copied());
        asked.is_none() || asked != self.ran(session)
    }

    fn ran(&self, session: &Session) -> Option<u64> {
        let root = session.root.as_ref()?;
        let node = NODES.iter().find(|node| **node == root.node)?;
        self.roots.get(&(*node, root.start_boottime_ns, root.pid)).copied()
    }

    pub(crate) fn verdict(mut self) -> Verdict {
        let mut wrong = 0;
        for session in self.last.values().filter(|session| session.state != State::Superseded) {
            wrong += u64::from(session.evidence == Evidence::Unique && self.is_wrong(session));
            let number = self.ran(session).map(|number| format!("{number}:"));
            let foreign =
                session.ran.iter().filter(|ran| number.as_ref().is_none_or(|number| !ran.record.starts_with(number)));
            self.verdict.foreign += foreign.count() as u64;
            match session.evidence {
                Evidence::Exact => self.verdict.exact += 1,
                Evidence::Unique => self.verdict.unique += 1,
                Evidence::Ambiguous => self.verdict.ambiguous += u64::from(session.request.is_some()),
                _ => {}
            }
        }
        self.verdict.wrong_unique = wrong;
        self.verdict
    }
}
