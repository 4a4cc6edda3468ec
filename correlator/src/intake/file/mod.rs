//! Follows audit log files of API servers, and files of SPO's enricher, which are rotated alike: what is there at the start, backups and compressed backups among it, and what is
//! written from then on, through rotation, truncation and restarts.
//!
//! What holds:
//! - How far a file was read is in the journal together with what was read, so that nothing is missing after a kill, and
//!   nothing is there twice. A file is known again by what it begins with, wherever it was moved and whether or not it was
//!   compressed meanwhile.
//! - Files of one log are read in the order in which they were written; one that was renamed away is read to its end first.
//! - A line counts when its end is there, or when its file is over. File times are not looked at.
//! - What the journal cannot take is offered again, and nothing is read meanwhile.
//!
//! A directory stands for the logs in it: its own `audit.log`, and those of the directories in it, one an API server's pod.
//! They may come and go.

mod log;
mod place;

use super::sink::Kind;
use log::Log;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Handle;

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Logs followed at once below one path.
const MOST_LOGS: usize = 256;
const NAME: &str = "audit.log";

/// Starts to follow a file or a directory; ends when `stop` is set and everything is read, or when the journal is closed.
/// Within a tokio runtime.
pub fn follow(path: PathBuf, kind: Kind, stop: Arc<AtomicBool>) -> io::Result<JoinHandle<()>> {
    let runtime = Handle::current();
    std::thread::Builder::new().name("audit-log".to_owned()).spawn(move || {
        let mut follower = Follower { path, kind, runtime, logs: BTreeMap::new(), told_many: false };
        loop {
            let stopped = stop.load(Ordering::Relaxed);
            if !follower.look(&stop) || stopped {
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    })
}

struct Follower {
    path: PathBuf,
    kind: Kind,
    runtime: Handle,
    logs: BTreeMap<PathBuf, Log>,
    told_many: bool,
}

impl Follower {
    /// False: nothing more can be taken.
    fn look(&mut self, stop: &AtomicBool) -> bool {
        let found = logs(&self.path);
        // One whose directory is gone is read to its end.
        let gone: Vec<PathBuf> = self.logs.keys().filter(|path| !found.contains(path)).cloned().collect();
        for path in gone {
            let Some(mut log) = self.logs.remove(&path) else { continue };
            tracing::info!(path = %path.display(), "{} is gone", self.kind.name());
            if let Err(error) = log.end(stop) {
                tracing::debug!(path = %path.display(), "{error}");
            }
        }
        for path in found {
            if self.logs.len() >= MOST_LOGS && !self.logs.contains_key(&path) {
                if !std::mem::replace(&mut self.told_many, true) {
                    tracing::warn!(path = %self.path.display(), "more than {MOST_LOGS} audit logs: the rest is not read");
                }
                continue;
            }
            let (kind, runtime) = (&self.kind, &self.runtime);
            let log =
                self.logs.entry(path).or_insert_with_key(|path| Log::new(path, kind.of_file(path), runtime.clone()));
            if let Err(error) = log.look(stop) {
                tracing::debug!("{error}");
                return false;
            }
        }
        true
    }
}

/// The logs that a path stands for now. A path that is no directory stands for itself, whether or not it is there.
fn logs(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    let own = path.join(NAME);
    let below = std::fs::read_dir(path).into_iter().flatten().flatten();
    let below = below.filter(|entry| entry.path().is_dir()).map(|entry| entry.path().join(NAME));
    let mut logs: Vec<PathBuf> = below.chain([own]).filter(|log| log.parent().is_some_and(has_log)).collect();
    logs.sort();
    logs
}

/// A directory in which an audit log is, or was a moment ago.
fn has_log(dir: &Path) -> bool {
    place::parts(&dir.join(NAME)).iter().any(|part| part.path.exists())
}
