//! Quiet mode alone, as if a verdict hook were attached: for hosts on which none can be.
//!
//! Says `entered …` or `refused: …`; on SIGUSR1 looks whether all is well and says so; on SIGTERM leaves.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use seclog_agent::quiet::{QuietMode, QuietOptions};
use seclog_tests::lab::places;

#[derive(Debug, Parser)]
#[command(about = "Enters quiet mode without an agent")]
struct Options {
    #[arg(long)]
    force: bool,
    #[arg(long)]
    state: PathBuf,
}

fn main() -> Result<()> {
    let Options { force, state } = Options::parse();
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGUSR1].into_iter().collect();
    signals.thread_block()?;
    let options = QuietOptions { force, state, guard_program: places::program("seclog-agent")? };
    let mut quiet = match QuietMode::enter(options, true) {
        Ok(quiet) => quiet,
        Err(error) => {
            println!("refused: {error}");
            bail!("refused");
        }
    };
    let guard = |quiet: &QuietMode| quiet.guard_pid().unwrap_or_default();
    println!("entered made={} guard={}", quiet.made_the_rule(), guard(&quiet));
    while signals.wait()? == Signal::SIGUSR1 {
        match quiet.check() {
            Ok(()) => println!("well guard={}", guard(&quiet)),
            Err(error) => println!("unwell: {error}"),
        }
    }
    quiet.leave()?;
    println!("left");
    Ok(())
}
