//! The program itself, as an administrator runs it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use seclog_correlator::join::session::Session;
use std::path::{Path, PathBuf};
use support::client::{Agent, channel, hello, plaintext, request};
use support::pki::Authority;
use support::program::{Running, is_session, kept, program, replay};
use support::{fixture, read, trace};

/// The same, whatever stream told of it.
fn without_attesters(mut sessions: Vec<Session>) -> Vec<Session> {
    for session in &mut sessions {
        session.attesters.clear();
        session.revision = 0;
    }
    sessions
}

fn node_records(dir: &Path) -> PathBuf {
    let path = dir.join("node.jsonl");
    let lines: Vec<String> =
        trace::node_records().iter().map(|record| serde_json::to_string(record).unwrap()).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn replayed(dir: &Path) -> Vec<Session> {
    let node = format!("node-1={}", node_records(dir).display());
    let output = replay(&["--audit", fixture("kas-audit.log").to_str().unwrap(), "--node-records", &node]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(is_session).map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_tells_what_replay_tells() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("sessions.jsonl");
    let authority = Authority::new();
    let files = authority.server_files();
    let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let (cert, key, ca) = (path(&files.cert), path(&files.key), path(&files.client_ca));
    let serve = Running::start(&[
        "--agents-listen=127.0.0.1:0",
        "--audit-webhook-listen=127.0.0.1:0",
        &format!("--tls-cert={cert}"),
        &format!("--tls-key={key}"),
        &format!("--client-ca={ca}"),
        &format!("--output={}", output.display()),
    ]);
    let agents = serve.address("listening for agents");
    let webhook = serve.address("listening for audit webhook");

    let kas = authority.client();
    for body in read("webhook-eventlists.jsonl").lines() {
        let answer = request(webhook, &authority, Some(&kas), "POST", "/?timeout=30s", body.to_owned()).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    let leaf = authority.agent("guest", "node-1");
    let node = channel(agents, &authority, Some(&leaf)).await.unwrap();
    let mut agent = Agent::connect(node, hello("guest", "node-1", 1, 1)).await.unwrap();
    assert_eq!(agent.welcome().await.unwrap(), 0);
    let (mut sequence, mut watermark) = (1, 0);
    for batch in trace::node_records().chunks(50) {
        watermark = watermark.max(batch.iter().map(|record| record.time_unix_ns).max().unwrap());
        agent.batch(sequence, batch.to_vec(), 0).await;
        sequence += batch.len() as u64;
        assert_eq!(agent.ack().await.unwrap(), sequence - 1);
    }
    agent.batch(sequence, Vec::new(), watermark).await;
    agent.ack().await.unwrap();

    assert_eq!(serve.stop(), 0);
    let told = kept(&output);
    assert_eq!(told[0].attesters, ["audit/webhook", "node/node-1"]);
    assert_eq!(without_attesters(told), without_attesters(replayed(dir.path())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_written_while_the_program_runs() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit.log");
    let output = dir.path().join("sessions.jsonl");
    let serve = Running::start(&[
        "--agents-listen=127.0.0.1:0",
        "--plaintext",
        &format!("--audit-log={}", log.display()),
        &format!("--output={}", output.display()),
    ]);
    let agents = serve.address("listening for agents");
    let mut agent = Agent::connect(plaintext(agents).await, hello("guest", "node-1", 1, 1)).await.unwrap();
    agent.welcome().await.unwrap();
    agent.batch(1, trace::node_records(), u64::MAX).await;
    agent.ack().await.unwrap();
    std::fs::copy(fixture("kas-audit.log"), &log).unwrap();
    let exec = "cat /etc/hostname";
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let written = std::fs::read_to_string(&output).unwrap();
        if written.lines().any(|line| line.contains(exec) && line.contains("\"unique\"")) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{written}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(serve.stop(), 0);
    let told = kept(&output);
    assert_eq!(without_attesters(told), without_attesters(replayed(dir.path())));
}

#[test]
fn replay_is_the_same_to_the_byte_and_in_the_order_of_time() {
    let dir = tempfile::tempdir().unwrap();
    let node = format!("node-1={}", node_records(dir.path()).display());
    let (log, lists) = (fixture("kas-audit.log"), fixture("webhook-eventlists.jsonl"));
    let run = |audit: &Path, format: &str| {
        let output = replay(&["--audit", audit.to_str().unwrap(), "--node-records", &node, "--format", format]);
        assert_eq!(output.status.code(), Some(0));
        output.stdout
    };
    assert_eq!(run(&log, "json"), run(&log, "json"));
    assert_eq!(run(&log, "json"), run(&lists, "json"));
    assert_eq!(run(&log, "table"), run(&lists, "table"));
    let starts: Vec<_> = replayed(dir.path()).iter().map(|session| session.start).collect();
    assert!(starts.is_sorted());
}

#[test]
fn malformed_lines_are_named_counted_and_make_exit_status_1() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mixed.log");
    let good = read("kas-audit.log");
    let first = good.lines().next().unwrap();
    std::fs::write(&path, format!("{first}\ngarbage\n{good}")).unwrap();
    let output = replay(&["--audit", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stderr).unwrap();
    let place = format!("mixed.log:2: skipped at byte {}", first.len() + 1);
    assert!(log.contains(&place), "{log}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().filter(is_session).count(), 28, "the rest is kept");
}

#[test]
fn what_cannot_run_is_exit_status_2_with_a_reason() {
    let journal = tempfile::tempdir().unwrap();
    let journal = format!("--journal={}", journal.path().display());
    for (args, words) in [
        (&["serve"][..], "--cluster"),
        (&["serve", "--cluster=g", "--audit-log=x"], "--journal"),
        (&["serve", "--cluster=g", &journal], "nothing to take in"),
        (&["serve", "--cluster=g", &journal, "--agents-listen=127.0.0.1:0"], "--plaintext"),
        (&["serve", "--cluster=g", &journal, "--agents-listen=0.0.0.0:0", "--plaintext"], "loopback"),
        (&["serve", "--cluster=g", &journal, "--audit-webhook-listen=127.0.0.1:0"], "--tls-cert"),
        (&["serve", "--cluster=g", "--tls-cert=x"], "--tls-key"),
        (&["replay", "--cluster=g", "--audit=/no/such/file"], "/no/such/file"),
        (&["unknown"], "unrecognized"),
    ] {
        let output = program().args(args).output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {log}");
        assert!(log.contains(words), "{args:?}: {log}");
    }
}
