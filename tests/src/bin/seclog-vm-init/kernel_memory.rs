//! The kernel's own memory of session roots: what it keeps when records are lost, and what it says when it is full.

use std::path::Path;

use anyhow::{Result, ensure};
use seclog_proto::v1::NodeRecord;
use seclog_tests::lab::agreement::verdicts;

use super::session::{Acting, Agent, CAP_AUDIT_READ, Captured, Runtime, inside};

/// Their records are more than a ring of 4096 bytes takes (a fork takes 120), and so the forks of those that follow are lost.
const IDLE: u32 = 100;
/// Their verdicts are fewer than such a ring takes (a verdict takes 136).
const CALLING: u32 = 25;
/// Room in the kernel for so many processes; the root takes one.
const ROOM: u64 = 110;

pub(crate) fn kernel_memory(cgroup: &Path) -> Vec<(&'static str, Result<()>)> {
    vec![
        ("membership-survives-lost-lineage", membership_survives_lost_lineage(cgroup)),
        ("full-map-means-unknown", a_full_map_means_unknown(cgroup)),
    ]
}

/// A root that is known; its children's forks are lost, and their verdicts are not.
fn children_of_a_known_root(cgroup: &Path, more: &[&str], alive: &[&str]) -> Result<(u32, Captured)> {
    let runtime = Runtime::start()?;
    let arguments =
        runtime.arguments(&[&["--verdict-ring-bytes", "4096", "--lineage-ring-bytes", "4096"][..], more].concat());
    let agent = Agent::start(&[CAP_AUDIT_READ], &arguments)?;
    let (idle, calling) = (IDLE.to_string(), CALLING.to_string());
    let forks = [&["/bin/seclog-act", "forks", &idle, &calling][..], alive].concat();
    let mut root = Acting::start(&mut inside(cgroup, &forks))?;
    let pid = root.pid();
    // Its start has been read, so that the ring is empty.
    let is_start = |line: &str| line.contains("\"kind\":\"process_start\"") && line.contains("forks");
    agent.process().stdout().wait_for(seclog_tests::lab::process::PATIENCE, is_start)?;
    agent.pause();
    root.tell()?;
    if !alive.is_empty() {
        root.is_ready()?;
        // The last child may not have come to its call yet.
        wait_until_all_wait(pid)?;
        agent.go_on();
        root.tell()?;
        root.ends()?;
    } else {
        root.ends()?;
        agent.go_on();
    }
    Ok((pid, agent.stop()?))
}

/// Until every child of the process sleeps in pause().
fn wait_until_all_wait(parent: u32) -> Result<()> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    for child in children.split_whitespace() {
        loop {
            let call = std::fs::read_to_string(format!("/proc/{child}/syscall"))?;
            if call.starts_with(&format!("{} ", libc::SYS_pause)) {
                break;
            }
            std::thread::yield_now();
        }
    }
    Ok(())
}

fn of_children(captured: &Captured) -> Vec<&NodeRecord> {
    verdicts(&captured.records).map(|(record, _)| record).collect()
}

fn membership_survives_lost_lineage(cgroup: &Path) -> Result<()> {
    let (root, captured) = children_of_a_known_root(cgroup, &[], &[])?;
    captured.identities_hold()?;
    ensure!(captured.counter("lineage_dropped")? > 0, "no lineage was lost");
    let children = of_children(&captured);
    ensure!(children.len() == CALLING as usize, "{} verdicts", children.len());
    ensure!(captured.counter("unpinned")? == u64::from(CALLING), "their forks were not lost");
    for record in children {
        let found = record.session_root.clone().unwrap_or_default();
        ensure!(found.pid == root && found.lineage == "kernel", "root {found:?}, expected {root}");
        ensure!(record.pid != root && found.start_boottime_ns > 0, "{record:?}");
    }
    Ok(())
}

fn a_full_map_means_unknown(cgroup: &Path) -> Result<()> {
    let room = ROOM.to_string();
    let (root, captured) = children_of_a_known_root(cgroup, &["--kernel-processes", &room], &["--alive"])?;
    captured.identities_hold()?;
    let full = captured.counter("process_map_full")?;
    ensure!(full > 0, "the map was not full");
    let children = of_children(&captured);
    ensure!(children.len() == CALLING as usize, "{} verdicts", children.len());
    let of_lineage = |lineage: &str| {
        let roots = children.iter().map(|record| record.session_root.clone().unwrap_or_default());
        roots.filter(|root| root.lineage == lineage).count() as u64
    };
    let (known, unknown) = (of_lineage("kernel"), of_lineage("unknown"));
    ensure!(known + unknown == children.len() as u64, "{known} known and {unknown} unknown");
    ensure!(unknown == full.min(children.len() as u64), "{unknown} unknown, {full} did not fit");
    let sure =
        children.iter().filter_map(|record| record.session_root.as_ref()).filter(|root| root.lineage == "kernel");
    for found in sure {
        ensure!(found.pid == root, "root {found:?}, expected {root}");
    }
    Ok(())
}
