//! What outlives the agent: a file that says that the rule in the kernel is ours, and a lock on it.
//!
//! - Content: empty when there is no rule of ours, else who made it in which boot. It is written before the rule is added
//!   and emptied after it is gone, so a rule of ours is never without it.
//! - Lock: held by the agent and, through an inherited descriptor, by its guard. Whoever gets the lock knows that both are
//!   gone, and that a rule told by the content was left behind.
//! - The file stays: removing a locked file would let two processes lock two files of one name.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use thiserror::Error;

/// The guard of an agent that was killed needs a moment to remove its rule.
const PATIENCE: Duration = Duration::from_secs(3);
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Far more than we write.
const MOST_BYTES: u64 = 4096;

#[derive(Debug, Error)]
pub enum StateError {
    #[error("{path}: {error}", path = path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{path} is locked: another seclog-agent with quiet mode runs on this host", path = path.display())]
    Busy { path: PathBuf },
}

/// The locked file.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    file: File,
}

/// What a former run left, by the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    Nothing,
    /// The rule was made in this boot, so it can still be there.
    Rule {
        made_by_pid: u64,
    },
    /// Not written by us: nothing may be concluded from it.
    Unreadable,
}

// === impl State ===

impl State {
    /// Makes file and directory where they are missing, and waits a moment for the lock.
    pub fn lock(path: &Path) -> Result<Self, StateError> {
        let failed = |error| StateError::File { path: path.to_owned(), error };
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(failed)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { path: path.to_owned(), file }),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(StateError::Busy { path: path.to_owned() });
                }
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// From a descriptor that shares the lock, in the guard.
    pub(super) fn inherited(file: File) -> Self {
        Self { path: "the state file".into(), file }
    }

    /// Another descriptor of the same lock, for the guard.
    pub(super) fn share(&self) -> Result<File, StateError> {
        self.file.try_clone().map_err(|error| self.failed(error))
    }

    pub fn left(&mut self) -> Result<Left, StateError> {
        let mut text = String::new();
        self.file
            .rewind()
            .and_then(|()| (&self.file).take(MOST_BYTES).read_to_string(&mut text))
            .map_err(|error| self.failed(error))?;
        let boot_id = self.boot_id()?;
        Ok(parse(&text, &boot_id))
    }

    /// From now on a rule of ours may be there.
    pub fn claim(&mut self) -> Result<(), StateError> {
        let content = json!({ "boot_id": self.boot_id()?, "pid": std::process::id() });
        self.write(format!("{content}\n").as_bytes())
    }

    /// There is no rule of ours any more.
    pub fn clear(&mut self) -> Result<(), StateError> {
        self.write(&[])
    }

    fn write(&mut self, content: &[u8]) -> Result<(), StateError> {
        // /run is gone with the boot, as the rule is: nothing needs to reach a disk.
        let written =
            self.file.set_len(0).and_then(|()| self.file.rewind()).and_then(|()| self.file.write_all(content));
        written.map_err(|error| self.failed(error))
    }

    /// Gives up the lock, also for the others who share it.
    pub(super) fn unlock(self) {
        // It goes with the last descriptor anyway.
        let _ = self.file.unlock();
    }

    fn boot_id(&self) -> Result<String, StateError> {
        let text = fs::read_to_string(BOOT_ID);
        text.map(|text| text.trim().to_owned()).map_err(|error| StateError::File { path: BOOT_ID.into(), error })
    }

    fn failed(&self, error: io::Error) -> StateError {
        StateError::File { path: self.path.clone(), error }
    }
}

fn parse(text: &str, boot_id: &str) -> Left {
    if text.trim().is_empty() {
        return Left::Nothing;
    }
    let Ok(content) = serde_json::from_str::<Value>(text) else { return Left::Unreadable };
    match (content["boot_id"].as_str(), content["pid"].as_u64()) {
        (Some(boot), Some(made_by_pid)) if boot == boot_id => Left::Rule { made_by_pid },
        // Rules do not outlive their boot.
        (Some(_), Some(_)) => Left::Nothing,
        _ => Left::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use super::{Left, State, StateError, parse};

    #[test]
    fn what_is_claimed_is_found_by_the_next_run_and_what_is_cleared_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/quiet.state");
        let mut state = State::lock(&path).unwrap();
        assert_eq!(state.left().unwrap(), Left::Nothing);
        state.claim().unwrap();
        drop(state);
        let mut state = State::lock(&path).unwrap();
        assert_eq!(state.left().unwrap(), Left::Rule { made_by_pid: std::process::id().into() });
        state.clear().unwrap();
        drop(state);
        assert_eq!(State::lock(&path).unwrap().left().unwrap(), Left::Nothing);
    }

    #[test]
    fn a_second_agent_is_told_of_the_first_and_the_lock_lives_as_long_as_the_guard() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("quiet.state");
        let state = State::lock(&path).unwrap();
        let guard = State::inherited(state.share().unwrap());
        drop(state);
        assert!(matches!(State::lock(&path), Err(StateError::Busy { .. })));
        drop(guard);
        State::lock(&path).unwrap();
    }

    #[test]
    fn a_rule_of_a_former_boot_is_gone() {
        let text = r#"{"boot_id":"a","pid":7}"#;
        assert_eq!(parse(text, "a"), Left::Rule { made_by_pid: 7 });
        assert_eq!(parse(text, "b"), Left::Nothing);
    }

    #[test]
    fn a_file_that_is_not_ours_tells_nothing() {
        for text in ["x", "{}", "[1]", r#"{"boot_id":"a"}"#, r#"{"boot_id":1,"pid":7}"#] {
            assert_eq!(parse(text, "a"), Left::Unreadable, "{text}");
        }
    }
}
