//! Nothing is lost silently: tiny rings, an agent that does not read, and what must add up afterwards.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Result, ensure};
use seclog_tests::lab::agreement::verdicts;

use super::{
    CALLS, EXECS,
    session::{Agent, CAP_AUDIT_READ, CAP_NET_ADMIN, Captured, act_inside},
};

const TINY: [&str; 4] = ["--verdict-ring-bytes", "4096", "--lineage-ring-bytes", "4096"];
const MADE: u64 = (CALLS + EXECS) as u64;
/// More kinds than the kernel's map of counts has room for.
const KINDS: u64 = 6000;

/// In every kernel's set.
pub(crate) fn overflow(cgroup: &Path) -> Vec<(&'static str, Result<()>)> {
    vec![
        ("ebpf-alone", everything_is_a_record_or_a_count(cgroup)),
        ("with-audit", audit_brings_what_the_ring_could_not_take(cgroup)),
    ]
}

pub(crate) fn rarer_losses(cgroup: &Path) -> Vec<(&'static str, Result<()>)> {
    vec![
        ("map-of-counts-full", what_no_count_has_room_for_is_a_loss(cgroup)),
        ("audit-socket-overrun", ebpf_brings_what_the_audit_socket_dropped(cgroup)),
    ]
}

/// The load runs while the agent does not.
fn while_paused(agent: Agent, load: impl FnOnce() -> Result<()>) -> Result<Captured> {
    agent.pause();
    load()?;
    agent.go_on();
    agent.stop()
}

fn everything_is_a_record_or_a_count(cgroup: &Path) -> Result<()> {
    let agent = Agent::start(&[CAP_AUDIT_READ], &TINY)?;
    let captured = while_paused(agent, || super::make_verdicts(cgroup))?;
    captured.identities_hold()?;
    let (aggregated, dropped) = (captured.counter("verdict_aggregated")?, captured.counter("verdict_dropped")?);
    let made = captured.counter("verdict_seen")? + captured.counter("verdict_recursion_misses")?;
    ensure!(made == MADE, "{made} verdicts seen or missed by the kernel, {MADE} made");
    ensure!(aggregated > 0 && dropped == 0, "{aggregated} aggregated, {dropped} dropped: the ring was not full");
    ensure!(captured.counter("lineage_dropped")? > 0, "the lineage ring was not full");
    ensure!(captured.counter("audit_verdicts")? == 0, "audit spoke without CAP_AUDIT_READ");
    let told = captured.verdict_count() + captured.counts().map(|(_, count)| count.count).sum::<u64>();
    ensure!(told == captured.counter("verdict_seen")?, "{told} verdicts told");
    counts_say_what_they_count(&captured)
}

/// By cgroup, system call, ABI and action, with first, last and one of the processes.
fn counts_say_what_they_count(captured: &Captured) -> Result<()> {
    let mut names = BTreeSet::new();
    for (record, count) in captured.counts() {
        names.insert(count.syscall_name.as_str());
        let container = record.container.clone().unwrap_or_default();
        ensure!(container.id == super::container_id(), "in container {:?}", container.id);
        ensure!(count.arch_name == "x86_64" && count.action == "log", "{} {}", count.arch_name, count.action);
        ensure!(count.first_unix_ns > 0 && count.first_unix_ns <= count.last_unix_ns, "first after last");
        ensure!(record.pid > 0 && record.start_boottime_ns > 0, "no sample process");
        ensure!(record.comm == "seclog-load" && record.uid == super::USER, "{:?} of {}", record.comm, record.uid);
    }
    // One for each kind and turn of the two maps; execve only when the ring was still full by then.
    ensure!(names.contains("getppid") && names.iter().all(|name| ["getppid", "execve"].contains(name)), "{names:?}");
    Ok(())
}

/// What eBPF could only count, audit has singly: of that there is a record, and the count.
fn audit_brings_what_the_ring_could_not_take(cgroup: &Path) -> Result<()> {
    let agent = Agent::start(&[], &TINY)?;
    agent.pause();
    super::make_verdicts(cgroup)?;
    agent.go_on();
    agent.wait_for_verdicts(CALLS + EXECS);
    let captured = agent.stop()?;
    captured.identities_hold()?;
    let of = |name: &str| captured.counter(name);
    ensure!(of("verdict_aggregated")? > 0, "the ring was not full");
    ensure!(of("audit_overruns")? + of("audit_queue_full")? == 0, "audit lost some, too");
    ensure!(of("audit_verdicts")? == MADE, "{} of {MADE} audit records", of("audit_verdicts")?);
    ensure!(of("only_kernel")? == 0, "{} verdicts of eBPF found no audit record", of("only_kernel")?);
    let alone = MADE - of("verdict_submitted")?;
    ensure!(of("only_audit")? == alone, "{} from audit alone, expected {alone}", of("only_audit")?);
    Ok(())
}

/// Every number is a kind of its own.
fn what_no_count_has_room_for_is_a_loss(cgroup: &Path) -> Result<()> {
    let agent = Agent::start(&[CAP_AUDIT_READ], &TINY)?;
    let load = || act_inside(cgroup, &["numbers", "1000", &KINDS.to_string()]).map(drop);
    let captured = while_paused(agent, load)?;
    captured.identities_hold()?;
    let of = |name: &str| captured.counter(name);
    ensure!(of("verdict_seen")? + of("verdict_recursion_misses")? == KINDS, "{} seen", of("verdict_seen")?);
    ensure!(of("verdict_dropped")? > 0, "the map of counts was not full");
    // A system call that does not exist has a number and no name.
    for (_, count) in captured.counts() {
        ensure!(count.count == 1 && count.syscall >= 1000 && count.syscall_name.is_empty(), "{count:?}");
    }
    Ok(())
}

/// With the small receive buffer that an agent without CAP_NET_ADMIN has.
fn ebpf_brings_what_the_audit_socket_dropped(cgroup: &Path) -> Result<()> {
    // The kernel's default for long; the newest allow 4 MiB.
    std::fs::write("/proc/sys/net/core/rmem_max", "212992")?;
    let agent = Agent::start(&[CAP_NET_ADMIN], &[])?;
    let captured = while_paused(agent, || super::make_verdicts(cgroup))?;
    captured.identities_hold()?;
    let of = |name: &str| captured.counter(name);
    ensure!(of("audit_overruns")? > 0, "the audit socket was not full");
    ensure!(captured.losses("audit_netlink").any(|loss| !loss.count_known), "no loss record of ENOBUFS");
    let seen = of("verdict_seen")?;
    ensure!(seen + of("verdict_recursion_misses")? == MADE && of("verdict_submitted")? == seen, "{seen} seen");
    ensure!(of("only_audit")? <= of("verdict_recursion_misses")?, "{} from audit alone", of("only_audit")?);
    ensure!(captured.verdict_count() == MADE.min(seen + of("only_audit")?), "{} records", captured.verdict_count());
    let both = verdicts(&captured.records).filter(|(_, verdict)| verdict.sources.len() == 2).count() as u64;
    ensure!(both == of("fused")? && both < MADE, "{both} from both");
    Ok(())
}
