//! What is to be looked at again when something changed.

use super::Join;
use super::askers::Askers;
use super::attempt::RequestKey;
use super::machine::Element;
use super::root::RootKey;
use super::scope::Scope;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Join {
    pub(super) fn mark_root(&mut self, scope: &Arc<Scope>, key: &Arc<RootKey>) {
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
    pub(super) fn mark_node(&mut self, node: &Arc<str>) {
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

    pub(super) fn replace_all(&mut self) {
        let widen = self.skews.widest();
        for (scope, held) in &mut self.scopes {
            held.replace_all(&self.config, widen);
            self.dirty.insert(Arc::clone(scope));
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
}
