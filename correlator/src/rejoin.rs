//! What a journal's files tell, joined anew: what `serve` would have told that had never stopped.

use crate::intake::now;
use crate::join::{Input, Join};
use crate::journal::{Fed, FeedTotals, Files};
use crate::outlet::{Outlet, OutletError};
use crate::pace::Pace;
use seclog_journal::LogError;
use std::path::Path;

#[derive(Debug, thiserror::Error)]
pub enum RejoinError {
    #[error(transparent)]
    Outlet(#[from] OutletError),
    #[error("the journal cannot be read: {0}")]
    Journal(#[from] LogError),
}

struct Rejoining {
    join: Join,
    outlet: Outlet,
    pace: Pace,
}

/// Reads all of it, and writes each revision as it comes about.
pub(crate) fn rejoin(dir: &Path, join: Join, outlet: Outlet) -> Result<FeedTotals, RejoinError> {
    let mut files = Files::open(dir);
    let mut work = Rejoining { join, outlet, pace: Pace::default() };
    while let Some(fed) = files.read()? {
        match fed {
            Fed::Inputs { time, inputs } => {
                work.step_to(time)?;
                for input in inputs {
                    // Sessions come with time alone.
                    drop(work.join.apply(input));
                }
                work.write_findings()?;
            }
            Fed::Stopped { time } => {
                work.step_to(time)?;
                work.finish()?;
            }
            Fed::Idle | Fed::Ended => {}
        }
    }
    work.finish()?;
    Ok(files.totals())
}

impl Rejoining {
    fn step_to(&mut self, time: u64) -> Result<(), RejoinError> {
        // As live: the clock may have been set back since.
        let mut steps = self.pace.to(time.min(now()));
        while let Some(time) = steps.next(&mut self.pace) {
            let sessions = self.join.apply(Input::Now(time));
            self.outlet.write(&sessions)?;
            self.write_findings()?;
        }
        Ok(())
    }

    fn write_findings(&mut self) -> Result<(), RejoinError> {
        Ok(self.outlet.write_findings(&self.join.take_findings())?)
    }

    fn finish(&mut self) -> Result<(), RejoinError> {
        let sessions = self.join.finish();
        self.outlet.write(&sessions)?;
        self.write_findings()
    }
}
