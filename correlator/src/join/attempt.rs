//! One request, put together from its stages. Merging is commutative and idempotent: stages come in any order, several
//! times, by several routes.

use super::Route;
use super::session::{Outcome, Request, WebhookCall};
use crate::audit::{Access, AccessEvent, AccessKind, Digest, FailedOpen, Identity, Stage, User, WebhookNote};
use crate::timestamp::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;
use uuid::Uuid;

/// Stages of a request, and then some: disagreeing events are as many as somebody makes up.
const MAX_DIGESTS: usize = 8;
const MAX_WEBHOOKS: usize = 32;

pub(super) type RequestKey = Arc<Identity>;

#[derive(Debug)]
pub(super) struct Attempt {
    /// Of the session that it would be alone.
    pub(super) id: Uuid,
    pub(super) identity: RequestKey,
    /// Shared by all requests of one user as it was.
    pub(super) user: Arc<User>,
    pub(super) verb: String,
    pub(super) access: Access,
    /// In the order of stages: two or three.
    stages: Vec<(Stage, StageFact)>,
    source_ip: Option<String>,
    claimed_source_ips: Vec<String>,
    user_agent: String,
    spo_uids: BTreeSet<String>,
    webhooks: BTreeSet<WebhookNote>,
    /// In order.
    pub(super) routes: Vec<Route>,
    /// Of its events, as far as they are kept: other routes name them so.
    digests: Vec<Digest>,
    /// One of its events at least came in time to be told from a repetition.
    pub(super) live: bool,
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
            source_ip,
            claimed_source_ips,
            user_agent,
            spo_uid,
            webhooks,
            digest: _,
            late,
        } = event;
        Self {
            id,
            identity: Arc::new(identity),
            user: Arc::new(user),
            verb,
            access,
            stages: vec![(stage, StageFact { time: stage_time, code })],
            source_ip,
            claimed_source_ips,
            user_agent,
            spo_uids: spo_uid.into_iter().collect(),
            webhooks: webhooks.into_iter().take(MAX_WEBHOOKS).collect(),
            routes: vec![route],
            digests: Vec::new(),
            live: !late,
            disagreement: false,
            arrived: now,
            version: 0,
        }
    }

    /// True where this told something new.
    pub(super) fn merge(&mut self, event: AccessEvent, route: Route, now: u64) -> bool {
        let other = Self::new(self.id, event, route, now);
        let Self { user, verb, access, stages, user_agent, spo_uids, webhooks, routes, .. } = self;
        let before = (stages.len(), spo_uids.len(), webhooks.len(), routes.len(), self.disagreement, self.live);
        self.live |= other.live;
        for (stage, fact) in other.stages {
            match stages.binary_search_by_key(&stage, |(stage, _)| *stage) {
                Ok(at) => {
                    let (_, known) = &mut stages[at];
                    if *known != fact {
                        self.disagreement = true;
                        *known = fact.min(*known);
                    }
                }
                Err(at) => stages.insert(at, (stage, fact)),
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
        let said = (other.user, other.source_ip, other.claimed_source_ips);
        let known = (user.clone(), self.source_ip.clone(), self.claimed_source_ips.clone());
        if said != known {
            self.disagreement = true;
            if said < known {
                (*user, self.source_ip, self.claimed_source_ips) = said;
            }
        }
        // Early stages lack the bodies.
        let richness = |access: &Access| (access.new_containers.len(), access.pod_uid.is_some());
        let richer = richness(&other.access).cmp(&richness(access)).then_with(|| (*access).cmp(&other.access));
        if richer.is_gt() {
            *access = other.access;
        }
        spo_uids.extend(other.spo_uids);
        webhooks.extend(other.webhooks);
        while webhooks.len() > MAX_WEBHOOKS {
            webhooks.pop_last();
        }
        insert(routes, route);
        let after = (stages.len(), spo_uids.len(), webhooks.len(), routes.len(), self.disagreement, self.live);
        let news = before != after || richer.is_gt();
        if news {
            self.arrived = self.arrived.max(now);
            self.version += 1;
        }
        news
    }

    /// One of its events came by this route as well. True where that is news.
    pub(super) fn seen_by(&mut self, route: Route, now: u64) -> bool {
        let news = insert(&mut self.routes, route);
        if news {
            self.arrived = self.arrived.max(now);
            self.version += 1;
        }
        news
    }

    /// True where the digest is kept from now on.
    pub(super) fn remember(&mut self, digest: Digest) -> bool {
        digest != Digest::default() && self.digests.len() < MAX_DIGESTS && insert(&mut self.digests, digest)
    }

    pub(super) fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.digests.iter()
    }

    fn stage(&self, stage: Stage) -> Option<&StageFact> {
        self.stages.iter().find(|(of, _)| *of == stage).map(|(_, fact)| fact)
    }

    pub(super) fn started(&self) -> Option<u64> {
        self.stage(Stage::ResponseStarted).map(|stage| stage.time)
    }

    pub(super) fn completed(&self) -> Option<u64> {
        [Stage::Panic, Stage::ResponseComplete].iter().find_map(|stage| self.stage(*stage)).map(|stage| stage.time)
    }

    pub(super) fn code(&self) -> Option<i64> {
        self.stages.iter().rev().find_map(|(_, stage)| stage.code)
    }

    pub(super) fn outcome(&self) -> Outcome {
        match self.code() {
            _ if self.stage(Stage::Panic).is_some() => Outcome::Failed,
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

    /// Mutating webhooks that failed and were passed over.
    pub(super) fn failed_open(&self) -> impl Iterator<Item = &str> {
        let failed = self.webhooks.iter().filter(|note| note.failed_open == Some(FailedOpen::Mutating));
        failed.map(|note| note.webhook.as_str())
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
            source_ip: self.source_ip.clone(),
            claimed_source_ips: self.claimed_source_ips.clone(),
            user_agent: self.user_agent.clone(),
            webhooks: self.webhooks.iter().map(WebhookCall::of).collect(),
        }
    }
}

/// Into what is short and in order; true where it was not there.
fn insert<T: Ord>(all: &mut Vec<T>, one: T) -> bool {
    match all.binary_search(&one) {
        Ok(_) => false,
        Err(at) => {
            all.insert(at, one);
            true
        }
    }
}
