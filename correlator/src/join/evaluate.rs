//! From what changed to what is written. Only the components of requests and roots that something changed about are looked
//! at; what has to wait is looked at again when its time comes.

use super::Join;
use super::attempt::RequestKey;
use super::finding::{Code, FindingNote};
use super::fit::{Fit, fit};
use super::machine::Element;
use super::matching::{Around, Component, units};
use super::root::{Root, RootKey};
use super::scope::{Held, Scope};
use super::session::{Kind, Place, Session};
use super::story::{Ready, Story, Tell};
use super::telling::Teller;
use crate::audit::Identity;
use crate::timestamp::Timestamp;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use uuid::Uuid;

/// What was last written of a session: enough to know whether there is news, and to take it back.
#[derive(Debug)]
pub(super) struct Written {
    revision: u32,
    at: u64,
    /// Of everything that it was told from; 0 where it was taken back.
    signature: u64,
    /// Of its text.
    content: u64,
    superseded: bool,
    /// Findings that have had their line.
    findings: BTreeSet<Uuid>,
    kind: Kind,
    start: Timestamp,
    place: Place,
}

/// The members of a [`Component`] by their keys.
#[derive(Default)]
struct Members {
    asks: Vec<RequestKey>,
    roots: Vec<Arc<RootKey>>,
    pairs: BTreeMap<(usize, usize), Fit>,
    /// Those that fit too many, and some of those.
    crowded_asks: BTreeMap<usize, Vec<Arc<RootKey>>>,
    crowded_roots: BTreeMap<usize, Vec<RequestKey>>,
    /// How many steps from the start each was found.
    steps_of_asks: Vec<usize>,
    steps_of_roots: Vec<usize>,
    /// There is more, which was not looked into.
    is_cut: bool,
}

/// A component is looked at as a whole up to this many members. Beyond, it is a chain of the same command over and over, and
/// nothing follows from what fits what: so many steps are looked at from what changed, and what is nearer is told.
const WHOLE_UP_TO: usize = 128;
const LOOK_STEPS: usize = 4;
const TELL_STEPS: usize = 2;

impl Members {
    /// Whether it is told of. Near the cut not all of its candidates are known.
    fn tells_ask(&self, at: usize) -> bool {
        !self.is_cut || self.steps_of_asks.get(at).is_none_or(|steps| *steps <= TELL_STEPS)
    }

    fn tells_root(&self, at: usize) -> bool {
        !self.is_cut || self.steps_of_roots.get(at).is_none_or(|steps| *steps <= TELL_STEPS)
    }

    fn told_asks(&self) -> impl Iterator<Item = &RequestKey> {
        self.asks.iter().enumerate().filter(|(at, _)| self.tells_ask(*at)).map(|(_, key)| key)
    }

    fn told_roots(&self) -> impl Iterator<Item = &Arc<RootKey>> {
        self.roots.iter().enumerate().filter(|(at, _)| self.tells_root(*at)).map(|(_, key)| key)
    }
}

/// Keys that are found get a number.
#[derive(Default)]
struct Numbers {
    asks: BTreeMap<RequestKey, usize>,
    roots: BTreeMap<Arc<RootKey>, usize>,
}

#[derive(Clone, Copy)]
enum Member {
    Ask(usize),
    Root(usize),
}

impl Join {
    /// Everything is in: all that is not written, settled or not.
    pub fn finish(&mut self) -> Vec<Session> {
        self.mark_losses();
        for (scope, held) in &mut self.scopes {
            held.dirty_asks.extend(held.asks.keys().map(Arc::clone));
            held.dirty_roots.extend(held.roots.iter().map(Arc::clone));
            self.dirty.insert(Arc::clone(scope));
        }
        self.due.clear();
        self.waits_for_nodes.clear();
        self.waits_for_audit.clear();
        let scopes = std::mem::take(&mut self.dirty);
        scopes.iter().flat_map(|scope| self.evaluate(scope, true)).collect()
    }

    pub(super) fn tick(&mut self, now: u64) -> Vec<Session> {
        self.now = self.now.max(now);
        self.mark_losses();
        self.find_silence();
        let nodes_are_past = self.watermarks.nodes_are_past(self.now, &self.config);
        let audit_is_past = self.watermarks.audit_is_past();
        for element in take_until(&mut self.due, self.now) {
            self.mark(&element, false);
        }
        for element in
            nodes_are_past.into_iter().flat_map(|past| take_until(&mut self.waits_for_nodes, past)).collect::<Vec<_>>()
        {
            self.mark(&element, false);
        }
        for element in take_until(&mut self.waits_for_audit, audit_is_past) {
            self.mark(&element, false);
        }
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
                self.mark(&element, false);
            }
            self.forget();
        }
        let scopes = std::mem::take(&mut self.dirty);
        scopes.iter().flat_map(|scope| self.evaluate(scope, false)).collect()
    }

    /// A line for each node, and for the audit stream, when it falls silent.
    fn find_silence(&mut self) {
        let nodes = self.watermarks.silent(self.now, &self.config);
        let audit = self.watermarks.audit_silent_since(self.now, &self.config);
        let nodes = nodes.into_iter().map(|(node, since)| (Code::NodeSilent, format!("node/{node}"), since));
        let silent: Vec<(Code, String, u64)> =
            nodes.chain(audit.map(|since| (Code::AuditSilent, "audit".to_owned(), since))).collect();
        let names: BTreeSet<String> = silent.iter().map(|(_, stream, _)| stream.clone()).collect();
        for (code, stream, since) in silent {
            if !self.told_silent.contains(&stream) {
                let text = format!("nothing is heard of {stream}; the last was of {}", Timestamp(since));
                let subject = format!("{stream} {since}");
                let note = FindingNote::new(code, &self.config.cluster, &subject, text, vec![stream]);
                self.found(note.line(&self.config.cluster, Timestamp(since), None));
            }
        }
        self.told_silent = names;
    }

    /// Writes what is new in a scope and may be said, and lets go what is over.
    fn evaluate(&mut self, scope: &Arc<Scope>, all: bool) -> Vec<Session> {
        let Some(held) = self.scopes.get_mut(scope) else { return Vec::new() };
        let dirty_asks = std::mem::take(&mut held.dirty_asks);
        let dirty_roots = std::mem::take(&mut held.dirty_roots);
        for key in &dirty_roots {
            if let Some(rooted) = self.roots.get_mut(key) {
                rooted.is_dirty = false;
            }
        }
        let (mut asks_seen, mut roots_seen) = (BTreeSet::new(), BTreeSet::new());
        let mut stories = Vec::new();
        if let Some(held) = self.scopes.get(scope) {
            let asks = dirty_asks.iter().map(|key| Element::Ask(Arc::clone(scope), Arc::clone(key)));
            for start in asks.chain(dirty_roots.iter().map(|key| Element::Root(Arc::clone(key)))) {
                let new = match &start {
                    Element::Ask(_, key) => held.asks.contains_key(key) && !asks_seen.contains(key),
                    Element::Root(key) => held.roots.contains(key) && !roots_seen.contains(key),
                };
                if new {
                    let members = self.members(held, &start);
                    asks_seen.extend(members.told_asks().map(Arc::clone));
                    roots_seen.extend(members.told_roots().map(Arc::clone));
                    self.stories(held, &members, all, &mut stories);
                }
            }
        }
        let mut out = Vec::new();
        let told: BTreeSet<Uuid> = stories.iter().filter_map(|story| story.session).collect();
        for story in stories {
            self.write(scope, story, &told, &mut out);
        }
        if self.scopes.get(scope).is_some_and(Held::is_empty) {
            self.scopes.remove(scope);
        }
        out
    }

    /// Everything that is connected with `start` by what fits.
    fn members(&self, held: &Held, start: &Element) -> Members {
        let most = self.config.max_candidates;
        let widen = self.skews.widest();
        let (mut members, mut numbers) = (Members::default(), Numbers::default());
        let mut looking = match start {
            Element::Ask(_, key) => VecDeque::from([(numbers.ask(key, &mut members).0, 0)]),
            Element::Root(key) => VecDeque::from([(numbers.root(key, &mut members).0, 0)]),
        };
        match start {
            Element::Ask(..) => members.steps_of_asks.push(0),
            Element::Root(_) => members.steps_of_roots.push(0),
        }
        while let Some((member, steps)) = looking.pop_front() {
            let many = members.asks.len() + members.roots.len() >= WHOLE_UP_TO;
            if many && steps >= LOOK_STEPS {
                // Not looked into: whoever fits it could have come of it, or it of them.
                members.is_cut = true;
                match member {
                    Member::Ask(at) => drop(members.crowded_asks.insert(at, Vec::new())),
                    Member::Root(at) => drop(members.crowded_roots.insert(at, Vec::new())),
                }
                continue;
            }
            match member {
                Member::Ask(at) => {
                    let key = Arc::clone(&members.asks[at]);
                    let (Some(folded), Some(ask)) = (held.asks.get(&key), held.ask(&key)) else { continue };
                    let near = held.index.roots_near(&folded.place).filter_map(|key| {
                        let root = self.unretired(key)?;
                        let recorded = |uid: &str| self.identifiers.requests(uid) > 0;
                        Some((key, fit(&ask, root, &self.config, self.skews.of(&key.node), recorded)?))
                    });
                    // One root may stand in two places.
                    let mut found: BTreeMap<&Arc<RootKey>, Fit> = BTreeMap::new();
                    for (key, fit) in near {
                        found.insert(key, fit);
                        if found.len() > most {
                            break;
                        }
                    }
                    if found.len() > most {
                        members.crowded_asks.insert(at, found.into_keys().take(most).map(Arc::clone).collect());
                        continue;
                    }
                    for (key, fit) in found {
                        let (member, number, new) = numbers.root_number(key, &mut members);
                        members.pairs.insert((at, number), fit);
                        if new {
                            members.steps_of_roots.push(steps + 1);
                            looking.push_back((member, steps + 1));
                        }
                    }
                }
                Member::Root(at) => {
                    let key = Arc::clone(&members.roots[at]);
                    let (Some(root), Some(rooted)) = (self.unretired(&key), self.roots.get(&key)) else { continue };
                    let skew = self.skews.of(&key.node);
                    let near = held.index.asks_near(rooted.place(), &self.config, widen).filter_map(|key| {
                        let ask = held.ask(key)?;
                        let recorded = |uid: &str| self.identifiers.requests(uid) > 0;
                        Some((key, fit(&ask, root, &self.config, skew, recorded)?))
                    });
                    let mut found: BTreeMap<&RequestKey, Fit> = BTreeMap::new();
                    for (key, fit) in near {
                        found.insert(key, fit);
                        if found.len() > most {
                            break;
                        }
                    }
                    if found.len() > most {
                        members.crowded_roots.insert(at, found.into_keys().take(most).map(Arc::clone).collect());
                        continue;
                    }
                    for (key, fit) in found {
                        let (member, number, new) = numbers.ask_number(key, &mut members);
                        members.pairs.insert((number, at), fit);
                        if new {
                            members.steps_of_asks.push(steps + 1);
                            looking.push_back((member, steps + 1));
                        }
                    }
                }
            }
        }
        members
    }

    fn unretired(&self, key: &RootKey) -> Option<&Root> {
        self.roots.get(key).map(|rooted| &rooted.root).filter(|root| !root.retired)
    }

    fn stories(&self, held: &Held, members: &Members, all: bool, stories: &mut Vec<Story>) {
        let ask_of = |key: &RequestKey| held.ask(key);
        let component = Component {
            asks: members.asks.iter().filter_map(ask_of).collect(),
            roots: members.roots.iter().filter_map(|key| self.unretired(key)).collect(),
            pairs: members.pairs.clone(),
            is_cut: members.is_cut,
            crowded_asks: members
                .crowded_asks
                .iter()
                .map(|(at, roots)| (*at, roots.iter().filter_map(|key| self.unretired(key)).collect()))
                .collect(),
            crowded_roots: members
                .crowded_roots
                .iter()
                .map(|(at, asks)| (*at, asks.iter().filter_map(ask_of).collect()))
                .collect(),
        };
        if component.asks.len() != members.asks.len() || component.roots.len() != members.roots.len() {
            // A retired root: no session tells of it.
            return;
        }
        let around = Around {
            config: &self.config,
            pods: &self.pods,
            losses: &self.losses,
            checks: &self.checks,
            identifiers: &self.identifiers,
            skews: &self.skews,
        };
        let names_mains = component.asks.iter().any(|ask| !ask.lead().expects_root());
        let mains = held.mains.iter().filter(|_| names_mains).filter_map(|key| self.roots.get(key));
        let teller = Teller {
            cluster: &self.config.cluster,
            component: &component,
            mains: mains.map(|rooted| &rooted.root).collect(),
            knowledge_of_ask: &|key: &Identity| held.asks.get(key).map_or(0, |ask| ask.knowledge),
            knowledge_of_root: &|key: &RootKey| self.roots.get(key).map_or(0, |rooted| rooted.knowledge),
            no_nodes: self.watermarks.no_nodes(),
            silent_nodes: self.watermarks.silent_nodes(self.now, &self.config),
            audit_silent_since: self.watermarks.audit_silent_since(self.now, &self.config),
            held,
            watermarks: &self.watermarks,
            now: self.now,
            all,
            around,
        };
        let nodes_are_past = self.watermarks.nodes_are_past(self.now, &self.config);
        let audit_is_past = self.watermarks.audit_is_past();
        let tell = |id: Uuid, signature: u64, ready: Ready, probe: bool| -> Tell {
            match self.written.get(&id) {
                None if probe => Tell::Unchanged,
                Some(known) if known.signature == signature => Tell::Unchanged,
                _ if all => Tell::Now,
                Some(known) => {
                    let at = known.at.saturating_add(self.config.revise_after_ns);
                    if at <= self.now { Tell::Now } else { Tell::NotBefore(at) }
                }
                None => {
                    let nodes = ready.nodes_past.is_some_and(|until| nodes_are_past.is_some_and(|past| until <= past));
                    let audit = ready.audit_past.is_some_and(|until| until <= audit_is_past);
                    match ready.at {
                        _ if nodes || audit => Tell::Now,
                        Some(at) if at <= self.now => Tell::Now,
                        Some(at) => Tell::NotBefore(at),
                        None => Tell::Waiting,
                    }
                }
            }
        };
        let units = units(&component, around);
        let told = units.iter().filter(|unit| match (unit.ask, unit.root) {
            (Some(ask), _) => members.tells_ask(ask),
            (None, root) => root.is_none_or(|root| members.tells_root(root)),
        });
        stories.extend(told.map(|unit| teller.story(unit, &tell)));
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
        if let (Some((session, signature)), Some(id)) = (story.draft.take(), story.session) {
            self.revise(id, session, signature, out);
        }
        if let Some(at) = story.look_again {
            self.due.insert((at, element.clone()));
        }
        match story.tell {
            Tell::Now | Tell::Unchanged => self.let_go_or_wait(scope, &element, &story),
            Tell::NotBefore(at) => drop(self.due.insert((at, element.clone()))),
            Tell::Waiting => {}
        }
        if matches!(story.tell, Tell::NotBefore(_) | Tell::Waiting) {
            if let Some(until) = story.ready.nodes_past {
                self.waits_for_nodes.insert((until, element.clone()));
            }
            if let Some(until) = story.ready.audit_past {
                self.waits_for_audit.insert((until, element));
            }
        }
        if let (None, Some(key)) = (&story.ask, &story.root)
            && let Some(rooted) = self.roots.get_mut(key)
            && rooted.is_probe != story.probe
        {
            rooted.is_probe = story.probe;
            self.probes = if story.probe { self.probes + 1 } else { self.probes.saturating_sub(1) };
        }
    }

    fn revise(&mut self, id: Uuid, mut session: Session, signature: u64, out: &mut Vec<Session>) {
        let mut hasher = DefaultHasher::new();
        session.hash(&mut hasher);
        let content = hasher.finish();
        let revision = match self.written.get_mut(&id) {
            Some(known) if known.content == content && !known.superseded => {
                known.signature = signature;
                return;
            }
            known => known.map_or(0, |known| known.revision) + 1,
        };
        session.revision = revision;
        let told = self.written.remove(&id).map(|known| known.findings).unwrap_or_default();
        for note in session.findings.iter().filter(|note| !told.contains(&note.id)) {
            self.found(note.line(&self.config.cluster, session.start, Some(id)));
        }
        let Session { kind, start, place, .. } = &session;
        let written = Written {
            revision,
            at: self.now,
            signature,
            content,
            superseded: false,
            findings: session.findings.iter().map(|note| note.id).collect(),
            kind: *kind,
            start: *start,
            place: place.clone(),
        };
        self.written.insert(id, written);
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

impl Numbers {
    fn ask_number(&mut self, key: &RequestKey, members: &mut Members) -> (Member, usize, bool) {
        let next = members.asks.len();
        let number = *self.asks.entry(Arc::clone(key)).or_insert(next);
        if number == next {
            members.asks.push(Arc::clone(key));
        }
        (Member::Ask(number), number, number == next)
    }

    fn root_number(&mut self, key: &Arc<RootKey>, members: &mut Members) -> (Member, usize, bool) {
        let next = members.roots.len();
        let number = *self.roots.entry(Arc::clone(key)).or_insert(next);
        if number == next {
            members.roots.push(Arc::clone(key));
        }
        (Member::Root(number), number, number == next)
    }

    fn ask(&mut self, key: &RequestKey, members: &mut Members) -> (Member, usize) {
        let (member, number, _) = self.ask_number(key, members);
        (member, number)
    }

    fn root(&mut self, key: &Arc<RootKey>, members: &mut Members) -> (Member, usize) {
        let (member, number, _) = self.root_number(key, members);
        (member, number)
    }
}

fn take_until(queue: &mut BTreeSet<(u64, Element)>, until: u64) -> Vec<Element> {
    let mut taken = Vec::new();
    while queue.first().is_some_and(|(at, _)| *at <= until) {
        taken.extend(queue.pop_first().map(|(_, element)| element));
    }
    taken
}
