//! A journal in a directory of its own, and what the join would read from it.

use seclog_correlator::intake::trail::{Trail, TrailOptions};
use seclog_correlator::join::{Input, Route};
use seclog_correlator::journal::{Fed, Feed, Journal, JournalOptions, Opened};
use seclog_correlator::telemetry::Telemetry;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// What intakes put into the journal.
pub(crate) struct Inputs {
    feed: Feed,
    pub(crate) dir: TempDir,
}

pub(crate) fn options(dir: &Path) -> JournalOptions {
    JournalOptions {
        dir: dir.to_owned(),
        most_bytes: 1 << 30,
        segment_bytes: 1 << 20,
        checkpoint_every: Duration::from_secs(60),
    }
}

pub(crate) fn journal() -> (Journal, Inputs) {
    journal_of(|_| {})
}

pub(crate) fn journal_of(change: impl FnOnce(&mut JournalOptions)) -> (Journal, Inputs) {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    change(&mut options);
    let Opened { journal, feed, .. } = Journal::open(options, None, &Telemetry::default()).unwrap();
    (journal, Inputs { feed, dir })
}

/// A trail that writes into a journal, for these routes.
pub(crate) fn trail(journal: &Journal, dir: &Path, routes: &[Route]) -> Trail {
    let options = TrailOptions::new(routes.to_vec(), dir.join("quarantine"));
    Trail::open(journal.clone(), options, &Telemetry::default()).unwrap()
}

impl Inputs {
    /// The inputs of the next entry, if there is one.
    pub(crate) fn try_recv(&mut self) -> Option<Vec<Input>> {
        self.feed.try_next().unwrap().and_then(inputs)
    }

    /// Waits for it.
    pub(crate) async fn recv(&mut self) -> Option<Vec<Input>> {
        loop {
            match self.feed.try_next().unwrap() {
                Some(fed) => return inputs(fed),
                None if self.feed.more().await => {}
                None => return None,
            }
        }
    }
}

fn inputs(fed: Fed) -> Option<Vec<Input>> {
    match fed {
        Fed::Inputs { inputs, .. } => Some(inputs),
        Fed::Stopped { .. } | Fed::Idle | Fed::Ended => None,
    }
}
