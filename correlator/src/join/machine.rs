//! The state, and what each input does to it.

use super::attempt::Attempt;
use super::checks::Checks;
use super::knowledge::{Loss, Losses, Pods, Watermarks};
use super::matching::Around;
use super::release::Gone;
use super::root::{Root, RootKey};
use super::session::{LossNote, Session, State};
use super::story::{Draft, Stories, stories};
use super::{Config, Counters, Input, Route, Source, ask, ids};
use crate::audit::{AccessEvent, Identity, PodFact};
use crate::timestamp::Timestamp;
use seclog_proto::v1::node_record::Detail;
use seclog_proto::v1::{Container, NodeRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// Requests and roots that can only belong to each other.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    Pod {
        namespace: String,
        pod: String,
    },
    /// The names of its pod are not known.
    Nameless(RootKey),
}

#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) attempts: BTreeMap<Identity, Attempt>,
    pub(super) roots: BTreeSet<RootKey>,
    /// Written sessions that came from here.
    pub(super) written: BTreeSet<Uuid>,
    pub(super) probes: u64,
}

/// A container whose names are known, and when it was last heard of.
#[derive(Debug)]
pub(super) struct Named {
    container: Container,
    pub(super) seen: u64,
}

#[derive(Debug)]
pub(super) struct Written {
    pub(super) session: Session,
    pub(super) at: u64,
    /// [`Draft::signature`]; 0 for a withdrawn one.
    signature: u64,
}

#[derive(Debug)]
pub struct Join {
    pub(super) config: Config,
    pub(super) now: u64,
    pub(super) scopes: BTreeMap<Scope, Held>,
    pub(super) roots: BTreeMap<RootKey, (Root, Scope)>,
    pub(super) requests: usize,
    pub(super) written: BTreeMap<Uuid, Written>,
    pub(super) uid_uses: BTreeMap<String, u32>,
    /// Counts what was learnt about pods, losses and identifiers that are not unique.
    pub(super) knowledge: u64,
    /// By node and container id.
    pub(super) containers: BTreeMap<(Arc<str>, String), Named>,
    pub(super) pods: Pods,
    pub(super) losses: Losses,
    pub(super) checks: Checks,
    pub(super) watermarks: Watermarks,
    pub(super) dirty: BTreeSet<Scope>,
    /// Scopes with something to write that is not settled, and when to look again.
    pub(super) due: BTreeMap<Scope, u64>,
    pub(super) watermark_moved: bool,
    pub(super) gone: Gone,
    pub(super) swept: u64,
    pub(super) probes_let_go: u64,
    pub(super) counters: Counters,
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
            knowledge: 0,
            containers: BTreeMap::new(),
            pods: Pods::default(),
            losses: Losses::default(),
            checks: Checks::default(),
            watermarks: Watermarks::default(),
            dirty: BTreeSet::new(),
            due: BTreeMap::new(),
            watermark_moved: false,
            gone: Gone::default(),
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
            Input::NodeCheck { node, status } => {
                // Rare: checks that say nothing new are none.
                if self.checks.add(&node, status) {
                    self.knowledge += 1;
                    self.dirty.extend(self.scopes.keys().cloned());
                }
            }
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
        let mut record = record;
        self.name_container(node, &mut record);
        let known = self.roots.remove(&key);
        let id = known.as_ref().map_or_else(|| ids::of_root(&self.config.cluster, &key), |(root, _)| root.id);
        let (mut root, old_scope) = match known {
            Some((root, scope)) => (root, Some(scope)),
            None if self.gone.contains(&id) => {
                self.counters.late += 1;
                return;
            }
            None if self.roots.len() >= self.config.max_roots => {
                self.counters.refused_roots += 1;
                return;
            }
            None => (Root::new(id, key.clone()), None),
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

    /// Names that the agent learnt late, or of which it told with another record of the same container.
    fn name_container(&mut self, node: &Arc<str>, record: &mut NodeRecord) {
        let Some(container) = record.container.as_mut().filter(|container| !container.id.is_empty()) else { return };
        let key = (Arc::clone(node), container.id.clone());
        if let Some(known) = self.containers.get_mut(&key) {
            known.seen = self.now;
            if container.pod_name.is_empty() {
                container.clone_from(&known.container);
            }
        } else if !container.pod_name.is_empty() && self.containers.len() < self.config.max_containers {
            self.containers.insert(key, Named { container: container.clone(), seen: self.now });
            let named = container.clone();
            self.name_roots(node, &named);
        }
    }

    fn name_roots(&mut self, node: &Arc<str>, named: &Container) {
        let nameless: Vec<RootKey> = self
            .scopes
            .keys()
            .rev()
            .map_while(|scope| match scope {
                Scope::Nameless(key) => Some(key),
                Scope::Pod { .. } => None,
            })
            .filter(|key| key.node == *node)
            .cloned()
            .collect();
        for key in nameless {
            let Some((root, scope)) = self.roots.get_mut(&key) else { continue };
            if root.container().is_some_and(|container| container.id == named.id) {
                root.add_container(named.clone(), false, &self.config);
                let to = scope_of(root);
                let from = std::mem::replace(scope, to.clone());
                self.move_root(&key, &from, &to);
                self.scopes.entry(to.clone()).or_default().roots.insert(key);
                self.dirty.insert(to);
            }
        }
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
            None if self.gone.contains(&ids::of_request(&self.config.cluster, &event.identity)) => {
                self.counters.late += 1;
                return;
            }
            None if self.requests >= self.config.max_requests => {
                self.counters.refused_requests += 1;
                return;
            }
            None => {
                self.requests += 1;
                let id = ids::of_request(&self.config.cluster, &event.identity);
                held.attempts.insert(event.identity.clone(), Attempt::new(id, event, route, self.now));
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
            self.knowledge += 1;
            self.dirty.extend(self.scopes.keys().cloned());
        }
    }

    pub(super) fn forget_uid(&mut self, uid: Option<&str>) {
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
            self.knowledge += 1;
            self.dirty.insert(scope);
        }
    }

    fn loss(&mut self, loss: Loss) {
        // Rare; whom it touches is found out by looking.
        if self.losses.add(loss, &self.config) {
            self.knowledge += 1;
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
        if self.now.saturating_sub(self.swept) >= self.config.sweep_every_ns {
            self.swept = self.now;
            self.sweep();
        }
        written
    }

    pub(super) fn stories(&self, scope: &Scope) -> Stories {
        let Some(held) = self.scopes.get(scope) else { return Stories::default() };
        let asks = ask::fold(held.attempts.values());
        let roots: Vec<&Root> = held.roots.iter().filter_map(|key| self.roots.get(key)).map(|(root, _)| root).collect();
        let mains: Vec<&Root> = roots.iter().copied().filter(|root| root.entry.how == "start").collect();
        let roots: Vec<&Root> = roots.into_iter().filter(|root| !root.retired).collect();
        let around = Around {
            config: &self.config,
            pods: &self.pods,
            losses: &self.losses,
            checks: &self.checks,
            uid_uses: &self.uid_uses,
            knowledge: self.knowledge,
        };
        let written = |id: &Uuid| self.written.get(id).map(|written| written.signature);
        stories(&self.config.cluster, &asks, &roots, &mains, around, &written)
    }

    /// Writes what is new in a scope and may be said.
    fn evaluate(&mut self, scope: &Scope, all: bool) -> Vec<Session> {
        let Stories { drafts, unchanged, absorbed, probes, .. } = self.stories(scope);
        let Some(held) = self.scopes.get_mut(scope) else { return Vec::new() };
        held.probes = probes;
        let mut due = u64::MAX;
        let mut out = Vec::new();
        let mut told: BTreeSet<Uuid> = unchanged.into_iter().collect();
        for Draft { session, ready, silent, signature } in drafts {
            told.insert(session.id);
            let known = self.written.get_mut(&session.id);
            if silent && known.is_none() {
                continue;
            }
            let not_before = match known {
                Some(known) if same(&known.session, &session) => {
                    known.signature = signature;
                    continue;
                }
                Some(known) => known.at.saturating_add(self.config.revise_after_ns),
                None => {
                    let nodes_past = ready.nodes_past.is_some_and(|until| self.watermarks.nodes_are_past(until));
                    let audit_past = ready.audit_past.is_some_and(|until| self.watermarks.audit_is_past(until));
                    if nodes_past || audit_past { 0 } else { ready.at }
                }
            };
            if all || not_before <= self.now {
                held.written.insert(session.id);
                out.push((session, signature));
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
                out.push((session, 0));
            }
        }
        if due < u64::MAX {
            self.due.insert(scope.clone(), due);
        }
        let out: Vec<Session> = out
            .into_iter()
            .map(|(mut session, signature)| {
                session.revision = self.written.get(&session.id).map_or(0, |known| known.session.revision) + 1;
                let written = Written { session: session.clone(), at: self.now, signature };
                self.written.insert(session.id, written);
                session
            })
            .collect();
        self.counters.revisions += out.len() as u64;
        out
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
