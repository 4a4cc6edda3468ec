//! `show`: one session, whole.

use super::activity::{self, seconds};
use super::ask::StoreArgs;
use super::{ConsoleError, Output};
use crate::join::session::{Evidence, Request, Session, Side, State};
use crate::outlet::table::{clock, command, escape, short};
use crate::store::{Activity, Found, Reader, Revision};
use crate::timestamp::Timestamp;
use clap::Args;
use seclog_proto::v1::NodeRecord;
use serde::Serialize;
use std::fmt::Write as _;

/// Longer texts are cut; the JSON form has them whole.
const LONGEST: usize = 2_000;
/// Lines of a kind that are shown.
const SHOWN: usize = 40;

#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// Of a session; its first digits will do.
    pub id: String,
    #[command(flatten)]
    pub store: StoreArgs,
    /// One JSON object: the session, its revisions in short, the node's records of its processes.
    #[arg(long)]
    pub json: bool,
}

/// All that the store has of a session.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) session: Session,
    pub(super) revisions: Vec<Revision>,
    pub(super) activity: Vec<NodeRecord>,
    pub(super) activity_not_kept: u64,
}

/// Prints it. False: there is no such session.
pub fn show(args: &ShowArgs) -> Result<bool, ConsoleError> {
    let reader = args.store.open()?;
    let digits = args.id.chars().filter(|digit| *digit != '-');
    if args.id.is_empty() || !digits.clone().all(|digit| digit.is_ascii_hexdigit()) || digits.count() > 32 {
        return Err(ConsoleError::NoId(args.id.clone()));
    }
    let session = match reader.find(&args.id)? {
        Found::None => None,
        Found::One(id) => reader.session(id)?,
        Found::Many(fits) => return Err(ConsoleError::Ambiguous { prefix: args.id.clone(), fits }),
    };
    let Some(session) = session else {
        eprintln!("No session {}.", args.id);
        super::list::tell_of_deleted(&reader, None)?;
        return Ok(false);
    };
    let report = Report::of(&reader, session)?;
    let text = if args.json { serde_json::to_string(&report)? + "\n" } else { report.render() };
    Output::new().put(&text)?;
    Ok(true)
}

impl Report {
    fn of(reader: &Reader, session: Session) -> Result<Self, ConsoleError> {
        let revisions = reader.revisions(session.id)?;
        let Activity { records, not_kept } = reader.activity(&session)?;
        Ok(Self { session, revisions, activity: records, activity_not_kept: not_kept })
    }

    pub(super) fn render(self) -> String {
        let Self { session, revisions, activity, activity_not_kept } = self;
        let activity = Activity { records: activity, not_kept: activity_not_kept };
        let mut page = Page::default();
        page.heading(&session);
        page.when(&session);
        page.who(&session);
        page.place(&session);
        page.asked(&session);
        page.evidence(&session);
        page.ran(&session, &activity);
        page.findings(&session);
        page.coverage(&session);
        page.revisions(&session, &revisions);
        page.0
    }
}

/// Labels at the left, text behind them.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, label: &str, text: &str) {
        let escaped = escape(text);
        let mut shown: String = escaped.chars().take(LONGEST).collect();
        let more = escaped.chars().count().saturating_sub(LONGEST);
        if more > 0 {
            let _ = write!(shown, "… ({more} more characters: --json)");
        }
        let _ = writeln!(self.0, "  {label:<10}{}", shown.trim_end());
    }

    /// The label stands once.
    fn lines(&mut self, label: &str, texts: impl IntoIterator<Item = String>) {
        let mut label = label;
        let mut texts = texts.into_iter();
        for text in texts.by_ref().take(SHOWN) {
            self.line(label, &text);
            label = "";
        }
        let more = texts.count();
        if more > 0 {
            self.line("", &format!("… and {more} more: --json"));
        }
    }

    fn heading(&mut self, session: &Session) {
        let who = session.user.as_ref().map_or("nobody known".to_owned(), |user| match &user.impersonated {
            Some(impersonated) => format!("{} as {impersonated}", user.username),
            None => user.username.clone(),
        });
        let place = &session.place;
        let pod = if place.pod.is_empty() { "an unknown pod" } else { &format!("{}/{}", place.namespace, place.pod) };
        let findings = match session.findings.len() {
            0 => String::new(),
            count => format!(", {count} finding{}", plural(count as u64, "s")),
        };
        let title = format!("{} by {who} into {pod}: {}{findings}", session.kind, session.evidence);
        let _ = writeln!(self.0, "{}\n", escape(&title));
        self.line("id", &session.id.to_string());
        match session.superseded_by {
            Some(other) => self.line("", &format!("superseded: session {other} tells the story instead")),
            None if session.state == State::Superseded => self.line("", "withdrawn: it was no session"),
            None => {}
        }
    }

    fn when(&mut self, session: &Session) {
        let began = session.start;
        let requests = session.request.iter().chain(&session.other_requests).filter_map(|request| request.completed);
        let last = requests.chain(session.root.iter().filter_map(|root| root.exited));
        let last = last.chain(session.ran.last().map(|ran| ran.time)).max();
        let text = match (session.state, last) {
            (State::Open, _) => format!("{} UTC, still open", stamp(began)),
            (_, Some(last)) => {
                let lasted = seconds(last.0.saturating_sub(began.0));
                format!("{} UTC, last heard of {} after {lasted}", stamp(began), clock(last))
            }
            _ => format!("{} UTC", stamp(began)),
        };
        self.line("when", &text);
    }

    fn who(&mut self, session: &Session) {
        let Some(user) = &session.user else {
            self.line("who", "not known: no audit record names anybody");
            return;
        };
        let groups =
            |groups: &[String]| if groups.is_empty() { String::new() } else { format!(" ({})", groups.join(", ")) };
        self.line("who", &format!("{}{}", user.username, groups(&user.groups)));
        if let Some(impersonated) = &user.impersonated {
            self.line("", &format!("acting as {impersonated}{}", groups(&user.impersonated_groups)));
        }
        if let Some(request) = &session.request {
            let address = request.source_ip.as_deref().unwrap_or("an unknown address");
            let mut from = format!("from {address}");
            if !request.claimed_source_ips.is_empty() {
                let _ = write!(from, ", claims to come from {}", request.claimed_source_ips.join(", "));
            }
            if !request.user_agent.is_empty() {
                let _ = write!(from, ", says it is {}", request.user_agent);
            }
            self.line("", &from);
        }
    }

    fn place(&mut self, session: &Session) {
        let place = &session.place;
        let of = |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("{name} {value}"));
        let pod = Some(format!("{}/{}", place.namespace, place.pod)).filter(|_| !place.pod.is_empty());
        let named = [
            Some(pod.unwrap_or_else(|| "pod not known".to_owned())),
            of("container", &place.container),
            of("node", &place.node),
            Some(format!("cluster {}", place.cluster)),
        ];
        self.line("where", &named.into_iter().flatten().collect::<Vec<_>>().join(", "));
        let ids: Vec<String> =
            [of("pod uid", &place.pod_uid), of("container id", &place.container_id)].into_iter().flatten().collect();
        if !ids.is_empty() {
            self.line("", &ids.join(", "));
        }
    }

    fn asked(&mut self, session: &Session) {
        match &session.request {
            None => self.line("asked", "nothing: no audit record asks for it"),
            Some(request) => self.request("asked", request, Some(session.outcome.to_string())),
        }
        for request in session.other_requests.iter().take(SHOWN) {
            self.request("and", request, None);
        }
    }

    fn request(&mut self, label: &str, request: &Request, outcome: Option<String>) {
        let tty = if request.tty { "  (tty)" } else { "" };
        let asked = if request.argv.is_empty() { &request.uri } else { &command(&request.argv) };
        self.line(label, &format!("{asked}{tty}"));
        let answer = request.code.map_or("no answer known".to_owned(), |code| format!("answered {code}"));
        let outcome = outcome.map(|outcome| format!(" ({outcome})")).unwrap_or_default();
        let completed = request.completed.map(|time| format!(", completed {}", clock(time))).unwrap_or_default();
        self.line(
            "",
            &format!(
                "{} request received {}, {answer}{outcome}{completed}, audit id {}",
                request.verb,
                clock(request.received),
                request.audit_id
            ),
        );
    }

    fn evidence(&mut self, session: &Session) {
        self.line("evidence", &format!("{}: {}", session.evidence, meaning(session.evidence)));
        self.lines("", session.reasons.iter().map(|reason| format!("- {reason}")));
        let candidate = |candidate: &crate::join::session::Candidate| {
            let side = match candidate.side {
                Side::Request => "request of",
                Side::Root => "processes of",
            };
            format!("{side} {} at {}, session {}", candidate.who, clock(candidate.time), candidate.session)
        };
        self.lines("maybe", session.candidates.iter().map(candidate));
        self.lines("attested", [session.attesters.join(", ")].into_iter().filter(|text| !text.is_empty()));
        self.lines("claims", session.claims.iter().cloned());
    }

    fn ran(&mut self, session: &Session, activity: &Activity) {
        let programs = session.ran.len() as u64 + session.ran_not_listed;
        if let Some(root) = &session.root {
            let lineage = if root.lineage.is_empty() { String::new() } else { format!(", lineage {}", root.lineage) };
            self.line(
                "entered",
                &format!("pid {} on {}: {} ({}{lineage})", root.pid, root.node, root.entry, root.rule),
            );
        }
        if programs == 0 {
            let text = if session.sees.process_starts {
                "no program was seen to start"
            } else {
                "nothing is known to have run"
            };
            self.line("ran", text);
        } else {
            let (processes, failed) = activity::counts(session, activity);
            let mut text = format!(
                "{programs} program{} in {processes} process{}",
                plural(programs, "s"),
                plural(processes as u64, "es")
            );
            if failed > 0 {
                let _ = write!(text, "; {failed} attempt{} to start one failed", plural(failed, "s"));
            }
            self.line("ran", &text);
            self.0.push_str(&activity::render(session, activity));
            if activity.records.is_empty() {
                self.line(
                    "",
                    "(without the node's records of its processes: who started whom and how they ended is not kept)",
                );
            }
        }
        if session.ran_not_listed > 0 {
            self.line("", &format!("{} more starts were counted and not kept", session.ran_not_listed));
        }
        if activity.not_kept > 0 {
            self.line("", &format!("{} more records of the node were counted and not kept", activity.not_kept));
        }
        let verdicts: Vec<String> = session
            .verdicts
            .iter()
            .map(|verdict| {
                let outcome = if verdict.outcome.is_empty() { String::new() } else { format!(" {}", verdict.outcome) };
                format!("{} {}{outcome}", verdict.count, verdict.syscall)
            })
            .collect();
        self.lines("verdicts", [verdicts.join(", ")].into_iter().filter(|text| !text.is_empty()));
    }

    fn findings(&mut self, session: &Session) {
        for finding in &session.findings {
            let severity = format!("{:?}", finding.severity).to_lowercase();
            self.line("finding", &format!("{} ({severity}): {}", finding.code, finding.text));
            self.line("", finding.code.explanation());
            self.lines(
                "",
                [format!("rests on {}", finding.records.join(", "))]
                    .into_iter()
                    .filter(|_| !finding.records.is_empty()),
            );
        }
        if session.findings.is_empty() {
            self.line("findings", "none");
        }
    }

    fn coverage(&mut self, session: &Session) {
        let losses = session.losses.iter().map(|loss| {
            let count = loss.count.map_or("an unknown number".to_owned(), |count| count.to_string());
            let (from, until) = (short(loss.from), short(loss.until));
            format!("{count} records of {} ({}), {from} to {until}: {}", loss.stream, loss.source, loss.reason)
        });
        if session.losses.is_empty() {
            self.line("lost", "nothing that was declared touches its time");
        } else {
            self.lines("lost", losses);
        }
        let bulk = session.verdicts_without_detail.iter().map(|bulk| {
            let times = format!("{} to {}", clock(bulk.first), clock(bulk.last));
            format!("{} verdicts on {} ({}) are only counted, {times}", bulk.count, bulk.syscall, bulk.action)
        });
        self.lines("", bulk);
        self.lines("coverage", session.coverage.iter().cloned());
        self.lines("unseen", session.sees.never.iter().cloned());
    }

    fn revisions(&mut self, session: &Session, revisions: &[Revision]) {
        let revision = |revision: &Revision| {
            let Revision { revision, told, state, kind, evidence, outcome, user, programs, findings } = revision;
            let user = if user.is_empty() { "nobody known" } else { user };
            let count =
                format!("{programs} program{}, {findings} finding{}", plural(*programs, "s"), plural(*findings, "s"));
            format!("{revision}  told {}: {kind}, {evidence}, {outcome}, {state}, {user}, {count}", short(*told))
        };
        let hidden = revisions.len().saturating_sub(SHOWN);
        if hidden > 0 {
            self.line("revision", &format!("… {hidden} earlier: --json"));
        }
        let label = if hidden > 0 { "" } else { "revision" };
        self.lines(label, revisions.iter().skip(hidden).map(revision));
        let first = revisions.first().map_or(session.revision, |first| first.revision);
        if first > 1 {
            self.line("", &format!("those before {first} are not in the store"));
        }
    }
}

/// To the millisecond.
fn stamp(time: Timestamp) -> String {
    let text = time.to_string();
    text.get(..23).map_or(text.clone(), |head| head.replace('T', " "))
}

fn plural(count: u64, ending: &'static str) -> &'static str {
    if count == 1 { "" } else { ending }
}

fn meaning(evidence: Evidence) -> &'static str {
    match evidence {
        Evidence::Exact => "an identifier that the API server recorded ties who asked to what ran",
        Evidence::Unique => "who asked and what ran fit each other, and nothing else fits either",
        Evidence::Ambiguous => "several could belong together; nothing is asserted",
        Evidence::AuditOnly => "only the API server tells of it",
        Evidence::NodeOnly => "only the node tells of it",
    }
}
