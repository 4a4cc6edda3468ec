//! One request, put together from its stages. Merging is commutative and idempotent: stages come in any order, several
//! times, by several routes.

use super::Route;
use super::session::{Outcome, Request};
use crate::audit::{Access, AccessEvent, AccessKind, Identity, Stage, User};
use crate::timestamp::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

pub(super) type RequestKey = Arc<Identity>;

#[derive(Debug)]
pub(super) struct Attempt {
    /// Of the session that it would be alone.
    pub(super) id: Uuid,
    pub(super) identity: RequestKey,
    pub(super) user: User,
    pub(super) verb: String,
    pub(super) access: Access,
    stages: BTreeMap<Stage, StageFact>,
    source_ips: Vec<String>,
    user_agent: String,
    spo_uids: BTreeSet<String>,
    pub(super) failed_open: BTreeSet<String>,
    pub(super) routes: BTreeSet<Route>,
    /// Two records claim the same stage of the same request and differ.
    pub(super) disagreement: bool,
    /// The join's `now` when news of it last came. Only for deciding when to write.
    pub(super) arrived: u64,
    /// How often something new was learnt of it.
    pub(super) version: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct StageFact {
    time: u64,
    code: Option<i64>,
}

impl Attempt {
    pub(super) fn new(id: Uuid, event: AccessEvent, route: Route, now: u64) -> Self {
        let AccessEvent {
            identity,
            stage,
            stage_time,
            verb,
            code,
            user,
            access,
            source_ips,
            user_agent,
            spo_uid,
            failed_open,
        } = event;
        Self {
            id,
            identity: Arc::new(identity),
            user,
            verb,
            access,
            stages: BTreeMap::from([(stage, StageFact { time: stage_time, code })]),
            source_ips,
            user_agent,
            spo_uids: spo_uid.into_iter().collect(),
            failed_open: failed_open.into_iter().collect(),
            routes: BTreeSet::from([route]),
            disagreement: false,
            arrived: now,
            version: 0,
        }
    }

    /// True where this told something new.
    pub(super) fn merge(&mut self, event: AccessEvent, route: Route, now: u64) -> bool {
        let other = Self::new(self.id, event, route, now);
        let Self { user, verb, access, stages, source_ips, user_agent, spo_uids, failed_open, routes, .. } = self;
        let before = (stages.len(), spo_uids.len(), failed_open.len(), routes.len(), self.disagreement);
        for (stage, fact) in other.stages {
            let known = *stages.entry(stage).or_insert(fact);
            if known != fact {
                self.disagreement = true;
                stages.insert(stage, known.min(fact));
            }
        }
        // What identifies the request is equal; the rest differs only where somebody lies. The smaller one is kept, so
        // that the order of arrival does not decide.
        let mut keep_smaller = |known: &mut String, said: String| {
            if *known != said {
                self.disagreement = true;
                if said < *known {
                    *known = said;
                }
            }
        };
        keep_smaller(verb, other.verb);
        keep_smaller(user_agent, other.user_agent);
        if *user != other.user || *source_ips != other.source_ips {
            self.disagreement = true;
            let said = (other.user, other.source_ips);
            if said < (user.clone(), source_ips.clone()) {
                (*user, *source_ips) = said;
            }
        }
        // Early stages lack the bodies.
        let richness = |access: &Access| (access.new_containers.len(), access.pod_uid.is_some());
        let richer = richness(&other.access).cmp(&richness(access)).then_with(|| (*access).cmp(&other.access));
        if richer.is_gt() {
            *access = other.access;
        }
        spo_uids.extend(other.spo_uids);
        failed_open.extend(other.failed_open);
        routes.extend(other.routes);
        let after = (stages.len(), spo_uids.len(), failed_open.len(), routes.len(), self.disagreement);
        let news = before != after || richer.is_gt();
        if news {
            self.arrived = self.arrived.max(now);
            self.version += 1;
        }
        news
    }

    pub(super) fn started(&self) -> Option<u64> {
        self.stages.get(&Stage::ResponseStarted).map(|stage| stage.time)
    }

    pub(super) fn completed(&self) -> Option<u64> {
        [Stage::Panic, Stage::ResponseComplete].iter().find_map(|stage| self.stages.get(stage)).map(|stage| stage.time)
    }

    pub(super) fn code(&self) -> Option<i64> {
        self.stages.values().rev().find_map(|stage| stage.code)
    }

    pub(super) fn outcome(&self) -> Outcome {
        match self.code() {
            _ if self.stages.contains_key(&Stage::Panic) => Outcome::Failed,
            Some(401 | 403) => Outcome::Denied,
            Some(400..) => Outcome::Failed,
            Some(_) => Outcome::Accepted,
            None => Outcome::Pending,
        }
    }

    /// A 4xx was answered before anything was started. (5xx proves nothing: the kubelet's `run` answers 500 when the
    /// command it ran failed.)
    pub(super) fn could_have_run(&self) -> bool {
        !matches!(self.code(), Some(400..=499))
    }

    /// The identifier that SPO's webhook injected, where the records name exactly one.
    pub(super) fn spo_uid(&self) -> Option<&str> {
        if self.spo_uids.len() == 1 { self.spo_uids.first().map(String::as_str) } else { None }
    }

    pub(super) fn expects_root(&self) -> bool {
        matches!(
            self.access.kind,
            AccessKind::Exec
                | AccessKind::ProxyExec
                | AccessKind::ProxyRun
                | AccessKind::Ephemeral
                | AccessKind::NodeDebug
        )
    }

    pub(super) fn is_debug(&self) -> bool {
        matches!(self.access.kind, AccessKind::Ephemeral | AccessKind::NodeDebug)
    }

    /// Same person, in the same clothes.
    pub(super) fn same_user(&self, other: &Self) -> bool {
        self.identity.username == other.identity.username && self.identity.impersonated == other.identity.impersonated
    }

    pub(super) fn request(&self) -> Request {
        let (source_ip, claimed) = match self.source_ips.split_last() {
            Some((observed, claimed)) => (Some(observed.clone()), claimed.to_vec()),
            None => (None, Vec::new()),
        };
        let made = self.access.new_containers.first();
        Request {
            verb: self.verb.clone(),
            uri: self.identity.uri.clone(),
            argv: made.map_or_else(|| self.access.argv.clone(), |container| container.argv.clone()),
            tty: made.map_or(self.access.tty, |container| container.tty),
            stdin: made.map_or(self.access.stdin, |container| container.stdin),
            audit_id: self.identity.audit_id.clone(),
            received: Timestamp(self.identity.received),
            started: self.started().map(Timestamp),
            completed: self.completed().map(Timestamp),
            code: self.code(),
            source_ip,
            claimed_source_ips: claimed,
            user_agent: self.user_agent.clone(),
        }
    }
}
