//! seclog-agent.

use std::{io::IsTerminal as _, process::ExitCode};

use clap::{Parser, Subcommand};
use seclog_agent::{
    memory, quiet,
    run::{self, RunArgs},
};
use seclog_dropin::check::{self, CheckArgs};
use tracing_subscriber::EnvFilter;

/// A record is a dozen small strings, made in one thread and freed in another: what the C library's allocator is slowest at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sees what runs in the containers of this node, and which remote session it belongs to.
#[derive(Parser, Debug)]
#[command(
    version,
    after_help = "Exit codes: 0 fine, 1 found a problem, 2 could not run.\nLog level: SECLOG_LOG=debug."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Capture, and send or print node records until stopped.
    Run(Box<RunArgs>),
    /// Judge whether this node logs what happens in containers.
    Check(CheckArgs),
    /// Started by `run` itself: removes quiet mode's audit rule when the agent is killed.
    #[command(name = quiet::guard::SUBCOMMAND, hide = true)]
    QuietGuard,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("SECLOG_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let color = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(color).init();
    let args = match cli.command {
        Command::Run(args) => args,
        Command::Check(args) => return check::check(&args),
        Command::QuietGuard => return quiet::guard::run(),
    };
    memory::small_pages();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::from(2);
        }
    };
    match runtime.block_on(run::run(*args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "cannot run");
            ExitCode::from(2)
        }
    }
}
