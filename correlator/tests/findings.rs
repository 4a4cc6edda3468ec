//! Findings: each has its line and stands in its session, and the documents name what the code writes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use seclog_correlator::join::finding::{Code, Finding};
use seclog_correlator::join::session::Session;
use seclog_correlator::join::{Config, Input, Join, Route, Source};
use seclog_proto::v1::node_record::Detail;
use seclog_proto::v1::{CgroupMove, NodeRecord, VerdictCount};
use serde_json::Value;
use std::collections::BTreeSet;
use support::scene::{BASE, MS, SECOND, Tree, ask, tree};

fn joined(inputs: impl IntoIterator<Item = Input>) -> (Vec<Session>, Vec<Finding>) {
    let mut join = Join::new(Config::new("guest"));
    for input in inputs {
        join.apply(input);
    }
    let sessions = join.finish();
    (sessions, join.take_findings())
}

fn codes(findings: &[Finding]) -> BTreeSet<Code> {
    findings.iter().map(|finding| finding.code).collect()
}

fn with_detail(input: Input, id: &str, detail: Detail) -> Input {
    match input {
        Input::Node { node, record } => {
            Input::Node { node, record: NodeRecord { id: id.to_owned(), detail: Some(detail), ..record } }
        }
        other => other,
    }
}

/// The id of the start that a tree's record tells of.
fn started(input: &Input) -> String {
    match input {
        Input::Node { record, .. } => record.id.clone(),
        other => panic!("{other:?}"),
    }
}

fn verdict_of(tree: &Tree, id: &str, start: &Input) -> Input {
    match tree.verdict(id, "execve", "executed") {
        Input::Node { node, mut record } => {
            if let Some(Detail::Verdict(verdict)) = &mut record.detail {
                verdict.target_id = started(start);
            }
            Input::Node { node, record }
        }
        other => other,
    }
}

fn lease(node: &str, at: u64) -> Vec<Input> {
    let time = seclog_proto::rfc3339::format(at);
    let event = serde_json::json!({
        "kind": "Event", "auditID": format!("{node} {at}"), "verb": "update", "responseStatus": {"code": 200},
        "user": {"username": format!("system:node:{node}")},
        "objectRef": {"apiGroup": "coordination.k8s.io", "resource": "leases", "namespace": "kube-node-lease", "name": node},
        "requestReceivedTimestamp": time, "stageTimestamp": time,
    });
    let text = format!("{event}\n");
    let batch = seclog_correlator::audit::Feed::default().lines(text.as_bytes());
    batch.events.into_iter().flat_map(|event| event.inputs(Route::File)).collect()
}

/// Minutes of two nodes that renew their leases; agents speak for `with_agent`.
fn minutes(join: &mut Join, minutes: std::ops::Range<u64>, with_agent: &[&str]) {
    for minute in minutes {
        let now = BASE + minute * 60 * SECOND;
        join.apply(Input::Now(now));
        for node in ["node-1", "node-2"] {
            lease(node, now).into_iter().for_each(|input| drop(join.apply(input)));
        }
        for node in with_agent {
            join.apply(Input::Watermark { source: Source::Node((*node).into()), until: now });
        }
    }
}

#[test]
fn a_node_that_lives_without_an_agent_is_a_finding_where_others_have_one() {
    let mut join = Join::new(Config::new("guest"));
    minutes(&mut join, 0..10, &["node-1"]);
    assert_eq!(without_agent(&mut join), [], "an agent may take its time to start");
    minutes(&mut join, 10..13, &["node-1"]);
    let found = without_agent(&mut join);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].text.starts_with("node node-2 lives"), "{}", found[0].text);
    assert_eq!(found[0].records, ["lease/node-2"]);
    minutes(&mut join, 13..20, &["node-1"]);
    assert_eq!(without_agent(&mut join), [], "once");

    // A request into a pod of that node says why nothing is known.
    let bound = serde_json::json!({
        "verb": "patch", "user": {"username": "system:node:node-2"}, "responseStatus": {"code": 200},
        "objectRef": {"resource": "pods", "subresource": "status", "namespace": "shop", "name": "web"},
        "responseObject": {"kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "uid": "uid-web"}},
    });
    support::scene::audit(bound).into_iter().for_each(|input| drop(join.apply(input)));
    let request = ask("alice", &["sh"], BASE + 20 * 60 * SECOND).stages();
    request.into_iter().for_each(|input| drop(join.apply(input)));
    let sessions = join.finish();
    let why = &sessions[0].reasons;
    assert!(why.iter().any(|why| why == "no agent speaks for node node-2, which lives and runs the pod"), "{why:?}");

    let mut none = Join::new(Config::new("guest"));
    minutes(&mut none, 0..20, &[]);
    assert_eq!(without_agent(&mut none), [], "where no agent is wanted none is missing");
}

fn without_agent(join: &mut Join) -> Vec<Finding> {
    join.take_findings().into_iter().filter(|finding| finding.code == Code::NodeWithoutAgent).collect()
}

#[test]
fn of_a_silent_agent_it_is_told_whether_its_node_lives() {
    let silent = |renewed: u64| {
        let mut join = Join::new(Config::new("guest"));
        minutes(&mut join, 0..1, &["node-1"]);
        minutes(&mut join, 1..renewed, &[]);
        join.apply(Input::Now(BASE + 10 * 60 * SECOND));
        let found = join.take_findings();
        found.into_iter().rfind(|finding| finding.code == Code::NodeSilent).unwrap().text
    };
    assert!(silent(1).ends_with("the node does not renew its lease either"), "{}", silent(1));
    assert!(silent(10).ends_with("its agent is stopped or cut off"), "{}", silent(10));
}

#[test]
fn a_move_to_another_cgroup_is_a_finding_and_changes_nothing_else() {
    let mut inputs = ask("alice", &["sh"], BASE).stages();
    let root = tree(100, &["sh"], BASE + 200 * MS);
    inputs.extend(root.inputs());
    let moved = CgroupMove { to_cgroup_path: "/".to_owned(), moved_by_pid: 101, ..Default::default() };
    inputs.push(with_detail(root.verdict("x", "", ""), "m1", Detail::CgroupMove(moved)));
    let (sessions, findings) = joined(inputs);
    assert_eq!(codes(&findings), BTreeSet::from([Code::CgroupMove]));
    assert_eq!(
        (findings[0].session, findings[0].records.as_slice()),
        (Some(sessions[0].id), ["m1".to_owned()].as_slice())
    );
    assert_eq!(sessions[0].findings[0].id, findings[0].id);
}

#[test]
fn a_start_without_verdict_where_others_have_theirs_is_suppressed() {
    let first = tree(100, &["sh"], BASE);
    let second = tree(200, &["sh"], BASE + 60 * SECOND);
    let scene = |all: bool| {
        let (one, two) = (first.inputs(), second.inputs());
        let mut inputs = vec![verdict_of(&first, "v1", &one[0]), verdict_of(&first, "v2", &one[1])];
        inputs.push(verdict_of(&second, "v3", &two[0]));
        inputs.extend(all.then(|| verdict_of(&second, "v4", &two[1])));
        inputs.into_iter().chain(one).chain(two)
    };
    let (_, findings) = joined(scene(true));
    assert!(!codes(&findings).contains(&Code::VerdictSuppressed), "{findings:?}");
    let (_, findings) = joined(scene(false));
    let suppressed: Vec<&Finding> = findings.iter().filter(|finding| finding.code == Code::VerdictSuppressed).collect();
    assert_eq!(suppressed.len(), 1);
    assert_eq!(suppressed[0].records, [started(&second.inputs()[1])]);
}

#[test]
fn counts_without_detail_stand_in_the_session_whose_container_and_time_they_are_of() {
    let root = tree(100, &["sh"], BASE + 200 * MS);
    let count = |id: &str, at: u64| {
        let count = VerdictCount {
            syscall_name: "clone".to_owned(),
            action: "log".to_owned(),
            count: 7,
            first_unix_ns: at,
            last_unix_ns: at,
            ..Default::default()
        };
        with_detail(root.verdict("x", "", ""), id, Detail::VerdictCount(count))
    };
    let mut inputs = ask("alice", &["sh"], BASE).stages();
    inputs.push(count("o1", BASE + 210 * MS));
    inputs.extend(root.inputs());
    inputs.push(count("o2", BASE + 100 * SECOND));
    let (sessions, findings) = joined(inputs);
    let counts = &sessions[0].verdicts_without_detail;
    assert_eq!((counts.len(), counts[0].count, counts[0].record.as_str()), (1, 7, "o1"));
    assert_eq!(codes(&findings), BTreeSet::from([Code::CoverageLost]));
}

#[test]
fn a_request_that_only_one_of_two_routes_brought_is_a_finding() {
    let by = |route: Route, at: u64| {
        ask("alice", &["sh"], at).stages().into_iter().map(move |input| match input {
            Input::Audit { event, .. } => Input::Audit { route, event },
            other => other,
        })
    };
    let both = |at: u64| by(Route::File, at).chain(by(Route::Webhook, at));
    let (sessions, findings) =
        joined(both(BASE).chain(by(Route::File, BASE + 100 * SECOND)).chain(both(BASE + 300 * SECOND)));
    let alone: Vec<&Finding> = findings.iter().filter(|finding| finding.code == Code::OneRouteOnly).collect();
    assert_eq!(alone.len(), 1, "{findings:?}");
    assert_eq!(alone[0].session, Some(sessions[1].id));
}

#[test]
fn a_node_that_falls_silent_is_told_once_and_nobody_waits_for_it() {
    let mut join = Join::new(Config::new("guest"));
    let source = seclog_correlator::join::Source::Node("node-1".into());
    join.apply(Input::Now(BASE));
    join.apply(Input::Watermark { source, until: BASE });
    for input in ask("alice", &["sh"], BASE).stages() {
        join.apply(input);
    }
    assert!(join.apply(Input::Now(BASE + 20 * SECOND)).is_empty(), "the node may still tell");
    let told = join.apply(Input::Now(BASE + 40 * SECOND));
    join.apply(Input::Now(BASE + 50 * SECOND));
    assert!(told[0].reasons.iter().any(|reason| reason.contains("nothing is heard of node node-1")), "{:?}", told[0]);
    assert_eq!(codes(&join.take_findings()), BTreeSet::from([Code::NodeSilent]));
}

// === The documents ===

fn document(name: &str) -> String {
    std::fs::read_to_string(format!("{}/../docs/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn fields(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                into.insert(name.clone());
                fields(value, into);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| fields(value, into)),
        _ => {}
    }
}

#[test]
fn every_field_that_is_written_and_every_code_is_documented() {
    let text = document("sessions.md");
    let golden =
        std::fs::read_to_string(format!("{}/tests/golden/recordings.jsonl", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let mut names = BTreeSet::new();
    for line in golden.lines() {
        fields(&serde_json::from_str(line).unwrap(), &mut names);
    }
    let missing: Vec<&String> = names.iter().filter(|name| !text.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let codes = Code::ALL.iter().map(|code| code.as_str());
    let missing: Vec<&str> = codes.filter(|code| !text.contains(&format!("`{code}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_default_in_the_document_is_the_codes() {
    let config = Config::new("c");
    let text = document("join.md");
    for (name, seconds) in [
        ("skew_ns", config.skew_ns),
        ("max_skew_ns", config.max_skew_ns),
        ("slack_ns", config.slack_ns),
        ("start_within_ns", config.start_within_ns),
        ("debug_start_within_ns", config.debug_start_within_ns),
        ("settle_ns", config.settle_ns),
        ("revise_after_ns", config.revise_after_ns),
        ("revise_at_least_every_ns", config.revise_at_least_every_ns),
        ("node_patience_ns", config.node_patience_ns),
        ("node_silent_ns", config.node_silent_ns),
        ("audit_silent_ns", config.audit_silent_ns),
        ("audit_lateness_ns", config.audit_lateness_ns),
        ("audit_retries_ns", config.audit_retries_ns),
        ("horizon_ns", config.horizon_ns),
        ("longest_ns", config.longest_ns),
    ] {
        let row = format!("| `{name}` | {} s |", seconds / SECOND);
        assert!(text.contains(&row), "{row}");
    }
}
