//! Letting go: what is finished and has been quiet for a while, and what has gone on for too long.

use super::Join;
use super::attempt::RequestKey;
use super::attic;
use super::machine::Element;
use super::root::RootKey;
use super::scope::Scope;
use super::story::Story;
use ahash::AHashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use uuid::Uuid;

/// Ids of what was let go, so that stragglers are known as such; the oldest are forgotten first.
#[derive(Debug, Default)]
pub(super) struct Gone {
    ids: AHashMap<Uuid, u64>,
    in_order: VecDeque<(u64, Uuid)>,
}

impl Gone {
    pub(super) fn contains(&self, id: &Uuid) -> bool {
        self.ids.contains_key(id)
    }

    pub(super) fn add(&mut self, id: Uuid, now: u64) {
        self.ids.insert(id, now);
        self.in_order.push_back((now, id));
    }

    fn forget(&mut self, before: u64, most: usize) {
        while let Some(&(at, id)) = self.in_order.front() {
            if at >= before && self.in_order.len() <= most {
                return;
            }
            self.in_order.pop_front();
            if self.ids.get(&id) == Some(&at) {
                self.ids.remove(&id);
            }
        }
    }
}

impl Join {
    /// Lets go of what a story tells where it is over for long enough, else remembers when to look again.
    pub(super) fn let_go_or_wait(&mut self, scope: &Arc<Scope>, element: &Element, story: &Story) {
        let config = &self.config;
        // Nothing but a request that comes late can still say something about a probe, and there are many.
        let probe_horizon = config.horizon_ns.min(config.audit_lateness_ns.saturating_add(config.start_within_ns));
        let horizon = if story.probe { probe_horizon } else { config.horizon_ns };
        let over = story.idle_since.map(|idle| idle.saturating_add(horizon));
        let at = match (&story.ask, &story.root) {
            _ if over.is_some() => over,
            // One that never ends: its close was lost, or it is open for days.
            (Some(ask), _) => Some(ask.received.saturating_add(config.longest_ns)),
            // A main process, once no request can be for it any more.
            (None, Some(key)) if story.workload => self.roots.get(key).map(|rooted| {
                let since = rooted.root.entered().max(rooted.root.first_arrival());
                since.saturating_add(config.debug_start_within_ns)
            }),
            _ => None,
        };
        let Some(at) = at else { return };
        if at >= self.now {
            self.look_again(element, at);
        } else if over.is_some() {
            self.let_go(scope, story);
        } else if story.ask.is_some() {
            self.counters.given_up += 1;
            self.let_go(scope, story);
        } else if let Some(rooted) = story.root.as_ref().and_then(|key| self.roots.get_mut(key)) {
            let before = rooted.root.deed_bytes();
            attic::bring_back(&mut rooted.root, &mut self.attic);
            rooted.root.retire();
            let after = rooted.root.deed_bytes();
            self.deeds_changed(before, after);
        }
    }

    fn look_again(&mut self, element: &Element, at: u64) {
        let known = match element {
            Element::Root(key) => self.roots.get_mut(key).map(|rooted| &mut rooted.release_at),
            Element::Ask(scope, key) => {
                let ask = self.scopes.get_mut(scope).and_then(|held| held.asks.get_mut(key));
                ask.map(|ask| &mut ask.release_at)
            }
        };
        let Some(known) = known else { return };
        if *known != Some(at) {
            if let Some(before) = known.replace(at) {
                self.release.remove(&(before, element.clone()));
            }
            self.release.insert((at, element.clone()));
        }
    }

    fn let_go(&mut self, scope: &Arc<Scope>, story: &Story) {
        for id in story.absorbed.iter().chain(&story.session) {
            self.written.remove(id);
        }
        if let Some(first) = &story.ask {
            self.remove_ask(scope, first, !story.decided);
        }
        if let Some(key) = &story.root {
            self.remove_root(key);
        }
    }

    /// Nothing that was heard before this time is needed for what may still change, as far as it is about sessions. What is
    /// known of pods and of main processes may be older.
    pub fn needs_since(&self) -> u64 {
        let roots = self.roots.values().filter(|rooted| !rooted.root.retired).map(|rooted| rooted.root.first_seen);
        let asks = self.scopes.values().flat_map(|held| held.asks.keys()).map(|first| first.received);
        let oldest = roots.chain(asks).min().unwrap_or(self.now);
        let before = self.config.debug_start_within_ns.saturating_add(self.config.max_skew_ns);
        oldest.saturating_sub(before).max(self.now.saturating_sub(self.config.longest_ns))
    }

    /// What is not bound to one session.
    pub(super) fn forget(&mut self) {
        let long_ago = self.now.saturating_sub(self.config.longest_ns);
        for (scope, held) in &mut self.scopes {
            held.counts.retain(|_, count| count.last.0 >= long_ago);
            if held.is_empty() {
                self.dirty.insert(Arc::clone(scope));
            }
        }
        let heard_of = self.now.saturating_sub(self.config.longest_ns);
        self.containers.forget_before(heard_of);
        self.users.retain(|user| Arc::strong_count(user) > 1);
        // Where a stream never comes again, nobody waits for it for ever.
        for waits in [&mut self.waits_for_nodes, &mut self.waits_for_audit] {
            while waits.first().is_some_and(|(until, _)| *until < long_ago) {
                waits.pop_first();
            }
        }
        self.askers.forget(self.now.saturating_sub(self.config.horizon_ns));
        self.losses.forget_before(heard_of);
        let horizon = self.config.horizon_ns.saturating_add(self.config.debug_start_within_ns);
        self.leases.forget_before(heard_of);
        self.spo.forget_before(heard_of, self.now.saturating_sub(horizon));
        self.recurring.forget_before(heard_of);
        let remembered = self.config.horizon_ns.saturating_mul(4);
        self.gone.forget(self.now.saturating_sub(remembered), self.config.max_gone);
        // Retired main processes are told of no more: when they have ended, nobody attaches to them either.
        let before = self.now.saturating_sub(self.config.horizon_ns);
        let over = self
            .roots
            .values()
            .filter(|rooted| rooted.root.retired && !rooted.root.is_running() && rooted.root.last_seen < before);
        let over: Vec<_> = over.map(|rooted| Arc::clone(&rooted.root.key)).collect();
        for key in over {
            self.remove_root(&key);
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
