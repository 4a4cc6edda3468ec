//! Quiet mode: while the eBPF hook delivers verdicts, the kernel is asked not to make audit records of them as well.
//!
//! Off by default. It is the one thing that seclog ever changes in the kernel's audit settings: one rule in the exclude
//! list, for the record type SECCOMP. The records are then not made at all, which is where a logged system call spends most
//! of its time; `audit_seccomp()`, and so the hook on it, still runs. See docs/quiet-mode.md for what that costs.
//!
//! What always holds:
//!
//! - The rule is there only while a verdict hook is attached and its ring is drained ([`supervise`]).
//! - No rule is deleted but our own, which is unlike any that an administrator would write ([`rule`]).
//! - Whoever else gets SECCOMP records keeps them, unless forced ([`listeners`]).
//! - A rule of ours never outlives the agent unnoticed: a [`guard`] removes it when the agent dies, and when the guard
//!   dies as well, the next agent does, by the [`state`] file.

pub mod guard;
pub mod listeners;
pub mod netlink;
pub mod rule;
pub mod state;
mod supervise;

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::Args;
use thiserror::Error;

use self::{
    guard::{Guard, GuardError},
    listeners::Listener,
    netlink::{AuditControl, AuditError, Status},
    rule::Rule,
    state::{Left, State, StateError},
};

pub use supervise::{Pulse, STATUS, Supervisor};

/// Options of quiet mode.
#[derive(Args, Clone, Debug)]
pub struct QuietArgs {
    /// While the eBPF hook delivers, have the kernel make no audit records of seccomp verdicts: less work for it, but
    /// no second source to check against. Needs CAP_AUDIT_CONTROL.
    #[arg(long)]
    quiet: bool,
    /// Do so even where auditd or another listener keeps these records.
    #[arg(long, requires = "quiet")]
    quiet_force: bool,
    /// Remembers that the rule in the kernel is ours. Must outlive the agent's container, not the host's boot.
    #[arg(long, value_name = "FILE", default_value = "/run/seclog/quiet.state")]
    quiet_state: PathBuf,
}

#[derive(Clone, Debug)]
pub struct QuietOptions {
    /// Also where others get SECCOMP records.
    pub force: bool,
    pub state: PathBuf,
    /// The program that knows [`guard::SUBCOMMAND`].
    pub guard_program: PathBuf,
}

/// Why quiet mode was not entered, or is left.
#[derive(Debug, Error)]
pub enum QuietError {
    #[error("no eBPF hook sees verdicts here, so audit is the only source: its records are needed")]
    NoHook,
    #[error(
        "{} SECCOMP records from the kernel and would miss them. Stop them, or insist with --quiet-force", others(.daemon_pid, .listeners)
    )]
    Others { daemon_pid: u32, listeners: Vec<Listener> },
    #[error(
        "who else gets audit records cannot be seen ({0}). Run with hostPID and hostNetwork, or insist with --quiet-force"
    )]
    Unseen(io::Error),
    #[error("the audit rules are immutable (auditctl -e 2) until the next boot")]
    Immutable,
    #[error(
        "a former run's rule is still in place: the kernel makes no audit records of seccomp verdicts ({0}). It goes with \
         `auditctl -d {command}`, or the next boot",
        command = rule::AUDITCTL
    )]
    LeftBehind(AuditError),
    #[error("the rule was removed by someone else; it is not added again before a restart")]
    Removed,
    #[error("the hook's records are not being read")]
    NotDraining,
    #[error("the hook is gone with the pipeline")]
    HookLost,
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Guard(#[from] GuardError),
}

/// Quiet mode in force. Dropped without [`QuietMode::leave`], its guard removes the rule.
#[derive(Debug)]
pub struct QuietMode {
    options: QuietOptions,
    control: AuditControl,
    /// `None`: someone else's rule does the same already.
    made: Option<Made>,
}

#[derive(Debug)]
struct Made {
    guard: Guard,
    state: State,
}

// === impl QuietArgs ===

impl QuietArgs {
    /// `None`: quiet mode is not wanted.
    fn options(&self) -> Option<QuietOptions> {
        self.quiet.then(|| QuietOptions {
            force: self.quiet_force,
            state: self.quiet_state.clone(),
            guard_program: "/proc/self/exe".into(),
        })
    }
}

// === impl QuietMode ===

impl QuietMode {
    /// Adds the rule, when all allows it. `hook_attached`: verdicts come from eBPF, and are being read.
    pub fn enter(options: QuietOptions, hook_attached: bool) -> Result<Self, QuietError> {
        // Also where quiet mode is refused below: a former run's rule must not stay.
        remove_left_behind(&options.state)?;
        if !hook_attached {
            return Err(QuietError::NoHook);
        }
        let mut control = AuditControl::open()?;
        let status = control.status()?;
        if control.rules()?.iter().any(Rule::excludes_seccomp) {
            return Ok(Self { options, control, made: None });
        }
        if status.immutable {
            return Err(QuietError::Immutable);
        }
        if !options.force {
            nobody_else_listens(status)?;
        }
        let mut state = State::lock(&options.state)?;
        let mut guard = Guard::start(&options.guard_program, &state)?;
        // Each step before the one that needs it to be undone: whenever the agent is killed, guard and file know.
        state.claim()?;
        guard.arm()?;
        match control.add(&Rule::ours()) {
            Ok(()) => Ok(Self { options, control, made: Some(Made { guard, state }) }),
            Err(error) => {
                // Of an answer that never came, nobody knows whether the rule is there. One that was there before
                // (another agent's, with another state file, in the same moment) is not ours to delete.
                if matches!(error, AuditError::Silent(_) | AuditError::Malformed(_)) {
                    let _ = control.delete(&Rule::ours());
                }
                let _ = guard.disarm();
                state.clear()?;
                guard.dismiss();
                Err(error.into())
            }
        }
    }

    /// Whether the rule in force is one that we made.
    pub fn made_the_rule(&self) -> bool {
        self.made.is_some()
    }

    /// The guard's process.
    pub fn guard_pid(&self) -> Option<u32> {
        self.made.as_ref().map(|made| made.guard.pid())
    }

    /// In words, for the status.
    pub fn describe(&self) -> String {
        match self.made {
            Some(_) => "the kernel makes no audit records of seccomp verdicts; they come from eBPF alone".into(),
            None => "a rule that this agent did not make excludes SECCOMP records already; it stays".into(),
        }
    }

    /// Whether all is as it was when quiet mode was entered; a guard that was killed is replaced. After an error quiet
    /// mode must be left.
    pub fn check(&mut self) -> Result<(), QuietError> {
        let status = self.control.status()?;
        if !self.control.rules()?.iter().any(Rule::excludes_seccomp) {
            return Err(QuietError::Removed);
        }
        let Some(Made { guard, state }) = &mut self.made else { return Ok(()) };
        if !self.options.force {
            nobody_else_listens(status)?;
        }
        if !guard.is_alive() {
            *guard = Guard::start(&self.options.guard_program, state)?;
            guard.arm()?;
            tracing::warn!(pid = guard.pid(), "quiet mode's guard had ended; there is a new one");
        }
        Ok(())
    }

    /// Deletes the rule if we made it. After an error it may still be there; the state file tells the next agent.
    pub fn leave(self) -> Result<(), QuietError> {
        let Self { options: _, mut control, made } = self;
        let Some(Made { guard, mut state }) = made else { return Ok(()) };
        match control.delete(&Rule::ours()) {
            Ok(()) | Err(AuditError::NoSuchRule(_)) => {
                state.clear()?;
                guard.dismiss();
                Ok(())
            }
            // Here the guard is not dismissed: it sees the line close, and tries for itself.
            Err(error) => Err(error.into()),
        }
    }
}

/// Deletes the rule of a former run that was killed together with its guard. Touches nothing where there was none, and
/// no rule that the state file does not tell of.
pub fn remove_left_behind(state: &Path) -> Result<(), QuietError> {
    if !state.exists() {
        return Ok(());
    }
    let mut state = State::lock(state)?;
    match state.left()? {
        Left::Nothing => {}
        Left::Unreadable => tracing::warn!("quiet mode's state file is not of our making; no rule is deleted by it"),
        Left::Rule { made_by_pid } => {
            match AuditControl::open().and_then(|mut control| control.delete(&Rule::ours())) {
                Ok(()) => {
                    tracing::warn!(made_by_pid, "removed the audit rule that a killed agent's quiet mode left behind");
                    state.clear()?;
                }
                Err(AuditError::NoSuchRule(_)) => state.clear()?,
                Err(error) => return Err(QuietError::LeftBehind(error)),
            }
        }
    }
    Ok(())
}

fn nobody_else_listens(Status { daemon_pid, .. }: Status) -> Result<(), QuietError> {
    let listeners = listeners::others().map_err(QuietError::Unseen)?;
    if daemon_pid == 0 && listeners.is_empty() {
        return Ok(());
    }
    Err(QuietError::Others { daemon_pid, listeners })
}

/// `auditd (pid 7) gets`, `auditd (pid 7), journald (pid 3) get`.
fn others(daemon_pid: &u32, listeners: &[Listener]) -> String {
    let daemon = (*daemon_pid != 0).then(|| format!("the audit daemon (pid {daemon_pid})"));
    let all: Vec<String> = daemon.into_iter().chain(listeners.iter().map(Listener::to_string)).collect();
    format!("{} {}", all.join(", "), if all.len() == 1 { "gets" } else { "get" })
}

#[cfg(test)]
mod tests {
    use super::{QuietError, QuietMode, QuietOptions};

    #[test]
    fn without_a_hook_it_is_refused_before_anything_is_touched() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("quiet.state");
        let options = QuietOptions { force: true, state: state.clone(), guard_program: "/nonexistent".into() };
        assert!(matches!(QuietMode::enter(options, false), Err(QuietError::NoHook)));
        assert!(!state.exists());
    }

    #[test]
    fn who_would_miss_records_is_named() {
        let error = QuietError::Others { daemon_pid: 7, listeners: Vec::new() }.to_string();
        assert!(error.starts_with("the audit daemon (pid 7) gets SECCOMP records"), "{error}");
        assert!(error.ends_with("--quiet-force"), "{error}");
    }
}
