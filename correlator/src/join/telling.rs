//! A session's text: everything that is said of a request, a root, or both.

use super::ask::Ask;
use super::evaluate::Moment;
use super::fit::ArgvFit;
use super::knowledge::{Losses, Watermarks};
use super::leases::Leases;
use super::matching::{Around, Component};
use super::root::{Root, RootKey};
use super::scope::Held;
use super::session::{
    Candidate, Evidence, Kind, LossNote, Outcome, Place, Ran, RootProcess, Sees, Session, SessionCredential,
    SessionUser, State,
};
use crate::audit::{Identity, SPO_UID};
use crate::timestamp::Timestamp;
use std::collections::BTreeSet;

pub(super) struct Teller<'a> {
    pub(super) cluster: &'a str,
    pub(super) component: &'a Component<'a>,
    /// Main processes of the pod's containers, also those whose own story is over.
    pub(super) mains: Vec<&'a Root>,
    pub(super) knowledge_of_ask: &'a dyn Fn(&Identity) -> u64,
    pub(super) knowledge_of_root: &'a dyn Fn(&RootKey) -> u64,
    pub(super) moment: &'a Moment,
    pub(super) held: &'a Held,
    pub(super) watermarks: &'a Watermarks,
    pub(super) leases: &'a Leases,
    pub(super) now: u64,
    pub(super) hashes: &'a ahash::RandomState,
    pub(super) around: Around<'a>,
}

impl Teller<'_> {
    pub(super) fn asked(
        &self,
        ask: &Ask<'_>,
        root: Option<(&Root, &ArgvFit)>,
        evidence: Evidence,
        mut reasons: Vec<String>,
        candidates: Vec<Candidate>,
    ) -> Session {
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
                uid: user.uid.clone(),
                groups: user.groups.clone(),
                credential: SessionCredential::of(&user.credential),
                impersonated: user.impersonated.clone(),
                impersonated_groups: user.impersonated_groups.clone(),
                impersonated_credential: SessionCredential::of(&user.impersonated_credential),
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
            verdicts_without_detail: Vec::new(),
            sees: Sees::default(),
            candidates,
            losses: Vec::new(),
            coverage: Vec::new(),
            attesters: Vec::new(),
        };
        let (from, until) = ask.window(self.around.config, self.around.skews.widest());
        let mut last = until;
        if let Some((root, _)) = root {
            self.add_root(root, closed_at, &mut session);
            last = root.last_seen.max(closed_at.unwrap_or_default());
        }
        session.claims = claims(&session, root.map(|(root, _)| root), lead.spo_uid());
        let node = root.map(|(root, _)| &*root.key.node);
        session.losses = losses(self.around.losses, node, from, last);
        session.coverage = self.coverage(&session.place, root.map(|(root, _)| root), last);
        let routes: BTreeSet<String> = ask
            .tries
            .iter()
            .chain(&ask.attaches)
            .flat_map(|attempt| &attempt.routes)
            .map(|route| format!("audit/{route}"))
            .collect();
        if !is_live(ask) && ask.lead().completed().is_none() {
            session.reasons.push("its audit events came late: whether it went on is not known".to_owned());
        }
        session.attesters = routes.into_iter().chain(session.attesters).collect();
        session.sees = self.sees(session.kind, root.map(|(root, _)| root));
        self.add_findings(&mut session, Some(ask), root.map(|(root, _)| root), root.map(|(_, argv)| argv), None);
        session
    }

    fn coverage(&self, place: &Place, root: Option<&Root>, until: u64) -> Vec<String> {
        let mut notes = self.around.checks.notes(place.node.as_deref(), Some(&place.namespace), until);
        if let Some(facts) = root.and_then(Root::facts).filter(|facts| facts.logs_exec == "no") {
            let profile = match facts.seccomp_profile.as_str() {
                "Unconfined" => "no seccomp filter".to_owned(),
                "" => "a seccomp filter that does not log execve".to_owned(),
                name => format!("the seccomp profile {name:?}, which does not log execve"),
            };
            notes.push(format!("the container runs under {profile}: no verdicts come of its programs"));
        }
        notes
    }

    pub(super) fn of_root(&self, root: &Root, evidence: Evidence, reasons: Vec<String>) -> Session {
        let container = root.container().cloned().unwrap_or_default();
        let mut session = Session {
            id: root.id,
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
            verdicts_without_detail: Vec::new(),
            sees: Sees::default(),
            candidates: Vec::new(),
            losses: losses(self.around.losses, Some(&root.key.node), root.entered(), root.last_seen),
            coverage: Vec::new(),
            attesters: Vec::new(),
        };
        self.add_root(root, None, &mut session);
        session.claims = claims(&session, Some(root), None);
        session.coverage = self.coverage(&session.place, Some(root), root.last_seen);
        session.sees = self.sees(session.kind, Some(root));
        session
    }

    fn add_root(&self, root: &Root, closed_at: Option<u64>, session: &mut Session) {
        session.root = Some(process(root));
        let deeds = root.deeds();
        session.ran = deeds
            .starts()
            .map(|(time, record, start)| Ran {
                time: Timestamp(time),
                pid: start.pid,
                argv: start.argv,
                filename: start.filename,
                interpreter: start.interpreter,
                comm: start.comm,
                uid: start.uid,
                argv_truncated_bytes: start.argv_truncated_bytes,
                after_close: closed_at.is_some_and(|closed| time > closed),
                record: record.to_owned(),
            })
            .collect();
        session.ran_not_listed = deeds.starts_not_kept;
        session.verdicts = deeds.verdict_counts();
        session.attesters = vec![format!("node/{}", root.key.node)];
        session.verdicts_without_detail = self.bulk_counts(root);
    }

    /// Attaching reaches the container's main process: it is named, and nothing that ran is claimed.
    pub(super) fn name_main_process(&self, ask: &Ask<'_>, session: &mut Session) {
        let containers = ask.containers();
        let mut mains = self.mains.iter().filter(|main| {
            let name = main.container().map(|container| container.name.as_str());
            main.exit.is_none_or(|(time, _)| time >= ask.first().identity.received)
                && (containers.is_empty() || name.is_some_and(|name| containers.contains(name)))
        });
        let (Some(main), None) = (mains.next(), mains.next()) else { return };
        session.root = Some(process(main));
        session.place.node = some(main.key.node.to_string());
        if let Some(container) = main.container() {
            session.place.container = some(container.name.clone());
            session.place.container_id = some(container.id.clone());
            session.place.pod_uid = some(container.pod_uid.clone());
        }
        session.attesters.push(format!("node/{}", main.key.node));
    }
}

/// A stream of it is open; or, where containers were made for it, their main process runs.
pub(super) fn is_open(ask: &Ask<'_>, root: Option<&Root>) -> bool {
    let lead = ask.lead();
    if !is_live(ask) {
        return false;
    }
    match lead.outcome() {
        Outcome::Pending => true,
        Outcome::Accepted if lead.is_debug() => {
            ask.attaches.iter().any(|attach| attach.completed().is_none()) || root.is_some_and(Root::is_running)
        }
        _ => lead.completed().is_none(),
    }
}

/// One of its events at least came in time to be told from a repetition of what was long ago.
fn is_live(ask: &Ask<'_>) -> bool {
    ask.tries.iter().chain(&ask.attaches).any(|attempt| attempt.live)
}

fn process(root: &Root) -> RootProcess {
    RootProcess {
        node: root.key.node.to_string(),
        boot_id: root.key.boot_id.to_string(),
        pid: root.key.pid,
        start_boottime_ns: root.key.start_boottime_ns,
        entry: root.entry.how.clone(),
        rule: root.entry.rule.clone(),
        lineage: root.entry.lineage.clone(),
        entered: root.first_exec().map(|(time, _)| Timestamp(time)),
        exited: root.exit.map(|(time, _)| Timestamp(time)),
        exit_code: root.exit.map(|(_, code)| code),
    }
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn losses(losses: &Losses, node: Option<&str>, from: u64, until: u64) -> Vec<LossNote> {
    losses.touching(node, from, until).map(|loss| loss.note.clone()).collect()
}

/// Values of SPO's variable that came from the request or a process rather than from the webhook.
pub(super) fn claims(session: &Session, root: Option<&Root>, recorded: Option<&str>) -> Vec<String> {
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
    let first = root.and_then(Root::first_exec);
    for variable in first.iter().flat_map(|(_, first)| &first.environment) {
        let Some((name, value)) = variable.split_once('=') else { continue };
        // What the container's own environment has, every exec inherits: nobody claims it.
        if Some(value) == recorded || said.len() >= 16 || root.is_some_and(|root| root.is_own_value(value)) {
            continue;
        }
        let shown: String = value.chars().take(64).collect();
        said.insert(format!("the environment of the root names {name}={shown:?}: it proves nothing"));
    }
    said.into_iter().collect()
}
