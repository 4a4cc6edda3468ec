//! What the join knows besides requests and roots: pods from the audit records, declared losses, watermarks.

use super::root::Root;
use super::session::LossNote;
use super::{Config, Route};
use crate::audit::PodFact;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Facts only add up.
#[derive(Debug, Default)]
pub(super) struct Pods {
    pods: BTreeMap<(String, String), Pod>,
    pub(super) not_kept: u64,
}

#[derive(Debug, Default)]
struct Pod {
    /// Nodes that reported it as theirs, by pod uid.
    nodes: BTreeMap<String, BTreeSet<String>>,
    /// Pod uids whose containers a record showed.
    specs: BTreeSet<String>,
    /// Probe and hook commands by container.
    commands: BTreeSet<(String, Vec<String>)>,
}

impl Pods {
    /// True where this told something new.
    pub(super) fn add(&mut self, fact: PodFact, config: &Config) -> bool {
        let PodFact { namespace, pod, uid, node, has_spec, commands } = fact;
        let key = (namespace, pod);
        if node.is_none() && !has_spec && commands.is_empty() {
            return false;
        }
        if self.pods.len() >= config.max_pods && !self.pods.contains_key(&key) {
            self.not_kept += 1;
            return false;
        }
        let pod = self.pods.entry(key).or_default();
        let mut news = false;
        if has_spec && pod.specs.len() < config.facts_per_pod {
            news |= pod.specs.insert(uid.clone());
        }
        if pod.nodes.len() < config.facts_per_pod {
            let nodes = pod.nodes.entry(uid).or_default();
            news |= node.is_some_and(|node| nodes.insert(node));
        }
        for command in commands {
            if pod.commands.len() < config.facts_per_pod {
                news |= pod.commands.insert((command.container, command.argv));
            }
        }
        news
    }

    /// Its argv is a probe's or hook's of that container.
    pub(super) fn is_probe(&self, root: &Root) -> bool {
        let (Some(container), Some((_, first))) = (root.container(), root.first_exec()) else { return false };
        root.entry.how == "exec_sync"
            && self.pods.get(&(container.namespace.clone(), container.pod.clone())).is_some_and(|pod| {
                pod.commands
                    .iter()
                    .any(|(name, argv)| *name == container.name && argv.as_slice() == first.argv.as_slice())
            })
    }

    /// The nodes that run a pod of this name by the API server's records.
    pub(super) fn nodes_of(&self, namespace: &str, pod: &str) -> impl Iterator<Item = &String> {
        let pod = self.pods.get(&(namespace.to_owned(), pod.to_owned()));
        pod.into_iter().flat_map(|pod| pod.nodes.values().flatten())
    }

    /// The nodes that run a pod of this name by the API server's records, where `node` is none of them.
    pub(super) fn runs_elsewhere(&self, namespace: &str, pod: &str, node: &str) -> Option<String> {
        let nodes: BTreeSet<&str> = self.nodes_of(namespace, pod).map(String::as_str).collect();
        (!nodes.is_empty() && !nodes.contains(node)).then(|| nodes.into_iter().collect::<Vec<_>>().join(", "))
    }

    /// A record showed the containers of its pod, so that its probes and hooks are known.
    pub(super) fn knows_spec(&self, root: &Root) -> bool {
        let Some(container) = root.container() else { return false };
        self.pods
            .get(&(container.namespace.clone(), container.pod.clone()))
            .is_some_and(|pod| pod.specs.contains(&container.pod_uid))
    }

    /// The nodes that run this pod by the API server's records, where those say that `root`'s node does not.
    pub(super) fn contradicts(&self, root: &Root) -> Option<String> {
        let container = root.container()?;
        let pod = self.pods.get(&(container.namespace.clone(), container.pod.clone()))?;
        let nodes = pod.nodes.get(&container.pod_uid).filter(|nodes| !nodes.is_empty())?;
        if root.key.node.is_empty() || nodes.contains(&*root.key.node) {
            return None;
        }
        Some(nodes.iter().cloned().collect::<Vec<_>>().join(", "))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Loss {
    /// `None`: the audit stream.
    pub(super) node: Option<Arc<str>>,
    pub(super) note: LossNote,
}

#[derive(Debug, Default)]
pub(super) struct Losses {
    known: BTreeSet<Loss>,
}

impl Losses {
    pub(super) fn add(&mut self, loss: Loss, config: &Config) -> bool {
        if self.known.len() >= config.max_losses {
            // Two losses of one stream and source become one that covers both: it may claim more than was lost, never
            // less.
            let same = |other: &&Loss| {
                other.node == loss.node
                    && other.note.stream == loss.note.stream
                    && other.note.source == loss.note.source
            };
            if let Some(mut wider) = self.known.iter().find(same).cloned() {
                self.known.remove(&wider);
                wider.note.from = wider.note.from.min(loss.note.from);
                wider.note.until = wider.note.until.max(loss.note.until);
                wider.note.count = wider.note.count.zip(loss.note.count).map(|(a, b)| a.saturating_add(b));
                return self.known.insert(wider);
            }
        }
        self.known.insert(loss)
    }

    /// Those that touch a time on a node (`None`: any node) or in the audit stream.
    pub(super) fn touching<'a>(
        &'a self,
        node: Option<&'a str>,
        from: u64,
        until: u64,
    ) -> impl Iterator<Item = &'a Loss> + 'a {
        self.known.iter().filter(move |loss| {
            let here = match (&loss.node, node) {
                (Some(of), Some(asked)) => **of == *asked,
                _ => true,
            };
            here && loss.note.from.0 <= until && from <= loss.note.until.0
        })
    }

    pub(super) fn audit_touching(&self, from: u64, until: u64) -> bool {
        self.known
            .range(..)
            .take_while(|loss| loss.node.is_none())
            .any(|loss| loss.note.from.0 <= until && from <= loss.note.until.0)
    }

    pub(super) fn forget_before(&mut self, unix_ns: u64) {
        self.known.retain(|loss| loss.note.until.0 >= unix_ns);
    }
}

impl Loss {
    /// Another root or request may be missing because of it. Lost verdicts do not touch membership.
    pub(super) fn hides_others(&self) -> bool {
        self.node.is_none() || !matches!(self.note.source.as_str(), "audit_netlink" | "verdict_ring")
    }
}

/// Up to which event time each source has handed over everything, and when it was last heard of.
#[derive(Debug, Default)]
pub(super) struct Watermarks {
    nodes: BTreeMap<Arc<str>, Mark>,
    audit: u64,
    audit_heard: Option<u64>,
    /// The join's `now` until which events are expected that are tried again.
    audit_retried_until: u64,
    /// Nodes' leases come by the stream: it is never idle for long.
    has_leases: bool,
    /// First and last event time that came by each route.
    routes: BTreeMap<Route, (u64, u64)>,
    /// Routes that the intake says are silent, and since when.
    silent_routes: BTreeMap<Route, u64>,
}

/// A batching webhook holds events for 30 s, and they take their time: what comes within so long was not tried again.
const HELD_NS: u64 = 45_000_000_000;

/// How the audit stream stands: whether what asked for an entry may still come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AuditState {
    /// What happened has come within [`Config::audit_lateness_ns`] of late.
    OnTime,
    /// Events are tried again, or nothing came for longer than a webhook holds its events.
    Late,
    /// Nothing comes any more, since then, by none of the routes that are named (none: whichever they are).
    Silent { since: u64, routes: Vec<Route> },
}

#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    until: u64,
    /// The join's `now` when it last moved.
    moved: u64,
}

/// Silent nodes that are named.
const NAMED: usize = 5;

impl Watermarks {
    pub(super) fn node(&mut self, node: Arc<str>, until: u64, now: u64) {
        let known = self.nodes.entry(node).or_default();
        if until > known.until {
            *known = Mark { until, moved: now };
        }
    }

    pub(super) fn audit(&mut self, until: u64, now: u64, config: &Config) {
        self.audit = self.audit.max(until);
        self.audit_heard(now, config);
    }

    pub(super) fn lease(&mut self) {
        self.has_leases = true;
    }

    /// Nothing came for longer than a webhook holds its events, where something should have.
    fn is_quiet(&self, now: u64, config: &Config) -> bool {
        let held = config.audit_lateness_ns.max(HELD_NS);
        self.has_leases && self.audit_heard.is_some_and(|heard| heard.saturating_add(held) < now)
    }

    pub(super) fn audit_heard(&mut self, now: u64, config: &Config) {
        if self.is_quiet(now, config) {
            // What could not be delivered meanwhile comes batch by batch, each when its wait is over.
            self.audit_retried_until = now.saturating_add(config.audit_retries_ns);
        }
        // Before the first tick it is not known when that is.
        self.audit_heard = self.audit_heard.max(Some(now).filter(|now| *now > 0));
    }

    /// An event of that time came by a route.
    pub(super) fn route(&mut self, route: Route, at: u64, now: u64, config: &Config) {
        let span = self.routes.entry(route).or_insert((at, at));
        *span = (span.0.min(at), span.1.max(at));
        let late = now.saturating_sub(at);
        // What is older than any retry is read from a file, and says nothing of what else is to come.
        if late > config.audit_lateness_ns.max(HELD_NS) && late <= config.audit_retries_ns.saturating_mul(2) {
            self.audit_retried_until = now.saturating_add(config.audit_retries_ns);
        }
    }

    /// `None`: it is heard again.
    pub(super) fn route_silent(&mut self, route: Route, since: Option<u64>) {
        match since {
            Some(since) => drop(self.silent_routes.insert(route, since)),
            None => drop(self.silent_routes.remove(&route)),
        }
    }

    pub(super) fn audit_state(&self, now: u64, config: &Config) -> AuditState {
        // An API server is never idle: whichever route is heard, the others' silence is no silence of the stream.
        let all_silent = !self.silent_routes.is_empty()
            && self.routes.keys().all(|route| self.silent_routes.contains_key(route))
            && self.audit_heard.is_none_or(|heard| heard.saturating_add(HELD_NS) < now);
        let routes = || self.silent_routes.keys().copied().collect();
        if let Some(since) = self.audit_silent_since(now, config) {
            return AuditState::Silent { since, routes: if all_silent { routes() } else { Vec::new() } };
        }
        if let Some(since) = self.silent_routes.values().max().filter(|_| all_silent) {
            return AuditState::Silent { since: *since, routes: routes() };
        }
        if self.is_quiet(now, config) || now < self.audit_retried_until { AuditState::Late } else { AuditState::OnTime }
    }

    pub(super) fn has_several_routes(&self) -> bool {
        self.routes.len() > 1
    }

    /// Routes that brought events from before and from well after this time.
    pub(super) fn routes_around(&self, from: u64, until: u64, config: &Config) -> Vec<Route> {
        let around = |span: &(u64, u64)| span.0 < from && span.1 > until.saturating_add(config.audit_lateness_ns);
        self.routes.iter().filter(|(_, span)| around(span)).map(|(route, _)| *route).collect()
    }

    /// Every silent node, and since when.
    pub(super) fn silent(&self, now: u64, config: &Config) -> Vec<(Arc<str>, u64)> {
        let silent = self.nodes.iter().filter(|(_, mark)| mark.is_silent(now, config));
        silent.map(|(node, mark)| (Arc::clone(node), mark.until)).collect()
    }

    pub(super) fn audit_is_past(&self) -> u64 {
        self.audit
    }

    /// Since when nothing came, where that is for too long.
    pub(super) fn audit_silent_since(&self, now: u64, config: &Config) -> Option<u64> {
        self.audit_heard.filter(|heard| heard.saturating_add(config.audit_silent_ns) < now)
    }

    /// An agent spoke for the node at least once.
    pub(super) fn knows(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    pub(super) fn no_nodes(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Every node that is not silent is past it. `None`: no node was ever heard of.
    pub(super) fn nodes_are_past(&self, now: u64, config: &Config) -> Option<u64> {
        let heard = self.nodes.values().filter(|mark| !mark.is_silent(now, config)).map(|mark| mark.until).min();
        if self.nodes.is_empty() { None } else { Some(heard.unwrap_or(u64::MAX)) }
    }

    /// Their names, for people.
    pub(super) fn silent_nodes(&self, now: u64, config: &Config) -> Option<String> {
        let mut silent = self.nodes.iter().filter(|(_, mark)| mark.is_silent(now, config)).map(|(node, _)| &**node);
        let named: Vec<&str> = silent.by_ref().take(NAMED).collect();
        let more = silent.count();
        match (named.as_slice(), more) {
            ([], _) => None,
            (named, 0) => Some(format!("node {}", named.join(", "))),
            (named, more) => Some(format!("node {} and {more} more", named.join(", "))),
        }
    }
}

impl Mark {
    fn is_silent(&self, now: u64, config: &Config) -> bool {
        self.moved.saturating_add(config.node_silent_ns) < now
    }
}
