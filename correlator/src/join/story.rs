//! Sessions from units: what is said of each, and when it may be said.

use super::Join;
use super::ask::Ask;
use super::attempt::RequestKey;
use super::attic;
use super::knowledge::AuditState;
use super::matching::{Bond, Unit};
use super::root::{Root, RootKey};
use super::session::{Candidate, Evidence, Kind, Outcome, Session, Side};
use super::telling::{Teller, is_open};
use crate::audit::AccessKind;
use crate::timestamp::Timestamp;
use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _};
use std::sync::Arc;
use uuid::Uuid;

/// When a first revision may be written: at `at`, or as soon as the watermark of a side is past a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) at: Option<u64>,
    pub(super) nodes_past: Option<u64>,
    pub(super) audit_past: Option<u64>,
}

/// Whether a session is to be told now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tell {
    Now,
    /// It was told from the same facts.
    Unchanged,
    /// It was told a short while ago: not before this time.
    NotBefore(u64),
    /// For the first time, when one of these allows it.
    First(Ready),
}

/// What is to be written.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) session: Session,
    /// Of everything that it was told from.
    pub(super) signature: u64,
    /// Of all of that but the programs of its root.
    pub(super) frame: u64,
}

/// Sessions that are named as possible origins of one entry.
const MOST_POSSIBLE: usize = 4;

/// What one unit comes to.
#[derive(Debug)]
pub(super) struct Story {
    pub(super) ask: Option<RequestKey>,
    pub(super) root: Option<Arc<RootKey>>,
    /// The session that tells of it; `None` where none does.
    pub(super) session: Option<Uuid>,
    /// Ids that are no session of their own (any more).
    pub(super) absorbed: Vec<Uuid>,
    pub(super) draft: Option<Draft>,
    pub(super) tell: Tell,
    /// Since when nothing of it moves; `None` while something is open or running.
    pub(super) idle_since: Option<u64>,
    /// Something is asserted of it, or it stands alone: letting it go takes no candidate from others.
    pub(super) decided: bool,
    pub(super) probe: bool,
    /// A container's main process and the like, of which no session tells.
    pub(super) workload: bool,
    pub(super) look_again: Option<u64>,
    /// It was told before everything was in that may explain it: to be told again when the audit stream is past this.
    pub(super) until_audit_is_past: Option<u64>,
}

impl Teller<'_> {
    pub(super) fn story(&self, unit: &Unit, join: &Join) -> Story {
        let ask = unit.ask.map(|at| &**self.component.asks[at]);
        let root = unit.root.map(|at| self.component.roots[at]);
        let probe =
            ask.is_none() && matches!(unit.bond, Bond::Alone) && root.is_some_and(|root| self.around.is_probe(root));
        let workload = ask.is_none() && matches!(unit.bond, Bond::Alone) && !probe && root.is_some_and(is_workload);
        let attempts = || ask.into_iter().flat_map(|ask| ask.tries.iter().chain(&ask.attaches));
        let session = ask.map(|ask| ask.id).or_else(|| root.map(|root| root.id)).filter(|_| !workload);
        let absorbed = attempts().map(|attempt| attempt.id).chain(root.map(|root| root.id));
        let absorbed = absorbed.filter(|id| Some(*id) != session).collect();
        let (tell, draft) = self.telling(unit, ask, root, session, probe, join);
        let now = matches!(tell, Tell::Now | Tell::Unchanged);
        Story {
            ask: ask.map(|ask| Arc::clone(&ask.first().identity)),
            root: root.map(|root| Arc::clone(&root.key)),
            session,
            absorbed,
            draft,
            tell,
            idle_since: if now { self.idle_since(ask, root) } else { None },
            decided: matches!(unit.bond, Bond::Exact { .. } | Bond::Unique { .. }),
            probe,
            workload,
            look_again: if now { self.look_again(ask, root) } else { None },
            until_audit_is_past: root
                .filter(|root| now && session.is_some() && !probe && self.audit_note(unit, root).is_some())
                .map(|root| self.explained_by(root)),
        }
    }

    fn telling(
        &self,
        unit: &Unit,
        ask: Option<&Ask<'_>>,
        root: Option<&Root>,
        session: Option<Uuid>,
        probe: bool,
        join: &Join,
    ) -> (Tell, Option<Draft>) {
        let Some(id) = session else { return (Tell::Unchanged, None) };
        let frame = self.frame(unit, ask, root);
        if let Some(tell) = join.frame_tells(id, frame, self.moment) {
            return (tell, None);
        }
        let signature = self.signature(frame, unit, ask, root);
        let tell = join.tells(id, signature, self.moment, probe, &|| self.ready(unit, ask, root));
        if let Some(root) = root.filter(|_| tell == Tell::Now) {
            attic::fetch(root, join.attic.as_deref());
        }
        let draft = (tell == Tell::Now).then(|| self.draft(unit, ask, root, probe)).flatten();
        let draft = draft.map(|mut session| {
            if let (None, Some(root)) = (ask, root) {
                let unsettled = self.audit_note(unit, root);
                self.add_findings(&mut session, None, Some(root), None, unsettled.as_deref());
                session.coverage.extend(unsettled);
            }
            Draft { session, signature, frame }
        });
        (tell, draft)
    }

    fn draft(&self, unit: &Unit, ask: Option<&Ask<'_>>, root: Option<&Root>, probe: bool) -> Option<Session> {
        match (&unit.bond, ask, root) {
            (Bond::Exact { fit, why }, Some(ask), Some(root)) => {
                Some(self.asked(ask, Some((root, &fit.argv)), Evidence::Exact, why.clone(), Vec::new()))
            }
            (Bond::Unique { fit, why }, Some(ask), Some(root)) => {
                Some(self.asked(ask, Some((root, &fit.argv)), Evidence::Unique, why.clone(), Vec::new()))
            }
            (Bond::Ambiguous { others, why }, Some(ask), _) => {
                let roots = others.iter().map(|at| self.component.roots[*at]);
                let candidates = roots.map(|root| self.root_candidate(root)).collect();
                Some(self.asked(ask, None, Evidence::Ambiguous, why.clone(), candidates))
            }
            (Bond::Ambiguous { others, why }, None, Some(root)) => {
                let asks: Vec<&Ask<'_>> = others.iter().map(|at| &**self.component.asks[*at]).collect();
                Some(self.ambiguous_root(root, &asks, why.clone()))
            }
            (Bond::Crowded, Some(ask), _) => {
                let roots = self.component.crowded_asks.get(&unit.ask?)?;
                let candidates = roots.iter().map(|root| self.root_candidate(root)).collect();
                Some(self.asked(ask, None, Evidence::Ambiguous, vec![self.too_many("roots", "request")], candidates))
            }
            (Bond::Crowded, None, Some(root)) => {
                let asks: Vec<&Ask<'_>> =
                    self.component.crowded_roots.get(&unit.root?)?.iter().map(|ask| &***ask).collect();
                Some(self.ambiguous_root(root, &asks, vec![self.too_many("requests", "root")]))
            }
            (_, Some(ask), _) => Some(match self.spo_says(ask) {
                Some(said) => self.by_spo(ask, &said),
                None => self.unanswered(ask),
            }),
            (_, None, Some(root)) => self.unrequested(root, probe),
            (_, None, None) => None,
        }
    }

    fn too_many(&self, others: &str, this: &str) -> String {
        let most = self.around.config.max_candidates;
        format!("more than {most} {others} fit this {this} by container, time and argv; {most} of them are named")
    }

    fn ambiguous_root(&self, root: &Root, asks: &[&Ask<'_>], why: Vec<String>) -> Session {
        let mut session = self.of_root(root, Evidence::Ambiguous, why);
        let kinds: BTreeSet<Kind> = asks.iter().map(|ask| ask.kind()).collect();
        // What it is for sure; of several kinds none.
        if let [kind] = kinds.iter().collect::<Vec<_>>().as_slice() {
            session.kind = **kind;
        }
        session.candidates = asks
            .iter()
            .map(|ask| Candidate {
                session: ask.id,
                side: Side::Request,
                time: Timestamp(ask.first().identity.received),
                who: who(ask),
            })
            .collect();
        session
    }

    fn ready(&self, unit: &Unit, ask: Option<&Ask<'_>>, root: Option<&Root>) -> Ready {
        let config = self.around.config;
        let attempts = ask.into_iter().flat_map(|ask| ask.tries.iter().chain(&ask.attaches));
        let arrived = attempts.map(|attempt| attempt.arrived).chain(root.map(Root::first_arrival)).max();
        let soon = Ready { at: Some(arrived.unwrap_or_default().saturating_add(config.settle_ns)), ..Ready::default() };
        match (&unit.bond, ask, root) {
            (Bond::Alone, Some(ask), _) if self.moment.no_nodes && self.spo_says(ask).is_some() => soon,
            (Bond::Alone, Some(ask), _) if ask.lead().expects_root() && ask.lead().could_have_run() => {
                let (_, until) = ask.window(config, self.around.skews.widest());
                // Old requests may come with a file while the agents are still to connect.
                let at = until.max(ask.lead().arrived).saturating_add(config.node_patience_ns);
                Ready { at: self.moment.no_nodes.then_some(at), nodes_past: Some(until), audit_past: None }
            }
            (Bond::Alone, None, Some(root)) => {
                let patience = match self.moment.audit {
                    AuditState::OnTime | AuditState::Silent { .. } => config.audit_lateness_ns,
                    AuditState::Late => config.audit_lateness_ns.max(config.audit_retries_ns),
                };
                Ready {
                    at: Some(root.entered().max(root.first_arrival()).saturating_add(patience)),
                    nodes_past: None,
                    audit_past: Some(self.explained_by(root)),
                }
            }
            _ => soon,
        }
    }

    /// When the audit stream is past this, no request that fits the root is still to come. One that fits it arrives before
    /// it, but for the skew of the clocks.
    fn explained_by(&self, root: &Root) -> u64 {
        let skew = self.around.config.skew_ns.saturating_add(self.around.skews.of(&root.key.node));
        root.entered().saturating_add(skew)
    }

    /// Why a request may still come for a root that none is known of. Nothing in it changes from one moment to the next.
    pub(super) fn audit_note(&self, unit: &Unit, root: &Root) -> Option<String> {
        let open = matches!(unit.bond, Bond::Alone) && unit.ask.is_none() && !is_workload(root);
        if !open || self.moment.all || self.explained_by(root) <= self.moment.audit_is_past {
            return None;
        }
        Some(match &self.moment.audit {
            AuditState::OnTime => {
                "audit not complete: the audit stream is not known to be complete up to this time, and an \
                 event that is delivered late may still explain it"
                    .to_owned()
            }
            AuditState::Late => {
                "audit late: audit events are delayed, and one that explains it may still come".to_owned()
            }
            AuditState::Silent { since, routes } => {
                let routes: Vec<&str> = routes.iter().map(|route| route.as_str()).collect();
                let by = if routes.is_empty() { String::new() } else { format!(" by {}", routes.join(", ")) };
                format!(
                    "audit route silent: no audit record of any kind came{by} since {}; one that explains it may still come",
                    Timestamp(*since)
                )
            }
        })
    }

    /// Of everything.
    fn signature(&self, frame: u64, unit: &Unit, ask: Option<&Ask<'_>>, root: Option<&Root>) -> u64 {
        let audit = root.and_then(|root| self.audit_note(unit, root));
        self.hashes.hash_one((frame, root.map(|root| root.version), self.around_signature(ask, root), audit))
    }

    /// Of everything but what the root's programs do while they run.
    fn frame(&self, unit: &Unit, ask: Option<&Ask<'_>>, root: Option<&Root>) -> u64 {
        let mut hasher = self.hashes.build_hasher();
        if let Some(ask) = ask {
            for attempt in ask.tries.iter().chain(&ask.attaches) {
                (attempt.id, attempt.version).hash(&mut hasher);
            }
            (self.knowledge_of_ask)(&ask.first().identity).hash(&mut hasher);
            if !ask.lead().expects_root() {
                // An attach names one of them, and it may exit.
                for main in &self.mains {
                    (main.id, main.exit, main.container().map(|container| &container.name)).hash(&mut hasher);
                }
            }
        }
        if let Some(root) = root {
            let ends = (root.exit, root.is_running());
            (root.id, root.face, ends, (self.knowledge_of_root)(&root.key)).hash(&mut hasher);
        }
        match &unit.bond {
            Bond::Exact { why, .. } => (0, why).hash(&mut hasher),
            Bond::Unique { why, .. } => (1, why).hash(&mut hasher),
            Bond::Ambiguous { others, why } => {
                (2, why).hash(&mut hasher);
                for other in others {
                    match ask {
                        Some(_) => {
                            let root = self.component.roots[*other];
                            (root.id, root.entered()).hash(&mut hasher);
                        }
                        None => self.component.asks[*other].id.hash(&mut hasher),
                    }
                }
            }
            Bond::Crowded => 3.hash(&mut hasher),
            Bond::Alone => 4.hash(&mut hasher),
        }
        hasher.finish()
    }

    fn idle_since(&self, ask: Option<&Ask<'_>>, root: Option<&Root>) -> Option<u64> {
        let asked = ask.map(|ask| {
            let (_, until) = ask.window(self.around.config, 0);
            let arrived = ask.tries.iter().chain(&ask.attaches).map(|attempt| attempt.arrived).max();
            let idle = until.max(ask.closed_at().unwrap_or(0)).max(arrived.unwrap_or_default());
            (!is_open(ask, None)).then_some(idle)
        });
        // Counted from its arrival where that was later: what comes from a buffer or a file is old already.
        let ran = root.map(|root| (!root.is_running()).then_some(root.last_seen.max(root.arrived)));
        match (asked, ran) {
            (Some(asked), Some(ran)) => Some(asked?.max(ran?)),
            (one, other) => one.or(other).flatten(),
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
    fn unanswered(&self, ask: &Ask<'_>) -> Session {
        let lead = ask.lead();
        let (from, until) = ask.window(self.around.config, self.around.skews.widest());
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
        if expects && !self.moment.no_nodes {
            let nodes = self.around.pods.nodes_of(&lead.access.namespace, &lead.access.pod);
            let unseen = nodes.filter(|node| !self.watermarks.knows(node) && self.lives(node)).take(MOST_POSSIBLE);
            why.extend(unseen.map(|node| format!("no agent speaks for node {node}, which lives and runs the pod")));
        }
        if expects && let Some(silent) = &self.moment.silent_nodes {
            why.push(format!("nothing is heard of {silent}: it may have run there"));
        }
        let mut session = self.asked(ask, None, Evidence::AuditOnly, why, Vec::new());
        if matches!(lead.access.kind, AccessKind::Attach | AccessKind::ProxyAttach) && lead.could_have_run() {
            self.name_main_process(ask, &mut session);
        }
        session
    }

    fn lives(&self, node: &str) -> bool {
        self.leases.lives(node, self.now, self.around.config) == Some(true)
    }

    /// A root that no request explains; `None` where that is as it should be.
    fn unrequested(&self, root: &Root, probe: bool) -> Option<Session> {
        if probe {
            let why = vec![match self.around.repeats(root) {
                Some(first) => {
                    let first = super::ids::of_root(self.cluster, first);
                    format!(
                        "taken for the kubelet's own: it repeats session {first}, and no record showed the pod's probes"
                    )
                }
                None => "the kubelet's own: the command is a probe or hook of this container".to_owned(),
            }];
            let mut session = self.of_root(root, Evidence::NodeOnly, why);
            session.kind = Kind::Probe;
            return Some(session);
        }
        let how = match root.entry.how.as_str() {
            "exec" => "it entered by the runtime's exec",
            "exec_sync" if !self.around.pods.knows_spec(root) => {
                "it entered by the runtime's synchronous exec, as probes and hooks do; no audit record showed the pod's spec, \
                 so it is not known whether it is one"
            }
            "exec_sync" => "it entered by the runtime's synchronous exec, and its command is no known probe or hook",
            "namespace_entry" => "a process of the host entered the container's namespaces without being in its cgroup",
            "other" => "it entered in no way that is known",
            _ => return None,
        };
        let mut why = vec![how.to_owned(), "no audit record asks for it".to_owned()];
        if root.first_exec().is_none() {
            why.push("its first exec was not seen".to_owned());
        }
        if root.container().is_none_or(|container| container.pod.is_empty()) {
            why.push("the names of its pod and container are not known, so no request could be compared".to_owned());
        }
        if root.entry.how != "namespace_entry" {
            let asked = self.around.askers.before(&root.key.node, root.entered()).filter(|(_, id, _)| *id != root.id);
            why.extend(asked.take(MOST_POSSIBLE).map(|(time, id, program)| {
                let program = format!("the session of root {id} ran {program} at {} on this node", Timestamp(*time));
                format!("possible, not proven: {program}, which asks a daemon to run things")
            }));
        }
        if root.lost_candidates {
            why.push("requests that fitted it, and others, were let go".to_owned());
        }
        Some(self.of_root(root, Evidence::NodeOnly, why))
    }
}

/// Main processes, and what was running before the agent came.
fn is_workload(root: &Root) -> bool {
    !matches!(root.entry.how.as_str(), "exec" | "exec_sync" | "namespace_entry" | "other")
}

fn who(ask: &Ask<'_>) -> String {
    let user = &ask.lead().user;
    match &user.impersonated {
        Some(impersonated) => format!("{} as {impersonated}", user.username),
        None => user.username.clone(),
    }
}
