//! The first process of a virtual machine: prepares the system, makes verdicts with and without the agent, and says on
//! the console, a line each, what held: `CHECK <name> ok` or `CHECK <name> FAIL <detail>`, at the end `init: done`. Which
//! groups of checks it runs is in the kernel's command line, `seclog.checks=<group>,…`.
//!
//! An independent listener hears the same audit records as the agent; what the agent reports must be those, completed.

mod agent_run;
mod containers;
mod cost;
mod crun;
mod kernel_memory;
mod machine;
mod overflow;
mod processes;
mod quiet;
mod session;
mod systemd;
mod trouble;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use seclog_tests::lab::{audit_record::SeccompRecord, audit_socket::Observer, image::run, vm};

/// Verdicts of one run of the load: two threads, so that a record's thread is not always its process.
const CALLS: usize = 5_000;
const EXECS: usize = 20;
const THREADS: usize = 2;
const USER: u32 = 1234;

fn main() {
    if std::env::args().nth(1).as_deref() == Some(systemd::STAYS) {
        check_all("systemd", systemd::below_systemd());
    } else if let Err(error) = work() {
        check("init", Err(error));
    }
    println!("\n{}", seclog_tests::lab::vm::DONE);
    machine::turn_off();
}

fn work() -> Result<()> {
    machine::mount_everything()?;
    let cgroup = machine::container_cgroup()?;
    let command_line = std::fs::read_to_string("/proc/cmdline")?;
    let wanted = command_line.split_whitespace().find_map(|word| word.strip_prefix(vm::CHECKS)).unwrap_or_default();
    for (group, run) in GROUPS {
        if !wanted.split(',').any(|name| name == group) {
            continue;
        }
        println!("\n{group} begins");
        check_all(group, run(&cgroup));
    }
    Ok(())
}

fn check_all(group: &str, results: Vec<(&'static str, Result<()>)>) {
    for (name, result) in results {
        check(&format!("{group}/{name}"), result);
    }
}

type Group = fn(&Path) -> Vec<(&'static str, Result<()>)>;

/// In the order they run. The last but one locks the audit rules for good; of the last this program does not come back.
const GROUPS: [(&str, Group); 15] = [
    ("audit", |cgroup| vec![("observer", observer_hears_every_verdict(cgroup))]),
    ("fentry", |cgroup| agent_run::agent_agrees_with_audit("fentry", cgroup)),
    ("kprobe", |cgroup| agent_run::agent_agrees_with_audit("kprobe", cgroup)),
    ("overflow", overflow::overflow),
    ("losses", overflow::rarer_losses),
    ("memory", kernel_memory::kernel_memory),
    ("processes", processes::processes),
    ("containers", containers::containers),
    ("streams", containers::streams),
    ("cgroup-v1", containers::cgroup_v1),
    // It turns on controllers of the v2 hierarchy, which v1 could not have then.
    ("crun", crun::crun),
    ("trouble", trouble::trouble),
    ("cost", cost::cost),
    ("quiet", quiet::quiet_mode),
    ("systemd", systemd::systemd),
];

/// Starts on a line of its own: the kernel may have written to the console.
fn check(name: &str, result: Result<()>) {
    match result {
        Ok(()) => println!("\nCHECK {name} ok"),
        Err(error) => println!("\nCHECK {name} FAIL {}", format!("{error:#}").replace('\n', " | ")),
    }
}

/// Without this, nothing below would mean anything.
fn observer_hears_every_verdict(cgroup: &Path) -> Result<()> {
    let observer = Observer::start()?;
    make_verdicts(cgroup)?;
    let heard = heard(observer)?;
    ensure!(heard.len() == CALLS + EXECS, "{} audit records of {}", heard.len(), CALLS + EXECS);
    Ok(())
}

/// As a container's process: the exec of the load happens in the container's cgroup and in a mount namespace of its own.
fn make_verdicts(cgroup: &Path) -> Result<()> {
    let mut load = std::process::Command::new("/bin/sh");
    load.args(["-c", "echo $$ >\"$0/cgroup.procs\" && exec /bin/busybox unshare -m /bin/seclog-load \"$@\""]);
    load.arg(cgroup);
    load.args(["--log", "getppid,execve", "--threads", &THREADS.to_string(), "--user", &USER.to_string()])
        .args(["--calls", &(CALLS / THREADS).to_string(), "--execs", &(EXECS / THREADS).to_string()])
        .args(["--", "/bin/true", "an argument", "and another"]);
    run(&mut load).map(drop)
}

/// Waits until kauditd has delivered what the load made: it does so behind the system calls.
fn heard(observer: Observer) -> Result<Vec<SeccompRecord>> {
    observer.wait_for(CALLS + EXECS);
    let heard = observer.finish()?;
    ensure!(heard.overflows == 0, "the observer itself lost records {} times", heard.overflows);
    heard.records.iter().map(|text| SeccompRecord::parse(text).with_context(|| text.clone())).collect()
}

/// Name of the container cgroup's directory below the pod's.
pub(crate) fn container_id() -> String {
    "5ec109".repeat(11)[..64].to_owned()
}

pub(crate) const POD_UID: &str = "0f9d2c1b-7a64-4b39-9c1e-2d5a8e6f3b70";

pub(crate) fn agent_program() -> PathBuf {
    PathBuf::from("/bin/seclog-agent")
}
