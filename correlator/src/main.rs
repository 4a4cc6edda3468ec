//! seclog-correlator: joins who asked with what ran.

use clap::{Parser, Subcommand};
use seclog_correlator::console::{FindingsArgs, SessionsArgs, ShowArgs, TailArgs, findings, sessions, show, tail};
use seclog_correlator::export::{ExportArgs, export};
use seclog_correlator::journal::{VerifyArgs, verify};
use seclog_correlator::replay::{ReplayArgs, replay};
use seclog_correlator::serve::{ServeArgs, serve};
use seclog_dropin::render::{RenderArgs, render};
use std::error::Error;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// A record is a dozen small strings, made in one thread and freed in another: what the C library's allocator is slowest at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    Serve(Box<ServeArgs>),
    /// Joins recorded files, or what a journal holds, and writes their sessions.
    Replay(ReplayArgs),
    /// Lists sessions: who entered which container.
    Sessions(Box<SessionsArgs>),
    /// Shows one session whole: who, where, what ran, how sure that is.
    Show(ShowArgs),
    /// Follows sessions and findings as they are told.
    Tail(Box<TailArgs>),
    /// Lists what an administrator should look at.
    Findings(FindingsArgs),
    /// Reads node records and audit events out of a journal, as files that replay takes.
    Export(ExportArgs),
    /// Proves that a journal is whole and unchanged, or says what is missing or damaged.
    Verify(VerifyArgs),
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
        Command::Sessions(args) => sessions(args).map_err(Into::into),
        Command::Show(args) => show(args).map_err(Into::into),
        Command::Tail(args) => tail(args).map_err(Into::into),
        Command::Findings(args) => findings(args).map_err(Into::into),
        Command::Export(args) => export(args).map_err(Into::into),
        Command::Verify(args) => verify(args).map_err(Into::into),
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
