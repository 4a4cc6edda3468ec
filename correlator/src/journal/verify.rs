//! `verify`: proves what a journal holds, to somebody who has its files and the checkpoints.

use super::checkpoint::hex;
use super::{Checkpoint, CheckpointError, Entry, PublicKey};
use clap::Args;
use prost::Message as _;
use seclog_journal::{Checked, Digest, LogError, Missing, Problem, Why};
use seclog_proto::v1::{Deletion, Export, JournalEntry};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;

#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The journal's directory (serve's --journal). May be that of a correlator that runs.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Checkpoints: lines of an outlet's output; other lines are passed over. Repeatable.
    #[arg(long, value_name = "FILE", requires = "public_key")]
    pub checkpoints: Vec<PathBuf>,
    /// The public half of serve's --checkpoint-key, PEM.
    #[arg(long, value_name = "FILE")]
    pub public_key: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Key(#[from] CheckpointError),
    #[error("cannot read checkpoints from {}: {source}", path.display())]
    Checkpoints { path: PathBuf, source: io::Error },
    #[error("cannot write the report: {0}")]
    Report(#[from] io::Error),
}

/// Reads, checks and reports on standard output. True: everything that should be there is, as it was written.
pub fn verify(args: &VerifyArgs) -> Result<bool, VerifyError> {
    let mut report = Vec::new();
    let fine = judge(args, &mut report)?;
    let mut stdout = io::stdout().lock();
    for line in report {
        writeln!(stdout, "{line}")?;
    }
    Ok(fine)
}

fn judge(args: &VerifyArgs, report: &mut Vec<String>) -> Result<bool, VerifyError> {
    let (checkpoints, mut problems) = checkpoints(args)?;
    let mut chains: BTreeMap<u64, Option<Digest>> = checkpoints.keys().map(|entry| (*entry, None)).collect();
    let mut deletions: Vec<Deletion> = Vec::new();
    let mut exports: Vec<(u64, u64, Export)> = Vec::new();
    let mut unreadable = 0;
    let checked = seclog_journal::check(&args.dir, |entry| {
        if let Some(chain) = chains.get_mut(&entry.number) {
            *chain = Some(entry.chain);
        }
        match JournalEntry::decode(entry.payload) {
            Ok(JournalEntry { entry: Some(Entry::Deletion(deletion)), .. }) => deletions.push(deletion),
            Ok(JournalEntry { time_unix_ns, entry: Some(Entry::Export(export)) }) => {
                exports.push((entry.number, time_unix_ns, export));
            }
            Ok(_) => {}
            Err(_) => unreadable += 1,
        }
    })?;
    let Checked { first, next, entries, bytes, trailing_bytes, more_problems, chain_before, .. } = &checked;
    report.push(format!("{}: entries {first} to {}, {entries} whole, {bytes} bytes", args.dir.display(), next - 1));
    for problem in &checked.problems {
        problems.push(problem.to_string());
    }
    if *more_problems > 0 {
        problems.push(format!("{more_problems} further places are damaged"));
    }
    if unreadable > 0 {
        problems.push(format!("{unreadable} entries are whole, but no messages that this program knows"));
    }
    let deleted_until = deletions.iter().map(|deletion| deletion.until).max().unwrap_or(1);
    for Deletion { from, until, reason } in &deletions {
        report.push(format!("deleted by retention: entries {from} to {} ({reason})", until - 1));
    }
    for (entry, time, Export { who, what, reason }) in &exports {
        let time = crate::Timestamp(*time);
        report.push(format!("entry {entry}: read out at {time} by {who:?}: {what:?}, because {reason:?}"));
    }
    if *first > deleted_until {
        problems
            .push(format!("entries {deleted_until} to {} are missing, and no entry says who deleted them", first - 1));
    }
    let mut proven = 0;
    for (entry, checkpoint) in &checkpoints {
        let chain = match chains.get(entry).copied().flatten() {
            Some(chain) => chain,
            // Its own entry is gone, but the next segment begins with its chain.
            None if entry + 1 == *first => match chain_before {
                Some(chain) => *chain,
                None => continue,
            },
            None if entry < first => continue,
            None => {
                let missing = checked.problems.iter().any(|problem| {
                    matches!(problem, Problem::Missing(Missing { from, until, why: Why::Damaged | Why::Gone, .. })
                        if (*from..*until).contains(entry))
                });
                if !missing {
                    problems.push(format!(
                        "entry {entry} is not there: the checkpoint of {} says that it was; the end of the journal is missing",
                        time(checkpoint)
                    ));
                }
                continue;
            }
        };
        if Some(chain) == checkpoint.chain() {
            proven = proven.max(*entry);
        } else {
            problems.push(format!(
                "the chain at entry {entry} is {}, and the checkpoint of {} says {}: something at or before it was changed",
                hex(&chain),
                time(checkpoint),
                checkpoint.chain
            ));
        }
    }
    if *trailing_bytes > 0 {
        report.push(format!(
            "{trailing_bytes} bytes at the end are no entry: written when it was killed, or is being written"
        ));
    }
    if args.public_key.is_none() {
        report.push("without --public-key and --checkpoints only the chain itself is checked".to_owned());
    } else if proven > 0 {
        report.push(format!(
            "{} checkpoints; everything up to entry {proven} is as it was when they were signed",
            checkpoints.len()
        ));
    } else {
        report.push(format!("{} checkpoints, none of which is of an entry that is here", checkpoints.len()));
    }
    let fine = problems.is_empty();
    report.extend(problems.into_iter().map(|problem| format!("PROBLEM {problem}")));
    report.push(if fine { "fine" } else { "NOT fine" }.to_owned());
    Ok(fine)
}

fn time(checkpoint: &Checkpoint) -> String {
    crate::Timestamp(checkpoint.time_unix_ns).to_string()
}

/// Those that are signed, by their entry, and what is wrong with others.
fn checkpoints(args: &VerifyArgs) -> Result<(BTreeMap<u64, Checkpoint>, Vec<String>), VerifyError> {
    let (mut good, mut problems) = (BTreeMap::new(), Vec::new());
    let Some(key) = args.public_key.as_deref().map(PublicKey::from_file).transpose()? else {
        return Ok((good, problems));
    };
    for path in &args.checkpoints {
        let failed = |source| VerifyError::Checkpoints { path: path.clone(), source };
        for (number, line) in BufReader::new(File::open(path).map_err(failed)?).split(b'\n').enumerate() {
            let line = line.map_err(failed)?;
            let place = format!("{}:{}", path.display(), number + 1);
            let Ok(checkpoint) = serde_json::from_slice::<Checkpoint>(&line) else { continue };
            if !key.signed(&checkpoint) {
                problems
                    .push(format!("{place}: the checkpoint of entry {} is not signed with this key", checkpoint.entry));
                continue;
            }
            let entry = checkpoint.entry;
            if let Some(before) = good.insert(entry, checkpoint.clone())
                && before.chain != checkpoint.chain
            {
                problems.push(format!("{place}: two checkpoints of entry {entry} differ: there were two journals"));
            }
        }
    }
    Ok((good, problems))
}
