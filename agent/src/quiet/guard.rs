//! The guard: a process that outlives the agent by the moment it takes to remove the rule.
//!
//! It is the agent's own program with a hidden subcommand. Its standard input is one end of a socket pair; the agent says
//! there by single bytes whether the rule is in place. When the other end closes without a farewell, the agent is dead. Its
//! standard output is the locked state file, so that the lock outlives the agent as well: a new agent waits until the
//! guard of the old one is done.
//!
//! It lives in a session of its own and blocks every signal that can be blocked: what stops the agent's process group, or
//! all processes of its service, reaches the agent, which then leaves in order.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use nix::{sys::signal::SigSet, unistd::setsid};
use thiserror::Error;

use super::{
    netlink::{AuditControl, AuditError},
    rule::Rule,
    state::{State, StateError},
};

/// The hidden subcommand.
pub const SUBCOMMAND: &str = "quiet-guard";

/// From the guard: it watches.
const READY: u8 = b'r';
/// To the guard: the rule is, or is about to be, in place; it is not; nothing is left to do.
const ARMED: u8 = b'a';
const DISARMED: u8 = b'd';
const FAREWELL: u8 = b'f';

/// For the guard to start, and to end after the farewell.
const PATIENCE: Duration = Duration::from_secs(5);
/// The kernel refuses a rule change for good or not at all; memory may be short for a moment when an agent is killed.
const TRIES: u32 = 5;
const BETWEEN_TRIES: Duration = Duration::from_millis(200);

#[derive(Debug, Error)]
pub enum GuardError {
    #[error("the guard cannot be started: {0}")]
    Start(io::Error),
    #[error("the guard ended: {0}")]
    Gone(io::Error),
    #[error(transparent)]
    State(#[from] StateError),
}

/// The agent's side.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    line: UnixStream,
}

// === impl Guard ===

impl Guard {
    /// Returns when the guard watches; it is not armed yet.
    pub fn start(program: &Path, state: &State) -> Result<Self, GuardError> {
        let (line, its_line) = UnixStream::pair().map_err(GuardError::Start)?;
        line.set_read_timeout(Some(PATIENCE)).map_err(GuardError::Start)?;
        let child = Command::new(program)
            .arg(SUBCOMMAND)
            .stdin(OwnedFd::from(its_line))
            .stdout(Stdio::from(state.share()?))
            .spawn()
            .map_err(GuardError::Start)?;
        let mut guard = Self { child, line };
        let mut ready = [0];
        match guard.line.read_exact(&mut ready) {
            Ok(()) if ready == [READY] => Ok(guard),
            Ok(()) => Err(GuardError::Start(io::ErrorKind::InvalidData.into())),
            Err(error) => Err(GuardError::Start(error)),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn arm(&mut self) -> Result<(), GuardError> {
        self.say(ARMED)
    }

    pub fn disarm(&mut self) -> Result<(), GuardError> {
        self.say(DISARMED)
    }

    /// Ends it without any work left for it.
    pub fn dismiss(mut self) {
        // A guard that is gone needs no farewell.
        let _ = self.say(FAREWELL);
        for _ in 0..PATIENCE.as_millis() / 10 {
            if !self.is_alive() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        tracing::warn!(pid = self.pid(), "quiet mode's guard does not end; it has nothing left to do");
    }

    fn say(&mut self, word: u8) -> Result<(), GuardError> {
        self.line.write_all(&[word]).map_err(GuardError::Gone)
    }
}

/// The guard's side: what `seclog-agent quiet-guard` does.
pub fn run() -> ExitCode {
    // First of all, so that no signal finds it unprepared.
    let blocked = SigSet::all().thread_block();
    let session = setsid();
    let (line, state) = match (own(io::stdin().as_fd()), own(io::stdout().as_fd())) {
        (Ok(line), Ok(state)) => (UnixStream::from(line), State::inherited(File::from(state))),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "quiet mode's guard has no line to the agent");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = blocked.and(session) {
        tracing::error!(%error, "this is run by seclog-agent itself, for quiet mode; there is nothing to do by hand");
        return ExitCode::from(2);
    }
    if let Err(error) = (&line).write_all(&[READY]) {
        tracing::error!(%error, "this is run by seclog-agent itself, for quiet mode; there is nothing to do by hand");
        return ExitCode::from(2);
    }
    if !agent_died_armed(&line) {
        return ExitCode::SUCCESS;
    }
    let removed = remove(state);
    // Only now anything is logged: the reader of the log may have died with the agent.
    match removed {
        Ok(()) => {
            tracing::warn!("the agent is gone: its guard removed the audit rule of quiet mode");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(
                %error,
                "the agent is gone, and its guard could not remove the audit rule of quiet mode: seccomp records stay off \
                 until `auditctl -d {}`",
                super::rule::AUDITCTL
            );
            ExitCode::FAILURE
        }
    }
}

fn own(descriptor: std::os::fd::BorrowedFd<'_>) -> io::Result<OwnedFd> {
    descriptor.try_clone_to_owned()
}

/// Follows the agent's words to their end; true when the agent went without a farewell while the rule was in place.
fn agent_died_armed(mut line: &UnixStream) -> bool {
    let mut armed = false;
    let mut word = [0];
    loop {
        match line.read(&mut word) {
            Ok(0) => return armed,
            Ok(_) => match word[0] {
                ARMED => armed = true,
                DISARMED => armed = false,
                FAREWELL => return false,
                _ => {}
            },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return armed,
        }
    }
}

/// Deletes the rule, says so in the state file, and gives up the lock.
fn remove(mut state: State) -> Result<(), AuditError> {
    let mut tries = 1;
    loop {
        match AuditControl::open().and_then(|mut control| control.delete(&Rule::ours())) {
            // Gone already, by the agent just before it died or by an administrator.
            Ok(()) | Err(AuditError::NoSuchRule(_)) => {
                // If this fails, the next agent looks for a rule that is gone: harmless.
                let _ = state.clear();
                state.unlock();
                return Ok(());
            }
            Err(error) if tries == TRIES => {
                state.unlock();
                return Err(error);
            }
            Err(_) => {
                tries += 1;
                thread::sleep(BETWEEN_TRIES);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::net::UnixStream};

    use super::{ARMED, DISARMED, FAREWELL, agent_died_armed};

    fn after(words: &[u8]) -> bool {
        let (mut agent, guard) = UnixStream::pair().unwrap();
        agent.write_all(words).unwrap();
        drop(agent);
        agent_died_armed(&guard)
    }

    #[test]
    fn only_an_agent_that_went_with_the_rule_in_place_and_without_farewell_leaves_work() {
        assert!(after(&[ARMED]));
        assert!(after(&[ARMED, DISARMED, ARMED]));
        assert!(!after(&[]));
        assert!(!after(&[ARMED, DISARMED]));
        assert!(!after(&[ARMED, FAREWELL]));
    }
}
