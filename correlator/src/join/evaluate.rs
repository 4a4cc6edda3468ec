//! From what changed to what is written. Only the components of requests and roots that something changed about are looked
//! at; what has to wait is looked at again when its time comes.

use super::Join;
use super::attempt::RequestKey;
use super::component::Pod;
use super::concluded::Concluded;
use super::finding::{Code, FindingNote};
use super::knowledge::AuditState;
use super::machine::Element;
use super::matching::{Around, Component, Unit, units};
use super::root::{Root, RootKey};
use super::scope::Scope;
use super::session::{Kind, Place, Session};
use super::story::{Draft, Ready, Story, Tell};
use super::telling::Teller;
use crate::audit::Identity;
use crate::timestamp::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;
use uuid::Uuid;

/// What was last written of a session: enough to know whether there is news, and to take it back.
#[derive(Debug)]
pub(super) struct Written {
    revision: u32,
    at: u64,
    /// When its first revision was.
    first_at: u64,
    /// Of everything that it was told from; 0 where it was taken back.
    signature: u64,
    /// Of all of that but the programs of its root.
    frame: u64,
    /// Of its text.
    content: u64,
    superseded: bool,
    /// Findings that have had their line.
    findings: Vec<Uuid>,
    kind: Kind,
    start: Timestamp,
    place: Place,
}

/// How things stand at one time of day, the same for all sessions.
#[derive(Debug)]
pub(super) struct Moment {
    /// Everything is in: nothing is waited for.
    pub(super) all: bool,
    pub(super) nodes_are_past: Option<u64>,
    /// No node has ever said how far it is.
    pub(super) no_nodes: bool,
    /// Nodes of which nothing is heard any more, in words.
    pub(super) silent_nodes: Option<String>,
    pub(super) audit_is_past: u64,
    pub(super) audit: AuditState,
}

/// What is told of one pod at one time.
#[derive(Default)]
struct Told {
    stories: Vec<Story>,
    concluded: Vec<Concluded>,
    asks: BTreeSet<RequestKey>,
    roots: BTreeSet<Arc<RootKey>>,
}

impl Told {
    fn has(&self, element: &Element) -> bool {
        match element {
            Element::Ask(_, key) => self.asks.contains(key),
            Element::Root(key) => self.roots.contains(key),
        }
    }
}

impl Join {
    /// All that is not written, settled or not. What comes after this is joined as before.
    pub fn finish(&mut self) -> Vec<Session> {
        self.mark_losses();
        self.mark_askers();
        for (scope, held) in &mut self.scopes {
            held.dirty_asks.extend(held.asks.keys().map(Arc::clone));
            held.dirty_roots.extend(held.roots.iter().map(Arc::clone));
            self.dirty.insert(Arc::clone(scope));
        }
        self.find_unknown_identifiers(true);
        self.evaluate_dirty(true)
    }

    pub(super) fn tick(&mut self, now: u64) -> Vec<Session> {
        self.now = self.now.max(now);
        self.mark_losses();
        self.mark_askers();
        self.find_silence();
        self.find_unknown_identifiers(false);
        let nodes_are_past = self.watermarks.nodes_are_past(self.now, &self.config);
        let audit_is_past = self.watermarks.audit_is_past();
        let mut again = take_until(&mut self.due, self.now);
        again.extend(nodes_are_past.into_iter().flat_map(|past| take_until(&mut self.waits_for_nodes, past)));
        let is_silent = matches!(self.watermarks.audit_state(self.now, &self.config), AuditState::Silent { .. });
        // When the stream falls silent nobody waits for it any more.
        let begins = is_silent && !std::mem::replace(&mut self.audit_is_silent, is_silent);
        self.audit_is_silent = is_silent;
        let audit_is_past = if begins { u64::MAX } else { audit_is_past };
        again.extend(take_until(&mut self.waits_for_audit, audit_is_past));
        if self.now.saturating_sub(self.swept) >= self.config.sweep_every_ns {
            self.swept = self.now;
            for element in take_until(&mut self.release, self.now) {
                match &element {
                    Element::Root(key) => {
                        if let Some(rooted) = self.roots.get_mut(key) {
                            rooted.release_at = None;
                        }
                    }
                    Element::Ask(scope, key) => {
                        let ask = self.scopes.get_mut(scope).and_then(|held| held.asks.get_mut(key));
                        if let Some(ask) = ask {
                            ask.release_at = None;
                        }
                    }
                }
                again.push(element);
            }
            self.forget();
        }
        for element in &again {
            self.tell_again(element);
        }
        let told = self.evaluate_dirty(false);
        self.make_room();
        told
    }

    fn evaluate_dirty(&mut self, all: bool) -> Vec<Session> {
        let moment = Moment {
            all,
            nodes_are_past: self.watermarks.nodes_are_past(self.now, &self.config),
            no_nodes: self.watermarks.no_nodes(),
            silent_nodes: self.watermarks.silent_nodes(self.now, &self.config),
            audit_is_past: self.watermarks.audit_is_past(),
            audit: self.watermarks.audit_state(self.now, &self.config),
        };
        let scopes = std::mem::take(&mut self.dirty);
        scopes.iter().flat_map(|scope| self.evaluate(scope, &moment)).collect()
    }

    /// A line for each node, and for the audit stream, when it falls silent.
    fn find_silence(&mut self) {
        let nodes = self.watermarks.silent(self.now, &self.config);
        let audit = self.watermarks.audit_silent_since(self.now, &self.config);
        let nodes = nodes.into_iter().map(|(node, since)| {
            let lives = match self.leases.lives(&node, self.now, &self.config) {
                Some(true) => "; the node lives, by its lease: its agent is stopped or cut off",
                Some(false) => "; the node does not renew its lease either",
                None => "",
            };
            let stream = format!("node/{node}");
            let text = format!("nothing is heard of {stream}; the last was of {}{lives}", Timestamp(since));
            (Code::NodeSilent, stream, since, text)
        });
        let audit = audit.map(|since| {
            let text = format!("nothing is heard of audit; the last was of {}", Timestamp(since));
            (Code::AuditSilent, "audit".to_owned(), since, text)
        });
        // Where no agent ever spoke, there are none, and that is no news of a node.
        let settled = self.leases.settled(self.now, &self.config).filter(|_| !self.watermarks.no_nodes());
        let without = settled.filter(|(node, _)| !self.watermarks.knows(node)).map(|(node, since)| {
            let text = format!(
                "node {node} lives by its lease since {} at least, and no agent speaks for it",
                Timestamp(since)
            );
            (Code::NodeWithoutAgent, format!("lease/{node}"), since, text)
        });
        let silent: Vec<(Code, String, u64, String)> = nodes.chain(audit).chain(without).collect();
        let names: BTreeSet<String> = silent.iter().map(|(_, stream, ..)| stream.clone()).collect();
        for (code, stream, since, text) in silent {
            if !self.told_silent.contains(&stream) {
                let subject = format!("{stream} {since}");
                let note = FindingNote::new(code, &self.config.cluster, &subject, text, vec![stream]);
                self.found(note.line(&self.config.cluster, Timestamp(since), None));
            }
        }
        self.told_silent = names;
    }

    /// Writes what is new in a scope and may be said, and lets go what is over.
    fn evaluate(&mut self, scope: &Arc<Scope>, moment: &Moment) -> Vec<Session> {
        let Some(held) = self.scopes.get_mut(scope) else { return Vec::new() };
        let dirty_asks = std::mem::take(&mut held.dirty_asks);
        let dirty_roots = std::mem::take(&mut held.dirty_roots);
        let asks_again = std::mem::take(&mut held.asks_again);
        let roots_again = std::mem::take(&mut held.roots_again);
        for key in dirty_roots.iter().chain(&roots_again) {
            if let Some(rooted) = self.roots.get_mut(key) {
                rooted.is_dirty = false;
            }
        }
        let mut told = Told::default();
        if let Some(held) = self.scopes.get(scope) {
            let pod = Pod::new(scope, held);
            let of_asks = |keys: BTreeSet<_>| keys.into_iter().map(|key| Element::Ask(Arc::clone(scope), key));
            for start in of_asks(dirty_asks).chain(dirty_roots.into_iter().map(Element::Root)) {
                if held.has(&start) && !told.has(&start) {
                    self.conclude(&pod, &start, moment, &mut told);
                }
            }
            // Nothing changed that decides what fits what: what was concluded holds.
            for element in of_asks(asks_again).chain(roots_again.into_iter().map(Element::Root)) {
                if !held.has(&element) || told.has(&element) {
                    continue;
                }
                match self.concluded(held, &element) {
                    Some(concluded) => {
                        if !self.retell(&pod, &concluded, moment, &mut told) {
                            self.conclude(&pod, &element, moment, &mut told);
                        }
                    }
                    None => self.conclude(&pod, &element, moment, &mut told),
                }
            }
        }
        for concluded in std::mem::take(&mut told.concluded) {
            self.keep(scope, &Arc::new(concluded));
        }
        for key in told.stories.iter().filter(|story| story.tell == Tell::Now).filter_map(|story| story.root.as_ref()) {
            if let Some(rooted) = self.roots.get_mut(key) {
                rooted.root.give_back();
            }
        }
        let mut out = Vec::new();
        let sessions: BTreeSet<Uuid> = told.stories.iter().filter_map(|story| story.session).collect();
        for story in told.stories {
            self.write(scope, story, &sessions, &mut out);
        }
        if self.scopes.get(scope).is_some_and(|held| held.is_empty()) {
            self.scopes.remove(scope);
        }
        out
    }

    pub(super) fn unretired(&self, key: &RootKey) -> Option<&Root> {
        self.roots.get(key).map(|rooted| &rooted.root).filter(|root| !root.retired)
    }

    /// Looks at everything that is connected with `start`, and tells what follows.
    fn conclude(&self, pod: &Pod<'_>, start: &Element, moment: &Moment, told: &mut Told) {
        let members = self.members(pod, start);
        told.asks.extend(members.told_asks().map(Arc::clone));
        told.roots.extend(members.told_roots().map(Arc::clone));
        let component = Component {
            asks: members.asks.iter().filter_map(|key| pod.ask(key)).collect(),
            roots: members.roots.iter().filter_map(|key| self.unretired(key)).collect(),
            crowded_asks: members
                .crowded_asks
                .iter()
                .map(|(at, roots)| (*at, roots.iter().filter_map(|key| self.unretired(key)).collect()))
                .collect(),
            crowded_roots: members
                .crowded_roots
                .iter()
                .map(|(at, keys)| (*at, keys.iter().filter_map(|key| pod.ask(key)).collect()))
                .collect(),
            is_cut: members.is_cut,
            pairs: members.pairs.clone(),
        };
        if component.asks.len() != members.asks.len() || component.roots.len() != members.roots.len() {
            // A retired root: no session tells of it.
            return;
        }
        let units = units(&component, self.around(pod.scope));
        let units: Vec<Unit> = units.into_iter().filter(|unit| members.tells(unit)).collect();
        self.tell_units(pod, &component, &units, moment, told);
        told.concluded.extend(units.into_iter().map(|unit| Concluded::of(unit, &members)));
    }

    /// False where something of it is there no more.
    fn retell(&self, pod: &Pod<'_>, concluded: &Concluded, moment: &Moment, told: &mut Told) -> bool {
        let Concluded { asks: keys, roots, unit } = concluded;
        let mut component = Component {
            asks: keys.iter().filter_map(|key| pod.ask(key)).collect(),
            roots: roots.iter().filter_map(|key| self.unretired(key)).collect(),
            ..Component::default()
        };
        if component.asks.len() != keys.len() || component.roots.len() != roots.len() {
            return false;
        }
        if unit.is_crowded() {
            if unit.ask.is_some() {
                component.crowded_asks.insert(0, component.roots.clone());
            } else {
                component.crowded_roots.insert(0, component.asks.clone());
            }
        }
        told.asks.extend(unit.ask.and_then(|at| keys.get(at)).map(Arc::clone));
        told.roots.extend(unit.root.and_then(|at| roots.get(at)).map(Arc::clone));
        self.tell_units(pod, &component, std::slice::from_ref(unit), moment, told);
        true
    }

    fn around<'a>(&'a self, scope: &'a Arc<Scope>) -> Around<'a> {
        Around {
            config: &self.config,
            pods: &self.pods,
            losses: &self.losses,
            checks: &self.checks,
            identifiers: &self.identifiers,
            skews: &self.skews,
            askers: &self.askers,
            spo: &self.spo,
            recurring: &self.recurring,
            scope,
        }
    }

    fn tell_units(&self, pod: &Pod<'_>, component: &Component<'_>, units: &[Unit], moment: &Moment, told: &mut Told) {
        let names_mains = component.asks.iter().any(|ask| !ask.lead().expects_root());
        let mains = pod.held.mains.iter().filter(|_| names_mains).filter_map(|key| self.roots.get(key));
        let teller = Teller {
            cluster: &self.config.cluster,
            component,
            mains: mains.map(|rooted| &rooted.root).collect(),
            knowledge_of_ask: &|key: &Identity| pod.held.asks.get(key).map_or(0, |ask| ask.knowledge),
            knowledge_of_root: &|key: &RootKey| self.roots.get(key).map_or(0, |rooted| rooted.knowledge),
            moment,
            held: pod.held,
            watermarks: &self.watermarks,
            leases: &self.leases,
            now: self.now,
            hashes: &self.hashes,
            around: self.around(pod.scope),
        };
        told.stories.extend(units.iter().map(|unit| teller.story(unit, self)));
    }

    /// Whether what was told of a session may be told anew now, going by all but the programs of its root. `None`: that
    /// depends on those.
    pub(super) fn frame_tells(&self, id: Uuid, frame: u64, moment: &Moment) -> Option<Tell> {
        let known = self.written.get(&id).filter(|known| known.frame == frame && !moment.all)?;
        // What goes on is told ever less often: each revision tells the whole.
        let age = known.at.saturating_sub(known.first_at);
        let apart = (age / 2).clamp(self.config.revise_after_ns, self.config.revise_at_least_every_ns);
        let at = known.at.saturating_add(apart);
        (at > self.now).then_some(Tell::NotBefore(at))
    }

    pub(super) fn tells(
        &self,
        id: Uuid,
        signature: u64,
        moment: &Moment,
        probe: bool,
        ready: &dyn Fn() -> Ready,
    ) -> Tell {
        match self.written.get(&id) {
            None if probe => Tell::Unchanged,
            Some(known) if known.signature == signature => Tell::Unchanged,
            _ if moment.all => Tell::Now,
            Some(known) => {
                let at = known.at.saturating_add(self.config.revise_after_ns);
                if at <= self.now { Tell::Now } else { Tell::NotBefore(at) }
            }
            None => {
                let ready = ready();
                let nodes =
                    ready.nodes_past.is_some_and(|until| moment.nodes_are_past.is_some_and(|past| until <= past));
                let audit = ready.audit_past.is_some_and(|until| until <= moment.audit_is_past);
                match ready.at {
                    _ if nodes || audit => Tell::Now,
                    Some(at) if at <= self.now => Tell::Now,
                    _ => Tell::First(ready),
                }
            }
        }
    }

    fn write(&mut self, scope: &Arc<Scope>, mut story: Story, told: &BTreeSet<Uuid>, out: &mut Vec<Session>) {
        for id in &story.absorbed {
            self.take_back(*id, story.session, told, out);
        }
        let element = match (&story.ask, &story.root) {
            (Some(ask), _) => Element::Ask(Arc::clone(scope), Arc::clone(ask)),
            (None, Some(root)) => Element::Root(Arc::clone(root)),
            (None, None) => return,
        };
        if let (Some(draft), Some(id)) = (story.draft.take(), story.session) {
            self.revise(id, draft, out);
        }
        if let Some(at) = story.look_again {
            self.due.insert((at, element.clone()));
        }
        if let Some(until) = story.until_audit_is_past {
            self.waits_for_audit.insert((until, element.clone()));
        }
        match story.tell {
            Tell::Now | Tell::Unchanged => self.let_go_or_wait(scope, &element, &story),
            Tell::NotBefore(at) => drop(self.due.insert((at, element))),
            Tell::First(Ready { at, nodes_past, audit_past }) => {
                self.due.extend(at.map(|at| (at, element.clone())));
                self.waits_for_nodes.extend(nodes_past.map(|until| (until, element.clone())));
                self.waits_for_audit.extend(audit_past.map(|until| (until, element)));
            }
        }
        if let Some(rooted) = story.root.as_ref().and_then(|key| self.roots.get_mut(key)) {
            rooted.is_workload = story.workload;
        }
        if let (None, Some(key)) = (&story.ask, &story.root)
            && let Some(rooted) = self.roots.get_mut(key)
            && rooted.is_probe != story.probe
        {
            rooted.is_probe = story.probe;
            self.probes = if story.probe { self.probes + 1 } else { self.probes.saturating_sub(1) };
        }
    }

    fn revise(&mut self, id: Uuid, draft: Draft, out: &mut Vec<Session>) {
        let Draft { mut session, signature, frame } = draft;
        let content = self.hashes.hash_one(&session);
        let revision = match self.written.get_mut(&id) {
            Some(known) if known.content == content && !known.superseded => {
                known.signature = signature;
                known.frame = frame;
                return;
            }
            known => known.map_or(0, |known| known.revision) + 1,
        };
        session.revision = revision;
        let before = self.written.remove(&id);
        let first_at = before.as_ref().map_or(self.now, |known| known.first_at);
        let told = before.map(|known| known.findings).unwrap_or_default();
        for note in session.findings.iter().filter(|note| !told.contains(&note.id)) {
            self.found(note.line(&self.config.cluster, session.start, Some(id)));
        }
        let Session { kind, start, place, .. } = &session;
        let written = Written {
            revision,
            at: self.now,
            first_at,
            signature,
            frame,
            content,
            superseded: false,
            findings: session.findings.iter().map(|note| note.id).collect(),
            kind: *kind,
            start: *start,
            place: place.clone(),
        };
        self.written.insert(id, Box::new(written));
        self.counters.revisions += 1;
        out.push(session);
    }

    /// What was written under `id` is told by another session now, or by none.
    fn take_back(&mut self, id: Uuid, by: Option<Uuid>, told: &BTreeSet<Uuid>, out: &mut Vec<Session>) {
        let Some(known) = self.written.get_mut(&id).filter(|known| !known.superseded && !told.contains(&id)) else {
            return;
        };
        known.superseded = true;
        known.signature = 0;
        known.frame = 0;
        known.revision += 1;
        known.at = self.now;
        self.counters.revisions += 1;
        let (kind, start, place) = (known.kind, known.start, known.place.clone());
        let reasons = vec![match by {
            Some(by) => format!("session {by} tells of this"),
            None => "no session tells of this any more".to_owned(),
        }];
        let withdrawn =
            Session { id, revision: known.revision, superseded_by: by, reasons, ..Session::empty(kind, start, place) };
        out.push(withdrawn);
    }
}

fn take_until(queue: &mut BTreeSet<(u64, Element)>, until: u64) -> Vec<Element> {
    let mut taken = Vec::new();
    while queue.first().is_some_and(|(at, _)| *at <= until) {
        taken.extend(queue.pop_first().map(|(_, element)| element));
    }
    taken
}
