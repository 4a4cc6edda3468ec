//! Nodes that live, by their leases in the audit log: so a node without an agent is told from none, and a node whose agent
//! is silent from one that is down.

use super::Config;
use std::collections::BTreeMap;
use std::sync::Arc;

const MOST_NODES: usize = 20_000;

/// By node: the join's `now` at its first and its last lease.
#[derive(Debug, Default)]
pub(super) struct Leases {
    nodes: BTreeMap<Arc<str>, (u64, u64)>,
}

impl Leases {
    pub(super) fn add(&mut self, node: &str, now: u64) {
        if let Some(heard) = self.nodes.get_mut(node) {
            heard.1 = heard.1.max(now);
        } else if self.nodes.len() < MOST_NODES {
            self.nodes.insert(node.into(), (now, now));
        }
    }

    /// Whether it renews its lease; `None`: it never did, as far as is known.
    pub(super) fn lives(&self, node: &str, now: u64, config: &Config) -> Option<bool> {
        self.nodes.get(node).map(|(_, last)| last.saturating_add(config.lease_within_ns) >= now)
    }

    /// Nodes that have lived for so long that an agent should be there, and since when.
    pub(super) fn settled(&self, now: u64, config: &Config) -> impl Iterator<Item = (&Arc<str>, u64)> {
        self.nodes.iter().filter_map(move |(node, (first, last))| {
            let lives = last.saturating_add(config.lease_within_ns) >= now;
            (lives && first.saturating_add(config.agent_within_ns) < now).then_some((node, *first))
        })
    }

    pub(super) fn forget_before(&mut self, now: u64) {
        self.nodes.retain(|_, (_, last)| *last >= now);
    }
}
