//! Findings of a session, and what the records could show of it.

use super::Config;
use super::ask::Ask;
use super::askers;
use super::finding::{Code, FindingNote};
use super::fit::ArgvFit;
use super::root::Root;
use super::session::{BulkCount, Evidence, Kind, LossNote, Sees, Session};
use super::telling::Teller;
use crate::audit::{OWN_NAMESPACE, SPO_UID};
use std::collections::BTreeSet;
use uuid::Uuid;

/// How long a verdict may come after its program's start, nanoseconds.
const VERDICT_WITHIN_NS: u64 = 10_000_000_000;
const BUILTINS: &str = "shell builtins start no program and leave no record";
const TYPED: &str = "what is typed into a program that runs, and what it answers, is in no record";
const DETACHED: &str = "what was typed ran below the main process, and is not told apart from the workload";
const BYTES: &str = "what goes through a forwarded port is in no record";

impl Teller<'_> {
    /// `unsettled`: why a request may still come for a root that none is known of.
    pub(super) fn add_findings(
        &self,
        session: &mut Session,
        ask: Option<&Ask<'_>>,
        root: Option<&Root>,
        argv: Option<&ArgvFit>,
        unsettled: Option<&str>,
    ) {
        if let Some(ask) = ask {
            self.findings_of_request(ask, session);
        }
        if let Some(root) = root {
            if argv == Some(&(ArgvFit::Recorded { prefixed: false })) {
                let text = format!(
                    "what ran is not what was asked: an argument that named {SPO_UID} was replaced by the webhook"
                );
                self.find(session, Code::ArgvDiffers, &root.id.to_string(), text, first_record(root));
            }
            self.findings_of_root(root, unsettled, session);
        }
        let subject = ask.map(|ask| ask.id).or(root.map(|root| root.id)).unwrap_or_default();
        self.claims_found(session, subject);
        let losses = session.losses.clone();
        self.findings_of_losses(&losses, root.is_some(), session);
    }

    /// What a client or process claims is a finding.
    pub(super) fn claims_found(&self, session: &mut Session, subject: Uuid) {
        session.findings.retain(|finding| finding.code != Code::IdentifierForged);
        if !session.claims.is_empty() {
            let records = session.ran.iter().filter(|ran| ran.argv.iter().any(|argument| argument.contains(SPO_UID)));
            let mut records: Vec<String> = records.map(|ran| ran.record.clone()).collect();
            if records.is_empty() {
                // Only the request names it, or an environment, which has no record of its own.
                records.extend(session.request.iter().map(|request| request.audit_id.clone()));
                records.extend(session.ran.first().map(|ran| ran.record.clone()));
            }
            let text = session.claims.join("; ");
            self.find(session, Code::IdentifierForged, &subject.to_string(), text, records);
        }
    }

    fn find(&self, session: &mut Session, code: Code, subject: &str, text: String, records: Vec<String>) {
        session.findings.push(FindingNote::new(code, self.cluster, subject, text, records));
    }

    fn findings_of_request(&self, ask: &Ask<'_>, session: &mut Session) {
        let attempts = || ask.tries.iter().chain(&ask.attaches);
        let subject = ask.id.to_string();
        let audit_ids: Vec<String> = attempts().map(|attempt| attempt.identity.audit_id.clone()).collect();
        let webhooks: BTreeSet<&str> = attempts().flat_map(|attempt| attempt.failed_open()).collect();
        for webhook in webhooks {
            let text =
                format!("the admission webhook {webhook} failed and was passed over: no identifier was injected");
            self.find(session, Code::WebhookFailedOpen, &format!("{subject} {webhook}"), text, audit_ids.clone());
        }
        if attempts().any(|attempt| attempt.disagreement) {
            let text = "audit records of the same stage of this request differ".to_owned();
            self.find(session, Code::AuditDisagreement, &subject, text, audit_ids.clone());
        }
        if ask.kind() == Kind::NodeProxy {
            let text = "the access went to the kubelet through nodes/proxy".to_owned();
            self.find(session, Code::NodeProxy, &subject, text, audit_ids.clone());
        }
        if ask.lead().access.namespace == OWN_NAMESPACE {
            let text = format!("the access went to pod {} of seclog itself", ask.lead().access.pod);
            self.find(session, Code::AgentEntered, &subject, text, audit_ids.clone());
        }
        if let Some(missing) = self.missing_routes(ask) {
            let text = format!("no event of it came by {missing}, which brought events from before and after it");
            self.find(session, Code::OneRouteOnly, &subject, text, audit_ids.clone());
        }
        if let Some(uid) = ask.lead().spo_uid() {
            let (requests, carriers) = (self.around.identifiers.requests(uid), self.around.identifiers.carriers(uid));
            if requests > 1 || carriers > 1 {
                let text = format!("its identifier stands in {requests} requests and {carriers} roots");
                self.find(session, Code::IdentifierReused, &subject, text, audit_ids.clone());
            }
            let elsewhere = self.spo_elsewhere(ask, uid);
            if !elsewhere.is_empty() {
                let text = format!("SPO reports its identifier of processes elsewhere: {}", elsewhere.join(", "));
                self.find(session, Code::IdentifierReused, &format!("{subject} spo"), text, audit_ids);
            }
        }
    }

    fn missing_routes(&self, ask: &Ask<'_>) -> Option<String> {
        let lead = ask.lead();
        let until = lead.completed().or(lead.started()).unwrap_or(lead.identity.received);
        let around = self.watermarks.routes_around(lead.identity.received, until, self.around.config);
        let missing: Vec<String> =
            around.iter().filter(|route| !lead.routes.contains(route)).map(ToString::to_string).collect();
        (!missing.is_empty() && lead.routes.len() == 1).then(|| missing.join(", "))
    }

    fn findings_of_root(&self, root: &Root, unsettled: Option<&str>, session: &mut Session) {
        let subject = root.id.to_string();
        if session.kind == Kind::NodeEntry && session.evidence == Evidence::NodeOnly {
            let (code, text) = match root.entry.how.as_str() {
                "namespace_entry" => (Code::NamespaceEntry, "a process of the host entered the container's namespaces"),
                "exec_sync" if !self.around.pods.knows_spec(root) => (
                    Code::UnexplainedSyncExec,
                    "a command entered as the kubelet's probes do, and no record tells of any",
                ),
                _ => (Code::EntryWithoutAudit, "a process entered the container, and no audit record asks for it"),
            };
            let text = unsettled.map_or_else(|| text.to_owned(), |note| format!("{text} ({note})"));
            self.find(session, code, &subject, text, first_record(root));
            let pod = root.container().filter(|container| container.namespace == OWN_NAMESPACE);
            if let Some(container) = pod {
                let text = format!("a process entered pod {} of seclog itself", container.pod);
                self.find(session, Code::AgentEntered, &subject, text, first_record(root));
            }
        }
        for other in root.other_containers() {
            let name = if other.name.is_empty() { &other.id } else { &other.name };
            let text = format!("processes of it were also seen in container {name:?}");
            self.find(session, Code::OtherContainer, &format!("{subject} {}", other.id), text, first_record(root));
        }
        for (whose, (_, record)) in &root.deeds().entered_others {
            let place = if whose == "host" { "the host".to_owned() } else { format!("container {whose:?}") };
            let text = format!("a program of it ran in the mount namespace of {place}");
            self.find(session, Code::NamespaceEntered, &format!("{subject} {whose}"), text, vec![record.clone()]);
        }
        self.daemons_asked(root, session);
        for (record, moved) in &root.deeds().moves {
            let to = if moved.to_container.is_empty() {
                format!("out of every container (cgroup {:?})", moved.to_path)
            } else {
                format!("into the cgroup of container {}", moved.to_container)
            };
            let text = format!("process {} was moved {to} by process {}", moved.pid, moved.by);
            self.find(session, Code::CgroupMove, record, text, vec![record.clone()]);
        }
        if let Some(nodes) = self.around.pods.contradicts(root) {
            let text = format!(
                "node {} reports this pod, but the API server's records say that it runs on {nodes}",
                root.key.node
            );
            self.find(session, Code::ForeignPod, &subject, text, first_record(root));
        }
        let after: Vec<String> =
            session.ran.iter().filter(|ran| ran.after_close).map(|ran| ran.record.clone()).collect();
        if !after.is_empty() {
            let text = format!("{} programs started after the request had completed", after.len());
            self.find(session, Code::ActivityAfterClose, &subject, text, after);
        }
        self.suppressed(root, session);
    }

    /// Only where the container reaches the node: elsewhere a daemon is the container's own.
    fn daemons_asked(&self, root: &Root, session: &mut Session) {
        let privileged = root.facts().is_some_and(|facts| facts.privileged == "yes");
        let reaches_node =
            privileged || session.kind == Kind::DebugNode || root.deeds().entered_others.contains_key("host");
        if !reaches_node {
            return;
        }
        let started = root.deeds().starts();
        let asked: Vec<(&str, String)> = started
            .filter_map(|(_, record, start)| Some((askers::asks(&start.filename)?, record.to_owned())))
            .collect();
        if asked.is_empty() {
            return;
        }
        let programs: BTreeSet<&str> = asked.iter().map(|(program, _)| *program).collect();
        let programs = programs.into_iter().collect::<Vec<_>>().join(", ");
        let text = format!("it ran {programs}: what a daemon ran for it is not told as part of this session");
        let records = asked.into_iter().map(|(_, record)| record).collect();
        self.find(session, Code::DaemonAsked, &root.id.to_string(), text, records);
    }

    /// The container's profile logs execve, so each program that started has its verdict, unless something outranked it.
    fn suppressed(&self, root: &Root, session: &mut Session) {
        if !self.logs_exec(root) || !self.verdicts_are_in(root) {
            return;
        }
        // Lost or only counted verdicts are no suppressed ones.
        let counted = !session.verdicts_without_detail.is_empty();
        if counted || session.losses.iter().any(|loss| loss.stream != "audit") {
            return;
        }
        let without = root.deeds().starts_without_verdict(self.around.config);
        if without.is_empty() {
            return;
        }
        let records: Vec<String> = without.iter().map(|id| (*id).to_owned()).collect();
        let text = format!("{} of {} programs started without a verdict", without.len(), root.deeds().len());
        self.find(session, Code::VerdictSuppressed, &root.id.to_string(), text, records);
    }

    fn logs_exec(&self, root: &Root) -> bool {
        // A process of the host has the host's profile.
        root.entry.how != "namespace_entry"
            && root.container().is_some_and(|container| self.held.exec_verdicts_in.contains(&container.id))
    }

    fn verdicts_are_in(&self, root: &Root) -> bool {
        self.moment.all || root.arrived.saturating_add(VERDICT_WITHIN_NS) <= self.now
    }

    fn findings_of_losses(&self, losses: &[LossNote], ran: bool, session: &mut Session) {
        for loss in losses {
            let code = match (loss.stream.as_str(), loss.source.as_str()) {
                ("audit", _) => Code::AuditGap,
                (_, "audit_netlink" | "verdict_ring" | "hook") if ran => Code::CoverageLost,
                (_, "audit_netlink" | "verdict_ring" | "hook") => continue,
                _ => Code::NodeGap,
            };
            let count = loss.count.map_or_else(|| "an unknown number of".to_owned(), |count| count.to_string());
            let text = format!("{count} records of {} ({}) were lost: {}", loss.stream, loss.source, loss.reason);
            let subject = format!("{} {} {} {}", session.id, loss.stream, loss.source, loss.from);
            self.find(session, code, &subject, text, vec![loss.stream.clone()]);
        }
        let counts = session.verdicts_without_detail.clone();
        if !counts.is_empty() {
            let text = "verdicts of its container were only counted, for want of room".to_owned();
            let records = counts.into_iter().map(|count| count.record).collect();
            self.find(session, Code::CoverageLost, &format!("{} counts", session.id), text, records);
        }
    }

    /// Counts without detail of its containers in its time.
    pub(super) fn bulk_counts(&self, root: &Root) -> Vec<BulkCount> {
        let touches = |count: &&BulkCount| {
            root.has_container(&count.container_id)
                && count.first.0 <= root.last_seen
                && root.first_seen <= count.last.0
        };
        self.held.counts.values().filter(touches).cloned().collect()
    }

    pub(super) fn sees(&self, kind: Kind, root: Option<&Root>) -> Sees {
        let verdicts = root.is_some_and(|root| root.container_ids().any(|id| self.held.verdicts_in.contains(id)));
        let never: &[&str] = match kind {
            Kind::PortForward => &[BYTES],
            Kind::Attach => &[DETACHED, TYPED],
            _ => &[BUILTINS, TYPED],
        };
        Sees {
            process_starts: root.is_some_and(|root| !root.deeds().is_empty()),
            verdicts,
            never: never.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    /// When to look again although nothing new may come: what is missing then is a finding.
    pub(super) fn look_again(&self, ask: Option<&Ask<'_>>, root: Option<&Root>) -> Option<u64> {
        let Config { audit_lateness_ns, .. } = *self.around.config;
        let verdicts = root.filter(|root| self.logs_exec(root) && !self.verdicts_are_in(root));
        let verdicts = verdicts.map(|root| root.arrived.saturating_add(VERDICT_WITHIN_NS));
        let routes = ask
            .filter(|ask| ask.lead().routes.len() == 1 && self.watermarks.has_several_routes())
            .map(|ask| ask.lead().arrived.saturating_add(audit_lateness_ns.saturating_mul(2)));
        let routes = routes.filter(|at| *at > self.now);
        verdicts.into_iter().chain(routes).min()
    }

    /// What findings depend on besides the records of the session itself.
    pub(super) fn around_signature(&self, ask: Option<&Ask<'_>>, root: Option<&Root>) -> (bool, Option<String>, usize) {
        let settled = root.is_some_and(|root| self.logs_exec(root) && self.verdicts_are_in(root));
        let uid = ask.and_then(|ask| ask.lead().spo_uid());
        let shared = uid.map_or(0, |uid| self.around.identifiers.requests(uid) + self.around.identifiers.carriers(uid));
        (settled, ask.and_then(|ask| self.missing_routes(ask)), shared)
    }
}

fn first_record(root: &Root) -> Vec<String> {
    root.deeds().first_record().map(str::to_owned).into_iter().collect()
}
