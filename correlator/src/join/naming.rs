//! Names of containers that come later than records of them, or with another record.

use super::Join;
use super::root::{Root, RootKey};
use super::scope::Scope;
use ahash::AHashMap;
use seclog_proto::v1::{Amendment, Container, ContainerFacts, NodeRecord};
use std::sync::Arc;

/// A container whose names are known, and when it was last heard of.
#[derive(Debug)]
struct Named {
    container: Container,
    facts: Option<ContainerFacts>,
    seen: u64,
}

/// By node and container id.
#[derive(Debug, Default)]
pub(super) struct Containers {
    nodes: AHashMap<Arc<str>, AHashMap<Box<str>, Box<Named>>>,
    len: usize,
}

impl Containers {
    fn get_mut(&mut self, node: &str, id: &str) -> Option<&mut Named> {
        self.nodes.get_mut(node)?.get_mut(id).map(|named| &mut **named)
    }

    fn insert(&mut self, node: &Arc<str>, named: Named) {
        let of_node = self.nodes.entry(Arc::clone(node)).or_default();
        let before = of_node.insert(named.container.id.as_str().into(), Box::new(named));
        self.len += usize::from(before.is_none());
    }

    pub(super) fn forget_before(&mut self, time: u64) {
        self.nodes.retain(|_, of_node| {
            of_node.retain(|_, named| named.seen >= time);
            !of_node.is_empty()
        });
        self.len = self.nodes.values().map(|of_node| of_node.len()).sum();
    }
}

impl Join {
    /// Names that the agent learnt late, or of which it told with another record of the same container.
    pub(super) fn name_container(&mut self, node: &Arc<str>, record: &mut NodeRecord) {
        let Some(container) = record.container.as_mut().filter(|container| !container.id.is_empty()) else { return };
        if let Some(known) = self.containers.get_mut(node, &container.id) {
            known.seen = self.now;
            if container.pod_name.is_empty() {
                container.clone_from(&known.container);
            }
        } else if !container.pod_name.is_empty() && self.containers.len < self.config.max_containers {
            let named = container.clone();
            self.containers.insert(node, Named { container: named.clone(), facts: None, seen: self.now });
            self.name_roots(node, &named);
        }
    }

    fn name_roots(&mut self, node: &Arc<str>, named: &Container) {
        let nameless: Vec<Arc<RootKey>> = self
            .scopes
            .keys()
            .rev()
            .map_while(|scope| match &**scope {
                Scope::Nameless(key) => Some(key),
                Scope::Pod { .. } => None,
            })
            .filter(|key| key.node == *node)
            .map(Arc::clone)
            .collect();
        for key in nameless {
            let Some(rooted) = self.roots.get_mut(&key) else { continue };
            if rooted.root.container().is_some_and(|container| container.id == named.id) {
                rooted.root.add_container(named.clone(), false, &self.config);
                self.look_at_root(&key);
            }
        }
    }

    /// What became known of a container after records of it had come without.
    pub(super) fn amend(&mut self, node: &Arc<str>, container: Option<Container>, amendment: Amendment) {
        self.counters.amendments += 1;
        let Some(container) = container.filter(|container| !container.id.is_empty() && !container.pod_name.is_empty())
        else {
            return;
        };
        let is_known = self.containers.get_mut(node, &container.id).is_some();
        if self.containers.len >= self.config.max_containers && !is_known {
            return;
        }
        let named = Named { container: container.clone(), facts: amendment.container_facts, seen: self.now };
        self.containers.insert(node, named);
        self.name_roots(node, &container);
        let (counts, others) = std::mem::take(&mut self.nameless_counts)
            .into_iter()
            .partition(|(of, record)| *of == *node && is_in(record, &container.id));
        self.nameless_counts = others;
        for (_, mut record) in counts {
            record.container = Some(container.clone());
            self.bulk_count(node, record);
        }
        // Those that had no name have just been given it, and stand with the others of the pod.
        let scope = Scope::Pod { namespace: container.pod_namespace.clone(), pod: container.pod_name.clone() };
        let of_pod = self.scopes.get(&scope).into_iter().flat_map(|held| &held.roots);
        let has_it = |key: &&Arc<RootKey>| {
            key.node == *node && self.roots.get(*key).is_some_and(|rooted| rooted.root.has_container(&container.id))
        };
        let here: Vec<Arc<RootKey>> = of_pod.filter(has_it).map(Arc::clone).collect();
        for key in here {
            let Some(mut rooted) = self.roots.remove(&key) else { continue };
            self.add_known_facts(&mut rooted.root);
            self.roots.insert(Arc::clone(&key), rooted);
            self.look_at_root(&key);
        }
    }

    /// Another root of the container may have told, or an amendment.
    pub(super) fn add_known_facts(&mut self, root: &mut Root) {
        let id = root.container().map(|container| container.id.as_str()).filter(|id| !id.is_empty());
        let Some(named) = id.and_then(|id| self.containers.get_mut(&root.key.node, id)) else { return };
        match (root.facts(), &named.facts) {
            (None, Some(facts)) => root.add_facts(facts.clone()),
            (Some(facts), None) => named.facts = Some(facts.clone()),
            _ => {}
        }
    }
}

fn is_in(record: &NodeRecord, container: &str) -> bool {
    record.container.as_ref().is_some_and(|of| of.id == container)
}
