//! The host's audit settings: changed for a measurement, and back afterwards.
//!
//! `audit=1` is never set: a kernel that ever had it on keeps per-task contexts until the next boot, and with them dearer
//! system calls for everyone. SECCOMP records are made without it.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use seclog_agent::quiet::{
    netlink::{AuditControl, AuditError},
    rule::Rule,
};

use crate::lab::{image::run, places};

/// The length of kauditd's queue.
#[derive(Debug)]
#[must_use = "the setting comes back when this is dropped"]
pub struct Backlog {
    auditctl: PathBuf,
    before: u32,
}

// === impl Backlog ===

impl Backlog {
    pub fn set(records: u32) -> Result<Self> {
        let auditctl = places::tool("auditctl").context("auditctl is not installed")?;
        let before = limit()?;
        let this = Self { auditctl, before };
        this.write(records)?;
        Ok(this)
    }

    fn write(&self, records: u32) -> Result<()> {
        run(Command::new(&self.auditctl).args(["-b", &records.to_string()])).map(drop)
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        if let Err(error) = self.write(self.before) {
            eprintln!("the audit backlog limit is not {} again: {error:#}", self.before);
        }
    }
}

/// What `auditctl -s` calls backlog_limit.
pub fn limit() -> Result<u32> {
    let auditctl = places::tool("auditctl").context("auditctl is not installed")?;
    let text = run(Command::new(auditctl).arg("-s"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("backlog_limit "));
    line.and_then(|value| value.trim().parse().ok()).with_context(|| text.clone())
}

/// Whether verdicts become audit records here, and nobody else needs the audit daemon's place. The reason when not.
pub fn usable() -> Result<()> {
    let mut control = AuditControl::open().context("audit netlink")?;
    let status = control.status()?;
    ensure!(status.daemon_pid == 0, "an audit daemon runs here (pid {})", status.daemon_pid);
    ensure!(!status.immutable, "the audit rules are immutable");
    if control.rules()?.iter().any(Rule::excludes_seccomp) {
        bail!("the audit rules exclude SECCOMP records");
    }
    Ok(())
}

/// Quiet mode's rule, without quiet mode; gone when dropped.
#[derive(Debug)]
#[must_use = "the rule goes when this is dropped"]
pub struct Excluded(());

// === impl Excluded ===

impl Excluded {
    pub fn new() -> Result<Self> {
        AuditControl::open()?.add(&Rule::ours()).context("adding the exclude rule")?;
        Ok(Self(()))
    }
}

impl Drop for Excluded {
    fn drop(&mut self) {
        match AuditControl::open().and_then(|mut control| control.delete(&Rule::ours())) {
            Ok(()) | Err(AuditError::NoSuchRule(_)) => {}
            Err(error) => eprintln!("the exclude rule is left behind: {error}"),
        }
    }
}
