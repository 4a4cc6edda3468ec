//! A fork bomb in a real container, and what it costs the running agent. `make soak` makes all of 100,000 processes.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use seclog_tests::lab::{
    exclusive,
    node::Node,
    programs::{Agent, Sink},
    skip,
};

const NAME: &str = "a_fork_bomb_in_a_container_changes_the_agents_memory_by_less_than_32_mib";
const LIMIT_KIB: u64 = 32 << 10;
/// Processes that live at the same time.
const AT_ONCE: u64 = 50;

fn processes() -> u64 {
    if std::env::var_os("SECLOG_SOAK").is_some() { 100_000 } else { 10_000 }
}

/// A line of /proc/<pid>/status, KiB.
fn status_kib(pid: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned())?;
    line.trim_start_matches(':').split_whitespace().next().context("a number")?.parse().context("a number")
}

/// `… captured counters=[("lineage_seen", 3), …]`
fn counter(log: &str, name: &str) -> Result<u64> {
    let (_, rest) = log.split_once(&format!("(\"{name}\", ")).with_context(|| format!("no counter {name}"))?;
    rest.split(')').next().context("a number")?.parse().context("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_in_a_container_changes_the_agents_memory_by_less_than_32_mib() -> Result<()> {
    if let Some(reason) = Node::unavailable() {
        skip(NAME, &reason);
        return Ok(());
    }
    let _turn = exclusive::turn("containers")?;
    let node = Node::start().await?;
    let pod = node.run_pod("shop", "web-0", "app").await?;
    let agent = Agent::start("node-1", &node.socket(), Sink::Stdout)?;
    // One that is like what follows, so that what is set up once is there.
    node.exec(&pod, &["sh", "-c", "(:)& (:)& wait"]).await?;
    let pid = agent.process().pid();
    // The peak from here on (proc(5), clear_refs).
    fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    let before = status_kib(pid, "VmRSS")?;
    let (processes, turns) = (processes(), processes() / AT_ONCE);
    let turn = "(:)&".repeat(AT_ONCE as usize);
    let script = format!("i=0; while [ $i -lt {turns} ]; do {turn} wait; i=$((i+1)); done; /bin/echo over");
    let output = node.exec(&pod, &["sh", "-c", &script]).await?;
    ensure!(output.stdout == "over\n", "{output:?}");
    let is_over = |line: &str| line.contains("/bin/echo");
    agent.process().stdout().wait_for(seclog_tests::lab::process::PATIENCE, is_over)?;
    let most = status_kib(pid, "VmHWM")?;
    agent.stop()?;
    let counters = agent.log_lines("captured counters=").pop().context("no counters")?;
    let seen = counter(&counters, "lineage_seen")?;
    println!("{processes} processes: RSS {before} KiB before, {most} KiB at most; {counters}");
    ensure!(seen >= 2 * processes, "{seen} events of {processes} processes: {counters}");
    ensure!(most - before.min(most) < LIMIT_KIB, "RSS from {before} to {most} KiB");
    Ok(())
}
