//! Hand-built inputs of the join: what KAS and a node would have said.

use seclog_correlator::audit;
use seclog_correlator::join::session::{Kind, Session, State};
use seclog_correlator::join::{Input, Route};
use seclog_proto::rfc3339;
use seclog_proto::v1::node_record::Detail;
use seclog_proto::v1::{Container, Loss, NodeRecord, ProcessExit, ProcessStart, SessionRoot, Verdict};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use uuid::Uuid;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1000 * MS;
/// 2026-01-01.
pub(crate) const BASE: u64 = 1_767_225_600 * SECOND;

/// One request of `user` into pod shop/web, container app.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) user: &'static str,
    pub(crate) verb: &'static str,
    pub(crate) argv: Vec<String>,
    pub(crate) at: u64,
    pub(crate) closes: Option<u64>,
    pub(crate) code: u32,
    pub(crate) uid: Option<String>,
    pub(crate) audit_id: String,
}

pub(crate) fn ask(user: &'static str, argv: &[&str], at: u64) -> Ask {
    Ask {
        user,
        verb: "get",
        argv: argv.iter().map(|argument| (*argument).to_owned()).collect(),
        at,
        closes: Some(at + SECOND),
        code: 101,
        uid: None,
        audit_id: format!("{user}-{at}"),
    }
}

impl Ask {
    pub(crate) fn uid(mut self, uid: &str) -> Self {
        self.uid = Some(uid.to_owned());
        self
    }

    pub(crate) fn open(mut self) -> Self {
        self.closes = None;
        self
    }

    pub(crate) fn stages(&self) -> Vec<Input> {
        let mut inputs = vec![self.stage("ResponseStarted", self.at + 10 * MS)];
        inputs.extend(self.closes.map(|closes| self.stage("ResponseComplete", closes)));
        inputs
    }

    pub(crate) fn stage(&self, stage: &str, at: u64) -> Input {
        let query: Vec<String> = self.argv.iter().map(|argument| format!("command={argument}")).collect();
        let mut event = json!({
            "auditID": self.audit_id, "stage": stage, "verb": self.verb,
            "requestURI": format!("/api/v1/namespaces/shop/pods/web/exec?{}&container=app", query.join("&")),
            "user": {"username": self.user}, "sourceIPs": ["203.0.113.1", "10.0.0.1"],
            "objectRef": {"resource": "pods", "subresource": "exec", "namespace": "shop", "name": "web"},
            "responseStatus": {"code": self.code},
            "requestReceivedTimestamp": rfc3339::format(self.at), "stageTimestamp": rfc3339::format(at),
        });
        if let Some(uid) = &self.uid {
            event["annotations"] = json!({"execmetadata.spo.io/SPO_EXEC_REQUEST_UID": uid});
        }
        audit(event).remove(0)
    }
}

pub(crate) fn audit(event: Value) -> Vec<Input> {
    let (_, reading) = audit::read(&event.to_string()).unwrap();
    let pods = reading.pods.into_iter().map(Input::Pod);
    pods.chain(reading.access.map(|event| Input::Audit { route: Route::Webhook, event })).collect()
}

/// kubectl debug: the patch, then the attach.
pub(crate) fn debug(user: &str, container: &str, at: u64) -> Vec<Input> {
    let common = |stage: &str, received: u64, at: u64| {
        json!({
            "auditID": format!("{user}-{received}"), "stage": stage, "user": {"username": user},
            "requestReceivedTimestamp": rfc3339::format(received), "stageTimestamp": rfc3339::format(at),
        })
    };
    let mut patch = common("ResponseComplete", at, at + 10 * MS);
    patch["verb"] = json!("patch");
    patch["requestURI"] = json!("/api/v1/namespaces/shop/pods/web/ephemeralcontainers");
    patch["responseStatus"] = json!({"code": 200});
    patch["objectRef"] =
        json!({"resource": "pods", "subresource": "ephemeralcontainers", "namespace": "shop", "name": "web"});
    patch["requestObject"] = json!({"spec": {"ephemeralContainers": [{"name": container, "command": ["sh"]}]}});
    let mut inputs = audit(patch);
    for (stage, when) in [("ResponseStarted", SECOND), ("ResponseComplete", 3 * SECOND)] {
        let mut attach = common(stage, at + 900 * MS, at + when);
        attach["verb"] = json!("get");
        attach["requestURI"] = json!(format!("/api/v1/namespaces/shop/pods/web/attach?container={container}&tty=true"));
        attach["responseStatus"] = json!({"code": 101});
        attach["objectRef"] = json!({"resource": "pods", "subresource": "attach", "namespace": "shop", "name": "web"});
        inputs.extend(audit(attach));
    }
    inputs
}

/// What the kubelet's status update tells about pod shop/web on `node`, with an exec probe.
pub(crate) fn pod_status(node: &str, probe: &[&str]) -> Vec<Input> {
    audit(json!({
        "verb": "patch", "user": {"username": format!("system:node:{node}")}, "responseStatus": {"code": 200},
        "objectRef": {"resource": "pods", "subresource": "status", "namespace": "shop", "name": "web"},
        "responseObject": {"kind": "Pod", "metadata": {"name": "web", "namespace": "shop", "uid": "uid-web"},
            "spec": {"containers": [{"name": "app", "livenessProbe": {"exec": {"command": probe}}}]}},
    }))
}

/// A root on node-1 with one child that exits.
pub(crate) struct Tree {
    pub(crate) pid: u32,
    pub(crate) entry: &'static str,
    pub(crate) container: &'static str,
    pub(crate) argv: Vec<String>,
    pub(crate) at: u64,
}

pub(crate) fn tree(pid: u32, argv: &[&str], at: u64) -> Tree {
    let argv = argv.iter().map(|argument| (*argument).to_owned()).collect();
    Tree { pid, entry: "exec", container: "app", argv, at }
}

impl Tree {
    pub(crate) fn entry(mut self, entry: &'static str) -> Self {
        self.entry = entry;
        self
    }

    pub(crate) fn container(mut self, container: &'static str) -> Self {
        self.container = container;
        self
    }

    pub(crate) fn inputs(&self) -> Vec<Input> {
        let start = |argv: &[String], is_session_root| {
            Detail::ProcessStart(ProcessStart { argv: argv.to_vec(), is_session_root, ..Default::default() })
        };
        let exit = || Detail::ProcessExit(ProcessExit::default());
        let child = self.pid + 1;
        vec![
            self.record(self.pid, 0, start(&self.argv, true)),
            self.record(child, 10 * MS, start(&["id".to_owned()], false)),
            self.record(child, 20 * MS, exit()),
            self.record(self.pid, 30 * MS, exit()),
        ]
    }

    pub(crate) fn verdict(&self, id: &str, syscall: &str, outcome: &str) -> Input {
        let verdict = Verdict { syscall_name: syscall.to_owned(), outcome: outcome.to_owned(), ..Default::default() };
        match self.record(self.pid, 0, Detail::Verdict(verdict)) {
            Input::Node { node, record } => Input::Node { node, record: NodeRecord { id: id.to_owned(), ..record } },
            other => other,
        }
    }

    fn record(&self, pid: u32, after: u64, detail: Detail) -> Input {
        let time_unix_ns = self.at + after;
        Input::Node {
            node: "node-1".into(),
            record: NodeRecord {
                id: format!("boot:1:l0.{pid}.{time_unix_ns}"),
                time_unix_ns,
                boot_id: "boot".to_owned(),
                pid,
                start_boottime_ns: u64::from(pid) * 1000,
                container: Some(Container {
                    id: format!("{:0>64}", self.container),
                    pod_uid: "uid-web".to_owned(),
                    pod_name: "web".to_owned(),
                    pod_namespace: "shop".to_owned(),
                    name: self.container.to_owned(),
                    names: "cri".to_owned(),
                    ..Default::default()
                }),
                session_root: Some(SessionRoot {
                    pid: self.pid,
                    start_boottime_ns: u64::from(self.pid) * 1000,
                    entry: self.entry.to_owned(),
                    rule: "as built".to_owned(),
                    lineage: "observed".to_owned(),
                }),
                detail: Some(detail),
                ..Default::default()
            },
        }
    }
}

/// As the agent tells it while it does not know the container's names yet.
pub(crate) fn nameless(input: Input) -> Input {
    match input {
        Input::Node { node, mut record } => {
            if let Some(container) = &mut record.container {
                let id = container.id.clone();
                *container = Container { id, names: "unresolved: not yet".to_owned(), ..Default::default() };
            }
            Input::Node { node, record }
        }
        other => other,
    }
}

pub(crate) fn node_loss(source: &str, from: u64, until: u64) -> Input {
    let loss = Loss {
        source: source.to_owned(),
        reason: "full".to_owned(),
        count: 3,
        count_known: true,
        from_unix_ns: from,
        until_unix_ns: until,
    };
    Input::Node {
        node: "node-1".into(),
        record: NodeRecord { time_unix_ns: until, detail: Some(Detail::Loss(loss)), ..Default::default() },
    }
}

/// Revisions as a reader would keep them: the last of each id, without what was withdrawn.
#[derive(Debug, Default)]
pub(crate) struct Kept(BTreeMap<Uuid, Session>);

impl Kept {
    /// Takes what was written, and holds it to the order of revisions.
    pub(crate) fn take(&mut self, written: Vec<Session>) {
        for session in written {
            let before = self.0.get(&session.id).map_or(0, |known| known.revision);
            assert_eq!(session.revision, before + 1, "{session:?}");
            self.0.insert(session.id, session);
        }
    }

    /// In the order of their start; the number of the revision left out.
    pub(crate) fn sessions(&self) -> Vec<Session> {
        let stands = |session: &&Session| session.state != State::Superseded && session.kind != Kind::Probe;
        let mut sessions: Vec<Session> = self.0.values().filter(stands).cloned().collect();
        sessions.sort_by_key(|session| (session.start, session.id));
        for session in &mut sessions {
            session.revision = 0;
        }
        sessions
    }
}
