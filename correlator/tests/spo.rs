//! A cluster that runs SPO's JSON enricher alone: what its lines and the audit log come to, and what they never do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use seclog_correlator::join::finding::Code;
use seclog_correlator::join::session::{Evidence, Kind, Session};
use seclog_correlator::join::{Config, Input, Join};
use seclog_correlator::replay::{Reader, Replay};
use seclog_correlator::spo::{self, SpoLine};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use support::program::{Running, kept, last_lines, replay, wait_for};
use support::scene::{BASE, Kept, MS, SECOND, ask, debug, pod_status, tree};
use support::{fixture, trace};

const UID: &str = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";

fn write_lines(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("audit.log");
    std::fs::write(&path, support::spo::lines().join("\n") + "\n").unwrap();
    path
}

fn replayed(with_agent: bool, with_spo: bool) -> Replay {
    let mut reader = Reader::new("guest");
    reader.audit_file(&fixture("kas-audit.log")).unwrap();
    if with_spo {
        let dir = tempfile::tempdir().unwrap();
        reader.spo_file(&write_lines(dir.path())).unwrap();
    }
    if with_agent {
        for record in trace::node_records() {
            reader.apply(Input::Node { node: "node-1".into(), record });
        }
    }
    reader.finish()
}

/// By the time of day at which it begins.
fn at<'a>(sessions: &'a [Session], start: &str) -> &'a Session {
    let mut found = sessions.iter().filter(|session| session.start.to_string().contains(start));
    let session = found.next().unwrap_or_else(|| panic!("no session at {start}"));
    assert!(found.next().is_none(), "several at {start}");
    session
}

fn commands(session: &Session) -> Vec<&str> {
    session.ran.iter().map(|ran| ran.argv[0].as_str()).collect()
}

fn spo_line(pid: u32, command: &str, uid: Option<&str>, time: u64) -> SpoLine {
    SpoLine {
        time: time / SECOND * SECOND,
        id: format!("{pid}-{time}"),
        node: "node-1".to_owned(),
        namespace: "shop".to_owned(),
        pod: "web".to_owned(),
        container: "app".to_owned(),
        pid,
        executable: "/usr/bin/crun".to_owned(),
        command_line: command.to_owned(),
        request_uid: uid.map(str::to_owned),
        ..SpoLine::default()
    }
}

fn joined(inputs: impl IntoIterator<Item = Input>) -> (Vec<Session>, Vec<Code>) {
    let mut join = Join::new(Config::new("guest"));
    let mut kept = Kept::default();
    for input in inputs {
        kept.take(join.apply(input));
    }
    kept.take(join.finish());
    let mut codes: Vec<Code> = join.take_findings().iter().map(|finding| finding.code).collect();
    codes.sort();
    codes.dedup();
    (kept.sessions(), codes)
}

fn lines(lines: impl IntoIterator<Item = SpoLine>) -> Vec<Input> {
    lines.into_iter().map(|line| Input::Spo(Box::new(line))).collect()
}

#[test]
fn the_recording_joins_by_spos_lines_alone_and_nothing_is_exact() {
    let Replay { sessions, findings, malformed, .. } = replayed(false, true);
    assert_eq!(malformed, 0);
    assert!(sessions.iter().all(|session| session.evidence != Evidence::Exact && session.root.is_none()));

    let plain = at(&sessions, "22:31:24.11");
    assert_eq!((plain.kind, plain.evidence), (Kind::Exec, Evidence::Unique), "{:#?}", plain.reasons);
    assert_eq!(plain.user.as_ref().unwrap().username, "alice@example.com");
    assert_eq!(plain.place.node.as_deref(), Some("node-1"));
    let uid = "b9a7e2db-c89d-4326-9dc2-7804d25082d3";
    assert_eq!(
        commands(plain),
        [format!("env SPO_EXEC_REQUEST_UID={uid} sh -c /bin/id; /bin/ls / >/dev/null").as_str(), "/bin/id"],
        "one command line a process: ls replaced sh in the same one"
    );
    assert_eq!(plain.attesters, ["audit/file", "spo/node-1"]);
    assert!(plain.coverage.iter().any(|note| note.contains("numbers and counts nothing")), "{:?}", plain.coverage);
    assert!(plain.sees.verdicts && !plain.sees.process_starts);

    // The webhook's session names, two at once: the identifier tells them apart.
    let two: Vec<&Session> = sessions.iter().filter(|session| session.start.to_string().contains("22:31:31")).collect();
    assert_eq!(two.len(), 2);
    assert!(two.iter().all(|session| session.evidence == Evidence::Unique && session.ran.len() == 2), "{two:#?}");

    // The child that forged an identifier is not taken for part of anything, and told.
    let forged: Vec<_> = findings.iter().filter(|finding| finding.text.starts_with("SPO reports")).collect();
    assert_eq!(forged.len(), 1, "{forged:#?}");
    assert_eq!(forged[0].code, Code::IdentifierForged);

    // Without the webhook nothing ties a line to a request: named, not asserted.
    let unmarked = at(&sessions, "22:30:05.98");
    assert_eq!((unmarked.evidence, unmarked.ran.len()), (Evidence::Ambiguous, 0), "{:#?}", unmarked.reasons);
    assert!(unmarked.candidates[0].who.contains("(SPO)"));
}

#[test]
fn where_an_agent_speaks_spos_lines_change_no_session() {
    let (alone, both) = (replayed(true, false), replayed(true, true));
    assert_eq!(alone.sessions, both.sessions);
}

#[test]
fn an_identifier_that_processes_of_another_place_carry_is_asserted_of_none() {
    let request = ask("alice", &["id"], BASE).uid(UID).stages();
    let own = spo_line(100, &format!("env SPO_EXEC_REQUEST_UID={UID} id"), Some(UID), BASE + 200 * MS);
    let alone: Vec<Input> =
        ask("alice", &["id"], BASE).uid(UID).stages().into_iter().chain(lines([own.clone()])).collect();
    let (sessions, codes) = joined(alone);
    assert_eq!((sessions[0].evidence, sessions[0].ran.len()), (Evidence::Unique, 1), "{:#?}", sessions[0].reasons);
    assert_eq!(codes, []);

    let other = SpoLine { pod: "db".to_owned(), ..spo_line(300, "sh", Some(UID), BASE + SECOND) };
    let (sessions, codes) = joined(request.into_iter().chain(lines([own, other])));
    assert_eq!((sessions[0].evidence, sessions[0].ran.len()), (Evidence::Ambiguous, 0), "{:#?}", sessions[0].reasons);
    assert_eq!(codes, [Code::IdentifierReused]);
}

#[test]
fn what_speaks_against_a_line_keeps_it_a_candidate() {
    let request = || ask("alice", &["id"], BASE).uid(UID).stages();
    let first = format!("env SPO_EXEC_REQUEST_UID={UID} id");
    let own = || spo_line(100, &first, Some(UID), BASE + 200 * MS);
    let evidence = |inputs: Vec<Input>| joined(inputs).0[0].evidence;
    let with = |more: Vec<Input>| request().into_iter().chain(more).collect::<Vec<_>>();
    assert_eq!(evidence(with(lines([own()]))), Evidence::Unique);
    // The command is none that was asked for.
    assert_eq!(evidence(with(lines([spo_line(100, "sh", Some(UID), BASE + SECOND)]))), Evidence::Ambiguous);
    // Two nodes claim the pod; or the API server knows another.
    let second = SpoLine { node: "node-2".to_owned(), ..own() };
    assert_eq!(evidence(with(lines([own(), second]))), Evidence::Ambiguous);
    let elsewhere = pod_status("node-9", &["probe"]).into_iter().chain(lines([own()])).collect();
    assert_eq!(evidence(with(elsewhere)), Evidence::Ambiguous);
    // Audit events were lost meanwhile.
    let lost = Input::AuditLoss {
        source: "file".to_owned(),
        reason: "gone".to_owned(),
        from: BASE,
        until: BASE + SECOND,
        count: None,
    };
    assert_eq!(evidence(with(lines([own()]).into_iter().chain([lost]).collect())), Evidence::Ambiguous);
    // Two requests have the identifier.
    let twice = ask("bob", &["id"], BASE + MS).uid(UID).stages().into_iter().chain(lines([own()])).collect();
    assert_eq!(evidence(with(twice)), Evidence::Ambiguous);
}

#[test]
fn a_line_in_every_interval_is_one_program_and_order_makes_no_difference() {
    let command = format!("env SPO_EXEC_REQUEST_UID={UID} sleep 600");
    let mut inputs = ask("alice", &["sleep", "600"], BASE).open().uid(UID).stages();
    inputs.extend(lines((0..5).map(|minute| spo_line(100, &command, Some(UID), BASE + minute * 60 * SECOND))));
    let (forward, _) = joined(inputs);
    assert_eq!(forward[0].ran.len(), 1);
    let mut inputs = lines((0..5).rev().map(|minute| spo_line(100, &command, Some(UID), BASE + minute * 60 * SECOND)));
    inputs.extend(ask("alice", &["sleep", "600"], BASE).open().uid(UID).stages());
    let (backward, _) = joined(inputs);
    assert_eq!(forward, backward);
}

#[test]
fn a_process_that_outlives_its_request_is_told_as_after_its_close() {
    let first = format!("env SPO_EXEC_REQUEST_UID={UID} sh");
    let mut inputs = ask("alice", &["sh"], BASE).uid(UID).stages();
    inputs.extend(lines([
        spo_line(100, &first, Some(UID), BASE + 200 * MS),
        spo_line(101, "ls /", Some(UID), BASE + 9 * SECOND),
    ]));
    let (sessions, _) = joined(inputs);
    let after: Vec<bool> = sessions[0].ran.iter().map(|ran| ran.after_close).collect();
    assert_eq!(after, [false, true]);
}

#[test]
fn an_agents_record_of_the_same_request_is_told_instead() {
    let first = ["env".to_owned(), format!("SPO_EXEC_REQUEST_UID={UID}"), "id".to_owned()];
    let argv: Vec<&str> = first.iter().map(String::as_str).collect();
    let mut inputs = lines([spo_line(100, &first.join(" "), Some(UID), BASE + 200 * MS)]);
    inputs.extend(ask("alice", &["id"], BASE).uid(UID).stages());
    inputs.extend(tree(100, &argv, BASE + 200 * MS).inputs());
    let (sessions, codes) = joined(inputs);
    assert_eq!((sessions.len(), sessions[0].evidence), (1, Evidence::Exact));
    assert_eq!(codes, []);
}

#[test]
fn a_debug_container_is_known_by_the_identifier_in_its_environment() {
    let mut inputs = debug("alice", "debugger-1", BASE);
    for input in &mut inputs {
        if let Input::Audit { event, .. } = input
            && event.verb == "patch"
        {
            event.spo_uid = Some(UID.to_owned());
        }
    }
    let line = SpoLine { container: "debugger-1".to_owned(), ..spo_line(100, "sh", Some(UID), BASE + 2 * SECOND) };
    inputs.extend(lines([line]));
    let (sessions, _) = joined(inputs);
    assert_eq!((sessions[0].kind, sessions[0].evidence), (Kind::DebugContainer, Evidence::Unique));
    assert_eq!(sessions[0].place.container.as_deref(), Some("debugger-1"));
}

#[test]
fn secrets_in_command_lines_are_masked() {
    let rules = seclog_masking::Rules::parse("key --password").unwrap();
    let mut join = Join::new(Config { masking: Some(std::sync::Arc::new(rules)), ..Config::new("guest") });
    let mut inputs = ask("alice", &["mysql", "--password", "s3cret"], BASE).uid(UID).stages();
    let command = format!("env SPO_EXEC_REQUEST_UID={UID} mysql --password s3cret");
    inputs.extend(lines([spo_line(100, &command, Some(UID), BASE + 200 * MS)]));
    inputs.into_iter().for_each(|input| drop(join.apply(input)));
    let sessions = join.finish();
    assert_eq!(sessions[0].evidence, Evidence::Unique, "{:#?}", sessions[0].reasons);
    assert!(!serde_json::to_string(&sessions).unwrap().contains("s3cret"));
}

/// What `replay` says of the recording.
fn by_replay(dir: &Path) -> Vec<Session> {
    let (audit, spo) = (fixture("kas-audit.log"), write_lines(dir));
    let output = dir.join("replayed.jsonl");
    let args = ["--audit", audit.to_str().unwrap(), "--spo", spo.to_str().unwrap()];
    let told = replay(&args.into_iter().chain(["--output", output.to_str().unwrap()]).collect::<Vec<_>>());
    assert_eq!(told.status.code(), Some(0), "{}", String::from_utf8_lossy(&told.stderr));
    without_revision(kept(&output))
}

fn without_revision(mut sessions: Vec<Session>) -> Vec<Session> {
    sessions.iter_mut().for_each(|session| session.revision = 0);
    sessions
}

#[test]
fn serve_follows_the_enrichers_files_through_rotation_and_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let (node, journal, output) = (dir.path().join("node-1"), dir.path().join("journal"), dir.path().join("out.jsonl"));
    std::fs::create_dir(&node).unwrap();
    let log = node.join("audit.log");
    let lines = support::spo::lines();
    // From then on the recording has a webhook.
    let half = lines.iter().position(|line| line.contains("22:31:2")).unwrap();
    std::fs::write(&log, format!("I1123 22:30:00 enricher.go:1] starting\n{}\n", lines[..half].join("\n"))).unwrap();
    let args = [
        format!("--audit-log={}", fixture("kas-audit.log").display()),
        format!("--spo-log={}", dir.path().display()),
        format!("--output={}", output.display()),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let running = Running::start_with(&journal, &args);
    wait_for(&output, "(SPO)");
    running.kill();
    std::fs::rename(&log, node.join("audit-2026-11-23T22-31-20.000.log")).unwrap();
    std::fs::write(&log, lines[half..].join("\n") + "\n").unwrap();
    let running = Running::start_with(&journal, &args);
    wait_for(&output, "\"unique\"");
    assert_eq!(running.stop(), 0);
    assert_eq!(without_revision(last_lines(&output)), by_replay(dir.path()));
    assert_eq!(lines_in_journal(&journal), lines, "each once");
}

#[test]
fn serve_takes_the_enrichers_lines_on_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, output) = (dir.path().join("journal"), dir.path().join("out.jsonl"));
    let args =
        [format!("--audit-log={}", fixture("kas-audit.log").display()), format!("--output={}", output.display())];
    let args: Vec<&str> = args.iter().map(String::as_str).chain(["--spo-stdin"]).collect();
    let mut running = Running::start_fed(&journal, &args, Stdio::piped());
    let mut input = running.child.stdin.take().unwrap();
    // As `oc logs --timestamps` prints it.
    for line in support::spo::lines() {
        writeln!(input, "2026-11-23T22:40:00.1Z {line}").unwrap();
    }
    drop(input);
    running.line("standard input has ended");
    wait_for(&output, "22:33:44");
    assert_eq!(running.stop(), 0);
    assert_eq!(without_revision(kept(&output)), by_replay(dir.path()));
}

fn lines_in_journal(journal: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut reader = seclog_journal::Reader::new(journal, 1);
    while let Some(item) = reader.next(u64::MAX).unwrap() {
        let seclog_journal::Item::Entry(entry) = item else { panic!("missing entries") };
        let entry = <seclog_proto::v1::JournalEntry as prost::Message>::decode(entry.payload).unwrap().entry;
        if let Some(seclog_correlator::journal::Entry::SpoLines(lines)) = entry {
            found.extend(lines.lines.iter().map(|line| String::from_utf8(line.to_vec()).unwrap()));
        }
    }
    found
}

#[test]
fn lines_of_the_recording_are_read_whole() {
    let lines = support::spo::lines();
    assert!(lines.len() > 50, "{}", lines.len());
    assert!(lines.iter().all(|line| spo::read(line.as_bytes()).is_ok()));
}
