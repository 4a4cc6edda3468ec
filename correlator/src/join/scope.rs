//! One pod's requests and roots, and how they are found.

use super::Config;
use super::ask::{Ask, RETRY_WITHIN_NS, fold};
use super::attempt::{Attempt, RequestKey};
use super::concluded::Concluded;
use super::machine::Element;
use super::place::{AskPlace, Index};
use super::root::RootKey;
use super::session::BulkCount;
use crate::audit::{AccessKind, Identity};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// Requests and roots that can only belong to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    Pod {
        namespace: String,
        pod: String,
    },
    /// The names of its pod are not known. Sorts last.
    Nameless(Arc<RootKey>),
}

impl Ord for Scope {
    /// Most that are found are the very one that was looked for; of others pods' names differ sooner than namespaces.
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            _ if std::ptr::eq(self, other) => Ordering::Equal,
            (Self::Pod { namespace, pod }, Self::Pod { namespace: other, pod: others }) => {
                pod.cmp(others).then_with(|| namespace.cmp(other))
            }
            (Self::Nameless(key), Self::Nameless(other)) => key.cmp(other),
            (Self::Pod { .. }, Self::Nameless(_)) => Ordering::Less,
            (Self::Nameless(_), Self::Pod { .. }) => Ordering::Greater,
        }
    }
}

impl PartialOrd for Scope {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A request that stands for itself, with its retries and attaches: [`Ask`] by keys.
#[derive(Debug, Default)]
pub(super) struct Folded {
    pub(super) tries: Vec<RequestKey>,
    pub(super) attaches: Vec<RequestKey>,
    pub(super) place: AskPlace,
    /// Counts news of pods, losses and identifiers that touch it.
    pub(super) knowledge: u64,
    pub(super) release_at: Option<u64>,
    pub(super) concluded: Option<Arc<Concluded>>,
}

#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) attempts: BTreeMap<RequestKey, Box<Attempt>>,
    /// By the first try.
    pub(super) asks: BTreeMap<RequestKey, Box<Folded>>,
    /// The first try of those that are not it.
    part_of: BTreeMap<RequestKey, RequestKey>,
    /// Requests that may belong together, by user and what they ask for.
    classes: BTreeSet<(u64, RequestKey)>,
    pub(super) roots: BTreeSet<Arc<RootKey>>,
    /// Those that are main processes of containers.
    pub(super) mains: BTreeSet<Arc<RootKey>>,
    pub(super) index: Index,
    /// By record id.
    pub(super) counts: BTreeMap<String, BulkCount>,
    /// Ids of containers that reported a verdict, and of those that reported one of a program that was executed.
    pub(super) verdicts_in: BTreeSet<String>,
    pub(super) exec_verdicts_in: BTreeSet<String>,
    /// Those of which something changed that may decide what fits what.
    pub(super) dirty_asks: BTreeSet<RequestKey>,
    pub(super) dirty_roots: BTreeSet<Arc<RootKey>>,
    /// Those that are to be told again, and nothing else.
    pub(super) asks_again: BTreeSet<RequestKey>,
    pub(super) roots_again: BTreeSet<Arc<RootKey>>,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.attempts.is_empty() && self.roots.is_empty() && self.counts.is_empty()
    }

    pub(super) fn has(&self, element: &Element) -> bool {
        match element {
            Element::Ask(_, key) => self.asks.contains_key(key),
            Element::Root(key) => self.roots.contains(key),
        }
    }

    pub(super) fn ask(&self, first: &Identity) -> Option<Ask<'_>> {
        let folded = self.asks.get(first)?;
        let of = |keys: &[RequestKey]| {
            keys.iter().filter_map(|key| self.attempts.get(key).map(|attempt| &**attempt)).collect::<Vec<_>>()
        };
        let tries = of(&folded.tries);
        let id = tries.first()?.id;
        Some(Ask { id, tries, attaches: of(&folded.attaches) })
    }

    /// The first try of the ask that a request is part of.
    pub(super) fn first_of<'a>(&'a self, key: &'a RequestKey) -> &'a RequestKey {
        self.part_of.get(key).unwrap_or(key)
    }

    /// An attempt is new or has changed: groups it and those that this may regroup anew.
    pub(super) fn refold(&mut self, key: &RequestKey, config: &Config, widen: u64) {
        let Some(attempt) = self.attempts.get(key) else { return };
        self.classes.insert((class(attempt), Arc::clone(key)));
        let mut related = self.related(key);
        let first = self.part_of.get(key).unwrap_or(key);
        for member in self.asks.get(first).into_iter().flat_map(|ask| ask.tries.iter().chain(&ask.attaches)) {
            related.append(&mut self.related(member));
        }
        // An ask is taken apart as a whole.
        let firsts: BTreeSet<RequestKey> =
            related.iter().map(|key| self.part_of.get(key).unwrap_or(key)).map(Arc::clone).collect();
        let mut before = BTreeMap::new();
        for first in firsts {
            if let Some(ask) = self.asks.remove(&first) {
                related.extend(ask.tries.iter().chain(&ask.attaches).map(Arc::clone));
                self.index.remove_ask(&ask.place, &first);
                self.touch_near(&ask.place);
                before.insert(first, ask);
            }
        }
        for key in &related {
            self.part_of.remove(key);
        }
        let folded: Vec<(RequestKey, Folded)> =
            fold(related.iter().filter_map(|key| self.attempts.get(key).map(|attempt| &**attempt)))
                .into_iter()
                .map(|ask| {
                    let keys =
                        |attempts: &[&Attempt]| attempts.iter().map(|attempt| Arc::clone(&attempt.identity)).collect();
                    let place = AskPlace::of(&ask, config, widen);
                    let (tries, attaches) = (keys(&ask.tries), keys(&ask.attaches));
                    (Arc::clone(&ask.first().identity), Folded { tries, attaches, place, ..Folded::default() })
                })
                .collect();
        for (first, mut ask) in folded {
            if let Some(before) = before.get(&first) {
                ask.knowledge = before.knowledge;
                ask.release_at = before.release_at;
            }
            for other in ask.tries.iter().skip(1).chain(&ask.attaches) {
                self.part_of.insert(Arc::clone(other), Arc::clone(&first));
            }
            self.index.add_ask(&ask.place, &first);
            self.touch_near(&ask.place);
            self.dirty_asks.insert(Arc::clone(&first));
            self.asks.insert(first, Box::new(ask));
        }
    }

    /// Everything stands where it did, but the windows are others.
    pub(super) fn replace_all(&mut self, config: &Config, widen: u64) {
        let firsts: Vec<RequestKey> = self.asks.keys().map(Arc::clone).collect();
        for first in firsts {
            let Some(place) = self.ask(&first).map(|ask| AskPlace::of(&ask, config, widen)) else { continue };
            if let Some(ask) = self.asks.get_mut(&first) {
                self.index.remove_ask(&ask.place, &first);
                self.index.add_ask(&place, &first);
                ask.place = place;
                ask.knowledge += 1;
            }
            self.dirty_asks.insert(first);
        }
        self.dirty_roots.extend(self.roots.iter().map(Arc::clone));
    }

    /// Whoever could fit a place has a candidate more or less.
    fn touch_near(&mut self, place: &AskPlace) {
        self.dirty_roots.extend(self.index.roots_near(place).map(Arc::clone));
    }

    /// Attempts that may be one ask with this one: see [`fold`].
    fn related(&self, key: &RequestKey) -> BTreeSet<RequestKey> {
        let mut related = BTreeSet::from([Arc::clone(key)]);
        let Some(attempt) = self.attempts.get(key) else { return related };
        let class = class(attempt);
        let since = |received: u64| {
            let first = (class, Arc::new(Identity { received, ..Identity::default() }));
            self.classes.range(first..).take_while(move |(of, _)| *of == class).map(|(_, key)| key)
        };
        if makes_or_attaches(attempt) {
            let is_debug = |key: &RequestKey| self.attempts.get(key).is_some_and(|attempt| attempt.is_debug());
            if since(0).any(is_debug) {
                related.extend(since(0).map(Arc::clone));
            }
            return related;
        }
        // Failed tries reach on to retries and retries back to failed tries, and so on until nothing is added.
        let mut looking = vec![Arc::clone(key)];
        while let Some(key) = looking.pop() {
            let Some(attempt) = self.attempts.get(&key) else { continue };
            let at = key.received;
            let (from, until, wanted) = match attempt.verb.as_str() {
                "get" if failed(attempt) => (at, at.saturating_add(RETRY_WITHIN_NS), "create"),
                "create" => (at.saturating_sub(RETRY_WITHIN_NS), at, "get"),
                _ => continue,
            };
            for other in since(from).take_while(|key| key.received <= until) {
                let fits = self
                    .attempts
                    .get(other)
                    .is_some_and(|other| other.verb == wanted && (wanted == "create" || failed(other)));
                if fits && related.insert(Arc::clone(other)) {
                    looking.push(Arc::clone(other));
                }
            }
        }
        related
    }

    /// Takes an ask and its attempts out.
    pub(super) fn remove_ask(&mut self, first: &RequestKey) -> Vec<Attempt> {
        let Some(ask) = self.asks.remove(first) else { return Vec::new() };
        self.index.remove_ask(&ask.place, first);
        let mut removed = Vec::new();
        for key in ask.tries.iter().chain(&ask.attaches) {
            self.part_of.remove(key);
            if let Some(attempt) = self.attempts.remove(key) {
                self.classes.remove(&(class(&attempt), Arc::clone(key)));
                removed.push(*attempt);
            }
        }
        removed
    }
}

fn failed(attempt: &Attempt) -> bool {
    attempt.code().is_some_and(|code| code >= 400)
}

fn makes_or_attaches(attempt: &Attempt) -> bool {
    attempt.is_debug() || attempt.access.kind == AccessKind::Attach
}

/// Only requests of one class are ever folded together.
fn class(attempt: &Attempt) -> u64 {
    let mut hasher = DefaultHasher::new();
    let Identity { username, impersonated, uri, .. } = &*attempt.identity;
    let uri = if makes_or_attaches(attempt) { "" } else { uri.as_str() };
    (username, impersonated, uri).hash(&mut hasher);
    hasher.finish()
}
