//! A node's check of its own configuration, from its heartbeat to the sessions on that node.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use seclog_correlator::intake::Budget;
use seclog_correlator::intake::agents::Agents;
use seclog_correlator::join::session::Session;
use seclog_correlator::join::{Config, Input, Join};
use seclog_correlator::listen::{Door, Limits};
use seclog_proto::v1::agent_message::Message;
use seclog_proto::v1::{AgentMessage, CheckFinding, CheckStatus, Heartbeat, NamespaceLogging};
use support::client::{Agent, hello, plaintext};
use support::journal::journal;
use support::scene::{BASE, Kept, MS, SECOND, ask, tree};
use tokio::sync::watch;

fn status(at: u64, code: Option<&str>) -> CheckStatus {
    let finding = |code: &str| CheckFinding {
        code: code.to_owned(),
        severity: "error".to_owned(),
        what: "the file does not exist \u{1b}[2J".to_owned(),
        place: "/etc/crio/crio.conf.d/60.conf:2".to_owned(),
    };
    CheckStatus {
        checked_unix_ns: at,
        verdict: if code.is_some() { "problems" } else { "ok" }.to_owned(),
        findings: code.map(finding).into_iter().collect(),
        namespaces: vec![NamespaceLogging { namespace: "shop".to_owned(), logs: 1, does_not_log: 1, unknown: 0 }],
    }
}

#[tokio::test]
async fn a_check_comes_with_a_heartbeat_under_the_nodes_own_name() {
    let (journal, mut inputs) = journal();
    let (_stop, stopped) = watch::channel(false);
    let door = Door::plaintext("agents", Limits::default(), &Budget::new(64 << 20));
    let agents = Agents::bind("127.0.0.1:0".parse().unwrap(), "guest", door, journal, stopped).await.unwrap();
    let addr = agents.addr;
    tokio::spawn(agents.serve());
    let mut agent = Agent::connect(plaintext(addr).await, hello("guest", "node-1", 7, 1)).await.unwrap();
    agent.welcome().await.unwrap();
    let beat = Heartbeat { check: Some(status(BASE, Some("privileged-profile-missing"))), ..Heartbeat::default() };
    agent.to.send(AgentMessage { message: Some(Message::Heartbeat(beat)) }).await.unwrap();
    let batch = inputs.recv().await.unwrap();
    let [Input::NodeCheck { node, status }] = batch.as_slice() else { panic!("{batch:?}") };
    assert_eq!((&**node, status.findings[0].code.as_str()), ("node-1", "privileged-profile-missing"));
}

fn sessions(checks: impl IntoIterator<Item = Input>) -> Vec<Session> {
    let mut join = Join::new(Config::new("guest"));
    let mut kept = Kept::default();
    let scene = ask("alice", &["sh"], BASE).stages().into_iter().chain(tree(100, &["sh"], BASE + 200 * MS).inputs());
    for input in scene.chain(checks) {
        kept.take(join.apply(input));
    }
    kept.take(join.finish());
    kept.sessions()
}

#[test]
fn a_session_says_what_the_check_of_its_node_found() {
    let check = |node: &str, at, code| Input::NodeCheck { node: node.into(), status: status(at, code) };
    let told = sessions([
        check("node-1", BASE - SECOND, Some("privileged-profile-missing")),
        check("node-2", BASE - SECOND, Some("dropin-missing")),
    ]);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].coverage[0], "the check of node node-1 found privileged-profile-missing");
    assert!(told[0].coverage[1].contains("1 of 2 containers of namespace shop"), "{:?}", told[0].coverage);
    let later =
        sessions([check("node-1", BASE - SECOND, None), check("node-1", BASE + 3600 * SECOND, Some("audit-off"))]);
    assert!(later[0].coverage.iter().all(|note| !note.contains("audit-off")), "found after the session ended");
    assert_eq!(sessions([])[0].coverage, [] as [&str; 0]);
}
