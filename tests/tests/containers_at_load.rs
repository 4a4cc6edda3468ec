//! Many execs at once into many real containers: every process belongs to its own exec and its own container.

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, Result, ensure};
use seclog_proto::v1::{NodeRecord, ProcessStart, SessionRoot, node_record::Detail};
use seclog_tests::lab::{
    exclusive,
    node::Node,
    programs::{Agent, Sink},
    skip,
};
use tokio::task::JoinSet;

const PODS: usize = 10;
const EXECS: usize = 200;

/// Of what a mark stands in: the mark itself, in a script or alone.
fn mark_of(start: &ProcessStart) -> Option<usize> {
    let argument = start.argv.iter().find_map(|argument| argument.split_once("mark-"))?.1;
    argument.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

fn starts(records: &[NodeRecord]) -> impl Iterator<Item = (&NodeRecord, &ProcessStart, &SessionRoot)> {
    records.iter().filter_map(|record| match (&record.detail, &record.session_root) {
        (Some(Detail::ProcessStart(start)), Some(root)) => Some((record, start, root)),
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_hundred_execs_at_once_in_ten_containers_every_process_has_its_own_root_and_container() -> Result<()> {
    if let Some(reason) = Node::unavailable() {
        skip("of_two_hundred_execs_at_once_in_ten_containers_every_process_has_its_own_root_and_container", &reason);
        return Ok(());
    }
    let _turn = exclusive::turn("containers")?;
    let node = std::sync::Arc::new(Node::start().await?);
    let agent = Agent::start("node-1", &node.socket(), Sink::Stdout)?;
    let mut pods = Vec::new();
    for number in 0..PODS {
        pods.push(node.run_pod("shop", &format!("web-{number}"), "app").await?);
    }
    let mut execs = JoinSet::new();
    for number in 0..EXECS {
        let (node, pod) = (std::sync::Arc::clone(&node), pods[number % PODS].clone());
        execs.spawn(async move {
            // A child, one without environment, and a daemon that outlives its creator.
            let script = format!(
                ": mark-{number}; /bin/sleep 1; /bin/env -i /bin/echo mark-{number}; \
                 (/bin/sh -c '(/bin/sh -c \"/bin/sleep 1; /bin/echo mark-{number}\" >/dev/null &)')"
            );
            let command = ["sh", "-c", script.as_str()];
            // Some by the way of probes, and some with a console.
            let output = match number % 4 {
                0 => node.exec_sync(&pod, &command).await,
                1 => node.exec_with_console(&pod, &command).await,
                _ => node.exec(&pod, &command).await,
            };
            output.with_context(|| format!("exec {number}")).map(|output| (number, output))
        });
    }
    while let Some(done) = execs.join_next().await {
        let (number, output) = done??;
        // Under load a console can lose what was written last; what ran is seen by the agent or not at all.
        ensure!(output.exit_code == 0, "exec {number}: {output:?}");
    }
    // The last daemons' last words.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    agent.stop()?;
    let records = agent.records()?;

    let mut roots: HashMap<usize, (u32, u64)> = HashMap::new();
    for (record, start, root) in starts(&records).filter(|(_, start, _)| start.is_session_root) {
        let Some(number) = mark_of(start) else { continue };
        let container = record.container.clone().unwrap_or_default();
        assert_eq!(container.id, pods[number % PODS].container_id, "exec {number}");
        assert_eq!((container.pod_name, container.names), (pods[number % PODS].name.clone(), "cri".to_owned()));
        assert_eq!(root.lineage, "observed", "exec {number}: {root:?}");
        // A console tells Exec. Amid connections for others, of an ExecSync seldom more is told than that it may be one.
        let is_right = match (number % 4, root.entry.as_str()) {
            (0, "exec_sync") => root.rule.contains("nobody had connected"),
            (1, "exec") => root.rule.contains("with a console"),
            (_, "exec") => root.rule.contains("either of them"),
            _ => false,
        };
        assert!(is_right, "exec {number}: {root:?}");
        assert!(roots.insert(number, (root.pid, root.start_boottime_ns)).is_none(), "exec {number} has one root");
        let facts = start.container_facts.clone().unwrap_or_default();
        assert_eq!((facts.privileged.as_str(), facts.logs_exec.as_str()), ("no", "yes"), "exec {number}");
    }
    assert_eq!(roots.len(), EXECS);
    assert_eq!(roots.values().collect::<HashSet<_>>().len(), EXECS, "no two share a root");
    let mut seen: HashMap<usize, usize> = HashMap::new();
    for (record, start, root) in starts(&records) {
        let Some(number) = mark_of(start) else { continue };
        assert_eq!(Some(&(root.pid, root.start_boottime_ns)), roots.get(&number), "{start:?}");
        let container = record.container.as_ref().map(|container| container.id.as_str());
        assert_eq!(container, Some(pods[number % PODS].container_id.as_str()), "{start:?}");
        *seen.entry(number).or_default() += 1;
    }
    // The script, env and what it becomes, the shells between, and the daemon's echo, unless a console hung up on it.
    let enough = |(number, count): (&usize, &usize)| if number % 4 == 1 { *count >= 4 } else { *count == 6 };
    assert!(seen.iter().all(enough), "{seen:?}");
    Ok(())
}
