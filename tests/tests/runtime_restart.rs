//! containerd is killed in the middle of a session, and starts again: the session goes on below its shim, and is the same one.

use std::{fs, sync::Arc};

use anyhow::{Result, ensure};
use seclog_tests::lab::{
    exclusive,
    node::Node,
    programs::{Agent, Sink},
};

const NAME: &str = "a_session_goes_on_through_a_restart_of_containerd_and_new_ones_are_known";

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_through_a_restart_of_containerd_and_new_ones_are_known() -> Result<()> {
    if !Node::is_available(NAME, &[]) {
        return Ok(());
    }
    let _turn = exclusive::turn("containers")?;
    let node = Arc::new(Node::start().await?);
    let pod = node.run_pod("shop", "web-0", "app").await?;
    let agent = Agent::start("node-1", &node.socket(), Sink::Stdout)?;
    // It says nothing: who would read it is killed.
    let script = "while ! [ -e /tmp/go ]; do /bin/sleep 0.1; done; /bin/true child; \
                  (/bin/sh -c '/bin/true daemon' &); while ! [ -e /tmp/end ]; do /bin/sleep 0.1; done";
    let open = tokio::spawn({
        let (node, pod) = (Arc::clone(&node), pod.clone());
        async move { node.exec(&pod, &["sh", "-c", script, "open"]).await }
    });
    let (_, _, root) = agent.wait_for_start("open")?;
    ensure!((root.entry.as_str(), root.lineage.as_str()) == ("exec", "observed"), "{root:?}");

    node.restart().await?;
    // Its stream went with containerd.
    ensure!(open.await?.is_err(), "the stream outlived containerd");
    fs::write(node.file(&pod, "tmp/go"), "")?;
    for argument in ["child", "daemon"] {
        let (record, start, of) = agent.wait_for_start(argument)?;
        ensure!((of.pid, of.start_boottime_ns) == (root.pid, root.start_boottime_ns), "{argument}: {of:?} of {root:?}");
        ensure!(of.lineage == "observed" && of.entry == "exec" && !start.is_session_root, "{argument}: {of:?}");
        let container = record.container.unwrap_or_default();
        ensure!((container.id == pod.container_id) && container.pod_name == "web-0", "{argument}: {container:?}");
    }

    // Below the same shim, for a containerd that is another process.
    node.exec(&pod, &["sh", "-c", "/bin/true new-child", "new"]).await?;
    node.exec_with_console(&pod, &["sh", "-c", ":", "console"]).await?;
    for (argument, words) in [("new", "either of them"), ("console", "with a console")] {
        let (record, start, new) = agent.wait_for_start(argument)?;
        ensure!(start.is_session_root && new.pid == record.pid && new.pid != root.pid, "{argument}: {new:?}");
        ensure!((new.entry.as_str(), new.lineage.as_str()) == ("exec", "observed"), "{argument}: {new:?}");
        ensure!(new.rule.contains(words), "{argument}: {new:?}");
        let container = record.container.unwrap_or_default();
        let names = (container.id, container.name, container.pod_namespace, container.pod_name);
        ensure!(names == (pod.container_id.clone(), "app".into(), "shop".into(), "web-0".into()), "{names:?}");
    }
    // A container that only the new one started.
    let second = node.run_container(&pod, "second", &["/bin/sleep", "1000001"]).await?;
    let (record, start, main) = agent.wait_for_start("1000001")?;
    let container = record.container.unwrap_or_default();
    ensure!(start.is_session_root && main.entry == "start" && container.id == second, "{main:?} in {container:?}");
    fs::write(node.file(&pod, "tmp/end"), "")?;
    agent.stop()
}
