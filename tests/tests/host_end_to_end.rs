//! Real containers on this host, real streaming execs, and what comes out at the correlator's end.
//!
//! Commands inside `sh -c` have a path: busybox's shell runs what it knows by name itself, without an exec.

use anyhow::{Result, ensure};
use seclog_proto::v1::node_record::Detail;
use seclog_tests::lab::{
    cluster::Cluster,
    exclusive,
    node::Node,
    process::PATIENCE,
    programs::{Agent, Sink},
    skip,
};
use serde_json::{Value, json};

fn can_run(name: &str) -> bool {
    let reason = Node::unavailable();
    if let Some(reason) = &reason {
        skip(name, reason);
    }
    reason.is_none()
}

/// The argv of each program that a session ran.
fn ran(session: &Value) -> Vec<Vec<&str>> {
    fn list(value: &Value) -> impl Iterator<Item = &Value> {
        value.as_array().into_iter().flatten()
    }
    list(&session["ran"]).map(|program| list(&program["argv"]).filter_map(Value::as_str).collect()).collect()
}

fn is_closed(session: &Value) -> bool {
    session["state"] == "closed"
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_is_one_session_with_its_user_its_command_and_what_ran() -> Result<()> {
    if !can_run("an_exec_is_one_session_with_its_user_its_command_and_what_ran") {
        return Ok(());
    }
    let cluster = Cluster::start().await?;
    let command = ["sh", "-c", "/bin/id; /bin/cat /etc/hostname; exit 3"];
    let (request, output) = cluster.exec("alice@example.com", &command).await?;
    ensure!(output.exit_code == 3 && output.stdout.starts_with("uid=0(root)"), "{output:?}");
    cluster.audit(&[&request]).await?;

    let session = cluster.expect_session(|session| {
        session["user"]["username"] == "alice@example.com" && session["evidence"] == "unique" && is_closed(session)
    })?;
    let place = json!({
        "cluster": "hosted-1", "node": "node-1", "namespace": "shop", "pod": "web-0", "pod_uid": cluster.pod.uid,
        "container": "app", "container_id": cluster.pod.container_id,
    });
    assert_eq!(session["where"], place);
    assert_eq!((&session["kind"], &session["outcome"]), (&json!("exec"), &json!("accepted")));
    assert_eq!(session["request"]["argv"], json!(command));
    assert_eq!(session["request"]["audit_id"], request.audit_id.as_str());
    assert_eq!(session["root"]["entry"], "exec", "{}", session["root"]);
    assert_eq!(session["root"]["lineage"], "observed");
    // exit 3, as the wait status has it.
    assert_eq!(session["root"]["exit_code"], 3 << 8);
    assert_eq!(ran(&session), [command.to_vec(), vec!["/bin/id"], vec!["/bin/cat", "/etc/hostname"]]);
    // The profile logs execve: each of the three made one verdict, and all of them executed.
    let verdicts = session["verdicts"].as_array().cloned().unwrap_or_default();
    assert!(verdicts.contains(&json!({ "syscall": "execve", "outcome": "executed", "count": 3 })), "{verdicts:?}");
    // Nothing else of this container is anybody's session.
    let others: Vec<_> =
        cluster.correlator.sessions().into_iter().filter(|other| other["id"] != session["id"]).collect();
    assert!(others.iter().all(|other| other["state"] == "superseded"), "{others:#?}");
    cluster.agent.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_identical_execs_at_once_are_ambiguous_and_name_each_other() -> Result<()> {
    if !can_run("two_identical_execs_at_once_are_ambiguous_and_name_each_other") {
        return Ok(());
    }
    let cluster = Cluster::start().await?;
    let command = ["sh", "-c", "/bin/sleep 1; /bin/id"];
    let (alice, bob) =
        tokio::try_join!(cluster.exec("alice@example.com", &command), cluster.exec("bob@example.com", &command))?;
    cluster.audit(&[&alice.0, &bob.0]).await?;

    let mut roots = Vec::new();
    for user in ["alice@example.com", "bob@example.com"] {
        let session = cluster
            .expect_session(|session| session["user"]["username"] == user && session["evidence"] == "ambiguous")?;
        assert!(ran(&session).is_empty(), "nothing of it is asserted: {session:#}");
        let candidates = session["candidates"].as_array().cloned().unwrap_or_default();
        roots.push(candidates.iter().map(|candidate| candidate["session"].clone()).collect::<Vec<_>>());
    }
    assert_eq!(roots[0], roots[1], "both requests have the same candidates");
    assert_eq!(roots[0].len(), 2);
    for root in &roots[0] {
        let session = cluster.expect_session(|session| session["id"] == *root && is_closed(session))?;
        assert_eq!(session["evidence"], "ambiguous");
        assert_eq!(ran(&session), [command.to_vec(), vec!["/bin/sleep", "1"], vec!["/bin/id"]]);
        assert!(session.get("user").is_none(), "{session:#}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_without_an_audit_event_is_a_node_entry() -> Result<()> {
    if !can_run("an_exec_without_an_audit_event_is_a_node_entry") {
        return Ok(());
    }
    let cluster = Cluster::start().await?;
    let output = cluster.node.exec(&cluster.pod, &["id", "-u"]).await?;
    ensure!(output.stdout == "0\n", "{output:?}");
    // A later exec that is accounted for does not account for the first.
    let (request, _) = cluster.exec("alice@example.com", &["true"]).await?;
    cluster.audit(&[&request]).await?;

    let session =
        cluster.expect_session(|session| session["kind"] == "node_entry" && ran(session) == [["id", "-u"]])?;
    assert_eq!(session["evidence"], "node_only");
    assert!(session.get("user").is_none(), "{session:#}");
    assert_eq!(session["where"]["container_id"], cluster.pod.container_id.as_str());
    cluster
        .expect_session(|session| session["user"]["username"] == "alice@example.com" && ran(session) == [["true"]])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_alone_prints_what_started_and_what_was_logged() -> Result<()> {
    if !can_run("the_agent_alone_prints_what_started_and_what_was_logged") {
        return Ok(());
    }
    let _turn = exclusive::turn("containers")?;
    let node = Node::start().await?;
    // The container is there first: the agent must learn of it from /proc and the runtime.
    let pod = node.run_pod("shop", "web-0", "app").await?;
    let agent = Agent::start("node-1", &node.socket(), Sink::Stdout)?;
    let command = ["sh", "-c", "echo; /bin/id -un"];
    node.exec(&pod, &command).await?;

    let start = agent.wait_for_record(PATIENCE, |record| match &record.detail {
        Some(Detail::ProcessStart(start)) => start.argv == command,
        _ => false,
    })?;
    let container = start.container.clone().unwrap_or_default();
    assert_eq!((container.id.as_str(), container.pod_uid.as_str()), (pod.container_id.as_str(), pod.uid.as_str()));
    assert_eq!(
        [&container.pod_namespace, &container.pod_name, &container.name, &container.names],
        ["shop", "web-0", "app", "cri"]
    );
    let root = start.session_root.clone().unwrap_or_default();
    assert_eq!((root.pid, root.entry.as_str()), (start.pid, "exec"), "{root:?}");

    // The shell's execve of id: its caller is the shell, its target the program that started.
    let verdict = agent.wait_for_record(PATIENCE, |record| match &record.detail {
        Some(Detail::Verdict(verdict)) => {
            verdict.syscall_name == "execve" && verdict.outcome == "executed" && record.comm == "sh"
        }
        _ => false,
    })?;
    agent.stop()?;
    let records = agent.records()?;
    let Some(Detail::Verdict(attempt)) = &verdict.detail else { unreachable!("matched above") };
    assert_eq!((attempt.action.as_str(), attempt.arch), ("log", seclog_tests::lab::seccomp::AUDIT_ARCH));
    assert!(attempt.sources.contains(&"audit".to_owned()), "{attempt:?}");
    let target = records.iter().find(|record| record.id == attempt.target_id).map(|record| record.detail.clone());
    let Some(Some(Detail::ProcessStart(target))) = target else {
        panic!("target {:?} is not printed", attempt.target_id)
    };
    assert_eq!(target.argv, ["/bin/id", "-un"]);
    Ok(())
}
