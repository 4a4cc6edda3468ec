//! The agent in quiet mode, with a real hook. What needs no hook is tested on the host (tests/tests/quiet_mode.rs).

use std::{os::fd::AsRawFd as _, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::sys::{
    signal::Signal,
    socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket},
};
use seclog_agent::quiet::{netlink::AuditControl, rule::Rule};
use seclog_proto::v1::NodeRecord;
use seclog_tests::lab::{
    agreement::verdicts,
    audit_socket::Observer,
    process::{PATIENCE, Process},
    quiet,
};

use super::{CALLS, EXECS};

pub(crate) fn quiet_mode(cgroup: &std::path::Path) -> Vec<(&'static str, Result<()>)> {
    vec![
        ("refused-for-a-listener", refused_for_a_listener()),
        ("verdicts-without-records", verdicts_without_records(cgroup)),
        ("left-for-a-new-listener", left_for_a_new_listener(cgroup)),
        ("guard-after-kill", the_guard_removes_the_rule_after_kill()),
        // For good: no rule can be changed any more.
        ("refused-when-immutable", refused_when_immutable()),
    ]
}

pub(crate) fn agent(arguments: &[&str]) -> Result<Process> {
    let mut command = Command::new(super::agent_program());
    command.args(["run", "--sink", "stdout", "--node", "vm", "--cluster", "test", "--quiet"]).args(arguments);
    Process::start("seclog-agent", command.env("NO_COLOR", "1"))
}

fn refused_for_a_listener() -> Result<()> {
    let observer = Observer::start()?;
    let agent = agent(&[])?;
    let line = agent.wait_for_log("quiet mode is not entered")?;
    observer.finish()?;
    ensure!(line.contains("init (pid 1)") && !quiet::is_there(&Rule::ours())?, "{line}");
    ensure!(agent.terminate()?.success());
    Ok(())
}

/// The hook gives every verdict, with audit silent; and audit speaks again once the agent has stopped.
fn verdicts_without_records(cgroup: &std::path::Path) -> Result<()> {
    let observer = Observer::start()?;
    let agent = agent(&["--quiet-force"])?;
    agent.wait_for_log("quiet mode is entered")?;
    super::make_verdicts(cgroup)?;
    let is_verdict = |line: &&String| line.contains("\"kind\":\"verdict\"");
    let count = |all: &[String]| all.iter().filter(is_verdict).count();
    agent.stdout().wait_until(PATIENCE, |all| count(all) >= CALLS + EXECS);
    ensure!(agent.terminate()?.success());
    agent.wait_for_log("quiet mode is left")?;
    agent.stdout().wait_for_end();
    let records =
        agent.stdout().all().iter().map(|line| Ok(serde_json::from_str(line)?)).collect::<Result<Vec<NodeRecord>>>()?;
    ensure!(verdicts(&records).count() == CALLS + EXECS, "{} verdicts", verdicts(&records).count());
    ensure!(verdicts(&records).all(|(_, verdict)| verdict.sources == ["ebpf"]), "audit spoke");
    // In kauditd's order: a record of the quiet time would come first, and there would be more than these.
    super::make_verdicts(cgroup)?;
    let heard = super::heard(observer)?;
    ensure!(heard.len() == CALLS + EXECS, "{} audit records of {}", heard.len(), CALLS + EXECS);
    Ok(())
}

/// Nobody is forced: the agent goes out of the way of a listener that comes later.
fn left_for_a_new_listener(cgroup: &std::path::Path) -> Result<()> {
    let agent = agent(&[])?;
    agent.wait_for_log("quiet mode is entered")?;
    let observer = Observer::start()?;
    let line = agent.wait_for_log("quiet mode is left")?;
    ensure!(line.contains("init (pid 1)"), "{line}");
    super::make_verdicts(cgroup)?;
    let heard = super::heard(observer)?;
    ensure!(heard.len() == CALLS + EXECS, "{} audit records of {}", heard.len(), CALLS + EXECS);
    ensure!(agent.terminate()?.success());
    Ok(())
}

fn the_guard_removes_the_rule_after_kill() -> Result<()> {
    let agent = agent(&[])?;
    agent.wait_for_log("quiet mode is entered")?;
    ensure!(quiet::is_there(&Rule::ours())?, "no rule");
    agent.signal(Signal::SIGKILL);
    agent.wait(PATIENCE).context("it does not die")?;
    quiet::wait_until_gone(&Rule::ours())
}

fn refused_when_immutable() -> Result<()> {
    lock_rules()?;
    ensure!(AuditControl::open()?.status()?.immutable, "the rules could not be locked");
    let agent = agent(&[])?;
    let line = agent.wait_for_log("quiet mode is not entered")?;
    ensure!(line.contains("immutable") && !quiet::is_there(&Rule::ours())?, "{line}");
    agent.wait_for_log("capturing")?;
    ensure!(agent.terminate()?.success());
    Ok(())
}

/// What `auditctl -e 2` does: AUDIT_SET with struct audit_status, of it `enabled` (include/uapi/linux/audit.h).
fn lock_rules() -> Result<()> {
    const AUDIT_SET: u16 = 1001;
    const STATUS_ENABLED: u32 = 1;
    let mut bytes = Vec::new();
    bytes.extend(56_u32.to_ne_bytes());
    bytes.extend(AUDIT_SET.to_ne_bytes());
    // NLM_F_REQUEST
    bytes.extend(1_u16.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(STATUS_ENABLED.to_ne_bytes());
    bytes.extend(2_u32.to_ne_bytes());
    bytes.resize(56, 0);
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkAudit)?;
    sendto(socket.as_raw_fd(), &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(())
}
