//! What the API server's events do to the state.

use super::attempt::Attempt;
use super::finding::{Code, FindingNote};
use super::machine::Element;
use super::scope::Scope;
use super::{Join, Route, ids};
use crate::audit::{AccessEvent, Digest, MonitoringChange, PodFact};
use crate::timestamp::Timestamp;
use std::sync::Arc;

impl Join {
    pub(super) fn audit_event(&mut self, route: Route, event: AccessEvent) {
        self.counters.audit_events += 1;
        let digest = event.digest;
        let has_room = self.has_room();
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
                if !has_room {
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

    /// A known event came by another route.
    pub(super) fn audit_seen(&mut self, route: Route, digest: Digest) {
        let Some((scope, key)) = self.events.get(&digest).cloned() else { return };
        let Some(held) = self.scopes.get_mut(&scope) else { return };
        let Some(attempt) = held.attempts.get_mut(&key) else { return };
        if attempt.seen_by(route, self.now) {
            held.refold(&key, &self.config, self.skews.widest());
            self.dirty.insert(scope);
        }
    }

    pub(super) fn pod(&mut self, fact: PodFact) {
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

    pub(super) fn audit_finding(&mut self, code: Code, time: u64, subject: &str, text: String, records: Vec<String>) {
        let note = FindingNote::new(code, &self.config.cluster, subject, text, records);
        self.found(note.line(&self.config.cluster, Timestamp(time), None));
    }

    pub(super) fn monitoring(&mut self, change: MonitoringChange) {
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
}
