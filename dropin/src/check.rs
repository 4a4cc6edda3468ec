//! `seclog-agent check`.

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};

use crate::{
    install,
    judge::Expect,
    node::{self, RootError, Sources},
    report::Report,
    version::CrioVersion,
};

/// Judges whether this node logs what happens in containers, and says what to do where it does not.
///
/// Exit status: 0 no problems, 1 problems, 2 could not check.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// The node's root: / on the node, where the host is mounted in a pod, or any tree of files.
    #[arg(long, default_value = "/", value_name = "DIR")]
    pub root: PathBuf,
    /// CRI-O's version where the node does not tell it, e.g. 1.33.
    #[arg(long, value_name = "V", value_parser = crio_version)]
    pub crio_version: Option<CrioVersion>,
    /// CRI-O's socket; by default /var/run/crio/crio.sock below the root, if it is there.
    #[arg(long, value_name = "PATH")]
    pub crio_socket: Option<PathBuf>,
    /// Do not use CRI-O's socket.
    #[arg(long, conflicts_with = "crio_socket")]
    pub no_socket: bool,
    /// What should be logged.
    #[arg(long, value_enum, default_value_t = Expectation::Auto)]
    pub expect: Expectation,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    #[command(flatten)]
    pub install: install::InstallArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Expectation {
    /// Privileged containers from CRI-O 1.33 on, RuntimeDefault before.
    Auto,
    /// Privileged containers: debug sessions on the node.
    Privileged,
    /// Every container with RuntimeDefault.
    Workload,
    Both,
    /// Nothing in particular: report only what is broken.
    None,
}

impl Expectation {
    pub fn expect(self) -> Option<Expect> {
        let (privileged, workload) = match self {
            Self::Auto => return None,
            Self::Privileged => (true, false),
            Self::Workload => (false, true),
            Self::Both => (true, true),
            Self::None => (false, false),
        };
        Some(Expect { privileged, workload })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

pub(crate) fn crio_version(text: &str) -> Result<CrioVersion, String> {
    CrioVersion::parse(text).ok_or_else(|| format!("{text:?} is no CRI-O version; write it as 1.33"))
}

/// Gathers and judges; the part that `seclog-agent run` repeats. It reads files and may wait for CRI-O: call it off the
/// asynchronous threads.
pub fn run(sources: &Sources, expect: Option<Expect>) -> Result<Report, RootError> {
    let facts = node::gather(sources)?;
    Ok(Report::of(&sources.root.to_string_lossy(), &facts, expect))
}

impl CheckArgs {
    pub fn sources(&self) -> Sources {
        Sources {
            root: self.root.clone(),
            version: self.crio_version,
            socket: self.crio_socket.clone(),
            ask_socket: !self.no_socket,
        }
    }
}

/// The command.
pub fn check(args: &CheckArgs) -> ExitCode {
    if args.install.install {
        return install::command(args);
    }
    let report = match run(&args.sources(), args.expect.expect()) {
        Ok(report) => report,
        Err(error) => return failed(&error),
    };
    print(&report, args.format)
}

pub(crate) fn print(report: &Report, format: Format) -> ExitCode {
    let text = match format {
        Format::Table => report.table(),
        Format::Json => match report.json() {
            Ok(text) => text,
            Err(error) => return failed(&error),
        },
    };
    // A reader that has gone (`| head`) changes nothing about the verdict.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    ExitCode::from(report.verdict.exit_code())
}

pub(crate) fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("seclog check: {error}");
    ExitCode::from(2)
}
