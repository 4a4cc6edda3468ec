//! The state, and what each input does to it. What comes of it is [`super::evaluate`]'s.

use super::askers::{self, Askers};
use super::attempt::{Attempt, RequestKey};
use super::attic::{self, Attic};
use super::checks::Checks;
use super::concluded::Concluded;
use super::finding::{Code, Finding, FindingNote};
use super::identifiers::{self, Identifiers};
use super::knowledge::{Loss, Losses, Pods, Watermarks};
use super::leases::Leases;
use super::naming::Containers;
use super::place::RootPlace;
use super::recurring::Recurring;
use super::release::Gone;
use super::root::{Root, RootKey};
use super::scope::{Held, Scope};
use super::session::{BulkCount, LossNote, Session};
use super::skew::Skews;
use super::spo::SpoLines;
use super::{Config, Counters, Input, Route, Source, ids, masked};
use crate::audit::{AccessEvent, Digest, MonitoringChange, PodFact, User};
use crate::timestamp::Timestamp;
use seclog_proto::v1::NodeRecord;
use seclog_proto::v1::node_record::Detail;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use uuid::Uuid;

/// Nodes whose boot id is held once for all their records.
const MAX_BOOTS: usize = 20_000;
/// Findings that wait to be taken.
const MAX_FINDINGS: usize = 100_000;

/// A request or a root of a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Element {
    Ask(Arc<Scope>, RequestKey),
    Root(Arc<RootKey>),
}

/// A root, and where it stands.
#[derive(Debug)]
pub(super) struct Rooted {
    pub(super) root: Root,
    pub(super) scope: Arc<Scope>,
    place: RootPlace,
    /// [`Root::face`] at which scope, place and identifiers were looked at.
    face: Option<u64>,
    identifiers: BTreeSet<String>,
    /// Counts news of pods, losses and identifiers that touch it.
    pub(super) knowledge: u64,
    pub(super) is_dirty: bool,
    pub(super) is_probe: bool,
    /// No session tells of it: what its programs do is no news.
    pub(super) is_workload: bool,
    pub(super) concluded: Option<Arc<Concluded>>,
    /// [`Root::has_verdicts`] that its scope knows of.
    told_verdicts: (bool, bool),
    pub(super) release_at: Option<u64>,
}

impl Rooted {
    pub(super) fn place(&self) -> &RootPlace {
        &self.place
    }
}

#[derive(Debug)]
pub struct Join {
    pub(super) config: Config,
    pub(super) now: u64,
    pub(super) scopes: BTreeMap<Arc<Scope>, Box<Held>>,
    pub(super) roots: HashMap<Arc<RootKey>, Box<Rooted>>,
    pub(super) requests: usize,
    /// Which request an audit event is of, by its digest.
    events: HashMap<Digest, (Arc<Scope>, RequestKey)>,
    pub(super) written: HashMap<Uuid, Box<super::evaluate::Written>>,
    pub(super) identifiers: Identifiers,
    pub(super) containers: Containers,
    /// Each user as it was is held once: there are few, and much is known of each.
    pub(super) users: BTreeSet<Arc<User>>,
    /// The boot id that each node last spoke of.
    boots: HashMap<Arc<str>, Arc<str>>,
    /// Counts without detail of containers whose names are not known yet.
    pub(super) nameless_counts: VecDeque<(Arc<str>, NodeRecord)>,
    pub(super) pods: Pods,
    pub(super) losses: Losses,
    pub(super) checks: Checks,
    /// Losses whose sessions are not yet looked for.
    pub(super) fresh_losses: Vec<Loss>,
    /// When programs asked a daemon to run something, by node: what may have come of it is not yet looked for.
    fresh_askers: BTreeMap<Arc<str>, BTreeSet<u64>>,
    pub(super) skews: Skews,
    pub(super) askers: Askers,
    pub(super) spo: SpoLines,
    pub(super) leases: Leases,
    pub(super) recurring: Recurring,
    findings: VecDeque<Finding>,
    /// What was told of silence: each node's, and the audit stream's.
    pub(super) told_silent: BTreeSet<String>,
    pub(super) audit_is_silent: bool,
    pub(super) watermarks: Watermarks,
    /// Scopes with something that changed.
    pub(super) dirty: BTreeSet<Arc<Scope>>,
    /// What to look at again, and when.
    pub(super) due: BTreeSet<(u64, Element)>,
    /// What to look at again when all nodes, or the audit stream, are past a time.
    pub(super) waits_for_nodes: BTreeSet<(u64, Element)>,
    pub(super) waits_for_audit: BTreeSet<(u64, Element)>,
    /// What to let go, and when.
    pub(super) release: BTreeSet<(u64, Element)>,
    pub(super) gone: Gone,
    pub(super) swept: u64,
    pub(super) probes: u64,
    pub(super) counters: Counters,
    pub(super) attic: Option<Box<dyn Attic>>,
    /// Why it failed of late.
    pub(super) attic_failure: Option<String>,
    pub(super) deed_bytes: usize,
    /// When it was found that no room can be made.
    pub(super) tight_since: Option<u64>,
}

impl Join {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            now: 0,
            scopes: BTreeMap::new(),
            roots: HashMap::new(),
            requests: 0,
            events: HashMap::new(),
            written: HashMap::new(),
            identifiers: Identifiers::default(),
            containers: Containers::default(),
            users: BTreeSet::new(),
            boots: HashMap::new(),
            nameless_counts: VecDeque::new(),
            pods: Pods::default(),
            losses: Losses::default(),
            checks: Checks::default(),
            fresh_losses: Vec::new(),
            fresh_askers: BTreeMap::new(),
            skews: Skews::default(),
            askers: Askers::default(),
            spo: SpoLines::default(),
            leases: Leases::default(),
            recurring: Recurring::default(),
            findings: VecDeque::new(),
            told_silent: BTreeSet::new(),
            audit_is_silent: false,
            watermarks: Watermarks::default(),
            dirty: BTreeSet::new(),
            due: BTreeSet::new(),
            waits_for_nodes: BTreeSet::new(),
            waits_for_audit: BTreeSet::new(),
            release: BTreeSet::new(),
            gone: Gone::default(),
            swept: 0,
            probes: 0,
            counters: Counters::default(),
            attic: None,
            attic_failure: None,
            deed_bytes: 0,
            tight_since: None,
        }
    }

    /// Takes one input. What is to be written comes back with [`Input::Now`] and from [`Join::finish`].
    pub fn apply(&mut self, input: Input) -> Vec<Session> {
        match input {
            Input::Node { node, record } => self.node_record(&node, record),
            Input::Audit { route, mut event } => {
                if let Some(rules) = &self.config.masking {
                    masked::access(rules, &mut event);
                }
                self.watermarks.audit_heard(self.now, &self.config);
                self.watermarks.route(route, event.stage_time, self.now, &self.config);
                self.audit_event(route, *event);
            }
            Input::Pod(fact) => {
                self.watermarks.audit_heard(self.now, &self.config);
                self.pod(self.masked_pod(&fact));
            }
            Input::Spo(line) => self.spo_line(*line),
            Input::Lease(lease) => {
                self.watermarks.audit_heard(self.now, &self.config);
                self.watermarks.lease();
                self.leases.add(&lease.node, self.now);
            }
            Input::Monitoring(change) => self.monitoring(change),
            Input::NodeCheck { node, status } => {
                // Rare: checks that say nothing new are none.
                if self.checks.add(&node, status) {
                    self.mark_node(&node);
                }
            }
            Input::SharedIdentity { node, peers, time } => self.shared_identity(&node, peers, time),
            Input::AuditSeen { route, digest, stage_time } => {
                self.watermarks.audit_heard(self.now, &self.config);
                self.watermarks.route(route, stage_time, self.now, &self.config);
                self.audit_seen(route, digest);
            }
            Input::AuditRoute { route, silent_since } => {
                self.watermarks.route_silent(route, silent_since);
                if let Some(since) = silent_since {
                    let text = format!("no audit event came by {route} since {}", Timestamp(since));
                    let subject = format!("{route} {since}");
                    let records = vec![format!("audit/{route}")];
                    self.audit_finding(Code::AuditRouteSilent, since, &subject, text, records);
                }
            }
            Input::AuditFinding { code, time, subject, text, records } => {
                self.audit_finding(code, time, &subject, text, records);
            }
            Input::SecondKey { node, serial, peer, time } => self.second_key(&node, &serial, &peer, time),
            Input::AuditLoss { source, reason, from, until, count } => {
                let (from, until) = (Timestamp(from), Timestamp(until));
                let note = LossNote { stream: "audit".to_owned(), source, reason, from, until, count };
                self.loss(Loss { node: None, note });
            }
            Input::Watermark { source: Source::Node(node), until } => self.watermarks.node(node, until, self.now),
            Input::Watermark { source: Source::Audit, until } => {
                self.watermarks.audit(until, self.now, &self.config);
            }
            Input::Clock { node, sent, received } => {
                if self.skews.sample(&node, sent, received, &self.config) {
                    self.replace_all();
                }
            }
            Input::Now(now) => return self.tick(now),
        }
        Vec::new()
    }

    /// A fact of pods or main processes that was known before what is to come: it is no sign that a stream is alive.
    pub fn recall(&mut self, fact: Input) {
        match fact {
            Input::Node { node, record } => self.node_record(&node, record),
            Input::Pod(fact) => self.pod(self.masked_pod(&fact)),
            _ => {}
        }
    }

    /// As it is kept.
    pub fn masked_pod(&self, fact: &PodFact) -> PodFact {
        let mut fact = fact.clone();
        if let Some(rules) = &self.config.masking {
            masked::pod(rules, &mut fact);
        }
        fact
    }

    pub fn counters(&self) -> Counters {
        Counters { probes: self.probes, refused_pods: self.pods.not_kept, ..self.counters }
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
        if let Some(Detail::Amendment(amendment)) = record.detail {
            self.amend(node, record.container, amendment);
            return;
        }
        let Some(key) = self.root_key(node, &record) else {
            self.counters.outside_roots += 1;
            return;
        };
        let mut record = record;
        self.name_container(node, &mut record);
        if let Some(Detail::VerdictCount(_)) = record.detail {
            self.bulk_count(node, record);
            return;
        }
        let verdicts = matches!(record.detail, Some(Detail::Verdict(_)));
        if let Some(Detail::ProcessStart(start)) = &record.detail
            && let Some(program) = askers::asks(&start.filename)
        {
            let id = ids::of_root(&self.config.cluster, &key);
            self.askers.add(node, record.time_unix_ns, id, program);
            self.fresh_askers.entry(Arc::clone(node)).or_default().insert(record.time_unix_ns);
        }
        if let Some(rooted) = self.roots.get_mut(&key) {
            let before = rooted.root.deed_bytes();
            attic::bring_back(&mut rooted.root, &mut self.attic);
            rooted.root.add(record, &self.config, self.now);
            if rooted.root.retired {
                self.counters.late += 1;
                rooted.root.trim();
            }
            self.deed_bytes = (self.deed_bytes + rooted.root.deed_bytes()).saturating_sub(before);
            let news = verdicts && rooted.told_verdicts != rooted.root.has_verdicts;
            if news {
                rooted.told_verdicts = rooted.root.has_verdicts;
                let key = Arc::clone(&rooted.root.key);
                self.verdicts_seen(&key);
                self.look_at_root(&key);
                return;
            }
            let unchanged = rooted.face == Some(rooted.root.face);
            let quiet = unchanged && (rooted.is_dirty || rooted.is_workload || rooted.root.retired);
            if !quiet {
                let key = Arc::clone(&rooted.root.key);
                self.look_at_root(&key);
            }
            return;
        }
        let id = ids::of_root(&self.config.cluster, &key);
        if self.gone.contains(&id) {
            self.counters.late += 1;
            return;
        }
        if self.roots.len() >= self.config.max_roots {
            self.counters.refused_roots += 1;
            return;
        }
        let key = Arc::new(key);
        let mut root = Root::new(id, Arc::clone(&key));
        root.add(record, &self.config, self.now);
        self.add_known_facts(&mut root);
        let scope = Arc::new(scope_of(&root));
        self.deeds_changed(0, root.deed_bytes());
        let rooted = Rooted {
            root,
            scope,
            place: RootPlace::default(),
            face: None,
            identifiers: BTreeSet::new(),
            knowledge: 0,
            is_dirty: false,
            is_probe: false,
            is_workload: false,
            concluded: None,
            release_at: None,
            told_verdicts: (false, false),
        };
        self.roots.insert(Arc::clone(&key), Box::new(rooted));
        self.look_at_root(&key);
        if verdicts {
            self.verdicts_seen(&key);
        }
    }

    /// `None` for records that belong to no root.
    fn root_key(&mut self, node: &Arc<str>, record: &NodeRecord) -> Option<RootKey> {
        let root = record.session_root.as_ref().filter(|root| root.pid != 0)?;
        let boot_id = match self.boots.get(node) {
            Some(boot) if **boot == *record.boot_id => Arc::clone(boot),
            _ => {
                let boot: Arc<str> = record.boot_id.as_str().into();
                if self.boots.len() < MAX_BOOTS || self.boots.contains_key(node) {
                    self.boots.insert(Arc::clone(node), Arc::clone(&boot));
                }
                boot
            }
        };
        Some(RootKey { node: Arc::clone(node), boot_id, start_boottime_ns: root.start_boottime_ns, pid: root.pid })
    }

    /// A root is new or has changed: puts it where it belongs, and marks whom that concerns.
    pub(super) fn look_at_root(&mut self, key: &Arc<RootKey>) {
        let Some(rooted) = self.roots.get_mut(key) else { return };
        rooted.is_dirty = true;
        if rooted.face == Some(rooted.root.face) {
            self.tell_again(&Element::Root(Arc::clone(key)));
            return;
        }
        rooted.face = Some(rooted.root.face);
        let scope = scope_of(&rooted.root);
        let scope = self.scopes.get_key_value(&scope).map_or_else(|| Arc::new(scope), |(known, _)| Arc::clone(known));
        let place = RootPlace::of(&rooted.root);
        let is_main = rooted.root.entry.how == "start";
        let old_scope = std::mem::replace(&mut rooted.scope, Arc::clone(&scope));
        let old_place = std::mem::replace(&mut rooted.place, place.clone());
        let marked = identifiers::of_root(&rooted.root);
        let old_marked = std::mem::replace(&mut rooted.identifiers, marked.clone());

        let widen = self.skews.widest();
        if let Some(held) = self.scopes.get_mut(&old_scope) {
            let near: Vec<RequestKey> = held.index.asks_near(&old_place, &self.config, widen).map(Arc::clone).collect();
            held.dirty_asks.extend(near);
            held.index.remove_root(&old_place, key);
            if old_scope != scope {
                held.roots.remove(key);
                held.mains.remove(key);
            }
            self.dirty.insert(old_scope);
        }
        let held = self.scopes.entry(Arc::clone(&scope)).or_default();
        held.index.add_root(&place, key);
        held.roots.insert(Arc::clone(key));
        if is_main {
            held.mains.insert(Arc::clone(key));
            // Whoever attached to it names it.
            let attaches = held.asks.iter().filter(|(_, ask)| ask.place.buckets.is_empty());
            let attaches: Vec<RequestKey> = attaches.map(|(first, _)| Arc::clone(first)).collect();
            held.dirty_asks.extend(attaches);
        }
        self.mark_root(&scope, key);
        let repeated = self
            .roots
            .get(key)
            .map(|rooted| self.recurring.add(&scope, &rooted.root, self.now, self.config.max_commands));
        for first in repeated.into_iter().flatten() {
            self.mark(&Element::Root(first));
        }
        for uid in old_marked.difference(&marked) {
            self.identifiers.forget_root(uid, key);
            self.mark_holders(uid);
        }
        for uid in marked.difference(&old_marked) {
            self.identifiers.carry(uid, key);
            self.mark_holders(uid);
        }
    }

    /// The first verdicts of a root: its containers report them.
    fn verdicts_seen(&mut self, key: &Arc<RootKey>) {
        let Some(rooted) = self.roots.get(key) else { return };
        let Some(held) = self.scopes.get_mut(&rooted.scope) else { return };
        let mut news = false;
        for id in rooted.root.container_ids() {
            let (any, executed) = rooted.root.has_verdicts;
            news |= any && held.verdicts_in.len() < self.config.max_containers && held.verdicts_in.insert(id.clone());
            news |= executed && held.verdicts_in.contains(id) && held.exec_verdicts_in.insert(id.clone());
        }
        let roots: Vec<Arc<RootKey>> = if news { held.roots.iter().map(Arc::clone).collect() } else { Vec::new() };
        for key in roots {
            self.mark(&Element::Root(key));
        }
    }

    pub(super) fn bulk_count(&mut self, node: &Arc<str>, record: NodeRecord) {
        let nameless = record.container.as_ref().is_some_and(|container| container.pod_name.is_empty());
        if nameless {
            // An amendment may name it.
            if self.nameless_counts.len() >= self.config.counts_per_pod {
                self.nameless_counts.pop_front();
            }
            self.nameless_counts.push_back((Arc::clone(node), record));
            return;
        }
        let (Some(Detail::VerdictCount(count)), Some(container)) = (record.detail, record.container) else { return };
        let scope = Arc::new(Scope::Pod { namespace: container.pod_namespace, pod: container.pod_name });
        let held = self.scopes.entry(scope).or_default();
        if held.counts.len() >= self.config.counts_per_pod {
            return;
        }
        let (first, last) = (count.first_unix_ns, count.last_unix_ns.max(count.first_unix_ns));
        let count = BulkCount {
            container_id: container.id,
            syscall: count.syscall_name,
            action: count.action,
            count: count.count,
            first: Timestamp(first),
            last: Timestamp(last),
            record: record.id.clone(),
        };
        let in_it = held
            .roots
            .iter()
            .filter(|key| self.roots.get(*key).is_some_and(|rooted| rooted.root.has_container(&count.container_id)));
        let roots: Vec<Arc<RootKey>> = in_it.map(Arc::clone).collect();
        held.counts.insert(record.id, count);
        for key in roots {
            self.mark(&Element::Root(key));
        }
    }

    fn monitoring(&mut self, change: MonitoringChange) {
        self.watermarks.audit_heard(self.now, &self.config);
        let MonitoringChange { time, user, verb, object, audit_id } = change;
        let subject = format!("{time} {audit_id} {user} {verb} {object}");
        let note = FindingNote::new(
            Code::MonitoringChanged,
            &self.config.cluster,
            &subject,
            format!("{user} did {verb} {object}"),
            vec![audit_id],
        );
        self.found(note.line(&self.config.cluster, Timestamp(time), None));
    }

    fn shared_identity(&mut self, node: &Arc<str>, peers: Vec<String>, time: u64) {
        let text = format!("two agents speak for node {node}: {}", peers.join(" and "));
        let subject = format!("{node} {time}");
        let records = vec![format!("node/{node}")];
        let note = FindingNote::new(Code::NodeIdentityShared, &self.config.cluster, &subject, text, records);
        self.found(note.line(&self.config.cluster, Timestamp(time), None));
    }

    fn second_key(&mut self, node: &Arc<str>, serial: &str, peer: &str, time: u64) {
        let text = format!("another key was certified for node {node}, asked from {peer}: certificate {serial}");
        let records = vec![format!("node/{node}"), format!("certificate/{serial}")];
        let note = FindingNote::new(Code::NodeKeySecond, &self.config.cluster, serial, text, records);
        self.found(note.line(&self.config.cluster, Timestamp(time), None));
    }

    /// A finding to be written. What nobody takes is bounded: the oldest go, and are counted.
    pub(super) fn found(&mut self, finding: Finding) {
        if self.findings.len() >= MAX_FINDINGS {
            self.findings.pop_front();
            self.counters.findings_not_kept += 1;
        }
        self.findings.push_back(finding);
    }

    /// Findings since the last call, in the order in which they were found. One may come twice, with the same id.
    pub fn take_findings(&mut self) -> Vec<Finding> {
        self.findings.drain(..).collect()
    }

    fn mark_root(&mut self, scope: &Arc<Scope>, key: &Arc<RootKey>) {
        if let Some(held) = self.scopes.get_mut(scope) {
            held.dirty_roots.insert(Arc::clone(key));
        }
        if !self.dirty.contains(scope) {
            self.dirty.insert(Arc::clone(scope));
        }
    }

    /// Its time has come, or its programs did something.
    pub(super) fn tell_again(&mut self, element: &Element) {
        let scope = match element {
            Element::Root(key) => {
                let Some(rooted) = self.roots.get_mut(key) else { return };
                rooted.is_dirty = true;
                let Some(held) = self.scopes.get_mut(&rooted.scope) else { return };
                held.roots_again.insert(Arc::clone(key));
                &rooted.scope
            }
            Element::Ask(scope, key) => {
                let Some(held) = self.scopes.get_mut(scope) else { return };
                held.asks_again.insert(Arc::clone(key));
                scope
            }
        };
        if !self.dirty.contains(scope) {
            self.dirty.insert(Arc::clone(scope));
        }
    }

    /// Something that is known besides its own records changed.
    pub(super) fn mark(&mut self, element: &Element) {
        match element {
            Element::Root(key) => {
                let Some(rooted) = self.roots.get_mut(key) else { return };
                rooted.knowledge += 1;
                rooted.is_dirty = true;
                let scope = Arc::clone(&rooted.scope);
                self.mark_root(&scope, key);
            }
            Element::Ask(scope, key) => {
                let Some(held) = self.scopes.get_mut(scope) else { return };
                // A retry stands with the first try.
                let first = Arc::clone(held.first_of(key));
                if let Some(ask) = held.asks.get_mut(&first) {
                    ask.knowledge += 1;
                    held.dirty_asks.insert(first);
                    self.dirty.insert(Arc::clone(scope));
                }
            }
        }
    }

    /// Whoever has this identifier may have it alone no longer, or again; and whoever could have been meant by it may not
    /// be any more.
    pub(super) fn mark_holders(&mut self, uid: &str) {
        let (requests, roots) = self.identifiers.holders(uid);
        for (scope, request) in requests {
            self.mark(&Element::Ask(scope, request));
        }
        for key in roots {
            self.mark(&Element::Root(Arc::clone(&key)));
            let Some(rooted) = self.roots.get(&key) else { continue };
            if let Some(held) = self.scopes.get_mut(&rooted.scope) {
                let near: Vec<RequestKey> =
                    held.index.asks_near(&rooted.place, &self.config, self.skews.widest()).map(Arc::clone).collect();
                held.dirty_asks.extend(near);
            }
        }
    }

    /// Everything that is told of a node.
    fn mark_node(&mut self, node: &Arc<str>) {
        let asks = self
            .scopes
            .iter()
            .flat_map(|(scope, held)| held.asks.keys().map(|key| Element::Ask(Arc::clone(scope), Arc::clone(key))));
        let roots = self.roots.keys().filter(|key| key.node == *node).map(|key| Element::Root(Arc::clone(key)));
        let elements: Vec<Element> = asks.chain(roots).collect();
        for element in elements {
            self.mark(&element);
        }
    }

    fn replace_all(&mut self) {
        let widen = self.skews.widest();
        for (scope, held) in &mut self.scopes {
            held.replace_all(&self.config, widen);
            self.dirty.insert(Arc::clone(scope));
        }
    }

    fn audit_finding(&mut self, code: Code, time: u64, subject: &str, text: String, records: Vec<String>) {
        let note = FindingNote::new(code, &self.config.cluster, subject, text, records);
        self.found(note.line(&self.config.cluster, Timestamp(time), None));
    }

    /// A known event came by another route.
    fn audit_seen(&mut self, route: Route, digest: Digest) {
        let Some((scope, key)) = self.events.get(&digest).cloned() else { return };
        let Some(held) = self.scopes.get_mut(&scope) else { return };
        let Some(attempt) = held.attempts.get_mut(&key) else { return };
        if attempt.seen_by(route, self.now) {
            held.refold(&key, &self.config, self.skews.widest());
            self.dirty.insert(scope);
        }
    }

    fn audit_event(&mut self, route: Route, event: AccessEvent) {
        self.counters.audit_events += 1;
        let digest = event.digest;
        let scope = Scope::Pod { namespace: event.access.namespace.clone(), pod: event.access.pod.clone() };
        let scope = match self.scopes.get_key_value(&scope) {
            Some((known, _)) => Arc::clone(known),
            None => Arc::new(scope),
        };
        let held = self.scopes.entry(Arc::clone(&scope)).or_default();
        let known_uid = |attempt: &Attempt| attempt.spo_uid().map(str::to_owned);
        let (key, before, after) = match held.attempts.get_mut(&event.identity) {
            Some(attempt) => {
                let before = known_uid(attempt);
                if !attempt.merge(event, route, self.now) {
                    self.counters.repeated_audit_events += 1;
                    return;
                }
                (Arc::clone(&attempt.identity), before, known_uid(attempt))
            }
            None => {
                let id = ids::of_request(&self.config.cluster, &event.identity);
                if self.gone.contains(&id) {
                    self.counters.late += 1;
                    return;
                }
                if self.requests >= self.config.max_requests {
                    self.counters.refused_requests += 1;
                    return;
                }
                self.requests += 1;
                let mut attempt = Attempt::new(id, event, route, self.now);
                match self.users.get(&attempt.user) {
                    Some(known) => attempt.user = Arc::clone(known),
                    None => drop(self.users.insert(Arc::clone(&attempt.user))),
                }
                let (key, uid) = (Arc::clone(&attempt.identity), known_uid(&attempt));
                held.attempts.insert(Arc::clone(&key), Box::new(attempt));
                (key, None, uid)
            }
        };
        if held.attempts.get_mut(&key).is_some_and(|attempt| attempt.remember(digest)) {
            self.events.insert(digest, (Arc::clone(&scope), Arc::clone(&key)));
        }
        held.refold(&key, &self.config, self.skews.widest());
        self.dirty.insert(Arc::clone(&scope));
        if before != after {
            if let Some(uid) = before {
                self.identifiers.forget_request(&uid, &scope, &key);
                self.mark_holders(&uid);
            }
            if let Some(uid) = after {
                self.identifiers.record(&uid, &scope, &key);
                self.spo.recorded(&uid);
                self.mark_holders(&uid);
            }
        }
    }

    fn pod(&mut self, fact: PodFact) {
        let scope = Scope::Pod { namespace: fact.namespace.clone(), pod: fact.pod.clone() };
        if !self.pods.add(fact, &self.config) {
            return;
        }
        let Some((scope, held)) = self.scopes.get_key_value(&scope) else { return };
        let asks = held.asks.keys().map(|key| Element::Ask(Arc::clone(scope), Arc::clone(key)));
        let elements: Vec<Element> = asks.chain(held.roots.iter().map(Arc::clone).map(Element::Root)).collect();
        for element in elements {
            self.mark(&element);
        }
    }

    fn loss(&mut self, loss: Loss) {
        if self.losses.add(loss.clone(), &self.config) {
            self.fresh_losses.push(loss);
        }
    }

    /// Marks what the losses of late touch: one pass over everything that is held, however many they are.
    pub(super) fn mark_losses(&mut self) {
        let mut touched: BTreeMap<Option<Arc<str>>, (u64, u64)> = BTreeMap::new();
        for loss in std::mem::take(&mut self.fresh_losses) {
            let span = touched.entry(loss.node).or_insert((u64::MAX, 0));
            *span = (span.0.min(loss.note.from.0), span.1.max(loss.note.until.0));
        }
        if touched.is_empty() {
            return;
        }
        // A loss also keeps others from being told apart that fit what it touches.
        let reach = self.config.debug_start_within_ns.saturating_add(self.config.skew_ns);
        let touches = |node: Option<&Arc<str>>, from: u64, until: u64| {
            touched.iter().any(|(of, span)| {
                let here = of.is_none() || node.is_none() || of.as_ref() == node;
                here && span.0 <= until.saturating_add(reach) && from.saturating_sub(reach) <= span.1
            })
        };
        let mut elements = Vec::new();
        for (scope, held) in &self.scopes {
            for (first, ask) in &held.asks {
                let closed = held.attempts.get(first).and_then(|attempt| attempt.completed()).unwrap_or(u64::MAX);
                if touches(None, first.received, ask.place.until.max(closed)) {
                    elements.push(Element::Ask(Arc::clone(scope), Arc::clone(first)));
                }
            }
            for key in &held.roots {
                let Some(rooted) = self.roots.get(key) else { continue };
                if touches(Some(&key.node), rooted.root.first_seen, rooted.root.last_seen) {
                    elements.push(Element::Root(Arc::clone(key)));
                }
            }
        }
        for element in elements {
            self.mark(&element);
        }
    }

    /// What begins on a node soon after a program asked a daemon there may have come of it.
    pub(super) fn mark_askers(&mut self) {
        let asked = std::mem::take(&mut self.fresh_askers);
        if asked.is_empty() {
            return;
        }
        let follows = |key: &RootKey, entered: u64| {
            let times = asked.get(&key.node).and_then(|times| times.range(..=entered).next_back());
            times.is_some_and(|time| Askers::may_follow(*time, entered))
        };
        let after = self.roots.iter().filter(|(key, rooted)| follows(key, rooted.root.entered()));
        let after: Vec<Arc<RootKey>> = after.map(|(key, _)| Arc::clone(key)).collect();
        for key in after {
            self.mark(&Element::Root(key));
        }
    }

    /// Takes a root out of everything.
    pub(super) fn remove_root(&mut self, key: &Arc<RootKey>) {
        let Some(rooted) = self.roots.remove(key) else { return };
        self.deeds_changed(rooted.root.deed_bytes(), 0);
        if let (Some(slot), Some(attic)) = (rooted.root.slot(), &mut self.attic) {
            attic.remove(slot);
        }
        if let Some(at) = rooted.release_at {
            self.release.remove(&(at, Element::Root(Arc::clone(key))));
        }
        for uid in &rooted.identifiers {
            self.identifiers.forget_root(uid, key);
        }
        if let Some(held) = self.scopes.get_mut(&rooted.scope) {
            held.index.remove_root(&rooted.place, key);
            held.roots.remove(key);
            held.mains.remove(key);
            held.dirty_roots.remove(key);
        }
        self.gone.add(rooted.root.id, self.now);
    }

    /// Takes an ask with all its requests out of everything. `undecided`: the roots that it fits lose a candidate.
    pub(super) fn remove_ask(&mut self, scope: &Arc<Scope>, first: &RequestKey, undecided: bool) {
        let Some(held) = self.scopes.get_mut(scope) else { return };
        if let Some(ask) = held.asks.get(first) {
            if let Some(at) = ask.release_at {
                self.release.remove(&(at, Element::Ask(Arc::clone(scope), Arc::clone(first))));
            }
            if undecided {
                let near: Vec<Arc<RootKey>> = held.index.roots_near(&ask.place).map(Arc::clone).collect();
                for key in near {
                    if let Some(rooted) = self.roots.get_mut(&key) {
                        rooted.root.lost_candidates = true;
                    }
                }
            }
        }
        held.dirty_asks.remove(first);
        for attempt in held.remove_ask(first) {
            self.requests -= 1;
            if let Some(uid) = attempt.spo_uid() {
                self.identifiers.forget_request(uid, scope, &attempt.identity);
            }
            for digest in attempt.digests() {
                self.events.remove(digest);
            }
            self.gone.add(attempt.id, self.now);
        }
    }
}

fn scope_of(root: &Root) -> Scope {
    match root.container().filter(|container| !container.pod.is_empty()) {
        Some(container) => Scope::Pod { namespace: container.namespace.clone(), pod: container.pod.clone() },
        None => Scope::Nameless(Arc::clone(&root.key)),
    }
}
