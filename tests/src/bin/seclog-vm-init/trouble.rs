//! What goes on when something is missing, taken away or set: each time a clear line, and the rest works.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};
use seclog_proto::v1::{NodeRecord, node_record::Detail};
use seclog_tests::lab::process::{PATIENCE, Process};

use super::session::{Acting, Agent, CAP_AUDIT_READ, Captured, act, act_inside, inside};

const CALLS: u32 = 20;
const STEPS: u32 = 6;

/// Numbers of include/uapi/linux/capability.h.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

pub(crate) fn trouble(cgroup: &Path) -> Vec<(&'static str, Result<()>)> {
    vec![
        ("clock-steps-break-no-pair", clock_steps_break_no_pair(cgroup)),
        ("the-time-after-a-kill-is-a-loss", the_time_after_a_kill_is_a_loss(cgroup)),
        ("audit-socket-closed", the_audit_socket_is_closed(cgroup)),
        ("an-event-larger-than-the-ring", an_event_larger_than_the_ring(cgroup)),
        ("without-tracefs", without_tracefs(cgroup)),
        ("without-btf", without_btf(cgroup)),
        ("without-cap-bpf", without_cap_bpf(cgroup)),
        ("in-another-network-namespace", in_another_network_namespace(cgroup)),
        ("without-any-source", without_any_source()),
    ]
}

/// A process of the container that calls as often as told.
fn caller(cgroup: &Path, turns: u32) -> Result<Acting> {
    let (turns, calls) = (turns.to_string(), CALLS.to_string());
    Acting::start(&mut inside(cgroup, &["/bin/seclog-act", "turns", &turns, &calls]))
}

/// One turn with a running agent, to its end.
fn one_turn(agent: Agent, cgroup: &Path) -> Result<Captured> {
    let mut caller = caller(cgroup, 1)?;
    caller.tell()?;
    caller.ends()?;
    agent.wait_for_verdicts(CALLS as usize);
    let captured = agent.stop()?;
    captured.identities_hold()?;
    ensure!(captured.verdict_count() == u64::from(CALLS), "{} verdicts", captured.verdict_count());
    Ok(captured)
}

/// A line of its log says all of these.
fn says(captured: &Captured, words: &[&str]) -> Result<()> {
    let found = captured.log.iter().any(|line| words.iter().all(|word| line.contains(word)));
    ensure!(found, "no line says {words:?}: {}", captured.log.join("\n"));
    Ok(())
}

/// An hour ahead and most of it back, while verdicts are on their way. Not all of it: between two looks of the agent may lie
/// both, and what they come to must be more than nothing.
fn clock_steps_break_no_pair(cgroup: &Path) -> Result<()> {
    let agent = Agent::start(&[], &[])?;
    let mut caller = caller(cgroup, STEPS)?;
    for step in 0..STEPS {
        caller.tell()?;
        set_clock(if step % 2 == 0 { 3600 } else { -3000 })?;
        if step + 1 < STEPS {
            caller.is_ready()?;
        }
    }
    caller.ends()?;
    let made = u64::from(STEPS * CALLS);
    agent.wait_for_verdicts(made as usize);
    let captured = agent.stop()?;
    captured.identities_hold()?;
    let fused = captured.counter("fused")?;
    ensure!(fused == made && captured.verdict_count() == made, "{fused} of {made} by both: {:?}", captured.counters);
    says(&captured, &["the wall clock was set"])
}

fn set_clock(seconds: i64) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let time = libc::timespec { tv_sec: now.as_secs() as i64 + seconds, tv_nsec: i64::from(now.subsec_nanos()) };
    // SAFETY: a valid time.
    Errno::result(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &raw const time) }).context("clock_settime")?;
    Ok(())
}

/// What nobody can count has bounds: from the last hand-over to the next start.
fn the_time_after_a_kill_is_a_loss(cgroup: &Path) -> Result<()> {
    let state = ["--state-file", "/run/killed.state"];
    let agent = Agent::start(&[], &state)?;
    let mut caller = caller(cgroup, 2)?;
    caller.tell()?;
    caller.is_ready()?;
    agent.wait_for_verdicts(CALLS as usize);
    // It notes what was handed over once a second.
    while !Path::new(state[1]).exists() {
        std::thread::yield_now();
    }
    agent.process().signal(Signal::SIGKILL);
    agent.process().wait(PATIENCE).context("it does not die")?;
    let unwatched = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    caller.tell()?;
    caller.ends()?;
    let captured = Agent::start(&[], &state)?.stop()?;
    captured.identities_hold()?;
    let loss = captured.losses("agent").next().context("no loss record")?;
    ensure!(!loss.count_known && loss.reason.contains("killed"), "{loss:?}");
    ensure!(loss.from_unix_ns > 0 && loss.from_unix_ns <= unwatched && unwatched < loss.until_unix_ns, "{loss:?}");
    Ok(())
}

/// Somebody closes the agent's descriptor.
fn the_audit_socket_is_closed(cgroup: &Path) -> Result<()> {
    let agent = Agent::start(&[], &[])?;
    super::session::act_outside(&["close-audit", &agent.process().pid().to_string()])?;
    agent.process().wait_for_log("audit records are no longer read")?;
    let captured = one_turn(agent, cgroup)?;
    ensure!(captured.counter("only_kernel")? == u64::from(CALLS), "{:?}", captured.counters);
    ensure!(captured.losses("audit_netlink").any(|loss| loss.reason.contains("closed")), "no loss record");
    Ok(())
}

/// Starts whose arguments alone are larger than the ring.
fn an_event_larger_than_the_ring(cgroup: &Path) -> Result<()> {
    super::session::act_outside(&["shortest", "/tmp/shortest"])?;
    let agent = Agent::start(&[CAP_AUDIT_READ], &["--verdict-ring-bytes", "4096", "--lineage-ring-bytes", "4096"])?;
    act_inside(cgroup, &["arguments"])?;
    let captured = one_turn(agent, cgroup)?;
    let too_large = |record: &NodeRecord| matches!(&record.detail, Some(Detail::ProcessStart(start)) if start.argv.concat().len() > 4096);
    ensure!(!captured.records.iter().any(too_large), "it went through");
    ensure!(captured.counter("lineage_dropped")? >= 2, "{:?}", captured.counters);
    Ok(())
}

fn without_tracefs(cgroup: &Path) -> Result<()> {
    for place in ["/sys/kernel/debug", "/sys/kernel/tracing"] {
        umount2(place, MntFlags::MNT_DETACH).with_context(|| place.to_owned())?;
    }
    let captured = one_turn(Agent::start(&[], &["--verdict-hook", "kprobe"])?, cgroup)?;
    ensure!(captured.counter("fused")? == u64::from(CALLS), "{:?}", captured.counters);
    Ok(())
}

fn without_btf(cgroup: &Path) -> Result<()> {
    let place = "/sys/kernel/btf";
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>).context(place)?;
    let captured = one_turn(Agent::start(&[], &[])?, cgroup);
    umount2(place, MntFlags::MNT_DETACH)?;
    let captured = captured?;
    says(&captured, &["does not work here", "ebpf", "CONFIG_DEBUG_INFO_BTF"])?;
    ensure!(captured.counter("only_audit")? == u64::from(CALLS), "{:?}", captured.counters);
    Ok(())
}

fn without_cap_bpf(cgroup: &Path) -> Result<()> {
    let captured = one_turn(Agent::start(&[CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF], &[])?, cgroup)?;
    says(&captured, &["does not work here", "ebpf", "CAP_BPF"])?;
    ensure!(captured.counter("only_audit")? == u64::from(CALLS), "{:?}", captured.counters);
    Ok(())
}

fn in_another_network_namespace(cgroup: &Path) -> Result<()> {
    let mut command = Command::new("/bin/busybox");
    command.args(["unshare", "-n"]).arg(super::agent_program()).args(["run", "--sink", "stdout", "--node", "vm"]);
    let captured = one_turn(Agent::started(&mut command)?, cgroup)?;
    says(&captured, &["does not work here", "audit/netlink", "network namespace"])?;
    ensure!(captured.counter("only_kernel")? == u64::from(CALLS), "{:?}", captured.counters);
    Ok(())
}

/// It cannot do anything, and says what it would need for each.
fn without_any_source() -> Result<()> {
    let without = [CAP_SYS_ADMIN, CAP_AUDIT_READ, CAP_PERFMON, CAP_BPF].map(|number| number.to_string()).join(",");
    let mut command = act(&["without", &without, "--"]);
    command.arg(super::agent_program()).args(["run", "--sink", "stdout", "--node", "vm"]).stdin(Stdio::null());
    let agent = Process::start("seclog-agent", &mut command)?;
    let status = agent.wait(PATIENCE).context("it goes on")?;
    agent.stderr().wait_for_end();
    let log = agent.log();
    ensure!(status.code() == Some(2) && log.contains("nothing can be captured here"), "{status}: {log}");
    ensure!(log.contains("CAP_BPF") && log.contains("CAP_AUDIT_READ"), "{log}");
    Ok(())
}
