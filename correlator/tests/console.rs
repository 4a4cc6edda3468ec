//! `sessions`, `show`, `tail` and `findings` as an administrator runs them, with `serve` running, killed and stopped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use seclog_correlator::join::session::Session;
use seclog_correlator::store::{Filter, Reader};
use seclog_proto::v1::NodeRecord;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::client::{Agent, hello, plaintext};
use support::scene::Kept;
use support::{fixture, trace};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seclog-correlator"));
    for name in ["SECLOG_LOG", "SECLOG_STORE", "SECLOG_JOURNAL"] {
        command.env_remove(name);
    }
    command
}

fn ask(store: &Path, args: &[&str]) -> Output {
    let output = program().args(args).arg("--store").arg(store).output().unwrap();
    for letter in String::from_utf8(output.stdout.clone()).unwrap().chars() {
        assert!(!letter.is_control() || letter == '\n', "{letter:?} in the output of {args:?}");
    }
    output
}

fn answer(store: &Path, args: &[&str]) -> String {
    let output = ask(store, args);
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{args:?}: {log}");
    String::from_utf8(output.stdout).unwrap()
}

/// The store of the recordings.
fn recordings() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let records = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/derived/node-records.jsonl");
    let output = program()
        .args(["replay", "--cluster=guest", "--output=/dev/null", "--audit"])
        .arg(fixture("kas-audit.log"))
        .arg(format!("--node-records=node-1={}", records.display()))
        .arg("--store")
        .arg(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    dir
}

/// What `replay` makes of the recorded audit log and these records.
fn recordings_of(records: &[NodeRecord]) -> Vec<Session> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.jsonl");
    let lines: Vec<String> = records.iter().map(|record| serde_json::to_string(record).unwrap()).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    let output = program()
        .args(["replay", "--cluster=guest", "--audit"])
        .arg(fixture("kas-audit.log"))
        .arg(format!("--node-records=node-1={}", path.display()))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter(|line| !line.contains(r#""kind":"finding""#));
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn golden(name: &str, found: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var("SECLOG_GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    for (number, (expected, found)) in expected.lines().zip(found.lines()).enumerate() {
        assert_eq!(expected, found, "{}:{}", path.display(), number + 1);
    }
    assert_eq!(expected.lines().count(), found.lines().count(), "{}", path.display());
}

// === On the recordings ===

#[test]
fn what_the_commands_print_of_the_recordings_stays_as_it_is() {
    let store = recordings();
    golden("sessions.txt", &answer(store.path(), &["sessions"]));
    golden("findings.txt", &answer(store.path(), &["findings"]));
    // Exact, ambiguous on both sides, a daemon that outlives its request, a debug container, nobody known, denied, forged.
    let ids = ["5a2f1eff", "7aa7701e", "c68725a8", "ef9439b3", "864dd440", "a3ff2c75", "2590ad76", "dec1e766"];
    let shown: Vec<String> = ids.iter().map(|id| answer(store.path(), &["show", id])).collect();
    golden("show.txt", &shown.join("\n"));
}

#[test]
fn json_of_sessions_is_what_replay_writes() {
    let store = recordings();
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/recordings.jsonl");
    let golden = std::fs::read_to_string(golden).unwrap();
    let (findings, sessions): (Vec<&str>, Vec<&str>) =
        golden.lines().partition(|line| line.contains(r#""kind":"finding""#));
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(answer(store.path(), &["sessions", "--json"]).lines().collect::<Vec<_>>(), sessions);
    assert_eq!(sorted(&answer(store.path(), &["findings", "--json"])), sorted(&findings.join("\n")));
    let shown: serde_json::Value =
        serde_json::from_str(&answer(store.path(), &["show", "5a2f1eff", "--json"])).unwrap();
    let of: Vec<&&str> = sessions.iter().filter(|line| line.contains(r#""id":"5a2f1eff"#)).collect();
    assert_eq!(shown["session"], serde_json::from_str::<serde_json::Value>(of[0]).unwrap());
    assert!(shown["activity"].as_array().unwrap().len() > 4);
    assert_eq!(shown["revisions"][0]["revision"], 1);
}

#[test]
fn filters_choose() {
    let store = recordings();
    let count = |args: &[&str]| answer(store.path(), &[&["sessions", "--json"], args].concat()).lines().count();
    assert_eq!(count(&[]), 33);
    assert_eq!(count(&["--user", "bob@example.com"]), 2, "bob, and system:admin as bob");
    assert_eq!(count(&["--user", "*@example.com"]), 26);
    assert_eq!(count(&["--kind", "node_entry,rsh"]), 4);
    assert_eq!(count(&["--evidence", "exact", "--since", "2026-11-23 22:31:40"]), 2);
    assert_eq!(count(&["--until", "2026-11-23T22:30:07Z"]), 2);
    assert_eq!(count(&["--pod", "node-debugger-*", "-n", "default"]), 2);
    assert_eq!(count(&["--finding", "entry-without-audit"]), 2);
    assert_eq!(count(&["--limit", "5"]), 5);
    assert_eq!(count(&["--limit", "0"]), 33);
    assert_eq!(count(&["--user", "nobody"]), 0);
    assert_eq!(answer(store.path(), &["tail", "--no-follow", "--json", "-l", "3", "--kind", "rsh"]).lines().count(), 1);
}

#[test]
fn what_cannot_be_answered_says_why_and_has_its_exit_status() {
    let store = recordings();
    let empty = tempfile::tempdir().unwrap();
    let foreign = tempfile::tempdir().unwrap();
    std::fs::write(foreign.path().join("sessions.db"), vec![b'x'; 8192]).unwrap();
    let newer = recordings();
    let connection = rusqlite::Connection::open(newer.path().join("sessions.db")).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    for (store, args, status, words) in [
        (empty.path(), &["sessions"][..], 2, "no store is at"),
        (empty.path(), &["tail"], 2, "no store is at"),
        (foreign.path(), &["findings"], 2, "damaged"),
        (newer.path(), &["show", "5a"], 2, "format 99 is not known"),
        (store.path(), &["show", "5"], 2, "fits several sessions"),
        (store.path(), &["show", "five"], 2, "no id of a session"),
        (store.path(), &["show", "00000000-0000"], 1, "No session 00000000-0000"),
        (store.path(), &["sessions", "--since", "yesterday"], 2, "is no time"),
        (store.path(), &["sessions", "--kind", "login"], 2, "port_forward"),
        (store.path(), &["sessions", "--finding", "odd"], 2, "foreign-pod"),
    ] {
        let output = ask(store, args);
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {log}");
        assert!(log.contains(words), "{args:?}: {log}");
    }
}

#[test]
fn who_closes_the_pipe_has_seen_enough() {
    let store = recordings();
    let mut child = program()
        .args(["sessions", "--json", "--store"])
        .arg(store.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn control_characters_from_outside_reach_no_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit.log");
    let recorded = std::fs::read_to_string(fixture("kas-audit.log")).unwrap();
    let hostile = recorded.replace("hello+world", "%1B%5B2J%0D%E2%80%AE").replace("kubectl/v1", "\\u001b[31mkubectl");
    assert_ne!(recorded, hostile);
    std::fs::write(&log, hostile).unwrap();
    let store = dir.path().join("store");
    let output = program()
        .args(["replay", "--cluster=guest", "--output=/dev/null", "--audit"])
        .arg(&log)
        .arg("--store")
        .arg(&store)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    // `answer` looks at every character.
    let listed = answer(&store, &["sessions"]);
    assert!(listed.contains(r"\x1b[2J\x0d\u{202e}"), "{listed}");
    answer(&store, &["tail", "--no-follow", "-l", "100"]);
    answer(&store, &["findings"]);
    for id in Reader::open(&store).unwrap().sessions(&Filter::default(), 100).unwrap().0 {
        let shown = answer(&store, &["show", &id.to_string()]);
        assert!(!shown.contains("kubectl/v1"));
        answer(&store, &["show", &id.to_string(), "--json"]);
    }
}

// === While serve runs ===

struct Serve {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
}

impl Serve {
    fn start(dir: &Path) -> Self {
        let mut child = program()
            .args(["serve", "--cluster=guest", "--plaintext", "--agents-listen=127.0.0.1:0", "--journal"])
            .arg(dir.join("journal"))
            .arg("--audit-log")
            .arg(dir.join("audit.log"))
            .arg("--output")
            .arg(dir.join("sessions.jsonl"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log }
    }

    fn address(&mut self) -> SocketAddr {
        loop {
            let mut line = String::new();
            assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "it ended");
            if line.contains("listening for agents") {
                return line.trim().rsplit_once("addr=").unwrap().1.parse().unwrap();
            }
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn stop(mut self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.log, &mut rest).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{rest}");
    }
}

/// Everything that is told of the sessions in the store.
fn whole(store: &Path) -> Vec<(Session, Vec<u32>, Vec<String>)> {
    let reader = Reader::open(store).unwrap();
    let all = Filter { all: true, ..Filter::default() };
    let (ids, _) = reader.sessions(&all, usize::MAX).unwrap();
    let of = |id: Uuid| {
        let session = reader.session(id).unwrap().unwrap();
        let revisions = reader.revisions(id).unwrap().iter().map(|revision| revision.revision).collect();
        let records = reader.activity(&session).unwrap().records.into_iter().map(|record| record.id).collect();
        (session, revisions, records)
    };
    ids.into_iter().map(of).collect()
}

fn stored(store: &Path) -> usize {
    Reader::open(store).and_then(|reader| reader.sessions(&Filter::default(), 1_000)).map_or(0, |(ids, _)| ids.len())
}

async fn wait_for(what: &str, until: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !until() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_time_the_store_is_in_step_with_the_journal_and_is_made_anew_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("journal/store");
    let records = trace::node_records();
    let batches: Vec<_> = records.chunks(records.len().div_ceil(6)).collect();
    let mut sequence = 1;
    for (round, batch) in batches.iter().enumerate() {
        let mut serve = Serve::start(dir.path());
        let mut agent = Agent::connect(plaintext(serve.address()).await, hello("guest", "node-1", 1, 1)).await.unwrap();
        assert_eq!(agent.welcome().await.unwrap(), sequence - 1);
        let is_last = round + 1 == batches.len();
        agent.batch(sequence, batch.to_vec(), if is_last { u64::MAX } else { 0 }).await;
        sequence += batch.len() as u64;
        assert_eq!(agent.ack().await.unwrap(), sequence - 1);
        if round == 3 {
            std::fs::copy(fixture("kas-audit.log"), dir.path().join("audit.log")).unwrap();
            wait_for("sessions are stored", || stored(&store) > 0).await;
        }
        // Somewhere in what the join makes of it.
        tokio::time::sleep(Duration::from_millis(150 * round as u64)).await;
        serve.kill();
        // It can be read as it was left.
        if store.join("sessions.db").exists() {
            answer(&store, &["sessions"]);
        }
    }
    let mut serve = Serve::start(dir.path());
    serve.address();
    wait_for("all sessions are stored", || stored(&store) >= 33).await;
    serve.kill();
    let mut serve = Serve::start(dir.path());
    serve.address();
    serve.stop();
    let left = whole(&store);

    let mut kept = Kept::default();
    let written = std::fs::read_to_string(dir.path().join("sessions.jsonl")).unwrap();
    let mut lines: Vec<Session> = written
        .lines()
        .filter(|line| !line.contains(r#""kind":"finding""#))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    // The outlet may have a line twice after a kill.
    lines.sort_by_key(|session| (session.id, session.revision));
    lines.dedup_by_key(|session| (session.id, session.revision));
    kept.take(lines);
    let mut stored: Vec<Session> = left.iter().map(|(session, ..)| session.clone()).collect();
    stored.iter_mut().for_each(|session| session.revision = 0);
    // Nobody was in the middle of anything when it was replayed.
    let nobody = recordings_of(&records);
    let of = |mut sessions: Vec<Session>| {
        sessions.iter_mut().for_each(|session| (session.revision, session.attesters) = (0, Vec::new()));
        sessions
    };
    assert_eq!(of(kept.sessions()), of(nobody));
    stored.retain(|session| kept.sessions().iter().any(|kept| kept.id == session.id));
    assert_eq!(stored, kept.sessions());
    for (session, revisions, _) in &left {
        assert_eq!(*revisions, (1..=session.revision).collect::<Vec<_>>(), "{session:?}");
    }
    assert!(left.iter().filter(|(session, _, records)| !session.ran.is_empty() && records.is_empty()).count() == 0);

    std::fs::remove_dir_all(&store).unwrap();
    let mut serve = Serve::start(dir.path());
    serve.address();
    serve.stop();
    let anew = whole(&store);
    assert_eq!(anew.len(), left.len());
    for (anew, left) in anew.into_iter().zip(left) {
        assert_eq!(anew, left);
    }
    let again = std::fs::read_to_string(dir.path().join("sessions.jsonl")).unwrap();
    assert_eq!(written, again, "the outlet is told nothing again");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_show_and_tail_read_while_serve_writes() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("journal/store");
    let mut serve = Serve::start(dir.path());
    let address = serve.address();
    let mut tail = program()
        .args(["tail", "--json", "--user", "alice@example.com", "--store"])
        .arg(&store)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut agent = Agent::connect(plaintext(address).await, hello("guest", "node-1", 1, 1)).await.unwrap();
    agent.welcome().await.unwrap();
    agent.batch(1, trace::node_records(), u64::MAX).await;
    agent.ack().await.unwrap();
    std::fs::copy(fixture("kas-audit.log"), dir.path().join("audit.log")).unwrap();

    let followed = BufReader::new(tail.stdout.take().unwrap());
    let line = tokio::task::spawn_blocking(move || {
        let mut lines = followed.lines().map(Result::unwrap);
        lines.find(|line| line.contains("cat /etc/hostname") && line.contains(r#""evidence":"unique""#))
    });
    let line = tokio::time::timeout(PATIENCE, line).await.unwrap().unwrap().unwrap();
    tail.kill().unwrap();
    tail.wait().unwrap();
    let session: Session = serde_json::from_str(&line).unwrap();
    assert!(answer(&store, &["sessions", "--user", "alice*"]).contains(&session.id.to_string()[..8]));
    let shown = answer(&store, &["show", &session.id.to_string()]);
    assert!(shown.contains("/bin/cat /etc/hostname") && shown.contains("[exit 3 after"), "{shown}");
    serve.stop();
    assert!(answer(&store, &["show", &session.id.to_string()]).contains("/bin/cat /etc/hostname"));
}
