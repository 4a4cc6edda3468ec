//! The time in which nobody watched: between two runs of the agent, however the first one ended.
//!
//! What was handed over up to when is kept in a small file. The next run begins with a loss record from there to its own
//! start: how many, nobody can know, but when, everybody can. A run that was killed kept the file at most a second late.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

/// How often the file is written: nanoseconds of the wall clock.
const EVERY_NS: u64 = 1_000_000_000;

/// Keeps the file.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    boot_id: String,
    written_unix_ns: u64,
    failed: bool,
}

/// From when on nothing was captured, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absence {
    /// `None`: since the node booted.
    pub from_unix_ns: Option<u64>,
    pub reason: &'static str,
}

// === impl Keeper ===

impl Keeper {
    /// Reads what the run before left.
    pub fn open(path: &Path, boot_id: &str) -> (Self, Absence) {
        let keeper = Self { path: path.to_owned(), boot_id: boot_id.to_owned(), written_unix_ns: 0, failed: false };
        let absence = match fs::read(path) {
            Ok(bytes) => judge(&bytes, boot_id),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what the run before left cannot be read");
                None
            }
        };
        let first = Absence { from_unix_ns: None, reason: "no agent is known to have run before on this boot" };
        (keeper, absence.unwrap_or(first))
    }

    /// Everything up to this time was handed over.
    pub fn note(&mut self, watermark_unix_ns: u64) {
        if watermark_unix_ns >= self.written_unix_ns + EVERY_NS {
            self.write(watermark_unix_ns, false);
        }
    }

    /// The same, at an orderly end.
    pub fn stopped(&mut self, watermark_unix_ns: u64) {
        self.write(watermark_unix_ns.max(self.written_unix_ns), true);
    }

    fn write(&mut self, watermark_unix_ns: u64, stopped: bool) {
        let text = json!({ "boot_id": self.boot_id, "handed_over_unix_ns": watermark_unix_ns, "stopped": stopped });
        let result = replace(&self.path, text.to_string().as_bytes());
        match result {
            Ok(()) => self.failed = false,
            Err(error) if !self.failed => {
                self.failed = true;
                tracing::warn!(
                    path = %self.path.display(),
                    %error,
                    "cannot note what was handed over; after a kill the loss will be reported from the boot on"
                );
            }
            Err(_) => {}
        }
        self.written_unix_ns = watermark_unix_ns;
    }
}

/// `None`: of another boot, or damaged.
fn judge(bytes: &[u8], boot_id: &str) -> Option<Absence> {
    let saved: Value = serde_json::from_slice(bytes).ok()?;
    if saved.get("boot_id")?.as_str()? != boot_id {
        return None;
    }
    let from_unix_ns = Some(saved.get("handed_over_unix_ns")?.as_u64()?).filter(|time| *time != 0);
    let reason = if saved.get("stopped")?.as_bool()? {
        "the agent was stopped and started again"
    } else {
        "the agent ended without a stop (killed or crashed) and was started again"
    };
    Some(Absence { from_unix_ns, reason })
}

/// Old or new after a crash, never half.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let beside = path.with_extension("new");
    fs::write(&beside, bytes)?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_run_knows_from_when_on_nobody_watched() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/agent.state");
        let (mut keeper, first) = Keeper::open(&path, "boot");
        assert_eq!(first.from_unix_ns, None);
        keeper.note(5_000_000_000);
        keeper.note(5_500_000_000); // too soon to be written again
        let (_, killed) = Keeper::open(&path, "boot");
        assert_eq!(killed.from_unix_ns, Some(5_000_000_000));
        assert!(killed.reason.contains("killed"));

        keeper.stopped(5_600_000_000);
        let (_, stopped) = Keeper::open(&path, "boot");
        assert_eq!(stopped.from_unix_ns, Some(5_600_000_000));
        assert!(stopped.reason.contains("stopped"));
        assert_eq!(Keeper::open(&path, "another boot").1.from_unix_ns, None);
    }

    #[test]
    fn damaged_and_unwritable_files_are_no_reason_to_stop() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.state");
        for bytes in [&b"{"[..], b"[]", b"{\"boot_id\":\"boot\"}", b"\xff\x00"] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(Keeper::open(&path, "boot").1.from_unix_ns, None);
        }
        let (mut keeper, _) = Keeper::open(Path::new("/proc/nowhere/agent.state"), "boot");
        keeper.note(1 << 40);
    }
}
