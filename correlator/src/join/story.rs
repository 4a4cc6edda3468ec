//! Sessions from groups: what is said of each, and when it may be said.

use super::ask::Ask;
use super::matching::{Around, Bond, Group, groups};
use super::root::{Root, RootKey};
use super::session::{Candidate, Evidence, Kind, Outcome, Session, Side};
use super::telling::{Teller, is_open};
use crate::audit::{AccessKind, Identity};
use crate::timestamp::Timestamp;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use uuid::Uuid;

/// A session as it stands, and when it may be written.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) session: Session,
    pub(super) ready: Ready,
    /// Only as a correction of what was already written.
    pub(super) silent: bool,
    /// Of everything that it was told from: equal ones tell the same.
    pub(super) signature: u64,
}

/// When a first revision may be written: at `at`, or as soon as the watermark of a side is past a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ready {
    pub(super) at: u64,
    pub(super) nodes_past: Option<u64>,
    pub(super) audit_past: Option<u64>,
}

/// What can be let go together: nothing outside of it depends on it.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) requests: Vec<Identity>,
    pub(super) roots: Vec<RootKey>,
    pub(super) sessions: Vec<Uuid>,
    /// Since when nothing of it moves; `None` while something is open or running.
    pub(super) idle_since: Option<u64>,
    /// Container main processes and the like, of which no session tells.
    pub(super) workload: bool,
    /// A probe's root.
    pub(super) probe: bool,
}

#[derive(Debug, Default)]
pub(super) struct Stories {
    pub(super) drafts: Vec<Draft>,
    /// Written sessions of which nothing has changed since.
    pub(super) unchanged: Vec<Uuid>,
    /// Ids that are no session of their own (any more), and the session that tells their story.
    pub(super) absorbed: Vec<(Uuid, Uuid)>,
    pub(super) parts: Vec<Part>,
    pub(super) probes: u64,
}

/// `mains`: main processes of the pod's containers, for the sessions that attach to them. `written`: the signature with
/// which a session was last written; what would be told with the same one again is left out.
pub(super) fn stories(
    cluster: &str,
    asks: &[Ask<'_>],
    roots: &[&Root],
    mains: &[&Root],
    around: Around<'_>,
    written: &dyn Fn(&Uuid) -> Option<u64>,
) -> Stories {
    let mut stories = Stories::default();
    for ask in asks {
        let others = ask.tries.iter().skip(1).chain(&ask.attaches);
        stories.absorbed.extend(others.map(|attempt| (attempt.id, ask.id)));
    }
    let teller = Teller { cluster, asks, roots, mains, around };
    for group in groups(asks, roots, around) {
        let before = stories.drafts.len();
        let (mut workload, mut probe) = (false, false);
        let signature = teller.signature(&group);
        let ids = teller.ids(&group);
        if ids.iter().all(|id| written(id) == Some(signature)) {
            if let (Bond::Exact { .. } | Bond::Unique { .. }, [ask], [root]) =
                (&group.bond, group.asks.as_slice(), group.roots.as_slice())
            {
                stories.absorbed.push((roots[*root].id, asks[*ask].id));
            }
            if let (Bond::Alone, [root]) = (&group.bond, group.roots.as_slice()) {
                probe = around.pods.is_probe(roots[*root]);
                stories.probes += u64::from(probe);
            }
            stories.unchanged.extend(&ids);
            stories.parts.push(Part { sessions: ids, workload, probe, ..teller.part(&group) });
            continue;
        }
        if let (Bond::Alone, [root]) = (&group.bond, group.roots.as_slice())
            && around.pods.is_probe(roots[*root])
            && written(&ids[0]).is_none()
        {
            // Nothing is ever written of most probes.
            stories.probes += 1;
            stories.parts.push(Part { probe: true, ..teller.part(&group) });
            continue;
        }
        match &group.bond {
            Bond::Exact { fit, why } | Bond::Unique { fit, why } => {
                let evidence =
                    if matches!(group.bond, Bond::Exact { .. }) { Evidence::Exact } else { Evidence::Unique };
                let (ask, root) = (&asks[group.asks[0]], roots[group.roots[0]]);
                let told = teller.asked(ask, Some((root, &fit.argv)), evidence, why.clone(), Vec::new());
                stories.absorbed.push((root.id, ask.id));
                stories.drafts.push(told);
            }
            Bond::Ambiguous { pairs, why } => teller.ambiguous(&group, pairs, why, &mut stories.drafts),
            Bond::Alone => match (group.asks.first(), group.roots.first()) {
                (Some(ask), _) => stories.drafts.push(teller.unanswered(&asks[*ask])),
                (None, Some(root)) => {
                    let told = teller.unrequested(roots[*root]);
                    workload = told.is_none();
                    probe = told.as_ref().is_some_and(|draft| draft.session.kind == Kind::Probe);
                    stories.probes += u64::from(probe);
                    stories.drafts.extend(told);
                }
                (None, None) => {}
            },
        }
        let sessions = stories.drafts[before..].iter().map(|draft| draft.session.id).collect();
        for draft in &mut stories.drafts[before..] {
            draft.signature = signature;
        }
        let part = Part { sessions, workload, probe, ..teller.part(&group) };
        stories.parts.push(part);
    }
    stories
}

impl Teller<'_> {
    fn ambiguous(&self, group: &Group, pairs: &[(usize, usize)], why: &[String], drafts: &mut Vec<Draft>) {
        let kinds: BTreeSet<Kind> = group.asks.iter().map(|ask| self.asks[*ask].kind()).collect();
        for &at in &group.asks {
            let candidates: Vec<Candidate> =
                pairs.iter().filter(|pair| pair.0 == at).map(|pair| self.root_candidate(self.roots[pair.1])).collect();
            drafts.push(self.asked(&self.asks[at], None, Evidence::Ambiguous, why.to_vec(), candidates));
        }
        for &at in &group.roots {
            let root = self.roots[at];
            let mut draft = self.of_root(root, Evidence::Ambiguous, why.to_vec());
            // What it is for sure; of several kinds none.
            if let [kind] = kinds.iter().collect::<Vec<_>>().as_slice() {
                draft.session.kind = **kind;
            }
            draft.session.candidates = pairs
                .iter()
                .filter(|pair| pair.1 == at)
                .map(|pair| {
                    let ask = &self.asks[pair.0];
                    Candidate {
                        session: ask.id,
                        side: Side::Request,
                        time: Timestamp(ask.first().identity.received),
                        who: who(ask),
                    }
                })
                .collect();
            draft.ready = self.soon(root.arrived);
            drafts.push(draft);
        }
    }

    fn root_candidate(&self, root: &Root) -> Candidate {
        Candidate {
            session: root.id,
            side: Side::Root,
            time: Timestamp(root.entered()),
            who: format!("{} pid {}", root.key.node, root.key.pid),
        }
    }

    /// A request without any root that fits.
    fn unanswered(&self, ask: &Ask<'_>) -> Draft {
        let lead = ask.lead();
        let (from, until) = ask.window(self.around.config);
        let why = match (lead.outcome(), lead.access.kind) {
            (Outcome::Denied | Outcome::Failed, _) if !lead.could_have_run() => {
                format!("the API server answered {}: nothing was started", lead.code().unwrap_or_default())
            }
            (_, AccessKind::Attach | AccessKind::ProxyAttach) => {
                "attaching starts no process: what was typed ran below the container's main process".to_owned()
            }
            (_, AccessKind::PortForward | AccessKind::ProxyPortForward) => {
                "forwarding a port starts no process".to_owned()
            }
            (Outcome::Failed, _) => "the API server answered with an error, and no node saw anything start".to_owned(),
            _ => "no node saw a root that fits: accepted, but nothing is known to have been executed".to_owned(),
        };
        let mut why = vec![why];
        let expects = lead.expects_root() && lead.could_have_run();
        if expects && self.around.losses.touching(None, from, until).any(|loss| loss.hides_others()) {
            why.push("records were lost in the request's window: it may have run all the same".to_owned());
        }
        let mut draft = self.asked(ask, None, Evidence::AuditOnly, why, Vec::new());
        if matches!(lead.access.kind, AccessKind::Attach | AccessKind::ProxyAttach) && lead.could_have_run() {
            self.name_main_process(ask, &mut draft.session);
        }
        if expects {
            // Old requests may come with a file while the agents are still to connect.
            let from = until.max(lead.arrived);
            let at = from.saturating_add(self.around.config.node_patience_ns);
            draft.ready = Ready { at, nodes_past: Some(until), audit_past: None };
        }
        draft
    }

    /// A root that no request explains; `None` where that is as it should be.
    fn unrequested(&self, root: &Root) -> Option<Draft> {
        let entry = root.entry.how.as_str();
        if self.around.pods.is_probe(root) {
            let why = vec!["the kubelet's own: the command is a probe or hook of this container".to_owned()];
            let mut draft = self.of_root(root, Evidence::NodeOnly, why);
            draft.session.kind = Kind::Probe;
            draft.silent = true;
            return Some(draft);
        }
        let how = match entry {
            "exec" => "it entered by the runtime's exec",
            "exec_sync" => "it entered by the runtime's synchronous exec, and its command is no known probe or hook",
            "namespace_entry" => "a process of the host entered the container's namespaces without being in its cgroup",
            "other" => "it entered in no way that is known",
            // Main processes, and what was running before the agent came.
            _ => return None,
        };
        let mut why = vec![how.to_owned(), "no audit record asks for it".to_owned()];
        if root.first_exec().is_none() {
            why.push("its first exec was not seen".to_owned());
        }
        if root.container().is_none_or(|container| container.pod.is_empty()) {
            why.push("the names of its pod and container are not known, so no request could be compared".to_owned());
        }
        let mut draft = self.of_root(root, Evidence::NodeOnly, why);
        let entered = root.entered();
        let patience = self.around.config.audit_lateness_ns;
        draft.ready = Ready {
            at: entered.max(root.first_arrival()).saturating_add(patience),
            nodes_past: None,
            // A request that fits it arrives before it, but for the skew of the clocks.
            audit_past: Some(entered.saturating_add(self.around.config.skew_ns)),
        };
        Some(draft)
    }

    /// The sessions that tell of a group.
    fn ids(&self, group: &Group) -> Vec<Uuid> {
        let of_roots: &[usize] = match group.bond {
            Bond::Exact { .. } | Bond::Unique { .. } => &[],
            Bond::Ambiguous { .. } | Bond::Alone => &group.roots,
        };
        let asks = group.asks.iter().map(|at| self.asks[*at].id);
        asks.chain(of_roots.iter().map(|at| self.roots[*at].id)).collect()
    }

    fn signature(&self, group: &Group) -> u64 {
        let mut hasher = DefaultHasher::new();
        for ask in group.asks.iter().map(|at| &self.asks[*at]) {
            for attempt in ask.tries.iter().chain(&ask.attaches) {
                (&attempt.identity, attempt.version).hash(&mut hasher);
            }
            if !ask.lead().expects_root() {
                // An attach names one of them, and it may exit.
                for main in self.mains {
                    (&main.key, main.exit, main.container().map(|container| &container.name)).hash(&mut hasher);
                }
            }
        }
        for root in group.roots.iter().map(|at| self.roots[*at]) {
            (&root.key, root.version).hash(&mut hasher);
        }
        let bond = match group.bond {
            Bond::Exact { .. } => 0,
            Bond::Unique { .. } => 1,
            Bond::Ambiguous { .. } => 2,
            Bond::Alone => 3,
        };
        (bond, self.around.knowledge).hash(&mut hasher);
        hasher.finish()
    }

    fn part(&self, group: &Group) -> Part {
        let asks = || group.asks.iter().map(|at| &self.asks[*at]);
        let roots = || group.roots.iter().map(|at| self.roots[*at]);
        let attempts = || asks().flat_map(|ask| ask.tries.iter().chain(&ask.attaches));
        let asks_idle = asks().map(|ask| {
            let (_, until) = ask.window(self.around.config);
            (!is_open(ask, None)).then(|| until.max(ask.closed_at().unwrap_or(0)))
        });
        let roots_idle = roots().map(|root| (!root.is_running()).then_some(root.last_seen));
        // Counted from its arrival where that was later: what comes from a buffer or a file is old already.
        let arrived = attempts().map(|attempt| attempt.arrived).chain(roots().map(|root| root.arrived)).map(Some);
        let idle: Option<Vec<u64>> = asks_idle.chain(roots_idle).chain(arrived).collect();
        Part {
            requests: attempts().map(|attempt| attempt.identity.clone()).collect(),
            roots: roots().map(|root| root.key.clone()).collect(),
            sessions: Vec::new(),
            idle_since: idle.and_then(|times| times.into_iter().max()),
            workload: false,
            probe: false,
        }
    }
}

fn who(ask: &Ask<'_>) -> String {
    let user = &ask.lead().user;
    match &user.impersonated {
        Some(impersonated) => format!("{} as {impersonated}", user.username),
        None => user.username.clone(),
    }
}
