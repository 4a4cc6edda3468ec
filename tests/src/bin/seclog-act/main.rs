//! Does one thing that the kernel programs must see right, as a process of a container would. What it does to whom is in
//! the names of its subcommands, or in the name that it is called by; where it waits for a line on standard input, it has printed `ready` before.

mod crun;
mod foreign;
mod processes;
mod runtime;
mod suppressed;
mod verdicts;

use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, Write as _},
    os::unix::{net::UnixListener, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::getpid,
};

#[derive(Debug, Parser)]
#[command(about = "Does one thing that the kernel programs must see right")]
enum Act {
    /// Join a cgroup, take a mount namespace of its own, execute: in a container's cgroup that makes a session root
    Enter {
        cgroup: PathBuf,
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
    /// Join a cgroup, and listen on a socket as the container runtime does
    Serve { cgroup: PathBuf, socket: PathBuf },
    /// Make another process close its audit socket
    CloseAudit { pid: i32 },
    /// Execute without these capabilities (numbers of include/uapi/linux/capability.h)
    Without {
        #[arg(value_delimiter = ',')]
        capabilities: Vec<libc::c_ulong>,
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
    #[command(flatten)]
    Verdicts(verdicts::Act),
    #[command(flatten)]
    Processes(processes::Act),
    #[command(flatten)]
    Suppressed(SuppressedAct),
}

#[derive(Debug, Subcommand)]
enum SuppressedAct {
    /// Execute below a filter that logs execve and one that asks a supervisor, which lets it go on
    Notify {
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
    /// Execute below a filter that logs execve and one that stops for a tracer, which lets it go on
    Trace {
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
}

fn main() -> Result<()> {
    if let Some(result) = runtime::by_name() {
        return result;
    }
    match Act::parse() {
        Act::Enter { cgroup, program } => {
            join(&cgroup)?;
            unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
            execute(&program)
        }
        Act::Serve { cgroup, socket } => {
            join(&cgroup)?;
            let listener = UnixListener::bind(&socket).with_context(|| socket.display().to_string())?;
            println!("ready");
            listener.incoming().for_each(drop);
            Ok(())
        }
        Act::CloseAudit { pid } => foreign::close_audit(pid),
        Act::Without { capabilities, program } => {
            for capability in capabilities {
                // SAFETY: prctl(2) with plain numbers.
                let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
                nix::errno::Errno::result(result).with_context(|| format!("capability {capability}"))?;
            }
            execute(&program)
        }
        Act::Verdicts(act) => act.run(),
        Act::Processes(act) => act.run(),
        Act::Suppressed(SuppressedAct::Notify { program }) => suppressed::notify(&program),
        Act::Suppressed(SuppressedAct::Trace { program }) => suppressed::trace(&program),
    }
}

fn join(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), getpid().to_string())
        .with_context(|| format!("cannot join {}", cgroup.display()))
}

/// Becomes the program; returns only when that fails.
fn execute(program: &[OsString]) -> Result<()> {
    let (path, arguments) = program.split_first().context("no program")?;
    Err(Command::new(path).args(arguments).exec()).with_context(|| format!("cannot execute {}", path.display()))
}

/// Says that it is ready, and waits to be told to go on.
fn wait_to_be_told() -> Result<()> {
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}
