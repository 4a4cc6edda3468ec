//! The state, and what each input does to it. What comes of it is [`super::evaluate`]'s.

use super::askers::Askers;
use super::attempt::RequestKey;
use super::attic::Attic;
use super::checks::Checks;
use super::concluded::Concluded;
use super::config::{REQUEST_BYTES, ROOT_BYTES};
use super::finding::{Code, Finding, FindingNote};
use super::identifiers::Identifiers;
use super::knowledge::{Loss, Losses, Pods, Watermarks};
use super::leases::Leases;
use super::naming::Containers;
use super::place::RootPlace;
use super::recurring::Recurring;
use super::release::Gone;
use super::root::{Root, RootKey};
use super::scope::{Held, Scope};
use super::session::{LossNote, Session};
use super::skew::Skews;
use super::spo::SpoLines;
use super::{Config, Counters, Input, Source, masked};
use crate::audit::{Digest, PodFact, User};
use crate::timestamp::Timestamp;
use ahash::{AHashMap, RandomState};
use seclog_proto::v1::NodeRecord;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use uuid::Uuid;

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
    pub(super) place: RootPlace,
    /// [`Root::face`] at which scope, place and identifiers were looked at.
    pub(super) face: Option<u64>,
    pub(super) identifiers: BTreeSet<String>,
    /// Counts news of pods, losses and identifiers that touch it.
    pub(super) knowledge: u64,
    pub(super) is_dirty: bool,
    pub(super) is_probe: bool,
    /// No session tells of it: what its programs do is no news.
    pub(super) is_workload: bool,
    pub(super) concluded: Option<Arc<Concluded>>,
    /// [`Root::has_verdicts`] that its scope knows of.
    pub(super) told_verdicts: (bool, bool),
    pub(super) release_at: Option<u64>,
}

#[derive(Debug)]
pub struct Join {
    pub(super) config: Config,
    pub(super) now: u64,
    pub(super) scopes: BTreeMap<Arc<Scope>, Box<Held>>,
    pub(super) roots: AHashMap<Arc<RootKey>, Box<Rooted>>,
    pub(super) requests: usize,
    /// Which request an audit event is of, by its digest.
    pub(super) events: AHashMap<Digest, (Arc<Scope>, RequestKey)>,
    pub(super) written: AHashMap<Uuid, Box<super::evaluate::Written>>,
    pub(super) identifiers: Identifiers,
    pub(super) containers: Containers,
    /// Each user as it was is held once: there are few, and much is known of each.
    pub(super) users: BTreeSet<Arc<User>>,
    /// The boot id that each node last spoke of.
    pub(super) boots: AHashMap<Arc<str>, Arc<str>>,
    /// Counts without detail of containers whose names are not known yet.
    pub(super) nameless_counts: VecDeque<(Arc<str>, NodeRecord)>,
    pub(super) pods: Pods,
    pub(super) losses: Losses,
    pub(super) checks: Checks,
    /// Losses whose sessions are not yet looked for.
    pub(super) fresh_losses: Vec<Loss>,
    /// When programs asked a daemon to run something, by node: what may have come of it is not yet looked for.
    pub(super) fresh_askers: BTreeMap<Arc<str>, BTreeSet<u64>>,
    pub(super) skews: Skews,
    pub(super) askers: Askers,
    pub(super) spo: SpoLines,
    pub(super) leases: Leases,
    pub(super) recurring: Recurring,
    pub(super) findings: VecDeque<Finding>,
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
    /// Of what sessions are told from: nobody outside knows its keys, so nobody makes two alike.
    pub(super) hashes: RandomState,
    /// When it was found that no room can be made.
    pub(super) tight_since: Option<u64>,
}

impl Join {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            now: 0,
            scopes: BTreeMap::new(),
            roots: AHashMap::new(),
            requests: 0,
            events: AHashMap::new(),
            written: AHashMap::new(),
            identifiers: Identifiers::default(),
            containers: Containers::default(),
            users: BTreeSet::new(),
            boots: AHashMap::new(),
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
            hashes: RandomState::new(),
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

    /// There is room for one request or root more.
    pub(super) fn has_room(&self) -> bool {
        self.requests * REQUEST_BYTES + self.roots.len() * ROOT_BYTES < self.config.most_element_bytes
    }

    pub fn counters(&self) -> Counters {
        Counters { probes: self.probes, refused_pods: self.pods.not_kept, ..self.counters }
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

    pub(super) fn loss(&mut self, loss: Loss) {
        if self.losses.add(loss.clone(), &self.config) {
            self.fresh_losses.push(loss);
        }
    }
}
