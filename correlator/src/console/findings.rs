//! `findings`: what an administrator should look at, of sessions and of none.

use super::ask::{StoreArgs, codes, time};
use super::list::tell_of_deleted;
use super::{ConsoleError, Output};
use crate::join::finding::{Code, Finding};
use crate::outlet::table::{escape, short};
use clap::Args;
use std::fmt::Write as _;

#[derive(Debug, Clone, Args)]
pub struct FindingsArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// Of this time or later; as for `sessions`.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub since: Option<u64>,
    /// Of a time before this.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub until: Option<u64>,
    /// Repeatable, or several with commas.
    #[arg(long, value_delimiter = ',', value_parser = codes())]
    pub code: Vec<Code>,
    /// The newest so many, 0 for all.
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    pub limit: u32,
    /// One finding a line: docs/sessions.md.
    #[arg(long)]
    pub json: bool,
}

/// Prints those that fit, oldest first. True: always.
pub fn findings(args: &FindingsArgs) -> Result<bool, ConsoleError> {
    let reader = args.store.open()?;
    let limit = if args.limit == 0 { usize::MAX } else { args.limit as usize };
    let (found, more) = reader.findings(args.since, args.until, &args.code, limit)?;
    let mut text = String::new();
    for finding in &found {
        if args.json {
            text.push_str(&serde_json::to_string(finding)?);
            text.push('\n');
        } else {
            text.push_str(&render(finding));
        }
    }
    if Output::new().put(&text)? && !args.json {
        match (found.len(), more) {
            (0, _) => eprintln!("No finding fits."),
            (count, true) => eprintln!("The newest {count}; there are older ones: --limit."),
            (count, false) => eprintln!("{count} findings."),
        }
        tell_of_deleted(&reader, args.since)?;
    }
    Ok(true)
}

pub(super) fn render(finding: &Finding) -> String {
    let Finding { code, severity, text, time, session, .. } = finding;
    let severity = format!("{severity:?}").to_lowercase();
    let mut line = format!("{}  {severity:<7}  {code:<30}  {}", short(*time), escape(text));
    if let Some(session) = session {
        let _ = write!(line, "  (session {})", session.to_string().get(..8).unwrap_or_default());
    }
    line.push('\n');
    line
}
