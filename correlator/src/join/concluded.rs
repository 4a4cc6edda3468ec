//! What was concluded of a request or root, kept until something changes that decides what fits what: news of what its
//! programs do is told without looking at everything around it again.

use super::Join;
use super::attempt::RequestKey;
use super::component::Members;
use super::machine::Element;
use super::matching::{Bond, Unit};
use super::root::RootKey;
use super::scope::{Held, Scope};
use std::sync::Arc;

/// A unit by keys: its request and root stand first in `asks` and `roots`, what else it names behind them.
#[derive(Debug)]
pub(super) struct Concluded {
    pub(super) asks: Vec<RequestKey>,
    pub(super) roots: Vec<Arc<RootKey>>,
    pub(super) unit: Unit,
}

impl Concluded {
    pub(super) fn of(unit: Unit, members: &Members) -> Self {
        let asks_at = |at: &[usize]| at.iter().filter_map(|at| members.asks.get(*at)).map(Arc::clone).collect();
        let roots_at = |at: &[usize]| at.iter().filter_map(|at| members.roots.get(*at)).map(Arc::clone).collect();
        let (own_ask, own_root) = (unit.ask.as_slice(), unit.root.as_slice());
        let (mut asks, mut roots): (Vec<RequestKey>, Vec<Arc<RootKey>>) = (asks_at(own_ask), roots_at(own_root));
        let bond = match (unit.bond, unit.ask, unit.root) {
            (Bond::Ambiguous { others, why }, Some(_), _) => {
                roots = roots_at(&others);
                Bond::Ambiguous { others: (0..roots.len()).collect(), why }
            }
            (Bond::Ambiguous { others, why }, None, _) => {
                asks = asks_at(&others);
                Bond::Ambiguous { others: (0..asks.len()).collect(), why }
            }
            (Bond::Crowded, Some(ask), _) => {
                roots = members.crowded_asks.get(&ask).cloned().unwrap_or_default();
                Bond::Crowded
            }
            (Bond::Crowded, None, Some(root)) => {
                asks = members.crowded_roots.get(&root).cloned().unwrap_or_default();
                Bond::Crowded
            }
            (bond, ..) => bond,
        };
        let unit = Unit { ask: unit.ask.map(|_| 0), root: unit.root.map(|_| 0), bond };
        Self { asks, roots, unit }
    }
}

impl Join {
    pub(super) fn keep(&mut self, scope: &Arc<Scope>, concluded: &Arc<Concluded>) {
        let Concluded { asks, roots, unit } = &**concluded;
        if let Some(key) = unit.root.and_then(|at| roots.get(at))
            && let Some(rooted) = self.roots.get_mut(key)
        {
            rooted.concluded = Some(Arc::clone(concluded));
        }
        if let Some(key) = unit.ask.and_then(|at| asks.get(at))
            && let Some(ask) = self.scopes.get_mut(scope).and_then(|held| held.asks.get_mut(key))
        {
            ask.concluded = Some(Arc::clone(concluded));
        }
    }

    /// `None` where nothing is, or where its two halves were last looked at apart from each other.
    pub(super) fn concluded(&self, held: &Held, element: &Element) -> Option<Arc<Concluded>> {
        let of_root = |key: &Arc<RootKey>| self.roots.get(key).and_then(|rooted| rooted.concluded.as_ref());
        let of_ask = |key: &RequestKey| held.asks.get(key).and_then(|ask| ask.concluded.as_ref());
        let concluded = match element {
            Element::Ask(_, key) => of_ask(key)?,
            Element::Root(key) => of_root(key)?,
        };
        let Concluded { asks, roots, unit } = &**concluded;
        let is_this = |other: Option<&Arc<Concluded>>| other.is_some_and(|other| Arc::ptr_eq(other, concluded));
        let ask = unit.ask.and_then(|at| asks.get(at));
        let root = unit.root.and_then(|at| roots.get(at));
        let agrees = ask.is_none_or(|key| is_this(of_ask(key))) && root.is_none_or(|key| is_this(of_root(key)));
        agrees.then(|| Arc::clone(concluded))
    }
}
