//! What must outlive the agent besides frames, in a small file: records that were refused and not yet told of, and how far
//! the correlator has acknowledged.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// How often acknowledgements are written down: they only save words after a restart.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// Records that were not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) count: u64,
    pub(super) from_unix_ns: u64,
    pub(super) until_unix_ns: u64,
}

#[derive(Debug)]
pub(super) struct Ledger {
    /// `None`: in memory.
    path: Option<PathBuf>,
    refused: Option<Refused>,
    /// Loss records that were told.
    losses: u64,
    epoch: u64,
    acknowledged: u64,
    written: Instant,
    failed: bool,
}

// === impl Ledger ===

impl Ledger {
    pub(super) fn in_memory() -> Self {
        Self { path: None, refused: None, losses: 0, epoch: 0, acknowledged: 0, written: Instant::now(), failed: false }
    }

    /// What is damaged counts as empty.
    pub(super) fn open(dir: &Path) -> Self {
        let path = dir.join("ledger.json");
        let saved: Value =
            fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let number = |name: &str| saved.get(name).and_then(Value::as_u64).unwrap_or(0);
        let refused = Refused {
            count: number("refused"),
            from_unix_ns: number("refused_from_unix_ns"),
            until_unix_ns: number("refused_until_unix_ns"),
        };
        Self {
            path: Some(path),
            refused: (refused.count > 0).then_some(refused),
            losses: number("losses"),
            epoch: number("epoch"),
            acknowledged: number("acknowledged"),
            ..Self::in_memory()
        }
    }

    pub(super) fn refused(&self) -> Option<Refused> {
        self.refused
    }

    /// Number of the next loss record. The same after a crash between the record and [`Ledger::told`], so that the record
    /// keeps its id.
    pub(super) fn losses(&self) -> u64 {
        self.losses
    }

    pub(super) fn refuse(&mut self, more: Refused) {
        let sum = self.refused.get_or_insert(Refused { count: 0, ..more });
        sum.count += more.count;
        sum.from_unix_ns = sum.from_unix_ns.min(more.from_unix_ns);
        sum.until_unix_ns = sum.until_unix_ns.max(more.until_unix_ns);
        self.write();
    }

    /// What was refused stands in a loss record now.
    pub(super) fn told(&mut self) {
        self.refused = None;
        self.losses += 1;
        self.write();
    }

    pub(super) fn acknowledge(&mut self, epoch: u64, sequence: u64) {
        let is_new_epoch = epoch != self.epoch;
        self.epoch = epoch;
        self.acknowledged = sequence;
        if is_new_epoch || self.written.elapsed() >= WRITE_EVERY {
            self.write();
        }
    }

    /// The last acknowledged sequence of an epoch, as far as is known.
    pub(super) fn acknowledged(&self, epoch: u64) -> u64 {
        if epoch == self.epoch { self.acknowledged } else { 0 }
    }

    pub(super) fn renamed(&mut self, before: u64, after: u64) {
        if self.epoch == before {
            self.epoch = after;
            self.write();
        }
    }

    /// Old or new after a crash, never half.
    fn write(&mut self) {
        self.written = Instant::now();
        let Some(path) = &self.path else { return };
        let refused = self.refused.unwrap_or(Refused { count: 0, from_unix_ns: 0, until_unix_ns: 0 });
        let text = json!({
            "refused": refused.count,
            "refused_from_unix_ns": refused.from_unix_ns,
            "refused_until_unix_ns": refused.until_unix_ns,
            "losses": self.losses,
            "epoch": self.epoch,
            "acknowledged": self.acknowledged,
        });
        let beside = path.with_extension("new");
        let result = fs::write(&beside, text.to_string()).and_then(|()| fs::rename(&beside, path));
        if let Err(error) = &result
            && !self.failed
        {
            tracing::warn!(path = %path.display(), %error, "the spool's ledger cannot be written; a crash would forget what it counts");
        }
        self.failed = result.is_err();
    }
}
