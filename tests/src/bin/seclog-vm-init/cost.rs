//! What a logged system call costs its caller, in a machine whose clocks count instructions (`vm::Clock::Instructions`).

use std::path::Path;

use anyhow::{Result, ensure};
use seclog_tests::{
    bench::generator::{Filter, calls},
    lab::{process::PATIENCE, vm},
};

/// Fewer than kauditd's queue holds, so that nobody waits for it.
const CALLS: u64 = 4_000;

pub(crate) fn cost(_: &Path) -> Vec<(&'static str, Result<()>)> {
    vec![("caller", caller())]
}

fn caller() -> Result<()> {
    measure("plain", Filter::None)?;
    measure("silent", Filter::Silent)?;
    measure("default", Filter::Logging)?;
    let agent = super::quiet::agent(&["--quiet-force"])?;
    let line = agent.wait_for_log("capturing")?;
    ensure!(line.contains("verdict/"), "no hook: {line}");
    agent.wait_for_log("quiet mode is entered")?;
    measure("quiet", Filter::Logging)?;
    agent
        .stdout()
        .wait_until(PATIENCE, |all| all.iter().filter(|line| line.contains("getppid")).count() as u64 >= CALLS);
    let seen = agent.stdout().all().iter().filter(|line| line.contains("getppid")).count() as u64;
    ensure!(seen >= CALLS, "the hook saw {seen} of {CALLS}");
    ensure!(agent.terminate()?.success());
    Ok(())
}

fn measure(name: &str, filter: Filter) -> Result<()> {
    let cost = calls(filter, CALLS)?;
    println!("\n{}{name} {:.0}", vm::COST, cost.cpu_ns_per_call());
    Ok(())
}
