//! Every code of a finding has a scene that causes it, and the same scene without the cause has no finding.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use seclog_correlator::audit::Feed;
use seclog_correlator::join::finding::{Code, Finding};
use seclog_correlator::join::session::Session;
use seclog_correlator::join::{Config, Input, Join, Route, Source};
use seclog_proto::rfc3339;
use seclog_proto::v1::node_record::Detail;
use seclog_proto::v1::{CgroupMove, Container, NodeRecord};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use support::scene::{BASE, MS, SECOND, Tree, ask, audit, node_loss, pod_status, tree};

const UID: &str = "1b4e28ba-2fa1-11d2-883f-0016d3cca427";

fn joined(inputs: Vec<Input>) -> (Vec<Session>, Vec<Finding>) {
    let mut join = Join::new(Config::new("guest"));
    let mut sessions = Vec::new();
    for input in inputs {
        sessions.extend(join.apply(input));
    }
    sessions.extend(join.finish());
    (sessions, join.take_findings())
}

/// alice's exec as it should be.
fn alice() -> Vec<Input> {
    ask("alice", &["sh"], BASE).stages()
}

fn alices_tree() -> Tree {
    tree(100, &["sh"], BASE + 200 * MS)
}

fn whole() -> Vec<Input> {
    alice().into_iter().chain(alices_tree().inputs()).collect()
}

fn changed(inputs: Vec<Input>, change: impl Fn(&mut NodeRecord)) -> Vec<Input> {
    let each = |input| match input {
        Input::Node { node, mut record } => {
            change(&mut record);
            Input::Node { node, record }
        }
        other => other,
    };
    inputs.into_iter().map(each).collect()
}

/// One event of alice's exec into a pod, with more in it.
fn exec_event(namespace: &str, more: Value) -> Vec<Input> {
    let mut event = json!({
        "auditID": "a-1", "stage": "ResponseComplete", "verb": "get", "user": {"username": "alice"},
        "requestURI": format!("/api/v1/namespaces/{namespace}/pods/web/exec?command=sh&container=app"),
        "objectRef": {"resource": "pods", "subresource": "exec", "namespace": namespace, "name": "web"},
        "responseStatus": {"code": 101},
        "requestReceivedTimestamp": rfc3339::format(BASE), "stageTimestamp": rfc3339::format(BASE + SECOND),
    });
    for (key, value) in more.as_object().unwrap() {
        event[key] = value.clone();
    }
    audit(event)
}

/// By the feed that also reads what is no access.
fn read(event: &Value) -> Vec<Input> {
    let batch = Feed::default().lines(format!("{event}\n").as_bytes());
    batch.events.into_iter().flat_map(|event| event.inputs(Route::File)).collect()
}

fn by(route: Route, at: u64) -> Vec<Input> {
    let each = |input| match input {
        Input::Audit { event, .. } => Input::Audit { route, event },
        other => other,
    };
    ask("alice", &["sh"], at).stages().into_iter().map(each).collect()
}

fn lease(at: u64) -> Vec<Input> {
    read(&json!({
        "kind": "Event", "auditID": format!("lease {at}"), "verb": "update", "responseStatus": {"code": 200},
        "user": {"username": "system:node:node-2"}, "stageTimestamp": rfc3339::format(at),
        "objectRef": {"apiGroup": "coordination.k8s.io", "resource": "leases", "namespace": "kube-node-lease", "name": "node-2"},
        "requestReceivedTimestamp": rfc3339::format(at),
    }))
}

fn node_is_past(until: u64) -> Input {
    Input::Watermark { source: Source::Node("node-1".into()), until }
}

fn verdict_of(tree: &Tree, id: &str, start: &Input) -> Input {
    let Input::Node { record: started, .. } = start else { panic!("{start:?}") };
    let verdict = changed(vec![tree.verdict(id, "execve", "executed")], |record| {
        if let Some(Detail::Verdict(verdict)) = &mut record.detail {
            verdict.target_id.clone_from(&started.id);
        }
    });
    verdict.into_iter().next().unwrap()
}

/// The container's verdicts are there but for the last program's, which has one only where nothing is `suppressed`.
fn logged(suppressed: bool) -> Vec<Input> {
    let tree = alices_tree();
    let starts = tree.inputs();
    let mut inputs = alice();
    inputs.push(verdict_of(&tree, "v1", &starts[0]));
    inputs.extend((!suppressed).then(|| verdict_of(&tree, "v2", &starts[1])));
    inputs.into_iter().chain(starts).collect()
}

/// What causes a finding of this code, and the same without its cause.
fn scenes(code: Code) -> (Vec<Input>, Vec<Input>) {
    let and = |more: Vec<Input>| whole().into_iter().chain(more).collect::<Vec<_>>();
    let variable = format!("SPO_EXEC_REQUEST_UID={UID}");
    let marked = ["env", variable.as_str(), "sh"];
    let asked = |uid: &str| ask("alice", &["sh"], BASE).uid(uid).stages();
    let debug = |program: &str| {
        let tree = tree(100, &["sh"], BASE).container("debugger").entry("start").inputs();
        let tree = changed(tree, |record| match &mut record.detail {
            Some(Detail::ProcessStart(start)) if !start.is_session_root => {
                start.filename = format!("/usr/bin/{program}");
                start.entered_container_id = "host".to_owned();
            }
            _ => {}
        });
        support::scene::debug("alice", "debugger", BASE - SECOND).into_iter().chain(tree).collect::<Vec<_>>()
    };
    let audit_finding = |code: Code| Input::AuditFinding {
        code,
        time: BASE,
        subject: "a-1".to_owned(),
        text: "as the intake found it".to_owned(),
        records: vec!["a-1".to_owned()],
    };
    match code {
        Code::IdentifierForged => (
            asked(UID)
                .into_iter()
                .chain(tree(100, &["env", "SPO_EXEC_REQUEST_UID=made-up", "sh"], BASE + 200 * MS).inputs())
                .collect(),
            and(vec![]),
        ),
        Code::IdentifierReused => {
            let once = |argv| tree(100, argv, BASE + 200 * MS).inputs();
            let again = tree(300, &marked, BASE + 400 * MS).inputs();
            (
                asked(UID).into_iter().chain(once(&marked)).chain(again).collect(),
                asked(UID).into_iter().chain(once(&marked)).collect(),
            )
        }
        Code::ArgvDiffers => {
            let scene = |argument: &str| {
                let ran = format!("SPO_EXEC_REQUEST_UID={UID}");
                let asked = ask("alice", &["printf", argument], BASE).uid(UID).stages();
                let ran = match argument {
                    "x" => vec!["env", ran.as_str(), "printf", "x"],
                    _ => vec!["printf", ran.as_str()],
                };
                asked.into_iter().chain(tree(100, &ran, BASE + 200 * MS).inputs()).collect::<Vec<_>>()
            };
            (scene("SPO_EXEC_REQUEST_UID=mine"), scene("x"))
        }
        Code::EntryWithoutAudit => (alices_tree().inputs(), and(vec![])),
        Code::UnexplainedSyncExec => {
            let probe = || tree(100, &["/probe"], BASE + 200 * MS).entry("exec_sync").inputs();
            (probe(), pod_status("node-1", &["/probe"]).into_iter().chain(probe()).collect())
        }
        Code::NamespaceEntry => (alices_tree().entry("namespace_entry").inputs(), and(vec![])),
        Code::NamespaceEntered => {
            let entered = changed(whole(), |record| match &mut record.detail {
                Some(Detail::ProcessStart(start)) if !start.is_session_root => {
                    start.entered_container_id = "host".to_owned()
                }
                _ => {}
            });
            (entered, and(vec![]))
        }
        Code::DaemonAsked => (debug("crictl"), and(vec![])),
        Code::CgroupMove => {
            let moved = changed(vec![alices_tree().verdict("m1", "", "")], |record| {
                record.detail = Some(Detail::CgroupMove(CgroupMove { moved_by_pid: 101, ..CgroupMove::default() }));
            });
            (and(moved), and(vec![]))
        }
        Code::OtherContainer => {
            let elsewhere = changed(alices_tree().inputs().split_off(1), |record| {
                record.id.push_str("-elsewhere");
                record.container = Some(Container {
                    id: "f".repeat(64),
                    name: "side".to_owned(),
                    ..record.container.clone().unwrap()
                });
            });
            (and(elsewhere), and(alices_tree().inputs().split_off(1)))
        }
        Code::VerdictSuppressed => (logged(true), logged(false)),
        Code::ActivityAfterClose => {
            let late = changed(alices_tree().inputs().split_off(1), |record| {
                record.pid += 7;
                record.id.push_str("-late");
                record.time_unix_ns += 60 * SECOND;
            });
            (and(late), and(vec![]))
        }
        Code::NodeProxy => (
            audit(json!({
                "auditID": "a-1", "stage": "ResponseComplete", "verb": "create", "user": {"username": "alice"},
                "requestURI": "/api/v1/nodes/node-1/proxy/run/shop/web/app?cmd=sh", "responseStatus": {"code": 200},
                "objectRef": {"resource": "nodes", "subresource": "proxy", "name": "node-1"},
                "requestReceivedTimestamp": rfc3339::format(BASE), "stageTimestamp": rfc3339::format(BASE + SECOND),
            })),
            exec_event("shop", json!({})),
        ),
        Code::WebhookFailedOpen => {
            let failed = "failed-open.mutation.webhook.admission.k8s.io/round_0_index_0";
            (exec_event("shop", json!({"annotations": {failed: "execmetadata.spo.io"}})), exec_event("shop", json!({})))
        }
        Code::OneRouteOnly => {
            let both = |at: u64| by(Route::File, at).into_iter().chain(by(Route::Webhook, at));
            let middle = |routes: &[Route]| {
                let between = routes.iter().flat_map(|route| by(*route, BASE + 100 * SECOND));
                both(BASE).chain(between).chain(both(BASE + 300 * SECOND)).collect::<Vec<_>>()
            };
            (middle(&[Route::File]), middle(&[Route::File, Route::Webhook]))
        }
        Code::AuditDisagreement => {
            let denied = exec_event("shop", json!({"responseStatus": {"code": 403}}));
            (exec_event("shop", json!({})).into_iter().chain(denied).collect(), exec_event("shop", json!({})))
        }
        Code::AuditIdReused => (and(vec![audit_finding(code)]), and(vec![])),
        Code::AuditRouteSilent => {
            let route = |silent_since| vec![Input::AuditRoute { route: Route::Webhook, silent_since }];
            (and(route(Some(BASE))), and(route(None)))
        }
        Code::ForeignPod => {
            let on = |node: &str| pod_status(node, &["/probe"]).into_iter().chain(whole()).collect::<Vec<_>>();
            (on("node-2"), on("node-1"))
        }
        Code::AuditGap => {
            let lost = |from: u64| {
                vec![Input::AuditLoss {
                    source: "audit.log".to_owned(),
                    reason: "rotated away".to_owned(),
                    from,
                    until: from + SECOND,
                    count: None,
                }]
            };
            (and(lost(BASE)), and(lost(BASE - 3_600 * SECOND)))
        }
        Code::NodeGap => {
            let lost = |from: u64| vec![node_loss("lineage_ring", from, from + SECOND)];
            (and(lost(BASE)), and(lost(BASE - 3_600 * SECOND)))
        }
        Code::CoverageLost => {
            let lost = |from: u64| vec![node_loss("verdict_ring", from, from + SECOND)];
            (and(lost(BASE)), and(lost(BASE - 3_600 * SECOND)))
        }
        Code::NodeSilent => {
            let until =
                |now: u64| [vec![Input::Now(BASE), node_is_past(BASE)], and(vec![Input::Now(now)])].concat_all();
            (until(BASE + 31 * SECOND), until(BASE + 29 * SECOND))
        }
        Code::NodeWithoutAgent => {
            let minutes = |count: u64| {
                let minute = |number: u64| {
                    let now = BASE + number * 60 * SECOND;
                    [vec![Input::Now(now), node_is_past(now)], lease(now)].concat_all()
                };
                (0..count).flat_map(minute).collect::<Vec<_>>()
            };
            (minutes(13), minutes(8))
        }
        Code::AuditSilent => {
            let until = |now: u64| [vec![Input::Now(BASE)], and(vec![Input::Now(now)])].concat_all();
            (until(BASE + 121 * SECOND), until(BASE + 119 * SECOND))
        }
        Code::MonitoringChanged => {
            let deleted = |code: u32| {
                read(&json!({
                    "kind": "Event", "auditID": "a-1", "stage": "ResponseComplete", "verb": "delete",
                    "user": {"username": "mallory"}, "responseStatus": {"code": code},
                    "objectRef": {"apiGroup": "admissionregistration.k8s.io", "resource": "mutatingwebhookconfigurations", "name": "spo"},
                    "requestURI": "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/spo",
                    "requestReceivedTimestamp": rfc3339::format(BASE), "stageTimestamp": rfc3339::format(BASE),
                }))
            };
            (deleted(200), deleted(403))
        }
        Code::NodeIdentityShared => {
            let peers = vec!["192.0.2.1:1".to_owned(), "192.0.2.2:1".to_owned()];
            (and(vec![Input::SharedIdentity { node: "node-1".into(), peers, time: BASE }]), and(vec![]))
        }
        Code::NodeKeySecond => {
            let (serial, peer) = ("0a".to_owned(), "192.0.2.1:1".to_owned());
            (and(vec![Input::SecondKey { node: "node-1".into(), serial, peer, time: BASE }]), and(vec![]))
        }
        Code::AgentEntered => (exec_event("seclog", json!({})), exec_event("shop", json!({}))),
    }
}

trait ConcatAll {
    fn concat_all(self) -> Vec<Input>;
}

/// Inputs cannot be cloned.
impl<const N: usize> ConcatAll for [Vec<Input>; N] {
    fn concat_all(self) -> Vec<Input> {
        self.into_iter().flatten().collect()
    }
}

#[test]
fn every_code_is_found_where_it_should_be_and_not_otherwise() {
    for code in Code::ALL {
        let (with, without) = scenes(*code);
        let (sessions, findings) = joined(with);
        let found: Vec<&Finding> = findings.iter().filter(|finding| finding.code == *code).collect();
        assert!(!found.is_empty(), "{code} is not found: {findings:#?}");
        for finding in found {
            assert_eq!((finding.severity, finding.explanation.as_str()), (code.severity(), code.explanation()));
            assert!(!finding.records.is_empty(), "{code} names nothing that it rests on: {finding:?}");
            let Some(session) = finding.session else { continue };
            let names_it = |of: &&Session| of.id == session && of.findings.iter().any(|note| note.id == finding.id);
            assert!(sessions.iter().any(|session| names_it(&session)), "{code}: no session names {finding:?}");
        }
        let (_, findings) = joined(without);
        let others: BTreeSet<Code> = findings.iter().map(|finding| finding.code).collect();
        assert!(!others.contains(code), "{code} is found without a cause: {findings:#?}");
    }
}

#[test]
fn nothing_is_found_of_an_exec_as_it_should_be() {
    let (sessions, findings) = joined(whole());
    assert_eq!((sessions.len(), findings), (1, Vec::new()));
}

#[test]
fn who_enters_a_pod_of_seclog_by_the_runtime_alone_entered_the_agent_too() {
    let inputs = changed(alices_tree().inputs(), |record| {
        if let Some(container) = &mut record.container {
            container.pod_namespace = "seclog".to_owned();
        }
    });
    let (sessions, findings) = joined(inputs);
    let codes: BTreeSet<Code> = findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, BTreeSet::from([Code::EntryWithoutAudit, Code::AgentEntered]));
    let entered = findings.iter().find(|finding| finding.code == Code::AgentEntered).unwrap();
    assert_eq!(entered.session, Some(sessions[0].id));
}
