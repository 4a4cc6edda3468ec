//! The processes of a session, in the order of time: who started whom, what ran, how it ended.

use crate::join::session::{Ran, Session};
use crate::outlet::table::{clock, command, escape};
use crate::store::Activity;
use crate::timestamp::Timestamp;
use seclog_proto::v1::node_record::Detail;
use seclog_proto::v1::{NodeRecord, ProcessExit};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Programs that are shown; the JSON form has all.
const SHOWN: usize = 300;
/// Characters of one command line that are shown.
const LONGEST: usize = 1_000;
/// Deeper trees are shown as deep.
const DEEPEST: usize = 24;

/// Start on the boot clock, and pid.
type Key = (u64, u32);

#[derive(Debug, Default)]
struct Process {
    creator: Option<Key>,
    programs: Vec<Program>,
    /// Attempts to exec that failed, or of which it is not known.
    failed: u64,
    unknown: u64,
    exit: Option<(u64, ProcessExit)>,
}

#[derive(Debug)]
struct Program {
    time: u64,
    argv: Vec<String>,
    filename: String,
    uid: u32,
    truncated: u64,
    after_close: bool,
    entered: String,
}

/// A line of the list.
struct Line {
    time: u64,
    pid: u32,
    creator: u32,
    text: String,
}

/// An indented list; empty where nothing ran. Where the store has no records, from what the session itself has.
pub(super) fn render(session: &Session, activity: &Activity) -> String {
    let processes = if activity.records.is_empty() { of_session(&session.ran) } else { of_records(session, activity) };
    let mut lines = lines(&processes);
    lines.sort_by_key(|line| line.time);
    let mut text = String::new();
    for Line { time, pid, creator, text: what } in lines.iter().take(SHOWN) {
        let creator = if *creator == 0 { String::new() } else { creator.to_string() };
        let _ = writeln!(text, "    {}  {pid:>7}  {creator:>7}  {what}", clock(Timestamp(*time)));
    }
    let heading = "    TIME (UTC)        PID       BY  PROGRAM, HOW ITS PROCESS ENDED\n";
    if text.is_empty() {
        return text;
    }
    if lines.len() > SHOWN {
        let _ = writeln!(text, "    … and {} more: --json", lines.len() - SHOWN);
    }
    format!("{heading}{text}")
}

/// Processes and attempts that failed, of what the store has.
pub(super) fn counts(session: &Session, activity: &Activity) -> (usize, u64) {
    let processes = if activity.records.is_empty() { of_session(&session.ran) } else { of_records(session, activity) };
    let with_programs = processes.values().filter(|process| !process.programs.is_empty()).count();
    (with_programs, processes.values().map(|process| process.failed).sum())
}

fn of_records(session: &Session, activity: &Activity) -> BTreeMap<Key, Process> {
    let closed: BTreeMap<&str, bool> = session.ran.iter().map(|ran| (ran.record.as_str(), ran.after_close)).collect();
    let mut processes: BTreeMap<Key, Process> = BTreeMap::new();
    for record in &activity.records {
        let NodeRecord { id, time_unix_ns, pid, start_boottime_ns, uid, detail, .. } = record;
        let process = processes.entry((*start_boottime_ns, *pid)).or_default();
        if record.creator_pid != 0 {
            process.creator = Some((record.creator_start_boottime_ns, record.creator_pid));
        }
        match detail {
            Some(Detail::ProcessStart(start)) => process.programs.push(Program {
                time: *time_unix_ns,
                argv: start.argv.clone(),
                filename: start.filename.clone(),
                uid: *uid,
                truncated: start.argv_truncated_bytes,
                after_close: closed.get(id.as_str()).copied().unwrap_or_default(),
                entered: start.entered_container_id.clone(),
            }),
            Some(Detail::ProcessExit(exit)) => process.exit = Some((*time_unix_ns, *exit)),
            Some(Detail::Verdict(verdict)) => match verdict.outcome.as_str() {
                "failed" => process.failed += 1,
                "unknown" => process.unknown += 1,
                _ => {}
            },
            _ => {}
        }
    }
    processes
}

fn of_session(ran: &[Ran]) -> BTreeMap<Key, Process> {
    let mut processes: BTreeMap<Key, Process> = BTreeMap::new();
    for ran in ran {
        processes.entry((0, ran.pid)).or_default().programs.push(Program {
            time: ran.time.0,
            argv: ran.argv.clone(),
            filename: ran.filename.clone(),
            uid: ran.uid,
            truncated: ran.argv_truncated_bytes,
            after_close: ran.after_close,
            entered: String::new(),
        });
    }
    processes
}

fn lines(processes: &BTreeMap<Key, Process>) -> Vec<Line> {
    let mut lines = Vec::new();
    for (key, process) in processes {
        let depth = depth(processes, *key);
        let creator = process.creator.filter(|creator| processes.contains_key(creator)).map_or(0, |(_, pid)| pid);
        for (number, program) in process.programs.iter().enumerate() {
            let is_last = number + 1 == process.programs.len();
            let mut text = "  ".repeat(depth);
            text.push_str(&shown(program));
            if program.uid != 0 {
                let _ = write!(text, "  (uid {})", program.uid);
            }
            if !program.entered.is_empty() {
                let whose = program.entered.get(..12).unwrap_or(&program.entered);
                let _ = write!(text, "  IN {}", escape(whose));
            }
            if program.after_close {
                text.push_str("  AFTER CLOSE");
            }
            if is_last {
                text.push_str(&ending(process));
            } else {
                text.push_str("  → execs");
            }
            lines.push(Line { time: program.time, pid: key.1, creator, text });
        }
    }
    lines
}

fn shown(program: &Program) -> String {
    let argv = command(&program.argv);
    let argv = if argv.is_empty() { program.filename.clone() } else { argv };
    let escaped = escape(&argv);
    let mut text: String = escaped.chars().take(LONGEST).collect();
    let more = escaped.chars().count().saturating_sub(LONGEST);
    if more > 0 {
        let _ = write!(text, "… ({more} more characters: --json)");
    }
    if program.truncated > 0 {
        let _ = write!(text, "  ({} more bytes that the node did not carry)", program.truncated);
    }
    text
}

fn ending(process: &Process) -> String {
    let mut text = String::new();
    let began = process.programs.first().map_or(0, |program| program.time);
    if let Some((time, exit)) = &process.exit {
        let after = seconds(time.saturating_sub(began));
        let _ = match (exit.found_gone, exit.exit_code & 0x7f, exit.exit_code >> 8 & 0xff) {
            (true, ..) => write!(text, "  [gone, exit not seen]"),
            (false, 0, status) => write!(text, "  [exit {status} after {after}]"),
            (false, signal, _) => write!(text, "  [signal {signal} after {after}]"),
        };
    }
    if process.failed > 0 {
        let _ = write!(text, "  [{} failed exec{}]", process.failed, if process.failed == 1 { "" } else { "s" });
    }
    if process.unknown > 0 {
        let _ = write!(text, "  [{} execs of unknown outcome]", process.unknown);
    }
    text
}

pub(super) fn seconds(nanoseconds: u64) -> String {
    let milliseconds = nanoseconds / 1_000_000;
    match milliseconds {
        0..10_000 => format!("{}.{:03} s", milliseconds / 1_000, milliseconds % 1_000),
        _ => match milliseconds / 1_000 {
            seconds @ 0..120 => format!("{seconds} s"),
            seconds @ 120..7_200 => format!("{} min {} s", seconds / 60, seconds % 60),
            seconds => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        },
    }
}

/// How far from the root. Creators that told of nothing themselves are passed over.
fn depth(processes: &BTreeMap<Key, Process>, key: Key) -> usize {
    let mut depth = 0;
    let mut at = key;
    while depth < DEEPEST
        && let Some(creator) = processes.get(&at).and_then(|process| process.creator)
        && let Some(process) = processes.get(&creator)
    {
        depth += usize::from(!process.programs.is_empty());
        if creator == at {
            break;
        }
        at = creator;
    }
    depth
}
