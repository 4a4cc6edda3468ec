//! `sessions`: which there are, a line each.

use super::ask::{FilterArgs, StoreArgs};
use super::{ConsoleError, Output};
use crate::join::finding::Severity;
use crate::join::session::{Outcome, Session, State};
use crate::outlet::table::{command, escape, short};
use crate::store::Reader;
use crate::timestamp::Timestamp;
use clap::Args;
use std::io::IsTerminal;

/// Of a line that goes to no terminal.
const WIDTH: usize = 200;
const WIDEST_USER: usize = 28;
const WIDEST_PLACE: usize = 48;

#[derive(Debug, Clone, Args)]
pub struct SessionsArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub filter: FilterArgs,
    /// The newest so many, 0 for all.
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    pub limit: u32,
    /// One session a line, all that is known: docs/sessions.md.
    #[arg(long)]
    pub json: bool,
}

/// Columns of a session.
struct Line {
    begun: String,
    id: String,
    kind: String,
    evidence: String,
    user: String,
    place: String,
    what: String,
    look: String,
}

/// Prints those that fit, oldest first. True: always.
pub fn sessions(args: &SessionsArgs) -> Result<bool, ConsoleError> {
    let reader = args.store.open()?;
    let filter = args.filter.filter();
    let limit = if args.limit == 0 { usize::MAX } else { args.limit as usize };
    let (ids, more) = reader.sessions(&filter, limit)?;
    let mut output = Output::new();
    if args.json {
        for id in ids {
            // One that retention deleted meanwhile is not there.
            let Some(session) = reader.session(id)? else { continue };
            if !output.put(&(serde_json::to_string(&session)? + "\n"))? {
                break;
            }
        }
        return Ok(true);
    }
    let mut lines = Vec::new();
    for id in &ids {
        lines.extend(reader.session(*id)?.as_ref().map(Line::of));
    }
    if !output.put(&table(&lines, width()))? {
        return Ok(true);
    }
    let count = lines.len();
    match (count, more) {
        (0, _) => eprintln!("No session fits."),
        (_, true) => eprintln!("The newest {count}; there are older ones: --limit."),
        (1, false) => eprintln!("1 session. All of it: seclog-correlator show ID"),
        (_, false) => eprintln!("{count} sessions. All of one: seclog-correlator show ID"),
    }
    tell_of_deleted(&reader, filter.since)?;
    Ok(true)
}

/// What is asked for may have been there.
pub(super) fn tell_of_deleted(reader: &Reader, since: Option<u64>) -> Result<(), ConsoleError> {
    for deleted in reader.deleted()? {
        if since.is_none_or(|since| since <= deleted.newest) {
            eprintln!(
                "Retention ({}) has deleted {} sessions that began from {} to {} UTC.",
                deleted.why,
                deleted.sessions,
                short(Timestamp(deleted.oldest)),
                short(Timestamp(deleted.newest)),
            );
        }
    }
    Ok(())
}

fn table(lines: &[Line], width: usize) -> String {
    let widest = |of: fn(&Line) -> &String, least: &str, most: usize| {
        let longest = lines.iter().map(|line| of(line).chars().count()).max().unwrap_or_default();
        longest.max(least.len()).min(most)
    };
    let user = widest(|line| &line.user, "USER", WIDEST_USER);
    let place = widest(|line| &line.place, "NAMESPACE/POD/CONTAINER", WIDEST_PLACE);
    let kind = widest(|line| &line.kind, "KIND", WIDTH);
    let mut text = String::new();
    let mut row = |cells: [&str; 7]| {
        let [begun, id, of_kind, evidence, of_user, of_place, what] = cells;
        let (of_user, of_place) = (cut(of_user, user), cut(of_place, place));
        let row = format!(
            "{begun:<19}  {id:<8}  {of_kind:<kind$}  {evidence:<10}  {of_user:<user$}  {of_place:<place$}  {what}"
        );
        text.push_str(cut(&row, width).trim_end());
        text.push('\n');
    };
    if lines.is_empty() {
        return String::new();
    }
    row(["BEGAN (UTC)", "ID", "KIND", "EVIDENCE", "USER", "NAMESPACE/POD/CONTAINER", "WHAT"]);
    for line in lines {
        let Line { begun, id, kind, evidence, user, place, what, look } = line;
        row([begun, id, kind, evidence, user, place, what]);
        if !look.is_empty() {
            row(["", "", "", "", "", "", look]);
        }
    }
    text
}

impl Line {
    fn of(session: &Session) -> Self {
        let Session { user, request, place, ran, findings, outcome, state, .. } = session;
        let user = match user {
            None => "-".to_owned(),
            Some(user) => match &user.impersonated {
                Some(impersonated) => format!("{} as {impersonated}", user.username),
                None => user.username.clone(),
            },
        };
        let pod = if place.pod.is_empty() { "?".to_owned() } else { format!("{}/{}", place.namespace, place.pod) };
        let place = place.container.as_ref().map_or_else(|| pod.clone(), |container| format!("{pod}/{container}"));
        let asked = request.as_ref().map(|request| command(&request.argv)).filter(|argv| !argv.is_empty());
        let what = asked.or_else(|| ran.first().map(|ran| command(&ran.argv))).unwrap_or_default();
        let mut notes = Vec::new();
        match state {
            State::Open => notes.push("open"),
            State::Superseded => notes.push("superseded"),
            State::Closed => {}
        }
        match outcome {
            Outcome::Denied => notes.push("denied"),
            Outcome::Failed => notes.push("failed"),
            Outcome::Accepted | Outcome::Pending | Outcome::Unrequested => {}
        }
        let notes = if notes.is_empty() { String::new() } else { format!("[{}] ", notes.join(", ")) };
        let mut codes: Vec<String> = findings
            .iter()
            .map(|finding| match finding.severity {
                Severity::Alarm => format!("{} (alarm)", finding.code),
                Severity::Warning | Severity::Notice => finding.code.to_string(),
            })
            .collect();
        codes.sort();
        codes.dedup();
        Self {
            begun: short(session.start),
            id: session.id.to_string().chars().take(8).collect(),
            kind: session.kind.to_string(),
            evidence: session.evidence.to_string(),
            user: escape(&user),
            place: escape(&place),
            what: format!("{notes}{}", escape(&what)),
            look: if codes.is_empty() { String::new() } else { format!("! {}", codes.join(", ")) },
        }
    }
}

/// With a mark where something is missing.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let head: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{head}…")
}

/// Columns of the terminal.
fn width() -> usize {
    let output = std::io::stdout();
    let size = if output.is_terminal() { rustix::termios::tcgetwinsize(&output).ok() } else { None };
    size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns >= 40).unwrap_or(WIDTH)
}
