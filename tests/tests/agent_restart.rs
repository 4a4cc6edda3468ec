//! The agent is ended in the middle of a session, killed or in order, and starts again: what goes on belongs to the same
//! session, or says that it is not known.

use std::{collections::HashMap, ffi::OsStr, fs, path::Path, sync::Arc, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use seclog_proto::v1::{NodeRecord, SessionRoot, node_record::Detail};
use seclog_tests::lab::{
    cri::Pod,
    exclusive,
    node::Node,
    process::PATIENCE,
    programs::{Agent, Sink},
    skip,
};

const NAME: &str = "after_a_restart_a_running_session_is_known_again_or_not_asserted";

/// How the first agent ends, and what the second one finds.
#[derive(Clone, Copy, Debug)]
struct Case {
    number: u32,
    end: Signal,
    kept: bool,
}

fn start_of(agent: &Agent, argument: &str) -> Result<(NodeRecord, SessionRoot)> {
    let (record, _, root) = agent.wait_for_start(argument)?;
    Ok((record, root))
}

/// Waits for the thing itself.
fn wait_until(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    for _ in 0..6_000 {
        if holds() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("{what}: not in a minute")
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

fn is_kept(directory: &Path, pid: u32) -> bool {
    let text = fs::read_to_string(directory.join("lineage.state")).unwrap_or_default();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    file["processes"].as_array().into_iter().flatten().any(|process| process["pid"] == pid)
}

/// One session that runs from the first agent into the second: a shell that waits, and an orphan that the container's main
/// process has become the parent of.
async fn run(node: &Arc<Node>, pod: &Pod, case: Case) -> Result<()> {
    let Case { number, end, kept } = case;
    let socket = node.socket();
    let arguments: [&OsStr; 2] = ["--cri-socket".as_ref(), socket.as_os_str()];
    let first = Agent::start("node-1", &socket, Sink::Stdout)?;
    let wait = |file: &str| format!("while ! [ -e /tmp/{file}-{number} ]; do /bin/sleep 0.1; done");
    let orphan = format!(": orphan; {}; /bin/echo orphaned-{number}", wait("go"));
    let script =
        format!("(/bin/sh -c '{orphan}' orphan-{number} &); {}; /bin/echo after-{number}; {}", wait("go"), wait("end"));
    let session = tokio::spawn({
        let (node, pod, name) = (Arc::clone(node), pod.clone(), format!("session-{number}"));
        async move { node.exec(&pod, &["sh", "-c", &script, &name]).await }
    });
    let (root_record, root) = start_of(&first, &format!("session-{number}"))?;
    ensure!(
        (root.entry.as_str(), root.lineage.as_str(), root.pid) == ("exec", "observed", root_record.pid),
        "{root:?}"
    );
    let (orphan, _) = start_of(&first, &format!("orphan-{number}"))?;
    let main = node.main_process(pod)?;
    wait_until("the orphan's new parent", || parent_of(orphan.pid) == Some(main))?;
    let directory = Arc::clone(first.directory());
    wait_until("the kept state", || [root.pid, orphan.pid].iter().all(|pid| is_kept(directory.path(), *pid)))?;

    first.process().signal(end);
    first.process().wait(PATIENCE).context("the agent does not end")?;
    if !kept {
        fs::remove_file(directory.path().join("lineage.state"))?;
    }
    let second = Agent::start_in(directory, "node-1", Sink::Stdout, &arguments)?;
    fs::write(node.file(pod, &format!("tmp/go-{number}")), "")?;
    let (after_record, after) = start_of(&second, &format!("after-{number}"))?;
    let (_, orphaned) = start_of(&second, &format!("orphaned-{number}"))?;
    fs::write(node.file(pod, &format!("tmp/end-{number}")), "")?;
    session.await??;
    second.stop()?;

    let of_pod = |record: &NodeRecord| record.container.as_ref().is_some_and(|of| of.id == pod.container_id);
    ensure!(of_pod(&after_record), "{after_record:?}");
    if kept {
        for found in [&after, &orphaned] {
            ensure!(
                (found.pid, found.start_boottime_ns) == (root.pid, root.start_boottime_ns),
                "{found:?} of {root:?}"
            );
            ensure!((found.lineage.as_str(), found.entry.as_str()) == ("kept", "exec"), "{found:?}");
            ensure!(found.rule == root.rule, "{found:?}");
        }
    } else {
        // /proc has no exact start, and the runtime's stages are gone.
        ensure!(
            (after.pid, after.lineage.as_str(), after.entry.as_str()) == (root.pid, "rebuilt", "unknown"),
            "{after:?}"
        );
        ensure!((orphaned.pid, orphaned.lineage.as_str()) == (0, "unknown"), "{orphaned:?}");
    }
    // Whatever is not known, nothing of the session was ever the main process's.
    let of_main: HashMap<String, u32> = second
        .records()?
        .into_iter()
        .filter(|record| record.session_root.as_ref().is_some_and(|root| root.pid == main) && record.pid != main)
        .map(|record| (record.id, record.pid))
        .collect();
    ensure!(of_main.is_empty(), "below the main process: {of_main:?}");
    let absence = second.records()?.into_iter().find_map(|record| match record.detail {
        Some(Detail::Loss(loss)) if loss.source == "agent" => Some(loss),
        _ => None,
    });
    let absence = absence.context("the time without an agent is a loss")?;
    ensure!(absence.from_unix_ns > 0 && absence.from_unix_ns < absence.until_unix_ns, "{absence:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_a_running_session_is_known_again_or_not_asserted() -> Result<()> {
    if let Some(reason) = Node::unavailable() {
        skip(NAME, &reason);
        return Ok(());
    }
    let _turn = exclusive::turn("containers")?;
    let node = Arc::new(Node::start().await?);
    let pod = node.run_pod("shop", "web-0", "app").await?;
    let cases = [(Signal::SIGKILL, true), (Signal::SIGTERM, true), (Signal::SIGKILL, false)];
    for (number, (end, kept)) in (1..).zip(cases) {
        let case = Case { number, end, kept };
        run(&node, &pod, case).await.with_context(|| format!("{case:?}"))?;
    }
    Ok(())
}
