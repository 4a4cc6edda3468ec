//! What a node's record does to the state.

use super::Join;
use super::askers;
use super::attempt::RequestKey;
use super::attic;
use super::identifiers;
use super::ids;
use super::knowledge::Loss;
use super::machine::{Element, Rooted};
use super::place::RootPlace;
use super::root::{Root, RootKey};
use super::scope::Scope;
use super::session::{BulkCount, LossNote};
use crate::timestamp::Timestamp;
use seclog_proto::v1::NodeRecord;
use seclog_proto::v1::node_record::Detail;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Nodes whose boot id is held once for all their records.
const MAX_BOOTS: usize = 20_000;

impl Join {
    pub(super) fn node_record(&mut self, node: &Arc<str>, record: NodeRecord) {
        self.counters.node_records += 1;
        if let Some(Detail::Loss(loss)) = record.detail {
            let note = LossNote {
                stream: format!("node/{node}"),
                source: loss.source,
                reason: loss.reason,
                from: Timestamp(loss.from_unix_ns),
                until: Timestamp(loss.until_unix_ns.max(loss.from_unix_ns)),
                count: loss.count_known.then_some(loss.count),
            };
            self.loss(Loss { node: Some(Arc::clone(node)), note });
            return;
        }
        if let Some(Detail::Amendment(amendment)) = record.detail {
            self.amend(node, record.container, amendment);
            return;
        }
        let Some(key) = self.root_key(node, &record) else {
            self.counters.outside_roots += 1;
            return;
        };
        let mut record = record;
        self.name_container(node, &mut record);
        if let Some(Detail::VerdictCount(_)) = record.detail {
            self.bulk_count(node, record);
            return;
        }
        let verdicts = matches!(record.detail, Some(Detail::Verdict(_)));
        if let Some(Detail::ProcessStart(start)) = &record.detail
            && let Some(program) = askers::asks(&start.filename)
        {
            let id = ids::of_root(&self.config.cluster, &key);
            self.askers.add(node, record.time_unix_ns, id, program);
            self.fresh_askers.entry(Arc::clone(node)).or_default().insert(record.time_unix_ns);
        }
        if let Some(rooted) = self.roots.get_mut(&key) {
            let before = rooted.root.deed_bytes();
            attic::bring_back(&mut rooted.root, &mut self.attic);
            rooted.root.add(record, &self.config, self.now);
            if rooted.root.retired {
                self.counters.late += 1;
                rooted.root.trim();
            }
            self.deed_bytes = (self.deed_bytes + rooted.root.deed_bytes()).saturating_sub(before);
            let news = verdicts && rooted.told_verdicts != rooted.root.has_verdicts;
            if news {
                rooted.told_verdicts = rooted.root.has_verdicts;
                let key = Arc::clone(&rooted.root.key);
                self.verdicts_seen(&key);
                self.look_at_root(&key);
                return;
            }
            let unchanged = rooted.face == Some(rooted.root.face);
            let quiet = unchanged && (rooted.is_dirty || rooted.is_workload || rooted.root.retired);
            if !quiet {
                let key = Arc::clone(&rooted.root.key);
                self.look_at_root(&key);
            }
            return;
        }
        let id = ids::of_root(&self.config.cluster, &key);
        if self.gone.contains(&id) {
            self.counters.late += 1;
            return;
        }
        if !self.has_room() {
            self.counters.refused_roots += 1;
            return;
        }
        let key = Arc::new(key);
        let mut root = Root::new(id, Arc::clone(&key));
        root.add(record, &self.config, self.now);
        self.add_known_facts(&mut root);
        let scope = Arc::new(scope_of(&root));
        self.deeds_changed(0, root.deed_bytes());
        let rooted = Rooted {
            root,
            scope,
            place: RootPlace::default(),
            face: None,
            identifiers: BTreeSet::new(),
            knowledge: 0,
            is_dirty: false,
            is_probe: false,
            is_workload: false,
            concluded: None,
            release_at: None,
            told_verdicts: (false, false),
        };
        self.roots.insert(Arc::clone(&key), Box::new(rooted));
        self.look_at_root(&key);
        if verdicts {
            self.verdicts_seen(&key);
        }
    }

    /// `None` for records that belong to no root.
    fn root_key(&mut self, node: &Arc<str>, record: &NodeRecord) -> Option<RootKey> {
        let root = record.session_root.as_ref().filter(|root| root.pid != 0)?;
        let boot_id = match self.boots.get(node) {
            Some(boot) if **boot == *record.boot_id => Arc::clone(boot),
            _ => {
                let boot: Arc<str> = record.boot_id.as_str().into();
                if self.boots.len() < MAX_BOOTS || self.boots.contains_key(node) {
                    self.boots.insert(Arc::clone(node), Arc::clone(&boot));
                }
                boot
            }
        };
        Some(RootKey { node: Arc::clone(node), boot_id, start_boottime_ns: root.start_boottime_ns, pid: root.pid })
    }

    /// A root is new or has changed: puts it where it belongs, and marks whom that concerns.
    pub(super) fn look_at_root(&mut self, key: &Arc<RootKey>) {
        let Some(rooted) = self.roots.get_mut(key) else { return };
        rooted.is_dirty = true;
        if rooted.face == Some(rooted.root.face) {
            self.tell_again(&Element::Root(Arc::clone(key)));
            return;
        }
        rooted.face = Some(rooted.root.face);
        let scope = scope_of(&rooted.root);
        let scope = self.scopes.get_key_value(&scope).map_or_else(|| Arc::new(scope), |(known, _)| Arc::clone(known));
        let place = RootPlace::of(&rooted.root);
        let is_main = rooted.root.entry.how == "start";
        let old_scope = std::mem::replace(&mut rooted.scope, Arc::clone(&scope));
        let old_place = std::mem::replace(&mut rooted.place, place.clone());
        let marked = identifiers::of_root(&rooted.root);
        let old_marked = std::mem::replace(&mut rooted.identifiers, marked.clone());

        let widen = self.skews.widest();
        if let Some(held) = self.scopes.get_mut(&old_scope) {
            let near: Vec<RequestKey> = held.index.asks_near(&old_place, &self.config, widen).map(Arc::clone).collect();
            held.dirty_asks.extend(near);
            held.index.remove_root(&old_place, key);
            if old_scope != scope {
                held.roots.remove(key);
                held.mains.remove(key);
            }
            self.dirty.insert(old_scope);
        }
        let held = self.scopes.entry(Arc::clone(&scope)).or_default();
        held.index.add_root(&place, key);
        held.roots.insert(Arc::clone(key));
        if is_main {
            held.mains.insert(Arc::clone(key));
            // Whoever attached to it names it.
            let attaches = held.asks.iter().filter(|(_, ask)| ask.place.buckets.is_empty());
            let attaches: Vec<RequestKey> = attaches.map(|(first, _)| Arc::clone(first)).collect();
            held.dirty_asks.extend(attaches);
        }
        self.mark_root(&scope, key);
        let repeated = self
            .roots
            .get(key)
            .map(|rooted| self.recurring.add(&scope, &rooted.root, self.now, self.config.max_commands));
        for first in repeated.into_iter().flatten() {
            self.mark(&Element::Root(first));
        }
        for uid in old_marked.difference(&marked) {
            self.identifiers.forget_root(uid, key);
            self.mark_holders(uid);
        }
        for uid in marked.difference(&old_marked) {
            self.identifiers.carry(uid, key);
            self.mark_holders(uid);
        }
    }

    /// The first verdicts of a root: its containers report them.
    fn verdicts_seen(&mut self, key: &Arc<RootKey>) {
        let Some(rooted) = self.roots.get(key) else { return };
        let Some(held) = self.scopes.get_mut(&rooted.scope) else { return };
        let mut news = false;
        for id in rooted.root.container_ids() {
            let (any, executed) = rooted.root.has_verdicts;
            news |= any && held.verdicts_in.len() < self.config.max_containers && held.verdicts_in.insert(id.clone());
            news |= executed && held.verdicts_in.contains(id) && held.exec_verdicts_in.insert(id.clone());
        }
        let roots: Vec<Arc<RootKey>> = if news { held.roots.iter().map(Arc::clone).collect() } else { Vec::new() };
        for key in roots {
            self.mark(&Element::Root(key));
        }
    }

    pub(super) fn bulk_count(&mut self, node: &Arc<str>, record: NodeRecord) {
        let nameless = record.container.as_ref().is_some_and(|container| container.pod_name.is_empty());
        if nameless {
            // An amendment may name it.
            if self.nameless_counts.len() >= self.config.counts_per_pod {
                self.nameless_counts.pop_front();
            }
            self.nameless_counts.push_back((Arc::clone(node), record));
            return;
        }
        let (Some(Detail::VerdictCount(count)), Some(container)) = (record.detail, record.container) else { return };
        let scope = Arc::new(Scope::Pod { namespace: container.pod_namespace, pod: container.pod_name });
        let held = self.scopes.entry(scope).or_default();
        if held.counts.len() >= self.config.counts_per_pod {
            return;
        }
        let (first, last) = (count.first_unix_ns, count.last_unix_ns.max(count.first_unix_ns));
        let count = BulkCount {
            container_id: container.id,
            syscall: count.syscall_name,
            action: count.action,
            count: count.count,
            first: Timestamp(first),
            last: Timestamp(last),
            record: record.id.clone(),
        };
        let in_it = held
            .roots
            .iter()
            .filter(|key| self.roots.get(*key).is_some_and(|rooted| rooted.root.has_container(&count.container_id)));
        let roots: Vec<Arc<RootKey>> = in_it.map(Arc::clone).collect();
        held.counts.insert(record.id, count);
        for key in roots {
            self.mark(&Element::Root(key));
        }
    }
}

fn scope_of(root: &Root) -> Scope {
    match root.container().filter(|container| !container.pod.is_empty()) {
        Some(container) => Scope::Pod { namespace: container.namespace.clone(), pod: container.pod.clone() },
        None => Scope::Nameless(Arc::clone(&root.key)),
    }
}
