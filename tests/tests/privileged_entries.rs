//! What a session that reaches the node does there: it enters other containers and the host by nsenter, and asks daemons to
//! start something. All of it stays its own, or is named as what it is, and is never another session's.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use seclog_proto::v1::{NodeRecord, node_record::Detail};
use seclog_tests::lab::{
    cri::{Pod, Rights},
    exclusive::{self, Turn},
    node::Node,
    places,
    process::{PATIENCE, Process},
    programs::{Agent, Sink},
    skip,
};

/// What `oc debug node/…` makes, a pod that it enters, and an agent.
struct Scene {
    // The first of these that is bound is the last to be dropped.
    _turn: Turn,
    node: Node,
    victim: Pod,
    debug: Pod,
    agent: Agent,
}

/// `None`: there can be none here, and `test` is told as skipped.
async fn scene(test: &str) -> Result<Option<Scene>> {
    if !Node::is_available(test, &[]) {
        return Ok(None);
    }
    let turn = exclusive::turn("containers")?;
    let node = Node::start().await?;
    let victim = node.run_pod("shop", "web-0", "app").await?;
    let debug = node.run_pod_with("default", "node-1-debug", "container-00", Rights::Node).await?;
    let agent = Agent::start("node-1", &node.socket(), Sink::Stdout)?;
    Ok(Some(Scene { _turn: turn, node, victim, debug, agent }))
}

#[tokio::test(flavor = "multi_thread")]
async fn nsenter_from_a_debug_pod_stays_the_debug_session_and_says_where_it_went() -> Result<()> {
    const NAME: &str = "nsenter_from_a_debug_pod_stays_the_debug_session_and_says_where_it_went";
    let Some(Scene { _turn, node, victim, debug, agent }) = scene(NAME).await? else { return Ok(()) };
    let target = node.main_process(&victim)?;
    let host = std::process::id();
    let script = format!(
        ": debug-session; nsenter -t {target} -m -p /bin/sh -c ': in-container; /bin/true below-it'; \
         nsenter -t {host} -m -- /bin/sh -c ': on-host; :'; /bin/true back"
    );
    let output = node.exec(&debug, &["sh", "-c", &script, "debug-session"]).await?;
    ensure!(output.exit_code == 0, "{output:?}");
    let (record, start, session) = agent.wait_for_start("debug-session")?;
    ensure!(start.is_session_root && session.entry == "exec", "{session:?}");
    let container = record.container.unwrap_or_default();
    ensure!(container.id == debug.container_id && container.pod_name == "node-1-debug", "{container:?}");
    let places = [
        (": in-container; /bin/true below-it", victim.container_id.as_str()),
        ("below-it", victim.container_id.as_str()),
        (": on-host; :", "host"),
        ("back", ""),
    ];
    for (argument, place) in places {
        let (record, start, root) = agent.wait_for_start(argument)?;
        ensure!((root.pid, root.start_boottime_ns) == (session.pid, session.start_boottime_ns), "{argument}: {root:?}");
        ensure!(start.entered_container_id == place && !start.is_session_root, "{argument}: {start:?}");
        // Whose it is does not change with where it goes.
        ensure!(record.container.unwrap_or_default().id == debug.container_id, "{argument}");
    }
    agent.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_daemon_starts_for_a_debug_session_is_a_root_of_its_own_in_its_container() -> Result<()> {
    const NAME: &str = "what_a_daemon_starts_for_a_debug_session_is_a_root_of_its_own_in_its_container";
    let Some(Scene { _turn, node, victim, debug, agent }) = scene(NAME).await? else { return Ok(()) };
    let ctr = places::tool("ctr").context("no ctr")?;
    let script = format!(
        "nsenter -t {} -m -- {} --address {} -n k8s.io tasks exec --exec-id asked-for {} /bin/true by-daemon",
        std::process::id(),
        ctr.display(),
        node.socket().display(),
        victim.container_id
    );
    let output = node.exec(&debug, &["sh", "-c", &script, "debug-session"]).await?;
    ensure!(output.exit_code == 0, "{output:?}");
    let (_, _, session) = agent.wait_for_start("debug-session")?;
    // The client is the session's, and ran on the host.
    let (_, client, root) = agent.wait_for_start("asked-for")?;
    ensure!(root.pid == session.pid, "{root:?} of {session:?}");
    let is_client = |record: &NodeRecord| match &record.detail {
        Some(Detail::ProcessStart(start)) => start.filename.ends_with("/ctr") && start.entered_container_id == "host",
        _ => false,
    };
    agent.wait_for_record(PATIENCE, is_client).with_context(|| format!("{client:?}"))?;
    let asked = |record: &NodeRecord| match &record.detail {
        Some(Detail::ProcessStart(start)) => start.argv == ["/bin/true", "by-daemon"],
        _ => false,
    };
    let record = agent.wait_for_record(PATIENCE, asked)?;
    let root = record.session_root.context("no root")?;
    ensure!(root.pid == record.pid && root.pid != session.pid, "{root:?} of {session:?}");
    ensure!(root.entry == "other" && root.rule.contains("another client of containerd"), "{root:?}");
    ensure!(record.container.unwrap_or_default().id == victim.container_id);
    agent.stop()
}

/// To the node it is what the API server has the kubelet do. So it is no other session's, and what tells that it may have come of
/// this one is the client that this one ran.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_debug_session_asks_the_cri_for_is_an_entry_of_its_own_into_that_container() -> Result<()> {
    const NAME: &str = "what_a_debug_session_asks_the_cri_for_is_an_entry_of_its_own_into_that_container";
    let Some(Scene { _turn, node, victim, debug, agent }) = scene(NAME).await? else { return Ok(()) };
    let client = places::program("seclog-cri")?;
    let ask = |way: &str| {
        format!(
            "nsenter -t {} -m -- {} {} {way} {} -- /bin/sh -c '/bin/true child-of-{way}' {way}-root",
            std::process::id(),
            client.display(),
            node.socket().display(),
            victim.container_id
        )
    };
    let script = format!("set -e; {}; {}; :", ask("exec-sync"), ask("exec"));
    let output = node.exec(&debug, &["sh", "-c", &script, "debug-session"]).await?;
    ensure!(output.exit_code == 0, "{output:?}");
    let (_, _, session) = agent.wait_for_start("debug-session")?;
    for (way, entries) in [("exec-sync", &["exec", "exec_sync"][..]), ("exec", &["exec"])] {
        let asked = |record: &NodeRecord| match &record.detail {
            Some(Detail::ProcessStart(start)) => {
                start.filename == "/bin/sh" && start.argv.last().is_some_and(|last| *last == format!("{way}-root"))
            }
            _ => false,
        };
        let record = agent.wait_for_record(PATIENCE, asked)?;
        let root = record.session_root.clone().context("no root")?;
        ensure!(root.pid == record.pid && root.pid != session.pid, "{way}: {root:?} of {session:?}");
        // Which of both ways it was is known only where nobody has connected for long.
        ensure!(entries.contains(&root.entry.as_str()) && root.lineage == "observed", "{way}: {root:?}");
        ensure!(root.entry == "exec_sync" || root.rule.contains("either of them"), "{way}: {root:?}");
        ensure!(record.container.unwrap_or_default().id == victim.container_id, "{way}");
        let (_, _, of_child) = agent.wait_for_start(&format!("child-of-{way}"))?;
        ensure!(of_child.pid == root.pid, "{way}: {of_child:?}");
        // The client is the session's, on the host.
        let is_client = |record: &NodeRecord| match &record.detail {
            Some(Detail::ProcessStart(start)) => {
                start.filename.ends_with("/seclog-cri")
                    && start.argv.iter().any(|own| own == way)
                    && start.entered_container_id == "host"
                    && record.session_root.as_ref().is_some_and(|root| root.pid == session.pid)
            }
            _ => false,
        };
        agent.wait_for_record(PATIENCE, is_client)?;
    }
    agent.stop()
}

/// cron looks once a minute: `make soak`.
#[tokio::test(flavor = "multi_thread")]
async fn what_cron_runs_on_the_host_for_a_debug_session_is_no_sessions() -> Result<()> {
    const NAME: &str = "what_cron_runs_on_the_host_for_a_debug_session_is_no_sessions";
    if std::env::var_os("SECLOG_SOAK").is_none() {
        skip(NAME, "cron looks once a minute (make soak)");
        return Ok(());
    }
    let Some(Scene { _turn, node, debug, agent, .. }) = scene(NAME).await? else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let (tables, done) = (directory.path().join("crontabs"), directory.path().join("done"));
    std::fs::create_dir(&tables)?;
    let busybox = places::tool("busybox").context("no busybox")?;
    let cron = Process::start("crond", Command::new(&busybox).args(["crond", "-f", "-c"]).arg(&tables))?;
    let job = format!("* * * * * {} touch {} cron-mark", busybox.display(), done.display());
    let script = format!(
        "nsenter -t {} -m -- /bin/sh -c 'echo \"{job}\" >{}; echo root >{}'",
        std::process::id(),
        tables.join("root").display(),
        tables.join("cron.update").display()
    );
    node.exec(&debug, &["sh", "-c", &script, "debug-session"]).await?;
    let (_, _, session) = agent.wait_for_start("debug-session")?;
    let mut turns = 0;
    while !done.exists() {
        turns += 1;
        ensure!(turns < 300, "cron did not run its job in five minutes: {}", cron.log());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    cron.terminate()?;
    agent.stop()?;
    let of_cron = |record: &NodeRecord| match &record.detail {
        Some(Detail::ProcessStart(start)) => {
            start.argv.first().is_some_and(|first| first.ends_with("busybox"))
                && start.argv.iter().any(|argument| argument == "cron-mark")
        }
        _ => false,
    };
    let found: Vec<_> = agent.records()?.into_iter().filter(of_cron).collect();
    ensure!(found.is_empty(), "below {session:?}: {found:?}");
    Ok(())
}
