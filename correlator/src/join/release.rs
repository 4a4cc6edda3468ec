//! Letting go: what is finished and has been quiet for a while, and what has gone on for too long.

use super::machine::{Join, Scope};
use super::session::State;
use super::{ids, story};
use std::collections::{BTreeMap, VecDeque};
use uuid::Uuid;

/// Ids of what was let go, so that stragglers are known as such; the oldest are forgotten first.
#[derive(Debug, Default)]
pub(super) struct Gone {
    ids: BTreeMap<Uuid, u64>,
    in_order: VecDeque<(u64, Uuid)>,
}

impl Gone {
    pub(super) fn contains(&self, id: &Uuid) -> bool {
        self.ids.contains_key(id)
    }

    fn add(&mut self, id: Uuid, now: u64) {
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
    /// Lets go what is finished, and what has gone on for too long.
    pub(super) fn sweep(&mut self) {
        let config = self.config.clone();
        let (now, horizon) = (self.now, config.horizon_ns);
        // Nothing but a request that comes late can still say something about a probe, and there are many.
        let probe_horizon = horizon.min(config.audit_lateness_ns.saturating_add(config.start_within_ns));
        for scope in self.scopes.keys().cloned().collect::<Vec<_>>() {
            if self.dirty.contains(&scope) || self.due.contains_key(&scope) {
                continue;
            }
            for part in self.stories(&scope).parts {
                let began = part.requests.iter().map(|identity| identity.received).max();
                let old = began.is_some_and(|began| began.saturating_add(config.longest_ns) < now);
                let horizon = if part.probe { probe_horizon } else { horizon };
                match part.idle_since {
                    Some(idle) if idle.saturating_add(horizon) < now => self.let_go(&scope, part),
                    None if part.workload => self.retire(&part, now.saturating_sub(config.debug_start_within_ns)),
                    None if old => {
                        self.counters.given_up += 1;
                        self.let_go(&scope, part);
                    }
                    _ => {}
                }
            }
            self.forget_exited(&scope);
        }
        self.scopes.retain(|_, held| !(held.attempts.is_empty() && held.roots.is_empty() && held.written.is_empty()));
        let heard_of = now.saturating_sub(config.longest_ns);
        self.containers.retain(|_, named| named.seen >= heard_of);
        self.losses.forget_before(now.saturating_sub(config.longest_ns));
        self.gone.forget(now.saturating_sub(horizon.saturating_mul(4)), config.max_gone);
    }

    /// Main processes of containers, once no request can be for them any more.
    fn retire(&mut self, part: &story::Part, before: u64) {
        for key in &part.roots {
            if let Some((root, _)) =
                self.roots.get_mut(key).filter(|(root, _)| root.entered().max(root.first_arrival()) < before)
            {
                root.retire();
            }
        }
    }

    fn forget_exited(&mut self, scope: &Scope) {
        let Some(held) = self.scopes.get_mut(scope) else { return };
        let before = self.now.saturating_sub(self.config.horizon_ns);
        held.written.retain(|id| {
            let over = self
                .written
                .get(id)
                .is_none_or(|written| written.session.state == State::Superseded && written.at < before);
            if over {
                self.written.remove(id);
            }
            !over
        });
        held.roots.retain(|key| {
            let Some((root, _)) = self.roots.get(key) else { return false };
            let over = root.retired && !root.is_running() && root.last_seen < before;
            if over {
                self.roots.remove(key);
            }
            !over
        });
    }

    fn let_go(&mut self, scope: &Scope, part: story::Part) {
        let Some(held) = self.scopes.get_mut(scope) else { return };
        let mut uids = Vec::new();
        for identity in &part.requests {
            if let Some(attempt) = held.attempts.remove(identity) {
                self.requests -= 1;
                uids.extend(attempt.spo_uid().map(str::to_owned));
                self.gone.add(ids::of_request(&self.config.cluster, identity), self.now);
            }
        }
        for key in &part.roots {
            held.roots.remove(key);
            self.roots.remove(key);
            self.gone.add(ids::of_root(&self.config.cluster, key), self.now);
        }
        for id in &part.sessions {
            self.written.remove(id);
            held.written.remove(id);
        }
        if part.probe {
            held.probes = held.probes.saturating_sub(1);
            self.probes_let_go += 1;
        }
        for uid in uids {
            self.forget_uid(Some(&uid));
        }
    }
}
