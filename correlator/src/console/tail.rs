//! `tail`: sessions and findings as they are told.

use super::ask::{FilterArgs, StoreArgs};
use super::{ConsoleError, Output, findings};
use crate::join::finding::Finding;
use crate::join::session::Session;
use crate::outlet::table;
use crate::store::{Filter, Page, Reader, Told};
use crate::timestamp::Timestamp;
use clap::Args;
use std::time::Duration;

/// The store has a transaction a second.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const AT_ONCE: usize = 256;

#[derive(Debug, Clone, Args)]
pub struct TailArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Begin with the last so many that were told.
    #[arg(long, short, value_name = "COUNT", default_value_t = 10)]
    pub lines: u32,
    /// One session or finding a line, all that is known: docs/sessions.md.
    #[arg(long)]
    pub json: bool,
    /// Do not wait for more.
    #[arg(long)]
    pub no_follow: bool,
}

/// Where it has come in which store.
struct Place {
    after: u64,
    store: [u8; 16],
}

/// Follows until it is interrupted, or until nobody reads any more. A session that is told again while this looks away
/// comes in its last revision alone.
pub fn tail(args: &TailArgs) -> Result<bool, ConsoleError> {
    let filter = args.filter.filter();
    let reader = args.store.open()?;
    let (last, store) = reader.last()?;
    let mut place = Place { after: first(&reader, args, &filter, last)?, store };
    drop(reader);
    let mut output = Output::new();
    loop {
        // Opened anew each time: nothing is held that would keep the writer's log from being taken up, and a store that was
        // made anew is seen.
        let reader = args.store.open()?;
        let (_, store) = reader.last()?;
        if store != place.store {
            eprintln!("The store was made anew; what it has is told from its beginning.");
            place = Place { after: 0, store };
        }
        loop {
            let told = reader.told(place.after, AT_ONCE)?;
            let count = told.len();
            let mut text = String::new();
            for (number, told) in told {
                place.after = number;
                if fits(&reader, args, &filter, &told)? {
                    text.push_str(&render(&told, args.json)?);
                }
            }
            if !text.is_empty() && !output.put(&text)? {
                return Ok(true);
            }
            if count < AT_ONCE {
                break;
            }
        }
        drop(reader);
        if args.no_follow {
            return Ok(true);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The number after which the last so many that fit were told.
fn first(reader: &Reader, args: &TailArgs, filter: &Filter, last: u64) -> Result<u64, ConsoleError> {
    let wanted = args.lines as usize;
    let mut before = last.saturating_add(1);
    let mut found = 0;
    if wanted == 0 {
        return Ok(last);
    }
    while let Some(Page { lowest, told }) = reader.told_before(before, AT_ONCE)? {
        for (number, told) in told {
            if fits(reader, args, filter, &told)? {
                found += 1;
                if found == wanted {
                    return Ok(number.saturating_sub(1));
                }
            }
        }
        before = lowest;
    }
    Ok(0)
}

fn fits(reader: &Reader, args: &TailArgs, filter: &Filter, told: &Told) -> Result<bool, ConsoleError> {
    match told {
        Told::Session(session) => Ok(reader.takes(filter, session.id)?),
        Told::Finding(finding) => Ok(finding_fits(args, finding)),
    }
}

/// Findings of sessions stand with these.
fn finding_fits(args: &TailArgs, finding: &Finding) -> bool {
    let Finding { session, code, time: Timestamp(time), .. } = finding;
    let FilterArgs { since, until, finding: codes, .. } = &args.filter;
    session.is_none()
        && !args.filter.is_of_sessions()
        && (codes.is_empty() || codes.contains(code))
        && since.is_none_or(|since| *time >= since)
        && until.is_none_or(|until| *time < until)
}

fn render(told: &Told, json: bool) -> Result<String, ConsoleError> {
    Ok(match (told, json) {
        (Told::Session(session), true) => serde_json::to_string(session)? + "\n",
        (Told::Finding(finding), true) => serde_json::to_string(finding)? + "\n",
        (Told::Session(session), false) => with_id(session),
        (Told::Finding(finding), false) => findings::render(finding),
    })
}

fn with_id(session: &Session) -> String {
    let text = table::render(session);
    let id = session.id.to_string();
    format!("{}  {text}", id.get(..8).unwrap_or_default())
}
