//! What SPO's JSON enricher tells, where no agent's record does: processes that carry the identifier which the API server
//! recorded for a request.
//!
//! What holds:
//! - Nothing is ever `exact` by these lines: the identifier is what a process's environment or command line said, and no
//!   lineage, pod uid or order of arguments stands behind it.
//! - `unique` needs all of: one request has the identifier; every line that has it is of that request's pod and container and
//!   of one node, which runs the pod as far as is known; none is from before the request; one of them is the command that was
//!   asked for; nothing was declared lost in the window. Otherwise the lines are candidates.
//! - Without an identifier in the audit record lines are candidates at most.
//! - Where an agent's record fits a request, these lines are not asked.

use super::Join;
use super::ask::Ask;
use super::config::Config;
use super::finding::{Code, FindingNote};
use super::fit::rewritten;
use super::machine::Element;
use super::scope::Scope;
use super::session::{Candidate, Evidence, Ran, Session, Side, VerdictCount};
use super::telling::{Teller, claims};
use crate::spo::SpoLine;
use crate::timestamp::Timestamp;
use seclog_masking::Rules;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use uuid::Uuid;

/// Times in lines are cut to whole seconds.
const SECOND_NS: u64 = 1_000_000_000;
/// Identifiers remembered, and processes without one.
const MOST_GROUPS: usize = 50_000;
const MOST_UNMARKED: usize = 50_000;
/// Lines without identifier that are kept of one pod.
const UNMARKED_OF_A_POD: usize = 256;
/// Other places that are named.
const NAMED: usize = 4;

const NO_COUNT: &str = "SPO's enricher numbers and counts nothing: what it missed is not known";
const ONE_COMMAND: &str = "SPO tells one command line a process and interval: what replaced another in the same process, and \
                           what had ended before SPO looked, is in no line";

/// Lines that are held.
#[derive(Debug, Default)]
pub(super) struct SpoLines {
    groups: HashMap<String, Group>,
    /// First processes of the runtime that carry no identifier, by namespace and pod.
    unmarked: BTreeMap<(String, String), BTreeSet<SpoLine>>,
    unmarked_held: usize,
    /// Identifiers that no request had when they came, by when that is to be told.
    unjudged: BTreeSet<(u64, String)>,
    pub(super) not_kept: u64,
}

/// Lines with one identifier.
#[derive(Debug, Default)]
pub(super) struct Group {
    lines: BTreeSet<SpoLine>,
    not_kept: u64,
    /// The join's `now` when the last came.
    arrived: u64,
    /// A request that was held had it.
    known: bool,
}

/// What lines say of a request.
#[derive(Debug)]
pub(super) struct Said<'a> {
    /// Of its pod and container.
    lines: Vec<&'a SpoLine>,
    not_kept: u64,
    /// Why nothing is asserted; empty: it is.
    doubts: Vec<String>,
}

impl SpoLines {
    /// Whom to look at anew.
    fn add(&mut self, line: SpoLine, now: u64, config: &Config) -> bool {
        let Some(uid) = line.request_uid.clone() else {
            return self.add_unmarked(line);
        };
        if self.groups.len() >= MOST_GROUPS && !self.groups.contains_key(&uid) {
            self.not_kept += 1;
            return false;
        }
        let group = self.groups.entry(uid.clone()).or_default();
        if group.lines.is_empty() {
            self.unjudged.insert((now.saturating_add(config.audit_lateness_ns), uid));
        }
        group.arrived = group.arrived.max(now);
        if group.lines.len() >= config.starts_per_root && !group.lines.contains(&line) {
            group.not_kept += 1;
            return true;
        }
        group.lines.insert(line)
    }

    fn add_unmarked(&mut self, line: SpoLine) -> bool {
        // Only what the runtime started could be what somebody asked for.
        if !line.is_of_runtime() || line.pod.is_empty() {
            return false;
        }
        if self.unmarked_held >= MOST_UNMARKED {
            self.not_kept += 1;
            return false;
        }
        let lines = self.unmarked.entry(line.pod_key()).or_default();
        let news = lines.insert(line);
        self.unmarked_held += usize::from(news);
        if lines.len() > UNMARKED_OF_A_POD {
            lines.pop_first();
            self.unmarked_held -= 1;
        }
        news
    }

    pub(super) fn of(&self, uid: &str) -> Option<&Group> {
        self.groups.get(uid)
    }

    /// A request has this identifier.
    pub(super) fn recorded(&mut self, uid: &str) {
        if let Some(group) = self.groups.get_mut(uid) {
            group.known = true;
        }
    }

    pub(super) fn forget_before(&mut self, arrived: u64, time: u64) {
        self.groups.retain(|_, group| group.arrived >= arrived);
        for lines in self.unmarked.values_mut() {
            lines.retain(|line| line.time >= time);
        }
        self.unmarked.retain(|_, lines| !lines.is_empty());
        self.unmarked_held = self.unmarked.values().map(BTreeSet::len).sum();
    }
}

impl Join {
    pub(super) fn spo_line(&mut self, line: SpoLine) {
        self.counters.spo_lines += 1;
        let mut line = line;
        if let Some(rules) = &self.config.masking {
            line.command_line = masked(rules, &line.command_line);
        }
        let (uid, time, scope) = (
            line.request_uid.clone(),
            line.time,
            Scope::Pod { namespace: line.namespace.clone(), pod: line.pod.clone() },
        );
        if !self.spo.add(line, self.now, &self.config) {
            return;
        }
        if let Some(uid) = uid {
            if self.identifiers.requests(&uid) > 0 {
                self.spo.recorded(&uid);
            }
            self.mark_holders(&uid);
            return;
        }
        let Some((scope, held)) = self.scopes.get_key_value(&scope) else { return };
        let near = held.asks.iter().filter(|(_, ask)| {
            !ask.place.buckets.is_empty()
                && (ask.place.from.saturating_sub(SECOND_NS)..=ask.place.until).contains(&time)
        });
        let near: Vec<Element> = near.map(|(key, _)| Element::Ask(Arc::clone(scope), Arc::clone(key))).collect();
        for element in near {
            self.mark(&element);
        }
    }

    /// Identifiers that processes carry and no audit record names. `all`: nothing more comes.
    pub(super) fn find_unknown_identifiers(&mut self, all: bool) {
        let until = if all { u64::MAX } else { self.now };
        while self.spo.unjudged.first().is_some_and(|(at, _)| *at <= until) {
            let Some((_, uid)) = self.spo.unjudged.pop_first() else { return };
            let Some(group) = self.spo.groups.get(&uid) else { continue };
            let Some(first) = group.lines.first().filter(|_| !group.known) else { continue };
            let shown: String = uid.chars().take(64).collect();
            let text = format!(
                "SPO reports {} processes with the identifier {shown:?}, the first of them pid {} of pod {}/{} on node {}; no \
                 audit record that is held names it",
                group.lines.len() as u64 + group.not_kept,
                first.pid,
                first.namespace,
                first.pod,
                first.node
            );
            let time = Timestamp(first.time);
            let records = group.lines.iter().map(record_id).collect();
            let note =
                FindingNote::new(Code::IdentifierForged, &self.config.cluster, &format!("spo {uid}"), text, records);
            self.found(note.line(&self.config.cluster, time, None));
        }
    }
}

impl Teller<'_> {
    /// `None`: no line says anything of it.
    pub(super) fn spo_says(&self, ask: &Ask<'_>) -> Option<Said<'_>> {
        let lead = ask.lead();
        if !lead.expects_root() || !lead.could_have_run() {
            return None;
        }
        let (from, until) = ask.window(self.around.config, self.around.skews.widest());
        let from = from.saturating_sub(SECOND_NS);
        let Some(uid) = lead.spo_uid() else {
            let key = (lead.access.namespace.clone(), lead.access.pod.clone());
            let near = self.around.spo.unmarked.get(&key)?.iter();
            let lines: Vec<&SpoLine> = near
                .filter(|line| (from..=until).contains(&line.time))
                .filter(|line| self.is_in_place(ask, line) && self.is_command(&lead.access.argv, line))
                .take(self.around.config.max_candidates)
                .collect();
            let doubts = vec![
                "SPO reports this command line in this container at this time, and no identifier ties it to the request"
                    .to_owned(),
            ];
            return (!lines.is_empty()).then_some(Said { lines, not_kept: 0, doubts });
        };
        let group = self.around.spo.of(uid)?;
        let lines: Vec<&SpoLine> =
            group.lines.iter().filter(|line| line.time >= from && self.is_in_place(ask, line)).collect();
        let first = lines.first()?;
        let mut doubts = Vec::new();
        if self.around.identifiers.requests(uid) != 1 {
            doubts.push("the identifier stands in several requests".to_owned());
        }
        let elsewhere = self.spo_elsewhere(ask, uid);
        if !elsewhere.is_empty() {
            doubts.push(format!("SPO reports the identifier in other places as well: {}", elsewhere.join(", ")));
        }
        if lines.iter().any(|line| line.node != first.node) {
            doubts.push("SPO reports it on several nodes".to_owned());
        }
        if let Some(nodes) = self.around.pods.runs_elsewhere(&lead.access.namespace, &lead.access.pod, &first.node) {
            doubts.push(format!("the API server's records say that the pod runs on {nodes}"));
        }
        if ask.containers().is_empty() {
            doubts.push("the audit record does not say which container was meant".to_owned());
        }
        if !self.has_command(ask, uid, &lines) {
            doubts.push("none of SPO's lines is the command that was asked for".to_owned());
        }
        if self.around.losses.touching(Some(&first.node), from, until).any(|loss| loss.hides_others()) {
            doubts.push("records were lost in the request's window".to_owned());
        }
        Some(Said { lines, not_kept: group.not_kept, doubts })
    }

    /// Where else processes carry the request's identifier, or when: no webhook put it there.
    pub(super) fn spo_elsewhere(&self, ask: &Ask<'_>, uid: &str) -> Vec<String> {
        let Some(group) = self.around.spo.of(uid) else { return Vec::new() };
        let (from, _) = ask.window(self.around.config, self.around.skews.widest());
        let from = from.saturating_sub(SECOND_NS);
        // Where the container is not known nothing follows: SPO came too late to look.
        let placed = group.lines.iter().filter(|line| !line.pod.is_empty());
        let other = placed.filter(|line| line.time < from || !self.is_in_place(ask, line));
        let places: BTreeSet<String> = other
            .map(|line| format!("{}/{} ({}) on {}", line.namespace, line.pod, line.container, line.node))
            .collect();
        places.into_iter().take(NAMED).collect()
    }

    fn is_in_place(&self, ask: &Ask<'_>, line: &SpoLine) -> bool {
        let access = &ask.lead().access;
        let containers = ask.containers();
        line.namespace == access.namespace
            && line.pod == access.pod
            && (containers.is_empty() || containers.contains(line.container.as_str()))
            && access.node.as_ref().is_none_or(|node| *node == line.node)
    }

    /// What was asked for is among the lines, as it was asked or as SPO's rule makes it.
    fn has_command(&self, ask: &Ask<'_>, uid: &str, lines: &[&SpoLine]) -> bool {
        let lead = ask.lead();
        if lead.is_debug() {
            // The command of a container is its own business where the request does not say it.
            let made = lead.access.new_containers.iter();
            let mut asked = made.map(|made| &made.argv).filter(|argv| !argv.is_empty()).peekable();
            return asked.peek().is_none() || asked.any(|argv| lines.iter().any(|line| self.is_command(argv, line)));
        }
        let (rewritten, prefixed) = rewritten(&lead.access.argv, uid);
        // `env` is replaced by what it starts before SPO looks, mostly.
        let plain = prefixed.then_some(&lead.access.argv);
        let forms = plain.into_iter().chain([&rewritten]);
        forms.into_iter().any(|argv| lines.iter().any(|line| self.is_command(argv, line)))
    }

    fn is_command(&self, argv: &[String], line: &SpoLine) -> bool {
        let asked = argv.join(" ");
        let asked = match &self.around.config.masking {
            Some(rules) => masked(rules, &asked),
            None => asked,
        };
        asked.trim_end() == line.command_line
    }

    /// The session that the lines tell of.
    pub(super) fn by_spo(&self, ask: &Ask<'_>, said: &Said<'_>) -> Session {
        let candidate = |line: &&SpoLine| Candidate {
            session: Uuid::new_v5(&Uuid::NAMESPACE_OID, record_id(line).as_bytes()),
            side: Side::Root,
            time: Timestamp(line.time),
            who: format!("{} pid {} (SPO)", line.node, line.pid),
        };
        let mut nodes: Vec<String> = said.lines.iter().map(|line| format!("spo/{}", line.node)).collect();
        nodes.sort();
        nodes.dedup();
        if !said.doubts.is_empty() {
            let most = self.around.config.max_candidates;
            let candidates = said.lines.iter().take(most).map(candidate).collect();
            let mut session = self.asked(ask, None, Evidence::Ambiguous, said.doubts.clone(), candidates);
            session.attesters.extend(nodes);
            session.coverage.push(NO_COUNT.to_owned());
            return session;
        }
        let why = vec![
            "the API server recorded an identifier for this request and no other, and SPO reports it of processes of this \
             container and no other"
                .to_owned(),
            "it is what their environment or command line said, which a process of the container can set: so not exact"
                .to_owned(),
            "the command that was asked for is among them".to_owned(),
        ];
        let mut session = self.asked(ask, None, Evidence::Unique, why, Vec::new());
        let Some(first) = said.lines.first() else { return session };
        session.place.node = Some(first.node.clone());
        session.place.container = Some(first.container.clone());
        session.attesters.extend(nodes);
        let closed_at = ask.closed_at();
        let mut seen = BTreeSet::new();
        let mut verdicts: BTreeMap<&str, u64> = BTreeMap::new();
        for line in &said.lines {
            line.syscalls.iter().for_each(|syscall| *verdicts.entry(syscall).or_default() += 1);
            // A process that goes on is in a line of every interval.
            if seen.insert((line.pid, &line.command_line)) {
                session.ran.push(ran(line, closed_at));
            }
        }
        session.ran_not_listed = said.not_kept;
        let count =
            |(syscall, count): (&str, u64)| VerdictCount { syscall: syscall.into(), outcome: String::new(), count };
        session.verdicts = verdicts.into_iter().map(count).collect();
        session.coverage.push(NO_COUNT.to_owned());
        session.sees.verdicts = !session.verdicts.is_empty();
        session.sees.never.push(ONE_COMMAND.to_owned());
        session.claims = claims(&session, None, ask.lead().spo_uid());
        self.claims_found(&mut session, ask.id);
        session
    }
}

fn ran(line: &SpoLine, closed_at: Option<u64>) -> Ran {
    let argv = Some(line.command_line.clone()).filter(|command| !command.is_empty());
    Ran {
        time: Timestamp(line.time),
        pid: line.pid,
        argv: argv.into_iter().collect(),
        filename: String::new(),
        interpreter: String::new(),
        comm: String::new(),
        uid: line.uid,
        argv_truncated_bytes: 0,
        after_close: closed_at.is_some_and(|closed| line.time > closed),
        record: record_id(line),
    }
}

fn record_id(line: &SpoLine) -> String {
    format!("spo:{}", line.id)
}

/// Where an argument ends is not known: every space may be that.
fn masked(rules: &Rules, command: &str) -> String {
    let mut words: Vec<String> = command.split(' ').map(str::to_owned).collect();
    rules.mask(&mut words);
    words.join(" ")
}
