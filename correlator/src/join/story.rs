//! Sessions from groups: what is said of each, and when it may be said.

use super::ask::Ask;
use super::fit::ArgvFit;
use super::ids;
use super::knowledge::Losses;
use super::matching::{Around, Bond, Group, groups};
use super::root::{Root, RootKey};
use super::session::{
    Candidate, Evidence, Kind, LossNote, Outcome, Place, Ran, RootProcess, Session, SessionUser, Side, State,
};
use crate::audit::{AccessKind, Identity, SPO_UID};
use crate::timestamp::Timestamp;
use std::collections::BTreeSet;
use uuid::Uuid;

/// A session as it stands, and when it may be written.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) session: Session,
    pub(super) ready: Ready,
    /// Only as a correction of what was already written.
    pub(super) silent: bool,
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
}

#[derive(Debug, Default)]
pub(super) struct Stories {
    pub(super) drafts: Vec<Draft>,
    /// Ids that are no session of their own (any more), and the session that tells their story.
    pub(super) absorbed: Vec<(Uuid, Uuid)>,
    pub(super) parts: Vec<Part>,
    pub(super) probes: u64,
}

pub(super) fn stories(cluster: &str, asks: &[Ask<'_>], roots: &[&Root], around: Around<'_>) -> Stories {
    let mut stories = Stories::default();
    for ask in asks {
        let others = ask.tries.iter().skip(1).chain(&ask.attaches);
        stories.absorbed.extend(others.map(|attempt| (ids::of_request(cluster, &attempt.identity), ask.id)));
    }
    let teller = Teller { cluster, asks, roots, around };
    for group in groups(asks, roots, around) {
        let before = stories.drafts.len();
        let mut workload = false;
        match &group.bond {
            Bond::Exact { fit, why } | Bond::Unique { fit, why } => {
                let evidence =
                    if matches!(group.bond, Bond::Exact { .. }) { Evidence::Exact } else { Evidence::Unique };
                let (ask, root) = (&asks[group.asks[0]], roots[group.roots[0]]);
                let told = teller.asked(ask, Some((root, &fit.argv)), evidence, why.clone(), Vec::new());
                stories.absorbed.push((ids::of_root(cluster, &root.key), ask.id));
                stories.drafts.push(told);
            }
            Bond::Ambiguous { pairs, why } => teller.ambiguous(&group, pairs, why, &mut stories.drafts),
            Bond::Alone => match (group.asks.first(), group.roots.first()) {
                (Some(ask), _) => stories.drafts.push(teller.unanswered(&asks[*ask])),
                (None, Some(root)) => {
                    let told = teller.unrequested(roots[*root]);
                    workload = told.is_none();
                    stories.probes += u64::from(told.as_ref().is_some_and(|draft| draft.session.kind == Kind::Probe));
                    stories.drafts.extend(told);
                }
                (None, None) => {}
            },
        }
        let sessions = stories.drafts[before..].iter().map(|draft| draft.session.id).collect();
        stories.parts.push(teller.part(&group, sessions, workload));
    }
    stories
}

struct Teller<'a> {
    cluster: &'a str,
    asks: &'a [Ask<'a>],
    roots: &'a [&'a Root],
    around: Around<'a>,
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
            session: ids::of_root(self.cluster, &root.key),
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
        if expects {
            let patience = self.around.config.node_patience_ns;
            draft.ready = Ready { at: until.saturating_add(patience), nodes_past: Some(until), audit_past: None };
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
            at: entered.saturating_add(patience),
            nodes_past: None,
            // A request that fits it arrives before it, but for the skew of the clocks.
            audit_past: Some(entered.saturating_add(self.around.config.skew_ns)),
        };
        Some(draft)
    }

    fn asked(
        &self,
        ask: &Ask<'_>,
        root: Option<(&Root, &ArgvFit)>,
        evidence: Evidence,
        mut reasons: Vec<String>,
        candidates: Vec<Candidate>,
    ) -> Draft {
        let (lead, first) = (ask.lead(), ask.first());
        let closed_at = ask.closed_at();
        if ask.tries.len() > 1 {
            reasons.push("the client tried twice (WebSocket, then SPDY): one attempt".to_owned());
        }
        if !ask.attaches.is_empty() {
            reasons.push("the client attached to the container that it had made".to_owned());
        }
        let access = &lead.access;
        let container = root.and_then(|(root, _)| root.container());
        let named: Vec<&str> = ask.containers().into_iter().collect();
        let place = Place {
            cluster: self.cluster.to_owned(),
            node: root.and_then(|(root, _)| some(root.key.node.to_string())).or_else(|| access.node.clone()),
            namespace: access.namespace.clone(),
            pod: access.pod.clone(),
            pod_uid: container
                .map(|container| container.pod_uid.clone())
                .filter(|uid| !uid.is_empty())
                .or_else(|| access.pod_uid.clone()),
            container: container.map(|container| container.name.clone()).or_else(|| match named.as_slice() {
                [one] => Some((*one).to_owned()),
                _ => None,
            }),
            container_id: container.and_then(|container| some(container.id.clone())),
        };
        let user = &lead.user;
        let mut session = Session {
            id: ask.id,
            revision: 0,
            kind: ask.kind(),
            evidence,
            outcome: lead.outcome(),
            state: if is_open(ask, root.map(|(root, _)| root)) { State::Open } else { State::Closed },
            superseded_by: None,
            start: Timestamp(first.identity.received),
            reasons,
            findings: Vec::new(),
            claims: Vec::new(),
            user: Some(SessionUser {
                username: user.username.clone(),
                groups: user.groups.clone(),
                impersonated: user.impersonated.clone(),
                impersonated_groups: user.impersonated_groups.clone(),
            }),
            request: Some(lead.request()),
            other_requests: ask
                .tries
                .iter()
                .rev()
                .skip(1)
                .rev()
                .chain(&ask.attaches)
                .map(|attempt| attempt.request())
                .collect(),
            place,
            root: None,
            ran: Vec::new(),
            ran_not_listed: 0,
            verdicts: Vec::new(),
            candidates,
            losses: Vec::new(),
            attesters: Vec::new(),
        };
        self.findings_of_request(ask, &mut session);
        let (from, until) = ask.window(self.around.config);
        let mut last = until;
        if let Some((root, argv)) = root {
            self.add_root(root, closed_at, &mut session);
            if *argv == (ArgvFit::Recorded { prefixed: false }) {
                session.findings.push(format!(
                    "what ran is not what was asked: an argument that named {SPO_UID} was replaced by the webhook"
                ));
            }
            last = root.last_seen.max(closed_at.unwrap_or_default());
        }
        session.claims = claims(&session, lead.spo_uid());
        let node = root.map(|(root, _)| &*root.key.node);
        session.losses = losses(self.around.losses, node, from, last);
        let routes: BTreeSet<String> = ask
            .tries
            .iter()
            .chain(&ask.attaches)
            .flat_map(|attempt| &attempt.routes)
            .map(|route| format!("audit/{route}"))
            .collect();
        session.attesters = routes.into_iter().chain(session.attesters).collect();
        let arrived = ask.tries.iter().chain(&ask.attaches).map(|attempt| attempt.arrived).max().unwrap_or_default();
        let arrived = root.map_or(arrived, |(root, _)| root.first_arrival().max(arrived));
        Draft { session, ready: self.soon(arrived), silent: false }
    }

    fn findings_of_request(&self, ask: &Ask<'_>, session: &mut Session) {
        let attempts = || ask.tries.iter().chain(&ask.attaches);
        let webhooks: BTreeSet<&String> = attempts().flat_map(|attempt| &attempt.failed_open).collect();
        for webhook in webhooks {
            session.findings.push(format!(
                "the admission webhook {webhook} failed and was passed over: no identifier was injected"
            ));
        }
        if attempts().any(|attempt| attempt.disagreement) {
            session.findings.push("audit records of the same stage of this request differ".to_owned());
        }
    }

    fn of_root(&self, root: &Root, evidence: Evidence, reasons: Vec<String>) -> Draft {
        let container = root.container().cloned().unwrap_or_default();
        let mut session = Session {
            id: ids::of_root(self.cluster, &root.key),
            revision: 0,
            kind: Kind::NodeEntry,
            evidence,
            outcome: Outcome::Unrequested,
            state: if root.is_running() { State::Open } else { State::Closed },
            superseded_by: None,
            start: Timestamp(root.entered()),
            reasons,
            findings: Vec::new(),
            claims: Vec::new(),
            user: None,
            request: None,
            other_requests: Vec::new(),
            place: Place {
                cluster: self.cluster.to_owned(),
                node: some(root.key.node.to_string()),
                namespace: container.namespace,
                pod: container.pod,
                pod_uid: some(container.pod_uid),
                container: some(container.name),
                container_id: some(container.id),
            },
            root: None,
            ran: Vec::new(),
            ran_not_listed: 0,
            verdicts: Vec::new(),
            candidates: Vec::new(),
            losses: losses(self.around.losses, Some(&root.key.node), root.entered(), root.last_seen),
            attesters: Vec::new(),
        };
        self.add_root(root, None, &mut session);
        session.claims = claims(&session, None);
        Draft { session, ready: self.soon(root.arrived), silent: false }
    }

    fn add_root(&self, root: &Root, closed_at: Option<u64>, session: &mut Session) {
        session.root = Some(RootProcess {
            node: root.key.node.to_string(),
            boot_id: root.key.boot_id.clone(),
            pid: root.key.pid,
            start_boottime_ns: root.key.start_boottime_ns,
            entry: root.entry.how.clone(),
            rule: root.entry.rule.clone(),
            lineage: root.entry.lineage.clone(),
            entered: root.first_exec().map(|(time, _)| Timestamp(time)),
            exited: root.exit.map(|(time, _)| Timestamp(time)),
            exit_code: root.exit.map(|(_, code)| code),
        });
        session.ran = root
            .starts
            .iter()
            .map(|((time, record), start)| Ran {
                time: Timestamp(*time),
                pid: start.pid,
                argv: start.program.argv.clone(),
                filename: start.program.filename.clone(),
                interpreter: start.program.interpreter.clone(),
                comm: start.comm.clone(),
                uid: start.uid,
                argv_truncated_bytes: start.program.argv_truncated_bytes,
                after_close: closed_at.is_some_and(|closed| *time > closed),
                record: record.clone(),
            })
            .collect();
        session.ran_not_listed = root.starts_not_kept;
        session.verdicts = root.verdict_counts();
        session.attesters = vec![format!("node/{}", root.key.node)];
        for other in root.other_containers() {
            let name = if other.name.is_empty() { &other.id } else { &other.name };
            session.findings.push(format!("processes of it were also seen in container {name:?}"));
        }
        if let Some(nodes) = self.around.pods.contradicts(root) {
            session.findings.push(format!(
                "node {} reports this pod, but the API server's records say that it runs on {nodes}",
                root.key.node
            ));
        }
    }

    fn soon(&self, arrived: u64) -> Ready {
        Ready { at: arrived.saturating_add(self.around.config.settle_ns), nodes_past: None, audit_past: None }
    }

    fn part(&self, group: &Group, sessions: Vec<Uuid>, workload: bool) -> Part {
        let asks = || group.asks.iter().map(|at| &self.asks[*at]);
        let roots = || group.roots.iter().map(|at| self.roots[*at]);
        let attempts = || asks().flat_map(|ask| ask.tries.iter().chain(&ask.attaches));
        let asks_idle = asks().map(|ask| {
            let (_, until) = ask.window(self.around.config);
            (!is_open(ask, None)).then(|| until.max(ask.closed_at().unwrap_or(0)))
        });
        let roots_idle = roots().map(|root| (!root.is_running()).then_some(root.last_seen));
        let idle: Option<Vec<u64>> = asks_idle.chain(roots_idle).collect();
        Part {
            requests: attempts().map(|attempt| attempt.identity.clone()).collect(),
            roots: roots().map(|root| root.key.clone()).collect(),
            sessions,
            idle_since: idle.and_then(|times| times.into_iter().max()),
            workload,
        }
    }
}

/// A stream of it is open; or, where containers were made for it, their main process runs.
fn is_open(ask: &Ask<'_>, root: Option<&Root>) -> bool {
    let lead = ask.lead();
    match lead.outcome() {
        Outcome::Pending => true,
        Outcome::Accepted if lead.is_debug() => {
            ask.attaches.iter().any(|attach| attach.completed().is_none()) || root.is_some_and(Root::is_running)
        }
        _ => lead.completed().is_none(),
    }
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn who(ask: &Ask<'_>) -> String {
    let user = &ask.lead().user;
    match &user.impersonated {
        Some(impersonated) => format!("{} as {impersonated}", user.username),
        None => user.username.clone(),
    }
}

fn losses(losses: &Losses, node: Option<&str>, from: u64, until: u64) -> Vec<LossNote> {
    losses.touching(node, from, until).map(|loss| loss.note.clone()).collect()
}

/// Values of SPO's variable that came from the request or a process rather than from the webhook.
fn claims(session: &Session, recorded: Option<&str>) -> Vec<String> {
    let asked = session.request.iter().flat_map(|request| &request.argv).map(|argument| ("the request", argument));
    let ran = session.ran.iter().flat_map(|ran| &ran.argv).map(|argument| ("what ran", argument));
    let mut said = BTreeSet::new();
    for (source, argument) in asked.chain(ran) {
        for found in argument.split(SPO_UID).skip(1).filter_map(|rest| rest.strip_prefix('=')) {
            let value = found.split(|letter: char| letter.is_whitespace() || letter == ';').next().unwrap_or_default();
            if Some(value) != recorded && said.len() < 16 {
                let shown: String = value.chars().take(64).collect();
                said.insert(format!("{source} named {SPO_UID}={shown:?} itself: it proves nothing"));
            }
        }
    }
    said.into_iter().collect()
}
