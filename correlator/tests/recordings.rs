//! The recordings of a real cluster: every event is understood, and every access comes out as it happened.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use proptest::prelude::*;
use seclog_correlator::audit::{Feed, Kept};
use seclog_correlator::join::session::{Evidence, Kind, Outcome, Session, State};
use seclog_correlator::join::{Input, Route};
use seclog_correlator::outlet::table;
use seclog_correlator::replay::{Reader, Replay};
use support::{fixture, read, trace};

fn replayed(audit: &str) -> Replay {
    let mut reader = Reader::new("guest");
    reader.audit_file(&fixture(audit)).unwrap();
    for record in trace::node_records() {
        reader.apply(Input::Node { node: "node-1".into(), record });
    }
    reader.finish()
}

/// One line of the fixtures' table: what a correct correlator says.
struct Row {
    name: &'static str,
    /// Time of day at which it begins.
    start: &'static str,
    kind: Kind,
    evidence: Evidence,
    outcome: Outcome,
    /// "" where nobody is known.
    user: &'static str,
    place: &'static str,
    /// Joined by `|`.
    asked: &'static str,
    tty: bool,
    /// Each argv joined by `|`; `+` in front: after close.
    ran: &'static [&'static str],
}

const WEB: &str = "shop/web-7c9d8f6b5-x2x7k/app";
const AFTER: &str = "sh|-c|(/bin/sleep 3; /bin/ls /) >/dev/null 2>&1 </dev/null &";
const UID: &str = "SPO_EXEC_REQUEST_UID=";

const EXEC: Row = Row {
    name: "",
    start: "",
    kind: Kind::Exec,
    evidence: Evidence::Unique,
    outcome: Outcome::Accepted,
    user: "alice@example.com",
    place: WEB,
    asked: "",
    tty: false,
    ran: &[],
};

const HALF: Row = Row { evidence: Evidence::Ambiguous, asked: "sh|-c|/bin/sleep 2; /bin/id", ..EXEC };
const TREE: &[&str] = &["sh|-c|/bin/sleep 2; /bin/id", "/bin/sleep|2", "/bin/id"];
const ENTRY: Row = Row {
    kind: Kind::NodeEntry,
    evidence: Evidence::NodeOnly,
    outcome: Outcome::Unrequested,
    user: "",
    ran: &["/bin/id"],
    ..EXEC
};
const EXACT: Row = Row { evidence: Evidence::Exact, ..EXEC };

const ROWS: &[Row] = &[
    Row {
        name: "exec-ws",
        start: "22:30:04.19",
        asked: "sh|-c|/bin/id; /bin/cat /etc/hostname; exit 3",
        ran: &["sh|-c|/bin/id; /bin/cat /etc/hostname; exit 3", "/bin/id", "/bin/cat|/etc/hostname"],
        ..EXEC
    },
    Row {
        name: "exec-default-container",
        start: "22:30:05.98",
        asked: "echo|hello world",
        ran: &["echo|hello world"],
        ..EXEC
    },
    Row {
        name: "exec-denied",
        start: "22:30:07.797",
        user: "bob@example.com",
        evidence: Evidence::AuditOnly,
        outcome: Outcome::Denied,
        asked: "id",
        ..EXEC
    },
    Row {
        name: "exec-impersonated-denied",
        start: "22:30:09.397",
        user: "system:admin as bob@example.com",
        evidence: Evidence::AuditOnly,
        outcome: Outcome::Denied,
        asked: "id",
        ..EXEC
    },
    Row {
        name: "exec-impersonated",
        start: "22:30:11.01",
        user: "system:admin as carol@example.com",
        place: "shop/web-7c9d8f6b5-x2x7k/sidecar",
        asked: "id",
        ran: &["id"],
        ..EXEC
    },
    Row {
        name: "exec-not-found",
        start: "22:30:12.80",
        evidence: Evidence::AuditOnly,
        asked: "/no/such/program",
        ..EXEC
    },
    Row {
        name: "exec-stdin-script",
        start: "22:30:14.54",
        asked: "/bin/sh",
        ran: &["/bin/sh", "/bin/ls|/", "/bin/sleep|1", "/bin/id|-u"],
        ..EXEC
    },
    Row {
        name: "exec-spdy",
        start: "22:30:17.32",
        asked: "sh|-c|/bin/id -u",
        ran: &["sh|-c|/bin/id -u", "/bin/id|-u"],
        ..EXEC
    },
    Row { name: "concurrent-identical, first request", start: "22:30:19.150", user: "system:admin", ..HALF },
    Row { name: "concurrent-identical, second request", start: "22:30:19.171", ..HALF },
    Row {
        name: "concurrent-identical, first tree",
        start: "22:30:19.389",
        outcome: Outcome::Unrequested,
        user: "",
        asked: "",
        ran: TREE,
        ..HALF
    },
    Row {
        name: "concurrent-identical, second tree",
        start: "22:30:19.410",
        outcome: Outcome::Unrequested,
        user: "",
        asked: "",
        ran: TREE,
        ..HALF
    },
    Row {
        name: "rsh-like",
        start: "22:30:23.49",
        kind: Kind::Rsh,
        asked: "/bin/sh|-c|TERM=\"xterm\" /bin/sh -c \"/bin/id; /bin/ls /\"",
        tty: true,
        ran: &[
            "/bin/sh|-c|TERM=\"xterm\" /bin/sh -c \"/bin/id; /bin/ls /\"",
            "/bin/sh|-c|/bin/id; /bin/ls /",
            "/bin/id",
            "/bin/ls|/",
        ],
        ..EXEC
    },
    Row { name: "attach", start: "22:30:25.32", kind: Kind::Attach, evidence: Evidence::AuditOnly, ..EXEC },
    Row {
        name: "port-forward",
        start: "22:30:30.32",
        kind: Kind::PortForward,
        evidence: Evidence::AuditOnly,
        place: "shop/web-7c9d8f6b5-x2x7k",
        ..EXEC
    },
    Row {
        name: "nodeproxy-run",
        start: "22:30:34.32",
        kind: Kind::NodeProxy,
        asked: "/bin/id",
        ran: &["/bin/id"],
        ..EXEC
    },
    Row { name: "crictl-exec", start: "22:30:36.38", ..ENTRY },
    Row { name: "crictl-exec-sync", start: "22:30:38.13", ..ENTRY },
    Row { name: "nsenter-from-host", start: "22:30:39.86", ..ENTRY },
    Row {
        name: "after-close",
        start: "22:30:40.94",
        asked: AFTER,
        ran: &[AFTER, "/bin/sleep|3", "+/bin/ls|/"],
        ..EXEC
    },
    Row {
        name: "debug-ephemeral",
        start: "22:30:46.29",
        kind: Kind::DebugContainer,
        place: "shop/web-7c9d8f6b5-x2x7k/dbg7",
        asked: "/bin/sh|-c|/bin/id; /bin/sleep 2",
        tty: true,
        ran: &["/bin/sh|-c|/bin/id; /bin/sleep 2", "/bin/id", "/bin/sleep|2"],
        ..EXEC
    },
    Row {
        name: "debug-node",
        start: "22:30:50.98",
        kind: Kind::DebugNode,
        evidence: Evidence::AuditOnly,
        place: "default/node-debugger-node-1-nrn9n/debugger",
        asked: "/bin/sh|-c|/bin/id; /bin/ls /host >/dev/null; /bin/sleep 2",
        tty: true,
        ..EXEC
    },
    Row {
        name: "wh-exec",
        start: "22:31:24.11",
        asked: "sh|-c|/bin/id; /bin/ls / >/dev/null",
        ran: &[
            "env|SPO_EXEC_REQUEST_UID=b9a7e2db-c89d-4326-9dc2-7804d25082d3|sh|-c|/bin/id; /bin/ls / >/dev/null",
            "sh|-c|/bin/id; /bin/ls / >/dev/null",
            "/bin/id",
            "/bin/ls|/",
        ],
        ..EXACT
    },
    Row {
        name: "wh-spoof-child",
        start: "22:31:25.97",
        asked: "sh|-c|SPO_EXEC_REQUEST_UID=00000000-0000-4000-8000-000000000000 /bin/id; env -i /bin/ls / >/dev/null; \
                /bin/true",
        ran: &["sh|-c|SPO_EXEC_REQUEST_UID=63434289-9d32-46c5-a40d-744c2a03016a"],
        ..EXACT
    },
    Row {
        name: "wh-argv-rewrite",
        start: "22:31:27.77",
        asked: "env|SPO_EXEC_REQUEST_UID=11111111-1111-4111-8111-111111111111|/bin/id",
        ran: &["env|SPO_EXEC_REQUEST_UID=8381cf33-4b3b-45a0-8fd9-ac86d72e4d13|/bin/id", "/bin/id"],
        ..EXACT
    },
    Row {
        name: "wh-argv-suppress",
        start: "22:31:29.57",
        asked: "sh|-c|/bin/id|SPO_EXEC_REQUEST_UID=x",
        ran: &["sh|-c|/bin/id|SPO_EXEC_REQUEST_UID=9efbc134-1ffc-467c-a25d-fabd3b47ea7d", "/bin/id"],
        ..EXACT
    },
    Row {
        name: "wh-concurrent, alice",
        start: "22:31:31.367",
        asked: "sh|-c|/bin/sleep 1; /bin/id",
        ran: &[
            "env|SPO_EXEC_REQUEST_UID=3d683dbc-2e00-4739-b294-cc86de20b331|sh|-c|/bin/sleep 1; /bin/id",
            "sh|-c|/bin/sleep 1; /bin/id",
            "/bin/sleep|1",
            "/bin/id",
        ],
        ..EXACT
    },
    Row {
        name: "wh-concurrent, system:admin",
        start: "22:31:31.410",
        user: "system:admin",
        asked: "sh|-c|/bin/sleep 1; /bin/id",
        ran: &[
            "env|SPO_EXEC_REQUEST_UID=d17b8874-b91c-4bbf-af81-8ca2c0545a24|sh|-c|/bin/sleep 1; /bin/id",
            "sh|-c|/bin/sleep 1; /bin/id",
            "/bin/sleep|1",
            "/bin/id",
        ],
        ..EXACT
    },
    Row {
        name: "wh-after-close",
        start: "22:31:34.80",
        asked: AFTER,
        ran: &[
            "env|SPO_EXEC_REQUEST_UID=98a7f22a-4fd8-4803-8ccf-7ce073039aa7|sh|-c|(/bin/sleep 3; /bin/ls /) >/dev/null \
             2>&1 </dev/null &",
            AFTER,
            "/bin/sleep|3",
            "+/bin/ls|/",
        ],
        ..EXACT
    },
    Row {
        name: "wh-down-failed-open",
        start: "22:31:40.65",
        asked: "sh|-c|/bin/id",
        ran: &["sh|-c|/bin/id", "/bin/id"],
        ..EXEC
    },
    Row {
        name: "wh-debug-ephemeral",
        start: "22:31:44.05",
        kind: Kind::DebugContainer,
        place: "shop/web-7c9d8f6b5-x2x7k/dbg8",
        asked: "/bin/sh|-c|/bin/id; /bin/sleep 2",
        tty: true,
        ran: &["/bin/sh|-c|/bin/id; /bin/sleep 2", "/bin/id", "/bin/sleep|2"],
        ..EXACT
    },
    Row {
        name: "debug-node-2",
        start: "22:32:30.26",
        kind: Kind::DebugNode,
        place: "default/node-debugger-node-1-5cwbj/debugger",
        asked: "/bin/sh|-c|/bin/id; /bin/ls /host >/dev/null; /bin/sleep 2; /bin/true",
        tty: true,
        ran: &[
            "/bin/sh|-c|/bin/id; /bin/ls /host >/dev/null; /bin/sleep 2; /bin/true",
            "/bin/id",
            "/bin/ls|/host",
            "/bin/sleep|2",
        ],
        ..EXEC
    },
    Row {
        name: "wh-forged-child",
        start: "22:33:44.28",
        asked: "sh|-c|/bin/true; SPO_EXEC_REQUEST_UID=00000000-0000-4000-8000-000000000000 /bin/id; env -i /bin/ls / \
                >/dev/null; /bin/cat /dev/null",
        ran: &[
            "env|SPO_EXEC_REQUEST_UID=a2273817-91fd-4346-ae9a-bbc3cd7ef02a|sh|-c|/bin/true; \
             SPO_EXEC_REQUEST_UID=00000000-0000-4000-8000-000000000000 /bin/id; env -i /bin/ls / >/dev/null; /bin/cat \
             /dev/null",
            "sh|-c|/bin/true; SPO_EXEC_REQUEST_UID=00000000-0000-4000-8000-000000000000 /bin/id; env -i /bin/ls / \
             >/dev/null; /bin/cat /dev/null",
            "/bin/id",
            "/bin/ls|/",
            "/bin/cat|/dev/null",
        ],
        ..EXACT
    },
];

#[test]
fn every_access_of_the_recording_comes_out_as_it_happened() {
    let replay = replayed("kas-audit.log");
    assert_eq!(replay.malformed, 0);
    for (row, session) in ROWS.iter().zip(&replay.sessions) {
        let name = row.name;
        assert_eq!(session.start.to_string().get(11..11 + row.start.len()), Some(row.start), "{name}");
        assert_eq!(session.kind, row.kind, "{name}");
        assert_eq!(session.evidence, row.evidence, "{name}: {:?}", session.reasons);
        assert_eq!(session.outcome, row.outcome, "{name}");
        assert_eq!(user(session), row.user, "{name}");
        assert_eq!(place(session), row.place, "{name}");
        let request = session.request.as_ref();
        assert_eq!(request.map(|request| request.argv.join("|")).unwrap_or_default(), row.asked, "{name}");
        assert_eq!(request.is_some_and(|request| request.tty), row.tty, "{name}");
        let ran: Vec<String> = session
            .ran
            .iter()
            .map(|ran| format!("{}{}", if ran.after_close { "+" } else { "" }, ran.argv.join("|")))
            .collect();
        assert_eq!(ran, row.ran, "{name}");
        assert_eq!((session.state, session.revision), (State::Closed, 1), "{name}");
        assert!(!session.reasons.is_empty(), "{name}");
    }
    let names = |sessions: &[Session]| sessions.iter().map(|session| session.start.to_string()).collect::<Vec<_>>();
    assert_eq!(replay.sessions.len(), ROWS.len(), "{:?}", names(&replay.sessions));
}

#[test]
fn probes_are_counted_and_are_no_sessions() {
    assert_eq!(replayed("kas-audit.log").join.probes, 38);
}

#[test]
fn neither_half_of_an_ambiguous_pair_is_asserted_and_both_are_named() {
    let sessions = replayed("kas-audit.log").sessions;
    let ambiguous: Vec<&Session> = sessions.iter().filter(|session| session.evidence == Evidence::Ambiguous).collect();
    assert_eq!(ambiguous.len(), 4);
    for session in &ambiguous {
        let others: Vec<_> = session.candidates.iter().map(|candidate| candidate.session).collect();
        let expected: Vec<_> = ambiguous
            .iter()
            .filter(|other| other.user.is_some() != session.user.is_some())
            .map(|other| other.id)
            .collect();
        assert_eq!(others, expected);
    }
}

#[test]
fn a_retry_by_spdy_is_one_attempt_with_two_requests() {
    let sessions = replayed("kas-audit.log").sessions;
    let denied: Vec<&Session> = sessions.iter().filter(|session| session.outcome == Outcome::Denied).collect();
    for session in denied {
        assert_eq!(session.request.as_ref().unwrap().verb, "create");
        assert_eq!(session.other_requests.len(), 1);
        assert_eq!(session.other_requests[0].verb, "get");
    }
}

#[test]
fn findings_and_claims_of_the_recording_are_named() {
    let sessions = replayed("kas-audit.log").sessions;
    let find = |start: &str| sessions.iter().find(|session| session.start.to_string().contains(start)).unwrap();
    let down = find("22:31:40.65");
    assert!(down.findings[0].text.contains("execmetadata.spo.io failed and was passed over"), "{:?}", down.findings);
    let spoofed = find("22:31:25.97");
    assert!(spoofed.findings[0].text.contains("what ran is not what was asked"), "{:?}", spoofed.findings);
    for (start, value) in [("22:31:27.77", "11111111"), ("22:33:44.28", "00000000"), ("22:31:29.57", "\"x\"")] {
        let claims = &find(start).claims;
        assert!(
            claims.iter().any(|claim| claim.contains(&format!("{UID}{value}")) || claim.contains(value)),
            "{claims:?}"
        );
    }
    let entered = find("22:30:39.86");
    assert_eq!(entered.root.as_ref().unwrap().entry, "namespace_entry");
    assert!(entered.reasons[0].contains("process of the host"), "{:?}", entered.reasons);
}

#[test]
fn verdicts_are_counted_with_their_session_and_missing_where_no_profile_logs() {
    let sessions = replayed("kas-audit.log").sessions;
    let count = |start: &str, syscall: &str, outcome: &str| {
        let session = sessions.iter().find(|session| session.start.to_string().contains(start)).unwrap();
        let found = session.verdicts.iter().find(|found| found.syscall == syscall && found.outcome == outcome);
        found.map_or(0, |found| found.count)
    };
    // sh, id, cat; busybox forks twice.
    assert_eq!(count("22:30:04.19", "execve", "executed"), 3);
    assert_eq!(count("22:30:46.29", "execve", "executed"), 0, "the debug container has no profile");
}

#[test]
fn log_and_webhook_tell_the_same_sessions() {
    let (log, webhook) = (replayed("kas-audit.log"), replayed("webhook-eventlists.jsonl"));
    assert_eq!(log.sessions, webhook.sessions);
}

#[test]
fn both_routes_together_tell_each_session_once() {
    let mut reader = Reader::new("guest");
    reader.audit_file(&fixture("kas-audit.log")).unwrap();
    reader.audit_file(&fixture("webhook-eventlists.jsonl")).unwrap();
    for record in trace::node_records().into_iter().chain(trace::node_records()) {
        reader.apply(Input::Node { node: "node-1".into(), record });
    }
    let (twice, once) = (reader.finish(), replayed("kas-audit.log"));
    assert_eq!(twice.sessions, once.sessions);
    assert_eq!(twice.join.repeated_audit_events, 62);
}

#[test]
fn every_recorded_event_is_read() {
    let mut feed = Feed::default();
    for file in ["kas-audit.log", "kas-audit-bulk.log", "webhook-eventlists.jsonl"] {
        let text = read(file);
        let batch = feed.lines(text.as_bytes());
        assert!(batch.malformed.is_empty(), "{file}: {:?}", batch.malformed);
        assert!(batch.total >= text.lines().count() as u64, "{file}");
    }
    let counters = &feed.counters;
    assert_eq!((counters.malformed, counters.access), (0, 124));
    let leases = 2 * 63 + bulk("update", "leases");
    let sampled = counters.kept[&Kept::NodeLease];
    assert_eq!(counters.irrelevant.of("update leases") + sampled, leases);
    assert!(sampled > 0);
    let kept: u64 = counters.kept.values().sum();
    assert_eq!(counters.irrelevant_total() + kept, counters.events);
}

#[test]
fn the_webhooks_events_are_the_logs_events_to_the_digest() {
    let digests = |file: &str| {
        let batch = Feed::default().lines(read(file).as_bytes());
        batch.events.iter().map(|event| format!("{:?}", event.fingerprint)).collect::<std::collections::BTreeSet<_>>()
    };
    let log = digests("kas-audit.log");
    assert!(log.len() > 60);
    assert_eq!(log, digests("webhook-eventlists.jsonl"));
}

fn events_of_access() -> &'static [Vec<u8>] {
    static EVENTS: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    EVENTS.get_or_init(|| {
        let of_access = |line: &&str| line.contains("/exec?") || line.contains("ephemeral") || line.contains("proxy/");
        read("kas-audit.log").lines().filter(of_access).map(|line| line.as_bytes().to_vec()).collect()
    })
}

proptest! {
    #[test]
    fn no_damage_to_an_event_makes_reading_it_panic(
        at: prop::sample::Index,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        length: Option<prop::sample::Index>,
    ) {
        let mut line = at.get(events_of_access()).clone();
        for (place, byte) in damage {
            let place = place.index(line.len());
            line[place] = byte;
        }
        if let Some(length) = length {
            line.truncate(length.index(line.len()));
        }
        let mut reader = Reader::new("guest");
        for event in Feed::default().lines(&line).events {
            event.inputs(Route::Webhook).for_each(|input| reader.apply(input));
        }
        for session in reader.finish().sessions {
            table::render(&session);
        }
    }
}

/// Counted by another reading of the file.
fn bulk(verb: &str, resource: &str) -> u64 {
    read("kas-audit-bulk.log")
        .lines()
        .filter(|line| {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            event["verb"] == verb
                && event["objectRef"]["resource"] == resource
                && event["objectRef"]["subresource"].is_null()
        })
        .count() as u64
}

#[test]
fn the_table_fits_a_terminal() {
    for session in replayed("kas-audit.log").sessions {
        for line in table::render(&session).lines() {
            assert!(line.chars().count() <= 120, "{line}");
            assert!(!line.chars().any(char::is_control), "{line}");
        }
    }
}

fn user(session: &Session) -> String {
    session.user.as_ref().map_or_else(String::new, |user| match &user.impersonated {
        Some(impersonated) => format!("{} as {impersonated}", user.username),
        None => user.username.clone(),
    })
}

fn place(session: &Session) -> String {
    let place = &session.place;
    let pod = format!("{}/{}", place.namespace, place.pod);
    place.container.as_ref().map_or(pod.clone(), |container| format!("{pod}/{container}"))
}

#[test]
fn sessions_name_credentials_addresses_and_what_webhooks_did() {
    let sessions = replayed("kas-audit.log").sessions;
    let at = |start: &str| sessions.iter().find(|session| session.start.to_string().contains(start)).unwrap();
    let user = at("22:30:11.01").user.as_ref().unwrap();
    let certificate = "X509SHA256=e68a07bc4fa6edb96df8144d75aeda0855261e0eeadf618c9f1bb53e3f51fe83";
    assert_eq!(user.credential.as_ref().unwrap().id, [certificate], "{user:?}");
    assert_eq!((user.impersonated.as_deref(), &user.impersonated_credential), (Some("carol@example.com"), &None));
    let plain = at("22:30:04.19");
    assert_eq!(plain.user.as_ref().unwrap().credential, None, "a token of a static file says nothing more");
    let request = plain.request.as_ref().unwrap();
    assert_eq!((request.source_ip.as_deref(), request.claimed_source_ips.len()), (Some("127.0.0.1"), 0));
    assert!(request.webhooks.is_empty(), "none is on yet");

    let marked = at("22:31:24.11").request.as_ref().unwrap();
    assert_eq!(marked.webhooks.len(), 1);
    assert_eq!((marked.webhooks[0].webhook.as_str(), marked.webhooks[0].mutated), ("execmetadata.spo.io", true));

    let passed_over = at("22:31:40").request.as_ref().unwrap();
    assert_eq!(passed_over.webhooks[0].failed_open.as_deref(), Some("mutating"));

    let debug = sessions.iter().find(|s| s.kind == Kind::DebugContainer && s.evidence == Evidence::Exact).unwrap();
    let webhook = &debug.request.as_ref().unwrap().webhooks[0];
    assert_eq!(webhook.patch, ["add /spec/ephemeralContainers/1/env"]);
    assert_eq!(webhook.configuration, "spo-mutating-webhook-configuration");
}
