//! The join's promises, on scenes built by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use proptest::prelude::*;
use seclog_correlator::join::session::{Evidence, Kind, Outcome, Session, State};
use seclog_correlator::join::{Config, Input, Join, REQUEST_BYTES, Source};
use seclog_proto::v1::ProcessStart;
use seclog_proto::v1::node_record::Detail;
use std::collections::BTreeSet;
use support::attic::MemoryAttic;
use support::scene::{BASE, Kept, MS, SECOND, ask, debug, nameless, node_loss, pod_status, tree};

fn joined(inputs: impl IntoIterator<Item = Input>) -> Vec<Session> {
    let mut join = Join::new(Config::new("guest"));
    let mut kept = Kept::default();
    for input in inputs {
        kept.take(join.apply(input));
    }
    kept.take(join.finish());
    kept.sessions()
}

fn evidence(sessions: &[Session]) -> Vec<Evidence> {
    sessions.iter().map(|session| session.evidence).collect()
}

const UID: &str = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";

fn marked(argv: &[&str]) -> Vec<String> {
    ["env".to_owned(), format!("SPO_EXEC_REQUEST_UID={UID}")]
        .into_iter()
        .chain(argv.iter().map(|argument| (*argument).to_owned()))
        .collect()
}

fn marked_tree(pid: u32, argv: &[&str], at: u64) -> Vec<Input> {
    let argv = marked(argv);
    tree(pid, &argv.iter().map(String::as_str).collect::<Vec<_>>(), at).inputs()
}

#[test]
fn unique_is_not_asserted_when_lineage_was_lost_in_the_window() {
    let scene = |source| {
        let mut inputs = ask("alice", &["sh"], BASE).stages();
        inputs.extend(tree(100, &["sh"], BASE + 200 * MS).inputs());
        inputs.push(node_loss(source, BASE, BASE + SECOND));
        joined(inputs)
    };
    let sessions = scene("lineage_ring");
    assert_eq!(evidence(&sessions), [Evidence::Ambiguous, Evidence::Ambiguous]);
    assert_eq!(sessions[0].candidates[0].session, sessions[1].id);
    assert!(sessions[0].ran.is_empty(), "nothing is asserted");
    assert_eq!(sessions[0].losses.len(), 1);

    let sessions = scene("verdict_ring");
    assert_eq!(evidence(&sessions), [Evidence::Unique], "lost verdicts do not touch membership");
    assert_eq!(sessions[0].losses[0].count, Some(3), "but the session names them");
}

#[test]
fn unique_is_not_asserted_when_audit_events_were_lost_in_the_window() {
    let mut inputs = ask("alice", &["sh"], BASE).stages();
    inputs.extend(tree(100, &["sh"], BASE + 200 * MS).inputs());
    inputs.push(Input::AuditLoss {
        source: "webhook".into(),
        reason: "events that could not be read".into(),
        from: BASE - SECOND,
        until: BASE + SECOND,
        count: None,
    });
    assert_eq!(evidence(&joined(inputs)), [Evidence::Ambiguous, Evidence::Ambiguous]);
}

#[test]
fn exact_needs_the_identifier_to_be_in_one_request_and_one_root() {
    let alice = || ask("alice", &["sh"], BASE).uid(UID).stages();
    let root = |pid, after| marked_tree(pid, &["sh"], BASE + after);
    assert_eq!(evidence(&joined(alice().into_iter().chain(root(100, 200 * MS)))), [Evidence::Exact]);

    let two_roots = alice().into_iter().chain(root(100, 200 * MS)).chain(root(200, 300 * MS));
    assert_eq!(evidence(&joined(two_roots)), [Evidence::Ambiguous; 3]);

    // A client that repeats an identifier that it has seen, in another pod's audit record or its own.
    let mut mallory = ask("mallory", &["id"], BASE + 5 * SECOND).uid(UID);
    mallory.audit_id = "m".into();
    let two_requests = alice().into_iter().chain(root(100, 200 * MS)).chain(mallory.stages());
    let sessions = joined(two_requests);
    assert_ne!(sessions[0].evidence, Evidence::Exact, "{:?}", sessions[0].reasons);
}

#[test]
fn an_identifier_in_argv_that_does_not_explain_the_request_proves_nothing() {
    let inputs = ask("alice", &["sh"], BASE).uid(UID).stages();
    let sessions = joined(inputs.into_iter().chain(marked_tree(100, &["bash"], BASE + 200 * MS)));
    assert_eq!(evidence(&sessions), [Evidence::AuditOnly, Evidence::NodeOnly]);
}

#[test]
fn a_node_that_does_not_run_the_pod_is_a_finding_and_no_evidence() {
    let mut inputs = pod_status("node-2", &["probe"]);
    inputs.extend(ask("alice", &["sh"], BASE).uid(UID).stages());
    inputs.extend(marked_tree(100, &["sh"], BASE + 200 * MS));
    let sessions = joined(inputs);
    assert_eq!(evidence(&sessions), [Evidence::Ambiguous, Evidence::Ambiguous]);
    assert!(sessions[1].findings[0].text.contains("runs on node-2"), "{:?}", sessions[1].findings);
}

#[test]
fn a_session_that_stays_open_lays_no_claim_to_later_execs_of_the_same_command() {
    let mut inputs = ask("alice", &["sh"], BASE).open().stages();
    inputs.extend(tree(100, &["sh"], BASE + 200 * MS).inputs());
    for number in 1..4 {
        let at = BASE + number * 600 * SECOND;
        inputs.extend(ask("bob", &["sh"], at).stages());
        inputs.extend(tree(1000 * number as u32, &["sh"], at + 200 * MS).inputs());
    }
    let sessions = joined(inputs);
    assert_eq!(evidence(&sessions), [Evidence::Unique; 4]);
    assert_eq!(sessions[0].state, State::Open);
}

#[test]
fn a_root_whose_containers_names_come_later_is_matched_then() {
    let mut inputs = ask("alice", &["sh"], BASE).stages();
    inputs.extend(tree(100, &["sh"], BASE + 200 * MS).inputs().into_iter().map(nameless));
    let sessions = joined(inputs);
    assert_eq!(evidence(&sessions), [Evidence::AuditOnly, Evidence::NodeOnly]);
    assert!(sessions[1].reasons.iter().any(|reason| reason.contains("names")), "{:?}", sessions[1].reasons);

    let mut inputs = ask("alice", &["sh"], BASE).stages();
    inputs.extend(tree(100, &["sh"], BASE + 200 * MS).inputs().into_iter().map(nameless));
    inputs.extend(tree(200, &["server"], BASE - SECOND).entry("start").inputs());
    assert_eq!(evidence(&joined(inputs)), [Evidence::Unique]);
}

#[test]
fn one_audit_id_used_for_two_requests_makes_two_sessions() {
    let mut first = ask("alice", &["sh"], BASE);
    let mut second = ask("mallory", &["id"], BASE + 10 * SECOND);
    first.audit_id = "same".into();
    second.audit_id = "same".into();
    let sessions = joined(first.stages().into_iter().chain(second.stages()));
    let users: Vec<&str> = sessions.iter().map(|session| session.user.as_ref().unwrap().username.as_str()).collect();
    assert_eq!(users, ["alice", "mallory"]);
}

#[test]
fn only_the_last_source_address_is_observed() {
    let sessions = joined(ask("alice", &["sh"], BASE).stages());
    let request = sessions[0].request.as_ref().unwrap();
    assert_eq!(request.source_ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(request.claimed_source_ips, ["203.0.113.1"]);
}

#[test]
fn stages_that_differ_are_a_finding() {
    let alice = ask("alice", &["sh"], BASE);
    let mut liar = alice.clone();
    liar.code = 403;
    let sessions = joined(alice.stages().into_iter().chain(liar.stages()));
    assert!(sessions[0].findings[0].text.contains("differ"), "{:?}", sessions[0].findings);
}

/// alice runs it through nodes/proxy.
fn kubelet_run(command: &str) -> Vec<Input> {
    support::scene::audit(serde_json::json!({
        "auditID": "a", "stage": "ResponseComplete", "verb": "create", "user": {"username": "alice"},
        "requestURI": format!("/api/v1/nodes/node-1/proxy/run/shop/web/app?cmd={command}"),
        "objectRef": {"resource": "nodes", "subresource": "proxy", "name": "node-1"}, "responseStatus": {"code": 200},
        "requestReceivedTimestamp": "2026-01-01T00:00:00Z", "stageTimestamp": "2026-01-01T00:00:01Z",
    }))
}

#[test]
fn a_run_with_a_probes_command_is_not_told_apart_from_the_probe() {
    let mut inputs = pod_status("node-1", &["/bin/probe"]);
    inputs.extend(kubelet_run("/bin/probe"));
    inputs.extend(tree(100, &["/bin/probe"], BASE + 200 * MS).entry("exec_sync").inputs());
    let sessions = joined(inputs);
    assert_eq!(evidence(&sessions), [Evidence::Ambiguous, Evidence::Ambiguous]);
    assert_eq!(sessions[0].kind, Kind::NodeProxy);
    assert!(sessions[0].reasons[0].contains("probe"), "{:?}", sessions[0].reasons);
}

#[test]
fn a_command_that_recurs_as_probes_do_is_told_once_where_no_record_shows_the_pods_spec() {
    let run = |number: u64, argv: &[&str]| {
        tree(100 * (number as u32 + 1), argv, BASE + number * 10 * SECOND).entry("exec_sync").inputs()
    };
    let scene = || (0..5).flat_map(|number| run(number, &["/bin/check"])).chain(run(9, &["id"])).collect::<Vec<_>>();
    let sessions = joined(scene());
    let told: Vec<_> = sessions.iter().filter(|session| session.kind == Kind::NodeEntry).collect();
    assert_eq!(told.len(), 2, "the first of each command: {sessions:#?}");
    let codes = told.iter().flat_map(|session| &session.findings).map(|note| note.code.as_str());
    assert_eq!(codes.collect::<Vec<_>>(), ["unexplained-sync-exec"; 2]);
    assert!(told[0].reasons[0].contains("no audit record showed the pod's spec"), "{:?}", told[0].reasons);

    // Whatever comes first: the earliest is told.
    let backwards = joined(scene().into_iter().rev());
    let told_then: Vec<_> = backwards.iter().filter(|session| session.kind == Kind::NodeEntry).collect();
    assert_eq!(
        told_then.iter().map(|session| session.id).collect::<Vec<_>>(),
        told.iter().map(|session| session.id).collect::<Vec<_>>()
    );

    // With the spec it is known what is a probe, and what recurs without being one is told each time.
    let known = joined(pod_status("node-1", &["/bin/other"]).into_iter().chain(scene()));
    assert_eq!(known.iter().filter(|session| session.kind == Kind::NodeEntry).count(), 6);
    assert!(known.iter().flat_map(|session| &session.findings).all(|note| note.code.as_str() == "entry-without-audit"));
}

#[test]
fn a_run_through_the_kubelet_of_a_command_that_recurs_is_not_told_apart_from_a_probe() {
    let scene = |others: &[u32]| {
        let mut inputs = kubelet_run("/bin/check");
        inputs.extend(tree(100, &["/bin/check"], BASE + 200 * MS).entry("exec_sync").inputs());
        for pid in others {
            inputs.extend(tree(*pid, &["/bin/check"], BASE + 60 * SECOND).entry("exec_sync").inputs());
        }
        joined(inputs)
    };
    assert_eq!(evidence(&scene(&[])), [Evidence::Unique]);
    let sessions: Vec<Session> = scene(&[200]).into_iter().filter(|session| session.kind != Kind::Probe).collect();
    assert_eq!(evidence(&sessions), [Evidence::Ambiguous, Evidence::Ambiguous]);
    assert!(sessions[0].reasons[0].contains("recurs"), "{:?}", sessions[0].reasons);
}

#[test]
fn an_attach_names_the_containers_main_process_and_claims_nothing_that_ran() {
    let mut inputs = tree(50, &["server"], BASE - 60 * SECOND).entry("start").inputs();
    inputs.truncate(2);
    // Without a debug request of hers before it, alice's attach is an attach.
    inputs.extend(debug("alice", "app", BASE).split_off(1));
    let sessions = joined(inputs);
    assert_eq!((sessions.len(), sessions[0].kind, sessions[0].evidence), (1, Kind::Attach, Evidence::AuditOnly));
    assert_eq!(sessions[0].root.as_ref().unwrap().pid, 50);
    assert!(sessions[0].ran.is_empty());
    assert_eq!(sessions[0].attesters, ["audit/webhook", "node/node-1"]);
}

#[test]
fn verdicts_are_counted_once_however_often_they_come_and_completed_later() {
    let root = tree(100, &["sh"], BASE + 200 * MS);
    let mut inputs = ask("alice", &["sh"], BASE).stages();
    inputs.extend(root.inputs());
    for outcome in ["unknown", "executed", "unknown"] {
        inputs.push(root.verdict("v1", "execve", outcome));
    }
    inputs.push(root.verdict("v2", "clone", ""));
    let verdicts = &joined(inputs)[0].verdicts;
    let counted: Vec<(&str, &str, u64)> =
        verdicts.iter().map(|found| (found.syscall.as_str(), found.outcome.as_str(), found.count)).collect();
    assert_eq!(counted, [("clone", "", 1), ("execve", "executed", 1)]);
}

// === When sessions are written ===

struct Live {
    join: Join,
    kept: Kept,
}

impl Live {
    fn new() -> Self {
        Self { join: Join::new(Config::new("guest")), kept: Kept::default() }
    }

    fn feed(&mut self, inputs: impl IntoIterator<Item = Input>) {
        for input in inputs {
            assert!(self.join.apply(input).is_empty(), "only the clock writes");
        }
    }

    fn now(&mut self, at: u64) -> Vec<Session> {
        let written = self.join.apply(Input::Now(at));
        self.kept.take(written.clone());
        written
    }
}

#[test]
fn a_session_is_written_soon_and_again_when_it_closes() {
    let mut live = Live::new();
    live.now(BASE);
    let alice = ask("alice", &["sh"], BASE);
    live.feed([alice.stage("ResponseStarted", BASE + 10 * MS)]);
    live.feed(tree(100, &["sh"], BASE + 200 * MS).inputs().into_iter().take(1));
    assert!(live.now(BASE + SECOND).is_empty(), "not settled yet");
    let first = live.now(BASE + 3 * SECOND);
    assert_eq!((first.len(), first[0].revision, first[0].state), (1, 1, State::Open));
    assert_eq!(first[0].evidence, Evidence::Unique);
    assert!(live.now(BASE + 4 * SECOND).is_empty(), "nothing new");

    live.feed([alice.stage("ResponseComplete", BASE + 5 * SECOND)]);
    let second = live.now(BASE + 6 * SECOND);
    assert_eq!((second.len(), second[0].revision, second[0].state), (1, 2, State::Closed));
    assert_eq!(second[0].id, first[0].id);

    live.feed(tree(100, &["sh"], BASE + 200 * MS).inputs());
    let third = live.now(BASE + 8 * SECOND);
    assert_eq!(third[0].ran.len(), 2, "late activity revises");
}

#[test]
fn a_root_waits_for_its_request_and_is_a_node_entry_only_then() {
    let mut live = Live::new();
    live.now(BASE);
    live.feed(tree(100, &["sh"], BASE).inputs());
    assert!(live.now(BASE + 40 * SECOND).is_empty(), "a batching webhook may still bring it");
    let entry = live.now(BASE + 46 * SECOND);
    assert_eq!((entry.len(), entry[0].kind), (1, Kind::NodeEntry));

    // It comes all the same: the audit side's id stays, the other is superseded by it.
    live.feed(ask("alice", &["sh"], BASE - 200 * MS).stages());
    live.now(BASE + 47 * SECOND);
    live.now(BASE + 50 * SECOND);
    let sessions = live.kept.sessions();
    assert_eq!((sessions.len(), sessions[0].kind), (1, Kind::Exec));
    assert_ne!(sessions[0].id, entry[0].id);
}

#[test]
fn the_audit_watermark_settles_a_root_without_waiting() {
    let mut live = Live::new();
    live.now(BASE);
    live.feed(tree(100, &["sh"], BASE).inputs());
    live.now(BASE + 3 * SECOND);
    live.feed([Input::Watermark { source: Source::Audit, until: BASE + 2 * SECOND }]);
    assert_eq!(live.now(BASE + 4 * SECOND)[0].kind, Kind::NodeEntry);
}

#[test]
fn a_request_that_nothing_answers_is_told_once_the_nodes_are_past_it() {
    let mut live = Live::new();
    live.now(BASE);
    live.feed(ask("alice", &["/no/such/program"], BASE).stages());
    assert!(live.now(BASE + 3 * SECOND).is_empty());
    live.feed([Input::Watermark { source: Source::Node("node-1".into()), until: BASE + 3 * SECOND }]);
    let told = live.now(BASE + 4 * SECOND);
    assert_eq!((told[0].evidence, told[0].outcome), (Evidence::AuditOnly, Outcome::Accepted));
}

#[test]
fn a_probe_that_was_taken_for_an_entry_is_corrected() {
    let mut live = Live::new();
    live.now(BASE);
    live.feed(tree(100, &["probe"], BASE).entry("exec_sync").inputs());
    assert_eq!(live.now(BASE + 46 * SECOND)[0].kind, Kind::NodeEntry);
    live.feed(pod_status("node-1", &["probe"]));
    let corrected = live.now(BASE + 48 * SECOND);
    assert_eq!((corrected[0].kind, corrected[0].revision), (Kind::Probe, 2));
    assert_eq!(live.join.counters().probes, 1);
}

#[test]
fn finished_sessions_are_let_go_and_stragglers_are_counted() {
    let mut live = Live::new();
    live.now(BASE);
    let alice = ask("alice", &["sh"], BASE);
    live.feed(alice.stages());
    live.feed(tree(100, &["sh"], BASE + 200 * MS).inputs());
    live.now(BASE + 5 * SECOND);
    live.now(BASE + 2000 * SECOND);
    live.feed(alice.stages());
    live.feed(tree(100, &["sh"], BASE + 200 * MS).inputs());
    assert!(live.now(BASE + 2100 * SECOND).is_empty(), "no second revision 1 of what was told and closed");
    assert_eq!(live.join.counters().late, 6);
}

#[test]
fn main_processes_keep_only_their_identity_and_probes_go_first() {
    let mut live = Live::new();
    live.now(BASE);
    live.feed(pod_status("node-1", &["probe"]));
    let mut server = tree(50, &["server"], BASE).entry("start").inputs();
    server.truncate(2);
    live.feed(server);
    for number in 0..20 {
        live.feed(tree(100 + 10 * number, &["probe"], BASE + u64::from(number) * SECOND).entry("exec_sync").inputs());
    }
    live.now(BASE + 30 * SECOND);
    live.now(BASE + 1000 * SECOND);
    live.now(BASE + 2000 * SECOND);
    live.feed(tree(50, &["server"], BASE).entry("start").inputs().into_iter().skip(1).take(1));
    assert!(live.now(BASE + 2100 * SECOND).is_empty());
    assert_eq!((live.join.counters().probes, live.join.counters().late), (20, 1));
    // It still is the container's main process to whoever attaches.
    live.feed(debug("alice", "app", BASE + 2100 * SECOND).split_off(1));
    assert_eq!(live.now(BASE + 2110 * SECOND)[0].root.as_ref().unwrap().pid, 50);
}

#[test]
fn a_full_join_counts_what_it_turns_away() {
    let mut join = Join::new(Config { most_element_bytes: REQUEST_BYTES + 1, ..Config::new("guest") });
    for number in 0..3 {
        for input in ask("alice", &["sh"], BASE + number).stages() {
            join.apply(input);
        }
        for input in tree(100 + 10 * number as u32, &["sh"], BASE).inputs() {
            join.apply(input);
        }
    }
    let counters = join.counters();
    assert_eq!((counters.refused_requests, counters.refused_roots), (4, 8));
}

/// One open session of `programs` programs, with as little memory as the attic allows.
fn crammed(attic: &MemoryAttic, programs: u32) -> Live {
    let mut live = Live::new();
    live.join = Join::new(Config { most_deed_bytes: 1_000, ..Config::new("guest") });
    live.join.set_attic(Box::new(attic.clone()));
    live.now(BASE);
    live.feed(ask("alice", &["sh"], BASE).stages().into_iter().take(1));
    live.feed(tree(100, &["sh"], BASE + 200 * MS).inputs().into_iter().take(1));
    let record = |number: u32| {
        let argv = ["cat", "/etc/hostname"].map(str::to_owned).to_vec();
        let start = ProcessStart { filename: "/bin/cat".to_owned(), argv, ..ProcessStart::default() };
        let Input::Node { node, mut record } = tree(100, &["sh"], BASE + 200 * MS).inputs().remove(0) else { panic!() };
        record.id = format!("{}-{number}", record.id);
        (record.pid, record.start_boottime_ns) = (200 + number, record.start_boottime_ns + 1);
        record.time_unix_ns = BASE + SECOND + u64::from(number) * MS;
        record.detail = Some(Detail::ProcessStart(start));
        Input::Node { node, record }
    };
    live.feed((0..programs).map(record));
    live
}

fn closed(live: &mut Live) -> Vec<Session> {
    live.feed([ask("alice", &["sh"], BASE).stage("ResponseComplete", BASE + 5 * SECOND)]);
    live.now(BASE + 20 * SECOND)
}

#[test]
fn where_neither_memory_nor_attic_has_room_sessions_say_how_many_programs_are_not_listed() {
    let attic = MemoryAttic::default();
    attic.0.lock().unwrap().is_full = true;
    let mut live = crammed(&attic, 50);
    let told = live.now(BASE + 4 * SECOND);
    assert_eq!((told[0].ran.len(), told[0].ran_not_listed), (51, 0), "what was told is told");
    let counters = live.join.counters();
    assert_eq!((counters.attic_failures, counters.cut, counters.put_away), (1, 1, 0));
    assert_eq!(live.join.take_attic_failure().as_deref(), Some("no room"));
    assert!(live.join.deed_bytes() <= 2_000, "{}", live.join.deed_bytes());
    let told = closed(&mut live);
    assert_eq!((told[0].ran.len(), told[0].ran_not_listed), (0, 51));
    assert_eq!((told[0].evidence, told[0].state), (Evidence::Unique, State::Closed), "whose it is does not rest on it");
}

#[test]
fn an_attic_that_lost_what_was_in_it_costs_the_list_and_nothing_else() {
    let attic = MemoryAttic::default();
    let mut live = crammed(&attic, 50);
    let told = live.now(BASE + 4 * SECOND);
    assert_eq!((told[0].ran.len(), told[0].ran_not_listed), (51, 0));
    assert_eq!((live.join.counters().put_away, live.join.deed_bytes()), (1, 0));
    attic.0.lock().unwrap().held.clear();
    let told = closed(&mut live);
    assert_eq!((told[0].ran.len(), told[0].ran_not_listed, told[0].evidence), (0, 51, Evidence::Unique));
}

// === Order ===

/// A bit of everything, several of it in the same container at the same time.
fn scene() -> Vec<Input> {
    let mut inputs = Vec::new();
    inputs.extend(ask("alice", &["sh"], BASE).stages());
    inputs.extend(tree(100, &["sh"], BASE + 200 * MS).inputs());
    // Two who cannot be told apart.
    inputs.extend(ask("bob", &["same"], BASE + 300 * MS).stages());
    inputs.extend(ask("carol", &["same"], BASE + 320 * MS).stages());
    inputs.extend(tree(200, &["same"], BASE + 500 * MS).inputs());
    inputs.extend(tree(210, &["same"], BASE + 520 * MS).inputs());
    // One with an identifier.
    inputs.extend(ask("dave", &["id"], BASE + 400 * MS).uid(UID).stages());
    inputs.extend(marked_tree(300, &["id"], BASE + 600 * MS));
    // Denied, and again by SPDY.
    for (verb, after) in [("get", 700), ("create", 710)] {
        let mut erin = ask("erin", &["id"], BASE + after * MS);
        (erin.verb, erin.code) = (verb, 403);
        inputs.extend(erin.stages());
    }
    inputs.extend(debug("frank", "dbg", BASE + 800 * MS));
    inputs.extend(tree(400, &["sh"], BASE + 1500 * MS).entry("start").container("dbg").inputs());
    inputs.extend(tree(500, &["ls"], BASE + 2 * SECOND).inputs());
    inputs.extend(pod_status("node-1", &["probe"]));
    inputs.extend(tree(600, &["probe"], BASE + 3 * SECOND).entry("exec_sync").inputs());
    // Its container's names come with another record of the container only.
    inputs.extend(ask("heidi", &["date"], BASE + 30 * SECOND).stages());
    inputs.extend(tree(800, &["date"], BASE + 30 * SECOND + 200 * MS).inputs().into_iter().map(nameless));
    // Lost records touch one of them.
    inputs.extend(ask("grace", &["top"], BASE + 60 * SECOND).stages());
    inputs.extend(tree(700, &["top"], BASE + 60 * SECOND + 200 * MS).inputs());
    inputs.push(node_loss("lineage_ring", BASE + 60 * SECOND, BASE + 61 * SECOND));
    inputs
}

#[test]
fn the_scene_holds_every_evidence() {
    let found: BTreeSet<Evidence> = joined(scene()).iter().map(|session| session.evidence).collect();
    assert_eq!(found.len(), 5);
}

fn order() -> impl Strategy<Value = Vec<usize>> {
    Just((0..scene().len()).collect::<Vec<usize>>()).prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_order_ends_in_the_same_sessions(
        order in order(),
        clock in proptest::collection::vec(0u64..90, 0..40),
        twice: bool,
    ) {
        let mut inputs: Vec<Option<Input>> = scene().into_iter().map(Some).collect();
        let again: Vec<Input> = if twice { scene() } else { Vec::new() };
        let mut clock = clock;
        clock.sort_unstable();
        let mut ticks = clock.into_iter();
        let mut shuffled = Vec::new();
        for at in order {
            shuffled.extend(inputs[at].take());
            // The clock goes on while records come in whatever order: preliminary revisions are written.
            if at % 2 == 0 {
                shuffled.extend(ticks.next().map(|tick| Input::Now(BASE + tick * SECOND)));
            }
        }
        shuffled.extend(again);
        prop_assert_eq!(joined(shuffled), joined(scene()));
    }

    #[test]
    fn without_memory_for_what_programs_did_the_same_revisions_are_told(
        order in order(),
        clock in proptest::collection::vec(0u64..4000, 20..40),
    ) {
        let mut inputs: Vec<Option<(Input, Input)>> = scene().into_iter().zip(scene()).map(Some).collect();
        let mut clock = clock;
        clock.sort_unstable();
        let mut ticks = clock.into_iter();
        let attic = MemoryAttic::default();
        let mut tight = Join::new(Config { most_deed_bytes: 0, ..Config::new("guest") });
        tight.set_attic(Box::new(attic.clone()));
        let mut roomy = Join::new(Config { most_deed_bytes: usize::MAX, ..Config::new("guest") });
        for at in order {
            let tick = ticks.next().map(|tick| BASE + tick * SECOND);
            let tick = tick.map(|tick| (Input::Now(tick), Input::Now(tick)));
            for (one, other) in inputs[at].take().into_iter().chain(tick) {
                prop_assert_eq!(tight.apply(one), roomy.apply(other));
                prop_assert_eq!(tight.take_findings(), roomy.take_findings());
            }
        }
        let (one, other) = (tight.finish(), roomy.finish());
        prop_assert_eq!(one, other);
        prop_assert!(tight.counters().put_away > 0, "the attic was used");
        prop_assert_eq!(roomy.counters().put_away, 0);
        // Late by more than the horizon: everything is let go, and nothing stays behind.
        for after in [4000u64, 6000, 100_000] {
            for join in [&mut tight, &mut roomy] {
                join.apply(Input::Now(BASE + after * SECOND));
            }
        }
        prop_assert_eq!(attic.0.lock().unwrap().held.len(), 0);
        prop_assert_eq!((tight.deed_bytes(), roomy.deed_bytes()), (0, 0));
    }
}
