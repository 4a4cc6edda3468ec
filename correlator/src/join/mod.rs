//! The join: who asked, and what ran, as sessions.
//!
//! A state machine without clock and I/O: records, watermarks and the time of day come in as [`Input`], revisions of
//! sessions come out. Facts merge so that their order does not matter; sessions are a function of the facts of one pod,
//! computed anew when something about it changed. So the same input in any order ends in the same sessions.
//!
//! Bounds: what is finished is let go after [`Config::horizon_ns`], and every collection has a cap. What a cap turned
//! away is counted in [`Counters`].

mod ask;
mod attempt;
mod fit;
mod ids;
mod knowledge;
mod matching;
mod root;
pub mod session;
mod story;

use crate::audit::{AccessEvent, Identity, PodFact};
use crate::timestamp::Timestamp;
use attempt::Attempt;
use knowledge::{Loss, Losses, Pods, Watermarks};
use matching::Around;
use root::{Root, RootKey};
use seclog_proto::v1::NodeRecord;
use seclog_proto::v1::node_record::Detail;
use session::{Kind, LossNote, Session, State};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use story::{Draft, Stories};
use uuid::Uuid;

#[derive(Debug)]
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

/// Times are nanoseconds.
#[derive(Debug, Clone)]
pub struct Config {
    pub cluster: String,
    /// How far the clocks of API server and node may be apart.
    pub skew_ns: u64,
    /// How long after the response has completed a root may still enter.
    pub slack_ns: u64,
    /// How long after the request a root may enter.
    pub start_within_ns: u64,
    /// The same for containers that have to be made first.
    pub debug_start_within_ns: u64,
    /// How long a finding is held back for what usually follows at once.
    pub settle_ns: u64,
    /// Revisions of one session are at least this far apart.
    pub revise_after_ns: u64,
    /// How long to wait for node records where no watermark tells.
    pub node_patience_ns: u64,
    /// How late audit events may be: a batching webhook waits 30 s by default.
    pub audit_lateness_ns: u64,
    /// Finished sessions are kept this long for late news.
    pub horizon_ns: u64,
    /// Sessions that never end are let go after this.
    pub longest_ns: u64,
    pub max_requests: usize,
    pub max_roots: usize,
    pub max_pods: usize,
    pub max_losses: usize,
    /// Ids of what was let go, so that stragglers are known as such.
    pub max_gone: usize,
    pub starts_per_root: usize,
    pub verdicts_per_root: usize,
    pub containers_per_root: usize,
    pub facts_per_pod: usize,
}

const SECOND: u64 = 1_000_000_000;

impl Config {
    pub fn new(cluster: impl Into<String>) -> Self {
        Self {
            cluster: cluster.into(),
            skew_ns: SECOND,
            slack_ns: SECOND,
            start_within_ns: 30 * SECOND,
            debug_start_within_ns: 600 * SECOND,
            settle_ns: 2 * SECOND,
            revise_after_ns: SECOND,
            node_patience_ns: 10 * SECOND,
            audit_lateness_ns: 45 * SECOND,
            horizon_ns: 900 * SECOND,
            longest_ns: 86_400 * SECOND,
            max_requests: 100_000,
            max_roots: 200_000,
            max_pods: 200_000,
            max_losses: 10_000,
            max_gone: 200_000,
            starts_per_root: 1_000,
            verdicts_per_root: 4_096,
            containers_per_root: 8,
            facts_per_pod: 64,
        }
    }
}

/// What came in and what became of it, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub node_records: u64,
    /// Records that belong to no session root.
    pub outside_roots: u64,
    pub audit_events: u64,
    pub repeated_audit_events: u64,
    pub revisions: u64,
    /// Probe roots that were let go, or are still held.
    pub probes: u64,
    /// News of roots that were retired or let go, and of requests that were let go.
    pub late: u64,
    /// Turned away because the join was full.
    pub refused_requests: u64,
    pub refused_roots: u64,
    pub refused_pods: u64,
    /// Let go although they had not ended.
    pub given_up: u64,
}

/// Requests and roots that can only belong to each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Pod {
        namespace: String,
        pod: String,
    },
    /// The names of its pod are not known.
    Nameless(RootKey),
}

#[derive(Debug, Default)]
struct Held {
    attempts: BTreeMap<Identity, Attempt>,
    roots: BTreeSet<RootKey>,
    /// Written sessions that came from here.
    written: BTreeSet<Uuid>,
    probes: u64,
}

#[derive(Debug)]
struct Written {
    session: Session,
    at: u64,
}

#[derive(Debug)]
pub struct Join {
    config: Config,
    now: u64,
    scopes: BTreeMap<Scope, Held>,
    roots: BTreeMap<RootKey, (Root, Scope)>,
    requests: usize,
    written: BTreeMap<Uuid, Written>,
    uid_uses: BTreeMap<String, u32>,
    pods: Pods,
    losses: Losses,
    watermarks: Watermarks,
    dirty: BTreeSet<Scope>,
    /// Scopes with something to write that is not settled, and when to look again.
    due: BTreeMap<Scope, u64>,
    watermark_moved: bool,
    gone: BTreeMap<Uuid, u64>,
    swept: u64,
    probes_let_go: u64,
    counters: Counters,
}

impl Join {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            now: 0,
            scopes: BTreeMap::new(),
            roots: BTreeMap::new(),
            requests: 0,
            written: BTreeMap::new(),
            uid_uses: BTreeMap::new(),
            pods: Pods::default(),
            losses: Losses::default(),
            watermarks: Watermarks::default(),
            dirty: BTreeSet::new(),
            due: BTreeMap::new(),
            watermark_moved: false,
            gone: BTreeMap::new(),
            swept: 0,
            probes_let_go: 0,
            counters: Counters::default(),
        }
    }

    /// Takes one input. What is to be written comes back with [`Input::Now`] and from [`Join::finish`].
    pub fn apply(&mut self, input: Input) -> Vec<Session> {
        match input {
            Input::Node { node, record } => self.node_record(&node, record),
            Input::Audit { route, event } => self.audit_event(route, *event),
            Input::Pod(fact) => self.pod(fact),
            Input::AuditLoss { source, reason, from, until, count } => {
                let (from, until) = (Timestamp(from), Timestamp(until));
                let note = LossNote { stream: "audit".to_owned(), source, reason, from, until, count };
                self.loss(Loss { node: None, note });
            }
            Input::Watermark { source: Source::Node(node), until } => {
                self.watermarks.node(node, until);
                self.watermark_moved = true;
            }
            Input::Watermark { source: Source::Audit, until } => {
                self.watermarks.audit(until);
                self.watermark_moved = true;
            }
            Input::Now(now) => return self.tick(now),
        }
        Vec::new()
    }

    /// Everything is in: all that is not written, settled or not.
    pub fn finish(&mut self) -> Vec<Session> {
        let scopes: Vec<Scope> = self.scopes.keys().cloned().collect();
        self.dirty.clear();
        self.due.clear();
        scopes.into_iter().flat_map(|scope| self.evaluate(&scope, true)).collect()
    }

    pub fn counters(&self) -> Counters {
        let probes = self.probes_let_go + self.scopes.values().map(|held| held.probes).sum::<u64>();
        Counters { probes, refused_pods: self.pods.not_kept, ..self.counters }
    }

    fn node_record(&mut self, node: &Arc<str>, record: NodeRecord) {
        self.counters.node_records += 1;
        if let Some(Detail::Loss(loss)) = record.detail {
            let note = LossNote {
                stream: format!("node/{node}"),
                source: loss.source,
                reason: loss.reason,
                from: Timestamp(loss.from_unix_ns),
                until: Timestamp(loss.until_unix_ns.max(loss.from_unix_ns)),
                count: loss.count_known.then_some(loss.count),
            };
            self.loss(Loss { node: Some(Arc::clone(node)), note });
            return;
        }
        let Some(key) = RootKey::of(node, &record) else {
            self.counters.outside_roots += 1;
            return;
        };
        let (mut root, old_scope) = match self.roots.remove(&key) {
            Some((root, scope)) => (root, Some(scope)),
            None if self.gone.contains_key(&ids::of_root(&self.config.cluster, &key)) => {
                self.counters.late += 1;
                return;
            }
            None if self.roots.len() >= self.config.max_roots => {
                self.counters.refused_roots += 1;
                return;
            }
            None => (Root::new(key.clone()), None),
        };
        root.add(record, &self.config, self.now);
        if root.retired {
            self.counters.late += 1;
            root.trim();
        }
        let scope = scope_of(&root);
        if let Some(old) = old_scope.filter(|old| *old != scope) {
            self.move_root(&key, &old, &scope);
        }
        self.scopes.entry(scope.clone()).or_default().roots.insert(key.clone());
        if !root.retired {
            self.dirty.insert(scope.clone());
        }
        self.roots.insert(key, (root, scope));
    }

    fn move_root(&mut self, key: &RootKey, from: &Scope, to: &Scope) {
        let id = ids::of_root(&self.config.cluster, key);
        let mut written = false;
        if let Some(held) = self.scopes.get_mut(from) {
            held.roots.remove(key);
            written = held.written.remove(&id);
            self.dirty.insert(from.clone());
        }
        if written {
            self.scopes.entry(to.clone()).or_default().written.insert(id);
        }
    }

    fn audit_event(&mut self, route: Route, event: AccessEvent) {
        self.counters.audit_events += 1;
        let scope = Scope::Pod { namespace: event.access.namespace.clone(), pod: event.access.pod.clone() };
        let uid = event.spo_uid.clone();
        let known_uid = |attempt: &Attempt| attempt.spo_uid().map(str::to_owned);
        let held = self.scopes.entry(scope.clone()).or_default();
        let (before, after) = match held.attempts.get_mut(&event.identity) {
            Some(attempt) => {
                let before = known_uid(attempt);
                if !attempt.merge(event, route, self.now) {
                    self.counters.repeated_audit_events += 1;
                    return;
                }
                (before, known_uid(attempt))
            }
            None if self.gone.contains_key(&ids::of_request(&self.config.cluster, &event.identity)) => {
                self.counters.late += 1;
                return;
            }
            None if self.requests >= self.config.max_requests => {
                self.counters.refused_requests += 1;
                return;
            }
            None => {
                self.requests += 1;
                held.attempts.insert(event.identity.clone(), Attempt::new(event, route, self.now));
                (None, uid)
            }
        };
        if before != after {
            // A use of an identifier counts for good while the request is held: never fewer than there are.
            self.use_uid(after.as_deref());
            self.forget_uid(before.as_deref());
        }
        self.dirty.insert(scope);
    }

    fn use_uid(&mut self, uid: Option<&str>) {
        let Some(uid) = uid else { return };
        let uses = self.uid_uses.entry(uid.to_owned()).or_default();
        *uses += 1;
        if *uses == 2 {
            // Whoever had it alone has it no longer.
            self.dirty.extend(self.scopes.keys().cloned());
        }
    }

    fn forget_uid(&mut self, uid: Option<&str>) {
        let Some(uid) = uid else { return };
        if let Some(uses) = self.uid_uses.get_mut(uid) {
            *uses = uses.saturating_sub(1);
            if *uses == 0 {
                self.uid_uses.remove(uid);
            }
        }
    }

    fn pod(&mut self, fact: PodFact) {
        let scope = Scope::Pod { namespace: fact.namespace.clone(), pod: fact.pod.clone() };
        if self.pods.add(fact, &self.config) && self.scopes.contains_key(&scope) {
            self.dirty.insert(scope);
        }
    }

    fn loss(&mut self, loss: Loss) {
        // Rare; whom it touches is found out by looking.
        if self.losses.add(loss, &self.config) {
            self.dirty.extend(self.scopes.keys().cloned());
        }
    }

    fn tick(&mut self, now: u64) -> Vec<Session> {
        self.now = self.now.max(now);
        let mut scopes = std::mem::take(&mut self.dirty);
        let look_at_all = std::mem::take(&mut self.watermark_moved);
        self.due.retain(|scope, due| {
            let look = look_at_all || *due <= now;
            if look {
                scopes.insert(scope.clone());
            }
            !look
        });
        let written = scopes.iter().flat_map(|scope| self.evaluate(scope, false)).collect();
        if self.now.saturating_sub(self.swept) >= self.config.horizon_ns / 16 {
            self.swept = self.now;
            self.sweep();
        }
        written
    }

    fn stories(&self, scope: &Scope) -> Stories {
        let Some(held) = self.scopes.get(scope) else { return Stories::default() };
        let asks = ask::fold(&self.config.cluster, held.attempts.values());
        let roots: Vec<&Root> = held
            .roots
            .iter()
            .filter_map(|key| self.roots.get(key))
            .map(|(root, _)| root)
            .filter(|root| !root.retired)
            .collect();
        let around = Around { config: &self.config, pods: &self.pods, losses: &self.losses, uid_uses: &self.uid_uses };
        story::stories(&self.config.cluster, &asks, &roots, around)
    }

    /// Writes what is new in a scope and may be said.
    fn evaluate(&mut self, scope: &Scope, all: bool) -> Vec<Session> {
        let Stories { drafts, absorbed, probes, .. } = self.stories(scope);
        let Some(held) = self.scopes.get_mut(scope) else { return Vec::new() };
        held.probes = probes;
        let mut due = u64::MAX;
        let mut out = Vec::new();
        let mut told = BTreeSet::new();
        for Draft { session, ready, silent } in drafts {
            told.insert(session.id);
            let known = self.written.get(&session.id);
            if silent && known.is_none() {
                continue;
            }
            let not_before = match known {
                Some(known) if same(&known.session, &session) => continue,
                Some(known) => known.at.saturating_add(self.config.revise_after_ns),
                None => {
                    let nodes_past = ready.nodes_past.is_some_and(|until| self.watermarks.nodes_are_past(until));
                    let audit_past = ready.audit_past.is_some_and(|until| self.watermarks.audit_is_past(until));
                    if nodes_past || audit_past { 0 } else { ready.at }
                }
            };
            if all || not_before <= self.now {
                held.written.insert(session.id);
                out.push(session);
            } else {
                due = due.min(not_before);
            }
        }
        let absorbed: BTreeMap<Uuid, Uuid> = absorbed.into_iter().collect();
        for id in held.written.difference(&told) {
            let Some(known) = self.written.get(id) else { continue };
            let mut session = known.session.clone();
            session.state = State::Superseded;
            session.superseded_by = absorbed.get(id).copied();
            if !same(&known.session, &session) {
                out.push(session);
            }
        }
        if due < u64::MAX {
            self.due.insert(scope.clone(), due);
        }
        for session in &mut out {
            session.revision = self.written.get(&session.id).map_or(0, |known| known.session.revision) + 1;
            self.written.insert(session.id, Written { session: session.clone(), at: self.now });
        }
        self.counters.revisions += out.len() as u64;
        out
    }

    /// Lets go what is finished, and what has gone on for too long.
    fn sweep(&mut self) {
        let config = self.config.clone();
        let (now, horizon) = (self.now, config.horizon_ns);
        for scope in self.scopes.keys().cloned().collect::<Vec<_>>() {
            if self.dirty.contains(&scope) || self.due.contains_key(&scope) {
                continue;
            }
            for part in self.stories(&scope).parts {
                let began = part.requests.iter().map(|identity| identity.received).max();
                let old = began.is_some_and(|began| began.saturating_add(config.longest_ns) < now);
                match part.idle_since {
                    Some(idle) if idle.saturating_add(horizon) < now => self.let_go(&scope, part),
                    None if part.workload => self.retire(&part, now.saturating_sub(config.debug_start_within_ns)),
                    None if old => {
                        self.counters.given_up += 1;
                        self.let_go(&scope, part);
                    }
                    _ => {}
                }
            }
            self.forget_exited(&scope);
        }
        self.scopes.retain(|_, held| !held.attempts.is_empty() || !held.roots.is_empty());
        self.losses.forget_before(now.saturating_sub(config.longest_ns));
        while self.gone.len() > config.max_gone {
            let Some((id, _)) = self.gone.iter().min_by_key(|(_, at)| **at).map(|(id, at)| (*id, *at)) else { break };
            self.gone.remove(&id);
        }
        self.gone.retain(|_, at| at.saturating_add(horizon * 4) > now);
    }

    /// Main processes of containers, once no request can be for them any more.
    fn retire(&mut self, part: &story::Part, before: u64) {
        for key in &part.roots {
            if let Some((root, _)) = self.roots.get_mut(key).filter(|(root, _)| root.entered() < before) {
                root.retire();
            }
        }
    }

    fn forget_exited(&mut self, scope: &Scope) {
        let Some(held) = self.scopes.get_mut(scope) else { return };
        let before = self.now.saturating_sub(self.config.horizon_ns);
        held.written.retain(|id| {
            let over = self
                .written
                .get(id)
                .is_none_or(|written| written.session.state == State::Superseded && written.at < before);
            if over {
                self.written.remove(id);
            }
            !over
        });
        held.roots.retain(|key| {
            let Some((root, _)) = self.roots.get(key) else { return false };
            let over = root.retired && !root.is_running() && root.last_seen < before;
            if over {
                self.roots.remove(key);
            }
            !over
        });
    }

    fn let_go(&mut self, scope: &Scope, part: story::Part) {
        let Some(held) = self.scopes.get_mut(scope) else { return };
        let mut uids = Vec::new();
        for identity in &part.requests {
            if let Some(attempt) = held.attempts.remove(identity) {
                self.requests -= 1;
                uids.extend(attempt.spo_uid().map(str::to_owned));
                self.gone.insert(ids::of_request(&self.config.cluster, identity), self.now);
            }
        }
        for key in &part.roots {
            held.roots.remove(key);
            self.roots.remove(key);
            self.gone.insert(ids::of_root(&self.config.cluster, key), self.now);
        }
        for id in &part.sessions {
            let written = self.written.remove(id);
            held.written.remove(id);
            if written.is_none_or(|written| written.session.kind == Kind::Probe) && !part.roots.is_empty() {
                self.probes_let_go += u64::from(part.requests.is_empty());
            }
        }
        for uid in uids {
            self.forget_uid(Some(&uid));
        }
    }
}

fn scope_of(root: &Root) -> Scope {
    match root.container().filter(|container| !container.pod.is_empty()) {
        Some(container) => Scope::Pod { namespace: container.namespace.clone(), pod: container.pod.clone() },
        None => Scope::Nameless(root.key.clone()),
    }
}

/// Equal but for the revision.
fn same(written: &Session, draft: &Session) -> bool {
    let mut draft = draft.clone();
    draft.revision = written.revision;
    *written == draft
}
