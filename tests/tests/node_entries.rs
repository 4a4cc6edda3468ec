//! Entries into real containers by other ways than a plain exec below runc: another OCI runtime, nsenter, containers that hardly
//! live.

use std::{collections::HashMap, path::Path, process::Command, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use seclog_proto::v1::{NodeRecord, ProcessStart, SessionRoot, node_record::Detail};
use seclog_tests::lab::{
    exclusive,
    image::run,
    node::Node,
    process::PATIENCE,
    programs::{Agent, Sink},
    skip,
};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread")]
async fn below_crun_a_container_starts_and_execs_enter_it_as_below_runc() -> Result<()> {
    if !Node::is_available("below_crun_a_container_starts_and_execs_enter_it_as_below_runc", &["crun"]) {
        return Ok(());
    }
    if Path::new("/sys/fs/cgroup/unified").is_dir() {
        let reason = "crun refuses hosts with both cgroup v1 and v2 (\"cgroups in hybrid mode not supported\"); it runs in the kernels' tests";
        skip("below_crun_a_container_starts_and_execs_enter_it_as_below_runc", reason);
        return Ok(());
    }
    let _turn = exclusive::turn("containers")?;
    let node = Node::start_with("crun").await?;
    let agent = Agent::start("node-1", &node.socket(), Sink::Stdout)?;
    let pod = node.run_pod("shop", "web-0", "app").await?;
    let script = "/bin/true child; (/bin/sh -c '(/bin/true daemon &)')";
    node.exec(&pod, &["sh", "-c", script, "plain"]).await?;
    node.exec_with_console(&pod, &["sh", "-c", ":", "console"]).await?;
    let (.., main) = agent.wait_for_start("1000000")?;
    let (_, _, plain) = agent.wait_for_start("plain")?;
    let (_, _, console) = agent.wait_for_start("console")?;
    ensure!(
        (main.entry.as_str(), plain.entry.as_str(), console.entry.as_str()) == ("start", "exec", "exec"),
        "{main:?} {plain:?} {console:?}"
    );
    ensure!(console.rule.contains("with a console") && plain.rule.contains("either of them"), "{plain:?} {console:?}");
    for argument in ["plain", "child", "daemon"] {
        let (record, _, root) = agent.wait_for_start(argument)?;
        ensure!((root.pid, root.lineage.as_str()) == (plain.pid, "observed"), "{argument}: {root:?}");
        let container = record.container.unwrap_or_default();
        ensure!(container.id == pod.container_id && container.pod_name == "web-0", "{argument}: {container:?}");
    }
    agent.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn nsenter_from_the_host_is_a_namespace_entry_into_the_container_and_no_exec() -> Result<()> {
    if !Node::is_available("nsenter_from_the_host_is_a_namespace_entry_into_the_container_and_no_exec", &["nsenter"]) {
        return Ok(());
    }
    let _turn = exclusive::turn("containers")?;
    let node = Node::start().await?;
    let pod = node.run_pod("shop", "web-0", "app").await?;
    let agent = Agent::start("node-1", &node.socket(), Sink::Stdout)?;
    let main = node.main_process(&pod)?.to_string();
    run(Command::new("nsenter").args(["-t", &main, "-m", "-p", "/bin/sh", "-c", "/bin/true child; :", "entered"]))?;
    // And without its pid namespace.
    run(Command::new("nsenter").args(["-t", &main, "-m", "/bin/busybox", "sh", "-c", ":", "again"]))?;
    let (record, start, root) = agent.wait_for_start("entered")?;
    ensure!(start.is_session_root && root.entry == "namespace_entry", "{root:?}");
    let container = record.container.unwrap_or_default();
    ensure!(
        (container.id.as_str(), container.pod_name.as_str()) == (pod.container_id.as_str(), "web-0"),
        "{container:?}"
    );
    let (_, _, child) = agent.wait_for_start("child")?;
    ensure!(child.pid == root.pid, "{child:?} of {root:?}");
    let (_, _, again) = agent.wait_for_start("again")?;
    ensure!(again.entry == "namespace_entry" && again.pid != root.pid, "{again:?}");
    agent.stop()
}

/// The only start whose arguments hold this mark.
fn root_of(starts: &[(ProcessStart, SessionRoot)], mark: &str) -> Result<SessionRoot> {
    let has = |start: &ProcessStart| start.is_session_root && start.argv.iter().any(|argument| argument == mark);
    let mut found = starts.iter().filter(|(start, _)| has(start)).map(|(_, root)| root);
    let root = found.next().with_context(|| format!("{mark} has no root"))?;
    ensure!(found.next().is_none(), "{mark} has two roots");
    Ok(root.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn under_containerd_exec_sync_is_told_where_nobody_connected_and_no_exec_is_taken_for_one() -> Result<()> {
    const MIXED: usize = 24;
    if !Node::is_available(
        "under_containerd_exec_sync_is_told_where_nobody_connected_and_no_exec_is_taken_for_one",
        &[],
    ) {
        return Ok(());
    }
    let _turn = exclusive::turn("containers")?;
    let node = Arc::new(Node::start().await?);
    let pod = node.run_pod("shop", "web-0", "app").await?;
    let agent = Agent::start("node-1", &node.socket(), Sink::Stdout)?;
    agent.process().wait_for_log("connections for streams are counted")?;
    // Until then a connection that was gone before the count began could be an exec's.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let mut first = JoinSet::new();
    for number in 0..6 {
        let (node, pod) = (Arc::clone(&node), pod.clone());
        first.spawn(async move { node.exec_sync(&pod, &["sh", "-c", ":", &format!("first-{number}")]).await });
    }
    while let Some(done) = first.join_next().await {
        ensure!(done??.exit_code == 0);
    }
    // While somebody works at a console, probes go on.
    let console = {
        let (node, pod) = (Arc::clone(&node), pod.clone());
        tokio::spawn(async move { node.exec_with_console(&pod, &["sh", "-c", "sleep 5", "console"]).await })
    };
    agent.wait_for_start("console")?;
    node.exec_sync(&pod, &["sh", "-c", ":", "beside"]).await?;
    ensure!(console.await??.exit_code == 0);
    node.exec_sync(&pod, &["sh", "-c", ":", "after"]).await?;
    let mut mixed = JoinSet::new();
    for number in 0..MIXED {
        let (node, pod) = (Arc::clone(&node), pod.clone());
        mixed.spawn(async move {
            let mark = format!("mixed-{number}");
            let command = ["sh", "-c", ":", mark.as_str()];
            match number % 3 {
                0 => node.exec_sync(&pod, &command).await,
                1 => node.exec_with_console(&pod, &command).await,
                _ => node.exec(&pod, &command).await,
            }
        });
    }
    while let Some(done) = mixed.join_next().await {
        ensure!(done??.exit_code == 0);
    }
    node.by_hand(&pod, &["sh", "-c", ":", "by-hand"])?;
    agent.wait_for_start("by-hand")?;
    agent.stop()?;
    let starts: Vec<(ProcessStart, SessionRoot)> = agent
        .records()?
        .into_iter()
        .filter_map(|record| match record.detail {
            Some(Detail::ProcessStart(start)) => Some((start, record.session_root?)),
            _ => None,
        })
        .collect();
    for mark in (0..6).map(|number| format!("first-{number}")).chain(["beside".into(), "after".into()]) {
        let root = root_of(&starts, &mark)?;
        ensure!(root.entry == "exec_sync" && root.rule.contains("nobody had connected"), "{mark}: {root:?}");
    }
    let console = root_of(&starts, "console")?;
    ensure!(console.entry == "exec" && console.rule.contains("with a console"), "{console:?}");
    let by_hand = root_of(&starts, "by-hand")?;
    ensure!(by_hand.entry == "other" && by_hand.rule.contains("another client of containerd"), "{by_hand:?}");
    let mut told = 0;
    for number in 0..MIXED {
        let root = root_of(&starts, &format!("mixed-{number}"))?;
        let is_right = match (number % 3, root.entry.as_str()) {
            (0, "exec_sync") => {
                told += 1;
                true
            }
            (0 | 2, "exec") => root.rule.contains("either of them"),
            (1, "exec") => root.rule.contains("with a console"),
            _ => false,
        };
        ensure!(is_right, "mixed-{number}: {root:?}");
    }
    println!("of {} ExecSyncs amid {} Execs, {told} were told for sure", MIXED / 3, MIXED - MIXED / 3);
    Ok(())
}

/// `make soak`: all of 1,000.
fn short_lived() -> usize {
    if std::env::var_os("SECLOG_SOAK").is_some() { 1_000 } else { 20 }
}

#[tokio::test(flavor = "multi_thread")]
async fn real_containers_that_live_fifty_milliseconds_are_named() -> Result<()> {
    if !Node::is_available("real_containers_that_live_fifty_milliseconds_are_named", &[]) {
        return Ok(());
    }
    let _turn = exclusive::turn("containers")?;
    let node = Node::start().await?;
    let pod = node.run_pod("shop", "web-0", "app").await?;
    let agent = Agent::start("node-1", &node.socket(), Sink::Stdout)?;
    let mut made = HashMap::new();
    for number in 0..short_lived() {
        let name = format!("short-{number}");
        made.insert(node.run_container(&pod, &name, &["/bin/sleep", "0.05"]).await?, name);
    }
    // By their records, or by an amendment.
    let is_named = |line: &str, named: &mut HashMap<String, String>| {
        let Ok(record) = serde_json::from_str::<NodeRecord>(line) else { return };
        let container = record.container.unwrap_or_default();
        if !container.name.is_empty() {
            named.insert(container.id, container.name);
        }
    };
    let named_in = |lines: &[String]| {
        let mut named = HashMap::new();
        lines.iter().for_each(|line| is_named(line, &mut named));
        named
    };
    let all = |lines: &[String]| {
        let named = named_in(lines);
        made.keys().all(|id| named.contains_key(id))
    };
    let mut lines = made.len();
    while agent.process().stdout().wait_until(PATIENCE, |so_far| so_far.len() >= lines) {
        let so_far = agent.process().stdout().all();
        if all(&so_far) {
            break;
        }
        lines = so_far.len() + 1;
    }
    agent.stop()?;
    let named = named_in(&agent.process().stdout().all());
    let wrong: Vec<_> = made.iter().filter(|(id, name)| named.get(*id) != Some(*name)).collect();
    println!("{} of {} named", made.len() - wrong.len(), made.len());
    ensure!(wrong.len() * 100 <= made.len(), "{wrong:?}");
    Ok(())
}
