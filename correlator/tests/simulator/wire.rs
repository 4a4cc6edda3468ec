//! What of it reaches the correlator, when, and in which shape.

use crate::random::Random;
use crate::settings::Setting;
use crate::world::{Access, BEGIN, MS, NODES, Request, SECOND, Tree};
use seclog_correlator::audit;
use seclog_correlator::join::{Input, Route, Source};
use seclog_proto::rfc3339;
use seclog_proto::v1::node_record::Detail;
use seclog_proto::v1::{Container, Loss, NodeRecord, ProcessExit, ProcessStart, SessionRoot};
use serde_json::json;

/// One thing on its way: when it arrives, the time it is of by the clock of its source, and what it is.
struct Sent {
    arrives: u64,
    of: u64,
    what: What,
}

enum What {
    Audit { json: String, route: Route },
    Node { node: usize, record: Box<NodeRecord> },
    Other(Box<dyn FnOnce() -> Input>),
}

/// Everything that the join is given, in the order of arrival, with clock, clock samples and true watermarks.
pub(crate) fn deliver(setting: &Setting, accesses: &[Access]) -> Vec<Input> {
    let mut random = Random::new(setting.seed ^ 0x5eed);
    let mut sent = Vec::new();
    let end = accesses.iter().map(last_moment).max().unwrap_or(BEGIN);
    // Every 100 s one of 15 s, of each source by turns.
    let in_gap = |turn: u64, at: u64| {
        setting.gaps && at % (200 * SECOND) / (100 * SECOND) == turn && at % (100 * SECOND) < 15 * SECOND
    };
    for access in accesses {
        if let Some(request) = &access.request
            && !random.chance(setting.undeclared_loss)
        {
            for (stage, at) in [("ResponseStarted", request.started), ("ResponseComplete", request.completed)] {
                if in_gap(0, at) || random.chance(setting.undeclared_loss / 2.0) {
                    continue;
                }
                let json = event(access, request, stage, at);
                let twice = random.chance(setting.duplicates);
                for route in [Route::Webhook, Route::File].into_iter().take(1 + usize::from(twice)) {
                    let arrives = at + random.between(0, 2 * SECOND + setting.reorder_ms * MS);
                    sent.push(Sent { arrives, of: at, what: What::Audit { json: json.clone(), route } });
                }
            }
        }
        if let Some(tree) = &access.tree {
            let node = access.node();
            for (true_time, record) in records(setting, access, tree) {
                if node == 0 && in_gap(1, true_time) {
                    continue;
                }
                for _ in 0..1 + usize::from(random.chance(setting.duplicates)) {
                    let arrives = true_time + random.between(0, 200 * MS + setting.reorder_ms * MS);
                    let what = What::Node { node, record: Box::new(record.clone()) };
                    sent.push(Sent { arrives, of: record.time_unix_ns, what });
                }
            }
        }
    }
    if setting.gaps {
        declare_gaps(setting, end, &mut sent);
    }
    sent.sort_by_key(|sent| sent.arrives);
    with_clock(setting, sent, end)
}

fn last_moment(access: &Access) -> u64 {
    let asked = access.request.iter().map(|request| request.completed);
    let ran = access.tree.iter().flat_map(|tree| &tree.exits).map(|(at, _)| *at);
    asked.chain(ran).max().unwrap_or_default()
}

fn declare_gaps(setting: &Setting, end: u64, sent: &mut Vec<Sent>) {
    let mut from = BEGIN - BEGIN % (200 * SECOND);
    while from < end {
        let (audit, node) = ((from, from + 15 * SECOND), (from + 100 * SECOND, from + 115 * SECOND));
        let audit_loss = move || Input::AuditLoss {
            source: "webhook".to_owned(),
            reason: "simulated".to_owned(),
            from: audit.0,
            until: audit.1,
            count: None,
        };
        let (loss_from, loss_until) = (at_node(setting, 0, node.0), at_node(setting, 0, node.1));
        let node_loss = move || {
            let loss = Loss {
                source: "lineage_ring".to_owned(),
                reason: "simulated".to_owned(),
                from_unix_ns: loss_from,
                until_unix_ns: loss_until,
                ..Loss::default()
            };
            let record =
                NodeRecord { time_unix_ns: loss_until, detail: Some(Detail::Loss(loss)), ..Default::default() };
            Input::Node { node: NODES[0].into(), record }
        };
        sent.push(Sent { arrives: audit.1 + SECOND, of: audit.1, what: What::Other(Box::new(audit_loss)) });
        sent.push(Sent { arrives: node.1 + SECOND, of: node.1, what: What::Other(Box::new(node_loss)) });
        from += 200 * SECOND;
    }
}

/// The clock of the first node is ahead, that of the second behind.
fn at_node(setting: &Setting, node: usize, at: u64) -> u64 {
    if node == 0 { at + setting.skew_ms * MS } else { at - setting.skew_ms * MS }
}

fn with_clock(setting: &Setting, sent: Vec<Sent>, end: u64) -> Vec<Input> {
    // What is still to come of each source, at each point of the order of arrival.
    let mut earliest = vec![[u64::MAX; 3]; sent.len() + 1];
    for (at, one) in sent.iter().enumerate().rev() {
        earliest[at] = earliest[at + 1];
        let source = match &one.what {
            What::Audit { .. } => 2,
            What::Node { node, .. } => *node,
            What::Other(_) => continue,
        };
        earliest[at][source] = earliest[at][source].min(one.of);
    }
    let mut inputs = Vec::new();
    let mut now = BEGIN;
    for (at, one) in sent.into_iter().enumerate() {
        while now < one.arrives {
            tick(setting, now, &earliest[at], &mut inputs);
            now += SECOND;
        }
        match one.what {
            What::Audit { json, route } => {
                let (_, reading) = audit::read(&json).unwrap();
                inputs.extend(reading.access.map(|event| Input::Audit { route, event }));
            }
            What::Node { node, record } => inputs.push(Input::Node { node: NODES[node].into(), record: *record }),
            What::Other(make) => inputs.push(make()),
        }
    }
    while now < end + 120 * SECOND {
        tick(setting, now, &[now; 3], &mut inputs);
        now += SECOND;
    }
    inputs
}

fn tick(setting: &Setting, now: u64, earliest: &[u64; 3], inputs: &mut Vec<Input>) {
    for (node, name) in NODES.iter().enumerate() {
        let until = earliest[node].min(at_node(setting, node, now)) - 1;
        inputs.push(Input::Watermark { source: Source::Node((*name).into()), until });
        if (now / SECOND).is_multiple_of(10) {
            let sent = at_node(setting, node, now - 20 * MS);
            inputs.push(Input::Clock { node: (*name).into(), sent, received: now });
        }
    }
    inputs.push(Input::Watermark { source: Source::Audit, until: earliest[2].min(now) - 1 });
    inputs.push(Input::Now(now));
}

fn event(access: &Access, request: &Request, stage: &str, at: u64) -> String {
    let command: Vec<String> =
        request.argv.iter().map(|argument| format!("command={}", argument.replace(' ', "+"))).collect();
    let mut annotations = serde_json::Map::new();
    if let Some(uid) = &request.uid {
        annotations.insert("execmetadata.spo.io/SPO_EXEC_REQUEST_UID".to_owned(), json!(uid));
    }
    if request.failed_open {
        annotations.insert(
            "failed-open.mutation.webhook.admission.k8s.io/round_0_index_0".to_owned(),
            json!("execmetadata.spo.io"),
        );
    }
    json!({
        "kind": "Event", "auditID": request.audit_id, "stage": stage, "verb": "get",
        "requestURI": format!("/api/v1/namespaces/shop/pods/{}/exec?{}&container=app", access.pod_name(), command.join("&")),
        "user": {"username": request.user}, "sourceIPs": ["10.0.0.9"], "userAgent": "simulator",
        "objectRef": {"resource": "pods", "subresource": "exec", "namespace": "shop", "name": access.pod_name()},
        "responseStatus": {"code": request.code}, "annotations": annotations,
        "requestReceivedTimestamp": rfc3339::format(request.received), "stageTimestamp": rfc3339::format(at),
    })
    .to_string()
}

/// The records of one tree, each with its true time. Their ids name the access.
fn records(setting: &Setting, access: &Access, tree: &Tree) -> Vec<(u64, NodeRecord)> {
    let node = access.node();
    let born = |process: u32| if process == 0 { tree.born } else { tree.born + 1 + u64::from(process) };
    let record = |index: usize, at: u64, process: u32, detail: Detail| NodeRecord {
        id: format!("{}:{index}", access.number),
        time_unix_ns: at_node(setting, node, at),
        boot_id: format!("boot-{node}"),
        pid: tree.pid + process,
        start_boottime_ns: born(process),
        container: Some(Container {
            id: format!("{}-app", access.pod_uid()),
            pod_uid: access.pod_uid(),
            pod_name: access.pod_name(),
            pod_namespace: "shop".to_owned(),
            name: "app".to_owned(),
            names: "cri".to_owned(),
            ..Default::default()
        }),
        session_root: Some(SessionRoot {
            pid: tree.pid,
            start_boottime_ns: tree.born,
            entry: tree.entry.to_owned(),
            rule: "simulated".to_owned(),
            lineage: "observed".to_owned(),
        }),
        detail: Some(detail),
        ..Default::default()
    };
    let starts = tree.starts.iter().enumerate().map(|(index, (at, process, argv))| {
        let is_session_root = index == 0;
        let start = ProcessStart {
            argv: argv.clone(),
            is_session_root,
            environment: if is_session_root { tree.environment.clone() } else { Vec::new() },
            environment_searched: if is_session_root { "whole" } else { "" }.to_owned(),
            ..Default::default()
        };
        (*at, record(index, *at, *process, Detail::ProcessStart(start)))
    });
    let exits = tree.exits.iter().enumerate().map(|(index, (at, process))| {
        (*at, record(100 + index, *at, *process, Detail::ProcessExit(ProcessExit::default())))
    });
    starts.chain(exits).collect()
}
