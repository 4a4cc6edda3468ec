//! seclog-correlator: joins who asked with what ran.

use clap::{Parser, Subcommand};
use seclog_correlator::replay::{ReplayArgs, replay};
use seclog_correlator::serve::{ServeArgs, serve};
use seclog_dropin::render::{RenderArgs, render};
use std::error::Error;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Joins audit records of the kube-apiserver with records of the nodes: who exec'd into which container, and what ran.
#[derive(Debug, Parser)]
#[command(
    name = "seclog-correlator",
    version,
    after_help = "Exit status: 0 fine, 1 a problem was found, 2 could not run."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Takes node records and audit events as they happen, and writes sessions.
    Serve(ServeArgs),
    /// Joins recorded files, and writes their sessions.
    Replay(ReplayArgs),
    /// Writes the configuration of nodes, hosted cluster and audit webhook.
    Render(RenderArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("SECLOG_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let color = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(color).with_writer(std::io::stderr).init();
    let result: Result<bool, Box<dyn Error>> = match &cli.command {
        Command::Serve(args) => serve(args).map_err(Into::into),
        Command::Replay(args) => replay(args).map_err(Into::into),
        Command::Render(args) => return render(args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(2)
        }
    }
}
