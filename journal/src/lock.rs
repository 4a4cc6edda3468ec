//! One process writes a directory.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::Path,
};

/// Held as long as this lives, and gone with a process that is killed.
#[derive(Debug)]
pub struct DirectoryLock(File);

impl DirectoryLock {
    /// `None`: another has it.
    pub fn take(dir: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for DirectoryLock {
    /// Closing is not enough: a child that this process is just starting has the descriptor too until it executes, and
    /// the lock would live on in it.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_taken_once_and_goes_with_its_holder_whoever_else_has_the_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirectoryLock::take(dir.path()).unwrap().unwrap();
        assert!(DirectoryLock::take(dir.path()).unwrap().is_none());
        let in_a_child = lock.0.try_clone().unwrap();
        drop(lock);
        assert!(DirectoryLock::take(dir.path()).unwrap().is_some());
        drop(in_a_child);
    }
}
