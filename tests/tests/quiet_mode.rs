//! Quiet mode's rule on this host's kernel. Where no verdict hook can be attached it is entered without one, by a program
//! of the tests; with a hook, and with immutable rules, it is tried in QEMU (tests/src/bin/seclog-vm-init/quiet.rs).

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use seclog_agent::quiet::rule::Rule;
use seclog_tests::lab::{
    audit_socket::Observer,
    exclusive::{Turn, turn},
    places,
    process::{PATIENCE, Process},
    quiet::{self, Quiet, Restore, guard_of, kill_guard, make_verdicts, only_these_are_heard, state},
    skip,
};

/// The rules are the whole host's, as the audit stream is, which tests with containers share. `None`: skipped.
fn exclusively(name: &str) -> Result<Option<(Restore, Turn)>> {
    let turn = turn("containers")?;
    if let Some(reason) = quiet::unavailable() {
        skip(name, reason);
        return Ok(None);
    }
    Ok(Some((Restore, turn)))
}

fn agent(arguments: &[&str], state: &std::path::Path) -> Result<Process> {
    let mut command = Command::new(places::program("seclog-agent")?);
    command.args(["run", "--sink", "stdout", "--verdict-hook", "none", "--quiet-state"]).arg(state).args(arguments);
    Process::start("seclog-agent", command.env("NO_COLOR", "1"))
}

#[test]
fn no_record_is_made_in_quiet_mode_and_they_are_again_afterwards() -> Result<()> {
    let Some(_restore) = exclusively("no_record_is_made_in_quiet_mode_and_they_are_again_afterwards")? else {
        return Ok(());
    };
    let (_directory, state) = state()?;
    let observer = Observer::start()?;
    let quiet = Quiet::enter(&state)?;
    ensure!(quiet.line.contains("made=true") && quiet::is_there(&Rule::ours())?, "{}", quiet.line);
    let silent = make_verdicts()?;
    quiet.leave()?;
    ensure!(!quiet::is_there(&Rule::ours())?, "the rule is still there");
    only_these_are_heard(observer, &[silent])
}

#[test]
fn a_killed_agents_guard_removes_the_rule() -> Result<()> {
    let Some(_restore) = exclusively("a_killed_agents_guard_removes_the_rule")? else { return Ok(()) };
    let (_directory, state) = state()?;
    let observer = Observer::start()?;
    let quiet = Quiet::enter(&state)?;
    let silent = make_verdicts()?;
    // What ends a whole process group does not end the guard, nor does a polite signal to itself.
    let guard = Pid::from_raw(quiet.guard()?);
    kill(guard, Signal::SIGTERM)?;
    kill(guard, Signal::SIGINT)?;
    kill(Pid::from_raw(-i32::try_from(quiet.process.pid())?), Signal::SIGKILL)?;
    quiet.process.wait(PATIENCE).context("it does not die")?;
    quiet::wait_until_gone(&Rule::ours())?;
    only_these_are_heard(observer, &[silent])?;
    // The guard also cleared the file, so the next one has nothing to tell of, and waits until the guard is gone.
    let next = Quiet::enter(&state)?;
    ensure!(!next.process.log().contains("left behind"), "{}", next.process.log());
    next.leave()
}

#[test]
fn a_rule_that_someone_else_made_is_never_deleted() -> Result<()> {
    let Some(_restore) = exclusively("a_rule_that_someone_else_made_is_never_deleted")? else { return Ok(()) };
    let (_directory, state) = state()?;
    let theirs = quiet::administrators_rule()?;

    // Made while ours is there; left in order, and by kill -9.
    let quiet = Quiet::enter(&state)?;
    quiet::add(&theirs)?;
    quiet.leave()?;
    ensure!(quiet::is_there(&theirs)? && !quiet::is_there(&Rule::ours())?);
    // There before: nothing is added, nobody guards, nothing is deleted.
    let quiet = Quiet::enter(&state)?;
    ensure!(quiet.line == "entered made=false guard=0", "{}", quiet.line);
    ensure!(!quiet::is_there(&Rule::ours())?);
    quiet.kill()?;
    let quiet = Quiet::enter(&state)?;
    quiet.leave()?;
    ensure!(quiet::is_there(&theirs)?, "their rule is gone");
    Ok(())
}

#[test]
fn a_guard_after_kill_leaves_someone_elses_rule() -> Result<()> {
    let Some(_restore) = exclusively("a_guard_after_kill_leaves_someone_elses_rule")? else { return Ok(()) };
    let (_directory, state) = state()?;
    let theirs = quiet::administrators_rule()?;
    let quiet = Quiet::enter(&state)?;
    quiet::add(&theirs)?;
    quiet.kill()?;
    quiet::wait_until_gone(&Rule::ours())?;
    ensure!(quiet::is_there(&theirs)?, "their rule is gone");
    Ok(())
}

#[test]
fn a_rule_left_by_agent_and_guard_is_removed_by_the_next_agent_if_the_state_file_tells_of_it() -> Result<()> {
    let name = "a_rule_left_by_agent_and_guard_is_removed_by_the_next_agent_if_the_state_file_tells_of_it";
    let Some(_restore) = exclusively(name)? else { return Ok(()) };
    let (_directory, state) = state()?;
    let quiet = Quiet::enter(&state)?;
    kill_guard(quiet.guard()?)?;
    quiet.kill()?;
    ensure!(quiet::is_there(&Rule::ours())?, "someone removed the rule");

    // Another agent's file tells nothing: the rule could be anyone's.
    let other = state.with_file_name("other.state");
    let stranger = Quiet::enter(&other)?;
    ensure!(stranger.line.contains("made=false"), "{}", stranger.line);
    stranger.leave()?;
    ensure!(quiet::is_there(&Rule::ours())?, "a rule was deleted that nothing told of");

    // An agent without quiet mode removes it just as well.
    let agent = agent(&[], &state)?;
    agent.wait_for_log("left behind")?;
    ensure!(!quiet::is_there(&Rule::ours())?, "the rule is still there");
    agent.wait_for_log("capturing")?;
    ensure!(agent.terminate()?.success());
    ensure!(std::fs::read(&state)?.is_empty());
    Ok(())
}

#[test]
fn a_guard_that_was_killed_is_replaced() -> Result<()> {
    let Some(_restore) = exclusively("a_guard_that_was_killed_is_replaced")? else { return Ok(()) };
    let (_directory, state) = state()?;
    let quiet = Quiet::enter(&state)?;
    kill_guard(quiet.guard()?)?;
    let answer = quiet.check(1)?;
    ensure!(answer.starts_with("well") && guard_of(&answer)? != quiet.guard()?, "{answer}");
    quiet.kill()?;
    quiet::wait_until_gone(&Rule::ours())
}

#[test]
fn a_rule_that_an_administrator_removes_is_missed() -> Result<()> {
    let Some(_restore) = exclusively("a_rule_that_an_administrator_removes_is_missed")? else { return Ok(()) };
    let (_directory, state) = state()?;
    let quiet = Quiet::enter(&state)?;
    ensure!(quiet.check(1)?.starts_with("well"));
    match places::tool("auditctl") {
        // As people are told to: auditctl must know our rule.
        Some(auditctl) => {
            let status = Command::new(auditctl)
                .args(["-d", "always,exclude", "-F", "msgtype=SECCOMP", "-F", "msgtype=SECCOMP"])
                .status()?;
            ensure!(status.success(), "auditctl: {status}");
        }
        None => seclog_agent::quiet::netlink::AuditControl::open()?.delete(&Rule::ours())?,
    }
    let answer = quiet.check(2)?;
    ensure!(answer.contains("removed by someone else"), "{answer}");
    ensure!(!quiet::is_there(&Rule::ours())?);
    quiet.leave()
}

#[test]
fn who_would_miss_records_is_named_and_quiet_mode_refused() -> Result<()> {
    let Some(_restore) = exclusively("who_would_miss_records_is_named_and_quiet_mode_refused")? else { return Ok(()) };
    let (_directory, state) = state()?;
    let observer = Observer::start()?;
    let quiet = Quiet::ask(&state, false)?;
    observer.finish()?;
    let own = format!("(pid {})", std::process::id());
    ensure!(quiet.line.starts_with("refused: ") && quiet.line.contains(&own), "{}", quiet.line);
    ensure!(!quiet::is_there(&Rule::ours())?, "the rule was added");
    Ok(())
}

#[test]
fn two_agents_of_one_host_do_not_share_a_rule() -> Result<()> {
    let Some(_restore) = exclusively("two_agents_of_one_host_do_not_share_a_rule")? else { return Ok(()) };
    let (_directory, state) = state()?;
    let first = Quiet::enter(&state)?;
    let second = Quiet::ask(&state, true)?;
    ensure!(second.line.contains("another seclog-agent"), "{}", second.line);
    ensure!(quiet::is_there(&Rule::ours())?);
    first.leave()
}

#[test]
fn without_a_verdict_hook_the_agent_says_so_in_one_line_and_goes_on() -> Result<()> {
    let Some(_restore) = exclusively("without_a_verdict_hook_the_agent_says_so_in_one_line_and_goes_on")? else {
        return Ok(());
    };
    let (_directory, state) = state()?;
    let agent = agent(&["--quiet"], &state)?;
    let line = agent.wait_for_log("quiet mode")?;
    ensure!(line.contains("not entered") && line.contains("no eBPF hook sees verdicts here"), "{line}");
    agent.wait_for_log("capturing")?;
    ensure!(!quiet::is_there(&Rule::ours())? && agent.is_running());
    ensure!(agent.terminate()?.success(), "{}", agent.log());
    let lines = agent.stderr().all();
    ensure!(lines.iter().filter(|line| line.contains("quiet")).count() == 1, "{}", lines.join("\n"));
    Ok(())
}
