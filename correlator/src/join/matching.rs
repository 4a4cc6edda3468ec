//! Requests and roots of one pod, all considered together: which pairs are exact, which are the only possible ones, and
//! which groups cannot be told apart.

use super::Config;
use super::ask::Ask;
use super::checks::Checks;
use super::fit::{ArgvFit, Fit, fit};
use super::knowledge::{Losses, Pods};
use super::root::Root;
use crate::audit::SPO_UID;
use std::collections::{BTreeMap, BTreeSet};

/// What matching needs to look at besides the two sides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) config: &'a Config,
    pub(super) pods: &'a Pods,
    pub(super) losses: &'a Losses,
    pub(super) checks: &'a Checks,
    /// In how many requests of the whole cluster each SPO identifier was recorded.
    pub(super) uid_uses: &'a BTreeMap<String, u32>,
    /// Counts what was learnt about pods and losses.
    pub(super) knowledge: u64,
}

/// Requests and roots that could belong to each other, by index; nothing in it fits anything outside of it.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) asks: Vec<usize>,
    pub(super) roots: Vec<usize>,
    pub(super) bond: Bond,
}

#[derive(Debug)]
pub(super) enum Bond {
    /// Exactly one of each.
    Exact { fit: Fit, why: Vec<String> },
    /// Exactly one of each.
    Unique { fit: Fit, why: Vec<String> },
    /// `pairs` are all that fit; the texts say why none is asserted.
    Ambiguous { pairs: Vec<(usize, usize)>, why: Vec<String> },
    /// One of either.
    Alone,
}

pub(super) fn groups(asks: &[Ask<'_>], roots: &[&Root], around: Around<'_>) -> Vec<Group> {
    let mut pairs: BTreeMap<(usize, usize), Fit> = BTreeMap::new();
    let mut by_time: Vec<(u64, usize)> = roots.iter().enumerate().map(|(at, root)| (root.entered(), at)).collect();
    by_time.sort_unstable();
    for (ask_at, ask) in asks.iter().enumerate() {
        let (from, until) = ask.window(around.config);
        let begin = by_time.partition_point(|(entered, _)| *entered < from);
        for &(_, root_at) in by_time[begin..].iter().take_while(|(entered, _)| *entered <= until) {
            if let Some(fit) = fit(ask, roots[root_at], around.config) {
                pairs.insert((ask_at, root_at), fit);
            }
        }
    }

    let mut groups = Vec::new();
    let (mut of_ask, mut of_root) = (vec![0_u32; asks.len()], vec![0_u32; roots.len()]);
    for (ask, root) in pairs.keys() {
        of_ask[*ask] += 1;
        of_root[*root] += 1;
    }
    let carriers = carriers(roots);
    let exact: Vec<((usize, usize), Vec<String>)> = pairs
        .iter()
        .filter(|((ask, root), _)| of_ask[*ask] == 1 && of_root[*root] == 1)
        .filter_map(|(&(ask, root), fit)| {
            let why = exact_reasons(&asks[ask], roots[root], fit, &carriers, around)?;
            Some(((ask, root), why))
        })
        .collect();
    for ((ask, root), why) in exact {
        if let Some(fit) = pairs.remove(&(ask, root)) {
            groups.push(Group { asks: vec![ask], roots: vec![root], bond: Bond::Exact { fit, why } });
        }
    }
    let bound: (BTreeSet<usize>, BTreeSet<usize>) = groups.iter().map(|group| (group.asks[0], group.roots[0])).unzip();

    for (group_asks, group_roots) in connected(asks.len(), roots.len(), &pairs) {
        match (group_asks.as_slice(), group_roots.as_slice()) {
            ([ask], []) if bound.0.contains(ask) => continue,
            ([], [root]) if bound.1.contains(root) => continue,
            ([_], []) | ([], [_]) => {
                groups.push(Group { asks: group_asks, roots: group_roots, bond: Bond::Alone });
                continue;
            }
            _ => {}
        }
        let of = |ask: &usize| pairs.range((*ask, 0)..=(*ask, usize::MAX)).map(|(pair, _)| *pair);
        let here: Vec<(usize, usize)> = group_asks.iter().flat_map(of).collect();
        let bond = match here.as_slice() {
            [pair] => match pairs.get(pair).cloned() {
                Some(fit) => only_pair(*pair, fit, asks, roots, around),
                None => continue,
            },
            _ => Bond::Ambiguous { why: vec![many(group_asks.len(), group_roots.len())], pairs: here },
        };
        groups.push(Group { asks: group_asks, roots: group_roots, bond });
    }
    groups
}

/// One request fits one root and nothing else: unique, unless something could hide another candidate.
fn only_pair(pair: (usize, usize), fit: Fit, asks: &[Ask<'_>], roots: &[&Root], around: Around<'_>) -> Bond {
    let (ask, root) = (&asks[pair.0], roots[pair.1]);
    let (from, until) = ask.window(around.config);
    let mut doubts: Vec<String> = around
        .losses
        .touching(Some(&root.key.node), from, until.min(root.entered().saturating_add(around.config.skew_ns)))
        .filter(|loss| loss.hides_others())
        .map(|loss| {
            format!(
                "records were lost in the request's window ({}, {}): another candidate could be missing",
                loss.note.stream, loss.note.source
            )
        })
        .collect();
    doubts.dedup();
    if let Some(nodes) = around.pods.contradicts(root) {
        doubts.push(format!("the API server's records say that the pod runs on {nodes}"));
    }
    if !fit.whole {
        doubts.push("the node carried only the beginning of argv".to_owned());
    }
    if around.pods.is_probe(root) {
        doubts
            .push("the command is also a probe or hook of this container, which the kubelet runs by itself".to_owned());
    }
    if root.entry.how == "unknown" {
        doubts.push("how the root entered the container was not seen".to_owned());
    }
    if !doubts.is_empty() {
        return Bond::Ambiguous { pairs: vec![pair], why: doubts };
    }
    let mut why =
        vec!["one request fits one root by container, time and argv, and nothing else fits either".to_owned()];
    if let ArgvFit::Unrecorded = fit.argv {
        why.push("SPO's rule explains argv, but the audit record names no identifier".to_owned());
    }
    if let ArgvFit::MadeContainer { .. } = fit.argv {
        why = vec!["the request made the container of which this is the main process".to_owned()];
    }
    if root.entry.lineage != "observed" {
        why.push(format!("the root's lineage is {}", root.entry.lineage));
    }
    Bond::Unique { fit, why }
}

/// Everything that `exact` asks for, in words; `None` where one thing is missing.
fn exact_reasons(
    ask: &Ask<'_>,
    root: &Root,
    fit: &Fit,
    carriers: &BTreeMap<&str, u32>,
    around: Around<'_>,
) -> Option<Vec<String>> {
    let uid = ask.lead().spo_uid()?;
    let once = around.uid_uses.get(uid) == Some(&1);
    if !once || root.entry.lineage != "observed" || !fit.whole || around.pods.contradicts(root).is_some() {
        return None;
    }
    let mut why = vec![format!("the API server recorded {SPO_UID}={uid} for this request and no other")];
    match &fit.argv {
        ArgvFit::Recorded { prefixed } => {
            let variable = format!("{SPO_UID}={uid}");
            if root.entry.how == "unknown" || carriers.get(variable.as_str()) != Some(&1) {
                return None;
            }
            let place = if *prefixed { "behind env" } else { "in place of an argument that named it" };
            why.push(format!("the argv of this root's first execve, and of no other root's, carries it {place}"));
            why.push("without it argv is what was requested; container and time agree".to_owned());
        }
        ArgvFit::MadeContainer { stored_uid } => {
            let (container, (_, first)) = (root.container()?, root.first_exec()?);
            if root.entry.how != "start" || ask.lead().access.pod_uid.as_ref() != Some(&container.pod_uid) {
                return None;
            }
            let variable = format!("{SPO_UID}={uid}");
            let place = if first.program.environment.contains(&variable) {
                "the environment of the container's main process has it"
            } else if first.program.environment_searched.is_empty() && stored_uid.as_deref() == Some(uid) {
                "the node did not search the environment, but the pod as the API server stored it has it in that of this \
                 container"
            } else {
                return None;
            };
            why.push(format!("{place}; pod uid and container name agree"));
        }
        _ => return None,
    }
    Some(why)
}

/// In how many roots' first argv each argument that is SPO's variable stands.
fn carriers<'a>(roots: &[&'a Root]) -> BTreeMap<&'a str, u32> {
    let mut carriers = BTreeMap::new();
    for (_, first) in roots.iter().filter_map(|root| root.first_exec()) {
        let marked: BTreeSet<&str> = first
            .program
            .argv
            .iter()
            .map(String::as_str)
            .filter(|argument| argument.strip_prefix(SPO_UID).is_some_and(|rest| rest.starts_with('=')))
            .collect();
        for argument in marked {
            *carriers.entry(argument).or_default() += 1;
        }
    }
    carriers
}

fn many(asks: usize, roots: usize) -> String {
    format!(
        "{asks} request{} and {roots} root{} fit each other by container, time and argv",
        if asks == 1 { "" } else { "s" },
        if roots == 1 { "" } else { "s" },
    )
}

/// Connected components of requests and roots, each sorted; in the order of their first request, then root.
fn connected(asks: usize, roots: usize, pairs: &BTreeMap<(usize, usize), Fit>) -> Vec<(Vec<usize>, Vec<usize>)> {
    let mut parent: Vec<usize> = (0..asks + roots).collect();
    for (ask, root) in pairs.keys() {
        let (a, b) = (find(&mut parent, *ask), find(&mut parent, asks + root));
        let (low, high) = (a.min(b), a.max(b));
        parent[high] = low;
    }
    let mut members: BTreeMap<usize, (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    for node in 0..asks + roots {
        let group = members.entry(find(&mut parent, node)).or_default();
        if node < asks { group.0.push(node) } else { group.1.push(node - asks) }
    }
    members.into_values().collect()
}

fn find(parent: &mut [usize], node: usize) -> usize {
    let mut at = node;
    while parent[at] != at {
        parent[at] = parent[parent[at]];
        at = parent[at];
    }
    at
}
