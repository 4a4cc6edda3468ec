//! Everything that is connected by what fits, found from one request or root of it.

use super::Join;
use super::ask::Asked;
use super::attempt::RequestKey;
use super::fit::{Fit, fit};
use super::machine::Element;
use super::matching::Unit;
use super::root::RootKey;
use super::scope::{Held, Scope};
use crate::audit::Identity;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

/// One pod while it is looked at: its requests are each put together once.
pub(super) struct Pod<'a> {
    pub(super) scope: &'a Arc<Scope>,
    pub(super) held: &'a Held,
    asks: RefCell<HashMap<*const Identity, Rc<Asked<'a>>>>,
}

impl<'a> Pod<'a> {
    pub(super) fn new(scope: &'a Arc<Scope>, held: &'a Held) -> Self {
        Self { scope, held, asks: RefCell::default() }
    }

    pub(super) fn ask(&self, key: &RequestKey) -> Option<Rc<Asked<'a>>> {
        if let Some(ask) = self.asks.borrow().get(&Arc::as_ptr(key)) {
            return Some(Rc::clone(ask));
        }
        let ask = Rc::new(Asked::new(self.held.ask(key)?));
        self.asks.borrow_mut().insert(Arc::as_ptr(key), Rc::clone(&ask));
        Some(ask)
    }
}

/// The members of a [`Component`] by their keys.
#[derive(Default)]
pub(super) struct Members {
    pub(super) asks: Vec<RequestKey>,
    pub(super) roots: Vec<Arc<RootKey>>,
    pub(super) pairs: BTreeMap<(usize, usize), Fit>,
    /// Those that fit too many, and some of those.
    pub(super) crowded_asks: BTreeMap<usize, Vec<Arc<RootKey>>>,
    pub(super) crowded_roots: BTreeMap<usize, Vec<RequestKey>>,
    /// How many steps from the start each was found.
    steps_of_asks: Vec<usize>,
    steps_of_roots: Vec<usize>,
    /// There is more, which was not looked into.
    pub(super) is_cut: bool,
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

    pub(super) fn tells(&self, unit: &Unit) -> bool {
        match (unit.ask, unit.root) {
            (Some(ask), _) => self.tells_ask(ask),
            (None, root) => root.is_none_or(|root| self.tells_root(root)),
        }
    }

    pub(super) fn told_asks(&self) -> impl Iterator<Item = &RequestKey> {
        self.asks.iter().enumerate().filter(|(at, _)| self.tells_ask(*at)).map(|(_, key)| key)
    }

    pub(super) fn told_roots(&self) -> impl Iterator<Item = &Arc<RootKey>> {
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
    /// Everything that is connected with `start` by what fits.
    pub(super) fn members(&self, pod: &Pod<'_>, start: &Element) -> Members {
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
                    let (Some(folded), Some(ask)) = (pod.held.asks.get(&key), pod.ask(&key)) else { continue };
                    let near = pod.held.index.roots_near(&folded.place).filter_map(|key| {
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
                    let near = pod.held.index.asks_near(&rooted.place, &self.config, widen).filter_map(|key| {
                        let ask = pod.ask(key)?;
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
