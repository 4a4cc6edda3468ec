//! Turns: tests with containers share the host's audit stream and cgroups, tests in QEMU its processors.

use std::fs::{File, OpenOptions};

use anyhow::{Context as _, Result, anyhow};
use nix::fcntl::{Flock, FlockArg};

use super::places;

/// Held until dropped, or until this process ends, however it ends.
#[derive(Debug)]
#[must_use = "the turn ends when this is dropped"]
pub struct Turn(#[expect(dead_code, reason = "held for its lock")] Flock<File>);

/// Waits until no other test, of any process of this build, uses `what`.
pub fn turn(what: &str) -> Result<Turn> {
    let path = places::target()?.join(format!("{what}.lock"));
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let lock =
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| anyhow!("cannot lock {what}: {errno}"))?;
    Ok(Turn(lock))
}
