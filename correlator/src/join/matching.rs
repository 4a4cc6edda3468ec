//! Requests and roots that could belong to each other, all considered together: which pairs are exact, which are the only
//! possible ones, and which cannot be told apart.

use super::Config;
use super::ask::{Ask, Asked};
use super::askers::Askers;
use super::checks::Checks;
use super::fit::{ArgvFit, Fit};
use super::forced::{Forced, forced};
use super::identifiers::Identifiers;
use super::knowledge::{Losses, Pods};
use super::recurring::Recurring;
use super::root::{Root, RootKey};
use super::scope::Scope;
use super::skew::Skews;
use super::spo::SpoLines;
use crate::audit::SPO_UID;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

/// What matching needs to look at besides the two sides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) config: &'a Config,
    pub(super) pods: &'a Pods,
    pub(super) losses: &'a Losses,
    pub(super) checks: &'a Checks,
    pub(super) identifiers: &'a Identifiers,
    pub(super) skews: &'a Skews,
    pub(super) askers: &'a Askers,
    pub(super) spo: &'a SpoLines,
    pub(super) recurring: &'a Recurring,
    pub(super) scope: &'a Arc<Scope>,
}

/// Requests and roots that are connected by what fits; nothing in it fits anything outside of it, but for those that are
/// crowded.
#[derive(Debug, Default)]
pub(super) struct Component<'a> {
    pub(super) asks: Vec<Rc<Asked<'a>>>,
    pub(super) roots: Vec<&'a Root>,
    /// By index of request and root.
    pub(super) pairs: BTreeMap<(usize, usize), Fit>,
    /// Too large to be looked at as a whole: no pair is forced.
    pub(super) is_cut: bool,
    /// Requests and roots that fit more than [`Config::max_candidates`], and some of those, not all in here.
    pub(super) crowded_asks: BTreeMap<usize, Vec<&'a Root>>,
    pub(super) crowded_roots: BTreeMap<usize, Vec<Rc<Asked<'a>>>>,
}

/// One session's worth: a request, a root, or a pair, by index.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) ask: Option<usize>,
    pub(super) root: Option<usize>,
    pub(super) bond: Bond,
}

#[derive(Debug)]
pub(super) enum Bond {
    Exact {
        fit: Fit,
        why: Vec<String>,
    },
    Unique {
        fit: Fit,
        why: Vec<String>,
    },
    /// `others` are all of the other side that could be it; the texts say why none is asserted.
    Ambiguous {
        others: Vec<usize>,
        why: Vec<String>,
    },
    /// Too many could be it.
    Crowded,
    Alone,
}

impl Unit {
    pub(super) fn is_crowded(&self) -> bool {
        matches!(self.bond, Bond::Crowded)
    }
}

impl Around<'_> {
    /// The kubelet runs it by itself; or, where the pod's probes are not known, it repeats what was told before.
    pub(super) fn is_probe(&self, root: &Root) -> bool {
        self.pods.is_probe(root) || self.repeats(root).is_some()
    }

    pub(super) fn repeats(&self, root: &Root) -> Option<&Arc<RootKey>> {
        self.recurring.before(self.scope, root).filter(|_| !self.pods.knows_spec(root))
    }
}

pub(super) fn units(component: &Component<'_>, around: Around<'_>) -> Vec<Unit> {
    let Component { asks, roots, pairs, crowded_asks, crowded_roots, is_cut } = component;
    let (mut of_ask, mut of_root) = (vec![0_u32; asks.len()], vec![0_u32; roots.len()]);
    for (ask, root) in pairs.keys() {
        of_ask[*ask] += 1;
        of_root[*root] += 1;
    }
    let mut units = Vec::new();
    let (mut asks_done, mut roots_done) = (vec![false; asks.len()], vec![false; roots.len()]);
    let mut open: Vec<Vec<usize>> = vec![Vec::new(); roots.len()];
    for (&(ask, root), fit) in pairs {
        let lone = of_ask[ask] == 1 && of_root[root] == 1;
        let crowded = crowded_asks.contains_key(&ask) || crowded_roots.contains_key(&root);
        let exact = if lone && !crowded { exact_reasons(&asks[ask], roots[root], fit, around) } else { None };
        if let Some(why) = exact {
            let bond = Bond::Exact { fit: fit.clone(), why };
            units.push(Unit { ask: Some(ask), root: Some(root), bond });
            (asks_done[ask], roots_done[root]) = (true, true);
        } else {
            open[root].push(ask);
        }
    }

    let doubts: Vec<Vec<String>> = roots.iter().map(|root| doubts_about(root, around)).collect();
    let mut free: Vec<bool> = doubts.iter().map(|doubts| *is_cut || !doubts.is_empty()).collect();
    let mut fits: Vec<Vec<usize>> = Vec::new();
    for (root, open) in open.iter().enumerate() {
        let crowded = |ask: &usize| crowded_asks.contains_key(ask);
        free[root] |= open.is_empty() || crowded_roots.contains_key(&root) || open.iter().any(crowded);
        fits.push(open.iter().copied().filter(|ask| !crowded(ask)).collect());
    }
    let forced = forced(asks.len(), &fits, &free);
    let missing = forced.is_none();
    let Forced { request, possible } =
        forced.unwrap_or_else(|| Forced { request: vec![None; roots.len()], possible: open.clone() });
    for (root, request) in request.iter().enumerate() {
        let Some(ask) = *request else { continue };
        let Some(fit) = pairs.get(&(ask, root)) else { continue };
        let eliminated = of_ask[ask] + of_root[root] > 2;
        let pair = Unit { ask: Some(ask), root: Some(root), bond: Bond::Alone };
        units.extend(only_pair(pair, fit, eliminated, asks, roots, around));
        (asks_done[ask], roots_done[root]) = (true, true);
    }

    let mut of_asks: Vec<Vec<usize>> = vec![Vec::new(); asks.len()];
    for (root, possible) in possible.iter().enumerate().filter(|(root, _)| !roots_done[*root]) {
        let crowded = open[root].iter().copied().filter(|ask| crowded_asks.contains_key(ask));
        let others: BTreeSet<usize> = possible.iter().copied().chain(crowded).filter(|ask| !asks_done[*ask]).collect();
        others.iter().for_each(|ask| of_asks[*ask].push(root));
        let bond = if crowded_roots.contains_key(&root) {
            Bond::Crowded
        } else if others.is_empty() {
            Bond::Alone
        } else {
            let lone = others.iter().all(|ask| of_root[root] == 1 && of_ask[*ask] == 1);
            let why = why("root", "request", others.len(), lone, missing, &doubts[root]);
            // By time: numbers depend on where the search began, and another order would look like news.
            let mut others: Vec<usize> = others.into_iter().collect();
            others.sort_by_key(|ask| &asks[*ask].first().identity);
            Bond::Ambiguous { why, others }
        };
        units.push(Unit { ask: None, root: Some(root), bond });
    }
    for (ask, others) in of_asks.into_iter().enumerate().filter(|(ask, _)| !asks_done[*ask]) {
        let bond = if crowded_asks.contains_key(&ask) {
            Bond::Crowded
        } else if others.is_empty() {
            Bond::Alone
        } else {
            let lone = others.iter().all(|root| of_ask[ask] == 1 && of_root[*root] == 1);
            let doubts: BTreeSet<String> = others.iter().flat_map(|root| doubts[*root].iter().cloned()).collect();
            let doubts: Vec<String> = doubts.into_iter().collect();
            let mut others = others;
            others.sort_by_key(|root| (roots[*root].entered(), &roots[*root].key));
            Bond::Ambiguous { why: why("request", "root", others.len(), lone, missing, &doubts), others }
        };
        units.push(Unit { ask: Some(ask), root: None, bond });
    }
    units
}

/// Why it need not have come of any request that is held: then nothing follows from its having one.
fn doubts_about(root: &Root, around: Around<'_>) -> Vec<String> {
    let entered = root.entered();
    let Config { start_within_ns, debug_start_within_ns, skew_ns, .. } = *around.config;
    let longest = if root.entry.how == "start" { debug_start_within_ns } else { start_within_ns };
    let skew = skew_ns.saturating_add(around.skews.of(&root.key.node));
    let from = entered.saturating_sub(longest).saturating_sub(skew);
    let mut doubts = Vec::new();
    if let Some(nodes) = around.pods.contradicts(root) {
        doubts.push(format!("the API server's records say that the pod runs on {nodes}"));
    }
    if root.first_exec().is_some_and(|(_, first)| first.argv_truncated_bytes > 0) {
        doubts.push("the node carried only the beginning of argv".to_owned());
    }
    if around.pods.is_probe(root) {
        doubts
            .push("the command is also a probe or hook of this container, which the kubelet runs by itself".to_owned());
    }
    if !around.pods.knows_spec(root) && around.recurring.recurs(around.scope, root) {
        doubts.push("the command recurs in this container, as the kubelet's probes do".to_owned());
    }
    if root.entry.how == "unknown" {
        doubts.push("how the root entered the container was not seen".to_owned());
    }
    if root.lost_candidates {
        doubts.push("a request that fits the root was let go".to_owned());
    }
    if around.losses.audit_touching(from, entered.saturating_add(skew)) {
        doubts.push("audit events were lost from which the root could have come".to_owned());
    }
    doubts
}

/// Request and root can only belong to each other: unique, unless something could hide another candidate. `eliminated`:
/// others fit them, and belong elsewhere. (Of a root that is in doubt by itself nothing is forced.)
fn only_pair(
    pair: Unit,
    fit: &Fit,
    eliminated: bool,
    asks: &[Rc<Asked<'_>>],
    roots: &[&Root],
    around: Around<'_>,
) -> Vec<Unit> {
    let (Some(ask_at), Some(root_at)) = (pair.ask, pair.root) else { return Vec::new() };
    let (ask, root) = (&asks[ask_at], roots[root_at]);
    let (from, until) = ask.window(around.config, around.skews.of(&root.key.node));
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
    if !doubts.is_empty() {
        let bond = |other| Bond::Ambiguous { others: vec![other], why: doubts.clone() };
        return vec![
            Unit { ask: Some(ask_at), root: None, bond: bond(root_at) },
            Unit { ask: None, root: Some(root_at), bond: bond(ask_at) },
        ];
    }
    let mut why = vec![if eliminated {
        "they fit by container, time and argv, and the others that fit belong to each other".to_owned()
    } else {
        "one request fits one root by container, time and argv, and nothing else fits either".to_owned()
    }];
    if let ArgvFit::Unrecorded = fit.argv {
        why.push("SPO's rule explains argv, but the audit record names no identifier".to_owned());
    }
    if let ArgvFit::MadeContainer { .. } = fit.argv {
        why = vec!["the request made the container of which this is the main process".to_owned()];
    }
    if root.entry.lineage != "observed" {
        why.push(format!("the root's lineage is {}", root.entry.lineage));
    }
    vec![Unit { bond: Bond::Unique { fit: fit.clone(), why }, ..pair }]
}

/// Everything that `exact` asks for, in words; `None` where one thing is missing.
fn exact_reasons(ask: &Ask<'_>, root: &Root, fit: &Fit, around: Around<'_>) -> Option<Vec<String>> {
    let uid = ask.lead().spo_uid()?;
    let once = around.identifiers.requests(uid) == 1;
    if !once
        || root.lost_candidates
        || root.entry.lineage != "observed"
        || !fit.whole
        || around.pods.contradicts(root).is_some()
    {
        return None;
    }
    let mut why = vec![format!("the API server recorded {SPO_UID}={uid} for this request and no other")];
    match &fit.argv {
        ArgvFit::Recorded { prefixed } => {
            if root.entry.how == "unknown" || around.identifiers.carriers(uid) != 1 || root.is_own_value(uid) {
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
            let place = if first.environment.contains(&variable) {
                "the environment of the container's main process has it"
            } else if root.facts().is_some_and(|facts| facts.own_environment.contains(&variable)) {
                "the environment that the runtime started the container with has it"
            } else if first.environment_searched.is_empty() && stored_uid.as_deref() == Some(uid) {
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

/// Why nothing is asserted of `this`. `lone`: the only one that fits fits nothing else.
fn why(this: &str, other: &str, count: usize, lone: bool, missing: bool, doubts: &[String]) -> Vec<String> {
    let mut why = Vec::new();
    if !lone {
        why.push(if count == 1 {
            format!("the {other} that fits this {this} by container, time and argv fits others as well")
        } else {
            format!("{count} {other}s fit this {this} by container, time and argv")
        });
    }
    if missing {
        why.push("more roots than requests fit each other here: one request is not known".to_owned());
    }
    why.extend(doubts.iter().cloned());
    why
}
