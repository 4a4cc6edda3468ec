//! Quiet mode's rule on a real kernel: looking at it, adding what an administrator would, restoring what was there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use seclog_agent::quiet::{
    netlink::{AuditControl, AuditError},
    rule::Rule,
};

use super::{
    audit_record::SeccompRecord,
    audit_socket::Observer,
    image::run,
    places,
    process::{PATIENCE, Process},
};

/// Fewer than kauditd's queue holds by default (64), so that nobody waits.
const CALLS: usize = 50;

/// Takes both rules out of the kernel when dropped, however a test ends.
#[derive(Debug)]
#[must_use = "rules are restored when this is dropped"]
pub struct Restore;

/// A process in quiet mode (tests/src/bin/seclog-quiet.rs).
#[derive(Debug)]
pub struct Quiet {
    pub process: Process,
    /// What it said first.
    pub line: String,
}

// === impl Restore ===

impl Drop for Restore {
    fn drop(&mut self) {
        let delete = |rule: &Rule| match AuditControl::open().and_then(|mut control| control.delete(rule)) {
            Ok(()) | Err(AuditError::NoSuchRule(_)) => {}
            Err(error) => eprintln!("{error}"),
        };
        delete(&Rule::ours());
        if let Ok(rule) = administrators_rule() {
            delete(&rule);
        }
    }
}

// === impl Quiet ===

impl Quiet {
    /// Insists: this machine may have other listeners, of which this test is one.
    pub fn enter(state: &Path) -> Result<Self> {
        let quiet = Self::ask(state, true)?;
        ensure!(quiet.line.starts_with("entered"), "{}", quiet.line);
        Ok(quiet)
    }

    /// Returns with what it said, be it a refusal.
    pub fn ask(state: &Path, force: bool) -> Result<Self> {
        let mut command = Command::new(places::program("seclog-quiet")?);
        command.arg("--state").arg(state).env("NO_COLOR", "1");
        if force {
            command.arg("--force");
        }
        let process = Process::start("seclog-quiet", &mut command)?;
        let line = process.stdout().wait_for(PATIENCE, |_| true).with_context(|| process.log())?;
        Ok(Self { process, line })
    }

    pub fn guard(&self) -> Result<i32> {
        guard_of(&self.line)
    }

    /// What it says when asked whether all is well; the last of so many answers.
    pub fn check(&self, times_asked: usize) -> Result<String> {
        self.process.signal(Signal::SIGUSR1);
        let lines = 1 + times_asked;
        self.process.stdout().wait_until(PATIENCE, |all| all.len() >= lines);
        self.process.stdout().all().get(lines - 1).cloned().with_context(|| self.process.log())
    }

    pub fn leave(&self) -> Result<()> {
        let status = self.process.terminate()?;
        ensure!(status.success(), "{status}: {}", self.process.log());
        Ok(())
    }

    /// kill -9, and until it is dead.
    pub fn kill(&self) -> Result<()> {
        self.process.signal(Signal::SIGKILL);
        self.process.wait(PATIENCE).context("it does not die").map(drop)
    }
}

/// Why quiet mode cannot be tried on this machine; `None` when it can.
pub fn unavailable() -> Option<String> {
    let look = || -> Result<Option<String>, AuditError> {
        let mut control = AuditControl::open()?;
        if control.status()?.immutable {
            return Ok(Some("the audit rules of this machine are immutable".into()));
        }
        let excluded = control.rules()?.iter().any(Rule::excludes_seccomp);
        Ok(excluded.then(|| "the audit rules of this machine exclude SECCOMP records already".into()))
    };
    look().unwrap_or_else(|error| Some(error.to_string()))
}

/// What `auditctl -a always,exclude -F msgtype=SECCOMP` adds.
pub fn administrators_rule() -> Result<Rule> {
    // Ours has the condition twice, and here it is counted once (field_count).
    let mut bytes = Rule::ours().encode();
    bytes[8..12].copy_from_slice(&1u32.to_ne_bytes());
    Rule::decode(&bytes).context("a rule")
}

pub fn add(rule: &Rule) -> Result<()> {
    AuditControl::open()?.add(rule).context("adding a rule")
}

pub fn is_there(rule: &Rule) -> Result<bool> {
    Ok(AuditControl::open()?.rules()?.contains(rule))
}

/// Waits until it is gone; not for ever.
pub fn wait_until_gone(rule: &Rule) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while is_there(rule)? {
        ensure!(Instant::now() < deadline, "the rule is still there after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The pid in `… guard=N`.
pub fn guard_of(line: &str) -> Result<i32> {
    let (_, pid) = line.rsplit_once("guard=").with_context(|| line.to_owned())?;
    let pid = pid.trim().parse()?;
    ensure!(pid > 0, "{line}");
    Ok(pid)
}

/// kill -9 of a guard, and until it is dead (it is the child of another process, which need not have noticed).
pub fn kill_guard(pid: i32) -> Result<()> {
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    let deadline = Instant::now() + PATIENCE;
    let is_alive = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    while is_alive() {
        ensure!(Instant::now() < deadline, "the guard does not die");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Makes [`CALLS`] verdicts; the pid that they are of.
pub fn make_verdicts() -> Result<u32> {
    let mut load = Command::new(places::program("seclog-load")?);
    let output = run(load.args(["--log", "getppid", "--calls", &CALLS.to_string()]))?;
    let pid = output.split_whitespace().find_map(|word| word.strip_prefix("pid="));
    pid.and_then(|pid| pid.parse().ok()).with_context(|| output.clone())
}

/// Makes verdicts, waits until they were heard, and ends the observation. An error when there are records of one of `silent`
/// (which, if they had been made, would have come first), or not all of now.
pub fn only_these_are_heard(observer: Observer, silent: &[u32]) -> Result<()> {
    let loud = make_verdicts()?;
    observer.wait_for(CALLS);
    let heard = observer.finish()?;
    ensure!(heard.overflows == 0, "the observer lost records");
    let records: Vec<_> = heard.records.iter().filter_map(|text| SeccompRecord::parse(text).ok()).collect();
    let of = |pid: u32| records.iter().filter(|record| record.pid == pid).count();
    ensure!(of(loud) == CALLS, "{} records of {CALLS}", of(loud));
    match silent.iter().find(|pid| of(**pid) > 0) {
        Some(pid) => bail!("{} records of process {pid}, which made them in quiet mode", of(*pid)),
        None => Ok(()),
    }
}

/// A state file's place that is gone afterwards.
pub fn state() -> Result<(tempfile::TempDir, PathBuf)> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("seclog/quiet.state");
    Ok((directory, path))
}
